//! Break glass: `muster-agent local run`, with the broker dead, away, or
//! there; and what is told of it afterwards.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use muster_protocol::ids::{ClusterId, LocalNonce, Serial};
use muster_protocol::run::{Data, LocalRun, NodeResult, Outcome, Stream};
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::wire::{InlineChunk, LocalAnswer, LocalReport};
use muster_tests::{Said, Up, finish, lines, processes, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use crate::hostile::{as_node, enrolment, refused};

const NODES: [&str; 1] = ["web-01:role=web"];

fn local(up: &Up, args: &[&str]) -> Command {
    let mut command = up.bare("muster-agent");
    command.args(["local", "run", "--state"]);
    command.arg(up.agent_state("web-01")).args(args);
    command
}

/// The runs that came through the door `local`.
fn told(up: &Up) -> Vec<Value> {
    let said = up.muster(&["runs", "--json", "--limit", "200"]);
    if said.code != 0 {
        return Vec::new();
    }
    let mut runs = said.list();
    runs.retain(|run| run["door"] == "local");
    runs
}

fn wait_told(up: &Up, count: usize) -> Vec<Value> {
    wait_for(&format!("{count} local runs to be reported"), || {
        let runs = told(up);
        let ended = runs.iter().all(|run| run["finished"].is_string());
        (runs.len() == count && ended).then_some(runs)
    })
    .unwrap_or_else(|e| panic!("{e}: {:?} {}", told(up), up.logs()))
}

fn show(up: &Up, run: &Value) -> Said {
    up.muster(&["runs", "show", run["id"].as_str().expect("an id")])
        .exits(0)
}

/// Waits until the node's journal has nothing left to report.
fn all_acknowledged(up: &Up) {
    let dir = up.agent_state("web-01");
    wait_for("nothing left to report", || {
        let mut status = up.bare("muster-agent");
        status.args(["status", "--json", "--state"]).arg(&dir);
        let said: Value = serde_json::from_str(finish(status).out.trim()).ok()?;
        (said["journal"]["unacknowledged"] == 0 && said["journal"]["open"] == 0).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
}

fn restart_agent(up: &Up) {
    let before = up.pid("agent-web-01").expect("runs");
    signal(before, Signal::KILL).expect("kills");
    wait_for("a new agent", || {
        up.pid("agent-web-01").ok().filter(|now| *now != before)
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
}

#[test]
fn while_the_broker_is_silent_it_runs_and_is_told_once_later() {
    let up = Up::start(&NODES).expect("starts");
    let witness = up.dir.path().join("witness");
    let script = format!(
        "echo x >> {}; echo out $MUSTER_NODE; echo err >&2; exit 3",
        witness.display()
    );
    let broker = up.pid("broker").expect("runs");
    signal(broker, Signal::STOP).expect("stops");
    let said = finish(local(
        &up,
        &["--why", "broker\x1b[2J is dead", "--shell", "--", &script],
    ));
    assert_eq!(said.code, 3, "{said:?}");
    assert_eq!(said.out, "out web-01\n");
    assert!(
        said.err.contains("err\n") && said.err.contains("exit code 3"),
        "{said:?}"
    );
    // The agent ends in between, and begins again.
    restart_agent(&up);
    signal(broker, Signal::CONT).expect("goes on");
    let run = wait_told(&up, 1).remove(0);
    assert_eq!(run["principal"], "node/web-01");
    assert_eq!(run["state"], "failed");
    assert_eq!(run["summary"]["failed"], 1);
    assert!(
        said.err.contains(run["id"].as_str().expect("an id")),
        "{said:?} {run}"
    );
    let shown = show(&up, &run);
    for part in [
        "out web-01",
        "err",
        "on the node itself",
        "broker\\x1b[2J is dead",
    ] {
        assert!(shown.out.contains(part), "{part}: {shown:?}");
    }
    assert!(!shown.out.contains('\x1b'), "{shown:?}");
    let events = up.muster(&["events", "--json", "--limit", "500"]).exits(0);
    assert_eq!(
        events.out.matches("node.local-run").count(),
        1,
        "{events:?}"
    );
    // Not sent to the node, and not told again by an agent or broker that
    // begins anew.
    all_acknowledged(&up);
    restart_agent(&up);
    signal(broker, Signal::KILL).expect("kills");
    wait_for("a run to succeed", || {
        let said = up.muster(&["run", "web-01", "--", "true"]);
        (said.code == 0).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    assert_eq!(wait_told(&up, 1)[0]["id"], run["id"]);
    assert_eq!(lines(&witness), ["x"]);
}

#[test]
fn with_nothing_running_at_all_it_runs_and_the_agent_tells_of_it_when_it_starts() {
    let mut up = Up::start(&NODES).expect("starts");
    up.stop(Signal::TERM).expect("ends");
    wait_for("the end of all", || up.processes().is_empty().then_some(())).expect("all ended");
    let said = finish(local(&up, &["--json", "--shell", "--", "echo a\\lone"])).exits(0);
    let said = said.json_lines();
    assert_eq!(said[1]["data"], "alone\n", "{said:?}");
    assert_eq!(said[2]["result"]["outcome"], "succeeded", "{said:?}");
    up.launch().expect("starts again");
    let run = wait_told(&up, 1).remove(0);
    assert_eq!(run["id"], said[0]["run"]);
    assert_eq!(run["state"], "succeeded");
    assert!(show(&up, &run).out.contains("alone"));
    // All of the output is shown; what is told of it is bounded, and says so.
    let large = finish(local(
        &up,
        &["--shell", "--", "head -c 3000000 /dev/zero | tr '\\0' a"],
    ));
    assert_eq!((large.code, large.out.len()), (0, 3_000_000));
    let runs = wait_told(&up, 2);
    assert!(show(&up, &runs[0]).out.len() < 200_000);
    all_acknowledged(&up);
}

fn spawn_sleep(up: &Up, mark: &str) -> Child {
    let script = format!("echo be\\gun; : {mark}; while :; do sleep 0.1; done");
    let child = local(up, &["--shell", "--", &script])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    wait_for("the command", || is_running(mark).then_some(())).expect("it runs");
    child
}

/// Whether the shell of a command lives, whoever started it.
fn is_running(mark: &str) -> bool {
    processes()
        .iter()
        .any(|(_, line)| line.starts_with("/bin/sh -c") && line.contains(mark))
}

#[test]
fn killed_in_the_middle_it_is_unknown_and_its_orphan_is_ended() {
    let up = Up::start(&NODES).expect("starts");
    let mark = LocalNonce::random().to_string();
    let mut child = spawn_sleep(&up, &mark);
    // While its process lives, the agent leaves it alone, also a new one.
    restart_agent(&up);
    wait_for("a run to succeed", || {
        let said = up.muster(&["run", "web-01", "--", "true"]);
        (said.code == 0).then_some(())
    })
    .expect("the agent is back");
    assert!(is_running(&mark) && told(&up).is_empty());
    child.kill().expect("kills");
    child.wait().expect("collected");
    assert!(is_running(&mark), "an orphan is left");
    let run = wait_told(&up, 1).remove(0);
    assert_eq!(run["summary"]["unknown"], 1, "{run}");
    assert!(!is_running(&mark), "the orphan is ended");
    let shown = show(&up, &run);
    assert!(
        shown.out.contains("ended while the command ran"),
        "{shown:?}"
    );
    assert!(shown.out.contains("were ended"), "{shown:?}");
    assert!(shown.out.contains("begun"), "{shown:?}");
}

#[test]
fn ctrl_c_ends_it_with_all_it_started() {
    let up = Up::start(&NODES).expect("starts");
    let mark = LocalNonce::random().to_string();
    let mut child = spawn_sleep(&up, &mark);
    signal(child.id(), Signal::INT).expect("interrupts");
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    assert!(!is_running(&mark));
    let run = wait_told(&up, 1).remove(0);
    assert_eq!(run["state"], "cancelled", "{run}");
    let timed = finish(local(&up, &["--timeout", "300ms", "--", "sleep", "100"]));
    assert_eq!(timed.code, 124, "{timed:?}");
    wait_told(&up, 2);
}

#[test]
fn what_is_not_possible_is_said_and_nothing_runs() {
    let up = Up::start(&NODES).expect("starts");
    let witness = up.dir.path().join("witness");
    let touch = ["--", "touch", witness.to_str().expect("text")];
    let mut none = up.bare("muster-agent");
    none.args(["local", "run", "--state"])
        .arg(up.dir.path().join("empty"))
        .args(touch);
    finish(none).exits(125).says(&["enrol this machine first"]);
    let config = up.dir.path().join("agent.toml");
    std::fs::write(&config, "[capabilities]\ncommand = false\n").expect("written");
    let config = ["--config", config.to_str().expect("text")];
    finish(local(&up, &[&config[..], &touch].concat()))
        .exits(126)
        .says(&["does not grant the capability `command`", "--force"]);
    finish(local(&up, &["--shell", "--", "two", "words"]))
        .exits(2)
        .says(&["--shell takes the whole command as one word"]);
    finish(local(&up, &["--", &"x".repeat(40_000)]))
        .exits(2)
        .says(&["too long to be reported"]);
    finish(local(&up, &[])).exits(2);
    assert!(!witness.exists());
    finish(local(&up, &["--", "/does/not/exist"])).exits(127);
    finish(local(&up, &[&config[..], &["--force"], &touch].concat())).exits(0);
    assert!(witness.exists());
    let runs = wait_told(&up, 2);
    assert!(
        show(&up, &runs[0])
            .out
            .contains("against the node's own policy")
    );
}

fn forged(params: Value) -> LocalReport {
    LocalReport {
        nonce: LocalNonce::random(),
        local: LocalRun {
            user: "\x1b[2Jana".repeat(1_000),
            login: None,
            why: Some("x".repeat(10_000)),
            forced: false,
            began: Timestamp::MIN,
        },
        call: None,
        params,
        timeout: Span::from_secs(1),
        result: NodeResult::new(Serial(99), Outcome::Skipped, "\x1b]0;x\x07"),
        output: vec![InlineChunk {
            chunk: u32::MAX,
            stream: Stream::Stdout,
            data: Data::Text("a".repeat(100_000)),
        }],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_node_can_tell_only_of_itself_and_only_so_much() {
    let up = Up::start(&["web-01:role=web", "web-02:role=web"]).expect("starts");
    let (node, mut said) = as_node(&up, "web-01").await;
    let serial = |name| {
        let serial = enrolment(&up, name)["credentials"]["serial"].as_u64();
        Serial(u32::try_from(serial.expect("a serial")).expect("small"))
    };
    let (own, other) = (serial("web-01"), serial("web-02"));
    let cluster: ClusterId = enrolment(&up, "web-01")["credentials"]["cluster"]
        .as_str()
        .and_then(|c| c.parse().ok())
        .expect("a cluster");
    let subject = format!("m1.from.{own}.local");
    let body = |report: &LocalReport| serde_json::to_vec(report).expect("json");
    // As another node: the server refuses.
    let true_ = serde_json::json!({"argv": ["true"]});
    let one = forged(true_.clone());
    node.publish(format!("m1.from.{other}.local"), body(&one).into())
        .await
        .expect("asks");
    node.flush().await.expect("sent");
    refused(&mut said, "another node's subject").await;
    // Oversized, and nonsense: nothing comes of it.
    let mut large = forged(true_.clone());
    large.output = vec![large.output[0].clone(); 8];
    node.publish(subject.clone(), body(&large).into())
        .await
        .expect("sent");
    node.publish(subject.clone(), "{}".into())
        .await
        .expect("sent");
    let ask = async |report: &LocalReport| {
        for _ in 0..20 {
            let answer = node.request(subject.clone(), body(report).into());
            if let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(3), answer).await {
                return serde_json::from_slice::<LocalAnswer>(&answer.payload).expect("an answer");
            }
        }
        panic!("no answer")
    };
    let bad = ask(&forged(serde_json::json!({"argv": []}))).await;
    assert!(matches!(bad, LocalAnswer::Refused { .. }), "{bad:?}");
    let long = ask(&forged(serde_json::json!({"argv": ["x".repeat(40_000)]}))).await;
    assert!(matches!(long, LocalAnswer::Refused { .. }), "{long:?}");
    // The same one a thousand times.
    for _ in 0..1_000 {
        node.publish(subject.clone(), body(&forged_small(&one)).into())
            .await
            .expect("sent");
    }
    node.flush().await.expect("sent");
    let answer = ask(&forged_small(&one)).await;
    let id = one.nonce.run_id(cluster, own);
    assert_eq!(answer, LocalAnswer::Stored { run: id });
    // The same id with something else in it changes nothing.
    let mut changed = forged_small(&one);
    changed.params = serde_json::json!({"argv": ["rm"]});
    assert_eq!(ask(&changed).await, LocalAnswer::Stored { run: id });
    let runs = told(&up);
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert_eq!(runs[0]["id"], id.to_string());
    assert_eq!(runs[0]["title"], "true");
    // What no node can know is not believed, nor another serial.
    assert_eq!(runs[0]["summary"]["unknown"], 1);
    let shown = tokio::task::block_in_place(|| show(&up, &runs[0]));
    assert!(!shown.out.contains('\x1b'), "{shown:?}");
    assert!(shown.out.contains("web-01"), "{shown:?}");
    // More than a day's worth waits.
    let mut later = 0;
    for _ in 0..120 {
        match ask(&forged_small(&forged(true_.clone()))).await {
            LocalAnswer::Stored { .. } => {}
            LocalAnswer::Later { .. } => later += 1,
            refused @ LocalAnswer::Refused { .. } => panic!("{refused:?}"),
        }
    }
    assert_eq!(later, 21);
    assert_eq!(told(&up).len(), 100);
    let events = up.muster(&["events", "--json", "--limit", "1000"]);
    assert_eq!(events.out.matches("alarm.local-runs").count(), 1);
    // Nobody else is disturbed.
    let run = up
        .muster(&["run", "role=web", "--json", "--", "true"])
        .exits(0);
    assert_eq!(run.outcomes().len(), 2);
}

/// Small enough that a thousand are no flood.
fn forged_small(report: &LocalReport) -> LocalReport {
    let mut small = report.clone();
    small.local.user.truncate(100);
    small.output[0].data = Data::Text("a".repeat(500));
    small
}
