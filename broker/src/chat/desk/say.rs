//! Answers as sentences.

use muster_protocol::api::{Say, Tone, Urgency};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable;

/// Longest line of an answer, in characters.
pub(super) const MAX_LINE: usize = 1_000;

fn reply(tone: Tone, lines: Vec<String>) -> Say {
    Say {
        urgency: Urgency::Reply,
        tone,
        about: None,
        lines,
        link: None,
    }
}

pub(super) fn plain(line: String) -> Say {
    reply(Tone::Plain, vec![line])
}

pub(super) fn good(line: String) -> Say {
    reply(Tone::Good, vec![line])
}

pub(super) fn warn(line: String) -> Say {
    reply(Tone::Warn, vec![line])
}

pub(super) fn bad(line: String) -> Say {
    reply(Tone::Bad, vec![line])
}

pub(super) fn several(lines: Vec<String>) -> Say {
    reply(Tone::Plain, lines)
}

/// The same, about a run.
pub(super) fn about(mut say: Say, run: &str) -> Say {
    say.about = Some(run.to_owned());
    say
}

/// Why something was not done, in one sentence, and what to do in another.
pub(super) fn problem(problem: &Problem) -> Say {
    let mut first = printable(&problem.title, MAX_LINE);
    if let Some(marked) = marked(problem) {
        first.push_str(&format!(" ({marked})"));
    }
    let mut lines = vec![first];
    if let Some(detail) = &problem.detail {
        lines.extend(detail.lines().map(|line| printable(line, MAX_LINE)));
    }
    // What is said of a command line helps nobody here.
    let hint = problem
        .hint
        .as_deref()
        .map(|hint| hint.split("  (--").next().unwrap_or(hint));
    let hint = hint.filter(|hint| {
        !hint.contains("muster ") && !hint.contains("--") && problem.kind != Kind::Denied
    });
    if let Some(hint) = hint {
        lines.push(printable(hint, MAX_LINE));
    }
    let tone = match problem.kind {
        Kind::NoMatch | Kind::PlanGone | Kind::Conflict | Kind::NotFound => Tone::Warn,
        _ => Tone::Bad,
    };
    reply(tone, lines)
}

/// The part of a predicate that a problem is about.
fn marked(problem: &Problem) -> Option<String> {
    let (from, to) = problem.span?;
    let part = problem.source.as_ref()?.get(from..to)?;
    (!part.is_empty() && !problem.title.contains(part)).then(|| printable(part, 60))
}

/// `3 nodes`.
pub(super) fn count(n: usize, what: &str) -> String {
    let s = if n == 1 { "" } else { "s" };
    format!("{} {what}{s}", muster_protocol::text::thousands(n as u64))
}
