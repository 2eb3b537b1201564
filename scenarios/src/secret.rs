//! Secret parameters on their way through a run. In the broker, its journals
//! and requests stands a name in the place of a value; the values travel
//! sealed, and come together with the names on the node.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

/// Under this name in a map stands the name of a secret parameter, in place
/// of its value.
pub(crate) const SECRET: &str = "$secret";
/// What people see in the place of a secret.
const REDACTED: &str = "[redacted]";

/// What stands in the place of a secret's value.
pub(crate) fn reference(name: &str) -> Value {
    Value::Object(Map::from_iter([(SECRET.to_owned(), name.into())]))
}

/// The name of the secret that stands in this place.
pub(crate) fn referred(value: &Value) -> Option<&str> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    map.get(SECRET)?.as_str()
}

/// Whether parameters refer to a secret, which then has to come with them.
#[must_use]
pub fn is_needed(params: &Value) -> bool {
    params
        .as_object()
        .is_some_and(|params| !names(params).is_empty())
}

/// The names of all secrets that parameters refer to.
#[must_use]
pub fn names(params: &Map<String, Value>) -> BTreeSet<String> {
    fn collect(value: &Value, found: &mut BTreeSet<String>) {
        match (referred(value), value) {
            (Some(name), _) => {
                found.insert(name.to_owned());
            }
            (None, Value::Array(items)) => items.iter().for_each(|item| collect(item, found)),
            (None, Value::Object(map)) => map.values().for_each(|item| collect(item, found)),
            (None, _) => {}
        }
    }
    let mut found = BTreeSet::new();
    params.values().for_each(|value| collect(value, &mut found));
    found
}

/// Why parameters cannot be opened.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no value came for the secret parameter `{0}`: start the run anew and give it")]
pub struct NoSecret(String);

/// Values of secret parameters, opened. Shown nowhere; cheap to clone.
#[derive(Clone, Default)]
pub struct Secrets {
    values: Arc<Map<String, Value>>,
    /// Every text in them, the longest first: one that holds another goes as
    /// a whole.
    texts: Arc<[String]>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} {REDACTED})", self.values.len())
    }
}

impl Secrets {
    /// These.
    #[must_use]
    pub fn new(values: Map<String, Value>) -> Self {
        fn texts(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Null | Value::Bool(_) => {}
                Value::Number(number) => found.push(number.to_string()),
                Value::String(text) => {
                    // A message may hold it as it is, or escaped for people.
                    let escaped = muster_protocol::text::printable(text, usize::MAX);
                    found.extend([text.clone(), escaped]);
                    // A tool that prints what it read prints lines.
                    found.extend(text.lines().map(|line| line.trim().to_owned()));
                }
                Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
                Value::Object(map) => map.values().for_each(|item| texts(item, found)),
            }
        }
        let mut found = Vec::new();
        values.values().for_each(|value| texts(value, &mut found));
        found.retain(|text| !text.is_empty());
        found.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        found.dedup();
        Self {
            values: Arc::new(values),
            texts: found.into(),
        }
    }

    /// Whether there is nothing to hide.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Parameters with the values in their places: for the function that is
    /// called, and for nobody else.
    ///
    /// # Errors
    /// [`NoSecret`].
    pub fn open(&self, params: &Map<String, Value>) -> Result<Map<String, Value>, NoSecret> {
        let filled = params.iter().map(|(name, value)| {
            let value = self.filled(value)?;
            Ok((name.clone(), value))
        });
        filled.collect()
    }

    fn filled(&self, value: &Value) -> Result<Value, NoSecret> {
        Ok(match (referred(value), value) {
            (Some(name), _) => self
                .values
                .get(name)
                .cloned()
                .ok_or_else(|| NoSecret(name.to_owned()))?,
            (None, Value::Array(items)) => {
                let items = items.iter().map(|item| self.filled(item));
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            (None, Value::Object(map)) => Value::Object(self.open(map)?),
            (None, other) => other.clone(),
        })
    }

    /// The same text without any secret in it. Everything that a node says of
    /// a call with secrets goes through here: output, changes, errors.
    #[must_use]
    pub fn mask(&self, text: &str) -> String {
        let mut masked = text.to_owned();
        for secret in self.texts.iter() {
            if masked.contains(secret.as_str()) {
                masked = masked.replace(secret.as_str(), REDACTED);
            }
        }
        masked
    }

    /// The same for every text in a value, also for the names in maps.
    #[must_use]
    pub fn mask_value(&self, value: Value) -> Value {
        if self.texts.is_empty() {
            return value;
        }
        match value {
            Value::String(text) => Value::String(self.mask(&text)),
            Value::Number(number) if self.texts.iter().any(|t| *t == number.to_string()) => {
                REDACTED.into()
            }
            Value::Array(items) => items
                .into_iter()
                .map(|item| self.mask_value(item))
                .collect(),
            Value::Object(map) => map
                .into_iter()
                .map(|(name, item)| (self.mask(&name), self.mask_value(item)))
                .collect(),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secrets(value: &Value) -> Secrets {
        Secrets::new(value.as_object().cloned().expect("a map"))
    }

    #[test]
    fn no_text_keeps_a_secret() {
        let all = secrets(&json!({
            "key": "hunter2", "longer": "hunter22", "deep": {"list": ["swordfish"]},
            "lines": "-----BEGIN\nabcdef\n-----END", "escaped": "a\u{1b}b", "pin": 4711, "empty": "",
        }));
        assert_eq!(
            all.mask("hunter22 and hunter2: swordfish, pin 4711"),
            "[redacted] and [redacted]: [redacted], pin [redacted]"
        );
        assert_eq!(all.mask("line 2: abcdef"), "line 2: [redacted]");
        assert_eq!(all.mask("said a\\x1bb"), "said [redacted]");
        assert_eq!(all.mask("nothing"), "nothing");
        assert_eq!(
            all.mask_value(json!({"hunter2": ["x hunter2", 4711, 5]})),
            json!({"[redacted]": ["x [redacted]", "[redacted]", 5]})
        );
        let params = json!({"a": [reference("key")], "b": {"c": reference("pin")}, "d": 1});
        let params = params.as_object().cloned().expect("a map");
        let found: Vec<String> = names(&params).into_iter().collect();
        assert_eq!(found, ["key", "pin"]);
        assert_eq!(
            all.open(&params).map(Value::Object),
            Ok(json!({"a": ["hunter2"], "b": {"c": 4711}, "d": 1}))
        );
        assert!(Secrets::default().open(&params).is_err());
        let shown = format!("{all:?}");
        assert_eq!(shown, "Secrets(7 [redacted])");
    }
}
