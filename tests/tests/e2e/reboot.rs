//! `kill -9` of the agent around a step that restarts the machine: nothing is
//! done twice, and what cannot be said is `unknown`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use muster_tests::hold::Hold;
use muster_tests::invariants::Audit;
use muster_tests::{Up, lines, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

const SCRIPT: &str = r#"
scenario("Restart it, and see that it is back");
param("log");
target("role=web");
fn run(p) {
    command(["sh", "-c", `echo before >> ${p.log}`]);
    reboot();
    command(["sh", "-c", `echo after >> ${p.log}`]);
}
"#;

/// A machine with a `systemctl` that only writes down that it was called, and
/// a boot id that the test changes.
struct Machine {
    up: Up,
    hold: Hold,
    runs: u32,
}

impl Machine {
    fn start() -> Self {
        let mut up = Up::not_yet(&["web-01:role=web"]).expect("room");
        let hold = up.hold().expect("checkpoints");
        up.launch().expect("starts");
        let mut machine = Self { up, hold, runs: 0 };
        let bin = machine.path("bin");
        fs::create_dir(&bin).expect("made");
        let systemctl = bin.join("systemctl");
        let text = format!(
            "#!/bin/sh\necho \"$@\" >> {}\n",
            machine.path("told").display()
        );
        fs::write(&systemctl, text).expect("written");
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).expect("a mode");
        machine.boots();
        let config = machine.up.state().join("agents/web-01.toml");
        let text = fs::read_to_string(&config).expect("the agent's configuration");
        let text = format!(
            "boot_id = '{}'\n{text}\n[command.environment]\nPATH = '{}:/usr/bin:/bin'\n",
            machine.path("boot").display(),
            bin.display(),
        );
        fs::write(&config, text).expect("written");
        machine.dies();
        let script = machine.path("restarts.rhai");
        fs::write(&script, SCRIPT).expect("written");
        let script = script.display().to_string();
        machine.up.muster(&["scenario", "put", &script]).exits(0);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.up.dir.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.path(&format!("log-{}", self.runs))
    }

    /// From now on an agent that begins finds another boot id.
    fn boots(&mut self) {
        self.runs += 1;
        fs::write(self.path("boot"), format!("boot {}", self.runs)).expect("written");
    }

    /// The agent is killed; another one begins.
    fn dies(&self) {
        let before = self.up.pid("agent-web-01").expect("it runs");
        signal(before, Signal::KILL).expect("kills");
        wait_for("another agent", || {
            let now = self.up.pid("agent-web-01").ok();
            now.filter(|now| *now != before)
        })
        .unwrap_or_else(|e| panic!("{e}: {}", self.up.logs()));
    }

    fn begin(&self, place: &str, more: &[&str]) -> String {
        // The agent was killed just before.
        wait_for("the agent to work", || {
            let said = self.up.muster(&["run", "web-01", "--", "true"]);
            (said.code == 0).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {}", self.up.logs()));
        let log = format!("log={}", self.log().display());
        let mut args = vec!["scenario", "run", "restarts", "-p", &log];
        args.extend(["--yes", "--detach", "--json"]);
        args.extend(more);
        self.hold.hold(place);
        self.up.muster(&args).exits(0).run()
    }

    /// What is said of the node when the run has ended.
    fn outcome(&self, run: &str) -> (String, String) {
        let shown = wait_for("the end of the run", || {
            let said = self.up.muster(&["runs", "show", run, "--json"]);
            let shown: Value = serde_json::from_str(&said.out).ok()?;
            shown["finished"].is_string().then_some(shown)
        })
        .unwrap_or_else(|e| panic!("{e}: {}", self.up.logs()));
        let node = &shown["results"][0];
        let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
        (text("outcome"), text("reason"))
    }

    /// A run whose agent is killed there, on a machine that has restarted
    /// when the next agent begins, or not.
    fn killed_at(&mut self, place: &str, restarted: bool, more: &[&str]) -> (String, String) {
        let (log, told) = (self.log(), self.told());
        let run = self.begin(place, more);
        if place.starts_with("agent.finish") {
            // It comes there behind the restart.
            wait_for("the machine to be told", || {
                (self.told() > told).then_some(())
            })
            .unwrap_or_else(|e| panic!("{e}: {}", self.up.logs()));
            self.boots();
            self.dies();
        }
        self.hold.came(place).unwrap_or_else(|e| panic!("{e}"));
        if restarted {
            self.boots();
        }
        self.dies();
        self.hold.release(place);
        let (outcome, reason) = self.outcome(&run);
        let done = lines(&log);
        let all = if place.starts_with("agent.finish") || outcome == "succeeded" {
            vec!["before", "after"]
        } else {
            vec!["before"]
        };
        assert_eq!(done, all, "{place}: {outcome}: {reason}");
        // The next one writes elsewhere.
        self.boots();
        self.dies();
        (outcome, reason)
    }

    /// How often the machine was told to restart.
    fn told(&self) -> usize {
        lines(&self.path("told")).len()
    }
}

#[test]
fn an_agent_that_is_killed_around_a_restart_does_nothing_twice() {
    let mut machine = Machine::start();
    for restarted in [false, true] {
        // Nobody has written down that the machine would restart.
        let (outcome, reason) = machine.killed_at("agent.restart.before", restarted, &[]);
        assert_eq!(outcome, "unknown", "{reason}");
        assert!(reason.contains("the agent ended"), "{reason}");
    }
    // It was written down, and the machine was never told.
    let (outcome, reason) = machine.killed_at("agent.restart.after", false, &["--timeout", "15s"]);
    assert_eq!(outcome, "failed", "{reason}");
    assert!(reason.contains("did not within"), "{reason}");
    // It lost its power just then: it has restarted.
    let (outcome, reason) = machine.killed_at("agent.restart.after", true, &[]);
    assert_eq!(outcome, "succeeded", "{reason}");
    assert_eq!(machine.told(), 0);
    for restarted in [false, true] {
        // All of it is done, and nobody has written that down.
        let (outcome, reason) = machine.killed_at("agent.finish.before", restarted, &[]);
        assert_eq!(outcome, "unknown", "{reason}");
        let (outcome, reason) = machine.killed_at("agent.finish.after", restarted, &[]);
        assert_eq!(outcome, "succeeded", "{reason}");
    }
    assert_eq!(machine.told(), 4);
    Audit::of(&machine.up).holds();
}
