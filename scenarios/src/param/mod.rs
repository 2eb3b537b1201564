//! Parameters of a scenario: how they are declared, and how what a person or
//! a system gives is held against that, before anything runs.

mod bind;
mod value;

use std::fmt;

use muster_protocol::names::NodeName;
use muster_protocol::text::printable;
use muster_protocol::units::{Amount, Span};
use regex::Regex;
use serde_json::Value;

pub use bind::{Bound, Given, Hint, Mistake, bind};

/// Most parameters of one scenario.
pub const MAX_PARAMS: usize = 64;
/// Most bytes of one value as JSON.
pub const MAX_VALUE: usize = 64 * 1024;
/// Most bytes of all values together, as JSON: a request stays well below the
/// largest NATS message.
pub const MAX_VALUES: usize = 256 * 1024;

/// What a parameter holds.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// Text.
    String,
    /// A whole number of 64 bits.
    Int,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
    /// `25%`, 0 to 100.
    Percent,
    /// `30s`, `5m`.
    Duration,
    /// Values in order.
    List,
    /// Values under names.
    Map,
    /// The name of a node.
    Node,
}

impl Kind {
    /// All, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::String,
        Self::Int,
        Self::Float,
        Self::Bool,
        Self::Percent,
        Self::Duration,
        Self::List,
        Self::Map,
        Self::Node,
    ];

    /// The word in a manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Int => "int",
            Self::Float => "float",
            Self::Bool => "bool",
            Self::Percent => "percent",
            Self::Duration => "duration",
            Self::List => "list",
            Self::Map => "map",
            Self::Node => "node",
        }
    }

    /// The kind with this word.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// With an article, for messages.
    fn described(self) -> &'static str {
        match self {
            Self::String => "text",
            Self::Int => "a whole number",
            Self::Float => "a number",
            Self::Bool => "`true` or `false`",
            Self::Percent => "a percentage such as `25%`",
            Self::Duration => "a duration such as `30s` or `5m`",
            Self::List => "a list such as `[\"a\", \"b\"]`",
            Self::Map => "a map such as `{\"a\": 1}`",
            Self::Node => "the name of a node",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Typed {
    /// Without quotes around a text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match &self.json {
            Value::String(text) => printable(text, 60),
            other => printable(&other.to_string(), 60),
        };
        f.write_str(&text)
    }
}

/// A value of one [`Kind`], in its canonical JSON form: a percentage is
/// `"25%"`, a duration `"30s"`, whatever it was written like.
#[derive(Clone, Debug, PartialEq)]
pub struct Typed {
    json: Value,
    size: Size,
}

/// What `min` and `max` are held against.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    /// Nothing: a bool, a node.
    None,
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Percent.
    Percent(u8),
    /// A length of time.
    Duration(Span),
    /// Characters of a text, elements of a list or map.
    Count(usize),
}

impl Typed {
    /// The canonical form.
    #[must_use]
    pub fn json(&self) -> &Value {
        &self.json
    }
}

/// A parameter as its scenario declares it.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name: what is written before the `=` of `-p`.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// What it is when nothing is given.
    pub default: Option<Typed>,
    /// Whether it must be given. Never together with a default.
    pub required: bool,
    /// Smallest value, or shortest text, list or map.
    pub min: Option<Typed>,
    /// Largest value, or longest text, list or map.
    pub max: Option<Typed>,
    /// What a text must match. Not anchored: `^` and `$` say where.
    pub matches: Option<Regex>,
    /// The values that are allowed; any when empty.
    pub one_of: Vec<Typed>,
    /// For people.
    pub help: Option<String>,
    /// Never shown, logged or journaled; sealed to each node.
    pub secret: bool,
}

/// Whether a text can be a parameter's name: also a property in a script.
pub(crate) fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    text.len() <= 40
        && chars
            .next()
            .is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn percent(text: &str) -> Option<u8> {
    match text.parse() {
        Ok(Amount::Percent(percent)) => Some(percent),
        _ => None,
    }
}

fn node(text: &str) -> Result<NodeName, String> {
    text.parse::<NodeName>().map_err(|e| e.to_string())
}
