//! The upgrade that is under way, on disk: what the old agent, the new one
//! and the guard agree on.
//!
//! ```text
//! fetching ──► switching ──► confirmed
//!     └─────────────┴──────► rolled back
//! ```
//!
//! Each step is one write under one lock. What the executable's place holds
//! follows it: whoever finds `rolled_back` puts the old one back, if that was
//! not done.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use muster_protocol::ids::RequestId;
use muster_protocol::release::{ReleaseId, Version};
use muster_protocol::units::Timestamp;
use serde::{Deserialize, Serialize};

use crate::host::program;
use crate::state::{StateDir, StateError};

/// The file in the state directory.
const FILE: &str = "upgrade.json";
/// What is locked while it is changed.
const LOCK: &str = "upgrade.lock";

/// One of the two agents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// Its version.
    pub version: Version,
    /// The hash of its executable.
    pub id: ReleaseId,
}

/// How far it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "phase", deny_unknown_fields)]
pub enum Phase {
    /// Nothing has changed yet.
    Fetching,
    /// The new executable is put in its place, or is there.
    Switching,
    /// The broker has welcomed the new agent.
    Confirmed,
    /// The old executable is put back, or is there.
    RolledBack {
        /// Why, for people.
        reason: String,
    },
}

/// An upgrade that is under way.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Intent {
    /// Which step it is.
    pub request: RequestId,
    /// What ran.
    pub from: Side,
    /// What is to run.
    pub to: Side,
    /// The place of the executable.
    pub executable: PathBuf,
    /// How long the new agent has to be welcomed, in milliseconds.
    pub confirm_ms: u64,
    /// When it began, by this machine's clock.
    pub began: Timestamp,
    /// The new agent was stopped in good order before it was welcomed: its
    /// next start goes on, and nobody goes back meanwhile.
    #[serde(default)]
    pub held: bool,
    /// How far it is.
    #[serde(flatten)]
    pub phase: Phase,
}

/// Why the upgrade that is under way cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum IntentError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its lock.
    #[error("cannot lock {path}: {source}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not what was written.
    #[error("{path} is damaged: {why}; if no upgrade is under way, remove it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        why: String,
    },
}

/// Where it is kept.
#[derive(Clone, Debug)]
pub struct Intents(StateDir);

/// What came of a confirmation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Confirmed {
    /// The new agent stays.
    Yes,
    /// Somebody was faster: the old one is to run.
    RolledBack,
}

impl Intents {
    /// Of the agent with that state.
    #[must_use]
    pub fn new(dir: StateDir) -> Self {
        Self(dir)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &StateDir {
        &self.0
    }

    fn lock(&self) -> Result<File, IntentError> {
        let path = self.0.path(LOCK);
        let fail = |source| IntentError::Lock {
            path: path.clone(),
            source,
        };
        let mut options = OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(fail)?;
        // Held for a few writes, and released by the kernel.
        file.lock().map_err(fail)?;
        Ok(file)
    }

    /// The upgrade that is under way.
    ///
    /// # Errors
    /// [`IntentError`].
    pub fn read(&self) -> Result<Option<Intent>, IntentError> {
        let Some(bytes) = self.0.read(FILE)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| IntentError::Damaged {
                path: self.0.path(FILE),
                why: e.to_string(),
            })
    }

    fn write(&self, intent: &Intent) -> Result<(), IntentError> {
        let json = serde_json::to_vec(intent).expect("an intent has a JSON form");
        Ok(self.0.write(FILE, &json)?)
    }

    /// Begins one. Durable when it returns; `false` when another one is under
    /// way.
    ///
    /// # Errors
    /// [`IntentError`].
    pub fn begin(&self, intent: &Intent) -> Result<bool, IntentError> {
        let _lock = self.lock()?;
        if self
            .read()?
            .is_some_and(|now| now.request != intent.request)
        {
            return Ok(false);
        }
        self.write(intent)?;
        Ok(true)
    }

    /// From now on the executable may be another one; `false` when this
    /// upgrade is not under way any more.
    ///
    /// # Errors
    /// [`IntentError`].
    pub fn switching(&self, intent: &Intent) -> Result<bool, IntentError> {
        let _lock = self.lock()?;
        match self.read()? {
            Some(now) if now.request == intent.request && now.phase == Phase::Fetching => {
                self.write(&Intent {
                    phase: Phase::Switching,
                    ..intent.clone()
                })?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The new agent was welcomed.
    ///
    /// # Errors
    /// [`IntentError`].
    pub fn confirm(&self, request: RequestId) -> Result<Confirmed, IntentError> {
        let _lock = self.lock()?;
        match self.read()? {
            Some(now) if now.request == request => match now.phase {
                Phase::Confirmed => Ok(Confirmed::Yes),
                Phase::RolledBack { .. } => Ok(Confirmed::RolledBack),
                Phase::Fetching | Phase::Switching => {
                    self.write(&Intent {
                        phase: Phase::Confirmed,
                        ..now
                    })?;
                    Ok(Confirmed::Yes)
                }
            },
            // It was finished by somebody else; nothing can be taken back.
            _ => Ok(Confirmed::Yes),
        }
    }

    /// The old agent is to run again, unless the new one was confirmed.
    /// Whether it is so now; the executable is in its place then.
    ///
    /// # Errors
    /// [`IntentError`]; also when the executable cannot be put back.
    pub fn roll_back(&self, request: RequestId, reason: &str) -> Result<bool, IntentError> {
        let _lock = self.lock()?;
        let Some(now) = self.read()?.filter(|now| now.request == request) else {
            return Ok(false);
        };
        match now.phase {
            Phase::Confirmed => return Ok(false),
            Phase::RolledBack { .. } => {}
            Phase::Fetching | Phase::Switching => self.write(&Intent {
                phase: Phase::RolledBack {
                    reason: reason.to_owned(),
                },
                ..now.clone()
            })?,
        }
        program::put_back(&now.executable, now.from.id).map_err(|source| {
            IntentError::State(StateError::Io {
                action: "cannot put the old executable back to",
                path: now.executable,
                source,
            })
        })?;
        Ok(true)
    }

    /// Whether the agent stops before it is known whether the new one stays.
    ///
    /// # Errors
    /// [`IntentError`].
    pub fn hold(&self, request: RequestId, held: bool) -> Result<(), IntentError> {
        let _lock = self.lock()?;
        match self.read()? {
            Some(now) if now.request == request && now.held != held => {
                self.write(&Intent { held, ..now })
            }
            _ => Ok(()),
        }
    }

    /// The step has its outcome: nothing is under way any more.
    ///
    /// # Errors
    /// [`IntentError`].
    pub fn end(&self, request: RequestId) -> Result<(), IntentError> {
        let _lock = self.lock()?;
        if self.read()?.is_some_and(|now| now.request == request) {
            self.0.remove(FILE)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::program::{inspect, kept_path, swap};
    use muster_protocol::ids::RunId;

    fn side(version: &str, id: ReleaseId) -> Side {
        Side {
            version: version.parse().expect("a version"),
            id,
        }
    }

    struct Lab {
        _dir: tempfile::TempDir,
        intents: Intents,
        intent: Intent,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("directory");
            let state = StateDir::create(&dir.path().join("state")).expect("made");
            let executable = dir.path().join("agent");
            std::fs::write(&executable, "old").expect("written");
            let intent = Intent {
                request: RequestId {
                    run: RunId::random(),
                    step: 0,
                },
                from: side("0.1.0", ReleaseId::of(b"old")),
                to: side("0.1.1", ReleaseId::of(b"new")),
                executable,
                confirm_ms: 1_000,
                began: Timestamp::now(),
                held: false,
                phase: Phase::Fetching,
            };
            let intents = Intents::new(state);
            assert!(intents.begin(&intent).expect("begun"));
            Self {
                _dir: dir,
                intents,
                intent,
            }
        }

        fn switch(&self) {
            assert!(self.intents.switching(&self.intent).expect("written"));
            let new = program::beside(&self.intent.executable, "new");
            std::fs::write(&new, "new").expect("written");
            swap(&self.intent.executable, &new).expect("swapped");
        }

        fn there(&self) -> ReleaseId {
            inspect(&self.intent.executable).expect("there").id
        }
    }

    #[test]
    fn what_is_confirmed_stays() {
        let lab = Lab::new();
        let (intents, request) = (&lab.intents, lab.intent.request);
        lab.switch();
        assert_eq!(intents.confirm(request).expect("done"), Confirmed::Yes);
        assert!(!intents.roll_back(request, "late").expect("asked"));
        assert_eq!(lab.there(), lab.intent.to.id);
        assert_eq!(intents.confirm(request).expect("again"), Confirmed::Yes);
        intents.end(request).expect("ended");
        assert_eq!(intents.read().expect("read"), None);
        assert!(!intents.roll_back(request, "late").expect("asked"));
        assert_eq!(lab.there(), lab.intent.to.id);
    }

    #[test]
    fn what_was_rolled_back_is_never_confirmed_and_its_first_reason_stays() {
        for switched in [false, true] {
            let lab = Lab::new();
            let (intents, request) = (&lab.intents, lab.intent.request);
            if switched {
                lab.switch();
            } else {
                assert!(intents.switching(&lab.intent).expect("written"));
            }
            assert!(intents.roll_back(request, "first").expect("done"));
            assert_eq!(lab.there(), lab.intent.from.id);
            assert_eq!(
                intents.confirm(request).expect("asked"),
                Confirmed::RolledBack
            );
            // Killed after it was written down and before it was done.
            if switched {
                std::fs::write(&lab.intent.executable, "new").expect("written");
                assert!(kept_path(&lab.intent.executable).exists());
            }
            assert!(intents.roll_back(request, "second").expect("again"));
            assert_eq!(lab.there(), lab.intent.from.id);
            let now = intents.read().expect("read").expect("there");
            assert_eq!(
                now.phase,
                Phase::RolledBack {
                    reason: "first".into()
                }
            );
        }
    }

    #[test]
    fn one_at_a_time() {
        let lab = Lab::new();
        let mut other = lab.intent.clone();
        other.request.run = RunId::random();
        assert!(!lab.intents.begin(&other).expect("asked"));
        assert!(!lab.intents.switching(&other).expect("asked"));
        lab.intents.end(other.request).expect("nothing");
        assert!(lab.intents.read().expect("read").is_some());
        lab.intents.end(lab.intent.request).expect("ended");
        assert!(lab.intents.begin(&other).expect("begun"));
    }
}
