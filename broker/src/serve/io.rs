//! The byte stream below a connection: whoever takes nothing is cut off, and
//! what hyper answers by itself is a problem document, too.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use muster_protocol::problem::{Kind, Problem};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Whoever takes not a byte for so long is cut off.
const STALLED: Duration = Duration::from_secs(60);

/// Watches over what is written.
pub(super) struct Watched<T> {
    inner: T,
    stalled: Option<Pin<Box<Sleep>>>,
    /// A request has been read whole and is worked on: what is written is an
    /// answer of ours.
    answering: Arc<AtomicBool>,
    /// What is written in place of an answer of hyper's.
    instead: Vec<u8>,
}

impl<T> Watched<T> {
    pub(super) fn new(inner: T, answering: Arc<AtomicBool>) -> Self {
        Self {
            inner,
            stalled: None,
            answering,
            instead: Vec::new(),
        }
    }

    /// Notes whether a write made progress.
    fn progress<R>(&mut self, cx: &mut Context<'_>, wrote: Poll<Result<R>>) -> Poll<Result<R>> {
        if wrote.is_ready() {
            self.stalled = None;
            return wrote;
        }
        let end = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALLED)));
        ready!(end.as_mut().poll(cx));
        end.as_mut().reset(Instant::now() + STALLED);
        Poll::Ready(Err(Error::new(
            ErrorKind::TimedOut,
            "the other end takes nothing",
        )))
    }
}

/// What hyper answers when it cannot read a request: a status and nothing
/// else. `None` for everything else.
fn refusal(bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.len() > 512 {
        return None;
    }
    let head = std::str::from_utf8(bytes).ok()?;
    let status: u16 = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    if !head.ends_with("\r\n\r\n") || !head.to_ascii_lowercase().contains("content-length: 0\r\n") {
        return None;
    }
    let (title, phrase) = match status {
        400 => ("this is no HTTP request", "Bad Request"),
        414 => ("the path of the request is too long", "URI Too Long"),
        431 => (
            "the head of the request is too large",
            "Request Header Fields Too Large",
        ),
        _ => return None,
    };
    let mut problem = Problem::new(Kind::InvalidRequest, title);
    problem.status = status;
    let body = serde_json::to_string(&problem).ok()?;
    let text = format!(
        "HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\ncache-control: no-store\r\n\r\n{body}",
        body.len()
    );
    Some(text.into_bytes())
}

impl<T: AsyncWrite + Unpin> Watched<T> {
    /// Writes what is written in place of something else.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while !self.instead.is_empty() {
            let wrote = Pin::new(&mut self.inner).poll_write(cx, &self.instead);
            let wrote = ready!(self.progress(cx, wrote))?;
            if wrote == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            self.instead.drain(..wrote);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<Result<usize>> {
        ready!(self.poll_instead(cx))?;
        if !self.answering.load(Ordering::Relaxed)
            && let Some(instead) = refusal(buf)
        {
            self.instead = instead;
            // Written with the flush at the latest.
            return Poll::Ready(Ok(buf.len()));
        }
        let wrote = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.progress(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        if !self.answering.load(Ordering::Relaxed) {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[], |buf| &**buf));
        }
        ready!(self.poll_instead(cx))?;
        let wrote = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.progress(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_instead(cx))?;
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.progress(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_instead(cx))?;
        let ended = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.progress(cx, ended)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_nothing_is_cut_off() {
        let (ours, theirs) = tokio::io::duplex(16);
        let mut watched = Watched::new(ours, Arc::new(AtomicBool::new(true)));
        let error = watched.write_all(&[b'x'; 100]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_slow_but_takes_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut watched = Watched::new(ours, Arc::new(AtomicBool::new(true)));
        let writing = tokio::spawn(async move { watched.write_all(&[b'x'; 100]).await });
        let mut got = 0;
        while got < 100 {
            sleep(STALLED / 2).await;
            let mut some = [0; 10];
            got += theirs.read(&mut some).await.unwrap();
        }
        writing.await.unwrap().unwrap();
    }

    #[test]
    fn only_what_hyper_says_alone_is_replaced() {
        let alone = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let text = String::from_utf8(refusal(alone).unwrap()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("application/problem+json"), "{head}");
        let problem: Problem = serde_json::from_str(body).unwrap();
        assert_eq!((problem.kind, problem.status), (Kind::InvalidRequest, 431));
        for other in [
            &b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            b"",
            b"HTTP/1.1 \xff",
        ] {
            assert!(refusal(other).is_none());
        }
    }
}
