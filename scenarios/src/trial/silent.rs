//! What tests say of nodes and what never mattered: a slip of the pen, which
//! would let a test hold for nothing.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::names::NodeName;
use muster_protocol::text::printable;
use rhai::Position;

use super::fleet::{Fleet, Rule};

/// Most lines of what nodes were told, and most nodes in one of them.
const MAX_LINES: usize = 12;
const MAX_NODES: usize = 3;

/// Replies in functions that several tests may use, by where they stand: what
/// is to be said if no test needs one, `None` once one did.
pub(super) type Common = BTreeMap<(usize, usize), (Position, Option<String>)>;

/// Adds what became of them in one test.
pub(super) fn add(common: &mut Common, fleet: &Fleet) {
    for rule in fleet.rules.iter().filter(|rule| rule.common) {
        let key = (
            rule.at.line().unwrap_or_default(),
            rule.at.position().unwrap_or_default(),
        );
        let so_far = common
            .entry(key)
            .or_insert_with(|| (rule.at, Some(never(fleet, rule))));
        if rule.fits {
            so_far.1 = None;
        }
    }
}

/// The first `reply` of a test that was never given, or in part not: where it
/// stands, and what to make of it.
pub(super) fn first(fleet: &Fleet) -> Option<(Position, String)> {
    fleet.rules.iter().find_map(|rule| {
        let what = match (rule.fits, rule.counted) {
            (false, _) if rule.common => return None,
            (false, _) => never(fleet, rule),
            // A newer one took its place, as is meant.
            (true, false) => return None,
            (true, true) => parts(rule)?,
        };
        Some((rule.at, what))
    })
}

fn never(fleet: &Fleet, rule: &Rule) -> String {
    let written = &rule.written;
    if fleet.told.is_empty() {
        return format!("{written} was never needed: no node was told anything");
    }
    // Those of its nodes, if it means any.
    let meant = |node: &&NodeName| rule.nodes.fits(node.as_str());
    let mine = |nodes: &BTreeSet<NodeName>| nodes.iter().any(|node| meant(&node));
    let any = fleet.told.values().any(mine);
    let lines: Vec<String> = fleet
        .told
        .iter()
        .filter(|(_, nodes)| !any || mine(nodes))
        .map(|(title, nodes)| {
            let nodes = nodes.iter().filter(|node| !any || meant(node));
            format!("\n    {title}  ({})", named(nodes.collect()))
        })
        .collect();
    let more = match lines.len().saturating_sub(MAX_LINES) {
        0 => String::new(),
        more => format!("\n    and {more} more"),
    };
    let lines = lines[..lines.len().min(MAX_LINES)].concat();
    format!("{written} was never needed; what was told:{lines}{more}")
}

fn named(nodes: Vec<&NodeName>) -> String {
    let names: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
    match names.len().saturating_sub(MAX_NODES) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..MAX_NODES].join(", ")),
    }
}

/// A part of the reply that no answer has.
fn parts(rule: &Rule) -> Option<String> {
    let (written, known) = (&rule.written, &rule.parts);
    let odd = rule.value.keys().find(|part| !known.contains(*part))?;
    let odd = printable(odd, 40);
    Some(if known.is_empty() {
        format!(
            "{written} gives `{odd}`, but all that it answers can only fail: #{{ fails: \"text\" }}"
        )
    } else {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let known = known.join(", ");
        format!("{written} gives `{odd}`, which the answer does not have; there are: {known}")
    })
}
