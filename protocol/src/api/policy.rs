//! Who may do what.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Role;
use crate::envelope::{Door, Mode};
use crate::names::{PrincipalName, ScenarioName};
use crate::units::Timestamp;

/// What a principal is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    /// Somebody.
    Person,
    /// A system that builds and tests.
    Ci,
    /// A schedule of the cluster.
    Schedule,
    /// A program that passes on what people say.
    Bot,
}

impl PrincipalKind {
    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Ci => "ci",
            Self::Schedule => "schedule",
            Self::Bot => "bot",
        }
    }
}

impl fmt::Display for PrincipalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The two files that say who may do what.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyFiles {
    /// `policies.cedar`.
    pub policies: String,
    /// `principals.toml`.
    #[serde(default)]
    pub principals: String,
}

/// Stores who may do what, from now on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutPolicy {
    /// The files.
    pub files: PolicyFiles,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The version that it is made from: stored only on top of that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u32>,
    /// Also when no token that there is could change it again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// One version of who may do what.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PolicyVersion {
    /// Its number; 0 is what muster comes with.
    pub version: u32,
    /// How many policies it has.
    pub policies: u32,
    /// How many principals it names.
    pub principals: u32,
    /// Who stored it.
    pub by: PrincipalName,
    /// When; absent for what muster comes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A version with its files.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PolicyView {
    /// Which.
    #[serde(flatten)]
    pub version: PolicyVersion,
    /// Its files.
    pub files: PolicyFiles,
}

/// What was stored.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PolicyStored {
    /// What is in force now.
    #[serde(flatten)]
    pub version: PolicyVersion,
    /// Whether it is another than before.
    pub new: bool,
}

/// What policies can speak of.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PolicySchema {
    /// The schema, as Cedar writes one.
    pub text: String,
}

/// What the policies say of what somebody might ask.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// Who.
    pub principal: PrincipalName,
    /// With a token of which role; that of its tokens when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// What, by its name in policies: `run`, `read-nodes`.
    pub action: String,
    /// Of `run`: which scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<ScenarioName>,
    /// Of `run`: which version; the newest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Of `run`: the parameters.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
    /// Of `run`: apply or check.
    #[serde(default)]
    pub mode: Mode,
    /// Of `run`: on which nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicate: Option<String>,
    /// Through which door; `http` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<Door>,
    /// From which address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<std::net::IpAddr>,
    /// When; now when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// By these files instead of those in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<PolicyFiles>,
}

/// What the policies say.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Explained {
    /// Whether it is allowed.
    pub allowed: bool,
    /// In one sentence.
    pub text: String,
    /// The role that was taken.
    pub role: Role,
    /// The version that says so; absent for files that came with the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// How many others have to approve.
    pub approvals: u32,
    /// Through which doors; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approve_through: Option<Vec<Door>>,
    /// Each combination of roles and labels that was judged; one without a
    /// set for everything but `run`.
    pub judged: Vec<ExplainedClass>,
}

/// What the policies say of nodes of a set with the same roles and labels.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ExplainedClass {
    /// The set; absent for everything but `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// The roles.
    pub roles: Vec<String>,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// How many nodes.
    pub nodes: u32,
    /// Whether it is allowed.
    pub allowed: bool,
    /// The policies that permit it.
    pub permitted_by: Vec<String>,
    /// The policies that forbid it.
    pub forbidden_by: Vec<String>,
    /// What could not be evaluated, and why.
    pub errors: Vec<String>,
}

/// Somebody who may ask for something.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PrincipalView {
    /// The name.
    pub name: PrincipalName,
    /// What it is; absent where `principals.toml` does not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<PrincipalKind>,
    /// Its groups.
    pub groups: Vec<String>,
    /// The roles of its tokens that work.
    pub roles: Vec<Role>,
}
