//! The node's own firewall beside the groups.

use muster_protocol::firewall::host::HostRules;
use serde_json::json;

use crate::space::{Space, is_possible};
use crate::world::{Engine, holding, mac};

#[test]
fn a_node_that_routes_nothing_still_bridges() {
    if !is_possible("a_node_that_routes_nothing_still_bridges") {
        return;
    }
    let (space, dir) = (
        Space::hypervisor(),
        tempfile::tempdir().expect("a directory"),
    );
    let guest = |n: u8| space.guest(&format!("mt{n}"), &mac(n), &format!("10.7.0.{n}"));
    let (one, two) = (guest(1), guest(2));
    // Two that are no machines of ours, on the same bridge.
    let (up, other) = (
        space.guest("up0", &mac(8), "10.7.0.8"),
        space.guest("up1", &mac(9), "10.7.0.9"),
    );
    // And one that is behind the node.
    space.ip(&["addr", "add", "10.7.0.254/24", "dev", "br0"]);
    let behind = Space::new("behind");
    behind.ip(&[
        "link",
        "add",
        "eth0",
        "type",
        "veth",
        "peer",
        "name",
        "far",
        "netns",
        space.name(),
    ]);
    space.ip(&["addr", "add", "10.8.0.254/24", "dev", "far"]);
    space.ip(&["link", "set", "far", "up"]);
    behind.ip(&["addr", "add", "10.8.0.1/24", "dev", "eth0"]);
    behind.ip(&["link", "set", "eth0", "up"]);
    behind.ip(&["route", "add", "default", "via", "10.8.0.254"]);
    up.ip(&["route", "add", "10.8.0.0/24", "via", "10.7.0.254"]);
    let routes = space.exec(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    assert!(routes.status.success(), "{routes:?}");

    let mut engine = Engine::start(&space, dir.path());
    let rules: &[_] = &[(1, "ingress", "icmp", "any"), (2, "egress", "any", "any")];
    let answer = engine.hold(&holding(
        &[(1, &["web"]), (2, &["web"])],
        &[("web", rules)],
        &[],
    ));
    assert_eq!(answer.in_force, answer.held, "{answer:?}");
    let ping = |from: &Space, to: &str| {
        let ping = from.exec(&["ping", "-c", "3", "-i", "0.3", "-W", "2", to]);
        ping.status.success()
    };
    assert!(ping(&up, "10.8.0.1"), "the node routes");
    let rules = json!({"policy": {"forward": "drop"}, "without": ["established"]});
    let rules = HostRules::read(&rules).expect("rules");
    let rules = rules.resolve(&Default::default()).expect("no addresses");
    let path = dir.path().join("host.nft");
    std::fs::write(&path, muster_firewall::host::render(&rules)).expect("written");
    space.nft(&["-f", &path.display().to_string()]);
    for (from, to) in [
        (&one, "10.7.0.2"),
        (&two, "10.7.0.8"),
        (&up, "10.7.0.1"),
        (&up, "10.7.0.9"),
        (&other, "10.7.0.8"),
    ] {
        assert!(ping(from, to), "{to}");
    }
    assert!(!ping(&up, "10.8.0.1"), "it routes nothing now");
    engine.end();
}
