//! What a hypervisor holds of groups, and how that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::group::{GroupRule, Peer, PeerError};
use crate::names::{BridgeName, GroupName, SetName, TapName, VmName};
use crate::text_form::text_form;
use crate::vm::{Mac, VmId};

/// Most bytes of one [`GroupsUpdate`] as JSON; what is larger comes in several.
pub const MAX_UPDATE: usize = 256 * 1024;

/// Which state of groups a hypervisor holds. Says nothing of order between
/// epochs; a broker only compares it with what it has sent itself.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(deny_unknown_fields)]
pub struct GroupsMark {
    /// The epoch of the broker that sent it.
    pub epoch: u64,
    /// Rises with every update of that broker to that hypervisor.
    pub sequence: u64,
}

/// Whose addresses: as text `group:lb`, `set:office`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum MembersOf {
    /// Of all interfaces in a group, in the whole cluster.
    Group(GroupName),
    /// Of a set.
    Set(SetName),
}

impl MembersOf {
    /// Those that a rule names, if it names any.
    #[must_use]
    pub fn of(peer: &Peer) -> Option<Self> {
        match peer {
            Peer::Group(group) => Some(Self::Group(group.clone())),
            Peer::Set(set) => Some(Self::Set(set.clone())),
            Peer::Any | Peer::Prefix(_) => None,
        }
    }
}

impl fmt::Display for MembersOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => write!(f, "group:{group}"),
            Self::Set(set) => write!(f, "set:{set}"),
        }
    }
}

impl FromStr for MembersOf {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        Self::of(&text.parse()?).ok_or_else(|| PeerError::Text(text.to_owned()))
    }
}

text_form!(MembersOf, "^(group|set):.+$", 80);

/// Addresses that an interface may use beside its own.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressPair {
    /// The addresses.
    #[schema(value_type = String)]
    pub prefix: IpNet,
    /// With this hardware address; with the interface's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

/// A machine's interface on its hypervisor.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Whose it is.
    pub machine: VmId,
    /// What people call that machine.
    pub name: VmName,
    /// The bridge that it is on.
    pub bridge: BridgeName,
    /// Its hardware address.
    pub mac: Mac,
    /// Its addresses. Its link-local one follows from its hardware address.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// What it may use beside them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<AddressPair>,
    /// Its groups, sorted. Without any, nothing gets in and everything out.
    pub groups: Vec<GroupName>,
}

/// Addresses: no prefix in it contains another one.
pub type Members = BTreeSet<IpNet>;

/// All that a hypervisor has to know: its machines' interfaces, the groups
/// that they are in, and the addresses that the rules of these groups name.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Holding {
    /// By tap.
    pub interfaces: BTreeMap<TapName, Interface>,
    /// The rules of each group, by number.
    pub groups: BTreeMap<GroupName, Vec<GroupRule>>,
    /// Addresses that rules name.
    pub members: BTreeMap<MembersOf, Members>,
}

/// What changes of somebody's addresses.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MembersChange {
    /// Nobody names them any more: nothing of them is to be held.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// These come.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub add: Members,
    /// These go.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub remove: Members,
}

/// What changes of a [`Holding`]. What is not in it stays.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Interfaces that are otherwise now; `null` when they go.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub interfaces: BTreeMap<TapName, Option<Interface>>,
    /// Groups that are otherwise now, with all their rules; `null` when no
    /// interface is in them any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<GroupName, Option<Vec<GroupRule>>>,
    /// Addresses that come and go.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<MembersOf, MembersChange>,
}

/// `Ask::Groups`: the next state of groups.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GroupsUpdate {
    /// What the hypervisor holds before it; nothing at all when absent (it
    /// begins anew, and what it had in force stays in force until the last
    /// part is there).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<GroupsMark>,
    /// What it holds after it.
    pub mark: GroupsMark,
    /// Whether another part follows: then nothing is put in force yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// What changes.
    pub change: Change,
}

/// `NodeSays::Groups`: what a hypervisor holds. Said after each update, after
/// each connection, and when something was found otherwise.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupsAnswer {
    /// What it has on disk; nothing when absent, or when what it has cannot
    /// be used as a base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<GroupsMark>,
    /// What the kernel has been told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<GroupsMark>,
    /// Why what it holds is not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What somebody else had changed in the kernel, and was put right: at
    /// most a few lines, `-` and `+` in front.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repaired: Vec<String>,
}

/// Why an update cannot be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// A group that has no rules.
    #[error("interface {tap} is in the group `{group}`, of which nothing is known")]
    Group {
        /// The interface.
        tap: TapName,
        /// The group.
        group: GroupName,
    },
    /// Addresses that are not there.
    #[error("a rule of the group `{group}` names {members}, of which nothing is known")]
    Members {
        /// The group.
        group: GroupName,
        /// Whose.
        members: MembersOf,
    },
}

impl Holding {
    /// The same with that change. What the change leaves incomplete is found
    /// by [`Self::check`], once its last part is there.
    pub fn apply(&mut self, change: &Change) {
        fn put<K: Ord + Clone, V: Clone>(into: &mut BTreeMap<K, V>, from: &BTreeMap<K, Option<V>>) {
            for (key, value) in from {
                match value {
                    Some(value) => into.insert(key.clone(), value.clone()),
                    None => into.remove(key),
                };
            }
        }
        put(&mut self.interfaces, &change.interfaces);
        put(&mut self.groups, &change.groups);
        for (of, change) in &change.members {
            if change.gone {
                self.members.remove(of);
                continue;
            }
            let members = self.members.entry(of.clone()).or_default();
            for prefix in &change.remove {
                members.remove(prefix);
            }
            members.extend(change.add.iter().copied());
        }
    }

    /// What makes this into `next`.
    #[must_use]
    pub fn change_to(&self, next: &Self) -> Change {
        fn differ<K: Ord + Clone, V: Clone + PartialEq>(
            old: &BTreeMap<K, V>,
            new: &BTreeMap<K, V>,
        ) -> BTreeMap<K, Option<V>> {
            let gone = old.keys().filter(|key| !new.contains_key(key));
            let other = new
                .iter()
                .filter(|(key, value)| old.get(key) != Some(value));
            let gone = gone.map(|key| (key.clone(), None));
            gone.chain(other.map(|(key, value)| (key.clone(), Some(value.clone()))))
                .collect()
        }
        let mut members = BTreeMap::new();
        for of in self
            .members
            .keys()
            .filter(|of| !next.members.contains_key(of))
        {
            let gone = MembersChange {
                gone: true,
                ..MembersChange::default()
            };
            members.insert(of.clone(), gone);
        }
        for (of, new) in &next.members {
            let empty = Members::new();
            let old = self.members.get(of);
            let is_new = old.is_none();
            let old = old.unwrap_or(&empty);
            let change = MembersChange {
                gone: false,
                add: new.difference(old).copied().collect(),
                remove: old.difference(new).copied().collect(),
            };
            if is_new || !change.add.is_empty() || !change.remove.is_empty() {
                members.insert(of.clone(), change);
            }
        }
        Change {
            interfaces: differ(&self.interfaces, &next.interfaces),
            groups: differ(&self.groups, &next.groups),
            members,
        }
    }

    /// Whether everything that it names is in it.
    ///
    /// # Errors
    /// [`UpdateError`]: the first thing that is not.
    pub fn check(&self) -> Result<(), UpdateError> {
        for (tap, interface) in &self.interfaces {
            for group in &interface.groups {
                if !self.groups.contains_key(group) {
                    return Err(UpdateError::Group {
                        tap: tap.clone(),
                        group: group.clone(),
                    });
                }
            }
        }
        for (group, rules) in &self.groups {
            for of in rules.iter().filter_map(|rule| MembersOf::of(&rule.peer)) {
                if !self.members.contains_key(&of) {
                    return Err(UpdateError::Members {
                        group: group.clone(),
                        members: of,
                    });
                }
            }
        }
        Ok(())
    }
}

impl Change {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty() && self.groups.is_empty() && self.members.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(json: serde_json::Value) -> Holding {
        serde_json::from_value(json).expect("a holding")
    }

    fn lb(addresses: &[&str]) -> Holding {
        holding(serde_json::json!({
            "interfaces": {"mta": {
                "machine": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "name": "web-03",
                "bridge": "br0", "mac": "52:54:00:00:00:01",
                "addresses": ["192.0.2.7", "2001:db8::7"], "groups": ["web"],
            }},
            "groups": {"web": [
                {"id": 1, "direction": "ingress", "traffic": "tcp 80", "peer": "group:lb"},
            ]},
            "members": {"group:lb": addresses},
        }))
    }

    #[test]
    fn a_change_is_what_differs() {
        let (old, new) = (lb(&["192.0.2.8/32"]), lb(&["192.0.2.8/32", "192.0.2.9/32"]));
        let change = old.change_to(&new);
        assert_eq!(
            serde_json::to_value(&change).expect("JSON"),
            serde_json::json!({"members": {"group:lb": {"add": ["192.0.2.9/32"]}}})
        );
        for (from, to) in [
            (&old, &new),
            (&new, &old),
            (&Holding::default(), &new),
            (&new, &Holding::default()),
            (&new, &new),
        ] {
            let change = from.change_to(to);
            let text = serde_json::to_string(&change).expect("JSON");
            let read: Change = serde_json::from_str(&text).expect("a change");
            let mut done = from.clone();
            done.apply(&read);
            assert_eq!(done, *to);
            assert_eq!(change.is_empty(), from == to);
        }
        // A set that is empty and a set that is not there are two things.
        let mut without = lb(&[]);
        assert_eq!(without.check(), Ok(()));
        without.members.clear();
        assert!(without.check().is_err());
        assert!(!without.change_to(&lb(&[])).is_empty());
    }
}
