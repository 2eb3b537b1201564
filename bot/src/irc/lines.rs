//! Lines out of a stream that may send anything.

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest line, in bytes: 8,191 of tags and 8,192 of the rest, more than any
/// server announces.
pub(super) const MAX_LINE: usize = 16_383;

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    /// The stream failed.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// A line that never ends.
    #[error("the server sent a line of more than {MAX_LINE} bytes; no IRC server does")]
    TooLong,
    /// The stream ended; a line that was begun is not one.
    #[error("the server closed the connection")]
    Closed,
}

/// Reads lines, holding at most one that is not complete and what came with
/// it.
#[derive(Debug)]
pub(super) struct Lines<R> {
    from: R,
    buffer: Vec<u8>,
    /// Everything before this was looked through for an end of line.
    searched: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            buffer: Vec::new(),
            searched: 0,
        }
    }

    /// The next line that is not empty, without its end; what is no UTF-8 in
    /// it is replaced. Safe to drop in the middle and call again.
    pub(super) async fn next(&mut self) -> Result<String, LineError> {
        loop {
            while let Some(at) = self.buffer[self.searched..]
                .iter()
                .position(|b| *b == b'\n')
            {
                let rest = self.buffer.split_off(self.searched + at + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                let line = line.trim_ascii_end_of_line();
                if line.len() > MAX_LINE {
                    return Err(LineError::TooLong);
                }
                if !line.is_empty() {
                    return Ok(String::from_utf8_lossy(line).into_owned());
                }
            }
            self.searched = self.buffer.len();
            // Its end may have come in half.
            if self.buffer.len() > MAX_LINE + 1 {
                return Err(LineError::TooLong);
            }
            self.buffer.reserve(4_096);
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return Err(LineError::Closed);
            }
        }
    }
}

trait EndOfLine {
    fn trim_ascii_end_of_line(&self) -> &[u8];
}

impl EndOfLine for Vec<u8> {
    fn trim_ascii_end_of_line(&self) -> &[u8] {
        let mut line = self.as_slice();
        while let [rest @ .., b'\r' | b'\n'] = line {
            line = rest;
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(bytes: &[u8]) -> (Vec<String>, LineError) {
        let mut lines = Lines::new(bytes);
        let mut found = Vec::new();
        loop {
            match lines.next().await {
                Ok(line) => found.push(line),
                Err(error) => return (found, error),
            }
        }
    }

    #[tokio::test]
    async fn lines_end_however_they_end_and_half_a_line_is_none() {
        let (found, end) = all(b"one\r\ntwo\n\r\n\r\nthr\xffee\r\nfou").await;
        assert_eq!(found, ["one", "two", "thr\u{fffd}ee"]);
        assert!(matches!(end, LineError::Closed));
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_kept() {
        let long = vec![b'a'; 1 << 20];
        let (found, end) = all(&long).await;
        assert!(found.is_empty() && matches!(end, LineError::TooLong));
        let mut whole = vec![b'a'; MAX_LINE];
        whole.extend(b"\r\nb\r\n");
        let (found, _) = all(&whole).await;
        assert_eq!((found[0].len(), found[1].as_str()), (MAX_LINE, "b"));
    }
}
