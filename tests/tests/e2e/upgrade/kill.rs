//! `kill -9` of an agent at every point of its upgrade: one of the two
//! versions runs in the end, the step has one outcome, and it is the true one.

use muster_tests::invariants::Audit;
use muster_tests::release::version;
use muster_tests::stops::Position;
use muster_tests::{Up, signal, wait_for};
use rustix::process::Signal;

use super::{OWN, reason, versions, works};

/// The points, in their order, and what is known to come of it; `None` where
/// it depends on who is first: whoever looks after the agent starts the new
/// one again, or the guard has put the old one back.
const POINTS: [(&str, Option<&str>); 10] = [
    ("agent.start.before", Some("failed")),
    ("agent.start.after", Some("failed")),
    ("agent.upgrade.fetch", Some("failed")),
    ("agent.upgrade.ready", Some("failed")),
    ("agent.upgrade.guarded", Some("failed")),
    ("agent.upgrade.switching", Some("failed")),
    ("agent.upgrade.swapped", None),
    ("agent.upgrade.new", None),
    ("agent.upgrade.confirmed", Some("succeeded")),
    ("agent.upgrade.settled", Some("succeeded")),
];

#[test]
fn an_agent_killed_at_any_point_is_one_of_the_two() {
    let mut up = Up::not_yet(&["a-1:role=a"]).expect("room");
    let stops = up.stops().expect("the programs have checkpoints");
    up.launch().expect("starts");
    let mut runs_now = OWN.to_owned();
    for (number, (point, wanted)) in POINTS.iter().enumerate() {
        let next = format!("0.99.{}", number + 1);
        let binary = version(up.dir.path(), "muster-agent", &next).expect("made");
        let position = Position {
            who: "a-1".into(),
            point: (*point).into(),
            what: String::new(),
            nth: 1,
        };
        stops.watch(|_, _| false, Some(&position));
        let said = super::upgrade(&up, &binary, &["--timeout", "40s", "--detach", "--json"]);
        let run = said.exits(0).run();
        stops.held().unwrap_or_else(|e| panic!("{e} {}", up.logs()));
        let pid = up.pid("agent-a-1").expect("it runs");
        signal(pid, Signal::KILL).expect("killed");
        stops.release();
        let said = wait_for(&format!("the end of the run at {point}"), || {
            let said = up.muster(&["runs", "watch", &run, "--json"]);
            said.out.contains("\"run_finished\"").then_some(said)
        })
        .unwrap_or_else(|e| panic!("{e} {}", up.logs()));
        let outcome = said.outcomes()["a-1"].clone();
        let why = || reason(&said, "a-1");
        match (outcome.as_str(), wanted) {
            (outcome, Some(wanted)) => {
                assert_eq!(outcome, *wanted, "{point}: {said:#?} {}", up.logs());
            }
            ("succeeded" | "failed", None) => {}
            _ => panic!("{point}: {said:#?} {}", up.logs()),
        }
        if outcome == "succeeded" {
            assert_eq!(
                said.output("stdout")["a-1"],
                format!("{runs_now} → {next}\n")
            );
            runs_now = next;
        } else {
            assert!(
                why().ends_with(&format!("{runs_now} runs")),
                "{point}: {}",
                why()
            );
        }
        wait_for(&format!("{runs_now} to run after {point}"), || {
            let known = versions(&up);
            (known[0].1 == runs_now).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {:?} {}", versions(&up), up.logs()));
        works(&up, 1);
        // What is in the executable's place is what runs.
        let program = up.state().join("programs/a-1/muster-agent");
        let said = std::process::Command::new(&program)
            .arg("--version")
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert_eq!(said.trim(), format!("muster-agent {runs_now}"), "{point}");
    }
    Audit::of(&up).holds();
}
