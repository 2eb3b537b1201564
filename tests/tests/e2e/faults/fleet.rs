//! Many simulated nodes: all at once they lose the same server, and faults
//! drawn from a seed.

use std::path::PathBuf;
use std::time::Duration;

use muster_tests::invariants::Audit;
use muster_tests::{Said, Up, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use super::draw::{Draw, seeds};
use super::{Process, ended, ready};

/// A fleet in a process of its own.
struct Fleet {
    process: Process,
    stats: PathBuf,
    nodes: u64,
}

impl Fleet {
    fn start(up: &Up, nodes: u64, more: &[&str]) -> Self {
        let stats = up.dir.path().join("fleet.json");
        let mut command = up.bare("muster-fleet-sim");
        command
            .args([
                "--nodes",
                &nodes.to_string(),
                "--url",
                &up.url(),
                "--role",
                "sim",
            ])
            .arg("--token-file")
            .arg(up.state().join("admin.token"))
            .arg("--stats")
            .arg(&stats)
            .args(more);
        let process = Process::start(command, up.dir.path().join("fleet.log"));
        process.says_soon("ready: ");
        Self {
            process,
            stats,
            nodes,
        }
    }

    /// What it has done so far.
    fn asked(&self) -> Value {
        let _ = std::fs::remove_file(&self.stats);
        signal(self.process.id(), Signal::USR1).expect("it runs");
        wait_for("statistics", || {
            serde_json::from_str(&std::fs::read_to_string(&self.stats).ok()?).ok()
        })
        .unwrap_or_else(|e| panic!("{e}: {}", self.process.says()))
    }

    /// Waits until its statistics are so.
    fn until(&self, up: &Up, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        wait_for(what, || {
            last = self.asked();
            if let Some(all) = last.as_object_mut() {
                all.remove("more");
            }
            so(&last).then(|| last.clone())
        })
        .unwrap_or_else(|e| {
            let mut last = last.clone();
            last["requests"].take();
            panic!("{e}: {last:#} {}", up.logs())
        })
    }

    fn all_there(&self, stats: &Value) -> bool {
        stats["welcomed"] == self.nodes
    }
}

fn number(stats: &Value, path: &str) -> u64 {
    stats
        .pointer(path)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("{path} in {stats:#}"))
}

/// The seconds from the first to the last of a wave of what all nodes did,
/// and the part of them that did it within 100 ms.
fn wave(stats: &Value, which: &str) -> (f64, f64) {
    let get = |key: &str| number(stats, &format!("/{which}/{key}"));
    let ms = u32::try_from(get("to_ms") - get("from_ms")).expect("a time");
    let share = |n: u64| f64::from(u32::try_from(n).expect("a number"));
    (
        f64::from(ms) / 1000.0,
        share(get("most_in_100_ms")) / share(get("nodes")),
    )
}

fn kill(up: &Up, part: &str) -> u32 {
    let pid = up.pid(part).expect("it runs");
    signal(pid, Signal::KILL).expect("kills");
    pid
}

fn events(up: &Up) -> Vec<Value> {
    up.muster(&["events", "--json", "--limit", "200"])
        .json_lines()
}

fn kinds(events: &[Value], kind: &str) -> Vec<Value> {
    let of = |e: &&Value| e["type"].as_str().is_some_and(|k| k.starts_with(kind));
    events.iter().filter(of).cloned().collect()
}

fn all_succeed(up: &Up, nodes: u64) -> Said {
    let said = up.muster(&["run", "role=sim", "--yes", "--json", "--", "true"]);
    let outcomes = said.outcomes();
    assert_eq!(outcomes.len() as u64, nodes);
    let other: Vec<_> = outcomes
        .iter()
        .filter(|(_, o)| *o != "succeeded")
        .take(5)
        .collect();
    assert!(other.is_empty(), "{other:?} {}", up.logs());
    said
}

#[test]
fn a_thousand_nodes_that_lose_their_server_come_back_one_after_the_other() {
    let nodes = 1_000;
    let up = Up::start(&[]).expect("starts");
    let fleet = Fleet::start(&up, nodes, &[]);
    all_succeed(&up, nodes);

    // The NATS server: everybody loses the same thing at the same moment.
    let before = fleet.asked();
    kill(&up, "nats-server");
    let after = fleet.until(&up, "all nodes to be back", |now| {
        number(now, "/losses") >= number(&before, "/losses") + nodes
            && fleet.all_there(now)
            && number(now, "/latest_welcomes/from_ms") > number(&before, "/latest_welcomes/to_ms")
    });
    let (connects, welcomes) = (
        wave(&after, "latest_connects"),
        wave(&after, "latest_welcomes"),
    );
    let told = format!(
        "connected over {:.1} s, at most {:.0}% in 100 ms; welcomed over {:.1} s, at most {:.0}%",
        connects.0,
        connects.1 * 100.0,
        welcomes.0,
        welcomes.1 * 100.0
    );
    // Not in one instant. (How they are spread on a machine that has the time
    // is a test of the agent's own.)
    assert!(connects.1 < 0.6 && welcomes.1 < 0.6, "{told}");
    // One connection each, not two.
    assert_eq!(
        number(&after, "/connects") - number(&before, "/connects"),
        number(&after, "/losses") - number(&before, "/losses"),
        "{told}"
    );
    all_succeed(&up, nodes);

    // The broker: the next one is told hello by everybody, over a second.
    let before = fleet.asked();
    kill(&up, "broker");
    wait_for("the next broker", || {
        ready(&up).filter(|r| r["state"] == "active")
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    let after = fleet.until(&up, "all nodes to say hello", |now| {
        fleet.all_there(now)
            && number(now, "/latest_welcomes/from_ms") > number(&before, "/latest_welcomes/to_ms")
    });
    let welcomes = wave(&after, "latest_welcomes");
    assert!(
        welcomes.1 < 0.6,
        "welcomed over {:.1} s, at most {:.0}%",
        welcomes.0,
        welcomes.1 * 100.0
    );
    assert_eq!(
        number(&after, "/losses"),
        number(&before, "/losses"),
        "nobody lost its connection"
    );
    all_succeed(&up, nodes);

    // Nobody was taken for dead, or for two, or for a flood.
    let events = events(&up);
    for kind in ["alarm.", "node.down"] {
        let found = kinds(&events, kind);
        assert!(found.is_empty(), "{found:?}");
    }
    let pinged = up.muster(&["ping", "*", "--json"]);
    assert_eq!(pinged.code, 0, "{pinged:?}");
    Audit::of(&up).witness(&fleet.asked()).holds();
}

#[test]
fn faults_by_chance_leave_one_outcome_each_and_no_second_effect() {
    let nodes = 200;
    for seed in seeds(&[20]) {
        let mut draw = Draw(seed);
        let up = Up::start(&[]).expect("starts");
        let text = seed.to_string();
        let fleet = Fleet::start(
            &up,
            nodes,
            &[
                "--seed",
                &text,
                "--fail",
                "5%",
                "--decline",
                "3%",
                "--silent",
                "1%",
                "--duplicate",
                "10%",
                "--reorder",
                "--work",
                "0ms..400ms",
                "--slow",
                "5%:500ms..3s",
                "--drop-connection",
                "60%/min",
                "--output",
                "{name} was here",
            ],
        );
        let mut runs = Vec::new();
        let mut deeds = Vec::new();
        for _ in 0..8 {
            wait_for("a broker that serves", || {
                ready(&up).filter(|r| r["state"] == "active")
            })
            .unwrap_or_else(|e| panic!("seed {seed}, after {deeds:?}: {e} {}", up.logs()));
            let said = up.muster(&[
                "run",
                "role=sim",
                "--yes",
                "--json",
                "--detach",
                "--deliver-within",
                "4s",
                "--timeout",
                "2s",
                "--",
                "true",
            ]);
            // A broker whose server was killed says so; nothing has begun then.
            if said.code == 0 {
                runs.push(said.run());
            } else {
                assert_eq!(said.code, 5, "seed {seed}, after {deeds:?}: {said:?}");
            }
            std::thread::sleep(Duration::from_millis(draw.below(900) as u64));
            let deed = ["nats-server", "broker", "nothing", "nothing"][draw.below(4)];
            deeds.push(deed);
            if deed != "nothing" {
                kill(&up, deed);
            }
        }
        assert!(runs.len() >= 3, "seed {seed}, after {deeds:?}: {runs:?}");
        for run in &runs {
            let said = ended(&up, run);
            let outcomes = said.outcomes();
            assert!(
                !outcomes.is_empty(),
                "seed {seed}, after {deeds:?}: {said:?}"
            );
            let told = said
                .json_lines()
                .iter()
                .filter(|l| l["type"] == "outcome")
                .count();
            assert_eq!(
                told,
                outcomes.len(),
                "seed {seed} (MUSTER_TEST_SEED), after {deeds:?}: run {run}"
            );
        }
        // And it works again.
        fleet.until(&up, "the fleet to be whole", |now| {
            number(now, "/welcomed") > nodes * 9 / 10
        });
        let stats = fleet.asked();
        assert_eq!(
            stats["more_than_once"], 0,
            "seed {seed} (MUSTER_TEST_SEED), after {deeds:?}"
        );
        let alarms = kinds(&events(&up), "alarm.");
        assert!(
            alarms.is_empty(),
            "seed {seed} (MUSTER_TEST_SEED), after {deeds:?}: {alarms:?}"
        );
        Audit::of(&up).witness(&stats).holds();
    }
}
