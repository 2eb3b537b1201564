//! A world with a state of groups in force, and packets written shortly.

use std::collections::BTreeMap;
use std::net::IpAddr;

use muster_firewall::groups::ids::Ids;
use muster_firewall::groups::judge::{Content, End, Packet, Payload, RawMac};
use muster_firewall::groups::{check, objects, touched, update, whole};
use muster_protocol::firewall::Holding;
use serde_json::{Value, json};

use crate::frames::frame;
use crate::world::{World, port, text};

pub(crate) struct Lab {
    pub(crate) world: World,
    pub(crate) state: Value,
    pub(crate) ids: Ids,
}

/// Two web servers (one on the other bridge), a client that may only go to the
/// web, and a machine without groups.
pub(crate) fn state() -> Value {
    let interface = |name: &str, v4: &str, v6: &str, groups: &[&str]| {
        json!({
            "machine": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "name": "web",
            "bridge": port(name).bridge, "mac": text(port(name).mac),
            "addresses": [v4, v6], "groups": groups,
        })
    };
    json!({
        "interfaces": {
            "mtaaa": interface("mtaaa", "192.0.2.11", "2001:db8::11", &["other", "web"]),
            "mtbbb": interface("mtbbb", "192.0.2.12", "2001:db8::12", &["client"]),
            "mtccc": interface("mtccc", "192.0.2.13", "2001:db8::13", &[]),
            "mtddd": interface("mtddd", "203.0.113.14", "2001:db8:1::14", &["web"]),
        },
        "groups": {
            "web": [
                {"id": 1, "direction": "ingress", "traffic": "tcp 80,443", "peer": "group:client"},
                {"id": 2, "direction": "ingress", "traffic": "tcp 8000-8010", "peer": "any"},
                {"id": 3, "direction": "ingress", "traffic": "udp 53", "peer": "any"},
                {"id": 4, "direction": "ingress", "traffic": "icmp 8", "peer": "any"},
                {"id": 5, "direction": "ingress", "traffic": "icmpv6 128/0", "peer": "any"},
                {"id": 6, "direction": "ingress", "traffic": "proto 47", "peer": "192.0.2.50"},
                {"id": 7, "direction": "ingress", "traffic": "tcp 100-200", "peer": "any"},
                {"id": 8, "direction": "ingress", "traffic": "udp 600", "peer": "set:office"},
            ],
            "other": [
                {"id": 1, "direction": "ingress", "traffic": "tcp 150-250", "peer": "any"},
            ],
            "client": [
                {"id": 1, "direction": "egress", "traffic": "tcp 80,443", "peer": "any"},
            ],
        },
        "members": {
            "group:client": ["192.0.2.12/32", "2001:db8::12/128"],
            "set:office": ["198.51.100.0/24", "2001:db8:f::/48"],
        },
    })
}

pub(crate) fn holding(state: &Value) -> Holding {
    let holding = serde_json::from_value(state.clone()).expect("a holding");
    assert_eq!(check(&holding, None), Ok(()));
    holding
}

pub(crate) fn udp(from: &str, to: &str, port: u16, number: u64) -> Content {
    let source = 20_000 + u16::try_from(number % 40_000).expect("16 bits");
    let payload = Payload::Udp {
        source,
        target: port,
    };
    ip(from, to, payload)
}

pub(crate) fn tcp(from: &str, to: &str, port: u16, number: u64) -> Content {
    let source = 20_000 + u16::try_from(number % 40_000).expect("16 bits");
    let payload = Payload::Tcp {
        source,
        target: port,
        opens: true,
    };
    ip(from, to, payload)
}

pub(crate) fn icmpv6(from: &str, to: &str, kind: u8, hops: u8, about: Option<&str>) -> Content {
    let payload = Payload::Icmpv6 {
        kind,
        code: 0,
        about: about.map(|a| a.parse().expect("an address")),
    };
    let mut content = ip(from, to, payload);
    if let Content::Ip { hops: h, .. } = &mut content {
        *h = hops;
    }
    content
}

pub(crate) fn ip(from: &str, to: &str, payload: Payload) -> Content {
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    Content::Ip {
        source: address(from),
        target: address(to),
        hops: 64,
        payload,
    }
}

pub(crate) fn packet(content: Content) -> Packet {
    Packet {
        from: End::Outside,
        to: End::Outside,
        source_mac: None,
        target_mac: None,
        tagged: false,
        content,
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        let mut lab = Self {
            world: World::new(),
            state: state(),
            ids: Ids::default(),
        };
        lab.apply_whole();
        lab
    }

    pub(crate) fn apply_whole(&mut self) {
        let holding = holding(&self.state);
        self.ids
            .assign_all(holding.interfaces.keys())
            .expect("numbers");
        let text = whole(&objects(&holding, &self.ids), &BTreeMap::new());
        self.world.apply(&text);
    }

    /// The next state, by what differs.
    pub(crate) fn change(&mut self, f: impl FnOnce(&mut Value)) {
        let before = holding(&self.state);
        f(&mut self.state);
        let after = holding(&self.state);
        self.ids
            .assign_all(after.interfaces.keys())
            .expect("numbers");
        let change = before.change_to(&after);
        let difference = touched(&before, &after, &change, &self.ids);
        let listed = self.world.listed(difference.to_list());
        self.world.apply(&update(&difference, &listed));
    }

    /// Sends it with that hardware address to that one; who got it. Those in
    /// `wanted` are waited for.
    pub(crate) fn send(
        &mut self,
        from: &str,
        target: RawMac,
        wanted: &[&'static str],
        content: impl FnOnce(u64) -> Content,
    ) -> Vec<&'static str> {
        let number = self.world.number();
        let packet = packet(content(number));
        let bytes = frame(&packet, port(from).mac, target, number, 0x10);
        self.world.one(from, number, &bytes, wanted)
    }

    /// Sends it, and only they get it.
    #[track_caller]
    pub(crate) fn only(
        &mut self,
        what: &str,
        from: &str,
        to: &str,
        wanted: &[&'static str],
        content: impl FnOnce(u64) -> Content,
    ) {
        let got = self.send(from, port(to).mac, wanted, content);
        assert_eq!(got, wanted, "{what}");
    }
}
