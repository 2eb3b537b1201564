//! A machine, as people see it: pure.

use muster_protocol::api::{VmBrief, VmView};
use muster_protocol::run::RunPhase;
use muster_protocol::units::Timestamp;

use super::drift::{Seen, drift, status};
use super::records::{Life, StoredVm};

/// Of its record, and of what is seen of it.
#[must_use]
pub(super) fn view(vm: &StoredVm, seen: Seen<'_>) -> VmView {
    let StoredVm { wish, life, .. } = vm;
    let (deleted, kept_until) = ended(life);
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
        groups: wish.groups.clone(),
        pairs: wish.pairs.clone(),
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
        why: why(life),
    }
}

/// The same in short, for long lists.
#[must_use]
pub(super) fn brief(vm: &StoredVm, seen: Seen<'_>) -> VmBrief {
    let StoredVm { wish, life, .. } = vm;
    let nics = vm.nics.iter().map(|held| &held.nic);
    let configured = vm
        .configured
        .as_ref()
        .filter(|last| last.state.is_some_and(|state| state != RunPhase::Succeeded));
    VmBrief {
        name: vm.name.clone(),
        status: status(vm, seen),
        since: seen.guest().and_then(|guest| guest.since),
        hypervisor: vm.place.node.clone(),
        cpus: wish.cpus,
        memory: wish.memory,
        addresses: nics.flat_map(|nic| nic.addresses.iter().copied()).collect(),
        account: wish.account.clone(),
        roles: wish.roles.clone(),
        drift: drift(vm, seen).unwrap_or_default(),
        configured: configured.cloned(),
        kept_until: ended(life).1,
        why: why(life),
    }
}

/// Since when it is destroyed, and until when its disk is kept.
fn ended(life: &Life) -> (Option<Timestamp>, Option<Timestamp>) {
    match life {
        Life::Kept { since, until } | Life::Returning { since, until, .. } => {
            (Some(*since), Some(*until))
        }
        Life::Gone { at, .. } => (Some(*at), None),
        _ => (None, None),
    }
}

/// Why it never was, or why nobody knows whether it is.
fn why(life: &Life) -> Option<String> {
    match life {
        Life::Gone { failed, .. } => failed.clone(),
        Life::Doubtful { why, .. } | Life::Ending { why, never: true } => Some(why.clone()),
        _ => None,
    }
}
