//! Many names in few characters: `web-01 … web-24`.

use std::collections::BTreeMap;

use crate::text::thousands;

/// Fewest neighbours that make a range: two names are as short as `a … b`.
const SHORTEST: usize = 3;

/// One piece of a folded list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    /// One name.
    One(String),
    /// Every name from the first to the last, counted up in the last run of
    /// digits, none missing.
    Range {
        /// The first.
        first: String,
        /// The last.
        last: String,
        /// How many.
        count: usize,
    },
}

impl Piece {
    /// How many names it stands for.
    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Range { count, .. } => *count,
        }
    }
}

impl std::fmt::Display for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(name) => f.write_str(name),
            Self::Range { first, last, .. } => write!(f, "{first} … {last}"),
        }
    }
}

/// `web-07.x` is (`web-`, `07`, `.x`).
fn split(name: &str) -> Option<(&str, &str, &str)> {
    let end = name.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = name[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| {
            at + name[at..].chars().next().map_or(1, char::len_utf8)
        });
    Some((&name[..start], &name[start..end], &name[end..]))
}

/// Names by their number, and how many digits it is written with.
type Numbers<'a> = BTreeMap<(u64, usize), &'a str>;

/// Folds names into ranges without losing or adding one. The pieces are in
/// the order of their first names; doubles are dropped.
#[must_use]
pub fn fold<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    // By the text before the digits and the text after them.
    let mut numbered: BTreeMap<(&str, &str), Numbers<'_>> = BTreeMap::new();
    for name in names {
        // Up to 18 digits fit the number; longer ones are not counted up.
        match split(name).filter(|(_, digits, _)| digits.len() <= 18) {
            Some((before, digits, after)) => {
                let number = digits.parse().unwrap_or(0);
                numbered
                    .entry((before, after))
                    .or_default()
                    .insert((number, digits.len()), name);
            }
            None => pieces.push(Piece::One(name.to_owned())),
        }
    }
    for ((before, after), mut left) in numbered {
        while let Some(((number, digits), first)) = left.pop_first() {
            let mut run = vec![first];
            let mut next = number;
            loop {
                next += 1;
                // As a person counts on from the first: 08, 09, 10 or 8, 9, 10.
                let text = format!("{next:0digits$}");
                let Some(name) = left.remove(&(next, text.len())) else {
                    break;
                };
                run.push(name);
            }
            debug_assert!(
                run.iter()
                    .all(|n| n.starts_with(before) && n.ends_with(after))
            );
            match run.as_slice() {
                [first, .., last] if run.len() >= SHORTEST => pieces.push(Piece::Range {
                    first: (*first).to_owned(),
                    last: (*last).to_owned(),
                    count: run.len(),
                }),
                _ => pieces.extend(run.iter().map(|n| Piece::One((*n).to_owned()))),
            }
        }
    }
    pieces.sort_by(|a, b| first(a).cmp(first(b)));
    pieces.dedup();
    pieces
}

fn first(piece: &Piece) -> &str {
    match piece {
        Piece::One(name) => name,
        Piece::Range { first, .. } => first,
    }
}

/// Names are plain: each of their characters takes a column.
fn width(text: &str) -> usize {
    text.chars().count()
}

/// The folded names as text of at most about `columns` columns; what does not
/// fit is counted: `web-01 … web-24, db-1, and 3 more`.
#[must_use]
pub fn folded<'a>(names: impl IntoIterator<Item = &'a str>, columns: usize) -> String {
    let pieces = fold(names);
    let mut out = String::new();
    for (i, piece) in pieces.iter().enumerate() {
        let text = piece.to_string();
        if i > 0 && width(&out) + width(&text) + 2 > columns {
            let left: usize = pieces[i..].iter().map(Piece::len).sum();
            out.push_str(&format!(", and {} more", thousands(left as u64)));
            return out;
        }
        if i > 0 {
            out.push_str(", ");
        }
        out.push_str(&text);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn unfold(pieces: &[Piece]) -> Vec<String> {
        let mut out = Vec::new();
        for piece in pieces {
            match piece {
                Piece::One(name) => out.push(name.clone()),
                Piece::Range { first, last, count } => {
                    let (before, digits, after) = split(first).expect("a range has digits");
                    let start: u64 = digits.parse().expect("digits");
                    let width = digits.len();
                    let names: Vec<_> = (start..start + *count as u64)
                        .map(|n| format!("{before}{n:0width$}{after}"))
                        .collect();
                    assert_eq!(names.last(), Some(last));
                    out.extend(names);
                }
            }
        }
        out
    }

    #[test]
    fn ranges_read_as_people_write_them() {
        let show = |names: &[&str]| folded(names.iter().copied(), 60);
        assert_eq!(show(&["web-01", "web-02", "web-03"]), "web-01 … web-03");
        assert_eq!(show(&["web-01", "web-02"]), "web-01, web-02");
        assert_eq!(show(&["h8", "h9", "h10", "h11"]), "h8 … h11");
        assert_eq!(show(&["h08", "h09", "h10", "h1"]), "h08 … h10, h1");
        assert_eq!(
            show(&["w1.ch", "w2.ch", "w3.ch", "w1.de", "db"]),
            "db, w1.ch … w3.ch, w1.de"
        );
        assert_eq!(show(&["a", "é1", "é2", "é3"]), "a, é1 … é3");
        let many: Vec<String> = (0..40).map(|n| format!("n{}", n * 2)).collect();
        assert_eq!(
            folded(many.iter().map(String::as_str), 20),
            "n0, n10, n12, n14, and 36 more"
        );
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_invented(
            names in prop::collection::btree_set("[ab]{1,2}(-0{0,2}[0-9]{1,3})?([.x][0-9]?)?", 0..60),
        ) {
            let pieces = fold(names.iter().map(String::as_str));
            let back = unfold(&pieces);
            prop_assert_eq!(back.len(), names.len(), "{:?}", &pieces);
            prop_assert_eq!(back.into_iter().collect::<BTreeSet<_>>(), names);
        }
    }
}
