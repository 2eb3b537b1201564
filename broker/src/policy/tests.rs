//! Policies as they are stored, with a real NATS server and real HTTP.

use std::sync::Arc;

use muster_protocol::api::{PolicyFiles, Role};
use muster_protocol::envelope::Door;
use muster_protocol::origin::Origin;
use serde_json::{Value, json};

use super::*;
use crate::authz::cedar::STOCK;
use crate::authz::{Guard, RunAsk};
use crate::inventory::Snapshot;
use crate::nats::testing::TestServer;
use crate::store::kv::{BucketConfig, ensure_bucket};
use crate::testing::{TestBroker, TestNode, config_for, state_for};

const READERS: &str = r#"
@id("developers.read")
permit (principal in Group::"developers", action in Action::"read", resource);
"#;

const PRINCIPALS: &str = r#"
[groups.developers]
[principals.dev-ci]
kind = "ci"
groups = ["developers"]
"#;

fn files(policies: &str) -> Value {
    json!({ "policies": policies, "principals": PRINCIPALS })
}

async fn put(broker: &TestBroker, policies: &str, more: Value) -> (u16, Value) {
    let mut body = json!({ "files": files(policies) });
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    broker.call("PUT", "/v1/policy", Some(body)).await
}

async fn token(broker: &TestBroker, name: &str, role: &str) -> String {
    let body = json!({ "for": name, "role": role });
    let (status, made) = broker.call("POST", "/v1/tokens", Some(body)).await;
    assert!(status < 300, "{made}");
    made["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_counts_from_the_next_request_and_over_restarts() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let (status, shown) = broker.call("GET", "/v1/policy", None).await;
    assert_eq!((status, &shown["version"]), (200, &json!(0)), "{shown}");
    assert_eq!(shown["files"]["policies"], STOCK);

    let member = token(&broker, "dev-ci", "member").await;
    let nodes = async |broker: &TestBroker| {
        let asked = broker.send("GET", "/v1/nodes", Some(&member), None);
        asked.await
    };
    let (status, denied) = nodes(&broker).await;
    assert_eq!(status, 403, "{denied}");
    assert_eq!(
        denied["title"],
        "dev-ci (member) may not read nodes: no policy permits it"
    );
    let ours = format!("{STOCK}{READERS}");
    let (status, stored) = put(&broker, &ours, json!({ "note": "developers look" })).await;
    assert_eq!((status, &stored["version"]), (200, &json!(1)), "{stored}");
    assert_eq!(nodes(&broker).await.0, 200);
    // The same again is the same; on top of what was is refused.
    let (_, again) = put(&broker, &ours, json!({})).await;
    assert_eq!(
        (&again["version"], &again["new"]),
        (&json!(1), &json!(false))
    );
    let (status, late) = put(&broker, STOCK, json!({ "expect": 0 })).await;
    assert_eq!(status, 409, "{late}");
    // With a mistake nothing is stored, and all mistakes are told.
    let bad = format!(
        "{STOCK}permit (principal in Group::\"nobody\", action == Action::\"rnu\", resource);"
    );
    let (status, refused) = put(&broker, &bad, json!({})).await;
    assert_eq!(status, 400, "{refused}");
    let detail = refused["detail"].as_str().unwrap();
    assert!(
        detail.contains("nobody") && detail.contains("rnu"),
        "{detail}"
    );
    // Nobody could take that back.
    let (status, locks) = put(&broker, READERS, json!({})).await;
    assert_eq!(status, 409, "{locks}");
    assert_eq!(nodes(&broker).await.0, 200);

    let (_, history) = broker.call("GET", "/v1/policy/history", None).await;
    let versions: Vec<_> = history["items"].as_array().unwrap().iter().collect();
    assert_eq!(versions.len(), 2, "{history}");
    assert_eq!(versions[0]["note"], "developers look");
    assert_eq!(
        broker.call("GET", "/v1/policy?version=7", None).await.0,
        404
    );
    let (_, principals) = broker.call("GET", "/v1/principals", None).await;
    assert!(
        principals.to_string().contains(r#""kind":"ci""#),
        "{principals}"
    );

    broker.stop().await;
    let broker = TestBroker::start(&server, tmp.path()).await;
    assert_eq!(nodes(&broker).await.0, 200);

    // Locked out by force: root on the machine has the way out.
    let (status, forced) = put(&broker, READERS, json!({ "force": true })).await;
    assert_eq!((status, &forced["version"]), (200, &json!(2)), "{forced}");
    assert_eq!(broker.call("GET", "/v1/policy", None).await.0, 403);
    assert_eq!(put(&broker, STOCK, json!({})).await.0, 403);
    broker.stop().await;
    std::fs::write(tmp.path().join(RESET_FILE), b"").unwrap();
    let broker = TestBroker::start(&server, tmp.path()).await;
    let (status, shown) = broker.call("GET", "/v1/policy", None).await;
    assert_eq!((status, &shown["version"]), (200, &json!(3)), "{shown}");
    assert_eq!(shown["by"], "root");
    assert!(!tmp.path().join(RESET_FILE).exists());
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_cannot_use_its_policies_does_not_start_and_says_why() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    TestBroker::start(&server, tmp.path()).await.stop().await;
    let js = crate::store::context(Box::pin(server.broker()).await);
    let bucket: Kv<Value> = ensure_bucket(&js, BucketConfig::new("muster_policy"))
        .await
        .unwrap();
    let newer = json!({
        "files": { "policies": "permit (principal, action == Action::\"teleport\", resource);" },
        "by": "ana", "at": "2026-11-21T10:00:00Z",
    });
    for value in [newer, json!({ "odd": true })] {
        let version = bucket.keys().await.unwrap().len() + 1;
        bucket.create(&format!("v{version}"), &value).await.unwrap();
        let broker = TestBroker::begin(config_for(&server, tmp.path())).await;
        let error = broker.ended().await.expect_err("it ends");
        let mut said = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            said.push_str(&inner.to_string());
            source = inner.source();
        }
        assert!(
            said.contains(&format!("version {version} of the policies")),
            "{said}"
        );
        assert!(said.contains("muster policy reset"), "{said}");
    }
    std::fs::write(tmp.path().join(RESET_FILE), b"").unwrap();
    let broker = TestBroker::start(&server, tmp.path()).await;
    assert_eq!(broker.call("GET", "/v1/policy", None).await.0, 200);
    broker.stop().await;
}

/// What documents say, over everything that can be asked.
const DOCUMENTS: [&str; 3] = [
    "",
    r#"
    permit (principal in Role::"member", action in [Action::"read", Action::"change"], resource)
    when { context.door == "cli" };
    forbid (principal in Role::"operator", action, resource) when { context.door == "hook" };
    "#,
    r#"
    permit (principal == Principal::"dev-ci", action == Action::"run", resource)
    when { resource.roles.contains("web") && context.hour < 25 };
    forbid (principal, action == Action::"run", resource) when { context.door == "schedule" };
    permit (principal in Group::"developers", action == Action::"ping", resource);
    "#,
];

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_what_the_guard_does_of_every_action_door_and_role() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let machine = TestNode::new();
    let body = json!({ "name": "web-01", "roles": ["web"] });
    let joined = machine.enroll(&broker, &broker.invite(body).await).await;
    let serial = joined.credentials.serial;
    let nodes = Arc::new(Snapshot::new([crate::authz::cedar::testing::node(
        serial.0,
        &["web"],
        &[],
        &json!({}),
    )]));
    for more in DOCUMENTS {
        let text = format!("{STOCK}{more}");
        let (status, stored) = put(&broker, &text, json!({})).await;
        assert_eq!(status, 200, "{stored}");
        let document = check(&PolicyFiles {
            policies: text,
            principals: PRINCIPALS.to_owned(),
        });
        let snapshot = Arc::clone(&nodes);
        let force = InForce::over(document.unwrap().document, move || Arc::clone(&snapshot));
        let guard = Guard::new(Arc::new(force));
        for action in Action::examples() {
            for role in Role::ALL {
                for door in [Door::Cli, Door::Http, Door::Schedule, Door::Hook] {
                    let mut asked = json!({
                        "principal": "dev-ci", "role": role, "action": action.name(), "door": door,
                    });
                    let action = match &action {
                        Action::CreateRun(_) => {
                            asked["scenario"] = json!("command");
                            asked["predicate"] = json!("role=web");
                            asked["params"] = json!({ "argv": ["true"] });
                            let mut run = RunAsk::named("command".parse().unwrap(), true);
                            run.params = asked["params"].clone();
                            run.sets[0].nodes = [serial].into_iter().collect();
                            run.sets[0].size = 1;
                            run.size = 1;
                            Action::CreateRun(Box::new(run))
                        }
                        other => other.clone(),
                    };
                    let caller = Caller {
                        principal: "dev-ci".parse().unwrap(),
                        role,
                        token: "t".into(),
                        door,
                        origin: Origin::Unknown,
                    };
                    let enforced = guard.authorize(&caller, action.clone(), ()).await.is_ok();
                    let path = "/v1/policy/explain";
                    let (status, said) = broker.call("POST", path, Some(asked)).await;
                    assert_eq!(status, 200, "{said}");
                    assert_eq!(
                        said["allowed"],
                        enforced,
                        "{} {role} {door} under {more}: {said}",
                        action.name()
                    );
                }
            }
        }
        // And what the routes do is what is explained.
        for role in Role::ALL {
            let token = token(&broker, "dev-ci", role.as_str()).await;
            for (name, path) in ROUTES {
                let asked = json!({
                    "principal": "dev-ci", "role": role, "action": name, "door": "http",
                });
                let (_, said) = broker.call("POST", "/v1/policy/explain", Some(asked)).await;
                let (status, answer) = broker.send("GET", path, Some(&token), None).await;
                assert_eq!(said["allowed"], status != 403, "{path} {role}: {answer}");
            }
        }
    }
    broker.stop().await;
}

/// Routes that only read, by what they ask for.
const ROUTES: [(&str, &str); 9] = [
    ("read-nodes", "/v1/nodes"),
    ("read-runs", "/v1/runs"),
    ("read-keys", "/v1/keys"),
    ("read-releases", "/v1/releases"),
    ("read-scenarios", "/v1/scenarios"),
    ("read-schedules", "/v1/schedules"),
    ("read-policies", "/v1/policy"),
    ("read-status", "/v1/status"),
    ("who-am-i", "/v1/whoami"),
];
