//! What watchers of a run see.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::RunNode;
use crate::ids::RunId;
use crate::names::{NodeName, PrincipalName};
use crate::run::{Data, Gate, Outcome, RunPhase, Stream, Summary, is_zero};
use crate::units::Timestamp;

/// One thing that happened in a run, as watchers see it; the `data` of an SSE
/// event whose `id` is a position in the run's stream. [`Frame::Accepted`],
/// [`Frame::OutputRemoved`], [`Frame::StepProgress`] and [`Frame::Stalled`] have no id.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Frame {
    /// First.
    RunCreated {
        /// The run.
        run: RunId,
        /// Short id for people.
        short: String,
        /// One line.
        title: String,
        /// The predicate.
        predicate: String,
        /// Who asked.
        principal: PrincipalName,
        /// How many nodes.
        nodes: u32,
        /// In how many batches.
        batches: u32,
        /// How many of the broker's own machines match and were left out.
        #[serde(default, skip_serializing_if = "is_zero")]
        left_out: u32,
    },
    /// Nothing is sent before this is given.
    RunWaits {
        /// The run.
        run: RunId,
        /// What.
        waits: Gate,
    },
    /// Somebody has confirmed or approved it.
    RunGiven {
        /// The run.
        run: RunId,
        /// What: `confirmed` or `approved`.
        what: String,
        /// Who.
        by: PrincipalName,
    },
    /// All is given that it waited for.
    RunBegins {
        /// The run.
        run: RunId,
        /// When.
        #[schema(value_type = String, format = DateTime)]
        at: Timestamp,
    },
    /// What it waited for did not come in time: it ends.
    RunLapsed {
        /// The run.
        run: RunId,
        /// What, for people.
        why: String,
    },
    /// Nothing new is sent for now.
    RunPaused {
        /// The run.
        run: RunId,
        /// Who wanted it.
        by: PrincipalName,
    },
    /// It goes on.
    RunResumed {
        /// The run.
        run: RunId,
        /// Who wanted it.
        by: PrincipalName,
    },
    /// A batch is sent.
    BatchSent {
        /// The run.
        run: RunId,
        /// Which, from 0.
        batch: u32,
        /// The nodes.
        nodes: Vec<NodeName>,
    },
    /// A node runs it.
    Accepted {
        /// The run.
        run: RunId,
        /// The node.
        node: NodeName,
    },
    /// A piece of output.
    Output {
        /// The run.
        run: RunId,
        /// The node.
        node: NodeName,
        /// Which stream.
        stream: Stream,
        /// Its number, over both streams of the node.
        chunk: u32,
        /// The bytes.
        data: Data,
    },
    /// A node's outcome: one each.
    Outcome {
        /// The run.
        run: RunId,
        /// The node and how it ended.
        #[serde(flatten)]
        result: RunNode,
        /// Whether output was thrown away.
        #[serde(default)]
        truncated: bool,
    },
    /// An answer after the outcome was settled.
    LateOutcome {
        /// The run.
        run: RunId,
        /// The node.
        node: NodeName,
        /// What it said.
        outcome: Outcome,
    },
    /// Retention has taken the run's output away: what follows has none,
    /// whatever the nodes printed. It has no id.
    OutputRemoved {
        /// The run.
        run: RunId,
        /// When.
        #[schema(value_type = String, format = DateTime)]
        at: Timestamp,
    },
    /// The run cannot go on now, or can again. It has no id: it is not kept.
    Stalled {
        /// The run.
        run: RunId,
        /// What it waits for, for people; absent when it goes on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Somebody asked for the end.
    RunCancelling {
        /// The run.
        run: RunId,
        /// Who.
        by: PrincipalName,
    },
    /// A step of a run with a `main` begins: a run of its own.
    StepBegan {
        /// The run.
        run: RunId,
        /// The number of the call in `main`.
        call: u64,
        /// Which of the call's steps.
        #[serde(default, skip_serializing_if = "is_zero")]
        part: u32,
        /// The run that the step is.
        step: RunId,
        /// The function, or the scenario.
        name: String,
        /// How many nodes; of a scenario that is not known.
        nodes: u32,
        /// Whether it takes another step back.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        undo: bool,
    },
    /// How far a step is. It has no id: it is not kept.
    StepProgress {
        /// The run.
        run: RunId,
        /// The run that the step is.
        step: RunId,
        /// How many nodes.
        nodes: u32,
        /// Outcomes so far.
        #[schema(value_type = BTreeMap<String, u32>)]
        summary: Summary,
    },
    /// A step has ended.
    StepEnded {
        /// The run.
        run: RunId,
        /// The number of the call in `main`.
        call: u64,
        /// Which of the call's steps.
        #[serde(default, skip_serializing_if = "is_zero")]
        part: u32,
        /// The run that the step was.
        step: RunId,
        /// The function, or the scenario.
        name: String,
        /// How many nodes had each outcome.
        #[schema(value_type = BTreeMap<String, u32>)]
        summary: Summary,
        /// Why it went no further.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stopped: Option<String>,
        /// The first of those that did not succeed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        failures: Vec<RunNode>,
        /// Whether it took another step back.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        undo: bool,
    },
    /// The run waits for a moment.
    Sleeps {
        /// The run.
        run: RunId,
        /// The number of the call in `main`.
        call: u64,
        /// Until when.
        #[schema(value_type = String, format = DateTime)]
        until: Timestamp,
        /// It goes on as soon as this node is heard.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeName>,
    },
    /// The run waits for an answer: `POST /v1/runs/{run}/answer`.
    Asks {
        /// The run.
        run: RunId,
        /// The number of the call in `main`.
        call: u64,
        /// The question.
        question: String,
        /// The answers that are allowed; any when empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        answers: Vec<String>,
    },
    /// Somebody has answered.
    Answered {
        /// The run.
        run: RunId,
        /// The number of the call in `main`.
        call: u64,
        /// Who.
        by: PrincipalName,
        /// What.
        text: String,
    },
    /// A line of the run's log.
    Logged {
        /// The run.
        run: RunId,
        /// The number of the call in `main`.
        call: u64,
        /// The line.
        text: String,
    },
    /// `main` has come to its end. What it did is taken back after that, if it
    /// failed.
    MainEnded {
        /// The run.
        run: RunId,
        /// Why it failed, for people; several lines.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// Why a dry run went no further, though nothing failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        planned: Option<String>,
        /// What it returned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Object)]
        value: Option<Value>,
    },
    /// The place that the watcher named is not known any more: the store went
    /// back in time, and places are numbered anew. What follows begins with
    /// the run's beginning. Like [`Frame::Accepted`] it has no id.
    RunBeginsAgain {
        /// The run.
        run: RunId,
        /// Why, for people.
        reason: String,
    },
    /// Last.
    RunFinished {
        /// The run.
        run: RunId,
        /// How it ended.
        state: RunPhase,
        /// How many nodes had each outcome.
        #[schema(value_type = BTreeMap<String, u32>)]
        summary: Summary,
        /// Every node's outcome.
        #[schema(value_type = BTreeMap<String, Outcome>)]
        nodes: BTreeMap<NodeName, Outcome>,
    },
}

impl Frame {
    /// The name of the SSE event, which is `type` in the JSON.
    #[must_use]
    pub fn event(&self) -> &'static str {
        match self {
            Self::RunCreated { .. } => "run_created",
            Self::RunWaits { .. } => "run_waits",
            Self::RunGiven { .. } => "run_given",
            Self::RunBegins { .. } => "run_begins",
            Self::RunLapsed { .. } => "run_lapsed",
            Self::RunPaused { .. } => "run_paused",
            Self::RunResumed { .. } => "run_resumed",
            Self::BatchSent { .. } => "batch_sent",
            Self::Accepted { .. } => "accepted",
            Self::Output { .. } => "output",
            Self::Outcome { .. } => "outcome",
            Self::LateOutcome { .. } => "late_outcome",
            Self::OutputRemoved { .. } => "output_removed",
            Self::Stalled { .. } => "stalled",
            Self::RunCancelling { .. } => "run_cancelling",
            Self::RunBeginsAgain { .. } => "run_begins_again",
            Self::StepBegan { .. } => "step_began",
            Self::StepProgress { .. } => "step_progress",
            Self::StepEnded { .. } => "step_ended",
            Self::Sleeps { .. } => "sleeps",
            Self::Asks { .. } => "asks",
            Self::Answered { .. } => "answered",
            Self::Logged { .. } => "logged",
            Self::MainEnded { .. } => "main_ended",
            Self::RunFinished { .. } => "run_finished",
        }
    }
}
