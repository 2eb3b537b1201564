//! What a dry run would change, in few words: equal things once, with how
//! many nodes they are on.

use std::collections::BTreeMap;

use muster_protocol::api::Frame;
use muster_protocol::fold::folded;
use muster_protocol::ids::RunId;
use muster_protocol::names::NodeName;
use muster_protocol::note::{Change, Note, Read, Reader};
use muster_protocol::run::{Data, Stream};
use muster_protocol::text::printable;

use super::say::count;
use crate::runs::{Engine, WatchError};

/// Things that are named in a plan's line.
const NAMED: usize = 4;
/// Lines that tell all of it.
const MOST_LINES: usize = 60;
/// How deep steps of steps are looked into.
const DEEPEST: usize = 4;
/// Changes that are kept of one dry run.
const MOST: usize = 20_000;

/// One thing that would change on a node.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct One {
    subject: String,
    summary: String,
    diff: Vec<String>,
}

/// What a dry run would change, node by node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Changes {
    nodes: BTreeMap<NodeName, Vec<One>>,
    count: usize,
}

impl Changes {
    fn take(&mut self, node: &NodeName, read: Read) {
        let Read::Note(Note::Change {
            subject,
            change: Change::WouldChange { summary, diff },
            ..
        }) = read
        else {
            return;
        };
        if self.count >= MOST {
            return;
        }
        self.count += 1;
        let one = One {
            subject: printable(&subject, 200),
            summary: printable(&summary, 200),
            diff: diff.iter().map(|line| printable(line, 300)).collect(),
        };
        self.nodes.entry(node.clone()).or_default().push(one);
    }

    /// On how many nodes something would change.
    pub(super) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// `package webapp 1.4.1 → 1.4.2, service webapp would restart (3 of 12)`.
    /// Nothing when nothing would change.
    pub(super) fn in_short(&self) -> Option<String> {
        // In the order in which a script wants them, the most common first
        // where they differ.
        let mut found: Vec<((&str, &str), usize)> = Vec::new();
        for one in self.nodes.values().flatten() {
            let what = (one.subject.as_str(), one.summary.as_str());
            match found.iter_mut().find(|(known, _)| *known == what) {
                Some((_, n)) => *n += 1,
                None => found.push((what, 1)),
            }
        }
        if found.is_empty() {
            return None;
        }
        let all = self.nodes.len();
        let more = found.len().saturating_sub(NAMED);
        let mut parts: Vec<String> = found
            .iter()
            .take(NAMED)
            .map(|((subject, summary), n)| {
                let some = if *n < all {
                    format!(" (on {n})")
                } else {
                    String::new()
                };
                format!("{subject} {summary}{some}")
            })
            .collect();
        if more > 0 {
            parts.push(format!("and {} more", count(more, "thing")));
        }
        Some(parts.join(", "))
    }

    /// All of it: nodes with the same changes together.
    pub(super) fn in_full(&self) -> Vec<String> {
        let mut alike: BTreeMap<&Vec<One>, Vec<&str>> = BTreeMap::new();
        for (node, changes) in &self.nodes {
            alike.entry(changes).or_default().push(node.as_str());
        }
        let mut groups: Vec<(&Vec<One>, Vec<&str>)> = alike.into_iter().collect();
        groups.sort_by(|(_, a), (_, b)| b.len().cmp(&a.len()).then(a.cmp(b)));
        let mut lines = Vec::new();
        for (changes, nodes) in groups {
            let many = if nodes.len() > 1 {
                format!(" ({})", count(nodes.len(), "node"))
            } else {
                String::new()
            };
            lines.push(format!("{}{many}", folded(nodes.iter().copied(), 120)));
            for one in changes {
                lines.push(format!("  {}  {}", one.subject, one.summary));
                lines.extend(one.diff.iter().map(|line| format!("    {line}")));
            }
        }
        if lines.len() > MOST_LINES {
            let more = lines.len() - MOST_LINES;
            lines.truncate(MOST_LINES);
            lines.push(format!("and {} more", count(more, "line")));
        }
        lines
    }
}

/// Reads what a dry run that has ended would change, with the steps that it
/// was made of.
///
/// # Errors
/// [`WatchError`].
pub(super) async fn of_run(engine: &Engine, run: RunId) -> Result<Changes, WatchError> {
    let mut changes = Changes::default();
    let mut runs = vec![(run, 0)];
    while let Some((run, depth)) = runs.pop() {
        let mut readers: BTreeMap<NodeName, Reader> = BTreeMap::new();
        let mut watch = engine.watch(run, None).await?;
        while let Some(seen) = watch.next().await {
            match seen?.frame {
                Frame::Output {
                    node,
                    stream: Stream::Note,
                    data,
                    ..
                } => {
                    let Data::Text(text) = data else { continue };
                    let reader = readers.entry(node.clone()).or_default();
                    for read in reader.push(text.as_bytes()) {
                        changes.take(&node, read);
                    }
                }
                Frame::StepBegan { step, .. } if depth < DEEPEST => {
                    runs.push((step, depth + 1));
                }
                _ => {}
            }
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn would(subject: &str, summary: &str, diff: &[&str]) -> Read {
        Read::Note(Note::Change {
            subject: subject.into(),
            at: None,
            change: Change::WouldChange {
                summary: summary.into(),
                diff: diff.iter().map(|line| (*line).to_owned()).collect(),
            },
        })
    }

    #[test]
    fn equal_changes_are_told_once() {
        let mut changes = Changes::default();
        assert_eq!(changes.in_short(), None);
        for n in 1..=4 {
            let node: NodeName = format!("web-0{n}").parse().unwrap();
            let from = if n == 4 { "1.3.9" } else { "1.4.1" };
            changes.take(
                &node,
                would("package webapp", &format!("{from} → 1.4.2"), &[]),
            );
            if n == 4 {
                let diff = ["-listen = 8000", "+listen = 8080"];
                changes.take(&node, would("file /etc/webapp.toml", "1 line", &diff));
            }
            changes.take(&node, would("service webapp", "would restart", &[]));
        }
        insta::assert_snapshot!(changes.in_short().unwrap(), @"package webapp 1.4.1 → 1.4.2 (on 3), service webapp would restart, package webapp 1.3.9 → 1.4.2 (on 1), file /etc/webapp.toml 1 line (on 1)");
        insta::assert_snapshot!(changes.in_full().join("\n"), @r"
        web-01 … web-03 (3 nodes)
          package webapp  1.4.1 → 1.4.2
          service webapp  would restart
        web-04
          package webapp  1.3.9 → 1.4.2
          file /etc/webapp.toml  1 line
            -listen = 8000
            +listen = 8080
          service webapp  would restart
        ");
    }
}
