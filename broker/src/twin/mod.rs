//! When the store goes back in time.
//!
//! A broker writes everything into NATS, and NATS can forget: somebody puts
//! yesterday's directory back, a disk is replaced, a power cut takes the last
//! minutes. So each broker, active or not, keeps a *twin* on its own disk:
//! the newest value or deletion of every key of every bucket, and the
//! journals of runs and the cluster's events of the last days (not the output
//! of runs).
//!
//! * [`follow`] fills it behind the stream's back; what an operator is told
//!   is changed is written into it before that, by [`Witness`].
//! * [`examine`] compares, whenever the broker connects to NATS and before
//!   each session: a stream that ends before the twin's, holds something else
//!   where the twin saw its end, or was made anew, has gone back. What it has
//!   lost is set aside.
//! * [`put_back`] writes what was set aside into the store again, before the
//!   session is opened, and says in the cluster's events what that was and
//!   what is gone for good.
//!
//! [`Past`] is what is known of such times: nodes are to report again what
//! even the twin does not have.
//!
//! The twin is never needed: without one, or with one that fails, the broker
//! works on, and a small file of marks still says *that* the store went back.

mod db;
mod examine;
mod follow;
mod leap;
mod marks;
mod merge;
mod past;
mod put_back;
mod tell;
#[cfg(test)]
mod tests;
mod values;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use muster_protocol::subject;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

pub use self::db::DbError;
use self::db::{Db, Message};
pub use self::examine::ExamineError;
use self::marks::Marks;
pub use self::past::{Past, ReportAgain, Sign, StoredPast, WentBack};
pub(crate) use self::put_back::Place;
pub use self::put_back::PutBackError;
use crate::state_dir::{StateDir, StateDirError, make_dir};
use crate::store::kv::Witness;

/// The twin's directory in the state directory.
const DIR: &str = "twin";
/// The file in it.
const FILE: &str = "twin.db";
/// How long a person's answer waits for the twin at most.
const WAIT: Duration = Duration::from_millis(500);

/// How much is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How long journals and events are kept.
    pub keep: Duration,
    /// Most bytes of journals; the oldest go first.
    pub max_bytes: u64,
}

/// A stream that the twin follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Followed {
    /// The stream.
    stream: &'static str,
    /// What of it.
    filter: &'static str,
    /// A log is kept for some time; of a bucket the newest of each key.
    is_log: bool,
}

const fn bucket(stream: &'static str, filter: &'static str) -> Followed {
    Followed {
        stream,
        filter,
        is_log: false,
    }
}

const fn log(stream: &'static str, filter: &'static str) -> Followed {
    Followed {
        stream,
        filter,
        is_log: true,
    }
}

const NODES: &str = "KV_muster_nodes";
const FACTS: &str = "KV_muster_facts";
const INVITES: &str = "KV_muster_invites";
const TOKENS: &str = "KV_muster_tokens";
const CLUSTER: &str = "KV_muster_cluster";
const SCENARIOS: &str = "KV_muster_scenarios";
const BUNDLES: &str = "KV_muster_bundles";
const SCHEDULES: &str = "KV_muster_schedules";
const POLICY: &str = "KV_muster_policy";
const MACHINES: &str = "KV_muster_vms";
const NETWORKS: &str = "KV_muster_networks";
const ADDRESSES: &str = "KV_muster_addresses";
const GROUPS: &str = "KV_muster_groups";
const SETS: &str = "KV_muster_address_sets";
const IMAGES: &str = "KV_muster_images";
const RUNS: &str = crate::runs::STREAM;
const EVENTS: &str = crate::events::STREAM;
const AUDIT: &str = crate::audit::STREAM;

/// Everything that is followed.
const ALL: [Followed; 18] = [
    bucket(NODES, "$KV.muster_nodes.>"),
    bucket(FACTS, "$KV.muster_facts.>"),
    bucket(INVITES, "$KV.muster_invites.>"),
    bucket(TOKENS, "$KV.muster_tokens.>"),
    bucket(CLUSTER, "$KV.muster_cluster.>"),
    bucket(SCENARIOS, "$KV.muster_scenarios.>"),
    bucket(BUNDLES, "$KV.muster_bundles.>"),
    bucket(SCHEDULES, "$KV.muster_schedules.>"),
    bucket(POLICY, "$KV.muster_policy.>"),
    bucket(MACHINES, "$KV.muster_vms.>"),
    bucket(NETWORKS, "$KV.muster_networks.>"),
    bucket(ADDRESSES, "$KV.muster_addresses.>"),
    bucket(GROUPS, "$KV.muster_groups.>"),
    bucket(SETS, "$KV.muster_address_sets.>"),
    bucket(IMAGES, "$KV.muster_images.>"),
    log(RUNS, subject::JOURNAL_ALL),
    log(EVENTS, subject::EVENT),
    log(AUDIT, subject::AUDIT),
];

/// The lease beats every two seconds, and nobody wants it back.
const LEASE: &str = "$KV.muster_cluster.lease";

/// A broker's own copy of what the store holds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Twin(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    state: StateDir,
    /// Absent: it could not be opened, or failed.
    db: StdMutex<Option<Db>>,
    marks: StdMutex<Marks>,
    /// One look at the store at a time.
    looking: Mutex<()>,
    /// Counts how often something was found lost.
    lost: watch::Sender<u64>,
    /// Whether there is something that the file on disk does not have yet.
    unsynced: watch::Sender<bool>,
}

impl Twin {
    /// Opens or makes the twin of a state directory. A twin that cannot be
    /// used is logged and set aside; the broker works without it.
    ///
    /// # Errors
    /// [`StateDirError`]: the state directory itself is not usable.
    pub fn open(state: &StateDir, settings: Settings) -> Result<Self, StateDirError> {
        let dir = state.path().join(DIR);
        make_dir(&dir)?;
        let marks = Marks::load(state);
        Ok(Self(Arc::new(Inner {
            settings,
            state: state.clone(),
            db: StdMutex::new(open_or_anew(&dir.join(FILE))),
            marks: StdMutex::new(marks),
            looking: Mutex::new(()),
            lost: watch::Sender::new(0),
            unsynced: watch::Sender::new(false),
        })))
    }

    /// Counts how often the store was found to have gone back: a session that
    /// was opened before holds what is not there any more.
    #[must_use]
    pub fn lost(&self) -> watch::Receiver<u64> {
        self.0.lost.subscribe()
    }

    /// Forgets everything: the store is about to become another one, on
    /// purpose.
    pub async fn reset(&self) {
        self.marks().clear();
        if let Err(error) = self.marks().store(&self.0.state) {
            tracing::warn!(%error, "the marks of the twin could not be removed");
        }
        let _ = self.with(Db::clear).await;
    }

    /// What is told of a write as soon as the store has it.
    #[must_use]
    pub fn witness(&self) -> Arc<dyn Witness> {
        Arc::new(self.clone())
    }

    fn marks(&self) -> std::sync::MutexGuard<'_, Marks> {
        self.0.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works with the file, off the threads that serve. `None`: there is no
    /// twin, or it failed, which is logged, and from then on there is none.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Db) -> Result<T, DbError> + Send + 'static,
    ) -> Option<T> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let mut held = inner.db.lock().unwrap_or_else(PoisonError::into_inner);
            let db = held.as_mut()?;
            match work(db) {
                Ok(value) => Some(value),
                Err(error) => {
                    tracing::error!(
                        %error,
                        "the twin of the store fails; until the next start there is none"
                    );
                    *held = None;
                    None
                }
            }
        });
        done.await.ok().flatten()
    }

    /// The same for what changes it.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Db) -> Result<T, DbError> + Send + 'static,
    ) -> Option<T> {
        let done = self.with(work).await;
        if done.is_some() {
            self.0
                .unsynced
                .send_if_modified(|unsynced| !std::mem::replace(unsynced, true));
        }
        done
    }
}

impl Witness for Twin {
    fn wrote<'a>(
        &'a self,
        stream: &'a str,
        subject: &'a str,
        sequence: u64,
        value: Option<Bytes>,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // Facts come in floods, and nobody is told of them.
            if subject == LEASE || stream == FACTS {
                return;
            }
            let message = Message {
                seq: sequence,
                time: now(),
                subject: subject.to_owned(),
                gone: value.is_none(),
                payload: value.unwrap_or_default(),
            };
            let stream = stream.to_owned();
            let writing = self.write(move |db| {
                // Before it is followed, nothing is known of its beginning.
                match db.stream(&stream)? {
                    Some(_) => db.take(&stream, false, &[message], None),
                    None => Ok(()),
                }
            });
            if timeout(WAIT, writing).await.is_err() {
                tracing::warn!("the disk of the twin is slow; it is not waited for");
            }
        })
    }

    fn forgot<'a>(&'a self, stream: &'a str, subject: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let (stream, subject) = (stream.to_owned(), subject.to_owned());
            self.write(move |db| db.forget(&stream, &subject)).await;
        })
    }
}

/// Opens the file; one that is damaged is set aside for whoever wants to look
/// at it, and a new one begins.
fn open_or_anew(path: &Path) -> Option<Db> {
    let error = match Db::open(path) {
        Ok(db) => return Some(db),
        Err(error) => error,
    };
    if let DbError::Format(_) | DbError::File { .. } = error {
        tracing::error!(%error, "the broker works without its twin of the store");
        return None;
    }
    let aside = PathBuf::from(format!("{}.damaged", path.display()));
    tracing::error!(%error, aside = %aside.display(), "the twin of the store is damaged and begins anew");
    for end in ["", "-wal", "-shm"] {
        let with = |path: &Path| PathBuf::from(format!("{}{end}", path.display()));
        let _ = std::fs::rename(with(path), with(&aside));
    }
    match Db::open(path) {
        Ok(db) => Some(db),
        Err(error) => {
            tracing::error!(%error, "the broker works without its twin of the store");
            None
        }
    }
}

/// Nanoseconds since the epoch.
fn now() -> i64 {
    nanos(jiff::Timestamp::now())
}

fn nanos(at: jiff::Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

/// The inverse of [`nanos`]; `None` for 0, which stands for nothing.
fn time(nanos: i64) -> Option<jiff::Timestamp> {
    match nanos {
        0 => None,
        n => jiff::Timestamp::from_nanosecond(n.into()).ok(),
    }
}
