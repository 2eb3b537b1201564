//! What happened in the cluster.

use axum::extract::State;
use muster_protocol::api::{ClusterEvent, Page};
use muster_protocol::problem::{Kind, Problem};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, ApiQuery, AppState};
use crate::authz::{Action, Caller};
use crate::events::PageError;

/// Most events in an answer.
const MAX_LIMIT: u32 = 1_000;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Range {
    /// The position after which to begin: `seq` of the last event that was
    /// seen, or `next` of the page before. Without it: the newest ones.
    #[serde(default)]
    after: Option<u64>,
    /// How many, 1 to 1000; 100 when absent.
    #[serde(default)]
    limit: Option<u32>,
}

/// Events, oldest first. `next` goes into `after`.
#[utoipa::path(
    get, path = "/v1/events", tag = "cluster", params(Range), security(("bearer" = [])),
    responses((status = 200, body = Page<ClusterEvent>), (status = 400, body = Problem),
        (status = 409, description = "`after` is beyond the last event: the store went back in time", body = Problem)),
    extensions(("x-authorisation" = json!("read events")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(range): ApiQuery<Range>,
) -> Result<ApiJson<Page<ClusterEvent>>, ApiError> {
    state.authorize(&caller, Action::ReadEvents, ()).await?;
    let limit = range.limit.unwrap_or(100);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::new(
            Kind::InvalidRequest,
            format!("`limit` must be 1 to {MAX_LIMIT}"),
        ));
    }
    let limit = limit as usize;
    let items = match range.after {
        Some(after) => state.events.list(after, limit + 1).await,
        None => state.events.newest(limit).await.map_err(PageError::from),
    };
    let mut items = items.map_err(|error| match error {
        PageError::Read(error) => ApiError::storage(&error),
        PageError::Beyond { .. } => ApiError::new(Kind::Conflict, error.to_string())
            .hint("leave `after` out for the newest ones; `after=0` begins with the oldest"),
    })?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items
        .last()
        .filter(|_| more)
        .map(|event| event.seq.to_string());
    Ok(ApiJson(Page { items, next }))
}
