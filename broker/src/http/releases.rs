//! Agent releases: up from an administrator, down to nodes.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use muster_protocol::api::{Page, ReleaseOffer, ReleaseUpload, ReleaseView};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::release::ReleaseId;
use muster_protocol::wire::ReleaseRequest;
use tokio_stream::wrappers::ReceiverStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, ApiPath, AppState, OpenDoor, finish};
use crate::authz::{Action, Caller};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(offer, remove))
        .routes(routes!(part))
        .routes(routes!(commit))
        .routes(routes!(fetch))
}

fn release_id(text: &str) -> Result<ReleaseId, ApiError> {
    text.parse()
        .map_err(|e: muster_protocol::release::ReleaseIdError| {
            ApiError::new(Kind::InvalidRequest, e.to_string())
        })
}

/// Agents that nodes can be upgraded to, the newest first.
#[utoipa::path(
    get, path = "/v1/releases", tag = "releases", security(("bearer" = [])),
    responses((status = 200, body = Page<ReleaseView>)),
    extensions(("x-authorisation" = json!("read agent releases")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<ReleaseView>>, ApiError> {
    state.authorize(&caller, Action::ReadReleases, ()).await?;
    Ok(ApiJson(Page {
        items: state.releases.list(),
        next: None,
    }))
}

/// Announces a release: what of it is missing here. To go on with an upload
/// that broke off, announce it again.
#[utoipa::path(
    put, path = "/v1/releases/{sha256}", tag = "releases", params(("sha256" = ReleaseId, Path)),
    request_body = ReleaseOffer, security(("bearer" = [])),
    responses(
        (status = 200, body = ReleaseUpload),
        (status = 409, description = "another one is being uploaded", body = Problem),
        (status = 413, body = Problem),
    ),
    extensions(("x-authorisation" = json!("upload or remove agent releases")))
)]
async fn offer(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
    ApiJson(offer): ApiJson<ReleaseOffer>,
) -> Result<ApiJson<ReleaseUpload>, ApiError> {
    state.authorize(&caller, Action::ManageReleases, ()).await?;
    state.active()?;
    let id = release_id(&id)?;
    let upload = finish(async move { state.releases.offer(id, offer.size).await }).await?;
    Ok(ApiJson(upload))
}

/// A part of the bytes of a release that was announced.
#[utoipa::path(
    put, path = "/v1/releases/{sha256}/parts/{part}", tag = "releases",
    params(("sha256" = ReleaseId, Path), ("part" = u32, Path)),
    request_body(content = String, content_type = "application/octet-stream"), security(("bearer" = [])),
    responses(
        (status = 204),
        (status = 400, description = "a part that there cannot be", body = Problem),
        (status = 409, description = "it was not announced", body = Problem),
    ),
    extensions(("x-authorisation" = json!("upload or remove agent releases")))
)]
async fn part(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath((id, part)): ApiPath<(String, u32)>,
    data: Bytes,
) -> Result<StatusCode, ApiError> {
    state.authorize(&caller, Action::ManageReleases, ()).await?;
    state.active()?;
    state.releases.part(release_id(&id)?, part, data).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All parts are there: checks them, and keeps them as a release.
#[utoipa::path(
    post, path = "/v1/releases/{sha256}/commit", tag = "releases", params(("sha256" = ReleaseId, Path)),
    security(("bearer" = [])),
    responses(
        (status = 200, body = ReleaseView),
        (status = 400, description = "the bytes are no muster-agent, or not those of that hash", body = Problem),
        (status = 409, description = "parts are missing", body = Problem),
        (status = 422, description = "an agent that this broker could not talk to", body = Problem),
    ),
    extensions(("x-authorisation" = json!("upload or remove agent releases")))
)]
async fn commit(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<ApiJson<ReleaseView>, ApiError> {
    state.authorize(&caller, Action::ManageReleases, ()).await?;
    state.active()?;
    let id = release_id(&id)?;
    let view = finish(async move { state.releases.commit(id, &caller.principal).await }).await?;
    Ok(ApiJson(view))
}

/// Removes a release: no node can be upgraded to it any more.
#[utoipa::path(
    delete, path = "/v1/releases/{sha256}", tag = "releases", params(("sha256" = ReleaseId, Path)),
    security(("bearer" = [])),
    responses((status = 204), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("upload or remove agent releases")))
)]
async fn remove(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    state.authorize(&caller, Action::ManageReleases, ()).await?;
    state.active()?;
    let id = release_id(&id)?;
    finish(async move { state.releases.remove(id, &caller.principal).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The bytes of a release, from a place on, for a node that proves its key.
/// The node holds them against the hash in the signed request.
#[utoipa::path(
    post, path = "/v1/agent/release", tag = "agents", security(()), request_body = ReleaseRequest,
    responses(
        (status = 200, description = "the bytes", content_type = "application/octet-stream"),
        (status = 403, description = "the node was removed, or the proof is not valid", body = Problem),
        (status = 404, description = "there is no such release any more", body = Problem),
        (status = 429, description = "too many nodes fetch now", body = Problem),
    ),
    extensions(("x-authorisation" = json!("open: the proof in the request shows that it is an enrolled node")))
)]
async fn fetch(
    _open: OpenDoor,
    State(state): State<AppState>,
    ApiJson(request): ApiJson<ReleaseRequest>,
) -> Result<Response, ApiError> {
    state.active()?;
    state.enrolment.prove_node(&request).await?;
    let Some((length, pieces)) = state.releases.fetch(request.release, request.from)? else {
        return Err(
            ApiError::new(Kind::RateLimited, "many nodes fetch a release now")
                .hint("try again in a few seconds"),
        );
    };
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(ReceiverStream::new(pieces))).into_response())
}
