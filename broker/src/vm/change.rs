//! What is done with machines that are there, and their end.

use std::sync::Arc;

use muster_protocol::api::{VmAction, VmChanged};
use muster_protocol::ids::RunId;
use muster_protocol::names::VmName;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::vm::{Size, VmId};

use super::choose::{given, strangers};
use super::error::VmError;
use super::keep::Held;
use super::machines::Machines;
use super::placement::{lacks, room};
use super::ports::Look;
use super::records::{End, Life, Order, StoredVm};
use crate::authz::{Authorized, Caller};
use crate::refusal::Refusal;

/// A machine to be destroyed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Destroy {
    /// Its name.
    pub name: VmName,
    /// Whether its disk goes, too.
    pub purge: bool,
    /// That machine, and no other one of that name; any when absent.
    pub only: Option<VmId>,
    /// The run that it is to be, where the request names itself: whoever sends
    /// it again is answered with that run.
    pub under: Option<RunId>,
}

impl Destroy {
    /// Whatever machine has that name.
    #[must_use]
    pub fn named(name: VmName, purge: bool) -> Self {
        Self {
            name,
            purge,
            only: None,
            under: None,
        }
    }
}

/// Something to be done with a machine.
#[derive(Clone, Debug)]
pub struct Act {
    /// Its name.
    pub name: VmName,
    /// What.
    pub what: VmAction,
    /// The run that it is to be, as in [`Destroy`].
    pub under: Option<RunId>,
}

/// The longest time that anything may take in a machine.
const LONGEST: Span = Span::from_secs(3_600);
/// Most lines of a console.
const MAX_LINES: u32 = 2_000;
/// Most bytes of a program and its arguments.
const MAX_ARGV: usize = 64 * 1024;

impl Machines {
    /// Destroys a machine. Without `purge` its disk is kept for a day.
    ///
    /// # Errors
    /// [`VmError`]; nothing was done.
    pub async fn destroy(&self, asked: Authorized<Destroy>) -> Result<VmChanged, VmError> {
        self.destroy_if(asked, |_| true).await
    }

    /// The same, if it is that machine still.
    pub(super) async fn destroy_if(
        &self,
        asked: Authorized<Destroy>,
        is_it: impl Fn(&StoredVm) -> bool,
    ) -> Result<VmChanged, VmError> {
        let caller = asked.caller().clone();
        let Destroy {
            name,
            purge,
            only,
            under,
        } = asked.into_inner();
        let _turn = self.turn(&name).await;
        let held = self.settled(&name).await?;
        let asks = held.vm.destroyed_by(purge);
        if let Some(before) = self.repeated(&held, under, asks.as_ref()).await? {
            return Ok(before);
        }
        if !is_it(&held.vm) {
            return Err(VmError::NoVm(name));
        }
        if only.is_some_and(|id| id != held.vm.id) {
            return Err(VmError::Another(name));
        }
        if held.vm.protected {
            return Err(VmError::Protected(name));
        }
        let end = if purge { End::Purge } else { End::Keep };
        match &held.vm.life {
            Life::Ready { .. } => {}
            Life::Creating { run } if self.is_never_taken(*run).await => {
                self.0.refusals.taken(*run);
                let why = format!("{} had it destroyed before it was begun", caller.principal);
                let mut held = held.clone();
                // Whoever asks again is answered with that.
                Arc::make_mut(&mut held.vm).order.under = under;
                let held = self.take_back(&held, &why).await?;
                let vm = self.view(&held.vm);
                return Ok(VmChanged { vm, run: None });
            }
            Life::Kept { .. } | Life::Doubtful { .. } if purge => {}
            _ => return Err(cannot(&held.vm)),
        }
        // The same host by another key: what is on it runs on.
        self.check_key(&held.vm)?;
        // The hypervisor was removed, and the machine went with it.
        if self.is_orphan(&held.vm) {
            let mut held = held;
            Arc::make_mut(&mut held.vm).order = Order {
                // The answer says it.
                chat: None,
                ..Order::of(&caller).under(under)
            };
            let held = self
                .end(&held, "its hypervisor is no node any more")
                .await?;
            let vm = self.view(&held.vm);
            return Ok(VmChanged { vm, run: None });
        }
        let order = Some(Order::of(&caller).under(under));
        let next = held
            .vm
            .running(order, |run| Life::Destroying { run, end, tries: 0 });
        self.is_stopped(&next)?;
        let before = held.vm.clone();
        let held = self.parts().records.change(&held, next).await?;
        self.ordered(before, held, &caller).await
    }

    /// Does something with a machine.
    ///
    /// # Errors
    /// [`VmError`]; nothing was done.
    pub async fn act(&self, asked: Authorized<Act>) -> Result<VmChanged, VmError> {
        let caller = asked.caller().clone();
        self.act_as(&caller, asked.into_inner()).await
    }

    /// The same, of which it is known that the caller may.
    pub(super) async fn act_as(&self, caller: &Caller, act: Act) -> Result<VmChanged, VmError> {
        let Act { name, what, under } = act;
        // Room is given to one after the other, as places are; and before a
        // turn, as places are.
        let grows = matches!(what, VmAction::Resize { .. } | VmAction::Undelete);
        let room = if grows {
            Some(self.0.making.lock().await)
        } else {
            None
        };
        let _turn = self.turn(&name).await;
        let held = self.settled(&name).await?;
        let vm = &held.vm;
        let asks = vm.asked_by(&what);
        if let Some(before) = self.repeated(&held, under, asks.as_ref()).await? {
            return Ok(before);
        }
        let order = Some(Order::of(caller).under(under));
        let next = match (&vm.life, what) {
            (Life::Gone { .. }, _) => return Err(VmError::NoVm(name)),
            (Life::Kept { since, until }, VmAction::Undelete) => {
                let (since, until) = (*since, *until);
                vm.running(order, |run| Life::Returning { run, since, until })
            }
            (Life::Ready { .. }, VmAction::Undelete) => return Err(VmError::NotKept(name)),
            (_, what @ (VmAction::Protect | VmAction::Unprotect)) => {
                let protected = what == VmAction::Protect;
                if vm.protected == protected {
                    let vm = self.view(vm);
                    return Ok(VmChanged { vm, run: None });
                }
                let mut next = StoredVm::clone(vm);
                next.protected = protected;
                let held = self.parts().records.change(&held, next).await?;
                let vm = self.view(&held.vm);
                return Ok(VmChanged { vm, run: None });
            }
            (Life::Ready { since }, VmAction::Provision { configure }) => {
                if !vm.wish.agent {
                    return Err(VmError::NoAgent(name));
                }
                let configure = configure.or_else(|| vm.wish.configure.clone());
                let configure = configure.ok_or_else(|| VmError::NoConfigure(name.clone()))?;
                self.parts().works.check(&configure).await?;
                vm.configuring(order, configure, *since)
            }
            (Life::Ready { since }, what) => {
                check(vm, &what)?;
                let since = *since;
                let mut next = vm.running(order, |run| Life::Changing {
                    run,
                    what: what.clone(),
                    since,
                });
                match what {
                    VmAction::Start | VmAction::Reboot { .. } => next.should_run = true,
                    VmAction::Stop { .. } => next.should_run = false,
                    _ => {}
                }
                next
            }
            _ => return Err(cannot(vm)),
        };
        // Its run would go to whoever has the hypervisor's name now.
        self.check_key(vm)?;
        self.is_stopped(&next)?;
        if room.is_some() {
            self.has_room(vm, &next)?;
        }
        let before = held.vm.clone();
        let held = self.parts().records.change(&held, next).await?;
        drop(room);
        self.ordered(before, held, caller).await
    }

    /// Nothing is written down that nobody would do now.
    fn is_stopped(&self, next: &StoredVm) -> Result<(), VmError> {
        let why = self.parts().works.stopped(next.is_taken_back());
        why.map_or(Ok(()), |why| Err(why.into()))
    }

    /// Whether a run was refused for certain whenever it was asked for, and so
    /// nothing of it was done. Whoever calls has the turn of its machine.
    pub(super) async fn is_never_taken(&self, run: RunId) -> bool {
        self.0.refusals.never_taken(run) && self.parts().works.look(run).await == Look::Nothing
    }

    /// Whether its hypervisor can give it what it is to have, as it is counted
    /// where machines are placed.
    fn has_room(&self, vm: &StoredVm, next: &StoredVm) -> Result<(), VmError> {
        let no = |why: String| VmError::NoRoom {
            name: vm.name.clone(),
            node: vm.place.node.clone(),
            why,
        };
        let serial = vm.place.serial;
        let heard = self.parts().observed.of(serial);
        let capacity = heard.as_ref().and_then(|heard| heard.report.capacity);
        let capacity = capacity.ok_or_else(|| no("it has not said what it has".to_owned()))?;
        let records = self.parts().records.all();
        let given = given(&records).remove(&serial).unwrap_or_default();
        let given = given.and(strangers(&self.parts().records, heard.as_deref()));
        let (old, new) = (vm.takes(), next.takes());
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        let room = room(&capacity, &self.parts().settings);
        lacks(room, given, old, new).map_or(Ok(()), |why| Err(no(why)))
    }

    /// Writes down what is to be done, then asks for it. When that is refused
    /// it is as before.
    pub(super) async fn order(
        &self,
        held: &Held,
        next: StoredVm,
        caller: &Caller,
    ) -> Result<VmChanged, VmError> {
        self.is_stopped(&next)?;
        let before = held.vm.clone();
        let held = self.parts().records.change(held, next).await?;
        self.ordered(before, held, caller).await
    }

    /// Asks for what is written down. When that is refused it is as before.
    async fn ordered(
        &self,
        before: Arc<StoredVm>,
        held: Held,
        caller: &Caller,
    ) -> Result<VmChanged, VmError> {
        muster_checkpoint::at("broker.vm.ordered", || held.vm.name.to_string()).await;
        if let Err(error) = self.ask(&held.vm, caller).await {
            match Refusal::of(&error) {
                Refusal::Unsure => {
                    if let Some(run) = held.vm.run {
                        self.0.refusals.unsure(run);
                    }
                    self.0.restless.notify_one();
                    return Err(VmError::Unsure {
                        names: vec![held.vm.name.clone()],
                        done: match held.vm.life {
                            Life::Destroying { .. } => "destroyed",
                            Life::Returning { .. } => "brought back",
                            _ => "changed",
                        },
                        why: error,
                    });
                }
                // Whoever takes it back would only ask again: that is done for
                // them, ever more rarely.
                Refusal::Later if held.vm.is_taken_back() => {
                    return Ok(self.asked_for(&held));
                }
                Refusal::Later | Refusal::Final => {}
            }
            // The number of its run is used up all the same.
            let mut back = StoredVm::clone(&before);
            back.runs = held.vm.runs;
            if let Err(error) = self.parts().records.change(&held, back).await {
                tracing::warn!(vm = %before.name, %error, "what was refused is written down as asked for");
            }
            return Err(error.into());
        }
        Ok(self.asked_for(&held))
    }

    fn asked_for(&self, held: &Held) -> VmChanged {
        self.0.restless.notify_one();
        VmChanged {
            run: held.vm.run,
            vm: self.view(&held.vm),
        }
    }

    /// The machine after everything that has ended of it was looked after.
    pub(super) async fn settled(&self, name: &VmName) -> Result<Held, VmError> {
        let held = self.held(name)?;
        if held.vm.is_restless() {
            self.step(&held, Timestamp::now()).await?;
        }
        self.held(name)
    }

    /// Nothing of a machine that was there is left.
    pub(super) async fn end(&self, held: &Held, why: &str) -> Result<Held, VmError> {
        let held = self.ending(held, why, false).await?;
        self.over(&held).await
    }
}

/// Why nothing can be done with it now.
fn cannot(vm: &StoredVm) -> VmError {
    let name = vm.name.clone();
    let busy = |doing, run: Option<RunId>| VmError::Busy {
        name: vm.name.clone(),
        doing,
        run: run.map_or_else(|| "-".to_owned(), |run| run.prefix(8).to_owned()),
    };
    match &vm.life {
        Life::Reserved => busy("being made", None),
        Life::Creating { run } => busy("being made", Some(*run)),
        Life::Changing { run, .. } if vm.is_being_configured() => {
            busy("being configured", Some(*run))
        }
        Life::Changing { run, .. } => busy("being changed", Some(*run)),
        Life::Destroying { run, .. } => busy("being destroyed", Some(*run)),
        Life::Returning { run, .. } => busy("being brought back", Some(*run)),
        Life::Ending { .. } => busy("being cleared away", None),
        Life::Kept { until, .. } => VmError::Kept {
            name,
            until: *until,
        },
        Life::Doubtful { why, .. } => VmError::Doubtful {
            name,
            node: vm.place.node.clone(),
            why: why.clone(),
        },
        Life::Ready { .. } | Life::Gone { .. } => VmError::NoVm(name),
    }
}

/// Whether that can be done with a machine.
fn check(vm: &StoredVm, what: &VmAction) -> Result<(), VmError> {
    let wrong = |text: String| Err(VmError::Wrong(text));
    match what {
        VmAction::Stop { grace } | VmAction::Reboot { grace } => match grace {
            Some(grace) if *grace > LONGEST => wrong(format!(
                "{grace} to stop is too long; give at most {LONGEST}"
            )),
            _ => Ok(()),
        },
        VmAction::Resize { cpus, memory, disk } => {
            if cpus.is_none() && memory.is_none() && disk.is_none() {
                return wrong("nothing is to change; give --cpus, --memory or --disk".to_owned());
            }
            if let Some(disk) = disk.filter(|disk| *disk < vm.wish.disk) {
                return wrong(format!(
                    "a disk only grows, and this one has {}; {disk} is less",
                    vm.wish.disk
                ));
            }
            let resized = vm.resized(*cpus, *memory, *disk);
            Ok(resized.machine().check()?)
        }
        VmAction::ConsoleLog { lines } => match lines {
            Some(lines) if *lines == 0 || *lines > MAX_LINES => wrong(format!(
                "{lines} lines of a console are not possible; give 1 to {MAX_LINES}"
            )),
            _ => Ok(()),
        },
        VmAction::Exec { argv, timeout } => {
            let bytes: usize = argv.iter().map(String::len).sum();
            if argv.first().is_none_or(String::is_empty) || bytes > MAX_ARGV {
                return wrong(format!(
                    "a program and its arguments have 1 to {MAX_ARGV} bytes"
                ));
            }
            match timeout {
                Some(time) if time.get().is_zero() || *time > LONGEST => {
                    wrong(format!("{time} is not possible; give 1s to {LONGEST}"))
                }
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

impl StoredVm {
    /// The same, of that size.
    pub(super) fn resized(
        &self,
        cpus: Option<u16>,
        memory: Option<Size>,
        disk: Option<Size>,
    ) -> Self {
        let mut next = self.clone();
        next.wish.cpus = cpus.unwrap_or(next.wish.cpus);
        next.wish.memory = memory.unwrap_or(next.wish.memory);
        next.wish.disk = disk.unwrap_or(next.wish.disk);
        next
    }
}
