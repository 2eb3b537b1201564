//! What `muster_nodes` and `muster_facts` hold.

use std::sync::Arc;

use muster_protocol::ids::Serial;
use muster_protocol::keys::PublicKey;
use muster_protocol::names::NodeName;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::Assignment;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::record::{NodeRecord, Standing};

/// A value of `muster_nodes`; the key is the serial.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum StoredNode {
    /// Enrolled.
    Enrolled {
        /// Its identity key.
        node_key: PublicKey,
        /// Its NATS user key.
        nats_key: String,
        /// Name, roles, labels.
        assignment: Assignment,
        /// One of the broker's own machines.
        infrastructure: bool,
        /// When it enrolled.
        enrolled: Timestamp,
        /// Newest `iat` given to one of its JWTs.
        jwt_iat: u64,
        /// Whether it may take part.
        standing: Standing,
    },
    /// Removed or replaced: its keys are refused for ever.
    Removed {
        /// Its identity key.
        node_key: PublicKey,
        /// Its NATS user key.
        nats_key: String,
        /// The name that it had.
        name: NodeName,
        /// When.
        removed: Timestamp,
        /// Who, and why, for people.
        by: String,
        /// Newest `iat` given to one of its JWTs: all are void.
        jwt_iat: u64,
    },
}

/// A value of `muster_facts`; the key is the serial.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredFacts {
    /// The facts.
    pub facts: Arc<Map<String, Value>>,
    /// What the node noticed.
    pub notes: Vec<String>,
}

impl StoredNode {
    /// As it is after a restore: its assignment is newer than any that it may
    /// have seen, and its next JWT is of `jwt_iat` at the earliest.
    pub(crate) fn moved_on(mut self, revisions: u64, earliest: u64) -> Self {
        match &mut self {
            Self::Enrolled {
                assignment,
                jwt_iat,
                ..
            } => {
                assignment.revision = assignment.revision.saturating_add(revisions);
                *jwt_iat = earliest.max(*jwt_iat);
            }
            Self::Removed { .. } => {}
        }
        self
    }

    /// What is to take the place of this value, when an older store has it and
    /// `other` was lost; nothing when this one is to stay. A node that was
    /// removed stays so, and what only rises never falls.
    pub(crate) fn reconciled(&self, other: Self, other_is_newer: bool) -> Option<Self> {
        if self.keys() != other.keys() {
            // The serial was given a second time, by a broker that did not
            // know of the first.
            return None;
        }
        let mut next = match (self, &other) {
            (Self::Removed { .. }, _) => return None,
            (_, Self::Removed { .. }) => return Some(other),
            _ if other_is_newer => other.clone(),
            _ => self.clone(),
        };
        let (Some((one, one_iat)), Some((two, two_iat))) = (self.risen(), other.risen()) else {
            return None;
        };
        if let Self::Enrolled {
            assignment,
            jwt_iat,
            ..
        } = &mut next
        {
            *jwt_iat = one_iat.max(two_iat);
            let differ =
                (&one.name, &one.roles, &one.labels) != (&two.name, &two.roles, &two.labels);
            let highest = one.revision.max(two.revision);
            if highest > assignment.revision {
                assignment.revision = highest + u64::from(differ);
            }
        }
        (next != *self).then_some(next)
    }

    fn risen(&self) -> Option<(&Assignment, u64)> {
        match self {
            Self::Enrolled {
                assignment,
                jwt_iat,
                ..
            } => Some((assignment, *jwt_iat)),
            Self::Removed { .. } => None,
        }
    }

    /// Its NATS user, and up to when all JWTs of it are void, when it may not
    /// take part.
    pub(crate) fn void(&self) -> Option<(&str, u64)> {
        match self {
            Self::Removed {
                nats_key, jwt_iat, ..
            }
            | Self::Enrolled {
                nats_key,
                jwt_iat,
                standing: Standing::Quarantined { .. },
                ..
            } => Some((nats_key, *jwt_iat)),
            Self::Enrolled { .. } => None,
        }
    }

    /// Whether it was removed or replaced.
    pub(crate) fn is_removed(&self) -> bool {
        matches!(self, Self::Removed { .. })
    }

    pub(super) fn of(record: &NodeRecord) -> Self {
        Self::Enrolled {
            node_key: record.node_key,
            nats_key: record.nats_key.clone(),
            assignment: record.assignment.clone(),
            infrastructure: record.infrastructure,
            enrolled: record.enrolled,
            jwt_iat: record.jwt_iat,
            standing: record.standing.clone(),
        }
    }

    pub(super) fn removed(record: &NodeRecord, by: &str, at: Timestamp) -> Self {
        Self::Removed {
            node_key: record.node_key,
            nats_key: record.nats_key.clone(),
            name: record.assignment.name.clone(),
            removed: at,
            by: by.to_owned(),
            jwt_iat: record.jwt_iat,
        }
    }

    pub(super) fn keys(&self) -> (PublicKey, &str) {
        match self {
            Self::Enrolled {
                node_key, nats_key, ..
            }
            | Self::Removed {
                node_key, nats_key, ..
            } => (*node_key, nats_key),
        }
    }

    pub(super) fn into_record(
        self,
        serial: Serial,
        facts: StoredFacts,
        last_seen: Option<Timestamp>,
    ) -> Option<NodeRecord> {
        let Self::Enrolled {
            node_key,
            nats_key,
            assignment,
            infrastructure,
            enrolled,
            jwt_iat,
            standing,
        } = self
        else {
            return None;
        };
        Some(NodeRecord {
            serial,
            node_key,
            nats_key,
            assignment,
            infrastructure,
            enrolled,
            jwt_iat,
            standing,
            facts: facts.facts,
            notes: facts.notes,
            last_seen,
        })
    }
}
