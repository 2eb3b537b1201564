//! Clocks that step, also in the middle of a command, and clocks that drift.

use std::path::{Path, PathBuf};
use std::process::Command;

use muster_tests::invariants::{Audit, Counter};
use muster_tests::{Up, finish, wait_for};
use serde_json::Value;

use super::draw::{Draw, seeds};
use super::{Process, agent, ended, enrol, node, outcome_of, ready, sh, skipped, wait_state};

/// A clock that the processes under it read, set by the test.
struct Clock {
    file: PathBuf,
    library: String,
}

impl Clock {
    fn new(up: &Up, name: &str) -> Self {
        // `faketime` says where its library is.
        let mut asked = Command::new("faketime");
        asked.args(["-f", "+0s", "sh", "-c", "echo $LD_PRELOAD"]);
        let library = finish(asked).exits(0).out.trim().to_owned();
        let file = up.dir.path().join(format!("clock-{name}"));
        let clock = Self { file, library };
        clock.set(0);
        clock
    }

    /// So many seconds ahead of the true time.
    fn set(&self, ahead: i64) {
        // A rate that was set once stays until another is.
        self.say(&format!("{ahead:+} x1"));
    }

    fn say(&self, text: &str) {
        // Whoever reads it finds the old text or the new one.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{text}\n")).expect("writes");
        std::fs::rename(&new, &self.file).expect("renames");
    }

    fn rules(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            // What measures how long something takes is true.
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    }
}

fn until(file: &Path) -> String {
    format!("while ! test -e {}; do sleep 0.05; done", file.display())
}

fn skew(up: &Up, name: &str) -> Option<i64> {
    let node = node(up, name)?;
    let conditions = node["conditions"].as_array()?;
    let skew = conditions.iter().find(|c| c["condition"] == "clock_skew")?;
    skew["ms"].as_i64()
}

/// A broker with a clock of its own, beside the NATS server of a `muster up`.
struct World {
    up: Up,
    broker_clock: Clock,
    node_clock: Clock,
    _nats: Process,
    broker: Process,
    _agents: Vec<Process>,
}

impl World {
    fn start() -> Self {
        let mut up = Up::start(&[]).expect("starts");
        up.stop(rustix::process::Signal::TERM).expect("ends");
        let (broker_clock, node_clock) = (Clock::new(&up, "broker"), Clock::new(&up, "node"));
        let mut nats = Command::new("nats-server");
        let path = std::env::var("PATH").unwrap_or_default();
        nats.env("PATH", format!("{path}:/usr/sbin:/usr/local/sbin"));
        nats.arg("-c").arg(up.state().join("nats/nats.conf"));
        let nats = Process::start(nats, up.dir.path().join("nats.log"));
        let mut broker = up.bare("muster");
        broker_clock.rules(&mut broker);
        broker
            .args(["broker", "--config"])
            .arg(up.state().join("broker.toml"));
        let broker = Process::start(broker, up.dir.path().join("broker.log"));
        wait_for("the broker", || {
            ready(&up).filter(|r| r["state"] == "active")
        })
        .unwrap_or_else(|e| panic!("{e}: {}", broker.says()));
        let agents = ["s-1", "s-2"].map(|name| {
            enrol(&up, name, "s");
            let mut command = agent(&up, name);
            if name == "s-1" {
                node_clock.rules(&mut command);
            }
            let process = Process::start(command, up.dir.path().join(format!("{name}.log")));
            wait_state(&up, name, "up");
            process
        });
        Self {
            up,
            broker_clock,
            node_clock,
            _nats: nats,
            broker,
            _agents: agents.into(),
        }
    }

    /// Begins a command that waits for a file.
    fn begin(&self, name: &str, on: &str) -> (String, Counter, PathBuf) {
        let counter = self.up.counter(name);
        let go = self.up.dir.path().join(format!("go-{name}"));
        let script = counter.around(&until(&go));
        let run = self
            .up
            .muster(&["run", on, "--detach", "--json", "--shell", "--", &script])
            .exits(0)
            .run();
        wait_for("the command", || (counter.begun() == 1).then_some(())).unwrap_or_else(|e| {
            panic!(
                "{e}: {name} {}",
                self.up.muster(&["runs", "show", &run]).out
            )
        });
        (run, counter, go)
    }

    /// Runs something short on the node; what is told of it.
    fn quick(&self, name: &str) -> (Value, usize) {
        let counter = self.up.counter(name);
        let said = self.up.muster(&[
            "run",
            "s-1",
            "--json",
            "--deliver-within",
            "5s",
            "--shell",
            "--",
            &counter.around("true"),
        ]);
        (outcome_of(&said, "s-1"), counter.begun())
    }

    fn declined_for_its_clock(&self, name: &str) {
        let (told, effects) = self.quick(name);
        assert_eq!(told["outcome"], "declined", "{told}");
        let reason = told["reason"].as_str().expect("a reason");
        assert!(reason.contains("clock"), "{reason}");
        assert_eq!(effects, 0);
    }

    fn succeeds(&self, name: &str) {
        let (told, effects) = self.quick(name);
        assert_eq!(
            (told["outcome"].as_str(), effects),
            (Some("succeeded"), 1),
            "{told}"
        );
    }

    fn audit(&self) {
        Audit::of(&self.up)
            .clock_off("s-1")
            .clock_off("s-2")
            .holds();
    }
}

fn no_faketime(what: &str) -> bool {
    let missing = !sh("command -v faketime");
    if missing {
        skipped(what, "faketime is not installed (apt-get install faketime)");
    }
    missing
}

/// Where the two clocks are, in seconds ahead, and what the node remembers.
#[derive(Clone, Copy, Debug, Default)]
struct Model {
    node: i64,
    broker: i64,
    /// The furthest that an obeyed request was ahead.
    newest: i64,
}

impl Model {
    /// Whether the node obeys what the broker signs now.
    fn obeys(self) -> bool {
        (self.node - self.broker).abs() <= 20 && self.newest - self.broker <= 60
    }
}

#[test]
fn clocks_that_step_in_the_middle_of_commands() {
    if no_faketime("clocks that step") {
        return;
    }
    let world = World::start();
    let up = &world.up;
    for seed in seeds(&[1, 2]) {
        let mut draw = Draw(seed);
        let mut model = Model::default();
        world.node_clock.set(0);
        world.broker_clock.set(0);
        // The key of an earlier row of steps may have been seen ahead.
        up.muster(&["keys", "rotate"]).exits(0);
        let mut taken = Vec::new();
        for number in 0..4 {
            let name = format!("{seed}-{number}");
            // What runs now goes on, whatever the clocks do.
            let waiting = model
                .obeys()
                .then(|| world.begin(&format!("waits-{name}"), "s-1"));
            let endless = model.obeys().then(|| {
                let args = [
                    "run",
                    "s-1",
                    "--detach",
                    "--json",
                    "--timeout",
                    "1s",
                    "--",
                    "sleep",
                    "600",
                ];
                up.muster(&args).exits(0).run()
            });
            if model.obeys() {
                model.newest = model.newest.max(model.broker);
            }
            let steps = [3_600, -3_600, 10, -10, 0];
            let to = steps[draw.below(steps.len())];
            match draw.below(3) {
                0 => model.node = to,
                1 => model.broker = to,
                _ => (model.node, model.broker) = (to, to),
            }
            world.node_clock.set(model.node);
            world.broker_clock.set(model.broker);
            taken.push((model.node, model.broker));
            let context = format!("seed {seed} (MUSTER_TEST_SEED), clocks {taken:?}");
            if let Some((run, counter, go)) = waiting {
                std::fs::write(&go, "").expect("writes");
                let told = outcome_of(&ended(up, &run), "s-1");
                assert_eq!(told["outcome"], "succeeded", "{context}: {told}");
                assert_eq!(counter.of("s-1"), (1, 1), "{context}");
            }
            if let Some(run) = endless {
                let told = outcome_of(&ended(up, &run), "s-1");
                assert_eq!(told["outcome"], "timed_out", "{context}: {told}");
            }
            let quick = format!("quick-{name}");
            let (told, effects) = world.quick(&quick);
            if model.obeys() {
                assert_eq!(
                    (told["outcome"].as_str(), effects),
                    (Some("succeeded"), 1),
                    "{context}: {told}"
                );
                model.newest = model.newest.max(model.broker);
            } else {
                assert_eq!(
                    (told["outcome"].as_str(), effects),
                    (Some("declined"), 0),
                    "{context}: {told}"
                );
                let reason = told["reason"].as_str().unwrap_or_default();
                assert!(reason.contains("clock"), "{context}: {told}");
            }
        }
    }
    // The broker was active all the time, and under one epoch.
    let ready = ready(up).expect("it answers");
    assert_eq!(ready["epoch"], 2, "{ready} {}", world.broker.says());
    world.audit();
}

#[test]
fn clocks_that_were_wrong_together_and_clocks_that_drift() {
    if no_faketime("clocks that drift") {
        return;
    }
    let world = World::start();
    let up = &world.up;
    world.succeeds("true-time");

    // Ahead together, as after a bad time server; nobody can tell.
    world.broker_clock.set(3_600);
    world.node_clock.set(3_600);
    world.succeeds("ahead-together");
    wait_for("the alarm", || {
        let events = up.muster(&["events", "--json", "--limit", "200"]).out;
        let alarm = events.lines().find(|l| l.contains("alarm.clock"))?;
        alarm.contains("forward by 3600 s").then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", world.broker.says()));
    // The one with the true time is the odd one out, and says why.
    let said = up.muster(&[
        "run",
        "s-2",
        "--json",
        "--deliver-within",
        "5s",
        "--",
        "true",
    ]);
    let told = outcome_of(&said, "s-2");
    assert_eq!(told["outcome"], "declined", "{told}");

    // Back together: what the node obeyed lies in its future, and what is
    // signed now could be something old that somebody sends again.
    world.broker_clock.set(0);
    world.node_clock.set(0);
    world.declined_for_its_clock("back-together");
    // A key that it has not heard from has said nothing yet.
    up.muster(&["keys", "rotate"]).exits(0);
    world.succeeds("another-key");

    // A clock that runs away: obeyed while it is near, then declined, and
    // shown on both sides.
    world.node_clock.say("+0 x30");
    wait_for("the skew to be seen", || {
        skew(up, "s-1").filter(|ms| *ms > 60_000)
    })
    .unwrap_or_else(|e| panic!("{e}: {:?}", node(up, "s-1")));
    world.declined_for_its_clock("drifted");
    let doctor = up.muster(&["doctor"]);
    assert!(doctor.out.contains("clock"), "{doctor:?}");
    world.node_clock.set(0);
    wait_for("the skew to be gone", || {
        skew(up, "s-1").is_none().then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {:?}", node(up, "s-1")));
    world.succeeds("true-again");
    assert_eq!(skew(up, "s-2"), None);
    world.audit();
}
