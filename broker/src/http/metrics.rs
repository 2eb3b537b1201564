//! `GET /metrics`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use futures_util::TryStreamExt as _;
use muster_protocol::api::Presence;
use muster_protocol::problem::Problem;
use tokio::time::timeout;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::nodes::count;
use super::{ApiError, AppState, RemoteAddr};
use crate::authz::{Action, Caller};
use crate::config::MetricsDoor;
use crate::link::Link;
use crate::metrics::{Metrics, OPENMETRICS, Standing, Stored};

/// How long NATS may take to say what it keeps; else that is left out.
const STORED_WITHIN: Duration = Duration::from_secs(2);

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// Whether this request may read the metrics without a token.
pub(super) fn is_open(door: MetricsDoor, parts: &Parts) -> bool {
    match door {
        MetricsDoor::Token => false,
        MetricsDoor::Open => true,
        MetricsDoor::Loopback => {
            // What a proxy on this machine passes on comes from elsewhere.
            let passed_on = ["forwarded", "x-forwarded-for"]
                .iter()
                .any(|name| parts.headers.contains_key(*name));
            let here = parts
                .extensions
                .get::<RemoteAddr>()
                .is_some_and(|remote| remote.0.ip().to_canonical().is_loopback());
            here && !passed_on
        }
    }
}

/// Who reads the metrics: nobody in particular, where the settings say so.
struct Reader(Option<Caller>);

impl FromRequestParts<AppState> for Reader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        if is_open(state.config.metrics, parts) {
            return Ok(Self(None));
        }
        Caller::from_request_parts(parts, state)
            .await
            .map(|caller| Self(Some(caller)))
    }
}

/// What the broker counts
///
/// In the text of OpenMetrics, which Prometheus reads. The setting `metrics`
/// may let in who has no token. A broker that is not the active one knows
/// little, and says that it is not (`muster_active 0`); it can check no token.
#[utoipa::path(
    get, path = "/metrics", tag = "health", security(("bearer" = [])),
    responses(
        (status = 200, description = "metrics", body = String, content_type = "application/openmetrics-text"),
        (status = 503, description = "It is not the active broker, and knows no tokens", body = Problem),
    ),
    extensions(("x-authorisation" = json!("read the status")))
)]
async fn metrics(State(state): State<AppState>, reader: Reader) -> Result<Response, ApiError> {
    if let Reader(Some(caller)) = &reader {
        state.authorize(caller, Action::ReadStatus, ()).await?;
    }
    let engine = &state.nodes.engine;
    let counted = count(&state.inventory, &state.control.presences());
    let nodes = Presence::ALL
        .iter()
        .map(|presence| {
            let count = counted.get(presence).copied().unwrap_or(0);
            (presence.as_str(), u64::from(count))
        })
        .collect();
    let standing = Standing {
        epoch: state.lease.epoch(),
        nats: state.link.is_connected(),
        nodes: Some(nodes),
        runs: engine.by_state(),
        open_runs: u64::from(engine.open_runs()),
        strays: engine.strays(),
        certificate_ends: state.tls.as_ref().map(|tls| tls.ends().as_second()),
        stored: stored(&state.link).await,
    };
    text(&state.metrics, &standing).await
}

/// Of a broker that is not the active one.
pub(super) async fn of_this_process(metrics: &Metrics) -> Result<Response, ApiError> {
    text(metrics, &Standing::default()).await
}

async fn text(metrics: &Metrics, standing: &Standing) -> Result<Response, ApiError> {
    let text = metrics
        .text(standing)
        .await
        .map_err(|e| ApiError::internal(&e))?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

/// What NATS keeps of muster's.
async fn stored(link: &Link) -> Vec<Stored> {
    let list = async {
        let mut found = BTreeMap::new();
        let mut streams = link.js.streams();
        while let Some(info) = streams.try_next().await? {
            found.insert(info.config.name, info.state);
        }
        Ok::<_, async_nats::jetstream::context::StreamsError>(found)
    };
    match timeout(STORED_WITHIN, list).await {
        Ok(Ok(found)) => found
            .into_iter()
            .filter(|(name, _)| name.starts_with("MUSTER_") || name.starts_with("KV_muster_"))
            .map(|(name, state)| Stored {
                name,
                bytes: state.bytes,
                messages: state.messages,
                last: state.last_sequence,
            })
            .collect(),
        Ok(Err(error)) => {
            tracing::debug!(%error, "NATS does not say what it keeps");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}
