#![doc = include_str!("../../../docs/predicates.md")]
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

    /// The labels and facts that it asks for, also by `has`, as often as written; `name` and `role`
    /// are not among them.
    pub fn attributes(&self) -> impl Iterator<Item = &str> {
        self.expr.attributes().into_iter()
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

    /// Refuses a node name, written out in full, that no node has: `not web-0l` would be the whole
    /// fleet. Patterns are not asked for.
    ///
    /// `known` says whether there is such a node; `candidates` are the names of all nodes, for the
    /// suggestion, and are only taken when one is needed.
    pub fn check_nodes<'c, C>(
        &self,
        known: &dyn Fn(&str) -> bool,
        candidates: impl FnOnce() -> C,
    ) -> Result<(), UnknownName>
    where
        C: Iterator<Item = &'c str> + Clone,
    {
        self.expr.check_nodes(&self.source, known, candidates)
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
