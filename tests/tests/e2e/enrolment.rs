//! How a machine becomes a node, changes, and stops being one.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use muster_tests::{Said, Up, finish, signal, wait_for};
use rustix::process::Signal;

fn invite(up: &Up, args: &[&str]) -> Vec<String> {
    let mut all = vec!["node", "invite", "--json"];
    all.extend(args);
    let said = up.muster(&all).exits(0);
    let mut tokens = Vec::new();
    for line in said.json_lines() {
        let list = line["invites"]
            .as_array()
            .cloned()
            .unwrap_or_else(|| vec![line.clone()]);
        tokens.extend(
            list.iter()
                .filter_map(|i| i["token"].as_str())
                .map(str::to_owned),
        );
    }
    tokens
}

fn state(up: &Up, name: &str) -> PathBuf {
    up.dir.path().join("machines").join(name)
}

fn enroll(up: &Up, machine: &str, token: &str) -> Said {
    let mut command = up.bare("muster-agent");
    command
        .args(["enroll", "--url", &up.url(), "--state"])
        .arg(state(up, machine));
    command.env("MUSTER_ENROLL_TOKEN", token);
    finish(command)
}

struct Agent(Child);

impl Agent {
    fn run(up: &Up, machine: &str) -> Self {
        let mut command = up.bare("muster-agent");
        command.args(["run", "--state"]).arg(state(up, machine));
        let log = std::fs::File::create(up.dir.path().join(format!("{machine}.log"))).expect("log");
        command.stdout(Stdio::null()).stderr(log);
        Self(command.spawn().expect("starts"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_state(up: &Up, node: &str, wanted: &str) {
    wait_for(&format!("{node} to be {wanted}"), || {
        let said = up.muster(&["nodes", "--json"]);
        said.list()
            .iter()
            .any(|n| n["name"] == node && n["state"] == wanted)
            .then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
}

#[test]
fn a_machine_enrols_once_with_its_invite() {
    let up = Up::start(&[]).expect("starts");
    let token = invite(
        &up,
        &["--name", "web-01", "--role", "web", "--label", "zone=gva2"],
    )
    .remove(0);
    enroll(&up, "m1", &token).exits(0);
    enroll(&up, "m2", &token).exits(4).says(&["used"]);
    let _agent = Agent::run(&up, "m1");
    wait_state(&up, "web-01", "up");
    let said = up
        .muster(&["run", "role=web and zone=gva2", "--json", "--", "hostname"])
        .exits(0);
    assert_eq!(said.outcomes().keys().collect::<Vec<_>>(), ["web-01"]);

    let wrong = token.replace("mi1_", "mi1_0");
    assert_ne!(enroll(&up, "m3", &wrong).code, 0);
    // An invite into another cluster: its root key is not this one.
    let (body, _) = token.rsplit_once('_').expect("three parts");
    enroll(&up, "m4", &format!("{body}_00000000000000000000000000")).says(&["root"]);
    let expired = invite(&up, &["--name", "web-02", "--expires", "1s"]).remove(0);
    let ends = std::time::Instant::now() + std::time::Duration::from_millis(1200);
    std::thread::sleep(ends - std::time::Instant::now());
    enroll(&up, "m5", &expired).exits(4).says(&["expired"]);
    // The name is taken.
    up.muster(&["node", "invite", "--name", "web-01"])
        .exits(2)
        .says(&["web-01"]);
}

#[test]
fn two_machines_race_for_one_invite_and_one_wins() {
    let up = Up::start(&[]).expect("starts");
    for round in 0..5 {
        let token = invite(&up, &["--name", &format!("n-{round}")]).remove(0);
        let codes: Vec<i32> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|i| {
                    let (up, token) = (&up, &token);
                    scope.spawn(move || enroll(up, &format!("r{round}-{i}"), token).code)
                })
                .collect();
            racers
                .into_iter()
                .map(|r| r.join().expect("ends"))
                .collect()
        });
        assert_eq!(codes.iter().filter(|c| **c == 0).count(), 1, "{codes:?}");
    }
}

#[test]
fn many_invites_at_once_follow_a_pattern() {
    let up = Up::start(&[]).expect("starts");
    let tokens = invite(
        &up,
        &[
            "--count",
            "40",
            "--name",
            "gva2-r03-h{01..40}",
            "--role",
            "hypervisor",
        ],
    );
    assert_eq!(tokens.len(), 40);
    up.muster(&["node", "invite", "--count", "39", "--name", "x-{01..40}"])
        .exits(2)
        .says(&["40"]);
    up.muster(&["node", "invite", "--name", "x-{1..99999999}"])
        .exits(2);
}

#[test]
fn a_removed_node_is_refused_for_ever() {
    let up = Up::start(&["web-01:role=web", "web-02:role=web"]).expect("starts");
    up.muster(&["node", "remove", "web-02", "--yes"]).exits(0);
    let said = up
        .muster(&["run", "role=web", "--json", "--", "true"])
        .exits(0);
    assert_eq!(said.outcomes().keys().collect::<Vec<_>>(), ["web-01"]);
    // Its agent starts again with the same key.
    signal(up.pid("agent-web-02").expect("runs"), Signal::KILL).expect("kills");
    let log = up.state().join("log");
    wait_for("the agent to be told", || {
        let logs = std::fs::read_dir(&log).ok()?.flatten();
        logs.filter_map(|f| std::fs::read_to_string(f.path()).ok())
            .any(|t| t.contains("removed"))
            .then_some(())
    })
    .expect("is told");
    assert!(
        !up.muster(&["nodes", "--json"])
            .exits(0)
            .out
            .contains("web-02")
    );
    // The name is free for another machine.
    let token = invite(&up, &["--name", "web-02"]).remove(0);
    enroll(&up, "new", &token).exits(0);
}

#[test]
fn replace_gives_name_and_roles_to_a_new_key() {
    let up = Up::start(&["web-01:role=web,zone=gva2"]).expect("starts");
    let said = up
        .muster(&["node", "replace", "web-01", "--yes", "--json"])
        .exits(0);
    let token = said.json_lines()[0]["token"]
        .as_str()
        .expect("token")
        .to_owned();
    enroll(&up, "new", &token).exits(0);
    let _agent = Agent::run(&up, "new");
    wait_for("the new machine", || {
        let said = up.muster(&[
            "run",
            "role=web and zone=gva2",
            "--json",
            "--",
            "sh",
            "-c",
            "echo $PPID",
        ]);
        (said.code == 0 && said.outcomes().len() == 1).then_some(())
    })
    .expect("takes orders");
    let serials: Vec<u64> = up
        .muster(&["nodes", "--json"])
        .list()
        .iter()
        .filter_map(|n| n["serial"].as_u64())
        .collect();
    assert_eq!(serials.len(), 1);
    assert!(serials[0] > 0);
}

#[test]
fn a_cloned_machine_is_refused_twice_and_told_of() {
    let up = Up::start(&["web-02:role=web"]).expect("starts");
    let token = invite(&up, &["--name", "web-01", "--role", "web"]).remove(0);
    enroll(&up, "m1", &token).exits(0);
    let copy = std::process::Command::new("cp")
        .arg("-a")
        .arg(state(&up, "m1"))
        .arg(state(&up, "clone"))
        .status();
    assert!(copy.expect("copies").success());
    let _one = Agent::run(&up, "m1");
    wait_state(&up, "web-01", "up");
    let _two = Agent::run(&up, "clone");
    wait_for("the alarm", || {
        up.muster(&["events", "--json", "--limit", "500"])
            .out
            .contains("alarm.cloned-node")
            .then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    let witness = up.dir.path().join("witness");
    let script = format!("echo x >> {}", witness.display());
    let said = up
        .muster(&["run", "role=web", "--json", "--shell", "--", &script])
        .exits(1);
    assert_ne!(said.outcomes()["web-01"], "succeeded");
    assert_eq!(muster_tests::lines(&witness).len(), 1, "only web-02 ran it");
}

#[test]
fn broker_keys_rotate_under_load_and_revoked_ones_are_gone() {
    let up = Up::start(&["web-01:role=web", "web-02:role=web"]).expect("starts");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut runs = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let said = up
                    .muster(&["run", "role=web", "--json", "--", "true"])
                    .exits(0);
                assert_eq!(said.outcomes().len(), 2);
                runs += 1;
            }
            runs
        });
        for _ in 0..4 {
            up.muster(&["keys", "rotate"]).exits(0);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(load.join().expect("no run failed") > 0);
    });
    let list: serde_json::Value =
        serde_json::from_str(up.muster(&["keys", "list", "--json"]).exits(0).out.trim())
            .expect("json");
    assert_eq!(list["epoch"], 5);
    let keys = list["keys"].as_array().expect("keys");
    assert_eq!(keys.len(), 5);
    assert!(up.muster(&["doctor"]).out.len() > 10);
}
