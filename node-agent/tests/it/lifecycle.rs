//! Starts, ends, crashes, and a broker that is away.

use std::time::Duration;

use muster_agent::host::proc::Process;
use muster_protocol::run::{Outcome, Stream};
use muster_protocol::units::{Timestamp, after};

use crate::lab::{Lab, Receipt, SERIAL, lines, lives};

#[tokio::test]
async fn after_a_crash_the_orphan_is_ended_and_the_outcome_unknown() {
    let mut lab = Lab::start().await;
    let (pid, child) = (lab.path("pid"), lab.path("child"));
    let mut request = lab.shell(format!(
        "echo said; setsid /bin/sh -c 'echo $$ > {}; exec sleep 1000' & echo $$ > {}; sleep 1000",
        child.display(),
        pid.display()
    ));
    let id = lab.send(&request).await;
    lab.broker
        .wait("the acknowledgement", |h| {
            h.accepted.contains(&id).then_some(())
        })
        .await;
    lab.until("the command", || lines(&pid) == 1 && lines(&child) == 1)
        .await;
    lab.broker
        .wait("its output", |h| {
            h.output.contains_key(&(id, 0)).then_some(())
        })
        .await;
    lab.kill();
    assert!(
        lives(&pid) && lives(&child),
        "a crash alone ends no command"
    );
    let hellos = lab.broker.heard().hellos.len();
    lab.begin().await;
    let report = lab.broker.outcome(id).await;
    assert_eq!(report.result.outcome, Outcome::Unknown);
    let reason = report.result.reason.unwrap();
    assert!(
        reason.starts_with("the agent ended while the command ran;"),
        "{reason}"
    );
    assert!(
        reason.ends_with("of its processes still ran and were ended"),
        "{reason}"
    );
    assert_eq!((report.chunks, report.result.output_bytes), (1, 5));
    assert!(!lives(&pid) && !lives(&child), "an orphan lives");
    let heard_instances: Vec<_> = lab
        .broker
        .heard()
        .hellos
        .iter()
        .map(|h| h.instance)
        .collect();
    assert_ne!(heard_instances[hellos - 1], heard_instances[hellos]);
    // And never again.
    request.issued = Timestamp::now();
    request.start_before = after(request.issued, Duration::from_secs(15));
    std::fs::remove_file(&pid).unwrap();
    lab.send(&request).await;
    lab.broker
        .wait("the outcome again", |h| {
            (h.outcomes.iter().filter(|o| o.request == id).count() >= 2).then_some(())
        })
        .await;
    assert_eq!(lines(&pid), 0);
}

#[tokio::test]
async fn a_process_that_only_has_the_number_of_an_orphan_is_left_alone() {
    let mut lab = Lab::start().await;
    let pid = lab.path("pid");
    let request = lab.shell(format!("echo $$ > {}; exec sleep 1000", pid.display()));
    let id = lab.send(&request).await;
    lab.until("the command", || lines(&pid) == 1).await;
    lab.broker
        .wait("the acknowledgement", |h| {
            h.accepted.contains(&id).then_some(())
        })
        .await;
    lab.kill();
    let orphan: u32 = std::fs::read_to_string(&pid)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    Process::read(orphan)
        .unwrap()
        .signal(rustix::process::Signal::KILL);
    lab.until("the orphan's end", || !lives(&pid)).await;
    // The journal now names the process of this test.
    let journal = rusqlite::Connection::open(lab.path("state/journal.db")).unwrap();
    let changed = journal
        .execute(
            "UPDATE step SET pid = ?1, cgroup = NULL WHERE state = 'started'",
            [std::process::id()],
        )
        .unwrap();
    assert_eq!(changed, 1);
    drop(journal);
    lab.begin().await;
    let reason = lab.broker.outcome(id).await.result.reason.unwrap();
    assert_eq!(
        reason,
        "the agent ended while the command ran; no process of it was left"
    );
}

#[tokio::test]
async fn an_outcome_is_told_until_the_broker_has_it() {
    let mut lab = Lab::start().await;
    lab.broker.acknowledge(Receipt::Silence);
    let id = lab.run("echo kept").await.request;
    lab.kill();
    let before = lab.broker.count_outcomes(id);
    lab.begin().await;
    lab.broker
        .wait("the outcome after a restart", |h| {
            (h.outcomes.iter().filter(|o| o.request == id).count() > before).then_some(())
        })
        .await;
    lab.broker.acknowledge(Receipt::Stored);
    let state = lab.path("state");
    let acknowledged = || {
        let counts = muster_agent::journal::Db::counts_of(&state.join("journal.db")).unwrap();
        (counts.acknowledged, counts.unacknowledged)
    };
    lab.until("the acknowledgement", || acknowledged() == (1, 0))
        .await;
    assert_eq!(lab.output(id, Stream::Stdout), b"kept\n");
    // Kept, and not told again.
    lab.terminate();
    assert_eq!(lab.ended().await, Some(0));
    let told = lab.broker.count_outcomes(id);
    lab.begin().await;
    assert_eq!(lab.run("true").await.result.outcome, Outcome::Succeeded);
    assert_eq!(lab.broker.count_outcomes(id), told);
}

/// A broker that was killed gives no answer to what was on its way. That holds
/// nothing else up, and whoever comes after it need only ask.
#[tokio::test]
async fn an_answer_that_never_comes_holds_nothing_up() {
    let lab = Lab::start().await;
    lab.broker.acknowledge(Receipt::Silence);
    let call = lab.shell("true");
    let first = lab.send(&call).await;
    lab.broker.outcome(first).await;
    // An answer is waited for as long as twenty beats take.
    let beats = || lab.broker.heard().beats.len();
    let before = beats();
    lab.broker.acknowledge(Receipt::Stored);
    let second = lab.run("true").await.request;
    assert_ne!(first, second);
    assert_eq!(lab.send(&call).await, first);
    lab.broker
        .wait("the first outcome again", |h| {
            (h.outcomes.iter().filter(|o| o.request == first).count() > 1).then_some(())
        })
        .await;
    assert!(beats() - before < 15, "it waited for {}", beats() - before);
    let path = lab.path("state").join("journal.db");
    lab.until("both acknowledgements", || {
        muster_agent::journal::Db::counts_of(&path).is_ok_and(|c| c.acknowledged == 2)
    })
    .await;
    assert_eq!(lab.broker.count_outcomes(second), 1);
}

#[tokio::test]
async fn it_comes_back_when_nats_does_and_says_hello_again() {
    let mut lab = Lab::start().await;
    let go = lab.path("go");
    let request = lab.shell(format!(
        "while [ ! -e {} ]; do sleep 0.05; done; echo done",
        go.display()
    ));
    let id = lab.send(&request).await;
    lab.broker
        .wait("the acknowledgement", |h| {
            h.accepted.contains(&id).then_some(())
        })
        .await;
    let hellos = lab.broker.heard().hellos.len();
    // What is said while NATS is away does not arrive, and is asked for.
    lab.broker.acknowledge(Receipt::MissingOnce(vec![0]));
    lab.nats.kill();
    std::fs::write(&go, "").unwrap();
    lab.nats.restart().await;
    let report = lab.broker.outcome(id).await;
    assert_eq!(report.result.outcome, Outcome::Succeeded);
    lab.broker
        .wait("the output", |h| {
            h.output.contains_key(&(id, 0)).then_some(())
        })
        .await;
    assert_eq!(lab.output(id, Stream::Stdout), b"done\n");
    let heard = lab.broker.heard();
    assert!(heard.hellos.len() > hellos);
    assert_eq!(heard.hellos[hellos].instance, heard.hellos[0].instance);
}

#[tokio::test]
async fn told_to_stop_it_ends_what_runs_and_says_so() {
    let mut lab = Lab::prepare().await;
    lab.config = "[limits]\nstop_grace = \"300ms\"\n".into();
    lab.begin().await;
    let pid = lab.path("pid");
    let id = lab
        .send(&lab.shell(format!("echo $$ > {}; sleep 1000", pid.display())))
        .await;
    lab.broker
        .wait("the acknowledgement", |h| {
            h.accepted.contains(&id).then_some(())
        })
        .await;
    lab.until("the command", || lines(&pid) == 1).await;
    lab.terminate();
    let result = lab.broker.outcome(id).await.result;
    assert_eq!(result.outcome, Outcome::Cancelled);
    assert!(
        result
            .reason
            .as_deref()
            .unwrap()
            .starts_with("the agent was stopped"),
        "{result:?}"
    );
    assert_eq!(lab.ended().await, Some(0));
    lab.broker
        .wait("the goodbye", |h| (h.byes == 1).then_some(()))
        .await;
    assert!(!lives(&pid));
}

#[tokio::test]
async fn facts_are_sent_at_the_start_and_when_they_change() {
    let mut lab = Lab::prepare().await;
    let dir = lab.path("facts.d");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("rack.json"), r#"{"rack": "r03", "zone": "dk2"}"#).unwrap();
    lab.config = "facts_every = \"5s\"\n".into();
    lab.begin().await;
    let first = lab.broker.wait("facts", |h| h.facts.first().cloned()).await;
    assert_eq!(first.facts["rack"], "r03");
    assert!(first.facts["os"]["id"].is_string() && !first.facts.contains_key("zone"));
    assert_eq!(
        first.notes,
        ["the fact `zone` is left out: a label has this name"]
    );
    // What is selected by a fact is held against the newest one here.
    let mut request = lab.shell("true");
    request.predicate = "rack=r03 and zone=gva2".into();
    lab.send(&request).await;
    assert_eq!(
        lab.broker.outcome(request.id()).await.result.outcome,
        Outcome::Succeeded
    );
    std::fs::write(dir.join("rack.json"), r#"{"rack": "r04"}"#).unwrap();
    let second = lab
        .broker
        .wait("changed facts", |h| h.facts.get(1).cloned())
        .await;
    assert_eq!(second.facts["rack"], "r04");
    assert!(second.notes.is_empty());
    let mut request = lab.shell("true");
    request.predicate = "rack=r03".into();
    lab.send(&request).await;
    assert_eq!(
        lab.broker.outcome(request.id()).await.result.outcome,
        Outcome::Declined
    );
}

#[tokio::test]
async fn one_agent_for_one_state_and_a_status_for_people() {
    let lab = Lab::start().await;
    lab.run("true").await;
    let agent = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_muster-agent"))
            .args(args)
            .arg("--state")
            .arg(lab.path("state"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap()
            + String::from_utf8(output.stderr).unwrap().as_str();
        (output.status.code(), text)
    };
    let (code, text) = agent(&["run"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("another muster-agent (pid "), "{text}");
    let (code, text) = agent(&["status"]);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "web-01 (serial 7)",
        "roles       web",
        "labels      zone=gva2",
        "running pid ",
        "0 open",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let (_, json) = agent(&["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["serial"], &json["running"]),
        (&SERIAL.0.into(), &true.into())
    );
    let (code, text) = agent(&["run", "--check-config"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("concurrent = 16"), "{text}");
    let empty = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_muster-agent"))
        .args(["status", "--state"])
        .arg(empty.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("muster-agent enroll"));
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_executed() {
    let lab = Lab::start().await;
    assert_eq!(lab.run("true").await.result.outcome, Outcome::Succeeded);
    let witness = lab.path("witness");
    // Somebody holds the journal; a full disk ends in the same place.
    let journal = rusqlite::Connection::open(lab.path("state/journal.db")).unwrap();
    journal.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let request = lab.shell(format!("echo x >> {}", witness.display()));
    lab.send(&request).await;
    let result = lab.broker.outcome(request.id()).await.result;
    assert_eq!(result.outcome, Outcome::Declined);
    let reason = result.reason.unwrap();
    assert!(
        reason.starts_with("nothing was executed, because it cannot be journaled here"),
        "{reason}"
    );
    journal.execute_batch("ROLLBACK").unwrap();
    assert_eq!(lab.run("true").await.result.outcome, Outcome::Succeeded);
    assert_eq!(lines(&witness), 0);
}
