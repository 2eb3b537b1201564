//! The bytes of images on the broker's disk. Everything here waits for the
//! disk: it is called where that may be done.
//!
//! An image's bytes are `<directory>/<sha256>`, which is only there once they
//! were checked. An upload is `<directory>/<sha256>.part/`: `data`, and for
//! each part that has come an empty file of its number.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use muster_protocol::api::IMAGE_PART;
use muster_protocol::vm::{IMAGE_HEAD, Sha256, Size};
use sha2::{Digest as _, Sha256 as Hash};

use crate::state_dir::make_dir;

/// The directory with the bytes.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

/// What was found in an upload.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) sha256: Sha256,
    pub(super) head: Vec<u8>,
}

/// How many parts an image has.
pub(super) fn parts(size: Size) -> u32 {
    u32::try_from(size.bytes().div_ceil(IMAGE_PART)).unwrap_or(u32::MAX)
}

/// Bytes that a part must have; 0 when there is no such part.
pub(super) fn part_length(size: Size, part: u32) -> u64 {
    let begin = u64::from(part) * IMAGE_PART;
    size.bytes().saturating_sub(begin).min(IMAGE_PART)
}

/// What takes no room any more is no failure.
fn gone_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

impl Directory {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        make_dir(&path).map_err(io::Error::other)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn whole(&self, sha256: Sha256) -> PathBuf {
        self.0.join(sha256.to_string())
    }

    fn upload(&self, sha256: Sha256) -> PathBuf {
        self.0.join(format!("{sha256}.part"))
    }

    /// Whether the bytes are there, all of them.
    pub(super) fn has(&self, sha256: Sha256, size: Size) -> io::Result<bool> {
        match fs::metadata(self.whole(sha256)) {
            Ok(found) => Ok(found.is_file() && found.len() == size.bytes()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(super) fn read(&self, sha256: Sha256) -> io::Result<File> {
        File::open(self.whole(sha256))
    }

    /// The first bytes of an image that is there.
    pub(super) fn head(&self, sha256: Sha256) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        let file = self.read(sha256)?;
        file.take(IMAGE_HEAD as u64).read_to_end(&mut head)?;
        Ok(head)
    }

    /// Numbers of the parts of an upload that have not come.
    pub(super) fn missing(&self, sha256: Sha256, size: Size) -> io::Result<Vec<u32>> {
        let mut have = BTreeSet::new();
        match fs::read_dir(self.upload(sha256)) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry?.file_name();
                    have.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok((0..parts(size)).filter(|n| !have.contains(n)).collect())
    }

    /// A part of an upload; the same again does no harm.
    pub(super) fn write(&self, sha256: Sha256, part: u32, bytes: &[u8]) -> io::Result<()> {
        let upload = self.upload(sha256);
        make_dir(&upload).map_err(io::Error::other)?;
        let data = open_private(&upload.join("data"))?;
        data.write_all_at(bytes, u64::from(part) * IMAGE_PART)?;
        // What is said to be here is on the disk, also after a power cut.
        data.sync_data()?;
        open_private(&upload.join(part.to_string())).map(drop)
    }

    /// Reads an upload to its end.
    pub(super) fn examine(&self, sha256: Sha256) -> io::Result<Whole> {
        let mut data = File::open(self.upload(sha256).join("data"))?;
        let mut hash = Hash::new();
        let mut head = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = data.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            let wanted = (IMAGE_HEAD - head.len()).min(read);
            head.extend_from_slice(&buffer[..wanted]);
            hash.update(&buffer[..read]);
        }
        let sha256 = Sha256::from_bytes(hash.finalize().into());
        Ok(Whole { sha256, head })
    }

    /// An upload was examined, and is what it should be.
    pub(super) fn keep(&self, sha256: Sha256) -> io::Result<()> {
        let upload = self.upload(sha256);
        let data = upload.join("data");
        File::open(&data)?.sync_all()?;
        fs::rename(&data, self.whole(sha256))?;
        File::open(&self.0)?.sync_all()?;
        gone_is_fine(fs::remove_dir_all(upload))
    }

    /// An upload is not what it should be.
    pub(super) fn drop_upload(&self, sha256: Sha256) -> io::Result<()> {
        gone_is_fine(fs::remove_dir_all(self.upload(sha256)))
    }

    /// Removes the bytes that are not among `keep`, and uploads that are not
    /// among them either and of which nothing came for so long; says what was
    /// removed. What is not of this module's making stays.
    pub(super) fn tidy(
        &self,
        keep: &BTreeSet<Sha256>,
        abandoned: Duration,
    ) -> io::Result<Vec<String>> {
        let mut removed = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let (digits, is_upload) = match name.strip_suffix(".part") {
                Some(digits) => (digits, true),
                None => (&*name, false),
            };
            let Ok(sha256) = digits.parse::<Sha256>() else {
                continue;
            };
            if digits != sha256.to_string() {
                continue;
            }
            if is_upload {
                // Every part that comes changes it.
                let changed = entry.metadata()?.modified()?;
                let age = SystemTime::now().duration_since(changed);
                if age.unwrap_or_default() < abandoned {
                    continue;
                }
                gone_is_fine(fs::remove_dir_all(entry.path()))?;
            } else if !keep.contains(&sha256) {
                gone_is_fine(fs::remove_file(entry.path()))?;
            } else {
                continue;
            }
            removed.push(name);
        }
        Ok(removed)
    }
}
