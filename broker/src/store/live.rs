//! Reading a stream for ever, and how everybody here asks a server for its
//! messages.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull::{Config, Stream as Messages};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::jetstream::stream::ConsumerErrorKind;
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::TIMEOUT;
use super::error::{StreamError, reasons, refused};
use super::read::StoredMessage;

/// A server forgets a reader that has not asked for this long.
const FORGET: Duration = Duration::from_secs(60);
/// How often the server says that it is there while it has no message.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A consumer of the messages of `stream` whose subject matches `filter`. It
/// is in the server's memory, acknowledges nothing, and goes by itself when
/// nobody asks. `why` is for whoever looks at the server.
///
/// # Errors
/// [`StreamError::NoStream`], [`StreamError::NoAnswer`].
pub(super) async fn consume(
    js: &Context,
    stream: &str,
    filter: &str,
    from: DeliverPolicy,
    why: &str,
) -> Result<Consumer<Config>, StreamError> {
    let config = Config {
        description: Some(why.to_owned()),
        deliver_policy: from,
        ack_policy: AckPolicy::None,
        filter_subject: filter.to_owned(),
        inactive_threshold: FORGET,
        memory_storage: true,
        num_replicas: 1,
        ..Config::default()
    };
    let no_answer = |reason| StreamError::NoAnswer {
        what: format!("read `{filter}` of `{stream}`"),
        reason,
    };
    timeout(TIMEOUT, js.create_consumer_on_stream(config, stream))
        .await
        .map_err(|_| no_answer("timed out".into()))?
        .map_err(|error| match error.kind() {
            ConsumerErrorKind::JetStream(server) => refused(stream, &server),
            _ => no_answer(reasons(&error)),
        })
}

/// A message with what the server says of its place; `delivered` counts those
/// of its consumer.
///
/// # Errors
/// [`StreamError::NoAnswer`]: one before it was lost on the way.
pub(super) fn stored(
    message: async_nats::jetstream::Message,
    delivered: &mut u64,
) -> Result<StoredMessage, StreamError> {
    let subject = message.subject.to_string();
    let no_answer = |reason: String| StreamError::NoAnswer {
        what: subject.clone(),
        reason,
    };
    let info = message.info().map_err(|e| no_answer(e.to_string()))?;
    // A lost message shows as a step in the consumer's own numbers.
    *delivered += 1;
    if info.consumer_sequence != *delivered {
        return Err(no_answer("a message was lost on the way".into()));
    }
    let time = jiff::Timestamp::from_nanosecond(info.published.unix_timestamp_nanos())
        .map_err(|e| no_answer(format!("a message with an impossible time: {e}")))?;
    let sequence = info.stream_sequence;
    let message = message.message;
    Ok(StoredMessage {
        sequence,
        subject,
        time,
        payload: message.payload,
        headers: message.headers.unwrap_or_default(),
    })
}

/// The messages of a stream from a place on, as they come, until something
/// breaks. Then whoever reads begins again from the place that it knows.
pub(crate) struct Live {
    consumer: Consumer<Config>,
    messages: Messages,
    delivered: u64,
}

impl Live {
    /// Begins. `batch`: so many messages are fetched at a time.
    ///
    /// # Errors
    /// [`StreamError::NoStream`], [`StreamError::NoAnswer`].
    pub(crate) async fn begin(
        js: &Context,
        stream: &str,
        filter: &str,
        from: DeliverPolicy,
        batch: usize,
        why: &str,
    ) -> Result<Self, StreamError> {
        let consumer = consume(js, stream, filter, from, why).await?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(batch)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|error| StreamError::NoAnswer {
                what: format!("read `{filter}` of `{stream}`"),
                reason: reasons(&error),
            })?;
        Ok(Self {
            consumer,
            messages,
            delivered: 0,
        })
    }

    /// The next message, without a gap. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`StreamError::NoAnswer`]; nothing follows it.
    pub(crate) async fn next(&mut self) -> Result<StoredMessage, StreamError> {
        let broken = |reason: String| StreamError::NoAnswer {
            what: "the messages of a stream".to_owned(),
            reason,
        };
        match self.messages.next().await {
            Some(Ok(message)) => stored(message, &mut self.delivered),
            Some(Err(error)) => Err(broken(error.to_string())),
            None => Err(broken("they ended".to_owned())),
        }
    }

    /// The consumer's name on the server.
    pub(crate) fn name(&self) -> String {
        self.consumer.cached_info().name.clone()
    }
}
