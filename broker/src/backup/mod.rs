//! Backups of a whole cluster, and the way back.
//!
//! [`take`](take::take) writes one while everything runs: the keys, and every
//! stream and bucket of muster, each as it was at one moment. The moments are
//! in an order in which nothing that is needed can be missing: runs before
//! the nodes they name, nodes before the invites that made them.
//!
//! [`restore`](restore::restore) makes a state directory of it, without a
//! network. The streams wait in it, and the broker that is started on it
//! [puts them into NATS](import::import) before it does anything else, once.
//!
//! A restored cluster has gone back in time, and its nodes have not. So what
//! only ever rises, rises by a [`Leap`]: nothing that a node may have seen
//! since the backup was made is higher, not even after an earlier restore of
//! the same backup.

pub mod format;
pub mod import;
pub mod restore;
pub mod take;
#[cfg(test)]
mod whole;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How far epochs and revisions rise at least.
pub const LEAP: u64 = 1_000_000;
/// How many enrolment serials are left out at least.
pub const LEAST_SERIALS: u32 = 1_024;
/// How many are left out at most: each costs a bit in a frozen set that has
/// nodes from before and after.
pub const MOST_SERIALS: u32 = 65_536;

/// How far a restored cluster jumps ahead of its backup.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Leap {
    /// For the lease's epoch, the epoch of the key list, and the revisions of
    /// assignments.
    pub epochs: u64,
    /// For enrolment serials.
    pub serials: u32,
}

impl Leap {
    /// For a backup that was made at `made`. It rises with the time since:
    /// a later restore of the same backup jumps further.
    #[must_use]
    pub fn since(made: Timestamp, now: Timestamp) -> Self {
        let seconds = u64::try_from(now.as_second() - made.as_second()).unwrap_or(0);
        let minutes = u32::try_from(seconds / 60).unwrap_or(u32::MAX);
        Self {
            epochs: LEAP + seconds,
            serials: LEAST_SERIALS.saturating_add(minutes).min(MOST_SERIALS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_restore_jumps_further_and_a_wrong_clock_never_back() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let now = Leap::since(at(1_000), at(1_000));
        assert_eq!((now.epochs, now.serials), (LEAP, LEAST_SERIALS));
        let day = Leap::since(at(1_000), at(1_000 + 86_400));
        assert_eq!(
            (day.epochs, day.serials),
            (LEAP + 86_400, LEAST_SERIALS + 1_440)
        );
        let back = Leap::since(at(1_000), at(0));
        assert_eq!(back, now);
        let old = Leap::since(at(0), at(100 * 365 * 86_400));
        assert_eq!(old.serials, MOST_SERIALS);
    }
}
