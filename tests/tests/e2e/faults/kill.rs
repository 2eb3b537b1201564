//! `kill -9` of each process while a run is under way.

use std::time::Duration;

use muster_tests::invariants::Audit;
use muster_tests::{Up, processes, signal, wait_for};
use rustix::process::Signal;

use super::{ended, one_outcome_each, outcome_of, works};

const TWO: [&str; 2] = ["a-1:role=a", "a-2:role=a"];
const NAMES: [&str; 2] = ["a-1", "a-2"];
/// How long the command takes; the delays lie before, in and after it.
const TAKES_MS: u64 = 400;
const DELAYS_MS: [u64; 5] = [0, 90, 250, 430, 600];

/// Starts a run that counts its effects, kills after the delay, and looks at
/// what is told in the end.
fn killed_after(up: &mut Up, delay: u64, kill: impl FnOnce(&mut Up)) {
    let counter = up.counter(&format!("after-{delay}"));
    let script = counter.around(&format!("sleep 0.{TAKES_MS}"));
    let run = up
        .muster(&[
            "run", "role=a", "--detach", "--json", "--shell", "--", &script,
        ])
        .exits(0)
        .run();
    // What is tested is that the moment does not matter.
    std::thread::sleep(Duration::from_millis(delay));
    kill(up);
    let said = ended(up, &run);
    let outcomes = one_outcome_each(&said, &NAMES);
    for (node, outcome) in &outcomes {
        let (begun, done) = counter.of(node);
        let told = outcome_of(&said, node);
        match outcome.as_str() {
            "succeeded" => assert_eq!((begun, done), (1, 1), "{told}"),
            "unknown" => assert!(
                told["reason"].as_str().is_some_and(|r| !r.is_empty()),
                "{told}"
            ),
            // Never began, and says so.
            "unreachable" | "declined" | "cancelled" => {
                assert_eq!(begun, 0, "after {delay} ms: {told} {}", up.logs());
            }
            _ => panic!("after {delay} ms: {told} {}", up.logs()),
        }
    }
}

fn kill_part(up: &Up, part: &str) {
    let before = up.pid(part).expect("it runs");
    signal(before, Signal::KILL).expect("kills");
}

/// Whatever is known of a node whose own agent lives is known in the end.
fn all_succeed_when(part: &str) {
    let mut up = Up::start(&TWO).expect("starts");
    for delay in DELAYS_MS {
        killed_after(&mut up, delay, |up| kill_part(up, part));
        // No agent was touched: everything was done, and it is known.
        let counter = up.counter(&format!("after-{delay}"));
        for node in NAMES {
            assert_eq!(counter.of(node), (1, 1), "{delay} ms: {node}");
        }
        works(&up, "role=a", 2);
    }
    let runs = up.muster(&["runs", "--json"]).exits(0).list();
    assert!(
        runs.iter().all(|r| r["state"] != "running"),
        "a run hangs: {runs:?}"
    );
    assert!(
        runs.iter()
            .filter(|r| r["title"].as_str().is_some_and(|t| t.contains("begin")))
            .all(|r| r["state"] == "succeeded"),
        "{runs:#?}"
    );
    Audit::of(&up).holds();
}

#[test]
fn a_broker_that_is_killed_takes_its_runs_up_again() {
    all_succeed_when("broker");
}

#[test]
fn a_nats_server_that_is_killed_loses_nothing() {
    all_succeed_when("nats-server");
}

#[test]
fn an_agent_that_is_killed_answers_for_what_it_began() {
    let mut up = Up::start(&TWO).expect("starts");
    for delay in DELAYS_MS {
        killed_after(&mut up, delay, |up| kill_part(up, "agent-a-1"));
        works(&up, "role=a", 2);
    }

    // In the middle of a command that would never end by itself.
    let mark = format!("{}", 900_000 + u32::from(up.port));
    let run = up
        .muster(&["run", "role=a", "--detach", "--json", "--", "sleep", &mark])
        .exits(0)
        .run();
    let sleepers = || {
        processes()
            .iter()
            .filter(|(_, l)| l.trim() == format!("sleep {mark}"))
            .count()
    };
    wait_for("two sleepers", || (sleepers() == 2).then_some(())).expect("they run");
    kill_part(&up, "agent-a-1");
    wait_for("the end of the orphan", || (sleepers() == 1).then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    // The other is not touched by it; it ends when it is cancelled.
    wait_for("the outcome of a-1", || {
        let said = up.muster(&["runs", "show", &run]);
        said.out.contains("unknown").then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    up.muster(&["runs", "cancel", &run]).exits(0);
    let said = ended(&up, &run);
    let outcomes = one_outcome_each(&said, &NAMES);
    assert_eq!(
        [&outcomes["a-1"], &outcomes["a-2"]],
        ["unknown", "cancelled"]
    );
    let told = outcome_of(&said, "a-1");
    assert!(
        told["reason"]
            .as_str()
            .is_some_and(|r| r.contains("the agent ended while the command ran")),
        "{told}"
    );
    works(&up, "role=a", 2);
    Audit::of(&up).holds();
}

#[test]
fn muster_up_that_is_killed_disturbs_no_run() {
    let mut up = Up::start(&TWO).expect("starts");
    for delay in [0, 250, 430] {
        killed_after(&mut up, delay, |up| {
            up.stop(Signal::KILL).expect("dies");
            up.launch().expect("starts again");
        });
        let counter = up.counter(&format!("after-{delay}"));
        for node in NAMES {
            assert_eq!(counter.of(node), (1, 1), "{delay} ms: {node}");
        }
    }
    // Everything at once, in mid-command: the orphans are ended at the next
    // start, and the run ends by itself.
    killed_after(&mut up, 200, |up| {
        up.stop(Signal::KILL).expect("dies");
        for part in ["broker", "nats-server", "agent-a-1", "agent-a-2"] {
            kill_part(up, part);
        }
        up.launch().expect("starts again");
    });
    works(&up, "role=a", 2);
    Audit::of(&up).holds();
}
