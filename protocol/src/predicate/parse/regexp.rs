//! The right side of `=~`.

use regex::RegexBuilder;

use super::{Kind, Parsed, Parser, PredicateError, Shown, Span, is_blank};
use crate::predicate::ast::Expression;
use crate::predicate::{MAX_REGEX_BYTES, MAX_REGEXES};

impl Parser<'_> {
    /// Reads and compiles the regular expression that begins here. In quotes a backslash is the
    /// regex's own, and `\"` and `\'` are the quotes themselves.
    pub(super) fn regex(&mut self, operator: Span) -> Parsed<Expression> {
        let start = self.at;
        let (inside, pattern) = match self.peek() {
            Some(quote @ ('"' | '\'')) => self.quoted_regex(quote)?,
            _ => self.bare_regex(),
        };
        if self.at == start {
            return Err(PredicateError::new(
                Kind::MissingValue {
                    what: "a regular expression",
                    after: "=~".to_owned(),
                },
                operator,
            )
            .hint_with("write for example `name =~ \"^web-[0-9]+$\"`"));
        }
        let span = Span::new(start, self.at);
        self.regexes += 1;
        if self.regexes > MAX_REGEXES {
            return self.error(Kind::TooManyRegexes, span);
        }
        RegexBuilder::new(&pattern)
            .size_limit(MAX_REGEX_BYTES)
            .dfa_size_limit(MAX_REGEX_BYTES)
            .nest_limit(64)
            .build()
            .map(Expression)
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => PredicateError::new(Kind::CostlyRegex, span),
                other => {
                    let (reason, at) = reason(&other.to_string());
                    let as_written = self.source[inside.start..inside.end] == pattern;
                    let span = at
                        .filter(|_| as_written)
                        .and_then(|(column, width)| part(&pattern, inside.start, column, width))
                        .unwrap_or(span);
                    let error = PredicateError::new(Kind::BadRegex { reason }, span);
                    if inside.start == start {
                        error.hint_with("quote it if it has blanks or an odd parenthesis")
                    } else {
                        error
                    }
                }
            })
    }

    fn quoted_regex(&mut self, quote: char) -> Parsed<(Span, String)> {
        let open = self.here();
        let mut pattern = String::new();
        self.at = open.end;
        while let Some(c) = self.peek() {
            let here = self.here();
            if c == quote {
                self.at = here.end;
                return Ok((Span::new(open.end, here.start), pattern));
            }
            if c != ' ' && is_blank(c) {
                return Err(PredicateError::new(Kind::Hidden { found: c }, here)
                    .hint_with("write it as \\n, \\r or \\t; or is a quote not closed?"));
            }
            self.regex_char(c, &mut pattern);
        }
        self.error(Kind::UnclosedQuote, open)
    }

    /// Up to the next blank, or the next `)` that it has not itself opened.
    fn bare_regex(&mut self) -> (Span, String) {
        let start = self.at;
        let mut open = 0_usize;
        let mut pattern = String::new();
        while let Some(c) = self.peek() {
            match c {
                c if is_blank(c) => break,
                ')' if open == 0 => break,
                ')' => open -= 1,
                '(' => open += 1,
                _ => {}
            }
            self.regex_char(c, &mut pattern);
        }
        (Span::new(start, self.at), pattern)
    }

    /// Takes one character, or a backslash and what it protects.
    fn regex_char(&mut self, c: char, pattern: &mut String) {
        self.at += c.len_utf8();
        match self.peek() {
            // The same regex with and without the backslash, so one form is kept: the printed
            // form then parses to the same text.
            Some(quote @ ('"' | '\'')) if c == '\\' => {
                pattern.push(quote);
                self.at += 1;
            }
            Some(next) if c == '\\' && !is_blank(next) => {
                pattern.push(c);
                pattern.push(next);
                self.at += next.len_utf8();
            }
            _ => pattern.push(c),
        }
    }
}

/// The reason, and the caret's column and width in characters, out of the regex crate's picture:
/// a heading, the pattern indented by four, a line of carets, and `error: REASON`.
fn reason(text: &str) -> (String, Option<(usize, usize)>) {
    let reason = text
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix("error: "))
        .unwrap_or("it cannot be read");
    let carets = text
        .lines()
        .find(|line| line.contains('^') && line.chars().all(|c| matches!(c, ' ' | '^')))
        .and_then(|line| {
            let from = line.find('^')?;
            let width = line[from..].bytes().take_while(|b| *b == b'^').count();
            Some((from.checked_sub(4)?, width))
        });
    (Shown(reason).to_string(), carets)
}

/// The bytes of some characters of the pattern, as a span of the source.
fn part(pattern: &str, start: usize, column: usize, width: usize) -> Option<Span> {
    let mut at = pattern
        .char_indices()
        .map(|(at, _)| at)
        .chain([pattern.len()]);
    let from = at.nth(column)?;
    let to = at.nth(width.checked_sub(1)?).unwrap_or(pattern.len());
    Some(Span::new(start + from, start + to))
}
