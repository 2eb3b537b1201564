//! The shapes of the HTTP API, `/v1`.
//!
//! | route | request → answer |
//! |---|---|
//! | `GET /v1/nodes?match=&allow_unknown=&cursor=&limit=` | → [`Page`]`<`[`NodeView`]`>` |
//! | `GET /v1/nodes/{name}` | → [`NodeView`] |
//! | `PATCH /v1/nodes/{name}` | [`NodeChange`] → [`NodeChanged`] |
//! | `DELETE /v1/nodes/{name}` | → 204 |
//! | `POST /v1/nodes/{name}/replace` | [`ReplaceRequest`] → [`Invite`] |
//! | `POST /v1/match` | [`MatchRequest`] → [`MatchAnswer`] |
//! | `POST /v1/ping` | [`PingRequest`] → [`PingAnswer`] |
//! | `POST /v1/runs` | [`RunRequest`] → [`RunView`], or 428 with a [`Plan`] |
//! | `POST /v1/runs/{run}/answer` | [`AnswerRequest`] → [`RunView`] |
//! | `GET /v1/runs?cursor=&limit=&parts=` | → [`Page`]`<`[`RunBrief`]`>` |
//! | `GET /v1/runs/{run}` | → [`RunView`] |
//! | `POST /v1/runs/{run}/cancel` | → [`RunView`] |
//! | `POST /v1/runs/{run}/retry` | [`RetryRequest`] → [`RunView`], or 428 |
//! | `GET /v1/runs/{run}/events` | → SSE of [`Frame`] |
//! | `POST /v1/invites` | [`InviteRequest`] → [`Invites`] |
//! | `GET /v1/invites` | → [`Page`]`<`[`InviteView`]`>` |
//! | `DELETE /v1/invites/{id}` | → 204 |
//! | `POST /v1/tokens` | [`TokenRequest`] → [`TokenCreated`] |
//! | `GET /v1/tokens` | → [`Page`]`<`[`TokenView`]`>` |
//! | `DELETE /v1/tokens/{id}` | → 204 |
//! | `GET /v1/keys` | → [`Keys`] |
//! | `POST /v1/keys/rotate` | → [`Keys`] |
//! | `POST /v1/keys/{id}/revoke` | → [`Keys`] |
//! | `GET /v1/events?after=&limit=&kind=&subject=&since=` | → [`Page`]`<`[`ClusterEvent`]`>` |
//! | `POST /v1/events` | [`CloudEvent`], or several → [`EventsStored`] |
//! | `GET /v1/events/watch?kind=&subject=` | → SSE of [`ClusterEvent`] |
//! | `GET /v1/hooks` | → [`Page`]`<`[`HookView`]`>` |
//! | `POST /v1/hooks/{name}/test` | [`HookTest`] → [`Page`]`<`[`HookTested`]`>` |
//! | `GET /v1/triggers` | → [`Page`]`<`[`TriggerView`]`>` |
//! | `GET /v1/routes` | → [`Page`]`<`[`RouteView`]`>` |
//! | `POST /hooks/{name}` (signed) | what the product sends → 204 |
//! | `GET /v1/status` | → [`Status`] |
//! | `GET /v1/whoami` | → [`WhoAmI`] |
//! | `GET /v1/trust` (open) | → [`crate::wire::Trust`] |
//! | `POST /v1/agent/challenge` (open) | → [`Challenge`] |
//! | `POST /v1/enroll` (by invite) | [`crate::wire::EnrollRequest`] → [`crate::wire::CredentialsAnswer`] |
//! | `POST /v1/agent/credentials` (by node key) | [`crate::wire::CredentialsRequest`] → [`crate::wire::CredentialsAnswer`] |
//! | `POST /v1/agent/release` (by node key) | [`crate::wire::ReleaseRequest`] → bytes |
//! | `GET /v1/releases` | → [`Page`]`<`[`ReleaseView`]`>` |
//! | `PUT /v1/releases/{sha256}` | [`ReleaseOffer`] → [`ReleaseUpload`] |
//! | `PUT /v1/releases/{sha256}/parts/{part}` | bytes → 204 |
//! | `POST /v1/releases/{sha256}/commit` | → [`ReleaseView`] |
//! | `DELETE /v1/releases/{sha256}` | → 204 |
//! | `GET /v1/scenarios` | → [`Page`]`<`[`ScenarioVersion`]`>` |
//! | `GET /v1/scenarios/{name}?version=` | → [`ScenarioView`] |
//! | `GET /v1/scenarios/{name}/bundle?version=` | → bytes |
//! | `PUT /v1/scenarios/{name}` | [`PutScenario`], or a packed bundle → [`ScenarioStored`] |
//! | `DELETE /v1/scenarios/{name}?expect=&note=` | → [`ScenarioStored`] |
//! | `GET /v1/scenarios/{name}/history` | → [`Page`]`<`[`ScenarioVersion`]`>` |
//! | `POST /v1/scenarios/{name}/rollback` | [`RollbackScenario`] → [`ScenarioStored`] |
//! | `GET /v1/schedules?next=` | → [`Page`]`<`[`ScheduleView`]`>` |
//! | `GET /v1/schedules/{name}?next=` | → [`ScheduleView`] |
//! | `PUT /v1/schedules/{name}` | [`PutSchedule`] → [`ScheduleView`] |
//! | `DELETE /v1/schedules/{name}` | → 204 |
//! | `POST /v1/chat/lines` | [`ChatLine`] → [`ChatAnswer`] |
//! | `GET /v1/chat/feed?network=` | → SSE of [`Utterance`] |
//! | `POST /v1/chat/links` | → [`ChatLink`] |
//! | `POST /v1/chat/device` | [`ChatDeviceRequest`] → [`ChatDevice`] |
//! | `DELETE /v1/chat/device` | → 204 |
//! | `GET /v1/vms?match=&deleted=&cursor=&limit=` | → [`Page`]`<`[`VmView`]`>` |
//! | `GET /v1/vms?brief=true` and so on | → [`Page`]`<`[`VmBrief`]`>` |
//! | `POST /v1/vms` | [`CreateVms`] → [`VmsCreated`] |
//! | `GET /v1/vms/{name}` | → [`VmView`] |
//! | `DELETE /v1/vms/{name}?purge=` | → [`VmChanged`] |
//! | `POST /v1/vms/{name}/actions` | [`VmAction`] → [`VmChanged`] |
//! | `GET /v1/images` | → [`Page`]`<`[`ImageView`]`>` |
//! | `PUT /v1/images/{name}` | [`PutImage`] → [`ImageUpload`] |
//! | `PUT /v1/images/{name}/parts/{part}` | bytes → 204 |
//! | `POST /v1/images/{name}/commit` | → [`ImageView`] |
//! | `DELETE /v1/images/{name}` | → 204 |
//! | `GET /v1/networks` | → [`Page`]`<`[`NetworkView`]`>` |
//! | `GET /v1/networks/{name}` | → [`NetworkView`] |
//! | `PUT /v1/networks/{name}` | [`PutNetwork`] → [`NetworkView`] |
//! | `DELETE /v1/networks/{name}` | → 204 |
//! | `GET /v1/ssh-keys` | → [`Page`]`<`[`SshKeyView`]`>` |
//! | `GET /v1/ssh-keys/{name}` | → [`SshKeyView`] |
//! | `PUT /v1/ssh-keys/{name}` | [`PutSshKey`] → [`SshKeyView`] |
//! | `DELETE /v1/ssh-keys/{name}` | → 204 |
//! | `GET /v1/accounts` | → [`Page`]`<`[`AccountView`]`>` |
//! | `PUT /v1/accounts/{name}` | [`PutAccount`] → [`AccountView`] |
//! | `DELETE /v1/accounts/{name}` | → 204 |
//! | `GET /v1/hypervisors` | → [`Page`]`<`[`HypervisorView`]`>` |
//! | `PATCH /v1/hypervisors/{node}` | [`HypervisorChange`] → [`HypervisorView`] |
//! | `POST /v1/hypervisors/{node}/drain` | [`DrainHypervisor`] → [`Drained`] |
//! | `POST /v1/hypervisors/{node}/adopt` | [`AdoptHypervisor`] → [`Adopted`] |
//! | `POST /v1/agent/image` (by node key) | [`crate::wire::ImageRequest`] → bytes |
//! | `POST /v1/agent/seed` (by node key) | [`crate::wire::SeedRequest`] → [`crate::vm::SeedText`] |
//! | `POST /v1/firewall/nodes/{name}` | [`NodeFirewallAsk`] → [`RunView`] |
//! | `POST /v1/agent/firewall/addresses` (by node key) | [`crate::firewall::AddressesRequest`] → [`crate::firewall::RoleAddresses`] |
//! | `POST /v1/agent/firewall/confirm` (by node key) | [`crate::firewall::ConfirmRequest`] → [`crate::firewall::Confirmation`] |
//! | `GET /healthz`, `/readyz`, `/openapi.json` (open) | |
//!
//! Wherever a route takes `{run}`, a prefix of at least four characters that
//! stands for one run will do.

mod brokers;
mod chat;
mod cluster;
mod event;
mod frame;
mod freeze;
mod hook;
mod image;
mod network;
mod node_firewall;
mod policy;
mod release;
mod run;
mod scenario;
mod schedule;
mod secret;
mod steps;
mod tenant;
mod vm;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

pub use self::cluster::{KeyView, Keys, Removed, Space};
pub use self::image::{IMAGE_PART, ImageUpload, ImageView, PutImage};
pub use self::network::{NetworkView, PutNetwork};
pub use self::node_firewall::NodeFirewallAsk;
pub(crate) use self::secret::exposed;
pub use self::tenant::{AccountView, PutAccount, PutSshKey, SshKeyView};
pub use self::vm::{
    AdoptHypervisor, Adopted, Configure, Configured, CreateVms, DrainHypervisor, Drained,
    DrainedVm, DriftView, HypervisorChange, HypervisorView, Looked, MAX_USER_DATA, Strategy,
    VmAction, VmBrief, VmChanged, VmPlan, VmStatus, VmView, VmsCreated,
};
use crate::ids::{ClusterId, Serial};
use crate::keys::Fingerprint;
use crate::names::{LabelKey, LabelValue, NodeName, PrincipalName, RoleName};
use crate::run::is_zero;
pub use brokers::{BrokerPlace, BrokerView, StandbyKit};
pub use chat::{
    ChatAccount, ChatAnswer, ChatDevice, ChatDeviceRequest, ChatLine, ChatLink, ChatPerson,
    ChatPlace, MAX_CHAT_LINE, Say, Speaker, Tone, Urgency, Utterance, Vouched,
};
pub use event::{
    CloudEvent, ClusterEvent, EventStored, EventsStored, NotAnEvent, OWN_SOURCE, SPEC_VERSION,
};
pub use frame::Frame;
pub use freeze::{FreezeRequest, FreezeView, ThawRequest};
pub use hook::{
    HookKind, HookTest, HookTested, HookView, RouteView, TriggerLast, TriggerTested, TriggerView,
};
pub use policy::{
    ExplainRequest, Explained, ExplainedClass, PolicyFiles, PolicySchema, PolicyStored,
    PolicyVersion, PolicyView, PrincipalKind, PrincipalView, PutPolicy,
};
pub use release::{ReleaseOffer, ReleaseUpload, ReleaseView, UPLOAD_PART};
pub use run::{
    Confirm, Plan, PlanRef, PlanRefError, PlanSet, RetryRequest, RunBrief, RunNode, RunRequest,
    RunView,
};
pub use scenario::{
    BudgetView, FunctionView, ManifestView, ParamView, PutScenario, RollbackScenario,
    STOCK_VERSION, ScenarioFile, ScenarioStored, ScenarioVersion, ScenarioView, version_shown,
};
pub use schedule::{LastStart, PutSchedule, ScheduleView, WhenMissed};
pub use secret::{ApiToken, InviteToken, Secret, TokenError};
pub use steps::{
    AnswerRequest, CALLS_SHOWN, CallView, MachineFate, MainMachine, MainView, StepView,
};

use crate::units::{Span, Timestamp};
use crate::wire::AgentInfo;

/// Header by which a client names its door; the broker takes `cli` and
/// `http`, and everything else as `http`.
pub const DOOR_HEADER: &str = "muster-door";

/// A page of a list.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Pass it as `cursor` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Whether a node is there.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Its heartbeats arrive.
    Up,
    /// Two or more are missing.
    Late,
    /// Gone: it said so, its connection ended, or too many are missing.
    Down,
    /// Enrolled, and never seen since this broker started and before.
    Never,
}

impl Presence {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Up, Self::Late, Self::Down, Self::Never];

    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Late => "late",
            Self::Down => "down",
            Self::Never => "never",
        }
    }
}

/// Something about a node that an operator should look at.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "condition")]
pub enum Condition {
    /// Two machines live with its key; both are refused until `replace`.
    Cloned,
    /// Its clock is off by so many milliseconds (positive: ahead).
    ClockSkew {
        /// Milliseconds.
        ms: i64,
    },
    /// Its agent is of a version that cannot work with this broker.
    Incompatible {
        /// The agent's protocol.
        protocol: u32,
    },
    /// It has not taken up its newest roles and labels yet.
    Stale {
        /// The revision that it holds.
        revision: u64,
    },
    /// It refused messages that look like an attack.
    Refusing {
        /// How many since its start, by kind.
        counts: BTreeMap<String, u64>,
    },
    /// It sends more than it may, and the rest is thrown away.
    Flooding,
    /// What the node itself noticed, such as a fact with a label's name.
    Note {
        /// For people.
        text: String,
    },
}

/// A node, as people see it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Its enrolment serial.
    pub serial: Serial,
    /// Its roles.
    pub roles: Vec<RoleName>,
    /// Its labels.
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// What it reports about itself.
    #[schema(value_type = Object)]
    pub facts: serde_json::Map<String, Value>,
    /// Whether it is there.
    pub state: Presence,
    /// When it was last heard.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_seen: Option<Timestamp>,
    /// Version of its agent, as it said last.
    pub version: Option<String>,
    /// What its agent said about itself last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentInfo>,
    /// Whether it is one of the broker's own machines.
    pub infrastructure: bool,
    /// When it enrolled.
    #[schema(value_type = String, format = DateTime)]
    pub enrolled: Timestamp,
    /// Fingerprint of its identity key.
    pub key: Fingerprint,
    /// What an operator should look at.
    pub conditions: Vec<Condition>,
}

/// Changes of a node's roles and labels: in one go, or not at all.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeChange {
    /// Roles to give.
    pub add_roles: Vec<RoleName>,
    /// Roles to take.
    pub remove_roles: Vec<RoleName>,
    /// Labels to set.
    #[schema(value_type = BTreeMap<String, String>)]
    pub set_labels: BTreeMap<LabelKey, LabelValue>,
    /// Labels to take away.
    pub remove_labels: Vec<LabelKey>,
    /// Marks the node as one of the broker's own machines, or not.
    pub infrastructure: Option<bool>,
}

/// The answer to a [`NodeChange`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct NodeChanged {
    /// The node as it is now.
    pub node: NodeView,
    /// Whether the node itself has taken it up; when it is down, it will on
    /// its return.
    pub applied: bool,
}

/// New machine, same name and roles.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplaceRequest {
    /// How long the invite lives; an hour when absent.
    pub expires: Option<Span>,
}

/// Which nodes match.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchRequest {
    /// The predicate.
    pub predicate: String,
    /// Names that no node has are meant.
    #[serde(default)]
    pub allow_unknown: bool,
    /// Explain the decision on this node.
    #[serde(default)]
    pub explain: Option<NodeName>,
}

/// The nodes that match, by name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct MatchAnswer {
    /// The predicate in canonical form.
    pub predicate: String,
    /// Sorted names.
    pub nodes: Vec<NodeName>,
    /// How many of them are the broker's own machines, which a run leaves out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u32,
    /// With `explain`: whether that node matches, and which clause decided,
    /// for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<ExplainView>,
}

/// Why a node matches or not.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ExplainView {
    /// The node.
    pub node: NodeName,
    /// Whether it matches.
    pub matches: bool,
    /// For people, one clause a line.
    pub text: String,
}

/// Who answers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PingRequest {
    /// The predicate.
    pub predicate: String,
    /// Names that no node has are meant.
    #[serde(default)]
    pub allow_unknown: bool,
    /// How long to wait for the last one; 2 s when absent, at most 60 s.
    #[serde(default)]
    pub timeout: Option<Span>,
}

/// The answers to a ping.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct PingAnswer {
    /// How many were asked.
    pub asked: u32,
    /// Round trip of each that answered, in microseconds, in the order of
    /// arrival.
    pub answered: Vec<PingReply>,
    /// Who did not, and what is known about them.
    pub silent: Vec<Silent>,
    /// From the first byte sent to the last answer, in microseconds.
    pub total_us: u64,
}

/// One answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct PingReply {
    /// The node.
    pub node: NodeName,
    /// Round trip in microseconds.
    pub us: u64,
}

/// A node that did not answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Silent {
    /// The node.
    pub node: NodeName,
    /// What is known.
    pub state: Presence,
    /// When it was last heard.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_seen: Option<Timestamp>,
}

/// Asks for invites.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// The nodes' names; `{01..40}` in one stands for a range.
    pub name: String,
    /// How many; must agree with the pattern. One when absent.
    #[serde(default)]
    pub count: Option<u32>,
    /// Their roles.
    #[serde(default)]
    pub roles: Vec<RoleName>,
    /// Their labels.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Whether they are the broker's own machines.
    #[serde(default)]
    pub infrastructure: bool,
    /// How long they live; an hour when absent.
    #[serde(default)]
    pub expires: Option<Span>,
}

/// New invites: the only time that their tokens are seen.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Invites {
    /// One for each node.
    pub invites: Vec<Invite>,
    /// Where a node can enrol: every broker that is known, this one first.
    #[serde(default)]
    pub brokers: Vec<String>,
}

/// A new invite.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Invite {
    /// The node's name.
    pub name: NodeName,
    /// For `muster-agent enroll --token`.
    pub token: String,
    /// When it stops working.
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
}

/// An invite in a list, without its secret.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct InviteView {
    /// For `DELETE /v1/invites/{id}`.
    pub id: String,
    /// The node's name.
    pub name: NodeName,
    /// Its roles.
    pub roles: Vec<RoleName>,
    /// Its labels.
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Who made it.
    pub by: PrincipalName,
    /// Whether it is for a new key under an old name.
    pub replaces: Option<Serial>,
    /// When it stops working.
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
}

/// What a token may do.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything.
    Admin,
    /// Read, run, cancel, retry; invite and label nodes.
    Operator,
    /// Read.
    Reader,
    /// Only make invites: for an installer.
    NodeEnroller,
    /// Nothing by itself: what the cluster's policies permit.
    Member,
    /// Only tell what was heard in one chat network, and hear what is to be
    /// said there: for a bot.
    Witness,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 6] = [
        Self::Admin,
        Self::Operator,
        Self::Reader,
        Self::NodeEnroller,
        Self::Member,
        Self::Witness,
    ];

    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Reader => "reader",
            Self::NodeEnroller => "node-enroller",
            Self::Member => "member",
            Self::Witness => "witness",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Asks for a token.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Whose it is.
    #[serde(rename = "for")]
    pub principal: PrincipalName,
    /// What it may do.
    pub role: Role,
    /// How long it lives; 90 days when absent.
    #[serde(default)]
    pub expires: Option<Span>,
}

/// A new token: the only time that it is seen.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TokenCreated {
    /// The token's text.
    pub token: String,
    /// As in the list.
    #[serde(flatten)]
    pub view: TokenView,
}

/// A token in a list, without its secret.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TokenView {
    /// For `DELETE /v1/tokens/{id}`.
    pub id: String,
    /// Whose it is.
    #[serde(rename = "for")]
    pub principal: PrincipalName,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When it stops working.
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
}

/// Who the token stands for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct WhoAmI {
    /// The principal.
    pub principal: PrincipalName,
    /// What it may do.
    pub role: Role,
    /// The token's id.
    pub token: String,
}

/// A one-use challenge for a node's proof.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// To be signed within a minute.
    pub challenge: String,
}

/// Where the broker is, for `/readyz`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Readiness {
    /// It starts, or waits for NATS.
    Starting {
        /// What it waits for.
        reason: String,
    },
    /// Another broker is active; this one takes over when that ends.
    Standby {
        /// What is known.
        reason: String,
        /// Where the active one is reached, as far as it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        active: Option<String>,
    },
    /// It serves.
    Active {
        /// The lease's epoch.
        epoch: u64,
        /// What an operator should look at soon: little room, for example.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<String>,
    },
    /// It was active, and cannot renew its lease now.
    Suspended {
        /// What is known.
        reason: String,
    },
    /// It ends.
    Stopping,
}

impl Readiness {
    /// For people: what it waits for; nothing when it serves.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Active { .. } => None,
            Self::Stopping => Some("the broker ends".into()),
            Self::Starting { reason } => Some(format!("the broker starts: {reason}")),
            Self::Standby { reason, .. } => Some(format!("the broker stands by: {reason}")),
            Self::Suspended { reason } => {
                Some(format!("the broker cannot renew its lease: {reason}"))
            }
        }
    }
}

/// How the installation is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Status {
    /// Version of the broker.
    pub version: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// Whether this broker is the active one.
    pub active: bool,
    /// The lease's epoch.
    pub epoch: u64,
    /// The key list's epoch.
    pub key_epoch: u64,
    /// Version of the NATS server.
    pub nats_version: Option<String>,
    /// Whether the broker is connected to it.
    pub nats_connected: bool,
    /// Nodes by presence.
    #[schema(value_type = BTreeMap<String, u32>)]
    pub nodes: BTreeMap<Presence, u32>,
    /// Runs that have not ended.
    pub open_runs: u32,
    /// The brokers of the cluster, the one that answers first.
    #[serde(default)]
    pub brokers: Vec<BrokerView>,
    /// The broker's clock.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// The room that what muster keeps takes up, and has.
    #[serde(default)]
    pub space: Vec<Space>,
    /// What retention has removed so far.
    #[serde(default)]
    pub removed: Removed,
    /// What is wrong, for people; empty when nothing is.
    pub findings: Vec<Finding>,
}

/// Something that an operator should look at.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Finding {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub hint: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Amount;

    #[test]
    fn a_run_can_be_asked_for_in_a_line() {
        let json =
            r#"{"predicate":"role=web","params":{"argv":["true"]},"batch":"25%","confirm":"yes"}"#;
        let request: RunRequest = serde_json::from_str(json).expect("reads");
        assert_eq!(request.scenario.as_str(), "command");
        assert_eq!(request.batch, Some(Amount::Percent(25)));
        assert_eq!(request.confirm, Confirm::Yes);
    }
}
