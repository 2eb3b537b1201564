//! The clock that the lease is measured with.

use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment on a clock that nobody sets, and that goes on while the process is
/// stopped and while the machine sleeps (`CLOCK_BOOTTIME`; the clock behind
/// `Instant` does not count the sleep of the machine). A virtual machine that
/// is paused from outside may lose the time of its pause on every clock it
/// has: for that there are the users that are shut out, and the epoch.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Moment(Duration);

impl Moment {
    /// Now.
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        // Time since the machine was started: neither is ever negative.
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
        Self(Duration::new(seconds, nanos))
    }

    /// How long ago it was; zero for one that is still to come.
    pub(super) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}
