//! Identities that outlive the process: one file for the whole fleet, a JSON
//! line for each enrolment and each change, for its owner's eyes only.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use data_encoding::BASE64URL_NOPAD;
use muster_agent::identity::NodeKeys;
use muster_protocol::keys::{KeyList, PrivateKey, PublicKey, SignedText};
use muster_protocol::names::NodeName;
use muster_protocol::wire::Credentials;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::node::Member;

const FILE: &str = "fleet.jsonl";
const LOCK: &str = "lock";

/// Why identities cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system said no.
    #[error("cannot use {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another simulation runs on it.
    #[error("another muster-fleet-sim uses {0}; stop it first, or use another --state")]
    Locked(PathBuf),
    /// A line that this program did not write.
    #[error("{path}, line {line} is damaged: {why}; remove the directory to enrol a new fleet")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// In which way.
        why: String,
    },
}

/// What all nodes learn at their enrolment.
#[derive(Clone, Debug)]
pub struct Common {
    /// The root key.
    pub root: PublicKey,
    /// The certificate authority of the broker's HTTPS, PEM.
    pub ca: Option<String>,
    /// Where NATS is.
    pub nats_urls: Vec<String>,
    /// Its certificate authority, PEM.
    pub nats_ca: Option<String>,
}

/// A private key's text, wiped after use.
struct Hidden(Zeroizing<String>);

impl Serialize for Hidden {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(|text| Self(Zeroizing::new(text)))
    }
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Line {
    name: Option<NodeName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<Hidden>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nats: Option<Hidden>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<PublicKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<SignedText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials: Option<Credentials>,
}

/// Where identities are kept; nowhere, without `--state`.
#[derive(Clone, Debug)]
pub struct Store {
    open: Option<Arc<Open>>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: Mutex<File>,
    _lock: File,
}

impl Store {
    /// Keeps nothing.
    #[must_use]
    pub fn nowhere() -> Self {
        Self { open: None }
    }

    /// Opens a directory, or makes it, and reads what it holds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(dir: &Path) -> Result<(Self, Vec<Member>, Option<Common>), StoreError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(dir).map_err(io(dir))?;
        let private = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(0o600);
            options.open(path).map_err(io(path))
        };
        let lock = private(&dir.join(LOCK))?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => StoreError::Locked(dir.to_owned()),
            TryLockError::Error(source) => io(&dir.join(LOCK))(source),
        })?;
        let path = dir.join(FILE);
        let file = private(&path)?;
        let (members, common) = read(&path, &file)?;
        let open = Open {
            path,
            file: Mutex::new(file),
            _lock: lock,
        };
        let store = Self {
            open: Some(Arc::new(open)),
        };
        Ok((store, members, common))
    }

    /// Keeps a new member.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn add(
        &self,
        member: &Member,
        common: &Common,
        keys: &SignedText,
        credentials: &Credentials,
    ) -> Result<(), StoreError> {
        let seed = member.keys.identity.seed();
        let nats_seed = member.keys.nats.seed().ok();
        self.write(|| Line {
            name: Some(member.assignment.name.clone()),
            identity: Some(Hidden(Zeroizing::new(
                BASE64URL_NOPAD.encode(seed.as_slice()),
            ))),
            nats: nats_seed.map(|seed| Hidden(Zeroizing::new(seed))),
            root: Some(common.root),
            ca: common.ca.clone(),
            keys: Some(keys.clone()),
            credentials: Some(credentials.clone()),
        })
    }

    /// Keeps what changed for a member.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn update(
        &self,
        name: &NodeName,
        keys: &SignedText,
        credentials: Option<&Credentials>,
    ) -> Result<(), StoreError> {
        self.write(|| Line {
            name: Some(name.clone()),
            keys: Some(keys.clone()),
            credentials: credentials.cloned(),
            ..Line::default()
        })
    }

    fn write(&self, line: impl FnOnce() -> Line) -> Result<(), StoreError> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        let mut text = Zeroizing::new(serde_json::to_vec(&line()).unwrap_or_default());
        text.push(b'\n');
        let mut file = open.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&text).map_err(|source| StoreError::Io {
            path: open.path.clone(),
            source,
        })
    }
}

fn read(path: &Path, file: &File) -> Result<(Vec<Member>, Option<Common>), StoreError> {
    let mut order: Vec<NodeName> = Vec::new();
    let mut lines: HashMap<NodeName, Line> = HashMap::new();
    let mut number = 0;
    let damaged = |line: usize, why: String| StoreError::Damaged {
        path: path.to_owned(),
        line,
        why,
    };
    let io = |source| StoreError::Io {
        path: path.to_owned(),
        source,
    };
    let mut reader = BufReader::new(file);
    // Where the last whole line ends.
    let mut whole = 0;
    loop {
        let mut text = Zeroizing::new(Vec::new());
        let bytes = reader.read_until(b'\n', &mut text).map_err(io)?;
        if bytes == 0 {
            break;
        }
        number += 1;
        let line: Line = match serde_json::from_slice(&text) {
            Ok(line) => line,
            // The process ended while it wrote: what it wrote of this line goes.
            Err(_) if !text.ends_with(b"\n") => {
                file.set_len(whole).map_err(io)?;
                break;
            }
            Err(e) => return Err(damaged(number, e.to_string())),
        };
        whole += bytes as u64;
        let Some(name) = line.name.clone() else {
            return Err(damaged(number, "it names no node".into()));
        };
        match lines.get_mut(&name) {
            None => {
                order.push(name.clone());
                lines.insert(name, line);
            }
            Some(held) if line.identity.is_some() => *held = line,
            Some(held) => {
                held.keys = line.keys.or(held.keys.take());
                held.credentials = line.credentials.or(held.credentials.take());
            }
        }
    }
    let mut members = Vec::new();
    let mut common = None;
    for name in &order {
        let Some(line) = lines.remove(name) else {
            continue;
        };
        let fail = || damaged(0, format!("what it holds of {name} is not whole"));
        let (member, of_all) = line.member().ok_or_else(fail)?;
        members.push(member);
        common = Some(of_all);
    }
    Ok((members, common))
}

impl Line {
    fn member(self) -> Option<(Member, Common)> {
        let seed = Zeroizing::new(BASE64URL_NOPAD.decode(self.identity?.0.as_bytes()).ok()?);
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(seed.as_slice().try_into().ok()?);
        let nats = nkeys::KeyPair::from_seed(&self.nats?.0).ok()?;
        let keys = NodeKeys {
            identity: PrivateKey::from_seed(&seed),
            nats: Arc::new(nats),
        };
        let root = self.root?;
        let credentials = self.credentials?;
        let common = Common {
            root,
            ca: self.ca,
            nats_urls: credentials.nats_urls.clone(),
            nats_ca: credentials.nats_ca.clone(),
        };
        let list = KeyList::open(&self.keys?, &root).ok()?;
        Some((member(keys, list, credentials), common))
    }
}

/// A member from what the broker gave.
#[must_use]
pub fn member(keys: NodeKeys, list: KeyList, credentials: Credentials) -> Member {
    Member {
        keys,
        serial: credentials.serial,
        assignment: credentials.assignment,
        list,
        jwt: credentials.jwt,
        issued: credentials.issued,
        expires: credentials.expires,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::ids::{ClusterId, Serial};
    use muster_protocol::units::Timestamp;
    use muster_protocol::wire::Assignment;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn identities_outlive_the_process_and_a_torn_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = PrivateKey::generate();
        let now = Timestamp::now();
        let list = |epoch| {
            let list = KeyList {
                cluster: ClusterId::from_bytes([1; 16]),
                epoch,
                root: root.public(),
                keys: Vec::new(),
                issued: now,
            };
            let signed = list.sign(&root);
            (list, signed)
        };
        let common = Common {
            root: root.public(),
            ca: Some("pem".into()),
            nats_urls: vec!["nats://127.0.0.1:1".into()],
            nats_ca: None,
        };
        let make = |serial: u32| {
            let keys = NodeKeys::generate();
            let credentials = Credentials {
                cluster: ClusterId::from_bytes([1; 16]),
                serial: Serial(serial),
                node_key: keys.identity.public(),
                assignment: Assignment {
                    revision: 1,
                    name: format!("sim-{serial}").parse().expect("a name"),
                    roles: Vec::new(),
                    labels: Default::default(),
                },
                nats_urls: common.nats_urls.clone(),
                brokers: Vec::new(),
                nats_ca: None,
                jwt: "first".into(),
                expires: now,
                issued: now,
            };
            (keys, credentials)
        };
        let path = dir.path().join("state");
        let (store, none, _) = Store::open(&path).expect("opens");
        assert!(none.is_empty());
        assert!(matches!(Store::open(&path), Err(StoreError::Locked(_))));
        let (first, signed) = list(1);
        for serial in [1, 2] {
            let (keys, mut credentials) = make(serial);
            let new = member(keys, first.clone(), credentials.clone());
            store
                .add(&new, &common, &signed, &credentials)
                .expect("kept");
            credentials.jwt = "second".into();
            let name = &new.assignment.name;
            store
                .update(name, &signed, Some(&credentials))
                .expect("kept");
            store.update(name, &list(2).1, None).expect("kept");
        }
        drop(store);
        let file = path.join(FILE);
        let mode = std::fs::metadata(&file)
            .expect("is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut torn = OpenOptions::new().append(true).open(&file).expect("opens");
        torn.write_all(b"{\"name\":\"sim-3\",\"iden")
            .expect("writes");
        drop(torn);
        for _ in 0..2 {
            let (store, members, found) = Store::open(&path).expect("opens");
            assert_eq!(members.len(), 2);
            assert_eq!(members[1].jwt, "second");
            assert_eq!(members[1].list.epoch, 2);
            assert_eq!(members[1].assignment.name.as_str(), "sim-2");
            assert_eq!(found.expect("common").nats_urls, common.nats_urls);
            let (_, credentials) = make(2);
            let name = &credentials.assignment.name;
            store.update(name, &list(2).1, None).expect("kept");
        }
        std::fs::write(&file, "nonsense\n{}\n").expect("writes");
        assert!(matches!(
            Store::open(&path),
            Err(StoreError::Damaged { line: 1, .. })
        ));
    }
}
