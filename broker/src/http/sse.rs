//! `GET /v1/runs/{run}/events`: a run as it happens.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use muster_protocol::api::Frame;
use muster_protocol::problem::{Kind, Problem};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiPath, AppState};
use crate::authz::{Action, Caller};
use crate::metrics::{Counted, Why};
use crate::runs::frames::Place;
use crate::runs::{Following, Seen, WatchError};

/// Where a watcher that was cut off goes on.
const LAST_EVENT_ID: &str = "last-event-id";
/// A comment is sent when nothing else was for so long: a watcher that knows
/// another broker goes there when this one says nothing.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// The comment.
const NOTHING_NEW: Bytes = Bytes::from_static(b":\n\n");

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
        ("run" = String, Path, pattern = "^[0-9a-z]{4,26}$", description = "Its id, or a beginning of at least four characters"),
        ("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen"),
    ),
    responses(
        (status = 200, description = "Events", body = Frame, content_type = "text/event-stream"),
        (status = 400, description = "A Last-Event-ID that is none of this run", body = Problem),
        (status = 404, description = "There is no such run", body = Problem),
        (status = 409, description = "The prefix stands for several runs", body = Problem),
        (status = 429, description = "As many watch as may, or the caller asks too often", body = Problem),
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
    let place = watcher(&state)?;
    let engine = &state.nodes.engine;
    let run = engine.lookup(&run)?;
    let following = match after {
        None => engine.follow(run, None, render).await?,
        Some((of, place)) if of == numbering => engine.follow(run, Some(place), render).await?,
        // It was given before the store went back.
        Some(_) => engine.follow_again(run, render).await?,
    };
    let watcher = Watcher {
        following,
        shutdown: state.shutdown.clone(),
        lapses: state.lapses(),
        _place: place,
    };
    // Read only as fast as the watcher takes it: one that takes nothing costs
    // no more than its connection, which is cut off in the end.
    let stream = unfold(watcher, |mut watcher| async move {
        let text = watcher.next().await?;
        Some((Ok::<_, axum::Error>(text), watcher))
    });
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/event-stream"),
        (header::CACHE_CONTROL.as_str(), "no-store"),
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// A place among those who watch; goes when they do.
#[derive(Debug)]
pub(super) struct WatcherPlace {
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

/// A place among those who watch.
///
/// # Errors
/// A `rate-limited` problem when there is none.
pub(super) fn watcher(state: &AppState) -> Result<WatcherPlace, ApiError> {
    let most = state.config.limits.watchers;
    let permit = state.watching.clone().try_acquire_owned().map_err(|_| {
        state.metrics.refused(Why::Watchers);
        ApiError::new(Kind::RateLimited, format!("{most} watchers are connected"))
            .hint("try again in a while, or look with `muster runs show`")
    })?;
    Ok(WatcherPlace {
        _permit: permit,
        _counted: state.metrics.begin_watching(),
    })
}

struct Watcher {
    following: Following,
    shutdown: CancellationToken,
    /// How often this broker was not the active one: then what happens to the
    /// run happens at another one, perhaps.
    lapses: watch::Receiver<u64>,
    _place: WatcherPlace,
}

impl Watcher {
    /// What is sent next; `None` ends the stream. Without `run_finished` the
    /// client comes back.
    async fn next(&mut self) -> Option<Bytes> {
        let seen = tokio::select! {
            () = self.shutdown.cancelled() => return None,
            _ = self.lapses.changed() => return None,
            seen = timeout(HEARTBEAT, self.following.next()) => seen,
        };
        match seen {
            Err(_) => Some(NOTHING_NEW),
            Ok(None) => None,
            Ok(Some(Ok(text))) => Some(text),
            Ok(Some(Err(error))) => {
                tracing::warn!(following = ?self.following, %error, "a watcher is cut off");
                None
            }
        }
    }
}

/// An event as it is sent.
fn render(numbering: &str, seen: &Seen) -> Option<Bytes> {
    let mut text = format!("event: {}\n", seen.frame.event()).into_bytes();
    if let Some(place) = seen.place {
        text.extend_from_slice(format!("id: {}\n", id(numbering, place)).as_bytes());
    }
    text.extend_from_slice(b"data: ");
    // JSON has no line breaks.
    if let Err(error) = serde_json::to_writer(&mut text, &seen.frame) {
        tracing::error!(%error, "a frame has no JSON form");
        return None;
    }
    text.extend_from_slice(b"\n\n");
    Some(text.into())
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
