//! A run with a `main`: what its script called, what came of it, and what is
//! taken back.
//!
//! The steps are runs of their own ([`PartOf`]); the journal of the run with
//! the `main` holds which calls there were, by number, and what they
//! returned. What a call is given and returns is JSON here: its meaning is the
//! scenario language's. Replies are in the journal and not in the folded
//! state: a run that waits for days holds none of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::undo::{Back, MadeMachine, UndoState};
use super::{FoldError, NodePhase, NodeResult, Outcome, RunEvent, RunPhase, RunState, Summary};
use crate::api::Role;
use crate::ids::{RunId, Serial};
use crate::names::{FunctionName, NodeName, PrincipalName, ScenarioName};
use crate::nodeset::NodeSet;
use crate::origin::Origin;
use crate::units::{Span, Timestamp};

/// Log lines that the folded state keeps; the journal has all.
pub(super) const LOGS_KEPT: usize = 500;
/// Most failures that a [`StepEnd`] tells in words.
pub const FAILURES_TOLD: usize = 20;

/// Of which run this one is a part: it is a step of it, or a scenario that it
/// has called.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PartOf {
    /// The run with the `main`.
    pub run: RunId,
    /// The number of the call.
    pub call: u64,
    /// Which of the call's steps, from 0.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub part: u32,
    /// Whether it takes that step back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undo: bool,
}

/// A declared node set, frozen.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FrozenSet {
    /// Its predicate, in canonical form.
    pub predicate: String,
    /// Its nodes; they are among the run's targets.
    pub nodes: NodeSet,
}

/// What a run has that has a `main`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Main {
    /// The frozen sets by name, `targets` among them. The run's targets are
    /// all of them together.
    pub sets: BTreeMap<String, FrozenSet>,
    /// What whoever asked might do: its steps may not do more.
    pub role: Role,
    /// Where exactly that came from.
    #[serde(default, skip_serializing_if = "Origin::is_unknown")]
    pub origin: Origin,
}

/// A call that was answered at once, such as the time.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The function's name.
    pub call: String,
    /// Over the call and its arguments.
    pub hash: String,
    /// What it returned.
    pub reply: Value,
    /// Of a line for the log: the line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// A step, as it stands in the journal before the run of that id is created.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StepCall {
    /// The run that it is.
    pub run: RunId,
    /// The function.
    pub function: FunctionName,
    /// On these nodes.
    pub nodes: NodeSet,
}

/// What a call waits for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "wants", deny_unknown_fields)]
pub enum Wanted {
    /// Runs on nodes, all at once.
    Steps {
        /// In the order of their replies.
        steps: Vec<StepCall>,
    },
    /// A run of another scenario.
    Scenario {
        /// The run that it is.
        run: RunId,
        /// Which scenario.
        scenario: ScenarioName,
    },
    /// A moment.
    Until {
        /// Which.
        at: Timestamp,
    },
    /// That a node is heard.
    Contact {
        /// Which.
        node: NodeName,
        /// At the latest then.
        until: Timestamp,
        /// How long that was when it began.
        within: Span,
    },
    /// That a machine is up, which the call has made.
    Machine {
        /// Its name as it was asked for; the record says how it is.
        name: String,
        /// Whether it stays when the run fails.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep: bool,
    },
    /// What a person says.
    Answer {
        /// The question.
        question: String,
        /// The answers that are allowed; any when empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        answers: Vec<String>,
    },
    /// Only its own place in the journal.
    Nothing,
}

/// What a step came to.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StepEnd {
    /// Which nodes had each outcome.
    pub outcomes: BTreeMap<Outcome, NodeSet>,
    /// Why it went no further, when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// The first of those that did not succeed, with their reasons; at most
    /// [`FAILURES_TOLD`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<NodeResult>,
    /// In a dry run: the nodes on which something would change. Of another
    /// scenario they are all that is said here.
    #[serde(default, skip_serializing_if = "NodeSet::is_empty")]
    pub would_change: NodeSet,
}

impl StepEnd {
    /// How many nodes had each outcome.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let count = |nodes: &NodeSet| u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let each = self.outcomes.iter();
        each.map(|(outcome, nodes)| (*outcome, count(nodes)))
            .collect()
    }

    /// Whether every node succeeded and nothing stopped it.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.stopped.is_none() && self.outcomes.keys().all(|o| *o == Outcome::Succeeded)
    }

    /// The nodes on which it may have done something.
    #[must_use]
    pub fn touched(&self) -> NodeSet {
        let may = |outcome: &Outcome| {
            matches!(
                outcome,
                Outcome::Succeeded
                    | Outcome::Failed
                    | Outcome::TimedOut
                    | Outcome::Unknown
                    | Outcome::Cancelled
            )
        };
        let each = self.outcomes.iter().filter(|(outcome, _)| may(outcome));
        each.flat_map(|(_, nodes)| nodes.iter()).collect()
    }
}

/// How `main` ended. What it did is taken back after that, if it did not end
/// well.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "how", deny_unknown_fields)]
pub enum MainEnd {
    /// It came to its end.
    Done {
        /// What it returned.
        #[serde(default)]
        value: Value,
    },
    /// It failed, or ended the run.
    Failed {
        /// Why and where, for people; several lines.
        error: String,
    },
    /// A dry run went as far as anybody can say: what comes after depends on
    /// what only happens when it is done.
    Planned {
        /// On what, for people.
        why: String,
    },
    /// Somebody asked for the end.
    Cancelled,
    /// The script did something else than it had done before. Nothing is taken
    /// back: nobody knows what it would do.
    Diverged {
        /// Why and where, for people.
        error: String,
    },
}

/// A call of `main` that does not return at once.
#[derive(Clone, Debug, PartialEq)]
pub struct CallState {
    /// Its number, over all calls.
    pub number: u64,
    /// The function's name.
    pub call: String,
    /// Over the call and its arguments.
    pub hash: String,
    /// Its line in the script.
    pub line: Option<u32>,
    /// What it waits or waited for.
    pub wanted: Wanted,
    /// When it was written down.
    pub began: Timestamp,
    /// What came of it.
    pub ended: Option<CallEnd>,
}

impl CallState {
    /// The runs that it is, as parts of `run`.
    #[must_use]
    pub fn parts(&self, run: RunId) -> Vec<(RunId, PartOf)> {
        let part = |part| PartOf {
            run,
            call: self.number,
            part,
            undo: false,
        };
        match &self.wanted {
            Wanted::Steps { steps } => (0..)
                .zip(steps)
                .filter(|(_, step)| !step.nodes.is_empty())
                .map(|(number, step)| (step.run, part(number)))
                .collect(),
            Wanted::Scenario { run, .. } => vec![(*run, part(0))],
            Wanted::Until { .. }
            | Wanted::Contact { .. }
            | Wanted::Machine { .. }
            | Wanted::Answer { .. }
            | Wanted::Nothing => Vec::new(),
        }
    }
}

/// What came of a call, but for what the script was told.
#[derive(Clone, Debug, PartialEq)]
pub struct CallEnd {
    /// When.
    pub at: Timestamp,
    /// Of each of its steps.
    pub steps: Vec<StepEnd>,
    /// The machine that it has made.
    pub machine: Option<MadeMachine>,
    /// Who answered, and what.
    pub said: Option<(PrincipalName, String)>,
    /// The error that the script was told.
    pub error: Option<String>,
}

/// A line of a run's log.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct LogLine {
    /// The number of the call.
    pub call: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The line.
    pub text: String,
}

/// How the worst step on a node ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Worst {
    /// How.
    pub outcome: Outcome,
    /// In which call.
    pub call: u64,
    /// In which of its steps.
    pub part: u32,
}

/// Where a `main` is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flow {
    /// How many calls were answered: the next one has this number.
    pub answered: u64,
    /// All calls that did not return at once.
    pub calls: Vec<CallState>,
    /// The newest lines of the log.
    pub logs: VecDeque<LogLine>,
    /// How it ended.
    pub ended: Option<MainEnd>,
    /// What is or was taken back, in order.
    pub undo: Vec<UndoState>,
    /// Every node that had a step, and how the worst of its steps ended; steps
    /// that take others back do not count.
    pub nodes: BTreeMap<Serial, Worst>,
    /// In a dry run: every node on which something would change.
    pub would_change: BTreeSet<Serial>,
    /// Bytes of all lines of the log.
    logged: u64,
    /// Parts of the open call's reply that are written down.
    parts: u32,
}

/// Bad outcomes outrank good ones: a node is as well as its worst step.
fn rank(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Succeeded => 0,
        Outcome::Skipped => 1,
        Outcome::Cancelled => 2,
        Outcome::Declined => 3,
        Outcome::Unreachable => 4,
        Outcome::Unknown => 5,
        Outcome::TimedOut => 6,
        Outcome::Failed => 7,
    }
}

impl Flow {
    /// Bytes of all lines of the log.
    #[must_use]
    pub fn logged(&self) -> u64 {
        self.logged
    }

    /// The call that waits.
    #[must_use]
    pub fn open(&self) -> Option<&CallState> {
        self.calls.last().filter(|call| call.ended.is_none())
    }

    /// The undo that is under way.
    #[must_use]
    pub fn open_undo(&self) -> Option<&UndoState> {
        self.undo.last().filter(|undo| !undo.has_ended())
    }

    /// A call by its number.
    #[must_use]
    pub fn call(&self, number: u64) -> Option<&CallState> {
        let at = self
            .calls
            .binary_search_by_key(&number, |call| call.number)
            .ok()?;
        self.calls.get(at)
    }

    /// What could not be taken back everywhere.
    pub fn undo_failed(&self) -> impl Iterator<Item = &UndoState> {
        self.undo.iter().filter(|undo| undo.has_failed())
    }

    /// Every run that is a part of this one, which is `run`, as far as it was
    /// written down.
    pub fn parts(&self, run: RunId) -> impl Iterator<Item = (RunId, PartOf)> + '_ {
        let calls = self.calls.iter().flat_map(move |call| call.parts(run));
        calls.chain(self.undo.iter().filter_map(move |undo| undo.part(run)))
    }

    /// Those of them that were written down last.
    pub fn newest_parts(&self, run: RunId) -> impl Iterator<Item = (RunId, PartOf)> + '_ {
        let call = self.calls.last().into_iter();
        let steps = call.flat_map(move |call| call.parts(run));
        steps.chain(self.undo.last().and_then(|undo| undo.part(run)))
    }

    fn begin_undo(
        &mut self,
        index: u32,
        of: u64,
        began: Timestamp,
        back: Back,
    ) -> Result<(), FoldError> {
        let failed = matches!(
            self.ended,
            Some(MainEnd::Failed { .. } | MainEnd::Cancelled)
        );
        must(failed, "nothing is to be taken back")?;
        must(self.open_undo().is_none(), "something is being taken back")?;
        must(index as usize == self.undo.len(), "the undos have a gap")?;
        let call = self.call(of);
        must(call.is_some(), "there was no such call")?;
        if matches!(back, Back::Machine { .. }) {
            let made = call.is_some_and(|call| matches!(call.wanted, Wanted::Machine { .. }));
            must(made, "the call has made no machine")?;
        }
        self.undo.push(UndoState { of, began, back });
        Ok(())
    }

    /// What is taken back now.
    fn under_way(&mut self, index: u32) -> Result<&mut Back, FoldError> {
        let count = self.undo.len();
        let last = self.undo.last_mut().filter(|undo| !undo.has_ended());
        match last {
            Some(undo) if index as usize + 1 == count => Ok(&mut undo.back),
            _ => Err(FoldError::Main("nothing is being taken back")),
        }
    }

    fn count(&mut self, call: u64, steps: &[StepEnd]) {
        for (part, step) in (0..).zip(steps) {
            self.would_change.extend(step.would_change.iter());
            for (outcome, nodes) in &step.outcomes {
                let worst = Worst {
                    outcome: *outcome,
                    call,
                    part,
                };
                for serial in nodes.iter() {
                    let known = self.nodes.entry(serial).or_insert(worst);
                    if rank(known.outcome) < rank(*outcome) {
                        *known = worst;
                    }
                }
            }
        }
    }
}

/// Refuses what cannot follow.
fn must(holds: bool, what: &'static str) -> Result<(), FoldError> {
    if holds {
        Ok(())
    } else {
        Err(FoldError::Main(what))
    }
}

impl RunState {
    /// Takes one event of a `main`. On an error the state is as it was.
    pub(super) fn main_event(&mut self, event: &RunEvent) -> Result<(), FoldError> {
        let phase = self.phase;
        let Some(flow) = &mut self.flow else {
            return Err(FoldError::Main("the run has no `main`"));
        };
        must(phase != RunPhase::Preparing, "the sets are not whole")?;
        must(phase != RunPhase::Waiting, "the run has not begun")?;
        match event {
            RunEvent::Recorded { from, records, at } => {
                must(flow.ended.is_none(), "`main` has ended")?;
                must(flow.open().is_none(), "a call waits")?;
                must(
                    *from == flow.answered && !records.is_empty(),
                    "the calls have a gap",
                )?;
                for (call, record) in (*from..).zip(records) {
                    if let Some(text) = &record.log {
                        flow.logged += text.len() as u64 + 1;
                        flow.logs.push_back(LogLine {
                            call,
                            at: *at,
                            text: text.clone(),
                        });
                    }
                }
                while flow.logs.len() > LOGS_KEPT {
                    flow.logs.pop_front();
                }
                flow.answered += records.len() as u64;
            }
            RunEvent::Called {
                number,
                call,
                hash,
                line,
                wanted,
                at,
            } => {
                must(phase == RunPhase::Running, "the run does not go on")?;
                must(flow.ended.is_none(), "`main` has ended")?;
                must(flow.open().is_none(), "a call waits")?;
                must(*number == flow.answered, "the calls have a gap")?;
                flow.parts = 0;
                flow.calls.push(CallState {
                    number: *number,
                    call: call.clone(),
                    hash: hash.clone(),
                    line: *line,
                    wanted: wanted.clone(),
                    began: *at,
                    ended: None,
                });
            }
            RunEvent::ReplyPart { number, part, .. } => {
                let open = flow.open().is_some_and(|open| open.number == *number);
                must(open, "nothing waits for this reply")?;
                // Whoever began to write it may have been stopped: it begins
                // again.
                must(*part == flow.parts || *part == 0, "the reply has a gap")?;
                flow.parts = part + 1;
            }
            RunEvent::Answered {
                number,
                steps,
                machine,
                by,
                text,
                error,
                at,
                ..
            } => {
                let open = flow.open().is_some_and(|open| open.number == *number);
                must(open, "nothing waits for this reply")?;
                let said = by.clone().zip(text.clone());
                flow.count(*number, steps);
                flow.answered += 1;
                if let Some(open) = flow.calls.last_mut() {
                    open.ended = Some(CallEnd {
                        at: *at,
                        steps: steps.clone(),
                        machine: machine.clone(),
                        said,
                        error: error.clone(),
                    });
                }
            }
            RunEvent::MainEnded { end, .. } => {
                must(flow.ended.is_none(), "`main` has ended")?;
                let over = flow.open().is_none()
                    || matches!(end, MainEnd::Diverged { .. } | MainEnd::Planned { .. });
                must(over, "a call waits")?;
                let asked = matches!(end, MainEnd::Cancelled);
                must(
                    !asked || phase == RunPhase::Cancelling,
                    "nobody has cancelled it",
                )?;
                flow.ended = Some(end.clone());
            }
            RunEvent::Undoing {
                index,
                of,
                part,
                step,
                at,
            } => {
                let back = Back::Step {
                    part: *part,
                    step: step.clone(),
                    ended: None,
                };
                flow.begin_undo(*index, *of, *at, back)?;
            }
            RunEvent::Unmaking {
                index,
                of,
                machine,
                at,
            } => {
                let back = Back::Machine {
                    machine: machine.clone(),
                    ended: None,
                };
                flow.begin_undo(*index, *of, *at, back)?;
            }
            RunEvent::Undone { index, end, at } => match flow.under_way(*index)? {
                Back::Step { ended, .. } => *ended = Some((*at, end.clone())),
                Back::Machine { .. } => must(false, "no step is being taken back")?,
            },
            RunEvent::Unmade { index, end, at } => match flow.under_way(*index)? {
                Back::Machine { ended, .. } => *ended = Some((*at, end.clone())),
                Back::Step { .. } => must(false, "no machine is being taken back")?,
            },
            _ => return Err(FoldError::Main("it is no event of a `main`")),
        }
        Ok(())
    }

    /// Whether a run with a `main` may end, or its nodes get their outcomes.
    pub(super) fn main_is_over(&self) -> Result<(), FoldError> {
        match &self.flow {
            // One that was never written down whole ends without it.
            Some(flow) if self.phase != RunPhase::Preparing => {
                must(flow.ended.is_some(), "`main` has not ended")?;
                must(flow.open_undo().is_none(), "something is being taken back")
            }
            _ => Ok(()),
        }
    }

    /// Outcomes of a run with a `main` that has not ended: each node as the
    /// worst of its steps so far.
    pub(super) fn main_summary(&self) -> Option<Summary> {
        let flow = self.flow.as_ref()?;
        let mut summary = Summary::new();
        for (serial, worst) in &flow.nodes {
            let open = self
                .nodes
                .get(serial)
                .is_none_or(|node| !matches!(node.phase, NodePhase::Done(_)));
            if open {
                *summary.entry(worst.outcome).or_default() += 1;
            }
        }
        Some(summary)
    }

    /// Whether its `main` ended as a dry run that went as far as anybody can
    /// say.
    fn is_planned(&self) -> bool {
        let end = self.flow.as_ref().and_then(|flow| flow.ended.as_ref());
        matches!(end, Some(MainEnd::Planned { .. }))
    }

    /// Whether what the run did on a node was taken back: something was, and
    /// nothing of that failed.
    #[must_use]
    pub fn is_taken_back(&self, serial: Serial) -> bool {
        let undo = self.flow.iter().flat_map(|flow| &flow.undo);
        let ends = undo.filter_map(|undo| match &undo.back {
            Back::Step { ended, .. } => ended.as_ref(),
            Back::Machine { .. } => None,
        });
        let mut back = false;
        for (_, end) in ends {
            for (outcome, nodes) in &end.outcomes {
                if nodes.contains(serial) {
                    if *outcome != Outcome::Succeeded {
                        return false;
                    }
                    back = true;
                }
            }
        }
        back
    }

    /// What a node of a run with a `main` has come to, once that has ended.
    #[must_use]
    pub fn main_result(&self, serial: Serial) -> NodeResult {
        let worst = self.flow.as_ref().and_then(|flow| {
            let worst = flow.nodes.get(&serial)?;
            Some((worst, flow.call(worst.call)?))
        });
        let Some((worst, call)) = worst else {
            let why = match (&self.cancelled_by, &self.lapsed) {
                (Some(by), _) => format!("not started: {by} cancelled the run"),
                (None, Some(why)) => format!("not started: {why}"),
                (None, None) if self.is_planned() => {
                    "not started: the dry run did not come to it".to_owned()
                }
                (None, None) => "not started: no step came to this node".to_owned(),
            };
            return NodeResult::new(serial, Outcome::Skipped, why);
        };
        if worst.outcome == Outcome::Succeeded {
            return NodeResult {
                reason: None,
                ..NodeResult::new(serial, Outcome::Succeeded, "")
            };
        }
        let step = match &call.wanted {
            Wanted::Steps { steps } => steps.get(worst.part as usize),
            _ => None,
        };
        let name = step.map_or_else(
            || format!("`{}`", call.call),
            |step| format!("`{}` (run {})", step.function, step.run.short()),
        );
        let told = call
            .ended
            .as_ref()
            .and_then(|end| end.steps.get(worst.part as usize))
            .and_then(|end| end.failures.iter().find(|f| f.serial == serial));
        let reason = match told.and_then(|told| told.reason.as_ref()) {
            Some(reason) => format!("{name}: {reason}"),
            None => format!("{name}: {}", worst.outcome),
        };
        NodeResult {
            exit: told.and_then(|told| told.exit),
            signal: told.and_then(|told| told.signal),
            ..NodeResult::new(serial, worst.outcome, reason)
        }
    }

    /// The predicate that held for these nodes when the run's sets were
    /// frozen: that of one set that holds them all, else of several, joined by
    /// `or`. `None` when some node is in no set.
    #[must_use]
    pub fn predicate_of(&self, nodes: &NodeSet) -> Option<String> {
        let main = self.spec.main.as_ref()?;
        // The set of the scenario's own target comes first, where it holds
        // them.
        let mut sets: Vec<(&String, &FrozenSet)> = main.sets.iter().collect();
        sets.sort_by_key(|(name, _)| *name != "targets");
        if let Some((_, one)) = sets
            .iter()
            .find(|(_, set)| nodes.iter().all(|node| set.nodes.contains(node)))
        {
            return Some(one.predicate.clone());
        }
        let mut left: BTreeSet<Serial> = nodes.iter().collect();
        let mut some = Vec::new();
        for (_, set) in sets {
            let before = left.len();
            left.retain(|node| !set.nodes.contains(*node));
            if left.len() < before {
                some.push(format!("({})", set.predicate));
            }
        }
        left.is_empty().then(|| some.join(" or "))
    }
}

#[cfg(test)]
mod tests;
