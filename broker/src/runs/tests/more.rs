//! Watching, presence, pings, floods, restarts of NATS, many nodes.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_live_watcher_sees_is_what_a_replay_shows_from_any_place() {
    let world = World::new(webs(6)).await;
    let nodes = world.all(&quick()).await;
    for (n, node) in nodes.iter().enumerate() {
        if n % 2 == 0 {
            *node.script.lock().unwrap() = Script::Hold;
            // Its acknowledgement comes when somebody is watching.
            node.log.lock().unwrap().drop = 1;
        }
    }
    let run = world.run(json!({"predicate": "*"})).await;
    let mut watch = world.engine().watch(run, None).await.expect("watched");
    let live = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(next) = watch.next().await {
            seen.push(next.expect("a frame"));
        }
        seen
    });
    world
        .until("the quick ones have ended", || {
            [1, 3, 5]
                .iter()
                .all(|n: &usize| !nodes[*n].log.lock().unwrap().answers.is_empty())
        })
        .await;
    world
        .until("the others run", || {
            nodes.iter().all(|node| node.executed() == 1)
        })
        .await;
    for node in &nodes {
        // One that does not wait yet finds that it may go on.
        node.release.notify_one();
    }
    world.ended(run).await;
    let live = timeout(PATIENCE, live)
        .await
        .expect("ends")
        .expect("no panic");
    assert!(
        live.iter().any(|seen| seen.place.is_none()),
        "acknowledgements are seen live"
    );
    let kept: Vec<Seen> = live
        .into_iter()
        .filter(|seen| seen.place.is_some())
        .collect();
    assert!(kept.is_sorted_by(|a, b| a.place < b.place));
    assert_eq!(world.frames(run, None).await, kept);
    for (n, seen) in kept.iter().enumerate() {
        assert_eq!(world.frames(run, seen.place).await, kept[n + 1..]);
    }
    let beyond = Place {
        sequence: u64::MAX / 2,
        part: Place::LAST,
    };
    // A place that the stream has not reached is of another time.
    let again = world.frames(run, Some(beyond)).await;
    let first = again.first().expect("something is said");
    assert!(matches!(first.frame, Frame::RunBeginsAgain { .. }) && first.place.is_none());
    assert_eq!(again[1..], kept[..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_machines_with_one_key_are_both_kept_out() {
    let world = World::new(webs(2)).await;
    let first = world.node(1, quick()).await;
    let record = Arc::clone(world.inventory.snapshot().get(Serial(1)).expect("enrolled"));
    let keys = world.authority.list();
    let second = Node::start(&world.server, Serial(1), &record.assignment, keys, quick()).await;
    world
        .until("the node is kept out", || {
            !world
                .inventory
                .snapshot()
                .get(Serial(1))
                .expect("enrolled")
                .is_active()
        })
        .await;
    assert_ne!(first.instance, second.instance);
    // It may have been found out by a beat, and its hello got no answer.
    second.hello().await;
    assert!(matches!(
        *second.welcome.borrow(),
        Some(Welcome::Refused { .. })
    ));
    first.hello().await;
    assert!(matches!(
        *first.welcome.borrow(),
        Some(Welcome::Refused { .. })
    ));
    // A restarted agent is no clone.
    let old = world.node(2, quick()).await;
    old.stop().await;
    let new = world.node(2, quick()).await;
    assert!(matches!(
        *new.welcome.borrow(),
        Some(Welcome::Welcome { .. })
    ));
    assert!(
        world
            .inventory
            .snapshot()
            .get(Serial(2))
            .expect("enrolled")
            .is_active()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_says_who_answers_and_does_not_wait_for_who_cannot() {
    let world = World::new(webs(3)).await;
    let _nodes = [world.node(1, quick()).await, world.node(2, quick()).await];
    let all: Vec<_> = world.inventory.snapshot().iter().cloned().collect();
    let answer = world.nodes.pinger.ping(&all, PATIENCE).await.expect("sent");
    let mut names: Vec<_> = answer.answered.iter().map(|a| a.node.to_string()).collect();
    names.sort();
    assert_eq!(
        (answer.asked, names),
        (3, vec!["web-1".to_owned(), "web-2".to_owned()])
    );
    assert_eq!(answer.silent.len(), 1);
    assert_eq!(
        (answer.silent[0].node.as_str(), answer.silent[0].state),
        ("web-3", State::Never)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_and_floods_of_one_node_leave_the_others_alone() {
    let world = World::new(webs(2)).await;
    let nodes = world.all(&quick()).await;
    let subject = muster_protocol::subject::NodeSays::Outcome.subject(Serial(1));
    for n in 0..20_000u32 {
        let junk = if n % 2 == 0 { "{" } else { "[[[[" };
        nodes[0]
            .client
            .publish(subject.clone(), junk.into())
            .await
            .expect("published");
    }
    nodes[0].client.flush().await.expect("flushed");
    world
        .until("it is seen to flood", || {
            let conditions = world.nodes.presence.view(Serial(1)).conditions;
            conditions.contains(&muster_protocol::api::Condition::Flooding)
        })
        .await;
    let run = world.run(json!({"predicate": "web-2"})).await;
    assert_eq!(world.ended(run).await.brief.state, RunPhase::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_nodes_end_in_few_events_and_each_is_told() {
    const N: u32 = 1_000;
    let world = World::new(webs(N)).await;
    let serials: Vec<Serial> = (1..=N).map(Serial).collect();
    let swarm = Swarm::start(&world.server, serials, world.authority.list()).await;
    world
        .until("all are up", || {
            world
                .nodes
                .presence
                .views()
                .values()
                .filter(|view| view.state == State::Up)
                .count()
                == N as usize
        })
        .await;
    let run = world.run(json!({"predicate": "role=web"})).await;
    let view = world.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded);
    assert_eq!(view.brief.summary.get(&Outcome::Succeeded), Some(&N));
    world
        .until("all are told", || {
            swarm.stored.lock().unwrap().len() == N as usize
        })
        .await;
    let journal = world.journal(run).await;
    assert!(journal.len() < 400, "{} events", journal.len());
    let frames = world.frames(run, None).await;
    let count = |kind: &str| {
        frames
            .iter()
            .filter(|seen| seen.frame.event() == kind)
            .count()
    };
    assert_eq!(
        (count("output"), count("outcome"), count("run_finished")),
        (N as usize, N as usize, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_nats_server_costs_no_run() {
    let mut world = World::new(webs(2)).await;
    let nodes = world.all(&Script::Hold).await;
    let run = world.run(json!({"predicate": "*"})).await;
    world
        .until("both run", || nodes.iter().all(|node| node.executed() == 1))
        .await;
    let mut watch = world.engine().watch(run, None).await.expect("watched");
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(next) = watch.next().await {
            seen.push(next.expect("a frame"));
        }
        seen
    });
    world.server.kill_and_restart().await;
    for node in &nodes {
        node.release.notify_one();
    }
    let view = world.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:?}");
    let watched = timeout(PATIENCE * 2, watching)
        .await
        .expect("it ends")
        .expect("no panic");
    let kept: Vec<Seen> = watched
        .into_iter()
        .filter(|seen| seen.place.is_some())
        .collect();
    assert_eq!(world.frames(run, None).await, kept);
    assert!(nodes.iter().all(|node| node.executed() == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_says_at_once_that_a_node_is_gone_and_that_it_is_back() {
    let mut records = webs(2);
    let server = TestServer::start().await;
    let (_, authority) = Authority::in_memory();
    let credentials = server.user(
        "web-1",
        crate::nats::permissions::node_permissions(1, &["web"], &[]),
    );
    records[0].nats_key = credentials.public_key();
    let inventory = Inventory::in_memory(records);
    let client = server.broker().await;
    let cancel = CancellationToken::new();
    let nodes = Nodes::start(Deps {
        observed: crate::vm::Observed::default(),
        groups: crate::groups::Desk::default(),
        freezer: crate::freeze::Freezer::never(&authority),
        js: store::context(client.clone()),
        client,
        inventory,
        authority,
        lease: Lease::fixed(1),
        events: Events::log_only(),
        journals: crate::presence::Journals::in_memory(),
        past: crate::twin::Past::unbroken(),
        connections: Some((server.system().await, server.keys.account_key())),
        library: None,
        // No heartbeat is missed for minutes.
        settings: bus::Settings {
            beat_every: Some(Span::from_secs(60)),
            ..bus::Settings::default()
        },
        cancel: cancel.clone(),
    })
    .await
    .expect("started");
    let until = async |wanted: State| {
        let end = Instant::now() + PATIENCE;
        loop {
            let state = nodes.presence.view(Serial(1)).state;
            if state == wanted {
                return;
            }
            assert!(Instant::now() < end, "{state:?} instead of {wanted:?}");
            sleep(Duration::from_millis(10)).await;
        }
    };
    let beat = |client: async_nats::Client| async move {
        let beat = muster_protocol::wire::Beat {
            instance: muster_protocol::ids::InstanceId::from_bytes([1; 16]),
            time: Timestamp::now(),
            revision: 1,
            running: 0,
            refused: [].into(),
            position: None,
        };
        let subject = muster_protocol::subject::NodeSays::Beat.subject(Serial(1));
        client
            .publish(subject, serde_json::to_vec(&beat).expect("json").into())
            .await
            .expect("published");
        client.flush().await.expect("flushed");
    };
    until(State::Never).await;
    let one = credentials
        .connect_options()
        .connect(server.url())
        .await
        .expect("connected");
    beat(one.clone()).await;
    until(State::Up).await;
    drop(one);
    until(State::Down).await;
    let again = credentials
        .connect_options()
        .connect(server.url())
        .await
        .expect("connected");
    until(State::Late).await;
    beat(again.clone()).await;
    until(State::Up).await;
    cancel.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_little_room_gives_what_it_has() {
    let server = TestServer::start().await;
    let js = store::context(server.broker().await);
    let ensure = async || crate::runs::journal::ensure(&js, 4 << 30).await;
    let limit = ensure().await.expect("a stream");
    assert_eq!(limit, 128 << 20);
    assert_eq!(ensure().await.expect("the same"), limit);
    js.delete_stream(STREAM).await.expect("deleted");
    // Most is promised to somebody else.
    let other = store::stream::StreamSettings {
        max_bytes: Some(200 << 20),
        ..store::stream::StreamSettings::journal("OTHER", "other", &["other"])
    };
    store::stream::ensure_stream(&js, &other)
        .await
        .expect("a stream");
    assert_eq!(ensure().await.expect("a stream"), 32 << 20);
}
