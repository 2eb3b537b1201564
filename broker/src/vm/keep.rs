//! The records of machines: in a bucket, and in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use muster_protocol::ids::{ClusterId, RunId};
use muster_protocol::names::VmName;
use muster_protocol::run::PartOf;
use muster_protocol::units::{Timestamp, elapsed};
use muster_protocol::vm::VmId;
use tokio::sync::{Mutex, watch};

use super::records::{Life, StoredVm};
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// Why a record is not as it was to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Somebody has it.
    #[error(
        "there is a machine {name}: {by} had it made; choose another name, or destroy that one"
    )]
    Taken {
        /// The name.
        name: VmName,
        /// Who.
        by: String,
    },
    /// Somebody else wrote it.
    #[error("the machine {0} has changed in this moment; look at it and ask again")]
    Changed(VmName),
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("the record of the machine could not be read or written: {0}")]
    Store(#[from] KvError),
}

/// A record with the revision to name when it is replaced.
#[derive(Clone, Debug)]
pub struct Held {
    /// The machine.
    pub vm: Arc<StoredVm>,
    /// Its revision.
    pub revision: u64,
}

/// All records. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Records(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: Kv<StoredVm>,
    floor: Kv<u64>,
    lease: Lease,
    cluster: ClusterId,
    index: RwLock<Index>,
    forgetting: Mutex<()>,
    /// Changes with every record.
    changed: watch::Sender<u64>,
}

/// The key in `muster_cluster` of the number up to which machines of names that
/// are forgotten were counted.
pub const FLOOR: &str = "vms-floor";
/// Records that are forgotten at a time.
const AT_ONCE: usize = 100;

#[derive(Debug, Default)]
struct Index {
    names: BTreeMap<VmName, Held>,
    ids: HashMap<VmId, VmName>,
    /// Each by its newest run.
    runs: HashMap<RunId, VmName>,
    /// Those that calls of runs asked for.
    parts: HashMap<PartOf, VmName>,
    /// Those that requests asked for which name themselves.
    asked: HashMap<RunId, BTreeSet<VmName>>,
    /// How many machines had any name that is forgotten, at most: the count of
    /// a name goes on from there, and no UUID is given twice.
    floor: Option<(u64, u64)>,
    /// Records that were written or removed since somebody looked.
    touched: BTreeSet<VmName>,
}

impl Index {
    fn put(&mut self, vm: StoredVm, revision: u64) -> Held {
        let held = Held {
            vm: Arc::new(vm),
            revision,
        };
        let name = held.vm.name.clone();
        self.remove(&name);
        self.touched.insert(name.clone());
        self.ids.insert(held.vm.id, name.clone());
        if let Some(run) = held.vm.run {
            self.runs.insert(run, name.clone());
        }
        if let Some(part) = held.vm.made.part
            && !self.has_another(part)
        {
            self.parts.insert(part, name.clone());
        }
        if let Some(under) = held.vm.made.under {
            self.asked.entry(under).or_default().insert(name.clone());
        }
        self.names.insert(name, held.clone());
        held
    }

    /// Whether a call has a machine already: one of another name that was
    /// begun for it, and never was, does not count.
    fn has_another(&self, part: PartOf) -> bool {
        let other = self.parts.get(&part).and_then(|name| self.names.get(name));
        other.is_some_and(|other| !matches!(other.vm.life, Life::Gone { .. }))
    }

    fn remove(&mut self, name: &VmName) {
        if let Some(old) = self.names.remove(name) {
            self.touched.insert(name.clone());
            self.ids.remove(&old.vm.id);
            if let Some(run) = old.vm.run {
                self.runs.remove(&run);
            }
            if let Some(part) = old.vm.made.part
                && self.parts.get(&part) == Some(name)
            {
                self.parts.remove(&part);
            }
            if let Some(under) = old.vm.made.under
                && let Some(names) = self.asked.get_mut(&under)
            {
                names.remove(name);
                if names.is_empty() {
                    self.asked.remove(&under);
                }
            }
        }
    }
}

impl Records {
    /// Reads which there are.
    ///
    /// # Errors
    /// [`RecordError::Store`].
    pub async fn load(
        bucket: Kv<StoredVm>,
        floor: Kv<u64>,
        lease: Lease,
        cluster: ClusterId,
    ) -> Result<Self, RecordError> {
        let held = floor.get(FLOOR).await?;
        let mut index = Index {
            floor: held.map(|entry| (entry.value, entry.revision)),
            ..Index::default()
        };
        for entry in bucket.list().await?.entries {
            if entry.key == entry.value.name.as_str() {
                index.put(entry.value, entry.revision);
            } else {
                tracing::warn!(key = entry.key, "a machine that muster never writes");
            }
        }
        Ok(Self(Arc::new(Inner {
            bucket,
            floor,
            lease,
            cluster,
            index: RwLock::new(index),
            forgetting: Mutex::new(()),
            changed: watch::Sender::new(0),
        })))
    }

    /// Changes with every record that is written.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The names of records that were written or removed since this was asked
    /// last; of all, the first time.
    #[must_use]
    pub fn touched(&self) -> BTreeSet<VmName> {
        let mut index = self.0.index.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut index.touched)
    }

    /// Whose machines they are.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.0.cluster
    }

    /// One of them, also one that is gone.
    #[must_use]
    pub fn get(&self, name: &VmName) -> Option<Held> {
        self.index().names.get(name).cloned()
    }

    /// One of them by its UUID.
    #[must_use]
    pub fn by_id(&self, id: VmId) -> Option<Held> {
        let index = self.index();
        let name = index.ids.get(&id)?;
        index.names.get(name).cloned()
    }

    /// The one whose newest run that is.
    #[must_use]
    pub fn by_run(&self, run: RunId) -> Option<Held> {
        let index = self.index();
        let name = index.runs.get(&run)?;
        index.names.get(name).cloned()
    }

    /// All of them, by name, those that are gone too.
    #[must_use]
    pub fn all(&self) -> Vec<Held> {
        self.index().names.values().cloned().collect()
    }

    /// The machine that a call of a run asked for.
    #[must_use]
    pub fn of_part(&self, part: PartOf) -> Option<Held> {
        let index = self.index();
        let name = index.parts.get(&part)?;
        index.names.get(name).cloned()
    }

    /// The machines that a request asked for which names itself, by name.
    #[must_use]
    pub fn of_request(&self, under: RunId) -> Vec<Held> {
        let index = self.index();
        let names = index.asked.get(&under).into_iter().flatten();
        names
            .filter_map(|name| index.names.get(name))
            .cloned()
            .collect()
    }

    /// Whether a name is in use.
    #[must_use]
    pub fn is_taken(&self, name: &VmName) -> bool {
        let index = self.index();
        let held = index.names.get(name);
        held.is_some_and(|held| !matches!(held.vm.life, Life::Gone { .. }))
    }

    /// Takes a name that nobody has: `make` is told the machine's UUID and the
    /// how many-th of that name it is.
    ///
    /// # Errors
    /// [`RecordError::Taken`], and others; nothing was written.
    pub async fn take(
        &self,
        name: &VmName,
        make: impl FnOnce(VmId, u64) -> StoredVm,
    ) -> Result<Held, RecordError> {
        self.active()?;
        let old = self.get(name);
        if let Some(old) = &old
            && !matches!(old.vm.life, Life::Gone { .. })
        {
            return Err(Self::taken(&old.vm));
        }
        let nth = self.next(name);
        let vm = make(VmId::derive(&self.0.cluster, name, nth), nth);
        let bucket = &self.0.bucket;
        let written = match &old {
            Some(old) => bucket.update(name.as_str(), &vm, old.revision).await,
            None => bucket.create(name.as_str(), &vm).await,
        };
        match written {
            Ok(revision) => Ok(self.put(vm, revision)),
            Err(KvError::Conflict { .. }) => {
                self.look_again(name).await;
                let now = self.get(name);
                Err(now.map_or_else(
                    || RecordError::Changed(name.clone()),
                    |now| Self::taken(&now.vm),
                ))
            }
            Err(error) => {
                self.look_again(name).await;
                Err(error.into())
            }
        }
    }

    /// Writes the record of a machine anew, unless somebody else did.
    ///
    /// # Errors
    /// [`RecordError::Changed`], and others.
    pub async fn change(&self, old: &Held, vm: StoredVm) -> Result<Held, RecordError> {
        self.active()?;
        let name = old.vm.name.clone();
        match self.0.bucket.update(name.as_str(), &vm, old.revision).await {
            Ok(revision) => Ok(self.put(vm, revision)),
            Err(error) => {
                self.look_again(&name).await;
                Err(match error {
                    KvError::Conflict { .. } => RecordError::Changed(name),
                    error => error.into(),
                })
            }
        }
    }

    /// The UUID that the next machine of a name has.
    #[must_use]
    pub fn next_id(&self, name: &VmName) -> VmId {
        VmId::derive(&self.0.cluster, name, self.next(name))
    }

    /// The how many-th of a name the next machine is.
    #[must_use]
    pub fn next(&self, name: &VmName) -> u64 {
        let index = self.index();
        let nth = index.names.get(name).map_or(0, |old| old.vm.nth);
        let floor = index.floor.map_or(0, |(floor, _)| floor);
        nth.max(floor) + 1
    }

    /// Forgets machines that are gone for longer than `keep`; how many. What their
    /// names were counted up to is written down first.
    ///
    /// # Errors
    /// [`RecordError`]; what is left is forgotten when it is asked again.
    pub async fn forget(&self, now: Timestamp, keep: Duration) -> Result<usize, RecordError> {
        let _one = self.0.forgetting.lock().await;
        self.active()?;
        let is_old =
            |held: &Held| matches!(held.vm.life, Life::Gone { at, .. } if elapsed(at, now) > keep);
        let old: Vec<Held> = self
            .all()
            .into_iter()
            .filter(is_old)
            .take(AT_ONCE)
            .collect();
        let Some(most) = old.iter().map(|held| held.vm.nth).max() else {
            return Ok(0);
        };
        let floor = self.index().floor;
        if floor.is_none_or(|(floor, _)| floor < most) {
            let bucket = &self.0.floor;
            let written = match floor {
                Some((_, revision)) => bucket.update(FLOOR, &most, revision).await,
                None => bucket.create(FLOOR, &most).await,
            };
            let floor = match written {
                Ok(revision) => (most, revision),
                Err(error) => {
                    if let Ok(Some(entry)) = bucket.get(FLOOR).await {
                        self.index_mut().floor = Some((entry.value, entry.revision));
                    }
                    return Err(error.into());
                }
            };
            self.index_mut().floor = Some(floor);
        }
        for held in &old {
            self.active()?;
            let name = &held.vm.name;
            match self.0.bucket.delete(name.as_str(), held.revision).await {
                Ok(_) => self.removed(name),
                // There is a new one of that name.
                Err(KvError::Conflict { .. }) => self.look_again(name).await,
                Err(error) => {
                    self.look_again(name).await;
                    return Err(error.into());
                }
            }
        }
        Ok(old.len())
    }

    /// That somebody has the name.
    #[must_use]
    pub fn taken(vm: &StoredVm) -> RecordError {
        RecordError::Taken {
            name: vm.name.clone(),
            by: vm.made.by.to_string(),
        }
    }

    async fn look_again(&self, name: &VmName) {
        match self.0.bucket.get(name.as_str()).await {
            Ok(Some(entry)) => drop(self.put(entry.value, entry.revision)),
            Ok(None) => self.removed(name),
            Err(error) => tracing::warn!(vm = %name, %error, "a machine's record cannot be read"),
        }
    }

    fn put(&self, vm: StoredVm, revision: u64) -> Held {
        let held = self.index_mut().put(vm, revision);
        self.0.changed.send_modify(|times| *times += 1);
        held
    }

    fn removed(&self, name: &VmName) {
        self.index_mut().remove(name);
        self.0.changed.send_modify(|times| *times += 1);
    }

    fn active(&self) -> Result<u64, RecordError> {
        self.0.lease.epoch().ok_or(RecordError::NotActive)
    }

    fn index(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.0.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}
