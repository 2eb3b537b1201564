//! The record in a real store: written, tampered with, read again.

mod full;

use std::time::Duration;

use futures_util::TryStreamExt as _;
use muster_protocol::audit::{FaultKind, Outside, Report, Verifier};
use muster_protocol::keys::KeyList;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::nats::testing::TestServer;
use crate::state_dir::StateDir;
use crate::store::append::append;
use crate::store::read::read_from;
use crate::testing::wait_for;

struct Lab {
    server: TestServer,
    js: Context,
    authority: Authority,
    keys: KeyList,
    dir: tempfile::TempDir,
    config: AuditConfig,
}

/// The record, open.
struct Opened {
    audit: Audit,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Lab {
    async fn start() -> Self {
        let server = TestServer::start().await;
        let js = crate::store::context(Box::pin(server.broker()).await);
        let (_, authority) = Authority::in_memory();
        let dir = tempfile::tempdir().unwrap();
        let sink = SinkConfig::File {
            path: dir.path().join("outside.jsonl"),
        };
        Self {
            server,
            js,
            keys: (*authority.list()).clone(),
            authority,
            dir,
            config: AuditConfig {
                sinks: vec![sink],
                checkpoint_every: 5,
                ..AuditConfig::default()
            },
        }
    }

    async fn try_open(&self, epoch: u64) -> Result<Opened, AuditError> {
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let parts = Parts {
            js: self.js.clone(),
            lease: Lease::fixed(epoch),
            authority: self.authority.clone(),
            events: Events::log_only(),
            state: StateDir::open(&self.dir.path().join("state")).unwrap(),
            config: self.config.clone(),
        };
        let audit = Audit::open(parts, &tasks, &cancel).await?;
        Ok(Opened {
            audit,
            tasks,
            cancel,
        })
    }

    async fn open(&self) -> Opened {
        self.try_open(7).await.unwrap()
    }

    /// What the store has, line by line.
    async fn lines(&self) -> Vec<String> {
        let messages = read_from(&self.js, STREAM, AUDIT, 1).await.unwrap();
        let messages: Vec<_> = messages.try_collect().await.unwrap();
        let text =
            |m: &crate::store::read::StoredMessage| String::from_utf8(m.payload.to_vec()).unwrap();
        let texts: Vec<String> = messages.iter().map(text).collect();
        texts
            .iter()
            .flat_map(|t| t.lines())
            .map(str::to_owned)
            .collect()
    }

    /// Puts other lines into the store, as somebody does who has its disk.
    async fn replace(&self, lines: &[String]) {
        self.js.delete_stream(STREAM).await.unwrap();
        ensure(&self.js).await.unwrap();
        for line in lines {
            let message = Append::new(AUDIT, line.clone());
            append(&self.js, STREAM, &message).await.unwrap();
        }
    }

    fn outside(&self) -> Outside {
        let mut outside = Outside::new();
        let path = self.dir.path().join("outside.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        for line in text.lines() {
            outside.take(line, Some(&self.keys), "outside").unwrap();
        }
        outside
    }

    fn verify(&self, lines: &[String], outside: Outside) -> Report {
        let mut verifier = Verifier::new(Some(self.keys.clone()), outside);
        lines.iter().for_each(|line| verifier.take(line));
        verifier.finish()
    }

    /// Opens it, writes `count` entries, and ends it; the sink has all of it.
    async fn written(&self, count: u64) -> Vec<String> {
        let opened = self.open().await;
        for i in 0..count {
            opened.audit.append(entry(i)).await.unwrap();
        }
        opened.end().await;
        self.lines().await
    }
}

use crate::store::append::Append;

fn entry(i: u64) -> Entry {
    let mut entry = Audit::entry("run", Verdict::Allowed);
    entry.who.principal = Some("ana".parse().unwrap());
    entry.about.more.insert("i".to_owned(), i.into());
    entry
}

impl Opened {
    async fn end(self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn kinds(report: &Report) -> Vec<(u64, FaultKind)> {
    report.faults.iter().map(|f| (f.record, f.kind)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_verifies_and_is_outside_too() {
    let lab = Lab::start().await;
    let lines = lab.written(12).await;
    let report = lab.verify(&lines, lab.outside());
    assert!(report.is_good(), "{report:?}");
    // The last checkpoint is of the end, and the sink has everything.
    assert_eq!(
        (report.records, report.covered, report.compared),
        (12, 12, 12)
    );
    // Another session goes on where this one ended.
    let lines = lab.written(3).await;
    let report = lab.verify(&lines, lab.outside());
    assert!(report.is_good() && report.records == 15, "{report:?}");
    let path = lab.dir.path().join("outside.jsonl");
    let outside = std::fs::read_to_string(path).unwrap();
    assert_eq!(outside.lines().collect::<Vec<_>>(), lines, "nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tampering_in_the_store_is_found() {
    let lab = Lab::start().await;
    let whole = lab.written(12).await;
    let at = |n: u64| {
        let mark = format!("\"n\":{n},");
        whole.iter().position(|l| l.contains(&mark)).unwrap()
    };
    let check = async |lines: Vec<String>, with_outside: bool| {
        lab.replace(&lines).await;
        let outside = if with_outside {
            lab.outside()
        } else {
            Outside::new()
        };
        kinds(&lab.verify(&lab.lines().await, outside))
    };
    let mut lines = whole.clone();
    lines[at(4)] = lines[at(4)].replace("ana", "eve");
    assert_eq!(check(lines, false).await[0], (4, FaultKind::Edited));
    let mut lines = whole.clone();
    lines.remove(at(7));
    assert_eq!(check(lines, false).await[0], (7, FaultKind::Dropped));
    let mut lines = whole.clone();
    lines.swap(at(2), at(3));
    assert_eq!(check(lines, false).await[0], (2, FaultKind::Reordered));
    let lines = whole[..at(9)].to_vec();
    assert_eq!(check(lines.clone(), false).await, []);
    assert_eq!(check(lines, true).await[0], (9, FaultKind::Truncated));
    // Everything anew, signed with the broker's own key.
    let (mut tail, mut lines) = (muster_protocol::audit::Tail::START, Vec::new());
    for i in 0..12 {
        let mut entry = entry(i);
        entry.who.principal = Some("eve".parse().unwrap());
        lines.push(tail.append(entry));
    }
    let said = muster_protocol::audit::Checkpoint {
        cluster: lab.keys.cluster,
        epoch: 7,
        count: tail.count,
        head: tail.head,
        at: Timestamp::now(),
        cut: false,
    };
    let signed = said.sign(&lab.authority.signer().key);
    let line = muster_protocol::audit::Line::Checkpoint(signed);
    lines.push(serde_json::to_string(&line).unwrap());
    assert_eq!(check(lines.clone(), false).await, []);
    assert_eq!(check(lines, true).await[0], (1, FaultKind::Rewritten));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_share_messages_and_each_has_its_place() {
    let lab = Lab::start().await;
    let opened = lab.open().await;
    let all = (0..500).map(|i| {
        let audit = opened.audit.clone();
        async move { audit.append(entry(i)).await }
    });
    for result in futures_util::future::join_all(all).await {
        result.unwrap();
    }
    opened.end().await;
    let report = lab.verify(&lab.lines().await, lab.outside());
    assert!(report.is_good() && report.records == 500, "{report:?}");
    let stream = lab.js.get_stream(STREAM).await.unwrap();
    let messages = stream.cached_info().state.messages;
    assert!(messages < 250, "{messages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_whose_answer_was_lost_does_not_fork_the_chain() {
    let lab = Lab::start().await;
    let opened = lab.open().await;
    opened.audit.append(entry(0)).await.unwrap();
    // Somebody has appended what this owner does not know: as one of its own
    // messages, of which it never heard that it was stored.
    let place = Place::find(&lab.js).await.unwrap();
    let mut tail = place.tail;
    let line = tail.append(entry(1));
    let message = Append::new(AUDIT, line).expecting(place.sequence);
    append(&lab.js, STREAM, &message).await.unwrap();
    opened.audit.append(entry(2)).await.unwrap();
    opened.end().await;
    let report = lab.verify(&lab.lines().await, Outside::new());
    assert!(report.is_good() && report.records == 3, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lost_the_end_is_found_out_and_numbers_are_not_given_again() {
    let lab = Lab::start().await;
    let whole = lab.written(12).await;
    lab.replace(&whole[..8]).await;
    let lines = lab.written(2).await;
    let gap = lines
        .iter()
        .find(|l| l.contains("audit-gap"))
        .expect("it is recorded");
    assert!(gap.contains("\"n\":13,"), "{gap}");
    let report = lab.verify(&lines, lab.outside());
    let found = kinds(&report);
    assert!(
        found.iter().all(|(_, kind)| *kind == FaultKind::Dropped),
        "{report:?}"
    );
    assert!(!found.is_empty() && report.last == Some(15), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_cannot_be_read_is_recorded_and_stops_nobody() {
    let lab = Lab::start().await;
    let mut lines = lab.written(12).await;
    let last = lines.len() - 1;
    lines[last] = "no line of a record".to_owned();
    lab.replace(&lines).await;
    let lines = lab.written(1).await;
    assert!(
        lines
            .iter()
            .any(|l| l.contains("audit-changed") && l.contains("\"n\":13,"))
    );
    let report = lab.verify(&lines, lab.outside());
    assert_eq!(kinds(&report), [(13, FaultKind::Unreadable)], "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_goes_and_what_stays_still_verifies() {
    let lab = Lab::start().await;
    let opened = lab.open().await;
    for i in 0..7 {
        opened.audit.append(entry(i)).await.unwrap();
    }
    wait_for("time goes on in the store", async || {
        let last = Place::find(&lab.js).await.unwrap().time?;
        (muster_protocol::units::elapsed(last, Timestamp::now()) > Duration::from_millis(1500))
            .then_some(())
    })
    .await;
    opened.audit.append(entry(7)).await.unwrap();
    opened
        .audit
        .cut_before(Duration::from_millis(1200))
        .await
        .unwrap();
    opened.end().await;
    let lines = lab.lines().await;
    assert!(!lines.iter().any(|l| l.contains("\"n\":6,")), "{lines:?}");
    let report = lab.verify(&lines, lab.outside());
    assert!(report.is_good() && report.first == Some(8), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_counted_and_a_sink_that_was_down_gets_what_it_missed() {
    let mut lab = Lab::start().await;
    let place = lab.dir.path().join("later/outside.jsonl");
    lab.config.sinks = vec![SinkConfig::File {
        path: place.clone(),
    }];
    let opened = lab.open().await;
    for _ in 0..50 {
        let mut read = Audit::entry("read-nodes", Verdict::Allowed);
        read.who.token = Some("t".to_owned());
        opened.audit.note(read);
    }
    opened.audit.append(entry(0)).await.unwrap();
    opened
        .audit
        .stranger(Some([192, 0, 2, 7].into()), "GET /v1/nodes", "expired");
    opened.end().await;
    assert!(!place.exists());
    let lines = lab.lines().await;
    let reads: Vec<_> = lines.iter().filter(|l| l.contains("read-nodes")).collect();
    assert_eq!(reads.len(), 2, "{lines:?}");
    assert!(reads[1].contains("\"times\":49"), "{lines:?}");
    assert!(
        lines
            .iter()
            .any(|l| l.contains("192.0.2.7") && l.contains("authenticate"))
    );
    std::fs::create_dir(place.parent().unwrap()).unwrap();
    let opened = lab.open().await;
    wait_for("the sink has all", async || {
        let text = std::fs::read_to_string(&place).unwrap_or_default();
        lines
            .iter()
            .all(|line| text.contains(line.as_str()))
            .then_some(())
    })
    .await;
    opened.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_recorded_by_who_is_not_active_or_without_a_store() {
    let mut lab = Lab::start().await;
    lab.config.sinks.clear();
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let parts = Parts {
        js: lab.js.clone(),
        lease: Lease::not_held(),
        authority: lab.authority.clone(),
        events: Events::log_only(),
        state: StateDir::open(&lab.dir.path().join("state")).unwrap(),
        config: lab.config.clone(),
    };
    let audit = Audit::open(parts, &tasks, &cancel).await.unwrap();
    let error = audit.append(entry(0)).await;
    assert!(matches!(error, Err(AuditError::NotActive)), "{error:?}");
    cancel.cancel();
    tasks.close();
    tasks.wait().await;
    assert_eq!(lab.lines().await, Vec::<String>::new());
    drop(lab.server);
}
