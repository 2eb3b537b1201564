//! Who means harm, or is careless: every one is answered with a problem
//! document, and nothing stops serving.

use std::time::Duration;

use muster_protocol::problem::Problem;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::nats::testing::{PATIENCE, TestServer};
use crate::testing::{TestBroker, config_for, state_for, wait_for};

fn problem(body: &str) -> Problem {
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"))
}

/// The metrics of this process, summed over labels that hold `label`.
async fn metric(broker: &TestBroker, name: &str, label: &str) -> f64 {
    let head = format!(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
        broker.token
    );
    let (status, head, text) = broker.raw(head.as_bytes()).await;
    assert_eq!(status, 200, "{text}");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    let samples = prometheus_parse::Scrape::parse(lines).unwrap().samples;
    samples
        .iter()
        .filter(|s| s.metric == name && (label.is_empty() || s.labels.values().any(|v| v == label)))
        .map(|s| match s.value {
            prometheus_parse::Value::Counter(v)
            | prometheus_parse::Value::Gauge(v)
            | prometheus_parse::Value::Untyped(v) => v,
            _ => 0.0,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_are_refused_before_anything_looks_at_them() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let auth = format!("Authorization: Bearer {}\r\n", broker.token);
    let json_head = "Content-Type: application/json\r\n";
    let invite = "{\"name\": \"a\"}";
    let ask = |line: &str, head: &str, body: &str| {
        format!(
            "{line} HTTP/1.1\r\nHost: m.example\r\nConnection: close\r\n{auth}{json_head}{head}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    let cases = [
        // Paths that somebody in between could read otherwise.
        (ask("GET /v1//nodes", "", ""), 400, "invalid-request"),
        (ask("GET /v1/runs/../nodes", "", ""), 400, "invalid-request"),
        (ask("GET /v1/nodes/%2e%2e", "", ""), 400, "invalid-request"),
        (ask("GET /v1/nodes/a%2fb", "", ""), 400, "invalid-request"),
        (ask("GET /v1/nodes/a%00", "", ""), 400, "invalid-request"),
        (ask("OPTIONS *", "", ""), 400, "invalid-request"),
        // Pages from elsewhere.
        (
            ask(
                "POST /v1/invites",
                "Origin: https://evil.example\r\n",
                invite,
            ),
            403,
            "denied",
        ),
        (
            ask("POST /v1/invites", "Origin: null\r\n", invite),
            403,
            "denied",
        ),
        (
            ask("DELETE /v1/nodes/a", "Origin: http://m.example:1\r\n", ""),
            403,
            "denied",
        ),
        (
            ask(
                "POST /v1/agent/challenge",
                "Sec-Fetch-Site: cross-site\r\n",
                "",
            ),
            403,
            "denied",
        ),
        // What reads does not act.
        (ask("GET /v1/invites/x", "", ""), 405, "invalid-request"),
        (ask("GET /v1/keys/rotate", "", ""), 405, "invalid-request"),
        (
            ask(
                "GET /v1/runs/abcd/cancel",
                "X-HTTP-Method-Override: POST\r\n",
                "",
            ),
            405,
            "invalid-request",
        ),
        (ask("BREW /v1/nodes", "", ""), 405, "invalid-request"),
        // Heads and bodies.
        (ask("GET /v1/nodes", &many, ""), 431, "invalid-request"),
        (
            ask(
                "GET /v1/nodes",
                &format!("X: {}\r\n", "y".repeat(100_000)),
                "",
            ),
            431,
            "invalid-request",
        ),
        (
            format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(70_000)),
            431,
            "invalid-request",
        ),
        ("nonsense\r\n\r\n".into(), 400, "invalid-request"),
        (
            format!(
                "POST /v1/invites HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{auth}{json_head}Content-Length: 104857600\r\n\r\n"
            ),
            413,
            "too-large",
        ),
    ];
    for (bytes, status, kind) in cases {
        let line: String = bytes.lines().next().unwrap().chars().take(80).collect();
        let (got, head, body) = broker.raw(bytes.as_bytes()).await;
        assert_eq!(got, status, "{line}: {body}");
        let problem = problem(&body);
        assert_eq!(
            (problem.kind.as_str(), problem.status),
            (kind, status),
            "{line}"
        );
        assert_eq!(problem.type_uri, format!("urn:muster:problem:{kind}"));
        assert!(head.contains("application/problem+json"), "{line}: {head}");
    }
    // Own pages and programs may.
    for origin in ["Origin: http://m.example\r\n", ""] {
        let (status, _, body) = broker
            .raw(ask("POST /v1/keys/rotate", origin, "").as_bytes())
            .await;
        assert_eq!(status, 200, "{body}");
    }
    // HEAD asks, and gets no body.
    let (status, _, body) = broker.raw(ask("HEAD /v1/nodes", "", "").as_bytes()).await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert_eq!(broker.call("GET", "/v1/nodes", None).await.0, 200);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_a_hundred_megabytes_is_refused_and_the_sender_sees_why() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    for chunked in [false, true] {
        let mut stream = TcpStream::connect(("127.0.0.1", broker.port))
            .await
            .unwrap();
        let length = if chunked {
            "Transfer-Encoding: chunked"
        } else {
            "Content-Length: 104857600"
        };
        let head = format!(
            "POST /v1/invites HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n{length}\r\n\r\n",
            broker.token
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let sending = tokio::spawn(async move {
            let piece = vec![b' '; 1 << 20];
            for _ in 0..100 {
                if chunked {
                    let size = format!("{:x}\r\n", piece.len());
                    if write.write_all(size.as_bytes()).await.is_err() {
                        return;
                    }
                }
                if write.write_all(&piece).await.is_err() {
                    return;
                }
                if chunked && write.write_all(b"\r\n").await.is_err() {
                    return;
                }
            }
        });
        // It comes in pieces, and may end with a reset behind them.
        let mut text = String::new();
        let mut piece = vec![0; 4096];
        while !text.contains("urn:muster:problem:") {
            let got = tokio::time::timeout(PATIENCE, read.read(&mut piece)).await;
            match got.unwrap() {
                Ok(0) | Err(_) => break,
                Ok(got) => text.push_str(&String::from_utf8_lossy(&piece[..got])),
            }
        }
        assert!(text.starts_with("HTTP/1.1 413"), "{text}");
        assert!(text.contains("urn:muster:problem:too-large"), "{text}");
        sending.abort();
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_principal_may_not_ask_too_much_and_others_are_served() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let mut config = config_for(&server, tmp.path());
    config.limits.requests_per_second = 2;
    config.open_requests_per_second = 2;
    let mut broker = TestBroker::begin(config).await;
    broker.wait_active().await;
    broker.read_token(tmp.path());
    let ask = json!({ "for": "ci/web", "role": "reader" });
    let (_, made) = broker.call("POST", "/v1/tokens", Some(ask)).await;
    let ci = made["token"].as_str().unwrap().to_owned();
    let mut refused = None;
    for _ in 0..200 {
        let head = format!(
            "GET /v1/whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {ci}\r\n\r\n"
        );
        let (status, head, body) = broker.raw(head.as_bytes()).await;
        if status != 200 {
            refused = Some((status, head, problem(&body)));
            break;
        }
    }
    let (status, head, problem) = refused.expect("two a second are not two hundred");
    assert_eq!((status, problem.kind.as_str()), (429, "rate-limited"));
    assert!(head.contains("retry-after: 1"), "{head}");
    assert_eq!(broker.call("GET", "/v1/whoami", None).await.0, 200);
    // Nor may one guess tokens for ever.
    wait_for("guessing is slowed down", async || {
        (broker
            .send("GET", "/v1/whoami", Some("mt1_x"), None)
            .await
            .0
            == 429)
            .then_some(())
    })
    .await;
    assert_eq!(broker.call("GET", "/v1/whoami", None).await.0, 200);
    assert!(metric(&broker, "muster_http_refused_total", "Rate").await >= 2.0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_at_once_and_too_many_connections_are_turned_away() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let mut config = config_for(&server, tmp.path());
    config.limits.requests_at_once = 2;
    config.limits.connections = 8;
    let mut broker = TestBroker::begin(config).await;
    broker.wait_active().await;
    broker.read_token(tmp.path());
    // Two whose bodies do not come.
    let head = format!(
        "POST /v1/invites HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{{",
        broker.token
    );
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(("127.0.0.1", broker.port))
            .await
            .unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        held.push(stream);
    }
    wait_for("both are worked on", async || {
        (crate::metrics::Metrics::of_process().in_progress() == 2).then_some(())
    })
    .await;
    let ask = b"GET /v1/nodes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    wait_for("the third is turned away", async || {
        let (status, head, body) = broker.raw(ask).await;
        (status == 503).then(|| {
            assert!(head.contains("retry-after"), "{head}");
            assert_eq!(problem(&body).kind.as_str(), "unavailable");
        })
    })
    .await;
    // Whether all is well is answered all the same.
    assert_eq!(broker.send("GET", "/readyz", None, None).await.0, 200);
    // The slow ones are told, in the end.
    for mut stream in held {
        let mut said = String::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut said)).await;
        assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    }
    // Connections that say nothing take room until it is full.
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(
            TcpStream::connect(("127.0.0.1", broker.port))
                .await
                .unwrap(),
        );
    }
    wait_for("no room for connections", async || {
        let (status, head, body) = broker.raw(ask).await;
        (status == 503 && body.contains("connections")).then(|| {
            assert!(head.contains("retry-after"), "{head}");
            problem(&body);
        })
    })
    .await;
    drop(idle);
    wait_for("there is room again", async || {
        (broker.call("GET", "/v1/nodes", None).await.0 == 200).then_some(())
    })
    .await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_for_those_who_may() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    assert_eq!(broker.send("GET", "/metrics", None, None).await.0, 401);
    let ask = json!({ "for": "installer", "role": "node-enroller" });
    let (_, made) = broker.call("POST", "/v1/tokens", Some(ask)).await;
    let enroller = made["token"].as_str();
    assert_eq!(broker.send("GET", "/metrics", enroller, None).await.0, 403);
    assert!(metric(&broker, "muster_active", "").await > 0.0);
    assert!(metric(&broker, "muster_http_requests_total", "/v1/tokens").await >= 1.0);
    let stored = metric(&broker, "muster_stream_size_bytes", "KV_muster_tokens").await;
    assert!(stored > 0.0);
    broker.stop().await;

    let mut config = config_for(&server, tmp.path());
    config.metrics = crate::config::MetricsDoor::Loopback;
    let broker = TestBroker::begin(config).await;
    // Also before it is the active one.
    wait_for("it listens", async || {
        (broker.send("GET", "/metrics", None, None).await.0 == 200).then_some(())
    })
    .await;
    broker.wait_active().await;
    assert_eq!(broker.send("GET", "/metrics", None, None).await.0, 200);
    let passed_on = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: close\r\n\r\n";
    assert_eq!(broker.raw(passed_on).await.0, 401);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends_ends() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port))
        .await
        .unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ")
        .await
        .unwrap();
    let mut said = Vec::new();
    let ended = tokio::time::timeout(
        PATIENCE.max(Duration::from_secs(90)),
        stream.read_to_end(&mut said),
    );
    assert!(ended.await.is_ok(), "the connection is still open");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_names_itself_is_done_once_also_by_the_next_broker() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let ask = async |broker: &TestBroker, path: &str, key: &str, body: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\nIdempotency-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            broker.token,
            body.len()
        );
        let (status, _, body) = broker.raw(head.as_bytes()).await;
        (status, body)
    };
    let token = r#"{"for":"ci/web","role":"reader"}"#;
    let invite = r#"{"name":"web-01"}"#;
    let first = ask(&broker, "/v1/tokens", "k1", token).await;
    assert_eq!(first.0, 201, "{}", first.1);
    let invited = ask(&broker, "/v1/invites", "k1", invite).await;
    assert_eq!(invited.0, 201, "{}", invited.1);
    let rotated = ask(&broker, "/v1/keys/rotate", "k1", "").await;
    assert_eq!(rotated.0, 200, "{}", rotated.1);
    // Two at the same time are one.
    let both = tokio::join!(
        ask(&broker, "/v1/tokens", "k2", token),
        ask(&broker, "/v1/tokens", "k2", token)
    );
    assert_eq!(both.0, both.1);
    assert_ne!(both.0, first);
    // The key is for that request alone; what failed was not done.
    let other = ask(
        &broker,
        "/v1/tokens",
        "k1",
        r#"{"for":"eva","role":"reader"}"#,
    )
    .await;
    assert_eq!(
        (other.0, problem(&other.1).kind.as_str()),
        (409, "conflict")
    );
    let failed = ask(&broker, "/v1/invites", "k3", r#"{"name":"No Name"}"#).await;
    assert_eq!(failed.0, 400, "{}", failed.1);
    assert_eq!(ask(&broker, "/v1/invites", "", invite).await.0, 400);
    broker.stop().await;

    let broker = TestBroker::start(&server, tmp.path()).await;
    assert_eq!(ask(&broker, "/v1/tokens", "k1", token).await, first);
    assert_eq!(ask(&broker, "/v1/invites", "k1", invite).await, invited);
    assert_eq!(ask(&broker, "/v1/keys/rotate", "k1", "").await, rotated);
    let (_, tokens) = broker.call("GET", "/v1/tokens", None).await;
    assert_eq!(tokens["items"].as_array().unwrap().len(), 3, "{tokens}");
    broker.stop().await;
    // Nothing of it lies about in the clear.
    let secret = serde_json::from_str::<serde_json::Value>(&first.1).unwrap();
    let secret = secret["token"].as_str().unwrap().to_owned();
    let kept = server.everything_on_disk();
    assert!(
        kept.windows(11).any(|w| w == b"muster_once"),
        "the store was read"
    );
    assert!(!kept.windows(secret.len()).any(|w| w == secret.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_is_a_page_without_scripts() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let ask = b"GET /reference HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let (status, head, body) = broker.raw(ask).await;
    assert_eq!(status, 200);
    assert!(
        head.contains("text/html") && head.contains("default-src 'none'; style-src 'sha256-"),
        "{head}"
    );
    assert!(body.contains("/v1/runs/{run}/events"));
    broker.stop().await;
}
