//! Who may do what: the only way to an [`Authorized`].

use std::net::IpAddr;
use std::sync::Arc;

use muster_protocol::api::Role;
use muster_protocol::envelope::{Door, Mode};
use muster_protocol::ids::RunId;
use muster_protocol::names::{HookName, PrincipalName, ScenarioName, ScheduleName, TriggerName};
use muster_protocol::nodeset::NodeSet;
use muster_scenarios::upgrade;
use serde::{Deserialize, Serialize};

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
    /// Where exactly it came from.
    pub origin: Origin,
}

/// Where exactly a request came from: for policies, and for the record.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Not known: a run that was read back from its journal.
    #[default]
    Unknown,
    /// The other end of the connection.
    Address(IpAddr),
    /// The time of this schedule had come.
    Schedule(ScheduleName),
    /// The `main` of this run asks.
    Run(RunId),
    /// An event fitted a trigger.
    Hook {
        /// The webhook that the event came through, if it came through one.
        hook: Option<HookName>,
        /// Which delivery of that it was.
        delivery: Option<String>,
        /// The trigger.
        trigger: TriggerName,
        /// The event's id.
        event: String,
    },
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
    /// Answer what a run asks.
    AnswerRun,
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
    /// Read everything that the cluster is, its secrets included.
    Backup,
    /// Upload and remove agent releases.
    ManageReleases,
    /// Read which agent releases there are.
    ReadReleases,
    /// Read stored scenarios.
    ReadScenarios,
    /// Store scenarios, and remove them.
    StoreScenarios,
    /// Read schedules.
    ReadSchedules,
    /// Make schedules, and remove them.
    ManageSchedules,
    /// Take what another broker needs: the cluster's keys.
    AddBroker,
    /// Read how the installation is.
    ReadStatus,
    /// Read cluster events.
    ReadEvents,
    /// Put events in.
    PutEvents,
    /// Read webhooks, triggers and routes, and try what they would do.
    ReadHooks,
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

impl FixedRoles {
    /// Whether that role may do this.
    #[must_use]
    pub fn may(role: Role, action: &Action) -> bool {
        use Action as A;
        match role {
            Role::Admin => true,
            Role::Operator => match action {
                A::RemoveNodes
                | A::ManageTokens
                | A::ManageKeys
                | A::Backup
                | A::AddBroker
                | A::ManageReleases => false,
                // What an agent is decides over everything on its node.
                A::CreateRun { scenario, .. } => scenario.as_str() != upgrade::NAME,
                _ => true,
            },
            Role::Reader => matches!(
                action,
                A::ReadNodes
                    | A::MatchNodes
                    | A::ReadRuns
                    | A::ReadKeys
                    | A::ReadReleases
                    | A::ReadScenarios
                    | A::ReadSchedules
                    | A::ReadStatus
                    | A::ReadEvents
                    | A::ReadHooks
                    | A::WhoAmI
            ),
            Role::NodeEnroller => matches!(action, A::Invite | A::WhoAmI),
        }
    }
}

impl Policy for FixedRoles {
    fn allows(&self, caller: &Caller, action: &Action) -> bool {
        Self::may(caller.role, action)
    }
}

impl Action {
    /// One of each kind, for documentation and tests.
    #[must_use]
    pub fn examples() -> Vec<Self> {
        let run = |scenario: &str| Self::CreateRun {
            scenario: scenario.parse().expect("a constant name"),
            mode: Mode::Apply,
            targets: NodeSet::new(),
        };
        vec![
            Self::ReadNodes,
            Self::MatchNodes,
            Self::Ping,
            run("command"),
            run(upgrade::NAME),
            Self::ReadRuns,
            Self::CancelRun,
            Self::AnswerRun,
            Self::RetryRun,
            Self::ChangeNodes,
            Self::RemoveNodes,
            Self::Invite,
            Self::ManageInvites,
            Self::ManageTokens,
            Self::ReadKeys,
            Self::ManageKeys,
            Self::Backup,
            Self::ManageReleases,
            Self::ReadReleases,
            Self::ReadScenarios,
            Self::StoreScenarios,
            Self::ReadSchedules,
            Self::ManageSchedules,
            Self::AddBroker,
            Self::ReadStatus,
            Self::ReadEvents,
            Self::PutEvents,
            Self::ReadHooks,
            Self::WhoAmI,
        ]
    }

    /// What it is, as words after "may not".
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            Self::ReadNodes => "read nodes",
            Self::MatchNodes => "resolve predicates",
            Self::Ping => "ping nodes",
            Self::CreateRun { scenario, .. } if scenario.as_str() == upgrade::NAME => {
                "upgrade agents"
            }
            Self::CreateRun { .. } => "run anything",
            Self::ReadRuns => "read runs",
            Self::CancelRun => "cancel runs",
            Self::AnswerRun => "answer runs",
            Self::RetryRun => "retry runs",
            Self::ChangeNodes => "change roles and labels of nodes",
            Self::RemoveNodes => "remove or replace nodes",
            Self::Invite => "invite nodes",
            Self::ManageInvites => "list or withdraw invites",
            Self::ManageTokens => "manage API tokens",
            Self::ReadKeys => "read the broker keys",
            Self::ManageKeys => "rotate or revoke broker keys",
            Self::Backup => "make backups",
            Self::ManageReleases => "upload or remove agent releases",
            Self::ReadReleases => "read agent releases",
            Self::ReadScenarios => "read scenarios",
            Self::StoreScenarios => "store or remove scenarios",
            Self::ReadSchedules => "read schedules",
            Self::ManageSchedules => "add or remove schedules",
            Self::AddBroker => "add brokers",
            Self::ReadStatus => "read the status",
            Self::ReadEvents => "read events",
            Self::PutEvents => "put events in",
            Self::ReadHooks => "read webhooks, triggers and routes",
            Self::WhoAmI => "ask who it is",
        }
    }
}

/// Something that its caller may do. Only [`authorize`] makes one:
///
/// ```compile_fail,E0451
/// fn forge(caller: muster_broker::authz::Caller) {
///     let _ = muster_broker::authz::Authorized { subject: (), caller };
/// }
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

/// The one who is asked before anything is done.
#[derive(Clone)]
pub struct Guard {
    policy: Arc<dyn Policy>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl Guard {
    /// A guard who goes by this policy.
    #[must_use]
    pub fn new(policy: Arc<dyn Policy>) -> Self {
        Self { policy }
    }

    /// [`authorize`], of a request that came through a door.
    ///
    /// # Errors
    /// [`Denied`].
    #[expect(
        clippy::unused_async,
        reason = "what was decided is going to be written down here"
    )]
    pub async fn authorize<T>(
        &self,
        caller: &Caller,
        action: Action,
        subject: T,
    ) -> Result<Authorized<T>, Denied> {
        authorize(&*self.policy, caller, action, subject)
    }

    /// What it goes by: for questions that are no request of their own.
    #[must_use]
    pub fn policy(&self) -> &dyn Policy {
        &*self.policy
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
        return Ok(Authorized {
            subject,
            caller: caller.clone(),
        });
    }
    tracing::warn!(
        principal = %caller.principal, role = %caller.role, token = caller.token, action = action.what(),
        "denied"
    );
    Err(Denied {
        principal: caller.principal.clone(),
        role: caller.role,
        what: action.what(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role) -> Caller {
        Caller {
            principal: "ana".parse().unwrap(),
            role,
            token: "t".into(),
            door: Door::Http,
            origin: Origin::Unknown,
        }
    }

    #[test]
    fn who_may_do_what() {
        let mut table = String::new();
        for action in Action::examples() {
            let may: Vec<_> = Role::ALL
                .iter()
                .filter(|role| authorize(&FixedRoles, &caller(**role), action.clone(), ()).is_ok())
                .map(|role| role.as_str())
                .collect();
            table += &format!("{:<34} {}\n", action.what(), may.join(" "));
        }
        insta::assert_snapshot!(table, @r"
        read nodes                         admin operator reader
        resolve predicates                 admin operator reader
        ping nodes                         admin operator
        run anything                       admin operator
        upgrade agents                     admin
        read runs                          admin operator reader
        cancel runs                        admin operator
        answer runs                        admin operator
        retry runs                         admin operator
        change roles and labels of nodes   admin operator
        remove or replace nodes            admin
        invite nodes                       admin operator node-enroller
        list or withdraw invites           admin operator
        manage API tokens                  admin
        read the broker keys               admin operator reader
        rotate or revoke broker keys       admin
        make backups                       admin
        upload or remove agent releases    admin
        read agent releases                admin operator reader
        read scenarios                     admin operator reader
        store or remove scenarios          admin operator
        read schedules                     admin operator reader
        add or remove schedules            admin operator
        add brokers                        admin
        read the status                    admin operator reader
        read events                        admin operator reader
        put events in                      admin operator
        read webhooks, triggers and routes admin operator reader
        ask who it is                      admin operator reader node-enroller
        ");
    }

    #[test]
    fn a_denial_says_who_and_what() {
        let denied = authorize(&FixedRoles, &caller(Role::Reader), Action::Ping, ()).unwrap_err();
        assert_eq!(denied.to_string(), "ana (reader) may not ping nodes");
        let allowed = authorize(&FixedRoles, &caller(Role::Admin), Action::Ping, 7).unwrap();
        assert_eq!((*allowed.get(), allowed.principal().as_str()), (7, "ana"));
    }
}
