//! The fixed roles: what a cluster goes by until it has policies of its own.

use muster_protocol::api::Role;
use muster_scenarios::upgrade;

use super::{Action, Caller, Decision, Denied, Grant, Group, Policy};

/// The fixed roles of [`Role`].
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedRoles;

impl FixedRoles {
    /// Whether that role may do this.
    #[must_use]
    pub fn may(role: Role, action: &Action) -> bool {
        use Action as A;
        if matches!(action, A::WhoAmI) {
            return true;
        }
        match role {
            Role::Admin => true,
            Role::Operator => match action {
                // What an agent is decides over everything on its node.
                A::CreateRun(run) => run.scenario.as_str() != upgrade::NAME,
                _ => action.group() != Group::Manage,
            },
            Role::Reader => action.group() == Group::Read,
            Role::NodeEnroller => matches!(action, A::Invite),
            Role::Member => false,
            Role::Witness => matches!(action, A::Witness),
        }
    }
}

impl Policy for FixedRoles {
    fn decide(&self, caller: &Caller, action: &Action) -> Decision {
        if Self::may(caller.role, action) {
            return Decision::Allow(Grant::default());
        }
        Decision::Deny(Box::new(Denied {
            principal: caller.principal.clone(),
            role: caller.role,
            kind: None,
            what: action.what().to_owned(),
            why: None,
            by: Vec::new(),
        }))
    }
}
