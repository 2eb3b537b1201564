//! From a restored state directory into NATS: once, by the broker that is
//! started on it, before it does anything else.
//!
//! A marker in `muster_cluster` says how far it is. While it says that the
//! import is not finished, no broker opens its API on what is there; the one
//! with the backup begins again, from nothing.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::PathBuf;

use async_nats::HeaderMap;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::Config as StreamConfig;
use async_nats::jetstream::{Context, ErrorCode};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_protocol::ids::InstanceId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::format::{FormatError, ReadError, Record, Visitor, read};
use super::restore::{ARCHIVE, PENDING, PLAN, Plan};
use super::take::STREAM;
use crate::events::{Events, EventsError};
use crate::inventory::{AccountValue, StoredNode, now_seconds};
use crate::lease::Lease;
use crate::state_dir::{StateDir, StateDirError};
use crate::store::append::{Append, append_all};
use crate::store::error::StreamError;
use crate::store::kv::{BucketConfig, Kv, KvError, ensure_bucket};
use crate::store::read::read_from;
use crate::store::stream::purge_subject;
use crate::twin::{Past, Sign, WentBack};

/// The bucket with the marker.
const CLUSTER: &str = "muster_cluster";
/// Its stream.
const CLUSTER_STREAM: &str = "KV_muster_cluster";
/// The marker's key.
const MARKER: &str = "restore";
/// What of the bucket is this broker's own: not imported, not purged.
const OWN: [&str; 3] = ["lease", "key-list", MARKER];
/// Messages that are appended at a time.
const BATCH: usize = 256;
/// Bytes that are appended at a time, about.
const BATCH_BYTES: usize = 4 << 20;

/// Why what was restored is not in NATS yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The server has data of muster already.
    #[error(
        "a backup is to be put into NATS, but `{stream}` there is not empty; give the restored \
         broker an empty NATS server, or delete muster's streams on this one if nobody needs them"
    )]
    NotEmpty {
        /// A stream that holds something.
        stream: String,
    },
    /// Somebody else has not finished.
    #[error(
        "a backup is being put into NATS by another broker, or was and is not finished; start the \
         broker of the restored state directory"
    )]
    Unfinished,
    /// The backup on the disk.
    #[error("the backup in {}: {source}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why, and in which part.
        source: FormatError,
    },
    /// A part of it.
    #[error("the backup in {}: `{stream}` {what}", .path.display())]
    Part {
        /// The file.
        path: PathBuf,
        /// Which stream.
        stream: String,
        /// What is wrong.
        what: String,
    },
    /// This broker may not write now.
    #[error("this broker is not the active one now")]
    NotActive,
    /// The disk.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// NATS.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// NATS.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// NATS.
    #[error(transparent)]
    Events(#[from] EventsError),
}

impl ImportError {
    /// Whether waiting would not cure it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NotEmpty { .. } | Self::Format { .. } | Self::Part { .. } | Self::State(_)
        )
    }
}

/// How far the newest import into this NATS server is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    id: InstanceId,
    done: bool,
}

/// Whether a backup waits in the state directory.
///
/// # Errors
/// [`StateDirError`]: the note of it is damaged.
pub fn is_pending(state: &StateDir) -> Result<bool, StateDirError> {
    Ok(state.load::<Plan>(PLAN)?.is_some())
}

/// Puts a backup that waits in the state directory into NATS. Nothing waits
/// on most days. Only with the lease, and before a session is opened.
///
/// # Errors
/// [`ImportError`]; to be called again unless it is final.
pub async fn import(js: &Context, state: &StateDir, lease: &Lease) -> Result<(), ImportError> {
    let bucket: Kv<Marker> = Box::pin(ensure_bucket(js, BucketConfig::new(CLUSTER))).await?;
    let marker = bucket.get(MARKER).await?;
    let Some(plan) = state.load::<Plan>(PLAN)? else {
        return match marker {
            Some(entry) if !entry.value.done => Err(ImportError::Unfinished),
            _ => Ok(()),
        };
    };
    let importer = Importer {
        js,
        lease,
        archive: state.path().join(PENDING).join(ARCHIVE),
        plan: &plan,
    };
    let mine = |done| Marker { id: plan.id, done };
    if marker
        .as_ref()
        .is_none_or(|entry| entry.value != mine(true))
    {
        let revision = match marker {
            // One that was not finished, this or another: nobody's.
            Some(entry) if !entry.value.done => {
                importer.clear().await?;
                importer.active()?;
                bucket.update(MARKER, &mine(false), entry.revision).await?
            }
            other => {
                importer.require_empty().await?;
                importer.active()?;
                match other {
                    Some(entry) => bucket.update(MARKER, &mine(false), entry.revision).await?,
                    None => bucket.create(MARKER, &mine(false)).await?,
                }
            }
        };
        tracing::info!(backup = %plan.made, "putting a backup into NATS");
        let messages = importer.fill().await?;
        importer.tell().await?;
        importer.active()?;
        bucket.update(MARKER, &mine(true), revision).await?;
        tracing::info!(backup = %plan.made, messages, "the backup is in NATS");
    }
    forget(state)
}

/// The backup on the disk is not needed any more.
fn forget(state: &StateDir) -> Result<(), ImportError> {
    let path = state.path().join(PENDING);
    let at = |source| StateDirError::Io {
        action: "remove",
        path: path.clone(),
        source,
    };
    // The plan last: without it nobody would look for the rest.
    for name in [ARCHIVE, "plan.json"] {
        match fs::remove_file(path.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(e).into()),
            _ => {}
        }
    }
    match fs::remove_dir_all(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(e).into()),
        _ => Ok(()),
    }
}

struct Importer<'a> {
    js: &'a Context,
    lease: &'a Lease,
    archive: PathBuf,
    plan: &'a Plan,
}

/// What the reader of the archive hands on.
enum Item {
    Settings(String, Box<StreamConfig>),
    Record(Record),
    Error(ImportError),
}

impl Importer<'_> {
    fn active(&self) -> Result<(), ImportError> {
        self.lease.epoch().map(drop).ok_or(ImportError::NotActive)
    }

    async fn streams(&self) -> Result<Vec<String>, ImportError> {
        let names: Vec<String> =
            self.js
                .stream_names()
                .try_collect()
                .await
                .map_err(|e| StreamError::NoAnswer {
                    what: "which streams there are".into(),
                    reason: e.to_string(),
                })?;
        Ok(names.into_iter().filter(|name| is_ours(name)).collect())
    }

    /// The subjects of `muster_cluster` that are not this broker's own.
    async fn cluster_subjects(&self) -> Result<Vec<String>, ImportError> {
        let mut messages = read_from(self.js, CLUSTER_STREAM, ">", 1).await?;
        let mut subjects = Vec::new();
        while let Some(message) = messages.try_next().await? {
            let own = key(&message.subject).is_some_and(|key| OWN.contains(&key));
            if !own {
                subjects.push(message.subject);
            }
        }
        Ok(subjects)
    }

    async fn require_empty(&self) -> Result<(), ImportError> {
        for stream in self.streams().await? {
            let empty = if stream == CLUSTER_STREAM {
                self.cluster_subjects().await?.is_empty()
            } else {
                let found = self
                    .js
                    .get_stream(&stream)
                    .await
                    .map_err(|e| no_answer(&stream, &e))?;
                found.cached_info().state.messages == 0
            };
            if !empty {
                return Err(ImportError::NotEmpty { stream });
            }
        }
        Ok(())
    }

    /// Takes away what an import that was not finished has written.
    async fn clear(&self) -> Result<(), ImportError> {
        tracing::warn!("an import was not finished; it begins again");
        for stream in self.streams().await? {
            self.active()?;
            if stream == CLUSTER_STREAM {
                for subject in self.cluster_subjects().await? {
                    purge_subject(self.js, &stream, &subject).await?;
                }
            } else {
                purge_subject(self.js, &stream, ">").await?;
            }
        }
        Ok(())
    }

    /// Appends everything; returns how many messages that were.
    async fn fill(&self) -> Result<u64, ImportError> {
        // All credentials from before are void: those of nodes that are not
        // known any more, and those with roles that are not given any more.
        let until = now_seconds();
        let mut items = read_archive(self.archive.clone());
        let (mut stream, mut batch, mut bytes) = (String::new(), Vec::new(), 0);
        let mut messages = 0;
        while let Some(item) = items.recv().await {
            match item {
                Item::Error(error) => return Err(error),
                Item::Settings(name, settings) => {
                    self.append(&stream, &mut batch).await?;
                    bytes = 0;
                    self.ensure(&name, *settings).await?;
                    stream = name;
                }
                Item::Record(record) => {
                    let record = self.moved_on(&stream, record, until)?;
                    let Some(message) = record else { continue };
                    bytes += message.payload.len();
                    batch.push(message);
                    messages += 1;
                    if batch.len() >= BATCH || bytes >= BATCH_BYTES {
                        self.append(&stream, &mut batch).await?;
                        bytes = 0;
                    }
                }
            }
        }
        self.append(&stream, &mut batch).await?;
        Ok(messages)
    }

    async fn append(&self, stream: &str, batch: &mut Vec<Append>) -> Result<(), ImportError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.active()?;
        for result in append_all(self.js, stream, batch).await {
            result?;
        }
        batch.clear();
        Ok(())
    }

    /// A stream that is not there is made as it was; without a limit of its
    /// bytes, which whoever uses it sets.
    async fn ensure(&self, name: &str, mut settings: StreamConfig) -> Result<(), ImportError> {
        self.active()?;
        match self.js.get_stream(name).await {
            Ok(_) => return Ok(()),
            Err(e) => match e.kind() {
                GetStreamErrorKind::JetStream(e)
                    if e.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
                _ => return Err(no_answer(name, &e).into()),
            },
        }
        settings.max_bytes = -1;
        self.js
            .create_stream(settings)
            .await
            .map_err(|e| no_answer(name, &e))?;
        Ok(())
    }

    /// A message as it is in a cluster that nodes have seen the future of.
    fn moved_on(
        &self,
        stream: &str,
        record: Record,
        until: u64,
    ) -> Result<Option<Append>, ImportError> {
        let leap = self.plan.leap;
        let damaged = |what: String| ImportError::Part {
            path: self.archive.clone(),
            stream: stream.to_owned(),
            what,
        };
        let subject = record.note.subject;
        let key = key(&subject).unwrap_or_default();
        let payload = match (stream, key) {
            (CLUSTER_STREAM, own) if OWN.contains(&own) => return Ok(None),
            (CLUSTER_STREAM, "serial") => {
                let last: u32 = value(&record.payload).map_err(damaged)?;
                json(&last.saturating_add(leap.serials)).map_err(damaged)?
            }
            (CLUSTER_STREAM, "account") => {
                let account: AccountValue = value(&record.payload).map_err(damaged)?;
                json(&account.nobody_before(until)).map_err(damaged)?
            }
            ("KV_muster_nodes", _) => {
                let node: StoredNode = value(&record.payload).map_err(damaged)?;
                json(&node.moved_on(leap.epochs, until + 1)).map_err(damaged)?
            }
            _ => record.payload,
        };
        let mut headers = HeaderMap::new();
        for (name, value) in record.note.headers {
            let (Ok(name), Ok(value)) = (
                name.parse::<async_nats::HeaderName>(),
                value.parse::<async_nats::HeaderValue>(),
            ) else {
                return Err(damaged(
                    "holds a message with a header that cannot be".into(),
                ));
            };
            headers.append(name, value);
        }
        let mut message = Append::new(subject, payload);
        message.headers = headers;
        Ok(Some(message))
    }

    /// Says in the cluster's events what has happened.
    async fn tell(&self) -> Result<(), ImportError> {
        let made = self.plan.made;
        // Nodes that have moved on are to say what they did since.
        let bucket = Box::pin(ensure_bucket(self.js, BucketConfig::new(CLUSTER))).await?;
        let past = Past::load(bucket, self.lease.clone()).await?;
        past.add(WentBack {
            id: self.plan.id,
            since: made,
            found: self.plan.restored,
            sign: Sign::Backup,
            // Done by the import itself.
            leap: false,
            what: format!("the cluster was restored from a backup of {made}"),
        })
        .await?;
        let events = Events::open(self.js.clone(), self.lease.clone(), crate::events::KEEP).await?;
        events
            .emit(
                "cluster.restored",
                "cluster",
                format!(
                    "the cluster was restored from a backup of {made}: of what happened after that \
                     only runs come back, as far as nodes still know of them, and nodes that \
                     enrolled after that must enrol again"
                ),
            )
            .await;
        Ok(())
    }
}

/// The key of a value that muster writes without an encoding.
fn key(subject: &str) -> Option<&str> {
    subject
        .strip_prefix("$KV.")?
        .split_once('.')
        .map(|(_, key)| key)
}

fn value<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    serde_json::from_slice(payload).map_err(|e| format!("holds what cannot be read: {e}"))
}

fn json<T: Serialize>(value: &T) -> Result<Bytes, String> {
    serde_json::to_vec(value)
        .map(Into::into)
        .map_err(|e| format!("holds what has no JSON form: {e}"))
}

fn no_answer(stream: &str, error: &dyn std::error::Error) -> StreamError {
    StreamError::NoAnswer {
        what: format!("stream `{stream}`"),
        reason: error.to_string(),
    }
}

/// Whether a stream of that name is muster's.
pub(super) fn is_ours(stream: &str) -> bool {
    let rest = stream
        .strip_prefix("MUSTER_")
        .or_else(|| stream.strip_prefix("KV_muster_"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && rest.len() <= 100
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    })
}

/// Whether a piece of a stream's part can be put back.
pub(super) fn readable(stream: &str, first: bool, data: &[u8]) -> Result<(), String> {
    if first {
        let settings: StreamConfig = value(data)?;
        return if settings.name == stream {
            Ok(())
        } else {
            Err("has the settings of another stream".into())
        };
    }
    let record = Record::decode(data).ok_or("holds a message that cannot be read")?;
    let prefix = match stream.strip_prefix("KV_") {
        Some(bucket) => format!("$KV.{bucket}."),
        None => "m1.".to_owned(),
    };
    let subject = &record.note.subject;
    let plain = !subject.contains(['*', '>', ' ', '\t', '\r', '\n']);
    if subject.starts_with(&prefix) && plain {
        Ok(())
    } else {
        Err("holds a message of another subject".into())
    }
}

fn read_archive(path: PathBuf) -> mpsc::Receiver<Item> {
    let (send, receive) = mpsc::channel(BATCH);
    tokio::task::spawn_blocking(move || {
        let format = |source| ImportError::Format {
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) => {
                let _ = send.blocking_send(Item::Error(format(e.into())));
                return;
            }
        };
        let mut pump = Pump {
            send: send.clone(),
            stream: None,
            first: false,
        };
        let error = match read(BufReader::new(file), &mut pump) {
            Ok(_) | Err(ReadError::Visitor(Stop::Gone)) => return,
            Err(ReadError::Format(source)) => format(source),
            Err(ReadError::Visitor(Stop::Bad(what))) => ImportError::Part {
                path: path.clone(),
                stream: pump.stream.unwrap_or_default(),
                what,
            },
        };
        let _ = send.blocking_send(Item::Error(error));
    });
    receive
}

struct Pump {
    send: mpsc::Sender<Item>,
    /// Of the part that is being read, if it is a stream.
    stream: Option<String>,
    first: bool,
}

enum Stop {
    /// Nobody takes it any more.
    Gone,
    Bad(String),
}

impl Visitor for Pump {
    type Error = Stop;

    fn part(&mut self, name: &str) -> Result<(), Stop> {
        self.stream = name.strip_prefix(STREAM).map(str::to_owned);
        self.first = true;
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> Result<(), Stop> {
        let Some(stream) = &self.stream else {
            return Ok(());
        };
        readable(stream, self.first, data).map_err(Stop::Bad)?;
        let item = if std::mem::take(&mut self.first) {
            Item::Settings(stream.clone(), Box::new(value(data).map_err(Stop::Bad)?))
        } else {
            Record::decode(data)
                .map(Item::Record)
                .ok_or_else(|| Stop::Bad("holds a message that cannot be read".into()))?
        };
        self.send.blocking_send(item).map_err(|_| Stop::Gone)
    }

    fn end(&mut self) -> Result<(), Stop> {
        self.stream = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_muster_s_own_streams_are_touched() {
        for ours in ["MUSTER_RUNS", "KV_muster_nodes"] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["ORDERS", "KV_other", "MUSTER_", "MUSTER_a.b", "KV_muster_>"] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
