//! Where something is in an event: `$.data.head_commit.id`.

use std::fmt;
use std::str::FromStr;

use muster_protocol::text::printable;
use serde_json::Value;

/// Longest path, in bytes.
const MAX: usize = 256;
/// Most steps of a path.
const STEPS: usize = 32;
/// What an event itself has; everything else is looked up in its data.
const ATTRIBUTES: [&str; 13] = [
    "specversion",
    "id",
    "source",
    "type",
    "kind",
    "subject",
    "time",
    "data",
    "seq",
    "hook",
    "delivery",
    "principal",
    "digest",
];

/// A place in an event: names and numbers with dots, or in brackets, as in
/// `$.data.commits[0]['message']`; -1 is the last one of a list.
///
/// It begins with an attribute of the event, or with what is in its `data`,
/// or in the `payload` there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Path {
    text: String,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Step {
    Name(String),
    Index(i64),
}

/// Why a text is no path.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is no path: {why}; write it like `$.data.head_commit.id` or `$.commits[0].id`")]
pub struct PathError {
    text: String,
    why: &'static str,
}

impl Path {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What is there in an event (a `CloudEvent` as JSON).
    #[must_use]
    pub fn find<'a>(&self, event: &'a Value) -> Option<&'a Value> {
        let (first, rest) = self.steps.split_first()?;
        let Step::Name(name) = first else { return None };
        if ATTRIBUTES.contains(&name.as_str()) {
            let name = if name == "kind" { "type" } else { name };
            return walk(event.get(name)?, rest);
        }
        let data = event.get("data")?;
        walk(data, &self.steps).or_else(|| walk(data.get("payload")?, &self.steps))
    }

    fn parse(text: &str, rest: &str) -> Result<Self, PathError> {
        let fail = |why| PathError {
            text: printable(text, 80),
            why,
        };
        if text.len() > MAX {
            return Err(fail("it is too long"));
        }
        let mut steps = Vec::new();
        let mut rest = rest;
        while !rest.is_empty() {
            if steps.len() == STEPS {
                return Err(fail("it has too many steps"));
            }
            if let Some(inside) = rest.strip_prefix('[') {
                let quote = inside.chars().next().filter(|c| matches!(c, '\'' | '"'));
                let (step, after) = if let Some(quote) = quote {
                    let (name, after) = inside[1..]
                        .split_once(quote)
                        .ok_or_else(|| fail("a quote is never closed"))?;
                    (Step::Name(name.to_owned()), after.strip_prefix(']'))
                } else {
                    let (number, after) = inside
                        .split_once(']')
                        .ok_or_else(|| fail("a bracket is never closed"))?;
                    let number = number
                        .parse()
                        .map_err(|_| fail("in brackets is a number, or a name in quotes"))?;
                    (Step::Index(number), Some(after))
                };
                steps.push(step);
                rest = after.ok_or_else(|| fail("a bracket is never closed"))?;
            } else {
                rest = match (rest.strip_prefix('.'), steps.is_empty()) {
                    (Some(rest), _) => rest,
                    (None, true) => rest,
                    (None, false) => return Err(fail("a dot is missing")),
                };
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                let name = &rest[..end];
                if name.is_empty() {
                    return Err(fail("a name is missing"));
                }
                if name.contains(['*', '?', '(', ')', '@', ' ']) {
                    return Err(fail("only names and numbers are possible"));
                }
                steps.push(Step::Name(name.to_owned()));
                rest = &rest[end..];
            }
        }
        match steps.first() {
            Some(Step::Name(_)) => Ok(Self {
                text: text.to_owned(),
                steps,
            }),
            Some(Step::Index(_)) => Err(fail("an event is no list")),
            None => Err(fail("it names nothing")),
        }
    }

    /// Without a `$` before it: `data.ref`.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn field(text: &str) -> Result<Self, PathError> {
        let rest = text.strip_prefix('$').unwrap_or(text);
        Self::parse(text, rest)
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        match text.strip_prefix('$') {
            Some(rest) => Self::parse(text, rest),
            None => Err(PathError {
                text: printable(text, 80),
                why: "it begins with `$`",
            }),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

fn walk<'a>(mut value: &'a Value, steps: &[Step]) -> Option<&'a Value> {
    for step in steps {
        value = match step {
            Step::Name(name) => value.as_object()?.get(name)?,
            Step::Index(index) => {
                let list = value.as_array()?;
                let at = match usize::try_from(*index) {
                    Ok(at) => at,
                    Err(_) => list
                        .len()
                        .checked_sub(usize::try_from(index.unsigned_abs()).ok()?)?,
                };
                list.get(at)?
            }
        };
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_path_leads_into_the_event_its_data_and_its_payload() {
        let event = json!({
            "type": "git.push", "id": "1", "subject": "webapp",
            "data": {
                "ref": "refs/heads/main", "id": "inner",
                "commits": [{ "id": "a" }, { "id": "b", "an odd.name": 3 }],
                "payload": { "sender": { "login": "bruno" }, "ref": "not this" }
            }
        });
        let find = |text: &str| text.parse::<Path>().unwrap().find(&event).cloned();
        assert_eq!(find("$.data.ref"), Some(json!("refs/heads/main")));
        assert_eq!(find("$.ref"), Some(json!("refs/heads/main")));
        assert_eq!(find("$.id"), Some(json!("1")));
        assert_eq!(find("$.data.id"), Some(json!("inner")));
        assert_eq!(find("$.kind"), Some(json!("git.push")));
        assert_eq!(find("$.sender.login"), Some(json!("bruno")));
        assert_eq!(find("$.commits[0].id"), Some(json!("a")));
        assert_eq!(find("$['commits'][-1]['an odd.name']"), Some(json!(3)));
        for none in [
            "$.commits[2]",
            "$.commits[-3]",
            "$.nothing",
            "$.subject.x",
            "$.ref[0]",
        ] {
            assert_eq!(find(none), None, "{none}");
        }
        assert_eq!(
            Path::field("data.ref").unwrap().find(&event),
            Some(&json!("refs/heads/main"))
        );
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for bad in [
            "", "$", "data", "$.", "$..a", "$.a..b", "$.a[", "$.a[x]", "$.a['b", "$[0]", "$.*",
            "$.a[0]b",
        ] {
            assert!(bad.parse::<Path>().is_err(), "{bad}");
        }
        assert!(format!("${}", ".a".repeat(33)).parse::<Path>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            if let Ok(path) = format!("${text}").parse::<Path>() {
                let _ = path.find(&json!({ "data": { "a": [1, { "b": 2 }] } }));
            }
        }
    }
}
