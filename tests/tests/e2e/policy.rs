//! Who may do what: policies that are put as a folder, and what they keep
//! people, tokens and running scenarios from, with real nodes.

use std::path::PathBuf;

use muster_tests::invariants::Audit;
use muster_tests::{Said, Up, lines, wait_for};
use serde_json::Value;

use super::audit::{records, verify, wait_for_sink, with_sink};

const NODES: [&str; 3] = [
    "web-01:role=web",
    "web-02:role=web,zone=gva2",
    // Its name says what it is not.
    "web-db:role=db",
];

const PRINCIPALS: &str = r#"
[groups.developers]
[groups.seniors]

[principals.dev]
kind = "person"
groups = ["developers"]

[principals.sam]
kind = "person"
groups = ["seniors"]

[principals.bea]
kind = "person"
groups = ["seniors"]
"#;

/// What developers and seniors may, beside what muster comes with.
const OURS: &str = r#"
@id("read")
permit (principal in Role::"member", action in Action::"read", resource);

@id("answer")
permit (principal in Role::"member", action == Action::"answer-run", resource);

@id("developers.web")
permit (principal in Group::"developers", action == Action::"run", resource)
when { resource.roles.contains("web") };

@id("seniors.db")
@approvals("1")
permit (principal in Group::"seniors", action == Action::"run", resource)
when { resource.roles.contains("db") };
"#;

/// Nobody touches what is in a zone.
const CLOSED: &str = r#"
@id("zones are closed")
forbid (principal in Group::"developers", action == Action::"run", resource)
when { resource.hasTag("zone") };
"#;

/// Leaves a line in a file of the node; without a target of its own.
const LINE: &str = r#"
    scenario("Leave a line");
    param("text");
    fn run(p) {
        let file = `DIR/${node().name}.lines`;
        command(["sh", "-c", "printf '%s\n' \"$1\" >> \"$2\"", "x", p.text, file]);
    }
"#;

/// The same twice, with a question between.
const TWICE: &str = r#"
    scenario("Leave two lines");
    target("role=web");
    fn line(p) {
        let file = `DIR/${node().name}.lines`;
        command(["sh", "-c", "printf '%s\n' \"$1\" >> \"$2\"", "x", p.text, file]);
    }
    fn main(p) {
        on(targets(), "line", #{ text: "first" });
        ask("Go on?", ["yes"]);
        on(targets(), "line", #{ text: "second" });
    }
"#;

struct World {
    up: Up,
    sink: PathBuf,
    stock: String,
}

impl World {
    fn start() -> Self {
        let (up, sink) = with_sink(&NODES);
        let dir = up.dir.path().join("stock");
        let shown = dir.to_string_lossy().into_owned();
        up.muster(&["policy", "show", "--out", &shown]).exits(0);
        let stock = std::fs::read_to_string(dir.join("policies.cedar")).expect("it is shown");
        let world = Self { up, sink, stock };
        for (name, script) in [("line", LINE), ("twice", TWICE)] {
            let file = world.up.dir.path().join(format!("{name}.rhai"));
            let dir = world.up.dir.path().to_string_lossy().into_owned();
            std::fs::write(&file, script.replace("DIR", &dir)).expect("writes");
            let file = file.to_string_lossy().into_owned();
            world.up.muster(&["scenario", "put", &file]).exits(0);
        }
        world
    }

    /// Puts policies on top of what muster comes with.
    fn put(&self, more: &[&str]) {
        let dir = self.up.dir.path().join("policy");
        std::fs::create_dir_all(&dir).expect("makes");
        let text = format!("{}\n{}", self.stock, more.join("\n"));
        std::fs::write(dir.join("policies.cedar"), text).expect("writes");
        std::fs::write(dir.join("principals.toml"), PRINCIPALS).expect("writes");
        let dir = dir.to_string_lossy().into_owned();
        self.up.muster(&["policy", "check", &dir]).exits(0);
        self.up.muster(&["policy", "put", &dir]).exits(0);
    }

    /// A token that may do what policies permit, and its id.
    fn token(&self, name: &str, more: &[&str]) -> (String, String) {
        let mut args = vec![
            "token", "create", "--for", name, "--role", "member", "--json",
        ];
        args.extend(more);
        let made = self.up.muster(&args).exits(0).json_lines().remove(0);
        let of = |key: &str| made[key].as_str().expect("text").to_owned();
        (of("token"), of("id"))
    }

    fn line(&self, token: &str, on: &str, text: &str) -> Said {
        let text = format!("text={text}");
        let args = ["scenario", "run", "line", "-p", &text, "--on", on, "--json"];
        self.up.muster_as(token, &args)
    }

    fn written(&self) -> Vec<Vec<String>> {
        ["web-01", "web-02", "web-db"]
            .map(|node| lines(&self.up.dir.path().join(format!("{node}.lines"))))
            .to_vec()
    }

    fn runs(&self) -> usize {
        let args = ["runs", "list", "--json", "--limit", "200"];
        self.up.muster(&args).exits(0).list().len()
    }

    fn shown(&self, run: &str) -> Value {
        let said = self.up.muster(&["runs", "show", run, "--json"]);
        serde_json::from_str(said.out.trim()).unwrap_or(Value::Null)
    }

    fn until(&self, what: &str, run: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || {
            let shown = self.shown(run);
            is(&shown).then_some(shown)
        })
        .unwrap_or_else(|e| panic!("{e}: {}", self.shown(run)))
    }
}

fn each<const N: usize>(all: [&[&str]; N]) -> Vec<Vec<String>> {
    let own = |some: &[&str]| some.iter().map(|line| (*line).to_owned()).collect();
    all.map(own).to_vec()
}

#[test]
fn a_developer_may_deploy_to_web_and_is_denied_whole_beyond_it() {
    let world = World::start();
    let (dev, dev_id) = world.token("dev", &[]);
    let up = &world.up;
    // A member may nothing by itself.
    up.muster_as(&dev, &["nodes"])
        .exits(4)
        .says(&["no policy permits it"]);
    world.put(&[OURS]);
    up.muster_as(&dev, &["nodes"]).exits(0);
    let run = up
        .muster_as(&dev, &["run", "role=web", "--json", "--", "true"])
        .exits(0)
        .run();
    world.line(&dev, "role=web", "one").exits(0);
    assert_eq!(world.written(), each([&["one"], &["one"], &[]]));

    // One class that is not allowed, and nothing of it is: by role, by a name
    // that begins as web servers' do, and by what nodes say of themselves.
    let (before, witness) = (world.runs(), up.dir.path().join("witness"));
    let script = format!("echo $MUSTER_NODE >> {}", witness.display());
    for on in [
        "role=web or role=db",
        "name=web-*",
        "name=web-db",
        "os!=plan9",
        "cpus>=1",
    ] {
        let parts = [
            "dev (person) may not run",
            "role=db",
            "no policy permits it",
        ];
        up.muster_as(&dev, &["run", on, "--yes", "--shell", "--", &script])
            .exits(4)
            .says(&parts);
        world.line(&dev, on, "two").exits(4).says(&parts);
    }
    up.muster_as(&dev, &["policy", "put", "/nonexistent"])
        .exits(2);
    for args in [
        vec!["node", "set", "web-db", "role=web"],
        vec!["freeze", "--why", "x"],
        vec!["token", "list"],
    ] {
        let said = up.muster_as(&dev, &args);
        assert!(said.code == 4 || said.code == 2, "{args:?}: {said:?}");
    }
    assert_eq!(world.runs(), before, "a run was made");
    assert_eq!(lines(&witness).len(), 0, "a node got something");
    assert_eq!(world.written(), each([&["one"], &["one"], &[]]));
    // The same words beforehand.
    let explained = up
        .muster(&[
            "policy",
            "explain",
            "dev",
            "run",
            "--scenario",
            "line",
            "-p",
            "text=x",
            "--on",
            "role=web or role=db",
        ])
        .exits(4);
    assert!(
        explained.out.contains("role=db: permitted by none"),
        "{explained:?}"
    );

    // Other policies count from the next request on.
    world.put(&[OURS, CLOSED]);
    world
        .line(&dev, "role=web", "three")
        .exits(4)
        .says(&["zone=gva2", "zones are closed"]);
    world.line(&dev, "name=web-01", "three").exits(0);
    assert_eq!(world.written(), each([&["one", "three"], &["one"], &[]]));

    // What is in the record: who, through which door, what came of it.
    let of_run = records(up, &["--run", &run]);
    assert_eq!(of_run[0]["who"]["principal"], "dev", "{of_run:?}");
    assert_eq!(of_run[0]["who"]["door"], "cli");
    assert_eq!(of_run[0]["who"]["token"], dev_id.as_str());
    assert!(of_run[0]["who"]["origin"]["address"].is_string());
    let denied = records(up, &["--denied", "--principal", "dev", "--action", "run"]);
    assert!(denied.len() >= 11, "{denied:#?}");
    for record in &denied {
        let why = record["why"].as_str().expect("why");
        assert!(
            why.contains("role=db") || why.contains("zones are closed"),
            "{record}"
        );
    }
    let puts = records(up, &["--action", "manage-policies"]);
    assert_eq!(puts.len(), 2, "{puts:#?}");
    wait_for_sink(&world.sink, "zones are closed");
    let out = world.sink.to_string_lossy().into_owned();
    verify(up, &["--checkpoint", &out]).exits(0);
    Audit::of(up).holds();
}

#[test]
fn another_policy_counts_for_what_a_running_main_has_still_to_do() {
    let world = World::start();
    world.put(&[OURS]);
    let (dev, _) = world.token("dev", &[]);
    let up = &world.up;
    let args = ["scenario", "run", "twice", "--detach", "--json"];
    let run = up.muster_as(&dev, &args).exits(0).run();
    world.until("it asks", &run, |shown| shown["waits"]["for"] == "answer");
    assert_eq!(world.written(), each([&["first"], &["first"], &[]]));
    world.put(&[OURS, CLOSED]);
    up.muster(&["runs", "answer", &run, "yes"]).exits(0);
    let shown = world.until("its end", &run, |shown| shown["finished"].is_string());
    assert_eq!(shown["state"], "failed", "{shown}");
    assert!(shown.to_string().contains("zones are closed"), "{shown}");
    assert_eq!(world.written(), each([&["first"], &["first"], &[]]));
    // And back: the same scenario does both.
    world.put(&[OURS]);
    let run = up.muster_as(&dev, &args).exits(0).run();
    world.until("it asks", &run, |shown| shown["waits"]["for"] == "answer");
    up.muster(&["runs", "answer", &run, "yes"]).exits(0);
    let shown = world.until("its end", &run, |shown| shown["finished"].is_string());
    assert_eq!(shown["state"], "succeeded", "{shown}");
    let all: &[&str] = &["first", "first", "second"];
    assert_eq!(world.written(), each([all, all, &[]]));
    verify(up, &[]).exits(0);
    Audit::of(up).holds();
}

#[test]
fn approvals_that_a_policy_demands_are_asked_for_and_tokens_end() {
    let world = World::start();
    world.put(&[OURS]);
    let up = &world.up;
    let (sam, _) = world.token("sam", &[]);
    let (bea, bea_id) = world.token("bea", &[]);
    let (dev, _) = world.token("dev", &[]);
    let args = [
        "scenario", "run", "line", "-p", "text=x", "--on", "role=db", "--detach", "--json",
    ];
    let run = up.muster_as(&sam, &args).exits(0).run();
    let shown = world.until("it waits", &run, |shown| {
        shown["waits"]["for"] == "approvals"
    });
    assert_eq!(shown["waits"]["needed"], 1, "{shown}");
    // Four eyes are not two, and not those of somebody who may not run it.
    let own = up.muster_as(&sam, &["runs", "approve", &run]);
    assert_ne!(own.code, 0, "{own:?}");
    up.muster_as(&dev, &["runs", "approve", &run]).exits(4);
    assert_eq!(world.written(), each::<3>([&[], &[], &[]]));
    up.muster_as(&bea, &["runs", "approve", &run]).exits(0);
    let shown = world.until("its end", &run, |shown| shown["finished"].is_string());
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(world.written(), each([&[], &[], &["x"]]));
    let approved = records(up, &["--run", &run, "--action", "approve-run"]);
    let by_bea = |r: &&Value| r["who"]["principal"] == "bea" && r["verdict"] == "allowed";
    assert_eq!(approved.iter().filter(by_bea).count(), 1, "{approved:#?}");

    // A token that was taken back, and one whose time is over.
    up.muster_as(&bea, &["nodes"]).exits(0);
    up.muster(&["token", "revoke", &bea_id]).exits(0);
    up.muster_as(&bea, &["nodes"]).exits(4);
    let (short, _) = world.token("dev", &["--expires", "3s"]);
    wait_for("its time to be over", || {
        (up.muster_as(&short, &["whoami"]).code == 4).then_some(())
    })
    .expect("it is");
    let before = world.runs();
    world.line(&short, "role=web", "late").exits(4);
    world.line(&bea, "role=db", "late").exits(4);
    assert_eq!(world.runs(), before);
    assert_eq!(world.written(), each([&[], &[], &["x"]]));
    let strangers = records(up, &["--denied", "--action", "authenticate"]);
    assert!(!strangers.is_empty());
    verify(up, &[]).exits(0);
    Audit::of(up).holds();
}
