use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::Context;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::timeout;

use super::append::{Append, append, append_all};
use super::kv::{BucketConfig, Change, Kv, KvError, ensure_bucket};
use super::read::read_from;
use super::stream::{StreamError, StreamSettings, WhenFull, ensure_stream, purge_subject};
use crate::nats::jwt::JetStreamLimits;
use crate::nats::testing::{PATIENCE, TestServer};

const STREAM: &str = "RUNS";

async fn journal(server: &TestServer) -> Context {
    let js = super::context(server.broker().await);
    ensure_stream(&js, &StreamSettings::journal(STREAM, "runs", &["m1.run.>"]))
        .await
        .unwrap();
    js
}

async fn read(js: &Context, filter: &str, start: u64) -> Vec<(u64, String)> {
    let all = read_from(js, STREAM, filter, start).await.unwrap();
    timeout(PATIENCE, all.try_collect::<Vec<_>>())
        .await
        .expect("a reader ends")
        .unwrap()
        .into_iter()
        .map(|m| (m.sequence, String::from_utf8(m.payload.to_vec()).unwrap()))
        .collect()
}

#[tokio::test]
async fn a_stream_is_made_found_again_and_changed() {
    let server = TestServer::start().await;
    let js = super::context(server.broker().await);
    let mut settings = StreamSettings::journal(STREAM, "runs", &["m1.run.>"]);
    ensure_stream(&js, &settings).await.unwrap();
    append(&js, STREAM, &Append::new("m1.run.a", "kept"))
        .await
        .unwrap();
    ensure_stream(&js, &settings).await.unwrap();
    settings.max_bytes = Some(1 << 20);
    settings.max_age = Some(Duration::from_secs(3600));
    settings.max_per_subject = Some(10);
    settings.max_message = Some(1 << 16);
    settings.subjects.push("m1.other.*".into());
    settings.when_full = WhenFull::RefuseNewPerSubject;
    let stream = ensure_stream(&js, &settings).await.unwrap();
    let config = &stream.cached_info().config;
    assert_eq!(config.max_bytes, 1 << 20);
    assert_eq!(config.subjects, ["m1.run.>", "m1.other.*"]);
    assert_eq!(read(&js, "m1.run.a", 1).await, [(1, "kept".to_owned())]);
}

#[tokio::test]
async fn a_change_that_nats_does_not_allow_is_said() {
    let server = TestServer::start().await;
    let js = super::context(server.broker().await);
    let mut settings = StreamSettings::journal(STREAM, "runs", &["m1.run.>"]);
    settings.allow_delete = false;
    ensure_stream(&js, &settings).await.unwrap();
    settings.allow_delete = true;
    let error = ensure_stream(&js, &settings).await.unwrap_err();
    assert!(matches!(error, StreamError::Refused { .. }), "{error}");
    let other = StreamSettings::journal("OTHER", "overlaps", &["m1.run.x"]);
    let error = ensure_stream(&js, &other).await.unwrap_err();
    assert!(matches!(error, StreamError::Refused { .. }), "{error}");
    let bad = StreamSettings::journal("A.B", "bad", &["x"]);
    assert!(matches!(
        ensure_stream(&js, &bad).await,
        Err(StreamError::BadName(_))
    ));
}

#[tokio::test]
async fn an_append_names_what_it_builds_on() {
    let server = TestServer::start().await;
    let js = journal(&server).await;
    let first = append(&js, STREAM, &Append::new("m1.run.a", "1").expecting(0))
        .await
        .unwrap();
    append(&js, STREAM, &Append::new("m1.run.b", "other"))
        .await
        .unwrap();
    let second = append(
        &js,
        STREAM,
        &Append::new("m1.run.a", "2").expecting(first.sequence),
    )
    .await
    .unwrap();
    assert_eq!((first.sequence, second.sequence), (1, 3));
    for stale in [0, first.sequence, 2] {
        let late = Append::new("m1.run.a", "lost").expecting(stale);
        match append(&js, STREAM, &late).await.unwrap_err() {
            StreamError::Conflict { subject, expected } => {
                assert_eq!((subject.as_str(), expected), ("m1.run.a", stale));
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(
        read(&js, "m1.run.a", 1).await,
        [(1, "1".into()), (3, "2".into())]
    );
}

#[tokio::test]
async fn a_repeated_id_is_stored_once() {
    let server = TestServer::start().await;
    let js = journal(&server).await;
    let message = Append::new("m1.run.a", "1").expecting(0).with_id("unique");
    let first = append(&js, STREAM, &message).await.unwrap();
    // Although it expects what is no longer so: it IS what is there.
    let again = append(&js, STREAM, &message).await.unwrap();
    assert_eq!((first.sequence, first.duplicate), (1, false));
    assert_eq!((again.sequence, again.duplicate), (1, true));
    // Another writer's id is a conflict all the same.
    let other = Append::new("m1.run.a", "2").expecting(0).with_id("other");
    let error = append(&js, STREAM, &other).await.unwrap_err();
    assert!(matches!(error, StreamError::Conflict { .. }), "{error}");
}

#[tokio::test]
async fn many_appends_keep_their_order_and_stop_at_a_failure() {
    let server = TestServer::start().await;
    let js = journal(&server).await;
    let mut messages: Vec<Append> = (0..2000)
        .map(|n| Append::new("m1.run.many", n.to_string()))
        .collect();
    let done = append_all(&js, STREAM, &messages).await;
    assert!(done.iter().all(Result::is_ok));
    let stored = read(&js, "m1.run.>", 1).await;
    assert!(
        stored
            .iter()
            .map(|(_, p)| p.clone())
            .eq((0..2000).map(|n| n.to_string()))
    );

    messages[300] = messages[300].clone().expecting(1);
    let done = append_all(&js, STREAM, &messages).await;
    assert!(done[..300].iter().all(Result::is_ok));
    assert!(matches!(done[300], Err(StreamError::Conflict { .. })));
    assert!(
        done[600..]
            .iter()
            .all(|d| matches!(d, Err(StreamError::NotSent { .. })))
    );
}

#[tokio::test]
async fn reading_ends_at_the_end_that_was_known() {
    let server = TestServer::start().await;
    let js = journal(&server).await;
    assert_eq!(read(&js, "m1.run.>", 1).await, []);
    for n in 0..700 {
        let subject = format!("m1.run.{}", n % 2);
        append_all(&js, STREAM, &[Append::new(subject, n.to_string())])
            .await
            .remove(0)
            .unwrap();
    }
    // An empty filter, a start beyond the end, a start in the middle.
    assert_eq!(read(&js, "m1.run.none", 1).await, []);
    assert_eq!(read(&js, "m1.run.>", 701).await, []);
    assert_eq!(read(&js, "m1.run.>", u64::MAX).await, []);
    let middle = read(&js, "m1.run.1", 600).await;
    assert_eq!(middle.first(), Some(&(600, "599".into())));
    assert_eq!(middle.len(), 51);

    // What comes during the reading is not waited for, nor returned.
    let mut reader = read_from(&js, STREAM, "m1.run.>", 1).await.unwrap();
    let mut seen = Vec::new();
    while let Some(message) = reader.try_next().await.unwrap() {
        seen.push(message.sequence);
        append(&js, STREAM, &Append::new("m1.run.new", "x"))
            .await
            .unwrap();
    }
    assert!(seen.into_iter().eq(1..=700));

    // Purged, nothing is left to wait for.
    assert_eq!(purge_subject(&js, STREAM, "m1.run.1").await.unwrap(), 350);
    assert_eq!(read(&js, "m1.run.1", 1).await, []);
    assert_eq!(read(&js, "m1.run.0", 1).await.len(), 350);
    assert!(matches!(
        read_from(&js, "NONE", ">", 1).await,
        Err(StreamError::NoStream(_))
    ));
}

#[tokio::test]
async fn a_reader_outlives_a_kill_of_the_server() {
    let mut server = TestServer::start().await;
    let js = journal(&server).await;
    let messages: Vec<Append> = (0..1500)
        .map(|n| Append::new("m1.run.a", n.to_string()))
        .collect();
    assert!(
        append_all(&js, STREAM, &messages)
            .await
            .iter()
            .all(Result::is_ok)
    );
    let mut reader = read_from(&js, STREAM, "m1.run.a", 1).await.unwrap();
    let mut seen = vec![reader.try_next().await.unwrap().unwrap().sequence];
    server.kill_and_restart().await;
    while let Some(message) = timeout(PATIENCE * 3, reader.try_next())
        .await
        .unwrap()
        .unwrap()
    {
        seen.push(message.sequence);
    }
    assert!(seen.into_iter().eq(1..=1500));
    // And a writer that comes back before JetStream does waits for it.
    append(
        &js,
        STREAM,
        &Append::new("m1.run.a", "after").with_id("after"),
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn full_and_missing_jetstream_are_told_apart() {
    let server = TestServer::start().await;
    let js = super::context(server.broker().await);
    let mut settings = StreamSettings::journal("SMALL", "small", &["small"]);
    settings.max_bytes = Some(4096);
    settings.max_message = Some(3000);
    ensure_stream(&js, &settings).await.unwrap();
    append(&js, "SMALL", &Append::new("small", vec![b'x'; 2500]))
        .await
        .unwrap();
    let error = append(&js, "SMALL", &Append::new("small", vec![b'x'; 2500]))
        .await
        .unwrap_err();
    assert!(matches!(error, StreamError::Full { .. }), "{error}");
    let error = append(&js, "SMALL", &Append::new("small", vec![b'x'; 3500]))
        .await
        .unwrap_err();
    assert!(matches!(error, StreamError::TooLarge { .. }), "{error}");
    let error = append(&js, "SMALL", &Append::new("small", vec![b'x'; 9 << 20]))
        .await
        .unwrap_err();
    assert!(matches!(error, StreamError::TooLarge { .. }), "{error}");

    let limits = JetStreamLimits {
        memory_bytes: Some(0),
        disk_bytes: Some(1 << 20),
    };
    let server = TestServer::start_with(limits).await;
    let js = super::context(server.broker().await);
    settings.max_bytes = Some(2 << 20);
    let error = ensure_stream(&js, &settings).await.unwrap_err();
    assert!(matches!(error, StreamError::Full { .. }), "{error}");

    let limits = JetStreamLimits {
        memory_bytes: Some(0),
        disk_bytes: Some(0),
    };
    let server = TestServer::start_with(limits).await;
    let js = super::context(server.broker().await);
    let error = ensure_stream(&js, &settings).await.unwrap_err();
    assert!(matches!(error, StreamError::NotEnabled { .. }), "{error}");
}

#[tokio::test]
async fn an_append_to_another_stream_is_refused() {
    let server = TestServer::start().await;
    let js = journal(&server).await;
    let error = append(&js, "OTHER", &Append::new("m1.run.a", "x"))
        .await
        .unwrap_err();
    assert!(matches!(error, StreamError::Refused { .. }), "{error}");
    assert_eq!(read(&js, "m1.run.>", 1).await, []);
}

async fn bucket(server: &TestServer) -> Kv<u32> {
    let js = super::context(server.broker().await);
    let config = BucketConfig {
        history: 3,
        ..BucketConfig::new("state")
    };
    ensure_bucket(&js, config).await.unwrap()
}

#[tokio::test]
async fn values_are_written_by_compare_and_swap() {
    let server = TestServer::start().await;
    let kv = bucket(&server).await;
    let key = "web-01.example > *";
    assert_eq!(kv.get(key).await.unwrap(), None);
    let first = kv.create(key, &1).await.unwrap();
    assert!(matches!(
        kv.create(key, &9).await,
        Err(KvError::Conflict { .. })
    ));
    let second = kv.update(key, &2, first).await.unwrap();
    assert!(matches!(
        kv.update(key, &9, first).await,
        Err(KvError::Conflict { .. })
    ));
    let entry = kv.get(key).await.unwrap().unwrap();
    assert_eq!(
        (entry.key.as_str(), entry.value, entry.revision),
        (key, 2, second)
    );
    assert!(matches!(
        kv.delete(key, first).await,
        Err(KvError::Conflict { .. })
    ));
    let gone = kv.delete(key, second).await.unwrap();
    assert_eq!(kv.get(key).await.unwrap(), None);
    // A deleted key can be made again, but not by one that knows it as it was.
    assert!(matches!(
        kv.update(key, &9, second).await,
        Err(KvError::Conflict { .. })
    ));
    let again = kv.create(key, &3).await.unwrap();
    assert!(again > gone);
    kv.forget(key).await.unwrap();
    assert_eq!(kv.get(key).await.unwrap(), None);
    kv.create(key, &4).await.unwrap();
    assert!(matches!(kv.get("").await, Err(KvError::BadKey(0))));
}

#[tokio::test]
async fn one_of_many_creators_wins() {
    let server = TestServer::start().await;
    let kv = bucket(&server).await;
    let tries = (0..20).map(|n| {
        let kv = kv.clone();
        async move { kv.create("invite", &n).await }
    });
    let results = futures_util::future::join_all(tries).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(
        results
            .iter()
            .filter_map(|r| r.as_ref().err())
            .all(|e| matches!(e, KvError::Conflict { .. }))
    );
}

#[tokio::test]
async fn listing_and_watching_miss_nothing_even_across_a_kill() {
    let mut server = TestServer::start().await;
    let kv = bucket(&server).await;
    assert!(kv.list().await.unwrap().entries.is_empty());
    for n in 0..50 {
        kv.put(&format!("node {n}"), &n).await.unwrap();
    }
    let changed = kv.put("node 7", &700).await.unwrap();
    let entry = kv.get("node 8").await.unwrap().unwrap();
    let deleted = kv.delete("node 8", entry.revision).await.unwrap();
    let list = kv.list().await.unwrap();
    assert_eq!(list.entries.len(), 49);
    assert_eq!(list.revision, deleted);
    assert!(
        list.entries
            .iter()
            .any(|e| (e.key.as_str(), e.value, e.revision) == ("node 7", 700, changed))
    );
    let keys: BTreeSet<_> = list.entries.iter().map(|e| e.key.clone()).collect();
    assert!(!keys.contains("node 8") && keys.contains("node 49"));

    // Between the list and the watch.
    kv.put("early", &1).await.unwrap();
    let mut watch = kv.watch(list.revision + 1).await.unwrap();
    let mut next = async || {
        timeout(PATIENCE, watch.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    };
    assert!(matches!(next().await, Change::Put(e) if (e.key.as_str(), e.value) == ("early", 1)));
    let revision = kv.put("late", &2).await.unwrap();
    assert!(matches!(next().await, Change::Put(e) if e.value == 2));
    kv.delete("late", revision).await.unwrap();
    assert!(matches!(next().await, Change::Deleted { key, .. } if key == "late"));
    server.kill_and_restart().await;
    let end = tokio::time::Instant::now() + PATIENCE;
    while kv.put("after", &3).await.is_err() {
        assert!(tokio::time::Instant::now() < end);
    }
    assert!(matches!(next().await, Change::Put(e) if (e.key.as_str(), e.value) == ("after", 3)));
    assert_eq!(kv.list().await.unwrap().entries.len(), 51);
}

#[tokio::test]
async fn a_value_of_another_version_is_named() {
    let server = TestServer::start().await;
    let js = super::context(server.broker().await);
    let texts: Kv<String> = ensure_bucket(&js, BucketConfig::new("state"))
        .await
        .unwrap();
    texts.put("key", &"not a number".to_owned()).await.unwrap();
    let numbers: Kv<u32> = ensure_bucket(&js, BucketConfig::new("state"))
        .await
        .unwrap();
    let error = numbers.get("key").await.unwrap_err();
    assert!(
        matches!(&error, KvError::Decode { key, .. } if key == "key"),
        "{error}"
    );
    assert!(matches!(numbers.list().await, Err(KvError::Decode { .. })));
    let mut watch = numbers.watch(1).await.unwrap();
    let item = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert!(matches!(item, Err(KvError::Decode { .. })));
    numbers.put("key", &5).await.unwrap();
    let item = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert!(matches!(item, Ok(Change::Put(e)) if e.value == 5));
}

#[tokio::test]
async fn values_age() {
    let server = TestServer::start().await;
    let js = super::context(server.broker().await);
    let config = BucketConfig {
        max_age: Some(Duration::from_secs(1)),
        ..BucketConfig::new("lease")
    };
    let kv: Kv<u32> = ensure_bucket(&js, config).await.unwrap();
    kv.create("active", &1).await.unwrap();
    let end = tokio::time::Instant::now() + PATIENCE;
    while kv.create("active", &2).await.is_err() {
        assert!(tokio::time::Instant::now() < end, "the lease never ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_misses_no_key_that_is_rewritten_meanwhile() {
    let server = TestServer::start().await;
    let js = super::context(server.broker().await);
    let kv: Kv<u32> = ensure_bucket(&js, BucketConfig::new("busy")).await.unwrap();
    const KEYS: u32 = 600;
    for n in 0..KEYS {
        kv.put(&format!("key-{n}"), &n).await.unwrap();
    }
    // Each is rewritten in turn, so that a reader always meets some that are
    // replaced while they wait for it.
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let kv = kv.clone();
            tokio::spawn(async move {
                for n in (0..KEYS).rev().cycle() {
                    kv.put(&format!("key-{n}"), &(n + writer)).await.unwrap();
                }
            })
        })
        .collect();
    for look in 0..40 {
        let listed = timeout(PATIENCE, kv.list())
            .await
            .expect("a listing ends")
            .unwrap();
        let keys: BTreeSet<_> = listed.entries.iter().map(|e| e.key.clone()).collect();
        assert_eq!(keys.len(), KEYS as usize, "look {look}");
    }
    for writer in writers {
        writer.abort();
    }
}
