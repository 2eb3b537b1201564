//! How far the journal of each node was: a node that comes back with an older
//! one has forgotten what it did.
//!
//! The position in a node's journal rises with each start of its agent and
//! each request that it writes down. It is kept in memory and now and then in
//! `muster_cluster`, so that a broker that starts anew knows it too.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_protocol::ids::{InstanceId, Serial};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// The key in `muster_cluster`.
const KEY: &str = "journals";
/// How often it is stored, when it changed.
const STORE_EVERY: Duration = Duration::from_secs(20);

/// How far a node's journal was.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// The highest position that it has said.
    position: u64,
    /// The start of the agent that said it.
    instance: InstanceId,
}

/// What `muster_cluster` holds.
pub type StoredJournals = BTreeMap<Serial, Known>;

/// That a node has an older journal than it had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Older {
    /// How far it was.
    pub was: u64,
    /// How far it is.
    pub is: u64,
}

/// The positions of all nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    kept: Option<(Kv<StoredJournals>, Lease)>,
}

#[derive(Debug, Default)]
struct State {
    known: StoredJournals,
    /// Nodes that have said hello to this broker, and keep what they are
    /// asked.
    keepers: HashSet<Serial>,
    changed: bool,
}

impl Journals {
    /// What NATS knows of it. Only the active broker asks.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn load(bucket: Kv<StoredJournals>, lease: Lease) -> Result<Self, KvError> {
        let known = bucket.get(KEY).await?.map(|e| e.value).unwrap_or_default();
        let state = State {
            known,
            ..State::default()
        };
        Ok(Self(Arc::new(Inner {
            state: Mutex::new(state),
            kept: Some((bucket, lease)),
        })))
    }

    /// In memory only, for tests.
    #[must_use]
    pub fn in_memory() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            kept: None,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the position that a node says is less than it must be. Nothing
    /// is remembered by that: see [`Journals::welcomed`].
    #[must_use]
    pub fn older(&self, node: Serial, instance: InstanceId, position: u64) -> Option<Older> {
        let known = *self.state().known.get(&node)?;
        // Each start of an agent makes it higher.
        let back = if known.instance == instance {
            position < known.position
        } else {
            position <= known.position
        };
        back.then_some(Older {
            was: known.position,
            is: position,
        })
    }

    /// A node takes part, with a journal that is at least so far.
    pub fn welcomed(&self, node: Serial, instance: InstanceId, position: u64) {
        let mut state = self.state();
        state.keepers.insert(node);
        let old = state.known.get(&node).copied();
        // What it said may be older than what it has said since.
        let said = old.map_or(0, |old| old.position);
        let position = position.max(said);
        let now = Known { position, instance };
        state.known.insert(node, now);
        state.changed |= old != Some(now);
    }

    /// A node has gone back: what it says next is what counts.
    pub fn reset(&self, node: Serial) {
        let mut state = self.state();
        state.changed |= state.known.remove(&node).is_some();
    }

    /// A node that takes part says how far it is.
    pub fn beat(&self, node: Serial, instance: InstanceId, position: u64) {
        let mut state = self.state();
        if let Some(known) = state.known.get_mut(&node)
            && known.instance == instance
            && known.position < position
        {
            known.position = position;
            state.changed = true;
        }
    }

    /// Whether the node keeps the requests that it is sent, and can show them.
    #[must_use]
    pub fn can_prove(&self, node: Serial) -> bool {
        self.state().keepers.contains(&node)
    }

    /// Whether the node has ever said how far its journal is: whether it
    /// understands to be asked about it.
    #[must_use]
    pub fn is_known(&self, node: Serial) -> bool {
        self.state().known.contains_key(&node)
    }

    /// Forgets a node that was removed.
    pub fn forget(&self, node: Serial) {
        let mut state = self.state();
        state.keepers.remove(&node);
        state.changed |= state.known.remove(&node).is_some();
    }

    /// Stores it now and then, until `cancel`, and once more then.
    pub async fn keep(self, cancel: CancellationToken) {
        loop {
            let over = cancel
                .run_until_cancelled(tokio::time::sleep(STORE_EVERY))
                .await
                .is_none();
            self.store().await;
            if over {
                return;
            }
        }
    }

    async fn store(&self) {
        let Some((bucket, lease)) = &self.0.kept else {
            return;
        };
        if lease.epoch().is_none() {
            return;
        }
        let value = {
            let mut state = self.state();
            if !std::mem::take(&mut state.changed) {
                return;
            }
            state.known.clone()
        };
        if let Err(error) = bucket.put(KEY, &value).await {
            tracing::warn!(%error, "how far the journals of nodes are could not be stored");
            self.state().changed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_start_must_be_further_and_the_same_start_not_less_far() {
        let journals = Journals::in_memory();
        let (node, a, b) = (Serial(3), InstanceId::random(), InstanceId::random());
        assert_eq!(journals.older(node, a, 1), None, "nothing is known of it");
        journals.welcomed(node, a, 5);
        journals.beat(node, a, 9);
        journals.beat(node, a, 7);
        journals.beat(node, b, 70);
        assert_eq!(journals.older(node, a, 9), None, "it reconnects");
        assert_eq!(journals.older(node, a, 8), Some(Older { was: 9, is: 8 }));
        assert_eq!(journals.older(node, b, 9), Some(Older { was: 9, is: 9 }));
        assert_eq!(journals.older(node, b, 10), None, "it was started again");
        // A hello that was on its way for long makes nothing lower.
        journals.welcomed(node, a, 3);
        assert_eq!(journals.older(node, a, 8), Some(Older { was: 9, is: 8 }));
        journals.reset(node);
        journals.welcomed(node, b, 4);
        assert_eq!(journals.older(node, b, 4), None);
        journals.forget(node);
        assert_eq!(journals.older(node, a, 0), None);
    }
}
