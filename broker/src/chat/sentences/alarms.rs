//! What is said of alarms.

use std::time::Duration;

use muster_protocol::api::{ClusterEvent, Say, Tone, Urgency};
use muster_protocol::text::printable;
use serde_json::Value;

use super::{MAX_TEXT, MAX_WORD, link, plain, word};
use crate::chat::alarms::table::{How, Told};

/// Alarms of a group that are named.
const NAMED: usize = 5;

/// What an alarm of a group is: on which instance, and what about it.
fn one(alarm: &Value, group: &str) -> (String, String) {
    let text = |name: &str| {
        let text = alarm.get(name).and_then(Value::as_str).unwrap_or_default();
        printable(text.trim(), MAX_WORD * 2)
    };
    let (name, instance, summary) = (text("name"), text("instance"), text("summary"));
    let what = match (name.as_str(), instance.as_str()) {
        (name, "") => name.to_owned(),
        (name, instance) if name == group || name.is_empty() => instance.to_owned(),
        (name, instance) => format!("{name} on {instance}"),
    };
    (what, summary)
}

/// A time as people say it: `12 min`.
pub(super) fn lasted(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..=119 => format!("{secs} s"),
        secs @ 120..=7_199 => format!("{} min", secs / 60),
        secs @ 7_200..=172_799 => format!("{} h", secs / 3_600),
        secs => format!("{} d", secs / 86_400),
    }
}

fn tone(event: &ClusterEvent) -> Tone {
    match word(event, "severity").as_deref() {
        Some("info" | "none" | "notice") => Tone::Plain,
        Some("warning" | "warn" | "minor") => Tone::Warn,
        _ => Tone::Bad,
    }
}

/// What monitoring says.
pub(super) fn group(event: &ClusterEvent, told: Option<&Told>) -> Say {
    let over = event.kind == "alarm.resolved";
    let name = printable(&event.subject, MAX_WORD);
    let alarms = event.fields.get("alarms").and_then(Value::as_array);
    let alarms: &[Value] = alarms.map_or(&[], Vec::as_slice);
    let number = told
        .map(|told| format!("  !ack {}", told.number))
        .unwrap_or_default();
    let mut lines = match (alarms, over) {
        ([], _) => plain(event).lines,
        ([alarm], _) => {
            let (what, summary) = one(alarm, &name);
            let on = match (name.as_str(), what.as_str()) {
                ("", "") => "an alarm".to_owned(),
                ("", _) => what,
                (_, "") => name,
                _ if what == name => name,
                _ => format!("{name} on {what}"),
            };
            let how = match (over, summary.as_str()) {
                (true, _) => ": resolved".to_owned(),
                (false, "") => String::new(),
                (false, summary) => format!(": {summary}"),
            };
            vec![format!("{on}{how}")]
        }
        (alarms, _) => {
            let word = if over { "resolved" } else { "firing" };
            let title = if name.is_empty() { "alarms" } else { &name };
            let mut lines = vec![format!("{title}: {} {word}", alarms.len())];
            for alarm in alarms.iter().take(NAMED) {
                let (what, summary) = one(alarm, &name);
                lines.push(match (summary.as_str(), over) {
                    ("", _) | (_, true) => format!("  {what}"),
                    (summary, false) => format!("  {what}: {summary}"),
                });
            }
            let more = alarms.len().saturating_sub(NAMED);
            if more > 0 {
                lines.push(format!("  +{more} more"));
            }
            lines
        }
    };
    if let Some(told) = told {
        let time = lasted(told.lasted);
        lines[0] += &match told.how {
            How::New => number,
            How::Again => format!(", still, for {time}{number}"),
            How::More(more) => format!(", {more} of them new, {} in all{number}", told.firing),
            How::Fewer(_) => format!(", {} fire still{number}", told.firing),
            How::Over => format!(" after {time}"),
        };
    }
    lines[0] = printable(&lines[0], MAX_TEXT);
    Say {
        urgency: Urgency::Alarm,
        tone: if over { Tone::Good } else { tone(event) },
        about: None,
        lines,
        link: link(event, "url"),
    }
}

/// What muster itself raises.
pub(super) fn own(event: &ClusterEvent, told: Option<&Told>) -> Say {
    let mut say = plain(event);
    match told.map(|told| (told.how, told.number)) {
        Some((How::Over, _)) => say.tone = Tone::Good,
        Some((How::Again, number)) => say.lines[0] += &format!(" (again)  !ack {number}"),
        Some((_, number)) => say.lines[0] += &format!("  !ack {number}"),
        None => {}
    }
    if matches!(event.kind.as_str(), "alarm.acked" | "alarm.silenced") {
        say.tone = Tone::Plain;
        say.urgency = Urgency::News;
    }
    say
}
