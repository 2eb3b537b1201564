//! Outcomes, limits, batches, cancel, retry.

use std::io::Write as _;
use std::process::Stdio;

use muster_tests::{PATIENCE, Up, finish, lines, signal, wait_for};
use rustix::process::Signal;

const THREE: [&str; 3] = [
    "a-1:role=a,zone=x",
    "a-2:role=a,zone=x",
    "a-3:role=a,zone=y",
];

#[test]
fn every_outcome_is_told_with_its_reason() {
    let up = Up::start(&THREE).expect("starts");
    let one = |args: &[&str]| {
        let mut all = vec!["run", "a-1", "--json"];
        all.extend(args);
        up.muster(&all)
    };
    let said = one(&["--", "sh", "-c", "echo out; echo err >&2; exit 3"]).exits(1);
    assert_eq!(said.outcomes()["a-1"], "failed");
    assert_eq!(said.output("stdout")["a-1"], "out\n");
    assert_eq!(said.output("stderr")["a-1"], "err\n");
    assert!(said.out.contains("\"exit\":3"), "{said:?}");

    let said = one(&["--", "sh", "-c", "kill -SEGV $$"]).exits(1);
    assert!(said.out.contains("\"signal\":11"), "{said:?}");

    let said = one(&["--", "no-such-command-here"]).exits(1);
    assert_eq!(said.outcomes()["a-1"], "failed");
    assert!(said.out.contains("no-such-command-here"), "{said:?}");
    assert!(said.out.contains("not found"), "{said:?}");

    let said = one(&["--timeout", "1s", "--", "sleep", "600"]).exits(1);
    assert_eq!(said.outcomes()["a-1"], "timed_out");

    // A shell only when asked for.
    let said = one(&["--", "echo", "$HOME; id"]).exits(0);
    assert_eq!(said.output("stdout")["a-1"], "$HOME; id\n");
    let said = one(&["--shell", "--", "echo $((6*7)) | tr 4 x"]).exits(0);
    assert_eq!(said.output("stdout")["a-1"], "x2\n");

    // Its stdin is closed, its environment is clean.
    let said = one(&["--", "sh", "-c", "cat; echo \"[$MUSTER_TOKEN$MUSTER_URL]\""]).exits(0);
    assert_eq!(said.output("stdout")["a-1"], "[]\n");
}

#[test]
fn a_deadline_ends_the_whole_tree() {
    let up = Up::start(&THREE[..1]).expect("starts");
    let mark = format!("{}", 700_000 + up.port as u32);
    let script = format!("setsid sleep {mark} & sh -c 'sleep {mark}' & sleep {mark}");
    up.muster(&[
        "run",
        "a-1",
        "--timeout",
        "1s",
        "--json",
        "--",
        "sh",
        "-c",
        &script,
    ])
    .exits(1);
    let alive = || {
        muster_tests::processes()
            .into_iter()
            .find(|(_, l)| l.trim() == format!("sleep {mark}"))
    };
    wait_for("the end of the tree", || alive().is_none().then_some(())).expect("all are gone");
}

#[test]
fn output_is_bounded_and_safe_to_show() {
    let up = Up::start(&THREE[..1]).expect("starts");
    let script = "yes 0123456789 | head -c 100000000; echo done >&2";
    let said = up
        .muster(&["run", "a-1", "--json", "--", "sh", "-c", script])
        .exits(0);
    let kept: usize = said.output("stdout")["a-1"].len();
    assert!(kept <= 1 << 20, "{kept} bytes were kept");
    assert!(said.out.contains("\"truncated\":true"), "no mark");
    let said = up
        .muster(&["run", "a-1", "--", "sh", "-c", script])
        .exits(0);
    assert!(said.out.contains("truncated"), "people are not told");

    let escape = r"printf 'caf\351 \033[31mred\033]0;title\007 \342\200\256rtl\n'";
    let said = up.muster(&["run", "a-1", "--shell", "--", escape]).exits(0);
    assert!(
        !said.out.contains('\x1b') && !said.out.contains('\x07') && !said.out.contains('\u{202e}'),
        "{said:?}"
    );
    assert!(
        said.out.contains("\\xe9") && said.out.contains("\\x1b"),
        "{said:?}"
    );
}

#[test]
fn equal_outputs_are_grouped() {
    let up = Up::start(&THREE).expect("starts");
    let said = up.muster(&["run", "role=a", "--", "echo", "same"]).exits(0);
    assert_eq!(said.out.matches("same").count(), 1, "{said:?}");
    let said = up
        .muster(&["run", "role=a", "--dedupe", "none", "--", "echo", "same"])
        .exits(0);
    assert_eq!(said.out.matches("same").count(), 3, "{said:?}");
}

#[test]
fn batches_stop_at_the_budget() {
    let up = Up::start(&THREE).expect("starts");
    let order = up.dir.path().join("order");
    let script = format!(
        "echo $MUSTER_NODE >> {}; test $MUSTER_NODE != a-2",
        order.display()
    );
    let args = [
        "run",
        "role=a",
        "--batch",
        "1",
        "--max-failures",
        "0",
        "--json",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let said = up.muster(&args).exits(1);
    let outcomes = said.outcomes();
    assert_eq!(outcomes["a-1"], "succeeded");
    assert_eq!(outcomes["a-2"], "failed");
    assert_eq!(outcomes["a-3"], "skipped");
    assert_eq!(lines(&order), ["a-1", "a-2"]);

    // What failed or was skipped is tried again, and only that.
    std::fs::remove_file(&order).expect("there");
    let said = up
        .muster(&["runs", "retry", &said.run(), "--failed", "--json"])
        .exits(1);
    assert_eq!(said.outcomes().keys().collect::<Vec<_>>(), ["a-2", "a-3"]);

    let said = up
        .muster(&["run", "role=a", "--limit", "2", "--json", "--", "true"])
        .exits(0);
    assert_eq!(said.outcomes().len(), 2);
}

#[test]
fn a_cancel_ends_what_runs_and_what_waits() {
    let up = Up::start(&THREE).expect("starts");
    let mark = format!("{}", 800_000 + up.port as u32);
    let args = [
        "run", "role=a", "--batch", "2", "--detach", "--json", "--", "sleep", &mark,
    ];
    let run = up.muster(&args).exits(0).run();
    let count = || {
        muster_tests::processes()
            .iter()
            .filter(|(_, l)| l.trim() == format!("sleep {mark}"))
            .count()
    };
    wait_for("two sleepers", || (count() == 2).then_some(())).expect("run");
    up.muster(&["runs", "cancel", &run[..6]]).exits(0);
    let said = up.muster(&["runs", "watch", &run, "--json"]).exits(6);
    let outcomes = said.outcomes();
    assert_eq!(
        [&outcomes["a-1"], &outcomes["a-2"], &outcomes["a-3"]],
        ["cancelled", "cancelled", "skipped"]
    );
    assert_eq!(count(), 0);
}

#[test]
fn a_silent_node_is_never_silent_in_the_result() {
    let up = Up::start(&THREE).expect("starts");
    // Stopped: connected, and it says nothing.
    let paused = up.pid("agent-a-3").expect("runs");
    signal(paused, Signal::STOP).expect("stops");
    let said = up
        .muster(&[
            "run",
            "role=a",
            "--deliver-within",
            "3s",
            "--json",
            "--",
            "true",
        ])
        .exits(1);
    let outcomes = said.outcomes();
    assert_eq!(
        [&outcomes["a-1"], &outcomes["a-2"]],
        ["succeeded", "succeeded"]
    );
    assert!(
        ["unknown", "unreachable"].contains(&outcomes["a-3"].as_str()),
        "{outcomes:?}"
    );
    signal(paused, Signal::CONT).expect("goes on");
}

#[test]
fn a_run_asks_above_the_threshold_and_takes_no_for_an_answer() {
    let nodes: Vec<String> = (1..=21).map(|i| format!("n-{i:02}:role=n")).collect();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let up = Up::start(&nodes).expect("starts");
    let witness = up.dir.path().join("witness");
    let touch = format!("echo x >> {}", witness.display());
    let said = up
        .muster(&["run", "role=n", "--shell", "--", &touch])
        .exits(6);
    assert!(said.err.contains("--yes"), "{said:?}");
    assert!(lines(&witness).is_empty());
    let said = up
        .muster(&["run", "role=n", "--yes", "--json", "--shell", "--", &touch])
        .exits(0);
    assert_eq!(said.outcomes().len(), 21);
    assert_eq!(lines(&witness).len(), 21);
    up.muster(&["run", "role=n", "--limit", "20", "--shell", "--", "true"])
        .exits(0);

    // On a terminal: the question, and an answer.
    for (answer, code, effects) in [("n\n", 6, 21), ("y\n", 0, 42)] {
        let inner = up.command(&["run", "role=n", "--shell", "--", &touch]);
        let line: Vec<String> = std::iter::once(inner.get_program())
            .chain(inner.get_args())
            .map(|a| format!("'{}'", a.to_string_lossy()))
            .collect();
        let mut script = std::process::Command::new("script");
        script.args(["-qec", &line.join(" "), "/dev/null"]);
        script
            .env("MUSTER_URL", up.url())
            .env("MUSTER_TOKEN", up.token().expect("token"))
            .env("HOME", up.dir.path());
        script
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = script.spawn().expect("script(1) is there");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(answer.as_bytes())
            .expect("types");
        let start = std::time::Instant::now();
        let output = child.wait_with_output().expect("ends");
        assert!(start.elapsed() < PATIENCE);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("21 nodes match") && text.contains("[y/N]"),
            "{text}"
        );
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert_eq!(lines(&witness).len(), effects, "{text}");
    }
}

#[test]
fn runs_are_listed_shown_and_watched_from_any_position() {
    let up = Up::start(&THREE[..1]).expect("starts");
    let run = up
        .muster(&["run", "a-1", "--json", "--", "echo", "hello"])
        .exits(0)
        .run();
    let list = up.muster(&["runs"]).exits(0);
    assert!(
        list.out.contains(&run[..4]) && list.out.contains("echo hello"),
        "{list:?}"
    );
    let show = up.muster(&["runs", "show", &run[..4]]).exits(0);
    assert!(
        show.out.contains("a-1") && show.out.contains("hello"),
        "{show:?}"
    );

    let events = |after: Option<&str>| {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sN", "--max-time", "20", "-H"]);
        curl.arg(format!(
            "Authorization: Bearer {}",
            up.token().expect("token")
        ));
        if let Some(id) = after {
            curl.args(["-H", &format!("Last-Event-ID: {id}")]);
        }
        curl.arg(format!("{}/v1/runs/{run}/events", up.url()));
        finish(curl).exits(0).out
    };
    let all = events(None);
    let ids: Vec<&str> = all
        .lines()
        .filter_map(|l| l.strip_prefix("id:"))
        .map(str::trim)
        .collect();
    assert!(ids.len() >= 4, "{all}");
    assert!(
        all.contains("run_finished") && all.contains("hello"),
        "{all}"
    );
    let rest = events(Some(ids[1]));
    let tail: Vec<&str> = rest
        .lines()
        .filter_map(|l| l.strip_prefix("id:"))
        .map(str::trim)
        .collect();
    assert_eq!(tail, ids[2..], "{rest}");
}

#[test]
fn what_was_confirmed_is_what_runs_once() {
    let up = Up::start(&["p-1:role=p", "p-2:role=p", "p-3:role=q"]).expect("starts");
    let file = up.state().join("broker.toml");
    let text = std::fs::read_to_string(&file).expect("there");
    assert!(text.contains("confirm_above = 20"), "{text}");
    let text = text.replace("confirm_above = 20", "confirm_above = 1");
    std::fs::write(&file, text).expect("writes");
    let before = up.pid("broker").expect("runs");
    signal(before, Signal::KILL).expect("kills");
    wait_for("the broker with its new setting", || {
        let now = up.pid("broker").ok()?;
        (now != before && up.muster(&["nodes"]).code == 0).then_some(())
    })
    .expect("starts again");
    let witness = up.dir.path().join("witness");
    let script = format!("echo $MUSTER_NODE >> {}", witness.display());
    let post = |confirm: serde_json::Value| {
        let body = serde_json::json!({
            "predicate": "role=p", "params": {"shell": script}, "confirm": confirm,
        });
        let mut curl = std::process::Command::new("curl");
        curl.args(["-s", "--max-time", "20", "-X", "POST"]);
        curl.args(["-H", "Content-Type: application/json", "-H"]);
        curl.arg(format!(
            "Authorization: Bearer {}",
            up.token().expect("token")
        ));
        curl.args(["-d", &body.to_string(), &format!("{}/v1/runs", up.url())]);
        let answer = finish(curl).exits(0).out;
        serde_json::from_str::<serde_json::Value>(&answer)
            .unwrap_or_else(|e| panic!("{e}: {answer}"))
    };
    let asked = post("ask".into());
    assert_eq!(asked["kind"], "confirmation-required", "{asked}");
    assert_eq!(asked["plan"]["nodes"], serde_json::json!(["p-1", "p-2"]));
    assert!(lines(&witness).is_empty());
    let plan = serde_json::json!({"plan": asked["plan"]["id"]});

    // Between the question and the answer another node gets the role.
    up.muster(&["node", "role", "p-3", "+p"]).exits(0);
    let run = post(plan.clone());
    let id = run["id"].as_str().unwrap_or_else(|| panic!("{run}"));
    let said = up.muster(&["runs", "watch", id, "--json"]).exits(0);
    assert_eq!(
        said.outcomes().keys().collect::<Vec<_>>(),
        ["p-1", "p-2"],
        "the plan's nodes, not those of now"
    );
    let mut ran = lines(&witness);
    ran.sort();
    assert_eq!(ran, ["p-1", "p-2"]);

    let again = post(plan);
    assert_eq!(again["kind"], "plan-gone", "{again}");
    assert_eq!(lines(&witness).len(), 2);
}
