//! One-use challenges for a node's proof.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use muster_protocol::ids::random_bytes;

/// How long a challenge works.
pub(super) const LIFE: Duration = Duration::from_secs(60);
/// Most challenges that are open at a time.
pub(super) const MAX_OPEN: usize = 50_000;

/// The challenges that were given and not used.
#[derive(Debug, Default)]
pub(super) struct Challenges(Mutex<HashMap<String, Instant>>);

impl Challenges {
    /// A new one; `None` when too many are open.
    pub(super) fn give(&self, now: Instant) -> Option<String> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_OPEN {
            open.retain(|_, given| now.saturating_duration_since(*given) < LIFE);
            if open.len() >= MAX_OPEN {
                return None;
            }
        }
        let text = HEXLOWER.encode(&random_bytes::<16>());
        open.insert(text.clone(), now);
        Some(text)
    }

    /// Whether it was given, not used, and not too long ago; it is used now.
    pub(super) fn take(&self, text: &str, now: Instant) -> bool {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(text)
            .is_some_and(|given| now.saturating_duration_since(given) < LIFE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_works_once_and_not_for_long() {
        let challenges = Challenges::default();
        let now = Instant::now();
        let one = challenges.give(now).unwrap();
        assert!(!challenges.take("0", now));
        assert!(challenges.take(&one, now));
        assert!(!challenges.take(&one, now));
        let two = challenges.give(now).unwrap();
        assert_ne!(one, two);
        assert!(!challenges.take(&two, now + LIFE));
    }

    #[test]
    fn their_number_is_bounded_and_old_ones_make_room() {
        let challenges = Challenges::default();
        let now = Instant::now();
        for _ in 0..MAX_OPEN {
            assert!(challenges.give(now).is_some());
        }
        assert!(challenges.give(now).is_none());
        assert!(challenges.give(now + LIFE).is_some());
    }
}
