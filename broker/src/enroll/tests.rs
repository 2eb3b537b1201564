//! Against a real NATS server, over HTTP, as agents do it.

use futures_util::StreamExt as _;
use muster_protocol::ids::Serial;
use serde_json::json;

use crate::nats::testing::TestServer;
use crate::testing::{TestBroker, TestNode, state_for, wait_closed, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn of_two_machines_with_one_invite_exactly_one_becomes_a_node() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    for round in 0..5 {
        let token = broker
            .invite(json!({ "name": format!("web-{round}"), "roles": ["web"] }))
            .await;
        let nodes: Vec<_> = (0..4).map(|_| TestNode::new()).collect();
        let tries = nodes.iter().map(|node| node.try_enroll(&broker, &token));
        let answers = futures_util::future::join_all(tries).await;
        let won: Vec<_> = answers
            .iter()
            .enumerate()
            .filter(|(_, (status, _))| *status == 200)
            .collect();
        assert_eq!(won.len(), 1, "{answers:?}");
        assert!(
            answers
                .iter()
                .all(|(status, _)| matches!(status, 200 | 403)),
            "{answers:?}"
        );
        let winner = &nodes[won[0].0];
        // The winner may ask again, when the answer was lost; nobody else.
        let again = winner.enroll(&broker, &token).await;
        assert_eq!(
            again.credentials.assignment.name.as_str(),
            format!("web-{round}")
        );
        assert_eq!(again.credentials.assignment.roles[0].as_str(), "web");
        assert_eq!(TestNode::new().try_enroll(&broker, &token).await.0, 403);
        // It can connect, and that it can is not a matter of its word.
        let client = winner.connect(&again).await.unwrap();
        client.flush().await.unwrap();
    }
    let (_, nodes) = broker.call("GET", "/v1/nodes", None).await;
    assert_eq!(nodes["items"].as_array().unwrap().len(), 5);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_good_invite_or_proof_is_refused() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let token = broker.invite(json!({ "name": "a" })).await;
    let node = TestNode::new();
    // A secret with one letter changed, and one of nobody.
    let mut other = token.clone().into_bytes();
    other[15] = if other[15] == b'0' { b'1' } else { b'0' };
    let (status, answer) = node
        .try_enroll(&broker, &String::from_utf8(other).unwrap())
        .await;
    assert_eq!((status, answer["kind"].as_str()), (403, Some("denied")));
    assert_eq!(node.try_enroll(&broker, "nonsense").await.0, 403);
    // A proof by another key, a used challenge.
    let forged = json!({
        "token": token, "node_key": TestNode::new().key.public(), "nats_key": node.nats.public_key(),
        "challenge": "0", "proof": node.key.sign(muster_protocol::keys::Purpose::NodeProof, b"x"),
    });
    let (status, answer) = broker
        .send("POST", "/v1/enroll", None, Some(forged.clone()))
        .await;
    assert_eq!((status, answer["kind"].as_str()), (409, Some("conflict")));
    let (_, challenge) = broker.send("POST", "/v1/agent/challenge", None, None).await;
    let mut forged = forged;
    forged["challenge"] = challenge["challenge"].clone();
    let (status, answer) = broker.send("POST", "/v1/enroll", None, Some(forged)).await;
    assert_eq!(
        (status, answer["title"].as_str()),
        (403, Some("the proof does not match the key"))
    );
    // Withdrawn, and too late.
    let (_, listed) = broker.call("GET", "/v1/invites", None).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert!(!listed.to_string().contains(&token));
    let id = listed["items"][0]["id"].as_str().unwrap();
    assert_eq!(
        broker
            .call("DELETE", &format!("/v1/invites/{id}"), None)
            .await
            .0,
        204
    );
    assert_eq!(
        broker
            .call("DELETE", &format!("/v1/invites/{id}"), None)
            .await
            .0,
        404
    );
    assert_eq!(node.try_enroll(&broker, &token).await.0, 403);
    let token = broker.invite(json!({ "name": "a", "expires": "1s" })).await;
    wait_for("the invite ends", async || {
        let (_, listed) = broker.call("GET", "/v1/invites", None).await;
        listed["items"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    let (status, answer) = node.try_enroll(&broker, &token).await;
    assert!(
        status == 403 && answer["title"].as_str().unwrap().contains("expired at"),
        "{answer}"
    );
    // Nothing of all this used up a name or a key.
    let token = broker.invite(json!({ "name": "a" })).await;
    node.enroll(&broker, &token).await;
    // A key that is known needs no second name.
    let token = broker.invite(json!({ "name": "b" })).await;
    let (status, answer) = node.try_enroll(&broker, &token).await;
    assert!(
        status == 409 && answer["title"].as_str().unwrap().contains("key"),
        "{answer}"
    );
    let (status, answer) = broker
        .call("POST", "/v1/invites", Some(json!({ "name": "a" })))
        .await;
    assert_eq!((status, answer["kind"].as_str()), (409, Some("conflict")));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_label_means_new_credentials_and_the_old_ones_are_void() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let node = TestNode::new();
    let token = broker
        .invite(json!({ "name": "web-01", "labels": { "zone": "gva2" } }))
        .await;
    let old = node.enroll(&broker, &token).await;
    let client = node.connect(&old).await.unwrap();
    let serial = old.credentials.serial;
    // Several changes in one second: each voids the one before.
    let mut held = old;
    for zone in ["dk2", "zrh1"] {
        let before = node.connect(&held).await.unwrap();
        let change = json!({ "set_labels": { "zone": zone }, "add_roles": ["web"] });
        let (status, answer) = broker.call("PATCH", "/v1/nodes/web-01", Some(change)).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["node"]["labels"]["zone"], zone);
        wait_closed(&before).await;
        assert!(
            node.connect(&held).await.is_err(),
            "the old credentials are revoked"
        );
        held = node.refresh(&broker, serial.0).await;
        assert_eq!(held.credentials.assignment.labels["zone"].as_str(), zone);
    }
    wait_closed(&client).await;
    assert_eq!(held.credentials.assignment.revision, 3);
    let client = node.connect(&held).await.unwrap();
    let subject = muster_protocol::subject::label_subject("zone", "zrh1");
    let mut told = client.subscribe(subject.clone()).await.unwrap();
    client.flush().await.unwrap();
    let sender = server.broker().await;
    sender.publish(subject, "x".into()).await.unwrap();
    sender.flush().await.unwrap();
    let got = tokio::time::timeout(crate::nats::testing::PATIENCE, told.next())
        .await
        .unwrap();
    assert_eq!(&got.unwrap().payload[..], b"x");
    // The same change again is none.
    let change = json!({ "set_labels": { "zone": "zrh1" } });
    let (_, answer) = broker.call("PATCH", "/v1/nodes/web-01", Some(change)).await;
    assert_eq!(answer["node"]["labels"]["zone"], "zrh1");
    client.flush().await.unwrap();
    assert_eq!(
        client.connection_state(),
        async_nats::connection::State::Connected
    );
    let change = json!({ "add_roles": ["x"], "remove_roles": ["x"] });
    assert_eq!(
        broker
            .call("PATCH", "/v1/nodes/web-01", Some(change))
            .await
            .0,
        400
    );
    assert_eq!(
        broker
            .call("PATCH", "/v1/nodes/web-02", Some(json!({})))
            .await
            .0,
        404
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_out_for_ever_also_after_restarts() {
    let (mut server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let (gone, stays) = (TestNode::new(), TestNode::new());
    let gone_token = broker.invite(json!({ "name": "gone" })).await;
    let joined = gone.enroll(&broker, &gone_token).await;
    let stays_token = broker.invite(json!({ "name": "stays" })).await;
    let stays_joined = stays.enroll(&broker, &stays_token).await;
    let client = gone.connect(&joined).await.unwrap();
    assert_eq!(broker.call("DELETE", "/v1/nodes/gone", None).await.0, 204);
    wait_closed(&client).await;
    let serial = joined.credentials.serial;
    let refused = async |broker: &TestBroker| {
        assert!(gone.connect(&joined).await.is_err());
        let (status, answer) = gone.try_refresh(broker, serial.0).await;
        assert!(
            status == 403 && answer["title"].as_str().unwrap().contains("removed"),
            "{answer}"
        );
        assert_ne!(gone.try_enroll(broker, &gone_token).await.0, 200);
        let token = broker.invite(json!({ "name": "gone" })).await;
        let (status, answer) = gone.try_enroll(broker, &token).await;
        assert!(
            status == 409 && answer["title"].as_str().unwrap().contains("key"),
            "{answer}"
        );
        assert_eq!(broker.call("GET", "/v1/nodes/gone", None).await.0, 404);
    };
    refused(&broker).await;
    // The serial is not used again.
    let other = TestNode::new();
    let token = broker.invite(json!({ "name": "gone" })).await;
    let other_joined = other.enroll(&broker, &token).await;
    assert!(other_joined.credentials.serial > serial);
    assert_eq!(broker.call("DELETE", "/v1/nodes/gone", None).await.0, 204);
    broker.stop().await;
    server.kill_and_restart().await;
    let broker = TestBroker::start(&server, tmp.path()).await;
    refused(&broker).await;
    stays.connect(&stays_joined).await.unwrap();
    let fresh = stays
        .refresh(&broker, stays_joined.credentials.serial.0)
        .await;
    stays.connect(&fresh).await.unwrap();
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_has_name_roles_and_labels_and_a_serial_of_its_own() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let (old, new) = (TestNode::new(), TestNode::new());
    let token = broker
        .invite(json!({ "name": "db-1", "roles": ["db"], "labels": { "rack": "r1" }, "infrastructure": true }))
        .await;
    let old_joined = old.enroll(&broker, &token).await;
    let client = old.connect(&old_joined).await.unwrap();
    let (status, invite) = broker
        .call("POST", "/v1/nodes/db-1/replace", Some(json!({})))
        .await;
    assert_eq!(status, 201, "{invite}");
    // Until it is used, the old one goes on; and a change still counts.
    client.flush().await.unwrap();
    let change = json!({ "add_roles": ["primary"] });
    assert_eq!(
        broker.call("PATCH", "/v1/nodes/db-1", Some(change)).await.0,
        200
    );
    let token = invite["token"].as_str().unwrap();
    let new_joined = new.enroll(&broker, token).await;
    wait_closed(&client).await;
    let assignment = &new_joined.credentials.assignment;
    assert_eq!(assignment.name.as_str(), "db-1");
    assert_eq!(
        assignment
            .roles
            .iter()
            .map(|r| r.as_str())
            .collect::<Vec<_>>(),
        ["db", "primary"]
    );
    assert_eq!(assignment.labels["rack"].as_str(), "r1");
    assert_ne!(new_joined.credentials.serial, old_joined.credentials.serial);
    assert_eq!(
        old.try_refresh(&broker, old_joined.credentials.serial.0)
            .await
            .0,
        403
    );
    assert_eq!(old.try_enroll(&broker, token).await.0, 403);
    new.connect(&new_joined).await.unwrap();
    let (_, node) = broker.call("GET", "/v1/nodes/db-1", None).await;
    assert_eq!(node["serial"], new_joined.credentials.serial.0);
    assert_eq!(node["infrastructure"], true);
    assert_eq!(node["key"], new.key.public().fingerprint().to_string());
    assert_ne!(node["state"], "up");
    assert_eq!(new_joined.keys.keys.len(), 1);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_names_in_one_pattern() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let ask = json!({ "name": "gva2-r03-h{01..40}", "count": 40, "labels": { "zone": "gva2" } });
    let (status, answer) = broker.call("POST", "/v1/invites", Some(ask)).await;
    assert_eq!(status, 201);
    let invites = answer["invites"].as_array().unwrap();
    let names: Vec<_> = invites
        .iter()
        .map(|i| i["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        (names.len(), names[0], names[39]),
        (40, "gva2-r03-h01", "gva2-r03-h40")
    );
    let node = TestNode::new();
    let joined = node
        .enroll(&broker, invites[16]["token"].as_str().unwrap())
        .await;
    assert_eq!(joined.credentials.assignment.name.as_str(), "gva2-r03-h17");
    assert_eq!(joined.credentials.serial, Serial(1));
    for bad in [
        json!({ "name": "h{1..3}", "count": 4 }),
        json!({ "name": "h", "count": 2 }),
        json!({ "name": "H" }),
    ] {
        assert_eq!(broker.call("POST", "/v1/invites", Some(bad)).await.0, 400);
    }
    let (status, answer) = broker
        .call("GET", "/v1/nodes?match=zone%3Dgva2", None)
        .await;
    assert_eq!(
        (status, answer["items"].as_array().unwrap().len()),
        (200, 1)
    );
    let (status, answer) = broker
        .call("GET", "/v1/nodes?match=zoen%3Dgva2", None)
        .await;
    assert_eq!(
        (status, answer["kind"].as_str()),
        (422, Some("unknown-name"))
    );
    assert!(
        answer["hint"].as_str().unwrap().contains("`zone`"),
        "{answer}"
    );
    assert_eq!(answer["span"], json!([0, 4]));
    let (status, _) = broker
        .call(
            "GET",
            "/v1/nodes?match=zoen%3Dgva2&allow_unknown=true",
            None,
        )
        .await;
    assert_eq!(status, 200);
    let (status, answer) = broker
        .call("GET", "/v1/nodes?match=(zone%3Dgva2", None)
        .await;
    assert_eq!(
        (status, answer["kind"].as_str()),
        (400, Some("invalid-predicate"))
    );
    broker.stop().await;
}
