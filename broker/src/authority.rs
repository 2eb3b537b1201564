//! Whom the nodes obey: the root key, the signed list of broker keys, and the
//! key that this broker signs with.
//!
//! The list is in `muster_cluster` and in the state directory. The one with
//! the higher epoch counts, so that a NATS server that was set back in time
//! does not bring a revoked key back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use arc_swap::ArcSwap;
use muster_protocol::ids::ClusterId;
use muster_protocol::keys::{
    BrokerKey, BrokerKeyState, KeyId, KeyList, KeyListError, PrivateKey, PublicKey, SignedText,
};
use muster_protocol::units::Timestamp;
use tokio::sync::Mutex;

use crate::backup::restore::BEFORE;
use crate::events::Events;
use crate::inventory::NodeControl;
use crate::lease::Lease;
use crate::state_dir::{Root, StateDir, StateDirError};
use crate::store::kv::{Kv, KvError};

/// The key in the bucket.
const KEY: &str = "key-list";
/// The file in the state directory.
const FILE: &str = "key-list.json";
/// Most keys on a list, revoked ones included: it travels in messages.
const MAX_KEYS: usize = 1000;

/// Why something about the broker keys failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The list in NATS is of another cluster.
    #[error(
        "the NATS server belongs to another muster cluster ({theirs}); this broker's state \
         directory is of cluster {ours}. Give it the keys of that cluster, or another NATS server"
    )]
    OtherCluster {
        /// Of the state directory.
        ours: ClusterId,
        /// In NATS, as far as it says.
        theirs: String,
    },
    /// The list is not what the root key signed.
    #[error("the list of broker keys in {place} is refused: {source}")]
    List {
        /// Where it was found.
        place: &'static str,
        /// Why.
        source: KeyListError,
    },
    /// No such key.
    #[error("there is no broker key {0}; `muster keys list` shows them")]
    NoKey(KeyId),
    /// The key is needed.
    #[error("key {0} is the only active one; `muster keys rotate` first, then revoke it")]
    LastKey(KeyId),
    /// Too many rotations for one list.
    #[error("the list of broker keys is full ({MAX_KEYS} keys)")]
    Full,
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// The disk.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// NATS.
    #[error("the list of broker keys could not be stored: {0}")]
    Store(#[from] KvError),
}

/// What signs a request.
#[derive(Clone, Debug)]
pub struct Signer {
    /// The cluster.
    pub cluster: ClusterId,
    /// The broker key in use.
    pub key: PrivateKey,
}

/// A key that signed for this cluster's brokers, now or once.
#[derive(Clone, Copy, Debug)]
pub struct PastKey {
    /// The key.
    pub key: PublicKey,
    /// No broker signed with it after this moment, as far as is known.
    pub void_since: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Now {
    signer: Signer,
    list: Arc<KeyList>,
    signed: SignedText,
}

/// The keys of the cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authority(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    now: ArcSwap<Now>,
    root: PrivateKey,
    kept: Option<Kept>,
    /// What other lists say, older ones or such that this broker has lost.
    past: StdMutex<HashMap<KeyId, PastKey>>,
}

/// Where the list is kept; `None` in tests.
#[derive(Debug)]
struct Kept {
    state: StateDir,
    bucket: Kv<SignedText>,
    lease: Lease,
    events: Events,
    /// Revision of the list in the bucket; one change at a time.
    revision: Mutex<u64>,
}

impl Authority {
    /// Takes up the list of broker keys, and a key of it to sign with; makes
    /// both where there are none. Only the active broker does this.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub async fn load(
        state: StateDir,
        root: Root,
        bucket: Kv<SignedText>,
        lease: Lease,
        events: Events,
    ) -> Result<Self, AuthorityError> {
        let public = root.key.public();
        let stored = bucket.get(KEY).await?;
        let revision = stored.as_ref().map_or(0, |entry| entry.revision);
        let in_nats = match stored {
            Some(entry) => Some((open(&entry.value, &root, "NATS")?, entry.value)),
            None => None,
        };
        let on_disk = match state.load::<SignedText>(FILE)? {
            Some(signed) => Some((open(&signed, &root, "the state directory")?, signed)),
            None => None,
        };
        let mut changed = false;
        let best = match (in_nats, on_disk) {
            (Some(nats), Some(disk)) if disk.0.epoch > nats.0.epoch => {
                tracing::warn!(
                    nats = nats.0.epoch,
                    disk = disk.0.epoch,
                    "NATS holds an older list of broker keys; it is replaced"
                );
                changed = true;
                Some(disk)
            }
            (None, Some(disk)) => {
                changed = true;
                Some(disk)
            }
            (nats, _) => nats,
        };
        let mut list = best.as_ref().map_or_else(
            || KeyList {
                cluster: root.cluster,
                epoch: 0,
                root: public,
                keys: Vec::new(),
                issued: Timestamp::now(),
            },
            |(list, _)| list.clone(),
        );
        let key = match newest_own(&state, &list)? {
            Some(key) => key,
            None => {
                let key = PrivateKey::generate();
                state.store_broker_key(&key)?;
                list = with_key(&list, key.public());
                changed = true;
                key
            }
        };
        let signed = match best {
            Some((held, signed)) if held == list => signed,
            _ => list.sign(&root.key),
        };
        let kept = Kept {
            state,
            bucket,
            lease,
            events,
            revision: Mutex::new(revision),
        };
        let now = Now {
            signer: Signer {
                cluster: root.cluster,
                key,
            },
            list: Arc::new(list),
            signed: signed.clone(),
        };
        if changed {
            let mut revision = kept.revision.lock().await;
            kept.store(&signed, &mut revision).await?;
        } else {
            kept.state.store(FILE, &signed)?;
        }
        let before = kept.state.load::<SignedText>(BEFORE)?;
        let authority = Self(Arc::new(Inner {
            now: ArcSwap::from_pointee(now),
            root: root.key,
            kept: Some(kept),
            past: StdMutex::default(),
        }));
        if let Some(signed) = before {
            match KeyList::open(&signed, &public) {
                Ok(list) => authority.note(&list),
                Err(source) => {
                    let place = "the state directory";
                    return Err(AuthorityError::List { place, source });
                }
            }
        }
        Ok(authority)
    }

    /// The key to sign with now. Ask each time: a rotation changes it at once.
    #[must_use]
    pub fn signer(&self) -> Signer {
        self.0.now.load().signer.clone()
    }

    /// The list of broker keys.
    #[must_use]
    pub fn list(&self) -> Arc<KeyList> {
        Arc::clone(&self.0.now.load().list)
    }

    /// The list of broker keys, signed by the root key.
    #[must_use]
    pub fn signed_list(&self) -> SignedText {
        self.0.now.load().signed.clone()
    }

    /// The root key's public half.
    #[must_use]
    pub fn root(&self) -> PublicKey {
        self.0.root.public()
    }

    /// A key that is, or was, on a list that the root key signed.
    #[must_use]
    pub fn past_key(&self, id: KeyId) -> Option<PastKey> {
        let list = self.list();
        let now = list.find(id).map(|key| past_key(key, &list));
        let past = self.past().get(&id).copied();
        match (now, past) {
            (Some(now), Some(past)) => Some(earlier(now, past)),
            (now, past) => now.or(past),
        }
    }

    /// Remembers what a list that the root key signed says of keys.
    fn note(&self, list: &KeyList) {
        let mut past = self.past();
        for key in list.keys.iter().take(MAX_KEYS) {
            let new = past_key(key, list);
            let id = key.key.id();
            if past.len() < 2 * MAX_KEYS || past.contains_key(&id) {
                past.entry(id)
                    .and_modify(|known| *known = earlier(*known, new))
                    .or_insert(new);
            }
        }
    }

    fn past(&self) -> std::sync::MutexGuard<'_, HashMap<KeyId, PastKey>> {
        self.0.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody shows a list of this cluster's keys. What it says is taken for
    /// true, because the root key signed it. When it is newer than the one
    /// here, this broker has gone back in time, and takes it: a key that was
    /// revoked since must stay so. If it had signed with such a one, it makes
    /// itself another.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub async fn hear(
        &self,
        signed: &SignedText,
        control: &dyn NodeControl,
        from: &str,
    ) -> Result<(), AuthorityError> {
        let place = "a node";
        let list = KeyList::open(signed, &self.root())
            .map_err(|source| AuthorityError::List { place, source })?;
        if list.cluster != self.list().cluster {
            return Err(AuthorityError::OtherCluster {
                ours: self.list().cluster,
                theirs: list.cluster.to_string(),
            });
        }
        self.note(&list);
        if list.epoch <= self.list().epoch {
            return Ok(());
        }
        let kept = self.kept()?;
        let mut revision = kept.revision.lock().await;
        let old = self.0.now.load_full();
        if list.epoch <= old.list.epoch {
            return Ok(());
        }
        let theirs = list.epoch;
        let (list, signed, key) = match newest_own(&kept.state, &list)? {
            Some(key) => (list, signed.clone(), key),
            None => {
                let key = PrivateKey::generate();
                kept.state.store_broker_key(&key)?;
                let list = with_key(&list, key.public());
                let signed = list.sign(&self.0.root);
                (list, signed, key)
            }
        };
        kept.store(&signed, &mut revision).await?;
        let list = Arc::new(list);
        let signer = Signer {
            cluster: list.cluster,
            key,
        };
        self.show(&list, &signed, signer);
        control.push_keys(signed).await;
        let text = format!(
            "{from} holds a newer list of broker keys (epoch {theirs}) than this broker, which had epoch {}: \
             this broker was set back in time, and has taken it over; it has epoch {} now",
            old.list.epoch, list.epoch
        );
        kept.events
            .emit("alarm.keys-behind", &list.epoch.to_string(), text)
            .await;
        Ok(())
    }

    /// Signs something with the root key.
    pub(crate) fn sign_with_root<T: serde::Serialize>(
        &self,
        purpose: muster_protocol::keys::Purpose,
        value: &T,
    ) -> SignedText {
        SignedText::sign(&self.0.root, purpose, value)
    }

    /// Makes a new key and signs with it from now on. Nodes are told first,
    /// so that none refuses what is signed next; the old key stays active
    /// until it is revoked, for nodes that were away.
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing has changed then, or only the list.
    pub async fn rotate(
        &self,
        control: &dyn NodeControl,
        by: &str,
    ) -> Result<Arc<KeyList>, AuthorityError> {
        let kept = self.kept()?;
        let mut revision = kept.revision.lock().await;
        let old = self.0.now.load_full();
        if old.list.keys.len() >= MAX_KEYS {
            return Err(AuthorityError::Full);
        }
        let key = PrivateKey::generate();
        kept.state.store_broker_key(&key)?;
        let list = Arc::new(with_key(&old.list, key.public()));
        let signed = list.sign(&self.0.root);
        kept.store(&signed, &mut revision).await?;
        // Still the old signer: a node must have the list before it is asked
        // to believe the new key.
        self.show(&list, &signed, old.signer.clone());
        control.push_keys(signed.clone()).await;
        let id = key.public().id();
        self.show(
            &list,
            &signed,
            Signer {
                cluster: list.cluster,
                key,
            },
        );
        kept.events
            .emit(
                "key.rotated",
                &id.to_string(),
                format!("{by} rotated the broker key: {id} signs now"),
            )
            .await;
        Ok(list)
    }

    /// Takes a key out of use for ever. When it is the one that signs, the
    /// newest other one that this broker holds signs from now on.
    ///
    /// # Errors
    /// [`AuthorityError::NoKey`], [`AuthorityError::LastKey`] when no other
    /// active key could sign here, and others.
    pub async fn revoke(
        &self,
        id: KeyId,
        control: &dyn NodeControl,
        by: &str,
    ) -> Result<Arc<KeyList>, AuthorityError> {
        let kept = self.kept()?;
        let mut revision = kept.revision.lock().await;
        let old = self.0.now.load_full();
        match old.list.find(id) {
            None => return Err(AuthorityError::NoKey(id)),
            Some(key) if key.state == BrokerKeyState::Revoked => return Ok(Arc::clone(&old.list)),
            Some(_) => {}
        }
        let mut list = KeyList {
            epoch: old.list.epoch + 1,
            issued: Timestamp::now(),
            ..(*old.list).clone()
        };
        for key in &mut list.keys {
            if key.key.id() == id {
                key.state = BrokerKeyState::Revoked;
            }
        }
        let key = if old.signer.key.public().id() == id {
            newest_own(&kept.state, &list)?.ok_or(AuthorityError::LastKey(id))?
        } else {
            old.signer.key.clone()
        };
        let (list, signed) = (Arc::new(list.clone()), list.sign(&self.0.root));
        kept.store(&signed, &mut revision).await?;
        // The list itself is signed by the root, but the request that carries
        // it by a broker key: by one that is on both lists.
        self.show(
            &list,
            &signed,
            Signer {
                cluster: list.cluster,
                key,
            },
        );
        control.push_keys(signed).await;
        kept.state.drop_broker_key(id)?;
        kept.events
            .emit(
                "key.revoked",
                &id.to_string(),
                format!("{by} revoked the broker key {id}"),
            )
            .await;
        Ok(list)
    }

    fn kept(&self) -> Result<&Kept, AuthorityError> {
        self.0
            .kept
            .as_ref()
            .filter(|kept| kept.lease.epoch().is_some())
            .ok_or(AuthorityError::NotActive)
    }

    fn show(&self, list: &Arc<KeyList>, signed: &SignedText, signer: Signer) {
        let now = Now {
            signer,
            list: Arc::clone(list),
            signed: signed.clone(),
        };
        self.0.now.store(Arc::new(now));
    }

    /// An authority that is in memory only, for tests: a root key and one
    /// broker key. It cannot rotate.
    #[must_use]
    pub fn in_memory() -> (PrivateKey, Self) {
        let (root, key) = (PrivateKey::generate(), PrivateKey::generate());
        let cluster = ClusterId::random();
        let empty = KeyList {
            cluster,
            epoch: 0,
            root: root.public(),
            keys: Vec::new(),
            issued: Timestamp::now(),
        };
        let list = with_key(&empty, key.public());
        let signed = list.sign(&root);
        let now = ArcSwap::from_pointee(Now {
            signer: Signer { cluster, key },
            list: Arc::new(list),
            signed,
        });
        (
            root.clone(),
            Self(Arc::new(Inner {
                now,
                root,
                kept: None,
                past: StdMutex::default(),
            })),
        )
    }
}

impl Kept {
    async fn store(&self, signed: &SignedText, revision: &mut u64) -> Result<(), AuthorityError> {
        if self.lease.epoch().is_none() {
            return Err(AuthorityError::NotActive);
        }
        // The disk first: when NATS fails now, the next start finds the list
        // on the disk and puts it there.
        self.state.store(FILE, signed)?;
        let written = match *revision {
            0 => self.bucket.create(KEY, signed).await,
            known => self.bucket.update(KEY, signed, known).await,
        };
        match written {
            Ok(now) => *revision = now,
            // It may have been stored all the same, and the next change must
            // build on what is there.
            Err(error) => match self.bucket.get(KEY).await? {
                Some(entry) if entry.value == *signed => *revision = entry.revision,
                other => {
                    *revision = other.map_or(0, |entry| entry.revision);
                    return Err(error.into());
                }
            },
        }
        Ok(())
    }
}

fn past_key(key: &BrokerKey, list: &KeyList) -> PastKey {
    PastKey {
        key: key.key,
        void_since: (key.state == BrokerKeyState::Revoked).then_some(list.issued),
    }
}

/// What two lists say of one key.
fn earlier(a: PastKey, b: PastKey) -> PastKey {
    let void_since = match (a.void_since, b.void_since) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    PastKey { void_since, ..a }
}

fn open(signed: &SignedText, root: &Root, place: &'static str) -> Result<KeyList, AuthorityError> {
    let list = KeyList::open(signed, &root.key.public()).map_err(|source| {
        // Not to be trusted, but it helps to say whose it claims to be.
        match serde_json::from_str::<KeyList>(&signed.text) {
            Ok(other) if other.root != root.key.public() => AuthorityError::OtherCluster {
                ours: root.cluster,
                theirs: other.cluster.to_string(),
            },
            _ => AuthorityError::List { place, source },
        }
    })?;
    if list.cluster != root.cluster {
        return Err(AuthorityError::OtherCluster {
            ours: root.cluster,
            theirs: list.cluster.to_string(),
        });
    }
    Ok(list)
}

/// The newest active key of the list whose private half is here.
fn newest_own(state: &StateDir, list: &KeyList) -> Result<Option<PrivateKey>, AuthorityError> {
    for key in list
        .keys
        .iter()
        .rev()
        .filter(|key| key.state == BrokerKeyState::Active)
    {
        if let Some(private) = state.broker_key(&key.key)? {
            return Ok(Some(private));
        }
    }
    Ok(None)
}

fn with_key(list: &KeyList, key: PublicKey) -> KeyList {
    let now = Timestamp::now();
    let mut next = KeyList {
        epoch: list.epoch + 1,
        issued: now,
        ..list.clone()
    };
    next.keys.push(BrokerKey {
        key,
        state: BrokerKeyState::Active,
        added: now,
    });
    next
}
