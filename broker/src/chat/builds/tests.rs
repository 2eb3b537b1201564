//! Builds with a real NATS server and a CI system of a few lines.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_nats::jetstream::Context;
use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use muster_protocol::api::{ChatPerson, ChatPlace, ClusterEvent, Tone};
use muster_protocol::units::Timestamp;
use serde_json::json;

use super::{Asked, BuildError, Builds, Request};
use crate::hooks::Held;
use crate::lease::Lease;
use crate::nats::testing::TestServer;
use crate::store::kv::{BucketConfig, ensure_bucket};

#[derive(Clone, Default)]
struct Ci(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    came: Vec<(HeaderMap, String)>,
    answer: Option<u16>,
}

async fn take(Shared(ci): Shared<Ci>, headers: HeaderMap, body: String) -> StatusCode {
    let mut seen = ci.0.lock().unwrap();
    seen.came.push((headers, body));
    StatusCode::from_u16(seen.answer.unwrap_or(201)).unwrap()
}

impl Ci {
    async fn listen(&self) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Router::new()
            .route("/job", post(take))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        port
    }

    fn answer(&self, status: u16) {
        self.0.lock().unwrap().answer = Some(status);
    }

    fn bodies(&self) -> Vec<String> {
        let seen = self.0.lock().unwrap();
        seen.came.iter().map(|(_, body)| body.clone()).collect()
    }
}

fn held(text: &str) -> Held {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hooks.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    Held::open(Some(&path)).unwrap()
}

fn hooks(port: u16) -> String {
    format!(
        "[builds.web]\nurl = \"http://127.0.0.1:{port}/job\"\ntoken = \"a-token-of-it\"\nuser = \"muster\"\n\
         format = \"form\"\nparams = {{ branch = \"main\", fast = \"no\" }}\nrepository = \"acme/web\"\nworkflow = \"CI\"\n\
         [builds.api]\nurl = \"http://127.0.0.1:{port}/job\"\nheaders = {{ Accept = \"application/json\" }}\n\
         template = '{{\"ref\": {{{{ params.branch | json }}}}, \"inputs\": {{\"id\": {{{{ id | json }}}}, \"by\": {{{{ by | json }}}}}}}}'\n\
         params = {{ branch = \"main\" }}\n\
         [builds.gone]\nurl = \"http://127.0.0.1:1/job\"\n"
    )
}

fn request(name: &str, line: &str, params: &[(&str, &str)]) -> Request {
    let params = params
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    Request {
        name: name.parse().unwrap(),
        params: params.collect(),
        by: "ana".parse().unwrap(),
        place: ChatPlace {
            network: "ops".parse().unwrap(),
            channel: Some("#dev".parse().unwrap()),
            person: Some(ChatPerson {
                nick: "ana".into(),
                account: Some("ana".into()),
                sight: None,
            }),
        },
        line: line.into(),
    }
}

fn told(kind: &str, number: &str, more: serde_json::Value) -> ClusterEvent {
    let mut event = ClusterEvent::own(number.into(), kind, "acme/web", String::new());
    let mut fields =
        json!({ "repository": "acme/web", "name": "CI", "number": number, "branch": "main" });
    let own = fields.as_object_mut().unwrap();
    own.extend(more.as_object().cloned().unwrap_or_default());
    event.fields = own.clone();
    event
}

async fn open(js: &Context, held: &Held) -> Builds {
    let bucket = ensure_bucket::<Asked>(js, BucketConfig::new("muster_chat"));
    Builds::open(bucket.await.unwrap(), Lease::fixed(1), held.clone())
        .await
        .unwrap()
}

async fn heard(builds: &Builds, event: &ClusterEvent) -> Vec<String> {
    let heard = builds.take(event).await;
    for one in &heard {
        assert_eq!(one.place.channel.as_ref().unwrap().as_str(), "#dev");
        builds.end(&one.id).await;
    }
    heard.into_iter().flat_map(|one| one.say.lines).collect()
}

#[tokio::test]
async fn a_build_is_asked_for_once_and_its_end_is_told() {
    crate::tls::install_provider();
    let server = TestServer::start().await;
    let js = crate::store::context(server.broker().await);
    let ci = Ci::default();
    let held = held(&hooks(ci.listen().await));
    let builds = open(&js, &held).await;
    let said = builds
        .start(request(
            "web",
            "l1",
            &[("branch", "main"), ("fast", "y & n")],
        ))
        .await
        .unwrap();
    assert_eq!(
        said.lines,
        ["build web (branch=main fast=y & n) is asked for; its end is told here"]
    );
    // The same line again, and at the next broker.
    let again = builds.start(request("web", "l1", &[])).await.unwrap();
    assert!(again.lines[0].contains("was asked for before"), "{again:?}");
    let builds = open(&js, &held).await;
    builds.start(request("web", "l1", &[])).await.unwrap();
    let bodies = ci.bodies();
    assert_eq!(bodies.len(), 1);
    assert!(
        bodies[0].starts_with("branch=main&fast=y+%26+n&muster_build="),
        "{bodies:?}"
    );
    assert_eq!(
        ci.0.lock().unwrap().came[0].0["authorization"],
        "Basic bXVzdGVyOmEtdG9rZW4tb2YtaXQ="
    );
    // One of another branch, and one that began before.
    let other = told(
        "build.finished",
        "810",
        json!({ "branch": "topic", "result": "success" }),
    );
    assert!(heard(&builds, &other).await.is_empty());
    let mut before = told("build.finished", "811", json!({ "result": "success" }));
    before.at = Timestamp::from_second(1_000_000_000).unwrap();
    assert!(heard(&builds, &before).await.is_empty());
    // It becomes number 812, and the end of that is its end, not of another.
    assert!(
        heard(&builds, &told("build.started", "812", json!({})))
            .await
            .is_empty()
    );
    let wrong = told("build.finished", "799", json!({ "result": "success" }));
    assert!(heard(&builds, &wrong).await.is_empty());
    let builds = open(&js, &held).await;
    let failed = told(
        "build.finished",
        "812",
        json!({ "result": "failure", "note": "api::prices" }),
    );
    assert_eq!(
        heard(&builds, &failed).await,
        ["web CI build 812 of main failed: api::prices"]
    );
    assert!(heard(&builds, &failed).await.is_empty());
    assert!(open(&js, &held).await.take(&failed).await.is_empty());
}

#[tokio::test]
async fn what_is_known_by_its_id_is_it_and_nothing_else() {
    crate::tls::install_provider();
    let server = TestServer::start().await;
    let js = crate::store::context(server.broker().await);
    let ci = Ci::default();
    let held = held(&hooks(ci.listen().await));
    let builds = open(&js, &held).await;
    builds.start(request("api", "l1", &[])).await.unwrap();
    builds
        .start(request("api", "l2", &[("branch", "x\"y")]))
        .await
        .unwrap();
    let bodies: Vec<serde_json::Value> = ci
        .bodies()
        .iter()
        .map(|body| serde_json::from_str(body).unwrap())
        .collect();
    assert_eq!(
        (&bodies[1]["ref"], &bodies[1]["inputs"]["by"]),
        (&json!("x\"y"), &json!("ana"))
    );
    let id = bodies[1]["inputs"]["id"].as_str().unwrap();
    // Nothing is declared by which it is known; its id is.
    let none = told("build.finished", "1", json!({ "result": "success" }));
    assert!(heard(&builds, &none).await.is_empty());
    let second = told(
        "build.finished",
        "2",
        json!({ "result": "success", "note": format!("by hand {id}") }),
    );
    assert_eq!(
        heard(&builds, &second).await,
        ["web CI build 2 of main is fine"]
    );
    let left: Vec<String> = builds.0.waiting.lock().await.keys().cloned().collect();
    assert_eq!(left, [bodies[0]["inputs"]["id"].as_str().unwrap()]);
}

#[tokio::test]
async fn what_is_refused_was_not_begun_and_what_is_not_known_is_not_tried_again() {
    crate::tls::install_provider();
    let server = TestServer::start().await;
    let js = crate::store::context(server.broker().await);
    let ci = Ci::default();
    let held = held(&hooks(ci.listen().await));
    let builds = open(&js, &held).await;
    let error = builds.start(request("wbe", "l0", &[])).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no build `wbe`; there are: api, gone, web"
    );
    let error = builds
        .start(request("web", "l0", &[("brunch", "x")]))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "build web: there is no parameter `brunch`; there are: branch, fast"
    );
    let error = builds
        .start(request("web", "l0", &[("fast", "a\r\nb")]))
        .await;
    assert!(matches!(error, Err(BuildError::Params { .. })));
    ci.answer(404);
    let error = builds.start(request("web", "l1", &[])).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "build web was not begun: the CI system answered 404 Not Found"
    );
    let error = builds.start(request("gone", "l2", &[])).await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    assert!(builds.0.waiting.lock().await.is_empty());
    ci.answer(502);
    let said = builds.start(request("web", "l3", &[])).await.unwrap();
    assert_eq!(said.tone, Tone::Warn);
    assert!(
        said.lines[0].contains("may have been asked for or not"),
        "{said:?}"
    );
    // A broker that ended in the middle of it.
    let mut left = builds
        .0
        .waiting
        .lock()
        .await
        .values()
        .next()
        .unwrap()
        .clone();
    left.state = super::State::Intent;
    builds
        .0
        .bucket
        .put(&super::key(&left.id), &left)
        .await
        .unwrap();
    let before = ci.bodies().len();
    let next = open(&js, &held).await;
    let orphans = next.orphans().await;
    assert!(
        orphans[0].say.lines[0].contains("the broker ended"),
        "{orphans:?}"
    );
    next.orphan_was_told(&orphans[0].id).await;
    assert!(open(&js, &held).await.orphans().await.is_empty());
    next.start(request("web", "l3", &[])).await.unwrap();
    assert_eq!(ci.bodies().len(), before);
    let all: BTreeMap<_, _> = next.list();
    assert!(!format!("{all:?}").contains("a-token"));
}
