//! API tokens.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::{Page, TokenCreated, TokenRequest, TokenView, WhoAmI};
use muster_protocol::problem::Problem;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::once::once;
use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState, Paging, finish, page};
use crate::authz::{Action, Caller};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(revoke))
        .routes(routes!(whoami))
}

/// Makes a token. Its text is shown only here.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", params(("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes")),
    request_body = TokenRequest, security(("bearer" = [])),
    responses((status = 201, body = TokenCreated), (status = 400, body = Problem)),
    extensions(("x-authorisation" = json!("manage API tokens")))
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    ApiJson(request): ApiJson<TokenRequest>,
) -> Result<(StatusCode, ApiJson<TokenCreated>), ApiError> {
    state.active()?;
    let request = state
        .authorize(&caller, Action::ManageTokens, request)
        .await?
        .into_inner();
    let (tokens, asked, by) = (
        state.tokens.clone(),
        request.clone(),
        caller.principal.clone(),
    );
    let work = async move { tokens.create(asked, &by).await };
    let created = Box::pin(once(&state, &caller, "tokens", &headers, &request, work)).await?;
    Ok((StatusCode::CREATED, ApiJson(created)))
}

/// Tokens that work, oldest first.
#[utoipa::path(
    get, path = "/v1/tokens", tag = "tokens", params(Paging), security(("bearer" = [])),
    responses((status = 200, body = Page<TokenView>), (status = 400, body = Problem)),
    extensions(("x-authorisation" = json!("manage API tokens")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(paging): ApiQuery<Paging>,
) -> Result<ApiJson<Page<TokenView>>, ApiError> {
    state.authorize(&caller, Action::ManageTokens, ()).await?;
    let key = |token: &TokenView| format!("{:020}.{}", token.created.as_millisecond(), token.id);
    let mut tokens = state.tokens.list();
    tokens.sort_by_cached_key(key);
    Ok(ApiJson(page(tokens, key, &paging)?))
}

/// Revokes a token at once.
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path, pattern = "^[0-9a-z]{8,26}$")),
    security(("bearer" = [])),
    responses(
        (status = 204),
        (status = 404, body = Problem),
        (status = 409, description = "it is the last admin token", body = Problem),
    ),
    extensions(("x-authorisation" = json!("manage API tokens")))
)]
async fn revoke(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    state.active()?;
    state.authorize(&caller, Action::ManageTokens, ()).await?;
    let id = muster_protocol::text::printable(&id, 40);
    finish(async move { state.tokens.revoke(&id, &caller.principal).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who the token stands for.
#[utoipa::path(
    get, path = "/v1/whoami", tag = "tokens", security(("bearer" = [])),
    responses((status = 200, body = WhoAmI)),
    extensions(("x-authorisation" = json!("ask who it is")))
)]
async fn whoami(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<WhoAmI>, ApiError> {
    let caller = state
        .authorize(&caller, Action::WhoAmI, ())
        .await?
        .caller()
        .clone();
    Ok(ApiJson(WhoAmI {
        principal: caller.principal,
        role: caller.role,
        token: caller.token,
    }))
}
