//! What happened in the cluster: alarms, node changes, keys.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use futures_util::TryStreamExt as _;
use muster_protocol::api::ClusterEvent;
use muster_protocol::subject::EVENT;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use serde_json::{Map, Value};

use crate::lease::Lease;
use crate::store::append::{Append, append};
use crate::store::error::StreamError;
use crate::store::read::read_from;
use crate::store::stream::{StreamSettings, WhenFull, ensure_stream};

/// The stream that holds them.
pub const STREAM: &str = "MUSTER_EVENTS";
/// How long they are kept when nothing is said.
pub const KEEP: Duration = Duration::from_secs(400 * 86_400);
/// Most bytes of all events together; the oldest go first.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Within this time an event with the same id is the same event.
const TOLD_AGAIN_WITHIN: Duration = Duration::from_secs(3600);
/// The least that will do, on a small disk.
const LEAST_BYTES: u64 = 4 * 1024 * 1024;
/// Longest text of an event, in characters.
const MAX_TEXT: usize = 2_000;

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

/// The stream of cluster events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kept: Option<(Context, Lease)>,
}

impl Events {
    /// Makes the stream where there is none. Events are kept for `keep`; the
    /// oldest go earlier when they take too much room.
    ///
    /// # Errors
    /// [`EventsError`].
    pub async fn open(js: Context, lease: Lease, keep: Duration) -> Result<Self, EventsError> {
        let mut limit = MAX_BYTES;
        loop {
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
                Err(StreamError::Full { .. }) if limit > LEAST_BYTES => limit = LEAST_BYTES,
                result => break drop(result?),
            }
        }
        if limit < MAX_BYTES {
            tracing::warn!(
                limit,
                wanted = MAX_BYTES,
                "NATS has less room for events than wanted"
            );
        }
        Ok(Self(Arc::new(Inner {
            kept: Some((js, lease)),
        })))
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

    /// Stores an event unless it is there: one that was stored a moment ago
    /// has the same id. One that cannot be stored is logged.
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
        let Some((js, lease)) = &self.0.kept else {
            return Ok(());
        };
        let not_stored = |reason: &str| StreamError::NotReady {
            what: "the event".into(),
            reason: reason.to_owned(),
        };
        if lease.epoch().is_none() {
            return Err(not_stored("this broker is not active now"));
        }
        let event = ClusterEvent {
            seq: 0,
            at: Timestamp::now(),
            kind: kind.to_owned(),
            subject: printable(subject, 200),
            text,
            fields,
        };
        let json = serde_json::to_vec(&event).map_err(|e| not_stored(&e.to_string()))?;
        let mut message = Append::new(EVENT, json);
        message.message_id = id;
        append(js, STREAM, &message).await.map(drop)
    }

    /// The newest `limit` events, oldest first.
    ///
    /// # Errors
    /// [`EventsError`].
    pub async fn newest(&self, limit: usize) -> Result<Vec<ClusterEvent>, EventsError> {
        let Some((js, _)) = &self.0.kept else {
            return Ok(Vec::new());
        };
        let last = last(js).await?;
        self.read(last.saturating_sub(limit as u64), limit).await
    }

    /// Events after the position `after`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`PageError`].
    pub async fn list(&self, after: u64, limit: usize) -> Result<Vec<ClusterEvent>, PageError> {
        let events = self.read(after, limit).await?;
        if let Some((js, _)) = &self.0.kept
            && events.is_empty()
        {
            // Only whoever finds nothing may have been somewhere else.
            let last = last(js).await.map_err(EventsError::from)?;
            if after > last {
                return Err(PageError::Beyond { after, last });
            }
        }
        Ok(events)
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<ClusterEvent>, EventsError> {
        let Some((js, _)) = &self.0.kept else {
            return Ok(Vec::new());
        };
        let mut messages = read_from(js, STREAM, EVENT, after.saturating_add(1)).await?;
        let mut events = Vec::new();
        while events.len() < limit
            && let Some(message) = messages.try_next().await?
        {
            match serde_json::from_slice::<ClusterEvent>(&message.payload) {
                Ok(event) => events.push(ClusterEvent {
                    seq: message.sequence,
                    ..event
                }),
                Err(error) => {
                    tracing::warn!(seq = message.sequence, %error, "an event cannot be read");
                }
            }
        }
        Ok(events)
    }

    /// Events that are only logged, for tests.
    #[must_use]
    pub fn log_only() -> Self {
        Self(Arc::new(Inner { kept: None }))
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
