//! Everything that is fixed when a run is created.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Gates, Main, NodeResult, PartOf, is_zero};
use crate::api::ChatPlace;
use crate::envelope::{BundleHash, Door, Mode};
use crate::ids::{RunId, Serial};
use crate::keys::KeyId;
use crate::names::{FunctionName, LabelKey, LabelValue, NodeName, PrincipalName, ScenarioName};
use crate::nodeset::NodeSet;
use crate::note::Expected;
use crate::units::{Amount, Span, Timestamp};

/// One node of a frozen set, under the name it had then.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The node.
    pub serial: Serial,
    /// Its name when the set was frozen.
    pub name: NodeName,
    /// Its labels then, as far as the run counts by them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
}

impl Target {
    /// A node of which only the name counts.
    #[must_use]
    pub fn new(serial: Serial, name: NodeName) -> Self {
        Self {
            serial,
            name,
            labels: BTreeMap::new(),
        }
    }
}

/// How a run goes about its nodes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunOptions {
    /// Execution time on each node.
    pub timeout: Span,
    /// How long a node may take to acknowledge.
    pub deliver_within: Span,
    /// Nodes at a time; all at once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Amount>,
    /// The failure budget: above it nothing more is started. Without it
    /// failures stop nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<Amount>,
    /// Failure budgets for the nodes of each value of a label by itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Amount>)]
    pub max_failures_by: BTreeMap<LabelKey, Amount>,
    /// How often a step that failed is tried again on its node, within the
    /// timeout.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry: u32,
    /// Send also to nodes that are down, in case they come back within
    /// `deliver_within`.
    #[serde(default)]
    pub wait_down: bool,
    /// Bytes of output kept per node and step.
    pub output_bytes: u64,
}

/// Who ran something on a node itself, as the node tells it. Nobody has
/// checked it: the broker knows only whose credentials reported it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalRun {
    /// The Unix user that ran it.
    pub user: String,
    /// The user that had logged in, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// Why, in that person's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Whether the node's own policy was overridden.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// When it began, by the node's clock.
    #[schema(value_type = String, format = DateTime)]
    pub began: Timestamp,
}

/// A run that a node has done by itself and reported when it had ended: all
/// of it is known when it is written down, so that a broker that stops in the
/// middle of that can finish without the node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LocalRecord {
    /// Who, when, why.
    pub local: LocalRun,
    /// The node.
    pub target: Target,
    /// How it ended there.
    pub result: NodeResult,
}

/// From what a run was written down again that the broker had lost: a request
/// of it, as a broker of this cluster once signed it and a node kept it. All
/// that is needed to finish with it is here, so that a broker that stops in
/// the middle can go on.
///
/// What no request says is not there: the batches, the failure budget, which
/// run it retried.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rebuilt {
    /// The node that had kept the request.
    pub node: Serial,
    /// The broker key that had signed it.
    pub key: KeyId,
    /// The frozen set, as the request says.
    pub set: NodeSet,
    /// When it was written down again, by the broker's clock.
    pub at: Timestamp,
}

/// Everything that is fixed when a run is created.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// The run.
    pub id: RunId,
    /// Who asked.
    pub principal: PrincipalName,
    /// Through which door.
    pub door: Door,
    /// What runs.
    pub scenario: ScenarioName,
    /// Which version of it; absent for what is built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Its bundle, pinned.
    pub bundle: BundleHash,
    /// The function sent to the nodes.
    pub function: FunctionName,
    /// Its parameters.
    pub params: Value,
    /// Apply or check.
    pub mode: Mode,
    /// One line for people: `nginx -v`.
    pub title: String,
    /// The predicate as the person wrote it, in canonical form.
    pub predicate: String,
    /// How many targets follow in [`RunEvent::Targets`].
    pub targets: u32,
    /// How the run goes about them.
    pub options: RunOptions,
    /// What a dry run said on the nodes; one where it comes out otherwise
    /// does nothing.
    #[serde(default, skip_serializing_if = "Expected::is_empty")]
    pub expect: Expected,
    /// What has to be given before anything is sent.
    #[serde(default, skip_serializing_if = "Gates::is_open")]
    pub gates: Gates,
    /// The run that this one retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RunId>,
    /// How many of the broker's own machines match the predicate and were left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u32,
    /// Of a run that was done on the node itself: what the node reported.
    /// Nothing of such a run is ever sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Box<LocalRecord>>,
    /// Of a run that the store had lost: from what it was written down again.
    /// Nothing of such a run is sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilt: Option<Box<Rebuilt>>,
    /// Of a scenario with a `main`: what that begins with. Such a run sends
    /// nothing itself; its steps are runs of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<Box<Main>>,
    /// The run that this one is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<PartOf>,
    /// Whether it takes back what another run did, without being a part of
    /// it: the end of a machine that the other one has made. A freeze does not
    /// stop it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_back: bool,
    /// Of a run that somebody asked for in a chat network: where they are
    /// told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<Box<ChatPlace>>,
    /// When it was created.
    pub created: Timestamp,
}
