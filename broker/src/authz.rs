//! Who may do what: the only way to an [`Authorized`].

use muster_protocol::api::Role;
use muster_protocol::envelope::{Door, Mode};
use muster_protocol::names::{PrincipalName, ScenarioName};
use muster_protocol::nodeset::NodeSet;

/// Who asks, as the door has established it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// The principal.
    pub principal: PrincipalName,
    /// What the token may do.
    pub role: Role,
    /// Id of the token.
    pub token: String,
    /// Through which door.
    pub door: Door,
}

/// What somebody wants to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Read nodes, their facts and their presence.
    ReadNodes,
    /// Resolve a predicate.
    MatchNodes,
    /// Ping nodes.
    Ping,
    /// Run a scenario on exactly these nodes.
    CreateRun {
        /// Which.
        scenario: ScenarioName,
        /// Apply or check.
        mode: Mode,
        /// The frozen set.
        targets: NodeSet,
    },
    /// Read runs and their output.
    ReadRuns,
    /// End a run.
    CancelRun,
    /// Ask for a run again; what then runs is judged as a run of its own.
    RetryRun,
    /// Change roles and labels of nodes.
    ChangeNodes,
    /// Remove nodes, or give their names to new machines.
    RemoveNodes,
    /// Make invites.
    Invite,
    /// List and withdraw invites.
    ManageInvites,
    /// Make, list and revoke API tokens.
    ManageTokens,
    /// Read the list of broker keys.
    ReadKeys,
    /// Rotate and revoke broker keys.
    ManageKeys,
    /// Read how the installation is.
    ReadStatus,
    /// Read cluster events.
    ReadEvents,
    /// Learn who one is.
    WhoAmI,
}

/// The answer no.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{principal} ({role}) may not {what}")]
pub struct Denied {
    /// Who.
    pub principal: PrincipalName,
    /// With which role.
    pub role: Role,
    /// What was asked, as words after "may not".
    pub what: &'static str,
}

/// Decides. The fixed roles are one implementation.
pub trait Policy: Send + Sync {
    /// Whether the caller may do this.
    fn allows(&self, caller: &Caller, action: &Action) -> bool;
}

/// The fixed roles of [`Role`].
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedRoles;

impl Policy for FixedRoles {
    fn allows(&self, caller: &Caller, action: &Action) -> bool {
        use Action as A;
        match caller.role {
            Role::Admin => true,
            Role::Operator => !matches!(action, A::RemoveNodes | A::ManageTokens | A::ManageKeys),
            Role::Reader => matches!(
                action,
                A::ReadNodes
                    | A::MatchNodes
                    | A::ReadRuns
                    | A::ReadKeys
                    | A::ReadStatus
                    | A::ReadEvents
                    | A::WhoAmI
            ),
            Role::NodeEnroller => matches!(action, A::Invite | A::WhoAmI),
        }
    }
}

impl Action {
    /// What it is, as words after "may not".
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            Self::ReadNodes => "read nodes",
            Self::MatchNodes => "resolve predicates",
            Self::Ping => "ping nodes",
            Self::CreateRun { .. } => "run anything",
            Self::ReadRuns => "read runs",
            Self::CancelRun => "cancel runs",
            Self::RetryRun => "retry runs",
            Self::ChangeNodes => "change roles and labels of nodes",
            Self::RemoveNodes => "remove or replace nodes",
            Self::Invite => "invite nodes",
            Self::ManageInvites => "list or withdraw invites",
            Self::ManageTokens => "manage API tokens",
            Self::ReadKeys => "read the broker keys",
            Self::ManageKeys => "rotate or revoke broker keys",
            Self::ReadStatus => "read the status",
            Self::ReadEvents => "read events",
            Self::WhoAmI => "ask who it is",
        }
    }
}

/// Something that its caller may do. Only [`authorize`] makes one:
///
/// ```compile_fail
/// use muster_broker::authz::Authorized;
/// let forged = Authorized { subject: (), caller: todo!() };
/// ```
#[derive(Debug)]
pub struct Authorized<T> {
    subject: T,
    caller: Caller,
}

impl<T> Authorized<T> {
    /// What may be done.
    pub fn get(&self) -> &T {
        &self.subject
    }

    /// What may be done, out of its wrapping.
    pub fn into_inner(self) -> T {
        self.subject
    }

    /// Who may do it.
    pub fn principal(&self) -> &PrincipalName {
        &self.caller.principal
    }

    /// Who may do it, in full.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

/// Asks the policy whether `caller` may do `action` to `subject`.
///
/// # Errors
/// [`Denied`].
pub fn authorize<T>(
    policy: &dyn Policy,
    caller: &Caller,
    action: Action,
    subject: T,
) -> Result<Authorized<T>, Denied> {
    if policy.allows(caller, &action) {
        return Ok(Authorized { subject, caller: caller.clone() });
    }
    tracing::warn!(
        principal = %caller.principal, role = %caller.role, token = caller.token, action = action.what(),
        "denied"
    );
    Err(Denied { principal: caller.principal.clone(), role: caller.role, what: action.what() })
}
