//! How far what is to be said was said: pure.
//!
//! Places come in order and are dealt with in any order: an alarm goes before
//! news. What is on disk is the place up to which all was confirmed, and which
//! places behind it were begun or confirmed. After a crash what was begun may
//! have been said, and is marked when it is said again; what was confirmed is
//! not said again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Most places that are not dealt with: no more are taken.
const MOST: usize = 2_048;
/// Most places behind the first that is not dealt with: one channel that the
/// bot is not let into must not stop what is said in the others.
const MOST_BEHIND: usize = 8_192;

/// Stands for a place in the order in which places came.
pub type Seq = u64;

/// What is on disk.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Everything up to here was said; `None` before the first.
    pub confirmed: Option<String>,
    /// Places behind it of which something may have been said.
    #[serde(default)]
    pub begun: BTreeSet<String>,
    /// Places behind it that were said.
    #[serde(default)]
    pub done: BTreeSet<String>,
}

/// What is to be done with a place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Take {
    /// Say it.
    Fresh(Seq),
    /// Say it, marked: it may have been said.
    Again(Seq),
    /// It was said.
    Known,
}

#[derive(Debug)]
struct Open {
    place: String,
    begun: bool,
    done: bool,
}

/// How far what is to be said was said.
#[derive(Debug, Default)]
pub struct Ledger {
    confirmed: Option<String>,
    open: BTreeMap<Seq, Open>,
    /// How many of them are not dealt with.
    waiting: usize,
    next: Seq,
    /// Of the last start, not seen again yet.
    before: Saved,
    changed: bool,
}

impl Ledger {
    /// Goes on from what was on disk.
    #[must_use]
    pub fn new(saved: Saved) -> Self {
        Self {
            confirmed: saved.confirmed.clone(),
            before: saved,
            ..Self::default()
        }
    }

    /// From where to follow: the last place that was taken.
    #[must_use]
    pub fn resume(&self) -> Option<String> {
        match self.open.last_key_value() {
            Some((_, open)) => Some(open.place.clone()),
            None => self.confirmed.clone(),
        }
    }

    /// Whether one more place can be taken.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting < MOST && self.open.len() < MOST_BEHIND
    }

    /// A place came.
    pub fn take(&mut self, place: String) -> Take {
        let seq = self.next;
        self.next += 1;
        let done = self.before.done.remove(&place);
        let begun = self.before.begun.remove(&place);
        self.waiting += usize::from(!done);
        self.open.insert(seq, Open { place, begun, done });
        if done {
            self.advance();
            Take::Known
        } else if begun {
            Take::Again(seq)
        } else {
            Take::Fresh(seq)
        }
    }

    /// Something of these is about to be said. True when the disk must know
    /// that before.
    pub fn begin(&mut self, seqs: &[Seq]) -> bool {
        let mut new = false;
        for seq in seqs {
            if let Some(open) = self.open.get_mut(seq).filter(|open| !open.begun) {
                open.begun = true;
                new = true;
            }
        }
        self.changed |= new;
        new
    }

    /// These were said, or never will be.
    pub fn done(&mut self, seqs: &[Seq]) {
        for seq in seqs {
            if let Some(open) = self.open.get_mut(seq).filter(|open| !open.done) {
                open.done = true;
                self.waiting -= 1;
                self.changed = true;
            }
        }
        self.advance();
    }

    /// It is followed from here on. At the first start that is where a later
    /// one goes on; else it is what is known already.
    pub fn here(&mut self, place: String) {
        if self.confirmed.is_none() && self.open.is_empty() {
            self.confirmed = Some(place);
            self.changed = true;
        }
    }

    /// Places are numbered anew: those that came mean nothing any more.
    pub fn renumbered(&mut self, place: String) {
        self.open.clear();
        self.waiting = 0;
        self.before = Saved::default();
        self.confirmed = Some(place);
        self.changed = true;
    }

    /// What is to be on disk now, if that is something else than at the last
    /// call.
    pub fn changed(&mut self) -> Option<Saved> {
        std::mem::take(&mut self.changed).then(|| self.saved())
    }

    fn saved(&self) -> Saved {
        let mut saved = Saved {
            confirmed: self.confirmed.clone(),
            ..self.before.clone()
        };
        for open in self.open.values() {
            if open.done {
                saved.done.insert(open.place.clone());
            } else if open.begun {
                saved.begun.insert(open.place.clone());
            }
        }
        saved
    }

    fn advance(&mut self) {
        while let Some(first) = self.open.first_entry() {
            if !first.get().done {
                break;
            }
            self.confirmed = Some(first.remove().place);
            self.changed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fresh(take: Take) -> Seq {
        match take {
            Take::Fresh(seq) | Take::Again(seq) => seq,
            Take::Known => panic!("it is known"),
        }
    }

    #[test]
    fn the_cursor_is_behind_the_first_that_is_not_confirmed() {
        let mut ledger = Ledger::default();
        let seqs: Vec<Seq> = ["1", "2", "3"].map(|p| fresh(ledger.take(p.into()))).into();
        assert_eq!(ledger.changed(), None);
        assert!(ledger.begin(&[seqs[2]]) && !ledger.begin(&[seqs[2]]));
        let saved = ledger.changed().expect("begun");
        assert_eq!(saved.begun, ["3".to_owned()].into());
        ledger.done(&[seqs[2]]);
        let saved = ledger.changed().expect("said");
        assert_eq!(
            (saved.confirmed, saved.done),
            (None, ["3".to_owned()].into())
        );
        ledger.done(&[seqs[0]]);
        assert_eq!(
            ledger.changed().expect("said").confirmed.as_deref(),
            Some("1")
        );
        ledger.done(&[seqs[1]]);
        let saved = ledger.changed().expect("said");
        assert_eq!(
            saved,
            Saved {
                confirmed: Some("3".into()),
                ..Saved::default()
            }
        );
        assert_eq!(ledger.resume().as_deref(), Some("3"));
    }

    #[test]
    fn after_a_crash_what_was_begun_is_marked_and_what_was_said_is_not_said() {
        let saved = Saved {
            confirmed: Some("1".into()),
            begun: ["3".to_owned()].into(),
            done: ["4".to_owned()].into(),
        };
        let mut ledger = Ledger::new(saved.clone());
        assert_eq!(ledger.resume().as_deref(), Some("1"));
        assert!(matches!(ledger.take("2".into()), Take::Fresh(_)));
        // What has not come again is still known.
        ledger.changed = true;
        assert_eq!(ledger.changed(), Some(saved));
        assert!(matches!(ledger.take("3".into()), Take::Again(_)));
        assert_eq!(ledger.take("4".into()), Take::Known);
        assert_eq!((ledger.open.len(), ledger.waiting), (3, 2));
        ledger.here("9".into());
        assert_eq!(ledger.resume().as_deref(), Some("4"));
        ledger.renumbered("x".into());
        assert_eq!((ledger.open.len(), ledger.waiting), (0, 0));
        assert_eq!(ledger.resume().as_deref(), Some("x"));
    }

    #[test]
    fn one_place_that_waits_for_long_does_not_stop_the_others() {
        let mut ledger = Ledger::default();
        ledger.take("0".into());
        for n in 1..MOST_BEHIND {
            assert!(ledger.has_room(), "{n}");
            let seq = fresh(ledger.take(n.to_string()));
            ledger.done(&[seq]);
        }
        assert!(!ledger.has_room());
        ledger.done(&[0]);
        assert!(ledger.has_room() && ledger.open.is_empty());
        for n in 0..MOST {
            assert!(ledger.has_room());
            ledger.take(format!("x{n}"));
        }
        assert!(!ledger.has_room());
    }

    #[test]
    fn the_first_start_is_remembered_before_anything_is_said() {
        let mut ledger = Ledger::default();
        ledger.here("7".into());
        assert_eq!(
            ledger.changed().expect("new").confirmed.as_deref(),
            Some("7")
        );
        ledger.here("9".into());
        assert_eq!(ledger.changed(), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        Begin(usize),
        Done(usize),
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Take),
            4 => (0usize..100).prop_map(Step::Begin),
            4 => (0usize..100).prop_map(Step::Done),
            1 => Just(Step::Crash),
        ]
    }

    proptest! {
        /// Through crashes at any moment each place is said, and one that was
        /// begun before is never said without the mark.
        #[test]
        fn nothing_is_lost_or_repeated_in_silence(steps in proptest::collection::vec(step(), 1..120)) {
            let mut ledger = Ledger::default();
            let mut disk = Saved::default();
            let mut feed = 0usize;
            // Of this start: place to (seq, marked).
            let mut open: BTreeMap<usize, (Seq, bool)> = BTreeMap::new();
            let mut said: BTreeMap<usize, usize> = BTreeMap::new();
            let mut confirmed = BTreeSet::new();
            let mut steps = steps;
            steps.push(Step::Crash);
            for step in steps {
                match step {
                    Step::Take => {
                        match ledger.take(format!("{feed}")) {
                            Take::Known => prop_assert!(confirmed.contains(&feed)),
                            Take::Fresh(seq) => { open.insert(feed, (seq, false)); }
                            Take::Again(seq) => { open.insert(feed, (seq, true)); }
                        }
                        feed += 1;
                    }
                    Step::Begin(n) => {
                        let place = open.keys().nth(n % open.len().max(1)).copied();
                        if let Some(place) = place {
                            let (seq, marked) = open[&place];
                            if ledger.begin(&[seq]) {
                                disk = ledger.changed().expect("it has to be known");
                            }
                            let times = said.entry(place).or_default();
                            prop_assert!(*times == 0 || marked, "{} said again", place);
                            *times += 1;
                            // Of one start once.
                            open.insert(place, (seq, true));
                        }
                    }
                    Step::Done(n) => {
                        let place = open.keys().filter(|p| said.contains_key(p)).nth(n % open.len().max(1)).copied();
                        if let Some(place) = place {
                            let (seq, _) = open.remove(&place).expect("it is there");
                            ledger.done(&[seq]);
                            confirmed.insert(place);
                            if n % 2 == 0 && let Some(saved) = ledger.changed() {
                                disk = saved;
                            }
                        }
                    }
                    Step::Crash => {
                        ledger = Ledger::new(disk.clone());
                        feed = disk.confirmed.as_ref().map_or(0, |p| p.parse::<usize>().expect("a number") + 1);
                        open.clear();
                        // Everything before was said.
                        for place in 0..feed {
                            prop_assert!(confirmed.contains(&place), "{} is lost", place);
                        }
                    }
                }
            }
        }
    }
}
