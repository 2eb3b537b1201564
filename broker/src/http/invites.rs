//! Invites for new nodes.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::{InviteRequest, InviteView, Invites, Page};
use muster_protocol::problem::Problem;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::once::once;
use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState, Paging, page};
use crate::authz::{Action, Caller};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(withdraw))
}

/// Makes invites, one for each name. Their tokens are shown only here.
#[utoipa::path(
    post, path = "/v1/invites", tag = "invites", params(("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes")),
    request_body = InviteRequest, security(("bearer" = [])),
    responses(
        (status = 201, body = Invites),
        (status = 400, body = Problem),
        (status = 409, description = "a name is taken", body = Problem),
    ),
    extensions(("x-authorisation" = json!("invite nodes")))
)]
async fn create(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    ApiJson(request): ApiJson<InviteRequest>,
) -> Result<(StatusCode, ApiJson<Invites>), ApiError> {
    state.active()?;
    let request = state
        .authorize(&caller, Action::Invite, request)
        .await?
        .into_inner();
    let (enrolment, asked, by) = (
        state.enrolment.clone(),
        request.clone(),
        caller.principal.clone(),
    );
    let work = async move { enrolment.invite(asked, &by).await };
    let invites = Box::pin(once(&state, &caller, "invites", &headers, &request, work)).await?;
    Ok((StatusCode::CREATED, ApiJson(invites)))
}

/// Invites that can be used, the next to end first.
#[utoipa::path(
    get, path = "/v1/invites", tag = "invites", params(Paging), security(("bearer" = [])),
    responses((status = 200, body = Page<InviteView>), (status = 400, body = Problem)),
    extensions(("x-authorisation" = json!("list or withdraw invites")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(paging): ApiQuery<Paging>,
) -> Result<ApiJson<Page<InviteView>>, ApiError> {
    state.authorize(&caller, Action::ManageInvites, ()).await?;
    let invites = state.enrolment.list().await?;
    // In the order of the list: moments before 1970 do not occur.
    let key = |invite: &InviteView| {
        format!(
            "{:020}.{}.{}",
            invite.expires.as_millisecond(),
            invite.name,
            invite.id
        )
    };
    let mut sorted = invites;
    sorted.sort_by_cached_key(key);
    Ok(ApiJson(page(sorted, key, &paging)?))
}

/// Withdraws an invite that was not used.
#[utoipa::path(
    delete, path = "/v1/invites/{id}", tag = "invites", params(("id" = String, Path, pattern = "^[0-9a-z]{8,26}$")),
    security(("bearer" = [])),
    responses((status = 204), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("list or withdraw invites")))
)]
async fn withdraw(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    state.active()?;
    state.authorize(&caller, Action::ManageInvites, ()).await?;
    state.enrolment.withdraw(&id, &caller.principal).await?;
    Ok(StatusCode::NO_CONTENT)
}
