//! What a node says about a step, made fit for the journal: pure.

use std::collections::BTreeSet;

use muster_protocol::ids::Serial;
use muster_protocol::run::{NodeResult, Outcome};

/// Most bytes of a reason that are kept.
const MAX_REASON: usize = 1_000;
/// Chunks ahead of the first missing one that are taken; what is beyond is
/// asked for again.
const MAX_AHEAD: usize = 512;
/// Most chunks asked for at a time.
const MAX_ASKED: usize = 512;
/// How often missing chunks are asked for before the outcome is taken without
/// them.
const MAX_ROUNDS: u8 = 8;

/// A node's own words about how a step ended, bounded: its serial is the
/// subject's, its text is cut, and an outcome that is not a node's to give is
/// taken for `unknown`.
#[must_use]
pub(super) fn from_node(serial: Serial, mut said: NodeResult) -> NodeResult {
    said.serial = serial;
    if let Some(value) = said.value.take() {
        said.value_bytes = None;
        said.set_value(value);
    }
    if matches!(said.outcome, Outcome::Unreachable | Outcome::Skipped) {
        said.reason = Some(format!(
            "the node says `{}`, which no node can know",
            said.outcome
        ));
        said.outcome = Outcome::Unknown;
    }
    match &mut said.reason {
        Some(reason) => cut(reason),
        None if said.outcome == Outcome::Succeeded => {}
        None => said.reason = Some("the node gives no reason".to_owned()),
    }
    said
}

fn cut(reason: &mut String) {
    if reason.len() > MAX_REASON {
        let mut end = MAX_REASON;
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        reason.push('…');
    }
}

/// Whether two results say the same about the node.
#[must_use]
pub(super) fn same(a: &NodeResult, b: &NodeResult) -> bool {
    (a.outcome, a.exit, a.signal) == (b.outcome, b.exit, b.signal)
}

/// What came of a chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Taken {
    /// It is new, and is to be stored.
    Store,
    /// It came before.
    Repeated,
    /// It is over the limit of the node's output: counted, not stored.
    OverLimit,
    /// Too far ahead of what is missing; it is asked for again.
    TooFarAhead,
}

/// Which chunks of a node's output have come.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    /// Every chunk below this one has come.
    next: u32,
    /// Chunks above it that have come.
    ahead: BTreeSet<u32>,
    bytes: u64,
    truncated: bool,
    rounds: u8,
}

impl Book {
    /// Takes a chunk of so many bytes, of at most `limit` for the node.
    pub(super) fn take(&mut self, chunk: u32, bytes: usize, limit: u64) -> Taken {
        if chunk < self.next || self.ahead.contains(&chunk) {
            return Taken::Repeated;
        }
        if chunk == self.next {
            self.next = self.next.saturating_add(1);
            while self.ahead.remove(&self.next) {
                self.next = self.next.saturating_add(1);
            }
        } else if self.ahead.len() < MAX_AHEAD {
            self.ahead.insert(chunk);
        } else {
            return Taken::TooFarAhead;
        }
        let total = self.bytes.saturating_add(bytes as u64);
        if total > limit {
            self.truncated = true;
            return Taken::OverLimit;
        }
        self.bytes = total;
        Taken::Store
    }

    /// A chunk that was taken could not be stored, or had to be left out.
    pub(super) fn lost(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64);
        self.truncated = true;
    }

    /// The chunks that have not come of `total`; empty also when they were
    /// asked for often enough, which then shows as truncated output.
    pub(super) fn missing(&mut self, total: u32) -> Vec<u32> {
        let missing: Vec<u32> = (self.next..total)
            .filter(|n| !self.ahead.contains(n))
            .take(MAX_ASKED)
            .collect();
        if missing.is_empty() {
            return missing;
        }
        if self.rounds >= MAX_ROUNDS {
            self.truncated = true;
            return Vec::new();
        }
        self.rounds += 1;
        missing
    }

    /// Writes what was kept into the result: the broker's own count, not the
    /// node's.
    pub(super) fn conclude(&self, result: &mut NodeResult) {
        result.output_bytes = self.bytes;
        result.truncated |= self.truncated;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_node_cannot_say_what_it_cannot_know_nor_for_another() {
        let said = NodeResult::new(Serial(9), Outcome::Skipped, "x");
        let kept = from_node(Serial(1), said);
        assert_eq!((kept.serial, kept.outcome), (Serial(1), Outcome::Unknown));
        let long = NodeResult::new(Serial(1), Outcome::Failed, "é".repeat(10_000));
        let reason = from_node(Serial(1), long).reason.expect("kept");
        assert!(reason.len() <= MAX_REASON + 3 && reason.ends_with('…'));
        let mut silent = NodeResult::new(Serial(1), Outcome::Failed, "");
        silent.reason = None;
        assert!(from_node(Serial(1), silent).reason.is_some());
    }

    #[test]
    fn what_is_missing_is_asked_for_and_not_for_ever() {
        let mut book = Book::default();
        for chunk in [0, 3, 1] {
            assert_eq!(book.take(chunk, 10, 100), Taken::Store);
        }
        assert_eq!(book.take(3, 10, 100), Taken::Repeated);
        assert_eq!(book.missing(5), [2, 4]);
        assert_eq!(book.take(2, 10, 100), Taken::Store);
        assert_eq!(book.missing(4), Vec::<u32>::new());
        for _ in 1..MAX_ROUNDS {
            assert_eq!(book.missing(u32::MAX).len(), MAX_ASKED);
        }
        assert_eq!(book.missing(u32::MAX), Vec::<u32>::new());
        let mut result = NodeResult::new(Serial(1), Outcome::Succeeded, "");
        result.output_bytes = 7;
        book.conclude(&mut result);
        assert_eq!((result.output_bytes, result.truncated), (40, true));
    }

    #[test]
    fn output_over_the_limit_is_counted_and_not_kept() {
        let mut book = Book::default();
        assert_eq!(book.take(0, 90, 100), Taken::Store);
        assert_eq!(book.take(1, 20, 100), Taken::OverLimit);
        assert_eq!(book.take(2, 10, 100), Taken::Store);
        assert_eq!(book.missing(3), Vec::<u32>::new());
        assert_eq!(book.take(1000, 0, 100), Taken::Store);
    }

    proptest! {
        #[test]
        fn each_chunk_is_stored_once_whatever_the_order(chunks in prop::collection::vec(0u32..200, 0..600)) {
            let mut book = Book::default();
            let mut stored = BTreeSet::new();
            for chunk in chunks {
                match book.take(chunk, 1, u64::MAX) {
                    Taken::Store => prop_assert!(stored.insert(chunk)),
                    Taken::Repeated => prop_assert!(stored.contains(&chunk)),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let missing = book.missing(200);
            prop_assert!(missing.iter().all(|c| !stored.contains(c)));
            prop_assert_eq!(missing.len() + stored.len(), 200);
        }
    }
}
