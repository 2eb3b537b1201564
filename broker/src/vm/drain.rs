//! A hypervisor is emptied: nothing new is put on it, and its machines may be
//! stopped. Their disks are on it, so none of them can be moved away.

use futures_util::{StreamExt as _, stream};
use muster_protocol::api::{Drained, DrainedVm, VmAction, VmStatus};
use muster_protocol::names::{NodeName, VmName};
use muster_protocol::units::Span;

use super::change::Act;
use super::cordons::Mark;
use super::error::VmError;
use super::machines::Machines;
use super::records::{Life, StoredVm};
use crate::authz::{Authorized, Caller};

/// Machines that are stopped at a time.
const AT_ONCE: usize = 16;

/// Machines of a hypervisor to be stopped.
#[derive(Clone, Copy, Debug)]
pub struct StopAll {
    /// How long each may take by itself.
    pub grace: Option<Span>,
}

/// Whether a machine runs, or may do so for all that is known.
#[must_use]
pub(super) fn may_run(status: VmStatus) -> bool {
    !matches!(
        status,
        VmStatus::Stopped | VmStatus::Crashed | VmStatus::Missing | VmStatus::Deleted
    )
}

impl Machines {
    /// Puts nothing new on a hypervisor, says what is on it, and stops that
    /// where it is asked for.
    ///
    /// # Errors
    /// [`VmError`]; nothing was changed. That a machine is not stopped is said
    /// of each.
    pub async fn drain(
        &self,
        asked: Authorized<NodeName>,
        stop: Option<Authorized<StopAll>>,
    ) -> Result<Drained, VmError> {
        let by = asked.principal().clone();
        let name = asked.into_inner();
        let serial = self.mark(&name, Mark::Draining, &by).await?;
        let mut names: Vec<VmName> = Vec::new();
        for held in self.parts().records.all() {
            let gone = matches!(held.vm.life, Life::Kept { .. } | Life::Gone { .. });
            if held.vm.place.serial == serial && !gone {
                names.push(held.vm.name.clone());
            }
        }
        let stop = stop.map(|stop| (stop.caller().clone(), stop.into_inner()));
        let machines: Vec<Option<DrainedVm>> = stream::iter(names)
            .map(|name| self.drained(name, stop.as_ref()))
            .buffered(AT_ONCE)
            .collect()
            .await;
        let hypervisor = self.shown(&name)?;
        Ok(Drained {
            hypervisor,
            machines: machines.into_iter().flatten().collect(),
        })
    }

    /// One of its machines; none where it is gone by now.
    async fn drained(&self, name: VmName, stop: Option<&(Caller, StopAll)>) -> Option<DrainedVm> {
        let vm = self.show(&name).ok()?;
        let none = |vm| DrainedVm {
            vm,
            run: None,
            problem: None,
        };
        let Some((caller, StopAll { grace })) = stop.filter(|_| stops(&vm)) else {
            return Some(none(vm));
        };
        let act = Act {
            name,
            what: VmAction::Stop { grace: *grace },
            under: None,
        };
        Some(match self.act_as(caller, act).await {
            Ok(changed) => DrainedVm {
                vm: changed.vm,
                run: changed.run,
                problem: None,
            },
            Err(error) => {
                let problem = error.problem();
                let hint = problem.hint.map(|hint| format!("; {hint}"));
                let text = format!("{}{}", problem.title, hint.unwrap_or_default());
                DrainedVm {
                    problem: Some(text),
                    ..none(vm)
                }
            }
        })
    }

    /// How many machines of a hypervisor run.
    pub(super) fn running(&self, vms: &[std::sync::Arc<StoredVm>]) -> u32 {
        let runs = |vm: &StoredVm| may_run(self.view(vm).status);
        u32::try_from(vms.iter().filter(|vm| runs(vm)).count()).unwrap_or(u32::MAX)
    }
}

/// Whether there is anything to stop.
fn stops(vm: &muster_protocol::api::VmView) -> bool {
    may_run(vm.status) || vm.should_run
}
