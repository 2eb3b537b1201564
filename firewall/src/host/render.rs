//! Rules as the text that nft takes: one table of muster's own, always in the
//! same order.
//!
//! A rule has one named counter, and a rate one named limit, in however many
//! lines the kernel is told it. Counters are named after what their rule
//! says, so that a rule keeps its own when it moves.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use muster_protocol::firewall::host::{
    Fixed, HostAction, HostDirection, HostMatch, HostPeer, HostRule, Resolved, RuleBody,
};
use muster_protocol::firewall::{Icmp, Ports, Traffic};

/// The one table that is muster's, as nft names it.
pub const TABLE: &str = "inet muster_host";
/// Lines of the kernel's log of one rule.
const LOG_RATE: &str = "limit rate 10/second burst 20 packets";

/// What a counter has counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Counters by name.
pub type Counters = BTreeMap<String, Count>;

/// The table with all its counters at zero.
#[must_use]
pub fn render(rules: &Resolved) -> String {
    render_with(rules, &Counters::new())
}

/// The table, with counters going on from these.
#[must_use]
pub fn render_with(rules: &Resolved, counters: &Counters) -> String {
    let names = counter_names(rules);
    let mut text = format!("table {TABLE} {{\n");
    let ruled = rules.rules().rules().iter().zip(&names);
    let mut sorted: Vec<&String> = ruled
        .filter(|(rule, _)| matches!(rule.body, RuleBody::Match(_)))
        .map(|(_, name)| name)
        .collect();
    sorted.sort_unstable();
    for name in sorted {
        let count = counters.get(name).copied().unwrap_or_default();
        let Count { packets, bytes } = count;
        line(
            &mut text,
            1,
            &format!("counter {name} {{ packets {packets} bytes {bytes} }}"),
        );
    }
    for (rule, name) in rules.rules().rules().iter().zip(&names) {
        if let RuleBody::Match(what) = &rule.body
            && let Some(rate) = &what.rate
        {
            let (count, per, burst) = (rate.count(), rate.per(), rate.burst());
            line(
                &mut text,
                1,
                &format!("limit {name} {{ rate {count}/{per} burst {burst} packets }}"),
            );
        }
    }
    for (name, members) in rules.rules().sets() {
        sets(&mut text, &format!("set-{name}"), members);
    }
    for (name, members) in rules.roles() {
        sets(&mut text, &format!("role-{name}"), members);
    }
    for (rule, name) in rules.rules().rules().iter().zip(&names) {
        if let RuleBody::Match(what) = &rule.body
            && is_apart(what)
        {
            apart(&mut text, what, name);
        }
    }
    for direction in HostDirection::ALL {
        chain(&mut text, rules, *direction, &names);
    }
    text.push_str("}\n");
    text
}

fn line(text: &mut String, depth: usize, line: &str) {
    for _ in 0..depth {
        text.push('\t');
    }
    text.push_str(line);
    text.push('\n');
}

fn sets<'a>(text: &mut String, name: &str, members: impl IntoIterator<Item = &'a IpNet>) {
    let members: Vec<&IpNet> = members.into_iter().collect();
    for family in [Family::V4, Family::V6] {
        let own: Vec<String> = members
            .iter()
            .filter(|prefix| family.has(prefix))
            .map(|prefix| plain(prefix))
            .collect();
        if own.is_empty() {
            continue;
        }
        line(text, 1, &format!("set {name}-{} {{", family.suffix()));
        line(text, 2, &format!("type {}", family.kind()));
        line(text, 2, "flags interval");
        line(text, 2, &format!("elements = {{ {} }}", own.join(", ")));
        line(text, 1, "}");
    }
}

/// An address alone without its length.
fn plain(prefix: &IpNet) -> String {
    match prefix.prefix_len() == prefix.max_prefix_len() {
        true => prefix.addr().to_string(),
        false => prefix.to_string(),
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn has(self, prefix: &IpNet) -> bool {
        match prefix {
            IpNet::V4(_) => self == Self::V4,
            IpNet::V6(_) => self == Self::V6,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    /// What the header is called.
    fn header(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn only(self) -> &'static str {
        match self {
            Self::V4 => "meta nfproto ipv4",
            Self::V6 => "meta nfproto ipv6",
        }
    }
}

fn chain(text: &mut String, rules: &Resolved, direction: HostDirection, names: &[String]) {
    let policy = rules.rules().policy().of(direction);
    line(text, 1, &format!("chain {direction} {{"));
    line(
        text,
        2,
        &format!("type filter hook {direction} priority filter; policy {policy};"),
    );
    if direction == HostDirection::Forward {
        for rule in BRIDGED {
            line(text, 2, rule);
        }
    }
    for fixed in Fixed::ALL {
        if !rules.rules().without().contains(fixed) {
            for rule in fixed_lines(*fixed, direction) {
                line(text, 2, rule);
            }
        }
    }
    for (rule, name) in rules.rules().rules().iter().zip(names) {
        if rule.direction == direction {
            match &rule.body {
                RuleBody::Match(what) => matching(text, rules, what, name),
                RuleBody::Raw(raw) => line(text, 2, raw.as_str()),
            }
        }
    }
    line(text, 1, "}");
}

/// What only crosses a bridge is no business of the node's own rules, though
/// br_netfilter shows it to them: security groups have judged it for a machine
/// (0x6d6b), or it goes to a port that is no machine's (0x6d6e). They mark it so
/// that it can be told from what the node routes.
const BRIDGED: &[&str] = &["meta mark & 0xffff0000 == { 0x6d6b0000, 0x6d6e0000 } accept"];
const ERRORS: &[&str] = &[
    "icmp type { destination-unreachable, time-exceeded, parameter-problem } accept",
    "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept",
];
const NEIGHBOURS: &[&str] = &[
    "ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept",
    "ip6 saddr fe80::/10 icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept",
    "ip6 saddr :: icmpv6 type { mld-listener-report, mld2-listener-report } accept",
];

fn fixed_lines(fixed: Fixed, direction: HostDirection) -> &'static [&'static str] {
    use HostDirection::{Forward, Input, Output};
    match (fixed, direction) {
        (Fixed::Loopback, Input) => &["iifname \"lo\" accept"],
        (Fixed::Loopback, Output) => &["oifname \"lo\" accept"],
        (Fixed::Established, _) => &["ct state established,related accept"],
        (Fixed::IcmpErrors, _) => ERRORS,
        (Fixed::Neighbours, Input | Output) => NEIGHBOURS,
        (Fixed::Dhcp, Input) => &[
            "meta nfproto ipv4 udp sport 67 udp dport 68 accept",
            "ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept",
        ],
        (Fixed::Dhcp, Output) => &[
            "meta nfproto ipv4 udp sport 68 udp dport 67 accept",
            "ip6 saddr fe80::/10 udp sport 546 udp dport 547 accept",
        ],
        (Fixed::Loopback | Fixed::Neighbours | Fixed::Dhcp, Forward) => &[],
    }
}

/// The lines of one rule: for each family, each kind of peer on one side and
/// each on the other.
fn matching(text: &mut String, rules: &Resolved, what: &HostMatch, name: &str) {
    let traffic = traffic(&what.traffic);
    let mut write = |place: &str| {
        if is_apart(what) {
            let parts = [place, &traffic.text].into_iter();
            let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
            let about = spaced(&parts.join(" "));
            line(
                text,
                2,
                &format!("{about}limit name \"{name}\" goto {}", apart_name(name)),
            );
            return;
        }
        for (only, verdict) in verdicts(what) {
            let parts = [place, &traffic.text, only];
            let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            rule(text, &parts.join(" "), what, name, verdict);
        }
    };
    if what.from.is_empty() && what.to.is_empty() {
        write(traffic.family.map_or("", Family::only));
        return;
    }
    for family in [Family::V4, Family::V6] {
        if traffic.family.is_some_and(|own| own != family) {
            continue;
        }
        for from in side(rules, family, "saddr", &what.from) {
            for to in side(rules, family, "daddr", &what.to) {
                let parts = [from.as_str(), to.as_str()].into_iter();
                let place: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
                write(&place.join(" "));
            }
        }
    }
}

/// Whether what becomes of its packets is in a chain of its own: of as many as
/// its rate lets through, not all are to be lines of the log.
fn is_apart(what: &HostMatch) -> bool {
    what.rate.is_some() && what.log.is_some()
}

fn apart_name(name: &str) -> String {
    format!("log-{name}")
}

fn apart(text: &mut String, what: &HostMatch, name: &str) {
    line(text, 1, &format!("chain {} {{", apart_name(name)));
    log(text, "", what);
    for (only, verdict) in verdicts(what) {
        let only = spaced(only);
        line(text, 2, &format!("{only}counter name \"{name}\" {verdict}"));
    }
    line(text, 1, "}");
}

/// With a space behind, if there is something.
fn spaced(about: &str) -> String {
    match about.is_empty() {
        true => String::new(),
        false => format!("{about} "),
    }
}

/// The line for the log, which has a rate of its own.
fn log(text: &mut String, about: &str, what: &HostMatch) {
    if let Some(log) = &what.log {
        line(text, 2, &format!("{about}{LOG_RATE} log prefix \"{log}\""));
    }
}

/// The lines for one kind of packets.
fn rule(text: &mut String, about: &str, what: &HostMatch, name: &str, verdict: &str) {
    let about = spaced(about);
    let rate = match what.rate {
        Some(_) => format!("limit name \"{name}\" "),
        None => String::new(),
    };
    log(text, &about, what);
    line(
        text,
        2,
        &format!("{about}{rate}counter name \"{name}\" {verdict}"),
    );
}

/// What the addresses of one side must be, one way after the other; once
/// nothing where anybody is meant, and nothing at all where nobody is.
fn side(rules: &Resolved, family: Family, field: &str, peers: &[HostPeer]) -> Vec<String> {
    if peers.is_empty() {
        return vec![String::new()];
    }
    let header = family.header();
    let mut ways = Vec::new();
    let mut literal = Vec::new();
    for peer in peers {
        let named = match peer {
            HostPeer::Prefix(prefix) => {
                if family.has(prefix) {
                    literal.push(*prefix);
                }
                continue;
            }
            HostPeer::Set(set) => format!("set-{set}"),
            HostPeer::Role(role) => format!("role-{role}"),
        };
        if rules.has_family(peer, family == Family::V6) {
            ways.push(format!("{header} {field} @{named}-{}", family.suffix()));
        }
    }
    match &ranges(literal)[..] {
        [] => {}
        // Of a whole family there is nothing to compare.
        [Addresses::Prefix(all)] if all.prefix_len() == 0 => ways.push(family.only().to_owned()),
        [one] => ways.push(format!("{header} {field} {one}")),
        several => {
            let several: Vec<String> = several.iter().map(ToString::to_string).collect();
            ways.push(format!("{header} {field} {{ {} }}", several.join(", ")));
        }
    }
    ways
}

/// Addresses without a gap between them.
enum Addresses {
    Prefix(IpNet),
    Range(IpAddr, IpAddr),
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => f.write_str(&plain(prefix)),
            Self::Range(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// Prefixes of one family that touch each other are one range: `nft` lists
/// them as one, and what is listed must be what was loaded.
fn ranges(prefixes: Vec<IpNet>) -> Vec<Addresses> {
    let after = |address: IpAddr| match address {
        IpAddr::V4(a) => u32::from(a)
            .checked_add(1)
            .map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(a) => u128::from(a)
            .checked_add(1)
            .map(|n| Ipv6Addr::from(n).into()),
    };
    let mut prefixes = IpNet::aggregate(&prefixes);
    prefixes.sort_unstable_by_key(IpNet::network);
    let mut all: Vec<Addresses> = Vec::with_capacity(prefixes.len());
    for prefix in prefixes {
        let bounds = match all.last() {
            Some(Addresses::Prefix(before)) => Some((before.network(), before.broadcast())),
            Some(Addresses::Range(first, last)) => Some((*first, *last)),
            None => None,
        };
        match bounds {
            Some((first, last)) if after(last) == Some(prefix.network()) => {
                all.pop();
                all.push(Addresses::Range(first, prefix.broadcast()));
            }
            _ => all.push(Addresses::Prefix(prefix)),
        }
    }
    all
}

struct What {
    /// In which packets alone there can be such.
    family: Option<Family>,
    text: String,
}

fn traffic(traffic: &Traffic) -> What {
    let with_ports = |word: &str, ports: &Option<Ports>| match ports {
        Some(ports) => format!("{word} dport {}", ports_text(ports)),
        None => format!("meta l4proto {word}"),
    };
    let icmp = |word: &str, kind: &Option<Icmp>| {
        let mut text = format!(
            "meta l4proto {}",
            if word == "icmp" { "icmp" } else { "ipv6-icmp" }
        );
        if let Some(kind) = kind {
            let _ = write!(text, " {word} type {}", kind.kind);
            if let Some(code) = kind.code {
                let _ = write!(text, " {word} code {code}");
            }
        }
        text
    };
    let (family, text) = match traffic {
        Traffic::Any => (None, String::new()),
        Traffic::Tcp(ports) => (None, with_ports("tcp", ports)),
        Traffic::Udp(ports) => (None, with_ports("udp", ports)),
        Traffic::Icmp(kind) => (Some(Family::V4), icmp("icmp", kind)),
        Traffic::Icmpv6(kind) => (Some(Family::V6), icmp("icmpv6", kind)),
        Traffic::Protocol(number) => (None, format!("meta l4proto {number}")),
    };
    What { family, text }
}

fn ports_text(ports: &Ports) -> String {
    let ranges: Vec<String> = ports.ranges().iter().map(|r| r.to_string()).collect();
    match &ranges[..] {
        [one] => one.clone(),
        several => format!("{{ {} }}", several.join(", ")),
    }
}

/// What becomes of it, by kinds of packets where that is not the same: who
/// wants to connect waits on after an ICMPv6 error, and not after a reset.
fn verdicts(what: &HostMatch) -> &'static [(&'static str, &'static str)] {
    match (what.action, &what.traffic) {
        (HostAction::Accept, _) => &[("", "accept")],
        (HostAction::Drop, _) => &[("", "drop")],
        (HostAction::Reject, Traffic::Tcp(_)) => &[("", "reject with tcp reset")],
        (HostAction::Reject, Traffic::Any) => &[
            ("meta l4proto tcp", "reject with tcp reset"),
            ("", "reject"),
        ],
        (HostAction::Reject, _) => &[("", "reject")],
    }
}

/// What the counter of each rule is called, in the order of the rules; a raw
/// one has none. It follows from what the rule says, without its comment; of
/// rules that say the same, the second one has a number behind.
#[must_use]
pub fn counter_names(rules: &Resolved) -> Vec<String> {
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    let name = |rule: &HostRule| {
        let said = HostRule {
            comment: None,
            ..rule.clone()
        };
        let hash = hash(&said.to_string());
        let times = seen.entry(hash).or_insert(0);
        *times += 1;
        match *times {
            1 => format!("r{hash:016x}"),
            more => format!("r{hash:016x}-{more}"),
        }
    };
    rules.rules().rules().iter().map(name).collect()
}

/// FNV-1a: the same in every version of muster and of Rust.
fn hash(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
