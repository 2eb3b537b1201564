//! Removing runs and their output: how. What and when is decided in
//! [`crate::retention`].
//!
//! Each removal can be done again, and can be cut off at every point. Of an
//! output the journal says that it is gone before it goes. Of a run the
//! journal goes before the output: what is left of either alone is no run,
//! and goes the next time.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use muster_protocol::ids::RunId;
use muster_protocol::run::{RunEvent, RunSpec};
use muster_protocol::subject;
use muster_protocol::units::{Timestamp, elapsed};
use tokio::sync::OwnedRwLockWriteGuard;

use super::engine::{Engine, Shared, lock};
use super::error::EngineError;
use super::index::Output;
use super::journal::{Journal, JournalError, STREAM};
use crate::retention::Kept;
use crate::store::stream::{StreamError, get_stream, last_of_subject, purge_subject, subjects};

/// Output without a journal is the rest of a removal when nothing was added to
/// it for so long.
const ORPHAN: Duration = Duration::from_secs(3_600);
/// What a message takes besides its text, about.
const PER_MESSAGE: u64 = 1_024;

/// Why something was not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    /// This broker does not serve runs now.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The journal could not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StreamError),
}

impl RemoveError {
    /// Whether there was not even room to write down that something goes.
    pub(crate) fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Store(StreamError::Full { .. })
                | Self::Journal(JournalError::Store(StreamError::Full { .. }))
        )
    }
}

/// What came of a removal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Removed {
    /// It is gone.
    Gone,
    /// Something still happens to the run, or nothing is known of it: later.
    NotNow,
}

/// The stream of runs, as it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stored {
    /// Bytes in it.
    pub(crate) bytes: u64,
    /// Messages in it.
    pub(crate) messages: u64,
    /// Most bytes that it takes.
    pub(crate) limit: u64,
}

impl Engine {
    /// Everything that is kept; `None` while this broker does not serve runs.
    pub(crate) fn kept(&self) -> Option<Vec<Kept>> {
        self.0.active()?;
        Some(lock(&self.0.index).kept())
    }

    /// When retention took a run's output away, if it did.
    pub(super) fn output_removed(&self, run: RunId) -> Option<Timestamp> {
        match lock(&self.0.index).output(run)? {
            Output::Removed(at) => Some(at),
            Output::There(_) => None,
        }
    }

    /// Keeps everybody from reading all runs while something is removed;
    /// `None` while somebody does.
    pub(crate) fn alone(&self) -> Option<OwnedRwLockWriteGuard<()>> {
        std::sync::Arc::clone(&self.0.reading)
            .try_write_owned()
            .ok()
    }

    /// Waits until the stream is fuller than it should be.
    pub(crate) async fn crowded(&self) {
        self.0.crowded.notified().await;
    }

    /// The stream, as it is now.
    pub(crate) async fn stored(&self) -> Result<Stored, StreamError> {
        let stream = get_stream(&self.0.js, STREAM).await?;
        let state = &stream.cached_info().state;
        self.0.stored.store(state.bytes, Ordering::Relaxed);
        Ok(Stored {
            bytes: state.bytes,
            messages: state.messages,
            limit: self.0.limit.load(Ordering::Relaxed),
        })
    }

    /// Removes the output of an ended run. Its journal says so first.
    pub(crate) async fn remove_output(
        &self,
        run: RunId,
        at: Timestamp,
    ) -> Result<Removed, RemoveError> {
        let shared = &self.0;
        let (epoch, _) = shared.active().ok_or(EngineError::NotReady)?;
        if !self.at_rest(run) {
            return Ok(Removed::NotNow);
        }
        // That of its parts first: it is cut off, then it is done again.
        let parts = lock(&shared.index).all_parts(run);
        for part in parts {
            let gone = Box::pin(self.remove_output(part, at)).await?;
            if gone == Removed::NotNow {
                return Ok(Removed::NotNow);
            }
        }
        let journal = subject::journal(run);
        let Some(last) = last_of_subject(&shared.js, STREAM, &journal).await? else {
            return Ok(Removed::NotNow);
        };
        let said = serde_json::from_slice::<RunEvent>(&last.payload);
        let at = match said {
            // It was cut off after that.
            Ok(RunEvent::OutputRemoved { at }) => at,
            _ => {
                let lease = shared.bus.lease().clone();
                let mut journal = Journal::new(shared.js.clone(), lease, epoch, run, last.sequence);
                match journal.append(&RunEvent::OutputRemoved { at }).await {
                    // A late answer came in between.
                    Err(JournalError::Conflict(_)) => return Ok(Removed::NotNow),
                    result => result?,
                };
                at
            }
        };
        lock(&shared.index).output_removed(run, at);
        shared.forget(run);
        purge_subject(&shared.js, STREAM, &subject::output(run)).await?;
        tracing::debug!(%run, "the output of a run was removed");
        Ok(Removed::Gone)
    }

    /// Removes an ended run with everything. The record of what retention
    /// removes must hold it before.
    pub(crate) async fn remove_run(&self, run: RunId) -> Result<Removed, RemoveError> {
        let shared = &self.0;
        shared.active().ok_or(EngineError::NotReady)?;
        let parts = lock(&shared.index).all_parts(run);
        if !self.at_rest(run) || !parts.iter().all(|part| self.at_rest(*part)) {
            return Ok(Removed::NotNow);
        }
        let created = lock(&shared.index).get(run).map(|brief| brief.created);
        if let Some(created) = created {
            // Nodes that still have something of it are not to bring it back.
            shared.purged.up_to(created).await;
        }
        // From here on nobody finds it or opens it again. Its parts go first:
        // what is cut off leaves no part without its whole.
        let parts = lock(&shared.index).all_parts(run);
        for part in parts.into_iter().chain([run]) {
            lock(&shared.index).remove(part);
            shared.forget(part);
            self.purge(part).await?;
        }
        Ok(Removed::Gone)
    }

    async fn purge(&self, run: RunId) -> Result<(), StreamError> {
        for subject in [subject::journal(run), subject::output(run)] {
            purge_subject(&self.0.js, STREAM, &subject).await?;
        }
        Ok(())
    }

    /// Whether a run has ended and nothing happens to it.
    fn at_rest(&self, run: RunId) -> bool {
        !lock(&self.0.open).contains_key(&run) && lock(&self.0.index).has_ended(run)
    }

    /// Removes what removals that were cut off have left behind, and what
    /// nobody could read for as long as runs are kept. How many runs that
    /// concerns.
    pub(crate) async fn remove_leftovers(&self, age: Duration) -> Result<usize, StreamError> {
        let shared = &self.0;
        let mut gone = 0;
        let known: Vec<RunId> = lock(&shared.leftovers).iter().copied().collect();
        for run in known {
            // Nodes may have brought it back meanwhile.
            if lock(&shared.index).first(run).is_none() && !lock(&shared.open).contains_key(&run) {
                self.purge(run).await?;
                gone += 1;
            }
            lock(&shared.leftovers).remove(&run);
        }
        let mut runs: BTreeMap<RunId, (u64, u64)> = BTreeMap::new();
        for (subject, count) in subjects(&shared.js, STREAM, subject::RUN_ALL).await? {
            match of_run(&subject) {
                Some((run, Part::Journal)) => runs.entry(run).or_default().0 = count,
                Some((run, Part::Output)) => runs.entry(run).or_default().1 = count,
                None => {}
            }
        }
        for (run, (journal, output)) in runs {
            if shared.active().is_none() {
                break;
            }
            let known = lock(&shared.index).output(run);
            match known {
                // It was cut off between saying and doing it.
                Some(Output::Removed(_)) if output > 0 && self.at_rest(run) => {
                    purge_subject(&shared.js, STREAM, &subject::output(run)).await?;
                    gone += 1;
                }
                Some(Output::There(_)) => {
                    lock(&shared.index).has_output(run, output * PER_MESSAGE);
                }
                Some(Output::Removed(_)) => {}
                None if lock(&shared.open).contains_key(&run) => {}
                None => {
                    let (subject, age) = match journal {
                        0 => (subject::output(run), ORPHAN),
                        _ => (subject::journal(run), age),
                    };
                    let last = last_of_subject(&shared.js, STREAM, &subject).await?;
                    let old = last.is_some_and(|last| elapsed(last.time, Timestamp::now()) >= age);
                    // A run that is just being written down is not in the
                    // index yet, and is young.
                    if old && lock(&shared.index).first(run).is_none() {
                        tracing::info!(%run, "what was left of a run is removed");
                        self.purge(run).await?;
                        gone += 1;
                    }
                }
            }
        }
        Ok(gone)
    }
}

/// New runs are taken up to so many hundredths of the stream's limit: the rest
/// is for the outcomes of those that are under way, which could else never
/// end and make room.
const RUNS_PART: u64 = 97;

impl Shared {
    /// Whether there is room for one more run.
    pub(super) fn takes_runs(&self, spec: &RunSpec) -> bool {
        let bytes = spec.params.to_string().len() as u64 + PER_MESSAGE;
        let stored = self.stored.fetch_add(bytes, Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        let room = stored.saturating_add(bytes) <= limit / 100 * RUNS_PART;
        if !room {
            // It is not going to be there.
            self.stored.fetch_sub(bytes, Ordering::Relaxed);
            self.crowded.notify_one();
        }
        room
    }

    /// What somebody who cannot write a journal waits for, for people. Whoever
    /// makes room is woken.
    pub(super) fn waits_for(&self, error: &StreamError) -> String {
        match error {
            StreamError::Full { .. } => {
                self.crowded.notify_one();
                "the store is full, and the run goes on when there is room; see `muster status`"
                    .to_owned()
            }
            error => format!("NATS does not answer, and the run goes on when it does ({error})"),
        }
    }
}

enum Part {
    Journal,
    Output,
}

/// The run that a subject of the stream belongs to.
fn of_run(subject: &str) -> Option<(RunId, Part)> {
    let (run, part) = subject.strip_prefix("m1.run.")?.split_once('.')?;
    let part = match part {
        "j" => Part::Journal,
        "o" => Part::Output,
        _ => return None,
    };
    Some((run.parse().ok()?, part))
}
