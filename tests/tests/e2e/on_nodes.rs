//! What nodes do with functions of scenarios, and what people see of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use muster_tests::{Said, Up, finish, processes, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

const NODES: [&str; 2] = ["web-01:role=web", "web-02:role=web"];

const APP: &str = r#"
scenario("Say who is there");
param("dir", #{ help: "where" });
param("fails", #{ required: false, help: "the node that fails" });
target("role=web");
allow_check();

fn run(p) {
    let conf = file(`${p.dir}/${node().name}.conf`).content("listen = 80\n", #{ mode: "0600" });
    log("escape \x1b[2J");
    if conf.changed { emit("deployed", #{ version: "1.4.2", on: node().name }); }
    if p.fails == node().name { throw "no room"; }
    #{ port: 80 }
}
"#;

fn put(up: &Up, name: &str, text: &str) -> PathBuf {
    let path = up.dir.path().join(format!("{name}.rhai"));
    fs::write(&path, text).expect("written");
    up.muster(&["scenario", "put", &path.display().to_string()])
        .exits(0);
    path
}

fn run(up: &Up, name: &str, params: &[String], more: &[&str]) -> Said {
    let mut args = vec!["scenario", "run", name, "--yes"];
    for param in params {
        args.extend(["-p", param]);
    }
    args.extend(more);
    up.muster(&args)
}

fn events(up: &Up, kind: &str) -> Vec<Value> {
    let mut all = up
        .muster(&["events", "--json", "--limit", "500"])
        .exits(0)
        .json_lines();
    if let [Value::Array(list)] = all.as_slice() {
        all = list.clone();
    }
    all.retain(|event| event["type"] == kind);
    all
}

#[test]
fn what_a_function_changes_says_and_returns_reaches_people_and_its_events_the_cluster_once() {
    let up = Up::start(&NODES).expect("starts");
    put(&up, "app", APP);
    let dir = format!("dir={}", up.dir.path().display());

    let dry = run(&up, "app", std::slice::from_ref(&dir), &["--dry-run"]).exits(0);
    assert!(dry.out.contains("+listen = 80"), "{dry:?}");
    assert!(!up.dir.path().join("web-01.conf").exists());
    assert_eq!(events(&up, "scenario.deployed").len(), 0);

    let did = run(&up, "app", std::slice::from_ref(&dir), &[]).exits(0);
    for part in [
        "changed: file ",
        "escape \\x1b[2J",
        "{\"port\":80}",
        "1 changed",
    ] {
        assert!(did.out.contains(part), "{part}: {did:?}");
    }
    assert!(!did.out.contains('\x1b'), "{did:?}");
    assert!(up.dir.path().join("web-02.conf").exists());
    // The second time nothing is to do, and equal answers are together.
    let again = run(&up, "app", std::slice::from_ref(&dir), &[]).exits(0);
    assert!(again.out.contains("1 unchanged"), "{again:?}");
    assert_eq!(again.out.matches("{\"port\":80}").count(), 1, "{again:?}");
    let told = events(&up, "scenario.deployed");
    let mut on: Vec<&str> = told.iter().filter_map(|e| e["subject"].as_str()).collect();
    on.sort_unstable();
    assert_eq!(on, ["web-01", "web-02"], "{told:?}");
    assert_eq!(told[0]["data"]["version"], "1.4.2");

    let fails = [dir, "fails=web-02".to_owned()];
    let failed = run(&up, "app", &fails, &["--json"]).exits(1);
    let lines = failed.json_lines();
    let notes = lines
        .iter()
        .filter(|l| l["type"] == "output" && l["stream"] == "note");
    assert!(notes.count() >= 2, "{failed:?}");
    let value = lines
        .iter()
        .find(|l| l["type"] == "outcome" && l["node"] == "web-01")
        .expect("an outcome");
    assert_eq!(
        (&value["value"]["port"], &value["tally"]["unchanged"]),
        (&80.into(), &1.into())
    );
    let told = events(&up, "run.step-failed");
    assert_eq!(told.len(), 1, "{told:?}");
    let text = told[0]["data"]["text"].as_str().expect("a text");
    assert!(
        text.contains("web-02") && text.contains("no room"),
        "{text}"
    );
    // A broker that begins anew tells nothing a second time.
    let before = up.pid("broker").expect("runs");
    signal(before, Signal::KILL).expect("kills");
    wait_for("a new broker", || {
        up.pid("broker").ok().filter(|now| *now != before)
    })
    .expect("it is back");
    wait_for("it to be ready", || {
        let last = run(&up, "app", &fails[..1], &["--dry-run"]);
        (last.code == 0).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    assert_eq!(events(&up, "run.step-failed").len(), 1);
    assert_eq!(events(&up, "scenario.deployed").len(), 2);
}

/// Files below a directory that hold these bytes.
fn holding(dir: &Path, word: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(about) = fs::symlink_metadata(&path) else {
            continue;
        };
        if about.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(entries.map(|entry| entry.path()));
        } else if about.is_file()
            && let Ok(bytes) = fs::read(&path)
            && bytes.windows(word.len()).any(|w| w == word.as_bytes())
        {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_secret_comes_to_the_nodes_and_is_nowhere_else() {
    let up = Up::start(&NODES).expect("starts");
    let script = r#"
scenario("Use a token");
param("token", #{ secret: true });
param("dir", #{});
target("role=web");
fn run(p) {
    let sum = command(["sha256sum"], #{ stdin: p.token });
    command(["sh", "-c", `touch ${p.dir}/busy-${node().name}; while [ ! -e ${p.dir}/enough ]; do sleep 0.05; done; cat`], #{ stdin: p.token });
    log("it is " + p.token);
    sum.stdout
}
"#;
    put(&up, "token", script);
    // Beside, not below, what is looked through.
    let outside = tempfile::tempdir().expect("a directory");
    let token = "geheim-4711-sehr-geheim";
    let file = outside.path().join("token");
    fs::write(&file, format!("{token}\n")).expect("written");
    let dir = outside.path().display();
    let params = [format!("token=@{}", file.display()), format!("dir={dir}")];
    let said = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&up, "token", &params, &[]));
        wait_for("both nodes to work", || {
            let busy = |node: &str| outside.path().join(format!("busy-{node}")).exists();
            (busy("web-01") && busy("web-02")).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
        for (pid, command) in processes() {
            assert!(!command.contains(token), "{pid}: {command}");
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            assert!(
                !String::from_utf8_lossy(&environment).contains(token),
                "{pid}"
            );
        }
        fs::write(outside.path().join("enough"), "").expect("written");
        running.join().expect("it did not panic")
    })
    .exits(0);
    // `printf geheim-4711-sehr-geheim | sha256sum`
    assert!(
        said.out.contains(&sha256(token)),
        "it did not come whole: {said:?}"
    );
    assert!(
        said.out.contains("[redacted]") && !said.out.contains(token),
        "{said:?}"
    );
    let runs = up.muster(&["runs", "--json"]).exits(0).list();
    let id = runs[0]["id"].as_str().expect("an id");
    let shown = up.muster(&["runs", "show", id, "--json"]).exits(0);
    assert!(!shown.out.contains(token), "{shown:?}");
    assert!(shown.out.contains("$secret"), "{shown:?}");
    // The store, the twin, the nodes' journals, all logs.
    assert_eq!(holding(up.dir.path(), token), Vec::<PathBuf>::new());
    // It is looked for where the run is.
    assert!(!holding(up.dir.path(), "role=web").is_empty());
}

fn sha256(text: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", "printf %s \"$0\" | sha256sum", text]);
    let said = finish(command);
    said.out.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_scenario_runs_on_the_node_itself_and_is_told_later() {
    let up = Up::start(&NODES[..1]).expect("starts");
    let path = put(&up, "app", APP);
    let dir = format!("dir={}", up.dir.path().display());
    let local = |which: &str, more: &[&str]| {
        let mut command = up.bare("muster-agent");
        command.args(["local", "run", "--state"]);
        command
            .arg(up.agent_state("web-01"))
            .args([which, "-p", &dir]);
        command.args(more);
        finish(command)
    };
    let broker = up.pid("broker").expect("runs");
    signal(broker, Signal::STOP).expect("stops");
    let file = path.display().to_string();
    let dry = local(&file, &["--dry-run"]).exits(0);
    assert!(dry.err.contains("would change: file "), "{dry:?}");
    assert!(!up.dir.path().join("web-01.conf").exists());
    let did = local(&file, &["-p", "fails=web-01"]).exits(1);
    assert!(did.err.contains("no room"), "{did:?}");
    let wrong = local(&file, &["-p", "prot=1"]).exits(2);
    assert!(
        wrong.err.contains("not declared by this scenario"),
        "{wrong:?}"
    );
    let nowhere = local("app", &[]).exits(2);
    assert!(nowhere.err.contains("no broker has sent"), "{nowhere:?}");
    signal(broker, Signal::CONT).expect("goes on");
    let runs = wait_for("both runs to be told", || {
        let mut runs = up.muster(&["runs", "--json"]).list();
        runs.retain(|run| run["door"] == "local" && run["finished"].is_string());
        (runs.len() == 2).then_some(runs)
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    let title = |state: &str| {
        let run = runs.iter().find(|run| run["state"] == state);
        run.map(|run| run["title"].as_str().expect("a title").to_owned())
    };
    assert_eq!(title("succeeded").as_deref(), Some("app (dry run)"));
    assert_eq!(title("failed").as_deref(), Some("app"));
    let failed = runs
        .iter()
        .find(|run| run["state"] == "failed")
        .expect("one");
    let id = failed["id"].as_str().expect("an id");
    let shown = up.muster(&["runs", "show", id]).exits(0);
    assert!(shown.out.contains("changed: file "), "{shown:?}");
    // What a broker has sent is there by its name.
    run(&up, "app", std::slice::from_ref(&dir), &[]).exits(0);
    let named = local("app", &[]).exits(0);
    assert!(named.out.contains("{\"port\":80}"), "{named:?}");
}
