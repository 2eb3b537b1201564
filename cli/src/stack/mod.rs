//! Stacks: networks and machines of a file, what depends on what, and what is
//! to be done so that it is so. Pure: a file's text is read into a [`Stack`],
//! and a stack and what there is make a [`Plan`].
//!
//! The HTTP and chat doors have the single verbs that a plan is made of.

mod configure;
mod doc;
mod network;
mod plan;
mod read;
mod shown;
#[cfg(test)]
mod tests;
mod vars;

use std::collections::BTreeMap;
use std::fmt;

use muster_protocol::api::{CreateVms, PutNetwork};
use muster_protocol::names::{LabelKey, LabelValue, LanName, VmName};
use serde::Serialize;

pub use self::network::{Still, still};
pub use self::plan::{Change, Difference, Is, Item, Kind, Plan, There, Why, item_of};
pub use self::read::read;
pub use self::shown::{changed, render, summary};

/// Most machines of one stack, most tables of each kind, most variables.
pub const MAX_MACHINES: usize = 1_000;
/// Largest file.
pub const MAX_FILE: usize = 1 << 20;
/// Largest file that it names.
pub const MAX_LOADED: usize = 1 << 18;
/// The label that says which stack a machine or a network is of.
pub const LABEL: &str = "stack";
/// The label that says in which variant of it.
pub const ENV_LABEL: &str = "stack-env";

type Labels = BTreeMap<LabelKey, LabelValue>;

/// Which stack: what is made with `--env test` is of another one than what is
/// made without.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct StackId {
    /// Its name: the label `stack` of all that is its own.
    #[serde(rename = "stack")]
    pub name: LabelValue,
    /// Its variant: the label `stack-env`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<LabelValue>,
}

impl StackId {
    /// The stack that something with these labels is of.
    #[must_use]
    pub fn of(labels: &Labels) -> Option<Self> {
        let name = labels.get(LABEL)?.clone();
        let env = labels.get(ENV_LABEL).cloned();
        Some(Self { name, env })
    }

    /// Whether something with these labels is its own.
    #[must_use]
    pub fn owns(&self, labels: &Labels) -> bool {
        Self::of(labels).as_ref() == Some(self)
    }

    /// The labels of what is its own.
    fn labels(&self) -> impl Iterator<Item = (LabelKey, LabelValue)> {
        let key = |text: &str| -> LabelKey { text.parse().expect("a label") };
        let env = self.env.clone().map(|env| (key(ENV_LABEL), env));
        std::iter::once((key(LABEL), self.name.clone())).chain(env)
    }
}

impl fmt::Display for StackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.env {
            Some(env) => write!(f, "{} (--env {env})", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// Which one it is.
    pub id: StackId,
    /// Its networks, as in the file.
    pub networks: Vec<Network>,
    /// Its machines, as in the file.
    pub machines: Vec<Machine>,
}

/// A network of a stack.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Its name.
    pub name: LanName,
    /// What it is to be.
    pub put: PutNetwork,
}

/// A machine of a stack.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Its name.
    pub name: VmName,
    /// How it is made where it is not there.
    pub create: CreateVms,
    /// Whether it is to run; as it is, where the file does not say.
    pub running: Option<bool>,
    /// Whether it is protected; as it is, where the file does not say.
    pub protect: Option<bool>,
    /// Machines that are to be right before anything is done with it: places
    /// in [`Stack::machines`].
    pub after: Vec<usize>,
}

/// What is asked for beside the file.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The variant of the variables.
    pub env: Option<String>,
    /// Variables, as `name`, `value`.
    pub vars: Vec<(String, String)>,
}

/// Whether a label is not for people to give.
fn is_own(key: &LabelKey) -> bool {
    [LABEL, ENV_LABEL].contains(&key.as_str())
}
