//! Why something about policies failed.

use std::path::PathBuf;

use muster_protocol::api::PolicyVersion;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable;
use muster_scenarios::fault::Fault;

use super::{MAX_NOTE, RESET_FILE};
use crate::store::kv::KvError;

/// Why something about policies failed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// What is stored cannot be gone by.
    #[error(
        "version {version} of the policies, which is in force, cannot be used: {why}\n\
         Nobody is let in until that is mended: start a muster that can read it, or, as root on this machine, \
         make an empty file `{RESET_FILE}` in the broker's state directory (`muster policy reset --state DIR`) \
         and start again: then the roles of tokens count alone"
    )]
    Unusable {
        /// Which version.
        version: u32,
        /// Why not.
        why: String,
    },
    /// The file that asks for a reset.
    #[error("{0} cannot be removed: {1}")]
    Reset(PathBuf, std::io::Error),
    /// The files have mistakes.
    #[error("this cannot be stored: it has {} {}", .0.len(), if .0.len() == 1 { "mistake" } else { "mistakes" })]
    Refused(Vec<Fault>),
    /// Nobody could take it back.
    #[error("no token that there is could change the policies again; nothing was stored")]
    LocksOut,
    /// Somebody else was first.
    #[error("the policies have changed meanwhile: version {} is by {}; nothing was stored", .0.version, .0.by)]
    Changed(Box<PolicyVersion>),
    /// No such version.
    #[error("there is no version {0} of the policies")]
    NoVersion(u32),
    /// A note that is too long.
    #[error("a note has at most {MAX_NOTE} bytes, this one has {0}")]
    NoteTooLong(usize),
    /// This broker may not write now.
    #[error("this broker is not the active one now")]
    NotActive,
    /// A task panicked.
    #[error("the policies could not be looked at: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// NATS.
    #[error("the policies could not be stored or read: {0}")]
    Store(#[from] KvError),
}

impl PolicyError {
    /// Whether waiting would not cure it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Unusable { .. } | Self::Reset(..))
    }

    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::Refused(_) | Self::NoteTooLong(_) => Kind::InvalidRequest,
            Self::LocksOut | Self::Changed(_) => Kind::Conflict,
            Self::NoVersion(_) => Kind::NotFound,
            Self::NotActive | Self::Store(_) => Kind::Unavailable,
            Self::Unusable { .. } | Self::Reset(..) | Self::Task(_) => Kind::Internal,
        };
        let problem = Problem::new(kind, self.to_string());
        match self {
            Self::Refused(faults) => problem
                .detail(lines(faults))
                .hint("`muster policy check` finds them without storing it"),
            Self::LocksOut => problem
                .hint("permit `manage-policies` to somebody who has a token; --force stores it all the same"),
            Self::Changed(_) => problem.hint("`muster policy show` has what is in force; put yours on top of it"),
            Self::NoVersion(_) => problem.hint("`muster policy history` shows what there is"),
            Self::NotActive => problem.hint("try again in a few seconds"),
            _ => problem,
        }
    }
}

/// Mistakes as people read them, a line each.
pub(crate) fn lines(faults: &[Fault]) -> String {
    let lines = faults.iter().flat_map(|fault| {
        let text = fault.to_string();
        text.lines()
            .map(|line| printable(line, 400))
            .collect::<Vec<_>>()
    });
    lines.collect::<Vec<_>>().join("\n")
}
