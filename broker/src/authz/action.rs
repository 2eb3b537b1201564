//! What somebody can want to do.

use muster_scenarios::upgrade;

use super::RunAsk;

/// Actions that policies can speak of together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Group {
    /// They change nothing.
    Read,
    /// Running something: it is an action by itself.
    Run,
    /// They change what the day's work changes.
    Change,
    /// They decide over the cluster itself.
    Manage,
}

impl Group {
    /// Its name in policies: `Action::"read"`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Run => "run",
            Self::Change => "change",
            Self::Manage => "manage",
        }
    }
}

/// What somebody wants to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Read nodes, their facts and their presence.
    ReadNodes,
    /// Resolve a predicate.
    MatchNodes,
    /// Ping nodes.
    Ping,
    /// Run a scenario on exactly these nodes.
    CreateRun(Box<RunAsk>),
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
    /// Read the policies, and ask what they say.
    ReadPolicies,
    /// Change who may do what.
    ManagePolicies,
    /// Read who asked for what.
    ReadAudit,
    /// Stop everything new on all nodes, and let it go on.
    Freeze,
    /// Read how the installation is.
    ReadStatus,
    /// Read cluster events.
    ReadEvents,
    /// Put events in.
    PutEvents,
    /// Read webhooks, triggers and routes, and try what they would do.
    ReadHooks,
    /// Look after alarms, and silence them.
    ManageAlarms,
    /// Start builds.
    StartBuilds,
    /// Tell what was heard in a chat network, and hear what is to be said
    /// there.
    Witness,
    /// Read machines, their images, networks and hypervisors.
    ReadMachines,
    /// Make, change and destroy machines.
    ManageMachines,
    /// Add and remove disk images.
    ManageImages,
    /// Change networks and hypervisors.
    ManageNetworks,
    /// Declare accounts, and keep public keys under names.
    ManageTenants,
    /// Read security groups, address sets and what they decide.
    ReadGroups,
    /// Change security groups and address sets, and who is in them.
    ManageGroups,
    /// Learn who one is.
    WhoAmI,
}

impl Action {
    /// One of each kind, for documentation and tests.
    #[must_use]
    pub fn examples() -> Vec<Self> {
        let run = |scenario: &str| {
            let name = scenario.parse().expect("a constant name");
            Self::CreateRun(Box::new(RunAsk::named(name, true)))
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
            Self::ReadPolicies,
            Self::ManagePolicies,
            Self::ReadAudit,
            Self::Freeze,
            Self::ReadStatus,
            Self::ReadEvents,
            Self::PutEvents,
            Self::ReadHooks,
            Self::ManageAlarms,
            Self::StartBuilds,
            Self::Witness,
            Self::ReadMachines,
            Self::ManageMachines,
            Self::ManageImages,
            Self::ManageNetworks,
            Self::ManageTenants,
            Self::ReadGroups,
            Self::ManageGroups,
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
            Self::CreateRun(run) if run.scenario.as_str() == upgrade::NAME => "upgrade agents",
            Self::CreateRun(_) => "run anything",
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
            Self::ReadPolicies => "read policies",
            Self::ManagePolicies => "change policies",
            Self::ReadAudit => "read the record of requests",
            Self::Freeze => "freeze or thaw the fleet",
            Self::ReadStatus => "read the status",
            Self::ReadEvents => "read events",
            Self::PutEvents => "put events in",
            Self::ReadHooks => "read webhooks, triggers and routes",
            Self::ManageAlarms => "look after alarms",
            Self::StartBuilds => "start builds",
            Self::Witness => "tell what was said in a chat network",
            Self::ReadMachines => "read machines",
            Self::ManageMachines => "make, change or destroy machines",
            Self::ManageImages => "add or remove disk images",
            Self::ManageNetworks => "change networks or hypervisors",
            Self::ManageTenants => "change accounts or ssh keys",
            Self::ReadGroups => "read security groups",
            Self::ManageGroups => "change security groups",
            Self::WhoAmI => "ask who it is",
        }
    }

    /// Its name in policies: `Action::"read-nodes"`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ReadNodes => "read-nodes",
            Self::MatchNodes => "match-nodes",
            Self::Ping => "ping",
            Self::CreateRun(_) => "run",
            Self::ReadRuns => "read-runs",
            Self::CancelRun => "cancel-run",
            Self::AnswerRun => "answer-run",
            Self::RetryRun => "retry-run",
            Self::ChangeNodes => "change-nodes",
            Self::RemoveNodes => "remove-nodes",
            Self::Invite => "invite-nodes",
            Self::ManageInvites => "manage-invites",
            Self::ManageTokens => "manage-tokens",
            Self::ReadKeys => "read-keys",
            Self::ManageKeys => "manage-keys",
            Self::Backup => "backup",
            Self::ManageReleases => "manage-releases",
            Self::ReadReleases => "read-releases",
            Self::ReadScenarios => "read-scenarios",
            Self::StoreScenarios => "store-scenarios",
            Self::ReadSchedules => "read-schedules",
            Self::ManageSchedules => "manage-schedules",
            Self::AddBroker => "add-broker",
            Self::ReadPolicies => "read-policies",
            Self::ManagePolicies => "manage-policies",
            Self::ReadAudit => "read-audit",
            Self::Freeze => "freeze",
            Self::ReadStatus => "read-status",
            Self::ReadEvents => "read-events",
            Self::PutEvents => "put-events",
            Self::ReadHooks => "read-hooks",
            Self::ManageAlarms => "manage-alarms",
            Self::StartBuilds => "start-builds",
            Self::Witness => "witness",
            Self::ReadMachines => "read-machines",
            Self::ManageMachines => "manage-machines",
            Self::ManageImages => "manage-images",
            Self::ManageNetworks => "manage-networks",
            Self::ManageTenants => "manage-tenants",
            Self::ReadGroups => "read-groups",
            Self::ManageGroups => "manage-groups",
            Self::WhoAmI => "who-am-i",
        }
    }

    /// The group of actions in policies that it is in.
    #[must_use]
    pub fn group(&self) -> Group {
        match self {
            Self::ReadNodes
            | Self::MatchNodes
            | Self::ReadRuns
            | Self::ReadKeys
            | Self::ReadReleases
            | Self::ReadScenarios
            | Self::ReadSchedules
            | Self::ReadPolicies
            | Self::ReadAudit
            | Self::ReadStatus
            | Self::ReadEvents
            | Self::ReadHooks
            | Self::ReadMachines
            | Self::ReadGroups
            | Self::WhoAmI => Group::Read,
            Self::CreateRun(_) => Group::Run,
            Self::Ping
            | Self::CancelRun
            | Self::AnswerRun
            | Self::RetryRun
            | Self::ChangeNodes
            | Self::Invite
            | Self::ManageInvites
            | Self::StoreScenarios
            | Self::ManageSchedules
            | Self::Freeze
            | Self::PutEvents
            | Self::ManageAlarms
            | Self::StartBuilds
            | Self::ManageMachines
            | Self::ManageGroups => Group::Change,
            Self::RemoveNodes
            | Self::ManageTokens
            | Self::ManageKeys
            | Self::Backup
            | Self::ManageReleases
            | Self::AddBroker
            | Self::ManagePolicies
            | Self::ManageImages
            | Self::ManageNetworks
            | Self::ManageTenants
            | Self::Witness => Group::Manage,
        }
    }
}
