//! `GET /v1/runs/{run}/events`: a run as it happens.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::Frame;
use muster_protocol::problem::{Kind, Problem};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiPath, AppState};
use crate::authz::{Action, Caller};
use crate::lease::Lease;
use crate::runs::frames::Place;
use crate::runs::{Watch, WatchError};

/// Where a watcher that was cut off goes on.
const LAST_EVENT_ID: &str = "last-event-id";
/// A comment is sent when nothing else was for so long: a watcher that knows
/// another broker goes there when this one says nothing.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How often it is looked whether this broker is the active one still.
const LOOK: Duration = Duration::from_millis(500);
/// Events that wait for a watcher.
const WAITING: usize = 64;
/// A watcher that takes nothing for so long is cut off.
const SLOW: Duration = Duration::from_secs(60);
/// Watchers at a time.
const MOST: usize = 1_000;

/// Room for watchers.
static ROOM: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MOST)));

/// The routes of this module.
#[must_use]
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(events))
}

impl From<WatchError> for ApiError {
    fn from(error: WatchError) -> Self {
        error.problem().into()
    }
}

/// Follow a run
///
/// Server-sent events: what happened so far, then what happens, to the run's
/// end. `id` is a place in the run's stream; with `Last-Event-ID` the events
/// after it follow, without a gap or a repetition. A place that is not known
/// any more, because the store went back in time, leads to
/// `run_begins_again`, and then to the run from its beginning. `accepted` has
/// no id and is only seen live.
#[utoipa::path(
    get,
    path = "/v1/runs/{run}/events",
    tag = "runs",
    params(
        ("run" = String, Path, description = "Its id, or a beginning of at least four characters"),
        ("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen"),
    ),
    responses(
        (status = 200, description = "Events", body = Frame, content_type = "text/event-stream"),
        (status = 400, description = "A Last-Event-ID that is none of this run", body = Problem),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "The prefix stands for several runs", body = Problem),
    ),
    security(("bearer" = [])),
    extensions(("x-authorisation" = json!("read runs"))),
)]
async fn events(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    ApiPath(run): ApiPath<String>,
) -> Result<Response, ApiError> {
    let run = state
        .authorize(&caller, Action::ReadRuns, run)
        .await?
        .into_inner();
    let after = match headers.get(LAST_EVENT_ID) {
        None => None,
        Some(value) => Some(value.to_str().ok().and_then(parse_id).ok_or_else(|| {
            ApiError::new(
                Kind::InvalidRequest,
                "this Last-Event-ID is not the id of an event of a run",
            )
            .hint("leave it out to begin at the beginning")
        })?),
    };
    let numbering = state.past.numbering();
    let room = Arc::clone(&ROOM).try_acquire_owned().map_err(|_| {
        ApiError::new(Kind::RateLimited, format!("{MOST} watchers are connected"))
            .hint("try again in a while, or look with `muster runs show`")
    })?;
    let engine = &state.nodes.engine;
    let run = engine.lookup(&run)?;
    let watch = match after {
        None => engine.watch(run, None).await?,
        Some((of, place)) if of == numbering => engine.watch(run, Some(place)).await?,
        // It was given before the store went back.
        Some(_) => engine.watch_again(run).await?,
    };
    let (give, take) = mpsc::channel(WAITING);
    let (shutdown, lease) = (state.shutdown.clone(), state.lease.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            // What happens to the run happens at another broker, perhaps.
            () = not_active(&lease) => {}
            () = follow(watch, numbering, give) => {}
        }
        drop(room);
    });
    let stream =
        Sse::new(ReceiverStream::new(take)).keep_alive(KeepAlive::new().interval(HEARTBEAT));
    Ok((
        [("cache-control", "no-store"), ("x-accel-buffering", "no")],
        stream,
    )
        .into_response())
}

/// The id of an event: its place, and before it the numbering that it belongs
/// to, once there was more than one.
fn id(numbering: &str, place: Place) -> String {
    if numbering.is_empty() {
        place.to_string()
    } else {
        format!("{numbering}-{place}")
    }
}

fn parse_id(text: &str) -> Option<(&str, Place)> {
    let (numbering, place) = text.split_once('-').unwrap_or(("", text));
    Some((numbering, place.parse().ok()?))
}

async fn not_active(lease: &Lease) {
    while lease.epoch().is_some() {
        sleep(LOOK).await;
    }
}

/// Gives a watcher its events until the run or the watcher ends, or the
/// watcher is too slow.
async fn follow(
    mut watch: Watch,
    numbering: String,
    give: mpsc::Sender<Result<Event, Infallible>>,
) {
    loop {
        let seen = tokio::select! {
            () = give.closed() => return,
            seen = watch.next() => seen,
        };
        let event = match seen {
            None => return,
            // The stream ends without `run_finished`: the client comes back.
            Some(Err(error)) => {
                tracing::warn!(?watch, %error, "a watcher is cut off");
                return;
            }
            Some(Ok(seen)) => {
                let event = Event::default().event(seen.frame.event());
                let event = match seen.place {
                    Some(place) => event.id(id(&numbering, place)),
                    None => event,
                };
                match event.json_data(&seen.frame) {
                    Ok(event) => event,
                    Err(error) => {
                        tracing::error!(%error, "a frame has no JSON form");
                        return;
                    }
                }
            }
        };
        if give.send_timeout(Ok(event), SLOW).await.is_err() {
            tracing::info!(?watch, "a watcher takes nothing and is cut off");
            return;
        }
    }
}
