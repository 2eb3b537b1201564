//! What is in force over restarts, over stores that went back, and against
//! nodes that know better.

use serde_json::{Value, json};

use super::*;
use crate::authz::cedar::STOCK;
use crate::nats::testing::TestServer;
use crate::store::kv::{BucketConfig, ensure_bucket};
use crate::testing::{TestBroker, state_for, wait_for};

fn ana() -> PrincipalName {
    "ana".parse().unwrap()
}

fn web() -> NodeName {
    "web-01".parse().unwrap()
}

/// A freezer with a bucket of its own.
struct Lab {
    server: TestServer,
    authority: Authority,
}

impl Lab {
    async fn start() -> Self {
        let (_, authority) = Authority::in_memory();
        Self {
            server: TestServer::start().await,
            authority,
        }
    }

    async fn bucket(&self) -> Kv<FreezeValue> {
        let js = crate::store::context(Box::pin(self.server.broker()).await);
        let config = BucketConfig::new("muster_cluster");
        Box::pin(ensure_bucket(&js, config)).await.unwrap()
    }

    /// As a broker that begins.
    async fn load(&self) -> Freezer {
        let (lease, events) = (Lease::fixed(1), Events::log_only());
        Freezer::load(self.bucket().await, self.authority.clone(), lease, events)
            .await
            .unwrap()
    }

    /// What a node says that it holds.
    fn mark(&self, freeze: &Freeze) -> FreezeMark {
        FreezeMark {
            revision: freeze.revision,
            held: Some(freeze.sign(&self.authority.signer().key)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_rise_and_another_broker_goes_on_with_them() {
    let lab = Lab::start().await;
    let one = lab.load().await;
    assert_eq!(one.frozen(), None);
    assert!(matches!(
        one.thaw(&ana(), "").await,
        Err(FreezerError::Already(_))
    ));
    for why in ["", " \n ", &"x".repeat(MAX_WHY + 1)] {
        assert!(matches!(
            one.freeze(&ana(), why).await,
            Err(FreezerError::Why)
        ));
    }
    let first = one.freeze(&ana(), " the switch ").await.unwrap();
    assert_eq!((first.revision, first.why.as_str()), (1, "the switch"));
    assert_eq!(one.frozen().as_ref(), Some(&first));
    let error = one.freeze(&ana(), "again").await.unwrap_err();
    assert!(
        error.to_string().contains("frozen by ana: the switch"),
        "{error}"
    );
    // A broker that takes over finds it, and counts on.
    let two = lab.load().await;
    assert_eq!(two.frozen().as_ref(), Some(&first));
    let over = two.thaw(&ana(), "").await.unwrap();
    assert_eq!((over.revision, over.frozen), (2, false));
    // The one that does not know it yet changes nothing.
    let late = one.thaw(&ana(), "").await.unwrap_err();
    assert!(matches!(late, FreezerError::Store(_)), "{late}");
    assert_eq!(lab.load().await.now(), over);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_knows_better_is_in_force_again() {
    let lab = Lab::start().await;
    let broker = lab.load().await;
    let old = broker.freeze(&ana(), "the switch").await.unwrap();
    let said = |revision, frozen, at| Freeze {
        revision,
        frozen,
        why: "of before".to_owned(),
        at,
        ..old.clone()
    };
    let later = Timestamp::now();
    let greet = async |mark: &FreezeMark| {
        broker.greeted(Serial(1), &web(), Some(mark)).await;
        broker.now()
    };
    // By nobody's key, and of another cluster.
    let mut forged = lab.mark(&said(9, false, later));
    let stranger = muster_protocol::keys::PrivateKey::generate();
    forged.held = Some(said(9, false, later).sign(&stranger));
    assert_eq!(greet(&forged).await, old);
    let other = Freeze {
        cluster: muster_protocol::ids::ClusterId::random(),
        ..said(9, false, later)
    };
    assert_eq!(greet(&lab.mark(&other)).await, old);
    // Higher and later: that is what it was.
    assert_eq!(
        greet(&lab.mark(&said(5, false, later))).await,
        said(5, false, later)
    );
    assert_eq!(lab.load().await.now(), said(5, false, later));
    // Higher, and earlier than what was said here since: both did not know of
    // each other. What stops counts, above both.
    let again = broker.freeze(&ana(), "the router").await.unwrap();
    let thawed = said(20, false, old.at);
    let now = greet(&lab.mark(&thawed)).await;
    assert_eq!(
        (now.revision, now.frozen, now.why.as_str()),
        (21, true, "the router")
    );
    assert_eq!(now.at, again.at);
    // Nodes take it: it is above what they hold.
    let signed = broker.signed().unwrap();
    let keys = lab.authority.list();
    assert_eq!(
        Freeze::successor(&signed, &keys, Some(&thawed)),
        Ok(now.clone())
    );
    assert_eq!(greet(&lab.mark(&now)).await, now);
}

#[test]
fn of_two_that_do_not_know_of_each_other_the_one_that_stops_counts() {
    let (_, authority) = Authority::in_memory();
    let of = |revision, frozen, second| Freeze {
        revision,
        frozen,
        at: Timestamp::from_second(second).unwrap(),
        ..nothing(&authority)
    };
    let both = |a: &Freeze, b: &Freeze| {
        let one = reconciled(a.clone(), b.clone());
        assert_eq!(reconciled(b.clone(), a.clone()), one);
        (one.revision, one.frozen, one.at.as_second())
    };
    assert_eq!(both(&of(3, true, 10), &of(3, true, 10)), (3, true, 10));
    assert_eq!(both(&of(3, true, 10), &of(4, false, 20)), (4, false, 20));
    assert_eq!(both(&of(5, false, 10), &of(4, true, 20)), (6, true, 20));
    assert_eq!(both(&of(5, true, 10), &of(4, false, 20)), (6, true, 10));
    assert_eq!(both(&of(4, true, 10), &of(4, false, 20)), (5, true, 10));
    assert_eq!(both(&of(4, true, 10), &of(4, true, 20)), (5, true, 20));
}

fn run() -> Value {
    json!({
        "predicate": "role=web", "scenario": "command", "params": { "argv": ["true"] },
        "confirm": "yes", "deliver_within": "1s",
    })
}

async fn freeze(broker: &TestBroker) -> Value {
    let why = json!({ "why": "the switch" });
    let (status, said) = broker.call("POST", "/v1/freeze", Some(why)).await;
    assert_eq!(status, 200, "{said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_refuses_runs_shows_what_waits_and_stays_so() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    let invite = json!({ "name": "web-01", "roles": ["web"] });
    let invite = broker.invite(invite).await;
    crate::testing::TestNode::new()
        .enroll(&broker, &invite)
        .await;
    // Its window is years away: it waits for its turn, to which a freeze is
    // one more reason; another one waits for a person, who can still come.
    let script = |more: &str| {
        let script =
            format!("scenario(\"x\");\ntarget(\"role=web\");\n{more}\nfn run(p) {{ log(\"x\"); }}");
        json!({ "script": script })
    };
    let mut waits = Vec::new();
    for (name, more) in [
        ("later", "window(\"0 0 29 2 *\");"),
        ("four-eyes", "approvals(1);"),
    ] {
        let path = format!("/v1/scenarios/{name}");
        let (status, said) = broker.call("PUT", &path, Some(script(more))).await;
        assert_eq!(status, 200, "{said}");
        let ask = json!({ "scenario": name, "confirm": "yes" });
        let (status, said) = broker.call("POST", "/v1/runs", Some(ask)).await;
        assert_eq!(status, 200, "{said}");
        waits.push(said["id"].as_str().unwrap().to_owned());
    }
    let listed = async |broker: &TestBroker, id: &str| {
        let (_, all) = broker.call("GET", "/v1/runs", None).await;
        let all = all["items"].as_array().unwrap().clone();
        let of = |run: &&Value| run["id"] == id;
        all.iter().find(of).unwrap()["waits"]["for"].clone()
    };
    assert_eq!(listed(&broker, &waits[0]).await, "turn");
    let view = freeze(&broker).await;
    assert_eq!(
        (&view["revision"], &view["away"]),
        (&json!(1), &json!(1)),
        "{view}"
    );
    assert_eq!(listed(&broker, &waits[0]).await, "frozen");
    assert_eq!(listed(&broker, &waits[1]).await, "approvals");
    let (_, shown) = broker
        .call("GET", &format!("/v1/runs/{}", waits[0]), None)
        .await;
    assert_eq!(shown["waits"]["why"], "the switch", "{shown}");

    let (status, again) = broker
        .call("POST", "/v1/freeze", Some(json!({ "why": "x" })))
        .await;
    assert_eq!((status, &again["kind"]), (409, &json!("conflict")));
    let (status, empty) = broker
        .call("POST", "/v1/freeze", Some(json!({ "why": " " })))
        .await;
    assert_eq!(status, 400, "{empty}");
    let refused = async |broker: &TestBroker| {
        let (status, said) = broker.call("POST", "/v1/runs", Some(run())).await;
        assert_eq!((status, &said["kind"]), (409, &json!("frozen")), "{said}");
        assert!(
            said["title"]
                .as_str()
                .unwrap()
                .contains("frozen by admin: the switch"),
            "{said}"
        );
    };
    refused(&broker).await;
    // Killed, and by a broker that takes over: another directory, the same
    // store.
    broker.crash().await;
    let broker = TestBroker::start(&server, tmp.path()).await;
    refused(&broker).await;
    assert_eq!(listed(&broker, &waits[0]).await, "frozen");
    let (status, over) = broker.call("POST", "/v1/thaw", Some(json!({}))).await;
    assert_eq!((status, &over["revision"]), (200, &json!(2)), "{over}");
    assert_eq!(listed(&broker, &waits[0]).await, "turn");
    let (status, said) = broker.call("POST", "/v1/runs", Some(run())).await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(
        broker.call("POST", "/v1/thaw", Some(json!({}))).await.0,
        409
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn yesterdays_store_does_not_thaw() {
    let (mut server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let state = tmp.path().join("state");
    state_for(&server, &state);
    let broker = TestBroker::start(&server, &state).await;
    let copy = tmp.path().join("copy");
    server.copy_store(&copy).await;
    broker.wait_active().await;
    wait_for("NATS to be back", async || {
        let (_, status) = broker.call("GET", "/v1/status", None).await;
        (status["nats_connected"] == true).then_some(())
    })
    .await;
    freeze(&broker).await;
    server.put_store(Some(&copy)).await;
    wait_for("it is said that the store went back", async || {
        let path = "/v1/events?kind=alarm.store-went-back";
        let (status, events) = broker.call("GET", path, None).await;
        (status == 200 && !events["items"].as_array()?.is_empty()).then_some(())
    })
    .await;
    let (status, view) = wait_for("the broker serves", async || {
        let answer = broker.call("GET", "/v1/freeze", None).await;
        (answer.0 == 200).then_some(answer)
    })
    .await;
    assert_eq!((status, &view["frozen"]), (200, &json!(true)), "{view}");
    let (status, said) = broker.call("POST", "/v1/runs", Some(run())).await;
    assert_ne!(status, 200, "{said}");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_freeze_does_not() {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    state_for(&server, tmp.path());
    let broker = TestBroker::start(&server, tmp.path()).await;
    // `freeze` is an action of its own: whoever may run may not stop others.
    let ours = format!(
        "{STOCK}\n@id(\"no freeze\")\nforbid (principal in Role::\"operator\", \
         action == Action::\"freeze\", resource);"
    );
    let body = json!({ "files": { "policies": ours, "principals": "" } });
    let (status, said) = broker.call("PUT", "/v1/policy", Some(body)).await;
    assert_eq!(status, 200, "{said}");
    let body = json!({ "for": "bea", "role": "operator" });
    let (_, made) = broker.call("POST", "/v1/tokens", Some(body)).await;
    let token = made["token"].as_str().unwrap();
    let why = json!({ "why": "the switch" });
    let (status, said) = broker
        .send("POST", "/v1/freeze", Some(token), Some(why))
        .await;
    assert_eq!(status, 403, "{said}");
    let (_, view) = broker.call("GET", "/v1/freeze", None).await;
    assert_eq!(view["frozen"], false);
    broker.stop().await;
}
