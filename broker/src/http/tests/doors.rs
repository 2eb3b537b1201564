//! Tokens that are none, and those who watch events.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::nats::testing::{PATIENCE, TestServer};
use crate::testing::{TestBroker, config_for, state_for, wait_for};

async fn start(server: &TestServer) -> (TestBroker, tempfile::TempDir) {
    let tmp = tempfile::tempdir().unwrap();
    state_for(server, tmp.path());
    (TestBroker::start(server, tmp.path()).await, tmp)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_none_are_all_answered_alike() {
    let elsewhere = TestServer::start().await;
    let (other, _tmp) = start(&elsewhere).await;
    let foreign = other.token.clone();
    other.stop().await;
    let server = TestServer::start().await;
    let (broker, _tmp) = start(&server).await;
    let make = async |expires: &str| {
        let ask = json!({ "for": "ci/web", "role": "reader", "expires": expires });
        let (status, made) = broker.call("POST", "/v1/tokens", Some(ask)).await;
        assert_eq!(status, 201, "{made}");
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        (text("id"), text("token"))
    };
    let (id, revoked) = make("1h").await;
    assert_eq!(
        broker
            .send("GET", "/v1/whoami", Some(&revoked), None)
            .await
            .0,
        200
    );
    let (status, _) = broker
        .call("DELETE", &format!("/v1/tokens/{id}"), None)
        .await;
    assert_eq!(status, 204);
    let (_, expired) = make("1s").await;
    wait_for("it expires", async || {
        let (status, _) = broker.send("GET", "/v1/whoami", Some(&expired), None).await;
        (status == 401).then_some(())
    })
    .await;
    let own = broker.token.clone();
    let cut = &own[..own.len() - 1];
    let last = if own.ends_with('0') { '1' } else { '0' };
    let garbled = format!("{cut}{last}");
    let upper = own.to_uppercase();
    let long = format!("{own}{}", "0".repeat(20_000));
    let mut answers: Vec<(String, Value)> = Vec::new();
    for token in [
        "", "x", &foreign, &revoked, &expired, cut, &garbled, &upper, &long,
    ] {
        let head = format!(
            "GET /v1/whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        let (status, head, body) = broker.raw(head.as_bytes()).await;
        assert_eq!(status, 401, "{token}: {body}");
        assert!(!body.contains(token) || token.len() < 2, "{body}");
        answers.push((without_date(&head), serde_json::from_str(&body).unwrap()));
    }
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
    assert_eq!(broker.call("GET", "/v1/whoami", None).await.0, 200);
    broker.stop().await;
}

fn without_date(head: &str) -> String {
    let lines = head.lines().filter(|line| !line.starts_with("date:"));
    lines.collect::<Vec<_>>().join("\n")
}

async fn watch(broker: &TestBroker, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port))
        .await
        .unwrap();
    let head = format!(
        "GET /v1/events/watch?kind=org.* HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n{more}\r\n",
        broker.token
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Reads until `done` says so; what came.
async fn read_until(stream: &mut TcpStream, done: impl Fn(&str) -> bool) -> String {
    let mut text = Vec::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        let got = timeout(PATIENCE, stream.read(&mut piece)).await;
        let got = got
            .unwrap_or_else(|_| panic!("only {}", String::from_utf8_lossy(&text)))
            .unwrap();
        text.extend_from_slice(&piece[..got]);
        let whole = String::from_utf8_lossy(&text);
        if done(&whole) || got == 0 {
            return whole.into_owned();
        }
    }
}

async fn put(broker: &TestBroker, id: u32, bytes: usize) {
    let event = json!({
        "specversion": "1.0", "id": id.to_string(), "source": "https://ci.example.org",
        "type": "org.example.done", "data": { "text": "x", "fill": "y".repeat(bytes) }
    });
    let (status, answer) = broker.call("POST", "/v1/events", Some(event)).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_of_events_that_never_reads_keeps_nobody_waiting() {
    let server = TestServer::start().await;
    let (broker, _tmp) = start(&server).await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(watch(&broker, "").await);
    }
    let mut reader = watch(&broker, "").await;
    let begun = read_until(&mut reader, |text| text.contains("\r\n\r\n")).await;
    assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
    assert!(begun.contains("text/event-stream"), "{begun}");
    wait_for("all of them watch", async || {
        let (_, _, text) = broker
            .raw(
                format!(
                    "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
                    broker.token
                )
                .as_bytes(),
            )
            .await;
        text.contains("\nmuster_watchers 5").then_some(())
    })
    .await;
    // More than the buffers of a connection hold.
    let reading = tokio::spawn(async move {
        let all = |text: &str| text.matches("\ndata: ").count() >= 40;
        read_until(&mut reader, all).await
    });
    for id in 0..40 {
        put(&broker, id, 400_000).await;
    }
    let seen = reading.await.unwrap();
    for id in 0..40 {
        assert!(
            seen.contains(&format!("\"id\":\"{id}\"")),
            "{id} is missing"
        );
    }
    // Who wakes up sees them all, in order, from the store.
    let all = |text: &str| text.matches("\ndata: ").count() >= 40;
    let late = read_until(&mut idle[0], all).await;
    let places: Vec<u64> = late
        .lines()
        .filter_map(|line| line.strip_prefix("id: ")?.parse().ok())
        .collect();
    assert_eq!(places.len(), 40);
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    // Whoever comes back goes on behind what was seen.
    let again = format!("Last-Event-ID: {}\r\n", places[37]);
    let mut back = watch(&broker, &again).await;
    let two = |text: &str| text.matches("\ndata: ").count() >= 2;
    let rest = read_until(&mut back, two).await;
    assert!(
        rest.contains(&format!("id: {}\n", places[38])),
        "{}",
        rest.len()
    );
    assert!(!rest.contains(&format!("id: {}\n", places[37])));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_room_for_so_many_watchers_of_events() {
    let server = TestServer::start().await;
    let tmp = tempfile::tempdir().unwrap();
    state_for(&server, tmp.path());
    let mut config = config_for(&server, tmp.path());
    config.limits.watchers = 1;
    let mut broker = TestBroker::begin(config).await;
    broker.wait_active().await;
    broker.read_token(tmp.path());
    let mut first = watch(&broker, "").await;
    read_until(&mut first, |text| text.contains("\r\n\r\n")).await;
    let mut second = watch(&broker, "Connection: close\r\n").await;
    let refused = read_until(&mut second, |text| text.contains("rate-limited")).await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    assert!(refused.contains("retry-after:"), "{refused}");
    drop(first);
    wait_for("its room is free again", async || {
        let mut third = watch(&broker, "Connection: close\r\n").await;
        let begun = read_until(&mut third, |text| text.contains("\r\n\r\n")).await;
        begun.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    let mut wrong = watch(&broker, "Last-Event-ID: x\r\nConnection: close\r\n").await;
    let refused = read_until(&mut wrong, |text| text.contains("invalid-request")).await;
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_no_objects_and_changes_with_a_key_are_made_once() {
    let server = TestServer::start().await;
    let tmp = tempfile::tempdir().unwrap();
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    // Fields by their order, as no document tells of.
    for (method, path, body) in [
        ("POST", "/v1/tokens", json!(["eva", "admin"])),
        ("POST", "/v1/match", json!(["*"])),
        ("PUT", "/v1/scenarios/x", json!(["run"])),
    ] {
        let (status, answer) = broker.call(method, path, Some(body)).await;
        assert_eq!(status, 400, "{path}: {answer}");
    }
    let ask = async |broker: &TestBroker, line: &str, key: &str, body: &Value| {
        let body = body.to_string();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\nIdempotency-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            broker.token,
            body.len()
        );
        let (status, _, body) = broker.raw(head.as_bytes()).await;
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let script = |text: &str| json!({ "script": format!("scenario(\"{text}\");\ntarget(\"role=web\");\nfn run(p) {{}}\n"), "expect": 0 });
    let first = ask(&broker, "PUT /v1/scenarios/web", "k", &script("one")).await;
    assert_eq!(
        (first.0, &first.1["version"]),
        (200, &json!(1)),
        "{first:?}"
    );
    let event = |text: &str| json!({ "specversion": "1.0", "id": "7", "source": "https://ci.example.org", "type": "org.done", "data": { "text": text } });
    let put = ask(&broker, "POST /v1/events", "k", &event("a")).await;
    assert_eq!(
        (put.0, &put.1["events"][0]["duplicate"]),
        (200, &json!(false))
    );
    let other = ask(&broker, "POST /v1/events", "k", &event("b")).await;
    assert_eq!((other.0, &other.1["kind"]), (409, &json!("conflict")));
    let second = json!({ "script": "scenario(\"two\");\ntarget(\"role=web\");\nfn run(p) {}\n", "expect": 1 });
    let (status, answer) = broker.call("PUT", "/v1/scenarios/web", Some(second)).await;
    assert_eq!(status, 200, "{answer}");
    // Without the key, whoever asks again because the answer was lost is told
    // that somebody else was faster.
    let (status, _) = broker
        .call("PUT", "/v1/scenarios/web", Some(script("one")))
        .await;
    assert_eq!(status, 409);
    let back = json!({ "version": 1, "expect": 2 });
    let line = "POST /v1/scenarios/web/rollback";
    let rolled = ask(&broker, line, "k", &back).await;
    assert_eq!(
        (rolled.0, &rolled.1["version"]),
        (200, &json!(3)),
        "{rolled:?}"
    );
    broker.stop().await;
    // Also by the next broker.
    let broker = TestBroker::start(&server, tmp.path()).await;
    assert_eq!(
        ask(&broker, "PUT /v1/scenarios/web", "k", &script("one")).await,
        first
    );
    assert_eq!(ask(&broker, "POST /v1/events", "k", &event("a")).await, put);
    assert_eq!(ask(&broker, line, "k", &back).await, rolled);
    let (_, history) = broker.call("GET", "/v1/scenarios/web/history", None).await;
    assert_eq!(history["items"].as_array().unwrap().len(), 3, "{history}");
    broker.stop().await;
}
