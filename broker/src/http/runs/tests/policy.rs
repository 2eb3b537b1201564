//! Runs under policies of the cluster's own.

use super::*;
use crate::authz::cedar::STOCK;

const PRINCIPALS: &str = r#"
[groups.developers]
[principals.dev-ci]
kind = "ci"
groups = ["developers"]
"#;

const DEVELOPERS: &str = r#"
permit (principal in Group::"developers", action in Action::"read", resource);
@id("deploy")
permit (principal in Group::"developers", action == Action::"run", resource)
when { resource.roles.contains("web") };
"#;

impl World {
    async fn policies(&self, more: &str) {
        let files = json!({ "policies": format!("{STOCK}{more}"), "principals": PRINCIPALS });
        let body = json!({ "files": files });
        let (status, stored) = self.broker.call("PUT", "/v1/policy", Some(body)).await;
        assert_eq!(status, 200, "{stored}");
    }

    pub(super) async fn bearer(&self, name: &str, role: &str) -> String {
        let body = json!({ "for": name, "role": role });
        let (_, made) = self.post("/v1/tokens", body).await;
        made["token"].as_str().unwrap().to_owned()
    }

    async fn asked(&self, token: &str, predicate: &str) -> (u16, Value) {
        let body = json!({
            "scenario": "command", "predicate": predicate, "params": { "argv": ["true"] },
            "confirm": "yes",
        });
        let asked = self
            .broker
            .send("POST", "/v1/runs", Some(token), Some(body));
        asked.await
    }

    async fn approve(&self, token: &str, run: &Value) -> (u16, Value) {
        let path = format!("/v1/runs/{}/approve", run["id"].as_str().unwrap());
        self.broker.send("POST", &path, Some(token), None).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_touches_one_node_too_many_is_denied_whole() {
    let world = World::new(&["web-01", "web-02"], 10).await;
    let db = TestNode::new();
    let body = json!({ "name": "db-01", "roles": ["db"] });
    db.enroll(&world.broker, &world.broker.invite(body).await)
        .await;
    world.policies(DEVELOPERS).await;
    let token = world.bearer("dev-ci", "member").await;

    let (status, run) = world.asked(&token, "role=web").await;
    assert_eq!(status, 200, "{run}");
    assert_eq!(world.ended(&run).await["state"], "succeeded");
    let (status, denied) = world.asked(&token, "role=web or role=db").await;
    assert_eq!(status, 403, "{denied}");
    assert_eq!(
        denied["title"],
        "dev-ci (ci) may not run command on nodes with role=db (set targets): no policy permits it"
    );
    let (_, runs) = world.broker.call("GET", "/v1/runs", None).await;
    assert_eq!(runs["items"].as_array().unwrap().len(), 1, "{runs}");
    // The next request is judged by what is put now.
    world.policies("").await;
    assert_eq!(world.asked(&token, "role=web").await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_asks_for_approvals_through_its_doors() {
    let world = World::new(&["web-01"], 10).await;
    let policies = |door: &str| {
        format!(
            "{}\n@approvals(\"1\") @approve_through(\"{door}\")\n{}",
            r#"permit (principal in Group::"developers", action in Action::"read", resource);"#,
            r#"permit (principal in Group::"developers", action == Action::"run", resource);"#
        )
    };
    let token = world.bearer("dev-ci", "member").await;
    let eve = world.bearer("eve", "operator").await;
    world.policies(&policies("cli")).await;
    let (status, run) = world.asked(&token, "role=web").await;
    assert_eq!(status, 200, "{run}");
    assert_eq!(run["waits"]["for"], "approvals", "{run}");
    assert_eq!(run["waits"]["through"], json!(["cli"]), "{run}");
    let (status, denied) = world.approve(&eve, &run).await;
    assert_eq!(status, 403, "{denied}");
    assert!(
        denied["title"]
            .as_str()
            .unwrap()
            .contains("through cli only"),
        "{denied}"
    );

    world.policies(&policies("http")).await;
    let (_, run) = world.asked(&token, "role=web").await;
    let (status, own) = world.approve(&token, &run).await;
    assert_eq!(status, 403, "{own}");
    let (status, given) = world.approve(&eve, &run).await;
    assert_eq!(status, 200, "{given}");
    assert_eq!(world.ended(&run).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_of_a_main_are_judged_by_what_is_in_force_then() {
    let world = World::new(&["web-01"], 10).await;
    let script = r#"
        scenario("Asks, then acts");
        target("role=web");
        fn act(p) { }
        fn main(p) { ask("go on?"); on(targets(), "act"); }
    "#;
    let put = json!({ "script": script });
    let (status, stored) = world
        .broker
        .call("PUT", "/v1/scenarios/careful", Some(put))
        .await;
    assert_eq!(status, 200, "{stored}");
    world.policies(DEVELOPERS).await;
    let token = world.bearer("dev-ci", "member").await;
    let mut ends = Vec::new();
    for later in [DEVELOPERS, ""] {
        world.policies(DEVELOPERS).await;
        let body = json!({ "scenario": "careful", "confirm": "yes" });
        let asked = world
            .broker
            .send("POST", "/v1/runs", Some(&token), Some(body));
        let (status, run) = asked.await;
        assert_eq!(status, 200, "{run}");
        let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
        wait_for("it asks", async || {
            let (_, run) = world.broker.call("GET", &path, None).await;
            (run["waits"]["for"] == "answer").then_some(())
        })
        .await;
        world.policies(later).await;
        let answer = json!({ "text": "yes" });
        let (status, answered) = world.post(&format!("{path}/answer"), answer).await;
        assert_eq!(status, 200, "{answered}");
        let ended = world.ended(&run).await;
        ends.push((ended["state"].clone(), ended.to_string()));
    }
    assert_eq!(ends[0].0, "succeeded", "{}", ends[0].1);
    assert_ne!(ends[1].0, "succeeded", "{}", ends[1].1);
    assert!(ends[1].1.contains("no policy permits it"), "{}", ends[1].1);
}
