//! Images in the pool that nothing needs any more, and what transfers left
//! behind that were given up.
//!
//! Whether a disk is a layer over an image is read from the disks themselves,
//! whoever made them, in the pool and wherever else libvirt's domains have
//! some, and from what libvirt and muster have written down: not remembered.
//! What cannot be read is no reason to take it for unused: then nothing goes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use muster_libvirt::message::{Domain, FailureKind};
use muster_libvirt::xml::{self, DiskSource};
use muster_protocol::names::PoolName;
use muster_protocol::text::printable;
use muster_protocol::vm::{Sha256, VmId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::files::{Files, Kind, Note, kind};
use super::layers::{self, Layers, Unread};
use super::machines::{Done, Inner, Machines, VmError};
use super::virt::Answered;

/// How soon it is looked after the agent's start, and how often then.
const FIRST: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_secs(3_600);
/// What came of an image is gone on with for so long.
const PART_KEPT: Duration = Duration::from_secs(86_400);
/// How long it may take to read what disks are layers over.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// Not written down more often that an image is used.
const MARK_EVERY: Duration = Duration::from_secs(600);
/// Longest note that is looked through.
const MAX_NOTE: u64 = 8 << 20;

/// A file that may go.
struct Unused {
    path: PathBuf,
    age: Duration,
}

/// What was found in a pool.
#[derive(Default)]
struct Found {
    images: Vec<(Sha256, Unused)>,
    parts: Vec<Unused>,
    /// What names images, by their hashes: names of backing files and notes.
    names: Vec<String>,
}

/// How long nothing was written to a file.
fn age(found: &fs::Metadata) -> io::Result<Duration> {
    // A clock that was set back makes nothing old.
    Ok(SystemTime::now()
        .duration_since(found.modified()?)
        .unwrap_or_default())
}

fn open(path: &Path) -> io::Result<File> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    File::options()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path)
}

/// What a note says, whatever it is.
fn note(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    open(path)?.take(MAX_NOTE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The machines of which something is written down in a pool.
fn noted(pool: &Path) -> io::Result<Vec<VmId>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(pool)? {
        if let Kind::Note(id) = kind(&entry?.file_name().to_string_lossy()) {
            all.push(id);
        }
    }
    Ok(all)
}

/// What there is; none when it went while it was asked for.
fn there<T>(answered: Answered<T>) -> Done<Option<T>> {
    match answered {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.is(FailureKind::Missing) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Looks at a whole pool.
fn look(pool: &Path) -> Result<Found, VmError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| VmError::File { path, source }
    };
    let mut found = Found::default();
    for entry in fs::read_dir(pool).map_err(fail(pool))? {
        let path = entry.map_err(fail(pool))?.path();
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            // It went while it was looked at.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(fail(&path)(e)),
        };
        if !meta.is_file() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let age = age(&meta).map_err(fail(&path))?;
        let unused = |path: &Path| Unused {
            path: path.to_owned(),
            age,
        };
        match kind(&name) {
            Kind::Image(sha256) => found.images.push((sha256, unused(&path))),
            Kind::Part => found.parts.push(unused(&path)),
            Kind::Note(_) => match note(&path) {
                Ok(text) => found.names.push(text),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(fail(&path)(e)),
            },
            Kind::Other => match open(&path).and_then(layers::backing) {
                Ok(name) => found.names.extend(name),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(fail(&path)(e)),
            },
        }
    }
    Ok(found)
}

impl Machines {
    /// Removes images that no machine is made of and that were not asked for
    /// since `unused`, and what is left of transfers that nobody went on with;
    /// which. Nothing while machines are made here.
    ///
    /// # Errors
    /// [`VmError`]: something cannot be looked at; nothing went because of
    /// what is not known.
    pub async fn collect(&self, unused: Duration) -> Result<Vec<String>, VmError> {
        let inner = &*self.0;
        let (files, _) = inner.pool().await?;
        // From here on nobody begins to make anything of an image.
        let Ok(_alone) = inner.making.try_write() else {
            return Ok(Vec::new());
        };
        let mut disks = Vec::new();
        let mut names = Vec::new();
        for domain in inner.ask().domains().await? {
            for text in inner.texts(&domain).await? {
                disks.extend(inner.disks(&domain, &text, &files).await?);
                names.push(text);
            }
        }
        let mut found = inner.read_all(files.pool.clone(), disks).await?;
        found.names.append(&mut names);
        let mut gone = Vec::new();
        let mut remove = |file: &Unused| -> Done<()> {
            let done = super::files::remove_for_good(&file.path);
            let fail = |source| VmError::File {
                path: file.path.clone(),
                source,
            };
            if done.map_err(fail)? {
                let name = file.path.file_name().unwrap_or_default();
                gone.push(printable(&name.to_string_lossy(), 100));
            }
            Ok(())
        };
        for (sha256, file) in &found.images {
            let hash = sha256.to_string();
            if found.names.iter().any(|name| name.contains(&hash)) {
                if file.age > MARK_EVERY {
                    used(&file.path);
                }
            } else if file.age >= unused {
                remove(file)?;
            }
        }
        for part in found.parts.iter().filter(|part| part.age >= PART_KEPT) {
            remove(part)?;
        }
        if !gone.is_empty() {
            inner.ask().refresh(&inner.setting.pool).await?;
            self.changed();
        }
        Ok(gone)
    }

    /// Puts right what was cut when a machine or the agent ended. `said` is
    /// what was said of each already: the same is said once.
    ///
    /// # Errors
    /// [`VmError`]: nothing can be looked at.
    pub(super) async fn mend_all(&self, said: &mut HashMap<VmId, String>) -> Result<(), VmError> {
        let (files, _) = self.0.pool().await?;
        let all = noted(&files.pool).map_err(|source| VmError::File {
            path: files.pool.clone(),
            source,
        })?;
        said.retain(|id, _| all.contains(id));
        for id in all {
            let _held = self.lock(id.to_string()).await;
            // One that is gone, or says something else by now, is well.
            let done = match files.note(id) {
                Ok(Some(Note::Restoring { .. })) => {
                    let mended = self.0.mend(id).await;
                    match &mended {
                        Ok(()) => self.changed(),
                        Err(_) => self.0.cut.notify_one(),
                    }
                    mended
                }
                Ok(_) => Ok(()),
                Err(source) => Err(VmError::File {
                    path: files.note_path(id),
                    source,
                }),
            };
            match done {
                Ok(()) => drop(said.remove(&id)),
                Err(e) => {
                    let why = e.to_string();
                    if said.get(&id) != Some(&why) {
                        warn!("the machine {id} is not as it was yet: {why}");
                        said.insert(id, why);
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts right what was cut, and collects what was not used for so long,
    /// again and again until `stop`.
    pub async fn tidy(self, unused: Duration, stop: CancellationToken) {
        let mut said = HashMap::new();
        let mut next = Instant::now() + FIRST;
        loop {
            if let Err(e) = Box::pin(self.mend_all(&mut said)).await {
                warn!("what was cut in machines cannot be looked at: {e}");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next) => next = Instant::now() + EVERY,
                // Whoever does something with the machine may be quicker.
                () = self.0.cut_a_while_ago() => continue,
            }
            match Box::pin(self.collect(unused)).await {
                Ok(gone) if gone.is_empty() => {}
                Ok(gone) => info!("files that nothing needs were removed: {}", gone.join(", ")),
                Err(e) => warn!("images that nothing needs are not looked for: {e}"),
            }
        }
    }
}

impl Inner {
    /// When something was cut that nobody has put right, and a while is over.
    async fn cut_a_while_ago(&self) {
        self.cut.notified().await;
        tokio::time::sleep(FIRST).await;
    }

    /// All that libvirt has written down of a domain.
    async fn texts(&self, domain: &Domain) -> Done<Vec<String>> {
        let mut all = Vec::new();
        all.extend(there(self.ask().definition(domain.uuid).await)?);
        // It may run on other disks than it will start from.
        all.extend(there(self.ask().xml(domain.uuid).await)?);
        let snapshots = there(self.ask().snapshot_definitions(domain.uuid).await)?;
        all.extend(snapshots.unwrap_or_default());
        Ok(all)
    }

    /// The disks in such a text, and whether each can be a layer.
    async fn disks(
        &self,
        domain: &Domain,
        text: &str,
        files: &Files,
    ) -> Done<Vec<(PathBuf, bool)>> {
        let unread = |why: String| VmError::Disks {
            name: printable(&domain.name, 80),
            why,
        };
        let read = xml::read_disks(text);
        let read = read.ok_or_else(|| unread("what libvirt says of them is odd".to_owned()))?;
        let mut all = Vec::new();
        for disk in read.into_iter().filter(|disk| !disk.removable) {
            for source in disk.sources {
                let path = match source {
                    DiskSource::Path(path) => PathBuf::from(path),
                    DiskSource::Volume { pool, volume } if pool == self.setting.pool.as_str() => {
                        files.pool.join(volume)
                    }
                    DiskSource::Volume { pool, volume } => {
                        let unknown = || {
                            unread(printable(
                                &format!("the volume {pool}/{volume} is not there"),
                                200,
                            ))
                        };
                        let name: PoolName = pool.parse().map_err(|_| unknown())?;
                        let found = there(self.ask().volume(&name, &volume).await)?.flatten();
                        PathBuf::from(found.ok_or_else(unknown)?.path)
                    }
                    DiskSource::Elsewhere(_) if disk.raw => continue,
                    DiskSource::Elsewhere(how) => {
                        let how = printable(&how, 40);
                        return Err(unread(format!("one is not on this host ({how})")));
                    }
                };
                // In a raw one is whatever the guest wrote.
                all.push((path, !disk.raw));
            }
        }
        Ok(all)
    }

    /// Reads the pool and these disks. Storage that does not answer holds
    /// nobody else up.
    async fn read_all(&self, pool: PathBuf, disks: Vec<(PathBuf, bool)>) -> Done<Found> {
        let fail = |path: PathBuf, source| VmError::File { path, source };
        let late = |why| fail(pool.clone(), io::Error::other(why));
        let looking = Arc::clone(&self.looking).try_lock_owned();
        let looking = looking.map_err(|_| late("the look before this one has no answer yet"))?;
        let there = pool.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let _looking = looking;
            let mut found = look(&there)?;
            let mut layers = Layers::new(&there);
            for (disk, is_layer) in disks {
                if !is_layer {
                    layers.name(&disk);
                    continue;
                }
                let read = layers.add(&disk);
                read.map_err(|Unread { path, source }| VmError::File { path, source })?;
            }
            found.names.append(&mut layers.names);
            Ok(found)
        });
        match tokio::time::timeout(READ_WITHIN, reading).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(late("the look at it was given up")),
            Err(_) => Err(late("the disks of this host cannot be read in time")),
        }
    }
}

/// Has an image be one that was used now. One that cannot be marked goes
/// earlier than it had to, and comes again.
pub(super) fn used(path: &Path) {
    let marked = open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(e) = marked {
        tracing::debug!("{} cannot be marked as used: {e}", path.display());
    }
}
