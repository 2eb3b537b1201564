//! Calls out of `main`, as they stand in a run's journal.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use muster_protocol::names::{FunctionName, LabelKey, NodeName, ScenarioName};
use muster_protocol::nodeset::NodeSet;
use muster_protocol::units::{Amount, Span};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::secret;

/// How one step goes about its nodes, as far as the script says.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StepOptions {
    /// How many may fail before the step does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<Amount>,
    /// Nodes at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Amount>,
    /// Execution time on each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// How often it is tried again on a node where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<u32>,
}

/// One function on a set of nodes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The nodes.
    pub nodes: NodeSet,
    /// The function.
    pub function: FunctionName,
    /// What it is called with. In the place of a secret's value stands its
    /// name: neither `main` nor its journal ever holds the value.
    pub params: Map<String, Value>,
    /// How.
    #[serde(default)]
    pub options: StepOptions,
    /// What takes it back when the run fails; of a step of `parallel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<FunctionName>,
}

impl Step {
    /// The names of the secret parameters that it is given. A request with
    /// any goes to each node alone, with their values sealed.
    #[must_use]
    pub fn secrets(&self) -> BTreeSet<String> {
        secret::names(&self.params)
    }
}

/// What takes something back when the run fails.
#[derive(Clone, Debug, PartialEq)]
pub enum Undo {
    /// A function on nodes.
    Step(UndoStep),
    /// A machine is destroyed.
    Machine {
        /// The number of the call that asked for it.
        of: u64,
    },
}

impl Undo {
    /// The number of the call that it takes back.
    #[must_use]
    pub fn of(&self) -> u64 {
        match self {
            Self::Step(step) => step.of,
            Self::Machine { of } => *of,
        }
    }
}

/// What takes a step back when the run fails.
#[derive(Clone, Debug, PartialEq)]
pub struct UndoStep {
    /// The number of the call whose step it takes back.
    pub of: u64,
    /// Which of its steps, from 0.
    pub part: usize,
    /// The function, on the nodes on which the step had an effect.
    pub function: FunctionName,
    /// What it is called with.
    pub params: Map<String, Value>,
}

/// A call out of `main`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "call", deny_unknown_fields)]
pub enum HostCall {
    /// Run a function; more failures than allowed are an error in the script.
    On(Step),
    /// Run a function; failures are in the reply.
    TryOn(Step),
    /// Run several at once.
    Parallel {
        /// In the order of their replies.
        steps: Vec<Step>,
    },
    /// Those nodes for which a predicate holds now.
    Where {
        /// Of these.
        nodes: NodeSet,
        /// The predicate, in canonical form.
        predicate: String,
    },
    /// Split into batches with nodes of every value of a label in each.
    Spread {
        /// These.
        nodes: NodeSet,
        /// So many at a time.
        size: Amount,
        /// The label.
        label: LabelKey,
    },
    /// Wait.
    Sleep {
        /// So long, from when it is in the journal.
        span: Span,
    },
    /// Wait until a node is heard.
    Contact {
        /// Which; it need not be enrolled yet.
        node: NodeName,
        /// So long at most, from when it is in the journal.
        within: Span,
    },
    /// The time.
    Now,
    /// A whole number from `from` to `to`, both included.
    Random {
        /// Least.
        from: i64,
        /// Most.
        to: i64,
    },
    /// Have a machine made, and wait until it is up.
    Machine {
        /// What is wanted of it, as the script says it: see
        /// [`super::wanted`].
        machine: Map<String, Value>,
        /// Whether it stays when the run fails.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep: bool,
    },
    /// Ask a person.
    Ask {
        /// What.
        question: String,
        /// The answers that are allowed; any when empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        answers: Vec<String>,
    },
    /// Emit an event.
    Emit {
        /// Its kind, after `scenario.`.
        kind: String,
        /// Its fields.
        fields: Map<String, Value>,
    },
    /// Add a line to the run's log.
    Log {
        /// The line.
        text: String,
    },
    /// Run another scenario as the same principal.
    RunScenario {
        /// Which.
        scenario: ScenarioName,
        /// What it is given.
        params: Map<String, Value>,
        /// The predicate of its targets, in canonical form; its own when
        /// absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on: Option<String>,
    },
}

impl HostCall {
    /// The function's name in the script.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::On(_) => "on",
            Self::TryOn(_) => "try_on",
            Self::Parallel { .. } => "parallel",
            Self::Where { .. } => "where",
            Self::Spread { .. } => "batches",
            Self::Sleep { .. } => "sleep",
            Self::Contact { .. } => "contact",
            Self::Machine { .. } => "machine",
            Self::Now => "now",
            Self::Random { .. } => "random",
            Self::Ask { .. } => "ask",
            Self::Emit { .. } => "emit",
            Self::Log { .. } => "log",
            Self::RunScenario { .. } => "run_scenario",
        }
    }

    /// The hash that a replay must meet again: over the name and all
    /// arguments.
    ///
    /// # Panics
    /// Never: every call has a JSON form.
    #[must_use]
    pub fn hash(&self) -> ArgsHash {
        // Maps are sorted, whatever map type serde_json was built with, and no
        // number is a float that could print in two ways: equal calls have
        // equal bytes.
        let mut json = serde_json::to_value(self).expect("a call has a JSON form");
        json.sort_all_objects();
        ArgsHash(Sha256::digest(json.to_string()).into())
    }
}

/// SHA-256 over a call and its arguments; hex in text.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct ArgsHash([u8; 32]);

impl fmt::Display for ArgsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for ArgsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArgsHash({self})")
    }
}

impl FromStr for ArgsHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| "the hash of a call is 64 hexadecimal digits".to_owned())
    }
}

impl Serialize for ArgsHash {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ArgsHash {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What a call returned.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A value; of a step, a [`super::StepReply`].
    Value(Value),
    /// Replies of [`HostCall::Spread`]: the batches.
    Batches(Vec<NodeSet>),
    /// Replies of [`HostCall::Where`]: the nodes.
    Nodes(NodeSet),
    /// Of a step.
    Step(super::StepReply),
    /// Of several.
    Steps(Vec<super::StepReply>),
    /// An error that the script may catch.
    Error(String),
}

/// A call that is in the journal with its reply.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// The function's name, for people.
    pub call: String,
    /// Of the call.
    pub hash: ArgsHash,
    /// What it returned.
    pub reply: Reply,
}

/// The calls that were answered, from number 0 on. Cheap to clone, and cheap
/// to make again with one more: replies can be large, and a turn begins with
/// all of them.
#[derive(Clone, Debug, Default)]
pub struct Records(Arc<[Arc<Recorded>]>);

impl std::ops::Deref for Records {
    type Target = [Arc<Recorded>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<Vec<Recorded>> for Records {
    fn from(records: Vec<Recorded>) -> Self {
        Self(records.into_iter().map(Arc::new).collect())
    }
}

impl From<&[Arc<Recorded>]> for Records {
    fn from(records: &[Arc<Recorded>]) -> Self {
        Self(records.into())
    }
}
