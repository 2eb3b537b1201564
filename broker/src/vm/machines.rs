//! Everything about machines, put together.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use muster_protocol::api::{Presence, VmBrief, VmStatus, VmView};
use muster_protocol::ids::Serial;
use muster_protocol::names::VmName;
use muster_protocol::units::Timestamp;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use super::cordons::Cordons;
use super::drift::{Seen, status};
use super::error::VmError;
use super::keep::{Held, Records};
use super::observed::{Heard, Observed};
use super::ports::{Doorman, Pictures, Reserves, Works};
use super::records::{Life, StoredVm};
use super::refusals::Refusals;
use super::tenants::Tenants;
use super::view::{brief, view};
use crate::config::VmConfig;
use crate::events::{Events, Once};
use crate::groups::Groups;
use crate::inventory::{Inventory, NodeControl};

/// How long the disk of a machine that was destroyed is kept.
pub const KEEP_FOR: Duration = Duration::from_secs(86_400);

/// What it takes.
pub struct Parts {
    /// The records.
    pub records: Records,
    /// Security groups.
    pub groups: Groups,
    /// What hypervisors say.
    pub observed: Observed,
    /// Where nothing new is put.
    pub cordons: Cordons,
    /// Accounts, and keys that have names.
    pub tenants: Tenants,
    /// The nodes.
    pub inventory: Inventory,
    /// Whether they are there.
    pub control: Arc<dyn NodeControl>,
    /// Who gives addresses.
    pub reserves: Arc<dyn Reserves>,
    /// Who knows images.
    pub pictures: Arc<dyn Pictures>,
    /// Who runs things.
    pub works: Arc<dyn Works>,
    /// Who lets agents in.
    pub doorman: Arc<dyn Doorman>,
    /// What happens.
    pub events: Events,
    /// How much of a hypervisor is given.
    pub settings: VmConfig,
    /// How long disks are kept.
    pub keep_for: Duration,
}

/// All machines. Cheap to clone.
#[derive(Clone)]
pub struct Machines(pub(super) Arc<Inner>);

impl std::fmt::Debug for Machines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machines").finish_non_exhaustive()
    }
}

pub(super) struct Inner {
    pub(super) parts: Parts,
    /// Places and names are given one after the other.
    pub(super) making: Mutex<()>,
    turns: Turns,
    /// There is something to look after.
    pub(super) restless: Notify,
    /// Runs that were not taken now.
    pub(super) refusals: Refusals,
    /// When this broker began to look after machines.
    opened: Instant,
}

/// Whoever does something with a machine waits for whoever does so already.
#[derive(Default)]
struct Turns(std::sync::Mutex<HashMap<VmName, Weak<Mutex<()>>>>);

/// Hypervisors are heard again that soon after a broker begins.
const HEARD_AGAIN: Duration = Duration::from_secs(30);
/// Most keys in a row that a machine's node is followed through.
const MANY_KEYS: usize = 16;
/// Names of which nobody waits are forgotten when there are so many.
const MANY_TURNS: usize = 1_024;

impl Turns {
    fn of(&self, name: &VmName) -> Arc<Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        if turns.len() >= MANY_TURNS {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::new(Mutex::new(()));
        turns.insert(name.clone(), Arc::downgrade(&turn));
        turn
    }
}

impl Machines {
    /// From its parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            parts,
            making: Mutex::new(()),
            turns: Turns::default(),
            restless: Notify::new(),
            opened: Instant::now(),
            refusals: Refusals::default(),
        }))
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// Until nobody else does anything with the machine of that name.
    pub(super) async fn turn(&self, name: &VmName) -> OwnedMutexGuard<()> {
        self.0.turns.of(name).lock_owned().await
    }

    /// The same, if nobody does now.
    pub(super) fn turn_now(&self, name: &VmName) -> Option<OwnedMutexGuard<()>> {
        self.0.turns.of(name).try_lock_owned().ok()
    }

    /// The record of a machine, one that is gone too.
    pub(super) fn held(&self, name: &VmName) -> Result<Held, VmError> {
        let held = self.parts().records.get(name);
        held.ok_or_else(|| VmError::NoVm(name.clone()))
    }

    /// Whether a hypervisor is heard.
    pub(super) fn is_connected(&self, serial: Serial) -> bool {
        let there = self.parts().inventory.snapshot().get(serial).is_some();
        let state = || self.parts().control.presence(serial).state;
        there && matches!(state(), Presence::Up | Presence::Late)
    }

    /// One machine.
    ///
    /// # Errors
    /// [`VmError::NoVm`].
    pub fn show(&self, name: &VmName) -> Result<VmView, VmError> {
        Ok(self.view(&self.held(name)?.vm))
    }

    /// A machine, as people see it.
    #[must_use]
    pub fn view(&self, vm: &StoredVm) -> VmView {
        let heard = self.parts().observed.of(vm.place.serial);
        let connected = self.is_connected(vm.place.serial);
        view(vm, Seen::of(vm, connected, heard.as_deref()))
    }

    /// The records of machines by name: of those that are there, or of those
    /// that are not.
    #[must_use]
    pub fn records(&self, deleted: bool) -> Vec<Arc<StoredVm>> {
        let is_gone = |vm: &StoredVm| matches!(vm.life, Life::Gone { .. } | Life::Kept { .. });
        let all = self.parts().records.all().into_iter();
        all.map(|held| held.vm)
            .filter(|vm| is_gone(vm) == deleted)
            .collect()
    }

    /// Machines by name, with how each is: those that are there, or those that
    /// are not.
    #[must_use]
    pub fn list(&self, deleted: bool) -> Vec<(Arc<StoredVm>, VmStatus)> {
        let vms = self.records(deleted);
        let all = self.each(&vms, status);
        vms.into_iter().zip(all).collect()
    }

    /// Machines in short.
    #[must_use]
    pub fn briefs(&self, vms: &[Arc<StoredVm>]) -> Vec<VmBrief> {
        self.each(vms, brief)
    }

    /// What `of` makes of each; its hypervisor is looked for once.
    fn each<T>(&self, vms: &[Arc<StoredVm>], of: fn(&StoredVm, Seen<'_>) -> T) -> Vec<T> {
        let mut hypervisors: HashMap<Serial, (bool, Option<Arc<Heard>>)> = HashMap::new();
        let mut all = Vec::with_capacity(vms.len());
        for vm in vms {
            let serial = vm.place.serial;
            let (connected, heard) = hypervisors.entry(serial).or_insert_with(|| {
                let heard = self.parts().observed.of(serial);
                (self.is_connected(serial), heard)
            });
            all.push(of(vm, Seen::of(vm, *connected, heard.as_deref())));
        }
        all
    }

    /// Tells what happened to a machine, once.
    pub(super) async fn tell(&self, vm: &StoredVm, kind: &str, mark: &str, text: String) {
        let more = serde_json::Map::new();
        self.tell_with(vm, (kind, mark), text, more).await;
    }

    /// The same, with more for programs.
    pub(super) async fn tell_with(
        &self,
        vm: &StoredVm,
        (kind, mark): (&str, &str),
        text: String,
        more: serde_json::Map<String, serde_json::Value>,
    ) {
        let field = |name: &str, value: serde_json::Value| (name.to_owned(), value);
        let mut fields = serde_json::Map::from_iter([
            field("vm", serde_json::json!(vm.name)),
            field("id", serde_json::json!(vm.id)),
            field("hypervisor", serde_json::json!(vm.place.node)),
        ]);
        if let Some(account) = &vm.wish.account {
            fields.extend([field("account", serde_json::json!(account))]);
        }
        if let Some(run) = &vm.run {
            fields.extend([field("run", serde_json::json!(run))]);
        }
        self.add_answer(vm, kind, &mut fields);
        fields.extend(more);
        let event = Once {
            id: format!("vm.{}.{kind}.{mark}", vm.id),
            kind: kind.to_owned(),
            subject: vm.name.to_string(),
            text,
            fields,
        };
        self.parts().events.once(event).await;
    }

    /// Nobody can enrol as a machine any more; who has done so is written down
    /// with it before the invite is forgotten.
    async fn bar(&self, held: Held) -> Result<Held, VmError> {
        let doorman = &self.parts().doorman;
        let mut node = held.vm.node;
        for invite in &held.vm.invites {
            node = doorman.void(invite).await?.or(node);
        }
        let held = if node == held.vm.node {
            held
        } else {
            let mut next = StoredVm::clone(&held.vm);
            next.node = node;
            self.parts().records.change(&held, next).await?
        };
        for invite in &held.vm.invites {
            doorman.bar(invite).await?;
        }
        Ok(held)
    }

    /// Whether hypervisors may not have been heard yet only because this
    /// broker has just begun.
    pub(super) fn has_just_begun(&self) -> bool {
        self.0.opened.elapsed() < HEARD_AGAIN
    }

    /// From now on nobody asks for the machine: what was reserved for it can
    /// be given to others. What is left to do is written down before it is
    /// done, and done whoever comes after.
    pub(super) async fn ending(
        &self,
        held: &Held,
        why: &str,
        never: bool,
    ) -> Result<Held, VmError> {
        let why = why.to_owned();
        let mut next = held.vm.living(Life::Ending { why, never });
        next.should_run = false;
        next.wish.user_data = None;
        if never {
            next.nics.clear();
        }
        Ok(self.parts().records.change(held, next).await?)
    }

    /// Nothing that was made for a machine that ends is left: nobody can enrol
    /// as it, its node is removed, its addresses are free. It is gone.
    pub(super) async fn over(&self, held: &Held) -> Result<Held, VmError> {
        let Life::Ending { why, never } = held.vm.life.clone() else {
            return Ok(held.clone());
        };
        let held = self.bar(held.clone()).await?;
        let Parts {
            doorman, reserves, ..
        } = self.parts();
        let mut node = held.vm.node;
        for _ in 0..MANY_KEYS {
            let Some(serial) = node else {
                break;
            };
            doorman.remove(serial, &held.vm.order.by).await?;
            node = doorman.successor(serial).await?;
        }
        muster_checkpoint::at("broker.vm.cleared", || held.vm.name.to_string()).await;
        reserves.release(held.vm.id).await?;
        let gone = held.vm.gone(never.then(|| why.clone()));
        let held = self.parts().records.change(&held, gone).await?;
        let name = &held.vm.name;
        let (kind, mark, text) = if never {
            let text = format!("machine {name} was not made: {why}");
            ("vm.failed", "end", text)
        } else {
            let text = format!("machine {name} is gone: {why}");
            ("vm.deleted", "gone", text)
        };
        self.tell(&held.vm, kind, mark, text).await;
        Ok(held)
    }

    /// The machine never was: whatever was reserved for it is free.
    pub(super) async fn take_back(&self, held: &Held, why: &str) -> Result<Held, VmError> {
        let held = self.ending(held, why, true).await?;
        self.over(&held).await
    }
}

impl StoredVm {
    /// The same, when nothing of it is there any more.
    pub(super) fn gone(&self, failed: Option<String>) -> Self {
        let mut gone = self.living(Life::Gone {
            at: Timestamp::now(),
            failed,
        });
        gone.should_run = false;
        gone.protected = false;
        gone.wish.user_data = None;
        gone.drift.clear();
        gone.invites.clear();
        gone
    }
}
