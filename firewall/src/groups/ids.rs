//! The numbers that interfaces have in the marks of packets.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::names::TapName;

/// Most interfaces of a hypervisor: their numbers have 16 bits, and 0 is
/// nobody's.
pub const MAX_INTERFACES: usize = u16::MAX as usize;

/// Which number each interface has: 1 to 65535, the lowest that is free.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ids {
    numbers: BTreeMap<TapName, u16>,
    used: BTreeSet<u16>,
}

/// All numbers are taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a hypervisor takes at most {MAX_INTERFACES} interfaces; move machines to another one")]
pub struct Full;

impl Ids {
    /// Its number, if it has one.
    #[must_use]
    pub fn of(&self, tap: &TapName) -> Option<u16> {
        self.numbers.get(tap).copied()
    }

    /// Its number: the one that it has, else the lowest that nobody has.
    ///
    /// # Errors
    /// [`Full`].
    pub fn assign(&mut self, tap: &TapName) -> Result<u16, Full> {
        if let Some(number) = self.of(tap) {
            return Ok(number);
        }
        let number = self.lowest().ok_or(Full)?;
        self.used.insert(number);
        self.numbers.insert(tap.clone(), number);
        Ok(number)
    }

    /// Each of them has a number then; those that had one keep it.
    ///
    /// # Errors
    /// [`Full`]: those before it have theirs.
    pub fn assign_all<'a>(
        &mut self,
        taps: impl IntoIterator<Item = &'a TapName>,
    ) -> Result<(), Full> {
        taps.into_iter()
            .try_for_each(|tap| self.assign(tap).map(drop))
    }

    /// It is gone, and its number is free. To be called when the kernel knows
    /// nothing of it any more.
    pub fn release(&mut self, tap: &TapName) {
        if let Some(number) = self.numbers.remove(tap) {
            self.used.remove(&number);
        }
    }

    /// Who has which.
    pub fn iter(&self) -> impl Iterator<Item = (&TapName, u16)> {
        self.numbers.iter().map(|(tap, number)| (tap, *number))
    }

    fn lowest(&self) -> Option<u16> {
        // Without holes, which is nearly always, this is the next one.
        let last = self.used.last().copied().unwrap_or(0);
        if usize::from(last) == self.used.len() {
            return last.checked_add(1);
        }
        (1..last).find(|number| !self.used.contains(number))
    }
}

impl FromIterator<(TapName, u16)> for Ids {
    /// As they were written down. A number that is nobody's, or somebody
    /// else's already, is left out.
    fn from_iter<T: IntoIterator<Item = (TapName, u16)>>(all: T) -> Self {
        let mut ids = Self::default();
        for (tap, number) in all {
            if number > 0 && !ids.numbers.contains_key(&tap) && ids.used.insert(number) {
                ids.numbers.insert(tap, number);
            }
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(number: u32) -> TapName {
        format!("mt{number}").parse().expect("a tap")
    }

    #[test]
    fn the_lowest_free_number_is_taken() {
        let mut ids = Ids::default();
        let numbers: Vec<_> = (0..4).map(|n| ids.assign(&tap(n))).collect();
        assert_eq!(numbers, [Ok(1), Ok(2), Ok(3), Ok(4)]);
        assert_eq!(ids.assign(&tap(2)), Ok(3));
        ids.release(&tap(1));
        ids.release(&tap(3));
        assert_eq!(ids.of(&tap(1)), None);
        assert_eq!(ids.assign(&tap(7)), Ok(2));
        assert_eq!(ids.assign(&tap(8)), Ok(4));
    }

    #[test]
    fn there_is_an_end_of_numbers() {
        let mut ids = Ids::default();
        for n in 0..65_535 {
            assert!(ids.assign(&tap(n)).is_ok());
        }
        assert_eq!(ids.assign(&tap(70_000)), Err(Full));
        ids.release(&tap(500));
        assert_eq!(ids.assign(&tap(70_000)), Ok(501));
    }
}
