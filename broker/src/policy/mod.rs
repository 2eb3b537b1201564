//! Who may do what, as it is stored: every version of the document, each
//! under a key of its own that is written once.
//!
//! The newest version is in force. A put is the creation of the next key, so
//! of two at the same time one comes first and the other is told. What is
//! stored was checked before; what is found stored is checked again, and a
//! broker that cannot use it does not start: it would let in whom the
//! operators wanted kept out, or keep out those who could mend it.

mod error;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use muster_protocol::api::{PolicyFiles, PolicyVersion, PolicyView, Role};
use muster_protocol::names::PrincipalName;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

pub use self::error::PolicyError;
use crate::authz::cedar::{Alike, Document, InForce, check};
use crate::authz::{Action, Authorized, Caller, Origin};
use crate::events::Events;
use crate::inventory::Inventory;
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};
use crate::tokens::Tokens;
use muster_protocol::envelope::Door;

/// Versions that are kept; the oldest go.
pub const KEPT: u32 = 100;
/// Most bytes of a note.
pub const MAX_NOTE: usize = 500;
/// The file in the state directory that takes a broker back to what muster
/// comes with, when it starts.
pub const RESET_FILE: &str = "policy-reset";

/// A value of `muster_policy`; the key is `v` and the version.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredPolicy {
    /// The files.
    pub files: PolicyFiles,
    /// Who stored them.
    pub by: PrincipalName,
    /// When.
    pub at: Timestamp,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl StoredPolicy {
    /// Two copies under one number: the later one counts.
    #[must_use]
    pub(crate) fn reconciled(now: Self, lost: Self) -> Self {
        if lost.at > now.at { lost } else { now }
    }
}

/// A new version of the document.
#[derive(Clone, Debug)]
pub struct Put {
    /// Its files.
    pub files: PolicyFiles,
    /// Why.
    pub note: Option<String>,
    /// The version that it is made from; stored only on top of that one.
    pub expect: Option<u32>,
    /// Also when no token could change it again.
    pub force: bool,
}

/// The document, with all its versions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Policies(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: Kv<StoredPolicy>,
    lease: Lease,
    events: Events,
    tokens: Tokens,
    in_force: InForce,
    /// About the version that is in force. Held by whoever writes.
    current: Mutex<()>,
    shown: std::sync::RwLock<PolicyVersion>,
}

fn key(version: u32) -> String {
    format!("v{version}")
}

fn number(key: &str) -> Option<u32> {
    key.strip_prefix('v')?.parse().ok()
}

fn view(version: u32, stored: &StoredPolicy, document: Option<&Document>) -> PolicyVersion {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    PolicyVersion {
        version,
        policies: document.map_or(0, |document| count(document.len())),
        principals: document.map_or(0, |document| count(document.principals.len())),
        by: stored.by.clone(),
        at: (version > 0).then_some(stored.at),
        note: stored.note.clone(),
    }
}

fn stock() -> (Document, StoredPolicy) {
    let document = Document::stock();
    let stored = StoredPolicy {
        files: document.files.clone(),
        by: "muster".parse().expect("a constant name"),
        at: Timestamp::UNIX_EPOCH,
        note: None,
    };
    (document, stored)
}

async fn newest(bucket: &Kv<StoredPolicy>) -> Result<u32, KvError> {
    let keys = bucket.keys().await?;
    Ok(keys.iter().filter_map(|key| number(key)).max().unwrap_or(0))
}

impl Policies {
    /// Reads the newest version. Where `state` has a file [`RESET_FILE`], what
    /// muster comes with is stored as the newest first, and the file goes.
    ///
    /// # Errors
    /// [`PolicyError`]: among them that what is stored cannot be used.
    pub async fn open(
        bucket: Kv<StoredPolicy>,
        lease: Lease,
        events: Events,
        tokens: Tokens,
        inventory: Inventory,
        state: &Path,
    ) -> Result<Self, PolicyError> {
        let mut version = newest(&bucket).await?;
        let reset = state.join(RESET_FILE);
        if reset.exists() {
            let (_, mut stored) = stock();
            stored.by = "root".parse().expect("a constant name");
            stored.at = Timestamp::now();
            stored.note = Some("reset on the broker's machine".to_owned());
            version += 1;
            bucket.create(&key(version), &stored).await?;
            if let Err(error) = std::fs::remove_file(&reset) {
                return Err(PolicyError::Reset(reset, error));
            }
            tracing::warn!(version, "the policies were reset on this machine");
        }
        let (document, stored) = if version == 0 {
            stock()
        } else {
            let unusable = |why: String| PolicyError::Unusable { version, why };
            let found = match bucket.get(&key(version)).await {
                Ok(found) => found,
                Err(error @ KvError::Decode { .. }) => return Err(unusable(error.to_string())),
                Err(error) => return Err(error.into()),
            };
            let stored = found
                .ok_or_else(|| unusable("it was removed".to_owned()))?
                .value;
            let checked = check(&stored.files).map_err(|faults| {
                let all: Vec<String> = faults.iter().map(ToString::to_string).collect();
                unusable(all.join("\n"))
            })?;
            let mut document = checked.document;
            document.version = Some(version);
            (document, stored)
        };
        let shown = view(version, &stored, Some(&document));
        Ok(Self(Arc::new(Inner {
            bucket,
            lease,
            events,
            tokens,
            in_force: InForce::new(document, inventory),
            current: Mutex::new(()),
            shown: std::sync::RwLock::new(shown),
        })))
    }

    /// What is in force, as a policy.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        self.0.in_force.clone()
    }

    /// What is in force.
    #[must_use]
    pub fn document(&self) -> Arc<Document> {
        self.0.in_force.document()
    }

    fn shown(&self) -> PolicyVersion {
        let shown = self.0.shown.read();
        shown
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// A version with its files, the one in force when none is named.
    ///
    /// # Errors
    /// [`PolicyError::NoVersion`], [`PolicyError::Store`].
    pub async fn show(&self, wanted: Option<u32>) -> Result<PolicyView, PolicyError> {
        let current = self.shown();
        let version = wanted.unwrap_or(current.version);
        if version == current.version {
            let files = self.document().files.clone();
            return Ok(PolicyView {
                version: current,
                files,
            });
        }
        let stored = if version == 0 {
            stock().1
        } else {
            let found = self.0.bucket.get(&key(version)).await?;
            found.ok_or(PolicyError::NoVersion(version))?.value
        };
        let document = check(&stored.files).ok().map(|checked| checked.document);
        Ok(PolicyView {
            version: view(version, &stored, document.as_ref()),
            files: stored.files,
        })
    }

    /// All versions that are kept, the newest first.
    ///
    /// # Errors
    /// [`PolicyError::Store`].
    pub async fn history(&self) -> Result<Vec<PolicyVersion>, PolicyError> {
        let keys = self.0.bucket.keys().await?;
        let mut versions: Vec<u32> = keys.iter().filter_map(|key| number(key)).collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        let mut all = Vec::new();
        for version in versions {
            match self.show(Some(version)).await {
                Ok(shown) => all.push(shown.version),
                // It went meanwhile.
                Err(PolicyError::NoVersion(_)) => {}
                Err(error) => return Err(error),
            }
        }
        all.push(self.show(Some(0)).await?.version);
        all.dedup();
        Ok(all)
    }

    /// Stores a new version, if it has no mistake; the next request is judged
    /// by it. Equal files are not stored again. What is in force then, and
    /// whether it is new.
    ///
    /// # Errors
    /// [`PolicyError`]; what was in force is in force.
    pub async fn put(&self, put: Authorized<Put>) -> Result<(PolicyVersion, bool), PolicyError> {
        let caller = put.caller().clone();
        let put = put.into_inner();
        if let Some(note) = put.note.as_ref().filter(|note| note.len() > MAX_NOTE) {
            return Err(PolicyError::NoteTooLong(note.len()));
        }
        let note = put
            .note
            .map(|note| printable(note.trim(), MAX_NOTE))
            .filter(|note| !note.is_empty());
        let files = put.files;
        let checked =
            tokio::task::spawn_blocking(move || check(&files).map_err(PolicyError::Refused));
        let mut document = checked.await??.document;
        let _one = self.0.current.lock().await;
        self.0.lease.epoch().ok_or(PolicyError::NotActive)?;
        let current = self.shown();
        let same = self.document().files == document.files;
        if let Some(expect) = put.expect
            && expect != current.version
        {
            // Whoever heard no answer asks again.
            let repeated = same
                && current.by == caller.principal
                && current.version.checked_sub(1) == Some(expect);
            if !repeated {
                return Err(PolicyError::Changed(Box::new(current)));
            }
        }
        if same {
            return Ok((current, false));
        }
        if !put.force && !self.can_change(&document, &caller) {
            return Err(PolicyError::LocksOut);
        }
        let version = current.version + 1;
        document.version = Some(version);
        let stored = StoredPolicy {
            files: document.files.clone(),
            by: caller.principal.clone(),
            at: Timestamp::now(),
            note,
        };
        if let Err(error) = self.0.bucket.create(&key(version), &stored).await {
            // It may be there although nobody said so.
            let there = self.0.bucket.get(&key(version)).await;
            match (there, error) {
                (Ok(Some(entry)), _) if entry.value == stored => {}
                (_, KvError::Conflict { .. }) => {
                    return Err(PolicyError::Changed(Box::new(current)));
                }
                (_, error) => return Err(error.into()),
            }
        }
        let shown = view(version, &stored, Some(&document));
        self.0.in_force.replace(document);
        *self
            .0
            .shown
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = shown.clone();
        let mut text = format!(
            "{} stored version {version} of who may do what: {} policies, {} principals",
            shown.by, shown.policies, shown.principals
        );
        if let Some(note) = &shown.note {
            text.push_str(&format!(": {note}"));
        }
        self.0
            .events
            .emit("policy.stored", &key(version), text)
            .await;
        if let Some(old) = version.checked_sub(KEPT).filter(|old| *old > 0)
            && let Err(error) = self.0.bucket.forget(&key(old)).await
        {
            tracing::debug!(%error, old, "an old version of the policies is still there");
        }
        Ok((shown, true))
    }

    /// Whether some token that works, or whoever asks, could change the
    /// document again.
    fn can_change(&self, document: &Document, asks: &Caller) -> bool {
        let now = crate::authz::cedar::Moment(Timestamp::now());
        let none = crate::inventory::Snapshot::default();
        let may = |caller: &Caller| {
            let judged = document.judge(caller, &Action::ManagePolicies, now, &none);
            judged.decision.is_allowed()
        };
        if may(asks) {
            return true;
        }
        // Whom policies cannot tell apart is asked for once, however many
        // tokens there are.
        let tokens = self.0.tokens.list();
        let whose: BTreeMap<Alike, (PrincipalName, Role)> = tokens
            .into_iter()
            .map(|token| (document.alike(&token.principal, token.role), token))
            .map(|(alike, token)| (alike, (token.principal, token.role)))
            .collect();
        whose.into_values().any(|(principal, role)| {
            let mut caller = Caller {
                principal,
                role,
                token: "any".to_owned(),
                door: Door::Cli,
                origin: Origin::Unknown,
            };
            for door in [Door::Cli, Door::Http] {
                for origin in [&Origin::Unknown, &asks.origin] {
                    (caller.door, caller.origin) = (door, origin.clone());
                    if may(&caller) {
                        return true;
                    }
                }
            }
            false
        })
    }
}
