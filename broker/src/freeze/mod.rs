//! Stopping everything new on all nodes at once, and letting it go on.
//!
//! What is in force is one value in the cluster's bucket, with a rising
//! revision. It is signed anew for each message, sent to all nodes when it
//! changes, and again to each connected node that has not said that it is on
//! its disk; and it is in every welcome. A node that holds a higher revision
//! than the store has (the store went back, a backup was restored) gives it
//! back in its hello. [`keep`] does the sending.

mod keep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use muster_protocol::freeze::{Freeze, FreezeError, FreezeMark, MAX_WHY};
use muster_protocol::ids::Serial;
use muster_protocol::keys::SignedText;
use muster_protocol::names::{NodeName, PrincipalName};
use muster_protocol::units::Timestamp;
use tokio::sync::{Mutex as Turn, watch};

use crate::authority::Authority;
use crate::events::Events;
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// Its key in the cluster's bucket.
pub(crate) const KEY: &str = "freeze";
/// So many changes can be forgotten whose key is revoked by now.
const MOST_AHEAD: u64 = 1_000;
/// Whose words it is before anybody has said anything.
const NOBODY: &str = "muster";

/// What is stored.
pub type FreezeValue = Freeze;

/// Why it is not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreezerError {
    /// It is so already.
    #[error("{}", already(.0))]
    Already(Box<Freeze>),
    /// No reason, or too long a one.
    #[error(
        "a freeze needs a reason of at most {MAX_WHY} characters: whoever is stopped by it reads it"
    )]
    Why,
    /// This broker may not write now.
    #[error("this broker is not the active one now")]
    NotActive,
    /// NATS.
    #[error("the freeze could not be written down: {0}")]
    Store(#[from] KvError),
}

fn already(freeze: &Freeze) -> String {
    if freeze.frozen {
        format!("the fleet is already {}", freeze.reason())
    } else {
        "the fleet is not frozen".to_owned()
    }
}

/// Who goes by it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Taken {
    /// So many nodes have said so, of those that are connected.
    pub taken: u32,
    /// These are connected and have not.
    pub missing: Vec<NodeName>,
    /// These are connected and their agents cannot be frozen.
    pub unable: Vec<NodeName>,
    /// So many are not connected; they learn it before they execute anything.
    pub away: u32,
}

/// What is in force, and who goes by it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Freezer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    now: watch::Sender<Freeze>,
    nodes: Mutex<Nodes>,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    bucket: Kv<FreezeValue>,
    authority: Authority,
    lease: Lease,
    events: Events,
    /// The revision in the bucket; one change at a time.
    revision: Turn<u64>,
}

#[derive(Debug, Default)]
struct Nodes {
    /// Which revision each has on its disk, as it said.
    taken: BTreeMap<Serial, u64>,
    /// Whose agents know what a freeze is.
    able: BTreeSet<Serial>,
}

/// What counts of two that do not know of each other, because a store went
/// back in time. Where the one with the higher revision is also the later one
/// it is that; else it gets a revision above both, and what stops counts
/// before what is later: whoever ended a freeze did not see the other one.
#[must_use]
pub(crate) fn reconciled(one: Freeze, other: Freeze) -> Freeze {
    let above = one.revision.max(other.revision).saturating_add(1);
    let (later, earlier) = if one.at >= other.at {
        (one, other)
    } else {
        (other, one)
    };
    if later.revision > earlier.revision || later == earlier {
        return later;
    }
    let counts = if earlier.frozen && !later.frozen {
        earlier
    } else {
        later
    };
    Freeze {
        revision: above,
        ..counts
    }
}

fn nothing(authority: &Authority) -> Freeze {
    Freeze {
        cluster: authority.list().cluster,
        revision: 0,
        frozen: false,
        why: String::new(),
        by: NOBODY.parse().expect("a constant name"),
        at: Timestamp::UNIX_EPOCH,
    }
}

impl Freezer {
    /// Reads what is in force.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn load(
        bucket: Kv<FreezeValue>,
        authority: Authority,
        lease: Lease,
        events: Events,
    ) -> Result<Self, KvError> {
        let entry = bucket.get(KEY).await?;
        let revision = entry.as_ref().map_or(0, |entry| entry.revision);
        let now = entry.map_or_else(|| nothing(&authority), |entry| entry.value);
        if now.frozen {
            tracing::warn!(revision = now.revision, "the fleet is {}", now.reason());
        }
        Ok(Self(Arc::new(Inner {
            now: watch::Sender::new(now),
            nodes: Mutex::default(),
            kept: Some(Kept {
                bucket,
                authority,
                lease,
                events,
                revision: Turn::new(revision),
            }),
        })))
    }

    /// One that is in memory only and never frozen, for tests.
    #[must_use]
    pub fn never(authority: &Authority) -> Self {
        Self(Arc::new(Inner {
            now: watch::Sender::new(nothing(authority)),
            nodes: Mutex::default(),
            kept: None,
        }))
    }

    /// What is in force.
    #[must_use]
    pub fn now(&self) -> Freeze {
        self.0.now.borrow().clone()
    }

    /// What stops everything, if something does.
    #[must_use]
    pub fn frozen(&self) -> Option<Freeze> {
        Some(self.now()).filter(|freeze| freeze.frozen)
    }

    /// Changes whenever it does.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Freeze> {
        self.0.now.subscribe()
    }

    /// What is in force, signed with the key of now.
    #[must_use]
    pub fn signed(&self) -> Option<SignedText> {
        let kept = self.0.kept.as_ref()?;
        Some(self.now().sign(&kept.authority.signer().key))
    }

    /// Stops everything new. When this returns it is written down; the nodes
    /// are being told.
    ///
    /// # Errors
    /// [`FreezerError`].
    pub async fn freeze(&self, by: &PrincipalName, why: &str) -> Result<Freeze, FreezerError> {
        let why = why.trim();
        if why.is_empty() || why.chars().count() > MAX_WHY {
            return Err(FreezerError::Why);
        }
        self.change(true, by, why).await
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// [`FreezerError`].
    pub async fn thaw(&self, by: &PrincipalName, why: &str) -> Result<Freeze, FreezerError> {
        let why = why.trim();
        if why.chars().count() > MAX_WHY {
            return Err(FreezerError::Why);
        }
        self.change(false, by, why).await
    }

    async fn change(
        &self,
        frozen: bool,
        by: &PrincipalName,
        why: &str,
    ) -> Result<Freeze, FreezerError> {
        let kept = self.0.kept.as_ref().ok_or(FreezerError::NotActive)?;
        let mut revision = kept.revision.lock().await;
        let old = self.now();
        if old.frozen == frozen {
            return Err(FreezerError::Already(Box::new(old)));
        }
        let next = Freeze {
            revision: old.revision.saturating_add(1),
            frozen,
            why: why.to_owned(),
            by: by.clone(),
            at: Timestamp::now(),
            ..old
        };
        kept.store(&next, &mut revision).await?;
        self.show(&next);
        let (kind, text) = if frozen {
            ("cluster.frozen", format!("the fleet is {}", next.reason()))
        } else if why.is_empty() {
            ("cluster.thawed", format!("{by} ended the freeze"))
        } else {
            ("cluster.thawed", format!("{by} ended the freeze: {why}"))
        };
        kept.events.emit(kind, by.as_str(), text).await;
        Ok(next)
    }

    fn show(&self, next: &Freeze) {
        self.0.now.send_replace(next.clone());
    }

    /// A node says hello, and what it holds. When that is newer than what is
    /// known here, this broker has gone back in time and takes it.
    pub(crate) async fn greeted(&self, node: Serial, name: &NodeName, mark: Option<&FreezeMark>) {
        {
            let mut nodes = self.nodes();
            match mark {
                Some(mark) => {
                    nodes.able.insert(node);
                    nodes.taken.insert(node, mark.revision);
                }
                None => {
                    nodes.able.remove(&node);
                    nodes.taken.remove(&node);
                }
            }
        }
        let Some(held) = mark.and_then(|mark| mark.held.as_ref()) else {
            return;
        };
        let newer = mark.is_some_and(|mark| mark.revision > self.now().revision);
        if newer && let Err(error) = self.hear(held, name).await {
            tracing::warn!(node = %name, %error, "a freeze that a node holds is not taken over");
        }
    }

    async fn hear(&self, held: &SignedText, name: &NodeName) -> Result<(), HearError> {
        let Some(kept) = &self.0.kept else {
            return Ok(());
        };
        let mut revision = kept.revision.lock().await;
        let old = self.now();
        // A key that was revoked since has signed it while it was none.
        let key = kept
            .authority
            .past_key(held.key)
            .ok_or(FreezeError::Key(muster_protocol::keys::KeyError::Untrusted))?;
        let theirs: Freeze = held
            .open(&key.key, muster_protocol::keys::Purpose::Freeze)
            .map_err(FreezeError::from)?;
        if theirs.cluster != old.cluster {
            return Err(FreezeError::Cluster(theirs.cluster).into());
        }
        if theirs.revision <= old.revision {
            return Ok(());
        }
        let (known, forgotten) = (theirs.revision, old.revision);
        let next = match key.void_since {
            None => reconciled(old, theirs),
            // Whoever has got hold of that key can have signed it today. It may
            // stop everything, but it ends no freeze and takes no numbers away.
            Some(_) if known - forgotten > MOST_AHEAD => {
                return Err(FreezeError::Key(muster_protocol::keys::KeyError::Untrusted).into());
            }
            Some(_) => Freeze {
                revision: known.saturating_add(1),
                ..if theirs.frozen { theirs } else { old }
            },
        };
        kept.store(&next, &mut revision).await?;
        self.show(&next);
        let what = if next.frozen {
            next.reason()
        } else {
            format!("thawed by {}", next.by)
        };
        let text = format!(
            "{name} knows of a change of the freeze (revision {known}) that this broker had forgotten (it had \
             {forgotten}): in force now is revision {}: {what}",
            next.revision
        );
        kept.events
            .emit("alarm.freeze-behind", "cluster", text)
            .await;
        Ok(())
    }

    /// A node has it on its disk.
    pub(crate) fn taken(&self, node: Serial, revision: u64) {
        let mut nodes = self.nodes();
        nodes.able.insert(node);
        let known = nodes.taken.entry(node).or_default();
        *known = (*known).max(revision);
    }

    /// Whether a node goes by what is in force now.
    fn has(&self, node: Serial) -> bool {
        let revision = self.0.now.borrow().revision;
        self.nodes()
            .taken
            .get(&node)
            .is_some_and(|r| *r >= revision)
    }

    fn is_able(&self, node: Serial) -> bool {
        self.nodes().able.contains(&node)
    }

    /// Who goes by it, of all nodes: each with its name and whether it is
    /// connected.
    #[must_use]
    pub fn who<'a>(&self, nodes: impl Iterator<Item = (Serial, &'a NodeName, bool)>) -> Taken {
        let mut who = Taken::default();
        for (serial, name, connected) in nodes {
            match (connected, self.is_able(serial), self.has(serial)) {
                (false, _, _) => who.away += 1,
                (true, false, _) => who.unable.push(name.clone()),
                (true, true, true) => who.taken += 1,
                (true, true, false) => who.missing.push(name.clone()),
            }
        }
        who
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, Nodes> {
        self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a freeze or its end.
pub(crate) async fn changed(freezes: &mut Option<watch::Receiver<Freeze>>) {
    if let Some(freezes) = freezes
        && freezes.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Why what a node holds is not taken over.
#[derive(Debug, thiserror::Error)]
enum HearError {
    #[error(transparent)]
    Refused(#[from] FreezeError),
    #[error(transparent)]
    Freezer(#[from] FreezerError),
}

impl Kept {
    async fn store(&self, next: &Freeze, revision: &mut u64) -> Result<(), FreezerError> {
        if self.lease.epoch().is_none() {
            return Err(FreezerError::NotActive);
        }
        let written = match *revision {
            0 => self.bucket.create(KEY, next).await,
            known => self.bucket.update(KEY, next, known).await,
        };
        match written {
            Ok(now) => *revision = now,
            // It may have been stored all the same.
            Err(error) => match self.bucket.get(KEY).await? {
                Some(entry) if entry.value == *next => *revision = entry.revision,
                other => {
                    *revision = other.map_or(0, |entry| entry.revision);
                    return Err(error.into());
                }
            },
        }
        Ok(())
    }
}
