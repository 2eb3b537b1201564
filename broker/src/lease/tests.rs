//! Two brokers and one lease, on a real NATS server.

use super::*;
use crate::nats::testing::TestServer;
use crate::store::kv::{BucketConfig, ensure_bucket};
use crate::testing::wait_for;

struct Broker {
    lease: Lease,
    task: tokio::task::JoinHandle<Result<(), LeaseError>>,
    cancel: CancellationToken,
    _dir: tempfile::TempDir,
    state: StateDir,
}

async fn bucket(server: &TestServer) -> Kv<LeaseValue> {
    let js = crate::store::context(server.broker().await);
    Box::pin(ensure_bucket(&js, BucketConfig::new("muster_cluster")))
        .await
        .unwrap()
}

fn who() -> Who {
    Who {
        url: Some("http://127.0.0.1:1".into()),
        users: vec![UserKey::of(&nkeys::KeyPair::new_user()).unwrap()],
    }
}

async fn seek(bucket: &Kv<LeaseValue>) -> Broker {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    begin(bucket, state, dir)
}

fn begin(bucket: &Kv<LeaseValue>, state: StateDir, dir: tempfile::TempDir) -> Broker {
    let cancel = CancellationToken::new();
    let holder = state.holder().unwrap();
    let (lease, task) = Lease::seek(bucket.clone(), state.clone(), holder, who(), cancel.clone());
    Broker {
        lease,
        task,
        cancel,
        _dir: dir,
        state,
    }
}

async fn active(broker: &Broker) -> u64 {
    wait_for("the lease", async || broker.lease.epoch()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_are_never_active_at_once_and_the_epoch_rises() {
    let server = TestServer::start().await;
    let kv = bucket(&server).await;
    let first = seek(&kv).await;
    assert_eq!(active(&first).await, 1);
    let second = seek(&kv).await;
    wait_for("the standby has looked", async || {
        matches!(&*second.lease.places().borrow(), Place::Standby { why, .. } if why.contains("epoch 1")).then_some(())
    })
    .await;
    assert_eq!(second.lease.epoch(), None);
    // The first one hangs: it does nothing more, but asks its lease.
    first.task.abort();
    let mut stopped = false;
    let epoch = wait_for("the second takes over", async || {
        // In this order: had the first one stopped when the second began?
        let second = second.lease.epoch();
        stopped |= first.lease.epoch().is_none();
        assert!(second.is_none() || stopped, "both were active");
        second
    })
    .await;
    assert_eq!(epoch, 2);
    assert_eq!(first.lease.epoch(), None);
    // Given back in good order, it is free at once.
    let third = seek(&kv).await;
    second.cancel.cancel();
    assert_eq!(active(&third).await, 3);
    assert_eq!(second.lease.epoch(), None);
    second.task.await.unwrap().unwrap();
    third.cancel.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_state_directory_has_it_back_at_once_after_a_crash() {
    let server = TestServer::start().await;
    let kv = bucket(&server).await;
    let first = seek(&kv).await;
    assert_eq!(active(&first).await, 1);
    first.task.abort();
    let (state, dir) = (first.state.clone(), first._dir);
    let begun = std::time::Instant::now();
    let again = begin(&kv, state, dir);
    assert_eq!(active(&again).await, 2);
    assert!(
        begun.elapsed() < TTL,
        "it has not waited for its own lease to run out"
    );
    again.cancel.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_overtaken_learns_it_and_a_wiped_server_brings_no_old_epoch_back() {
    let server = TestServer::start().await;
    let kv = bucket(&server).await;
    let broker = seek(&kv).await;
    assert_eq!(active(&broker).await, 1);
    let mut places = broker.lease.places();
    // Somebody else writes the lease.
    let stranger = LeaseValue {
        holder: InstanceId::random(),
        instance: InstanceId::random(),
        epoch: 40,
        beat: 0,
        released: false,
        who: who(),
        since: None,
        shut_out: Vec::new(),
    };
    kv.put(KEY, &stranger).await.unwrap();
    tokio::time::timeout(
        crate::nats::testing::PATIENCE,
        places.wait_for(|p| matches!(p, Place::Standby { .. })),
    )
    .await
    .unwrap()
    .unwrap();
    assert_eq!(broker.lease.epoch(), None);
    // The stranger says nothing more: after the time it is taken over, in
    // another term.
    assert_eq!(active(&broker).await, 41);
    assert!(matches!(
        *broker.lease.places().borrow(),
        Place::Active { epoch: 41, term: 1 }
    ));
    broker.cancel.cancel();
    broker.task.await.unwrap().unwrap();
    kv.forget(KEY).await.unwrap();
    let again = begin(&kv, broker.state, broker._dir);
    assert_eq!(active(&again).await, 42);
    again.cancel.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_suspends_and_nobody_else_was_active_so_the_term_stays() {
    let mut server = TestServer::start().await;
    let kv = bucket(&server).await;
    let broker = seek(&kv).await;
    assert_eq!(active(&broker).await, 1);
    server.kill();
    wait_for("it stops by itself", async || {
        broker.lease.epoch().is_none().then_some(())
    })
    .await;
    server.kill_and_restart().await;
    let epoch = active(&broker).await;
    assert!(epoch > 1);
    wait_for("the same term", async || {
        match *broker.lease.places().borrow() {
            Place::Active { term: 0, .. } => Some(()),
            _ => None,
        }
    })
    .await;
    broker.cancel.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_that_were_seen_are_shut_out_though_the_store_forgets_them() {
    let server = TestServer::start().await;
    let kv = bucket(&server).await;
    let first = seek(&kv).await;
    active(&first).await;
    let second = seek(&kv).await;
    wait_for("the standby has looked", async || {
        (!second.lease.met().is_empty()).then_some(())
    })
    .await;
    first.task.abort();
    wait_for("the end of the first", async || {
        first.task.is_finished().then_some(())
    })
    .await;
    // As a lease of yesterday: of the first one it knows nothing.
    let entry = kv.get(KEY).await.unwrap().unwrap();
    let users = entry.value.who.users.clone();
    let mut old = entry.value;
    old.who = Who::default();
    kv.update(KEY, &old, entry.revision).await.unwrap();
    active(&second).await;
    assert_eq!(second.lease.to_shut_out(), users);
    second.lease.are_shut_out(&users);
    assert!(second.lease.to_shut_out().is_empty() && second.lease.met().is_empty());
    second.cancel.cancel();
    second.task.await.unwrap().unwrap();
}
