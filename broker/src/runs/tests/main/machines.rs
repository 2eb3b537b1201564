//! Machines that a `main` asks for, and scenarios that it runs on nodes that
//! came to be meanwhile.

use std::sync::PoisonError;

use muster_protocol::api::{CreateVms, MachineFate, VmView};
use muster_protocol::run::{MadeMachine, PartOf};

use super::*;
use crate::authz::Caller;
use crate::runs::{MachineNow, Machinery, UpMachine};

/// Machines that are only in memory; like records they outlive a broker.
#[derive(Clone, Default)]
pub(super) struct Forge(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    now: Vec<(PartOf, MachineNow)>,
    /// What was asked for, in order.
    told: Vec<String>,
    /// They are not up by themselves.
    slow: bool,
    /// Nobody has taken the run that makes or configures them.
    untaken: bool,
    /// Why none is made, or none destroyed.
    refuses: Option<Kind>,
    /// It cannot be said whether they went.
    lost: bool,
}

impl Forge {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.state().told)
    }

    /// Every machine is so from now on.
    fn becomes(&self, now: &MachineNow) {
        for (_, one) in &mut self.state().now {
            one.clone_from(now);
        }
    }
}

fn made() -> MadeMachine {
    MadeMachine {
        name: "web-25".parse().expect("a name"),
        hypervisor: "hv-1".parse().expect("a name"),
    }
}

fn up() -> MachineNow {
    MachineNow::Up(Box::new(UpMachine {
        made: made(),
        node: Some("web-25".parse().expect("a name")),
        addresses: vec!["192.0.2.25".parse().expect("an address")],
        protected: false,
    }))
}

fn refused(state: &State) -> Option<Problem> {
    let kind = state.refuses?;
    Some(Problem::new(kind, "no hypervisor can take it").detail("hv-1: full\nhv-2: full"))
}

impl Machinery for Forge {
    fn now(&self, of: PartOf) -> MachineNow {
        let state = self.state();
        let found = state.now.iter().find(|(part, _)| *part == of);
        found.map_or(MachineNow::Nothing, |(_, now)| now.clone())
    }

    fn would_make(&self, _: Caller, asked: CreateVms) -> BoxFuture<'_, Result<VmView, Problem>> {
        let view = json!({
            "name": asked.name, "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "status": "creating",
            "should_run": true, "hypervisor": "hv-1", "cpus": asked.cpus, "memory": asked.memory,
            "disk": 1 << 30, "image": asked.image, "nics": [], "addresses": [], "roles": [],
            "image_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "labels": {}, "groups": [], "agent": true, "ready": "agent", "autostart": true,
            "protected": false, "by": "bruno", "made": "2026-01-01T00:00:00Z",
        });
        let refused = refused(&self.state());
        Box::pin(async move {
            if let Some(problem) = refused {
                return Err(problem);
            }
            Ok(serde_json::from_value(view).expect("a view"))
        })
    }

    fn make(&self, _: Caller, asked: CreateVms, of: PartOf) -> BoxFuture<'_, Result<(), Problem>> {
        let mut state = self.state();
        let refused = refused(&state);
        if refused.is_none() {
            let now = if state.slow {
                MachineNow::Coming(None)
            } else {
                up()
            };
            state.now.push((of, now));
            state.told.push(format!("make {}", asked.name));
        }
        Box::pin(async move { refused.map_or(Ok(()), Err) })
    }

    fn call_off(&self, of: PartOf) -> BoxFuture<'_, Result<(), Problem>> {
        let mut state = self.state();
        if state.untaken {
            state.told.push("call off web-25".into());
            for (part, one) in &mut state.now {
                if *part == of {
                    *one = match one {
                        MachineNow::Busy(..) => up(),
                        _ => MachineNow::Gone("it was cancelled before it was begun".into()),
                    };
                }
            }
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn unmake(&self, _: Caller, of: PartOf) -> BoxFuture<'_, Result<(), Problem>> {
        let mut state = self.state();
        let refused = refused(&state);
        let now = if state.lost {
            MachineNow::Doubtful(made(), "hv-1 was not heard".into())
        } else {
            MachineNow::Gone("bruno had it destroyed".into())
        };
        if refused.is_none() {
            state.told.push("destroy web-25".into());
            for (part, one) in &mut state.now {
                if *part == of {
                    *one = now.clone();
                }
            }
        }
        Box::pin(async move { refused.map_or(Ok(()), Err) })
    }
}

const GROWS: &str = r#"
scenario("Makes a machine");
param("keep", #{ type: "bool", default: false });
param("fails", #{ type: "bool", default: true });
param("caught", #{ type: "bool", default: false });
target("role=lb");
allow_check();
fn before(p) { }
fn before_back(p) { }
fn after(p) { }
fn after_back(p) { }
fn main(p) {
    on(targets(), "before").undo("before_back");
    let m = #{};
    try {
        m = machine(#{ name: "web-25", image: "debian-12", cpus: 1, memory: "1GiB", keep: p.keep });
    } catch (why) {
        if !p.caught { throw why; }
        return why;
    }
    on(targets(), "after").undo("after_back");
    if p.fails { abort("no"); }
    m
}
"#;

fn fate(view: &RunView) -> MachineFate {
    let main = view.main.as_ref().expect("it has a `main`");
    let machine = main.calls.iter().find_map(|call| call.machine.as_ref());
    machine.expect("a machine").fate.clone()
}

async fn grows() -> (Play, Forge) {
    let play = Play::new(fleet(), &[("grows", GROWS)]).await;
    let forge = play.shelf.forge.clone();
    (play, forge)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_made_and_goes_at_its_place_when_the_run_fails() {
    let (play, forge) = grows().await;
    let run = play.begin("grows", json!({"fails": false})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    let value = view.main.as_ref().and_then(|main| main.value.clone());
    let expected = json!({
        "name": "web-25", "node": "web-25", "hypervisor": "hv-1", "addresses": ["192.0.2.25"],
        "made": true,
    });
    assert_eq!(value, Some(expected));
    assert_eq!(forge.told(), ["make web-25"]);

    let run = play.begin("grows", json!({})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Failed, "{view:#?}");
    assert_eq!(fate(&view), MachineFate::Gone);
    assert_eq!(forge.told(), ["make web-25", "destroy web-25"]);
    let undo: Vec<&str> = {
        let main = view.main.as_ref().expect("there");
        main.undo.iter().map(|step| step.name.as_str()).collect()
    };
    assert_eq!(undo, ["after_back", "before_back"]);
    // Between the two: the newest first.
    let events = play.world.journal(run).await;
    let order: Vec<&str> = events
        .iter()
        .map(RunEvent::kind)
        .filter(|kind| matches!(*kind, "undoing" | "unmaking"))
        .collect();
    assert_eq!(order, ["undoing", "unmaking", "undoing"]);

    // One that is to stay stays.
    let run = play.begin("grows", json!({"keep": true})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Failed, "{view:#?}");
    assert!(matches!(fate(&view), MachineFate::Made { .. }));
    assert_eq!(forge.told(), ["make web-25"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_takes_over_makes_no_second_one() {
    let (mut play, forge) = grows().await;
    forge.state().slow = true;
    let run = play.begin("grows", json!({"fails": false})).await;
    let coming = |view: &RunView| {
        let main = view.main.as_ref();
        main.is_some_and(|main| main.calls.iter().any(|call| call.machine.is_some()))
    };
    play.until(run, "it makes one", coming).await;
    let told = |count: usize| forge.state().told.len() == count;
    play.until(run, "it has asked for one", |_| told(1)).await;
    play.restart().await;
    play.restart().await;
    forge.becomes(&up());
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    assert_eq!(forge.told(), ["make web-25"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_the_making_and_leaves_nothing() {
    let (play, forge) = grows().await;
    // It is known to be gone, and it came to be all the same.
    for (now, told) in [
        (MachineNow::Gone("cancelled".into()), vec!["make web-25"]),
        (up(), vec!["make web-25", "destroy web-25"]),
    ] {
        forge.state().now.clear();
        forge.state().slow = true;
        let run = play.begin("grows", json!({"caught": true})).await;
        play.until(run, "it has asked for one", |_| {
            !forge.state().now.is_empty()
        })
        .await;
        play.world.cancel(run).await;
        play.until(run, "it is cancelled", |view| {
            view.brief.state == RunPhase::Cancelling
        })
        .await;
        forge.becomes(&now);
        let view = play.ended(run).await;
        assert_eq!(view.brief.state, RunPhase::Cancelled, "{view:#?}");
        assert_eq!(forge.told(), told);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_waits_for_no_run_that_nobody_has_taken() {
    let (play, forge) = grows().await;
    let run = || Some(RunId::from_bytes([9; 16]));
    let made_and_called_off = vec!["make web-25", "call off web-25"];
    let and_destroyed = vec!["make web-25", "call off web-25", "destroy web-25"];
    for (now, told) in [
        (MachineNow::Coming(run()), made_and_called_off),
        (MachineNow::Busy(made(), run()), and_destroyed),
    ] {
        forge.state().now.clear();
        (forge.state().slow, forge.state().untaken) = (true, true);
        let run = play.begin("grows", json!({})).await;
        play.until(run, "it has asked for one", |_| {
            !forge.state().now.is_empty()
        })
        .await;
        forge.becomes(&now);
        play.world.cancel(run).await;
        let view = play.ended(run).await;
        assert_eq!(view.brief.state, RunPhase::Cancelled, "{view:#?}");
        assert_eq!(forge.told(), told);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_the_run_that_configures_the_machine() {
    let (play, forge) = grows().await;
    forge.state().slow = true;
    // Any run that is open: this one waits for its machine.
    let configuring = play.begin("grows", json!({"caught": true})).await;
    play.until(configuring, "it has asked for one", |_| {
        !forge.state().now.is_empty()
    })
    .await;
    let run = play.begin("grows", json!({})).await;
    play.until(run, "it has asked for one", |_| {
        forge.state().now.len() == 2
    })
    .await;
    let busy = MachineNow::Busy(made(), Some(configuring));
    if let Some((_, now)) = forge.state().now.last_mut() {
        *now = busy;
    }
    play.world.cancel(run).await;
    play.until(configuring, "it is ended, too", |view| {
        view.brief.state == RunPhase::Cancelling
    })
    .await;
    forge.becomes(&up());
    for run in [run, configuring] {
        let view = play.ended(run).await;
        assert_eq!(view.brief.state, RunPhase::Cancelled, "{view:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_be_made_is_an_error_that_a_script_may_catch() {
    let (play, forge) = grows().await;
    forge.state().refuses = Some(Kind::Conflict);
    let run = play.begin("grows", json!({"caught": true})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    let value = view.main.as_ref().and_then(|main| main.value.clone());
    insta::assert_snapshot!(
        value.unwrap_or_default(),
        @r#""machine web-25 was not made: no hypervisor can take it: hv-1: full; hv-2: full""#
    );
    assert_eq!(fate(&view), MachineFate::Failed);

    let run = play.begin("grows", json!({})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Failed, "{view:#?}");
    assert_eq!(forge.told(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_go_for_certain_is_said() {
    let (play, forge) = grows().await;
    forge.state().lost = true;
    let run = play.begin("grows", json!({})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::UndoFailed, "{view:#?}");
    let MachineFate::Left { why, .. } = fate(&view) else {
        panic!("{view:#?}");
    };
    assert_eq!(why, "hv-1 was not heard");
    assert_eq!(forge.told(), ["make web-25", "destroy web-25"]);
    // The rest is taken back all the same.
    assert_eq!(view.main.map(|main| main.undo.len()), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_says_what_it_would_make() {
    let (play, forge) = grows().await;
    let asked = json!({"params": {"fails": false}, "mode": "check"});
    let run = play.begin_as("grows", asked).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    let main = view.main.as_ref().expect("there");
    assert_eq!(
        main.value.as_ref().map(|v| v["made"].clone()),
        Some(json!(false))
    );
    insta::assert_snapshot!(
        main.logs[0].text,
        @"would make machine web-25 on hv-1: 1 cpus, 1GiB of memory, 1GiB of disk, from debian-12"
    );
    assert_eq!(forge.told(), Vec::<String>::new());
}

const ELSEWHERE: &str = r#"
scenario("Runs another one on nodes of its own choice");
param("on", #{ });
target("role=lb");
fn main(p) { run_scenario("works", #{}, #{ on: p.on }) }
"#;
const WORKS: &str = r#"
scenario("Works where it is told to");
fn work(p) { }
fn main(p) { on(targets(), "work"); targets().names }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scenario_runs_on_the_nodes_that_it_is_told() {
    let texts = [("elsewhere", ELSEWHERE), ("works", WORKS)];
    let play = Play::new(fleet(), &texts).await;
    let run = play.begin("elsewhere", json!({"on": "name=web-2"})).await;
    let view = play.ended(run).await;
    assert_eq!(view.brief.state, RunPhase::Succeeded, "{view:#?}");
    let value = |view: &RunView| view.main.as_ref().and_then(|main| main.value.clone());
    assert_eq!(value(&view), Some(json!(["web-2"])));
    assert_eq!(play.called(), ["2 work {}"]);

    for (on, said) in [("name=web-99", "web-99"), ("name=(", "run_scenario")] {
        let run = play.begin("elsewhere", json!({ "on": on })).await;
        let view = play.ended(run).await;
        assert_eq!(view.brief.state, RunPhase::Failed, "{view:#?}");
        let error = view.main.and_then(|main| main.error).unwrap_or_default();
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(play.called(), Vec::<String>::new());
}
