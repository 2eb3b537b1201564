//! The brokers of the cluster: each says on NATS that it is there, and every
//! one hears all of them. The active one stores where they are reached, so
//! that agents are told of a broker that is down just now, too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt as _;
use muster_protocol::api::{BrokerPlace, BrokerView};
use muster_protocol::ids::InstanceId;
use muster_protocol::subject::BROKERS;
use muster_protocol::text::printable;
use muster_protocol::units::{Timestamp, elapsed};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// The key in `muster_cluster`.
const KEY: &str = "brokers";
/// How often a broker says that it is there.
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// A broker that was not heard for so long is away.
const AWAY_AFTER: Duration = Duration::from_secs(7);
/// A broker that was not heard for so long is forgotten. As long as a node's
/// credentials live: until then nodes may have to renew them.
const FORGET_AFTER: Duration = Duration::from_secs(7 * 86_400);
/// How often what was heard is looked at, to be stored.
const STORE_EVERY: Duration = Duration::from_secs(2);
/// That one is still there is stored so often.
const SEEN_EVERY: Duration = Duration::from_secs(3_600);
/// Most brokers of a cluster.
const MOST: usize = 16;
/// Largest message that one is.
const MAX_BEAT: usize = 4_096;

/// What is stored: when each URL was last heard.
pub type KnownBrokers = BTreeMap<String, Timestamp>;

/// What a broker says of itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Beat {
    holder: InstanceId,
    url: String,
    version: String,
    /// The epoch of its lease, when it holds it.
    #[serde(default)]
    epoch: Option<u64>,
    since: Timestamp,
}

#[derive(Clone, Debug)]
struct Heard {
    beat: Beat,
    at: Instant,
    wall: Timestamp,
}

/// The brokers that are heard. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    me: InstanceId,
    url: String,
    begun: Timestamp,
    lease: Lease,
    heard: Mutex<BTreeMap<InstanceId, Heard>>,
    stored: Mutex<KnownBrokers>,
}

impl Peers {
    /// A broker that is reached at `url`; nobody else is heard yet.
    #[must_use]
    pub fn new(me: InstanceId, url: String, lease: Lease) -> Self {
        Self(Arc::new(Inner {
            me,
            url,
            begun: Timestamp::now(),
            lease,
            heard: Mutex::default(),
            stored: Mutex::default(),
        }))
    }

    /// Says that this one is there and hears the others, until `cancel`.
    pub async fn keep(self, client: Client, cancel: CancellationToken) {
        while !cancel.is_cancelled() {
            let said = cancel.run_until_cancelled(self.talk(&client)).await;
            if let Some(Err(error)) = said {
                tracing::warn!(%error, "other brokers cannot be heard; trying again");
                cancel.run_until_cancelled(sleep(BEAT_EVERY)).await;
            }
        }
    }

    async fn talk(&self, client: &Client) -> Result<(), async_nats::Error> {
        let mut words = client.subscribe(BROKERS).await?;
        let mut tick = interval(BEAT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let beat = serde_json::to_vec(&self.beat())?;
                    client.publish(BROKERS, beat.into()).await?;
                }
                word = words.next() => match word {
                    Some(word) if word.payload.len() <= MAX_BEAT => self.hear(&word.payload),
                    Some(_) => {}
                    None => return Err("the subscription ended".into()),
                },
            }
        }
    }

    fn beat(&self) -> Beat {
        let inner = &self.0;
        let epoch = inner.lease.epoch();
        let since = epoch.and_then(|_| inner.lease.since());
        Beat {
            holder: inner.me,
            url: inner.url.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch,
            since: since.unwrap_or(inner.begun),
        }
    }

    fn hear(&self, payload: &[u8]) {
        let Ok(beat) = serde_json::from_slice::<Beat>(payload) else {
            tracing::debug!("a broker says what this version does not understand");
            return;
        };
        if beat.holder == self.0.me || beat.url.len() > 300 {
            return;
        }
        let mut heard = lock(&self.0.heard);
        if heard.len() >= MOST && !heard.contains_key(&beat.holder) {
            heard.retain(|_, one| one.at.elapsed() < AWAY_AFTER);
            if heard.len() >= MOST {
                return;
            }
        }
        let new = heard
            .get(&beat.holder)
            .is_none_or(|one| one.at.elapsed() >= AWAY_AFTER);
        if new {
            tracing::info!(url = %printable(&beat.url, 200), "another broker is there");
        }
        heard.insert(
            beat.holder,
            Heard {
                beat,
                at: Instant::now(),
                wall: Timestamp::now(),
            },
        );
    }

    /// Every broker that is known, this one first.
    #[must_use]
    pub fn list(&self) -> Vec<BrokerView> {
        let mine = self.beat();
        let mut all = vec![BrokerView {
            url: mine.url,
            place: match mine.epoch {
                Some(_) => BrokerPlace::Active,
                None => BrokerPlace::Standby,
            },
            version: Some(mine.version),
            epoch: mine.epoch,
            since: Some(mine.since),
            heard: None,
        }];
        for one in lock(&self.0.heard).values() {
            let away = one.at.elapsed() >= AWAY_AFTER;
            // One that was restarted with another identity is the same one.
            let again = all.iter().any(|other| other.url == one.beat.url);
            if away && again {
                continue;
            }
            all.push(BrokerView {
                url: one.beat.url.clone(),
                place: match (away, one.beat.epoch) {
                    (true, _) => BrokerPlace::Away,
                    (false, Some(_)) => BrokerPlace::Active,
                    (false, None) => BrokerPlace::Standby,
                },
                version: Some(one.beat.version.clone()),
                epoch: one.beat.epoch.filter(|_| !away),
                since: Some(one.beat.since).filter(|_| !away),
                heard: Some(one.wall),
            });
        }
        for (url, seen) in &*lock(&self.0.stored) {
            if all.iter().all(|one| one.url != *url) {
                all.push(BrokerView {
                    url: url.clone(),
                    place: BrokerPlace::Away,
                    version: None,
                    epoch: None,
                    since: None,
                    heard: Some(*seen),
                });
            }
        }
        all
    }

    /// Where agents find a broker: this one, then the others that are known,
    /// those that are away last.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        let mut all = self.list();
        all.sort_by_key(|one| one.place == BrokerPlace::Away);
        let mut urls: Vec<String> = Vec::new();
        for one in all {
            if !urls.contains(&one.url) && urls.len() < MOST {
                urls.push(one.url);
            }
        }
        urls
    }

    /// Takes up which brokers are stored. Only the active broker does this.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn load(&self, bucket: &Kv<KnownBrokers>) -> Result<(), KvError> {
        let stored = bucket.get(KEY).await?;
        *lock(&self.0.stored) = stored.map(|entry| entry.value).unwrap_or_default();
        Ok(())
    }

    /// Stores which brokers there are, whenever that changes, until `cancel`.
    /// Only the active broker does this.
    pub async fn remember(self, bucket: Kv<KnownBrokers>, cancel: CancellationToken) {
        loop {
            if self.0.lease.epoch().is_some()
                && let Err(error) = self.store(&bucket).await
            {
                tracing::warn!(%error, "which brokers there are could not be stored");
            }
            if cancel
                .run_until_cancelled(sleep(STORE_EVERY))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    async fn store(&self, bucket: &Kv<KnownBrokers>) -> Result<(), KvError> {
        let now = Timestamp::now();
        let old = lock(&self.0.stored).clone();
        let mut new: KnownBrokers = old
            .iter()
            .filter(|(_, seen)| elapsed(**seen, now) < FORGET_AFTER)
            .map(|(url, seen)| (url.clone(), *seen))
            .collect();
        let mut heard = vec![(self.0.url.clone(), now)];
        heard.extend(
            lock(&self.0.heard)
                .values()
                .map(|one| (one.beat.url.clone(), one.wall)),
        );
        for (url, at) in heard {
            let fresh = new
                .get(&url)
                .is_none_or(|seen| elapsed(*seen, at) >= SEEN_EVERY);
            if fresh
                && elapsed(at, now) < FORGET_AFTER
                && (new.len() < MOST || new.contains_key(&url))
            {
                new.insert(url, at);
            }
        }
        if new == old {
            return Ok(());
        }
        match bucket.get(KEY).await? {
            Some(entry) if entry.value == new => {}
            Some(entry) => drop(bucket.update(KEY, &new, entry.revision).await?),
            None => drop(bucket.create(KEY, &new).await?),
        }
        *lock(&self.0.stored) = new;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(url: &str, epoch: Option<u64>) -> Vec<u8> {
        let beat = Beat {
            holder: InstanceId::random(),
            url: url.to_owned(),
            version: "1".into(),
            epoch,
            since: Timestamp::now(),
        };
        serde_json::to_vec(&beat).unwrap()
    }

    #[test]
    fn who_is_heard_is_listed_and_rubbish_is_not() {
        let peers = Peers::new(InstanceId::random(), "http://a".into(), Lease::fixed(3));
        peers.hear(b"rubbish");
        peers.hear(&serde_json::to_vec(&peers.beat()).unwrap());
        assert_eq!(peers.list().len(), 1, "this one is not another one");
        assert_eq!(
            (peers.list()[0].place, peers.list()[0].epoch),
            (BrokerPlace::Active, Some(3))
        );
        peers.hear(&said("http://b", None));
        let stored = [
            ("http://c".to_owned(), Timestamp::now()),
            ("http://b".to_owned(), Timestamp::now()),
        ];
        *lock(&peers.0.stored) = stored.into();
        let all: Vec<_> = peers.list().into_iter().map(|b| (b.url, b.place)).collect();
        assert_eq!(
            all,
            [
                ("http://a".to_owned(), BrokerPlace::Active),
                ("http://b".to_owned(), BrokerPlace::Standby),
                ("http://c".to_owned(), BrokerPlace::Away),
            ]
        );
        assert_eq!(peers.urls(), ["http://a", "http://b", "http://c"]);
        for n in 0..40 {
            peers.hear(&said(&format!("http://x{n}"), None));
        }
        assert!(peers.list().len() <= MOST + 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_heard_is_stored_once_and_comes_back() {
        use crate::store::kv::{BucketConfig, ensure_bucket};
        let server = crate::nats::testing::TestServer::start().await;
        let js = crate::store::context(server.broker().await);
        let bucket: Kv<KnownBrokers> =
            Box::pin(ensure_bucket(&js, BucketConfig::new("muster_cluster")))
                .await
                .unwrap();
        let peers = Peers::new(InstanceId::random(), "http://a".into(), Lease::fixed(1));
        peers.hear(&said("http://b", None));
        peers.store(&bucket).await.unwrap();
        let first = bucket.get(KEY).await.unwrap().unwrap();
        peers.store(&bucket).await.unwrap();
        assert_eq!(
            bucket.get(KEY).await.unwrap().unwrap().revision,
            first.revision
        );
        let other = Peers::new(InstanceId::random(), "http://b".into(), Lease::fixed(2));
        other.load(&bucket).await.unwrap();
        assert_eq!(other.urls(), ["http://b", "http://a"]);
        assert_eq!(other.list()[1].place, BrokerPlace::Away);
    }
}
