//! Stopping everything new, and letting it go on.

use axum::extract::State;
use muster_protocol::api::{FreezeRequest, FreezeView, Presence, ThawRequest};
use muster_protocol::problem::{Kind, Problem};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, AppState, finish};
use crate::authz::{Action, Caller};
use crate::freeze::{FreezerError, Taken};

/// Names in an answer.
const NAMED: usize = 20;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(show))
        .routes(routes!(freeze))
        .routes(routes!(thaw))
}

impl From<FreezerError> for ApiError {
    fn from(error: FreezerError) -> Self {
        match &error {
            FreezerError::Already(_) => Self::new(Kind::Conflict, error.to_string())
                .hint("muster freeze --status says how it stands"),
            FreezerError::Why => Self::new(Kind::InvalidRequest, error.to_string()),
            FreezerError::NotActive => super::problem::not_active(),
            FreezerError::Store(_) => Self::storage(&error),
        }
    }
}

/// What is in force, and who goes by it.
pub(crate) fn view(state: &AppState) -> FreezeView {
    let freeze = state.freezer.now();
    let presences = state.control.presences();
    let snapshot = state.inventory.snapshot();
    let nodes = snapshot.iter().filter(|node| node.is_active()).map(|node| {
        let there = presences
            .get(&node.serial)
            .is_some_and(|p| matches!(p.state, Presence::Up | Presence::Late));
        (node.serial, &node.assignment.name, there)
    });
    let Taken {
        taken,
        missing,
        unable,
        away,
    } = state.freezer.who(nodes);
    let count = |names: &Vec<_>| u32::try_from(names.len()).unwrap_or(u32::MAX);
    FreezeView {
        frozen: freeze.frozen,
        revision: freeze.revision,
        by: (freeze.revision > 0).then_some(freeze.by),
        why: freeze.why,
        at: (freeze.revision > 0).then_some(freeze.at),
        taken,
        missing: count(&missing),
        unable: count(&unable),
        away,
        missing_names: missing.into_iter().take(NAMED).collect(),
        unable_names: unable.into_iter().take(NAMED).collect(),
    }
}

/// Whether the fleet is frozen, and which nodes go by that.
#[utoipa::path(
    get, path = "/v1/freeze", tag = "cluster", security(("bearer" = [])),
    responses((status = 200, body = FreezeView)),
    extensions(("x-authorisation" = json!("read the status")))
)]
async fn show(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<FreezeView>, ApiError> {
    state.authorize(&caller, Action::ReadStatus, ()).await?;
    Ok(ApiJson(view(&state)))
}

/// Begins nothing new on any node from now on. What runs goes on, and so does
/// what takes back what a run did.
#[utoipa::path(
    post, path = "/v1/freeze", tag = "cluster", request_body = FreezeRequest, security(("bearer" = [])),
    responses((status = 200, body = FreezeView), (status = 400, body = Problem),
        (status = 409, description = "it is frozen already", body = Problem)),
    extensions(("x-authorisation" = json!("freeze or thaw the fleet")))
)]
async fn freeze(
    State(state): State<AppState>,
    caller: Caller,
    ApiJson(request): ApiJson<FreezeRequest>,
) -> Result<ApiJson<FreezeView>, ApiError> {
    state.active()?;
    let request = state
        .authorize(&caller, Action::Freeze, request)
        .await?
        .into_inner();
    finish(async move {
        state
            .freezer
            .freeze(&caller.principal, &request.why)
            .await?;
        Ok::<_, FreezerError>(ApiJson(view(&state)))
    })
    .await
}

/// Lets it go on.
#[utoipa::path(
    post, path = "/v1/thaw", tag = "cluster", request_body = ThawRequest, security(("bearer" = [])),
    responses((status = 200, body = FreezeView), (status = 400, body = Problem),
        (status = 409, description = "it is not frozen", body = Problem)),
    extensions(("x-authorisation" = json!("freeze or thaw the fleet")))
)]
async fn thaw(
    State(state): State<AppState>,
    caller: Caller,
    ApiJson(request): ApiJson<ThawRequest>,
) -> Result<ApiJson<FreezeView>, ApiError> {
    state.active()?;
    let request = state
        .authorize(&caller, Action::Freeze, request)
        .await?
        .into_inner();
    finish(async move {
        state.freezer.thaw(&caller.principal, &request.why).await?;
        Ok::<_, FreezerError>(ApiJson(view(&state)))
    })
    .await
}
