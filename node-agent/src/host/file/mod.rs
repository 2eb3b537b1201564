//! Files and directories as a scenario wants them.
//!
//! A file is replaced, never written to in place: whoever reads it sees the
//! old one or the new one, whole, also when the power goes.

mod attributes;
mod diff;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use muster_protocol::envelope::Mode;
use muster_scenarios::node::{Change, FileAttributes, FileWish};
use regex::Regex;

use attributes::{AttributeError, Wanted};

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
    /// `replaces` is no regular expression.
    #[error("`replaces` is not a regular expression: {0}")]
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
        bytes: Vec<u8>,
        metadata: fs::Metadata,
    },
    Directory(fs::Metadata),
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
        } => content(path, text.as_bytes(), attributes, *backup, mode),
        FileWish::Line {
            text,
            replaces,
            backup,
        } => {
            let pattern = replaces.as_deref().map(Regex::new).transpose()?;
            line(path, text, pattern.as_ref(), *backup, mode)
        }
        FileWish::Attributes(attributes) => only_attributes(path, attributes, mode),
        FileWish::Directory(attributes) => directory(path, attributes, mode),
        FileWish::Absent => absent(path, mode),
    }
}

/// Looks without following a link: a link at the last step is never written
/// through, because whoever may replace the link would say what is written.
fn look(path: &Path) -> Result<Found, FileError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) => return Err(io("look at", path)(e)),
    };
    let kind = |found, hint: &str| {
        Err(FileError::Kind {
            path: path.to_owned(),
            found,
            hint: hint.to_owned(),
        })
    };
    if metadata.is_symlink() {
        let hint = match fs::read_link(path) {
            Ok(target) => format!("name {} instead", target.display()),
            Err(_) => "name what it points to instead".to_owned(),
        };
        return kind("a symbolic link", &hint);
    }
    if metadata.is_dir() {
        return Ok(Found::Directory(metadata));
    }
    if !metadata.is_file() {
        return kind("a device, a pipe or a socket", "it is left alone");
    }
    if metadata.len() > MAX_FILE {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            bytes: metadata.len(),
        });
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(io("read", path))?;
    Ok(Found::File { bytes, metadata })
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
    match look(path)? {
        Found::Directory(_) => Err(is_directory(path)),
        Found::Nothing => {
            if mode == Mode::Apply {
                replace(path, text, &wanted.or_mode(NEW_FILE), None)?;
            }
            let diff = diff::lines(b"", text);
            Ok(changed(mode, "created", diff))
        }
        Found::File { bytes, metadata } => {
            let mut said = wanted.differences(&metadata);
            let same = bytes == text;
            if same && said.is_empty() {
                return Ok(Change::Unchanged);
            }
            if mode == Mode::Apply {
                if same {
                    wanted.apply(path)?;
                } else {
                    let keep = wanted.or_those_of(&metadata);
                    replace(path, text, &keep, backup.then_some(path))?;
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

fn line(
    path: &Path,
    text: &str,
    replaces: Option<&Regex>,
    backup: bool,
    mode: Mode,
) -> Result<Change, FileError> {
    let (before, metadata) = match look(path)? {
        Found::Directory(_) => return Err(is_directory(path)),
        Found::Nothing => (Vec::new(), None),
        Found::File { bytes, metadata } => (bytes, Some(metadata)),
    };
    let old = std::str::from_utf8(&before).map_err(|_| FileError::NotText(path.to_owned()))?;
    let mut lines: Vec<&str> = old.lines().collect();
    if lines.contains(&text) {
        return Ok(Change::Unchanged);
    }
    let place = replaces.and_then(|pattern| lines.iter().rposition(|line| pattern.is_match(line)));
    match place {
        Some(place) => lines[place] = text,
        None => lines.push(text),
    }
    let mut new = lines.join("\n");
    new.push('\n');
    if mode == Mode::Apply {
        let wanted = match &metadata {
            Some(metadata) => Wanted::default().or_those_of(metadata),
            None => Wanted::default().or_mode(NEW_FILE),
        };
        let keep = (backup && metadata.is_some()).then_some(path);
        replace(path, new.as_bytes(), &wanted, keep)?;
    }
    let summary = match (metadata.is_some(), place) {
        (false, _) => "created",
        (true, Some(_)) => "line replaced",
        (true, None) => "line added",
    };
    Ok(changed(mode, summary, diff::lines(&before, new.as_bytes())))
}

fn only_attributes(
    path: &Path,
    attributes: &FileAttributes,
    mode: Mode,
) -> Result<Change, FileError> {
    let wanted = Wanted::of(attributes)?;
    let metadata = match look(path)? {
        Found::File { metadata, .. } | Found::Directory(metadata) => metadata,
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
        wanted.apply(path)?;
    }
    Ok(changed(mode, &said.join(", "), Vec::new()))
}

fn directory(path: &Path, attributes: &FileAttributes, mode: Mode) -> Result<Change, FileError> {
    let wanted = Wanted::of(attributes)?;
    match look(path)? {
        Found::File { .. } => Err(FileError::Kind {
            path: path.to_owned(),
            found: "a file",
            hint: "a directory with this name cannot be made".to_owned(),
        }),
        Found::Directory(metadata) => {
            let said = wanted.differences(&metadata);
            if said.is_empty() {
                return Ok(Change::Unchanged);
            }
            if mode == Mode::Apply {
                wanted.apply(path)?;
            }
            Ok(changed(mode, &said.join(", "), Vec::new()))
        }
        Found::Nothing => {
            if mode == Mode::Apply {
                fs::create_dir_all(path).map_err(io("make the directory", path))?;
                wanted.or_mode(NEW_DIRECTORY).apply(path)?;
                sync_parent(path)?;
            }
            Ok(changed(mode, "created", Vec::new()))
        }
    }
}

fn absent(path: &Path, mode: Mode) -> Result<Change, FileError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Change::Unchanged),
        Err(e) => return Err(io("look at", path)(e)),
    };
    let is_dir = metadata.is_dir();
    if is_dir {
        let entries = fs::read_dir(path).map_err(io("read", path))?.count();
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
        remove(path).map_err(io("remove", path))?;
        sync_parent(path)?;
    }
    Ok(changed(mode, "removed", Vec::new()))
}

fn changed(mode: Mode, summary: &str, diff: Vec<String>) -> Change {
    let summary = summary.to_owned();
    match mode {
        Mode::Apply => Change::Changed { summary, diff },
        Mode::Check => Change::WouldChange { summary, diff },
    }
}

/// Puts a new file in the place of the old one, with its owner and mode from
/// the first moment on. `keep`: the old one stays beside it.
fn replace(
    path: &Path,
    text: &[u8],
    wanted: &Wanted,
    keep: Option<&Path>,
) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::Builder::new()
        .prefix(".muster-")
        // Nobody but root reads it before it has its owner and mode.
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(parent)
        .map_err(io("make a file in", parent))?;
    new.write_all(text).map_err(io("write", new.path()))?;
    wanted.apply(new.path())?;
    new.as_file().sync_all().map_err(io("write", new.path()))?;
    if let Some(old) = keep {
        let time = stamp();
        let mut name = old.as_os_str().to_owned();
        name.push(format!(".{time}.bak"));
        // A second name for the same file: it is there before the new one is.
        match fs::hard_link(old, &name) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(io("keep a copy of", old)(e)),
        }
    }
    new.persist(path)
        .map_err(|e| io("replace", path)(e.error))?;
    sync_parent(path)
}

/// The time in a backup's name: `20261121T101500Z`.
fn stamp() -> String {
    let now = muster_protocol::units::Timestamp::now().to_string();
    let seconds = now.split('.').next().unwrap_or_default();
    let mut stamp: String = seconds
        .chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .collect();
    if !stamp.ends_with('Z') {
        stamp.push('Z');
    }
    stamp
}

fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(io("write", parent))
}

/// Permission bits, with those for set-user-id and the like.
fn bits(metadata: &fs::Metadata) -> u32 {
    metadata.mode() & 0o7777
}

#[cfg(test)]
mod tests;
