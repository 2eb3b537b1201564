//! The broker, or a node, goes back in time, and the other has not.

use std::path::Path;
use std::process::Command;

use muster_tests::hold::Came;
use muster_tests::invariants::Audit;
use muster_tests::{Said, Up, finish, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use super::{Process, agent, ended, enrol, machine, outcome_of, wait_state, works};

const NODES: [&str; 2] = ["a-1", "a-2"];

/// Machines of their own: nothing of theirs is in the broker's directory.
fn machines(up: &Up) -> Vec<Process> {
    NODES
        .iter()
        .map(|name| {
            enrol(up, name, "a");
            started(up, name)
        })
        .collect()
}

fn started(up: &Up, name: &str) -> Process {
    let process = Process::start(agent(up, name), up.dir.path().join(format!("{name}.log")));
    wait_state(up, name, "up");
    process
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.is_ok_and(|s| s.success()), "{}", from.display());
}

/// Stops everything of the broker and starts it again.
fn again(up: &mut Up, between: impl FnOnce(&Up)) {
    up.stop(Signal::TERM).expect("ends");
    between(up);
    up.launch().expect("starts again");
    for node in NODES {
        wait_state(up, node, "up");
    }
}

/// Puts the whole of the broker back: its state directory, in which the store
/// of the NATS server is, too.
fn put_back(up: &mut Up, old: &Path) {
    again(up, |up| {
        std::fs::rename(up.state(), up.dir.path().join("lost")).expect("moves");
        copy(old, &up.state());
    });
}

/// What people see of a run, without what only the lost journal knew.
fn seen(up: &Up, run: &str) -> Option<Value> {
    let said = up.muster(&["runs", "show", run, "--json"]);
    if said.code == 5 || said.out.is_empty() {
        return None;
    }
    let mut view: Value = serde_json::from_str(said.out.trim()).ok()?;
    let object = view.as_object_mut()?;
    for lost in ["short", "finished", "options", "batches", "rebuilt"] {
        object.remove(lost);
    }
    Some(view)
}

/// Waits until a run is as it was.
fn comes_back(up: &Up, before: &Value) {
    let run = before["id"].as_str().expect("an id");
    let mut last = None;
    wait_for(&format!("run {run} as it was"), || {
        last = seen(up, run);
        (last.as_ref() == Some(before)).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {before:#}\nnow: {last:#?}\n{}", up.logs()));
}

/// The text that each node wrote in a run.
fn output(said: &Said) -> Vec<(String, String)> {
    said.output("stdout").into_iter().collect()
}

fn watched(up: &Up, run: &str) -> Said {
    ended(up, run)
}

#[test]
fn a_broker_put_back_with_its_store_gets_its_runs_back_from_the_nodes() {
    let mut up = Up::start(&[]).expect("starts");
    let _machines = machines(&up);
    let token = up
        .muster(&[
            "token", "create", "--for", "ana", "--role", "operator", "--json",
        ])
        .exits(0)
        .json_lines()[0]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    works(&up, "role=a", 2);
    let old = up.dir.path().join("old");
    again(&mut up, |up| copy(&up.state(), &old));

    // What happens now will be lost. Nothing in it is special but that it
    // was told to people.
    let counter = up.counter("lost");
    let run = |args: &[&str], what: &str, code| {
        let script = counter.around(what);
        let mut all = vec!["run", "role=a", "--json", "--shell"];
        all.extend(args);
        all.extend(["--", &script]);
        let said = up.muster_as(&token, &all).exits(code);
        let view = seen(&up, &said.run()).expect("shown");
        (said, view)
    };
    let mut lost = vec![
        run(&[], "echo said by $MUSTER_NODE", 0),
        // More than fits into an outcome, and a failure.
        run(&[], "seq 20000; test $MUSTER_NODE = a-1 || exit 3", 1),
        // Each node hears only of its own batch.
        run(&["--batch", "1", "--yes"], "true", 0),
    ];
    let outputs: Vec<_> = lost
        .iter()
        .map(|(said, _)| output(&watched(&up, &said.run())))
        .collect();
    // One that is under way meanwhile.
    let go = up.dir.path().join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.1; done", go.display());
    let open = up
        .muster(&[
            "run",
            "role=a",
            "--detach",
            "--json",
            "--shell",
            "--",
            &counter.around(&wait),
        ])
        .exits(0)
        .run();
    wait_for("both to begin", || (counter.begun() == 8).then_some(())).expect("they begin");

    put_back(&mut up, &old);
    for (_, before) in &lost {
        comes_back(&up, before);
    }
    for ((said, _), before) in lost.iter().zip(&outputs) {
        assert_eq!(&output(&watched(&up, &said.run())), before, "{said:?}");
    }
    // Nodes obey, and what was under way ends when it ends.
    works(&up, "role=a", 2);
    std::fs::write(&go, "").expect("writes");
    wait_for("the run that was under way", || seen(&up, &open))
        .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    let said = ended(&up, &open);
    assert!(
        said.outcomes().values().all(|o| o == "succeeded"),
        "{said:#?} {}",
        up.logs()
    );
    assert_eq!(counter.begun(), 8, "nothing is done twice");
    let show = up
        .muster(&["runs", "show", &lost.remove(0).0.run()])
        .exits(0);
    assert!(show.out.contains("written down again"), "{show:?}");
    let events = up.muster(&["events", "--json", "--limit", "500"]).exits(0);
    for kind in ["alarm.store-went-back", "run.rebuilt"] {
        assert!(events.out.contains(kind), "{kind}: {}", events.out);
    }
    // And it stays so.
    again(&mut up, |_| {});
    assert_eq!(counter.begun(), 8);
    Audit::of(&up).holds();
}

#[test]
fn nodes_that_have_seen_later_epochs_keys_and_roles_obey_a_broker_put_back() {
    let mut up = Up::start(&[]).expect("starts");
    let _machines = machines(&up);
    let old = up.dir.path().join("old");
    again(&mut up, |up| copy(&up.state(), &old));

    // The cluster moves on: later epochs, another key, other labels.
    let first = active_key(&up);
    up.muster(&["keys", "rotate"]).exits(0);
    up.muster(&["keys", "revoke", &first]).exits(0);
    up.muster(&["node", "label", "a-1", "zone=new"]).exits(0);
    again(&mut up, |_| {});
    again(&mut up, |_| {});
    let counter = up.counter("lost");
    let run = up
        .muster(&[
            "run",
            "role=a",
            "--json",
            "--shell",
            "--",
            &counter.around("true"),
        ])
        .exits(0)
        .run();
    let before = seen(&up, &run).expect("shown");

    put_back(&mut up, &old);
    works(&up, "role=a", 2);
    comes_back(&up, &before);
    assert_eq!(counter.begun(), 2);
    // A key that was revoked stays so, although this broker never knew.
    let keys = up.muster(&["keys", "list"]).exits(0).out;
    let line = keys.lines().find(|l| l.contains(&first)).expect("listed");
    assert!(line.contains("revoked"), "{keys}");
    let node = super::node(&up, "a-1").expect("there");
    assert!(node["labels"]["zone"].is_null(), "as it was: {node}");
    works(&up, "a-1", 1);
    let events = up.muster(&["events", "--json", "--limit", "500"]).exits(0);
    for kind in ["alarm.store-went-back", "alarm.keys-behind", "run.rebuilt"] {
        assert!(events.out.contains(kind), "{kind}: {}", events.out);
    }
    Audit::of(&up).holds();
}

/// Copies the whole of the broker while it stands still.
fn copy_still(up: &Up, to: &Path) {
    let pids = ["broker", "nats-server"].map(|name| up.pid(name).expect("it runs"));
    // `muster up` would start again what does not answer.
    let keeper = up.up_pid();
    for pid in [keeper].iter().chain(&pids) {
        signal(*pid, Signal::STOP).expect("stops");
    }
    copy(&up.state(), to);
    for pid in pids.iter().rev().chain(&[keeper]) {
        signal(*pid, Signal::CONT).expect("goes on");
    }
}

#[test]
fn a_broker_put_back_to_the_beginning_of_a_run_does_not_say_that_nothing_was_sent() {
    let mut up = Up::not_yet(&[]).expect("made");
    let hold = up.hold().expect("it listens");
    up.launch().expect("starts");
    let _machines = machines(&up);
    works(&up, "role=a", 2);
    let counter = up.counter("cut");
    let script = counter.around("echo seen");
    hold.hold("broker.journal.before");
    let run = ["run", "role=a", "--yes", "--json", "--shell", "--", &script];
    let running = up.command(&run);
    let running = std::thread::spawn(move || finish(running));
    let created = |came: &Came| came.detail.ends_with(" created");
    let came = hold.came("broker.journal.before").expect("it begins");
    assert!(created(&came), "{came:?}");
    let id = came.detail.split(' ').next().expect("a run").to_owned();
    // Its beginning is stored, and nothing else.
    hold.hold(&format!("broker.journal.before {id} targets"));
    hold.release("broker.journal.before");
    hold.came(&format!("broker.journal.before {id} targets"))
        .expect("it goes on");
    let old = up.dir.path().join("old");
    copy_still(&up, &old);
    hold.release(&format!("broker.journal.before {id} targets"));
    let said = up.heard(running.join().expect("ends")).exits(0);
    assert_eq!(counter.begun(), 2);
    let before = seen(&up, &said.run()).expect("shown");

    put_back(&mut up, &old);
    comes_back(&up, &before);
    works(&up, "role=a", 2);
    assert_eq!(counter.begun(), 2, "nothing is done twice");
    let events = up.muster(&["events", "--json", "--limit", "500"]).exits(0);
    assert!(events.out.contains("run.rebuilt"), "{}", events.out);
    Audit::of(&up).holds();
}

fn active_key(up: &Up) -> String {
    let keys = up.muster(&["keys", "list"]).exits(0).out;
    keys.lines()
        .find(|line| line.contains("active"))
        .and_then(|line| line.split_whitespace().next())
        .expect("a key")
        .to_owned()
}

#[test]
fn a_node_that_went_back_is_not_sent_to_again() {
    let up = Up::start(&["b-1:role=b"]).expect("starts");
    enrol(&up, "a-1", "a");
    let process = started(&up, "a-1");
    works(&up, "a-1", 1);
    drop(process);
    wait_state(&up, "a-1", "down");
    let (state, old) = (machine(&up, "a-1"), up.dir.path().join("old"));
    copy(&state, &old);

    let process = started(&up, "a-1");
    let counter = up.counter("once");
    // Long enough that the broker would send it again.
    let run = up
        .muster(&[
            "run",
            "role=a",
            "--detach",
            "--json",
            "--deliver-within",
            "10m",
            "--shell",
            "--",
            &counter.around("sleep 600"),
        ])
        .exits(0)
        .run();
    wait_for("it to begin", || (counter.begun() == 1).then_some(())).expect("it begins");
    drop(process);
    // What it had stays, elsewhere, for the checker.
    std::fs::rename(&state, machine(&up, "a-1.lost")).expect("moves");
    copy(&old, &state);
    let _process = started(&up, "a-1");

    let said = ended(&up, &run);
    let told = outcome_of(&said, "a-1");
    assert_eq!(told["outcome"], "unknown", "{told} {}", up.logs());
    let reason = told["reason"].as_str().expect("a reason");
    assert!(reason.contains("gone back in time"), "{reason}");
    works(&up, "a-1", 1);
    assert_eq!(counter.begun(), 1, "never a second time");
    let events = up.muster(&["events", "--json", "--limit", "500"]).exits(0);
    assert!(
        events.out.contains("alarm.node-went-back"),
        "{}",
        events.out
    );
    Audit::of(&up).holds();
}
