//! Virtual machines through the whole broker: HTTP in front, a hypervisor that
//! speaks the protocol behind.

mod again;
mod groups;

use std::collections::HashMap;

use muster_protocol::api::VmBrief;
use muster_protocol::ids::Serial;
use muster_protocol::names::VmName;
use muster_protocol::subject::NodeSays;
use muster_protocol::units::Timestamp;

use super::*;

/// A broker with one hypervisor.
struct Farm {
    server: TestServer,
    dir: tempfile::TempDir,
    broker: TestBroker,
    machine: TestNode,
    node: Node,
    serial: Serial,
}

const CREATE: &str = r#"scenario("Makes it");
param("machine", #{ type: "map" });
param("within", #{ type: "duration" });
param("agent", #{ type: "bool" });
fn create(p) { command(["true"]); }
fn gone(p) { command(["true"]); }
fn main(p) { on(targets(), "create", p).undo("gone"); }"#;
const DESTROY: &str = r#"scenario("Destroys it");
param("id", #{ });
param("purge", #{ type: "bool" });
fn run(p) { command(["true"]); }"#;

impl Farm {
    /// The list in short says of each what the whole one says.
    async fn in_short(&self, asked: &str, count: usize) {
        let whole = format!("/v1/vms?{}", asked.replace("limit=10000", "limit=1000"));
        let (status, whole) = self.broker.call("GET", &whole, None).await;
        assert_eq!(status, 200, "{whole}");
        let short = format!("/v1/vms?{asked}&brief=true");
        let (status, short) = self.broker.call("GET", &short, None).await;
        assert_eq!(status, 200, "{short}");
        assert_eq!(whole["next"], short["next"]);
        let items = |page: &Value| page["items"].as_array().expect("items").clone();
        let short = items(&short);
        assert_eq!(short.len(), count);
        for (whole, short) in items(&whole).iter().zip(&short) {
            let vm: VmBrief = serde_json::from_value(whole.clone()).expect("a machine");
            let read = serde_json::from_value(short.clone()).expect("one in short");
            assert_eq!(vm, read);
        }
    }

    async fn start() -> Self {
        let (server, dir) = (TestServer::start().await, tempfile::tempdir().unwrap());
        state_for(&server, dir.path());
        let broker = TestBroker::start(&server, dir.path()).await;
        let machine = TestNode::new();
        let body = json!({ "name": "hv-1", "roles": ["hypervisor"], "labels": { "zone": "gva2" } });
        let joined = machine.enroll(&broker, &broker.invite(body).await).await;
        let client = machine.connect(&joined).await.unwrap();
        let (serial, assignment) = (joined.credentials.serial, &joined.credentials.assignment);
        let script = Script::Functions(HashMap::new());
        let node = Node::over(client, serial, assignment, Arc::new(joined.keys), script).await;
        let farm = Self {
            server,
            dir,
            broker,
            machine,
            node,
            serial,
        };
        let network =
            json!({ "bridge": "br0", "pools": ["192.0.2.0/29"], "gateways": ["192.0.2.1"] });
        farm.must("PUT", "/v1/networks/public", network).await;
        let image = json!({
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "size": 1 << 20, "format": "raw", "virtual_size": 1 << 30, "url": "https://example.org/debian.raw",
        });
        farm.must("PUT", "/v1/images/debian-12", image).await;
        for (name, script) in [("vm-create", CREATE), ("vm-destroy", DESTROY)] {
            let path = format!("/v1/scenarios/{name}");
            farm.must("PUT", &path, json!({ "script": script })).await;
        }
        farm.report(&[]).await;
        farm
    }

    async fn must(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.broker.call(method, path, Some(body)).await;
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer
    }

    /// The hypervisor says which machines it has.
    async fn report(&self, vms: &[&Value]) {
        let guests: Vec<Value> = vms
            .iter()
            .map(|vm| {
                json!({
                    "id": vm["id"], "name": vm["name"], "state": "running", "cpus": vm["cpus"],
                    "memory": vm["memory"], "owner": "muster",
                    "cluster": muster_protocol::ids::ClusterId::from_bytes([1; 16]),
                })
            })
            .collect();
        let report = json!({
            "sequence": 1, "at": Timestamp::now(), "virtualisation": "memory",
            "capacity": { "cpus": 4, "memory": 8u64 << 30, "disk": 100u64 << 30, "disk_free": 90u64 << 30 },
            "pool": "default", "guests": guests, "images": [],
        });
        let before = self.heard().await;
        let subject = NodeSays::Machines.subject(self.serial);
        let bytes = serde_json::to_vec(&report).unwrap();
        self.node
            .client
            .publish(subject, bytes.into())
            .await
            .unwrap();
        wait_for("the report is heard", async || {
            (self.heard().await != before).then_some(())
        })
        .await;
    }

    async fn heard(&self) -> Value {
        let (_, all) = self.broker.call("GET", "/v1/hypervisors", None).await;
        all["items"][0]["heard"].clone()
    }

    /// Once it is placed: the hypervisor is connected and was heard.
    async fn create(&self, name: &str, more: Value) -> Value {
        let mut body = json!({
            "name": name, "image": "debian-12", "cpus": 1, "memory": 1u64 << 30, "networks": ["public"],
            "agent": false,
        });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let made = self.must("POST", "/v1/vms", body).await;
        made["machines"][0]["vm"].clone()
    }

    async fn vm(&self, name: &str) -> Value {
        let name: VmName = name.parse().unwrap();
        self.broker
            .call("GET", &format!("/v1/vms/{name}"), None)
            .await
            .1
    }

    async fn is(&self, name: &str, status: &str) -> Value {
        wait_for(status, async || {
            let vm = self.vm(name).await;
            (vm["status"] == status).then_some(vm)
        })
        .await
    }

    async fn used(&self) -> u64 {
        let (_, lan) = self.broker.call("GET", "/v1/networks/public", None).await;
        lan["used"].as_u64().unwrap()
    }

    async fn events(&self, kind: &str) -> Vec<String> {
        let path = format!("/v1/events?limit=200&kind={kind}");
        let (_, all) = self.broker.call("GET", &path, None).await;
        let all = all["items"].as_array().cloned().unwrap_or_default();
        all.iter()
            .map(|event| {
                event["data"]["text"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect()
    }

    fn does(&self, script: Script) {
        *self.node.script.lock().unwrap() = script;
    }

    /// Another broker on the same state and store.
    async fn restart(mut self) -> Self {
        self.broker.crash().await;
        self.broker = TestBroker::start(&self.server, self.dir.path()).await;
        self.node.hello().await;
        self
    }
}

fn fails(function: &str) -> Script {
    let failed = Outcome::Failed;
    Script::Functions(HashMap::from([(function.to_owned(), failed)]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_made_seen_and_destroyed_and_what_fails_leaves_nothing() {
    let farm = Farm::start().await;
    let made = farm.create("web-01", json!({ "account": "acme" })).await;
    assert_eq!(
        (&made["status"], &made["hypervisor"]),
        (&json!("creating"), &json!("hv-1"))
    );
    assert_eq!(farm.used().await, 1);
    // Nobody else takes the name.
    let body = json!({ "name": "web-01", "image": "debian-12", "cpus": 1, "memory": 1u64 << 30 });
    let (status, problem) = farm.broker.call("POST", "/v1/vms", Some(body)).await;
    assert_eq!(status, 409, "{problem}");
    farm.is("web-01", "running").await;
    // It is seen as it is wanted.
    farm.report(&[&made]).await;
    let seen = farm.is("web-01", "running").await;
    assert_eq!(seen["seen"], "running");
    farm.in_short("match=account=acme", 1).await;
    assert!(seen["drift"].is_null(), "{seen}");
    assert_eq!(farm.events("vm.created").await.len(), 1);
    for (asked, found) in [
        ("account=acme%20and%20hypervisor=hv-*", 1),
        ("status=running%20and%20name=web-*", 1),
        ("image=windows", 0),
    ] {
        let (_, all) = farm
            .broker
            .call("GET", &format!("/v1/vms?match={asked}"), None)
            .await;
        assert_eq!(all["items"].as_array().map(Vec::len), Some(found), "{all}");
    }
    let (status, problem) = farm
        .broker
        .call("GET", "/v1/vms?match=acount=acme", None)
        .await;
    assert_eq!((status, &problem["kind"]), (422, &json!("unknown-name")));

    // Somebody takes it away.
    farm.report(&[]).await;
    farm.is("web-01", "missing").await;
    farm.in_short("limit=10000", 1).await;
    let long = farm.broker.call("GET", "/v1/vms?limit=10000", None).await;
    assert_eq!(long.0, 400, "{}", long.1);
    wait_for("drift is told", async || {
        (!farm.events("vm.drift").await.is_empty()).then_some(())
    })
    .await;
    farm.must("DELETE", "/v1/vms/web-01?purge=true", Value::Null)
        .await;
    farm.is("web-01", "deleted").await;
    assert_eq!(farm.used().await, 0);

    farm.does(fails("create"));
    farm.create("web-02", json!({})).await;
    farm.is("web-02", "deleted").await;
    assert_eq!(farm.used().await, 0);
    let failed = farm.events("vm.failed").await;
    assert!(failed[0].contains("web-02 was not made"), "{failed:?}");
    let (_, deleted) = farm.broker.call("GET", "/v1/vms?deleted=true", None).await;
    assert_eq!(deleted["items"].as_array().map(Vec::len), Some(2));
    farm.in_short("deleted=true", 2).await;

    // It could not be taken back either: nobody says that it is gone.
    let both = [
        ("create".to_owned(), Outcome::Failed),
        ("gone".to_owned(), Outcome::Failed),
    ];
    farm.does(Script::Functions(HashMap::from(both)));
    farm.create("web-03", json!({})).await;
    farm.is("web-03", "doubtful").await;
    farm.in_short("limit=1", 1).await;
    assert_eq!(farm.used().await, 1);
    assert_eq!(farm.events("alarm.vm-doubtful").await.len(), 1);
    farm.does(Script::Functions(HashMap::new()));
    farm.must("DELETE", "/v1/vms/web-03?purge=true", Value::Null)
        .await;
    farm.is("web-03", "deleted").await;
    assert_eq!(farm.used().await, 0);
    farm.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_meanwhile_goes_on_with_the_same_run() {
    let farm = Farm::start().await;
    farm.does(Script::Hold);
    let made = farm.create("web-01", json!({})).await;
    wait_for("the hypervisor makes it", async || {
        (farm.node.executed() == 1).then_some(())
    })
    .await;
    let farm = farm.restart().await;
    assert_eq!(farm.vm("web-01").await["run"], made["run"]);
    farm.node.release.notify_one();
    wait_for("it is up", async || {
        (farm.events("vm.created").await.len() == 1).then_some(())
    })
    .await;
    let farm = farm.restart().await;
    farm.does(Script::Functions(HashMap::new()));
    let gone = farm.must("DELETE", "/v1/vms/web-01", Value::Null).await;
    let farm = farm.restart().await;
    let vm = farm.is("web-01", "deleted").await;
    assert!(vm["kept_until"].is_string(), "{vm}");
    assert_eq!(vm["run"], gone["run"]);
    assert_eq!(farm.used().await, 1, "kept as long as its disk");
    let called = farm.node.log.lock().unwrap().called.len();
    assert_eq!(called, 2, "each was done once");
    farm.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_guest_enrols_with_the_seed_and_goes_with_the_machine() {
    let farm = Farm::start().await;
    farm.does(Script::Hold);
    let body = json!({ "agent": true, "roles": ["web"], "labels": { "tier": "front" } });
    let made = farm.create("web-01", body).await;
    let id = made["id"].as_str().unwrap();
    let (status, seed) = farm.machine.ask_seed(&farm.broker, farm.serial.0, id).await;
    assert_eq!(status, 200, "{seed}");
    let token = seed["enrol"]["token"].as_str().unwrap();
    let guest = TestNode::new();
    let joined = guest.enroll(&farm.broker, token).await;
    let assignment = &joined.credentials.assignment;
    assert_eq!(assignment.name.as_str(), "web-01");
    assert_eq!(assignment.labels.len(), 1);
    // Its own machine is not its to make, nor is one that nobody knows.
    let own = joined.credentials.serial.0;
    assert_eq!(guest.ask_seed(&farm.broker, own, id).await.0, 403);
    let nobody = "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102";
    let (status, _) = farm
        .machine
        .ask_seed(&farm.broker, farm.serial.0, nobody)
        .await;
    assert_eq!(status, 403);
    farm.node.release.notify_one();
    wait_for("it is up", async || {
        (farm.events("vm.created").await.len() == 1).then_some(())
    })
    .await;
    let (status, _) = farm.machine.ask_seed(&farm.broker, farm.serial.0, id).await;
    assert_eq!(status, 403, "not any more");
    let (_, invites) = farm.broker.call("GET", "/v1/invites", None).await;
    assert_eq!(invites["items"], json!([]));
    farm.does(Script::Functions(HashMap::new()));
    farm.must("DELETE", "/v1/vms/web-01?purge=true", Value::Null)
        .await;
    farm.is("web-01", "deleted").await;
    assert_eq!(
        farm.broker.call("GET", "/v1/nodes/web-01", None).await.0,
        404
    );
    assert_eq!(farm.used().await, 0);
    farm.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_hand_no_scenario_changes_a_machine_behind_its_record() {
    let farm = Farm::start().await;
    let made = farm.create("web-01", json!({})).await;
    farm.is("web-01", "running").await;
    let run = |mode: &str| {
        json!({
            "predicate": "name=hv-1", "scenario": "vm-destroy", "mode": mode,
            "params": { "id": made["id"], "purge": true }, "confirm": "yes",
        })
    };
    let (status, no) = farm
        .broker
        .call("POST", "/v1/runs", Some(run("apply")))
        .await;
    assert_eq!(status, 400, "{no}");
    assert_eq!(no["hint"], "type muster vm destroy NAME");
    // Nor what it did before, once more.
    let again = format!("/v1/runs/{}/retry", made["run"].as_str().unwrap());
    let (status, no) = farm
        .broker
        .call("POST", &again, Some(json!({ "confirm": "yes" })))
        .await;
    assert_eq!(status, 400, "{no}");
    // Nor out of another scenario.
    let power = r#"scenario("Starts it");
target("name=hv-1");
fn run(p) { command(["true"]); }"#;
    let around = r#"scenario("Gets around it");
target("name=hv-1");
fn main(p) { run_scenario("vm-power", #{}); }"#;
    for (name, script) in [("vm-power", power), ("around", around)] {
        let path = format!("/v1/scenarios/{name}");
        farm.must("PUT", &path, json!({ "script": script })).await;
    }
    let body = json!({ "scenario": "around", "confirm": "yes" });
    let around = farm.must("POST", "/v1/runs", body).await;
    let path = format!("/v1/runs/{}", around["id"].as_str().unwrap());
    let ended = wait_for("it has ended", async || {
        let (_, run) = farm.broker.call("GET", &path, None).await;
        (run["state"] == "failed").then_some(run)
    })
    .await;
    assert!(
        ended["main"]["error"]
            .as_str()
            .unwrap()
            .contains("behind its record's back"),
        "{ended}"
    );
    let before = farm.node.executed();
    let vm = farm.vm("web-01").await;
    assert_eq!((vm["status"].clone(), before), (json!("running"), 1));
    farm.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_enrols_while_its_machine_is_taken_back_is_no_node_afterwards() {
    let farm = Farm::start().await;
    for round in 1..=5 {
        let name = format!("web-{round:02}");
        farm.does(Script::Hold);
        let made = farm.create(&name, json!({ "agent": true })).await;
        let run = made["run"].as_str().unwrap();
        wait_for("the hypervisor makes it", async || {
            let path = format!("/v1/runs/{run}");
            let (_, run) = farm.broker.call("GET", &path, None).await;
            (run["state"] == "running").then_some(())
        })
        .await;
        let id = made["id"].as_str().unwrap();
        let (_, seed) = farm.machine.ask_seed(&farm.broker, farm.serial.0, id).await;
        let token = seed["enrol"]["token"].as_str().unwrap();
        farm.does(Script::Functions(HashMap::new()));
        let guest = TestNode::new();
        let cancel = format!("/v1/runs/{}/cancel", made["run"].as_str().unwrap());
        let ends = async {
            farm.must("POST", &cancel, json!({})).await;
            farm.is(&name, "deleted").await
        };
        // Early and late: each answer that the broker gives meanwhile takes time.
        let enrols = async {
            for _ in 1..round {
                farm.vm(&name).await;
            }
            guest.try_enroll(&farm.broker, token).await
        };
        tokio::join!(ends, enrols);
        let (status, again) = guest.try_enroll(&farm.broker, token).await;
        assert!(status == 403 || status == 409, "{again}");
        let (status, node) = farm
            .broker
            .call("GET", &format!("/v1/nodes/{name}"), None)
            .await;
        assert_eq!(status, 404, "{node}");
    }
    assert_eq!(farm.used().await, 0);
    farm.broker.stop().await;
}

const GROW: &str = r#"scenario("Makes a machine and uses it");
param("fails", #{ type: "bool" });
param("name", #{ default: "web-01" });
target("name=hv-1");
allow_check();
fn look(p) { command(["true"]); }
fn main(p) {
    let m = machine(#{
        name: p.name, image: "debian-12", cpus: 1, memory: "1GiB", networks: ["public"], agent: false
    });
    on(targets(), "look");
    if p.fails { abort("it is not wanted any more"); }
    m
}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_scenario_makes_a_machine_and_takes_it_back_when_it_fails() {
    let farm = Farm::start().await;
    farm.must("PUT", "/v1/scenarios/grow", json!({ "script": GROW }))
        .await;
    let run = async |params: Value, mode: &str| {
        let body = json!({ "scenario": "grow", "params": params, "mode": mode, "confirm": "yes" });
        let begun = farm.must("POST", "/v1/runs", body).await;
        let path = format!("/v1/runs/{}", begun["id"].as_str().unwrap());
        wait_for("the run's end", async || {
            let (_, run) = farm.broker.call("GET", &path, None).await;
            run["finished"].is_string().then_some(run)
        })
        .await
    };
    // What would be made, and why it cannot be.
    let dry = run(json!({ "fails": false }), "check").await;
    assert_eq!(dry["state"], "succeeded", "{dry}");
    assert_eq!(dry["main"]["value"]["made"], false, "{dry}");
    assert_eq!(farm.used().await, 0);

    let failed = run(json!({ "fails": true }), "apply").await;
    assert_eq!(failed["state"], "failed", "{failed}");
    assert_eq!(
        failed["main"]["calls"][0]["machine"]["fate"], "gone",
        "{failed}"
    );
    let (_, listed) = farm.broker.call("GET", "/v1/vms", None).await;
    assert_eq!(listed["items"], json!([]));
    assert_eq!(farm.used().await, 0);

    let well = run(json!({ "fails": false }), "apply").await;
    assert_eq!(well["state"], "succeeded", "{well}");
    let value = &well["main"]["value"];
    assert_eq!(value["hypervisor"], "hv-1", "{well}");
    assert_eq!(value["node"], Value::Null, "{well}");
    farm.is("web-01", "running").await;
    assert_eq!(farm.vm("web-01").await["addresses"], value["addresses"]);

    // Somebody has the name: nothing happens to that one.
    let taken = run(json!({ "fails": false }), "apply").await;
    assert_eq!(taken["state"], "failed", "{taken}");
    let error = taken["main"]["error"].as_str().unwrap();
    assert!(error.contains("there is a machine web-01"), "{error}");
    let several = run(json!({ "fails": false, "name": "db-{1..2}" }), "apply").await;
    let error = several["main"]["error"].as_str().unwrap();
    assert!(error.contains("one call makes one machine"), "{error}");
    farm.is("web-01", "running").await;
    farm.broker.stop().await;
}
