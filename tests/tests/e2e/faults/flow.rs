//! A scenario with a `main`, real agents, and the broker killed with -9 at
//! every position of its journal: the end is the one without a crash, and
//! what it did on the nodes it did once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use muster_tests::invariants::Audit;
use muster_tests::stops::{Position, Stops, kinds};
use muster_tests::{Said, Up, lines, signal, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

const NAMES: [&str; 3] = ["a-1", "a-2", "b-1"];

/// A loop, `parallel`, `sleep`, `ask`, `random`, a caught error and undo. Every
/// function writes down that it was done; WITNESS is the directory.
const SCENARIO: &str = r#"
scenario("Everything that survives a crash");
param("version", #{ help: "what to write" });
target("role=a");
also("others", "role=b");

fn did(what) { command(["/bin/sh", "-c", "echo \"$1\" >> \"WITNESS/$2\"", "sh", what, node().name]); }
fn drain(p) { did(`drain ${p.hosts}`); }
fn restore(p) { did(`restore ${p.hosts}`); }
fn upgrade(p) { did(`upgrade ${p.version}`); p.version }
fn back(p) { did("back"); }
fn check(p) { did("check"); node().name }
fn breaks(p) { did("breaks"); command(["/bin/false"]); }

fn main(p) {
    let seen = [];
    for batch in targets().batches(1) {
        on(nodes("others"), "drain", #{ hosts: batch.names }).undo("restore");
        let r = on(batch, "upgrade", p).undo("back");
        for name in batch.names { seen.push(r[name].value); }
        sleep("20ms");
    }
    let both = parallel([step(targets(), "check"), step(nodes("others"), "check")]);
    let caught = "";
    try { on(nodes("others"), "breaks"); } catch (e) { caught = `${e}`; }
    let said = ask("Go on?", ["yes", "no"]);
    let dice = random(1, 6);
    log(`${said}, ${caught}, ${dice > 0}`);
    abort(`seen ${seen}, ${both[0].values["a-2"]}, ${caught}`);
}
"#;

struct Scene {
    up: Up,
    stops: Stops,
    witness: PathBuf,
    count: u32,
}

/// What counts in the end.
#[derive(Debug, PartialEq)]
struct End {
    told: Value,
    did: BTreeMap<String, Vec<String>>,
}

fn never(_: &Position, _: &[Position]) -> bool {
    false
}

impl Scene {
    fn start() -> Self {
        let mut up = Up::not_yet(&["a-1:role=a", "a-2:role=a", "b-1:role=b"]).expect("a directory");
        let stops = up.stops().expect("the programs have checkpoints");
        up.launch().expect("starts");
        let witness = up.dir.path().join("witness");
        std::fs::create_dir(&witness).expect("a directory");
        let file = up.dir.path().join("survives.rhai");
        let text = SCENARIO.replace("WITNESS", &witness.to_string_lossy());
        std::fs::write(&file, text).expect("writes");
        let file = file.to_string_lossy().into_owned();
        up.muster(&["scenario", "check", &file]).exits(0);
        up.muster(&["scenario", "put", &file]).exits(0);
        Self {
            up,
            stops,
            witness,
            count: 0,
        }
    }

    /// Each run writes another version.
    fn version(&self) -> String {
        format!("v{}x", self.count)
    }

    fn did(&self, name: &str) -> Vec<String> {
        lines(&self.witness.join(name))
    }

    /// Begins a run; its id comes from the checkpoints, because whoever asked
    /// may get no answer.
    fn begin(&mut self) -> std::thread::JoinHandle<Said> {
        self.count += 1;
        for name in NAMES {
            let _ = std::fs::remove_file(self.witness.join(name));
        }
        let version = format!("version={}", self.version());
        let args = [
            "scenario", "run", "survives", "-p", &version, "--yes", "--detach", "--json",
        ];
        let command = self.up.command(&args);
        std::thread::spawn(move || muster_tests::finish(command))
    }

    fn show(&self, run: &str) -> Option<Value> {
        let said = self.up.muster(&["runs", "show", run, "--json"]);
        (said.code == 0).then(|| serde_json::from_str(&said.out).ok())?
    }

    /// Answers its question, and waits for its end.
    fn end(&self, run: &str, what: &str) -> End {
        let mut last = None;
        let view = wait_for("the end of the run", || {
            let view = self.show(run)?;
            last = Some(view.clone());
            if view["waits"]["for"] == "answer" {
                let _ = self.up.muster(&["runs", "answer", run, "yes"]);
            }
            let over = view["finished"].is_string();
            over.then_some(view)
        })
        .unwrap_or_else(|e| panic!("{what}: {e}: {last:#?} {}", self.up.logs()));
        let steps = |of: &Value| -> Vec<Value> {
            let all = of.as_array().into_iter().flatten();
            all.map(|step| {
                json!([
                    step["name"],
                    step["nodes"],
                    step["summary"],
                    step["stopped"]
                ])
            })
            .collect()
        };
        let main = &view["main"];
        let calls: Vec<Value> = main["calls"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|call| json!([call["name"], call["answer"], steps(&call["steps"])]))
            .collect();
        let results: Vec<Value> = view["results"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|node| json!([node["node"], node["outcome"]]))
            .collect();
        let logs: Vec<&Value> = main["logs"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|l| &l["text"])
            .collect();
        let error = main["error"].as_str().unwrap_or_default();
        let plain = |text: &str| text.replace(&self.version(), "N");
        let told = json!({
            "state": view["state"], "calls": calls, "undo": steps(&main["undo"]), "logs": logs,
            "error": plain(error.lines().next().unwrap_or_default()),
            "results": results, "answered": main["answered"],
        });
        let did = NAMES.iter().map(|name| {
            let lines = self.did(name).iter().map(|line| plain(line)).collect();
            ((*name).to_owned(), lines)
        });
        End {
            told,
            did: did.collect(),
        }
    }

    /// Where a run that nobody disturbs comes by, and how it ends.
    fn dry_run(&mut self) -> (Vec<Position>, End) {
        self.stops.watch(never, None);
        let said = self.begin().join().expect("it ends").exits(0);
        let end = self.end(&said.run(), "undisturbed");
        let seen = self.stops.seen();
        self.stops.release();
        let shown = self.up.muster(&["runs", "show", &said.run()]).exits(0);
        for part in [
            "▸ upgrade",
            "▸ asked: Go on?",
            "1 failed, stopped",
            "↩ undo back",
        ] {
            assert!(shown.out.contains(part), "no `{part}` in {shown:#?}");
        }
        let of_journal = |p: &Position| p.point.starts_with("broker.journal.");
        (seen.into_iter().filter(of_journal).collect(), end)
    }

    fn kill_at(&mut self, position: &Position, expected: &End) {
        let what = format!("the broker killed when {position}");
        wait_for("all nodes to answer", || {
            (self.up.muster(&["ping", "*"]).code == 0).then_some(())
        })
        .unwrap_or_else(|e| panic!("before {what}: {e}: {}", self.up.logs()));
        self.stops.watch(never, Some(position));
        let asked = self.begin();
        // Its question is answered by somebody who asks again and again; while
        // it is held, nobody gets an answer.
        let run = wait_for("the position", || {
            if let Some(run) = self.stops.is_held() {
                return Some(run.to_string());
            }
            if let Some(run) = self.stops.run() {
                let command = self
                    .up
                    .command(&["runs", "answer", &run.to_string(), "yes"]);
                std::thread::spawn(move || muster_tests::finish(command));
            }
            None
        })
        .unwrap_or_else(|e| {
            panic!(
                "{what}: {e}: {:?} {}",
                kinds(&self.stops.seen()),
                self.up.logs()
            )
        });
        kill(&self.up, "broker");
        self.stops.release();
        let said = asked.join().expect("it ends");
        self.up.heard(said);
        let end = self.end(&run, &what);
        assert_eq!(&end, expected, "{what}");
    }
}

/// Kills a part of `muster up`, and sees it dead.
fn kill(up: &Up, part: &str) {
    let pid = up.pid(part).expect("it runs");
    signal(pid, Signal::KILL).expect("it runs");
    wait_for("its end", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().unwrap_or_default();
        (state.is_empty() || state.starts_with('Z')).then_some(())
    })
    .expect("SIGKILL ends it");
}

/// Whether a run of which only so much is written down was ever begun.
fn never_begun(position: &Position) -> bool {
    matches!(position.what.as_str(), "created" | "targets")
}

fn at_each(part: usize, parts: usize) {
    let mut scene = Scene::start();
    let (all, expected) = scene.dry_run();
    let found = kinds(&all);
    for kind in [
        "called",
        "answered",
        "recorded",
        "main_ended",
        "undoing",
        "undone",
        "outcomes",
        "finished",
    ] {
        for point in ["before", "after"] {
            let kind = format!("broker.journal.{point} {kind}");
            assert!(found.contains_key(&kind), "no {kind} in {found:#?}");
        }
    }
    assert_eq!(expected.told["state"], "failed", "{expected:#?}");
    let each = &expected.did;
    let count = |name: &str, what: &str| each[name].iter().filter(|l| l.starts_with(what)).count();
    assert_eq!(
        (
            count("a-1", "upgrade"),
            count("a-1", "back"),
            count("a-1", "check")
        ),
        (1, 1, 1)
    );
    assert_eq!(
        (
            count("b-1", "drain"),
            count("b-1", "restore"),
            count("b-1", "breaks")
        ),
        (2, 2, 1)
    );
    let positions = all.iter().filter(|p| !never_begun(p)).enumerate();
    let mut killed = 0;
    for (index, position) in positions {
        if index % parts == part {
            scene.kill_at(position, &expected);
            killed += 1;
        }
    }
    assert!(killed > 5, "only {killed} of {}", all.len());
    Audit::of(&scene.up).holds();
}

#[test]
fn the_broker_is_killed_at_each_position_first_sixth() {
    at_each(0, 6);
}

#[test]
fn the_broker_is_killed_at_each_position_second_sixth() {
    at_each(1, 6);
}

#[test]
fn the_broker_is_killed_at_each_position_third_sixth() {
    at_each(2, 6);
}

#[test]
fn the_broker_is_killed_at_each_position_fourth_sixth() {
    at_each(3, 6);
}

#[test]
fn the_broker_is_killed_at_each_position_fifth_sixth() {
    at_each(4, 6);
}

#[test]
fn the_broker_is_killed_at_each_position_last_sixth() {
    at_each(5, 6);
}
