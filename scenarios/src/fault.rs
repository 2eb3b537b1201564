//! What is wrong in a scenario, and where, in the form in which people read
//! compilers.

use std::fmt;

use muster_protocol::note::At;
pub use muster_protocol::text::nearest;
use muster_protocol::text::printable;
use serde::{Deserialize, Serialize};

/// Longest source line that is shown, in characters.
const MAX_SHOWN: usize = 200;

/// A place in a script: line and column from 1.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
}

impl Place {
    /// From the engine's position; `None` where it has none.
    pub(crate) fn of(position: rhai::Position) -> Option<Self> {
        Some(Self {
            line: position.line()?,
            column: position.position().unwrap_or(1),
        })
    }
}

impl From<Place> for At {
    fn from(place: Place) -> Self {
        let small = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            line: small(place.line),
            column: small(place.column),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The file, as the person named it.
    pub file: String,
    /// Where in it, if anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Place>,
    /// How many characters there are meant, at least one.
    pub width: usize,
    /// The line of the script, for showing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Fault {
    /// A fault in `text`, which is the content of `file`.
    pub(crate) fn new(
        file: &str,
        text: &str,
        at: Option<Place>,
        message: impl Into<String>,
    ) -> Self {
        let source = at.and_then(|at| text.lines().nth(at.line - 1));
        let width = at
            .zip(source)
            .map_or(1, |(at, line)| word_at(line, at.column));
        Self {
            file: file.to_owned(),
            at,
            width,
            // A tab counts as one column, so it is shown as one.
            source: source.map(|line| printable(&line.replace('\t', " "), MAX_SHOWN)),
            message: message.into(),
            hint: None,
        }
    }

    /// The same with advice.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Characters of the word, or of the string in quotes, that begins at a
/// column.
fn word_at(line: &str, column: usize) -> usize {
    let mut rest = line.chars().skip(column.saturating_sub(1)).peekable();
    let count = match rest.peek() {
        Some(&quote @ ('"' | '`' | '\'')) => {
            let inside = rest.skip(1).take_while(|c| *c != quote).count();
            inside + 2
        }
        _ => rest
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .count(),
    };
    count.max(1)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(at) = self.at {
            write!(f, ":{}:{}", at.line, at.column)?;
        }
        write!(f, ": {}", self.message)?;
        let Some((at, source)) = self.at.zip(self.source.as_ref()) else {
            return match &self.hint {
                Some(hint) => write!(f, "\n  {hint}"),
                None => Ok(()),
            };
        };
        write!(f, "\n{:>5} | {source}", at.line)?;
        let lead = at.column.saturating_sub(1);
        let shown = source.chars().count();
        if lead > shown {
            // The line was cut before the place.
            return match &self.hint {
                Some(hint) => write!(f, "\n      | {hint}"),
                None => Ok(()),
            };
        }
        let mark = self.width.min(shown - lead).max(1);
        write!(f, "\n      | {}{}", " ".repeat(lead), "^".repeat(mark))?;
        match &self.hint {
            // Lines of their own stand below the mark.
            Some(hint) if hint.starts_with('\n') => hint
                .lines()
                .skip(1)
                .try_for_each(|line| write!(f, "\n      | {line}")),
            Some(hint) => write!(f, " {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stands_below_its_word_whatever_the_line_holds() {
        let fault = |text: &str, column| {
            let at = Some(Place { line: 1, column });
            Fault::new("x.rhai", text, at, "wrong")
                .hint("do this")
                .to_string()
        };
        insta::assert_snapshot!(fault("\t\tpakage(1)", 3), @r"
        x.rhai:1:3: wrong
            1 |   pakage(1)
              |   ^^^^^^ do this
        ");
        // Far along a line that is cut, and far beyond its end.
        for (text, column) in [("x".repeat(100_000), 90_000), (String::new(), 500)] {
            let said = fault(&text, column);
            assert!(said.len() < 500, "{}", said.len());
            assert!(said.contains("do this"));
        }
    }
}
