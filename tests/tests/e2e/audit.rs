//! Who asked for what, and that nobody can change that unseen.

use std::path::{Path, PathBuf};

use muster_tests::invariants::Audit;
use muster_tests::{Said, Up, lines, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

const TWO: [&str; 2] = ["web-01:role=web", "db-01:role=db"];

/// An installation whose record is also written into a file outside.
pub(super) fn with_sink(nodes: &[&str]) -> (Up, PathBuf) {
    let mut up = Up::not_yet(nodes).expect("a place");
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

pub(super) fn verify(up: &Up, more: &[&str]) -> Said {
    let mut args = vec!["audit", "verify"];
    args.extend(more);
    up.muster(&args)
}

pub(super) fn records(up: &Up, more: &[&str]) -> Vec<Value> {
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

pub(super) fn wait_for_sink(sink: &Path, what: &str) {
    wait_for("the sink has it", || {
        let text = std::fs::read_to_string(sink).unwrap_or_default();
        text.contains(what).then_some(())
    })
    .expect("it has");
}

#[test]
fn who_did_what_is_recorded_and_proven_from_outside() {
    let (up, sink) = with_sink(&TWO);
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

/// What the store has, line by line.
async fn stored(js: &async_nats::jetstream::Context) -> Vec<String> {
    let stream = js.get_stream("MUSTER_AUDIT").await.expect("a stream");
    let state = stream.cached_info().state.clone();
    let mut lines = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let Ok(message) = stream.get_raw_message(sequence).await else {
            continue;
        };
        let text = String::from_utf8(message.payload.to_vec()).expect("text");
        lines.extend(text.lines().map(str::to_owned));
    }
    lines
}

/// Puts other lines there instead, as somebody does who has the store's disk.
async fn put_in_its_place(js: &async_nats::jetstream::Context, lines: &[String]) {
    let stream = js.get_stream("MUSTER_AUDIT").await.expect("a stream");
    stream.purge().await.expect("purged");
    for line in lines {
        let subject = muster_protocol::subject::AUDIT.to_owned();
        let sent = js.publish(subject, line.clone().into()).await;
        sent.expect("sent").await.expect("stored");
    }
}

/// A signing key, from the broker's disk.
fn broker_key(up: &Up, id: muster_protocol::keys::KeyId) -> muster_protocol::keys::PrivateKey {
    let file = up.state().join("keys").join(format!("broker-{id}.key"));
    let text = std::fs::read_to_string(&file).expect("the key's file");
    let seed = data_encoding::BASE64URL_NOPAD
        .decode(text.trim().as_bytes())
        .expect("base64");
    let seed: [u8; 32] = seed.try_into().expect("32 bytes");
    muster_protocol::keys::PrivateKey::from_seed(&seed)
}

/// The record as somebody with the broker's disk and keys would have it:
/// whole, signed, and without what they did.
fn forged(up: &Up, lines: &[String]) -> Vec<String> {
    use muster_protocol::audit::{Checkpoint, Line, Tail};
    let parse = |line: &String| serde_json::from_str::<Line>(line).expect("a line");
    let (mut tail, mut out, mut signed) = (Tail::START, Vec::new(), None);
    for line in lines {
        match parse(line) {
            Line::Record(mut record) => {
                if record.entry.action == "manage-tokens" {
                    record.entry.who.principal = Some("somebody-else".parse().expect("a name"));
                }
                out.push(tail.append(record.entry));
            }
            Line::Checkpoint(text) => signed = Some(text),
            Line::Trust(_) => {}
        }
    }
    let signed = signed.expect("there is a checkpoint");
    let said: Checkpoint = serde_json::from_str(&signed.text).expect("a checkpoint");
    let key = broker_key(up, signed.key);
    let said = Checkpoint {
        count: tail.count,
        head: tail.head,
        ..said
    };
    let line = Line::Checkpoint(said.sign(&key));
    out.push(serde_json::to_string(&line).expect("json"));
    out
}

/// Edited, cut off, dropped and made anew, where the broker keeps it: each is
/// found, with its place, by what is kept outside.
#[test]
fn whoever_changes_the_store_itself_is_found_out() {
    let (up, sink) = with_sink(&TWO);
    let out = sink.to_string_lossy().into_owned();
    let made = [
        "token", "create", "--for", "bea", "--role", "reader", "--json",
    ];
    up.muster(&made).exits(0);
    for _ in 0..3 {
        up.muster(&["run", "role=web", "--", "true"]).exits(0);
    }
    wait_for("the sink has a checkpoint behind the token", || {
        let all = lines(&sink);
        let at = all.iter().position(|l| l.contains("manage-tokens"))?;
        all[at..]
            .iter()
            .any(|l| l.contains("\"checkpoint\""))
            .then_some(())
    })
    .expect("it has");
    verify(&up, &["--checkpoint", &out]).exits(0);
    // What is read later is not about this: nothing more comes outside.
    let kept = up.dir.path().join("kept.jsonl");
    std::fs::copy(&sink, &kept).expect("copied");
    let kept = kept.to_string_lossy().into_owned();

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let js = runtime
        .block_on(muster_tests::invariants::connect(&up.state()))
        .expect("a connection");
    let whole = runtime.block_on(stored(&js));
    let at = whole
        .iter()
        .position(|l| l.contains("\"manage-tokens\""))
        .expect("it is recorded");
    let n = {
        let record: Value = serde_json::from_str(&whole[at]).expect("json");
        record["n"].as_u64().expect("a number")
    };
    let look = |lines: &[String], outside: bool| {
        runtime.block_on(put_in_its_place(&js, lines));
        let mut args = vec!["--json"];
        if outside {
            args.extend(["--checkpoint", kept.as_str()]);
        }
        let said = verify(&up, &args);
        let report: Value = serde_json::from_str(said.out.trim()).unwrap_or(Value::Null);
        let first = &report["report"]["faults"][0];
        (
            said.code,
            first["kind"].as_str().unwrap_or_default().to_owned(),
            first["record"].as_u64().unwrap_or_default(),
        )
    };
    // The broker goes on writing: what it adds in the moment between is not
    // what this is about.
    let found = |lines: &[String], outside: bool, wanted: (i32, &str, u64)| {
        let wanted = (wanted.0, wanted.1.to_owned(), wanted.2);
        let mut last = None;
        wait_for("what was done to it is found", || {
            let found = look(lines, outside);
            let is = found == wanted;
            last = Some(found);
            is.then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {last:?} instead of {wanted:?}"));
    };
    let mut edited = whole.clone();
    edited[at] = edited[at].replace("\"admin\"", "\"nobody\"");
    assert_ne!(edited, whole);
    found(&edited, false, (1, "edited", n));
    let mut dropped = whole.clone();
    dropped.remove(at);
    found(&dropped, false, (1, "dropped", n));
    let cut = &whole[..at];
    found(cut, true, (1, "truncated", n));
    let anew = forged(&up, &whole);
    // Whole, and signed with the broker's own key.
    found(&anew, false, (0, "", 0));
    found(&anew, true, (1, "rewritten", n));
    runtime.block_on(put_in_its_place(&js, &whole));
    verify(&up, &["--checkpoint", &kept]).exits(0);
}

#[test]
fn a_broker_that_is_killed_goes_on_with_the_same_record() {
    let (up, sink) = with_sink(&TWO);
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
