//! Who came and who went, as events: one for a burst.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use muster_protocol::api::Presence as State;
use muster_protocol::ids::Serial;

use super::table::Table;
use crate::inventory::Snapshot;

/// A change must last so long to be told: a node that reconnects is no news.
const LASTS: Duration = Duration::from_secs(3);
/// Changes within this time are one event.
const GATHER: Duration = Duration::from_secs(2);
/// Up to so many nodes get an event each.
const EACH: usize = 3;
/// Names in the text of a burst.
const NAMED: usize = 8;

/// An event to emit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct News {
    pub(super) kind: &'static str,
    pub(super) subject: String,
    pub(super) text: String,
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
    let names: Vec<&str> = nodes
        .iter()
        .filter_map(|serial| snapshot.get(*serial))
        .map(|record| record.assignment.name.as_str())
        .collect();
    if names.len() <= EACH {
        news.extend(names.iter().map(|name| News {
            kind,
            subject: (*name).to_owned(),
            text: format!("{name} is {word}"),
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
    });
}
