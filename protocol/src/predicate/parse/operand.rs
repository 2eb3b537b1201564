//! Words, patterns and quoted text.

use super::{
    Kind, Literal, Parsed, Parser, Pattern, PredicateError, Shown, Span, is_blank, is_word,
};
use crate::predicate::glob::{self, Glob, GlobFault};

/// A word or a quoted text, before it is known what it stands for.
pub(super) struct Operand {
    pub(super) pattern: Pattern,
    pub(super) span: Span,
    pub(super) quoted: bool,
}

impl<'s> Parser<'s> {
    /// The word or quoted text that begins here; nothing if none does.
    pub(super) fn operand(&mut self) -> Parsed<Option<Operand>> {
        match self.peek() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote).map(Some),
            Some(c) if c != '~' && (is_word(c) || glob::is_meta(c)) => self.word().map(Some),
            _ => Ok(None),
        }
    }

    fn word(&mut self) -> Parsed<Operand> {
        let start = self.at;
        let mut pattern = false;
        while let Some(c) = self.peek() {
            if c == '[' {
                self.class()?;
            } else if is_word(c) || glob::is_meta(c) {
                self.at += c.len_utf8();
            } else {
                break;
            }
            pattern |= glob::is_meta(c);
        }
        let text = &self.source[start..self.at];
        let span = Span::new(start, self.at);
        let pattern = if pattern {
            Pattern::Glob(Glob::parse(text).map_err(|fault| glob_error(fault, start))?)
        } else {
            Pattern::Exact(Literal::new(text, span))
        };
        Ok(Operand {
            pattern,
            span,
            quoted: false,
        })
    }

    /// Passes over `[a-z]`.
    fn class(&mut self) -> Parsed<()> {
        let open = self.here();
        let inside = &self.source[open.end..];
        let end = inside.find(|c| !(is_word(c) || matches!(c, '!' | '^' | '*' | '?')));
        match end {
            Some(end) if inside[end..].starts_with(']') => {
                self.at = open.end + end + 1;
                Ok(())
            }
            _ => self.error(Kind::UnclosedClass, open),
        }
    }

    fn quoted(&mut self, quote: char) -> Parsed<Operand> {
        let open = self.here();
        let mut text = String::new();
        self.at = open.end;
        loop {
            let here = self.here();
            match self.peek() {
                None => return self.error(Kind::UnclosedQuote, open),
                Some(c) if c == quote => {
                    self.at = here.end;
                    let span = Span::new(open.start, self.at);
                    return Ok(Operand {
                        pattern: Pattern::Exact(Literal::new(text, span)),
                        span,
                        quoted: true,
                    });
                }
                Some('\\') => text.push(self.escape()?),
                Some(found) if found != ' ' && is_blank(found) => {
                    return Err(PredicateError::new(Kind::Hidden { found }, here)
                        .hint_with("write it as \\n, \\r or \\t; or is a quote not closed?"));
                }
                Some(c) => {
                    text.push(c);
                    self.at = here.end;
                }
            }
        }
    }

    fn escape(&mut self) -> Parsed<char> {
        let start = self.at;
        let rest = &self.rest()[1..];
        let (c, len) = match rest.chars().next() {
            Some(c @ ('\\' | '"' | '\'')) => (Some(c), 1),
            Some('n') => (Some('\n'), 1),
            Some('r') => (Some('\r'), 1),
            Some('t') => (Some('\t'), 1),
            Some('u') => {
                let digits = rest[1..]
                    .strip_prefix('{')
                    .and_then(|inside| inside.split_once('}'))
                    .map(|(digits, _)| digits)
                    .filter(|digits| {
                        (1..=6).contains(&digits.len())
                            && digits.bytes().all(|b| b.is_ascii_hexdigit())
                    });
                let c = digits
                    .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                    .and_then(char::from_u32);
                (c, 1 + digits.map_or(0, |digits| digits.len() + 2))
            }
            Some(c) => (None, c.len_utf8()),
            None => (None, 0),
        };
        let end = start + 1 + len;
        match c {
            Some(c) => {
                self.at = end;
                Ok(c)
            }
            None => {
                let found = Shown(&self.source[start..end]).to_string();
                self.error(Kind::BadEscape { found }, Span::new(start, end))
            }
        }
    }
}

fn glob_error(fault: GlobFault, start: usize) -> PredicateError {
    let (kind, from, to) = match fault {
        GlobFault::Unclosed { at } => (Kind::UnclosedClass, at, at + 1),
        GlobFault::Empty { start, end } => (Kind::EmptyClass, start, end),
        GlobFault::Backwards { start, end } => (Kind::BackwardsRange, start, end),
    };
    PredicateError::new(kind, Span::new(start + from, start + to))
}
