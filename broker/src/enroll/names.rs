//! `gva2-r03-h{01..40}`: many names in one pattern.

use muster_protocol::names::{NameError, NodeName};

/// Most nodes that are invited at once.
pub const MAX_COUNT: u32 = 10_000;

/// Why a pattern gives no names.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PatternError {
    /// One of the names is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Braces without a range.
    #[error("`{0}` is not a pattern; a range is written like web-{{01..40}}, one in a name")]
    NotARange(String),
    /// A range that runs backwards or too far.
    #[error("the range {first}..{last} is empty or has more than {MAX_COUNT} names")]
    Range {
        /// Its first number.
        first: u32,
        /// Its last number.
        last: u32,
    },
    /// `--count` says another number.
    #[error(
        "the name stands for {names} nodes, but the count is {count}; give one of them, or the same number"
    )]
    Count {
        /// What the pattern gives.
        names: u32,
        /// What was asked for.
        count: u32,
    },
    /// Several nodes with one name.
    #[error("{0} nodes need {0} names; write a range, like web-{{01..{0:02}}}")]
    NeedsRange(u32),
}

/// The names that a pattern stands for. Numbers are as wide as the first one
/// is written.
///
/// # Errors
/// [`PatternError`].
pub fn expand(pattern: &str, count: Option<u32>) -> Result<Vec<NodeName>, PatternError> {
    let not_a_range = || PatternError::NotARange(muster_protocol::text::printable(pattern, 80));
    let Some((before, rest)) = pattern.split_once('{') else {
        if pattern.contains('}') {
            return Err(not_a_range());
        }
        return match count {
            None | Some(1) => Ok(vec![pattern.parse()?]),
            Some(count) => Err(PatternError::NeedsRange(count)),
        };
    };
    let (range, after) = rest.split_once('}').ok_or_else(not_a_range)?;
    let (first_text, last_text) = range.split_once("..").ok_or_else(not_a_range)?;
    let number = |text: &str| -> Option<u32> {
        let plain = !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| text.parse().ok()).flatten()
    };
    let (Some(first), Some(last)) = (number(first_text), number(last_text)) else {
        return Err(not_a_range());
    };
    if after.contains(['{', '}']) {
        return Err(not_a_range());
    }
    if last < first || last - first >= MAX_COUNT {
        return Err(PatternError::Range { first, last });
    }
    let names = last - first + 1;
    if let Some(count) = count.filter(|count| *count != names) {
        return Err(PatternError::Count { names, count });
    }
    let width = first_text.len();
    (first..=last)
        .map(|n| Ok(format!("{before}{n:0width$}{after}").parse()?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pattern: &str, count: Option<u32>) -> Result<Vec<String>, String> {
        expand(pattern, count)
            .map(|names| names.iter().map(ToString::to_string).collect())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn a_range_gives_its_names() {
        assert_eq!(names("web-01", None).unwrap(), ["web-01"]);
        assert_eq!(names("web-01", Some(1)).unwrap(), ["web-01"]);
        assert_eq!(
            names("h{08..11}.x", Some(4)).unwrap(),
            ["h08.x", "h09.x", "h10.x", "h11.x"]
        );
        assert_eq!(names("h{9..10}", None).unwrap(), ["h9", "h10"]);
        assert_eq!(names("h{0001..10000}", None).unwrap().len(), 10_000);
    }

    #[test]
    fn what_is_no_range_is_said() {
        for bad in [
            "h{1..2",
            "h1..2}",
            "h{}",
            "h{1}",
            "h{a..b}",
            "h{1..2}{3..4}",
            "h{-1..2}",
            "h{1..99999999999}",
        ] {
            assert!(names(bad, None).unwrap_err().contains("range"), "{bad}");
        }
        assert!(names("h{2..1}", None).unwrap_err().contains("2..1"));
        assert!(names("h{0..10000}", None).unwrap_err().contains("10000"));
        assert!(names("h{1..3}", Some(4)).unwrap_err().contains("3 nodes"));
        assert!(names("web", Some(3)).unwrap_err().contains("web-{01..03}"));
        assert!(
            names("Web{1..2}", None)
                .unwrap_err()
                .contains("not a valid node name")
        );
        assert!(names("", None).is_err());
    }
}
