//! What rules mean, with connections and packets of both families.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use muster_firewall::host::render;
use muster_protocol::firewall::host::{HostRules, Resolved};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::world::{Space, World, capable, resolved};

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Came {
    /// Through.
    Through,
    /// To nobody.
    Nowhere,
    /// To somebody who said no.
    Refused,
}

use Came::{Nowhere, Refused, Through};

fn connect(from: &Space, to: &str) -> Came {
    from.inside(|| {
        let at: SocketAddr = to.parse().expect("an address");
        match TcpStream::connect_timeout(&at, Duration::from_millis(300)) {
            Ok(_) => Through,
            Err(e) if e.kind() == ErrorKind::TimedOut => Nowhere,
            Err(_) => Refused,
        }
    })
}

/// Two spaces with both families, and rules on one of them.
struct Net {
    world: World,
    _listeners: Vec<TcpListener>,
}

impl Net {
    fn new() -> Self {
        let world = World::new();
        for (space, address) in [(&world.node, "fd99::1/64"), (&world.other, "fd99::2/64")] {
            let line = [
                "-n",
                space.name(),
                "addr",
                "add",
                address,
                "dev",
                "eth0",
                "nodad",
            ];
            let done = Command::new("ip").args(line).status();
            assert!(done.is_ok_and(|status| status.success()));
        }
        let line = [
            "-n",
            world.other.name(),
            "addr",
            "add",
            "10.99.0.130/24",
            "dev",
            "eth0",
        ];
        let done = Command::new("ip").args(line).status();
        assert!(done.is_ok_and(|status| status.success()));
        let listen = |space: &Space, ports: &[u16]| -> Vec<TcpListener> {
            space.inside(|| {
                let one = |port| TcpListener::bind(("::", port)).expect("it is free");
                ports.iter().copied().map(one).collect()
            })
        };
        let mut listeners = listen(&world.node, &[79, 80, 90, 91, 443]);
        listeners.extend(listen(&world.other, &[25, 80]));
        Self {
            world,
            _listeners: listeners,
        }
    }

    /// Puts rules there, as text, without all that guards a change.
    fn put(&self, rules: Value) {
        let text = format!(
            "table inet muster_host\ndelete table inet muster_host\n{}",
            render(&resolved(rules))
        );
        let path = self.world.path("rules");
        std::fs::write(&path, text).expect("written");
        self.world.node.nft(&["-f", &path.display().to_string()]);
    }

    /// What becomes of connections to these ports of the node.
    fn ports<const N: usize>(&self, host: &str, ports: [u16; N]) -> [Came; N] {
        ports.map(|port| connect(&self.world.other, &format!("{host}:{port}")))
    }

    fn out(&self, to: &str) -> Came {
        connect(&self.world.node, to)
    }
}

const FOUR: &str = "10.99.0.1";
const SIX: &str = "[fd99::1]";

#[test]
fn rules_mean_what_they_say() {
    if !capable() {
        return;
    }
    let net = Net::new();
    // Edges of ranges, the next ports, both families.
    net.put(json!({"rules": [{"accept": "tcp 80-90,443"}]}));
    for host in [FOUR, SIX] {
        let seen = net.ports(host, [79, 80, 90, 91, 443]);
        assert_eq!(
            seen,
            [Nowhere, Through, Through, Nowhere, Through],
            "{host}"
        );
    }
    assert_eq!(net.out("10.99.0.2:25"), Through);

    // The first rule decides; a rejected one is told.
    net.put(json!({"rules": [
        {"reject": "tcp 80", "from": "10.99.0.0/25"},
        {"drop": "tcp 90", "from": ["fd99::2", "192.0.2.1"]},
        {"reject": "any", "from": "fd99::/64"},
        {"accept": "tcp"},
    ]}));
    assert_eq!(net.ports(FOUR, [79, 80, 90]), [Through, Refused, Through]);
    assert_eq!(net.ports(SIX, [79, 80, 90]), [Refused, Refused, Nowhere]);

    // Sets and roles are the addresses in them, in their own family only.
    net.put(json!({
        "sets": {"others": ["10.99.0.128/25"], "six": ["fd99::2"]},
        "rules": [
            {"accept": "tcp 79", "from": "set:others"},
            {"accept": "tcp 80", "from": "role:bastion"},
            {"accept": "tcp 90", "from": ["set:others", "set:six"]},
            {"accept": "tcp 91", "to": "fd99::/64"},
            {"accept": "tcp 443", "from": "0.0.0.0/0"},
        ],
    }));
    let seen = net.ports(FOUR, [79, 80, 90, 91, 443]);
    assert_eq!(seen, [Nowhere, Through, Nowhere, Nowhere, Through]);
    let seen = net.ports(SIX, [79, 80, 90, 91, 443]);
    assert_eq!(seen, [Nowhere, Nowhere, Through, Through, Nowhere]);

    // Out, and what answers.
    net.put(json!({
        "policy": {"output": "drop"},
        "rules": [
            {"accept": "tcp 80"},
            {"accept": "tcp 80", "direction": "output", "to": "10.99.0.2"},
            {"reject": "tcp 25", "direction": "output"},
        ],
    }));
    assert_eq!(net.ports(FOUR, [80, 90]), [Through, Nowhere]);
    assert_eq!(net.out("10.99.0.2:80"), Through);
    assert_eq!(net.out("[fd99::2]:80"), Nowhere);
    assert_eq!(net.out("10.99.0.2:25"), Refused);
    assert_eq!(net.out("127.0.0.1:80"), Through);

    // Without what is always there, nothing of it is.
    net.put(json!({"without": ["established", "loopback"], "rules": [{"accept": "tcp 80"}]}));
    assert_eq!(net.ports(FOUR, [80]), [Through]);
    assert_eq!(net.out("10.99.0.2:80"), Nowhere);
    assert_eq!(net.out("127.0.0.1:443"), Nowhere);
}

#[test]
fn a_rate_is_a_rules_whole_rate() {
    if !capable() {
        return;
    }
    let net = Net::new();
    // One bucket, though it is four lines.
    net.put(json!({
        "sets": {"a": ["10.99.0.2", "fd99::2"], "b": ["10.99.0.0/24", "fd99::/64"]},
        "rules": [{"accept": "udp 53", "from": ["set:a", "set:b"], "rate": "1/day burst 3"}],
    }));
    let socket = net
        .world
        .node
        .inside(|| UdpSocket::bind("[::]:53").expect("it is free"));
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("set");
    net.world.other.inside(|| {
        for (n, to) in [FOUR, SIX, FOUR, SIX, FOUR, SIX].iter().enumerate() {
            // Each from a port of its own: an answer would be let through.
            let from = UdpSocket::bind("[::]:0").expect("it is free");
            let to = match *to {
                FOUR => "[::ffff:10.99.0.1]:53".to_owned(),
                six => format!("{six}:53"),
            };
            from.send_to(&[n as u8], to).expect("sent");
        }
    });
    let mut buffer = [0; 8];
    let mut got = Vec::new();
    while let Ok((1, _)) = socket.recv_from(&mut buffer) {
        got.push(buffer[0]);
    }
    assert_eq!(got, [0, 1, 2]);
}

fn any_rule() -> impl Strategy<Value = Value> {
    let ports = || "([1-9][0-9]{0,3}|[1-5][0-9]{4})(,[1-9][0-9]{0,3}){0,3}";
    let traffic = prop_oneof![
        Just("any".to_owned()),
        ports().prop_map(|ports| format!("tcp {ports}")),
        ports().prop_map(|ports| format!("udp {ports}")),
        (1_u16..=65_535, 0_u16..500).prop_map(|(a, n)| format!("tcp {a}-{}", a.saturating_add(n))),
        Just("tcp".to_owned()),
        (0..=255_u8).prop_map(|kind| format!("icmp {kind}")),
        (0..=255_u8, 0..=255_u8).prop_map(|(kind, code)| format!("icmpv6 {kind}/{code}")),
        (0..=255_u8)
            .prop_filter("has a word", |n| ![1, 6, 17, 58].contains(n))
            .prop_map(|n| format!("proto {n}")),
    ];
    let peer = prop_oneof![
        (any::<u32>(), 0..=32_u8).prop_map(|(bits, len)| {
            let net = ipnet::Ipv4Net::new(bits.into(), len).expect("a length");
            net.trunc().to_string()
        }),
        (any::<u128>(), 0..=128_u8).prop_map(|(bits, len)| {
            let net = ipnet::Ipv6Net::new(bits.into(), len).expect("a length");
            net.trunc().to_string()
        }),
        Just("set:a.b-c_d".to_owned()),
        Just("set:0".to_owned()),
        Just("role:bastion".to_owned()),
    ];
    let side = || prop::collection::vec(peer.clone(), 0..4);
    let action = prop::sample::select(vec!["accept", "drop", "reject"]);
    let way = prop::sample::select(vec!["input", "output", "forward"]);
    let rate =
        prop::option::of("[1-9][0-9]{0,4}/(second|minute|hour|day)( burst [1-9][0-9]{0,3})?");
    let log = prop::option::of("[ !%-/:-@A-Z^-~]{1,60}");
    (action, traffic, way, side(), side(), rate, log).prop_map(
        |(action, traffic, way, from, to, rate, log)| {
            let mut rule = json!({action: traffic, "direction": way});
            for (name, side) in [("from", from), ("to", to)] {
                if !side.is_empty() {
                    rule[name] = side.into();
                }
            }
            for (name, text) in [("rate", rate), ("log", log)] {
                if let Some(text) = text {
                    rule[name] = text.into();
                }
            }
            rule
        },
    )
}

/// Those of the rules that are any.
fn good(rules: Vec<Value>) -> Resolved {
    let whole = |rules: &[Value]| {
        json!({
            "sets": {
                "a.b-c_d": ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"],
                "0": ["0.0.0.0/0", "::/0"],
            },
            "rules": rules,
        })
    };
    let roles = json!({"bastion": ["10.99.0.2/32", "2001:db8::2/128"]});
    let roles = serde_json::from_value(roles).expect("roles");
    let read = |rules: &[Value]| {
        let rules = HostRules::read(&whole(rules)).ok()?;
        rules.resolve(&roles).ok()
    };
    let rules: Vec<Value> = rules
        .into_iter()
        .filter(|rule| read(std::slice::from_ref(rule)).is_some())
        .collect();
    read(&rules).expect("each of them is one")
}

#[test]
fn whatever_is_a_rule_nft_takes_and_gives_back() {
    if !capable() {
        return;
    }
    let space = Space::new();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("rules");
    let at = path.display().to_string();
    let listed = |text: &str| {
        std::fs::write(&path, format!("flush ruleset\n{text}")).expect("written");
        space.nft(&["-f", &at]);
        space.nft(&["list", "table", "inet", "muster_host"])
    };
    let config = Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    };
    let rules = prop::collection::vec(any_rule(), 0..40);
    let done = TestRunner::new(config).run(&rules, |rules| {
        let rules = good(rules);
        let once = listed(&render(&rules));
        // The way back is what the kernel says of itself.
        prop_assert_eq!(listed(&once), once);
        Ok(())
    });
    done.expect("it takes all of them");
}
