//! Broker keys.

use axum::extract::State;
use axum::http::HeaderMap;
use muster_protocol::api::Keys;
use muster_protocol::keys::KeyId;
use muster_protocol::problem::Problem;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::once::once;
use super::{ApiError, ApiJson, ApiPath, AppState, finish};
use crate::authority::{Authority, AuthorityError};
use crate::authz::{Action, Caller};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(rotate))
        .routes(routes!(revoke))
}

/// As they are shown.
fn keys(authority: &Authority) -> Keys {
    Keys::new(&authority.list(), authority.signer().key.public().id())
}

/// The list of broker keys that nodes obey, and which of them signs.
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", security(("bearer" = [])),
    responses((status = 200, body = Keys)),
    extensions(("x-authorisation" = json!("read the broker keys")))
)]
async fn list(State(state): State<AppState>, caller: Caller) -> Result<ApiJson<Keys>, ApiError> {
    state.authorize(&caller, Action::ReadKeys, ()).await?;
    Ok(ApiJson(keys(&state.authority)))
}

/// Makes a new key and signs with it from now on. The old one stays active
/// until it is revoked.
#[utoipa::path(
    post, path = "/v1/keys/rotate", tag = "keys", params(("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes")),
    security(("bearer" = [])),
    responses((status = 200, body = Keys)),
    extensions(("x-authorisation" = json!("rotate or revoke broker keys")))
)]
async fn rotate(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<ApiJson<Keys>, ApiError> {
    state.active()?;
    state.authorize(&caller, Action::ManageKeys, ()).await?;
    let by = caller.principal.clone();
    let (authority, control) = (state.authority.clone(), state.control.clone());
    let work = async move {
        authority.rotate(&*control, by.as_str()).await?;
        Ok::<_, AuthorityError>(keys(&authority))
    };
    Box::pin(once(&state, &caller, "keys/rotate", &headers, &(), work))
        .await
        .map(ApiJson)
}

/// Takes a key out of use for ever.
#[utoipa::path(
    post, path = "/v1/keys/{id}/revoke", tag = "keys", params(("id" = KeyId, Path)),
    security(("bearer" = [])),
    responses(
        (status = 200, body = Keys),
        (status = 404, body = Problem),
        (status = 409, description = "it is the only active key", body = Problem),
    ),
    extensions(("x-authorisation" = json!("rotate or revoke broker keys")))
)]
async fn revoke(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<KeyId>,
) -> Result<ApiJson<Keys>, ApiError> {
    state.active()?;
    state.authorize(&caller, Action::ManageKeys, ()).await?;
    let by = caller.principal;
    finish(async move {
        let authority = &state.authority;
        authority.revoke(id, &*state.control, by.as_str()).await?;
        Ok::<_, AuthorityError>(ApiJson(keys(authority)))
    })
    .await
}
