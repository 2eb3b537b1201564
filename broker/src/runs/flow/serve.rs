//! What an open call of a `main` waits for, and what its script is told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::api::Presence as State;
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::names::NodeName;
use muster_protocol::nodeset::NodeSet;
use muster_protocol::run::{
    CallState, Gate, MainEnd, NodeResult, PartOf, RunPhase, RunState, StepCall, StepEnd, Wanted,
    Wish,
};
use muster_protocol::units::{Timestamp, elapsed};
use muster_scenarios::durable::{HostCall, Reply, Step, StepReply};
use serde_json::Value;
use tokio::time::Instant;

use super::super::journal::JournalError;
use super::super::task::{REST, Task};
use super::conduct::{KEPT, LOOK, PAUSE, too_old};
use super::parts::{Part, PartError, caller};
use super::reply;
use super::stage::Another;
use super::turn::World;
use crate::events::Once;

/// How soon a node is heard that a run waits for.
pub(super) const LISTEN: Duration = Duration::from_millis(200);

impl Task {
    /// Does what the open call waits for, as far as that can be done now.
    pub(super) async fn serve(&mut self, open: CallState) -> Result<bool, JournalError> {
        if let Some(error) = self.conductor().diverged.clone() {
            if !self.all_ended(&open).await {
                return Ok(false);
            }
            self.main_ended(MainEnd::Diverged { error }, Vec::new())
                .await?;
            return Ok(true);
        }
        let cancelled = (self.state.phase == RunPhase::Cancelling).then(|| {
            let by = self.state.cancelled_by.as_ref();
            by.map_or_else(|| "somebody".to_owned(), ToString::to_string)
        });
        match (&open.wanted, cancelled) {
            (Wanted::Steps { steps }, cancelled) => self.serve_steps(&open, steps, cancelled).await,
            (Wanted::Scenario { run, .. }, cancelled) => {
                self.serve_scenario(&open, *run, cancelled).await
            }
            (Wanted::Machine { name, .. }, cancelled) => {
                self.serve_machine(&open, name, cancelled).await
            }
            (_, Some(by)) => {
                let reply = Reply::Error(format!("{by} cancelled the run"));
                self.answered(open.number, reply, Vec::new(), None).await?;
                Ok(true)
            }
            (Wanted::Until { .. } | Wanted::Contact { .. } | Wanted::Nothing, None)
                if self.state.phase == RunPhase::Paused =>
            {
                Ok(false)
            }
            // The script is told, as when somebody cancels: what it has done
            // is taken back. Who has paused a run wants it kept as it is.
            (Wanted::Until { .. } | Wanted::Contact { .. } | Wanted::Answer { .. }, None)
                if self.state.phase == RunPhase::Running && self.time_left().is_zero() =>
            {
                let reply = Reply::Error(too_old());
                self.answered(open.number, reply, Vec::new(), None).await?;
                Ok(true)
            }
            (Wanted::Until { at }, None) => {
                let left = elapsed(Timestamp::now(), *at);
                if left.is_zero() {
                    let reply = Reply::Value(Value::Null);
                    self.answered(open.number, reply, Vec::new(), None).await?;
                    return Ok(true);
                }
                self.rest();
                let left = left.min(self.time_left());
                self.conductor().wake = Some(Instant::now() + left.min(LOOK));
                Ok(false)
            }
            (
                Wanted::Contact {
                    node,
                    until,
                    within,
                },
                None,
            ) => {
                if self.heard(node) {
                    let reply = Reply::Value(Value::Null);
                    self.answered(open.number, reply, Vec::new(), None).await?;
                    return Ok(true);
                }
                let left = elapsed(Timestamp::now(), *until);
                if left.is_zero() {
                    let reply = Reply::Error(format!("{node} was not heard within {within}"));
                    self.answered(open.number, reply, Vec::new(), None).await?;
                    return Ok(true);
                }
                self.rest();
                let left = left.min(self.time_left());
                self.conductor().wake = Some(Instant::now() + left.min(LISTEN));
                Ok(false)
            }
            (Wanted::Answer { question, answers }, None) => {
                let gate = Gate::Answer {
                    question: question.clone(),
                    answers: answers.clone(),
                };
                self.tell_waits(&gate, Some(open.number), None).await;
                self.rest();
                if self.state.phase == RunPhase::Running {
                    let left = self.time_left().min(REST);
                    self.conductor().wake = Some(Instant::now() + left);
                }
                Ok(false)
            }
            (Wanted::Nothing, None) => self.serve_at_once(&open).await,
        }
    }

    /// Whether a node of that name takes part now.
    fn heard(&self, node: &NodeName) -> bool {
        let shared = &self.engine.0;
        let snapshot = shared.inventory.snapshot();
        let serial = snapshot.by_name(node).map(|node| node.serial);
        serial.is_some_and(|serial| shared.presence.view(serial).state == State::Up)
    }

    /// While it waits for long, a run keeps little in memory.
    fn rest(&mut self) {
        let this = self.conductor();
        if this.told.as_ref().is_some_and(|told| told.bytes() > KEPT) {
            this.told = None;
        }
    }

    /// Ends what a call has under way; whether all of it has ended.
    async fn all_ended(&mut self, open: &CallState) -> bool {
        let runs: Vec<RunId> = match &open.wanted {
            Wanted::Machine { .. } => return self.machine_ended(open.number).await,
            Wanted::Steps { steps } => steps.iter().map(|step| step.run).collect(),
            Wanted::Scenario { run, .. } => vec![*run],
            _ => Vec::new(),
        };
        self.end_parts(&runs)
    }

    /// Asks for the end of these parts; whether none is under way.
    pub(super) fn end_parts(&mut self, runs: &[RunId]) -> bool {
        let by = self.state.cancelled_by.clone();
        let by = by.unwrap_or_else(|| self.state.spec.principal.clone());
        let mut ended = true;
        for run in runs {
            match self.engine.part(*run) {
                Part::Open(phase) => {
                    ended = false;
                    if phase != RunPhase::Cancelling {
                        self.engine.end_part(*run, by.clone());
                    }
                }
                // It was cut while it was written down.
                Part::Missing => {
                    let Some(first) = self.engine.unwritten(*run) else {
                        continue;
                    };
                    ended = false;
                    if self.conductor().ending.insert(*run) {
                        self.engine.end_unwritten(*run, first);
                    }
                }
                Part::Ended => {}
            }
        }
        ended
    }

    /// A part waits when the whole does, and goes on with it.
    pub(super) fn hand_on(&self, run: RunId, phase: RunPhase) {
        let by = || self.state.spec.principal.clone();
        let wish = match (self.state.phase, phase) {
            (RunPhase::Paused, RunPhase::Running | RunPhase::Waiting) => Wish::Pause,
            (RunPhase::Running | RunPhase::Cancelling, RunPhase::Paused) => Wish::Resume,
            _ => return,
        };
        let by = self.state.paused_by.clone().unwrap_or_else(by);
        self.engine.wish_part(run, wish, by);
    }

    async fn serve_steps(
        &mut self,
        open: &CallState,
        steps: &[StepCall],
        cancelled: Option<String>,
    ) -> Result<bool, JournalError> {
        let runs: Vec<RunId> = steps.iter().map(|step| step.run).collect();
        let is = |wanted: Part| {
            let begun = steps.iter().filter(|step| !step.nodes.is_empty());
            let of = begun.filter(|step| self.engine.part(step.run) == wanted);
            of.map(|step| step.run).collect::<BTreeSet<RunId>>()
        };
        let missing = is(Part::Missing);
        if cancelled.is_some() {
            if !self.end_parts(&runs) {
                return Ok(false);
            }
        } else if !missing.is_empty() && self.state.phase == RunPhase::Paused {
            return Ok(false);
        } else if !missing.is_empty() {
            // What it is called with is not in the journal: the script says it
            // again.
            let Some(call) = self.conductor().wanted.clone() else {
                self.let_run().await;
                return Ok(false);
            };
            if !self.make_steps(open, steps, &call, &missing).await? {
                return Ok(false);
            }
        }
        // Each of them wakes this run when it ends.
        let mut left = false;
        for step in steps.iter().filter(|step| !step.nodes.is_empty()) {
            match self.engine.part(step.run) {
                Part::Open(phase) => {
                    self.hand_on(step.run, phase);
                    left = true;
                }
                Part::Missing => left |= cancelled.is_none(),
                Part::Ended => {}
            }
        }
        if left {
            return Ok(false);
        }
        let why = cancelled.map(|by| format!("not started: {by} cancelled the run"));
        let Some((replies, ends)) = self.step_replies(steps, why.as_deref()).await else {
            return Ok(false);
        };
        let reply = if open.call == "parallel" {
            Reply::Steps(replies)
        } else {
            Reply::Step(replies.into_iter().next().unwrap_or_default())
        };
        self.answered(open.number, reply, ends, None).await?;
        Ok(true)
    }

    /// Makes the steps that are not there. Whether the others can be looked
    /// at: not when one of them could not be made now.
    async fn make_steps(
        &mut self,
        open: &CallState,
        steps: &[StepCall],
        call: &HostCall,
        missing: &BTreeSet<RunId>,
    ) -> Result<bool, JournalError> {
        let asked: Vec<&Step> = match call {
            HostCall::On(step) | HostCall::TryOn(step) => vec![step],
            HostCall::Parallel { steps } => steps.iter().collect(),
            _ => Vec::new(),
        };
        for ((part, step), is) in (0..).zip(steps).zip(asked) {
            if !missing.contains(&step.run) {
                continue;
            }
            let part_of = PartOf {
                run: self.run,
                call: open.number,
                part,
                undo: false,
            };
            if let Err(error) = self.make(step.run, part_of, is, true).await {
                if error.passes() {
                    self.stuck(error.to_string(), PAUSE);
                    return Ok(false);
                }
                // The script is told, and what is under way is ended.
                let runs: Vec<RunId> = steps.iter().map(|step| step.run).collect();
                if self.end_parts(&runs) {
                    let why = error.to_string();
                    let never = steps.iter().map(|step| {
                        let result = |serial| {
                            let skipped = muster_protocol::run::Outcome::Skipped;
                            muster_protocol::run::NodeResult::new(serial, skipped, why.clone())
                        };
                        reply::end(step.nodes.iter().map(result), Some(why.clone()))
                    });
                    let ends = never.collect();
                    self.answered(open.number, Reply::Error(why), ends, None)
                        .await?;
                }
                return Ok(false);
            }
        }
        self.unstuck();
        Ok(true)
    }

    pub(super) async fn make(
        &mut self,
        run: RunId,
        part_of: PartOf,
        step: &Step,
        budgets: bool,
    ) -> Result<(), PartError> {
        let engine = self.engine.clone();
        let frozen = engine.step_run(&self.state, run, part_of, step, budgets)?;
        engine.make_part(frozen).await
    }

    /// What the script is told of its steps; `None` when that cannot be had
    /// now.
    async fn step_replies(
        &mut self,
        steps: &[StepCall],
        never: Option<&str>,
    ) -> Option<(Vec<StepReply>, Vec<StepEnd>)> {
        let all: usize = steps.iter().map(|step| step.nodes.len()).sum();
        let (mut replies, mut ends) = (Vec::new(), Vec::new());
        for step in steps {
            let (told, end) = if step.nodes.is_empty() {
                Default::default()
            } else if let (Part::Missing, Some(why)) = (self.engine.part(step.run), never) {
                reply::never(&step.nodes, why)
            } else {
                match self.came_of(step.run, reply::stdout_each(all)).await {
                    Ok((state, stdout)) => reply::of_run(&state, stdout),
                    Err(why) => {
                        self.stuck(why, PAUSE);
                        return None;
                    }
                }
            };
            replies.push(told);
            ends.push(end);
        }
        self.unstuck();
        Some((replies, ends))
    }

    /// The state of a part that has ended, and how its nodes' output began.
    pub(super) async fn came_of(
        &self,
        run: RunId,
        each: usize,
    ) -> Result<(Arc<RunState>, BTreeMap<Serial, String>), String> {
        let state = self.engine.state(run).await.map_err(|e| e.to_string())?;
        if !state.phase.is_final() {
            return Err(format!("run {run} is said to have ended, and has not"));
        }
        let stdout = self.engine.begun_output(&state, each).await;
        Ok((state, stdout.map_err(|e| e.to_string())?))
    }

    async fn serve_scenario(
        &mut self,
        open: &CallState,
        run: RunId,
        cancelled: Option<String>,
    ) -> Result<bool, JournalError> {
        match self.engine.part(run) {
            Part::Open(phase) => {
                self.hand_on(run, phase);
                if cancelled.is_some() {
                    self.end_parts(&[run]);
                }
                Ok(false)
            }
            Part::Missing => {
                if let Some(by) = cancelled {
                    if !self.end_parts(&[run]) {
                        return Ok(false);
                    }
                    let reply = Reply::Error(format!("{by} cancelled the run"));
                    self.answered(open.number, reply, Vec::new(), None).await?;
                    return Ok(true);
                }
                if self.state.phase == RunPhase::Paused {
                    return Ok(false);
                }
                let Some(HostCall::RunScenario {
                    scenario,
                    params,
                    on,
                }) = self.conductor().wanted.clone()
                else {
                    self.let_run().await;
                    return Ok(false);
                };
                let asked = Another {
                    caller: caller(&self.state),
                    scenario,
                    params,
                    on,
                    mode: self.state.spec.mode,
                    id: run,
                    held: self.engine.locks_above(&self.state),
                    part_of: PartOf {
                        run: self.run,
                        call: open.number,
                        part: 0,
                        undo: false,
                    },
                };
                self.begin_scenario(open.number, asked).await
            }
            Part::Ended => {
                let state = match self.engine.state(run).await {
                    Ok(state) => state,
                    Err(error) => {
                        self.stuck(error.to_string(), PAUSE);
                        return Ok(false);
                    }
                };
                let flow = state.flow.as_ref();
                if let Some(MainEnd::Planned { why }) = flow.and_then(|f| f.ended.as_ref()) {
                    // What it would have returned nobody knows.
                    let why = format!("{}: {why}", state.spec.scenario);
                    self.main_ended(MainEnd::Planned { why }, Vec::new())
                        .await?;
                    return Ok(true);
                }
                let ends = Some(would_change(&state)).filter(|nodes| !nodes.is_empty());
                let ends = ends.map(|would_change| StepEnd {
                    would_change,
                    ..StepEnd::default()
                });
                let reply = scenario_reply(&state);
                self.answered(open.number, reply, Vec::from_iter(ends), None)
                    .await?;
                Ok(true)
            }
        }
    }

    async fn begin_scenario(&mut self, number: u64, asked: Another) -> Result<bool, JournalError> {
        use muster_protocol::problem::Kind;
        let shared = Arc::clone(&self.engine.0);
        let name = asked.scenario.clone();
        let frozen = match shared.stages.get() {
            Ok(stage) => stage.another(asked).await,
            Err(error) => {
                self.stuck(error.to_string(), PAUSE);
                return Ok(false);
            }
        };
        let refused = match frozen {
            Ok(frozen) => match self.engine.clone().make_part(frozen).await {
                Ok(()) => {
                    self.unstuck();
                    return Ok(false);
                }
                Err(error) if error.passes() => {
                    self.stuck(error.to_string(), PAUSE);
                    return Ok(false);
                }
                Err(error) => error.to_string(),
            },
            Err(problem) if problem.kind == Kind::Unavailable => {
                self.stuck(problem.title, PAUSE);
                return Ok(false);
            }
            Err(problem) => problem.title,
        };
        let reply = Reply::Error(format!("run_scenario {name}: {refused}"));
        self.answered(number, reply, Vec::new(), None).await?;
        Ok(true)
    }

    /// Calls that are done as soon as they are in the journal.
    async fn serve_at_once(&mut self, open: &CallState) -> Result<bool, JournalError> {
        let Some(call) = self.conductor().wanted.clone() else {
            self.let_run().await;
            return Ok(false);
        };
        let shared = Arc::clone(&self.engine.0);
        let reply = match &call {
            HostCall::Emit { kind, fields } => {
                let scenario = self.state.spec.scenario.to_string();
                // Whoever did it before and was stopped has done it with the
                // same id.
                let event = Once {
                    id: format!("{}.{}", self.run, open.number),
                    kind: format!("scenario.{kind}"),
                    subject: scenario,
                    text: format!("run {}", self.short()),
                    fields: fields.clone(),
                };
                if let Err(error) = shared.events.try_once(event).await {
                    self.stuck(error.to_string(), PAUSE);
                    return Ok(false);
                }
                Reply::Value(Value::Null)
            }
            other => World::new(&shared, &self.state)
                .answer(other)
                .unwrap_or_else(|| {
                    Reply::Error(format!("`{}` cannot be called here", other.name()))
                }),
        };
        self.unstuck();
        self.answered(open.number, reply, Vec::new(), None).await?;
        Ok(true)
    }
}

/// The nodes on which a run would change something.
fn would_change(state: &RunState) -> NodeSet {
    let would = |result: &&NodeResult| result.tally.is_some_and(|t| t.would_change > 0);
    let own = state.results().filter(would).map(|result| result.serial);
    let steps = state.flow.iter().flat_map(|flow| &flow.would_change);
    own.chain(steps.copied()).collect()
}

/// What the script is told of another scenario that has ended.
fn scenario_reply(state: &RunState) -> Reply {
    let end = state.flow.as_ref().and_then(|flow| flow.ended.as_ref());
    let spec = &state.spec;
    match (state.phase, end) {
        (RunPhase::Succeeded, Some(MainEnd::Done { value })) => Reply::Value(value.clone()),
        (RunPhase::Succeeded, _) => Reply::Value(Value::Null),
        (phase, Some(MainEnd::Failed { error })) => {
            let first = error.lines().next().unwrap_or_default();
            Reply::Error(format!(
                "scenario {} ({}) has {}: {first}",
                spec.scenario,
                spec.id.short(),
                phase.as_str().replace('_', " ")
            ))
        }
        (phase, _) => {
            let counts: Vec<String> = state
                .summary()
                .iter()
                .map(|(outcome, count)| format!("{count} {outcome}"))
                .collect();
            Reply::Error(format!(
                "scenario {} ({}) has {}: {}",
                spec.scenario,
                spec.id.short(),
                phase.as_str().replace('_', " "),
                counts.join(", ")
            ))
        }
    }
}
