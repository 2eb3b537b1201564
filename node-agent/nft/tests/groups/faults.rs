//! `nft` that is missing, fails, hangs or dies; a log that is damaged; the
//! boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use muster_nft::groups::{Setting, Unable, boot};
use muster_nft::host::Setting as Host;
use muster_nft::nft::{Nft, NftError};
use muster_nft::{Guests, boot as boot_all};

use crate::space::{Space, is_possible};
use crate::world::{Engine, generation, mark, web};

/// An `nft` that does what the file `mode` beside it says: `well`, `fail`,
/// `hang` (when it is to change rules), `slow` (the first two times), `never`.
struct Fake(PathBuf);

impl Fake {
    fn new(dir: &Path) -> Self {
        let path = dir.join("nft");
        let text = r#"#!/bin/sh
case "$1 $(cat "${0%/*}/mode")" in
"-f fail") echo 'Error: it does not like it' >&2; exit 1;;
"-f die") kill -9 $$;;
"-f after") nft "$@"; kill -9 $$;;
"-f hang") sleep 1000;;
*" slow") echo >> "$0.slow"; [ "$(wc -l < "$0.slow")" -gt 2 ] || sleep 1000; exec nft "$@";;
*" never") sleep 1000;;
*) exec nft "$@";;
esac
"#;
        script(&path, text);
        let fake = Self(path);
        fake.does("well");
        fake
    }

    fn does(&self, mode: &str) {
        fs::write(self.0.with_file_name("mode"), mode).expect("write");
    }

    fn setting(&self, dir: &Path) -> Setting {
        Setting {
            nft: self.0.clone(),
            nft_within: Duration::from_secs(2),
            ..Setting::new(dir)
        }
    }
}

/// Writes a script. By another program: a descriptor of ours would still be
/// open in what another test starts at this moment, and the script be busy.
fn script(path: &Path, text: &str) {
    let write = "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", write, "sh", text]).arg(path);
    assert!(command.status().is_ok_and(|status| status.success()));
}

fn set(space: &Space) -> String {
    space.nft(&["list", "set", "inet", "muster_groups", "g4-lb"])
}

fn set_is_missing(space: &Space) -> bool {
    let rules = space.nft(&["list", "ruleset"]);
    assert!(rules.contains("table bridge muster_groups"), "{rules}");
    !rules.contains("g4-lb")
}

/// A change that is more than an element.
fn other(address: &str) -> muster_protocol::firewall::Holding {
    let mut other = web(&[address]);
    for rules in other.groups.values_mut() {
        rules[0].traffic = "tcp 443".parse().expect("traffic");
    }
    other
}

#[test]
fn without_a_working_nft_there_are_no_groups() {
    if !is_possible("without_a_working_nft_there_are_no_groups") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let fake = Fake::new(dir.path());
    let missing = Setting {
        nft: dir.path().join("none"),
        ..Setting::new(dir.path())
    };
    let unable = Engine::with(&space, missing).map(drop).expect_err("none");
    assert!(
        matches!(unable, Unable::Nft(NftError::Missing { .. })),
        "{unable}"
    );
    // A check is refused as a transaction would be.
    let refuses = dir.path().join("refuses");
    script(
        &refuses,
        "#!/bin/sh\necho Error: no such family >&2; exit 1\n",
    );
    let setting = Setting {
        nft: refuses,
        ..Setting::new(dir.path())
    };
    let unable = Engine::with(&space, setting).map(drop).expect_err("none");
    let said = unable
        .to_string()
        .replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(said, @"the kernel cannot hold the rules of groups: DIR/refuses refused (exit status: 1), nothing was changed: Error: no such family; it needs nf_tables with the bridge and inet families, sets, maps and connection tracking");
    assert_eq!(space.nft(&["list", "ruleset"]), "");
    assert!(!dir.path().join("groups.log").exists());
    let engine = Engine::with(&space, fake.setting(dir.path())).expect("starts");
    // Nobody else may hold them at once.
    let second = Engine::with(&space, fake.setting(dir.path())).map(drop);
    assert!(matches!(second.expect_err("locked"), Unable::Log(_)));
    engine.end();
}

#[test]
fn a_slow_start_is_no_reason_to_be_without_groups() {
    if !is_possible("a_slow_start_is_no_reason_to_be_without_groups") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let fake = Fake::new(dir.path());
    // Where nothing is held it is tried a few times, and then given up.
    fake.does("never");
    let unable = Engine::with(&space, fake.setting(dir.path())).map(drop);
    let unable = unable.expect_err("it never works");
    assert!(
        matches!(unable, Unable::Nft(NftError::Hangs { .. })),
        "{unable}"
    );
    fake.does("slow");
    let mut engine = Engine::with(&space, fake.setting(dir.path())).expect("starts");
    fake.does("well");
    let answer = engine.hold(&web(&["10.7.0.2/32"]));
    assert_eq!(answer.in_force, Some(mark(1)));
    engine.end();
    // What is held is looked after as soon as it can be.
    space.nft(&["flush ruleset"]);
    fake.does("never");
    let engine = Engine::with(&space, fake.setting(dir.path())).expect("looks after them");
    let answer = engine.groups.answers().borrow().clone();
    assert_eq!((answer.held, answer.in_force), (Some(mark(1)), None));
    assert!(answer.problem.is_some());
    fake.does("well");
    let answer = engine.until(|answer| answer.in_force == answer.held);
    assert_eq!(answer.problem, None);
    assert!(set(&space).contains("10.7.0.2"));
    engine.end();
}

#[test]
fn what_nft_does_not_do_is_told_and_tried_again() {
    if !is_possible("what_nft_does_not_do_is_told_and_tried_again") {
        return;
    }
    for mode in ["fail", "hang", "die", "after"] {
        let (space, dir) = (
            Space::hypervisor(),
            tempfile::tempdir().expect("a directory"),
        );
        let fake = Fake::new(dir.path());
        let mut engine = Engine::with(&space, fake.setting(dir.path())).expect("starts");
        engine.hold(&web(&["10.7.0.2/32"]));
        fake.does(mode);
        let answer = engine.hold(&other("10.7.0.3/32"));
        assert_eq!(
            (answer.held, answer.in_force),
            (Some(mark(2)), Some(mark(1))),
            "{mode}"
        );
        let problem = answer.problem.unwrap_or_default();
        let problem = problem.replace(&dir.path().display().to_string(), "DIR");
        match mode {
            "fail" => {
                insta::assert_snapshot!(problem, @"DIR/nft refused (exit status: 1), nothing was changed: Error: it does not like it")
            }
            "hang" => {
                insta::assert_snapshot!(problem, @"DIR/nft did not end within 2 s and was killed; what it should have changed is as it was; see whether something else changes the rules all the time (`nft monitor`)")
            }
            _ => assert!(problem.contains("signal: 9"), "{problem}"),
        }
        assert_eq!(set(&space).contains("10.7.0.3"), mode == "after");
        // Killed in this state, another one does it at its start.
        engine.end();
        fake.does("well");
        let engine = Engine::with(&space, fake.setting(dir.path())).expect("starts");
        let answer = engine.groups.answers().borrow().clone();
        assert_eq!(
            (answer.held, answer.in_force),
            (Some(mark(2)), Some(mark(2))),
            "{mode}"
        );
        assert_eq!(answer.problem, None);
        assert!(set(&space).contains("10.7.0.3"));
        engine.end();
    }
}

#[test]
fn it_is_tried_again_until_it_is_done() {
    if !is_possible("it_is_tried_again_until_it_is_done") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let fake = Fake::new(dir.path());
    let mut engine = Engine::with(&space, fake.setting(dir.path())).expect("starts");
    engine.hold(&web(&["10.7.0.2/32"]));
    fake.does("fail");
    engine.hold(&other("10.7.0.3/32"));
    // Elements go without nft; what is not known is not built upon.
    let answer = engine.hold(&other("10.7.0.4/32"));
    assert_eq!(
        (answer.held, answer.in_force),
        (Some(mark(3)), Some(mark(1)))
    );
    fake.does("well");
    let answer = engine.until(|answer| answer.in_force == answer.held);
    assert_eq!(answer.problem, None);
    assert!(set(&space).contains("10.7.0.4"));
    engine.end();
}

#[test]
fn a_log_that_is_cut_anywhere_is_a_state_that_was() {
    if !is_possible("a_log_that_is_cut_anywhere_is_a_state_that_was") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let mut engine = Engine::start(&space, dir.path());
    engine.hold(&web(&["10.7.0.2/32"]));
    engine.hold(&other("10.7.0.3/32"));
    engine.hold(&other("10.7.0.4/32"));
    engine.end();
    let path = dir.path().join("groups.log");
    let bytes = fs::read(&path).expect("a log");
    let ends: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b'\n').collect();
    assert_eq!(ends.len(), 4);
    let near = |at: usize| ends.iter().any(|end| at.abs_diff(*end) <= 2);
    for length in (0..=bytes.len()).filter(|at| near(*at) || at % 97 == 0) {
        fs::write(&path, &bytes[..length]).expect("write");
        let engine = Engine::start(&space, dir.path());
        let whole = ends.iter().filter(|end| **end < length).count() as u64;
        let answer = engine.groups.answers().borrow().clone();
        let held = whole.checked_sub(1).filter(|n| *n > 0).map(mark);
        assert_eq!(
            (answer.held, answer.in_force),
            (held, held),
            "{length} bytes"
        );
        assert_eq!(answer.problem, None);
        // With nothing held, what was in force is left as it is.
        let addresses = set(&space);
        if let Some(held) = held {
            assert!(
                addresses.contains(&format!("10.7.0.{}", held.sequence + 1)),
                "{addresses}"
            );
        }
        engine.end();
    }
    // Damaged in the middle, nothing is held, and nothing is touched.
    let mut other = bytes.clone();
    other[ends[1] + 20] ^= 1;
    fs::write(&path, &bytes).expect("write");
    Engine::start(&space, dir.path()).end();
    let before = generation(&space);
    fs::write(&path, &other).expect("write");
    let mut engine = Engine::start(&space, dir.path());
    let answer = engine.groups.answers().borrow().clone();
    assert_eq!((answer.held, answer.in_force), (None, None));
    assert_eq!(generation(&space), before);
    assert!(set(&space).contains("10.7.0.4"));
    assert!(dir.path().join("groups.log.damaged").exists());
    // Whoever asks gets all of it anew.
    let answer = engine.hold(&web(&["10.7.0.9/32"]));
    assert_eq!(answer.in_force, Some(mark(1)));
    assert!(set(&space).contains("10.7.0.9"));
    engine.end();
}

#[test]
fn the_boot_has_a_bare_table_or_what_was_held() {
    if !is_possible("the_boot_has_a_bare_table_or_what_was_held") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let mut engine = Engine::start(&space, dir.path());
    engine.hold(&web(&["10.7.0.2/32"]));
    // Not ended: it goes down with the machine. Its files are what they were.
    let copy = tempfile::tempdir().expect("a directory");
    fs::copy(
        dir.path().join("groups.log"),
        copy.path().join("groups.log"),
    )
    .expect("copies");
    let rules = space.nft(&["list", "ruleset"]);
    let next = Space::hypervisor();
    next.here(|| boot(copy.path(), "nft")).expect("boots");
    assert_eq!(next.nft(&["list", "ruleset"]), rules);
    // The agent that starts then finds all of it right.
    let before = generation(&next);
    let after = Engine::start(&next, copy.path());
    assert_eq!(after.groups.answers().borrow().in_force, Some(mark(1)));
    assert_eq!(generation(&next), before);
    after.end();
    // Once more changes nothing.
    next.here(|| boot(copy.path(), "nft")).expect("boots");
    assert_eq!(generation(&next), before);
    engine.end();

    // One whose log is damaged has tables, too.
    let log = copy.path().join("groups.log");
    let mut bytes = fs::read(&log).expect("a log");
    bytes[30] ^= 1;
    fs::write(&log, [bytes.as_slice(), b"more\n"].concat()).expect("write");
    let damaged = Space::hypervisor();
    damaged.here(|| boot(copy.path(), "nft")).expect("boots");
    assert!(set_is_missing(&damaged));

    // A new hypervisor, or one whose log is lost.
    let (bare, empty) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    bare.here(|| boot(empty.path(), "nft")).expect("boots");
    let one = bare.guest("mt1", &crate::world::mac(1), "10.7.0.1");
    let two = bare.guest("mt2", &crate::world::mac(2), "10.7.0.2");
    let ping = two.exec(&["ping", "-c", "2", "-i", "0.2", "-W", "1", "10.7.0.1"]);
    assert!(!ping.status.success(), "{ping:?}");
    let none = bare
        .here(|| boot(empty.path(), "/nonexistent/nft"))
        .map(drop);
    insta::assert_snapshot!(none.expect_err("no nft"), @"there is no program /nonexistent/nft to set rules with; install nftables: it is looked for along PATH, and in /usr/sbin and /sbin");
    drop(one);
}

#[test]
fn the_boot_closes_the_machines_whatever_the_host_firewall_does() {
    if !is_possible("the_boot_closes_the_machines_whatever_the_host_firewall_does") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (held, of_host) = (dir.path().join("groups"), dir.path().join("host"));
    let first = Space::hypervisor();
    let mut engine = Engine::start(&first, &held);
    engine.hold(&web(&["10.7.0.2/32"]));
    let rules = first.nft(&["list", "ruleset"]);
    let host = Host::new(of_host.clone(), Nft::new("nft"), dir.path().join("agent"));
    // An agent that runs is left alone.
    let booted = first.here(|| boot_all(&host, &held));
    assert!(matches!(booted.groups, Ok(Guests::Busy)), "{booted:?}");
    assert_eq!(booted.failed(), None);
    assert_eq!(first.nft(&["list", "ruleset"]), rules);
    engine.end();
    // The host firewall's directory cannot be read.
    fs::create_dir(&of_host).expect("made");
    fs::write(of_host.join("lock"), "").expect("written");
    fs::write(of_host.join("confirmed.json"), "no").expect("written");
    let next = Space::hypervisor();
    let booted = next.here(|| boot_all(&host, &held));
    assert!(matches!(booted.groups, Ok(Guests::Closed)), "{booted:?}");
    let failed = booted.failed().expect("a damaged file");
    assert!(failed.contains("confirmed.json is damaged"), "{failed}");
    assert_eq!(next.nft(&["list", "ruleset"]), rules);
    // Where no groups were ever held, the host firewall's word is the last.
    let none = Space::hypervisor();
    fs::remove_file(of_host.join("confirmed.json")).expect("removed");
    let booted = none.here(|| boot_all(&host, &dir.path().join("none")));
    assert!(matches!(booted.groups, Ok(Guests::None)), "{booted:?}");
    assert_eq!(booted.failed(), None);
    assert_eq!(none.nft(&["list", "ruleset"]), "");
}
