//! What really happened, kept apart from the nodes' journals so that it can
//! testify against them: how often each step took effect on each node.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_protocol::ids::RequestId;
use muster_protocol::run::Outcome;
use serde::Serialize;

/// Most steps that are remembered, the newest ones.
const MAX_REQUESTS: usize = 10_000;

/// Counters of the whole fleet, each rising only.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that were made.
    pub connects: AtomicU64,
    /// Connections that ended without being told to.
    pub losses: AtomicU64,
    /// Connections that the server refused for their credentials.
    pub unauthorized: AtomicU64,
    /// Connections that the simulation itself ended.
    pub dropped: AtomicU64,
    /// Hellos that were refused.
    pub hellos_refused: AtomicU64,
    /// Pings answered.
    pub pongs: AtomicU64,
    /// Steps that were acknowledged before they ended, or again.
    pub accepted: AtomicU64,
    /// Outcomes sent, all repetitions counted.
    pub reports: AtomicU64,
    /// Outcomes that the broker has.
    pub stored: AtomicU64,
    /// Outcomes that the broker does not want.
    pub unwanted: AtomicU64,
    /// Fresh credentials fetched.
    pub renewals: AtomicU64,
    /// Newer lists of broker keys taken.
    pub key_lists: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The witness.
#[derive(Debug)]
pub struct Witness {
    nodes: usize,
    inner: Mutex<Inner>,
    /// Counters.
    pub tally: Tally,
}

#[derive(Debug, Default)]
struct Inner {
    requests: HashMap<RequestId, Seen>,
    order: VecDeque<RequestId>,
    forgotten: u64,
    forgotten_twice: u64,
    refused: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Seen {
    /// By the node's number.
    effects: Box<[u8]>,
    outcomes: BTreeMap<Outcome, u32>,
}

/// One step, as it was seen.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RequestSeen {
    /// Effects on all nodes together.
    pub effects: u64,
    /// Nodes on which it took effect.
    pub nodes: u32,
    /// Most effects on any one node: never more than 1.
    pub most_on_a_node: u8,
    /// Outcomes that the nodes journaled.
    pub outcomes: BTreeMap<Outcome, u32>,
}

/// What the witness says.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Testimony {
    /// Steps on nodes that took effect more than once: 0, or something is
    /// wrong.
    pub more_than_once: u64,
    /// Each step.
    pub requests: BTreeMap<String, RequestSeen>,
    /// Steps that are left out because there were too many.
    pub forgotten: u64,
    /// Messages that were refused, by kind.
    pub refused: BTreeMap<&'static str, u64>,
}

impl Seen {
    fn twice(&self) -> u64 {
        self.effects.iter().filter(|n| **n > 1).count() as u64
    }
}

impl Witness {
    /// For so many nodes.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes,
            inner: Mutex::default(),
            tally: Tally::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step takes effect on a node.
    pub fn effect(&self, node: u32, request: RequestId) {
        let mut inner = self.inner();
        let seen = inner.seen(request, self.nodes);
        if let Some(count) = seen.effects.get_mut(node as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// A node has journaled an outcome.
    pub fn outcome(&self, request: RequestId, outcome: Outcome) {
        let mut inner = self.inner();
        let seen = inner.seen(request, self.nodes);
        *seen.outcomes.entry(outcome).or_default() += 1;
    }

    /// A node has refused a message.
    pub fn refused(&self, kind: &'static str) {
        *self.inner().refused.entry(kind).or_default() += 1;
    }

    /// Everything so far.
    #[must_use]
    pub fn testimony(&self) -> Testimony {
        let inner = self.inner();
        let requests = inner.requests.iter().map(|(id, seen)| {
            let at = &seen.effects;
            let seen = RequestSeen {
                effects: at.iter().map(|n| u64::from(*n)).sum(),
                nodes: u32::try_from(at.iter().filter(|n| **n > 0).count()).unwrap_or(u32::MAX),
                most_on_a_node: at.iter().copied().max().unwrap_or(0),
                outcomes: seen.outcomes.clone(),
            };
            (id.to_string(), seen)
        });
        let twice: u64 = inner.requests.values().map(Seen::twice).sum();
        Testimony {
            more_than_once: twice + inner.forgotten_twice,
            requests: requests.collect(),
            forgotten: inner.forgotten,
            refused: inner.refused.clone(),
        }
    }
}

impl Inner {
    fn seen(&mut self, request: RequestId, nodes: usize) -> &mut Seen {
        if !self.requests.contains_key(&request) {
            self.order.push_back(request);
            if self.order.len() > MAX_REQUESTS
                && let Some(oldest) = self.order.pop_front()
                && let Some(seen) = self.requests.remove(&oldest)
            {
                self.forgotten += 1;
                self.forgotten_twice += seen.twice();
            }
        }
        self.requests.entry(request).or_insert_with(|| Seen {
            effects: vec![0; nodes].into(),
            outcomes: BTreeMap::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::ids::RunId;

    #[test]
    fn a_second_effect_is_seen_also_when_its_step_is_long_forgotten() {
        let witness = Witness::new(3);
        let id = |n: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            RequestId {
                run: RunId::from_bytes(bytes),
                step: 0,
            }
        };
        witness.effect(1, id(0));
        witness.effect(2, id(0));
        witness.effect(2, id(0));
        let said = witness.testimony();
        assert_eq!(said.more_than_once, 1);
        let seen = &said.requests[&id(0).to_string()];
        assert_eq!((seen.effects, seen.nodes, seen.most_on_a_node), (3, 2, 2));
        for n in 1..=MAX_REQUESTS {
            witness.effect(0, id(n));
        }
        let said = witness.testimony();
        assert_eq!((said.more_than_once, said.forgotten), (1, 1));
    }
}
