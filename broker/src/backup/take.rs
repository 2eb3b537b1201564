//! Making a backup while everything runs.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::format::{FORMAT, Framer, Head, MAX_FRAME, Record, RecordNote};
use crate::authority::Authority;
use crate::config::{Config, ConfigError};
use crate::lease::Lease;
use crate::runs::{self, Engine};
use crate::state_dir::{StateDir, StateDirError, read_private};
use crate::store::error::StreamError;
use crate::store::read::{StoredMessage, read_from, read_on};

/// Frames that wait for a slow reader.
const WAITING: usize = 16;
/// How long it may take to catch up with those who write to a bucket.
const QUIET_WITHIN: Duration = Duration::from_secs(30);
/// What muster's streams and buckets are called.
const OURS: [&str; 2] = ["MUSTER_", "KV_muster_"];
/// Prefix of the stream of a bucket.
const BUCKET: &str = "KV_";
/// Name of the part of a file, before its path in the state directory.
pub(super) const FILE: &str = "file ";
/// Name of the part of a stream, before its name.
pub(super) const STREAM: &str = "stream ";

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// This broker may not speak for the cluster now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// The broker ends.
    #[error("the broker is ending; make the backup when it is back")]
    Ending,
    /// A stream could not be read.
    #[error("the stream `{stream}` could not be read: {source}")]
    Stream {
        /// Which.
        stream: String,
        /// Why.
        source: StreamError,
    },
    /// A bucket is written to faster than it can be read.
    #[error("the bucket `{0}` changes all the time; make the backup when less is going on")]
    Restless(String),
    /// A message that does not fit.
    #[error("message {sequence} of `{stream}` does not fit into a backup")]
    TooLarge {
        /// Where.
        stream: String,
        /// Which.
        sequence: u64,
    },
    /// The streams could not be listed.
    #[error("NATS does not say which streams there are: {0}")]
    List(String),
    /// A file.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The broker's settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What cannot be written as JSON.
    #[error("a part of the backup has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
    /// Whoever asked is gone.
    #[error("whoever asked for the backup has gone away")]
    Gone,
}

/// From what a backup is made.
#[derive(Clone, Debug)]
pub struct Source {
    /// JetStream of muster's account.
    pub js: Context,
    /// The broker's settings: they name the state directory.
    pub config: std::sync::Arc<Config>,
    /// The keys.
    pub authority: Authority,
    /// Whether this broker speaks for the cluster.
    pub lease: Lease,
    /// Runs: none is forgotten while they are read.
    pub engine: Engine,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// Makes a backup, piece by piece as it is read. An error is the last piece:
/// what came before it is no backup.
pub fn take(
    source: Source,
    permit: OwnedSemaphorePermit,
) -> mpsc::Receiver<Result<Bytes, TakeError>> {
    let (send, receive) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let _permit = permit;
        let cancel = source.cancel.clone();
        let done = cancel
            .run_until_cancelled(Box::pin(write(&source, &send)))
            .await
            .unwrap_or(Err(TakeError::Ending));
        if let Err(error) = done {
            tracing::warn!(%error, "a backup was not finished");
            let _ = send.send(Err(error)).await;
        }
    });
    receive
}

type Out = mpsc::Sender<Result<Bytes, TakeError>>;

async fn write(source: &Source, out: &Out) -> Result<(), TakeError> {
    let broker_epoch = source.lease.epoch().ok_or(TakeError::NotActive)?;
    let list = source.authority.list();
    let head = Head {
        format: FORMAT,
        muster: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: list.cluster,
        made: Timestamp::now(),
        broker_epoch,
        key_epoch: list.epoch,
    };
    let (framer, first) = Framer::begin(&head)?;
    put(out, first).await?;
    let mut taker = Taker {
        source,
        framer,
        out,
    };
    // No run is forgotten in the middle of being read: its head without its
    // end would be a run that is still open.
    let kept = source.engine.keep_all().await;
    for stream in streams(&source.js).await? {
        if stream.starts_with(BUCKET) {
            taker.bucket(&stream).await?;
        } else {
            taker.stream(&stream).await?;
        }
    }
    drop(kept);
    // Last: a key that was made meanwhile is with what it belongs to.
    taker.files().await?;
    // Another broker may have written meanwhile what this one did not see.
    if source.lease.epoch() != Some(broker_epoch) {
        return Err(TakeError::NotActive);
    }
    let last = taker.framer.finish(Timestamp::now())?;
    put(out, last).await
}

async fn put(out: &Out, bytes: Bytes) -> Result<(), TakeError> {
    out.send(Ok(bytes)).await.map_err(|_| TakeError::Gone)
}

/// Muster's streams, in the order in which they must be read.
async fn streams(js: &Context) -> Result<Vec<String>, TakeError> {
    let mut names: Vec<String> = js
        .stream_names()
        .try_filter(|name| {
            let ours = OURS.iter().any(|prefix| name.starts_with(prefix));
            std::future::ready(ours)
        })
        .try_collect()
        .await
        .map_err(|e| TakeError::List(e.to_string()))?;
    // Runs name nodes; an invite is used up before its node is there, and
    // goes on where it was when its node is missing.
    let rank = |name: &str| match name {
        runs::STREAM => 0,
        "KV_muster_cluster" => 2,
        "KV_muster_nodes" => 3,
        "KV_muster_invites" => 5,
        // After the histories that name them.
        "KV_muster_bundles" => 6,
        name if name.starts_with(BUCKET) => 4,
        _ => 1,
    };
    names.sort_by(|a, b| (rank(a), a).cmp(&(rank(b), b)));
    Ok(names)
}

struct Taker<'a> {
    source: &'a Source,
    framer: Framer,
    out: &'a Out,
}

impl Taker<'_> {
    async fn files(&mut self) -> Result<(), TakeError> {
        let state = StateDir::open(&self.source.config.state)?;
        let keys = state.keys();
        let mut paths = vec!["admin.token".to_owned(), "nats/port".to_owned()];
        let listed = std::fs::read_dir(&keys).and_then(|dir| {
            dir.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<Vec<String>>>()
        });
        let listed = listed.map_err(|source| StateDirError::Io {
            action: "read",
            path: keys,
            source,
        })?;
        // The brokers' signing keys stay behind: a restored cluster revokes
        // them all.
        paths.extend(
            listed
                .into_iter()
                .filter(|name| !name.starts_with('.') && !name.starts_with("broker-"))
                .map(|name| format!("keys/{name}")),
        );
        paths.sort();
        for path in paths {
            if let Some(text) = read(&state.path().join(&path))? {
                self.file(&path, text.as_bytes()).await?;
            }
        }
        let list = serde_json::to_vec(&self.source.authority.signed_list())?;
        self.file("key-list.json", &list).await?;
        let config = self.source.config.to_toml()?;
        self.file("broker.toml", config.as_bytes()).await
    }

    async fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), TakeError> {
        let frame = self.framer.part(&format!("{FILE}{path}"));
        put(self.out, frame).await?;
        let frame = self.framer.data(bytes);
        put(self.out, frame).await?;
        let frame = self.framer.end(None);
        put(self.out, frame).await
    }

    async fn begin(&mut self, stream: &str) -> Result<u64, TakeError> {
        let (last, settings) = self.look(stream).await?;
        let frame = self.framer.part(&format!("{STREAM}{stream}"));
        put(self.out, frame).await?;
        let settings = serde_json::to_vec(&settings)?;
        let frame = self.framer.data(&settings);
        put(self.out, frame).await?;
        Ok(last)
    }

    async fn look(
        &self,
        stream: &str,
    ) -> Result<(u64, async_nats::jetstream::stream::Config), TakeError> {
        let found = self
            .source
            .js
            .get_stream(stream)
            .await
            .map_err(|e| TakeError::Stream {
                stream: stream.to_owned(),
                source: StreamError::NoAnswer {
                    what: "its settings".into(),
                    reason: e.to_string(),
                },
            })?;
        let info = found.cached_info();
        Ok((info.state.last_sequence, info.config.clone()))
    }

    async fn record(&mut self, stream: &str, message: StoredMessage) -> Result<(), TakeError> {
        let sequence = message.sequence;
        let too_large = || TakeError::TooLarge {
            stream: stream.to_owned(),
            sequence,
        };
        let record = Record {
            note: RecordNote {
                sequence,
                subject: message.subject,
                time: message.time,
                headers: headers(&message.headers),
            },
            payload: message.payload,
        };
        let bytes = record.encode().ok_or_else(too_large)?;
        debug_assert!(bytes.len() <= MAX_FRAME);
        let frame = self.framer.data(&bytes);
        put(self.out, frame).await
    }

    /// Everything up to the end that the stream has now.
    async fn stream(&mut self, stream: &str) -> Result<(), TakeError> {
        let fail = |source| TakeError::Stream {
            stream: stream.to_owned(),
            source,
        };
        let mut position = self.begin(stream).await?;
        let mut messages = read_from(&self.source.js, stream, ">", 1)
            .await
            .map_err(fail)?;
        while let Some(message) = messages.try_next().await.map_err(fail)? {
            position = position.max(message.sequence);
            self.record(stream, message).await?;
        }
        let frame = self.framer.end(Some(position));
        put(self.out, frame).await
    }

    /// The newest value of each key, as they were together at one moment.
    async fn bucket(&mut self, stream: &str) -> Result<(), TakeError> {
        let fail = |source| TakeError::Stream {
            stream: stream.to_owned(),
            source,
        };
        let mut position = self.begin(stream).await?;
        let js = self.source.js.clone();
        let gather = async {
            let mut newest: BTreeMap<String, StoredMessage> = BTreeMap::new();
            let mut messages = read_on(&js, stream, ">", 1).await?;
            while let Some(message) = messages.try_next().await? {
                position = position.max(message.sequence);
                newest.insert(message.subject.clone(), message);
            }
            Ok(newest)
        };
        let newest = timeout(QUIET_WITHIN, gather)
            .await
            .map_err(|_| TakeError::Restless(stream.to_owned()))?
            .map_err(fail)?;
        let mut values: Vec<_> = newest.into_values().collect();
        values.sort_by_key(|message| message.sequence);
        for message in values {
            if message.headers.get("KV-Operation").is_none() {
                self.record(stream, message).await?;
            }
        }
        let frame = self.framer.end(Some(position));
        put(self.out, frame).await
    }
}

/// A file that may not be there. Private ones must be private; others (the
/// certificate of the authority, a port) may be read by all.
fn read(path: &Path) -> Result<Option<zeroize::Zeroizing<String>>, StateDirError> {
    match read_private(path) {
        Err(StateDirError::TooOpen { .. }) => std::fs::read_to_string(path)
            .map(|text| Some(text.into()))
            .map_err(|source| StateDirError::Io {
                action: "read",
                path: path.to_owned(),
                source,
            }),
        other => other,
    }
}

/// Without those that tell the server what to do.
fn headers(all: &HeaderMap) -> Vec<(String, String)> {
    all.iter()
        .filter(|(name, _)| {
            let name: &str = name.as_ref();
            !name.to_ascii_lowercase().starts_with("nats-")
        })
        .flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values
                .iter()
                .map(move |value| (name.to_owned(), value.as_str().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_to_the_server_is_not_kept() {
        let mut all = HeaderMap::new();
        all.insert("Nats-Msg-Id", "x");
        all.insert("Nats-Expected-Last-Subject-Sequence", "4");
        all.insert("Muster-Output", "{}");
        assert_eq!(
            headers(&all),
            [("Muster-Output".to_owned(), "{}".to_owned())]
        );
    }
}
