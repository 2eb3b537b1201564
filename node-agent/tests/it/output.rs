//! What a command writes, and how it ends.

use muster_protocol::envelope::Ask;
use muster_protocol::run::{Outcome, Stream};
use muster_protocol::units::Span;
use serde_json::json;

use crate::lab::{Lab, Receipt, lines, lives, with_timeout};

#[tokio::test]
async fn a_hundred_megabytes_are_capped_and_the_rest_is_read() {
    let lab = Lab::start().await;
    let report = lab
        .run("head -c 104857600 /dev/zero | tr '\\0' x; echo done >&2")
        .await;
    let result = report.result;
    assert_eq!(
        (result.outcome, result.exit),
        (Outcome::Succeeded, Some(0)),
        "{result:?}"
    );
    assert_eq!((result.output_bytes, result.truncated), (1 << 20, true));
    let out = lab.output(report.request, Stream::Stdout);
    assert_eq!(out.len(), 1 << 20);
    assert!(out.iter().all(|b| *b == b'x'));
    assert!(report.chunks >= 32);
}

#[tokio::test]
async fn bytes_stay_what_they_were() {
    let lab = Lab::start().await;
    let report = lab
        .run("printf 'caf\\303\\251 \\377\\376\\000 \\033[31m'")
        .await;
    assert_eq!(
        lab.output(report.request, Stream::Stdout),
        b"caf\xc3\xa9 \xff\xfe\x00 \x1b[31m"
    );
    assert_eq!(
        report.inline.len(),
        1,
        "small and quick output travels inside"
    );
}

#[tokio::test]
async fn output_comes_while_it_runs_and_what_got_lost_is_sent_again() {
    let lab = Lab::start().await;
    lab.broker.acknowledge(Receipt::MissingOnce(vec![0, 1, 77]));
    let request = lab.shell(
        "echo one; sleep 0.6; echo two; while [ ! -e go ]; do sleep 0.05; done; echo three"
            .replace("go", &lab.path("go").display().to_string()),
    );
    let id = lab.send(&request).await;
    lab.broker
        .wait("output before the end", |h| {
            let all: Vec<u8> = h
                .output
                .range((id, 0)..)
                .flat_map(|(_, (_, d))| d.clone())
                .collect();
            (all == b"one\ntwo\n").then_some(())
        })
        .await;
    assert!(lab.broker.heard().accepted.contains(&id));
    assert_eq!(lab.broker.count_outcomes(id), 0);
    lab.broker.heard().output.clear();
    std::fs::write(lab.path("go"), "").unwrap();
    lab.broker
        .wait("the report after the missing chunks", |h| {
            (h.outcomes.iter().filter(|o| o.request == id).count() == 2).then_some(())
        })
        .await;
    assert_eq!(lab.output(id, Stream::Stdout), b"one\ntwo\nthree\n");
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let lab = Lab::start().await;
    for (argv, exit, word) in [
        (
            json!(["no-such-program"]),
            127,
            "command not found: `no-such-program` is not in",
        ),
        (json!(["/nonexistent/x"]), 127, "command not found"),
        (json!(["/etc/passwd"]), 126, "may not be executed"),
        (json!(["/"]), 126, "may not be executed"),
    ] {
        let id = lab.send(&lab.call(json!({ "argv": argv }))).await;
        let result = lab.broker.outcome(id).await.result;
        assert_eq!(
            (result.outcome, result.exit),
            (Outcome::Failed, Some(exit)),
            "{result:?}"
        );
        assert!(
            result.reason.as_deref().unwrap().contains(word),
            "{result:?}"
        );
    }
    let result = lab.run("kill -SEGV $$").await.result;
    assert_eq!(
        (result.signal, result.reason.as_deref()),
        (Some(11), Some("ended by signal 11 (SIGSEGV)"))
    );
}

#[tokio::test]
async fn the_deadline_ends_the_whole_tree() {
    let lab = Lab::start().await;
    let pid = |name: &str| lab.path(name).display().to_string();
    // A child in a session of its own with a cleaned environment, and one
    // whose parent has ended.
    let line = format!(
        "setsid env -i /bin/sh -c 'echo $$ > {}; exec /bin/sleep 1000' & \
         (setsid /bin/sh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 0.05; done' &) ; \
         echo $$ > {}; sleep 1000",
        pid("a"),
        pid("b"),
        pid("c")
    );
    let id = lab
        .send(&with_timeout(lab.shell(line), Span::from_millis(1500)))
        .await;
    let result = lab.broker.outcome(id).await.result;
    assert_eq!(result.outcome, Outcome::TimedOut, "{result:?}");
    assert!(
        result
            .reason
            .as_deref()
            .unwrap()
            .starts_with("still running after 1s500ms"),
        "{result:?}"
    );
    for name in ["a", "b", "c"] {
        assert!(!lives(&lab.path(name)), "{name} still lives");
    }
}

#[tokio::test]
async fn a_cancel_ends_what_runs_and_forbids_what_has_not_begun() {
    let lab = Lab::start().await;
    let pid = lab.path("pid");
    let request = lab.shell(format!("echo $$ > {}; sleep 1000", pid.display()));
    let id = lab.send(&request).await;
    lab.broker
        .wait("the acknowledgement", |h| {
            h.accepted.contains(&id).then_some(())
        })
        .await;
    lab.until("the command", || lines(&pid) == 1).await;
    let mut cancel = lab.request(Ask::Cancel);
    cancel.run = request.run;
    lab.send(&cancel).await;
    lab.send(&cancel).await;
    let result = lab.broker.outcome(id).await.result;
    assert_eq!(result.outcome, Outcome::Cancelled);
    assert!(
        result
            .reason
            .as_deref()
            .unwrap()
            .starts_with("cancelled while it ran"),
        "{result:?}"
    );
    assert!(!lives(&pid));

    let witness = lab.path("witness");
    let request = lab.shell(format!("echo x > {}", witness.display()));
    let mut cancel = lab.request(Ask::Cancel);
    cancel.run = request.run;
    lab.send(&cancel).await;
    let result = lab.broker.outcome(request.id()).await.result;
    assert_eq!(
        result.reason.as_deref(),
        Some("cancelled before it started")
    );
    lab.send(&request).await;
    lab.broker
        .wait("the outcome again", |h| {
            (h.outcomes
                .iter()
                .filter(|o| o.request == request.id())
                .count()
                == 2)
                .then_some(())
        })
        .await;
    assert_eq!(lines(&witness), 0);
}

#[tokio::test]
async fn no_more_at_once_than_the_node_takes() {
    let mut lab = Lab::prepare().await;
    lab.config = "[limits]\nconcurrent = 2\nqueued = 1\n".into();
    lab.begin().await;
    let begun = lab.path("begun");
    let go = lab.path("go");
    let line = format!(
        "echo x >> {}; while [ ! -e {} ]; do sleep 0.05; done",
        begun.display(),
        go.display()
    );
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(lab.send(&lab.shell(line.clone())).await);
    }
    let busy = lab.broker.outcome(ids[3]).await.result;
    assert_eq!(busy.outcome, Outcome::Declined);
    assert!(
        busy.reason
            .as_deref()
            .unwrap()
            .starts_with("busy: 2 steps run and 1 wait"),
        "{busy:?}"
    );
    for id in &ids[..3] {
        lab.broker
            .wait("an acknowledgement", |h| {
                h.accepted.contains(id).then_some(())
            })
            .await;
    }
    assert_eq!(lines(&begun), 2);
    lab.broker
        .wait("the count", |h| {
            (h.beats.last()?.running == 2).then_some(())
        })
        .await;
    std::fs::write(&go, "").unwrap();
    for id in &ids[..3] {
        assert_eq!(
            lab.broker.outcome(*id).await.result.outcome,
            Outcome::Succeeded
        );
    }
    assert_eq!(lines(&begun), 3);
}

#[tokio::test]
async fn a_command_inherits_nothing_of_the_agent() {
    let mut lab = Lab::prepare().await;
    lab.inherit = true;
    lab.begin().await;
    let id = lab
        .run("ls /proc/self/fd | wc -l; sleep 0.1; cat /proc/self/oom_score_adj; env | sort")
        .await
        .request;
    let text = String::from_utf8(lab.output(id, Stream::Stdout)).unwrap();
    let mut lines = text.lines();
    // Three streams, and the directory that `ls` reads.
    assert_eq!(lines.next(), Some("4"), "{text}");
    // The agent of this test is spared by the kernel; its commands are not.
    assert_eq!(lines.next(), Some("0"), "{text}");
    let names: Vec<&str> = lines
        .filter_map(|l| l.split('=').next())
        .filter(|n| !["PWD", "OLDPWD", "SHLVL", "_"].contains(n))
        .collect();
    assert_eq!(
        names,
        [
            "HOME",
            "LANG",
            "LOGNAME",
            "MUSTER_NODE",
            "MUSTER_REQUEST",
            "MUSTER_RUN",
            "MUSTER_SERIAL",
            "MUSTER_STEP",
            "PATH",
            "SHELL",
            "TERM",
            "USER",
        ]
    );
}
