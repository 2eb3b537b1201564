//! What each call means: looked first, then done, once.
//!
//! Nothing here is remembered between calls: what is so is asked of libvirt
//! and read from the disk each time. So it does not matter where an earlier
//! try ended, or who ended it. A machine is its UUID; a domain of another
//! UUID, or one that muster did not make, is never touched.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_libvirt::message::{Domain, Pool};
use muster_libvirt::xml;
use muster_protocol::envelope::Mode;
use muster_protocol::ids::ClusterId;
use muster_protocol::names::{ImageName, PoolName, SnapshotName, VmName};
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::vm::{
    GuestState, Machine, MachineError, Owner, Size, Virtualisation, VmCall, VmId,
};
use muster_scenarios::node::{Change, HostError, Performed};
use serde_json::{Value, json};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;

use super::files::Files;
use super::guest::GuestError;
use super::images::ImageError;
use super::seed::SeedError;
use super::source::{Source, SourceError};
use super::virt::{Answered, Asking, Virt, VirtError};

/// How long a call may take where nobody says so.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks what became of a call: the first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Who hears how far something is.
pub trait Progress: Sync {
    /// A line for the run's log.
    fn say(&self, text: String) -> BoxFuture<'_, ()>;
}

/// Why something about a machine was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// No machine can be like that.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// libvirt.
    #[error(transparent)]
    Virt(#[from] VirtError),
    /// It was asked, nothing was heard, and it is not so, even a while later.
    #[error(
        "{0}; it was looked at again for {1}, and it was not done. Should libvirt hang, it may do it still"
    )]
    NotDone(VirtError, Span),
    /// Something was asked for that may still come.
    #[error(
        "nothing of the machine {0} is there, but libvirt was asked to make it and never answered: it may come still. muster looks again; see whether libvirtd hangs"
    )]
    MayCome(VmId),
    /// Nobody heard the end of a way back to a snapshot.
    #[error(
        "{first}; whether its disk is as in the snapshot cannot be said. The rest of it is as it was. Restore it again: that does no harm"
    )]
    Restored {
        /// What was not answered.
        first: VirtError,
    },
    /// The same, and libvirt is not done with it.
    #[error(
        "its disk was being set back when libvirt did not answer any more, and it is not as it was yet: {then}. What is done with it next puts it right"
    )]
    Unmended {
        /// Why not.
        then: String,
    },
    /// libvirt works on it.
    #[error(
        "libvirt still works on the machine {0}; try again when it is done: virsh domcontrol {0}"
    )]
    Busy(VmId),
    /// It was asked, nothing was heard, and it cannot be seen whether it is so.
    #[error(
        "{first}; whether it was done cannot be seen either: {then}. Try it again: it is not done twice"
    )]
    Unseen {
        /// What was not answered.
        first: VirtError,
        /// What the look said.
        then: VirtError,
    },
    /// It was ended, and is there again.
    #[error(
        "the domain `{name}` was ended and is there again: somebody starts it. Nothing of its disk was removed; see who does, and try again"
    )]
    Comes {
        /// Its name.
        name: String,
    },
    /// Not here.
    #[error("there is no machine {0} on this hypervisor")]
    Missing(VmId),
    /// The name is somebody else's.
    #[error(
        "the name `{name}` is taken by a domain that muster does not own ({uuid}); it is not touched"
    )]
    TakenByOther {
        /// The name.
        name: VmName,
        /// Whose it is.
        uuid: VmId,
    },
    /// The name is another machine's.
    #[error(
        "the name `{name}` is taken by another machine of muster's ({uuid}); it is not touched"
    )]
    Taken {
        /// The name.
        name: VmName,
        /// Whose it is.
        uuid: VmId,
    },
    /// The UUID is somebody else's.
    #[error("the domain `{name}` ({uuid}) is not this cluster's; it is not touched")]
    NotOurs {
        /// Its name.
        name: String,
        /// Which.
        uuid: VmId,
    },
    /// It is there, and something else was wanted of it.
    #[error(
        "`{name}` is there already and is another one: {what}; change it with vm::resize, or destroy it first"
    )]
    Differs {
        /// Its name.
        name: VmName,
        /// How.
        what: String,
    },
    /// Another pool.
    #[error(
        "this hypervisor keeps disks in the pool `{own}`, and not in `{pool}`; see `pool` below [vm] in the agent's file"
    )]
    Pool {
        /// What was asked for.
        pool: PoolName,
        /// Its own.
        own: PoolName,
    },
    /// A pool without files.
    #[error("the pool `{0}` has no directory; muster keeps disks in pools of the type `dir`")]
    NoDirectory(PoolName),
    /// The image.
    #[error("the image `{0}` is not on this hypervisor; vm::image fetches it")]
    NoImage(ImageName),
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Room.
    #[error("the pool `{pool}` has {free} free, and {needed} are needed for {what}")]
    Space {
        /// Which.
        pool: PoolName,
        /// What there is.
        free: Size,
        /// What it takes.
        needed: Size,
        /// For what.
        what: String,
    },
    /// How machines are run is not known.
    #[error(
        "libvirt does not say how it would run a machine here; say it with `type` below [vm] in the agent's file"
    )]
    NoType,
    /// The seed's texts.
    #[error("the seed of `{name}` does not come: {source}")]
    NoSeed {
        /// The machine.
        name: VmName,
        /// Why.
        source: SourceError,
    },
    /// The seed's file.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The disk that was kept went.
    #[error(
        "the disk of `{0}` was kept, and is not there any more; destroy what is left with purge: true"
    )]
    DiskGone(VmName),
    /// A disk does not shrink.
    #[error("its disk is one of {has}, and a disk only grows: {wanted} is less")]
    Shrinks {
        /// How large it is.
        has: Size,
        /// How large it was to be.
        wanted: Size,
    },
    /// It is held.
    #[error("it is paused; somebody did that by hand: virsh resume {0}")]
    Paused(VmId),
    /// It does not run.
    #[error("it does not run")]
    NotRunning,
    /// There is no such snapshot.
    #[error("it has no snapshot `{name}`{}", known(.all))]
    NoSnapshot {
        /// Which.
        name: SnapshotName,
        /// What there are.
        all: Vec<String>,
    },
    /// What the disks of a domain are layers over is not known.
    #[error("the disks of the domain `{name}` cannot be read: {why}; so no image is removed")]
    Disks {
        /// Whose.
        name: String,
        /// Why.
        why: String,
    },
    /// The guest agent.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

fn known(all: &[String]) -> String {
    if all.is_empty() {
        return "; it has none".to_owned();
    }
    let all: Vec<String> = all
        .iter()
        .take(10)
        .map(|name| printable(name, 60))
        .collect();
    format!("; there are: {}", all.join(", "))
}

impl From<VmError> for HostError {
    fn from(error: VmError) -> Self {
        Self::Failed(error.to_string())
    }
}

pub(super) type Done<T> = Result<T, VmError>;

/// What holds for all machines of a hypervisor.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Whose they are.
    pub cluster: ClusterId,
    /// Where their disks are.
    pub pool: PoolName,
    /// How they run; what libvirt says works, without.
    pub kind: Option<Virtualisation>,
    /// Where their consoles are written down.
    pub console: PathBuf,
}

/// The machines of a hypervisor. Cheap to clone.
#[derive(Clone)]
pub struct Machines(pub(super) Arc<Inner>);

pub(super) struct Inner {
    /// One after the other.
    pub(super) work: Arc<dyn Virt>,
    /// What guest agents are asked by: they may take long, and change nothing
    /// of what the other one sees.
    pub(super) guests: Arc<dyn Virt>,
    pub(super) source: Arc<dyn Source>,
    pub(super) setting: Setting,
    /// How long a call may take, and so long it is looked for what became of
    /// one that nobody heard of.
    pub(super) patience: Duration,
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Held by whoever needs an image to stay, and alone by who removes some.
    pub(super) making: tokio::sync::RwLock<()>,
    /// Told when a machine is left as it should not be.
    pub(super) cut: tokio::sync::Notify,
    /// Held as long as disks are read to see what they are layers over.
    pub(super) looking: Arc<tokio::sync::Mutex<()>>,
    /// Machines that libvirt was asked to make something of, without an answer.
    open: Mutex<HashSet<VmId>>,
    changes: watch::Sender<u64>,
}

impl Machines {
    /// By these.
    #[must_use]
    pub fn new(
        work: Arc<dyn Virt>,
        guests: Arc<dyn Virt>,
        source: Arc<dyn Source>,
        setting: Setting,
    ) -> Self {
        Self(Arc::new(Inner {
            work,
            guests,
            source,
            setting,
            patience: PATIENCE,
            locks: Mutex::default(),
            making: tokio::sync::RwLock::default(),
            cut: tokio::sync::Notify::new(),
            looking: Arc::default(),
            open: Mutex::default(),
            changes: watch::Sender::new(0),
        }))
    }

    /// The same, where a call may take so long; half a minute else. Only
    /// before it is cloned.
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.patience = patience;
        }
        self
    }

    /// What holds for all of them.
    #[must_use]
    pub fn setting(&self) -> &Setting {
        &self.0.setting
    }

    /// A number that rises whenever something was done to a machine here.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Does it, or says what it would do.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn perform(
        &self,
        call: &VmCall,
        mode: Mode,
        say: &dyn Progress,
    ) -> Result<Performed, VmError> {
        let lock = match call {
            VmCall::Image { image } => Some(image.sha256.to_string()),
            // These change nothing, and one of them may take long.
            VmCall::GuestExec { .. }
            | VmCall::GuestPing { .. }
            | VmCall::ConsoleLog { .. }
            | VmCall::Info { .. }
            | VmCall::List => None,
            other => other.id().map(|id| id.to_string()),
        };
        let mut held = match lock {
            Some(key) => Some(self.lock(key).await),
            None => None,
        };
        let inner = &*self.0;
        let _making = match call {
            VmCall::Image { .. } | VmCall::Create { .. } => Some(inner.making.read().await),
            _ => None,
        };
        if mode == Mode::Apply
            && goes_on(call)
            && let Some(id) = call.id()
        {
            inner.mend(id).await?;
        }
        let performed = match call {
            VmCall::Image { image } => inner.image(image, mode, say).await,
            VmCall::Create { machine } => inner.create(machine, mode, say).await,
            VmCall::Start { id } => inner.start(*id, mode).await,
            VmCall::Stop { id, grace } => inner.stop(*id, *grace, mode).await,
            VmCall::Reboot { id, grace } => inner.reboot(*id, *grace, mode).await,
            VmCall::Destroy { id, purge } => inner.destroy(*id, *purge, mode).await,
            VmCall::Resize {
                id,
                cpus,
                memory,
                disk,
            } => inner.resize(*id, (*cpus, *memory, *disk), mode).await,
            VmCall::Snapshot { id, snapshot } => inner.snapshot(*id, snapshot, mode).await,
            // Whoever stops waiting leaves it whole, and others behind it.
            VmCall::Restore { id, snapshot } => {
                let (id, name, all) = (*id, snapshot.clone(), self.clone());
                let held = held.take();
                let whole = tokio::spawn(async move {
                    let _held = held;
                    all.0.restore(id, &name, mode).await
                });
                let ending = || VirtError::Away("the agent is ending".to_owned()).into();
                whole.await.unwrap_or_else(|_| Err(ending()))
            }
            VmCall::Unseed { id } => inner.unseed(*id, mode).await,
            VmCall::List => inner.list().await,
            VmCall::Info { id } => inner.info(*id).await,
            VmCall::ConsoleLog { id, lines } => inner.console_log(*id, *lines),
            VmCall::GuestExec { id, argv, timeout } => {
                inner.guest_exec(*id, argv, *timeout, mode).await
            }
            VmCall::GuestPing { id } => inner.guest_ping(*id, mode).await,
        };
        // Also when it failed: part of it may be done.
        if mode == Mode::Apply && alters(call) {
            self.changed();
        }
        performed
    }

    pub(super) fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }

    pub(super) async fn lock(&self, key: String) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let lock = locks.get(&key).and_then(Weak::upgrade).unwrap_or_default();
            locks.insert(key, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }
}

/// Whether it goes on with a machine that is there.
fn goes_on(call: &VmCall) -> bool {
    matches!(
        call,
        VmCall::Create { .. }
            | VmCall::Start { .. }
            | VmCall::Stop { .. }
            | VmCall::Reboot { .. }
            | VmCall::Resize { .. }
            | VmCall::Snapshot { .. }
            | VmCall::Restore { .. }
    )
}

/// Whether a report says something else after it.
fn alters(call: &VmCall) -> bool {
    !matches!(
        call,
        VmCall::GuestExec { .. }
            | VmCall::GuestPing { .. }
            | VmCall::ConsoleLog { .. }
            | VmCall::Info { .. }
            | VmCall::List
            | VmCall::Unseed { .. }
    )
}

/// What a call came to that only changes something.
pub(super) fn changed(mode: Mode, summary: impl Into<String>) -> Performed {
    let (summary, diff) = (summary.into(), Vec::new());
    let change = match mode {
        Mode::Apply => Change::Changed { summary, diff },
        Mode::Check => Change::WouldChange { summary, diff },
    };
    Performed {
        change: Some(change),
        value: Value::Null,
    }
}

pub(super) fn unchanged() -> Performed {
    Performed {
        change: Some(Change::Unchanged),
        value: Value::Null,
    }
}

pub(super) fn state_name(state: GuestState) -> &'static str {
    match state {
        GuestState::Running => "running",
        GuestState::Paused => "paused",
        GuestState::Stopped => "stopped",
        GuestState::Crashed => "crashed",
    }
}

/// Whether it takes a processor's time, or could at once.
pub(super) fn is_on(state: GuestState) -> bool {
    matches!(state, GuestState::Running | GuestState::Paused)
}

impl Inner {
    /// What a call that may have been done came to: where nothing was heard,
    /// it is looked whether it is so. A call that was given up is done still,
    /// as soon as libvirt comes to it: so for a while.
    pub(super) async fn settled<F: Future<Output = Answered<bool>>>(
        &self,
        done: Answered<()>,
        is_so: impl Fn() -> F,
    ) -> Done<()> {
        let first = match done {
            Ok(()) => return Ok(()),
            Err(first) if first.is_uncertain() => first,
            Err(error) => return Err(error.into()),
        };
        let begun = Instant::now();
        let mut pause = LOOKS.0;
        loop {
            let is = is_so().await;
            if matches!(is, Ok(true)) {
                return Ok(());
            }
            if begun.elapsed() >= self.patience {
                return Err(match is {
                    Err(then) => VmError::Unseen { first, then },
                    Ok(_) => VmError::NotDone(first, span(self.patience)),
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    fn open(&self) -> MutexGuard<'_, HashSet<VmId>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of a machine may come that nobody will wait for.
    pub(super) fn may_come(&self, id: VmId, error: &VmError) {
        if matches!(error, VmError::NotDone(..) | VmError::Unseen { .. }) {
            self.open().insert(id);
        }
    }

    /// Whatever was to come of a machine has come.
    pub(super) fn came(&self, id: VmId) {
        self.open().remove(&id);
    }

    /// The domain of a machine that is not there: it may come still.
    pub(super) async fn wait_for(&self, id: VmId) -> Done<Option<Domain>> {
        let begun = Instant::now();
        while self.open().contains(&id) && begun.elapsed() < self.patience {
            tokio::time::sleep(LOOKS.1.min(self.patience)).await;
            if let Some(domain) = self.look(id).await? {
                return Ok(Some(domain));
            }
        }
        Ok(None)
    }

    /// Says once of what may have come and did not that it may come later.
    pub(super) fn came_not(&self, id: VmId, mode: Mode) -> Option<VmError> {
        (mode == Mode::Apply && self.open().remove(&id)).then_some(VmError::MayCome(id))
    }

    pub(super) fn ask(&self) -> Asking<'_, dyn Virt> {
        Asking(&*self.work)
    }

    /// The machine's domain, if it has one; one that is not ours is an error.
    pub(super) async fn look(&self, id: VmId) -> Done<Option<Domain>> {
        let Some(domain) = self.ask().domain(id).await? else {
            return Ok(None);
        };
        self.ours(&domain)?;
        Ok(Some(domain))
    }

    /// The machine's domain, which must be there.
    pub(super) async fn there(&self, id: VmId) -> Done<Domain> {
        self.look(id).await?.ok_or(VmError::Missing(id))
    }

    pub(super) fn ours(&self, domain: &Domain) -> Done<()> {
        match domain.owner {
            Owner::Muster { cluster } if cluster == self.setting.cluster => Ok(()),
            _ => Err(VmError::NotOurs {
                name: printable(&domain.name, 80),
                uuid: domain.uuid,
            }),
        }
    }

    pub(super) async fn pool(&self) -> Done<(Files, Pool)> {
        let name = &self.setting.pool;
        let pool = self.ask().pool(name).await?;
        let path = pool.path.clone().filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| VmError::NoDirectory(name.clone()))?;
        let files = Files {
            pool: path.into(),
            console: self.setting.console.clone(),
        };
        Ok((files, pool))
    }

    /// The definition of a machine's domain.
    pub(super) async fn definition(&self, machine: &Machine, files: &Files) -> Done<String> {
        let host = self.ask().host().await?;
        let kind = self
            .setting
            .kind
            .or(host.virtualisation)
            .ok_or(VmError::NoType)?;
        let text = |path: PathBuf| path.display().to_string();
        let paths = xml::Paths {
            disk: text(files.disk(machine.id)),
            seed: Some(text(files.seed(machine.id))),
            console_log: text(files.console_log(machine.id)),
            emulator: host.emulator,
        };
        Ok(xml::domain(machine, &paths, self.setting.cluster, kind))
    }

    /// Has the domain as in this definition.
    pub(super) async fn define(&self, machine: &Machine, files: &Files) -> Done<()> {
        let xml = self.definition(machine, files).await?;
        let done = self.ask().define(xml).await;
        self.settled(done, || async {
            let domain = self.ask().domain(machine.id).await?;
            Ok(domain.is_some_and(|d| d.machine.as_deref() == Some(machine)))
        })
        .await
        .inspect_err(|error| self.may_come(machine.id, error))
    }

    /// Has it run.
    pub(super) async fn start_now(&self, id: VmId) -> Done<()> {
        let done = self.ask().start(id).await;
        self.settled(done, || self.is_in(id, is_on)).await
    }

    /// Whether it is in such a state.
    pub(super) async fn is_in(
        &self,
        id: VmId,
        which: impl Fn(GuestState) -> bool,
    ) -> Answered<bool> {
        let domain = self.ask().domain(id).await?;
        Ok(domain.is_some_and(|domain| which(domain.state)))
    }

    /// What a script sees of a domain.
    fn shown(&self, domain: &Domain) -> Value {
        let (owner, machine) = match domain.owner {
            Owner::Muster { cluster } if cluster == self.setting.cluster => {
                ("muster", domain.machine.as_deref())
            }
            Owner::Muster { .. } => ("another cluster", None),
            Owner::Foreign => ("foreign", None),
        };
        let mut value = json!({
            "id": domain.uuid,
            "name": printable(&domain.name, 80),
            "state": state_name(domain.state),
            "cpus": domain.cpus,
            "memory": domain.memory,
            "autostart": domain.autostart,
            "owner": owner,
        });
        if let Some(machine) = machine {
            value["disk"] = json!(machine.disk.size);
            value["image"] = json!(machine.image.name);
            let addresses = machine.nics.iter().flat_map(|nic| &nic.addresses);
            value["addresses"] = addresses.map(|a| json!(a)).collect();
        }
        value
    }

    async fn list(&self) -> Done<Performed> {
        let mut all = self.ask().domains().await?;
        all.sort_by_key(|domain| domain.uuid);
        let value = all.iter().map(|domain| self.shown(domain)).collect();
        Ok(Performed {
            change: None,
            value,
        })
    }

    async fn info(&self, id: VmId) -> Done<Performed> {
        let domain = self.there(id).await?;
        let mut value = self.shown(&domain);
        let snapshots = self.ask().snapshots(id).await?;
        value["snapshots"] = json!(snapshots);
        let volume = self
            .ask()
            .volume(&self.setting.pool, &super::files::volume(id))
            .await?;
        if let Some(volume) = volume {
            value["disk"] = json!(volume.capacity);
            value["disk_used"] = json!(volume.allocation);
        }
        Ok(Performed {
            change: None,
            value,
        })
    }
}

fn span(time: Duration) -> Span {
    Span::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// How long is left of a span that began then.
pub(super) fn left(begun: tokio::time::Instant, span: Span) -> std::time::Duration {
    span.get().saturating_sub(begun.elapsed())
}
