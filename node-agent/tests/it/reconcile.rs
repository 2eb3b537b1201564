//! What the node does when the broker, or it itself, has gone back in time.

use std::time::Duration;

use muster_protocol::envelope::Ask;
use muster_protocol::ids::{InstanceId, RequestId};
use muster_protocol::run::Outcome;
use muster_protocol::subject::node_subject;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::{Hello, Recall};

use crate::lab::{Lab, Receipt, SERIAL, lines};

fn recall(ago: u64) -> Recall {
    let since = Timestamp::now().checked_sub(Duration::from_secs(ago));
    Recall {
        id: InstanceId::random(),
        since: since.unwrap(),
    }
}

/// What is sent now has been looked at when this returns.
async fn looked(lab: &Lab) {
    let ping = lab.send(&lab.request(Ask::Ping)).await;
    lab.broker
        .wait("a pong", |h| {
            h.pongs.iter().any(|p| p.request == ping).then_some(())
        })
        .await;
}

async fn reported(lab: &Lab, id: RequestId, times: usize) {
    lab.broker
        .wait("a report", |h| {
            let count = h.outcomes.iter().filter(|o| o.request == id).count();
            (count >= times).then_some(())
        })
        .await;
}

/// The agent has had time to write down what was answered: it lives, and says
/// so twice.
async fn noted(lab: &Lab) {
    for _ in 0..2 {
        lab.broker.welcomed().await;
    }
}

/// The hello after a new start.
async fn restarted(lab: &mut Lab) -> Hello {
    let before = lab.broker.heard().hellos.len();
    lab.kill();
    lab.begin().await;
    lab.broker.heard().hellos[before].clone()
}

#[tokio::test]
async fn a_broker_that_has_lost_a_run_gets_it_with_the_request_that_it_had_signed() {
    let mut lab = Lab::start().await;
    let witness = lab.path("witness");
    let request = lab.shell(format!("echo x >> {}; echo said", witness.display()));
    let sealed = request.seal(&lab.cluster.broker);
    lab.send_to(node_subject(SERIAL), &sealed).await;
    let id = request.id();
    let first = lab.broker.outcome(id).await;

    // What was acknowledged before the broker's last memory stays so.
    let later = Recall {
        since: Timestamp::now()
            .checked_add(Duration::from_secs(60))
            .unwrap(),
        ..recall(0)
    };
    lab.send(&lab.request(Ask::Recall(later))).await;
    looked(&lab).await;
    assert_eq!(lab.broker.count_outcomes(id), 1);

    // It knows neither the run nor the key that signed it.
    lab.broker.acknowledge(Receipt::Prove);
    let asked = recall(3600);
    lab.send(&lab.request(Ask::Recall(asked))).await;
    reported(&lab, id, 3).await;
    {
        let heard = lab.broker.heard();
        assert_eq!(heard.proofs, [sealed.clone(), sealed], "exactly as it came");
        assert_eq!(heard.lists, [lab.cluster.first_list()]);
        let last = heard.outcomes.last().unwrap();
        assert_eq!((last.request, &last.result), (id, &first.result));
        assert_eq!(last.inline, first.inline);
    }

    // The same recall, after a restart, too: once is enough.
    noted(&lab).await;
    let hello = restarted(&mut lab).await;
    let mark = hello.journal.unwrap();
    assert_eq!(mark.acknowledged[0].request, id);
    lab.send(&lab.request(Ask::Recall(asked))).await;
    looked(&lab).await;
    assert_eq!(lab.broker.count_outcomes(id), 3);
    assert_eq!(lines(&witness), 1);
}

#[tokio::test]
async fn what_no_broker_wants_stays_on_the_node_and_is_not_claimed() {
    let mut lab = Lab::start().await;
    lab.broker.acknowledge(Receipt::Unknown);
    let id = lab.send(&lab.shell("true")).await;
    lab.broker.outcome(id).await;
    noted(&lab).await;
    lab.broker.acknowledge(Receipt::Stored);
    let hello = restarted(&mut lab).await;
    assert_eq!(hello.journal.unwrap().acknowledged, []);
    assert_eq!(lab.broker.count_outcomes(id), 1);
}

#[tokio::test]
async fn each_start_is_further_and_an_older_journal_shows() {
    let mut lab = Lab::prepare().await;
    let position = |hello: &Hello| hello.journal.clone().unwrap().position;
    lab.begin().await;
    let first = position(&lab.broker.heard().hellos[0]);
    let second = position(&restarted(&mut lab).await);
    assert!(second > first);
    lab.terminate();
    lab.ended().await;
    let copy = lab.path("copy");
    copy_dir(&lab.path("state"), &copy);

    lab.begin().await;
    let id = lab.send(&lab.shell("true")).await;
    assert_eq!(
        lab.broker.outcome(id).await.result.outcome,
        Outcome::Succeeded
    );
    let beats = lab.broker.heard().beats.len();
    let beat = lab
        .broker
        .wait("a beat", |h| h.beats.get(beats + 1).cloned())
        .await;
    let known = beat.position.unwrap();
    assert!(known > second + 1, "{known} after {second}");
    lab.kill();

    std::fs::remove_dir_all(lab.path("state")).unwrap();
    copy_dir(&copy, &lab.path("state"));
    let before = lab.broker.heard().hellos.len();
    lab.begin().await;
    let back = position(&lab.broker.heard().hellos[before]);
    assert!(back <= second + 1 && back < known, "{back}, was {known}");
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}
