//! Patterns over texts: `alarm.*`.

use std::fmt;
use std::str::FromStr;

use muster_protocol::text::printable;

/// Longest pattern, in bytes.
const MAX: usize = 256;
/// Most stars in a pattern.
const STARS: usize = 8;

/// A pattern in which `*` stands for any text, also none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Glob(String);

/// Why a text is no pattern.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GlobError {
    /// Nothing.
    #[error("a pattern is empty; `*` is for everything")]
    Empty,
    /// Too much.
    #[error("`{0}` is no pattern: at most {MAX} bytes and {STARS} `*` are taken")]
    Large(String),
}

impl Glob {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole text is as the pattern says.
    #[must_use]
    pub fn fits(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        // A pattern is never empty.
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else {
            return false;
        };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

impl FromStr for Glob {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        if text.is_empty() {
            return Err(GlobError::Empty);
        }
        if text.len() > MAX || text.matches('*').count() > STARS {
            return Err(GlobError::Large(printable(text, 80)));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fits(pattern: &str, text: &str) -> bool {
        pattern.parse::<Glob>().unwrap().fits(text)
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a.b"),
            ("alarm.*", "alarm.clock"),
            ("alarm.*", "alarm."),
            ("*.up", "node.up"),
            ("a*b*c", "a--b--c"),
            ("a*b*c", "abbc"),
            ("a**c", "ac"),
            ("git.push", "git.push"),
            ("*ab", "aab"),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("alarm.*", "alarm"),
            ("git.push", "git.pushed"),
            ("git.push", "a git.push"),
            ("a*b*c", "acb"),
            ("ab*ab", "ab"),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
        assert!("".parse::<Glob>().is_err());
        assert!("*".repeat(9).parse::<Glob>().is_err());
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_simple_search(pattern in "[ab*]{1,6}", text in "[ab]{0,8}") {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|n| slow(rest, &text[n..])),
                    Some((c, rest)) => {
                        text.split_first().is_some_and(|(t, more)| t == c && slow(rest, more))
                    }
                }
            }
            prop_assert_eq!(fits(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
