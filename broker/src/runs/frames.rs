//! From the stream of a run to what watchers see: pure.
//!
//! A [`Frames`] takes the run's stored messages in their order, whether they
//! were read from the stream a month later or just now, and gives the frames
//! that each stands for. So a replay is what the live watcher saw.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use muster_protocol::api::{Frame, RunNode};
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::run::{
    Back, Data, FoldError, MachineEnd, MainEnd, NodePhase, NodeResult, NodeState, RunEvent,
    RunState, StepCall, StepEnd, Stream, Summary, Wanted,
};
use serde::{Deserialize, Serialize};

/// In front of a stored chunk of output: NATS header
/// [`muster_protocol::wire::OUTPUT_HEADER`], as JSON. The payload is the bytes
/// as the program wrote them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredOutput {
    /// Whose output.
    pub serial: Serial,
    /// Its number, over both streams of the node.
    pub chunk: u32,
    /// Which stream.
    pub stream: Stream,
}

/// The place of a frame in a run's stream: the sequence of the stored message,
/// and, where that message stands for several frames, which of them. As text
/// the last frame of a message is `17`, an earlier one `17.3`; it is the id of
/// the SSE event, and what `Last-Event-ID` brings back.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// Sequence in the stream.
    pub sequence: u64,
    /// Which frame of the message; [`Place::LAST`] for the last.
    pub part: u32,
}

impl Place {
    /// The last frame of a message.
    pub const LAST: u32 = u32::MAX;
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.part == Self::LAST {
            write!(f, "{}", self.sequence)
        } else {
            write!(f, "{}.{}", self.sequence, self.part)
        }
    }
}

/// Why a text is not a [`Place`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this is not the id of an event of a run")]
pub struct PlaceError;

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let (sequence, part) = match text.split_once('.') {
            Some((sequence, part)) => (sequence, part.parse().map_err(|_| PlaceError)?),
            None => (text, Self::LAST),
        };
        Ok(Self {
            sequence: sequence.parse().map_err(|_| PlaceError)?,
            part,
        })
    }
}

/// A run as its watchers follow it.
#[derive(Clone, Debug)]
pub struct Frames {
    run: RunId,
    state: Option<RunState>,
}

impl Frames {
    /// Before the first message.
    #[must_use]
    pub fn new(run: RunId) -> Self {
        Self { run, state: None }
    }

    /// The run as far as it was followed; `None` before its first event.
    #[must_use]
    pub fn state(&self) -> Option<&RunState> {
        self.state.as_ref()
    }

    /// The frames of the next event of the journal.
    ///
    /// # Errors
    /// [`FoldError`]: the journal is damaged; nothing that follows can be
    /// shown.
    pub fn event(&mut self, event: &RunEvent) -> Result<Vec<Frame>, FoldError> {
        let Some(state) = &mut self.state else {
            let state = self.state.insert(RunState::begin(event)?);
            return Ok(vec![created(state)]);
        };
        state.apply(event)?;
        let run = self.run;
        let named = |serial: &Serial| state.nodes.get(serial);
        Ok(match event {
            RunEvent::Created { .. } => Vec::new(),
            RunEvent::Targets { .. } => waits(state),
            RunEvent::Confirmed { by, .. } | RunEvent::Approved { by, .. } => {
                let mut frames = vec![Frame::RunGiven {
                    run,
                    what: event.kind().to_owned(),
                    by: by.clone(),
                }];
                frames.extend(waits(state));
                frames
            }
            RunEvent::Admitted { at } => vec![Frame::RunBegins { run, at: *at }],
            RunEvent::Lapsed { why, .. } => vec![Frame::RunLapsed {
                run,
                why: why.clone(),
            }],
            RunEvent::Paused { by, .. } => vec![Frame::RunPaused {
                run,
                by: by.clone(),
            }],
            RunEvent::Resumed { by, .. } => vec![Frame::RunResumed {
                run,
                by: by.clone(),
            }],
            RunEvent::Intent { batch, nodes, .. } => {
                let inside = |serial: &&Serial| nodes.contains(**serial);
                let names = state
                    .order
                    .iter()
                    .filter(inside)
                    .filter_map(named)
                    .map(|n| n.name.clone());
                vec![Frame::BatchSent {
                    run,
                    batch: *batch,
                    nodes: names.collect(),
                }]
            }
            RunEvent::Outcomes { results, .. } => results
                .iter()
                .filter_map(|result| {
                    // Answers that came earlier and were not believed cannot
                    // be; a late one has a frame of its own.
                    let mut node = run_node(result.serial, named(&result.serial)?);
                    node.taken_back = state.is_taken_back(result.serial);
                    Some(Frame::Outcome {
                        run,
                        result: node,
                        truncated: result.truncated,
                    })
                })
                .collect(),
            RunEvent::Late { result, .. } => named(&result.serial)
                .map(|node| Frame::LateOutcome {
                    run,
                    node: node.name.clone(),
                    outcome: result.outcome,
                })
                .into_iter()
                .collect(),
            RunEvent::Recorded { .. }
            | RunEvent::Called { .. }
            | RunEvent::ReplyPart { .. }
            | RunEvent::Answered { .. }
            | RunEvent::MainEnded { .. }
            | RunEvent::Undoing { .. }
            | RunEvent::Undone { .. }
            | RunEvent::Unmaking { .. }
            | RunEvent::Unmade { .. } => main_frames(state, event),
            // It is said before what lacks its output; see `Watch`.
            RunEvent::OutputRemoved { .. } => Vec::new(),
            RunEvent::Cancelling { by, .. } => vec![Frame::RunCancelling {
                run,
                by: by.clone(),
            }],
            RunEvent::Finished { .. } => vec![Frame::RunFinished {
                run,
                state: state.phase,
                summary: state.summary(),
                nodes: state
                    .nodes
                    .values()
                    .filter_map(|node| Some((node.name.clone(), result_of(node)?.outcome)))
                    .collect(),
            }],
        })
    }

    /// The frame of a stored chunk of output; `None` when it is of no node of
    /// the run.
    #[must_use]
    pub fn output(&self, head: StoredOutput, bytes: &[u8]) -> Option<Frame> {
        let node = self.state.as_ref()?.nodes.get(&head.serial)?.name.clone();
        let data = Data::new(bytes);
        Some(Frame::Output {
            run: self.run,
            node,
            stream: head.stream,
            chunk: head.chunk,
            data,
        })
    }
}

/// The frames of an event of a `main`.
fn main_frames(state: &RunState, event: &RunEvent) -> Vec<Frame> {
    let run = state.spec.id;
    let Some(flow) = &state.flow else {
        return Vec::new();
    };
    let began = |call: u64, part: u32, step: &StepCall, undo: bool| Frame::StepBegan {
        run,
        call,
        part,
        step: step.run,
        name: step.function.to_string(),
        nodes: u32::try_from(step.nodes.len()).unwrap_or(u32::MAX),
        undo,
    };
    let ended =
        |call: u64, part: u32, step: &StepCall, end: &StepEnd, undo: bool| Frame::StepEnded {
            run,
            call,
            part,
            step: step.run,
            name: step.function.to_string(),
            summary: end.summary(),
            stopped: end.stopped.clone(),
            failures: failures(state, end),
            undo,
        };
    let begun = |step: &&StepCall| !step.nodes.is_empty();
    let said = |call: u64, text: String| Frame::Logged { run, call, text };
    match event {
        RunEvent::Recorded { from, records, .. } => (*from..)
            .zip(records)
            .filter_map(|(call, record)| {
                let text = record.log.clone()?;
                Some(Frame::Logged { run, call, text })
            })
            .collect(),
        RunEvent::Called { number, wanted, .. } => match wanted {
            Wanted::Steps { steps } => (0..)
                .zip(steps)
                .filter(|(_, step)| begun(step))
                .map(|(part, step)| began(*number, part, step, false))
                .collect(),
            Wanted::Scenario {
                run: step,
                scenario,
            } => vec![Frame::StepBegan {
                run,
                call: *number,
                part: 0,
                step: *step,
                name: scenario.to_string(),
                nodes: 0,
                undo: false,
            }],
            Wanted::Until { at } => vec![Frame::Sleeps {
                run,
                call: *number,
                until: *at,
                node: None,
            }],
            Wanted::Contact { node, until, .. } => vec![Frame::Sleeps {
                run,
                call: *number,
                until: *until,
                node: Some(node.clone()),
            }],
            Wanted::Machine { name, .. } => {
                vec![said(*number, format!("machine {name} is being made"))]
            }
            Wanted::Answer { question, answers } => vec![Frame::Asks {
                run,
                call: *number,
                question: question.clone(),
                answers: answers.clone(),
            }],
            Wanted::Nothing => Vec::new(),
        },
        RunEvent::Answered {
            number,
            steps: ends,
            machine,
            by,
            text,
            error,
            ..
        } => match flow.call(*number).map(|call| &call.wanted) {
            Some(Wanted::Steps { steps }) => (0..)
                .zip(steps.iter().zip(ends))
                .filter(|(_, (step, _))| begun(step))
                .map(|(part, (step, end))| ended(*number, part, step, end, false))
                .collect(),
            Some(Wanted::Scenario {
                run: step,
                scenario,
            }) => vec![Frame::StepEnded {
                run,
                call: *number,
                part: 0,
                step: *step,
                name: scenario.to_string(),
                summary: Summary::new(),
                stopped: error.clone(),
                failures: Vec::new(),
                undo: false,
            }],
            Some(Wanted::Machine { .. }) => match (machine, error) {
                (Some(made), None) => vec![said(
                    *number,
                    format!("machine {} is up on {}", made.name, made.hypervisor),
                )],
                _ => Vec::new(),
            },
            Some(Wanted::Answer { .. }) => match (by, text) {
                (Some(by), Some(text)) => vec![Frame::Answered {
                    run,
                    call: *number,
                    by: by.clone(),
                    text: text.clone(),
                }],
                _ => Vec::new(),
            },
            _ => Vec::new(),
        },
        RunEvent::MainEnded { end, .. } => {
            let Said {
                error,
                planned,
                value,
            } = said_at_the_end(end);
            vec![Frame::MainEnded {
                run,
                error,
                planned,
                value,
            }]
        }
        RunEvent::Undoing { of, part, step, .. } => vec![began(*of, *part, step, true)],
        RunEvent::Undone { end, .. } => match flow.undo.last().map(|undo| (undo.of, &undo.back)) {
            Some((of, Back::Step { part, step, .. })) => vec![ended(of, *part, step, end, true)],
            _ => Vec::new(),
        },
        RunEvent::Unmaking { of, machine, .. } => {
            vec![said(*of, format!("undo machine {}", machine.name))]
        }
        RunEvent::Unmade { end, .. } => match flow.undo.last().map(|undo| (undo.of, &undo.back)) {
            Some((of, Back::Machine { machine, .. })) => {
                let name = &machine.name;
                let text = match end {
                    MachineEnd::Gone => format!("machine {name} is taken back"),
                    MachineEnd::Left { why } => {
                        format!("machine {name} could not be taken back: {why}")
                    }
                };
                vec![said(of, text)]
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// What is said of a `main` that has ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Why it failed.
    pub error: Option<String>,
    /// Why a dry run went no further.
    pub planned: Option<String>,
    /// What it returned.
    pub value: Option<serde_json::Value>,
}

/// Why a `main` failed or went no further, and what it returned.
#[must_use]
pub fn said_at_the_end(end: &MainEnd) -> Said {
    let mut said = Said::default();
    match end {
        MainEnd::Done { value } => said.value = Some(value.clone()).filter(|v| !v.is_null()),
        MainEnd::Failed { error } | MainEnd::Diverged { error } => said.error = Some(error.clone()),
        MainEnd::Planned { why } => said.planned = Some(why.clone()),
        MainEnd::Cancelled => {}
    }
    said
}

/// The first nodes on which a step did not succeed.
#[must_use]
pub fn failures(state: &RunState, end: &StepEnd) -> Vec<RunNode> {
    let node = |result: &NodeResult| {
        let node = state.nodes.get(&result.serial)?;
        let node = NodeState {
            name: node.name.clone(),
            labels: BTreeMap::new(),
            phase: NodePhase::Done(result.clone()),
            late: Vec::new(),
        };
        Some(run_node(result.serial, &node))
    };
    end.failures.iter().filter_map(node).collect()
}

/// What a run waits for, if it does.
fn waits(state: &RunState) -> Vec<Frame> {
    let run = state.spec.id;
    let waits = state.gate();
    waits
        .map(|waits| Frame::RunWaits { run, waits })
        .into_iter()
        .collect()
}

fn created(state: &RunState) -> Frame {
    let spec = &state.spec;
    Frame::RunCreated {
        run: spec.id,
        short: spec.id.short(),
        title: spec.title.clone(),
        predicate: spec.predicate.clone(),
        principal: spec.principal.clone(),
        nodes: spec.targets,
        batches: batches(state),
        left_out: spec.left_out,
    }
}

/// Into how many batches a run is cut, also before its targets are known.
#[must_use]
pub fn batches(state: &RunState) -> u32 {
    let all = state.spec.targets as usize;
    let size = state
        .spec
        .options
        .batch
        .map_or(all, |b| b.of_rounded_up(all))
        .max(1);
    u32::try_from(all.div_ceil(size)).unwrap_or(u32::MAX)
}

fn result_of(node: &NodeState) -> Option<&NodeResult> {
    match &node.phase {
        NodePhase::Done(result) => Some(result),
        NodePhase::Waiting | NodePhase::Sent { .. } => None,
    }
}

/// A node of a run, as people see it.
#[must_use]
pub fn run_node(serial: Serial, node: &NodeState) -> RunNode {
    let result = result_of(node);
    RunNode {
        node: node.name.clone(),
        serial,
        outcome: result.map(|r| r.outcome),
        reason: result.and_then(|r| r.reason.clone()),
        exit: result.and_then(|r| r.exit),
        signal: result.and_then(|r| r.signal),
        ms: result.and_then(|r| r.ms),
        output_bytes: result.map_or(0, |r| r.output_bytes),
        value: result.and_then(|r| r.value.clone()),
        value_bytes: result.and_then(|r| r.value_bytes),
        tally: result.and_then(|r| r.tally),
        digest: result.and_then(|r| r.digest),
        rolled_back: result.is_some_and(|r| r.rolled_back),
        taken_back: false,
        late: node.late.iter().map(|r| r.outcome).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_order_and_have_one_spelling() {
        let places = ["16", "17.0", "17.3", "17"].map(|t| t.parse::<Place>().expect(t));
        assert!(places.is_sorted());
        assert_eq!(places[2].to_string(), "17.3");
        assert_eq!(places[3].to_string(), "17");
        for bad in ["", "x", "1.", ".1", "-1", "1.2.3", "99999999999999999999"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
