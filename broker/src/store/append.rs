//! Appending to a stream, with proof of what a message builds on.

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::jetstream::{Context, Error as ServerError};
use bytes::Bytes;
use tokio::time::Instant;

use super::error::{StreamError, reasons, refused};
use super::stream::get_stream;
use super::{Pause, READY_WITHIN};

/// Messages that [`append_all`] has under way at a time.
const PIPELINE: usize = 256;

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
            Ok(ack) => confirmed(js, stream, message, ack).await,
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

/// The sequence of the last message of the subject, if it is this message.
async fn own_last(
    js: &Context,
    stream: &str,
    message: &Append,
) -> Result<Option<u64>, StreamError> {
    let handle = get_stream(js, stream).await?;
    let last = match handle
        .get_last_raw_message_by_subject(&message.subject)
        .await
    {
        Ok(last) => last,
        Err(e) => match e.kind() {
            LastRawMessageErrorKind::NoMessageFound => return Ok(None),
            LastRawMessageErrorKind::JetStream(server) => {
                return Err(refused(&message.subject, &server));
            }
            _ => {
                return Err(StreamError::Unconfirmed {
                    subject: message.subject.clone(),
                    reason: reasons(&e),
                });
            }
        },
    };
    let id = last.headers.get(async_nats::header::NATS_MESSAGE_ID);
    let own = id.map(async_nats::HeaderValue::as_str) == message.message_id.as_deref();
    Ok(own.then_some(last.sequence))
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
                Ok(ack) => confirmed(js, stream, message, ack).await,
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
    js: &Context,
    stream: &str,
    message: &Append,
    ack: PublishAckFuture,
) -> Result<Appended, StreamError> {
    let ack = match ack.await.map_err(|e| message.failed(&e)) {
        Ok(ack) => ack,
        // Newer servers look at the expectation before the id: to them a
        // repeated message conflicts with itself.
        Err(StreamError::Conflict { subject, expected }) if message.message_id.is_some() => {
            return match own_last(js, stream, message).await? {
                Some(sequence) => Ok(Appended {
                    sequence,
                    duplicate: true,
                }),
                None => Err(StreamError::Conflict { subject, expected }),
            };
        }
        Err(e) => return Err(e),
    };
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
