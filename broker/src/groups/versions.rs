//! What is kept of groups and sets, with how they came to be so: pure.

use std::collections::BTreeMap;

use ipnet::IpNet;
use muster_protocol::api::Version;
use muster_protocol::firewall::{GroupRule, Members};
use muster_protocol::names::{AccountName, LabelKey, LabelValue, PrincipalName};
use muster_protocol::units::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Versions that are kept.
pub(super) const KEPT: usize = 100;
/// Most bytes of changes that are kept beside what is in force.
const KEPT_BYTES: usize = 320 << 10;

/// A value of `muster_groups`; the key is the group's name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredGroup {
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// The number of the next rule.
    pub next: u32,
    /// Its rules, by number.
    pub rules: Vec<GroupRule>,
    /// How they came about.
    pub past: Past<GroupRule>,
}

/// A value of `muster_address_sets`; the key is the set's name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredSet {
    /// Its prefixes.
    pub prefixes: Members,
    /// How they came about.
    pub past: Past<IpNet>,
}

/// How something came to be as it is. The newest versions are kept as what
/// each changed: what was before follows from what is now.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, bound(deserialize = "T: DeserializeOwned"))]
pub struct Past<T> {
    /// The version of now.
    pub version: u32,
    /// Who made it.
    pub by: PrincipalName,
    /// When.
    pub at: Timestamp,
    /// The newest changes, the oldest first.
    changes: Vec<Version<T>>,
}

/// A version that cannot be had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotKept {
    /// The oldest that can be, if any can.
    pub oldest: Option<u32>,
    /// The newest.
    pub newest: u32,
}

impl<T: Clone + PartialEq + Serialize> Past<T> {
    /// Of something that is new.
    #[must_use]
    pub fn new(by: PrincipalName, at: Timestamp, what: String, added: Vec<T>) -> Self {
        let mut past = Self {
            version: 0,
            by: by.clone(),
            at,
            changes: Vec::new(),
        };
        past.push(by, at, what, (added, Vec::new()));
        past
    }

    /// One change more.
    pub fn push(
        &mut self,
        by: PrincipalName,
        at: Timestamp,
        what: String,
        (added, removed): (Vec<T>, Vec<T>),
    ) {
        self.version = self.version.saturating_add(1);
        (self.by, self.at) = (by.clone(), at);
        self.changes.push(Version {
            version: self.version,
            by,
            at,
            what,
            added,
            removed,
        });
        let sizes: Vec<usize> = self.changes.iter().map(size).collect();
        let (mut kept, mut bytes) = (0, 0);
        for size in sizes.iter().rev() {
            bytes += size;
            if kept == KEPT || bytes > KEPT_BYTES {
                break;
            }
            kept += 1;
        }
        self.changes.drain(..self.changes.len() - kept);
    }

    /// The changes that are kept, the oldest first.
    #[must_use]
    pub fn changes(&self) -> &[Version<T>] {
        &self.changes
    }

    /// What was in force in that version, `now` being what is.
    ///
    /// # Errors
    /// [`NotKept`].
    pub fn back(&self, version: u32, now: &[T]) -> Result<Vec<T>, NotKept> {
        let oldest = self.changes.first().map(|first| first.version);
        if version > self.version || oldest.is_none_or(|oldest| version < oldest) {
            let newest = self.version;
            return Err(NotKept { oldest, newest });
        }
        let mut then = now.to_vec();
        let later = self.changes.iter().rev();
        for change in later.take_while(|change| change.version > version) {
            then.retain(|one| !change.added.contains(one));
            then.extend(change.removed.iter().cloned());
        }
        Ok(then)
    }
}

fn size(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(KEPT_BYTES, |bytes| bytes.len())
}
