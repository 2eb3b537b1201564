//! Stored scenarios and schedules, as people keep them: from files and folders
//! into the cluster, to nodes that never had them, through crashes and
//! restores.

use std::path::{Path, PathBuf};

use muster_tests::invariants::Audit;
use muster_tests::{Said, Up, lines, signal, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

const NODES: [&str; 2] = ["web-01:role=web", "web-02:role=web"];

fn write(root: &Path, path: &str, text: &str) -> String {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    std::fs::write(&path, text).expect("written");
    path.to_string_lossy().into_owned()
}

/// A scenario that leaves a line in a file of each node.
fn script(dir: &Path, line: &str) -> String {
    let dir = dir.to_string_lossy();
    format!(
        "scenario(\"Leave {line}\");\ntarget(\"role=web\");\nfn run(p) {{\n    \
         let file = `{dir}/${{node().name}}.lines`;\n    \
         command([\"sh\", \"-c\", \"echo \\\"$1\\\" >> \\\"$2\\\"\", \"x\", \"{line}\", file]);\n}}\n"
    )
}

fn written(up: &Up) -> Vec<Vec<String>> {
    let file = |node: &str| up.dir.path().join(format!("{node}.lines"));
    ["web-01", "web-02"].map(|node| lines(&file(node))).to_vec()
}

fn scenario(up: &Up, args: &[&str]) -> Said {
    let mut all = vec!["scenario"];
    all.extend(args);
    up.muster(&all)
}

fn numbers(up: &Up, name: &str) -> Vec<u64> {
    let said = scenario(up, &["history", name, "--json"]).exits(0);
    let all = said.list();
    all.iter()
        .map(|v| v["version"].as_u64().expect("a number"))
        .collect()
}

#[test]
fn a_scenario_is_put_shown_changed_and_brought_back_and_what_runs_is_what_is_stored() {
    let up = Up::start(&NODES).expect("starts");
    let dir = up.dir.path().to_owned();
    let file = write(&dir, "leave.rhai", &script(&dir, "one"));
    scenario(&up, &["put", &file, "--note", "first"])
        .exits(0)
        .shows(&["leave v1 is stored"]);
    scenario(&up, &["put", &file])
        .exits(0)
        .shows(&["leave v1 is this already; nothing was stored"]);
    scenario(&up, &["run", "leave", "--yes"]).exits(0);
    assert_eq!(written(&up), [["one"], ["one"]]);

    write(&dir, "leave.rhai", &script(&dir, "two"));
    scenario(&up, &["put", &file, "--expect", "0"])
        .exits(2)
        .shows(&["version 1 was stored by admin"]);
    scenario(&up, &["put", &file])
        .exits(0)
        .shows(&["leave v2 is stored; v1 was stored by admin", "first"]);
    write(
        &dir,
        "leave.rhai",
        "scenario(\"x\");\nfn run(p) { pakage(\"x\"); }\n",
    );
    scenario(&up, &["put", &file]).exits(1).shows(&[
        "leave.rhai:2:13: unknown function `pakage`",
        "nothing was stored",
    ]);
    scenario(&up, &["show", "leave"]).exits(0).shows(&[
        "leave v2  Leave two",
        "stored by admin",
        "targets  role=web",
    ]);
    scenario(&up, &["show", "leave", "--version", "1"])
        .exits(0)
        .shows(&["leave v1  Leave one", "the newest is v2"]);
    scenario(&up, &["show", "leave", "--files"])
        .exits(0)
        .shows(&["scenario(\"Leave two\");"]);
    scenario(&up, &["list"])
        .exits(0)
        .shows(&["leave", "v2", "ping", "stock"]);

    scenario(&up, &["rollback", "leave", "1"])
        .exits(0)
        .shows(&["leave v3 is stored, with the content of v1"]);
    scenario(&up, &["rollback", "leave", "7"])
        .exits(2)
        .shows(&["there is no version 7 of `leave`, whose newest is 3"]);
    scenario(&up, &["run", "leave", "--yes"]).exits(0);
    scenario(&up, &["run", "leave", "--version", "2", "--yes"]).exits(0);
    assert_eq!(written(&up)[0], ["one", "one", "two"]);
    scenario(&up, &["remove", "leave"])
        .exits(0)
        .shows(&["leave is removed (v4)"]);
    scenario(&up, &["run", "leave", "--yes"])
        .exits(2)
        .shows(&["admin removed it"]);
    assert_eq!(numbers(&up, "leave"), [4, 3, 2, 1]);
    // What came with muster runs on nodes that have never heard of it.
    scenario(&up, &["run", "ping", "--on", "role=web", "--yes"]).exits(0);
    Audit::of(&up).holds();
}

#[test]
fn the_store_becomes_what_a_folder_holds() {
    let up = Up::start(&NODES[..1]).expect("starts");
    let dir = up.dir.path().to_owned();
    let folder = dir.join("scenarios");
    let place = folder.to_string_lossy().into_owned();
    write(&folder, "one.rhai", &script(&dir, "one"));
    write(
        &folder,
        "two/scenario.rhai",
        "scenario(\"Two\");\ntarget(\"role=web\");\nfn run(p) { file(\"/x\").template(\"a.j2\", #{}); }\n",
    );
    write(&folder, "two/a.j2", "a\nb\n");
    write(&folder, "README.md", "not one");
    write(&folder, "docs/x.md", "not one");
    write(&folder, ".git/config", "not one");
    let other = write(&dir, "other.rhai", &script(&dir, "other"));
    scenario(&up, &["put", &other]).exits(0);

    let dry = scenario(&up, &["sync", &place, "--dry-run"]).exits(0);
    let dry = dry.shows(&[
        "one  would be added  v1",
        "two  would be added  v1",
        "other  would be removed  v1 → v2",
        "3 scenarios: 2 added, 1 removed  (dry run: nothing is changed)",
    ]);
    assert!(dry.err.contains("docs: left out"), "{}", dry.err);
    scenario(&up, &["show", "other"]).exits(0);
    scenario(&up, &["sync", &place, "--note", "commit 1"])
        .exits(0)
        .shows(&["3 scenarios: 2 added, 1 removed"]);
    scenario(&up, &["show", "other"]).exits(2);
    scenario(&up, &["sync", &place])
        .exits(0)
        .shows(&["2 scenarios: 2 equal"]);

    write(&folder, "two/a.j2", "a\nc\n");
    write(&folder, "bad.rhai", "fn run(p) { nonsense(); }\n");
    scenario(&up, &["sync", &place])
        .exits(1)
        .shows(&["unknown function `nonsense`", "nothing was stored"]);
    assert_eq!(numbers(&up, "two"), [1]);
    std::fs::remove_file(folder.join("bad.rhai")).expect("removed");
    let said = scenario(&up, &["sync", &place, "--json"]).exits(0);
    let all = said.list();
    assert_eq!(all.len(), 1);
    assert_eq!((&all[0]["name"], &all[0]["to"]), (&json!("two"), &json!(2)));
    assert_eq!(all[0]["files"][0]["lines"], json!([" a", "-b", "+c"]));
    std::fs::remove_dir_all(&folder).expect("removed");
    std::fs::create_dir(&folder).expect("made");
    scenario(&up, &["sync", &place])
        .exits(2)
        .shows(&["there is no scenario in this folder; nothing was changed"]);
    scenario(&up, &["history", "two"])
        .exits(0)
        .shows(&["v2", "v1", "commit 1"]);
}

#[test]
fn scenarios_and_schedules_survive_a_crash_and_a_restore_on_an_empty_machine() {
    let mut up = Up::start(&NODES).expect("starts");
    let dir = up.dir.path().to_owned();
    let file = write(&dir, "leave.rhai", &script(&dir, "one"));
    scenario(&up, &["put", &file]).exits(0);
    up.muster(&[
        "schedule",
        "add",
        "nightly",
        "--cron",
        "0 3 * * *",
        "--scenario",
        "leave",
        "--jitter",
        "5m",
    ])
    .exits(0)
    .shows(&["schedule nightly runs leave at `0 3 * * *`, first "]);
    up.muster(&[
        "schedule",
        "add",
        "nightly",
        "--cron",
        "0 4 * * *",
        "--scenario",
        "leave",
    ])
    .exits(2)
    .shows(&["there is a schedule `nightly`"]);
    up.muster(&[
        "schedule",
        "add",
        "bad",
        "--cron",
        "at three",
        "--scenario",
        "leave",
    ])
    .exits(2)
    .shows(&["is not a time as in cron"]);
    up.muster(&[
        "schedule",
        "add",
        "bad",
        "--cron",
        "0 3 * * *",
        "--scenario",
        "leave",
        "-p",
        "x=1",
    ])
    .exits(2)
    .shows(&["this scenario has no parameters"]);
    up.muster(&["schedule", "list"])
        .exits(0)
        .shows(&["nightly", "0 3 * * *", "leave", "admin"]);
    let next = up
        .muster(&["schedule", "next", "-n", "4", "--json"])
        .exits(0);
    assert_eq!(next.list().len(), 4);

    // The broker is killed with the last answer.
    signal(up.pid("broker").expect("a broker"), Signal::KILL).expect("killed");
    wait_for("the broker to be back", || {
        let said = scenario(&up, &["show", "leave", "--json"]);
        (said.code == 0).then_some(())
    })
    .expect("back");
    scenario(&up, &["run", "leave", "--yes"]).exits(0);
    assert_eq!(written(&up), [["one"], ["one"]]);

    let backup = dir.join("backup").to_string_lossy().into_owned();
    up.muster(&["backup", &backup]).exits(0);
    up.muster(&["schedule", "remove", "nightly"]).exits(0);
    Audit::of(&up).holds();
    up.stop(Signal::TERM).expect("it ends");
    let state = dir.join("restored").to_string_lossy().into_owned();
    up.muster(&["restore", &backup, "--state", &state]).exits(0);
    let restored = Restored::start(&up, &dir.join("restored"));
    let said = restored.muster(&up, &["scenario", "show", "leave", "--json"]);
    let view: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        (&view["version"], &view["manifest"]["about"]),
        (&json!(1), &json!("Leave one"))
    );
    let said = restored.muster(&up, &["scenario", "show", "leave", "--files"]);
    assert!(said.contains("scenario(\"Leave one\");"), "{said}");
    let said = restored.muster(&up, &["schedule", "list"]);
    assert!(said.contains("nightly"), "{said}");
}

/// A second cluster, of the backup of the first.
struct Restored {
    child: std::process::Child,
    url: String,
    token: PathBuf,
}

impl Restored {
    fn start(up: &Up, state: &Path) -> Self {
        let port = muster_tests::free_port().expect("a port");
        let mut command = up.bare("muster");
        command
            .args(["up", "--state"])
            .arg(state)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let child = command.spawn().expect("starts");
        let restored = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
            token: state.join("admin.token"),
        };
        wait_for("the restored cluster", || {
            let said = restored.say(up, &["whoami"]);
            (said.code == 0).then_some(())
        })
        .expect("it comes up");
        restored
    }

    fn say(&self, up: &Up, args: &[&str]) -> Said {
        let mut command = up.bare("muster");
        command
            .args(args)
            .args(["--url", &self.url, "--token-file"])
            .arg(&self.token);
        muster_tests::finish(command)
    }

    fn muster(&self, up: &Up, args: &[&str]) -> String {
        self.say(up, args).exits(0).out
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        // It ends its NATS server with itself.
        let _ = signal(self.child.id(), Signal::TERM);
        let _ = self.child.wait();
    }
}
