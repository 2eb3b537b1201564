//! What the cluster holds: keys, and what is kept.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::ClusterId;
use crate::keys::{BrokerKey, BrokerKeyState, KeyId, KeyList, PublicKey};
use crate::units::Timestamp;

/// Whom the nodes obey.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Keys {
    /// The cluster.
    pub cluster: ClusterId,
    /// Rises with every change.
    pub epoch: u64,
    /// The root key, which signs the list that nodes have.
    pub root: PublicKey,
    /// The broker keys, revoked ones kept.
    pub keys: Vec<KeyView>,
    /// When the list was signed.
    #[schema(value_type = String, format = DateTime)]
    pub issued: Timestamp,
}

/// A broker key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct KeyView {
    /// By which it is revoked.
    pub id: KeyId,
    /// The key itself.
    pub key: PublicKey,
    /// Whether it may sign.
    pub state: BrokerKeyState,
    /// Whether the active broker signs with it now.
    pub signs: bool,
    /// When it came onto the list.
    #[schema(value_type = String, format = DateTime)]
    pub added: Timestamp,
}

impl Keys {
    /// The list, when the key `signing` signs.
    #[must_use]
    pub fn new(list: &KeyList, signing: KeyId) -> Self {
        let view = |key: &BrokerKey| KeyView {
            id: key.key.id(),
            key: key.key,
            state: key.state,
            signs: key.key.id() == signing,
            added: key.added,
        };
        Self {
            cluster: list.cluster,
            epoch: list.epoch,
            root: list.root,
            keys: list.keys.iter().map(view).collect(),
            issued: list.issued,
        }
    }
}

/// The room that something has, and how much of it is used.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Space {
    /// `runs` (journals and output), `events`, or `store` (all that NATS
    /// keeps, against what its own limits and its disk allow).
    pub what: String,
    /// Bytes used.
    pub bytes: u64,
    /// Bytes that there is room for; absent when nothing is known to limit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How many things it is: messages of a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Since when there is an alarm, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub alarm_since: Option<Timestamp>,
}

impl Space {
    /// Hundredths of the room that are used; `None` without a limit.
    #[must_use]
    pub fn percent(&self) -> Option<u64> {
        let limit = self.limit.filter(|limit| *limit > 0)?;
        u64::try_from(u128::from(self.bytes) * 100 / u128::from(limit)).ok()
    }
}

/// What retention has removed since the cluster began.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Removed {
    /// Runs, with everything that is known of them.
    pub runs: u64,
    /// Outputs of runs of which the rest was kept.
    pub outputs: u64,
    /// No run that ended later than this was removed as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub runs_to: Option<Timestamp>,
}
