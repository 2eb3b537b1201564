//! Hypervisors on which nothing new is put.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use muster_protocol::ids::Serial;
use muster_protocol::names::PrincipalName;
use muster_protocol::units::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::error::VmError;
use super::keep::RecordError;
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// The key of the value in `muster_cluster`.
pub const KEY: &str = "cordons";

/// A value of `muster_cluster`: all of them.
pub type StoredCordons = BTreeMap<Serial, Cordon>;

/// That nothing new is put on a hypervisor.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cordon {
    /// Who says so.
    pub by: PrincipalName,
    /// Since when.
    pub at: Timestamp,
    /// Whether what is there is to stop, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,
}

/// What a hypervisor is marked with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mark {
    /// Machines are put on it.
    Open,
    /// Nothing new is put on it.
    Cordoned,
    /// Nothing new is put on it, and what is there is to stop.
    Draining,
}

/// Which hypervisors are cordoned. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cordons(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: Kv<StoredCordons>,
    lease: Lease,
    held: RwLock<(StoredCordons, Option<u64>)>,
    writing: Mutex<()>,
}

impl Cordons {
    /// Reads which there are.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn load(bucket: Kv<StoredCordons>, lease: Lease) -> Result<Self, KvError> {
        let entry = bucket.get(KEY).await?;
        let held = entry.map_or_else(Default::default, |e| (e.value, Some(e.revision)));
        Ok(Self(Arc::new(Inner {
            bucket,
            lease,
            held: RwLock::new(held),
            writing: Mutex::new(()),
        })))
    }

    /// Whether nothing new is put on it.
    #[must_use]
    pub fn has(&self, hypervisor: Serial) -> bool {
        let held = self.0.held.read().unwrap_or_else(PoisonError::into_inner);
        held.0.contains_key(&hypervisor)
    }

    /// What it is marked with.
    #[must_use]
    pub fn mark(&self, hypervisor: Serial) -> Mark {
        let held = self.0.held.read().unwrap_or_else(PoisonError::into_inner);
        mark_of(&held.0, hypervisor)
    }

    /// Sets it; whether that is news. Those that are no nodes any more are
    /// forgotten. One that is drained is cordoned already.
    ///
    /// # Errors
    /// [`VmError`]; nothing was changed.
    pub async fn set(
        &self,
        hypervisor: Serial,
        mark: Mark,
        by: &PrincipalName,
        is_node: impl Fn(Serial) -> bool,
    ) -> Result<bool, VmError> {
        let _one = self.0.writing.lock().await;
        self.0.lease.epoch().ok_or(RecordError::NotActive)?;
        let (mut next, revision) = {
            let held = self.0.held.read().unwrap_or_else(PoisonError::into_inner);
            held.clone()
        };
        let now = mark_of(&next, hypervisor);
        if now == mark || (now, mark) == (Mark::Draining, Mark::Cordoned) {
            return Ok(false);
        }
        next.retain(|serial, _| is_node(*serial));
        if mark == Mark::Open {
            next.remove(&hypervisor);
        } else {
            let (by, at) = (by.clone(), Timestamp::now());
            let drain = mark == Mark::Draining;
            next.insert(hypervisor, Cordon { by, at, drain });
        }
        let written = match revision {
            Some(revision) => self.0.bucket.update(KEY, &next, revision).await,
            None => self.0.bucket.create(KEY, &next).await,
        };
        let now = match written {
            Ok(revision) => (next, Some(revision)),
            Err(error) => {
                if let Ok(Some(entry)) = self.0.bucket.get(KEY).await {
                    self.put((entry.value, Some(entry.revision)));
                }
                return Err(error.into());
            }
        };
        self.put(now);
        Ok(true)
    }

    fn put(&self, now: (StoredCordons, Option<u64>)) {
        *self.0.held.write().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

fn mark_of(all: &StoredCordons, hypervisor: Serial) -> Mark {
    match all.get(&hypervisor) {
        None => Mark::Open,
        Some(cordon) if cordon.drain => Mark::Draining,
        Some(_) => Mark::Cordoned,
    }
}
