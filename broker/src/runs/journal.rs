//! The journals of runs in JetStream: written by one, read by anybody.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::{HeaderMap, header};
use futures_util::TryStreamExt as _;
use muster_protocol::ids::RunId;
use muster_protocol::run::{FoldError, RunEvent, RunState};
use muster_protocol::subject;
use muster_protocol::wire::OUTPUT_HEADER;
use tokio::time::{Instant, sleep};

use super::frames::StoredOutput;
use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::store::append::{Append, append};
use crate::store::read::read_from;
use crate::store::stream::{StreamError, StreamSettings, ensure_stream};

/// The stream of all runs.
pub const STREAM: &str = "MUSTER_RUNS";
/// Pause before an append is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a journal cannot be written any more by whoever tried.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// This broker is not the active one, or not in the epoch in which it
    /// took the run.
    #[error("this broker is not the active one now")]
    NotActive,
    /// Somebody else has written to it.
    #[error("somebody else writes the journal of run {0}")]
    Conflict(RunId),
    /// The store said no; nothing, or it is not known what, was written.
    #[error(transparent)]
    Store(#[from] StreamError),
}

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not there.
    #[error("there is no journal of run {0}")]
    Gone(RunId),
    /// An event that this version cannot read.
    #[error(
        "event {sequence} of run {run} cannot be read: {source}; was it written by a newer muster?"
    )]
    Event {
        /// The run.
        run: RunId,
        /// Where.
        sequence: u64,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// An event that cannot follow on those before.
    #[error("event {sequence} of run {run} does not follow: {source}")]
    Fold {
        /// The run.
        run: RunId,
        /// Where.
        sequence: u64,
        /// What is wrong.
        source: FoldError,
    },
    /// The store gave no answer.
    #[error(transparent)]
    Store(#[from] StreamError),
}

/// Smallest limit that is asked for.
const LEAST_BYTES: u64 = 8 << 20;

/// Makes the stream of runs, or brings it to this limit. When the server has
/// less room than `max_bytes`, the limit is halved until it fits; the one that
/// counts is returned. What goes, and when, is up to [`crate::retention`].
///
/// The stream itself may hold a quarter more, which is never meant to be used:
/// a server that is set to refuse what is beyond the limit does not count what
/// a message takes besides its text, and when the last message crosses the
/// limit by that it removes the oldest one: the head of a journal.
///
/// # Errors
/// [`StreamError`].
pub(super) async fn ensure(js: &Context, max_bytes: u64) -> Result<u64, StreamError> {
    let mut limit = max_bytes;
    loop {
        let settings = StreamSettings {
            max_bytes: Some(limit.saturating_add(limit / 4)),
            ..StreamSettings::journal(STREAM, "journals and output of runs", &[subject::RUN_ALL])
        };
        match ensure_stream(js, &settings).await {
            Err(StreamError::Full { .. }) if limit / 2 >= LEAST_BYTES => limit /= 2,
            result => {
                result?;
                if limit < max_bytes {
                    tracing::warn!(
                        limit,
                        wanted = max_bytes,
                        "NATS has less room for runs than wanted"
                    );
                }
                return Ok(limit);
            }
        }
    }
}

/// A journal folded so far.
#[derive(Clone, Debug)]
pub(super) struct Folded {
    /// The run.
    pub(super) state: RunState,
    /// Sequence of its first event.
    pub(super) first: u64,
    /// Sequence of its last event.
    pub(super) last: u64,
}

/// Folds a run from its journal, from the sequence `first` on.
///
/// # Errors
/// [`ReadError`].
pub(super) async fn fold(js: &Context, run: RunId, first: u64) -> Result<Folded, ReadError> {
    let mut folded: Option<Folded> = None;
    let mut messages = read_from(js, STREAM, &subject::journal(run), first).await?;
    while let Some(message) = messages.try_next().await? {
        let sequence = message.sequence;
        let event = parse(run, sequence, &message.payload)?;
        follow(&mut folded, &event, sequence).map_err(|source| ReadError::Fold {
            run,
            sequence,
            source,
        })?;
    }
    folded.ok_or(ReadError::Gone(run))
}

/// Reads one event.
pub(super) fn parse(run: RunId, sequence: u64, payload: &[u8]) -> Result<RunEvent, ReadError> {
    serde_json::from_slice(payload).map_err(|source| ReadError::Event {
        run,
        sequence,
        source,
    })
}

/// Takes one more event of a journal.
pub(super) fn follow(
    folded: &mut Option<Folded>,
    event: &RunEvent,
    sequence: u64,
) -> Result<(), FoldError> {
    match folded {
        None => {
            *folded = Some(Folded {
                state: RunState::begin(event)?,
                first: sequence,
                last: sequence,
            })
        }
        Some(folded) => {
            folded.state.apply(event)?;
            folded.last = sequence;
        }
    }
    Ok(())
}

/// A chunk of output as it is stored.
pub(super) fn output_message(run: RunId, head: StoredOutput, data: bytes::Bytes) -> Append {
    let mut headers = HeaderMap::new();
    let json = serde_json::to_string(&head).expect("a head has a JSON form");
    headers.insert(OUTPUT_HEADER, json);
    let id = format!("{run}.{}.{}", head.serial, head.chunk);
    let mut message = Append::new(subject::output(run), data).with_id(id);
    message.headers = headers;
    message
}

/// Whose chunk a stored message is; `None` when it is none.
pub(super) fn output_head(headers: &HeaderMap) -> Option<StoredOutput> {
    serde_json::from_str(headers.get(OUTPUT_HEADER)?.as_str()).ok()
}

/// The pen of one run: whoever holds it writes the journal.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    js: Context,
    lease: Lease,
    epoch: u64,
    run: RunId,
    /// Sequence of the last event, 0 before the first.
    last: u64,
}

impl Journal {
    /// Goes on after the event with the sequence `last`; 0 begins a journal.
    #[must_use]
    pub(super) fn new(js: Context, lease: Lease, epoch: u64, run: RunId, last: u64) -> Self {
        Self {
            js,
            lease,
            epoch,
            run,
            last,
        }
    }

    /// Sequence of the last event.
    #[must_use]
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Appends an event and returns once it is stored. Tries for about ten
    /// seconds.
    ///
    /// # Errors
    /// [`JournalError`].
    pub(super) async fn append(&mut self, event: &RunEvent) -> Result<u64, JournalError> {
        let message = self.message(event);
        self.place("broker.journal.before", event).await;
        let appended = self.try_append(&message).await;
        self.place("broker.journal.after", event).await;
        appended
    }

    async fn place(&self, point: &'static str, event: &RunEvent) {
        #[cfg(test)]
        held::at(self.epoch, point, || {
            format!("{} {}", self.run, event.kind())
        })
        .await;
        muster_checkpoint::at(point, || format!("{} {}", self.run, event.kind())).await;
    }

    /// Appends an event and returns once it is stored, however long NATS is
    /// away or full. `waiting` is told again and again why it is not stored
    /// yet.
    ///
    /// # Errors
    /// [`JournalError::NotActive`], [`JournalError::Conflict`], and of the
    /// store only what time does not heal.
    pub(super) async fn append_surely(
        &mut self,
        event: &RunEvent,
        mut waiting: impl FnMut(&StreamError) + Send,
    ) -> Result<u64, JournalError> {
        let message = self.message(event);
        let mut told = false;
        self.place("broker.journal.before", event).await;
        loop {
            match self.try_append(&message).await {
                Err(JournalError::Store(
                    error @ (StreamError::Full { .. }
                    | StreamError::NotReady { .. }
                    | StreamError::Unconfirmed { .. }
                    | StreamError::NoAnswer { .. }
                    | StreamError::NotSent { .. }),
                )) => {
                    waiting(&error);
                    if !told {
                        told = true;
                        tracing::error!(run = %self.run, %error, "cannot write the journal; trying on");
                    }
                    sleep(PAUSE).await;
                }
                result => {
                    self.place("broker.journal.after", event).await;
                    return result;
                }
            }
        }
    }

    fn message(&self, event: &RunEvent) -> Append {
        let json = serde_json::to_vec(event).expect("an event has a JSON form");
        // One id for all attempts: what was stored without our hearing of it
        // is recognised.
        let id = format!("{}.{}", self.run, RunId::random());
        Append::new(subject::journal(self.run), json)
            .expecting(self.last)
            .with_id(id)
    }

    async fn try_append(&mut self, message: &Append) -> Result<u64, JournalError> {
        if self.lease.epoch() != Some(self.epoch) {
            return Err(JournalError::NotActive);
        }
        let begun = Instant::now();
        let appended = append(&self.js, STREAM, message).await;
        Metrics::of_process().appended(begun.elapsed(), appended.is_ok());
        self.last = match appended {
            Ok(appended) => appended.sequence,
            Err(StreamError::Conflict { .. }) => self.own(message).await?,
            Err(error) => return Err(error.into()),
        };
        Ok(self.last)
    }

    /// The sequence of the last event, if it is this very message: it was
    /// stored, and the server's answer was lost.
    async fn own(&self, message: &Append) -> Result<u64, JournalError> {
        let no_answer = |reason: String| StreamError::NoAnswer {
            what: message.subject.clone(),
            reason,
        };
        let stream = self
            .js
            .get_stream(STREAM)
            .await
            .map_err(|e| no_answer(e.to_string()))?;
        let last = stream
            .get_last_raw_message_by_subject(&message.subject)
            .await
            .map_err(|e| no_answer(e.to_string()))?;
        let id = last
            .headers
            .get(header::NATS_MESSAGE_ID)
            .map(|id| id.as_str());
        if id.is_some() && id == message.message_id.as_deref() {
            Ok(last.sequence)
        } else {
            Err(JournalError::Conflict(self.run))
        }
    }
}

/// A test holds whoever comes to a place, for ever: as if it had been killed
/// there.
#[cfg(test)]
pub(super) mod held {
    use std::sync::{Arc, Mutex};

    use tokio::sync::Notify;

    /// Where to hold, and what was passed.
    #[derive(Clone)]
    pub(crate) struct Hold {
        /// Only journals of this epoch.
        pub(crate) epoch: u64,
        /// So many places are passed before.
        pub(crate) after: usize,
        /// What was passed.
        pub(crate) seen: Arc<Mutex<Vec<String>>>,
        /// Somebody is held.
        pub(crate) held: Arc<Notify>,
    }

    /// The hold of this process's test.
    pub(crate) static HOLD: Mutex<Option<Hold>> = Mutex::new(None);

    pub(super) async fn at(epoch: u64, point: &str, what: impl FnOnce() -> String) {
        let hold = HOLD.lock().expect("a lock").clone();
        let Some(hold) = hold.filter(|hold| hold.epoch == epoch) else {
            return;
        };
        let stop = {
            let mut seen = hold.seen.lock().expect("a lock");
            seen.push(format!("{point} {}", what()));
            seen.len() > hold.after
        };
        if stop {
            hold.held.notify_one();
            std::future::pending::<()>().await;
        }
    }
}
