//! What runs wait for before they begin: the time for a confirmation, the
//! window, and locks.
//!
//! Who holds a lock follows from the journals: a run holds its locks from its
//! `admitted` to its `finished`. [`Locks`] is a fold of that over the open
//! runs, with those that are ready and wait, in the order in which they were
//! created.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;
use std::sync::Mutex;
use std::time::Duration;

use muster_protocol::api::Frame;
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::run::{Gate, Gates, ITS_WINDOW, NodePhase, RunEvent, RunPhase, RunState};
use muster_protocol::units::{Span, Timestamp, elapsed};
use muster_scenarios::secret;
use muster_scenarios::when::Cron;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::engine::{Engine, lock};
use super::journal::JournalError;
use super::task::Task;

/// Who waits, in order: the older first.
type Place = (Timestamp, RunId);

#[derive(Debug, Default)]
struct Table {
    holders: BTreeMap<String, RunId>,
    waiting: BTreeMap<Place, BTreeSet<String>>,
}

impl Table {
    fn leave(&mut self, run: RunId) -> bool {
        let before = self.holders.len() + self.waiting.len();
        self.holders.retain(|_, holder| *holder != run);
        self.waiting.retain(|(_, other), _| *other != run);
        before != self.holders.len() + self.waiting.len()
    }

    /// Who keeps a run from its locks: the holder of one, or who has waited
    /// for one longer.
    fn before(&self, place: Place, locks: &BTreeSet<String>) -> Option<(String, RunId)> {
        let held = |lock: &String| {
            let holder = self.holders.get(lock).filter(|h| **h != place.1)?;
            Some((lock.clone(), *holder))
        };
        let queued = || {
            self.waiting.range(..place).find_map(|((_, run), wanted)| {
                let shared = wanted.intersection(locks).next()?;
                Some((shared.clone(), *run))
            })
        };
        locks.iter().find_map(held).or_else(queued)
    }
}

/// Who holds which lock, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Locks {
    table: Mutex<Table>,
    changed: Notify,
}

impl Locks {
    /// Takes down the locks that an open run holds.
    pub(super) fn note(&self, state: &RunState) {
        let locks = &state.spec.gates.locks;
        if state.admitted.is_none() || state.phase.is_final() || locks.is_empty() {
            return;
        }
        let mut table = lock(&self.table);
        for name in locks {
            table.holders.insert(name.clone(), state.spec.id);
        }
    }

    /// Takes all of a run's locks, or waits in its place: then the answer is
    /// which lock it is, and who is before it.
    fn take(&self, place: Place, locks: &BTreeSet<String>) -> Result<(), (String, RunId)> {
        let mut table = lock(&self.table);
        if let Some(before) = table.before(place, locks) {
            table.waiting.insert(place, locks.clone());
            return Err(before);
        }
        table.waiting.remove(&place);
        for name in locks {
            table.holders.insert(name.clone(), place.1);
        }
        Ok(())
    }

    /// The locks that these runs hold.
    pub(super) fn held_by(&self, runs: &[RunId]) -> BTreeSet<String> {
        let table = lock(&self.table);
        let held = table.holders.iter().filter(|(_, run)| runs.contains(run));
        held.map(|(name, _)| name.clone()).collect()
    }

    /// Who is before a run that wants these locks.
    fn before(&self, place: Place, locks: &BTreeSet<String>) -> Option<(String, RunId)> {
        lock(&self.table).before(place, locks)
    }

    /// A run needs its locks no more, or does not wait for them now.
    pub(super) fn release(&self, run: RunId) {
        if lock(&self.table).leave(run) {
            self.changed.notify_waiters();
        }
    }

    pub(super) fn clear(&self) {
        *lock(&self.table) = Table::default();
        self.changed.notify_waiters();
    }

    /// Comes when somebody has left.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

/// When the window of a run is open: `None` at once, `Some(None)` never.
fn opens(gates: &Gates, at: Timestamp) -> Option<Option<Timestamp>> {
    let windows: Vec<Cron> = gates
        .windows
        .iter()
        .filter_map(|text| Cron::from_str(text).ok())
        .collect();
    if gates.windows.is_empty() || windows.iter().any(|window| window.holds(at)) {
        return None;
    }
    Some(windows.iter().filter_map(|window| window.next(at)).min())
}

impl Engine {
    /// What keeps a run from its turn now, for people.
    pub(super) fn kept_by(&self, state: &RunState, now: Timestamp) -> Option<String> {
        let spec = &state.spec;
        match opens(&spec.gates, now) {
            Some(Some(at)) => return Some(format!("{ITS_WINDOW}opens {at}")),
            Some(None) => return Some(format!("{ITS_WINDOW}never opens")),
            None => {}
        }
        let place = (spec.created, spec.id);
        let before = self.0.locks.before(place, &spec.gates.locks);
        before.map(|(name, run)| self.lock_of(&name, run))
    }

    fn lock_of(&self, name: &str, run: RunId) -> String {
        let index = lock(&self.0.index);
        match index.get(run) {
            Some(brief) if brief.state == RunPhase::Waiting => format!(
                "run {} of {} waits for the lock `{name}` before it",
                brief.short, brief.principal
            ),
            Some(brief) => format!(
                "the lock `{name}` is held by run {} of {}",
                brief.short, brief.principal
            ),
            None => format!("the lock `{name}` is held by run {}", run.short()),
        }
    }
}

impl Task {
    /// Looks whether what the run waits for is there. Whether its state has
    /// changed.
    pub(super) async fn pass(&mut self, gate: &Gate) -> Result<bool, JournalError> {
        let now = Timestamp::now();
        match gate {
            Gate::Confirmation { until } if now >= *until => {
                let within = elapsed(self.state.spec.created, *until).as_millis();
                let within = Span::from_millis(u64::try_from(within).unwrap_or(u64::MAX));
                tracing::info!("nobody has confirmed it in time");
                self.store(RunEvent::Lapsed {
                    why: format!("not confirmed within {within}"),
                    at: now,
                })
                .await?;
                Ok(true)
            }
            Gate::Confirmation { .. } | Gate::Approvals { .. } => {
                self.tell_waits(gate, None, None).await;
                Ok(false)
            }
            Gate::Answer { .. } | Gate::Moment { .. } => Ok(false),
            Gate::Turn { .. } => {
                let spec = &self.state.spec;
                let shared = &self.engine.0;
                let turn = if opens(&spec.gates, now).is_some() {
                    // Who cannot begin keeps nobody else from it.
                    shared.locks.release(self.run);
                    false
                } else {
                    let place = (spec.created, spec.id);
                    shared.locks.take(place, &spec.gates.locks).is_ok()
                };
                if turn {
                    self.say_why(None);
                    self.store(RunEvent::Admitted { at: now }).await?;
                } else {
                    let why = self.engine.kept_by(&self.state, now);
                    self.tell_waits(gate, None, why.as_deref()).await;
                    self.say_why(why);
                }
                Ok(turn)
            }
        }
    }

    /// Tells whoever watches now what keeps the run. Who comes later is told
    /// the next time.
    fn say_why(&self, why: Option<String>) {
        let _ = self.live.send(Frame::Stalled { run: self.run, why });
    }

    /// When to look again whether the run may begin; `None` when only what
    /// somebody says changes it.
    pub(super) fn looks_again(&self, now: Timestamp) -> Option<Duration> {
        match self.state.gate()? {
            Gate::Confirmation { until } => Some(elapsed(now, until)),
            Gate::Approvals { .. } | Gate::Answer { .. } | Gate::Moment { .. } => None,
            Gate::Turn { .. } => {
                let at = opens(&self.state.spec.gates, now)??;
                Some(elapsed(now, at))
            }
        }
    }

    /// Whether the run needs secret parameters that are not here any more.
    pub(super) fn lacks_secrets(&self) -> bool {
        secret::is_needed(&self.state.spec.params)
            && !lock(&self.engine.0.secrets).contains_key(&self.run)
    }

    /// The nodes to which nothing was sent.
    pub(super) fn waiting(&self) -> Vec<Serial> {
        let waiting = |serial: &&Serial| {
            let node = self.state.nodes.get(serial);
            node.is_some_and(|node| node.phase == NodePhase::Waiting)
        };
        self.state.order.iter().filter(waiting).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(second: i64, run: u8) -> Place {
        let at = Timestamp::from_second(second).expect("a time");
        (at, RunId::from_bytes([run; 16]))
    }

    fn names(all: &[&str]) -> BTreeSet<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn locks_go_to_the_one_who_was_first() {
        let locks = Locks::default();
        let (one, two, three) = (place(1, 9), place(2, 5), place(3, 7));
        let a = names(&["a"]);
        assert_eq!(locks.take(one, &a), Ok(()));
        assert_eq!(locks.take(one, &a), Ok(()), "it has it already");
        assert_eq!(locks.take(three, &a), Err(("a".into(), one.1)));
        assert_eq!(
            locks.take(two, &names(&["a", "b"])),
            Err(("a".into(), one.1))
        );
        // It waits for both, and nobody who came later passes it by.
        assert_eq!(locks.take(three, &names(&["b"])), Err(("b".into(), two.1)));
        assert_eq!(locks.take(place(4, 1), &names(&["c"])), Ok(()));
        locks.release(one.1);
        assert_eq!(locks.take(three, &names(&["b"])), Err(("b".into(), two.1)));
        assert_eq!(locks.take(two, &names(&["a", "b"])), Ok(()));
        locks.release(two.1);
        assert_eq!(locks.take(three, &names(&["b"])), Ok(()));
    }

    #[test]
    fn a_window_is_waited_for() {
        let gates = |windows: &[&str]| Gates {
            windows: windows.iter().map(|w| (*w).to_owned()).collect(),
            ..Gates::default()
        };
        let at = |text: &str| -> Timestamp { text.parse().expect("a time") };
        let noon = at("2026-11-21T12:00:30Z");
        assert_eq!(opens(&gates(&[]), noon), None);
        assert_eq!(opens(&gates(&["* 12 * * *"]), noon), None);
        assert_eq!(
            opens(&gates(&["* 22 * * *", "0 14 * * *"]), noon),
            Some(Some(at("2026-11-21T14:00:00Z")))
        );
        assert_eq!(opens(&gates(&["no window"]), noon), Some(None));
    }
}
