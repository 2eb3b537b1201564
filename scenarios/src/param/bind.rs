//! What was given, held against what is declared: all mistakes at once.

use std::collections::BTreeMap;
use std::fmt;

use muster_protocol::text::printable;
use serde_json::{Map, Value};

use super::value::shown;
use super::{Kind, MAX_VALUES, Param, Typed};
use crate::fault::nearest;

/// A value as it came in.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    /// Written by a person: `-p count=3`.
    Text(String),
    /// From a system that has types.
    Json(Value),
}

/// Something that keeps a scenario from running.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// The parameter.
    pub name: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", printable(&self.name, 60), self.what)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Parameters that fit: every declared one, with its value or its default.
#[derive(Clone, PartialEq)]
pub struct Bound {
    plain: Map<String, Value>,
    secret: Map<String, Value>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound")
            .field("plain", &self.plain)
            .field("secret", &format_args!("[{} redacted]", self.secret.len()))
            .finish()
    }
}

impl Bound {
    /// What everybody may see.
    #[must_use]
    pub fn plain(&self) -> &Map<String, Value> {
        &self.plain
    }

    /// All of them as they stand in a request or a journal: in the place of a
    /// secret's value stands its name.
    #[must_use]
    pub fn sealed(&self) -> Map<String, Value> {
        let secret = self.secret.keys();
        let names = secret.map(|name| (name.clone(), crate::secret::reference(name)));
        self.plain.clone().into_iter().chain(names).collect()
    }

    /// What only the nodes may see.
    #[must_use]
    pub fn secret(&self) -> &Map<String, Value> {
        &self.secret
    }
}

/// Holds what was given against what is declared.
///
/// # Errors
/// Every mistake, in the order of the declaration, unknown names last.
pub fn bind(params: &[Param], given: &BTreeMap<String, Given>) -> Result<Bound, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut bound = Bound {
        plain: Map::new(),
        secret: Map::new(),
    };
    for param in params {
        let value = match given.get(&param.name) {
            Some(given) => match param.read(given) {
                Ok(value) => value.json().clone(),
                Err(what) => {
                    mistakes.push(param.mistake(what));
                    continue;
                }
            },
            None if param.required => {
                mistakes.push(param.mistake("it must be given".to_owned()));
                continue;
            }
            None => param
                .default
                .as_ref()
                .map_or(Value::Null, |value| value.json().clone()),
        };
        let values = if param.secret {
            &mut bound.secret
        } else {
            &mut bound.plain
        };
        values.insert(param.name.clone(), value);
    }
    let known = || params.iter().map(|param| param.name.as_str());
    for name in given.keys() {
        if known().all(|known| known != name) {
            let hint = match nearest(name, known()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if params.is_empty() => "this scenario has no parameters".to_owned(),
                None => format!("there are: {}", known().collect::<Vec<_>>().join(", ")),
            };
            mistakes.push(Mistake {
                name: name.clone(),
                what: "there is no such parameter".to_owned(),
                hint: Some(hint),
            });
        }
    }
    let bytes = |values: &Map<String, Value>| {
        values
            .iter()
            .map(|(name, value)| name.len() + value.to_string().len())
            .sum::<usize>()
    };
    let total = bytes(&bound.plain) + bytes(&bound.secret);
    if total > MAX_VALUES {
        mistakes.push(Mistake {
            name: "all parameters".to_owned(),
            what: format!("they have {total} bytes together, at most {MAX_VALUES} can be sent"),
            hint: Some("put what is large into a file of the scenario".to_owned()),
        });
    }
    if mistakes.is_empty() {
        Ok(bound)
    } else {
        Err(mistakes)
    }
}

impl Param {
    /// Reads a value and holds it against all rules of the parameter.
    ///
    /// # Errors
    /// What is wrong; a secret's value is not in it.
    pub fn read(&self, given: &Given) -> Result<Typed, String> {
        let value = match given {
            Given::Text(text) => Typed::from_text(self.kind, text),
            Given::Json(value) => Typed::from_json(self.kind, value),
        };
        let checked = value.and_then(|value| self.fits(&value).map(|()| value));
        checked.map_err(|what| {
            if self.secret {
                // The message may quote the value.
                format!("the value given is not allowed: it must be {}", self.rule())
            } else {
                what
            }
        })
    }

    /// Whether a value of the kind fits the rules.
    pub(crate) fn fits(&self, value: &Typed) -> Result<(), String> {
        let counted = Typed::counted(self.kind);
        if let Some(min) = self.min.as_ref().filter(|min| value.is_below(min)) {
            return Err(format!(
                "{} is below the least, {}{counted}",
                shown(value.json()),
                bare(min.json())
            ));
        }
        if let Some(max) = self.max.as_ref().filter(|max| max.is_below(value)) {
            return Err(format!(
                "{} is above the most, {}{counted}",
                shown(value.json()),
                bare(max.json())
            ));
        }
        if let (Some(regex), Value::String(text)) = (&self.matches, value.json())
            && !regex.is_match(text)
        {
            return Err(format!(
                "{} does not match {}",
                shown(value.json()),
                printable(regex.as_str(), 80)
            ));
        }
        if !self.one_of.is_empty() && !self.one_of.contains(value) {
            let all: Vec<String> = self.one_of.iter().map(|v| bare(v.json())).collect();
            return Err(format!(
                "{} is not one of {}",
                shown(value.json()),
                all.join(", ")
            ));
        }
        Ok(())
    }

    /// What is allowed, in a few words: `int, 1 to 10`.
    #[must_use]
    pub fn rule(&self) -> String {
        let counted = Typed::counted(self.kind);
        let mut rule = self.kind.to_string();
        match (&self.min, &self.max) {
            (Some(min), Some(max)) => {
                let (min, max) = (bare(min.json()), bare(max.json()));
                rule.push_str(&format!(", {min} to {max}{counted}"));
            }
            (Some(min), None) => {
                rule.push_str(&format!(", at least {}{counted}", bare(min.json())));
            }
            (None, Some(max)) => {
                rule.push_str(&format!(", at most {}{counted}", bare(max.json())));
            }
            (None, None) => {}
        }
        if let Some(regex) = &self.matches {
            rule.push_str(&format!(", matches {}", printable(regex.as_str(), 80)));
        }
        if !self.one_of.is_empty() {
            let all: Vec<String> = self.one_of.iter().map(|v| bare(v.json())).collect();
            rule.push_str(&format!(", one of {}", all.join(", ")));
        }
        rule
    }

    fn mistake(&self, what: String) -> Mistake {
        let hint = match (&self.help, self.required) {
            (Some(help), _) => Some(printable(help, 200)),
            (None, true) => Some(format!(
                "give it with -p {}={}",
                self.name,
                example(self.kind)
            )),
            (None, false) => None,
        };
        Mistake {
            name: self.name.clone(),
            what,
            hint,
        }
    }
}

fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::String => "TEXT",
        Kind::Int => "3",
        Kind::Float => "0.5",
        Kind::Bool => "true",
        Kind::Percent => "25%",
        Kind::Duration => "30s",
        Kind::List => "'[\"a\"]'",
        Kind::Map => "'{\"a\": 1}'",
        Kind::Node => "NODE",
    }
}

/// A value without quotes around a text.
fn bare(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text, 60),
        other => printable(&other.to_string(), 60),
    }
}
