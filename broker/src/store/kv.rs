//! Named values with history and compare-and-swap.
//!
//! A bucket is a stream `KV_<name>` with subjects `$KV.<name>.<key>`, as in
//! every NATS client, so `nats kv` can look at it. The stream is made here and
//! not by the client library, which cannot read the account information of a
//! 2.9 server.
//!
//! Reads ask the stream's leader, so a broker always sees what it wrote.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::{Operation, Store};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream as JsStream};
use async_nats::jetstream::{Context, kv};
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

mod key;

use self::key::{decode, encode};
use super::Pause;
use super::append::{Append, append};
use super::error::{StreamError, reasons};
use super::read::read_from;
use super::stream::{StreamSettings, ensure_stream, last_of_subject, purge_subject, subjects};

pub(crate) const OPERATION: &str = "KV-Operation";

/// Why something about a bucket failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// Somebody else wrote first (or, for a create, the key exists). Nothing
    /// was stored: read again, then decide again.
    #[error("`{key}` in `{bucket}` has changed in the meantime; read it again")]
    Conflict {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// A key that cannot be: empty, or too long.
    #[error("a key of {len} bytes is not possible in a bucket (1 to {max})", len = .0, max = key::MAX_KEY)]
    BadKey(usize),
    /// A value that is not what this version of muster writes.
    #[error(
        "the value of `{key}` in `{bucket}` (revision {revision}) cannot be read: {source}; was it written by a newer muster?"
    )]
    Decode {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The value's revision.
        revision: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A value that cannot be written as JSON.
    #[error("cannot encode a value for `{key}`: {source}")]
    Encode {
        /// The key.
        key: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// Something else: full, not ready, no answer.
    #[error("bucket `{bucket}`: {source}")]
    Stream {
        /// The bucket.
        bucket: String,
        /// What happened.
        source: StreamError,
    },
    /// A watch could not begin.
    #[error("cannot watch the bucket `{bucket}`: {reason}")]
    Watch {
        /// The bucket.
        bucket: String,
        /// What the client said.
        reason: String,
    },
}

/// Whoever is told of a write as soon as the store has it, before the writer
/// goes on.
pub trait Witness: std::fmt::Debug + Send + Sync {
    /// The stream has a new value of a key, or its deletion (`None`), with
    /// that sequence.
    fn wrote<'a>(
        &'a self,
        stream: &'a str,
        subject: &'a str,
        sequence: u64,
        value: Option<Bytes>,
    ) -> BoxFuture<'a, ()>;

    /// Every trace of a key was removed.
    fn forgot<'a>(&'a self, stream: &'a str, subject: &'a str) -> BoxFuture<'a, ()>;
}

/// Settings of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketConfig {
    /// Letters, digits, `-` and `_`.
    pub name: String,
    /// Values kept for each key, 1 to 64, the newest included.
    pub history: u8,
    /// Largest size in bytes; `None` for no limit of its own.
    pub max_bytes: Option<u64>,
    /// Age after which a value goes; `None` for never.
    pub max_age: Option<Duration>,
}

impl BucketConfig {
    /// A bucket that keeps only the newest value, for ever, without a limit.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            history: 1,
            max_bytes: None,
            max_age: None,
        }
    }

    fn settings(&self) -> StreamSettings {
        let subject = format!("$KV.{}.>", self.name);
        StreamSettings {
            max_bytes: self.max_bytes,
            max_per_subject: Some(u64::from(self.history.clamp(1, 64))),
            max_age: self.max_age,
            allow_rollup: true,
            allow_delete: false,
            allow_direct: true,
            // The window may not be longer than the age.
            duplicate_window: self.max_age.map_or(Duration::from_secs(120), |age| {
                age.min(Duration::from_secs(120))
            }),
            ..StreamSettings::journal(&stream_name(&self.name), "muster state", &[&subject])
        }
    }
}

fn stream_name(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// Makes the bucket, or brings an existing one to these settings.
///
/// # Errors
/// [`KvError::Stream`], for all reasons of [`ensure_stream`].
pub async fn ensure_bucket<T>(js: &Context, config: BucketConfig) -> Result<Kv<T>, KvError>
where
    T: Serialize + DeserializeOwned,
{
    let fail = |source| KvError::Stream {
        bucket: config.name.clone(),
        source,
    };
    let stream = ensure_stream(js, &config.settings()).await.map_err(fail)?;
    let store = js.get_key_value(&config.name).await.map_err(|e| {
        fail(StreamError::NoAnswer {
            what: "open the bucket".into(),
            reason: reasons(&e),
        })
    })?;
    Ok(Kv {
        js: js.clone(),
        stream: Arc::new(stream),
        store: Arc::new(store),
        bucket: config.name,
        witness: None,
        value: PhantomData,
    })
}

/// A bucket of values of one type, kept as JSON. Cheap to clone.
pub struct Kv<T> {
    js: Context,
    // A handle holds the whole configuration: twenty of them by value would
    // not fit the stack on which a broker opens its buckets.
    stream: Arc<JsStream>,
    store: Arc<Store>,
    bucket: String,
    witness: Option<Arc<dyn Witness>>,
    value: PhantomData<fn() -> T>,
}

impl<T> Clone for Kv<T> {
    fn clone(&self) -> Self {
        Self {
            js: self.js.clone(),
            stream: self.stream.clone(),
            store: self.store.clone(),
            bucket: self.bucket.clone(),
            witness: self.witness.clone(),
            value: PhantomData,
        }
    }
}

impl<T> std::fmt::Debug for Kv<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kv")
            .field("bucket", &self.bucket)
            .finish_non_exhaustive()
    }
}

/// A value with the revision to name when it is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvEntry<T> {
    /// The key as it was given.
    pub key: String,
    /// The value.
    pub value: T,
    /// Its revision: rises with every write to the bucket.
    pub revision: u64,
    /// When the server stored it.
    pub time: jiff::Timestamp,
}

/// Everything in a bucket at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<T> {
    /// The entries, in the order in which they were written.
    pub entries: Vec<KvEntry<T>>,
    /// Revision of the last write that is in it: watch from the next one.
    pub revision: u64,
}

/// A change of a watched bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// A key has a new value.
    Put(KvEntry<T>),
    /// A key is gone.
    Deleted {
        /// The key.
        key: String,
        /// Revision of the deletion.
        revision: u64,
    },
}

impl<T: Serialize + DeserializeOwned> Kv<T> {
    /// The same bucket, and `witness` is told of what is written to it.
    #[must_use]
    pub fn witnessed(mut self, witness: Arc<dyn Witness>) -> Self {
        self.witness = Some(witness);
        self
    }

    /// Name of the bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// [`KvError::Decode`], [`KvError::Stream`].
    pub async fn get(&self, key: &str) -> Result<Option<KvEntry<T>>, KvError> {
        match self.last(key).await? {
            Some(Last {
                payload: Some(payload),
                revision,
                time,
            }) => Ok(Some(self.entry(
                key.to_owned(),
                &payload,
                revision,
                time,
            )?)),
            _ => Ok(None),
        }
    }

    /// Stores a value for a key that has none, and returns its revision.
    ///
    /// # Errors
    /// [`KvError::Conflict`] when the key has a value, [`KvError::Stream`].
    pub async fn create(&self, key: &str, value: &T) -> Result<u64, KvError> {
        match self.write(key, value, Some(0)).await {
            // The key may have been deleted before: then its last message is
            // the deletion, and that is what a new value builds on.
            Err(KvError::Conflict { bucket, key }) => match self.last(&key).await? {
                Some(Last {
                    payload: None,
                    revision,
                    ..
                }) => self.write(&key, value, Some(revision)).await,
                _ => Err(KvError::Conflict { bucket, key }),
            },
            result => result,
        }
    }

    /// Replaces the value that has `revision`, and returns the new revision.
    ///
    /// # Errors
    /// [`KvError::Conflict`] when the key has another revision by now,
    /// [`KvError::Stream`].
    pub async fn update(&self, key: &str, value: &T, revision: u64) -> Result<u64, KvError> {
        self.write(key, value, Some(revision)).await
    }

    /// Stores a value whatever was there before, and returns its revision.
    ///
    /// # Errors
    /// [`KvError::Stream`].
    pub async fn put(&self, key: &str, value: &T) -> Result<u64, KvError> {
        self.write(key, value, None).await
    }

    /// Deletes the value that has `revision`, and returns the revision of the
    /// deletion. Watchers are told.
    ///
    /// # Errors
    /// [`KvError::Conflict`], [`KvError::Stream`].
    pub async fn delete(&self, key: &str, revision: u64) -> Result<u64, KvError> {
        let mut message = Append::new(self.subject(key)?, Bytes::new()).expecting(revision);
        message.headers.insert(OPERATION, "DEL");
        self.append(key, &message).await
    }

    /// Removes every trace of a key, its history and its deletion included.
    /// Watchers are NOT told: delete it first.
    ///
    /// # Errors
    /// [`KvError::Stream`].
    pub async fn forget(&self, key: &str) -> Result<(), KvError> {
        let (stream, subject) = (stream_name(&self.bucket), self.subject(key)?);
        purge_subject(&self.js, &stream, &subject)
            .await
            .map_err(|source| self.failed(source))?;
        if let Some(witness) = &self.witness {
            witness.forgot(&stream, &subject).await;
        }
        Ok(())
    }

    /// All keys that have, or had, a value: cheap, whatever the values' size.
    ///
    /// # Errors
    /// [`KvError::Stream`].
    pub async fn keys(&self) -> Result<Vec<String>, KvError> {
        let filter = format!("$KV.{}.>", self.bucket);
        let found = subjects(&self.js, &stream_name(&self.bucket), &filter).await;
        let found = found.map_err(|source| self.failed(source))?;
        Ok(found
            .iter()
            .filter_map(|(subject, _)| self.key(subject))
            .collect())
    }

    /// All entries: every key that has a value, with one that it had since
    /// this was called.
    ///
    /// # Errors
    /// [`KvError::Decode`] for the first value that cannot be read,
    /// [`KvError::Stream`].
    pub async fn list(&self) -> Result<Snapshot<T>, KvError> {
        let name = stream_name(&self.bucket);
        let filter = format!("$KV.{}.>", self.bucket);
        let mut messages = read_from(&self.js, &name, &filter, 1)
            .await
            .map_err(|source| self.failed(source))?;
        // Raw first: an old value in the history must not stop anybody.
        let mut newest = std::collections::BTreeMap::new();
        let mut last = 0;
        while let Some(message) = messages.try_next().await.map_err(|e| self.failed(e))? {
            last = message.sequence;
            newest.insert(message.subject.clone(), message);
        }
        // A key that is rewritten while it waits to be read is not met: its old
        // value is gone, and the new one is beyond the end.
        for (subject, _) in subjects(&self.js, &name, &filter)
            .await
            .map_err(|e| self.failed(e))?
        {
            if !newest.contains_key(&subject)
                && let Some(message) = last_of_subject(&self.js, &name, &subject)
                    .await
                    .map_err(|e| self.failed(e))?
            {
                newest.insert(subject, message);
            }
        }
        let mut entries = Vec::with_capacity(newest.len());
        for (subject, message) in newest {
            if is_gone(&message.headers) {
                continue;
            }
            let Some(key) = self.key(&subject) else {
                tracing::warn!(
                    bucket = self.bucket,
                    subject,
                    "a key that muster never writes"
                );
                continue;
            };
            entries.push(self.entry(key, &message.payload, message.sequence, message.time)?);
        }
        entries.sort_by_key(|entry| entry.revision);
        Ok(Snapshot {
            entries,
            revision: last,
        })
    }

    /// Changes of the bucket with revision `from` or later, as they come, for
    /// ever. After [`Kv::list`], watch from its revision plus one: nothing is
    /// missed, although values that were replaced at once may be left out.
    /// Outages and restarts of the server are bridged (and logged). A value that
    /// cannot be read is an `Err` item and does not end the watch.
    ///
    /// # Errors
    /// [`KvError::Watch`] when it cannot even begin; as an item, only
    /// [`KvError::Decode`].
    pub async fn watch(
        &self,
        from: u64,
    ) -> Result<impl Stream<Item = Result<Change<T>, KvError>> + Send + Unpin + use<T>, KvError>
    where
        T: Send + 'static,
    {
        let broken = |reason| KvError::Watch {
            bucket: self.bucket.clone(),
            reason,
        };
        let next = from.max(1);
        let watch = self
            .store
            .watch_all_from_revision(next)
            .await
            .map_err(|e| broken(reasons(&e)))?;
        let state = (self.clone(), Some(watch), next);
        Ok(Box::pin(stream::unfold(
            state,
            async |(kv, mut watch, mut next)| {
                let mut pause = Pause::default();
                let mut told = false;
                loop {
                    let failure = match &mut watch {
                        None => match kv.store.watch_all_from_revision(next).await {
                            Ok(new) => {
                                watch = Some(new);
                                continue;
                            }
                            Err(e) => reasons(&e),
                        },
                        Some(open) => match open.next().await {
                            Some(Ok(found)) => {
                                next = found.revision + 1;
                                match kv.change(found) {
                                    Some(change) => return Some((change, (kv, watch, next))),
                                    None => continue,
                                }
                            }
                            Some(Err(e)) => reasons(&e),
                            None => "the subscription ended".to_owned(),
                        },
                    };
                    if !told {
                        tracing::warn!(
                            bucket = kv.bucket,
                            reason = failure,
                            "watch broke off, going on at {next}"
                        );
                        told = true;
                    }
                    watch = None;
                    pause.wait().await;
                }
            },
        )))
    }

    fn change(&self, found: kv::Entry) -> Option<Result<Change<T>, KvError>> {
        let Some(key) = decode(&found.key) else {
            tracing::warn!(
                bucket = self.bucket,
                key = found.key,
                "a key that muster never writes"
            );
            return None;
        };
        if matches!(found.operation, Operation::Delete | Operation::Purge) {
            return Some(Ok(Change::Deleted {
                key,
                revision: found.revision,
            }));
        }
        let time = timestamp(found.created.unix_timestamp_nanos());
        Some(
            self.entry(key, &found.value, found.revision, time)
                .map(Change::Put),
        )
    }

    async fn write(&self, key: &str, value: &T, expect: Option<u64>) -> Result<u64, KvError> {
        let payload = serde_json::to_vec(value).map_err(|source| KvError::Encode {
            key: key.to_owned(),
            source,
        })?;
        let mut message = Append::new(self.subject(key)?, payload);
        message.expect = expect;
        self.append(key, &message).await
    }

    async fn append(&self, key: &str, message: &Append) -> Result<u64, KvError> {
        let stream = stream_name(&self.bucket);
        match append(&self.js, &stream, message).await {
            Ok(done) => {
                if let Some(witness) = &self.witness {
                    let value = (!is_gone(&message.headers)).then(|| message.payload.clone());
                    witness
                        .wrote(&stream, &message.subject, done.sequence, value)
                        .await;
                }
                Ok(done.sequence)
            }
            Err(StreamError::Conflict { .. }) => Err(KvError::Conflict {
                bucket: self.bucket.clone(),
                key: key.to_owned(),
            }),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// The last message of a key: a value or a deletion.
    async fn last(&self, key: &str) -> Result<Option<Last>, KvError> {
        let subject = self.subject(key)?;
        match self.stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Ok(Some(Last {
                revision: message.sequence,
                time: timestamp(message.time.unix_timestamp_nanos()),
                payload: (!is_gone(&message.headers)).then_some(message.payload),
            })),
            Err(e) => match e.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                LastRawMessageErrorKind::JetStream(server) => {
                    Err(self.failed(super::error::refused(&subject, &server)))
                }
                _ => Err(self.failed(StreamError::NoAnswer {
                    what: format!("read `{key}`"),
                    reason: reasons(&e),
                })),
            },
        }
    }

    fn entry(
        &self,
        key: String,
        payload: &[u8],
        revision: u64,
        time: jiff::Timestamp,
    ) -> Result<KvEntry<T>, KvError> {
        match serde_json::from_slice(payload) {
            Ok(value) => Ok(KvEntry {
                key,
                value,
                revision,
                time,
            }),
            Err(source) => Err(KvError::Decode {
                bucket: self.bucket.clone(),
                key,
                revision,
                source,
            }),
        }
    }

    fn subject(&self, key: &str) -> Result<String, KvError> {
        Ok(format!("$KV.{}.{}", self.bucket, encode(key)?))
    }

    fn key(&self, subject: &str) -> Option<String> {
        decode(
            subject
                .strip_prefix("$KV.")?
                .strip_prefix(&self.bucket)?
                .strip_prefix('.')?,
        )
    }

    fn failed(&self, source: StreamError) -> KvError {
        KvError::Stream {
            bucket: self.bucket.clone(),
            source,
        }
    }
}

struct Last {
    /// `None` for a deletion.
    payload: Option<Bytes>,
    revision: u64,
    time: jiff::Timestamp,
}

/// Whether a message says that its key is gone.
pub(crate) fn is_gone(headers: &HeaderMap) -> bool {
    headers
        .get(OPERATION)
        .map(HeaderValue::as_str)
        .is_some_and(|operation| operation == "DEL" || operation == "PURGE")
}

/// NATS times fit; one that does not is a broken server's, and a wrong time
/// must not stop a broker from reading its state.
fn timestamp(nanoseconds: i128) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(nanoseconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}
