//! What would change in a text, for people.

use std::time::{Duration, Instant};

use muster_protocol::text::printable;
use similar::{Algorithm, ChangeTag, TextDiff};

/// Most lines of a difference.
const MAX_LINES: usize = 200;
/// Longest line of a difference, in characters.
const MAX_WIDTH: usize = 300;
/// Larger texts are not compared line by line.
const MAX_TEXT: usize = 1024 * 1024;
/// Lines around a change.
const AROUND: usize = 2;
/// How long a comparison may take; then it is a coarse one.
const WITHIN: Duration = Duration::from_millis(500);

/// The lines that differ, with `-`, `+` or a blank in front.
pub(super) fn lines(old: &[u8], new: &[u8]) -> Vec<String> {
    if old == new {
        return Vec::new();
    }
    let (Ok(old_text), Ok(new_text)) = (std::str::from_utf8(old), std::str::from_utf8(new)) else {
        return vec![format!("binary: {} bytes → {} bytes", old.len(), new.len())];
    };
    if old.len().max(new.len()) > MAX_TEXT {
        return vec![format!("{} bytes → {} bytes", old.len(), new.len())];
    }
    let diff = TextDiff::configure()
        .algorithm(Algorithm::Patience)
        .deadline(Instant::now() + WITHIN)
        .diff_lines(old_text, new_text);
    let mut lines = Vec::new();
    for (index, group) in diff.grouped_ops(AROUND).iter().enumerate() {
        if index > 0 {
            lines.push("…".to_owned());
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let mark = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            };
            let text = change.value().trim_end_matches('\n');
            lines.push(format!("{mark}{}", printable(text, MAX_WIDTH)));
            if change.missing_newline() {
                lines.push("\\ no newline at the end".to_owned());
            }
        }
    }
    if lines.len() > MAX_LINES {
        let more = lines.len() - MAX_LINES;
        lines.truncate(MAX_LINES);
        lines.push(format!("… {more} more lines"));
    }
    lines
}
