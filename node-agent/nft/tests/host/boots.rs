//! What a start makes of changes and rules that are not as this version would
//! write them, or that the kernel does not take yet.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use muster_nft::host::{Changed, HostError, restore};
use serde_json::{Value, json};

use crate::changes::{ssh, web};
use crate::processes::Agent;
use crate::world::{World, capable, id, kill_all, until};

/// Its first change is confirmed.
pub(crate) fn ready() -> Option<World> {
    capable().then(|| {
        let world = World::new();
        world.confirm("first", ssh()).expect("confirmed");
        until("nobody stands guard", || world.guards().is_empty());
        world
    })
}

/// A change is in force, and neither who made it nor who guarded it lives.
fn left_alone(world: &World) {
    let agent = Agent::start(world, web(), Duration::from_secs(60));
    agent.asks();
    kill_all(&world.guards());
    agent.kill();
}

fn edit(world: &World, name: &str, with: impl FnOnce(&mut Value)) {
    let path = world.path("state").join(name);
    let text = fs::read(&path).expect("read");
    let mut value: Value = serde_json::from_slice(&text).expect("JSON");
    with(&mut value);
    fs::write(path, value.to_string()).expect("written");
}

#[track_caller]
fn only_ssh(world: &World) {
    let table = world.node.table().expect("a table");
    assert!(table.contains("tcp dport 22"), "{table}");
    assert!(!table.contains("tcp dport 80"), "{table}");
    assert!(!table.contains("try_"), "{table}");
}

fn without_eth0(world: &World) {
    let done = Command::new("ip")
        .args(["-n", world.node.name(), "link", "del", "eth0"])
        .status();
    assert!(done.is_ok_and(|status| status.success()));
}

#[test]
fn what_was_in_force_and_cannot_be_loaded_is_what_was_confirmed() {
    let Some(mut world) = ready() else {
        return;
    };
    let rule = "insert rule inet muster_host input iif eth0 tcp dport 9 accept";
    world.node.nft(&[rule]);
    left_alone(&world);
    world.reboot("second");
    without_eth0(&world);
    let restored = restore(&world.setting()).expect("restored");
    assert!(restored.rolled_back.is_some());
    only_ssh(&world);
    assert!(!world.node.table().expect("a table").contains("dport 9"));
}

#[test]
fn what_another_version_wrote_is_read() {
    let Some(mut world) = ready() else {
        return;
    };
    for boot in ["first", "second"] {
        left_alone(&world);
        let newest = fs::read_dir(world.path("state")).expect("a directory");
        let newest = newest
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .find(|name| name.starts_with("change."));
        let newest = newest.expect("a change in flight");
        let number = newest.trim_start_matches("change.").to_owned();
        for name in [
            newest.as_str(),
            "confirmed.json",
            "history/1.json",
            "history/1.end.json",
            &format!("history/{number}"),
        ] {
            edit(&world, name, |value| value["of a later version"] = json!(1));
        }
        if boot == "second" {
            world.reboot(boot);
        }
        let restored = restore(&world.setting()).expect("restored");
        assert!(restored.rolled_back.is_some());
        only_ssh(&world);
        let again = restore(&world.setting()).expect("looked");
        assert_eq!((again.rolled_back, again.loaded), (None, None));
        fs::remove_file(world.path("state/history").join(number)).expect("removed");
    }
}

#[test]
fn raw_lines_that_cannot_be_loaded_are_left_out() {
    let Some(mut world) = ready() else {
        return;
    };
    // This version does not take it, another one did.
    edit(&world, "history/1.json", |record| {
        let rules = record.pointer_mut("/rules/rules/rules").expect("rules");
        let rules = rules.as_array_mut().expect("a list");
        rules.push(json!({"raw": "iif eth0 tcp dport 9 accept"}));
        let text = record["text"].as_str().expect("text").replacen(
            "\t}\n\tchain output",
            "\t\tiif eth0 tcp dport 9 accept\n\t}\n\tchain output",
            1,
        );
        assert!(text.contains("dport 9"));
        record["text"] = json!(text);
    });
    world.reboot("second");
    let restored = restore(&world.setting()).expect("restored");
    assert_eq!(restored.loaded, Some(id("first")));
    only_ssh(&world);
    assert!(world.node.table().expect("a table").contains("dport 9"));

    world.reboot("third");
    without_eth0(&world);
    let without = restore(&world.setting()).expect_err("not all of them");
    assert!(matches!(without, HostError::WithoutRaw { .. }), "{without}");
    only_ssh(&world);
    assert!(!world.node.table().expect("a table").contains("dport 9"));
    // It is no reason not to have others.
    assert!(matches!(
        world.confirm("second", web()),
        Ok(Changed::Confirmed(_))
    ));
}

#[test]
fn a_change_of_which_nothing_can_be_read_does_not_stay() {
    let Some(mut world) = ready() else {
        return;
    };
    for boot in ["first", "second"] {
        left_alone(&world);
        let marker = world.path("state/change.2.json");
        fs::write(&marker, "{").expect("written");
        if boot == "second" {
            world.reboot(boot);
        }
        let damaged = restore(&world.setting()).expect_err("damaged");
        assert!(
            damaged
                .to_string()
                .ends_with("it is of a change that was in flight: move it away"),
            "{damaged}"
        );
        only_ssh(&world);
        fs::remove_file(marker).expect("removed");
        for name in ["history/2.json", "deadline.2"] {
            fs::remove_file(world.path("state").join(name)).expect("removed");
        }
    }
}

/// A world's state, on which nothing can be written.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn new(world: &World) -> Self {
        let at = world.path("state");
        for options in ["bind", "bind,remount,ro"] {
            let mut mount = Command::new("mount");
            mount.args(["-o", options]).args([&at, &at]);
            assert!(mount.status().is_ok_and(|status| status.success()));
        }
        Self(at)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_cannot_be_written_yet_is_no_open_door() {
    let Some(mut world) = ready() else {
        return;
    };
    for in_flight in [false, true] {
        if in_flight {
            left_alone(&world);
        }
        world.reboot(&format!("flight: {in_flight}"));
        let disk = ReadOnly::new(&world);
        let failed = restore(&world.setting()).expect_err("nothing can be written");
        assert!(failed.to_string().contains("Read-only"), "{failed}");
        only_ssh(&world);
        drop(disk);
        // The agent's start, later.
        let later = restore(&world.setting()).expect("restored");
        assert_eq!(later.rolled_back.is_some(), in_flight);
        only_ssh(&world);
    }
}

#[test]
fn a_start_does_not_wait_for_ever_for_a_program_that_hangs() {
    let Some(mut world) = ready() else {
        return;
    };
    left_alone(&world);
    world.reboot("second");
    // Only the old rules cannot be loaded: they say what was counted.
    edit(&world, "history/2.json", |record| {
        let old = record["old"].as_str().expect("a table");
        record["old"] = json!(format!("# the old ones\n{old}"));
    });
    let dir = world.dir.path().display();
    world.hook(&format!(
        "if [ \"$*\" = '-f -' ]; then
            cat > {dir}/text.$$
            if grep -q 'the old ones' {dir}/text.$$; then echo >> {dir}/hung; sleep 600; fi
            exec < {dir}/text.$$
        fi"
    ));
    let stuck = restore(&world.setting()).expect_err("it hangs");
    assert!(matches!(stuck, HostError::Stuck { .. }), "{stuck}");
    assert!(!stuck.to_string().contains("guard"), "{stuck}");
    // 20 s, and what is left of 30; each of the three tries took 40.
    let hung = fs::read_to_string(world.path("hung")).expect("read");
    assert_eq!(hung.lines().count(), 2);
    only_ssh(&world);
}
