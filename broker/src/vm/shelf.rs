//! Small things that have names, all of a kind in one value: so a change is
//! one compare-and-swap.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// Largest value, in bytes: a message of NATS has 1 MiB at most.
const MAX_BYTES: usize = 768 << 10;

/// Why a shelf was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// It would be too large.
    #[error("there is no room for more of them; remove some first")]
    Full,
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("it could not be stored or read: {0}")]
    Store(#[from] KvError),
}

/// All of them, as they are stored.
pub(super) type Stored<K, V> = BTreeMap<K, V>;

/// Things of one kind. Cheap to clone.
pub(super) struct Shelf<K, V>(Arc<Inner<K, V>>);

struct Inner<K, V> {
    bucket: Kv<Stored<K, V>>,
    key: &'static str,
    most: usize,
    lease: Lease,
    held: RwLock<Held<K, V>>,
    writing: Mutex<()>,
}

type Held<K, V> = (Arc<Stored<K, V>>, Option<u64>);

impl<K, V> Clone for Shelf<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> fmt::Debug for Shelf<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("key", &self.0.key).finish()
    }
}

impl<K, V> Shelf<K, V>
where
    K: Clone + DeserializeOwned + Ord + Serialize,
    V: Clone + DeserializeOwned + Serialize,
{
    /// Reads what there is: at most so many.
    ///
    /// # Errors
    /// [`KvError`].
    pub(super) async fn load(
        bucket: Kv<Stored<K, V>>,
        key: &'static str,
        most: usize,
        lease: Lease,
    ) -> Result<Self, KvError> {
        let entry = bucket.get(key).await?;
        let held = entry.map_or_else(
            || (Arc::default(), None),
            |entry| (Arc::new(entry.value), Some(entry.revision)),
        );
        Ok(Self(Arc::new(Inner {
            bucket,
            key,
            most,
            lease,
            held: RwLock::new(held),
            writing: Mutex::new(()),
        })))
    }

    /// All of them.
    #[must_use]
    pub(super) fn all(&self) -> Arc<Stored<K, V>> {
        self.held().0
    }

    fn held(&self) -> Held<K, V> {
        let held = self.0.held.read().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    /// Changes them: `change` says what is wrong, or what comes of it. Nothing
    /// is written where nothing was changed.
    ///
    /// # Errors
    /// What `change` says, or [`ShelfError`]; nothing was changed.
    pub(super) async fn change<T, E: From<ShelfError>>(
        &self,
        change: impl FnOnce(&mut Stored<K, V>) -> Result<(T, bool), E>,
    ) -> Result<T, E> {
        let _one = self.0.writing.lock().await;
        let inner = &*self.0;
        inner.lease.epoch().ok_or(ShelfError::NotActive)?;
        let (before, revision) = self.held();
        let mut next = Stored::clone(&before);
        let (out, changed) = change(&mut next)?;
        if !changed {
            return Ok(out);
        }
        let bytes = serde_json::to_vec(&next).map_or(usize::MAX, |bytes| bytes.len());
        if next.len() > before.len() && (next.len() > inner.most || bytes > MAX_BYTES) {
            return Err(ShelfError::Full.into());
        }
        let written = match revision {
            Some(revision) => inner.bucket.update(inner.key, &next, revision).await,
            None => inner.bucket.create(inner.key, &next).await,
        };
        let now = match written {
            Ok(revision) => (Arc::new(next), Some(revision)),
            Err(error) => {
                // What is there now is what the next one goes on from.
                if let Ok(Some(entry)) = inner.bucket.get(inner.key).await {
                    self.hold((Arc::new(entry.value), Some(entry.revision)));
                }
                return Err(ShelfError::Store(error).into());
            }
        };
        self.hold(now);
        Ok(out)
    }

    fn hold(&self, now: Held<K, V>) {
        *self.0.held.write().unwrap_or_else(PoisonError::into_inner) = now;
    }
}
