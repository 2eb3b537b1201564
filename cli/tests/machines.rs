//! `muster vm` against a broker that says what a test wants: others change
//! things meanwhile, and runs are refused.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use muster_protocol::ids::RunId;
use muster_protocol::problem::{Kind, Problem};
use serde_json::{Value, json};

/// What a broker answers to a method and a path; how often it was asked that
/// before.
type Answers = dyn Fn(&str, usize) -> Option<Value> + Send + Sync;

/// A broker of a few lines.
struct Broker {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Broker {
    fn new(answers: impl Fn(&str, usize) -> Option<Value> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (seen, answers): (_, Arc<Answers>) = (Arc::clone(&asked), Arc::new(answers));
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
                std::thread::spawn(move || serve(socket, &seen, &*answers));
            }
        });
        Self { url, asked }
    }

    fn muster(&self, args: &[&str]) -> Output {
        let home = tempfile::tempdir().expect("a directory");
        Command::new(env!("CARGO_BIN_EXE_muster"))
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", home.path())
            .env("MUSTER_URL", &self.url)
            .env("MUSTER_TOKEN", "mt1_x_y")
            .stdin(Stdio::null())
            .args(args)
            .output()
            .expect("starts")
    }

    /// What it was asked that changes something.
    fn changes(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let all = asked.iter().filter(|line| !line.starts_with("GET "));
        all.cloned().collect()
    }
}

fn serve(socket: TcpStream, asked: &Mutex<Vec<String>>, answers: &Answers) {
    let mut reader = BufReader::new(&socket);
    let (mut head, mut line, mut length) = (String::new(), String::new(), 0);
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        if head.is_empty() {
            head = line.rsplit_once(' ').map_or("", |parts| parts.0).to_owned();
            // One page has all.
            head = head.replace("?limit=1000", "").replace("&limit=1000", "");
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let _ = reader.read_exact(&mut vec![0; length]);
    let times = {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(head.clone());
        asked.iter().filter(|one| **one == head).count() - 1
    };
    let is_events = head.ends_with("/events");
    let (status, kind, body) = match answers(&head, times) {
        Some(Value::Null) => ("204 No Content", "application/json", String::new()),
        Some(body) if is_events => (
            "200 OK",
            "text/event-stream",
            format!("id: 1\ndata: {body}\n\n"),
        ),
        Some(body) => ("200 OK", "application/json", body.to_string()),
        None => {
            let body = Problem::new(Kind::NotFound, "there is no such thing");
            let body = serde_json::to_string(&body).expect("JSON");
            ("404 Not Found", "application/problem+json", body)
        }
    };
    let length = body.len();
    let _ = write!(
        &socket,
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
}

fn run(byte: u8) -> RunId {
    RunId::from_bytes([byte; 16])
}

fn page(items: Value) -> Option<Value> {
    Some(json!({ "items": items }))
}

fn finished(run: RunId) -> Option<Value> {
    Some(
        json!({ "type": "run_finished", "run": run, "state": "succeeded", "summary": {}, "nodes": {} }),
    )
}

fn ended(run: RunId) -> Option<Value> {
    let options = json!({ "timeout": "10m", "deliver_within": "30s", "output_bytes": 0 });
    Some(json!({
        "id": run, "short": "0707", "principal": "ana", "door": "cli", "title": "vm-create",
        "scenario": "vm-create", "predicate": "name=hv-01", "state": "succeeded", "nodes": 1,
        "summary": {}, "created": "2026-11-22T10:00:00Z", "params": {}, "batches": 1, "options": options,
        "results": [],
    }))
}

fn network(name: &str, mtu: u16, by: &str) -> Value {
    json!({
        "name": name, "bridge": "br0", "pools": ["192.0.2.0/24"], "gateways": [], "dns": [],
        "reserved": [], "mtu": mtu, "labels": { "stack": "shop" }, "used": 0, "free": 253, "by": by,
        "made": "2026-11-22T10:00:00Z",
    })
}

fn vm(name: &str, more: Value) -> Value {
    let mut value = json!({
        "name": name, "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "status": "running",
        "should_run": true, "hypervisor": "hv-01", "cpus": 1, "memory": 67108864u64,
        "disk": 1048576u64, "image": "empty",
        "image_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "nics": [], "addresses": [], "roles": [], "labels": { "stack": "shop" }, "groups": [],
        "agent": true, "ready": "agent", "autostart": true, "protected": false, "by": "ana",
        "made": "2026-11-22T07:00:00Z",
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
        all.extend(more);
    }
    value
}

fn apply(broker: &Broker, text: &str, more: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("shop.toml");
    std::fs::write(&file, format!("[stack]\nname = \"shop\"\n{text}")).expect("written");
    let file = file.to_string_lossy().into_owned();
    let said = broker.muster(&[&["vm", "apply", &file, "--yes"], more].concat());
    let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    (said.status.code(), text.into_owned())
}

/// Somebody changes networks while the plan is read.
#[test]
fn a_network_that_somebody_changed_meanwhile_is_left_alone() {
    let broker = Broker::new(|asked, _| match asked {
        "GET /v1/networks" => page(json!([
            network("shop", 9000, "ana"),
            network("old", 1500, "ana"),
            network("older", 1500, "ana"),
        ])),
        "GET /v1/networks/shop" => Some(network("shop", 4000, "bruno")),
        "GET /v1/networks/old" => Some(network("old", 1400, "bruno")),
        "GET /v1/networks/older" => Some(network("older", 1500, "ana")),
        "PUT /v1/networks/shop" => Some(network("shop", 1500, "ana")),
        "DELETE /v1/networks/older" => Some(Value::Null),
        path if path.starts_with("GET /v1/vms") => page(json!([])),
        _ => None,
    });
    let shop = "[network.shop]\nbridge = \"br0\"\npools = [\"192.0.2.0/24\"]\n";
    let (code, said) = apply(&broker, shop, &["--prune"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("was changed by bruno meanwhile, and nothing was done with it"),
        "{said}"
    );
    assert!(broker.changes().is_empty(), "{:?}", broker.changes());

    let (code, said) = apply(&broker, "", &["--prune"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("network older is removed"), "{said}");
    assert!(
        said.contains("network old: was changed by bruno meanwhile"),
        "{said}"
    );
    assert_eq!(broker.changes(), ["DELETE /v1/networks/older"]);
}

/// Its run ended well, and it is there all the same: somebody brought it back.
#[test]
fn what_was_to_be_destroyed_is_looked_at_before_that_is_said() {
    let broker = Broker::new(|asked, _| {
        let events = format!("GET /v1/runs/{}/events", run(7));
        let view = format!("GET /v1/runs/{}", run(7));
        match asked {
            "GET /v1/networks" | "GET /v1/vms?deleted=true" => page(json!([])),
            "GET /v1/vms" => page(json!([vm("web-01", json!({}))])),
            "GET /v1/vms/web-01" => Some(vm("web-01", json!({}))),
            // That very machine, and no other of its name.
            asked if asked.starts_with("DELETE /v1/vms/web-01?purge=false&id=") => {
                Some(json!({ "vm": vm("web-01", json!({})), "run": run(7) }))
            }
            path if path == events => finished(run(7)),
            path if path == view => ended(run(7)),
            _ => None,
        }
    });
    let (code, said) = apply(&broker, "", &["--prune"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(!said.contains("web-01 is destroyed"), "{said}");
    assert!(
        said.contains("web-01 was destroyed, and is running"),
        "{said}"
    );
    assert_eq!(broker.changes().len(), 1);
}

/// Of three machines one is not configured as that is refused, so there never
/// is such a run; one cannot be found.
#[test]
fn the_other_machines_are_followed_and_each_refusal_is_said() {
    let configure = json!({ "scenario": "deploy" });
    let broker = Broker::new(move |asked, times| {
        let name = asked.rsplit('/').next().unwrap_or_default();
        let number = name
            .strip_prefix("web-0")
            .and_then(|n| n.parse::<u8>().ok());
        let configured = |state: Option<&str>, why: Option<&str>| {
            json!({ "configure": configure, "configured": {
                "run": run(9), "scenario": "deploy", "state": state, "why": why,
                "at": "2026-11-22T10:00:00Z",
            } })
        };
        match asked {
            "POST /v1/vms" => {
                let plan = |n: u8| {
                    json!({
                        "vm": vm(&format!("web-0{n}"), json!({ "status": "creating", "run": run(n) })),
                        "looked_at": 1, "fit": 1, "image_there": true,
                    })
                };
                Some(json!({ "machines": [plan(1), plan(2), plan(3)], "dry_run": false }))
            }
            _ if asked.starts_with("GET /v1/vms/") => match number {
                // Asked for, and refused a moment later.
                Some(1) if times < 3 => Some(vm(name, configured(None, None))),
                Some(1) => Some(vm(
                    name,
                    configured(Some("failed"), Some("ana may not run deploy")),
                )),
                Some(3) => Some(vm(name, configured(Some("succeeded"), None))),
                _ => None,
            },
            _ => {
                let id = asked.strip_prefix("GET /v1/runs/")?;
                let id: RunId = id.trim_end_matches("/events").parse().ok()?;
                match (id == run(9), asked.ends_with("/events")) {
                    (true, _) => None,
                    (false, true) => finished(id),
                    (false, false) => ended(id),
                }
            }
        }
    });
    let machine = [
        "--image",
        "empty",
        "--cpus",
        "1",
        "--memory",
        "64MiB",
        "--configure",
        "deploy",
    ];
    let said = broker.muster(&[&["vm", "create", "web-{01..03}"], &machine[..]].concat());
    let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{text}");
    for part in [
        "web-01 is up",
        "web-03 is configured by deploy",
        "1 of 3 machines are not up, and 1 are not configured",
        "web-01 is up, and deploy did not configure it",
        "ana may not run deploy",
        "there is no such thing",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
