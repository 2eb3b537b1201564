//! The record of who asked for what.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use muster_protocol::api::Page;
use muster_protocol::audit::{Line, Record, TrustLine};
use muster_protocol::names::PrincipalName;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::Timestamp;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, ApiQuery, AppState};
use crate::audit::{AuditError, Filter};
use crate::authz::{Action, Caller};

/// Most records in an answer.
const MAX_LIMIT: u32 = 1_000;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(export))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Only what this principal asked for.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    principal: Option<PrincipalName>,
    /// Only this action, as in `run`; `read` stands for all that begin so.
    #[serde(default)]
    action: Option<String>,
    /// Only what is about this run.
    #[serde(default)]
    run: Option<String>,
    /// Only what was denied.
    #[serde(default)]
    denied: Option<bool>,
    /// Not before.
    #[serde(default)]
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Only records with a lower number: `next` of the page before.
    #[serde(default)]
    #[param(format = "uint64")]
    before: Option<u64>,
    /// How many, 1 to 1000; 100 when absent.
    #[serde(default)]
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

impl From<AuditError> for ApiError {
    fn from(error: AuditError) -> Self {
        tracing::error!(%error, "the record of requests");
        Self(Box::new(error.problem()))
    }
}

/// The newest records that are wanted, oldest first. `next` goes into
/// `before`, for older ones.
#[utoipa::path(
    get, path = "/v1/audit", tag = "audit", params(Wanted), security(("bearer" = [])),
    responses((status = 200, body = Page<Record>), (status = 400, body = Problem),
        (status = 404, description = "there is no such run", body = Problem)),
    extensions(("x-authorisation" = json!("read the record of requests")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(wanted): ApiQuery<Wanted>,
) -> Result<ApiJson<Page<Record>>, ApiError> {
    state.authorize(&caller, Action::ReadAudit, ()).await?;
    let limit = wanted.limit.unwrap_or(100);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::new(
            Kind::InvalidRequest,
            format!("`limit` must be 1 to {MAX_LIMIT}"),
        ));
    }
    let run = match wanted.run {
        // A whole id is one also when the run itself was removed.
        Some(text) => match text.parse() {
            Ok(run) => Some(run),
            Err(_) => Some(state.nodes.engine.lookup(&text)?),
        },
        None => None,
    };
    let filter = Filter {
        principal: wanted.principal,
        action: wanted.action,
        run,
        denied: wanted.denied.unwrap_or_default(),
        since: wanted.since,
        before: wanted.before,
    };
    let found = state.audit.newest(&filter, limit as usize).await?;
    let next = found
        .records
        .first()
        .filter(|_| found.more)
        .map(|record| record.n.to_string());
    Ok(ApiJson(Page {
        items: found.records,
        next,
    }))
}

/// Everything that is kept of the record, a JSON text a line: whose signatures
/// count, then records and checkpoints as they are stored, byte by byte, so
/// that the chain can be computed again elsewhere.
#[utoipa::path(
    get, path = "/v1/audit/export", tag = "audit", security(("bearer" = [])),
    responses((status = 200, description = "one JSON text a line", content_type = "application/x-ndjson")),
    extensions(("x-authorisation" = json!("read the record of requests")))
)]
async fn export(State(state): State<AppState>, caller: Caller) -> Result<Response, ApiError> {
    state.authorize(&caller, Action::ReadAudit, ()).await?;
    if state.lease.epoch().is_some()
        && let Err(error) = state.audit.checkpoint().await
    {
        tracing::debug!(%error, "no checkpoint at the end of an export");
    }
    let trust = TrustLine {
        root: state.authority.root(),
        keys: state.authority.signed_list(),
    };
    let first =
        serde_json::to_string(&Line::Trust(Box::new(trust))).map_err(|e| ApiError::internal(&e))?;
    let first = futures_util::stream::iter([Ok(first + "\n")]);
    let lines = first.chain(state.audit.lines().await?);
    // What ends with an error is cut off, and whoever reads it sees that.
    let body = Body::from_stream(lines.map_ok(Bytes::from).map_err(std::io::Error::other));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}
