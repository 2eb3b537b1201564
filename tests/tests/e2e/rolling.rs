//! The rolling upgrade of the front ends: packages from a repository, in
//! batches over the racks, behind a confirmation, with a failure budget.

mod plant;

use std::collections::BTreeSet;

use muster_tests::{Said, Up};
use plant::Plant;
use rustix::process::Signal;

/// As in the documentation.
const SCENARIO: &str = include_str!("rolling/web-upgrade.rhai");

const WEBS: [&str; 4] = ["web-01", "web-02", "web-03", "web-04"];

/// Four front ends in two racks and a balancer, with the first version.
struct Front {
    up: Up,
    plant: Plant,
}

impl Front {
    fn start() -> Option<Self> {
        if let Some(why) = plant::lacks() {
            crate::faults::skipped("a rolling upgrade", why);
            return None;
        }
        let nodes = [
            "web-01:role=web,rack=r1",
            "web-02:role=web,rack=r1",
            "web-03:role=web,rack=r2",
            "web-04:role=web,rack=r2",
            "lb-01:role=lb",
        ];
        let mut up = Up::start(&nodes).expect("starts");
        up.stop(Signal::TERM).expect("stops");
        let plant = Plant::new();
        let mut ports = Vec::new();
        for node in WEBS.iter().chain(&["lb-01"]) {
            ports.push((*node, plant.machine(&up, node)));
        }
        up.launch().expect("starts again");
        for (node, port) in &ports[..4] {
            up.muster(&["node", "label", node, &format!("port={port}")])
                .exits(0);
        }
        plant.publish("1.4.1");
        let file = up.state().join("web-upgrade.rhai");
        std::fs::write(&file, SCENARIO).expect("written");
        let file = file.display().to_string();
        up.muster(&["scenario", "put", &file]).exits(0);
        let front = Self { up, plant };
        front.upgrade("1.4.1", &["--yes"]).exits(0);
        front.plant.forget();
        Some(front)
    }

    fn upgrade(&self, version: &str, more: &[&str]) -> Said {
        let version = format!("version={version}");
        let mut args = vec!["scenario", "run", "web-upgrade", "-p", &version];
        args.extend(more);
        self.up.muster(&args)
    }

    fn versions(&self) -> Vec<String> {
        WEBS.map(|node| self.plant.version(node)).into()
    }
}

/// Which machines were restarted, batch by batch: after the `drain`s that come
/// before them.
fn batches(log: &[String]) -> Vec<BTreeSet<String>> {
    let mut batches: Vec<BTreeSet<String>> = Vec::new();
    for line in log {
        let mut words = line.split(' ');
        let (node, what) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        match what {
            "drain" if batches.last().is_none_or(|batch| !batch.is_empty()) => {
                batches.push(BTreeSet::new());
            }
            "restart" => {
                let batch = batches.last_mut().expect("restarted before the drain");
                assert!(batch.insert(node.to_owned()), "{node} was restarted twice");
            }
            _ => {}
        }
    }
    batches
}

#[test]
fn the_front_ends_are_upgraded_rack_by_rack_behind_a_confirmation() {
    let Some(front) = Front::start() else { return };
    front.plant.publish("1.4.2");

    // Nobody confirms: nothing happens.
    let said = front.upgrade("1.4.2", &[]).exits(6);
    assert!(said.err.contains("web-upgrade"), "{said:?}");
    assert_eq!(front.versions(), ["1.4.1"; 4]);
    assert_eq!(front.plant.log(), [""; 0]);

    let said = front.upgrade("1.4.2", &["--yes"]).exits(0);
    assert_eq!(front.versions(), ["1.4.2"; 4], "{said:?}");
    let log = front.plant.log();
    let batches = batches(&log);
    // A quarter at a time, of one rack after the other.
    assert_eq!(batches.len(), 4, "{log:?}");
    assert!(batches.iter().all(|batch| batch.len() == 1), "{log:?}");
    let drained: BTreeSet<&String> = log.iter().filter(|l| l.contains(" drain ")).collect();
    assert_eq!(drained.len(), 4, "{log:?}");

    // Half at a time: one machine of each rack in each half.
    front.plant.publish("1.4.3");
    front.plant.forget();
    front
        .upgrade("1.4.3", &["--yes", "-p", "batch=50%"])
        .exits(0);
    let log = front.plant.log();
    let halves = self::batches(&log);
    assert_eq!(halves.len(), 2, "{log:?}");
    for half in &halves {
        let racks: BTreeSet<bool> = half.iter().map(|node| node.as_str() < "web-03").collect();
        assert_eq!((half.len(), racks.len()), (2, 2), "{halves:?}");
    }
}

#[test]
fn a_version_that_does_not_come_up_stops_after_its_batch() {
    let Some(front) = Front::start() else { return };
    front.plant.publish("1.5.0");
    for node in WEBS {
        front.plant.breaks(node, "1.5.0");
    }
    let said = front.upgrade("1.5.0", &["--yes"]).exits(1);
    let upgraded = front.versions().iter().filter(|v| *v == "1.5.0").count();
    assert_eq!(upgraded, 1, "{said:?}");
    assert_eq!(batches(&front.plant.log()).len(), 1);
}

#[test]
fn a_dry_run_says_what_each_node_would_do_and_does_nothing() {
    let Some(front) = Front::start() else { return };
    front.plant.publish("1.4.2");
    // The lists are fetched by whoever installs, not by a dry run.
    front.upgrade("1.4.2", &["--yes"]).exits(0);
    front.upgrade("1.4.1", &["--yes"]).exits(0);
    front.plant.forget();
    let said = front.upgrade("1.4.2", &["--dry-run"]).exits(0);
    for what in [
        "web-01",
        "web-04",
        "package webapp: 1.4.1 → 1.4.2",
        "service webapp: restarted",
        "command drain web-01",
    ] {
        assert!(said.out.contains(what), "no {what}: {said:?}");
    }
    assert_eq!(front.versions(), ["1.4.1"; 4]);
    assert_eq!(front.plant.log(), [""; 0]);
}
