use proptest::prelude::*;

use super::*;
use crate::ids::ClusterId;
use crate::keys::{BrokerKey, BrokerKeyState, KeyList};

fn entry(i: u64) -> Entry {
    Entry {
        at: Timestamp::from_second(1_700_000_000 + i64::try_from(i).unwrap()).unwrap(),
        who: Who {
            principal: Some("ana".parse().unwrap()),
            ..Who::default()
        },
        action: "run.create".into(),
        verdict: Verdict::Allowed,
        why: None,
        times: None,
        until: None,
        about: Box::new(About {
            more: serde_json::json!({ "i": i }).as_object().cloned().unwrap(),
            ..About::default()
        }),
    }
}

struct Lab {
    key: PrivateKey,
    keys: KeyList,
}

impl Lab {
    fn new() -> Self {
        let (root, key) = (
            PrivateKey::from_seed(&[1; 32]),
            PrivateKey::from_seed(&[2; 32]),
        );
        let keys = KeyList {
            cluster: ClusterId::from_bytes([7; 16]),
            epoch: 1,
            root: root.public(),
            keys: vec![BrokerKey {
                key: key.public(),
                state: BrokerKeyState::Active,
                added: Timestamp::UNIX_EPOCH,
            }],
            issued: Timestamp::UNIX_EPOCH,
        };
        Self { key, keys }
    }

    fn checkpoint(&self, tail: Tail, cut: bool) -> String {
        let said = Checkpoint {
            cluster: self.keys.cluster,
            epoch: 3,
            count: tail.count,
            head: tail.head,
            at: Timestamp::from_second(1_700_001_000).unwrap(),
            cut,
        };
        serde_json::to_string(&Line::Checkpoint(said.sign(&self.key))).unwrap()
    }

    /// `count` records, a checkpoint behind every fourth and the last.
    fn chain(&self, count: u64, seed: u64) -> Vec<String> {
        let (mut tail, mut lines) = (Tail::START, Vec::new());
        for i in 1..=count {
            lines.push(tail.append(entry(i + seed)));
            if i % 4 == 0 || i == count {
                lines.push(self.checkpoint(tail, false));
            }
        }
        lines
    }

    fn verify(&self, lines: &[String], outside: Outside) -> Report {
        let mut verifier = Verifier::new(Some(self.keys.clone()), outside);
        for line in lines {
            verifier.take(line);
        }
        verifier.finish()
    }

    fn outside(&self, lines: &[String]) -> Outside {
        let mut outside = Outside::new();
        for (i, line) in lines.iter().enumerate() {
            let place = format!("kept line {}", i + 1);
            outside.take(line, Some(&self.keys), &place).unwrap();
        }
        outside
    }
}

fn is_checkpoint(line: &str) -> bool {
    line.contains("\"audit\":\"checkpoint\"")
}

fn first(report: &Report) -> (u64, FaultKind) {
    let fault = report.faults.first().expect("something is wrong");
    (fault.record, fault.kind)
}

#[test]
fn what_was_written_verifies_and_says_how_far() {
    let lab = Lab::new();
    let lines = lab.chain(10, 0);
    let report = lab.verify(&lines, lab.outside(&lines));
    assert!(report.is_good(), "{report:?}");
    assert_eq!(
        (report.records, report.covered, report.compared),
        (10, 10, 10)
    );
    assert_eq!((report.first, report.last), (Some(1), Some(10)));
}

#[test]
fn an_edit_is_found_where_it_is() {
    let lab = Lab::new();
    let mut lines = lab.chain(10, 0);
    lines[5] = lines[5].replace("ana", "eve");
    assert!(lines[5].contains("\"n\":5,"), "{}", lines[5]);
    assert_eq!(
        first(&lab.verify(&lines, Outside::new())),
        (5, FaultKind::Edited)
    );
    // The last one of all, by the checkpoint behind it.
    let mut lines = lab.chain(10, 0);
    let last = lines.len() - 2;
    lines[last] = lines[last].replace("ana", "eve");
    assert_eq!(
        first(&lab.verify(&lines, Outside::new())),
        (10, FaultKind::Edited)
    );
}

#[test]
fn what_is_dropped_cut_or_moved_is_found() {
    let lab = Lab::new();
    let whole = lab.chain(10, 0);
    let mut lines = whole.clone();
    lines.remove(2);
    assert_eq!(
        first(&lab.verify(&lines, Outside::new())),
        (3, FaultKind::Dropped)
    );
    let mut lines = whole.clone();
    lines.swap(1, 2);
    let report = lab.verify(&lines, Outside::new());
    assert_eq!(first(&report), (2, FaultKind::Reordered), "{report:?}");
    // Whoever cuts the end takes the checkpoints, too: only outside it shows.
    let lines = whole[..6].to_vec();
    assert!(lab.verify(&lines, Outside::new()).is_good());
    let report = lab.verify(&lines, lab.outside(&whole));
    assert_eq!(first(&report), (6, FaultKind::Truncated), "{report:?}");
    let lines = whole[3..].to_vec();
    assert_eq!(
        first(&lab.verify(&lines, Outside::new())),
        (3, FaultKind::Beheaded)
    );
    // Nothing at all is left.
    let report = lab.verify(&[], lab.outside(&whole));
    assert_eq!(first(&report), (1, FaultKind::Truncated));
}

#[test]
fn a_chain_that_was_computed_anew_shows_only_from_outside() {
    let lab = Lab::new();
    let (was, is) = (lab.chain(10, 0), lab.chain(12, 100));
    assert!(lab.verify(&is, Outside::new()).is_good());
    let kept: Vec<String> = was.iter().filter(|l| is_checkpoint(l)).cloned().collect();
    let report = lab.verify(&is, lab.outside(&kept));
    assert_eq!(first(&report), (4, FaultKind::Rewritten), "{report:?}");
    assert_eq!(report.compared, 3);
}

#[test]
fn a_checkpoint_that_nobody_signed_is_forged() {
    let lab = Lab::new();
    let mut lines = lab.chain(3, 0);
    let stranger = Lab {
        key: PrivateKey::from_seed(&[9; 32]),
        keys: lab.keys.clone(),
    };
    let tail = Tail::after_lines(&lines[2]).unwrap();
    lines.push(stranger.checkpoint(tail, false));
    assert_eq!(
        first(&lab.verify(&lines, Outside::new())),
        (3, FaultKind::Forged)
    );
    let line = lines.last().unwrap();
    let error = Outside::new().take(line, Some(&lab.keys), "x line 1");
    assert!(
        matches!(error, Err(OutsideError::Forged { .. })),
        "{error:?}"
    );
}

#[test]
fn what_age_removed_is_said_by_a_signed_cut() {
    let lab = Lab::new();
    let whole = lab.chain(10, 0);
    let mut lines = whole[3..].to_vec();
    let cut = Tail::after_lines(&whole[2]).unwrap();
    lines.push(lab.checkpoint(cut, true));
    let report = lab.verify(&lines, lab.outside(&whole));
    assert!(report.is_good(), "{report:?}");
    // Records 1 and 2 cannot be compared any more; 3 by its hash.
    assert_eq!((report.too_old, report.first), (2, Some(4)));
}

#[test]
fn the_tail_of_a_message_is_found() {
    let lab = Lab::new();
    let lines = lab.chain(8, 0);
    let whole = Tail::after_lines(&lines.join("\n")).unwrap();
    assert_eq!(Tail::after_lines(lines.last().unwrap()), Some(whole));
    assert_eq!(whole.count, 8);
    assert_eq!(Tail::after_lines("no such thing"), None);
    let cut = lab.checkpoint(Tail::START, true);
    assert_eq!(Tail::after_lines(&cut), None);
}

proptest! {
    /// Whatever is done to one line, it is found, when the file that was kept
    /// is held against it.
    #[test]
    fn every_change_of_a_record_is_found(count in 2u64..20, which in 0usize..20, how in 0u8..4, byte in 0usize..400) {
        let lab = Lab::new();
        let whole = lab.chain(count, 0);
        let records: Vec<usize> =
            (0..whole.len()).filter(|i| !is_checkpoint(&whole[*i])).collect();
        let at = records[which % records.len()];
        let mut lines = whole.clone();
        match how {
            0 => {
                let mut bytes = lines[at].clone().into_bytes();
                let byte = byte % bytes.len();
                bytes[byte] ^= 1;
                prop_assume!(bytes[byte] != b'\n');
                lines[at] = String::from_utf8(bytes).unwrap();
            }
            1 => { lines.remove(at); }
            2 => { let line = lines[at].clone(); lines.insert(at, line); }
            _ => lines.truncate(at),
        }
        let report = lab.verify(&lines, lab.outside(&whole));
        prop_assert!(!report.is_good());
    }

    /// No line panics.
    #[test]
    fn any_line_is_taken(line in ".{0,200}") {
        let mut verifier = Verifier::new(None, Outside::new());
        verifier.take(&line);
        let _ = verifier.finish();
        let _ = Tail::after_lines(&line);
    }
}
