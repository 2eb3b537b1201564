//! Waiting between tries: longer each time, and never in step with others.

use std::time::Duration;

use muster_protocol::ids::random_bytes;

/// `base` shortened by a random part of at most half, so that a fleet that
/// lost the same server does not come back in one wave.
#[must_use]
pub fn jitter(base: Duration) -> Duration {
    let random = u32::from(u16::from_le_bytes(random_bytes()));
    base - base / 2 * random / u32::from(u16::MAX)
}

/// Waits that double from `first` to `longest`.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins at `first`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// How long to wait before the next try.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.longest);
        jitter(wait)
    }

    /// It worked: begin again at the first wait.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_stay_apart() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<Duration> = (0..50).map(|_| backoff.wait()).collect();
        assert!(waits[0] >= Duration::from_millis(50) && waits[0] <= Duration::from_millis(100));
        assert!(
            waits[10..]
                .iter()
                .all(|w| *w >= Duration::from_millis(500) && *w <= Duration::from_secs(1))
        );
        assert!(
            waits[10..].iter().any(|w| *w != waits[10]),
            "all waits are equal"
        );
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_millis(100));
    }
}
