//! What a disk is a layer over, down to the last one: read from the disks
//! themselves, whoever made them and wherever they are.
//!
//! Somebody may have written anything into a file, so what is opened is looked
//! at first: some devices do something when they are opened.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde_json::Value;

/// Longest name of a backing file: what QEMU itself takes.
const MAX_BACKING: u32 = 1_023;
/// Most disks that are looked at.
const MAX_DISKS: usize = 20_000;

const QCOW2: [u8; 4] = *b"QFI\xfb";
/// Which byte of its header says, from version 3 on, that its bytes are in
/// another file, and which bit of it.
const DATA_FILE: (usize, u8) = (79, 4);

/// A disk that cannot be read.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

/// Disks, and everything below them.
pub(super) struct Layers<'a> {
    /// What is not there in this directory is not there at all; elsewhere it
    /// may only be out of reach.
    pool: &'a Path,
    seen: HashSet<PathBuf>,
    /// All that they are called, and what they say that is below them.
    pub(super) names: Vec<String>,
}

impl<'a> Layers<'a> {
    pub(super) fn new(pool: &'a Path) -> Self {
        Self {
            pool,
            seen: HashSet::new(),
            names: Vec::new(),
        }
    }

    /// Adds a disk with everything below it.
    pub(super) fn add(&mut self, disk: &Path) -> Result<(), Unread> {
        let mut next = vec![disk.to_owned()];
        while let Some(path) = next.pop() {
            if !self.seen.insert(path.clone()) {
                continue;
            }
            let unread = |source| Unread {
                path: path.clone(),
                source,
            };
            if self.seen.len() > MAX_DISKS {
                return Err(unread(io::Error::other("there are too many disks")));
            }
            self.name(&path);
            let found = self.below(&path).map_err(unread)?;
            let Some(name) = found else { continue };
            next.extend(files(&name, &path).map_err(unread)?);
            self.names.push(name);
        }
        Ok(())
    }

    /// Adds a disk's names alone: another one may lead to it.
    pub(super) fn name(&mut self, disk: &Path) {
        self.names.push(disk.display().to_string());
        let real = fs::canonicalize(disk);
        self.names
            .extend(real.map(|real| real.display().to_string()));
    }

    fn below(&self, path: &Path) -> io::Result<Option<String>> {
        let found = match fs::metadata(path) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.is_in_pool(path) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let kind = found.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::other("it is neither a file nor a disk"));
        }
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        backing(File::options().read(true).custom_flags(flags).open(path)?)
    }

    fn is_in_pool(&self, path: &Path) -> bool {
        path.parent() == Some(self.pool) && fs::symlink_metadata(path).is_err()
    }
}

/// What a disk is a layer over, when it is qcow2 and says so.
pub(super) fn backing(mut file: File) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    (&file)
        .take(DATA_FILE.0 as u64 + 1)
        .read_to_end(&mut head)?;
    let other = head
        .get(DATA_FILE.0)
        .is_some_and(|byte| byte & DATA_FILE.1 != 0);
    if head.starts_with(&QCOW2) && head.get(7) != Some(&2) && other {
        return Err(io::Error::other("its bytes are in another file"));
    }
    head.truncate(20);
    let Some((magic, rest)) = head.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let fields = rest.split_at_checked(4).map(|(_, fields)| fields);
    let (Some((at, length)), true) = (
        fields.and_then(<[u8]>::split_first_chunk::<8>),
        *magic == QCOW2,
    ) else {
        return Ok(None);
    };
    let at = u64::from_be_bytes(*at);
    let Ok(length) = <[u8; 4]>::try_from(length) else {
        return Err(io::Error::other("its header is cut off"));
    };
    let length = u32::from_be_bytes(length);
    if at == 0 {
        return Ok(None);
    }
    if length > MAX_BACKING {
        return Err(io::Error::other("what it is a layer over cannot be read"));
    }
    file.seek(SeekFrom::Start(at))?;
    let mut name = Vec::new();
    file.take(length.into()).read_to_end(&mut name)?;
    if name.len() != length as usize {
        return Err(io::Error::other("what it is a layer over is cut off"));
    }
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

/// The files that a name of a backing file stands for, as QEMU reads it.
fn files(name: &str, of: &Path) -> io::Result<Vec<PathBuf>> {
    let beside = |name: &str| of.parent().unwrap_or(Path::new("/")).join(name);
    let elsewhere = || io::Error::other("it is a layer over something that is not on this host");
    if let Some(json) = name.strip_prefix("json:") {
        let value: Value = serde_json::from_str(json).map_err(io::Error::other)?;
        let mut found = Vec::new();
        named(&value, &mut found);
        if found.is_empty() {
            return Err(elsewhere());
        }
        return Ok(found.iter().map(|name| beside(name)).collect());
    }
    let colon = name.find(':').unwrap_or(usize::MAX);
    let slash = name.find('/').unwrap_or(usize::MAX - 1);
    match name.strip_prefix("file:") {
        Some(path) => Ok(vec![beside(path)]),
        None if colon < slash => Err(elsewhere()),
        None => Ok(vec![beside(name)]),
    }
}

/// The file names in such a text; it is nested as deep as its reader lets it.
fn named<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    let Value::Object(fields) = value else {
        return;
    };
    for (key, value) in fields {
        match value {
            Value::String(path) if key == "filename" || key.ends_with(".filename") => {
                found.push(path);
            }
            inner => named(inner, found),
        }
    }
}
