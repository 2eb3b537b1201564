//! What is wrong in the files, and where.

use miette::Diagnostic;
use muster_protocol::text::printable;
use muster_scenarios::fault::{Fault, Place};

/// Longest line that is shown, in characters.
const MAX_SHOWN: usize = 200;
/// Longest message.
const MAX_MESSAGE: usize = 600;

/// Something wrong in `text`, which is the content of `file`, at those bytes.
pub(super) fn fault(
    file: &str,
    text: &str,
    at: Option<(usize, usize)>,
    message: impl AsRef<str>,
) -> Fault {
    let place = at.map(|(offset, _)| place(text, offset));
    let source = place.and_then(|at| text.lines().nth(at.line - 1));
    let width = match (at, place, source) {
        (Some((_, length)), Some(place), Some(line)) => {
            let left = (line.chars().count() + 1).saturating_sub(place.column);
            length.clamp(1, left.max(1))
        }
        _ => 1,
    };
    Fault {
        file: file.to_owned(),
        at: place,
        width,
        source: source.map(|line| printable(&line.replace('\t', " "), MAX_SHOWN)),
        message: printable(&message.as_ref().replace('\n', " "), MAX_MESSAGE),
        hint: None,
    }
}

/// Line and column of a byte.
fn place(text: &str, offset: usize) -> Place {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    Place {
        line: before.matches('\n').count() + 1,
        column: before[start..].chars().count() + 1,
    }
}

/// What Cedar says of a text.
pub(super) fn of_cedar(file: &str, text: &str, error: &dyn Diagnostic) -> Fault {
    let first = error.labels().and_then(|mut labels| labels.next());
    let at = first.as_ref().map(|label| (label.offset(), label.len()));
    let mut message = error.to_string();
    if let Some(label) = first.as_ref().and_then(|label| label.label()) {
        message = format!("{message}: {label}");
    }
    let mut fault = fault(file, text, at, message);
    fault.hint = error
        .help()
        .map(|help| printable(&help.to_string(), MAX_MESSAGE));
    fault
}
