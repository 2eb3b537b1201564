//! Which addresses nodes have, by what the operators said of them: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use muster_protocol::firewall::RoleAddresses;
use muster_protocol::ids::Serial;
use muster_protocol::names::RoleName;

use crate::inventory::{NodeRecord, Snapshot};
use crate::vm::records::StoredVm;

/// The label that says a node's address.
pub const ADDRESS: &str = "address";
/// The label that says several, with a `+` between them.
pub const ADDRESSES: &str = "addresses";

/// The addresses of the machines that muster made, by their nodes.
fn of_machines(machines: &[Arc<StoredVm>]) -> BTreeMap<Serial, Vec<IpAddr>> {
    let mut all = BTreeMap::<Serial, Vec<IpAddr>>::new();
    for vm in machines {
        let Some(node) = vm.node else { continue };
        let addresses = vm.nics.iter().flat_map(|held| &held.nic.addresses);
        all.entry(node).or_default().extend(addresses);
    }
    all
}

/// What the labels of a node say. What is no address in them is nothing.
fn of_labels(node: &NodeRecord) -> impl Iterator<Item = IpAddr> {
    let label = |name: &str| {
        let mut all = node.assignment.labels.iter();
        let found = all.find(|(key, _)| key.as_str() == name);
        found.map(|(_, value)| value.as_str())
    };
    let one = label(ADDRESS).into_iter();
    let many = label(ADDRESSES).into_iter().flat_map(|all| all.split('+'));
    one.chain(many).filter_map(|text| text.parse().ok())
}

/// The addresses that the operators gave a node: by its labels, and those that
/// are reserved for its machine. What the node itself says is not among them.
#[must_use]
pub fn assigned(node: &NodeRecord, machines: &[Arc<StoredVm>]) -> Vec<IpAddr> {
    let reserved = of_machines(machines).remove(&node.serial);
    distinct(of_labels(node).chain(reserved.into_iter().flatten()))
}

fn distinct(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for address in addresses {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// The addresses of all nodes with these roles. A role that no node has is not
/// in it. Nodes that are kept out count: their addresses are still theirs.
#[must_use]
pub fn of_roles(
    roles: &[RoleName],
    snapshot: &Snapshot,
    machines: &[Arc<StoredVm>],
) -> RoleAddresses {
    let reserved = of_machines(machines);
    let mut all = RoleAddresses::default();
    for node in snapshot.iter() {
        for role in &node.assignment.roles {
            if roles.contains(role) {
                let machine = reserved.get(&node.serial).into_iter().flatten().copied();
                all.add(role, of_labels(node).chain(machine));
            }
        }
    }
    all
}
