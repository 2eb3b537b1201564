//! The whole path: exactly the machines that a predicate names.

use muster_tests::{Up, names};

const FIVE: [&str; 5] = [
    "web-01:role=web,zone=gva2",
    "web-02:role=web,zone=gva2",
    "web-03:role=web,role=cache,zone=dk2",
    "db-01:role=db,zone=gva2",
    "lb-01:role=lb,zone=dk2",
];

#[test]
fn a_command_runs_on_exactly_the_nodes_that_a_predicate_names() {
    let up = Up::start(&FIVE).expect("starts");
    let said = up
        .muster(&[
            "run",
            "role=web",
            "--json",
            "--",
            "sh",
            "-c",
            "echo $MUSTER_NODE",
        ])
        .exits(0);
    let outcomes = said.outcomes();
    assert_eq!(
        outcomes.keys().collect::<Vec<_>>(),
        ["web-01", "web-02", "web-03"]
    );
    assert!(outcomes.values().all(|o| o == "succeeded"), "{outcomes:?}");
    for (node, text) in said.output("stdout") {
        assert_eq!(text.trim(), node);
    }

    // A label changes, live: the next run follows it, without a restart.
    let agent = up.pid("agent-db-01").expect("runs");
    up.muster(&["node", "role", "db-01", "+web"]).exits(0);
    up.muster(&["node", "role", "web-01", "-web"]).exits(0);
    let said = up
        .muster(&["run", "role=web", "--json", "--", "true"])
        .exits(0);
    assert_eq!(
        said.outcomes().keys().collect::<Vec<_>>(),
        ["db-01", "web-02", "web-03"]
    );
    assert_eq!(
        up.pid("agent-db-01").expect("runs"),
        agent,
        "the agent was not restarted"
    );

    up.muster(&["node", "label", "lb-01", "zone=zrh", "rack=r7"])
        .exits(0);
    let said = up
        .muster(&["run", "zone=zrh and has rack", "--json", "--", "true"])
        .exits(0);
    assert_eq!(said.outcomes().keys().collect::<Vec<_>>(), ["lb-01"]);
    up.muster(&["node", "label", "lb-01", "rack-"]).exits(0);
    up.muster(&["match", "has rack"]).exits(3);
}

#[test]
fn match_lists_and_explains() {
    let up = Up::start(&FIVE).expect("starts");
    let list = |p: &str| names(&up.muster(&["match", p, "--json"]).exits(0));
    assert_eq!(list("role=web and zone=gva2"), ["web-01", "web-02"]);
    assert_eq!(list("web-0*"), ["web-01", "web-02", "web-03"]);
    assert_eq!(list("role in [db, lb]"), ["db-01", "lb-01"]);
    assert_eq!(
        list("not role=web or role=cache"),
        ["db-01", "lb-01", "web-03"]
    );
    assert_eq!(list("role!=web"), ["db-01", "lb-01"]);
    assert_eq!(list("cpus >= 1 and has os.id").len(), 5);
    let explained = up.muster(&["match", "role=web and zone=gva2", "--explain", "web-03"]);
    assert!(explained.out.contains("zone"), "{explained:?}");
    assert!(explained.out.contains("dk2"), "{explained:?}");
}

#[test]
fn ping_says_who_answered_and_who_did_not() {
    let up = Up::start(&FIVE[..2]).expect("starts");
    let said = up.muster(&["ping", "--json"]).exits(0);
    assert!(
        said.out.contains("web-01") && said.out.contains("web-02"),
        "{said:?}"
    );
    muster_tests::signal(
        up.pid("agent-web-02").expect("runs"),
        rustix::process::Signal::STOP,
    )
    .expect("stops");
    let said = up.muster(&["ping", "--json"]).exits(1);
    assert!(
        said.out.contains("silent") && said.out.contains("web-02"),
        "{said:?}"
    );
    muster_tests::signal(
        up.pid("agent-web-02").expect("runs"),
        rustix::process::Signal::CONT,
    )
    .expect("goes on");
}
