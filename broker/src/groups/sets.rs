//! Sets of addresses.

use ipnet::IpNet;
use muster_protocol::api::{GroupChanged, PutSet, RollbackGroup, SetVersion, SetView, Version};
use muster_protocol::firewall::{Members, Peer};
use muster_protocol::names::{PrincipalName, SetName};
use muster_protocol::text::{nearest, printable};
use muster_protocol::units::Timestamp;
use tokio::sync::RwLockWriteGuard;

use super::drawer::Held;
use super::error::GroupsError;
use super::model::members;
use super::versions::{Past, StoredSet};
use super::{Groups, MAX_PREFIXES, MAX_SETS, count, is_version};
use crate::authz::Authorized;

/// What is to be changed, and which version of it: whichever when absent.
#[derive(Clone, Debug)]
pub struct ChangeSet<T> {
    /// Its name.
    pub name: SetName,
    /// What.
    pub what: T,
    /// The version that it has.
    pub expect: Option<u32>,
}

/// Prefixes as they were written; none of them in another one.
fn prefixes(put: &PutSet) -> Result<Members, GroupsError> {
    if put.prefixes.len() > MAX_PREFIXES {
        return Err(GroupsError::TooManyPrefixes(put.prefixes.len()));
    }
    let mut all = Members::new();
    for text in &put.prefixes {
        match text.trim().parse::<Peer>()? {
            Peer::Prefix(prefix) => drop(all.insert(prefix)),
            Peer::Any | Peer::Group(_) | Peer::Set(_) => {
                return Err(GroupsError::NoPrefix(printable(text, 60)));
            }
        }
    }
    Ok(members(all))
}

fn view(name: SetName, stored: &StoredSet) -> SetView {
    SetView {
        name,
        version: stored.past.version,
        count: count(stored.prefixes.len()),
        prefixes: Members::new(),
        named_by: Vec::new(),
        by: stored.past.by.clone(),
        at: stored.past.at,
    }
}

impl Groups {
    pub(super) fn held_set(&self, name: &SetName) -> Result<Held<StoredSet>, GroupsError> {
        self.0.sets.get(name).ok_or_else(|| {
            let known = self.0.sets.all();
            let near = nearest(name.as_str(), known.keys().map(|key| key.as_str()));
            GroupsError::NoSet {
                name: name.clone(),
                near: near.map(str::to_owned),
            }
        })
    }

    /// All sets, by name, without their prefixes.
    #[must_use]
    pub fn sets(&self) -> Vec<SetView> {
        let all = self.0.sets.all().into_iter();
        all.map(|(name, held)| view(name, &held.value)).collect()
    }

    /// One of them, with everything.
    ///
    /// # Errors
    /// [`GroupsError::NoSet`].
    pub fn set(&self, name: &SetName) -> Result<SetView, GroupsError> {
        let stored = self.held_set(name)?.value;
        let mut view = view(name.clone(), &stored);
        view.prefixes.clone_from(&stored.prefixes);
        view.named_by = self.named_by(&Peer::Set(name.clone()));
        Ok(view)
    }

    /// Its versions, the newest first.
    ///
    /// # Errors
    /// [`GroupsError::NoSet`].
    pub fn set_history(&self, name: &SetName) -> Result<Vec<SetVersion>, GroupsError> {
        let stored = self.held_set(name)?.value;
        let text = |all: &[IpNet]| all.iter().map(ToString::to_string).collect();
        let newest = stored.past.changes().iter().rev();
        Ok(newest
            .map(|change| Version {
                version: change.version,
                by: change.by.clone(),
                at: change.at,
                what: change.what.clone(),
                added: text(&change.added),
                removed: text(&change.removed),
            })
            .collect())
    }

    /// A set holds these prefixes from now on, and no others.
    ///
    /// # Errors
    /// [`GroupsError`]; nothing was changed.
    pub async fn put_set(
        &self,
        asked: Authorized<ChangeSet<PutSet>>,
    ) -> Result<GroupChanged, GroupsError> {
        let by = asked.principal().clone();
        let ChangeSet { name, what, expect } = asked.into_inner();
        let wanted = prefixes(&what)?;
        let one = self.0.changing.write().await;
        let held = self.0.sets.get(&name);
        let old = held.as_ref().map(|held| &held.value);
        is_version(&name, old.map_or(0, |old| old.past.version), expect)?;
        if old.is_none() && self.0.sets.len() >= MAX_SETS {
            return Err(GroupsError::TooManySets);
        }
        let what = format!("put: address set {name}, {} prefixes", wanted.len());
        if let Some(old) = old.filter(|old| old.prefixes == wanted) {
            let version = old.past.version;
            drop(one);
            return Ok(GroupChanged {
                what: format!("put already: address set {name} is so"),
                rule: None,
                version,
                force: self.settled(self.0.desk.concerned(u64::MAX)).await,
            });
        }
        let next = match old {
            Some(old) => changed(old, wanted, &by, None),
            None => {
                let added = wanted.iter().copied().collect();
                let told = format!("made with {} prefixes", wanted.len());
                StoredSet {
                    past: Past::new(by.clone(), Timestamp::now(), told, added),
                    prefixes: wanted,
                }
            }
        };
        self.write_set(one, (&name, held.as_ref()), next, what, &by)
            .await
    }

    /// Makes it as it was in one of its versions: that is a new one.
    ///
    /// # Errors
    /// [`GroupsError`]; nothing was changed.
    pub async fn rollback_set(
        &self,
        asked: Authorized<ChangeSet<RollbackGroup>>,
    ) -> Result<GroupChanged, GroupsError> {
        let by = asked.principal().clone();
        let ChangeSet { name, what, expect } = asked.into_inner();
        let one = self.0.changing.write().await;
        let held = self.held_set(&name)?;
        let past = &held.value.past;
        is_version(&name, past.version, expect)?;
        let to = what.to.unwrap_or(past.version.saturating_sub(1));
        let now: Vec<IpNet> = held.value.prefixes.iter().copied().collect();
        let then = past.back(to, &now).map_err(|why| GroupsError::NotKept {
            name: name.to_string(),
            version: to,
            why,
        })?;
        let told = format!("made as in version {to}");
        let next = changed(&held.value, then.into_iter().collect(), &by, Some(told));
        let what = format!("rolled back: address set {name} is as in version {to}");
        self.write_set(one, (&name, Some(&held)), next, what, &by)
            .await
    }

    /// Removes a set that no rule names.
    ///
    /// # Errors
    /// [`GroupsError`]; nothing was changed.
    pub async fn remove_set(&self, asked: Authorized<ChangeSet<()>>) -> Result<(), GroupsError> {
        let principal = asked.principal().clone();
        let ChangeSet { name, expect, .. } = asked.into_inner();
        let _one = self.0.changing.write().await;
        let held = self.held_set(&name)?;
        is_version(&name, held.value.past.version, expect)?;
        let by = self.named_by(&Peer::Set(name.clone()));
        if !by.is_empty() {
            return Err(GroupsError::SetNamed { name, by });
        }
        self.0.sets.remove(&name, &held).await?;
        self.0.desk.change(|model| model.set(&name, None));
        let text = format!("{principal} removed address set {name}");
        self.says("address_set.removed", name.as_str(), text).await;
        Ok(())
    }

    async fn write_set(
        &self,
        one: RwLockWriteGuard<'_, ()>,
        (name, old): (&SetName, Option<&Held<StoredSet>>),
        next: StoredSet,
        what: String,
        by: &PrincipalName,
    ) -> Result<GroupChanged, GroupsError> {
        let before = self.0.desk.generation();
        let stored = self.0.sets.put(name, old, next).await?;
        let prefixes = &stored.prefixes;
        self.0.desk.change(|model| model.set(name, Some(prefixes)));
        drop(one);
        let told = stored.past.changes().last().map(|last| last.what.clone());
        let text = told.unwrap_or_else(|| what.clone());
        let text = format!("{by}: address set {name}: {text}");
        self.says("address_set.changed", name.as_str(), text).await;
        let concerned = self.0.desk.concerned(before);
        Ok(GroupChanged {
            what,
            rule: None,
            version: stored.past.version,
            force: self.settled(concerned).await,
        })
    }
}

fn changed(
    old: &StoredSet,
    prefixes: Members,
    by: &PrincipalName,
    told: Option<String>,
) -> StoredSet {
    let added: Vec<IpNet> = prefixes.difference(&old.prefixes).copied().collect();
    let removed: Vec<IpNet> = old.prefixes.difference(&prefixes).copied().collect();
    let counts = format!("added {}, removed {}", added.len(), removed.len());
    let mut past = old.past.clone();
    past.push(
        by.clone(),
        Timestamp::now(),
        told.unwrap_or(counts),
        (added, removed),
    );
    StoredSet { prefixes, past }
}
