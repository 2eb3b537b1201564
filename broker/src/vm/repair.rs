//! A machine that was stopped by hand is started again, where a trigger says
//! so. It goes through the machine's record as a start by a person does.

use std::time::Duration;

use muster_protocol::ids::RunId;
use muster_protocol::names::{NodeName, VmName};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::{Timestamp, elapsed};
use muster_protocol::vm::{GuestState, VmId};
use serde::{Deserialize, Serialize};

use super::drift::Seen;
use super::error::VmError;
use super::machines::Machines;
use super::records::{Life, Order};
use crate::authz::Authorized;

/// Whoever stops a machine again within this time wants it stopped.
pub const FOUGHT_WITHIN: Duration = Duration::from_secs(600);

/// A machine that is to be started again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Repair {
    /// Its name.
    pub name: VmName,
    /// Its UUID: no other machine of that name is meant.
    pub id: VmId,
    /// The event that told that it is stopped: of one event it is started
    /// once.
    pub event: String,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Repaired {
    /// This run starts it.
    Run(RunId),
    /// There is nothing to do any more.
    Nothing,
}

/// The last time that a machine was started again, where it is kept.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredRepair {
    /// When.
    pub at: Timestamp,
    /// Of which event.
    pub event: String,
    /// By which run.
    pub run: RunId,
}

/// Why a machine is not started again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// Nobody knows how it is.
    #[error("{node} is not heard, so nobody knows whether {name} runs; nothing is done")]
    Unheard {
        /// The machine.
        name: VmName,
        /// Its hypervisor.
        node: NodeName,
    },
    /// There is nothing to be started.
    #[error("{name} is not on {node}, where it should be; nothing can be started")]
    Missing {
        /// The machine.
        name: VmName,
        /// Its hypervisor.
        node: NodeName,
    },
    /// Somebody holds it.
    #[error("{0} is paused by hand, which a start does not end")]
    Paused(VmName),
    /// Somebody stops it again and again.
    #[error(
        "{name} was started again {ago} s ago and is stopped once more: somebody wants that, or it cannot \
         run; nobody starts it by itself now; muster vm start {name} does, muster vm stop {name} says that \
         it is to be stopped"
    )]
    Fought {
        /// The machine.
        name: VmName,
        /// How long ago it was started.
        ago: u64,
    },
    /// It cannot be started.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl RepairError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(self) -> Problem {
        match self {
            Self::Vm(error) => error.problem(),
            other => Problem::new(Kind::Conflict, other.to_string()),
        }
    }
}

impl Machines {
    /// Starts a machine that is seen stopped and should run. Whoever stops it
    /// twice within ten minutes is not fought.
    ///
    /// # Errors
    /// [`RepairError`]; nothing was done.
    pub async fn repair(&self, asked: Authorized<Repair>) -> Result<Repaired, RepairError> {
        let caller = asked.caller().clone();
        let Repair { name, id, event } = asked.into_inner();
        let _turn = self.turn(&name).await;
        let held = self.settled(&name).await?;
        let vm = &held.vm;
        if vm.id != id {
            return Ok(Repaired::Nothing);
        }
        // The broker before came so far.
        if let Some(last) = vm.repaired.as_ref().filter(|last| last.event == event) {
            return Ok(Repaired::Run(last.run));
        }
        let Life::Ready { since } = vm.life else {
            return Ok(Repaired::Nothing);
        };
        if !vm.should_run {
            return Ok(Repaired::Nothing);
        }
        let heard = self.parts().observed.of(vm.place.serial);
        let connected = self.is_connected(vm.place.serial);
        let node = vm.place.node.clone();
        match Seen::of(vm, connected, heard.as_deref()) {
            Seen::Nobody => return Err(RepairError::Unheard { name, node }),
            Seen::Missing => return Err(RepairError::Missing { name, node }),
            // Something was done since, and it is not known yet what came of
            // that.
            Seen::NotYet => return Ok(Repaired::Nothing),
            Seen::Guest(guest) => match guest.state {
                GuestState::Running => return Ok(Repaired::Nothing),
                GuestState::Paused => return Err(RepairError::Paused(name)),
                GuestState::Stopped | GuestState::Crashed => {}
            },
        }
        let now = Timestamp::now();
        if let Some(last) = &vm.repaired {
            let ago = elapsed(last.at, now);
            if ago < FOUGHT_WITHIN {
                let ago = ago.as_secs();
                return Err(RepairError::Fought { name, ago });
            }
        }
        let run = vm.next_run();
        let order = Some(Order::of(&caller));
        let mut next = vm.running(order, |run| Life::Changing {
            run,
            what: muster_protocol::api::VmAction::Start,
            since,
        });
        next.repaired = Some(StoredRepair {
            at: now,
            event,
            run,
        });
        // When it is seen stopped again, that is told again.
        next.drift.remove("state");
        self.order(&held, next, &caller).await?;
        Ok(Repaired::Run(run))
    }
}
