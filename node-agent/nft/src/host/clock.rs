//! A clock that also goes while the machine sleeps, and that nobody sets; and
//! which start of the machine it counts from.

use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine was started.
pub(super) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let secs = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
    secs * 1_000 + nanos / 1_000_000
}

/// The id of this start; empty where it is not told.
pub(super) fn boot_id(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}
