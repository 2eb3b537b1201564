//! Rules that change while packets pass.

use std::collections::BTreeMap;

use muster_firewall::groups::{objects, touched, update, whole};

use crate::capability;
use crate::frames::frame;
use crate::lab::{Lab, holding, packet, state, udp};
use crate::world::{Got, World, port};

#[test]
fn one_rule_that_changes_is_one_rule() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let rules = |world: &World| -> Vec<String> {
        let text = world.nft(&["-a", "list", "ruleset"], "").expect("a list");
        let lines = text.lines().filter(|line| line.contains("comment"));
        lines.map(|line| line.trim().to_owned()).collect()
    };
    let before = rules(&lab.world);
    lab.change(|state| state["groups"]["web"][2]["traffic"] = "udp 54".into());
    let after = rules(&lab.world);
    let gone: Vec<_> = before.iter().filter(|rule| !after.contains(rule)).collect();
    let come: Vec<_> = after.iter().filter(|rule| !before.contains(rule)).collect();
    assert_eq!((gone.len(), come.len()), (1, 1), "{gone:?} {come:?}");
    assert!(come[0].starts_with("udp dport 54 counter name \"n-web-3\" accept"));
    lab.only("new", "up0", "mtaaa", &["mtaaa"], |n| {
        udp("192.0.2.50", "192.0.2.11", 54, n)
    });
    lab.only("old", "up0", "mtaaa", &[], |n| {
        udp("192.0.2.50", "192.0.2.11", 53, n)
    });
}

#[test]
fn changes_lead_where_the_whole_would() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let list = |world: &World| world.nft(&["-s", "list", "ruleset"], "").expect("a list");
    // Twice is once.
    let first = list(&lab.world);
    lab.apply_whole();
    assert_eq!(list(&lab.world), first);
    let same = holding(&lab.state);
    let nothing = touched(&same, &same, &same.change_to(&same), &lab.ids);
    assert_eq!(update(&nothing, &BTreeMap::new()), "");

    let long = format!("{}-{}", "a".repeat(31), "b".repeat(31));
    let long_1 = format!("{}1", &long[..62]);
    lab.change(|state| {
        for name in [&long, &long_1] {
            state["groups"][name] = serde_json::json!([
                {"id": 4_294_967_295_u32, "direction": "egress", "traffic": "any",
                 "peer": format!("group:{long}"), "comment": "\"; flush ruleset; #"},
            ]);
        }
        state["members"][format!("group:{long}")] = serde_json::json!(["10.0.0.0/8", "::1/128"]);
        let mut one = state["interfaces"]["mtccc"].clone();
        one["groups"] = serde_json::json!([long, long_1]);
        one["pairs"] = serde_json::json!([{"prefix": "0.0.0.0/0"}, {"prefix": "::/0"}]);
        state["interfaces"]["mtaaaaaaaaaaaaa"] = one.clone();
        state["interfaces"]["mtaaaaaaaaaaaab"] = one;
    });
    // Rules of a chain are in no order; what is mapped and held is sorted.
    let sorted = |world: &World| {
        let text = list(world)
            .replace("elements = { ", "\n")
            .replace(" }", "\n");
        let lines = text.lines().map(|line| line.trim().trim_end_matches(','));
        let mut lines: Vec<String> = lines.map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let by_change = sorted(&lab.world);
    lab.apply_whole();
    assert_eq!(by_change, sorted(&lab.world));
    lab.change(|state| *state = crate::lab::state());
    assert!(!sorted(&lab.world).join("\n").contains(&long));
    let back = sorted(&lab.world);
    lab.apply_whole();
    assert_eq!(back, sorted(&lab.world));
}

#[test]
fn nothing_slips_through_while_rules_are_replaced() {
    if !capability::nft() {
        return;
    }
    let mut lab = Lab::new();
    let one = holding(&state());
    let other = {
        let mut state = state();
        state["groups"]["web"][0]["traffic"] = "tcp 80,443,444".into();
        state["groups"]["client"][0]["peer"] = "192.0.2.0/24".into();
        holding(&state)
    };
    let texts: Vec<String> = [&one, &other]
        .iter()
        .map(|holding| whole(&objects(holding, &lab.ids), &BTreeMap::new()))
        .collect();
    let host = lab.world.host().to_owned();
    let done = std::sync::atomic::AtomicBool::new(false);
    let (mut allowed, mut forbidden) = (Got::new(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for text in texts.iter().cycle().take(24) {
                World::apply_in(&host, text);
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let mut turn = 0_usize;
        while !done.load(std::sync::atomic::Ordering::SeqCst) {
            turn += 1;
            let number = lab.world.number();
            let (from, to, content) = match turn % 4 {
                0 => ("up0", "mtaaa", udp("192.0.2.50", "192.0.2.11", 53, number)),
                1 => ("up0", "mtaaa", udp("192.0.2.50", "192.0.2.11", 54, number)),
                2 => ("mtbbb", "up0", udp("192.0.2.12", "192.0.2.50", 53, number)),
                _ => ("mtccc", "up0", udp("192.0.2.11", "192.0.2.50", 53, number)),
            };
            let bytes = frame(&packet(content), port(from).mac, port(to).mac, number, 0);
            lab.world.send(from, &bytes);
            match turn % 4 {
                0 => drop(allowed.insert((number, "mtaaa"))),
                _ => forbidden.push(number),
            }
        }
    });
    let last: Got = allowed.iter().next_back().copied().into_iter().collect();
    let got = lab.world.settle(&last).clone();
    let slipped: Vec<_> = got.iter().filter(|(n, _)| forbidden.contains(n)).collect();
    assert!(
        slipped.is_empty(),
        "{} of {}",
        slipped.len(),
        forbidden.len()
    );
    // A packet that is just being judged while a table goes may find nothing
    // any more, and is lost. Those are few.
    let lost = allowed.difference(&got).count();
    assert!(lost * 100 < allowed.len(), "{lost} of {}", allowed.len());
    assert!(forbidden.len() > 500, "{}", forbidden.len());
}
