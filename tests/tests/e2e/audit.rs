//! Who asked for what, and that nobody can change that unseen.

use std::path::{Path, PathBuf};

use muster_tests::invariants::Audit;
use muster_tests::{Said, Up, lines, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

const TWO: [&str; 2] = ["web-01:role=web", "db-01:role=db"];

/// An installation whose record is also written into a file outside.
fn with_sink() -> (Up, PathBuf) {
    let mut up = Up::not_yet(&TWO).expect("a place");
    let sink = up.dir.path().join("outside.jsonl");
    std::fs::create_dir_all(up.state()).expect("makes");
    let text = format!(
        "[audit]\ncheckpoint_every = 5\n[[audit.sinks]]\nkind = \"file\"\npath = \"{}\"\n",
        sink.display()
    );
    std::fs::write(up.state().join("broker.toml"), text).expect("writes");
    use std::os::unix::fs::PermissionsExt as _;
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(up.state(), private).expect("sets");
    up.launch().expect("starts");
    (up, sink)
}

fn verify(up: &Up, more: &[&str]) -> Said {
    let mut args = vec!["audit", "verify"];
    args.extend(more);
    up.muster(&args)
}

fn records(up: &Up, more: &[&str]) -> Vec<Value> {
    let mut args = vec!["audit", "list", "--json", "--limit", "1000"];
    args.extend(more);
    up.muster(&args).exits(0).json_lines()
}

/// Writes lines into a file of the test's own.
fn file(up: &Up, name: &str, lines: &[String]) -> String {
    let path = up.dir.path().join(name);
    std::fs::write(&path, lines.join("\n") + "\n").expect("writes");
    path.to_string_lossy().into_owned()
}

fn wait_for_sink(sink: &Path, what: &str) {
    wait_for("the sink has it", || {
        let text = std::fs::read_to_string(sink).unwrap_or_default();
        text.contains(what).then_some(())
    })
    .expect("it has");
}

#[test]
fn who_did_what_is_recorded_and_proven_from_outside() {
    let (up, sink) = with_sink();
    let out = sink.to_string_lossy().into_owned();
    let made = [
        "token", "create", "--for", "bea", "--role", "reader", "--json",
    ];
    let token = up.muster(&made).exits(0).json_lines()[0]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let run = up
        .muster(&["run", "role=web", "--json", "--", "true"])
        .exits(0)
        .run();
    up.muster_as(&token, &["run", "role=web", "--", "true"])
        .exits(4);
    up.muster_as("muster_garbled", &["nodes"]).exits(4);
    let of_run = wait_for("the end is recorded", || {
        let found = records(&up, &["--run", &run]);
        found
            .iter()
            .any(|r| r["action"] == "run-ended")
            .then_some(found)
    })
    .expect("it is");
    let begun = &of_run[0];
    assert_eq!(begun["action"], "run", "{of_run:?}");
    assert_eq!(begun["about"]["params"]["argv"][0], "true");
    assert_eq!(begun["about"]["sets"][0]["count"], 1);
    assert_eq!(begun["who"]["door"], "cli");
    assert!(begun["who"]["origin"]["address"].is_string(), "{begun}");
    let ends: Vec<_> = of_run
        .iter()
        .filter(|r| r["action"] == "run-ended")
        .collect();
    assert_eq!(ends.len(), 1, "{of_run:?}");
    assert_eq!(ends[0]["about"]["outcomes"]["succeeded"], 1);
    let denied = records(&up, &["--denied"]);
    let of_bea = denied.iter().find(|r| r["who"]["principal"] == "bea");
    assert_eq!(
        of_bea.expect("it is recorded")["action"],
        "run",
        "{denied:?}"
    );
    assert!(
        denied.iter().any(|r| r["action"] == "authenticate"),
        "{denied:?}"
    );
    // The text of a token is nowhere.
    let export = up.dir.path().join("export.jsonl");
    let export = export.to_string_lossy().into_owned();
    up.muster(&["audit", "export", &export]).exits(0);
    let whole = lines(Path::new(&export));
    let secrets = [token.clone(), up.token().expect("a token")];
    for secret in &secrets {
        let random = secret.rsplit(['_', '.', '-']).next().expect("a part");
        assert!(
            !whole.iter().any(|l| l.contains(random)),
            "a token is in the record"
        );
    }
    wait_for_sink(&sink, "run-ended");
    verify(&up, &["--checkpoint", &out]).exits(0);
    verify(&up, &["--file", &export, "--checkpoint", &out]).exits(0);

    // Each kind of change, in what is shown.
    let at = |what: &str| whole.iter().position(|l| l.contains(what)).expect("there");
    let denied_at = at("\"denied\"");
    let check = |name: &str, changed: &[String], outside: bool| {
        let path = file(&up, name, changed);
        let mut args = vec!["--file", path.as_str()];
        if outside {
            args.extend(["--checkpoint", out.as_str()]);
        }
        let said = verify(&up, &args);
        (said.code, said.out)
    };
    let mut edited = whole.clone();
    edited[denied_at] = edited[denied_at].replace("\"denied\"", "\"allowed\"");
    let (code, text) = check("edited", &edited, false);
    assert!(code == 1 && text.contains("edited: "), "{text}");
    let mut dropped = whole.clone();
    dropped.remove(denied_at);
    let (code, text) = check("dropped", &dropped, false);
    assert!(code == 1 && text.contains("was dropped"), "{text}");
    let (code, text) = check("cut", &whole[..denied_at], false);
    assert!(code == 0, "only from outside it shows: {text}");
    let (code, text) = check("cut", &whole[..denied_at], true);
    assert!(code == 1 && text.contains("truncated: "), "{text}");
    let stranger = "aaaaaaaaaaaaaaaaaaaaaaaaaa";
    verify(&up, &["--root", stranger]).exits(1);
    Audit::of(&up).holds();
}

#[test]
fn a_broker_that_is_killed_goes_on_with_the_same_record() {
    let (up, sink) = with_sink();
    let out = sink.to_string_lossy().into_owned();
    let mut runs = Vec::new();
    for _ in 0..3 {
        let args = [
            "run", "role=web", "--detach", "--json", "--", "sleep", "0.3",
        ];
        runs.push(up.muster(&args).exits(0).run());
        let broker = up.pid("broker").expect("it runs");
        signal(broker, Signal::KILL).expect("kills");
        wait_for("the broker is back", || {
            (up.muster(&["whoami"]).code == 0).then_some(())
        })
        .expect("it is");
    }
    for run in &runs {
        wait_for("the end is recorded", || {
            let of_run = records(&up, &["--run", run]);
            let of = |what: &str| of_run.iter().filter(|r| r["action"] == what).count();
            (of("run") == 1 && of("run-ended") == 1).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {:?}", records(&up, &["--run", run])));
    }
    wait_for_sink(&sink, "run-ended");
    verify(&up, &["--checkpoint", &out]).exits(0);
    Audit::of(&up).holds();
}

/// Whoever stops the broker right before and after an append finds the intent
/// in the record or nothing done.
#[test]
fn nothing_is_done_that_is_not_recorded_before() {
    for point in ["broker.audit.before", "broker.audit.after"] {
        let mut up = Up::not_yet(&TWO).expect("a place");
        let hold = up.hold().expect("it can be held");
        up.launch().expect("starts");
        let witness = up.dir.path().join("witness");
        let script = format!("echo done >> {}", witness.display());
        hold.hold(point);
        let mut command = up.command(&["run", "role=web", "--json", "--shell", "--", &script]);
        let mut asking = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("starts");
        hold.came(point).expect("somebody comes there");
        assert_eq!(lines(&witness).len(), 0, "{point}: before it is recorded");
        let broker = up.pid("broker").expect("it runs");
        signal(broker, Signal::KILL).expect("kills");
        hold.release(point);
        let _ = asking.kill();
        let _ = asking.wait();
        wait_for("the broker is back", || {
            (up.muster(&["whoami"]).code == 0).then_some(())
        })
        .expect("it is");
        verify(&up, &[]).exits(0);
        Audit::of(&up).holds();
    }
}
