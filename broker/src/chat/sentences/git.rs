//! What is said of what forges tell.

use muster_protocol::api::{ClusterEvent, Say, Tone, Urgency};
use muster_protocol::text::printable;
use serde_json::Value;

use super::{count, link, short, word};

/// Commits that are named.
const NAMED: usize = 5;
/// Longest subject of a commit, in characters.
const MAX_SUBJECT: usize = 120;

fn news(lines: Vec<String>, tone: Tone, event: &ClusterEvent) -> Say {
    Say {
        urgency: Urgency::News,
        tone,
        about: None,
        lines,
        link: link(event, "url"),
    }
}

fn names(event: &ClusterEvent) -> (String, String) {
    let repository = word(event, "repository").unwrap_or_else(|| printable(&event.subject, 100));
    let who = word(event, "pusher").unwrap_or_else(|| "somebody".to_owned());
    (short(&repository).to_owned(), who)
}

/// `webapp: bruno pushed 2 to main`, and the subjects of the commits.
pub(super) fn push(event: &ClusterEvent) -> Say {
    let (repository, who) = names(event);
    let branch = word(event, "branch").unwrap_or_else(|| "a branch".to_owned());
    let commits = event.fields.get("commits").and_then(Value::as_array);
    let commits: &[Value] = commits.map_or(&[], Vec::as_slice);
    let total = count(event, "commits_total").unwrap_or(commits.len() as u64);
    let flag = |name: &str| event.fields.get(name) == Some(&Value::Bool(true));
    let (what, tone) = match (flag("forced"), flag("created"), total) {
        (true, _, _) => (format!("force-pushed {total} to {branch}"), Tone::Warn),
        (false, true, 0) => (format!("made branch {branch}"), Tone::Plain),
        (false, true, _) => (
            format!("pushed {total} to new branch {branch}"),
            Tone::Plain,
        ),
        _ => (format!("pushed {total} to {branch}"), Tone::Plain),
    };
    let mut lines = vec![format!("{repository}: {who} {what}")];
    let subjects = commits.iter().take(NAMED).map(|commit| {
        let message = commit["message"].as_str().unwrap_or_default();
        let mut lines = message.lines().map(str::trim);
        let first = lines.find(|line| !line.is_empty()).unwrap_or_default();
        format!("  {}", printable(first, MAX_SUBJECT))
    });
    lines.extend(subjects);
    let named = lines.len() as u64 - 1;
    if named > 0 && total > named {
        lines.push(format!("  +{} more", total - named));
    }
    news(lines, tone, event)
}

pub(super) fn tag(event: &ClusterEvent) -> Say {
    let (repository, who) = names(event);
    let tag = word(event, "tag").unwrap_or_default();
    let line = format!("{repository}: {who} pushed tag {tag}");
    news(vec![line], Tone::Plain, event)
}

pub(super) fn deleted(event: &ClusterEvent) -> Say {
    let (repository, who) = names(event);
    let what = match (word(event, "tag"), word(event, "branch")) {
        (Some(tag), _) => format!("tag {tag}"),
        (None, Some(branch)) => format!("branch {branch}"),
        (None, None) => word(event, "ref").unwrap_or_else(|| "something".to_owned()),
    };
    let line = format!("{repository}: {who} removed {what}");
    news(vec![line], Tone::Warn, event)
}

/// A request that is only changed is no news: the push to its branch is.
pub(super) fn change(event: &ClusterEvent) -> Option<Say> {
    let (repository, who) = names(event);
    let action = word(event, "action")?;
    let told = [
        "opened",
        "reopened",
        "merged",
        "closed",
        "approved",
        "ready-for-review",
    ];
    if !told.contains(&action.as_str()) {
        return None;
    }
    let number = word(event, "number").unwrap_or_default();
    let title = event.fields.get("title").and_then(Value::as_str);
    let title = printable(title.unwrap_or_default().trim(), MAX_SUBJECT);
    let line = format!("{repository}: {who} {action} #{number}: {title}");
    let tone = if action == "merged" {
        Tone::Good
    } else {
        Tone::Plain
    };
    Some(news(vec![line], tone, event))
}
