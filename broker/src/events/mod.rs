//! What happened: one stream of events, muster's own and those of others, as
//! `CloudEvents` 1.0.
//!
//! [`kinds`] lists muster's own kinds. [`Events::put`] takes events from
//! outside, each once; [`feed`] gives everybody who follows what is stored.

pub mod facts;
pub mod feed;
pub mod fields;
pub mod follower;
pub mod glob;
pub mod kinds;
mod known;
pub mod place;
pub mod put;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_protocol::api::ClusterEvent;
use muster_protocol::ids::random_bytes;
use muster_protocol::subject::EVENT;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use self::feed::Feed;
use self::glob::Glob;
pub use self::known::{KNOWN_FOR, MOST_KNOWN};
use self::known::{Key, Known, keys};
use crate::lease::Lease;
use crate::store::append::{Append, Appended, append};
use crate::store::error::StreamError;
use crate::store::read::{StoredMessage, read_from};
use crate::store::stream::{StreamSettings, WhenFull, ensure_stream};

/// The stream that holds them.
pub const STREAM: &str = "MUSTER_EVENTS";
/// How long they are kept when nothing is said.
pub const KEEP: Duration = Duration::from_secs(400 * 86_400);
/// Most bytes of all events together; the oldest go first. On a small disk the
/// next of these that there is room for.
const MAX_BYTES: [u64; 3] = [128 << 20, 64 << 20, 4 << 20];
/// Within this time the server itself takes an event with the same id for the
/// same event; [`known`] looks further back.
const TOLD_AGAIN_WITHIN: Duration = Duration::from_secs(600);
/// Longest text of an event, in characters.
const MAX_TEXT: usize = 2_000;
/// Longest subject of an event, in characters.
const MAX_SUBJECT: usize = 200;
/// Most events that are looked through for one answer.
const MOST_SCANNED: u64 = 50_000;
/// Most bytes of events in one answer, about: what is left is on the next page.
const PAGE_BYTES: usize = 8 << 20;
/// So many of the newest events are looked through first.
const FIRST_LOOK: u64 = 2_000;
/// When it is tried again to read which events there are.
const AGAIN: Duration = Duration::from_millis(500);

/// Why the events could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the cluster's events cannot be read: {0}")]
pub struct EventsError(#[from] StreamError);

/// Why a page of events cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The store.
    #[error(transparent)]
    Read(#[from] EventsError),
    /// Whoever has seen that one has seen other events.
    #[error(
        "there is no event {after}, the last one is {last}: the store went back in time, and events are \
         numbered anew"
    )]
    Beyond {
        /// The position that was named.
        after: u64,
        /// The last one there is.
        last: u64,
    },
}

/// An event that is told once, whoever tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Once {
    /// What it is of: no other event has it.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// For people.
    pub text: String,
    /// For programs.
    pub fields: Map<String, Value>,
}

/// Which events somebody wants to see.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Any of these kinds; all when there is none.
    pub kinds: Vec<Glob>,
    /// About this.
    pub subject: Option<Glob>,
    /// Not older than that.
    pub since: Option<Timestamp>,
}

impl Filter {
    /// Whether the event is wanted.
    #[must_use]
    pub fn takes(&self, event: &ClusterEvent) -> bool {
        (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind.fits(&event.kind)))
            && self.subject.as_ref().is_none_or(|s| s.fits(&event.subject))
            && self.since.is_none_or(|since| event.at >= since)
    }

    fn is_all(&self) -> bool {
        self.kinds.is_empty() && self.subject.is_none() && self.since.is_none()
    }
}

/// What a look through the events found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Oldest first.
    pub events: Vec<ClusterEvent>,
    /// The position up to which was looked, when there may be more behind it.
    pub next: Option<u64>,
}

/// The stream of events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kept: Option<(Context, Lease)>,
    known: Known,
    feed: Feed,
}

impl Events {
    /// Makes the stream where there is none. Events are kept for `keep`; the
    /// oldest go earlier when they take too much room.
    ///
    /// # Errors
    /// [`EventsError`].
    pub async fn open(js: Context, lease: Lease, keep: Duration) -> Result<Self, EventsError> {
        let mut limits = MAX_BYTES.into_iter();
        let mut limit = limits.next().unwrap_or_default();
        let last = loop {
            let settings = StreamSettings {
                max_bytes: Some(limit),
                max_age: Some(keep),
                // A broker that takes over tells again what the one before it
                // may not have told.
                duplicate_window: TOLD_AGAIN_WITHIN,
                when_full: WhenFull::DropOld,
                ..StreamSettings::journal(STREAM, "what happened in the muster cluster", &[EVENT])
            };
            match ensure_stream(&js, &settings).await {
                // The server sets all of it aside at once. On a small disk
                // the room is for runs.
                Err(StreamError::Full { what, reason }) => match limits.next() {
                    Some(less) => limit = less,
                    None => return Err(StreamError::Full { what, reason }.into()),
                },
                result => break result?.cached_info().state.last_sequence,
            }
        };
        if limit < MAX_BYTES[0] {
            tracing::warn!(
                limit,
                wanted = MAX_BYTES[0],
                "NATS has less room for events than wanted"
            );
        }
        Ok(Self(Arc::new(Inner {
            kept: Some((js, lease)),
            known: Known::new(false),
            feed: Feed::new(last),
        })))
    }

    /// What is stored, as it is stored: moves while [`Events::follow`] runs.
    #[must_use]
    pub fn feed(&self) -> &Feed {
        &self.0.feed
    }

    /// Reads which events there are, then follows the stream until `cancel`.
    pub async fn follow(self, cancel: CancellationToken) {
        let Some((js, _)) = &self.0.kept else { return };
        let follow = async {
            while let Err(error) = self.0.known.load(js).await {
                tracing::warn!(%error, "which events there are cannot be read; trying again");
                tokio::time::sleep(AGAIN).await;
            }
        };
        let both = async { tokio::join!(follow, self.0.feed.run(js)) };
        cancel.run_until_cancelled(Box::pin(both)).await;
    }

    /// Stores an event. One that cannot be stored is logged: whatever it
    /// tells of has happened all the same.
    pub async fn emit(&self, kind: &str, subject: &str, text: impl Into<String>) {
        if let Err(error) = self.try_emit(kind, subject, text).await {
            tracing::warn!(kind, subject, %error, "an event could not be stored");
        }
    }

    /// Stores an event, or says why it could not be stored.
    ///
    /// # Errors
    /// [`StreamError`]; while this broker is not the active one,
    /// [`StreamError::NotReady`].
    pub async fn try_emit(
        &self,
        kind: &str,
        subject: &str,
        text: impl Into<String>,
    ) -> Result<(), StreamError> {
        self.store(kind, subject, text.into(), Map::new(), None)
            .await
    }

    /// Stores an event unless it is there: one that was stored before has the
    /// same id. One that cannot be stored is logged.
    pub async fn once(&self, event: Once) {
        let (kind, subject) = (event.kind.clone(), event.subject.clone());
        if let Err(error) = self.try_once(event).await {
            tracing::warn!(kind, subject, %error, "an event could not be stored");
        }
    }

    /// The same, and says why it could not be stored.
    ///
    /// # Errors
    /// As [`Events::try_emit`].
    pub async fn try_once(&self, event: Once) -> Result<(), StreamError> {
        let Once {
            id,
            kind,
            subject,
            text,
            fields,
        } = event;
        self.store(&kind, &subject, text, fields, Some(id)).await
    }

    /// Stores an event with fields for programs. One that cannot be stored is
    /// logged.
    pub async fn tell(&self, kind: &str, subject: &str, text: String, fields: Map<String, Value>) {
        if let Err(error) = self.store(kind, subject, text, fields, None).await {
            tracing::warn!(kind, subject, %error, "an event could not be stored");
        }
    }

    async fn store(
        &self,
        kind: &str,
        subject: &str,
        text: String,
        fields: Map<String, Value>,
        id: Option<String>,
    ) -> Result<(), StreamError> {
        let text = printable(&text, MAX_TEXT);
        tracing::info!(kind, subject, text, "event");
        let once = id.is_some();
        let id = id.unwrap_or_else(|| data_encoding::HEXLOWER.encode(&random_bytes::<16>()));
        let mut event = ClusterEvent::own(id, kind, &printable(subject, MAX_SUBJECT), text);
        event.fields = fields;
        if !once {
            return self.append(&event).await.map(drop);
        }
        // Whether it is there is not known yet: the server may still know.
        if !self.0.known.ready().await {
            return self.append(&event).await.map(drop);
        }
        match self.0.known.see(keys(&event)).await {
            known::Seen::At(_) => Ok(()),
            known::Seen::New(storing) => {
                let stored = self.append(&event).await?;
                storing.stored(stored.sequence);
                Ok(())
            }
        }
    }

    /// Appends an event, whatever is there.
    async fn append(&self, event: &ClusterEvent) -> Result<Appended, StreamError> {
        let Some((js, lease)) = &self.0.kept else {
            let (sequence, duplicate) = (0, false);
            return Ok(Appended {
                sequence,
                duplicate,
            });
        };
        let not_stored = |reason: &str| StreamError::NotReady {
            what: "the event".into(),
            reason: reason.to_owned(),
        };
        if lease.epoch().is_none() {
            return Err(not_stored("this broker is not active now"));
        }
        let message = message(event).map_err(|e| not_stored(&e.to_string()))?;
        append(js, STREAM, &message).await
    }

    /// The newest `limit` events that are wanted, oldest first. Only the
    /// newest ones of all are looked through.
    ///
    /// # Errors
    /// [`EventsError`].
    pub async fn newest(
        &self,
        filter: &Filter,
        limit: usize,
    ) -> Result<Vec<ClusterEvent>, EventsError> {
        let Some((js, _)) = &self.0.kept else {
            return Ok(Vec::new());
        };
        let last = last(js).await?;
        let mut look = if filter.is_all() {
            limit as u64
        } else {
            FIRST_LOOK
        };
        loop {
            let from = last.saturating_sub(look);
            let some = self.read(from, Some(last), filter, (usize::MAX, usize::MAX));
            let mut events = some.await?.events;
            if events.len() >= limit || look >= last || look >= MOST_SCANNED {
                events.drain(..events.len().saturating_sub(limit));
                return Ok(events);
            }
            look *= 5;
        }
    }

    /// Events after the position `after` that are wanted, oldest first, at
    /// most `limit`.
    ///
    /// # Errors
    /// [`PageError`].
    pub async fn list(
        &self,
        after: u64,
        filter: &Filter,
        limit: usize,
    ) -> Result<Found, PageError> {
        let some = self.read(after, None, filter, (limit, PAGE_BYTES)).await?;
        if let Some((js, _)) = &self.0.kept
            && some.events.is_empty()
        {
            // Only whoever finds nothing may have been somewhere else.
            let last = last(js).await.map_err(EventsError::from)?;
            if after > last {
                return Err(PageError::Beyond { after, last });
            }
        }
        Ok(some)
    }

    /// `most` events, and about so many bytes of them.
    async fn read(
        &self,
        after: u64,
        to: Option<u64>,
        filter: &Filter,
        most: (usize, usize),
    ) -> Result<Found, EventsError> {
        let mut bytes = 0usize;
        let mut some = Found::default();
        let Some((js, _)) = &self.0.kept else {
            return Ok(some);
        };
        let mut messages = read_from(js, STREAM, EVENT, after.saturating_add(1)).await?;
        let mut scanned = 0;
        while let Some(message) = messages.try_next().await? {
            if to.is_some_and(|to| message.sequence > to) {
                break;
            }
            let (seq, size) = (message.sequence, message.payload.len());
            if let Some(event) = stored(message)
                && filter.takes(&event)
            {
                some.events.push(event);
                bytes = bytes.saturating_add(size);
            }
            scanned += 1;
            if some.events.len() >= most.0
                || bytes >= most.1
                || (to.is_none() && scanned >= MOST_SCANNED)
            {
                some.next = Some(seq);
                break;
            }
        }
        Ok(some)
    }

    /// The last position.
    ///
    /// # Errors
    /// [`EventsError`].
    pub async fn last(&self) -> Result<u64, EventsError> {
        match &self.0.kept {
            Some((js, _)) => Ok(last(js).await?),
            None => Ok(0),
        }
    }

    /// The first position that there still is.
    ///
    /// # Errors
    /// [`EventsError`].
    pub async fn first(&self) -> Result<u64, EventsError> {
        match &self.0.kept {
            Some((js, _)) => {
                let stream = crate::store::stream::get_stream(js, STREAM).await?;
                Ok(stream.cached_info().state.first_sequence)
            }
            None => Ok(0),
        }
    }

    /// Events that are only logged, for tests.
    #[must_use]
    pub fn log_only() -> Self {
        Self(Arc::new(Inner {
            kept: None,
            known: Known::new(true),
            feed: Feed::new(0),
        }))
    }
}

/// An event as it is stored.
fn message(event: &ClusterEvent) -> Result<Append, serde_json::Error> {
    let json = serde_json::to_vec(&ClusterEvent {
        seq: 0,
        ..event.clone()
    })?;
    let mut message = Append::new(EVENT, json).with_id(Key::id(event).text());
    message.headers = known::headers(event);
    Ok(message)
}

/// An event that was lost, to be stored again as it was.
pub(crate) fn again(payload: &Bytes) -> Append {
    serde_json::from_slice::<ClusterEvent>(payload)
        .ok()
        .filter(|event| !event.id.is_empty())
        .and_then(|event| {
            let mut message = message(&event).ok()?;
            message.payload = payload.clone();
            Some(message)
        })
        .unwrap_or_else(|| Append::new(EVENT, payload.clone()))
}

/// The event in a message; `None`, and a line in the log, when there is none.
fn stored(message: StoredMessage) -> Option<ClusterEvent> {
    match serde_json::from_slice::<ClusterEvent>(&message.payload) {
        Ok(mut event) => {
            event.seq = message.sequence;
            if event.id.is_empty() {
                event.id = format!("seq-{}", event.seq);
            }
            Some(event)
        }
        Err(error) => {
            tracing::warn!(seq = message.sequence, %error, "an event cannot be read");
            None
        }
    }
}

/// The last position.
async fn last(js: &Context) -> Result<u64, StreamError> {
    let stream = js
        .get_stream(STREAM)
        .await
        .map_err(|e| StreamError::NoAnswer {
            what: "the stream of events".into(),
            reason: e.to_string(),
        })?;
    Ok(stream.cached_info().state.last_sequence)
}
