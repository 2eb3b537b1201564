//! What can happen to a run: its journal.

use serde::{Deserialize, Serialize};

use super::{
    MachineEnd, MadeMachine, MainEnd, NodeResult, Record, RunSpec, StepCall, StepEnd, Target,
    Wanted, is_zero,
};
use crate::envelope::Door;
use crate::names::PrincipalName;
use crate::nodeset::NodeSet;
use crate::units::Timestamp;

/// Most targets in one [`RunEvent::Targets`], so that an event stays far below
/// the largest NATS message.
pub const TARGETS_PER_EVENT: usize = 4_000;
/// Most results in one [`RunEvent::Outcomes`].
pub const RESULTS_PER_EVENT: usize = 1_000;

/// How a run ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunEnd {
    /// Every node succeeded.
    Succeeded,
    /// Some node did not.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// It failed or was cancelled, and what it had done could not be taken
    /// back everywhere.
    UndoFailed,
    /// Its `main` did something else than it had done before.
    Diverged,
}

/// What can happen to a run. Serialised, this is its journal.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event", deny_unknown_fields)]
pub enum RunEvent {
    /// First event: intent, before anything else.
    Created {
        /// Everything that is fixed.
        spec: Box<RunSpec>,
    },
    /// A page of the frozen set, in the order in which nodes are taken.
    Targets {
        /// The nodes.
        nodes: Vec<Target>,
    },
    /// Somebody has confirmed it.
    Confirmed {
        /// Who.
        by: PrincipalName,
        /// When.
        at: Timestamp,
    },
    /// Another principal has approved it.
    Approved {
        /// Who.
        by: PrincipalName,
        /// Through which door.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        door: Option<Door>,
        /// When.
        at: Timestamp,
    },
    /// It begins: its window is open, and from here to the end it holds its
    /// locks.
    Admitted {
        /// When.
        at: Timestamp,
    },
    /// What it waited for did not come in time: nothing is ever sent.
    Lapsed {
        /// What, for people.
        why: String,
        /// When.
        at: Timestamp,
    },
    /// Somebody wants it to wait: what was sent goes on, nothing new is.
    Paused {
        /// Who.
        by: PrincipalName,
        /// When.
        at: Timestamp,
    },
    /// It goes on.
    Resumed {
        /// Who said so.
        by: PrincipalName,
        /// When.
        at: Timestamp,
    },
    /// Intent to send: in the journal before the request is on the wire.
    Intent {
        /// Which batch, from 0.
        batch: u32,
        /// The nodes it is sent to.
        nodes: NodeSet,
        /// When, by the broker's clock.
        at: Timestamp,
    },
    /// Outcomes of nodes that had none.
    Outcomes {
        /// One each.
        results: Vec<NodeResult>,
        /// When they were taken down.
        at: Timestamp,
    },
    /// An answer that came after the node's outcome was settled. It changes
    /// nothing but is not forgotten.
    Late {
        /// What the node said.
        result: NodeResult,
        /// When it came.
        at: Timestamp,
    },
    /// Somebody asked for the end.
    Cancelling {
        /// Who.
        by: PrincipalName,
        /// When.
        at: Timestamp,
    },
    /// Calls of `main` that were answered at once.
    Recorded {
        /// The number of the first.
        from: u64,
        /// In order.
        records: Vec<Record>,
        /// When.
        at: Timestamp,
    },
    /// A call of `main` that waits: in the journal before anything of it is
    /// done.
    Called {
        /// Its number.
        number: u64,
        /// The function's name.
        call: String,
        /// Over the call and its arguments.
        hash: String,
        /// Its line in the script.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        line: Option<u32>,
        /// What it waits for.
        wanted: Wanted,
        /// When.
        at: Timestamp,
    },
    /// A part of the text of a reply that is too long for one event; the last
    /// one is in [`RunEvent::Answered`].
    ReplyPart {
        /// The number of the call.
        number: u64,
        /// Which part, from 0; with 0 it begins again.
        part: u32,
        /// The text.
        text: String,
    },
    /// What a call of `main` returned.
    Answered {
        /// The number of the call.
        number: u64,
        /// The reply as JSON text, after the parts before it.
        reply: String,
        /// What came of each of its steps.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        steps: Vec<StepEnd>,
        /// The machine that is there because of it, or may be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        machine: Option<MadeMachine>,
        /// Who answered a question.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<PrincipalName>,
        /// What was answered.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// The error that the script was told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// When.
        at: Timestamp,
    },
    /// `main` has come to its end.
    MainEnded {
        /// How.
        end: MainEnd,
        /// When.
        at: Timestamp,
    },
    /// A step is taken back: in the journal before anything of that is done.
    Undoing {
        /// Its number, from 0.
        index: u32,
        /// The call whose step it takes back.
        of: u64,
        /// Which of its steps.
        #[serde(default, skip_serializing_if = "is_zero")]
        part: u32,
        /// What is done.
        step: StepCall,
        /// When.
        at: Timestamp,
    },
    /// What came of it.
    Undone {
        /// Its number.
        index: u32,
        /// What came of it.
        end: StepEnd,
        /// When.
        at: Timestamp,
    },
    /// A machine is taken back: in the journal before anything of that is done.
    Unmaking {
        /// Its number, from 0, over all that is taken back.
        index: u32,
        /// The call that has made it.
        of: u64,
        /// Which.
        machine: MadeMachine,
        /// When.
        at: Timestamp,
    },
    /// What came of that.
    Unmade {
        /// Its number.
        index: u32,
        /// What came of it.
        end: MachineEnd,
        /// When.
        at: Timestamp,
    },
    /// Last event but for [`RunEvent::Late`] and [`RunEvent::OutputRemoved`].
    Finished {
        /// How.
        end: RunEnd,
        /// When.
        at: Timestamp,
    },
    /// Retention takes the output of an ended run away; the rest of its
    /// journal stays. In the journal before the output goes, so that "removed"
    /// is never taken for "there was none".
    OutputRemoved {
        /// When.
        at: Timestamp,
    },
}

impl RunEvent {
    /// The word that stands for its kind in the journal.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::Targets { .. } => "targets",
            Self::Confirmed { .. } => "confirmed",
            Self::Approved { .. } => "approved",
            Self::Admitted { .. } => "admitted",
            Self::Lapsed { .. } => "lapsed",
            Self::Paused { .. } => "paused",
            Self::Resumed { .. } => "resumed",
            Self::Intent { .. } => "intent",
            Self::Outcomes { .. } => "outcomes",
            Self::Late { .. } => "late",
            Self::Cancelling { .. } => "cancelling",
            Self::Recorded { .. } => "recorded",
            Self::Called { .. } => "called",
            Self::ReplyPart { .. } => "reply_part",
            Self::Answered { .. } => "answered",
            Self::MainEnded { .. } => "main_ended",
            Self::Undoing { .. } => "undoing",
            Self::Undone { .. } => "undone",
            Self::Unmaking { .. } => "unmaking",
            Self::Unmade { .. } => "unmade",
            Self::Finished { .. } => "finished",
            Self::OutputRemoved { .. } => "output_removed",
        }
    }
}
