//! Changes that nothing happens to.

use std::future::pending;
use std::time::Duration;

use muster_nft::host::{Changed, Ended, HostError};
use serde_json::{Value, json};

use crate::world::{World, capable, id, resolved, runtime, until};

/// Only the bastion's ssh.
pub(crate) fn ssh() -> Value {
    json!({"rules": [{"accept": "tcp 22", "from": "role:bastion", "comment": "operators"}]})
}

/// Everybody, and not to ssh.
pub(crate) fn web() -> Value {
    json!({"rules": [{"accept": "tcp 80"}]})
}

/// What is said, however long the new rules were in force.
fn timeless(error: &HostError) -> String {
    let said = error.to_string();
    let HostError::RolledBack { after, .. } = error else {
        return said;
    };
    said.replacen(&format!("after {} s", after.as_secs()), "after N s", 1)
}

#[test]
fn what_is_confirmed_stays() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    world.listen(80);
    world.node.nft(&["add table inet other; add chain inet other c { type filter hook input priority 5 ; }; add rule inet other c tcp dport 7 drop"]);
    let other = world.node.nft(&["-a", "list", "table", "inet", "other"]);
    assert!(world.reaches(22) && world.reaches(80));

    let changed = world.confirm("first", ssh()).expect("confirmed");
    let Changed::Confirmed(lines) = changed else {
        panic!("it was changed");
    };
    assert_eq!(lines[0], "+ the table inet muster_host");
    assert!(world.reaches(22) && !world.reaches(80));
    // Once is enough.
    let table = world.node.table();
    assert!(
        world
            .firewall()
            .plan(&resolved(ssh()))
            .expect("a plan")
            .is_empty()
    );
    let again = world.confirm("second", ssh()).expect("nothing to do");
    assert_eq!(again, Changed::Unchanged);
    assert_eq!(world.node.table(), table);
    assert!(!table.expect("a table").contains("try_"));

    let counted = |world: &World| {
        let show = world.firewall().show().expect("it is shown");
        let confirmed = show.confirmed.expect("confirmed");
        let names = muster_firewall::host::counter_names(&confirmed.rules);
        assert!(!show.foreign);
        show.counters[&names[0]].packets
    };
    assert_eq!(counted(&world), 1);
    // What is counted goes on.
    let mut both = ssh();
    both["rules"]
        .as_array_mut()
        .expect("rules")
        .push(json!({"accept": "tcp 80"}));
    let changed = world.confirm("third", both).expect("confirmed");
    assert_eq!(
        changed,
        Changed::Confirmed(vec!["+ rules[1]: input accept tcp 80".to_owned()])
    );
    assert_eq!(counted(&world), 1);
    assert!(world.reaches(80) && world.reaches(22));
    assert_eq!(counted(&world), 2);
    assert_eq!(
        world.node.nft(&["-a", "list", "table", "inet", "other"]),
        other
    );

    let history = world.firewall().history().expect("a history");
    let seen: Vec<_> = history
        .iter()
        .map(|entry| (entry.change.to_string(), entry.in_force))
        .collect();
    assert_eq!(
        seen,
        [("third".to_owned(), true), ("first".to_owned(), false)]
    );
    assert!(matches!(history[1].ended, Some(Ended::Confirmed { .. })));
    until("nobody stands guard", || world.guards().is_empty());

    // Nothing twice.
    let again = world.confirm("third", ssh()).expect_err("it was made");
    insta::assert_snapshot!(again, @"this change was made before; confirmed");
}

#[test]
fn what_is_not_confirmed_is_taken_back() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    world.listen(80);
    world.confirm("first", ssh()).expect("confirmed");
    let table = world
        .node
        .nft(&["-s", "list", "table", "inet", "muster_host"]);
    let mut during = None;
    let refused = world.change("second", web(), Duration::from_secs(20), async {
        during = Some((world.reaches(22), world.reaches(80)));
        Err("probe from bastion-1 to tcp/22 got no answer".to_owned())
    });
    assert_eq!(during, Some((false, true)));
    assert!(world.reaches(22) && !world.reaches(80));
    insta::assert_snapshot!(timeless(&refused.expect_err("refused")), @"rolled back after N s; probe from bastion-1 to tcp/22 got no answer; the old rules are in force");
    let now = world
        .node
        .nft(&["-s", "list", "table", "inet", "muster_host"]);
    assert_eq!(now, table);
    // What was tried can be looked at.
    let entry = world.entry("second");
    assert_eq!(entry.rules, resolved(web()));
    assert_eq!(
        entry.difference.last().map(String::as_str),
        Some("+ rules[0]: input accept tcp 80")
    );
    assert!(!entry.in_force && entry.text.contains("tcp dport 80"));
    assert!(
        world
            .firewall()
            .plan(&resolved(ssh()))
            .expect("a plan")
            .is_empty()
    );

    // Nobody says anything.
    let silent = world.change("third", web(), Duration::from_secs(1), pending());
    insta::assert_snapshot!(timeless(&silent.expect_err("refused")), @"rolled back after N s; nobody confirmed it within 1 s; the old rules are in force");
    assert!(world.reaches(22) && !world.reaches(80));
    until("nobody stands guard", || world.guards().is_empty());
}

#[test]
fn of_the_first_change_nothing_is_left() {
    if !capable() {
        return;
    }
    let world = World::new();
    let refused = world.change("first", ssh(), Duration::from_secs(20), async {
        Err("no".to_owned())
    });
    assert!(matches!(refused, Err(HostError::RolledBack { .. })));
    assert_eq!(world.node.table(), None);
    let nothing = runtime().block_on(world.firewall().rollback(
        &id("second"),
        Duration::from_secs(20),
        async { Ok(()) },
    ));
    insta::assert_snapshot!(nothing.expect_err("nothing"), @"no rules were confirmed before the present ones, so there is nothing to go back to");
}

#[test]
fn one_goes_back_to_what_was_before() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    world.listen(80);
    world.confirm("first", ssh()).expect("confirmed");
    world.confirm("second", web()).expect("confirmed");
    assert!(!world.reaches(22) && world.reaches(80));
    let back = |change: &str| {
        let (firewall, change) = (world.firewall(), id(change));
        let within = Duration::from_secs(20);
        runtime().block_on(firewall.rollback(&change, within, async { Ok(()) }))
    };
    assert!(matches!(back("third"), Ok(Changed::Confirmed(_))));
    assert!(world.reaches(22) && !world.reaches(80));
    // And from there to what was before that.
    assert!(matches!(back("fourth"), Ok(Changed::Confirmed(_))));
    assert!(!world.reaches(22) && world.reaches(80));
}

#[test]
fn one_change_is_in_flight() {
    if !capable() {
        return;
    }
    let world = World::new();
    let mut second = None;
    let first = world.change("first", ssh(), Duration::from_secs(20), async {
        let (world, second) = (&world, &mut second);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| world.confirm("second", web()));
            *second = other.join().ok();
        });
        Ok(())
    });
    assert!(matches!(first, Ok(Changed::Confirmed(_))));
    let second = second.expect("it was tried").expect_err("busy");
    insta::assert_snapshot!(second, @"another change of this node's firewall (first) is not confirmed yet; it is confirmed or taken back in a moment, then try again");
    assert!(
        world
            .node
            .table()
            .expect("a table")
            .contains("tcp dport 22")
    );
}

#[test]
fn what_others_do_to_the_table_is_seen_and_put_right() {
    if !capable() {
        return;
    }
    let world = World::new();
    world.confirm("first", ssh()).expect("confirmed");
    world
        .node
        .nft(&["add", "rule", "inet", "muster_host", "input", "accept"]);
    assert!(world.firewall().show().expect("it is shown").foreign);
    let plan = world.firewall().plan(&resolved(ssh())).expect("a plan");
    insta::assert_snapshot!(plan.difference.join("\n"), @"~ somebody else has changed the table inet muster_host; it becomes what these rules say");
    assert!(matches!(
        world.confirm("second", ssh()),
        Ok(Changed::Confirmed(_))
    ));
    assert!(!world.firewall().show().expect("it is shown").foreign);
    // Somebody takes all of it away while a change waits.
    let refused = world.change("third", web(), Duration::from_secs(20), async {
        world.node.nft(&["flush", "ruleset"]);
        Err("no".to_owned())
    });
    assert!(matches!(refused, Err(HostError::RolledBack { .. })));
    assert!(
        world
            .node
            .table()
            .expect("a table")
            .contains("tcp dport 22")
    );
}

#[test]
fn raw_lines_are_rules_and_nothing_else() {
    if !capable() {
        return;
    }
    let mut world = World::new();
    world.listen(22);
    world.listen(80);
    world
        .node
        .nft(&["add table ip other; add chain ip other c"]);
    let raw = |line: &str| json!({"rules": [{"raw": line}]});
    world
        .confirm("first", raw("tcp dport { 80 } counter accept"))
        .expect("confirmed");
    assert!(world.reaches(80) && !world.reaches(22));
    let table = world.node.table();
    let refused = world
        .confirm("second", raw("tcp dport nonsense"))
        .expect_err("refused");
    assert!(matches!(refused, HostError::Nft(_)), "{refused}");
    assert!(refused.to_string().starts_with("nothing was changed: "));
    let refused = world
        .confirm("third", raw("jump nowhere"))
        .expect_err("refused");
    assert!(matches!(refused, HostError::Nft(_)), "{refused}");
    assert_eq!(world.node.table(), table);
    // Whatever changes other tables at that moment, the rules do not stay.
    world.hook("case \"$*\" in '-f -') ip netns exec NODE nft add chain ip other d$$ ;; esac");
    let hook = std::fs::read_to_string(world.path("hook")).expect("read");
    world.hook(&hook.replace("NODE", world.node.name()));
    let changed = world.confirm("fourth", raw("tcp dport { 22 } accept"));
    insta::assert_snapshot!(timeless(&changed.expect_err("refused")), @"rolled back after N s; tables that are not muster's were changed while the raw lines of these rules came in force; the old rules are in force");
    assert!(world.reaches(80) && !world.reaches(22));
}

#[test]
fn as_many_rules_as_may_be_are_in_force_and_taken_back() {
    if !capable() {
        return;
    }
    let world = World::new();
    let wide = |from: u32| -> Vec<String> {
        let one = |n: u32| format!("10.{}.{}.{}", n >> 15, (n >> 7) & 255, (n << 1) & 255);
        (from..from + 10_000).map(one).collect()
    };
    let rules: Vec<Value> = (1..=2_000)
        .map(|port| json!({"accept": format!("tcp {port}"), "from": ["set:a", "set:b"]}))
        .collect();
    let most = json!({"sets": {"a": wide(0), "b": wide(10_000)}, "rules": rules});
    world.confirm("first", most.clone()).expect("confirmed");
    let table = world
        .node
        .nft(&["-s", "list", "table", "inet", "muster_host"]);
    assert_eq!(
        table
            .lines()
            .filter(|line| line.ends_with(" accept") && line.contains("@set-"))
            .count(),
        4_000
    );
    let refused = world.change("second", ssh(), Duration::from_secs(20), async {
        Err("no".to_owned())
    });
    assert!(matches!(refused, Err(HostError::RolledBack { .. })));
    let now = world
        .node
        .nft(&["-s", "list", "table", "inet", "muster_host"]);
    assert!(now == table);
    assert!(
        world
            .firewall()
            .plan(&resolved(most))
            .expect("a plan")
            .is_empty()
    );
}
