//! Which events there are already: what comes a second time is the same one,
//! also after a restart and at the next broker.
//!
//! The stream of events itself is what is remembered: a broker reads the
//! headers of the last ones when it begins.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use data_encoding::HEXLOWER;
use futures_util::TryStreamExt as _;
use muster_protocol::api::ClusterEvent;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::STREAM;
use crate::store::error::StreamError;

/// How far back repeated deliveries are known.
pub const KNOWN_FOR: Duration = Duration::from_secs(7 * 86_400);
/// How many events back they are known at most.
pub const MOST_KNOWN: usize = 200_000;
/// How long whoever wants to store an event waits until this is known.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Messages read at a time.
const BATCH: usize = 1_000;
/// How long one of them may take.
const WITHIN: Duration = Duration::from_secs(10);
/// The header with the digest of what an event was made of.
pub(super) const DIGEST: &str = "Muster-Digest";

/// What an event is known by.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key([u8; 16]);

impl Key {
    fn of(domain: &str, parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        hash.update(domain);
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest: [u8; 32] = hash.finalize().into();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Self(key)
    }

    /// By its source and id, as `CloudEvents` say.
    pub(super) fn id(event: &ClusterEvent) -> Self {
        Self::of("muster event 1", &[&event.source, &event.id])
    }

    /// By what it was made of, within its source: one delivery can become
    /// events of several kinds.
    fn digest(event: &ClusterEvent) -> Option<Self> {
        let digest = event.digest.as_deref()?;
        let parts = [event.source.as_str(), event.kind.as_str(), digest];
        Some(Self::of("muster digest 1", &parts))
    }

    /// For a header.
    pub(super) fn text(self) -> String {
        HEXLOWER.encode(&self.0)
    }

    fn parse(text: &str) -> Option<Self> {
        HEXLOWER
            .decode(text.as_bytes())
            .ok()?
            .try_into()
            .ok()
            .map(Self)
    }
}

/// The keys of an event: its id first.
pub(super) fn keys(event: &ClusterEvent) -> Vec<Key> {
    [Some(Key::id(event)), Key::digest(event)]
        .into_iter()
        .flatten()
        .collect()
}

/// The headers by which an event is known later.
pub(super) fn headers(event: &ClusterEvent) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(key) = Key::digest(event) {
        headers.insert(DIGEST, key.text());
    }
    headers
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Slot {
    /// It is being stored.
    UnderWay,
    /// It is stored there.
    At(u64),
}

#[derive(Debug, Default)]
struct Held {
    slots: HashMap<Key, Slot>,
    order: VecDeque<Key>,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Known(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held: Mutex<Held>,
    settled: Notify,
    ready: watch::Sender<bool>,
}

/// What is known of an event that somebody wants to store.
pub(super) enum Seen {
    /// Nothing: it is theirs to store.
    New(Storing),
    /// It is there.
    At(u64),
}

/// The right to store an event. Dropped, somebody else may.
pub(super) struct Storing {
    known: Known,
    keys: Vec<Key>,
}

impl Storing {
    /// It is stored there.
    pub(super) fn stored(mut self, seq: u64) {
        let keys = std::mem::take(&mut self.keys);
        self.known.remember(&keys, seq);
        self.known.0.settled.notify_waiters();
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut held = self.known.held();
        for key in &self.keys {
            if held.slots.get(key) == Some(&Slot::UnderWay) {
                held.slots.remove(key);
            }
        }
        drop(held);
        self.known.0.settled.notify_waiters();
    }
}

impl Known {
    pub(super) fn new(ready: bool) -> Self {
        Self(Arc::new(Inner {
            held: Mutex::default(),
            settled: Notify::new(),
            ready: watch::Sender::new(ready),
        }))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until what is stored is known; `false` when it takes too long.
    pub(super) async fn ready(&self) -> bool {
        let mut ready = self.0.ready.subscribe();
        timeout(READY_WITHIN, ready.wait_for(|ready| *ready))
            .await
            .is_ok_and(|ready| ready.is_ok())
    }

    /// Asks for the right to store an event; waits for whoever stores it just
    /// now.
    pub(super) async fn see(&self, keys: Vec<Key>) -> Seen {
        loop {
            let settled = self.0.settled.notified();
            let mut settled = std::pin::pin!(settled);
            // From here on no end is missed.
            settled.as_mut().enable();
            {
                let mut held = self.held();
                let slots: Vec<Slot> = keys
                    .iter()
                    .filter_map(|key| held.slots.get(key).copied())
                    .collect();
                if let Some(Slot::At(seq)) = slots.iter().find(|slot| matches!(slot, Slot::At(_))) {
                    return Seen::At(*seq);
                }
                if slots.is_empty() {
                    for key in &keys {
                        held.slots.insert(*key, Slot::UnderWay);
                    }
                    return Seen::New(Storing {
                        known: self.clone(),
                        keys,
                    });
                }
            }
            settled.await;
        }
    }

    fn remember(&self, keys: &[Key], seq: u64) {
        let mut held = self.held();
        for key in keys {
            let before = held.slots.insert(*key, Slot::At(seq));
            if !matches!(before, Some(Slot::At(_))) {
                held.order.push_back(*key);
            }
        }
        // Two keys each, at most.
        while held.order.len() > 2 * MOST_KNOWN {
            if let Some(old) = held.order.pop_front() {
                held.slots.remove(&old);
            }
        }
    }

    /// Reads what is stored, once.
    ///
    /// # Errors
    /// [`StreamError`]; it can be tried again.
    pub(super) async fn load(&self, js: &Context) -> Result<(), StreamError> {
        let no_answer = |reason: String| StreamError::NoAnswer {
            what: "which events there are".to_owned(),
            reason,
        };
        let stream = crate::store::stream::get_stream(js, STREAM).await?;
        let state = &stream.cached_info().state;
        let (end, back) = (state.last_sequence, MOST_KNOWN as u64);
        let begin = end
            .saturating_sub(back)
            .saturating_add(1)
            .max(state.first_sequence);
        let since = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(7 * 86_400);
        if end >= begin && state.messages > 0 {
            let config = Config {
                description: Some("muster reads which events there are".to_owned()),
                deliver_policy: DeliverPolicy::ByStartSequence {
                    start_sequence: begin.max(1),
                },
                ack_policy: AckPolicy::None,
                inactive_threshold: Duration::from_secs(60),
                memory_storage: true,
                num_replicas: 1,
                headers_only: true,
                ..Config::default()
            };
            let consumer = timeout(WITHIN, js.create_consumer_on_stream(config, STREAM))
                .await
                .map_err(|_| no_answer("timed out".into()))?
                .map_err(|error| no_answer(error.to_string()))?;
            let mut read = begin.max(1) - 1;
            let mut count = 0u64;
            'all: loop {
                let mut batch = consumer
                    .fetch()
                    .max_messages(BATCH)
                    .messages()
                    .await
                    .map_err(|error| no_answer(error.to_string()))?;
                let mut some = false;
                while let Some(message) = timeout(WITHIN, batch.try_next())
                    .await
                    .map_err(|_| no_answer("timed out".into()))?
                    .map_err(|error| no_answer(error.to_string()))?
                {
                    some = true;
                    let info = message.info().map_err(|e| no_answer(e.to_string()))?;
                    (read, count) = (info.stream_sequence, count + 1);
                    let fresh = info.published.unix_timestamp() >= since.as_second();
                    let seq = info.stream_sequence;
                    if fresh && let Some(headers) = &message.headers {
                        let key = |name: &str| {
                            let value = headers.get(name)?;
                            Key::parse(value.as_str())
                        };
                        let keys: Vec<Key> = [
                            key(async_nats::header::NATS_MESSAGE_ID.as_ref()),
                            key(DIGEST),
                        ]
                        .into_iter()
                        .flatten()
                        .collect();
                        self.remember(&keys, seq);
                    }
                    if read >= end {
                        break 'all;
                    }
                }
                if !some {
                    // The last ones went meanwhile.
                    break;
                }
            }
            let name = &consumer.cached_info().name;
            let _ = js.delete_consumer_from_stream(name, STREAM).await;
            tracing::debug!(count, read, "which events there are is known");
        }
        self.0.ready.send_replace(true);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, digest: Option<&str>) -> ClusterEvent {
        ClusterEvent {
            digest: digest.map(str::to_owned),
            ..ClusterEvent::own(id.to_owned(), "git.push", "", String::new())
        }
    }

    #[tokio::test]
    async fn an_event_is_stored_once_by_its_id_and_by_what_it_is_made_of() {
        let known = Known::new(true);
        let first = event("1", Some("aa"));
        let Seen::New(storing) = known.see(keys(&first)).await else {
            panic!("it is new");
        };
        // Whoever comes meanwhile waits for how that ends.
        let second = tokio::spawn({
            let known = known.clone();
            async move { known.see(keys(&event("1", None))).await }
        });
        storing.stored(7);
        assert!(matches!(second.await.unwrap(), Seen::At(7)));
        // Another id, the same bytes.
        let replayed = event("2", Some("aa"));
        assert!(matches!(known.see(keys(&replayed)).await, Seen::At(7)));
        assert!(matches!(
            known.see(keys(&event("3", Some("bb")))).await,
            Seen::New(_)
        ));
        // What was not stored may be stored by the next one.
        assert!(matches!(
            known.see(keys(&event("3", None))).await,
            Seen::New(_)
        ));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let known = Known::new(true);
        for n in 0..(2 * MOST_KNOWN as u64 + 10) {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&n.to_be_bytes());
            known.remember(&[Key(key)], n);
        }
        assert_eq!(known.held().slots.len(), 2 * MOST_KNOWN);
    }

    #[test]
    fn keys_are_by_source() {
        let mine = event("1", None);
        let other = ClusterEvent {
            source: "/else".into(),
            ..mine.clone()
        };
        assert_ne!(Key::id(&mine), Key::id(&other));
        assert_eq!(Key::parse(&Key::id(&mine).text()), Some(Key::id(&mine)));
    }
}
