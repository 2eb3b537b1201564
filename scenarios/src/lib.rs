//! Scenarios: what a run executes. Here is what broker, agent and command
//! line must agree on; nothing in it does I/O or reads a clock.
//!
//! | where | what | who needs it |
//! |---|---|---|
//! | [`command`], [`upgrade`], [`Builtin`] | the built-in scenarios | broker, agent |
//! | [`bundle`] | a stored scenario: script, templates and files under one hash | all |
//! | [`engine`] | the language: which part of Rhai, and its limits | the rest of this crate |
//! | [`manifest`], [`param`] | what a scenario says of itself; what is given held against it; failure budgets | broker, command line |
//! | [`check`], [`fault`] | every mistake without running anything, in its place | broker, command line |
//! | [`durable`] | `main`: [`durable::turn`] is a pure function of script, parameters, node sets and journal | broker |
//! | [`node`] | functions on a node: [`node::run`] hands what a script wants to a [`node::Host`], as data | agent |
//! | [`stock`] | the scenarios that come with muster | broker |
//! | [`secret`] | secret parameters: names in a run, values on a node | broker, agent |
//! | [`when`] | times as in cron: windows, and what a schedule starts | broker |
//! | [`trial`] | a scenario's own tests, offline | command line |
//! | [`catalogue`] | every function that muster adds to the language, for checks and people | command line, documentation |

pub mod bundle;
pub mod catalogue;
pub mod check;
pub mod command;
mod depth;
pub mod durable;
pub mod engine;
pub mod fault;
pub mod manifest;
pub mod node;
pub mod param;
mod plain;
pub mod secret;
pub mod stock;
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
