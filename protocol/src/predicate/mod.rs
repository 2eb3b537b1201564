//! The predicate language: which nodes?
//!
//! A predicate is an expression over a node's name, roles, labels and facts:
//! `role=web and zone=gva2 and not web-0*`. It either holds for a node or it does not.
//!
//! # Reference
//!
//! ## Conditions
//!
//! | written | holds for a node |
//! |---|---|
//! | `*` | always |
//! | `web-01`, `"web-01"` | whose name is `web-01` |
//! | `web-0*` | whose name fits the pattern |
//! | `zone=gva2` | whose `zone` equals `gva2` |
//! | `zone=gva*` | whose `zone` fits the pattern |
//! | `zone!=gva2` | exactly where `not zone=gva2` holds, so also where there is no `zone` |
//! | `cpus < 4`, `<=`, `>`, `>=` | whose `cpus` stands so to 4 |
//! | `name =~ "^web-[0-9]+$"` | whose name matches the regular expression |
//! | `zone in [gva2, dk*]` | whose `zone` passes `=` with one of the elements |
//! | `has zone` | which has a `zone`, whatever it is |
//!
//! ## Joining
//!
//! `not` binds tightest, then `and`, then `or`; parentheses group. `not a=1 and b=2 or c=3` is
//! `((not a=1) and b=2) or c=3`. The keywords `and`, `or`, `not`, `in` and `has` are in small letters.
//! Blanks (spaces, tabs, line breaks) separate words and mean nothing else; none is needed around
//! operators, brackets, parentheses and quotes.
//!
//! ## Names
//!
//! - `name` is the node's name and `role` its roles. Both are reserved: no label or fact is ever
//!   reached by them.
//! - Every other name is a label, or, when the node has no such label, a fact. A label always wins.
//! - Dots lead into facts: `os.version`.
//! - A name with other characters, or equal to a keyword, is quoted: `"disk of /var" > 5`.
//!
//! A comparison with a name that the node lacks is false. A node lacks a fact that is `null` or an
//! empty list. A comparison with a fact that is a map is false, while `has` of it is true.
//!
//! Who resolves a predicate refuses one that compares with a name that **no** node has
//! ([`Predicate::check_known`]), so that `not zoen=gva2` never means the whole fleet.
//!
//! ## Several values
//!
//! Roles, and facts that are lists, have several values. A comparison holds if it holds for any one
//! of them: `role=web` means that one of the roles is `web`. As `!=` is exactly `not =`,
//! `role!=web` means that none is. Lists and maps inside a list are passed over.
//!
//! ## Words, patterns, quotes
//!
//! - A word is made of letters, digits and `_ - . : / @ + % ~` (not `~` at its start). Standing
//!   alone, where it would be a node's name, a word with `:` or `~` is refused: `role:web` and
//!   `name~web` are slips for `role=web` and `name =~ web`. For the same reason the name of a label
//!   or fact is quoted if it has a `~`.
//! - Unquoted, with `*` (any characters), `?` (any one) or `[a-z]`, `[!a-z]`, `[^a-z]` (any one of, any
//!   one but), a word is a pattern for the **whole** value. Patterns go with `=`, `!=`, `in` and
//!   node names. To take one of these characters as itself, write it as a class (`[*]`) or quote.
//! - `'x'` and `"x"` are the same: text as it is, never a pattern or a keyword. Escapes: `\\`, `\"`,
//!   `\'`, `\n`, `\r`, `\t`, `\u{e9}`.
//! - Capital and small letters differ everywhere.
//! - Characters that do not show (controls, bidirectional and zero-width formatting, odd blanks) are
//!   refused unless written as escapes, so that what a person confirms is what they see.
//!
//! ## How values compare
//!
//! Quoting does not change how a value compares. For names and roles: always as text. Otherwise:
//!
//! 1. A fact that is a JSON number, with a decimal number (`-12`, `+3`, `0.25`; no exponent):
//!    **as numbers**, exactly, however many digits. `load < 1.5` holds for 1.25.
//! 2. Text (a label, or a fact that is a string), when both sides are versions: **by component**,
//!    each as a number, a missing one being 0. 1.10 > 1.9, and 12 = 12.0. A version is numbers joined
//!    by dots; a single number is one, so that 10 > 9. It may have a suffix that begins with `-`,
//!    `+` or `~` if there is at least one dot (`6.1.0-18-amd64`), and a `v` before if there is a dot
//!    (`v1.10`; it compares with versions that have the `v` too). Suffixes decide between versions
//!    that are otherwise equal, in the order of Debian packages: runs of digits as numbers, `~` before
//!    nothing, nothing before the rest. So `1.2-1` > `1.2` > `1.2~rc1`. Mind that a **label**
//!    `weight=1.25` is therefore larger than 1.5: decimals belong in facts, as JSON numbers.
//! 3. Text, when both sides are decimal numbers (which leaves those with a sign): **as numbers**.
//! 4. Everything else **as text**, character by character (by code point). ISO dates fall in order.
//!    A boolean is the text `true` or `false`.
//!
//! A JSON number against a version that is no decimal (`1.2.3`) compares by component.
//!
//! Patterns and regular expressions always see text; a number is then written in full, without
//! exponent.
//!
//! ## Regular expressions
//!
//! `=~` finds a match **anywhere** in the value; `^` and `$` anchor it. The syntax is that of the
//! [`regex`] crate: no backreferences and no look-around, and time linear in the value. It is best
//! quoted; within these quotes a backslash belongs to the expression (`"\d+"`), and `\"` and `\'` are
//! the quotes. Unquoted it ends at the next blank, or at a `)` that it did not open.
//!
//! ## Limits
//!
//! A predicate has at most 4,096 bytes (also in its canonical form), 64 levels of parentheses and
//! `not`s inside each other (`and` and `or` chains are free), and 16 regular expressions, each with
//! a program of at most 256 KiB.
//!
//! ## Canonical form
//!
//! [`Predicate::text`] writes a predicate with the fewest parentheses and quotes, one space around
//! words, and escapes for what does not show. Parsing it gives an equal predicate.
//!
//! # Example
//!
//! ```
//! use muster_protocol::predicate::Predicate;
//!
//! let predicate: Predicate = "role = web and (zone in [gva2,dk2])".parse()?;
//! assert_eq!(predicate.text(), "role=web and zone in [gva2, dk2]");
//!
//! let source = "role=web and (zone=gva2";
//! let error = Predicate::parse(source).unwrap_err();
//! assert_eq!(
//!     error.render(source),
//!     "error: this parenthesis is never closed\n  role=web and (zone=gva2\n               ^"
//! );
//! # Ok::<(), muster_protocol::predicate::PredicateError>(())
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

mod ast;
mod error;
mod eval;
mod explain;
mod glob;
mod names;
mod parse;
mod print;
mod shown;
mod value;

#[cfg(test)]
mod tests;

pub use error::{PredicateError, PredicateErrorKind, Span, UnknownName};
pub use eval::{Attributes, fact_at};
pub use explain::{Clause, Explanation, Had};
pub use shown::render;

use ast::{Expr, Leaf, Place, Test};

/// The longest predicate, in bytes.
pub const MAX_LEN: usize = 4096;
/// The deepest nesting of parentheses and `not`s.
pub const MAX_DEPTH: usize = 64;
/// The most regular expressions in one predicate.
pub const MAX_REGEXES: usize = 16;
/// The largest compiled program of one regular expression, in bytes.
const MAX_REGEX_BYTES: usize = 256 * 1024;

/// An expression that selects nodes, parsed and within its limits.
///
/// Predicates are equal when they have the same structure: blanks, needless quotes and needless
/// parentheses do not count. As JSON it is its canonical text, and is parsed again when read.
#[derive(Clone)]
pub struct Predicate {
    expr: Expr,
    /// As it was parsed: spans are into this.
    source: Box<str>,
    /// The canonical form.
    text: Box<str>,
}

impl Predicate {
    /// Parses a predicate. The errors carry the place and usually a hint; nothing of any size or
    /// content makes it panic or work long.
    pub fn parse(source: &str) -> Result<Self, PredicateError> {
        let expr = parse::parse(source)?;
        let text = expr.to_string();
        if text.len() > MAX_LEN {
            // Spaces after commas and escapes can push a text over the limit that fits as typed.
            let len = text.len();
            let span = Span::new(source.len(), source.len());
            return Err(PredicateError::new(
                PredicateErrorKind::TooLong { len },
                span,
            ));
        }
        Ok(Self {
            expr,
            source: source.into(),
            text: text.into(),
        })
    }

    /// `*`: every node.
    pub fn all() -> Self {
        Self {
            expr: Expr::Leaf(Leaf {
                place: Place(Span::new(0, 1)),
                test: Test::Everything,
            }),
            source: "*".into(),
            text: "*".into(),
        }
    }

    /// The canonical text; it parses to an equal predicate and holds no hidden character.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text that was parsed, which spans refer to.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it holds for a node.
    pub fn matches(&self, node: &dyn Attributes) -> bool {
        self.expr.matches(node)
    }

    /// Which conditions decide for a node, and what it has that made them.
    pub fn explain(&self, node: &dyn Attributes) -> Explanation {
        self.expr.explain(node)
    }

    /// The names compared with, outside `has` and including `name` and `role`, each with its place
    /// in [`source`](Self::source), in order, repeated as often as written. A name in quotes comes
    /// without them, but its place includes them.
    pub fn names(&self) -> impl Iterator<Item = (&str, Span)> {
        self.expr.names().into_iter()
    }

    /// Refuses a name that nothing in the inventory has.
    ///
    /// `known` says whether any node has such a label or fact (`name` and `role` are not asked
    /// for); `candidates` are the names there are, for the suggestion.
    pub fn check_known(
        &self,
        known: &dyn Fn(&str) -> bool,
        candidates: &[String],
    ) -> Result<(), UnknownName> {
        self.expr.check_known(&self.source, known, candidates)
    }

    /// The node names written out in full (not as patterns) where they add to the set: `web-01`,
    /// `name=web-01`, `name in [web-01]`, under an even number of negations.
    pub fn literal_names(&self) -> impl Iterator<Item = &str> {
        self.expr.literal_names().into_iter()
    }
}

impl PartialEq for Predicate {
    fn eq(&self, other: &Self) -> bool {
        self.expr == other.expr
    }
}

impl Eq for Predicate {}

impl fmt::Debug for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Predicate").field(&self.text).finish()
    }
}

/// The canonical text.
impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Predicate {
    type Err = PredicateError;

    fn from_str(source: &str) -> Result<Self, PredicateError> {
        Self::parse(source)
    }
}

impl Serialize for Predicate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Predicate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = Predicate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the text of a predicate")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Predicate, E> {
                Predicate::parse(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}
