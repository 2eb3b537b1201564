//! Whole brokers on a real server whose directory is replaced.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::nats::testing::TestServer;
use crate::testing::{TestBroker, TestNode, state_for, wait_for};

/// Everything that people were told, before and after the copy.
struct Told {
    token: Value,
    node: TestNode,
    removed: (TestNode, u32),
    spent: String,
    withdrawn: String,
    kept: String,
    nodes: Value,
    tokens: Value,
    serial: u64,
}

async fn token(broker: &TestBroker, who: &str) -> Value {
    let request = json!({ "for": who, "role": "reader" });
    let (status, made) = broker.call("POST", "/v1/tokens", Some(request)).await;
    assert_eq!(status, 201, "{made}");
    made
}

async fn whoami(broker: &TestBroker, token: &Value) -> u16 {
    let secret = token["token"].as_str();
    broker.send("GET", "/v1/whoami", secret, None).await.0
}

async fn events(broker: &TestBroker, kind: &str) -> Vec<Value> {
    let (_, all) = broker.call("GET", "/v1/events?limit=500", None).await;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|e| e["type"] == kind).collect()
}

async fn alarms(broker: &TestBroker) -> Vec<String> {
    let found = events(broker, "alarm.store-went-back").await;
    let text = |event: &Value| {
        event["data"]["text"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    found.iter().map(text).collect()
}

/// A cluster with a past; its store is copied, and life goes on.
async fn live(server: &mut TestServer, broker: &TestBroker, copy: &Path) -> Told {
    let node = TestNode::new();
    let invite = broker
        .invite(json!({ "name": "web-01", "roles": ["web"] }))
        .await;
    node.enroll(broker, &invite).await;
    let removed = TestNode::new();
    let invite = broker.invite(json!({ "name": "web-02" })).await;
    let serial = removed.enroll(broker, &invite).await.credentials.serial.0;
    let revoked = token(broker, "old").await;
    let spent = broker.invite(json!({ "name": "web-03" })).await;
    let withdrawn = broker.invite(json!({ "name": "web-09" })).await;

    server.copy_store(copy).await;
    broker.wait_active().await;
    wait_for("NATS to be back", async || {
        let (_, status) = broker.call("GET", "/v1/status", None).await;
        (status["nats_connected"] == true).then_some(())
    })
    .await;

    let change = json!({ "add_roles": ["db"], "set_labels": { "rack": "r7" } });
    let (status, said) = broker.call("PATCH", "/v1/nodes/web-01", Some(change)).await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(broker.call("DELETE", "/v1/nodes/web-02", None).await.0, 204);
    let id = revoked["id"].as_str().or(revoked["view"]["id"].as_str());
    let id = id.expect("an id").to_owned();
    let gone = broker
        .call("DELETE", &format!("/v1/tokens/{id}"), None)
        .await;
    assert_eq!(gone.0, 204, "{gone:?}");
    let made = token(broker, "new").await;
    TestNode::new().enroll(broker, &spent).await;
    let (_, invites) = broker.call("GET", "/v1/invites", None).await;
    let of = |name: &str| {
        let all = invites["items"].as_array().unwrap();
        let found = all.iter().find(|i| i["name"] == name).unwrap();
        found["id"].as_str().unwrap().to_owned()
    };
    let path = format!("/v1/invites/{}", of("web-09"));
    assert_eq!(broker.call("DELETE", &path, None).await.0, 204);
    let kept = broker.invite(json!({ "name": "web-05" })).await;
    let other = TestNode::new();
    let invite = broker.invite(json!({ "name": "web-04" })).await;
    let last = other.enroll(broker, &invite).await.credentials.serial.0;
    Told {
        token: made,
        node,
        removed: (removed, serial),
        spent,
        withdrawn,
        kept,
        nodes: nodes(broker).await,
        tokens: broker.call("GET", "/v1/tokens", None).await.1,
        serial: last.into(),
    }
}

/// The nodes as operators made them.
async fn nodes(broker: &TestBroker) -> Value {
    let (_, all) = broker.call("GET", "/v1/nodes?limit=500", None).await;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    let some = |node: &Value| json!({ "name": node["name"], "serial": node["serial"], "roles": node["roles"], "labels": node["labels"] });
    all.iter().map(some).collect()
}

async fn everything_is_there(broker: &TestBroker, told: &Told) {
    assert_eq!(nodes(broker).await, told.nodes);
    assert_eq!(broker.call("GET", "/v1/tokens", None).await.1, told.tokens);
    assert_eq!(whoami(broker, &told.token).await, 200);
    let (status, said) = told.removed.0.try_refresh(broker, told.removed.1).await;
    assert!(status >= 400, "the removed node is out: {said}");
    for invite in [&told.spent, &told.withdrawn] {
        let (status, said) = TestNode::new().try_enroll(broker, invite).await;
        assert!(status >= 400, "{said}");
    }
    told.node.refresh(broker, 1).await;
}

/// The next node gets a serial that nobody had.
async fn next_serial(broker: &TestBroker, told: &Told) -> u64 {
    let joined = TestNode::new().enroll(broker, &told.kept).await;
    let serial = u64::from(joined.credentials.serial.0);
    assert!(serial > told.serial, "{serial} {}", told.serial);
    serial
}

/// Waits until the twin of a state directory has what the store has.
async fn caught_up(server: &TestServer, state: &Path) {
    let js = crate::store::context(server.broker().await);
    wait_for("the twin to have everything", async || {
        let db = db::Db::open(&state.join(DIR).join(FILE)).ok()?;
        for followed in ALL {
            // Output and leases are not held.
            if matches!(followed.stream, RUNS | CLUSTER) {
                continue;
            }
            let stream = js.get_stream(followed.stream).await.ok()?;
            let row = db.stream(followed.stream).ok()??;
            if row.last < stream.cached_info().state.last_sequence {
                return None;
            }
        }
        Some(())
    })
    .await;
}

async fn wait_alarm(broker: &TestBroker, times: usize) -> String {
    wait_for("it is said that the store went back", async || {
        let mut alarms = alarms(broker).await;
        (alarms.len() >= times).then(|| alarms.pop())?
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn yesterdays_store_under_a_running_broker_is_made_whole_again() {
    let (mut server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, &tmp.path().join("state"));
    let broker = TestBroker::start(&server, &tmp.path().join("state")).await;
    let copy = tmp.path().join("copy");
    let told = live(&mut server, &broker, &copy).await;

    caught_up(&server, &tmp.path().join("state")).await;
    server.put_store(Some(&copy)).await;
    let text = wait_alarm(&broker, 1).await;
    assert!(
        text.contains("Put back: ") && text.contains("changes of nodes"),
        "{text}"
    );
    assert!(text.contains("Nothing that was known is gone."), "{text}");
    everything_is_there(&broker, &told).await;
    let (_, status) = broker.call("GET", "/v1/status", None).await;
    assert!(
        status["findings"].to_string().contains("went back"),
        "{status}"
    );
    // The events of the lost time are there, each once.
    for kind in ["node.removed", "token.revoked", "node.changed"] {
        assert_eq!(events(&broker, kind).await.len(), 1, "{kind}");
    }

    // A second time, with nothing in between, and after a restart: nothing.
    server.kill_and_restart().await;
    broker.wait_active().await;
    broker.stop().await;
    let broker = TestBroker::start(&server, &tmp.path().join("state")).await;
    assert_eq!(alarms(&broker).await.len(), 1);
    everything_is_there(&broker, &told).await;

    // And the very same copy once more.
    server.put_store(Some(&copy)).await;
    wait_alarm(&broker, 2).await;
    everything_is_there(&broker, &told).await;
    next_serial(&broker, &told).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_broker_finds_yesterdays_store_at_its_start() {
    let (mut server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let state = tmp.path().join("state");
    state_for(&server, &state);
    let broker = TestBroker::start(&server, &state).await;
    let copy = tmp.path().join("copy");
    let told = live(&mut server, &broker, &copy).await;
    // As hard as it can be: the broker is gone with the last answer.
    broker.crash().await;
    server.put_store(Some(&copy)).await;
    let broker = TestBroker::start(&server, &state).await;
    assert_eq!(alarms(&broker).await.len(), 1);
    everything_is_there(&broker, &told).await;
    next_serial(&broker, &told).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_is_filled_again() {
    let (mut server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let state = tmp.path().join("state");
    state_for(&server, &state);
    let broker = TestBroker::start(&server, &state).await;
    let told = live(&mut server, &broker, &tmp.path().join("copy")).await;
    let admin = broker.token.clone();
    caught_up(&server, &state).await;
    server.put_store(None).await;
    let text = wait_alarm(&broker, 1).await;
    assert!(text.contains("the store is empty"), "{text}");
    assert_eq!(broker.token, admin);
    everything_is_there(&broker, &told).await;
    assert_eq!(events(&broker, "node.enrolled").await.len(), 4);
    broker.stop().await;
    server.put_store(None).await;
    let broker = TestBroker::start(&server, &state).await;
    assert_eq!(broker.token, admin, "no second admin token");
    assert_eq!(alarms(&broker).await.len(), 2);
    everything_is_there(&broker, &told).await;
    next_serial(&broker, &told).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_twin_it_is_said_what_is_gone_and_nothing_is_given_twice() {
    let (mut server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let state = tmp.path().join("state");
    state_for(&server, &state);
    let broker = TestBroker::start(&server, &state).await;
    let copy = tmp.path().join("copy");
    let told = live(&mut server, &broker, &copy).await;
    let (_, before) = broker.call("GET", "/v1/status", None).await;
    broker.stop().await;
    std::fs::remove_dir_all(state.join(DIR)).unwrap();
    server.put_store(Some(&copy)).await;
    let broker = TestBroker::start(&server, &state).await;
    let text = wait_alarm(&broker, 1).await;
    assert!(
        text.contains("no copy") && text.contains("is back"),
        "{text}"
    );
    let (_, after) = broker.call("GET", "/v1/status", None).await;
    assert!(after["epoch"].as_u64() > before["epoch"].as_u64());
    // What nobody has is as it was.
    assert_eq!(whoami(&broker, &told.token).await, 401);
    // Credentials from the lost time are void, and revisions are above any.
    let joined = told.node.refresh(&broker, 1).await;
    let revision = joined.credentials.assignment.revision;
    assert!(revision > 1_000_000, "{revision}");
    let again = broker.invite(json!({ "name": "web-07" })).await;
    let serial = TestNode::new()
        .enroll(&broker, &again)
        .await
        .credentials
        .serial;
    assert!(u64::from(serial.0) > told.serial + 1_000, "{serial}");
    // Once.
    broker.stop().await;
    let broker = TestBroker::start(&server, &state).await;
    assert_eq!(alarms(&broker).await.len(), 1);
    let joined = told.node.refresh(&broker, 1).await;
    assert_eq!(joined.credentials.assignment.revision, revision);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_broker_puts_back_what_its_own_twin_has_seen() {
    let (mut server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let (one, two) = (tmp.path().join("one"), tmp.path().join("two"));
    state_for(&server, &one);
    let first = TestBroker::start(&server, &one).await;
    let keys = StateDir::open(&two).unwrap().keys();
    for entry in std::fs::read_dir(one.join("keys")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), keys.join(entry.file_name())).unwrap();
    }
    let mut second = TestBroker::begin(crate::testing::config_for(&server, &two)).await;
    second.token = first.token.clone();
    let copy = tmp.path().join("copy");
    let told = live(&mut server, &first, &copy).await;
    let name = told.token["token"].as_str().unwrap().to_owned();
    // The standby's twin follows; the first broker is never seen again.
    caught_up(&server, &two).await;
    first.stop().await;
    server.put_store(Some(&copy)).await;
    second.wait_active().await;
    wait_alarm(&second, 1).await;
    everything_is_there(&second, &told).await;
    assert_eq!(
        second.send("GET", "/v1/whoami", Some(&name), None).await.0,
        200
    );
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_has_removed_is_not_put_back() {
    let (mut server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let state = tmp.path().join("state");
    state_for(&server, &state);
    let broker = TestBroker::start(&server, &state).await;
    let copy = tmp.path().join("copy");
    live(&mut server, &broker, &copy).await;
    let mut runs = Vec::new();
    for _ in 0..2 {
        let body = json!({
            "predicate": "name=web-01", "scenario": "command",
            "params": { "argv": ["true"] }, "confirm": "yes", "deliver_within": "1s",
        });
        let (status, run) = broker.call("POST", "/v1/runs", Some(body)).await;
        assert_eq!(status, 200, "{run}");
        let id = run["id"].as_str().expect("an id").to_owned();
        let path = format!("/v1/runs/{id}");
        wait_for("the run to end", async || {
            let (_, run) = broker.call("GET", &path, None).await;
            (run["state"] == "failed").then_some(())
        })
        .await;
        runs.push((id, path));
    }
    // As the store is while retention removes the first of them.
    let js = crate::store::context(server.broker().await);
    let record = json!({ "removing": [runs[0].0] }).to_string();
    let bucket = js.get_key_value("muster_cluster").await.unwrap();
    bucket
        .put(crate::retention::KEY, record.into())
        .await
        .unwrap();
    wait_for("the twin to have the record and both runs", async || {
        let db = db::Db::open(&state.join(DIR).join(FILE)).ok()?;
        let key = format!("$KV.{CLUSTER}.{}", crate::retention::KEY).replace("KV_", "");
        let known = |stream: &str, subject: &str| {
            db.known(stream, subject)
                .is_ok_and(|(held, _)| !held.is_empty())
        };
        let runs = runs
            .iter()
            .all(|(id, _)| known(RUNS, &subject::journal(id.parse().expect("an id"))));
        let record = db.value(CLUSTER, &key).ok()?;
        (runs && record.is_some()).then_some(())
    })
    .await;

    server.put_store(Some(&copy)).await;
    wait_alarm(&broker, 1).await;
    wait_for("the run that nobody removed", async || {
        let (status, _) = broker.call("GET", &runs[1].1, None).await;
        (status == 200).then_some(())
    })
    .await;
    assert_eq!(broker.call("GET", &runs[0].1, None).await.0, 404);
    broker.stop().await;
}
