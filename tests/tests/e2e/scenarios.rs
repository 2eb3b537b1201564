//! Stored scenarios by name: what runs where, what waits for whom, and that
//! nothing of it is lost or done twice when the broker dies.

use std::collections::BTreeMap;
use std::path::PathBuf;

use muster_tests::hold::Hold;
use muster_tests::invariants::Audit;
use muster_tests::{Said, Up, lines, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

const NODES: [&str; 3] = [
    "web-01:role=web,rack=a",
    "web-02:role=web,rack=a",
    "web-03:role=web,rack=b",
];

/// Each node writes into a file of its own; `{dir}` is the test's directory.
const WITNESS: &str = r#"
    scenario("Leave a line");
    param("text", #{ help: "the line" });
    target("role=web");
    TOP
    fn run(p) {
        let name = node().name;
        command(["sh", "-c", "printf '%s\n' \"$1\" >> \"$2\"", "x", p.text, `DIR/${name}.lines`]);
    }
"#;

struct World {
    up: Up,
}

impl World {
    fn new(up: Up) -> Self {
        Self { up }
    }

    fn put(&self, name: &str, script: &str, top: &str) {
        let file = self.up.dir.path().join(format!("{name}.rhai"));
        let dir = self.up.dir.path().to_string_lossy().into_owned();
        let script = script.replace("TOP", top).replace("DIR", &dir);
        std::fs::write(&file, script).expect("writes");
        let file = file.to_string_lossy().into_owned();
        self.up.muster(&["scenario", "put", &file]).exits(0);
    }

    fn run(&self, name: &str, more: &[&str]) -> Said {
        let mut args = vec!["scenario", "run", name];
        args.extend(more);
        self.up.muster(&args)
    }

    fn file(&self, node: &str) -> PathBuf {
        self.up.dir.path().join(format!("{node}.lines"))
    }

    fn written(&self) -> Vec<Vec<String>> {
        ["web-01", "web-02", "web-03"]
            .map(|node| lines(&self.file(node)))
            .to_vec()
    }

    fn shown(&self, run: &str) -> Value {
        let said = self.up.muster(&["runs", "show", run, "--json"]);
        serde_json::from_str(said.out.trim()).unwrap_or(Value::Null)
    }

    fn reasons(&self, run: &str) -> BTreeMap<String, (String, String)> {
        let shown = self.shown(run);
        let results = shown["results"].as_array().expect("results");
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        results
            .iter()
            .map(|r| (text(&r["node"]), (text(&r["outcome"]), text(&r["reason"]))))
            .collect()
    }

    /// A token of a principal of its own.
    fn token(&self, name: &str) -> String {
        let args = [
            "token", "create", "--for", name, "--role", "operator", "--json",
        ];
        let said = self.up.muster(&args).exits(0);
        said.json_lines()[0]["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }
}

#[test]
fn a_parameter_stays_one_argument_and_mistakes_run_nothing() {
    let world = World::new(Up::start(&NODES).expect("starts"));
    world.put("line", WITNESS, "");
    world.run("line", &["-p", "txet=1"]).exits(2).says(&[
        "parameter \"text\": required, not given (help: the line)",
        "did you mean \"text\"?",
    ]);
    world
        .run("lime", &[])
        .exits(2)
        .says(&["did you mean `line`?"]);
    world
        .run("line", &["-p", "text=x", "--on", "role=db"])
        .exits(3);
    assert_eq!(
        world.written(),
        [[""; 0]; 3].map(|none| none.map(str::to_owned).to_vec())
    );
    let evil = "$(touch /tmp/muster-was-here); `id` & rm -rf ~ | '\"";
    let text = format!("text={evil}");
    world
        .run("line", &["-p", &text, "--on", "rack=a", "--json"])
        .exits(0);
    let written = world.written();
    assert_eq!(written[0], [evil]);
    assert_eq!((written[1].len(), written[2].len()), (1, 0));
    Audit::of(&world.up).holds();
}

#[test]
fn a_budget_by_rack_stops_the_rest() {
    let world = World::new(Up::start(&NODES).expect("starts"));
    let script = r#"
        scenario("Fails in one rack");
        target("role=web");
        batch(1);
        max_failures(0, #{ by: "rack" });
        fn run(p) { if node().labels.rack == "a" { command(["false"]); } }
    "#;
    world.put("fragile", script, "");
    let run = world.run("fragile", &["--json"]).exits(1).run();
    let told = world.reasons(&run);
    assert_eq!(told["web-01"].0, "failed", "{told:?}");
    for node in ["web-02", "web-03"] {
        let (outcome, reason) = &told[node];
        assert_eq!(outcome, "skipped", "{told:?}");
        assert!(reason.contains("1 with rack=a failed"), "{told:?}");
    }
    // Another budget may be asked for.
    let more = ["--max-failures-by", "rack=2", "--json"];
    let run = world.run("fragile", &more).exits(1).run();
    assert_eq!(world.reasons(&run)["web-03"].0, "succeeded");
    Audit::of(&world.up).holds();
}

#[test]
fn a_dry_run_changes_nothing_and_its_plan_stops_where_something_has_changed_since() {
    let world = World::new(Up::start(&NODES).expect("starts"));
    let script = r#"
        scenario("Write a file");
        param("text");
        target("role=web");
        allow_check();
        fn run(p) { file(`DIR/${node().name}.lines`).content(p.text + "\n"); }
    "#;
    world.put("file", script, "");
    std::fs::write(world.file("web-03"), "old\n").expect("writes");
    let said = world.run("file", &["-p", "text=new", "--dry-run"]).exits(0);
    assert!(said.out.contains("+new"), "{said:?}");
    assert!(said.out.contains("3 would change, 0 failed"), "{said:?}");
    assert_eq!(world.written()[2], ["old"]);
    assert!(!world.file("web-01").exists());
    let plan = said.out.rsplit("--plan ").next().expect("a plan").trim();
    // Somebody else is faster on one of them.
    std::fs::write(world.file("web-02"), "theirs\n").expect("writes");
    world
        .run("file", &["-p", "text=other", "--plan", plan])
        .exits(6);
    let run = world
        .run("file", &["-p", "text=new", "--plan", plan, "--json"])
        .exits(1)
        .run();
    let told = world.reasons(&run);
    assert_eq!(told["web-02"].0, "declined", "{told:?}");
    assert!(told["web-02"].1.contains("drifted"), "{told:?}");
    assert_eq!(
        world.written(),
        [["new"], ["theirs"], ["new"]].map(|l| l.map(str::to_owned).to_vec())
    );
    world
        .run("file", &["-p", "text=new", "--plan", plan])
        .exits(6);
    // A scenario that does not say that it can be tried is not.
    world.put("line", WITNESS, "");
    world
        .run("line", &["-p", "text=x", "--dry-run"])
        .exits(2)
        .says(&["allow_check"]);
    Audit::of(&world.up).holds();
}

#[test]
fn what_was_shown_is_asked_for_and_without_a_terminal_left_to_others() {
    let world = World::new(Up::start(&NODES).expect("starts"));
    world.put("line", WITNESS, "confirm();");
    world
        .run("line", &["-p", "text=x"])
        .exits(6)
        .says(&["line v1 on 3 nodes", "--detach"]);
    let said = world
        .run("line", &["-p", "text=x", "--detach"])
        .exits(0)
        .says(&["waits until", "muster runs confirm"]);
    let run = said.out.trim().to_owned();
    assert_eq!(world.shown(&run)["state"], "waiting");
    assert_eq!(world.written()[0], [""; 0]);
    let bob = world.token("bob");
    world
        .up
        .muster_as(&bob, &["runs", "confirm", &run])
        .exits(0);
    world.up.muster(&["runs", "watch", &run]).exits(0);
    assert_eq!(world.written()[0], ["x"]);
    assert_eq!(world.shown(&run)["confirmed_by"], "bob");
    world
        .up
        .muster(&["runs", "confirm", &run])
        .exits(2)
        .says(&["has ended"]);
    world.up.muster(&["runs", "retry", &run, "--yes"]).exits(0);
    Audit::of(&world.up).holds();
}

/// Does something until the broker says how it went: it may be dead now.
fn surely(up: &Up, token: &str, args: &[&str]) -> Said {
    wait_for("a broker that answers", || {
        let said = up.muster_as(token, args);
        (said.code != 5).then_some(said)
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()))
}

fn kill_broker(up: &Up) {
    let before = up.pid("broker").expect("it runs");
    signal(before, Signal::KILL).expect("kills");
    wait_for("another broker", || {
        up.pid("broker").ok().filter(|now| *now != before)
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
}

/// Kills the broker where it writes this event, and does what people do until
/// the run has ended.
fn killed_at(world: &World, hold: &Hold, (ana, bob): (&str, &str), place: &str, kind: &str) {
    let up = &world.up;
    let before: Vec<usize> = world.written().iter().map(Vec::len).collect();
    let run = world
        .run("guarded", &["-p", "text=x", "--detach", "--json"])
        .exits(0)
        .run();
    let at = format!("broker.journal.{place} {run} {kind}");
    hold.hold(&at);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (who, verb) in [
                (ana, "pause"),
                (ana, "confirm"),
                (bob, "approve"),
                (bob, "resume"),
            ] {
                let said = surely(up, who, &["runs", verb, &run]);
                // What was written although nobody was told is so already; and
                // after the last of them the run may have done its work by now.
                let so = said.err.contains("is not paused")
                    || (verb == "resume" && said.err.contains("has ended (succeeded)"));
                assert!(said.code == 0 || so, "{verb}: {said:?}");
            }
        });
        hold.came(&at).unwrap_or_else(|e| panic!("{e}"));
        let now: Vec<usize> = world.written().iter().map(Vec::len).collect();
        assert_eq!(now, before, "nothing is sent before all is given ({at})");
        kill_broker(up);
        hold.release(&at);
    });
    let shown = wait_for("the end of the run", || {
        let shown = world.shown(&run);
        shown["finished"].is_string().then_some(shown)
    })
    .unwrap_or_else(|e| panic!("{at}: {e}: {}", up.logs()));
    assert_eq!(shown["state"], "succeeded", "{at}: {shown}");
    assert_eq!(shown["approved_by"], serde_json::json!(["bob"]), "{at}");
    let now: Vec<usize> = world.written().iter().map(Vec::len).collect();
    let once: Vec<usize> = before.iter().map(|n| n + 1).collect();
    assert_eq!(now, once, "once each, {at}");
}

fn killed_at_each(place: &str) {
    let mut up = Up::not_yet(&NODES).expect("room");
    let hold = up.hold().expect("checkpoints");
    up.launch().expect("starts");
    let world = World::new(up);
    world.put(
        "guarded",
        WITNESS,
        "confirm(); approvals(1); lock(\"line\"); batch(2);",
    );
    let ana = world.up.token().expect("a token");
    let bob = world.token("bob");
    for kind in ["paused", "confirmed", "approved", "resumed", "admitted"] {
        killed_at(&world, &hold, (&ana, &bob), place, kind);
    }
    Audit::of(&world.up).holds();
}

#[test]
fn the_broker_is_killed_before_it_writes_what_people_say() {
    killed_at_each("before");
}

#[test]
fn the_broker_is_killed_after_it_wrote_what_people_say() {
    killed_at_each("after");
}

#[test]
fn what_nobody_confirms_in_time_ends_also_over_a_dead_broker() {
    let mut up = Up::not_yet(&NODES).expect("room");
    let hold = up.hold().expect("checkpoints");
    std::fs::create_dir_all(up.state()).expect("makes");
    std::fs::write(up.state().join("broker.toml"), "confirm_within = '2s'\n").expect("writes");
    up.launch().expect("starts");
    let world = World::new(up);
    world.put("guarded", WITNESS, "confirm();");
    for place in ["before", "after"] {
        // The run is only known when it has been created: whoever lapses.
        let at = format!("broker.journal.{place}");
        let run = world
            .run("guarded", &["-p", "text=x", "--detach", "--json"])
            .exits(0)
            .run();
        let at = format!("{at} {run} lapsed");
        hold.hold(&at);
        hold.came(&at).unwrap_or_else(|e| panic!("{e}"));
        kill_broker(&world.up);
        hold.release(&at);
        let shown = wait_for("the end of the run", || {
            let shown = world.shown(&run);
            shown["finished"].is_string().then_some(shown)
        })
        .unwrap_or_else(|e| panic!("{e}: {}", world.up.logs()));
        assert_eq!(shown["state"], "cancelled", "{shown}");
        assert_eq!(shown["lapsed"], "not confirmed within 2s", "{shown}");
        assert!(world.written().iter().all(Vec::is_empty));
    }
    Audit::of(&world.up).holds();
}

#[test]
fn a_lock_is_held_over_a_dead_broker() {
    let world = World::new(Up::start(&NODES).expect("starts"));
    let script = r#"
        scenario("Waits for a file");
        target("role=web");
        lock("one");
        fn run(p) { command(["sh", "-c", "while ! test -e DIR/go; do sleep 0.1; done"]); }
    "#;
    world.put("slow", script, "");
    world.put("line", WITNESS, "lock(\"one\");");
    let first = world.run("slow", &["--yes", "--detach"]).exits(0);
    let first = first.out.trim().to_owned();
    wait_for("it runs", || {
        (world.shown(&first)["state"] == "running").then_some(())
    })
    .expect("runs");
    let second = world
        .run("line", &["-p", "text=x", "--yes", "--detach"])
        .exits(0);
    let second = second.out.trim().to_owned();
    for _ in 0..2 {
        let why = wait_for("it is said who holds the lock", || {
            let shown = world.shown(&second);
            shown["waits"]["why"].as_str().map(str::to_owned)
        })
        .unwrap_or_else(|e| panic!("{e}: {}", world.up.logs()));
        assert!(why.contains(&first), "{why}");
        assert!(world.written().iter().all(Vec::is_empty));
        kill_broker(&world.up);
    }
    std::fs::write(world.up.dir.path().join("go"), "").expect("writes");
    for run in [&first, &second] {
        let ended = wait_for("the end", || {
            let shown = world.shown(run);
            shown["finished"].is_string().then_some(shown)
        })
        .unwrap_or_else(|e| panic!("{e}: {}", world.up.logs()));
        assert_eq!(ended["state"], "succeeded", "{ended}");
    }
    assert_eq!(world.written()[0], ["x"]);
    Audit::of(&world.up).holds();
}
