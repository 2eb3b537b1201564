//! Disk images: which there are, and the bytes of those that were uploaded.
//!
//! What an image is, is a key of a bucket. Bytes that were uploaded are on
//! the disk of the broker that took them, under their hash; with several
//! brokers that directory may be a shared one. Bytes of an image by URL are
//! fetched by each hypervisor itself, and the hash decides there.

mod disk;
mod error;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use muster_protocol::api::{ImageUpload, ImageView, PutImage};
use muster_protocol::names::{ImageName, PrincipalName};
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{ImageFault, ImageRef, MAX_DISK, Sha256, Size, virtual_size};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedSemaphorePermit, RwLock, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::disk::{Directory, part_length};
pub use self::error::ImagesError;
use crate::authz::Authorized;
use crate::events::Events;
use crate::lease::Lease;
use crate::releases::Pieces;
use crate::store::kv::Kv;

/// Most images.
pub const MAX_IMAGES: usize = 1_000;
/// Most bytes of one.
pub const MAX_IMAGE: Size = Size(1 << 40);
/// Most uploads at a time.
pub const MAX_UPLOADS: usize = 16;
/// Longest address of one.
pub const MAX_URL: usize = 2_000;
/// An upload of which nothing came for so long is forgotten.
const ABANDONED: Duration = Duration::from_secs(86_400);
/// One of which nothing came for so long may be pushed aside by another: what
/// has come of it is kept.
const IDLE: Duration = Duration::from_secs(60);
/// How often it is looked for such uploads.
const TIDY_EVERY: Duration = Duration::from_secs(3_600);
/// Hypervisors that fetch at a time; the others ask again.
const FETCHES: usize = 8;
/// How long a hypervisor may take for one piece.
const PIECE_WITHIN: Duration = Duration::from_secs(60);
/// Bytes that are read from the disk at a time.
const PIECE: usize = 256 << 10;

/// A value of `muster_images`; the key is the image's name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredImage {
    /// What it is.
    image: ImageRef,
    /// Where its bytes are; on a broker's disk when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// Who added it.
    by: PrincipalName,
    /// When.
    added: Timestamp,
}

impl StoredImage {
    fn new(name: ImageName, put: &PutImage, by: PrincipalName) -> Self {
        let image = ImageRef {
            name,
            sha256: put.sha256,
            size: put.size,
            format: put.format,
            virtual_size: put.virtual_size,
        };
        Self {
            image,
            url: put.url.clone(),
            by,
            added: Timestamp::now(),
        }
    }

    fn view(&self, uses: Uses) -> ImageView {
        let image = self.image.clone();
        ImageView {
            name: image.name,
            sha256: image.sha256,
            size: image.size,
            format: image.format,
            virtual_size: image.virtual_size,
            url: self.url.clone(),
            on: uses.on,
            machines: uses.machines,
            by: self.by.clone(),
            added: self.added,
        }
    }

    /// Whether it is the same image, wherever its bytes are.
    fn is(&self, put: &PutImage) -> bool {
        let image = &self.image;
        (image.sha256, image.size, image.format, image.virtual_size)
            == (put.sha256, put.size, put.format, put.virtual_size)
    }
}

/// Who has an image, as far as whoever asks knows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Uses {
    /// Hypervisors that have its bytes.
    pub on: u32,
    /// Machines that were made of them.
    pub machines: u32,
}

/// Where the bytes of an image are.
#[derive(Debug)]
pub enum Source {
    /// Whoever wants them fetches them there.
    Url(String),
    /// Here: how many are left, and those.
    Bytes(u64, Pieces),
    /// Here, and too many fetch now.
    Busy,
}

/// All images. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Images(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bucket: Kv<StoredImage>,
    directory: Directory,
    lease: Lease,
    events: Events,
    held: StdMutex<BTreeMap<ImageName, Held>>,
    /// What was announced and is not whole yet.
    uploads: StdMutex<BTreeMap<ImageName, Upload>>,
    /// Held by whoever makes or removes a name or bytes: none go while a name
    /// is made for them.
    writing: Mutex<()>,
    fetches: Arc<Semaphore>,
}

/// What is being uploaded.
#[derive(Clone, Debug)]
struct Upload {
    put: PutImage,
    moved: Instant,
    /// Held to read by who writes a part, to write by who reads them all:
    /// what was checked is what is kept. Uploads of the same bytes have one.
    gate: Arc<RwLock<()>>,
}

/// An image with the revision to name when it is replaced.
#[derive(Clone, Debug)]
struct Held {
    stored: StoredImage,
    revision: u64,
}

impl Images {
    /// Reads which there are, and removes bytes that no name refers to.
    ///
    /// # Errors
    /// [`ImagesError::Store`], [`ImagesError::Disk`].
    pub async fn open(
        directory: PathBuf,
        bucket: Kv<StoredImage>,
        lease: Lease,
        events: Events,
    ) -> Result<Self, ImagesError> {
        let opened = Directory::open(directory.clone());
        let directory = opened.map_err(|error| ImagesError::Disk {
            action: "keep images",
            directory,
            error,
        })?;
        let mut held = BTreeMap::new();
        for entry in bucket.list().await?.entries {
            match entry.key.parse::<ImageName>() {
                Ok(name) => {
                    let (stored, revision) = (entry.value, entry.revision);
                    held.insert(name, Held { stored, revision });
                }
                Err(error) => tracing::warn!(%error, "an image that muster never makes"),
            }
        }
        let images = Self(Arc::new(Inner {
            bucket,
            directory,
            lease,
            events,
            held: StdMutex::new(held),
            uploads: StdMutex::default(),
            writing: Mutex::new(()),
            fetches: Arc::new(Semaphore::new(FETCHES)),
        }));
        images.tidy().await;
        Ok(images)
    }

    /// Removes uploads that nobody goes on with, until `cancel`.
    pub async fn keep(self, cancel: CancellationToken) {
        let pause = || tokio::time::sleep(TIDY_EVERY);
        while cancel.run_until_cancelled(pause()).await.is_some() {
            let _one = self.0.writing.lock().await;
            if self.active().is_ok() {
                self.tidy().await;
            }
        }
    }

    /// All of them, by name; `uses` says who has which bytes.
    #[must_use]
    pub fn list(&self, uses: impl Fn(&Sha256) -> Uses) -> Vec<ImageView> {
        let view = |held: &Held| held.stored.view(uses(&held.stored.image.sha256));
        self.held().values().map(view).collect()
    }

    /// What machines of that name's image are made of, from now on.
    #[must_use]
    pub fn get(&self, name: &ImageName) -> Option<ImageRef> {
        let held = self.held();
        held.get(name).map(|held| held.stored.image.clone())
    }

    /// An image is known under a name, at once where its bytes are by URL or
    /// here; else it says what is to be sent.
    ///
    /// # Errors
    /// [`ImagesError`]; nothing was changed.
    pub async fn put(
        &self,
        put: Authorized<(ImageName, PutImage)>,
    ) -> Result<ImageUpload, ImagesError> {
        let by = put.principal().clone();
        let (name, put) = put.into_inner();
        check(&put)?;
        let _one = self.0.writing.lock().await;
        self.active()?;
        let old = self.held().get(&name).map(|held| held.stored.clone());
        if let Some(old) = &old {
            let same = old.is(&put);
            if !same && !put.replace {
                return Err(ImagesError::Exists(name));
            }
            // Whoever says again what is so changes nothing; bytes that are
            // not here may come again.
            let whole = match &put.url {
                Some(_) => old.url == put.url,
                None => old.url.is_none() && self.has(put.sha256, put.size).await?,
            };
            if same && whole {
                let image = Some(old.view(Uses::default()));
                let missing = Vec::new();
                return Ok(ImageUpload { image, missing });
            }
        } else if self.held().len() >= MAX_IMAGES {
            return Err(ImagesError::TooMany);
        }
        let here = put.url.is_none();
        if !here || self.has(put.sha256, put.size).await? {
            if here {
                self.whole(&put).await?;
            }
            let view = self.store(name, &put, by).await?;
            return Ok(ImageUpload {
                image: Some(view),
                missing: Vec::new(),
            });
        }
        let (sha256, size) = (put.sha256, put.size);
        let missing = self.disk("read an upload", move |d| d.missing(sha256, size));
        let missing = missing.await?;
        self.announce(name, put)?;
        Ok(ImageUpload {
            image: None,
            missing,
        })
    }

    /// Whoever goes on with an upload has a place.
    fn announce(&self, name: ImageName, put: PutImage) -> Result<(), ImagesError> {
        let mut uploads = self.uploads();
        if !uploads.contains_key(&name) && uploads.len() >= MAX_UPLOADS {
            let idle = uploads
                .iter()
                .max_by_key(|(_, upload)| upload.moved.elapsed());
            let idle = idle.filter(|(_, upload)| upload.moved.elapsed() > IDLE);
            let idle = idle.map(|(name, _)| name.clone());
            uploads.remove(&idle.ok_or(ImagesError::Busy)?);
        }
        let same = uploads
            .values()
            .find(|other| other.put.sha256 == put.sha256);
        let gate = same.map_or_else(Arc::default, |other| Arc::clone(&other.gate));
        let moved = Instant::now();
        uploads.insert(name, Upload { put, moved, gate });
        Ok(())
    }

    fn upload(&self, name: &ImageName) -> Option<Upload> {
        self.uploads().get(name).cloned()
    }

    /// A part of what is being uploaded. The same again does no harm.
    ///
    /// # Errors
    /// [`ImagesError`].
    pub async fn part(&self, name: &ImageName, part: u32, data: Bytes) -> Result<(), ImagesError> {
        self.active()?;
        let none = || ImagesError::NoUpload(name.clone());
        let gate = self.upload(name).ok_or_else(none)?.gate;
        let _gate = gate.read().await;
        // It may have ended while this waited.
        let Upload { put, .. } = self.upload(name).ok_or_else(none)?;
        let (sha256, size) = (put.sha256, put.size);
        let (wanted, got) = (part_length(size, part), data.len() as u64);
        if wanted == 0 || wanted != got {
            return Err(ImagesError::Part { part, wanted, got });
        }
        self.disk("write a part", move |d| d.write(sha256, part, &data))
            .await?;
        self.moves(name);
        Ok(())
    }

    /// All parts are there: reads them, and takes them as the image if they
    /// are what was announced.
    ///
    /// # Errors
    /// [`ImagesError`]; what was wrong is thrown away.
    pub async fn commit(&self, name: Authorized<ImageName>) -> Result<ImageView, ImagesError> {
        let by = name.principal().clone();
        let name = name.into_inner();
        self.active()?;
        let Some(Upload { gate, .. }) = self.upload(&name) else {
            return self.committed(name);
        };
        // What is large is read for minutes: beside everything that is done
        // with other images.
        let gate = gate.write().await;
        // Somebody else may have ended it meanwhile.
        let Some(Upload { put, .. }) = self.upload(&name) else {
            return self.committed(name);
        };
        self.moves(&name);
        let whole = self.whole(&put).await;
        let _one = self.0.writing.lock().await;
        self.active()?;
        // Somebody may have announced something else under the name.
        if self.upload(&name).is_none_or(|now| now.put != put) {
            return Err(ImagesError::NoUpload(name));
        }
        let view = match whole {
            Ok(()) => self.store(name.clone(), &put, by).await?,
            Err(
                error @ (ImagesError::Hash { .. }
                | ImagesError::Fault(_)
                | ImagesError::VirtualSize { .. }),
            ) => {
                self.uploads().remove(&name);
                let sha256 = put.sha256;
                self.disk("remove an upload", move |d| d.drop_upload(sha256))
                    .await?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        self.uploads().remove(&name);
        drop(gate);
        Ok(view)
    }

    /// Whoever did not hear the answer asks again.
    fn committed(&self, name: ImageName) -> Result<ImageView, ImagesError> {
        let held = self.held().get(&name).cloned();
        let held = held.filter(|held| held.stored.url.is_none());
        let view = held.map(|held| held.stored.view(Uses::default()));
        view.ok_or(ImagesError::NoUpload(name))
    }

    /// Somebody goes on with an upload.
    fn moves(&self, name: &ImageName) {
        if let Some(upload) = self.uploads().get_mut(name) {
            upload.moved = Instant::now();
        }
    }

    /// The bytes are there, and are what was announced.
    async fn whole(&self, put: &PutImage) -> Result<(), ImagesError> {
        let (sha256, size) = (put.sha256, put.size);
        if self.has(sha256, size).await? {
            let head = self.disk("read an image", move |d| d.head(sha256));
            return fits(put, &head.await?);
        }
        let missing = self.disk("read an upload", move |d| d.missing(sha256, size));
        let missing = missing.await?.len();
        if missing > 0 {
            return Err(ImagesError::Missing(missing));
        }
        let whole = self.disk("read an upload", move |d| d.examine(sha256));
        let whole = whole.await?;
        if whole.sha256 != sha256 {
            return Err(ImagesError::Hash {
                wanted: sha256,
                got: whole.sha256,
            });
        }
        fits(put, &whole.head)?;
        self.disk("keep an image", move |d| d.keep(sha256)).await
    }

    /// Writes down what a name stands for from now on.
    async fn store(
        &self,
        name: ImageName,
        put: &PutImage,
        by: PrincipalName,
    ) -> Result<ImageView, ImagesError> {
        self.active()?;
        let stored = StoredImage::new(name.clone(), put, by);
        let old = self.held().get(&name).cloned();
        let bucket = &self.0.bucket;
        let written = match &old {
            Some(old) => bucket.update(name.as_str(), &stored, old.revision).await,
            None => bucket.create(name.as_str(), &stored).await,
        };
        let revision = match written {
            Ok(revision) => revision,
            Err(error) => {
                self.look_again(&name).await;
                return Err(error.into());
            }
        };
        let view = stored.view(Uses::default());
        let text = format!(
            "{} {} image {name}: {}, sha256 {}{}",
            stored.by,
            if old.is_some() { "replaced" } else { "added" },
            stored.image.size,
            stored.image.sha256,
            match &stored.url {
                Some(url) => format!(", from {url}"),
                None => String::new(),
            },
        );
        self.held().insert(name.clone(), Held { stored, revision });
        let events = &self.0.events;
        events.emit("image.added", name.as_str(), text).await;
        if old.is_some() {
            self.tidy().await;
        }
        Ok(view)
    }

    /// Removes an image. Machines that were made of it keep their own disk.
    ///
    /// # Errors
    /// [`ImagesError`].
    pub async fn remove(&self, name: Authorized<ImageName>) -> Result<(), ImagesError> {
        let by = name.principal().clone();
        let name = name.into_inner();
        let _one = self.0.writing.lock().await;
        self.active()?;
        let held = self.held().get(&name).cloned();
        let held = held.ok_or_else(|| ImagesError::None(name.clone()))?;
        if let Err(error) = self.0.bucket.delete(name.as_str(), held.revision).await {
            self.look_again(&name).await;
            if self.held().contains_key(&name) {
                return Err(error.into());
            }
        }
        self.held().remove(&name);
        let text = format!("{by} removed image {name}");
        let events = &self.0.events;
        events.emit("image.removed", name.as_str(), text).await;
        self.tidy().await;
        Ok(())
    }

    async fn look_again(&self, name: &ImageName) {
        match self.0.bucket.get(name.as_str()).await {
            Ok(Some(entry)) => {
                let (stored, revision) = (entry.value, entry.revision);
                self.held().insert(name.clone(), Held { stored, revision });
            }
            Ok(None) => drop(self.held().remove(name)),
            Err(error) => tracing::warn!(image = %name, %error, "an image cannot be read"),
        }
    }

    /// The bytes of an image from `from` on, in pieces as they are asked for,
    /// or where they are.
    ///
    /// # Errors
    /// [`ImagesError::Unknown`], [`ImagesError::Absent`].
    pub async fn reader(&self, sha256: Sha256, from: u64) -> Result<Source, ImagesError> {
        let found = {
            let held = self.held();
            let mut all: Vec<_> = held
                .values()
                .filter(|held| held.stored.image.sha256 == sha256)
                .map(|held| (held.stored.image.clone(), held.stored.url.clone()))
                .collect();
            // Rather from here than from elsewhere.
            all.sort_by_key(|(_, url)| url.is_some());
            all
        };
        let Some((image, _)) = found.first() else {
            return Err(ImagesError::Unknown(sha256));
        };
        let size = image.size;
        if !self.has(sha256, size).await? {
            return match found.iter().find_map(|(_, url)| url.clone()) {
                Some(url) => Ok(Source::Url(url)),
                None => Err(ImagesError::Absent {
                    image: image.name.clone(),
                    directory: self.0.directory.path().to_owned(),
                }),
            };
        }
        let Ok(permit) = Arc::clone(&self.0.fetches).try_acquire_owned() else {
            return Ok(Source::Busy);
        };
        // Open, it can be read to its end also when it is removed meanwhile.
        let file = self
            .disk("read an image", move |d| {
                let mut file = d.read(sha256)?;
                file.seek(SeekFrom::Start(from.min(size.bytes())))?;
                Ok(file)
            })
            .await?;
        let left = size.bytes().saturating_sub(from);
        let (send, pieces) = mpsc::channel(2);
        tokio::spawn(feed(file, left, send, permit));
        Ok(Source::Bytes(left, pieces))
    }

    async fn has(&self, sha256: Sha256, size: Size) -> Result<bool, ImagesError> {
        self.disk("look for an image", move |d| d.has(sha256, size))
            .await
    }

    /// Removes bytes without a name, and uploads that nobody goes on with. A
    /// failure is logged: it is tried again.
    async fn tidy(&self) {
        let mut keep = BTreeSet::new();
        self.uploads().retain(|_, upload| {
            let goes_on = upload.moved.elapsed() < ABANDONED;
            if goes_on {
                keep.insert(upload.put.sha256);
            }
            goes_on
        });
        let held = |held: &Held| held.stored.image.sha256;
        keep.extend(self.held().values().map(held));
        let tidied = self.disk("tidy", move |d| d.tidy(&keep, ABANDONED));
        match tidied.await {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => {
                tracing::info!(?removed, "bytes of images that nobody needs are removed")
            }
            Err(error) => tracing::warn!(%error, "bytes of images could not be removed"),
        }
    }

    /// Does something that waits for the disk, where that may be done.
    async fn disk<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Directory) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, ImagesError> {
        let directory = self.0.directory.clone();
        let done = tokio::task::spawn_blocking(move || work(&directory)).await;
        let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        done.map_err(|error| {
            let directory = self.0.directory.path().to_owned();
            match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    ImagesError::NoRoom(directory)
                }
                _ => ImagesError::Disk {
                    action,
                    directory,
                    error,
                },
            }
        })
    }

    fn active(&self) -> Result<u64, ImagesError> {
        self.0.lease.epoch().ok_or(ImagesError::NotActive)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<ImageName, Held>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uploads(&self) -> MutexGuard<'_, BTreeMap<ImageName, Upload>> {
        let uploads = &self.0.uploads;
        uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there can be such an image, before a byte of it is there.
fn check(put: &PutImage) -> Result<(), ImagesError> {
    if put.size.bytes() == 0 || put.size > MAX_IMAGE {
        return Err(ImagesError::Size(put.size));
    }
    let disk = put.virtual_size;
    if disk.bytes() == 0 || disk > MAX_DISK {
        return Err(ImageFault::VirtualSize(disk.bytes()).into());
    }
    let Some(text) = &put.url else {
        return Ok(());
    };
    if text.len() > MAX_URL {
        return Err(ImagesError::Url("it is too long"));
    }
    let url = reqwest::Url::parse(text).map_err(|_| ImagesError::Url("it is no URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(ImagesError::Url("only http and https are fetched"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(ImagesError::Url("it names no host"));
    }
    // Everybody who reads images would see it.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ImagesError::Url("there is a user or a password in it"));
    }
    Ok(())
}

/// Whether the bytes are the image that was announced.
fn fits(put: &PutImage, head: &[u8]) -> Result<(), ImagesError> {
    let is = virtual_size(put.format, head, put.size)?;
    if is == put.virtual_size {
        return Ok(());
    }
    let said = put.virtual_size;
    Err(ImagesError::VirtualSize { is, said })
}

/// Reads a file for somebody who takes it piece by piece.
async fn feed(
    file: std::fs::File,
    mut left: u64,
    send: mpsc::Sender<std::io::Result<Bytes>>,
    permit: OwnedSemaphorePermit,
) {
    let _permit = permit;
    let mut file = Some(file);
    while left > 0 {
        let Some(mut open) = file.take() else { return };
        let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; wanted];
            let read = open.read(&mut piece)?;
            piece.truncate(read);
            Ok((open, piece))
        });
        let read = read.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let piece = read.and_then(|(open, piece)| {
            file = Some(open);
            match piece.len() {
                0 => Err(std::io::Error::other(
                    "the file of an image is shorter than it was",
                )),
                _ => Ok(Bytes::from(piece)),
            }
        });
        match &piece {
            Ok(piece) => left -= piece.len() as u64,
            Err(error) => tracing::warn!(%error, "an image cannot be read"),
        }
        let failed = piece.is_err();
        if send.send_timeout(piece, PIECE_WITHIN).await.is_err() || failed {
            return;
        }
    }
}
