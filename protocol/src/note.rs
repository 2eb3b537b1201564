//! What a step says about itself, beside the output of its programs: what it
//! changed, lines that its script wrote, events, why it failed.
//!
//! Notes travel as output of a stream of their own ([`Stream::Note`]), one
//! JSON object a line, so that they are bounded, kept, retained and shown
//! again as all output is. Like all output they are data for ever: whoever
//! shows one goes through [`Note::said`], and a line that is no note is shown
//! as text.
//!
//! [`Stream::Note`]: crate::run::Stream::Note

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::ids::Serial;
use crate::nodeset::NodeSet;
use crate::text::printable;
use crate::text_form::text_form;

/// Longest line that is shown of anything, in characters.
const MAX_LINE: usize = 2_000;
/// Longest line of JSON that is read as a note, in bytes: a value of the
/// largest size that a script can return, and what is around it.
pub const MAX_NOTE: usize = 512 * 1024;
/// Most bytes of a value, as JSON, that travels in a result. A larger one is
/// in the step's notes, and the result says its size.
pub const MAX_VALUE: usize = 64 * 1024;
/// Most events that one step makes.
pub const MAX_EVENTS: u32 = 100;
/// Most bytes of an event's fields, as JSON.
pub const MAX_EVENT: usize = 16 * 1024;
/// Longest kind of an event, with what is in front of it.
pub const MAX_KIND: usize = 70;
/// In front of the kind of each event that a scenario makes.
pub const EVENT_PREFIX: &str = "scenario.";

/// A place in a script: line and column from 1.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(deny_unknown_fields)]
pub struct At {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

/// What became of one thing that a script wanted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "change", deny_unknown_fields)]
pub enum Change {
    /// It was so already.
    Unchanged,
    /// It is so now.
    Changed {
        /// One line: `1.4.1 → 1.4.2`.
        summary: String,
        /// Lines with `-`, `+` or a blank in front.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        diff: Vec<String>,
    },
    /// It would be so; this was a dry run.
    WouldChange {
        /// One line.
        summary: String,
        /// Lines.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        diff: Vec<String>,
    },
}

/// One thing that a step says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "note")]
pub enum Note {
    /// Something was so, is so now, or would be.
    Change {
        /// What: `package webapp`.
        subject: String,
        /// Where in the script it was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<At>,
        /// What became of it.
        #[serde(flatten)]
        change: Change,
    },
    /// A line that the script wrote.
    Log {
        /// It.
        text: String,
        /// Where in the script.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<At>,
    },
    /// An event of the node's.
    Event {
        /// Its kind, [`EVENT_PREFIX`] in front.
        kind: String,
        /// Its fields.
        fields: Map<String, Value>,
    },
    /// The function has failed; the text shows where in the script.
    Failed {
        /// It: several lines.
        text: String,
    },
    /// It is tried again.
    Again {
        /// Which try begins, from 2.
        attempt: u32,
        /// Of how many.
        of: u32,
    },
    /// The machine is restarted; the function goes on after it.
    Restart,
    /// The agent was ended in the middle, and the function, which may be, is
    /// executed from its beginning.
    Repeat,
    /// What the function returned, where that is too large for the result.
    Value {
        /// It.
        value: Value,
    },
}

/// A line for people, and whether it is a complaint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shown {
    /// The line, with nothing in it that a terminal would obey.
    pub text: String,
    /// Whether it tells of something that went wrong.
    pub complaint: bool,
}

impl Note {
    /// As JSON on one line, with its end.
    #[must_use]
    pub fn line(&self) -> String {
        // Strings and numbers always have a JSON form.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }

    /// What people see of it, with nothing that a terminal would obey. What
    /// was so already says nothing.
    #[must_use]
    pub fn said(&self) -> Vec<Shown> {
        let mut lines = Vec::new();
        let complaint = matches!(self, Self::Failed { .. });
        let mut line = |text: String| lines.push(Shown { text, complaint });
        match self {
            Self::Change {
                subject, change, ..
            } => {
                let (word, summary, diff) = match change {
                    Change::Unchanged => return lines,
                    Change::Changed { summary, diff } => ("changed", summary, diff),
                    Change::WouldChange { summary, diff } => ("would change", summary, diff),
                };
                line(format!(
                    "{word}: {}: {}",
                    printable(subject, MAX_LINE),
                    printable(summary, MAX_LINE)
                ));
                for part in diff {
                    line(format!("  {}", printable(part, MAX_LINE)));
                }
            }
            Self::Log { text, .. } => {
                for part in text.lines() {
                    line(printable(part, MAX_LINE));
                }
            }
            Self::Event { kind, fields } => {
                let fields = if fields.is_empty() {
                    String::new()
                } else {
                    format!(" {}", Value::Object(fields.clone()))
                };
                line(format!(
                    "event {}{}",
                    printable(kind, MAX_KIND),
                    printable(&fields, MAX_LINE)
                ));
            }
            Self::Failed { text } => {
                for part in text.lines() {
                    line(printable(part, MAX_LINE));
                }
            }
            Self::Again { attempt, of } => line(format!("trying again ({attempt} of {of})")),
            Self::Restart => line("restarting the machine".to_owned()),
            Self::Repeat => line(
                "the agent was ended while this ran; it may be repeated, and begins anew"
                    .to_owned(),
            ),
            Self::Value { value } => {
                for part in value_lines(value) {
                    line(part);
                }
            }
        }
        lines
    }
}

/// What people see of a function's value. Of what a program said nothing: it
/// was shown when it did.
#[must_use]
pub fn value_lines(value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::String(text) => text.lines().map(|part| printable(part, MAX_LINE)).collect(),
        Value::Object(map) if map.contains_key("stdout") => Vec::new(),
        other => vec![printable(&other.to_string(), MAX_LINE)],
    }
}

/// Makes notes of the bytes of a [note stream](crate::run::Stream::Note), in
/// whatever pieces they come.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    open: Vec<u8>,
    /// The line is too long; the rest of it is thrown away.
    skips: bool,
}

/// A line of a note stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Read {
    /// A note.
    Note(Note),
    /// Something else, by a node of another version or a dishonest one: text,
    /// not escaped.
    Other(String),
}

impl Read {
    /// What people see of it.
    #[must_use]
    pub fn said(&self) -> Vec<Shown> {
        match self {
            Self::Note(note) => note.said(),
            Self::Other(text) => vec![Shown {
                text: printable(text, MAX_LINE),
                complaint: false,
            }],
        }
    }
}

impl Reader {
    /// Takes the next bytes; the lines that are whole now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Read> {
        let mut read = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.take(&rest[..end]);
            read.extend(self.end());
            rest = &rest[end + 1..];
        }
        self.take(rest);
        read
    }

    /// What is left when nothing more comes: a line that was cut.
    pub fn finish(&mut self) -> Option<Read> {
        self.end()
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.open.len() + bytes.len() > MAX_NOTE {
            self.skips = true;
        }
        if !self.skips {
            self.open.extend_from_slice(bytes);
        }
    }

    fn end(&mut self) -> Option<Read> {
        let line = std::mem::take(&mut self.open);
        if std::mem::take(&mut self.skips) {
            return Some(Read::Other("(a line that is too long)".to_owned()));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        Some(match serde_json::from_slice(&line) {
            Ok(note) => Read::Note(note),
            Err(_) => Read::Other(crate::text::lossy(&line)),
        })
    }
}

/// How many things a function found, made or would make.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize, utoipa::ToSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Were so already.
    #[serde(default, skip_serializing_if = "crate::run::is_zero")]
    pub unchanged: u32,
    /// Are so now.
    #[serde(default, skip_serializing_if = "crate::run::is_zero")]
    pub changed: u32,
    /// Would be so; in a dry run.
    #[serde(default, skip_serializing_if = "crate::run::is_zero")]
    pub would_change: u32,
}

impl Tally {
    /// Counts one more.
    pub fn count(&mut self, change: &Change) {
        let counter = match change {
            Change::Unchanged => &mut self.unchanged,
            Change::Changed { .. } => &mut self.changed,
            Change::WouldChange { .. } => &mut self.would_change,
        };
        *counter = counter.saturating_add(1);
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `2 changed, 1 unchanged`; nothing where nothing was counted.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.changed, "changed"),
            (self.would_change, "would change"),
            (self.unchanged, "unchanged"),
        ];
        let counts: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        f.pad(&counts.join(", "))
    }
}

/// Over everything that a function would change on a node, with its
/// differences, in order: equal when another dry run would do the same. 128
/// bits; hexadecimal in text.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Digest([u8; 16]);

impl Digest {
    /// Of a function that would change nothing.
    pub const NOTHING: Self = Self([0; 16]);

    /// The digest when one more thing would change. Order counts.
    #[must_use]
    pub fn with(self, subject: &str, summary: &str, diff: &[String]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"muster/1/would-change\0");
        hash.update(self.0);
        hash.update((diff.len() as u64).to_be_bytes());
        let texts = [subject, summary].into_iter();
        for part in texts.chain(diff.iter().map(String::as_str)) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash.finalize()[..16]);
        Self(digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// A text that is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a digest is 32 hexadecimal digits")]
pub struct DigestError;

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes());
        let bytes = bytes.ok().and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or(DigestError)
    }
}

text_form!(Digest);

/// What a dry run said, node by node: a node with an entry makes the dry run
/// once more, and does nothing where it comes out otherwise. Nodes that would
/// do the same are together, so that it stays small.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Expected(Vec<Same>);

/// Nodes that would change the same.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Same {
    digest: Digest,
    nodes: NodeSet,
}

impl Expected {
    /// Whether nothing is expected of anybody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is expected of a node.
    #[must_use]
    pub fn get(&self, node: Serial) -> Option<Digest> {
        let same = self.0.iter().find(|same| same.nodes.contains(node))?;
        Some(same.digest)
    }

    /// Only what is expected of these nodes.
    #[must_use]
    pub fn of(&self, nodes: &NodeSet) -> Self {
        let some = self.0.iter().flat_map(|same| {
            let inside = same.nodes.iter().filter(|node| nodes.contains(*node));
            inside.map(|node| (node, same.digest))
        });
        some.collect()
    }
}

impl FromIterator<(Serial, Digest)> for Expected {
    fn from_iter<I: IntoIterator<Item = (Serial, Digest)>>(all: I) -> Self {
        let mut by_digest: BTreeMap<Digest, Vec<Serial>> = BTreeMap::new();
        for (node, digest) in all {
            by_digest.entry(digest).or_default().push(node);
        }
        let same = by_digest.into_iter().map(|(digest, nodes)| Same {
            digest,
            nodes: nodes.into_iter().collect(),
        });
        Self(same.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn change(summary: &str, diff: &[&str]) -> Change {
        Change::Changed {
            summary: summary.to_owned(),
            diff: diff.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    fn notes() -> Vec<Note> {
        vec![
            Note::Change {
                subject: "file /etc/x".into(),
                at: Some(At { line: 3, column: 5 }),
                change: change("content", &["-a", "+\x1b[2J"]),
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
            Note::Again { attempt: 2, of: 3 },
            Note::Restart,
            Note::Repeat,
            Note::Value {
                value: json!({"a": [1, null]}),
            },
            Note::Failed {
                text: "web.rhai:1:1: no\n    1 | x".into(),
            },
        ]
    }

    #[test]
    fn it_is_lines_that_no_terminal_obeys() {
        let text: Vec<String> = notes()
            .iter()
            .flat_map(Note::said)
            .map(|line| line.text)
            .collect();
        insta::assert_snapshot!(text.join("\n"), @r#"
        changed: file /etc/x: content
          -a
          +\x1b[2J
        one
        two\x07
        event scenario.deployed {"version":"1\n2"}
        trying again (2 of 3)
        restarting the machine
        the agent was ended while this ran; it may be repeated, and begins anew
        {"a":[1,null]}
        web.rhai:1:1: no
            1 | x
        "#);
    }

    #[test]
    fn a_note_is_one_line_of_json_and_comes_back() {
        let text: String = notes().iter().map(Note::line).collect();
        assert_eq!(text.lines().count(), notes().len());
        assert!(text.starts_with(
            r#"{"note":"change","subject":"file /etc/x","at":{"line":3,"column":5},"change":"changed""#
        ));
        let mut reader = Reader::default();
        let mut read = Vec::new();
        for piece in text.as_bytes().chunks(7) {
            read.extend(reader.push(piece));
        }
        assert_eq!(reader.finish(), None);
        let wanted: Vec<Read> = notes().into_iter().map(Read::Note).collect();
        assert_eq!(read, wanted);
    }

    #[test]
    fn what_is_no_note_is_text_and_an_endless_line_is_not_kept() {
        let mut reader = Reader::default();
        let read = reader.push(b"hello \x1b[31m\n\n{\"note\":\"new\"}\n");
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].said()[0].text, "hello \\x1b[31m");
        for _ in 0..100 {
            assert_eq!(reader.push(&[b'x'; 64 * 1024]), []);
            assert!(reader.open.len() <= MAX_NOTE);
        }
        assert!(matches!(reader.push(b"\n")[..], [Read::Other(_)]));
        assert_eq!(reader.push(b"cut"), []);
        assert_eq!(reader.finish(), Some(Read::Other("cut".into())));
    }

    #[test]
    fn a_digest_is_the_same_for_the_same_changes_in_the_same_order() {
        let diff = ["+a".to_owned()];
        let one = Digest::NOTHING.with("file /a", "content", &diff);
        assert_eq!(one, Digest::NOTHING.with("file /a", "content", &diff));
        let others = [
            Digest::NOTHING,
            Digest::NOTHING.with("file /a", "content", &[]),
            Digest::NOTHING.with("file /", "acontent", &diff),
            one.with("file /a", "content", &diff),
        ];
        assert!(others.iter().all(|other| *other != one));
        assert_eq!(one.to_string().parse(), Ok(one));
        assert!("abc".parse::<Digest>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_expected_of_a_node_is_what_it_said(all in prop::collection::btree_map(0u32..500, 0u8..4, 0..60)) {
            let digest = |n: u8| Digest([n; 16]);
            let said: BTreeMap<Serial, Digest> =
                all.into_iter().map(|(node, n)| (Serial(node), digest(n))).collect();
            let expected: Expected = said.clone().into_iter().collect();
            let json = serde_json::to_string(&expected).expect("json");
            let expected: Expected = serde_json::from_str(&json).expect("reads");
            let some: NodeSet = said.keys().copied().filter(|node| node.0 % 2 == 0).collect();
            let even = expected.of(&some);
            for node in (0..500).map(Serial) {
                prop_assert_eq!(expected.get(node), said.get(&node).copied());
                let wanted = said.get(&node).copied().filter(|_| node.0 % 2 == 0);
                prop_assert_eq!(even.get(node), wanted);
            }
        }
    }
}
