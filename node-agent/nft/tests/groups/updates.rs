//! Updates: whole, in parts, for something else, and after a new start.

use muster_protocol::firewall::{Change, GroupsUpdate, Holding};

use crate::space::{Space, is_possible};
use crate::world::{Engine, generation, mark, web};

#[test]
fn what_is_held_is_in_force_and_stays_so_over_a_start() {
    if !is_possible("what_is_held_is_in_force_and_stays_so_over_a_start") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let mut engine = Engine::start(&space, dir.path());
    // Before anybody said anything: tables that let nothing pass.
    let bare = space.nft(&["list", "ruleset"]);
    assert!(bare.contains("table bridge muster_groups"), "{bare}");
    let answer = engine.hold(&web(&["10.7.0.2/32"]));
    assert_eq!(
        (answer.held, answer.in_force),
        (Some(mark(1)), Some(mark(1))),
        "{answer:?}"
    );
    assert_eq!(answer.problem, None);
    let answer = engine.hold(&web(&["10.7.0.2/32", "10.7.0.3/32"]));
    assert_eq!(answer.in_force, Some(mark(2)));
    let set = space.nft(&["list", "set", "inet", "muster_groups", "g4-lb"]);
    assert!(set.contains("10.7.0.2, 10.7.0.3"), "{set}");
    engine.end();

    let (before, rules) = (generation(&space), space.nft(&["list", "ruleset"]));
    let mut engine = Engine::start(&space, dir.path());
    let answer = engine.groups.answers().borrow().clone();
    assert_eq!(
        (answer.held, answer.in_force),
        (Some(mark(2)), Some(mark(2))),
        "{answer:?}"
    );
    assert_eq!(generation(&space), before, "something was touched");
    assert_eq!(space.nft(&["list", "ruleset"]), rules);
    // The same once more changes nothing either, and is in force.
    let answer = engine.hold(&web(&["10.7.0.2/32", "10.7.0.3/32"]));
    assert_eq!(answer.in_force, Some(mark(3)));
    assert_eq!(generation(&space), before, "something was touched");
    engine.end();
}

#[test]
fn parts_are_put_in_force_together() {
    if !is_possible("parts_are_put_in_force_together") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let mut engine = Engine::start(&space, dir.path());
    engine.hold(&web(&["10.7.0.2/32"]));
    let rules = space.nft(&["list", "ruleset"]);
    let next = web(&["10.7.0.9/32"]);
    let all = Holding::default().change_to(&next);
    let part = |base, sequence, more, change| GroupsUpdate {
        base,
        mark: mark(sequence),
        more,
        change,
    };
    let interfaces = Change {
        interfaces: all.interfaces.clone(),
        ..Change::default()
    };
    let groups = Change {
        groups: all.groups.clone(),
        ..Change::default()
    };
    let members = Change {
        members: all.members.clone(),
        ..Change::default()
    };
    let answer = engine.update(part(None, 10, true, interfaces.clone()));
    assert_eq!(
        (answer.held, answer.in_force),
        (Some(mark(10)), Some(mark(1)))
    );
    assert_eq!(space.nft(&["list", "ruleset"]), rules);
    engine.end();

    // What was in force still is, after a start in the middle of it.
    let engine = Engine::start(&space, dir.path());
    let answer = engine.groups.answers().borrow().clone();
    assert_eq!(
        (answer.held, answer.in_force),
        (Some(mark(10)), Some(mark(1)))
    );
    // A part for something else is not taken.
    let answer = engine.update(part(Some(mark(9)), 11, true, groups.clone()));
    assert_eq!(answer.held, Some(mark(10)));
    let answer = engine.update(part(Some(mark(10)), 11, true, groups));
    assert_eq!(
        (answer.held, answer.in_force),
        (Some(mark(11)), Some(mark(1)))
    );
    let answer = engine.update(part(Some(mark(11)), 12, false, members));
    assert_eq!(
        (answer.held, answer.in_force),
        (Some(mark(12)), Some(mark(12)))
    );
    let set = space.nft(&["list", "set", "inet", "muster_groups", "g4-lb"]);
    assert!(
        set.contains("10.7.0.9") && !set.contains("10.7.0.2"),
        "{set}"
    );

    // A last part that leaves something missing is told, and nothing of it
    // stays.
    let answer = engine.update(part(None, 20, true, interfaces));
    assert_eq!(answer.held, Some(mark(20)));
    let answer = engine.update(part(Some(mark(20)), 21, false, Change::default()));
    assert_eq!(
        (answer.held, answer.in_force),
        (Some(mark(12)), Some(mark(12)))
    );
    insta::assert_snapshot!(answer.problem.unwrap_or_default(), @"an update of the groups is not taken: interface mt1 is in the group `web`, of which nothing is known");
    engine.end();
}
