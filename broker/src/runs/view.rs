//! A run as people see it: pure.

use muster_protocol::api::{
    CALLS_SHOWN, CallView, MachineFate, MainMachine, MainView, RunBrief, RunView, StepView,
};
use muster_protocol::ids::RunId;
use muster_protocol::run::{
    Back, CallState, Flow, MachineEnd, RunPhase, RunState, StepCall, StepEnd, Summary, Wanted,
};

use super::frames::{batches, failures, run_node, said_at_the_end};

/// A run with its nodes.
#[must_use]
pub(super) fn view(state: &RunState, brief: RunBrief) -> RunView {
    RunView {
        brief,
        params: state.spec.params.clone(),
        options: state.spec.options.clone(),
        batches: batches(state),
        gates: state.spec.gates.clone(),
        confirmed_by: state.confirmed_by.clone(),
        approved_by: state.approved_by.clone(),
        paused_by: state.paused_by.clone(),
        lapsed: state.lapsed.clone(),
        cancelled_by: state.cancelled_by.clone(),
        output_removed: state.output_removed,
        local: state.spec.local.as_ref().map(|l| l.local.clone()),
        rebuilt: state.spec.rebuilt.as_ref().map(|r| r.at),
        main: None,
        results: state
            .order
            .iter()
            .filter_map(|serial| {
                let mut node = run_node(*serial, state.nodes.get(serial)?);
                // While it is being taken back nobody knows.
                node.taken_back = state.phase.is_final() && state.is_taken_back(*serial);
                Some(node)
            })
            .collect(),
    }
}

/// A part of a run, as far as it is known.
pub(super) struct PartBrief {
    pub(super) short: String,
    pub(super) state: Option<RunPhase>,
    pub(super) nodes: u32,
    pub(super) summary: Summary,
}

/// What a `main` has done. `part` says what is known of a part.
#[must_use]
pub(super) fn main_view(
    state: &RunState,
    flow: &Flow,
    part: impl Fn(RunId) -> PartBrief,
) -> MainView {
    let count = |nodes: usize| u32::try_from(nodes).unwrap_or(u32::MAX);
    let main = state.spec.main.iter().flat_map(|main| &main.sets);
    let before = flow.calls.len().saturating_sub(CALLS_SHOWN);
    let step = |step: &StepCall, end: Option<&StepEnd>, undo_of: Option<u64>| {
        let known = part(step.run);
        StepView {
            run: step.run,
            short: known.short,
            name: step.function.to_string(),
            nodes: count(step.nodes.len()),
            state: known.state,
            summary: end.map_or(known.summary, StepEnd::summary),
            stopped: end.and_then(|end| end.stopped.clone()),
            failures: end.map_or_else(Vec::new, |end| failures(state, end)),
            undo_of,
        }
    };
    let scenario = |run: RunId, name: String, error: Option<String>| {
        let known = part(run);
        StepView {
            run,
            short: known.short,
            name,
            nodes: known.nodes,
            state: known.state,
            summary: known.summary,
            stopped: error,
            failures: Vec::new(),
            undo_of: None,
        }
    };
    let call = |call: &CallState| {
        let ended = call.ended.as_ref();
        let (answered_by, answer) = ended.and_then(|end| end.said.clone()).unzip();
        let mut view = CallView {
            call: call.number,
            name: call.call.clone(),
            line: call.line,
            began: call.began,
            ended: ended.map(|end| end.at),
            steps: Vec::new(),
            until: None,
            machine: None,
            question: None,
            answers: Vec::new(),
            answered_by,
            answer,
            error: ended.and_then(|end| end.error.clone()),
        };
        match &call.wanted {
            Wanted::Steps { steps } => {
                let end = |at: usize| ended.and_then(|end| end.steps.get(at));
                let steps = steps
                    .iter()
                    .enumerate()
                    .filter(|(_, s)| !s.nodes.is_empty());
                view.steps = steps.map(|(at, one)| step(one, end(at), None)).collect();
            }
            Wanted::Scenario {
                run,
                scenario: name,
            } => {
                view.steps = vec![scenario(*run, name.to_string(), view.error.clone())];
            }
            Wanted::Until { at } => view.until = Some(*at),
            Wanted::Contact { until, .. } => view.until = Some(*until),
            Wanted::Machine { name, keep } => {
                view.machine = Some(machine(flow, call, name, *keep));
            }
            Wanted::Answer { question, answers } => {
                view.question = Some(question.clone());
                view.answers.clone_from(answers);
            }
            Wanted::Nothing => {}
        }
        view
    };
    let said = flow.ended.as_ref().map(said_at_the_end).unwrap_or_default();
    MainView {
        sets: main
            .map(|(name, set)| (name.clone(), count(set.nodes.len())))
            .collect(),
        answered: flow.answered,
        calls: flow.calls.iter().skip(before).map(call).collect(),
        calls_before: before as u64,
        logs: flow.logs.iter().cloned().collect(),
        undo: flow
            .undo
            .iter()
            .filter_map(|undo| match &undo.back {
                Back::Step {
                    step: back, ended, ..
                } => {
                    let end = ended.as_ref().map(|(_, end)| end);
                    Some(step(back, end, Some(undo.of)))
                }
                // It stands with the call that made it.
                Back::Machine { .. } => None,
            })
            .collect(),
        error: said.error,
        planned: said.planned,
        would_change: count(flow.would_change.len()),
        value: said.value,
    }
}

/// A machine that a call makes.
fn machine(flow: &Flow, call: &CallState, name: &str, keep: bool) -> MainMachine {
    let made = call.ended.as_ref().map(|end| end.machine.as_ref());
    let back = flow.undo.iter().find_map(|undo| match &undo.back {
        Back::Machine { ended, .. } if undo.of == call.number => Some(ended.as_ref()),
        _ => None,
    });
    let hypervisor = |made: &muster_protocol::run::MadeMachine| made.hypervisor.clone();
    let fate = match (made, back) {
        (None, _) => MachineFate::Awaited,
        (Some(None), _) => MachineFate::Failed,
        (Some(Some(made)), None) => MachineFate::Made {
            hypervisor: hypervisor(made),
        },
        (Some(Some(made)), Some(None)) => MachineFate::Going {
            hypervisor: hypervisor(made),
        },
        (Some(Some(_)), Some(Some((_, MachineEnd::Gone)))) => MachineFate::Gone,
        (Some(Some(made)), Some(Some((_, MachineEnd::Left { why })))) => MachineFate::Left {
            hypervisor: hypervisor(made),
            why: why.clone(),
        },
    };
    let known = made.flatten().map(|made| made.name.to_string());
    MainMachine {
        name: known.unwrap_or_else(|| name.to_owned()),
        keep,
        fate,
    }
}
