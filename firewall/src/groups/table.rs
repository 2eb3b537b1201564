//! Files of packets and what is to become of them: `muster firewall test`.
//!
//! ```toml
//! # What a hypervisor holds, as `muster firewall show --json` prints it; left
//! # out, that of the caller is used.
//! [holding.interfaces.mtweb]
//! # …
//!
//! [[packet]]
//! from = "outside"            # an interface, host, or outside
//! to = "mtweb"
//! source = "198.51.100.7"     # left out: the interface's first address
//! traffic = "tcp 443"         # as in rules; also arp, rarp, ether 0x88cc
//! expect = "pass"             # or drop
//! why = "rule 3 of web"       # optional: a rule, or a word such as no-ingress-rule
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use muster_protocol::firewall::{Holding, Icmp, Ports, Traffic, TrafficError};
use muster_protocol::names::TapName;
use muster_protocol::vm::Mac;
use serde::Deserialize;

use super::check::{Refused, check};
use super::judge::{Content, End, Judge, Judged, Packet, Payload, Verdict, Why};

/// Most rows of a file.
pub const MAX_ROWS: usize = 100_000;

/// Why a file is no table of packets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Not TOML, or other words.
    #[error("not a table of packets: {0}")]
    Toml(#[from] Box<toml::de::Error>),
    /// Nothing to hold the packets against.
    #[error("the file has no [holding], and none is known here; write one, or name one")]
    NoHolding,
    /// A holding that cannot be.
    #[error("the file's [holding]: {0}")]
    Holding(#[from] Refused),
    /// No rows, or too many.
    #[error("{0} packets: a table has 1 to {MAX_ROWS}, each begins with [[packet]]")]
    Rows(usize),
    /// A row.
    #[error("packet {row}: {why}")]
    Row {
        /// Which, from 1.
        row: usize,
        /// Why not.
        why: RowError,
    },
}

/// Why a row says no packet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// An end.
    #[error("`{0}` is no interface here; write one of {1}, host or outside")]
    End(String, String),
    /// An address is missing.
    #[error("`{0}` is missing: the {1} has no {2} address of its own")]
    Address(&'static str, &'static str, &'static str),
    /// Families.
    #[error("{0} and {1} are of two families")]
    Families(IpAddr, IpAddr),
    /// A family that the traffic is not of.
    #[error("{0} is no traffic between {1} addresses")]
    Family(String, &'static str),
    /// Traffic.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    /// Traffic that is not one packet.
    #[error("`{0}` is not one packet; name one port, or one type and code")]
    NotOne(String),
    /// A type of Ethernet.
    #[error("`{0}` is no type of Ethernet; write it like ether 0x88cc")]
    EtherType(String),
    /// A hardware address.
    #[error("`{0}` is no hardware address; write it like 52:54:00:12:ab:0f")]
    Mac(String),
    /// What is to decide.
    #[error(
        "`{0}` decides nothing; write `rule NUMBER of GROUP`, or a word such as no-ingress-rule"
    )]
    Why(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    holding: Option<Holding>,
    #[serde(default)]
    packet: Vec<RawRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRow {
    from: String,
    to: String,
    #[serde(default)]
    source: Option<IpAddr>,
    #[serde(default)]
    target: Option<IpAddr>,
    traffic: String,
    #[serde(default)]
    source_port: Option<u16>,
    #[serde(default)]
    opens: Option<bool>,
    #[serde(default)]
    hops: Option<u8>,
    #[serde(default)]
    about: Option<Ipv6Addr>,
    #[serde(default)]
    source_mac: Option<String>,
    #[serde(default)]
    target_mac: Option<String>,
    #[serde(default)]
    tagged: bool,
    expect: Expect,
    #[serde(default)]
    why: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Expect {
    Pass,
    Drop,
}

/// A row: a packet, and what is to become of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// From 1.
    pub number: usize,
    /// What people call it.
    pub name: Option<String>,
    /// It.
    pub packet: Packet,
    /// Whether it is to pass.
    pub expect: Verdict,
    /// What is to decide, when that matters: `rule 3 of web`, `no-ingress-rule`.
    pub why: Option<String>,
}

/// A file that was read.
#[derive(Clone, Debug)]
pub struct Table {
    /// What the packets are held against.
    pub holding: Holding,
    /// The packets.
    pub rows: Vec<Row>,
}

/// What became of a row.
#[derive(Clone, Debug)]
pub struct Outcome<'a> {
    /// Which.
    pub row: &'a Row,
    /// What becomes of its packet.
    pub judged: Judged,
    /// Whether that is what it is to be.
    pub as_expected: bool,
}

impl fmt::Display for Outcome<'_> {
    /// `packet 3 (next port): expected pass, is dropped: no rule …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "packet {}", self.row.number)?;
        if let Some(name) = &self.row.name {
            write!(f, " ({name})")?;
        }
        let is = match self.judged.verdict {
            Verdict::Pass => "passes",
            Verdict::Drop => "is dropped",
        };
        if self.as_expected {
            return write!(f, ": {is}: {}", self.judged.why());
        }
        write!(f, ": expected {}", self.row.expect)?;
        if let Some(why) = &self.row.why {
            write!(f, " by {why}")?;
        }
        write!(f, ", {is}: {}", self.judged.why())
    }
}

impl Table {
    /// Reads a file. Where it has no holding of its own, `held` is taken.
    ///
    /// # Errors
    /// [`TableError`]: the first thing that is wrong, with its row.
    pub fn parse(text: &str, held: Option<&Holding>) -> Result<Self, TableError> {
        let file: File = toml::from_str(text).map_err(Box::new)?;
        let holding = match (file.holding, held) {
            (Some(holding), _) => holding,
            (None, Some(held)) => held.clone(),
            (None, None) => return Err(TableError::NoHolding),
        };
        check(&holding, None)?;
        if file.packet.is_empty() || file.packet.len() > MAX_ROWS {
            return Err(TableError::Rows(file.packet.len()));
        }
        let mut rows = Vec::with_capacity(file.packet.len());
        for (at, raw) in file.packet.into_iter().enumerate() {
            let row = at + 1;
            let read = read(&holding, row, raw);
            rows.push(read.map_err(|why| TableError::Row { row, why })?);
        }
        Ok(Self { holding, rows })
    }

    /// What becomes of each packet.
    #[must_use]
    pub fn run(&self) -> Vec<Outcome<'_>> {
        let judge = Judge::new(&self.holding);
        let outcome = |row| outcome(&judge, row);
        self.rows.iter().map(outcome).collect()
    }
}

fn outcome<'a>(judge: &Judge<'_>, row: &'a Row) -> Outcome<'a> {
    let judged = judge.packet(&row.packet);
    let why = judged.why();
    let word = match &why {
        Why::Rule { .. } => why.to_string(),
        Why::Fixed(fixed) => fixed.as_str().to_owned(),
    };
    let same_why = row.why.as_ref().is_none_or(|expected| *expected == word);
    Outcome {
        row,
        as_expected: judged.verdict == row.expect && same_why,
        judged,
    }
}

fn read(holding: &Holding, number: usize, raw: RawRow) -> Result<Row, RowError> {
    let (from, to) = (end(holding, &raw.from)?, end(holding, &raw.to)?);
    let mac = |text: &Option<String>| text.as_deref().map(raw_mac).transpose();
    let (source_mac, target_mac) = (mac(&raw.source_mac)?, mac(&raw.target_mac)?);
    if let Some(why) = &raw.why {
        known(why)?;
    }
    let content = match raw.traffic.as_str() {
        "arp" => Content::Arp {
            operation: 1,
            sender_mac: None,
            sender: match address(holding, &from, raw.source, true) {
                Some(IpAddr::V4(sender)) => sender,
                _ => return Err(RowError::Address("source", "sender", "IPv4")),
            },
            target: match address(holding, &to, raw.target, true) {
                Some(IpAddr::V4(target)) => target,
                _ => Ipv4Addr::UNSPECIFIED,
            },
        },
        "rarp" => {
            let own = own_mac(holding, &from).or(source_mac).unwrap_or([0; 6]);
            let about = source_mac.unwrap_or(own);
            Content::Rarp {
                sender_mac: about,
                target_mac: about,
            }
        }
        text => match text.strip_prefix("ether ") {
            Some(kind) => {
                let digits = kind.trim().strip_prefix("0x");
                let kind = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
                Content::Other(kind.ok_or_else(|| RowError::EtherType(raw.traffic.clone()))?)
            }
            None => ip(holding, &from, &to, &raw)?,
        },
    };
    Ok(Row {
        number,
        name: raw.name,
        packet: Packet {
            from,
            to,
            source_mac,
            target_mac,
            tagged: raw.tagged,
            content,
        },
        expect: match raw.expect {
            Expect::Pass => Verdict::Pass,
            Expect::Drop => Verdict::Drop,
        },
        why: raw.why,
    })
}

fn ip(holding: &Holding, from: &End, to: &End, raw: &RawRow) -> Result<Content, RowError> {
    let traffic = Traffic::from_str(&raw.traffic)?;
    // The family of what is given, else of the traffic, else IPv4 where both
    // ends have it.
    let v4 = match (raw.source.or(raw.target), &traffic) {
        (Some(given), _) => given.is_ipv4(),
        (None, Traffic::Icmpv6(_)) => false,
        (None, Traffic::Icmp(_)) => true,
        (None, _) => [from, to].iter().all(|end| match end {
            End::Interface(_) => address(holding, end, None, true).is_some(),
            End::Host | End::Outside => true,
        }),
    };
    let family = if v4 { "IPv4" } else { "IPv6" };
    let source = address(holding, from, raw.source, v4);
    let source = source.ok_or(RowError::Address("source", "sender", family))?;
    let target = address(holding, to, raw.target, v4);
    let target = target.ok_or(RowError::Address("target", "receiver", family))?;
    if source.is_ipv4() != target.is_ipv4() {
        return Err(RowError::Families(source, target));
    }
    let payload = payload(&traffic, raw)?;
    let wrong = match payload {
        Payload::Icmp { .. } => !v4,
        Payload::Icmpv6 { .. } => v4,
        _ => false,
    };
    if wrong {
        return Err(RowError::Family(raw.traffic.clone(), family));
    }
    let usual = match payload {
        Payload::Icmpv6 {
            kind: 133..=137, ..
        } => 255,
        Payload::Icmpv6 {
            kind: 130..=132 | 143,
            ..
        } => 1,
        _ => 64,
    };
    Ok(Content::Ip {
        source,
        target,
        hops: raw.hops.unwrap_or(usual),
        payload,
    })
}

fn payload(traffic: &Traffic, raw: &RawRow) -> Result<Payload, RowError> {
    let not_one = || RowError::NotOne(raw.traffic.clone());
    let port = |ports: &Option<Ports>| {
        let ports = ports.as_ref().ok_or_else(not_one)?;
        match ports.ranges() {
            [one] if one.first() == one.last() => Ok(one.first()),
            _ => Err(not_one()),
        }
    };
    let kind = |icmp: &Option<Icmp>| icmp.ok_or_else(not_one);
    let source = raw.source_port.unwrap_or(40_000);
    Ok(match traffic {
        Traffic::Any => return Err(not_one()),
        Traffic::Tcp(ports) => Payload::Tcp {
            source,
            target: port(ports)?,
            opens: raw.opens.unwrap_or(true),
        },
        Traffic::Udp(ports) => Payload::Udp {
            source,
            target: port(ports)?,
        },
        Traffic::Icmp(icmp) => {
            let icmp = kind(icmp)?;
            Payload::Icmp {
                kind: icmp.kind,
                code: icmp.code.unwrap_or(0),
            }
        }
        Traffic::Icmpv6(icmp) => {
            let icmp = kind(icmp)?;
            Payload::Icmpv6 {
                kind: icmp.kind,
                code: icmp.code.unwrap_or(0),
                about: raw.about,
            }
        }
        Traffic::Protocol(number) => Payload::Other(*number),
    })
}

fn end(holding: &Holding, text: &str) -> Result<End, RowError> {
    match text {
        "host" => return Ok(End::Host),
        "outside" => return Ok(End::Outside),
        _ => {}
    }
    // An interface, or a machine that has one alone.
    if let Ok(tap) = text.parse::<TapName>()
        && (holding.interfaces.contains_key(&tap) || text.starts_with("mt"))
    {
        return Ok(End::Interface(tap));
    }
    let mut of_name = holding
        .interfaces
        .iter()
        .filter(|(_, i)| i.name.as_str() == text);
    if let (Some((tap, _)), None) = (of_name.next(), of_name.next()) {
        return Ok(End::Interface(tap.clone()));
    }
    let known: Vec<&str> = holding
        .interfaces
        .keys()
        .take(5)
        .map(TapName::as_str)
        .collect();
    let text = muster_protocol::text::printable(text, 40);
    Err(RowError::End(text, known.join(", ")))
}

fn own_mac(holding: &Holding, end: &End) -> Option<[u8; 6]> {
    let End::Interface(tap) = end else {
        return None;
    };
    holding.interfaces.get(tap).map(|i| *i.mac.as_bytes())
}

fn address(holding: &Holding, end: &End, given: Option<IpAddr>, v4: bool) -> Option<IpAddr> {
    if given.is_some() {
        return given;
    }
    match end {
        End::Interface(tap) => {
            let interface = holding.interfaces.get(tap)?;
            let mut own = interface.addresses.iter().copied();
            own.find(|address| address.is_ipv4() == v4)
        }
        // Documentation's: nobody's.
        End::Outside if v4 => Some(Ipv4Addr::new(198, 51, 100, 1).into()),
        End::Outside => Some(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into()),
        End::Host => None,
    }
}

fn raw_mac(text: &str) -> Result<[u8; 6], RowError> {
    if text == "ff:ff:ff:ff:ff:ff" {
        return Ok([0xff; 6]);
    }
    let mac = text.parse::<Mac>();
    let mac = mac.map_err(|_| RowError::Mac(muster_protocol::text::printable(text, 40)))?;
    Ok(*mac.as_bytes())
}

/// Whether a row's `why` is something that decides.
fn known(why: &str) -> Result<(), RowError> {
    use super::judge::Fixed;
    let rule = || {
        let (number, group) = why.strip_prefix("rule ")?.split_once(" of ")?;
        number.parse::<u32>().ok()?;
        group.parse::<muster_protocol::names::GroupName>().ok()
    };
    if Fixed::ALL.iter().any(|fixed| fixed.as_str() == why) || rule().is_some() {
        return Ok(());
    }
    Err(RowError::Why(muster_protocol::text::printable(why, 60)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDING: &str = r#"
[holding.interfaces.mtweb]
machine = "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102"
name = "web-03"
bridge = "br0"
mac = "52:54:00:00:00:01"
addresses = ["192.0.2.7", "2001:db8::7"]
groups = ["web"]

[holding.interfaces.mtlb]
machine = "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809103"
name = "lb-01"
bridge = "br0"
mac = "52:54:00:00:00:02"
addresses = ["192.0.2.8"]
groups = []

[holding.groups]
web = [
  { id = 1, direction = "ingress", traffic = "tcp 80,443", peer = "group:lb" },
  { id = 4, direction = "ingress", traffic = "icmpv6 128", peer = "any" },
]

[holding.members]
"group:lb" = ["192.0.2.8/32"]
"#;

    fn table(rows: &str) -> Result<Table, TableError> {
        Table::parse(&format!("{HOLDING}{rows}"), None)
    }

    #[test]
    fn each_packet_is_held_against_its_row() {
        let table = table(
            r#"
[[packet]]
from = "mtlb"
to = "web-03"
traffic = "tcp 443"
expect = "pass"
why = "rule 1 of web"

[[packet]]
name = "next port"
from = "mtlb"
to = "mtweb"
traffic = "tcp 444"
expect = "drop"
why = "no-ingress-rule"

[[packet]]
from = "outside"
to = "mtweb"
traffic = "tcp 80"
expect = "pass"

[[packet]]
from = "outside"
to = "mtweb"
traffic = "icmpv6 128"
expect = "pass"

[[packet]]
from = "mtlb"
to = "outside"
source = "192.0.2.9"
traffic = "udp 53"
target = "192.0.2.1"
expect = "drop"
why = "source-mac"

[[packet]]
from = "mtlb"
to = "outside"
traffic = "arp"
source = "192.0.2.9"
expect = "drop"
why = "arp-sender"
"#,
        )
        .expect("a table");
        let said: Vec<String> = table
            .run()
            .iter()
            .map(|outcome| format!("{} {outcome}", outcome.as_expected))
            .collect();
        insta::assert_snapshot!(said.join("\n"), @r#"
        true packet 1: passes: rule 1 of web
        true packet 2 (next port): is dropped: no rule of the interface's groups allows it to come in
        false packet 3: expected pass, is dropped: no rule of the interface's groups allows it to come in
        true packet 4: passes: rule 4 of web
        false packet 5: expected drop by source-mac, is dropped: its sender uses an address that is not the interface's
        true packet 6: is dropped: its ARP sender is not the interface
        "#);
    }

    #[test]
    fn a_row_that_is_wrong_is_named() {
        let said = |rows: &str| match table(rows) {
            Ok(_) => "a table".to_owned(),
            Err(e) => e.to_string(),
        };
        let row = |what: &str| {
            let row = format!(
                "[[packet]]\nfrom = \"mtlb\"\nto = \"mtweb\"\ntraffic = \"tcp 80\"\nexpect = \"pass\"\n\
                 [[packet]]\nexpect = \"pass\"\n{what}"
            );
            said(&row)
        };
        insta::assert_snapshot!(said(""), @"0 packets: a table has 1 to 100000, each begins with [[packet]]");
        insta::assert_snapshot!(row("from = \"web-99\"\nto = \"mtweb\"\ntraffic = \"tcp 80\""), @"packet 2: `web-99` is no interface here; write one of mtlb, mtweb, host or outside");
        insta::assert_snapshot!(row("from = \"host\"\nto = \"mtweb\"\ntraffic = \"tcp 80\""), @"packet 2: `source` is missing: the sender has no IPv4 address of its own");
        insta::assert_snapshot!(row("from = \"mtlb\"\nto = \"mtweb\"\ntraffic = \"tcp 80-90\""), @"packet 2: `tcp 80-90` is not one packet; name one port, or one type and code");
        insta::assert_snapshot!(row("from = \"mtlb\"\nto = \"mtweb\"\ntraffic = \"tcp 0\""), @"packet 2: `0` is not a port; ports are 1 to 65535, written like 80,443,8000-8999");
        insta::assert_snapshot!(row("from = \"mtlb\"\nto = \"mtweb\"\ntraffic = \"icmpv6 128\"\nsource = \"192.0.2.8\""), @"packet 2: icmpv6 128 is no traffic between IPv4 addresses");
        insta::assert_snapshot!(row("from = \"mtlb\"\nto = \"mtweb\"\ntraffic = \"udp 1\"\nsource = \"2001:db8::1\"\ntarget = \"192.0.2.7\""), @"packet 2: 2001:db8::1 and 192.0.2.7 are of two families");
        insta::assert_snapshot!(row("from = \"mtlb\"\nto = \"mtweb\"\ntraffic = \"tcp 80\"\nwhy = \"luck\""), @"packet 2: `luck` decides nothing; write `rule NUMBER of GROUP`, or a word such as no-ingress-rule");
        insta::assert_snapshot!(row("from = \"mtlb\"\nto = \"mtweb\"\ntraffic = \"ether IPX\""), @"packet 2: `ether IPX` is no type of Ethernet; write it like ether 0x88cc");
        assert!(row("from = \"mtlb\"\nto = \"mtweb\"\ntrafic = \"tcp 80\"").contains("trafic"));
        let none = Table::parse("[[packet]]\n", None).map(drop);
        assert!(none.is_err());
    }

    #[test]
    fn what_cannot_be_held_is_refused() {
        let text = HOLDING.replace("group:lb\" = [\"192", "group:other\" = [\"192");
        let e = Table::parse(&text, None).map(drop).unwrap_err();
        insta::assert_snapshot!(e, @"the file's [holding]: a rule of the group `web` names group:lb, of which nothing is known");
    }
}
