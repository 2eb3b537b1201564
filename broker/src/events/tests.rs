use std::time::Duration;

use async_nats::jetstream::Context;
use muster_protocol::api::ClusterEvent;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::feed::Cursor;
use super::put::{MAX_EVENT, PutError};
use super::{Events, Filter, Once};
use crate::lease::Lease;
use crate::nats::testing::{PATIENCE, TestServer};

async fn open(js: &Context) -> (Events, CancellationToken) {
    let lease = Lease::fixed(1);
    let keep = Duration::from_secs(3_600);
    let events = Events::open(js.clone(), lease, keep).await.unwrap();
    let cancel = CancellationToken::new();
    tokio::spawn(events.clone().follow(cancel.clone()));
    (events, cancel)
}

fn foreign(id: &str, kind: &str) -> ClusterEvent {
    ClusterEvent {
        source: "https://ci.example.org".into(),
        ..ClusterEvent::own(id.into(), kind, "webapp", format!("event {id}"))
    }
}

fn filter(kinds: &[&str]) -> Filter {
    Filter {
        kinds: kinds.iter().map(|kind| kind.parse().unwrap()).collect(),
        ..Filter::default()
    }
}

async fn kinds(events: &Events, filter: &Filter, limit: usize) -> Vec<String> {
    let found = events.newest(filter, limit).await.unwrap();
    found.into_iter().map(|event| event.kind).collect()
}

#[tokio::test]
async fn an_event_is_stored_once_also_by_the_next_broker() {
    let server = TestServer::start().await;
    let js = crate::store::context(server.broker().await);
    let (events, cancel) = open(&js).await;
    let first = events.put(foreign("1", "git.push")).await.unwrap();
    assert!(!first.duplicate);
    let again = events.put(foreign("1", "git.push")).await.unwrap();
    assert_eq!((again.seq, again.duplicate), (first.seq, true));
    // Many at once, each twice.
    let many = (0..200).map(|n| {
        let events = events.clone();
        async move {
            events
                .put(foreign(&format!("m{}", n % 100), "git.push"))
                .await
                .unwrap()
        }
    });
    let many = futures_util::future::join_all(many).await;
    assert_eq!(many.iter().filter(|put| put.duplicate).count(), 100);
    // The same bytes under another id.
    let digest = |id: &str| ClusterEvent {
        digest: Some("aa".into()),
        ..foreign(id, "git.push")
    };
    let signed = events.put(digest("d1")).await.unwrap();
    let once = |id: &str| Once {
        id: id.into(),
        kind: "run.ended".into(),
        subject: "7f3k".into(),
        text: "it ended".into(),
        fields: serde_json::Map::new(),
    };
    events.try_once(once("r.ended")).await.unwrap();
    cancel.cancel();

    let (events, _cancel) = open(&js).await;
    let again = events.put(foreign("1", "git.push")).await.unwrap();
    assert_eq!((again.seq, again.duplicate), (first.seq, true));
    let replayed = events.put(digest("d2")).await.unwrap();
    assert_eq!((replayed.seq, replayed.duplicate), (signed.seq, true));
    events.try_once(once("r.ended")).await.unwrap();
    assert_eq!(events.last().await.unwrap(), 103);
}

#[tokio::test]
async fn events_are_found_by_kind_subject_and_time() {
    let server = TestServer::start().await;
    let js = crate::store::context(server.broker().await);
    let (events, _cancel) = open(&js).await;
    for n in 0..30 {
        let kind = if n % 10 == 0 {
            "alarm.firing"
        } else {
            "git.push"
        };
        events.put(foreign(&n.to_string(), kind)).await.unwrap();
    }
    events.emit("node.up", "web-01", "web-01 is up").await;
    assert_eq!(kinds(&events, &filter(&["alarm.*"]), 10).await.len(), 3);
    assert_eq!(
        kinds(&events, &filter(&["node.up", "alarm.*"]), 2).await,
        ["alarm.firing", "node.up"]
    );
    let about = Filter {
        subject: Some("web-*".parse().unwrap()),
        ..Filter::default()
    };
    assert_eq!(kinds(&events, &about, 10).await, ["node.up"]);
    let later = Filter {
        since: Some("2999-01-01T00:00:00Z".parse().unwrap()),
        ..Filter::default()
    };
    assert!(kinds(&events, &later, 10).await.is_empty());
    let page = events.list(5, &filter(&["alarm.*"]), 1).await.unwrap();
    assert_eq!((page.events[0].seq, page.next), (11, Some(11)));
    assert!(events.list(99, &Filter::default(), 1).await.is_err());
}

#[tokio::test]
async fn a_follower_sees_every_event_from_the_store_and_as_it_comes() {
    let server = TestServer::start().await;
    let js = crate::store::context(server.broker().await);
    let (events, cancel) = open(&js).await;
    for n in 0..700 {
        events
            .put(foreign(&n.to_string(), "git.push"))
            .await
            .unwrap();
    }
    cancel.cancel();
    // This one has nothing of them in memory.
    let (events, _cancel) = open(&js).await;
    let mut cursor = Cursor::new(&events, 100);
    for n in 700..720 {
        events
            .put(foreign(&n.to_string(), "git.push"))
            .await
            .unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 620 {
        let more = timeout(PATIENCE, cursor.next())
            .await
            .expect("more come")
            .unwrap();
        seen.extend(more.iter().map(|event| event.seq));
    }
    assert_eq!(seen, (101..=720).collect::<Vec<u64>>());
    assert_eq!(cursor.position(), 720);
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let server = TestServer::start().await;
    let js = crate::store::context(server.broker().await);
    let (events, _cancel) = open(&js).await;
    let mut large = foreign("1", "git.push");
    large
        .fields
        .insert("x".into(), "y".repeat(MAX_EVENT).into());
    assert!(matches!(
        events.put(large).await,
        Err(PutError::TooLarge(_))
    ));
    assert_eq!(events.last().await.unwrap(), 0);
}
