//! What hypervisors are to hold and what they have said, in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_protocol::firewall::{FirewallRepaired, GroupsAnswer, GroupsUpdate, Holding};
use muster_protocol::ids::Serial;
use muster_protocol::names::{GroupName, NodeName};
use muster_protocol::text::printable;
use tokio::sync::{Notify, watch};

use super::line::Line;
use super::model::Model;

/// Most lines of a difference that are told, and their length.
const LINES: usize = 20;
const LENGTH: usize = 200;
/// Most alarms of one hypervisor in an hour: more say nothing new.
const ALARMS: u32 = 30;
const HOUR: Duration = Duration::from_secs(3_600);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Desk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    /// There is something to send.
    pub(super) stir: Notify,
    /// Changes when a hypervisor has said something.
    heard: watch::Sender<u64>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Table {
    model: Model,
    lines: BTreeMap<Serial, Line>,
    generation: u64,
    told: BTreeMap<Serial, Told>,
    /// How many alarms there were of each since when.
    alarms: BTreeMap<Serial, (u32, Duration)>,
}

impl Table {
    /// Whether people are told of one thing more.
    fn may_tell(&mut self, serial: Serial, now: Duration) -> bool {
        let (times, since) = self.alarms.entry(serial).or_insert((0, now));
        if now.saturating_sub(*since) > HOUR {
            (*times, *since) = (0, now);
        }
        *times += 1;
        *times <= ALARMS
    }
}

/// What of a hypervisor was told to people.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Told {
    problem: Option<String>,
    repaired: Vec<String>,
}

/// Something that people must know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Alarm {
    /// Somebody had changed what is in force; it is as it was.
    Repaired(Vec<String>),
    /// What it holds is not in force.
    Problem(String),
    /// It is in force again.
    Over,
}

impl Alarm {
    /// As an event: its kind, and what it says.
    pub(crate) fn told(self, node: &NodeName) -> (&'static str, String) {
        match self {
            Self::Repaired(lines) => {
                let text = format!(
                    "somebody changed the firewall tables of {node}; they are as they were. The difference was: {}",
                    lines.join(" | ")
                );
                ("alarm.firewall-repaired", text)
            }
            Self::Problem(problem) => {
                let text =
                    format!("security groups of {node} are not as they should be: {problem}");
                ("alarm.firewall-problem", text)
            }
            Self::Over => {
                let text = format!("security groups of {node} are in force again");
                ("firewall.in-force", text)
            }
        }
    }
}

impl Default for Desk {
    fn default() -> Self {
        Self(Arc::new(Inner {
            table: Mutex::default(),
            stir: Notify::new(),
            heard: watch::Sender::new(0),
            began: Instant::now(),
        }))
    }
}

impl Desk {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// A hypervisor has connected.
    pub(crate) fn greeted(&self, serial: Serial) {
        let now = self.now();
        if let Some(line) = self.table().lines.get_mut(&serial) {
            line.greeted(now);
        }
        self.0.stir.notify_one();
    }

    /// A hypervisor says what it holds; what people must know of that.
    pub(crate) fn heard(&self, serial: Serial, answer: &GroupsAnswer) -> Vec<Alarm> {
        let now = self.now();
        let line = |text: &String| printable(text, LENGTH);
        let told = Told {
            problem: answer.problem.as_ref().map(line),
            repaired: answer.repaired.iter().take(LINES).map(line).collect(),
        };
        let mut table = self.table();
        // Who was never told anything has nothing to say.
        let Some(line) = table.lines.get_mut(&serial) else {
            return Vec::new();
        };
        line.heard(answer, now);
        let before = table.told.insert(serial, told.clone()).unwrap_or_default();
        let is_news = told != before && table.may_tell(serial, now);
        drop(table);
        self.0.heard.send_modify(|times| *times += 1);
        self.0.stir.notify_one();
        if !is_news {
            return Vec::new();
        }
        let mut alarms = Vec::new();
        if !told.repaired.is_empty() && told.repaired != before.repaired {
            alarms.push(Alarm::Repaired(told.repaired));
        }
        match (before.problem, told.problem) {
            (before, Some(problem)) if before.as_ref() != Some(&problem) => {
                alarms.push(Alarm::Problem(problem));
            }
            (Some(_), None) => alarms.push(Alarm::Over),
            _ => {}
        }
        alarms
    }

    /// A node had to put its own firewall right; what people must know of
    /// that.
    pub(crate) fn repaired(&self, serial: Serial, repaired: &FirewallRepaired) -> Option<Alarm> {
        let now = self.now();
        let may = self.table().may_tell(serial, now);
        let lines = repaired.lines.iter().take(LINES);
        may.then(|| Alarm::Repaired(lines.map(|line| printable(line, LENGTH)).collect()))
    }

    /// Changes what everything is made of; which change that was. Those whom
    /// it concerns are told.
    pub(super) fn change(&self, change: impl FnOnce(&mut Model)) -> u64 {
        let mut table = self.table();
        let table = &mut *table;
        change(&mut table.model);
        let changed = table.model.look();
        if !changed.is_empty() {
            table.generation += 1;
            for (serial, wanted) in changed {
                let line = table.lines.entry(serial).or_default();
                line.want(wanted, table.generation);
            }
            self.0.stir.notify_one();
        }
        table.generation
    }

    /// The newest change.
    pub(super) fn generation(&self) -> u64 {
        self.table().generation
    }

    /// Those whom a change after that one concerned, each with the newest one
    /// that did.
    pub(super) fn concerned(&self, after: u64) -> Vec<(Serial, u64)> {
        let table = self.table();
        let lines = table.lines.iter();
        lines
            .map(|(serial, line)| (*serial, line.generation()))
            .filter(|(_, generation)| *generation > after)
            .collect()
    }

    /// Those that hold a group, each with the newest change that concerned it.
    pub(super) fn holders(&self, group: &GroupName) -> Vec<(Serial, u64)> {
        let table = self.table();
        let lines = table.lines.iter();
        lines
            .filter(|(serial, _)| table.model.holds(**serial, group))
            .map(|(serial, line)| (*serial, line.generation()))
            .collect()
    }

    /// Whether a hypervisor has that change in force.
    pub(super) fn is_in_force(&self, serial: Serial, generation: u64) -> bool {
        let table = self.table();
        let line = table.lines.get(&serial);
        line.is_some_and(|line| line.is_in_force(generation))
    }

    /// Changes when a hypervisor has said something.
    pub(super) fn heard_something(&self) -> watch::Receiver<u64> {
        self.0.heard.subscribe()
    }

    /// What is to be sent now to those that are there and can; and when it is
    /// to be looked again at the latest.
    pub(super) fn send(
        &self,
        there: &[Serial],
        epoch: u64,
    ) -> (Vec<(Serial, GroupsUpdate)>, Option<Duration>) {
        let now = self.now();
        let mut table = self.table();
        let (mut all, mut next) = (Vec::new(), None);
        for serial in there {
            let line = table.lines.entry(*serial).or_default();
            let updates = line.send(now, epoch);
            all.extend(updates.into_iter().map(|update| (*serial, update)));
            if let Some(due) = line.due() {
                let wait = due.saturating_sub(now);
                next = Some(next.map_or(wait, |next: Duration| next.min(wait)));
            }
        }
        (all, next)
    }

    /// Forgets those that are not there any more.
    pub(super) fn tidy(&self, nodes: &BTreeSet<Serial>) {
        let mut table = self.table();
        table.lines.retain(|serial, _| nodes.contains(serial));
        table.told.retain(|serial, _| nodes.contains(serial));
        table.alarms.retain(|serial, _| nodes.contains(serial));
    }

    /// There is something to send, or there may be.
    pub(super) async fn stirred(&self) {
        self.0.stir.notified().await;
    }

    /// What a hypervisor is to hold.
    pub(super) fn holding(&self, serial: Serial) -> Holding {
        self.table().model.wanted(serial).holding()
    }

    /// Everything, as one hypervisor with all machines would hold it.
    pub(super) fn everything(&self) -> Holding {
        self.table().model.everything().holding()
    }
}
