//! Scenarios: what a run executes.
//!
//! Here is what broker and agent must agree on: the built-in scenario
//! [`command`], and of stored ones the form ([`bundle`]), the language
//! ([`engine`]), the manifest ([`manifest`]) with its parameters ([`param`]),
//! and how a fault is shown ([`fault`]).

pub mod bundle;
pub mod catalogue;
pub mod check;
pub mod command;
pub mod durable;
pub mod engine;
pub mod fault;
pub mod manifest;
pub mod node;
pub mod param;
mod plain;
pub mod secret;
mod text;
pub mod trial;
pub mod upgrade;
pub mod when;

use muster_protocol::envelope::BundleHash;
use muster_protocol::names::{FunctionName, ScenarioName};
use serde_json::Value;

use command::{Command, CommandError};
use upgrade::{Upgrade, UpgradeError};

/// A call of a built-in scenario, read and checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Builtin {
    /// [`command`].
    Command(Command),
    /// [`upgrade`].
    Upgrade(Box<Upgrade>),
}

/// Why a call is refused before anything happens.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BuiltinError {
    /// There is none of that name.
    #[error("there is no scenario `{0}`")]
    NoScenario(ScenarioName),
    /// Parameters of [`command`].
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Parameters of [`upgrade`].
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
}

impl Builtin {
    /// Reads a call.
    ///
    /// # Errors
    /// [`BuiltinError`].
    pub fn read(scenario: &ScenarioName, params: &Value) -> Result<Self, BuiltinError> {
        match scenario.as_str() {
            command::NAME => Ok(Self::Command(Command::from_params(params)?)),
            upgrade::NAME => Ok(Self::Upgrade(Box::new(Upgrade::from_params(params)?))),
            _ => Err(BuiltinError::NoScenario(scenario.clone())),
        }
    }

    /// The hash that stands for the scenario.
    #[must_use]
    pub fn bundle(&self) -> BundleHash {
        match self {
            Self::Command(_) => command::bundle(),
            Self::Upgrade(_) => upgrade::bundle(),
        }
    }

    /// The function that nodes are asked to call.
    ///
    /// # Panics
    /// Never: the names are constants.
    #[must_use]
    pub fn function(&self) -> FunctionName {
        let name = match self {
            Self::Command(_) => command::FUNCTION,
            Self::Upgrade(_) => upgrade::FUNCTION,
        };
        name.parse().expect("a constant name")
    }

    /// The capability that a node must grant.
    #[must_use]
    pub fn capability(&self) -> &'static str {
        match self {
            Self::Command(command) => command.capability(),
            Self::Upgrade(_) => upgrade::CAPABILITY,
        }
    }

    /// One line for people, escaped.
    #[must_use]
    pub fn title(&self) -> String {
        match self {
            Self::Command(command) => command.title(),
            Self::Upgrade(upgrade) => upgrade.title(),
        }
    }
}
