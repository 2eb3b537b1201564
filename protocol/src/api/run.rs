//! Runs, as they are asked for and shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::MainView;
use crate::envelope::{Door, Mode};
use crate::ids::{PlanId, RunId, Serial};
use crate::names::{LabelKey, NodeName, PrincipalName, ScenarioName};
use crate::note::{Digest, Tally};
use crate::run::{Gate, Gates, LocalRun, Outcome, PartOf, RunOptions, RunPhase, Summary, is_zero};
use crate::units::{Amount, Span, Timestamp};

/// Asks for a run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The nodes. What is built in needs it; the target of a stored scenario
    /// is narrowed by it, or replaced where the scenario names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "role=web")]
    pub predicate: Option<String>,
    /// The scenario; `command` when absent. Built in are `command` and
    /// `agent-upgrade`; the others are stored.
    #[serde(default = "command")]
    pub scenario: ScenarioName,
    /// Which version of a stored one; the current one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Its parameters; those of a stored scenario by name, each as JSON or as
    /// a text that a person would write. For `command`: `{"argv": [...]}` or `{"shell": "..."}`;
    /// for `agent-upgrade`: `{"release": "<sha256>", "allow_downgrade": false}`.
    #[serde(default)]
    #[schema(value_type = Object, example = json!({ "argv": ["uptime"] }))]
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
    /// Failure budgets for the nodes of each value of a label by itself;
    /// those of the scenario when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, Amount>>)]
    pub max_failures_by: Option<BTreeMap<LabelKey, Amount>>,
    /// How often a step that failed is tried again on its node, at most 10;
    /// what the scenario says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<u32>,
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

impl RunRequest {
    /// A run of this scenario that says nothing else.
    #[must_use]
    pub fn of(scenario: ScenarioName) -> Self {
        Self {
            predicate: None,
            scenario,
            version: None,
            params: Value::Null,
            mode: Mode::default(),
            timeout: None,
            deliver_within: None,
            batch: None,
            max_failures: None,
            max_failures_by: None,
            retry: None,
            limit: None,
            wait_down: false,
            include_infrastructure: false,
            allow_unknown: false,
            output_bytes: None,
            confirm: Confirm::default(),
        }
    }
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
    /// It is created as it is now, and waits for a confirmation as long as a
    /// plan lives.
    Later,
    /// This plan was shown and confirmed: exactly its set runs, or nothing.
    Plan(PlanRef),
}

/// A plan's id, or a beginning of it, at least four characters, that stands
/// for no other plan of the same principal.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String)]
pub struct PlanRef(String);

/// A text that stands for no plan.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not a plan: it has 4 to 26 letters and digits, as the plan was shown with")]
pub struct PlanRefError(String);

impl PlanRef {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PlanRef {
    type Error = PlanRefError;

    fn try_from(text: String) -> Result<Self, PlanRefError> {
        let fits =
            (4..=26).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
        if fits {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(PlanRefError(crate::text::printable(&text, 40)))
        }
    }
}

impl std::str::FromStr for PlanRef {
    type Err = PlanRefError;

    fn from_str(text: &str) -> Result<Self, PlanRefError> {
        text.to_owned().try_into()
    }
}

impl From<PlanId> for PlanRef {
    fn from(id: PlanId) -> Self {
        Self(id.to_string())
    }
}

/// A node set that a scenario declares beside its target, as it was frozen.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PlanSet {
    /// Its name in the scenario.
    pub name: String,
    /// Its predicate in canonical form.
    pub predicate: String,
    /// The nodes, in order; possibly none.
    pub nodes: Vec<NodeName>,
}

/// What would run, for a person to confirm. It lives five minutes and works
/// once, for the principal that it was made for and the same request.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Plan {
    /// Pass it back in [`Confirm::Plan`].
    pub id: PlanId,
    /// The run that it becomes.
    pub run: RunId,
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
    /// Of a stored scenario: which one, at which version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<ScenarioName>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Its parameters, defaults included; of a secret one the name.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    #[schema(value_type = Object)]
    pub params: Value,
    /// Apply or check.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mode: Mode,
    /// How it would go about its nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<RunOptions>,
    /// Its further node sets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<PlanSet>,
    /// In how many batches; 0 where the scenario decides while it runs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub batches: u32,
    /// What it would wait for once it is confirmed.
    #[serde(default, skip_serializing_if = "Gates::is_open")]
    pub gates: Gates,
    /// How many of the nodes do it only if they still would change the same
    /// as in the dry run that the plan is from.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub checked: u32,
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
    /// With the current version of the scenario instead of the one that the
    /// old run has pinned.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub latest: bool,
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
    /// Its version, of a stored one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Apply or check.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mode: Mode,
    /// The predicate.
    pub predicate: String,
    /// Where it is.
    pub state: RunPhase,
    /// What it waits for before it begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<Gate>,
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

impl RunBrief {
    /// What the run waits for, in a word, while somebody or something else
    /// than its nodes and the clock has to do something: before it begins, or
    /// in its `main`.
    #[must_use]
    pub fn waits_for(&self) -> Option<&'static str> {
        let open = matches!(self.state, RunPhase::Waiting | RunPhase::Running);
        let gate = self.waits.as_ref().filter(|_| open)?;
        (!matches!(gate, Gate::Moment { .. })).then(|| gate.word(None))
    }
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
    /// What had to be given before it began.
    #[serde(default, skip_serializing_if = "Gates::is_open")]
    pub gates: Gates,
    /// Who confirmed it, where it waited for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_by: Option<PrincipalName>,
    /// Who approved it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approved_by: Vec<PrincipalName>,
    /// Who has it wait now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<PrincipalName>,
    /// What did not come in time, so that it ended before it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lapsed: Option<String>,
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

impl RunNode {
    /// A node of which nothing is known yet.
    #[must_use]
    pub fn new(node: NodeName, serial: Serial) -> Self {
        Self {
            node,
            serial,
            outcome: None,
            reason: None,
            exit: None,
            signal: None,
            ms: None,
            output_bytes: 0,
            value: None,
            value_bytes: None,
            tally: None,
            digest: None,
            rolled_back: false,
            taken_back: false,
            late: Vec::new(),
        }
    }
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
    /// What a function of a scenario returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub value: Option<Value>,
    /// The size of its value in bytes, as JSON, where that is too large to be
    /// here: it is in the node's notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_bytes: Option<u64>,
    /// How many things a function of a scenario found, made, or would make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tally: Option<Tally>,
    /// Over all that would change, in a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Whether it changed its firewall, that was not confirmed, and its old
    /// rules are in force again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rolled_back: bool,
    /// Whether what the run did there was taken back, all of it that has an
    /// `.undo`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub taken_back: bool,
    /// What it said after its outcome was settled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late: Vec<Outcome>,
}
