//! What a rule is about: protocols, ports, kinds of ICMP.

use std::fmt;
use std::str::FromStr;

use crate::text::printable;
use crate::text_form::text_form;

/// Most ranges of ports in one rule.
pub const MAX_PORTS: usize = 64;

/// Ports from the first to the last, both of them too. Never empty, never
/// port 0.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// From `first` to `last`.
    ///
    /// # Errors
    /// [`PortsError`]: port 0, or the wrong way round.
    pub fn new(first: u16, last: u16) -> Result<Self, PortsError> {
        if first == 0 {
            return Err(PortsError::Port("0".to_owned()));
        }
        if first > last {
            return Err(PortsError::Reversed { first, last });
        }
        Ok(Self { first, last })
    }

    /// The first.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The last.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Why a text is no list of ports.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PortsError {
    /// Not a port.
    #[error("`{0}` is not a port; ports are 1 to 65535, written like 80,443,8000-8999")]
    Port(String),
    /// The wrong way round.
    #[error("the range {first}-{last} is the wrong way round; write {last}-{first}")]
    Reversed {
        /// What stands first.
        first: u16,
        /// What stands last.
        last: u16,
    },
    /// Too many.
    #[error("{0} ranges of ports; one rule takes {MAX_PORTS}")]
    Many(usize),
    /// None.
    #[error("a list of ports has at least one; leave it out to mean every port")]
    None,
}

/// A list of ports and ranges: sorted, and those that touch or overlap are
/// one. Never empty.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ports(Vec<PortRange>);

impl Ports {
    /// Of these, in any order.
    ///
    /// # Errors
    /// [`PortsError`]: none, or too many.
    pub fn new(mut ranges: Vec<PortRange>) -> Result<Self, PortsError> {
        if ranges.is_empty() {
            return Err(PortsError::None);
        }
        if ranges.len() > MAX_PORTS {
            return Err(PortsError::Many(ranges.len()));
        }
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(before) if u32::from(range.first) <= u32::from(before.last) + 1 => {
                    before.last = before.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Ok(Self(merged))
    }

    /// The ranges, sorted, apart from each other.
    #[must_use]
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(port))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

impl FromStr for Ports {
    type Err = PortsError;

    fn from_str(text: &str) -> Result<Self, PortsError> {
        if text.is_empty() {
            return Err(PortsError::None);
        }
        let count = text.split(',').count();
        if count > MAX_PORTS {
            return Err(PortsError::Many(count));
        }
        let port = |text: &str| -> Result<u16, PortsError> {
            let fail = || PortsError::Port(printable(text, 20));
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(fail());
            }
            match text.parse() {
                Ok(0) | Err(_) => Err(fail()),
                Ok(port) => Ok(port),
            }
        };
        let ranges = text.split(',').map(|part| match part.split_once('-') {
            Some((first, last)) => PortRange::new(port(first)?, port(last)?),
            None => {
                let one = port(part)?;
                PortRange::new(one, one)
            }
        });
        Self::new(ranges.collect::<Result<_, _>>()?)
    }
}

text_form!(Ports, "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$", 768);

/// A kind of ICMP message: its type, and its code where that matters.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Icmp {
    /// The type.
    pub kind: u8,
    /// The code; any when absent.
    pub code: Option<u8>,
}

impl fmt::Display for Icmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        match self.code {
            Some(code) => write!(f, "/{code}"),
            None => Ok(()),
        }
    }
}

/// What a rule is about. As text: `any`, `tcp`, `tcp 80,443`, `udp 53`,
/// `icmp`, `icmp 8`, `icmp 3/4`, `icmpv6 128`, `proto 47`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Traffic {
    /// Everything.
    Any,
    /// TCP, to these ports; to every one when absent.
    Tcp(Option<Ports>),
    /// UDP, to these ports; to every one when absent.
    Udp(Option<Ports>),
    /// ICMP (IPv4), of this kind; every kind when absent.
    Icmp(Option<Icmp>),
    /// ICMPv6, of this kind; every kind when absent.
    Icmpv6(Option<Icmp>),
    /// The protocol with this number, of which nothing more is known.
    Protocol(u8),
}

/// Why a text says no traffic.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TrafficError {
    /// An unknown word.
    #[error(
        "`{0}` is no protocol; there are any, tcp PORTS, udp PORTS, icmp TYPE/CODE, icmpv6 TYPE/CODE and proto NUMBER"
    )]
    Protocol(String),
    /// Ports.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// Ports of a protocol that has none.
    #[error("{protocol} has no ports, so `{ports}` cannot be one; only tcp and udp have them")]
    NoPorts {
        /// The protocol.
        protocol: &'static str,
        /// What was given.
        ports: String,
    },
    /// A kind of ICMP.
    #[error("`{0}` is no kind of ICMP; write the type, or type and code: 8, 3/4 (0 to 255)")]
    Icmp(String),
    /// A number.
    #[error("`{0}` is no protocol's number; they are 0 to 255")]
    Number(String),
    /// A number that has a word.
    #[error("protocol {number} is {word}; write `{word}`")]
    Word {
        /// The number.
        number: u8,
        /// Its word.
        word: &'static str,
    },
}

impl Traffic {
    /// The protocol's number, as in the IP header; none for everything.
    #[must_use]
    pub fn protocol(&self) -> Option<u8> {
        match self {
            Self::Any => None,
            Self::Tcp(_) => Some(6),
            Self::Udp(_) => Some(17),
            Self::Icmp(_) => Some(1),
            Self::Icmpv6(_) => Some(58),
            Self::Protocol(number) => Some(*number),
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn with(
            f: &mut fmt::Formatter<'_>,
            word: &str,
            what: Option<&dyn fmt::Display>,
        ) -> fmt::Result {
            match what {
                Some(what) => write!(f, "{word} {what}"),
                None => f.write_str(word),
            }
        }
        match self {
            Self::Any => f.write_str("any"),
            Self::Tcp(ports) => with(f, "tcp", ports.as_ref().map(|p| p as _)),
            Self::Udp(ports) => with(f, "udp", ports.as_ref().map(|p| p as _)),
            Self::Icmp(kind) => with(f, "icmp", kind.as_ref().map(|k| k as _)),
            Self::Icmpv6(kind) => with(f, "icmpv6", kind.as_ref().map(|k| k as _)),
            Self::Protocol(number) => write!(f, "proto {number}"),
        }
    }
}

fn number(text: &str) -> Option<u8> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn icmp(text: &str) -> Result<Icmp, TrafficError> {
    let fail = || TrafficError::Icmp(printable(text, 20));
    let (kind, code) = match text.split_once('/') {
        Some((kind, code)) => (kind, Some(number(code).ok_or_else(fail)?)),
        None => (text, None),
    };
    let kind = number(kind).ok_or_else(fail)?;
    Ok(Icmp { kind, code })
}

impl FromStr for Traffic {
    type Err = TrafficError;

    fn from_str(text: &str) -> Result<Self, TrafficError> {
        let (word, rest) = match text.trim().split_once(char::is_whitespace) {
            Some((word, rest)) => (word, Some(rest.trim())),
            None => (text.trim(), None),
        };
        let ports = || rest.map(str::parse).transpose();
        match (word, rest) {
            ("any", None) => Ok(Self::Any),
            ("any", Some(rest)) => Err(TrafficError::NoPorts {
                protocol: "any",
                ports: printable(rest, 40),
            }),
            ("tcp", _) => Ok(Self::Tcp(ports()?)),
            ("udp", _) => Ok(Self::Udp(ports()?)),
            ("icmp", _) => Ok(Self::Icmp(rest.map(icmp).transpose()?)),
            ("icmpv6", _) => Ok(Self::Icmpv6(rest.map(icmp).transpose()?)),
            ("proto", Some(rest)) => {
                let (text, further) = match rest.split_once(char::is_whitespace) {
                    Some((text, further)) => (text, Some(further.trim())),
                    None => (rest, None),
                };
                let number =
                    number(text).ok_or_else(|| TrafficError::Number(printable(text, 20)))?;
                if let Some(ports) = further {
                    return Err(TrafficError::NoPorts {
                        protocol: "a protocol by its number",
                        ports: printable(ports, 40),
                    });
                }
                let word = match number {
                    1 => "icmp",
                    6 => "tcp",
                    17 => "udp",
                    58 => "icmpv6",
                    _ => return Ok(Self::Protocol(number)),
                };
                Err(TrafficError::Word { number, word })
            }
            (word, _) => Err(TrafficError::Protocol(printable(word, 20))),
        }
    }
}

text_form!(Traffic, "^(any|tcp|udp|icmp|icmpv6|proto)( .+)?$", 800);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_written_as_it_was() {
        for text in [
            "any",
            "tcp",
            "tcp 80,443",
            "udp 53",
            "tcp 1-65535",
            "icmp",
            "icmp 8",
            "icmp 3/4",
            "icmpv6 128",
            "proto 47",
        ] {
            assert_eq!(
                text.parse::<Traffic>().map(|t| t.to_string()),
                Ok(text.into())
            );
        }
        let merged = "tcp 443,80,81-90,85-100,101".parse::<Traffic>();
        assert_eq!(merged.map(|t| t.to_string()), Ok("tcp 80-101,443".into()));
    }

    #[test]
    fn what_is_no_traffic_is_said() {
        let said = |text: &str| text.parse::<Traffic>().unwrap_err().to_string();
        insta::assert_snapshot!(said("tcp 0"), @"`0` is not a port; ports are 1 to 65535, written like 80,443,8000-8999");
        insta::assert_snapshot!(said("tcp 70000"), @"`70000` is not a port; ports are 1 to 65535, written like 80,443,8000-8999");
        insta::assert_snapshot!(said("udp 90-80"), @"the range 90-80 is the wrong way round; write 80-90");
        insta::assert_snapshot!(said("any 80"), @"any has no ports, so `80` cannot be one; only tcp and udp have them");
        insta::assert_snapshot!(said("proto 47 80"), @"a protocol by its number has no ports, so `80` cannot be one; only tcp and udp have them");
        insta::assert_snapshot!(said("proto 6"), @"protocol 6 is tcp; write `tcp`");
        insta::assert_snapshot!(said("proto 256"), @"`256` is no protocol's number; they are 0 to 255");
        insta::assert_snapshot!(said("icmp echo"), @"`echo` is no kind of ICMP; write the type, or type and code: 8, 3/4 (0 to 255)");
        insta::assert_snapshot!(said("sctp 80"), @"`sctp` is no protocol; there are any, tcp PORTS, udp PORTS, icmp TYPE/CODE, icmpv6 TYPE/CODE and proto NUMBER");
        for bad in [
            "",
            "tcp ",
            "tcp ,",
            "tcp 80,",
            "tcp -80",
            "tcp +80",
            "udp 1-2-3",
        ] {
            let _ = bad.parse::<Traffic>();
        }
        assert!("tcp 80,".parse::<Traffic>().is_err());
        assert!(vec!["80"; 65].join(",").parse::<Ports>().is_err());
    }
}
