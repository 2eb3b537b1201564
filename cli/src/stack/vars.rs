//! Variables of a stack, and `${name}` in texts.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use muster_protocol::text::{nearest, printable};

/// Most bytes that variables make of a file.
pub(super) const MAX_FILLED: usize = 8 * super::MAX_FILE;

/// The value of a variable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Scalar {
    Text(String),
    Number(i64),
    Flag(bool),
}

impl Scalar {
    /// What it is called in messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::Flag(_) => "true or false",
        }
    }

    /// How much of a text it makes, at most.
    fn length(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Number(_) | Self::Flag(_) => 20,
        }
    }

    /// A value from the command line, of the same kind as this one.
    pub(super) fn like(&self, text: &str) -> Option<Self> {
        match self {
            Self::Text(_) => Some(Self::Text(text.to_owned())),
            Self::Number(_) => text.parse().ok().map(Self::Number),
            Self::Flag(_) => text.parse().ok().map(Self::Flag),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
        }
    }
}

/// How much text variables may make yet, in all of a file: some that name each
/// other make of a few lines more than any machine has.
#[derive(Debug)]
pub(super) struct Room(Cell<usize>);

impl Room {
    pub(super) fn new() -> Self {
        Self(Cell::new(MAX_FILLED))
    }

    /// Takes so much of it.
    fn take(&self, bytes: usize) -> Result<(), Unfilled> {
        let left = self.0.get();
        let rest = left.checked_sub(bytes);
        self.0.set(rest.unwrap_or(0));
        match (rest, left) {
            (Some(_), _) => Ok(()),
            // It was said once.
            (None, 0) => Err(Unfilled::Said),
            (None, _) => Err(Unfilled::Wrong(
                format!(
                    "with what its variables stand for the file has more than {MAX_FILLED} bytes"
                ),
                Some("variables that stand for each other grow fast: make them shorter".to_owned()),
            )),
        }
    }
}

/// Why a text cannot be filled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Unfilled {
    /// What is wrong with a variable in it was said where that is.
    Said,
    /// What is wrong, and what to do.
    Wrong(String, Option<String>),
}

/// A part of a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    Var(&'a str),
}

/// Whether a variable can be called that.
pub(super) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && text.len() <= 63
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, Unfilled> {
    let mut all = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, behind) = rest.split_at(at);
        // `$${` is `${` as it is.
        if let Some(before) = before.strip_suffix('$') {
            all.push(Piece::Text(before));
            all.push(Piece::Text("${"));
            rest = &behind[2..];
            continue;
        }
        all.push(Piece::Text(before));
        let inside = &behind[2..];
        let Some((name, after)) = inside.split_once('}') else {
            return Err(Unfilled::Wrong(
                "a `${` that no `}` ends".to_owned(),
                Some("write `$${` for the two characters themselves".to_owned()),
            ));
        };
        if !is_name(name) {
            return Err(Unfilled::Wrong(
                format!("`${{{}}}` names no variable", printable(name, 40)),
                Some(
                    "a variable has a name like `web_count`; write `$${` for the two characters themselves"
                        .to_owned(),
                ),
            ));
        }
        all.push(Piece::Var(name));
        rest = after;
    }
    all.push(Piece::Text(rest));
    all.retain(|piece| *piece != Piece::Text(""));
    Ok(all)
}

/// What is known of a variable; `None` where it was said already what is
/// wrong with it.
pub(super) type Known = BTreeMap<String, Option<Scalar>>;

/// A text with the values of its variables: the value itself where the text is
/// one variable and nothing else. Whether there was any.
pub(super) fn fill(text: &str, known: &Known, room: &Room) -> Result<(Scalar, bool), Unfilled> {
    let pieces = pieces(text)?;
    let value = |name: &str| match known.get(name) {
        Some(Some(value)) => Ok(value),
        Some(None) => Err(Unfilled::Said),
        None => {
            let message = format!("there is no variable `{name}`");
            Err(Unfilled::Wrong(message, Some(others(name, known))))
        }
    };
    // Before anything is made.
    for piece in &pieces {
        room.take(match piece {
            Piece::Text(text) => text.len(),
            Piece::Var(name) => value(name)?.length(),
        })?;
    }
    if let [Piece::Var(name)] = pieces.as_slice() {
        return Ok((value(name)?.clone(), true));
    }
    let mut out = String::new();
    let mut any = false;
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Var(name) => {
                out.push_str(&value(name)?.to_string());
                any = true;
            }
        }
    }
    Ok((Scalar::Text(out), any))
}

/// The variables that a text names, as far as it can be read.
pub(super) fn named(text: &str) -> Vec<&str> {
    let pieces = pieces(text).unwrap_or_default();
    let names = pieces.into_iter().filter_map(|piece| match piece {
        Piece::Var(name) => Some(name),
        Piece::Text(_) => None,
    });
    names.collect()
}

/// What a variable may have been meant to be.
fn others(name: &str, known: &Known) -> String {
    one_of(name, known.keys().map(String::as_str), "[vars] has none")
}

/// `did you mean …?`, or what there is.
pub(super) fn one_of<'a>(
    name: &str,
    all: impl Iterator<Item = &'a str> + Clone,
    none: &str,
) -> String {
    if let Some(near) = nearest(name, all.clone()) {
        return format!("did you mean `{near}`?");
    }
    let all: Vec<&str> = all.take(40).collect();
    if all.is_empty() {
        return none.to_owned();
    }
    format!("there are: {}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn known() -> Known {
        BTreeMap::from([
            ("n".to_owned(), Some(Scalar::Number(3))),
            ("zone".to_owned(), Some(Scalar::Text("gva2".to_owned()))),
            ("bad".to_owned(), None),
        ])
    }

    fn filled(text: &str) -> Result<String, Unfilled> {
        fill(text, &known(), &Room::new()).map(|(value, _)| value.to_string())
    }

    #[test]
    fn variables_are_filled_in() {
        assert_eq!(filled("a-${zone}-${n}"), Ok("a-gva2-3".to_owned()));
        let room = Room::new();
        assert_eq!(fill("${n}", &known(), &room), Ok((Scalar::Number(3), true)));
        assert_eq!(
            filled("$${n} costs $5 or $$"),
            Ok("${n} costs $5 or $$".into())
        );
        assert_eq!(filled(""), Ok(String::new()));
        assert_eq!(filled("${bad}"), Err(Unfilled::Said));
        for bad in ["${n", "${}", "${N}", "${n }", "${zoen}", "${a.b}"] {
            assert!(matches!(filled(bad), Err(Unfilled::Wrong(..))), "{bad}");
        }
        assert_eq!(named("${a} ${b}$${c}"), ["a", "b"]);
    }

    proptest! {
        #[test]
        fn any_text_is_filled_or_refused(text in "\\PC{0,60}") {
            if let Ok(out) = filled(&text) && !text.contains("${") {
                prop_assert_eq!(out, text);
            }
        }
    }
}
