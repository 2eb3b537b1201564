//! Whole brokers: restarts, takeovers, keys, waiting for NATS.

use serde_json::json;

use super::*;
use crate::nats::testing::TestServer;
use crate::testing::{TestBroker, TestNode, config_for, state_for, wait_for};

fn copy_keys(from: &std::path::Path, to: &std::path::Path) {
    let to = StateDir::open(to).unwrap().keys();
    for entry in std::fs::read_dir(from.join("keys")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything_and_raises_the_epoch() {
    let (mut server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let token = broker.token.clone();
    let node = TestNode::new();
    let invite = broker
        .invite(json!({ "name": "web-01", "labels": { "zone": "gva2" } }))
        .await;
    let joined = node.enroll(&broker, &invite).await;
    let spare = broker.invite(json!({ "name": "web-02" })).await;
    let made = json!({ "for": "ana", "role": "reader" });
    let (_, ana) = broker.call("POST", "/v1/tokens", Some(made)).await;
    let change = json!({ "set_labels": { "rack": "r1" } });
    broker.call("PATCH", "/v1/nodes/web-01", Some(change)).await;
    let before = broker.call("GET", "/v1/nodes/web-01", None).await;
    let (_, status) = broker.call("GET", "/v1/status", None).await;
    assert_eq!(status["active"], true);
    broker.crash().await;
    server.kill_and_restart().await;

    let broker = TestBroker::start(&server, tmp.path()).await;
    assert_eq!(broker.token, token, "no second admin token");
    assert_eq!(broker.call("GET", "/v1/nodes/web-01", None).await, before);
    let (_, who) = broker
        .send("GET", "/v1/whoami", ana["token"].as_str(), None)
        .await;
    assert_eq!(
        (who["principal"].as_str(), who["role"].as_str()),
        (Some("ana"), Some("reader"))
    );
    assert!(
        node.connect(&joined).await.is_err(),
        "what was revoked stays revoked"
    );
    let fresh = node.refresh(&broker, joined.credentials.serial.0).await;
    assert_eq!(fresh.credentials.assignment.revision, 2);
    node.connect(&fresh).await.unwrap();
    TestNode::new().enroll(&broker, &spare).await;
    let (_, after) = broker.call("GET", "/v1/status", None).await;
    assert!(after["epoch"].as_u64() > status["epoch"].as_u64());
    assert_eq!(after["cluster"], status["cluster"]);
    assert_eq!(after["key_epoch"], status["key_epoch"]);
    let (_, events) = broker.call("GET", "/v1/events?after=0&limit=2", None).await;
    assert_eq!(events["items"].as_array().unwrap().len(), 2);
    let (_, rest) = broker
        .call(
            "GET",
            &format!("/v1/events?after={}", events["next"].as_str().unwrap()),
            None,
        )
        .await;
    let kinds: Vec<_> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["type"].as_str().unwrap())
        .collect();
    assert!(
        kinds.contains(&"node.changed") && kinds.contains(&"node.enrolled"),
        "{kinds:?}"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_says_so_takes_over_and_knows_everything() {
    let (server, one, two) = (
        TestServer::start().await,
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    state_for(&server, one.path());
    let first = TestBroker::start(&server, one.path()).await;
    copy_keys(one.path(), two.path());
    let mut second = TestBroker::begin(config_for(&server, two.path())).await;
    second.token = first.token.clone();
    wait_for("the standby says so", async || {
        let (status, said) = second.send("GET", "/readyz", None, None).await;
        (status == 503 && said["state"] == "standby").then_some(())
    })
    .await;
    let (status, problem) = second.call("GET", "/v1/nodes", None).await;
    assert_eq!(
        (status, problem["kind"].as_str()),
        (503, Some("unavailable"))
    );
    let invite = first.invite(json!({ "name": "web-01" })).await;
    let joined = TestNode::new().enroll(&first, &invite).await;
    // In the middle of its life, the first broker gives up in good order.
    first.stop().await;
    second.wait_active().await;
    let (_, nodes) = second.call("GET", "/v1/nodes", None).await;
    assert_eq!(nodes["items"][0]["serial"], joined.credentials.serial.0);
    let (_, status) = second.call("GET", "/v1/status", None).await;
    assert_eq!(status["epoch"], 2);
    assert!(
        !two.path().join("admin.token").exists(),
        "there is an admin token already"
    );
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_and_are_revoked_and_that_survives() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let (_, list) = broker.call("GET", "/v1/keys", None).await;
    let id = |key: &serde_json::Value| {
        key["key"]
            .as_str()
            .unwrap()
            .parse::<muster_protocol::keys::PublicKey>()
            .unwrap()
            .id()
            .to_string()
    };
    let old = id(&list["keys"][0]);
    let (status, answer) = broker
        .call("POST", &format!("/v1/keys/{old}/revoke"), None)
        .await;
    assert_eq!((status, answer["kind"].as_str()), (409, Some("conflict")));
    assert!(
        answer["hint"].as_str().unwrap().contains("rotate"),
        "{answer}"
    );
    let (status, rotated) = broker.call("POST", "/v1/keys/rotate", None).await;
    assert_eq!((status, rotated["epoch"].as_u64()), (200, Some(2)));
    let new = id(&rotated["keys"][1]);
    // Credentials are signed with the new key at once, and a node's check of
    // them passes.
    let node = TestNode::new();
    let invite = broker.invite(json!({ "name": "web-01" })).await;
    let joined = node.enroll(&broker, &invite).await;
    assert_eq!(joined.keys.epoch, 2);
    let (status, revoked) = broker
        .call("POST", &format!("/v1/keys/{old}/revoke"), None)
        .await;
    assert_eq!((status, revoked["epoch"].as_u64()), (200, Some(3)));
    assert_eq!(revoked["keys"][0]["state"], "revoked");
    assert_eq!(
        broker
            .call("POST", &format!("/v1/keys/{new}/revoke"), None)
            .await
            .0,
        409
    );
    assert_eq!(
        broker.call("POST", "/v1/keys/00000/revoke", None).await.0,
        400
    );
    assert!(!tmp.path().join(format!("keys/broker-{old}.key")).exists());
    broker.stop().await;
    let broker = TestBroker::start(&server, tmp.path()).await;
    let (_, again) = broker.call("GET", "/v1/keys", None).await;
    assert_eq!(again, revoked);
    let fresh = node.refresh(&broker, joined.credentials.serial.0).await;
    assert_eq!(fresh.keys.epoch, 3);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_list_in_nats_does_not_bring_a_revoked_key_back() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let js = crate::store::context(server.broker().await);
    let bucket: Kv<muster_protocol::keys::SignedText> =
        bucket(&js, "muster_cluster").await.unwrap();
    let old = bucket.get("key-list").await.unwrap().unwrap().value;
    broker.call("POST", "/v1/keys/rotate", None).await;
    broker.stop().await;
    bucket.put("key-list", &old).await.unwrap();
    let broker = TestBroker::start(&server, tmp.path()).await;
    let (_, list) = broker.call("GET", "/v1/keys", None).await;
    assert_eq!(list["epoch"], 2);
    broker.stop().await;
    // A list that the root key did not sign is not taken at all.
    let mut forged = old;
    forged.text = forged.text.replace("active", "revoked");
    bucket.put("key-list", &forged).await.unwrap();
    let broker = TestBroker::begin(config_for(&server, tmp.path())).await;
    let error = broker.ended().await.unwrap_err().to_string();
    assert!(
        error.contains("key") && error.contains("refused"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_the_broker_waits_and_says_for_what() {
    let (mut server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    server.kill();
    let broker = TestBroker::begin(config_for(&server, tmp.path())).await;
    wait_for("it says what it waits for", async || {
        let (status, said) = broker.send("GET", "/readyz", None, None).await;
        let reason = said["reason"].as_str().unwrap_or_default().to_owned();
        (status == 503 && said["state"] == "starting" && reason.contains("nats")).then_some(())
    })
    .await;
    assert_eq!(broker.send("GET", "/healthz", None, None).await.0, 200);
    let (status, problem) = broker.send("GET", "/v1/status", None, None).await;
    assert_eq!(
        (status, problem["kind"].as_str()),
        (503, Some("unavailable"))
    );
    // A second broker on the same state does not begin at all.
    let second = TestBroker::begin(config_for(&server, tmp.path())).await;
    let error = second.ended().await.unwrap_err().to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    server.kill_and_restart().await;
    broker.wait_active().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_operator_is_named() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    StateDir::open(tmp.path()).unwrap();
    let broker = TestBroker::begin(config_for(&server, tmp.path())).await;
    wait_for("it says why", async || {
        let (_, said) = broker.send("GET", "/readyz", None, None).await;
        said["reason"]
            .as_str()
            .unwrap_or_default()
            .contains("muster nats-config")
            .then_some(())
    })
    .await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervised_server_can_be_prepared_with_tls_and_serves_a_broker() {
    use crate::embedded::{EmbeddedOptions, prepare_embedded};
    let tmp = tempfile::tempdir().unwrap();
    let program = crate::nats::version::locate(std::env::var_os("PATH").as_deref()).unwrap();
    let version = crate::nats::version::installed(&program).await.unwrap();
    let options = EmbeddedOptions {
        listen: Some(([0, 0, 0, 0], 0).into()),
        names: vec!["muster.example".into()],
        version,
    };
    let prepared = prepare_embedded(tmp.path(), &options).unwrap();
    assert_eq!(
        prepare_embedded(tmp.path(), &options).unwrap(),
        prepared,
        "the port stays"
    );
    assert!(
        prepared.agent_urls[0].starts_with("tls://muster.example:"),
        "{prepared:?}"
    );
    let mut child = tokio::process::Command::new(program)
        .arg("-c")
        .arg(&prepared.config)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut config = Config {
        state: tmp.path().to_owned(),
        ..Config::default()
    };
    config.nats.urls.clone_from(&prepared.urls);
    let broker = TestBroker::begin(config).await;
    broker.wait_active().await;
    let (_, said) = broker.send("GET", "/readyz", None, None).await;
    assert_eq!(said["state"], "active");
    broker.stop().await;
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_it_speaks_https_only() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let tmp = tempfile::tempdir().unwrap();
    let state = StateDir::open(tmp.path()).unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut config = Config {
        state: tmp.path().to_owned(),
        ..Config::default()
    };
    config.nats.urls = vec!["nats://127.0.0.1:1".into()];
    let cancel = CancellationToken::new();
    let task = tokio::spawn(serve(config, listener, cancel.clone()));
    let connect = async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .unwrap()
    };
    let ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let pem = wait_for("the authority is made", async || {
        std::fs::read_to_string(state.keys().join("ca.pem")).ok()
    })
    .await;
    let mut plain = connect().await;
    plain.write_all(ask).await.unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said).await;
    assert!(
        !String::from_utf8_lossy(&said).contains("200"),
        "no answer in the clear"
    );
    let client = crate::tls::client_config(&pem, tmp.path()).unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(client));
    let mut stream = tls
        .connect("localhost".try_into().unwrap(), connect().await)
        .await
        .unwrap();
    stream.write_all(ask).await.unwrap();
    let mut said = String::new();
    let _ = stream.read_to_string(&mut said).await;
    assert!(
        said.starts_with("HTTP/1.1 200") && said.contains("strict-transport-security"),
        "{said}"
    );
    cancel.cancel();
    task.await.unwrap().unwrap();
}
