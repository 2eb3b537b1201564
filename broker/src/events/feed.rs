//! Events as they are stored, for everybody who follows them: one reader of
//! the stream for all watchers, triggers and routes.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::DeliverPolicy;
use muster_protocol::api::ClusterEvent;
use muster_protocol::subject::EVENT;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Events, EventsError, Filter, STREAM, stored};
use crate::store::live::Live;

/// Events that are held in memory for those who follow.
const HELD: usize = 4_096;
/// And their bytes, about.
const HELD_BYTES: usize = 16 << 20;
/// Events fetched at a time.
const BATCH: usize = 500;
/// Events given to a follower at a time.
const GIVEN: usize = 500;
/// And their bytes, about, where they are read for this follower alone: a slow
/// one keeps no more in memory.
const GIVEN_BYTES: usize = 1 << 20;
/// Pause before it is tried again.
const AGAIN: Duration = Duration::from_millis(250);

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Feed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ring: RwLock<Ring>,
    last: watch::Sender<u64>,
}

/// The last events, without a gap between them.
#[derive(Debug)]
struct Ring {
    /// The position before the first one that is held.
    before: u64,
    events: VecDeque<(Arc<ClusterEvent>, usize)>,
    bytes: usize,
}

impl Feed {
    pub(super) fn new(last: u64) -> Self {
        Self(Arc::new(Inner {
            ring: RwLock::new(Ring {
                before: last,
                events: VecDeque::new(),
                bytes: 0,
            }),
            last: watch::Sender::new(last),
        }))
    }

    /// The position up to which events were given out.
    #[must_use]
    pub fn position(&self) -> u64 {
        *self.0.last.borrow()
    }

    /// Follows the stream for ever.
    pub(super) async fn run(&self, js: &Context) {
        loop {
            let after = self.position();
            let from = DeliverPolicy::ByStartSequence {
                start_sequence: after + 1,
            };
            let why = "muster follows its events";
            match Live::begin(js, STREAM, EVENT, from, BATCH, why).await {
                Ok(mut live) => loop {
                    match live.next().await {
                        Ok(message) => {
                            let (seq, size) = (message.sequence, message.payload.len());
                            self.push(seq, size, stored(message));
                        }
                        Err(error) => {
                            tracing::debug!(%error, "events are followed anew");
                            break;
                        }
                    }
                },
                Err(error) => tracing::debug!(%error, "events cannot be followed now"),
            }
            sleep(AGAIN).await;
        }
    }

    fn push(&self, seq: u64, size: usize, event: Option<ClusterEvent>) {
        {
            let mut ring = self.0.ring.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(event) = event {
                ring.bytes += size;
                ring.events.push_back((Arc::new(event), size));
            }
            while (ring.events.len() > HELD || ring.bytes > HELD_BYTES)
                && let Some((gone, size)) = ring.events.pop_front()
            {
                ring.bytes -= size;
                ring.before = gone.seq;
            }
        }
        self.0.last.send_replace(seq);
    }

    /// Those after a position that are held in memory; `None` when some of
    /// them are not.
    fn held(&self, after: u64) -> Option<Vec<Arc<ClusterEvent>>> {
        let ring = self.0.ring.read().unwrap_or_else(PoisonError::into_inner);
        if after < ring.before {
            return None;
        }
        let begin = ring.events.partition_point(|(event, _)| event.seq <= after);
        let events = ring.events.range(begin..).take(GIVEN);
        Some(events.map(|(event, _)| Arc::clone(event)).collect())
    }
}

/// Somebody's place in the events.
#[derive(Debug)]
pub struct Cursor {
    events: Events,
    moved: watch::Receiver<u64>,
    after: u64,
}

impl Cursor {
    /// Begins after a position.
    #[must_use]
    pub fn new(events: &Events, after: u64) -> Self {
        Self {
            events: events.clone(),
            moved: events.feed().0.last.subscribe(),
            after,
        }
    }

    /// The position up to which everything was given.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.after
    }

    /// Goes to another position.
    pub fn go_to(&mut self, after: u64) {
        self.after = after;
    }

    /// The next events, without a gap, as soon as there is one; the position
    /// is behind them afterwards. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`EventsError`]; it can be asked again.
    pub async fn next(&mut self) -> Result<Vec<Arc<ClusterEvent>>, EventsError> {
        loop {
            let last = *self.moved.borrow_and_update();
            if last > self.after {
                if let Some(events) = self.events.feed().held(self.after) {
                    match events.last() {
                        Some(event) => {
                            self.after = event.seq;
                            return Ok(events);
                        }
                        // What is there cannot be read.
                        None => self.after = last,
                    }
                } else {
                    let all = Filter::default();
                    let found = self
                        .events
                        .read(self.after, Some(last), &all, (GIVEN, GIVEN_BYTES))
                        .await?;
                    match (found.next, found.events.last()) {
                        (Some(next), _) => self.after = next,
                        (None, Some(event)) => self.after = event.seq,
                        (None, None) => self.after = last,
                    }
                    if !found.events.is_empty() {
                        return Ok(found.events.into_iter().map(Arc::new).collect());
                    }
                    continue;
                }
            }
            if self.moved.changed().await.is_err() {
                // The feed is held by the events, which are held here.
                std::future::pending::<()>().await;
            }
        }
    }
}
