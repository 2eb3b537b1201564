//! Who the nodes are: the only writer of `muster_nodes` and `muster_facts`.
//!
//! Every change is written to its KV bucket first, by compare-and-swap, and
//! only then shows in the [`Snapshot`] that everybody else reads.

mod accounts;
mod agents;
mod change;
mod control;
mod record;
mod snapshot;
mod stored;
mod strangers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use muster_protocol::ids::Serial;
use muster_protocol::keys::PublicKey;
use muster_protocol::names::NodeName;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::{Facts, MAX_FACTS};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use self::accounts::Accounts;
use self::agents::{AGENTS_KEY, Agents};
use crate::events::Events;
use crate::lease::Lease;
use crate::nats::admin::SystemClient;
use crate::nats::keys::{NatsKeys, UserKey};
use crate::store::kv::{Kv, KvError};

pub(crate) use self::accounts::{ACCOUNT_NAME, SYSTEM_NAME, now_seconds};
pub use self::accounts::{AccountError, AccountValue};
pub use self::agents::{AgentKind, AgentsValue};
pub use self::change::{Changed, NewNode};
pub use self::control::{Detached, NodeControl, PresenceView};
pub use self::record::{NodeRecord, Standing};
pub use self::snapshot::Snapshot;
pub use self::stored::{StoredFacts, StoredNode};
pub use self::strangers::Absent;

/// Most roles of a node: they travel in its NATS credentials.
pub const MAX_ROLES: usize = 64;
/// Most labels of a node.
pub const MAX_LABELS: usize = 64;
/// How often what is only in memory is written, and what failed is tried
/// again.
const TEND_EVERY: Duration = Duration::from_secs(5);
/// How often [`Inventory::note_seen`] reaches the bucket.
const SEEN_EVERY: Duration = Duration::from_secs(60);

/// Why something about the inventory failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InventoryError {
    /// No node of that name or serial.
    #[error("there is no node {0}")]
    NoNode(String),
    /// The name is taken.
    #[error("there is a node {0} already; remove it first, or `muster node replace {0}`")]
    NameTaken(NodeName),
    /// The key is a node's, or was one.
    #[error(
        "this key is known: it is or was the key of node {0}; a machine that was removed or cloned \
         needs a new key: delete the agent's state directory and enrol again"
    )]
    KnownKey(NodeName),
    /// It may not take part.
    #[error(
        "node {name} is quarantined: {reason}; `muster node replace {name}` gives its name to a new key"
    )]
    Quarantined {
        /// The node.
        name: NodeName,
        /// Why.
        reason: String,
    },
    /// More than fits into credentials.
    #[error("a node has at most {MAX_ROLES} roles and {MAX_LABELS} labels")]
    TooMany,
    /// The same role or label is given and taken.
    #[error("`{0}` is both set and removed")]
    Contradiction(String),
    /// More facts than a node may have.
    #[error("the facts have {0} bytes, at most {MAX_FACTS} are taken")]
    FactsTooLarge(usize),
    /// All serials are used up.
    #[error("there are no enrolment serials left")]
    NoSerials,
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("the inventory could not be read or written: {0}")]
    Store(#[from] KvError),
    /// Credentials.
    #[error(transparent)]
    Account(#[from] AccountError),
}

/// The highest serial given so far.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(transparent)]
pub struct SerialCounter(u32);

/// When nodes were last heard, seconds since the epoch.
pub type SeenValue = BTreeMap<Serial, i64>;

const SERIAL_KEY: &str = "serial";
const SEEN_KEY: &str = "seen";

/// Has every NATS server close the connections of these users of earlier
/// brokers and of whoever the store has `lost` to be revoked, and keep them
/// out. Only the active broker does this, before it reads anything. Gives what
/// [`Inventory::was_settled`] takes.
///
/// # Errors
/// [`InventoryError::Account`]: not every server does yet.
pub(crate) async fn shut_out(
    users: &[UserKey],
    lost: Option<AccountValue>,
    bucket: Kv<AccountValue>,
    keys: Arc<NatsKeys>,
    system: SystemClient,
    credentials_life: Span,
) -> Result<u64, InventoryError> {
    muster_checkpoint::at("broker.shut-out", || users.len().to_string()).await;
    let accounts = Accounts::load(keys, system, bucket, credentials_life).await?;
    Ok(accounts.shut_out(users, lost).await?)
}

/// Where the inventory is kept.
#[derive(Debug)]
pub struct Buckets {
    /// `muster_nodes`.
    pub nodes: Kv<StoredNode>,
    /// `muster_facts`.
    pub facts: Kv<StoredFacts>,
    /// `muster_cluster`, for the times nodes were last seen.
    pub seen: Kv<SeenValue>,
    /// `muster_cluster`, for what agents said about themselves.
    pub agents: Kv<AgentsValue>,
    /// `muster_cluster`, for the last serial given.
    pub serial: Kv<SerialCounter>,
    /// `muster_cluster`, for the claims of the NATS account.
    pub account: Kv<AccountValue>,
}

/// The nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inventory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    snapshot: ArcSwap<Snapshot>,
    seen: StdMutex<Seen>,
    agents: StdMutex<Agents>,
    told: strangers::Told,
    kept: Option<Kept>,
}

#[derive(Debug, Default)]
struct Seen {
    at: HashMap<Serial, Timestamp>,
    changed: bool,
}

#[derive(Debug)]
struct Kept {
    buckets: Buckets,
    accounts: Accounts,
    lease: Lease,
    events: Events,
    index: Mutex<Index>,
}

/// What only writers need; one writer at a time.
#[derive(Debug, Default)]
struct Index {
    /// Whose key it is or was, for ever.
    keys: HashMap<[u8; 32], (Serial, NodeName)>,
    /// The same for NATS user keys.
    nats_keys: HashMap<String, (Serial, NodeName)>,
    /// Revision of each node in the bucket.
    revisions: HashMap<Serial, u64>,
}

impl Index {
    fn note(&mut self, serial: Serial, node: &StoredNode, revision: u64) {
        let (key, nats_key) = node.keys();
        let name = match node {
            StoredNode::Enrolled { assignment, .. } => &assignment.name,
            StoredNode::Removed { name, .. } => name,
        };
        self.keys.insert(*key.as_bytes(), (serial, name.clone()));
        self.nats_keys
            .insert(nats_key.to_owned(), (serial, name.clone()));
        self.revisions.insert(serial, revision);
    }
}

impl Inventory {
    /// Reads the inventory. Only the active broker does this.
    ///
    /// # Errors
    /// [`InventoryError::Store`].
    pub async fn load(
        buckets: Buckets,
        keys: Arc<NatsKeys>,
        system: SystemClient,
        lease: Lease,
        events: Events,
        credentials_life: Span,
    ) -> Result<Self, InventoryError> {
        let accounts =
            Accounts::load(keys, system, buckets.account.clone(), credentials_life).await?;
        let mut facts: HashMap<String, StoredFacts> = buckets
            .facts
            .list()
            .await?
            .entries
            .into_iter()
            .map(|e| (e.key, e.value))
            .collect();
        let seen: HashMap<Serial, Timestamp> = match buckets.seen.get(SEEN_KEY).await? {
            Some(entry) => entry
                .value
                .into_iter()
                .filter_map(|(serial, at)| Some((serial, Timestamp::from_second(at).ok()?)))
                .collect(),
            None => HashMap::new(),
        };
        let agents = match buckets.agents.get(AGENTS_KEY).await? {
            Some(entry) => Agents::read(entry.value),
            None => Agents::default(),
        };
        let mut index = Index::default();
        let mut records = Vec::new();
        let mut out = Vec::new();
        for entry in buckets.nodes.list().await?.entries {
            let Ok(serial) = entry.key.parse::<Serial>() else {
                tracing::warn!(
                    key = entry.key,
                    "muster_nodes has a key that muster never writes"
                );
                continue;
            };
            index.note(serial, &entry.value, entry.revision);
            // Whoever wrote this may have been killed before it could revoke.
            if let Some((user, until)) = entry.value.void()
                && let Ok(user) = user.parse::<UserKey>()
            {
                out.push((user, until));
            }
            let facts = facts.remove(&entry.key).unwrap_or_default();
            records.extend(
                entry
                    .value
                    .into_record(serial, facts, seen.get(&serial).copied()),
            );
        }
        accounts.keep_out(out);
        let inventory = Self(Arc::new(Inner {
            snapshot: ArcSwap::from_pointee(Snapshot::new(records)),
            seen: StdMutex::new(Seen {
                at: seen,
                changed: false,
            }),
            agents: StdMutex::new(agents),
            told: strangers::Told::default(),
            kept: Some(Kept {
                buckets,
                accounts,
                lease,
                events,
                index: Mutex::new(index),
            }),
        }));
        tracing::info!(nodes = inventory.snapshot().len(), "the inventory is read");
        Ok(inventory)
    }

    /// An inventory that is in memory only, for tests.
    #[must_use]
    pub fn in_memory(records: impl IntoIterator<Item = NodeRecord>) -> Self {
        Self(Arc::new(Inner {
            snapshot: ArcSwap::from_pointee(Snapshot::new(records)),
            seen: StdMutex::default(),
            agents: StdMutex::default(),
            told: strangers::Told::default(),
            kept: None,
        }))
    }

    /// All nodes, now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    /// When a node was last heard, as far as this broker knows or was told.
    #[must_use]
    pub fn last_seen(&self, node: Serial) -> Option<Timestamp> {
        self.seen().at.get(&node).copied()
    }

    /// Takes what a node reports about itself. The same facts again cost
    /// nothing.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub async fn set_facts(&self, node: Serial, facts: Facts) -> Result<(), InventoryError> {
        let snapshot = self.snapshot();
        let record = snapshot
            .get(node)
            .ok_or_else(|| InventoryError::NoNode(node.to_string()))?;
        if *record.facts == facts.facts && record.notes == facts.notes {
            return Ok(());
        }
        let stored = StoredFacts {
            facts: Arc::new(facts.facts),
            notes: facts.notes,
        };
        let size = serde_json::to_vec(&stored).map_or(usize::MAX, |json| json.len());
        // The notes have room of their own.
        if size > 2 * MAX_FACTS {
            return Err(InventoryError::FactsTooLarge(size));
        }
        if let Some(kept) = &self.0.kept {
            kept.active()?;
            kept.buckets.facts.put(&node.to_string(), &stored).await?;
        }
        self.0.snapshot.rcu(|now| match now.get(node) {
            // Labels and standing may have changed in the meantime.
            Some(record) => {
                let mut record = (**record).clone();
                record.facts = Arc::clone(&stored.facts);
                record.notes.clone_from(&stored.notes);
                Arc::new(now.with(Arc::new(record)))
            }
            None => Arc::clone(now),
        });
        Ok(())
    }

    /// Remembers when nodes were last heard; stored now and then, so that it
    /// survives a restart approximately.
    pub async fn note_seen(&self, seen: &[(Serial, Timestamp)]) {
        let mut known = self.seen();
        for (node, at) in seen {
            known.at.insert(*node, *at);
        }
        known.changed |= !seen.is_empty();
    }

    /// Whether every NATS server knows every revocation.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.0
            .kept
            .as_ref()
            .is_none_or(|kept| kept.accounts.is_settled())
    }

    /// The servers were just given everything, with this revision of the
    /// account's claims; or are being given what was read, whichever it is.
    pub(crate) async fn was_settled(&self, revision: Option<u64>) {
        if let Some(kept) = &self.0.kept {
            kept.accounts.was_settled(revision).await;
        }
    }

    /// Gives the NATS servers all revocations, as after a start.
    ///
    /// # Errors
    /// [`AccountError`]; [`Inventory::tend`] tries again.
    pub async fn settle(&self) -> Result<(), AccountError> {
        match &self.0.kept {
            Some(kept) => kept.accounts.settle().await.map(drop),
            None => Ok(()),
        }
    }

    /// Writes what is only in memory and repeats what failed, until `cancel`;
    /// then once more.
    pub async fn tend(self, cancel: CancellationToken) {
        let mut since = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = cancel.cancelled() => {
                    self.write_seen().await;
                    if let Some(kept) = &self.0.kept {
                        self.write_agents(kept).await;
                    }
                    return;
                }
                () = tokio::time::sleep(TEND_EVERY) => {}
            }
            if let Some(kept) = &self.0.kept
                && kept.active().is_ok()
            {
                match kept.accounts.settle().await {
                    Ok(true) => tracing::info!("every NATS server has all revocations"),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(%error, "revocations are not in force everywhere yet")
                    }
                }
                self.write_agents(kept).await;
            }
            if since.elapsed() >= SEEN_EVERY {
                self.write_seen().await;
                since = tokio::time::Instant::now();
            }
        }
    }

    async fn write_seen(&self) {
        let Some(kept) = &self.0.kept else { return };
        if kept.active().is_err() {
            return;
        }
        let value: SeenValue = {
            let snapshot = self.snapshot();
            let mut seen = self.seen();
            if !std::mem::take(&mut seen.changed) {
                return;
            }
            seen.at.retain(|node, _| snapshot.get(*node).is_some());
            seen.at
                .iter()
                .map(|(node, at)| (*node, at.as_second()))
                .collect()
        };
        if let Err(error) = kept.buckets.seen.put(SEEN_KEY, &value).await {
            tracing::warn!(%error, "when nodes were last heard could not be stored");
            self.seen().changed = true;
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn active(&self) -> Result<u64, InventoryError> {
        self.lease.epoch().ok_or(InventoryError::NotActive)
    }
}

fn user_key(record: &NodeRecord) -> Option<UserKey> {
    let key = record.nats_key.parse();
    if key.is_err() {
        tracing::error!(node = %record.assignment.name, "the node's NATS key in the inventory is damaged");
    }
    key.ok()
}

fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint().to_string()
}
