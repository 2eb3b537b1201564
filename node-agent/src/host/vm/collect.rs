//! Images in the pool that nothing needs any more, and what transfers left
//! behind that were given up.
//!
//! Whether a disk is a layer over an image is read from the disks themselves,
//! whoever made them, and from what libvirt and muster have written down: not
//! remembered. What cannot be read is no reason to take it for unused: then
//! nothing goes.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use muster_libvirt::message::FailureKind;
use muster_protocol::text::printable;
use muster_protocol::vm::{Sha256, VmId};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::files::{Kind, kind};
use super::machines::{Done, Machines, VmError};

/// How soon it is looked after the agent's start, and how often then.
const FIRST: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_secs(3_600);
/// What came of an image is gone on with for so long.
const PART_KEPT: Duration = Duration::from_secs(86_400);
/// Not written down more often that an image is used.
const MARK_EVERY: Duration = Duration::from_secs(600);
/// Longest name of a backing file: what QEMU itself takes.
const MAX_BACKING: u32 = 1_023;
/// Longest note that is looked through.
const MAX_NOTE: u64 = 8 << 20;

const QCOW2: [u8; 4] = *b"QFI\xfb";

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
    notes: Vec<VmId>,
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

/// What a disk is a layer over, when it is qcow2 and says so.
fn backing(path: &Path) -> io::Result<Option<String>> {
    let mut file = open(path)?;
    let mut head = Vec::new();
    (&file).take(20).read_to_end(&mut head)?;
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
            Kind::Note(id) => {
                let mut text = Vec::new();
                open(&path)
                    .and_then(|file| file.take(MAX_NOTE).read_to_end(&mut text))
                    .map_err(fail(&path))?;
                found
                    .names
                    .push(String::from_utf8_lossy(&text).into_owned());
                found.notes.push(id);
            }
            Kind::Other => match backing(&path) {
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
        let mut found = look(&files.pool)?;
        for domain in inner.ask().domains().await? {
            match inner.ask().definition(domain.uuid).await {
                Ok(text) => found.names.push(text),
                Err(e) if e.is(FailureKind::Missing) => {}
                Err(e) => return Err(e.into()),
            }
        }
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

    /// Puts right what was cut when this machine or the agent ended.
    ///
    /// # Errors
    /// [`VmError`].
    async fn mend_all(&self) -> Result<(), VmError> {
        let (files, _) = self.0.pool().await?;
        for id in look(&files.pool)?.notes {
            let _held = self.lock(id.to_string()).await;
            if let Err(e) = self.0.mend(id).await {
                warn!("the machine {id} is not as it was yet: {e}");
            }
        }
        Ok(())
    }

    /// Puts right what was cut, then collects what was not used for so long,
    /// again and again until `stop`.
    pub async fn tidy(self, unused: Duration, stop: CancellationToken) {
        if let Err(e) = Box::pin(self.mend_all()).await {
            warn!("what was cut in machines cannot be looked at: {e}");
        }
        let mut pause = FIRST;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = EVERY,
            }
            match Box::pin(self.collect(unused)).await {
                Ok(gone) if gone.is_empty() => {}
                Ok(gone) => info!("files that nothing needs were removed: {}", gone.join(", ")),
                Err(e) => warn!("images that nothing needs are not looked for: {e}"),
            }
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
