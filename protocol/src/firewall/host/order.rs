//! What is asked of a node: rules, and what has to work with them before they
//! stay.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::HostRules;
use super::read;
use crate::predicate::Predicate;
use crate::text_form::text_form;
use crate::units::Span;

/// Most probes.
pub const MAX_PROBES: usize = 16;

/// To what a probe connects.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ProbeTarget {
    /// To this TCP port.
    Tcp(u16),
}

impl fmt::Display for ProbeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
        }
    }
}

/// What others must still be able to do: connect to the node from those that
/// a predicate says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Probe {
    /// From every one of these nodes.
    pub from: Predicate,
    /// To what.
    pub target: ProbeTarget,
}

impl fmt::Display for Probe {
    /// `role=bastion to tcp/22`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.from.text(), self.target)
    }
}

/// How long a change waits to be confirmed: 5 seconds to 10 minutes, one
/// minute unless said otherwise.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConfirmWithin(Span);

/// Why a time is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfirmWithinError {
    /// No length of time.
    #[error(transparent)]
    Unit(#[from] crate::units::UnitError),
    /// Too short or too long.
    #[error("{0} is too short or too long for a change to be confirmed in; write 5s to 10m")]
    Range(Span),
}

impl ConfirmWithin {
    /// As a duration.
    #[must_use]
    pub fn get(self) -> Duration {
        self.0.get()
    }
}

impl Default for ConfirmWithin {
    fn default() -> Self {
        Self(Span::from_secs(60))
    }
}

impl fmt::Display for ConfirmWithin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for ConfirmWithin {
    type Err = ConfirmWithinError;

    fn from_str(text: &str) -> Result<Self, ConfirmWithinError> {
        let span: Span = text.parse()?;
        if span < Span::from_secs(5) || span > Span::from_secs(600) {
            return Err(ConfirmWithinError::Range(span));
        }
        Ok(Self(span))
    }
}

text_form!(ConfirmWithin);

/// What `firewall::host` asks of a node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HostOrder {
    /// The rules.
    pub rules: HostRules,
    /// What has to work with them before they stay.
    pub probes: Vec<Probe>,
    /// How long that may take.
    pub confirm_within: ConfirmWithin,
}

impl Serialize for HostOrder {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        read::write_order(self).serialize(s)
    }
}

impl<'de> Deserialize<'de> for HostOrder {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(d)?;
        Self::read(&value).map_err(serde::de::Error::custom)
    }
}
