//! What changed in the facts of a node, as an event: which fact, what it was
//! and what it is.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_protocol::ids::Serial;
use muster_protocol::text::printable;
use serde_json::{Map, Value, json};

/// Facts whose last name is one of these change all the time: nobody is told.
const NOISY: [&str; 12] = [
    "uptime",
    "load",
    "load1",
    "load5",
    "load15",
    "free",
    "available",
    "used",
    "time",
    "now",
    "temperature",
    "processes",
];
/// The same for endings of names.
const NOISY_ENDS: [&str; 6] = [
    "_seconds",
    "_free",
    "_used",
    "_available",
    "_percent",
    "_time",
];
/// Changes that are named in one event; the others are counted.
const NAMED: usize = 20;
/// Longest value that is told, in characters.
const MAX_VALUE: usize = 200;
/// How deep facts are looked through.
const DEPTH: usize = 6;
/// Most events of one node within [`WITHIN`].
const MOST: usize = 12;
/// See [`MOST`].
const WITHIN: Duration = Duration::from_secs(3_600);

/// A fact that is another one.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its name, with dots.
    pub fact: String,
    /// What it was; null when there was none.
    pub old: Value,
    /// What it is; null when there is none any more.
    pub new: Value,
}

fn is_noisy(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    NOISY.contains(&last) || NOISY_ENDS.iter().any(|end| last.ends_with(end))
}

fn short(value: &Value) -> Value {
    let text = value.to_string();
    match value {
        Value::String(text) => Value::String(printable(text, MAX_VALUE)),
        _ if text.len() > MAX_VALUE => Value::String(printable(&text, MAX_VALUE)),
        value => value.clone(),
    }
}

/// What changed, by name; noisy facts are left out.
#[must_use]
pub fn changes(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<Change> {
    let mut found = Vec::new();
    walk(old, new, "", 0, &mut found);
    found
}

fn walk(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    before: &str,
    depth: usize,
    found: &mut Vec<Change>,
) {
    // Sorted: facts say nothing by their order.
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (was, is) = (old.get(name), new.get(name));
        if was == is {
            continue;
        }
        let fact = format!("{before}{}", printable(name, 60));
        match (was, is) {
            (Some(Value::Object(was)), Some(Value::Object(is))) if depth < DEPTH => {
                walk(was, is, &format!("{fact}."), depth + 1, found);
            }
            _ if is_noisy(&fact) => {}
            (was, is) => found.push(Change {
                fact,
                old: was.map_or(Value::Null, short),
                new: is.map_or(Value::Null, short),
            }),
        }
    }
}

/// The text and the fields of the event.
#[must_use]
pub fn told(node: &str, changes: &[Change]) -> (String, Map<String, Value>) {
    let say = |value: &Value| match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let named: Vec<String> = changes
        .iter()
        .take(3)
        .map(|c| format!("{} {} → {}", c.fact, say(&c.old), say(&c.new)))
        .collect();
    let more = match changes.len().saturating_sub(3) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let text = format!("{node}: {}{more}", named.join(", "));
    let list: Vec<Value> = changes
        .iter()
        .take(NAMED)
        .map(|c| json!({ "fact": c.fact, "old": c.old, "new": c.new }))
        .collect();
    let fields = Map::from_iter([
        ("count".to_owned(), changes.len().into()),
        ("changes".to_owned(), list.into()),
    ]);
    (text, fields)
}

/// Says when a node's facts have been told too often to be told again.
#[derive(Debug, Default)]
pub struct Patience(Mutex<HashMap<Serial, VecDeque<Instant>>>);

impl Patience {
    /// Whether a change of that node is told now.
    pub fn allows(&self, node: Serial, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.entry(node).or_default();
        while told
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= WITHIN)
        {
            told.pop_front();
        }
        let allowed = told.len() < MOST;
        if allowed {
            told.push_back(now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn which_fact_what_it_was_and_what_it_is() {
        let old = facts(json!({
            "os": { "name": "debian", "version": "12.1" }, "cpus": 4, "gone": "x",
            "uptime": 3, "disk": { "free": 1, "root_used": 2 }
        }));
        let new = facts(json!({
            "os": { "name": "debian", "version": "12.2\u{1b}" }, "cpus": 8, "fresh": [1],
            "uptime": 9, "disk": { "free": 7, "root_used": 8 }
        }));
        let found = changes(&old, &new);
        let names: Vec<&str> = found.iter().map(|c| c.fact.as_str()).collect();
        assert_eq!(names, ["cpus", "fresh", "gone", "os.version"]);
        let (text, fields) = told("web-01", &found);
        assert_eq!(
            text,
            "web-01: cpus 4 → 8, fresh nothing → [1], gone x → nothing, and 1 more"
        );
        assert_eq!(
            fields["changes"][2],
            json!({ "fact": "gone", "old": "x", "new": null })
        );
        assert_eq!(
            fields["changes"][3],
            json!({ "fact": "os.version", "old": "12.1", "new": "12.2\\x1b" })
        );
        assert!(changes(&old, &old).is_empty());
        let large = facts(json!({ "cpus": "y".repeat(9_000) }));
        assert!(
            changes(&old, &large)[0]
                .new
                .as_str()
                .unwrap()
                .chars()
                .count()
                <= MAX_VALUE + 1
        );
    }

    #[test]
    fn a_node_that_changes_all_the_time_is_not_told_all_the_time() {
        let (patience, now) = (Patience::default(), Instant::now());
        let node = Serial(1);
        assert_eq!((0..50).filter(|_| patience.allows(node, now)).count(), MOST);
        assert!(patience.allows(Serial(2), now));
        assert!(patience.allows(node, now + WITHIN));
    }
}
