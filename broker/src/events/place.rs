//! How far somebody has come in the stream of events, stored.

use std::collections::BTreeMap;

use muster_protocol::names::TriggerName;
use muster_protocol::units::Timestamp;
use serde::{Deserialize, Serialize};

use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// A place, and what has to be remembered with it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Place {
    /// Everything up to this position is done.
    pub seq: u64,
    /// Which numbering that position is of.
    #[serde(default)]
    pub numbering: String,
    /// When runs were started, for the rates of triggers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub started: BTreeMap<TriggerName, Vec<Timestamp>>,
}

/// Where places are stored. Only the active broker writes them.
#[derive(Clone, Debug)]
pub struct Places {
    bucket: Kv<Place>,
    lease: Lease,
}

impl Places {
    /// In that bucket.
    #[must_use]
    pub fn new(bucket: Kv<Place>, lease: Lease) -> Self {
        Self { bucket, lease }
    }

    /// The place of that name, if there is one.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn get(&self, name: &str) -> Result<Option<Place>, KvError> {
        Ok(self.bucket.get(name).await?.map(|entry| entry.value))
    }

    /// Stores it; `false` when this broker is not the active one.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn set(&self, name: &str, place: &Place) -> Result<bool, KvError> {
        if self.lease.epoch().is_none() {
            return Ok(false);
        }
        self.bucket.put(name, place).await?;
        Ok(true)
    }
}
