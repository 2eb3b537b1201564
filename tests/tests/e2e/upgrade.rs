//! Agents that replace their own executable, while the cluster works.

mod kill;

use std::path::{Path, PathBuf};

use muster_tests::release::{release, version};
use muster_tests::{Said, Up, wait_for};
use serde_json::Value;

/// The version that is built, and those above and below it.
const OWN: &str = env!("CARGO_PKG_VERSION");
const NEWER: &str = "0.99.1";
const OLDER: &str = "0.0.1";

fn upgrade(up: &Up, binary: &Path, more: &[&str]) -> Said {
    let binary = binary.to_str().expect("a plain path");
    let mut args = vec!["agent", "upgrade", "role=a", "--binary", binary, "--yes"];
    args.extend(more);
    up.muster(&args)
}

/// Which version each node runs, as the broker knows it.
fn versions(up: &Up) -> Vec<(String, String)> {
    up.muster(&["nodes", "--json"])
        .list()
        .iter()
        .map(|node| {
            let word = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
            (word("name"), word("version"))
        })
        .collect()
}

fn all_run(up: &Up, wanted: &str) {
    wait_for(&format!("every node to run {wanted}"), || {
        versions(up).iter().all(|(_, v)| v == wanted).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {:?} {}", versions(up), up.logs()));
}

fn reason(said: &Said, node: &str) -> String {
    said.json_lines()
        .into_iter()
        .find(|l| l["type"] == "outcome" && l["node"] == node)
        .and_then(|l| l["reason"].as_str().map(str::to_owned))
        .unwrap_or_else(|| panic!("no reason for {node}: {said:#?}"))
}

fn runs(up: &Up) -> Vec<Value> {
    up.muster(&["runs", "--json"]).list()
}

/// Every node answers a command, and nothing of an upgrade is left behind.
fn works(up: &Up, nodes: usize) {
    let said = up
        .muster(&["run", "role=a", "--json", "--", "true"])
        .exits(0);
    assert_eq!(said.outcomes().len(), nodes, "{said:#?}");
    wait_for("nothing to be under way", || {
        let left: Vec<PathBuf> = ["a-1", "a-2", "a-3", "a-4", "a-5"]
            .iter()
            .map(|name| up.agent_state(name).join("upgrade.json"))
            .filter(|path| path.exists())
            .collect();
        left.is_empty().then_some(())
    })
    .expect("finished");
    wait_for("no guard to be left", || {
        up.processes()
            .iter()
            .all(|(_, line)| !line.contains("upgrade-guard"))
            .then_some(())
    })
    .expect("gone");
}

#[test]
fn five_agents_are_upgraded_two_at_a_time() {
    let names = ["a-1", "a-2", "a-3", "a-4", "a-5"];
    let nodes: Vec<String> = names.iter().map(|n| format!("{n}:role=a")).collect();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut up = Up::start(&nodes).expect("starts");
    all_run(&up, OWN);
    let pids = |up: &Up| names.map(|n| up.pid(&format!("agent-{n}")).expect("runs"));
    let before = pids(&up);
    let newer = version(up.dir.path(), "muster-agent", NEWER).expect("made");
    let said = upgrade(&up, &newer, &["--batch", "2", "--json"])
        .exits(0)
        .says(&[
            &format!("release {NEWER}"),
            &format!("now: 5 nodes {OWN}"),
            "uploading",
        ]);
    let outcomes = said.outcomes();
    assert_eq!(outcomes.len(), 5, "{said:#?}");
    assert!(outcomes.values().all(|o| o == "succeeded"), "{said:#?}");
    let told = said.output("stdout");
    assert_eq!(told["a-3"], format!("{OWN} → {NEWER}\n"));
    let run = up
        .muster(&["runs", "show", &said.run(), "--json"])
        .json_lines();
    assert_eq!(run[0]["batches"], 3, "{run:?}");
    all_run(&up, NEWER);
    // The same processes, which nobody had to start again.
    assert_eq!(pids(&up), before);
    works(&up, 5);
    let table = up.muster(&["agent", "versions"]).exits(0).out;
    assert!(
        table.contains(NEWER) && table.contains("a-1 … a-5"),
        "{table}"
    );

    // Again: nothing is uploaded, nothing changes.
    let said = upgrade(&up, &newer, &["--json"]).exits(0);
    assert!(!said.err.contains("uploading"), "{said:#?}");
    assert_eq!(said.output("stdout")["a-1"], format!("{NEWER} already\n"));

    // What is known of agents outlives the broker, and the agents outlive
    // `muster up`, with what they were upgraded to.
    up.stop(rustix::process::Signal::TERM).expect("ends");
    up.launch().expect("starts again");
    all_run(&up, NEWER);
    works(&up, 5);

    // The way back has to be meant.
    let older = version(up.dir.path(), "muster-agent", OLDER).expect("made");
    let count = runs(&up).len();
    upgrade(&up, &older, &[]).exits(2).says(&[
        "5 of 5 nodes cannot do this; nothing was run",
        &format!("it runs {NEWER}, which is newer than {OLDER}"),
        "--allow-downgrade",
    ]);
    assert_eq!(runs(&up).len(), count, "nothing was run");
    upgrade(
        &up,
        &older,
        &["--allow-downgrade", "--batch", "100%", "--json"],
    )
    .exits(0);
    all_run(&up, OLDER);
    works(&up, 5);
}

#[test]
fn a_release_that_ends_at_its_start_is_rolled_back_and_stops_the_run() {
    let up = Up::start(&["a-1:role=a", "a-2:role=a", "a-3:role=a"]).expect("starts");
    let broken = version(up.dir.path(), "muster-broken-agent", "9.0.1").expect("made");
    let said = upgrade(
        &up,
        &broken,
        &["--batch", "1", "--timeout", "20s", "--json"],
    )
    .exits(1);
    let outcomes = said.outcomes();
    assert_eq!(outcomes["a-1"], "failed", "{said:#?}");
    assert_eq!(
        [&outcomes["a-2"], &outcomes["a-3"]],
        ["skipped", "skipped"],
        "{said:#?}"
    );
    let why = reason(&said, "a-1");
    assert!(
        why.contains("rolled back") && why.contains("ended"),
        "{why}"
    );
    assert!(why.ends_with(&format!("{OWN} runs")), "{why}");
    all_run(&up, OWN);
    works(&up, 3);

    // One that says itself that it would not work never gets so far.
    let broken = version(up.dir.path(), "muster-broken-agent", "9.0.0").expect("made");
    let said = upgrade(&up, &broken, &["--batch", "1", "--json"]).exits(1);
    let why = reason(&said, "a-1");
    assert!(
        why.contains("9.0.0 does not work here: error: the weather is bad"),
        "{why}"
    );
    works(&up, 3);

    // And a good one still goes through.
    let newer = version(up.dir.path(), "muster-agent", NEWER).expect("made");
    upgrade(&up, &newer, &[]).exits(0);
    all_run(&up, NEWER);
}

#[test]
fn a_release_that_hangs_is_rolled_back() {
    let up = Up::start(&["a-1:role=a"]).expect("starts");
    let broken = version(up.dir.path(), "muster-broken-agent", "9.0.2").expect("made");
    let said = upgrade(&up, &broken, &["--timeout", "16s", "--json"]).exits(1);
    assert_eq!(said.outcomes()["a-1"], "failed", "{said:#?}");
    let why = reason(&said, "a-1");
    assert!(
        why.contains("9.0.2 neither was welcomed nor ended"),
        "{why}"
    );
    all_run(&up, OWN);
    works(&up, 1);
}

#[test]
fn what_agents_cannot_do_is_refused_before_anything_is_sent() {
    let mut up = Up::not_yet(&["a-1:role=a", "a-2:role=a"]).expect("room");
    let agents = up.state().join("agents");
    std::fs::create_dir_all(&agents).expect("made");
    let policy = "[capabilities]\nupgrade = false\nshell = false\n";
    std::fs::write(agents.join("a-2.toml"), policy).expect("written");
    up.launch().expect("starts");
    all_run(&up, OWN);
    let newer = version(up.dir.path(), "muster-agent", NEWER).expect("made");
    upgrade(&up, &newer, &[]).exits(2).says(&[
        "1 of 2 nodes cannot do this; nothing was run",
        &format!("a-2: the agent ({OWN}) does not grant `upgrade`"),
        "upgrade = true",
    ]);
    up.muster(&["run", "role=a", "--shell", "--", "uptime"])
        .exits(2)
        .says(&["a-2: the agent", "does not grant `shell`"]);
    let foreign = release(up.dir.path(), "muster-agent", |about| {
        about.version = NEWER.parse().expect("a version");
        about.build.arch = "aarch64".into();
    })
    .expect("made");
    up.muster(&[
        "agent",
        "upgrade",
        "name=a-1",
        "--yes",
        "--binary",
        foreign.to_str().expect("plain"),
    ])
    .exits(2)
    .says(&["the machine is", "the release is for aarch64-linux"]);
    let future = release(up.dir.path(), "muster-agent", |about| about.protocol = 9).expect("made");
    upgrade(&up, &future, &[])
        .exits(2)
        .says(&["speaks protocol 9", "upgrade the broker first"]);
    let none = up.dir.path().join("none");
    std::fs::write(&none, "hello").expect("written");
    upgrade(&up, &none, &[])
        .exits(2)
        .says(&["it is not a muster-agent", "--binary"]);
    assert!(runs(&up).is_empty(), "nothing was run: {:?}", runs(&up));

    // Only an administrator says which agent runs.
    let made = up
        .muster(&[
            "token", "create", "--for", "ana", "--role", "operator", "--json",
        ])
        .exits(0);
    let token = made.json_lines()[0]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let newer = newer.to_str().expect("plain");
    up.muster_as(
        &token,
        &["agent", "upgrade", "name=a-1", "--yes", "--binary", newer],
    )
    .exits(4)
    .says(&["ana (operator) may not"]);
    up.muster(&["agent", "upgrade", "name=a-1", "--yes", "--binary", newer])
        .exits(0);
    // Also when the release is there already.
    up.muster_as(
        &token,
        &["agent", "upgrade", "name=a-1", "--yes", "--binary", newer],
    )
    .exits(4)
    .says(&["ana (operator) may not"]);
}

#[test]
fn what_runs_is_waited_for_and_a_broker_that_restarts_does_no_harm() {
    let up = Up::start(&["a-1:role=a"]).expect("starts");
    let counter = up.counter("slow");
    let go = up.dir.path().join("go");
    let slow = up
        .muster(&[
            "run",
            "role=a",
            "--detach",
            "--json",
            "--shell",
            "--",
            &counter.around(&format!(
                "while ! test -e {}; do sleep 0.1; done",
                go.display()
            )),
        ])
        .exits(0)
        .run();
    wait_for("the command to begin", || {
        (counter.of("a-1").0 == 1).then_some(())
    })
    .expect("begun");
    let newer = version(up.dir.path(), "muster-agent", NEWER).expect("made");
    let run = upgrade(&up, &newer, &["--detach", "--json"]).exits(0).run();
    // While it waits, nothing new is begun, and that is said.
    let said = wait_for("a command to be declined", || {
        let said = up.muster(&["run", "role=a", "--json", "--", "true"]);
        let declined = said.outcomes()["a-1"] == "declined";
        declined.then_some(said)
    })
    .unwrap_or_else(|e| panic!("{e} {}", up.logs()));
    assert!(
        reason(&said, "a-1").contains("to upgrade itself"),
        "{said:#?}"
    );
    // The broker is killed in the middle of it.
    let broker = up.pid("broker").expect("runs");
    muster_tests::signal(broker, rustix::process::Signal::KILL).expect("killed");
    std::fs::write(&go, "").expect("written");
    let ended = |run: &str| {
        wait_for("the end of a run", || {
            let said = up.muster(&["runs", "watch", run, "--json"]);
            let over = said.code != 5 && said.out.contains("\"run_finished\"");
            over.then_some(said)
        })
        .unwrap_or_else(|e| panic!("{e} {}", up.logs()))
    };
    let said = ended(&slow);
    assert_eq!(
        said.outcomes()["a-1"],
        "succeeded",
        "{said:#?} {}",
        up.logs()
    );
    assert_eq!(counter.of("a-1"), (1, 1));
    let said = ended(&run);
    assert_eq!(
        said.outcomes()["a-1"],
        "succeeded",
        "{said:#?} {}",
        up.logs()
    );
    all_run(&up, NEWER);
    works(&up, 1);

    // One that waits too long gives up, and nothing has changed.
    let third = version(up.dir.path(), "muster-agent", "0.99.2").expect("made");
    let slow = up
        .muster(&["run", "role=a", "--detach", "--json", "--", "sleep", "600"])
        .exits(0)
        .run();
    let said = upgrade(&up, &third, &["--timeout", "8s", "--json"]).exits(1);
    let why = reason(&said, "a-1");
    assert!(why.contains("1 other steps still ran"), "{why}");
    // And a cancel is heard while it waits.
    let run = upgrade(&up, &third, &["--detach", "--json"]).exits(0).run();
    up.muster(&["runs", "cancel", &run]).exits(0);
    let said = ended(&run);
    assert_eq!(said.outcomes()["a-1"], "cancelled", "{said:#?}");
    up.muster(&["runs", "cancel", &slow]).exits(0);
    ended(&slow);
    all_run(&up, NEWER);
    works(&up, 1);
    muster_tests::invariants::Audit::of(&up).holds();
}
