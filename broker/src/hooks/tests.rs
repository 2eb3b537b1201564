//! Webhooks over real HTTP, with a real store.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::verify::hmac;
use crate::nats::testing::TestServer;
use crate::testing::{TestBroker, config_for, state_for, wait_for};

const SECRET: &str = "correct horse battery";
const PUSH: &str = include_str!("fixtures/github-push.json");

fn write(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("hooks.toml");
    let new = dir.join("hooks.new");
    let mut file = std::fs::File::create(&new).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
    std::fs::rename(&new, &path).unwrap();
    path
}

async fn start(server: &TestServer, state: &Path, hooks: &Path) -> TestBroker {
    drop(state_for(server, state));
    let mut config = config_for(server, state);
    config.hooks_file = Some(hooks.to_owned());
    let mut broker = TestBroker::begin(config).await;
    broker.wait_active().await;
    let token = std::fs::read_to_string(state.join("admin.token")).unwrap();
    token.trim().clone_into(&mut broker.token);
    broker
}

/// A delivery as GitHub signs it; status and body of the answer.
async fn deliver(
    broker: &TestBroker,
    name: &str,
    id: &str,
    secret: &str,
    body: &str,
) -> (u16, Value) {
    let signature = HEXLOWER.encode(&hmac(secret.as_bytes(), &[body.as_bytes()]));
    let head = format!(
        "POST /hooks/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         X-GitHub-Event: push\r\nX-GitHub-Delivery: {id}\r\nX-Hub-Signature-256: sha256={signature}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (status, _, text) = broker.raw(head.as_bytes()).await;
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

async fn events(broker: &TestBroker, kind: &str) -> Vec<Value> {
    let path = format!("/v1/events?kind={kind}");
    let (status, page) = broker.call("GET", &path, None).await;
    assert_eq!(status, 200, "{page}");
    page["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_delivery_is_one_event_also_after_a_crash_and_replayed() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let text =
        format!("[hooks.github]\nkind = \"github\"\nsecret = \"{SECRET}\"\nrate = \"8/1h\"\n");
    let hooks = write(tmp.path(), &text);
    let broker = start(&server, &tmp.path().join("state"), &hooks).await;
    assert_eq!(deliver(&broker, "github", "g-1", SECRET, PUSH).await.0, 204);
    assert_eq!(deliver(&broker, "github", "g-1", SECRET, PUSH).await.0, 204);
    // The same signed bytes with an id that nobody signs.
    assert_eq!(deliver(&broker, "github", "g-2", SECRET, PUSH).await.0, 204);
    broker.crash().await;
    let broker = start(&server, &tmp.path().join("state"), &hooks).await;
    assert_eq!(deliver(&broker, "github", "g-1", SECRET, PUSH).await.0, 204);
    assert_eq!(deliver(&broker, "github", "g-3", SECRET, PUSH).await.0, 204);
    let found = events(&broker, "git.*").await;
    assert_eq!(found.len(), 1, "{found:?}");
    let event = &found[0];
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["source"], "/muster/hooks/github");
    assert_eq!(
        (&event["id"], &event["delivery"]),
        (&json!("g-1"), &json!("g-1"))
    );
    assert_eq!(event["data"]["commits"].as_array().unwrap().len(), 2);
    let (_, views) = broker.call("GET", "/v1/hooks", None).await;
    assert_eq!(views["items"][0]["repeated"], 2, "{views}");

    // An unknown name and a wrong signature cannot be told apart, neither by
    // what is in the head of the answer.
    let head = async |name: &str, id: &str| {
        let head = format!(
            "POST /hooks/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             X-GitHub-Event: push\r\nX-GitHub-Delivery: {id}\r\nX-Hub-Signature-256: sha256=00\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        let (status, head, body) = broker.raw(head.as_bytes()).await;
        let head: Vec<String> = head
            .lines()
            .filter(|line| !line.starts_with("date:"))
            .map(str::to_owned)
            .collect();
        (status, head, body)
    };
    let there = head("github", "g-8").await;
    assert_eq!(there.0, 403);
    assert_eq!(there, head("nobody", "g-8").await);
    let unknown = deliver(&broker, "nobody", "g-9", SECRET, PUSH).await;
    let wrong = deliver(&broker, "github", "g-9", "another secret", PUSH).await;
    let odd = deliver(&broker, "No%20name", "g-9", SECRET, PUSH).await;
    assert_eq!(unknown.0, 403);
    assert_eq!(unknown, wrong);
    assert_eq!(unknown, odd);
    let (_, views) = broker.call("GET", "/v1/hooks", None).await;
    assert_eq!(views["items"][0]["refused"], 2);
    assert!(
        views["items"][0]["last_refusal"]
            .as_str()
            .unwrap()
            .contains("X-Hub-Signature-256")
    );

    // What is signed and is nothing.
    let head = |body: &str, content: &str| {
        let signature = HEXLOWER.encode(&hmac(SECRET.as_bytes(), &[body.as_bytes()]));
        format!(
            "POST /hooks/github HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{content}X-GitHub-Event: push\r\n\
             X-Hub-Signature-256: sha256={signature}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let json_type = "Content-Type: application/json\r\n";
    let deep = "[".repeat(100_000);
    for (body, content, status) in [
        ("", json_type, 400),
        ("{", json_type, 400),
        (deep.as_str(), json_type, 400),
        ("{}", "Content-Type: text/plain\r\n", 415),
        ("{}", "", 415),
        ("{}", json_type, 400),
    ] {
        let (answered, _, text) = broker.raw(head(body, content).as_bytes()).await;
        // Its rate is used up in between.
        assert!(answered == status || answered == 429, "{answered} {text}");
        assert!(text.contains("urn:muster:problem:"), "{text}");
    }
    let limited = deliver(&broker, "github", "g-10", SECRET, PUSH).await;
    assert_eq!(limited.0, 429, "{limited:?}");
    // Too much is refused before it is read.
    let huge = "POST /hooks/github HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 104857600\r\n\r\n";
    assert_eq!(broker.raw(huge.as_bytes()).await.0, 413);
    // And a GET does nothing.
    assert_eq!(broker.send("GET", "/hooks/github", None, None).await.0, 405);
    broker.stop().await;
}

#[tokio::test]
async fn events_are_put_in_once_and_never_as_musters_own() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    drop(state_for(&server, tmp.path()));
    let broker = TestBroker::start(&server, tmp.path()).await;
    let event = |id: &str, kind: &str| json!({ "specversion": "1.0", "id": id, "source": "https://ci.example.org", "type": kind, "data": { "text": "hello" } });
    let (status, first) = broker
        .call("POST", "/v1/events", Some(event("1", "build.finished")))
        .await;
    assert_eq!(
        (status, &first["events"][0]["duplicate"]),
        (200, &json!(false)),
        "{first}"
    );
    let both = json!([event("1", "build.finished"), event("2", "org.example.done")]);
    let (status, second) = broker.call("POST", "/v1/events", Some(both)).await;
    assert_eq!(status, 200, "{second}");
    assert_eq!(second["events"][0]["duplicate"], true);
    assert_eq!(second["events"][1]["duplicate"], false);
    for bad in [
        event("3", "alarm.cloned-node"),
        event("3", "node.up"),
        event("", "a.b"),
        json!({ "specversion": "1.0", "id": "3", "source": "/muster/hooks/x", "type": "git.push" }),
        json!({ "id": "3", "source": "/x", "type": "git.push" }),
        json!({ "kind": "git.push", "at": "2026-11-21T10:00:00Z" }),
        json!([]),
        json!("x"),
    ] {
        let (status, answer) = broker.call("POST", "/v1/events", Some(bad.clone())).await;
        assert_eq!(status, 400, "{bad} {answer}");
    }
    let found = events(&broker, "build.*,org.*").await;
    assert_eq!(found.len(), 2);
    assert_eq!(found[0]["principal"], "admin");
    // Another content type.
    let request = format!(
        "POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\nContent-Length: 2\r\n\r\n{{}}",
        broker.token
    );
    assert_eq!(broker.raw(request.as_bytes()).await.0, 415);
    broker.stop().await;
}

#[tokio::test]
async fn a_new_file_is_read_and_a_wrong_one_changes_nothing() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let hook = |name: &str| format!("[hooks.{name}]\nkind = \"github\"\nsecret = \"{SECRET}\"\n");
    let path = write(tmp.path(), &hook("one"));
    let broker = start(&server, &tmp.path().join("state"), &path).await;
    assert_eq!(deliver(&broker, "one", "1", SECRET, PUSH).await.0, 204);
    write(
        tmp.path(),
        "[hooks.one]\nkind = \"github\"\nsecret = \"\"\n",
    );
    wait_for("the mistake is told", async || {
        (!events(&broker, "alarm.hooks-file").await.is_empty()).then_some(())
    })
    .await;
    assert_eq!(deliver(&broker, "one", "2", SECRET, PUSH).await.0, 204);
    write(tmp.path(), &hook("two"));
    wait_for("the new file is in force", async || {
        (deliver(&broker, "two", "3", SECRET, PUSH).await.0 == 204).then_some(())
    })
    .await;
    assert_eq!(deliver(&broker, "one", "4", SECRET, PUSH).await.0, 403);
    broker.stop().await;
    // A broker does not begin with a wrong one.
    write(
        tmp.path(),
        "[hooks.one]\nkind = \"github\"\nsecret = \"\"\n",
    );
    let mut config = config_for(&server, &tmp.path().join("state"));
    config.hooks_file = Some(path);
    let ended = TestBroker::begin(config).await.ended().await;
    assert!(ended.unwrap_err().to_string().contains("`secret` is empty"));
}

#[tokio::test]
async fn a_trigger_runs_once_for_an_event_and_says_why_it_does_not() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let text = format!(
        r#"
        [hooks.github]
        kind = "github"
        secret = "{SECRET}"
        [triggers.unknown]
        when = {{ kind = "git.push", hook = "github" }}
        scenario = "deploy"
        params = {{ commit = "$.head_commit.id" }}
        role = "operator"
        [triggers.denied]
        when = {{ kind = "git.push", hook = "github" }}
        scenario = "command"
        on = "*"
        params = {{ argv = ["true"] }}
        [triggers.missing]
        when = {{ kind = "git.push", hook = "github" }}
        scenario = "deploy"
        params = {{ x = "$.nothing.there" }}
        "#
    );
    let hooks = write(tmp.path(), &text);
    let broker = start(&server, &tmp.path().join("state"), &hooks).await;
    let node = crate::testing::TestNode::new();
    let token = broker.invite(json!({ "name": "web-01" })).await;
    node.enroll(&broker, &token).await;
    assert_eq!(deliver(&broker, "github", "g-1", SECRET, PUSH).await.0, 204);
    let refused = wait_for("all of them are refused", async || {
        let found = events(&broker, "alarm.trigger-refused").await;
        (found.len() == 3).then_some(found)
    })
    .await;
    let why = |name: &str| {
        let event = refused
            .iter()
            .find(|event| event["subject"] == name)
            .unwrap();
        event["data"]["why"].as_str().unwrap().to_owned()
    };
    assert!(why("unknown").contains("deploy"), "{}", why("unknown"));
    assert!(
        why("denied").contains("trigger:denied (member) may not run"),
        "{}",
        why("denied")
    );
    assert_eq!(
        why("missing"),
        "parameter `x`: the event has nothing at $.nothing.there"
    );
    // It would say the same beforehand, and the event is there.
    let test = json!({ "headers": { "X-GitHub-Event": "push" }, "body": PUSH });
    let (status, tested) = broker
        .call("POST", "/v1/hooks/github/test", Some(test))
        .await;
    assert_eq!(status, 200, "{tested}");
    let tested = &tested["items"][0];
    assert_eq!(tested["event"]["type"], "git.push");
    for trigger in tested["triggers"].as_array().unwrap() {
        let name = trigger["name"].as_str().unwrap();
        assert_eq!(trigger["problem"].as_str().unwrap(), why(name), "{name}");
    }
    let (_, triggers) = broker.call("GET", "/v1/triggers", None).await;
    assert!(
        triggers["items"][0]["last"]["problem"].is_string(),
        "{triggers}"
    );
    assert_eq!(events(&broker, "git.push").await.len(), 1);
    broker.stop().await;
}

#[tokio::test]
async fn a_delivery_signed_at_another_time_is_refused_and_one_that_is_replayed_does_nothing() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let text = format!("[hooks.release]\nkind = \"generic\"\nsecret = \"{SECRET}\"\n");
    let hooks = write(tmp.path(), &text);
    let broker = start(&server, &tmp.path().join("state"), &hooks).await;
    let now = muster_protocol::units::Timestamp::now().as_second();
    let body = r#"{"version":"1.4.2","text":"1.4.2 is released"}"#;
    let send = async |at: i64| {
        let at = at.to_string();
        let mac = hmac(SECRET.as_bytes(), &[at.as_bytes(), b".", body.as_bytes()]);
        let head = format!(
            "POST /hooks/release HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             X-Muster-Timestamp: {at}\r\nX-Muster-Signature: sha256={}\r\nContent-Length: {}\r\n\r\n{body}",
            HEXLOWER.encode(&mac),
            body.len()
        );
        broker.raw(head.as_bytes()).await.0
    };
    assert_eq!(send(now - 3_600).await, 403);
    assert_eq!(send(now + 3_600).await, 403);
    let (_, views) = broker.call("GET", "/v1/hooks", None).await;
    let why = views["items"][0]["last_refusal"].as_str().unwrap();
    assert!(
        why.contains("clock") || why.contains("3600") || why.contains("1h"),
        "{why}"
    );
    assert_eq!(events(&broker, "hook.received").await.len(), 0);
    assert_eq!(send(now).await, 204);
    assert_eq!(send(now).await, 204);
    assert_eq!(events(&broker, "hook.received").await.len(), 1);
    broker.stop().await;
}

#[tokio::test]
async fn a_trigger_whose_scenario_is_gone_keeps_the_event_and_says_so() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let text = format!(
        r#"
        [hooks.github]
        kind = "github"
        secret = "{SECRET}"
        [triggers.deploy]
        when = {{ kind = "git.push", hook = "github" }}
        scenario = "deploy"
        role = "operator"
        [triggers.elsewhere]
        when = {{ kind = "git.push", hook = "github", data.ref = "refs/heads/other" }}
        scenario = "deploy"
        role = "operator"
        [triggers.nobody]
        when = {{ kind = "git.push", hook = "github" }}
        scenario = "deploy"
        on = "role=db"
        role = "operator"
        [triggers.stranger]
        when = {{ kind = "git.push", hook = "github" }}
        scenario = "deploy"
        "#
    );
    let hooks = write(tmp.path(), &text);
    let broker = start(&server, &tmp.path().join("state"), &hooks).await;
    let node = crate::testing::TestNode::new();
    let token = broker
        .invite(json!({ "name": "web-01", "roles": ["web"] }))
        .await;
    node.enroll(&broker, &token).await;
    let db = crate::testing::TestNode::new();
    let token = broker
        .invite(json!({ "name": "db-01", "roles": ["db"] }))
        .await;
    db.enroll(&broker, &token).await;
    let script =
        json!({ "script": "scenario(\"Deploy\");\ntarget(\"role=web\");\nfn run(p) {}\n" });
    let (status, stored) = broker
        .call("PUT", "/v1/scenarios/deploy", Some(script))
        .await;
    assert_eq!(status, 200, "{stored}");
    let test = json!({ "headers": { "X-GitHub-Event": "push" }, "body": PUSH });
    let tested = async |name: &str| {
        let (status, tested) = broker
            .call("POST", "/v1/hooks/github/test", Some(test.clone()))
            .await;
        assert_eq!(status, 200, "{tested}");
        let triggers = tested["items"][0]["triggers"].as_array().unwrap();
        triggers
            .iter()
            .find(|trigger| trigger["name"] == name)
            .unwrap()
            .clone()
    };
    // Nodes that never said what their agent can do cannot run scenarios.
    let deploy = tested("deploy").await;
    assert_eq!(
        (&deploy["nodes"], &deploy["allowed"]),
        (&json!(1), &json!(true)),
        "{deploy}"
    );
    let elsewhere = tested("elsewhere").await;
    let unfit = elsewhere["unfit"].as_str().unwrap();
    assert!(unfit.ends_with("not \"refs/heads/other\""), "{unfit}");
    assert!(elsewhere["nodes"].is_null());
    let nobody = tested("nobody").await;
    assert!(
        nobody["nodes"].is_null() && nobody["problem"].is_string(),
        "{nobody}"
    );
    let stranger = tested("stranger").await;
    assert_eq!(
        (&stranger["nodes"], &stranger["allowed"]),
        (&json!(1), &json!(false)),
        "{stranger}"
    );

    let (status, gone) = broker.call("DELETE", "/v1/scenarios/deploy", None).await;
    assert_eq!(status, 200, "{gone}");
    assert_eq!(deliver(&broker, "github", "g-1", SECRET, PUSH).await.0, 204);
    let refused = wait_for("all three are refused", async || {
        let found = events(&broker, "alarm.trigger-refused").await;
        (found.len() == 3).then_some(found)
    })
    .await;
    for event in &refused {
        let why = event["data"]["why"].as_str().unwrap();
        assert!(why.contains("deploy"), "{why}");
    }
    assert_eq!(events(&broker, "git.push").await.len(), 1);
    let (_, triggers) = broker.call("GET", "/v1/triggers", None).await;
    for trigger in triggers["items"].as_array().unwrap() {
        let told = trigger["last"]["problem"].is_string();
        assert_eq!(told, trigger["name"] != "elsewhere", "{trigger}");
    }
    let deploy = tested("deploy").await;
    assert!(
        deploy["problem"].is_string() && deploy["nodes"].is_null(),
        "{deploy}"
    );
    broker.stop().await;
}
