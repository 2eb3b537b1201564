//! A hypervisor that got a new key: its machines belong to the key before. That
//! it is the same host only a person can say.

use muster_protocol::api::Adopted;
use muster_protocol::ids::Serial;
use muster_protocol::names::{NodeName, VmName};
use muster_protocol::vm::{Owner, VmId};

use super::error::VmError;
use super::machines::Machines;
use super::observed::{Heard, is_hypervisor};
use super::records::{Life, StoredVm};
use crate::authz::Authorized;

/// A hypervisor that takes over the machines of the key before.
#[derive(Clone, Debug)]
pub struct Adopt {
    /// Its node.
    pub node: NodeName,
    /// Also those that it does not report.
    pub missing: bool,
}

impl Machines {
    /// What a hypervisor has of the machines of the key that it had before is
    /// its own from now on: those that it reports by their UUID as machines of
    /// this cluster, and the others where that is asked for.
    ///
    /// # Errors
    /// [`VmError`]: it has to be heard first.
    pub async fn adopt(&self, asked: Authorized<Adopt>) -> Result<Adopted, VmError> {
        let by = asked.principal().clone();
        let Adopt { node, missing } = asked.into_inner();
        let snapshot = self.parts().inventory.snapshot();
        let none = || VmError::NoHypervisor(node.clone());
        let now = snapshot.by_name(&node).filter(|node| is_hypervisor(node));
        let serial = now.ok_or_else(none)?.serial;
        let heard = self.parts().observed.of(serial);
        let heard = heard
            .filter(|heard| heard.report.problem.is_none() && self.is_connected(serial))
            .ok_or_else(|| VmError::Silent(node.clone()))?;
        let (mut adopted, mut left) = (Vec::new(), Vec::new());
        let records = &self.parts().records;
        let names: Vec<VmName> = records
            .all()
            .into_iter()
            .filter(|held| self.is_orphan(&held.vm) && held.vm.place.node == node)
            .map(|held| held.vm.name.clone())
            .collect();
        for name in names {
            let _turn = self.turn(&name).await;
            let Some(held) = records.get(&name).filter(|held| self.is_orphan(&held.vm)) else {
                continue;
            };
            if !missing && !self.is_there(&heard, held.vm.id) {
                left.push(name);
                continue;
            }
            let mut next = StoredVm::clone(&held.vm);
            next.place.serial = serial;
            let held = records.change(&held, next).await?;
            let text = format!(
                "{by} says that {node} is the same host as before: machine {name} is its own"
            );
            self.tell(&held.vm, "vm.adopted", &serial.to_string(), text)
                .await;
            adopted.push(name);
        }
        self.0.restless.notify_one();
        let hypervisor = self.shown(&node)?;
        Ok(Adopted {
            hypervisor,
            adopted,
            left,
        })
    }

    /// Whether a machine belongs to a key that is no node any more.
    pub(super) fn is_orphan(&self, vm: &StoredVm) -> bool {
        let there = |serial: Serial| self.parts().inventory.snapshot().get(serial).is_some();
        !matches!(vm.life, Life::Gone { .. }) && !there(vm.place.serial)
    }

    /// Whether its hypervisor has another key by now, of which nobody has said
    /// that it is the same host's.
    pub(super) fn check_key(&self, vm: &StoredVm) -> Result<(), VmError> {
        let snapshot = self.parts().inventory.snapshot();
        if self.is_orphan(vm) && snapshot.by_name(&vm.place.node).is_some() {
            return Err(VmError::NewKey {
                name: vm.name.clone(),
                node: vm.place.node.clone(),
            });
        }
        Ok(())
    }

    /// Whether a hypervisor has a machine of this cluster, by its UUID.
    fn is_there(&self, heard: &Heard, id: VmId) -> bool {
        let ours = self.parts().records.cluster();
        let guest = heard.guest(id);
        guest.is_some_and(|guest| guest.owner == Owner::Muster { cluster: ours })
    }
}
