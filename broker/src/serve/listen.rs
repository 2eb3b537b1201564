//! Connections of people and agents: HTTP on loopback, HTTPS beyond, and
//! wherever the operator has a certificate.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, HttpBody};
use axum::http::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use muster_protocol::problem::{Kind, Problem};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::io::Watched;
use crate::http::RemoteAddr;
use crate::metrics::{Metrics, Why};

/// Files that the broker needs besides those connections: NATS, its own
/// disk, and some to spare.
const OTHER_FILES: u64 = 512;
/// Connections at a time that are told that there is no room.
const TURNED_AWAY: usize = 256;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of a request may take, also of the next one on a
/// connection that is kept open.
const HEAD: Duration = Duration::from_secs(30);
/// Largest head of a request, in bytes.
const LARGEST_HEAD: usize = 64 * 1024;
/// Most header lines of a request.
const MOST_HEADERS: usize = 100;
/// How long requests may take to finish when the broker ends.
const FINISH: Duration = Duration::from_secs(5);
/// How long the rest of a request that was answered early is read and thrown
/// away: whoever is still sending would not see the answer otherwise.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it.
const LINGER_BYTES: usize = 128 << 20;

/// How many connections there can be: as many as wanted, or fewer where the
/// system gives this process fewer files. Asks the system for as many as it
/// gives.
pub(super) fn room_for(wanted: u32) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let files = match setrlimit(Resource::Nofile, all) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let files = files.unwrap_or(u64::MAX);
    let possible = files.saturating_sub(OTHER_FILES).max(64);
    if possible < u64::from(wanted) {
        tracing::warn!(
            wanted,
            possible,
            "the system gives this process too few files for `limits.connections`; raise LimitNOFILE of its unit"
        );
    }
    usize::try_from(possible.min(u64::from(wanted))).unwrap_or(usize::MAX)
}

/// Serves until `cancel`; then no new requests, and those under way have a
/// few seconds.
pub(super) async fn listen(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    router: Router,
    connections: usize,
    cancel: CancellationToken,
) {
    let tls = tls.map(TlsAcceptor::from);
    let room = Arc::new(Semaphore::new(connections));
    let away = Arc::new(Semaphore::new(TURNED_AWAY));
    let metrics = Metrics::of_process();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = accept(&listener, &away) => accepted,
        };
        let Some((stream, address, refusing)) = accepted else {
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            metrics.refused(Why::Connections);
            connections.spawn(turn_away(stream, tls.clone(), refusing));
            continue;
        };
        drop(refusing);
        let (tls, router, cancel) = (tls.clone(), router.clone(), cancel.clone());
        let counted = metrics.begin_connection();
        connections.spawn(async move {
            let _held = (permit, counted);
            let _ = stream.set_nodelay(true);
            match tls {
                None => Box::pin(serve_one(stream, address, router, cancel)).await,
                Some(tls) => match timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => Box::pin(serve_one(stream, address, router, cancel)).await,
                    Ok(Err(error)) => tracing::debug!(%address, %error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!(%address, "a TLS handshake took too long"),
                },
            }
        });
    }
    drop(listener);
    connections.close();
    if timeout(FINISH + Duration::from_secs(1), connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            open = connections.len(),
            "connections were cut off at the end"
        );
    }
}

type Accepted = (TcpStream, SocketAddr, OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, away: &Arc<Semaphore>) -> Option<Accepted> {
    // Whoever cannot even be turned away waits in the kernel's queue.
    let permit = Arc::clone(away).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address, permit)),
        Err(error) => {
            // Out of descriptors, most likely: a moment later there may be
            // some.
            tracing::warn!(%error, "a connection could not be accepted");
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Says that there is no room.
async fn turn_away(stream: TcpStream, tls: Option<TlsAcceptor>, _held: OwnedSemaphorePermit) {
    let mut problem = Problem::new(Kind::Unavailable, "too many connections to this broker");
    problem.detail = Some("it takes as many as `limits.connections` lets it".into());
    problem.hint = Some("nothing was done; try again in a few seconds".into());
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let text = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nretry-after: 5\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let saying = async {
        match tls {
            None => Box::pin(say(stream, &text)).await,
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    Box::pin(say(stream, &text)).await;
                }
            }
        }
    };
    // Short: whoever is slow now takes the room of others.
    let _ = timeout(LINGER, Box::pin(saying)).await;
}

async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, text: &str) {
    if stream.write_all(text.as_bytes()).await.is_ok() {
        linger(stream).await;
    }
}

async fn serve_one(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: SocketAddr,
    router: Router,
    cancel: CancellationToken,
) {
    let answering = Arc::new(AtomicBool::new(false));
    let stream = Watched::new(stream, Arc::clone(&answering));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let done = Answering::begin(&answering);
        request.extensions_mut().insert(RemoteAddr(address));
        let answer = router.clone().oneshot(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| Answer { body, _done: done }))
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(LARGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .max_header_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => ended,
        () = cancel.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            match timeout(FINISH, poll_fn(|cx| connection.poll_without_shutdown(cx))).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "a connection ended badly");
    }
    let _ = timeout(LINGER, linger(connection.into_parts().io.into_inner())).await;
}

/// While it lives, what is written is an answer of ours: hyper refuses only
/// heads, and never in the middle of an answer.
struct Answering(Arc<AtomicBool>);

impl Answering {
    fn begin(answering: &Arc<AtomicBool>) -> Self {
        answering.store(true, Ordering::Relaxed);
        Self(Arc::clone(answering))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The body of an answer.
struct Answer {
    body: axum::body::Body,
    _done: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Ends our side, and reads what the other one still sends.
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut rest = stream.take(LINGER_BYTES as u64);
    let mut piece = [0; 16 * 1024];
    while matches!(rest.read(&mut piece).await, Ok(read) if read > 0) {}
}
