//! What is said of an event: pure. Everything that comes from outside is made
//! printable here, and has a bound.

mod git;
pub mod runs;

use muster_protocol::api::{ClusterEvent, Say, Tone, Urgency};
use muster_protocol::text::printable;
use serde_json::Value;

use super::settings::Settings;

/// Longest line that is made of an event's own text, in characters.
const MAX_TEXT: usize = 400;
/// Longest word or name in a line.
const MAX_WORD: usize = 100;

/// What is said of an event; `None` when there is nothing to say.
#[must_use]
pub fn of(event: &ClusterEvent, settings: &Settings) -> Option<Say> {
    match event.kind.as_str() {
        "git.push" => Some(git::push(event)),
        "git.tag" => Some(git::tag(event)),
        "git.deleted" => Some(git::deleted(event)),
        "git.change" => git::change(event),
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
