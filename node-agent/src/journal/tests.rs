use muster_protocol::ids::{RunId, Serial};
use muster_protocol::run::Outcome;
use muster_protocol::units::{Span, after};

use super::*;
use crate::config::Retention;

fn journal() -> (tempfile::TempDir, Db) {
    let dir = tempfile::tempdir().expect("tempdir");
    let db = Db::open(&dir.path().join("journal.db")).expect("opens");
    (dir, db)
}

fn id(n: u8) -> RequestId {
    RequestId {
        run: RunId::from_bytes([n; 16]),
        step: 0,
    }
}

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + secs).expect("in range")
}

fn result(outcome: Outcome) -> NodeResult {
    NodeResult::new(Serial(3), outcome, "because")
}

fn note() -> StartNote {
    StartNote {
        instance: InstanceId::from_bytes([1; 16]),
        boot_id: "b".into(),
        timeout_ms: 5000,
    }
}

fn chunk(number: u32, data: &'static [u8]) -> Chunk {
    Chunk {
        number,
        stream: Stream::Stderr,
        data: Bytes::from_static(data),
    }
}

#[test]
fn a_step_goes_from_queued_to_finished_once() {
    let (_dir, db) = journal();
    assert_eq!(db.look(id(1)).expect("looks"), None);
    db.queue(id(1), at(0)).expect("queued");
    assert!(db.queue(id(1), at(0)).is_err(), "queued twice");
    db.start(id(1), &note(), at(1)).expect("started");
    assert!(db.start(id(1), &note(), at(1)).is_err(), "started twice");
    db.finish(id(1), &result(Outcome::Succeeded), 0, false, at(2))
        .expect("finished");
    // The first end stays.
    db.finish(id(1), &result(Outcome::Failed), 0, false, at(3))
        .expect("ignored");
    assert!(
        db.start(id(1), &note(), at(4)).is_err(),
        "started after its end"
    );
    let report = db.report(id(1)).expect("reads").expect("there");
    assert_eq!(report.result.outcome, Outcome::Succeeded);
}

#[test]
fn what_was_started_and_not_finished_is_found_after_a_restart() {
    let (dir, db) = journal();
    let process = ProcessNote {
        pid: 77,
        started: 1234,
        cgroup: Some("/sys/x".into()),
    };
    db.queue(id(1), at(0)).expect("queued");
    db.start(id(2), &note(), at(1)).expect("started");
    db.process(id(2), &process).expect("noted");
    db.start(id(3), &note(), at(2)).expect("started");
    db.finish(id(3), &result(Outcome::Failed), 0, false, at(2))
        .expect("finished");
    drop(db);
    let db = Db::open(&dir.path().join("journal.db")).expect("opens again");
    assert_eq!(
        db.unfinished().expect("reads"),
        [
            Unfinished {
                request: id(1),
                start: None,
                process: None
            },
            Unfinished {
                request: id(2),
                start: Some(note()),
                process: Some(process)
            },
        ]
    );
    assert_eq!(db.unacknowledged(10).expect("reads"), [id(3)]);
}

#[test]
fn output_is_kept_for_those_who_missed_it() {
    let (_dir, db) = journal();
    db.start(id(1), &note(), at(0)).expect("started");
    db.output(id(1), &chunk(0, b"one")).expect("kept");
    db.output(id(1), &chunk(1, b"\xff")).expect("kept");
    db.finish(id(1), &result(Outcome::Succeeded), 2, true, at(1))
        .expect("finished");
    assert_eq!(db.chunk(id(1), 1).expect("reads"), Some(chunk(1, b"\xff")));
    assert_eq!(db.chunk(id(1), 2).expect("reads"), None);
    let report = db.report(id(1)).expect("reads").expect("there");
    let inline: Vec<_> = report
        .inline
        .iter()
        .map(|c| c.data.bytes().expect("bytes"))
        .collect();
    assert_eq!(inline, [b"one".to_vec(), b"\xff".to_vec()]);
}

#[test]
fn it_forgets_acknowledged_before_unacknowledged_and_nothing_young() {
    let (_dir, mut db) = journal();
    let big: &'static [u8] = &[b'x'; 1000];
    for n in 1..=4 {
        db.start(id(n), &note(), at(i64::from(n))).expect("started");
        db.output(id(n), &chunk(0, big)).expect("kept");
        db.finish(
            id(n),
            &result(Outcome::Succeeded),
            1,
            false,
            at(i64::from(n)),
        )
        .expect("finished");
    }
    db.acknowledged(&[(id(2), at(10)), (id(3), at(11))])
        .expect("acknowledged");
    let keep = Retention {
        max_output_bytes: 2500,
        ..Retention::default()
    };
    let pruned = db.prune(&keep, at(20)).expect("prunes");
    assert_eq!(
        pruned,
        Pruned {
            outcomes: 0,
            outputs: 2
        }
    );
    assert!(
        db.chunk(id(1), 0).expect("reads").is_some(),
        "unacknowledged output went first"
    );
    let report = db.report(id(2)).expect("reads").expect("there");
    assert!(report.result.truncated && report.chunks == 0);

    // Zero retention still keeps what a copy of the request could repeat.
    let none = Retention {
        keep: Span::from_secs(0),
        max_outcomes: 0,
        ..Retention::default()
    };
    assert_eq!(db.prune(&none, at(300)).expect("prunes").outcomes, 0);
    assert_eq!(db.prune(&none, at(700)).expect("prunes").outcomes, 2);
    assert_eq!(db.counts().expect("counts").unacknowledged, 2);
    let long = after(at(0), std::time::Duration::from_secs(40 * 86_400));
    assert_eq!(db.prune(&none, long).expect("prunes").outcomes, 2);
    assert_eq!(db.counts().expect("counts"), Counts::default());
}

#[tokio::test]
async fn an_acknowledgement_counts_at_once_and_is_written_with_what_comes_next() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("journal.db");
    let journal = Journal::open(&path).expect("opens");
    for n in [1, 2] {
        let result = NodeResult::new(Serial(1), Outcome::Declined, "no");
        journal
            .finish(id(n), result, 0, false)
            .await
            .expect("written");
    }
    journal.acknowledged(id(1));
    let open = journal.unacknowledged(9).await.expect("reads");
    assert_eq!(open, [id(2)], "nobody reports it again");
    let counts = journal.counts().await.expect("reads");
    assert_eq!((counts.acknowledged, counts.unacknowledged), (1, 1));
    journal.acknowledged(id(2));
    journal.settle().await;
    let counts = Db::counts_of(&path).expect("reads");
    assert_eq!((counts.acknowledged, counts.unacknowledged), (2, 0));
}
