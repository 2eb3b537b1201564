//! What a run came to, in the lines that are said in a channel: equal answers
//! together, the odd ones by name. Pure.

use std::collections::HashMap;

use muster_protocol::api::{CallView, MachineFate, RunNode, RunView, Say, StepView, Tone, Urgency};
use muster_protocol::fold::folded;
use muster_protocol::names::NodeName;
use muster_protocol::run::{Outcome, RunPhase, Summary};
use muster_protocol::text::{printable, thousands};
use muster_protocol::units::elapsed;

/// Most lines that are made of one run; whoever says them cuts further.
const MOST: usize = 30;
/// Lines of output of the largest group.
const FIRST_LINES: usize = 12;
/// Lines of output of each other one.
const OTHER_LINES: usize = 3;
/// Longest line of output or reason, in characters.
const MAX_TEXT: usize = 300;
/// Characters that the names of a group may take.
const NAMES: usize = 60;
/// Longest title, in characters.
const MAX_TITLE: usize = 80;

/// What a node printed, as far as it is shown.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Printed {
    /// Over all of it: what is equal is shown once.
    pub digest: [u8; 32],
    /// The first lines.
    pub first: Vec<String>,
    /// The last lines, where there are more than the first ones.
    pub last: Vec<String>,
    /// How many lines there are.
    pub count: usize,
}

/// What all of them printed; a node that printed nothing is not in it.
pub type Outputs = HashMap<NodeName, Printed>;

/// Nodes that ended the same way with the same output.
struct Group<'a> {
    nodes: Vec<&'a str>,
    outcome: Outcome,
    why: Option<String>,
    printed: Option<&'a Printed>,
    taken_back: bool,
}

/// The outcome as people read it.
fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::TimedOut => "timed out",
        Outcome::Skipped => "not started",
        other => other.as_str(),
    }
}

/// `23 succeeded, 1 unreachable`.
#[must_use]
pub fn counts(summary: &Summary) -> String {
    let parts: Vec<String> = Outcome::ALL
        .iter()
        .filter_map(|outcome| summary.get(outcome).map(|n| (outcome, *n)))
        .filter(|(_, n)| *n > 0)
        .map(|(outcome, n)| format!("{} {}", thousands(u64::from(n)), word(*outcome)))
        .collect();
    if parts.is_empty() {
        "nothing was sent to any node".to_owned()
    } else {
        parts.join(", ")
    }
}

fn groups<'a>(nodes: &'a [RunNode], outputs: &'a Outputs) -> Vec<Group<'a>> {
    type Key = (Outcome, Option<String>, Option<[u8; 32]>, bool);
    let mut by_key: HashMap<Key, Group<'a>> = HashMap::new();
    for node in nodes {
        let Some(outcome) = node.outcome else {
            continue;
        };
        let why = why(node, outcome);
        let printed = outputs.get(&node.node);
        let digest = printed.map(|printed| printed.digest);
        let key = (outcome, why.clone(), digest, node.taken_back);
        let group = by_key.entry(key).or_insert_with(|| Group {
            nodes: Vec::new(),
            outcome,
            why,
            printed,
            taken_back: node.taken_back,
        });
        group.nodes.push(node.node.as_str());
    }
    let mut groups: Vec<Group<'a>> = by_key.into_values().collect();
    for group in &mut groups {
        group.nodes.sort_unstable();
    }
    groups.sort_by(|a, b| {
        (a.outcome, b.nodes.len(), &a.nodes).cmp(&(b.outcome, a.nodes.len(), &b.nodes))
    });
    groups
}

fn why(node: &RunNode, outcome: Outcome) -> Option<String> {
    let says_no_more = [outcome.as_str(), word(outcome)];
    let reason = node.reason.as_deref().filter(|r| !says_no_more.contains(r));
    let mut parts: Vec<String> = reason
        .and_then(|reason| reason.lines().find(|line| !line.trim().is_empty()))
        .map(|line| printable(line.trim(), MAX_TEXT))
        .into_iter()
        .collect();
    let said = |n: i32| reason.is_some_and(|r| r.contains(&n.to_string()));
    if let Some(exit) = node.exit.filter(|exit| *exit != 0 && !said(*exit)) {
        parts.push(format!("exit code {exit}"));
    }
    if let Some(signal) = node.signal.filter(|signal| !said(*signal)) {
        parts.push(format!("signal {signal}"));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The first group is the rule and says how many; the others are the
/// exceptions and say who.
fn label(group: &Group<'_>, first: bool, total: usize) -> String {
    let n = group.nodes.len();
    match group.nodes.as_slice() {
        [one] => (*one).to_owned(),
        _ if first && group.outcome == Outcome::Succeeded && n * 2 > total => {
            format!("{} nodes", thousands(n as u64))
        }
        names => folded(names.iter().copied(), NAMES),
    }
}

fn lines_of(group: &Group<'_>, label: &str, most: usize) -> Vec<String> {
    let well = group.outcome == Outcome::Succeeded;
    let mut head = label.to_owned();
    if !well {
        head += &format!(" {}", word(group.outcome));
        if group.taken_back {
            head += " (taken back)";
        }
        if let Some(why) = &group.why {
            head += &format!(": {why}");
        }
    }
    let Some(printed) = group.printed else {
        let more = match (well, group.taken_back) {
            (true, true) => "  taken back",
            (true, false) => "  succeeded",
            (false, _) => "",
        };
        return vec![head + more];
    };
    if well && printed.count == 1 {
        return vec![format!("{head}  {}", printed.first.concat())];
    }
    // What went wrong is at the end.
    let shown: &[String] = if well || printed.last.is_empty() {
        &printed.first
    } else {
        &printed.last
    };
    let shown = &shown[..shown.len().min(most)];
    let mut lines = vec![head];
    lines.extend(shown.iter().map(|line| format!("  {line}")));
    match printed.count.saturating_sub(shown.len()) {
        0 => {}
        1 => lines.push("  +1 more line".to_owned()),
        more => lines.push(format!("  +{} more lines", thousands(more as u64))),
    }
    lines
}

/// What the run came to, in a few words: `stopped: more than 0 failed`.
fn verdict(view: &RunView) -> String {
    if let Some(by) = &view.cancelled_by {
        return format!("cancelled by {by}");
    }
    if let Some(why) = &view.lapsed {
        return printable(why, MAX_TEXT);
    }
    let skipped = view.brief.summary.get(&Outcome::Skipped);
    let stopped = view.options.max_failures.filter(|_| skipped.is_some());
    match (view.brief.state, stopped) {
        (RunPhase::Succeeded, _) => "succeeded".to_owned(),
        (_, Some(budget)) => format!("stopped (budget {budget})"),
        (RunPhase::UndoFailed, _) => {
            "failed, and what it did could not be taken back everywhere".to_owned()
        }
        (RunPhase::Diverged, _) => "stopped: its `main` did something else than before".to_owned(),
        (phase, _) => phase.as_str().replace('_', " "),
    }
}

fn failures(steps: &[&StepView]) -> Vec<String> {
    let failed = steps.iter().flat_map(|step| {
        step.failures.iter().filter_map(|node| {
            let outcome = node.outcome?;
            let why = why(node, outcome).map(|why| format!(": {why}"));
            Some(format!(
                "{} {} {}{}",
                node.node,
                step.name,
                word(outcome),
                why.unwrap_or_default()
            ))
        })
    });
    failed.take(MOST).collect()
}

/// A machine that could not be taken back.
fn left(call: &CallView) -> Option<String> {
    let machine = call.machine.as_ref()?;
    let MachineFate::Left { hypervisor, why } = &machine.fate else {
        return None;
    };
    let why = printable(why, MAX_TEXT);
    let name = printable(&machine.name, MAX_TITLE);
    Some(format!("machine {name} on {hypervisor} is left: {why}"))
}

/// What is said of the end of a run. `link`: where all of it is.
#[must_use]
pub fn ended(view: &RunView, outputs: &Outputs, link: Option<String>) -> Say {
    let (brief, short) = (&view.brief, &view.brief.short);
    let title = printable(&brief.title, MAX_TITLE);
    // What it waited for is no time that it took.
    let ran = view.gates.is_open() && !brief.summary.is_empty();
    let took = brief.finished.filter(|_| ran).map(|end| {
        let ms = elapsed(brief.created, end).as_millis();
        match ms {
            0..=9_999 => format!(" in {}.{} s", ms / 1_000, ms % 1_000 / 100),
            10_000..=119_999 => format!(" in {} s", ms / 1_000),
            _ => format!(" in {} min", ms / 60_000),
        }
    });
    let mut lines = vec![format!(
        "{short} {title}: {}; {}{}",
        verdict(view),
        counts(&brief.summary),
        took.unwrap_or_default()
    )];
    if let Some(main) = &view.main {
        if let Some(error) = main.error.as_deref().and_then(|e| e.lines().next()) {
            lines.push(printable(error, MAX_TEXT));
        }
        let steps: Vec<&StepView> = main.calls.iter().flat_map(|call| &call.steps).collect();
        lines.extend(failures(&steps));
        let undone: Vec<&StepView> = main.undo.iter().collect();
        lines.extend(failures(&undone));
        lines.extend(main.calls.iter().filter_map(left));
    } else {
        let groups = groups(&view.results, outputs);
        let total = view.results.len();
        // The rule, then the exceptions; but much that went well does not
        // stand before what did not.
        let is_long = |group: &Group<'_>| {
            group.outcome == Outcome::Succeeded
                && group.printed.is_some_and(|printed| printed.count > 1)
        };
        let (long, short): (Vec<_>, Vec<_>) = groups
            .iter()
            .enumerate()
            .partition(|(_, group)| is_long(group));
        for (n, group) in short.into_iter().chain(long) {
            // That all of them succeeded was said, when they said nothing.
            if group.outcome == Outcome::Succeeded && group.printed.is_none() && !group.taken_back {
                continue;
            }
            let most = if n == 0 { FIRST_LINES } else { OTHER_LINES };
            lines.extend(lines_of(group, &label(group, n == 0, total), most));
        }
    }
    if lines.len() > MOST {
        let more = lines.len() - MOST + 1;
        lines.truncate(MOST - 1);
        lines.push(format!("+{} more lines", thousands(more as u64)));
    }
    let odd = brief
        .summary
        .iter()
        .any(|(o, n)| *n > 0 && *o != Outcome::Succeeded);
    let tone = match brief.state {
        RunPhase::Succeeded if !odd => Tone::Good,
        RunPhase::Succeeded | RunPhase::Cancelled => Tone::Warn,
        _ => Tone::Bad,
    };
    Say {
        urgency: Urgency::Reply,
        tone,
        about: Some(short.clone()),
        lines,
        link,
    }
}

#[cfg(test)]
#[path = "result_tests.rs"]
mod tests;
