//! The one checker of what must hold after every fault.
//!
//! It reads the runs' journals straight from JetStream, each node's own
//! journal, the counters of effects, and what people were told, and says every
//! contradiction between them. It shares no code with what it checks but the
//! form of the events: what is counted here is counted anew.
//!
//! ```text
//! gather (I/O) ─→ Evidence ─→ violations (pure) ─→ readable text
//! ```

mod counter;
mod gather;
mod record;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use muster_protocol::envelope::{MAX_SKEW, Request};
use muster_protocol::ids::{RequestId, RunId, Serial};
use muster_protocol::names::PrincipalName;
use muster_protocol::run::{Gates, NodeResult, Outcome, RunEvent};
use muster_protocol::units::Timestamp;

pub use counter::Counter;
pub use gather::{Audit, connect, counter_in};
pub use told::{Told, told};

/// What must hold, whatever fails.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Rule {
    /// A journal can be folded: its events follow on each other.
    Journal,
    /// One outcome a node and step.
    OneOutcome,
    /// At most one effect.
    AtMostOneEffect,
    /// Nothing is sent while a run waits or is paused, and a lock has one
    /// holder.
    Held,
    /// No effect without an intent before it.
    IntentFirst,
    /// Nothing is run that is not recorded as allowed before.
    Recorded,
    /// No effect outside the frozen set.
    FrozenSet,
    /// No effect after start-before.
    StartBefore,
    /// No effect under an older epoch.
    Epoch,
    /// What a person was told stays true.
    Told,
    /// What a node was told is stored is in the run's journal.
    Acknowledged,
    /// What the journal says happened is what happened.
    Testimony,
}

/// One contradiction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// Of what.
    pub rule: Rule,
    /// Which, with what contradicts it.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.text)
    }
}

/// An event of a run's journal, as JetStream keeps it.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its place in the stream.
    pub sequence: u64,
    /// When the server stored it, by the server's clock.
    pub stored: Timestamp,
    /// What happened.
    pub event: RunEvent,
}

/// The journal of one run, in its order.
#[derive(Clone, Debug)]
pub struct RunJournal {
    /// Which.
    pub run: RunId,
    /// What is in it.
    pub events: Vec<Recorded>,
}

/// A step in a node's own journal.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which.
    pub request: RequestId,
    /// `queued`, `started` or `finished`.
    pub state: String,
    /// When it began, by the node's clock; `None` when it never did.
    pub started: Option<Timestamp>,
    /// How it ended.
    pub result: Option<NodeResult>,
    /// Whether the broker has said that it holds the outcome.
    pub acknowledged: bool,
    /// Whether it was started on the node itself.
    pub local: bool,
    /// The signed request that was followed, where the node keeps it.
    pub signed: Option<Request>,
}

/// A node's own journal.
#[derive(Clone, Debug)]
pub struct NodeJournal {
    /// Where it was found.
    pub place: String,
    /// The serial that the node has now.
    pub serial: Serial,
    /// Highest epoch that it has seen.
    pub epoch: u64,
    /// Whether its clock is wrong on purpose: its times are not compared.
    pub clock_off: bool,
    /// What it was asked.
    pub steps: Vec<Step>,
}

/// What an effect counter has seen.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Mark {
    /// The command began.
    Begin,
    /// It came to its end.
    End,
}

/// One line of an effect counter.
#[derive(Clone, Debug)]
pub struct Effect {
    /// Of which step.
    pub request: RequestId,
    /// On which node.
    pub serial: Serial,
    /// Its name, for people.
    pub name: String,
    /// What.
    pub mark: Mark,
    /// When, by this machine's clock.
    pub at: Timestamp,
}

/// What a simulated fleet's witness says of one step.
#[derive(Clone, Debug)]
pub struct Testimony {
    /// Which.
    pub request: RequestId,
    /// On how many nodes it took effect.
    pub nodes: u64,
    /// Most effects on one node.
    pub most_on_a_node: u64,
}

/// Everything that is known after a fault.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The runs, from JetStream.
    pub journals: Vec<RunJournal>,
    /// The nodes, from their own disks.
    pub nodes: Vec<NodeJournal>,
    /// The counters.
    pub effects: Vec<Effect>,
    /// Runs whose command is a counter's.
    pub counted: BTreeSet<RunId>,
    /// What people were told.
    pub told: Vec<Told>,
    /// What simulated fleets saw.
    pub witnesses: Vec<Testimony>,
    /// Runs of which people were told that they are gone for good.
    pub gone: BTreeSet<RunId>,
    /// People were told that the cluster is as it was at a backup: what was
    /// later is gone with it.
    pub restored: bool,
    /// The runs that the record of requests allows, and when it was written
    /// that they are; `None` where the store has lost some of it, and people
    /// were told.
    pub recorded: Option<BTreeMap<RunId, Timestamp>>,
}

/// Every contradiction; empty when everything holds.
#[must_use]
pub fn violations(evidence: &Evidence) -> Vec<Violation> {
    let mut court = Court {
        evidence,
        runs: BTreeMap::new(),
        found: Vec::new(),
    };
    for journal in &evidence.journals {
        court.journal(journal);
    }
    for node in &evidence.nodes {
        court.node(node);
    }
    court.recorded();
    court.locks();
    court.effects();
    court.outcomes();
    for witness in &evidence.witnesses {
        court.witness(witness);
    }
    court.told();
    court.found
}

/// What a run's journal says, counted anew.
#[derive(Debug, Default)]
struct Account {
    local: bool,
    /// Names of the frozen set.
    targets: BTreeMap<Serial, String>,
    /// The earliest intent for each node: by the broker's clock, and by the
    /// server's.
    intents: BTreeMap<Serial, (Timestamp, Timestamp)>,
    outcomes: BTreeMap<Serial, NodeResult>,
    late: Vec<NodeResult>,
    ended: Option<String>,
    gates: Gates,
    asked_by: Option<PrincipalName>,
    confirmed: bool,
    approved: BTreeSet<PrincipalName>,
    /// Where in the stream it began.
    admitted: Option<u64>,
    paused: bool,
    /// Where in the stream it ended.
    over: Option<u64>,
}

impl Account {
    /// Why nothing may be sent now, if so.
    fn held(&self) -> Option<&'static str> {
        if self.paused {
            return Some("it is paused");
        }
        (!self.gates.is_open() && self.admitted.is_none()).then_some("it has not begun")
    }

    /// What was not given when it began.
    fn lacks(&self) -> Option<&'static str> {
        if self.gates.confirm_by.is_some() && !self.confirmed {
            return Some("nobody has confirmed it");
        }
        let others = self
            .approved
            .iter()
            .filter(|by| Some(*by) != self.asked_by.as_ref());
        (others.count() < self.gates.approvals as usize).then_some("too few have approved it")
    }

    fn name(&self, serial: Serial) -> String {
        self.targets
            .get(&serial)
            .map_or_else(|| format!("node {serial}"), Clone::clone)
    }
}

struct Court<'a> {
    evidence: &'a Evidence,
    runs: BTreeMap<RunId, Account>,
    found: Vec<Violation>,
}

impl Court<'_> {
    fn find(&mut self, rule: Rule, text: String) {
        self.found.push(Violation { rule, text });
    }

    /// Whether nothing can be said of a run, and people know.
    fn excused(&self, run: RunId) -> bool {
        !self.runs.contains_key(&run)
            && (self.evidence.restored || self.evidence.gone.contains(&run))
    }

    fn journal(&mut self, journal: &RunJournal) {
        let run = journal.run;
        let mut account = Account::default();
        let mut wrong = Vec::new();
        for (at, recorded) in journal.events.iter().enumerate() {
            let mut find = |rule, text: String| {
                wrong.push((
                    rule,
                    format!("run {run}, event {}: {text}", recorded.sequence),
                ));
            };
            if (at == 0) != matches!(recorded.event, RunEvent::Created { .. }) {
                find(
                    Rule::Journal,
                    "a journal begins with `created`, once".into(),
                );
            }
            let may_follow = matches!(
                recorded.event,
                RunEvent::Late { .. } | RunEvent::OutputRemoved { .. }
            );
            if account.ended.is_some() && !may_follow {
                find(Rule::Journal, "something follows on the end".into());
            }
            match &recorded.event {
                RunEvent::Created { spec } => {
                    account.local = spec.local.is_some();
                    account.gates = spec.gates.clone();
                    account.asked_by = Some(spec.principal.clone());
                }
                RunEvent::Confirmed { .. } => account.confirmed = true,
                RunEvent::Approved { by, .. } => {
                    account.approved.insert(by.clone());
                }
                RunEvent::Paused { .. } => account.paused = true,
                RunEvent::Resumed { .. } => account.paused = false,
                RunEvent::Admitted { .. } => {
                    account.admitted = Some(recorded.sequence);
                    if let Some(why) = account.lacks() {
                        find(Rule::Held, format!("it begins, and {why}"));
                    }
                }
                RunEvent::Targets { nodes } => {
                    for target in nodes {
                        let name = target.name.to_string();
                        if account.targets.insert(target.serial, name).is_some() {
                            find(
                                Rule::FrozenSet,
                                format!("{} is a target twice", target.name),
                            );
                        }
                    }
                }
                RunEvent::Intent { nodes, at, .. } => {
                    if let Some(why) = account.held() {
                        find(Rule::Held, format!("an intent, and {why}"));
                    }
                    for serial in nodes.iter() {
                        if !account.targets.contains_key(&serial) {
                            find(
                                Rule::FrozenSet,
                                format!("an intent for node {serial}, which is no target"),
                            );
                        }
                        if account
                            .intents
                            .insert(serial, (*at, recorded.stored))
                            .is_some()
                        {
                            find(
                                Rule::Journal,
                                format!("a second intent for {}", account.name(serial)),
                            );
                        }
                    }
                }
                RunEvent::Outcomes { results, .. } => {
                    for result in results {
                        let name = account.name(result.serial);
                        if !account.targets.contains_key(&result.serial) {
                            find(
                                Rule::FrozenSet,
                                format!("an outcome of {name}, which is no target"),
                            );
                        }
                        if let Some(first) = account.outcomes.get(&result.serial) {
                            find(
                                Rule::OneOutcome,
                                format!(
                                    "{name} has the outcome {} and then {}",
                                    first.outcome, result.outcome
                                ),
                            );
                        } else {
                            account.outcomes.insert(result.serial, result.clone());
                        }
                    }
                }
                RunEvent::Late { result, .. } => account.late.push(result.clone()),
                RunEvent::Finished { end, .. } => {
                    for (serial, name) in &account.targets {
                        if !account.outcomes.contains_key(serial) {
                            find(
                                Rule::OneOutcome,
                                format!("it ends, and {name} has no outcome"),
                            );
                        }
                    }
                    account.ended = Some(end_word(end));
                    account.over = Some(recorded.sequence);
                }
                _ => {}
            }
        }
        for (rule, text) in wrong {
            self.find(rule, text);
        }
        self.runs.insert(run, account);
    }

    /// No two runs hold a lock at a time.
    fn locks(&mut self) {
        if self.evidence.restored {
            // What was put back has new places.
            return;
        }
        let mut held: BTreeMap<&str, Vec<(u64, u64, RunId)>> = BTreeMap::new();
        for (run, account) in &self.runs {
            let Some(from) = account.admitted else {
                continue;
            };
            for lock in &account.gates.locks {
                let until = account.over.unwrap_or(u64::MAX);
                held.entry(lock).or_default().push((from, until, *run));
            }
        }
        let mut wrong = Vec::new();
        for (lock, mut times) in held {
            times.sort_unstable();
            for pair in times.windows(2) {
                let [(_, until, first), (from, _, second)] = pair else {
                    continue;
                };
                if from < until {
                    wrong.push(format!("runs {first} and {second} hold the lock `{lock}`"));
                }
            }
        }
        for text in wrong {
            self.find(Rule::Held, text);
        }
    }

    fn node(&mut self, node: &NodeJournal) {
        let mut steps: Vec<&Step> = node.steps.iter().collect();
        steps.sort_by_key(|s| s.started);
        let mut newest: Option<(u64, RequestId)> = None;
        for step in steps {
            let id = step.request;
            let serial = step.result.as_ref().map_or(node.serial, |r| r.serial);
            let what = format!("{} has {id} in its journal", node.place);
            if step.acknowledged {
                self.acknowledged(step, &what);
            }
            let Some(started) = step.started.filter(|_| !step.local) else {
                continue;
            };
            match self.runs.get(&id.run) {
                None if self.excused(id.run) => {}
                None => self.find(
                    Rule::IntentFirst,
                    format!("{what} as started; the run has no journal"),
                ),
                Some(run) if !run.intents.contains_key(&serial) => {
                    self.find(
                        Rule::IntentFirst,
                        format!("{what} as started; the run's journal has no intent for it"),
                    );
                }
                Some(_) => {}
            }
            let Some(signed) = &step.signed else { continue };
            if signed.id() != id || !signed.set.contains(serial) {
                self.find(
                    Rule::FrozenSet,
                    format!(
                        "{what} as started; the request that it followed is for others: {:?}",
                        signed.set
                    ),
                );
            }
            let latest = plus(signed.start_before, MAX_SKEW);
            if !node.clock_off && started > latest {
                self.find(
                    Rule::StartBefore,
                    format!(
                        "{what} as started at {started}; it had to be before {}",
                        signed.start_before
                    ),
                );
            }
            if signed.epoch > node.epoch {
                self.find(
                    Rule::Epoch,
                    format!(
                        "{what} under epoch {}, and has not noted to have seen it ({})",
                        signed.epoch, node.epoch
                    ),
                );
            }
            if let Some((epoch, before)) = newest.filter(|(epoch, _)| *epoch > signed.epoch) {
                self.find(
                    Rule::Epoch,
                    format!(
                        "{what} under epoch {}, after {before} under {epoch}",
                        signed.epoch
                    ),
                );
            }
            if newest.is_none_or(|(epoch, _)| epoch < signed.epoch) {
                newest = Some((signed.epoch, id));
            }
        }
    }

    /// An outcome that a node was told is stored.
    fn acknowledged(&mut self, step: &Step, what: &str) {
        let (Some(result), Some(run)) = (&step.result, self.runs.get(&step.request.run)) else {
            return;
        };
        let Some(told) = run.outcomes.get(&result.serial) else {
            let text = format!(
                "{what} as acknowledged, {}; the run's journal has no outcome for it",
                result.outcome
            );
            return self.find(Rule::Acknowledged, text);
        };
        let same = |other: &NodeResult| {
            other.serial == result.serial
                && (other.outcome, other.exit, other.signal)
                    == (result.outcome, result.exit, result.signal)
        };
        // Of many different late answers only the first few are kept.
        let late = run
            .late
            .iter()
            .filter(|l| l.serial == result.serial)
            .count();
        if !same(told) && !run.late.iter().any(same) && late < 4 {
            let text = format!(
                "{what} as acknowledged, {}; the run's journal says {}, and nothing late",
                result.outcome, told.outcome
            );
            self.find(Rule::Acknowledged, text);
        }
    }

    fn effects(&mut self) {
        let mut seen: BTreeMap<(RequestId, Serial, Mark), u32> = BTreeMap::new();
        let mut wrong = Vec::new();
        for effect in &self.evidence.effects {
            let (id, serial) = (effect.request, effect.serial);
            *seen.entry((id, serial, effect.mark)).or_default() += 1;
            let what = format!("{} acted on {id} at {}", effect.name, effect.at);
            if let Some((place, row, clock_off)) = self.row(id, serial) {
                match row.started {
                    None => wrong.push((
                        Rule::IntentFirst,
                        format!("{what}; {place} has not noted that it began"),
                    )),
                    Some(started) if started > effect.at && !clock_off => wrong.push((
                        Rule::IntentFirst,
                        format!("{what}; {place} noted that it began only at {started}"),
                    )),
                    Some(_) => {}
                }
                if row.local {
                    continue;
                }
            } else {
                wrong.push((
                    Rule::IntentFirst,
                    format!("{what}; its own journal knows nothing of it"),
                ));
            }
            let Some(run) = self.runs.get(&id.run) else {
                if !self.excused(id.run) {
                    wrong.push((Rule::IntentFirst, format!("{what}; the run has no journal")));
                }
                continue;
            };
            if run.local {
                continue;
            }
            if !run.targets.contains_key(&serial) {
                wrong.push((
                    Rule::FrozenSet,
                    format!("{what}; it is not in the run's frozen set"),
                ));
            }
            match run.intents.get(&serial) {
                None => wrong.push((
                    Rule::IntentFirst,
                    format!("{what}; the run's journal has no intent for it"),
                )),
                // A restored journal was stored anew, and may have ended before
                // the intent; a broker's clock may be off.
                Some((at, stored))
                    if *at > effect.at && *stored > effect.at && !self.evidence.restored =>
                {
                    wrong.push((
                        Rule::IntentFirst,
                        format!("{what}; the intent was written only at {stored}"),
                    ));
                }
                Some(_) => {}
            }
        }
        for ((id, serial, mark), times) in &seen {
            let times_begun = seen.get(&(*id, *serial, Mark::Begin)).copied().unwrap_or(0);
            if *times > 1 {
                wrong.push((
                    Rule::AtMostOneEffect,
                    format!("node {serial} acted {times} times on {id} ({mark:?})"),
                ));
            } else if *mark == Mark::End && times_begun == 0 {
                wrong.push((
                    Rule::Testimony,
                    format!("node {serial} ended {id}, which it never began"),
                ));
            }
        }
        for (rule, text) in wrong {
            self.find(rule, text);
        }
    }

    /// The row of a step in the journal of its node; `None` when no journal
    /// that was found has it.
    fn row(&self, id: RequestId, serial: Serial) -> Option<(&str, &Step, bool)> {
        self.evidence.nodes.iter().find_map(|node| {
            let step = node.steps.iter().find(|step| {
                let owner = step.result.as_ref().map_or(node.serial, |r| r.serial);
                step.request == id && owner == serial
            })?;
            Some((node.place.as_str(), step, node.clock_off))
        })
    }

    /// What the journals say happened, against the counters.
    fn outcomes(&mut self) {
        let mut wrong = Vec::new();
        for run in &self.evidence.counted {
            let Some(account) = self.runs.get(run) else {
                continue;
            };
            for (serial, result) in &account.outcomes {
                let times = |mark| {
                    let all = self.evidence.effects.iter();
                    all.filter(|e| e.request.run == *run && e.serial == *serial && e.mark == mark)
                        .count()
                };
                let (begun, ended) = (times(Mark::Begin), times(Mark::End));
                let fits = match result.outcome {
                    Outcome::Succeeded => (begun, ended) == (1, 1),
                    Outcome::Unreachable | Outcome::Declined | Outcome::Skipped => begun == 0,
                    // A node gives no duration when it never began.
                    Outcome::Cancelled if result.ms.is_none() => begun == 0,
                    _ => true,
                };
                if !fits {
                    let name = account.name(*serial);
                    wrong.push(format!(
                        "run {run} says {} of {name}; it began {begun} times and came to its end {ended} times",
                        result.outcome
                    ));
                }
            }
        }
        for text in wrong {
            self.find(Rule::Testimony, text);
        }
    }

    fn witness(&mut self, seen: &Testimony) {
        let id = seen.request;
        if seen.most_on_a_node > 1 {
            self.find(
                Rule::AtMostOneEffect,
                format!(
                    "a simulated node acted {} times on {id}",
                    seen.most_on_a_node
                ),
            );
        }
        if seen.nodes == 0 {
            return;
        }
        let Some(run) = self.runs.get(&id.run) else {
            if !self.excused(id.run) {
                self.find(
                    Rule::IntentFirst,
                    format!("simulated nodes acted on {id}; the run has no journal"),
                );
            }
            return;
        };
        let (intended, frozen) = (run.intents.len() as u64, run.targets.len() as u64);
        if seen.nodes > frozen {
            self.find(
                Rule::FrozenSet,
                format!(
                    "{} simulated nodes acted on {id}; its frozen set has {frozen}",
                    seen.nodes
                ),
            );
        } else if seen.nodes > intended {
            self.find(
                Rule::IntentFirst,
                format!(
                    "{} simulated nodes acted on {id}; there are intents for {intended}",
                    seen.nodes
                ),
            );
        }
    }

    fn told(&mut self) {
        for told in &self.evidence.told {
            let run = told.run();
            if self.excused(run) {
                continue;
            }
            let Some(account) = self.runs.get(&run) else {
                self.find(Rule::Told, format!("{told}; now there is no journal of it"));
                continue;
            };
            let of = |name: &str| {
                let serial = account.targets.iter().find(|(_, n)| *n == name)?.0;
                Some(account.outcomes.get(serial).map(|r| r.outcome))
            };
            let now = |name: &str| match of(name) {
                None => Some("it is no target".to_owned()),
                Some(None) => Some("it has no outcome".to_owned()),
                Some(Some(_)) => None,
            };
            let mut wrong = Vec::new();
            match told {
                Told::Created { .. } => {}
                Told::Outcome { node, outcome, .. } => {
                    if of(node) != Some(Some(*outcome)) {
                        wrong.push(now(node).unwrap_or_else(|| format!("{:?}", of(node))));
                    }
                }
                Told::Late { node, outcome, .. } => {
                    let known = account.late.iter().any(|l| {
                        l.outcome == *outcome && account.targets.get(&l.serial) == Some(node)
                    });
                    if !known {
                        wrong.push("there is no such late answer".to_owned());
                    }
                }
                Told::Ended { state, nodes, .. } => {
                    if account.ended.as_ref() != Some(state) {
                        wrong.push(format!("it is {:?}", account.ended));
                    }
                    for (node, outcome) in nodes {
                        if of(node) != Some(Some(*outcome)) {
                            wrong.push(format!("{node}: {:?}", of(node)));
                        }
                    }
                }
                Told::Exit { code: 0, .. } => {
                    let bad = account
                        .outcomes
                        .values()
                        .find(|r| r.outcome != Outcome::Succeeded);
                    if let Some(bad) = bad {
                        wrong.push(format!("{} {}", account.name(bad.serial), bad.outcome));
                    } else if account.ended.is_none() {
                        wrong.push("it has not ended".to_owned());
                    }
                }
                Told::Exit { .. } => {}
            }
            for text in wrong {
                self.find(Rule::Told, format!("{told}; the journal says: {text}"));
            }
        }
    }
}

fn plus(at: Timestamp, by: Duration) -> Timestamp {
    muster_protocol::units::after(at, by)
}

/// The word of a run's end, as people are told it.
fn end_word(end: &muster_protocol::run::RunEnd) -> String {
    serde_json::to_value(end)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
