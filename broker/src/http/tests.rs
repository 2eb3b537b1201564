//! Bad input, tokens, and that the document tells of every route.

mod abuse;
mod client;
mod doors;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::authz::Action;
use crate::nats::testing::TestServer;
use crate::testing::{TestBroker, state_for};

#[test]
fn every_route_is_in_the_document_with_its_authorisation() {
    // axum does not list its routes, but shows them.
    let (api, _) = routes().split_for_parts();
    let (front, _) = front::routes().split_for_parts();
    let shown = format!("{api:?}{front:?}");
    let routed: BTreeSet<&str> = shown
        .split('"')
        .filter(|part| part.starts_with('/') && !part.contains("__private__"))
        .collect();
    let mut document = document();
    let documented: BTreeSet<String> = document.paths.paths.keys().cloned().collect();
    let routed: BTreeSet<&str> = routed.into_iter().filter(|path| path.len() > 1).collect();
    assert!(routed.len() > 15, "{routed:?}");
    assert_eq!(routed, documented.iter().map(String::as_str).collect());

    let words: Vec<_> = Action::examples().iter().map(Action::what).collect();
    for (path, item) in &mut document.paths.paths {
        let mut count = 0;
        for operation in document::operations(item) {
            count += 1;
            let note = operation
                .extensions
                .as_ref()
                .and_then(|e| e.get(document::AUTHORISATION));
            let note = note
                .and_then(Value::as_str)
                .unwrap_or_else(|| panic!("{path} has no note"));
            let secured = serde_json::to_value(&operation.security).unwrap();
            let bearer = secured.to_string().contains("bearer");
            assert_eq!(
                bearer,
                !note.starts_with("open: "),
                "{path}: {note} {secured}"
            );
            assert!(
                note.starts_with("open: ") || words.contains(&note),
                "{path}: {note}"
            );
            assert!(
                operation
                    .description
                    .as_ref()
                    .is_some_and(|d| !d.is_empty()),
                "{path}"
            );
        }
        assert!(count > 0, "{path}");
    }
    assert_eq!(serde_json::to_value(&document.openapi).unwrap(), "3.1.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_a_problem_document_and_leaves_everything_running() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let auth = format!("Authorization: Bearer {}\r\n", broker.token);
    let json_head = "Content-Type: application/json\r\n";
    let ask = |line: &str, head: &str, body: &str| {
        format!(
            "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{auth}{head}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let large = format!("{{\"name\":\"{}\"}}", "a".repeat(MAX_BODY));
    let deep = "[".repeat(100_000);
    let cases = [
        (ask("GET /nowhere", "", ""), 404, "not-found"),
        (ask("GET /v1/nodes/web-99", "", ""), 404, "not-found"),
        (
            ask("GET /v1/nodes/%1b%5b31m", "", ""),
            400,
            "invalid-request",
        ),
        (ask("GET /v1/nodes/%ff", "", ""), 400, "invalid-request"),
        (ask("POST /v1/status", "", ""), 405, "invalid-request"),
        (ask("PUT /healthz", "", ""), 405, "invalid-request"),
        (ask("GET /v1/nodes?limit=0", "", ""), 400, "invalid-request"),
        (ask("GET /v1/nodes?limit=x", "", ""), 400, "invalid-request"),
        (
            ask("GET /v1/nodes?nonsense=1", "", ""),
            400,
            "invalid-request",
        ),
        (
            ask("GET /v1/nodes?cursor=!", "", ""),
            400,
            "invalid-request",
        ),
        (ask("POST /v1/invites", "", "{}"), 415, "invalid-request"),
        (
            ask("POST /v1/invites", json_head, ""),
            400,
            "invalid-request",
        ),
        (
            ask("POST /v1/invites", json_head, "{"),
            400,
            "invalid-request",
        ),
        (
            ask("POST /v1/invites", json_head, "{\"name\": 3}"),
            400,
            "invalid-request",
        ),
        (
            ask(
                "POST /v1/invites",
                json_head,
                "{\"name\": \"a\", \"rolse\": []}",
            ),
            400,
            "invalid-request",
        ),
        (
            ask("POST /v1/invites", json_head, "{\"name\": \"\\u001b[31m\"}"),
            400,
            "invalid-request",
        ),
        (
            ask("POST /v1/invites", json_head, &deep),
            400,
            "invalid-request",
        ),
        (ask("POST /v1/invites", json_head, &large), 413, "too-large"),
        (
            ask(
                "POST /v1/tokens",
                json_head,
                "{\"for\": \"a\", \"role\": \"god\"}",
            ),
            400,
            "invalid-request",
        ),
        (
            ask(
                "POST /v1/tokens",
                json_head,
                "{\"for\": \"a\", \"role\": \"admin\", \"expires\": \"0s\"}",
            ),
            400,
            "invalid-request",
        ),
        (
            ask("POST /v1/enroll", json_head, "{\"token\": \"x\"}"),
            400,
            "invalid-request",
        ),
        (ask("DELETE /v1/tokens/x", "", ""), 404, "not-found"),
        (
            ask("GET /v1/nodes", "Authorization: Bearer mt1_x\r\n", ""),
            401,
            "unauthenticated",
        ),
    ];
    for (bytes, status, kind) in cases {
        let line = bytes.lines().next().unwrap().to_owned();
        let (got, head, body) = broker.raw(bytes.as_bytes()).await;
        assert_eq!(got, status, "{line}: {body}");
        let problem: muster_protocol::problem::Problem = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (problem.kind.as_str(), problem.status),
            (kind, status),
            "{line}"
        );
        assert!(head.contains("application/problem+json"), "{line}: {head}");
        assert!(
            head.contains("nosniff") && head.contains("no-store"),
            "{head}"
        );
        assert!(!body.contains('\u{1b}'), "{body}");
    }
    // Not even HTTP.
    broker.raw(b"\x16\x03\x01\x00\xff nonsense\r\n\r\n").await;
    broker
        .raw(format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(200_000)).as_bytes())
        .await;
    assert_eq!(broker.call("GET", "/v1/status", None).await.0, 200);
    assert_eq!(
        broker.send("GET", "/openapi.json", None, None).await.1["openapi"],
        "3.1.0"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_shown_once_hashed_and_revoked_at_once() {
    use std::os::unix::fs::PermissionsExt as _;
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let mode = std::fs::metadata(tmp.path().join("admin.token"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let ask = json!({ "for": "ci/webapp", "role": "reader", "expires": "1h" });
    let (status, made) = broker.call("POST", "/v1/tokens", Some(ask)).await;
    assert_eq!(status, 201, "{made}");
    let (token, id) = (
        made["token"].as_str().unwrap(),
        made["id"].as_str().unwrap(),
    );
    let (_, listed) = broker.call("GET", "/v1/tokens", None).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    assert!(
        !listed
            .to_string()
            .contains(token.rsplit('_').next().unwrap())
    );
    assert_eq!(
        broker.send("GET", "/v1/nodes", Some(token), None).await.0,
        200
    );
    let (status, denied) = broker
        .send(
            "POST",
            "/v1/invites",
            Some(token),
            Some(json!({ "name": "a" })),
        )
        .await;
    assert_eq!((status, denied["kind"].as_str()), (403, Some("denied")));
    for (method, path) in [
        ("GET", "/v1/tokens"),
        ("POST", "/v1/keys/rotate"),
        ("DELETE", "/v1/nodes/a"),
    ] {
        assert_eq!(
            broker.send(method, path, Some(token), None).await.0,
            403,
            "{path}"
        );
        let (status, problem) = broker.send(method, path, None, None).await;
        assert_eq!(
            (status, problem["kind"].as_str()),
            (401, Some("unauthenticated")),
            "{path}"
        );
    }
    let enroller = json!({ "for": "installer", "role": "node-enroller" });
    let (_, enroller) = broker.call("POST", "/v1/tokens", Some(enroller)).await;
    let enroller = enroller["token"].as_str();
    assert_eq!(
        broker
            .send(
                "POST",
                "/v1/invites",
                enroller,
                Some(json!({ "name": "a" }))
            )
            .await
            .0,
        201
    );
    assert_eq!(broker.send("GET", "/v1/nodes", enroller, None).await.0, 403);
    assert_eq!(
        broker
            .call("DELETE", &format!("/v1/tokens/{id}"), None)
            .await
            .0,
        204
    );
    assert_eq!(
        broker.send("GET", "/v1/nodes", Some(token), None).await.0,
        401
    );
    // The last admin stays.
    let (_, me) = broker.call("GET", "/v1/whoami", None).await;
    let mine = format!("/v1/tokens/{}", me["token"].as_str().unwrap());
    let (status, answer) = broker.call("DELETE", &mine, None).await;
    assert_eq!((status, answer["kind"].as_str()), (409, Some("conflict")));
    let other = json!({ "for": "bruno", "role": "admin" });
    assert_eq!(broker.call("POST", "/v1/tokens", Some(other)).await.0, 201);
    assert_eq!(broker.call("DELETE", &mine, None).await.0, 204);
    assert_eq!(broker.call("GET", "/v1/whoami", None).await.0, 401);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_without_a_token_may_not_ask_too_much() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let mut config = crate::testing::config_for(&server, tmp.path());
    config.open_requests_per_second = 1;
    let broker = TestBroker::begin(config).await;
    broker.wait_active().await;
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        seen.insert(
            broker
                .send("POST", "/v1/agent/challenge", None, None)
                .await
                .0,
        );
    }
    assert_eq!(seen, BTreeSet::from([200, 429]));
    broker.stop().await;
}
