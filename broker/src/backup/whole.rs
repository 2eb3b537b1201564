//! There and back, with a real NATS server.

use std::path::Path;

use muster_protocol::ids::InstanceId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::import::ImportError;
use super::restore::restore;
use super::{LEAP, LEAST_SERIALS};
use crate::nats::testing::TestServer;
use crate::serve::ServeError;
use crate::store::kv::{BucketConfig, Kv, ensure_bucket};
use crate::testing::{TestBroker, TestNode, config_for, state_for, wait_closed, wait_for};

/// HTTP/1.0, so that the body comes as it is.
async fn download(broker: &TestBroker, to: &Path) {
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port))
        .await
        .unwrap();
    let ask = format!(
        "GET /v1/backup HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n",
        broker.token
    );
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let at = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    std::fs::write(to, &answer[at + 4..]).unwrap();
}

async fn delete_streams(server: &TestServer) {
    let js = crate::store::context(Box::pin(server.broker()).await);
    for name in [
        "MUSTER_RUNS",
        "MUSTER_EVENTS",
        "KV_muster_nodes",
        "KV_muster_facts",
        "KV_muster_cluster",
        "KV_muster_tokens",
        "KV_muster_invites",
        "KV_muster_scenarios",
        "KV_muster_bundles",
        "KV_muster_schedules",
        "KV_muster_policy",
        "KV_muster_networks",
        "KV_muster_addresses",
        "KV_muster_groups",
        "KV_muster_address_sets",
        "KV_muster_images",
    ] {
        js.delete_stream(name).await.unwrap();
    }
}

fn revision(answer: &Value) -> u64 {
    let text = answer["credentials"]["text"].as_str().unwrap();
    let credentials: Value = serde_json::from_str(text).unwrap();
    credentials["assignment"]["revision"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_is_ahead_of_everything_that_was() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let (old, new) = (tmp.path().join("old"), tmp.path().join("new"));
    state_for(&server, &old);
    let broker = TestBroker::start(&server, &old).await;
    let [kept, removed, late] = [TestNode::new(), TestNode::new(), TestNode::new()];
    let mut serials = Vec::new();
    for (name, node) in [("kept", &kept), ("removed", &removed)] {
        let token = broker.invite(json!({ "name": name })).await;
        let joined = node.enroll(&broker, &token).await;
        serials.push(joined.credentials.serial.0);
    }
    let (status, _) = broker.call("DELETE", "/v1/nodes/removed", None).await;
    assert!(status < 300, "{status}");
    let unused = broker.invite(json!({ "name": "late" })).await;
    let file = tmp.path().join("backup");
    download(&broker, &file).await;
    let joined = late.enroll(&broker, &unused).await;
    let late_serial = joined.credentials.serial.0;
    broker.stop().await;

    // What is there is never written over.
    restore(&file, &new).unwrap();
    let error = TestBroker::begin(config_for(&server, &new))
        .await
        .ended()
        .await;
    assert!(
        matches!(error, Err(ServeError::Import(ImportError::NotEmpty { .. }))),
        "{error:?}"
    );

    // Half of another import: nobody opens on it, and it leaves no trace.
    delete_streams(&server).await;
    let js = crate::store::context(Box::pin(server.broker()).await);
    let cluster: Kv<Value> = Box::pin(ensure_bucket(&js, BucketConfig::new("muster_cluster")))
        .await
        .unwrap();
    let half = json!({ "id": InstanceId::random(), "done": false });
    cluster.create("restore", &half).await.unwrap();
    cluster.create("serial", &json!(77)).await.unwrap();
    let waiting = TestBroker::begin(config_for(&server, &old)).await;
    wait_for("the old broker says why it waits", async || {
        let (status, said) = waiting.send("GET", "/readyz", None, None).await;
        (status == 503 && said.to_string().contains("another broker")).then_some(())
    })
    .await;
    waiting.stop().await;
    let broker = TestBroker::start(&server, &new).await;
    assert!(!new.join("restore").exists());

    // Credentials from before are void, those of now are newer than all.
    let (status, _) = late.try_refresh(&broker, late_serial).await;
    assert_eq!(status, 403);
    let (_, unknown) = late.try_refresh(&broker, late_serial).await;
    assert!(
        unknown.to_string().contains("restored from a backup"),
        "{unknown}"
    );
    let (status, gone) = removed.try_refresh(&broker, serials[1]).await;
    assert!(
        status == 403 && gone.to_string().contains("removed or replaced"),
        "{gone}"
    );
    if let Ok(client) = late.connect(&joined).await {
        wait_closed(&client).await;
    }
    let (status, answer) = kept.try_refresh(&broker, serials[0]).await;
    assert_eq!(status, 200, "{answer}");
    assert!(revision(&answer) >= LEAP, "{answer}");
    let now = kept.refresh(&broker, serials[0]).await;
    assert!(now.keys.epoch >= LEAP);
    kept.connect(&now).await.unwrap();
    let (_, status) = broker.call("GET", "/v1/status", None).await;
    assert!(status["epoch"].as_u64() >= Some(LEAP), "{status}");

    // The invite that was not used yet works again, for another serial.
    let again = late.enroll(&broker, &unused).await;
    assert!(again.credentials.serial.0 > serials[1] + LEAST_SERIALS);
    broker.stop().await;
    // Nothing is imported a second time.
    let broker = TestBroker::start(&server, &new).await;
    late.refresh(&broker, again.credentials.serial.0).await;
    broker.stop().await;
}
