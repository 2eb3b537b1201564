//! What is executed, exactly once, and what never is.

use std::time::Duration;

use muster_protocol::envelope::{Ask, Request};
use muster_protocol::ids::{ClusterId, Serial};
use muster_protocol::keys::{BrokerKeyState, PrivateKey};
use muster_protocol::run::{Outcome, Stream};
use muster_protocol::subject::{ALL, label_subject, node_subject, role_subject};
use muster_protocol::units::{Timestamp, after};
use serde_json::json;

use crate::lab::{Greeting, Lab, SERIAL, lines};

fn ago(secs: u64) -> Timestamp {
    Timestamp::now()
        .checked_sub(Duration::from_secs(secs))
        .unwrap()
}

#[tokio::test]
async fn a_request_by_any_of_its_subjects_is_executed_and_accounted_for() {
    let lab = Lab::start().await;
    for subject in [
        ALL.into(),
        node_subject(SERIAL),
        role_subject("web"),
        label_subject("zone", "gva2"),
    ] {
        let request = lab.call(
            json!({"argv": ["/bin/sh", "-c", "echo to $MUSTER_NODE; echo oops >&2; exit 3"]}),
        );
        lab.send_to(subject, &request.seal(&lab.cluster.broker))
            .await;
        let report = lab.broker.outcome(request.id()).await;
        assert_eq!(report.result.serial, SERIAL);
        assert_eq!(report.result.outcome, Outcome::Failed);
        assert_eq!(report.result.exit, Some(3));
        assert_eq!(report.result.reason.as_deref(), Some("exit code 3"));
        assert_eq!(lab.output(request.id(), Stream::Stdout), b"to web-01\n");
        assert_eq!(lab.output(request.id(), Stream::Stderr), b"oops\n");
    }
}

#[tokio::test]
async fn however_often_it_is_sent_it_is_executed_once() {
    let mut lab = Lab::start().await;
    let witness = lab.path("witness");
    let mut request = lab.shell(format!("echo x >> {}", witness.display()));
    let sealed = request.seal(&lab.cluster.broker);
    for _ in 0..5 {
        lab.send_to(node_subject(SERIAL), &sealed).await;
        lab.send_to(ALL.into(), &sealed).await;
    }
    let id = request.id();
    lab.broker.outcome(id).await;
    // Freshly signed, as the broker does when it missed the answer: the
    // outcome is told again.
    for round in 0..3 {
        let before = lab.broker.count_outcomes(id);
        request.issued = Timestamp::now();
        request.start_before = after(request.issued, Duration::from_secs(15));
        lab.send(&request).await;
        lab.broker
            .wait("the outcome again", |h| {
                (h.outcomes.iter().filter(|o| o.request == id).count() > before).then_some(())
            })
            .await;
        if round == 1 {
            lab.kill();
            lab.begin().await;
        }
    }
    assert_eq!(lines(&witness), 1);
    let heard = lab.broker.heard();
    let outcomes: Vec<_> = heard.outcomes.iter().filter(|o| o.request == id).collect();
    assert!(
        outcomes.iter().all(|o| *o == outcomes[0]),
        "the outcome changed"
    );
}

#[tokio::test]
async fn what_the_broker_did_not_ask_of_this_node_now_is_never_executed() {
    let mut lab = Lab::prepare().await;
    let retired = PrivateKey::generate();
    let list = lab.cluster.list(
        2,
        &[
            (&lab.cluster.broker, BrokerKeyState::Active),
            (&retired, BrokerKeyState::Revoked),
        ],
    );
    lab.broker.greet(Greeting::Welcome {
        keys: Some(list),
        revision: 1,
    });
    lab.begin().await;
    let witness = lab.path("witness");
    let evil = |lab: &Lab, change: fn(&mut Request)| {
        let mut request = lab.shell(format!("echo x >> {}", witness.display()));
        change(&mut request);
        request
    };
    // One good request first, so that there is something newest to be behind.
    assert_eq!(lab.run("true").await.result.outcome, Outcome::Succeeded);

    let subject = || node_subject(SERIAL);
    let stranger = PrivateKey::generate();
    let plain = evil(&lab, |_| {});
    lab.send_to(subject(), &plain.seal(&stranger)).await;
    lab.send_to(subject(), &plain.seal(&retired)).await;
    let mut forged = plain.seal(&stranger);
    forged.key = lab.cluster.broker.public().id();
    lab.send_to(subject(), &forged).await;
    let mut altered = plain.seal(&lab.cluster.broker);
    let at = altered.bytes.windows(4).position(|w| w == b"echo").unwrap();
    altered.bytes[at] = b'E';
    lab.send_to(subject(), &altered).await;
    let mut garbage = plain.seal(&lab.cluster.broker);
    garbage.bytes = b"\xff\x00{".to_vec();
    lab.send_to(subject(), &garbage).await;
    lab.broker
        .client
        .publish(subject(), plain.seal(&lab.cluster.broker).bytes.into())
        .await
        .unwrap();
    lab.broker
        .client
        .publish(subject(), "".into())
        .await
        .unwrap();
    let changes: [fn(&mut Request); 6] = [
        |r| r.cluster = ClusterId::random(),
        |r| r.set = [Serial(SERIAL.0 + 1)].into_iter().collect(),
        |r| r.epoch = 4,
        |r| r.start_before = after(r.issued, Duration::from_secs(3600)),
        |r| {
            r.issued = ago(100);
            r.start_before = ago(60);
        },
        |r| r.set = std::iter::empty().collect(),
    ];
    for change in changes {
        lab.send(&evil(&lab, change)).await;
    }
    // These two are the broker's own words, so they are answered.
    let late = evil(&lab, |r| {
        r.issued = ago(80);
        r.start_before = ago(40);
    });
    let early = evil(&lab, |r| {
        r.issued = after(Timestamp::now(), Duration::from_secs(3600));
        r.start_before = after(r.issued, Duration::from_secs(15));
    });
    for request in [&late, &early] {
        lab.send(request).await;
        let result = lab.broker.outcome(request.id()).await.result;
        assert_eq!(result.outcome, Outcome::Declined);
        assert!(
            result.reason.as_deref().unwrap().contains("clocks apart"),
            "{result:?}"
        );
    }
    // A version that this agent does not speak.
    let other = evil(&lab, |r| r.v = 2);
    lab.send(&other).await;
    assert_eq!(
        lab.broker.outcome(other.id()).await.result.outcome,
        Outcome::Declined
    );

    // The agent is well, and has counted.
    assert_eq!(lab.run("true").await.result.outcome, Outcome::Succeeded);
    lab.broker
        .wait("the counts", |h| {
            let refused = &h.beats.last()?.refused;
            let count = |kind: &str| refused.get(kind).copied().unwrap_or_default();
            (count("bad_signature") == 3
                && count("unsigned") == 2
                && count("unknown_key") >= 1
                && count("revoked_key") == 1
                && count("wrong_cluster") == 1
                && count("not_in_set") == 2
                && count("lower_epoch") == 1
                && count("window") == 1
                && count("replayed") == 1
                && count("late") == 1
                && count("early") == 1)
                .then_some(())
        })
        .await;
    assert_eq!(lines(&witness), 0);
    // The late one again, now in good time: it was declined, and stays so.
    let mut again = late.clone();
    again.issued = Timestamp::now();
    again.start_before = after(again.issued, Duration::from_secs(15));
    let before = lab.broker.count_outcomes(again.id());
    lab.send(&again).await;
    lab.broker
        .wait("the outcome again", |h| {
            (h.outcomes
                .iter()
                .filter(|o| o.request == again.id())
                .count()
                > before)
                .then_some(())
        })
        .await;
    assert_eq!(lines(&witness), 0);
    let log = lab.log();
    assert_eq!(
        log.matches("kind=\"bad_signature\"").count(),
        1,
        "logged more than once a minute"
    );
    assert!(log.contains("check time synchronisation"));
}

#[tokio::test]
async fn the_node_has_the_last_word() {
    let mut lab = Lab::prepare().await;
    lab.config = "[capabilities]\nshell = false\n".into();
    lab.begin().await;
    let declined = async |request: Request| {
        lab.send(&request).await;
        let result = lab.broker.outcome(request.id()).await.result;
        assert_eq!(result.outcome, Outcome::Declined);
        result.reason.unwrap()
    };
    assert_eq!(
        declined(lab.shell("true")).await,
        "this node does not grant the capability `shell`"
    );
    let mut elsewhere = lab.call(json!({"argv": ["true"]}));
    elsewhere.predicate = "role=web and zone=dk2".into();
    assert_eq!(
        declined(elsewhere).await,
        "the predicate no longer holds here: `zone=dk2` does not hold"
    );
    let mut broken = lab.call(json!({"argv": ["true"]}));
    broken.predicate = "role=(".into();
    assert!(declined(broken).await.contains("cannot read the predicate"));
    assert!(
        declined(lab.call(json!({"argv": []})))
            .await
            .contains("no command")
    );
    let mut other = lab.call(json!({"argv": ["true"]}));
    if let Ask::Call(call) = &mut other.ask {
        call.bundle = muster_protocol::envelope::BundleHash::of(b"else");
    }
    assert!(declined(other).await.contains("does not have the scenario"));
    let hello = lab.broker.heard().hellos[0].clone();
    let rest = [
        "command", "upgrade", "file", "package", "service", "user", "http", "puppet", "reboot",
    ];
    assert_eq!(hello.capabilities, rest);
}

#[tokio::test]
async fn nothing_is_executed_before_the_welcome() {
    let mut lab = Lab::prepare().await;
    lab.broker.greet(Greeting::Silence);
    lab.spawn();
    lab.broker
        .wait("a hello", |h| (!h.hellos.is_empty()).then_some(()))
        .await;
    let witness = lab.path("witness");
    let mut request = lab.shell(format!("echo x >> {}", witness.display()));
    lab.send(&request).await;
    // Messages are looked at in order: when the ping is answered, the
    // request was passed over.
    let ping = lab.request(Ask::Ping);
    lab.send(&ping).await;
    lab.broker
        .wait("a pong", |h| {
            h.pongs.iter().find(|p| p.request == ping.id()).cloned()
        })
        .await;
    assert_eq!((lines(&witness), lab.broker.heard().accepted.len()), (0, 0));
    lab.broker.greet(Greeting::Refuse);
    let hellos = lab.broker.heard().hellos.len();
    lab.broker
        .wait("more hellos", |h| {
            (h.hellos.len() >= hellos + 2).then_some(())
        })
        .await;
    assert!(lab.log().contains("the broker refuses this node: cloned"));
    lab.broker.greet(Greeting::Welcome {
        keys: None,
        revision: 1,
    });
    lab.broker.welcomed().await;
    request.issued = Timestamp::now();
    request.start_before = after(request.issued, Duration::from_secs(15));
    lab.send(&request).await;
    assert_eq!(
        lab.broker.outcome(request.id()).await.result.outcome,
        Outcome::Succeeded
    );
    assert_eq!(lines(&witness), 1);
}

#[tokio::test]
async fn a_new_broker_key_is_asked_for_and_an_older_list_is_refused() {
    let lab = Lab::start().await;
    let next = PrivateKey::generate();
    let rotated = lab.cluster.list(
        3,
        &[
            (&next, BrokerKeyState::Active),
            (&lab.cluster.broker, BrokerKeyState::Revoked),
        ],
    );
    lab.broker.greet(Greeting::Welcome {
        keys: Some(rotated),
        revision: 1,
    });
    let witness = lab.path("witness");
    let request = lab.shell(format!("echo x >> {}", witness.display()));
    // By a key that the node does not know yet: sent once, executed once.
    lab.send_to(node_subject(SERIAL), &request.seal(&next))
        .await;
    assert_eq!(
        lab.broker.outcome(request.id()).await.result.outcome,
        Outcome::Succeeded
    );
    assert_eq!(lines(&witness), 1);
    // The revoked key, and a list that would bring it back.
    let old = lab.shell(format!("echo x >> {}", witness.display()));
    lab.send(&old).await;
    let keys = lab.request(Ask::Keys {
        list: lab.cluster.first_list(),
    });
    lab.send_to(node_subject(SERIAL), &keys.seal(&next)).await;
    lab.send(&old).await;
    lab.broker
        .wait("the count", |h| {
            (h.beats.last()?.refused.get("revoked_key") == Some(&2)).then_some(())
        })
        .await;
    assert_eq!(lines(&witness), 1);
    assert!(lab.log().contains("a list of broker keys is refused"));
    // And one pushed to it.
    let third = PrivateKey::generate();
    let list = lab.cluster.list(4, &[(&third, BrokerKeyState::Active)]);
    let keys = lab.request(Ask::Keys { list });
    lab.send_to(node_subject(SERIAL), &keys.seal(&next)).await;
    let request = lab.shell("true");
    lab.send_to(node_subject(SERIAL), &request.seal(&third))
        .await;
    assert_eq!(
        lab.broker.outcome(request.id()).await.result.outcome,
        Outcome::Succeeded
    );
}

#[tokio::test]
async fn a_broker_that_becomes_active_is_greeted() {
    let lab = Lab::start().await;
    assert_eq!(lab.run("true").await.result.outcome, Outcome::Succeeded);
    let hellos = lab.broker.heard().hellos.len();
    let mut ping = lab.request(Ask::Ping);
    ping.epoch = 6;
    lab.send(&ping).await;
    let hello = lab
        .broker
        .wait("a hello", |h| {
            (h.hellos.len() > hellos).then(|| h.hellos.last().cloned())
        })
        .await
        .unwrap();
    assert_eq!(hello.broker_epoch, 6);
    // The broker that lost its lease is not followed any more.
    lab.send(&lab.shell("true")).await;
    lab.broker
        .wait("the count", |h| {
            (h.beats.last()?.refused.get("lower_epoch") == Some(&1)).then_some(())
        })
        .await;
}
