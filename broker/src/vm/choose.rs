//! A place and a name for each new machine.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use muster_protocol::ids::Serial;
use muster_protocol::names::{NodeName, RoleName, VmName};
use muster_protocol::vm::{Size, VmId};

use super::error::VmError;
use super::keep::{Held, Records};
use super::machines::Machines;
use super::names::Names;
use super::observed::{Heard, is_hypervisor};
use super::placement::{Apart, Candidate, Need, Placed, place};
use super::records::{Life, Takes, Wish};
use super::wanted::Wanted;
use crate::inventory::{NodeRecord, Snapshot};
use crate::resolve::parse;

/// A name with its place.
pub(super) struct Chosen {
    pub(super) name: VmName,
    pub(super) placed: Placed,
}

impl Machines {
    /// A place and a name for each. Nothing is reserved.
    pub(super) fn choose(&self, wanted: &Wanted) -> Result<Vec<Chosen>, VmError> {
        let snapshot = self.parts().inventory.snapshot();
        let on = wanted.on.as_deref();
        let predicate = on.map(|on| parse(on, &snapshot, false)).transpose()?;
        let nodes: Vec<&Arc<NodeRecord>> = snapshot
            .iter()
            .filter(|node| is_hypervisor(node))
            .filter(|node| predicate.as_ref().is_none_or(|on| on.matches(&***node)))
            .collect();
        if nodes.is_empty() {
            let on = predicate.map(|on| muster_protocol::text::printable(on.text(), 200));
            return Err(VmError::NoHypervisors { on });
        }
        let records = self.parts().records.all();
        let observed = &self.parts().observed;
        let heard: Vec<Option<Arc<Heard>>> =
            nodes.iter().map(|node| observed.of(node.serial)).collect();
        let mut given = given(&records);
        for (node, heard) in nodes.iter().zip(&heard) {
            let strange = strangers(&self.parts().records, heard.as_deref());
            let all = given.entry(node.serial).or_default();
            *all = all.and(strange);
        }
        let mut candidates: Vec<Candidate<'_>> = nodes
            .iter()
            .zip(&heard)
            .map(|(node, heard)| self.candidate(node, heard.as_deref(), &given))
            .collect();
        let mut need = Need {
            takes: wanted.wish.takes(),
            strategy: wanted.strategy,
            apart: wanted
                .apart
                .clone()
                .map(|apart| (neighbours(&wanted.wish, &apart, &records, &snapshot), apart))
                .map(|(taken, apart)| (apart, taken)),
            labels: wanted.names.labels(),
            image: wanted.wish.image.sha256,
            groups: !wanted.wish.groups.is_empty(),
        };
        let mut chosen: Vec<Chosen> = Vec::new();
        let mut names: HashSet<VmName> = HashSet::new();
        for at in 0..wanted.names.count() {
            let placed = place(&need, &candidates, &self.parts().settings)?;
            let serial = placed.place.serial;
            if let Some(taken) = candidates.iter_mut().find(|at| at.serial == serial) {
                taken.given = taken.given.and(need.takes);
            }
            if let (Some((_, values)), Some(value)) = (&mut need.apart, &placed.value) {
                values.insert(value.clone());
            }
            let has = |name: &VmName| {
                names.contains(name)
                    || self.parts().records.is_taken(name)
                    || node_of(name).is_some_and(|node| snapshot.by_name(&node).is_some())
            };
            let name = match &wanted.names {
                Names::Listed(listed) => {
                    let Some(name) = listed.get(at).cloned() else {
                        break;
                    };
                    name
                }
                Names::Placed { pattern, .. } => {
                    let labels = snapshot.get(serial).map(|node| &node.assignment.labels);
                    let none = BTreeMap::new();
                    let name = pattern.at(labels.unwrap_or(&none), has);
                    name.map_err(super::names::NamesError::from)?
                }
            };
            if wanted.wish.agent
                && let Some(node) = node_of(&name)
                && snapshot.by_name(&node).is_some()
                && !self.parts().records.is_taken(&name)
            {
                return Err(VmError::NodeThere(node));
            }
            names.insert(name.clone());
            chosen.push(Chosen { name, placed });
        }
        Ok(chosen)
    }

    fn candidate<'a>(
        &self,
        node: &'a NodeRecord,
        heard: Option<&'a Heard>,
        given: &HashMap<Serial, Takes>,
    ) -> Candidate<'a> {
        let agent = self.parts().inventory.agent(node.serial);
        Candidate {
            serial: node.serial,
            node: &node.assignment.name,
            labels: &node.assignment.labels,
            connected: node.is_active() && self.is_connected(node.serial),
            guards: self.parts().groups.is_able(node.serial) == Some(true),
            able: agent.map(|agent| agent.capabilities.iter().any(|one| one == "vm")),
            cordoned: self.parts().cordons.has(node.serial),
            heard,
            given: given.get(&node.serial).copied().unwrap_or_default(),
        }
    }
}

/// The node that a machine of that name has.
pub(super) fn node_of(name: &VmName) -> Option<NodeName> {
    name.as_str().parse().ok()
}

/// What of each hypervisor is given to machines.
pub(super) fn given(records: &[Held]) -> HashMap<Serial, Takes> {
    let mut all: HashMap<Serial, Takes> = HashMap::new();
    for Held { vm, .. } in records {
        if let Some(takes) = vm.takes() {
            let sum = all.entry(vm.place.serial).or_default();
            *sum = sum.and(takes);
        }
    }
    all
}

/// What domains take that are no machines of ours.
pub(super) fn strangers(records: &Records, heard: Option<&Heard>) -> Takes {
    let guests = heard.iter().flat_map(|heard| &heard.report.guests);
    let strange = guests.filter(|guest| !is_ours(records, guest.id));
    strange.fold(Takes::default(), |sum, guest| {
        sum.and(Takes {
            cpus: u64::from(guest.cpus),
            memory: guest.memory,
            disk: Size(0),
        })
    })
}

/// Whether there is a machine of that UUID.
pub(super) fn is_ours(records: &Records, id: VmId) -> bool {
    let held = records.by_id(id);
    held.is_some_and(|held| !matches!(held.vm.life, Life::Gone { .. }))
}

/// Where machines are that one like this is kept apart from.
fn neighbours(
    wish: &Wish,
    apart: &Apart,
    records: &[Held],
    snapshot: &Snapshot,
) -> BTreeSet<String> {
    let is_like = |other: &Wish| match &wish.account {
        Some(account) => other.account.as_ref() == Some(account),
        None => {
            let shared = |role: &RoleName| other.roles.contains(role);
            wish.roles.iter().any(shared)
        }
    };
    let others = records
        .iter()
        .filter(|held| held.vm.takes().is_some() && is_like(&held.vm.wish));
    others
        .filter_map(|held| match apart {
            Apart::Name => Some(held.vm.place.node.to_string()),
            Apart::Label(key) => {
                let node = snapshot.get(held.vm.place.serial)?;
                let value = node.assignment.labels.get(key)?;
                Some(value.to_string())
            }
        })
        .collect()
}
