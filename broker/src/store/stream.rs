//! Streams: made as asked, appended to with proof of what they build on.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{
    CreateStreamErrorKind, GetStreamErrorKind, PublishAckFuture, PublishError, PublishErrorKind,
};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{Context, stream::Stream};
use async_nats::jetstream::{Error as ServerError, ErrorCode};
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::READY_WITHIN;

/// Messages that [`append_all`] has under way at a time.
const PIPELINE: usize = 256;

/// Why something about a stream failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Somebody else wrote first. Nothing was stored.
    #[error(
        "`{subject}` has changed: its last message is not {expected}; another writer was first"
    )]
    Conflict {
        /// The subject.
        subject: String,
        /// Sequence that its last message was expected to have.
        expected: u64,
    },
    /// No room. Nothing was stored.
    #[error(
        "JetStream has no room for `{what}`: {reason}; free disk space or raise its limits, then try again"
    )]
    Full {
        /// Subject or stream.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// The server or the account has no JetStream.
    #[error(
        "JetStream is not enabled on this NATS server for muster's account: {reason}; see `muster nats-config`"
    )]
    NotEnabled {
        /// What the server said.
        reason: String,
    },
    /// JetStream did not become ready in time. Nothing was stored.
    #[error("JetStream is not ready ({what}): {reason}; it was waited for {} s", READY_WITHIN.as_secs())]
    NotReady {
        /// Subject or stream.
        what: String,
        /// The last answer.
        reason: String,
    },
    /// Nobody said whether the message was stored: read before you write again.
    #[error(
        "NATS did not confirm the message to `{subject}` ({reason}); whether it was stored is not known"
    )]
    Unconfirmed {
        /// The subject.
        subject: String,
        /// What happened instead.
        reason: String,
    },
    /// The message was not sent, because one before it failed.
    #[error("the message to `{subject}` was not sent, because one before it failed")]
    NotSent {
        /// The subject.
        subject: String,
    },
    /// Larger than the server or the stream takes. Nothing was stored.
    #[error("the message to `{subject}` is too large: {reason}")]
    TooLarge {
        /// The subject.
        subject: String,
        /// What the server said.
        reason: String,
    },
    /// The message was stored, but in a stream that is not the expected one.
    #[error(
        "the message to `{subject}` went into the stream `{got}` instead of `{wanted}`; another stream takes the same subject"
    )]
    WrongStream {
        /// The subject.
        subject: String,
        /// The stream that was meant.
        wanted: String,
        /// The stream that has it.
        got: String,
    },
    /// There is no such stream.
    #[error("there is no stream `{0}`; the broker makes its streams when it starts")]
    NoStream(String),
    /// The server has the stream with other settings than asked for.
    #[error("the NATS server does not keep the stream `{stream}` as asked: {}; is the server older than 2.9, or does another program change it?", .differences.join(", "))]
    Settings {
        /// The stream.
        stream: String,
        /// Each as `setting: wanted X, got Y`.
        differences: Vec<String>,
    },
    /// A subject or name that NATS cannot take.
    #[error("`{0}` is not a NATS subject or stream name")]
    BadName(String),
    /// The server refused for another reason.
    #[error("JetStream refused ({what}): {reason}")]
    Refused {
        /// What was tried.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// No answer while reading or administering.
    #[error("JetStream did not answer ({what}): {reason}")]
    NoAnswer {
        /// What was tried.
        what: String,
        /// What the client said.
        reason: String,
    },
}

/// Settings of a stream: all that muster ever sets. What it leaves to the
/// operator (placement, for example) is kept as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSettings {
    /// Letters, digits, `-` and `_`.
    pub name: String,
    /// What it is for; shown by NATS tools.
    pub description: String,
    /// Subjects that it takes.
    pub subjects: Vec<String>,
    /// Largest size in bytes; `None` for no limit of its own.
    pub max_bytes: Option<u64>,
    /// Messages kept for one subject; `None` for all.
    pub max_per_subject: Option<u64>,
    /// Age after which a message goes; `None` for never.
    pub max_age: Option<Duration>,
    /// Largest message in bytes; `None` for what the server takes.
    pub max_message: Option<u32>,
    /// What happens when it is full.
    pub when_full: WhenFull,
    /// Whether a sender may replace older messages by `Nats-Rollup`. Never for
    /// a stream that nodes feed.
    pub allow_rollup: bool,
    /// Whether single messages may be deleted.
    pub allow_delete: bool,
    /// Whether values can be read from any replica.
    pub allow_direct: bool,
    /// Time within which a repeated `Nats-Msg-Id` is dropped.
    pub duplicate_window: Duration,
    /// Copies in a cluster, 1 to 5.
    pub replicas: usize,
}

/// What a full stream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Refuses new messages.
    RefuseNew,
    /// Refuses new messages also when one subject has reached
    /// `max_per_subject`: nothing is ever evicted.
    RefuseNewPerSubject,
    /// Drops the oldest messages.
    DropOld,
}

impl StreamSettings {
    /// A journal: file storage, never evicts, no rollup, one copy, two minutes
    /// of duplicate detection.
    #[must_use]
    pub fn journal(name: &str, description: &str, subjects: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            description: description.to_owned(),
            subjects: subjects.iter().map(|s| (*s).to_owned()).collect(),
            max_bytes: None,
            max_per_subject: None,
            max_age: None,
            max_message: None,
            when_full: WhenFull::RefuseNew,
            allow_rollup: false,
            allow_delete: true,
            allow_direct: false,
            duplicate_window: Duration::from_secs(120),
            replicas: 1,
        }
    }

    /// These settings laid over what a stream has already.
    fn over(&self, mut base: Config) -> Config {
        base.name.clone_from(&self.name);
        base.description = Some(self.description.clone());
        base.subjects.clone_from(&self.subjects);
        base.max_bytes = limit(self.max_bytes);
        base.max_messages_per_subject = limit(self.max_per_subject);
        base.max_age = self.max_age.unwrap_or_default();
        base.max_message_size = self
            .max_message
            .map_or(-1, |n| i32::try_from(n).unwrap_or(i32::MAX));
        base.discard = match self.when_full {
            WhenFull::RefuseNew | WhenFull::RefuseNewPerSubject => DiscardPolicy::New,
            WhenFull::DropOld => DiscardPolicy::Old,
        };
        base.discard_new_per_subject = self.when_full == WhenFull::RefuseNewPerSubject;
        base.allow_rollup = self.allow_rollup;
        base.deny_delete = !self.allow_delete;
        base.allow_direct = self.allow_direct;
        base.duplicate_window = self.duplicate_window;
        base.num_replicas = self.replicas.max(1);
        base.storage = StorageType::File;
        base
    }

    /// How a stream differs from these settings.
    fn differences(&self, got: &Config) -> Vec<String> {
        let want = self.over(got.clone());
        let mut found = Vec::new();
        macro_rules! compare {
            ($($field:ident),*) => {$(
                if want.$field != got.$field {
                    found.push(format!(
                        concat!(stringify!($field), ": wanted {:?}, got {:?}"),
                        want.$field, got.$field
                    ));
                }
            )*};
        }
        compare!(
            description,
            subjects,
            max_bytes,
            max_messages_per_subject,
            max_age,
            max_message_size,
            discard,
            discard_new_per_subject,
            allow_rollup,
            deny_delete,
            allow_direct,
            duplicate_window,
            num_replicas,
            storage
        );
        found
    }
}

fn limit(value: Option<u64>) -> i64 {
    value.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX))
}

/// Makes the stream, or brings an existing one to these settings, and checks
/// what came of it: old servers drop settings that they do not know without a
/// word. Waits for a JetStream that is just starting.
///
/// # Errors
/// [`StreamError::NotReady`], [`StreamError::NotEnabled`],
/// [`StreamError::Full`], [`StreamError::Settings`], [`StreamError::Refused`]
/// (also for a change that NATS does not allow, like other storage).
pub async fn ensure_stream(js: &Context, settings: &StreamSettings) -> Result<Stream, StreamError> {
    let name = &settings.name;
    let end = Instant::now() + READY_WITHIN;
    let mut pause = Pause::default();
    loop {
        match try_ensure(js, settings).await {
            Err(StreamError::NotReady { .. }) if Instant::now() < end => pause.wait().await,
            Ok(stream) => {
                let differences = settings.differences(&stream.cached_info().config);
                return if differences.is_empty() {
                    Ok(stream)
                } else {
                    Err(StreamError::Settings {
                        stream: name.clone(),
                        differences,
                    })
                };
            }
            Err(e) => return Err(e),
        }
    }
}

async fn try_ensure(js: &Context, settings: &StreamSettings) -> Result<Stream, StreamError> {
    let name = &settings.name;
    let existing = match js.get_stream(name).await {
        Ok(stream) => Some(stream),
        Err(e) => match e.kind() {
            GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                None
            }
            GetStreamErrorKind::JetStream(e) => return Err(refused(name, &e)),
            GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => {
                return Err(StreamError::BadName(name.clone()));
            }
            GetStreamErrorKind::Request => return Err(not_ready(name, &e)),
        },
    };
    match existing {
        None => {
            // Not `get_or_create`: it would take whatever another broker made
            // in the meantime without a look at its settings.
            js.create_stream(settings.over(Config::default()))
                .await
                .map_err(|e| created(name, &e))?;
        }
        Some(stream)
            if settings
                .differences(&stream.cached_info().config)
                .is_empty() =>
        {
            return Ok(stream);
        }
        Some(stream) => {
            let config = settings.over(stream.cached_info().config.clone());
            js.update_stream(config)
                .await
                .map_err(|e| created(name, &e))?;
        }
    }
    // What the server really keeps, not what it answered.
    js.get_stream(name).await.map_err(|e| not_ready(name, &e))
}

fn created(name: &str, error: &async_nats::jetstream::context::CreateStreamError) -> StreamError {
    match error.kind() {
        CreateStreamErrorKind::EmptyStreamName | CreateStreamErrorKind::InvalidStreamName => {
            StreamError::BadName(name.to_owned())
        }
        CreateStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NAME_EXIST => {
            // Somebody else made it just now: look again.
            not_ready(name, &e)
        }
        CreateStreamErrorKind::JetStream(e) => refused(name, &e),
        CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::JetStreamUnavailable
        | CreateStreamErrorKind::NotFound
        | CreateStreamErrorKind::Response => not_ready(name, error),
        _ => StreamError::Refused {
            what: name.to_owned(),
            reason: error.to_string(),
        },
    }
}

fn not_ready(what: &str, error: &dyn std::error::Error) -> StreamError {
    StreamError::NotReady {
        what: what.to_owned(),
        reason: reasons(error),
    }
}

/// An error with its causes: the client's outer messages say little.
pub(super) fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// What an error of the server means.
pub(super) fn refused(what: &str, error: &ServerError) -> StreamError {
    let (what, reason) = (what.to_owned(), error.to_string());
    match error.error_code() {
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::STREAM_LIMITS
        | ErrorCode::MAXIMUM_STREAMS_LIMIT
        | ErrorCode::MAXIMUM_CONSUMERS_LIMIT
        | ErrorCode::NO_LIMITS => StreamError::Full { what, reason },
        ErrorCode::JETSTREAM_NOT_ENABLED
        | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
        | ErrorCode::NO_ACCOUNT => StreamError::NotEnabled { reason },
        ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::CLUSTER_NOT_ACTIVE
        | ErrorCode::CLUSTER_NOT_LEADER
        | ErrorCode::CLUSTER_NO_PEERS
        | ErrorCode::CLUSTER_INCOMPLETE
        | ErrorCode::STREAM_OFFLINE
        | ErrorCode::CONSUMER_OFFLINE => StreamError::NotReady { what, reason },
        ErrorCode::STREAM_NOT_FOUND => StreamError::NoStream(what),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            StreamError::TooLarge {
                subject: what,
                reason,
            }
        }
        _ => StreamError::Refused { what, reason },
    }
}

/// Pauses that grow: 20 ms to half a second.
#[derive(Default)]
pub(super) struct Pause(u32);

impl Pause {
    pub(super) async fn wait(&mut self) {
        let millis = (20u64 << self.0.min(5)).min(500);
        self.0 += 1;
        sleep(Duration::from_millis(millis)).await;
    }
}

/// A message to append.
#[derive(Debug, Clone)]
pub struct Append {
    /// Subject; one that the stream takes.
    pub subject: String,
    /// Payload.
    pub payload: Bytes,
    /// The sequence of the last message of this subject that the writer knows
    /// of; 0 for none. `None` appends without looking.
    pub expect: Option<u64>,
    /// A unique id: within the stream's duplicate window, a second message
    /// with it is not stored. It makes repeating an unconfirmed append safe.
    pub message_id: Option<String>,
    /// Further headers.
    pub headers: HeaderMap,
}

impl Append {
    /// A message that is appended whatever was there before.
    #[must_use]
    pub fn new(subject: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self {
            subject: subject.into(),
            payload: payload.into(),
            expect: None,
            message_id: None,
            headers: HeaderMap::new(),
        }
    }

    /// The same, only if `sequence` is still the last of its subject.
    #[must_use]
    pub fn expecting(mut self, sequence: u64) -> Self {
        self.expect = Some(sequence);
        self
    }

    /// The same with an id for duplicate detection.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.message_id = Some(id.into());
        self
    }

    fn publish(&self, stream: &str) -> PublishMessage {
        let mut publish = PublishMessage::build()
            .payload(self.payload.clone())
            .headers(self.headers.clone())
            .expected_stream(stream);
        if let Some(sequence) = self.expect {
            publish = publish.expected_last_subject_sequence(sequence);
        }
        if let Some(id) = &self.message_id {
            publish = publish.message_id(id);
        }
        publish
    }

    fn failed(&self, error: &PublishError) -> StreamError {
        let subject = self.subject.clone();
        let source = std::error::Error::source(error);
        match error.kind() {
            PublishErrorKind::WrongLastSequence => StreamError::Conflict {
                subject,
                expected: self.expect.unwrap_or_default(),
            },
            PublishErrorKind::StreamNotFound => StreamError::NotReady {
                what: subject,
                reason: "no stream takes this subject".into(),
            },
            PublishErrorKind::MaxPayloadExceeded => StreamError::TooLarge {
                subject,
                reason: reasons(error),
            },
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => StreamError::Unconfirmed {
                subject,
                reason: reasons(error),
            },
            _ => match source.and_then(|s| s.downcast_ref::<ServerError>()) {
                Some(server) => refused(&subject, server),
                None if source.is_some_and(|s| s.is::<serde_json::Error>()) => {
                    StreamError::Unconfirmed {
                        subject,
                        reason: reasons(error),
                    }
                }
                None => StreamError::Refused {
                    what: subject,
                    reason: reasons(error),
                },
            },
        }
    }
}

/// Where a message was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// The stream had a message with this id already; `sequence` is that one's.
    pub duplicate: bool,
}

/// Appends one message to `stream`, and returns once JetStream has it. Waits
/// for a JetStream that is just starting; repeats an unconfirmed append only
/// when the message has an id.
///
/// # Errors
/// [`StreamError::Conflict`], [`StreamError::Full`],
/// [`StreamError::Unconfirmed`], [`StreamError::NotReady`], and others.
pub async fn append(js: &Context, stream: &str, message: &Append) -> Result<Appended, StreamError> {
    let end = Instant::now() + READY_WITHIN;
    let mut pause = Pause::default();
    loop {
        let result = match send(js, stream, message).await {
            Ok(ack) => confirmed(stream, message, ack).await,
            Err(e) => Err(e),
        };
        match result {
            Err(StreamError::NotReady { .. }) if Instant::now() < end => pause.wait().await,
            Err(StreamError::Unconfirmed { .. })
                if message.message_id.is_some() && Instant::now() < end =>
            {
                pause.wait().await;
            }
            result => return result,
        }
    }
}

/// Appends messages in their order, many under way at a time. The results are
/// in the same order. After the first failure nothing more is sent (those get
/// [`StreamError::NotSent`]), but what was under way may have been stored: a
/// message after a failed one can be there.
///
/// Of several messages with the same subject, only the first should name an
/// expected sequence: the others' are not known yet.
pub async fn append_all(
    js: &Context,
    stream: &str,
    messages: &[Append],
) -> Vec<Result<Appended, StreamError>> {
    let mut results = Vec::with_capacity(messages.len());
    let mut failed = false;
    for chunk in messages.chunks(PIPELINE) {
        let mut sent: Vec<Result<PublishAckFuture, StreamError>> = Vec::with_capacity(chunk.len());
        for message in chunk {
            if failed {
                sent.push(Err(StreamError::NotSent {
                    subject: message.subject.clone(),
                }));
                continue;
            }
            let ack = send(js, stream, message).await;
            failed |= ack.is_err();
            sent.push(ack);
        }
        for (message, ack) in chunk.iter().zip(sent) {
            let result = match ack {
                Ok(ack) => confirmed(stream, message, ack).await,
                Err(e) => Err(e),
            };
            failed |= result.is_err();
            results.push(result);
        }
    }
    results
}

async fn send(
    js: &Context,
    stream: &str,
    message: &Append,
) -> Result<PublishAckFuture, StreamError> {
    js.send_publish(message.subject.clone(), message.publish(stream))
        .await
        .map_err(|e| message.failed(&e))
}

async fn confirmed(
    stream: &str,
    message: &Append,
    ack: PublishAckFuture,
) -> Result<Appended, StreamError> {
    let ack = ack.await.map_err(|e| message.failed(&e))?;
    if ack.stream != stream {
        return Err(StreamError::WrongStream {
            subject: message.subject.clone(),
            wanted: stream.to_owned(),
            got: ack.stream,
        });
    }
    Ok(Appended {
        sequence: ack.sequence,
        duplicate: ack.duplicate,
    })
}

/// Deletes all messages of a subject (wildcards allowed), and returns how many
/// there were.
///
/// # Errors
/// [`StreamError::NoStream`], [`StreamError::NoAnswer`].
pub async fn purge_subject(js: &Context, stream: &str, subject: &str) -> Result<u64, StreamError> {
    let handle = get_stream(js, stream).await?;
    let done = handle
        .purge()
        .filter(subject)
        .await
        .map_err(|e| StreamError::NoAnswer {
            what: format!("delete `{subject}` from `{stream}`"),
            reason: reasons(&e),
        })?;
    if done.success {
        Ok(done.purged)
    } else {
        Err(StreamError::Refused {
            what: format!("delete `{subject}` from `{stream}`"),
            reason: "the server did not say why".into(),
        })
    }
}

/// A stream with its present state.
pub(super) async fn get_stream(js: &Context, name: &str) -> Result<Stream, StreamError> {
    js.get_stream(name).await.map_err(|e| match e.kind() {
        GetStreamErrorKind::JetStream(e) => refused(name, &e),
        GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => {
            StreamError::BadName(name.to_owned())
        }
        GetStreamErrorKind::Request => StreamError::NoAnswer {
            what: format!("stream `{name}`"),
            reason: reasons(&e),
        },
    })
}
