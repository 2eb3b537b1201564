//! Stored scenarios: what the broker's library holds, and how it changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::envelope::BundleHash;
use crate::names::{LabelKey, PrincipalName, ScenarioName};
use crate::units::{Amount, Span, Timestamp};

/// The version of a scenario that came with muster.
pub const STOCK_VERSION: u32 = 0;

/// A version as people read it: `v12`, or `(stock)` for what came with muster.
#[must_use]
pub fn version_shown(version: u32) -> String {
    match version {
        STOCK_VERSION => "(stock)".to_owned(),
        version => format!("v{version}"),
    }
}

/// One version of a stored scenario.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ScenarioVersion {
    /// Its name.
    pub name: ScenarioName,
    /// Its number: rises by one with every change, and is never used again.
    /// 0 is the one that came with muster.
    pub version: u32,
    /// What pins its content; absent where this version is the removal of the
    /// scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleHash>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Bytes of the packed bundle.
    #[serde(default)]
    pub bytes: u64,
    /// Whether its files are still kept: those of old versions go.
    #[serde(default)]
    pub kept: bool,
    /// Who stored it; `muster` for those that came with it.
    pub by: PrincipalName,
    /// When; absent for those that came with muster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// What was said about it: why it was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl ScenarioVersion {
    /// Whether it came with muster, and nobody stored it.
    #[must_use]
    pub fn is_stock(&self) -> bool {
        self.version == STOCK_VERSION
    }

    /// Whether this version is the scenario's removal.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        self.bundle.is_none()
    }
}

/// A stored scenario, with everything that it says of itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ScenarioView {
    /// Which version.
    #[serde(flatten)]
    pub version: ScenarioVersion,
    /// The newest version of that name.
    pub newest: u32,
    /// What it declares.
    pub manifest: ManifestView,
    /// Its files, in the order of their paths, the script among them.
    pub files: Vec<ScenarioFile>,
}

/// One file of a scenario.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ScenarioFile {
    /// Its path in the bundle.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// What a scenario says of itself at the top of its script.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ManifestView {
    /// What it is for.
    pub about: String,
    /// The function that runs: `main` in the broker, or `run` on its targets.
    pub runs: String,
    /// Parameters in the order of their declaration.
    pub params: Vec<ParamView>,
    /// Node sets by name; `targets` for the target, `null` where whoever runs
    /// it gives them.
    pub sets: BTreeMap<String, Option<String>>,
    /// Whether a person has to see the plan first.
    pub confirm: bool,
    /// How many others have to agree.
    pub approvals: u32,
    /// Targets at a time.
    pub batch: Option<Amount>,
    /// How many may fail before nothing more is started.
    pub max_failures: Vec<BudgetView>,
    /// How long one step may take on a node.
    pub timeout: Option<Span>,
    /// How often a step is tried again on a node where it failed.
    pub retry: u32,
    /// One run at a time holds each of these.
    pub locks: Vec<String>,
    /// When it may be started, as in cron, UTC; at any time when empty.
    pub windows: Vec<String>,
    /// Functions that may be executed again when it is not known whether they
    /// were.
    pub idempotent: Vec<String>,
    /// Whether a dry run means something.
    pub allow_check: bool,
    /// Its own functions.
    pub functions: Vec<FunctionView>,
    /// The names of its tests.
    pub tests: Vec<String>,
}

/// A parameter of a scenario.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ParamView {
    /// Its name.
    pub name: String,
    /// What it holds.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is allowed, for people.
    pub rule: String,
    /// Whether it must be given.
    pub required: bool,
    /// What it is when it is not given.
    #[schema(value_type = Option<Value>)]
    pub default: Option<Value>,
    /// Whether it is never shown.
    pub secret: bool,
    /// For people.
    pub help: Option<String>,
}

/// A failure budget.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct BudgetView {
    /// How many nodes may fail.
    pub most: Amount,
    /// Counted for the nodes of each value of this label by itself.
    pub by: Option<LabelKey>,
}

/// A function of a scenario.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct FunctionView {
    /// Its name.
    pub name: String,
    /// The names of its parameters.
    pub params: Vec<String>,
    /// Its doc comment.
    pub doc: Option<String>,
}

/// Stores a scenario.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutScenario {
    /// The text of `scenario.rhai`.
    pub script: String,
    /// The files beside it by path, each in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The version that this one is made from: stored only when that is still
    /// the newest one, so that nobody's change is overwritten unseen. 0 where
    /// there is none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u32>,
}

/// What came of it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ScenarioStored {
    /// The version that is the newest one now.
    #[serde(flatten)]
    pub version: ScenarioVersion,
    /// Whether it is a new one; equal content is not stored again.
    pub new: bool,
}

/// Makes an old version's content the newest one again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackScenario {
    /// Which.
    pub version: u32,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// As in [`PutScenario::expect`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_reads_what_it_writes() {
        let text = r#"{"name":"web","version":3,"by":"ana","at":"2026-11-21T10:00:00Z"}"#;
        let version: ScenarioVersion = serde_json::from_str(text).expect("reads");
        assert!(version.is_removal() && !version.is_stock());
        let again = serde_json::to_string(&version).expect("writes");
        assert_eq!(
            serde_json::from_str::<ScenarioVersion>(&again).expect("reads"),
            version
        );
    }
}
