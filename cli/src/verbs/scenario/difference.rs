//! What differs between two bundles, for people.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use muster_protocol::text::printable;
use muster_scenarios::bundle::{Bundle, SCRIPT};
use serde::Serialize;
use similar::{Algorithm, ChangeTag, TextDiff};

/// Most lines of the difference of one file.
const MAX_LINES: usize = 200;
/// Longest line, in characters.
const MAX_WIDTH: usize = 300;
/// Larger files are not compared line by line, in bytes.
const MAX_TEXT: usize = 1024 * 1024;
/// Lines around a change.
const AROUND: usize = 2;
/// How long a comparison may take; then it is a coarse one.
const WITHIN: Duration = Duration::from_millis(500);

/// A file that is not the same.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct Changed {
    /// Its path in the bundle.
    pub(super) path: String,
    /// Lines, with `-`, `+` or a blank in front; escaped.
    pub(super) lines: Vec<String>,
}

fn files(bundle: &Bundle) -> BTreeMap<&str, &[u8]> {
    let files = bundle.files().iter();
    let mut all: BTreeMap<&str, &[u8]> = files
        .map(|(path, data)| (path.as_str(), data.as_slice()))
        .collect();
    all.insert(SCRIPT, bundle.script().as_bytes());
    all
}

/// Every file that differs; a file that is not there counts as empty.
pub(super) fn between(old: Option<&Bundle>, new: Option<&Bundle>) -> Vec<Changed> {
    let old = old.map(files).unwrap_or_default();
    let new = new.map(files).unwrap_or_default();
    let mut paths: Vec<&str> = old.keys().chain(new.keys()).copied().collect();
    paths.sort_unstable();
    paths.dedup();
    // The script first: it is what is looked for.
    paths.sort_by_key(|path| *path != SCRIPT);
    paths
        .into_iter()
        .filter_map(|path| {
            let (old, new) = (old.get(path), new.get(path));
            if old == new {
                return None;
            }
            let empty: &[u8] = b"";
            Some(Changed {
                path: path.to_owned(),
                lines: lines(old.unwrap_or(&empty), new.unwrap_or(&empty)),
            })
        })
        .collect()
}

fn lines(old: &[u8], new: &[u8]) -> Vec<String> {
    let sizes = || format!("{} bytes → {} bytes", old.len(), new.len());
    let (Ok(old_text), Ok(new_text)) = (std::str::from_utf8(old), std::str::from_utf8(new)) else {
        return vec![format!("binary: {}", sizes())];
    };
    if old.len().max(new.len()) > MAX_TEXT {
        return vec![sizes()];
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
        }
    }
    if lines.len() > MAX_LINES {
        let more = lines.len() - MAX_LINES;
        lines.truncate(MAX_LINES);
        lines.push(format!("… {more} more lines"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(script: &str, files: &[(&str, &[u8])]) -> Bundle {
        let files = files
            .iter()
            .map(|(path, data)| (path.parse().expect("a path"), data.to_vec()))
            .collect();
        Bundle::new(script.to_owned(), files).expect("a bundle")
    }

    #[test]
    fn every_file_that_differs_is_shown_and_no_other() {
        let old = bundle(
            "a\nb\nc\n",
            &[("same", b"x"), ("z.j2", b"1\n"), ("bin", b"\xff")],
        );
        let new = bundle(
            "a\nB\u{1b}[2J\nc\n",
            &[("same", b"x"), ("a.j2", b"2\n"), ("bin", b"\xfe\xfe")],
        );
        let shown: Vec<String> = between(Some(&old), Some(&new))
            .into_iter()
            .map(|file| format!("{}\n  {}", file.path, file.lines.join("\n  ")))
            .collect();
        insta::assert_snapshot!(shown.join("\n"), @r"
        scenario.rhai
           a
          -b
          +B\x1b[2J
           c
        a.j2
          +2
        bin
          binary: 1 bytes → 2 bytes
        z.j2
          -1
        ");
        assert!(between(Some(&old), Some(&old)).is_empty());
        assert_eq!(between(None, Some(&new)).len(), 4);
    }
}
