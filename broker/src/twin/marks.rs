//! How far each stream was when it was last looked at: a small file beside
//! the twin, so that a store that went back is seen also when the twin itself
//! is lost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::state_dir::{StateDir, StateDirError};

/// The file.
const FILE: &str = "marks.json";

/// See the module.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marks {
    streams: BTreeMap<String, Mark>,
    #[serde(skip)]
    changed: bool,
}

/// How far one stream was.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mark {
    /// When the stream was made, nanoseconds since the epoch.
    pub(super) created: i64,
    /// Its last sequence.
    pub(super) last: u64,
    /// When that was stored.
    pub(super) time: i64,
}

impl Marks {
    /// What is on the disk. Damaged marks are none.
    pub(super) fn load(state: &StateDir) -> Self {
        match state.load(FILE) {
            Ok(marks) => marks.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "the marks of the twin cannot be read; they begin anew");
                Self::default()
            }
        }
    }

    pub(super) fn get(&self, stream: &str) -> Option<Mark> {
        self.streams.get(stream).copied()
    }

    /// A stream was seen so far.
    pub(super) fn set(&mut self, stream: &str, mark: Mark) {
        self.changed |= self.streams.insert(stream.to_owned(), mark) != Some(mark);
    }

    /// What was known of a stream is told.
    pub(super) fn forget(&mut self, stream: &str) {
        self.changed |= self.streams.remove(stream).is_some();
    }

    pub(super) fn clear(&mut self) {
        self.changed |= !self.streams.is_empty();
        self.streams.clear();
    }

    /// Writes them, when they have changed.
    pub(super) fn store(&mut self, state: &StateDir) -> Result<(), StateDirError> {
        if std::mem::take(&mut self.changed)
            && let Err(error) = state.store(FILE, self)
        {
            self.changed = true;
            return Err(error);
        }
        Ok(())
    }
}
