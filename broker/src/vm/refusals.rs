//! Runs that were not taken now, as in a freeze: each is asked for again after
//! a while, then after twice that.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_protocol::ids::RunId;
use muster_protocol::units::{Timestamp, after};

/// What was refused is asked for again after so long, then after twice that, ...
const AGAIN: Duration = Duration::from_secs(1);
/// ... but not later than that.
const LATEST: Duration = Duration::from_secs(60);
/// What is refused of so many is remembered.
const MOST: usize = 10_000;

/// What is known of runs that were not taken.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<RunId, Refusal>>);

#[derive(Clone, Copy, Debug)]
struct Refusal {
    times: u32,
    until: Timestamp,
}

impl Refusals {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is too early to ask again.
    pub(super) fn waits(&self, run: RunId, now: Timestamp) -> bool {
        let refused = self.all().get(&run).copied();
        refused.is_some_and(|refused| now < refused.until)
    }

    /// It was refused once more.
    pub(super) fn refused(&self, run: RunId, now: Timestamp) {
        let mut all = self.all();
        if all.len() >= MOST {
            all.retain(|_, refused| now < refused.until);
        }
        let times = all.get(&run).map_or(0, |refused| refused.times);
        let pause = AGAIN.saturating_mul(1 << times.min(10)).min(LATEST);
        let until = after(now, pause);
        let times = times.saturating_add(1);
        all.insert(run, Refusal { times, until });
    }

    /// It was taken, or nobody wants it any more.
    pub(super) fn taken(&self, run: RunId) {
        self.all().remove(&run);
    }

    /// What refused them may be over.
    pub(super) fn forget(&self) {
        self.all().clear();
    }
}
