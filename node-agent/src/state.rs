//! The state directory: who may use it, and files that are whole or absent.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What this version writes; a directory with a higher number is refused.
pub const FORMAT: u32 = 1;

/// Most bytes of any file of the state that is read.
const MAX_FILE: u64 = 4 << 20;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is none.
    #[error(
        "{0} is not the state of an agent; enrol this machine first: muster-agent enroll --url URL --token T"
    )]
    Absent(PathBuf),
    /// Another version's.
    #[error(
        "{path} was written by a newer agent (format {found}, this one knows {FORMAT}); use that version, or enrol again elsewhere"
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another agent runs on it.
    #[error("another muster-agent{holder} uses {path}; stop it first, or use another --state")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// `" (pid 12)"`, when it is known.
        holder: String,
    },
    /// A file is not what it should be.
    #[error("{path} is damaged: {why}; enrol this machine again: muster-agent enroll --again …")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In which way.
        why: String,
    },
    /// The operating system said no.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl StateError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// An agent's state directory of a format that this version knows.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

/// Held while an agent uses the directory; ends with the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl StateDir {
    /// Opens a directory that an enrolment has made.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let dir = Self(path.to_owned());
        match dir.format()? {
            Some(FORMAT) => Ok(dir),
            Some(found) => Err(StateError::Newer {
                path: path.to_owned(),
                found,
            }),
            None => Err(StateError::Absent(path.to_owned())),
        }
    }

    /// Opens a directory, or makes it, for its owner alone.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn create(path: &Path) -> Result<Self, StateError> {
        if !path.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(StateError::io("cannot make", path))?;
        }
        let dir = Self(path.to_owned());
        if let Some(found) = dir.format()? {
            if found > FORMAT {
                return Err(StateError::Newer {
                    path: path.to_owned(),
                    found,
                });
            }
            return Ok(dir);
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(StateError::io("cannot close to others", path))?;
        dir.write("version", format!("{FORMAT}\n").as_bytes())?;
        Ok(dir)
    }

    fn format(&self) -> Result<Option<u32>, StateError> {
        let Some(text) = self.read("version")? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&text);
        text.trim()
            .parse()
            .map(Some)
            .map_err(|_| StateError::Damaged {
                path: self.path("version"),
                why: "it holds no number".into(),
            })
    }

    /// A path inside.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Takes the directory for this process.
    ///
    /// # Errors
    /// [`StateError::Locked`] when another process has it.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let path = self.path("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(StateError::io("cannot open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = (&mut file).take(20).read_to_string(&mut pid);
                let pid = pid.trim();
                let known = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
                let holder = if known {
                    format!(" (pid {pid})")
                } else {
                    String::new()
                };
                return Err(StateError::Locked {
                    path: self.0.clone(),
                    holder,
                });
            }
            Err(TryLockError::Error(e)) => return Err(StateError::io("cannot lock", &path)(e)),
        }
        // For people only: the lock is what counts.
        let _ = file
            .set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Lock { _file: file })
    }

    /// Replaces a file, durably and at once: after a power cut there is the
    /// old content or the new one. Mode 0600.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        let part = self.path(&format!(".{name}.new"));
        let write = || -> io::Result<()> {
            let _ = fs::remove_file(&part);
            let mut file = OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(&part)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&part, &path)?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(StateError::io("cannot write", &path))
    }

    /// Removes a file, durably. One that is not there is no error.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StateError::io("cannot remove", &path)(e))
            }
            _ => File::open(&self.0)
                .and_then(|dir| dir.sync_all())
                .map_err(StateError::io("cannot write", &self.0)),
        }
    }

    /// A file's content; `None` when there is none.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StateError::io("cannot read", &path)(e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(StateError::io("cannot read", &path))?;
        Ok(Some(bytes))
    }

    /// Moves everything of an earlier enrolment into a directory of its own
    /// inside, and returns that directory's name.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn set_aside(&self, suffix: &str) -> Result<String, StateError> {
        let name = format!("old-{suffix}");
        let aside = self.path(&name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&aside)
            .map_err(StateError::io("cannot make", &aside))?;
        let entries = fs::read_dir(&self.0).map_err(StateError::io("cannot list", &self.0))?;
        for entry in entries.flatten() {
            let file = entry.file_name();
            let text = file.to_string_lossy();
            if text.starts_with("old-") || matches!(&*text, "version" | "lock") {
                continue;
            }
            fs::rename(entry.path(), aside.join(&file))
                .map_err(StateError::io("cannot move", &entry.path()))?;
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_private_and_whole() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a/b");
        assert!(matches!(StateDir::open(&path), Err(StateError::Absent(_))));
        let state = StateDir::create(&path).expect("made");
        state.write("key", b"secret").expect("written");
        state.write("key", b"secret 2").expect("written again");
        assert_eq!(
            state.read("key").expect("read").as_deref(),
            Some(b"secret 2".as_slice())
        );
        assert_eq!(state.read("none").expect("read"), None);
        let mode = |p: &Path| fs::metadata(p).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&state.path("key"))), (0o700, 0o600));
        assert!(StateDir::open(&path).is_ok());
    }

    #[test]
    fn one_agent_at_a_time_and_no_step_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = StateDir::create(dir.path()).expect("made");
        let lock = state.lock().expect("free");
        let error = state.lock().expect_err("taken").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        assert!(state.lock().is_ok());
        state.write("version", b"7").expect("written");
        assert!(matches!(
            StateDir::open(dir.path()),
            Err(StateError::Newer { found: 7, .. })
        ));
        assert!(matches!(
            StateDir::create(dir.path()),
            Err(StateError::Newer { .. })
        ));
    }
}
