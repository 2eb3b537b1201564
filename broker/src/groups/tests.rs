//! What hypervisors hold, whatever is lost on the way.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use muster_protocol::firewall::{
    GroupRule, GroupsAnswer, GroupsMark, GroupsUpdate, Holding, Interface, MAX_UPDATE, Members,
    MembersOf,
};
use muster_protocol::ids::Serial;
use muster_protocol::names::{GroupName, SetName, VmName};
use muster_protocol::units::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::line::Line;
use super::model::{Model, Wanted, members};
use super::versions::{KEPT, NotKept, Past};
use crate::vm::records::StoredVm;

/// A machine on a hypervisor, with that many addresses.
fn vm(nth: u8, serial: u32, groups: &[GroupName], addresses: u8, life: &str) -> StoredVm {
    let name = format!("vm-{nth}");
    let id = format!("0c7e1a52-93b4-8d3f-a1c2-5d6e7f8091{nth:02x}");
    let all: Vec<String> = (0..addresses)
        .map(|at| format!("192.0.{nth}.{at}"))
        .collect();
    let life = match life {
        "ready" => json!({"life": "ready", "since": "2026-11-22T10:00:00Z"}),
        "destroying" => {
            let run = muster_protocol::ids::RunId::from_bytes([1; 16]);
            json!({"life": "destroying", "run": run, "end": {"how": "keep"}, "tries": 0})
        }
        _ => {
            json!({"life": "kept", "since": "2026-11-22T10:00:00Z", "until": "2026-11-23T10:00:00Z"})
        }
    };
    serde_json::from_value(json!({
        "name": name, "nth": 1, "id": id,
        "place": {"serial": serial, "node": format!("hv-{serial}"), "pool": "default"},
        "wish": {
            "cpus": 1, "memory": 1 << 30, "disk": 1 << 30,
            "image": {"name": "debian-12", "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "size": 1, "format": "raw", "virtual_size": 1},
            "networks": ["public"], "agent": false, "ready": "boot", "ready_within": "60s",
            "roles": [], "labels": {}, "ssh_keys": [], "autostart": true, "groups": groups,
        },
        "nics": [{
            "nic": {"network": "public", "bridge": "br0", "mac": format!("52:54:00:00:00:{nth:02x}"),
                "tap": format!("mt{nth}"), "addresses": all},
            "prefixes": [], "gateways": [], "dns": [],
        }],
        "should_run": true, "protected": false, "invites": [],
        "made": {"by": "ana", "at": "2026-11-22T10:00:00Z"},
        "order": {"by": "ana", "role": "operator", "door": "cli"},
        "runs": 0, "life": life,
    }))
    .expect("a record")
}

fn group(nth: u8) -> GroupName {
    format!("g{nth}").parse().expect("a name")
}

fn set(nth: u8) -> SetName {
    format!("s{nth}").parse().expect("a name")
}

fn rule(id: u32, peer: &str) -> GroupRule {
    let json = json!({"id": id, "direction": "ingress", "traffic": "tcp 80", "peer": peer});
    serde_json::from_value(json).expect("a rule")
}

/// Something that is changed.
#[derive(Clone, Debug)]
enum Op {
    Vm {
        nth: u8,
        serial: u32,
        groups: Vec<u8>,
        addresses: u8,
        life: &'static str,
    },
    NoVm(u8),
    Group(u8, Vec<(u8, bool)>),
    Set(u8, Vec<u8>),
}

fn op() -> impl Strategy<Value = Op> {
    let groups = proptest::collection::vec(0..4u8, 0..3);
    let life = prop_oneof![Just("ready"), Just("destroying"), Just("kept")];
    prop_oneof![
        4 => (0..6u8, 1..4u32, groups, 1..4u8, life).prop_map(
            |(nth, serial, mut groups, addresses, life)| {
                groups.sort_unstable();
                groups.dedup();
                Op::Vm { nth, serial, groups, addresses, life }
            }
        ),
        1 => (0..6u8).prop_map(Op::NoVm),
        3 => (0..4u8, proptest::collection::vec((0..4u8, any::<bool>()), 0..4))
            .prop_map(|(nth, rules)| Op::Group(nth, rules)),
        2 => (0..4u8, proptest::collection::vec(0..40u8, 0..6)).prop_map(|(nth, all)| Op::Set(nth, all)),
    ]
}

/// Everything that was asked for, as plainly as it can be.
#[derive(Default)]
struct Plain {
    vms: BTreeMap<VmName, StoredVm>,
    groups: BTreeMap<GroupName, Vec<GroupRule>>,
    sets: BTreeMap<SetName, Members>,
}

impl Plain {
    fn take(&mut self, op: &Op, model: &mut Model) {
        match op {
            Op::Vm {
                nth,
                serial,
                groups,
                addresses,
                life,
            } => {
                let groups: Vec<_> = groups.iter().copied().map(group).collect();
                let vm = vm(*nth, *serial, &groups, *addresses, life);
                model.machine(&vm.name.clone(), Some(&vm));
                self.vms.insert(vm.name.clone(), vm);
            }
            Op::NoVm(nth) => {
                let name: VmName = format!("vm-{nth}").parse().expect("a name");
                model.machine(&name, None);
                self.vms.remove(&name);
            }
            Op::Group(nth, rules) => {
                let rules: Vec<_> = (1..)
                    .zip(rules)
                    .map(|(id, (nth, is_set))| match is_set {
                        true => rule(id, &format!("set:s{nth}")),
                        false => rule(id, &format!("group:g{nth}")),
                    })
                    .collect();
                model.group(&group(*nth), Some(rules.clone()));
                self.groups.insert(group(*nth), rules);
            }
            Op::Set(nth, all) => {
                let prefix = |n: &u8| -> IpNet {
                    let (at, len) = (n % 8 * 32, 24 + n / 8 * 2);
                    let text = format!("198.51.100.{at}/{len}");
                    text.parse::<IpNet>().expect("a prefix").trunc()
                };
                let all: Members = all.iter().map(prefix).collect();
                model.set(&set(*nth), Some(&all));
                self.sets.insert(set(*nth), all);
            }
        }
    }

    fn there(&self) -> impl Iterator<Item = &StoredVm> {
        let is_there = |vm: &&StoredVm| !matches!(vm.life, crate::vm::records::Life::Kept { .. });
        self.vms.values().filter(is_there)
    }

    fn holding(&self, serial: Serial) -> Holding {
        let mut holding = Holding::default();
        for vm in self.there().filter(|vm| vm.place.serial == serial) {
            for nic in &vm.nics {
                let interface = Interface {
                    machine: vm.id,
                    name: vm.name.clone(),
                    bridge: nic.nic.bridge.clone(),
                    mac: nic.nic.mac,
                    addresses: nic.nic.addresses.clone(),
                    pairs: Vec::new(),
                    groups: vm.wish.groups.clone(),
                };
                holding.interfaces.insert(nic.nic.tap.clone(), interface);
            }
            for group in &vm.wish.groups {
                let rules = self.groups.get(group).cloned().unwrap_or_default();
                holding.groups.insert(group.clone(), rules);
            }
        }
        for rule in holding.groups.clone().values().flatten() {
            let Some(of) = MembersOf::of(&rule.peer) else {
                continue;
            };
            let all: Members = match &of {
                MembersOf::Group(group) => self
                    .there()
                    .filter(|vm| vm.wish.groups.contains(group))
                    .flat_map(|vm| vm.nics.iter().flat_map(|nic| &nic.nic.addresses))
                    .map(|address| IpNet::from(*address))
                    .collect(),
                MembersOf::Set(set) => {
                    let all = self.sets.get(set).cloned().unwrap_or_default();
                    let is_in = |one: &IpNet| all.iter().any(|o| o != one && o.contains(one));
                    all.iter().copied().filter(|one| !is_in(one)).collect()
                }
            };
            holding.members.insert(of, all);
        }
        holding
    }
}

/// A hypervisor, as simple as its contract.
#[derive(Default)]
struct Node {
    held: Option<(GroupsMark, Holding)>,
    staged: Option<(GroupsMark, Holding)>,
}

impl Node {
    fn take(&mut self, update: &GroupsUpdate) {
        let from = match update.base {
            None => Holding::default(),
            Some(base) => {
                let from = self.staged.as_ref().or(self.held.as_ref());
                match from.filter(|(mark, _)| *mark == base) {
                    Some((_, holding)) => holding.clone(),
                    None => return,
                }
            }
        };
        let mut next = from;
        next.apply(&update.change);
        if update.more {
            self.staged = Some((update.mark, next));
        } else {
            assert_eq!(next.check(), Ok(()), "what is told names what is not told");
            self.staged = None;
            self.held = Some((update.mark, next));
        }
    }

    fn answer(&self) -> GroupsAnswer {
        let held = self.held.as_ref().map(|(mark, _)| *mark);
        GroupsAnswer {
            held,
            in_force: held,
            ..GroupsAnswer::default()
        }
    }
}

/// What happens on the way.
#[derive(Clone, Copy, Debug)]
enum Way {
    Well,
    Lost,
    AnswerLost,
    Twice,
    /// It begins anew with what it has on disk, or without.
    Restart {
        forgets: bool,
    },
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        4 => Just(Way::Well),
        1 => Just(Way::Lost),
        1 => Just(Way::AnswerLost),
        1 => Just(Way::Twice),
        1 => any::<bool>().prop_map(|forgets| Way::Restart { forgets }),
    ]
}

/// One message, or none, for a hypervisor.
fn step(line: &mut Line, node: &mut Node, now: &mut Duration, way: Way) {
    if let Some(due) = line.due() {
        *now = (*now).max(due);
    }
    let updates = line.send(*now, 7);
    if let Way::Restart { forgets } = way {
        node.staged = None;
        if forgets {
            node.held = None;
        }
        line.greeted(*now);
        line.heard(&node.answer(), *now);
        return;
    }
    for update in updates {
        let bytes = serde_json::to_vec(&update).expect("JSON");
        assert!(bytes.len() <= MAX_UPDATE, "{} bytes", bytes.len());
        if matches!(way, Way::Lost) {
            continue;
        }
        node.take(&update);
        if matches!(way, Way::Twice) {
            node.take(&update);
            line.heard(&node.answer(), *now);
        }
        if !matches!(way, Way::AnswerLost) {
            line.heard(&node.answer(), *now);
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_lost_each_holds_what_it_should_in_the_end(
        ops in proptest::collection::vec((op(), proptest::collection::vec(way(), 3)), 1..30),
    ) {
        let (mut model, mut plain) = (Model::default(), Plain::default());
        let mut now = Duration::ZERO;
        let mut lines: BTreeMap<Serial, (Line, Node)> = BTreeMap::new();
        let mut generation = 0;
        for (op, ways) in &ops {
            plain.take(op, &mut model);
            let changed = model.look();
            generation += 1;
            for (serial, wanted) in changed {
                let (line, _) = lines.entry(serial).or_default();
                line.want(wanted, generation);
            }
            for serial in (1..4).map(Serial) {
                prop_assert_eq!(model.wanted(serial).holding(), plain.holding(serial));
            }
            for ((line, node), way) in lines.values_mut().zip(ways) {
                step(line, node, &mut now, *way);
            }
        }
        for (serial, (line, node)) in &mut lines {
            for _ in 0..10 {
                step(line, node, &mut now, Way::Well);
            }
            prop_assert_eq!(line.due(), None, "{} is quiet", serial);
            let held = node.held.as_ref().map(|(_, holding)| holding.clone());
            prop_assert_eq!(held, Some(plain.holding(*serial)));
            prop_assert!(line.is_in_force(line.generation()));
        }
    }

    #[test]
    fn no_address_of_members_is_in_another_one(all in proptest::collection::vec((any::<u32>(), 0..=32u8), 0..40)) {
        let all: Vec<IpNet> = all
            .into_iter()
            .map(|(bits, len)| IpNet::new(std::net::Ipv4Addr::from(bits & 0xff00_00ff).into(), len).expect("a prefix").trunc())
            .collect();
        let kept = members(all.iter().copied());
        for one in &kept {
            prop_assert!(!kept.iter().any(|other| other != one && other.contains(one)));
        }
        for one in &all {
            prop_assert!(kept.iter().any(|other| other.contains(one)));
        }
    }
}

#[test]
fn one_member_more_is_one_small_change_for_those_that_it_concerns() {
    let mut model = Model::default();
    let web = vec![rule(1, "group:g1")];
    model.group(&group(0), Some(web));
    model.group(&group(1), Some(Vec::new()));
    for (nth, serial) in [(0, 1), (1, 2)] {
        let vm = vm(nth, serial, &[group(0)], 1, "ready");
        model.machine(&vm.name.clone(), Some(&vm));
    }
    let other = vm(2, 3, &[], 1, "ready");
    model.machine(&other.name.clone(), Some(&other));
    let before: BTreeMap<Serial, Wanted> = model.look().into_iter().collect();
    assert_eq!(before.len(), 3);
    let new = vm(9, 4, &[group(1)], 1, "ready");
    model.machine(&new.name.clone(), Some(&new));
    let after = model.look();
    let serials: Vec<u32> = after.iter().map(|(serial, _)| serial.0).collect();
    assert_eq!(serials, [1, 2, 4]);
    for (serial, wanted) in after.iter().take(2) {
        let change = before[serial].change_to(wanted);
        assert_eq!(
            serde_json::to_value(&change).expect("JSON"),
            json!({"members": {"group:g1": {"add": ["192.0.9.0/32"]}}})
        );
    }
}

#[test]
fn groups_may_name_each_other_and_themselves() {
    let mut model = Model::default();
    model.group(
        &group(0),
        Some(vec![rule(1, "group:g1"), rule(2, "group:g0")]),
    );
    model.group(&group(1), Some(vec![rule(1, "group:g0")]));
    let vm = vm(1, 1, &[group(0)], 1, "ready");
    model.machine(&vm.name.clone(), Some(&vm));
    let holding = model.look().remove(0).1.holding();
    assert_eq!(holding.check(), Ok(()));
    // Nothing is nested: of the other one nobody is there.
    let of = |nth| &holding.members[&MembersOf::Group(group(nth))];
    assert_eq!((of(0).len(), of(1).len()), (1, 0));
    assert!(!holding.groups.contains_key(&group(1)));
}

#[test]
fn much_comes_in_parts_and_in_order() {
    let mut model = Model::default();
    model.group(&group(0), Some(vec![rule(1, "set:s0")]));
    let all: Members = (0..30_000u32)
        .map(|n| {
            IpNet::from(std::net::IpAddr::from(std::net::Ipv6Addr::from(
                u128::from(n) << 40 | 0xfe,
            )))
        })
        .collect();
    model.set(&set(0), Some(&all));
    let one = vm(1, 1, &[group(0)], 1, "ready");
    model.machine(&one.name.clone(), Some(&one));
    let mut line = Line::default();
    let wanted = model.look().remove(0).1;
    line.want(wanted, 1);
    let updates = line.send(Duration::ZERO, 3);
    assert!(updates.len() > 2, "{} parts", updates.len());
    let mut node = Node::default();
    let mut base = None;
    for (nth, update) in (1..).zip(&updates) {
        assert!(serde_json::to_vec(update).expect("JSON").len() <= MAX_UPDATE);
        assert_eq!((update.base, update.more), (base, nth < updates.len()));
        base = Some(update.mark);
        node.take(update);
    }
    line.heard(&node.answer(), Duration::ZERO);
    assert_eq!(line.due(), None);
    let held = node.held.map(|(_, holding)| holding);
    assert_eq!(held, Some(model.wanted(Serial(1)).holding()));
}

#[test]
fn who_does_not_answer_is_asked_ever_more_rarely() {
    let mut line = Line::default();
    line.want(Wanted::default(), 1);
    let mut times = Vec::new();
    let mut now = Duration::ZERO;
    for _ in 0..9 {
        assert!(!line.send(now, 1).is_empty());
        assert!(line.send(now, 1).is_empty());
        let due = line.due().expect("it has said nothing");
        times.push((due - now).as_secs());
        now = due;
    }
    assert_eq!(times, [1, 2, 4, 8, 16, 30, 30, 30, 30]);
}

#[test]
fn versions_follow_from_what_changed() {
    let by = || "ana".parse().expect("a name");
    let at = Timestamp::UNIX_EPOCH;
    let mut now = vec![1];
    let mut past = Past::new(by(), at, "made".into(), vec![1]);
    past.push(by(), at, "added 2".into(), (vec![2], vec![]));
    now.push(2);
    past.push(by(), at, "removed 1".into(), (vec![], vec![1]));
    now.retain(|one| *one != 1);
    assert_eq!(past.back(1, &now), Ok(vec![1]));
    assert_eq!(past.back(2, &now), Ok(vec![2, 1]));
    assert_eq!(past.back(3, &now), Ok(vec![2]));
    let no = |oldest, newest| {
        Err(NotKept {
            oldest: Some(oldest),
            newest,
        })
    };
    assert_eq!(past.back(0, &now), no(1, 3));
    assert_eq!(past.back(4, &now), no(1, 3));
    for n in 10..200 {
        past.push(by(), at, String::new(), (vec![n], vec![]));
        now.push(n);
    }
    assert_eq!(past.changes().len(), KEPT);
    assert_eq!(past.version, 193);
    assert_eq!(past.back(93, &now), no(94, 193));
    assert_eq!(
        past.back(94, &now).map(|then| then.last().copied()),
        Ok(Some(100))
    );
}

#[test]
fn large_versions_are_fewer() {
    let by = || "ana".parse().expect("a name");
    let at = Timestamp::UNIX_EPOCH;
    let large = || vec!["x".repeat(100 << 10)];
    let mut past = Past::new(by(), at, "made".into(), large());
    for _ in 0..5 {
        past.push(by(), at, "again".into(), (large(), Vec::new()));
    }
    assert_eq!((past.version, past.changes().len()), (6, 3));
}
