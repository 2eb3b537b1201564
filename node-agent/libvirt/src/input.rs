//! Lines on the standard input. Whoever writes them is the agent; should it
//! be anybody else, or torn, nothing happens because of it.

use std::io::{self, BufRead};

use muster_libvirt::message::Asked;
use serde::Deserialize;

/// The longest line that is read, in bytes.
pub(crate) const MAX_LINE: usize = 1 << 20;

/// What came in.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// One of more than [`MAX_LINE`] bytes, passed over.
    TooLong,
    /// Nothing more comes.
    End,
}

/// The next line.
pub(crate) fn next(from: &mut impl BufRead) -> io::Result<Line> {
    let (mut line, mut too_long) = (Vec::new(), false);
    loop {
        let some = match from.fill_buf() {
            Ok(some) => some,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let (end, used) = match some.iter().position(|byte| *byte == b'\n') {
            Some(at) => (Some(at), at + 1),
            None => (None, some.len()),
        };
        let nothing = some.is_empty();
        let part = &some[..end.unwrap_or(some.len())];
        too_long |= line.len() + part.len() > MAX_LINE;
        if too_long {
            line = Vec::new();
        } else {
            line.extend_from_slice(part);
        }
        from.consume(used);
        if end.is_some() || (nothing && (too_long || !line.is_empty())) {
            return Ok(if too_long {
                Line::TooLong
            } else {
                Line::Whole(line)
            });
        }
        if nothing {
            return Ok(Line::End);
        }
    }
}

/// Why a line is not a call.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a call: {why}")]
pub(crate) struct NotACall {
    /// The number of the call, where it can be read: it is answered.
    pub(crate) id: Option<u64>,
    why: String,
}

/// What a line asks.
pub(crate) fn parse(line: &[u8]) -> Result<Asked, NotACall> {
    #[derive(Deserialize)]
    struct Numbered {
        id: u64,
    }
    serde_json::from_slice(line).map_err(|error| NotACall {
        id: serde_json::from_slice::<Numbered>(line)
            .ok()
            .map(|numbered| numbered.id),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use muster_libvirt::message::Call;

    use super::*;

    fn lines(bytes: &[u8]) -> Vec<Line> {
        let mut from = BufReader::with_capacity(7, bytes);
        let mut all = Vec::new();
        loop {
            match next(&mut from).expect("memory") {
                Line::End => return all,
                line => all.push(line),
            }
        }
    }

    #[test]
    fn lines_end_where_they_end() {
        let whole = |text: &str| Line::Whole(text.into());
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"\n"), [whole("")]);
        assert_eq!(
            lines(b"one\n\ntwo, longer\nrest"),
            [whole("one"), whole(""), whole("two, longer"), whole("rest"),]
        );
    }

    #[test]
    fn a_long_line_is_passed_over_and_the_next_is_read() {
        let mut bytes = vec![b'x'; MAX_LINE];
        bytes.push(b'\n');
        assert_eq!(lines(&bytes).len(), 1);
        assert_ne!(lines(&bytes), [Line::TooLong]);
        bytes.insert(0, b'x');
        bytes.extend_from_slice(b"next\n");
        assert_eq!(lines(&bytes), [Line::TooLong, Line::Whole("next".into())]);
        assert_eq!(lines(&vec![b'x'; MAX_LINE + 1]), [Line::TooLong]);
    }

    #[test]
    fn what_is_not_a_call_is_answered_where_it_has_a_number() {
        let asked = parse(br#"{"id": 7, "call": {"call": "host"}}"#).expect("a call");
        assert_eq!((asked.id, asked.call), (7, Call::Host));
        for (line, id) in [
            (r#"{"id": 8, "call": {"call": "format_disk"}}"#, Some(8)),
            (r#"{"id": 8, "call": {"call": "start"}}"#, Some(8)),
            (
                r#"{"id": 8, "call": {"call": "start", "uuid": "../x"}}"#,
                Some(8),
            ),
            (r#"{"id": 8, "call": {"call": "host"}, "more": 1}"#, Some(8)),
            (r#"{"id": 8}"#, Some(8)),
            (r#"{"id": -8, "call": {"call": "host"}}"#, None),
            (r#"{"id": 8, "call": "#, None),
            ("", None),
            ("[]", None),
            ("\u{0}", None),
        ] {
            let error = parse(line.as_bytes()).expect_err(line);
            assert_eq!(error.id, id, "{line}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(parse(deep.as_bytes()).expect_err("deep").id, None);
    }
}
