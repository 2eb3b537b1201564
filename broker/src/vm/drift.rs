//! What is seen of a machine, held against what is wanted: pure.

use muster_protocol::api::{DriftView, VmStatus};
use muster_protocol::vm::{Guest, GuestState, Size};

use super::observed::Heard;
use super::records::{Life, StoredVm};

/// What can be said of a machine now.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// Its hypervisor cannot be heard, or cannot say: neither there nor gone.
    Nobody,
    /// What was said is older than what was done since.
    NotYet,
    /// As its hypervisor sees it.
    Guest(&'a Guest),
    /// Its hypervisor does not have it.
    Missing,
}

impl<'a> Seen<'a> {
    /// Of a machine, by the newest report of its hypervisor.
    #[must_use]
    pub fn of(vm: &StoredVm, connected: bool, heard: Option<&'a Heard>) -> Self {
        let Some(heard) = heard.filter(|heard| connected && heard.report.problem.is_none()) else {
            return Self::Nobody;
        };
        let since = match &vm.life {
            Life::Ready { since } | Life::Changing { since, .. } => *since,
            _ => heard.at,
        };
        if heard.at < since {
            return Self::NotYet;
        }
        heard.guest(vm.id).map_or(Self::Missing, Self::Guest)
    }

    /// The machine, where it is seen.
    #[must_use]
    pub fn guest(self) -> Option<&'a Guest> {
        match self {
            Self::Guest(guest) => Some(guest),
            Self::Nobody | Self::NotYet | Self::Missing => None,
        }
    }
}

/// How a machine is.
#[must_use]
pub fn status(vm: &StoredVm, seen: Seen<'_>) -> VmStatus {
    match &vm.life {
        Life::Reserved | Life::Creating { .. } | Life::Returning { .. } => VmStatus::Creating,
        Life::Destroying { .. } | Life::Ending { .. } => VmStatus::Destroying,
        Life::Kept { .. } | Life::Gone { .. } => VmStatus::Deleted,
        Life::Doubtful { .. } => VmStatus::Doubtful,
        Life::Ready { .. } | Life::Changing { .. } => match seen {
            Seen::Nobody => VmStatus::Unreachable,
            Seen::NotYet if vm.should_run => VmStatus::Running,
            Seen::NotYet => VmStatus::Stopped,
            Seen::Missing => VmStatus::Missing,
            Seen::Guest(guest) => match guest.state {
                GuestState::Running => VmStatus::Running,
                GuestState::Paused => VmStatus::Paused,
                GuestState::Stopped => VmStatus::Stopped,
                GuestState::Crashed => VmStatus::Crashed,
            },
        },
    }
}

/// What is seen otherwise than it is wanted. `None` where it cannot be said:
/// what was otherwise may be so still.
#[must_use]
pub fn drift(vm: &StoredVm, seen: Seen<'_>) -> Option<Vec<DriftView>> {
    let Life::Ready { .. } = vm.life else {
        return None;
    };
    let view = |what: &str, text: String| DriftView {
        what: what.to_owned(),
        text,
    };
    let guest = match seen {
        Seen::Nobody | Seen::NotYet => return None,
        Seen::Missing => {
            let text = format!("is not on {}, where it should be", vm.place.node);
            return Some(vec![view("missing", text)]);
        }
        Seen::Guest(guest) => guest,
    };
    let mut all = Vec::new();
    let is = match guest.state {
        GuestState::Running => "runs",
        GuestState::Paused => "is paused",
        GuestState::Stopped => "is stopped",
        GuestState::Crashed => "has crashed",
    };
    if (guest.state == GuestState::Running) != vm.should_run {
        let should = if vm.should_run {
            "should run"
        } else {
            "should be stopped"
        };
        all.push(view("state", format!("{is}, and {should}")));
    }
    let differs = |what: &str, has: String, should: String| {
        view(what, format!("has {has}, and should have {should}"))
    };
    if guest.memory != vm.wish.memory {
        let memory = |size: Size| format!("{size} of memory");
        all.push(differs(
            "memory",
            memory(guest.memory),
            vm.wish.memory.to_string(),
        ));
    }
    if guest.cpus != vm.wish.cpus {
        let has = format!("{} processors", guest.cpus);
        all.push(differs("cpus", has, vm.wish.cpus.to_string()));
    }
    Some(all)
}
