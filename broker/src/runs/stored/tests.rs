use std::collections::BTreeMap;

use muster_scenarios::manifest;
use serde_json::json;

use super::*;
use crate::inventory::Standing;
use muster_protocol::ids::Serial;
use muster_protocol::keys::PrivateKey;
use muster_protocol::wire::Assignment;

fn record(serial: u32, name: &str, roles: &[&str], labels: &[(&str, &str)]) -> NodeRecord {
    NodeRecord {
        serial: Serial(serial),
        node_key: PrivateKey::generate().public(),
        nats_key: String::new(),
        assignment: Assignment {
            revision: 1,
            name: name.parse().expect("a name"),
            roles: roles.iter().map(|r| r.parse().expect("a role")).collect(),
            labels: labels
                .iter()
                .map(|(k, v)| (k.parse().expect("a key"), v.parse().expect("a value")))
                .collect(),
        },
        infrastructure: false,
        enrolled: Timestamp::UNIX_EPOCH,
        jwt_iat: 0,
        standing: Standing::Active,
        facts: Arc::default(),
        notes: Vec::new(),
        last_seen: None,
    }
}

fn program(script: &str) -> Program {
    let manifest = manifest::read("x.rhai", script).expect("a manifest");
    Program {
        name: "web-upgrade".parse().expect("a name"),
        version: 12,
        bundle: BundleHash::of(script.as_bytes()),
        manifest: Arc::new(manifest),
    }
}

const UPGRADE: &str = r#"
    scenario("Upgrade the web front end");
    param("version", #{ matches: "^[0-9][0-9.]*$", help: "package version" });
    param("count", #{ type: "int", default: 2, max: 5 });
    target("role=web");
    also("balancers", "role=lb");
    also("spare", "role=spare");
    batch("25%");
    max_failures(1);
    max_failures(0, #{ by: "rack" });
    timeout("2m");
    retry(3);
    confirm();
    approvals(2);
    lock("deploy");
    window("* 22 * * *");
    fn run(p) { command(["true"]); }
"#;

fn request(more: Value) -> RunRequest {
    let mut json = json!({"scenario": "web-upgrade", "params": {"version": "1.4.2"}});
    json.as_object_mut()
        .expect("object")
        .extend(more.as_object().expect("object").clone());
    serde_json::from_value(json).expect("a request")
}

fn fleet() -> Snapshot {
    let web = (1..=4).map(|n| {
        let rack = if n % 2 == 0 { "even" } else { "odd" };
        record(
            n,
            &format!("web-0{n}"),
            &["web"],
            &[("rack", rack), ("zone", "gva2")],
        )
    });
    let rest = [
        record(8, "lb-1", &["lb"], &[]),
        record(9, "web-09", &["web"], &[("zone", "dk2")]),
    ];
    Snapshot::new(web.chain(rest))
}

fn frozen(script: &str, more: Value) -> Result<FrozenRun, StoredError> {
    let ana: PrincipalName = "ana".parse().expect("a name");
    let ready = ready(&request(more), &program(script))?;
    ready.freeze(
        &fleet(),
        RunId::from_bytes([1; 16]),
        (&ana, Door::Cli),
        Timestamp::UNIX_EPOCH,
    )
}

fn names(targets: &[Target]) -> Vec<&str> {
    targets.iter().map(|target| target.name.as_str()).collect()
}

#[test]
fn what_the_scenario_says_counts_unless_the_request_says_otherwise() {
    let run = frozen(UPGRADE, json!({})).expect("frozen");
    let spec = &run.spec;
    assert_eq!(spec.title, "web-upgrade v12 version=1.4.2 count=2");
    assert_eq!((spec.version, spec.function.as_str()), (Some(12), "run"));
    assert_eq!(spec.params, json!({"version": "1.4.2", "count": 2}));
    assert_eq!(
        names(&run.targets),
        ["web-01", "web-02", "web-03", "web-04", "web-09"]
    );
    // Only the labels that it counts by are frozen.
    let rack = &run.targets[1].labels;
    assert_eq!(
        serde_json::to_value(rack).expect("json"),
        json!({"rack": "even"})
    );
    assert!(run.targets[4].labels.is_empty());
    let options = &spec.options;
    assert_eq!(
        serde_json::to_value(options).expect("json"),
        json!({
            "timeout": "2m", "deliver_within": "15s", "batch": "25%", "max_failures": "1",
            "max_failures_by": {"rack": "0"}, "retry": 3, "wait_down": false, "output_bytes": 1 << 20,
        })
    );
    assert_eq!(
        serde_json::to_value(&spec.gates).expect("json"),
        json!({"approvals": 2, "locks": ["deploy"], "windows": ["* 22 * * *"]})
    );
    let asked = json!({
        "batch": "1", "max_failures": "50%", "max_failures_by": {}, "retry": 0, "timeout": "1s",
    });
    let run = frozen(UPGRADE, asked).expect("frozen");
    assert_eq!(
        serde_json::to_value(&run.spec.options).expect("json"),
        json!({
            "timeout": "1s", "deliver_within": "15s", "batch": "1", "max_failures": "50%",
            "wait_down": false, "output_bytes": 1 << 20,
        })
    );
}

#[test]
fn a_predicate_narrows_the_target_and_never_widens_it() {
    let on = |script: &str, on: &str| frozen(script, json!({"predicate": on}));
    let run = on(UPGRADE, "zone=gva2 or role=lb").expect("frozen");
    assert_eq!(run.spec.predicate, "role=web and (zone=gva2 or role=lb)");
    assert_eq!(
        names(&run.targets),
        ["web-01", "web-02", "web-03", "web-04"]
    );
    assert_eq!(on(UPGRADE, "*").expect("frozen").targets.len(), 5);
    let open = r#"scenario("x"); param("version"); fn run(p) {}"#;
    assert_eq!(names(&on(open, "lb-1").expect("frozen").targets), ["lb-1"]);
    let said = |result: Result<FrozenRun, StoredError>| {
        let problem = result.expect_err("refused").problem();
        (problem.kind, problem.title)
    };
    assert_eq!(
        said(frozen(open, json!({}))),
        (
            Kind::InvalidRequest,
            "`web-upgrade` says nothing of the nodes that it runs on; nothing was run".into()
        )
    );
    assert_eq!(said(on(UPGRADE, "role=lb")).0, Kind::NoMatch);
    assert_eq!(said(on(UPGRADE, "zoen=gva2")).0, Kind::UnknownName);
    assert_eq!(said(on(UPGRADE, "(")).0, Kind::InvalidPredicate);
}

#[test]
fn every_mistake_in_parameters_is_said_at_once() {
    let error = frozen(
        UPGRADE,
        json!({"params": {"version": "; rm -rf /", "count": "9", "vresion": 1}}),
    );
    let problem = error.expect_err("refused").problem();
    insta::assert_snapshot!(
        format!("{}\n{}\n{}", problem.title, problem.detail.expect("all"), problem.hint.expect("what to do")),
        @r#"
    3 parameters of `web-upgrade` do not fit; nothing was run
    parameter "version": `; rm -rf /` does not match `^[0-9][0-9.]*$` (help: package version)
    parameter "count": `9` is too large, at most 5
    parameter "vresion": not declared by this scenario; did you mean "version"?
    muster scenario show web-upgrade says what it takes
    "#
    );
    // A text is read as a person writes it.
    let run = frozen(UPGRADE, json!({"params": {"version": "2", "count": "5"}}));
    assert_eq!(
        run.expect("frozen").spec.params,
        json!({"version": "2", "count": 5})
    );
    assert!(matches!(
        frozen(UPGRADE, json!({"params": [1]})),
        Err(StoredError::NotAMap(_))
    ));
}

#[test]
fn with_main_every_declared_set_is_frozen_and_may_be_empty() {
    let script = UPGRADE.replace("fn run(p)", "fn main(p) { } fn other(p)");
    let run = frozen(&script, json!({})).expect("frozen");
    assert_eq!(
        (run.shape, run.spec.function.as_str()),
        (Shape::Main, "main")
    );
    let sets: Vec<_> = run
        .sets
        .iter()
        .map(|set| (set.name.as_str(), set.predicate.as_str(), names(&set.nodes)))
        .collect();
    assert_eq!(
        sets,
        [
            ("balancers", "role=lb", vec!["lb-1"]),
            ("spare", "role=spare", vec![])
        ]
    );
    // Whoever judges it, judges all of them.
    assert_eq!(run.set().len(), 6);
}

#[test]
fn a_dry_run_has_to_be_meant_and_waits_for_nobody() {
    let check = json!({"mode": "check"});
    assert!(matches!(
        frozen(UPGRADE, check.clone()),
        Err(StoredError::NoCheck(_))
    ));
    let script = format!("allow_check();\n{UPGRADE}");
    let run = frozen(&script, check).expect("frozen");
    assert_eq!(
        (run.spec.mode, run.spec.gates.is_open()),
        (Mode::Check, true)
    );
}

const SECRET: &str = r#"
    scenario("x");
    param("version");
    param("token", #{ secret: true });
    fn run(p) {}
"#;

#[test]
fn a_secret_is_only_a_name_in_all_that_is_kept_or_shown() {
    let asked = json!({"predicate": "role=web", "params": {"version": "1", "token": "hunter2"}});
    let run = frozen(SECRET, asked).expect("frozen");
    assert_eq!(run.spec.title, "web-upgrade v12 version=1 token=[secret]");
    assert_eq!(run.secrets.expose()["token"], "hunter2");
    assert!(!format!("{run:?}").contains("hunter2"));
    let journal = serde_json::to_string(&run.spec).expect("json");
    assert!(!journal.contains("hunter2"), "{journal}");
}

#[test]
fn a_secret_that_nobody_gave_is_none() {
    let script = r#"
        scenario("x");
        param("token", #{ secret: true, required: false });
        param("key", #{ secret: true, required: false });
        fn run(p) {}
    "#;
    let run = frozen(script, json!({"predicate": "role=web", "params": {}})).expect("frozen");
    assert_eq!(run.spec.title, "web-upgrade v12");
    assert_eq!(run.spec.params, json!({"key": null, "token": null}));
    assert!(!muster_scenarios::secret::is_needed(&run.spec.params));
    assert!(run.secrets.is_empty());
    // One of two is given: it alone is a name.
    let asked = json!({"predicate": "role=web", "params": {"token": "hunter2"}});
    let run = frozen(script, asked).expect("frozen");
    assert_eq!(run.spec.title, "web-upgrade v12 token=[secret]");
    let names = muster_scenarios::secret::names(run.spec.params.as_object().expect("a map"));
    assert_eq!(Vec::from_iter(names), ["token"]);
    assert_eq!(run.spec.params["key"], Value::Null);
}

#[test]
fn a_secret_goes_to_no_node_that_may_have_chosen_itself() {
    let on = |on: &str| {
        let params = json!({"version": "1", "token": "hunter2"});
        let asked = json!({"predicate": on, "params": params, "allow_unknown": true});
        frozen(SECRET, asked).map(|run| run.targets.len())
    };
    assert_eq!(on("role=web and zone=gva2").expect("by label"), 4);
    assert_eq!(on("web-0*").expect("by name"), 5);
    for by_fact in [
        "role=web and not os.name=debian",
        "role=web and not has gpu",
        "role=web and rack!=even",
        "zone=gva2 or zone=dk2 or rack=odd",
    ] {
        let error = on(by_fact).expect_err(by_fact);
        assert!(
            matches!(error, StoredError::SecretByFact { .. }),
            "{by_fact}: {error}"
        );
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[test]
fn an_amount_that_makes_no_sense_is_refused() {
    let many: BTreeMap<String, &str> = (0..17).map(|n| (format!("l{n}"), "1")).collect();
    for more in [
        json!({"retry": 11}),
        json!({"batch": "0"}),
        json!({"timeout": "8d"}),
        json!({"max_failures_by": many}),
    ] {
        assert!(frozen(UPGRADE, more.clone()).is_err(), "{more}");
    }
}
