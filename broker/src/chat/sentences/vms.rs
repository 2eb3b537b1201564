//! What is said of machines.

use muster_protocol::api::{ChatPlace, ClusterEvent, RunView, Say, Tone, Urgency};
use muster_protocol::fold::folded;
use muster_protocol::names::VmName;
use muster_protocol::run::{Outcome, RunPhase};
use muster_protocol::text::{printable, thousands};
use serde_json::Value;

use super::{MAX_TEXT, count, word};
use crate::vm::Batch;

/// Characters that names may take.
const NAMES: usize = 200;
/// Lines of what a machine has said; whoever says them cuts further.
const LINES: usize = 30;
/// Longest line of those, in characters.
const MAX_LINE: usize = 300;
/// The scenarios that do something with a machine.
const SCENARIOS: [&str; 8] = [
    "vm-create",
    "vm-destroy",
    "vm-undelete",
    "vm-power",
    "vm-resize",
    "vm-snapshot",
    "vm-console",
    "vm-exec",
];

/// A machine that a run does something with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OfMachine {
    /// Its name.
    pub name: VmName,
    /// Whether it is asked for with others, of which one answer is given.
    pub is_one_of_many: bool,
}

/// Whether an event tells of a run that does something with a machine.
#[must_use]
pub fn is_of_machine(event: &ClusterEvent) -> bool {
    let scenario = event.fields.get("scenario").and_then(Value::as_str);
    super::runs::is_of_run(event) && scenario.is_some_and(|name| SCENARIOS.contains(&name))
}

/// Where whoever asked for something is told of the machine's end of it.
#[must_use]
pub fn asked_at(event: &ClusterEvent) -> Option<ChatPlace> {
    let field = match event.kind.as_str() {
        "vm.created"
        | "vm.failed"
        | "vm.deleted"
        | "vm.changed"
        | "vm.configured"
        | "vm.configure-failed" => "chat",
        "alarm.vm-doubtful" => "asker",
        _ => return None,
    };
    if event.source != muster_protocol::api::OWN_SOURCE {
        return None;
    }
    serde_json::from_value(event.fields.get(field)?.clone()).ok()
}

fn tone(event: &ClusterEvent) -> Tone {
    match event.kind.as_str() {
        "vm.created" | "vm.changed" | "vm.configured" | "vm.drift-ended" => Tone::Good,
        "vm.failed" | "vm.configure-failed" | "alarm.vm-doubtful" => Tone::Bad,
        "vm.drift" => Tone::Warn,
        _ => Tone::Plain,
    }
}

/// The text, a line of it a line; the first one without what the place says
/// already.
fn lines(text: &str) -> Vec<String> {
    let text = text.lines().filter(|line| !line.trim().is_empty());
    let mut lines: Vec<String> = text.map(|line| printable(line, MAX_TEXT)).collect();
    if lines.len() > LINES {
        lines.truncate(LINES);
    }
    lines
}

/// What is said in a channel that machines are routed to.
pub(super) fn of(event: &ClusterEvent) -> Say {
    Say {
        urgency: Urgency::News,
        tone: tone(event),
        about: None,
        lines: match event.text.as_str() {
            "" => vec![format!("{} {}", event.kind, printable(&event.subject, 100))],
            text => lines(text),
        },
        link: None,
    }
}

/// How machines are that were asked for together; the id of what is said when
/// none is open any more, which is said once.
#[must_use]
pub fn batch(event: &ClusterEvent) -> Option<Batch> {
    serde_json::from_value(event.fields.get("batch")?.clone()).ok()
}

/// What whoever asked is told of the end.
#[must_use]
pub fn ended(event: &ClusterEvent) -> Say {
    let about = word(event, "run").map(|run| run.chars().take(4).collect());
    let say = |urgency, tone, lines| Say {
        urgency,
        tone,
        about,
        lines,
        link: None,
    };
    if let Some(batch) = batch(event) {
        let (up, failed) = (batch.up.len(), batch.failed.len());
        let all = up + failed + batch.open;
        if batch.open > 0 {
            let bad = match failed {
                0 => String::new(),
                n => format!(", {} not made", thousands(n as u64)),
            };
            let line = format!("{up} of {all} machines are up{bad}");
            return say(Urgency::Progress, Tone::Plain, vec![line]);
        }
        let names = |all: &[VmName]| folded(all.iter().map(VmName::as_str), NAMES);
        let mut said = match (up, failed) {
            (up, 0) => vec![format!(
                "{up} machines are up: {}{}",
                names(&batch.up),
                took(event)
            )],
            (0, failed) => vec![format!("none of {failed} machines was made")],
            (up, _) => vec![format!(
                "{up} of {all} machines are up: {}{}",
                names(&batch.up),
                took(event)
            )],
        };
        if failed > 0 {
            said.push(format!(
                "not made: {}; !vm list --deleted says why",
                names(&batch.failed)
            ));
        }
        let tone = if failed > 0 { Tone::Bad } else { Tone::Good };
        return say(Urgency::Reply, tone, said);
    }
    let text = event.text.strip_prefix("machine ").unwrap_or(&event.text);
    let left = event.fields.get("left").and_then(Value::as_str);
    let text = match left {
        Some("nothing") => text.replacen(
            " was not made: ",
            " was not made, and nothing of it is left: ",
            1,
        ),
        _ => text.to_owned(),
    };
    let mut said = lines(&text);
    if let Some(first) = said.first_mut() {
        first.push_str(&took(event));
    }
    say(Urgency::Reply, tone(event), said)
}

/// ` (41 s)`.
fn took(event: &ClusterEvent) -> String {
    match count(event, "seconds") {
        None => String::new(),
        Some(seconds @ 0..=119) => format!(" ({seconds} s)"),
        Some(seconds) => format!(" ({} min)", seconds / 60),
    }
}

/// How far a machine is that is being made, by the last step of its run that
/// has ended.
#[must_use]
pub fn stage(view: &RunView, of: &OfMachine) -> Option<Say> {
    let main = view.main.as_ref()?;
    let mut steps = main.calls.iter().flat_map(|call| &call.steps);
    let done = |step: &&muster_protocol::api::StepView| {
        step.state == Some(RunPhase::Succeeded)
            && step
                .summary
                .keys()
                .all(|outcome| *outcome == Outcome::Succeeded)
    };
    let last = steps.rfind(done)?;
    let far = match last.name.as_str() {
        "image" => "its image is there",
        "create" => "it was started; waiting until it is up",
        "unseed" => "it is up; its invite is taken out",
        _ => return None,
    };
    Some(Say {
        urgency: Urgency::Progress,
        tone: Tone::Plain,
        about: Some(view.brief.short.clone()),
        lines: vec![format!("{}: {far}", of.name)],
        link: None,
    })
}

/// What a machine has said: the end of its console, or what a program in it
/// printed. `link`: where all of it is.
#[must_use]
pub fn shown(view: &RunView, of: &OfMachine, link: Option<String>) -> Say {
    let say = |tone, lines| Say {
        urgency: Urgency::Reply,
        tone,
        about: Some(view.brief.short.clone()),
        lines,
        link,
    };
    let name = &of.name;
    let node = view.results.first();
    if view.brief.state != RunPhase::Succeeded {
        let why = node.and_then(|node| node.reason.as_deref());
        let why = why.unwrap_or(view.brief.state.as_str());
        return say(Tone::Bad, lines(&format!("{name}: not done: {why}")));
    }
    match node.and_then(|node| node.value.as_ref()) {
        Some(Value::String(console)) => {
            let mut said = vec![format!("the end of the console of {name}:")];
            said.extend(cut(console, true));
            if said.len() == 1 {
                said = vec![format!("{name} has written nothing to its console")];
            }
            say(Tone::Plain, said)
        }
        Some(value) => {
            let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
            let exit = value.get("exit").and_then(Value::as_i64).unwrap_or(0);
            let mut said = cut(text("stdout"), false);
            said.extend(cut(text("stderr"), false));
            let (tone, head) = match (exit, said.len()) {
                (0, 0) => (Tone::Good, format!("{name}: done, and it printed nothing")),
                (0, 1) => (
                    Tone::Good,
                    format!("{name}  {}", said.remove(0).trim_start()),
                ),
                (0, _) => (Tone::Good, format!("{name}:")),
                (exit, _) => (Tone::Bad, format!("{name}: exit code {exit}")),
            };
            said.insert(0, head);
            say(tone, said)
        }
        None => {
            let large = node.is_some_and(|node| node.value_bytes.is_some());
            let why = if large {
                "what it said is too large to be shown here"
            } else {
                "it said nothing"
            };
            say(Tone::Plain, vec![format!("{name}: {why}")])
        }
    }
}

/// As many lines as are shown, of the beginning or of the end, and how many
/// there are beside them.
fn cut(text: &str, the_end: bool) -> Vec<String> {
    let all: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let more = all.len().saturating_sub(LINES);
    let shown = if the_end {
        &all[more..]
    } else {
        &all[..all.len() - more]
    };
    let mut lines: Vec<String> = shown
        .iter()
        .map(|line| format!("  {}", printable(line.trim_end(), MAX_LINE)))
        .collect();
    if more > 0 && !the_end {
        lines.push(format!("  +{} more lines", thousands(more as u64)));
    }
    lines
}

#[cfg(test)]
mod tests;
