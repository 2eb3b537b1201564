//! The way to a file, walked one directory at a time.
//!
//! The agent is root and some directories on the way may be anybody's: whoever
//! owns one could put a symbolic link there, between a look and an act, and
//! have root write somewhere else. So each directory is opened below the one
//! before it without following a link, and everything that is done to the
//! file is done below the directory that was opened.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode as Bits, OFlags, mkdirat, open, openat, readlinkat};

use super::{FileError, io as failed};

/// Symbolic links on one way; the kernel's own limit.
const MAX_LINKS: usize = 40;
/// What a directory gets that had to be made on the way.
const NEW_DIRECTORY: u32 = 0o755;

/// A name in a directory that is held open.
pub(super) struct Place {
    directory: OwnedFd,
    name: OsString,
    /// As it was asked for, for messages.
    pub(super) path: PathBuf,
    /// Nobody but root, or the agent's own user, can put anything there.
    pub(super) guarded: bool,
}

impl Place {
    /// The directory, by the descriptor that is held: a rename or a link in
    /// the meantime leads nowhere else.
    pub(super) fn directory(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }

    /// The name in it; never to be opened in a way that follows a link.
    pub(super) fn at(&self) -> PathBuf {
        self.directory().join(&self.name)
    }

    /// Another name in the same directory.
    pub(super) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.name.clone();
        name.push(suffix);
        self.directory().join(name)
    }

    /// The name in its directory.
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The same as [`Place::beside`], as a place of its own.
    pub(super) fn sibling(&self, suffix: &str) -> Result<Self, FileError> {
        let more = |text: &OsStr| {
            let mut text = text.to_owned();
            text.push(suffix);
            text
        };
        Ok(Self {
            directory: self
                .directory
                .try_clone()
                .map_err(failed("look beside", &self.path))?,
            name: more(&self.name),
            path: more(self.path.as_os_str()).into(),
            guarded: self.guarded,
        })
    }

    /// What has the name now, itself and not what it points to; `None` when
    /// nothing has. The handle can be looked at, and nothing else.
    pub(super) fn peek(&self) -> Result<Option<File>, FileError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.directory, &self.name, flags, Bits::empty()) {
            Ok(found) => Ok(Some(found.into())),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(failed("look at", &self.path)(e.into())),
        }
    }

    /// Has the directory on disk.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        File::open(self.directory())
            .and_then(|directory| directory.sync_all())
            .map_err(failed("write the directory of", &self.path))
    }
}

/// The very thing that a handle of [`Place::peek`] is, opened to be read.
pub(super) fn reopen(peeked: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", peeked.as_raw_fd()))
}

/// Walks to the directory of a path. `None` when one on the way is missing
/// and `make` does not say to make it.
pub(super) fn walk(path: &Path, make: bool) -> Result<Option<Place>, FileError> {
    let mut rest: VecDeque<OsString> = VecDeque::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => rest.push_back(name.to_owned()),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(FileError::Path {
                    path: path.to_owned(),
                    why: "it has `..` in it",
                });
            }
        }
    }
    let Some(name) = rest.pop_back().filter(|_| path.is_absolute()) else {
        return Err(FileError::Path {
            path: path.to_owned(),
            why: "it names no file",
        });
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let here = |e: rustix::io::Errno| failed("look at", path)(e.into());
    let mut directory = open("/", flags, Bits::empty()).map_err(here)?;
    let mut links = 0;
    while let Some(step) = rest.pop_front() {
        match openat(&directory, &step, flags, Bits::empty()) {
            Ok(next) => directory = next,
            Err(rustix::io::Errno::NOENT) if make => {
                match mkdirat(&directory, &step, Bits::from_raw_mode(NEW_DIRECTORY)) {
                    // Somebody else was quicker.
                    Ok(()) | Err(rustix::io::Errno::EXIST) => rest.push_front(step),
                    Err(e) => return Err(failed("make a directory on the way to", path)(e.into())),
                }
            }
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                links += 1;
                let target = follow(&directory, &step, path, links)?;
                if target.is_absolute() {
                    directory = open("/", flags, Bits::empty()).map_err(here)?;
                }
                for component in target.components().rev() {
                    match component {
                        Component::Normal(name) => rest.push_front(name.to_owned()),
                        Component::ParentDir => rest.push_front("..".into()),
                        Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                    }
                }
            }
            Err(e) => return Err(here(e)),
        }
    }
    let metadata = File::from(directory.try_clone().map_err(failed("look at", path))?)
        .metadata()
        .map_err(failed("look at", path))?;
    Ok(Some(Place {
        guarded: is_guarded(&metadata, false),
        directory,
        name,
        path: path.to_owned(),
    }))
}

/// Where a link leads that only root can have put there.
fn follow(
    directory: &OwnedFd,
    step: &OsStr,
    path: &Path,
    links: usize,
) -> Result<PathBuf, FileError> {
    let wrong = |why| FileError::Path {
        path: path.to_owned(),
        why,
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = openat(directory, step, flags, Bits::empty())
        .map_err(|e| failed("look at", path)(e.into()))?;
    let look = |of: &OwnedFd| {
        let file = File::from(of.try_clone().map_err(failed("look at", path))?);
        file.metadata().map_err(failed("look at", path))
    };
    let metadata = look(&link)?;
    if !metadata.is_symlink() {
        return Err(wrong("something on the way is no directory"));
    }
    if links > MAX_LINKS {
        return Err(wrong("it leads through too many symbolic links"));
    }
    if !is_ours(metadata.uid()) || !is_guarded(&look(directory)?, true) {
        return Err(wrong(
            "a symbolic link on the way can be changed by others than root; name the path that is meant",
        ));
    }
    // Of the link that was looked at, whatever has its name by now.
    let target =
        readlinkat(&link, "", Vec::new()).map_err(|e| failed("look at", path)(e.into()))?;
    Ok(OsString::from_vec(target.into_bytes()).into())
}

/// Root, or who the agent runs as.
fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Whether only we can put things into a directory; with `sticky`, whether
/// only we can replace what we put there.
fn is_guarded(directory: &std::fs::Metadata, sticky: bool) -> bool {
    let mode = directory.mode();
    let others = mode & 0o002 != 0 || (mode & 0o020 != 0 && directory.gid() != 0);
    is_ours(directory.uid()) && (!others || (sticky && mode & 0o1000 != 0))
}
