//! Stopping everything new, and what that does not stop.

use std::path::{Path, PathBuf};

use muster_tests::invariants::Audit;
use muster_tests::{Said, Up, lines, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

fn fleet(count: usize) -> Vec<String> {
    (1..=count)
        .map(|i| format!("web-{i:02}:role=web"))
        .collect()
}

fn start(count: usize) -> Up {
    let nodes = fleet(count);
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    Up::start(&nodes).expect("starts")
}

fn state(up: &Up) -> Value {
    let said = up.muster(&["freeze", "--status", "--json"]).exits(0);
    said.json_lines().remove(0)
}

fn shown(up: &Up, run: &str) -> Value {
    let said = up.muster(&["runs", "show", run, "--json"]);
    serde_json::from_str(said.out.trim()).unwrap_or(Value::Null)
}

fn ended(up: &Up, run: &str) -> Value {
    wait_for("the end of the run", || {
        let shown = shown(up, run);
        shown["finished"].is_string().then_some(shown)
    })
    .expect("it ends")
}

fn outcomes(shown: &Value, what: &str) -> usize {
    let results = shown["results"].as_array().expect("results");
    results.iter().filter(|r| r["outcome"] == what).count()
}

fn counted(file: &Path) -> usize {
    lines(file).len()
}

fn detached(up: &Up, more: &[&str]) -> String {
    let mut args = vec!["run", "role=web", "--detach", "--json"];
    args.extend(more);
    up.muster(&args).exits(0).run()
}

fn kill_and_wait(up: &Up, part: &str) {
    let before = up.pid(part).expect("it runs");
    signal(before, Signal::KILL).expect("kills");
    wait_for("it is back", || {
        (up.pid(part).ok()? != before && up.muster(&["whoami"]).code == 0).then_some(())
    })
    .expect("it is");
}

fn frozen(said: &Said) {
    assert!(said.err.contains("frozen by admin: the switch"), "{said:?}");
}

/// A run in batches over twenty nodes: once all of them have said that they
/// are frozen, none begins anything, whatever is restarted; and then the run
/// goes on where it was.
#[test]
fn a_freeze_stops_a_run_between_its_batches_and_a_thaw_lets_it_go_on() {
    const NODES: usize = 20;
    let up = start(NODES);
    let effects = up.dir.path().join("effects");
    let script = format!("echo $MUSTER_NODE >> {}; sleep 0.5", effects.display());
    let more = ["--batch", "2", "--shell", "--", &script];
    let run = detached(&up, &more);
    wait_for("the run has begun", || {
        (counted(&effects) >= 4).then_some(())
    })
    .expect("it has");
    let said = up
        .muster(&["freeze", "--why", "the switch", "--json"])
        .exits(0);
    let view = said.json_lines().remove(0);
    assert_eq!(
        (view["taken"].as_u64(), view["missing"].as_u64()),
        (Some(20), Some(0)),
        "{view}"
    );
    // All have it on disk: what has begun by now is all that there is.
    let begun = counted(&effects);
    assert!(begun < NODES, "it was too quick to be frozen: {begun}");
    frozen(&up.muster(&["run", "role=web", "--", "true"]).exits(4));
    assert_eq!(shown(&up, &run)["waits"]["for"], "frozen");
    let listed = up.muster(&["runs", "list"]).exits(0);
    assert!(listed.out.contains("waiting (frozen)"), "{listed:?}");
    up.muster(&["freeze", "--why", "again"]).exits(2);

    kill_and_wait(&up, "broker");
    assert_eq!(state(&up)["frozen"], true);
    // One is killed, and one was away when it began: nobody forgets.
    kill_and_wait(&up, "agent-web-01");
    kill_and_wait(&up, "nats-server");
    wait_for("all of them are there again", || {
        (state(&up)["taken"] == 20).then_some(())
    })
    .expect("they are");
    // Those that the broker takes for connected may be about to connect again.
    wait_for("all of them answer", || {
        (up.muster(&["ping", "role=web"]).code == 0).then_some(())
    })
    .expect("they do");
    frozen(
        &up.muster(&["run", "role=web", "--yes", "--", "true"])
            .exits(4),
    );
    // Something that people have to know of: as for everything that is wrong.
    let status = up.muster(&["status"]).exits(1);
    assert!(
        status
            .out
            .contains("the fleet is frozen by admin: the switch"),
        "{status:?}"
    );
    assert_eq!(counted(&effects), begun, "something was begun");

    up.muster(&["thaw"]).exits(0);
    let shown = ended(&up, &run);
    assert_eq!(outcomes(&shown, "succeeded"), NODES, "{shown}");
    assert_eq!(counted(&effects), NODES);
    let listed = up.muster(&["runs", "list"]).exits(0);
    assert!(!listed.out.contains("frozen"), "{listed:?}");
    up.muster(&["thaw"]).exits(2);
    Audit::of(&up).holds();
}

fn local(up: &Up, node: &str, more: &[&str], effect: &Path) -> Said {
    let mut command = up.bare("muster-agent");
    let state = up.agent_state(node);
    command
        .args(["local", "run", "--state"])
        .arg(state)
        .args(more);
    command.args(["--", "touch"]).arg(effect);
    muster_tests::finish(command)
}

/// An agent that was stopped while the fleet froze, and one without a broker.
#[test]
fn who_was_away_learns_it_before_anything_is_executed() {
    let up = start(2);
    let away = up.pid("agent-web-02").expect("it runs");
    signal(away, Signal::STOP).expect("stops");
    let effects = up.dir.path().join("effects");
    let script = format!("echo $MUSTER_NODE >> {}", effects.display());
    // It lies in that agent's connection when the freeze comes.
    let more = ["--deliver-within", "20s", "--shell", "--", &script];
    let run = detached(&up, &more);
    wait_for("the other one has done it", || {
        (counted(&effects) == 1).then_some(())
    })
    .expect("so");
    let said = up.muster(&["freeze", "--why", "the switch"]);
    assert!(said.code <= 1, "{said:?}");
    // A new start of the agent reads nothing of what lay there.
    signal(away, Signal::KILL).expect("kills");
    wait_for("it goes by the freeze", || {
        (state(&up)["taken"] == 2).then_some(())
    })
    .expect("so");
    let on_disk = up.agent_state("web-02").join("freeze.json");
    assert!(on_disk.is_file());
    let shown = ended(&up, &run);
    assert_eq!(outcomes(&shown, "succeeded"), 1, "{shown}");
    assert_eq!(counted(&effects), 1, "{shown}");

    let effect = up.dir.path().join("local");
    let said = local(&up, "web-01", &[], &effect).exits(126);
    frozen(&said);
    assert!(!effect.exists());
    local(
        &up,
        "web-01",
        &["--despite-freeze", "--why", "it burns"],
        &effect,
    )
    .exits(0);
    assert!(effect.exists());
    up.muster(&["thaw", "--why", "it is over"]).exits(0);
    local(&up, "web-01", &[], &effect).exits(0);
    Audit::of(&up).holds();
}

const FLOW: &str = r#"
    scenario("Put up, and take back");
    target("role=web");
    fn up(p) { command(["sh", "-c", "printf 'up\n' >> DIR/effects"]); }
    fn down(p) { command(["sh", "-c", "printf 'down\n' >> DIR/effects"]); }
    fn later(p) { command(["sh", "-c", "printf 'later\n' >> DIR/effects"]); }
    fn main(p) {
        on(targets(), "up", p).undo("down");
        sleep("600s");
        on(targets(), "later", p);
    }
"#;

/// The steps of a `main` wait; what was promised to be taken back is.
#[test]
fn undo_goes_on_while_nothing_else_does() {
    let up = start(2);
    let effects: PathBuf = up.dir.path().join("effects");
    let script = FLOW.replace("DIR", &up.dir.path().to_string_lossy());
    let file = up.dir.path().join("flow.rhai");
    std::fs::write(&file, script).expect("writes");
    let file = file.to_string_lossy().into_owned();
    up.muster(&["scenario", "put", &file]).exits(0);
    let run = up
        .muster(&["scenario", "run", "flow", "--detach", "--json"])
        .exits(0)
        .run();
    wait_for("it is up", || (counted(&effects) == 2).then_some(())).expect("it is");
    up.muster(&["freeze", "--why", "the switch"]).exits(0);
    wait_for("it says what it waits for", || {
        (shown(&up, &run)["waits"]["for"] == "frozen").then_some(())
    })
    .expect("it does");
    up.muster(&["runs", "cancel", &run]).exits(0);
    let shown = ended(&up, &run);
    assert_eq!(shown["state"], "cancelled", "{shown}");
    let mut done = lines(&effects);
    done.sort();
    assert_eq!(done, ["down", "down", "up", "up"], "{shown}");
    assert_eq!(state(&up)["frozen"], true);
    Audit::of(&up).holds();
}
