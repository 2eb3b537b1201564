//! The library on a real server: over HTTP, through crashes, with a store that
//! goes back.

use std::path::Path;

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::*;
use crate::nats::testing::TestServer;
use crate::testing::{TestBroker, config_for, state_for, wait_for};

fn script(say: &str) -> String {
    format!("scenario(\"Say {say}\");\nfn run(p) {{ command([\"echo\", \"{say}\"]); }}\n")
}

async fn put(broker: &TestBroker, name: &str, say: &str) -> Value {
    let body = json!({ "script": script(say), "note": format!("say {say}") });
    let (status, said) = broker
        .call("PUT", &format!("/v1/scenarios/{name}"), Some(body))
        .await;
    assert_eq!(status, 200, "{said}");
    said
}

async fn get(broker: &TestBroker, path: &str) -> Value {
    let (status, said) = broker
        .call("GET", &format!("/v1/scenarios{path}"), None)
        .await;
    assert_eq!(status, 200, "{path}: {said}");
    said
}

/// Number, what it says it is for, and the note of each version.
async fn history(broker: &TestBroker, name: &str) -> Vec<(u64, String, String)> {
    let all = get(broker, &format!("/{name}/history")).await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = all["items"].as_array().unwrap().iter();
    items
        .map(|v| {
            (
                v["version"].as_u64().unwrap(),
                text(&v["about"]),
                text(&v["note"]),
            )
        })
        .collect()
}

fn numbers(history: &[(u64, String, String)]) -> Vec<u64> {
    history.iter().map(|(number, ..)| *number).collect()
}

async fn events(broker: &TestBroker, kind: &str) -> Vec<String> {
    let (_, all) = broker.call("GET", "/v1/events?limit=500", None).await;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    all.iter()
        .filter(|e| e["type"] == kind)
        .map(|e| e["data"]["text"].as_str().unwrap_or_default().to_owned())
        .collect()
}

async fn begin() -> (TestServer, tempfile::TempDir, TestBroker) {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let state = tmp.path().join("state");
    state_for(&server, &state);
    let broker = TestBroker::start(&server, &state).await;
    (server, tmp, broker)
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_rise_and_nobody_overwrites_anybody_unseen() {
    let (_server, _tmp, broker) = begin().await;
    let stored = put(&broker, "hello", "a").await;
    assert_eq!(
        (&stored["version"], &stored["new"]),
        (&json!(1), &json!(true))
    );
    let same = put(&broker, "hello", "a").await;
    assert_eq!((&same["version"], &same["new"]), (&json!(1), &json!(false)));
    assert_eq!(put(&broker, "hello", "b").await["version"], 2);

    // On top of what is not the newest any more.
    let path = "/v1/scenarios/hello";
    let body = json!({ "script": script("c"), "expect": 1 });
    let (status, said) = broker.call("PUT", path, Some(body)).await;
    assert_eq!((status, &said["kind"]), (409, &json!("conflict")));
    assert!(
        said["title"]
            .as_str()
            .unwrap()
            .contains("version 2 was stored by admin"),
        "{said}"
    );
    let body = json!({ "script": script("c"), "expect": 0 });
    assert_eq!(broker.call("PUT", path, Some(body)).await.0, 409);
    let body = json!({ "script": script("c"), "expect": 2 });
    for _ in 0..2 {
        // The second is the first once more, whose answer was not heard.
        let (status, said) = broker.call("PUT", path, Some(body.clone())).await;
        assert_eq!((status, &said["version"]), (200, &json!(3)), "{said}");
    }

    // Back, under a new number.
    let (status, said) = broker
        .call(
            "POST",
            &format!("{path}/rollback"),
            Some(json!({ "version": 1 })),
        )
        .await;
    assert_eq!(
        (status, &said["version"], &said["new"]),
        (200, &json!(4), &json!(true))
    );
    assert_eq!(said["bundle"], stored["bundle"]);
    for (version, code) in [(9, 404), (0, 404)] {
        let body = Some(json!({ "version": version }));
        let (status, said) = broker.call("POST", &format!("{path}/rollback"), body).await;
        assert_eq!(status, code, "{said}");
    }
    let all = history(&broker, "hello").await;
    assert_eq!(numbers(&all), [4, 3, 2, 1]);
    assert_eq!(all[0].1, "Say a");
    assert_eq!(all[0].2, "back to version 1");
    assert_eq!(
        get(&broker, "/hello?version=2").await["manifest"]["about"],
        "Say b"
    );

    // Gone, and back.
    let (status, said) = broker
        .call("DELETE", &format!("{path}?expect=3"), None)
        .await;
    assert_eq!(status, 409, "{said}");
    let (status, said) = broker
        .call("DELETE", &format!("{path}?expect=4&note=old"), None)
        .await;
    assert_eq!((status, &said["version"]), (200, &json!(5)), "{said}");
    let (status, said) = broker.call("GET", path, None).await;
    assert_eq!(status, 404);
    assert!(
        said["title"].as_str().unwrap().contains("admin removed it"),
        "{said}"
    );
    assert_eq!(broker.call("DELETE", path, None).await.0, 404);
    let listed = get(&broker, "").await;
    assert!(!listed.to_string().contains("hello"));
    let body = Some(json!({ "version": 2 }));
    let (_, said) = broker.call("POST", &format!("{path}/rollback"), body).await;
    assert_eq!(
        (&said["version"], &said["about"]),
        (&json!(6), &json!("Say b"))
    );
    assert_eq!(events(&broker, "scenario.stored").await.len(), 5);
    let removed = events(&broker, "scenario.removed").await;
    assert_eq!(removed, ["admin removed scenario hello (version 5): old"]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_a_mistake_is_not_stored_and_all_of_them_are_told() {
    let (_server, _tmp, broker) = begin().await;
    let refused = async |name: &str, body: Value| {
        let path = format!("/v1/scenarios/{name}");
        let (status, said) = broker.call("PUT", &path, Some(body)).await;
        let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
        format!(
            "{status} {}\n{}\n{}",
            text("title"),
            text("detail"),
            text("hint")
        )
    };
    let bad = "scenario(\"x\");\nfn run(p) {\n    pakage(\"a\");\n    on(targets(), \"y\");\n}\n";
    let path = json!({ "../etc/passwd": "" });
    let all = [
        refused("bad", json!({ "script": bad })).await,
        refused("bad", json!({ "script": script("a"), "files": path })).await,
        refused(
            "bad",
            json!({ "script": script("a"), "files": { "a": "!" } }),
        )
        .await,
        refused("command", json!({ "script": script("a") })).await,
        refused(
            "bad",
            json!({ "script": script("a"), "note": "x".repeat(501) }),
        )
        .await,
        refused("bad", json!({ "script": "x".repeat(300_000) })).await,
        refused("Bad", json!({ "script": script("a") })).await,
        refused("bad", json!({ "script": script("a"), "nonsense": 1 })).await,
    ];
    insta::assert_snapshot!(all.join("\n---\n"));
    assert_eq!(broker.call("GET", "/v1/scenarios/bad", None).await.0, 404);
    let head = "PUT /v1/scenarios/bad HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let auth = format!("Authorization: Bearer {}\r\n", broker.token);
    let damaged = format!(
        "{head}{auth}Content-Type: application/octet-stream\r\nContent-Length: 4\r\n\r\nabcd"
    );
    let (status, _, said) = broker.raw(damaged.as_bytes()).await;
    assert_eq!(status, 400);
    assert!(said.contains("this is no packed scenario"), "{said}");
    let text = format!("{head}{auth}Content-Type: text/plain\r\nContent-Length: 4\r\n\r\nabcd");
    assert_eq!(broker.raw(text.as_bytes()).await.0, 415);
    let large = "x".repeat(7 << 20);
    let (status, _) = broker
        .call("PUT", "/v1/scenarios/bad", Some(json!({ "script": large })))
        .await;
    assert_eq!(status, 413);
    let reader = json!({ "for": "rita", "role": "reader" });
    let (_, reader) = broker.call("POST", "/v1/tokens", Some(reader)).await;
    let body = Some(json!({ "script": script("a") }));
    let token = reader["token"].as_str();
    let (status, said) = broker.send("PUT", "/v1/scenarios/ok", token, body).await;
    assert_eq!(status, 403, "{said}");
    let (status, _) = broker.send("GET", "/v1/scenarios/ping", token, None).await;
    assert_eq!(status, 200);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_scenarios_are_there_until_somebody_stores_another() {
    let (_server, _tmp, broker) = begin().await;
    let listed = get(&broker, "").await;
    let items = listed["items"].as_array().unwrap();
    assert_eq!(items.len(), muster_scenarios::stock::STOCK.len());
    assert!(
        items
            .iter()
            .all(|v| v["version"] == 0 && v["by"] == "muster")
    );
    let ping = get(&broker, "/ping").await;
    assert_eq!(ping["files"][0]["path"], "scenario.rhai");
    let (status, said) = broker.call("DELETE", "/v1/scenarios/ping", None).await;
    assert_eq!(status, 400);
    assert!(
        said["title"].as_str().unwrap().contains("came with muster"),
        "{said}"
    );

    assert_eq!(put(&broker, "ping", "mine").await["version"], 1);
    assert_eq!(get(&broker, "/ping").await["version"], 1);
    assert_eq!(
        get(&broker, "/ping?version=0").await["bundle"],
        ping["bundle"]
    );
    assert_eq!(numbers(&history(&broker, "ping").await), [1, 0]);
    let (status, _) = broker.call("DELETE", "/v1/scenarios/ping", None).await;
    assert_eq!(status, 200);
    assert_eq!(get(&broker, "/ping").await["version"], 0);
    // A version of one's own with the stock's content.
    let body = Some(json!({ "version": 0 }));
    let (_, said) = broker
        .call("POST", "/v1/scenarios/ping/rollback", body)
        .await;
    assert_eq!(
        (&said["version"], &said["bundle"]),
        (&json!(3), &ping["bundle"])
    );
    let (status, said) = broker.call("GET", "/v1/scenarios/pnig", None).await;
    assert_eq!(status, 404);
    assert!(
        said["hint"]
            .as_str()
            .unwrap()
            .contains("did you mean `ping`?"),
        "{said}"
    );
    broker.stop().await;
}

/// A scenario of several parts.
fn large(fill: u8) -> Value {
    let data = BASE64.encode(&vec![fill; 2_000_000]);
    json!({ "script": script("large"), "files": { "data/big": data } })
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_survives_a_crash_and_a_store_that_goes_back() {
    let (mut server, tmp, broker) = begin().await;
    let state = tmp.path().join("state");
    put(&broker, "hello", "a").await;
    let copy = tmp.path().join("copy");
    server.copy_store(&copy).await;
    broker.wait_active().await;
    let path = "/v1/scenarios/large";
    let stored = wait_for("NATS to be back", async || {
        let (status, said) = broker.call("PUT", path, Some(large(b'x'))).await;
        (status == 200).then_some(said)
    })
    .await;
    put(&broker, "hello", "b").await;
    put(&broker, "hello", "c").await;
    put(&broker, "gone", "d").await;
    assert_eq!(
        broker.call("DELETE", "/v1/scenarios/gone", None).await.0,
        200
    );

    // Killed with the last answer, and the store is yesterday's.
    broker.crash().await;
    server.put_store(Some(&copy)).await;
    let broker = TestBroker::start(&server, &state).await;
    let said = events(&broker, "alarm.store-went-back").await;
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("3 changes of scenarios"), "{said:?}");
    assert_eq!(numbers(&history(&broker, "hello").await), [3, 2, 1]);
    for (name, version, about) in [("hello", 3, "Say c"), ("large", 1, "Say large")] {
        let view = get(&broker, &format!("/{name}")).await;
        assert_eq!(
            (&view["version"], &view["manifest"]["about"]),
            (&json!(version), &json!(about))
        );
    }
    assert_eq!(get(&broker, "/large").await["bundle"], stored["bundle"]);
    assert_eq!(get(&broker, "/large").await["files"][0]["bytes"], 2_000_000);
    assert_eq!(broker.call("GET", "/v1/scenarios/gone", None).await.0, 404);
    // Numbers go on after what was lost.
    assert_eq!(put(&broker, "gone", "d").await["version"], 3);
    assert_eq!(put(&broker, "hello", "a").await["version"], 4);
    broker.stop().await;

    // All of the store is gone.
    server.put_store(None).await;
    let broker = TestBroker::start(&server, &state).await;
    assert_eq!(numbers(&history(&broker, "hello").await), [4, 3, 2, 1]);
    assert_eq!(get(&broker, "/large").await["bundle"], stored["bundle"]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_broker_takes_it_over_with_everything() {
    let (server, tmp, broker) = begin().await;
    put(&broker, "hello", "a").await;
    let other = tmp.path().join("other");
    copy_keys(&tmp.path().join("state"), &other);
    let mut second = TestBroker::begin(config_for(&server, &other)).await;
    second.token = broker.token.clone();
    put(&broker, "hello", "b").await;
    let (status, said) = second.call("GET", "/v1/scenarios", None).await;
    assert_eq!(status, 503, "{said}");
    broker.crash().await;
    second.wait_active().await;
    assert_eq!(get(&second, "/hello").await["version"], 2);
    assert_eq!(put(&second, "hello", "c").await["version"], 3);
    second.stop().await;
}

/// What makes a directory that of another broker of the same cluster.
fn copy_keys(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let out = std::process::Command::new("cp")
        .args(["-a", "--"])
        .arg(from.join("keys"))
        .arg(to)
        .status()
        .unwrap();
    assert!(out.success());
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() && entry.file_name() != "lock" {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_that_nobody_needs_go_and_a_damaged_one_is_mended() {
    let server = TestServer::start().await;
    let js = crate::store::context(server.broker().await);
    let bucket = crate::store::kv::BucketConfig::new;
    let ensured = crate::store::kv::ensure_bucket(&js, bucket("muster_bundles"));
    let parts: Kv<StoredPart> = Box::pin(ensured).await.unwrap();
    let shelf = Shelf::new(parts.clone());
    let packed = |fill: u8| Bytes::from(vec![fill; shelf::PART * 2 + 7]);
    let (one, other) = (packed(1), packed(2));
    let (hash, gone) = (BundleHash::of(&one), BundleHash::of(&other));
    let size = one.len() as u64;
    shelf.keep(hash, &one).await.unwrap();
    shelf.keep(gone, &other).await.unwrap();
    assert_eq!(parts.keys().await.unwrap().len(), 6);

    // Read anew, from what is stored.
    let fresh = || Shelf::new(parts.clone());
    assert_eq!(fresh().read(hash, size).await.unwrap(), one);
    let damaged = StoredPart::from(Bytes::from_static(b"x"));
    parts.put(&format!("{hash}-1"), &damaged).await.unwrap();
    let error = fresh().read(hash, size).await.unwrap_err();
    assert!(matches!(error, LibraryError::Damaged { .. }), "{error}");
    fresh().keep(hash, &one).await.unwrap();
    assert_eq!(fresh().read(hash, size).await.unwrap(), one);

    assert_eq!(shelf.sweep(&[hash].into()).await.unwrap(), 1);
    assert_eq!(parts.keys().await.unwrap().len(), 3);
    let error = shelf.read(gone, size).await.unwrap_err();
    assert!(
        error.to_string().contains("a part of it is missing"),
        "{error}"
    );
    assert_eq!(shelf.read(hash, size).await.unwrap(), one);
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_nodes_get_a_bundle_at_once_and_one_that_asks_too_much_waits() {
    use futures_util::StreamExt as _;
    use muster_protocol::ids::Serial;
    use muster_protocol::subject::{NodeSays, inbox_prefix};
    use muster_protocol::wire::{BUNDLE_HEADER, BundleHead, BundleRequest};

    const NODES: u32 = 200;
    let server = TestServer::start().await;
    let client = server.broker().await;
    let js = crate::store::context(client.clone());
    let (lease, events) = (Lease::fixed(1), Events::log_only());
    let bucket = crate::store::kv::BucketConfig::new;
    let names = crate::store::kv::ensure_bucket(&js, bucket("muster_scenarios"));
    let parts = crate::store::kv::ensure_bucket(&js, bucket("muster_bundles"));
    let (names, parts) = (
        Box::pin(names).await.unwrap(),
        Box::pin(parts).await.unwrap(),
    );
    let library = Box::pin(Library::open(names, parts, lease.clone(), events.clone()));
    let library = library.await.unwrap();
    let files = [("data".parse().unwrap(), vec![7; 600_000])];
    let put = Put {
        name: "large".parse().unwrap(),
        bundle: Bundle::new(script("large"), files.into()).unwrap(),
        note: None,
        expect: None,
    };
    let caller = crate::authz::Caller {
        principal: "ana".parse().unwrap(),
        role: muster_protocol::api::Role::Operator,
        token: "t".into(),
        door: muster_protocol::envelope::Door::Cli,
        origin: crate::authz::Origin::Unknown,
    };
    let store = crate::authz::Action::StoreScenarios;
    let put = crate::authz::authorize(&crate::authz::FixedRoles, &caller, store, put).unwrap();
    let (version, new) = library.put(put).await.unwrap();
    assert!(new && version.bytes > 600_000);

    let (_, authority) = crate::authority::Authority::in_memory();
    let cancel = tokio_util::sync::CancellationToken::new();
    let inventory = crate::inventory::Inventory::in_memory(crate::runs::tests::webs(NODES));
    let nodes = crate::bus::Nodes::start(crate::bus::Deps {
        observed: crate::vm::Observed::default(),
        groups: crate::groups::Desk::default(),
        freezer: crate::freeze::Freezer::never(&authority),
        client: client.clone(),
        js,
        inventory,
        authority,
        lease,
        events,
        journals: crate::presence::Journals::in_memory(),
        past: crate::twin::Past::unbroken(),
        connections: None,
        library: Some(library),
        settings: crate::bus::Settings::default(),
        cancel: cancel.clone(),
    })
    .await
    .unwrap();
    let ask = async |node: u32, from: u64| {
        let request = BundleRequest {
            bundle: version.hash,
            from,
        };
        let reply = format!("{}.x", inbox_prefix(Serial(node)));
        let subject = NodeSays::Bundle.subject(Serial(node));
        let request = serde_json::to_vec(&request).unwrap();
        client
            .publish_with_reply(subject, reply, request.into())
            .await
            .unwrap();
    };
    let mut answers = client.subscribe("_INBOX.m1.>").await.unwrap();
    let mut have: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    for node in 1..=NODES {
        ask(node, 0).await;
    }
    let mut left = NODES;
    while left > 0 {
        let answer = tokio::time::timeout(crate::nats::testing::PATIENCE, answers.next());
        let answer = answer.await.expect("an answer").expect("a message");
        let node: u32 = answer.subject.split('.').nth(2).unwrap().parse().unwrap();
        let head = answer.headers.as_ref().unwrap().get(BUNDLE_HEADER).unwrap();
        match serde_json::from_str(head.as_str()).unwrap() {
            BundleHead::Part { from, bytes } => {
                let mine = have.entry(node).or_default();
                assert_eq!((from, bytes), (mine.len() as u64, version.bytes));
                mine.extend_from_slice(&answer.payload);
                if (mine.len() as u64) < bytes {
                    ask(node, mine.len() as u64).await;
                } else {
                    assert_eq!(BundleHash::of(mine), version.hash, "node {node}");
                    left -= 1;
                }
            }
            BundleHead::Busy => ask(node, have.get(&node).map_or(0, Vec::len) as u64).await,
            BundleHead::None { reason } => panic!("{node}: {reason}"),
        }
    }

    // One node, again and again: it has had its share, and is told so.
    let busy = async || loop {
        ask(1, 0).await;
        let answer = tokio::time::timeout(crate::nats::testing::PATIENCE, answers.next());
        let answer = answer.await.expect("an answer").expect("a message");
        let head = answer.headers.as_ref().unwrap().get(BUNDLE_HEADER).unwrap();
        if serde_json::from_str::<BundleHead>(head.as_str()).unwrap() == BundleHead::Busy {
            return;
        }
    };
    let mut busy = busy;
    busy().await;
    cancel.cancel();
    nodes.stopped().await;
}
