//! The library: stored scenarios, each with all its versions.
//!
//! A scenario is one value (its [`History`]), written by compare-and-swap, so
//! that a change is there or is not; and the bytes of its bundles, by their
//! hash, which are there before a history names them. A bundle is checked
//! before it is stored, and hashed whenever it is read.
//!
//! The stock scenarios are version 0 of their names, as long as nobody has
//! stored another one there.

mod change;
mod error;
mod history;
mod shelf;
mod stock;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as StdMutex, PoisonError, RwLock};

use bytes::Bytes;
use muster_protocol::api::ScenarioVersion;
use muster_protocol::envelope::BundleHash;
use muster_protocol::names::{PrincipalName, ScenarioName};
use muster_protocol::units::Timestamp;
use muster_scenarios::bundle::Bundle;
use muster_scenarios::check::check_bundle;
use muster_scenarios::manifest::Manifest;
use tokio::sync::Mutex;

pub use self::error::LibraryError;
pub use self::history::{Content, Entry, History, KEPT, MAX_HISTORY};
use self::shelf::Shelf;
pub use self::shelf::StoredPart;
use crate::events::Events;
use crate::lease::Lease;
use crate::store::kv::Kv;

/// Most names.
pub const MAX_NAMES: usize = 1_000;
/// Most bytes of all bundles.
pub const MAX_STORED: u64 = 256 << 20;
/// Most bytes of a note.
pub const MAX_NOTE: usize = 500;
/// Scenarios that are kept read.
const LOADED: usize = 32;

/// A scenario's version that can be run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Version {
    /// Its name.
    pub name: ScenarioName,
    /// Its number; 0 for the one that came with muster.
    pub version: u32,
    /// What pins its content.
    pub hash: BundleHash,
    /// Bytes of the packed bundle.
    pub bytes: u64,
    /// Who stored it.
    pub by: PrincipalName,
    /// When; the epoch for one that came with muster.
    pub at: Timestamp,
    /// Why.
    pub note: Option<String>,
    /// What the scenario says it is for.
    pub about: String,
}

impl Version {
    /// Whether it came with muster.
    #[must_use]
    pub fn is_stock(&self) -> bool {
        self.version == muster_protocol::api::STOCK_VERSION
    }

    /// As it is shown.
    #[must_use]
    pub fn view(&self) -> ScenarioVersion {
        ScenarioVersion {
            name: self.name.clone(),
            version: self.version,
            bundle: Some(self.hash),
            about: Some(self.about.clone()),
            bytes: self.bytes,
            kept: true,
            by: self.by.clone(),
            at: (!self.is_stock()).then_some(self.at),
            note: self.note.clone(),
        }
    }
}

/// A scenario, read and checked.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Which version.
    pub version: Version,
    /// Its files.
    pub bundle: Bundle,
    /// What it says of itself.
    pub manifest: Manifest,
}

/// A new version of a scenario.
#[derive(Clone, Debug)]
pub struct Put {
    /// Its name.
    pub name: ScenarioName,
    /// Its content.
    pub bundle: Bundle,
    /// Why.
    pub note: Option<String>,
    /// The version that it is made from; stored only on top of that one.
    pub expect: Option<u32>,
}

/// A scenario's old content, to be the newest again.
#[derive(Clone, Debug)]
pub struct Rollback {
    /// Its name.
    pub name: ScenarioName,
    /// Whose content.
    pub version: u32,
    /// Why.
    pub note: Option<String>,
    /// As in [`Put::expect`].
    pub expect: Option<u32>,
}

/// A scenario to be removed; its history stays.
#[derive(Clone, Debug)]
pub struct Remove {
    /// Its name.
    pub name: ScenarioName,
    /// Why.
    pub note: Option<String>,
    /// As in [`Put::expect`].
    pub expect: Option<u32>,
}

/// All scenarios. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Library(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    names: Kv<History>,
    shelf: Shelf,
    lease: Lease,
    events: Events,
    held: RwLock<BTreeMap<ScenarioName, Held>>,
    /// The last used one is last.
    loaded: StdMutex<Vec<Arc<Loaded>>>,
    writing: Mutex<()>,
}

/// A history with the revision to name when it is replaced.
#[derive(Clone, Debug, Default)]
struct Held {
    history: History,
    revision: u64,
}

impl Library {
    /// Reads which scenarios there are.
    ///
    /// # Errors
    /// [`LibraryError::Store`].
    pub async fn open(
        names: Kv<History>,
        parts: Kv<StoredPart>,
        lease: Lease,
        events: Events,
    ) -> Result<Self, LibraryError> {
        stock::prepare().await?;
        let mut held = BTreeMap::new();
        for entry in names.list().await?.entries {
            match entry.key.parse::<ScenarioName>() {
                Ok(name) => {
                    let (history, revision) = (entry.value, entry.revision);
                    held.insert(name, Held { history, revision });
                }
                Err(error) => tracing::warn!(%error, "a scenario that muster never stores"),
            }
        }
        Ok(Self(Arc::new(Inner {
            names,
            shelf: Shelf::new(parts),
            lease,
            events,
            held: RwLock::new(held),
            loaded: StdMutex::default(),
            writing: Mutex::new(()),
        })))
    }

    /// The newest version of each scenario, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Version> {
        let held = self.held();
        let mut all: BTreeMap<&ScenarioName, Version> = stock::versions()
            .map(|version| (&version.name, version.clone()))
            .collect();
        for (name, Held { history, .. }) in &*held {
            if let Some(version) = history.newest().and_then(|entry| version(name, entry)) {
                all.insert(name, version);
            }
        }
        all.into_values().collect()
    }

    /// The newest version of a scenario; `None` where there is none, or it
    /// was removed.
    #[must_use]
    pub fn current(&self, name: &ScenarioName) -> Option<Version> {
        self.find(name, None).ok()
    }

    /// The number of the newest change of a scenario, a removal too; 0 when
    /// there was none.
    #[must_use]
    pub fn newest(&self, name: &ScenarioName) -> u32 {
        let held = self.held();
        let newest = held.get(name).and_then(|held| held.history.newest());
        newest.map_or(0, |entry| entry.version)
    }

    /// All versions of a scenario that are told of, the newest first.
    ///
    /// # Errors
    /// [`LibraryError::NoScenario`].
    pub fn history(&self, name: &ScenarioName) -> Result<Vec<ScenarioVersion>, LibraryError> {
        let held = self.held();
        let stored = held.get(name).map(|held| &held.history);
        let mut all: Vec<_> = stored
            .iter()
            .flat_map(|history| {
                history
                    .entries()
                    .iter()
                    .rev()
                    .map(|e| history.view(name, e))
            })
            .collect();
        all.extend(stock::version(name).map(|version| version.view()));
        if all.is_empty() {
            return Err(self.missing(name, &held));
        }
        Ok(all)
    }

    /// A version of a scenario, the newest when none is named.
    ///
    /// # Errors
    /// [`LibraryError`]: there is none.
    pub fn find(&self, name: &ScenarioName, wanted: Option<u32>) -> Result<Version, LibraryError> {
        let held = self.held();
        let stored = held.get(name).map(|held| &held.history);
        let stock = stock::version(name);
        let newest = stored.and_then(History::newest);
        let Some(wanted) = wanted else {
            return match (newest, stock) {
                (Some(entry), stock) => match (version(name, entry), stock) {
                    (Some(version), _) => Ok(version),
                    (None, Some(stock)) => Ok(stock.clone()),
                    (None, None) => Err(LibraryError::Removed {
                        name: name.clone(),
                        by: entry.by.clone(),
                        at: entry.at,
                    }),
                },
                (None, Some(stock)) => Ok(stock.clone()),
                (None, None) => Err(self.missing(name, &held)),
            };
        };
        if wanted == muster_protocol::api::STOCK_VERSION
            && let Some(stock) = stock
        {
            return Ok(stock.clone());
        }
        let name = name.clone();
        let Some(history) = stored else {
            return Err(match stock {
                Some(_) => LibraryError::NoVersion {
                    name,
                    version: wanted,
                    newest: 0,
                },
                None => self.missing(&name, &held),
            });
        };
        let Some(entry) = history.entry(wanted) else {
            return Err(LibraryError::NoVersion {
                name,
                version: wanted,
                newest: newest.map_or(0, |entry| entry.version),
            });
        };
        version(&name, entry).ok_or(LibraryError::NothingThere {
            name,
            version: wanted,
        })
    }

    fn missing(&self, name: &ScenarioName, held: &BTreeMap<ScenarioName, Held>) -> LibraryError {
        let known = held
            .iter()
            .filter(|(_, held)| held.history.newest().is_some_and(|e| e.content.is_some()))
            .map(|(name, _)| name)
            .chain(stock::versions().map(|version| &version.name));
        let near = muster_scenarios::fault::nearest(name.as_str(), known.map(ScenarioName::as_str));
        LibraryError::NoScenario {
            name: name.clone(),
            near: near.and_then(|near| near.parse().ok()),
        }
    }

    /// A version of a scenario, the newest when none is named, read and
    /// checked.
    ///
    /// # Errors
    /// [`LibraryError`].
    pub async fn load(
        &self,
        name: &ScenarioName,
        version: Option<u32>,
    ) -> Result<Arc<Loaded>, LibraryError> {
        let version = self.find(name, version)?;
        if !self.keeps(&version) {
            let (name, version) = (version.name, version.version);
            return Err(LibraryError::Forgotten { name, version });
        }
        self.read(version).await
    }

    /// The scenario whose bundle has that hash: what a run is pinned to.
    ///
    /// # Errors
    /// [`LibraryError`].
    pub async fn by_hash(&self, hash: BundleHash) -> Result<Arc<Loaded>, LibraryError> {
        let version = self.version_of(hash).ok_or(LibraryError::NoBundle(hash))?;
        self.read(version).await
    }

    /// The packed bundle of that hash, for nodes.
    ///
    /// # Errors
    /// [`LibraryError`].
    pub async fn packed(&self, hash: BundleHash) -> Result<Bytes, LibraryError> {
        if let Some(stock) = stock::by_hash(hash) {
            return Ok(stock.packed.clone());
        }
        let version = self.version_of(hash).ok_or(LibraryError::NoBundle(hash))?;
        self.0.shelf.read(hash, version.bytes).await
    }

    fn version_of(&self, hash: BundleHash) -> Option<Version> {
        if let Some(stock) = stock::by_hash(hash) {
            return Some(stock.loaded.version.clone());
        }
        let held = self.held();
        held.iter().find_map(|(name, held)| {
            let mut entries = held.history.entries().iter().rev();
            let is_it = |c: &Content| c.bundle == hash;
            let found = entries.find(|entry| entry.content.as_ref().is_some_and(is_it))?;
            version(name, found)
        })
    }

    async fn read(&self, version: Version) -> Result<Arc<Loaded>, LibraryError> {
        if let Some(stock) = stock::by_hash(version.hash).filter(|_| version.is_stock()) {
            return Ok(Arc::clone(&stock.loaded));
        }
        if let Some(loaded) = self.remembered(&version) {
            return Ok(loaded);
        }
        let packed = self.0.shelf.read(version.hash, version.bytes).await?;
        let hash = version.hash;
        let bundle =
            tokio::task::spawn_blocking(move || Bundle::unpack_as(&packed, hash)).await??;
        let (bundle, manifest) = checked(&version.name, bundle).await?;
        let loaded = Arc::new(Loaded {
            version,
            bundle,
            manifest,
        });
        self.remember(Arc::clone(&loaded));
        Ok(loaded)
    }

    fn keeps(&self, version: &Version) -> bool {
        let held = self.held();
        let held = held.get(&version.name);
        version.is_stock() || held.is_none_or(|held| held.history.keeps(version.version))
    }

    /// Removes bundles that no kept version and no run needs; `pinned` are
    /// those of runs that have not ended. How many.
    ///
    /// # Errors
    /// [`LibraryError::NotActive`], [`LibraryError::Store`].
    pub async fn tidy(&self, pinned: BTreeSet<BundleHash>) -> Result<usize, LibraryError> {
        let _one = self.0.writing.lock().await;
        self.active()?;
        let mut keep = pinned;
        keep.extend(
            self.held()
                .values()
                .flat_map(|held| held.history.bundles().map(|(hash, _)| hash)),
        );
        self.0.shelf.sweep(&keep).await
    }

    fn remembered(&self, version: &Version) -> Option<Arc<Loaded>> {
        let mut loaded = self.loaded();
        let place = loaded.iter().position(|l| l.version == *version)?;
        let found = loaded.remove(place);
        loaded.push(Arc::clone(&found));
        Some(found)
    }

    fn remember(&self, new: Arc<Loaded>) {
        let mut loaded = self.loaded();
        loaded.retain(|l| l.version != new.version);
        loaded.push(new);
        if loaded.len() > LOADED {
            loaded.remove(0);
        }
    }

    fn active(&self) -> Result<u64, LibraryError> {
        self.0.lease.epoch().ok_or(LibraryError::NotActive)
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Loaded>>> {
        self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<ScenarioName, Held>> {
        self.0.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<ScenarioName, Held>> {
        self.0.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(name: &ScenarioName, entry: &Entry) -> Option<Version> {
    let content = entry.content.as_ref()?;
    Some(Version {
        name: name.clone(),
        version: entry.version,
        hash: content.bundle,
        bytes: content.bytes,
        by: entry.by.clone(),
        at: entry.at,
        note: entry.note.clone(),
        about: content.about.clone(),
    })
}

/// A bundle with its manifest, if it has no mistake. Off the threads that
/// serve: a script takes its time.
async fn checked(name: &ScenarioName, bundle: Bundle) -> Result<(Bundle, Manifest), LibraryError> {
    let file = bundle.script_file(name.as_str());
    let done = tokio::task::spawn_blocking(move || {
        let checked = check_bundle(&file, &bundle);
        checked.map(|manifest| (bundle, manifest))
    });
    done.await?.map_err(|faults| LibraryError::Refused {
        name: name.clone(),
        faults,
    })
}
