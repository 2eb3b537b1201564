//! How two values compare: numbers exactly, dotted versions by component, all else as text.

use std::cmp::Ordering;
use std::fmt::{self, Write as _};

use serde_json::{Number, Value};

use super::ast::Place;
use super::error::Span;

/// The constant on the right of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Literal {
    text: Box<str>,
    /// Neither a number nor a version, so that most comparisons are of bytes alone.
    plain: bool,
    place: Place,
}

impl Literal {
    /// The constant that stands at `span` in the text.
    pub(super) fn new(text: impl Into<Box<str>>, span: Span) -> Self {
        let text = text.into();
        let plain = Decimal::parse(&text).is_none() && Version::parse(&text).is_none();
        Self {
            text,
            plain,
            place: Place(span),
        }
    }

    pub(super) fn span(&self) -> Span {
        self.place.0
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// How the value stands to this constant.
    pub(super) fn compare(&self, seen: Scalar<'_>) -> Ordering {
        match seen {
            Scalar::Identifier(text) => text.cmp(self.as_str()),
            Scalar::Text(text) => self.compare_text(text),
            Scalar::Bool(_) => seen.with_text(|text| text.cmp(self.as_str())),
            Scalar::Number(_) => {
                seen.with_text(
                    |text| match (Decimal::parse(text), Decimal::parse(&self.text)) {
                        (Some(seen), Some(wanted)) => seen.cmp(&wanted),
                        _ => self.compare_text(text),
                    },
                )
            }
        }
    }

    fn compare_text(&self, text: &str) -> Ordering {
        if !self.plain {
            if let (Some(seen), Some(wanted)) = (Version::parse(text), Version::parse(&self.text)) {
                if seen.prefixed == wanted.prefixed {
                    return seen.compare(&wanted);
                }
            } else if let (Some(seen), Some(wanted)) =
                (Decimal::parse(text), Decimal::parse(&self.text))
            {
                return seen.cmp(&wanted);
            }
        }
        text.cmp(&self.text)
    }
}

/// One value that a node has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar<'a> {
    /// A node name or a role: compared as text whatever it looks like.
    Identifier(&'a str),
    Text(&'a str),
    Number(&'a Number),
    Bool(bool),
}

impl<'a> Scalar<'a> {
    /// The scalar in a fact, if it is one.
    pub(super) fn of(value: &'a Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text)),
            Value::Number(number) => Some(Self::Number(number)),
            Value::Bool(flag) => Some(Self::Bool(*flag)),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// Calls `f` with the value as text, without allocating.
    pub(super) fn with_text<R>(self, f: impl FnOnce(&str) -> R) -> R {
        match self {
            Self::Identifier(text) | Self::Text(text) => f(text),
            Self::Bool(true) => f("true"),
            Self::Bool(false) => f("false"),
            Self::Number(number) => {
                let mut text = StackText::default();
                // A float's own Display has no exponent, unlike the JSON form of it.
                let written = match (number.as_i64(), number.as_u64(), number.as_f64()) {
                    (Some(n), _, _) => write!(text, "{n}"),
                    (_, Some(n), _) => write!(text, "{n}"),
                    (_, _, Some(n)) => write!(text, "{n}"),
                    _ => Err(fmt::Error),
                };
                match written {
                    Ok(()) => f(text.as_str()),
                    Err(fmt::Error) => f(&number.to_string()),
                }
            }
        }
    }
}

/// Room for any number written out in full: the smallest double takes some 340 characters.
struct StackText {
    bytes: [u8; 400],
    len: usize,
}

impl Default for StackText {
    fn default() -> Self {
        Self {
            bytes: [0; 400],
            len: 0,
        }
    }
}

impl StackText {
    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl fmt::Write for StackText {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let end = self.len + s.len();
        self.bytes
            .get_mut(self.len..end)
            .ok_or(fmt::Error)?
            .copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// A decimal number of any length, compared without rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decimal<'a> {
    negative: bool,
    /// Without leading zeros.
    whole: &'a str,
    /// Without trailing zeros.
    fraction: &'a str,
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

impl<'a> Decimal<'a> {
    /// Reads `[+-] digits [. digits]`; no exponent, because `1e5` is as likely a commit.
    fn parse(text: &'a str) -> Option<Self> {
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (whole, fraction) = match unsigned.split_once('.') {
            Some((whole, fraction)) if is_digits(fraction) => (whole, fraction),
            Some(_) => return None,
            None => (unsigned, ""),
        };
        if !is_digits(whole) {
            return None;
        }
        let (whole, fraction) = (
            whole.trim_start_matches('0'),
            fraction.trim_end_matches('0'),
        );
        Some(Self {
            negative: negative && !(whole.is_empty() && fraction.is_empty()),
            whole,
            fraction,
        })
    }

    fn size(&self) -> (usize, &'a str, &'a str) {
        (self.whole.len(), self.whole, self.fraction)
    }
}

impl Ord for Decimal<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => self.size().cmp(&other.size()),
            (true, true) => other.size().cmp(&self.size()),
        }
    }
}

impl PartialOrd for Decimal<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Numbers joined by dots, perhaps with a `v` before and a `-`, `+` or `~` suffix after.
#[derive(Clone, Copy, Debug)]
struct Version<'a> {
    prefixed: bool,
    numbers: &'a str,
    suffix: &'a str,
}

impl<'a> Version<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (prefixed, rest) = match text.strip_prefix('v') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (numbers, suffix) = rest.split_at(end);
        if !numbers.split('.').all(is_digits) {
            return None;
        }
        // `10-a` and `2024-11-05` are not versions: a suffix and a `v` need a dot to vouch for them.
        let bare = !prefixed && suffix.is_empty();
        let suffixed = suffix.is_empty() || suffix.starts_with(['-', '+', '~']);
        (bare || (suffixed && numbers.contains('.'))).then_some(Self {
            prefixed,
            numbers,
            suffix,
        })
    }

    fn compare(&self, other: &Self) -> Ordering {
        let (mut ours, mut theirs) = (self.numbers.split('.'), other.numbers.split('.'));
        loop {
            let (a, b) = match (ours.next(), theirs.next()) {
                (None, None) => return compare_suffixes(self.suffix, other.suffix),
                (a, b) => (a.unwrap_or(""), b.unwrap_or("")),
            };
            let order = compare_digits(a, b);
            if order != Ordering::Equal {
                return order;
            }
        }
    }
}

fn compare_digits(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Orders two suffixes as Debian orders package versions: runs of digits as numbers, `~` before
/// the end of the text, letters before everything else.
fn compare_suffixes(mut a: &str, mut b: &str) -> Ordering {
    fn rank(c: Option<char>) -> i64 {
        match c {
            Some('~') => -1,
            None => 0,
            Some(c) if c.is_ascii_digit() => 0,
            Some(c) if c.is_alphabetic() => i64::from(u32::from(c)),
            Some(c) => i64::from(u32::from(c)) + (1 << 32),
        }
    }
    fn run(text: &str) -> usize {
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len())
    }
    while !(a.is_empty() && b.is_empty()) {
        let (x, y) = (a.chars().next(), b.chars().next());
        let (x_rank, y_rank) = (rank(x), rank(y));
        if x_rank != y_rank {
            return x_rank.cmp(&y_rank);
        }
        if x_rank == 0 {
            let ((a_digits, a_rest), (b_digits, b_rest)) = (a.split_at(run(a)), b.split_at(run(b)));
            let order = compare_digits(a_digits, b_digits);
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (a_rest, b_rest);
        } else {
            a = &a[x.map_or(0, char::len_utf8)..];
            b = &b[y.map_or(0, char::len_utf8)..];
        }
    }
    Ordering::Equal
}
