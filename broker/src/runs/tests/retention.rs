//! Removing runs and output, cut off at every point.

use super::*;
use crate::retention::{Kept, Limits, decide};
use crate::runs::Removed;
use crate::store::append::{Append, append};
use crate::store::kv::{BucketConfig, Kv, ensure_bucket};
use crate::store::stream::{get_stream, purge_subject, subjects};

const AGE: Duration = Duration::from_secs(86_400);

impl World {
    async fn js(&self) -> async_nats::jetstream::Context {
        store::context(self.server.broker().await)
    }

    /// How many messages a run has: journal and output.
    async fn stored(&self, run: RunId) -> (u64, u64) {
        let found = subjects(&self.js().await, STREAM, &subject::run_all(run))
            .await
            .expect("subjects");
        let of = |subject: String| {
            found
                .iter()
                .find(|(name, _)| *name == subject)
                .map_or(0, |(_, count)| *count)
        };
        (of(subject::journal(run)), of(subject::output(run)))
    }

    async fn at_rest(&self, run: RunId) {
        self.ended(run).await;
        let engine = self.engine();
        self.until("nothing happens to the run any more", || {
            !crate::runs::engine::lock(&engine.0.open).contains_key(&run)
        })
        .await;
    }

    fn kept(&self, run: RunId) -> Kept {
        let all = self.engine().kept().expect("served");
        all.into_iter().find(|k| k.run == run).expect("it is kept")
    }

    async fn events(&self, run: RunId) -> Vec<&'static str> {
        let frames = self.frames(run, None).await;
        frames.iter().map(|seen| seen.frame.event()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_was_removed_is_not_taken_for_none() {
    let mut world = World::new(webs(2)).await;
    let nodes = world.all(&quick()).await;
    let run = world.run(json!({"predicate": "*"})).await;
    let silent = world
        .run(json!({"predicate": "name=web-1", "output_bytes": 0}))
        .await;
    for run in [run, silent] {
        world.at_rest(run).await;
    }
    assert!(world.kept(run).output > 0);
    assert_eq!(world.kept(silent).output, 0);
    let place = world.frames(run, None).await[0].place;
    let (journal, output) = world.stored(run).await;
    assert_eq!(output, 2);

    let at = Timestamp::now();
    let removed = world
        .engine()
        .remove_output(run, at)
        .await
        .expect("removed");
    assert_eq!(removed, Removed::Gone);
    let view = world.engine().show(run).await.expect("shown");
    assert_eq!(view.output_removed, Some(at));
    assert_eq!(view.brief.state, RunPhase::Succeeded);
    assert_eq!(world.stored(run).await, (journal + 1, 0));
    // Everything but the output is as it was, and it is said before that.
    let expected = [
        "run_created",
        "output_removed",
        "batch_sent",
        "outcome",
        "outcome",
        "run_finished",
    ];
    assert_eq!(world.events(run).await, expected);
    // Also to who comes back in the middle.
    let rest = world.frames(run, place).await;
    assert_eq!(rest[0].frame.event(), "output_removed");
    assert!(!world.events(silent).await.contains(&"output_removed"));

    // Again: nothing changes.
    let later = Timestamp::now();
    world
        .engine()
        .remove_output(run, later)
        .await
        .expect("again");
    assert_eq!(world.stored(run).await, (journal + 1, 0));
    // An answer that comes late still has its place in the journal.
    let id = RequestId { run, step: 0 };
    let answer = nodes[0].report(id, Outcome::Failed).await;
    assert_eq!(answer, OutcomeAnswer::Stored);
    world.at_rest(run).await;

    world.restart(2).await;
    let view = world.engine().show(run).await.expect("shown");
    assert_eq!(view.output_removed, Some(at));
    assert_eq!(view.results[0].late, [Outcome::Failed]);
    assert_eq!(world.kept(run).output, 0);
    assert_eq!(world.events(run).await[1], "output_removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_of_output_that_was_cut_off_is_finished() {
    let mut world = World::new(webs(1)).await;
    let _nodes = world.all(&quick()).await;
    let run = world.run(json!({"predicate": "*"})).await;
    world.at_rest(run).await;
    // Killed after the journal said so, before it was done.
    let event = RunEvent::OutputRemoved {
        at: Timestamp::now(),
    };
    let json = serde_json::to_vec(&event).expect("JSON");
    let message = Append::new(subject::journal(run), json);
    append(&world.js().await, STREAM, &message)
        .await
        .expect("appended");
    world.restart(2).await;
    assert_eq!(world.stored(run).await.1, 1);
    // What is there cannot be told from what is not: so it is not shown.
    assert_eq!(world.events(run).await[1], "output_removed");
    assert_eq!(
        world.engine().remove_leftovers(AGE).await.expect("removed"),
        1
    );
    assert_eq!(world.stored(run).await.1, 0);
    assert_eq!(
        world.engine().remove_leftovers(AGE).await.expect("removed"),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_removed_is_not_known_any_more() {
    let mut world = World::new(webs(1)).await;
    let nodes = world.all(&quick()).await;
    let [run, other] = [
        world.run(json!({"predicate": "*"})).await,
        world.run(json!({"predicate": "*"})).await,
    ];
    for run in [run, other] {
        world.at_rest(run).await;
    }
    assert_eq!(
        world.engine().remove_run(run).await.expect("removed"),
        Removed::Gone
    );
    assert_eq!(
        world.engine().remove_run(run).await.expect("again"),
        Removed::NotNow
    );
    assert_eq!(world.stored(run).await, (0, 0));
    for _ in 0..2 {
        assert!(world.engine().lookup(&run.to_string()).is_err());
        let (list, _) = world.engine().list(None, 10, false).expect("a list");
        assert_eq!(list.iter().map(|b| b.id).collect::<Vec<_>>(), [other]);
        world.restart(2).await;
    }
    // Its node is told that nobody waits for it.
    let id = RequestId { run, step: 0 };
    let answer = nodes[0].report(id, Outcome::Failed).await;
    assert_eq!(answer, OutcomeAnswer::Unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_removal_was_cut_off_is_never_run_again() {
    let mut world = World::new(webs(1)).await;
    let nodes = world.all(&quick()).await;
    let mut runs = Vec::new();
    for _ in 0..4 {
        let run = world.run(json!({"predicate": "*"})).await;
        world.at_rest(run).await;
        runs.push(run);
    }
    let [headless, endless, orphan, kept] = runs[..] else {
        panic!("four runs");
    };
    let js = world.js().await;
    let stream = get_stream(&js, STREAM).await.expect("the stream");
    // The head of one went, and no more.
    stream
        .purge()
        .filter(subject::journal(headless))
        .keep(2)
        .await
        .expect("purged");
    // Of another, the server remembers only that the end went: by its journal
    // it was created, and nothing was ever sent.
    let record = json!({"removing": [endless.to_string()], "runs": 1});
    let cluster: Kv<serde_json::Value> =
        Box::pin(ensure_bucket(&js, BucketConfig::new("muster_cluster")))
            .await
            .expect("a bucket");
    cluster
        .put(crate::retention::KEY, &record)
        .await
        .expect("written");
    let messages: Vec<_> = {
        use futures_util::TryStreamExt as _;
        let read = store::read::read_from(&js, STREAM, &subject::journal(endless), 1).await;
        read.expect("read").try_collect().await.expect("read")
    };
    for message in &messages[2..] {
        stream
            .delete_message(message.sequence)
            .await
            .expect("deleted");
    }
    // Of the third the journal went.
    purge_subject(&js, STREAM, &subject::journal(orphan))
        .await
        .expect("purged");

    world.restart(2).await;
    let (list, _) = world.engine().list(None, 10, false).expect("a list");
    assert_eq!(list.iter().map(|b| b.id).collect::<Vec<_>>(), [kept]);
    assert_eq!(world.engine().open_runs(), 0);
    world.engine().remove_leftovers(AGE).await.expect("removed");
    assert_eq!(world.stored(headless).await, (0, 0));
    assert_eq!(world.stored(endless).await, (0, 0));
    // Output alone may be that of a run which is being written down.
    assert_eq!(world.stored(orphan).await, (0, 1));
    assert_eq!(world.stored(kept).await.1, 1);
    // The next run works, and nothing was done a second time.
    let run = world.run(json!({"predicate": "*"})).await;
    world.at_rest(run).await;
    assert_eq!(nodes[0].executed(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_open_stays_however_little_room_there_is() {
    let world = World::new(webs(1)).await;
    // The node is not there: the run waits for it.
    let run = world
        .run(json!({"predicate": "*", "wait_down": true, "deliver_within": "5m"}))
        .await;
    let kept = world.engine().kept().expect("served");
    let limits = Limits {
        runs: Duration::ZERO,
        output: Duration::ZERO,
        bytes: 1,
    };
    let far = Timestamp::now() + Duration::from_secs(1 << 32);
    assert_eq!(decide(u64::MAX, &kept, &limits, far), []);
    // Nor when somebody asks for just that.
    let engine = world.engine();
    for removed in [
        engine.remove_run(run).await.expect("asked"),
        engine.remove_output(run, far).await.expect("asked"),
    ] {
        assert_eq!(removed, Removed::NotNow);
    }
    assert_eq!(
        engine
            .remove_leftovers(Duration::ZERO)
            .await
            .expect("looked"),
        0
    );
    assert!(engine.show(run).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_of_a_run_that_goes_is_told_and_does_not_wait_for_ever() {
    let world = World::new(webs(1)).await;
    let _nodes = world.all(&quick()).await;
    let run = world.run(json!({"predicate": "*"})).await;
    world.at_rest(run).await;
    let mut watch = world.engine().watch(run, None).await.expect("watched");
    world.engine().remove_run(run).await.expect("removed");
    let end = async {
        loop {
            match watch.next().await {
                Some(Ok(_)) => {}
                other => return other,
            }
        }
    };
    let end = timeout(PATIENCE, end).await.expect("it ends");
    let error = end.expect("an error").expect_err("an error");
    assert!(error.to_string().contains("there is no run"), "{error}");
}

/// Fills the stream of runs, with output of nobody.
async fn fill(world: &World) -> RunId {
    let js = world.js().await;
    let nobody = RunId::random();
    // Not to the very last byte: the server would then remove what is oldest.
    loop {
        let stream = get_stream(&js, STREAM).await.expect("the stream");
        let info = stream.cached_info();
        let limit = u64::try_from(info.config.max_bytes).expect("a limit");
        let left = usize::try_from(limit - info.state.bytes).expect("small");
        if left < 250 {
            return nobody;
        }
        let bytes = vec![b'x'; (left - 150).min(900_000)];
        append(&js, STREAM, &Append::new(subject::output(nobody), bytes))
            .await
            .expect("there is room");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_room_is_said_and_a_run_goes_on_when_there_is_room() {
    let world = World::new(webs(1)).await;
    let nodes = world.all(&Script::Hold).await;
    let run = world.run(json!({"predicate": "*"})).await;
    world
        .until("the node runs", || nodes[0].executed() == 1)
        .await;
    let mut watch = world.engine().watch(run, None).await.expect("watched");
    let first = timeout(PATIENCE, watch.next()).await.expect("in time");
    let first = first.expect("a frame").expect("a frame");
    assert_eq!(first.frame.event(), "run_created");

    let nobody = fill(&world).await;
    // Nothing new is begun: not even when it is only the server that knows.
    let refused = async |world: &World| {
        let asked = world
            .engine()
            .create(world.frozen(json!({"predicate": "*"})));
        let error = timeout(PATIENCE, asked).await.expect("it is said in time");
        error.expect_err("there is no room").problem()
    };
    for _ in 0..2 {
        let problem = refused(&world).await;
        assert_eq!(problem.status, 507, "{problem:?}");
        assert!(problem.title.contains("nothing was run"), "{problem:?}");
        let hint = problem.hint.expect("a hint");
        assert!(hint.contains("retention.bytes"), "{hint}");
        world.engine().stored().await.expect("looked at");
    }
    // What runs is not lost, and whoever watches knows why nothing happens.
    nodes[0].release.notify_one();
    let mut next = async |wanted: &str| loop {
        let seen = timeout(PATIENCE, watch.next()).await.expect("in time");
        let seen = seen.expect("a frame").expect("a frame");
        if seen.frame.event() == wanted {
            return seen;
        }
    };
    let stalled = next("stalled").await;
    let Frame::Stalled { why: Some(why), .. } = stalled.frame else {
        panic!("{stalled:?}");
    };
    assert!(why.contains("the store is full"), "{why}");
    assert_eq!(stalled.place, None);

    let js = world.js().await;
    purge_subject(&js, STREAM, &subject::output(nobody))
        .await
        .expect("purged");
    next("run_finished").await;
    let view = world.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded);
    world.engine().stored().await.expect("looked at");
    let again = world.run(json!({"predicate": "*"})).await;
    world
        .until("the node runs again", || nodes[0].executed() == 2)
        .await;
    nodes[0].release.notify_one();
    world.ended(again).await;
}
