//! Security groups and sets of addresses: their records, their history, and
//! how each hypervisor comes to hold what it needs.
//!
//! What is asked for is written down first. From records in memory follows
//! what every hypervisor is to hold ([`model`]); what differs from what it has
//! acknowledged is sent to it, and to nobody else ([`line`]). Nothing of that is
//! stored: a broker that takes over tells each hypervisor everything, once.

mod desk;
mod drawer;
mod error;
mod line;
mod model;
mod sets;
mod tell;
#[cfg(test)]
mod tests;
mod versions;

use std::sync::Arc;

use muster_protocol::api::{
    AddRule, CreateGroup, GroupChanged, GroupVersion, GroupView, RollbackGroup,
};
use muster_protocol::firewall::{GroupRule, MAX_GROUP_RULES, Peer, RuleId};
use muster_protocol::names::{GroupName, PrincipalName, SetName, VmName};
use muster_protocol::text::nearest;
use muster_protocol::units::Timestamp;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, RwLockWriteGuard};

pub use self::desk::{Alarm, Desk};
use self::drawer::{Drawer, Held};
pub use self::error::GroupsError;
pub use self::sets::ChangeSet;
pub use self::versions::{NotKept, Past, StoredGroup, StoredSet};
use crate::authz::Authorized;
use crate::events::Events;
use crate::inventory::{Inventory, MAX_LABELS, NodeControl};
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};
use crate::vm::keep::Records;
use crate::vm::records::{Life, StoredVm};

/// What an agent says that can keep groups.
pub const CAPABILITY: &str = "groups";
/// Most groups.
pub const MAX_GROUPS: usize = 10_000;
/// Most sets.
pub const MAX_SETS: usize = 10_000;
/// Most prefixes of a set.
pub const MAX_PREFIXES: usize = 10_000;
/// Most bytes of a group's rules as JSON: they come in one update.
pub const MAX_RULE_BYTES: usize = 160 << 10;
/// Most members that are named in a view.
const NAMED: usize = 1_000;

/// All groups and sets. Cheap to clone.
#[derive(Clone)]
pub struct Groups(Arc<Inner>);

struct Inner {
    groups: Drawer<GroupName, StoredGroup>,
    sets: Drawer<SetName, StoredSet>,
    records: Records,
    desk: Desk,
    inventory: Inventory,
    control: Arc<dyn NodeControl>,
    events: Events,
    /// Held to write by whoever changes groups or sets, to read by whoever
    /// puts machines in groups: no group goes away under one.
    changing: Arc<RwLock<()>>,
}

impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Groups").finish_non_exhaustive()
    }
}

/// What it takes.
#[derive(Clone)]
pub struct Parts {
    /// Groups.
    pub groups: Kv<StoredGroup>,
    /// Sets of addresses.
    pub sets: Kv<StoredSet>,
    /// The machines.
    pub records: Records,
    /// What hypervisors hold.
    pub desk: Desk,
    /// The nodes.
    pub inventory: Inventory,
    /// Whether they are there.
    pub control: Arc<dyn NodeControl>,
    /// What happens.
    pub events: Events,
    /// Whether this broker may write.
    pub lease: Lease,
}

/// What is to be changed, and which version of it: whichever when absent.
#[derive(Clone, Debug)]
pub struct Change<T> {
    /// Its name.
    pub name: GroupName,
    /// What.
    pub what: T,
    /// The version that it has.
    pub expect: Option<u32>,
}

impl Groups {
    /// Reads what there is.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn load(parts: Parts) -> Result<Self, KvError> {
        let Parts {
            groups,
            sets,
            records,
            desk,
            inventory,
            control,
            events,
            lease,
        } = parts;
        let groups = Drawer::load(groups, lease.clone()).await?;
        let sets = Drawer::load(sets, lease).await?;
        let this = Self(Arc::new(Inner {
            groups,
            sets,
            records,
            desk,
            inventory,
            control,
            events,
            changing: Arc::default(),
        }));
        this.0.desk.change(|model| {
            for (name, held) in this.0.groups.all() {
                model.group(&name, Some(held.value.rules.clone()));
            }
            for (name, held) in this.0.sets.all() {
                model.set(&name, Some(&held.value.prefixes));
            }
        });
        this.refresh();
        Ok(this)
    }

    /// While that is held, no group goes away.
    pub async fn hold(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.0.changing).read_owned().await
    }

    /// Whether there are groups of these names.
    ///
    /// # Errors
    /// [`GroupsError::NoGroup`]: the first that is none.
    pub fn all_there(&self, names: &[GroupName]) -> Result<(), GroupsError> {
        names.iter().try_for_each(|name| self.held(name).map(drop))
    }

    fn held(&self, name: &GroupName) -> Result<Held<StoredGroup>, GroupsError> {
        self.0.groups.get(name).ok_or_else(|| {
            let known = self.0.groups.all();
            let near = nearest(name.as_str(), known.keys().map(|key| key.as_str()));
            GroupsError::NoGroup {
                name: name.clone(),
                near: near.map(str::to_owned),
            }
        })
    }

    /// Whoever a rule names is there.
    fn has_peer(&self, peer: &Peer) -> Result<(), GroupsError> {
        match peer {
            Peer::Any | Peer::Prefix(_) => Ok(()),
            Peer::Group(group) => self.held(group).map(drop),
            Peer::Set(set) => self.held_set(set).map(drop),
        }
    }

    /// All groups, by name, without their rules.
    #[must_use]
    pub fn list(&self) -> Vec<GroupView> {
        let mut machines = std::collections::HashMap::<GroupName, u32>::new();
        for held in self.0.records.all() {
            if is_member(&held.vm) {
                for group in &held.vm.wish.groups {
                    *machines.entry(group.clone()).or_default() += 1;
                }
            }
        }
        let all = self.0.groups.all().into_iter();
        all.map(|(name, held)| {
            let machines = machines.get(&name).copied().unwrap_or_default();
            view(name, &held.value, machines)
        })
        .collect()
    }

    /// One of them, with everything.
    ///
    /// # Errors
    /// [`GroupsError::NoGroup`].
    pub fn get(&self, name: &GroupName) -> Result<GroupView, GroupsError> {
        let stored = self.held(name)?.value;
        let mut members = self.members(name);
        let mut view = view(name.clone(), &stored, count(members.len()));
        members.truncate(NAMED);
        view.members = members;
        view.rules.clone_from(&stored.rules);
        view.named_by = self.named_by(&Peer::Group(name.clone()));
        Ok(view)
    }

    /// Machines in a group, by name; those whose disk is kept, too.
    fn members(&self, name: &GroupName) -> Vec<VmName> {
        let all = self.0.records.all().into_iter();
        all.filter(|held| is_member(&held.vm) && held.vm.wish.groups.contains(name))
            .map(|held| held.vm.name.clone())
            .collect()
    }

    /// Groups with rules that name somebody.
    fn named_by(&self, peer: &Peer) -> Vec<GroupName> {
        let all = self.0.groups.all().into_iter();
        all.filter(|(_, held)| held.value.rules.iter().any(|rule| rule.peer == *peer))
            .map(|(name, _)| name)
            .collect()
    }

    /// Its versions, the newest first.
    ///
    /// # Errors
    /// [`GroupsError::NoGroup`].
    pub fn history(&self, name: &GroupName) -> Result<Vec<GroupVersion>, GroupsError> {
        let stored = self.held(name)?.value;
        Ok(stored.past.changes().iter().rev().cloned().collect())
    }

    /// Makes a group without rules.
    ///
    /// # Errors
    /// [`GroupsError`]; nothing was changed.
    pub async fn create(
        &self,
        asked: Authorized<CreateGroup>,
    ) -> Result<GroupChanged, GroupsError> {
        let by = asked.principal().clone();
        let CreateGroup {
            name,
            account,
            labels,
        } = asked.into_inner();
        if labels.len() > MAX_LABELS {
            return Err(GroupsError::Labels(labels.len()));
        }
        let one = self.0.changing.write().await;
        if self.0.groups.get(&name).is_some() {
            return Err(GroupsError::Exists(name));
        }
        if self.0.groups.len() >= MAX_GROUPS {
            return Err(GroupsError::TooManyGroups);
        }
        let what = format!("made: group {name}");
        let past = Past::new(by.clone(), Timestamp::now(), what.clone(), Vec::new());
        let stored = StoredGroup {
            account,
            labels,
            next: 1,
            rules: Vec::new(),
            past,
        };
        self.write(one, (&name, None), stored, (what, None), &by)
            .await
    }

    /// Lets something pass. A rule that is there already is there once.
    ///
    /// # Errors
    /// [`GroupsError`]; nothing was changed.
    pub async fn allow(
        &self,
        asked: Authorized<Change<AddRule>>,
    ) -> Result<GroupChanged, GroupsError> {
        let by = asked.principal().clone();
        let Change { name, what, expect } = asked.into_inner();
        let one = self.0.changing.write().await;
        let held = self.held(&name)?;
        let AddRule {
            direction,
            traffic,
            peer,
            comment,
        } = what;
        self.has_peer(&peer)?;
        let mut next = StoredGroup::clone(&held.value);
        let rule = GroupRule {
            id: RuleId(next.next),
            direction,
            traffic,
            peer,
            comment,
        };
        rule.check()?;
        let same = |old: &&GroupRule| {
            (old.direction, &old.traffic, &old.peer) == (rule.direction, &rule.traffic, &rule.peer)
        };
        if let Some(old) = next.rules.iter().find(same) {
            let what = format!("allowed already: rule {} in {name}", old.id);
            drop(one);
            let concerned = self.0.desk.holders(&name);
            return Ok(GroupChanged {
                what,
                rule: Some(old.id),
                version: held.value.past.version,
                force: self.settled(concerned).await,
            });
        }
        is_version(&name, held.value.past.version, expect)?;
        next.next = next.next.saturating_add(1);
        next.rules.push(rule.clone());
        fits(&next.rules)?;
        let what = format!("allowed: rule {} in {name}", rule.id);
        let told = format!("added rule {}: {rule}", rule.id);
        let id = rule.id;
        next.past
            .push(by.clone(), Timestamp::now(), told, (vec![rule], Vec::new()));
        self.write(one, (&name, Some(&held)), next, (what, Some(id)), &by)
            .await
    }

    /// Takes a rule away. What it had allowed ends.
    ///
    /// # Errors
    /// [`GroupsError`]; nothing was changed.
    pub async fn deny(
        &self,
        asked: Authorized<Change<RuleId>>,
    ) -> Result<GroupChanged, GroupsError> {
        let by = asked.principal().clone();
        let Change { name, what, expect } = asked.into_inner();
        let one = self.0.changing.write().await;
        let held = self.held(&name)?;
        let mut next = StoredGroup::clone(&held.value);
        let Some(at) = next.rules.iter().position(|rule| rule.id == what) else {
            return Err(GroupsError::NoRule {
                group: name,
                rule: what,
            });
        };
        is_version(&name, held.value.past.version, expect)?;
        let rule = next.rules.remove(at);
        let told = format!("removed rule {}: {rule}", rule.id);
        next.past
            .push(by.clone(), Timestamp::now(), told, (Vec::new(), vec![rule]));
        let said = format!("withdrawn: rule {what} in {name}");
        self.write(one, (&name, Some(&held)), next, (said, Some(what)), &by)
            .await
    }

    /// Makes its rules as they were in one of its versions: that is a new one.
    ///
    /// # Errors
    /// [`GroupsError`]; nothing was changed.
    pub async fn rollback(
        &self,
        asked: Authorized<Change<RollbackGroup>>,
    ) -> Result<GroupChanged, GroupsError> {
        let by = asked.principal().clone();
        let Change { name, what, expect } = asked.into_inner();
        let one = self.0.changing.write().await;
        let held = self.held(&name)?;
        let mut next = StoredGroup::clone(&held.value);
        is_version(&name, next.past.version, expect)?;
        let to = what.to.unwrap_or(next.past.version.saturating_sub(1));
        let then = next.past.back(to, &next.rules);
        let mut then = then.map_err(|why| GroupsError::NotKept {
            name: name.to_string(),
            version: to,
            why,
        })?;
        then.sort_by_key(|rule| rule.id);
        for rule in &then {
            self.has_peer(&rule.peer)?;
        }
        let added = then.iter().filter(|rule| !next.rules.contains(rule));
        let removed = next.rules.iter().filter(|rule| !then.contains(rule));
        let differ = (added.cloned().collect(), removed.cloned().collect());
        next.rules = then;
        let told = format!("made as in version {to}");
        next.past.push(by.clone(), Timestamp::now(), told, differ);
        let said = format!("rolled back: {name} is as in version {to}");
        self.write(one, (&name, Some(&held)), next, (said, None), &by)
            .await
    }

    /// Removes a group that no rule of another one names and that no machine
    /// is in.
    ///
    /// # Errors
    /// [`GroupsError`]; nothing was changed.
    pub async fn remove(&self, asked: Authorized<Change<()>>) -> Result<(), GroupsError> {
        let by = asked.principal().clone();
        let Change { name, expect, .. } = asked.into_inner();
        let _one = self.0.changing.write().await;
        let held = self.held(&name)?;
        is_version(&name, held.value.past.version, expect)?;
        let mut by_others = self.named_by(&Peer::Group(name.clone()));
        by_others.retain(|other| *other != name);
        if !by_others.is_empty() {
            return Err(GroupsError::Named {
                name,
                by: by_others,
            });
        }
        let machines = self.members(&name);
        if !machines.is_empty() {
            return Err(GroupsError::Members { name, machines });
        }
        self.0.groups.remove(&name, &held).await?;
        self.0.desk.change(|model| model.group(&name, None));
        let text = format!("{by} removed group {name}");
        self.says("group.removed", name.as_str(), text).await;
        Ok(())
    }

    /// Writes it down, tells it, and waits a moment until it is in force.
    async fn write(
        &self,
        one: RwLockWriteGuard<'_, ()>,
        (name, old): (&GroupName, Option<&Held<StoredGroup>>),
        next: StoredGroup,
        (what, rule): (String, Option<RuleId>),
        by: &PrincipalName,
    ) -> Result<GroupChanged, GroupsError> {
        let before = self.0.desk.generation();
        let stored = self.0.groups.put(name, old, next).await?;
        muster_checkpoint::at("broker.group.written", || name.to_string()).await;
        let rules = stored.rules.clone();
        self.0.desk.change(|model| model.group(name, Some(rules)));
        // Others need not wait until everybody has said that he has it.
        drop(one);
        let told = stored.past.changes().last().map(|last| last.what.clone());
        let text = told.unwrap_or_else(|| what.clone());
        let text = format!("{by}: group {name}: {text}");
        self.says("group.changed", name.as_str(), text).await;
        let concerned = self.0.desk.concerned(before);
        Ok(GroupChanged {
            what,
            rule,
            version: stored.past.version,
            force: self.settled(concerned).await,
        })
    }

    async fn says(&self, kind: &str, subject: &str, text: String) {
        self.0.events.emit(kind, subject, text).await;
    }
}

/// Whether a machine counts as a member of its groups.
fn is_member(vm: &StoredVm) -> bool {
    !matches!(vm.life, Life::Ending { .. } | Life::Gone { .. })
}

fn is_version(
    name: &impl std::fmt::Display,
    is: u32,
    expect: Option<u32>,
) -> Result<(), GroupsError> {
    match expect {
        Some(expected) if expected != is => Err(GroupsError::Version {
            name: name.to_string(),
            is,
            expected,
        }),
        _ => Ok(()),
    }
}

fn fits(rules: &[GroupRule]) -> Result<(), GroupsError> {
    let bytes = serde_json::to_vec(rules).map_or(usize::MAX, |bytes| bytes.len());
    if rules.len() > MAX_GROUP_RULES || bytes > MAX_RULE_BYTES {
        return Err(GroupsError::TooManyRules);
    }
    Ok(())
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn view(name: GroupName, stored: &StoredGroup, machines: u32) -> GroupView {
    GroupView {
        name,
        account: stored.account.clone(),
        labels: stored.labels.clone(),
        version: stored.past.version,
        count: count(stored.rules.len()),
        rules: Vec::new(),
        machines,
        members: Vec::new(),
        named_by: Vec::new(),
        by: stored.past.by.clone(),
        at: stored.past.at,
    }
}
