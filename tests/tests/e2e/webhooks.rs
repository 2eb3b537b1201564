//! From a push to a run: webhooks and triggers with real programs, signed and
//! sent as somebody with a shell would.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use muster_tests::invariants::Audit;
use muster_tests::{Up, finish, lines, signal, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

const SECRET: &str = "correct horse battery staple";
const COMMIT: &str = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";

fn write(path: &Path, text: &str) {
    let mut file = std::fs::File::create(path).expect("made");
    let private = std::fs::Permissions::from_mode(0o600);
    file.set_permissions(private).expect("private");
    file.write_all(text.as_bytes()).expect("written");
}

fn push(commit: &str) -> String {
    json!({
        "ref": "refs/heads/main",
        "before": "6113728f27ae82c7b1a177c8d03f9e96e0adf246",
        "after": commit,
        "repository": { "name": "webapp", "full_name": "acme/webapp", "html_url": "https://github.com/acme/webapp" },
        "pusher": { "name": "bruno" },
        "commits": [{ "id": commit, "message": "Cache the price list", "author": { "name": "Bruno" } }],
        "head_commit": { "id": commit, "message": "Cache the price list" }
    })
    .to_string()
}

/// Declares a webhook and a trigger, and stores what it runs: it leaves the
/// commit in a file of each node.
fn prepare(up: &Up) {
    write(
        &up.dir.path().join("hooks.toml"),
        &format!(
            "[hooks.github]\nkind = \"github\"\nsecret = \"{SECRET}\"\n\n\
             [triggers.deploy-main]\n\
             when = {{ kind = \"git.push\", hook = \"github\", data.ref = \"refs/heads/main\" }}\n\
             scenario = \"deploy\"\nparams = {{ commit = \"$.head_commit.id\" }}\nrole = \"operator\"\n"
        ),
    );
}

fn store(up: &Up) {
    let dir = up.dir.path();
    let script = format!(
        "scenario(\"Deploy a commit\");\nparam(\"commit\", #{{ matches: \"^[0-9a-f]{{40}}$\" }});\n\
         target(\"role=web\");\nfn run(p) {{\n    \
         command([\"sh\", \"-c\", \"echo \\\"$1\\\" >> \\\"$2\\\"\", \"x\", p.commit, `{}/${{node().name}}.lines`]);\n}}\n",
        dir.display()
    );
    let file = dir.join("deploy.rhai");
    write(&file, &script);
    let file = file.to_string_lossy().into_owned();
    up.muster(&["scenario", "put", &file]).exits(0);
}

fn deployed(up: &Up) -> Vec<Vec<String>> {
    let file = |node: &str| up.dir.path().join(format!("{node}.lines"));
    ["web-01", "web-02"].map(|node| lines(&file(node))).to_vec()
}

fn curl(up: &Up, args: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "60"]).args(args);
    command.env_remove("http_proxy").current_dir(up.dir.path());
    command
}

/// Signs with openssl, and sends with curl; the status of the answer.
fn deliver(up: &Up, id: &str, body: &str) -> String {
    let file: PathBuf = up.dir.path().join("push.json");
    write(&file, body);
    let mut openssl = Command::new("openssl");
    openssl
        .args(["dgst", "-sha256", "-hmac", SECRET, "-hex"])
        .arg(&file);
    let said = finish(openssl).exits(0).out;
    let signature = said
        .trim()
        .rsplit(' ')
        .next()
        .expect("a signature")
        .to_owned();
    let command = curl(
        up,
        &[
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--data-binary",
            "@push.json",
            "-H",
            "Content-Type: application/json",
            "-H",
            "X-GitHub-Event: push",
            "-H",
            &format!("X-GitHub-Delivery: {id}"),
            "-H",
            &format!("X-Hub-Signature-256: sha256={signature}"),
            &format!("{}/hooks/github", up.url()),
        ],
    );
    finish(command).out
}

fn events(up: &Up, kind: &str) -> Vec<Value> {
    up.muster(&["events", "--kind", kind, "--json"])
        .exits(0)
        .json_lines()
}

fn started(up: &Up) -> String {
    let event = wait_for("the trigger has started its run", || {
        // The broker may be starting.
        let asked = finish(up.command(&["events", "--kind", "trigger.started", "--json"]));
        (asked.code == 0).then(|| asked.json_lines().pop())?
    });
    let event = event.expect("an event");
    event["data"]["run"].as_str().expect("a run").to_owned()
}

#[test]
fn a_signed_push_becomes_the_run_of_its_commit_seen_live_by_curl() {
    let mut up = Up::not_yet(&["web-01:role=web", "web-02:role=web"]).expect("prepared");
    prepare(&up);
    up.launch().expect("starts");
    store(&up);

    // What it would do is said beforehand.
    write(&up.dir.path().join("test.json"), &push(COMMIT));
    let file = up
        .dir
        .path()
        .join("test.json")
        .to_string_lossy()
        .into_owned();
    up.muster(&[
        "hook",
        "test",
        "github",
        "--file",
        &file,
        "--header",
        "X-GitHub-Event: push",
    ])
    .exits(0)
    .shows(&[
        "git.push  acme/webapp",
        "trigger deploy-main: would run deploy",
        COMMIT,
    ]);
    assert_eq!(deployed(&up), [[""; 0], [""; 0]]);

    // Whoever follows all events sees it come.
    let token = up.token().expect("a token");
    let bearer = format!("Authorization: Bearer {token}");
    let mut watcher = curl(
        &up,
        &[
            "-N",
            "-H",
            &bearer,
            &format!("{}/v1/events/watch?kind=run.ended,git.push", up.url()),
        ],
    )
    .stdout(Stdio::piped())
    .spawn()
    .expect("curl runs");

    assert_eq!(deliver(&up, "d-1", &push(COMMIT)), "204");
    let run = started(&up);
    // The run, live, to its end.
    let live = finish(curl(
        &up,
        &[
            "-N",
            "-H",
            &bearer,
            &format!("{}/v1/runs/{run}/events", up.url()),
        ],
    ));
    assert!(live.out.contains("event: run_created"), "{live:#?}");
    assert!(live.out.contains("event: run_finished"), "{live:#?}");
    assert_eq!(deployed(&up), [[COMMIT], [COMMIT]]);
    let ended = wait_for("its end is told", || events(&up, "run.ended").pop()).expect("told");
    assert_eq!(ended["data"]["state"], "succeeded");
    assert_eq!(ended["data"]["principal"], "trigger:deploy-main");
    assert_eq!(ended["data"]["door"], "hook");

    // Redelivered: nothing more.
    assert_eq!(deliver(&up, "d-1", &push(COMMIT)), "204");
    assert_eq!(events(&up, "git.push").len(), 1);
    assert_eq!(events(&up, "trigger.started").len(), 1);
    up.muster(&["hook", "list"]).exits(0).shows(&["github"]);
    up.muster(&["trigger", "list"])
        .exits(0)
        .shows(&["deploy-main"]);
    watcher.kill().expect("it ends");
    let seen = watcher.wait_with_output().expect("its output");
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.contains("\"type\":\"git.push\""), "{seen}");
    Audit::of(&up).holds();
}

#[test]
fn a_push_makes_one_run_however_often_the_broker_is_killed() {
    let mut up = Up::not_yet(&["web-01:role=web", "web-02:role=web"]).expect("prepared");
    prepare(&up);
    let hold = up.hold().expect("checkpoints");
    up.launch().expect("starts");
    store(&up);
    // The run is made, and that it is made is not written down.
    hold.hold("broker.trigger.started");
    assert_eq!(deliver(&up, "d-1", &push(COMMIT)), "204");
    hold.came("broker.trigger.started").expect("it comes there");
    let broker = up.pid("broker").expect("a broker");
    signal(broker, Signal::KILL).expect("killed");
    hold.release("broker.trigger.started");
    // `muster up` starts another one, which looks at the event again.
    let run = started(&up);
    up.muster(&["runs", "watch", &run]).exits(0);
    assert_eq!(deliver(&up, "d-1", &push(COMMIT)), "204");
    // Another one, so that everything before it was looked at.
    let other = COMMIT.replace('0', "1");
    assert_eq!(deliver(&up, "d-2", &push(&other)), "204");
    wait_for("the second push is deployed", || {
        (deployed(&up).iter().all(|lines| lines.len() >= 2)).then_some(())
    })
    .expect("deployed");
    let both = vec![COMMIT.to_owned(), other];
    assert_eq!(deployed(&up), [both.clone(), both]);
    let runs = up.muster(&["runs", "list", "--json"]).exits(0).list();
    let runs: Vec<&Value> = runs
        .iter()
        .filter(|run| run["scenario"] == "deploy")
        .collect();
    assert_eq!(runs.len(), 2, "{runs:#?}");
    Audit::of(&up).holds();
}
