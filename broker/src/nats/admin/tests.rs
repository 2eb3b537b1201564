use std::sync::Arc;

use nkeys::KeyPair;

use super::*;
use crate::nats::jwt::{Revocations, UnixSeconds, UserClaims, next_issued_at};
use crate::nats::permissions::{Permissions, node_permissions};
use crate::nats::testing::{PATIENCE, TestServer, now};

fn node(server: &TestServer, key: &Arc<KeyPair>, issued_at: UnixSeconds) -> Credentials {
    let claims = UserClaims {
        name: "web-01".into(),
        user: UserKey::of(key).unwrap(),
        issued_at,
        expires_at: None,
        permissions: node_permissions(1, &[], &[]),
        max_subscriptions: None,
        max_payload: None,
    };
    Credentials::new(claims.sign(server.keys.account()).unwrap(), Arc::clone(key))
}

async fn connect(server: &TestServer, who: &Credentials) -> Result<Client, ConnectErrorKind> {
    who.connect_options()
        .name("agent web-01")
        .connect(server.url())
        .await
        .map_err(|e| e.kind())
}

async fn next(events: &mut (impl Stream<Item = ConnUpdate> + Unpin)) -> ConnUpdate {
    timeout(PATIENCE, events.next())
        .await
        .expect("an event in time")
        .expect("the stream goes on")
}

async fn next_event(events: &mut (impl Stream<Item = ConnUpdate> + Unpin)) -> ConnEvent {
    loop {
        if let ConnUpdate::Event(event) = next(events).await {
            return event;
        }
    }
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_and_its_successor_gets_in_even_after_a_kill() {
    let mut server = TestServer::start().await;
    let system = server.system().await;
    let mut events = system
        .connection_events(&server.keys.account_key())
        .await
        .unwrap();
    assert_eq!(next(&mut events).await, ConnUpdate::Resync);

    let key = Arc::new(KeyPair::new_user());
    let public = UserKey::of(&key).unwrap();
    let first = next_issued_at(now(), None);
    let old = node(&server, &key, first);
    let connection = connect(&server, &old).await.unwrap();
    let came = next_event(&mut events).await;
    assert_eq!(came.change, ConnChange::Connected);
    assert_eq!(came.user_key.as_ref(), Some(&public));
    assert_eq!(came.client_name, "agent web-01");

    // Within the same second as the first claim: the hardest case.
    let second = next_issued_at(first, Some(first));
    let mut revoked = Revocations::default();
    revoked.revoke(public.clone(), second - 1);
    system
        .push_account_claims(&server.account_claims(now(), revoked))
        .await
        .unwrap();
    let went = next_event(&mut events).await;
    assert_eq!(
        (went.user_key.as_ref(), went.connection),
        (Some(&public), came.connection)
    );
    assert_eq!(
        went.change,
        ConnChange::Disconnected {
            reason: "Credentials Revoked".into()
        }
    );
    drop(connection);

    assert_eq!(
        connect(&server, &old).await.unwrap_err(),
        ConnectErrorKind::AuthorizationViolation
    );
    let new = node(&server, &key, second);
    connect(&server, &new).await.unwrap();

    // The configuration still preloads the claims without the revocation.
    server.kill_and_restart().await;
    assert_eq!(
        connect(&server, &old).await.unwrap_err(),
        ConnectErrorKind::AuthorizationViolation
    );
    connect(&server, &new).await.unwrap();
}

#[tokio::test]
async fn the_grain_of_revocation_is_a_second_and_inclusive() {
    let server = TestServer::start().await;
    let system = server.system().await;
    let key = Arc::new(KeyPair::new_user());
    // Ahead of the clock, as after many changes within one second.
    let until = now() + 5;
    let mut revoked = Revocations::default();
    revoked.revoke(UserKey::of(&key).unwrap(), until);
    system
        .push_account_claims(&server.account_claims(now(), revoked))
        .await
        .unwrap();
    for (issued_at, in_time) in [(until - 1, false), (until, false), (until + 1, true)] {
        let result = connect(&server, &node(&server, &key, issued_at)).await;
        assert_eq!(
            result.is_ok(),
            in_time,
            "issued {} s after",
            issued_at as i64 - until as i64
        );
    }
}

#[tokio::test]
async fn two_connections_with_one_key_are_seen() {
    let server = TestServer::start().await;
    let system = server.system().await;
    let account = server.keys.account_key();
    let key = Arc::new(KeyPair::new_user());
    let who = node(&server, &key, now());
    let one = connect(&server, &who).await.unwrap();
    let two = connect(&server, &who).await.unwrap();
    let live = system.live_connections(&account).await.unwrap();
    assert_eq!(live.len(), 2);
    assert!(live.iter().all(|c| c.user_key == UserKey::of(&key)));
    assert_ne!(live[0].connection, live[1].connection);
    let kicked = system.kick(&live[0].server_id, live[0].connection).await;
    if system.server_version() < "2.11.0".parse().unwrap() {
        assert!(
            matches!(kicked, Err(AdminError::Unsupported { .. })),
            "{kicked:?}"
        );
    } else {
        kicked.unwrap();
    }
    drop((one, two));
}

#[tokio::test]
async fn an_outage_of_the_system_connection_is_told() {
    let mut server = TestServer::start().await;
    let system = server.system().await;
    let mut events = system
        .connection_events(&server.keys.account_key())
        .await
        .unwrap();
    assert_eq!(next(&mut events).await, ConnUpdate::Resync);
    server.kill_and_restart().await;
    assert_eq!(next(&mut events).await, ConnUpdate::Resync);
    // And events go on after it.
    let end = Instant::now() + PATIENCE;
    while system.servers().await.is_err() {
        assert!(
            Instant::now() < end,
            "the system connection did not come back"
        );
    }
    let who = node(&server, &Arc::new(KeyPair::new_user()), now());
    let _connection = connect(&server, &who).await.unwrap();
    assert_eq!(next_event(&mut events).await.change, ConnChange::Connected);
}

#[tokio::test]
async fn foreign_and_outdated_claims_do_not_reach_the_servers() {
    let server = TestServer::start().await;
    let system = server.system().await;
    let account = server.keys.account_key();
    let refused = system.push_account_claims("nonsense").await.unwrap_err();
    assert!(matches!(refused, AdminError::NotClaims(_)), "{refused}");

    // Our account, signed by somebody who says to be an operator.
    let claims = |issued_at, operator: &KeyPair, revocations| {
        crate::nats::jwt::AccountClaims {
            name: "muster".into(),
            account: account.clone(),
            issued_at,
            jetstream: None,
            revocations,
        }
        .sign(operator)
        .unwrap()
    };
    let foreign = claims(now() + 10, &KeyPair::new_operator(), Revocations::default());
    let refused = system.push_account_claims(&foreign).await.unwrap_err();
    assert!(
        matches!(refused, AdminError::OtherOperator { .. }),
        "{refused}"
    );

    let key = Arc::new(KeyPair::new_user());
    let mut revoked = Revocations::default();
    revoked.revoke(UserKey::of(&key).unwrap(), now());
    let at = now();
    let current = claims(at, server.keys.operator(), revoked);
    system.push_account_claims(&current).await.unwrap();
    system.push_account_claims(&current).await.unwrap();
    for old in [at - 50, at] {
        let outdated = claims(old, server.keys.operator(), Revocations::default());
        let refused = system.push_account_claims(&outdated).await.unwrap_err();
        assert!(matches!(refused, AdminError::Outdated { .. }), "{refused}");
    }
    assert!(connect(&server, &node(&server, &key, at)).await.is_err());
    assert_eq!(
        system.account_claims(&account).await.unwrap(),
        Some(current)
    );
}

#[tokio::test]
async fn a_memory_resolver_is_named_as_the_problem() {
    let server = TestServer::start_without_resolver().await;
    let system = server.system().await;
    let claims = server.account_claims(now(), Revocations::default());
    let refused = system.push_account_claims(&claims).await.unwrap_err();
    assert!(matches!(refused, AdminError::NoResolver), "{refused}");
}

#[tokio::test]
async fn connecting_says_what_is_wrong() {
    let server = TestServer::start().await;
    let stranger = TestServer::start().await;
    let credentials = stranger.system_credentials();
    let error = SystemClient::connect(&[server.url()], &credentials, |o| o)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("muster nats-config"), "{error}");
    let url = stranger.url();
    drop(stranger);
    let error = SystemClient::connect(std::slice::from_ref(&url), &credentials, |o| o)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&url), "{error}");
}

#[tokio::test]
async fn many_connections_are_listed_page_by_page() {
    let server = TestServer::start().await;
    let system = server.system().await;
    let everything = Permissions {
        publish: Default::default(),
        subscribe: Default::default(),
    };
    let who = server.user("many", everything);
    let mut held = Vec::new();
    for _ in 0..25 {
        held.push(connect(&server, &who).await.unwrap());
    }
    let live = system
        .live_in_pages(&server.keys.account_key(), 10)
        .await
        .unwrap();
    let numbers: BTreeSet<u64> = live.iter().map(|c| c.connection).collect();
    assert_eq!((live.len(), numbers.len()), (25, 25));
}

#[tokio::test]
async fn every_server_of_a_cluster_gets_new_claims() {
    let mut servers = TestServer::start_cluster(3).await;
    let system = servers[0].system().await;
    let end = Instant::now() + PATIENCE;
    while system.servers().await.map_or(0, |s| s.len()) < 3 {
        assert!(Instant::now() < end, "the cluster never formed");
    }
    let mut events = system
        .connection_events(&servers[0].keys.account_key())
        .await
        .unwrap();
    let key = Arc::new(KeyPair::new_user());
    let at = now();
    let who = node(&servers[2], &key, at);
    // On another server than the administrator.
    let _connection = connect(&servers[2], &who).await.unwrap();
    assert_eq!(next_event(&mut events).await.change, ConnChange::Connected);
    let live = system
        .live_connections(&servers[0].keys.account_key())
        .await
        .unwrap();
    assert_eq!(live.len(), 1);

    let mut revoked = Revocations::default();
    revoked.revoke(UserKey::of(&key).unwrap(), at);
    let claims = servers[0].account_claims(now(), revoked);
    system.push_account_claims(&claims).await.unwrap();
    assert!(matches!(
        next_event(&mut events).await.change,
        ConnChange::Disconnected { reason } if reason == "Credentials Revoked"
    ));
    for server in &servers {
        assert!(connect(server, &who).await.is_err());
    }

    // A server that was away hears of it when it comes back.
    let mut revoked = Revocations::default();
    revoked.revoke(UserKey::of(&key).unwrap(), at + 1);
    servers[1].kill();
    let claims = servers[0].account_claims(next_issued_at(now(), Some(now())), revoked);
    let end = Instant::now() + PATIENCE;
    // While the others still wait for the dead one, the push is unconfirmed.
    while let Err(error) = system.push_account_claims(&claims).await {
        assert!(matches!(error, AdminError::Unconfirmed { .. }), "{error}");
        assert!(Instant::now() < end, "{error}");
    }
    servers[1].kill_and_restart().await;
    let late = node(&servers[1], &key, at + 1);
    let end = Instant::now() + PATIENCE;
    while connect(&servers[1], &late).await.is_ok() {
        assert!(
            Instant::now() < end,
            "the server that was away lets a revoked node in"
        );
    }
}

#[tokio::test]
async fn ten_thousand_revocations_are_one_push_and_one_entry_for_everyone_replaces_them() {
    let server = TestServer::start().await;
    let system = server.system().await;
    let mut revoked = Revocations::default();
    let mut last = None;
    for n in 0..10_000u32 {
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&n.to_le_bytes());
        let key = KeyPair::new_from_raw(nkeys::KeyPairType::User, seed).unwrap();
        revoked.revoke(UserKey::of(&key).unwrap(), now());
        last = Some(key);
    }
    let at = now();
    let claims = server.account_claims(at, revoked.clone());
    system.push_account_claims(&claims).await.unwrap();
    let who = node(&server, &Arc::new(last.unwrap()), at - 1);
    assert!(connect(&server, &who).await.is_err());
    let other = node(&server, &Arc::new(KeyPair::new_user()), at + 1);
    let connection = connect(&server, &other).await.unwrap();

    revoked.compact(at + 1);
    assert_eq!(revoked.len(), 0);
    let claims = server.account_claims(next_issued_at(now(), Some(at)), revoked);
    system.push_account_claims(&claims).await.unwrap();
    assert!(connect(&server, &who).await.is_err());
    connect(&server, &other).await.unwrap();
    let live = system
        .live_connections(&server.keys.account_key())
        .await
        .unwrap();
    assert!(
        live.iter()
            .any(|c| c.user_key.as_ref().map(UserKey::as_str) == Some(&other.public_key()))
    );
    drop(connection);
}
