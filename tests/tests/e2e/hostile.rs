//! Messages sent straight to NATS: by somebody who stands on the wire, and by
//! a node with valid credentials that wants more than its share.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message};
use futures_util::StreamExt as _;
use muster_broker::nats::credentials::Credentials;
use muster_broker::nats::jwt::UserClaims;
use muster_broker::nats::keys::NatsKeys;
use muster_broker::nats::permissions::broker_permissions;
use muster_tests::{Up, lines, wait_for};
use serde_json::Value;
use tokio::sync::mpsc;

pub(crate) fn enrolment(up: &Up, node: &str) -> Value {
    let text =
        std::fs::read_to_string(up.agent_state(node).join("enrolment.json")).expect("enrolled");
    serde_json::from_str(&text).expect("json")
}

pub(crate) fn nats_url(up: &Up, node: &str) -> String {
    enrolment(up, node)["credentials"]["nats_urls"][0]
        .as_str()
        .expect("a url")
        .to_owned()
}

/// A client that may do everything in the account: what somebody has who took
/// the NATS server, but no signing key.
pub(crate) async fn wire(up: &Up, node: &str) -> Client {
    let keys = NatsKeys::load(&up.state().join("keys")).expect("the broker's NATS keys");
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let credentials = Credentials::issue(keys.account(), |user| UserClaims {
        name: "wire".into(),
        user,
        issued_at: now,
        expires_at: None,
        permissions: broker_permissions(),
        max_subscriptions: None,
        max_payload: None,
    })
    .expect("signs");
    credentials
        .connect_options()
        .connect(nats_url(up, node))
        .await
        .expect("connects")
}

/// A client with a node's own credentials, and what the server says to it.
pub(crate) async fn as_node(up: &Up, node: &str) -> (Client, mpsc::UnboundedReceiver<String>) {
    let enrolment = enrolment(up, node);
    let seed = std::fs::read_to_string(up.agent_state(node).join("nats.key")).expect("a seed");
    let key = Arc::new(nkeys::KeyPair::from_seed(seed.trim()).expect("a seed"));
    let jwt = enrolment["credentials"]["jwt"]
        .as_str()
        .expect("a jwt")
        .to_owned();
    let serial = enrolment["credentials"]["serial"]
        .as_u64()
        .expect("a serial");
    let (tell, told) = mpsc::unbounded_channel();
    let options = ConnectOptions::with_jwt(jwt, move |nonce| {
        let key = Arc::clone(&key);
        async move { key.sign(&nonce).map_err(async_nats::AuthError::new) }
    })
    .custom_inbox_prefix(format!("_INBOX.m1.{serial}"))
    .event_callback(move |event| {
        if let Event::ServerError(e) = event {
            let _ = tell.send(e.to_string());
        }
        async {}
    });
    (
        options.connect(nats_url(up, node)).await.expect("connects"),
        told,
    )
}

pub(crate) async fn refused(told: &mut mpsc::UnboundedReceiver<String>, what: &str) {
    let said = tokio::time::timeout(Duration::from_secs(10), told.recv()).await;
    let said = said
        .unwrap_or_else(|_| panic!("{what} was not refused"))
        .expect("said");
    assert!(
        said.to_lowercase().contains("permissions violation"),
        "{what}: {said}"
    );
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

#[test]
fn a_node_hears_and_says_only_what_is_its_own() {
    let up = Up::start(&["web-01:role=web,zone=gva2", "db-01:role=db,zone=dk2"]).expect("starts");
    runtime().block_on(async {
        let (node, mut told) = as_node(&up, "web-01").await;
        let other = enrolment(&up, "db-01")["credentials"]["serial"]
            .as_u64()
            .expect("a serial");
        for subject in [
            format!("m1.do.node.{other}"),
            "m1.do.role.db".into(),
            "m1.do.label.zone.dk2".into(),
            "m1.do.>".into(),
            "m1.from.>".into(),
            "m1.run.>".into(),
            "$SYS.>".into(),
            "$KV.>".into(),
            "$JS.API.>".into(),
            "_INBOX.>".into(),
            format!("_INBOX.m1.{other}.>"),
            ">".into(),
        ] {
            let _sub = node.subscribe(subject.clone()).await.expect("asks");
            node.flush().await.expect("sent");
            refused(&mut told, &subject).await;
        }
        for subject in [
            format!("m1.from.{other}.outcome"),
            "m1.do.all".into(),
            format!("m1.do.node.{other}"),
            "m1.run.x.j".into(),
            "m1.event".into(),
            "$JS.API.STREAM.LIST".into(),
            "$JS.API.STREAM.DELETE.MUSTER_RUNS".into(),
            "$KV.muster_nodes.1".into(),
            "$SYS.REQ.SERVER.PING".into(),
            format!("_INBOX.m1.{other}.x"),
        ] {
            node.publish(subject.clone(), "x".into())
                .await
                .expect("asks");
            node.flush().await.expect("sent");
            refused(&mut told, &subject).await;
        }
        // Its own it may hear.
        for subject in ["m1.do.all", "m1.do.role.web", "m1.do.label.zone.gva2"] {
            let _sub = node.subscribe(subject).await.expect("asks");
        }
        node.flush().await.expect("sent");
        tokio::time::timeout(Duration::from_millis(500), told.recv())
            .await
            .expect_err("nothing is refused");
    });
}

/// The first call request that goes to a node.
async fn capture(up: &Up, wire: &Client, args: &[&str]) -> Message {
    let mut all = wire.subscribe("m1.do.>").await.expect("listens");
    wire.flush().await.expect("sent");
    let run = tokio::task::block_in_place(|| up.muster(args));
    assert_eq!(run.code, 0, "{run:?}");
    loop {
        let message = tokio::time::timeout(Duration::from_secs(10), all.next())
            .await
            .expect("in time")
            .expect("one");
        if String::from_utf8_lossy(&message.payload).contains("\"do\":\"call\"") {
            return message;
        }
    }
}

fn refused_count(up: &Up, node: &str) -> u64 {
    let said = up.muster(&["nodes", "--json"]);
    let nodes = said.list();
    let node = nodes.iter().find(|n| n["name"] == node).expect("listed");
    let counts = node["conditions"].as_array().into_iter().flatten();
    counts
        .filter(|c| c["condition"] == "refusing")
        .flat_map(|c| {
            c["counts"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(_, n)| n.as_u64().unwrap_or(0))
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_altered_and_repeated_requests_do_nothing() {
    let up = Up::start(&["web-01:role=web", "web-02:role=web"]).expect("starts");
    let witness = up.dir.path().join("witness");
    let script = format!("echo x >> {}", witness.display());
    let wire = wire(&up, "web-01").await;
    let real = capture(&up, &wire, &["run", "web-01", "--shell", "--", &script]).await;
    assert_eq!(lines(&witness).len(), 1);
    let headers = real.headers.clone().expect("it is signed");
    let send = async |subject: &str, headers: HeaderMap, bytes: Vec<u8>| {
        wire.publish_with_headers(subject.to_owned(), headers, bytes.into())
            .await
            .expect("sent");
        wire.flush().await.expect("sent");
    };
    let text = String::from_utf8(real.payload.to_vec()).expect("json");

    // Repeated, fifty times, also on other subjects: answered from the journal.
    for _ in 0..50 {
        send(&real.subject, headers.clone(), real.payload.to_vec()).await;
    }
    send("m1.do.all", headers.clone(), real.payload.to_vec()).await;
    send("m1.do.role.web", headers.clone(), real.payload.to_vec()).await;
    // Altered: another command, another set, another time.
    for (from, to) in [
        ("echo x", "echo y"),
        ("\"v\":1", "\"v\":2"),
        ("\"step\":0", "\"step\":1"),
    ] {
        assert!(text.contains(from), "{from} is in {text}");
        send(
            &real.subject,
            headers.clone(),
            text.replace(from, to).into_bytes(),
        )
        .await;
    }
    // Signed by a stranger, under his own name and under the broker's.
    let stranger = muster_protocol::keys::PrivateKey::generate();
    let forged = text.replace("\"step\":0", "\"step\":7").into_bytes();
    let signature = stranger
        .sign(muster_protocol::keys::Purpose::Request, &forged)
        .to_string();
    for key in [
        stranger.public().id().to_string(),
        headers.get("Muster-Key").expect("named").to_string(),
    ] {
        let mut h = HeaderMap::new();
        h.insert("Muster-Key", key.as_str());
        h.insert("Muster-Signature", signature.as_str());
        send(&real.subject, h, forged.clone()).await;
    }
    // No signature; garbage; large garbage.
    send(&real.subject, HeaderMap::new(), real.payload.to_vec()).await;
    send(&real.subject, headers.clone(), b"\xff\xfe{{{{".to_vec()).await;
    send(&real.subject, headers.clone(), vec![b'['; 900_000]).await;

    // All of it was seen, counted, and nothing more was done.
    wait_for("the refusals to be counted", || {
        (refused_count(&up, "web-01") >= 8).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {} {}", refused_count(&up, "web-01"), up.logs()));
    assert_eq!(lines(&witness), ["x"]);
    let said =
        tokio::task::block_in_place(|| up.muster(&["run", "role=web", "--json", "--", "true"]))
            .exits(0);
    assert_eq!(said.outcomes().len(), 2);
    let log = log_lines(&up.state().join("log"), "web-01", "refused");
    assert!(
        log > 0 && log < 15,
        "{log} lines about refusals: once a minute and kind is enough"
    );
}

fn log_lines(dir: &Path, node: &str, word: &str) -> usize {
    let files = std::fs::read_dir(dir).expect("logs").flatten();
    files
        .filter(|f| f.file_name().to_string_lossy().contains(node))
        .map(|f| lines(&f.path()).iter().filter(|l| l.contains(word)).count())
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_floods_or_talks_nonsense_disturbs_nobody() {
    let up = Up::start(&["web-01:role=web", "web-02:role=web"]).expect("starts");
    let (node, _told) = as_node(&up, "web-01").await;
    let serial = enrolment(&up, "web-01")["credentials"]["serial"]
        .as_u64()
        .expect("a serial");
    for kind in [
        "hello", "beat", "facts", "pong", "accepted", "output", "outcome", "bye", "nonsense",
    ] {
        for body in [
            &b"{"[..],
            b"null",
            b"\xff\xff",
            b"{\"request\":{\"run\":\"x\",\"step\":-1}}",
        ] {
            node.publish(
                format!("m1.from.{serial}.{kind}"),
                bytes::Bytes::copy_from_slice(body),
            )
            .await
            .expect("sent");
        }
    }
    let big = bytes::Bytes::from(vec![b'x'; 200_000]);
    for i in 0..20_000 {
        let body = if i % 50 == 0 {
            big.clone()
        } else {
            "nonsense".into()
        };
        node.publish(format!("m1.from.{serial}.outcome"), body)
            .await
            .expect("sent");
    }
    node.flush().await.expect("sent");
    let said =
        tokio::task::block_in_place(|| up.muster(&["run", "web-02", "--json", "--", "true"]))
            .exits(0);
    assert_eq!(said.outcomes()["web-02"], "succeeded");
    wait_for("web-01 to be heard again", || {
        let said = up.muster(&["run", "role=web", "--json", "--", "true"]);
        (said.code == 0).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
}
