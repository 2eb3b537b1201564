//! Dry runs of a `main`: nothing happens, nobody is asked, and nothing is
//! waited for.

use super::*;

const TELLS: &str = r#"
scenario("Tells, sleeps, asks");
param("asks", #{ type: "bool", default: true });
target("role=web");
allow_check();
fn change(p) { }
fn back(p) { }
fn main(p) {
    on(targets().limit(2), "change").undo("back");
    emit("begun", #{ what: "it\x1b" });
    emit("plain");
    sleep("2h");
    if p.asks {
        ask("Go on?", ["yes", "no"]);
    }
    on(targets().limit(3), "change");
    "done"
}
"#;

const CALLS: &str = r#"
scenario("Calls another one");
param("asks", #{ type: "bool" });
target("role=lb");
allow_check();
fn own(p) { }
fn main(p) {
    let said = run_scenario("tells", #{ asks: p.asks });
    on(targets(), "own");
    said
}
"#;

const LOOPS: &str = r#"
scenario("Waits for what never comes");
target("role=web");
allow_check();
fn main(p) {
    loop { sleep("1s"); }
}
"#;

const FAILS: &str = r#"
scenario("Fails after it has done something");
target("role=web");
allow_check();
fn change(p) { }
fn back(p) { }
fn main(p) {
    on(targets(), "change").undo("back");
    abort("no");
}
"#;

fn check(params: Value) -> Value {
    json!({"params": params, "mode": "check"})
}

fn logs(view: &RunView) -> Vec<&str> {
    let main = view.main.as_ref().expect("it has a `main`");
    main.logs.iter().map(|line| line.text.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_of_a_main_tells_nobody_waits_for_nothing_and_asks_nobody() {
    let texts = [("tells", TELLS), ("calls", CALLS)];
    let mut play = Play::new(fleet(), &texts).await;
    let run = play.begin_as("tells", check(json!({}))).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    assert_eq!(calls(&view), ["on [change 2 succeeded]"]);
    assert_eq!(
        logs(&view),
        [
            r#"would emit scenario.begun {"what":"it\u001b"}"#,
            "would emit scenario.plain",
            "would sleep 2h",
        ]
    );
    let main = view.main.as_ref().expect("it has a `main`");
    let why = main.planned.as_deref().expect("it went no further");
    assert_eq!(
        why,
        "line 14: what comes after depends on the answer to `Go on?`"
    );
    assert_eq!((main.would_change, &main.error), (2, &None));
    assert_eq!(
        view.brief.summary,
        [(Outcome::Succeeded, 2), (Outcome::Skipped, 2)].into()
    );
    let left = view.results.iter().find_map(|node| node.reason.as_deref());
    assert_eq!(left, Some("not started: the dry run did not come to it"));
    let kinds = |told: Vec<muster_protocol::api::ClusterEvent>| {
        let kinds = told.into_iter().map(|event| event.kind);
        kinds
            .filter(|kind| kind.starts_with("scenario.") || kind.starts_with("run."))
            .collect::<Vec<String>>()
    };
    assert_eq!(kinds(play.world.told().await), Vec::<String>::new());
    // What it came to is in the journal.
    play.restart().await;
    assert_eq!(play.ended(run).await.main, view.main);

    // Of one that asks nobody all of it is seen.
    let run = play.begin_as("tells", check(json!({"asks": false}))).await;
    let view = play.ended(run).await;
    let main = view.main.as_ref().expect("it has a `main`");
    assert_eq!(
        (&main.planned, &main.value, main.would_change),
        (&None, &Some(json!("done")), 3)
    );

    // What another scenario would return is not known either.
    let run = play.begin_as("calls", check(json!({"asks": true}))).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    let main = view.main.as_ref().expect("it has a `main`");
    let why = main.planned.as_deref().expect("it went no further");
    assert!(
        why.starts_with("tells: line 14: what comes after depends"),
        "{why}"
    );
    let run = play.begin_as("calls", check(json!({"asks": false}))).await;
    let view = play.ended(run).await;
    let main = view.main.as_ref().expect("it has a `main`");
    assert_eq!(
        (&main.value, main.would_change),
        (&Some(json!("done")), 4),
        "{view:#?}"
    );
    assert_eq!(kinds(play.world.told().await), Vec::<String>::new());

    // The same, done: it tells.
    let run = play.begin("tells", json!({})).await;
    let sleeps = |view: &RunView| {
        let open = view.main.as_ref().and_then(|main| main.calls.last());
        open.is_some_and(|call| call.until.is_some())
    };
    play.until(run, "it sleeps", sleeps).await;
    let mut told = kinds(play.world.told().await);
    told.retain(|kind| kind.starts_with("scenario."));
    assert_eq!(told[..2], ["scenario.begun", "scenario.plain"], "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_that_would_wait_for_ever_ends_and_nothing_is_taken_back() {
    let play = Play::new(fleet(), &[("loops", LOOPS), ("fails", FAILS)]).await;
    let run = play.begin_as("loops", check(json!({}))).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    let main = view.main.as_ref().expect("it has a `main`");
    let why = main.planned.as_deref().expect("it went no further");
    assert!(why.contains("would have slept 1000 times"), "{why}");

    let run = play.begin_as("fails", check(json!({}))).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Failed, "{view:#?}");
    assert_eq!(view.main.as_ref().map(|main| main.undo.len()), Some(0));
    assert!(view.results.iter().all(|node| !node.taken_back));
    assert_eq!(play.called().len(), 4, "only what was to be checked");
}
