//! What is asked for twice, and what is taken back whatever happens meanwhile.

use super::super::chat::{ANA, PRINCIPALS, lines};
use super::*;
use crate::authz::cedar::STOCK;

const EXEC: &str = r#"scenario("Runs it");
param("id", #{ });
param("argv", #{ type: "list", min: 1 });
param("timeout", #{ type: "duration", default: "1m" });
fn run(p) { command(["true"]); }"#;
const SNAPSHOT: &str = r#"scenario("Goes back");
param("id", #{ });
param("snapshot", #{ });
param("restore", #{ type: "bool" });
fn run(p) { command(["true"]); }"#;

const ASKS: &str = r#"scenario("Makes a machine and asks");
target("name=hv-1");
fn main(p) {
    machine(#{
        name: "web-01", image: "debian-12", cpus: 1, memory: "1GiB", networks: ["public"], agent: false
    });
    ask("Go on?");
}"#;

impl Farm {
    async fn learns(&self, all: &[(&str, &str)]) {
        for (name, script) in all {
            let path = format!("/v1/scenarios/{name}");
            self.must("PUT", &path, json!({ "script": script })).await;
        }
    }

    async fn keyed(&self, line: &str, key: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let ask = format!(
            "{line} HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.broker.token,
            body.len()
        );
        let (status, _, body) = self.broker.raw(ask.as_bytes()).await;
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    async fn ended(&self, run: &Value) -> Value {
        let path = format!("/v1/runs/{}", run.as_str().unwrap());
        wait_for("the run's end", async || {
            let (_, run) = self.broker.call("GET", &path, None).await;
            run["finished"].is_string().then_some(run)
        })
        .await
    }

    fn done(&self, function: &str) -> usize {
        let log = self.node.log.lock().unwrap();
        let called = log.called.iter();
        called.filter(|call| call.contains(function)).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_to_the_next_broker_is_done_once() {
    let farm = Farm::start().await;
    farm.learns(&[("vm-exec", EXEC)]).await;
    let body = json!({
        "name": "web-01", "image": "debian-12", "cpus": 1, "memory": 1u64 << 30,
        "networks": ["public"], "agent": false,
    });
    let (status, made) = farm.keyed("POST /v1/vms", "k0", &body).await;
    assert_eq!(status, 200, "{made}");
    farm.is("web-01", "running").await;
    let exec = json!({ "do": "exec", "argv": ["date"] });
    let line = "POST /v1/vms/web-01/actions";
    let (status, first) = farm.keyed(line, "k1", &exec).await;
    assert_eq!(status, 200, "{first}");
    farm.ended(&first["run"]).await;
    assert_eq!(farm.node.executed(), 2);
    let farm = farm.restart().await;
    let (status, again) = farm.keyed(line, "k1", &exec).await;
    assert_eq!((status, &again["run"]), (200, &first["run"]), "{again}");
    let (status, other) = farm
        .keyed(line, "k1", &json!({ "do": "exec", "argv": ["id"] }))
        .await;
    assert_eq!(
        (status, &other["kind"]),
        (409, &json!("conflict")),
        "{other}"
    );
    // Destroyed and made anew: the next one stays.
    let line = "DELETE /v1/vms/web-01?purge=true";
    let (status, gone) = farm.keyed(line, "k2", &Value::Null).await;
    assert_eq!(status, 200, "{gone}");
    farm.is("web-01", "deleted").await;
    let (status, again) = farm.keyed("POST /v1/vms", "k0", &body).await;
    let id = |made: &Value| made["machines"][0]["vm"]["id"].clone();
    assert_eq!((status, id(&again)), (200, id(&made)), "{again}");
    farm.report(&[]).await;
    let made = farm.create("web-01", json!({})).await;
    farm.is("web-01", "running").await;
    let farm = farm.restart().await;
    let (status, again) = farm.keyed(line, "k2", &Value::Null).await;
    assert_eq!((status, &again["run"]), (200, &gone["run"]), "{again}");
    let old = format!("{line}&id={}", gone["vm"]["id"].as_str().unwrap());
    let (status, problem) = farm.keyed(&old, "k3", &Value::Null).await;
    assert_eq!((status, &problem["kind"]), (410, &json!("plan-gone")));
    assert_eq!(farm.vm("web-01").await["id"], made["id"]);
    assert_eq!(farm.node.executed(), 4, "made, run, destroyed, made");
    farm.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_told_to_the_next_broker_too_is_done_once() {
    let farm = Farm::start().await;
    farm.learns(&[("vm-exec", EXEC), ("vm-snapshot", SNAPSHOT)])
        .await;
    let files = json!({ "policies": STOCK, "principals": PRINCIPALS });
    farm.must("PUT", "/v1/policy", json!({ "files": files }))
        .await;
    let body = json!({ "for": "irc:ops", "role": "witness" });
    let (_, token) = farm.broker.call("POST", "/v1/tokens", Some(body)).await;
    let token = token["token"].as_str().unwrap().to_owned();
    farm.create("web-01", json!({})).await;
    farm.is("web-01", "running").await;
    let tell = async |farm: &Farm, id: &str, text: &str| {
        let line = ANA.line(id, text);
        let told = farm
            .broker
            .send("POST", "/v1/chat/lines", Some(&token), Some(line));
        let (status, answer) = told.await;
        assert_eq!(status, 200, "{answer}");
        lines(&answer)
    };
    let mut farm = farm;
    let all = [
        ("m1", "vm exec web-01 -- date"),
        ("m2", "vm restore web-01 clean"),
        ("m3", "vm destroy web-01 --purge --yes"),
    ];
    for (done, (id, text)) in (2..).zip(all) {
        tell(&farm, id, text).await;
        wait_for("it is done", async || {
            let (_, runs) = farm.broker.call("GET", "/v1/runs", None).await;
            let runs = runs["items"].as_array().unwrap();
            let ended = runs.iter().all(|run| run["finished"].is_string());
            (ended && farm.node.executed() == done).then_some(())
        })
        .await;
        farm = farm.restart().await;
        // It has ended, and that is told anyway.
        assert_eq!(tell(&farm, id, text).await, "", "{text}");
        assert_eq!(farm.node.executed(), done, "{text}");
    }
    farm.is("web-01", "deleted").await;
    // A yes that another broker has heard.
    farm.report(&[]).await;
    farm.create("web-02", json!({})).await;
    farm.is("web-02", "running").await;
    let asked = tell(&farm, "m4", "vm destroy web-02 --purge").await;
    assert!(asked.contains("web-02"), "{asked}");
    tell(&farm, "m5", "yes").await;
    farm.is("web-02", "deleted").await;
    let farm = farm.restart().await;
    farm.report(&[]).await;
    farm.create("web-02", json!({})).await;
    farm.is("web-02", "running").await;
    assert_eq!(tell(&farm, "m5", "yes").await, "");
    assert_eq!(farm.vm("web-02").await["status"], "running");
    farm.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cancelled_in_a_freeze_takes_its_machine_back() {
    let farm = Farm::start().await;
    farm.learns(&[("asks", ASKS)]).await;
    let body = json!({ "scenario": "asks", "confirm": "yes" });
    let run = farm.must("POST", "/v1/runs", body).await["id"].clone();
    farm.is("web-01", "running").await;
    let path = format!("/v1/runs/{}", run.as_str().unwrap());
    wait_for("it asks", async || {
        let (_, run) = farm.broker.call("GET", &path, None).await;
        let calls = run["main"]["calls"].as_array()?;
        calls
            .iter()
            .any(|call| call["question"].is_string())
            .then_some(())
    })
    .await;
    let freeze = json!({ "why": "the store burns" });
    farm.must("POST", "/v1/freeze", freeze).await;
    farm.must("POST", &format!("{path}/cancel"), json!({}))
        .await;
    let ended = farm.ended(&run).await;
    assert_eq!(ended["state"], "cancelled", "{ended}");
    let machine = &ended["main"]["calls"][0]["machine"];
    assert_eq!(machine["fate"], "gone", "{ended}");
    farm.is("web-01", "deleted").await;
    assert_eq!((farm.used().await, farm.done("run")), (0, 1));
    // For anybody else it is as frozen as before.
    let body = json!({ "name": "web-02", "image": "debian-12", "cpus": 1, "memory": 1u64 << 30 });
    let (_, no) = farm.broker.call("POST", "/v1/vms", Some(body)).await;
    assert_eq!(no["kind"], "frozen", "{no}");
    let (_, all) = farm.broker.call("GET", "/v1/vms?deleted=true", None).await;
    assert_eq!(all["items"].as_array().map(Vec::len), Some(1), "{all}");
    farm.broker.stop().await;
}
