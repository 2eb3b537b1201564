//! Why something about groups was not done.

use muster_protocol::firewall::{MAX_GROUP_RULES, PeerError, RuleError, RuleId};
use muster_protocol::names::{GroupName, SetName, VmName};
use muster_protocol::problem::{Kind, Problem};

use super::versions::NotKept;
use super::{MAX_GROUPS, MAX_PREFIXES, MAX_RULE_BYTES, MAX_SETS};
use crate::store::kv::KvError;

/// So many are named in one sentence.
const NAMED: usize = 10;

/// Why something about groups was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupsError {
    /// No such group.
    #[error("there is no group `{name}`; {}", meant(.near.as_deref(), "muster group list"))]
    NoGroup {
        /// Its name.
        name: GroupName,
        /// One that was perhaps meant.
        near: Option<String>,
    },
    /// No such set.
    #[error("there is no address set `{name}`; {}", meant(.near.as_deref(), "muster address-set list"))]
    NoSet {
        /// Its name.
        name: SetName,
        /// One that was perhaps meant.
        near: Option<String>,
    },
    /// There is one.
    #[error("there is a group `{0}` already; muster group show {0} shows it")]
    Exists(GroupName),
    /// It has no rule of that number.
    #[error("group `{group}` has no rule {rule}; muster group show {group} shows its rules")]
    NoRule {
        /// The group.
        group: GroupName,
        /// The number.
        rule: RuleId,
    },
    /// A rule that can never match.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A prefix that is none.
    #[error(transparent)]
    Prefix(#[from] PeerError),
    /// Somebody in a set who has no address by himself.
    #[error("`{0}` is no prefix; a set holds prefixes and addresses only")]
    NoPrefix(String),
    /// Something is named.
    #[error("rules of {} name the group `{name}`; take those rules away first", list(.by))]
    Named {
        /// The group.
        name: GroupName,
        /// Who names it.
        by: Vec<GroupName>,
    },
    /// The set is named.
    #[error("rules of {} name the address set `{name}`; take those rules away first", list(.by))]
    SetNamed {
        /// The set.
        name: SetName,
        /// Who names it.
        by: Vec<GroupName>,
    },
    /// Machines are in it.
    #[error("{} in the group `{name}`: {}; take them out first: muster vm group VM remove {name}", if .machines.len() == 1 { "a machine is".to_owned() } else { format!("{} machines are", .machines.len()) }, list(.machines))]
    Members {
        /// The group.
        name: GroupName,
        /// Who is.
        machines: Vec<VmName>,
    },
    /// Too many rules.
    #[error(
        "a group has at most {MAX_GROUP_RULES} rules of {MAX_RULE_BYTES} bytes together; use address sets and port lists, or a group more"
    )]
    TooManyRules,
    /// Too many groups.
    #[error("there are {MAX_GROUPS} groups; remove some first")]
    TooManyGroups,
    /// Too many sets.
    #[error("there are {MAX_SETS} address sets; remove some first")]
    TooManySets,
    /// Too many prefixes.
    #[error(
        "{0} prefixes are too many; an address set holds at most {MAX_PREFIXES}; use wider prefixes, or a set more"
    )]
    TooManyPrefixes(usize),
    /// Too many labels.
    #[error("{0} labels are too many; leave some out")]
    Labels(usize),
    /// It is another version by now.
    #[error("`{name}` is at version {is} by now, and not at {expected}; look at it and ask again")]
    Version {
        /// Its name.
        name: String,
        /// The version of now.
        is: u32,
        /// The version that was to be changed.
        expected: u32,
    },
    /// A version that cannot be had.
    #[error("{}", not_kept(.name, *.version, .why))]
    NotKept {
        /// Its name.
        name: String,
        /// Which.
        version: u32,
        /// What can.
        why: NotKept,
    },
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("the record could not be read or written: {0}")]
    Store(#[from] KvError),
}

fn not_kept(name: &str, version: u32, why: &NotKept) -> String {
    let newest = why.newest;
    match why.oldest {
        Some(oldest) => format!(
            "version {version} of `{name}` is not kept; there are {oldest} to {newest}: its history shows them"
        ),
        None => format!("no version of `{name}` before {newest} is kept; change it by hand"),
    }
}

fn meant(near: Option<&str>, shows: &str) -> String {
    match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("{shows} shows them"),
    }
}

fn list<T: std::fmt::Display>(all: &[T]) -> String {
    let mut named: Vec<String> = all.iter().take(NAMED).map(ToString::to_string).collect();
    if all.len() > NAMED {
        named.push(format!("{} more", all.len() - NAMED));
    }
    named.join(", ")
}

impl GroupsError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::NoGroup { .. }
            | Self::NoSet { .. }
            | Self::NoRule { .. }
            | Self::NotKept { .. } => Kind::NotFound,
            Self::Rule(_)
            | Self::Prefix(_)
            | Self::NoPrefix(_)
            | Self::TooManyRules
            | Self::TooManyPrefixes(_)
            | Self::Labels(_) => Kind::InvalidRequest,
            Self::Exists(_)
            | Self::Named { .. }
            | Self::SetNamed { .. }
            | Self::Members { .. }
            | Self::TooManyGroups
            | Self::TooManySets
            | Self::Version { .. }
            | Self::Store(KvError::Conflict { .. }) => Kind::Conflict,
            Self::NotActive | Self::Store(_) => Kind::Unavailable,
        };
        let text = self.to_string();
        match text.rsplit_once("; ") {
            Some((title, hint)) => Problem::new(kind, title).hint(hint),
            None => Problem::new(kind, text),
        }
    }
}

impl From<GroupsError> for crate::http::ApiError {
    fn from(error: GroupsError) -> Self {
        match &error {
            GroupsError::Store(error) if !matches!(error, KvError::Conflict { .. }) => {
                Self::storage(error)
            }
            GroupsError::Version { .. } => Self::from(error.problem()).status(412),
            _ => error.problem().into(),
        }
    }
}
