//! Random states of groups and random packets: what the kernel does with them,
//! and what the judge says.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use muster_firewall::groups::ids::Ids;
use muster_firewall::groups::judge::{Content, End, Judge, Packet, Payload, Verdict};
use muster_firewall::groups::{check, objects, touched, update, whole};
use muster_protocol::firewall::Holding;
use serde_json::json;

use crate::capability;
use crate::frames::frame;
use crate::world::{Got, HOST_MACS, PORTS, Port, World, mac, port};

/// Numbers that look random, the same ones for the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a number");
        usize::try_from(self.next() % end).expect("a number")
    }

    /// Once in so many times.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn of<T: Clone>(&mut self, these: &[T]) -> T {
        these[self.below(these.len())].clone()
    }
}

const TRAFFIC: &[&str] = &[
    "any",
    "tcp",
    "tcp 80",
    "tcp 80,443,8000-8010",
    "tcp 1-1024",
    "tcp 65535",
    "udp",
    "udp 53",
    "udp 5000-5010,5012",
    "icmp",
    "icmp 8",
    "icmp 8/0",
    "icmp 3/4",
    "icmpv6",
    "icmpv6 128",
    "icmpv6 128/1",
    "proto 47",
    "proto 99",
];
const PEERS: &[&str] = &[
    "any",
    "192.0.2.0/24",
    "192.0.2.12/32",
    "198.51.100.0/25",
    "2001:db8::/64",
    "2001:db8::11/128",
    "0.0.0.0/0",
    "::/0",
    "group:one",
    "group:two",
    "set:office",
    "set:empty",
];
const PORT_EDGES: &[u16] = &[
    1, 53, 79, 80, 81, 442, 443, 444, 1023, 1024, 1025, 4999, 5000, 5010, 5011, 5012, 5013, 7999,
    8000, 8005, 8010, 8011, 65535,
];

/// A state: every interface known, in some groups.
pub(crate) fn random_holding(dice: &mut Dice) -> Holding {
    let names = ["one", "two", "one-two", "three_3.x"];
    let mut groups = serde_json::Map::new();
    for name in names {
        let mut rules = Vec::new();
        let few = dice.below(5);
        for id in 1..=few {
            let mut traffic = dice.of(TRAFFIC);
            let peer = dice.of(PEERS);
            if traffic.starts_with("icmp") && peer.contains('/') {
                traffic = if peer.contains(':') { "icmpv6" } else { "icmp" };
            }
            let direction = if dice.once_in(4) { "egress" } else { "ingress" };
            rules.push(json!({
                "id": id * 3, "direction": direction, "traffic": traffic, "peer": peer,
            }));
        }
        groups.insert(name.to_owned(), rules.into());
    }
    let mut interfaces = serde_json::Map::new();
    for (at, port) in PORTS[..4].iter().enumerate() {
        let (v4, v6) = (["192.0.2", "203.0.113"], ["2001:db8:", "2001:db8:1:"]);
        let bridge = usize::from(port.bridge == "br1");
        let mut own = vec![
            format!("{}.{}", v4[bridge], 11 + at),
            format!("{}:{}", v6[bridge], 11 + at),
        ];
        if dice.once_in(6) {
            own.pop();
        }
        let mut pairs = Vec::new();
        if dice.once_in(4) {
            pairs.push(json!({"prefix": "198.51.100.64/26"}));
        }
        if dice.once_in(4) {
            pairs.push(json!({"prefix": "192.0.2.77/32", "mac": "52:54:00:00:09:77"}));
        }
        if dice.once_in(4) {
            pairs.push(json!({"prefix": "2001:db8:0:77::/64"}));
        }
        let mut of: Vec<&str> = names.into_iter().filter(|_| dice.once_in(2)).collect();
        of.sort_unstable();
        interfaces.insert(
            port.name.to_owned(),
            json!({
                "machine": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "name": "web",
                "bridge": port.bridge, "mac": crate::world::text(port.mac),
                "addresses": own, "pairs": pairs, "groups": of,
            }),
        );
    }
    let some = |dice: &mut Dice, these: &[&str]| -> Vec<String> {
        let these = these.iter().filter(|_| dice.once_in(2));
        these.map(|text| (*text).to_owned()).collect()
    };
    let one = [
        "192.0.2.11/32",
        "192.0.2.13/32",
        "2001:db8::12/128",
        "198.51.100.64/26",
    ];
    let two = [
        "203.0.113.14/32",
        "192.0.2.12/32",
        "192.0.2.50/32",
        "2001:db8::50/128",
    ];
    let office = [
        "198.51.100.0/24",
        "2001:db8:f::/48",
        "192.0.2.50/32",
        "2001:db8::11/128",
    ];
    let holding = json!({
        "interfaces": interfaces,
        "groups": groups,
        "members": {
            "group:one": some(dice, &one),
            "group:two": some(dice, &two),
            "set:office": some(dice, &office),
            "set:empty": [],
        },
    });
    serde_json::from_value(holding).expect("a holding")
}

/// A packet on its way, and who may get it.
struct Shot {
    from: &'static Port,
    number: u64,
    frame: Vec<u8>,
    packet: Packet,
    wanted: Vec<&'static str>,
}

/// One of its addresses, or of others; when `plain`, its own.
fn address(dice: &mut Dice, v4: bool, of: &Port, plain: bool) -> IpAddr {
    let last = of.mac[5];
    let short = u16::from(last) - 0x10 + 10;
    let which = if plain { 13 } else { dice.below(14) };
    let text = match (v4, of.name, which) {
        (true, _, 0) => "192.0.2.77".to_owned(),
        (true, _, 1) => "198.51.100.70".to_owned(),
        (true, _, 2) => "192.0.2.13".to_owned(),
        (false, _, 0) => "2001:db8:0:77::5".to_owned(),
        (false, _, 1) => "2001:db8::13".to_owned(),
        (false, name, 2) if name.starts_with("mt") => {
            format!("fe80::5054:ff:fe00:{last:x}")
        }
        (true, "up0", 3) => "198.51.100.127".to_owned(),
        (true, "up0", 4) => "198.51.100.128".to_owned(),
        (false, "up0", 3) => "2001:db8:f::1".to_owned(),
        (true, "up0", _) => "192.0.2.50".to_owned(),
        (false, "up0", _) => "2001:db8::50".to_owned(),
        (true, "vnet9", _) => "192.0.2.59".to_owned(),
        (false, "vnet9", _) => "2001:db8::59".to_owned(),
        (true, "mtddd", _) => "203.0.113.14".to_owned(),
        (false, "mtddd", _) => "2001:db8:1::14".to_owned(),
        (true, _, _) => format!("192.0.2.{short}"),
        (false, _, _) => format!("2001:db8::{short}"),
    };
    text.parse().expect("an address")
}

/// Whether what goes from one to the other could be an answer to what went
/// the other way: for what has no ports of its own.
fn forth(from: &Port, to: &Port) -> bool {
    from.mac[5] < to.mac[5]
}

fn has_no_own_ports(payload: &Payload) -> bool {
    match payload {
        Payload::Other(_) => true,
        Payload::Udp { source, .. } => *source < 20_000,
        _ => false,
    }
}

fn payload(dice: &mut Dice, v4: bool, number: u64, unique: bool) -> Payload {
    let source = 20_000 + u16::try_from(number % 40_000).expect("16 bits");
    let target = dice.of(PORT_EDGES);
    match dice.below(12) {
        0..=3 => Payload::Tcp {
            source,
            target,
            opens: !dice.once_in(5),
        },
        4..=6 => Payload::Udp { source, target },
        7 if unique => Payload::Other(dice.of(&[99, 200])),
        8 if unique => match v4 {
            true => Payload::Udp {
                source: dice.of(&[67, 68, source]),
                target: dice.of(&[67, 68]),
            },
            false => Payload::Udp {
                source: dice.of(&[546, 547, source]),
                target: dice.of(&[546, 547]),
            },
        },
        _ if v4 => match dice.below(4) {
            // Those that nobody answers are not known as flows.
            0 => Payload::Icmp {
                kind: dice.of(&[3, 5, 9, 11]),
                code: dice.of(&[0, 1, 4]),
            },
            _ => Payload::Icmp { kind: 8, code: 0 },
        },
        _ => match dice.below(3) {
            0 => Payload::Icmpv6 {
                kind: 128,
                code: dice.of(&[0, 0, 1]),
                about: None,
            },
            _ => Payload::Icmpv6 {
                kind: dice.of(&[130, 131, 132, 133, 134, 135, 136, 137, 143]),
                code: 0,
                about: Some(
                    dice.of(&[
                        "2001:db8::11",
                        "2001:db8::12",
                        "fe80::5054:ff:fe00:11",
                        "fe80::5054:ff:fe00:12",
                        "2001:db8:0:77::1234",
                    ])
                    .parse()
                    .expect("an address"),
                ),
            },
        },
    }
}

fn shot(dice: &mut Dice, world: &mut World, judge: &Judge<'_>) -> Shot {
    let number = world.number();
    let from = &PORTS[dice.of(&[0, 0, 1, 1, 2, 3, 4, 5, 5, 5, 6])];
    let to = loop {
        let to = &PORTS[dice.of(&[0, 1, 2, 3, 5, 6])];
        // The host does not know where that one is.
        let unknown = to.name == "vnet9" && from.bridge != to.bridge;
        if to.name != from.name && !unknown {
            break to;
        }
    };
    let v4 = dice.once_in(2);
    let source_mac = match dice.below(20) {
        0 if from.name != "up0" && from.name != "vnet9" => mac(9, 0x77),
        1 if from.name != "up0" && from.name != "vnet9" => mac(0, 0xaa),
        _ => from.mac,
    };
    // What is on another bridge goes by the host.
    let other_bridge = from.bridge != to.bridge;
    let host_mac = HOST_MACS[usize::from(from.bridge == "br1")];
    let nobody = mac(0, 0xee);
    let target_mac = match dice.below(12) {
        _ if other_bridge => host_mac,
        0 => [0xff; 6],
        1 => [0x33, 0x33, 0, 0, 0, 1],
        2 => nobody,
        3 => dice.of(&[mac(0, 0x11), mac(0, 0x12), mac(0, 0x50)]),
        _ => to.mac,
    };
    let many = target_mac[0] & 1 == 1;
    let content = match dice.below(16) {
        0 if !other_bridge => Content::Arp {
            operation: dice.of(&[1, 1, 2, 2, 3]),
            sender_mac: dice.of(&[None, None, Some(mac(0, 0x12)), Some(mac(9, 0x77))]),
            target: dice
                .of(&["192.0.2.11", "192.0.2.12", "192.0.2.77", "198.51.100.70"])
                .parse()
                .expect("an address"),
            sender: match dice.below(4) {
                0 => Ipv4Addr::UNSPECIFIED,
                1 => "192.0.2.77".parse().expect("an address"),
                _ => match address(dice, true, from, false) {
                    IpAddr::V4(a) => a,
                    IpAddr::V6(_) => Ipv4Addr::BROADCAST,
                },
            },
        },
        1 if !other_bridge => Content::Rarp {
            sender_mac: dice.of(&[from.mac, from.mac, from.mac, mac(9, 0x77)]),
            target_mac: dice.of(&[from.mac, from.mac, mac(0, 0x12)]),
        },
        2 if !other_bridge => Content::Other(dice.of(&[0x88cc, 0x8863, 0x9000, 0x22f0])),
        _ => {
            let forth = forth(from, to) && !many;
            let mut payload = payload(dice, v4, number, forth);
            // Without ports of its own, it could be the answer to another one.
            let plain = forth && has_no_own_ports(&payload);
            let target = match (many && dice.once_in(2), v4, dice.once_in(2)) {
                (true, true, true) => "224.0.0.251".parse().expect("an address"),
                (true, true, false) => "255.255.255.255".parse().expect("an address"),
                (true, false, _) => "ff02::fb".parse().expect("an address"),
                (false, ..) => loop {
                    let to = address(dice, v4, to, plain);
                    let known = ["192.0.2.11", "192.0.2.12", "192.0.2.13", "203.0.113.14"];
                    let known = known.iter().any(|k| k.parse() == Ok(to))
                        || [
                            "2001:db8::11",
                            "2001:db8::12",
                            "2001:db8::13",
                            "2001:db8:1::14",
                        ]
                        .iter()
                        .any(|k| k.parse() == Ok(to));
                    // The host knows where these are.
                    if !other_bridge || known || to_is_outside(to) {
                        break to;
                    }
                },
            };
            let mut source = address(dice, v4, from, plain);
            if !plain && dice.once_in(8) && !other_bridge && from.name.starts_with("mt") {
                source = match v4 {
                    true => Ipv4Addr::UNSPECIFIED.into(),
                    false => "::".parse().expect("an address"),
                };
            }
            if other_bridge {
                let link_local = matches!(source, IpAddr::V6(a) if a.segments()[0] == 0xfe80);
                let bound = matches!(payload, Payload::Icmpv6 { kind, .. } if kind != 128)
                    || matches!(payload, Payload::Icmp { kind, .. } if kind != 8);
                if link_local || bound {
                    source = "2001:db8::11".parse().expect("an address");
                    payload = Payload::Udp {
                        source: 20_000,
                        target: 53,
                    };
                }
                if source.is_ipv4() != target.is_ipv4() {
                    source = "192.0.2.11".parse().expect("an address");
                }
            }
            Content::Ip {
                source,
                target,
                hops: match payload {
                    _ if other_bridge => 64,
                    Payload::Icmpv6 {
                        kind: 130..=132 | 143,
                        ..
                    } => dice.of(&[1, 1, 64]),
                    Payload::Icmpv6 { .. } => dice.of(&[255, 255, 254]),
                    _ => 64,
                },
                payload,
            }
        }
    };
    let end = |port: &Port| match port.name.starts_with("mt") {
        true => End::Interface(port.name.parse().expect("a tap")),
        false => End::Outside,
    };
    let packet = Packet {
        from: end(from),
        to: End::Host,
        source_mac: Some(source_mac),
        target_mac: Some(target_mac),
        tagged: !other_bridge && dice.once_in(25),
        content,
    };
    let flags = dice.of(&[0x10, 0x12, 0x11, 0x04, 0x14, 0x03]);
    let frame = frame(&packet, source_mac, target_mac, number, flags);
    // Where the bridges would bring it.
    let known = PORTS
        .iter()
        .find(|p| p.mac == target_mac && p.name != "mtxxx");
    let mut wanted = Vec::new();
    for at in PORTS.iter().filter(|at| at.name != from.name) {
        let reaches = match (target_mac == host_mac, known) {
            (true, _) => false,
            (false, Some(known)) => known.name == at.name && at.bridge == from.bridge,
            (false, None) => at.bridge == from.bridge,
        };
        if reaches {
            let packet = Packet {
                to: end(at),
                ..packet.clone()
            };
            if judge.packet(&packet).verdict == Verdict::Pass {
                wanted.push(at.name);
            }
        }
    }
    if target_mac == host_mac {
        wanted.extend(routed(judge, &packet));
    }
    Shot {
        from,
        number,
        frame,
        packet,
        wanted,
    }
}

fn to_is_outside(to: IpAddr) -> bool {
    ["192.0.2.50", "2001:db8::50"]
        .iter()
        .any(|a| a.parse() == Ok(to))
}

/// Who gets what the host routes.
fn routed(judge: &Judge<'_>, packet: &Packet) -> Option<&'static str> {
    if judge.packet(packet).verdict == Verdict::Drop {
        return None;
    }
    let Content::Ip { target, .. } = &packet.content else {
        return None;
    };
    let of: [(&str, &str, &'static str); 5] = [
        ("192.0.2.11", "2001:db8::11", "mtaaa"),
        ("192.0.2.12", "2001:db8::12", "mtbbb"),
        ("192.0.2.13", "2001:db8::13", "mtccc"),
        ("203.0.113.14", "2001:db8:1::14", "mtddd"),
        ("192.0.2.50", "2001:db8::50", "up0"),
    ];
    let name = of
        .iter()
        .find(|(v4, v6, _)| v4.parse() == Ok(*target) || v6.parse() == Ok(*target));
    let name = name.map(|(.., name)| *name)?;
    let packet = Packet {
        from: End::Host,
        to: match name.starts_with("mt") {
            true => End::Interface(name.parse().expect("a tap")),
            false => End::Outside,
        },
        source_mac: None,
        target_mac: Some(port(name).mac),
        ..packet.clone()
    };
    (judge.packet(&packet).verdict == Verdict::Pass).then_some(name)
}

#[test]
fn the_kernel_does_what_the_judge_says() {
    if !capability::nft() {
        return;
    }
    let seed = match std::env::var("MUSTER_PACKETS_SEED") {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("a time").subsec_nanos().into()
        }
    };
    let (rounds, each) = (12, 250);
    eprintln!("{} packets of MUSTER_PACKETS_SEED={seed}", rounds * each);
    let mut dice = Dice::new(seed);
    let mut world = World::new();
    let mut ids = Ids::default();
    let mut before = Holding::default();
    let (mut passed, mut dropped) = (0, 0);
    for round in 0..rounds {
        let holding = random_holding(&mut dice);
        assert_eq!(check(&holding, None), Ok(()));
        ids.assign_all(holding.interfaces.keys()).expect("numbers");
        if round == 0 {
            world.apply(&whole(&objects(&holding, &ids), &BTreeMap::new()));
        } else {
            let change = before.change_to(&holding);
            let difference = touched(&before, &holding, &change, &ids);
            let listed = world.listed(difference.to_list());
            world.apply(&update(&difference, &listed));
        }
        let judge = Judge::new(&holding);
        let mut shots = Vec::new();
        for _ in 0..each {
            let shot = shot(&mut dice, &mut world, &judge);
            world.send(shot.from.name, &shot.frame);
            shots.push(shot);
        }
        let wanted: Got = shots
            .iter()
            .flat_map(|shot| shot.wanted.iter().map(|at| (shot.number, *at)))
            .collect();
        let got = world.settle(&wanted);
        let mut differ = Vec::new();
        for shot in &shots {
            let here: Vec<&str> = PORTS
                .iter()
                .map(|port| port.name)
                .filter(|port| got.contains(&(shot.number, *port)))
                .collect();
            if here != shot.wanted {
                differ.push(format!(
                    "from {}: {:?}\n    got by {here:?}, not by {:?}",
                    shot.from.name, shot.packet, shot.wanted
                ));
            }
            match here.is_empty() {
                true => dropped += 1,
                false => passed += 1,
            }
        }
        assert!(
            differ.is_empty(),
            "round {round} of seed {seed}:\n{}\nof {}",
            differ.join("\n"),
            serde_json::to_string(&holding).expect("JSON"),
        );
        before = holding;
    }
    // Both happen often, or it says nothing.
    assert!(passed > 300 && dropped > 300, "{passed} and {dropped}");
    eprintln!("{passed} passed to somebody, {dropped} to nobody");
}
