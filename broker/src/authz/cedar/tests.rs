//! What policies say: of the fixed roles, of classes of nodes, of everything
//! that they can look at; and what is said of their mistakes.

use std::sync::Arc;

use cedar_policy::EntityUid;
use muster_protocol::api::{PolicyFiles, Role};
use muster_protocol::envelope::{Door, Mode};
use muster_protocol::ids::Serial;
use muster_protocol::nodeset::NodeSet;
use muster_protocol::origin::Origin;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::testing::node;
use super::*;
use crate::authz::{Action, AskedSet, Caller, Decision, FixedRoles, Policy, RunAsk, authorize};
use crate::inventory::Snapshot;

/// Two of role web (in two zones), one of role db.
fn fleet() -> Snapshot {
    Snapshot::new([
        node(1, &["web"], &[("zone", "gva2")], &json!({})),
        node(2, &["web"], &[("zone", "dk2")], &json!({})),
        node(3, &["db"], &[("zone", "gva2")], &json!({})),
    ])
}

const PRINCIPALS: &str = r#"
[groups.developers]
[groups.seniors]

[principals.dev-ci]
kind = "ci"
groups = ["developers"]

[principals.ana]
kind = "person"
groups = ["developers", "seniors"]
"#;

fn document(policies: &str) -> Document {
    let files = PolicyFiles {
        policies: policies.to_owned(),
        principals: PRINCIPALS.to_owned(),
    };
    match check(&files) {
        Ok(checked) => checked.document,
        Err(faults) => panic!(
            "{}",
            faults.iter().map(ToString::to_string).collect::<String>()
        ),
    }
}

fn caller(principal: &str, role: Role) -> Caller {
    Caller {
        principal: principal.parse().unwrap(),
        role,
        token: "t".into(),
        door: Door::Http,
        origin: Origin::Unknown,
    }
}

fn set(name: &str, serials: &[u32]) -> AskedSet {
    let nodes: NodeSet = serials.iter().map(|serial| Serial(*serial)).collect();
    AskedSet {
        name: name.to_owned(),
        size: u32::try_from(nodes.len()).unwrap(),
        nodes,
    }
}

fn run(scenario: &str, params: Value, sets: Vec<AskedSet>) -> Action {
    let size = sets.iter().map(|set| set.size).sum();
    Action::CreateRun(Box::new(RunAsk {
        params,
        sets,
        size,
        ..RunAsk::named(scenario.parse().unwrap(), false)
    }))
}

fn at(text: &str) -> Moment {
    Moment(text.parse().unwrap())
}

/// A Wednesday.
const NOON: &str = "2026-11-18T12:30:00Z";

fn judged(document: &Document, who: &Caller, action: &Action) -> Decision {
    document.judge(who, action, at(NOON), &fleet()).decision
}

fn why(decision: Decision) -> String {
    decision.granted().expect_err("denied").to_string()
}

#[test]
fn the_schema_has_every_action_in_its_group_and_no_other() {
    let actions = schema().action_entities().unwrap();
    let mut known: Vec<String> = Vec::new();
    for action in Action::examples() {
        let uid: EntityUid = format!("Action::\"{}\"", action.name()).parse().unwrap();
        assert!(
            schema().actions().any(|known| *known == uid),
            "authz/cedar/muster.cedarschema lacks {uid}"
        );
        let groups: Vec<String> = actions
            .ancestors(&uid)
            .unwrap()
            .map(|group| AsRef::<str>::as_ref(group.id()).to_owned())
            .collect();
        let group = action.group().as_str();
        let wanted = if group == "run" {
            vec![]
        } else {
            vec![group.to_owned()]
        };
        assert_eq!(groups, wanted, "{uid}");
        known.push(uid.to_string());
    }
    for uid in schema().actions() {
        let is_group = ["read", "change", "manage"].contains(&AsRef::<str>::as_ref(uid.id()));
        assert!(
            is_group || known.contains(&uid.to_string()),
            "nobody asks for {uid}"
        );
    }
}

#[test]
fn the_stock_policies_say_what_the_fixed_roles_say() {
    let stock = InForce::over(Document::stock(), || Arc::new(fleet()));
    for action in Action::examples() {
        let mut actions = vec![action];
        if let Action::CreateRun(run) = &actions[0] {
            let mut with = run.clone();
            with.sets = vec![set("targets", &[1, 2, 3]), set("balancers", &[3])];
            actions.push(Action::CreateRun(with));
        }
        for (action, role, door) in itertools(&actions) {
            let who = Caller {
                door,
                ..caller("somebody", role)
            };
            let fixed = FixedRoles.decide(&who, action).is_allowed();
            let stock = stock.decide(&who, action).is_allowed();
            assert_eq!(stock, fixed, "{} {role} {door}", action.name());
        }
    }
}

fn itertools(actions: &[Action]) -> Vec<(&Action, Role, Door)> {
    let mut all = Vec::new();
    for action in actions {
        for role in Role::ALL {
            all.extend(Door::ALL.map(|door| (action, role, door)));
        }
    }
    all
}

const DEVELOPERS: &str = r#"
@id("deploy to web")
permit (principal in Group::"developers", action == Action::"run", resource)
when { context.scenario == "deploy" && resource.roles.contains("web") };
"#;

#[test]
fn one_class_that_is_denied_denies_the_whole() {
    let document = document(DEVELOPERS);
    let who = caller("dev-ci", Role::Member);
    let web = run("deploy", json!({}), vec![set("targets", &[1, 2])]);
    let grant = judged(&document, &who, &web).granted().unwrap();
    assert_eq!(grant.by.len(), 1);
    let both = run("deploy", json!({}), vec![set("targets", &[1, 2, 3])]);
    let denied = judged(&document, &who, &both);
    assert_eq!(
        why(denied),
        "dev-ci (ci) may not run deploy on nodes with role=db and zone=gva2 (set targets): no policy permits it"
    );
    let other = run(
        "deploy",
        json!({}),
        vec![set("targets", &[1]), set("balancers", &[3])],
    );
    assert!(why(judged(&document, &who, &other)).contains("(set balancers)"));
    let scenario = run("reboot", json!({}), vec![set("targets", &[1])]);
    assert!(!judged(&document, &who, &scenario).is_allowed());
    // A set that is empty, or of nodes that were removed, is no way round.
    for sets in [
        vec![set("targets", &[])],
        vec![set("targets", &[99])],
        vec![],
    ] {
        assert!(!judged(&document, &who, &run("deploy", json!({}), sets)).is_allowed());
    }
    // Nobody else, and nothing else.
    assert!(!judged(&document, &caller("eve", Role::Admin), &web).is_allowed());
    assert!(!judged(&document, &who, &Action::ReadNodes).is_allowed());
}

#[test]
fn what_policies_look_at() {
    let by = |condition: &str| {
        document(&format!(
            "permit (principal, action == Action::\"run\", resource) when {{ {condition} }};"
        ))
    };
    let ask = |condition: &str, change: &dyn Fn(&mut Caller, &mut RunAsk), when: &str| {
        let mut who = caller("ana", Role::Member);
        let params = json!({
            "version": "1.4.2", "count": 3, "force": true, "none": null, "list": [1, 2],
            "password": { "$secret": "password" },
        });
        let Action::CreateRun(mut ask) = run("deploy", params, vec![set("targets", &[1, 2])])
        else {
            unreachable!()
        };
        change(&mut who, &mut ask);
        let action = Action::CreateRun(ask);
        by(condition)
            .judge(&who, &action, at(when), &fleet())
            .decision
            .is_allowed()
    };
    let same = |_: &mut Caller, _: &mut RunAsk| {};
    let yes = [
        r#"context.params.hasTag("version") && context.params.getTag("version") like "1.*""#,
        r#"context.params.hasTag("count") && context.params.getTag("count") == "3""#,
        r#"context.numbers.hasTag("count") && context.numbers.getTag("count") <= 3"#,
        r#"context.flags.hasTag("force") && context.flags.getTag("force")"#,
        r#"!context.params.hasTag("none") && context.params.hasTag("list")"#,
        r#"context.params.hasTag("password") && context.params.getTag("password") == "[secret]""#,
        r#"context.hour == 12 && context.minute == 30 && context.weekday == "wed""#,
        r#"context.now < datetime("2026-12-01T00:00:00Z")"#,
        r#"context.size == 2 && context.whole == 2 && context.set == "targets""#,
        r#"context.door == "http" && !(context has address) && !(context has schedule)"#,
        r#"context.mode == "apply" && !context.stock && context has version && context.version == 1"#,
        r#"context.approvals == 0 && principal.kind == "person""#,
        r#"principal in Group::"seniors" && principal in Role::"member""#,
        r#"resource.hasTag("zone") && ["gva2", "dk2"].contains(resource.getTag("zone"))"#,
    ];
    for condition in yes {
        assert!(ask(condition, &same, NOON), "{condition}");
        assert!(
            !ask(&format!("!({condition})"), &same, NOON),
            "not {condition}"
        );
    }
    let weekend = r#"["sat", "sun"].contains(context.weekday)"#;
    assert!(ask(weekend, &same, "2026-11-21T00:00:00Z"));
    assert!(!ask(weekend, &same, "2026-11-20T23:59:59Z"));
    let office = r#"context has address && context.address.isInRange(ip("192.0.2.0/24"))"#;
    let from = |address: &str| {
        let origin = Origin::Address(address.parse().unwrap());
        move |who: &mut Caller, _: &mut RunAsk| who.origin = origin.clone()
    };
    assert!(ask(office, &from("192.0.2.7"), NOON));
    assert!(ask(office, &from("::ffff:192.0.2.7"), NOON));
    assert!(!ask(office, &from("198.51.100.7"), NOON));
    // A step of a `main` is judged as if its run asked, then and from there.
    let step = |who: &mut Caller, _: &mut RunAsk| {
        who.origin = Origin::Run {
            run: muster_protocol::ids::RunId::from_bytes([7; 16]),
            asked: "2026-11-21T10:00:00Z".parse().unwrap(),
            whence: Box::new(Origin::Address("192.0.2.7".parse().unwrap())),
        };
    };
    assert!(ask(&format!("{office} && {weekend}"), &step, NOON));
    let hook = |who: &mut Caller, _: &mut RunAsk| {
        who.door = Door::Hook;
        who.origin = Origin::Hook {
            hook: "forge".into(),
            delivery: "d1".into(),
            trigger: "deploy".into(),
            event: "e1".into(),
        };
    };
    let forge = r#"context.door == "hook" && context has hook && context.hook == "forge""#;
    assert!(ask(forge, &hook, NOON));
    assert!(!ask(forge, &same, NOON));
    let check = |_: &mut Caller, ask: &mut RunAsk| ask.mode = Mode::Check;
    assert!(ask(r#"context.mode == "check""#, &check, NOON));
}

#[test]
fn what_cannot_be_evaluated_and_forbids_forbids() {
    let overflow = "context.whole * 9223372036854775807 > 0";
    let permits = r#"@id("all") permit (principal, action, resource);"#;
    let two = run("deploy", json!({}), vec![set("targets", &[1, 2])]);
    let one = run("deploy", json!({}), vec![set("targets", &[1])]);
    let who = caller("ana", Role::Admin);
    let forbids = document(&format!(
        "{permits} @id(\"odd\") forbid (principal, action == Action::\"run\", resource) when {{ !({overflow}) }};"
    ));
    assert!(judged(&forbids, &who, &one).is_allowed());
    let denied = why(judged(&forbids, &who, &two));
    assert!(
        denied.contains("`odd` forbids things, and could not be evaluated"),
        "{denied}"
    );
    // What would permit and cannot be evaluated does not permit.
    let permits = document(&format!(
        "@id(\"odd\") permit (principal, action == Action::\"run\", resource) when {{ {overflow} }};"
    ));
    assert!(judged(&permits, &who, &one).is_allowed());
    let denied = why(judged(&permits, &who, &two));
    assert!(
        denied.contains("no policy permits it, and `odd` could not be evaluated"),
        "{denied}"
    );
}

#[test]
fn forbid_wins() {
    let document = document(
        r#"permit (principal, action, resource);
        @id("hands off") forbid (principal, action == Action::"run", resource)
        when { resource.roles.contains("db") } unless { principal in Group::"seniors" };"#,
    );
    let db = run("reboot", json!({}), vec![set("targets", &[1, 3])]);
    let denied = judged(&document, &caller("dev-ci", Role::Admin), &db);
    assert!(why(denied.clone()).ends_with("`hands off` forbids it"));
    assert_eq!(denied.granted().unwrap_err().by.len(), 1);
    assert!(judged(&document, &caller("ana", Role::Reader), &db).is_allowed());
}

#[test]
fn the_least_demanding_permit_counts_and_over_classes_the_most_demanding() {
    let document = document(
        r#"
        @approvals("2") permit (principal, action == Action::"run", resource);
        @approvals("1") @approve_through("cli")
        permit (principal, action == Action::"run", resource) when { resource.roles.contains("web") };
        @approvals("3") @approve_through("http")
        permit (principal in Group::"seniors", action == Action::"run", resource);
        "#,
    );
    let asks = |who: &str, serials: &[u32]| {
        let run = run("deploy", json!({}), vec![set("targets", serials)]);
        let grant = judged(&document, &caller(who, Role::Member), &run)
            .granted()
            .unwrap();
        (grant.approvals, grant.doors)
    };
    assert_eq!(asks("dev-ci", &[1]), (1, Some([Door::Cli].into())));
    assert_eq!(asks("dev-ci", &[3]), (2, None));
    assert_eq!(asks("ana", &[3]), (2, None));
    assert_eq!(asks("dev-ci", &[1, 3]), (2, Some([Door::Cli].into())));
}

#[test]
fn mistakes_are_told_all_at_once_with_their_place() {
    let told = |policies: &str, principals: &str| {
        let files = PolicyFiles {
            policies: policies.to_owned(),
            principals: principals.to_owned(),
        };
        let faults = check(&files).expect_err("has mistakes");
        faults.iter().map(ToString::to_string).collect::<String>()
    };
    let all = told(
        r#"@aprovals("2")
permit (principal in Group::"develpoers", action == Action::"run", resource)
when { context.scenaro == "deploy" };

@id("x") @approvals("many")
permit (principal == Principal::"an", action == Action::"run", resource);

@id("x")
permit (principal in Role::"boss", action == Action::"red-nodes", resource);

@approvals("2")
forbid (principal, action == Action::"ping", resource);
"#,
        PRINCIPALS,
    );
    for said in [
        "policies.cedar:1:1: `@aprovals` means nothing here",
        "did you mean `@approvals`?",
        "policies.cedar:2:22: there is no group `develpoers` in principals.toml",
        "did you mean `developers`?",
        "scenaro",
        "`@approvals` takes a number from 1 to 20",
        "there is no principal `an`",
        "there is another policy `x`",
        "no token has a role `boss`",
        "red-nodes",
        "what is forbidden nobody can approve",
        "this policy is not about `Action::\"run\"`",
    ] {
        assert!(all.contains(said), "{said} is not in:\n{all}");
    }
    let text = told(
        "permit (principal, action, resource)\nwhen { true }",
        PRINCIPALS,
    );
    assert!(text.contains("policies.cedar:2:"), "{text}");
    let text = told(STOCK, "[principals.ana]\nkind = \"robot\"\n");
    assert!(text.contains("principals.toml:2:"), "{text}");
    let text = told(
        STOCK,
        "[principals.ana]\nkind = \"bot\"\ngroups = [\"x\"]\n[principals.\"a b\"]\nkind=\"ci\"",
    );
    assert!(
        text.contains("principals.toml:3:11: there is no group `x`"),
        "{text}"
    );
    assert!(text.contains("a b"), "{text}");
    let text = told("permit (principal == ?principal, action, resource);", "");
    assert!(text.contains("templates are not used"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// What nodes say of themselves changes nothing, whatever they call it.
    #[test]
    fn facts_decide_nothing(
        key in prop::sample::select(vec!["role", "roles", "zone", "name", "kind", "env"]),
        value in prop::sample::select(vec!["web", "db", "gva2", "dk2", "person"]),
        serials in prop::collection::btree_set(1u32..4, 1..3),
    ) {
        let document = document(r#"
            permit (principal, action == Action::"run", resource) when { resource.roles.contains("web") };
            forbid (principal, action == Action::"run", resource)
            when { resource.hasTag("zone") && resource.getTag("zone") == "dk2" };
            forbid (principal, action == Action::"run", resource) when { resource.hasTag("env") };
        "#);
        let facts = json!({ key: value });
        let with = Snapshot::new([
            node(1, &["web"], &[("zone", "gva2")], &facts),
            node(2, &["web"], &[("zone", "dk2")], &facts),
            node(3, &["db"], &[("zone", "gva2")], &facts),
        ]);
        let serials: Vec<u32> = serials.into_iter().collect();
        let run = run("deploy", json!({}), vec![set("targets", &serials)]);
        let who = caller("ana", Role::Member);
        let plain = document.judge(&who, &run, at(NOON), &fleet()).decision;
        let told = document.judge(&who, &run, at(NOON), &with).decision;
        prop_assert_eq!(plain.is_allowed(), serials == [1]);
        prop_assert_eq!(plain, told);
    }

    /// That policies which say the same of all classes are asked once, and
    /// those that cannot concern a request not at all, changes nothing.
    #[test]
    fn what_is_left_out_would_have_said_nothing(
        picks in prop::collection::vec(0usize..8, 1..6),
        who in prop::sample::select(vec!["ana", "dev-ci", "eve"]),
        role in prop::sample::select(Role::ALL.to_vec()),
        serials in prop::collection::btree_set(1u32..4, 0..4),
        other in any::<bool>(),
    ) {
        let pool = [
            r#"permit (principal, action, resource);"#,
            r#"permit (principal in Group::"developers", action == Action::"run", resource);"#,
            r#"permit (principal == Principal::"ana", action in [Action::"read", Action::"run"], resource);"#,
            r#"forbid (principal in Role::"reader", action == Action::"run", resource);"#,
            r#"forbid (principal, action == Action::"run", resource) when { resource.roles.contains("db") };"#,
            r#"permit (principal is Principal in Group::"seniors", action == Action::"run", resource) when { context.size < 2 };"#,
            r#"forbid (principal, action == Action::"run", resource) when { context.whole * 4611686018427387904 > 0 };"#,
            r#"permit (principal, action in Action::"read", resource is Cluster);"#,
        ];
        let text: String = picks.iter().map(|at| pool[*at]).collect();
        let quick = document(&text);
        let mut slow = quick.clone();
        for one in slow.policies.values_mut() {
            one.by_class = true;
        }
        let serials: Vec<u32> = serials.into_iter().collect();
        let action = if other {
            Action::ReadNodes
        } else {
            run("deploy", json!({}), vec![set("targets", &serials)])
        };
        let who = caller(who, role);
        let one = quick.judge(&who, &action, at(NOON), &fleet());
        let two = slow.judge(&who, &action, at(NOON), &fleet());
        prop_assert_eq!(&one.decision, &two.decision);
        prop_assert!(authorize(&Fixed(one.decision), &who, action, ()).is_ok() == two.decision.is_allowed());
    }
}

struct Fixed(Decision);

impl Policy for Fixed {
    fn decide(&self, _: &Caller, _: &Action) -> Decision {
        self.0.clone()
    }
}

#[test]
fn what_the_documentation_shows_can_be_put() {
    let text = include_str!("../../../../docs/policy.md");
    let blocks = |kind: &str| {
        text.split("```")
            .skip(1)
            .step_by(2)
            .filter_map(|block| block.strip_prefix(kind))
            .collect::<Vec<_>>()
    };
    let principals = blocks("toml\n").concat();
    let cedar = blocks("cedar\n");
    assert!(cedar.len() >= 5 && principals.contains("dev-ci"));
    let policies = format!("{STOCK}{}", cedar.concat());
    let checked = check(&PolicyFiles {
        policies,
        principals,
    });
    let checked = checked.unwrap_or_else(|faults| panic!("{faults:?}"));
    assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
}

/// Whoever policies cannot tell apart is judged alike.
#[test]
fn those_whom_policies_cannot_tell_apart_are_alike() {
    let files = PolicyFiles {
        policies: format!(
            "{STOCK}\n@id(\"ana\") permit (principal == Principal::\"ana\", action == Action::\"freeze\", resource);"
        ),
        principals: "[groups.seniors]\n[groups.others]\n\
                     [principals.ana]\nkind = \"person\"\ngroups = [\"seniors\"]\n\
                     [principals.bea]\nkind = \"person\"\ngroups = [\"seniors\"]\n\
                     [principals.cleo]\nkind = \"person\"\ngroups = [\"seniors\"]\n\
                     [principals.dan]\nkind = \"person\"\ngroups = [\"others\"]\n\
                     [principals.bot]\nkind = \"bot\"\ngroups = [\"seniors\"]\n"
            .to_owned(),
    };
    let document = check(&files).expect("fine").document;
    let of = |name: &str, role| document.alike(&name.parse().expect("a name"), role);
    let member = |name: &str| of(name, Role::Member);
    assert_eq!(member("bea"), member("cleo"));
    assert_eq!(member("x-1"), member("x-2"));
    for other in ["ana", "dan", "bot", "x-1"] {
        assert_ne!(member("bea"), member(other), "{other}");
    }
    assert_ne!(member("bea"), of("bea", Role::Reader));
}
