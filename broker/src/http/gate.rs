//! What every request is held against before anything looks at what it asks:
//! its path, where it comes from, how much is under way, and how slowly its
//! body comes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use muster_protocol::problem::Kind;
use muster_protocol::units::Span;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::{ApiError, Front};
use crate::metrics::Why;

/// The largest body of any route, in bytes; each route has a limit of its own
/// below it.
const LARGEST_BODY: u64 = 16 << 20;
/// How long nothing of a body may come.
const BODY_SILENCE: Duration = Duration::from_secs(15);
/// How long a body may take.
const BODY: Duration = Duration::from_secs(60);
/// How long a handler may take until its answer begins; a stream may go on
/// for ever after that. Above the longest ping.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);
/// Longest time that a request for a run may wait for the run's end.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// A place among the requests that are worked on. Who waits for something
/// gives it back.
#[derive(Clone, Debug)]
pub(super) struct Slot(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Slot {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Mutex::new(Some(permit))))
    }

    /// Somebody else may have it.
    pub(super) fn give_back(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Lets a request in, or answers it.
pub(super) async fn gate(State(front): State<Front>, mut request: Request, next: Next) -> Response {
    if let Err(error) = admissible(&request) {
        return error.into_response();
    }
    // Who asks whether all is well is answered above all when it is not.
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        return next.run(request).await;
    }
    let Ok(permit) = front.room().try_acquire_owned() else {
        front.metrics().refused(Why::Overload);
        return ApiError::new(Kind::Unavailable, "too much is asked of this broker now")
            .detail("it works on as many requests as `limits.requests_at_once` lets it")
            .hint("nothing was done; try again in a few seconds")
            .into_response();
    };
    let slot = Slot::new(permit);
    request.extensions_mut().insert(slot.clone());
    let _counted = front.metrics().begin_request();
    let within = ANSWER_WITHIN + wanted_wait(&request);
    let slow = Arc::new(AtomicBool::new(false));
    let request = timed(request, &slow);
    let answered = tokio::time::timeout(within, next.run(request)).await;
    slot.give_back();
    if slow.load(Ordering::Relaxed) {
        return too_slow().into_response();
    }
    answered.unwrap_or_else(|_| {
        ApiError::new(Kind::Unavailable, "the request took too long")
            .hint("look whether what you asked for has happened before you ask again")
            .into_response()
    })
}

fn too_slow() -> ApiError {
    ApiError::new(Kind::InvalidRequest, "the body came too slowly")
        .detail(format!(
            "a body may take {} s, and pause for {} s",
            BODY.as_secs(),
            BODY_SILENCE.as_secs()
        ))
        .hint("nothing was done; send it again")
        .status(408)
}

fn admissible(request: &Request) -> Result<(), ApiError> {
    if !is_plain(request.uri().path()) {
        return Err(ApiError::new(
            Kind::InvalidRequest,
            "this path does not say plainly where it leads",
        )
        .hint(
            "no `//`, `.` or `..` as a part, and no `/`, `\\`, `.` or control character as `%XX`",
        ));
    }
    if !request.method().is_safe() && request.method() != Method::OPTIONS {
        own_origin(request.headers())?;
    }
    let length = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > LARGEST_BODY) {
        return Err(
            ApiError::new(Kind::TooLarge, "the body is larger than allowed")
                .detail(format!("no route takes more than {LARGEST_BODY} bytes")),
        );
    }
    Ok(())
}

/// Whether nobody between here and the client can have read the path
/// otherwise.
fn is_plain(path: &str) -> bool {
    if !path.starts_with('/') || path.contains("//") || path.contains('\\') {
        return false;
    }
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        return false;
    }
    path.split('%').skip(1).all(|rest| {
        let Some(byte) = rest
            .get(..2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
        else {
            return false;
        };
        !byte.is_ascii_control() && !matches!(byte, b'/' | b'\\' | b'.' | b'%')
    })
}

/// A browser says which page wants to act. Only the broker's own may: there
/// is none that acts, and a token in a page from elsewhere is a stolen one.
fn own_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    let crosses = matches!(site, Some(b"cross-site" | b"same-site"));
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let own = match (origins.next(), origins.next()) {
        (None, _) => true,
        (Some(_), Some(_)) => false,
        (Some(origin), None) => {
            let host = headers
                .get(header::HOST)
                .and_then(|host| host.to_str().ok());
            let origin = origin.to_str().ok();
            host.zip(origin)
                .is_some_and(|(host, origin)| is_same(origin, host))
        }
    };
    if own && !crosses {
        return Ok(());
    }
    Err(
        ApiError::new(Kind::Denied, "a page from elsewhere may do nothing here").hint(
            "requests that act come from programs: without `Origin`, or with this broker's own",
        ),
    )
}

fn is_same(origin: &str, host: &str) -> bool {
    let (rest, port) = match origin.split_once("://") {
        Some(("http", rest)) => (rest, ":80"),
        Some(("https", rest)) => (rest, ":443"),
        _ => return false,
    };
    let plain = |text: &str| text.strip_suffix(port).unwrap_or(text).to_ascii_lowercase();
    !rest.is_empty() && plain(rest) == plain(host)
}

/// How long the request wants to wait for the end of what it asks for.
fn wanted_wait(request: &Request) -> Duration {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("wait="))
        .and_then(|text| text.parse::<Span>().ok())
        .map_or(Duration::ZERO, |wait| wait.get().min(LONGEST_WAIT))
}

/// The request, with a body that ends badly when it comes too slowly.
fn timed(request: Request, slow: &Arc<AtomicBool>) -> Request {
    let headers = request.headers();
    if !headers.contains_key(header::TRANSFER_ENCODING)
        && headers
            .get(header::CONTENT_LENGTH)
            .is_none_or(|length| length == "0")
    {
        return request;
    }
    let slow = Arc::clone(slow);
    request.map(|body| {
        let end = Instant::now() + BODY;
        let pieces = unfold(Some(body.into_data_stream()), move |pieces| {
            let slow = Arc::clone(&slow);
            async move {
                let mut pieces = pieces?;
                let by = end.min(Instant::now() + BODY_SILENCE);
                match timeout_at(by, pieces.next()).await {
                    Ok(piece) => {
                        let piece: Result<Bytes, axum::Error> = piece?;
                        let rest = piece.is_ok().then_some(pieces);
                        Some((piece, rest))
                    }
                    Err(late) => {
                        slow.store(true, Ordering::Relaxed);
                        Some((Err(axum::Error::new(late)), None))
                    }
                }
            }
        });
        Body::from_stream(pieces)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_one_place() {
        for path in [
            "/",
            "/v1/nodes/web-01",
            "/v1/nodes/a.b",
            "/v1/nodes/a%20b",
            "/v1/x/%ff",
            "/a..b",
        ] {
            assert!(is_plain(path), "{path}");
        }
        for path in [
            "",
            "*",
            "//v1/nodes",
            "/v1//nodes",
            "/v1/../metrics",
            "/v1/.",
            "/v1/nodes/..",
            "/v1/nodes/%2e%2e",
            "/v1/nodes/a%2Fb",
            "/v1/nodes/a%5cb",
            "/v1/nodes/%00",
            "/v1/nodes/%1b[31m",
            "/v1/nodes/%252f",
            "/v1/nodes/%",
            "/v1/nodes/%2",
            "/v1/nodes/%zz",
            "/v1\\nodes",
            "/v1/%+1",
        ] {
            assert!(!is_plain(path), "{path}");
        }
    }

    #[test]
    fn only_its_own_pages_may_act() {
        let asked = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            own_origin(&headers).is_ok()
        };
        assert!(asked(&[("host", "m.example:7878")]));
        assert!(asked(&[
            ("host", "m.example:7878"),
            ("origin", "https://m.example:7878")
        ]));
        assert!(asked(&[
            ("host", "M.example"),
            ("origin", "https://m.example:443")
        ]));
        assert!(asked(&[
            ("host", "m.example:80"),
            ("origin", "http://m.example")
        ]));
        for origin in [
            "null",
            "https://evil.example",
            "https://m.example:1",
            "file://",
            "",
            "m.example",
            "https://",
        ] {
            assert!(
                !asked(&[("host", "m.example"), ("origin", origin)]),
                "{origin}"
            );
        }
        assert!(!asked(&[("origin", "https://m.example")]));
        let twice = [
            ("host", "m"),
            ("origin", "http://m"),
            ("origin", "http://m"),
        ];
        assert!(!asked(&twice));
        assert!(!asked(&[("host", "m"), ("sec-fetch-site", "cross-site")]));
        assert!(asked(&[("host", "m"), ("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn a_wait_is_bounded() {
        let wait =
            |uri: &str| wanted_wait(&Request::builder().uri(uri).body(Body::empty()).unwrap());
        assert_eq!(wait("/v1/runs"), Duration::ZERO);
        assert_eq!(wait("/v1/runs?a=1&wait=30s"), Duration::from_secs(30));
        assert_eq!(wait("/v1/runs?wait=9h"), LONGEST_WAIT);
        assert_eq!(wait("/v1/runs?wait=x"), Duration::ZERO);
    }
}
