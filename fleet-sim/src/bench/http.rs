//! One connection to a broker, over which one request follows the other: what
//! is measured is the broker, not a client.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use muster_protocol::text::printable;
use serde_json::Value;

use super::BenchError;

/// Longest time for one answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Largest answer, in bytes.
const LARGEST: usize = 64 << 20;

/// The connection.
pub(super) struct Api {
    stream: TcpStream,
    token: String,
}

/// An answer, whole.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Milliseconds from before the request until all of it was there.
    pub(super) ms: f64,
}

fn failed(why: impl std::fmt::Display) -> BenchError {
    BenchError::Part {
        name: "the API",
        why: why.to_string(),
    }
}

impl Api {
    pub(super) fn connect(address: &str, token: &str) -> Result<Self, BenchError> {
        let stream = TcpStream::connect(address).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWER)).map_err(failed)?;
        Ok(Self {
            stream,
            token: token.to_owned(),
        })
    }

    /// Asks, whatever the answer says.
    pub(super) fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, BenchError> {
        let request = request(method, path, &self.token, body);
        let begun = Instant::now();
        self.stream.write_all(&request).map_err(failed)?;
        let mut got = Vec::with_capacity(64 * 1024);
        let mut piece = vec![0; 256 * 1024];
        let head = loop {
            if let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.more(&mut got, &mut piece)?;
        };
        let text = String::from_utf8_lossy(&got[..head]).into_owned();
        let (status, length) = of_head(&text)
            .ok_or_else(|| failed(format!("no answer: {}", printable(&text, 200))))?;
        while got.len() < head + length {
            self.more(&mut got, &mut piece)?;
        }
        Ok(Answer {
            status,
            body: got.split_off(head),
            ms: begun.elapsed().as_secs_f64() * 1_000.0,
        })
    }

    /// Asks for what must succeed.
    pub(super) fn json(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(Value, f64), BenchError> {
        let answer = self.ask(method, path, body)?;
        let said = String::from_utf8_lossy(&answer.body);
        if !(200..300).contains(&answer.status) {
            let said = printable(&said, 300);
            return Err(failed(format!("{method} {path}: {} {said}", answer.status)));
        }
        let value = serde_json::from_str(&said).map_err(failed)?;
        Ok((value, answer.ms))
    }

    fn more(&mut self, got: &mut Vec<u8>, piece: &mut [u8]) -> Result<(), BenchError> {
        let read = self.stream.read(piece).map_err(failed)?;
        if read == 0 || got.len() > LARGEST {
            return Err(failed("an answer did not come whole"));
        }
        got.extend_from_slice(&piece[..read]);
        Ok(())
    }
}

/// A request as it is sent.
pub(super) fn request(method: &str, path: &str, token: &str, body: Option<&Value>) -> Vec<u8> {
    let body = body.map(Value::to_string).unwrap_or_default();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Status and length of the body.
fn of_head(head: &str) -> Option<(u16, usize)> {
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse().ok())?
    });
    Some((status, length.unwrap_or(0)))
}

/// Text as part of a query.
pub(super) fn quoted(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_queries() {
        let head = "HTTP/1.1 200 OK\r\ndate: x\r\nContent-Length: 12\r\n\r\n";
        assert_eq!(of_head(head), Some((200, 12)));
        assert_eq!(of_head("HTTP/1.1 204 No Content\r\n\r\n"), Some((204, 0)));
        assert_eq!(of_head("nonsense"), None);
        assert_eq!(quoted("rack=r07 and *"), "rack%3Dr07%20and%20%2A");
    }
}
