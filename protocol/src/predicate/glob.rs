//! Shell-like patterns over a whole text: `*`, `?`, `[a-z]`, `[!a-z]`.

/// A pattern with at least one of `*`, `?` and `[`. It costs no allocation to match, and at worst
/// the product of the two lengths.
#[derive(Clone, Debug)]
pub(super) struct Glob {
    text: Box<str>,
    items: Box<[Item]>,
}

#[derive(Clone, Debug)]
enum Item {
    One(char),
    Any,
    Star,
    Class {
        negated: bool,
        ranges: Box<[(char, char)]>,
    },
}

/// What is wrong with a pattern; offsets are bytes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GlobFault {
    /// A `[` without its `]`.
    Unclosed { at: usize },
    /// `[]` or `[!]`.
    Empty { start: usize, end: usize },
    /// A range like `[9-0]`.
    Backwards { start: usize, end: usize },
}

/// Whether a character makes an unquoted word a pattern.
pub(super) fn is_meta(c: char) -> bool {
    matches!(c, '*' | '?' | '[')
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Glob {}

impl Glob {
    pub(super) fn parse(text: &str) -> Result<Self, GlobFault> {
        let mut items = Vec::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let next = at + c.len_utf8();
            match c {
                // Several stars mean what one means, and would only cost time.
                '*' if matches!(items.last(), Some(Item::Star)) => {}
                '*' => items.push(Item::Star),
                '?' => items.push(Item::Any),
                '[' => {
                    let close = text[next..].find(']').ok_or(GlobFault::Unclosed { at })? + next;
                    items.push(class(text, next, close)?);
                    at = close + 1;
                    continue;
                }
                c => items.push(Item::One(c)),
            }
            at = next;
        }
        Ok(Self {
            text: text.into(),
            items: items.into(),
        })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let mut item = 0;
        let mut rest = text.chars();
        // Where to go on when a later part does not fit: the last star, eating one more character.
        let mut retry: Option<(usize, std::str::Chars<'_>)> = None;
        loop {
            match self.items.get(item) {
                Some(Item::Star) => {
                    item += 1;
                    retry = Some((item, rest.clone()));
                    continue;
                }
                Some(one) => {
                    let mut ahead = rest.clone();
                    if ahead.next().is_some_and(|c| one.accepts(c)) {
                        rest = ahead;
                        item += 1;
                        continue;
                    }
                }
                None if rest.as_str().is_empty() => return true,
                None => {}
            }
            match &mut retry {
                Some((from, eaten)) => {
                    if eaten.next().is_none() {
                        return false;
                    }
                    item = *from;
                    rest = eaten.clone();
                }
                None => return false,
            }
        }
    }
}

impl Item {
    fn accepts(&self, c: char) -> bool {
        match self {
            Self::One(wanted) => *wanted == c,
            Self::Any => true,
            Self::Star => false,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

/// Reads the inside of a class, `text[start..end]`.
fn class(text: &str, start: usize, end: usize) -> Result<Item, GlobFault> {
    let inside = &text[start..end];
    let negated = inside.starts_with(['!', '^']);
    let mut at = start + usize::from(negated);
    let mut ranges = Vec::new();
    while at < end {
        let mut chars = text[at..end].chars();
        let Some(low) = chars.next() else { break };
        let mut rest = chars.clone();
        let high = match (rest.next(), rest.next()) {
            (Some('-'), Some(high)) => {
                chars = rest;
                high
            }
            _ => low,
        };
        let next = end - chars.as_str().len();
        if low > high {
            return Err(GlobFault::Backwards {
                start: at,
                end: next,
            });
        }
        ranges.push((low, high));
        at = next;
    }
    if ranges.is_empty() {
        return Err(GlobFault::Empty {
            start: start - 1,
            end: end + 1,
        });
    }
    Ok(Item::Class {
        negated,
        ranges: ranges.into(),
    })
}
