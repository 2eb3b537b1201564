//! Broker keys.

use axum::extract::State;
use muster_protocol::keys::{KeyId, KeyList};
use muster_protocol::problem::Problem;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, ApiPath, AppState, finish};
use crate::authz::{Action, Caller};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(rotate))
        .routes(routes!(revoke))
}

/// The list of broker keys that nodes obey.
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", security(("bearer" = [])),
    responses((status = 200, body = KeyList)),
    extensions(("x-authorisation" = json!("read the broker keys")))
)]
async fn list(State(state): State<AppState>, caller: Caller) -> Result<ApiJson<KeyList>, ApiError> {
    state.authorize(&caller, Action::ReadKeys, ())?;
    Ok(ApiJson((*state.authority.list()).clone()))
}

/// Makes a new key and signs with it from now on. The old one stays active
/// until it is revoked.
#[utoipa::path(
    post, path = "/v1/keys/rotate", tag = "keys", security(("bearer" = [])),
    responses((status = 200, body = KeyList)),
    extensions(("x-authorisation" = json!("rotate or revoke broker keys")))
)]
async fn rotate(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<KeyList>, ApiError> {
    state.active()?;
    state.authorize(&caller, Action::ManageKeys, ())?;
    let by = caller.principal;
    let list =
        finish(async move { state.authority.rotate(&*state.control, by.as_str()).await }).await?;
    Ok(ApiJson((*list).clone()))
}

/// Takes a key out of use for ever.
#[utoipa::path(
    post, path = "/v1/keys/{id}/revoke", tag = "keys", params(("id" = String, Path)),
    security(("bearer" = [])),
    responses(
        (status = 200, body = KeyList),
        (status = 404, body = Problem),
        (status = 409, description = "it is the only active key", body = Problem),
    ),
    extensions(("x-authorisation" = json!("rotate or revoke broker keys")))
)]
async fn revoke(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<KeyId>,
) -> Result<ApiJson<KeyList>, ApiError> {
    state.active()?;
    state.authorize(&caller, Action::ManageKeys, ())?;
    let by = caller.principal;
    let list = finish(async move {
        state
            .authority
            .revoke(id, &*state.control, by.as_str())
            .await
    })
    .await?;
    Ok(ApiJson((*list).clone()))
}
