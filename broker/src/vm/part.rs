//! Machines that runs with a `main` ask for, as those see them.

use muster_protocol::api::CreateVms;
use muster_protocol::names::VmName;
use muster_protocol::run::{MadeMachine, PartOf, RunPhase};

use super::change::Destroy;
use super::choose::node_of;
use super::error::VmError;
use super::machines::Machines;
use super::records::{End, Life, StoredVm};
use crate::authz::Authorized;
use crate::runs::{MachineNow, UpMachine};

impl Machines {
    /// How the machine is that a call asked for.
    #[must_use]
    pub fn of_call(&self, of: PartOf) -> MachineNow {
        let Some(held) = self.parts().records.of_part(of) else {
            return MachineNow::Nothing;
        };
        let vm = &held.vm;
        let made = made(vm);
        match &vm.life {
            // Nobody was asked for anything: what was cut while it was
            // written down can be asked for again.
            Life::Gone { .. } if vm.runs == 0 => MachineNow::Nothing,
            Life::Gone { failed, .. } => {
                let destroyed = || format!("{} had it destroyed", vm.order.by);
                MachineNow::Gone(failed.clone().unwrap_or_else(destroyed))
            }
            // What ends so never was: its record says why once it is over.
            Life::Reserved | Life::Ending { never: true, .. } => MachineNow::Coming(None),
            Life::Creating { run } => MachineNow::Coming(Some(*run)),
            Life::Ready { .. } => MachineNow::Up(Box::new(self.as_up(vm, made))),
            Life::Changing { run, .. } if vm.is_being_configured() => {
                MachineNow::Busy(made, Some(*run))
            }
            Life::Changing { .. } | Life::Returning { .. } => MachineNow::Busy(made, None),
            Life::Destroying { end: End::Keep, .. } => MachineNow::Busy(made, None),
            Life::Destroying { .. } | Life::Ending { .. } => MachineNow::Going(made),
            Life::Kept { .. } => MachineNow::Kept(made),
            Life::Doubtful { why, .. } => MachineNow::Doubtful(made, why.clone()),
        }
    }

    /// The name of the machine that a call asked for.
    #[must_use]
    pub fn name_of(&self, of: PartOf) -> Option<VmName> {
        let held = self.parts().records.of_part(of)?;
        Some(held.vm.name.clone())
    }

    /// Makes the machine that a call asks for.
    ///
    /// # Errors
    /// [`VmError`]; nothing of it is there, or its record says what is.
    pub async fn create_for(
        &self,
        asked: Authorized<CreateVms>,
        of: PartOf,
    ) -> Result<(), VmError> {
        let made = Box::pin(self.create_as(asked, Some(of), None)).await;
        made.map(drop).map_err(|error| match error {
            // A person looks again; a run that goes on with a new broker must
            // not fail because of that.
            VmError::NoPlace(none) if self.has_just_begun() => VmError::NoPlaceYet(none),
            error => error,
        })
    }

    /// Ends what makes or configures the machine that a call asked for, where
    /// nobody has taken that: there is no run then that could be cancelled.
    ///
    /// # Errors
    /// [`VmError`]; it is as before.
    pub async fn call_off(&self, of: PartOf) -> Result<(), VmError> {
        let Some(name) = self.name_of(of) else {
            return Ok(());
        };
        let _turn = self.turn(&name).await;
        let held = self.held(&name)?;
        let vm = &held.vm;
        if vm.made.part != Some(of) {
            return Ok(());
        }
        let why = "it was cancelled before it was begun";
        match &vm.life {
            Life::Creating { run } if self.is_never_taken(*run).await => {
                self.0.refusals.taken(*run);
                self.take_back(&held, why).await.map(drop)
            }
            Life::Changing { run, .. }
                if vm.is_being_configured() && self.is_never_taken(*run).await =>
            {
                self.0.refusals.taken(*run);
                self.is_configured(&held, RunPhase::Cancelled, why.to_owned(), None)
                    .await
            }
            _ => Ok(()),
        }
    }

    /// Destroys the machine that a call asked for, and no other one: somebody
    /// may have given its name to another one.
    ///
    /// # Errors
    /// [`VmError`]; nothing was done.
    pub async fn destroy_for(&self, asked: Authorized<Destroy>, of: PartOf) -> Result<(), VmError> {
        self.destroy_if(asked, |vm| vm.made.part == Some(of))
            .await
            .map(drop)
    }

    fn as_up(&self, vm: &StoredVm, made: MadeMachine) -> UpMachine {
        let snapshot = self.parts().inventory.snapshot();
        let node = vm.node.and_then(|serial| snapshot.get(serial));
        let node = node.map(|node| node.assignment.name.clone());
        UpMachine {
            made,
            node: node.or_else(|| vm.wish.agent.then(|| node_of(&vm.name)).flatten()),
            addresses: vm
                .nics
                .iter()
                .flat_map(|held| held.nic.addresses.iter().copied())
                .collect(),
            protected: vm.protected,
        }
    }
}

fn made(vm: &StoredVm) -> MadeMachine {
    MadeMachine {
        name: vm.name.clone(),
        hypervisor: vm.place.node.clone(),
    }
}
