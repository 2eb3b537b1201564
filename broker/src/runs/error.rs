//! Why a run could not be begun, found or changed, and how people are told.

use muster_protocol::freeze::Freeze;
use muster_protocol::ids::RunId;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::WishError;

use super::engine::MOST_OPEN;
use super::flow::AnswerError;
use super::index::LookupError;
use super::journal::{JournalError, ReadError};
use crate::bus::SendError;
use crate::store::error::StreamError;

/// Why something about a run could not be done.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// This broker is not the active one, or has not read its journals yet.
    #[error("this broker cannot serve runs now: it starts, or another one is active")]
    NotReady,
    /// No such run.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The run has ended.
    #[error("run {short} has ended ({state}); there is nothing to cancel")]
    Ended {
        /// Its short id.
        short: String,
        /// How.
        state: &'static str,
    },
    /// It is a part of another run.
    #[error("run {short} is a step of run {of}")]
    Part {
        /// Its short id.
        short: String,
        /// That of the whole.
        of: String,
    },
    /// What it asks was not answered.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// It does not do what somebody wants of it.
    #[error("run {short} {why}")]
    Refused {
        /// Its short id.
        short: String,
        /// Why.
        why: WishError,
    },
    /// Its journal cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its task did not answer.
    #[error("run {0} does not answer now: NATS is away, or this broker stops")]
    NoAnswer(RunId),
}

impl EngineError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let title = self.to_string();
        match self {
            Self::NotReady | Self::NoAnswer(_) => Problem::new(Kind::Unavailable, title)
                .hint("try again in a few seconds; if it stays so, look at `muster doctor`"),
            Self::Lookup(LookupError::NotAnId(_) | LookupError::NoRun(_)) => {
                Problem::new(Kind::NotFound, title).hint("muster runs lists them")
            }
            Self::Lookup(LookupError::Ambiguous { .. }) => {
                Problem::new(Kind::Ambiguous, title).hint("give more characters of the id")
            }
            Self::Ended { .. } => Problem::new(Kind::Conflict, title),
            Self::Part { of, .. } => {
                Problem::new(Kind::Conflict, title).hint(format!("do it to the whole: run {of}"))
            }
            Self::Answer(AnswerError::NotAsked(_)) => Problem::new(Kind::Conflict, title)
                .hint("somebody may have answered before you; `muster runs show` says who"),
            Self::Answer(_) => Problem::new(Kind::InvalidRequest, title),
            Self::Refused {
                why: WishError::OwnRun(_) | WishError::Door(_),
                ..
            } => Problem::new(Kind::Denied, title),
            Self::Refused { short, why } => {
                let hint = match why {
                    WishError::TooLate(_) => "ask for it again".to_owned(),
                    _ => format!("muster runs show {short} says how it stands"),
                };
                Problem::new(Kind::Conflict, title).hint(hint)
            }
            Self::Read(ReadError::Gone(_)) => Problem::new(Kind::NotFound, title),
            Self::Read(ReadError::Store(_)) => Problem::new(Kind::Unavailable, title),
            Self::Read(_) => Problem::new(Kind::Internal, title),
        }
    }
}

/// Why a run was not created. Nothing was sent to any node.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// This broker is not the active one, or has not read its journals yet.
    #[error("this broker cannot run anything now: it starts, or another one is active")]
    NotReady,
    /// The fleet is frozen.
    #[error("{}; nothing was run", .0.reason())]
    Frozen(Box<Freeze>),
    /// Too many at once.
    #[error("{MOST_OPEN} runs are under way; nothing was run")]
    Busy,
    /// There is a run of that id.
    #[error("there is a run {0} already")]
    Exists(RunId),
    /// The request does not fit into a message.
    #[error("{0}; nothing was run")]
    TooLarge(SendError),
    /// The journal could not be written.
    #[error("the run could not be written down, so nothing was run: {0}")]
    Journal(#[from] JournalError),
    /// What room is left is for the journals of runs that are under way.
    #[error("the store has no room for another run; nothing was run")]
    NoRoom,
    /// Nobody has said whether the last part of it was written down.
    #[error("it is not known whether run {0} was written down whole: {1}")]
    Unsure(RunId, JournalError),
}

impl CreateError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let title = self.to_string();
        match self {
            Self::NoRoom | Self::Journal(JournalError::Store(StreamError::Full { .. })) => {
                Problem::new(Kind::NoRoom, title).hint(
                    "the oldest runs are being removed to make room: try again in a minute; \
                     `muster status` shows how much there is, and `retention.bytes` sets it",
                )
            }
            Self::Unsure(run, _) => Problem::new(Kind::Unavailable, title).hint(format!(
                "`muster runs show {run}` says whether it goes on; do not ask for it anew before that"
            )),
            Self::NotReady | Self::Journal(_) => Problem::new(Kind::Unavailable, title)
                .hint("try again in a few seconds; if it stays so, look at `muster doctor`"),
            Self::Frozen(_) => Problem::new(Kind::Frozen, title)
                .hint("`muster thaw` ends it; `muster freeze --status` says how it stands"),
            Self::Busy => Problem::new(Kind::RateLimited, title).hint("wait for some to end"),
            Self::Exists(_) => Problem::new(Kind::Conflict, title),
            Self::TooLarge(_) => {
                Problem::new(Kind::TooLarge, title).hint("put large data in a file on the nodes")
            }
        }
    }
}
