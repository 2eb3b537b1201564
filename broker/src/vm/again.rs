//! Requests that come twice: whoever has heard no answer sends the same one
//! again, perhaps to the next broker. They name themselves, and what was done
//! for them is found by that name.

use muster_protocol::api::{CreateVms, RunRequest, VmChanged, VmPlan, VmsCreated};
use muster_protocol::ids::RunId;
use muster_protocol::units::{Timestamp, elapsed};

use super::error::VmError;
use super::keep::Held;
use super::machines::Machines;
use super::names::Names;
use super::ports::{Before, Begun};
use super::records::{Life, StoredVm};
use crate::once::KEPT;

impl Machines {
    /// What the same request has made before: of one whose answer nobody has
    /// heard, or that was begun although nobody could say so.
    pub(super) async fn made_before(
        &self,
        under: RunId,
        request: &CreateVms,
    ) -> Result<Option<VmsCreated>, VmError> {
        let records = &self.parts().records;
        // What a broker before has left behind is put in order first.
        for held in records.of_request(under) {
            self.look_after(&held.vm.name).await;
        }
        let now = Timestamp::now();
        let mut made = Vec::new();
        for held in records.of_request(under) {
            // After a day the same name is another request's, as everywhere.
            if elapsed(held.vm.made.at, now) <= KEPT && self.was_begun(&held.vm).await? {
                made.push(held.vm);
            }
        }
        let names = Names::parse(&request.name, request.count)?;
        let of = names.count();
        if made.is_empty() {
            return Ok(None);
        }
        let is_else = |vm: &StoredVm| {
            let asked = (&request.image, request.cpus, request.memory);
            asked != (&vm.wish.image.name, vm.wish.cpus, vm.wish.memory)
        };
        let is_not_named =
            |vm: &StoredVm| matches!(&names, Names::Listed(all) if !all.contains(&vm.name));
        let other = made
            .iter()
            .find(|vm| is_not_named(vm) || (vm.runs == 1 && is_else(vm)));
        if let Some(run) = other.and_then(|vm| vm.run) {
            return Err(VmError::Used(run));
        }
        if made.len() < of {
            let made = made.iter().map(|vm| vm.name.clone()).collect();
            return Err(VmError::Partly { made, of });
        }
        let machines = made.iter().map(|vm| VmPlan {
            vm: self.view(vm),
            // What was looked at then is not kept.
            looked_at: 0,
            fit: 0,
            image_there: self.has_image(vm),
        });
        Ok(Some(VmsCreated {
            machines: machines.collect(),
            dry_run: false,
        }))
    }

    fn has_image(&self, vm: &StoredVm) -> bool {
        let heard = self.parts().observed.of(vm.place.serial);
        heard.is_some_and(|heard| heard.report.images.contains(&vm.wish.image.sha256))
    }

    /// Whether anything of a machine was ever begun.
    async fn was_begun(&self, vm: &StoredVm) -> Result<bool, VmError> {
        let open = matches!(
            vm.life,
            Life::Reserved
                | Life::Creating { .. }
                | Life::Ending { never: true, .. }
                | Life::Gone {
                    failed: Some(_),
                    ..
                }
        );
        // It is taken back still, and has its name until then.
        let goes = matches!(vm.life, Life::Reserved | Life::Ending { never: true, .. });
        let Some(run) = vm.run.filter(|_| open) else {
            return if goes {
                Err(VmError::NotKnown)
            } else {
                Ok(!open)
            };
        };
        match self.parts().works.begun(run).await {
            Begun::Yes => Ok(true),
            Begun::Never if goes => Err(VmError::NotKnown),
            // It is written down, and asked for until somebody takes it.
            Begun::Never => Ok(matches!(vm.life, Life::Creating { .. })),
            Begun::NotNow => Err(VmError::NotKnown),
        }
    }

    /// What a request that names its run has come to, if it came before: also
    /// when that was another broker, which ended before it could say so.
    pub(super) async fn repeated(
        &self,
        held: &Held,
        under: Option<RunId>,
        asks: Option<&RunRequest>,
    ) -> Result<Option<VmChanged>, VmError> {
        let (Some(run), Some(asks)) = (under, asks) else {
            return Ok(None);
        };
        let vm = &held.vm;
        let answer = |run| {
            let vm = self.view(vm);
            Ok(Some(VmChanged { vm, run }))
        };
        match self.parts().works.before(asks, run).await {
            Before::Same => answer(Some(run)),
            Before::Other => Err(VmError::Used(run)),
            Before::NotNow => Err(VmError::NotKnown),
            Before::Nothing => match vm.wanted().filter(|(id, _)| *id == run) {
                // It is written down, and asked for until somebody takes it.
                Some((_, wanted)) if wanted == *asks => answer(Some(run)),
                Some(_) => Err(VmError::Used(run)),
                // No run was needed.
                None if vm.order.under == Some(run) && vm.is_over() => answer(None),
                None => Ok(None),
            },
        }
    }
}
