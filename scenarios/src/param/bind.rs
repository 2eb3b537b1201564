//! What was given, held against what is declared: all mistakes at once.

use std::collections::BTreeMap;
use std::fmt;

use muster_protocol::text::printable;
use serde_json::{Map, Value};

use super::value::{Side, shown};
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
    /// The parameter; `None` where it is all of them together.
    pub name: Option<String>,
    /// What is wrong with it.
    pub what: String,
    /// What helps.
    pub hint: Option<Hint>,
}

/// What helps somebody who made a [`Mistake`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hint {
    /// What the scenario says of the parameter.
    Help(String),
    /// How it is given.
    Give(String),
    /// Something else that is to be done.
    Do(String),
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "parameter \"{}\": {}", printable(name, 60), self.what)?,
            None => write!(f, "all parameters together: {}", self.what)?,
        }
        match &self.hint {
            Some(Hint::Help(help)) => write!(f, " (help: {help})"),
            Some(Hint::Give(how)) => write!(f, " (give it with {how})"),
            Some(Hint::Do(what)) => write!(f, "; {what}"),
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
    /// secret's value stands its name. One that nobody has given is nothing,
    /// and no secret: there is nothing that would have to come with the call.
    #[must_use]
    pub fn sealed(&self) -> Map<String, Value> {
        let names = self.secret.iter().map(|(name, value)| {
            let stands = match value {
                Value::Null => Value::Null,
                _ => crate::secret::reference(name),
            };
            (name.clone(), stands)
        });
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
                    mistakes.push(Mistake {
                        name: Some(param.name.clone()),
                        what,
                        hint: param.shown_help(),
                    });
                    continue;
                }
            },
            None if param.required => {
                mistakes.push(Mistake {
                    name: Some(param.name.clone()),
                    what: "required, not given".to_owned(),
                    hint: Some(param.shown_help().unwrap_or_else(|| param.how_to_give())),
                });
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
                Some(near) => format!("did you mean \"{near}\"?"),
                None if params.is_empty() => "this scenario has no parameters".to_owned(),
                None => format!("there are: {}", known().collect::<Vec<_>>().join(", ")),
            };
            mistakes.push(Mistake {
                name: Some(name.clone()),
                what: "not declared by this scenario".to_owned(),
                hint: Some(Hint::Do(hint)),
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
            name: None,
            what: format!("{total} bytes, at most {MAX_VALUES} can be sent"),
            hint: Some(Hint::Do(
                "put what is large into a file of the scenario".to_owned(),
            )),
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
                format!(
                    "the value does not fit: {}; it is secret and not shown",
                    self.rule()
                )
            } else {
                what
            }
        })
    }

    /// Whether a value of the kind fits the rules.
    pub(crate) fn fits(&self, value: &Typed) -> Result<(), String> {
        if let Some(min) = self.min.as_ref().filter(|min| value.is_below(min)) {
            return Err(value.off(self.kind, Side::Below(min)));
        }
        if let Some(max) = self.max.as_ref().filter(|max| max.is_below(value)) {
            return Err(value.off(self.kind, Side::Above(max)));
        }
        if let (Some(regex), Value::String(text)) = (&self.matches, value.json())
            && !regex.is_match(text)
        {
            return Err(format!(
                "{} does not match `{}`",
                shown(value.json()),
                printable(regex.as_str(), 80)
            ));
        }
        if !self.one_of.is_empty() && !self.one_of.contains(value) {
            let all: Vec<String> = self.one_of.iter().map(ToString::to_string).collect();
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
        let mut rule = self.kind.to_string();
        match (&self.min, &self.max) {
            (Some(min), Some(max)) => {
                rule.push_str(&format!(", {min} to {max}{}", max.counted(self.kind)));
            }
            (Some(min), None) => {
                rule.push_str(&format!(", at least {min}{}", min.counted(self.kind)));
            }
            (None, Some(max)) => {
                rule.push_str(&format!(", at most {max}{}", max.counted(self.kind)));
            }
            (None, None) => {}
        }
        if let Some(regex) = &self.matches {
            rule.push_str(&format!(", matches {}", printable(regex.as_str(), 80)));
        }
        if !self.one_of.is_empty() {
            let all: Vec<String> = self.one_of.iter().map(ToString::to_string).collect();
            rule.push_str(&format!(", one of {}", all.join(", ")));
        }
        rule
    }

    fn shown_help(&self) -> Option<Hint> {
        let help = self.help.as_ref()?;
        Some(Hint::Help(printable(help, 200)))
    }

    fn how_to_give(&self) -> Hint {
        // What stands on a command line can be seen by everybody there.
        let value = if self.secret {
            "@FILE"
        } else {
            example(self.kind)
        };
        Hint::Give(format!("-p {}={value}", self.name))
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
