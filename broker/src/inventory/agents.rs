//! What agents said about themselves: kept by kind of agent, not by node, so
//! that a whole fleet that reconnects costs one small write.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use muster_protocol::ids::Serial;
use muster_protocol::nodeset::NodeSet;
use muster_protocol::wire::AgentInfo;
use serde::{Deserialize, Serialize};

use super::{Inventory, Kept, Snapshot};

/// Most bytes that are stored. Agents of one kind take little; nodes that
/// invent versions cannot fill a message.
const MAX_STORED: usize = 512 * 1024;

/// Agents of one kind, and the nodes that run them.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AgentKind {
    agent: AgentInfo,
    nodes: NodeSet,
}

/// A value of `muster_cluster`: what every agent said last.
pub type AgentsValue = Vec<AgentKind>;

pub(super) const AGENTS_KEY: &str = "agents";

#[derive(Debug, Default)]
pub(super) struct Agents {
    by_node: HashMap<Serial, Arc<AgentInfo>>,
    changed: bool,
}

impl Agents {
    pub(super) fn read(stored: AgentsValue) -> Self {
        let mut by_node = HashMap::new();
        for kind in stored {
            let agent = Arc::new(kind.agent);
            by_node.extend(kind.nodes.iter().map(|node| (node, Arc::clone(&agent))));
        }
        Self {
            by_node,
            changed: false,
        }
    }

    /// What is to be stored, if anything changed; the largest kinds first, as
    /// far as there is room.
    fn take_changed(&mut self, snapshot: &Snapshot) -> Option<AgentsValue> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.by_node.retain(|node, _| snapshot.get(*node).is_some());
        let mut kinds: HashMap<&AgentInfo, Vec<Serial>> = HashMap::new();
        for (node, agent) in &self.by_node {
            kinds.entry(&**agent).or_default().push(*node);
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by(|(a, x), (b, y)| y.len().cmp(&x.len()).then_with(|| a.cmp(b)));
        let mut room = MAX_STORED;
        Some(
            kinds
                .into_iter()
                .map(|(agent, nodes)| AgentKind {
                    agent: agent.clone(),
                    nodes: nodes.into_iter().collect(),
                })
                .take_while(|kind| {
                    let size = serde_json::to_vec(kind).map_or(usize::MAX, |json| json.len());
                    room = room.saturating_sub(size);
                    room > 0
                })
                .collect(),
        )
    }
}

impl Inventory {
    /// What the node's agent said about itself last, to this broker or to one
    /// before it.
    #[must_use]
    pub fn agent(&self, node: Serial) -> Option<Arc<AgentInfo>> {
        self.agents().by_node.get(&node).cloned()
    }

    /// Remembers what a node's agent says about itself; stored within
    /// seconds.
    pub fn note_agent(&self, node: Serial, agent: AgentInfo) {
        let mut agents = self.agents();
        if agents
            .by_node
            .get(&node)
            .is_some_and(|known| **known == agent)
        {
            return;
        }
        agents.by_node.insert(node, Arc::new(agent));
        agents.changed = true;
    }

    pub(super) async fn write_agents(&self, kept: &Kept) {
        if kept.active().is_err() {
            return;
        }
        let value = {
            let snapshot = self.snapshot();
            self.agents().take_changed(&snapshot)
        };
        let Some(value) = value else { return };
        if let Err(error) = kept.buckets.agents.put(AGENTS_KEY, &value).await {
            tracing::warn!(%error, "what agents said about themselves could not be stored");
            self.agents().changed = true;
        }
    }

    fn agents(&self) -> std::sync::MutexGuard<'_, Agents> {
        self.0.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
