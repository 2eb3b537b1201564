//! Changes that are confirmed, and changes that would have closed a door.

use anyhow::Result;
use muster_tests::vm::capability;

use crate::fleet::Fleet;

/// Lets the bastion in, and the node out.
const GOOD: &str = r#"
    firewall::host(#{
        rules: [
            #{ accept: "tcp 22", from: "role:bastion", comment: "operators" },
            #{ accept: "tcp 80,443" },
        ],
        probe: [#{ from: "role=bastion", tcp: 22 }],
        confirm_within: "30s",
    })"#;
/// Nothing new leaves the node: no orders, no answers.
const DEAF: &str = r#"
    firewall::host(#{
        policy: #{ input: "accept", output: "drop" },
        rules: [#{ accept: "tcp 22" }],
        confirm_within: "5s",
    })"#;
/// The agent is alive, and nobody comes in.
const SHUT: &str = r#"
    firewall::host(#{
        rules: [#{ accept: "tcp 80,443" }],
        probe: [#{ from: "role=bastion", tcp: 22 }],
        confirm_within: "6s",
    })"#;

#[test]
fn a_change_that_closes_a_door_takes_itself_back() -> Result<()> {
    if !capability("nft") {
        return Ok(());
    }
    let fleet = Fleet::start(3)?;
    fleet.store("good", GOOD)?;
    fleet.store("deaf", DEAF)?;
    fleet.store("shut", SHUT)?;

    // What it would do is said rule by rule, and not done.
    let dry = fleet.run("good", &["--dry-run"]);
    assert_eq!(dry.code, 0, "{dry:#?}\n{}", fleet.logs());
    dry.shows(&["accept tcp 22 from role:bastion"]);
    assert_eq!(fleet.host("web-01").table(), "");

    // The rules cut the first node off: it restores what was there, which is
    // nothing, and the others are left alone.
    let said = fleet.run("deaf", &[]);
    assert_eq!(said.code, 1, "{said:#?}\n{}", fleet.logs());
    let said = said.shows(&[
        "web-01",
        "rolled back after",
        "the old rules are in force",
        "1 failed, 2 skipped",
        "What was tried: muster firewall diff web-01 --run",
    ]);
    assert!(!said.out.contains("deaf.rhai:"), "{said:#?}");
    for name in ["web-01", "web-02", "web-03"] {
        assert_eq!(fleet.host(name).table(), "", "{name}");
    }
    let tried = fleet.up.muster(&["firewall", "diff", "web-01"]).exits(0);
    tried.shows(&["rolled back after", "output policy drop"]);

    // A good change stays, on all of them.
    let said = fleet.run("good", &[]);
    assert_eq!(said.code, 0, "{said:#?}\n{}", fleet.logs());
    let good = fleet.host("web-01").table();
    assert!(good.contains("dport"), "{good}");
    let shown = fleet.up.muster(&["firewall", "show", "web-02"]).exits(0);
    shown.shows(&["accept tcp 22 from role:bastion"]);
    // Once more: nothing to do.
    let again = fleet.run("good", &["--json"]).exits(0);
    let nodes = again.json_lines();
    let text = format!("{nodes:?}");
    assert!(!text.contains("\"kind\": String(\"changed\")"), "{text}");

    // The agent lives and ssh is closed: those who probe say so.
    let said = fleet.run("shut", &[]);
    assert_eq!(said.code, 1, "{said:#?}\n{}", fleet.logs());
    said.shows(&[
        "rolled back after",
        "probe from bastion-1 to tcp/22 got no answer",
        "the old rules are in force",
        "2 skipped",
    ]);
    assert_eq!(
        without_counts(&fleet.host("web-01").table()),
        without_counts(&good)
    );
    let history = fleet.up.muster(&["firewall", "history", "web-01"]).exits(0);
    history.shows(&["confirmed", "rolled back after"]);

    // Back to what was before the present rules: there was nothing.
    let back = fleet
        .up
        .muster(&["firewall", "rollback", "web-03", "--yes"]);
    assert_eq!(back.code, 1, "{back:#?}");
    back.shows(&["nothing to go back to"]);
    Ok(())
}

/// A table without what was counted.
fn without_counts(table: &str) -> String {
    let plain = |line: &str| match line.split_once("packets ") {
        Some((before, _)) => before.to_owned(),
        None => line.to_owned(),
    };
    table.lines().map(plain).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_node_that_does_not_grant_it_declines() -> Result<()> {
    if !capability("nft") {
        return Ok(());
    }
    let mut fleet = Fleet::start(1)?;
    fleet.store("good", GOOD)?;
    fleet.store(
        "raw",
        r#"firewall::host(#{ rules: [#{ raw: "tcp dport 22 accept" }] })"#,
    )?;
    // Rules in nft's own words are another matter.
    let said = fleet.run("raw", &[]);
    assert_eq!(said.code, 1, "{said:#?}");
    said.shows(&["does not grant the capability `firewall_raw`"]);
    fleet.host_mut("web-01").kill_agent()?;
    fleet.run_agent("web-01", Some("[capabilities]\nfirewall = false\n"))?;
    fleet.are_up(&["web-01"])?;
    let said = fleet.run("good", &[]);
    assert_eq!(said.code, 1, "{said:#?}\n{}", fleet.logs());
    said.shows(&["capability `firewall`"]);
    assert_eq!(fleet.host("web-01").table(), "");
    Ok(())
}
