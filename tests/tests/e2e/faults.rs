//! Kill it, fill its disk, cut its network, give it rubbish: what is known is
//! said, what is not known is said to be unknown, nothing is done twice, and
//! it works again when the fault is gone.

mod checker;
mod clock;
mod disk;
mod draw;
mod fencing;
mod fleet;
mod flood;
mod flow;
mod input;
mod kill;
mod nats;
mod network;
mod oneway;
mod pause;
mod positions;
mod reconcile;
mod replay;
mod slow;
mod steps;
mod yesterday;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use muster_tests::{Said, Up, finish, wait_for};
use serde_json::Value;

/// Says that a test did not test anything here, past the test runner's
/// capture of what tests print, with how many there were.
pub(crate) fn skipped(what: &str, why: &str) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let _ = writeln!(std::io::stderr(), "SKIPPED ({n}): {what}: {why}");
}

/// Runs a command of the system; whether it went well.
fn sh(line: &str) -> bool {
    Command::new("sh")
        .args(["-c", line])
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|o| o.status.success())
}

/// Waits until a run has ended, over every absence of the broker.
fn ended(up: &Up, run: &str) -> Said {
    let mut last = None;
    wait_for(&format!("the end of run {run}"), || {
        let said = up.muster(&["runs", "watch", run, "--json"]);
        let over = said.code != 5 && said.out.contains("\"run_finished\"");
        let found = over.then_some(());
        last = Some(said);
        found
    })
    .unwrap_or_else(|e| panic!("{e}: {last:#?} {}", up.logs()));
    last.expect("it was asked")
}

/// The outcomes of a run that has ended, each told exactly once.
fn one_outcome_each(said: &Said, nodes: &[&str]) -> BTreeMap<String, String> {
    let outcomes = said.outcomes();
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), nodes, "{said:#?}");
    for node in nodes {
        let told = said
            .json_lines()
            .iter()
            .filter(|l| l["type"] == "outcome" && l["node"] == **node)
            .count();
        assert_eq!(told, 1, "{node} in {said:#?}");
    }
    outcomes
}

/// What is said about one node's outcome in a run that has ended.
fn outcome_of(said: &Said, node: &str) -> Value {
    said.json_lines()
        .into_iter()
        .find(|l| l["type"] == "outcome" && l["node"] == node)
        .unwrap_or_else(|| panic!("no outcome of {node}: {said:#?}"))
}

/// Runs `true` on these until all of them succeed.
fn works(up: &Up, predicate: &str, nodes: usize) {
    let mut last = None;
    wait_for("a run to succeed", || {
        let said = up.muster(&["run", predicate, "--json", "--", "true"]);
        let well = said.code == 0 && said.outcomes().len() == nodes;
        last = Some(said);
        well.then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {last:#?} {}", up.logs()));
}

/// One node as `muster nodes --json` shows it.
fn node(up: &Up, name: &str) -> Option<Value> {
    let said = up.muster(&["nodes", "--json"]);
    (said.code == 0).then(|| said.list().into_iter().find(|n| n["name"] == name))?
}

fn wait_state(up: &Up, name: &str, wanted: &str) {
    wait_for(&format!("{name} to be {wanted}"), || {
        node(up, name).filter(|n| n["state"] == wanted)
    })
    .unwrap_or_else(|e| panic!("{e}: {:?} {}", node(up, name), up.logs()));
}

fn ready(up: &Up) -> Option<Value> {
    let said = finish(curl(&[
        "-s",
        "--max-time",
        "5",
        &format!("{}/readyz", up.url()),
    ]));
    serde_json::from_str(&said.out).ok()
}

fn curl(args: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(args).stdin(Stdio::null());
    command
}

/// A process of a test: its log is a file, and it ends with the test.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log");
        let errors = file.try_clone().expect("a log");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { child, log }
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    fn says(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn says_soon(&self, word: &str) {
        wait_for(&format!("`{word}` in a log"), || {
            self.says().contains(word).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {}", self.says()));
    }

    fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(
                std::io::stderr(),
                "--- {}\n{}",
                self.log.display(),
                self.says()
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the state of an agent is that a test runs by itself.
fn machine(up: &Up, name: &str) -> PathBuf {
    up.dir.path().join("machines").join(name)
}

/// Enrols a machine of the test's own under this name and role.
fn enrol(up: &Up, name: &str, role: &str) {
    let said = up
        .muster(&["node", "invite", "--json", "--name", name, "--role", role])
        .exits(0);
    let token = invite_token(&said);
    let mut command = up.bare("muster-agent");
    command
        .args(["enroll", "--url", &up.url(), "--state"])
        .arg(machine(up, name))
        .env("MUSTER_ENROLL_TOKEN", token);
    finish(command).exits(0);
}

fn invite_token(said: &Said) -> String {
    let line = said.json_lines().remove(0);
    let token = &line["invites"][0]["token"];
    let token = if token.is_string() {
        token
    } else {
        &line["token"]
    };
    token.as_str().expect("a token").to_owned()
}

/// The command that runs such an agent.
fn agent(up: &Up, name: &str) -> Command {
    let mut command = up.bare("muster-agent");
    command.args(["run", "--state"]).arg(machine(up, name));
    command
}
