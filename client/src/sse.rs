//! Server-sent events, read from bytes with a bound on the size of one.

/// Most bytes of one event. The largest that a broker sends is `run_finished`
/// with the outcome of every node of a large fleet.
const MAX_EVENT: usize = 16 << 20;

/// One event as it came.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Event {
    /// The `id` line of this very event; absence is not the last one's id.
    pub(crate) id: Option<String>,
    /// The `event` line.
    pub(crate) name: Option<String>,
    /// The `data` lines.
    pub(crate) data: String,
}

/// Larger than any event should be, or not text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum SseError {
    #[error("an event is larger than 16 MiB")]
    TooLarge,
    #[error("an event is not UTF-8")]
    NotText,
}

/// Takes bytes in pieces of any size, gives whole events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    after_cr: bool,
}

impl Parser {
    /// Takes a piece; the events that it completes are appended to `out`.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<Event>) -> Result<(), SseError> {
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            if self.after_cr {
                self.after_cr = false;
                if first == b'\n' {
                    rest = &rest[1..];
                    continue;
                }
            }
            let Some(end) = rest.iter().position(|b| matches!(b, b'\n' | b'\r')) else {
                self.line.extend_from_slice(rest);
                return self.bounded();
            };
            self.line.extend_from_slice(&rest[..end]);
            self.bounded()?;
            self.after_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.line(&line, out)?;
        }
        Ok(())
    }

    fn bounded(&self) -> Result<(), SseError> {
        if self.line.len() + self.event.data.len() > MAX_EVENT {
            Err(SseError::TooLarge)
        } else {
            Ok(())
        }
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<Event>) -> Result<(), SseError> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                out.push(event);
            }
            return Ok(());
        }
        let line = std::str::from_utf8(line).map_err(|_| SseError::NotText)?;
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            "event" => self.event.name = Some(value.to_owned()),
            // Comments keep the connection awake.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut out = Vec::new();
        for piece in pieces {
            parser.push(piece, &mut out).expect("fits");
        }
        out
    }

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let text = b":hello\nid: 7\nevent: output\ndata: {\"a\":\r\ndata:1}\r\n\r\n\nid\ndata: x\n\ndata: y\r\rdata: cut";
        let whole = parse(&[text]);
        assert_eq!(
            whole,
            [
                Event {
                    id: Some("7".into()),
                    name: Some("output".into()),
                    data: "{\"a\":\n1}".into()
                },
                Event {
                    id: Some(String::new()),
                    data: "x".into(),
                    ..Event::default()
                },
                Event {
                    data: "y".into(),
                    ..Event::default()
                },
            ]
        );
        for at in 0..text.len() {
            assert_eq!(parse(&[&text[..at], &text[at..]]), whole, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(parse(&bytes), whole);
    }

    #[test]
    fn an_endless_line_ends() {
        let mut parser = Parser::default();
        let piece = vec![b'a'; 1 << 20];
        let mut out = Vec::new();
        let end = (0..64).find_map(|_| parser.push(&piece, &mut out).err());
        assert_eq!(end, Some(SseError::TooLarge));
    }
}
