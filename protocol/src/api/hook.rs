//! Webhooks, triggers and routes, as they are shown.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::event::{CloudEvent, ClusterEvent};
use crate::ids::RunId;
use crate::names::{HookName, PrincipalName, RouteName, ScenarioName, TriggerName};
use crate::units::{Span, Timestamp};

/// What a webhook understands: who signs how, and what the body says.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum HookKind {
    /// GitHub.
    Github,
    /// GitLab.
    Gitlab,
    /// Gitea.
    Gitea,
    /// Forgejo.
    Forgejo,
    /// Jenkins, by its notification plugin.
    Jenkins,
    /// Prometheus' Alertmanager.
    Alertmanager,
    /// Grafana's alerts.
    Grafana,
    /// Anything that can sign a body and a time.
    Generic,
}

impl HookKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Github,
        Self::Gitlab,
        Self::Gitea,
        Self::Forgejo,
        Self::Jenkins,
        Self::Alertmanager,
        Self::Grafana,
        Self::Generic,
    ];

    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Gitea => "gitea",
            Self::Forgejo => "forgejo",
            Self::Jenkins => "jenkins",
            Self::Alertmanager => "alertmanager",
            Self::Grafana => "grafana",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for HookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A webhook.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct HookView {
    /// Its name.
    pub name: HookName,
    /// What it understands.
    pub kind: HookKind,
    /// Where it is: `/hooks/NAME`.
    pub path: String,
    /// How many secrets it takes: 2 while one is replaced.
    pub secrets: usize,
    /// How many deliveries it takes in which time, as `600/1m`.
    pub rate: String,
    /// Deliveries that became events, since this broker is the active one.
    pub taken: u64,
    /// Deliveries that had come before.
    pub repeated: u64,
    /// Deliveries with a wrong signature, or with what cannot be read.
    pub refused: u64,
    /// Deliveries above the rate.
    pub limited: u64,
    /// When the last one became an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last: Option<Timestamp>,
    /// Why the last one was refused, for whoever sets it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<String>,
}

/// A trigger: which events become which runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TriggerView {
    /// Its name.
    pub name: TriggerName,
    /// What an event must be.
    #[schema(value_type = Object)]
    pub when: Map<String, Value>,
    /// What is run.
    pub scenario: ScenarioName,
    /// With which parameters; a text that begins with `$.` is looked up in the
    /// event.
    #[schema(value_type = Object)]
    pub params: Map<String, Value>,
    /// On which nodes; those of the scenario when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// As whom.
    pub principal: PrincipalName,
    /// How many runs it starts in which time, as `10/1h`.
    pub rate: String,
    /// An event older than that starts no run any more.
    pub within: Span,
    /// What came of the last event that fitted, since this broker is the
    /// active one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<TriggerLast>,
}

/// What came of an event that fitted a trigger.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TriggerLast {
    /// The event's position.
    pub seq: u64,
    /// When it was looked at.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A route: which events are sent where.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct RouteView {
    /// Its name.
    pub name: RouteName,
    /// Which kinds of events.
    pub kinds: Vec<String>,
    /// Scheme and host: the rest of the URL may be a secret. Of one to
    /// channels of chat networks: `ops/#dev`.
    pub to: String,
    /// `cloudevents`, `template`, or `chat`.
    pub format: String,
    /// The position up to which everything is sent, or given up.
    pub position: u64,
    /// How many events it has sent since this broker is the active one.
    pub sent: u64,
    /// How many it has given up.
    pub given_up: u64,
    /// Why what is under way has not been taken yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
}

/// Asks what would come of a delivery.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HookTest {
    /// Headers that say what it is, such as `X-GitHub-Event`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

/// What would come of a delivery. Nothing was done.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct HookTested {
    /// The event that it becomes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CloudEvent>)]
    pub event: Option<ClusterEvent>,
    /// Why it becomes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignored: Option<String>,
    /// All triggers, by name.
    pub triggers: Vec<TriggerTested>,
}

/// What a trigger would do with an event.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TriggerTested {
    /// Its name.
    pub name: TriggerName,
    /// Why the event is not for it; absent when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfit: Option<String>,
    /// What it would run.
    pub scenario: ScenarioName,
    /// As whom.
    pub principal: PrincipalName,
    /// With which parameters.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub params: Map<String, Value>,
    /// On which nodes; those of the scenario when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// How many nodes it would be for, those of all its sets; absent when that
    /// cannot be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    /// Whether the policy allows it; absent when there is no run that it could
    /// be asked of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<bool>,
    /// Why the run would be refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What the run would wait for, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<String>,
}

impl TriggerTested {
    /// Whether it would start a run.
    #[must_use]
    pub fn would_run(&self) -> bool {
        self.unfit.is_none() && self.problem.is_none()
    }
}
