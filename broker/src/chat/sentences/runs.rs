//! What is said of runs.

use muster_protocol::api::{ChatPlace, ClusterEvent, Say, Tone, Urgency};
use muster_protocol::text::{printable, thousands};
use serde_json::Value;

use super::{MAX_TEXT, count, word};
use crate::chat::settings::Settings;

/// Whether it tells of a run.
pub fn is_of_run(event: &ClusterEvent) -> bool {
    matches!(
        event.kind.as_str(),
        "run.begun" | "run.progress" | "run.ended" | "run.waits" | "run.step-failed"
    )
}

/// Where whoever asked for the run is told of it.
#[must_use]
pub fn asked_at(event: &ClusterEvent) -> Option<ChatPlace> {
    if !is_of_run(event) || event.source != muster_protocol::api::OWN_SOURCE {
        return None;
    }
    let place = event.fields.get("chat")?;
    serde_json::from_value(place.clone()).ok()
}

fn short(event: &ClusterEvent) -> String {
    printable(&event.subject, 32)
}

fn say(event: &ClusterEvent, settings: &Settings, line: String) -> Say {
    let short = short(event);
    let run = word(event, "run").unwrap_or_default();
    Say {
        urgency: Urgency::News,
        tone: Tone::Plain,
        link: Some(settings.link_of(&run, &short)),
        about: Some(short),
        lines: vec![printable(&line, MAX_TEXT)],
    }
}

/// `12 nodes`.
fn nodes(event: &ClusterEvent) -> String {
    match count(event, "nodes").unwrap_or(0) {
        1 => "1 node".to_owned(),
        n => format!("{} nodes", thousands(n)),
    }
}

/// What is said in a channel that runs are routed to.
pub(super) fn of(event: &ClusterEvent, settings: &Settings) -> Say {
    let (short, text) = (short(event), event.text.as_str());
    match event.kind.as_str() {
        "run.begun" => {
            let title = word(event, "title").or_else(|| word(event, "scenario"));
            let by = word(event, "principal").unwrap_or_default();
            let door = word(event, "door").unwrap_or_default();
            let title = title.unwrap_or_default();
            let line = format!("{short} {title} started by {by} ({door}): {}", nodes(event));
            say(event, settings, line)
        }
        "run.progress" => progress(event),
        "run.waits" => waits(event, settings),
        "run.ended" => Say {
            tone: tone(event),
            ..say(event, settings, format!("{short} {text}"))
        },
        _ => Say {
            tone: Tone::Bad,
            ..say(event, settings, format!("{short} {text}"))
        },
    }
}

fn tone(event: &ClusterEvent) -> Tone {
    match word(event, "state").as_deref() {
        Some("succeeded") if all_well(event) => Tone::Good,
        Some("succeeded" | "cancelled") => Tone::Warn,
        _ => Tone::Bad,
    }
}

fn all_well(event: &ClusterEvent) -> bool {
    let outcomes = event.fields.get("outcomes").and_then(Value::as_object);
    outcomes.is_none_or(|outcomes| {
        outcomes
            .iter()
            .all(|(outcome, n)| outcome == "succeeded" || n.as_u64() == Some(0))
    })
}

/// `8k2d 6/12, all well`.
pub fn progress(event: &ClusterEvent) -> Say {
    let short = short(event);
    let outcomes = event.fields.get("outcomes").and_then(Value::as_object);
    let how = if all_well(event) {
        "all well".to_owned()
    } else {
        let parts: Vec<String> = outcomes
            .into_iter()
            .flatten()
            .filter_map(|(outcome, n)| Some((outcome, n.as_u64().filter(|n| *n > 0)?)))
            .map(|(outcome, n)| format!("{n} {}", printable(&outcome.replace('_', " "), 20)))
            .collect();
        parts.join(", ")
    };
    let far = match (count(event, "done"), count(event, "step")) {
        (Some(done), _) => format!("{done}/{}", count(event, "nodes").unwrap_or(0)),
        (None, Some(step)) => format!("step {step} done"),
        (None, None) => "goes on".to_owned(),
    };
    Say {
        urgency: Urgency::Progress,
        tone: if all_well(event) {
            Tone::Plain
        } else {
            Tone::Warn
        },
        about: Some(short.clone()),
        lines: vec![format!("{short} {far}, {how}")],
        link: None,
    }
}

/// What it waits for, and what to write about it.
pub fn waits(event: &ClusterEvent, settings: &Settings) -> Say {
    let short = short(event);
    // The event says what to type in a shell.
    let text = event
        .text
        .rsplit_once("; ")
        .map_or(event.text.as_str(), |(text, _)| text);
    let text = text.strip_prefix("run ").unwrap_or(text);
    let what = match word(event, "for").as_deref() {
        Some("confirmation") => format!("  !yes {short} · !no {short}"),
        Some("approvals") => format!("  !approve {short}"),
        Some("answer") => format!("  !answer {short} TEXT"),
        _ => String::new(),
    };
    let mut said = say(event, settings, String::new());
    said.lines = vec![format!("{}{what}", printable(text, MAX_TEXT))];
    said.urgency = Urgency::Reply;
    said
}

/// The same to whoever asked for the run, unless they were answered with it.
#[must_use]
pub fn waits_since(event: &ClusterEvent, settings: &Settings) -> Option<Say> {
    let first = event.fields.get("first") == Some(&Value::Bool(true));
    (!first).then(|| waits(event, settings))
}

/// That a run which had to wait has begun, to whoever asked for it; one that
/// began at once was the answer itself.
#[must_use]
pub fn begun(event: &ClusterEvent) -> Option<Say> {
    if event.fields.get("waited") != Some(&Value::Bool(true)) {
        return None;
    }
    let short = short(event);
    let batches = match count(event, "batches").unwrap_or(1) {
        0 | 1 => String::new(),
        n => format!(", {n} batches"),
    };
    Some(Say {
        urgency: Urgency::Reply,
        tone: Tone::Plain,
        lines: vec![format!("{short} started: {}{batches}", nodes(event))],
        about: Some(short),
        link: None,
    })
}
