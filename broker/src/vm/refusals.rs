//! Runs that were not taken now, as in a freeze: each is asked for again after
//! a while, then after twice that.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_protocol::ids::RunId;
use muster_protocol::units::{Timestamp, after};

use crate::refusal::Refusal;

/// What was refused is asked for again after so long, then after twice that, ...
const AGAIN: Duration = Duration::from_secs(1);
/// ... but not later than that.
const LATEST: Duration = Duration::from_secs(60);
/// What is refused of so many is remembered.
const MOST: usize = 10_000;

/// What is known of runs that were not taken.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<RunId, Refused>>);

#[derive(Clone, Copy, Debug)]
struct Refused {
    times: u32,
    until: Timestamp,
    /// Each time it was certain that it is not done.
    sure: bool,
}

impl Refusals {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is too early to ask again.
    pub(super) fn waits(&self, run: RunId, now: Timestamp) -> bool {
        let refused = self.all().get(&run).copied();
        refused.is_some_and(|refused| now < refused.until)
    }

    /// Whether nobody has taken it, for all that this broker knows: each time
    /// that it was asked for it was refused for certain.
    pub(super) fn never_taken(&self, run: RunId) -> bool {
        self.all().get(&run).is_some_and(|refused| refused.sure)
    }

    /// Nobody knows whether it was taken when it was asked for.
    pub(super) fn unsure(&self, run: RunId) {
        let nothing = Refused {
            times: 0,
            until: Timestamp::UNIX_EPOCH,
            sure: false,
        };
        self.all().entry(run).or_insert(nothing).sure = false;
    }

    /// It was refused once more.
    pub(super) fn refused(&self, run: RunId, now: Timestamp, why: Refusal) {
        let mut all = self.all();
        if all.len() >= MOST {
            all.retain(|_, refused| now < refused.until || !refused.sure);
        }
        let before = all.get(&run);
        let times = before.map_or(0, |refused| refused.times);
        let sure = before.is_none_or(|refused| refused.sure) && why != Refusal::Unsure;
        let pause = AGAIN.saturating_mul(1 << times.min(10)).min(LATEST);
        let until = after(now, pause);
        let times = times.saturating_add(1);
        all.insert(run, Refused { times, until, sure });
    }

    /// It was taken, or nobody wants it any more.
    pub(super) fn taken(&self, run: RunId) {
        self.all().remove(&run);
    }

    /// What refused them may be over: each is asked for again at once.
    pub(super) fn forget(&self) {
        for refused in self.all().values_mut() {
            refused.times = 0;
            refused.until = Timestamp::UNIX_EPOCH;
        }
    }
}
