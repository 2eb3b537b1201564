//! The bytes of bundles, by their hash: in parts that fit into a message, and
//! the newest used ones in memory.
//!
//! What is stored under a hash is right or damaged, never old: who wrote it
//! last, and when, says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex as StdMutex, PoisonError};

use bytes::Bytes;
use data_encoding::BASE64;
use muster_protocol::envelope::BundleHash;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::LibraryError;
use crate::store::kv::{Kv, KvError};

/// Bytes of every part but the last.
pub(super) const PART: usize = 512 * 1024;
/// Bytes of bundles in memory.
const CACHED: usize = 32 << 20;

/// A value of `muster_bundles`; the key is the hash and the part's number.
#[derive(Clone, Eq, PartialEq)]
pub struct StoredPart(Bytes);

impl From<Bytes> for StoredPart {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for StoredPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredPart({} bytes)", self.0.len())
    }
}

impl Serialize for StoredPart {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for StoredPart {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        let bytes = BASE64.decode(text.as_bytes());
        bytes
            .map(|bytes| Self(bytes.into()))
            .map_err(serde::de::Error::custom)
    }
}

#[derive(Debug)]
pub(super) struct Shelf {
    parts: Kv<StoredPart>,
    /// The last used one is last.
    cache: StdMutex<Vec<(BundleHash, Bytes)>>,
    /// One bundle is read at a time: whoever waits finds it in memory.
    reading: Mutex<()>,
}

fn key(hash: BundleHash, part: usize) -> String {
    format!("{hash}-{part}")
}

/// Which bundle a key is a part of.
fn hash_of(key: &str) -> Option<BundleHash> {
    key.rsplit_once('-')?.0.parse().ok()
}

fn parts(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(PART as u64)).unwrap_or(usize::MAX)
}

impl Shelf {
    pub(super) fn new(parts: Kv<StoredPart>) -> Self {
        Self {
            parts,
            cache: StdMutex::default(),
            reading: Mutex::new(()),
        }
    }

    /// Stores a packed bundle; parts that are there already stay.
    pub(super) async fn keep(&self, hash: BundleHash, packed: &Bytes) -> Result<(), LibraryError> {
        for (number, start) in (0..packed.len()).step_by(PART).enumerate() {
            let end = (start + PART).min(packed.len());
            let part = StoredPart(packed.slice(start..end));
            let key = key(hash, number);
            match self.parts.create(&key, &part).await {
                Ok(_) => {}
                Err(KvError::Conflict { .. }) => match self.parts.get(&key).await {
                    Ok(Some(there)) if there.value == part => {}
                    // Damaged: nothing else can be under its hash.
                    Ok(_) | Err(KvError::Decode { .. }) => {
                        self.parts.put(&key, &part).await?;
                    }
                    Err(error) => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
        self.remember(hash, packed.clone());
        Ok(())
    }

    /// The packed bundle of that hash and size; its bytes are hashed.
    pub(super) async fn read(&self, hash: BundleHash, bytes: u64) -> Result<Bytes, LibraryError> {
        if let Some(packed) = self.cached(hash) {
            return Ok(packed);
        }
        let _one = self.reading.lock().await;
        if let Some(packed) = self.cached(hash) {
            return Ok(packed);
        }
        let damaged = |why: String| LibraryError::Damaged { hash, why };
        let mut packed = Vec::new();
        for number in 0..parts(bytes) {
            match self.parts.get(&key(hash, number)).await {
                Ok(Some(part)) => packed.extend_from_slice(&part.value.0),
                Ok(None) => return Err(damaged("a part of it is missing".into())),
                Err(error @ KvError::Decode { .. }) => return Err(damaged(error.to_string())),
                Err(error) => return Err(error.into()),
            }
        }
        if BundleHash::of(&packed) != hash {
            return Err(damaged("its content has another hash".into()));
        }
        let packed = Bytes::from(packed);
        self.remember(hash, packed.clone());
        Ok(packed)
    }

    /// Removes what nothing refers to; how many bundles.
    pub(super) async fn sweep(&self, keep: &BTreeSet<BundleHash>) -> Result<usize, LibraryError> {
        let mut gone = BTreeMap::new();
        for key in self.parts.keys().await? {
            if let Some(hash) = hash_of(&key)
                && !keep.contains(&hash)
            {
                gone.entry(hash).or_insert_with(Vec::new).push(key);
            }
        }
        for (hash, keys) in &gone {
            for key in keys {
                self.parts.forget(key).await?;
            }
            self.cache().retain(|(cached, _)| cached != hash);
        }
        Ok(gone.len())
    }

    fn cached(&self, hash: BundleHash) -> Option<Bytes> {
        let mut cache = self.cache();
        let place = cache.iter().position(|(cached, _)| *cached == hash)?;
        let found = cache.remove(place);
        let packed = found.1.clone();
        cache.push(found);
        Some(packed)
    }

    fn remember(&self, hash: BundleHash, packed: Bytes) {
        let mut cache = self.cache();
        cache.retain(|(cached, _)| *cached != hash);
        cache.push((hash, packed));
        let mut bytes: usize = cache.iter().map(|(_, packed)| packed.len()).sum();
        while bytes > CACHED && cache.len() > 1 {
            bytes -= cache.remove(0).1.len();
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Vec<(BundleHash, Bytes)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
