//! What somebody else changes is put right; what is right is left alone.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::space::{Space, is_possible};
use crate::world::{Engine, generation, holding, mark, web};

fn rules(space: &Space) -> Vec<String> {
    let text = space.nft(&["-s", "list", "ruleset"]);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    // Where elements of a hash stand is nobody's.
    lines.sort();
    lines
}

#[test]
fn tables_that_somebody_changes_are_restored_with_their_counters() {
    if !is_possible("tables_that_somebody_changes_are_restored_with_their_counters") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let mut engine = Engine::start(&space, dir.path());
    engine.hold(&web(&["10.7.0.2/32"]));
    let right = rules(&space);
    // At once, before it was even listed; later again.
    space.nft(&["delete table inet muster_groups; delete table bridge muster_groups"]);
    let restored = engine.until(|answer| !answer.repaired.is_empty());
    assert_eq!(restored.repaired, ["- bridge table", "- inet table"]);
    assert_eq!(
        (restored.held, restored.in_force),
        (Some(mark(1)), Some(mark(1)))
    );
    assert_eq!(rules(&space), right);

    let changes = [
        (
            "insert rule inet muster_groups in-web accept",
            "+ inet chain in-web: accept",
        ),
        (
            "flush chain inet muster_groups in-web",
            "- inet chain in-web: ",
        ),
        (
            "add element inet muster_groups g4-lb { 10.66.0.6 }",
            "+ inet set g4-lb: 10.66.0.6",
        ),
        (
            "delete element inet muster_groups g4-lb { 10.7.0.2 }",
            "- inet set g4-lb: 10.7.0.2",
        ),
        ("add chain inet muster_groups theirs", "+ inet chain theirs"),
        ("delete table bridge muster_groups", "- bridge table"),
        ("flush ruleset", "- inet table"),
    ];
    for (change, line) in changes {
        space.nft(&[change]);
        let said = engine.until(|answer| {
            let mut lines = answer.repaired.iter();
            lines.any(|said| said.starts_with(line))
        });
        assert_eq!(said.in_force, Some(mark(1)), "{change}");
        assert_eq!(rules(&space), right, "{change}");
    }
    engine.end();
}

#[test]
fn counters_survive_updates_and_repairs() {
    if !is_possible("counters_survive_updates_and_repairs") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let one = space.guest("mt1", &crate::world::mac(1), "10.7.0.1");
    let two = space.guest("mt2", &crate::world::mac(2), "10.7.0.2");
    let mut engine = Engine::start(&space, dir.path());
    let with = |other: &str| {
        let rules: &[_] = &[
            (1, "ingress", "icmp 8", "any"),
            (2, "ingress", other, "any"),
        ];
        holding(&[(1, &["web"]), (2, &[])], &[("web", rules)], &[])
    };
    engine.hold(&with("tcp 80"));
    let ping = |space: &Space| {
        space
            .exec(&["ping", "-c", "1", "-W", "5", "10.7.0.1"])
            .status
            .success()
    };
    assert!(ping(&two));
    assert_eq!(engine.packets()["web/1"], 1);
    engine.hold(&with("tcp 443"));
    assert_eq!(engine.packets()["web/1"], 1);
    space.nft(&["flush ruleset"]);
    engine.until(|answer| !answer.repaired.is_empty());
    assert_eq!(engine.packets()["web/1"], 1);
    assert!(ping(&two));
    assert_eq!(engine.packets()["web/1"], 2);
    engine.end();
    // And a process that begins while they are not there.
    let mut engine = Engine::start(&space, dir.path());
    assert_eq!(engine.packets()["web/1"], 2);
    engine.hold(&with("tcp 22"));
    assert_eq!(engine.packets()["web/1"], 2);
    engine.end();
    drop(one);
}

#[test]
fn the_switches_of_the_bridge_are_put_on_again() {
    if !is_possible("the_switches_of_the_bridge_are_put_on_again") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let mut engine = Engine::start(&space, dir.path());
    engine.hold(&web(&[]));
    for switch in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let path = format!("/proc/sys/net/bridge/{switch}");
        space.here(|| fs::write(&path, "0").expect("root"));
        let said = engine.until(|answer| answer.repaired.iter().any(|line| line.contains(switch)));
        let lines = [
            format!("- net.bridge.{switch} = 1"),
            format!("+ net.bridge.{switch} = 0"),
        ];
        assert_eq!(said.repaired, lines);
        let value = space.here(|| fs::read_to_string(&path).expect("root"));
        assert_eq!(value.trim(), "1");
    }
    engine.end();
}

#[test]
fn what_others_do_with_their_tables_touches_nothing() {
    if !is_possible("what_others_do_with_their_tables_touches_nothing") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let mut engine = Engine::start(&space, dir.path());
    engine.hold(&web(&["10.7.0.2/32"]));
    engine.settled();
    let right = rules(&space);
    let before = generation(&space);
    for number in 0..20 {
        space.nft(&[&format!("add table ip theirs{number}")]);
    }
    // An update in the middle of it is one transaction, and the tables are
    // still known.
    engine.hold(&web(&["10.7.0.2/32", "10.7.0.3/32"]));
    assert_eq!(generation(&space), before.wrapping_add(21));
    engine.hold(&web(&["10.7.0.2/32"]));
    assert_eq!(generation(&space), before.wrapping_add(22));
    let answer = engine.groups.answers().borrow().clone();
    assert!(answer.repaired.is_empty(), "{answer:?}");
    for number in 0..20 {
        space.nft(&[&format!("delete table ip theirs{number}")]);
    }
    assert_eq!(rules(&space), right);
    // What was changed while nobody looked is put right at the start.
    engine.end();
    space.nft(&["flush ruleset"]);
    let engine = Engine::start(&space, dir.path());
    assert_eq!(rules(&space), right);
    engine.end();
}

#[test]
fn somebody_who_changes_rules_all_the_time_is_no_hindrance() {
    if !is_possible("somebody_who_changes_rules_all_the_time_is_no_hindrance") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let mut engine = Engine::start(&space, dir.path());
    engine.hold(&web(&["10.7.0.2/32"]));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut changes = 0;
            while !done.load(Ordering::Relaxed) {
                space.nft(&["add table ip theirs; add chain ip theirs c; delete table ip theirs"]);
                changes += 1;
            }
            changes
        });
        for number in 1..=12_u8 {
            let mut next = web(&["10.7.0.2/32"]);
            for rules in next.groups.values_mut() {
                rules[0].traffic = format!("tcp {number}").parse().expect("traffic");
            }
            let answer = engine.hold(&next);
            assert_eq!(answer.in_force, answer.held, "{answer:?}");
            assert!(answer.repaired.is_empty(), "{answer:?}");
        }
        // What he does to ours is found nevertheless.
        space.nft(&["flush chain inet muster_groups in-web"]);
        let said = engine.until(|answer| !answer.repaired.is_empty());
        assert!(
            said.repaired[0].starts_with("- inet chain in-web: "),
            "{said:?}"
        );
        done.store(true, Ordering::Relaxed);
        let changes = others.join().expect("no panic");
        assert!(changes > 10, "{changes} changes");
    });
    let chain = space.nft(&["list", "chain", "inet", "muster_groups", "in-web"]);
    assert!(chain.contains("tcp dport 12"), "{chain}");
    engine.end();
}
