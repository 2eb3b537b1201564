//! `/v1/images`: up from an operator, down to hypervisors.

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use muster_protocol::api::{IMAGE_PART, ImageUpload, ImageView, Page, PutImage};
use muster_protocol::names::{ImageName, NameError};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::vm::Sha256;
use muster_protocol::wire::{ImageAt, ImageRequest};
use tokio_stream::wrappers::ReceiverStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiJson, ApiPath, AppState, OpenDoor, finish};
use crate::authz::{Action, Caller};
use crate::vm::images::Source;

/// Largest body: a part, and what tells that there is more.
const LARGEST: usize = (IMAGE_PART as usize) + 1024;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    let parts = OpenApiRouter::new()
        .routes(routes!(part))
        .layer(DefaultBodyLimit::max(LARGEST));
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, remove))
        .routes(routes!(commit))
        .routes(routes!(fetch))
        .merge(parts)
}

fn image_name(text: &str) -> Result<ImageName, ApiError> {
    text.parse()
        .map_err(|e: NameError| ApiError::new(Kind::InvalidRequest, e.to_string()))
}

/// All disk images, by name.
#[utoipa::path(
    get, path = "/v1/images", tag = "machines", security(("bearer" = [])),
    responses((status = 200, body = Page<ImageView>)),
    extensions(("x-authorisation" = json!("read machines")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<ImageView>>, ApiError> {
    state.authorize(&caller, Action::ReadMachines, ()).await?;
    let uses = state.machines.image_uses();
    let of = |image: &Sha256| uses.get(image).copied().unwrap_or_default();
    Ok(ApiJson(Page {
        items: state.images.list(of),
        next: None,
    }))
}

/// Makes an image known under a name. Where its bytes are by URL, or here
/// already, that is all; else the answer says which parts are to be sent. To
/// go on with an upload that broke off, announce it again.
#[utoipa::path(
    put, path = "/v1/images/{name}", tag = "machines",
    params(("name" = ImageName, Path)), request_body = PutImage, security(("bearer" = [])),
    responses(
        (status = 200, body = ImageUpload),
        (status = 400, description = "no image can be like that", body = Problem),
        (status = 409, description = "there is an image of that name", body = Problem),
        (status = 413, body = Problem),
    ),
    extensions(("x-authorisation" = json!("add or remove disk images")))
)]
async fn put(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiJson(put): ApiJson<PutImage>,
) -> Result<ApiJson<ImageUpload>, ApiError> {
    let put = (image_name(&name)?, put);
    let put = state.authorize(&caller, Action::ManageImages, put).await?;
    state.active()?;
    let upload = finish(async move { state.images.put(put).await }).await?;
    Ok(ApiJson(upload))
}

/// A part of the bytes of an image that was announced.
#[utoipa::path(
    put, path = "/v1/images/{name}/parts/{part}", tag = "machines",
    params(("name" = ImageName, Path), ("part" = u32, Path)),
    request_body(content = String, content_type = "application/octet-stream"), security(("bearer" = [])),
    responses(
        (status = 204),
        (status = 400, description = "a part that there cannot be", body = Problem),
        (status = 409, description = "it was not announced", body = Problem),
        (status = 413, body = Problem),
        (status = 507, description = "the broker's disk is full", body = Problem),
    ),
    extensions(("x-authorisation" = json!("add or remove disk images")))
)]
async fn part(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath((name, part)): ApiPath<(String, u32)>,
    data: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, ApiError> {
    let name = image_name(&name)?;
    state.authorize(&caller, Action::ManageImages, ()).await?;
    state.active()?;
    let data = data.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let title = format!("a part of an image has at most {IMAGE_PART} bytes");
            ApiError::new(Kind::TooLarge, title)
        }
        _ => {
            ApiError::new(Kind::InvalidRequest, "the part did not come whole").hint("send it again")
        }
    })?;
    state.images.part(&name, part, data).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All parts are there: checks them, and keeps them as the image.
#[utoipa::path(
    post, path = "/v1/images/{name}/commit", tag = "machines", params(("name" = ImageName, Path)),
    security(("bearer" = [])),
    responses(
        (status = 200, body = ImageView),
        (status = 400, description = "the bytes are no image, or not those that were announced", body = Problem),
        (status = 409, description = "parts are missing, or it was not announced", body = Problem),
    ),
    extensions(("x-authorisation" = json!("add or remove disk images")))
)]
async fn commit(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<ApiJson<ImageView>, ApiError> {
    let name = image_name(&name)?;
    let name = state.authorize(&caller, Action::ManageImages, name).await?;
    state.active()?;
    let view = finish(async move { state.images.commit(name).await }).await?;
    Ok(ApiJson(view))
}

/// Removes an image: no machine can be made of it any more. Those that were
/// keep their disks.
#[utoipa::path(
    delete, path = "/v1/images/{name}", tag = "machines", params(("name" = ImageName, Path)),
    security(("bearer" = [])),
    responses((status = 204), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("add or remove disk images")))
)]
async fn remove(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    let name = image_name(&name)?;
    let name = state.authorize(&caller, Action::ManageImages, name).await?;
    state.active()?;
    finish(async move { state.images.remove(name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The bytes of an image, from a place on, for a node that proves its key; or,
/// as JSON, where it is to fetch them itself. The node holds them against the
/// hash in the signed request.
#[utoipa::path(
    post, path = "/v1/agent/image", tag = "agents", security(()), request_body = ImageRequest,
    responses(
        (status = 200, description = "the bytes, or where they are", content(
            (String = "application/octet-stream"),
            (ImageAt = "application/json"),
        )),
        (status = 403, description = "the node was removed, or the proof is not valid", body = Problem),
        (status = 404, description = "there is no such image any more, or its bytes are not here", body = Problem),
        (status = 429, description = "too many nodes fetch now", body = Problem),
    ),
    extensions(("x-authorisation" = json!("open: the proof in the request shows that it is an enrolled node")))
)]
async fn fetch(
    _open: OpenDoor,
    State(state): State<AppState>,
    ApiJson(request): ApiJson<ImageRequest>,
) -> Result<Response, ApiError> {
    state.active()?;
    state.enrolment.prove_hypervisor(&request).await?;
    match state.images.reader(request.image, request.from).await? {
        Source::Url(url) => Ok(ApiJson(ImageAt { url }).into_response()),
        Source::Bytes(length, pieces) => {
            let headers = [
                (CONTENT_TYPE, "application/octet-stream".to_owned()),
                (CONTENT_LENGTH, length.to_string()),
            ];
            let body = Body::from_stream(ReceiverStream::new(pieces));
            Ok((headers, body).into_response())
        }
        Source::Busy => Err(
            ApiError::new(Kind::RateLimited, "many nodes fetch an image now")
                .hint("try again in a few seconds"),
        ),
    }
}
