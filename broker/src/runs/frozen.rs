//! Runs while the fleet is frozen: nothing new of them is sent, and they say
//! why. What takes back what a run did goes on, once that was promised.

use muster_protocol::api::RunBrief;
use muster_protocol::freeze::Freeze;
use muster_protocol::run::{Gate, NodePhase, RunPhase, RunSpec, RunState};
use tokio::sync::watch;

use super::engine::{Engine, Shared, lock};
use super::task::Task;
use crate::freeze::Freezer;
pub(super) use crate::freeze::changed;

/// Whether it takes back what another run did.
pub(super) fn is_undo(spec: &RunSpec) -> bool {
    spec.takes_back || spec.part_of.is_some_and(|part| part.undo)
}

/// Whether a freeze keeps this run from going on. What people can still do
/// about it (confirm, approve, answer) is shown before that.
pub(super) fn halts(state: &RunState) -> bool {
    if state.phase.is_final() || state.spec.local.is_some() || is_undo(&state.spec) {
        return false;
    }
    let asks = |gate: &Gate| {
        matches!(
            gate,
            Gate::Confirmation { .. } | Gate::Approvals { .. } | Gate::Answer { .. }
        )
    };
    if state.waits().as_ref().is_some_and(asks) {
        return false;
    }
    match &state.flow {
        Some(flow) => flow.ended.is_none() && state.phase != RunPhase::Cancelling,
        None => {
            matches!(state.phase, RunPhase::Running | RunPhase::Waiting)
                && state.nodes.values().any(|n| n.phase == NodePhase::Waiting)
        }
    }
}

fn gate(freeze: &Freeze) -> Gate {
    Gate::Frozen {
        by: freeze.by.clone(),
        why: freeze.why.clone(),
        since: freeze.at,
    }
}

impl Engine {
    /// From now on this one says whether anything is begun.
    pub fn freeze_with(&self, freezer: Freezer) {
        let _ = self.0.freezer.set(freezer);
    }

    /// Changes with every freeze and thaw; `None` where there is none ever.
    pub(crate) fn freezes(&self) -> Option<watch::Receiver<Freeze>> {
        self.0.freezes()
    }

    /// What stops everything new, if something does.
    #[must_use]
    pub fn frozen(&self) -> Option<Freeze> {
        self.0.freezer.get().and_then(Freezer::frozen)
    }

    /// What keeps this run from being begun, if something does.
    pub(crate) fn halted(&self, spec: &RunSpec) -> Option<Freeze> {
        self.0.frozen(spec)
    }
}

impl Shared {
    /// What keeps a run of this kind from being begun, if something does.
    pub(super) fn frozen(&self, spec: &RunSpec) -> Option<Freeze> {
        let frozen = self.freezer.get().and_then(Freezer::frozen)?;
        (!is_undo(spec)).then_some(frozen)
    }

    /// Whether nodes are to do it although they are frozen. It is only said
    /// then: agents that know no freeze know no such word.
    pub(super) fn promised(&self, spec: &RunSpec) -> bool {
        is_undo(spec) && self.freezer.get().and_then(Freezer::frozen).is_some()
    }

    /// What an open run waits for because of a freeze.
    pub(super) fn waits_frozen(&self, state: &RunState) -> Option<Gate> {
        let freeze = halts(state).then(|| self.freezer.get().and_then(Freezer::frozen));
        Some(gate(&freeze.flatten()?))
    }

    /// Says of runs in a list that they wait because of a freeze.
    pub(super) fn show_frozen(&self, briefs: &mut [RunBrief]) {
        let Some(freeze) = self.freezer.get().and_then(Freezer::frozen) else {
            return;
        };
        let index = lock(&self.index);
        for brief in briefs.iter_mut().filter(|brief| index.halts(brief.id)) {
            brief.waits = Some(gate(&freeze));
        }
    }

    /// Changes with every freeze and thaw; `None` where there is none ever.
    pub(super) fn freezes(&self) -> Option<watch::Receiver<Freeze>> {
        self.freezer.get().map(Freezer::changes)
    }
}

impl Task {
    /// Whether the run must not go on for now; whoever watches is told.
    pub(super) fn is_frozen(&self) -> bool {
        let Some(freeze) = self.engine.0.frozen(&self.state.spec) else {
            return false;
        };
        self.say_stalled(Some(freeze.reason()));
        true
    }

    /// Whether its `main` must not go on: one that is being cancelled, or
    /// takes back what it did, does.
    pub(super) fn main_is_frozen(&self) -> bool {
        let ending = self.state.phase == RunPhase::Cancelling
            || self
                .state
                .flow
                .as_ref()
                .is_some_and(|flow| flow.ended.is_some());
        !ending && self.is_frozen()
    }

    /// A freeze has begun or ended.
    pub(super) fn thaws(&self) {
        if !self.state.phase.is_final() && self.engine.0.frozen(&self.state.spec).is_none() {
            self.say_stalled(None);
        }
    }
}
