//! What a run waits for before anything of it is sent, and being paused.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{RunEvent, RunPhase, RunState, Wanted};
use crate::envelope::Door;
use crate::names::{NodeName, PrincipalName};
use crate::units::Timestamp;

/// How the reason begins for which a run waits for its window.
pub const ITS_WINDOW: &str = "its window ";

/// What has to be given before anything of a run is sent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gates {
    /// Somebody who may run it has to confirm it before this moment; else it
    /// ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub confirm_by: Option<Timestamp>,
    /// How many principals other than the one who asked have to approve.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub approvals: u32,
    /// Through which doors approvals count; through any when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approve_through: Option<BTreeSet<Door>>,
    /// Locks that it holds from its beginning to its end: one run at a time
    /// has each.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub locks: BTreeSet<String>,
    /// Minutes in which it may begin, as in cron, in UTC: any of them; at any
    /// time when there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<String>,
}

impl Gate {
    /// What is waited for, in a word: `confirmation`, `approvals`, `answer`,
    /// `moment`, `window`, `lock` or `frozen`. `why` says what keeps a run from its
    /// turn, where the gate itself does not.
    #[must_use]
    pub fn word(&self, why: Option<&str>) -> &'static str {
        match self {
            Self::Confirmation { .. } => "confirmation",
            Self::Approvals { .. } => "approvals",
            Self::Answer { .. } => "answer",
            Self::Moment { .. } => "moment",
            Self::Frozen { .. } => "frozen",
            Self::Turn {
                locks,
                windows,
                why: own,
            } => {
                let why = own.as_deref().or(why);
                let window = why.is_some_and(|why| why.starts_with(ITS_WINDOW));
                match (locks.is_empty(), windows.is_empty()) {
                    (true, false) => "window",
                    (false, false) if window => "window",
                    _ => "lock",
                }
            }
        }
    }
}

impl Gates {
    /// Whether there is nothing to wait for.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }
}

/// What a run waits for: before it begins, or in its `main`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "for")]
pub enum Gate {
    /// Somebody has to confirm it.
    Confirmation {
        /// Else it ends then.
        #[schema(value_type = String, format = DateTime)]
        until: Timestamp,
    },
    /// Others have to approve it.
    Approvals {
        /// Who did.
        given: Vec<PrincipalName>,
        /// How many have to.
        needed: u32,
        /// Through which doors; through any when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        through: Option<BTreeSet<Door>>,
    },
    /// Its `main` waits for what a person says.
    Answer {
        /// The question.
        question: String,
        /// The answers that are allowed; any when empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        answers: Vec<String>,
    },
    /// Its `main` waits for a moment.
    Moment {
        /// Which.
        #[schema(value_type = String, format = DateTime)]
        until: Timestamp,
        /// It goes on as soon as this node is heard; if it is not by then,
        /// the script is told so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeName>,
    },
    /// Its window has to be open and its locks free.
    Turn {
        /// The locks that it wants.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        locks: BTreeSet<String>,
        /// When it may begin.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        windows: Vec<String>,
        /// What keeps it now, for people, as far as it is known where it is
        /// shown: who holds the lock, when the window opens.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// The fleet is frozen: nothing new is sent.
    Frozen {
        /// Who said so.
        by: PrincipalName,
        /// Why.
        why: String,
        /// Since when.
        #[schema(value_type = String, format = DateTime)]
        since: Timestamp,
    },
}

/// What a person can want of a run that has not ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// It may begin, as it was shown.
    Confirm,
    /// So says another one.
    Approve,
    /// Nothing new is sent for now.
    Pause,
    /// It goes on.
    Resume,
}

impl Wish {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Confirm, Self::Approve, Self::Pause, Self::Resume];

    /// The word: of the verb, and the last part of the route.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirm => "confirm",
            Self::Approve => "approve",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// Who wants something of a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wisher {
    /// Who.
    pub by: PrincipalName,
    /// Through which door; absent where it is the broker's own doing.
    pub door: Option<Door>,
}

/// Why a run does not do what somebody wants of it. Whoever shows it puts the
/// run in front.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WishError {
    /// It is over.
    #[error("has ended ({})", .0.as_str())]
    Ended(RunPhase),
    /// It is about to be over.
    #[error("is being cancelled")]
    Cancelling,
    /// Its nodes are being written down.
    #[error("is being written down")]
    Preparing,
    /// Nobody has to confirm it.
    #[error("waits for no confirmation")]
    NotToConfirm,
    /// Too late.
    #[error("was to be confirmed before {0}")]
    TooLate(Timestamp),
    /// Nobody has to approve it any more.
    #[error("waits for no approval")]
    NotToApprove,
    /// Four eyes are not two.
    #[error("was asked for by {0}, so somebody else has to approve it")]
    OwnRun(PrincipalName),
    /// What counts comes another way.
    #[error("counts approvals through {} only", .0.iter().map(|door| door.as_str()).collect::<Vec<_>>().join(", "))]
    Door(BTreeSet<Door>),
    /// It was not paused.
    #[error("is not paused")]
    NotPaused,
}

impl RunState {
    /// Whether everything was given that it waited for at its beginning.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.spec.gates.is_open() || self.admitted.is_some()
    }

    /// What it waits for before it begins; `None` when it has begun, is not
    /// written down yet, or will not begin.
    #[must_use]
    pub fn gate(&self) -> Option<Gate> {
        if self.has_begun() || !matches!(self.phase, RunPhase::Waiting | RunPhase::Paused) {
            return None;
        }
        let gates = &self.spec.gates;
        if let (Some(until), None) = (gates.confirm_by, &self.confirmed_by) {
            return Some(Gate::Confirmation { until });
        }
        if self.approved_by.len() < gates.approvals as usize {
            return Some(Gate::Approvals {
                given: self.approved_by.clone(),
                needed: gates.approvals,
                through: gates.approve_through.clone(),
            });
        }
        Some(Gate::Turn {
            locks: gates.locks.clone(),
            windows: gates.windows.clone(),
            why: None,
        })
    }

    /// What it waits for, before it begins or in its `main`.
    #[must_use]
    pub fn waits(&self) -> Option<Gate> {
        let open = || {
            let flow = self.flow.as_ref().filter(|_| !self.phase.is_final())?;
            match &flow.open()?.wanted {
                Wanted::Answer { question, answers } => Some(Gate::Answer {
                    question: question.clone(),
                    answers: answers.clone(),
                }),
                Wanted::Until { at } => Some(Gate::Moment {
                    until: *at,
                    node: None,
                }),
                Wanted::Contact { node, until, .. } => Some(Gate::Moment {
                    until: *until,
                    node: Some(node.clone()),
                }),
                _ => None,
            }
        };
        self.gate().or_else(open)
    }

    /// The event that does what somebody wants; `None` when it is so already.
    ///
    /// # Errors
    /// [`WishError`].
    pub fn wish(
        &self,
        wish: Wish,
        who: &Wisher,
        at: Timestamp,
    ) -> Result<Option<RunEvent>, WishError> {
        match self.phase {
            ended if ended.is_final() => return Err(WishError::Ended(ended)),
            RunPhase::Cancelling => return Err(WishError::Cancelling),
            RunPhase::Preparing => return Err(WishError::Preparing),
            _ => {}
        }
        let by = who.by.clone();
        let gates = &self.spec.gates;
        Ok(match wish {
            Wish::Confirm => {
                let until = gates.confirm_by.ok_or(WishError::NotToConfirm)?;
                if self.confirmed_by.is_some() {
                    return Ok(None);
                }
                if at >= until {
                    return Err(WishError::TooLate(until));
                }
                Some(RunEvent::Confirmed { by, at })
            }
            Wish::Approve => {
                if by == self.spec.principal && gates.approvals > 0 {
                    return Err(WishError::OwnRun(by));
                }
                if self.approved_by.contains(&by) {
                    return Ok(None);
                }
                if self.has_begun() || self.approved_by.len() >= gates.approvals as usize {
                    return Err(WishError::NotToApprove);
                }
                match &gates.approve_through {
                    Some(doors) if who.door.is_none_or(|door| !doors.contains(&door)) => {
                        return Err(WishError::Door(doors.clone()));
                    }
                    _ => {}
                }
                let door = who.door;
                Some(RunEvent::Approved { by, door, at })
            }
            Wish::Pause => (self.phase != RunPhase::Paused).then_some(RunEvent::Paused { by, at }),
            Wish::Resume if self.phase != RunPhase::Paused => return Err(WishError::NotPaused),
            Wish::Resume => Some(RunEvent::Resumed { by, at }),
        })
    }

    /// Takes an event of this page; `false` when it cannot follow.
    pub(super) fn gate_event(&mut self, event: &RunEvent) -> bool {
        let held = matches!(self.phase, RunPhase::Waiting | RunPhase::Paused);
        let before = held && !self.has_begun();
        match event {
            RunEvent::Confirmed { by, .. } => {
                let fits =
                    before && self.spec.gates.confirm_by.is_some() && self.confirmed_by.is_none();
                if fits {
                    self.confirmed_by = Some(by.clone());
                }
                fits
            }
            RunEvent::Approved { by, door, .. } => {
                let gates = &self.spec.gates;
                let through = gates.approve_through.as_ref();
                let fits = before
                    && self.approved_by.len() < gates.approvals as usize
                    && through.is_none_or(|doors| door.is_some_and(|d| doors.contains(&d)))
                    && *by != self.spec.principal
                    && !self.approved_by.contains(by);
                if fits {
                    self.approved_by.push(by.clone());
                }
                fits
            }
            RunEvent::Admitted { at } => {
                let fits = self.phase == RunPhase::Waiting
                    && matches!(self.gate(), Some(Gate::Turn { .. }));
                if fits {
                    self.admitted = Some(*at);
                    self.settle();
                }
                fits
            }
            RunEvent::Lapsed { why, .. } => {
                if before {
                    self.phase = RunPhase::Cancelling;
                    self.lapsed = Some(why.clone());
                }
                before
            }
            RunEvent::Paused { by, .. } => {
                let fits = matches!(self.phase, RunPhase::Running | RunPhase::Waiting);
                if fits {
                    self.paused_by = Some(by.clone());
                    self.settle();
                }
                fits
            }
            RunEvent::Resumed { .. } => {
                let fits = self.phase == RunPhase::Paused;
                if fits {
                    self.paused_by = None;
                    self.settle();
                }
                fits
            }
            _ => false,
        }
    }

    /// Where an open run is whose nodes are written down and that nobody has
    /// cancelled.
    pub(super) fn settle(&mut self) {
        self.phase = if self.paused_by.is_some() {
            RunPhase::Paused
        } else if self.has_begun() {
            RunPhase::Running
        } else {
            RunPhase::Waiting
        };
    }
}
