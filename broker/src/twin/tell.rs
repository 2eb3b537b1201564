//! What is said of a store that went back.

use std::collections::BTreeMap;

use muster_protocol::ids::RunId;
use muster_protocol::units::Timestamp;

use super::db::{Done, Loss};
use super::past::{Sign, WentBack};
use super::put_back::{Kind, kind};
use super::time;
use crate::events::Events;

/// Runs that are named; the others are counted.
const NAMED: usize = 20;
/// What the twin may have been behind when it last wrote, in nanoseconds:
/// nodes are to report that again.
const BEHIND: i64 = 60_000_000_000;

/// What was lost, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) loss: Loss,
    back: BTreeMap<Kind, usize>,
    /// Values of every kind that could not be put back.
    values_gone: usize,
    runs: usize,
    runs_gone: Vec<RunId>,
    output_gone: Vec<RunId>,
    events: usize,
}

impl Report {
    pub(super) fn new(loss: Loss) -> Self {
        Self {
            loss,
            back: BTreeMap::new(),
            values_gone: 0,
            runs: 0,
            runs_gone: Vec::new(),
            output_gone: Vec::new(),
            events: 0,
        }
    }

    pub(super) fn value(&mut self, stream: &str, done: Done) {
        match (kind(stream), done) {
            (Some(kind), Done::Back) => *self.back.entry(kind).or_default() += 1,
            (_, Done::Gone) => self.values_gone += 1,
            (None, Done::Back) | (_, Done::Needless) => {}
        }
    }

    pub(super) fn run(&mut self, run: RunId, done: Done) {
        match done {
            Done::Back => self.runs += 1,
            Done::Gone => self.runs_gone.push(run),
            Done::Needless => {}
        }
    }

    pub(super) fn output_gone(&mut self, run: RunId) {
        self.output_gone.push(run);
    }

    pub(super) fn events(&mut self, events: usize) {
        self.events = events;
    }

    /// For the list of such times.
    pub(super) fn time(&self) -> WentBack {
        let Loss {
            id,
            found,
            store_until,
            twin_until,
            marks,
        } = self.loss;
        let known = if marks {
            store_until
        } else {
            twin_until.saturating_sub(BEHIND)
        };
        WentBack {
            id,
            since: time(known).unwrap_or(Timestamp::UNIX_EPOCH),
            found: time(found).unwrap_or_else(Timestamp::now),
            sign: if marks { Sign::Marks } else { Sign::Twin },
            leap: marks,
            what: self.span(),
        }
    }

    /// `from … to …`
    fn span(&self) -> String {
        let end = match time(self.loss.store_until) {
            Some(at) => format!("ends at {}", second(at)),
            None => "is empty".to_owned(),
        };
        match time(self.loss.twin_until) {
            Some(at) => format!("the store {end}, and it was known up to {}", second(at)),
            None => format!("the store {end}"),
        }
    }

    /// The text of the event.
    pub(super) fn text(&self) -> String {
        let mut text = format!("the store went back in time: {}. ", self.span());
        let mut back: Vec<String> = self
            .back
            .iter()
            .map(|(kind, n)| counted(*n, kind.one(), kind.several()))
            .collect();
        if self.runs > 0 {
            back.push(counted(self.runs, "run", "runs"));
        }
        if self.events > 0 {
            back.push(counted(self.events, "event", "events"));
        }
        if !back.is_empty() {
            text += &format!("Put back: {}. ", back.join(", "));
        }
        if self.loss.marks {
            text += "This broker has no copy of what came after that: changes of nodes, tokens, \
                     invites, scenarios and schedules are gone for good (whoever was removed or revoked after that is back: \
                     look at `muster nodes`, `muster token list` and `muster node invites`), and \
                     runs but for what nodes report again. ";
        }
        let mut gone = Vec::new();
        if !self.runs_gone.is_empty() {
            gone.push(format!(
                "{}: {}",
                counted(self.runs_gone.len(), "run", "runs"),
                names(&self.runs_gone)
            ));
        }
        if !self.output_gone.is_empty() {
            gone.push(format!(
                "output of {}: {}",
                counted(self.output_gone.len(), "run", "runs"),
                names(&self.output_gone)
            ));
        }
        if self.values_gone > 0 {
            gone.push(counted(
                self.values_gone,
                "value that cannot be read",
                "values that cannot be read",
            ));
        }
        if !gone.is_empty() {
            text += &format!("Gone for good: {}.", gone.join("; "));
        } else if !self.loss.marks {
            text += "Nothing that was known is gone.";
        }
        text.trim_end().to_owned()
    }
}

impl Kind {
    fn one(self) -> &'static str {
        match self {
            Self::Node => "change of a node",
            Self::Token => "change of a token",
            Self::Invite => "change of an invite",
            Self::Scenario => "change of a scenario",
            Self::Schedule => "change of a schedule",
            Self::Machine => "change of a machine",
        }
    }

    fn several(self) -> &'static str {
        match self {
            Self::Node => "changes of nodes",
            Self::Token => "changes of tokens",
            Self::Invite => "changes of invites",
            Self::Scenario => "changes of scenarios",
            Self::Schedule => "changes of schedules",
            Self::Machine => "changes of machines",
        }
    }
}

/// Says it.
pub(super) async fn tell(events: &Events, report: &Report) {
    events
        .emit("alarm.store-went-back", "cluster", report.text())
        .await;
}

fn second(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn counted(n: usize, one: &str, several: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        n => format!("{n} {several}"),
    }
}

fn names(runs: &[RunId]) -> String {
    let mut names: Vec<String> = runs
        .iter()
        .take(NAMED)
        .map(|run| run.prefix(SHORT).to_owned())
        .collect();
    if runs.len() > NAMED {
        names.push(format!("and {} more", runs.len() - NAMED));
    }
    names.join(", ")
}

/// Characters of an id: enough to be found by, whatever else there is.
const SHORT: usize = 8;
