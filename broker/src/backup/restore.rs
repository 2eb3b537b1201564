//! From a backup to a state directory, without a network.
//!
//! Everything is checked before anything is written. `version` is written
//! last: a directory in which a restore was interrupted is no state directory,
//! and is refused as such.

use std::fs::{self, File};
use std::io::{self, BufReader, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use muster_protocol::ids::{ClusterId, InstanceId, random_bytes};
use muster_protocol::keys::{
    BrokerKey, BrokerKeyState, KeyList, KeyListError, PrivateKey, SignedText,
};
use muster_protocol::text::printable;
use serde::{Deserialize, Serialize};

use super::Leap;
use super::format::{FormatError, Head, Manifest, ReadError, Visitor, check, read};
use super::take::{FILE, STREAM};
use crate::config::{Config, ConfigError};
use crate::state_dir::{StateDir, StateDirError, make_dir, write_atomic};

/// Where a restored directory keeps what is yet to be put into NATS.
pub(super) const PENDING: &str = "restore";
/// The backup, in [`PENDING`].
pub(super) const ARCHIVE: &str = "backup";
/// The plan, in [`PENDING`].
pub(super) const PLAN: &str = "restore/plan.json";
/// The list of broker keys as the backup had it, in the state directory.
pub(crate) const BEFORE: &str = "key-list-before.json";
/// Largest file of a backup that belongs into the state directory.
const MAX_FILE: usize = 1024 * 1024;
/// What may be in a directory that is empty to people.
const NOTHING: &str = "lost+found";

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The file cannot be opened.
    #[error("cannot read the backup {}: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not sound.
    #[error("the backup {} cannot be restored: {source}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why, and in which part.
        source: FormatError,
    },
    /// It holds what no backup of this version holds.
    #[error(
        "the backup {} cannot be restored: the part `{part}` {what}", .path.display()
    )]
    Part {
        /// The file.
        path: PathBuf,
        /// Which part.
        part: String,
        /// What is wrong.
        what: String,
    },
    /// There is something.
    #[error(
        "{} is not empty (it holds `{example}`), and a restore never writes over anything; give an \
         empty or new directory", .path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// A name in it.
        example: String,
    },
    /// The keys in it do not fit each other.
    #[error("the list of broker keys in the backup is refused: {0}")]
    Keys(#[from] KeyListError),
    /// The broker's settings in it.
    #[error("the settings in the backup: {0}")]
    Config(#[from] ConfigError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateDirError),
}

/// What is yet to be done when a broker starts on a restored directory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// A random id: which restore this is, for what it leaves in NATS.
    pub id: InstanceId,
    /// The cluster.
    pub cluster: ClusterId,
    /// When the backup was made.
    pub made: Timestamp,
    /// When it was restored.
    pub restored: Timestamp,
    /// How far to jump ahead.
    pub leap: Leap,
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What the backup says of itself.
    pub head: Head,
    /// What it holds.
    pub manifest: Manifest,
    /// What is yet to be done.
    pub plan: Plan,
}

/// Makes the state directory `dir` of the backup `file`.
///
/// # Errors
/// [`RestoreError`]; then nothing is left in `dir`.
pub fn restore(file: &Path, dir: &Path) -> Result<Restored, RestoreError> {
    let open = |source| RestoreError::Open {
        path: file.to_owned(),
        source,
    };
    let mut archive = File::open(file).map_err(open)?;
    if archive.metadata().map_err(open)?.is_dir() {
        return Err(open(io::ErrorKind::IsADirectory.into()));
    }
    refuse_used(dir)?;
    // First the whole of it, then what is in it.
    check(BufReader::new(&archive)).map_err(|source| RestoreError::Format {
        path: file.to_owned(),
        source,
    })?;
    archive.rewind().map_err(open)?;
    let mut files = Files::default();
    let (head, manifest) =
        read(BufReader::new(&archive), &mut files).map_err(|error| match error {
            ReadError::Format(source) => RestoreError::Format {
                path: file.to_owned(),
                source,
            },
            ReadError::Visitor(what) => RestoreError::Part {
                path: file.to_owned(),
                part: printable(&files.part, 300),
                what,
            },
        })?;
    for needed in ["keys/cluster.json", "keys/nats-keys.json", "key-list.json"] {
        if files.get(needed).is_none() {
            return Err(RestoreError::Part {
                path: file.to_owned(),
                part: format!("{FILE}{needed}"),
                what: "is missing".into(),
            });
        }
    }
    archive.rewind().map_err(open)?;
    let existed = dir.exists();
    let now = Timestamp::now();
    let plan = Plan {
        id: InstanceId::random(),
        cluster: head.cluster,
        made: head.made,
        restored: now,
        leap: Leap::since(head.made, now),
    };
    let written = write(dir, &head, &files, &plan, &mut archive);
    if let Err(error) = written {
        clear(dir, existed);
        return Err(error);
    }
    Ok(Restored {
        head,
        manifest,
        plan,
    })
}

fn refuse_used(dir: &Path) -> Result<(), RestoreError> {
    let at = |source| StateDirError::Io {
        action: "read",
        path: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(at(e).into()),
    };
    for entry in entries {
        let name = entry.map_err(at)?.file_name();
        if name != NOTHING {
            return Err(RestoreError::NotEmpty {
                path: dir.to_owned(),
                example: printable(&name.to_string_lossy(), 60),
            });
        }
    }
    Ok(())
}

/// Takes away what a failed restore has written.
fn clear(dir: &Path, existed: bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name() == NOTHING {
            continue;
        }
        let path = entry.path();
        let _ = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
    }
    if !existed {
        let _ = fs::remove_dir(dir);
    }
}

fn write(
    dir: &Path,
    head: &Head,
    files: &Files,
    plan: &Plan,
    archive: &mut File,
) -> Result<(), RestoreError> {
    make_dir(dir)?;
    for sub in ["keys", "nats", PENDING] {
        make_dir(&dir.join(sub))?;
    }
    for (path, bytes) in &files.all {
        match path.as_str() {
            // Written anew below.
            "key-list.json" | "broker.toml" => {}
            _ => write_atomic(&dir.join(path), bytes, 0o600)?,
        }
    }
    if let Some(text) = files.get("broker.toml") {
        let path = dir.join("broker.toml");
        let mut config = Config::parse(&String::from_utf8_lossy(text), &path)?;
        config.state = std::path::absolute(dir).map_err(|source| StateDirError::Io {
            action: "find",
            path: dir.to_owned(),
            source,
        })?;
        write_atomic(&path, config.to_toml()?.as_bytes(), 0o600)?;
    }
    let state = StateDir::unopened(dir);
    let root = state.root()?;
    if root.cluster != head.cluster {
        return Err(StateDirError::Damaged {
            path: dir.join("keys/cluster.json"),
            what: "it is of another cluster than the backup".into(),
        }
        .into());
    }
    // Whoever ran the cluster in the time that is forgotten has the old keys,
    // and some may have been revoked since: none of them is obeyed any more.
    let key = PrivateKey::generate();
    state.store_broker_key(&key)?;
    let signed = stored_list(files)?;
    let list = successor(&signed, &root, &key, plan)?;
    state.store("key-list.json", &list.sign(&root.key))?;
    // Which of them had been revoked already is not forgotten.
    state.store(BEFORE, &signed)?;
    // Another holder: the old one may still be running somewhere.
    let mut holder = state.holder()?;
    holder.epoch = head.broker_epoch.saturating_add(plan.leap.epochs);
    state.store_holder(&holder)?;
    copy(archive, &dir.join(PENDING).join(ARCHIVE))?;
    state.store(PLAN, plan)?;
    write_atomic(
        &dir.join("version"),
        format!("{}\n", crate::state_dir::FORMAT).as_bytes(),
        0o644,
    )?;
    Ok(())
}

/// The list of broker keys in the backup.
fn stored_list(files: &Files) -> Result<SignedText, StateDirError> {
    files
        .get("key-list.json")
        .and_then(|text| serde_json::from_slice(text).ok())
        .ok_or_else(|| StateDirError::Damaged {
            path: "key-list.json".into(),
            what: "it is not a list of keys".into(),
        })
}

/// The list of broker keys of the restored cluster: one new key is active.
fn successor(
    signed: &SignedText,
    root: &crate::state_dir::Root,
    key: &PrivateKey,
    plan: &Plan,
) -> Result<KeyList, RestoreError> {
    let mut list = KeyList::open(signed, &root.key.public())?;
    let now = muster_protocol::units::Timestamp::now();
    for old in &mut list.keys {
        old.state = BrokerKeyState::Revoked;
    }
    list.keys.push(BrokerKey {
        key: key.public(),
        state: BrokerKeyState::Active,
        added: now,
    });
    list.epoch = list.epoch.saturating_add(plan.leap.epochs);
    list.issued = now;
    Ok(list)
}

fn copy(from: &mut File, to: &Path) -> Result<(), StateDirError> {
    let at = |source| StateDirError::Io {
        action: "write",
        path: to.to_owned(),
        source,
    };
    let mut out = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(at)?;
    io::copy(from, &mut out).map_err(at)?;
    out.flush().and_then(|()| out.sync_all()).map_err(at)
}

/// A name beside the file `path`, for what is not finished.
#[must_use]
pub fn unfinished(path: &Path) -> PathBuf {
    let random = data_encoding::BASE64URL_NOPAD.encode(&random_bytes::<6>());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{random}"))
}

/// The files of a backup; that its streams can be read is checked too.
#[derive(Debug, Default)]
struct Files {
    all: Vec<(String, Vec<u8>)>,
    part: String,
    pieces: u64,
}

impl Files {
    fn get(&self, path: &str) -> Option<&[u8]> {
        self.all
            .iter()
            .find(|(name, _)| name == path)
            .map(|(_, bytes)| bytes.as_slice())
    }
}

impl Visitor for Files {
    type Error = String;

    fn part(&mut self, name: &str) -> Result<(), String> {
        name.clone_into(&mut self.part);
        self.pieces = 0;
        if let Some(path) = name.strip_prefix(FILE) {
            if !belongs(path) {
                return Err("is no file of a state directory".into());
            }
            self.all.push((path.to_owned(), Vec::new()));
            return Ok(());
        }
        match name.strip_prefix(STREAM) {
            Some(stream) if super::import::is_ours(stream) => Ok(()),
            _ => Err("is not known to this muster; was it written by a newer one?".into()),
        }
    }

    fn data(&mut self, data: &[u8]) -> Result<(), String> {
        self.pieces += 1;
        if self.part.starts_with(FILE) {
            let Some((_, bytes)) = self.all.last_mut() else {
                return Err("has no name".into());
            };
            if bytes.len() + data.len() > MAX_FILE {
                return Err("is too large".into());
            }
            bytes.extend_from_slice(data);
            return Ok(());
        }
        super::import::readable(&self.part[STREAM.len()..], self.pieces == 1, data)
    }

    fn end(&mut self) -> Result<(), String> {
        if self.pieces == 0 {
            return Err("is empty".into());
        }
        Ok(())
    }
}

/// Whether a path of a backup may be written into a state directory.
fn belongs(path: &str) -> bool {
    match path {
        "admin.token" | "key-list.json" | "broker.toml" | "nats/port" => true,
        path => path.strip_prefix("keys/").is_some_and(|name| {
            !name.is_empty()
                && !name.starts_with('.')
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_state_directory_are_written() {
        for good in [
            "admin.token",
            "keys/ca.pem",
            "keys/nats-keys.json",
            "nats/port",
        ] {
            assert!(belongs(good), "{good}");
        }
        for bad in [
            "",
            "version",
            "keys/",
            "keys/..",
            "keys/../x",
            "keys/a/b",
            "/etc/passwd",
            "../x",
            "nats/nats.conf",
            "holder.json",
        ] {
            assert!(!belongs(bad), "{bad}");
        }
    }
}
