//! Runs: from the frozen set to one outcome for each node.
//!
//! The journal in JetStream is the truth. [`Engine`] is the handle; each open
//! run has a task of its own that owns its state and is the only one to write
//! its journal. Whatever the task does next follows from
//! [`muster_protocol::run::RunState::next`], so that a broker that starts
//! again goes on where the last one stopped.

mod bundles;
mod doubt;
mod engine;
mod error;
mod flow;
pub mod frames;
mod frozen;
mod gates;
mod hub;
mod index;
mod intake;
mod journal;
mod local;
mod outcome;
mod rebuild;
mod recorded;
mod recovery;
mod request;
mod retention;
mod schedule;
mod seal;
mod secrets;
mod send;
mod stored;
mod task;
mod tell;
mod view;
mod waits;
mod watch;
mod wishes;

pub use self::engine::{Engine, Settings};
pub use self::error::{CreateError, EngineError};
pub use self::flow::{
    Another, AnswerError, MachineNow, Machinery, Score, Stage, StageError, UpMachine,
};
pub use self::hub::{Following, Render};
pub use self::index::{LookupError, cursor, parse_cursor};
pub use self::journal::{JournalError, ReadError, STREAM};
pub(crate) use self::rebuild::Proof;
pub(crate) use self::recovery::run_of;
pub(crate) use self::request::TARGETS;
pub use self::request::{
    Checked, DELIVER_WITHIN, FrozenRun, FrozenSet, OUTPUT_BYTES, RequestError, TIMEOUT, check,
    options, retry,
};
pub(crate) use self::retention::{RemoveError, Removed, Stored};
pub(crate) use self::schedule::Message;
pub use self::secrets::SecretValues;
pub use self::stored::{Program, Ready, StoredError, ready};
pub(crate) use self::stored::{confirm_later, gates};
pub use self::watch::{Seen, Watch, WatchError};

/// Makes the stream of runs, or brings it to its limit.
///
/// # Errors
/// [`crate::store::error::StreamError`].
pub(crate) async fn ensure(
    js: &async_nats::jetstream::Context,
    settings: &Settings,
) -> Result<u64, crate::store::error::StreamError> {
    journal::ensure(js, settings.max_bytes).await
}

#[cfg(test)]
pub(crate) mod tests;
