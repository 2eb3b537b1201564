//! Bundles on disk, by their hash.
//!
//! A file is never trusted: what is read is hashed, each time, and one that
//! is not what its name says is taken away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use muster_protocol::envelope::BundleHash;
use muster_scenarios::bundle::{Bundle, MAX_BYTES, MAX_FILES, UnpackError};
use tracing::warn;

/// Most bytes of one packed bundle: its files, and a head for each.
pub(super) const MAX_PACKED: u64 = (MAX_BYTES + MAX_FILES * 512) as u64;
/// Most bytes of all bundles; above it those go that were not used for the
/// longest time.
pub const MAX_STORED: u64 = 64 << 20;
/// Most bundles.
pub const MAX_BUNDLES: usize = 256;

/// Where bundles come from.
pub trait Bundles: Send + Sync {
    /// Whether asking for it has a chance. Quick, and never wrong when it
    /// says no.
    fn may_have(&self, hash: BundleHash) -> bool;

    /// The bundle of that hash, and none other.
    fn get(&self, hash: BundleHash) -> BoxFuture<'_, Result<Bundle, StoreError>>;
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// This node does not have it.
    #[error("this node does not have the bundle {0}")]
    Missing(BundleHash),
    /// What was there was something else.
    #[error("the bundle {hash} was damaged on this node's disk, and was taken away: {why}")]
    Damaged {
        /// Which.
        hash: BundleHash,
        /// In which way.
        why: String,
    },
    /// The operating system said no.
    #[error("{action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Bundles in a directory of the agent's state. Cheap to make: nothing is
/// read, or made on disk, before it is needed.
#[derive(Clone, Debug)]
pub struct BundleStore {
    dir: PathBuf,
}

impl BundleStore {
    /// In this directory, which is made with the first bundle.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, hash: BundleHash) -> PathBuf {
        // Hexadecimal digits: it cannot leave the directory.
        self.dir.join(hash.to_string())
    }

    /// Keeps a bundle, durably. Older ones go when there are too many.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn put(&self, bundle: &Bundle) -> Result<(), StoreError> {
        let path = self.path(bundle.hash());
        if self.read(bundle.hash()).is_ok() {
            return Ok(());
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(failed("cannot make", &self.dir))?;
        let packed = bundle.pack();
        self.make_room(packed.len() as u64);
        let mut new = tempfile::Builder::new()
            .prefix(".new-")
            .tempfile_in(&self.dir)
            .map_err(failed("cannot write in", &self.dir))?;
        new.write_all(&packed)
            .and_then(|()| new.as_file().sync_all())
            .map_err(failed("cannot write", &path))?;
        new.persist(&path)
            .map_err(|e| failed("cannot write", &path)(e.error))?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed("cannot write", &self.dir))
    }

    /// The bundles whose hash begins like this: at least 8 digits.
    #[must_use]
    pub fn beginning_with(&self, start: &str) -> Vec<BundleHash> {
        if start.len() < 8 {
            return Vec::new();
        }
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| name.starts_with(start))
            .filter_map(|name| name.parse().ok())
            .collect()
    }

    /// The bundle of that hash; its bytes are hashed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read(&self, hash: BundleHash) -> Result<Bundle, StoreError> {
        let path = self.path(hash);
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path);
        let mut file = match file {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing(hash)),
            Err(e) => return Err(failed("cannot read", &path)(e)),
        };
        let mut bytes = Vec::new();
        (&mut file)
            .take(MAX_PACKED + 1)
            .read_to_end(&mut bytes)
            .map_err(failed("cannot read", &path))?;
        let damaged = |why: String| {
            warn!(%hash, "a bundle on disk is damaged: {why}");
            let _ = fs::remove_file(&path);
            StoreError::Damaged { hash, why }
        };
        if BundleHash::of(&bytes) != hash {
            return Err(damaged("its content has another hash".to_owned()));
        }
        let bundle = Bundle::unpack(&bytes).map_err(|e: UnpackError| damaged(e.to_string()))?;
        // For `make_room`: it was used now.
        let _ = file.set_modified(SystemTime::now());
        Ok(bundle)
    }

    /// Takes away what was not used for the longest time, and what is left of
    /// writes that were cut short.
    fn make_room(&self, coming: u64) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        let mut all: Vec<(SystemTime, u64, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                let used = metadata.modified().ok()?;
                Some((used, metadata.len(), entry.path()))
            })
            .collect();
        all.sort();
        let mut bytes: u64 = all.iter().map(|(_, size, _)| size).sum();
        let mut count = all.len();
        for (_, size, path) in all {
            if bytes + coming <= MAX_STORED && count < MAX_BUNDLES {
                break;
            }
            if fs::remove_file(&path).is_ok() {
                bytes -= size;
                count -= 1;
            }
        }
    }
}

impl Bundles for BundleStore {
    fn may_have(&self, hash: BundleHash) -> bool {
        self.path(hash).exists()
    }

    fn get(&self, hash: BundleHash) -> BoxFuture<'_, Result<Bundle, StoreError>> {
        let store = self.clone();
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || store.read(hash)).await;
            read.unwrap_or_else(|e| {
                Err(StoreError::Damaged {
                    hash,
                    why: e.to_string(),
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn bundle(script: &str) -> Bundle {
        Bundle::new(script.to_owned(), BTreeMap::new()).expect("a bundle")
    }

    #[test]
    fn what_is_kept_is_what_comes_back_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = BundleStore::new(dir.path().join("bundles"));
        let one = bundle("fn run(p) {}");
        assert!(!store.may_have(one.hash()));
        assert!(matches!(
            store.read(one.hash()),
            Err(StoreError::Missing(_))
        ));
        store.put(&one).expect("kept");
        store.put(&one).expect("again");
        assert!(store.may_have(one.hash()));
        assert_eq!(store.read(one.hash()).expect("there"), one);
        // Another bundle under its name, a cut one, a link.
        let path = store.path(one.hash());
        for bad in [
            bundle("fn run(p) { 1 }").pack(),
            one.pack()[..20].to_vec(),
            Vec::new(),
        ] {
            fs::write(&path, bad).expect("written");
            let error = store.read(one.hash()).expect_err("damaged");
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
            assert!(!path.exists(), "it was left there");
        }
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, one.pack()).expect("written");
        std::os::unix::fs::symlink(&elsewhere, &path).expect("a link");
        assert!(store.read(one.hash()).is_err());
        assert!(elsewhere.exists());
        // It is put back over whatever is there.
        store.put(&one).expect("kept");
        assert_eq!(store.read(one.hash()).expect("there"), one);
        let names = fs::read_dir(dir.path().join("bundles")).expect("read");
        assert_eq!(names.count(), 1, "something is left over");
    }

    #[test]
    fn there_is_an_end_to_it_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = BundleStore::new(dir.path().to_owned());
        let first = bundle("fn run(p) { 0 }");
        store.put(&first).expect("kept");
        let long_ago = SystemTime::now() - std::time::Duration::from_secs(3600);
        let file = File::options()
            .write(true)
            .open(store.path(first.hash()))
            .expect("open");
        file.set_modified(long_ago).expect("set");
        for n in 1..=MAX_BUNDLES {
            store
                .put(&bundle(&format!("fn run(p) {{ {n} }}")))
                .expect("kept");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), MAX_BUNDLES);
        assert!(!store.may_have(first.hash()));
    }
}
