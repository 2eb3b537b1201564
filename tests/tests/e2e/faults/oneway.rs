//! A network that is cut in one direction only: one side talks, and hears
//! nothing.

use std::time::{Duration, Instant};

use muster_tests::invariants::{Audit, counter_in};
use muster_tests::{Said, lines, processes, signal, wait_for};
use rustix::process::Signal;

use super::network::Lab;
use super::{invite_token, outcome_of, sh, skipped};

/// Which way.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// What the node sends is lost.
    Out,
    /// What is sent to the node is lost.
    In,
}

/// Packets are dropped on the node's machine until this is dropped.
struct Cut(String);

impl Cut {
    fn make(lab: &Lab, ways: &[Way]) -> Self {
        let cut = Self(lab.ns('n'));
        cut.nft("add table inet cut");
        for way in ways {
            let hook = match way {
                Way::Out => "output",
                Way::In => "input",
            };
            cut.nft(&format!(
                "add chain inet cut {hook} {{ type filter hook {hook} priority 0; policy drop; }}"
            ));
        }
        cut
    }

    fn nft(&self, what: &str) {
        assert!(
            sh(&format!("ip netns exec {} nft '{what}'", self.0)),
            "{what}"
        );
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        sh(&format!(
            "ip netns exec {} nft 'delete table inet cut'",
            self.0
        ));
    }
}

/// A command that waits for a file, begun on the node.
struct Begun {
    run: String,
    counter: muster_tests::invariants::Counter,
    go: std::path::PathBuf,
}

impl Begun {
    fn on(lab: &Lab, name: &str) -> Self {
        let counter = counter_in(lab.dir.path(), name);
        let go = lab.dir.path().join(format!("go-{name}"));
        let script = counter.around(&format!(
            "while ! test -e {}; do sleep 0.05; done",
            go.display()
        ));
        let run = lab
            .muster(&[
                "run",
                "role=far",
                "--detach",
                "--json",
                "--deliver-within",
                "2s",
                "--shell",
                "--",
                &script,
            ])
            .exits(0)
            .run();
        wait_for("the command", || (counter.begun() == 1).then_some(())).expect("it runs");
        // It is acknowledged before anything is cut.
        std::thread::sleep(Duration::from_secs(1));
        Self { run, counter, go }
    }

    /// Lets the command end.
    fn go(&self) {
        std::fs::write(&self.go, "").expect("writes");
        wait_for("its end", || {
            (self.counter.of("far-1").1 == 1).then_some(())
        })
        .expect("it ends");
    }

    fn succeeds(&self, lab: &Lab) {
        let said = lab.ended(&self.run);
        let told = outcome_of(&said, "far-1");
        assert_eq!(told["outcome"], "succeeded", "{told} {}", lab.said());
        assert_eq!(self.counter.of("far-1"), (1, 1));
    }
}

fn try_to_run(lab: &Lab, name: &str) -> (Said, std::path::PathBuf) {
    let counter = counter_in(lab.dir.path(), name);
    let script = counter.around("true");
    let said = lab.muster(&[
        "run",
        "role=far",
        "--deliver-within",
        "1s",
        "--json",
        "--shell",
        "--",
        &script,
    ]);
    (said, counter.file().to_owned())
}

#[test]
fn cut_in_one_direction_nothing_is_done_twice_and_nothing_is_made_up() {
    let what = "a network that is cut in one direction";
    if !sh("command -v nft") {
        return skipped(what, "nft is not installed (apt-get install nftables)");
    }
    let Some(mut lab) = Lab::build(what) else {
        return;
    };
    let up = lab.start_up("state", 7878, 4222, "home");
    lab.up = Some(up);
    let invite = lab
        .muster(&[
            "node", "invite", "--json", "--name", "far-1", "--role", "far",
        ])
        .exits(0);
    lab.enrol(7878, &invite_token(&invite), "m1").exits(0);
    lab.agent = Some(lab.run_agent("m1"));
    lab.wait_state("far-1", &["up"]);
    lab.muster(&["run", "role=far", "--", "true"]).exits(0);

    // For a moment, each way, while a command runs and ends.
    for way in [Way::Out, Way::In] {
        let begun = Begun::on(&lab, &format!("moment-{way:?}"));
        let cut = Cut::make(&lab, &[way]);
        begun.go();
        std::thread::sleep(Duration::from_secs(3));
        drop(cut);
        begun.succeeds(&lab);
        lab.wait_state("far-1", &["up"]);
    }

    // It hears nothing, and what it says arrives: it is up, and what is sent
    // to it is not acknowledged.
    let cut = Cut::make(&lab, &[Way::In]);
    let (said, effects) = try_to_run(&lab, "deaf");
    let deaf = said.run();
    let told = outcome_of(&said, "far-1");
    assert_eq!(told["outcome"], "unknown", "{told} {}", lab.said());
    assert!(
        told["reason"].as_str().is_some_and(|r| !r.is_empty()),
        "{told}"
    );
    assert!(lines(&effects).is_empty(), "it heard something");
    drop(cut);
    // It hears it now. Still in time: it is done once, and told as late.
    wait_for("the late answer", || {
        let show = lab.muster(&["runs", "show", &deaf, "--json"]);
        show.out.contains("\"late\":[\"succeeded\"]").then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", lab.said()));
    assert_eq!(outcome_of(&lab.ended(&deaf), "far-1")["outcome"], "unknown");

    // It talks into the void until it counts as down; the server, which has
    // its half of the connection, is killed meanwhile.
    let begun = Begun::on(&lab, "long");
    let cut = Cut::make(&lab, &[Way::Out]);
    begun.go();
    let silent = Instant::now();
    lab.wait_state("far-1", &["late", "down"]);
    let late = silent.elapsed();
    lab.wait_state("far-1", &["down"]);
    let down = silent.elapsed();
    // Not sooner than people are told: after 12.5 and 30 s without a beat,
    // and the last one is 5 s old at most.
    assert!(
        late >= Duration::from_secs(7) && down >= Duration::from_secs(24),
        "late after {late:?}, down after {down:?}"
    );
    let (said, effects) = try_to_run(&lab, "void");
    let told = outcome_of(&said, "far-1");
    assert_eq!(told["outcome"], "unreachable", "{told} {}", lab.said());
    assert!(
        told["reason"]
            .as_str()
            .is_some_and(|r| r.contains("last seen")),
        "{told}"
    );
    let root = lab.dir.path().to_string_lossy().into_owned();
    let nats = processes()
        .into_iter()
        .find(|(_, line)| {
            line.contains("nats-server") && line.contains(&root) && !line.contains("netns")
        })
        .expect("it runs")
        .0;
    signal(nats, Signal::KILL).expect("kills");
    wait_for("another server", || {
        processes()
            .into_iter()
            .any(|(pid, line)| pid != nats && line.contains("nats-server") && line.contains(&root))
            .then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", lab.said()));
    drop(cut);
    lab.wait_state("far-1", &["up"]);
    begun.succeeds(&lab);
    lab.muster(&["run", "role=far", "--", "true"]).exits(0);
    // Known to be down: nothing was sent, so nothing comes late.
    assert!(lines(&effects).is_empty());

    // The agent's log is for people: a loss and a return, and no noise.
    let log = lab.agent.as_ref().expect("it runs").says();
    assert!(
        log.contains("connection lost, trying again in") && log.contains("connected again after"),
        "{log}"
    );
    assert!(!log.contains("ERROR"), "{log}");
    Audit::at(lab.dir.path(), &lab.state("state"))
        .from_network(&lab.ns('b'))
        .holds();
}
