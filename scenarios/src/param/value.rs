//! From what was written to a value of a kind.

use muster_protocol::text::printable;
use muster_protocol::units::Span;
use serde_json::Value;

use crate::secret::SECRET;

use super::{Kind, MAX_VALUE, Size, Typed, node, percent};

/// Deepest nesting of a list or map.
const MAX_DEPTH: usize = 16;

/// On which side of what is allowed a value is, and of what.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side<'a> {
    Below(&'a Typed),
    Above(&'a Typed),
}

impl Typed {
    /// From a text, as on a command line or in a chat line. A text is never
    /// more than one value: it is not split and nothing in it is expanded.
    pub(crate) fn from_text(kind: Kind, text: &str) -> Result<Self, String> {
        let value = match kind {
            Kind::String | Kind::Percent | Kind::Duration | Kind::Node => {
                Value::String(text.to_owned())
            }
            Kind::Bool => match text {
                "true" | "yes" | "on" => Value::Bool(true),
                "false" | "no" | "off" => Value::Bool(false),
                _ => return Err(wrong(kind, &format!("`{}`", printable(text, 60)))),
            },
            Kind::Int | Kind::Float | Kind::List | Kind::Map => serde_json::from_str(text)
                .map_err(|_| wrong(kind, &format!("`{}`", printable(text, 60))))?,
        };
        Self::from_json(kind, &value)
    }

    /// From JSON, as in an HTTP request or a manifest.
    pub(crate) fn from_json(kind: Kind, value: &Value) -> Result<Self, String> {
        let mismatch = || wrong(kind, &shown(value));
        let typed = |json, size| Ok(Self { json, size });
        if value.to_string().len() > MAX_VALUE {
            return Err(format!("it is longer than {MAX_VALUE} bytes"));
        }
        match (kind, value) {
            (Kind::String, Value::String(text)) => {
                if text.contains('\0') {
                    return Err("it holds a zero byte, which no argument can hold".into());
                }
                typed(value.clone(), Size::Count(text.chars().count()))
            }
            (Kind::Int, Value::Number(number)) => {
                let number = number.as_i64().ok_or_else(mismatch)?;
                typed(Value::from(number), Size::Int(number))
            }
            (Kind::Float, Value::Number(number)) => {
                let number = number
                    .as_f64()
                    .filter(|n| n.is_finite())
                    .ok_or_else(mismatch)?;
                typed(Value::from(number), Size::Float(number))
            }
            (Kind::Bool, Value::Bool(_)) => typed(value.clone(), Size::None),
            (Kind::Percent, Value::String(text)) => {
                let percent = percent(text).ok_or_else(mismatch)?;
                typed(Value::from(format!("{percent}%")), Size::Percent(percent))
            }
            (Kind::Duration, Value::String(text)) => {
                let span: Span = text.parse().map_err(|_| mismatch())?;
                typed(Value::from(span.to_string()), Size::Duration(span))
            }
            (Kind::Node, Value::String(text)) => {
                node(text)?;
                typed(value.clone(), Size::None)
            }
            (Kind::List, Value::Array(items)) => {
                shallow(value)?;
                typed(value.clone(), Size::Count(items.len()))
            }
            (Kind::Map, Value::Object(items)) => {
                shallow(value)?;
                typed(value.clone(), Size::Count(items.len()))
            }
            _ => Err(mismatch()),
        }
    }

    /// A bound of this kind: a value, or a count where `min` and `max` count.
    pub(crate) fn bound(kind: Kind, value: &Value) -> Result<Self, String> {
        match kind {
            Kind::String | Kind::List | Kind::Map => {
                let count = value
                    .as_u64()
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or_else(|| format!("{} is no number of parts", shown(value)))?;
                Ok(Self {
                    json: value.clone(),
                    size: Size::Count(count),
                })
            }
            Kind::Bool | Kind::Node => Err(format!("a {kind} has no least and no most")),
            Kind::Int | Kind::Float | Kind::Percent | Kind::Duration => {
                Self::from_json(kind, value)
            }
        }
    }

    /// Whether it is below another of its kind.
    pub(crate) fn is_below(&self, other: &Self) -> bool {
        match (self.size, other.size) {
            (Size::Int(a), Size::Int(b)) => a < b,
            (Size::Float(a), Size::Float(b)) => a < b,
            (Size::Percent(a), Size::Percent(b)) => a < b,
            (Size::Duration(a), Size::Duration(b)) => a < b,
            (Size::Count(a), Size::Count(b)) => a < b,
            _ => false,
        }
    }

    /// That it is beyond a bound: `` `11` is too large, at most 10``.
    pub(super) fn off(&self, kind: Kind, side: Side<'_>) -> String {
        let what = shown(&self.json);
        let counted = self.counted(kind);
        match (self.size, side) {
            (Size::Count(count), Side::Below(min)) => {
                format!("{what} has {count}{counted}, at least {min} needed")
            }
            (Size::Count(count), Side::Above(max)) => {
                format!("{what} has {count}{counted}, at most {max} allowed")
            }
            (Size::Duration(_), Side::Below(min)) => {
                format!("{what} is too short, at least {min}")
            }
            (Size::Duration(_), Side::Above(max)) => format!("{what} is too long, at most {max}"),
            (_, Side::Below(min)) => format!("{what} is too small, at least {min}"),
            (_, Side::Above(max)) => format!("{what} is too large, at most {max}"),
        }
    }

    /// What its size counts, for messages: nothing, or ` characters`,
    /// ` elements`.
    pub(super) fn counted(&self, kind: Kind) -> &'static str {
        match (kind, self.size) {
            (Kind::String, Size::Count(1)) => " character",
            (Kind::String, _) => " characters",
            (Kind::List | Kind::Map, Size::Count(1)) => " element",
            (Kind::List | Kind::Map, _) => " elements",
            _ => "",
        }
    }
}

fn wrong(kind: Kind, found: &str) -> String {
    format!("{found} is not {}", kind.described())
}

/// A value in a message: short, and never raw.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => format!("`{}`", printable(text, 60)),
        other => format!("`{}`", printable(&other.to_string(), 60)),
    }
}

fn shallow(value: &Value) -> Result<(), String> {
    fn depth(value: &Value, left: usize) -> bool {
        left > 0
            && match value {
                Value::Array(items) => items.iter().all(|item| depth(item, left - 1)),
                Value::Object(items) => items.values().all(|item| depth(item, left - 1)),
                _ => true,
            }
    }
    fn names(value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().all(names),
            Value::Object(items) => items.iter().all(|(key, item)| key != SECRET && names(item)),
            _ => true,
        }
    }
    if !depth(value, MAX_DEPTH) {
        return Err(format!("it is nested deeper than {MAX_DEPTH}"));
    }
    // That is how a run refers to a secret; nobody else does.
    if !names(value) {
        return Err(format!("`{SECRET}` is no name in a map"));
    }
    Ok(())
}
