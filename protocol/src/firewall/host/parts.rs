//! The words and texts that rules of a host firewall are made of.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use crate::firewall::group::{Peer, PeerError};
use crate::names::{RoleName, SetName};
use crate::text::{nearest, printable};
use crate::text_form::text_form;

/// Longest prefix of a log line, in characters.
const MAX_LOG: usize = 60;
/// Longest raw line, in characters.
const MAX_RAW: usize = 1_000;

/// Why a word is none of those there are.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{word}` is no {what}; there are {known}{}", self.hint())]
pub struct WordError {
    what: &'static str,
    word: String,
    known: String,
    near: Option<&'static str>,
}

impl WordError {
    fn hint(&self) -> String {
        match self.near {
            Some(near) => format!("; did you mean `{near}`?"),
            None => String::new(),
        }
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal, { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = WordError;

            fn from_str(text: &str) -> Result<Self, WordError> {
                Self::ALL.iter().copied().find(|it| it.as_str() == text).ok_or_else(|| {
                    let words = [$($word,)+];
                    WordError {
                        what: $what,
                        word: printable(text, 40),
                        known: words.join(", "),
                        near: nearest(text, words),
                    }
                })
            }
        }

        text_form!($name);
    };
}

words! {
    /// Which way a packet goes.
    HostDirection, "direction", {
        /// To the node.
        Input = "input",
        /// From the node.
        Output = "output",
        /// Through the node.
        Forward = "forward",
    }
}

words! {
    /// What becomes of a packet.
    HostAction, "action", {
        /// It passes.
        Accept = "accept",
        /// It is gone, and nobody is told.
        Drop = "drop",
        /// It is gone, and its sender is told.
        Reject = "reject",
    }
}

words! {
    /// What becomes of a packet that no rule is about.
    Policy, "policy", {
        /// It passes.
        Accept = "accept",
        /// It is gone.
        Drop = "drop",
    }
}

words! {
    /// Rules that are there without being written, in front of all others:
    /// without them a machine has no network to speak of, and some of that
    /// shows only hours after.
    Fixed, "rule that is always there", {
        /// What the node says to itself.
        Loopback = "loopback",
        /// Answers, and what belongs to a connection that was let through.
        Established = "established",
        /// ICMP errors: destination unreachable, too big, time exceeded, bad
        /// parameter.
        IcmpErrors = "icmp_errors",
        /// IPv6 neighbours and routers finding each other.
        Neighbours = "neighbours",
        /// The node's own DHCP and DHCPv6 leases: their answers come from
        /// elsewhere than the question went.
        Dhcp = "dhcp",
    }
}

/// Who is at one end. As text: `192.0.2.0/24`, `2001:db8::7`, `set:office`,
/// `role:bastion`. Anybody is not written here: the side is left out, or is
/// `any`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum HostPeer {
    /// Whoever has an address of this prefix; no bits behind it are set.
    Prefix(IpNet),
    /// The addresses in this set.
    Set(SetName),
    /// The addresses that operators have assigned to the nodes of this role.
    Role(RoleName),
}

impl fmt::Display for HostPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) if prefix.prefix_len() == prefix.max_prefix_len() => {
                fmt::Display::fmt(&prefix.addr(), f)
            }
            Self::Prefix(prefix) => fmt::Display::fmt(prefix, f),
            Self::Set(set) => write!(f, "set:{set}"),
            Self::Role(role) => write!(f, "role:{role}"),
        }
    }
}

impl FromStr for HostPeer {
    type Err = HostPeerError;

    fn from_str(text: &str) -> Result<Self, HostPeerError> {
        if let Some(role) = text.strip_prefix("role:") {
            return Ok(Self::Role(role.parse()?));
        }
        match text.parse() {
            Ok(Peer::Prefix(prefix)) => Ok(Self::Prefix(prefix)),
            Ok(Peer::Set(set)) => Ok(Self::Set(set)),
            Ok(Peer::Any) => Err(HostPeerError::Any),
            Ok(Peer::Group(_)) => Err(HostPeerError::Group),
            Err(PeerError::Text(text)) => Err(HostPeerError::Text(text)),
            Err(e) => Err(HostPeerError::Peer(e)),
        }
    }
}

text_form!(HostPeer);

/// Why a text is nobody.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HostPeerError {
    /// Not an address.
    #[error(
        "`{0}` is nobody; write any, a prefix (192.0.2.0/24, 2001:db8::/32), an address, set:NAME or role:NAME"
    )]
    Text(String),
    /// Everybody, among others.
    #[error("`any` is everybody, so nobody else can stand beside it")]
    Any,
    /// A group of machines.
    #[error("`group:` is of security groups, of machines' interfaces; here it is role:NAME")]
    Group,
    /// Host bits, or a name that is none.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// A name that is none.
    #[error(transparent)]
    Role(#[from] crate::names::NameError),
}

words! {
    /// What a rate is per.
    RatePer, "unit of a rate", {
        /// A second.
        Second = "second",
        /// A minute.
        Minute = "minute",
        /// An hour.
        Hour = "hour",
        /// A day.
        Day = "day",
    }
}

/// How many packets: as text `10/second`, `500/minute burst 100`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Rate {
    count: u32,
    per: RatePer,
    burst: u32,
}

impl Rate {
    const BURST: u32 = 5;
    const MAX: u32 = 1_000_000;

    /// The kernel holds a burst as the time that it takes, in nanoseconds.
    fn most_burst(count: u32, per: RatePer) -> u64 {
        let secs: u64 = match per {
            RatePer::Second => 1,
            RatePer::Minute => 60,
            RatePer::Hour => 3_600,
            RatePer::Day => 86_400,
        };
        u64::MAX / (secs * 1_000_000_000 / u64::from(count))
    }

    /// How many, at length.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// Per what.
    #[must_use]
    pub fn per(self) -> RatePer {
        self.per
    }

    /// How many at once, before the rate counts; 5 unless said otherwise.
    #[must_use]
    pub fn burst(self) -> u32 {
        self.burst
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.per)?;
        if self.burst != Self::BURST {
            write!(f, " burst {}", self.burst)?;
        }
        Ok(())
    }
}

/// Why a text is no rate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RateError {
    /// It is none.
    #[error(
        "`{0}` is no rate; write 10/second, 500/minute burst 100 (second, minute, hour or day; 1 to 1000000)"
    )]
    Text(String),
    /// More at once than the kernel can hold.
    #[error("a rate of {rate} can have a burst of at most {most}")]
    Burst {
        /// The rate.
        rate: String,
        /// As many at once.
        most: u64,
    },
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let fail = || RateError::Text(printable(text, 60));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let number = digits.then(|| text.parse::<u32>().ok()).flatten();
            number
                .filter(|n| (1..=Self::MAX).contains(n))
                .ok_or_else(fail)
        };
        let mut words = text.split_whitespace();
        let (count, per) = words
            .next()
            .and_then(|word| word.split_once('/'))
            .ok_or_else(fail)?;
        let burst = match (words.next(), words.next(), words.next()) {
            (None, ..) => Self::BURST,
            (Some("burst"), Some(burst), None) => number(burst)?,
            _ => return Err(fail()),
        };
        let (count, per) = (number(count)?, per.parse().map_err(|_| fail())?);
        let most = Self::most_burst(count, per);
        if u64::from(burst) > most {
            return Err(RateError::Burst {
                rate: format!("{count}/{per}"),
                most,
            });
        }
        Ok(Self { count, per, burst })
    }
}

text_form!(Rate);

/// What stands in front of a line of the kernel's log.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LogPrefix(String);

/// Why a text cannot stand there.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{0}` cannot stand in front of a log line: it takes 1 to {MAX_LOG} ASCII characters without \", \\, $ and control characters"
)]
pub struct LogPrefixError(String);

impl LogPrefix {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LogPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for LogPrefix {
    type Err = LogPrefixError;

    fn from_str(text: &str) -> Result<Self, LogPrefixError> {
        let fits = (1..=MAX_LOG).contains(&text.len());
        let plain = |b: u8| (b == b' ' || b.is_ascii_graphic()) && !b"\"\\$".contains(&b);
        if !fits || !text.bytes().all(plain) {
            return Err(LogPrefixError(printable(text, 40)));
        }
        Ok(Self(text.to_owned()))
    }
}

text_form!(LogPrefix);

/// A rule in nft's own words, such as `tcp dport 22 meter m { ip saddr limit
/// rate 3/minute } accept`. It is one rule of a chain of muster's own table
/// and cannot be anything else: nothing that ends the chain or the line, reads
/// a file or names a variable is taken. Whether it is a rule is nft's to say.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RawLine(String);

/// Why a text is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RawLineError {
    /// Empty, or too long.
    #[error("a raw line has 1 to {MAX_RAW} characters, this one {0}")]
    Length(usize),
    /// A character.
    #[error(
        "`{0}` cannot be in a raw line: it is one rule, without line ends, `;`, `#`, `$`, `\\` and what is not ASCII"
    )]
    Character(String),
    /// A brace.
    #[error("the braces of a raw line must be pairs: it cannot end the chain that it stands in")]
    Braces,
    /// A quote.
    #[error("a quote is not closed")]
    Quote,
    /// A word.
    #[error("`{0}` cannot be in a raw line: it is one rule of a chain, and nothing else")]
    Word(String),
    /// An interface that is told by its number.
    #[error(
        "`{0}` in a raw line is the number that an interface has now: rules with it cannot be loaded while there is none of that name, as when the machine starts; write {0}name"
    )]
    Interface(String),
}

impl RawLine {
    /// The line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RawLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What may stand in a chain and is no rule: it would read files, name values
/// for what follows, or change the chain itself.
const NOT_FIRST: &[&str] = &[
    "type",
    "policy",
    "flags",
    "comment",
    "device",
    "devices",
    "table",
    "chain",
    "rule",
    "set",
    "map",
    "element",
    "elements",
    "flowtable",
    "ruleset",
    "add",
    "create",
    "insert",
    "replace",
    "delete",
    "destroy",
    "reset",
    "flush",
    "rename",
    "list",
    "monitor",
    "import",
    "export",
    "describe",
    "error",
];
const NEVER: &[&str] = &["include", "define", "redefine", "undefine"];

impl FromStr for RawLine {
    type Err = RawLineError;

    fn from_str(text: &str) -> Result<Self, RawLineError> {
        let text = text.trim_matches(' ');
        if text.is_empty() || text.len() > MAX_RAW {
            return Err(RawLineError::Length(text.chars().count()));
        }
        let bad = text
            .chars()
            .find(|&c| !(c == ' ' || c.is_ascii_graphic()) || ";#$\\".contains(c));
        if let Some(c) = bad {
            return Err(RawLineError::Character(printable(&c.to_string(), 8)));
        }
        let mut depth = 0_u32;
        let mut bare = String::with_capacity(text.len());
        let mut quoted = false;
        for c in text.chars() {
            match c {
                '"' => quoted = !quoted,
                _ if quoted => {}
                '{' => depth += 1,
                '}' => depth = depth.checked_sub(1).ok_or(RawLineError::Braces)?,
                _ => {
                    bare.push(c);
                    continue;
                }
            }
            // Words on both sides of it are two.
            bare.push(' ');
        }
        if quoted {
            return Err(RawLineError::Quote);
        }
        if depth > 0 {
            return Err(RawLineError::Braces);
        }
        let word = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        let mut words = bare.split(|c| !word(c)).filter(|word| !word.is_empty());
        let first = words.clone().next().unwrap_or_default();
        let refused = Some(first)
            .filter(|word| NOT_FIRST.contains(word))
            .or_else(|| words.find(|word| NEVER.contains(word)));
        if let Some(word) = refused {
            return Err(RawLineError::Word(printable(word, 40)));
        }
        // Of the routing table it is asked what there is.
        let mut words = bare.split(|c| !word(c));
        let number = words.clone().find(|word| ["iif", "oif"].contains(word));
        match number.filter(|_| !words.any(|word| word == "fib")) {
            Some(word) => Err(RawLineError::Interface(word.to_owned())),
            None => Ok(Self(text.to_owned())),
        }
    }
}

text_form!(RawLine);
