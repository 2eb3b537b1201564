//! Webhooks, triggers and routes.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use muster_protocol::api::{HookTest, HookTested, HookView, Page, RouteView, TriggerView};
use muster_protocol::names::HookName;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::RemoteAddr;
use super::{ApiError, ApiJson, ApiPath, AppState};
use crate::authz::{Action, Caller};
use crate::hooks::take::TakeError;
use crate::hooks::verify::Delivery;

/// How long a body may take to come.
const BODY_WITHIN: Duration = Duration::from_secs(20);
/// How long a delivery waits for room.
const ROOM_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of bodies in memory at a time, in KiB.
const ROOM: usize = 64 * 1024;
/// Bytes that a body gets room for before any of it has come.
const FIRST: usize = 64 * 1024;
/// Most headers of a test.
const MAX_HEADERS: usize = 64;

/// Room for bodies, in KiB.
static BODIES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(ROOM)));

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(test))
        .routes(routes!(triggers))
        .routes(routes!(list_routes))
        .routes(routes!(deliver))
}

/// All webhooks, by name, with what came of their deliveries.
#[utoipa::path(
    get, path = "/v1/hooks", tag = "events", security(("bearer" = [])),
    responses((status = 200, body = Page<HookView>)),
    extensions(("x-authorisation" = json!("read webhooks, triggers and routes")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<HookView>>, ApiError> {
    state.authorize(&caller, Action::ReadHooks, ()).await?;
    let items = state.hooks.list();
    Ok(ApiJson(Page { items, next: None }))
}

/// All triggers, by name, with what came of the last event for each.
#[utoipa::path(
    get, path = "/v1/triggers", tag = "events", security(("bearer" = [])),
    responses((status = 200, body = Page<TriggerView>)),
    extensions(("x-authorisation" = json!("read webhooks, triggers and routes")))
)]
async fn triggers(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<TriggerView>>, ApiError> {
    state.authorize(&caller, Action::ReadHooks, ()).await?;
    let items = state.triggers.list();
    Ok(ApiJson(Page { items, next: None }))
}

/// All routes, by name, with how far each of them is.
#[utoipa::path(
    get, path = "/v1/routes", tag = "events", security(("bearer" = [])),
    responses((status = 200, body = Page<RouteView>)),
    extensions(("x-authorisation" = json!("read webhooks, triggers and routes")))
)]
async fn list_routes(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<Page<RouteView>>, ApiError> {
    state.authorize(&caller, Action::ReadHooks, ()).await?;
    let items = state.routes.list();
    Ok(ApiJson(Page { items, next: None }))
}

/// Try a webhook
///
/// What a delivery would become, which triggers it would be for, with which
/// parameters, and whether the run would be allowed. Nothing is done, and no
/// signature is needed.
#[utoipa::path(
    post, path = "/v1/hooks/{name}/test", tag = "events", params(("name" = HookName, Path)),
    request_body = HookTest, security(("bearer" = [])),
    responses((status = 200, body = Page<HookTested>), (status = 400, body = Problem), (status = 404, body = Problem)),
    extensions(("x-authorisation" = json!("read webhooks, triggers and routes")))
)]
async fn test(
    State(state): State<AppState>,
    caller: Caller,
    ApiPath(name): ApiPath<String>,
    ApiJson(test): ApiJson<HookTest>,
) -> Result<ApiJson<Page<HookTested>>, ApiError> {
    state.authorize(&caller, Action::ReadHooks, ()).await?;
    let none = || {
        ApiError::new(
            Kind::NotFound,
            format!("there is no webhook `{}`", printable(&name, 80)),
        )
        .hint("`muster hook list` lists them")
    };
    let hook: HookName = name.parse().map_err(|_| none())?;
    let mut headers = HeaderMap::new();
    if test.headers.len() > MAX_HEADERS {
        let title = format!("at most {MAX_HEADERS} headers are taken");
        return Err(ApiError::new(Kind::InvalidRequest, title));
    }
    for (name, value) in &test.headers {
        let header = name.parse::<HeaderName>().ok();
        let (Some(name), Ok(value)) = (header, value.parse::<HeaderValue>()) else {
            let title = format!("`{}` is no header", printable(name, 80));
            return Err(ApiError::new(Kind::InvalidRequest, title));
        };
        headers.insert(name, value);
    }
    let read = state.hooks.test(&hook, &headers, test.body.as_bytes());
    let events = match read.ok_or_else(none)? {
        Ok(events) => events,
        Err(TakeError::Unread(unread @ crate::hooks::payload::Unread::Ignored(_))) => {
            let ignored = Some(unread.to_string());
            let nothing = HookTested {
                event: None,
                ignored,
                triggers: Vec::new(),
            };
            return Ok(ApiJson(Page {
                items: vec![nothing],
                next: None,
            }));
        }
        Err(error) => return Err(error.into()),
    };
    let mut tested = Vec::new();
    for event in events {
        let triggers = Box::pin(state.triggers.test(&state.submit, &event)).await;
        tested.push(HookTested {
            event: Some(event),
            ignored: None,
            triggers,
        });
    }
    Ok(ApiJson(Page {
        items: tested,
        next: None,
    }))
}

/// Deliver to a webhook
///
/// What the product sends, signed as it signs. Answered once the event is
/// stored. A name that there is not and a signature that is not right are
/// answered alike.
#[utoipa::path(
    post, path = "/hooks/{name}", tag = "events", params(("name" = HookName, Path)),
    request_body(content = Object, content_type = "application/json"), security(()),
    responses(
        (status = 204, description = "it is stored, or had come before, or there is nothing to tell"),
        (status = 400, body = Problem), (status = 403, body = Problem), (status = 408, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 429, body = Problem),
        (status = 503, body = Problem),
    ),
    extensions(("x-authorisation" = json!("open: the delivery itself is signed")))
)]
async fn deliver(
    State(state): State<AppState>,
    ApiPath(name): ApiPath<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    address: Option<axum::Extension<RemoteAddr>>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let ip = address.map(|axum::Extension(address)| address.0.ip());
    let max = state.hooks.max_body();
    let (body, _room) = whole(&headers, body, max).await?;
    let delivery = Delivery {
        headers: &headers,
        query: query.as_deref(),
        body: &body,
    };
    match Box::pin(state.hooks.take(&name, &delivery)).await {
        Ok(_) => {
            state.audit.delivered(ip, &name);
            Ok(StatusCode::NO_CONTENT)
        }
        Err(error @ TakeError::Refused) => {
            let request = format!("POST /hooks/{name}");
            state.audit.stranger(ip, &request, &error.to_string());
            // Only who guesses is slowed down.
            if !state.limiter.allows(ip, std::time::Instant::now()) {
                return Err(ApiError::new(
                    Kind::RateLimited,
                    "too many refused deliveries from this address",
                )
                .hint("try again in a second"));
            }
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// The body, at most so large, and its room in memory.
async fn whole(
    headers: &HeaderMap,
    body: Body,
    max: usize,
) -> Result<(Bytes, tokio::sync::OwnedSemaphorePermit), ApiError> {
    let too_large = || {
        ApiError::new(
            Kind::TooLarge,
            format!("a delivery has at most {max} bytes"),
        )
    };
    let said = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|said| said > max) {
        return Err(too_large());
    }
    let busy = || {
        ApiError::new(Kind::Unavailable, "too many deliveries are under way")
            .hint("try again in a few seconds")
    };
    let mut room = Arc::clone(&BODIES)
        .try_acquire_owned()
        .map_err(|_| busy())?;
    let read = async {
        let mut stream = body.into_data_stream();
        let mut whole = BytesMut::with_capacity(said.unwrap_or(0).min(FIRST));
        while let Some(piece) = stream.next().await {
            let piece = piece
                .map_err(|_| ApiError::new(Kind::InvalidRequest, "the body did not come whole"))?;
            if whole.len() + piece.len() > max {
                return Err(too_large());
            }
            // Room is for what has come, not for what was announced: who
            // announces much and sends little keeps nobody out.
            let kib = (whole.len() + piece.len()).div_ceil(1024);
            if let Some(more @ 1..) = kib.checked_sub(room.num_permits()) {
                let more = u32::try_from(more).unwrap_or(u32::MAX);
                let more = Arc::clone(&BODIES).acquire_many_owned(more);
                match timeout(ROOM_WITHIN, more).await {
                    Ok(Ok(more)) => room.merge(more),
                    _ => return Err(busy()),
                }
            }
            whole.extend_from_slice(&piece);
        }
        Ok((whole.freeze(), room))
    };
    match timeout(BODY_WITHIN, read).await {
        Ok(read) => read,
        Err(_) => Err(ApiError::new(
            Kind::InvalidRequest,
            format!("the body did not come within {} s", BODY_WITHIN.as_secs()),
        )
        .status(408)),
    }
}

impl From<TakeError> for ApiError {
    fn from(error: TakeError) -> Self {
        match error {
            TakeError::Refused => Self::new(Kind::Denied, error.to_string())
                .hint("whoever set it up finds the reason in `muster hook list`"),
            TakeError::Limited { after, .. } => {
                let seconds = after.as_secs() + 1;
                Self::new(Kind::RateLimited, error.to_string())
                    .hint(format!("try again in {seconds} s"))
            }
            TakeError::ContentType => {
                Self::new(Kind::InvalidRequest, error.to_string()).status(415)
            }
            TakeError::Json(_) | TakeError::Unread(_) => {
                Self::new(Kind::InvalidRequest, error.to_string())
            }
            TakeError::Put(error) => error.into(),
        }
    }
}
