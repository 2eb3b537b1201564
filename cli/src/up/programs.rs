//! Each agent that `muster up` runs has an executable of its own, so that it
//! can be upgraded by itself: `muster agent upgrade` replaces the file that an
//! agent was started from.
//!
//! It is another name for the installed `muster-agent`, where the file system
//! has such, and a copy elsewhere. An agent that was upgraded keeps what it
//! has until another `muster-agent` is installed: what the installed one was
//! is noted beside it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Which installed file an agent's own was made from.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Source {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Source {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            seconds: meta.mtime(),
            nanoseconds: meta.mtime_nsec(),
        })
    }
}

/// Sees to it that `own` is there, made from `installed` as it is now; says
/// whether it was made anew.
///
/// # Errors
/// When it cannot be made.
pub(super) fn provide(own: &Path, installed: &Path) -> io::Result<bool> {
    let source = Source::of(installed)?;
    let note = own.with_extension("source.json");
    let noted = fs::read(&note)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Source>(&bytes).ok());
    if own.is_file() && noted.as_ref() == Some(&source) {
        return Ok(false);
    }
    if let Some(dir) = own.parent() {
        fs::create_dir_all(dir)?;
    }
    let part = own.with_extension("part");
    let _ = fs::remove_file(&part);
    if fs::hard_link(installed, &part).is_err() {
        fs::copy(installed, &part)?;
    }
    // While it is not known what it was made from, it is made again.
    let _ = fs::remove_file(&note);
    fs::rename(&part, own)?;
    // Two names of one file: then the renaming does nothing.
    let _ = fs::remove_file(&part);
    super::write_private(&note, &serde_json::to_vec(&source)?)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_upgraded_stays_until_another_one_is_installed() {
        let dir = tempfile::tempdir().expect("directory");
        let installed = dir.path().join("muster-agent");
        let own = dir.path().join("programs/web-01/muster-agent");
        let there = || fs::read_to_string(&own).expect("there");
        fs::write(&installed, "1").expect("written");
        assert!(provide(&own, &installed).expect("made"));
        assert!(!provide(&own, &installed).expect("there"));
        // As an agent does it: never into the file itself.
        let new = dir.path().join("new");
        fs::write(&new, "upgraded").expect("written");
        fs::rename(&new, &own).expect("replaced");
        assert!(!provide(&own, &installed).expect("there"));
        assert_eq!(there(), "upgraded");
        fs::write(&new, "22").expect("written");
        fs::rename(&new, &installed).expect("installed");
        assert!(provide(&own, &installed).expect("made"));
        assert_eq!(there(), "22");
        fs::remove_file(&own).expect("removed");
        assert!(provide(&own, &installed).expect("made"));
    }
}
