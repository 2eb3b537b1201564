//! Secrets taken out of what programs write, as it streams by.

use bytes::{Bytes, BytesMut};
use muster_protocol::run::Stream;
use muster_scenarios::secret::Secrets;

/// A line is held back until it ends, up to so many bytes.
const MAX_LINE: usize = 64 * 1024;
/// Of a longer one, so much stays held: a secret may begin there.
const OVERLAP: usize = 16 * 1024;

/// Holds lines back until they are whole, so that a secret is seen also when
/// it comes in two pieces.
pub(super) struct Masks {
    secrets: Secrets,
    out: BytesMut,
    err: BytesMut,
}

impl Masks {
    pub(super) fn new(secrets: Secrets) -> Self {
        Self {
            secrets,
            out: BytesMut::new(),
            err: BytesMut::new(),
        }
    }

    /// What can go on, now that this came.
    pub(super) fn pass(&mut self, stream: Stream, data: &[u8]) -> Bytes {
        let held = match stream {
            Stream::Stdout => &mut self.out,
            Stream::Stderr => &mut self.err,
            // Masked where they are made, word by word.
            Stream::Note => return Bytes::copy_from_slice(data),
        };
        held.extend_from_slice(data);
        let whole = held
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map(|at| at + 1);
        let size = match whole {
            Some(size) => size,
            None if held.len() > MAX_LINE => {
                // What is in the part that stays is masked as a whole later,
                // and what begins before it is masked before the cut.
                let masked = masked(&self.secrets, held);
                *held = BytesMut::from(&masked[..]);
                held.len().saturating_sub(OVERLAP)
            }
            None => return Bytes::new(),
        };
        let part = held.split_to(size);
        masked(&self.secrets, &part)
    }

    /// All that is held back: nothing more comes that it could go with.
    pub(super) fn rest(&mut self) -> Vec<(Stream, Bytes)> {
        let both = [
            (Stream::Stdout, self.out.split()),
            (Stream::Stderr, self.err.split()),
        ];
        both.into_iter()
            .filter(|(_, held)| !held.is_empty())
            .map(|(stream, held)| (stream, masked(&self.secrets, &held)))
            .collect()
    }
}

/// Bytes that are no text stay what they are unless there is a secret among
/// them.
fn masked(secrets: &Secrets, data: &[u8]) -> Bytes {
    let text = String::from_utf8_lossy(data);
    let masked = secrets.mask(&text);
    if masked == text {
        return Bytes::copy_from_slice(data);
    }
    masked.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, Value};

    fn masks() -> Masks {
        let values = Map::from_iter([("token".to_owned(), Value::from("geheim-42\nzweite"))]);
        Masks::new(Secrets::new(values))
    }

    #[test]
    fn a_secret_in_two_pieces_is_seen() {
        let mut masks = masks();
        assert_eq!(masks.pass(Stream::Stdout, b"a line\nthe geh"), "a line\n");
        assert_eq!(masks.pass(Stream::Stderr, b"zwei"), "");
        assert_eq!(
            masks.pass(Stream::Stdout, b"eim-42 is\nrest"),
            "the [redacted] is\n"
        );
        assert_eq!(masks.pass(Stream::Stderr, b"te"), "");
        let rest = masks.rest();
        assert_eq!(
            rest,
            [
                (Stream::Stdout, Bytes::from("rest")),
                (Stream::Stderr, Bytes::from("[redacted]"))
            ]
        );
        assert!(masks.rest().is_empty());
        // Bytes that are no text.
        assert_eq!(masks.pass(Stream::Stdout, b"\xff\xfe\n"), b"\xff\xfe\n"[..]);
    }

    #[test]
    fn a_line_without_an_end_is_not_held_for_ever_and_hides_nothing() {
        let mut masks = masks();
        let mut seen = Vec::new();
        let line = b"geheim-42,".repeat(50_000);
        for piece in line.chunks(1_013) {
            seen.extend_from_slice(&masks.pass(Stream::Stdout, piece));
            assert!(masks.out.len() <= MAX_LINE + 1_013);
        }
        for (_, rest) in masks.rest() {
            seen.extend_from_slice(&rest);
        }
        let text = String::from_utf8(seen).expect("text");
        assert_eq!(text, "[redacted],".repeat(50_000));
    }
}
