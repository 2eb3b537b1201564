//! Runs with a `main`, over a real server with scripted nodes.

mod cut;
mod dry;
mod limits;
mod machines;
mod waits;

mod contact;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_protocol::api::{CallView, Frame, RunView};
use muster_protocol::envelope::BundleHash;
use muster_protocol::ids::RunId;
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::{Outcome, RunEvent, RunPhase, Wish};
use muster_protocol::units::Timestamp;
use muster_scenarios::bundle::Bundle;
use muster_scenarios::manifest::{self, Shape};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::super::journal::held::{HOLD, Hold};
use super::super::{Another, Engine, FrozenRun, Program, Score, Stage, StageError, ready};
use super::node::{Node, Script};
use super::{PATIENCE, World, assignment, caller, record, webs};
use crate::authz::{Action, Authorized, FixedRoles, Policy, RunAsk, authorize};
use crate::inventory::{Inventory, NodeRecord};

/// Scenarios that are only in memory.
#[derive(Clone)]
struct Shelf {
    texts: Arc<Mutex<BTreeMap<String, String>>>,
    inventory: Inventory,
    forge: machines::Forge,
}

fn bundle(text: &str) -> Bundle {
    Bundle::new(text.to_owned(), BTreeMap::new()).expect("a bundle")
}

impl Shelf {
    fn new(inventory: Inventory, texts: &[(&str, &str)]) -> Self {
        let texts = texts
            .iter()
            .map(|(n, t)| ((*n).to_owned(), (*t).to_owned()));
        Self {
            texts: Arc::new(Mutex::new(texts.collect())),
            inventory,
            forge: machines::Forge::default(),
        }
    }

    /// A run of it, as whoever asks for it gets it.
    fn frozen(&self, name: &str, params: Value, id: RunId) -> Result<FrozenRun, Box<Problem>> {
        self.frozen_as(name, json!({ "params": params }), id)
    }

    /// The same with more of the request.
    fn frozen_as(&self, name: &str, asked: Value, id: RunId) -> Result<FrozenRun, Box<Problem>> {
        let texts = self.texts.lock().expect("a lock");
        let text = texts
            .get(name)
            .ok_or_else(|| Problem::new(Kind::NotFound, format!("there is no `{name}`")))
            .map_err(Box::new)?;
        let program = Program {
            name: name.parse().expect("a name"),
            version: 1,
            bundle: bundle(text).hash(),
            manifest: Arc::new(manifest::read(name, text).expect("it can be read")),
        };
        let mut asked = asked;
        asked["scenario"] = name.into();
        let request = serde_json::from_value(asked);
        let ready =
            ready(&request.expect("a request"), &program).map_err(|e| Box::new(e.problem()))?;
        let by = caller();
        let snapshot = self.inventory.snapshot();
        ready
            .freeze(&snapshot, id, (&by.principal, by.door), Timestamp::now())
            .map_err(|e| Box::new(e.problem()))
    }
}

fn allowed(frozen: FrozenRun) -> Authorized<FrozenRun> {
    let action = Action::CreateRun(Box::new(RunAsk::of(&frozen)));
    authorize(&FixedRoles, &caller(), action, frozen).expect("allowed")
}

impl Stage for Shelf {
    fn score(&self, hash: BundleHash) -> BoxFuture<'_, Result<Arc<Score>, StageError>> {
        let texts = self.texts.lock().expect("a lock");
        let found = texts.values().find(|text| bundle(text).hash() == hash);
        let score = found
            .ok_or(StageError::NotThere(hash))
            .map(|text| Arc::new(Score::new("test.rhai", &bundle(text)).expect("it can be read")));
        Box::pin(async move { score })
    }

    fn another(&self, asked: Another) -> BoxFuture<'_, Result<Authorized<FrozenRun>, Problem>> {
        let request = json!({"params": asked.params, "predicate": asked.on, "mode": asked.mode});
        let frozen = self.frozen_as(asked.scenario.as_str(), request, asked.id);
        let frozen = frozen.map_err(|problem| *problem).map(|mut frozen| {
            frozen.spec.part_of = Some(asked.part_of);
            allowed(frozen)
        });
        Box::pin(async move { frozen })
    }

    fn policy(&self) -> &dyn Policy {
        &FixedRoles
    }

    fn machinery(&self) -> Option<&dyn super::super::Machinery> {
        Some(&self.forge)
    }
}

/// Four web servers in two racks, and a balancer.
fn fleet() -> Vec<NodeRecord> {
    let mut records: Vec<NodeRecord> = (1..=4)
        .map(|n| {
            let rack = if n % 2 == 0 { "r0" } else { "r1" };
            record(
                n,
                assignment(&format!("web-{n}"), &["web"], &[("rack", rack)]),
            )
        })
        .collect();
    records.push(record(5, assignment("lb-1", &["lb"], &[("rack", "r0")])));
    records
}

struct Play {
    world: World,
    shelf: Shelf,
    nodes: Vec<Node>,
    epoch: u64,
}

impl Play {
    async fn new(records: Vec<NodeRecord>, texts: &[(&str, &str)]) -> Self {
        let world = World::new(records).await;
        let shelf = Shelf::new(world.inventory.clone(), texts);
        world.engine().conduct_with(Arc::new(shelf.clone()));
        let nodes = world.all(&Script::Functions(HashMap::new())).await;
        Self {
            world,
            shelf,
            nodes,
            epoch: 1,
        }
    }

    fn engine(&self) -> &Engine {
        self.world.engine()
    }

    /// On every node this function ends so.
    fn ends(&self, function: &str, outcome: Outcome) {
        for node in &self.nodes {
            let mut script = node.script.lock().unwrap();
            if let Script::Functions(outcomes) = &mut *script {
                outcomes.insert(function.to_owned(), outcome);
            }
        }
    }

    async fn begin(&self, name: &str, params: Value) -> RunId {
        self.begin_as(name, json!({ "params": params })).await
    }

    async fn begin_as(&self, name: &str, asked: Value) -> RunId {
        let frozen = self.shelf.frozen_as(name, asked, RunId::random());
        self.create(frozen.expect("frozen")).await
    }

    async fn create(&self, frozen: FrozenRun) -> RunId {
        let created = self.engine().create(allowed(frozen)).await;
        created.expect("created").brief.id
    }

    async fn restart(&mut self) {
        self.epoch += 1;
        self.world.restart(self.epoch).await;
        self.engine().conduct_with(Arc::new(self.shelf.clone()));
    }

    /// Waits until the run is so.
    async fn until(&self, run: RunId, what: &str, so: impl Fn(&RunView) -> bool) -> RunView {
        let end = tokio::time::Instant::now() + PATIENCE * 2;
        loop {
            let view = self.engine().show(run).await.expect("shown");
            if so(&view) {
                return view;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "waited too long until {what}: {view:#?}"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ended(&self, run: RunId) -> RunView {
        self.until(run, "its end", |view| view.brief.state.is_final())
            .await
    }

    async fn asks(&self, run: RunId) -> RunView {
        let asks = |view: &RunView| {
            let open = view.main.as_ref().and_then(|main| main.calls.last());
            open.is_some_and(|call| call.question.is_some() && call.ended.is_none())
        };
        self.until(run, "it asks", asks).await
    }

    async fn answer(&self, run: RunId, text: &str) -> Result<RunView, Problem> {
        let run = authorize(&FixedRoles, &caller(), Action::AnswerRun, run).expect("allowed");
        let said = self.engine().answer(run, text.to_owned()).await;
        said.map_err(|error| error.problem())
    }

    async fn wish(&self, run: RunId, wish: Wish) {
        let run = authorize(&FixedRoles, &caller(), Action::CancelRun, run).expect("allowed");
        self.engine().wish(run, wish).await.expect("granted");
    }

    /// What every node did since it was asked last, sorted.
    fn called(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let mut log = node.log.lock().unwrap();
            all.extend(log.called.drain(..).map(|what| format!("{} {what}", n + 1)));
        }
        all.sort();
        all
    }
}

fn calls(view: &RunView) -> Vec<String> {
    let main = view.main.as_ref().expect("it has a `main`");
    let one = |call: &CallView| {
        let steps: Vec<String> = call
            .steps
            .iter()
            .map(|step| {
                let counts: Vec<String> = step
                    .summary
                    .iter()
                    .map(|(o, n)| format!("{n} {o}"))
                    .collect();
                format!("{} {}", step.name, counts.join(", "))
            })
            .collect();
        format!("{} [{}]", call.name, steps.join("; "))
    };
    main.calls.iter().map(one).collect()
}

const ROLLING: &str = r#"
scenario("Upgrade it, a half at a time");
param("version", #{});
target("role=web");
also("balancers", "role=lb");
fn drain(p) { }
fn upgrade(p) { }
fn back(p) { }
fn restore(p) { }
fn main(p) {
    for batch in targets().batches("50%", #{ spread: "rack" }) {
        on(nodes("balancers"), "drain", #{ hosts: batch.names }).undo("restore");
        let r = on(batch, "upgrade", p).undo("back");
        log(`upgraded ${batch.names}: ${r[batch.names[0]].stdout}`);
    }
    "done"
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_are_runs_of_their_own_under_the_run_that_asked_for_them() {
    let play = Play::new(fleet(), &[("up", ROLLING)]).await;
    let run = play.begin("up", json!({"version": "1.4.2"})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    assert_eq!(
        calls(&view),
        [
            "on [drain 1 succeeded]",
            "on [upgrade 2 succeeded]",
            "on [drain 1 succeeded]",
            "on [upgrade 2 succeeded]",
        ]
    );
    let main = view.main.as_ref().expect("there");
    assert_eq!(main.value, Some(json!("done")));
    assert_eq!(main.logs.len(), 2);
    assert!(main.logs[0].text.contains("upgrade on "), "{:?}", main.logs);
    assert_eq!(view.brief.summary, [(Outcome::Succeeded, 5)].into());
    // No batch has a whole rack.
    let step = &main.calls[1].steps[0];
    let part = play.engine().show(step.run).await.expect("shown");
    let names: Vec<&str> = part.results.iter().map(|r| r.node.as_str()).collect();
    assert_eq!(names.len(), 2);
    assert_ne!(names, ["web-1", "web-3"]);
    assert_eq!(part.brief.part_of.expect("a part").run, run);
    assert_eq!(part.brief.predicate, "role=web");
    // Nobody sees them in a list who does not ask for them.
    let list = |parts| {
        play.engine()
            .list(None, 100, parts)
            .expect("listed")
            .0
            .len()
    };
    assert_eq!((list(false), list(true)), (1, 5));
    let cancel = authorize(&FixedRoles, &caller(), Action::CancelRun, step.run).expect("allowed");
    let refused = play.engine().cancel(cancel).await.expect_err("a part");
    assert!(
        refused.to_string().contains("is a step of run"),
        "{refused}"
    );

    // Who watches it sees the same, whenever that is.
    let frames = play.world.frames(run, None).await;
    let kinds: Vec<&str> = frames.iter().map(|seen| seen.frame.event()).collect();
    assert_eq!(
        kinds,
        [
            "run_created",
            "step_began",
            "step_ended",
            "step_began",
            "step_ended",
            "logged",
            "step_began",
            "step_ended",
            "step_began",
            "step_ended",
            "logged",
            "main_ended",
            "outcome",
            "outcome",
            "outcome",
            "outcome",
            "outcome",
            "run_finished",
        ]
    );

    // They go together.
    let kept = play.engine().kept().expect("served");
    assert_eq!(kept.len(), 1);
    sleep(Duration::from_millis(5_500)).await;
    use super::super::Removed;
    assert_eq!(
        play.engine().remove_run(run).await.expect("asked"),
        Removed::Gone
    );
    assert_eq!(list(true), 0);
    assert!(play.world.journal(step.run).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_takes_back_what_was_done_newest_first() {
    let play = Play::new(fleet(), &[("up", ROLLING)]).await;
    *play.nodes[3].script.lock().unwrap() =
        Script::Functions(HashMap::from([("upgrade".to_owned(), Outcome::Failed)]));
    let run = play.begin("up", json!({"version": "1.4.2"})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Failed, "{view:#?}");
    let main = view.main.as_ref().expect("there");
    let undone: Vec<(&str, u32)> = main
        .undo
        .iter()
        .map(|u| (u.name.as_str(), u.nodes))
        .collect();
    assert_eq!(
        undone,
        [("back", 2), ("restore", 1), ("back", 2), ("restore", 1)]
    );
    let error = main.error.as_ref().expect("it failed");
    assert!(error.contains("1 node failed, none may"), "{error}");
    assert_eq!(
        view.brief.summary,
        [(Outcome::Succeeded, 4), (Outcome::Failed, 1)].into()
    );
    let bad = view
        .results
        .iter()
        .find(|r| r.outcome == Some(Outcome::Failed));
    let reason = bad.and_then(|r| r.reason.clone()).unwrap_or_default();
    assert!(
        reason.starts_with("`upgrade` (run ") && reason.ends_with("as scripted"),
        "{reason}"
    );

    // An undo that fails is its own state.
    play.ends("restore", Outcome::Failed);
    play.ends("upgrade", Outcome::Failed);
    let run = play.begin("up", json!({"version": "1.4.2"})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::UndoFailed, "{view:#?}");
}

const ASKING: &str = r#"
scenario("Asks");
target("role=web");
fn change(p) { }
fn back(p) { }
fn main(p) {
    on(targets(), "change").undo("back");
    let said = ask("Go on?", ["yes", "no"]);
    if said != "yes" { abort("somebody said no"); }
    on(targets(), "change", #{ again: true });
    sleep("1h");
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_waits_for_an_answer_and_a_cancel_takes_back() {
    let mut play = Play::new(fleet(), &[("ask", ASKING)]).await;
    let run = play.begin("ask", json!({})).await;
    let view = play.asks(run).await;
    assert!(view.brief.waits.is_some(), "{view:#?}");
    play.restart().await;
    let wrong = play.answer(run, "maybe").await.expect_err("refused");
    assert_eq!(
        wrong.title,
        "`maybe` is no answer to that; there are: yes, no"
    );
    play.answer(run, "yes").await.expect("taken");
    let again = play.answer(run, "yes").await.expect_err("too late");
    assert_eq!(again.kind, Kind::Conflict, "{again:?}");
    let sleeps = |view: &RunView| {
        let open = view.main.as_ref().and_then(|main| main.calls.last());
        open.is_some_and(|call| call.until.is_some())
    };
    play.until(run, "it sleeps", sleeps).await;
    play.restart().await;
    play.world.cancel(run).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Cancelled, "{view:#?}");
    let main = view.main.as_ref().expect("there");
    let undone: Vec<&str> = main.undo.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(undone, ["back"]);
    assert_eq!(main.calls[1].answer.as_deref(), Some("yes"));
    let count = |what: &str| play.called().iter().filter(|c| c.contains(what)).count();
    assert_eq!(count("back"), 4);

    // What a no does is up to the script.
    let run = play.begin("ask", json!({})).await;
    play.asks(run).await;
    play.answer(run, "no").await.expect("taken");
    let view = play.ended(run).await;
    let error = view.main.and_then(|main| main.error).unwrap_or_default();
    assert!(error.contains("somebody said no"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_the_steps_that_are_under_way() {
    let play = Play::new(fleet(), &[("up", ROLLING)]).await;
    for node in &play.nodes[..4] {
        *node.script.lock().unwrap() = Script::Hold;
    }
    let run = play.begin("up", json!({"version": "1.4.2"})).await;
    play.until(run, "it upgrades", |view| {
        calls(view)
            .last()
            .is_some_and(|call| call.contains("upgrade"))
    })
    .await;
    // While it waits, nothing new is begun.
    play.wish(run, Wish::Pause).await;
    let step = |view: &RunView| view.main.as_ref().map(|m| m.calls[1].steps[0].run);
    let view = play.engine().show(run).await.expect("shown");
    let part = step(&view).expect("there");
    play.until(part, "its part waits", |v| {
        v.brief.state == RunPhase::Paused
    })
    .await;
    play.wish(run, Wish::Resume).await;
    play.until(part, "its part goes on", |v| {
        v.brief.state == RunPhase::Running
    })
    .await;
    // What takes it back ends by itself.
    for node in &play.nodes[..4] {
        *node.script.lock().unwrap() = Script::Functions(HashMap::new());
    }
    play.world.cancel(run).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Cancelled, "{view:#?}");
    let part = play.engine().show(part).await.expect("shown");
    assert_eq!(part.brief.state, RunPhase::Cancelled);
}

const OTHERS: &str = r#"
scenario("Runs others");
target("role=web");
fn main(p) {
    let value = run_scenario("inner", #{ n: 3 });
    let caught = "";
    try { run_scenario("outer"); } catch (e) { caught = `${e}`; }
    let plain = run_scenario("plain");
    #{ value: value, caught: caught, plain: plain }
}
"#;
const INNER: &str = r#"
scenario("Is run");
param("n", #{ type: "int" });
target("role=web");
fn work(p) { }
fn main(p) { on(targets().limit(p.n), "work"); p.n * 2 }
"#;
const PLAIN: &str = r#"
scenario("Has no main");
target("role=lb");
fn run(p) { }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scenario_runs_others_and_never_itself() {
    let texts = [("outer", OTHERS), ("inner", INNER), ("plain", PLAIN)];
    let play = Play::new(fleet(), &texts).await;
    let run = play.begin("outer", json!({})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    let main = view.main.as_ref().expect("there");
    assert_eq!(
        main.value,
        Some(
            json!({"value": 6, "caught": "`outer` would run itself: outer → outer", "plain": null})
        )
    );
    play.ends("run", Outcome::Failed);
    let run = play.begin("outer", json!({})).await;
    let view = play.ended(run).await;
    let error = view.main.and_then(|main| main.error).unwrap_or_default();
    assert!(error.contains("scenario plain ("), "{error}");
    assert!(error.contains(") has failed: 1 failed"), "{error}");
}

/// A loop, `parallel`, `sleep`, `ask`, `random`, a caught error and undo; and
/// it fails in the end.
const ALL: &str = r#"
scenario("Everything");
param("version", #{});
target("role=web");
also("balancers", "role=lb");
fn drain(p) { }
fn upgrade(p) { }
fn back(p) { }
fn restore(p) { }
fn check(p) { }
fn flaky(p) { }
fn main(p) {
    for batch in targets().batches("50%", #{ spread: "rack" }) {
        on(nodes("balancers"), "drain", #{ hosts: batch.names }).undo("restore");
        on(batch, "upgrade", p).undo("back");
        sleep("10ms");
    }
    parallel([step(targets(), "check"), step(nodes("balancers"), "check", #{ lb: true })]);
    let caught = "";
    try { on(nodes("balancers"), "flaky"); } catch (e) { caught = `${e}`; }
    let said = ask("Go on?", ["yes", "no"]);
    let dice = random(1, 1000000);
    log(`rolled ${dice}, caught ${caught}, ${said}`);
    on(targets().where("rack=r0"), "check", #{ dice: dice > 0 });
    emit("upgraded", #{ version: p.version });
    abort("that was all");
}
"#;

/// What counts in the end, whatever happened on the way.
fn told(view: &RunView) -> Value {
    let main = view.main.as_ref().expect("it has a `main`");
    let undone: Vec<Value> = main
        .undo
        .iter()
        .map(|u| json!([u.name, u.nodes, u.summary, u.undo_of]))
        .collect();
    let error = main.error.as_deref().and_then(|e| e.lines().next());
    let results: Vec<Value> = view
        .results
        .iter()
        .map(|r| json!([r.node, r.outcome]))
        .collect();
    json!({
        "state": view.brief.state, "calls": calls(view), "undone": undone,
        "error": error, "results": results, "answered": main.answered,
    })
}

impl Play {
    /// Plays it to its end, answering its question.
    async fn whole(&self, run: RunId) -> RunView {
        let answering = async {
            loop {
                let view = self.engine().show(run).await;
                if let Ok(view) = view {
                    if view.brief.state.is_final() {
                        return;
                    }
                    let asks = view.main.as_ref().and_then(|main| main.calls.last());
                    if asks.is_some_and(|c| c.question.is_some() && c.ended.is_none()) {
                        let _ = self.answer(run, "yes").await;
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE * 2, answering)
            .await
            .expect("it ends in time");
        self.ended(run).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_the_same_wherever_the_broker_was_stopped() {
    let mut play = Play::new(fleet(), &[("all", ALL)]).await;
    play.ends("flaky", Outcome::Failed);
    let params = json!({"version": "1.4.2"});

    // Undisturbed: where it comes by.
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let hold = |epoch, after, seen: &Arc<Mutex<Vec<String>>>| {
        let held = Arc::new(Notify::new());
        *HOLD.lock().unwrap() = Some(Hold {
            epoch,
            after,
            seen: Arc::clone(seen),
            held: Arc::clone(&held),
        });
        held
    };
    // Epochs that no other test of this process has.
    play.epoch = 7_000_000;
    play.restart().await;
    hold(play.epoch, usize::MAX, &seen);
    play.called();
    let run = play.begin("all", params.clone()).await;
    let expected = told(&play.whole(run).await);
    assert_eq!(expected["state"], "failed", "{expected:#}");
    let effects = play.called();
    let places = seen.lock().unwrap().len();
    assert!(places > 100, "{places}");

    // Everywhere would take long. The end-to-end tests take every place of the
    // run itself; here some of those, and of the places of its parts.
    let of_run = run.to_string();
    let names = seen.lock().unwrap().clone();
    let mut own = 0;
    for (place, name) in names.iter().enumerate() {
        if name.contains(&of_run) {
            own += 1;
            // Before it is written down, nobody was told that there is a run.
            if own % 4 != 0 || name.contains(" created") || name.contains(" targets") {
                continue;
            }
        } else if place % 4 != 0 {
            continue;
        }
        let seen = Arc::default();
        let held = hold(play.epoch, place, &seen);
        let run = play.begin("all", params.clone()).await;
        let stopped = async {
            tokio::select! {
                () = held.notified() => true,
                _ = play.whole(run) => false,
            }
        };
        let stopped = timeout(PATIENCE * 2, stopped).await.expect("in time");
        let at = format!("stopped at place {place}: {name}");
        // What is answered in another order comes by a place less.
        if stopped {
            *HOLD.lock().unwrap() = None;
            play.restart().await;
        }
        let view = play.whole(run).await;
        assert_eq!(told(&view), expected, "{at}");
        assert_eq!(play.called(), effects, "{at}");
    }
    *HOLD.lock().unwrap() = None;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_does_something_else_is_stopped() {
    let mut play = Play::new(fleet(), &[("ask", ASKING)]).await;
    let run = play.begin("ask", json!({})).await;
    play.asks(run).await;
    // The same hash stands for something else now: muster itself has changed.
    #[derive(Clone)]
    struct Changed(Shelf);
    impl Stage for Changed {
        fn score(&self, _: BundleHash) -> BoxFuture<'_, Result<Arc<Score>, StageError>> {
            let text = ASKING.replace("\"change\").undo", "\"back\").undo");
            let score = Score::new("ask.rhai", &bundle(&text)).expect("it can be read");
            Box::pin(async move { Ok(Arc::new(score)) })
        }
        fn another(&self, asked: Another) -> BoxFuture<'_, Result<Authorized<FrozenRun>, Problem>> {
            self.0.another(asked)
        }
        fn policy(&self) -> &dyn Policy {
            &FixedRoles
        }
    }
    play.epoch += 1;
    play.world.restart(play.epoch).await;
    play.engine()
        .conduct_with(Arc::new(Changed(play.shelf.clone())));
    play.answer(run, "yes").await.expect("taken");
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Diverged, "{view:#?}");
    let error = view.main.and_then(|main| main.error).unwrap_or_default();
    assert!(
        error.contains("has other arguments than the first time"),
        "{error}"
    );
}

const WAITING: &str = r#"
scenario("Waits");
target("role=web");
fn main(p) { ask("Go on?"); }
"#;

/// Threads of this process.
fn threads() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Threads:"));
    line.and_then(|n| n.trim().parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_runs_wait_and_cost_no_thread() {
    let mut play = Play::new(webs(1), &[("wait", WAITING)]).await;
    let before = threads();
    let mut runs = Vec::new();
    for _ in 0..1_000 {
        runs.push(play.begin("wait", json!({})).await);
    }
    for run in &runs {
        play.asks(*run).await;
    }
    let most = before + 16;
    assert!(threads() <= most, "{} threads, {before} before", threads());
    play.restart().await;
    for run in [runs[0], runs[999]] {
        play.asks(run).await;
        play.answer(run, "yes").await.expect("taken");
        assert_eq!(play.ended(run).await.brief.state, RunPhase::Succeeded);
    }
    assert!(threads() <= most, "{} threads, {before} before", threads());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_says_a_step_before_it_is_made() {
    let play = Play::new(fleet(), &[("up", ROLLING)]).await;
    let run = play.begin("up", json!({"version": "1.4.2"})).await;
    let view = play.ended(run).await;
    let frozen = play
        .shelf
        .frozen("up", json!({"version": "1"}), RunId::random())
        .expect("frozen");
    assert_eq!(frozen.shape, Shape::Main);
    let journal = play.world.journal(run).await;
    let called = journal
        .iter()
        .filter(|e| matches!(e, RunEvent::Called { .. }))
        .count();
    let answered = journal
        .iter()
        .filter(|e| matches!(e, RunEvent::Answered { .. }))
        .count();
    assert_eq!((called, answered), (4, 4));
    let seen = play.world.frames(run, None).await;
    let ended = seen.iter().find_map(|seen| match &seen.frame {
        Frame::StepEnded { step, .. } => Some(*step),
        _ => None,
    });
    assert_eq!(ended, view.main.map(|main| main.calls[0].steps[0].run));
}
