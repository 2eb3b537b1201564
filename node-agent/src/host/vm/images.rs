//! Images on the disk of a hypervisor: fetched once, whole, held against
//! their hash before anything can use them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use muster_protocol::vm::{IMAGE_HEAD, ImageFault, ImageRef, Sha256, Size, virtual_size};
use sha2::{Digest as _, Sha256 as Hash};

use super::files::{Files, sync_dir};
use super::machines::Progress;
use super::source::{Source, SourceError};
use crate::pace::Backoff;

/// Tries without a single new byte before it is given up.
const TRIES: u32 = 5;
/// Bytes between two lines that say how far it is, at least; a twentieth of a
/// large image.
const SAY_EVERY: u64 = 64 << 20;
/// What is read at once when a part is gone on with.
const BLOCK: usize = 1 << 20;

/// Why an image is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// It does not come.
    #[error("the image {image} does not come: {source}; what came of it is kept, and gone on with")]
    Source {
        /// Which.
        image: String,
        /// Why.
        source: SourceError,
    },
    /// The bytes are others.
    #[error(
        "the image {image} has another hash than it should ({found}); it was thrown away. Add it anew: muster image add"
    )]
    Hash {
        /// Which.
        image: String,
        /// The hash of what came.
        found: Sha256,
    },
    /// Too long.
    #[error("more came of the image {image} than its {size}; it was thrown away")]
    Long {
        /// Which.
        image: String,
        /// How long it is.
        size: Size,
    },
    /// Its header.
    #[error("the image {image} cannot be used: {fault}")]
    Fault {
        /// Which.
        image: String,
        /// Why.
        fault: ImageFault,
    },
    /// Another size than was said.
    #[error("the image {image} is one of a disk of {found}, and not of {said}")]
    Virtual {
        /// Which.
        image: String,
        /// What its header says.
        found: Size,
        /// What was said.
        said: Size,
    },
    /// The file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Whether an image is here, whole.
pub(super) fn is_here(files: &Files, image: &ImageRef) -> bool {
    let found = fs::symlink_metadata(files.image(image));
    found.is_ok_and(|found| found.is_file() && found.len() == image.size.bytes())
}

/// What has come so far.
struct Part {
    file: File,
    hash: Hash,
    have: u64,
}

impl Part {
    /// Goes on with what an earlier try left, if it did.
    fn open(path: &Path) -> io::Result<Self> {
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(flags.cast_signed())
            .open(path)?;
        if !file.metadata()?.is_file() || file.metadata()?.nlink() != 1 {
            return Err(io::Error::other("it is no file of its own"));
        }
        let mut part = Self {
            hash: Hash::new(),
            have: 0,
            file: file.try_clone()?,
        };
        let mut block = vec![0; BLOCK];
        loop {
            let count = file.read(&mut block)?;
            if count == 0 {
                return Ok(part);
            }
            part.hash.update(&block[..count]);
            part.have += count as u64;
        }
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hash = Hash::new();
        self.have = 0;
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }
}

/// Fetches an image that is not here. One at a time of each.
pub(super) async fn fetch(
    files: &Files,
    image: &ImageRef,
    source: &dyn Source,
    say: &dyn Progress,
) -> Result<(), ImageError> {
    let path = files.coming(image);
    let name = || image.name.to_string();
    let disk = |source| ImageError::File {
        path: path.clone(),
        source,
    };
    let opened = path.clone();
    // A large part takes a while to read.
    let opened = tokio::task::spawn_blocking(move || Part::open(&opened)).await;
    let mut part = opened
        .map_err(|e| disk(io::Error::other(e)))?
        .map_err(disk)?;
    let throw_away = || {
        let _ = super::files::remove(&path);
    };
    if part.have > image.size.bytes() {
        part.restart().map_err(disk)?;
    }
    let mut backoff = Backoff::new(Duration::from_millis(300), Duration::from_secs(10));
    let mut tries = 0;
    let step = SAY_EVERY.max(image.size.bytes() / 20);
    let mut said = part.have;
    while part.have < image.size.bytes() {
        let before = part.have;
        let error = match source.image(image, part.have).await {
            Err(error) => Some(error),
            Ok(mut coming) => {
                if coming.from != part.have {
                    part.restart().map_err(disk)?;
                    said = 0;
                }
                let mut error = None;
                while let Some(piece) = coming.pieces.next().await {
                    let bytes = match piece {
                        Ok(bytes) => bytes,
                        Err(e) => {
                            error = Some(e);
                            break;
                        }
                    };
                    if part.have + bytes.len() as u64 > image.size.bytes() {
                        throw_away();
                        return Err(ImageError::Long {
                            image: name(),
                            size: image.size,
                        });
                    }
                    part.push(&bytes).map_err(disk)?;
                    if part.have >= said + step {
                        said = part.have;
                        say.say(format!(
                            "image {}: {} of {}",
                            image.name,
                            Size(said),
                            image.size
                        ))
                        .await;
                    }
                }
                error
            }
        };
        if part.have >= image.size.bytes() {
            break;
        }
        let error = error.unwrap_or_else(|| {
            SourceError::Http(crate::http::HttpError::Unreachable {
                url: "the image's source".to_owned(),
                why: format!("it broke off after {} bytes", part.have),
            })
        });
        tries = match part.have > before {
            true => 0,
            false if error.is_busy() => tries,
            false => tries + 1,
        };
        if error.is_final() || tries >= TRIES {
            return Err(ImageError::Source {
                image: name(),
                source: error,
            });
        }
        if part.have > before {
            backoff.reset();
        }
        tokio::time::sleep(backoff.wait()).await;
    }
    let found = Sha256::from_bytes(std::mem::take(&mut part.hash).finalize().into());
    if found != image.sha256 {
        throw_away();
        return Err(ImageError::Hash {
            image: name(),
            found,
        });
    }
    if let Err(error) = check(&mut part.file, image).map_err(disk)? {
        throw_away();
        return Err(error);
    }
    let to = files.image(image);
    part.file
        .sync_all()
        .and_then(|()| fs::rename(&path, &to))
        .and_then(|()| sync_dir(&to))
        .map_err(disk)
}

/// Whether a file is what was said, by its first bytes.
fn check(file: &mut File, image: &ImageRef) -> io::Result<Result<(), ImageError>> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(IMAGE_HEAD as u64).read_to_end(&mut head)?;
    let name = image.name.to_string();
    Ok(match virtual_size(image.format, &head, image.size) {
        Err(fault) => Err(ImageError::Fault { image: name, fault }),
        Ok(found) if found != image.virtual_size => Err(ImageError::Virtual {
            image: name,
            found,
            said: image.virtual_size,
        }),
        Ok(_) => Ok(()),
    })
}
