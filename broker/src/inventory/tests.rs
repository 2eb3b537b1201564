//! The inventory on a real NATS server.

use std::collections::BTreeMap;

use muster_protocol::api::NodeChange;
use muster_protocol::keys::PrivateKey;
use muster_protocol::names::{LabelKey, LabelValue};
use muster_protocol::predicate::{Attributes as _, Predicate};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::nats::testing::TestServer;
use crate::store::kv::{BucketConfig, ensure_bucket};

async fn kv<T: Serialize + serde::de::DeserializeOwned>(server: &TestServer, name: &str) -> Kv<T> {
    let js = crate::store::context(Box::pin(server.broker()).await);
    Box::pin(ensure_bucket(&js, BucketConfig::new(name)))
        .await
        .unwrap()
}

fn keys_of(server: &TestServer) -> Arc<NatsKeys> {
    let dir = tempfile::tempdir().unwrap();
    server.keys.store(dir.path()).unwrap();
    Arc::new(NatsKeys::load(dir.path()).unwrap())
}

async fn load(server: &TestServer, lease: Lease) -> Inventory {
    Box::pin(read(server, lease)).await
}

async fn read(server: &TestServer, lease: Lease) -> Inventory {
    let buckets = Buckets {
        nodes: kv(server, "muster_nodes").await,
        facts: kv(server, "muster_facts").await,
        seen: kv(server, "muster_cluster").await,
        agents: kv(server, "muster_cluster").await,
        serial: kv(server, "muster_cluster").await,
        account: kv(server, "muster_cluster").await,
    };
    let (keys, system) = (keys_of(server), Box::pin(server.system()).await);
    let life = Span::from_secs(86_400);
    Box::pin(Inventory::load(
        buckets,
        keys,
        system,
        lease,
        Events::log_only(),
        life,
    ))
    .await
    .unwrap()
}

fn new_node(serial: Serial, name: &str) -> NewNode {
    NewNode {
        serial,
        node_key: PrivateKey::generate().public(),
        nats_key: UserKey::of(&nkeys::KeyPair::new_user()).unwrap(),
        name: name.parse().unwrap(),
        roles: vec!["web".parse().unwrap()],
        labels: BTreeMap::new(),
        infrastructure: false,
        replaces: None,
    }
}

async fn add(inventory: &Inventory, name: &str) -> Arc<NodeRecord> {
    let serial = inventory.allocate().await.unwrap();
    inventory.add(new_node(serial, name)).await.unwrap()
}

fn zone(value: &str) -> NodeChange {
    let key: LabelKey = "zone".parse().unwrap();
    let value: LabelValue = value.parse().unwrap();
    NodeChange {
        set_labels: BTreeMap::from([(key, value)]),
        ..NodeChange::default()
    }
}

fn facts(value: serde_json::Value) -> Facts {
    Facts {
        facts: value.as_object().unwrap().clone(),
        notes: vec!["a note".into()],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_quarantine_and_last_seen_survive() {
    let server = TestServer::start().await;
    let inventory = load(&server, Lease::fixed(1)).await;
    let (one, two) = (
        add(&inventory, "web-01").await,
        add(&inventory, "web-02").await,
    );
    inventory
        .set_facts(
            one.serial,
            facts(json!({ "os": { "name": "debian", "version": "12.1" } })),
        )
        .await
        .unwrap();
    let snapshot = inventory.snapshot();
    assert!(snapshot.knows("os.version") && snapshot.knows("os") && !snapshot.knows("os.vers"));
    assert_eq!(snapshot.candidates(), ["os", "os.name", "os.version"]);
    let predicate: Predicate = "os.version >= 12 and role=web".parse().unwrap();
    let matching: Vec<_> = snapshot
        .iter()
        .filter(|n| predicate.matches(&***n))
        .map(|n| n.name().to_owned())
        .collect();
    assert_eq!(matching, ["web-01"]);
    // A label goes before a fact, and facts stay through other changes.
    let os: NodeChange = serde_json::from_value(json!({ "set_labels": { "os": "x" } })).unwrap();
    let changed = inventory
        .change(&"web-01".parse().unwrap(), &os, &Detached, "ana")
        .await
        .unwrap();
    assert!(!changed.applied && !changed.node.facts.is_empty());
    assert!(Predicate::parse("os=x").unwrap().matches(&*changed.node));
    let huge = json!({ "x": "y".repeat(3 * MAX_FACTS) });
    assert!(matches!(
        inventory.set_facts(one.serial, facts(huge)).await,
        Err(InventoryError::FactsTooLarge(_))
    ));
    inventory
        .quarantine(two.serial, "two machines".into())
        .await
        .unwrap();
    inventory
        .quarantine(two.serial, "again".into())
        .await
        .unwrap();
    assert!(matches!(
        inventory.next_iat(two.serial).await,
        Err(InventoryError::Quarantined { reason, .. }) if reason == "two machines"
    ));
    let at = Timestamp::from_second(1_800_000_000).unwrap();
    inventory.note_seen(&[(one.serial, at)]).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    inventory.clone().tend(cancel).await;

    let again = load(&server, Lease::fixed(2)).await;
    let (before, after) = (inventory.snapshot(), again.snapshot());
    assert_eq!(after.len(), 2);
    assert_eq!(again.last_seen(one.serial), Some(at));
    for node in before.iter() {
        let mut node = (**node).clone();
        node.last_seen = again.last_seen(node.serial);
        assert_eq!(**after.get(node.serial).unwrap(), node);
    }
    assert_eq!(
        **after.by_name(&"web-02".parse().unwrap()).unwrap(),
        **before.get(two.serial).unwrap()
    );
}

/// Whom the servers keep out.
async fn revoked(server: &TestServer) -> crate::nats::revocations::Revocations {
    let account = server.keys.account_key();
    let system = Box::pin(server.system()).await;
    let claims = system.account_claims(&account).await.unwrap().unwrap();
    let claims = crate::nats::jwt::verify(&claims).unwrap();
    serde_json::from_value(claims.nats["revocations"].clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_the_servers_keep_out_stays_out_when_the_bucket_went_back() {
    let server = TestServer::start().await;
    let inventory = load(&server, Lease::fixed(1)).await;
    let gone = add(&inventory, "web-01").await;
    let bucket = kv::<AccountValue>(&server, "muster_cluster").await;
    inventory
        .remove(&gone.assignment.name, &Detached, "ana")
        .await
        .unwrap();
    let user: UserKey = gone.nats_key.parse().unwrap();
    assert!(revoked(&server).await.revokes(&user, gone.jwt_iat));
    // As it was before, and of the node nothing is left at all.
    let now = bucket.get("account").await.unwrap().unwrap();
    bucket
        .update("account", &AccountValue::default(), now.revision)
        .await
        .unwrap();
    let nodes = kv::<StoredNode>(&server, "muster_nodes").await;
    nodes.forget(&gone.serial.to_string()).await.unwrap();
    let again = load(&server, Lease::fixed(2)).await;
    again.settle().await.unwrap();
    assert!(revoked(&server).await.revokes(&user, gone.jwt_iat));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_between_a_removal_and_its_revocation_is_made_good() {
    let server = TestServer::start().await;
    let inventory = load(&server, Lease::fixed(1)).await;
    let (gone, other) = (
        add(&inventory, "web-01").await,
        add(&inventory, "web-02").await,
    );
    let nodes = kv::<StoredNode>(&server, "muster_nodes").await;
    let key = gone.serial.to_string();
    let entry = nodes.get(&key).await.unwrap().unwrap();
    let buried = StoredNode::removed(&gone, "ana", Timestamp::now());
    nodes.update(&key, &buried, entry.revision).await.unwrap();
    let again = load(&server, Lease::fixed(2)).await;
    // Also when the servers have just confirmed what the bucket holds.
    let bucket = kv::<AccountValue>(&server, "muster_cluster").await;
    let revision = bucket
        .get("account")
        .await
        .unwrap()
        .map_or(0, |e| e.revision);
    again.was_settled(Some(revision)).await;
    assert!(!again.is_settled());
    again.settle().await.unwrap();
    let revoked = revoked(&server).await;
    let user = |node: &NodeRecord| node.nats_key.parse::<UserKey>().unwrap();
    assert!(revoked.revokes(&user(&gone), gone.jwt_iat));
    assert!(!revoked.revokes(&user(&other), other.jwt_iat));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_changes_at_once_are_all_revoked_and_travel_together() {
    let server = TestServer::start().await;
    let inventory = load(&server, Lease::fixed(1)).await;
    let mut names = Vec::new();
    for n in 0..40 {
        names.push(
            add(&inventory, &format!("n{n}"))
                .await
                .assignment
                .name
                .clone(),
        );
    }
    let changes = names.iter().map(|name| async {
        inventory
            .change(name, &zone("gva2"), &Detached, "ana")
            .await
            .unwrap()
    });
    let changed = futures_util::future::join_all(changes).await;
    assert!(inventory.is_settled());
    let revoked = revoked(&server).await;
    for change in changed {
        let user = change.node.nats_key.parse().unwrap();
        assert!(revoked.revokes(&user, change.node.jwt_iat - 1));
        assert!(!revoked.revokes(&user, change.node.jwt_iat));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serials_and_names_are_never_given_twice() {
    let server = TestServer::start().await;
    let inventory = load(&server, Lease::fixed(1)).await;
    let tries = (0..20).map(|_| inventory.allocate());
    let mut serials: Vec<_> = futures_util::future::join_all(tries)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 20);
    let node = add(&inventory, "web-01").await;
    assert!(matches!(
        inventory.add(new_node(Serial(900), "web-01")).await,
        Err(InventoryError::NameTaken(_))
    ));
    inventory
        .remove(&"web-01".parse().unwrap(), &Detached, "ana")
        .await
        .unwrap();
    assert!(matches!(
        inventory
            .remove(&"web-01".parse().unwrap(), &Detached, "ana")
            .await,
        Err(InventoryError::NoNode(_))
    ));
    // A counter from an old backup gives no old serial.
    inventory
        .kept_buckets()
        .serial
        .put(SERIAL_KEY, &SerialCounter(0))
        .await
        .unwrap();
    let again = load(&server, Lease::fixed(2)).await;
    assert!(again.allocate().await.unwrap() > node.serial);
    let stolen = NewNode {
        node_key: node.node_key,
        ..new_node(Serial(901), "web-09")
    };
    assert!(matches!(
        again.add(stolen).await,
        Err(InventoryError::KnownKey(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_lease_nothing_is_written() {
    let server = TestServer::start().await;
    let inventory = load(&server, Lease::fixed(1)).await;
    let node = add(&inventory, "web-01").await;
    let idle = load(&server, Lease::not_held()).await;
    let name = node.assignment.name.clone();
    assert!(matches!(
        idle.allocate().await,
        Err(InventoryError::NotActive)
    ));
    assert!(matches!(
        idle.change(&name, &zone("x"), &Detached, "a").await,
        Err(InventoryError::NotActive)
    ));
    assert!(matches!(
        idle.remove(&name, &Detached, "a").await,
        Err(InventoryError::NotActive)
    ));
    assert!(matches!(
        idle.quarantine(node.serial, "x".into()).await,
        Err(InventoryError::NotActive)
    ));
    assert!(matches!(
        idle.next_iat(node.serial).await,
        Err(InventoryError::NotActive)
    ));
    let told = facts(json!({ "a": 1 }));
    assert!(matches!(
        idle.set_facts(node.serial, told).await,
        Err(InventoryError::NotActive)
    ));
    // Whoever wrote elsewhere in between is noticed, and caught up with.
    inventory
        .change(&name, &zone("gva2"), &Detached, "ana")
        .await
        .unwrap();
    let behind = load(&server, Lease::fixed(1)).await;
    inventory
        .change(&name, &zone("dk2"), &Detached, "ana")
        .await
        .unwrap();
    assert!(matches!(
        behind.change(&name, &zone("zrh"), &Detached, "bruno").await,
        Err(InventoryError::Store(KvError::Conflict { .. }))
    ));
    assert_eq!(
        behind.snapshot().get(node.serial).unwrap().label("zone"),
        Some("dk2")
    );
    behind
        .change(&name, &zone("zrh"), &Detached, "bruno")
        .await
        .unwrap();
}

impl Inventory {
    fn kept_buckets(&self) -> &Buckets {
        &self.0.kept.as_ref().unwrap().buckets
    }
}

proptest! {
    /// Pages are an optimisation: a snapshot is a map.
    #[test]
    fn a_snapshot_is_a_map(steps in prop::collection::vec((0u32..400, any::<bool>()), 0..60)) {
        let mut snapshot = Snapshot::default();
        let mut model: BTreeMap<u32, String> = BTreeMap::new();
        for (serial, put) in steps {
            if put {
                let name = format!("n{serial}");
                let new = new_node(Serial(serial), &name);
                let record = NodeRecord {
                    serial: new.serial,
                    node_key: new.node_key,
                    nats_key: String::new(),
                    assignment: muster_protocol::wire::Assignment {
                        revision: 1, name: new.name, roles: new.roles, labels: new.labels,
                    },
                    infrastructure: false,
                    enrolled: Timestamp::UNIX_EPOCH,
                    jwt_iat: 0,
                    standing: Standing::Active,
                    facts: Arc::default(),
                    notes: Vec::new(),
                    last_seen: None,
                };
                snapshot = snapshot.with(Arc::new(record));
                model.insert(serial, name);
            } else {
                snapshot = snapshot.without(Serial(serial));
                model.remove(&serial);
            }
            prop_assert_eq!(snapshot.len(), model.len());
        }
        let all: Vec<_> = snapshot.iter().map(|n| (n.serial.0, n.assignment.name.to_string())).collect();
        prop_assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
        for (serial, name) in &model {
            let found = snapshot.by_name(&name.parse().unwrap()).map(|n| n.serial.0);
            prop_assert_eq!(found, Some(*serial));
        }
    }
}
