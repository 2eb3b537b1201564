//! Text from people made safe to show: nothing invisible, nothing a terminal obeys, and carets
//! that stand under the character they mean.

use std::fmt::{self, Write as _};

use super::Span;

/// The longest piece of somebody's text repeated inside a message, in characters.
const QUOTED_CHARS: usize = 80;
/// What is shown of a long source line on each side of the place, in characters.
const CONTEXT_CHARS: usize = 48;

/// Whether a character would not be seen as itself: controls, bidirectional and zero-width
/// formatting, fillers, tags, and every blank other than the plain space.
pub(super) fn is_hidden(c: char) -> bool {
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}')
}

/// Terminal columns of a character that is not hidden.
fn width(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}'
        | '\u{483}'..='\u{489}'
        | '\u{591}'..='\u{5bd}'
        | '\u{610}'..='\u{61a}'
        | '\u{64b}'..='\u{65f}'
        | '\u{e31}'
        | '\u{e34}'..='\u{e3a}'
        | '\u{e47}'..='\u{e4e}'
        | '\u{1ab0}'..='\u{1aff}'
        | '\u{1dc0}'..='\u{1dff}'
        | '\u{20d0}'..='\u{20ff}'
        | '\u{3099}'..='\u{309a}'
        | '\u{fe20}'..='\u{fe2f}' => 0,
        '\u{1100}'..='\u{115e}'
        | '\u{231a}'..='\u{231b}'
        | '\u{2e80}'..='\u{303e}'
        | '\u{3041}'..='\u{a4cf}'
        | '\u{a960}'..='\u{a97f}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff01}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{16fe0}'..='\u{18dff}'
        | '\u{1b000}'..='\u{1b2ff}'
        | '\u{1f300}'..='\u{1f64f}'
        | '\u{1f680}'..='\u{1f6ff}'
        | '\u{1f900}'..='\u{1f9ff}'
        | '\u{1fa70}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

/// Writes a character, or the escape that stands for it when it is hidden.
pub(super) fn write_char(out: &mut impl fmt::Write, c: char) -> fmt::Result {
    match c {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        c if is_hidden(c) => write!(out, "\\u{{{:x}}}", u32::from(c)),
        c => out.write_char(c),
    }
}

/// Displays text with hidden characters escaped, cut with `…` when it is long.
pub(super) struct Shown<'a>(pub(super) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, c) in self.0.chars().enumerate() {
            if n == QUOTED_CHARS {
                return f.write_char('…');
            }
            write_char(f, c)?;
        }
        Ok(())
    }
}

/// Displays text with hidden characters escaped, however long it is.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| write_char(f, c))
    }
}

/// The nearest character boundary at or before `at`, inside `text`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Lays out an error for a terminal: the message, the source line, a caret under the place, and
/// the hint beside it. No newline at the end.
///
/// `source` is the text the span belongs to. Everything is escaped, a line break ends the part
/// that is shown, and a long line is cut around the place, so any source is safe to pass, also one
/// that the span does not fit.
pub fn render(message: &str, source: &str, span: Span, hint: Option<&str>) -> String {
    let mut out = format!("error: {}", Escaped(message));
    let start = floor(source, span.start);
    let end = floor(source, span.end).max(start);
    let line_start = source[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = source[start..]
        .find('\n')
        .map_or(source.len(), |at| start + at);
    let line = &source[line_start..line_end];
    if line.trim().is_empty() {
        if let Some(hint) = hint {
            let _ = write!(out, "\n  {}", Escaped(hint));
        }
        return out;
    }

    let before = &source[line_start..start];
    let kept_from = before
        .char_indices()
        .rev()
        .nth(CONTEXT_CHARS)
        .map_or(line_start, |(at, c)| line_start + at + c.len_utf8());
    let after = &source[start..line_end];
    let kept_to = after
        .char_indices()
        .nth(CONTEXT_CHARS)
        .map_or(line_end, |(at, _)| start + at);

    let mut shown = String::new();
    let (mut column, mut caret_at, mut caret_width) = (0, 0, 0);
    if kept_from > line_start {
        shown.push('…');
        column += 1;
    }
    for (at, c) in source[kept_from..kept_to].char_indices() {
        let at = kept_from + at;
        if at == start {
            caret_at = column;
        }
        let columns = if matches!(c, '\t' | '\r') {
            shown.push(' ');
            1
        } else if is_hidden(c) {
            let from = shown.len();
            let _ = write_char(&mut shown, c);
            shown.len() - from
        } else {
            shown.push(c);
            width(c)
        };
        column += columns;
        if at >= start && at < end {
            caret_width += columns;
        }
    }
    if start >= kept_to {
        caret_at = column;
    }
    if kept_to < line_end {
        shown.push('…');
    }
    let _ = write!(
        out,
        "\n  {}\n  {:caret_at$}{}",
        shown.trim_end(),
        "",
        "^".repeat(caret_width.max(1)),
    );
    if let Some(hint) = hint {
        let _ = write!(out, " {}", Escaped(hint));
    }
    out
}
