//! Two brokers: one is active, the other takes over, and whatever the first
//! one was about to do when it was stopped, it does not do any more.

mod pair;
mod proxy;
mod releases;
mod reopen;
mod tap;
mod tls;

use std::io::Write as _;
use std::time::{Duration, Instant};

use muster_protocol::ids::RunId;
use muster_protocol::units::{Timestamp, after};
use muster_tests::invariants::{Audit, counter_in};
use muster_tests::{finish, wait_for};
use rustix::process::Signal;

use self::pair::Pair;
use self::proxy::Cable;
use self::tap::{Word, signing_key};
use super::curl;

/// Tells a measured time, past the test runner's capture.
fn measured(what: &str, time: Duration) {
    let _ = writeln!(std::io::stderr(), "MEASURED {what}: {time:.2?}");
}

#[test]
fn a_broker_that_was_stopped_past_its_lease_writes_nothing_more() {
    let pair = Pair::start(&["a-1:n", "a-2:n"]);
    let tap = pair.tap();
    let counter = counter_in(pair.dir.path(), "long");
    let old = pair.a.wait_active();
    let both = pair.urls();
    // Under way when it happens: somebody who waits, and somebody who watches.
    let script = counter.around("sleep 12");
    let waiting = pair.beside(
        &both,
        &["run", "role=n", "--yes", "--json", "--shell", "--", &script],
    );
    wait_for("the command to run on both", || {
        (counter.begun() == 2).then_some(())
    })
    .expect("it begins");
    let list = pair.muster(&["runs", "--json"]).exits(0).list();
    let run = list[0]["id"].as_str().expect("an id").to_owned();
    let watching = pair.beside(&both, &["runs", "watch", &run, "--json"]);
    let mine = tap.wait("something that the first broker wrote", |word: &Word| {
        word.writes().then(|| word.from().map(str::to_owned))?
    });
    // And a lot that it is in the middle of.
    let busy: Vec<_> = (0..6)
        .map(|n| {
            let (key, noise) = (format!("n{n}=1"), format!("seq {n} 3000"));
            match n % 2 {
                0 => pair.beside(&both, &["node", "label", "a-1", &key]),
                _ => pair.beside(
                    &both,
                    &["run", "role=n", "--yes", "--json", "--shell", "--", &noise],
                ),
            }
        })
        .collect();
    let known = tap.since(Instant::now() - Duration::from_secs(60)).len();
    wait_for("it to be in the middle of it", || {
        (tap.since(Instant::now() - Duration::from_secs(60)).len() > known + 3).then_some(())
    })
    .expect("it does something");
    pair.a.signal(Signal::STOP);
    let stopped = Instant::now();
    measured("takeover after SIGSTOP", pair.takeover("b", stopped));
    let new = pair.b.wait_active();
    assert!(new > old);
    let serves = Instant::now();

    pair.a.signal(Signal::CONT);
    // At once, not only when it has found out: nobody is told anything old.
    let woken = wait_for("its first answer", || pair.a.get("/v1/nodes")).expect("it answers");
    assert_eq!(
        (woken.0, woken.1["not_active"].as_bool()),
        (503, Some(true)),
        "{woken:?}"
    );
    let said = pair.a.wait_standby();
    assert_eq!(said["active"], pair.b.url(), "{said}");
    let (code, problem) = pair.a.get("/v1/nodes").expect("it answers");
    assert_eq!(
        (code, &problem["active"]),
        (503, &said["active"]),
        "{problem}"
    );

    // What was under way goes on, with its real outcome; whoever watched it
    // saw the end of it at the other broker.
    let waited = waiting.join().expect("it ends").exits(0);
    assert!(
        waited.outcomes().values().all(|o| o == "succeeded"),
        "{waited:?}"
    );
    let watched = watching.join().expect("it ends").exits(0);
    assert_eq!(watched.outcomes(), waited.outcomes());
    assert_eq!((counter.of("a-1"), counter.of("a-2")), ((1, 1), (1, 1)));
    let busy: Vec<_> = busy
        .into_iter()
        .map(|b| b.join().expect("it ends"))
        .collect();
    pair.works(2);

    // Since the other serves: not a write of the old one, not a request under
    // its epoch.
    let since = tap.since(serves);
    let writes: Vec<&Word> = since.iter().filter(|word| word.writes()).collect();
    assert!(
        writes.iter().any(|word| word.from().is_some()),
        "the new one writes, and that is seen: {writes:?}"
    );
    let old_ones: Vec<&Word> = since
        .iter()
        .filter(|word| word.from() == Some(mine.as_str()))
        .collect();
    assert!(old_ones.is_empty(), "the old one said {old_ones:?}");
    let epochs: Vec<u64> = since
        .iter()
        .filter_map(|word| word.request().map(|r| r.epoch))
        .collect();
    assert!(
        !epochs.is_empty() && epochs.iter().all(|e| *e >= new),
        "{epochs:?}"
    );
    assert_eq!(pair.a.wait_standby()["active"], pair.b.url());
    let mut audit = Audit::at(pair.dir.path(), &pair.state("b"))
        .told(&waited)
        .told(&watched);
    for said in &busy {
        audit = audit.told(said);
    }
    audit.holds();
}

#[test]
fn requests_of_a_broker_that_was_overtaken_are_refused_by_every_node() {
    let pair = Pair::start(&["a-1:n", "a-2:n", "a-3:n"]);
    let tap = pair.tap();
    let old = pair.a.wait_active();
    let file = pair.dir.path().join("did");
    let touch = format!("echo $MUSTER_RUN >> {}", file.display());
    // A request as the broker signs it, to be taken as a pattern.
    let run = ["run", "role=n", "--yes", "--shell", "--", &touch];
    pair.muster(&run).exits(0);
    let (mut request, key) = tap.wait("its request", |word| {
        let request = word
            .request()
            .filter(|r| format!("{:?}", r.ask).contains("did"))?;
        Some((request, word.key?))
    });
    assert_eq!((request.epoch, muster_tests::lines(&file).len()), (old, 3));
    let key = signing_key(&pair.state("a"), key);
    pair.a.signal(Signal::STOP);
    let new = pair.b.wait_active();
    // Every node has heard the new one.
    pair.works(3);

    let mut fresh = |epoch: u64| {
        let now = Timestamp::now();
        request.run = RunId::random();
        request.epoch = epoch;
        request.issued = now;
        request.start_before = after(now, Duration::from_secs(30));
        request.clone()
    };
    let stale = fresh(old);
    for subject in ["m1.do.all", "m1.do.role.n"] {
        tap.say(subject, &stale, &key);
    }
    for node in ["a-1", "a-2", "a-3"] {
        wait_for(&format!("{node} to refuse it"), || {
            pair.agent_log(node).contains("lower_epoch").then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {}", pair.agent_log(node)));
    }
    // The same under the epoch that counts is obeyed: nothing else was wrong.
    let good = fresh(new);
    tap.say("m1.do.all", &good, &key);
    wait_for("all three to obey", || {
        (muster_tests::lines(&file).len() == 6).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {:?}", muster_tests::lines(&file)));
    let did = muster_tests::lines(&file);
    assert!(!did.contains(&stale.run.to_string()), "{did:?}");
    assert_eq!(
        did.iter().filter(|l| **l == good.run.to_string()).count(),
        3
    );
}

#[test]
fn a_broker_that_is_killed_or_stopped_is_followed_by_the_other() {
    let mut pair = Pair::start(&["a-1:n", "a-2:n"]);
    let counter = counter_in(pair.dir.path(), "long");
    let script = counter.around("sleep 10");
    let waiting = pair.beside(
        &pair.urls(),
        &["run", "role=n", "--yes", "--json", "--shell", "--", &script],
    );
    wait_for("the command to run on both", || {
        (counter.begun() == 2).then_some(())
    })
    .expect("it begins");
    pair.end_broker("a", Signal::KILL);
    let killed = Instant::now();
    measured("takeover after SIGKILL", pair.takeover("b", killed));
    let waited = waiting.join().expect("it ends").exits(0);
    assert!(
        waited.outcomes().values().all(|o| o == "succeeded"),
        "{waited:?}"
    );
    // Whoever knows only the standby is led to the active one.
    pair.start_broker("a");
    pair.a.wait_standby();
    let said = pair
        .muster_at(&pair.a.url(), &["status", "--json"])
        .exits(0);
    let brokers = said.json_lines()[0]["brokers"].clone();
    let places: Vec<_> = brokers
        .as_array()
        .expect("a list")
        .iter()
        .map(|b| (b["url"].as_str(), b["place"].as_str()))
        .collect();
    let (a, b) = (pair.a.url(), pair.b.url());
    assert_eq!(
        places,
        [(Some(&*b), Some("active")), (Some(&*a), Some("standby"))]
    );
    let events = pair
        .muster(&["events", "--kind", "broker.takeover"])
        .exits(0);
    let told = format!("{b} is the active broker now, after {a}");
    assert!(events.out.contains(&told), "{events:?}");
    let doctor = pair.muster(&["doctor"]);
    assert!(doctor.out.contains(&format!("{b} is active")), "{doctor:?}");
    assert!(
        doctor.out.contains(&format!("{a} would take over")),
        "{doctor:?}"
    );
    // In good order: at once, whichever it is.
    pair.end_broker("b", Signal::TERM);
    let ended = Instant::now();
    measured(
        "takeover after a stop in good order",
        pair.takeover("a", ended),
    );
    pair.works(2);
    // A node renews at the broker that is there, though it is not the one that
    // its enrolment names first.
    pair.start_broker("b");
    pair.b.wait_standby();
    pair.end_broker("a", Signal::KILL);
    pair.b.wait_active();
    let label = pair.muster(&["node", "label", "a-1", "zone=x", "--json"]);
    assert_eq!(label.code, 0, "{label:?} {}", pair.agent_log("a-1"));
    wait_for("the node to have its label", || {
        let said = pair.muster(&["run", "zone=x", "--json", "--", "true"]);
        (said.code == 0).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", pair.agent_log("a-1")));
    Audit::at(pair.dir.path(), &pair.state("b"))
        .told(&waited)
        .holds();
}

#[test]
fn a_broker_that_is_cut_off_from_nats_alone_suspends_and_says_so() {
    let mut cable = None;
    let pair = Pair::with(&["a-1:n"], "", |port| cable.insert(Cable::to(port)).port);
    let cable = cable.expect("it was made");
    pair.works(1);
    cable.pull();
    let said = wait_for("it to suspend", || {
        pair.a
            .readiness()
            .filter(|said| said["state"] == "suspended")
    })
    .unwrap_or_else(|e| panic!("{e}: {:?}", pair.a.readiness()));
    assert!(
        said["reason"].as_str().unwrap_or_default().contains("NATS"),
        "{said}"
    );
    let (code, problem) = pair.a.get("/v1/nodes").expect("it answers");
    assert_eq!(
        (code, &problem["not_active"]),
        (503, &true.into()),
        "{problem}"
    );
    pair.b.wait_active();
    // The old one does not know it yet, and serves nobody.
    let (code, _) = pair.a.get("/v1/nodes").expect("it answers");
    assert_eq!(code, 503);
    pair.works(1);
    cable.plug();
    assert_eq!(pair.a.wait_standby()["active"], pair.b.url());
    pair.works(1);
    Audit::at(pair.dir.path(), &pair.state("b")).holds();
}

#[test]
fn two_brokers_start_and_stop_in_every_order_and_a_plan_stays_where_it_was_made() {
    let mut pair = Pair::with(&["a-1:n", "a-2:n"], "confirm_above = 1", |port| port);
    // The settings came with the keys.
    let plan = |pair: &Pair, at: &str, plan: Option<&str>| {
        let mut body = serde_json::json!({
            "predicate": "role=n", "params": { "argv": ["true"] }, "confirm": "ask",
        });
        if let Some(plan) = plan {
            body["confirm"] = serde_json::json!({ "plan": plan });
        }
        let said = finish(curl(&[
            "-s",
            "-X",
            "POST",
            "-H",
            &format!("Authorization: Bearer {}", pair.token()),
            "-H",
            "Content-Type: application/json",
            "-d",
            &body.to_string(),
            &format!("{at}/v1/runs"),
        ]));
        serde_json::from_str::<serde_json::Value>(&said.out)
            .unwrap_or_else(|e| panic!("{e}: {said:?}"))
    };
    let made = plan(&pair, &pair.a.url(), None);
    let id = made["plan"]["id"]
        .as_str()
        .unwrap_or_else(|| panic!("no plan: {made}"))
        .to_owned();
    pair.end_broker("a", Signal::TERM);
    pair.b.wait_active();
    let answer = plan(&pair, &pair.b.url(), Some(&id));
    assert_eq!(answer["kind"], "plan-gone", "{answer}");
    pair.works(2);

    // Both down; each first; the active one first and the standby first.
    pair.end_broker("b", Signal::TERM);
    pair.start_broker("a");
    pair.a.wait_active();
    pair.works(2);
    pair.start_broker("b");
    pair.b.wait_standby();
    pair.end_broker("b", Signal::TERM);
    pair.works(2);
    pair.end_broker("a", Signal::KILL);
    pair.start_broker("b");
    let epoch = pair.b.wait_active();
    pair.start_broker("a");
    pair.a.wait_standby();
    pair.works(2);
    pair.end_broker("b", Signal::KILL);
    pair.end_broker("a", Signal::KILL);
    pair.start_broker("a");
    pair.start_broker("b");
    let first = wait_for("one of them to be active", || {
        pair.a.epoch().or_else(|| pair.b.epoch())
    })
    .unwrap_or_else(|e| panic!("{e}: {} {}", pair.a.log(), pair.b.log()));
    assert!(first > epoch);
    pair.works(2);
    let active = [pair.a.epoch(), pair.b.epoch()];
    assert_eq!(active.iter().flatten().count(), 1, "{active:?}");
    Audit::at(pair.dir.path(), &pair.state("b")).holds();
}
