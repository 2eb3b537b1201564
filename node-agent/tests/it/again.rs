//! Functions of scenarios that restart the machine, that are executed again,
//! or that come with secrets.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use async_nats::HeaderMap;
use muster_agent::scenario::BundleStore;
use muster_protocol::envelope::{Ask, KEY_HEADER, Request, SIGNATURE_HEADER};
use muster_protocol::ids::RequestId;
use muster_protocol::note::{Read, Reader};
use muster_protocol::run::{Outcome, Stream};
use muster_protocol::seal::{OpenKey, SECRETS_HEADER, SecretBox};
use muster_protocol::subject::node_subject;
use muster_protocol::units::Span;
use muster_scenarios::bundle::Bundle;
use serde_json::{Map, Value, json};

use crate::lab::{Lab, SERIAL, call};

/// A node with a `systemctl` that only writes down how it was called, and a
/// boot id that a test changes.
struct Machine {
    lab: Lab,
    bundle: Bundle,
}

impl Machine {
    async fn new(script: &str) -> Self {
        let mut lab = Lab::prepare().await;
        let bundle = Bundle::new(script.into(), BTreeMap::new()).unwrap();
        BundleStore::new(lab.path("state").join("bundles"))
            .put(&bundle)
            .unwrap();
        let bin = lab.path("bin");
        std::fs::create_dir(&bin).unwrap();
        let systemctl = bin.join("systemctl");
        let text = format!("#!/bin/sh\necho \"$@\" >> {}\n", lab.path("told").display());
        std::fs::write(&systemctl, text).unwrap();
        std::fs::set_permissions(&systemctl, PermissionsExt::from_mode(0o755)).unwrap();
        lab.config = format!(
            "boot_id = {:?}\n[command.environment]\nPATH = \"{}:/usr/bin:/bin\"\n",
            lab.path("boot"),
            bin.display()
        );
        let machine = Self { lab, bundle };
        machine.boots("first");
        machine
    }

    /// The machine has another boot id from now on.
    fn boots(&self, id: &str) {
        std::fs::write(self.lab.path("boot"), id).unwrap();
    }

    fn request(&self, function: &str, params: Value) -> Request {
        let mut call = call(params);
        call.scenario = "web".parse().unwrap();
        call.bundle = self.bundle.hash();
        call.function = function.parse().unwrap();
        self.lab.request(Ask::Call(call))
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.lab.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn until_lines(&self, name: &str, count: usize) {
        self.lab
            .until(name, || self.lines(name).len() >= count)
            .await;
    }

    fn has_ended(&self, id: RequestId) -> bool {
        let heard = self.lab.broker.heard();
        heard.outcomes.iter().any(|report| report.request == id)
    }

    fn said(&self, id: RequestId) -> String {
        let read = Reader::default().push(&self.lab.output(id, Stream::Note));
        let lines = read.iter().flat_map(Read::said);
        lines.map(|line| line.text + "\n").collect()
    }
}

const RESTARTS: &str = r#"
fn run(p) {
    let before = command(["sh", "-c", `echo before >> ${p.log}; echo $$`]);
    log("goes down");
    reboot();
    command(["sh", "-c", `echo after >> ${p.log}`]);
    before.exit
}
"#;

#[tokio::test]
async fn a_function_goes_on_behind_the_restart_and_does_nothing_twice() {
    let mut machine = Machine::new(RESTARTS).await;
    machine.lab.begin().await;
    let log = machine.lab.path("log-of-it");
    let request = machine.request("run", json!({ "log": log }));
    let id = machine.lab.send(&request).await;
    machine.until_lines("told", 1).await;
    machine
        .lab
        .broker
        .wait("that it goes on", |h| {
            h.accepted.contains(&id).then_some(())
        })
        .await;
    // The agent is stopped as the machine goes down: that is no end.
    machine.lab.terminate();
    machine.lab.ended().await;
    assert!(!machine.has_ended(id));
    // It begins again before the machine has gone down: it only waits.
    machine.lab.begin().await;
    machine.lab.send(&request).await;
    machine.lab.kill();
    assert_eq!(machine.lines("told"), ["reboot"]);

    machine.boots("second");
    machine.lab.begin().await;
    let result = machine.lab.broker.outcome(id).await.result;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
    assert_eq!(result.value, Some(json!(0)));
    assert_eq!(result.tally.unwrap().changed, 3);
    assert_eq!(machine.lines("log-of-it"), ["before", "after"]);
    assert_eq!(machine.lines("told"), ["reboot"]);
    let said = machine.said(id);
    let at = |word: &str| said.find(word).unwrap_or_else(|| panic!("{word}: {said}"));
    assert!(at("goes down") < at("restarting the machine"), "{said}");
    assert!(
        at("restarting the machine") < at("changed: reboot: restarted"),
        "{said}"
    );
    assert_eq!(said.matches("goes down").count(), 1, "{said}");
    // And a repeat of the request is answered, not executed.
    machine.lab.send(&request).await;
    machine.lab.broker.outcome(id).await;
    assert_eq!(machine.lines("told"), ["reboot"]);
}

#[tokio::test]
async fn an_agent_that_is_killed_behind_the_restart_does_nothing_twice() {
    let script = r#"
scenario("Restarts it");
idempotent("sets");
fn sets(p) { work(p) }
fn run(p) { work(p) }
fn work(p) {
    command(["sh", "-c", `echo before >> ${p.log}`]);
    reboot();
    command(["sh", "-c", `echo after >> ${p.log}; while [ ! -e ${p.flag} ]; do sleep 0.05; done`]);
}
"#;
    let mut machine = Machine::new(script).await;
    machine.lab.begin().await;
    let flag = machine.lab.path("flag");
    let mut begun = Vec::new();
    for (n, (function, log)) in [("run", "once"), ("sets", "again")].iter().enumerate() {
        let log = machine.lab.path(log);
        let request = machine.request(function, json!({ "log": log, "flag": flag }));
        begun.push(machine.lab.send(&request).await);
        machine.until_lines("told", n + 1).await;
    }
    machine.lab.kill();
    machine.boots("second");
    machine.lab.begin().await;
    machine.until_lines("once", 2).await;
    machine.until_lines("again", 2).await;
    machine.lab.kill();
    machine.lab.begin().await;
    let result = machine.lab.broker.outcome(begun[0]).await.result;
    assert_eq!(result.outcome, Outcome::Unknown, "{result:?}");
    let reason = result.reason.unwrap();
    assert!(reason.contains("still ran and were ended"), "{reason}");
    // One that may be repeated goes on behind the restart once more.
    machine.until_lines("again", 3).await;
    std::fs::write(&flag, "").unwrap();
    let result = machine.lab.broker.outcome(begun[1]).await.result;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
    assert_eq!(machine.lines("once"), ["before", "after"]);
    assert_eq!(machine.lines("again"), ["before", "after", "after"]);
    assert_eq!(machine.lines("told"), ["reboot", "reboot"]);
}

#[tokio::test]
async fn a_machine_that_does_not_restart_fails_the_step() {
    let mut machine = Machine::new(RESTARTS).await;
    machine.lab.begin().await;
    let log = machine.lab.path("log-of-it");
    let mut request = machine.request("run", json!({ "log": log }));
    if let Ask::Call(call) = &mut request.ask {
        call.limits.timeout = Span::from_secs(2);
    }
    let id = machine.lab.send(&request).await;
    let result = machine.lab.broker.outcome(id).await.result;
    assert_eq!(result.outcome, Outcome::Failed);
    assert_eq!(
        result.reason.as_deref(),
        Some("the machine was told to restart, and did not within 2s")
    );
    // One that cannot be told fails at once, and may be caught.
    std::fs::write(
        machine.lab.path("bin").join("systemctl"),
        "#!/bin/sh\necho no >&2; exit 3\n",
    )
    .unwrap();
    let request = machine.request("run", json!({ "log": log }));
    let id = machine.lab.send(&request).await;
    let result = machine.lab.broker.outcome(id).await.result;
    assert_eq!(result.outcome, Outcome::Failed);
    let reason = result.reason.unwrap();
    assert!(reason.contains("reboot: exit code 3: no"), "{reason}");
}

#[tokio::test]
async fn what_may_be_repeated_is_after_a_crash_and_nothing_else() {
    let script = r#"
scenario("Sets something");
idempotent("sets");
fn sets(p) { work(p) }
fn run(p) { work(p) }
fn work(p) {
    command(["sh", "-c", `echo begun >> ${p.log}; while [ ! -e ${p.flag} ]; do sleep 0.05; done`]);
    "done"
}
"#;
    let mut machine = Machine::new(script).await;
    machine.lab.begin().await;
    let (flag, one, two) = (
        machine.lab.path("flag"),
        machine.lab.path("one"),
        machine.lab.path("two"),
    );
    let again = machine.request("sets", json!({ "log": one, "flag": flag }));
    let never = machine.request("run", json!({ "log": two, "flag": flag }));
    let again = machine.lab.send(&again).await;
    let never = machine.lab.send(&never).await;
    machine.until_lines("one", 1).await;
    machine.until_lines("two", 1).await;
    machine.lab.kill();
    machine.lab.begin().await;
    let result = machine.lab.broker.outcome(never).await.result;
    assert_eq!(result.outcome, Outcome::Unknown, "{result:?}");
    machine.until_lines("one", 2).await;
    std::fs::write(&flag, "").unwrap();
    let result = machine.lab.broker.outcome(again).await.result;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
    assert_eq!(result.value, Some(json!("done")));
    assert!(machine.said(again).contains("it may be repeated"));
    assert_eq!(machine.lines("two"), ["begun"]);
}

#[tokio::test]
async fn secrets_are_opened_here_and_are_nowhere_on_this_machine() {
    let script = r#"
fn run(p) {
    file(p.path).content(p.token, #{ mode: "0600" });
    command(["sh", "-c", "cat; tr '\\0' '\\n' < /proc/self/environ; tr '\\0' ' ' < /proc/$$/cmdline"], #{ stdin: p.token });
    log(`token ${p.token}`);
    p.token
}
"#;
    let mut machine = Machine::new(script).await;
    machine.lab.begin().await;
    let hello = machine.lab.broker.heard().hellos[0].clone();
    let identity = machine.lab.keys.identity.public();
    let offer = hello.seal.expect("a key is offered");
    let key = offer.checked(&identity, SERIAL, hello.instance).unwrap();
    let path = machine.lab.path("secret");
    let token = "geheim-4711-sehr";
    let secrets = Map::from_iter([("token".to_owned(), json!(token))]);

    let send = async |sealed: &SecretBox, named: &SecretBox| {
        let params = json!({ "path": path, "token": { "$secret": "token" } });
        let mut request = machine.request("run", params);
        if let Ask::Call(call) = &mut request.ask {
            call.secrets = Some(named.hash());
        }
        let signed = request.seal(&machine.lab.cluster.broker);
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, signed.key.to_string());
        headers.insert(SIGNATURE_HEADER, signed.signature.to_string());
        headers.insert(SECRETS_HEADER, sealed.to_string());
        let client = &machine.lab.broker.client;
        client
            .publish_with_headers(node_subject(SERIAL), headers, signed.bytes.into())
            .await
            .unwrap();
        client.flush().await.unwrap();
        request.id()
    };
    let sealed = SecretBox::seal(&secrets, key).unwrap();
    // Sealed to somebody else: not followed, and not answered.
    let strange = SecretBox::seal(&secrets, OpenKey::generate().public()).unwrap();
    let ignored = send(&strange, &strange).await;
    // Another box than the one that was signed for.
    let id = send(&SecretBox::seal(&secrets, key).unwrap(), &sealed).await;
    let result = machine.lab.broker.outcome(id).await.result;
    assert_eq!(result.outcome, Outcome::Declined);
    assert!(!path.exists());

    let id = send(&sealed, &sealed).await;
    let result = machine.lab.broker.outcome(id).await.result;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), token);
    assert_eq!(result.value, Some(json!("[redacted]")));
    assert!(!machine.has_ended(ignored));
    let all: Vec<u8> = [Stream::Stdout, Stream::Stderr, Stream::Note]
        .into_iter()
        .flat_map(|stream| machine.lab.output(id, stream))
        .collect();
    let all = String::from_utf8_lossy(&all).into_owned();
    assert!(all.contains("[redacted]") && !all.contains(token), "{all}");
    assert!(
        all.contains("MUSTER_"),
        "the environment was looked at: {all}"
    );

    // Neither the journal, nor its log, nor the agent's own log has it, as
    // text or sealed.
    let mut looked_at = 0;
    let mut open = vec![machine.lab.path("state"), machine.lab.path("log")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let Ok(bytes) = std::fs::read(&path) else {
            continue;
        };
        looked_at += 1;
        for word in [token, &sealed.to_string()[..60]] {
            let found = bytes.windows(word.len()).any(|w| w == word.as_bytes());
            assert!(!found, "{} holds it", path.display());
        }
    }
    assert!(looked_at > 5);
}

#[tokio::test]
async fn what_is_not_granted_is_declined_before_anything_happens() {
    let script = r#"
fn run(p) { command(["touch", p.path]); if p.never == 1 { deep() } }
fn deep() { package("webapp").latest(); }
"#;
    let mut machine = Machine::new(script).await;
    machine.lab.config += "[capabilities]\npackage = false\n";
    machine.lab.begin().await;
    let path = machine.lab.path("touched");
    for (function, why) in [
        ("run", "does not grant the capability `package`"),
        ("walk", "`web` has no function `walk`"),
    ] {
        let id = machine
            .lab
            .send(&machine.request(function, json!({ "path": path })))
            .await;
        let result = machine.lab.broker.outcome(id).await.result;
        assert_eq!(result.outcome, Outcome::Declined, "{result:?}");
        assert!(result.reason.unwrap().contains(why));
    }
    assert!(!path.exists());
}
