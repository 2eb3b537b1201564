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
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::declared::{Outgoing, Route, To};
use crate::events::follower::{Anew, Follower, How};
use crate::events::place::Places;
use crate::events::{Events, Once};
use crate::hooks::Held;
use crate::hooks::verify::standard_signature;

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
                kinds: route.wanted.kinds.iter().map(ToString::to_string).collect(),
                to: route.to(),
                format: route.format().to_owned(),
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

    /// Something was said in a channel because of a route.
    pub fn said(&self, name: &RouteName) {
        self.note(name, |state| state.sent += 1);
    }

    /// Everything up to that event was said that is to be said in channels.
    pub fn said_up_to(&self, position: u64) {
        for (name, route) in &self.0.held.get().routes {
            if matches!(route.to, To::Channels(_)) {
                self.note(name, |state| state.position = position);
            }
        }
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
                // What is said in channels, the outbox says.
                let To::Webhook(to) = &route.to else { continue };
                if at_work.contains_key(name) {
                    continue;
                }
                let stop = cancel.child_token();
                at_work.insert(name.clone(), (route.clone(), stop.clone()));
                let (routes, name, route) = (self.clone(), name.clone(), route.clone());
                let to = to.clone();
                tasks.spawn(async move {
                    stop.run_until_cancelled(Box::pin(routes.work(&name, &route, &to)))
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

    async fn work(&self, name: &RouteName, route: &Route, to: &Outgoing) {
        let client = match client(to) {
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
        let how = How {
            key: Self::key(name),
            name: name.to_string(),
            does: format!("route {name} sent them"),
            anew: Anew::Now,
        };
        let inner = &self.0;
        let follower = Follower::begin(&inner.events, &inner.places, &inner.numbering, how);
        let mut follower = follower.await;
        loop {
            self.note(name, |state| state.position = follower.place().seq);
            for event in follower.next().await.iter().filter(|e| route.takes(e)) {
                // What it says of itself would go round and round.
                if event.kind == "alarm.route-failed" && event.subject == name.as_str() {
                    continue;
                }
                self.deliver(name, to, &client, event).await;
                follower.done(event.seq).await;
                self.note(name, |state| state.position = event.seq);
            }
        }
    }

    /// Sends one event until it is taken, or given up.
    async fn deliver(
        &self,
        name: &RouteName,
        route: &Outgoing,
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

fn client(route: &Outgoing) -> Result<reqwest::Client, String> {
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
    route: &Outgoing,
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
