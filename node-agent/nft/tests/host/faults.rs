//! Programs, disks and files that fail.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use muster_nft::host::{Changed, HostError, HostFirewall, Setting, restore};
use muster_nft::nft::Nft;

use crate::changes::{ssh, web};
use crate::processes::Agent;
use crate::world::{World, capable, id, kill_all, resolved, runtime, until};

/// What is said, without what differs from run to run.
fn said(world: &World, error: &HostError) -> String {
    let dir = world.dir.path().display().to_string();
    error.to_string().replace(&dir, "DIR")
}

#[test]
fn without_nft_nothing_is_promised() {
    if !capable() {
        return;
    }
    let world = World::new();
    let missing = Setting {
        nft: Nft::new(world.path("none")),
        ..world.setting()
    };
    let missing = HostFirewall::open(missing).expect_err("there is none");
    insta::assert_snapshot!(said(&world, &missing), @"nothing was changed: there is no program DIR/none to set rules with; install nftables: it is looked for along PATH, and in /usr/sbin and /sbin");
    world.hook("echo 'Error: no such thing in this kernel' >&2; exit 1");
    let refused = HostFirewall::open(world.setting()).expect_err("it refuses");
    insta::assert_snapshot!(said(&world, &refused), @"nothing was changed: DIR/nft refused (exit status: 1), nothing was changed: Error: no such thing in this kernel");
    assert!(!world.path("state").exists());
}

#[test]
fn an_nft_that_fails_or_hangs_leaves_the_old_rules() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    world.listen(80);
    world.confirm("first", ssh()).expect("confirmed");
    let dir = world.dir.path().display().to_string();
    // Only what is to put the new rules in force.
    let only = |then: &str| {
        format!(
            "if [ \"$*\" = '-f -' ]; then
                cat > {dir}/text.$$
                if grep -q 'dport 80' {dir}/text.$$; then {then}; fi
                exec < {dir}/text.$$
            fi"
        )
    };
    world.hook(&only("echo 'Error: Cannot allocate memory' >&2; exit 1"));
    let failed = world.confirm("second", web()).expect_err("it failed");
    insta::assert_snapshot!(said(&world, &failed), @"the new rules did not come in force: DIR/nft refused (exit status: 1), nothing was changed: Error: Cannot allocate memory; the old rules are in force");
    assert!(world.reaches(22) && !world.reaches(80));

    world.hook(&only("sleep 600"));
    let firewall = HostFirewall::open(Setting {
        nft: world.setting().nft.within(Duration::from_secs(2)),
        ..world.setting()
    });
    let firewall = firewall.expect("it is there");
    let (change, rules) = (id("third"), resolved(web()));
    let confirm = async { Ok(()) };
    let hangs =
        runtime().block_on(firewall.change(&change, &rules, Duration::from_secs(20), confirm));
    let hangs = hangs.expect_err("it hangs");
    assert!(matches!(hangs, HostError::NotApplied { .. }), "{hangs}");
    assert!(world.reaches(22) && !world.reaches(80));
    world.no_hook();
    until("nobody stands guard", || world.guards().is_empty());
    assert!(matches!(
        world.confirm("fourth", web()),
        Ok(Changed::Confirmed(_))
    ));
}

#[test]
fn the_guard_tries_again_until_the_old_rules_are_back() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    world.listen(80);
    world.confirm("first", ssh()).expect("confirmed");
    let stuck = world.change("second", web(), Duration::from_secs(20), async {
        world.hook("[ \"$*\" = '-f -' ] && exit 1");
        Err("no".to_owned())
    });
    let stuck = stuck.expect_err("it cannot");
    assert!(matches!(stuck, HostError::Stuck { .. }), "{stuck}");
    assert!(!world.reaches(22) && world.reaches(80));
    world.no_hook();
    let ended = world.ended("second");
    assert!(ended.contains("\"by\":\"guard\""), "{ended}");
    assert!(world.reaches(22) && !world.reaches(80));
}

#[test]
fn without_a_guard_nothing_is_changed() {
    if !capable() {
        return;
    }
    let world = World::new();
    world.confirm("first", ssh()).expect("confirmed");
    let table = world.node.table();
    world.file("no-guard", "");
    let alone = world
        .confirm("second", web())
        .expect_err("nobody stands guard");
    insta::assert_snapshot!(said(&world, &alone), @"nothing was changed: nobody could be set to watch over the change: DIR/agent: it ended with exit status: 3");
    assert_eq!(world.node.table(), table);
    fs::remove_file(world.path("no-guard")).expect("removed");
    assert!(matches!(
        world.confirm("third", web()),
        Ok(Changed::Confirmed(_))
    ));
}

#[test]
fn a_step_that_is_given_up_is_taken_back() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    world.listen(80);
    world.confirm("first", ssh()).expect("confirmed");
    let firewall = world.firewall();
    let (change, rules) = (id("second"), resolved(web()));
    runtime().block_on(async {
        let (asked, seen) = tokio::sync::oneshot::channel();
        let confirm = async {
            let _ = asked.send(());
            std::future::pending().await
        };
        let work = firewall.change(&change, &rules, Duration::from_secs(60), confirm);
        tokio::select! {
            _ = work => panic!("nobody confirms it"),
            seen = seen => seen.expect("it asks"),
        }
    });
    let ended = world.ended("second");
    assert!(ended.contains("\"by\":\"guard\""), "{ended}");
    assert!(world.reaches(22) && !world.reaches(80));
}

#[test]
fn a_change_of_which_nothing_is_known_any_more_is_taken_back() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    world.listen(80);
    let state = world.path("state");
    for alone in ["the agent", "the guard"] {
        world.confirm("first", ssh()).expect("confirmed");
        until("nobody stands guard", || world.guards().is_empty());
        let agent = Agent::start(&world, web(), Duration::from_secs(60));
        agent.asks();
        assert!(!world.reaches(22) && world.reaches(80));
        if alone == "the agent" {
            kill_all(&world.guards());
            fs::remove_dir_all(&state).expect("removed");
            world.file("answer", "yes");
            let said = agent.said();
            assert!(said.ends_with("the old rules are in force"), "{said}");
        } else {
            agent.signal("-STOP");
            fs::remove_dir_all(&state).expect("removed");
            until("nobody stands guard", || world.guards().is_empty());
        }
        assert!(world.reaches(22) && !world.reaches(80), "{alone}");
    }
}

#[test]
fn a_table_that_somebody_took_away_is_not_confirmed() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    world.listen(80);
    world.confirm("first", ssh()).expect("confirmed");
    let gone = world.change("second", web(), Duration::from_secs(20), async {
        world.node.nft(&["flush", "ruleset"]);
        // Whoever probes gets through: there are no rules.
        Ok(())
    });
    let gone = gone.expect_err("it is not there");
    assert!(
        gone.to_string()
            .contains("somebody else took the table inet muster_host away"),
        "{gone}"
    );
    assert!(world.reaches(22) && !world.reaches(80));
    assert!(world.entry("first").in_force);
}

/// A small file system in a world's state.
struct Small(PathBuf);

impl Small {
    fn new(world: &World) -> Self {
        let at = world.path("state");
        fs::create_dir(&at).expect("made");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128k", "none"])
            .arg(&at)
            .status();
        assert!(done.is_ok_and(|status| status.success()));
        Self(at)
    }

    fn fill(&self) {
        let full = fs::write(self.0.join("filler"), vec![0; 1 << 20]);
        assert!(full.is_err());
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).expect("removed");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_stops_a_change_before_it_begins_and_no_later() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    let disk = Small::new(&world);
    world.listen(22);
    world.listen(80);
    world.confirm("first", ssh()).expect("confirmed");
    let table = world.node.table();
    disk.fill();
    let full = world.confirm("second", web()).expect_err("it is full");
    insta::assert_snapshot!(said(&world, &full), @"cannot write DIR/state/history/2.json: No space left on device (os error 28)");
    assert_eq!(world.node.table(), table);
    disk.empty();

    // It is taken back on a full disk …
    let refused = world.change("third", web(), Duration::from_secs(20), async {
        disk.fill();
        Err("no".to_owned())
    });
    assert!(matches!(refused, Err(HostError::RolledBack { .. })));
    assert!(world.reaches(22) && !world.reaches(80));
    disk.empty();
    until("nobody stands guard", || world.guards().is_empty());

    // … and confirmed on one.
    let done = world.change("fourth", web(), Duration::from_secs(20), async {
        disk.fill();
        Ok(())
    });
    assert!(matches!(done, Ok(Changed::Confirmed(_))));
    assert!(!world.reaches(22) && world.reaches(80));
    assert!(world.entry("fourth").in_force);
    assert_eq!(restore(&world.setting()).expect("looked").rolled_back, None);
}

#[test]
fn what_is_damaged_opens_nothing() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.confirm("first", ssh()).expect("confirmed");
    let table = world.node.table();
    for name in ["confirmed.json", "history/1.json"] {
        let path = world.path("state").join(name);
        let whole = fs::read(&path).expect("read");
        for bad in [&whole[..whole.len() / 2], b"", b"{}", b"\xff\0"] {
            fs::write(&path, bad).expect("written");
            let damaged = restore(&world.setting()).expect_err("damaged");
            assert!(damaged.to_string().contains(" is damaged: "), "{damaged}");
            let refused = world.confirm("second", web()).expect_err("damaged");
            assert!(refused.to_string().contains(" is damaged: "), "{refused}");
            assert!(
                refused.to_string().contains("with the `confirmed.json`"),
                "{refused}"
            );
            assert_eq!(world.node.table(), table);
        }
        fs::write(&path, whole).expect("written");
    }
    // How it ended is not needed for anything.
    fs::write(world.path("state/history/1.end.json"), "{").expect("written");
    world.reboot("second");
    let restored = restore(&world.setting()).expect("restored");
    assert_eq!(restored.loaded, Some(id("first")));
    assert!(
        world
            .node
            .table()
            .expect("a table")
            .contains("tcp dport 22")
    );
}
