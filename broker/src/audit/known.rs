//! How far the record was, as this broker's disk knows it: so that a store
//! that has lost some of it is found out.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use muster_protocol::audit::{Head, MAX_LINE, Tail};
use serde::{Deserialize, Serialize};

use super::settings::{AuditConfig, SinkConfig};
use crate::state_dir::{StateDir, StateDirError};

/// The file in the state directory.
const FILE: &str = "audit-head.json";

/// How far it was.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Known {
    pub(super) count: u64,
    pub(super) head: Head,
}

impl From<Tail> for Known {
    fn from(tail: Tail) -> Self {
        Self {
            count: tail.count,
            head: tail.head,
        }
    }
}

impl From<Known> for Tail {
    fn from(known: Known) -> Self {
        Self {
            count: known.count,
            head: known.head,
        }
    }
}

/// The furthest that anything on this disk knows.
pub(super) fn furthest(
    state: &StateDir,
    config: &AuditConfig,
) -> Result<Option<Known>, StateDirError> {
    let mut furthest = state.load::<Known>(FILE)?;
    for sink in &config.sinks {
        let SinkConfig::File { path } = sink else {
            continue;
        };
        let last = last_of(path).map(Known::from);
        if last.is_some_and(|last| furthest.is_none_or(|known| last.count > known.count)) {
            furthest = last;
        }
    }
    Ok(furthest)
}

pub(super) fn store(state: &StateDir, tail: Tail) -> Result<(), StateDirError> {
    state.store(FILE, &Known::from(tail))
}

/// The end of the chain that a sink's file holds. A file that cannot be read,
/// or ends in something else, says nothing.
pub(super) fn last_of(path: &Path) -> Option<Tail> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let from = size.saturating_sub(2 * MAX_LINE as u64);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(2 * MAX_LINE as u64)
        .read_to_end(&mut bytes)
        .ok()?;
    // What follows the last line end was cut while it was written.
    let end = bytes.iter().rposition(|b| *b == b'\n')?;
    Tail::after_lines(&String::from_utf8_lossy(&bytes[..end]))
}

#[cfg(test)]
mod tests {
    use muster_protocol::audit::Verdict;

    use super::*;
    use crate::audit::Audit;

    #[test]
    fn the_end_of_a_file_is_found_also_when_a_line_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sink");
        assert_eq!(last_of(&path), None);
        let mut tail = Tail::START;
        let mut text = tail.append(Audit::entry("a", Verdict::Noted)) + "\n";
        let one = tail;
        let second = tail.append(Audit::entry("b", Verdict::Noted));
        text += &second[..second.len() / 2];
        std::fs::write(&path, &text).unwrap();
        assert_eq!(last_of(&path), Some(one));
    }
}
