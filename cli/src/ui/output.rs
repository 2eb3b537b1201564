//! What a program printed, made into lines that are safe to show.

use muster_protocol::api::RunNode;
use muster_protocol::note::{Reader, Shown, value_lines};
use muster_protocol::run::{Data, Stream};
use muster_protocol::text::{lossy, printable_line};

/// A line of output, escaped.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Line {
    /// Where it was written to.
    pub stream: Stream,
    /// The text.
    pub text: String,
    /// Of a note: it tells of something that went wrong.
    pub complaint: bool,
}

impl Line {
    /// What a function of a scenario returned, and how much it changed.
    pub fn of_result(result: &RunNode) -> Vec<Self> {
        let value = result.value.as_ref().map(value_lines).unwrap_or_default();
        let tally = result.tally.filter(|tally| !tally.is_empty());
        let texts = value
            .into_iter()
            .chain(tally.map(|tally| tally.to_string()));
        let line = |text| Shown {
            text,
            complaint: false,
        };
        texts.map(line).map(Self::of_note).collect()
    }

    /// A line that a step says of itself.
    fn of_note(shown: Shown) -> Self {
        Self {
            stream: Stream::Note,
            text: shown.text,
            complaint: shown.complaint,
        }
    }
}

/// Puts pieces of all streams together into lines. A line is where its end
/// came; what one stream began is not torn by another.
#[derive(Clone, Debug, Default)]
pub struct Assembly {
    lines: Vec<Line>,
    open: [Vec<u8>; 2],
    notes: Reader,
}

impl Assembly {
    /// Takes the next piece.
    pub fn push(&mut self, stream: Stream, data: &Data) {
        match data {
            Data::Text(text) => self.push_bytes(stream, text.as_bytes()),
            Data::Bytes { .. } => match data.bytes() {
                Some(bytes) => self.push_bytes(stream, &bytes),
                None => self.push_bytes(stream, b"(unreadable output)\n"),
            },
        }
    }

    fn push_bytes(&mut self, stream: Stream, bytes: &[u8]) {
        let Some(slot) = slot(stream) else {
            for read in self.notes.push(bytes) {
                self.lines
                    .extend(read.said().into_iter().map(Line::of_note));
            }
            return;
        };
        let open = &mut self.open[slot];
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            open.extend_from_slice(&rest[..end]);
            self.lines.push(line(stream, open));
            open.clear();
            rest = &rest[end + 1..];
        }
        open.extend_from_slice(rest);
    }

    /// All lines, also those without an end.
    #[must_use]
    pub fn finish(mut self) -> Vec<Line> {
        for (stream, open) in [Stream::Stdout, Stream::Stderr].into_iter().zip(self.open) {
            if !open.is_empty() {
                self.lines.push(line(stream, &open));
            }
        }
        if let Some(cut) = self.notes.finish() {
            self.lines.extend(cut.said().into_iter().map(Line::of_note));
        }
        self.lines
    }

    /// The newest line that is not blank, for a progress display.
    #[must_use]
    pub fn newest(&self) -> Option<&str> {
        self.lines
            .iter()
            .rev()
            .map(|l| l.text.trim())
            .find(|t| !t.is_empty())
    }

    /// How many lines are whole.
    #[must_use]
    pub fn whole_lines(&self) -> usize {
        self.lines.len()
    }

    /// Takes the whole lines out, for a display that prints as they come.
    pub fn drain(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.lines)
    }
}

/// Where the beginning of a line of a program is kept until its end comes.
fn slot(stream: Stream) -> Option<usize> {
    match stream {
        Stream::Stdout => Some(0),
        Stream::Stderr => Some(1),
        Stream::Note => None,
    }
}

fn line(stream: Stream, bytes: &[u8]) -> Line {
    // The `\r` of a `\r\n` is part of the line's end.
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    Line {
        stream,
        text: printable_line(&lossy(bytes)),
        complaint: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[(Stream, &[u8])]) -> Vec<(Stream, String)> {
        let mut assembly = Assembly::default();
        for (stream, bytes) in pieces {
            assembly.push(*stream, &Data::new(bytes));
        }
        assembly
            .finish()
            .into_iter()
            .map(|l| (l.stream, l.text))
            .collect()
    }

    #[test]
    fn streams_do_not_tear_each_others_lines() {
        use Stream::{Stderr, Stdout};
        assert_eq!(
            lines(&[
                (Stdout, b"one\ntw"),
                (Stderr, b"oh\nno"),
                (Stdout, b"o\r\n\nend")
            ]),
            [
                (Stdout, "one".to_owned()),
                (Stderr, "oh".into()),
                (Stdout, "two".into()),
                (Stdout, String::new()),
                (Stdout, "end".into()),
                (Stderr, "no".into()),
            ]
        );
    }

    #[test]
    fn nothing_acts_on_a_terminal() {
        let got = lines(&[
            (Stream::Stdout, b"\x1b]0;x\x07\xff\xc3"),
            (Stream::Stdout, b"\xa9\rover\n"),
        ]);
        assert_eq!(got[0].1, "\\x1b]0;x\\x07\\xffé\\x0dover");
    }
}
