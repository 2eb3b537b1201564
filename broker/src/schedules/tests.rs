//! Schedules on a real server, with a clock that the test holds.

use serde_json::{Value, json};

use super::*;
use crate::nats::testing::TestServer;
use crate::testing::{TestBroker, TestNode, state_for, wait_for};

async fn begin() -> (TestServer, tempfile::TempDir, TestBroker) {
    let (server, tmp) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let state = tmp.path().join("state");
    state_for(&server, &state);
    let broker = TestBroker::start(&server, &state).await;
    let invite = broker
        .invite(json!({ "name": "web-01", "roles": ["web"] }))
        .await;
    TestNode::new().enroll(&broker, &invite).await;
    (server, tmp, broker)
}

async fn events(broker: &TestBroker, kind: &str) -> Vec<String> {
    let (_, all) = broker.call("GET", "/v1/events?limit=500", None).await;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    all.iter()
        .filter(|e| e["type"] == kind)
        .map(|e| e["data"]["text"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// A command: it needs no scenario, and no agent that can run one.
fn command(cron: &str) -> Value {
    let run = json!({ "predicate": "role=web", "params": { "argv": ["true"] } });
    json!({ "cron": cron, "run": run })
}

async fn put(broker: &TestBroker, name: &str, body: Value) -> (u16, Value) {
    let path = format!("/v1/schedules/{name}");
    broker.call("PUT", &path, Some(body)).await
}

async fn runs(broker: &TestBroker) -> Vec<Value> {
    let (status, all) = broker.call("GET", "/v1/runs?limit=1000", None).await;
    assert_eq!(status, 200, "{all}");
    all["items"].as_array().cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_made_shown_changed_and_removed() {
    let (_server, _tmp, broker) = begin().await;
    let (status, said) = put(&broker, "nightly", command("0 3 * * MON-FRI")).await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(said["cron"], "0 3 * * mon-fri");
    assert_eq!(said["by"], "admin");
    let (status, said) = put(&broker, "nightly", command("0 4 * * *")).await;
    assert_eq!((status, &said["kind"]), (409, &json!("conflict")));
    let mut other = command("0 4 * * *");
    other["replace"] = json!(true);
    other["jitter"] = json!("5m");
    assert_eq!(put(&broker, "nightly", other).await.0, 200);
    let (_, shown) = broker
        .call("GET", "/v1/schedules/nightly?next=3", None)
        .await;
    assert_eq!(shown["cron"], "0 4 * * *");
    assert_eq!(shown["next"].as_array().unwrap().len(), 3);
    let (_, all) = broker.call("GET", "/v1/schedules", None).await;
    assert_eq!(all["items"].as_array().unwrap().len(), 1);

    let (status, _) = broker.call("DELETE", "/v1/schedules/nightly", None).await;
    assert_eq!(status, 204);
    let (status, _) = broker.call("DELETE", "/v1/schedules/nightly", None).await;
    assert_eq!(status, 404);
    assert_eq!(events(&broker, "schedule.added").await.len(), 2);
    assert_eq!(events(&broker, "schedule.removed").await.len(), 1);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_refused_when_its_time_comes_is_refused_now() {
    let (_server, _tmp, broker) = begin().await;
    let script = "scenario(\"x\");\nparam(\"n\", #{ type: \"int\" });\n\
        param(\"key\", #{ secret: true, required: false });\nfn run(p) { log(p.n); }";
    let stored = json!({ "script": script });
    let (status, said) = broker
        .call("PUT", "/v1/scenarios/count", Some(stored))
        .await;
    assert_eq!(status, 200, "{said}");
    let of = |run: Value| json!({ "cron": "0 3 * * *", "run": run });
    let count = |params: Value| {
        of(json!({ "scenario": "count", "predicate": "role=web", "params": params }))
    };
    let mut said = Vec::new();
    let mut jitter = command("0 3 * * *");
    jitter["jitter"] = json!("25h");
    for body in [
        command("at three"),
        jitter,
        of(json!({ "scenario": "nothing" })),
        count(json!({ "n": "many", "m": 1 })),
        count(json!({ "n": "1", "key": "secret" })),
        of(json!({ "scenario": "count", "params": { "n": 1 } })),
        of(json!({ "predicate": "role=web and (", "params": { "argv": ["true"] } })),
        of(json!({ "predicate": "zoen=x", "params": { "argv": ["true"] } })),
        of(json!({ "predicate": "role=web", "params": { "argv": ["true"] }, "confirm": "later" })),
    ] {
        let (status, problem) = put(&broker, "bad", body).await;
        assert!(status >= 400, "{problem}");
        said.push(format!("{status} {}", problem["title"].as_str().unwrap()));
    }
    insta::assert_snapshot!(said.join("\n"));
    // Nobody there yet is no mistake.
    let nobody = of(
        json!({ "predicate": "name=web-9*", "allow_unknown": true, "params": { "argv": ["true"] } }),
    );
    let (status, problem) = put(&broker, "later", nobody).await;
    assert_eq!(status, 200, "{problem}");
    let (_, reader) = broker
        .call(
            "POST",
            "/v1/tokens",
            Some(json!({ "for": "rita", "role": "reader" })),
        )
        .await;
    let token = reader["token"].as_str();
    let (status, _) = broker
        .send("PUT", "/v1/schedules/x", token, Some(command("0 3 * * *")))
        .await;
    assert_eq!(status, 403);
    assert_eq!(
        broker.send("GET", "/v1/schedules", token, None).await.0,
        200
    );
    let (status, _) = put(&broker, &"x".repeat(55), command("0 3 * * *")).await;
    assert_eq!(status, 400);
    assert_eq!(
        put(&broker, &"x".repeat(54), command("0 3 * * *")).await.0,
        200
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_will_have_to_do_is_said_when_a_schedule_is_added() {
    let (_server, _tmp, broker) = begin().await;
    let main = "scenario(\"x\");\ntarget(\"role=web\");\nallow_check();\nconfirm();\napprovals(2);\n\
        fn main(p) {\n    if ask(\"Go on?\") == \"no\" { abort(\"no\"); }\n    ask(\"Sure?\", [\"yes\"]);\n}";
    let stored = json!({ "script": main });
    let (status, said) = broker
        .call("PUT", "/v1/scenarios/asking", Some(stored))
        .await;
    assert_eq!(status, 200, "{said}");
    let of = |run: Value| json!({ "cron": "0 3 * * *", "run": run });
    let (status, said) = put(&broker, "asks", of(json!({ "scenario": "asking" }))).await;
    assert_eq!(status, 200, "{said}");
    let told: Vec<&str> = said["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|warning| warning.as_str().unwrap())
        .collect();
    insta::assert_snapshot!(told.join("\n"), @r"
    `asking` asks for a confirmation: whoever adds the schedule confirms all of its runs by that
    each run waits for 2 approvals (muster runs approve RUN), until somebody does that or cancels it; the runs after it begin all the same
    a run that comes to lines 7, 8 waits for an answer (muster runs answer RUN TEXT), until somebody does that or cancels it; the runs after it begin all the same
    ");
    let (_, shown) = broker.call("GET", "/v1/schedules/asks", None).await;
    assert!(shown.get("warnings").is_none(), "{shown}");
    // A dry run asks nobody, and waits for nobody.
    let dry = of(json!({ "scenario": "asking", "mode": "check" }));
    let (status, said) = put(&broker, "dry", dry).await;
    assert_eq!(status, 200, "{said}");
    assert!(said.get("warnings").is_none(), "{said}");
    broker.stop().await;
}

async fn bucket(server: &TestServer) -> Kv<StoredSchedule> {
    let js = crate::store::context(server.broker().await);
    let config = crate::store::kv::BucketConfig::new("muster_schedules");
    Box::pin(crate::store::kv::ensure_bucket(&js, config))
        .await
        .unwrap()
}

/// Every hour, half an hour from this minute: whenever the test runs, the last
/// start is well past and the next one is far.
fn hourly() -> String {
    let now = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    format!("{} * * * *", (now.minute() + 30) % 60)
}

fn stored(cron: &str, missed: &str, done: Timestamp) -> StoredSchedule {
    serde_json::from_value(json!({
        "request": { "predicate": "role=web", "params": { "argv": ["true"] }, "confirm": "yes" },
        "timing": { "cron": cron, "missed": missed },
        "by": "ana", "role": "operator", "made": "2026-11-01T00:00:00Z", "done": done,
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_killed_before_it_wrote_a_start_down_starts_it_once() {
    let (server, tmp, broker) = begin().await;
    broker.stop().await;
    let state = tmp.path().join("state");
    let bucket = bucket(&server).await;
    let yesterday = Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let (made_up, left_out) = (
        stored(&hourly(), "run", yesterday),
        stored(&hourly(), "skip", yesterday),
    );
    bucket.create("made-up", &made_up).await.unwrap();
    bucket.create("left-out", &left_out).await.unwrap();
    let broker = TestBroker::start(&server, &state).await;
    let started = async |broker: &TestBroker| {
        wait_for("the start to be written down", async || {
            let (_, shown) = broker.call("GET", "/v1/schedules/made-up", None).await;
            shown["last"]["run"].as_str().map(str::to_owned)
        })
        .await
    };
    let run = started(&broker).await;
    let all = runs(&broker).await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        (&all[0]["id"], &all[0]["principal"]),
        (&json!(run), &json!("schedule:made-up"))
    );
    assert_eq!(all[0]["door"], "schedule");
    let missed = wait_for("what was missed is said", async || {
        let missed = events(&broker, "schedule.missed").await;
        (missed.len() == 2).then_some(missed)
    })
    .await;
    assert!(
        missed
            .iter()
            .any(|t| t.contains("made up for all of them by one run")),
        "{missed:?}"
    );
    assert!(
        missed.iter().any(|t| t.contains("they are left out")),
        "{missed:?}"
    );

    // Killed, and what it wrote down last was lost.
    broker.crash().await;
    let there = bucket.get("made-up").await.unwrap().unwrap();
    bucket
        .update("made-up", &made_up, there.revision)
        .await
        .unwrap();
    let broker = TestBroker::start(&server, &state).await;
    assert_eq!(started(&broker).await, run);
    assert_eq!(runs(&broker).await.len(), 1);
    broker.stop().await;
}

/// While the fleet is frozen a schedule makes no run, says so once, and is no
/// alarm; then it does what its `missed` says.
#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_whose_time_comes_during_a_freeze_says_so_once() {
    let (server, tmp, broker) = begin().await;
    let state = tmp.path().join("state");
    let why = json!({ "why": "the switch" });
    let (status, said) = broker.call("POST", "/v1/freeze", Some(why)).await;
    assert_eq!(status, 200, "{said}");
    broker.stop().await;
    let yesterday = Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let bucket = bucket(&server).await;
    for (name, missed) in [("made-up", "run"), ("left-out", "skip")] {
        let schedule = stored(&hourly(), missed, yesterday);
        bucket.create(name, &schedule).await.unwrap();
    }
    let broker = TestBroker::start(&server, &state).await;
    let told = async |broker: &TestBroker| {
        wait_for("both say that they are frozen", async || {
            let told = events(broker, "schedule.frozen").await;
            (told.len() == 2).then_some(told)
        })
        .await
    };
    let first = told(&broker).await;
    for (name, then) in [
        ("made-up", "one run makes up"),
        ("left-out", "what it misses is left out"),
    ] {
        let of = |t: &&String| t.contains(&format!("schedule {name} ")) && t.contains(then);
        let text = first.iter().find(of);
        let text = text.unwrap_or_else(|| panic!("{first:?}"));
        assert!(text.contains("frozen by admin: the switch"), "{text}");
    }
    // Another broker looks again, and does not say it again.
    broker.crash().await;
    let broker = TestBroker::start(&server, &state).await;
    let (status, _) = put(&broker, "later", command("0 0 29 2 *")).await;
    assert_eq!(
        status, 200,
        "it has looked at them when it notices this one"
    );
    assert_eq!(told(&broker).await, first);
    assert!(runs(&broker).await.is_empty());
    let (status, _) = broker.call("POST", "/v1/thaw", Some(json!({}))).await;
    assert_eq!(status, 200);
    let all = wait_for("the one that makes up for it runs", async || {
        let all = runs(&broker).await;
        (!all.is_empty()).then_some(all)
    })
    .await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["principal"], "schedule:made-up");
    let missed = wait_for("what was missed is said", async || {
        let missed = events(&broker, "schedule.missed").await;
        (missed.len() == 2).then_some(missed)
    })
    .await;
    assert!(
        missed.iter().any(|t| t.contains("the fleet was frozen")),
        "{missed:?}"
    );
    let alarms = events(&broker, "alarm.schedule-failed").await;
    assert!(alarms.is_empty(), "{alarms:?}");
    broker.stop().await;
}

/// There are none.
struct NoMachines;

impl crate::vm::only::Wanted for NoMachines {
    fn wants(
        &self,
        _: muster_protocol::ids::RunId,
        _: &muster_protocol::names::ScenarioName,
    ) -> bool {
        false
    }
}

/// Runs, schedules and nothing else, with a clock that the test holds.
struct Desk {
    submit: Submit,
    schedules: Schedules,
    bucket: Kv<StoredSchedule>,
    cancel: tokio_util::sync::CancellationToken,
    in_force: crate::authz::cedar::InForce,
}

impl Desk {
    async fn start(server: &TestServer) -> Self {
        let (_, authority) = crate::authority::Authority::in_memory();
        let inventory = crate::inventory::Inventory::in_memory(crate::runs::tests::webs(1));
        let (lease, events) = (Lease::fixed(1), Events::log_only());
        let client = server.broker().await;
        let js = crate::store::context(client.clone());
        let cancel = tokio_util::sync::CancellationToken::new();
        let nodes = crate::bus::Nodes::start(crate::bus::Deps {
            observed: crate::vm::Observed::default(),
            groups: crate::groups::Desk::default(),
            freezer: crate::freeze::Freezer::never(&authority),
            js: js.clone(),
            client,
            inventory: inventory.clone(),
            authority,
            lease: lease.clone(),
            events: events.clone(),
            journals: crate::presence::Journals::in_memory(),
            past: crate::twin::Past::unbroken(),
            connections: None,
            library: None,
            settings: crate::bus::Settings {
                runs: crate::runs::Settings {
                    max_bytes: 64 << 20,
                    ..crate::runs::Settings::default()
                },
                ..crate::bus::Settings::default()
            },
            cancel: cancel.clone(),
        })
        .await
        .unwrap();
        nodes.engine.wait_ready().await;
        let releases = Box::pin(crate::releases::Releases::open(
            js.clone(),
            lease.clone(),
            events.clone(),
        ));
        let names = crate::store::kv::ensure_bucket(
            &js,
            crate::store::kv::BucketConfig::new("muster_scenarios"),
        );
        let parts = crate::store::kv::ensure_bucket(
            &js,
            crate::store::kv::BucketConfig::new("muster_bundles"),
        );
        let library = crate::library::Library::open(
            Box::pin(names).await.unwrap(),
            Box::pin(parts).await.unwrap(),
            lease.clone(),
            events.clone(),
        );
        let stock = crate::authz::cedar::Document::stock();
        let in_force = crate::authz::cedar::InForce::new(stock, inventory.clone());
        let submit = Submit {
            inventory,
            nodes,
            releases: releases.await.unwrap(),
            guard: crate::authz::Guard::new(Arc::new(in_force.clone())),
            lease: lease.clone(),
            programs: Arc::new(Box::pin(library).await.unwrap()),
            wanted: Arc::new(NoMachines),
        };
        let bucket = bucket(server).await;
        let schedules = Schedules::load(bucket.clone(), lease, events)
            .await
            .unwrap();
        Self {
            submit,
            schedules,
            bucket,
            cancel,
            in_force,
        }
    }

    /// As a broker that begins with what was written down.
    async fn reload(&mut self) {
        let (lease, events) = (Lease::fixed(1), Events::log_only());
        self.schedules = Schedules::load(self.bucket.clone(), lease, events)
            .await
            .unwrap();
    }

    async fn look(&self, now: &str) {
        let now = now.parse().unwrap();
        assert!(!self.schedules.look(&self.submit, now).await, "{now}");
    }

    /// Ids of all runs.
    fn runs(&self) -> BTreeMap<muster_protocol::ids::RunId, PrincipalName> {
        let (all, more) = self.submit.nodes.engine.list(None, 1_000, true).unwrap();
        assert!(!more);
        all.into_iter().map(|run| (run.id, run.principal)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_an_hour_to_and_fro_starts_nothing_twice() {
    let server = TestServer::start().await;
    let mut desk = Box::pin(Desk::start(&server)).await;
    let begun = "2026-11-21T10:00:30Z".parse().unwrap();
    for (name, missed) in [("run", "run"), ("skip", "skip")] {
        let schedule = stored("*/10 * * * *", missed, begun);
        desk.bucket.create(name, &schedule).await.unwrap();
    }
    desk.reload().await;
    let count = |desk: &Desk, name: &str| {
        let who: PrincipalName = format!("schedule:{name}").parse().unwrap();
        desk.runs().values().filter(|by| **by == who).count()
    };
    desk.look("2026-11-21T10:09:59Z").await;
    assert!(desk.runs().is_empty());
    for _ in 0..3 {
        desk.look("2026-11-21T10:10:01Z").await;
        assert_eq!((count(&desk, "run"), count(&desk, "skip")), (1, 1));
    }
    // An hour ahead: five were missed, and one is made up for or none.
    desk.look("2026-11-21T11:05:00Z").await;
    assert_eq!((count(&desk, "run"), count(&desk, "skip")), (2, 1));
    let ahead = desk.runs();
    // Back, and the hour comes: what was started for a time is not again, and
    // what was left out is not left out any more.
    for minute in 11..60 {
        desk.look(&format!("2026-11-21T10:{minute}:02Z")).await;
        if minute == 35 {
            desk.reload().await;
        }
    }
    desk.look("2026-11-21T11:00:03Z").await;
    assert_eq!((count(&desk, "run"), count(&desk, "skip")), (6, 6));
    let all = desk.runs();
    assert!(ahead.keys().all(|run| all.contains_key(run)));
    // The same hour once more.
    for minute in 10..60 {
        desk.look(&format!("2026-11-21T10:{minute}:05Z")).await;
    }
    assert_eq!(desk.runs(), all);
    desk.cancel.cancel();
    desk.submit.nodes.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_policy_counts_for_the_next_run_of_a_schedule() {
    use crate::authz::cedar::{Document, STOCK, check};
    let server = TestServer::start().await;
    let mut desk = Box::pin(Desk::start(&server)).await;
    let begun = "2026-11-21T10:00:30Z".parse().unwrap();
    let schedule = stored("*/10 * * * *", "skip", begun);
    desk.bucket.create("tick", &schedule).await.unwrap();
    desk.reload().await;
    desk.look("2026-11-21T10:10:01Z").await;
    assert_eq!(desk.runs().len(), 1);
    let files = muster_protocol::api::PolicyFiles {
        policies: format!(
            "{STOCK}\n@id(\"not now\")\nforbid (principal == Principal::\"schedule:tick\", \
             action == Action::\"run\", resource);"
        ),
        principals: "[principals.\"schedule:tick\"]\nkind = \"schedule\"\n".to_owned(),
    };
    desk.in_force.replace(check(&files).unwrap().document);
    desk.look("2026-11-21T10:20:01Z").await;
    assert_eq!(desk.runs().len(), 1);
    let name = "tick".parse().unwrap();
    let last = desk.schedules.get(&name, 1).unwrap().last.unwrap();
    let problem = last.problem.unwrap();
    assert!(
        problem.contains("schedule:tick (schedule) may not run") && problem.contains("not now"),
        "{problem}"
    );
    desk.in_force.replace(Document::stock());
    desk.look("2026-11-21T10:30:01Z").await;
    assert_eq!(desk.runs().len(), 2);
    desk.cancel.cancel();
    desk.submit.nodes.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scenario_that_changed_so_that_it_does_not_fit_is_an_alarm_and_no_run() {
    let (server, tmp, broker) = begin().await;
    let of = |param: &str| {
        let script = format!("scenario(\"x\");\nparam(\"{param}\");\nfn run(p) {{ log(\"x\"); }}");
        json!({ "script": script })
    };
    let (status, said) = broker
        .call("PUT", "/v1/scenarios/say", Some(of("one")))
        .await;
    assert_eq!(status, 200, "{said}");
    broker.stop().await;
    let yesterday = Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let mut schedule = stored(&hourly(), "run", yesterday);
    schedule.request = serde_json::from_value(json!({
        "scenario": "say", "predicate": "role=web", "params": { "two": "x" }, "confirm": "yes",
    }))
    .unwrap();
    bucket(&server)
        .await
        .create("say", &schedule)
        .await
        .unwrap();
    let broker = TestBroker::start(&server, &tmp.path().join("state")).await;
    let alarms = wait_for("the alarm", async || {
        let alarms = events(&broker, "alarm.schedule-failed").await;
        (!alarms.is_empty()).then_some(alarms)
    })
    .await;
    assert!(alarms[0].contains("required, not given"), "{alarms:?}");
    assert!(runs(&broker).await.is_empty());
    let (_, shown) = broker.call("GET", "/v1/schedules/say", None).await;
    assert!(
        shown["last"]["problem"]
            .as_str()
            .unwrap()
            .contains("do not fit"),
        "{shown}"
    );
    assert_eq!(alarms.len(), 1);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scenario_that_a_schedule_began_runs_others_as_that_schedule() {
    let (server, tmp, broker) = begin().await;
    let whole = r#"
        scenario("Runs another one");
        target("role=web");
        fn main(p) {
            let said = run_scenario("part", #{ text: "by night" });
            let denied = "";
            try { run_scenario("command", #{}); } catch (error) { denied = error; }
            #{ said: said, denied: `${denied}` }
        }"#;
    let part = r#"
        scenario("Says it back");
        param("text");
        target("role=web");
        fn main(p) { sleep("1s"); `${p.text}: ${targets().names.len()}` }"#;
    for (name, script) in [("whole", whole), ("part", part)] {
        let path = format!("/v1/scenarios/{name}");
        let (status, said) = broker
            .call("PUT", &path, Some(json!({ "script": script })))
            .await;
        assert_eq!(status, 200, "{said}");
    }
    broker.stop().await;
    let yesterday = Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let mut schedule = stored(&hourly(), "run", yesterday);
    schedule.request =
        serde_json::from_value(json!({ "scenario": "whole", "confirm": "yes" })).unwrap();
    let bucket = bucket(&server).await;
    bucket.create("nightly", &schedule).await.unwrap();
    let broker = TestBroker::start(&server, &tmp.path().join("state")).await;
    let all = wait_for("both runs to end", async || {
        let (_, all) = broker.call("GET", "/v1/runs?parts=true", None).await;
        let all = all["items"].as_array()?.clone();
        let over = |run: &Value| run["state"] == "succeeded" || run["state"] == "failed";
        (all.len() == 2 && all.iter().all(over)).then_some(all)
    })
    .await;
    for run in &all {
        let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
        let (_, shown) = broker.call("GET", &path, None).await;
        assert_eq!(run["state"], "succeeded", "{shown:#?}");
        assert_eq!(run["principal"], "schedule:nightly", "{run}");
        assert_eq!(run["door"], "schedule", "{run}");
    }
    let of = |scenario: &str| {
        let found = all.iter().find(|run| run["scenario"] == scenario);
        found.unwrap_or_else(|| panic!("{scenario}: {all:#?}"))
    };
    assert_eq!(of("part")["part_of"]["run"], of("whole")["id"]);
    let path = format!("/v1/runs/{}", of("whole")["id"].as_str().unwrap());
    let (_, shown) = broker.call("GET", &path, None).await;
    assert_eq!(shown["main"]["value"]["said"], "by night: 1", "{shown}");
    let denied = shown["main"]["value"]["denied"].as_str().unwrap();
    assert!(denied.contains("`command` is built in"), "{denied}");
    broker.stop().await;
}
