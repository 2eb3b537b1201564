//! What one simulated node remembers of its steps, in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::envelope::Sealed;
use muster_protocol::ids::RequestId;
use muster_protocol::run::Outcome;

/// How a step ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ended {
    /// The outcome.
    pub outcome: Outcome,
    /// Why, unless it succeeded.
    pub reason: Option<Box<str>>,
    /// Milliseconds, when it was executed.
    pub ms: Option<u32>,
    /// The exit code that it shows.
    pub exit: Option<i32>,
    /// Bytes of output that it kept.
    pub output: u32,
}

impl Ended {
    /// Nothing was executed.
    #[must_use]
    pub fn without_effect(outcome: Outcome, reason: impl Into<Box<str>>) -> Self {
        Self {
            outcome,
            reason: Some(reason.into()),
            ms: None,
            exit: None,
            output: 0,
        }
    }
}

/// What is known of a step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Entry {
    /// It runs; this is how it will end when nobody ends it before.
    Started(Box<Ended>),
    /// It has its outcome.
    Finished {
        /// How it ended.
        ended: Box<Ended>,
        /// The broker has it.
        stored: bool,
    },
    /// This node plays dead for it.
    Silent,
}

/// The steps of one node. What the broker does not have yet is never
/// forgotten; of the others the newest are kept.
#[derive(Clone, Debug)]
pub struct Journal {
    entries: HashMap<RequestId, Entry>,
    /// The requests behind them, as they came.
    requests: HashMap<RequestId, Arc<Sealed>>,
    settled: VecDeque<RequestId>,
    remember: usize,
    running: u32,
}

impl Journal {
    /// An empty one that remembers so many steps that the broker has.
    #[must_use]
    pub fn new(remember: usize) -> Self {
        Self {
            entries: HashMap::new(),
            requests: HashMap::new(),
            settled: VecDeque::new(),
            remember,
            running: 0,
        }
    }

    /// What is known of a step.
    #[must_use]
    pub fn look(&self, id: RequestId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// Keeps the request of a step that is known.
    pub fn keep(&mut self, id: RequestId, request: impl FnOnce() -> Option<Arc<Sealed>>) {
        if self.entries.contains_key(&id)
            && let Some(request) = request()
        {
            self.requests.insert(id, request);
        }
    }

    /// The request of a step, as it came.
    #[must_use]
    pub fn request(&self, id: RequestId) -> Option<Arc<Sealed>> {
        self.requests.get(&id).cloned()
    }

    /// Makes every outcome that is remembered as if the broker did not have
    /// it; whether there is one.
    pub fn recall(&mut self) -> bool {
        let entries = &mut self.entries;
        self.settled.retain(|id| match entries.get_mut(id) {
            Some(Entry::Finished { stored, .. }) => {
                *stored = false;
                false
            }
            _ => true,
        });
        self.unacknowledged().next().is_some()
    }

    /// How many run.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.running
    }

    /// How many steps are not settled.
    #[must_use]
    pub fn open(&self) -> usize {
        self.entries.len() - self.settled.len()
    }

    /// Steps whose outcome the broker does not have.
    pub fn unacknowledged(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.entries.iter().filter_map(|(id, entry)| match entry {
            Entry::Finished { stored: false, .. } => Some(*id),
            _ => None,
        })
    }

    /// Whether a step has an outcome that the broker does not have.
    #[must_use]
    pub fn is_unacknowledged(&self, id: RequestId) -> bool {
        matches!(
            self.entries.get(&id),
            Some(Entry::Finished { stored: false, .. })
        )
    }

    /// Steps that run, and how long they take in all.
    pub fn started(&self) -> impl Iterator<Item = (RequestId, Duration)> + '_ {
        self.entries.iter().filter_map(|(id, entry)| match entry {
            Entry::Started(ended) => {
                let ms = ended.ms.unwrap_or_default();
                Some((*id, Duration::from_millis(ms.into())))
            }
            _ => None,
        })
    }

    /// Writes down that a step begins. False when it is known already: then
    /// nothing may be executed.
    pub fn start(&mut self, id: RequestId, will_end: Ended) -> bool {
        if self.entries.contains_key(&id) {
            return false;
        }
        self.entries.insert(id, Entry::Started(Box::new(will_end)));
        self.running += 1;
        true
    }

    /// Plays dead for a step that is not known.
    pub fn silence(&mut self, id: RequestId) {
        if self.entries.contains_key(&id) {
            return;
        }
        self.entries.insert(id, Entry::Silent);
        self.settle(id);
    }

    /// Ends a step that runs as it was going to; whether it did.
    pub fn run_out(&mut self, id: RequestId) -> Option<Outcome> {
        let entry = self.entries.get_mut(&id)?;
        let Entry::Started(ended) = entry else {
            return None;
        };
        let outcome = ended.outcome;
        *entry = Entry::Finished {
            ended: ended.clone(),
            stored: false,
        };
        self.running -= 1;
        Some(outcome)
    }

    /// Ends a step that runs or is not known; false when it has an outcome.
    pub fn finish(&mut self, id: RequestId, ended: Ended) -> bool {
        match self.entries.get(&id) {
            None => {}
            Some(Entry::Started(_)) => self.running -= 1,
            Some(_) => return false,
        }
        let ended = Box::new(ended);
        let entry = Entry::Finished {
            ended,
            stored: false,
        };
        self.entries.insert(id, entry);
        true
    }

    /// The broker has the outcome; whether that is news.
    pub fn stored(&mut self, id: RequestId) -> bool {
        match self.entries.get_mut(&id) {
            Some(Entry::Finished { stored, .. }) if !*stored => *stored = true,
            _ => return false,
        }
        self.settle(id);
        true
    }

    fn settle(&mut self, id: RequestId) {
        self.settled.push_back(id);
        while self.settled.len() > self.remember {
            if let Some(oldest) = self.settled.pop_front() {
                self.entries.remove(&oldest);
                self.requests.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::ids::RunId;

    fn id(n: u8) -> RequestId {
        RequestId {
            run: RunId::from_bytes([n; 16]),
            step: 0,
        }
    }

    fn ended(outcome: Outcome) -> Ended {
        Ended::without_effect(outcome, "test")
    }

    #[test]
    fn a_step_starts_once_and_ends_once() {
        let mut journal = Journal::new(10);
        assert!(journal.start(id(1), ended(Outcome::Succeeded)));
        assert!(!journal.start(id(1), ended(Outcome::Succeeded)));
        assert_eq!(journal.running(), 1);
        assert!(journal.finish(id(1), ended(Outcome::Cancelled)));
        assert_eq!(journal.run_out(id(1)), None);
        assert!(!journal.finish(id(1), ended(Outcome::Failed)));
        assert!(!journal.start(id(1), ended(Outcome::Succeeded)));
        assert_eq!(journal.running(), 0);
        // A step that was cancelled before it came never starts.
        assert!(journal.finish(id(2), ended(Outcome::Cancelled)));
        assert!(!journal.start(id(2), ended(Outcome::Succeeded)));
    }

    #[test]
    fn only_what_the_broker_has_is_forgotten() {
        let mut journal = Journal::new(2);
        for n in 0..6 {
            assert!(journal.start(id(n), ended(Outcome::Succeeded)));
        }
        for n in 0..5 {
            assert_eq!(journal.run_out(id(n)), Some(Outcome::Succeeded));
        }
        for n in 1..5 {
            assert!(journal.stored(id(n)));
            assert!(!journal.stored(id(n)));
        }
        assert!(!journal.stored(id(5)), "it has no outcome yet");
        assert!(journal.look(id(0)).is_some() && journal.look(id(5)).is_some());
        assert!(journal.look(id(1)).is_none() && journal.look(id(4)).is_some());
        assert_eq!(journal.unacknowledged().collect::<Vec<_>>(), [id(0)]);
        assert_eq!(journal.open(), 2);
    }
}
