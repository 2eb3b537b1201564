//! What happens when the agent, or the whole machine, ends in the middle of a
//! change.

use anyhow::Result;
use muster_tests::vm::capability;
use muster_tests::wait_for;

use crate::fleet::Fleet;

/// Rules that nobody can confirm, for long enough to kill somebody.
const NEVER: &str = r#"
    firewall::host(#{
        rules: [#{ accept: "tcp 80" }],
        probe: [#{ from: "role=bastion", tcp: 22 }],
        confirm_within: "12s",
    })"#;
const GOOD: &str = r#"
    firewall::host(#{
        rules: [#{ accept: "tcp 22" }],
        probe: [#{ from: "role=bastion", tcp: 22 }],
        confirm_within: "30s",
    })"#;

/// Starts a run without waiting for it, and waits until the rules are in force.
fn begin(fleet: &Fleet) -> Result<String> {
    let said = fleet.run("never", &["--detach", "--json"]);
    assert_eq!(said.code, 0, "{said:#?}");
    let run = said.run();
    let tried = wait_for("the rules to be in force", || {
        fleet
            .host("web-01")
            .table()
            .contains("dport 80")
            .then_some(())
    });
    assert!(tried.is_ok(), "{}", fleet.logs());
    Ok(run)
}

/// What the run says in the end.
fn ends(fleet: &Fleet, run: &str) -> Result<()> {
    let said = fleet.up.muster(&["runs", "watch", run]);
    let shown = fleet.up.muster(&["runs", "show", run]);
    assert_eq!(said.code, 1, "{said:#?}\n{}", fleet.logs());
    shown.shows(&["web-01", "rolled back after", "the old rules are in force"]);
    Ok(())
}

#[test]
fn a_guard_restores_the_rules_when_everything_of_the_agent_is_killed() -> Result<()> {
    if !capability("nft") {
        return Ok(());
    }
    let mut fleet = Fleet::start(1)?;
    fleet.store("never", NEVER)?;
    let run = begin(&fleet)?;
    fleet.host_mut("web-01").kill_agent()?;
    wait_for("the guard to take the rules back", || {
        fleet.host("web-01").table().is_empty().then_some(())
    })?;
    fleet.run_agent("web-01", None)?;
    fleet.are_up(&["web-01"])?;
    ends(&fleet, &run)
}

#[test]
fn a_machine_that_restarts_in_the_middle_has_its_old_rules() -> Result<()> {
    if !capability("nft") {
        return Ok(());
    }
    let mut fleet = Fleet::start(1)?;
    fleet.store("never", NEVER)?;
    fleet.store("good", GOOD)?;
    let said = fleet.run("good", &[]);
    assert_eq!(said.code, 0, "{said:#?}\n{}", fleet.logs());
    let good = fleet.host("web-01").table();
    assert!(good.contains("22"), "{good}");

    let run = begin(&fleet)?;
    fleet.restart("web-01")?;
    assert_eq!(fleet.host("web-01").table(), "");
    fleet.run_agent("web-01", None)?;
    fleet.are_up(&["web-01"])?;
    // What was confirmed is there again, and not what was tried.
    let table = fleet.host("web-01").table();
    assert!(
        table.contains("22") && !table.contains("dport 80"),
        "{table}"
    );
    ends(&fleet, &run)
}

#[test]
fn a_cancel_takes_the_rules_back_and_who_is_down_confirms_nothing() -> Result<()> {
    if !capability("nft") {
        return Ok(());
    }
    let mut fleet = Fleet::start(1)?;
    fleet.store("never", NEVER)?;
    fleet.store("shut", &GOOD.replace("30s", "6s"))?;
    let run = begin(&fleet)?;
    let said = fleet.up.muster(&["runs", "cancel", &run]);
    assert_eq!(said.code, 0, "{said:#?}");
    wait_for("the rules to be taken back", || {
        fleet.host("web-01").table().is_empty().then_some(())
    })?;
    // What is a good change while the bastion is there is none without it.
    fleet.host_mut("bastion-1").kill_agent()?;
    let said = fleet.run("shut", &[]);
    assert_eq!(said.code, 1, "{said:#?}\n{}", fleet.logs());
    said.shows(&[
        "rolled back after",
        "probe from bastion-1 to tcp/22 was not made",
    ]);
    assert_eq!(fleet.host("web-01").table(), "");
    Ok(())
}
