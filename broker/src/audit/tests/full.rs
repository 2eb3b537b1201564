//! When the record cannot be written, nothing is done, and what is only read
//! is answered all the same.

use serde_json::{Value, json};

use super::*;
use crate::testing::{TestBroker, state_for};

/// Lets the stream of the record hold no byte more than it does, or again as
/// much as there is.
async fn set_room(js: &Context, full: bool) {
    let stream = js.get_stream(STREAM).await.unwrap();
    let info = stream.cached_info().clone();
    let bytes = i64::try_from(info.state.bytes.max(1)).unwrap();
    let config = async_nats::jetstream::stream::Config {
        max_bytes: if full { bytes } else { -1 },
        discard: async_nats::jetstream::stream::DiscardPolicy::New,
        ..info.config
    };
    js.update_stream(config).await.unwrap();
}

/// Status, whether it says when to come again, and the problem.
async fn ask(broker: &TestBroker, method: &str, path: &str, body: Value) -> (u16, bool, Value) {
    let (token, body) = (&broker.token, body.to_string());
    let bytes = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (status, head, text) = broker.raw(bytes.as_bytes()).await;
    let again = head.to_lowercase().contains("\r\nretry-after: ");
    (
        status,
        again,
        serde_json::from_str(&text).unwrap_or_default(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_the_record_nothing_is_done_and_reading_goes_on() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let js = crate::store::context(Box::pin(server.broker()).await);
    let script = json!({ "script": "scenario(\"x\");\ntarget(\"*\");\nfn run(p) { log(\"x\"); }" });
    let acts = [
        (
            "POST",
            "/v1/tokens",
            json!({ "for": "bea", "role": "reader" }),
        ),
        (
            "POST",
            "/v1/invites",
            json!({ "name": "web-01", "roles": ["web"] }),
        ),
        ("PUT", "/v1/scenarios/of-our-own", script),
        ("POST", "/v1/freeze", json!({ "why": "the switch" })),
        (
            "PUT",
            "/v1/policy",
            json!({ "files": {
                "policies": format!("{}\n@id(\"x\") permit (principal in Role::\"reader\", action == Action::\"ping\", resource);", crate::authz::cedar::STOCK),
                "principals": "",
            } }),
        ),
    ];
    let reads = [
        "/v1/nodes",
        "/v1/tokens",
        "/v1/invites",
        "/v1/scenarios",
        "/v1/freeze",
        "/v1/policy",
        "/v1/runs",
        "/v1/audit",
        "/v1/status",
    ];
    let before = broker.call("GET", "/v1/tokens", None).await.1;
    set_room(&js, true).await;
    for (method, path, body) in &acts {
        let (status, again, said) = ask(&broker, method, path, body.clone()).await;
        assert_eq!((status, again), (503, true), "{method} {path}: {said}");
        assert_eq!(said["kind"], "unavailable", "{said}");
        let title = said["title"].as_str().unwrap();
        assert_eq!(title, "the request cannot be recorded, so nothing was done");
    }
    for path in reads {
        let (status, answer) = broker.call("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {answer}");
    }
    // A no is no thing done, but nobody would see that it was asked.
    let body = json!({ "for": "bea", "role": "reader" });
    let (status, said) = broker
        .send("POST", "/v1/tokens", Some("muster_garbled"), Some(body))
        .await;
    assert_eq!(status, 401, "{said}");
    assert_eq!(broker.call("GET", "/v1/tokens", None).await.1, before);
    for (path, what) in [
        ("/v1/invites", "items"),
        ("/v1/freeze", "frozen"),
        ("/v1/policy", "version"),
    ] {
        let (_, shown) = broker.call("GET", path, None).await;
        let empty = [json!([]), json!(false), json!(0)];
        assert!(empty.contains(&shown[what]), "{path}: {shown}");
    }
    assert_eq!(
        broker.call("GET", "/v1/scenarios/of-our-own", None).await.0,
        404
    );

    // There is room again: by itself, with the same record.
    set_room(&js, false).await;
    for (method, path, body) in acts {
        let (status, said) = broker.call(method, path, Some(body)).await;
        assert!(status < 300, "{method} {path}: {said}");
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_gone_does_not_hold_up_the_end() {
    let mut lab = Lab::start().await;
    let opened = lab.open().await;
    opened.audit.append(entry(0)).await.unwrap();
    lab.server.kill();
    let audit = opened.audit.clone();
    let waiting = tokio::spawn(async move { audit.append(entry(1)).await });
    let told = opened.audit.clone();
    opened.end().await;
    // Whoever waited knows that it is not recorded, and nobody writes on.
    waiting.await.unwrap().unwrap_err();
    told.append(entry(2)).await.unwrap_err();
}
