//! Addresses that are taken, as runs of neighbours: pure.

use std::collections::BTreeMap;

/// Numbers that are taken. What is side by side is one run, so that the lowest
/// free number of a pool is found at once, however many there are: a /64 is
/// never gone through.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Taken {
    /// First and last of each run; between two runs something is free.
    runs: BTreeMap<u128, u128>,
}

impl Taken {
    /// The run that a number is in.
    fn run_of(&self, number: u128) -> Option<(u128, u128)> {
        let (first, last) = self.runs.range(..=number).next_back()?;
        (*last >= number).then_some((*first, *last))
    }

    pub(super) fn contains(&self, number: u128) -> bool {
        self.run_of(number).is_some()
    }

    pub(super) fn insert(&mut self, number: u128) {
        if self.contains(number) {
            return;
        }
        let (mut first, mut last) = (number, number);
        if let Some((before, _)) = number.checked_sub(1).and_then(|n| self.run_of(n)) {
            self.runs.remove(&before);
            first = before;
        }
        if let Some(after) = number.checked_add(1)
            && let Some(end) = self.runs.remove(&after)
        {
            last = end;
        }
        self.runs.insert(first, last);
    }

    pub(super) fn remove(&mut self, number: u128) {
        let Some((first, last)) = self.run_of(number) else {
            return;
        };
        self.runs.remove(&first);
        if first < number {
            self.runs.insert(first, number - 1);
        }
        if number < last {
            self.runs.insert(number + 1, last);
        }
    }

    /// The lowest number from `first` to `last` that is free.
    pub(super) fn lowest_free(&self, first: u128, last: u128) -> Option<u128> {
        let free = match self.run_of(first) {
            // What follows a run is free: else it were in it.
            Some((_, end)) => end.checked_add(1)?,
            None => first,
        };
        (free <= last).then_some(free)
    }

    /// How many from `first` to `last` are taken.
    pub(super) fn count(&self, first: u128, last: u128) -> u128 {
        let begin = self.run_of(first).map_or(first, |(begin, _)| begin);
        self.runs
            .range(begin..=last)
            .map(|(from, to)| (*to).min(last) - (*from).max(first) + 1)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set(
            steps in proptest::collection::vec((any::<bool>(), 0_u128..24, any::<bool>()), 0..80),
            first in 0_u128..24, len in 0_u128..24,
        ) {
            // Also at the very end of all numbers.
            let of = |n: u128, high: bool| if high { u128::MAX - n } else { n };
            let (mut taken, mut model) = (Taken::default(), BTreeSet::new());
            for (insert, number, high) in steps {
                let number = of(number, high);
                if insert {
                    taken.insert(number);
                    model.insert(number);
                } else {
                    taken.remove(number);
                    model.remove(&number);
                }
                prop_assert_eq!(taken.contains(number), insert);
            }
            for (first, last) in [
                (first, first + len),
                (u128::MAX - 24 + first, (u128::MAX - 24 + first).saturating_add(len)),
            ] {
                let free = (first..=last).find(|n| !model.contains(n));
                prop_assert_eq!(taken.lowest_free(first, last), free);
                let count = (first..=last).filter(|n| model.contains(n)).count();
                prop_assert_eq!(taken.count(first, last), count as u128);
            }
            // Neighbours are one run.
            for ((_, end), (begin, _)) in taken.runs.iter().zip(taken.runs.iter().skip(1)) {
                prop_assert!(end + 1 < *begin);
            }
        }
    }
}
