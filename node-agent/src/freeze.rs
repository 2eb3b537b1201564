//! Whether this node begins anything new: on its disk, so that it holds over
//! restarts and while nobody can be asked.

use std::sync::Arc;

use muster_protocol::freeze::{Freeze, FreezeError, FreezeMark};
use muster_protocol::keys::SignedText;
use tokio::sync::{RwLock, RwLockReadGuard};
use tracing::{error, info, warn};

use crate::identity::Identity;
use crate::state::{StateDir, StateError};

/// The file in the state directory.
const FILE: &str = "freeze.json";

/// Why a freeze is not in force here.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It is not to be believed, or old.
    #[error(transparent)]
    Refused(#[from] FreezeError),
    /// It could not be written down.
    #[error("the freeze cannot be written down: {0}")]
    State(#[from] StateError),
    /// Nobody knows whether it was.
    #[error("the freeze cannot be written down: {0}")]
    Cut(tokio::task::JoinError),
}

/// What is held.
#[derive(Clone, Debug)]
enum Held {
    /// Nobody has ever said anything.
    Nothing,
    /// This.
    Known(Box<Freeze>, Box<SignedText>),
    /// This freeze, and the disk does not have it yet.
    Unwritten(Box<Freeze>),
    /// There is a file, and it cannot be read: as frozen, until a broker says
    /// what is in force.
    Damaged,
}

/// What is in force on this node. Cheap to clone.
#[derive(Clone)]
pub struct Frost(Arc<Inner>);

struct Inner {
    dir: StateDir,
    identity: Identity,
    /// Read while a step is begun, written while it changes: once the change
    /// is there, nothing is begun that was judged before it.
    held: RwLock<Held>,
}

/// While it lives, nothing freezes this node.
#[derive(Debug)]
pub struct Begin<'a> {
    _held: RwLockReadGuard<'a, Held>,
}

fn read(dir: &StateDir) -> Held {
    let damaged = |why: String| {
        error!("{FILE} is damaged ({why}); nothing is begun until a broker says what is in force");
        Held::Damaged
    };
    let bytes = match dir.read(FILE) {
        Ok(None) => return Held::Nothing,
        Ok(Some(bytes)) => bytes,
        Err(e) => return damaged(e.to_string()),
    };
    // It was checked when it was taken; the key may be revoked by now.
    let parsed = serde_json::from_slice::<SignedText>(&bytes)
        .and_then(|signed| Ok((serde_json::from_str::<Freeze>(&signed.text)?, signed)));
    match parsed {
        Ok((freeze, signed)) => Held::Known(Box::new(freeze), Box::new(signed)),
        Err(e) => damaged(e.to_string()),
    }
}

fn why(held: &Held) -> Option<String> {
    match held {
        Held::Nothing => None,
        Held::Known(freeze, _) | Held::Unwritten(freeze) => freeze.frozen.then(|| freeze.reason()),
        Held::Damaged => Some(format!(
            "frozen: {FILE} in this agent's state cannot be read, and no broker has said yet what is in force"
        )),
    }
}

/// Why nothing is begun on the node of that state directory, if so: for
/// whoever runs something there without an agent.
#[must_use]
pub fn reason(dir: &StateDir) -> Option<String> {
    why(&read(dir))
}

impl Frost {
    /// What the disk says.
    #[must_use]
    pub fn load(dir: StateDir, identity: Identity) -> Self {
        let held = read(&dir);
        if let Some(why) = why(&held) {
            warn!("nothing new is begun here: {why}");
        }
        Self(Arc::new(Inner {
            dir,
            identity,
            held: RwLock::new(held),
        }))
    }

    /// What is said of it in a hello.
    pub async fn mark(&self) -> FreezeMark {
        match &*self.0.held.read().await {
            // What a restart forgets is not told as known: it is sent again.
            Held::Nothing | Held::Damaged | Held::Unwritten(..) => FreezeMark::default(),
            Held::Known(freeze, signed) => FreezeMark {
                revision: freeze.revision,
                held: Some((**signed).clone()),
            },
        }
    }

    /// Takes what a broker says; the revision that is in force then. When this
    /// returns it is on disk, and nothing is begun any more that it forbids.
    ///
    /// # Errors
    /// [`TakeError`]; what was in force still is. When it could not be written
    /// down, a freeze is in force all the same, until the agent ends.
    pub async fn take(&self, signed: &SignedText) -> Result<u64, TakeError> {
        let keys = self.0.identity.now().keys.clone();
        let mut held = self.0.held.write().await;
        let known = match &*held {
            Held::Known(freeze, _) | Held::Unwritten(freeze) => Some(&**freeze),
            Held::Nothing | Held::Damaged => None,
        };
        let next = Freeze::successor(signed, &keys, known)?;
        let revision = next.revision;
        let same =
            known.is_some_and(|known| known.revision == revision && known.frozen == next.frozen);
        if same && matches!(&*held, Held::Known(..)) {
            return Ok(revision);
        }
        if next.frozen {
            warn!(
                revision,
                "nothing new is begun here from now on: {}",
                next.reason()
            );
        } else if why(&held).is_some() {
            info!(revision, by = %next.by, "no longer frozen");
        }
        let bytes = serde_json::to_vec(signed).unwrap_or_default();
        let dir = self.0.dir.clone();
        let write = move || dir.write(FILE, &bytes).map_err(TakeError::State);
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.unwrap_or_else(|e| Err(TakeError::Cut(e)));
        let next = Box::new(next);
        match written {
            Ok(()) => *held = Held::Known(next, Box::new(signed.clone())),
            Err(_) if next.frozen => *held = Held::Unwritten(next),
            Err(_) => {}
        }
        written.map(|()| revision)
    }

    /// Holds this node as it is while a step is begun.
    ///
    /// # Errors
    /// Why nothing is begun here.
    pub async fn begin(&self) -> Result<Begin<'_>, String> {
        let held = self.0.held.read().await;
        match why(&held) {
            Some(why) => Err(why),
            None => Ok(Begin { _held: held }),
        }
    }

    /// Why nothing is begun here, if so.
    pub async fn reason(&self) -> Option<String> {
        why(&*self.0.held.read().await)
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::ids::{ClusterId, Serial};
    use muster_protocol::keys::{BrokerKey, BrokerKeyState, KeyList, PrivateKey};
    use muster_protocol::units::Timestamp;
    use muster_protocol::wire::{Assignment, Credentials};

    use super::*;
    use crate::identity::{Enrolled, Enrolment, NodeKeys};

    #[test]
    fn a_file_that_cannot_be_read_is_a_freeze() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = StateDir::create(tmp.path()).unwrap();
        assert_eq!(reason(&dir), None);
        dir.write(FILE, b"{").unwrap();
        assert!(reason(&dir).unwrap().starts_with("frozen: "));
    }

    /// A node in `dir`, and the key of its broker.
    fn node(dir: &StateDir) -> (Frost, PrivateKey) {
        let (root, broker) = (PrivateKey::generate(), PrivateKey::generate());
        let (cluster, keys) = (ClusterId::from_bytes([1; 16]), NodeKeys::generate());
        let list = KeyList {
            cluster,
            epoch: 1,
            root: root.public(),
            keys: vec![BrokerKey {
                key: broker.public(),
                state: BrokerKeyState::Active,
                added: Timestamp::UNIX_EPOCH,
            }],
            issued: Timestamp::UNIX_EPOCH,
        };
        keys.save(dir).unwrap();
        let stored = Enrolment {
            url: "http://127.0.0.1:1".to_owned(),
            others: Vec::new(),
            root: root.public(),
            keys: list.sign(&root),
            ca: None,
            credentials: Credentials {
                cluster,
                serial: Serial(3),
                node_key: keys.identity.public(),
                assignment: Assignment {
                    revision: 1,
                    name: "web-01".parse().unwrap(),
                    roles: Vec::new(),
                    labels: Default::default(),
                },
                nats_urls: Vec::new(),
                brokers: Vec::new(),
                nats_ca: None,
                jwt: String::new(),
                expires: Timestamp::UNIX_EPOCH,
                issued: Timestamp::UNIX_EPOCH,
            },
        };
        Enrolled::new(stored).unwrap().save(dir).unwrap();
        let identity = Identity::load(dir).unwrap();
        (Frost::load(dir.clone(), identity), broker)
    }

    fn freeze(revision: u64, frozen: bool) -> Freeze {
        Freeze {
            cluster: ClusterId::from_bytes([1; 16]),
            revision,
            frozen,
            why: "the switch".into(),
            by: "ana".parse().unwrap(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    /// It stops at once, and says that it goes by it only when the disk has it.
    #[tokio::test]
    async fn what_cannot_be_written_down_stops_and_is_not_told_as_known() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("state");
        let dir = StateDir::create(&path).unwrap();
        let (frost, key) = node(&dir);
        let away = tmp.path().join("away");
        std::fs::rename(&path, &away).unwrap();
        let stop = freeze(5, true).sign(&key);
        for _ in 0..2 {
            let error = frost.take(&stop).await.unwrap_err();
            assert!(matches!(error, TakeError::State(_)), "{error}");
            assert!(frost.begin().await.is_err());
            assert_eq!(frost.mark().await, FreezeMark::default());
        }
        // The end of it that cannot be written down ends nothing.
        frost.take(&freeze(6, false).sign(&key)).await.unwrap_err();
        assert!(frost.begin().await.is_err());
        std::fs::rename(&away, &path).unwrap();
        assert_eq!(frost.take(&stop).await.unwrap(), 5);
        assert_eq!(frost.mark().await.revision, 5);
        assert_eq!(reason(&dir).unwrap(), "frozen by ana: the switch");
        // Nothing of before ends it.
        frost.take(&freeze(4, false).sign(&key)).await.unwrap_err();
        assert!(frost.begin().await.is_err());
        assert_eq!(frost.take(&freeze(6, false).sign(&key)).await.unwrap(), 6);
        assert!(frost.begin().await.is_ok());
    }
}
