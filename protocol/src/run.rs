//! What a run is, what can happen to it, and how its state follows from that.
//!
//! A run's journal is a sequence of [`RunEvent`]s. [`RunState::apply`] is the
//! only thing that changes a state, in live use and in recovery alike, and it
//! holds the promise that a node has one outcome: a second one is refused by
//! the fold, and whoever writes the journal turns it into
//! [`RunEvent::Late`] first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::Serial;
use crate::names::{LabelKey, LabelValue, NodeName, PrincipalName};
use crate::units::Timestamp;

mod budget;
mod event;
mod flow;
mod gate;
mod outcome;
mod spec;
mod tally;
mod undo;

pub use event::{RESULTS_PER_EVENT, RunEnd, RunEvent, TARGETS_PER_EVENT};
pub use flow::{
    CallEnd, CallState, FAILURES_TOLD, Flow, FrozenSet, LogLine, Main, MainEnd, PartOf, Record,
    StepCall, StepEnd, Wanted, Worst,
};
pub use gate::{Gate, Gates, ITS_WINDOW, Wish, WishError, Wisher};
pub(crate) use outcome::is_zero;
pub use outcome::{Data, NodeResult, Outcome, Stream};
pub use spec::{LocalRecord, LocalRun, Rebuilt, RunOptions, RunSpec, Target};
use tally::Tally;
pub use undo::{Back, MachineEnd, MadeMachine, UndoState};

/// Where a node is inside a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NodePhase {
    /// Nothing was sent.
    Waiting,
    /// The intent to send is in the journal.
    Sent {
        /// When.
        at: Timestamp,
    },
    /// It has its outcome.
    Done(NodeResult),
}

/// A node inside a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeState {
    /// Its name when the set was frozen.
    pub name: NodeName,
    /// Its labels then, as far as the run counts by them.
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Where it is.
    pub phase: NodePhase,
    /// What it said after its outcome was settled.
    pub late: Vec<NodeResult>,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// Its targets are being written down.
    Preparing,
    /// Nothing is sent before what it waits for is given.
    Waiting,
    /// Under way.
    Running,
    /// Somebody wants it to wait: nothing new is sent.
    Paused,
    /// Somebody asked for the end; nothing new is started.
    Cancelling,
    /// Every node succeeded.
    Succeeded,
    /// Ended, and some node did not succeed.
    Failed,
    /// Ended by a cancel.
    Cancelled,
    /// Ended, and what it had done could not be taken back everywhere.
    UndoFailed,
    /// Ended, because its `main` did something else than it had done before.
    Diverged,
}

impl RunPhase {
    /// Whether nothing more will happen but late answers.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::UndoFailed | Self::Diverged
        )
    }

    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::UndoFailed => "undo_failed",
            Self::Diverged => "diverged",
        }
    }
}

/// How many nodes had each outcome; those with none are left out.
pub type Summary = BTreeMap<Outcome, u32>;

/// An event that cannot follow on the state: the journal is damaged, or two
/// wrote it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FoldError {
    /// The first event is not `created`, or a later one is.
    #[error("a run's journal begins with `created`, once")]
    Created,
    /// A target twice, more than announced, or after the first intent.
    #[error("the targets do not fit what was announced")]
    Targets,
    /// An intent for a node that is not a target or was sent to before.
    #[error("node {0} is sent to twice, or is not a target")]
    Intent(Serial),
    /// A second outcome for a node, or one of a stranger.
    #[error("node {0} has an outcome already, or is not a target")]
    Outcome(Serial),
    /// An intent while nothing may be sent.
    #[error("node {0} is sent to although the run waits or is paused")]
    Held(Serial),
    /// Something given that was not waited for.
    #[error("`{0}` does not follow on what the run waits for")]
    Gate(&'static str),
    /// Something after the end.
    #[error("the run has ended")]
    Ended,
    /// The output of a run that is still open is removed.
    #[error("the output of a run is never removed before the run has ended")]
    NotEnded,
    /// The end while a node has no outcome.
    #[error("the run cannot end: node {0} has no outcome")]
    Open(Serial),
    /// An event of a `main` that does not fit what was before.
    #[error("an event of `main` does not follow: {0}")]
    Main(&'static str),
}

/// A run, folded from its events.
#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    /// What is fixed.
    pub spec: RunSpec,
    /// Where it is.
    pub phase: RunPhase,
    /// Its nodes.
    pub nodes: BTreeMap<Serial, NodeState>,
    /// The order in which nodes are taken.
    pub order: Vec<Serial>,
    /// Batches sent so far.
    pub batches: u32,
    /// Who confirmed it.
    pub confirmed_by: Option<PrincipalName>,
    /// Who approved it, in the order in which they did.
    pub approved_by: Vec<PrincipalName>,
    /// When all was given that it waited for.
    pub admitted: Option<Timestamp>,
    /// What did not come in time.
    pub lapsed: Option<String>,
    /// Who wants it to wait now.
    pub paused_by: Option<PrincipalName>,
    /// Who asked for the end.
    pub cancelled_by: Option<PrincipalName>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// When retention took its output away.
    pub output_removed: Option<Timestamp>,
    /// Where its `main` is, if it has one.
    pub flow: Option<Box<Flow>>,
    tally: Tally,
}

/// What a run needs next. See [`RunState::next`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// Write the intent, then send to these nodes.
    Send {
        /// Which batch.
        batch: u32,
        /// The nodes.
        nodes: Vec<Serial>,
    },
    /// Write that these nodes are not started.
    Skip {
        /// The nodes.
        nodes: Vec<Serial>,
        /// The outcome they get.
        outcome: Outcome,
        /// Why.
        reason: String,
    },
    /// Go on with its `main`: another turn of the script, what it waits for,
    /// or what is to be taken back.
    Main,
    /// Wait for outcomes or the clock.
    Wait,
    /// See whether what it waits for is there.
    Gate(Gate),
    /// Write the end.
    Finish(RunEnd),
    /// Nothing: the run has ended.
    Ended,
}

impl RunState {
    /// A state from the first event of a journal.
    ///
    /// # Errors
    /// [`FoldError::Created`] for any other event.
    pub fn begin(event: &RunEvent) -> Result<Self, FoldError> {
        let RunEvent::Created { spec } = event else {
            return Err(FoldError::Created);
        };
        let mut state = Self {
            spec: (**spec).clone(),
            phase: RunPhase::Preparing,
            nodes: BTreeMap::new(),
            order: Vec::new(),
            batches: 0,
            confirmed_by: None,
            approved_by: Vec::new(),
            admitted: None,
            lapsed: None,
            paused_by: None,
            cancelled_by: None,
            finished: None,
            output_removed: None,
            flow: spec.main.as_ref().map(|_| Box::default()),
            tally: Tally::default(),
        };
        if spec.targets == 0 {
            state.settle();
        }
        Ok(state)
    }

    /// Takes one more event. On an error the state is as it was.
    ///
    /// # Errors
    /// [`FoldError`]: the event cannot follow.
    pub fn apply(&mut self, event: &RunEvent) -> Result<(), FoldError> {
        let after_the_end = matches!(
            event,
            RunEvent::Late { .. } | RunEvent::OutputRemoved { .. }
        );
        if self.phase.is_final() && !after_the_end {
            return Err(FoldError::Ended);
        }
        match event {
            RunEvent::Created { .. } => return Err(FoldError::Created),
            RunEvent::Targets { nodes } => self.targets(nodes)?,
            RunEvent::Intent { .. } if self.flow.is_some() => {
                return Err(FoldError::Main("it sends nothing itself"));
            }
            RunEvent::Recorded { .. }
            | RunEvent::Called { .. }
            | RunEvent::ReplyPart { .. }
            | RunEvent::Answered { .. }
            | RunEvent::MainEnded { .. }
            | RunEvent::Undoing { .. }
            | RunEvent::Undone { .. }
            | RunEvent::Unmaking { .. }
            | RunEvent::Unmade { .. } => self.main_event(event)?,
            RunEvent::Confirmed { .. }
            | RunEvent::Approved { .. }
            | RunEvent::Admitted { .. }
            | RunEvent::Lapsed { .. }
            | RunEvent::Paused { .. }
            | RunEvent::Resumed { .. } => {
                if !self.gate_event(event) {
                    return Err(FoldError::Gate(event.kind()));
                }
            }
            RunEvent::Intent { nodes, at, .. } => {
                // Also when it is being ended: what was never given stays so.
                let held = matches!(self.phase, RunPhase::Waiting | RunPhase::Paused);
                if held || !self.has_begun() {
                    let first = nodes.iter().next().unwrap_or(Serial(0));
                    return Err(FoldError::Held(first));
                }
                self.check_each(
                    nodes.iter(),
                    |phase| matches!(phase, NodePhase::Waiting),
                    FoldError::Intent,
                )?;
                for serial in nodes.iter() {
                    self.set(serial, NodePhase::Sent { at: *at });
                }
                self.batches += 1;
            }
            RunEvent::Outcomes { results, .. } => {
                self.main_is_over()?;
                let open = |phase: &NodePhase| !matches!(phase, NodePhase::Done(_));
                self.check_each(results.iter().map(|r| r.serial), open, FoldError::Outcome)?;
                for result in results {
                    self.set(result.serial, NodePhase::Done(result.clone()));
                }
            }
            RunEvent::Late { result, .. } => {
                let node = self
                    .nodes
                    .get_mut(&result.serial)
                    .ok_or(FoldError::Outcome(result.serial))?;
                if !node.late.contains(result) {
                    node.late.push(result.clone());
                }
            }
            RunEvent::Cancelling { by, .. } => {
                self.phase = RunPhase::Cancelling;
                self.cancelled_by.get_or_insert_with(|| by.clone());
            }
            RunEvent::Finished { end, at } => {
                self.main_is_over()?;
                if self.tally.waiting + self.tally.sent > 0
                    && let Some((serial, _)) = self.open().next()
                {
                    return Err(FoldError::Open(serial));
                }
                self.phase = match end {
                    RunEnd::Succeeded => RunPhase::Succeeded,
                    RunEnd::Failed => RunPhase::Failed,
                    RunEnd::Cancelled => RunPhase::Cancelled,
                    RunEnd::UndoFailed => RunPhase::UndoFailed,
                    RunEnd::Diverged => RunPhase::Diverged,
                };
                self.finished = Some(*at);
            }
            RunEvent::OutputRemoved { .. } if !self.phase.is_final() => {
                return Err(FoldError::NotEnded);
            }
            RunEvent::OutputRemoved { at } => {
                self.output_removed.get_or_insert(*at);
            }
        }
        Ok(())
    }

    fn targets(&mut self, nodes: &[Target]) -> Result<(), FoldError> {
        let fits = self.order.len() + nodes.len() <= self.spec.targets as usize;
        let mut fresh = std::collections::BTreeSet::new();
        let new = nodes
            .iter()
            .all(|t| !self.nodes.contains_key(&t.serial) && fresh.insert(t.serial));
        if !fits || !new {
            return Err(FoldError::Targets);
        }
        for target in nodes {
            self.order.push(target.serial);
            let state = NodeState {
                name: target.name.clone(),
                labels: target.labels.clone(),
                phase: NodePhase::Waiting,
                late: Vec::new(),
            };
            self.tally.add(&state.phase);
            self.nodes.insert(target.serial, state);
        }
        if self.phase == RunPhase::Preparing && self.order.len() == self.spec.targets as usize {
            self.settle();
        }
        Ok(())
    }

    fn check_each(
        &self,
        serials: impl Iterator<Item = Serial>,
        allowed: impl Fn(&NodePhase) -> bool,
        error: impl Fn(Serial) -> FoldError,
    ) -> Result<(), FoldError> {
        let mut once = std::collections::BTreeSet::new();
        for serial in serials {
            let fits = self.nodes.get(&serial).is_some_and(|n| allowed(&n.phase));
            if !fits || !once.insert(serial) {
                return Err(error(serial));
            }
        }
        Ok(())
    }

    fn set(&mut self, serial: Serial, phase: NodePhase) {
        if let Some(node) = self.nodes.get_mut(&serial) {
            self.tally.remove(&node.phase);
            self.tally.add(&phase);
            node.phase = phase;
        }
    }

    /// The nodes that have no outcome yet.
    pub fn open(&self) -> impl Iterator<Item = (Serial, &NodeState)> {
        self.nodes
            .iter()
            .filter(|(_, n)| !matches!(n.phase, NodePhase::Done(_)))
            .map(|(s, n)| (*s, n))
    }

    /// The results there are.
    pub fn results(&self) -> impl Iterator<Item = &NodeResult> {
        self.nodes.values().filter_map(|n| match &n.phase {
            NodePhase::Done(result) => Some(result),
            _ => None,
        })
    }

    /// How many nodes had each outcome so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut summary = self.tally.outcomes.clone();
        if !self.phase.is_final() {
            for (outcome, count) in self.main_summary().unwrap_or_default() {
                *summary.entry(outcome).or_default() += count;
            }
        }
        summary
    }

    /// What the run needs next: a pure function of the journal, so that a
    /// broker that starts again goes on where the last one stopped. Deadlines
    /// are the caller's: it turns a node that ran out of time into an outcome.
    #[must_use]
    pub fn next(&self) -> Next {
        match self.phase {
            phase if phase.is_final() => return Next::Ended,
            RunPhase::Preparing => return Next::Wait,
            RunPhase::Waiting => return self.gate().map_or(Next::Wait, Next::Gate),
            _ => {}
        }
        if self.spec.local.is_some() {
            // It has happened already: only its record is being written.
            return Next::Wait;
        }
        if self.flow.is_some() {
            return Next::Main;
        }
        let waiting = || {
            let is_waiting = |s: &Serial| {
                let node = self.nodes.get(s);
                node.is_some_and(|n| n.phase == NodePhase::Waiting)
            };
            self.order.iter().copied().filter(is_waiting)
        };
        let sent = self.tally.sent > 0;
        if self.tally.waiting > 0 {
            if self.spec.rebuilt.is_some() {
                // What was sent is not known here; that something was is
                // written down before anything else.
                return Next::Wait;
            }
            if self.phase == RunPhase::Cancelling {
                let reason = match (&self.cancelled_by, &self.lapsed) {
                    (Some(by), _) => format!("not started: {by} cancelled the run"),
                    (None, why) => format!("not started: {}", why.as_deref().unwrap_or_default()),
                };
                return Next::Skip {
                    nodes: waiting().collect(),
                    outcome: Outcome::Skipped,
                    reason,
                };
            }
            if let Some(reason) = self.budget_spent() {
                return Next::Skip {
                    nodes: waiting().collect(),
                    outcome: Outcome::Skipped,
                    reason,
                };
            }
            if self.phase == RunPhase::Paused {
                return Next::Wait;
            }
            if !sent {
                let size = self.batch_size();
                let nodes = waiting().take(size).collect();
                return Next::Send {
                    batch: self.batches,
                    nodes,
                };
            }
        }
        if sent {
            return Next::Wait;
        }
        Next::Finish(if self.phase == RunPhase::Cancelling {
            RunEnd::Cancelled
        } else if self.tally.all_succeeded() {
            RunEnd::Succeeded
        } else {
            RunEnd::Failed
        })
    }

    /// Nodes at a time, at least one.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        let all = self.order.len();
        self.spec
            .options
            .batch
            .map_or(all, |b| b.of_rounded_up(all))
            .max(1)
    }

    /// Into how many batches the run is cut.
    #[must_use]
    pub fn batch_count(&self) -> usize {
        self.order.len().div_ceil(self.batch_size())
    }
}

#[cfg(test)]
mod tests;
