//! A machine, as people see it: pure.

use muster_protocol::api::VmView;

use super::drift::{Seen, drift, status};
use super::records::{Life, StoredVm};

/// Of its record, and of what is seen of it.
#[must_use]
pub(super) fn view(vm: &StoredVm, seen: Seen<'_>) -> VmView {
    let StoredVm { wish, life, .. } = vm;
    let (deleted, kept_until) = match life {
        Life::Kept { since, until } | Life::Returning { since, until, .. } => {
            (Some(*since), Some(*until))
        }
        Life::Gone { at, .. } => (Some(*at), None),
        _ => (None, None),
    };
    let why = match life {
        Life::Gone { failed, .. } => failed.clone(),
        Life::Doubtful { why, .. } | Life::Ending { why, never: true } => Some(why.clone()),
        _ => None,
    };
    let guest = seen.guest();
    let nics: Vec<_> = vm.nics.iter().map(|held| held.nic.clone()).collect();
    VmView {
        name: vm.name.clone(),
        id: vm.id,
        status: status(vm, seen),
        should_run: vm.should_run,
        hypervisor: vm.place.node.clone(),
        seen: guest.map(|guest| guest.state),
        since: guest.and_then(|guest| guest.since),
        traffic: guest.and_then(|guest| guest.traffic),
        drift: drift(vm, seen).unwrap_or_default(),
        cpus: wish.cpus,
        memory: wish.memory,
        disk: wish.disk,
        image: wish.image.name.clone(),
        image_sha256: wish.image.sha256,
        addresses: nics.iter().flat_map(|nic| nic.addresses.clone()).collect(),
        nics,
        account: wish.account.clone(),
        roles: wish.roles.clone(),
        labels: wish.labels.clone(),
        groups: Vec::new(),
        agent: wish.agent,
        ready: wish.ready,
        autostart: wish.autostart,
        protected: vm.protected,
        by: vm.made.by.clone(),
        made: vm.made.at,
        configure: wish.configure.clone(),
        configured: vm.configured.clone(),
        run: vm.run,
        deleted,
        kept_until,
        why,
    }
}
