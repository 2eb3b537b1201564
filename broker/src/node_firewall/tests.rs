//! Over HTTP, as agents do it, and which addresses count.

use std::net::IpAddr;
use std::sync::Arc;

use muster_protocol::ids::{RunId, Serial};
use muster_protocol::keys::PrivateKey;
use muster_protocol::names::RoleName;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::Assignment;
use serde_json::json;

use super::{assigned, of_roles};
use crate::inventory::{NodeRecord, Snapshot, Standing};
use crate::nats::testing::TestServer;
use crate::testing::{TestBroker, TestNode, state_for};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_anything_without_a_step_that_is_open() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let token = broker
        .invite(json!({ "name": "web-01", "roles": ["web"], "labels": { "address": "192.0.2.7" } }))
        .await;
    let node = TestNode::new();
    let serial = node.enroll(&broker, &token).await.credentials.serial.0;
    let request = json!({ "run": RunId::random(), "step": 0 });
    let addresses = json!({ "request": request, "roles": ["web"] });
    let confirm = json!({
        "request": request, "within": "5s",
        "probes": [{ "from": "role=web", "tcp": 22 }],
    });
    for (what, body) in [("addresses", addresses), ("confirm", confirm)] {
        // Who it is is proven, and there is no such step.
        let asked = node.ask_firewall(&broker, (serial, what), body.clone());
        let (status, answer) = asked.await;
        assert_eq!(status, 403, "{answer}");
        let title = answer["title"].as_str().unwrap_or_default();
        assert!(
            title.contains("no step that is open on this node"),
            "{answer}"
        );
        assert!(!answer.to_string().contains("192.0.2.7"), "{answer}");
        // Somebody else in its name.
        let stranger = TestNode::new();
        let asked = stranger.ask_firewall(&broker, (serial, what), body.clone());
        let (status, answer) = asked.await;
        assert_eq!(
            (status, answer["title"].as_str()),
            (403, Some("the proof does not match the key"))
        );
        // What is not known is refused.
        let mut more = body;
        more["x"] = 1.into();
        let (status, answer) = node.ask_firewall(&broker, (serial, what), more).await;
        assert_eq!(status, 400, "{answer}");
    }
    let roles: Vec<String> = (0..65).map(|n| format!("r{n}")).collect();
    let body = json!({ "request": request, "roles": roles });
    let asked = node.ask_firewall(&broker, (serial, "addresses"), body);
    let (status, answer) = asked.await;
    assert_eq!(status, 400, "{answer}");
    broker.stop().await;
}

fn node(serial: u32, name: &str, labels: &[(&str, &str)]) -> NodeRecord {
    let role = |text: &str| text.parse::<RoleName>().expect("a role");
    let label = |(key, value): &(&str, &str)| {
        let key = key.parse().expect("a label");
        (key, value.parse().expect("a value"))
    };
    NodeRecord {
        serial: Serial(serial),
        node_key: PrivateKey::generate().public(),
        nats_key: String::new(),
        assignment: Assignment {
            revision: 1,
            name: name.parse().expect("a name"),
            roles: vec![role("web"), role(name)],
            labels: labels.iter().map(label).collect(),
        },
        infrastructure: false,
        enrolled: Timestamp::UNIX_EPOCH,
        jwt_iat: 0,
        standing: Standing::Active,
        // What it says of itself.
        facts: Arc::new(
            json!({ "address": "198.51.100.9" })
                .as_object()
                .cloned()
                .unwrap_or_default(),
        ),
        notes: Vec::new(),
        last_seen: None,
    }
}

#[test]
fn only_addresses_that_operators_gave_count() {
    let many = "192.0.2.8+2001:db8::8+nonsense";
    let two = node(2, "two", &[("addresses", many), ("address", "192.0.2.8")]);
    let addresses: Vec<IpAddr> = assigned(&two, &[]);
    let wanted = ["192.0.2.8", "2001:db8::8"].map(|text| text.parse::<IpAddr>().expect("one"));
    assert_eq!(addresses, wanted);
    let snapshot = Snapshot::new([
        node(1, "one", &[("address", "192.0.2.7")]),
        two,
        node(3, "three", &[("address", "three.example.org")]),
    ]);
    let roles = ["web", "three", "nobody"].map(|name| name.parse().expect("a role"));
    let found = of_roles(&roles, &snapshot, &[]);
    let text = serde_json::to_string(&found).expect("is JSON");
    insta::assert_snapshot!(text, @r#"{"roles":{"three":[],"web":["192.0.2.7/32","192.0.2.8/32","2001:db8::8/128"]}}"#);
}
