//! The node's own journal: what it was asked, began, and how it ended.
//!
//! SQLite with write-ahead log. Some commits wait for the disk (`started`
//! before the first effect, `finished` before the report), others do not
//! (output while it comes; the sync of `finished` covers it, because all of
//! it is in the same log).
//!
//! The agent is not its only writer: `muster-agent local run` is a process of
//! its own. Each write is one transaction that waits for its turn.

mod db;
mod local;
mod pending;
mod prune;
mod requests;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use muster_protocol::envelope::HighWater;
use muster_protocol::ids::{InstanceId, RequestId};
use muster_protocol::run::{NodeResult, Stream};
use muster_protocol::units::Timestamp;
use muster_protocol::wire::OutcomeReport;

pub use db::Db;
pub use local::{LocalNote, request as local_request};
pub use prune::Pruned;
pub use requests::Kept;

/// What this version writes; a journal with a higher number is refused.
pub const FORMAT: u32 = 1;

/// Why the journal did not do it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be opened.
    #[error(
        "the journal {path} cannot be opened: {why}; if it is damaged, move it away: the node then forgets what it has executed"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// There is no room.
    #[error("there is no room on the disk for the journal")]
    Full,
    /// Anything else that SQLite said.
    #[error("the journal failed: {0}")]
    Sql(String),
    /// A row that this version cannot read.
    #[error("the journal holds a row that cannot be read: {0}")]
    Row(String),
}

impl From<rusqlite::Error> for JournalError {
    fn from(e: rusqlite::Error) -> Self {
        match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Sql(e.to_string()),
        }
    }
}

/// A process as the journal knows it: enough to find it again, and to be sure
/// that it is the same.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProcessNote {
    /// Its id; also its session's.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot.
    pub started: u64,
    /// Its control group, when it has one of its own.
    pub cgroup: Option<PathBuf>,
}

/// What is known when a step begins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StartNote {
    /// This start of the agent.
    pub instance: InstanceId,
    /// This start of the machine.
    pub boot_id: String,
    /// How long it may take, in milliseconds.
    pub timeout_ms: u64,
}

/// What the journal says about a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// It waits for its turn.
    Queued,
    /// It began, and has not ended.
    Started,
    /// It ended.
    Finished,
}

/// A step that the agent had not ended when it ended itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Unfinished {
    /// Which.
    pub request: RequestId,
    /// When it was begun, or came where it only waited.
    pub received: Timestamp,
    /// `None` when it only waited.
    pub start: Option<StartNote>,
    /// Its process, when there was one.
    pub process: Option<ProcessNote>,
}

/// Chunks of output, as they travel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chunk {
    /// Its number.
    pub number: u32,
    /// Which stream.
    pub stream: Stream,
    /// What was written.
    pub data: Bytes,
}

/// How many there are of what.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Waiting or running.
    pub open: u64,
    /// Ended, and the broker has the outcome.
    pub acknowledged: u64,
    /// Ended, and the broker has not said that it has the outcome.
    pub unacknowledged: u64,
    /// Bytes of output.
    pub output_bytes: u64,
}

/// Acknowledgements that come within this time are written together, or with
/// the step that begins meanwhile: a commit of their own costs as much as a
/// step's.
const TOGETHER: Duration = Duration::from_millis(300);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes acknowledgements down. Where that fails, it only means one more
/// report of what the broker has.
fn note(db: &Db, noted: &[(RequestId, Timestamp)]) {
    if let Err(e) = db.acknowledged(noted) {
        tracing::debug!("acknowledgements cannot be noted: {e}");
    }
}

/// The journal, shared; each call runs where blocking is allowed.
#[derive(Clone)]
pub struct Journal {
    db: Arc<Mutex<Db>>,
    position: Arc<AtomicU64>,
    /// Acknowledgements that are not written yet: they are, before anything
    /// else is written or looked through.
    noted: Arc<Mutex<Vec<(RequestId, Timestamp)>>>,
}

impl Journal {
    /// Opens or makes it.
    ///
    /// # Errors
    /// [`JournalError::Open`].
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        Ok(Self {
            db: Arc::new(Mutex::new(Db::open(path)?)),
            position: Arc::default(),
            noted: Arc::default(),
        })
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        self.with_noted(|db, noted| {
            note(db, &noted);
            work(db)
        })
        .await
    }

    /// With the acknowledgements that are not written yet, for a transaction
    /// that takes them along.
    async fn with_noted<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db, Vec<(RequestId, Timestamp)>) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let (db, noted) = (self.db.clone(), self.noted.clone());
        let done = tokio::task::spawn_blocking(move || {
            let db = db.lock().unwrap_or_else(PoisonError::into_inner);
            let noted = std::mem::take(&mut *lock(&noted));
            work(&db, noted)
        });
        done.await
            .unwrap_or_else(|e| Err(JournalError::Sql(format!("its thread ended: {e}"))))
    }

    /// Does what takes no longer than two changes of the thread, and does not
    /// wait for the disk: where it is when nobody else is at it.
    async fn at_once<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        if let Ok(db) = self.db.try_lock() {
            return work(&db);
        }
        self.with(work).await
    }

    /// What is known of a request.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn look(&self, request: RequestId) -> Result<Option<Entry>, JournalError> {
        self.at_once(move |db| db.look(request)).await
    }

    /// Notes that a request waits for its turn, with the request itself.
    /// Durable.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn queue(&self, request: RequestId, kept: Kept) -> Result<(), JournalError> {
        let position = self.position.clone();
        self.with_noted(move |db, noted| {
            db.with_request(request, &kept, &position, || {
                note(db, &noted);
                db.queue(request, Timestamp::now())
            })
        })
        .await
    }

    /// Notes that a step begins, with the request itself. Durable when it
    /// returns: only then may anything happen.
    ///
    /// # Errors
    /// [`JournalError`]; also when the request is known and not queued.
    pub async fn start(
        &self,
        request: RequestId,
        note: StartNote,
        kept: Kept,
    ) -> Result<(), JournalError> {
        let position = self.position.clone();
        self.with_noted(move |db, noted| {
            db.with_request(request, &kept, &position, || {
                self::note(db, &noted);
                db.start(request, &note, Timestamp::now())
            })
        })
        .await
    }

    /// Notes the process of a step.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn process(&self, request: RequestId, note: ProcessNote) -> Result<(), JournalError> {
        // Nothing waits for the disk here, and the step waits for this.
        self.at_once(move |db| db.process(request, &note)).await
    }

    /// Adds output. Durable with the step's end.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn output(&self, request: RequestId, chunk: Chunk) -> Result<(), JournalError> {
        self.with(move |db| db.output(request, &chunk)).await
    }

    /// Notes how a step ended. Durable when it returns. For a request that
    /// the journal does not know yet (a tombstone, a refusal) it makes the
    /// row; one that ended already stays as it is, and the answer is `false`.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn finish(
        &self,
        request: RequestId,
        result: NodeResult,
        chunks: u32,
        inline: bool,
    ) -> Result<bool, JournalError> {
        self.with(move |db| db.finish(request, &result, chunks, inline, Timestamp::now()))
            .await
    }

    /// Throws away the output of a step.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn drop_output(&self, request: RequestId) -> Result<(), JournalError> {
        self.with(move |db| db.drop_output(request)).await
    }

    /// Steps without an end.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, JournalError> {
        self.with(|db| db.unfinished()).await
    }

    /// Outcomes that the broker has not acknowledged, oldest first.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn unacknowledged(&self, limit: u32) -> Result<Vec<RequestId>, JournalError> {
        let noted = self.noted.clone();
        self.at_once(move |db| {
            let mut found = db.unacknowledged(limit)?;
            let noted = lock(&noted);
            found.retain(|id| !noted.iter().any(|(known, _)| known == id));
            Ok(found)
        })
        .await
    }

    /// The report of a step that ended; `None` when it has not.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn report(&self, request: RequestId) -> Result<Option<OutcomeReport>, JournalError> {
        self.at_once(move |db| db.report(request)).await
    }

    /// One chunk of output, when it is still there.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn chunk(
        &self,
        request: RequestId,
        number: u32,
    ) -> Result<Option<Chunk>, JournalError> {
        self.at_once(move |db| db.chunk(request, number)).await
    }

    /// Notes that the broker has an outcome. Written a moment later, with
    /// others, or before whatever is written next: lost, it only means one
    /// more report.
    pub fn acknowledged(&self, request: RequestId) {
        let first = {
            let mut noted = lock(&self.noted);
            noted.push((request, Timestamp::now()));
            noted.len() == 1
        };
        if first {
            let journal = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(TOGETHER).await;
                journal.settle().await;
            });
        }
    }

    /// Writes down what is only noted.
    pub async fn settle(&self) {
        if !lock(&self.noted).is_empty() {
            let _ = self.with(|_| Ok(())).await;
        }
    }

    /// What was seen of brokers, as stored.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn high_water(&self) -> Result<HighWater, JournalError> {
        self.with(|db| {
            let Some(text) = db.meta("high_water")? else {
                return Ok(HighWater::default());
            };
            serde_json::from_str(&text).map_err(|e| JournalError::Row(e.to_string()))
        })
        .await
    }

    /// Stores what was seen of brokers. Durable when it returns.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn set_high_water(&self, seen: &HighWater) -> Result<(), JournalError> {
        let text = serde_json::to_string(seen).map_err(|e| JournalError::Row(e.to_string()))?;
        self.with(move |db| db.set_meta("high_water", &text)).await
    }

    /// The facts that were sent last.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn facts(&self) -> Result<Option<String>, JournalError> {
        self.with(|db| db.meta("facts")).await
    }

    /// Stores the facts that were sent.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn set_facts(&self, json: String) -> Result<(), JournalError> {
        self.with(move |db| db.set_meta("facts", &json)).await
    }

    /// Throws away what is old, or too much.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn prune(&self, keep: crate::config::Retention) -> Result<Pruned, JournalError> {
        self.with(move |db| db.prune(&keep, Timestamp::now())).await
    }

    /// How many there are of what.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn counts(&self) -> Result<Counts, JournalError> {
        self.with(|db| db.counts()).await
    }
}
