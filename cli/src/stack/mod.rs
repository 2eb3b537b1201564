//! Stacks: networks and machines of a file, what depends on what, and what is
//! to be done so that it is so. Pure: a file's text is read into a [`Stack`],
//! and a stack and what there is make a [`Plan`].
//!
//! The HTTP and chat doors have the single verbs that a plan is made of.

mod doc;
mod plan;
mod read;
mod shown;
#[cfg(test)]
mod tests;
mod vars;

use muster_protocol::api::{CreateVms, PutNetwork};
use muster_protocol::names::{LabelKey, LabelValue, LanName, VmName};

pub use self::plan::{Change, Difference, Is, Item, Kind, Plan, There, item_of};
pub use self::read::read;
pub use self::shown::{changed, render, summary};

/// Most machines of one stack.
pub const MAX_MACHINES: usize = 1_000;
/// Largest file.
pub const MAX_FILE: usize = 1 << 20;
/// The label that says which stack a machine or a network is of.
pub const LABEL: &str = "stack";

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// Its name: the value of the label `stack` of all that is its own.
    pub name: LabelValue,
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

/// The label of a stack.
pub(crate) fn label() -> LabelKey {
    LABEL.parse().expect("a label")
}
