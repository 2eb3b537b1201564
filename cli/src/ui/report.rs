//! What a run did, for people: equal answers together, the odd ones by name.

use std::collections::HashMap;
use std::sync::Arc;

use muster_protocol::names::NodeName;
use muster_protocol::run::{Outcome, RunPhase, Stream, Summary};
use muster_protocol::text::printable_line;
use muster_protocol::units::Timestamp;

use super::book::{Book, Entry};
use super::output::Line;
use super::time::{moment, took};
use super::{Paint, count, pad, thousands, width};
use muster_protocol::fold::{fold, folded};

/// How much of it, and how.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Colours.
    pub paint: Paint,
    /// Columns.
    pub width: usize,
    /// All lines of those that did not succeed, instead of the last ones.
    pub full: bool,
}

/// Lines shown of a node that did not succeed.
const LAST_LINES: usize = 20;
/// Columns that names may take in front of an answer.
const LABEL: usize = 36;
/// Columns that the names of a group may take in a line of their own.
const NAMES: usize = 2_000;
/// Of a node on which what was done was taken back.
const TAKEN_BACK: &str = "taken back";
/// Where the hint of the last line begins, if there is room.
const HINT_COLUMN: usize = 60;

/// Nodes that ended the same way with the same output.
#[derive(Clone, Debug)]
pub struct Group {
    /// Sorted.
    pub nodes: Vec<String>,
    /// How.
    pub outcome: Outcome,
    /// For people, without the outcome's word.
    pub why: Option<String>,
    /// What they printed.
    pub output: Arc<Vec<Line>>,
    /// Whether more was thrown away.
    pub truncated: bool,
    /// Whether the broker had more once.
    pub lost: bool,
    /// What they said after their outcome was settled.
    pub late: Vec<Outcome>,
    /// What they printed is not kept any more.
    pub removed: bool,
    /// What was done there was taken back.
    pub taken_back: bool,
}

/// Groups everything that has an outcome: first what succeeded, then the rest
/// in the order in which people read outcomes; large groups first.
#[must_use]
pub fn groups(book: &Book) -> Vec<Group> {
    // The book holds equal outputs once, so the address stands for the text.
    type Key<'a> = (
        Outcome,
        Option<String>,
        *const Vec<Line>,
        (bool, bool, bool),
        &'a [Outcome],
        Option<&'a NodeName>,
    );
    let mut by_key: HashMap<Key<'_>, Group> = HashMap::new();
    for (name, entry) in &book.nodes {
        let Some(outcome) = entry.result.as_ref().and_then(|r| r.outcome) else {
            continue;
        };
        let why = why(entry);
        // What was removed is not lost, and that is said.
        let lost = entry.lost && book.output_removed.is_none();
        let taken_back = entry.result.as_ref().is_some_and(|r| r.taken_back);
        let key = (
            outcome,
            why.clone(),
            Arc::as_ptr(&entry.output),
            (entry.truncated, lost, taken_back),
            entry.late.as_slice(),
            book.apart.then_some(name),
        );
        by_key
            .entry(key)
            .or_insert_with(|| Group {
                nodes: Vec::new(),
                outcome,
                why,
                output: Arc::clone(&entry.output),
                truncated: entry.truncated,
                lost,
                late: entry.late.clone(),
                removed: book.output_removed.is_some(),
                taken_back,
            })
            .nodes
            .push(name.to_string());
    }
    let mut groups: Vec<Group> = by_key.into_values().collect();
    groups.sort_by(|a, b| {
        (a.outcome, b.nodes.len(), &a.nodes).cmp(&(b.outcome, a.nodes.len(), &b.nodes))
    });
    groups
}

/// Why it did not succeed: the reason, and what the process said of itself
/// where the reason does not.
fn why(entry: &Entry) -> Option<String> {
    let result = entry.result.as_ref()?;
    let mut parts = Vec::new();
    if let Some(reason) = &result.reason
        && result.outcome.is_none_or(|o| reason != word(o))
    {
        parts.push(printable_line(reason));
    }
    let said = |number: i32| {
        result
            .reason
            .as_ref()
            .is_some_and(|r| r.contains(&number.to_string()))
    };
    if let Some(exit) = result.exit.filter(|e| *e != 0 && !said(*e)) {
        parts.push(format!("exit code {exit}"));
    }
    if let Some(signal) = result.signal.filter(|s| !said(*s)) {
        parts.push(format!("signal {signal}"));
    }
    if parts.is_empty() {
        None
    } else {
        Some(parts.join(", "))
    }
}

/// The outcome as people read it.
#[must_use]
pub fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::TimedOut => "timed out",
        other => other.as_str(),
    }
}

/// The outcome, painted.
#[must_use]
pub fn painted(outcome: Outcome, paint: Paint) -> String {
    match outcome {
        Outcome::Succeeded => paint.good(word(outcome)),
        Outcome::Failed | Outcome::TimedOut => paint.bad(word(outcome)),
        _ => paint.odd(word(outcome)),
    }
}

/// First line: `run 7f3k  nginx -v  on 24 nodes  (role=web)`.
#[must_use]
pub fn head(book: &Book, paint: Paint) -> String {
    let batches = if book.batches > 1 {
        format!(" in {}", batches(book.batches))
    } else {
        String::new()
    };
    let left_out = left_out(book.left_out).map_or(String::new(), |text| format!("{text}\n"));
    format!(
        "run {}  {}  on {}{batches}  {}\n{left_out}",
        paint.strong(&book.short),
        paint.strong(&printable_line(&book.title)),
        count(book.total, "node"),
        paint.dim(&format!("({})", printable_line(&book.predicate))),
    )
}

/// That the broker's own machines match too, if some do.
#[must_use]
pub(crate) fn left_out(machines: u32) -> Option<String> {
    let text = match machines {
        0 => return None,
        1 => "1 of the broker's own machines matches and is left out".to_owned(),
        n => format!("{n} of the broker's own machines match and are left out"),
    };
    Some(format!("{text}  (--include-infrastructure)"))
}

fn batches(n: u32) -> String {
    if n == 1 {
        "1 batch".into()
    } else {
        format!("{} batches", thousands(u64::from(n)))
    }
}

/// All groups.
#[must_use]
pub fn body(book: &Book, style: Style) -> String {
    let groups = groups(book);
    let total: usize = groups.iter().map(|g| g.nodes.len()).sum();
    let labels: Vec<_> = groups
        .iter()
        .enumerate()
        .map(|(i, g)| label(g, i == 0, total))
        .collect();
    let columns = labels
        .iter()
        .map(|(l, _)| width(l))
        .filter(|w| *w <= LABEL)
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for (group, (label, names)) in groups.iter().zip(&labels) {
        out.push_str(&one(group, label, names.as_deref(), columns, style));
    }
    if let Some(at) = book.output_removed {
        out.push_str(&style.paint.odd(&removed(at)));
        out.push('\n');
    }
    out
}

/// That there is no output any more, as against none.
#[must_use]
pub fn removed(at: Timestamp) -> String {
    format!("output was removed on {} by retention", moment(at))
}

/// The first group is the rule and says how many; the others are the
/// exceptions and say who, if need be in a line of their own.
fn label(group: &Group, first: bool, total: usize) -> (String, Option<String>) {
    let n = group.nodes.len();
    if n == 1 {
        return (group.nodes[0].clone(), None);
    }
    if first && group.outcome == Outcome::Succeeded && n * 2 > total {
        return (count(n, "node"), None);
    }
    let names = group.nodes.iter().map(String::as_str);
    match fold(names.clone()).as_slice() {
        [one] if width(&one.to_string()) <= LABEL - 12 => (format!("{one} ({n})"), None),
        _ => {
            let short = folded(names.clone(), usize::MAX);
            if width(&short) <= LABEL {
                (short, None)
            } else {
                (count(n, "node"), Some(folded(names, NAMES)))
            }
        }
    }
}

fn one(group: &Group, label: &str, names: Option<&str>, columns: usize, style: Style) -> String {
    let paint = style.paint;
    let well = group.outcome == Outcome::Succeeded;
    let mut first = String::new();
    if !well {
        first = painted(group.outcome, paint);
        if let Some(why) = &group.why {
            first.push_str(": ");
            first.push_str(why);
        }
        if group.taken_back {
            first.push_str(&format!(" ({TAKEN_BACK})"));
        }
    }
    let lines = group.output.as_slice();
    let skip = if well || style.full {
        0
    } else {
        lines.len().saturating_sub(LAST_LINES)
    };
    let shown = &lines[skip..];
    let mut rest: Vec<String> = names.iter().map(|names| paint.dim(names)).collect();
    if skip > 0 {
        rest.push(paint.dim(&format!(
            "… {} before (--full shows all)",
            count(skip, "line")
        )));
    }
    match shown {
        [] if group.lost => {}
        [] if well && group.taken_back => first = paint.odd(TAKEN_BACK),
        [] if well && group.removed => first = paint.dim("(output removed)"),
        [] if well => first = paint.dim("(no output)"),
        [line] if well => first = text(line, paint),
        lines => rest.extend(lines.iter().map(|l| text(l, paint))),
    }
    if group.truncated {
        rest.push(paint.odd("(truncated: there was more output; --output-limit allows more)"));
    }
    if group.lost {
        let what = if lines.is_empty() {
            "(its output is gone: the broker does not have it any more)"
        } else {
            "(some of its output is gone: the broker does not have it any more)"
        };
        rest.push(paint.odd(what));
    }
    for late in &group.late {
        rest.push(paint.odd(&format!(
            "(said `{}` after its outcome was settled)",
            word(*late)
        )));
    }
    let mut out = String::new();
    if first.is_empty() {
        out.push_str(&paint.strong(label));
    } else {
        // A label that is too long for the column gets a line of its own
        // length, and nothing is cut.
        let padded = pad(label, columns);
        out.push_str(&paint.strong(label));
        out.push_str(&padded[label.len()..]);
        out.push_str("  ");
        out.push_str(&first);
    }
    out.push('\n');
    for line in rest {
        if line.is_empty() {
            out.push('\n');
        } else {
            out.push_str("  ");
            out.push_str(&line);
            out.push('\n');
        }
    }
    out
}

/// A line of output. What went to standard error is coloured, or marked where
/// there are no colours.
#[must_use]
pub fn text(line: &Line, paint: Paint) -> String {
    match line.stream {
        Stream::Stdout => line.text.clone(),
        Stream::Note if line.complaint && paint.is_on() => paint.odd(&line.text),
        Stream::Note => line.text.clone(),
        Stream::Stderr if paint.is_on() => paint.odd(&line.text),
        Stream::Stderr => format!("2> {}", line.text),
    }
}

/// `23 succeeded, 1 unreachable`.
#[must_use]
pub fn counts(summary: &Summary, paint: Paint) -> String {
    let parts: Vec<String> = Outcome::ALL
        .iter()
        .filter_map(|o| summary.get(o).map(|n| (o, *n)))
        .filter(|(_, n)| *n > 0)
        .map(|(o, n)| {
            let text = format!("{} {}", thousands(u64::from(n)), word(*o));
            match o {
                Outcome::Succeeded => paint.good(&text),
                Outcome::Failed | Outcome::TimedOut => paint.bad(&text),
                _ => paint.odd(&text),
            }
        })
        .collect();
    if parts.is_empty() {
        "no outcome yet".into()
    } else {
        parts.join(", ")
    }
}

/// Where the last line of a report points to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Onward {
    /// To the run as it is kept.
    Show,
    /// To the run as it goes on.
    Watch,
    /// This is the run as it is kept: to what can be done about it, if
    /// anything must.
    Retry,
}

impl Onward {
    fn hint(self, book: &Book) -> Option<String> {
        let short = &book.short;
        // Rules that are not in force any more can be read in one place only.
        if let Some(node) = book.rolled_back() {
            return Some(format!(
                "What was tried: muster firewall diff {node} --run {short}"
            ));
        }
        match self {
            Self::Show => Some(format!("muster runs show {short}")),
            Self::Watch => Some(format!("muster runs watch {short}")),
            // What was taken back is as it was: there is nothing to make up
            // for on the nodes that failed alone.
            Self::Retry if book.is_taken_back() => None,
            Self::Retry => {
                (book.not_well() > 0).then(|| format!("muster runs retry {short} --failed"))
            }
        }
    }
}

/// The outcomes; those that succeeded for nothing, because what they did was
/// taken back, by themselves.
fn came_to(book: &Book, paint: Paint) -> String {
    let mut summary = book.summary();
    let back = book.succeeded_and_taken_back();
    if back == 0 {
        return counts(&summary, paint);
    }
    let back = back.min(summary.remove(&Outcome::Succeeded).unwrap_or(0));
    let left = book.summary().get(&Outcome::Succeeded).copied();
    let left = left.unwrap_or(0).saturating_sub(back);
    if left > 0 {
        summary.insert(Outcome::Succeeded, left);
    }
    let back = paint.odd(&format!("{} {TAKEN_BACK}", thousands(u64::from(back))));
    if summary.is_empty() {
        return back;
    }
    format!("{}, {back}", counts(&summary, paint))
}

/// Last line: outcomes, time, and where to look next.
#[must_use]
pub fn foot(book: &Book, style: Style, onward: Onward) -> String {
    let mut bare = came_to(book, Paint::plain());
    let mut shown = came_to(book, style.paint);
    let mut add = |text: &str| {
        bare.push_str(text);
        shown.push_str(text);
    };
    if let Some(time) = book.took {
        add(&format!(" in {}", took(time)));
    }
    if let Some(by) = &book.cancelled_by {
        add(&format!(", cancelled by {}", printable_line(by)));
    } else if let Some(why) = &book.lapsed {
        add(&format!(", {}", printable_line(why)));
    } else if let (Some(budget), Some(_)) =
        (&book.max_failures, book.summary().get(&Outcome::Skipped))
    {
        add(&format!(" (budget {budget})"));
    }
    if book.end.is_none() {
        match book.held() {
            Some(held) => add(&format!(", {}", printable_line(&held))),
            None => add(", still running"),
        }
    }
    let Some(hint) = onward.hint(book) else {
        return format!("{shown}\n");
    };
    let column = HINT_COLUMN.min(style.width.saturating_sub(width(&hint)));
    let gap = column.saturating_sub(width(&bare)).max(2);
    format!("{shown}{}{}\n", " ".repeat(gap), style.paint.dim(&hint))
}

/// What the exit code says of it.
#[must_use]
pub fn exit_code(state: RunPhase, summary: &Summary) -> u8 {
    let not_well = |outcome: &Outcome| outcome.is_failure() || *outcome == Outcome::Declined;
    match state {
        // A `main` can come to its end although some of its nodes did not.
        RunPhase::Succeeded if summary.keys().any(not_well) => crate::failure::NOT_ALL,
        RunPhase::Succeeded => 0,
        RunPhase::Cancelled => crate::failure::CANCELLED,
        _ => crate::failure::NOT_ALL,
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
