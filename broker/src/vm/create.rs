//! New machines: everything is checked, then placed, then written down, then
//! asked for.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use muster_protocol::api::{CreateVms, VmPlan, VmsCreated};
use muster_protocol::ids::RunId;
use muster_protocol::names::VmName;
use muster_protocol::run::PartOf;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::Nic;
use tokio::sync::OwnedMutexGuard;

use super::choose::Chosen;
use super::error::VmError;
use super::keep::{Held, RecordError, Records};
use super::machines::Machines;
use super::placement::Placed;
use super::ports::{Look, refused};
use super::records::{HeldNic, Life, StoredVm};
use super::wanted::Wanted;
use crate::authz::{Authorized, Caller};
use crate::refusal::Refusal;
use crate::submit::{Asked, Refused};

/// Machines that are begun at a time.
const AT_ONCE: usize = 16;

/// A machine that is written down, while nobody else does anything with it.
struct Taken {
    held: Held,
    placed: Placed,
    _turn: OwnedMutexGuard<()>,
}

impl Machines {
    /// Makes machines: all of them are begun, or none.
    ///
    /// # Errors
    /// [`VmError`]: nothing of them is there, unless it says otherwise.
    pub async fn create(&self, asked: Authorized<CreateVms>) -> Result<VmsCreated, VmError> {
        self.create_as(asked, None, None).await
    }

    /// The same, of a request that names itself: however often it comes, and
    /// to whichever broker, it makes them once.
    ///
    /// # Errors
    /// As above.
    pub async fn create_once(
        &self,
        asked: Authorized<CreateVms>,
        under: Option<RunId>,
    ) -> Result<VmsCreated, VmError> {
        self.create_as(asked, None, under).await
    }

    /// The same, as a call of a run asks for it, which is in the record.
    pub(super) async fn create_as(
        &self,
        asked: Authorized<CreateVms>,
        part: Option<PartOf>,
        under: Option<RunId>,
    ) -> Result<VmsCreated, VmError> {
        let caller = asked.caller().clone();
        let request = asked.into_inner();
        let dry_run = request.dry_run;
        if let Some(under) = under.filter(|_| !dry_run)
            && let Some(before) = self.made_before(under, &request).await?
        {
            return Ok(before);
        }
        let mut wanted = self.check(request)?;
        if part.is_some() && wanted.names.count() != 1 {
            return Err(VmError::Wrong(
                "one call makes one machine; give it a name without a range".to_owned(),
            ));
        }
        (wanted.part, wanted.under) = (part, under);
        if let Some(configure) = &wanted.wish.configure {
            if !wanted.wish.agent {
                return Err(VmError::Wrong(
                    "without an agent nobody here takes orders in it, so it cannot be configured; leave --configure out, or --no-agent".to_owned(),
                ));
            }
            self.parts().works.check(configure).await?;
        }
        if dry_run {
            return self.plan(&wanted, &caller);
        }
        if let Some(why) = self.parts().works.stopped(false) {
            return Err(why.into());
        }
        let taken = {
            let _one = self.0.making.lock().await;
            // Nobody removes it until the machine is its own.
            self.parts().tenants.owns(wanted.wish.account.as_ref())?;
            let _groups = self.parts().groups.hold().await;
            self.parts().groups.all_there(&wanted.wish.groups)?;
            let chosen = self.choose(&wanted)?;
            self.take(&wanted, chosen, &caller).await?
        };
        let begun = self.begin(taken, &caller).await;
        self.0.restless.notify_one();
        let machines = begun?
            .into_iter()
            .map(|(held, placed)| self.planned(&held.vm, &placed))
            .collect();
        Ok(VmsCreated {
            machines,
            dry_run: false,
        })
    }

    fn planned(&self, vm: &StoredVm, placed: &Placed) -> VmPlan {
        VmPlan {
            vm: self.view(vm),
            looked_at: placed.looked_at,
            fit: placed.fit,
            image_there: placed.image_there,
        }
    }

    /// What would be made.
    fn plan(&self, wanted: &Wanted, caller: &Caller) -> Result<VmsCreated, VmError> {
        let chosen = self.choose(wanted)?;
        let records = &self.parts().records;
        let machines = chosen.into_iter().map(|Chosen { name, placed }| {
            let (id, nth) = (records.next_id(&name), records.next(&name));
            let vm = wanted.draft(name.clone(), id, nth, &placed, caller);
            self.planned(&vm, &placed)
        });
        Ok(VmsCreated {
            machines: machines.collect(),
            dry_run: true,
        })
    }
    /// Writes down all of them, or none.
    async fn take(
        &self,
        wanted: &Wanted,
        chosen: Vec<Chosen>,
        caller: &Caller,
    ) -> Result<Vec<Taken>, VmError> {
        let records = &self.parts().records;
        // Before anything is written: all that can be known.
        for Chosen { name, .. } in &chosen {
            if let Some(other) = records.get(name).filter(|_| records.is_taken(name)) {
                return Err(Records::taken(&other.vm).into());
            }
        }
        // Whoever is told of their ends is told of them together.
        let with: Vec<VmName> = match caller.origin.chat_place() {
            Some(_) if chosen.len() > 1 => chosen.iter().map(|one| one.name.clone()).collect(),
            _ => Vec::new(),
        };
        let one = async |Chosen { name, placed }: Chosen| {
            let turn = self.turn(&name).await;
            let draft = |id, nth| {
                let mut vm = wanted.draft(name.clone(), id, nth, &placed, caller);
                vm.order.with.clone_from(&with);
                vm
            };
            let held = records.take(&name, draft).await?;
            Ok(Taken {
                held,
                placed,
                _turn: turn,
            })
        };
        let written: Vec<Result<Taken, RecordError>> = stream::iter(chosen)
            .map(one)
            .buffered(AT_ONCE)
            .collect()
            .await;
        let (all, error) = apart(written);
        if let Some(error) = error {
            self.give_back(&all, "another one of the same request could not be made")
                .await;
            return Err(error.into());
        }
        muster_checkpoint::at("broker.vm.reserved", || all.len().to_string()).await;
        Ok(all)
    }

    /// Addresses for all, then the run of each is written down, then it is
    /// asked for.
    async fn begin(
        &self,
        taken: Vec<Taken>,
        caller: &Caller,
    ) -> Result<Vec<(Held, Placed)>, VmError> {
        let vms: Vec<Arc<StoredVm>> = taken.iter().map(|one| one.held.vm.clone()).collect();
        let nics = stream::iter(vms)
            .map(|vm| async move { self.addresses(&vm).await })
            .buffered(AT_ONCE)
            .try_collect::<Vec<_>>()
            .await;
        let nics = match nics {
            Ok(nics) => nics,
            Err(error) => {
                self.give_back(&taken, &error.to_string()).await;
                return Err(error);
            }
        };
        muster_checkpoint::at("broker.vm.addressed", || taken.len().to_string()).await;
        let one = async |(one, nics): (Taken, Vec<HeldNic>)| {
            let mut vm = one.held.vm.running(None, |run| Life::Creating { run });
            vm.nics = nics;
            match self.parts().records.change(&one.held, vm).await {
                Ok(held) => Ok(Taken { held, ..one }),
                Err(error) => Err((one, error)),
            }
        };
        let written: Vec<Result<Taken, (Taken, RecordError)>> =
            stream::iter(taken.into_iter().zip(nics))
                .map(one)
                .buffered(AT_ONCE)
                .collect()
                .await;
        let mut intended = Vec::new();
        let mut failed = Vec::new();
        for one in written {
            match one {
                Ok(one) => intended.push(one),
                Err(one) => failed.push(one),
            }
        }
        if let Some(why) = failed.first().map(|(_, error)| error.to_string()) {
            let mut names = self.give_back(&intended, &why).await;
            for (one, _) in &failed {
                // It may be written down all the same.
                let now = self.parts().records.get(&one.held.vm.name);
                let now = now.filter(|now| now.vm.id == one.held.vm.id);
                let now = now.unwrap_or_else(|| one.held.clone());
                match self.ending(&now, &why, true).await {
                    Ok(held) => drop(self.over(&held).await),
                    Err(_) => names.push(one.held.vm.name.clone()),
                }
            }
            if let Some((_, error)) = failed.into_iter().next() {
                let error = VmError::from(error);
                if names.is_empty() {
                    return Err(error);
                }
                let (why, done) = (refused(error.problem()), "made");
                return Err(VmError::Unsure { names, done, why });
            }
        }
        muster_checkpoint::at("broker.vm.intended", || intended.len().to_string()).await;
        // The first one says whether the others may be asked for.
        let mut begun = Vec::new();
        let mut rest = intended.into_iter();
        if let Some(first) = rest.next() {
            match self.ask(&first.held.vm, caller).await {
                Ok(()) => begun.push((first.held, first.placed)),
                // It goes on with the broker after this one, so it waits here, too.
                Err(why) if self.waits(&first.held.vm, &why) => {
                    begun.push((first.held, first.placed));
                }
                Err(why) => {
                    let mut all = vec![first];
                    all.extend(rest);
                    let names = if self.is_unsure(&all, &why) {
                        named(&all)
                    } else {
                        self.give_back(&all, &why.title).await
                    };
                    if names.is_empty() {
                        return Err(why.into());
                    }
                    let done = "made";
                    return Err(VmError::Unsure { names, done, why });
                }
            }
        }
        let asked = stream::iter(rest)
            .map(|one| async move {
                let asked = self.ask(&one.held.vm, caller).await;
                (one, asked)
            })
            .buffered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let (mut problem, mut unsure) = (None, Vec::new());
        for (one, asked) in asked {
            match asked {
                Ok(()) => begun.push((one.held, one.placed)),
                Err(error) => {
                    let one = [one];
                    unsure.extend(if self.is_unsure(&one, &error) {
                        named(&one)
                    } else {
                        self.give_back(&one, &error.title).await
                    });
                    problem = Some(error);
                }
            }
        }
        let Some(mut problem) = problem else {
            return Ok(begun);
        };
        let list = |names: &[VmName]| {
            let names: Vec<&str> = names.iter().map(VmName::as_str).collect();
            names.join(", ")
        };
        let made: Vec<VmName> = begun.iter().map(|(held, _)| held.vm.name.clone()).collect();
        let mut detail = format!("these are made all the same: {}", list(&made));
        if !unsure.is_empty() {
            detail.push_str(&format!(
                "\nof these it cannot be said now, they may be made yet: {}",
                list(&unsure)
            ));
        }
        problem.detail = Some(detail);
        Err(problem.into())
    }

    /// Whether a machine that a run asks for is made once its own run is taken:
    /// nobody is there who would ask again. What was refused is noted.
    fn waits(&self, vm: &StoredVm, why: &Refused) -> bool {
        let refusal = Refusal::of(why);
        let waits = vm.made.part.is_some() && refusal == Refusal::Later;
        if let Some(run) = vm.run.filter(|_| waits) {
            self.0.refusals.refused(run, Timestamp::now(), refusal);
        }
        waits
    }

    /// Whether runs that were asked for may be there all the same, or come yet.
    fn is_unsure(&self, all: &[Taken], why: &Refused) -> bool {
        let unsure = Refusal::of(why) == Refusal::Unsure;
        for run in all.iter().filter_map(|one| one.held.vm.run) {
            if unsure {
                self.0.refusals.unsure(run);
            }
        }
        unsure
    }

    /// Asks for the run that its record names. Well also when it was asked
    /// for before.
    pub(super) async fn ask(&self, vm: &StoredVm, caller: &Caller) -> Result<(), Refused> {
        let Some((run, request)) = vm.wanted() else {
            return Ok(());
        };
        let works = &self.parts().works;
        let asked = if vm.is_taken_back() {
            Asked::under(run).taking_back()
        } else {
            Asked::under(run)
        };
        match works.submit(caller, request, asked).await {
            Ok(()) => Ok(()),
            Err(error) => match works.look(run).await {
                Look::Open | Look::Ended { .. } => Ok(()),
                Look::Nothing | Look::NotNow => Err(error),
            },
        }
    }

    async fn addresses(&self, vm: &StoredVm) -> Result<Vec<HeldNic>, VmError> {
        let mut nics = Vec::new();
        for (index, lan) in (0u8..).zip(&vm.wish.networks) {
            let found = self.parts().reserves.reserve(lan, vm.id, &vm.name).await?;
            nics.push(HeldNic {
                nic: Nic {
                    network: lan.clone(),
                    bridge: found.bridge,
                    mac: vm.id.mac(index),
                    tap: vm.id.tap(index),
                    addresses: found
                        .addresses
                        .iter()
                        .map(|(address, _)| *address)
                        .collect(),
                },
                prefixes: found.addresses.iter().map(|(_, prefix)| *prefix).collect(),
                gateways: found.gateways,
                dns: found.dns,
                mtu: found.mtu,
            });
        }
        Ok(nics)
    }

    /// Gives back what was reserved for machines. Of those that are returned
    /// nobody could write down that they are not to be made.
    async fn give_back(&self, all: &[Taken], why: &str) -> Vec<VmName> {
        let mut left = Vec::new();
        for one in all {
            let name = &one.held.vm.name;
            let mut held = one.held.clone();
            // Whoever asked is answered with that.
            Arc::make_mut(&mut held.vm).order.chat = None;
            match self.ending(&held, why, true).await {
                Ok(held) => {
                    if let Err(error) = self.over(&held).await {
                        tracing::warn!(vm = %name, %error, "what was reserved for a machine is not free yet");
                    }
                }
                Err(error) => {
                    tracing::warn!(vm = %name, %error, "a machine that was refused may be asked for again");
                    // What was never to be asked for is taken back later.
                    if matches!(one.held.vm.life, Life::Creating { .. }) {
                        left.push(name.clone());
                    }
                }
            }
        }
        left
    }
}

/// What is well, and the first thing that is not.
fn apart<T, E>(all: Vec<Result<T, E>>) -> (Vec<T>, Option<E>) {
    let (mut well, mut wrong) = (Vec::new(), None);
    for one in all {
        match one {
            Ok(one) => well.push(one),
            Err(error) => wrong = wrong.or(Some(error)),
        }
    }
    (well, wrong)
}

/// Their names.
fn named(all: &[Taken]) -> Vec<VmName> {
    all.iter().map(|one| one.held.vm.name.clone()).collect()
}
