//! The time by which things get old: pure.

use std::time::Duration;

use muster_protocol::units::{Timestamp, after, elapsed};
use tokio::time::Instant;

/// A wall clock that goes ahead by more than so much at once was set.
const JUMP: Duration = Duration::from_secs(600);
/// A clock that was set ahead is believed after so long.
const BELIEVE: Duration = Duration::from_secs(3_600);

/// The wall clock, but for an hour after somebody has set it far ahead: a
/// clock that is wrong by years for a moment must not take everything away
/// for its age.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    wall: Timestamp,
    at: Instant,
    /// Since when the wall clock is far ahead of what it should say.
    ahead: Option<Instant>,
}

impl Clock {
    pub(super) fn new(wall: Timestamp, at: Instant) -> Self {
        Self {
            wall,
            at,
            ahead: None,
        }
    }

    /// The time to go by, when the wall clock says `wall` at `at`.
    pub(super) fn now(&mut self, wall: Timestamp, at: Instant) -> Timestamp {
        let expected = after(self.wall, at.saturating_duration_since(self.at));
        if elapsed(expected, wall) <= JUMP {
            *self = Self::new(wall, at);
            return wall;
        }
        let since = *self.ahead.get_or_insert_with(|| {
            tracing::warn!(%expected, %wall, "the clock was set far ahead: for an hour nothing is taken to be so much older");
            at
        });
        if at.saturating_duration_since(since) >= BELIEVE {
            *self = Self::new(wall, at);
            return wall;
        }
        expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_is_set_ahead_is_believed_an_hour_later() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let wall = |secs: i64| Timestamp::from_second(1_000_000 + secs).expect("a time");
        let mut clock = Clock::new(wall(0), at(0));
        assert_eq!(clock.now(wall(5), at(5)), wall(5));
        // A little, and back: as it is.
        assert_eq!(clock.now(wall(300), at(10)), wall(300));
        assert_eq!(clock.now(wall(-90_000), at(15)), wall(-90_000));
        assert_eq!(clock.now(wall(20), at(15)), wall(-90_000));
        // A year ahead, then right again.
        let mut clock = Clock::new(wall(0), at(0));
        let year = 31_000_000;
        assert_eq!(clock.now(wall(year), at(5)), wall(5));
        assert_eq!(clock.now(wall(year + 5), at(10)), wall(10));
        assert_eq!(clock.now(wall(15), at(15)), wall(15));
        // And for good.
        assert_eq!(clock.now(wall(year), at(20)), wall(20));
        let later = 20 + 3_600;
        assert_eq!(clock.now(wall(year + 3_600), at(later)), wall(year + 3_600));
    }
}
