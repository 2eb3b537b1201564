//! Which of several brokers is the active one.
//!
//! The lease is one value in `muster_cluster`, replaced by compare-and-swap.
//! Its holder renews it every [`RENEW_EVERY`]; another broker takes it when it
//! has watched it unchanged for [`TTL`] on its own monotonic clock. The holder
//! counts from *before* it sent a renewal that succeeded, and stops
//! [`MARGIN`] early: it always stops before another can begin, whatever the
//! wall clocks say, and also when its own task hangs, because
//! [`Lease::epoch`] looks at the clock itself.
//!
//! A process that is stopped between that look and what it does next would
//! still do it when it goes on. So the value names the NATS users of its
//! holder, and whoever takes over has the servers shut them out before it
//! reads anything: see [`Lease::to_shut_out`].

mod clock;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_protocol::ids::InstanceId;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::clock::Moment;
use crate::nats::keys::UserKey;
use crate::state_dir::{Holder, StateDir, StateDirError};
use crate::store::kv::{Kv, KvEntry, KvError};

/// After so long without a renewal another broker may take the lease.
pub const TTL: Duration = Duration::from_secs(6);
/// How often the holder renews it.
pub const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How much earlier than [`TTL`] the holder stops.
pub const MARGIN: Duration = Duration::from_millis(500);
/// How long one answer of NATS is waited for.
const ANSWER: Duration = Duration::from_secs(2);
/// How often a standby looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The key in the bucket.
const KEY: &str = "lease";
/// No epoch is higher: a made-up one must not use them all up.
const HIGHEST: u64 = 1 << 53;
/// Most users of earlier holders that are remembered as not shut out yet.
const MAX_SHUT_OUT: usize = 64;

/// What others may know of a broker: in the lease while it is active.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Who {
    /// Where people and agents reach it.
    pub url: Option<String>,
    /// The NATS users of its connections.
    pub users: Vec<UserKey>,
}

/// What is in the bucket.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseValue {
    /// Who: survives a restart.
    holder: InstanceId,
    /// Which process of that holder.
    instance: InstanceId,
    /// Rises at every acquisition.
    epoch: u64,
    /// Counts renewals, so that each is a new value.
    beat: u64,
    /// Given back in good order: anybody may take it at once.
    released: bool,
    /// More about the holder.
    #[serde(default)]
    who: Who,
    /// When it was acquired, by the holder's clock; for people.
    #[serde(default)]
    since: Option<Timestamp>,
    /// NATS users of earlier holders that the servers may not know to be shut
    /// out yet.
    #[serde(default)]
    shut_out: Vec<UserKey>,
}

impl LeaseValue {
    /// Where its holder is reached, while it has not given it back.
    fn url(&self) -> Option<String> {
        self.who.url.clone().filter(|_| !self.released)
    }
}

/// Why the lease cannot be worked with at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The highest epoch could not be stored.
    #[error("the lease's epoch cannot be stored, so this broker must not be active: {0}")]
    State(#[from] StateDirError),
}

#[derive(Clone, Debug)]
struct Held {
    epoch: u64,
    until: Moment,
    since: Timestamp,
    shut_out: Vec<UserKey>,
    from: Option<String>,
}

/// Where this broker stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// Another one is active, or nothing is known yet. After
    /// [`Place::Active`] it says that another one has taken over: what this
    /// one has in memory is out of date.
    Standby {
        /// For people.
        why: String,
        /// Where the active one is reached, as far as it is known.
        active: Option<String>,
    },
    /// This broker is active.
    Active {
        /// With this epoch.
        epoch: u64,
        /// Rises when another broker was active in between: what was loaded
        /// in another term is out of date.
        term: u64,
    },
    /// This broker was active and cannot renew. Nobody else has taken over:
    /// what it has in memory still holds.
    Suspended,
}

/// The right to write and to publish. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held: Mutex<Option<Held>>,
    place: watch::Sender<Place>,
    /// An epoch that was seen elsewhere: the next one is above it.
    seen: AtomicU64,
    /// Told when it has risen.
    risen: Notify,
    /// NATS users of holders that this process has seen and that are not shut
    /// out, newest first: a store that goes back forgets who they were.
    met: Mutex<Vec<UserKey>>,
}

impl Lease {
    /// The epoch of this broker's lease. `None`: it is not active now, and
    /// nothing may be published or written.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        let held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref()
            .filter(|held| Moment::now() < held.until)
            .map(|held| held.epoch)
    }

    /// Since when this broker is active, by its own clock; for people.
    #[must_use]
    pub fn since(&self) -> Option<Timestamp> {
        let held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|held| held.since)
    }

    /// From which broker the lease was taken over, when it was another one's:
    /// its URL, as far as it is known.
    #[must_use]
    pub fn taken_from(&self) -> Option<String> {
        let held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().and_then(|held| held.from.clone())
    }

    /// NATS users of earlier holders. Before anything is read for a session,
    /// the servers must have closed their connections: what one of them was
    /// about to write is then stored before it is read, or never.
    #[must_use]
    pub fn to_shut_out(&self) -> Vec<UserKey> {
        let held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref()
            .map_or_else(Vec::new, |held| held.shut_out.clone())
    }

    /// Every server knows that these are shut out: whoever comes after this
    /// broker need not see to it.
    pub fn are_shut_out(&self, users: &[UserKey]) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.as_mut() {
            held.shut_out.retain(|user| !users.contains(user));
        }
        self.met().retain(|user| !users.contains(user));
    }

    fn met(&self) -> std::sync::MutexGuard<'_, Vec<UserKey>> {
        self.0.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers whose users these are until they are shut out.
    fn meet(&self, users: &[UserKey]) {
        let mut met = self.met();
        for user in users {
            if !met.contains(user) {
                met.insert(0, user.clone());
            }
        }
        met.truncate(MAX_SHUT_OUT);
    }

    /// Where this broker stands, and every change of it.
    #[must_use]
    pub fn places(&self) -> watch::Receiver<Place> {
        self.0.place.subscribe()
    }

    /// Somebody has seen this epoch of the cluster's lease: what is held is
    /// given up unless it is above, and the next one will be. One that no
    /// broker can have had ([`Lease::can_exceed`]) changes nothing.
    pub fn exceed(&self, epoch: u64) {
        if self.can_exceed(epoch) {
            self.0.seen.fetch_max(epoch, Ordering::Relaxed);
            self.0.risen.notify_one();
        }
    }

    /// Whether a broker can have had this epoch.
    #[must_use]
    pub fn can_exceed(&self, epoch: u64) -> bool {
        epoch < HIGHEST
    }

    /// The highest epoch that the next one is to be above.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.0.seen.load(Ordering::Relaxed)
    }

    /// A lease that is held for ever, for tests.
    #[must_use]
    pub fn fixed(epoch: u64) -> Self {
        let held = Held {
            epoch,
            until: Moment::now() + Duration::from_secs(1_000_000_000),
            since: Timestamp::now(),
            shut_out: Vec::new(),
            from: None,
        };
        let inner = Inner {
            held: Mutex::new(Some(held)),
            place: watch::Sender::new(Place::Active { epoch, term: 0 }),
            seen: AtomicU64::new(0),
            risen: Notify::new(),
            met: Mutex::default(),
        };
        Self(Arc::new(inner))
    }

    /// A lease that is never held, for tests.
    #[cfg(test)]
    pub(crate) fn not_held() -> Self {
        let place = watch::Sender::new(Place::Suspended);
        Self(Arc::new(Inner {
            held: Mutex::new(None),
            place,
            seen: AtomicU64::new(0),
            risen: Notify::new(),
            met: Mutex::default(),
        }))
    }

    /// Begins to seek the lease, and keeps it until `cancel`; then it is
    /// given back. The task ends with an error when this broker can never be
    /// active.
    pub fn seek(
        bucket: Kv<LeaseValue>,
        state: StateDir,
        holder: Holder,
        who: Who,
        cancel: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<Result<(), LeaseError>>) {
        let standby = Place::Standby {
            why: "the lease is being looked at".into(),
            active: None,
        };
        let lease = Self(Arc::new(Inner {
            held: Mutex::new(None),
            place: watch::Sender::new(standby),
            seen: AtomicU64::new(0),
            risen: Notify::new(),
            met: Mutex::default(),
        }));
        let seeker = Seeker {
            bucket,
            state,
            holder,
            who,
            instance: InstanceId::random(),
            shared: lease.clone(),
            seen: None,
            first: true,
            was_active: false,
            term: 0,
        };
        (lease, tokio::spawn(seeker.run(cancel)))
    }

    fn set(&self, held: Option<Held>) {
        *self.0.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    fn tell(&self, place: Place) {
        self.0.place.send_if_modified(|now| {
            let changed = *now != place;
            *now = place;
            changed
        });
    }
}

struct Seeker {
    bucket: Kv<LeaseValue>,
    state: StateDir,
    holder: Holder,
    who: Who,
    instance: InstanceId,
    shared: Lease,
    /// The revision that was seen last, and since when it is unchanged.
    seen: Option<(u64, Moment)>,
    /// Nothing was acquired by this process yet.
    first: bool,
    was_active: bool,
    /// See [`Place::Active`].
    term: u64,
}

impl Seeker {
    async fn run(mut self, cancel: CancellationToken) -> Result<(), LeaseError> {
        loop {
            let taken = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                taken = self.try_take() => taken?,
            };
            if let Some((value, revision)) = taken {
                self.keep(value, revision, &cancel).await;
                if cancel.is_cancelled() {
                    return Ok(());
                }
                continue;
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn is_mine(&self, value: &LeaseValue) -> bool {
        // Of the same holder only one process can be alive. What it wrote under
        // a lower epoch than it has had since is from before: the store went
        // back in time.
        let older = self.first || value.epoch < self.holder.epoch;
        value.instance == self.instance || (older && value.holder == self.holder.id)
    }

    async fn try_take(&mut self) -> Result<Option<(LeaseValue, u64)>, LeaseError> {
        let entry = match timeout(ANSWER, self.bucket.get(KEY)).await {
            Ok(Ok(entry)) => entry,
            Ok(Err(error)) => {
                return Ok(self.not_now(&format!("the lease cannot be read: {error}"), None));
            }
            Err(_) => {
                let why = "the lease cannot be read: NATS does not answer";
                return Ok(self.not_now(why, None));
            }
        };
        if let Some(entry) = &entry
            && !self.is_mine(&entry.value)
        {
            if self.was_active && !entry.value.released {
                self.lost(entry.value.url());
            }
            let since = match self.seen {
                Some((revision, since)) if revision == entry.revision => since,
                _ => {
                    self.seen = Some((entry.revision, Moment::now()));
                    self.shared.meet(&entry.value.who.users);
                    Moment::now()
                }
            };
            if !entry.value.released && since.elapsed() < TTL {
                let why = match entry.value.url() {
                    Some(url) => format!(
                        "the broker at {} is active (epoch {})",
                        printable(&url, 200),
                        entry.value.epoch
                    ),
                    None => format!("another broker is active (epoch {})", entry.value.epoch),
                };
                return Ok(self.not_now(&why, entry.value.url()));
            }
        }
        self.take(entry).await
    }

    async fn take(
        &mut self,
        entry: Option<KvEntry<LeaseValue>>,
    ) -> Result<Option<(LeaseValue, u64)>, LeaseError> {
        let last = entry.as_ref().map_or(0, |e| e.value.epoch);
        let epoch = last.max(self.holder.epoch).max(self.shared.seen()) + 1;
        // On disk before it is used: a wiped NATS must not bring an old epoch
        // back.
        self.holder.epoch = epoch;
        self.state.store_holder(&self.holder)?;
        let since = Timestamp::now();
        let shut_out = self.others(entry.as_ref().map(|entry| &entry.value));
        let value = LeaseValue {
            holder: self.holder.id,
            instance: self.instance,
            epoch,
            beat: 0,
            released: false,
            who: self.who.clone(),
            since: Some(since),
            shut_out: shut_out.clone(),
        };
        let from = entry
            .as_ref()
            .filter(|entry| entry.value.holder != self.holder.id)
            .map(|entry| {
                let url = entry.value.who.url.as_deref();
                printable(url.unwrap_or("another broker"), 200)
            });
        let sent = Moment::now();
        let write = async {
            match &entry {
                None => self.bucket.create(KEY, &value).await,
                Some(entry) => self.bucket.update(KEY, &value, entry.revision).await,
            }
        };
        let revision = match timeout(ANSWER, write).await {
            Ok(Ok(revision)) => revision,
            // Whether an unconfirmed write was stored shows at the next look.
            Ok(Err(error)) => {
                return Ok(self.not_now(&format!("the lease cannot be taken: {error}"), None));
            }
            Err(_) => {
                let why = "the lease cannot be taken: NATS does not answer";
                return Ok(self.not_now(why, None));
            }
        };
        // Somebody else was active in between, and this process has its state
        // from before.
        if self.was_active && entry.is_some_and(|e| e.value.instance != self.instance) {
            self.term += 1;
        }
        self.first = false;
        self.was_active = true;
        self.shared.set(Some(Held {
            epoch,
            until: sent + TTL.saturating_sub(MARGIN),
            since,
            shut_out,
            from,
        }));
        self.shared.tell(Place::Active {
            epoch,
            term: self.term,
        });
        tracing::info!(epoch, "this broker is active");
        Ok(Some((value, revision)))
    }

    /// The NATS users that are not this broker's own, of the holder and those
    /// before it, as far as the store knows them or they were seen.
    fn others(&self, value: Option<&LeaseValue>) -> Vec<UserKey> {
        let mut users: Vec<UserKey> = Vec::new();
        let met = self.shared.met();
        let stored = value
            .into_iter()
            .flat_map(|value| value.who.users.iter().chain(&value.shut_out));
        for user in stored.chain(met.iter()) {
            if !self.who.users.contains(user) && !users.contains(user) {
                users.push(user.clone());
            }
        }
        // The newest come first.
        users.truncate(MAX_SHUT_OUT);
        users
    }

    fn lost(&mut self, active: Option<String>) {
        self.shared.set(None);
        self.was_active = false;
        self.term += 1;
        self.shared.tell(Place::Standby {
            why: match &active {
                Some(url) => format!("the broker at {} has taken over", printable(url, 200)),
                None => "another broker has taken over".into(),
            },
            active,
        });
    }

    fn not_now(&mut self, why: &str, active: Option<String>) -> Option<(LeaseValue, u64)> {
        if !self.was_active {
            self.shared.tell(Place::Standby {
                why: why.to_owned(),
                active,
            });
        }
        None
    }

    /// Renews until it cannot, or until `cancel`.
    async fn keep(&mut self, mut value: LeaseValue, mut revision: u64, cancel: &CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => {
                    self.release(value, revision).await;
                    return;
                }
                () = sleep(RENEW_EVERY) => {}
                () = self.shared.0.risen.notified() => {}
            }
            if self.shared.seen() >= value.epoch {
                tracing::warn!(
                    epoch = value.epoch,
                    seen = self.shared.seen(),
                    "the lease is taken anew, above an epoch that was seen"
                );
                self.shared.set(None);
                self.shared.tell(Place::Suspended);
                // What is in memory is older than what somebody has seen.
                self.term += 1;
                return;
            }
            // After its end it is not renewed but taken again, with a new
            // epoch.
            if self.shared.epoch().is_none() {
                break;
            }
            value.beat += 1;
            value.shut_out = self.shared.to_shut_out();
            let sent = Moment::now();
            match timeout(ANSWER, self.bucket.update(KEY, &value, revision)).await {
                Ok(Ok(renewed)) => {
                    revision = renewed;
                    self.extend(value.epoch, sent);
                    continue;
                }
                Ok(Err(KvError::Conflict { .. })) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be renewed"),
                Err(_) => tracing::warn!("the lease could not be renewed: NATS does not answer"),
            }
            // An unconfirmed renewal may have been stored after all.
            match timeout(ANSWER, self.bucket.get(KEY)).await {
                Ok(Ok(Some(entry))) if entry.value.instance == self.instance => {
                    revision = entry.revision;
                    // It was, though the answer came late or never.
                    if entry.value.beat == value.beat {
                        self.extend(value.epoch, sent);
                    }
                }
                Ok(Ok(other)) => {
                    tracing::error!("another broker has taken the lease");
                    self.lost(other.and_then(|entry| entry.value.url()));
                    return;
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
        tracing::warn!(
            epoch = value.epoch,
            "the lease has run out; nothing is written until it is back"
        );
        self.shared.set(None);
        self.shared.tell(Place::Suspended);
    }

    fn extend(&self, epoch: u64, sent: Moment) {
        let mut held = self
            .shared
            .0
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.as_mut().filter(|held| held.epoch == epoch) {
            held.until = sent + TTL.saturating_sub(MARGIN);
        }
    }

    async fn release(&self, mut value: LeaseValue, revision: u64) {
        // First this broker stops, then others may begin.
        self.shared.set(None);
        self.shared.tell(Place::Suspended);
        value.released = true;
        match timeout(ANSWER, self.bucket.update(KEY, &value, revision)).await {
            Ok(Ok(_)) => tracing::info!(epoch = value.epoch, "the lease is given back"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the lease could not be given back; it will run out")
            }
            Err(_) => tracing::warn!("the lease could not be given back; it will run out"),
        }
    }
}

#[cfg(test)]
mod tests;
