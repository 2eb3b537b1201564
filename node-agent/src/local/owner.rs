//! Whether the process that executes a local run still lives: it holds a
//! lock, which the kernel takes back when it ends, however it ends. A process
//! id would say less: it may be another one's by now, or of another namespace.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use muster_protocol::ids::RunId;

use crate::state::StateDir;

/// Held while the process that executes a local run lives.
#[derive(Debug)]
pub struct Owner {
    _file: File,
}

fn path(dir: &StateDir, run: RunId) -> PathBuf {
    dir.path(&format!("local-{run}.lock"))
}

impl Owner {
    /// Makes this process the owner. To be called before the journal knows of
    /// the run: what it knows has an owner, or had one.
    ///
    /// # Errors
    /// What the system says.
    pub fn claim(dir: &StateDir, run: RunId) -> io::Result<Self> {
        let path = path(dir, run);
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        file.lock()?;
        like_its_directory(dir.dir(), &path)?;
        Ok(Self { _file: file })
    }

    /// Takes over from an owner that is gone; `None` while it lives, or where
    /// that cannot be said.
    #[must_use]
    pub fn gone(dir: &StateDir, run: RunId) -> Option<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path(dir, run))
            .ok()?;
        match file.try_lock() {
            Ok(()) => Some(Self { _file: file }),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => None,
        }
    }

    /// Removes the lock of a run that has ended.
    pub fn forget(dir: &StateDir, run: RunId) {
        let _ = fs::remove_file(path(dir, run));
    }
}

/// Gives a file that root has made to whom the directory belongs, so that an
/// agent that does not run as root can use it.
///
/// # Errors
/// What the system says.
pub fn like_its_directory(dir: &Path, path: &Path) -> io::Result<()> {
    let (of, is) = (fs::metadata(dir)?, fs::metadata(path)?);
    if (of.uid(), of.gid()) != (is.uid(), is.gid()) && rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(of.uid()), Some(of.gid()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_keep_it_and_the_dead_do_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = StateDir::create(dir.path()).expect("made");
        let run = RunId::random();
        let owner = Owner::claim(&state, run).expect("free");
        assert!(Owner::gone(&state, run).is_none());
        assert!(Owner::claim(&state, run).is_err());
        drop(owner);
        assert!(Owner::gone(&state, run).is_some());
        Owner::forget(&state, run);
        assert!(Owner::gone(&state, run).is_some(), "no file, no owner");
    }
}
