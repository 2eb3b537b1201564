//! How many nodes of a run are where: counted as they move, because a run of
//! thousands of nodes is asked after every handful of outcomes.

use super::{NodePhase, Outcome, Summary};

/// How many nodes are where.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    /// Nothing was sent to them.
    pub(super) waiting: usize,
    /// They were sent to, and have no outcome.
    pub(super) sent: usize,
    /// They have an outcome.
    pub(super) outcomes: Summary,
}

impl Tally {
    /// One more node is in that phase.
    pub(super) fn add(&mut self, phase: &NodePhase) {
        match phase {
            NodePhase::Waiting => self.waiting += 1,
            NodePhase::Sent { .. } => self.sent += 1,
            NodePhase::Done(result) => *self.outcomes.entry(result.outcome).or_default() += 1,
        }
    }

    /// One node has left that phase. An outcome is never left.
    pub(super) fn remove(&mut self, phase: &NodePhase) {
        match phase {
            NodePhase::Waiting => self.waiting -= 1,
            NodePhase::Sent { .. } => self.sent -= 1,
            NodePhase::Done(_) => {}
        }
    }

    /// How many have an outcome that counts against the budget.
    pub(super) fn failures(&self) -> usize {
        let failed = self.outcomes.iter().filter(|(o, _)| o.is_failure());
        failed.map(|(_, count)| *count as usize).sum()
    }

    /// Whether all outcomes there are, are good ones.
    pub(super) fn all_succeeded(&self) -> bool {
        self.outcomes.keys().all(|o| *o == Outcome::Succeeded)
    }
}
