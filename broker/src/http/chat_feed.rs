//! What is to be said in a chat network, for its bot.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use muster_protocol::api::Utterance;
use muster_protocol::names::NetworkName;
use muster_protocol::problem::{Kind, Problem};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sse::WatcherPlace;
use super::{ApiError, ApiQuery, AppState};
use crate::authz::{Action, Caller};
use crate::store::live::Live;

/// A comment is sent when nothing else was for so long.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// The comment.
const NOTHING_NEW: Bytes = Bytes::from_static(b":\n\n");

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(feed))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Listened {
    /// The network.
    #[param(value_type = String)]
    network: NetworkName,
}

/// Refuses whoever is not the one that listens in that network: what it says
/// or hears of another one counts for nothing.
pub(super) fn is_witness_of(caller: &Caller, network: &NetworkName) -> Result<(), ApiError> {
    let wanted = format!("irc:{network}");
    if caller.principal.as_str() == wanted {
        return Ok(());
    }
    let title = format!(
        "{} may not speak for network {network}: only {wanted} may",
        caller.principal
    );
    Err(ApiError::new(Kind::Denied, title).hint(format!(
        "`muster token create {wanted} --role witness` makes its token"
    )))
}

/// Follow what is to be said in a chat network
///
/// Server-sent events, each an `Utterance`: alarms, pushes, builds and ends of
/// runs that were routed there, and what somebody there asked for. `id` is a
/// place; with `Last-Event-ID`, what comes after it follows, without a gap or
/// a repetition, for two days. The first event, `here`, says from which place
/// on that is. When the store went back in time, places are numbered anew: an
/// `id` from before then leads to an event `renumbered`, and on from there.
///
/// Only the witness of that network, the principal `irc:NETWORK`, is answered.
#[utoipa::path(
    get, path = "/v1/chat/feed", tag = "chat",
    params(Listened, ("Last-Event-ID" = Option<String>, Header, description = "The last place that was seen")),
    security(("bearer" = [])),
    responses(
        (status = 200, description = "What is to be said", body = Utterance, content_type = "text/event-stream"),
        (status = 400, body = Problem), (status = 429, body = Problem),
    ),
    extensions(("x-authorisation" = json!("tell what was said in a chat network")))
)]
async fn feed(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    ApiQuery(listened): ApiQuery<Listened>,
) -> Result<Response, ApiError> {
    let network = listened.network;
    state.authorize(&caller, Action::Witness, ()).await?;
    is_witness_of(&caller, &network)?;
    state.active()?;
    let spoken = state.chat.spoken();
    let last = spoken.last().await.map_err(|e| ApiError::storage(&e))?;
    let (after, first) = match headers.get("last-event-id") {
        None => (last, First::Here),
        Some(value) => {
            let id = value.to_str().ok().and_then(|text| {
                let (of, place) = text.split_once('-').unwrap_or(("", text));
                Some((of, place.parse::<u64>().ok()?))
            });
            match id {
                None => {
                    let title = "this Last-Event-ID is no place in what is to be said";
                    return Err(ApiError::new(Kind::InvalidRequest, title)
                        .hint("leave it out to begin with what is said from now on"));
                }
                Some((of, place)) if of == spoken.numbering() && place <= last => {
                    (place, First::Here)
                }
                // Nothing is known of a place from before the store went back.
                Some((of, _)) if of != spoken.numbering() => {
                    (spoken.begins_after(), First::Renumbered)
                }
                Some(_) => (last, First::Renumbered),
            }
        }
    };
    let room = super::sse::watcher(&state)?;
    let live = spoken.listen(&network, after).await;
    let listener = Listener {
        live: live.map_err(|e| ApiError::storage(&e))?,
        first: Some((first, after)),
        numbering: spoken.numbering().to_owned(),
        shutdown: state.shutdown.clone(),
        lapses: state.lapses(),
        _room: room,
    };
    // Read only as fast as it is taken: one that takes nothing costs no more
    // than its connection, which is cut off in the end.
    let stream = unfold(listener, |mut listener| async move {
        let text = listener.next().await?;
        Some((Ok::<_, Infallible>(text), listener))
    });
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/event-stream"),
        (header::CACHE_CONTROL.as_str(), "no-store"),
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// What is said of the place where it begins.
#[derive(Clone, Copy, Debug)]
enum First {
    Here,
    Renumbered,
}

impl First {
    fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Renumbered => "renumbered",
        }
    }
}

/// Somebody who listens.
struct Listener {
    live: Live,
    first: Option<(First, u64)>,
    numbering: String,
    shutdown: CancellationToken,
    /// How often this broker was not the active one: then another one says
    /// what is to be said, perhaps.
    lapses: watch::Receiver<u64>,
    _room: WatcherPlace,
}

impl Listener {
    /// What is sent next; `None` ends the stream, and the client comes back
    /// to the place that it knows.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some((first, place)) = self.first.take() {
            let (name, id) = (first.name(), self.id(place));
            return Some(format!("event: {name}\nid: {id}\ndata: {{}}\n\n").into());
        }
        loop {
            let message = tokio::select! {
                () = self.shutdown.cancelled() => return None,
                _ = self.lapses.changed() => return None,
                message = timeout(HEARTBEAT, self.live.next()) => message,
            };
            match message {
                Err(_) => return Some(NOTHING_NEW),
                Ok(Ok(message)) => {
                    // Written by a newer broker, perhaps.
                    let Ok(utterance) = serde_json::from_slice::<Utterance>(&message.payload)
                    else {
                        tracing::warn!(seq = message.sequence, "an utterance cannot be read");
                        continue;
                    };
                    // JSON has no line breaks.
                    let json = serde_json::to_string(&utterance).ok()?;
                    let id = self.id(message.sequence);
                    return Some(format!("id: {id}\ndata: {json}\n\n").into());
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a bot is cut off, and comes back");
                    return None;
                }
            }
        }
    }

    fn id(&self, place: u64) -> String {
        if self.numbering.is_empty() {
            place.to_string()
        } else {
            format!("{}-{place}", self.numbering)
        }
    }
}
