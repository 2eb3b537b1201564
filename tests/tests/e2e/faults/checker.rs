//! The checker sees what really happened: it is not content because it found
//! nothing to look at.

use std::io::Write as _;

use muster_protocol::run::{Outcome, RunEvent};
use muster_tests::Up;
use muster_tests::invariants::{Audit, Rule, Told, violations};

#[test]
fn the_checker_reads_journals_nodes_counters_and_what_was_told() {
    let up = Up::start(&["a-1:role=a", "a-2:role=a"]).expect("starts");
    let counter = up.counter("effects");
    let run = up
        .muster(&[
            "run",
            "role=a",
            "--json",
            "--shell",
            "--",
            &counter.around("true"),
        ])
        .exits(0)
        .run();
    let run = run.parse().expect("an id");
    let seen = Audit::of(&up).gather().expect("everything can be read");
    assert_eq!(violations(&seen), []);

    let [journal] = &seen.journals[..] else {
        panic!("one run: {:?}", seen.journals);
    };
    assert_eq!(journal.run, run);
    let intents = journal.events.iter().filter_map(|r| match &r.event {
        RunEvent::Intent { nodes, .. } => Some(nodes.len()),
        _ => None,
    });
    assert_eq!(intents.collect::<Vec<_>>(), [2]);
    let mut places: Vec<_> = seen.nodes.iter().map(|n| n.place.as_str()).collect();
    places.sort_unstable();
    assert_eq!(places, ["a-1", "a-2"]);
    for node in &seen.nodes {
        let [step] = &node.steps[..] else {
            panic!("one step: {:?}", node.steps);
        };
        assert_eq!((step.request.run, step.local), (run, false));
        assert!(step.started.is_some() && node.epoch > 0);
        assert_eq!(
            step.result.as_ref().map(|r| (r.serial, r.outcome)),
            Some((node.serial, Outcome::Succeeded))
        );
    }
    assert_eq!(seen.effects.len(), 4);
    assert_eq!(seen.counted, [run].into());
    assert!(seen.told.contains(&Told::Created { run }));
    assert!(seen.told.contains(&Told::Exit { run, code: 0 }));

    // A second effect, as the witness would see it.
    let line = std::fs::read_to_string(counter.file()).expect("there");
    let again = line.lines().next().expect("a line");
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(counter.file())
        .expect("there");
    writeln!(file, "{again}").expect("writes");
    let seen = Audit::of(&up).gather().expect("everything can be read");
    let rules: Vec<Rule> = violations(&seen).iter().map(|v| v.rule).collect();
    assert!(rules.contains(&Rule::AtMostOneEffect), "{rules:?}");
}
