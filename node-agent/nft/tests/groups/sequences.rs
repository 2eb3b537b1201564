//! Many changes after each other, large ones, and changes while machines
//! come and go.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use muster_nft::groups::boot;
use muster_protocol::firewall::{Holding, MembersOf};

use crate::space::{Space, is_possible};
use crate::world::{Engine, Rule, generation, holding, mac, mark, web};

/// Numbers that look random; the same ones for the same seed.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let given = std::env::var("MUSTER_TESTS_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |since| since.as_nanos());
        let seed = given.unwrap_or(now as u64 | 1);
        eprintln!("MUSTER_TESTS_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    /// Each of them, or not.
    fn some<'a, T>(&mut self, all: &'a [T]) -> Vec<&'a T> {
        let half = |_: &&T| self.below(2) == 0;
        all.iter().filter(half).collect()
    }
}

const GROUPS: [&str; 4] = ["web", "db", "web-2", "a"];
const RULES: [(&str, &str, &str); 9] = [
    ("ingress", "tcp 80,443", "any"),
    ("ingress", "tcp 1-1024", "10.0.0.0/8"),
    ("ingress", "udp 53", "group:web"),
    ("ingress", "icmp", "set:office"),
    ("ingress", "icmpv6 128", "any"),
    ("egress", "any", "group:db"),
    ("egress", "udp", "2001:db8::/32"),
    ("ingress", "proto 47", "set:office"),
    ("egress", "icmp 8/0", "0.0.0.0/0"),
];
const MEMBERS: [&str; 8] = [
    "10.7.0.1/32",
    "10.7.0.2/32",
    "10.8.0.0/16",
    "192.0.2.0/25",
    "192.0.2.200/32",
    "2001:db8::1/128",
    "2001:db8::2/128",
    "2001:db8:1::/48",
];

fn any(chance: &mut Chance) -> Holding {
    let machines: Vec<(u8, Vec<&str>)> = (1..=6)
        .filter_map(|n| {
            let groups = chance.some(&GROUPS).into_iter().copied().collect();
            (chance.below(3) > 0).then_some((n, groups))
        })
        .collect();
    let groups: Vec<(&str, Vec<Rule<'_>>)> = GROUPS
        .iter()
        .map(|group| {
            let rules = chance.some(&RULES);
            // A rule's number stays when others go.
            let rules = rules.into_iter().map(|rule| {
                let id = RULES.iter().position(|other| other == rule).unwrap_or(0) as u32;
                (id + 1, rule.0, rule.1, rule.2)
            });
            (*group, rules.collect())
        })
        .collect();
    let members: Vec<(&str, Vec<&str>)> = ["group:web", "group:db", "set:office"]
        .iter()
        .map(|of| (*of, chance.some(&MEMBERS).into_iter().copied().collect()))
        .collect();
    let machines: Vec<(u8, &[&str])> = machines.iter().map(|(n, of)| (*n, of.as_slice())).collect();
    let groups: Vec<_> = groups
        .iter()
        .map(|(name, rules)| (*name, rules.as_slice()))
        .collect();
    let members: Vec<_> = members
        .iter()
        .map(|(of, all)| (*of, all.as_slice()))
        .collect();
    let mut holding = holding(&machines, &groups, &members);
    // What no rule names need not be there.
    if chance.below(2) == 0 {
        let rules = holding.groups.values().flatten();
        let named: BTreeSet<_> = rules.filter_map(|rule| MembersOf::of(&rule.peer)).collect();
        holding.members.retain(|of, _| named.contains(of));
    }
    holding
}

/// All rules; those of a chain of a group are in any order.
fn rules(space: &Space) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut object = String::new();
    let text = space.nft(&["-s", "list", "ruleset"]);
    let mut elements = Vec::new();
    for line in text.lines() {
        if line.starts_with("table") || (line.starts_with('\t') && line.ends_with('{')) {
            object = line.trim().to_owned();
        }
        // Elements go over several lines.
        if line.contains("elements = {") || !elements.is_empty() {
            let is_last = line.trim_end().ends_with('}');
            let line = line
                .trim()
                .trim_start_matches("elements = {")
                .trim_end_matches('}');
            elements.extend(line.split(',').map(|one| one.trim().to_owned()));
            if is_last {
                elements.retain(|one| !one.is_empty());
                elements.sort();
                lines.push(format!("{object}: {elements:?}"));
                elements.clear();
            }
            continue;
        }
        if !line.trim().is_empty() {
            lines.push(format!("{object}: {}", line.trim()));
        }
    }
    lines.sort();
    lines
}

#[test]
fn changes_lead_where_all_of_it_at_once_does() {
    if !is_possible("changes_lead_where_all_of_it_at_once_does") {
        return;
    }
    let mut chance = Chance::new();
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let mut engine = Engine::start(&space, dir.path());
    for step in 1..=40 {
        let holding = any(&mut chance);
        let answer = engine.hold(&holding);
        assert_eq!(answer.in_force, Some(mark(step)), "{answer:?}");
        assert_eq!((answer.problem, answer.repaired), (None, Vec::new()));
        if step % 4 != 0 {
            continue;
        }
        let (other, copy) = (
            Space::hypervisor(),
            tempfile::tempdir().expect("a directory"),
        );
        let log = "groups.log";
        fs::copy(dir.path().join(log), copy.path().join(log)).expect("copies");
        other.here(|| boot(copy.path(), "nft")).expect("boots");
        let (by_changes, at_once) = (rules(&space), rules(&other));
        let differ = |one: &[String], than: &[String]| -> Vec<String> {
            one.iter()
                .filter(|line| !than.contains(line))
                .cloned()
                .collect()
        };
        assert_eq!(
            differ(&by_changes, &at_once),
            differ(&at_once, &by_changes),
            "step {step}"
        );
        assert_eq!(by_changes, at_once, "step {step}");
    }
    engine.end();
}

#[test]
fn a_member_of_many_is_one_short_message() {
    if !is_possible("a_member_of_many_is_one_short_message") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let mut engine = Engine::start(&space, dir.path());
    let addresses: Vec<String> = (0..10_000_u32)
        .map(|n| format!("10.{}.{}.{}/32", 64 + n / 65_536, n / 256 % 256, n % 256))
        .collect();
    let all: Vec<&str> = addresses.iter().map(String::as_str).collect();
    engine.hold(&web(&all));
    let log = || fs::metadata(dir.path().join("groups.log")).map_or(0, |file| file.len());
    let more = [all.as_slice(), &["10.99.0.1/32", "10.99.0.2/32"]].concat();
    for members in [more.as_slice(), all.as_slice(), &more[..10_001]] {
        let (before, length, begun) = (generation(&space), log(), Instant::now());
        let answer = engine.hold(&web(members));
        eprintln!(
            "{} of 10,000: {:?}",
            members.len() - 10_000,
            begun.elapsed()
        );
        assert_eq!(answer.in_force, answer.held, "{answer:?}");
        assert_eq!(generation(&space), before.wrapping_add(1));
        // The log holds the change and not the group.
        assert!(log() < length + 400, "{} bytes", log() - length);
    }
    let is_there = |address: &str| {
        let element = format!("{{ {address} }}");
        let get = [
            "nft",
            "get",
            "element",
            "inet",
            "muster_groups",
            "g4-lb",
            &element,
        ];
        space.exec(&get).status.success()
    };
    assert!(is_there("10.99.0.1") && !is_there("10.99.0.2") && is_there("10.64.3.7"));
    // And it is known to be right.
    engine.end();
    let before = generation(&space);
    Engine::start(&space, dir.path()).end();
    assert_eq!(generation(&space), before);
}

#[test]
fn machines_come_and_go_while_groups_change_and_nothing_passes_that_should_not() {
    if !is_possible("machines_come_and_go_while_groups_change") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let one = space.guest("mt1", &mac(1), "10.7.0.1");
    let mut engine = Engine::start(&space, dir.path());
    // `mt2` may speak to `mt1`, the hypervisor knows no `mt3`.
    let with = |extra: bool| {
        let rules: &[_] = &[
            (1, "ingress", "icmp 8", "group:lb"),
            (2, "ingress", "tcp 80", "any"),
        ];
        let rules = if extra { rules } else { &rules[..1] };
        let lb: &[&str] = if extra {
            &["10.7.0.2/32", "10.7.0.50/32"]
        } else {
            &["10.7.0.2/32"]
        };
        holding(
            &[(1, &["web"]), (2, &[])],
            &[("web", rules)],
            &[("group:lb", lb)],
        )
    };
    engine.hold(&with(false));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let machines = scope.spawn(|| {
            for _ in 0..4 {
                let ping = |guest: &Space| {
                    let ping = ["ping", "-c", "2", "-i", "0.1", "-W", "1", "10.7.0.1"];
                    guest.exec(&ping).status.success()
                };
                let right = space.guest("mt2", &mac(2), "10.7.0.2");
                assert!(
                    right
                        .exec(&["ping", "-c", "1", "-W", "5", "10.7.0.1"])
                        .status
                        .success()
                );
                drop(right);
                gone(&space, "mt2");
                // The name of its tap, by somebody else; its address, by
                // another tap.
                let other = space.guest("mt2", &mac(66), "10.7.0.2");
                assert!(!ping(&other), "another machine speaks by that tap");
                drop(other);
                gone(&space, "mt2");
                let unknown = space.guest("mt3", &mac(2), "10.7.0.2");
                assert!(!ping(&unknown), "a tap passes something that nobody knows");
                drop(unknown);
                gone(&space, "mt3");
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut changes = 0;
        while !done.load(Ordering::Relaxed) && !machines.is_finished() {
            changes += 1;
            let answer = engine.hold(&with(changes % 2 == 1));
            assert_eq!(answer.in_force, answer.held, "{answer:?}");
            assert!(answer.repaired.is_empty(), "{answer:?}");
        }
        assert!(changes > 10, "{changes} changes");
    });
    engine.end();
    drop(one);
}

/// A namespace goes a moment after it was told to, and its interfaces with it.
fn gone(space: &Space, tap: &str) {
    let is_there = || space.exec(&["ip", "link", "show", tap]).status.success();
    crate::world::wait_for("the tap is gone", || !is_there());
}
