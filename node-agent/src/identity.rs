//! Who this node is: its keys, and what its enrolment gave it.

use std::fmt;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use muster_protocol::ids::Serial;
use muster_protocol::keys::{KeyList, KeyListError, PrivateKey, PublicKey, Purpose, SignedText};
use muster_protocol::units::elapsed;
use muster_protocol::wire::{Assignment, Credentials, CredentialsAnswer};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::http::BaseUrl;
use crate::state::{StateDir, StateError};

const IDENTITY_FILE: &str = "identity.key";
const NATS_FILE: &str = "nats.key";
const ENROLMENT_FILE: &str = "enrolment.json";
/// The certificate authority of NATS, where the NATS client reads it.
pub const NATS_CA_FILE: &str = "nats-ca.pem";

/// The two private keys of a node: one proves who it is, one opens the NATS
/// connection, so that no signature of one can be shown as one of the other.
#[derive(Clone)]
pub struct NodeKeys {
    /// The identity.
    pub identity: PrivateKey,
    /// The NATS user.
    pub nats: Arc<nkeys::KeyPair>,
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "NodeKeys({}, {}, [redacted])",
            self.identity.public(),
            self.nats.public_key()
        )
    }
}

impl NodeKeys {
    /// New random keys.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            identity: PrivateKey::generate(),
            nats: Arc::new(nkeys::KeyPair::new_user()),
        }
    }

    /// Writes them.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save(&self, dir: &StateDir) -> Result<(), StateError> {
        let seed = self.identity.seed();
        let text = Zeroizing::new(BASE64URL_NOPAD.encode(seed.as_slice()));
        dir.write(IDENTITY_FILE, text.as_bytes())?;
        let seed = self.nats.seed().map_err(|e| StateError::Damaged {
            path: dir.path(NATS_FILE),
            why: e.to_string(),
        })?;
        dir.write(NATS_FILE, Zeroizing::new(seed).as_bytes())
    }

    /// Reads them; `None` when there are none yet.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn load(dir: &StateDir) -> Result<Option<Self>, StateError> {
        let damaged = |name: &str, why: &str| StateError::Damaged {
            path: dir.path(name),
            why: why.into(),
        };
        let (Some(identity), Some(nats)) = (dir.read(IDENTITY_FILE)?, dir.read(NATS_FILE)?) else {
            return Ok(None);
        };
        let (identity, nats) = (Zeroizing::new(identity), Zeroizing::new(nats));
        let seed = BASE64URL_NOPAD
            .decode(identity.trim_ascii())
            .ok()
            .map(Zeroizing::new)
            .and_then(|seed| <[u8; 32]>::try_from(seed.as_slice()).ok())
            .map(Zeroizing::new)
            .ok_or_else(|| damaged(IDENTITY_FILE, "it holds no key"))?;
        let nats = std::str::from_utf8(&nats)
            .ok()
            .and_then(|text| nkeys::KeyPair::from_seed(text.trim()).ok())
            .ok_or_else(|| damaged(NATS_FILE, "it holds no NATS user key"))?;
        Ok(Some(Self {
            identity: PrivateKey::from_seed(&seed),
            nats: Arc::new(nats),
        }))
    }
}

/// What an enrolment leaves on disk.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// The broker that the node enrolled with.
    pub url: String,
    /// Other brokers that were named then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
    /// The root key that the invite named.
    pub root: PublicKey,
    /// The newest key list, as the root signed it.
    pub keys: SignedText,
    /// The certificate authority for the broker's HTTPS, PEM.
    pub ca: Option<String>,
    /// What the broker gave.
    pub credentials: Credentials,
}

impl Enrolment {
    /// Where the cluster's brokers are, in the order to try: those that the
    /// newest credentials name, then those of the enrolment.
    #[must_use]
    pub fn brokers(&self) -> Vec<String> {
        // A broker on another machine may name itself by an address that
        // means this one here.
        let here = is_loopback(&self.url);
        let named = self.credentials.brokers.iter();
        let named = named.filter(|url| here || !is_loopback(url));
        let mut urls: Vec<String> = Vec::new();
        for url in named.chain([&self.url]).chain(&self.others) {
            let url = url.trim_end_matches('/');
            if urls.iter().all(|known| known != url) {
                urls.push(url.to_owned());
            }
        }
        urls
    }
}

fn is_loopback(url: &str) -> bool {
    BaseUrl::parse(url).is_ok_and(|url| url.is_loopback())
}

/// An enrolment whose key list was checked.
#[derive(Clone)]
pub struct Enrolled {
    /// As stored.
    pub stored: Enrolment,
    /// The content of `stored.keys`.
    pub keys: KeyList,
}

impl Enrolled {
    /// Checks what was stored, or is to be.
    ///
    /// # Errors
    /// When the root key did not sign the list.
    pub fn new(stored: Enrolment) -> Result<Self, KeyListError> {
        let keys = KeyList::open(&stored.keys, &stored.root)?;
        Ok(Self { stored, keys })
    }

    /// The node's serial.
    #[must_use]
    pub fn serial(&self) -> Serial {
        self.stored.credentials.serial
    }

    /// Name, roles, labels.
    #[must_use]
    pub fn assignment(&self) -> &Assignment {
        &self.stored.credentials.assignment
    }

    /// Reads what a directory holds; `None` when the node is not enrolled.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn load(dir: &StateDir) -> Result<Option<Self>, StateError> {
        let Some(bytes) = dir.read(ENROLMENT_FILE)? else {
            return Ok(None);
        };
        let damaged = |why: String| StateError::Damaged {
            path: dir.path(ENROLMENT_FILE),
            why,
        };
        let stored = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        Self::new(stored)
            .map(Some)
            .map_err(|e| damaged(e.to_string()))
    }

    /// Writes it, and the NATS certificate authority beside it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save(&self, dir: &StateDir) -> Result<(), StateError> {
        if let Some(pem) = &self.stored.credentials.nats_ca {
            dir.write(NATS_CA_FILE, pem.as_bytes())?;
        }
        let bytes = serde_json::to_vec_pretty(&self.stored).map_err(|e| StateError::Damaged {
            path: dir.path(ENROLMENT_FILE),
            why: e.to_string(),
        })?;
        dir.write(ENROLMENT_FILE, &bytes)
    }
}

/// Why the broker's answer is not believed.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The key list.
    #[error(transparent)]
    Keys(#[from] KeyListError),
    /// The credentials' signature.
    #[error("the credentials in the broker's answer are not to be trusted: {0}")]
    Signature(#[from] muster_protocol::keys::KeyError),
    /// For somebody else.
    #[error("the credentials in the broker's answer are for another {0}")]
    Other(&'static str),
    /// Issued before those that the node has, with an older assignment.
    #[error(
        "the broker's answer is older than what this node has (revision {theirs}, here {ours}); it is a replay"
    )]
    Older {
        /// The node's revision.
        ours: u64,
        /// The answer's.
        theirs: u64,
    },
}

/// Believes an answer of the broker, or says why not: the list must be the
/// root's, a key of the list must have signed the credentials, and they must
/// be for this key in this cluster.
///
/// # Errors
/// [`AnswerError`].
pub fn open_answer(
    list: KeyList,
    answer: &CredentialsAnswer,
    node_key: &PublicKey,
) -> Result<(KeyList, Credentials), AnswerError> {
    let credentials: Credentials = list.open_signed(&answer.credentials, Purpose::Credentials)?;
    if credentials.cluster != list.cluster {
        return Err(AnswerError::Other("cluster"));
    }
    if credentials.node_key != *node_key {
        return Err(AnswerError::Other("node"));
    }
    Ok((list, credentials))
}

/// The node's identity while the agent runs: everyone sees the newest
/// enrolment, and changes reach the disk first.
#[derive(Clone)]
pub struct Identity {
    dir: StateDir,
    keys: NodeKeys,
    current: Arc<watch::Sender<Arc<Enrolled>>>,
}

impl Identity {
    /// From what is on disk.
    ///
    /// # Errors
    /// [`StateError`]; [`StateError::Absent`] when the node is not enrolled.
    pub fn load(dir: &StateDir) -> Result<Self, StateError> {
        let absent = || StateError::Absent(dir.dir().to_owned());
        let keys = NodeKeys::load(dir)?.ok_or_else(absent)?;
        let enrolled = Enrolled::load(dir)?.ok_or_else(absent)?;
        if enrolled.stored.credentials.node_key != keys.identity.public() {
            return Err(StateError::Damaged {
                path: dir.path(IDENTITY_FILE),
                why: "it is not the key that this node enrolled with".into(),
            });
        }
        let current = Arc::new(watch::Sender::new(Arc::new(enrolled)));
        Ok(Self {
            dir: dir.clone(),
            keys,
            current,
        })
    }

    /// The private keys.
    #[must_use]
    pub fn keys(&self) -> &NodeKeys {
        &self.keys
    }

    /// The state directory.
    #[must_use]
    pub fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// What holds now.
    #[must_use]
    pub fn now(&self) -> Arc<Enrolled> {
        self.current.borrow().clone()
    }

    /// Changes, as they come.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Enrolled>> {
        self.current.subscribe()
    }

    /// Takes a newer key list; whether it was news.
    ///
    /// # Errors
    /// [`TakeError`]; the old list stays.
    pub fn take_keys(&self, signed: &SignedText) -> Result<bool, TakeError> {
        let now = self.now();
        let keys = now.keys.successor(signed).map_err(AnswerError::from)?;
        if keys == now.keys {
            return Ok(false);
        }
        let mut next = Enrolled::clone(&now);
        next.keys = keys;
        next.stored.keys = signed.clone();
        self.replace(next)?;
        Ok(true)
    }

    /// Takes fresh credentials; whether anything in them is new.
    ///
    /// # Errors
    /// [`TakeError`]; the old ones stay.
    pub fn take_answer(&self, answer: &CredentialsAnswer) -> Result<bool, TakeError> {
        let now = self.now();
        let held = &now.stored.credentials;
        let list = now
            .keys
            .successor(&answer.keys)
            .map_err(AnswerError::from)?;
        let (keys, fresh) = open_answer(list, answer, &self.keys.identity.public())?;
        if fresh.serial != held.serial {
            return Err(AnswerError::Other("serial").into());
        }
        // A broker restored from a backup may go back in its revisions; what
        // was issued later is taken all the same.
        let older = !elapsed(fresh.issued, held.issued).is_zero();
        if older && fresh.assignment.revision < held.assignment.revision {
            return Err(AnswerError::Older {
                ours: held.assignment.revision,
                theirs: fresh.assignment.revision,
            }
            .into());
        }
        let changed = fresh != *held;
        let mut next = Enrolled::clone(&now);
        next.keys = keys;
        next.stored.keys = answer.keys.clone();
        next.stored.credentials = fresh;
        self.replace(next)?;
        Ok(changed)
    }

    fn replace(&self, next: Enrolled) -> Result<(), StateError> {
        next.save(&self.dir)?;
        self.current.send_replace(Arc::new(next));
        Ok(())
    }
}

/// Why something new was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It is not believed.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// It could not be stored.
    #[error(transparent)]
    State(#[from] StateError),
}
