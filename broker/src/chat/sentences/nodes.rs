//! What is said of nodes that come and go.

use muster_protocol::api::{ClusterEvent, Say, Tone, Urgency};
use muster_protocol::fold::folded;
use muster_protocol::text::{printable, thousands};
use serde_json::Value;

use super::{MAX_TEXT, count};
use crate::chat::alarms::table::{How, Told, nodes_of};

/// Roles or labels that a burst is counted by.
const COUNTED: usize = 4;
/// Characters that names may take.
const NAMES: usize = 200;

/// `gva2: 37 nodes down within 10 s (role=hypervisor 12, role=web 25)  !ack 31`.
pub(super) fn of(event: &ClusterEvent, told: Option<&Told>) -> Say {
    let down = event.kind == "node.down";
    let word = if down { "down" } else { "up" };
    let names = nodes_of(event);
    let total = count(event, "count").unwrap_or(1);
    let mut lines = Vec::new();
    if total <= 1 {
        let name = names.first().map_or("a node", String::as_str);
        lines.push(format!("{name} is {word}"));
    } else {
        let pairs = |field: &str| {
            let map = event.fields.get(field).and_then(Value::as_object);
            map.cloned().unwrap_or_default()
        };
        // What they all have says where it happened.
        let place: Vec<String> = pairs("common")
            .iter()
            .filter(|(key, _)| ["zone", "rack", "site", "dc"].contains(&key.as_str()))
            .filter_map(|(_, value)| Some(printable(value.as_str()?, 40)))
            .collect();
        let place = match place.join(" ") {
            place if place.is_empty() => String::new(),
            place => format!("{place}: "),
        };
        let mut roles: Vec<(String, u64)> = pairs("roles")
            .iter()
            .filter_map(|(role, n)| Some((printable(role, 40), n.as_u64()?)))
            .collect();
        roles.sort_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
        let more = roles.len().saturating_sub(COUNTED);
        roles.truncate(COUNTED);
        roles.sort();
        let mut by: Vec<String> = roles
            .iter()
            .map(|(role, n)| format!("role={role} {}", thousands(*n)))
            .collect();
        if more > 0 {
            by.push("…".to_owned());
        }
        let by = if by.is_empty() {
            String::new()
        } else {
            format!(" ({})", by.join(", "))
        };
        let within = count(event, "within").unwrap_or(10);
        lines.push(format!(
            "{place}{} nodes {word} within {within} s{by}",
            thousands(total)
        ));
        let shown = folded(names.iter().map(String::as_str), NAMES);
        let left = total.saturating_sub(names.len() as u64);
        let left = if left > 0 {
            format!(", +{} more", thousands(left))
        } else {
            String::new()
        };
        lines.push(format!("  {shown}{left}"));
    }
    if let Some(told) = told {
        lines[0] += &match told.how {
            How::Over => format!("  (alarm {} is over)", told.number),
            How::Fewer(_) => format!("  (alarm {}: {} are down still)", told.number, told.firing),
            _ => format!("  !ack {}", told.number),
        };
    }
    lines[0] = printable(&lines[0], MAX_TEXT);
    Say {
        // One after the other: what is over does not wait behind what begins.
        urgency: Urgency::Alarm,
        tone: if down { Tone::Bad } else { Tone::Good },
        about: None,
        lines,
        link: None,
    }
}
