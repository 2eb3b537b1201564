//! Retention: what is old or has no room goes, whole, and people know it.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use muster_tests::invariants::Audit;
use muster_tests::{Said, Up, finish, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

/// A `muster up` that is not yet started, with so much room for runs.
fn with_room(nodes: &[&str], bytes: &str) -> Up {
    let up = Up::not_yet(nodes).expect("a directory");
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(up.state())
        .expect("a directory");
    set_room(&up, bytes);
    up
}

fn set_room(up: &Up, bytes: &str) {
    let file = up.state().join("broker.toml");
    let text = std::fs::read_to_string(&file).unwrap_or("[retention]\nbytes = 1\n".into());
    let lines = text.lines().map(|line| {
        if line.starts_with("bytes = ") {
            format!("bytes = \"{bytes}\"\n")
        } else {
            format!("{line}\n")
        }
    });
    let text: String = lines.collect();
    assert!(text.contains(bytes), "{text}");
    std::fs::write(&file, text).expect("writes");
}

fn ready(up: &Up) -> Option<Value> {
    let mut curl = Command::new("curl");
    curl.args(["-s", "--max-time", "5", &format!("{}/readyz", up.url())])
        .stdin(Stdio::null());
    serde_json::from_str(&finish(curl).out).ok()
}

/// Runs something that prints so many bytes.
fn print(up: &Up, bytes: usize) -> Said {
    let script = format!("head -c {bytes} /dev/zero | tr '\\0' x");
    up.muster(&["run", "a-1", "--json", "--shell", "--", &script])
}

fn events(up: &Up, kind: &str) -> Vec<Value> {
    let said = up.muster(&["events", "--json", "--limit", "500"]).exits(0);
    let all = said.json_lines();
    all.into_iter().filter(|e| e["type"] == kind).collect()
}

fn status(up: &Up) -> Value {
    let said = up.muster(&["status", "--json"]);
    said.json_lines().into_iter().next().unwrap_or_default()
}

fn room(up: &Up, what: &str) -> Value {
    let status = status(up);
    let all = status["space"].as_array().cloned().unwrap_or_default();
    all.into_iter()
        .find(|s| s["what"] == what)
        .unwrap_or_default()
}

/// What is shown of a run: bytes of output, and whether it was removed.
fn shown(up: &Up, run: &str) -> (usize, bool) {
    let said = up.muster(&["runs", "watch", run, "--json"]);
    assert!(said.out.contains("run_finished"), "{said:?}");
    let bytes = said.output("stdout").values().map(String::len).sum();
    (bytes, said.out.contains("\"output_removed\""))
}

fn broker_pid(up: &Up) -> u32 {
    up.pid("broker").expect("a broker")
}

#[test]
fn little_room_is_said_old_output_goes_and_everything_goes_on() {
    let mut up = with_room(&["a-1:role=d"], "10MiB");
    up.launch().expect("starts");
    let go = up.dir.path().join("go");
    let script = format!(
        "echo begun; while ! test -e {}; do sleep 0.1; done; echo done",
        go.display()
    );
    let open = up
        .muster(&["run", "a-1", "--detach", "--json", "--shell", "--", &script])
        .exits(0)
        .run();
    let first = up
        .muster(&["run", "a-1", "--json", "--", "echo", "first words"])
        .exits(0)
        .run();
    let silent = up
        .muster(&["run", "a-1", "--json", "--", "true"])
        .exits(0)
        .run();

    // It fills; new runs work all the time, and one alarm comes.
    let mut runs = Vec::new();
    for _ in 0..40 {
        // Small beside the thresholds: what goes to make room does not end
        // the alarm.
        runs.push(print(&up, 256 << 10).exits(0).run());
    }
    let alarm = wait_for("the alarm", || {
        events(&up, "alarm.space")
            .into_iter()
            .find(|e| e["subject"] == "runs")
    })
    .unwrap_or_else(|e| panic!("{e}: {} {}", status(&up), up.logs()));
    let text = alarm["data"]["text"].as_str().expect("a text");
    assert!(
        text.contains("of 10 MiB") && text.contains("raise retention.bytes"),
        "{text}"
    );
    wait_for("the status to say so", || {
        room(&up, "runs")["alarm_since"].as_str().map(drop)
    })
    .expect("it does");
    for verb in ["status", "doctor"] {
        let said = up.muster(&[verb]).exits(1);
        for part in ["runs and their output use", "retention.bytes"] {
            assert!(said.out.contains(part), "{said:?}");
        }
    }
    let ready = ready(&up).expect("an answer");
    let warning = ready["warnings"][0].as_str().unwrap_or_default();
    assert!(
        ready["state"] == "active" && warning.contains("10 MiB"),
        "{ready}"
    );

    // The oldest output goes, and is not taken for none.
    let said = wait_for("the oldest output to go", || {
        print(&up, 256 << 10).exits(0);
        let said = up.muster(&["runs", "show", &first]).exits(0);
        said.out.contains("output was removed on").then_some(said)
    })
    .unwrap_or_else(|e| panic!("{e}: {} {}", status(&up), up.logs()));
    assert!(
        said.out.contains("by retention")
            && said.out.contains("(output removed)")
            && said.out.contains("1 succeeded")
            // In the title of the run, and nowhere else.
            && said.out.matches("first words").count() == 1
            && !said.out.contains("(no output)"),
        "{said:?}"
    );
    assert_eq!(shown(&up, &first), (0, true));
    // A run that printed nothing says that, still.
    let said = up.muster(&["runs", "show", &silent]).exits(0);
    assert!(
        said.out.contains("(no output)") && !said.out.contains("removed"),
        "{said:?}"
    );
    let listed = up.muster(&["runs", "list", "--limit", "200", "--json"]);
    let listed = listed.list();
    for run in runs.iter().chain([&first, &silent, &open]) {
        assert!(listed.iter().any(|l| l["id"] == run.as_str()), "{run}");
    }
    let removed = status(&up)["removed"]["outputs"].as_u64();
    assert!(removed > Some(0), "{removed:?}");

    // A broker that starts again does not repeat the alarm.
    signal(broker_pid(&up), Signal::KILL).expect("killed");
    wait_for("the alarm to be shown again", || {
        room(&up, "runs")["alarm_since"].as_str().map(drop)
    })
    .unwrap_or_else(|e| panic!("{e}: {} {}", status(&up), up.logs()));
    let mine = |kind: &str| {
        let all = events(&up, kind);
        all.iter().filter(|e| e["subject"] == "runs").count()
    };
    assert_eq!(mine("alarm.space"), 1);
    assert_eq!(mine("alarm.space-cleared"), 0);

    // What was under way all the time has lost nothing.
    std::fs::write(&go, "").expect("writes");
    wait_for("the open run to end", || {
        let said = up.muster(&["runs", "watch", &open, "--json"]);
        said.out.contains("\"run_finished\"").then_some(())
    })
    .expect("it ends");
    let said = up.muster(&["runs", "watch", &open, "--json"]).exits(0);
    assert_eq!(said.output("stdout")["a-1"], "begun\ndone\n");

    // With more room it is over, and that is said once, too.
    assert_eq!(up.stop(Signal::TERM).expect("ends"), 0);
    set_room(&up, "64MiB");
    up.launch().expect("starts");
    wait_for("the end of the alarm", || {
        (events(&up, "alarm.space-cleared").len() == 1).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {} {}", status(&up), up.logs()));
    wait_for("the status to say so", || {
        let room = room(&up, "runs");
        (room["limit"] == 64 << 20 && room["alarm_since"].is_null()).then_some(())
    })
    .expect("it does");
    Audit::of(&up).holds();
}

#[test]
fn a_broker_that_is_killed_while_it_removes_leaves_nothing_half() {
    let mut up = with_room(&["a-1:role=d"], "8MiB");
    up.launch().expect("starts");
    const EACH: usize = 300_000;
    let mut runs = BTreeMap::new();
    while runs.len() < 27 {
        let said = print(&up, EACH).exits(0);
        let bytes: usize = said.output("stdout").values().map(String::len).sum();
        runs.insert(said.run(), bytes);
    }
    // From now on it removes, and is killed at every moment of it.
    let mut kills = 0;
    let mut last = 0;
    wait_for("room", || {
        let removed = status(&up)["removed"]["outputs"].as_u64();
        let removed = removed.unwrap_or(last);
        if removed > 3 && kills >= 8 {
            return Some(());
        }
        last = removed;
        if kills < 8
            && let Ok(pid) = up.pid("broker")
        {
            std::thread::sleep(Duration::from_millis(120 * (kills % 7)));
            signal(pid, Signal::KILL).ok();
            kills += 1;
            wait_for("the broker to be back", || {
                (ready(&up)?["state"] == "active").then_some(())
            })
            .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
        }
        None
    })
    .unwrap_or_else(|e| panic!("{e}: {} {}", status(&up), up.logs()));
    let mut gone = 0;
    for (run, bytes) in &runs {
        // All of it, or nothing of it, and then it is said.
        match shown(&up, run) {
            (0, true) => gone += 1,
            (shown, false) => assert_eq!(shown, *bytes, "{run}"),
            half => panic!("{run}: {half:?}"),
        }
    }
    assert!(gone > 3, "{gone}");
    print(&up, 10).exits(0);
    Audit::of(&up).holds();
}

#[test]
fn runs_that_are_open_leave_room_to_end() {
    let mut up = with_room(&["a-1:role=d"], "8MiB");
    up.launch().expect("starts");
    let go = up.dir.path().join("go");
    // Nothing of it can be removed while it runs.
    let script = format!(
        "head -c 9000000 /dev/zero | tr '\\0' x; while ! test -e {}; do sleep 0.1; done",
        go.display()
    );
    let open = up
        .muster(&[
            "run",
            "a-1",
            "--detach",
            "--json",
            "--output-limit",
            "16MiB",
            "--shell",
            "--",
            &script,
        ])
        .exits(0)
        .run();
    wait_for("the room to be used up", || {
        let room = room(&up, "runs");
        (room["bytes"].as_u64()? * 100 >= room["limit"].as_u64()? * 90).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {} {}", status(&up), up.logs()));
    // More is taken, until there is only room for what is under way.
    let long = "y".repeat(60_000);
    let script = format!(
        ": {long}; while ! test -e {}; do sleep 0.1; done",
        go.display()
    );
    let mut taken = Vec::new();
    let refused = wait_for("a refusal", || {
        let said =
            finish(up.command(&["run", "a-1", "--detach", "--json", "--shell", "--", &script]));
        if said.code == 0 {
            taken.push(said.run());
            return None;
        }
        Some(said)
    })
    .expect("there is an end");
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(
        refused.err.contains("no room") && refused.err.contains("nothing was run"),
        "{refused:?}"
    );
    assert!(refused.err.contains("muster status"), "{refused:?}");
    std::fs::write(&go, "").expect("writes");
    for run in taken.iter().chain([&open]) {
        wait_for("its end", || {
            let said = up.muster(&["runs", "watch", run, "--json"]);
            said.out.contains("\"run_finished\"").then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    }
    // With them ended there is room again.
    wait_for("a run to be taken", || {
        let said = finish(up.command(&["run", "a-1", "--json", "--", "true"]));
        (said.code == 0).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {} {}", status(&up), up.logs()));
    Audit::of(&up).holds();
}

#[test]
fn a_broker_without_sense_in_its_settings_says_where_and_exits_2() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("broker.toml");
    std::fs::write(&file, "[retention]\nbytes = '1MB'\n").expect("writes");
    let mut command = Command::new(muster_tests::bin("muster"));
    command
        .args(["broker", "--check-config", "--config"])
        .arg(&file)
        .stdin(Stdio::null());
    let said = finish(command).exits(2);
    assert!(
        said.err.contains("broker.toml") && said.err.contains("4GiB"),
        "{said:?}"
    );
}
