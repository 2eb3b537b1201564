//! Webhooks: what comes in from forges, CI systems and monitoring, checked
//! over the bytes as they came and made an event.
//!
//! [`file`] reads what is declared, [`verify`] says whether a delivery comes
//! from whoever knows the secret, [`payload`] what it says, and [`take`] does
//! all of it in order.

pub mod file;
pub mod path;
pub mod payload;
pub mod rate;
mod reload;
pub mod take;
#[cfg(test)]
mod tests;
pub mod verify;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use self::file::{Declared, FileError, Look};
pub use self::take::{Hooks, Taken};

/// What is in force of the file with webhooks, triggers and routes. The same
/// for the life of the process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Held(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: Option<PathBuf>,
    declared: ArcSwap<Declared>,
    changed: watch::Sender<u64>,
    look: Mutex<Look>,
}

impl Held {
    /// Reads the file, if one is named.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(path: Option<&Path>) -> Result<Self, FileError> {
        let (declared, look) = match path {
            None => (Declared::default(), Look::new()),
            Some(path) => {
                let (declared, look) = file::load(path);
                (declared?, look)
            }
        };
        Ok(Self(Arc::new(Inner {
            path: path.map(Path::to_owned),
            declared: ArcSwap::from_pointee(declared),
            changed: watch::Sender::new(0),
            look: Mutex::new(look),
        })))
    }

    /// What is in force.
    #[must_use]
    pub fn get(&self) -> Arc<Declared> {
        self.0.declared.load_full()
    }

    /// Changes with what is in force.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    fn look(&self) -> std::sync::MutexGuard<'_, Look> {
        self.0.look.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
