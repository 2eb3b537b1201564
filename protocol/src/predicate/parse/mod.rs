//! The parser: recursive descent over the text itself, because what a character means depends on
//! where it stands (`[` opens a list after `in`, and a class of characters in a word).

use super::ast::{Attribute, Expr, Leaf, Name, Order, Pattern, Place, Test};
use super::error::{PredicateError, PredicateErrorKind as Kind, Span};
use super::shown::{Shown, is_hidden};
use super::value::Literal;
use super::{MAX_DEPTH, MAX_LEN};

mod mistake;
mod operand;
mod regexp;

use operand::Operand;

pub(super) type Parsed<T> = Result<T, PredicateError>;

/// Words that mean something by themselves and so are quoted when they are meant as text.
const KEYWORDS: [&str; 5] = ["and", "or", "not", "in", "has"];

/// Whether a character can stand in a word without quotes.
fn is_word(c: char) -> bool {
    (c.is_alphanumeric() && !is_hidden(c))
        || matches!(c, '_' | '-' | '.' | ':' | '/' | '@' | '+' | '%' | '~')
}

/// Whether a text can be written without quotes and is then neither a pattern nor a keyword.
pub(super) fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('~')
        && text.chars().all(is_word)
        && !KEYWORDS.contains(&text)
}

/// Parses a whole text.
pub(super) fn parse(source: &str) -> Parsed<Expr> {
    if source.len() > MAX_LEN {
        let mut at = MAX_LEN;
        while !source.is_char_boundary(at) {
            at -= 1;
        }
        let len = source.len();
        return Err(PredicateError::new(
            Kind::TooLong { len },
            Span::new(at, at),
        ));
    }
    if let Some((at, found)) = source
        .char_indices()
        .find(|(_, c)| is_hidden(*c) && !is_blank(*c))
    {
        let span = Span::new(at, at + found.len_utf8());
        let error = PredicateError::new(Kind::Hidden { found }, span);
        return Err(if found.is_whitespace() && !found.is_control() {
            error.hint_with("put an ordinary space there")
        } else {
            error
        });
    }
    let mut parser = Parser {
        source,
        at: 0,
        regexes: 0,
    };
    parser.skip_blanks();
    if parser.peek().is_none() {
        return Err(PredicateError::new(Kind::Empty, Span::new(0, 0)));
    }
    let expr = parser.any_of(0, None)?;
    match parser.peek() {
        None => Ok(expr),
        Some(_) => Err(parser.stray(&expr)),
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// What stands before a condition: a keyword or an opening parenthesis.
type After = Option<(&'static str, Span)>;

struct Parser<'s> {
    source: &'s str,
    at: usize,
    regexes: usize,
}

impl<'s> Parser<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(is_blank).len();
    }

    fn error<T>(&self, kind: Kind, span: Span) -> Parsed<T> {
        Err(PredicateError::new(kind, span))
    }

    /// The span of the next character.
    fn here(&self) -> Span {
        Span::new(self.at, self.at + self.peek().map_or(0, char::len_utf8))
    }

    /// The word that begins here up to the first `[`, which is all of a keyword.
    fn peek_word(&self) -> &'s str {
        let rest = self.rest();
        let end = rest
            .find(|c| !(is_word(c) || matches!(c, '*' | '?')))
            .unwrap_or(rest.len());
        &rest[..end]
    }

    fn peek_keyword(&self) -> Option<&'static str> {
        let word = self.peek_word();
        KEYWORDS.into_iter().find(|keyword| *keyword == word)
    }

    /// Passes over a keyword if it comes next.
    fn take_keyword(&mut self, keyword: &'static str) -> After {
        (self.peek_word() == keyword).then(|| {
            let span = Span::new(self.at, self.at + keyword.len());
            self.at = span.end;
            self.skip_blanks();
            (keyword, span)
        })
    }

    /// `a or b or c`. Leaves the position on the next thing that is not blank.
    fn any_of(&mut self, depth: usize, after: After) -> Parsed<Expr> {
        let first = self.all_of(depth, after)?;
        let mut items = Vec::new();
        while let after @ Some(_) = self.take_keyword("or") {
            items.push(self.all_of(depth, after)?);
        }
        Ok(joined(first, items, Expr::Or))
    }

    /// `a and b and c`.
    fn all_of(&mut self, depth: usize, after: After) -> Parsed<Expr> {
        let first = self.one(depth, after)?;
        let mut items = Vec::new();
        while let after @ Some(_) = self.take_keyword("and") {
            items.push(self.one(depth, after)?);
        }
        Ok(joined(first, items, Expr::And))
    }

    /// A condition, something in parentheses, or `not` one of these.
    fn one(&mut self, depth: usize, after: After) -> Parsed<Expr> {
        let span = self.here();
        let expr = match self.peek() {
            Some('(') => {
                if depth == MAX_DEPTH {
                    return self.error(Kind::TooDeep, span);
                }
                self.at = span.end;
                self.skip_blanks();
                if self.peek() == Some(')') {
                    return self.error(
                        Kind::EmptyParentheses,
                        Span::new(span.start, self.here().end),
                    );
                }
                let inside = self.any_of(depth + 1, Some(("(", span)))?;
                match self.peek() {
                    Some(')') => self.at += 1,
                    None => return self.error(Kind::UnclosedParenthesis, span),
                    Some(_) => return Err(self.stray(&inside)),
                }
                inside
            }
            Some(_) => match self.peek_keyword() {
                Some("not") => {
                    if depth == MAX_DEPTH {
                        let span = Span::new(span.start, span.start + "not".len());
                        return self.error(Kind::TooDeep, span);
                    }
                    let after = self.take_keyword("not");
                    Expr::Not(Box::new(self.one(depth + 1, after)?))
                }
                Some(keyword @ ("and" | "or" | "in")) => {
                    let span = Span::new(span.start, span.start + keyword.len());
                    let place = match after {
                        Some((before, _)) => format!("between `{before}` and `{keyword}`"),
                        None => format!("before `{keyword}`"),
                    };
                    return Err(PredicateError::new(Kind::MissingCondition { place }, span)
                        .hint_with(format!(
                            "if the word `{keyword}` itself is meant, put it in quotes"
                        )));
                }
                _ => self.leaf(after)?,
            },
            None => {
                // Only reached after a keyword or a parenthesis: an empty text is refused earlier.
                return match after {
                    Some(("(", open)) => self.error(Kind::UnclosedParenthesis, open),
                    Some((word, span)) => {
                        let place = format!("after `{word}`");
                        self.error(Kind::MissingCondition { place }, span)
                    }
                    None => self.error(Kind::Empty, span),
                };
            }
        };
        self.skip_blanks();
        Ok(expr)
    }

    /// A condition.
    fn leaf(&mut self, after: After) -> Parsed<Expr> {
        let start = self.at;
        let test = if let Some((_, has)) = self.take_keyword("has") {
            Test::Has(self.has_name(has)?)
        } else if self.peek_word() == "*" && !self.rest().starts_with("*[") {
            self.at += 1;
            Test::Everything
        } else {
            match self.operand()? {
                Some(operand) => self.after_operand(operand)?,
                None => return Err(self.no_operand(after)),
            }
        };
        let place = Place(Span::new(start, self.at));
        Ok(Expr::Leaf(Leaf { place, test }))
    }

    fn has_name(&mut self, has: Span) -> Parsed<Name> {
        let name = match self.peek_keyword() {
            Some(_) => None,
            None => self.operand()?,
        };
        let Some(name) = name else {
            return Err(PredicateError::new(
                Kind::MissingValue {
                    what: "a name",
                    after: "has".to_owned(),
                },
                has,
            )
            .hint_with(
                "write for example `has zone`; if the word `has` itself is meant, put it in quotes",
            ));
        };
        self.name(name)
    }

    /// Makes the left side of a comparison out of what was read.
    fn name(&self, operand: Operand) -> Parsed<Name> {
        let span = operand.span;
        if !operand.quoted {
            mistake::check_name(self.source, span)?;
        }
        match operand.pattern {
            Pattern::Exact(text) => Ok(Name {
                place: Place(span),
                attribute: Attribute::new(text.as_str()),
            }),
            Pattern::Glob(_) => Err(PredicateError::new(
                Kind::MisplacedPattern {
                    place: "the name of a label or fact",
                },
                span,
            )
            .hint_with("compare with one name, or quote it if it really is written so")),
        }
    }

    /// What follows a word decides whether it was a name or a node.
    fn after_operand(&mut self, operand: Operand) -> Parsed<Test> {
        let end = self.at;
        self.skip_blanks();
        if let Some((_, span)) = self.take_keyword("in") {
            let name = self.name(operand)?;
            let patterns = self.list(span)?;
            return Ok(Test::OneOf { name, patterns });
        }
        let Some((operator, span)) = self.operator()? else {
            self.at = end;
            if !operand.quoted {
                mistake::check_node_name(self.source, operand.span)?;
            }
            return Ok(Test::Node(operand.pattern));
        };
        let name = self.name(operand)?;
        self.skip_blanks();
        let order = match operator {
            "=~" => {
                let regex = self.regex(span)?;
                return Ok(Test::Matches { name, regex });
            }
            "=" | "!=" => {
                return Ok(Test::Equal {
                    name,
                    pattern: self.value(operator, span)?.pattern,
                    negated: operator == "!=",
                });
            }
            "<" => Order::Less,
            "<=" => Order::LessOrEqual,
            ">" => Order::Greater,
            _ => Order::GreaterOrEqual,
        };
        let value = self.value(operator, span)?;
        match value.pattern {
            Pattern::Exact(value) => Ok(Test::Order { name, order, value }),
            Pattern::Glob(_) => Err(PredicateError::new(
                Kind::MisplacedPattern {
                    place: "larger or smaller than something",
                },
                value.span,
            )
            .hint_with("patterns go with `=` and `in`; quote the value if it is plain text")),
        }
    }

    /// The comparison operator that comes next, if one does.
    fn operator(&mut self) -> Parsed<Option<(&'static str, Span)>> {
        let rest = self.rest();
        // Said first, because a regular expression may itself begin with one of these characters.
        let len = if rest.starts_with("=~") {
            2
        } else {
            rest.find(|c| !matches!(c, '=' | '!' | '<' | '>' | '~'))
                .unwrap_or(rest.len())
        };
        if len == 0 {
            return Ok(None);
        }
        let found = &rest[..len];
        let span = Span::new(self.at, self.at + len);
        let known = ["=", "!=", "<", "<=", ">", ">=", "=~"];
        if let Some(operator) = known.into_iter().find(|known| *known == found) {
            self.at = span.end;
            return Ok(Some((operator, span)));
        }
        let error = PredicateError::new(
            Kind::UnknownOperator {
                found: Shown(found).to_string(),
            },
            span,
        );
        Err(error.hint_with(match found {
            "==" | "===" => "write `=`",
            "=<" => "write `<=`",
            "=>" => "write `>=`",
            "<>" | "=!" | "!==" | "!" => "write `!=`",
            "~" | "~=" | "~~" => "write `=~`",
            "!~" | "!=~" | "!~=" => "write `not NAME =~ REGEX`",
            _ => "there are = != < <= > >= =~",
        }))
    }

    fn value(&mut self, operator: &str, span: Span) -> Parsed<Operand> {
        let keyword = self.peek_keyword();
        let value = match keyword {
            Some(_) => None,
            None => self.operand()?,
        };
        if let Some(value) = value {
            return Ok(value);
        }
        let missing = Kind::MissingValue {
            what: "a value",
            after: operator.to_owned(),
        };
        match (keyword, self.peek()) {
            (Some(keyword), _) => Err(PredicateError::new(missing, span).hint_with(format!(
                "if the word `{keyword}` is meant, put it in quotes"
            ))),
            (None, None | Some(')' | ']' | ',')) => {
                Err(PredicateError::new(missing, span).hint_with("an empty value is written \"\""))
            }
            (None, Some(_)) => Err(self.unexpected()),
        }
    }

    /// `[a, b]`
    fn list(&mut self, after: Span) -> Parsed<Vec<Pattern>> {
        let open = self.here();
        if self.peek() != Some('[') {
            return self.error(Kind::MissingList, after);
        }
        self.at = open.end;
        let mut patterns = Vec::new();
        let mut before = ("[", open);
        loop {
            self.skip_blanks();
            match self.peek() {
                None => return self.error(Kind::UnclosedList, open),
                Some(']') if patterns.is_empty() => {
                    return self.error(Kind::EmptyList, Span::new(open.start, self.at + 1));
                }
                Some(_) => patterns.push(self.value(before.0, before.1)?.pattern),
            }
            self.skip_blanks();
            let here = self.here();
            match self.peek() {
                Some(',') => {
                    self.at = here.end;
                    before = (",", here);
                }
                Some(']') => {
                    self.at = here.end;
                    return Ok(patterns);
                }
                None => return self.error(Kind::UnclosedList, open),
                Some(_) if self.peek_keyword().is_some() || self.peek() == Some(')') => {
                    return self.error(Kind::UnclosedList, open);
                }
                Some(_) => {
                    let error = self.unexpected();
                    return Err(error.hint_with("values in a list are separated by commas"));
                }
            }
        }
    }
}

/// One expression, or several joined.
fn joined(first: Expr, mut items: Vec<Expr>, join: fn(Vec<Expr>) -> Expr) -> Expr {
    if items.is_empty() {
        return first;
    }
    items.insert(0, first);
    join(items)
}
