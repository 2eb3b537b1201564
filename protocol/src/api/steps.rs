//! What a `main` has done, as people see it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::RunNode;
use crate::ids::RunId;
use crate::names::{NodeName, PrincipalName};
use crate::run::{LogLine, RunPhase, Summary, is_zero};
use crate::units::Timestamp;

/// Most calls in a [`MainView`]: the newest.
pub const CALLS_SHOWN: usize = 1_000;

/// The `main` of a run.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct MainView {
    /// Its frozen node sets: how many nodes each has.
    pub sets: BTreeMap<String, u32>,
    /// How many calls it has made, with those that return at once.
    pub answered: u64,
    /// The calls that wait or waited, in order; the newest thousand.
    pub calls: Vec<CallView>,
    /// How many were before those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub calls_before: u64,
    /// The newest lines of its log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogLine>,
    /// What takes steps back, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<StepView>,
    /// Why it failed; several lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why a dry run went no further, though nothing failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<String>,
    /// In a dry run: on how many nodes something would change.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub would_change: u32,
    /// What it returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub value: Option<Value>,
}

/// A call of `main` that did not return at once.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct CallView {
    /// Its number, over all calls.
    pub call: u64,
    /// The function's name: `on`, `sleep`, `ask`, …
    pub name: String,
    /// Its line in the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub began: Timestamp,
    /// When it was answered; absent while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended: Option<Timestamp>,
    /// The runs that it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepView>,
    /// Until when it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// The machine that it makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MainMachine>,
    /// What it asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The answers that are allowed; any when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<PrincipalName>,
    /// What was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The error that the script was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A machine that a `main` makes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct MainMachine {
    /// Its name; as it was asked for before it is there.
    pub name: String,
    /// Whether it stays when the run fails.
    pub keep: bool,
    /// How it is, as far as the run knows.
    #[serde(flatten)]
    pub fate: MachineFate,
}

/// What became of a machine that a `main` makes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "fate")]
pub enum MachineFate {
    /// It is not up yet.
    Awaited,
    /// It was not made, and nothing of it is there.
    Failed,
    /// It was made.
    Made {
        /// Where.
        hypervisor: NodeName,
    },
    /// The run takes it back.
    Going {
        /// Where it is.
        hypervisor: NodeName,
    },
    /// The run has taken it back.
    Gone,
    /// It could not be taken back.
    Left {
        /// Where something of it may be.
        hypervisor: NodeName,
        /// Why.
        why: String,
    },
}

/// A run that is a part of another one.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct StepView {
    /// The run: `GET /v1/runs/{run}` has its nodes.
    pub run: RunId,
    /// Its short id.
    pub short: String,
    /// The function, or the scenario.
    pub name: String,
    /// How many nodes.
    pub nodes: u32,
    /// Where it is; absent before it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<RunPhase>,
    /// Outcomes so far.
    #[schema(value_type = BTreeMap<String, u32>)]
    pub summary: Summary,
    /// Why it went no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// The first of those that did not succeed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<RunNode>,
    /// Of one that takes a step back: the call that it takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_of: Option<u64>,
}

/// Answers what a run asks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerRequest {
    /// What the script is told.
    pub text: String,
}
