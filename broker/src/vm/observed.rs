//! What hypervisors say of their machines: the newest of each, in memory.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use muster_protocol::ids::Serial;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{Guest, HypervisorReport, MAX_GUESTS, VmId};
use tokio::sync::watch;

use crate::inventory::{NodeRecord, Snapshot};

/// The role of nodes that machines are put on.
pub const HYPERVISOR: &str = "hypervisor";
/// Longest name of a domain, in characters.
const MAX_DOMAIN: usize = 100;
/// Longest reason, in characters.
const MAX_PROBLEM: usize = 300;
/// Most images that are remembered of one hypervisor.
const MAX_IMAGES: usize = 1_000;

/// What a hypervisor said last.
#[derive(Clone, Debug)]
pub struct Heard {
    /// What.
    pub report: HypervisorReport,
    /// When, by this broker's clock.
    pub at: Timestamp,
    guests: HashMap<VmId, usize>,
}

impl Heard {
    /// Cut to what is ever kept.
    fn new(mut report: HypervisorReport, at: Timestamp) -> Self {
        report.guests.truncate(MAX_GUESTS);
        for guest in &mut report.guests {
            guest.name = printable(&guest.name, MAX_DOMAIN);
        }
        report.images.truncate(MAX_IMAGES);
        report.problem = report.problem.map(|why| printable(&why, MAX_PROBLEM));
        let guests = report.guests.iter().enumerate();
        let guests = guests.map(|(at, guest)| (guest.id, at)).collect();
        Self { report, at, guests }
    }

    /// A machine of it.
    #[must_use]
    pub fn guest(&self, id: VmId) -> Option<&Guest> {
        self.report.guests.get(*self.guests.get(&id)?)
    }
}

/// What all hypervisors said last. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Observed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    heard: RwLock<HashMap<Serial, Arc<Heard>>>,
    changed: watch::Sender<u64>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            heard: RwLock::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Observed {
    /// A node reports. Who is no hypervisor by its role has nothing to say.
    pub fn hear(&self, node: &NodeRecord, report: HypervisorReport) {
        if !is_hypervisor(node) {
            tracing::debug!(node = %node.assignment.name, "a node that is no hypervisor reports machines");
            return;
        }
        self.hear_at(node.serial, report, Timestamp::now());
    }

    pub(super) fn hear_at(&self, serial: Serial, report: HypervisorReport, at: Timestamp) {
        let heard = Arc::new(Heard::new(report, at));
        self.0
            .heard
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(serial, heard);
        self.0.changed.send_modify(|times| *times += 1);
    }

    /// What a hypervisor said last.
    #[must_use]
    pub fn of(&self, serial: Serial) -> Option<Arc<Heard>> {
        let heard = self.0.heard.read().unwrap_or_else(PoisonError::into_inner);
        heard.get(&serial).cloned()
    }

    /// Forgets those that are no hypervisors any more.
    pub fn tidy(&self, snapshot: &Snapshot) {
        let mut heard = self.0.heard.write().unwrap_or_else(PoisonError::into_inner);
        heard.retain(|serial, _| snapshot.get(*serial).is_some_and(|node| is_hypervisor(node)));
    }

    /// Changes with every report.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }
}

/// Whether machines may be put on a node.
#[must_use]
pub fn is_hypervisor(node: &NodeRecord) -> bool {
    let roles = &node.assignment.roles;
    roles.iter().any(|role| role.as_str() == HYPERVISOR)
}
