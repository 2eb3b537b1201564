//! Security groups on a hypervisor: how long the engine takes to put them in
//! force, and what they cost the packets. In network namespaces of its own,
//! which needs root and nft.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use muster_nft::groups::{Groups, Setting};
use muster_protocol::firewall::{Change, GroupsMark, GroupsUpdate, Holding};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::BenchError;
use super::figures::{Row, Spread, Target, Unit};

/// Interfaces of a hypervisor, and of the one that it is compared with.
const INTERFACES: usize = 1_000;
const FEW: usize = 10;
/// Groups of each interface, and rules of each group.
const EACH: usize = 3;
const RULES: usize = 20;
/// The most that putting all of it in force may take, in milliseconds, and
/// finding that nothing changed.
const ALL: f64 = 1_000.0;
const NOTHING: f64 = 50.0;
/// Members of a large group, how many interfaces refer to it, and the most
/// that one more may take.
const MEMBERS: usize = 10_000;
const REFER: usize = 100;
const MEMBER: f64 = 20.0;
/// The share of packets that must pass in the same time.
const SHARE: f64 = 0.95;
/// How often each is measured, and quickly.
const TIMES: [usize; 2] = [9, 3];
/// For how long packets are sent each time.
const SEND: Duration = Duration::from_millis(700);

fn wrong(why: impl std::fmt::Display) -> BenchError {
    BenchError::Part {
        name: "firewall",
        why: why.to_string(),
    }
}

/// The part of the table.
///
/// # Errors
/// [`BenchError`].
pub(super) fn rows(
    dir: &Path,
    quick: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<Row>, BenchError> {
    let what = "groups: all rules of 1,000 interfaces, 3 groups each, 20 rules a group";
    if let Err(why) = Space::new("try", 0).and_then(|space| space.here(able)) {
        notes.push(format!("groups: skipped: {why}"));
        let target = Target::AtMost(ALL);
        return Ok(vec![Row::skipped(what, Unit::Ms, target)]);
    }
    let own = tempfile::tempdir_in(dir).map_err(BenchError::Directory)?;
    let (dir, times) = (own.path(), TIMES[usize::from(quick)]);
    let mut rows = Vec::new();
    let all = holding(INTERFACES, INTERFACES * EACH / 10, &[])?;
    let (mut whole, mut same, mut rule) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..times {
        let mut engine = Engine::start(dir, "all", number)?;
        whole.push(engine.hold(&all)?);
        same.push(engine.hold(&all)?);
        let mut other = all.clone();
        if let Some(rules) = other.groups.values_mut().next() {
            rules[0].traffic = "tcp 1".parse().map_err(wrong)?;
        }
        rule.push(engine.hold(&other)?);
    }
    rows.push(Row::at_most(what, Unit::Ms, spread(&whole)?, ALL));
    let what = "groups: the same once more, nothing changed";
    rows.push(Row::at_most(what, Unit::Ms, spread(&same)?, NOTHING));
    let what = "groups: one rule of one of them";
    rows.push(Row::told(what, Unit::Ms, spread(&rule)?));
    for members in [MEMBERS, MEMBERS / 100] {
        let taken = one_member(dir, members, times)?;
        let what = format!("groups: one more member of {members}, {REFER} interfaces refer to it");
        rows.push(match members {
            MEMBERS => Row::at_most(what, Unit::Ms, spread(&taken)?, MEMBER),
            _ => Row::told(what, Unit::Ms, spread(&taken)?),
        });
    }
    let (many, few) = packets(dir, times)?;
    let least = few.median * SHARE;
    let what = format!("groups: packets with {FEW} interfaces");
    rows.push(Row::told(what, Unit::PerSecond, few));
    let what = format!("groups: packets with {INTERFACES} interfaces");
    rows.push(Row::at_least(what, Unit::PerSecond, many, least));
    Ok(rows)
}

fn spread(values: &[f64]) -> Result<Spread, BenchError> {
    Spread::of(values).ok_or_else(|| wrong("nothing was measured"))
}

fn one_member(dir: &Path, count: usize, times: usize) -> Result<Vec<f64>, BenchError> {
    let address = |n: usize| format!("10.{}.{}.{}/32", 100 + n / 65_536, n / 256 % 256, n % 256);
    let mut members: Vec<String> = (0..count).map(address).collect();
    let mut held = holding(REFER, EACH, &members)?;
    let mut engine = Engine::start(dir, "member", count)?;
    engine.hold(&held)?;
    let mut taken = Vec::new();
    for number in 0..times.max(5) {
        members.push(address(count + number));
        let next = holding(REFER, EACH, &members)?;
        taken.push(engine.change(held.change_to(&next))?);
        held = next;
    }
    Ok(taken)
}

/// What a hypervisor holds: so many interfaces, each in three of so many
/// groups, the first rule of each of which names the members.
fn holding(interfaces: usize, groups: usize, members: &[String]) -> Result<Holding, BenchError> {
    let groups = groups.max(EACH);
    let group = |n: usize| format!("group-{}", n % groups);
    let mut all = Map::new();
    for n in 0..interfaces {
        let (high, low) = (n / 250, n % 250 + 1);
        let interface = json!({
            "machine": format!("0c7e1a52-93b4-8d3f-a1c2-5d6e{n:08x}"),
            "name": format!("vm-{n}"), "bridge": "br0",
            "mac": format!("52:54:00:00:{high:02x}:{low:02x}"),
            "addresses": [format!("10.7.{high}.{low}"), format!("fd07::{high:x}:{low:x}")],
            "groups": (0..EACH).map(|k| group(n * EACH + k)).collect::<std::collections::BTreeSet<_>>(),
        });
        all.insert(format!("mt{n}"), interface);
    }
    let rule = |id: usize| match id {
        1 => json!({"id": id, "direction": "ingress", "traffic": "tcp 80,443", "peer": "group:lb"}),
        2 => json!({"id": id, "direction": "ingress", "traffic": "udp 9", "peer": "any"}),
        _ => {
            let (traffic, peer) = (format!("tcp {}", 1_000 + id), format!("192.0.{id}.0/24"));
            json!({"id": id, "direction": "ingress", "traffic": traffic, "peer": peer})
        }
    };
    let rules: Vec<Value> = (1..=RULES).map(rule).collect();
    let groups: Map<String, Value> = (0..groups).map(|n| (group(n), json!(rules))).collect();
    let all = json!({"interfaces": all, "groups": groups, "members": {"group:lb": members}});
    serde_json::from_value(all).map_err(wrong)
}

/// How many packets a second pass from one machine to another one.
fn packets(dir: &Path, times: usize) -> Result<(Spread, Spread), BenchError> {
    let mut worlds = Vec::new();
    for interfaces in [INTERFACES, FEW] {
        let mut engine = Engine::start(dir, "packets", interfaces)?;
        let guests = engine.space.guests(interfaces).map_err(wrong)?;
        engine.hold(&holding(interfaces, interfaces * EACH / 10, &[])?)?;
        worlds.push((engine, guests, Vec::new()));
    }
    // One after the other, so that what else the machine does is shared.
    for number in 0..=times {
        for (_, guests, rates) in &mut worlds {
            let rate = guests.rate().map_err(wrong)?;
            // The first one fills caches.
            if number > 0 {
                rates.push(rate);
            }
        }
    }
    Ok((spread(&worlds[0].2)?, spread(&worlds[1].2)?))
}

/// The engine of a hypervisor.
struct Engine {
    groups: Groups,
    runtime: Runtime,
    _stop: DropGuard,
    held: Holding,
    mark: Option<GroupsMark>,
    space: Space,
}

impl Engine {
    fn start(dir: &Path, what: &str, number: usize) -> Result<Self, BenchError> {
        let space = Space::new(what, number).map_err(wrong)?;
        let state = dir.join(format!("groups-{what}-{number}"));
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().map_err(wrong)?;
        let stop = CancellationToken::new();
        let begin = Groups::start(Setting::new(state), stop.clone());
        let groups = space.here(|| runtime.block_on(begin).map_err(io::Error::other));
        Ok(Self {
            groups: groups.map_err(wrong)?,
            runtime,
            _stop: stop.drop_guard(),
            held: Holding::default(),
            mark: None,
            space,
        })
    }

    /// Makes it hold that; how long it took, in milliseconds.
    fn hold(&mut self, holding: &Holding) -> Result<f64, BenchError> {
        let taken = self.change(self.held.change_to(holding))?;
        self.held = holding.clone();
        Ok(taken)
    }

    fn change(&mut self, change: Change) -> Result<f64, BenchError> {
        let sequence = self.mark.map_or(0, |mark| mark.sequence) + 1;
        let mark = GroupsMark { epoch: 1, sequence };
        let update = GroupsUpdate {
            base: self.mark,
            mark,
            more: false,
            change,
        };
        let begun = Instant::now();
        let answer = self.runtime.block_on(self.groups.update(update));
        let taken = begun.elapsed();
        let answer = answer.map_err(wrong)?;
        if answer.in_force != Some(mark) {
            return Err(wrong(answer.problem.unwrap_or_default()));
        }
        self.mark = Some(mark);
        // What follows an answer is no part of the next one.
        self.runtime
            .block_on(self.groups.holding())
            .map_err(wrong)?;
        Ok(taken.as_secs_f64() * 1e3)
    }
}

/// Whether there is nft, and a kernel that takes it.
fn able() -> io::Result<()> {
    let out = Command::new("nft").args(["list", "tables"]).output()?;
    match out.status.success() {
        true => Ok(()),
        false => Err(io::Error::other("nft lists no tables")),
    }
}

/// A network namespace, which goes with this value.
struct Space(String);

/// Two machines on a hypervisor, and the socket of the one that sends.
struct Guests {
    _from: Space,
    to: Space,
    socket: UdpSocket,
}

impl Space {
    fn new(what: &str, number: usize) -> io::Result<Self> {
        let name = format!("muster-bench-{}-{what}-{number}", std::process::id());
        ip(&["netns", "add", &name])?;
        Ok(Self(name))
    }

    fn ip(&self, arguments: &[&str]) -> io::Result<()> {
        ip(&[&["-n", &self.0], arguments].concat())
    }

    fn here<T: Send>(&self, what: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let space = fs::File::open(format!("/var/run/netns/{}", self.0))?;
        thread::scope(|scope| {
            let run = || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(space.as_fd(), kind)?;
                what()
            };
            let done = scope.spawn(run).join();
            done.unwrap_or_else(|_| Err(io::Error::other("it ended by itself")))
        })
    }

    /// The first machine and the one in the middle, on a bridge here.
    fn guests(&self, count: usize) -> io::Result<Guests> {
        self.ip(&["link", "add", "br0", "type", "bridge"])?;
        self.ip(&["link", "set", "br0", "up"])?;
        let guest = |n: usize| -> io::Result<(Self, String)> {
            let guest = Self::new("vm", count * 1_000 + n)?;
            let (high, low) = (n / 250, n % 250 + 1);
            let mac = format!("52:54:00:00:{high:02x}:{low:02x}");
            let (address, tap) = (format!("10.7.{high}.{low}"), format!("mt{n}"));
            let peer = ["type", "veth", "peer", "name", &tap, "netns", &self.0];
            guest.ip(&[&["link", "add", "eth0", "address", &mac][..], &peer].concat())?;
            self.ip(&["link", "set", &tap, "master", "br0", "up"])?;
            guest.ip(&["addr", "add", &format!("{address}/16"), "dev", "eth0"])?;
            guest.ip(&["link", "set", "eth0", "up"])?;
            Ok((guest, address))
        };
        let (from, _) = guest(0)?;
        let (to, address) = guest(count / 2)?;
        let target: SocketAddr = format!("{address}:9").parse().map_err(io::Error::other)?;
        let socket = from.here(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(target)?;
            Ok(socket)
        })?;
        Ok(Guests {
            _from: from,
            to,
            socket,
        })
    }
}

impl Guests {
    /// Packets that come to the second one in a second.
    fn rate(&self) -> io::Result<f64> {
        let (begun, before) = (Instant::now(), self.seen()?);
        while begun.elapsed() < SEND {
            for _ in 0..100 {
                // Nobody listens: that is said, and the packet was sent.
                let _ = self.socket.send(b"0123456789abcdef");
            }
        }
        let (seen, taken) = (self.seen()? - before, begun.elapsed());
        match seen >= 1_000.0 {
            true => Ok(seen / taken.as_secs_f64()),
            false => Err(io::Error::other(format!("only {seen} packets passed"))),
        }
    }

    fn seen(&self) -> io::Result<f64> {
        let text = self
            .to
            .here(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("eth0:"));
        let packets = line.and_then(|line| line.split_whitespace().nth(1));
        let packets = packets.and_then(|packets| packets.parse().ok());
        packets.ok_or_else(|| io::Error::other("the interface of a machine does not count"))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.0]);
    }
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let out = Command::new("ip").args(arguments).output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    match out.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "ip {}: {}",
            arguments.join(" "),
            said.trim()
        ))),
    }
}
