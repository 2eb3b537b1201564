//! The canonical text: what parses back to the same tree, with nothing hidden in it.

use std::fmt::{self, Display, Write as _};

use super::ast::{Expr, Leaf, Name, Pattern, Test};
use super::parse::is_plain;
use super::shown::write_char;

impl Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Or(items) => join(f, items, " or ", |item| matches!(item, Self::Or(_))),
            Self::And(items) => join(f, items, " and ", |item| {
                matches!(item, Self::Or(_) | Self::And(_))
            }),
            Self::Not(inner) => {
                f.write_str("not ")?;
                grouped(f, inner, matches!(**inner, Self::Or(_) | Self::And(_)))
            }
            Self::Leaf(Leaf { test, .. }) => test.fmt(f),
        }
    }
}

fn join(
    f: &mut fmt::Formatter<'_>,
    items: &[Expr],
    between: &str,
    in_parentheses: impl Fn(&Expr) -> bool,
) -> fmt::Result {
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            f.write_str(between)?;
        }
        grouped(f, item, in_parentheses(item))?;
    }
    Ok(())
}

fn grouped(f: &mut fmt::Formatter<'_>, expr: &Expr, in_parentheses: bool) -> fmt::Result {
    if in_parentheses {
        write!(f, "({expr})")
    } else {
        expr.fmt(f)
    }
}

impl Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("*"),
            Self::Node(pattern) => {
                // A bare word with one of these is refused as a slip, so such a text is quoted here.
                match pattern {
                    Pattern::Exact(text) if text.as_str().contains([':', '~']) => {
                        quote(f, text.as_str())
                    }
                    _ => pattern.fmt(f),
                }
            }
            Self::Has(name) => write!(f, "has {name}"),
            Self::Equal {
                name,
                pattern,
                negated,
            } => write!(f, "{name}{}{pattern}", if *negated { "!=" } else { "=" }),
            Self::Order { name, order, value } => {
                write!(f, "{name} {} ", order.as_str())?;
                text(f, value.as_str())
            }
            Self::Matches { name, regex } => {
                write!(f, "{name} =~ ")?;
                quote_regex(f, regex.0.as_str())
            }
            Self::OneOf { name, patterns } => {
                write!(f, "{name} in [")?;
                for (n, pattern) in patterns.iter().enumerate() {
                    if n > 0 {
                        f.write_str(", ")?;
                    }
                    pattern.fmt(f)?;
                }
                f.write_char(']')
            }
        }
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.attribute.as_str();
        // Unquoted, a `~` in a name is refused as a slip for `=~`.
        if name.contains('~') {
            quote(f, name)
        } else {
            text(f, name)
        }
    }
}

impl Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => text(f, value.as_str()),
            Self::Glob(glob) => f.write_str(glob.as_str()),
        }
    }
}

fn text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    if is_plain(text) {
        f.write_str(text)
    } else {
        quote(f, text)
    }
}

/// The quote that needs no escape if there is one; people put predicates between `'` in a shell.
fn fitting_quote(text: &str) -> char {
    if text.contains('"') && !text.contains('\'') {
        '\''
    } else {
        '"'
    }
}

fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let quote = fitting_quote(text);
    f.write_char(quote)?;
    for c in text.chars() {
        if c == quote || c == '\\' {
            f.write_char('\\')?;
        }
        write_char(f, c)?;
    }
    f.write_char(quote)
}

fn quote_regex(f: &mut fmt::Formatter<'_>, pattern: &str) -> fmt::Result {
    let quote = fitting_quote(pattern);
    f.write_char(quote)?;
    for c in pattern.chars() {
        if c == quote {
            f.write_char('\\')?;
        }
        f.write_char(c)?;
    }
    f.write_char(quote)
}
