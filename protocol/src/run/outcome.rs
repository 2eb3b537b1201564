//! How a step ended on a node, and what it wrote.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::Serial;
use crate::note::{Digest, MAX_VALUE, Tally};

/// How a step ended on a node: exactly one each, always.
#[derive(
    Clone,
    Copy,
    Debug,
    Deserialize,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ran and was well.
    Succeeded,
    /// It ran and was not.
    Failed,
    /// The node's own check said no.
    Declined,
    /// It ran longer than allowed and was ended.
    TimedOut,
    /// The node was known to be down; nothing was sent.
    Unreachable,
    /// Sent, and it cannot be said.
    Unknown,
    /// Ended, or kept from starting on the node, by a cancel.
    Cancelled,
    /// Never started.
    Skipped,
}

impl Outcome {
    /// All of them, in the order in which people read them.
    pub const ALL: [Self; 8] = [
        Self::Succeeded,
        Self::Failed,
        Self::Declined,
        Self::TimedOut,
        Self::Unreachable,
        Self::Unknown,
        Self::Cancelled,
        Self::Skipped,
    ];

    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Declined => "declined",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Unknown => "unknown",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }

    /// Whether it counts against a failure budget.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Failed | Self::TimedOut | Self::Unreachable | Self::Unknown
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Standard output, standard error, or what the step says about itself.
#[derive(
    Clone,
    Copy,
    Debug,
    Deserialize,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// [Notes](crate::note::Note): one JSON object a line.
    Note,
}

/// Bytes that a program wrote: text where they are UTF-8, else base64. Data
/// for ever: whoever shows it escapes it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Data {
    /// Valid UTF-8.
    Text(String),
    /// Anything else.
    Bytes {
        /// Base64, with padding.
        base64: String,
    },
}

impl Data {
    /// From what was written.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes {
                base64: data_encoding::BASE64.encode(bytes),
            },
        }
    }

    /// The bytes; `None` when the base64 is none.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.clone().into_bytes()),
            Self::Bytes { base64 } => data_encoding::BASE64.decode(base64.as_bytes()).ok(),
        }
    }
}

/// How a step ended on one node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeResult {
    /// The node.
    pub serial: Serial,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, for people; always there unless it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Exit code of a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The signal that ended a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Execution time on the node in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// Bytes of output kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output_bytes: u64,
    /// Whether more output was thrown away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// What a function of a scenario returned: at most [`MAX_VALUE`] bytes as
    /// JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub value: Option<Value>,
    /// The size of its value in bytes, as JSON, where that is too large to be
    /// here: it is in the step's notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_bytes: Option<u64>,
    /// How many things a function of a scenario found, made, or would make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tally: Option<Tally>,
    /// Over all that would change, in a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// It changed its firewall, that was not confirmed, and its old rules are
    /// in force again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rolled_back: bool,
}

pub(crate) fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

impl NodeResult {
    /// A result that is only an outcome and its reason.
    #[must_use]
    pub fn new(serial: Serial, outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            serial,
            outcome,
            reason: Some(reason.into()),
            exit: None,
            signal: None,
            ms: None,
            output_bytes: 0,
            truncated: false,
            value: None,
            value_bytes: None,
            tally: None,
            digest: None,
            rolled_back: false,
        }
    }

    /// The same with what a function returned, or with its size where it is
    /// too large; whether it is.
    pub fn set_value(&mut self, value: Value) -> bool {
        if value.is_null() {
            return false;
        }
        let bytes = value.to_string().len();
        if bytes > MAX_VALUE {
            self.value_bytes = Some(bytes as u64);
            return true;
        }
        self.value = Some(value);
        false
    }
}
