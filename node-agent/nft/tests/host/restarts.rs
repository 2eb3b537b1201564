//! Whoever is killed, stopped, or started again with the machine.

use std::fs;
use std::time::Duration;

use muster_nft::host::{Restored, restore};

use crate::changes::{ssh, web};
use crate::processes::Agent;
use crate::world::{World, capable, id, kill_all, resolved, until};

fn ready() -> Option<World> {
    capable().then(|| {
        let mut world = World::new();
        world.listen(22);
        world.listen(80);
        world.confirm("first", ssh()).expect("confirmed");
        until("nobody stands guard", || world.guards().is_empty());
        world
    })
}

const LONG: Duration = Duration::from_secs(60);

#[track_caller]
fn old_rules(world: &World) {
    assert!(world.reaches(22) && !world.reaches(80));
    assert!(!world.node.table().expect("a table").contains("try_"));
    let plan = world.firewall().plan(&resolved(ssh()));
    assert!(plan.expect("a plan").difference.is_empty());
    let left = fs::read_dir(world.path("state")).expect("a directory");
    let mut left: Vec<String> = left
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    left.sort();
    assert_eq!(left, ["confirmed.json", "history", "lock"]);
}

#[test]
fn the_guard_takes_it_back_when_the_agent_is_killed() {
    let Some(world) = ready() else {
        return;
    };
    let agent = Agent::start(&world, web(), LONG);
    agent.asks();
    assert!(!world.reaches(22) && world.reaches(80));
    let guards = world.guards();
    assert_eq!(guards.len(), 1);
    let session = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        let (_, rest) = stat.rsplit_once(") ").expect("a state");
        // State, parent, group, session.
        let words: Vec<u32> = rest.split(' ').filter_map(|w| w.parse().ok()).collect();
        (words[0], words[2])
    };
    let (parent, own) = session(guards[0]);
    assert_ne!(own, session(agent.pid()).1);
    assert_ne!(parent, agent.pid());
    agent.kill();
    let ended = world.ended("agent/0");
    assert!(ended.contains("\"by\":\"guard\""), "{ended}");
    assert!(ended.contains("the agent ended before it was confirmed"));
    old_rules(&world);
}

#[test]
fn the_guard_takes_it_back_when_the_agent_is_stopped() {
    let Some(world) = ready() else {
        return;
    };
    let agent = Agent::start(&world, web(), Duration::from_secs(2));
    agent.asks();
    agent.signal("-STOP");
    let ended = world.ended("agent/0");
    assert!(ended.contains("\"by\":\"guard\""), "{ended}");
    assert!(ended.contains("it was not confirmed in time"), "{ended}");
    old_rules(&world);
    // It may have been confirmed meanwhile: too late.
    world.file("answer", "yes");
    agent.signal("-CONT");
    let said = agent.said();
    assert!(said.starts_with("rolled back after "), "{said}");
    old_rules(&world);
}

#[test]
fn the_agent_does_without_its_guard() {
    let Some(world) = ready() else {
        return;
    };
    let agent = Agent::start(&world, web(), LONG);
    agent.asks();
    kill_all(&world.guards());
    world.file("answer", "probe from bastion-1 to tcp/22 got no answer");
    let said = agent.said();
    assert!(
        said.contains("tcp/22 got no answer; the old rules are in force"),
        "{said}"
    );
    old_rules(&world);
}

#[test]
fn the_next_start_takes_it_back_when_both_are_killed() {
    let Some(world) = ready() else {
        return;
    };
    let agent = Agent::start(&world, web(), LONG);
    agent.asks();
    // While it waits, a start of something else leaves it alone.
    let busy = restore(&world.setting()).expect("looked");
    assert!(busy.busy && world.reaches(80));
    kill_all(&world.guards());
    agent.kill();
    assert!(!world.reaches(22) && world.reaches(80));
    let restored = restore(&world.setting()).expect("restored");
    let (change, ended) = restored.rolled_back.expect("it was taken back");
    assert_eq!(change, id("agent/0"));
    assert!(
        ended
            .to_string()
            .ends_with("the agent ended before it was confirmed")
    );
    old_rules(&world);
    // What is right is not touched.
    let table = world.node.table();
    assert_eq!(
        restore(&world.setting()).expect("looked"),
        Restored::default()
    );
    assert_eq!(world.node.table(), table);
}

#[test]
fn a_machine_that_starts_again_has_its_confirmed_rules() {
    let Some(mut world) = ready() else {
        return;
    };
    world.reboot("second");
    assert_eq!(world.node.table(), None);
    let restored = restore(&world.setting()).expect("restored");
    assert_eq!(restored.loaded, Some(id("first")));
    world.listen(22);
    world.listen(80);
    old_rules(&world);
    let table = world.node.table();
    assert_eq!(
        restore(&world.setting()).expect("looked"),
        Restored::default()
    );
    assert_eq!(world.node.table(), table);
}

#[test]
fn a_machine_that_starts_again_during_a_change_has_its_old_rules() {
    let Some(mut world) = ready() else {
        return;
    };
    let agent = Agent::start(&world, web(), LONG);
    agent.asks();
    kill_all(&world.guards());
    agent.kill();
    world.reboot("second");
    let restored = restore(&world.setting()).expect("restored");
    let (_, ended) = restored.rolled_back.expect("it was taken back");
    assert!(
        ended
            .to_string()
            .ends_with("the machine was restarted before it was confirmed")
    );
    world.listen(22);
    world.listen(80);
    old_rules(&world);
}

#[test]
fn a_machine_whose_first_change_was_in_flight_starts_without_rules() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    // Nothing was ever changed: nothing is made.
    assert_eq!(
        restore(&world.setting()).expect("looked"),
        Restored::default()
    );
    assert!(!world.path("state").exists());
    let agent = Agent::start(&world, web(), LONG);
    agent.asks();
    kill_all(&world.guards());
    agent.kill();
    world.reboot("second");
    let restored = restore(&world.setting()).expect("restored");
    assert!(restored.rolled_back.is_some() && restored.loaded.is_none());
    assert_eq!(world.node.table(), None);
}

#[test]
fn what_comes_too_late_is_refused_by_the_kernel() {
    let Some(world) = ready() else {
        return;
    };
    // The one call that puts the new rules in force is held.
    let dir = world.dir.path().display();
    world.hook(&format!(
        "if [ \"$*\" = '-f -' ]; then
            cat > {dir}/text.$$
            if grep -q 'dport 80' {dir}/text.$$; then
                : > {dir}/held
                while [ ! -e {dir}/go ]; do sleep 0.01; done
                ip netns exec {} nft -f {dir}/text.$$ 2>{dir}/late.part; echo \"$?\" >> {dir}/late.part
                mv {dir}/late.part {dir}/late
                exit 1
            fi
            exec < {dir}/text.$$
        fi",
        world.node.name()
    ));
    let agent = Agent::start(&world, web(), LONG);
    until("it is held", || world.path("held").exists());
    agent.kill();
    let ended = world.ended("agent/0");
    assert!(ended.contains("\"by\":\"guard\""), "{ended}");
    old_rules(&world);
    let table = world.node.table();
    world.file("go", "");
    until("it was tried", || world.path("late").exists());
    let late = fs::read_to_string(world.path("late")).expect("read");
    assert!(
        late.contains("No such file or directory") && late.ends_with("1\n"),
        "{late}"
    );
    assert_eq!(world.node.table(), table);
}

#[test]
fn an_agent_that_stalls_after_its_guard_stands_comes_too_late() {
    let Some(world) = ready() else {
        return;
    };
    // It is held when the guard stands, and nothing is in force yet.
    let dir = world.dir.path().display();
    world.hook(&format!(
        "if [ \"$1\" = -j ]; then
            : > {dir}/held
            while [ ! -e {dir}/go ]; do sleep 0.01; done
        fi"
    ));
    let agent = Agent::start(&world, web(), LONG);
    until("it is held", || world.path("held").exists());
    assert_eq!(world.guards().len(), 1);
    // Its time is over.
    world.file("state/deadline.2", "0");
    let ended = world.ended("agent/0");
    assert!(ended.contains("it was not confirmed in time"), "{ended}");
    world.file("go", "");
    world.file("answer", "yes");
    let said = agent.said();
    assert!(said.ends_with("the old rules are in force"), "{said}");
    old_rules(&world);
}
