//! Why an image was not taken or found.

use std::io;
use std::path::PathBuf;

use muster_protocol::names::ImageName;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::vm::{ImageFault, Sha256, Size};

use super::{MAX_IMAGE, MAX_IMAGES, MAX_UPLOADS, MAX_URL};
use crate::store::kv::KvError;

/// Why something about images failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImagesError {
    /// No such image.
    #[error("there is no image `{0}`; `muster image list` shows what there is")]
    None(ImageName),
    /// No image has these bytes.
    #[error("no image here has the SHA-256 {0}; it was removed, or never added")]
    Unknown(Sha256),
    /// The name is taken by other bytes.
    #[error("there is an image `{0}` of other bytes; take another name, or replace it: --replace")]
    Exists(ImageName),
    /// Its bytes are somewhere else.
    #[error(
        "the bytes of image `{image}` are not in {} of this broker: another one took them; add the image again from its file, or let the brokers share the directory: `images` in their configuration",
        .directory.display()
    )]
    Absent {
        /// Which image.
        image: ImageName,
        /// Where they were looked for.
        directory: PathBuf,
    },
    /// Too large, or empty.
    #[error("an image of {0} is not taken; it has 1 byte to {MAX_IMAGE}")]
    Size(Size),
    /// Not an address.
    #[error(
        "this is not an address to fetch an image from: {0}; write it like https://images.example.org/debian-12.qcow2, in at most {MAX_URL} bytes"
    )]
    Url(&'static str),
    /// Too many.
    #[error("there are {MAX_IMAGES} images; remove some first")]
    TooMany,
    /// Too many at a time.
    #[error("{MAX_UPLOADS} images are being uploaded; try again when one of them is there")]
    Busy,
    /// Parts without an announcement.
    #[error("no upload of image `{0}` is under way; announce it again, what has come is kept")]
    NoUpload(ImageName),
    /// A part that there cannot be.
    #[error("part {part} of this image must have {wanted} bytes, not {got}")]
    Part {
        /// Its number.
        part: u32,
        /// Bytes that it must have; 0 for no such part.
        wanted: u64,
        /// Bytes that came.
        got: u64,
    },
    /// A commit too early.
    #[error("{0} parts of this image are missing; send them, then commit again")]
    Missing(usize),
    /// The bytes are not those that were announced.
    #[error(
        "the bytes that came are not those of the image: their SHA-256 is {got}, announced was {wanted}; send it again"
    )]
    Hash {
        /// As announced.
        wanted: Sha256,
        /// As computed.
        got: Sha256,
    },
    /// Nobody can start a machine of it.
    #[error(transparent)]
    Fault(#[from] ImageFault),
    /// Its disk is another one than was said.
    #[error("a disk of this image has {is} bytes, announced were {said}; announce what it has", is = .is.bytes(), said = .said.bytes())]
    VirtualSize {
        /// As its header says.
        is: Size,
        /// As announced.
        said: Size,
    },
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// No room on the disk.
    #[error("there is no room for the image in {}; make room there, then send it again: what has come is kept", .0.display())]
    NoRoom(PathBuf),
    /// The disk.
    #[error("cannot {action} in {}: {error}", .directory.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// Where.
        directory: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// NATS.
    #[error("an image could not be stored or read: {0}")]
    Store(#[from] KvError),
}

impl ImagesError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::None(_) | Self::Unknown(_) | Self::Absent { .. } => Kind::NotFound,
            Self::Exists(_) | Self::TooMany | Self::NoUpload(_) | Self::Missing(_) => {
                Kind::Conflict
            }
            Self::Busy => Kind::RateLimited,
            Self::Size(_) => Kind::TooLarge,
            Self::Url(_)
            | Self::Part { .. }
            | Self::Hash { .. }
            | Self::Fault(_)
            | Self::VirtualSize { .. } => Kind::InvalidRequest,
            Self::NoRoom(_) => Kind::NoRoom,
            Self::NotActive | Self::Store(_) => Kind::Unavailable,
            Self::Disk { .. } => Kind::Internal,
        };
        let text = self.to_string();
        match text.split_once("; ") {
            Some((title, hint)) => Problem::new(kind, title).hint(hint),
            None => Problem::new(kind, text),
        }
    }
}

impl From<ImagesError> for crate::http::ApiError {
    fn from(error: ImagesError) -> Self {
        match error {
            ImagesError::Store(_) => Self::storage(&error),
            ImagesError::Disk { .. } => {
                tracing::error!(%error, "the disk of images fails");
                error.problem().into()
            }
            error => error.problem().into(),
        }
    }
}
