//! Which security groups a machine is in, and which addresses it may use.

use muster_protocol::api::{ChangeVmGroups, ChangeVmPairs, VmGuarded};
use muster_protocol::firewall::AddressPair;
use muster_protocol::names::VmName;

use super::error::VmError;
use super::machines::Machines;
use super::records::{Life, StoredVm};
use crate::authz::Authorized;

/// Most groups of a machine.
pub const MAX_VM_GROUPS: usize = 64;
/// Most addresses that a machine may use beside its own.
pub const MAX_PAIRS: usize = 64;

/// What is to be otherwise of a machine.
#[derive(Clone, Debug)]
pub enum Guarded {
    /// Its groups.
    Groups(ChangeVmGroups),
    /// Addresses that it may use.
    Pairs(ChangeVmPairs),
}

impl Machines {
    /// Puts a machine in groups or takes it out, or changes which addresses
    /// it may use: at once, also while it runs. Done already is done.
    ///
    /// # Errors
    /// [`VmError`]; nothing was changed.
    pub async fn guard(&self, asked: Authorized<(VmName, Guarded)>) -> Result<VmGuarded, VmError> {
        let by = asked.principal().clone();
        let (name, what) = asked.into_inner();
        let groups = &self.parts().groups;
        // Until it is written down that the machine is in them. Before its
        // turn, as where machines are made.
        let there = groups.hold().await;
        let turn = self.turn(&name).await;
        let held = self.held(&name)?;
        if matches!(held.vm.life, Life::Ending { .. } | Life::Gone { .. }) {
            return Err(VmError::NoVm(name));
        }
        let mut next = StoredVm::clone(&held.vm);
        let text = match what {
            Guarded::Groups(change) => {
                groups.all_there(&change.add)?;
                // What it is not in it cannot be taken out of; a name that is
                // none is more likely a mistake than a wish.
                let unknown = |group| !held.vm.wish.groups.contains(group);
                let others: Vec<_> = change.remove.iter().filter(|one| unknown(one)).collect();
                groups.all_there(&others.into_iter().cloned().collect::<Vec<_>>())?;
                let all = &mut next.wish.groups;
                all.retain(|group| !change.remove.contains(group));
                all.extend(change.add.iter().cloned());
                all.sort();
                all.dedup();
                if all.len() > MAX_VM_GROUPS {
                    return Err(VmError::Wrong(format!(
                        "a machine is in at most {MAX_VM_GROUPS} groups"
                    )));
                }
                if all.is_empty() {
                    format!("{by}: machine {name} is in no group")
                } else {
                    let all: Vec<&str> = all.iter().map(|group| group.as_str()).collect();
                    format!("{by}: machine {name} is in {}", all.join(", "))
                }
            }
            Guarded::Pairs(change) => {
                let all = &mut next.wish.pairs;
                all.retain(|pair| !change.remove.contains(pair));
                for pair in change.add {
                    is_pair(&pair)?;
                    all.push(pair);
                }
                all.sort();
                all.dedup();
                if all.len() > MAX_PAIRS {
                    return Err(VmError::Wrong(format!(
                        "a machine may use at most {MAX_PAIRS} address pairs beside its own addresses"
                    )));
                }
                let all: Vec<String> = all.iter().map(said).collect();
                if all.is_empty() {
                    format!("{by}: machine {name} may use its own addresses only")
                } else {
                    format!("{by}: machine {name} may use {}, too", all.join(", "))
                }
            }
        };
        let more = next
            .wish
            .groups
            .iter()
            .any(|group| !held.vm.wish.groups.contains(group));
        if more && groups.is_able(held.vm.place.serial) != Some(true) {
            return Err(VmError::NoGroupsThere {
                name,
                node: held.vm.place.node.clone(),
            });
        }
        let before = groups.generation();
        let changes = next.wish != held.vm.wish;
        let held = if changes {
            self.parts().records.change(&held, next).await?
        } else {
            held
        };
        // Others need not wait until it is in force.
        drop((turn, there));
        if changes {
            self.parts()
                .events
                .emit("vm.groups", name.as_str(), text)
                .await;
        }
        let force = if changes {
            groups.settled_after(before).await
        } else {
            groups.on(held.vm.place.serial).await
        };
        Ok(VmGuarded {
            name,
            groups: held.vm.wish.groups.clone(),
            pairs: held.vm.wish.pairs.clone(),
            force,
        })
    }
}

fn said(pair: &AddressPair) -> String {
    match pair.mac {
        Some(mac) => format!("{} with {mac}", pair.prefix),
        None => pair.prefix.to_string(),
    }
}

/// Whether there can be an address pair like that.
fn is_pair(pair: &AddressPair) -> Result<(), VmError> {
    let AddressPair { prefix, mac } = pair;
    if prefix.trunc() != *prefix {
        return Err(VmError::Wrong(format!(
            "{prefix} has bits behind its prefix; the prefix is {}",
            prefix.trunc()
        )));
    }
    let first = prefix.network();
    if first.is_multicast() || first.is_unspecified() && prefix.prefix_len() > 0 {
        return Err(VmError::Wrong(format!(
            "{prefix} is nobody's own; give addresses that a machine can have"
        )));
    }
    if mac.is_some_and(|mac| !is_one(&mac.to_string())) {
        return Err(VmError::Wrong(
            "a hardware address of one interface is needed, and that is one of several; give one whose first byte is even".to_owned(),
        ));
    }
    Ok(())
}

/// Whether a hardware address is one interface's.
fn is_one(mac: &str) -> bool {
    let first = mac
        .get(..2)
        .and_then(|byte| u8::from_str_radix(byte, 16).ok());
    first.is_some_and(|byte| byte & 1 == 0)
}
