//! What can be wrong with a predicate, said so that it can be put right.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::shown::{self, Shown};
use super::{MAX_DEPTH, MAX_LEN, MAX_REGEXES};

/// A stretch of a predicate's text, in bytes: `start..end`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// One past the last byte. Equal to `start` where something is missing.
    pub end: usize,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }
}

/// Why a text is not a predicate: what, where, and what to write instead.
///
/// Its JSON form is `{"kind", "message", "span": {"start", "end"}, "hint"}`. Every text in it is
/// free of hidden characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PredicateError {
    kind: PredicateErrorKind,
    span: Span,
    hint: Option<Cow<'static, str>>,
}

/// The kinds of mistake, for programs; the `Display` of each is the message for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum PredicateErrorKind {
    /// Nothing but blanks.
    #[error("the predicate is empty")]
    Empty,
    /// More than [`MAX_LEN`] bytes, as typed or as printed.
    #[error("the predicate has {len} bytes; at most {MAX_LEN} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// More than [`MAX_DEPTH`] parentheses and `not`s inside each other.
    #[error("this is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// A control, bidirectional or other character that nobody would see.
    #[error("the predicate holds a character that does not show: U+{:04X}", u32::from(*.found))]
    Hidden {
        /// The character.
        found: char,
    },
    /// `(` without `)`.
    #[error("this parenthesis is never closed")]
    UnclosedParenthesis,
    /// `)` without `(`.
    #[error("this parenthesis was never opened")]
    UnopenedParenthesis,
    /// `()`.
    #[error("there is nothing between these parentheses")]
    EmptyParentheses,
    /// A quote without its partner.
    #[error("this quote is never closed")]
    UnclosedQuote,
    /// `in [` without `]`.
    #[error("this list is never closed")]
    UnclosedList,
    /// `in []`.
    #[error("this list is empty")]
    EmptyList,
    /// `in` without `[`.
    #[error("a list is missing after `in`")]
    MissingList,
    /// Nothing, or no condition, where one must be.
    #[error("a condition is missing {place}")]
    MissingCondition {
        /// Beside what it is missing, as in "after `and`".
        place: String,
    },
    /// An operator with nothing on its left.
    #[error("a name is missing before `{operator}`")]
    MissingName {
        /// The operator.
        operator: String,
    },
    /// An operator, `has`, or a comma with nothing on its right.
    #[error("{what} is missing after `{after}`")]
    MissingValue {
        /// "a name" or "a value".
        what: &'static str,
        /// What stands before the gap.
        after: String,
    },
    /// Something like `==`.
    #[error("there is no operator `{found}`")]
    UnknownOperator {
        /// What was written.
        found: String,
    },
    /// A character or word that fits nothing before it.
    #[error("`{found}` was not expected here")]
    Unexpected {
        /// What was written.
        found: String,
    },
    /// A backslash in quotes before something that is not an escape.
    #[error("`{found}` is not an escape")]
    BadEscape {
        /// The backslash and what follows.
        found: String,
    },
    /// `[` of a pattern without its `]`.
    #[error("this `[` is never closed")]
    UnclosedClass,
    /// `[]` in a pattern.
    #[error("this class of characters is empty")]
    EmptyClass,
    /// `[9-0]` in a pattern.
    #[error("this range of characters runs backwards")]
    BackwardsRange,
    /// A pattern where only a plain value makes sense.
    #[error("a pattern cannot be {place}")]
    MisplacedPattern {
        /// What it cannot be.
        place: &'static str,
    },
    /// Something like `role:web`.
    #[error("`{found}` cannot be the name of a node")]
    NotANodeName {
        /// What was written.
        found: String,
    },
    /// A regular expression that does not compile.
    #[error("this regular expression is wrong: {reason}")]
    BadRegex {
        /// What the regex parser says.
        reason: String,
    },
    /// A regular expression whose program would be too large.
    #[error("this regular expression is too costly")]
    CostlyRegex,
    /// More than [`MAX_REGEXES`] regular expressions.
    #[error("there are more than {MAX_REGEXES} regular expressions")]
    TooManyRegexes,
}

impl PredicateError {
    pub(super) fn new(kind: PredicateErrorKind, span: Span) -> Self {
        let hint = kind.usual_hint().map(Cow::Borrowed);
        Self { kind, span, hint }
    }

    pub(super) fn hint_with(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What kind of mistake it is.
    pub fn kind(&self) -> &PredicateErrorKind {
        &self.kind
    }

    /// What is wrong, in one line, without the place and without the hint.
    pub fn message(&self) -> String {
        self.kind.to_string()
    }

    /// The part of the text that is wrong.
    pub fn span(&self) -> Span {
        self.span
    }

    /// What to write instead, if that can be said.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The error for a terminal, with the line of `source` that it is about and a caret under the
    /// place. `source` is the text that was parsed. No newline at the end.
    pub fn render(&self, source: &str) -> String {
        shown::render(&self.message(), source, self.span, self.hint())
    }
}

/// One line for a log: the message, the byte where the mistake is, the hint.
impl fmt::Display for PredicateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at byte {})", self.kind, self.span.start)?;
        match &self.hint {
            Some(hint) => write!(f, ": {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for PredicateError {}

impl Serialize for PredicateError {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Wire<'a> {
            #[serde(flatten)]
            kind: &'a PredicateErrorKind,
            message: String,
            span: Span,
            hint: Option<&'a str>,
        }
        Wire {
            kind: &self.kind,
            message: self.message(),
            span: self.span,
            hint: self.hint(),
        }
        .serialize(serializer)
    }
}

impl PredicateErrorKind {
    fn usual_hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Empty => "write `*` for every node",
            Self::TooDeep => "`and` and `or` need no parentheses of their own",
            Self::TooLong { .. } => "select by a role or a label instead of listing nodes",
            Self::Hidden { .. } => "in quotes it can be written as an escape, like \\u{a0}",
            Self::EmptyList => "write the values, like `in [a, b]`",
            Self::MissingList => "write the values in brackets, like `in [a, b]`",
            Self::BadEscape { .. } => {
                "there are \\\\ \\\" \\' \\n \\r \\t and \\u{…}; a plain backslash is \\\\"
            }
            Self::UnclosedClass => {
                "a list is written `in [a, b]`; quote the value if the bracket is part of it"
            }
            Self::EmptyClass | Self::BackwardsRange => "write for example [a-z] or [!0-9]",
            Self::CostlyRegex => "use smaller repetition counts, or a pattern like web-*",
            Self::TooManyRegexes => "join some of them with `|`",
            _ => return None,
        })
    }
}

/// What a name in a predicate is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameOf {
    /// A label or a fact.
    Attribute,
    /// A node.
    Node,
}

impl fmt::Display for NameOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attribute => "no node has a label or fact",
            Self::Node => "there is no node",
        })
    }
}

/// A predicate speaks of a label, a fact or a node that is not in the inventory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{of} `{}`; nothing was run", Shown(.name))]
pub struct UnknownName {
    pub(super) of: NameOf,
    pub(super) name: String,
    pub(super) span: Span,
    pub(super) suggestion: Option<String>,
    pub(super) line: Box<str>,
}

impl UnknownName {
    /// The name as it was written.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it stands in the text that was parsed.
    pub fn span(&self) -> Span {
        self.span
    }

    /// A name that exists and is close to it.
    pub fn suggestion(&self) -> Option<&str> {
        self.suggestion.as_deref()
    }

    /// What is wrong, in one line.
    pub fn message(&self) -> String {
        self.to_string()
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        const MEANT: &str = "(--allow-unknown if you meant it)";
        match &self.suggestion {
            Some(name) => format!("did you mean `{}`?  {MEANT}", Shown(name)),
            None => MEANT.to_owned(),
        }
    }

    /// The error for a terminal, with the source line and a caret under the name. No newline at
    /// the end.
    pub fn render(&self) -> String {
        shown::render(&self.message(), &self.line, self.span, Some(&self.hint()))
    }
}
