//! Files and directories as a scenario wants them.
//!
//! A file is replaced, never written to in place: whoever reads it sees the
//! old one or the new one, whole, also when the power goes. And no symbolic
//! link that others than root could have put there is ever followed.

mod attributes;
mod backup;
mod diff;
mod lines;
mod walk;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use muster_protocol::envelope::Mode;
use muster_scenarios::node::{Change, FileAttributes, FileWish};
use regex::Regex;

pub use attributes::AttributeError;
use attributes::Wanted;
use lines::Which;
use walk::{Place, reopen, walk};

/// Largest file that is compared and edited.
pub const MAX_FILE: u64 = 16 * 1024 * 1024;
/// What a new file gets when nothing is said.
const NEW_FILE: u32 = 0o644;
/// What a new directory gets when nothing is said.
const NEW_DIRECTORY: u32 = 0o755;

/// Why a file is not as it is wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system said no.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No path that is walked.
    #[error("{} is left alone: {why}", .path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The directory is missing.
    #[error(
        "the directory of {} does not exist; have it made first, with `file(\"…\").directory()`", .0.display()
    )]
    NoDirectory(PathBuf),
    /// Another kind of thing has the name.
    #[error("{} is {found}; {hint}", .path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What to do.
        hint: String,
    },
    /// Over [`MAX_FILE`].
    #[error("{} has {bytes} bytes; files up to {MAX_FILE} are managed", .path.display())]
    TooLarge {
        /// The path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Only text has lines.
    #[error("{} is not UTF-8 text, so it has no lines to edit", .0.display())]
    NotText(PathBuf),
    /// A directory with something in it.
    #[error(
        "{} is not empty ({entries} entries), and nothing says that all of it may go", .path.display()
    )]
    NotEmpty {
        /// The path.
        path: PathBuf,
        /// How much is in it.
        entries: usize,
    },
    /// Who owns it.
    #[error(transparent)]
    Attributes(#[from] AttributeError),
    /// Nothing of it was kept.
    #[error(
        "{} has no backup beside it; one is kept when the file is changed with `backup: true`", .0.display()
    )]
    NoBackup(PathBuf),
    /// What lines are to match is no regular expression.
    #[error("what lines are to match is not a regular expression: {0}")]
    Pattern(#[from] regex::Error),
}

fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// What is at a path.
enum Found {
    Nothing,
    File {
        file: File,
        bytes: Vec<u8>,
        metadata: fs::Metadata,
    },
    Directory {
        directory: File,
        metadata: fs::Metadata,
    },
}

/// Has a file so, or says what it would do.
///
/// # Errors
/// [`FileError`]; the file is then as it was, but for a directory above it
/// that may have been made.
pub fn ensure(path: &Path, wish: &FileWish, mode: Mode) -> Result<Change, FileError> {
    match wish {
        FileWish::Content {
            text,
            attributes,
            backup,
            diff,
        } => {
            let change = content(path, text.as_bytes(), attributes, *backup, mode)?;
            Ok(shown(change, *diff))
        }
        FileWish::Line {
            text,
            replaces,
            backup,
            diff,
        } => {
            let pattern = replaces.as_deref().map(Regex::new).transpose()?;
            let change = lines::have(path, text, pattern.as_ref(), *backup, mode)?;
            Ok(shown(change, *diff))
        }
        FileWish::NoLine {
            text,
            pattern,
            backup,
            diff,
        } => {
            let pattern = pattern.then(|| Regex::new(text)).transpose()?;
            let which = match &pattern {
                Some(pattern) => Which::Matches(pattern),
                None => Which::Is(text),
            };
            let change = lines::have_not(path, &which, *backup, mode)?;
            Ok(shown(change, *diff))
        }
        FileWish::Restore { diff } => Ok(shown(backup::restore(path, mode)?, *diff)),
        FileWish::Attributes(attributes) => only_attributes(path, attributes, mode),
        FileWish::Directory(attributes) => directory(path, attributes, mode),
        FileWish::Absent => absent(path, mode),
    }
}

/// A place whose directory is there; `None` in a dry run, in which an earlier
/// call may have been about to make it.
fn place(path: &Path, mode: Mode) -> Result<Option<Place>, FileError> {
    match walk(path, false)? {
        Some(place) => Ok(Some(place)),
        None if mode == Mode::Check => Ok(None),
        None => Err(FileError::NoDirectory(path.to_owned())),
    }
}

/// Looks without following a link: a link at the last step is never written
/// through, because whoever may replace the link would say what is written.
fn look(place: Option<&Place>) -> Result<Found, FileError> {
    let Some(place) = place else {
        return Ok(Found::Nothing);
    };
    let Some(found) = place.peek()? else {
        return Ok(Found::Nothing);
    };
    let path = &place.path;
    let metadata = found.metadata().map_err(io("look at", path))?;
    let kind = |found, hint: &str| {
        Err(FileError::Kind {
            path: path.clone(),
            found,
            hint: hint.to_owned(),
        })
    };
    if metadata.is_symlink() {
        let hint = match fs::read_link(place.at()) {
            Ok(target) => format!("name {} instead", target.display()),
            Err(_) => "name what it points to instead".to_owned(),
        };
        return kind("a symbolic link", &hint);
    }
    if metadata.is_dir() {
        let directory = reopen(&found).map_err(io("open", path))?;
        return Ok(Found::Directory {
            directory,
            metadata,
        });
    }
    if !metadata.is_file() {
        return kind("a device, a pipe or a socket", "it is left alone");
    }
    // Another name of a file that is none of its owner's business: reading it
    // would show it to whoever sees the difference, and a new owner would be
    // given it.
    if metadata.nlink() > 1 && !place.guarded {
        return kind(
            "one of several names of a file, in a directory where others than root can put names",
            "it is left alone",
        );
    }
    if metadata.len() > MAX_FILE {
        return Err(FileError::TooLarge {
            path: path.clone(),
            bytes: metadata.len(),
        });
    }
    let file = reopen(&found).map_err(io("open", path))?;
    let mut bytes = Vec::new();
    (&file)
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(io("read", path))?;
    Ok(Found::File {
        file,
        bytes,
        metadata,
    })
}

fn is_directory(path: &Path) -> FileError {
    FileError::Kind {
        path: path.to_owned(),
        found: "a directory",
        hint: "a file with this name cannot be made".to_owned(),
    }
}

fn content(
    path: &Path,
    text: &[u8],
    attributes: &FileAttributes,
    backup: bool,
    mode: Mode,
) -> Result<Change, FileError> {
    let wanted = Wanted::of(attributes)?;
    let place = place(path, mode)?;
    match look(place.as_ref())? {
        Found::Directory { .. } => Err(is_directory(path)),
        Found::Nothing => {
            if let (Mode::Apply, Some(place)) = (mode, &place) {
                replace(place, text, &wanted.or_mode(NEW_FILE), None, false)?;
            }
            let diff = diff::lines(b"", text);
            Ok(changed(mode, "created", diff))
        }
        Found::File {
            file,
            bytes,
            metadata,
        } => {
            let mut said = wanted.differences(&metadata);
            let same = bytes == text;
            if same && said.is_empty() {
                return Ok(Change::Unchanged);
            }
            if let (Mode::Apply, Some(place)) = (mode, &place) {
                if same {
                    wanted.apply(&file, path)?;
                } else {
                    let keep = wanted.or_those_of(&metadata);
                    replace(place, text, &keep, Some(&file), backup)?;
                }
            }
            if !same {
                said.insert(0, "content".to_owned());
            }
            let diff = diff::lines(&bytes, text);
            Ok(changed(mode, &said.join(", "), diff))
        }
    }
}

fn only_attributes(
    path: &Path,
    attributes: &FileAttributes,
    mode: Mode,
) -> Result<Change, FileError> {
    let wanted = Wanted::of(attributes)?;
    let place = place(path, mode)?;
    let (file, metadata) = match look(place.as_ref())? {
        Found::File { file, metadata, .. } => (file, metadata),
        Found::Directory {
            directory,
            metadata,
        } => (directory, metadata),
        // A dry run may ask about what an earlier call would have made.
        Found::Nothing if mode == Mode::Check => {
            return Ok(changed(mode, &wanted.shown(), Vec::new()));
        }
        Found::Nothing => {
            return Err(io("change", path)(io::ErrorKind::NotFound.into()));
        }
    };
    let said = wanted.differences(&metadata);
    if said.is_empty() {
        return Ok(Change::Unchanged);
    }
    if mode == Mode::Apply {
        wanted.apply(&file, path)?;
    }
    Ok(changed(mode, &said.join(", "), Vec::new()))
}

fn directory(path: &Path, attributes: &FileAttributes, mode: Mode) -> Result<Change, FileError> {
    let wanted = Wanted::of(attributes)?;
    let place = walk(path, mode == Mode::Apply)?;
    match look(place.as_ref())? {
        Found::File { .. } => Err(FileError::Kind {
            path: path.to_owned(),
            found: "a file",
            hint: "a directory with this name cannot be made".to_owned(),
        }),
        Found::Directory {
            directory,
            metadata,
        } => {
            let said = wanted.differences(&metadata);
            if said.is_empty() {
                return Ok(Change::Unchanged);
            }
            if mode == Mode::Apply {
                wanted.apply(&directory, path)?;
            }
            Ok(changed(mode, &said.join(", "), Vec::new()))
        }
        Found::Nothing => {
            if let (Mode::Apply, Some(place)) = (mode, &place) {
                fs::DirBuilder::new()
                    // Nobody else before it has its owner and mode.
                    .mode(0o700)
                    .create(place.at())
                    .map_err(io("make the directory", path))?;
                let Found::Directory { directory, .. } = look(Some(place))? else {
                    return Err(is_directory(path));
                };
                wanted.or_mode(NEW_DIRECTORY).apply(&directory, path)?;
                place.sync()?;
            }
            Ok(changed(mode, "created", Vec::new()))
        }
    }
}

fn absent(path: &Path, mode: Mode) -> Result<Change, FileError> {
    let Some(place) = walk(path, false)? else {
        return Ok(Change::Unchanged);
    };
    let Some(found) = place.peek()? else {
        return Ok(Change::Unchanged);
    };
    let is_dir = found.metadata().map_err(io("look at", path))?.is_dir();
    if is_dir {
        let entries = fs::read_dir(place.at()).map_err(io("read", path))?.count();
        if entries > 0 {
            return Err(FileError::NotEmpty {
                path: path.to_owned(),
                entries,
            });
        }
    }
    if mode == Mode::Apply {
        let remove = if is_dir {
            fs::remove_dir
        } else {
            fs::remove_file
        };
        remove(place.at()).map_err(io("remove", path))?;
        place.sync()?;
    }
    Ok(changed(mode, "removed", Vec::new()))
}

/// The change without its lines, where they are not to be seen.
fn shown(mut change: Change, lines: bool) -> Change {
    if let (false, Change::Changed { diff, .. } | Change::WouldChange { diff, .. }) =
        (lines, &mut change)
    {
        diff.clear();
    }
    change
}

fn changed(mode: Mode, summary: &str, diff: Vec<String>) -> Change {
    let summary = summary.to_owned();
    match mode {
        Mode::Apply => Change::Changed { summary, diff },
        Mode::Check => Change::WouldChange { summary, diff },
    }
}

/// Puts a new file in the place of the old one, with its owner and mode from
/// the first moment on. `backup`: the old one stays beside it.
fn replace(
    place: &Place,
    text: &[u8],
    wanted: &Wanted,
    old: Option<&File>,
    backup: bool,
) -> Result<(), FileError> {
    let path = &place.path;
    let mut new = tempfile::Builder::new()
        .prefix(".muster-")
        // Nobody but root reads it before it has its owner and mode.
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(place.directory())
        .map_err(io("make a file beside", path))?;
    new.write_all(text).map_err(io("write", path))?;
    if let Some(old) = old {
        attributes::copy_extended(old, new.as_file());
    }
    wanted.apply(new.as_file(), path)?;
    new.as_file().sync_all().map_err(io("write", path))?;
    if backup && old.is_some() {
        backup::keep(place)?;
    }
    new.persist(place.at())
        .map_err(|e| io("replace", path)(e.error))?;
    place.sync()
}

/// Permission bits, with those for set-user-id and the like.
fn bits(metadata: &fs::Metadata) -> u32 {
    metadata.mode() & 0o7777
}

#[cfg(test)]
mod tests;
