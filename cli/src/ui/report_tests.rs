use std::collections::BTreeMap;
use std::time::Duration;

use muster_protocol::api::{Frame, RunNode};
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::names::NodeName;
use muster_protocol::run::{Data, Outcome, RunPhase, Stream, Summary};
use proptest::prelude::*;

use super::super::Paint;
use super::super::book::Book;
use super::{Onward, Style, body, foot, groups, head};

fn run() -> RunId {
    RunId::from_bytes([7; 16])
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn book(title: &str, nodes: u32) -> Book {
    let mut book = Book::default();
    book.apply(&Frame::RunCreated {
        run: run(),
        short: "7f3k".into(),
        title: title.into(),
        predicate: "role=web and zone=gva2".into(),
        principal: "ana".parse().expect("a name"),
        nodes,
        batches: 1,
        left_out: 0,
    });
    book
}

fn said(book: &mut Book, node: &str, stream: Stream, bytes: &[u8]) {
    book.apply(&Frame::Output {
        run: run(),
        node: name(node),
        stream,
        chunk: 0,
        data: Data::new(bytes),
    });
}

fn ended(book: &mut Book, node: &str, outcome: Outcome, reason: Option<&str>, exit: Option<i32>) {
    let result = RunNode {
        node: name(node),
        serial: Serial(1),
        outcome: Some(outcome),
        reason: reason.map(Into::into),
        exit,
        signal: None,
        ms: None,
        output_bytes: 0,
        value: None,
        value_bytes: None,
        tally: None,
        digest: None,
        rolled_back: false,
        taken_back: false,
        late: vec![],
    };
    book.apply(&Frame::Outcome {
        run: run(),
        result,
        truncated: false,
    });
}

fn finish(book: &mut Book, state: RunPhase) {
    let summary: Summary = book.summary();
    book.apply(&Frame::RunFinished {
        run: run(),
        state,
        summary,
        nodes: BTreeMap::new(),
    });
    book.took = Some(Duration::from_millis(310));
}

fn style() -> Style {
    Style {
        paint: Paint::plain(),
        width: 80,
        full: false,
    }
}

fn all(book: &Book) -> String {
    format!(
        "{}{}{}",
        head(book, Paint::plain()),
        body(book, style()),
        foot(book, style(), Onward::Show)
    )
}

#[test]
fn the_fleet_in_four_lines() {
    let mut book = book("nginx -v", 24);
    for n in 1..=24 {
        let node = format!("web-{n:02}");
        if n == 19 {
            ended(
                &mut book,
                &node,
                Outcome::Unreachable,
                Some("last seen 4 min ago"),
                None,
            );
            continue;
        }
        let version = if n == 7 { "1.22.1" } else { "1.24.0" };
        said(
            &mut book,
            &node,
            Stream::Stdout,
            format!("nginx version: nginx/{version}\n").as_bytes(),
        );
        ended(&mut book, &node, Outcome::Succeeded, None, Some(0));
    }
    finish(&mut book, RunPhase::Failed);
    insta::assert_snapshot!(all(&book));
}

#[test]
fn the_head_says_what_was_left_out() {
    let mut book = book("true", 4);
    book.left_out = 1;
    insta::assert_snapshot!(head(&book, Paint::plain()), @r"
    run 7f3k  true  on 4 nodes  (role=web and zone=gva2)
    1 of the broker's own machines matches and is left out  (--include-infrastructure)
    ");
}

#[test]
fn failures_show_why_and_their_last_lines() {
    let mut book = book("make deploy", 5);
    for n in 1..=3 {
        let node = format!("web-0{n}");
        said(&mut book, &node, Stream::Stdout, b"building\n\nlinking\n");
        said(
            &mut book,
            &node,
            Stream::Stderr,
            b"warning: old\x1b[2J compiler\n",
        );
        ended(&mut book, &node, Outcome::Succeeded, None, Some(0));
    }
    let long: String = (0..40).map(|n| format!("step {n}\n")).collect();
    said(&mut book, "web-04", Stream::Stdout, long.as_bytes());
    said(
        &mut book,
        "web-04",
        Stream::Stderr,
        b"make: *** [deploy] Error 3\n",
    );
    ended(
        &mut book,
        "web-04",
        Outcome::Failed,
        Some("exited with 3"),
        Some(3),
    );
    ended(&mut book, "db-1", Outcome::TimedOut, None, None);
    finish(&mut book, RunPhase::Failed);
    insta::assert_snapshot!(all(&book));
}

#[test]
fn silence_and_many_failures_are_said_in_short() {
    let mut book = book("true", 46);
    for n in 1..=3 {
        ended(
            &mut book,
            &format!("a-{n}"),
            Outcome::Succeeded,
            None,
            Some(0),
        );
    }
    for n in 1..=40 {
        ended(
            &mut book,
            &format!("gva2-r03-h{n:02}"),
            Outcome::Failed,
            None,
            Some(127),
        );
    }
    for n in ["x", "y", "z-with-a-long-name-of-its-own.example.org"] {
        ended(
            &mut book,
            n,
            Outcome::Skipped,
            Some("the failure budget was used up"),
            None,
        );
    }
    book.max_failures = Some("10%".into());
    finish(&mut book, RunPhase::Failed);
    insta::assert_snapshot!(all(&book));
}

#[test]
fn output_that_the_broker_lost_is_said() {
    let mut book = book("nginx -v", 2);
    said(&mut book, "a", Stream::Stdout, b"nginx 1.24\n");
    for node in ["a", "b"] {
        book.apply(&Frame::Outcome {
            run: run(),
            result: RunNode {
                node: name(node),
                serial: Serial(1),
                outcome: Some(Outcome::Succeeded),
                reason: None,
                exit: Some(0),
                signal: None,
                ms: Some(12),
                output_bytes: 11 + u64::from(node == "b"),
                value: None,
                value_bytes: None,
                tally: None,
                digest: None,
                rolled_back: false,
                taken_back: false,
                late: vec![],
            },
            truncated: false,
        });
    }
    let shown = body(&book, style());
    assert_eq!(shown.matches("is gone").count(), 1, "{shown}");
    assert!(
        shown.contains("a  nginx 1.24") && shown.contains("(its output is gone"),
        "{shown}"
    );
}

#[test]
fn truncated_late_and_cancelled_are_marked() {
    let mut book = book("yes", 2);
    said(&mut book, "a", Stream::Stdout, b"y\ny\n");
    book.apply(&Frame::Outcome {
        run: run(),
        result: RunNode {
            node: name("a"),
            serial: Serial(1),
            outcome: Some(Outcome::Cancelled),
            reason: Some("cancelled".into()),
            exit: None,
            signal: Some(9),
            ms: Some(12),
            output_bytes: 0,
            value: None,
            value_bytes: None,
            tally: None,
            digest: None,
            rolled_back: false,
            taken_back: false,
            late: vec![],
        },
        truncated: true,
    });
    ended(
        &mut book,
        "b",
        Outcome::Unknown,
        Some("sent, and not acknowledged"),
        None,
    );
    book.apply(&Frame::LateOutcome {
        run: run(),
        node: name("b"),
        outcome: Outcome::Succeeded,
    });
    book.apply(&Frame::RunCancelling {
        run: run(),
        by: "ana".parse().expect("a name"),
    });
    finish(&mut book, RunPhase::Cancelled);
    insta::assert_snapshot!(all(&book));
}

#[test]
fn with_colours_standard_error_needs_no_mark() {
    let mut book = book("x", 1);
    said(&mut book, "a", Stream::Stderr, b"oops\n");
    ended(&mut book, "a", Outcome::Succeeded, None, Some(0));
    let shown = body(
        &book,
        Style {
            paint: Paint::colours(),
            ..style()
        },
    );
    assert!(
        shown.contains("\x1b[33moops\x1b[0m") && !shown.contains("2>"),
        "{shown:?}"
    );
}

proptest! {
    #[test]
    fn every_node_is_in_exactly_one_group_and_no_line_is_lost(
        nodes in prop::collection::btree_map("[a-c][0-9]{1,2}", (0..3u8, 0..4u8, prop::collection::vec("[xy]{0,3}", 0..4)), 1..40),
    ) {
        let mut book = book("x", nodes.len() as u32);
        for (node, (outcome, exit, lines)) in &nodes {
            for line in lines {
                said(&mut book, node, Stream::Stdout, format!("{line}\n").as_bytes());
            }
            let outcome = [Outcome::Succeeded, Outcome::Failed, Outcome::Unknown][usize::from(*outcome)];
            ended(&mut book, node, outcome, None, Some(i32::from(*exit)));
        }
        let mut found = BTreeMap::new();
        for group in groups(&book) {
            for node in &group.nodes {
                let lines: Vec<String> = group.output.iter().map(|l| l.text.clone()).collect();
                prop_assert!(found.insert(node.clone(), lines).is_none(), "{node} twice");
            }
        }
        let want: BTreeMap<_, _> = nodes.iter().map(|(n, (_, _, l))| (n.clone(), l.clone())).collect();
        prop_assert_eq!(found, want);
        // Named, or counted in the group that stands for the rule.
        let shown = body(&book, Style { full: true, ..style() });
        for group in groups(&book).iter().skip(1) {
            if let [one] = group.nodes.as_slice() {
                prop_assert!(shown.contains(one.as_str()), "{one} is missing in {shown}");
            }
        }
    }
}

#[test]
fn what_was_taken_back_is_not_counted_as_done_and_not_retried() {
    let mut book = book("deploy", 3);
    for (node, outcome, reason) in [
        ("web-01", Outcome::Succeeded, None),
        ("web-02", Outcome::Succeeded, None),
        ("web-03", Outcome::Failed, Some("held by apt")),
    ] {
        let result = RunNode {
            outcome: Some(outcome),
            reason: reason.map(Into::into),
            taken_back: true,
            ..RunNode::new(name(node), Serial(1))
        };
        book.apply(&Frame::Outcome {
            run: run(),
            result,
            truncated: false,
        });
    }
    finish(&mut book, RunPhase::Failed);
    let style = Style {
        paint: Paint::plain(),
        width: 100,
        full: false,
    };
    let said = format!(
        "{}{}",
        body(&book, style),
        foot(&book, style, Onward::Retry)
    );
    insta::assert_snapshot!(said, @r"
    2 nodes  taken back
    web-03   failed: held by apt (taken back)
    1 failed, 2 taken back in 0.31 s
    ");
}
