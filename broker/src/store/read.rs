//! Reading a stream from a place up to its present end.

use std::collections::VecDeque;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy, pull::Config as PullConfig};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _, stream};
use tokio::time::timeout;

use super::error::{StreamError, reasons, refused};
use super::live::{consume, stored};
use super::stream::get_stream;
use super::{Pause, TIMEOUT};

/// Messages fetched at a time.
const BATCH: usize = 500;

/// Bytes fetched at a time; above the largest message muster's servers take.
const BATCH_BYTES: usize = 16 << 20;

/// Attempts to go on after an interruption, before the reader gives up.
const ATTEMPTS: u32 = 8;

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// When the server stored it.
    pub time: jiff::Timestamp,
    /// Its payload.
    pub payload: Bytes,
    /// Its headers.
    pub headers: HeaderMap,
}

/// Reads the messages of `stream` whose subject matches `filter` (wildcards
/// allowed), in their order, from sequence `start` on, and ENDS after the last
/// one that was there when this was called. An empty or purged filter ends at
/// once. An interruption (a restart of the server) is bridged without a gap or
/// a repetition; when it lasts too long, the last item is an error.
///
/// # Errors
/// At once: [`StreamError::NoStream`], [`StreamError::NoAnswer`]; as an item:
/// the same.
pub async fn read_from(
    js: &Context,
    stream: &str,
    filter: &str,
    start: u64,
) -> Result<
    impl Stream<Item = Result<StoredMessage, StreamError>> + Send + Unpin + use<>,
    StreamError,
> {
    let info = get_stream(js, stream).await?;
    let end = info.cached_info().state.last_sequence;
    Ok(read(js, stream, filter, start, end))
}

/// The same, but it ends only when there is nothing more: what is written
/// while it is read is read, too. So of each subject its newest message is
/// seen, also in a stream that keeps only that, where a message which is
/// replaced while it is waited for goes and its successor comes at the end.
/// What was read stands for one moment: that of the last message.
///
/// It ends only if it is faster than those who write.
///
/// # Errors
/// As [`read_from`].
pub async fn read_on(
    js: &Context,
    stream: &str,
    filter: &str,
    start: u64,
) -> Result<
    impl Stream<Item = Result<StoredMessage, StreamError>> + Send + Unpin + use<>,
    StreamError,
> {
    // Whether it is there is said at once.
    get_stream(js, stream).await?;
    Ok(read(js, stream, filter, start, u64::MAX))
}

fn read(
    js: &Context,
    stream: &str,
    filter: &str,
    start: u64,
    end: u64,
) -> impl Stream<Item = Result<StoredMessage, StreamError>> + Send + Unpin + use<> {
    let reader = Reader {
        js: js.clone(),
        stream: stream.to_owned(),
        filter: filter.to_owned(),
        next: start.max(1),
        end,
        live: None,
        fetched: VecDeque::new(),
        done: false,
    };
    Box::pin(stream::try_unfold(reader, async |mut reader: Reader| {
        Ok(reader.next().await?.map(|message| (message, reader)))
    }))
}

/// The payload of the last message of a subject; `None` when there is none.
///
/// # Errors
/// [`StreamError::NoStream`], [`StreamError::NoAnswer`].
pub async fn last_payload(
    js: &Context,
    stream: &str,
    subject: &str,
) -> Result<Option<Bytes>, StreamError> {
    let handle = js
        .get_stream_no_info(stream)
        .await
        .map_err(|_| StreamError::BadName(stream.to_owned()))?;
    match handle.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some(message.payload)),
        Err(e) => match e.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            LastRawMessageErrorKind::JetStream(server) => Err(refused(subject, &server)),
            _ => Err(StreamError::NoAnswer {
                what: subject.to_owned(),
                reason: reasons(&e),
            }),
        },
    }
}

struct Reader {
    js: Context,
    stream: String,
    filter: String,
    /// The lowest sequence not yet returned.
    next: u64,
    /// The last sequence of interest.
    end: u64,
    live: Option<Live>,
    fetched: VecDeque<StoredMessage>,
    done: bool,
}

/// A consumer on the server, and how far it is.
struct Live {
    consumer: Consumer<PullConfig>,
    /// Messages that it has delivered.
    delivered: u64,
    /// Messages that it has yet to deliver.
    pending: u64,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<StoredMessage>, StreamError> {
        let mut pause = Pause::default();
        let mut failures = 0;
        while self.fetched.is_empty() && !self.done && self.next <= self.end {
            match self.fetch().await {
                Ok(()) => {}
                // What is wrong for good stays wrong.
                Err(
                    e @ (StreamError::NoStream(_)
                    | StreamError::BadName(_)
                    | StreamError::NotEnabled { .. }),
                ) => {
                    return Err(e);
                }
                Err(e) => {
                    // The place is known: go on with a new consumer.
                    self.live = None;
                    failures += 1;
                    if failures >= ATTEMPTS {
                        return Err(e);
                    }
                    pause.wait().await;
                }
            }
        }
        let message = self.fetched.pop_front();
        if message.is_none()
            && let Some(Live { consumer, .. }) = self.live.take()
        {
            // Good manners; the server would forget it by itself.
            let name = consumer.cached_info().name.clone();
            let _ = self
                .js
                .delete_consumer_from_stream(&name, &self.stream)
                .await;
        }
        Ok(message)
    }

    /// Fetches some messages, or finds that there are no more.
    async fn fetch(&mut self) -> Result<(), StreamError> {
        let what = format!("read `{}` from {} on", self.filter, self.next);
        let no_answer = |reason: String| StreamError::NoAnswer {
            what: what.clone(),
            reason,
        };
        let mut live = match self.live.take() {
            Some(live) => live,
            None => self.consume().await?,
        };
        if live.pending == 0 {
            self.done = true;
            self.live = Some(live);
            return Ok(());
        }
        let mut batch = live
            .consumer
            .fetch()
            .max_messages(BATCH)
            .max_bytes(BATCH_BYTES)
            .messages()
            .await
            .map_err(|e| no_answer(reasons(&e)))?;
        let before = live.delivered;
        // The client's batch itself waits for ever when the connection breaks.
        while let Some(message) = timeout(TIMEOUT, batch.try_next())
            .await
            .map_err(|_| no_answer("timed out".into()))?
            .map_err(|e| no_answer(e.to_string()))?
        {
            live.pending = message
                .info()
                .map_err(|e| no_answer(e.to_string()))?
                .pending;
            let message = stored(message, &mut live.delivered)?;
            if message.sequence > self.end {
                self.done = true;
                break;
            }
            self.next = message.sequence + 1;
            self.fetched.push_back(message);
        }
        if live.delivered == before {
            // No message although some were pending: deleted in the meantime,
            // or the server was in trouble. It knows.
            live.pending = live
                .consumer
                .get_info()
                .await
                .map_err(|e| no_answer(reasons(&e)))?
                .num_pending;
            if live.pending > 0 {
                return Err(no_answer("fewer messages came than there are".into()));
            }
        }
        self.live = Some(live);
        Ok(())
    }

    async fn consume(&self) -> Result<Live, StreamError> {
        let from = DeliverPolicy::ByStartSequence {
            start_sequence: self.next,
        };
        let why = "muster reads to the end";
        let consumer = consume(&self.js, &self.stream, &self.filter, from, why).await?;
        let pending = consumer.cached_info().num_pending;
        Ok(Live {
            consumer,
            delivered: 0,
            pending,
        })
    }
}
