//! After `main`: what is taken back, what each node has come to, and the end.

use std::collections::BTreeMap;

use muster_protocol::nodeset::NodeSet;
use muster_protocol::run::{
    Back, MadeMachine, MainEnd, NodeResult, Outcome, PartOf, RunEnd, RunEvent, RunPhase, StepCall,
    StepEnd, UndoState, Wanted,
};
use muster_protocol::units::Timestamp;
use muster_scenarios::durable::{Step, StepOptions, Undo, UndoStep};

use serde_json::Map;

use super::super::journal::JournalError;
use super::super::task::Task;
use super::conduct::end_of;
use super::parts::Part;
use super::{part_id, reply};
use crate::events::Once;

/// What is to be taken back.
enum Todo {
    /// A step, on these nodes.
    Step(UndoStep, NodeSet),
    /// The machine that a call has made.
    Machine(u64, MadeMachine),
}

impl Task {
    /// Takes back what is to be, one after the other, then ends the run.
    /// Whether something was written down.
    pub(super) async fn take_back(&mut self) -> Result<bool, JournalError> {
        let flow = self.flow();
        // A dry run has done nothing that could be taken back.
        let back = !self.is_dry()
            && matches!(
                flow.ended,
                Some(MainEnd::Failed { .. } | MainEnd::Cancelled)
            );
        let did = |wanted: &Wanted| matches!(wanted, Wanted::Steps { .. } | Wanted::Machine { .. });
        if !back || !flow.calls.iter().any(|call| did(&call.wanted)) {
            self.end_main(false).await?;
            return Ok(true);
        }
        if let Some(why) = self.undo_lost() {
            if let Some(open) = self.flow().open_undo() {
                let open = open.clone();
                return self.go_on_with(open, &[]).await;
            }
            tracing::error!(why, "what the run did cannot be taken back");
            self.end_main(true).await?;
            return Ok(true);
        }
        let Some(undo) = self.undo_list() else {
            // The script says it.
            self.let_run().await;
            return Ok(false);
        };
        let todo = self.to_take_back(undo);
        if let Some(open) = self.flow().open_undo() {
            let open = open.clone();
            return self.go_on_with(open, &todo).await;
        }
        if self.state.phase == RunPhase::Paused {
            return Ok(false);
        }
        let done = self.flow().undo.len();
        let Some(next) = todo.get(done) else {
            self.end_main(false).await?;
            return Ok(true);
        };
        let (index, at) = (u32::try_from(done).unwrap_or(u32::MAX), Timestamp::now());
        let event = match next {
            Todo::Step(undo, nodes) => {
                let (of, part) = (undo.of, u32::try_from(undo.part).unwrap_or(u32::MAX));
                RunEvent::Undoing {
                    index,
                    of,
                    part,
                    step: StepCall {
                        run: part_id(self.run, of, part, undo.function.as_str(), true),
                        function: undo.function.clone(),
                        nodes: nodes.clone(),
                    },
                    at,
                }
            }
            Todo::Machine(of, machine) => RunEvent::Unmaking {
                index,
                of: *of,
                machine: machine.clone(),
                at,
            },
        };
        self.store(event).await?;
        Ok(true)
    }

    /// What of the list has anything to take back, newest first: a function of
    /// the journal.
    fn to_take_back(&self, undo: Vec<Undo>) -> Vec<Todo> {
        let todo = |undo: Undo| {
            let end = self.flow().call(undo.of())?.ended.as_ref()?;
            match undo {
                Undo::Step(undo) => {
                    let nodes = end.steps.get(undo.part)?.touched();
                    (!nodes.is_empty()).then_some(Todo::Step(undo, nodes))
                }
                Undo::Machine { of } => Some(Todo::Machine(of, end.machine.clone()?)),
            }
        };
        undo.into_iter().filter_map(todo).collect()
    }

    async fn go_on_with(&mut self, open: UndoState, todo: &[Todo]) -> Result<bool, JournalError> {
        match &open.back {
            Back::Machine { machine, .. } => self.go_on_unmaking(open.of, machine).await,
            Back::Step { part, step, .. } => {
                let place = PartOf {
                    run: self.run,
                    call: open.of,
                    part: *part,
                    undo: true,
                };
                self.go_on_stepping_back(place, step, todo).await
            }
        }
    }

    async fn go_on_stepping_back(
        &mut self,
        part_of: PartOf,
        step: &StepCall,
        todo: &[Todo],
    ) -> Result<bool, JournalError> {
        let index = u32::try_from(self.flow().undo.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let run = step.run;
        match self.engine.part(run) {
            Part::Open(phase) => {
                self.hand_on(run, phase);
                Ok(false)
            }
            Part::Missing => {
                let Some(Todo::Step(undo, _)) = todo.get(index as usize) else {
                    let why = "the script does not say any more what to take back";
                    self.undone(index, not_done(step, why)).await?;
                    return Ok(true);
                };
                let again = Step {
                    nodes: step.nodes.clone(),
                    function: step.function.clone(),
                    params: undo.params.clone(),
                    options: StepOptions::default(),
                    undo: None,
                };
                // It is done on every node, however many fail.
                match self.make(run, part_of, &again, false).await {
                    Ok(()) => Ok(false),
                    Err(error) if error.passes() => {
                        self.wait_a_moment(error.to_string());
                        Ok(false)
                    }
                    Err(error) => {
                        let end = not_done(step, &error.to_string());
                        self.undone(index, end).await?;
                        Ok(true)
                    }
                }
            }
            Part::Ended => match self.came_of(run, 0).await {
                Ok((state, _)) => {
                    let (_, end) = reply::of_run(&state, BTreeMap::new());
                    self.undone(index, end).await?;
                    Ok(true)
                }
                Err(why) => {
                    self.wait_a_moment(why);
                    Ok(false)
                }
            },
        }
    }

    async fn undone(&mut self, index: u32, end: StepEnd) -> Result<(), JournalError> {
        let at = Timestamp::now();
        self.store(RunEvent::Undone { index, end, at }).await
    }

    /// Writes down what each node has come to, and the end.
    async fn end_main(&mut self, undo_lost: bool) -> Result<(), JournalError> {
        let flow = self.flow();
        let failed: Vec<String> = flow
            .undo_failed()
            .map(|undo| match &undo.back {
                Back::Step { step, .. } => {
                    format!("`{}` (run {})", step.function, step.run.short())
                }
                Back::Machine { machine, .. } => format!("machine {}", machine.name),
            })
            .collect();
        let end = end_of(&self.state, flow, undo_lost || !failed.is_empty());
        let open: Vec<_> = self.state.open().map(|(serial, _)| serial).collect();
        let results: Vec<NodeResult> = open
            .into_iter()
            .map(|serial| self.state.main_result(serial))
            .collect();
        self.store_results(results).await?;
        let short = self.short();
        let scenario = self.state.spec.scenario.clone();
        let told = match end {
            RunEnd::UndoFailed if undo_lost => Some((
                "alarm.undo-failed",
                format!(
                    "{scenario}: what run {short} did could not be taken back: its script does something else now"
                ),
            )),
            RunEnd::UndoFailed => Some((
                "alarm.undo-failed",
                format!(
                    "{scenario}: what run {short} did could not be taken back everywhere: {} did not succeed everywhere; muster runs show {short}",
                    failed.join(", ")
                ),
            )),
            RunEnd::Diverged => Some((
                "alarm.run-diverged",
                format!(
                    "{scenario}: run {short} was stopped, because its script did something else than before"
                ),
            )),
            _ => None,
        };
        if let Some((kind, text)) = told {
            let event = Once {
                id: format!("{}.{kind}", self.run),
                kind: kind.to_owned(),
                subject: short,
                text,
                fields: Map::new(),
            };
            let events = self.engine.0.events.clone();
            events.once(event).await;
        }
        self.finish(end).await
    }
}

/// What an undo came to that was not even begun.
fn not_done(step: &StepCall, why: &str) -> StepEnd {
    let result = |serial| NodeResult::new(serial, Outcome::Skipped, why);
    reply::end(step.nodes.iter().map(result), Some(why.to_owned()))
}
