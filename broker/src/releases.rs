//! Agent releases: the executables that `muster agent upgrade` gives to nodes.
//!
//! A release is a sequence of parts in a stream of its own, and, once all of
//! it was there and its hash was right, a message that says what it is. The
//! stream is where a standby finds them when it takes over. It is made when
//! the first release comes, and holds the newest few.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::jetstream::Context;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::api::{ReleaseUpload, ReleaseView, UPLOAD_PART};
use muster_protocol::names::PrincipalName;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::release::{Inspector, MAX_RELEASE, ReleaseError, ReleaseId};
use muster_protocol::subject::{
    RELEASE_ALL, RELEASE_META_ALL, release_all, release_meta, release_part,
};
use muster_protocol::units::Timestamp;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use crate::events::Events;
use crate::lease::Lease;
use crate::store::append::{Append, append};
use crate::store::error::StreamError;
use crate::store::read::{last_payload, read_from};
use crate::store::stream::{StreamSettings, ensure_stream, purge_subject};

/// The stream.
pub const STREAM: &str = "MUSTER_RELEASES";
/// Whole releases that are kept; the oldest goes for a new one.
pub const KEEP: usize = 4;
/// An upload of which nothing came for so long may be pushed aside.
const ABANDONED: Duration = Duration::from_secs(60);
/// Nodes that fetch at a time; the others ask again.
const FETCHES: usize = 32;
/// How long a node may take for one part.
const PART_WITHIN: Duration = Duration::from_secs(60);

/// Why a release was not taken or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleasesError {
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// Too large, or empty.
    #[error("a release of {0} bytes is not taken; at most {MAX_RELEASE} bytes are")]
    Size(u64),
    /// Somebody else uploads.
    #[error("another release is being uploaded; try again when it is there")]
    Busy,
    /// Parts without an offer.
    #[error("no upload of release {0} is under way; announce it first")]
    NoUpload(String),
    /// A part that there cannot be.
    #[error("part {part} of this release must have {wanted} bytes, not {got}")]
    Part {
        /// Its number.
        part: u32,
        /// Bytes that it must have; 0 for no such part.
        wanted: u64,
        /// Bytes that came.
        got: u64,
    },
    /// A commit too early.
    #[error("{0} parts of this release are missing; send them, then commit again")]
    Missing(usize),
    /// The bytes are not those that were announced.
    #[error(
        "the bytes that came are not those of release {wanted}: their hash is {got}; send it again"
    )]
    Hash {
        /// As announced.
        wanted: String,
        /// As computed.
        got: String,
    },
    /// Not an agent.
    #[error("this file is not a release: {0}; give the muster-agent that nodes are to run")]
    Strange(#[from] ReleaseError),
    /// An agent that this broker could not talk to.
    #[error(
        "release {version} speaks protocol {theirs}, this broker speaks {PROTOCOL_VERSION}; upgrade the broker first"
    )]
    Protocol {
        /// Its version.
        version: String,
        /// Its protocol.
        theirs: u32,
    },
    /// No such release.
    #[error("this broker has no release {0}; upload it: muster agent upgrade does")]
    None(String),
    /// NATS.
    #[error("a release could not be stored or read: {0}")]
    Store(#[from] StreamError),
}

impl ReleasesError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::NotActive | Self::Store(_) => Kind::Unavailable,
            Self::Size(_) => Kind::TooLarge,
            Self::Busy | Self::NoUpload(_) | Self::Missing(_) => Kind::Conflict,
            Self::Part { .. } | Self::Hash { .. } | Self::Strange(_) => Kind::InvalidRequest,
            Self::Protocol { .. } => Kind::Incompatible,
            Self::None(_) => Kind::NotFound,
        };
        let text = self.to_string();
        match text.split_once("; ") {
            Some((title, hint)) => Problem::new(kind, title).hint(hint),
            None => Problem::new(kind, text),
        }
    }
}

/// The bytes of a release, as they come.
pub type Pieces = mpsc::Receiver<std::io::Result<Bytes>>;

/// All releases. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Releases(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    js: Context,
    lease: Lease,
    events: Events,
    stored: RwLock<BTreeMap<ReleaseId, ReleaseView>>,
    uploads: Mutex<Uploads>,
    fetches: Arc<Semaphore>,
}

/// What comes in.
#[derive(Debug, Default)]
struct Uploads {
    now: Option<Upload>,
    /// What a broker before this one left half done was looked for.
    swept: bool,
}

/// What is being uploaded.
#[derive(Debug)]
struct Upload {
    id: ReleaseId,
    size: u64,
    have: BTreeSet<u32>,
    moved: Instant,
}

fn parts(size: u64) -> u32 {
    u32::try_from(size.div_ceil(u64::from(UPLOAD_PART))).unwrap_or(u32::MAX)
}

impl Upload {
    fn missing(&self) -> Vec<u32> {
        (0..parts(self.size))
            .filter(|part| !self.have.contains(part))
            .collect()
    }

    /// Bytes that a part must have; 0 when there is no such part.
    fn length(&self, part: u32) -> u64 {
        let begin = u64::from(part) * u64::from(UPLOAD_PART);
        self.size.saturating_sub(begin).min(UPLOAD_PART.into())
    }
}

impl Releases {
    /// Reads what there is.
    ///
    /// # Errors
    /// [`ReleasesError::Store`].
    pub async fn open(js: Context, lease: Lease, events: Events) -> Result<Self, ReleasesError> {
        let mut stored = BTreeMap::new();
        match read_from(&js, STREAM, RELEASE_META_ALL, 1).await {
            Err(StreamError::NoStream(_)) => {}
            Err(e) => return Err(e.into()),
            Ok(mut messages) => {
                while let Some(message) = messages.try_next().await? {
                    match serde_json::from_slice::<ReleaseView>(&message.payload) {
                        Ok(view) => drop(stored.insert(view.id, view)),
                        Err(error) => {
                            tracing::warn!(%error, subject = message.subject, "not a release");
                        }
                    }
                }
            }
        }
        Ok(Self(Arc::new(Inner {
            js,
            lease,
            events,
            stored: RwLock::new(stored),
            uploads: Mutex::default(),
            fetches: Arc::new(Semaphore::new(FETCHES)),
        })))
    }

    /// All of them, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<ReleaseView> {
        let mut all: Vec<_> = self.stored().values().cloned().collect();
        all.sort_by_key(|view| std::cmp::Reverse(view.stored));
        all
    }

    /// One of them.
    ///
    /// # Errors
    /// [`ReleasesError::None`].
    pub fn get(&self, id: ReleaseId) -> Result<ReleaseView, ReleasesError> {
        self.stored()
            .get(&id)
            .cloned()
            .ok_or_else(|| ReleasesError::None(id.short()))
    }

    fn stored(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<ReleaseId, ReleaseView>> {
        self.0.stored.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> Result<(), ReleasesError> {
        match self.0.lease.epoch() {
            Some(_) => Ok(()),
            None => Err(ReleasesError::NotActive),
        }
    }

    /// Somebody has a release of that hash and size: what is missing of it.
    ///
    /// # Errors
    /// [`ReleasesError`].
    pub async fn offer(&self, id: ReleaseId, size: u64) -> Result<ReleaseUpload, ReleasesError> {
        if size == 0 || size > MAX_RELEASE {
            return Err(ReleasesError::Size(size));
        }
        let answer = |stored, missing| ReleaseUpload {
            stored,
            part_bytes: UPLOAD_PART,
            missing,
        };
        if let Ok(view) = self.get(id) {
            return Ok(answer(Some(view), Vec::new()));
        }
        self.active()?;
        let mut uploads = self.0.uploads.lock().await;
        match &uploads.now {
            Some(now) if now.id == id && now.size == size => {
                return Ok(answer(None, now.missing()));
            }
            Some(now) if now.id != id && now.moved.elapsed() < ABANDONED => {
                return Err(ReleasesError::Busy);
            }
            _ => {}
        }
        let js = &self.0.js;
        let settings = StreamSettings {
            max_per_subject: Some(1),
            ..StreamSettings::journal(STREAM, "agent releases", &[RELEASE_ALL])
        };
        ensure_stream(js, &settings).await?;
        if let Some(left) = uploads.now.take().filter(|left| left.id != id) {
            purge_subject(js, STREAM, &release_all(left.id)).await?;
        }
        if !uploads.swept {
            self.sweep().await?;
            uploads.swept = true;
        }
        for old in self.list().iter().skip(KEEP - 1) {
            self.forget(old).await?;
        }
        let begun = Upload {
            id,
            size,
            have: BTreeSet::new(),
            moved: Instant::now(),
        };
        let missing = begun.missing();
        uploads.now = Some(begun);
        Ok(answer(None, missing))
    }

    /// Removes what is not whole.
    async fn sweep(&self) -> Result<(), ReleasesError> {
        let keep: BTreeSet<ReleaseId> = self.stored().keys().copied().collect();
        let mut stale = BTreeSet::new();
        let mut messages = read_from(&self.0.js, STREAM, RELEASE_ALL, 1).await?;
        while let Some(message) = messages.try_next().await? {
            let id = message
                .subject
                .split('.')
                .nth(2)
                .and_then(|t| t.parse().ok());
            if let Some(id) = id.filter(|id: &ReleaseId| !keep.contains(id)) {
                stale.insert(id);
            }
        }
        for id in stale {
            purge_subject(&self.0.js, STREAM, &release_all(id)).await?;
        }
        Ok(())
    }

    async fn forget(&self, view: &ReleaseView) -> Result<(), ReleasesError> {
        // First what says that it is whole.
        purge_subject(&self.0.js, STREAM, &release_meta(view.id)).await?;
        self.0
            .stored
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&view.id);
        purge_subject(&self.0.js, STREAM, &release_all(view.id)).await?;
        tracing::info!(release = %view.id, version = %view.release.version, "a release is removed");
        Ok(())
    }

    /// Removes a release.
    ///
    /// # Errors
    /// [`ReleasesError`].
    pub async fn remove(&self, id: ReleaseId, by: &PrincipalName) -> Result<(), ReleasesError> {
        self.active()?;
        let view = self.get(id)?;
        self.forget(&view).await?;
        let text = format!("{by} removed agent release {}", view.release.version);
        self.0
            .events
            .emit("release.removed", &id.short(), text)
            .await;
        Ok(())
    }

    /// A part of what is being uploaded. The same again does no harm.
    ///
    /// # Errors
    /// [`ReleasesError`].
    pub async fn part(&self, id: ReleaseId, part: u32, data: Bytes) -> Result<(), ReleasesError> {
        self.active()?;
        let mut uploads = self.0.uploads.lock().await;
        let upload = uploads
            .now
            .as_mut()
            .filter(|upload| upload.id == id)
            .ok_or_else(|| ReleasesError::NoUpload(id.short()))?;
        let (wanted, got) = (upload.length(part), data.len() as u64);
        if wanted == 0 || wanted != got {
            return Err(ReleasesError::Part { part, wanted, got });
        }
        append(
            &self.0.js,
            STREAM,
            &Append::new(release_part(id, part), data),
        )
        .await?;
        upload.have.insert(part);
        upload.moved = Instant::now();
        Ok(())
    }

    /// All parts are there: reads them, and takes them as a release if they
    /// are what was announced.
    ///
    /// # Errors
    /// [`ReleasesError`]; what was wrong is thrown away.
    pub async fn commit(
        &self,
        id: ReleaseId,
        by: &PrincipalName,
    ) -> Result<ReleaseView, ReleasesError> {
        if let Ok(view) = self.get(id) {
            return Ok(view);
        }
        self.active()?;
        let mut held = self.0.uploads.lock().await;
        let upload = held
            .now
            .as_ref()
            .filter(|upload| upload.id == id)
            .ok_or_else(|| ReleasesError::NoUpload(id.short()))?;
        let (size, missing) = (upload.size, upload.missing());
        if !missing.is_empty() {
            return Err(ReleasesError::Missing(missing.len()));
        }
        let release = match self.check(id, size).await {
            Ok(release) => release,
            // What is there may be whole; it can be asked again.
            Err(error @ ReleasesError::Store(_)) => return Err(error),
            Err(error) => {
                held.now = None;
                purge_subject(&self.0.js, STREAM, &release_all(id)).await?;
                return Err(error);
            }
        };
        let view = ReleaseView {
            id,
            size,
            release,
            stored: Timestamp::now(),
            by: by.clone(),
        };
        self.active()?;
        let json = serde_json::to_vec(&view).expect("a release has a JSON form");
        append(&self.0.js, STREAM, &Append::new(release_meta(id), json)).await?;
        self.0
            .stored
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, view.clone());
        held.now = None;
        let text = format!(
            "{by} uploaded muster-agent {} for {}, {} bytes, sha256 {id}",
            view.release.version,
            view.release.build.platform(),
            view.size
        );
        self.0
            .events
            .emit("release.stored", &id.short(), text)
            .await;
        Ok(view)
    }

    async fn check(
        &self,
        id: ReleaseId,
        size: u64,
    ) -> Result<muster_protocol::release::Release, ReleasesError> {
        let mut inspector = Inspector::new();
        for part in 0..parts(size) {
            let data = self.read(id, part).await?;
            // Hashing half a megabyte takes a while in a debug build.
            inspector = tokio::task::spawn_blocking(move || {
                inspector.push(&data);
                inspector
            })
            .await
            .map_err(|e| StreamError::Refused {
                what: "the check of a release".into(),
                reason: e.to_string(),
            })?;
        }
        let seen = inspector.finish();
        if seen.id != id || seen.size != size {
            return Err(ReleasesError::Hash {
                wanted: id.short(),
                got: seen.id.short(),
            });
        }
        let release = seen.release?;
        if release.protocol != PROTOCOL_VERSION {
            return Err(ReleasesError::Protocol {
                version: release.version.to_string(),
                theirs: release.protocol,
            });
        }
        Ok(release)
    }

    async fn read(&self, id: ReleaseId, part: u32) -> Result<Bytes, ReleasesError> {
        last_payload(&self.0.js, STREAM, &release_part(id, part))
            .await?
            .ok_or_else(|| ReleasesError::None(id.short()))
    }

    /// The bytes of a release from `from` on, in pieces as they are asked
    /// for; `None` when too many nodes fetch now.
    ///
    /// # Errors
    /// [`ReleasesError::None`].
    pub fn fetch(&self, id: ReleaseId, from: u64) -> Result<Option<(u64, Pieces)>, ReleasesError> {
        let view = self.get(id)?;
        let Ok(permit) = Arc::clone(&self.0.fetches).try_acquire_owned() else {
            return Ok(None);
        };
        let (send, pieces) = mpsc::channel(2);
        let left = view.size.saturating_sub(from);
        tokio::spawn(self.clone().feed(view, from, send, permit));
        Ok(Some((left, pieces)))
    }

    async fn feed(
        self,
        view: ReleaseView,
        from: u64,
        send: mpsc::Sender<std::io::Result<Bytes>>,
        permit: OwnedSemaphorePermit,
    ) {
        let _permit = permit;
        let size = u64::from(UPLOAD_PART);
        let first = u32::try_from(from / size).unwrap_or(u32::MAX);
        for part in first..parts(view.size) {
            let piece = match self.read(view.id, part).await {
                Ok(data) if part == first => {
                    let skip = usize::try_from(from % size).unwrap_or(usize::MAX);
                    Ok(data.slice(skip.min(data.len())..))
                }
                Ok(data) => Ok(data),
                Err(error) => {
                    tracing::warn!(release = %view.id, part, %error, "a release cannot be read");
                    Err(std::io::Error::other(error.to_string()))
                }
            };
            let failed = piece.is_err();
            if send.send_timeout(piece, PART_WITHIN).await.is_err() || failed {
                return;
            }
        }
    }
}
