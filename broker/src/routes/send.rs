//! The ones who send events on: one task for each route.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_protocol::api::{ClusterEvent, RouteView};
use muster_protocol::names::RouteName;
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde_json::{Map, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::declared::Route;
use crate::events::feed::Cursor;
use crate::events::{Events, Once};
use crate::hooks::Held;
use crate::hooks::verify::standard_signature;
use crate::triggers::{Place, Places};

/// How often the place is stored while nothing is sent.
const STORE_EVERY: Duration = Duration::from_secs(1);
/// Pause before something inside the cluster is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// Pauses between tries: the first, each twice the one before, and the
/// longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// An answer that says that the request itself is wrong is believed after so
/// many tries.
const TRIES_WHEN_WRONG: u32 = 5;

/// Routes at work. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Routes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held: Held,
    events: Events,
    places: Places,
    numbering: String,
    state: Mutex<BTreeMap<RouteName, State>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    position: u64,
    sent: u64,
    given_up: u64,
    failing: Option<String>,
}

/// Why the other side has not taken an event.
#[derive(Debug)]
struct Failure {
    why: String,
    /// The request itself is wrong, as it says.
    wrong: bool,
    /// When it may be tried again, as it says.
    after: Option<Duration>,
}

impl Routes {
    /// Those that are declared, over those events.
    #[must_use]
    pub fn new(held: Held, events: Events, places: Places, numbering: String) -> Self {
        Self(Arc::new(Inner {
            held,
            events,
            places,
            numbering,
            state: Mutex::default(),
        }))
    }

    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<RouteView> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let declared = self.0.held.get();
        let views = declared.routes.iter().map(|(name, route)| {
            let state = state.get(name).cloned().unwrap_or_default();
            RouteView {
                name: name.clone(),
                kinds: route.kinds.iter().map(ToString::to_string).collect(),
                to: route.to(),
                format: route.format.as_str().to_owned(),
                position: state.position,
                sent: state.sent,
                given_up: state.given_up,
                failing: state.failing,
            }
        });
        views.collect()
    }

    fn note(&self, name: &RouteName, change: impl FnOnce(&mut State)) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(state.entry(name.clone()).or_default());
    }

    /// Sends until `cancel`; routes that are declared anew begin, those that
    /// are not any more end.
    pub async fn keep(self, cancel: CancellationToken) {
        let tasks = TaskTracker::new();
        let mut at_work: BTreeMap<RouteName, (Route, CancellationToken)> = BTreeMap::new();
        let mut changes = self.0.held.changes();
        loop {
            changes.borrow_and_update();
            let declared = self.0.held.get();
            at_work.retain(|name, (route, stop)| {
                let stays = declared.routes.get(name) == Some(route);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            for (name, route) in &declared.routes {
                if at_work.contains_key(name) {
                    continue;
                }
                let stop = cancel.child_token();
                at_work.insert(name.clone(), (route.clone(), stop.clone()));
                let (routes, name, route) = (self.clone(), name.clone(), route.clone());
                tasks.spawn(async move {
                    stop.run_until_cancelled(Box::pin(routes.work(&name, &route)))
                        .await;
                });
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                _ = changes.changed() => {}
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    fn key(name: &RouteName) -> String {
        format!("route.{name}")
    }

    async fn begin(&self, name: &RouteName) -> (Place, Cursor) {
        let inner = &self.0;
        loop {
            let read = (
                inner.places.get(&Self::key(name)).await,
                inner.events.last().await,
                inner.events.first().await,
            );
            let (Ok(place), Ok(last), Ok(first)) = read else {
                tracing::warn!(route = %name, "the place of a route cannot be read; trying again");
                sleep(AGAIN).await;
                continue;
            };
            let mut begin = place.clone().unwrap_or_default();
            // A new route begins with what happens from now on. So does one
            // whose events are numbered anew: what was put back was sent.
            let known = place.is_some_and(|p| p.numbering == inner.numbering && p.seq <= last);
            if !known {
                begin.seq = last;
            } else if begin.seq + 1 < first {
                let lost = first - 1 - begin.seq;
                let text =
                    format!("{lost} events went for want of room before route {name} sent them");
                inner
                    .events
                    .emit("alarm.events-lost", name.as_str(), text)
                    .await;
                begin.seq = first - 1;
            }
            begin.numbering.clone_from(&inner.numbering);
            self.store(name, &begin).await;
            let cursor = Cursor::new(&inner.events, begin.seq);
            return (begin, cursor);
        }
    }

    async fn store(&self, name: &RouteName, place: &Place) {
        loop {
            match self.0.places.set(&Self::key(name), place).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(route = %name, %error, "the place of a route cannot be stored yet");
                }
            }
            sleep(AGAIN).await;
        }
        self.note(name, |state| state.position = place.seq);
    }

    async fn work(&self, name: &RouteName, route: &Route) {
        let client = match client(route) {
            Ok(client) => client,
            Err(error) => {
                let text = format!("route {name} cannot send: {error}");
                self.note(name, |state| state.failing = Some(text.clone()));
                self.0
                    .events
                    .emit("alarm.route-failed", name.as_str(), text)
                    .await;
                return;
            }
        };
        let (mut place, mut cursor) = self.begin(name).await;
        let (mut stored, mut dirty) = (Instant::now(), false);
        loop {
            let wait = if dirty {
                STORE_EVERY.saturating_sub(stored.elapsed())
            } else {
                Duration::from_secs(3_600)
            };
            let events = match timeout(wait, cursor.next()).await {
                Ok(Ok(events)) => events,
                Ok(Err(error)) => {
                    tracing::warn!(route = %name, %error, "a route cannot read events now");
                    sleep(AGAIN).await;
                    continue;
                }
                Err(_) => {
                    self.store(name, &place).await;
                    (stored, dirty) = (Instant::now(), false);
                    continue;
                }
            };
            for event in events.iter().filter(|event| route.takes(event)) {
                // What it says of itself would go round and round.
                if event.kind == "alarm.route-failed" && event.subject == name.as_str() {
                    continue;
                }
                self.deliver(name, route, &client, event).await;
                place.seq = event.seq;
                self.store(name, &place).await;
                (stored, dirty) = (Instant::now(), false);
            }
            if place.seq != cursor.position() {
                place.seq = cursor.position();
                dirty = true;
            }
        }
    }

    /// Sends one event until it is taken, or given up.
    async fn deliver(
        &self,
        name: &RouteName,
        route: &Route,
        client: &reqwest::Client,
        event: &ClusterEvent,
    ) {
        let (mut pause, mut tries, began) = (FIRST_PAUSE, 0, Instant::now());
        loop {
            tries += 1;
            let failure = match attempt(client, route, event).await {
                Ok(()) => {
                    self.note(name, |state| {
                        state.sent += 1;
                        state.failing = None;
                    });
                    return;
                }
                Err(failure) => failure,
            };
            tracing::info!(route = %name, event = event.seq, tries, why = failure.why, "an event was not taken");
            self.note(name, |state| state.failing = Some(failure.why.clone()));
            let wait = failure.after.unwrap_or(pause).min(LONGEST_PAUSE);
            let hopeless = failure.wrong && tries >= TRIES_WHEN_WRONG;
            if hopeless || began.elapsed() + wait > route.give_up {
                self.give_up(name, event, tries, &failure.why).await;
                return;
            }
            sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn give_up(&self, name: &RouteName, event: &ClusterEvent, tries: u32, why: &str) {
        self.note(name, |state| {
            state.given_up += 1;
            state.failing = None;
        });
        let fields = Map::from_iter([
            ("route".to_owned(), json!(name)),
            ("event".to_owned(), json!(event.id)),
            ("event_seq".to_owned(), json!(event.seq)),
            ("event_kind".to_owned(), json!(event.kind)),
        ]);
        let once = Once {
            id: format!("route.{name}.{}.{}", self.0.numbering, event.seq),
            kind: "alarm.route-failed".to_owned(),
            subject: name.to_string(),
            text: format!(
                "event {} ({}) could not be sent on by route {name}, tried {tries} times: {why}",
                event.seq, event.kind
            ),
            fields,
        };
        self.0.events.once(once).await;
    }
}

fn client(route: &Route) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
        .timeout(route.timeout)
        .connect_timeout(route.timeout)
        // What is signed for one place is not for another one.
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(1);
    if let Some(pem) = &route.ca {
        let certs = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
            .map_err(|e| format!("`ca_file`: {e}"))?;
        builder = builder.tls_certs_only(certs);
    }
    builder.build().map_err(|e| e.to_string())
}

async fn attempt(
    client: &reqwest::Client,
    route: &Route,
    event: &ClusterEvent,
) -> Result<(), Failure> {
    let wrong = |why: String| Failure {
        why,
        wrong: true,
        after: None,
    };
    let (content_type, body) = route.format.body(event).map_err(wrong)?;
    let mut request = client
        .post(route.url().clone())
        .header(CONTENT_TYPE, content_type);
    // Ids are signed between dots, and are header values.
    let plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    let id = if plain(&event.id) && event.id.len() <= 64 {
        event.id.clone()
    } else {
        format!("seq-{}", event.seq)
    };
    let at = Timestamp::now().as_second().to_string();
    if let Some(secret) = &route.secret {
        let signature = standard_signature(secret.expose(), &id, &at, &body);
        request = request.header("webhook-signature", signature);
    }
    let sent = request
        .header("webhook-id", id)
        .header("webhook-timestamp", at)
        .body(body)
        .send()
        .await;
    let response = sent.map_err(|error| {
        // Without the URL, which can be a secret.
        let error = error.without_url();
        let mut why = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            why = inner.to_string();
            cause = inner.source();
        }
        Failure {
            why: printable(&why, 200),
            wrong: false,
            after: None,
        }
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let wrong = status.is_redirection()
        || (status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429));
    let more = if status.is_redirection() {
        ", and redirections are not followed"
    } else {
        ""
    };
    Err(Failure {
        why: format!("the other side answered {status}{more}"),
        wrong,
        after,
    })
}
