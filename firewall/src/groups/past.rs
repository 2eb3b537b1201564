//! What the judge once said wrongly.

use muster_protocol::firewall::Holding;
use serde_json::{Value, json};

use super::check;
use super::judge::{Flow, Payload, Verdict, Way, flow};

fn interface(last: u8, pairs: &[&str], groups: &[&str]) -> Value {
    let pairs: Vec<_> = pairs.iter().map(|p| json!({"prefix": p})).collect();
    json!({
        "machine": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "name": "web", "bridge": "br0",
        "mac": format!("52:54:00:00:00:{last:02x}"), "addresses": [format!("192.0.2.{last}")],
        "pairs": pairs, "groups": groups,
    })
}

fn holding(json: Value) -> Holding {
    serde_json::from_value(json).expect("a holding")
}

fn goes_on(holding: &Holding, from: &str, to: &str, target: u16) -> bool {
    let way = Way {
        source: from.parse().expect("an address"),
        target: to.parse().expect("an address"),
        payload: Payload::Tcp {
            source: 40_000,
            target,
            opens: true,
        },
    };
    let one = Flow {
        sent: way.clone(),
        arrives: way,
    };
    flow(holding, &one).verdict == Verdict::Pass
}

#[test]
fn a_router_is_not_asked_about_the_flows_of_its_neighbours() {
    let holding = holding(json!({
        "interfaces": {
            "mtr": interface(1, &["0.0.0.0/0", "198.51.100.9/32"], &["router"]),
            "mtb": interface(2, &[], &["web"]),
        },
        "groups": {
            "router": [{"id": 1, "direction": "egress", "traffic": "tcp 443", "peer": "any"}],
            "web": [{"id": 1, "direction": "ingress", "traffic": "tcp 80", "peer": "any"}],
        },
        "members": {},
    }));
    // To the world and from it, which the router may have nothing to do with.
    assert!(goes_on(&holding, "192.0.2.2", "8.8.8.8", 53));
    assert!(goes_on(&holding, "8.8.8.8", "192.0.2.2", 80));
    assert!(!goes_on(&holding, "8.8.8.8", "192.0.2.2", 81));
    // What is its own is: one address beside it, too.
    assert!(!goes_on(&holding, "192.0.2.2", "192.0.2.1", 53));
    assert!(!goes_on(&holding, "192.0.2.2", "198.51.100.9", 53));
    // And what is nobody's own can only pass by it.
    assert!(!goes_on(&holding, "198.51.100.7", "8.8.8.8", 53));
}

#[test]
fn a_bridge_is_not_named_as_an_interface_is() {
    let said = |bridge: &str| {
        let mut one = interface(1, &[], &[]);
        one["bridge"] = bridge.into();
        let state = json!({"interfaces": {"mta": one}, "groups": {}, "members": {}});
        check(&holding(state), None).map_or_else(|e| e.to_string(), |()| "fine".to_owned())
    };
    insta::assert_snapshot!(said("mtlan"), @"the bridge mtlan of the interface mta has a name as interfaces of machines have: rename it, or nothing passes");
    assert_eq!(said("lan-mt"), "fine");
}
