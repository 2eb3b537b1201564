//! What the fields of an event must be: for triggers and routes.

use muster_protocol::text::printable;
use serde_json::{Map, Value};

use super::glob::{Glob, GlobError};
use crate::hooks::path::Path;

/// Most conditions.
pub const MOST: usize = 64;

/// What a field must be.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A text, or a number written as one.
    Text(Glob),
    /// Exactly this.
    Is(Value),
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(glob) => write!(f, "\"{glob}\""),
            Self::Is(value) => write!(f, "{value}"),
        }
    }
}

impl Wanted {
    /// Whether a value is it.
    #[must_use]
    pub fn fits(&self, value: &Value) -> bool {
        match (self, value) {
            // One of a list is enough.
            (_, Value::Array(items)) => items.iter().any(|item| self.fits(item)),
            (Self::Text(glob), Value::String(text)) => glob.fits(text),
            (Self::Text(glob), Value::Number(number)) => glob.fits(&number.to_string()),
            (Self::Text(_), _) => false,
            (Self::Is(wanted), value) => wanted == value,
        }
    }
}

/// What fields must be: all of it.
#[derive(Clone, Debug, Default)]
pub struct Fields(Vec<(Path, Vec<Wanted>)>);

impl Fields {
    /// Holds what is written against what can be asked of an event.
    ///
    /// # Errors
    /// All mistakes.
    pub fn checked(name: &str, table: toml::Table) -> Result<Self, Vec<String>> {
        let mut flat = Map::new();
        if let Value::Object(table) = json(toml::Value::Table(table)) {
            flatten(table, "", &mut flat);
        }
        if flat.len() > MOST {
            return Err(vec![format!(
                "`{name}`: at most {MOST} conditions are possible"
            )]);
        }
        let (mut fields, mut wrong) = (Self::default(), Vec::new());
        for (field, value) in flat {
            match Self::field(&field, value) {
                Ok(one) => fields.0.push(one),
                Err(error) => {
                    wrong.push(format!("`{name}`: `{}`: {error}", printable(&field, 80)));
                }
            }
        }
        if wrong.is_empty() {
            Ok(fields)
        } else {
            Err(wrong)
        }
    }

    /// One of them.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn field(field: &str, value: Value) -> Result<(Path, Vec<Wanted>), String> {
        let path = Path::field(field).map_err(|e| e.to_string())?;
        Ok((path, wanted(value)?))
    }

    /// Another one.
    pub fn push(&mut self, field: (Path, Vec<Wanted>)) {
        self.0.push(field);
    }

    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an event (as JSON) is what is wanted.
    #[must_use]
    pub fn fit(&self, event: &Value) -> bool {
        self.misfits(event).next().is_none()
    }

    /// What is not as it must be, for people.
    pub fn misfits<'a>(&'a self, event: &'a Value) -> impl Iterator<Item = String> + 'a {
        self.0.iter().filter_map(|(path, wanted)| {
            let found = path.find(event);
            let fits = found.is_some_and(|found| wanted.iter().any(|w| w.fits(found)));
            (!fits).then(|| match found {
                Some(found) => format!(
                    "its {path} is {}, not {}",
                    printable(&found.to_string(), 120),
                    either(wanted)
                ),
                None => format!("it has no {path}"),
            })
        })
    }
}

/// As JSON.
#[must_use]
pub fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(yes) => yes.into(),
        toml::Value::Datetime(at) => at.to_string().into(),
        toml::Value::Array(items) => items.into_iter().map(json).collect(),
        toml::Value::Table(table) => Value::Object(
            table
                .into_iter()
                .map(|(name, value)| (name, json(value)))
                .collect(),
        ),
    }
}

/// `data.ref = "x"` without quotes is a table in a table.
pub fn flatten(table: Map<String, Value>, before: &str, flat: &mut Map<String, Value>) {
    for (name, value) in table {
        let name = format!("{before}{name}");
        match value {
            Value::Object(inner) => flatten(inner, &format!("{name}."), flat),
            value => drop(flat.insert(name, value)),
        }
    }
}

/// `a, b or c`.
#[must_use]
pub fn either(choices: &[impl std::fmt::Display]) -> String {
    let texts: Vec<String> = choices.iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => texts.concat(),
    }
}

/// What is written of a field: one of these must fit.
///
/// # Errors
/// What is wrong, for people.
pub fn wanted(value: Value) -> Result<Vec<Wanted>, String> {
    let one = |value: Value| match value {
        Value::String(text) if text.is_empty() => Ok(Wanted::Is(Value::String(text))),
        Value::String(text) => text
            .parse()
            .map(Wanted::Text)
            .map_err(|e: GlobError| e.to_string()),
        value @ (Value::Bool(_) | Value::Number(_)) => Ok(Wanted::Is(value)),
        _ => Err("it is a text, a number, true or false, or a list of them".to_owned()),
    };
    match value {
        Value::Array(items) if items.is_empty() => Err("the list is empty".to_owned()),
        Value::Array(items) => items.into_iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// Patterns: one text, or a list of them.
///
/// # Errors
/// What is wrong, for people.
pub fn globs(value: Value) -> Result<Vec<Glob>, String> {
    let texts = match value {
        Value::Array(items) => items,
        one => vec![one],
    };
    texts
        .into_iter()
        .map(|text| match text {
            Value::String(text) => text.parse().map_err(|e| format!("{e}")),
            _ => Err("it is a text, or a list of texts".to_owned()),
        })
        .collect()
}
