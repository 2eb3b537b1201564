//! `sim-{00001..05000}` and `rack=r{1..40}`: many texts in one.

use std::str::FromStr;

use muster_protocol::names::{LabelKey, LabelValue, NameError, NodeName};
use muster_protocol::text::printable;

/// Most texts that one pattern stands for.
pub const MAX_COUNT: u32 = 100_000;

/// Why a text is not a pattern.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PatternError {
    /// Braces without a range.
    #[error("`{0}` is not a pattern; a range is written like sim-{{001..500}}, one in a text")]
    NotARange(String),
    /// A range that runs backwards or too far.
    #[error("the range {first}..{last} is empty or has more than {MAX_COUNT} numbers")]
    Range {
        /// Its first number.
        first: u32,
        /// Its last number.
        last: u32,
    },
    /// A label without `=`.
    #[error("`{0}` is not a label; write it like zone=gva2 or rack=r{{1..40}}")]
    NotALabel(String),
    /// What comes out is no name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// A text with at most one range in it. Numbers are as wide as the first one
/// is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern {
    before: String,
    range: Option<Range>,
    after: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Range {
    first: u32,
    last: u32,
    width: usize,
}

impl Pattern {
    /// `sim-{1..N}`, with numbers of equal width.
    #[must_use]
    pub fn numbered(before: &str, count: u32) -> Self {
        let width = count.to_string().len();
        Self {
            before: before.to_owned(),
            range: Some(Range {
                first: 1,
                last: count.max(1),
                width,
            }),
            after: String::new(),
        }
    }

    /// How many texts it stands for.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.range.map_or(1, |range| range.last - range.first + 1)
    }

    /// The text with that number, counted from 0 and round and round.
    #[must_use]
    pub fn nth(&self, index: u32) -> String {
        let Some(range) = self.range else {
            return self.before.clone();
        };
        let number = range.first + index % self.count();
        let width = range.width;
        format!("{}{number:0width$}{}", self.before, self.after)
    }

    /// All its texts as names of nodes.
    ///
    /// # Errors
    /// [`PatternError::Name`].
    pub fn names(&self) -> Result<Vec<NodeName>, PatternError> {
        (0..self.count())
            .map(|index| Ok(self.nth(index).parse()?))
            .collect()
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let not_a_range = || PatternError::NotARange(printable(text, 80));
        let Some((before, rest)) = text.split_once('{') else {
            if text.contains('}') {
                return Err(not_a_range());
            }
            return Ok(Self {
                before: text.to_owned(),
                range: None,
                after: String::new(),
            });
        };
        let (range, after) = rest.split_once('}').ok_or_else(not_a_range)?;
        let (first_text, last_text) = range.split_once("..").ok_or_else(not_a_range)?;
        let number = |text: &str| -> Option<u32> {
            let plain =
                !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| text.parse().ok()).flatten()
        };
        let (Some(first), Some(last)) = (number(first_text), number(last_text)) else {
            return Err(not_a_range());
        };
        if after.contains(['{', '}']) || before.contains('}') {
            return Err(not_a_range());
        }
        if last < first || last - first >= MAX_COUNT {
            return Err(PatternError::Range { first, last });
        }
        Ok(Self {
            before: before.to_owned(),
            range: Some(Range {
                first,
                last,
                width: first_text.len(),
            }),
            after: after.to_owned(),
        })
    }
}

/// A label whose value may be a pattern: the nodes get its values in turn.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LabelPattern {
    /// The label.
    pub key: LabelKey,
    value: Pattern,
}

impl LabelPattern {
    /// The value for the node with that number, counted from 0.
    ///
    /// # Panics
    /// Never: every value was checked when the pattern was read.
    #[must_use]
    pub fn value(&self, node: u32) -> LabelValue {
        let text = self.value.nth(node);
        text.parse().expect("checked when it was read")
    }

    /// Whether all nodes get the same value.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.value.count() == 1
    }
}

impl FromStr for LabelPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| PatternError::NotALabel(printable(text, 80)))?;
        let value: Pattern = value.parse()?;
        for index in 0..value.count() {
            value.nth(index).parse::<LabelValue>()?;
        }
        Ok(Self {
            key: key.parse()?,
            value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_wide_as_the_first_is_written() {
        let names = |text: &str| -> Vec<String> {
            let names = text.parse::<Pattern>().and_then(|p| p.names());
            names
                .expect("a pattern")
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(
            names("sim-{08..11}.x"),
            ["sim-08.x", "sim-09.x", "sim-10.x", "sim-11.x"]
        );
        assert_eq!(names("one"), ["one"]);
        assert_eq!(Pattern::numbered("s", 5000).nth(41), "s0042");
        for bad in [
            "a{1..2",
            "a}",
            "a{}",
            "a{1}",
            "a{x..y}",
            "a{1..2}{3..4}",
            "a}b{1..2}",
        ] {
            assert!(
                matches!(bad.parse::<Pattern>(), Err(PatternError::NotARange(_))),
                "{bad}"
            );
        }
        assert!(matches!(
            "a{2..1}".parse::<Pattern>(),
            Err(PatternError::Range { .. })
        ));
        assert!(matches!(
            "a{1..100001}".parse::<Pattern>(),
            Err(PatternError::Range { .. })
        ));
    }

    #[test]
    fn label_values_go_round() {
        let label: LabelPattern = "rack=r{1..3}".parse().expect("a label");
        let values: Vec<String> = (0..5).map(|n| label.value(n).to_string()).collect();
        assert_eq!(values, ["r1", "r2", "r3", "r1", "r2"]);
        assert!(!label.is_constant());
        assert!(
            "zone=gva2"
                .parse::<LabelPattern>()
                .is_ok_and(|l| l.is_constant())
        );
        for bad in ["rack", "role=x", "Rack=r1", "rack=", "rack={1..2"] {
            assert!(bad.parse::<LabelPattern>().is_err(), "{bad}");
        }
    }
}
