//! From the runs that the steps were to what `main` is told of them: pure.

use std::collections::BTreeMap;

use muster_protocol::ids::Serial;
use muster_protocol::names::{LabelKey, LabelValue};
use muster_protocol::nodeset::NodeSet;
use muster_protocol::run::{
    FAILURES_TOLD, NodePhase, NodeResult, Outcome, RunOptions, RunPhase, RunState, StepEnd,
};
use muster_protocol::text::printable;
use muster_scenarios::durable::{NodeReply, StepReply};
use muster_scenarios::manifest::{Budget, spent};
use serde_json::{Value, json};

/// Bytes of standard output of one node that `main` is told at most.
const STDOUT: usize = 4 * 1024;
/// Of all nodes of a step together.
const ALL_STDOUT: usize = 512 * 1024;
/// Bytes of the values of all nodes of a step together that `main` is told.
const MOST_VALUES: usize = 8 << 20;
/// Bytes of a reason that `main` is told.
const REASON: usize = 500;
/// Bytes of a reason that stands in the journal with the step.
const REASON_TOLD: usize = 300;

/// How many bytes of standard output of each node `main` is told.
pub(super) fn stdout_each(nodes: usize) -> usize {
    STDOUT.min(ALL_STDOUT / nodes.max(1))
}

/// The budgets that a step was made with.
fn budgets(options: &RunOptions) -> Vec<Budget> {
    let all = options
        .max_failures
        .map(|amount| Budget { amount, by: None });
    let by_label = options
        .max_failures_by
        .iter()
        .map(|(label, amount)| Budget {
            amount: *amount,
            by: Some(label.clone()),
        });
    all.into_iter().chain(by_label).collect()
}

/// What a step that ended came to: for the script, and for people.
pub(super) fn of_run(
    state: &RunState,
    mut stdout: BTreeMap<Serial, String>,
) -> (StepReply, StepEnd) {
    let results: Vec<&NodeResult> = state
        .order
        .iter()
        .filter_map(|serial| match &state.nodes.get(serial)?.phase {
            NodePhase::Done(result) => Some(result),
            NodePhase::Waiting | NodePhase::Sent { .. } => None,
        })
        .collect();
    let all: Vec<(Serial, Option<Outcome>)> = results
        .iter()
        .map(|result| (result.serial, Some(result.outcome)))
        .collect();
    let domain = |serial: Serial, label: &LabelKey| {
        let node = state.nodes.get(&serial)?;
        node.labels.get(label).map(LabelValue::as_str)
    };
    let never_begun = || {
        let left = |r: &&&NodeResult| matches!(r.outcome, Outcome::Skipped | Outcome::Cancelled);
        results.iter().find(left).and_then(|r| r.reason.clone())
    };
    let stopped = match (&state.cancelled_by, state.phase) {
        (Some(by), RunPhase::Cancelled) => Some(format!("{by} cancelled the step")),
        _ => spent(&budgets(&state.spec.options), &all, domain).or_else(never_begun),
    };
    let mut room = MOST_VALUES;
    let mut too_much = false;
    let nodes = results
        .iter()
        .map(|result| NodeReply {
            serial: result.serial,
            outcome: result.outcome,
            value: value(state, result, &mut room).unwrap_or_else(|TooMuch| {
                too_much = true;
                None
            }),
            reason: result.reason.as_ref().map(|why| printable(why, REASON)),
            exit: result.exit,
            stdout: stdout.remove(&result.serial),
        })
        .collect();
    let stopped = stopped.or_else(|| {
        let most = MOST_VALUES >> 20;
        too_much.then(|| format!("the nodes returned more than {most} MiB together"))
    });
    let would = |r: &&&NodeResult| r.tally.is_some_and(|tally| tally.would_change > 0);
    let end = StepEnd {
        would_change: results.iter().filter(would).map(|r| r.serial).collect(),
        ..end(results.iter().map(|r| (*r).clone()), stopped.clone())
    };
    (StepReply { nodes, stopped }, end)
}

/// There is no room for the value of one more node.
struct TooMuch;

/// What a node returned. What is too large to be kept with its result stands
/// here by where it is.
fn value(
    state: &RunState,
    result: &NodeResult,
    room: &mut usize,
) -> Result<Option<Value>, TooMuch> {
    if let Some(bytes) = result.value_bytes {
        return Ok(Some(json!({"bytes": bytes, "run": state.spec.id})));
    }
    let Some(value) = &result.value else {
        return Ok(None);
    };
    *room = room.checked_sub(value.to_string().len()).ok_or(TooMuch)?;
    Ok(Some(value.clone()))
}

/// What a step came to that was not begun at all.
pub(super) fn never(nodes: &NodeSet, why: &str) -> (StepReply, StepEnd) {
    let result = |serial| NodeResult::new(serial, Outcome::Skipped, why);
    let replies = nodes.iter().map(|serial| NodeReply {
        serial,
        outcome: Outcome::Skipped,
        value: None,
        reason: Some(why.to_owned()),
        exit: None,
        stdout: None,
    });
    let stopped = Some(why.to_owned());
    let end = end(nodes.iter().map(result), stopped.clone());
    let nodes = replies.collect();
    (StepReply { nodes, stopped }, end)
}

/// The same for people.
pub(super) fn end(results: impl Iterator<Item = NodeResult>, stopped: Option<String>) -> StepEnd {
    let mut outcomes: BTreeMap<Outcome, Vec<Serial>> = BTreeMap::new();
    let mut failures = Vec::new();
    for result in results {
        outcomes
            .entry(result.outcome)
            .or_default()
            .push(result.serial);
        if result.outcome != Outcome::Succeeded && failures.len() < FAILURES_TOLD {
            failures.push(NodeResult {
                reason: result.reason.map(|why| printable(&why, REASON_TOLD)),
                value: None,
                digest: None,
                ..result
            });
        }
    }
    let set = |(outcome, nodes): (Outcome, Vec<Serial>)| {
        (outcome, nodes.into_iter().collect::<NodeSet>())
    };
    StepEnd {
        outcomes: outcomes.into_iter().map(set).collect(),
        stopped: stopped.map(|why| printable(&why, REASON_TOLD)),
        failures,
        would_change: NodeSet::new(),
    }
}
