//! Waiting between tries: longer each time, and never in step with others.

use std::time::Duration;

use muster_protocol::ids::random_bytes;

/// From 0 to 1.
fn chance() -> f64 {
    f64::from(u32::from_le_bytes(random_bytes())) / f64::from(u32::MAX)
}

/// `base` shortened by a random part of at most half, so that a fleet that
/// lost the same server does not come back in one wave.
#[must_use]
pub fn jitter(base: Duration) -> Duration {
    base - (base / 2).mul_f64(chance())
}

/// Any time up to `within`, each as likely: for what a whole fleet would do
/// at the same moment.
#[must_use]
pub fn spread(within: Duration) -> Duration {
    within.mul_f64(chance())
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

/// Within this time after a connection has ended its node tries again. The
/// whole fleet may have lost the same server, which is there again at once.
pub const FIRST_TRY_WITHIN: Duration = Duration::from_secs(1);
/// The wait after a try that failed, doubled from …
const NEXT_TRY: Duration = Duration::from_millis(500);
/// … to this.
const LONGEST: Duration = Duration::from_secs(30);
/// The same for a node whose credentials are refused, which asks ever more
/// rarely.
const REFUSED: Duration = Duration::from_secs(2);
const REFUSED_LONGEST: Duration = Duration::from_secs(300);

/// When a node tries to connect again: the one rule for agents and simulated
/// nodes.
#[derive(Clone, Debug)]
pub struct Comeback {
    tries: Backoff,
    refused: Backoff,
    refusals: u32,
    /// The broker has welcomed the node since the last loss.
    welcomed: bool,
}

impl Default for Comeback {
    fn default() -> Self {
        Self {
            tries: Backoff::new(NEXT_TRY, LONGEST),
            refused: Backoff::new(REFUSED, REFUSED_LONGEST),
            refusals: 0,
            welcomed: false,
        }
    }
}

impl Comeback {
    /// The broker welcomed the node: whatever was wrong is over.
    pub fn welcomed(&mut self) {
        *self = Self {
            welcomed: true,
            ..Self::default()
        };
    }

    /// The connection has ended; how long to wait.
    pub fn lost(&mut self) -> Duration {
        if std::mem::take(&mut self.welcomed) {
            spread(FIRST_TRY_WITHIN)
        } else {
            self.tries.wait()
        }
    }

    /// No connection could be made; how long to wait.
    pub fn failed(&mut self) -> Duration {
        self.tries.wait()
    }

    /// The server refused the credentials; how long to wait.
    pub fn refused(&mut self) -> Duration {
        self.welcomed = false;
        self.refusals += 1;
        self.refused.wait()
    }

    /// Whether fresh credentials are worth a try at once: not when fresh ones
    /// were refused again and again.
    #[must_use]
    pub fn trusts_fresh(&self) -> bool {
        self.refusals < 3
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

    /// When nodes are back that lost their server at the same moment, if it
    /// is away for so long; in milliseconds.
    fn back_after(nodes: usize, away: Duration) -> Vec<u128> {
        let one = || {
            let mut pace = Comeback::default();
            pace.welcomed();
            let mut at = pace.lost();
            while at < away {
                at += pace.failed();
            }
            at.as_millis()
        };
        (0..nodes).map(|_| one()).collect()
    }

    #[test]
    fn a_thousand_nodes_come_back_one_after_the_other() {
        for away in [0, 300, 2_000, 20_000, 600_000] {
            let away = Duration::from_millis(away);
            let back = back_after(1_000, away);
            let mut windows = std::collections::BTreeMap::<u128, usize>::new();
            for ms in &back {
                *windows.entry(ms / 100).or_default() += 1;
            }
            let most = windows.values().max().expect("nodes");
            assert!(
                *most <= 300,
                "after {away:?} {most} of 1000 come within 100 ms: {windows:?}"
            );
            let last = Duration::from_millis(
                u64::try_from(*back.iter().max().expect("nodes")).expect("a time"),
            );
            // A wait is at most twice the time that has passed.
            let bound = away + (away * 2 + FIRST_TRY_WITHIN).min(LONGEST);
            assert!(last <= bound, "after {away:?} the last is back at {last:?}");
        }
    }

    #[test]
    fn a_server_that_greets_and_hangs_up_is_not_stormed() {
        let mut pace = Comeback::default();
        pace.welcomed();
        let first = pace.lost();
        assert!(first <= FIRST_TRY_WITHIN);
        // No welcome in between: each wait is longer.
        let waits: Vec<Duration> = (0..12).map(|_| pace.lost()).collect();
        assert!(waits[0] >= NEXT_TRY / 2);
        assert!(waits[8..].iter().all(|w| *w >= LONGEST / 2), "{waits:?}");
    }

    #[test]
    fn credentials_that_are_refused_again_are_not_tried_at_once() {
        let mut pace = Comeback::default();
        assert!(pace.trusts_fresh());
        let waits: Vec<Duration> = (0..12).map(|_| pace.refused()).collect();
        assert!(!pace.trusts_fresh());
        assert!(waits[10] >= REFUSED_LONGEST / 2, "{waits:?}");
        pace.welcomed();
        assert!(pace.trusts_fresh());
        assert!(pace.refused() <= REFUSED);
    }
}
