//! What answers in every state of the broker: it says whether the broker is
//! ready, and passes everything else on to the API of the moment.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::Readiness;
use muster_protocol::problem::Kind;
use muster_protocol::text::printable;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::gate::gate;
use super::{ApiError, ApiJson, RemoteAddr, document, metrics};
use crate::config::Config;
use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::retention::Retention;

/// What listens: the same for the life of the process.
#[derive(Clone)]
pub struct Front(Arc<Inner>);

struct Inner {
    readiness: ArcSwap<Readiness>,
    api: ArcSwapOption<Api>,
    https: bool,
    config: Arc<Config>,
    metrics: Metrics,
    /// Room for requests that are worked on.
    room: Arc<Semaphore>,
}

struct Api {
    router: Router,
    lease: Lease,
    retention: Retention,
}

impl Front {
    /// A front with nothing behind it yet.
    #[must_use]
    pub fn new(https: bool, config: Arc<Config>) -> Self {
        let room = Semaphore::new(config.limits.requests_at_once as usize);
        let starting = Readiness::Starting {
            reason: "the broker has just begun".into(),
        };
        Self(Arc::new(Inner {
            readiness: ArcSwap::from_pointee(starting),
            api: ArcSwapOption::empty(),
            https,
            config,
            metrics: Metrics::of_process(),
            room: Arc::new(room),
        }))
    }

    /// Room for requests that are worked on.
    pub(super) fn room(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.room)
    }

    /// What is counted.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Says where the broker is.
    pub fn say(&self, readiness: Readiness) {
        self.0.readiness.store(Arc::new(readiness));
    }

    /// Puts the API of an active broker behind it.
    pub fn open(&self, router: Router, lease: Lease, retention: Retention) {
        self.0.api.store(Some(Arc::new(Api {
            router,
            lease,
            retention,
        })));
    }

    /// Takes the API away.
    pub fn close(&self, readiness: Readiness) {
        self.say(readiness);
        self.0.api.store(None);
    }

    /// Where the broker is now.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let said = (**self.0.readiness.load()).clone();
        match &*self.0.api.load() {
            Some(api) if said != Readiness::Stopping => match api.lease.epoch() {
                Some(epoch) => Readiness::Active {
                    epoch,
                    warnings: api.retention.warnings(),
                },
                None => Readiness::Suspended {
                    reason: "the lease cannot be renewed: NATS is away or slow".into(),
                },
            },
            _ => said,
        }
    }

    /// As a service.
    pub fn router(&self) -> Router {
        let (router, _) = routes().split_for_parts();
        router
            .fallback(pass_on)
            .method_not_allowed_fallback(super::not_allowed)
            .layer(middleware::from_fn(super::note_route))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(middleware::from_fn_with_state(self.clone(), gate))
            .layer(middleware::from_fn_with_state(self.clone(), finish))
            .with_state(self.clone())
    }
}

pub(super) fn routes() -> OpenApiRouter<Front> {
    OpenApiRouter::with_openapi(document::base())
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(openapi))
        .merge(super::reference::routes())
}

/// Whether the process is alive. It says nothing about NATS.
#[utoipa::path(
    get, path = "/healthz", tag = "health", security(()),
    responses((status = 200, body = String, content_type = "text/plain")),
    extensions(("x-authorisation" = json!("open: it says only that the process is alive")))
)]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether this broker serves: 200 when it is the active one and NATS is
/// there, else 503, with the reason.
#[utoipa::path(
    get, path = "/readyz", tag = "health", security(()),
    responses((status = 200, body = Readiness), (status = 503, body = Readiness)),
    extensions(("x-authorisation" = json!("open: whoever balances loads or waits for the start asks this")))
)]
async fn readyz(State(front): State<Front>) -> Response {
    let readiness = front.readiness();
    let status = match readiness {
        Readiness::Active { .. } => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, ApiJson(readiness)).into_response()
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "health", security(()),
    responses((status = 200, content_type = "application/json")),
    extensions(("x-authorisation" = json!("open: it is the same for everybody")))
)]
async fn openapi() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(|| document().to_json().unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

async fn pass_on(State(front): State<Front>, request: Request) -> Response {
    if let Some(api) = &*front.0.api.load()
        && (api.lease.epoch().is_some() || is_about_this_broker(request.uri().path()))
    {
        let router = api.router.clone();
        return router
            .oneshot(request)
            .await
            .unwrap_or_else(|never| match never {});
    }
    if request.uri().path() == "/metrics" && request.method().is_safe() {
        let (parts, _) = request.into_parts();
        if metrics::is_open(front.0.config.metrics, &parts) {
            return metrics::of_this_process(front.metrics())
                .await
                .into_response();
        }
    }
    not_serving(front.readiness()).into_response()
}

/// What a broker answers that cannot say whether another one has taken over:
/// only what is about itself. All else could be out of date.
fn is_about_this_broker(path: &str) -> bool {
    matches!(path, "/v1/status" | "/v1/whoami" | "/metrics")
}

/// The answer of a broker that is not the active one: nothing was done.
fn not_serving(readiness: Readiness) -> ApiError {
    let (title, detail, active) = match readiness {
        Readiness::Starting { reason } => ("this broker is not ready yet", Some(reason), None),
        Readiness::Standby { reason, active } => ("this broker is a standby", Some(reason), active),
        Readiness::Suspended { reason } => {
            ("this broker is not the active one now", Some(reason), None)
        }
        Readiness::Active { .. } => ("this broker is about to be ready", None, None),
        Readiness::Stopping => ("this broker is stopping", None, None),
    };
    let hint = match &active {
        Some(url) => format!("ask {}", printable(url, 200)),
        None => "try again in a few seconds, or ask another broker".into(),
    };
    let mut error = ApiError::new(Kind::Unavailable, title).hint(hint);
    error.0.detail = detail;
    error.0.not_active = true;
    error.0.active = active;
    error
}

fn panicked(panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    ApiError::internal(&format!("a handler panicked: {text}")).into_response()
}

/// Logs the request, and adds what every answer has.
async fn finish(State(front): State<Front>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let path = printable(request.uri().path(), 200);
    let address = request
        .extensions()
        .get::<RemoteAddr>()
        .map(|a| a.0.to_string());
    let quiet = matches!(request.uri().path(), "/healthz" | "/readyz");
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in SECURITY {
        // A page says itself what belongs to it.
        headers.entry(name).or_insert(value);
    }
    if front.0.https {
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000"),
        );
    }
    let took = begun.elapsed();
    let (status, ms) = (response.status().as_u16(), took.as_millis());
    let route = response.extensions().get::<MatchedPath>();
    let route = route.map_or("none", MatchedPath::as_str);
    front
        .metrics()
        .answered((&method).into(), route, status, took);
    if quiet {
        tracing::trace!(%method, path, status, ms, address, "request");
    } else {
        tracing::debug!(%method, path, status, ms, address, "request");
    }
    response
}

const SECURITY: [(HeaderName, HeaderValue); 5] = [
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];
