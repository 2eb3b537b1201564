//! Hypervisors, as people see them.

use std::collections::HashMap;
use std::sync::Arc;

use muster_protocol::api::{HypervisorChange, HypervisorView};
use muster_protocol::ids::Serial;
use muster_protocol::names::{NodeName, PrincipalName};
use muster_protocol::vm::{Sha256, Size};

use super::choose::{given, is_ours, strangers};
use super::cordons::Mark;
use super::error::VmError;
use super::images::Uses;
use super::keep::Held;
use super::machines::Machines;
use super::observed::is_hypervisor;
use super::records::{Life, StoredVm, Takes};
use crate::authz::Authorized;
use crate::inventory::NodeRecord;

/// Most domains that are named which muster does not know.
const UNKNOWN_NAMED: usize = 100;

impl Machines {
    /// All of them, by name.
    #[must_use]
    pub fn hypervisors(&self) -> Vec<HypervisorView> {
        let snapshot = self.parts().inventory.snapshot();
        let records = self.parts().records.all();
        let given = given(&records);
        let mut on: HashMap<Serial, Vec<Arc<StoredVm>>> = HashMap::new();
        for Held { vm, .. } in records {
            if !matches!(vm.life, Life::Gone { .. } | Life::Kept { .. }) {
                on.entry(vm.place.serial).or_default().push(vm);
            }
        }
        let mut all: Vec<HypervisorView> = snapshot
            .iter()
            .filter(|node| is_hypervisor(node))
            .map(|node| {
                let of = given.get(&node.serial).copied().unwrap_or_default();
                let on = on.remove(&node.serial).unwrap_or_default();
                self.hypervisor(node, of, &on)
            })
            .collect();
        all.sort_by(|a, b| a.node.cmp(&b.node));
        all
    }

    /// Who has which image's bytes.
    #[must_use]
    pub fn image_uses(&self) -> HashMap<Sha256, Uses> {
        let mut uses: HashMap<Sha256, Uses> = HashMap::new();
        for held in self.parts().records.all() {
            if !matches!(held.vm.life, Life::Gone { .. }) {
                uses.entry(held.vm.wish.image.sha256).or_default().machines += 1;
            }
        }
        let snapshot = self.parts().inventory.snapshot();
        for node in snapshot.iter().filter(|node| is_hypervisor(node)) {
            let heard = self.parts().observed.of(node.serial);
            for image in heard.iter().flat_map(|heard| &heard.report.images) {
                uses.entry(*image).or_default().on += 1;
            }
        }
        uses
    }

    fn hypervisor(
        &self,
        node: &NodeRecord,
        given: Takes,
        machines: &[Arc<StoredVm>],
    ) -> HypervisorView {
        let heard = self.parts().observed.of(node.serial);
        let mark = self.parts().cordons.mark(node.serial);
        let report = heard.as_ref().map(|heard| &heard.report);
        let records = &self.parts().records;
        let given = given.and(strangers(records, heard.as_deref()));
        let unknown = report.iter().flat_map(|report| &report.guests);
        let unknown = unknown
            .filter(|guest| !is_ours(records, guest.id))
            .map(|guest| guest.name.clone())
            .take(UNKNOWN_NAMED)
            .collect();
        HypervisorView {
            node: node.assignment.name.clone(),
            connected: self.is_connected(node.serial),
            heard: heard.as_ref().map(|heard| heard.at),
            cordoned: mark != Mark::Open,
            draining: mark == Mark::Draining,
            virtualisation: report.and_then(|report| report.virtualisation),
            capacity: report.and_then(|report| report.capacity),
            cpus_given: u32::try_from(given.cpus).unwrap_or(u32::MAX),
            memory_given: given.memory,
            disk_given: Size(given.disk.0),
            pool: report.map(|report| report.pool.clone()),
            machines: u32::try_from(machines.len()).unwrap_or(u32::MAX),
            running: self.running(machines),
            unknown,
            problem: report.and_then(|report| report.problem.clone()),
        }
    }

    /// Changes one of them.
    ///
    /// # Errors
    /// [`VmError`]; nothing was changed.
    pub async fn change_hypervisor(
        &self,
        asked: Authorized<(NodeName, HypervisorChange)>,
    ) -> Result<HypervisorView, VmError> {
        let by = asked.principal().clone();
        let (name, change) = asked.into_inner();
        if let Some(cordoned) = change.cordoned {
            let mark = if cordoned { Mark::Cordoned } else { Mark::Open };
            self.mark(&name, mark, &by).await?;
        }
        self.shown(&name)
    }

    /// One of them.
    pub(super) fn shown(&self, name: &NodeName) -> Result<HypervisorView, VmError> {
        let mut all = self.hypervisors().into_iter();
        all.find(|view| view.node == *name)
            .ok_or_else(|| VmError::NoHypervisor(name.clone()))
    }

    /// Marks one of them.
    pub(super) async fn mark(
        &self,
        name: &NodeName,
        mark: Mark,
        by: &PrincipalName,
    ) -> Result<Serial, VmError> {
        let snapshot = self.parts().inventory.snapshot();
        let node = snapshot.by_name(name).filter(|node| is_hypervisor(node));
        let node = node.ok_or_else(|| VmError::NoHypervisor(name.clone()))?;
        let is_node = |serial| snapshot.get(serial).is_some();
        let cordons = &self.parts().cordons;
        // Whoever has chosen it writes that down first: from then on nothing
        // new comes, and what is there is seen.
        let _one = self.0.making.lock().await;
        if cordons.set(node.serial, mark, by, is_node).await? {
            let text = match mark {
                Mark::Open => format!("{by} ended that nothing new is put on {name}"),
                Mark::Cordoned => format!("{by} cordoned {name}: nothing new is put on it"),
                Mark::Draining => format!(
                    "{by} drains {name}: nothing new is put on it, and its machines are to stop"
                ),
            };
            let events = &self.parts().events;
            events.emit("vm.cordon", name.as_str(), text).await;
        }
        Ok(node.serial)
    }
}
