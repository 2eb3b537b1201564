//! The library: stored scenarios, each with all its versions.
//!
//! A scenario is one value (its [`History`]), written by compare-and-swap, so
//! that a change is there or is not; and the bytes of its bundles, by their
//! hash, which are there before a history names them. A bundle is checked
//! before it is stored, and hashed whenever it is read.
//!
//! The stock scenarios are version 0 of their names, as long as nobody has
//! stored another one there.

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
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_scenarios::bundle::Bundle;
use muster_scenarios::check::check_bundle;
use muster_scenarios::manifest::Manifest;
use muster_scenarios::{command, upgrade};
use tokio::sync::Mutex;

pub use self::error::LibraryError;
pub use self::history::{Content, Entry, History, KEPT, MAX_HISTORY};
use self::shelf::Shelf;
pub use self::shelf::StoredPart;
use crate::authz::Authorized;
use crate::events::Events;
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

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
            entries.find_map(|entry| version(name, entry).filter(|v| v.hash == hash))
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

    /// Stores a new version, if it has no mistake. Equal content is not
    /// stored again; what is the newest then, and whether it is new.
    ///
    /// # Errors
    /// [`LibraryError`]; nothing was stored.
    pub async fn put(&self, put: Authorized<Put>) -> Result<(Version, bool), LibraryError> {
        let by = put.principal().clone();
        let put = put.into_inner();
        if [command::NAME, upgrade::NAME].contains(&put.name.as_str()) {
            return Err(LibraryError::BuiltIn(put.name));
        }
        let (bundle, manifest) = checked(&put.name, put.bundle).await?;
        let packed = Bytes::from(bundle.pack());
        let content = Content {
            bundle: bundle.hash(),
            bytes: packed.len() as u64,
            about: printable(&manifest.about, 200),
        };
        let change = Change {
            name: put.name,
            content: Some((content, packed)),
            note: put.note,
            expect: put.expect,
            by,
        };
        let (version, new) = self.change(change).await?;
        let version = version.expect("content makes a version");
        self.remember(Arc::new(Loaded {
            version: version.clone(),
            bundle,
            manifest,
        }));
        Ok((version, new))
    }

    /// Makes the content of an old version the newest, under a new number.
    ///
    /// # Errors
    /// [`LibraryError`]; nothing was stored.
    pub async fn rollback(
        &self,
        rollback: Authorized<Rollback>,
    ) -> Result<(Version, bool), LibraryError> {
        let by = rollback.principal().clone();
        let asked = rollback.into_inner();
        let old = self.load(&asked.name, Some(asked.version)).await?;
        let packed = Bytes::from(old.bundle.pack());
        let content = Content {
            bundle: old.version.hash,
            bytes: packed.len() as u64,
            about: old.version.about.clone(),
        };
        let change = Change {
            note: Some(match asked.note {
                Some(note) => note,
                None => format!("back to version {}", asked.version),
            }),
            name: asked.name,
            content: Some((content, packed)),
            expect: asked.expect,
            by,
        };
        let (version, new) = self.change(change).await?;
        Ok((version.expect("content makes a version"), new))
    }

    /// Removes a scenario: nobody can run it any more, and its history stays.
    /// One that came with muster is there again under its name.
    ///
    /// # Errors
    /// [`LibraryError`]; nothing was changed.
    pub async fn remove(
        &self,
        remove: Authorized<Remove>,
    ) -> Result<ScenarioVersion, LibraryError> {
        let by = remove.principal().clone();
        let asked = remove.into_inner();
        let name = asked.name.clone();
        if let Ok(version) = self.find(&name, None)
            && version.is_stock()
        {
            return Err(LibraryError::Stock(name));
        }
        self.find(&name, None)?;
        let change = Change {
            name: asked.name,
            content: None,
            note: asked.note,
            expect: asked.expect,
            by,
        };
        self.change(change).await?;
        let all = self.history(&name)?;
        let newest = all.into_iter().next();
        newest.ok_or(LibraryError::NoScenario { name, near: None })
    }

    /// The one way in which a history changes.
    async fn change(&self, change: Change) -> Result<(Option<Version>, bool), LibraryError> {
        let Change {
            name,
            content,
            note,
            expect,
            by,
        } = change;
        if let Some(note) = note.as_ref().filter(|note| note.len() > MAX_NOTE) {
            return Err(LibraryError::NoteTooLong(note.len()));
        }
        let note = note
            .map(|note| printable(note.trim(), MAX_NOTE))
            .filter(|note| !note.is_empty());
        let _one = self.0.writing.lock().await;
        self.active()?;
        let held = self.held().get(&name).cloned().unwrap_or_default();
        let newest = held.history.newest();
        let same = match (&content, newest) {
            (Some((content, _)), Some(entry)) => entry
                .content
                .as_ref()
                .is_some_and(|there| there.bundle == content.bundle),
            (None, newest) => newest.is_none_or(|entry| entry.content.is_none()),
            (Some(_), None) => false,
        };
        if let Some(expect) = expect
            && expect != newest.map_or(0, |entry| entry.version)
        {
            // Whoever heard no answer asks again.
            let repeated = same
                && newest.is_some_and(|e| e.by == by && e.version.checked_sub(1) == Some(expect));
            if !repeated {
                return Err(self.changed(&name, newest));
            }
        }
        if let Some((content, packed)) = &content {
            self.has_room(&name, content)?;
            // First: no history names what is not there. Also what is there
            // already: it may be damaged, and this mends it.
            self.0.shelf.keep(content.bundle, packed).await?;
        }
        if same {
            return Ok((newest.and_then(|entry| version(&name, entry)), false));
        }
        self.active()?;
        muster_checkpoint::at("broker.library.kept", || name.to_string()).await;
        let content = content.map(|(content, _)| content);
        let next = held.history.with(content, (&by, Timestamp::now()), note);
        let revision = match self.write(&name, &next, held.revision).await {
            Ok(revision) => revision,
            Err(error) => {
                // Whether it is there is not known here any more.
                self.look_again(&name).await;
                return match error {
                    KvError::Conflict { .. } => {
                        let held = self.held().get(&name).cloned().unwrap_or_default();
                        Err(self.changed(&name, held.history.newest()))
                    }
                    error => Err(error.into()),
                };
            }
        };
        let entry = next.newest().expect("it has one more").clone();
        let held = Held {
            history: next,
            revision,
        };
        self.held_mut().insert(name.clone(), held);
        self.tell(&name, &entry).await;
        Ok((version(&name, &entry), true))
    }

    async fn write(
        &self,
        name: &ScenarioName,
        next: &History,
        revision: u64,
    ) -> Result<u64, KvError> {
        if revision == 0 {
            self.0.names.create(name.as_str(), next).await
        } else {
            self.0.names.update(name.as_str(), next, revision).await
        }
    }

    async fn look_again(&self, name: &ScenarioName) {
        match self.0.names.get(name.as_str()).await {
            Ok(Some(entry)) => {
                let (history, revision) = (entry.value, entry.revision);
                let held = Held { history, revision };
                self.held_mut().insert(name.clone(), held);
            }
            Ok(None) => drop(self.held_mut().remove(name)),
            Err(error) => tracing::warn!(scenario = %name, %error, "a scenario cannot be read"),
        }
    }

    fn changed(&self, name: &ScenarioName, newest: Option<&Entry>) -> LibraryError {
        LibraryError::Changed {
            name: name.clone(),
            newest: match newest {
                None => "there is no version of it yet".to_owned(),
                Some(entry) => format!(
                    "version {} {} by {} at {}",
                    entry.version,
                    if entry.content.is_some() {
                        "was stored"
                    } else {
                        "is its removal,"
                    },
                    entry.by,
                    entry.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                ),
            },
        }
    }

    fn has_room(&self, name: &ScenarioName, content: &Content) -> Result<(), LibraryError> {
        let held = self.held();
        if !held.contains_key(name) && held.len() >= MAX_NAMES {
            return Err(LibraryError::TooManyNames);
        }
        let mut all: BTreeMap<BundleHash, u64> = held
            .values()
            .flat_map(|held| held.history.bundles())
            .collect();
        all.insert(content.bundle, content.bytes);
        if all.values().sum::<u64>() > MAX_STORED {
            return Err(LibraryError::Full);
        }
        Ok(())
    }

    async fn tell(&self, name: &ScenarioName, entry: &Entry) {
        let (kind, mut text) = match &entry.content {
            Some(content) => {
                let hash = content.bundle.to_string();
                let text = format!(
                    "{} stored version {} of scenario {name}, bundle {}",
                    entry.by,
                    entry.version,
                    hash.get(..12).unwrap_or(&hash)
                );
                ("scenario.stored", text)
            }
            None => (
                "scenario.removed",
                format!(
                    "{} removed scenario {name} (version {})",
                    entry.by, entry.version
                ),
            ),
        };
        if let Some(note) = &entry.note {
            text.push_str(&format!(": {note}"));
        }
        self.0.events.emit(kind, name.as_str(), text).await;
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

/// A change that is about to be made.
struct Change {
    name: ScenarioName,
    content: Option<(Content, Bytes)>,
    note: Option<String>,
    expect: Option<u32>,
    by: PrincipalName,
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
    let file = format!("{name}.rhai");
    let done = tokio::task::spawn_blocking(move || {
        let checked = check_bundle(&file, &bundle);
        checked.map(|manifest| (bundle, manifest))
    });
    done.await?.map_err(|faults| LibraryError::Refused {
        name: name.clone(),
        faults,
    })
}
