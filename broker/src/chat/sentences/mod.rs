//! What is said of an event: pure. Everything that comes from outside is made
//! printable here, and has a bound.

mod alarms;
pub mod builds;
mod git;
mod nodes;
pub mod runs;
pub mod vms;

use muster_protocol::api::{ClusterEvent, Say, Tone, Urgency};
use muster_protocol::text::printable;
use serde_json::Value;

use super::alarms::table::Came;
use super::builds::results::Ended;
use super::settings::Settings;

/// Longest line that is made of an event's own text, in characters.
const MAX_TEXT: usize = 400;
/// Longest word or name in a line.
const MAX_WORD: usize = 100;

/// What is known of an event beside what it says itself.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// What it comes to among the alarms.
    pub alarm: Option<Came>,
    /// How the build ended, beside the one before it.
    pub build: Option<Ended>,
}

/// What is said of an event in a channel that it is routed to; `None` when
/// there is nothing to say. `exactly`: the route names this very kind.
#[must_use]
pub fn of(event: &ClusterEvent, known: &Known, settings: &Settings, exactly: bool) -> Option<Say> {
    if known.alarm == Some(Came::Quiet) {
        return None;
    }
    let told = match &known.alarm {
        Some(Came::Told(told)) => Some(told),
        _ => None,
    };
    match event.kind.as_str() {
        "git.push" => Some(git::push(event)),
        "git.tag" => Some(git::tag(event)),
        "git.deleted" => Some(git::deleted(event)),
        "git.change" => git::change(event),
        "build.queued" | "build.started" => exactly.then(|| builds::begun(event)),
        "build.finished" => builds::finished(event, known.build, false),
        "node.down" | "node.up" => Some(nodes::of(event, told)),
        "alarm.firing" | "alarm.resolved" => Some(alarms::group(event, told)),
        kind if kind.starts_with("alarm.") => Some(alarms::own(event, told)),
        kind if kind.starts_with("vm.") => Some(vms::of(event)),
        _ if runs::is_of_run(event) => Some(runs::of(event, settings)),
        _ => Some(plain(event)),
    }
}

/// An event as it tells of itself.
#[must_use]
pub fn plain(event: &ClusterEvent) -> Say {
    let text = match event.text.as_str() {
        "" => format!("{} {}", event.kind, event.subject),
        text => text.to_owned(),
    };
    let is_alarm = event.kind.starts_with("alarm.");
    Say {
        urgency: if is_alarm {
            Urgency::Alarm
        } else {
            Urgency::News
        },
        tone: if is_alarm { Tone::Bad } else { Tone::Plain },
        about: None,
        lines: vec![printable(&text, MAX_TEXT)],
        link: link(event, "url"),
    }
}

/// A field that is a text, as it can be shown.
fn word(event: &ClusterEvent, name: &str) -> Option<String> {
    let text = event.fields.get(name)?.as_str()?;
    (!text.is_empty()).then(|| printable(text, MAX_WORD))
}

/// A field that is a link.
fn link(event: &ClusterEvent, name: &str) -> Option<String> {
    let text = event.fields.get(name)?.as_str()?;
    let is_link = text.starts_with("https://") || text.starts_with("http://");
    let plain = text.len() <= 500 && text.bytes().all(|b| b.is_ascii_graphic());
    (is_link && plain).then(|| text.to_owned())
}

/// A field that is a number.
fn count(event: &ClusterEvent, name: &str) -> Option<u64> {
    event.fields.get(name).and_then(Value::as_u64)
}

/// The last part of a path, as people call a repository.
fn short(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests;
