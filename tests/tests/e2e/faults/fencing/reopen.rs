//! A server that is slow to shut the old broker out: the new one serves before
//! that, and reads everything again afterwards.

use std::collections::BTreeSet;
use std::time::Instant;

use muster_tests::invariants::Audit;
use muster_tests::wait_for;

use super::pair::Pair;
use super::proxy::Cable;
use super::tap::Word;

/// What only says that a broker is there, and when nodes were heard.
const IDLE: [&str; 5] = [
    "$KV.muster_cluster.lease",
    "$KV.muster_cluster.seen",
    "$KV.muster_cluster.agents",
    "$KV.muster_places.triggers",
    "$KV.muster_places.chat",
];

#[test]
fn what_the_old_broker_wrote_until_it_was_shut_out_is_read_once_it_is() {
    let mut cable = None;
    let pair = Pair::held(&["a-1:n"], |port| cable.insert(Cable::to(port)).port);
    let (cable, hold) = (cable.expect("it was made"), pair.hold());
    let tap = pair.tap();
    pair.works(1);
    let mine = tap.wait("something that the first broker wrote", |word: &Word| {
        word.writes().then(|| word.from().map(str::to_owned))?
    });

    // A message of the old broker that is on its way when it loses its lease:
    // no question about the lease holds that one back any more.
    hold.hold("broker.shut-out");
    hold.hold("broker.journal.before");
    let args = ["run", "a-1", "--yes", "--json", "--", "true"];
    let asking = pair.beside(&pair.a.url(), &args);
    let came = hold.came("broker.journal.before").expect("it writes a run");
    assert_eq!(came.pid, pair.a.pid());
    let run = came
        .detail
        .strip_suffix(" created")
        .unwrap_or_else(|| panic!("{came:?}"))
        .to_owned();
    cable.pull();
    hold.release("broker.journal.before");

    let came = hold.came("broker.shut-out").expect("b takes over");
    assert_eq!(came.pid, pair.b.pid());
    let new = pair.b.wait_active();
    // It serves, though no server has confirmed anything.
    pair.works(1);
    let show = ["runs", "show", &run, "--json"];
    assert_ne!(pair.muster_at(&pair.b.url(), &show).code, 0);

    let plugged = Instant::now();
    cable.plug();
    let journal = format!("m1.run.{run}.j");
    tap.wait("what was on its way", |word: &Word| {
        (word.at >= plugged && word.subject == journal).then_some(())
    });
    // The old one learns that it is over, and is not shut out yet. It has
    // written nothing more.
    assert_eq!(pair.a.wait_standby()["active"], pair.b.url());
    assert!(!pair.b.log().contains("everything is read again"));
    let words = tap.since(plugged);
    let wrote: BTreeSet<&str> = words
        .iter()
        .filter(|word| word.from() == Some(mine.as_str()) && word.writes())
        .map(|word| word.subject.as_str())
        .filter(|subject| !IDLE.contains(subject))
        .collect();
    assert_eq!(wrote, BTreeSet::from([journal.as_str()]));
    let asked: Vec<u64> = words
        .iter()
        .filter_map(|word| word.request().map(|request| request.epoch))
        .collect();
    assert!(asked.iter().all(|epoch| *epoch >= new), "{asked:?}");
    pair.works(1);
    assert_ne!(pair.muster_at(&pair.b.url(), &show).code, 0);
    assert_eq!(pair.b.epoch(), Some(new));

    let confirmed = Instant::now();
    hold.release("broker.shut-out");
    wait_for("the new one to begin again", || {
        let log = pair.b.log();
        log.contains("everything is read again").then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", pair.b.log()));
    let known = wait_for("the run to be known", || {
        let said = pair.muster_at(&pair.b.url(), &show);
        let view: serde_json::Value = serde_json::from_str(said.out.trim()).ok()?;
        view["state"].as_str().filter(|s| *s == "failed")?;
        Some(view)
    })
    .unwrap_or_else(|e| panic!("{e}: {}", pair.b.log()));
    assert_eq!(known["id"], run.as_str(), "{known}");
    let sent = tap.since(plugged);
    let sent = sent.iter().filter_map(Word::request);
    assert!(
        sent.into_iter()
            .all(|request| request.run.to_string() != run)
    );

    // And nothing more is heard of the old one's connection.
    assert_eq!(pair.a.wait_standby()["active"], pair.b.url());
    let asked = asking.join().expect("it ends");
    assert_ne!(asked.code, 0, "{asked:?}");
    pair.works(1);
    let words = tap.since(confirmed);
    let late: Vec<_> = words.iter().filter(|w| w.from() == Some(&*mine)).collect();
    assert!(late.is_empty(), "{late:?}");
    Audit::at(pair.dir.path(), &pair.state("b")).holds();
}
