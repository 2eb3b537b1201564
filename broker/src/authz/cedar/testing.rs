//! Nodes for tests.

use std::sync::Arc;

use muster_protocol::ids::Serial;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::Assignment;
use serde_json::Value;

use crate::inventory::{NodeRecord, Standing};

/// A node with these roles, labels and facts.
pub(crate) fn node(
    serial: u32,
    roles: &[&str],
    labels: &[(&str, &str)],
    facts: &Value,
) -> NodeRecord {
    NodeRecord {
        serial: Serial(serial),
        node_key: muster_protocol::keys::PrivateKey::generate().public(),
        nats_key: String::new(),
        assignment: Assignment {
            revision: 1,
            name: format!("n{serial}").parse().unwrap(),
            roles: roles.iter().map(|role| role.parse().unwrap()).collect(),
            labels: labels
                .iter()
                .map(|(key, value)| (key.parse().unwrap(), value.parse().unwrap()))
                .collect(),
        },
        infrastructure: false,
        enrolled: Timestamp::UNIX_EPOCH,
        jwt_iat: 0,
        standing: Standing::Active,
        facts: Arc::new(facts.as_object().cloned().unwrap_or_default()),
        notes: Vec::new(),
        last_seen: None,
    }
}
