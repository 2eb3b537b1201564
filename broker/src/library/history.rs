//! The history of one scenario: pure.

use std::collections::BTreeSet;

use muster_protocol::api::ScenarioVersion;
use muster_protocol::envelope::BundleHash;
use muster_protocol::names::{PrincipalName, ScenarioName};
use muster_protocol::units::Timestamp;
use serde::{Deserialize, Serialize};

/// Versions of one scenario that are told of; the oldest go.
pub const MAX_HISTORY: usize = 500;
/// Newest versions of one scenario whose files are kept.
pub const KEPT: usize = 100;

/// What a version holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// What pins it.
    pub bundle: BundleHash,
    /// Bytes of the packed bundle.
    pub bytes: u64,
    /// What the scenario says it is for.
    pub about: String,
}

/// One change of a scenario.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number, from 1.
    pub version: u32,
    /// Its content; absent where it is the removal of the scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// Who made the change.
    pub by: PrincipalName,
    /// When.
    pub at: Timestamp,
    /// Why, in the words of who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Entry {
    /// Whether it is the same change under whatever number.
    fn is_same_change(&self, other: &Self) -> bool {
        (&self.content, &self.by, self.at, &self.note)
            == (&other.content, &other.by, other.at, &other.note)
    }
}

/// A value of `muster_scenarios`; the key is the scenario's name. Numbers
/// rise by one, and what once had one never has another.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    versions: Vec<Entry>,
}

impl History {
    /// All that are told of, the oldest first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.versions
    }

    /// The newest change, a removal too.
    #[must_use]
    pub fn newest(&self) -> Option<&Entry> {
        self.versions.last()
    }

    /// The change of that number.
    #[must_use]
    pub fn entry(&self, version: u32) -> Option<&Entry> {
        self.versions.iter().find(|entry| entry.version == version)
    }

    /// The history with one change more. The oldest go.
    #[must_use]
    pub fn with(
        &self,
        content: Option<Content>,
        (by, at): (&PrincipalName, Timestamp),
        note: Option<String>,
    ) -> Self {
        let mut next = self.clone();
        next.versions.push(Entry {
            version: next.next(),
            content,
            by: by.clone(),
            at,
            note,
        });
        next.trim();
        next
    }

    fn next(&self) -> u32 {
        self.newest().map_or(1, |e| e.version.saturating_add(1))
    }

    fn trim(&mut self) {
        let over = self.versions.len().saturating_sub(MAX_HISTORY);
        self.versions.drain(..over);
    }

    /// Whether the files of that version are kept.
    #[must_use]
    pub fn keeps(&self, version: u32) -> bool {
        let newest = self.newest().map_or(0, |entry| entry.version);
        u64::from(newest) < u64::from(version) + KEPT as u64
    }

    /// The bundles whose files are kept, with their sizes.
    pub fn bundles(&self) -> impl Iterator<Item = (BundleHash, u64)> {
        let kept = self.versions.iter().filter(|e| self.keeps(e.version));
        kept.filter_map(|entry| entry.content.as_ref())
            .map(|content| (content.bundle, content.bytes))
    }

    /// As it is shown.
    #[must_use]
    pub fn view(&self, name: &ScenarioName, entry: &Entry) -> ScenarioVersion {
        let content = entry.content.as_ref();
        ScenarioVersion {
            name: name.clone(),
            version: entry.version,
            bundle: content.map(|content| content.bundle),
            about: content.map(|content| content.about.clone()),
            bytes: content.map_or(0, |content| content.bytes),
            kept: content.is_some() && self.keeps(entry.version),
            by: entry.by.clone(),
            at: Some(entry.at),
            note: entry.note.clone(),
        }
    }

    /// Two copies of which one may lack what the other has. Mostly one goes on
    /// where the other ends. Where both went on by themselves, the changes of
    /// the `earlier` keep their numbers, and those of the `later` come after
    /// them under new ones: nothing is lost, and the newest stays the newest.
    #[must_use]
    pub fn and(earlier: Self, later: Self) -> Self {
        // A removal of old entries is no difference.
        let differ = earlier.versions.iter().find_map(|entry| {
            let other = later.entry(entry.version)?;
            (other != entry).then_some(entry.version)
        });
        let Some(differ) = differ else {
            let known: BTreeSet<u32> = earlier.versions.iter().map(|e| e.version).collect();
            let mut both = earlier;
            let more = later.versions.into_iter();
            both.versions
                .extend(more.filter(|entry| !known.contains(&entry.version)));
            both.versions.sort_by_key(|entry| entry.version);
            both.trim();
            return both;
        };
        let has = |history: &Self, entry: &Entry| {
            history.versions.iter().any(|e| e.is_same_change(entry))
        };
        // The later one has taken up the other's changes before.
        let lacks = earlier.versions.iter().any(|entry| !has(&later, entry));
        if !lacks {
            return later;
        }
        let mut both = earlier;
        for entry in later.versions {
            if entry.version >= differ && !has(&both, &entry) {
                let version = both.next();
                both.versions.push(Entry { version, ..entry });
            }
        }
        both.trim();
        both
    }

    /// What both copies of a history come to; `lost_is_newer` says which of
    /// the two was written last.
    #[must_use]
    pub fn reconciled(now: Self, lost: Self, lost_is_newer: bool) -> Self {
        if lost_is_newer {
            Self::and(now, lost)
        } else {
            Self::and(lost, now)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(n: u8) -> Option<Content> {
        (n > 0).then(|| Content {
            bundle: BundleHash::of(&[n]),
            bytes: 10,
            about: "x".into(),
        })
    }

    fn grow(history: &History, n: u8, second: i64) -> History {
        let at = Timestamp::from_second(second).unwrap();
        history.with(content(n), (&"ana".parse().unwrap(), at), None)
    }

    fn of(changes: &[(u8, i64)]) -> History {
        let grown = |history: History, (n, at): &(u8, i64)| grow(&history, *n, *at);
        changes.iter().fold(History::default(), grown)
    }

    fn numbers(history: &History) -> Vec<u32> {
        history.entries().iter().map(|e| e.version).collect()
    }

    #[test]
    fn numbers_rise_also_over_a_removal_and_when_old_ones_go() {
        let mut history = of(&[(1, 1), (0, 2), (1, 3)]);
        assert_eq!(numbers(&history), [1, 2, 3]);
        assert_eq!(history.newest().unwrap().version, 3);
        for n in 0..MAX_HISTORY {
            history = grow(&history, 1, n as i64 + 10);
        }
        assert_eq!(history.entries().len(), MAX_HISTORY);
        assert_eq!(history.newest().unwrap().version, MAX_HISTORY as u32 + 3);
        assert!(history.entry(3).is_none());
        assert_eq!(history.bundles().count(), KEPT);
        assert!(!history.keeps(10) && history.keeps(MAX_HISTORY as u32));
    }

    #[test]
    fn a_copy_that_lacks_something_gets_it_back() {
        let whole = of(&[(1, 1), (2, 2), (3, 3)]);
        let part = of(&[(1, 1)]);
        for newer in [true, false] {
            let both = History::reconciled(part.clone(), whole.clone(), newer);
            assert_eq!(both, whole);
            let both = History::reconciled(whole.clone(), part.clone(), newer);
            assert_eq!(both, whole);
        }
    }

    #[test]
    fn what_went_on_by_itself_comes_after_what_was_there_and_nothing_is_lost() {
        let base = of(&[(1, 1)]);
        let known = grow(&grow(&base, 2, 2), 3, 3);
        let other = grow(&base, 4, 9);
        let both = History::reconciled(other.clone(), known.clone(), false);
        assert_eq!(numbers(&both), [1, 2, 3, 4]);
        assert_eq!(both.entry(2).unwrap().content, content(2));
        assert_eq!(both.newest().unwrap().content, content(4));
        // Once more changes nothing, whoever is thought to be newer.
        for newer in [true, false] {
            let again = History::reconciled(both.clone(), known.clone(), newer);
            assert_eq!(again.newest().unwrap().version, 4, "{newer}");
            assert_eq!(again, both, "{newer}");
        }
    }

    proptest! {
        #[test]
        fn every_change_is_there_once_and_numbers_rise(
            base in proptest::collection::vec(0..4u8, 0..5),
            one in proptest::collection::vec(0..4u8, 0..5),
            other in proptest::collection::vec(0..4u8, 0..5),
        ) {
            let numbered = |of: &[u8], from: i64| -> Vec<(u8, i64)> {
                of.iter().enumerate().map(|(i, n)| (*n, from + i as i64)).collect()
            };
            let base = of(&numbered(&base, 0));
            let grown = |changes: &[(u8, i64)]| {
                changes.iter().fold(base.clone(), |h, (n, at)| grow(&h, *n, *at))
            };
            let earlier = grown(&numbered(&one, 100));
            let later = grown(&numbered(&other, 200));
            let both = History::and(earlier.clone(), later.clone());
            prop_assert!(numbers(&both).windows(2).all(|pair| pair[0] < pair[1]));
            let changes = base.entries().len() + one.len() + other.len();
            prop_assert_eq!(both.entries().len(), changes);
            for entry in earlier.entries() {
                prop_assert_eq!(both.entry(entry.version), Some(entry));
            }
            if let Some(newest) = later.newest() {
                let last = both.newest().expect("it is not empty");
                prop_assert!(other.is_empty() || last.is_same_change(newest));
            }
            prop_assert_eq!(History::and(earlier.clone(), both.clone()), both.clone());
            prop_assert_eq!(History::and(both.clone(), earlier), both);
        }
    }
}
