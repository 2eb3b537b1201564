//! Runs, pings and their events through the whole broker: HTTP in front, real
//! NATS and nodes with their own credentials behind.

use std::sync::Arc;

use muster_protocol::run::Outcome;
use serde_json::{Value, json};

use crate::nats::testing::TestServer;
use crate::runs::tests::node::{Node, Script};
use crate::testing::{TestBroker, TestNode, config_for, state_for, wait_for};

mod chat;
mod machines;
mod policy;
mod stored;
mod waiting;

struct World {
    broker: TestBroker,
    nodes: Vec<Node>,
    // In this order: the broker ends before its server.
    _server: TestServer,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new(names: &[&str], confirm_above: u32) -> Self {
        Self::with(names, |config| config.confirm_above = confirm_above).await
    }

    async fn with(names: &[&str], set: impl FnOnce(&mut crate::config::Config)) -> Self {
        let (server, dir) = (TestServer::start().await, tempfile::tempdir().unwrap());
        state_for(&server, dir.path());
        let mut config = config_for(&server, dir.path());
        set(&mut config);
        config.retention.bytes = muster_protocol::units::Size::new(8 << 20);
        let mut broker = TestBroker::begin(config).await;
        broker.wait_active().await;
        let token = std::fs::read_to_string(dir.path().join("admin.token")).unwrap();
        token.trim().clone_into(&mut broker.token);
        let mut nodes = Vec::new();
        for name in names {
            let machine = TestNode::new();
            let body = json!({ "name": name, "roles": ["web"], "labels": { "zone": "gva2" } });
            let joined = machine.enroll(&broker, &broker.invite(body).await).await;
            let client = machine.connect(&joined).await.unwrap();
            let (serial, assignment) = (joined.credentials.serial, &joined.credentials.assignment);
            let script = Script::Quick(Outcome::Succeeded, format!("{name}\n").into_bytes());
            nodes.push(Node::over(client, serial, assignment, Arc::new(joined.keys), script).await);
        }
        let world = Self {
            broker,
            nodes,
            _server: server,
            _dir: dir,
        };
        for name in names {
            wait_for("the node is up", async || {
                let (_, node) = world
                    .broker
                    .call("GET", &format!("/v1/nodes/{name}"), None)
                    .await;
                (node["state"] == "up").then_some(())
            })
            .await;
        }
        world
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.broker.call("POST", path, Some(body)).await
    }

    async fn run(&self, more: Value) -> (u16, Value) {
        let mut body = json!({ "predicate": "role=web", "params": { "argv": ["true"] } });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.post("/v1/runs", body).await
    }

    async fn ended(&self, run: &Value) -> Value {
        let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
        wait_for("the run ends", async || {
            let (_, run) = self.broker.call("GET", &path, None).await;
            run["finished"].is_string().then_some(run)
        })
        .await
    }

    /// The events of a run as (id, JSON), to its end.
    async fn events(&self, run: &str, after: Option<&str>) -> Vec<(Option<String>, Value)> {
        let last = after
            .map(|id| format!("Last-Event-ID: {id}\r\n"))
            .unwrap_or_default();
        let ask = format!(
            "GET /v1/runs/{run}/events HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {}\r\n{last}\r\n",
            self.broker.token
        );
        let (status, head, body) = self.broker.raw(ask.as_bytes()).await;
        assert_eq!(status, 200, "{body}");
        assert!(head.contains("text/event-stream"), "{head}");
        body.split("\n\n")
            .filter(|event| event.contains("data:"))
            .map(|event| {
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .map(str::trim)
                };
                let data: Value = serde_json::from_str(field("data:").unwrap()).unwrap();
                assert_eq!(data["type"].as_str(), field("event:"));
                (field("id:").map(str::to_owned), data)
            })
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_asked_for_followed_shown_listed_and_retried() {
    let world = World::new(&["web-1", "web-2"], 20).await;
    *world.nodes[1].script.lock().unwrap() = Script::Quick(Outcome::Failed, Vec::new());
    let (status, run) = world.run(json!({})).await;
    assert_eq!(
        (status, run["title"].as_str(), run["nodes"].as_u64()),
        (200, Some("true"), Some(2)),
        "{run}"
    );
    let id = run["id"].as_str().unwrap();
    let events = world.events(run["short"].as_str().unwrap(), None).await;
    let kinds: Vec<&str> = events
        .iter()
        .map(|(_, e)| e["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        (kinds[0], kinds[1], *kinds.last().unwrap()),
        ("run_created", "batch_sent", "run_finished")
    );
    let last = &events.last().unwrap().1;
    assert_eq!(
        last["nodes"],
        json!({ "web-1": "succeeded", "web-2": "failed" })
    );
    assert_eq!(last["summary"], json!({ "succeeded": 1, "failed": 1 }));
    let (place, rest) = (events[1].0.as_deref(), &events[2..]);
    assert_eq!(world.events(id, place).await, rest);
    let end = events.last().unwrap().0.as_deref();
    assert_eq!(world.events(id, end).await, []);

    let shown = world.ended(&run).await;
    assert_eq!(
        (
            shown["state"].as_str(),
            shown["results"][1]["outcome"].as_str()
        ),
        (Some("failed"), Some("failed"))
    );
    let (status, again) = world
        .post(&format!("/v1/runs/{id}/retry"), json!({ "failed": true }))
        .await;
    assert_eq!(
        (status, again["retry_of"].as_str(), again["nodes"].as_u64()),
        (200, Some(id), Some(1)),
        "{again}"
    );
    world.ended(&again).await;
    assert_eq!(
        [world.nodes[0].executed(), world.nodes[1].executed()],
        [1, 2]
    );
    let (_, list) = world.broker.call("GET", "/v1/runs?limit=1", None).await;
    assert_eq!(list["items"][0]["id"], again["id"]);
    let next = list["next"].as_str().unwrap();
    let (_, list) = world
        .broker
        .call("GET", &format!("/v1/runs?limit=1&cursor={next}"), None)
        .await;
    assert_eq!(
        (list["items"][0]["id"].as_str(), list["next"].as_str()),
        (Some(id), None)
    );

    let (status, problem) = world
        .post(&format!("/v1/runs/{id}/cancel"), Value::Null)
        .await;
    assert_eq!((status, problem["kind"].as_str()), (409, Some("conflict")));
    for bad in ["zzzz", "abc", "%C3%A9", &"7".repeat(26)] {
        let (status, problem) = world
            .broker
            .call("GET", &format!("/v1/runs/{bad}"), None)
            .await;
        assert_eq!(
            (status, problem["kind"].as_str()),
            (404, Some("not-found")),
            "{bad}"
        );
    }
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn above_the_threshold_exactly_the_plan_that_was_shown_runs_once_and_for_its_principal() {
    let world = World::new(&["web-1", "web-2", "web-3"], 2).await;
    let (status, problem) = world.run(json!({})).await;
    assert_eq!(
        (status, problem["kind"].as_str()),
        (428, Some("confirmation-required")),
        "{problem}"
    );
    let plan = &problem["plan"];
    assert_eq!(plan["nodes"], json!(["web-1", "web-2", "web-3"]));
    assert_eq!(plan["labels"], json!({ "zone": { "gva2": 3 } }));
    assert_eq!(world.nodes[0].executed(), 0);
    let confirm = json!({ "confirm": { "plan": plan["id"] } });

    let made = json!({ "for": "eve", "role": "operator" });
    let (_, eve) = world.post("/v1/tokens", made).await;
    let body = json!({ "predicate": "role=web", "params": { "argv": ["true"] }, "confirm": confirm["confirm"] });
    let (status, problem) = world
        .broker
        .send("POST", "/v1/runs", eve["token"].as_str(), Some(body))
        .await;
    assert_eq!((status, problem["kind"].as_str()), (410, Some("plan-gone")));
    let mut other = confirm.clone();
    other["params"] = json!({ "argv": ["false"] });
    assert_eq!(world.run(other).await.0, 410);
    // The fleet changes; the plan does not.
    world
        .broker
        .call(
            "PATCH",
            "/v1/nodes/web-3",
            Some(json!({ "infrastructure": true })),
        )
        .await;
    let (status, run) = world.run(confirm.clone()).await;
    assert_eq!((status, run["nodes"].as_u64()), (200, Some(3)), "{run}");
    assert_eq!(world.run(confirm).await.0, 410);
    // Two nodes are not above the threshold; three confirmed ones need nobody.
    assert_eq!(world.run(json!({})).await.0, 200);
    assert_eq!(
        world
            .run(json!({ "include_infrastructure": true, "confirm": "yes" }))
            .await
            .0,
        200
    );
    let (_, reader) = world
        .post("/v1/tokens", json!({ "for": "rob", "role": "reader" }))
        .await;
    let body = json!({ "predicate": "*", "params": { "argv": ["true"] } });
    let (status, problem) = world
        .broker
        .send("POST", "/v1/runs", reader["token"].as_str(), Some(body))
        .await;
    assert_eq!((status, problem["kind"].as_str()), (403, Some("denied")));
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_a_key_runs_once_however_often_it_comes() {
    let world = World::new(&["web-1"], 20).await;
    let body = json!({ "predicate": "*", "params": { "argv": ["true"] } }).to_string();
    let ask = |body: &str| {
        format!(
            "POST /v1/runs HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k1\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            world.broker.token,
            body.len()
        )
    };
    let (one, two) = (ask(&body), ask(&body));
    let ((status, _, first), (other, _, second)) = tokio::join!(
        world.broker.raw(one.as_bytes()),
        world.broker.raw(two.as_bytes())
    );
    assert_eq!((status, other), (200, 200), "{first} {second}");
    let (first, second): (Value, Value) = (
        serde_json::from_str(&first).unwrap(),
        serde_json::from_str(&second).unwrap(),
    );
    assert_eq!(first["id"], second["id"]);
    world.ended(&first).await;
    let (_, _, third) = world.broker.raw(ask(&body).as_bytes()).await;
    assert_eq!(
        serde_json::from_str::<Value>(&third).unwrap()["id"],
        first["id"]
    );
    assert_eq!(world.nodes[0].executed(), 1);
    let (status, _, _) = world
        .broker
        .raw(ask(&body.replace("true", "false")).as_bytes())
        .await;
    assert_eq!(status, 409);
    // Nor for other nodes.
    let other = ask(&body.replace("\"*\"", "\"name=web-2\""));
    let (status, _, _) = world.broker.raw(other.as_bytes()).await;
    assert_eq!(status, 409);
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_outlives_a_store_that_is_full_and_still_works_once() {
    use crate::store::append::{Append, append};
    use crate::store::stream::purge_subject;

    let world = World::new(&["web-1"], 0).await;
    let (status, asked) = world.run(json!({})).await;
    assert_eq!(status, 428, "{asked}");
    let confirm = json!({ "confirm": { "plan": asked["plan"]["id"] } });

    // To the last byte.
    let js = crate::store::context(world._server.broker().await);
    let filler = muster_protocol::subject::output(muster_protocol::ids::RunId::random());
    let mut size = 900_000;
    while size > 0 {
        let message = Append::new(filler.as_str(), vec![b'x'; size]);
        if append(&js, crate::runs::STREAM, &message).await.is_err() {
            size /= 4;
        }
    }
    for _ in 0..2 {
        let (status, refused) = world.run(confirm.clone()).await;
        assert_eq!(status, 507, "{refused}");
        assert_eq!(refused["kind"], "no-room", "{refused}");
        let hint = refused["hint"].as_str().unwrap();
        assert!(hint.contains("muster status"), "{hint}");
    }
    let (_, list) = world.broker.call("GET", "/v1/runs", None).await;
    assert_eq!(list["items"], json!([]), "{list}");

    purge_subject(&js, crate::runs::STREAM, &filler)
        .await
        .unwrap();
    let run = wait_for("room", async || {
        let (status, run) = world.run(confirm.clone()).await;
        (status == 200).then_some(run)
    })
    .await;
    let run = world.ended(&run).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    let (status, again) = world.run(confirm).await;
    assert_eq!((status, &again["kind"]), (410, &json!("plan-gone")));
    assert_eq!(world.nodes[0].executed(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn predicates_are_resolved_explained_and_refused_with_the_place() {
    let world = World::new(&["web-1", "web-2"], 20).await;
    let (status, found) = world
        .post(
            "/v1/match",
            json!({ "predicate": "role = web and (zone=gva2)" }),
        )
        .await;
    assert_eq!(status, 200);
    assert_eq!(
        found,
        json!({ "predicate": "role=web and zone=gva2", "nodes": ["web-1", "web-2"] })
    );
    let ask = json!({ "predicate": "name=web-2", "explain": "web-1" });
    let (_, found) = world.post("/v1/match", ask).await;
    assert_eq!(
        (
            found["explanation"]["matches"].as_bool(),
            found["nodes"].as_array().map(Vec::len)
        ),
        (Some(false), Some(1))
    );
    let (status, problem) = world
        .post("/v1/match", json!({ "predicate": "not zoen=gva2" }))
        .await;
    assert_eq!(
        (status, problem["kind"].as_str()),
        (422, Some("unknown-name"))
    );
    assert_eq!(
        (&problem["span"], problem["source"].as_str()),
        (&json!([4, 8]), Some("not zoen=gva2"))
    );
    let (status, problem) = world.run(json!({ "predicate": "role=web and (" })).await;
    assert_eq!(
        (status, problem["kind"].as_str()),
        (400, Some("invalid-predicate"))
    );
    let (status, problem) = world.run(json!({ "predicate": "role=db" })).await;
    assert_eq!((status, problem["kind"].as_str()), (422, Some("no-match")));

    let (status, answer) = world.post("/v1/ping", json!({ "predicate": "*" })).await;
    assert_eq!(
        (
            status,
            answer["asked"].as_u64(),
            answer["silent"].as_array().map(Vec::len)
        ),
        (200, Some(2), Some(0))
    );
    let (_, now) = world.broker.call("GET", "/v1/status", None).await;
    assert_eq!(
        (now["nodes"]["up"].as_u64(), now["open_runs"].as_u64()),
        (Some(2), Some(0))
    );
    world.broker.stop().await;
}
