//! Whether the clock of the broker's machine was set while the broker ran:
//! pure. Times are passed in.

use std::time::{Duration, Instant};

use muster_protocol::units::Timestamp;

/// A smaller step is nobody's business.
const STEP: Duration = Duration::from_secs(10);

/// Holds the clock that people set against the one that nobody can.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClockWatch {
    wall: Timestamp,
    steady: Instant,
}

impl ClockWatch {
    /// Begins to watch.
    pub(crate) fn new(wall: Timestamp, steady: Instant) -> Self {
        Self { wall, steady }
    }

    /// Looks again: the step since the last look, in seconds, if there was
    /// one; negative for back.
    pub(crate) fn look(&mut self, wall: Timestamp, steady: Instant) -> Option<i64> {
        let passed = i128::try_from(steady.duration_since(self.steady).as_millis()).ok()?;
        let shown = wall.duration_since(self.wall).as_millis();
        *self = Self { wall, steady };
        let step = shown - passed;
        (step.unsigned_abs() > STEP.as_millis()).then(|| {
            i64::try_from(step / 1000).unwrap_or(if step < 0 { i64::MIN } else { i64::MAX })
        })
    }
}

/// What people are told of a step.
pub(crate) fn told(step: i64) -> String {
    let by = step.unsigned_abs();
    if step < 0 {
        format!(
            "the clock of the broker's machine was set back by {by} s. Nodes decline what is signed from now \
             on if their clocks, or what they have obeyed before, are further ahead than 30 s (90 s)"
        )
    } else {
        format!(
            "the clock of the broker's machine was set forward by {by} s, or the machine stood still. Nodes \
             whose clocks are more than 30 s away decline everything"
        )
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::units::after;

    use super::*;

    #[test]
    fn a_step_is_seen_once_and_the_passing_of_time_is_none() {
        let (wall, steady) = (Timestamp::now(), Instant::now());
        let secs = Duration::from_secs;
        let mut clock = ClockWatch::new(wall, steady);
        assert_eq!(clock.look(after(wall, secs(50)), steady + secs(50)), None);
        // A little, as a time server does it.
        assert_eq!(clock.look(after(wall, secs(55)), steady + secs(51)), None);
        assert_eq!(
            clock.look(after(wall, secs(3_656)), steady + secs(52)),
            Some(3_600)
        );
        assert_eq!(
            clock.look(after(wall, secs(3_657)), steady + secs(53)),
            None
        );
        assert_eq!(
            clock.look(after(wall, secs(58)), steady + secs(54)),
            Some(-3_600)
        );
        assert!(told(-3_600).contains("back by 3600 s"));
        assert!(told(3_600).contains("forward by 3600 s"));
    }
}
