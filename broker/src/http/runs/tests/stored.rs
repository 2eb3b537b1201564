//! Stored scenarios by name, what they wait for, and being paused.

use muster_protocol::units::Span;

use super::*;

impl World {
    async fn put(&self, name: &str, script: &str) -> Value {
        let body = json!({ "script": script });
        let path = format!("/v1/scenarios/{name}");
        let (status, stored) = self.broker.call("PUT", &path, Some(body)).await;
        assert_eq!(status, 200, "{stored}");
        stored
    }

    async fn scenario(&self, name: &str, more: Value) -> (u16, Value) {
        let mut body = json!({ "scenario": name });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.post("/v1/runs", body).await
    }

    /// Runs it and is not asked.
    async fn begun(&self, name: &str, more: Value) -> Value {
        let (status, run) = self.scenario(name, more).await;
        assert_eq!(status, 200, "{run}");
        run
    }

    async fn token(&self, name: &str, role: &str) -> String {
        let (_, made) = self
            .post("/v1/tokens", json!({ "for": name, "role": role }))
            .await;
        made["token"].as_str().unwrap().to_owned()
    }

    async fn wish(&self, token: Option<&str>, run: &Value, wish: &str) -> (u16, Value) {
        let path = format!("/v1/runs/{}/{wish}", run["id"].as_str().unwrap());
        self.broker.send("POST", &path, token, None).await
    }

    async fn shown(&self, run: &Value) -> Value {
        let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
        self.broker.call("GET", &path, None).await.1
    }

    async fn is(&self, run: &Value, state: &str) -> Value {
        wait_for(state, async || {
            let run = self.shown(run).await;
            (run["state"] == state).then_some(run)
        })
        .await
    }

    fn all(&self, script: &Script) {
        for node in &self.nodes {
            *node.script.lock().unwrap() = script.clone();
        }
    }

    fn executed(&self) -> Vec<usize> {
        self.nodes.iter().map(Node::executed).collect()
    }
}

fn script(top: &str) -> String {
    format!(
        "scenario(\"Does it\");\ntarget(\"role=web\");\n{top}\nfn run(p) {{ command([\"true\"]); }}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scenario_runs_by_name_on_its_nodes_or_fewer_with_all_mistakes_at_once() {
    let world = World::new(&["web-1", "web-2"], 20).await;
    let top = r#"param("version", #{ matches: "^[0-9.]+$", help: "package version" }); batch(1);"#;
    world.put("deploy-web", &script(top)).await;
    let (status, problem) = world
        .scenario(
            "deploy-web",
            json!({ "params": { "version": "; rm -rf /", "vresion": 1 } }),
        )
        .await;
    assert_eq!((status, &problem["kind"]), (400, &json!("invalid-request")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("\"version\": ") && detail.contains("did you mean \"version\"?"),
        "{problem}"
    );
    let (status, problem) = world.scenario("depoly-web", json!({})).await;
    assert_eq!((status, &problem["kind"]), (404, &json!("not-found")));
    assert!(
        problem["hint"].as_str().unwrap().contains("deploy-web"),
        "{problem}"
    );
    let params = json!({ "params": { "version": "1.4.2" } });
    let run = world.begun("deploy-web", params.clone()).await;
    assert_eq!(
        (&run["title"], &run["version"], &run["batches"]),
        (&json!("deploy-web v1 version=1.4.2"), &json!(1), &json!(2)),
        "{run}"
    );
    assert_eq!(world.ended(&run).await["state"], "succeeded");
    let mut narrow = params;
    narrow["predicate"] = json!("name=web-2");
    let run = world.begun("deploy-web", narrow).await;
    assert_eq!(run["predicate"], "role=web and name=web-2");
    world.ended(&run).await;
    assert_eq!(world.executed(), [1, 2]);
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_shown_is_what_runs_also_when_the_scenario_was_replaced() {
    let world = World::new(&["web-1"], 20).await;
    let first = world.put("careful", &script("confirm();")).await;
    let (status, asked) = world.scenario("careful", json!({})).await;
    assert_eq!(
        (status, &asked["plan"]["version"]),
        (428, &json!(1)),
        "{asked}"
    );
    let second = world.put("careful", &script("confirm(); retry(1);")).await;
    assert_ne!(first["bundle"], second["bundle"]);
    // By the beginning of its id, as people type it.
    let plan = &asked["plan"]["id"].as_str().unwrap()[..8];
    let confirm = json!({ "confirm": { "plan": plan } });
    let run = world.begun("careful", confirm.clone()).await;
    assert_eq!(run["version"], 1, "{run}");
    world.ended(&run).await;
    let (status, gone) = world.scenario("careful", confirm).await;
    assert_eq!((status, &gone["kind"]), (410, &json!("plan-gone")));
    // Confirmed beforehand, as it is now.
    let run = world.begun("careful", json!({ "confirm": "yes" })).await;
    assert_eq!(
        (&run["version"], &run["options"]["retry"]),
        (&json!(2), &json!(1))
    );
    world.ended(&run).await;
    // A retry says which one it takes: what the old run had, or the newest.
    let here = &world;
    let again = |id: &Value, latest: bool| {
        let path = format!("/v1/runs/{}/retry", id.as_str().unwrap());
        let body = json!({ "latest": latest, "confirm": "yes" });
        async move { here.post(&path, body).await }
    };
    let old = world
        .begun("careful", json!({ "version": 1, "confirm": "yes" }))
        .await;
    world.ended(&old).await;
    let (status, run) = again(&old["id"], false).await;
    assert_eq!((status, &run["version"]), (200, &json!(1)), "{run}");
    let (status, run) = again(&old["id"], true).await;
    assert_eq!((status, &run["version"]), (200, &json!(2)), "{run}");
    world.ended(&run).await;
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_who_confirms_it_later_and_lapses() {
    let world = World::with(&["web-1"], |config| {
        config.confirm_within = Span::from_secs(3);
    })
    .await;
    let run = world.run(json!({ "confirm": "later" })).await.1;
    assert_eq!(run["state"], "waiting", "{run}");
    assert_eq!(run["waits"]["for"], "confirmation", "{run}");
    let reader = world.token("rob", "reader").await;
    let (status, denied) = world.wish(Some(&reader), &run, "confirm").await;
    assert_eq!((status, &denied["kind"]), (403, &json!("denied")));
    let (status, no) = world
        .wish(Some(&world.token("eve", "operator").await), &run, "approve")
        .await;
    assert_eq!((status, &no["kind"]), (409, &json!("conflict")), "{no}");
    let eve = world.token("eve", "operator").await;
    let (status, confirmed) = world.wish(Some(&eve), &run, "confirm").await;
    assert_eq!(
        (status, &confirmed["confirmed_by"]),
        (200, &json!("eve")),
        "{confirmed}"
    );
    assert_eq!(world.ended(&run).await["state"], "succeeded");
    let kinds: Vec<String> = world
        .events(run["id"].as_str().unwrap(), None)
        .await
        .iter()
        .map(|(_, e)| e["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        kinds[..4],
        ["run_created", "run_waits", "run_given", "run_waits"]
    );
    assert!(kinds.contains(&"run_begins".to_owned()), "{kinds:?}");
    // Nobody comes.
    let run = world.run(json!({ "confirm": "later" })).await.1;
    let ended = world.ended(&run).await;
    assert_eq!(
        (
            &ended["state"],
            &ended["lapsed"],
            &ended["results"][0]["outcome"]
        ),
        (
            &json!("cancelled"),
            &json!("not confirmed within 3s"),
            &json!("skipped")
        ),
        "{ended}"
    );
    let (status, _) = world.wish(Some(&eve), &run, "confirm").await;
    assert_eq!(status, 409);
    assert_eq!(world.executed(), [1]);
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_have_to_approve_and_one_run_at_a_time_has_the_lock() {
    let world = World::new(&["web-1"], 20).await;
    world
        .put("guarded", &script("approvals(2); lock(\"deploy\");"))
        .await;
    world.put("locked", &script("lock(\"deploy\");")).await;
    world.all(&Script::Hold);
    let holder = world.begun("locked", json!({})).await;
    world.is(&holder, "running").await;
    let run = world.begun("guarded", json!({})).await;
    assert_eq!(
        run["waits"],
        json!({ "for": "approvals", "given": [], "needed": 2 })
    );
    let (status, own) = world.wish(Some(&world.broker.token), &run, "approve").await;
    assert_eq!((status, &own["kind"]), (403, &json!("denied")), "{own}");
    for who in ["bob", "bob", "eve"] {
        let token = world.token(who, "operator").await;
        let (status, run) = world.wish(Some(&token), &run, "approve").await;
        assert_eq!(status, 200, "{run}");
    }
    let waits = wait_for("its turn is waited for", async || {
        let run = world.shown(&run).await;
        run["waits"]["why"].as_str().map(str::to_owned)
    })
    .await;
    let short = holder["short"].as_str().unwrap();
    assert!(
        waits.contains("deploy") && waits.contains(short),
        "{waits} {short}"
    );
    // Who comes later waits longer.
    let last = world.begun("locked", json!({})).await;
    assert_eq!(world.executed(), [1]);
    let mut order = Vec::new();
    wait_for("all have ended", async || {
        let mut open = 0;
        for (n, run) in [&holder, &run, &last].into_iter().enumerate() {
            let run = world.shown(run).await;
            open += usize::from(run["finished"].is_null());
            if run["state"] == "running" && order.last() != Some(&n) {
                order.push(n);
            }
        }
        world.nodes[0].release.notify_waiters();
        (open == 0).then_some(())
    })
    .await;
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(
        world.shown(&run).await["approved_by"],
        json!(["bob", "eve"])
    );
    assert_eq!(world.executed(), [3]);
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_run_sends_nothing_new_until_it_is_resumed() {
    let world = World::new(&["web-1", "web-2"], 20).await;
    world.put("slowly", &script("batch(1);")).await;
    world.all(&Script::Hold);
    let run = world.begun("slowly", json!({})).await;
    wait_for("the first node has it", async || {
        (world.executed() == [1, 0]).then_some(())
    })
    .await;
    let (status, paused) = world.wish(Some(&world.broker.token), &run, "pause").await;
    assert_eq!(
        (status, &paused["state"]),
        (200, &json!("paused")),
        "{paused}"
    );
    wait_for("the first node is done", async || {
        world.nodes[0].release.notify_waiters();
        let run = world.shown(&run).await;
        run["results"][0]["outcome"].is_string().then_some(())
    })
    .await;
    let shown = world.shown(&run).await;
    assert_eq!(
        (&shown["state"], world.executed()),
        (&json!("paused"), vec![1, 0])
    );
    let (status, no) = world.wish(Some(&world.broker.token), &run, "confirm").await;
    assert_eq!((status, &no["kind"]), (409, &json!("conflict")), "{no}");
    let (status, resumed) = world.wish(Some(&world.broker.token), &run, "resume").await;
    assert_eq!(
        (status, &resumed["state"]),
        (200, &json!("running")),
        "{resumed}"
    );
    let ended = wait_for("the end", async || {
        world.nodes[1].release.notify_waiters();
        let run = world.shown(&run).await;
        run["finished"].is_string().then_some(run)
    })
    .await;
    assert_eq!(
        (&ended["state"], world.executed()),
        (&json!("succeeded"), vec![1, 1])
    );
    // A paused run ends by a cancel, and by nothing else.
    let run = world.begun("slowly", json!({})).await;
    world.wish(Some(&world.broker.token), &run, "pause").await;
    let (status, _) = world.wish(Some(&world.broker.token), &run, "cancel").await;
    assert_eq!(status, 200);
    let ended = world.ended(&run).await;
    assert_eq!(
        (&ended["state"], &ended["results"][1]["outcome"]),
        (&json!("cancelled"), &json!("skipped")),
        "{ended}"
    );
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_ends_in_a_plan_of_exactly_its_nodes() {
    let world = World::new(&["web-1", "web-2"], 20).await;
    world
        .put(
            "tried",
            &script("param(\"size\", #{ default: \"1\" }); allow_check(); confirm();"),
        )
        .await;
    world.put("untried", &script("")).await;
    let (status, no) = world.scenario("untried", json!({ "mode": "check" })).await;
    assert_eq!((status, &no["kind"]), (400, &json!("invalid-request")));
    let run = world.begun("tried", json!({ "mode": "check" })).await;
    assert_eq!(run["mode"], "check", "{run}");
    world.ended(&run).await;
    let path = format!("/v1/runs/{}/plan", run["id"].as_str().unwrap());
    let other = world.token("eve", "operator").await;
    let (status, _) = world.broker.send("POST", &path, Some(&other), None).await;
    assert_eq!(status, 410);
    let (status, plan) = world.post(&path, Value::Null).await;
    assert_eq!(
        (status, plan["nodes"].as_array().unwrap().len()),
        (200, 2),
        "{plan}"
    );
    let confirm = json!({ "plan": plan["id"] });
    let (status, _) = world
        .scenario(
            "tried",
            json!({ "confirm": confirm, "params": { "size": "2" } }),
        )
        .await;
    assert_eq!(status, 410);
    let real = world.begun("tried", json!({ "confirm": confirm })).await;
    assert_eq!((&plan["checked"], &real["nodes"]), (&json!(2), &json!(2)));
    assert_eq!(
        (&real["mode"], &real["state"]),
        (&Value::Null, &json!("running")),
        "{real}"
    );
    world.ended(&real).await;
    let path = format!("/v1/runs/{}/plan", real["id"].as_str().unwrap());
    let (status, no) = world.post(&path, Value::Null).await;
    assert_eq!((status, &no["kind"]), (409, &json!("conflict")));
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_nowhere_but_in_memory() {
    let world = World::new(&["web-1"], 20).await;
    world
        .put("login", &script("param(\"token\", #{ secret: true });"))
        .await;
    let params = json!({ "params": { "token": "hunter2hunter2" } });
    let run = world.begun("login", params).await;
    assert_eq!(run["params"], json!({ "token": { "$secret": "token" } }));
    let ended = world.ended(&run).await;
    assert!(!ended.to_string().contains("hunter2"), "{ended}");
    let (status, no) = world
        .post(
            &format!("/v1/runs/{}/retry", run["id"].as_str().unwrap()),
            json!({}),
        )
        .await;
    assert_eq!((status, &no["kind"]), (409, &json!("conflict")), "{no}");
    // Nobody is chosen for it by what the node says of itself.
    let by_fact = json!({ "params": { "token": "hunter2hunter2" }, "predicate": "not has gpu" });
    let (status, no) = world.scenario("login", by_fact).await;
    assert_eq!(
        (status, &no["kind"]),
        (400, &json!("invalid-request")),
        "{no}"
    );
    assert!(!no.to_string().contains("hunter2"), "{no}");
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_given_none_of_its_secrets_is_sent_and_retried() {
    let world = World::new(&["web-1"], 20).await;
    let params = "param(\"token\", #{ secret: true, required: false }); \
                  param(\"note\", #{ required: false });";
    world.put("login", &script(params)).await;
    let run = world.begun("login", json!({})).await;
    assert_eq!(run["params"], json!({ "token": null, "note": null }));
    assert_eq!(run["title"], "login v1");
    assert_eq!(world.ended(&run).await["state"], "succeeded");
    let path = format!("/v1/runs/{}/retry", run["id"].as_str().unwrap());
    for latest in [false, true] {
        let asked = json!({ "confirm": "yes", "latest": latest });
        let (status, again) = world.post(&path, asked).await;
        assert_eq!(status, 200, "{again}");
        assert_eq!(again["retry_of"], run["id"]);
        assert_eq!(again["title"], "login v1");
        assert_eq!(world.ended(&again).await["state"], "succeeded");
    }
    assert_eq!(world.executed(), [3]);
    world.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_a_key_is_the_same_one_after_the_scenario_has_changed() {
    let world = World::new(&["web-1"], 20).await;
    world.put("often", &script("")).await;
    let body = json!({ "scenario": "often" }).to_string();
    let ask = |body: &str| {
        format!(
            "POST /v1/runs HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k1\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            world.broker.token,
            body.len()
        )
    };
    let (status, _, first) = world.broker.raw(ask(&body).as_bytes()).await;
    assert_eq!(status, 200, "{first}");
    let first: Value = serde_json::from_str(&first).unwrap();
    world.ended(&first).await;
    world.put("often", &script("timeout(\"1s\");")).await;
    let (status, _, second) = world.broker.raw(ask(&body).as_bytes()).await;
    assert_eq!(status, 200, "{second}");
    let second: Value = serde_json::from_str(&second).unwrap();
    assert_eq!(first["id"], second["id"]);
    let other = ask(&json!({ "scenario": "often", "version": 2 }).to_string());
    assert_eq!(world.broker.raw(other.as_bytes()).await.0, 409);
    assert_eq!(world.executed(), [1]);
    world.broker.stop().await;
}
