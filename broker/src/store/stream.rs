//! Streams: made as asked, and found again as asked.

use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};
use futures_util::TryStreamExt as _;
use tokio::time::Instant;

pub use super::error::StreamError;
use super::error::{reasons, refused};
use super::read::StoredMessage;
use super::{Pause, READY_WITHIN};

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
pub(crate) async fn get_stream(js: &Context, name: &str) -> Result<Stream, StreamError> {
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

/// The last message of a subject (no wildcards), if it has one.
///
/// # Errors
/// [`StreamError::NoStream`], [`StreamError::NoAnswer`].
pub(crate) async fn last_of_subject(
    js: &Context,
    stream: &str,
    subject: &str,
) -> Result<Option<StoredMessage>, StreamError> {
    let handle = get_stream(js, stream).await?;
    match handle.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some(StoredMessage {
            sequence: message.sequence,
            subject: subject.to_owned(),
            headers: message.headers,
            time: jiff::Timestamp::from_nanosecond(message.time.unix_timestamp_nanos())
                .unwrap_or(jiff::Timestamp::UNIX_EPOCH),
            payload: message.payload,
        })),
        Err(e) => match e.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            LastRawMessageErrorKind::JetStream(server) => Err(refused(subject, &server)),
            _ => Err(StreamError::NoAnswer {
                what: format!("the last message of `{subject}`"),
                reason: reasons(&e),
            }),
        },
    }
}

/// How many messages each subject has that matches a filter.
///
/// # Errors
/// [`StreamError::NoStream`], [`StreamError::NoAnswer`].
pub(crate) async fn subjects(
    js: &Context,
    stream: &str,
    filter: &str,
) -> Result<Vec<(String, u64)>, StreamError> {
    let no_answer = |e: &dyn std::error::Error| StreamError::NoAnswer {
        what: format!("the subjects of `{stream}`"),
        reason: reasons(e),
    };
    let handle = get_stream(js, stream).await?;
    let mut pages = handle
        .info_with_subjects(filter)
        .await
        .map_err(|e| no_answer(&e))?;
    let mut found = Vec::new();
    while let Some((subject, count)) = pages.try_next().await.map_err(|e| no_answer(&e))? {
        found.push((subject, count as u64));
    }
    Ok(found)
}
