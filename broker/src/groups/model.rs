//! What each hypervisor is to hold: a fold of records, in memory. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use muster_protocol::firewall::{
    Change, GroupRule, Holding, Interface, Members, MembersChange, MembersOf,
};
use muster_protocol::ids::Serial;
use muster_protocol::names::{GroupName, SetName, TapName, VmName};

use crate::vm::records::{Life, StoredVm};

/// A [`Holding`] whose parts are shared: what is the same in two of them is
/// seen at once, and what many hypervisors hold is there once.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Wanted {
    interfaces: BTreeMap<TapName, Arc<Interface>>,
    groups: BTreeMap<GroupName, Arc<Vec<GroupRule>>>,
    members: BTreeMap<MembersOf, Arc<Members>>,
}

fn differ<K: Ord + Clone, V: Clone + Eq>(
    old: &BTreeMap<K, Arc<V>>,
    new: &BTreeMap<K, Arc<V>>,
) -> BTreeMap<K, Option<V>> {
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let other = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(*value));
    let other = other.map(|(key, value)| (key.clone(), Some(V::clone(value))));
    gone.map(|key| (key.clone(), None)).chain(other).collect()
}

impl Wanted {
    /// What makes this into `next`.
    pub(super) fn change_to(&self, next: &Self) -> Change {
        let mut members = BTreeMap::new();
        for of in self.members.keys() {
            if !next.members.contains_key(of) {
                let gone = MembersChange {
                    gone: true,
                    ..MembersChange::default()
                };
                members.insert(of.clone(), gone);
            }
        }
        let none = Arc::default();
        for (of, new) in &next.members {
            let old = self.members.get(of);
            if old == Some(new) {
                continue;
            }
            let old = old.unwrap_or(&none);
            let change = MembersChange {
                gone: false,
                add: new.difference(old).copied().collect(),
                remove: old.difference(new).copied().collect(),
            };
            members.insert(of.clone(), change);
        }
        Change {
            interfaces: differ(&self.interfaces, &next.interfaces),
            groups: differ(&self.groups, &next.groups),
            members,
        }
    }

    /// The same as it is told.
    pub(super) fn holding(&self) -> Holding {
        fn whole<K: Ord + Clone, V: Clone>(all: &BTreeMap<K, Arc<V>>) -> BTreeMap<K, V> {
            let each = all.iter();
            each.map(|(key, value)| (key.clone(), V::clone(value)))
                .collect()
        }
        Holding {
            interfaces: whole(&self.interfaces),
            groups: whole(&self.groups),
            members: whole(&self.members),
        }
    }
}

/// What groups have to know of a machine.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Machine {
    serial: Serial,
    interfaces: Vec<(TapName, Arc<Interface>)>,
    groups: Vec<GroupName>,
    addresses: Vec<IpNet>,
}

impl Machine {
    /// Of its record, as long as there can be an interface of it: also while
    /// it is being destroyed, until its domain is gone for certain.
    fn of(vm: &StoredVm) -> Option<Self> {
        let over = matches!(
            vm.life,
            Life::Kept { .. } | Life::Ending { .. } | Life::Gone { .. }
        );
        if over || vm.nics.is_empty() {
            return None;
        }
        let interface = |nic: &muster_protocol::vm::Nic| Interface {
            machine: vm.id,
            name: vm.name.clone(),
            bridge: nic.bridge.clone(),
            mac: nic.mac,
            addresses: nic.addresses.clone(),
            pairs: vm.wish.pairs.clone(),
            groups: vm.wish.groups.clone(),
        };
        let nics = vm.nics.iter().map(|held| &held.nic);
        let own = nics.clone().flat_map(|nic| &nic.addresses);
        let own = own.map(|address| IpNet::from(*address));
        // A prefix that it may send from is no member: a router has all there
        // are, and who names its group does not mean everybody.
        let beside = vm.wish.pairs.iter().map(|pair| pair.prefix);
        let beside = beside.filter(|net| net.prefix_len() == net.max_prefix_len());
        Some(Self {
            serial: vm.place.serial,
            interfaces: nics
                .map(|nic| (nic.tap.clone(), Arc::new(interface(nic))))
                .collect(),
            groups: vm.wish.groups.clone(),
            addresses: own.chain(beside).collect(),
        })
    }
}

/// Addresses of which none is in another one.
pub(super) fn members(all: impl IntoIterator<Item = IpNet>) -> Members {
    // A prefix comes before all that is in it.
    let sorted: BTreeSet<IpNet> = all.into_iter().map(|prefix| prefix.trunc()).collect();
    let mut last: Option<IpNet> = None;
    let mut kept = Members::new();
    for prefix in sorted {
        if !last.is_some_and(|last| last.contains(&prefix)) {
            kept.insert(prefix);
            last = Some(prefix);
        }
    }
    kept
}

/// What has changed since it was last looked.
#[derive(Debug, Default)]
struct Dirty {
    hypervisors: BTreeSet<Serial>,
    groups: BTreeSet<GroupName>,
    members: BTreeSet<MembersOf>,
}

/// Everything that groups are made of.
#[derive(Debug, Default)]
pub(super) struct Model {
    rules: BTreeMap<GroupName, Arc<Vec<GroupRule>>>,
    sets: BTreeMap<SetName, Arc<Members>>,
    machines: HashMap<VmName, Machine>,
    /// The machines of each group.
    within: BTreeMap<GroupName, BTreeSet<VmName>>,
    /// The machines of each hypervisor.
    on: BTreeMap<Serial, BTreeSet<VmName>>,
    /// Addresses of a group's machines, as far as somebody has asked.
    known: BTreeMap<GroupName, Arc<Members>>,
    wanted: BTreeMap<Serial, Wanted>,
    dirty: Dirty,
}

impl Model {
    /// A group has these rules; it is not there without any list.
    pub(super) fn group(&mut self, name: &GroupName, rules: Option<Vec<GroupRule>>) {
        let old = match rules {
            Some(rules) if self.rules.get(name).is_some_and(|old| **old == rules) => return,
            Some(rules) => self.rules.insert(name.clone(), Arc::new(rules)),
            None => self.rules.remove(name),
        };
        drop(old);
        self.dirty.groups.insert(name.clone());
    }

    /// A set has these addresses.
    pub(super) fn set(&mut self, name: &SetName, prefixes: Option<&Members>) {
        let prefixes = prefixes.map(|all| members(all.iter().copied()));
        match prefixes {
            Some(new) if self.sets.get(name).is_some_and(|old| **old == new) => return,
            Some(new) => drop(self.sets.insert(name.clone(), Arc::new(new))),
            None => drop(self.sets.remove(name)),
        }
        self.dirty.members.insert(MembersOf::Set(name.clone()));
    }

    /// A machine is as in its record.
    pub(super) fn machine(&mut self, name: &VmName, vm: Option<&StoredVm>) {
        let new = vm.and_then(Machine::of);
        if self.machines.get(name) == new.as_ref() {
            return;
        }
        let old = match new.clone() {
            Some(new) => self.machines.insert(name.clone(), new),
            None => self.machines.remove(name),
        };
        let addresses_differ =
            old.as_ref().map(|old| &old.addresses) != new.as_ref().map(|new| &new.addresses);
        let groups = |machine: &Option<Machine>| -> BTreeSet<GroupName> {
            let groups = machine.iter().flat_map(|machine| &machine.groups);
            groups.cloned().collect()
        };
        let (before, after) = (groups(&old), groups(&new));
        for group in before.difference(&after) {
            if let Some(all) = self.within.get_mut(group) {
                all.remove(name);
                if all.is_empty() {
                    self.within.remove(group);
                }
            }
        }
        for group in after.difference(&before) {
            let all = self.within.entry(group.clone()).or_default();
            all.insert(name.clone());
        }
        let touched: Vec<GroupName> = if addresses_differ {
            before.union(&after).cloned().collect()
        } else {
            before.symmetric_difference(&after).cloned().collect()
        };
        for group in touched {
            self.known.remove(&group);
            self.dirty.members.insert(MembersOf::Group(group));
        }
        if let Some(old) = &old {
            self.dirty.hypervisors.insert(old.serial);
            if let Some(all) = self.on.get_mut(&old.serial) {
                all.remove(name);
                if all.is_empty() {
                    self.on.remove(&old.serial);
                }
            }
        }
        if let Some(new) = &new {
            self.dirty.hypervisors.insert(new.serial);
            self.on.entry(new.serial).or_default().insert(name.clone());
        }
    }

    fn addresses_of(&mut self, group: &GroupName) -> Arc<Members> {
        if let Some(known) = self.known.get(group) {
            return Arc::clone(known);
        }
        let names = self.within.get(group).into_iter().flatten();
        let machines = names.filter_map(|name| self.machines.get(name));
        let all = machines.flat_map(|machine| machine.addresses.iter().copied());
        let all = Arc::new(members(all));
        self.known.insert(group.clone(), Arc::clone(&all));
        all
    }

    /// Whether a hypervisor is to hold a group.
    pub(super) fn holds(&self, serial: Serial, group: &GroupName) -> bool {
        let wanted = self.wanted.get(&serial);
        wanted.is_some_and(|wanted| wanted.groups.contains_key(group))
    }

    /// What a hypervisor is to hold.
    pub(super) fn wanted(&self, serial: Serial) -> Wanted {
        self.wanted.get(&serial).cloned().unwrap_or_default()
    }

    /// Everything, as one hypervisor with all machines would hold it.
    pub(super) fn everything(&mut self) -> Wanted {
        let machines: Vec<VmName> = self.machines.keys().cloned().collect();
        self.of(&machines)
    }

    fn of<'a>(&mut self, machines: impl IntoIterator<Item = &'a VmName>) -> Wanted {
        let mut wanted = Wanted::default();
        let mut groups = BTreeSet::new();
        for name in machines {
            if let Some(machine) = self.machines.get(name) {
                wanted.interfaces.extend(machine.interfaces.iter().cloned());
                groups.extend(machine.groups.iter().cloned());
            }
        }
        for group in groups {
            // A group that is lost lets nothing in.
            let rules = self.rules.get(&group).cloned().unwrap_or_default();
            for of in rules.iter().filter_map(|rule| MembersOf::of(&rule.peer)) {
                if wanted.members.contains_key(&of) {
                    continue;
                }
                let all = match &of {
                    MembersOf::Group(group) => self.addresses_of(group),
                    MembersOf::Set(set) => self.sets.get(set).cloned().unwrap_or_default(),
                };
                wanted.members.insert(of, all);
            }
            wanted.groups.insert(group, rules);
        }
        wanted
    }

    /// Looks what has changed: hypervisors for which something is otherwise
    /// now.
    pub(super) fn look(&mut self) -> Vec<(Serial, Wanted)> {
        let dirty = std::mem::take(&mut self.dirty);
        let concerned = |wanted: &Wanted| {
            dirty
                .groups
                .iter()
                .any(|group| wanted.groups.contains_key(group))
                || dirty
                    .members
                    .iter()
                    .any(|of| wanted.members.contains_key(of))
        };
        let mut hypervisors = dirty.hypervisors;
        let others = self.wanted.iter().filter(|(_, wanted)| concerned(wanted));
        hypervisors.extend(others.map(|(serial, _)| *serial));
        let mut changed = Vec::new();
        for serial in hypervisors {
            let machines = self.on.get(&serial).cloned().unwrap_or_default();
            let now = self.of(&machines);
            if self.wanted.get(&serial).unwrap_or(&Wanted::default()) == &now {
                continue;
            }
            if machines.is_empty() {
                self.wanted.remove(&serial);
            } else {
                self.wanted.insert(serial, now.clone());
            }
            changed.push((serial, now));
        }
        changed
    }
}
