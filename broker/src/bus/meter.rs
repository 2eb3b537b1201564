//! How much a node may say: pure.

use std::collections::HashMap;
use std::time::Duration;

use muster_protocol::ids::Serial;

/// Messages that a node may send at once …
const BURST: u32 = 2_000;
/// … and in a second, for ever.
const PER_SECOND: u32 = 500;
/// Bytes that a node may send at once …
const BURST_BYTES: u64 = 32 << 20;
/// … and in a second, for ever.
const BYTES_PER_SECOND: u64 = 8 << 20;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In thousandths of a message.
    messages: u64,
    bytes: u64,
    filled: Duration,
}

/// A bucket of tokens for each node, so that one that floods is dropped
/// before its messages are looked at, and no other is.
#[derive(Debug, Default)]
pub(super) struct Meters(HashMap<Serial, Bucket>);

impl Meters {
    /// Takes a message of so many bytes, at a monotonic time; whether it may
    /// be looked at.
    pub(super) fn allow(&mut self, node: Serial, bytes: usize, now: Duration) -> bool {
        let full = u64::from(BURST) * 1000;
        let bucket = self.0.entry(node).or_insert(Bucket {
            messages: full,
            bytes: BURST_BYTES,
            filled: now,
        });
        let passed =
            u64::try_from(now.saturating_sub(bucket.filled).as_millis()).unwrap_or(u64::MAX);
        if passed > 0 {
            bucket.messages = bucket
                .messages
                .saturating_add(passed.saturating_mul(PER_SECOND.into()))
                .min(full);
            let more = passed.saturating_mul(BYTES_PER_SECOND / 1000);
            bucket.bytes = bucket.bytes.saturating_add(more).min(BURST_BYTES);
            bucket.filled = now;
        }
        let bytes = bytes as u64;
        if bucket.messages < 1000 || bucket.bytes < bytes {
            return false;
        }
        bucket.messages -= 1000;
        bucket.bytes -= bytes;
        true
    }

    /// Forgets nodes that have been silent for long: their buckets are full.
    pub(super) fn tidy(&mut self, now: Duration) {
        self.0
            .retain(|_, bucket| now.saturating_sub(bucket.filled) < Duration::from_secs(60));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_rate_and_touches_nobody_else() {
        let mut meters = Meters::default();
        let allowed = |meters: &mut Meters, node, bytes, ms| {
            meters.allow(Serial(node), bytes, Duration::from_millis(ms))
        };
        let passed = (0..100_000)
            .filter(|_| allowed(&mut meters, 1, 10, 0))
            .count();
        assert_eq!(passed, BURST as usize);
        assert!(allowed(&mut meters, 2, 10, 0));
        let passed = (0..10_000)
            .filter(|_| allowed(&mut meters, 1, 10, 1_000))
            .count();
        assert_eq!(passed, PER_SECOND as usize);
        // Few large messages are a flood too.
        let passed = (0..1_000)
            .filter(|_| allowed(&mut meters, 3, 1 << 20, 0))
            .count();
        assert_eq!(passed, 32);
        meters.tidy(Duration::from_secs(100));
        assert!(meters.0.is_empty());
    }
}
