//! Security groups, from HTTP to what a hypervisor holds.

use muster_protocol::firewall::{GroupsAnswer, Holding, MembersOf};

use super::*;

impl Farm {
    async fn allow(&self, group: &str, rule: Value) -> Value {
        let path = format!("/v1/groups/{group}/rules");
        self.must("POST", &path, rule).await
    }

    async fn group(&self, name: &str) {
        self.must("POST", "/v1/groups", json!({ "name": name }))
            .await;
    }

    async fn refused(&self, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
        let (status, problem) = self.broker.call(method, path, body).await;
        assert!(status >= 400, "{method} {path}: {problem}");
        let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        (status, format!("{}; {}", text("title"), text("hint")))
    }

    fn holding(&self) -> Holding {
        let log = self.node.log.lock().unwrap();
        let held = log.groups.as_ref();
        held.map(|(_, holding)| holding.clone()).unwrap_or_default()
    }

    fn held_rules(&self, group: &str) -> usize {
        let holding = self.holding();
        let group: muster_protocol::names::GroupName = group.parse().unwrap();
        holding.groups.get(&group).map_or(0, Vec::len)
    }
}

fn tcp(ports: &str, peer: &str) -> Value {
    json!({ "direction": "ingress", "traffic": format!("tcp {ports}"), "peer": peer })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_group_allows_is_held_where_its_machines_are() {
    let farm = Farm::start().await;
    farm.group("web").await;
    let made = farm.allow("web", tcp("80,443", "any")).await;
    assert_eq!(made["what"], "allowed: rule 1 in web");
    // Nobody is in it yet.
    assert_eq!(made["force"], json!({ "of": 0, "on": 0 }));
    let vm = farm.create("web-01", json!({ "groups": ["web"] })).await;
    assert_eq!(vm["groups"], json!(["web"]));
    farm.report(&[&vm]).await;
    farm.is("web-01", "running").await;
    wait_for("the hypervisor holds the group", async || {
        (farm.held_rules("web") == 1).then_some(())
    })
    .await;
    let made = farm.allow("web", tcp("22", "192.0.2.0/24")).await;
    assert_eq!(made["what"], "allowed: rule 2 in web");
    assert_eq!(made["force"], json!({ "of": 1, "on": 1 }));
    assert_eq!(farm.held_rules("web"), 2);
    // The same again is one rule still; what was withdrawn is a new one.
    let again = farm.allow("web", tcp("22", "192.0.2.0/24")).await;
    assert_eq!(again["what"], "allowed already: rule 2 in web");
    let (status, gone) = farm
        .broker
        .call("DELETE", "/v1/groups/web/rules/2", None)
        .await;
    assert_eq!(
        (status, &gone["what"]),
        (200, &json!("withdrawn: rule 2 in web"))
    );
    assert_eq!(gone["force"], json!({ "of": 1, "on": 1 }));
    assert_eq!(farm.held_rules("web"), 1);
    let again = farm.allow("web", tcp("22", "192.0.2.0/24")).await;
    assert_eq!(again["rule"], 3);

    let (_, history) = farm
        .broker
        .call("GET", "/v1/groups/web/history", None)
        .await;
    let said: Vec<&str> = history["items"]
        .as_array()
        .expect("versions")
        .iter()
        .map(|one| one["what"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(
        said,
        [
            "added rule 3: ingress tcp 22 from 192.0.2.0/24",
            "removed rule 2: ingress tcp 22 from 192.0.2.0/24",
            "added rule 2: ingress tcp 22 from 192.0.2.0/24",
            "added rule 1: ingress tcp 80,443 from any",
            "made: group web",
        ]
    );
    let back = farm
        .must("POST", "/v1/groups/web/rollback", json!({ "to": 3 }))
        .await;
    assert_eq!(back["what"], "rolled back: web is as in version 3");
    let (_, web) = farm.broker.call("GET", "/v1/groups/web", None).await;
    assert_eq!(
        (&web["version"], &web["rules"][1]["id"]),
        (&json!(6), &json!(2))
    );
    assert_eq!(web["members"], json!(["web-01"]));
    // Numbers are never used again.
    let next = farm.allow("web", tcp("25", "any")).await;
    assert_eq!(next["rule"], 4);

    // One small update each, after the first.
    let log = farm.node.log.lock().unwrap();
    let whole = log.updates.iter().filter(|update| update.base.is_none());
    assert_eq!(whole.count(), 1, "{:#?}", log.updates);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_also_of_running_machines() {
    let farm = Farm::start().await;
    for name in ["web", "lb"] {
        farm.group(name).await;
    }
    farm.allow("web", tcp("80", "group:lb")).await;
    let web = farm.create("web-01", json!({ "groups": ["web"] })).await;
    let lb = farm.create("lb-01", json!({})).await;
    farm.report(&[&web, &lb]).await;
    farm.is("lb-01", "running").await;
    let members = || {
        let holding = farm.holding();
        let of = MembersOf::Group("lb".parse().unwrap());
        holding.members.get(&of).map(|all| all.len())
    };
    wait_for("the group is held", async || members()).await;
    assert_eq!(members(), Some(0));
    let path = "/v1/vms/lb-01/groups";
    let put = farm.must("POST", path, json!({ "add": ["lb"] })).await;
    assert_eq!(put["force"], json!({ "of": 1, "on": 1 }));
    assert_eq!(members(), Some(1));
    let pair = json!({ "add": [{ "prefix": "192.0.2.128/28" }] });
    let put = farm.must("POST", "/v1/vms/lb-01/address-pairs", pair).await;
    assert_eq!(put["pairs"], json!([{ "prefix": "192.0.2.128/28" }]));
    // What is behind it may be anybody: such a prefix is no member.
    assert_eq!(members(), Some(1));
    let bits = json!({ "add": [{ "prefix": "192.0.2.129/28" }] });
    let bits = farm
        .refused("POST", "/v1/vms/lb-01/address-pairs", Some(bits))
        .await;
    assert_eq!(bits.0, 400, "{bits:?}");

    let unknown = farm
        .refused("POST", path, Some(json!({ "add": ["wob"] })))
        .await;
    assert_eq!(
        unknown,
        (
            404,
            "there is no group `wob`; did you mean `web`?".to_owned()
        )
    );
    let used = farm.refused("DELETE", "/v1/groups/lb", None).await;
    assert_eq!(
        used,
        (
            409,
            "rules of web name the group `lb`; take those rules away first".to_owned()
        )
    );
    let used = farm.refused("DELETE", "/v1/groups/web", None).await;
    assert_eq!(
        used,
        (409, "a machine is in the group `web`: web-01; take them out first: muster vm group VM remove web".to_owned())
    );
    let out = farm.must("POST", path, json!({ "remove": ["lb"] })).await;
    assert_eq!(out["groups"], json!([]));
    assert_eq!(members(), Some(0));
    farm.must(
        "POST",
        "/v1/vms/web-01/groups",
        json!({ "remove": ["web"] }),
    )
    .await;
    assert_eq!((farm.held_rules("web"), members()), (0, None));
    for name in ["web", "lb"] {
        let (status, _) = farm
            .broker
            .call("DELETE", &format!("/v1/groups/{name}"), None)
            .await;
        assert_eq!(status, 204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_and_says_why() {
    let farm = Farm::start().await;
    farm.group("web").await;
    let rules = "/v1/groups/web/rules";
    for (rule, status, said) in [
        (tcp("0", "any"), 400, "`0` is not a port"),
        (tcp("70000", "any"), 400, "`70000` is not a port"),
        (tcp("90-80", "any"), 400, "the wrong way round; write 80-90"),
        (tcp("80", "192.0.2.7/24"), 400, "the prefix is 192.0.2.0/24"),
        (
            tcp("80", "group:wbe"),
            404,
            "there is no group `wbe`; did you mean `web`?",
        ),
        (
            tcp("80", "set:office"),
            404,
            "there is no address set `office`",
        ),
        (
            json!({ "direction": "ingress", "traffic": "icmp 8", "peer": "2001:db8::/32" }),
            400,
            "would never match",
        ),
        (
            json!({ "direction": "ingress", "traffic": "proto 47 80", "peer": "any" }),
            400,
            "has no ports",
        ),
        (
            json!({ "direction": "ingress", "traffic": "tcp 80", "peer": "any", "comment": "a\nb" }),
            400,
            "one line",
        ),
    ] {
        let (_, problem) = farm.broker.call("POST", rules, Some(rule.clone())).await;
        let text = problem.to_string();
        assert_eq!(problem["status"], status, "{rule}: {text}");
        let hint = problem["hint"].as_str().unwrap_or_default();
        let title = problem["title"].as_str().unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or_default();
        let all = format!("{title}; {hint} {detail}");
        assert!(all.contains(said), "{rule}: {all}");
    }
    // Nothing of it was done.
    let (_, web) = farm.broker.call("GET", "/v1/groups/web", None).await;
    assert_eq!((&web["version"], &web["count"]), (&json!(1), &json!(0)));
    let there = farm
        .refused("POST", "/v1/groups", Some(json!({ "name": "web" })))
        .await;
    assert_eq!(there.0, 409);
    let none = farm.refused("DELETE", "/v1/groups/web/rules/1", None).await;
    assert_eq!(none.0, 404, "{none:?}");
    let none = farm
        .refused("POST", "/v1/groups/web/rollback", Some(json!({ "to": 7 })))
        .await;
    assert_eq!(
        none,
        (
            404,
            "version 7 of `web` is not kept; there are 1 to 1: its history shows them".to_owned()
        )
    );
    // A group may name itself, and two each other.
    farm.group("lb").await;
    for (group, peer) in [
        ("web", "group:web"),
        ("web", "group:lb"),
        ("lb", "group:web"),
    ] {
        farm.allow(group, tcp("80", peer)).await;
    }

    let put = |all: Value| json!({ "prefixes": all });
    let path = "/v1/address-sets/office";
    let made = farm
        .must(
            "PUT",
            path,
            put(json!(["192.0.2.0/24", "192.0.2.7", "2001:db8::/48"])),
        )
        .await;
    assert_eq!(made["what"], "put: address set office, 2 prefixes");
    for (all, said) in [
        (json!(["192.0.2.1/24"]), "bits behind its prefix"),
        (json!(["group:web"]), "`group:web` is no prefix"),
        (json!(["any"]), "`any` is no prefix"),
    ] {
        let no = farm.refused("PUT", path, Some(put(all))).await;
        assert!(no.0 == 400 && no.1.contains(said), "{no:?}");
    }
    farm.allow("web", tcp("22", "set:office")).await;
    let named = farm.refused("DELETE", path, None).await;
    assert_eq!(named.0, 409, "{named:?}");
    let back = farm
        .refused("POST", &format!("{path}/rollback"), Some(json!({})))
        .await;
    assert_eq!(back.0, 404, "{back:?}");
    farm.must("PUT", path, put(json!(["198.51.100.0/24"])))
        .await;
    let back = farm
        .must("POST", &format!("{path}/rollback"), json!({}))
        .await;
    assert_eq!(back["version"], 3);
    let (_, set) = farm.broker.call("GET", path, None).await;
    assert_eq!(set["prefixes"], json!(["192.0.2.0/24", "2001:db8::/48"]));
    assert_eq!(set["named_by"], json!(["web"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_it_or_heard_nothing_is_told_again_and_alarms_come_once() {
    let farm = Farm::start().await;
    farm.group("web").await;
    let web = farm.create("web-01", json!({ "groups": ["web"] })).await;
    farm.report(&[&web]).await;
    farm.is("web-01", "running").await;
    let first = farm.allow("web", tcp("80", "any")).await;
    assert_eq!(first["force"], json!({ "of": 1, "on": 1 }));
    // The next one is lost on its way, and comes again.
    farm.node.log.lock().unwrap().deaf = 1;
    let lost = farm.allow("web", tcp("81", "any")).await;
    assert_eq!(lost["force"], json!({ "of": 1, "on": 1 }));
    assert_eq!(farm.held_rules("web"), 2);
    // What it holds is gone.
    farm.node.log.lock().unwrap().groups = None;
    farm.node
        .says(NodeSays::Groups, &GroupsAnswer::default())
        .await;
    wait_for("it is told everything", async || {
        (farm.held_rules("web") == 2).then_some(())
    })
    .await;
    let held = farm
        .node
        .log
        .lock()
        .unwrap()
        .groups
        .as_ref()
        .map(|(mark, _)| *mark);
    let repaired = GroupsAnswer {
        held,
        in_force: held,
        repaired: vec!["- tcp dport 80 accept".to_owned()],
        ..GroupsAnswer::default()
    };
    let wrong = GroupsAnswer {
        held,
        problem: Some("the sysctl is off".to_owned()),
        ..GroupsAnswer::default()
    };
    for _ in 0..2 {
        farm.node.says(NodeSays::Groups, &repaired).await;
    }
    for _ in 0..2 {
        farm.node.says(NodeSays::Groups, &wrong).await;
    }
    let good = GroupsAnswer {
        repaired: Vec::new(),
        ..repaired
    };
    farm.node.says(NodeSays::Groups, &good).await;
    let over = wait_for("the end is told", async || {
        let over = farm.events("firewall.in-force").await;
        (!over.is_empty()).then_some(over)
    })
    .await;
    assert_eq!(over, ["security groups of hv-1 are in force again"]);
    let repaired = farm.events("alarm.firewall-repaired").await;
    assert_eq!(
        repaired,
        [
            "somebody changed the firewall tables of hv-1; they are as they were. The difference was: - tcp dport 80 accept"
        ]
    );
    let wrong = farm.events("alarm.firewall-problem").await;
    assert_eq!(
        wrong,
        ["security groups of hv-1 are not as they should be: the sysctl is off"]
    );
}
