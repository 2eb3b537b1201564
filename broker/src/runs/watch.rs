//! Following a run: what happened so far, then what happens, without a gap or
//! a repetition between the two. Both come from the stream; only
//! acknowledgements, which are not kept, come from the run's task.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull::{Config, Stream as Messages};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use muster_protocol::api::Frame;
use muster_protocol::ids::RunId;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::FoldError;
use muster_protocol::subject;
use tokio::sync::broadcast;
use tokio::time::{sleep, timeout};

use super::engine::Engine;
use super::error::EngineError;
use super::frames::{Frames, Place};
use super::journal::{ReadError, STREAM, output_head, parse};
use crate::store::TIMEOUT;
use crate::store::read::read_from;
use crate::store::stream::StreamError;

/// Messages fetched at a time.
const BATCH: usize = 100;
/// The server forgets a watcher that has not asked for this long.
const FORGET: Duration = Duration::from_secs(60);
/// How often it is looked whether the run is still there.
const LOOK: Duration = Duration::from_secs(5);
/// Longest pause before a broken reading goes on.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why a run cannot be followed any more.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// There is no such run, or runs are not served now.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The journal is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The journal is damaged.
    #[error("event {sequence} does not follow: {source}")]
    Fold {
        /// Where.
        sequence: u64,
        /// What is wrong.
        source: FoldError,
    },
    /// The store gave no answer.
    #[error(transparent)]
    Store(#[from] StreamError),
}

impl WatchError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Engine(error) => error.problem(),
            Self::Store(_) | Self::Read(ReadError::Store(_)) => {
                Problem::new(Kind::Unavailable, self.to_string())
            }
            Self::Read(_) | Self::Fold { .. } => Problem::new(Kind::Internal, self.to_string()),
        }
    }
}

/// A frame, and its place in the run's stream; what is not kept has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Where.
    pub place: Option<Place>,
    /// What.
    pub frame: Frame,
}

/// A run as one watcher follows it. Whoever reads slowly slows nobody but
/// itself.
pub struct Watch {
    engine: Engine,
    run: RunId,
    frames: Frames,
    /// The last place that the watcher has seen.
    after: Place,
    ready: VecDeque<Seen>,
    tail: Tail,
    live: Option<broadcast::Receiver<Frame>>,
    ended: bool,
    /// Whether it was said that there is no output any more.
    told: bool,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("run", &self.run)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Follows a run: everything after the place `after` (from the beginning
    /// when there is none), to its end.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn watch(&self, run: RunId, after: Option<Place>) -> Result<Watch, WatchError> {
        let (first, live) = self.watched(run)?;
        let mut watch = Watch {
            engine: self.clone(),
            run,
            frames: Frames::new(run),
            after: after.unwrap_or_default(),
            ready: VecDeque::new(),
            tail: Tail::new(self.0.js.clone(), subject::run_all(run), first),
            live,
            ended: false,
            told: false,
        };
        if let Some(after) = after
            && !watch.catch_up(first, after).await?
        {
            return self.watch_again(run).await;
        }
        Ok(watch)
    }

    /// Follows a run for a watcher whose place is not known any more: from
    /// the beginning, and it is told so.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn watch_again(&self, run: RunId) -> Result<Watch, WatchError> {
        // Boxed: it is called by what it calls.
        let mut watch = Box::pin(self.watch(run, None)).await?;
        let frame = Frame::RunBeginsAgain {
            run,
            reason: "the store went back in time, and the place that was named is not known any \
                     more; the run is told from its beginning"
                .into(),
        };
        watch.ready.push_back(Seen { place: None, frame });
        Ok(watch)
    }
}

impl Watch {
    /// Folds the journal up to the place that the watcher has seen; output is
    /// passed over. `false`: the stream has not come so far.
    async fn catch_up(&mut self, first: u64, after: Place) -> Result<bool, WatchError> {
        let js = self.engine.0.js.clone();
        let no_answer = |reason: String| StreamError::NoAnswer {
            what: format!("stream `{STREAM}`"),
            reason,
        };
        let stream = js
            .get_stream(STREAM)
            .await
            .map_err(|e| no_answer(e.to_string()))?;
        if after.sequence > stream.cached_info().state.last_sequence {
            return Ok(false);
        }
        let mut messages = read_from(&js, STREAM, &subject::journal(self.run), first).await?;
        while let Some(message) = messages.try_next().await? {
            if message.sequence > after.sequence {
                break;
            }
            self.event(message.sequence, &message.payload)?;
        }
        self.tail.next = self.tail.next.max(after.sequence + 1);
        Ok(true)
    }

    /// The next frame; `None` after the last one of a run that has ended.
    ///
    /// # Errors
    /// [`WatchError`]; nothing follows it.
    pub async fn next(&mut self) -> Option<Result<Seen, WatchError>> {
        loop {
            if let Some(seen) = self.ready.pop_front() {
                return Some(Ok(seen));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.more().await {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }

    async fn more(&mut self) -> Result<(), WatchError> {
        let Some((_, term)) = self.engine.0.active() else {
            return Err(EngineError::NotReady.into());
        };
        tokio::select! {
            () = term.cancelled() => return Err(EngineError::NotReady.into()),
            () = self.tail.ready() => {}
        }
        let stored = tokio::select! {
            biased;
            () = term.cancelled() => return Err(EngineError::NotReady.into()),
            stored = self.tail.next() => stored,
            // It may have been removed while it was read: then nothing more
            // comes, ever.
            () = sleep(LOOK) => {
                self.engine.watched(self.run)?;
                return Ok(());
            }
            // Before the run itself was read there is nothing to add to; they
            // wait.
            frame = accepted(&mut self.live), if self.frames.state().is_some() => {
                match frame {
                    Some(frame) => self.ready.push_back(Seen { place: None, frame }),
                    None => self.live = None,
                }
                return Ok(());
            }
        };
        let Some(stored) = stored else { return Ok(()) };
        if stored.is_journal {
            self.event(stored.sequence, &stored.payload)
        } else {
            let head = output_head(&stored.headers);
            if let Some(frame) = head.and_then(|head| self.frames.output(head, &stored.payload)) {
                let place = Place {
                    sequence: stored.sequence,
                    part: Place::LAST,
                };
                self.ready.push_back(Seen {
                    place: Some(place),
                    frame,
                });
            }
            Ok(())
        }
    }

    fn event(&mut self, sequence: u64, payload: &[u8]) -> Result<(), WatchError> {
        let event = parse(self.run, sequence, payload)?;
        let first = self.frames.state().is_none();
        let frames = self
            .frames
            .event(&event)
            .map_err(|source| WatchError::Fold { sequence, source })?;
        if !first {
            self.say_removed();
        }
        let last = frames.len().saturating_sub(1);
        for (number, frame) in frames.into_iter().enumerate() {
            let part = if number == last {
                Place::LAST
            } else {
                u32::try_from(number).unwrap_or(Place::LAST)
            };
            let place = Place { sequence, part };
            if place > self.after {
                self.ready.push_back(Seen {
                    place: Some(place),
                    frame,
                });
            }
        }
        if first {
            self.say_removed();
        }
        self.ended |= self
            .frames
            .state()
            .is_some_and(|state| state.phase.is_final());
        Ok(())
    }

    /// Says that the output is gone, as soon as it is known: it may go while
    /// it is read.
    fn say_removed(&mut self) {
        if !self.told
            && let Some(at) = self.engine.output_removed(self.run)
        {
            self.told = true;
            let run = self.run;
            self.ready.push_back(Seen {
                place: None,
                frame: Frame::OutputRemoved { run, at },
            });
        }
    }
}

/// The next acknowledgement; `None` when there will be none any more.
async fn accepted(live: &mut Option<broadcast::Receiver<Frame>>) -> Option<Frame> {
    let Some(receiver) = live else {
        return std::future::pending().await;
    };
    loop {
        match receiver.recv().await {
            Ok(frame) => return Some(frame),
            // They are not kept, so nobody misses them.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

struct Stored {
    sequence: u64,
    is_journal: bool,
    payload: Bytes,
    headers: HeaderMap,
}

/// The messages of a run's stream from a place on, for ever. Outages are
/// bridged without a gap.
struct Tail {
    js: Context,
    filter: String,
    /// The lowest sequence not yet given.
    next: u64,
    reading: Option<Reading>,
    pause: Duration,
}

struct Reading {
    consumer: Consumer<Config>,
    messages: Messages,
    /// Messages that the consumer has delivered.
    delivered: u64,
}

impl Tail {
    fn new(js: Context, filter: String, next: u64) -> Self {
        Self {
            js,
            filter,
            next,
            reading: None,
            pause: Duration::ZERO,
        }
    }

    /// Waits until there is a consumer to read from.
    async fn ready(&mut self) {
        while self.reading.is_none() {
            sleep(self.pause).await;
            match self.begin().await {
                Ok(reading) => self.reading = Some(reading),
                Err(reason) => self.broken(&reason),
            }
        }
    }

    fn broken(&mut self, reason: &str) {
        tracing::debug!(
            filter = self.filter,
            reason,
            next = self.next,
            "a watcher begins again"
        );
        self.reading = None;
        self.pause = (self.pause * 2).clamp(Duration::from_millis(50), LONGEST_PAUSE);
    }

    /// The next message; `None` when the reading broke, and [`Tail::ready`]
    /// must be asked again. Dropping the future loses nothing.
    async fn next(&mut self) -> Option<Stored> {
        match self.read().await {
            Ok(stored) => {
                self.pause = Duration::ZERO;
                self.next = stored.sequence + 1;
                Some(stored)
            }
            Err(reason) => {
                self.broken(&reason);
                None
            }
        }
    }

    async fn read(&mut self) -> Result<Stored, String> {
        let reading = self.reading.as_mut().ok_or("there is no consumer")?;
        let message = match reading.messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the messages ended".to_owned()),
        };
        let info = message.info().map_err(|e| e.to_string())?;
        reading.delivered += 1;
        if info.consumer_sequence != reading.delivered {
            return Err("a message was lost on the way".to_owned());
        }
        let sequence = info.stream_sequence;
        let message = message.message;
        Ok(Stored {
            sequence,
            is_journal: message.subject.ends_with(".j"),
            payload: message.payload,
            headers: message.headers.unwrap_or_default(),
        })
    }

    async fn begin(&self) -> Result<Reading, String> {
        let config = Config {
            description: Some("muster follows a run".into()),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.next.max(1),
            },
            ack_policy: AckPolicy::None,
            filter_subject: self.filter.clone(),
            inactive_threshold: FORGET,
            memory_storage: true,
            num_replicas: 1,
            ..Config::default()
        };
        let consumer = timeout(TIMEOUT, self.js.create_consumer_on_stream(config, STREAM))
            .await
            .map_err(|_| "timed out".to_owned())?
            .map_err(|e| e.to_string())?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .heartbeat(Duration::from_secs(5))
            .messages()
            .await
            .map_err(|e| e.to_string())?;
        Ok(Reading {
            consumer,
            messages,
            delivered: 0,
        })
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        // Good manners; the server would forget it by itself.
        if let Some(reading) = self.reading.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (js, name) = (self.js.clone(), reading.consumer.cached_info().name.clone());
            runtime.spawn(async move {
                let _ = js.delete_consumer_from_stream(&name, STREAM).await;
            });
        }
    }
}
