//! What can go wrong with the record.

use muster_protocol::problem::{Kind, Problem};

use crate::state_dir::StateDirError;
use crate::store::error::StreamError;

/// Why the record cannot be opened, written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// NATS.
    #[error("the record of requests cannot be written or read: {0}")]
    Store(#[from] StreamError),
    /// This broker is not the active one now.
    #[error("this broker is not the active one now; nothing is recorded")]
    NotActive,
    /// More is to be recorded than can be.
    #[error("more is asked than can be recorded")]
    Busy,
    /// The last message cannot be read.
    #[error(
        "message {sequence} of the record of requests is not one of this muster: was it written by a newer one, or \
         changed? `muster audit verify` says more"
    )]
    Unreadable {
        /// Where it is in the stream.
        sequence: u64,
    },
    /// What is known of it on this broker's disk.
    #[error(transparent)]
    State(#[from] StateDirError),
}

impl AuditError {
    /// As it is shown at the edge: nothing was done.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let title = "the request cannot be recorded, so nothing was done";
        match self {
            Self::NotActive => Problem::new(Kind::Unavailable, title)
                .detail("this broker is not the active one now")
                .hint("try again in a few seconds; if it stays so, look at `muster doctor`"),
            Self::Busy => Problem::new(Kind::Unavailable, title)
                .detail("more is asked than can be recorded")
                .hint("try again in a few seconds"),
            Self::Store(StreamError::Full { .. }) => Problem::new(Kind::Unavailable, title)
                .detail("NATS has no room for the record of requests")
                .hint("make room on the disk of NATS; `muster doctor` shows how much there is"),
            Self::Store(_) | Self::Unreadable { .. } | Self::State(_) => {
                Problem::new(Kind::Unavailable, title)
                    .detail("the record of requests in NATS cannot be written now")
                    .hint("`muster doctor` shows what is wrong; the broker's log says more")
            }
        }
    }
}
