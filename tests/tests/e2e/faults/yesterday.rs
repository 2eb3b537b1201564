//! Yesterday's JetStream directory is put back: what people were told is
//! there again, nothing is done twice, and what is gone for good is said.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::ConnectErrorKind;
use muster_broker::nats::credentials::Credentials;
use muster_tests::invariants::{Audit, Counter, connect};
use muster_tests::{Said, Up, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use super::{ended, enrol, machine, outcome_of, sh, works};

const NODES: [&str; 3] = ["a-1:role=web", "a-2:role=web", "a-3:role=old"];

/// What JetStream keeps.
fn store(up: &Up) -> PathBuf {
    let dir = up.state().join("nats").join("store");
    assert!(dir.is_dir(), "{} is not there", dir.display());
    dir
}

fn copy(from: &Path, to: &Path) {
    let line = format!("cp -a '{}' '{}'", from.display(), to.display());
    assert!(sh(&line), "{line}");
}

/// Stops everything, copies the directory, and starts again.
fn copied(up: &mut Up) -> PathBuf {
    up.stop(Signal::TERM).expect("ends");
    let to = up.dir.path().join("yesterday");
    copy(&store(up), &to);
    up.launch().expect("starts");
    to
}

/// Puts that directory in the place of the one that is there; nothing, when
/// there is none.
fn put(up: &Up, copy_of: Option<&Path>) {
    let store = store(up);
    std::fs::remove_dir_all(&store).expect("removes");
    if let Some(from) = copy_of {
        copy(from, &store);
    }
}

/// Kills the server alone, puts the directory back, and lets `muster up`
/// start it again.
fn put_under_the_broker(up: &Up, copy_of: Option<&Path>) {
    under_the_broker(up, || put(up, copy_of));
}

fn under_the_broker(up: &Up, change: impl FnOnce()) {
    let (keeper, nats) = (up.up_pid(), up.pid("nats-server").expect("it runs"));
    signal(keeper, Signal::STOP).expect("stops");
    signal(nats, Signal::KILL).expect("dies");
    wait_for("the end of the server", || {
        let stat = std::fs::read_to_string(format!("/proc/{nats}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    })
    .expect("it ends");
    change();
    signal(keeper, Signal::CONT).expect("goes on");
}

/// Everything that people were told.
struct Told {
    nodes: Vec<Value>,
    runs: Vec<(String, String)>,
    shown: Said,
    token: String,
    revoked: String,
    counter: Counter,
}

fn nodes(up: &Up) -> Option<Vec<Value>> {
    let said = up.muster(&["nodes", "--json"]);
    let some = |node: Value| {
        let keys = ["name", "serial", "roles", "labels"];
        keys.iter().map(|key| node[*key].clone()).collect::<Value>()
    };
    (said.code != 5).then(|| said.list().into_iter().map(some).collect())
}

fn runs(up: &Up) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = up.muster(&["runs", "--json"]).exits(0).list();
    let mut runs: Vec<_> = list
        .iter()
        .map(|run| (text(&run["id"]), text(&run["state"])))
        .collect();
    runs.sort();
    runs
}

fn made_token(up: &Up, who: &str) -> Value {
    let args = [
        "token", "create", "--for", who, "--role", "operator", "--json",
    ];
    up.muster(&args).exits(0).json_lines().remove(0)
}

/// The time between the copy and its return.
fn live(up: &Up, before: &Value) -> Told {
    up.muster(&["node", "label", "a-1", "rack=r7"]).exits(0);
    up.muster(&["node", "remove", "a-3", "--yes"]).exits(0);
    let id = before["id"].as_str().expect("an id");
    up.muster(&["token", "revoke", id]).exits(0);
    let token = made_token(up, "new");
    let counter = up.counter("lost");
    let script = counter.around("echo seen");
    let shown = up
        .muster(&["run", "role=web", "--json", "--shell", "--", &script])
        .exits(0);
    let text = |value: &Value| value["token"].as_str().expect("a token").to_owned();
    // Not what the twin is a few milliseconds behind with.
    wait_for("the twin to have the end", || {
        let file = up.state().join("twin").join("twin.db");
        let db = rusqlite::Connection::open(file).ok()?;
        let sql = "SELECT 1 FROM message WHERE subject = ?1 AND instr(payload, '\"finished\"') > 0";
        db.query_row(sql, [format!("m1.run.{}.j", shown.run())], |_| Ok(()))
            .ok()
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    Told {
        nodes: nodes(up).expect("listed"),
        runs: runs(up),
        shown,
        token: text(&token),
        revoked: text(before),
        counter,
    }
}

fn alarms(up: &Up) -> Vec<String> {
    let said = up.muster(&["events", "--json", "--limit", "500"]);
    if said.code != 0 {
        return Vec::new();
    }
    said.json_lines()
        .iter()
        .filter(|event| event["type"] == "alarm.store-went-back")
        .map(|event| {
            event["data"]["text"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
        .collect()
}

fn wait_alarm(up: &Up) -> String {
    wait_for("it to be said", || alarms(up).pop()).unwrap_or_else(|e| panic!("{e}: {}", up.logs()))
}

/// What was told is there, the removed and revoked is not.
fn everything_is_there(up: &Up, told: &Told) {
    let found = wait_for("the nodes", || nodes(up)).expect("listed");
    assert_eq!(found, told.nodes, "{}", up.logs());
    for run in &told.runs {
        assert!(runs(up).contains(run), "{run:?}: {:?}", runs(up));
    }
    let again = ended(up, &told.shown.run());
    assert_eq!(again.outcomes(), told.shown.outcomes());
    up.muster_as(&told.token, &["whoami"]).exits(0);
    assert_ne!(up.muster_as(&told.revoked, &["whoami"]).code, 0);
    for node in ["a-1", "a-2"] {
        assert_eq!(told.counter.of(node), (1, 1), "{node}");
    }
    let status = up.muster(&["status"]);
    assert!(status.out.contains("went back in time"), "{status:?}");
}

#[test]
fn yesterdays_directory_under_a_running_broker() {
    let mut up = Up::start(&NODES).expect("starts");
    works(&up, "role=web", 2);
    let before = made_token(&up, "old");
    let copy = copied(&mut up);
    let told = live(&up, &before);
    // One that is under way while the store goes back.
    let (go, open) = (up.dir.path().join("go"), up.counter("open"));
    let script = open.around(&format!(
        "until [ -e {} ]; do sleep 0.1; done",
        go.display()
    ));
    let args = ["run", "a-1", "--detach", "--json", "--shell", "--", &script];
    let run = up.muster(&args).exits(0).run();
    wait_for("it to begin", || (open.begun() == 1).then_some(())).expect("it runs");

    put_under_the_broker(&up, Some(&copy));
    let text = wait_alarm(&up);
    for part in [
        "Put back:",
        "node",
        "token",
        "runs",
        "Gone for good: output of",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains(&told.shown.run()[..8]), "{text}");
    everything_is_there(&up, &told);
    let shown = up.muster(&["runs", "show", &told.shown.run()]);
    assert!(shown.out.contains("is gone"), "{shown:?}");
    std::fs::write(&go, "").expect("writes");
    let said = ended(&up, &run);
    assert_eq!(
        said.outcomes()["a-1"],
        "succeeded",
        "{}",
        outcome_of(&said, "a-1")
    );
    assert_eq!(open.of("a-1"), (1, 1));
    works(&up, "role=web", 2);
    Audit::of(&up).holds();
}

#[test]
fn yesterdays_directory_after_everything_was_stopped() {
    let mut up = Up::start(&NODES).expect("starts");
    works(&up, "role=web", 2);
    let before = made_token(&up, "old");
    let copy = copied(&mut up);
    let mut told = live(&up, &before);
    let serials: Vec<Value> = told.nodes.iter().map(|node| node[1].clone()).collect();
    up.stop(Signal::TERM).expect("ends");
    put(&up, Some(&copy));
    up.launch().expect("starts");
    wait_alarm(&up);
    // `muster up` gives its nodes the labels that it was started with, and the
    // removed one enrols anew: with a serial that nobody had.
    told.nodes = nodes(&up).expect("listed");
    let a_3 = told
        .nodes
        .iter()
        .find(|node| node[0] == "a-3")
        .expect("there");
    let highest = serials.iter().filter_map(Value::as_u64).max();
    assert!(a_3[1].as_u64() > highest.max(Some(3)), "{a_3} {serials:?}");
    everything_is_there(&up, &told);
    works(&up, "role=web", 2);

    // The directory is gone altogether.
    put_under_the_broker(&up, None);
    wait_for("it to be said again", || {
        (alarms(&up).len() == 2).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    everything_is_there(&up, &told);
    works(&up, "role=web", 2);
    Audit::of(&up).holds();
}

#[test]
fn without_the_twin_it_is_said_what_is_gone() {
    let mut up = Up::start(&NODES).expect("starts");
    works(&up, "role=web", 2);
    let before = made_token(&up, "old");
    let copy = copied(&mut up);
    let told = live(&up, &before);
    up.stop(Signal::TERM).expect("ends");
    put(&up, Some(&copy));
    std::fs::remove_dir_all(up.state().join("twin")).expect("removes");
    up.launch().expect("starts");
    let text = wait_alarm(&up);
    for part in ["no copy", "gone for good", "is back"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_ne!(up.muster_as(&told.token, &["whoami"]).code, 0);
    // Nothing is done a second time, and all work.
    for node in ["a-1", "a-2"] {
        assert_eq!(told.counter.of(node), (1, 1), "{node}");
    }
    for name in ["a-1", "a-2"] {
        super::wait_state(&up, name, "up");
    }
    works(&up, "role=web", 2);
}

/// What a machine has of its enrolment, as it is under this name somewhere in
/// its file: signed texts are JSON in JSON.
fn enrolled(value: &Value, name: &str) -> Option<Value> {
    match value {
        Value::String(text) => enrolled(&serde_json::from_str(text).ok()?, name),
        Value::Array(all) => all.iter().find_map(|value| enrolled(value, name)),
        Value::Object(all) => all
            .get(name)
            .cloned()
            .or_else(|| all.values().find_map(|value| enrolled(value, name))),
        _ => None,
    }
}

/// Whether NATS lets a machine in with what it has.
fn gets_in(up: &Up, name: &str) -> bool {
    let dir = machine(up, name);
    let text = std::fs::read_to_string(dir.join("enrolment.json")).expect("it is enrolled");
    let file: Value = serde_json::from_str(&text).expect("JSON");
    let (jwt, urls) = (enrolled(&file, "jwt"), enrolled(&file, "nats_urls"));
    let jwt = jwt.as_ref().and_then(Value::as_str).expect("a JWT");
    let urls: Vec<String> = serde_json::from_value(urls.expect("URLs")).expect("a list");
    let seed = std::fs::read_to_string(dir.join("nats.key")).expect("a key");
    let key = nkeys::KeyPair::from_seed(seed.trim()).expect("a seed");
    let credentials = Credentials::new(jwt.to_owned(), Arc::new(key));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let connected = runtime.block_on(credentials.connect_options().connect(urls));
    match connected {
        Ok(_) => true,
        Err(error) => {
            let refused = [
                ConnectErrorKind::AuthorizationViolation,
                ConnectErrorKind::Authentication,
            ];
            assert!(refused.contains(&error.kind()), "{error}");
            false
        }
    }
}

#[test]
fn who_was_removed_does_not_get_in_while_the_store_is_put_back() {
    let mut up = Up::not_yet(&NODES).expect("made");
    let hold = up.hold().expect("it listens");
    up.launch().expect("starts");
    enrol(&up, "x-1", "web");
    assert!(gets_in(&up, "x-1"));
    let before = made_token(&up, "old");
    // The servers' own list of who is revoked goes back, too.
    up.stop(Signal::TERM).expect("ends");
    let (nats, old) = (up.state().join("nats"), up.dir.path().join("yesterday"));
    copy(&nats, &old);
    up.launch().expect("starts");
    up.muster(&["node", "remove", "x-1", "--yes"]).exits(0);
    let told = live(&up, &before);
    assert!(!gets_in(&up, "x-1"));

    hold.hold("broker.put-back");
    under_the_broker(&up, || {
        for part in ["store", "accounts"] {
            std::fs::remove_dir_all(nats.join(part)).expect("removes");
            copy(&old.join(part), &nats.join(part));
        }
    });
    hold.came("broker.put-back")
        .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    // Nothing is put back yet, and nobody is served.
    assert!(!gets_in(&up, "x-1"), "{}", up.logs());
    assert_ne!(up.muster_as(&told.revoked, &["whoami"]).code, 0);
    hold.release("broker.put-back");
    wait_alarm(&up);
    everything_is_there(&up, &told);
    assert!(!gets_in(&up, "x-1"), "{}", up.logs());
    works(&up, "role=web", 2);
    Audit::of(&up).holds();
}

#[test]
fn a_word_of_somebody_else_in_a_journal_has_the_store_compared() {
    let up = Up::start(&NODES).expect("starts");
    let (go, open) = (up.dir.path().join("go"), up.counter("open"));
    let script = open.around(&format!(
        "until [ -e {} ]; do sleep 0.1; done",
        go.display()
    ));
    let args = ["run", "a-1", "--detach", "--json", "--shell", "--", &script];
    let run = up.muster(&args).exits(0).run();
    wait_for("it to begin", || (open.begun() == 1).then_some(())).expect("it runs");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let js = connect(&up.state()).await.expect("a connection");
        // No event, and so it changes nothing but whose turn it is.
        let sent = js.publish(format!("m1.run.{run}.j"), "{}".into()).await;
        sent.expect("sent").await.expect("stored");
    });
    std::fs::write(&go, "").expect("writes");
    wait_for("a comparison", || {
        up.logs()
            .contains("nothing in the store is lost")
            .then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    assert_eq!(alarms(&up), Vec::<String>::new());
    works(&up, "role=web", 2);
}
