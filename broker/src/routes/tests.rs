//! Routes to a real HTTP server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use muster_protocol::api::Secret;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::events::Events;
use crate::hooks::Held;
use crate::hooks::verify::{Delivery, verify};
use crate::lease::Lease;
use crate::nats::testing::TestServer;
use crate::store::kv::{BucketConfig, ensure_bucket};
use crate::testing::wait_for;
use crate::triggers::Places;

use super::Routes;

/// What came, and what to answer.
#[derive(Clone, Default)]
struct Other(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    came: Vec<(HeaderMap, Vec<u8>)>,
    answers: Vec<u16>,
}

async fn take(State(other): State<Other>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let mut seen = other.0.lock().unwrap();
    seen.came.push((headers, body.to_vec()));
    let status = if seen.answers.is_empty() {
        200
    } else {
        seen.answers.remove(0)
    };
    StatusCode::from_u16(status).unwrap()
}

impl Other {
    async fn listen(&self) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Router::new()
            .route("/in", post(take))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        port
    }

    fn answer(&self, answers: &[u16]) {
        self.0.lock().unwrap().answers = answers.to_vec();
    }

    fn bodies(&self) -> Vec<Value> {
        let seen = self.0.lock().unwrap();
        let body = |(_, body): &(HeaderMap, Vec<u8>)| serde_json::from_slice(body).unwrap();
        seen.came.iter().map(body).collect()
    }
}

struct World {
    events: Events,
    places: Places,
    _server: TestServer,
}

impl World {
    async fn new() -> Self {
        crate::tls::install_provider();
        let server = TestServer::start().await;
        let js = crate::store::context(server.broker().await);
        let lease = Lease::fixed(1);
        let keep = Duration::from_secs(3_600);
        let events = Events::open(js.clone(), lease.clone(), keep).await.unwrap();
        tokio::spawn(events.clone().follow(CancellationToken::new()));
        let bucket = ensure_bucket(&js, BucketConfig::new("muster_places"));
        Self {
            events,
            places: Places::new(bucket.await.unwrap(), lease),
            _server: server,
        }
    }

    fn start(&self, text: &str) -> (Routes, CancellationToken) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hooks.toml");
        std::fs::write(&path, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
        let held = Held::open(Some(&path)).unwrap();
        let routes = Routes::new(
            held,
            self.events.clone(),
            self.places.clone(),
            String::new(),
        );
        let cancel = CancellationToken::new();
        tokio::spawn(routes.clone().keep(cancel.clone()));
        (routes, cancel)
    }

    async fn begun(&self, name: &str) {
        wait_for("the route has its place", async || {
            let place = self.places.get(&format!("route.{name}")).await.unwrap();
            place.map(drop)
        })
        .await;
    }
}

#[tokio::test]
async fn what_fits_is_sent_signed_in_order_and_tried_again() {
    let (world, other) = (World::new().await, Other::default());
    let port = other.listen().await;
    world
        .events
        .emit("node.down", "old", "before there was a route")
        .await;
    let (routes, cancel) = world.start(&format!(
        "[routes.r]\nkinds = [\"node.*\"]\nurl = \"http://127.0.0.1:{port}/in\"\nsecret = \"whsec_c2VjcmV0c2VjcmV0\"\n"
    ));
    world.begun("r").await;
    other.answer(&[500, 200]);
    world.events.emit("node.up", "web-01", "web-01 is up").await;
    world.events.emit("token.created", "t", "not for it").await;
    world
        .events
        .emit("node.down", "web-02", "web-02 is down")
        .await;
    wait_for("both are sent", async || {
        (routes.list()[0].sent == 2).then_some(())
    })
    .await;
    let bodies = other.bodies();
    let subjects: Vec<&str> = bodies
        .iter()
        .map(|b| b["subject"].as_str().unwrap())
        .collect();
    assert_eq!(subjects, ["web-01", "web-01", "web-02"]);
    {
        let seen = other.0.lock().unwrap();
        // It is what a webhook of muster's own takes.
        for (headers, body) in &seen.came {
            let delivery = Delivery {
                headers,
                query: None,
                body,
            };
            let now = muster_protocol::units::Timestamp::now();
            let secret = [Secret::new("whsec_c2VjcmV0c2VjcmV0")];
            let kind = muster_protocol::api::HookKind::Generic;
            verify(kind, &secret, Duration::from_secs(60), &delivery, now).unwrap();
        }
        // Twice the same event is twice the same id.
        assert_eq!(seen.came[0].0["webhook-id"], seen.came[1].0["webhook-id"]);
        assert_eq!(
            seen.came[0].0["content-type"],
            "application/cloudevents+json"
        );
    }
    // The next broker goes on behind what was sent.
    cancel.cancel();
    world
        .events
        .emit("node.up", "web-03", "while nobody sends")
        .await;
    let text = format!("[routes.r]\nkinds = [\"node.*\"]\nurl = \"http://127.0.0.1:{port}/in\"\n");
    let (routes, _cancel) = world.start(&text);
    wait_for("the rest is sent", async || {
        (routes.list()[0].sent == 1).then_some(())
    })
    .await;
    let last = other.bodies().pop().unwrap();
    assert_eq!(last["subject"], "web-03");
    assert_eq!(other.bodies().len(), 4);
}

#[tokio::test]
async fn what_is_never_taken_is_given_up_and_that_is_told() {
    let (world, other) = (World::new().await, Other::default());
    let port = other.listen().await;
    let (routes, _cancel) = world.start(&format!(
        "[routes.r]\nkinds = [\"*\"]\nurl = \"http://127.0.0.1:{port}/in?key=hidden\"\ngive_up = \"1s\"\n\
         template = '{{\"text\": {{{{ data.text | json }}}}, \"kind\": {{{{ type | json }}}}}}'\n"
    ));
    world.begun("r").await;
    other.answer(&[302, 302, 302]);
    world
        .events
        .emit("node.up", "web-01", "a \"quoted\" text")
        .await;
    wait_for("it is given up", async || {
        (routes.list()[0].given_up == 1).then_some(())
    })
    .await;
    assert_eq!(
        other.bodies()[0],
        json!({ "text": "a \"quoted\" text", "kind": "node.up" })
    );
    let alarm = wait_for("it is told", async || {
        let filter = crate::events::Filter {
            kinds: vec!["alarm.route-failed".parse().unwrap()],
            ..crate::events::Filter::default()
        };
        world.events.newest(&filter, 1).await.unwrap().pop()
    })
    .await;
    assert!(
        alarm.text.contains("redirections are not followed"),
        "{}",
        alarm.text
    );
    assert!(!alarm.text.contains("hidden"));
    // It goes on, and does not send what it said of itself.
    other.answer(&[]);
    world.events.emit("node.down", "web-02", "after it").await;
    wait_for("it goes on", async || {
        (routes.list()[0].sent == 1).then_some(())
    })
    .await;
    assert_eq!(other.bodies().pop().unwrap()["kind"], "node.down");
    assert!(!format!("{:?}", routes.list()).contains("hidden"));
}
