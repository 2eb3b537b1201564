//! One reading of a run's stream for all who follow it now.
//!
//! Whoever joins at the beginning, or at a place that is still kept here,
//! needs no consumer and no fold of its own. Who comes with an older place
//! reads by itself until it is here, and who is too slow for what is kept
//! reads by itself again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use muster_protocol::ids::RunId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::frames::Place;
use super::watch::{Seen, Watch, WatchError};

/// Most frames that are kept for those who are a little behind.
const KEPT: usize = 2_048;
/// Most bytes of them.
const KEPT_BYTES: usize = 1 << 20;

/// Writes a frame as watchers get it. Done once for all of them.
pub type Render = fn(numbering: &str, seen: &Seen) -> Option<Bytes>;

/// A frame as watchers get it.
#[derive(Clone, Debug)]
struct Item {
    place: Option<Place>,
    text: Bytes,
}

#[derive(Debug, Default)]
struct Window {
    /// Number of the first one that is kept.
    first: u64,
    items: VecDeque<Item>,
    bytes: usize,
    /// Place of the last one that is not kept any more.
    dropped: Place,
    /// Place of the last one.
    last: Place,
    /// Nothing follows.
    ended: bool,
}

impl Window {
    fn next(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    fn push(&mut self, item: Item) {
        self.last = item.place.unwrap_or(self.last);
        self.bytes += item.text.len();
        self.items.push_back(item);
        while self.items.len() > KEPT || (self.bytes > KEPT_BYTES && self.items.len() > 1) {
            let Some(old) = self.items.pop_front() else {
                return;
            };
            self.first += 1;
            self.bytes -= old.text.len();
            self.dropped = old.place.unwrap_or(self.dropped);
        }
    }

    /// The number of the first one after that place, if all that follow it
    /// are kept.
    fn after(&self, place: Option<Place>) -> Option<u64> {
        let Some(place) = place else {
            return (self.first == 0).then_some(0);
        };
        if (self.first > 0 && place < self.dropped) || place > self.last {
            return None;
        }
        let before = self
            .items
            .iter()
            .rposition(|item| item.place.is_some_and(|at| at <= place));
        Some(self.first + before.map_or(0, |index| index as u64 + 1))
    }
}

/// A run that is followed.
#[derive(Debug)]
struct Hub {
    window: Mutex<Window>,
    /// Number of the next frame; changes when there is one, or none follows.
    next: watch::Sender<u64>,
}

/// Held by those who follow: with the last one the reading ends.
#[derive(Debug)]
struct Held {
    hub: Arc<Hub>,
    cancel: CancellationToken,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The runs that are followed.
#[derive(Debug, Default)]
pub(super) struct Hubs(Mutex<HashMap<RunId, Weak<Held>>>);

impl Hub {
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, item: Item) {
        let mut window = self.window();
        window.push(item);
        let next = window.next();
        drop(window);
        self.next.send_replace(next);
    }

    fn end(&self) {
        self.window().ended = true;
        self.next.send_modify(|_| {});
    }
}

impl Engine {
    /// Follows a run for one of many: everything after the place `after`
    /// (from the beginning when there is none), to its end.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn follow(
        &self,
        run: RunId,
        after: Option<Place>,
        render: Render,
    ) -> Result<Following, WatchError> {
        let numbering = self.0.past.numbering();
        let held = self.hub(run, &numbering, render)?;
        let source = match held.as_ref().and_then(|held| Reader::join(held, after)) {
            Some(reader) => Source::Shared(reader),
            None => Source::Own(Box::new(self.watch(run, after).await?)),
        };
        Ok(Following {
            engine: self.clone(),
            run,
            numbering,
            render,
            held,
            source,
            after,
        })
    }

    /// Follows a run for one whose place is not known any more.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn follow_again(&self, run: RunId, render: Render) -> Result<Following, WatchError> {
        let watch = self.watch_again(run).await?;
        let numbering = self.0.past.numbering();
        Ok(Following {
            engine: self.clone(),
            run,
            held: self.hub(run, &numbering, render)?,
            numbering,
            render,
            source: Source::Own(Box::new(watch)),
            after: None,
        })
    }

    /// What is shared by those who follow this run; nothing is of one that has
    /// ended.
    fn hub(
        &self,
        run: RunId,
        numbering: &str,
        render: Render,
    ) -> Result<Option<Arc<Held>>, WatchError> {
        self.watched(run)?;
        if self.has_ended(run) {
            return Ok(None);
        }
        let mut hubs = self.0.hubs.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = hubs.get(&run).and_then(Weak::upgrade)
            && !held.hub.window().ended
        {
            return Ok(Some(held));
        }
        hubs.retain(|_, held| held.strong_count() > 0);
        let hub = Arc::new(Hub {
            window: Mutex::default(),
            next: watch::Sender::new(0),
        });
        let cancel = CancellationToken::new();
        let held = Arc::new(Held {
            hub: Arc::clone(&hub),
            cancel: cancel.clone(),
        });
        hubs.insert(run, Arc::downgrade(&held));
        drop(hubs);
        let (engine, numbering) = (self.clone(), numbering.to_owned());
        tokio::spawn(async move {
            let reading = read(&engine, run, &hub, &numbering, render);
            cancel.run_until_cancelled(reading).await;
            hub.end();
        });
        Ok(Some(held))
    }
}

/// Reads a run for all who follow it.
async fn read(engine: &Engine, run: RunId, hub: &Hub, numbering: &str, render: Render) {
    let mut watch = match engine.watch(run, None).await {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(%run, %error, "a run cannot be followed");
            return;
        }
    };
    while let Some(seen) = watch.next().await {
        match seen {
            Ok(seen) => {
                let Some(text) = render(numbering, &seen) else {
                    return;
                };
                hub.push(Item {
                    place: seen.place,
                    text,
                });
            }
            // Those who follow come back.
            Err(error) => {
                tracing::warn!(?watch, %error, "those who follow a run are cut off");
                return;
            }
        }
    }
}

/// A place in what is shared.
#[derive(Debug)]
struct Reader {
    hub: Arc<Hub>,
    next: u64,
    /// What is not kept in the stream is only for those who were there.
    live_from: u64,
    changed: watch::Receiver<u64>,
}

enum Read {
    Item(Item),
    /// What comes next is not kept any more.
    Behind,
    /// Nothing follows.
    End,
}

impl Reader {
    fn join(held: &Arc<Held>, after: Option<Place>) -> Option<Self> {
        let changed = held.hub.next.subscribe();
        let window = held.hub.window();
        Some(Self {
            next: window.after(after)?,
            live_from: window.next(),
            hub: Arc::clone(&held.hub),
            changed,
        })
    }

    /// The next frame. Dropping the future loses nothing.
    async fn next(&mut self) -> Read {
        loop {
            self.changed.borrow_and_update();
            {
                let window = self.hub.window();
                if self.next < window.first {
                    return Read::Behind;
                }
                while let Some(item) = usize::try_from(self.next - window.first)
                    .ok()
                    .and_then(|index| window.items.get(index))
                {
                    self.next += 1;
                    if item.place.is_some() || self.next > self.live_from {
                        return Read::Item(item.clone());
                    }
                }
                if window.ended {
                    return Read::End;
                }
            }
            if self.changed.changed().await.is_err() {
                return Read::End;
            }
        }
    }
}

enum Source {
    Own(Box<Watch>),
    Shared(Reader),
}

/// A run as one of many follows it.
pub struct Following {
    engine: Engine,
    run: RunId,
    numbering: String,
    render: Render,
    held: Option<Arc<Held>>,
    source: Source,
    /// The last place that was given.
    after: Option<Place>,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following")
            .field("run", &self.run)
            .field("after", &self.after)
            .field("shared", &matches!(self.source, Source::Shared(_)))
            .finish_non_exhaustive()
    }
}

impl Following {
    /// The next frame, written; `None` after the last one of a run that has
    /// ended, or when this broker cannot go on.
    ///
    /// # Errors
    /// [`WatchError`]; nothing follows it.
    pub async fn next(&mut self) -> Option<Result<Bytes, WatchError>> {
        loop {
            match &mut self.source {
                Source::Shared(reader) => match reader.next().await {
                    Read::Item(item) => {
                        self.after = item.place.or(self.after);
                        return Some(Ok(item.text));
                    }
                    Read::End => return None,
                    Read::Behind => match self.engine.watch(self.run, self.after).await {
                        Ok(watch) => self.source = Source::Own(Box::new(watch)),
                        Err(error) => return Some(Err(error)),
                    },
                },
                Source::Own(watch) => {
                    let seen = match watch.next().await? {
                        Ok(seen) => seen,
                        Err(error) => return Some(Err(error)),
                    };
                    self.after = seen.place.or(self.after);
                    let whole = seen.place.is_some_and(|at| at.part == Place::LAST);
                    let text = (self.render)(&self.numbering, &seen)?;
                    if whole
                        && let Some(reader) = self
                            .held
                            .as_ref()
                            .and_then(|held| Reader::join(held, self.after))
                    {
                        self.source = Source::Shared(reader);
                    }
                    return Some(Ok(text));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(sequence: u64) -> Place {
        Place {
            sequence,
            part: Place::LAST,
        }
    }

    fn item(sequence: u64, bytes: usize) -> Item {
        Item {
            place: Some(place(sequence)),
            text: vec![b'x'; bytes].into(),
        }
    }

    #[test]
    fn one_joins_where_everything_that_follows_is_kept() {
        let mut window = Window::default();
        assert_eq!(window.after(None), Some(0));
        assert_eq!(window.after(Some(place(1))), None, "it has not come so far");
        for sequence in 10..20 {
            window.push(item(sequence, 1));
        }
        assert_eq!(window.after(None), Some(0));
        assert_eq!(window.after(Some(place(9))), Some(0));
        assert_eq!(window.after(Some(place(14))), Some(5));
        let inner = Place {
            sequence: 15,
            part: 0,
        };
        assert_eq!(window.after(Some(inner)), Some(5));
        assert_eq!(window.after(Some(place(19))), Some(10));
        assert_eq!(window.after(Some(place(20))), None);
        // What is not of the stream moves no place.
        window.push(Item {
            place: None,
            text: Bytes::new(),
        });
        assert_eq!(window.after(Some(place(19))), Some(10));
        assert_eq!(window.next(), 11);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut window = Window::default();
        for sequence in 1..=10_000 {
            window.push(item(sequence, 10));
        }
        assert_eq!(window.items.len(), KEPT);
        assert_eq!(window.after(None), None);
        let oldest = 10_000 - KEPT as u64;
        assert_eq!(window.after(Some(place(oldest))), Some(oldest));
        assert_eq!(window.after(Some(place(oldest - 1))), None);
        for sequence in 10_001..10_100 {
            window.push(item(sequence, KEPT_BYTES / 10));
        }
        assert!(window.bytes <= KEPT_BYTES && window.items.len() <= 11);
        // One that is larger than all is given all the same.
        window.push(item(20_000, 2 * KEPT_BYTES));
        assert_eq!(window.items.len(), 1);
        assert_eq!(window.after(Some(place(10_099))), Some(window.first));
    }
}
