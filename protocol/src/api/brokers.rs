//! The brokers of a cluster: which there are, and what another one needs.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::ClusterId;
use crate::units::Timestamp;

/// Where a broker is in its life, as the active one knows it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BrokerPlace {
    /// It holds the lease.
    Active,
    /// It takes over when the active one ends.
    Standby,
    /// It was heard before, and is not heard now.
    Away,
}

/// One broker of the cluster.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct BrokerView {
    /// Where people and agents reach it.
    pub url: String,
    /// Where it is in its life.
    pub place: BrokerPlace,
    /// Its version, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The epoch of its lease, of the active one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Since when it is what it is, by its own clock.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it was heard last, of the others.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<Timestamp>,
}

/// Everything that another broker of the cluster needs to begin. It holds the
/// cluster's keys: whoever has it can be the cluster.
#[derive(Clone, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StandbyKit {
    /// The format of the state directory that the files are for.
    pub format: u32,
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterId,
    /// Files of the state directory, by their paths in it. Secret.
    pub files: BTreeMap<String, String>,
    /// The settings of the broker that gave it, TOML.
    pub settings: String,
    /// The authority of the NATS servers' certificate, PEM, when the settings
    /// name a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats_ca: Option<String>,
}

impl fmt::Debug for StandbyKit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandbyKit")
            .field("cluster", &self.cluster)
            .field("files", &"[redacted]")
            .finish_non_exhaustive()
    }
}
