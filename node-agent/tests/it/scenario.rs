//! Functions of scenarios, by the real agent.

use std::collections::BTreeMap;

use muster_agent::host::proc::Process;
use muster_agent::scenario::BundleStore;
use muster_protocol::envelope::{Ask, Mode, Request};
use muster_protocol::ids::RequestId;
use muster_protocol::note::{Read, Reader};
use muster_protocol::run::{Outcome, Stream};
use muster_scenarios::bundle::Bundle;
use serde_json::{Value, json};

use crate::lab::{Lab, call};

fn request(lab: &Lab, bundle: &Bundle, params: Value, mode: Mode) -> Request {
    let mut call = call(params);
    call.scenario = "web".parse().unwrap();
    call.bundle = bundle.hash();
    call.mode = mode;
    lab.request(Ask::Call(call))
}

/// The notes of a step, as people see them.
fn said(lab: &Lab, id: RequestId) -> String {
    let read = Reader::default().push(&lab.output(id, Stream::Note));
    let lines = read.iter().flat_map(Read::said);
    lines.map(|line| line.text + "\n").collect()
}

#[tokio::test]
async fn a_bundle_on_the_nodes_disk_is_executed_once_and_accounted_for() {
    let mut lab = Lab::prepare().await;
    let script = r#"
fn run(p) {
    file(p.path).content("listen = " + p.port + "\n", #{ mode: "0600" });
    command(["sh", "-c", "echo again >> " + p.path + ".log; echo $MUSTER_NODE; echo careful >&2"]);
    log("role " + node().roles[0]);
    if p.port > 9000 { throw "too high"; }
}
"#;
    let bundle = Bundle::new(script.into(), BTreeMap::new()).unwrap();
    BundleStore::new(lab.path("state").join("bundles"))
        .put(&bundle)
        .unwrap();
    lab.begin().await;
    let path = lab.path("app.conf");
    let params = json!({"path": path, "port": 8080});

    let dry = request(&lab, &bundle, params.clone(), Mode::Check);
    lab.send(&dry).await;
    let result = lab.broker.outcome(dry.id()).await.result;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
    let said = said(&lab, dry.id());
    assert!(
        said.contains("would change: file ") && said.contains("+listen = 8080"),
        "{said}"
    );
    assert_eq!(result.tally.unwrap().would_change, 2);
    assert!(result.digest.is_some());
    assert!(!path.exists());

    let apply = request(&lab, &bundle, params, Mode::Apply);
    lab.send(&apply).await;
    let result = lab.broker.outcome(apply.id()).await.result;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "listen = 8080\n");
    let printed = String::from_utf8(lab.output(apply.id(), Stream::Stdout)).unwrap();
    assert_eq!(printed, "web-01\n");
    let notes = lab.output(apply.id(), Stream::Note);
    let said = self::said(&lab, apply.id());
    let node = lab.broker.heard().hellos[0].clone();
    assert!(said.contains("changed: file "), "{said}");
    assert_eq!(result.tally.unwrap().changed, 2);
    assert!(said.contains("role web"), "{said} {node:?}");
    let complaints = String::from_utf8(lab.output(apply.id(), Stream::Stderr)).unwrap();
    assert_eq!(complaints, "careful\n");
    let all = printed.len() + notes.len() + complaints.len();
    assert_eq!(result.output_bytes, all as u64);
    // A repeat is answered, not executed.
    lab.send(&apply).await;
    lab.broker.outcome(apply.id()).await;
    let log = format!("{}.log", path.display());
    assert_eq!(std::fs::read_to_string(log).unwrap(), "again\n");

    let high = json!({"path": path, "port": 9001});
    let failing = request(&lab, &bundle, high, Mode::Apply);
    lab.send(&failing).await;
    let result = lab.broker.outcome(failing.id()).await.result;
    assert_eq!(result.outcome, Outcome::Failed);
    assert_eq!(result.reason.as_deref(), Some("web.rhai:6:24: too high"));
    let said = self::said(&lab, failing.id());
    assert!(said.contains("throw \"too high\""), "{said}");
}

#[tokio::test]
async fn a_step_whose_agent_was_killed_is_unknown_and_what_it_started_ends() {
    let mut lab = Lab::prepare().await;
    let script = r#"
fn run(p) {
    let options = if p.user == () { #{} } else { #{ user: p.user } };
    command(["sh", "-c", "echo $$ >> " + p.pid + "; exec sleep 1000"], options);
}
fn wait(p) { log("waits"); sleep("1h"); }
"#;
    let bundle = Bundle::new(script.into(), BTreeMap::new()).unwrap();
    BundleStore::new(lab.path("state").join("bundles"))
        .put(&bundle)
        .unwrap();
    lab.begin().await;
    let pid = lab.path("pid");
    std::fs::write(&pid, "").unwrap();
    // Whoever runs it may write there.
    for (path, mode) in [(lab.dir.path(), 0o755), (pid.as_path(), 0o666)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).unwrap();
    }
    let read = || std::fs::read_to_string(&pid).unwrap();
    let user = rustix::process::geteuid().is_root().then_some("daemon");
    let request = request(
        &lab,
        &bundle,
        json!({"pid": pid, "user": user}),
        Mode::Apply,
    );
    let id = lab.send(&request).await;
    lab.until("the command", || read().ends_with('\n')).await;
    // One that nobody has collected yet does not count.
    let lives = || Process::read(read().trim().parse().unwrap()).is_some_and(|p| p.is_alive());
    lab.kill();
    assert!(lives(), "a crash alone ends no command");
    lab.begin().await;
    let result = lab.broker.outcome(id).await.result;
    assert_eq!(result.outcome, Outcome::Unknown);
    assert!(result.reason.unwrap().ends_with("were ended"));
    assert!(!lives(), "an orphan lives");

    // And one that only waits is ended by a cancel.
    let mut waiting = self::request(&lab, &bundle, json!({}), Mode::Apply);
    if let Ask::Call(call) = &mut waiting.ask {
        call.function = "wait".parse().unwrap();
    }
    let id = lab.send(&waiting).await;
    lab.broker
        .wait("the acknowledgement", |h| {
            h.accepted.contains(&id).then_some(())
        })
        .await;
    let mut cancel = waiting.clone();
    cancel.ask = Ask::Cancel;
    lab.send(&cancel).await;
    let result = lab.broker.outcome(id).await.result;
    assert_eq!(result.outcome, Outcome::Cancelled);
}
