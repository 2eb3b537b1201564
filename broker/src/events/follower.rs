//! Follows events from a place that is stored, so that each is looked at,
//! whichever broker dies in between; at least once.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::ClusterEvent;
use tokio::time::{Instant, sleep, timeout};

use super::Events;
use super::feed::Cursor;
use super::place::{Place, Places};

/// How often the place is stored while there is nothing to do.
const STORE_EVERY: Duration = Duration::from_secs(1);
/// Pause before something inside the cluster is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// Longest wait.
const LONG: Duration = Duration::from_secs(3_600);

/// Where to begin when the stored place says nothing, because the store went
/// back in time and events are numbered anew.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Anew {
    /// With what happens from now on: what was put back was done.
    Now,
    /// With the first event that there is: what was done before is done
    /// again, and comes to the same.
    First,
}

/// Who follows, and how.
#[derive(Clone, Debug)]
pub struct How {
    /// The name of the place.
    pub key: String,
    /// What it is called in events about it.
    pub name: String,
    /// What it does with events, in `12 events went before …`: `triggers saw
    /// them`.
    pub does: String,
    /// Where it begins when events are numbered anew. One that is new begins
    /// with what happens from now on.
    pub anew: Anew,
}

/// See the module.
#[derive(Debug)]
pub struct Follower {
    events: Events,
    places: Places,
    how: How,
    place: Place,
    cursor: Cursor,
    stored: Instant,
    dirty: bool,
    again_to: u64,
    behind: u64,
}

impl Follower {
    /// Begins where the one before left off; says how many events were lost
    /// for want of room. Tries until it is done.
    pub async fn begin(events: &Events, places: &Places, numbering: &str, how: How) -> Self {
        let (stored, last, first) = loop {
            let read = (
                places.get(&how.key).await,
                events.last().await,
                events.first().await,
            );
            match read {
                (Ok(place), Ok(last), Ok(first)) => break (place, last, first),
                (Err(error), ..) => {
                    tracing::warn!(who = how.name, %error, "a place in the events cannot be read; trying again");
                }
                (_, Err(error), _) | (.., Err(error)) => {
                    tracing::warn!(who = how.name, %error, "the events cannot be read; trying again");
                }
            }
            sleep(AGAIN).await;
        };
        let known = stored
            .as_ref()
            .is_some_and(|place| place.numbering == numbering && place.seq <= last);
        let is_new = stored.is_none();
        let mut place = stored.unwrap_or_default();
        let mut again_to = 0;
        if known {
            if place.seq + 1 < first {
                let lost = first - 1 - place.seq;
                let text = format!("{lost} events went for want of room before {}", how.does);
                events.emit("alarm.events-lost", &how.name, text).await;
                place.seq = first - 1;
            }
        } else if is_new || how.anew == Anew::Now {
            place.seq = last;
        } else {
            place.seq = 0;
            again_to = last;
        }
        numbering.clone_into(&mut place.numbering);
        if place.seq < last {
            tracing::info!(
                who = how.name,
                from = place.seq,
                to = last,
                "what came meanwhile is looked at"
            );
        }
        let cursor = Cursor::new(events, place.seq);
        let mut follower = Self {
            events: events.clone(),
            places: places.clone(),
            how,
            place,
            cursor,
            stored: Instant::now(),
            dirty: false,
            again_to,
            behind: last,
        };
        follower.store().await;
        follower
    }

    /// The events.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Events up to here may have been dealt with before, long ago, under
    /// another numbering.
    #[must_use]
    pub fn again_to(&self) -> u64 {
        self.again_to
    }

    /// Events up to here were there when this began: what was done of those
    /// behind the place, nobody knows.
    #[must_use]
    pub fn behind(&self) -> u64 {
        self.behind
    }

    /// The place up to which everything is done, and what is remembered with
    /// it.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The same, to be changed.
    pub fn place_mut(&mut self) -> &mut Place {
        &mut self.place
    }

    /// The next events, as soon as there are some; those that were given
    /// before count as done. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Vec<Arc<ClusterEvent>> {
        if self.place.seq != self.cursor.position() {
            self.place.seq = self.cursor.position();
            self.dirty = true;
        }
        loop {
            let wait = if self.dirty {
                STORE_EVERY.saturating_sub(self.stored.elapsed())
            } else {
                LONG
            };
            match timeout(wait, self.cursor.next()).await {
                Ok(Ok(events)) => return events,
                Ok(Err(error)) => {
                    tracing::warn!(who = self.how.name, %error, "events cannot be read now");
                    sleep(AGAIN).await;
                }
                Err(_) => self.store().await,
            }
        }
    }

    /// Everything up to that event is done: stored before this returns.
    pub async fn done(&mut self, seq: u64) {
        self.place.seq = seq;
        self.store().await;
    }

    /// Tries until it is stored. A broker that is not the active one waits:
    /// another one goes on from what is stored.
    async fn store(&mut self) {
        loop {
            match self.places.set(&self.how.key, &self.place).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(who = self.how.name, %error, "a place in the events cannot be stored yet");
                }
            }
            sleep(AGAIN).await;
        }
        (self.stored, self.dirty) = (Instant::now(), false);
    }
}
