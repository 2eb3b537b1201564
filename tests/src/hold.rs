//! Holds the programs at their checkpoints, whichever run or process it is,
//! so that a test can do something at exactly that moment.
//!
//! [`crate::stops`] does the same for the positions of one run.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};

use crate::PATIENCE;

/// Who came to a checkpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Came {
    /// The process.
    pub pid: u32,
    /// The checkpoint.
    pub point: String,
    /// Which one of its kind.
    pub detail: String,
}

#[derive(Default)]
struct State {
    /// Beginnings of `POINT DETAIL` at which everybody is held.
    held: BTreeSet<String>,
    came: Vec<Came>,
}

/// Who listens to the checkpoints. Everybody goes on when it is dropped.
pub struct Hold {
    socket: PathBuf,
    shared: Arc<(Mutex<State>, Condvar)>,
}

fn lock(mutex: &Mutex<State>) -> MutexGuard<'_, State> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hold {
    /// Listens at this socket, and holds nobody yet.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
        let shared: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let for_all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&for_all);
                std::thread::spawn(move || {
                    // A process that was killed meanwhile reads nothing.
                    let _ = serve(&shared, &stream);
                });
            }
        });
        Ok(Self {
            socket: socket.to_owned(),
            shared,
        })
    }

    /// The environment variable that a program is started with, and its value.
    #[must_use]
    pub fn env(&self) -> (&'static str, &Path) {
        (muster_checkpoint::VARIABLE, &self.socket)
    }

    /// Holds whoever comes to a checkpoint whose `POINT DETAIL` begins so,
    /// from now on.
    pub fn hold(&self, place: &str) {
        let mut state = lock(&self.shared.0);
        state.came.retain(|came| !came.is_at(place));
        state.held.insert(place.to_owned());
    }

    /// Lets those who are held there go on, and whoever comes.
    pub fn release(&self, place: &str) {
        let (mutex, told) = &*self.shared;
        lock(mutex).held.remove(place);
        told.notify_all();
    }

    /// Waits until somebody has come there since it is [held](Self::hold).
    ///
    /// # Errors
    /// When nobody does.
    pub fn came(&self, place: &str) -> Result<Came> {
        let (mutex, told) = &*self.shared;
        let find = |state: &State| state.came.iter().rfind(|came| came.is_at(place)).cloned();
        let (state, _) = told
            .wait_timeout_while(lock(mutex), PATIENCE, |state| find(state).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        let found = find(&state);
        ensure!(
            found.is_some(),
            "nobody came to {place} within {PATIENCE:?}; seen: {:#?}",
            state.came
        );
        found.context("somebody came")
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (mutex, told) = &*self.shared;
        lock(mutex).held.clear();
        told.notify_all();
    }
}

impl Came {
    fn is_at(&self, place: &str) -> bool {
        format!("{} {}", self.point, self.detail).starts_with(place)
    }
}

fn serve((mutex, told): &(Mutex<State>, Condvar), mut stream: &UnixStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let mut parts = line.trim_end_matches('\n').split('\t');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    let came = Came {
        pid: part().parse()?,
        point: part(),
        detail: part(),
    };
    let mut state = lock(mutex);
    state.came.push(came.clone());
    told.notify_all();
    while state.held.iter().any(|place| came.is_at(place)) {
        state = told.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    drop(state);
    stream.write_all(b"go\n")?;
    Ok(())
}
