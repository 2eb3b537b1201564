//! What can go wrong with JetStream, sorted by what one can do about it.

use async_nats::jetstream::{Error as ServerError, ErrorCode};

use super::READY_WITHIN;

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
