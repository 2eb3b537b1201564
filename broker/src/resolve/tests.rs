use std::collections::BTreeMap;

use muster_protocol::ids::Serial;
use muster_protocol::keys::PrivateKey;
use muster_protocol::units::Timestamp;
use muster_protocol::wire::Assignment;
use proptest::prelude::*;

use super::*;
use crate::inventory::Standing;

fn node(serial: u32, name: &str, infrastructure: bool) -> NodeRecord {
    let assignment = Assignment {
        revision: 1,
        name: name.parse().expect("a name"),
        roles: vec!["web".parse().expect("a role")],
        labels: BTreeMap::from([(
            "zone".parse().expect("a key"),
            "gva2".parse().expect("a value"),
        )]),
    };
    NodeRecord {
        serial: Serial(serial),
        node_key: PrivateKey::generate().public(),
        nats_key: String::new(),
        assignment,
        infrastructure,
        enrolled: Timestamp::UNIX_EPOCH,
        jwt_iat: 0,
        standing: Standing::Active,
        facts: Arc::default(),
        notes: Vec::new(),
        last_seen: None,
    }
}

fn snapshot() -> Snapshot {
    Snapshot::new([
        node(0, "web-10", false),
        node(1, "web-2", false),
        node(2, "bastion", true),
        node(3, "web-1", false),
    ])
}

fn names(text: &str, options: Options) -> Result<Vec<String>, ResolveError> {
    let resolved = resolve(text, &snapshot(), options)?;
    Ok(resolved
        .targets()
        .iter()
        .map(|t| t.name.to_string())
        .collect())
}

#[test]
fn the_set_is_in_the_order_in_which_people_count_with_infrastructure_last_and_only_when_meant() {
    let usual = Options::default();
    assert_eq!(
        names("*", usual).expect("resolves"),
        ["web-1", "web-2", "web-10"]
    );
    let with = Options {
        include_infrastructure: true,
        ..usual
    };
    assert_eq!(
        names("*", with).expect("resolves"),
        ["web-1", "web-2", "web-10", "bastion"]
    );
    assert_eq!(
        names("bastion or web-2", usual).expect("resolves"),
        ["web-2", "bastion"]
    );
    assert_eq!(names("name=bastion", usual).expect("resolves"), ["bastion"]);
    let left_out = |text: &str, options| {
        resolve(text, &snapshot(), options)
            .expect("resolves")
            .left_out
    };
    assert_eq!(left_out("*", usual), 1);
    assert_eq!(left_out("*", with), 0);
    assert_eq!(left_out("bastion or web-2", usual), 0);
    // A pattern does not name it.
    assert!(names("bast*", usual).is_err());
    let some = Options {
        limit: Some(Amount::Count(2)),
        ..usual
    };
    assert_eq!(names("*", some).expect("resolves"), ["web-1", "web-2"]);
    let part = Options {
        limit: Some(Amount::Percent(10)),
        ..usual
    };
    assert_eq!(names("*", part).expect("resolves"), ["web-1"]);
}

#[test]
fn an_error_says_what_where_and_what_to_do() {
    let shown = |text: &str, options: Options| {
        let problem = names(text, options).expect_err("refused").problem();
        let hint = problem
            .hint
            .map_or(String::new(), |hint| format!(" | {hint}"));
        format!(
            "{} {:?} {}{hint}",
            problem.status, problem.span, problem.title
        )
    };
    let usual = Options::default();
    insta::assert_snapshot!(
        [
            shown("role=web and zoen=gva2", usual),
            shown("role=web and (zone=gva2", usual),
            shown("role=db", usual),
            shown("bast*", usual),
            shown("*", Options { limit: Some(Amount::Count(0)), ..usual }),
            shown("not zoen=gva2", usual),
            shown("not web-l", usual),
            shown("web-1 or name in [web-3, web-2]", usual),
        ]
        .join("\n"),
        @r"
        422 Some((13, 17)) no node has a label or fact `zoen`; nothing was run | did you mean `zone`?  (--allow-unknown if you meant it)
        400 Some((13, 14)) this parenthesis is never closed
        422 None no node matches `role=db`; nothing was run | muster match PREDICATE --explain NODE says which clause keeps a node out
        422 None no node matches `bast*`; nothing was run | 1 of the broker's own machines match: name them, or pass --include-infrastructure
        400 None a limit of 0 leaves no node; nothing was run
        422 Some((4, 8)) no node has a label or fact `zoen`; nothing was run | did you mean `zone`?  (--allow-unknown if you meant it)
        422 Some((4, 9)) there is no node `web-l`; nothing was run | did you mean `web-1`?  (--allow-unknown if you meant it)
        422 Some((18, 23)) there is no node `web-3`; nothing was run | did you mean `web-1`?  (--allow-unknown if you meant it)
        "
    );
    let meant = Options {
        allow_unknown: true,
        ..usual
    };
    assert_eq!(names("not zoen=gva2", meant).expect("resolves").len(), 3);
    assert_eq!(names("not web-l", meant).expect("resolves").len(), 3);
    assert_eq!(names("not web-l*", usual).expect("resolves").len(), 3);
    let empty = resolve("zone=gva2", &Snapshot::new([]), usual)
        .expect_err("refused")
        .problem();
    assert_eq!(empty.kind, Kind::NoMatch);
}

proptest! {
    #[test]
    fn the_natural_order_is_an_order(a in "[a-c]{0,2}[0-9]{0,3}[a.-]{0,2}", b in "[a-c]{0,2}[0-9]{0,3}[a.-]{0,2}", c in "[a-c]{0,2}[0-9]{0,3}[a.-]{0,2}") {
        prop_assert_eq!(natural(&a, &b), natural(&b, &a).reverse());
        prop_assert_eq!(natural(&a, &b) == Ordering::Equal, a == b);
        if natural(&a, &b).is_le() && natural(&b, &c).is_le() {
            prop_assert!(natural(&a, &c).is_le(), "{} {} {}", a, b, c);
        }
    }

    #[test]
    fn numbers_count(prefix in "[a-z]{1,4}-", n in 0u64..100_000, m in 0u64..100_000) {
        let order = natural(&format!("{prefix}{n}"), &format!("{prefix}{m:03}"));
        if n != m {
            prop_assert_eq!(order, n.cmp(&m));
        }
    }
}
