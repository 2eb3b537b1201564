//! The same question asked again and again is one record, with a count.

use std::collections::HashMap;
use std::time::Duration;

use muster_protocol::audit::{Entry, Verdict};
use muster_protocol::units::{Timestamp, elapsed};
use sha2::{Digest as _, Sha256};

/// Within this time the same is counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Different questions that are counted at a time; what is above is counted
/// together, by action.
const MOST: usize = 4_096;

/// What was asked a moment ago. Pure: whoever calls has the time.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    asked: HashMap<[u8; 32], Again>,
    lost: u64,
}

#[derive(Debug)]
struct Again {
    entry: Entry,
    /// Beyond the first, which was written.
    times: u64,
    until: Timestamp,
}

fn key(entry: &Entry) -> [u8; 32] {
    let same = (
        &entry.who,
        &entry.action,
        entry.verdict,
        &entry.why,
        &entry.about,
    );
    Sha256::digest(serde_json::to_vec(&same).unwrap_or_default()).into()
}

impl Repeats {
    /// The entry, if it is the first of its kind for now; else it is counted.
    pub(super) fn first(&mut self, mut entry: Entry) -> Option<Entry> {
        let mut id = key(&entry);
        if !self.asked.contains_key(&id) && self.asked.len() >= MOST {
            // Somebody makes up addresses or paths.
            entry.about = Box::default();
            entry.who.origin = Some("many".into());
            entry.why = None;
            id = key(&entry);
        }
        if let Some(again) = self.asked.get_mut(&id) {
            again.times += 1;
            again.until = again.until.max(entry.at);
            return None;
        }
        let again = Again {
            entry: entry.clone(),
            times: 0,
            until: entry.at,
        };
        self.asked.insert(id, again);
        Some(entry)
    }

    /// One could not even be queued.
    pub(super) fn lost(&mut self, _at: Timestamp) {
        self.lost += 1;
    }

    /// What was counted and is to be written: all whose minute is over, or
    /// everything at the `end`.
    pub(super) fn due(&mut self, now: Timestamp, end: bool) -> Vec<Entry> {
        let mut due = Vec::new();
        self.asked.retain(|_, again| {
            if !end && elapsed(again.entry.at, now) < WINDOW && again.entry.at <= now {
                return true;
            }
            if again.times > 0 {
                due.push(Entry {
                    times: Some(again.times),
                    until: Some(again.until),
                    ..again.entry.clone()
                });
            }
            false
        });
        if self.lost > 0 {
            let mut entry = super::Audit::entry("audit-unrecorded", Verdict::Noted);
            entry.times = Some(std::mem::take(&mut self.lost));
            entry.why = Some("more was read than could be recorded".to_owned());
            due.push(entry);
        }
        due.sort_by_key(|entry| entry.at);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Audit;

    fn entry(second: i64, token: &str) -> Entry {
        let mut entry = Audit::entry("read-nodes", Verdict::Allowed);
        entry.at = Timestamp::from_second(second).unwrap();
        entry.who.token = Some(token.to_owned());
        entry
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_first_is_written_and_the_others_are_counted() {
        let mut repeats = Repeats::default();
        assert!(repeats.first(entry(100, "a")).is_some());
        assert!(repeats.first(entry(101, "a")).is_none());
        assert!(repeats.first(entry(102, "b")).is_some());
        assert!(repeats.first(entry(130, "a")).is_none());
        assert_eq!(repeats.due(at(159), false), []);
        let due = repeats.due(at(162), false);
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].times, due[0].until), (Some(2), Some(at(130))));
        // After that it is a first one again.
        assert!(repeats.first(entry(163, "a")).is_some());
        assert_eq!(repeats.due(at(400), false), []);
    }

    #[test]
    fn a_flood_of_different_ones_takes_bounded_memory() {
        let mut repeats = Repeats::default();
        let mut entries = 0;
        for i in 0..10_000 {
            let mut entry = entry(6, "x");
            entry.why = Some(i.to_string());
            entries += usize::from(repeats.first(entry).is_some());
        }
        // What is above the bound is one more, with a count.
        assert_eq!(entries, MOST + 1);
        assert_eq!(repeats.asked.len(), MOST + 1);
        let counted: u64 = repeats
            .due(at(6), true)
            .iter()
            .filter_map(|e| e.times)
            .sum();
        assert_eq!(counted, 10_000 - entries as u64);
    }
}
