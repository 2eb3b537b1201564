//! What happened: lists, as it happens, and put in from outside.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use muster_protocol::api::{CloudEvent, ClusterEvent, EventStored, EventsStored, Page};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::once::once;
use super::sse::WatcherPlace;
use super::{ApiError, ApiJson, ApiQuery, AppState};
use crate::authz::{Action, Caller};
use crate::events::feed::Cursor;
use crate::events::glob::Glob;
use crate::events::put::{self, MAX_EVENT, PutError};
use crate::events::{Filter, Found, PageError};
use crate::store::error::StreamError;

/// Most events in an answer.
const MAX_LIMIT: u32 = 1_000;
/// Most kinds that are asked for at once.
const MAX_KINDS: usize = 16;
/// Most events in one request.
const MAX_BATCH: usize = 100;
/// Most bytes of a request with events.
const MAX_BODY: usize = 2 * MAX_EVENT;
/// Content type of several events.
const BATCH: &str = "application/cloudevents-batch+json";
/// Content type of one event.
const SINGLE: &str = "application/cloudevents+json";
/// A comment is sent when nothing else was for so long.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// The comment.
const NOTHING_NEW: Bytes = Bytes::from_static(b":\n\n");

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .routes(routes!(follow))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Range {
    /// The position after which to begin: `seq` of the last event that was
    /// seen, or `next` of the page before. Without it: the newest ones.
    #[serde(default)]
    #[param(format = "uint64")]
    after: Option<u64>,
    /// How many, 1 to 1000; 100 when absent.
    #[serde(default)]
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only these kinds: `alarm.*`, or several with commas between them.
    #[serde(default)]
    kind: Option<String>,
    /// Only about this: `web-*`.
    #[serde(default)]
    subject: Option<String>,
    /// Only those since then.
    #[serde(default)]
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Watched {
    /// The position after which to begin. Without it: what happens from now
    /// on.
    #[serde(default)]
    #[param(format = "uint64")]
    after: Option<u64>,
    /// Only these kinds: `alarm.*`, or several with commas between them.
    #[serde(default)]
    kind: Option<String>,
    /// Only about this: `web-*`.
    #[serde(default)]
    subject: Option<String>,
}

fn glob(name: &str, text: &str) -> Result<Glob, ApiError> {
    text.trim()
        .parse()
        .map_err(|e| ApiError::new(Kind::InvalidRequest, format!("`{name}`: {e}")))
}

fn filter(
    kind: Option<&str>,
    subject: Option<&str>,
    since: Option<Timestamp>,
) -> Result<Filter, ApiError> {
    let kinds: Vec<Glob> = kind
        .map(|kinds| kinds.split(',').map(|k| glob("kind", k)).collect())
        .transpose()?
        .unwrap_or_default();
    if kinds.len() > MAX_KINDS {
        let title = format!("at most {MAX_KINDS} kinds can be asked for at once");
        return Err(ApiError::new(Kind::InvalidRequest, title));
    }
    Ok(Filter {
        kinds,
        subject: subject.map(|s| glob("subject", s)).transpose()?,
        since,
    })
}

impl From<PageError> for ApiError {
    fn from(error: PageError) -> Self {
        match error {
            PageError::Read(error) => Self::storage(&error),
            PageError::Beyond { .. } => Self::new(Kind::Conflict, error.to_string())
                .hint("leave `after` out for the newest ones; `after=0` begins with the oldest"),
        }
    }
}

/// Events, oldest first. `next` goes into `after`. With a filter, a page can
/// be short, or empty, and there is more all the same: `next` says so.
#[utoipa::path(
    get, path = "/v1/events", tag = "events", params(Range), security(("bearer" = [])),
    responses((status = 200, body = Page<CloudEvent>), (status = 400, body = Problem),
        (status = 409, description = "`after` is beyond the last event: the store went back in time", body = Problem)),
    extensions(("x-authorisation" = json!("read events")))
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    ApiQuery(range): ApiQuery<Range>,
) -> Result<ApiJson<Page<ClusterEvent>>, ApiError> {
    state.authorize(&caller, Action::ReadEvents, ()).await?;
    let limit = range.limit.unwrap_or(100);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::new(
            Kind::InvalidRequest,
            format!("`limit` must be 1 to {MAX_LIMIT}"),
        ));
    }
    let limit = limit as usize;
    let filter = filter(range.kind.as_deref(), range.subject.as_deref(), range.since)?;
    let mut found = match range.after {
        // One more says whether there are more.
        Some(after) => state.events.list(after, &filter, limit + 1).await?,
        None => Found {
            events: state
                .events
                .newest(&filter, limit)
                .await
                .map_err(PageError::from)?,
            next: None,
        },
    };
    if found.events.len() > limit {
        found.events.truncate(limit);
        found.next = found.events.last().map(|event| event.seq);
    }
    let next = found.next;
    Ok(ApiJson(Page {
        items: found.events,
        next: next.map(|next| next.to_string()),
    }))
}

/// Put events in
///
/// Events as `CloudEvents` 1.0, in structured mode: one
/// (`application/cloudevents+json`) or up to 100
/// (`application/cloudevents-batch+json`). An event whose `source` and `id`
/// came before is not stored again. They go into the one stream of events,
/// with the name of who put them in; kinds of muster's own are refused, and a
/// trigger takes them only when its `when` names their `principal`.
#[utoipa::path(
    post, path = "/v1/events", tag = "events", security(("bearer" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "Names this request; at most 200 bytes")),
    request_body(content((CloudEvent = "application/cloudevents+json"), (Vec<CloudEvent> = "application/cloudevents-batch+json"))),
    responses((status = 200, body = EventsStored), (status = 400, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem)),
    extensions(("x-authorisation" = json!("put events in")))
)]
async fn put(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<ApiJson<EventsStored>, ApiError> {
    let body = body.map_err(|rejection| {
        let kind = if rejection.status().as_u16() == 413 {
            Kind::TooLarge
        } else {
            Kind::InvalidRequest
        };
        ApiError::new(
            kind,
            format!("at most {MAX_BODY} bytes of events are taken"),
        )
    })?;
    let events = state
        .authorize(&caller, Action::PutEvents, ())
        .await
        .and_then(|_| parse(&headers, &body))?;
    for event in &events {
        put::check(event)?;
    }
    state.active()?;
    // As it was sent: an event that does not say its time has another one each
    // time it is read.
    let request: Value = serde_json::from_slice(&body).map_err(|e| ApiError::internal(&e))?;
    let (principal, stream) = (caller.principal.clone(), state.events.clone());
    let work = async move {
        // All at once: the store takes them together.
        let storing = events.into_iter().map(|event| {
            let (id, events) = (event.id.clone(), stream.clone());
            let event = ClusterEvent {
                principal: Some(principal.clone()),
                hook: None,
                delivery: None,
                digest: None,
                seq: 0,
                ..event
            };
            async move {
                let put = Box::pin(events.put(event)).await?;
                Ok::<_, PutError>(EventStored {
                    id,
                    seq: put.seq,
                    duplicate: put.duplicate,
                })
            }
        });
        let events = futures_util::future::try_join_all(storing).await?;
        Ok::<_, PutError>(EventsStored { events })
    };
    once(&state, &caller, "events", &headers, &request, work)
        .await
        .map(ApiJson)
}

fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Vec<ClusterEvent>, ApiError> {
    let content = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(|text| {
            text.split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase()
        });
    let wrong = |why: &dyn std::fmt::Display| {
        ApiError::new(Kind::InvalidRequest, "the events cannot be read")
            .detail(printable(&why.to_string(), 300))
            .hint("an event is a CloudEvent 1.0: specversion, id, source, type, and data")
    };
    let several = match content.as_deref() {
        Some(SINGLE) => false,
        Some(BATCH) => true,
        Some("application/json") => {
            // The first sign says which.
            body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[')
        }
        _ => {
            return Err(ApiError::new(
                Kind::InvalidRequest,
                "the body must be CloudEvents as JSON",
            )
            .hint(format!(
                "send it with `Content-Type: {SINGLE}`, or `{BATCH}`"
            ))
            .status(415));
        }
    };
    let values: Vec<Value> = if several {
        serde_json::from_slice(body).map_err(|e| wrong(&e))?
    } else {
        vec![serde_json::from_slice(body).map_err(|e| wrong(&e))?]
    };
    if values.is_empty() || values.len() > MAX_BATCH {
        return Err(wrong(&format!("a request holds 1 to {MAX_BATCH} events")));
    }
    values
        .into_iter()
        .map(|value| {
            // What was stored before there were CloudEvents is not taken.
            if value.get("specversion").is_none() {
                return Err(wrong(&"`specversion` is missing"));
            }
            serde_json::from_value(value).map_err(|e| wrong(&e))
        })
        .collect()
}

impl From<PutError> for ApiError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Attribute(_)
            | PutError::Extensions
            | PutError::OwnSource
            | PutError::OwnKind(_) => Self::new(Kind::InvalidRequest, error.to_string()),
            PutError::TooLarge(_) => Self::new(Kind::TooLarge, error.to_string()),
            PutError::NotReady => {
                Self::new(Kind::Unavailable, error.to_string()).hint("try again in a few seconds")
            }
            PutError::Store(StreamError::Full { .. }) => Self::new(
                Kind::NoRoom,
                "there is no room for events in the store; nothing was done",
            ),
            PutError::Store(error) => Self::storage(&error),
        }
    }
}

/// Follow what happens
///
/// Server-sent events, each a `CloudEvent`. `id` is a place in the stream;
/// with `Last-Event-ID`, the events after it follow, without a gap or a
/// repetition. When the store went back in time, places are numbered anew: an
/// `id` from before then leads to an event `renumbered`, and on from there.
#[utoipa::path(
    get, path = "/v1/events/watch", tag = "events",
    params(Watched, ("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen")),
    security(("bearer" = [])),
    responses(
        (status = 200, description = "Events", body = CloudEvent, content_type = "text/event-stream"),
        (status = 400, body = Problem), (status = 409, body = Problem), (status = 429, body = Problem),
    ),
    extensions(("x-authorisation" = json!("read events")))
)]
async fn follow(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    ApiQuery(watched): ApiQuery<Watched>,
) -> Result<Response, ApiError> {
    state.authorize(&caller, Action::ReadEvents, ()).await?;
    let filter = filter(watched.kind.as_deref(), watched.subject.as_deref(), None)?;
    let numbering = state.past.numbering();
    let (after, renumbered) = match headers.get("last-event-id") {
        None => (watched.after, false),
        Some(value) => {
            let id = value.to_str().ok().and_then(|text| {
                let (of, place) = text.split_once('-').unwrap_or(("", text));
                Some((of, place.parse::<u64>().ok()?))
            });
            let (of, place) = id.ok_or_else(|| {
                ApiError::new(
                    Kind::InvalidRequest,
                    "this Last-Event-ID is not the id of an event",
                )
                .hint("leave it out to begin with what happens from now on")
            })?;
            // Nothing is known of a place from before the store went back.
            (Some(place).filter(|_| of == numbering), of != numbering)
        }
    };
    let room = super::sse::watcher(&state)?;
    let now = state.events.feed().position();
    let after = after.unwrap_or(now);
    if after > now {
        let last = state.events.last().await.map_err(PageError::from)?;
        if after > last {
            return Err(PageError::Beyond { after, last }.into());
        }
    }
    let watcher = Watcher {
        cursor: Cursor::new(&state.events, after),
        ready: VecDeque::new(),
        filter,
        renumbered: renumbered.then_some(after),
        numbering,
        shutdown: state.shutdown.clone(),
        lapses: state.lapses(),
        _room: room,
    };
    // Read only as fast as the watcher takes it: one that takes nothing costs
    // no more than its connection, which is cut off in the end.
    let stream = unfold(watcher, |mut watcher| async move {
        let text = watcher.next().await?;
        Some((Ok::<_, Infallible>(text), watcher))
    });
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/event-stream"),
        (header::CACHE_CONTROL.as_str(), "no-store"),
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// Somebody who watches.
struct Watcher {
    cursor: Cursor,
    /// Read, and not yet looked at.
    ready: VecDeque<Arc<ClusterEvent>>,
    filter: Filter,
    /// The place to go on from, when the one that was named counts no more
    /// and nobody has said so yet.
    renumbered: Option<u64>,
    numbering: String,
    shutdown: CancellationToken,
    /// How often this broker was not the active one: then what happens is
    /// told by another one, perhaps.
    lapses: watch::Receiver<u64>,
    _room: WatcherPlace,
}

impl Watcher {
    /// What is sent next; `None` ends the stream, and the client comes back
    /// to the place that it knows.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(place) = self.renumbered.take() {
            let id = id(&self.numbering, place);
            return Some(format!("event: renumbered\nid: {id}\ndata: {{}}\n\n").into());
        }
        let silent_until = Instant::now() + HEARTBEAT;
        loop {
            while let Some(event) = self.ready.pop_front() {
                if self.filter.takes(&event) {
                    return Some(render(&self.numbering, &event));
                }
            }
            let events = tokio::select! {
                () = self.shutdown.cancelled() => return None,
                _ = self.lapses.changed() => return None,
                events = timeout_at(silent_until, self.cursor.next()) => events,
            };
            match events {
                Err(_) => return Some(NOTHING_NEW),
                // Much that is not for this watcher is no sign of life.
                Ok(Ok(events))
                    if Instant::now() >= silent_until
                        && !events.iter().any(|e| self.filter.takes(e)) =>
                {
                    return Some(NOTHING_NEW);
                }
                Ok(Ok(events)) => self.ready = events.into(),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a watcher of events is cut off");
                    return None;
                }
            }
        }
    }
}

/// An event as it is sent.
fn render(numbering: &str, event: &ClusterEvent) -> Bytes {
    let id = id(numbering, event.seq);
    // JSON has no line breaks, and each of its parts has a JSON form: it was
    // read from one.
    let json = serde_json::to_string(event).unwrap_or_else(|_| "{}".to_owned());
    format!("id: {id}\ndata: {json}\n\n").into()
}

fn id(numbering: &str, seq: u64) -> String {
    if numbering.is_empty() {
        seq.to_string()
    } else {
        format!("{numbering}-{seq}")
    }
}
