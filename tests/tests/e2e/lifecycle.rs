//! `muster up`: one of everything, never two, nothing left running.

use std::collections::BTreeMap;

use muster_tests::{Up, finish, lines, signal, wait_for};
use rustix::process::Signal;

const TWO: [&str; 2] = ["a-1:role=a", "a-2:role=a"];
const PARTS: [&str; 4] = ["nats-server", "broker", "agent-a-1", "agent-a-2"];

fn pids(up: &Up) -> BTreeMap<&'static str, u32> {
    PARTS
        .iter()
        .map(|p| {
            (
                *p,
                up.pid(p).unwrap_or_else(|e| panic!("{e}: {}", up.logs())),
            )
        })
        .collect()
}

fn works(up: &Up) {
    let mut last = None;
    wait_for("a run to succeed", || {
        let said = up.muster(&["run", "role=a", "--json", "--", "true"]);
        let well = said.code == 0 && said.outcomes().len() == 2;
        last = Some(said);
        well.then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {last:?} {}", up.logs()));
}

#[test]
fn it_ends_with_nothing_left_running() {
    for with in [Signal::INT, Signal::TERM] {
        let mut up = Up::start(&TWO).expect("starts");
        assert!(up.processes().len() >= 5, "{:?}", up.processes());
        up.stop(with).expect("ends");
        wait_for("the end of all", || up.processes().is_empty().then_some(()))
            .expect("nothing is left");
    }
}

#[test]
fn what_dies_is_started_again() {
    let up = Up::start(&TWO).expect("starts");
    for part in PARTS {
        let before = up.pid(part).expect("runs");
        signal(before, Signal::KILL).expect("kills");
        wait_for(&format!("a new {part}"), || {
            up.pid(part).ok().filter(|now| *now != before)
        })
        .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
        works(&up);
    }
}

#[test]
fn killed_hard_it_is_taken_up_again_with_its_children() {
    let mut up = Up::start(&TWO).expect("starts");
    let mark = up.dir.path().join("mark");
    let script = format!("sleep 5; echo done >> {}", mark.display());
    let run = up
        .muster(&[
            "run", "role=a", "--detach", "--json", "--shell", "--", &script,
        ])
        .exits(0)
        .run();
    let before = pids(&up);
    up.stop(Signal::KILL).expect("dies");
    up.launch().expect("starts again");
    assert_eq!(pids(&up), before, "the living are adopted");
    let said = up.muster(&["runs", "watch", &run, "--json"]).exits(0);
    assert_eq!(said.outcomes().len(), 2);
    assert_eq!(lines(&mark).len(), 2);
    works(&up);

    // Some of them dead: those are started, the others adopted.
    up.stop(Signal::KILL).expect("dies");
    for part in ["broker", "agent-a-2"] {
        signal(before[part], Signal::KILL).expect("kills");
    }
    up.launch().expect("starts again");
    let after = pids(&up);
    for part in PARTS {
        assert_eq!(
            after[part] == before[part],
            !["broker", "agent-a-2"].contains(&part),
            "{part}"
        );
    }
    works(&up);
}

#[test]
fn the_state_outlives_everything() {
    let mut up = Up::start(&TWO).expect("starts");
    up.muster(&["node", "label", "a-1", "zone=gva2"]).exits(0);
    let run = up
        .muster(&["run", "a-1", "--json", "--", "echo", "kept"])
        .exits(0)
        .run();
    let token = up.token().expect("token");
    up.stop(Signal::TERM).expect("ends");
    up.launch().expect("starts again");
    assert_eq!(up.token().expect("token"), token);
    let show = up.muster(&["runs", "show", &run]).exits(0);
    assert!(show.out.contains("kept"), "{show:?}");
    works(&up);
}

#[test]
fn a_second_one_is_refused_and_disturbs_nothing() {
    let up = Up::start(&TWO).expect("starts");
    let before = pids(&up);
    finish(up.up_command())
        .exits(2)
        .says(&["another `muster up`", &up.up_pid().to_string()]);
    assert_eq!(pids(&up), before);
    works(&up);

    // The port is taken by somebody else.
    let other = up.dir.path().join("other");
    let mut command = up.bare("muster");
    command
        .args([
            "up",
            "--listen",
            &format!("127.0.0.1:{}", up.port),
            "--state",
        ])
        .arg(&other);
    finish(command)
        .exits(1)
        .says(&[&up.port.to_string(), "in use"]);
    wait_for("nothing of the other", || {
        let needle = other.to_string_lossy().into_owned();
        (!up.processes().iter().any(|(_, l)| l.contains(&needle))).then_some(())
    })
    .expect("nothing is left");
}

#[test]
fn a_state_directory_of_the_future_is_not_touched() {
    let mut up = Up::start(&[]).expect("starts");
    up.stop(Signal::TERM).expect("ends");
    let version = up.state().join("version");
    let text = std::fs::read_to_string(&version).expect("there");
    std::fs::write(&version, "99\n").expect("writes");
    finish(up.up_command()).exits(2).says(&["99", "newer"]);
    assert_eq!(std::fs::read_to_string(&version).expect("there"), "99\n");
    std::fs::write(&version, text).expect("writes");
    up.launch().expect("starts");
}

#[test]
fn a_running_command_outlives_broker_and_server() {
    let up = Up::start(&TWO).expect("starts");
    let mark = up.dir.path().join("mark");
    let script = format!("sleep 3; echo done >> {}", mark.display());
    let run = up
        .muster(&[
            "run", "role=a", "--detach", "--json", "--shell", "--", &script,
        ])
        .exits(0)
        .run();
    signal(up.pid("broker").expect("runs"), Signal::KILL).expect("kills");
    signal(up.pid("nats-server").expect("runs"), Signal::KILL).expect("kills");
    let said = wait_for("the run's end", || {
        let said = up.muster(&["runs", "watch", &run, "--json"]);
        (said.code != 5).then_some(said)
    })
    .expect("ends");
    assert_eq!(said.code, 0, "{said:?} {}", up.logs());
    assert_eq!(lines(&mark).len(), 2, "each node did it once");
}
