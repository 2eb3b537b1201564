//! What becomes of a packet, without sending one.

use std::net::{IpAddr, SocketAddr};

use muster_firewall::groups::judge::{Content, End, Judge, Packet, Payload, Verdict, Why};
use muster_protocol::api::{Decided, PacketExplained};
use muster_protocol::firewall::{Holding, Traffic};
use muster_protocol::names::{TapName, VmName};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::{nearest, printable};

use super::Groups;

/// A port that nobody listens on: where none is said.
const SOME_PORT: u16 = 40_000;
/// Hops that a packet may still make.
const HOPS: u8 = 64;

/// Why a question is none.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// Not an end.
    #[error(
        "`{0}` is neither an address nor a machine; write 192.0.2.7, 192.0.2.7:443, [2001:db8::7]:443, web-03 or web-03:443"
    )]
    End(String),
    /// No such machine.
    #[error("there is no machine `{name}` with an interface{}", .near.as_ref().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default())]
    NoVm {
        /// Its name.
        name: VmName,
        /// One that was perhaps meant.
        near: Option<String>,
    },
    /// The two ends do not speak with each other.
    #[error(
        "{from} and {to} have no family of addresses in common; give an address in place of a name"
    )]
    Family {
        /// From whom.
        from: String,
        /// To whom.
        to: String,
    },
    /// No port.
    #[error("{0} goes to a port; write it behind the one that it goes to: web-03:443")]
    NoPort(&'static str),
    /// A port where there is none.
    #[error("{0} has no ports; leave it out behind the one that it goes to")]
    Port(String),
    /// Several things at once.
    #[error(
        "one packet is asked about; give tcp, udp, icmp TYPE, icmpv6 TYPE or proto NUMBER as its protocol, and the port behind the one that it goes to"
    )]
    Several,
    /// ICMP of the other family.
    #[error(
        "{traffic} is not said between {sender} and {receiver}; use icmp with IPv4, and icmpv6 with IPv6"
    )]
    Icmp {
        /// What.
        traffic: Traffic,
        /// From whom.
        sender: IpAddr,
        /// To whom.
        receiver: IpAddr,
    },
}

impl ExplainError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::NoVm { .. } => Kind::NotFound,
            _ => Kind::InvalidRequest,
        };
        let text = self.to_string();
        match text.split_once("; ") {
            Some((title, hint)) => Problem::new(kind, title).hint(hint),
            None => Problem::new(kind, text),
        }
    }
}

impl From<ExplainError> for crate::http::ApiError {
    fn from(error: ExplainError) -> Self {
        error.problem().into()
    }
}

/// One end, as it is asked about.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Asked {
    /// Its addresses.
    addresses: Vec<IpAddr>,
    port: Option<u16>,
}

impl Asked {
    fn read(text: &str, holding: &Holding) -> Result<Self, ExplainError> {
        if let Ok(address) = text.trim_matches(['[', ']']).parse() {
            return Ok(Self {
                addresses: vec![address],
                port: None,
            });
        }
        if let Ok(end) = text.parse::<SocketAddr>() {
            return Ok(Self {
                addresses: vec![end.ip()],
                port: Some(end.port()),
            });
        }
        let no = || ExplainError::End(printable(text, 60));
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().map_err(|_| no())?)),
            None => (text, None),
        };
        let name: VmName = name.parse().map_err(|_| no())?;
        let interfaces = holding.interfaces.values();
        let its = interfaces.clone().filter(|one| one.name == name);
        let addresses: Vec<IpAddr> = its.flat_map(|one| one.addresses.clone()).collect();
        if addresses.is_empty() {
            let near = nearest(name.as_str(), interfaces.map(|one| one.name.as_str()));
            let near = near.map(str::to_owned);
            return Err(ExplainError::NoVm { name, near });
        }
        Ok(Self { addresses, port })
    }
}

/// The one packet that is meant.
fn payload(
    traffic: &Traffic,
    from: Option<u16>,
    to: Option<u16>,
) -> Result<(Payload, String), ExplainError> {
    let source = from.unwrap_or(SOME_PORT);
    let icmp = |icmp: &Option<muster_protocol::firewall::Icmp>, echo| match icmp {
        Some(icmp) => (icmp.kind, icmp.code.unwrap_or_default()),
        None => (echo, 0),
    };
    if to.is_some() && !matches!(traffic, Traffic::Any | Traffic::Tcp(_) | Traffic::Udp(_)) {
        return Err(ExplainError::Port(traffic.to_string()));
    }
    Ok(match traffic {
        Traffic::Any | Traffic::Tcp(Some(_)) | Traffic::Udp(Some(_)) => {
            return Err(ExplainError::Several);
        }
        Traffic::Tcp(None) => {
            let target = to.ok_or(ExplainError::NoPort("tcp"))?;
            let payload = Payload::Tcp {
                source,
                target,
                opens: true,
            };
            (payload, format!("tcp {target}"))
        }
        Traffic::Udp(None) => {
            let target = to.ok_or(ExplainError::NoPort("udp"))?;
            (Payload::Udp { source, target }, format!("udp {target}"))
        }
        Traffic::Icmp(kind) => {
            let (kind, code) = icmp(kind, 8);
            (Payload::Icmp { kind, code }, format!("icmp {kind}/{code}"))
        }
        Traffic::Icmpv6(kind) => {
            let (kind, code) = icmp(kind, 128);
            let about = None;
            let payload = Payload::Icmpv6 { kind, code, about };
            (payload, format!("icmpv6 {kind}/{code}"))
        }
        Traffic::Protocol(number) => (Payload::Other(*number), format!("proto {number}")),
    })
}

/// What becomes of a packet where all machines are on one hypervisor.
pub(super) fn explain(
    holding: &Holding,
    (from, to): (&str, &str),
    traffic: &Traffic,
) -> Result<PacketExplained, ExplainError> {
    let (sender, receiver) = (Asked::read(from, holding)?, Asked::read(to, holding)?);
    let wants_v6 = match traffic {
        Traffic::Icmp(_) => Some(false),
        Traffic::Icmpv6(_) => Some(true),
        _ => None,
    };
    let mut pairs = Vec::new();
    for source in &sender.addresses {
        let same = |target: &&IpAddr| target.is_ipv6() == source.is_ipv6();
        let targets = receiver.addresses.iter().filter(same);
        pairs.extend(targets.map(|target| (*source, *target)));
    }
    let mut pairs = pairs.into_iter().peekable();
    let first = pairs.peek().copied();
    let meant = pairs.find(|(source, _)| wants_v6.is_none_or(|v6| v6 == source.is_ipv6()));
    let Some((source, target)) = meant else {
        return Err(match first {
            Some((source, target)) => ExplainError::Icmp {
                traffic: traffic.clone(),
                sender: source,
                receiver: target,
            },
            None => ExplainError::Family {
                from: printable(from, 60),
                to: printable(to, 60),
            },
        });
    };
    let (payload, said) = payload(traffic, sender.port, receiver.port)?;
    let judge = Judge::new(holding);
    let end = |address| match judge.who_has(address).first() {
        Some(tap) => End::Interface(TapName::clone(tap)),
        None => End::Outside,
    };
    let packet = Packet {
        from: end(source),
        to: end(target),
        source_mac: None,
        target_mac: None,
        tagged: false,
        content: Content::Ip {
            source,
            target,
            hops: HOPS,
            payload,
        },
    };
    let judged = judge.packet(&packet);
    let decided = |end: &End, why: &Why| {
        let End::Interface(tap) = end else {
            return None;
        };
        let (group, rule) = match why {
            Why::Rule { group, rule } => (Some(group.clone()), Some(*rule)),
            Why::Fixed(_) => (None, None),
        };
        Some(Decided {
            machine: holding.interfaces.get(tap)?.name.clone(),
            passes: why.verdict() == Verdict::Pass,
            group,
            rule,
            why: why.to_string(),
        })
    };
    let egress = judged.egress.as_ref();
    let ingress = judged.ingress.as_ref();
    Ok(PacketExplained {
        passes: judged.verdict == Verdict::Pass,
        source,
        target,
        traffic: said,
        egress: egress.and_then(|why| decided(&packet.from, why)),
        ingress: ingress.and_then(|why| decided(&packet.to, why)),
        why: judged.why().to_string(),
    })
}

impl Groups {
    /// What becomes of a packet, by what is asked for now.
    ///
    /// # Errors
    /// [`ExplainError`].
    pub fn explain(
        &self,
        ends: (&str, &str),
        traffic: &Traffic,
    ) -> Result<PacketExplained, ExplainError> {
        explain(&self.everything(), ends, traffic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn holding() -> Holding {
        let interface = |name: &str, nth: u8, groups: &[&str]| {
            json!({
                "machine": format!("0c7e1a52-93b4-8d3f-a1c2-5d6e7f8091{nth:02x}"), "name": name,
                "bridge": "br0", "mac": format!("52:54:00:00:00:{nth:02x}"),
                "addresses": [format!("192.0.2.{nth}"), format!("2001:db8::{nth}")],
                "groups": groups,
            })
        };
        serde_json::from_value(json!({
            "interfaces": {"mt1": interface("web-01", 1, &["web"]), "mt2": interface("lb-01", 2, &["lb"])},
            "groups": {
                "web": [
                    {"id": 3, "direction": "ingress", "traffic": "tcp 80,443", "peer": "group:lb"},
                    {"id": 4, "direction": "ingress", "traffic": "icmpv6 128", "peer": "any"},
                ],
                "lb": [{"id": 1, "direction": "egress", "traffic": "tcp 80", "peer": "any"}],
            },
            "members": {"group:lb": ["192.0.2.2/32", "2001:db8::2/128"]},
        }))
        .expect("a holding")
    }

    fn said(from: &str, to: &str, traffic: &str) -> String {
        let traffic = traffic.parse().expect("traffic");
        match explain(&holding(), (from, to), &traffic) {
            Ok(PacketExplained {
                passes,
                source,
                target,
                traffic,
                why,
                ..
            }) => {
                let verdict = if passes { "passes" } else { "does not pass" };
                format!("{traffic} from {source} to {target} {verdict}: {why}")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_rule_that_decides_is_named() {
        insta::assert_snapshot!(said("lb-01", "web-01:80", "tcp"), @"tcp 80 from 192.0.2.2 to 192.0.2.1 passes: rule 3 of web");
        insta::assert_snapshot!(said("lb-01", "web-01:443", "tcp"), @"tcp 443 from 192.0.2.2 to 192.0.2.1 does not pass: the interface's groups have egress rules, and none of them allows it");
        insta::assert_snapshot!(said("198.51.100.7", "192.0.2.1:80", "tcp"), @"tcp 80 from 198.51.100.7 to 192.0.2.1 does not pass: no rule of the interface's groups allows it to come in");
        insta::assert_snapshot!(said("2001:db8:9::1", "web-01", "icmpv6"), @"icmpv6 128/0 from 2001:db8:9::1 to 2001:db8::1 passes: rule 4 of web");
        insta::assert_snapshot!(said("web-01", "198.51.100.7:25", "tcp"), @"tcp 25 from 192.0.2.1 to 198.51.100.7 passes: no group of the interface has egress rules, so all may go out");
        insta::assert_snapshot!(said("[2001:db8::2]:9", "[2001:db8::1]:80", "tcp"), @"tcp 80 from 2001:db8::2 to 2001:db8::1 passes: rule 3 of web");
    }

    #[test]
    fn a_question_that_is_none_is_said_to_be() {
        insta::assert_snapshot!(said("lb-01", "web-01", "tcp"), @"tcp goes to a port; write it behind the one that it goes to: web-03:443");
        insta::assert_snapshot!(said("lb-01", "web-01:80", "icmp"), @"icmp has no ports; leave it out behind the one that it goes to");
        insta::assert_snapshot!(said("lb-01", "web-01:80", "any"), @"one packet is asked about; give tcp, udp, icmp TYPE, icmpv6 TYPE or proto NUMBER as its protocol, and the port behind the one that it goes to");
        insta::assert_snapshot!(said("lb-01", "web-01:80", "tcp 80"), @"one packet is asked about; give tcp, udp, icmp TYPE, icmpv6 TYPE or proto NUMBER as its protocol, and the port behind the one that it goes to");
        insta::assert_snapshot!(said("lb-01", "web-10", "icmp"), @"there is no machine `web-10` with an interface; did you mean `web-01`?");
        insta::assert_snapshot!(said("lb-01", "a b", "icmp"), @"`a b` is neither an address nor a machine; write 192.0.2.7, 192.0.2.7:443, [2001:db8::7]:443, web-03 or web-03:443");
        insta::assert_snapshot!(said("192.0.2.9", "2001:db8::1", "icmp"), @"192.0.2.9 and 2001:db8::1 have no family of addresses in common; give an address in place of a name");
        insta::assert_snapshot!(said("192.0.2.9", "192.0.2.1", "icmpv6"), @"icmpv6 is not said between 192.0.2.9 and 192.0.2.1; use icmp with IPv4, and icmpv6 with IPv6");
        insta::assert_snapshot!(said("lb-01", "web-01:99999", "tcp"), @"`web-01:99999` is neither an address nor a machine; write 192.0.2.7, 192.0.2.7:443, [2001:db8::7]:443, web-03 or web-03:443");
    }
}
