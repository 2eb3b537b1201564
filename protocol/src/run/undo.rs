//! What is taken back of a run with a `main`: steps on nodes, and machines.

use serde::{Deserialize, Serialize};

use super::flow::{PartOf, StepCall, StepEnd};
use crate::ids::RunId;
use crate::names::{NodeName, VmName};
use crate::units::Timestamp;

/// A machine that a call has made, or that may be there because of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MadeMachine {
    /// Its name.
    pub name: VmName,
    /// Where it is.
    pub hypervisor: NodeName,
}

/// What came of taking a machine back.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "end", deny_unknown_fields)]
pub enum MachineEnd {
    /// Nothing of it is there.
    Gone,
    /// Something of it may be there.
    Left {
        /// Why.
        why: String,
    },
}

/// Something that a call did, and that is taken back.
#[derive(Clone, Debug, PartialEq)]
pub struct UndoState {
    /// The call that it takes back.
    pub of: u64,
    /// When it was written down.
    pub began: Timestamp,
    /// What is done, and what came of it.
    pub back: Back,
}

/// What takes something back, and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Back {
    /// A step on nodes.
    Step {
        /// Which step of the call it takes back.
        part: u32,
        /// What is done.
        step: StepCall,
        /// What came of it.
        ended: Option<(Timestamp, StepEnd)>,
    },
    /// A machine is destroyed.
    Machine {
        /// Which.
        machine: MadeMachine,
        /// What came of it.
        ended: Option<(Timestamp, MachineEnd)>,
    },
}

impl UndoState {
    /// The run that it is, as a part of `run`; a machine is taken back by its
    /// record.
    pub(super) fn part(&self, run: RunId) -> Option<(RunId, PartOf)> {
        let Back::Step { part, step, .. } = &self.back else {
            return None;
        };
        let part = PartOf {
            run,
            call: self.of,
            part: *part,
            undo: true,
        };
        Some((step.run, part))
    }

    /// Whether it is over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        match &self.back {
            Back::Step { ended, .. } => ended.is_some(),
            Back::Machine { ended, .. } => ended.is_some(),
        }
    }

    /// Whether it is over, and something was not taken back.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        match &self.back {
            Back::Step { ended, .. } => ended.as_ref().is_some_and(|(_, end)| !end.is_well()),
            Back::Machine { ended, .. } => {
                matches!(ended, Some((_, MachineEnd::Left { .. })))
            }
        }
    }
}
