//! How fast a bot may speak: so many lines at once, then one after the other.

use std::time::{Duration, Instant};

/// A bucket of tokens, one a line. Kept as the moment at which it will be full
/// again, so that nothing has to tick and nothing is rounded.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    burst: u32,
    every: Duration,
    full: Option<Instant>,
}

impl Bucket {
    /// Full: `burst` lines at once (at least one), then one `every` so often.
    #[must_use]
    pub const fn new(burst: u32, every: Duration) -> Self {
        Self {
            burst: if burst == 0 { 1 } else { burst },
            every,
            full: None,
        }
    }

    /// When `lines` may be said at once; several count as no more than fit in.
    #[must_use]
    pub fn ready(&self, lines: u32, now: Instant) -> Instant {
        let left = self.burst - lines.clamp(1, self.burst);
        match self.full {
            Some(full) => full.checked_sub(self.every * left).unwrap_or(now).max(now),
            None => now,
        }
    }

    /// Takes them out, if they are there.
    pub fn take(&mut self, lines: u32, now: Instant) -> bool {
        if self.ready(lines, now) > now {
            return false;
        }
        let from = self.full.unwrap_or(now).max(now);
        self.full = Some(from + self.every * lines.clamp(1, self.burst));
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn four_at_once_then_one_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket::new(4, SECOND);
        assert!((0..4).all(|_| bucket.take(1, start)));
        assert!(!bucket.take(1, start));
        assert_eq!(bucket.ready(1, start), start + SECOND);
        assert!(bucket.take(1, start + SECOND));
        assert!(!bucket.take(1, start + SECOND));
        // Quiet for long is four again, not more.
        let later = start + 100 * SECOND;
        assert!((0..4).all(|_| bucket.take(1, later)) && !bucket.take(1, later));
    }

    #[test]
    fn several_wait_for_all_of_them_but_never_for_ever() {
        let start = Instant::now();
        let mut bucket = Bucket::new(4, SECOND);
        assert!(bucket.take(3, start));
        assert_eq!(bucket.ready(3, start), start + 2 * SECOND);
        assert_eq!(bucket.ready(100, start), start + 3 * SECOND);
        assert!(bucket.take(100, start + 3 * SECOND));
    }

    proptest! {
        #[test]
        fn never_more_than_it_holds(
            burst in 1u32..10,
            every in 1u64..2_000,
            steps in proptest::collection::vec((0u64..3_000, 1u32..4), 1..200),
        ) {
            let every = Duration::from_millis(every);
            let start = Instant::now();
            let mut bucket = Bucket::new(burst, every);
            let mut now = start;
            let mut taken: Vec<(Instant, u32)> = Vec::new();
            for (pause, lines) in steps {
                now += Duration::from_millis(pause);
                if bucket.take(lines, now) {
                    taken.push((now, lines.min(burst)));
                } else {
                    // What is promised holds.
                    now = bucket.ready(lines, now);
                    prop_assert!(bucket.take(lines, now));
                    taken.push((now, lines.min(burst)));
                }
                // In each window there were at most `burst` and what has come
                // in since.
                for (from, _) in &taken {
                    let within: u32 = taken.iter().filter(|(at, _)| at >= from).map(|(_, n)| n).sum();
                    let room = f64::from(burst) + (now - *from).as_secs_f64() / every.as_secs_f64();
                    prop_assert!(f64::from(within) <= room + 1e-6);
                }
            }
        }
    }
}
