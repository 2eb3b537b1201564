//! The state of a bot on disk: how far what is to be said was said, one file
//! a network, and a lock so that one bot uses it at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use muster_protocol::names::NetworkName;

use crate::ledger::Saved;

/// Largest file that is read: the ledger's bound, with long places.
const MAX_FILE: u64 = 4 << 20;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory cannot be used.
    #[error("the state directory {}: {why}; name another with `state`", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// The cause.
        why: io::Error,
    },
    /// Another bot has it.
    #[error("another muster-bot uses {}: stop it, or give this one another `state`", path.display())]
    Taken {
        /// Which.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        why: io::Error,
    },
}

/// The state directory of this bot, while it is held.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Nobody else has it while this is open.
    _lock: File,
}

impl StateDir {
    /// Makes it where it is not there, and takes it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let fail = |why| StateError::Directory {
            path: path.to_owned(),
            why,
        };
        let mut dir = fs::DirBuilder::new();
        dir.recursive(true).mode(0o700).create(path).map_err(fail)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(StateError::Taken {
                path: path.to_owned(),
            }),
            Err(TryLockError::Error(why)) => Err(fail(why)),
        }
    }

    /// The cursor of a network.
    #[must_use]
    pub fn cursor(&self, network: &NetworkName) -> Cursor {
        Cursor {
            path: self.path.join(format!("feed-{network}.json")),
        }
    }
}

/// How far a network was told, on disk.
#[derive(Clone, Debug)]
pub struct Cursor {
    path: PathBuf,
}

impl Cursor {
    /// What is on disk; `None` at the first start.
    ///
    /// A file that cannot be understood is put aside: where it went on from is
    /// not known, and a bot that says nothing for that reason helps nobody.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn load(&self) -> Result<Option<Saved>, StateError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(self.fail(why)),
        };
        let mut text = Vec::new();
        let read = file.take(MAX_FILE).read_to_end(&mut text);
        read.map_err(|why| self.fail(why))?;
        match serde_json::from_slice(&text) {
            Ok(saved) => Ok(Some(saved)),
            Err(error) => {
                let aside = self.path.with_extension("json.bad");
                tracing::error!(
                    file = %self.path.display(), %error, aside = %aside.display(),
                    "it is not known how far this network was told: what came about while the bot was away is not said"
                );
                fs::rename(&self.path, &aside).map_err(|why| self.fail(why))?;
                Ok(None)
            }
        }
    }

    /// Puts it on disk: whole, or as before.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn save(&self, saved: &Saved) -> Result<(), StateError> {
        self.write(saved).map_err(|why| self.fail(why))
    }

    fn write(&self, saved: &Saved) -> io::Result<()> {
        let new = self.path.with_extension("json.new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(saved)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }

    fn fail(&self, why: io::Error) -> StateError {
        StateError::File {
            path: self.path.clone(),
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_there_after_a_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a/b");
        let state = StateDir::open(&path).expect("the state");
        assert!(matches!(
            StateDir::open(&path),
            Err(StateError::Taken { .. })
        ));
        let cursor = state.cursor(&"ops".parse().expect("a name"));
        assert_eq!(cursor.load().expect("no file"), None);
        let saved = Saved {
            confirmed: Some("7".into()),
            begun: ["8".to_owned()].into(),
            ..Saved::default()
        };
        cursor.save(&saved).expect("saved");
        assert_eq!(cursor.load().expect("a file"), Some(saved));
        drop(state);
        StateDir::open(&path).expect("free again");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_put_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(dir.path()).expect("the state");
        let cursor = state.cursor(&"ops".parse().expect("a name"));
        fs::write(dir.path().join("feed-ops.json"), "{\"confir").expect("written");
        assert_eq!(cursor.load().expect("put aside"), None);
        assert!(dir.path().join("feed-ops.json.bad").exists());
        assert_eq!(cursor.load().expect("no file"), None);
    }
}
