//! Who came and who went, as events: one for a burst.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use muster_protocol::api::Presence as State;
use muster_protocol::ids::Serial;
use serde_json::{Map, Value, json};

use super::table::Table;
use crate::inventory::{NodeRecord, Snapshot};

/// A change must last so long to be told: a node that reconnects is no news.
const LASTS: Duration = Duration::from_secs(3);
/// Changes within this time are one event.
const GATHER: Duration = Duration::from_secs(10);
/// Up to so many nodes get an event each.
const EACH: usize = 3;
/// Names in the text of a burst.
const NAMED: usize = 8;
/// Names in its fields.
const LISTED: usize = 2_000;
/// Values of a label that are counted; one with more says nothing.
const VALUES: usize = 8;
/// Roles that are counted.
const ROLES: usize = 64;

/// An event to emit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct News {
    pub(super) kind: &'static str,
    pub(super) subject: String,
    pub(super) text: String,
    pub(super) fields: Map<String, Value>,
}

#[derive(Debug, Default)]
pub(super) struct Reporter {
    /// What was told last of each node that was ever up.
    told: HashMap<Serial, bool>,
    /// Nodes that are not as told, since when.
    pending: HashMap<Serial, Instant>,
    waiting: [Gathered; 2],
}

#[derive(Debug, Default)]
struct Gathered {
    since: Option<Instant>,
    nodes: BTreeSet<Serial>,
}

impl Reporter {
    /// Looks through the table for changes that have lasted.
    pub(super) fn look(&mut self, table: &Table, snapshot: &Snapshot, now: Instant) -> Vec<News> {
        for record in snapshot.iter() {
            let serial = record.serial;
            let up = match table.state(serial, record.last_seen.is_some()) {
                State::Up => true,
                State::Down => false,
                // Not yet one nor the other.
                State::Late | State::Never => continue,
            };
            let Some(told) = self.told.get(&serial).copied() else {
                // What was so when this broker began is no news.
                self.told.insert(serial, up);
                continue;
            };
            if told == up {
                self.pending.remove(&serial);
                continue;
            }
            let since = *self.pending.entry(serial).or_insert(now);
            if now.saturating_duration_since(since) >= LASTS {
                self.pending.remove(&serial);
                self.told.insert(serial, up);
                let gathered = &mut self.waiting[usize::from(up)];
                gathered.since.get_or_insert(now);
                gathered.nodes.insert(serial);
            }
        }
        self.told
            .retain(|serial, _| snapshot.get(*serial).is_some());
        self.pending
            .retain(|serial, _| snapshot.get(*serial).is_some());
        let mut news = Vec::new();
        for (up, gathered) in [false, true].into_iter().zip(&mut self.waiting) {
            let ready = gathered
                .since
                .is_some_and(|s| now.saturating_duration_since(s) >= GATHER);
            if ready {
                gathered.since = None;
                tell(
                    up,
                    &std::mem::take(&mut gathered.nodes),
                    snapshot,
                    &mut news,
                );
            }
        }
        news
    }
}

fn tell(up: bool, nodes: &BTreeSet<Serial>, snapshot: &Snapshot, news: &mut Vec<News>) {
    let kind = if up { "node.up" } else { "node.down" };
    let word = if up { "up" } else { "down" };
    let records: Vec<&NodeRecord> = nodes
        .iter()
        .filter_map(|serial| snapshot.get(*serial))
        .map(AsRef::as_ref)
        .collect();
    let names: Vec<&str> = records
        .iter()
        .map(|record| record.assignment.name.as_str())
        .collect();
    if names.len() <= EACH {
        news.extend(records.iter().map(|record| {
            let name = record.assignment.name.to_string();
            News {
                kind,
                text: format!("{name} is {word}"),
                subject: name,
                fields: fields(&[*record]),
            }
        }));
        return;
    }
    let more = names.len().saturating_sub(NAMED);
    let shown = names[..names.len().min(NAMED)].join(", ");
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    news.push(News {
        kind,
        subject: format!("{} nodes", names.len()),
        text: format!(
            "{} nodes {word} within {} s: {shown}{rest}",
            names.len(),
            GATHER.as_secs()
        ),
        fields: fields(&records),
    });
}

/// Which nodes, how many of each role and label, and what they all have.
fn fields(records: &[&NodeRecord]) -> Map<String, Value> {
    let mut roles: BTreeMap<&str, usize> = BTreeMap::new();
    let mut labels: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for record in records {
        for role in &record.assignment.roles {
            *roles.entry(role.as_str()).or_default() += 1;
        }
        for (key, value) in &record.assignment.labels {
            let values = labels.entry(key.as_str()).or_default();
            *values.entry(value.as_str()).or_default() += 1;
        }
    }
    let common: BTreeMap<&str, &str> = labels
        .iter()
        .filter_map(|(key, values)| {
            let (value, n) = values.first_key_value()?;
            (*n == records.len()).then_some((*key, *value))
        })
        .collect();
    labels.retain(|_, values| values.len() <= VALUES);
    let names: Vec<&str> = records
        .iter()
        .take(LISTED)
        .map(|record| record.assignment.name.as_str())
        .collect();
    let roles: BTreeMap<&str, usize> = roles.into_iter().take(ROLES).collect();
    Map::from_iter([
        ("count".to_owned(), json!(records.len())),
        ("within".to_owned(), json!(GATHER.as_secs())),
        ("names".to_owned(), json!(names)),
        ("roles".to_owned(), json!(roles)),
        ("labels".to_owned(), json!(labels)),
        ("common".to_owned(), json!(common)),
    ])
}
