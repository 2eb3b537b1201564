//! Runs, as they are asked for and shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::MainView;
use crate::envelope::{Door, Mode};
use crate::ids::{PlanId, RunId, Serial};
use crate::names::{LabelKey, NodeName, PrincipalName, ScenarioName};
use crate::run::{LocalRun, Outcome, PartOf, RunOptions, RunPhase, Summary, is_zero};
use crate::units::{Amount, Span, Timestamp};

/// Asks for a run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The nodes.
    pub predicate: String,
    /// The scenario; `command` when absent; `agent-upgrade` is the other one.
    #[serde(default = "command")]
    pub scenario: ScenarioName,
    /// Its parameters; for `command`: `{"argv": [...]}` or `{"shell": "..."}`;
    /// for `agent-upgrade`: `{"release": "<sha256>", "allow_downgrade": false}`.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub params: Value,
    /// Apply or check.
    #[serde(default)]
    pub mode: Mode,
    /// Execution time on each node; 5 minutes when absent.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// Time to acknowledge; 15 seconds when absent.
    #[serde(default)]
    pub deliver_within: Option<Span>,
    /// Nodes at a time.
    #[serde(default)]
    pub batch: Option<Amount>,
    /// Failure budget.
    #[serde(default)]
    pub max_failures: Option<Amount>,
    /// Only so many of the matching nodes, the first by name.
    #[serde(default)]
    pub limit: Option<Amount>,
    /// Send also to nodes that are down.
    #[serde(default)]
    pub wait_down: bool,
    /// Keep the broker's own machines in, also when not named.
    #[serde(default)]
    pub include_infrastructure: bool,
    /// Names that no node has are meant.
    #[serde(default)]
    pub allow_unknown: bool,
    /// Bytes of output kept per node; 1 MiB when absent.
    #[serde(default)]
    pub output_bytes: Option<u64>,
    /// How a plan above the threshold is confirmed.
    #[serde(default)]
    pub confirm: Confirm,
}

fn command() -> ScenarioName {
    "command".parse().expect("a constant name")
}

/// How a run above the confirmation threshold is confirmed.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Confirm {
    /// Answer 428 with the plan when it needs a confirmation.
    #[default]
    Ask,
    /// Confirmed beforehand, whatever the set is.
    Yes,
    /// This plan was shown and confirmed: exactly its set runs, or nothing.
    Plan(PlanId),
}

/// What would run, for a person to confirm. It lives five minutes and works
/// once, for the principal that it was made for and the same request.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Plan {
    /// Pass it back in [`Confirm::Plan`].
    pub id: PlanId,
    /// One line for people.
    pub title: String,
    /// The predicate in canonical form.
    pub predicate: String,
    /// The nodes, in the order in which they are taken.
    pub nodes: Vec<NodeName>,
    /// How many of them have each value of each label, for the question.
    #[schema(value_type = BTreeMap<String, BTreeMap<String, u32>>)]
    pub labels: BTreeMap<LabelKey, BTreeMap<String, u32>>,
    /// How many of the broker's own machines match and are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u32,
    /// When it stops working.
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
}

/// Asks for a retry: a run of its own, with the same scenario and parameters.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryRequest {
    /// On the nodes that failed, timed out, declined, were unreachable,
    /// skipped or cancelled; else on all.
    pub failed: bool,
    /// Also where it cannot be said whether it ran.
    pub include_unknown: bool,
    /// As in [`RunRequest::confirm`].
    pub confirm: Confirm,
}

/// A run in a list.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct RunBrief {
    /// The run.
    pub id: RunId,
    /// Its shortest unambiguous prefix now, at least four characters.
    pub short: String,
    /// Who asked.
    pub principal: PrincipalName,
    /// Through which door.
    pub door: Door,
    /// One line for people.
    pub title: String,
    /// The scenario.
    pub scenario: ScenarioName,
    /// The predicate.
    pub predicate: String,
    /// Where it is.
    pub state: RunPhase,
    /// How many nodes.
    pub nodes: u32,
    /// Outcomes so far.
    #[schema(value_type = BTreeMap<String, u32>)]
    pub summary: Summary,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished: Option<Timestamp>,
    /// The run it retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RunId>,
    /// How many of the broker's own machines match the predicate and were left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u32,
    /// The run that it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<PartOf>,
}

/// A run with its nodes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct RunView {
    /// The run.
    #[serde(flatten)]
    pub brief: RunBrief,
    /// Its parameters.
    #[schema(value_type = Object)]
    pub params: Value,
    /// How it goes about its nodes.
    pub options: RunOptions,
    /// Batches in all.
    pub batches: u32,
    /// Who asked for the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<PrincipalName>,
    /// Of a run that was done on the node itself: who did it, as the node
    /// tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalRun>,
    /// When retention took its output away; absent while what the nodes
    /// printed is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub output_removed: Option<Timestamp>,
    /// Of a run that the store had lost: when it was written down again, from
    /// what nodes had kept. Its batches and failure budget are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub rebuilt: Option<Timestamp>,
    /// Of a scenario with a `main`: what that has done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<Box<MainView>>,
    /// Its nodes, in the order in which they are taken.
    pub results: Vec<RunNode>,
}

/// A node in a run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct RunNode {
    /// Its name when the set was frozen.
    pub node: NodeName,
    /// Its serial.
    pub serial: Serial,
    /// Its outcome, once it has one.
    pub outcome: Option<Outcome>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// Signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Execution time in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// Bytes of output that the broker has taken from it.
    #[serde(default, skip_serializing_if = "crate::run::is_zero")]
    pub output_bytes: u64,
    /// What it said after its outcome was settled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late: Vec<Outcome>,
}
