//! Rules of security groups.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::traffic::Traffic;
use crate::names::{GroupName, NameError};
use crate::text::printable;
use crate::text_form::text_form;

pub use crate::names::SetName;

/// Most rules of a group.
pub const MAX_GROUP_RULES: usize = 1_000;
/// Longest comment, in characters.
pub const MAX_COMMENT: usize = 200;

/// To a machine, or from it.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To it.
    Ingress,
    /// From it.
    Egress,
}

impl Direction {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The number of a rule in its group: rises, and is never used again.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(transparent)]
pub struct RuleId(pub u32);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for RuleId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Who is at the other end. As text: `any`, `192.0.2.0/24`, `group:lb`,
/// `set:office`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Peer {
    /// Anybody.
    Any,
    /// Whoever has an address of this prefix; no bits behind it are set.
    Prefix(IpNet),
    /// The interfaces in this group, wherever they are.
    Group(GroupName),
    /// The addresses in this set.
    Set(SetName),
}

/// Why a text names nobody.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// Not a prefix.
    #[error(
        "`{0}` is nobody; write any, a prefix (192.0.2.0/24, 2001:db8::/32), an address, group:NAME or set:NAME"
    )]
    Text(String),
    /// Bits behind the prefix.
    #[error(
        "{given} has bits behind its prefix; the prefix is {prefix}, the one address {address}"
    )]
    HostBits {
        /// As given.
        given: String,
        /// The prefix.
        prefix: IpNet,
        /// The address alone.
        address: IpNet,
    },
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Prefix(prefix) => fmt::Display::fmt(prefix, f),
            Self::Group(group) => write!(f, "group:{group}"),
            Self::Set(set) => write!(f, "set:{set}"),
        }
    }
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        if text == "any" {
            return Ok(Self::Any);
        }
        if let Some(group) = text.strip_prefix("group:") {
            return Ok(Self::Group(group.parse()?));
        }
        if let Some(set) = text.strip_prefix("set:") {
            return Ok(Self::Set(set.parse()?));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Prefix(address.into()));
        }
        let prefix: IpNet = text
            .parse()
            .map_err(|_| PeerError::Text(printable(text, 60)))?;
        if prefix.trunc() != prefix {
            return Err(PeerError::HostBits {
                given: text.to_owned(),
                prefix: prefix.trunc(),
                address: prefix.addr().into(),
            });
        }
        // Everybody of one family is not anybody: `any` is both.
        Ok(Self::Prefix(prefix))
    }
}

text_form!(Peer, "^(any|group:.+|set:.+|[0-9a-fA-F.:]+(/[0-9]+)?)$", 80);

/// What people want to remember of a rule: one line, and never a part of what
/// the kernel is told.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Comment(String);

/// Why a text is no comment.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a comment is one line of at most {MAX_COMMENT} characters that can be printed")]
pub struct CommentError;

impl Comment {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Comment {
    type Err = CommentError;

    fn from_str(text: &str) -> Result<Self, CommentError> {
        let long = text.chars().count() > MAX_COMMENT;
        if text.is_empty() || long || text.chars().any(char::is_control) {
            return Err(CommentError);
        }
        Ok(Self(text.to_owned()))
    }
}

text_form!(Comment, "^[^\\x00-\\x1f]+$", MAX_COMMENT);

/// A rule of a group. It only ever allows.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupRule {
    /// Its number.
    pub id: RuleId,
    /// Which way.
    pub direction: Direction,
    /// What.
    pub traffic: Traffic,
    /// From whom (ingress), or to whom (egress).
    pub peer: Peer,
    /// What people want to remember of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Comment>,
}

/// Why a rule can never let anything pass.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// The families differ.
    #[error("{traffic} is {family} only, and {prefix} is not: this rule would never match")]
    Family {
        /// What.
        traffic: Traffic,
        /// The family of it.
        family: &'static str,
        /// The prefix.
        prefix: IpNet,
    },
}

impl GroupRule {
    /// Whether it can let anything pass at all.
    ///
    /// # Errors
    /// [`RuleError`].
    pub fn check(&self) -> Result<(), RuleError> {
        let Peer::Prefix(prefix) = &self.peer else {
            return Ok(());
        };
        let family = match (&self.traffic, prefix) {
            (Traffic::Icmp(_), IpNet::V6(_)) => "IPv4",
            (Traffic::Icmpv6(_), IpNet::V4(_)) => "IPv6",
            _ => return Ok(()),
        };
        Err(RuleError::Family {
            traffic: self.traffic.clone(),
            family,
            prefix: *prefix,
        })
    }
}

impl fmt::Display for GroupRule {
    /// `ingress tcp 80,443 from any`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let preposition = match self.direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        write!(
            f,
            "{} {} {preposition} {}",
            self.direction, self.traffic, self.peer
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_written_as_it_was() {
        for text in [
            "any",
            "192.0.2.0/24",
            "2001:db8::/32",
            "group:lb",
            "set:office",
            "0.0.0.0/0",
        ] {
            assert_eq!(text.parse::<Peer>().map(|p| p.to_string()), Ok(text.into()));
        }
        let one = "192.0.2.7".parse::<Peer>().map(|p| p.to_string());
        assert_eq!(one, Ok("192.0.2.7/32".into()));
        let said = |text: &str| text.parse::<Peer>().unwrap_err().to_string();
        insta::assert_snapshot!(said("192.0.2.7/24"), @"192.0.2.7/24 has bits behind its prefix; the prefix is 192.0.2.0/24, the one address 192.0.2.7/32");
        insta::assert_snapshot!(said("192.0.2.0/33"), @"`192.0.2.0/33` is nobody; write any, a prefix (192.0.2.0/24, 2001:db8::/32), an address, group:NAME or set:NAME");
        assert!("group:A b".parse::<Peer>().is_err());
    }

    #[test]
    fn a_rule_that_never_matches_is_refused() {
        let rule = |traffic: &str, peer: &str| GroupRule {
            id: RuleId(1),
            direction: Direction::Ingress,
            traffic: traffic.parse().expect("traffic"),
            peer: peer.parse().expect("a peer"),
            comment: None,
        };
        assert_eq!(rule("icmp 8", "192.0.2.0/24").check(), Ok(()));
        insta::assert_snapshot!(
            rule("icmp 8", "2001:db8::/32").check().unwrap_err(),
            @"icmp 8 is IPv4 only, and 2001:db8::/32 is not: this rule would never match"
        );
        assert!(rule("icmpv6", "192.0.2.0/24").check().is_err());
        insta::assert_snapshot!(rule("tcp 80,443", "group:lb"), @"ingress tcp 80,443 from group:lb");
    }

    #[test]
    fn a_comment_is_a_line() {
        assert!("the \"front\" door; don't".parse::<Comment>().is_ok());
        for bad in ["", "a\nb", "a\0b", "\u{1b}[2J", &"a".repeat(201)] {
            assert!(bad.parse::<Comment>().is_err(), "{bad:?}");
        }
    }
}
