//! Which mistake it is when the text does not go on as it could, and what was probably meant.

use super::{
    After, KEYWORDS, Kind, Parsed, Parser, PredicateError, Shown, Span, is_plain, is_word,
};
use crate::predicate::ast::{Expr, Leaf, Place, Test};
use crate::predicate::glob;

impl Parser<'_> {
    /// The error for a place where a condition should begin and nothing that can is.
    pub(super) fn no_operand(&self, after: After) -> PredicateError {
        let here = self.here();
        let rest = self.rest();
        if rest.starts_with('!') && !rest.starts_with("!=") && !rest.starts_with("!~") {
            return PredicateError::new(
                Kind::UnknownOperator {
                    found: "!".to_owned(),
                },
                here,
            )
            .hint_with("write `not`");
        }
        if rest.starts_with(['=', '!', '<', '>', '~']) {
            let end = rest
                .find(|c| !matches!(c, '=' | '!' | '<' | '>' | '~'))
                .unwrap_or(rest.len());
            let operator = Shown(&rest[..end]).to_string();
            let span = Span::new(self.at, self.at + end);
            return PredicateError::new(Kind::MissingName { operator }, span)
                .hint_with("write for example `role=web`");
        }
        match (rest.starts_with(')'), after) {
            (true, Some((word, span))) => {
                let place = format!("after `{word}`");
                PredicateError::new(Kind::MissingCondition { place }, span)
            }
            (true, None) => PredicateError::new(Kind::UnopenedParenthesis, here),
            (false, _) => self.unexpected(),
        }
    }

    /// The error for a character that fits nothing here.
    pub(super) fn unexpected(&self) -> PredicateError {
        let word = self.peek_word();
        let span = if word.is_empty() {
            self.here()
        } else {
            Span::new(self.at, self.at + word.len())
        };
        let found = Shown(&self.source[span.start..span.end]).to_string();
        let hint = match self.peek() {
            Some('“' | '”' | '‘' | '’' | '„' | '«' | '»') => {
                "use plain quotes: \" or '"
            }
            Some('–' | '—' | '−') => "use a plain minus: -",
            Some('{' | '}') => "alternatives are written `in [a, b]`",
            Some('&' | '|') => "conditions are joined with `and` and `or`",
            _ => "put text with special characters in quotes",
        };
        PredicateError::new(Kind::Unexpected { found }, span).hint_with(hint)
    }

    /// The error for something that follows a complete condition and cannot.
    pub(super) fn stray(&self, before: &Expr) -> PredicateError {
        let rest = self.rest();
        if rest.starts_with(')') {
            return PredicateError::new(Kind::UnopenedParenthesis, self.here());
        }
        for (foreign, ours) in [
            ("&&", "and"),
            ("&", "and"),
            ("||", "or"),
            ("|", "or"),
            (",", "and"),
        ] {
            if rest.starts_with(foreign) {
                let span = Span::new(self.at, self.at + foreign.len());
                let found = foreign.to_owned();
                let hint = match foreign {
                    "," => "write `and` or `or`".to_owned(),
                    _ => format!("write `{ours}`"),
                };
                return PredicateError::new(Kind::Unexpected { found }, span).hint_with(hint);
            }
        }
        // `NOT a=b`: the mistake is the word before.
        if let Some((span, word)) = last_word(before, self.source)
            && let Some(keyword) = keyword_in_other_case(word)
        {
            let found = word.to_owned();
            return PredicateError::new(Kind::Unexpected { found }, span)
                .hint_with(format!("keywords are in small letters: `{keyword}`"));
        }
        if let Some(keyword) = keyword_in_other_case(self.peek_word()) {
            return self
                .unexpected()
                .hint_with(format!("keywords are in small letters: `{keyword}`"));
        }
        let error = self.unexpected();
        match (self.peek_keyword(), self.peek()) {
            (Some("not"), _) => {
                error.hint_with("`not` goes before the whole condition: `not zone in [a, b]`")
            }
            (_, Some('=' | '!' | '<' | '>' | '~')) => {
                error.hint_with("a condition has one comparison; join several with `and`")
            }
            (_, Some(c)) if is_word(c) || glob::is_meta(c) || matches!(c, '(' | '"' | '\'') => {
                match last_word(before, self.source) {
                    Some((_, word)) if is_plain(word) && is_plain(self.peek_word()) => error
                        .hint_with(format!(
                            "put `and` or `or` between conditions; a comparison is `{}={}`",
                            Shown(word),
                            Shown(self.peek_word())
                        )),
                    _ => error.hint_with("put `and` or `or` between two conditions"),
                }
            }
            _ => error,
        }
    }
}

fn keyword_in_other_case(word: &str) -> Option<&'static str> {
    KEYWORDS
        .into_iter()
        .find(|keyword| *keyword != word && keyword.eq_ignore_ascii_case(word))
}

/// The bare node name that ends an expression, if one does.
fn last_word<'s>(expr: &Expr, source: &'s str) -> Option<(Span, &'s str)> {
    match expr {
        Expr::And(items) | Expr::Or(items) => last_word(items.last()?, source),
        Expr::Not(inner) => last_word(inner, source),
        Expr::Leaf(Leaf {
            place: Place(span),
            test: Test::Node(_),
        }) => Some((*span, &source[span.start..span.end])),
        Expr::Leaf(_) => None,
    }
}

/// Refuses an unquoted word that no node can be called, which is how other tools write a comparison:
/// `role:web`, `name~web`.
pub(super) fn check_node_name(source: &str, span: Span) -> Parsed<()> {
    let word = &source[span.start..span.end];
    let Some(at) = word.find([':', '~']) else {
        return Ok(());
    };
    let found = Shown(word).to_string();
    let error = PredicateError::new(Kind::NotANodeName { found }, span);
    let (name, value) = (&word[..at], &word[at + 1..]);
    if !is_plain(name) || value.is_empty() {
        return Err(error);
    }
    let operator = if word[at..].starts_with(':') {
        "="
    } else {
        " =~ "
    };
    Err(error.hint_with(format!(
        "to compare, write `{}{operator}{}`",
        Shown(name),
        Shown(value)
    )))
}

/// Refuses an unquoted name with a `~`, which is how other tools write a match: `name~=web`.
pub(super) fn check_name(source: &str, span: Span) -> Parsed<()> {
    let Some(at) = source[span.start..span.end].find('~') else {
        return Ok(());
    };
    let at = span.start + at;
    let equals = source[at + 1..].bytes().take_while(|b| *b == b'=').count();
    let span = Span::new(at, at + 1 + equals);
    let found = source[span.start..span.end].to_owned();
    Err(PredicateError::new(Kind::UnknownOperator { found }, span)
        .hint_with("write `=~`, or quote the name if it really is written so"))
}
