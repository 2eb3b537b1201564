//! What others do to the table while nobody changes it.

use std::sync::Mutex;

use muster_nft::host::Repaired;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::changes::{ssh, web};
use crate::world::{World, capable, runtime, until};

#[test]
fn what_somebody_changes_is_put_right_and_told() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    world.listen(80);
    let told: Mutex<Vec<Repaired>> = Mutex::default();
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let firewall = world.firewall();
            let (told, stop) = (&told, stop.clone());
            world.node.inside(move || {
                runtime().block_on(firewall.watch(stop, |repaired| {
                    told.lock().expect("whole").push(repaired);
                }));
            });
        });
        let stop = stop.clone().drop_guard();
        let count = || told.lock().expect("whole").len();
        world.confirm("first", ssh()).expect("confirmed");
        assert!(world.reaches(22));
        world.node.nft(&["flush", "ruleset"]);
        until("it is put back", || {
            count() == 1 && world.node.table().is_some()
        });
        assert!(world.reaches(22) && !world.reaches(80));
        let rule = [
            "insert",
            "rule",
            "inet",
            "muster_host",
            "input",
            "tcp",
            "dport",
            "80",
            "accept",
        ];
        world.node.nft(&rule);
        until("it is taken away", || count() == 2);
        assert!(world.reaches(22) && !world.reaches(80));
        // Changes of its own are nobody else's.
        world.confirm("second", web()).expect("confirmed");
        let refused = world.change("third", ssh(), std::time::Duration::from_secs(20), async {
            Err("no".to_owned())
        });
        assert!(refused.is_err());
        // Other tables are others'.
        world.node.nft(&["add", "table", "inet", "other"]);
        world
            .node
            .nft(&["delete", "chain", "inet", "muster_host", "forward"]);
        until("it is put back", || count() == 3);
        assert!(
            world
                .node
                .nft(&["list", "tables"])
                .contains("table inet other")
        );
        drop(stop);
        watch.join().expect("it ends");
    });
    let told = told.into_inner().expect("whole");
    let lines: Vec<String> = told.iter().map(|one| one.lines.join("\n")).collect();
    insta::assert_snapshot!(lines.join("\n\n"), @"
    - table inet muster_host

    + chain input: tcp dport 80 accept

    - chain forward
    - chain forward: type filter hook forward priority filter; policy accept;
    - chain forward: meta mark & 0xffff0000 == { 0x6d6b0000, 0x6d6e0000 } accept
    - chain forward: ct state established,related accept
    - chain forward: icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
    - chain forward: icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
    ");
}

#[test]
fn what_was_counted_goes_on_and_what_raw_rules_collect_is_theirs() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    let rules = json!({"rules": [
        {"raw": "tcp dport 9 meter seen { ip saddr limit rate 3/minute } accept"},
        {"accept": "tcp 22"},
    ]});
    world.confirm("first", rules).expect("confirmed");
    world.listen(9);
    assert!(world.reaches(22) && world.reaches(9));
    let firewall = world.firewall();
    assert_eq!(firewall.repair().expect("looked"), None);
    world
        .node
        .nft(&["add", "chain", "inet", "muster_host", "more"]);
    assert!(firewall.repair().expect("repaired").is_some());
    assert_eq!(firewall.repair().expect("looked"), None);
    let counters = firewall.show().expect("shown").counters;
    assert_eq!(counters.values().map(|count| count.packets).sum::<u64>(), 1);
    // While a change waits, the table is the change's.
    let done = world.change("second", web(), std::time::Duration::from_secs(20), async {
        assert_eq!(world.firewall().repair().expect("looked"), None);
        Ok(())
    });
    assert!(done.is_ok());
}
