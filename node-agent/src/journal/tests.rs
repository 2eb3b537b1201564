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
                received: at(0),
                start: None,
                process: None
            },
            Unfinished {
                request: id(2),
                received: at(1),
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
    let (_dir, db) = journal();
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

fn sealed(n: u8, bytes: usize) -> Kept {
    let key = muster_protocol::keys::PrivateKey::generate();
    let purpose = muster_protocol::keys::Purpose::Request;
    let payload = vec![n; bytes];
    Kept {
        list: muster_protocol::keys::SignedText::sign(&key, purpose, &"a list"),
        request: muster_protocol::envelope::Sealed {
            signature: key.sign(purpose, &payload),
            key: key.public().id(),
            bytes: payload,
        },
    }
}

#[tokio::test]
async fn a_request_is_kept_as_long_as_its_outcome_and_the_oldest_go_first() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("journal.db");
    let journal = Journal::open(&path).expect("opens");
    journal.begin().await.expect("begins");
    let first = journal.position();
    let kept = sealed(1, 100);
    journal
        .start(id(1), note(), kept.clone())
        .await
        .expect("started");
    assert!(journal.position() > first);
    let found = journal.request(id(1)).await.expect("reads");
    assert_eq!(found.as_ref(), Some(&kept.request));
    let list = journal.list_with(kept.request.key).await.expect("reads");
    assert_eq!(list, Some(kept.list));
    // A copy of it changes nothing.
    let position = journal.position();
    journal.keep(id(1), sealed(9, 5)).await.expect("ignored");
    assert_eq!(journal.position(), position);
    assert_eq!(journal.request(id(1)).await.expect("reads"), found);

    // A flood of large ones: the oldest go, the newest stay.
    for n in 2..=70 {
        journal
            .start(id(n), note(), sealed(n, 1 << 20))
            .await
            .expect("started");
    }
    assert_eq!(journal.request(id(1)).await.expect("reads"), None);
    assert_eq!(journal.request(id(2)).await.expect("reads"), None);
    assert!(journal.request(id(70)).await.expect("reads").is_some());
    drop(journal);
    let journal = Journal::open(&path).expect("opens again");
    journal.begin().await.expect("begins");
    assert!(journal.position() > position, "it never falls");

    // With the outcome goes the request.
    for n in [69, 70] {
        let result = result(Outcome::Succeeded);
        journal
            .finish(id(n), result, 0, false)
            .await
            .expect("ended");
        journal.acknowledged(id(n));
    }
    let keep = Retention {
        max_outcomes: 0,
        ..Retention::default()
    };
    let now = Timestamp::now();
    let later = after(now, std::time::Duration::from_secs(3600));
    journal
        .with(move |db| db.prune(&keep, later))
        .await
        .expect("pruned");
    assert_eq!(journal.request(id(70)).await.expect("reads"), None);
    assert!(journal.request(id(68)).await.expect("reads").is_some());
}

#[tokio::test]
async fn a_recall_is_done_once_and_only_from_its_time_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(&dir.path().join("journal.db")).expect("opens");
    let now = Timestamp::now();
    for n in 1..=3 {
        journal
            .start(id(n), note(), sealed(n, 10))
            .await
            .expect("started");
        let result = result(Outcome::Succeeded);
        journal
            .finish(id(n), result, 0, false)
            .await
            .expect("ended");
        let hour = std::time::Duration::from_secs(3600 * u64::from(n));
        let at = now.checked_sub(hour).expect("in range");
        journal
            .with(move |db| db.acknowledged(&[(id(n), at)]))
            .await
            .expect("noted");
    }
    let marks = journal.mark().await.expect("reads").acknowledged;
    assert_eq!(marks.len(), 3);
    let recall = muster_protocol::wire::Recall {
        id: InstanceId::random(),
        since: now,
    };
    let since = now
        .checked_sub(std::time::Duration::from_secs(3600 * 2 + 60))
        .expect("in range");
    assert_eq!(journal.recall(since, recall).await.expect("done"), 2);
    let again = journal.unacknowledged(10).await.expect("reads");
    assert_eq!(again, [id(1), id(2)]);
    assert_eq!(journal.recall(since, recall).await.expect("done"), 0);
    let marks = journal.mark().await.expect("reads").acknowledged;
    assert_eq!(marks.len(), 1);
}

#[test]
fn a_journal_of_an_earlier_agent_is_taken_over_and_can_be_given_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("journal.db");
    let old = rusqlite::Connection::open(&path).expect("opens");
    // As the first agents made it.
    old.execute_batch(
        "CREATE TABLE step (
            run BLOB NOT NULL, step INTEGER NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('queued', 'started', 'finished')),
            received INTEGER NOT NULL,
            started INTEGER, timeout_ms INTEGER, instance TEXT, boot_id TEXT,
            pid INTEGER, pid_started INTEGER, cgroup TEXT,
            finished INTEGER, result TEXT, chunks INTEGER, inline INTEGER,
            acknowledged INTEGER,
            PRIMARY KEY (run, step)
        ) WITHOUT ROWID;
        INSERT INTO step (run, step, state, received, finished, result, chunks, inline, acknowledged)
        VALUES (x'01010101010101010101010101010101', 0, 'finished', 1, 2,
            '{\"serial\":3,\"outcome\":\"succeeded\"}', 0, 0, 3);
        PRAGMA user_version = 1;",
    )
    .expect("made");
    drop(old);
    let db = Db::open(&path).expect("taken over");
    assert!(db.report(id(1)).expect("reads").is_some());
    let position = std::sync::atomic::AtomicU64::new(0);
    db.keep(id(2), &sealed(2, 10), &position).expect("kept");
    db.start(id(2), &note(), at(1)).expect("started");
    drop(db);
    let back = rusqlite::Connection::open(&path).expect("opens");
    let version: u32 = back
        .pragma_query_value(None, "user_version", |r| r.get(0))
        .expect("reads");
    assert_eq!(version, 1, "an earlier agent refuses a higher one");
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
