//! What people read: pure functions from data to text, and the terminal.

pub mod book;
pub mod live;
pub mod output;
pub mod plan;
pub mod report;
pub mod steps;
pub mod table;
mod term;
pub mod time;

pub use muster_protocol::text::thousands;

pub use term::{Paint, Term};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How many columns a text takes. Escape sequences of [`Paint`] must not be in
/// it yet.
#[must_use]
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` cut to so many columns, with an ellipsis when something is missing.
#[must_use]
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let w = c.width().unwrap_or(0);
        if used + w + 1 > columns {
            break;
        }
        used += w;
        out.push(c);
    }
    out.push('…');
    out
}

/// `text` with blanks to so many columns; never cut.
#[must_use]
pub fn pad(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    format!("{text}{}", " ".repeat(missing))
}

/// `1 node`, `24 nodes`.
#[must_use]
pub fn count(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{} {what}s", thousands(n as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_what_a_terminal_shows() {
        assert_eq!(cut("web-01", 6), "web-01");
        assert_eq!(cut("web-01", 5), "web-…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(pad("日", 4), "日  ");
        assert_eq!(count(1, "node"), "1 node");
        assert_eq!(count(12345, "node"), "12,345 nodes");
    }
}
