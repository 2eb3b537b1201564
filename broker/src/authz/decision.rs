//! What a policy answers.

use std::collections::BTreeSet;
use std::fmt;

use muster_protocol::api::{PrincipalKind, Role};
use muster_protocol::envelope::Door;
use muster_protocol::names::PrincipalName;
use muster_protocol::run::Gates;
use serde::{Deserialize, Serialize};

use crate::audit::AuditError;

/// The name of one policy: what its `@id` says, else its place in the text.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct PolicyId(String);

impl PolicyId {
    /// A policy of that name.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The answer yes, and what it asks for in return.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Grant {
    /// How many others have to approve, at least.
    pub approvals: u32,
    /// Through which doors approvals count; any when absent.
    pub doors: Option<BTreeSet<Door>>,
    /// The policies that permit it.
    pub by: Vec<PolicyId>,
}

impl Grant {
    /// Whether what is asked for is among what a run has waited for.
    #[must_use]
    pub fn is_met_by(&self, gates: &Gates) -> bool {
        self.approvals <= gates.approvals
    }

    /// Puts what is asked for into what a run waits for before it begins.
    pub(super) fn oblige(&self, gates: &mut Gates) {
        gates.approvals = gates.approvals.max(self.approvals);
        if let Some(doors) = &self.doors {
            gates.approve_through = match &gates.approve_through {
                None => Some(doors.clone()),
                Some(own) => Some(own.intersection(doors).copied().collect()),
            };
        }
        if gates.approvals == 0 {
            gates.approve_through = None;
        }
    }
}

/// The answer no.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{principal} ({}) may not {what}{}", .kind.map_or(.role.as_str(), |kind| kind.as_str()), .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
pub struct Denied {
    /// Who.
    pub principal: PrincipalName,
    /// With which role.
    pub role: Role,
    /// What it is, where the policies say.
    pub kind: Option<PrincipalKind>,
    /// What was asked, as words after "may not".
    pub what: String,
    /// What says so; nothing where the role alone does.
    pub why: Option<String>,
    /// The policies that forbid it.
    pub by: Vec<PolicyId>,
}

/// Why nothing may be done.
#[derive(Debug, thiserror::Error)]
pub enum Unauthorized {
    /// The policy says no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// It could not be written down that it was asked.
    #[error(transparent)]
    Unrecorded(#[from] AuditError),
}

/// What a policy answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Yes.
    Allow(Grant),
    /// No.
    Deny(Box<Denied>),
}

impl Decision {
    /// Whether it is yes.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The grant, or why there is none.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn granted(self) -> Result<Grant, Denied> {
        match self {
            Self::Allow(grant) => Ok(grant),
            Self::Deny(denied) => Err(*denied),
        }
    }
}
