//! What a node has to do later, in the order of time: one list a node, so
//! that a node needs one timer of the runtime only.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use tokio::time::Instant;

/// Things to do, each at its time; of equal times the one put in first comes
/// first.
#[derive(Debug)]
pub struct Timers<T> {
    heap: BinaryHeap<Timed<T>>,
    count: u64,
}

#[derive(Debug)]
struct Timed<T> {
    at: Instant,
    number: u64,
    what: T,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            count: 0,
        }
    }
}

impl<T> Timers<T> {
    /// Puts something in.
    pub fn put(&mut self, at: Instant, what: T) {
        self.count += 1;
        let number = self.count;
        self.heap.push(Timed { at, number, what });
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|timed| timed.at)
    }

    /// The next one that is due.
    pub fn take(&mut self, now: Instant) -> Option<T> {
        if self.heap.peek()?.at > now {
            return None;
        }
        self.heap.pop().map(|timed| timed.what)
    }
}

impl<T> PartialEq for Timed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Timed<T> {}

impl<T> PartialOrd for Timed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Timed<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives its largest first.
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_earliest_comes_first_and_equals_in_their_order() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        for (ms, what) in [(5, "c"), (1, "a"), (5, "d"), (2, "b")] {
            timers.put(at(ms), what);
        }
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.take(at(0)), None);
        let mut all = Vec::new();
        while let Some(what) = timers.take(at(5)) {
            all.push(what);
        }
        assert_eq!(all, ["a", "b", "c", "d"]);
    }
}
