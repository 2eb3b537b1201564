//! Scenarios that the node lacks, from the broker: whole, in parts, damaged,
//! late, not at all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use muster_protocol::envelope::{Ask, Request};
use muster_protocol::ids::RequestId;
use muster_protocol::run::Outcome;
use muster_protocol::units::{Timestamp, after};
use muster_protocol::wire::{BUNDLE_PART, BundleHead, BundleRequest};
use muster_scenarios::bundle::Bundle;
use serde_json::json;

use crate::lab::{Lab, call, lines};

/// A scenario of three parts, that writes a line into a file.
fn large() -> Bundle {
    let files = [("data".parse().unwrap(), vec![7; 2 * BUNDLE_PART])];
    let script = r#"fn run(p) { command(["sh", "-c", "echo x >> " + p.to]); }"#;
    Bundle::new(script.into(), BTreeMap::from(files)).unwrap()
}

fn request(lab: &Lab, bundle: &Bundle) -> Request {
    let mut call = call(json!({ "to": lab.path("effects") }));
    call.scenario = "web".parse().unwrap();
    call.bundle = bundle.hash();
    lab.request(Ask::Call(call))
}

fn part(packed: &[u8], request: BundleRequest) -> (BundleHead, Vec<u8>) {
    let from = request.from as usize;
    let end = packed.len().min(from + BUNDLE_PART);
    let head = BundleHead::Part {
        from: request.from,
        bytes: packed.len() as u64,
    };
    (head, packed[from..end].to_vec())
}

async fn reason(lab: &Lab, id: RequestId) -> (Outcome, String) {
    let result = lab.broker.outcome(id).await.result;
    (result.outcome, result.reason.unwrap_or_default())
}

#[tokio::test]
async fn a_scenario_comes_once_in_parts_and_through_whatever_is_in_the_way() {
    let lab = Lab::start().await;
    let bundle = large();
    let packed = bundle.pack();
    let times = AtomicUsize::new(0);
    // Silence, no room, a lie about the place, damage, and then the truth.
    lab.broker.supply(move |request| {
        let good = part(&packed, request);
        match times.fetch_add(1, Ordering::Relaxed) {
            0 => Some((BundleHead::Busy, Vec::new())),
            1 => {
                let head = BundleHead::Part { from: 9, bytes: 90 };
                Some((head, vec![1]))
            }
            2 => Some((good.0, vec![0; good.1.len()])),
            _ => Some(good),
        }
    });
    let first = request(&lab, &bundle);
    lab.send(&first).await;
    let second = request(&lab, &bundle);
    lab.send(&second).await;
    for id in [first.id(), second.id()] {
        let (outcome, reason) = reason(&lab, id).await;
        assert_eq!(outcome, Outcome::Succeeded, "{reason}");
    }
    assert_eq!(lines(&lab.path("effects")), 2);
    // Twice in vain, once damaged, once in full: three parts each.
    let asked: Vec<u64> = lab.broker.heard().bundles.iter().map(|b| b.from).collect();
    let size = BUNDLE_PART as u64;
    assert_eq!(asked, [0, 0, 0, size, 2 * size, 0, size, 2 * size]);
    // It is kept: nobody asks again.
    let third = request(&lab, &bundle);
    lab.send(&third).await;
    assert_eq!(reason(&lab, third.id()).await.0, Outcome::Succeeded);
    assert_eq!(lab.broker.heard().bundles.len(), asked.len());
}

#[tokio::test]
async fn what_does_not_come_is_declined_with_its_reason_and_nothing_happens() {
    let lab = Lab::start().await;
    let bundle = large();
    lab.broker.supply(|_| {
        let reason = "no scenario here\u{1b}[2J".to_owned();
        Some((BundleHead::None { reason }, Vec::new()))
    });
    let none = request(&lab, &bundle);
    lab.send(&none).await;
    let said = reason(&lab, none.id()).await;
    let text = "web: the broker did not give the scenario: no scenario here\\x1b[2J";
    assert_eq!(said, (Outcome::Declined, text.to_owned()));

    let other = Bundle::new("fn run(p) {}".into(), BTreeMap::new()).unwrap();
    let packed = other.pack();
    lab.broker
        .supply(move |request| Some(part(&packed, request)));
    let wrong = request(&lab, &bundle);
    lab.send(&wrong).await;
    let (outcome, said) = reason(&lab, wrong.id()).await;
    assert_eq!(outcome, Outcome::Declined);
    assert!(
        said.starts_with("web: what came is not the scenario that was signed"),
        "{said}"
    );

    lab.broker.supply(|_| Some((BundleHead::Busy, Vec::new())));
    let mut late = request(&lab, &bundle);
    let ago = |seconds| after(Timestamp::now(), Duration::ZERO) - Duration::from_secs(seconds);
    (late.issued, late.start_before) = (ago(29), ago(28));
    lab.send(&late).await;
    let said = reason(&lab, late.id()).await;
    let text = "web: the scenario did not come in time: the broker gives out many at this time";
    assert_eq!(said, (Outcome::Declined, text.to_owned()));
    assert_eq!(lines(&lab.path("effects")), 0);
}

#[tokio::test]
async fn whoever_waits_for_a_scenario_is_written_down_and_can_be_cancelled() {
    let mut lab = Lab::start().await;
    let bundle = large();
    let one = request(&lab, &bundle);
    lab.send(&one).await;
    let asked =
        |times: usize| move |h: &crate::lab::Heard| (h.bundles.len() >= times).then_some(());
    lab.broker.wait("the question", asked(1)).await;
    lab.broker
        .wait("the acknowledgement", |h| {
            h.accepted.contains(&one.id()).then_some(())
        })
        .await;
    let cancel = Request {
        promised: false,
        ask: Ask::Cancel,
        ..one.clone()
    };
    lab.send(&cancel).await;
    let (outcome, reason_given) = reason(&lab, one.id()).await;
    assert_eq!(outcome, Outcome::Cancelled, "{reason_given}");

    let two = request(&lab, &bundle);
    lab.send(&two).await;
    lab.broker.wait("the question", asked(2)).await;
    lab.kill();
    lab.begin().await;
    let (outcome, said) = reason(&lab, two.id()).await;
    assert_eq!(outcome, Outcome::Cancelled);
    assert!(said.contains("it never ran"), "{said}");
    assert_eq!(lines(&lab.path("effects")), 0);
}
