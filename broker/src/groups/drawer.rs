//! Things by name: in a bucket, and in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::GroupsError;
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// A thing with the revision to name when it is replaced.
#[derive(Debug)]
pub(super) struct Held<V> {
    pub(super) value: Arc<V>,
    revision: u64,
}

impl<V> Clone for Held<V> {
    fn clone(&self) -> Self {
        Self {
            value: Arc::clone(&self.value),
            revision: self.revision,
        }
    }
}

pub(super) struct Drawer<K, V> {
    bucket: Kv<V>,
    lease: Lease,
    all: RwLock<BTreeMap<K, Held<V>>>,
}

impl<K, V> fmt::Debug for Drawer<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drawer").finish_non_exhaustive()
    }
}

impl<K, V> Drawer<K, V>
where
    K: Clone + FromStr + fmt::Display + Ord,
    V: DeserializeOwned + PartialEq + Serialize,
{
    pub(super) async fn load(bucket: Kv<V>, lease: Lease) -> Result<Self, KvError> {
        let mut all = BTreeMap::new();
        for entry in bucket.list().await?.entries {
            let Ok(name) = entry.key.parse::<K>() else {
                tracing::warn!(key = entry.key, "a name that muster never writes");
                continue;
            };
            let held = Held {
                value: Arc::new(entry.value),
                revision: entry.revision,
            };
            all.insert(name, held);
        }
        Ok(Self {
            bucket,
            lease,
            all: RwLock::new(all),
        })
    }

    pub(super) fn get(&self, name: &K) -> Option<Held<V>> {
        self.read().get(name).cloned()
    }

    pub(super) fn all(&self) -> BTreeMap<K, Held<V>> {
        self.read().clone()
    }

    pub(super) fn len(&self) -> usize {
        self.read().len()
    }

    /// Writes a thing anew, unless somebody else did.
    pub(super) async fn put(
        &self,
        name: &K,
        old: Option<&Held<V>>,
        value: V,
    ) -> Result<Arc<V>, GroupsError> {
        self.lease.epoch().ok_or(GroupsError::NotActive)?;
        let key = name.to_string();
        let written = match old {
            Some(old) => self.bucket.update(&key, &value, old.revision).await,
            None => self.bucket.create(&key, &value).await,
        };
        match written {
            Ok(revision) => {
                let value = Arc::new(value);
                let held = Held {
                    value: Arc::clone(&value),
                    revision,
                };
                self.write().insert(name.clone(), held);
                Ok(value)
            }
            Err(error) => {
                self.look_again(name).await;
                // It may have been stored all the same.
                match self.get(name) {
                    Some(held) if *held.value == value => Ok(held.value),
                    _ => Err(error.into()),
                }
            }
        }
    }

    /// Removes a thing.
    pub(super) async fn remove(&self, name: &K, old: &Held<V>) -> Result<(), GroupsError> {
        self.lease.epoch().ok_or(GroupsError::NotActive)?;
        let gone = self.bucket.delete(&name.to_string(), old.revision).await;
        match gone {
            Ok(_) => {
                self.write().remove(name);
                Ok(())
            }
            Err(error) => {
                self.look_again(name).await;
                match self.get(name) {
                    None => Ok(()),
                    Some(_) => Err(error.into()),
                }
            }
        }
    }

    async fn look_again(&self, name: &K) {
        match self.bucket.get(&name.to_string()).await {
            Ok(Some(entry)) => {
                let held = Held {
                    value: Arc::new(entry.value),
                    revision: entry.revision,
                };
                self.write().insert(name.clone(), held);
            }
            Ok(None) => drop(self.write().remove(name)),
            Err(error) => tracing::warn!(%name, %error, "a record cannot be read"),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<K, Held<V>>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<K, Held<V>>> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }
}
