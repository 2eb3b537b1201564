//! What a step says about itself, beside the output of its programs.

use std::fmt::Write as _;

use muster_protocol::run::Stream;
use muster_protocol::text::{printable, printable_line};
use muster_scenarios::fault::Place;
use muster_scenarios::node::Change;
use serde_json::{Map, Value};

/// Longest line that is shown of anything, in characters.
const MAX_LINE: usize = 2_000;

/// One thing that a step says.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// Something was so, is so now, or would be.
    Change {
        /// What: `package webapp`.
        subject: String,
        /// Where in the script it was asked for.
        at: Option<Place>,
        /// What became of it.
        change: Change,
    },
    /// A line that the script wrote.
    Log {
        /// It.
        text: String,
        /// Where in the script.
        at: Option<Place>,
    },
    /// An event of the node's.
    Event {
        /// Its kind, `scenario.` in front.
        kind: String,
        /// Its fields.
        fields: Map<String, Value>,
    },
    /// The function has failed; the text shows where in the script.
    Failed {
        /// It.
        text: String,
    },
    /// The function has ended, well or not.
    Ended {
        /// What it returned.
        value: Returned,
        /// What it changed.
        tally: Tally,
    },
}

/// What a function returned.
#[derive(Clone, Debug, PartialEq)]
pub enum Returned {
    /// Nothing: it has none, or it failed.
    Nothing,
    /// A value.
    Value(Value),
    /// One that is too large for a result.
    TooLarge {
        /// Its size as JSON.
        bytes: usize,
    },
}

/// How many things a function found, made or would make.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Were so already.
    pub unchanged: u32,
    /// Are so now.
    pub changed: u32,
    /// Would be so; in a dry run.
    pub would_change: u32,
    /// Over everything that would change, with its differences: equal when a
    /// later dry run would do the same. In a dry run only.
    pub digest: Option<String>,
}

impl Note {
    /// As lines of text, with nothing in them that a terminal would obey.
    #[must_use]
    pub fn lines(&self) -> (Stream, String) {
        let mut text = String::new();
        let mut line = |start: &str, rest: &str| {
            let _ = writeln!(text, "{start}{}", printable(rest, MAX_LINE));
        };
        match self {
            Self::Change {
                subject, change, ..
            } => {
                let (word, summary, diff) = match change {
                    Change::Unchanged => return (Stream::Stdout, String::new()),
                    Change::Changed { summary, diff } => ("changed", summary, diff),
                    Change::WouldChange { summary, diff } => ("would change", summary, diff),
                };
                line(&format!("{word}: "), &format!("{subject}: {summary}"));
                for part in diff {
                    line("  ", part);
                }
            }
            Self::Log { text, .. } => {
                for part in text.lines() {
                    line("", part);
                }
            }
            Self::Event { kind, fields } => {
                line(
                    "event ",
                    &format!("{kind} {}", Value::Object(fields.clone())),
                );
            }
            Self::Failed { text: failure } => {
                for part in failure.lines() {
                    // Spaces in front hold a mark below its word.
                    let _ = writeln!(text, "{}", printable_line(part));
                }
                return (Stream::Stderr, text);
            }
            Self::Ended { value, tally } => {
                match value {
                    Returned::Nothing => {}
                    Returned::Value(Value::String(said)) => {
                        for part in said.lines() {
                            line("", part);
                        }
                    }
                    // The last call of a function is its value, and what a
                    // program wrote was shown when it did.
                    Returned::Value(value) if value.get("stdout").is_some() => {}
                    Returned::Value(value) => line("", &value.to_string()),
                    Returned::TooLarge { bytes } => {
                        line(
                            "",
                            &format!("the value has {bytes} bytes, which is too much to return"),
                        );
                    }
                }
                let Tally {
                    unchanged,
                    changed,
                    would_change,
                    ..
                } = tally;
                let counts = [
                    (*changed, "changed"),
                    (*would_change, "would change"),
                    (*unchanged, "unchanged"),
                ];
                let counts: Vec<String> = counts
                    .iter()
                    .filter(|(count, _)| *count > 0)
                    .map(|(count, what)| format!("{count} {what}"))
                    .collect();
                if !counts.is_empty() {
                    line("", &counts.join(", "));
                }
            }
        }
        (Stream::Stdout, text)
    }
}

impl Tally {
    /// Counts one more.
    pub fn count(&mut self, change: &Change) {
        match change {
            Change::Unchanged => self.unchanged += 1,
            Change::Changed { .. } => self.changed += 1,
            Change::WouldChange { .. } => self.would_change += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_lines_that_no_terminal_obeys() {
        let notes = [
            Note::Change {
                subject: "file /etc/x".into(),
                at: None,
                change: Change::Changed {
                    summary: "content".into(),
                    diff: vec!["-a".into(), "+\x1b[2J".into()],
                },
            },
            Note::Change {
                subject: "service x".into(),
                at: None,
                change: Change::Unchanged,
            },
            Note::Log {
                text: "one\ntwo\x07".into(),
                at: None,
            },
            Note::Event {
                kind: "scenario.deployed".into(),
                fields: Map::from_iter([("version".to_owned(), json!("1\n2"))]),
            },
            Note::Ended {
                value: Returned::Value(json!({"a": 1})),
                tally: Tally {
                    unchanged: 1,
                    changed: 2,
                    ..Tally::default()
                },
            },
        ];
        let text: String = notes.iter().map(|note| note.lines().1).collect();
        insta::assert_snapshot!(text, @r#"
        changed: file /etc/x: content
          -a
          +\x1b[2J
        one
        two\x07
        event scenario.deployed {"version":"1\n2"}
        {"a":1}
        2 changed, 1 unchanged
        "#);
    }
}
