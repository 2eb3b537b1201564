//! A line of a chat as words: the grammar of a shell without its magic.
//!
//! Words are separated by spaces. `'…'` takes everything as it is, `"…"` takes
//! `\"` and `\\`, and outside of quotes `\` takes the next character as it is.
//! Nothing is expanded: no variable, no pattern, no command. What was within
//! quotes is never read as a flag, nor its `=` as the one of `name=value`.

use std::ops::Range;

use crate::text::printable;

/// Most words of a line.
pub const MAX_WORDS: usize = 200;

/// A word of a line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Word {
    text: String,
    /// Where it is in the line; of a word that an alias made, the alias.
    span: Range<usize>,
    /// Where the `=` is that was written as such.
    equals: Option<usize>,
    /// It began with `--` that was written as such.
    dashed: bool,
    /// It was written without quotes.
    bare: bool,
}

impl Word {
    /// A word that means itself, whatever is in it.
    #[must_use]
    pub fn literal(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            span: 0..0,
            equals: None,
            dashed: false,
            bare: false,
        }
    }

    /// What it says.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it says.
    #[must_use]
    pub fn into_string(self) -> String {
        self.text
    }

    /// Where it was written in the line, in bytes.
    #[must_use]
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Whether it is written without quotes.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        self.bare
    }

    /// Whether it is exactly `--`, written as such.
    #[must_use]
    pub fn is_end_of_flags(&self) -> bool {
        self.dashed && self.text == "--"
    }

    /// The name of a flag, `on` for `--on` and `--on=x`, and what follows its
    /// `=`.
    #[must_use]
    pub fn flag(&self) -> Option<(&str, Option<&str>)> {
        if !self.dashed || self.text.len() == 2 {
            return None;
        }
        Some(match self.equals {
            Some(at) => (&self.text[2..at], Some(&self.text[at + 1..])),
            None => (&self.text[2..], None),
        })
    }

    /// Name and value of `name=value`. The `=` of a URL is none of these:
    /// what is before it is no name.
    #[must_use]
    pub fn pair(&self) -> Option<(&str, &str)> {
        let at = self.equals.filter(|_| !self.dashed)?;
        let (name, value) = (&self.text[..at], &self.text[at + 1..]);
        let mut chars = name.chars();
        let begins = chars
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        let goes_on = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        (begins && chars.all(goes_on)).then_some((name, value))
    }

    /// This word with the values in place of `$1`, `$2` and so on. What comes
    /// in is data: it is no flag, its `=` is none, and its `$1` is no place.
    pub(super) fn filled(&self, values: &[&str]) -> Self {
        let mut filled = Self {
            text: String::new(),
            equals: None,
            bare: false,
            ..self.clone()
        };
        let mut rest = self.text.char_indices().peekable();
        while let Some((at, c)) = rest.next() {
            if self.equals == Some(at) {
                filled.equals = Some(filled.text.len());
            }
            let number = |(_, c): &(usize, char)| c.to_digit(10).map(|n| n as usize);
            let value = rest.peek().and_then(number).filter(|_| c == '$');
            match value.and_then(|n| values.get(n.checked_sub(1)?)) {
                Some(value) => {
                    rest.next();
                    filled.text.push_str(value);
                }
                None => filled.text.push(c),
            }
        }
        filled
    }
}

/// Why a line cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WordsError {
    /// A quote without its other half.
    #[error("the quote {quote} before `{after}` is never closed")]
    Open {
        /// The quote.
        quote: char,
        /// What follows it.
        after: String,
    },
    /// A quote that some device made of a plain one.
    #[error("`{found}` is a typographic quote, which could mean anything: write {plain} instead")]
    Typographic {
        /// What was written.
        found: char,
        /// What to write.
        plain: char,
    },
    /// A dash that some device made of two hyphens.
    #[error("`{found}` is a long dash: write `--{rest}` with two hyphens")]
    LongDash {
        /// What was written.
        found: char,
        /// What follows it.
        rest: String,
    },
    /// A character that nobody types.
    #[error("there is a control character in the line; write it without")]
    Control,
    /// A backslash at the end.
    #[error("the line ends with a `\\`, which would take the next character as it is")]
    Backslash,
    /// Too much.
    #[error("the line has more than {MAX_WORDS} words")]
    TooMany,
}

/// The straight quote that a typographic one was.
fn straight(c: char) -> Option<char> {
    match c {
        '“' | '”' | '„' | '‟' | '«' | '»' | '″' | '＂' => Some('"'),
        '‘' | '’' | '‚' | '‛' | '‹' | '›' | '′' | '＇' => Some('\''),
        _ => None,
    }
}

/// Reads a line.
///
/// # Errors
/// [`WordsError`].
pub fn words(line: &str) -> Result<Vec<Word>, WordsError> {
    let mut words = Vec::new();
    let mut chars = line.char_indices().peekable();
    loop {
        while chars.next_if(|(_, c)| matches!(c, ' ' | '\t')).is_some() {}
        let Some(&(start, first)) = chars.peek() else {
            return Ok(words);
        };
        if words.len() == MAX_WORDS {
            return Err(WordsError::TooMany);
        }
        if matches!(first, '—' | '–' | '―') {
            let rest = line[start + first.len_utf8()..].split(' ').next();
            return Err(WordsError::LongDash {
                found: first,
                rest: printable(rest.unwrap_or_default(), 30),
            });
        }
        let mut word = Word {
            text: String::new(),
            span: start..start,
            equals: None,
            dashed: line[start..].starts_with("--"),
            bare: true,
        };
        let end = one(line, &mut chars, &mut word)?;
        word.span.end = end;
        words.push(word);
    }
}

type Chars<'a> = std::iter::Peekable<std::str::CharIndices<'a>>;

/// Reads one word, up to the space behind it. Where it ends.
fn one(line: &str, chars: &mut Chars<'_>, word: &mut Word) -> Result<usize, WordsError> {
    while let Some(&(at, c)) = chars.peek() {
        if matches!(c, ' ' | '\t') {
            return Ok(at);
        }
        chars.next();
        if c.is_control() {
            return Err(WordsError::Control);
        }
        match c {
            '"' | '\'' => {
                word.bare = false;
                quoted(line, chars, c, at, &mut word.text)?;
            }
            '\\' => {
                let (_, next) = chars.next().ok_or(WordsError::Backslash)?;
                if next.is_control() {
                    return Err(WordsError::Control);
                }
                word.bare = false;
                word.text.push(next);
            }
            '=' => {
                word.equals.get_or_insert(word.text.len());
                word.text.push(c);
            }
            c => {
                if let Some(plain) = straight(c)
                    && is_a_quote(c, word, chars)
                {
                    return Err(WordsError::Typographic { found: c, plain });
                }
                word.text.push(c);
            }
        }
    }
    Ok(line.len())
}

/// Whether it stands where a quote would: a `’` within a word is an
/// apostrophe.
fn is_a_quote(c: char, word: &Word, chars: &mut Chars<'_>) -> bool {
    let within = straight(c) == Some('\'')
        && !word.text.is_empty()
        && !word.text.ends_with('=')
        && chars.peek().is_some_and(|(_, next)| next.is_alphanumeric());
    !within
}

fn quoted(
    line: &str,
    chars: &mut Chars<'_>,
    quote: char,
    at: usize,
    text: &mut String,
) -> Result<(), WordsError> {
    loop {
        let Some((_, c)) = chars.next() else {
            return Err(WordsError::Open {
                quote,
                after: printable(&line[at + 1..], 30),
            });
        };
        if c == quote {
            return Ok(());
        }
        if c.is_control() && c != '\t' {
            return Err(WordsError::Control);
        }
        let escapes = quote == '"' && c == '\\';
        match chars.peek() {
            Some(&(_, next)) if escapes && matches!(next, '"' | '\\') => {
                chars.next();
                text.push(next);
            }
            _ => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(line: &str) -> Vec<String> {
        let words = words(line).unwrap();
        words.into_iter().map(Word::into_string).collect()
    }

    #[test]
    fn words_are_what_a_shell_makes_of_them() {
        assert_eq!(texts("  run  web a='b c' "), ["run", "web", "a=b c"]);
        assert_eq!(
            texts(r#"x "a \"b\" \n" 'c\d'"#),
            ["x", r#"a "b" \n"#, r"c\d"]
        );
        assert_eq!(texts(r"a\ b \'"), ["a b", "'"]);
        assert_eq!(texts("a'b'\"c\"d"), ["abcd"]);
        assert_eq!(texts("'' x"), ["", "x"]);
        assert_eq!(texts("it’s fine"), ["it’s", "fine"]);
        assert!(texts("").is_empty() && texts(" \t ").is_empty());
    }

    #[test]
    fn an_equals_sign_counts_where_it_was_written_as_one() {
        let first = |line: &str| words(line).unwrap().remove(0);
        assert_eq!(first("a=b=c").pair(), Some(("a", "b=c")));
        assert_eq!(first("a=\"b c\"").pair(), Some(("a", "b c")));
        assert_eq!(first("'a=b'").pair(), None);
        assert_eq!(first("https://x/?a=b").pair(), None);
        assert_eq!(
            first("url=https://x:8/?a=b").pair(),
            Some(("url", "https://x:8/?a=b"))
        );
        assert_eq!(first("=b").pair(), None);
        assert_eq!(first("--on=a=b").flag(), Some(("on", Some("a=b"))));
        assert_eq!(first("--on").flag(), Some(("on", None)));
        assert_eq!(first("'--on'").flag(), None);
        assert!(first("--").is_end_of_flags() && !first("'--'").is_end_of_flags());
        assert_eq!(first("--").flag(), None);
    }

    #[test]
    fn what_could_mean_anything_is_refused() {
        let said = |line: &str| words(line).unwrap_err().to_string();
        assert_eq!(said("run 'a b"), "the quote ' before `a b` is never closed");
        assert!(said("why=“it broke”").contains("write \" instead"));
        assert!(said("‘a b’").contains("write ' instead"));
        assert!(said("deploy —on x").contains("write `--on` with two hyphens"));
        assert_eq!(words("a\u{1}b"), Err(WordsError::Control));
        assert_eq!(words("a\r\nb"), Err(WordsError::Control));
        assert_eq!(words("a\\"), Err(WordsError::Backslash));
        assert_eq!(words(&"a ".repeat(MAX_WORDS + 1)), Err(WordsError::TooMany));
    }

    #[test]
    fn what_is_filled_in_changes_no_meaning() {
        let template = words("version=$1-x").unwrap().remove(0);
        let filled = template.filled(&["a=b --on c"]);
        assert_eq!(filled.pair(), Some(("version", "a=b --on c-x")));
        assert_eq!(filled.flag(), None);
        let template = words("$1").unwrap().remove(0);
        for value in ["--on", "k=v", "a b", "--", "$1"] {
            let filled = template.filled(&[value]);
            assert!(filled.flag().is_none() && filled.pair().is_none());
            assert!(!filled.is_end_of_flags());
            assert_eq!(filled.as_str(), value);
        }
        let template = words("$1=$2=$1$3").unwrap().remove(0);
        assert_eq!(
            template.filled(&["abc", "$1"]).pair(),
            Some(("abc", "$1=abc$3"))
        );
    }

    proptest! {
        #[test]
        fn no_line_panics_and_quoting_gives_back(line in "\\PC{0,80}") {
            let _ = words(&line);
            if !line.chars().any(char::is_control) {
                let text = format!("x {}", super::super::quoted(&line));
                let read = words(&text).unwrap();
                prop_assert_eq!(read.len(), 2);
                prop_assert_eq!(read[1].as_str(), line);
            }
        }
    }
}
