//! `POST /v1/ping`: who answers, and how fast.

use std::time::Duration;

use muster_protocol::api::{PingAnswer, PingRequest};
use muster_protocol::problem::{Kind, Problem};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::matching::refused;
use super::{ApiError, ApiJson, AppState};
use crate::authz::{Action, Caller};
use crate::ping::PingError;
use crate::resolve::{Options, resolve};

/// Time to answer when nothing is said.
const WITHIN: Duration = Duration::from_secs(2);
/// Longest time that can be asked for.
const LONGEST: Duration = Duration::from_secs(60);

/// The routes of this module.
#[must_use]
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(ping))
}

/// Ping nodes
///
/// Sends a signed ping to the nodes that match, and answers when all have
/// answered that can, or the time is over.
#[utoipa::path(
    post,
    path = "/v1/ping",
    tag = "nodes",
    request_body = PingRequest,
    responses(
        (status = 200, description = "Who answered, and who did not", body = PingAnswer),
        (status = 400, description = "The predicate has an error; `span` says where", body = Problem),
        (status = 422, description = "It compares with a name that no node has, or no node matches", body = Problem),
        (status = 503, description = "This broker cannot send now", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("ping nodes"))),
)]
async fn ping(
    axum::extract::State(state): axum::extract::State<AppState>,
    caller: Caller,
    ApiJson(request): ApiJson<PingRequest>,
) -> Result<ApiJson<PingAnswer>, ApiError> {
    let request = state
        .authorize(&caller, Action::Ping, request)
        .await?
        .into_inner();
    state.active()?;
    let within = request.timeout.map_or(WITHIN, |span| span.get());
    if within.is_zero() || within > LONGEST {
        return Err(ApiError::new(
            Kind::InvalidRequest,
            "a ping waits for more than nothing and at most 60s",
        ));
    }
    // A ping does nothing to a node: the broker's own machines are in.
    let options = Options {
        limit: None,
        include_infrastructure: true,
        allow_unknown: request.allow_unknown,
    };
    let resolved = resolve(&request.predicate, &state.inventory.snapshot(), options)
        .map_err(|error| refused(&error))?;
    let answer = state
        .nodes
        .pinger
        .ping(&resolved.nodes, within)
        .await
        .map_err(|error| match error {
            PingError::Busy => ApiError::new(Kind::RateLimited, error.to_string()),
            PingError::Send(_) => ApiError::new(Kind::Unavailable, error.to_string()),
        })?;
    Ok(ApiJson(answer))
}
