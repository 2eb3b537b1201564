//! The files of machines: where each is, and how they are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use muster_protocol::vm::{ImageFormat, ImageRef, Machine, Sha256, VmId};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

/// In front of every file of ours in a pool.
const PREFIX: &str = "muster-";
const IMAGE: &str = "muster-image-";
/// Most bytes of a note.
const MAX_NOTE: u64 = 8 << 20;

/// What a disk without a domain is, or what is being done with one.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", deny_unknown_fields)]
pub(super) enum Note {
    /// It is being made, and was never started: it can be made anew.
    Making {
        /// Of which machine.
        machine: Box<Machine>,
    },
    /// It is kept, for the machine that it was of.
    Kept {
        /// Of which machine.
        machine: Box<Machine>,
        /// What libvirt knew of the snapshots in it, parents first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        snapshots: Vec<String>,
    },
    /// It is being set back to a snapshot, and with it, by libvirt, the
    /// domain's definition and whether it runs: these are to be as before.
    Restoring {
        /// The domain's definition.
        definition: String,
        /// Whether it ran.
        ran: bool,
    },
}

/// Where things are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// The pool's directory.
    pub(super) pool: PathBuf,
    /// Where consoles are written down.
    pub(super) console: PathBuf,
}

/// The volume of a machine's disk.
pub(super) fn volume(id: VmId) -> String {
    format!("{PREFIX}{id}.qcow2")
}

/// A format as file names and libvirt have it.
pub(super) fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
    }
}

impl Files {
    pub(super) fn disk(&self, id: VmId) -> PathBuf {
        self.pool.join(volume(id))
    }

    pub(super) fn seed(&self, id: VmId) -> PathBuf {
        self.pool.join(format!("{PREFIX}{id}-seed.img"))
    }

    pub(super) fn note_path(&self, id: VmId) -> PathBuf {
        self.pool.join(format!("{PREFIX}{id}.json"))
    }

    pub(super) fn image(&self, image: &ImageRef) -> PathBuf {
        let format = format_name(image.format);
        self.pool.join(format!("{IMAGE}{}.{format}", image.sha256))
    }

    /// Where it is while it comes.
    pub(super) fn coming(&self, image: &ImageRef) -> PathBuf {
        self.pool.join(format!(".{IMAGE}{}.part", image.sha256))
    }

    pub(super) fn console_log(&self, id: VmId) -> PathBuf {
        self.console.join(format!("{PREFIX}{id}.log"))
    }

    /// The console's log with those that it was before.
    pub(super) fn console_logs(&self, id: VmId) -> io::Result<Vec<PathBuf>> {
        let name = format!("{PREFIX}{id}.log");
        let older = format!("{name}.");
        let entries = match fs::read_dir(&self.console) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry?;
            let found = entry.file_name();
            let found = found.to_string_lossy();
            if found == name || found.starts_with(&older) {
                all.push(entry.path());
            }
        }
        Ok(all)
    }

    /// What is written down of a disk without a domain.
    pub(super) fn note(&self, id: VmId) -> io::Result<Option<Note>> {
        let path = self.note_path(id);
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match File::options().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let mut text = Vec::new();
        file.take(MAX_NOTE).read_to_end(&mut text)?;
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(io::Error::other)
    }

    pub(super) fn set_note(&self, id: VmId, note: &Note) -> io::Result<()> {
        let text = serde_json::to_vec(note).map_err(io::Error::other)?;
        replace(&self.note_path(id), &text, 0o600)
    }

    /// The images that are here, whole.
    pub(super) fn images(&self) -> io::Result<Vec<Sha256>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.pool)? {
            let name = entry?.file_name();
            all.extend(name.to_str().and_then(image_hash));
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}

/// What a file of a pool is, by its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// An image, whole.
    Image(Sha256),
    /// What came of one so far.
    Part,
    /// What is written down of a machine's disk.
    Note(VmId),
    /// A disk, a seed, or somebody else's.
    Other,
}

fn image_hash(name: &str) -> Option<Sha256> {
    let rest = name.strip_prefix(IMAGE)?;
    let hash = rest
        .strip_suffix(".qcow2")
        .or_else(|| rest.strip_suffix(".raw"))?;
    hash.parse().ok()
}

/// What a file of that name is.
pub(super) fn kind(name: &str) -> Kind {
    if let Some(hash) = image_hash(name) {
        return Kind::Image(hash);
    }
    let inner = |before: &str, after: &str| name.strip_prefix(before)?.strip_suffix(after);
    let part = inner(&format!(".{IMAGE}"), ".part");
    if part.is_some_and(|hash| hash.parse::<Sha256>().is_ok()) {
        return Kind::Part;
    }
    match inner(PREFIX, ".json").and_then(|id| id.parse().ok()) {
        Some(id) => Kind::Note(id),
        None => Kind::Other,
    }
}

/// Whether it was there.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// The same, and it does not come back with a power cut.
pub(super) fn remove_for_good(path: &Path) -> io::Result<bool> {
    let was = remove(path)?;
    if was {
        sync_dir(path)?;
    }
    Ok(was)
}

/// Has the names in a directory on disk.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// What [`replace`] leaves behind when it is killed.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

/// Puts a whole file in the place of another, or of none; it is on disk when
/// this returns.
pub(super) fn replace(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    let new = unfinished(path);
    // What an earlier try left behind.
    remove(&new)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)?;
    let written = file.write_all(data).and_then(|()| file.sync_all());
    if let Err(e) = written.and_then(|()| fs::rename(&new, path)) {
        let _ = remove(&new);
        return Err(e);
    }
    sync_dir(path)
}
