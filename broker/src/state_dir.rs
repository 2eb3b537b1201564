//! What a broker keeps on its own disk: its format version, its lock, its
//! keys. Everything else is in NATS.
//!
//! ```text
//! DIR/version          format of this directory
//! DIR/broker.lock      held while a broker runs; holds its process id
//! DIR/admin.token      the first API token, mode 0600
//! DIR/holder.json      who this broker is to the lease, and its highest epoch
//! DIR/key-list.json    the last list of broker keys, signed by the root key
//! DIR/keys/            mode 0700: cluster.json (cluster id and root key),
//!                      broker-<id>.key, nats-keys.json, ca.key, ca.pem
//! DIR/tls/             certificates that the CA has signed, with their keys
//! DIR/nats/            the supervised NATS server, with `muster up`
//! DIR/restore/         what of a backup is yet to be put into NATS
//! ```
//!
//! Another broker of the same cluster has a directory of its own and a copy
//! of `keys/`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use muster_protocol::ids::{ClusterId, InstanceId, random_bytes};
use muster_protocol::keys::{KeyId, PrivateKey, PublicKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

/// The format of the directory that this version writes, and the newest that
/// it reads.
pub const FORMAT: u32 = 1;

/// No file of a state directory that is read whole is larger.
const MAX_FILE: u64 = 1024 * 1024;

/// What may be in a directory that has no version file yet: made by `muster
/// up` just before, or by a mount.
const HARMLESS: &[&str] = &[
    "up.lock",
    "up.json",
    "run",
    "log",
    "agents",
    "lost+found",
    "broker.toml",
    "nats",
];

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateDirError {
    /// Written by a newer muster.
    #[error(
        "the state directory {} has format {found}, this muster knows formats up to {FORMAT}; \
         run the newer muster that made it, or give another directory",
        .path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Something else's directory.
    #[error(
        "{} is not empty and is not a state directory of muster (it holds `{example}`); \
         give an empty or new directory",
        .path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// A name in it.
        example: String,
    },
    /// Another broker runs on it.
    #[error(
        "another broker (process {pid}) runs on the state directory {}; end it first, or give \
         this one a directory of its own",
        .path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The other's process id, as it wrote it.
        pid: String,
    },
    /// A private file that others may read.
    #[error(
        "{} has mode {mode:o}, others may read it; `chmod 600` it, and if somebody else could \
         have read it, rotate the keys",
        .path.display()
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file that is not what muster wrote.
    #[error("{} is damaged ({what}); restore it from a backup", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong; never holds secrets.
        what: String,
    },
    /// The system said no.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// `read`, `write`, `make`, …
        action: &'static str,
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The NATS keys.
    #[error(transparent)]
    Nats(#[from] crate::nats::keys::KeyError),
}

fn io_at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StateDirError + 'a {
    move |source| StateDirError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// An existing state directory of a known format.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// The right to run a broker on a state directory; ends when it is dropped or
/// the process ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// The cluster's identity.
#[derive(Clone, Debug)]
pub struct Root {
    /// The cluster.
    pub cluster: ClusterId,
    /// The root key: signs the list of broker keys, and the certificate
    /// authority.
    pub key: PrivateKey,
}

/// Who this broker is to the lease.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// A random id; the same after a restart.
    pub id: InstanceId,
    /// The machine that it was made on: a copied directory is another holder.
    pub machine: String,
    /// The highest epoch that this broker has had or seen.
    pub epoch: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    version: u32,
    cluster: ClusterId,
    root: String,
}

impl Drop for ClusterFile {
    fn drop(&mut self) {
        self.root.zeroize();
    }
}

impl StateDir {
    /// Opens a state directory; makes it when it does not exist or is empty.
    /// Does not lock it: several processes may look at one.
    ///
    /// # Errors
    /// [`StateDirError`].
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        make_dir(path)?;
        let version = path.join("version");
        match read_small(&version) {
            Ok(text) => {
                let found: u32 = text.trim().parse().map_err(|_| StateDirError::Damaged {
                    path: version.clone(),
                    what: "it does not hold a number".into(),
                })?;
                if found > FORMAT {
                    return Err(StateDirError::Newer {
                        path: path.to_owned(),
                        found,
                    });
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                refuse_foreign(path)?;
                write_atomic(&version, format!("{FORMAT}\n").as_bytes(), 0o644)?;
            }
            Err(e) => return Err(io_at("read", &version)(e)),
        }
        let dir = Self {
            root: path.to_owned(),
        };
        make_dir(&dir.keys())?;
        let keys = dir.keys();
        let mode = fs::metadata(&keys)
            .map_err(io_at("read", &keys))?
            .permissions()
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            return Err(StateDirError::TooOpen { path: keys, mode });
        }
        Ok(dir)
    }

    /// A directory that is being made: nothing of it is looked at.
    pub(crate) fn unopened(path: &Path) -> Self {
        Self {
            root: path.to_owned(),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where the keys are.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// Where the first API token is written.
    #[must_use]
    pub fn admin_token(&self) -> PathBuf {
        self.root.join("admin.token")
    }

    /// Takes the directory for one broker.
    ///
    /// # Errors
    /// [`StateDirError::Locked`] when another process has it.
    pub fn lock(&self) -> Result<StateLock, StateDirError> {
        let path = self.root.join("broker.lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_at("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = (&file).take(20).read_to_string(&mut pid);
                let pid = pid.trim();
                let known = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
                let pid = if known {
                    pid.to_owned()
                } else {
                    "of unknown id".to_owned()
                };
                return Err(StateDirError::Locked {
                    path: self.root.clone(),
                    pid,
                });
            }
            Err(TryLockError::Error(e)) => return Err(io_at("lock", &path)(e)),
        }
        let wrote = (|| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        })();
        wrote.map_err(io_at("write", &path))?;
        Ok(StateLock { _file: file })
    }

    /// The cluster's identity; made at the first call.
    ///
    /// # Errors
    /// [`StateDirError`].
    pub fn root(&self) -> Result<Root, StateDirError> {
        let path = self.keys().join("cluster.json");
        if let Some(root) = self.load_root(&path)? {
            return Ok(root);
        }
        let key = PrivateKey::generate();
        let file = ClusterFile {
            version: 1,
            cluster: ClusterId::random(),
            root: BASE64URL_NOPAD.encode(&*key.seed()),
        };
        let text = Zeroizing::new(
            serde_json::to_vec_pretty(&file).map_err(|e| io_at("write", &path)(e.into()))?,
        );
        write_new(&path, &text, 0o600)?;
        // Whoever was first, its key counts.
        self.load_root(&path)?
            .ok_or_else(|| StateDirError::Damaged {
                path,
                what: "it is gone".into(),
            })
    }

    fn load_root(&self, path: &Path) -> Result<Option<Root>, StateDirError> {
        let Some(text) = read_private(path)? else {
            return Ok(None);
        };
        let damaged = |what: &str| StateDirError::Damaged {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let file: ClusterFile =
            serde_json::from_str(&text).map_err(|_| damaged("it is not a cluster file"))?;
        if file.version != 1 {
            return Err(damaged("it has a version that this muster does not know"));
        }
        let key = seed(&file.root).ok_or_else(|| damaged("the root key is not a key"))?;
        Ok(Some(Root {
            cluster: file.cluster,
            key,
        }))
    }

    /// Stores a broker's signing key.
    ///
    /// # Errors
    /// [`StateDirError::Io`].
    pub fn store_broker_key(&self, key: &PrivateKey) -> Result<(), StateDirError> {
        let text = Zeroizing::new(BASE64URL_NOPAD.encode(&*key.seed()));
        write_atomic(
            &self.broker_key_path(key.public().id()),
            text.as_bytes(),
            0o600,
        )
    }

    /// A broker's signing key, if this directory holds it.
    ///
    /// # Errors
    /// [`StateDirError`]: unreadable, or not the key that its name says.
    pub fn broker_key(&self, public: &PublicKey) -> Result<Option<PrivateKey>, StateDirError> {
        let path = self.broker_key_path(public.id());
        let Some(text) = read_private(&path)? else {
            return Ok(None);
        };
        match seed(&text) {
            Some(key) if key.public() == *public => Ok(Some(key)),
            _ => Err(StateDirError::Damaged {
                path,
                what: "it is not the key that its name says".into(),
            }),
        }
    }

    /// Throws a revoked signing key away.
    ///
    /// # Errors
    /// [`StateDirError::Io`].
    pub fn drop_broker_key(&self, id: KeyId) -> Result<(), StateDirError> {
        let path = self.broker_key_path(id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_at("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    fn broker_key_path(&self, id: KeyId) -> PathBuf {
        self.keys().join(format!("broker-{id}.key"))
    }

    /// Who this broker is to the lease; made at the first call, and anew on
    /// another machine.
    ///
    /// # Errors
    /// [`StateDirError`].
    pub fn holder(&self) -> Result<Holder, StateDirError> {
        let machine = machine();
        if let Some(holder) = self.load::<Holder>("holder.json")? {
            if holder.machine == machine {
                return Ok(holder);
            }
            let holder = Holder {
                id: InstanceId::random(),
                machine,
                epoch: holder.epoch,
            };
            self.store_holder(&holder)?;
            return Ok(holder);
        }
        let holder = Holder {
            id: InstanceId::random(),
            machine,
            epoch: 0,
        };
        self.store_holder(&holder)?;
        Ok(holder)
    }

    /// Remembers the holder, with the highest epoch.
    ///
    /// # Errors
    /// [`StateDirError::Io`].
    pub fn store_holder(&self, holder: &Holder) -> Result<(), StateDirError> {
        self.store("holder.json", holder)
    }

    /// A JSON file of the directory; `None` when there is none.
    ///
    /// # Errors
    /// [`StateDirError`].
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateDirError> {
        let path = self.root.join(name);
        match read_small(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|e| StateDirError::Damaged {
                    path,
                    what: e.to_string(),
                }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_at("read", &path)(e)),
        }
    }

    /// Stores a JSON file, whole or not at all.
    ///
    /// # Errors
    /// [`StateDirError::Io`].
    pub fn store<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateDirError> {
        let path = self.root.join(name);
        let text = serde_json::to_vec_pretty(value).map_err(|e| io_at("write", &path)(e.into()))?;
        write_atomic(&path, &text, 0o600)
    }
}

fn seed(text: &str) -> Option<PrivateKey> {
    let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(text.trim().as_bytes()).ok()?);
    let mut seed = Zeroizing::new([0u8; 32]);
    if bytes.len() != seed.len() {
        return None;
    }
    seed.copy_from_slice(&bytes);
    Some(PrivateKey::from_seed(&seed))
}

/// Something that differs between machines; empty where nothing is known.
fn machine() -> String {
    read_small(Path::new("/etc/machine-id"))
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Makes a directory, and those above it, that only its owner can enter. An
/// existing one is left as it is.
pub(crate) fn make_dir(path: &Path) -> Result<(), StateDirError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_at("make", path))
}

fn refuse_foreign(path: &Path) -> Result<(), StateDirError> {
    for entry in fs::read_dir(path).map_err(io_at("read", path))? {
        let name = entry.map_err(io_at("read", path))?.file_name();
        let name = name.to_string_lossy();
        if !HARMLESS.contains(&&*name) && !name.starts_with(".version.") {
            let example = muster_protocol::text::printable(&name, 60);
            return Err(StateDirError::Foreign {
                path: path.to_owned(),
                example,
            });
        }
    }
    Ok(())
}

fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// A file that only its owner may read; `None` when there is none.
pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, StateDirError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_at("read", path)(e)),
    };
    let mode = file
        .metadata()
        .map_err(io_at("read", path))?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateDirError::TooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(io_at("read", path))?;
    Ok(Some(text))
}

/// Replaces a file, whole or not at all, also in a power cut.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateDirError> {
    let (temporary, dir) = beside(path);
    let written = write_beside(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    finish(written, &temporary, path, dir)
}

/// Writes a file that does not exist yet; one that does is left alone.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateDirError> {
    let (temporary, dir) = beside(path);
    // A hard link, unlike a rename, fails if the name is taken.
    let written = write_beside(&temporary, bytes, mode).and_then(|()| {
        match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    });
    let _ = fs::remove_file(&temporary);
    finish(written, &temporary, path, dir)
}

fn beside(path: &Path) -> (PathBuf, &Path) {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let random = BASE64URL_NOPAD.encode(&random_bytes::<6>());
    (dir.join(format!(".{name}.{random}")), dir)
}

fn write_beside(temporary: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temporary)?;
    out.write_all(bytes)?;
    out.sync_all()
}

fn finish(
    written: io::Result<()>,
    temporary: &Path,
    path: &Path,
    dir: &Path,
) -> Result<(), StateDirError> {
    if let Err(e) = written {
        let _ = fs::remove_file(temporary);
        return Err(io_at("write", path)(e));
    }
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io_at("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_once_comes_back_and_is_private() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("deep/state");
        let dir = StateDir::open(&path).unwrap();
        let root = dir.root().unwrap();
        let holder = dir.holder().unwrap();
        let key = PrivateKey::generate();
        dir.store_broker_key(&key).unwrap();
        let again = StateDir::open(&path).unwrap();
        assert_eq!(again.root().unwrap().cluster, root.cluster);
        assert_eq!(again.root().unwrap().key.public(), root.key.public());
        assert_eq!(again.holder().unwrap(), holder);
        let back = again.broker_key(&key.public()).unwrap().unwrap();
        assert_eq!(back.public(), key.public());
        assert!(again.broker_key(&root.key.public()).unwrap().is_none());
        assert_eq!(mode(&dir.keys()), 0o700);
        for entry in fs::read_dir(dir.keys()).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
        again.drop_broker_key(key.public().id()).unwrap();
        assert!(again.broker_key(&key.public()).unwrap().is_none());
    }

    #[test]
    fn a_newer_format_is_refused_with_both_versions() {
        let tmp = tempfile::tempdir().unwrap();
        StateDir::open(tmp.path()).unwrap();
        fs::write(tmp.path().join("version"), "7\n").unwrap();
        let said = StateDir::open(tmp.path()).unwrap_err().to_string();
        assert!(
            said.contains("format 7") && said.contains("up to 1") && said.contains("newer muster"),
            "{said}"
        );
        fs::write(tmp.path().join("version"), "x").unwrap();
        assert!(matches!(
            StateDir::open(tmp.path()),
            Err(StateDirError::Damaged { .. })
        ));
    }

    #[test]
    fn somebody_elses_directory_is_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("passwd"), "").unwrap();
        let said = StateDir::open(tmp.path()).unwrap_err().to_string();
        assert!(said.contains("passwd"), "{said}");
        assert!(!tmp.path().join("version").exists());
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("up.lock"), "").unwrap();
        assert!(StateDir::open(tmp.path()).is_ok());
    }

    #[test]
    fn a_second_broker_is_told_whose_it_is() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = StateDir::open(tmp.path()).unwrap();
        let lock = dir.lock().unwrap();
        let said = dir.lock().unwrap_err().to_string();
        assert!(said.contains(&std::process::id().to_string()), "{said}");
        drop(lock);
        assert!(dir.lock().is_ok());
    }

    #[test]
    fn open_keys_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = StateDir::open(tmp.path()).unwrap();
        dir.root().unwrap();
        let file = dir.keys().join("cluster.json");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(dir.root(), Err(StateDirError::TooOpen { .. })));
        fs::set_permissions(dir.keys(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(
            StateDir::open(tmp.path()),
            Err(StateDirError::TooOpen { .. })
        ));
    }

    #[test]
    fn another_machine_is_another_holder_and_keeps_the_epoch() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = StateDir::open(tmp.path()).unwrap();
        let mut holder = dir.holder().unwrap();
        holder.epoch = 9;
        holder.machine = "elsewhere".into();
        dir.store_holder(&holder).unwrap();
        let here = dir.holder().unwrap();
        assert_ne!(here.id, holder.id);
        assert_eq!(here.epoch, 9);
    }
}
