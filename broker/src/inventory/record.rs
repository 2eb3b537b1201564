//! One node, as the broker knows it.

use std::sync::Arc;

use muster_protocol::ids::Serial;
use muster_protocol::keys::PublicKey;
use muster_protocol::predicate::Attributes;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::Assignment;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Whether a node may take part.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "standing")]
pub enum Standing {
    /// It may.
    Active,
    /// It may not, until it is replaced or removed: two machines live with
    /// its key, for example.
    Quarantined {
        /// Why, for people.
        reason: String,
        /// Since when.
        since: Timestamp,
    },
}

/// A node that is enrolled and was not removed.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRecord {
    /// Its enrolment serial.
    pub serial: Serial,
    /// Its identity key.
    pub node_key: PublicKey,
    /// Its NATS user key (`U…`).
    pub nats_key: String,
    /// Name, roles and labels, with their revision.
    pub assignment: Assignment,
    /// Whether it is one of the broker's own machines.
    pub infrastructure: bool,
    /// When it enrolled.
    pub enrolled: Timestamp,
    /// `iat` of the newest NATS JWT that was issued for it, seconds.
    pub jwt_iat: u64,
    /// Whether it may take part.
    pub standing: Standing,
    /// What it reports about itself. Labels go before facts of their name.
    pub facts: Arc<Map<String, Value>>,
    /// What the node noticed about its facts, for people.
    pub notes: Vec<String>,
    /// When it was last heard, as far as that was stored.
    pub last_seen: Option<Timestamp>,
}

impl NodeRecord {
    /// Whether it may take part.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.standing == Standing::Active
    }
}

impl Attributes for NodeRecord {
    fn name(&self) -> &str {
        self.assignment.name.as_str()
    }

    fn any_role(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.assignment.roles.iter().any(|role| test(role.as_str()))
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.assignment.labels.get(key).map(|value| value.as_str())
    }

    fn fact(&self, path: &str) -> Option<&Value> {
        fact_in(&self.facts, path)
    }
}

/// As [`muster_protocol::predicate::fact_at`], beginning with a map.
fn fact_in<'a>(facts: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(found) = facts.get(path) {
        return Some(found);
    }
    path.rmatch_indices('.').find_map(|(dot, _)| {
        muster_protocol::predicate::fact_at(facts.get(&path[..dot])?, &path[dot + 1..])
    })
}
