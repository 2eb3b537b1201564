//! What machines ask that have no API token: enrolment and credentials.

use axum::extract::State;
use muster_protocol::api::Challenge;
use muster_protocol::problem::Problem;
use muster_protocol::wire::{CredentialsAnswer, CredentialsRequest, EnrollRequest, Trust};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, AppState, OpenDoor, finish};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(trust))
        .routes(routes!(challenge))
        .routes(routes!(enroll))
        .routes(routes!(credentials))
}

/// The root key, the broker keys that it signs, and the authority of the
/// broker's HTTPS. An invite's fingerprint says whether the root key is right.
#[utoipa::path(
    get, path = "/v1/trust", tag = "agents", security(()),
    responses((status = 200, body = Trust), (status = 429, body = Problem)),
    extensions(("x-authorisation" = json!("open: it is what a machine needs before it can trust anything")))
)]
async fn trust(_open: OpenDoor, State(state): State<AppState>) -> ApiJson<Trust> {
    ApiJson(state.enrolment.trust())
}

/// A one-use challenge for the proof in the next request; a minute long.
#[utoipa::path(
    post, path = "/v1/agent/challenge", tag = "agents", security(()),
    responses((status = 200, body = Challenge), (status = 429, body = Problem)),
    extensions(("x-authorisation" = json!("open: a challenge gives no right")))
)]
async fn challenge(
    _open: OpenDoor,
    State(state): State<AppState>,
) -> Result<ApiJson<Challenge>, ApiError> {
    Ok(ApiJson(state.enrolment.challenge()?))
}

/// Makes a node of a machine that has an invite and proves its key.
#[utoipa::path(
    post, path = "/v1/enroll", tag = "agents", security(()), request_body = EnrollRequest,
    responses(
        (status = 200, body = CredentialsAnswer),
        (status = 403, description = "the invite or the proof is not valid", body = Problem),
        (status = 409, description = "the name or the key is taken, or the challenge is not valid", body = Problem),
        (status = 429, body = Problem),
    ),
    extensions(("x-authorisation" = json!("open: the invite in the request is the right, once")))
)]
async fn enroll(
    _open: OpenDoor,
    State(state): State<AppState>,
    ApiJson(request): ApiJson<EnrollRequest>,
) -> Result<ApiJson<CredentialsAnswer>, ApiError> {
    state.active()?;
    // Nobody is asked who may: the invite is the right. It is recorded before.
    state.audit.enrols(&request.node_key).await?;
    Ok(ApiJson(
        finish(async move { state.enrolment.enroll(&request).await }).await?,
    ))
}

/// Fresh credentials for a node that proves its key.
#[utoipa::path(
    post, path = "/v1/agent/credentials", tag = "agents", security(()), request_body = CredentialsRequest,
    responses(
        (status = 200, body = CredentialsAnswer),
        (status = 403, description = "the node was removed, or the proof is not valid", body = Problem),
        (status = 409, description = "the node is quarantined, or the challenge is not valid", body = Problem),
        (status = 429, body = Problem),
    ),
    extensions(("x-authorisation" = json!("open: the proof in the request shows that it is the node itself")))
)]
async fn credentials(
    _open: OpenDoor,
    State(state): State<AppState>,
    ApiJson(request): ApiJson<CredentialsRequest>,
) -> Result<ApiJson<CredentialsAnswer>, ApiError> {
    state.active()?;
    Ok(ApiJson(
        finish(async move {
            let control = &*state.control;
            state.enrolment.credentials(&request, control).await
        })
        .await?,
    ))
}
