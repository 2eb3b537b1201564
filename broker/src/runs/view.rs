//! A run as people see it: pure.

use muster_protocol::api::{RunBrief, RunView};
use muster_protocol::run::RunState;

use super::frames::{batches, run_node};

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
        results: state
            .order
            .iter()
            .filter_map(|serial| Some(run_node(*serial, state.nodes.get(serial)?)))
            .collect(),
    }
}
