use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use muster_protocol::envelope::Limits;
use muster_protocol::ids::RunId;
use muster_protocol::note::{MAX_VALUE, Read, Reader};
use muster_protocol::run::Stream;
use muster_protocol::wire::MAX_CHUNK;
use muster_scenarios::bundle::Bundle;
use muster_scenarios::node::Change;
use serde_json::json;

use super::*;
use crate::host::proc::Process;
use crate::host::process::Sink;
use crate::scenario::{BundleStore, StoreError};

/// All that a step says.
#[derive(Default)]
struct Heard {
    out: String,
    err: String,
    notes: Vec<Note>,
    reader: Reader,
    started: usize,
    cancel_on: Option<(&'static str, CancellationToken)>,
}

impl Sink for Heard {
    fn started<'a>(&'a mut self, _: &'a Process, _: Option<&'a Path>) -> BoxFuture<'a, ()> {
        self.started += 1;
        Box::pin(std::future::ready(()))
    }

    fn output(&mut self, stream: Stream, data: Bytes) -> BoxFuture<'_, ()> {
        assert!(data.len() <= MAX_CHUNK);
        let text = String::from_utf8_lossy(&data);
        match stream {
            Stream::Stdout => self.out.push_str(&text),
            Stream::Stderr => self.err.push_str(&text),
            Stream::Note => {
                for read in self.reader.push(&data) {
                    let Read::Note(note) = read else {
                        panic!("{read:?}")
                    };
                    self.notes.push(note);
                }
            }
        }
        if let Some((word, cancel)) = &self.cancel_on
            && self.out.contains(word)
        {
            cancel.cancel();
        }
        Box::pin(std::future::ready(()))
    }
}

impl Heard {
    fn text(&self) -> String {
        let lines = self.notes.iter().flat_map(Note::said);
        lines.map(|line| line.text + "\n").collect()
    }
}

struct Node {
    dir: tempfile::TempDir,
    config: Config,
    store: BundleStore,
    timeout: Duration,
    output_bytes: u64,
    cancel: CancellationToken,
    secrets: Secrets,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = BundleStore::new(dir.path().join("bundles"));
        Self {
            store,
            dir,
            config: Config::default(),
            timeout: Duration::from_secs(120),
            output_bytes: 1 << 20,
            cancel: CancellationToken::new(),
            secrets: Secrets::default(),
        }
    }

    fn put(&self, script: &str) -> BundleHash {
        let template = b"listen = {{ port }}\n".to_vec();
        let files = BTreeMap::from([("templates/app.conf".parse().expect("a path"), template)]);
        let bundle = Bundle::new(script.to_owned(), files).expect("a bundle");
        self.store.put(&bundle).expect("kept");
        bundle.hash()
    }

    fn scenarios(&self) -> Scenarios {
        Scenarios::new(&self.config, Arc::new(self.store.clone()), None)
    }

    async fn call(&self, scenarios: &Scenarios, call: &Call, heard: &mut Heard) -> NodeResult {
        let assignment: Assignment = serde_json::from_value(json!({
            "revision": 1, "name": "web-01", "roles": ["web"], "labels": {"zone": "gva2"}
        }))
        .expect("an assignment");
        let step = Step {
            request: request(),
            serial: Serial(7),
            name: assignment.name.clone(),
            assignment: &assignment,
            facts: Arc::new(json!({"os": {"name": "debian"}})),
            timeout: self.timeout,
            output_bytes: self.output_bytes,
            sink: heard,
            cancel: &self.cancel,
            secrets: self.secrets.clone(),
            restarts: None,
            resume: None,
            begins_with: None,
        };
        let result = Box::pin(scenarios.run(call, step)).await;
        result.expect("it does not restart the machine")
    }

    async fn run(&self, body: &str, params: Value, mode: Mode) -> (NodeResult, Heard) {
        let hash = self.put(&format!("fn run(p) {{\n{body}\n}}"));
        let mut heard = Heard::default();
        let call = call(hash, params, mode);
        let result = self.call(&self.scenarios(), &call, &mut heard).await;
        (result, heard)
    }
}

fn call(bundle: BundleHash, params: Value, mode: Mode) -> Call {
    Call {
        scenario: "web".parse().expect("a name"),
        bundle,
        function: "run".parse().expect("a name"),
        params,
        mode,
        limits: Limits {
            timeout: Span::from_secs(60),
            output_bytes: 1 << 20,
            retry: 0,
        },
        expect: Default::default(),
        secrets: None,
    }
}

fn request() -> RequestId {
    RequestId {
        run: RunId::random(),
        step: 1,
    }
}

fn why(result: &NodeResult) -> &str {
    result.reason.as_deref().unwrap_or_default()
}

#[tokio::test]
async fn a_function_changes_real_files_and_says_what() {
    let node = Node::new();
    let body = r#"
    let conf = file(`${p.dir}/app.conf`).template("templates/app.conf", #{ port: p.port }, #{ mode: "0640" });
    if conf.changed { command(["sh", "-c", "echo restarted; echo careful >&2"]); }
    log(`on ${node().name} in ${node().labels.zone}, ${fact("os.name")}`);
    emit("deployed", #{ port: p.port });
    #{ port: p.port, name: node().name }"#;
    let params = json!({"dir": node.dir.path(), "port": 8080});
    let file = node.dir.path().join("app.conf");

    let (would, heard) = node.run(body, params.clone(), Mode::Check).await;
    assert_eq!(would.outcome, Outcome::Succeeded, "{would:?}");
    assert!(!file.exists() && heard.started == 0);
    let planned = would.tally.expect("counted");
    assert_eq!((planned.would_change, planned.changed), (2, 0));
    assert!(!heard.text().contains("scenario.deployed"));

    let (did, heard) = node.run(body, params.clone(), Mode::Apply).await;
    assert_eq!((did.outcome, &did.reason), (Outcome::Succeeded, &None));
    assert_eq!(
        std::fs::read_to_string(&file).expect("made"),
        "listen = 8080\n"
    );
    let text = heard
        .text()
        .replace(&node.dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(text, @r#"
    changed: file DIR/app.conf: created
      +listen = 8080
    changed: command sh -c echo restarted; echo careful >&2: ran, exit code 0
    on web-01 in gva2, debian
    event scenario.deployed {"port":8080}
    "#);
    assert_eq!(
        (heard.out.as_str(), heard.err.as_str()),
        ("restarted\n", "careful\n")
    );
    assert_eq!((did.output_bytes > 18, heard.started), (true, 1));
    assert_eq!(did.value, Some(json!({"port": 8080, "name": "web-01"})));
    assert_eq!((did.tally.expect("counted").changed, did.digest), (2, None));
    let Some(Note::Change { at: Some(at), .. }) = heard.notes.first() else {
        panic!("{:?}", heard.notes)
    };
    assert_eq!(at.line, 3);

    let (again, _) = node.run(body, params.clone(), Mode::Apply).await;
    assert_eq!(again.outcome, Outcome::Succeeded);
    let tally = again.tally.expect("counted");
    assert_eq!((tally.changed, tally.unchanged), (0, 1));

    // The same plan twice has the same digest, another one has not.
    let mut digests = Vec::new();
    for port in [1, 1, 2] {
        let params = json!({"dir": node.dir.path(), "port": port});
        let (result, _) = node.run(body, params, Mode::Check).await;
        digests.push(result.digest.expect("a digest"));
    }
    assert!(digests[0] == digests[1] && digests[1] != digests[2]);
}

#[tokio::test]
async fn what_fails_says_where() {
    let node = Node::new();
    let mut said = Vec::new();
    for body in [
        "command([\"sh\", \"-c\", \"echo no disk >&2; exit 3\"]);",
        "file(\"/tmp/../etc/x\").content(\"x\");",
        "throw \"too old\";",
        "1 + \"a\" + ();  no_such_function(1);",
        "loop {}",
        "fn_that_calls_itself(1)",
        "let s = \"x\"; loop { s += s; }",
        "emit(\"No Kind\");",
        "for i in 0..200 { emit(\"x\"); }",
        "reboot();",
    ] {
        let (result, heard) = node.run(body, json!({}), Mode::Apply).await;
        assert_eq!(result.outcome, Outcome::Failed, "{body}");
        assert!(!why(&result).contains('\n'));
        assert_eq!(result.value, None);
        let shown = heard
            .notes
            .iter()
            .any(|note| matches!(note, Note::Failed { .. }));
        assert!(shown, "{body}");
        said.push(why(&result).to_owned());
    }
    insta::assert_snapshot!(said.join("\n"), @r"
    web/scenario.rhai:2:1: command sh -c echo no disk >&2; exit 3: exit code 3: no disk
    web/scenario.rhai:2:23: file /tmp/../etc/x: /tmp/../etc/x is left alone: it has `..` in it
    web/scenario.rhai:2:1: too old
    web/scenario.rhai:2:16: there is no function no_such_function(int)
    web/scenario.rhai: the function works without an end
    web/scenario.rhai:2:1: there is no function fn_that_calls_itself(int)
    web/scenario.rhai: length of string grows larger than a script may have it
    web/scenario.rhai:2:1: emit: `No Kind` is no kind of event: 1 to 60 small letters, digits, `.`, `_` and `-`
    web/scenario.rhai:2:19: emit x: a step makes at most 100 events
    web/scenario.rhai:2:1: reboot: this run cannot go on after a restart of the machine; restart it by hand
    ");
    // What is caught is no failure.
    let body = "try { command([\"false\"]); } catch (e) { log(e); }  \"fine\"";
    let (result, _) = node.run(body, json!({}), Mode::Apply).await;
    assert_eq!(result.outcome, Outcome::Succeeded);
    assert_eq!(result.value, Some("fine".into()));
}

#[tokio::test]
async fn what_the_node_does_not_grant_is_refused_by_name() {
    let mut node = Node::new();
    node.config.capabilities.package = false;
    node.config.capabilities.command = false;
    for (body, name) in [
        ("package(\"x\").installed();", "package"),
        ("command([\"true\"]);", "command"),
        ("shell(\"true\", #{ only_if: [\"true\"] });", "command"),
    ] {
        let (result, _) = node.run(body, json!({}), Mode::Apply).await;
        assert_eq!(result.outcome, Outcome::Failed);
        let wanted = format!("does not grant the capability `{name}`");
        assert!(why(&result).contains(&wanted), "{result:?}");
    }
    assert_eq!(
        node.scenarios().capabilities(),
        ["file", "service", "user", "http", "puppet", "reboot"]
    );
}

#[tokio::test]
async fn its_time_and_a_cancel_end_it_and_what_it_started() {
    let mut node = Node::new();
    node.timeout = Duration::from_millis(400);
    for body in [
        "sleep(\"1h\");",
        "shell(\"sleep 300 & sleep 300\");",
        "try { sleep(\"1h\"); } catch { log(\"caught\"); }",
        "loop { try { command([\"true\"]); } catch { } }",
    ] {
        let (result, heard) = node.run(body, json!({}), Mode::Apply).await;
        assert_eq!(result.outcome, Outcome::TimedOut, "{body}: {result:?}");
        assert_eq!(why(&result), "still running after 400ms");
        assert!(!heard.text().contains("caught"));
    }
    node.timeout = Duration::from_secs(120);
    for body in [
        "shell(\"echo begun; sleep 300\");",
        "command([\"echo\", \"begun\"]); sleep(\"1h\");",
    ] {
        node.cancel = CancellationToken::new();
        let mut heard = Heard {
            cancel_on: Some(("begun", node.cancel.clone())),
            ..Heard::default()
        };
        let hash = node.put(&format!("fn run(p) {{ {body} }}"));
        let call = call(hash, json!({}), Mode::Apply);
        let result = node.call(&node.scenarios(), &call, &mut heard).await;
        assert_eq!(result.outcome, Outcome::Cancelled, "{body}: {result:?}");
        assert_eq!(why(&result), "cancelled while it ran");
    }
}

#[tokio::test]
async fn output_without_an_end_fills_nothing() {
    let mut node = Node::new();
    node.output_bytes = 10_000;
    for body in [
        "shell(\"head -c 5000000 /dev/zero | tr '\\\\0' x\");",
        "for i in 0..5000 { log(`line ${i}`); }",
        "for i in 0..50 { command([\"echo\", p.text]); }",
    ] {
        let params = json!({"text": "x".repeat(1_000)});
        let (result, heard) = node.run(body, params, Mode::Apply).await;
        assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
        assert!(result.truncated, "{body}");
        let all = heard.out.len() + heard.err.len() + heard.text().len();
        assert!(all <= 10_200, "{body}: {all}");
    }
    let (result, heard) = node
        .run(
            "\"x\".pad(100000, \"y\"); let s = \"x\"; s.pad(100000, \"y\"); s",
            json!({}),
            Mode::Apply,
        )
        .await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
    // It is in none of the 10,000 bytes.
    assert_eq!((result.value, result.value_bytes), (None, Some(100_002)));
    assert!(result.truncated && heard.notes.is_empty());
    node.output_bytes = 1 << 20;
    let body = format!("let s = \"\"; s.pad({}, \"y\"); s", MAX_VALUE);
    let (result, heard) = node.run(&body, json!({}), Mode::Apply).await;
    assert_eq!((result.value, result.truncated), (None, false));
    let value = Value::String("y".repeat(MAX_VALUE));
    assert_eq!(heard.notes, [Note::Value { value }]);
}

#[tokio::test]
async fn a_secret_is_in_nothing_that_a_step_says() {
    let mut node = Node::new();
    let values = Map::from_iter([("token".to_owned(), json!("geheim-42"))]);
    node.secrets = Secrets::new(values);
    let body = r#"
    file(`${p.dir}/conf`).content("token = " + p.token + "\n");
    log(`it is ${p.token}`);
    emit("told", #{ token: p.token });
    command(["sh", "-c", "printf gehe; sleep 0.3; echo im-42; cat; echo geheim-42 >&2"], #{ stdin: p.token });
    try { command(["sh", "-c", `echo ${p.token} >&2; exit 3`]); } catch (e) { log(e); }
    p.token"#;
    let params = json!({"dir": node.dir.path(), "token": {"$secret": "token"}});
    for mode in [Mode::Check, Mode::Apply] {
        let (result, heard) = node.run(body, params.clone(), mode).await;
        assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
        let all = format!("{result:?} {} {} {:?}", heard.out, heard.err, heard.notes);
        assert!(!all.contains("geheim-42"), "{all}");
        assert!(all.contains("[redacted]"), "{all}");
    }
    let written = std::fs::read_to_string(node.dir.path().join("conf")).expect("made");
    assert_eq!(written, "token = geheim-42\n");
    let (result, heard) = node.run("throw `no ${p.token}`", params, Mode::Apply).await;
    let all = format!("{result:?} {:?}", heard.notes);
    assert!(
        !all.contains("geheim-42") && all.contains("[redacted]"),
        "{all}"
    );
}

#[tokio::test]
async fn what_is_not_there_or_not_whole_is_declined() {
    let node = Node::new();
    let scenarios = node.scenarios();
    let mut heard = Heard::default();
    let absent = call(BundleHash::of(b"x"), json!({}), Mode::Apply);
    let result = node.call(&scenarios, &absent, &mut heard).await;
    assert_eq!(result.outcome, Outcome::Declined);
    assert_eq!(
        why(&result),
        "this agent does not have the scenario `web` in that version"
    );
    let hash = node.put("fn run(p) { 1 }");
    let bad = call(hash, json!([1]), Mode::Apply);
    assert_eq!(scenarios.check(&bad), Err(Refused::Shape));
    let path = node.dir.path().join("bundles").join(hash.to_string());
    std::fs::write(path, "something else").expect("written");
    let result = node
        .call(&scenarios, &call(hash, json!({}), Mode::Apply), &mut heard)
        .await;
    assert_eq!(result.outcome, Outcome::Declined);
    assert!(why(&result).contains("was damaged"), "{result:?}");
    let hash = node.put("fn run(p) { let }");
    let result = node
        .call(&scenarios, &call(hash, json!({}), Mode::Apply), &mut heard)
        .await;
    assert_eq!(result.outcome, Outcome::Declined);
    assert!(
        why(&result).starts_with("web/scenario.rhai:1:"),
        "{result:?}"
    );
    // A function that the scenario does not have fails, where it was sent.
    let hash = node.put("fn walk(p) { 1 }");
    let result = node
        .call(&scenarios, &call(hash, json!({}), Mode::Apply), &mut heard)
        .await;
    assert_eq!(result.outcome, Outcome::Failed);
}

/// Counts how often it is asked, and panics when it is told to.
struct Counting {
    store: BundleStore,
    asked: AtomicUsize,
}

impl Bundles for Counting {
    fn may_have(&self, _: BundleHash) -> bool {
        true
    }

    fn get(&self, hash: BundleHash) -> BoxFuture<'_, Result<Bundle, StoreError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.store.get(hash)
    }
}

#[tokio::test]
async fn a_scenario_is_compiled_once_and_only_a_few_are_kept() {
    let node = Node::new();
    let counting = Arc::new(Counting {
        store: node.store.clone(),
        asked: AtomicUsize::new(0),
    });
    let scenarios = Scenarios::new(&node.config, counting.clone(), None);
    let hashes: Vec<BundleHash> = (0..=KEPT)
        .map(|n| node.put(&format!("fn run(p) {{ {n} }}")))
        .collect();
    let asked = || counting.asked.load(Ordering::Relaxed);
    for hash in &hashes {
        for _ in 0..3 {
            let mut heard = Heard::default();
            let call = call(*hash, json!({}), Mode::Apply);
            let result = node.call(&scenarios, &call, &mut heard).await;
            assert_eq!(result.outcome, Outcome::Succeeded);
        }
    }
    assert_eq!(asked(), hashes.len());
    let first = call(hashes[0], json!({}), Mode::Apply);
    node.call(&scenarios, &first, &mut Heard::default()).await;
    assert_eq!(asked(), hashes.len() + 1, "it was kept for ever");
}

#[tokio::test]
async fn many_at_once_each_have_their_own() {
    let node = Arc::new(Node::new());
    let scenarios = Arc::new(node.scenarios());
    let hash = node.put("fn run(p) { let r = command([\"echo\", p.n]); log(p.n); r.stdout }");
    let mut all = tokio::task::JoinSet::new();
    for n in 0..24 {
        let (node, scenarios) = (node.clone(), scenarios.clone());
        all.spawn(async move {
            let mut heard = Heard::default();
            let text = format!("number {n}");
            let call = call(hash, json!({"n": text}), Mode::Apply);
            let result = node.call(&scenarios, &call, &mut heard).await;
            assert_eq!(result.outcome, Outcome::Succeeded);
            assert_eq!(heard.out, format!("{text}\n"));
            assert_eq!(result.value, Some(format!("{text}\n").into()));
            let changes = heard.notes.iter().filter(|note| {
                matches!(
                    note,
                    Note::Change {
                        change: Change::Changed { .. },
                        ..
                    }
                )
            });
            assert_eq!(changes.count(), 1);
        });
    }
    while let Some(done) = all.join_next().await {
        done.expect("it did not panic");
    }
}

#[tokio::test]
async fn one_that_failed_is_tried_again_inside_its_time() {
    let node = Node::new();
    let body = r#"
    let log = `${p.dir}/log`;
    command(["sh", "-c", "echo x >> " + log]);
    if command(["cat", log], #{ changes: false }).stdout.len() < 4 { throw "not yet"; }
    "at last""#;
    let params = json!({"dir": node.dir.path()});
    let hash = node.put(&format!("fn run(p) {{\n{body}\n}}"));
    let mut asked = call(hash, params.clone(), Mode::Apply);
    asked.limits.retry = 3;
    let mut heard = Heard::default();
    let result = node.call(&node.scenarios(), &asked, &mut heard).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
    assert_eq!(result.value, Some("at last".into()));
    let again = heard
        .notes
        .iter()
        .filter(|n| matches!(n, Note::Again { .. }));
    assert_eq!(again.count(), 1, "{:?}", heard.notes);
    // What was done in the last try counts.
    assert_eq!(result.tally.expect("counted").changed, 1);

    std::fs::remove_file(node.dir.path().join("log")).expect("removed");
    asked.limits.retry = 0;
    let result = node
        .call(&node.scenarios(), &asked, &mut Heard::default())
        .await;
    assert_eq!(
        (result.outcome, why(&result)),
        (Outcome::Failed, "web/scenario.rhai:5:70: not yet")
    );
}

#[tokio::test]
async fn what_has_drifted_since_the_plan_is_declined_and_left_alone() {
    let node = Node::new();
    let body = r#"
    file(`${p.dir}/conf`).content("new\n");
    command(["echo", "applied"]);"#;
    let params = json!({"dir": node.dir.path()});
    let conf = node.dir.path().join("conf");
    let (planned, _) = node.run(body, params.clone(), Mode::Check).await;
    let digest = planned.digest.expect("a digest");
    let hash = node.put(&format!("fn run(p) {{\n{body}\n}}"));
    let mut asked = call(hash, params, Mode::Apply);
    asked.expect = [(Serial(7), digest)].into_iter().collect();

    std::fs::write(&conf, "somebody else\n").expect("written");
    let mut heard = Heard::default();
    let result = node.call(&node.scenarios(), &asked, &mut heard).await;
    assert_eq!(result.outcome, Outcome::Declined);
    assert!(why(&result).starts_with(DRIFTED), "{result:?}");
    assert_eq!(
        std::fs::read_to_string(&conf).expect("there"),
        "somebody else\n"
    );
    // What it would change now is shown.
    assert!(heard.text().contains("-somebody else"), "{}", heard.text());
    assert_eq!((heard.out.as_str(), heard.started), ("", 0));

    std::fs::remove_file(&conf).expect("removed");
    let mut heard = Heard::default();
    let result = node.call(&node.scenarios(), &asked, &mut heard).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
    assert_eq!(std::fs::read_to_string(&conf).expect("there"), "new\n");
    assert!(!heard.text().contains("would change"), "{}", heard.text());
    assert_eq!(heard.out, "applied\n");
    // Nothing is expected of another node.
    asked.expect = [(Serial(8), digest)].into_iter().collect();
    let result = node
        .call(&node.scenarios(), &asked, &mut Heard::default())
        .await;
    assert_eq!(result.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn what_a_script_does_wrong_ends_it_alone() {
    let mut node = Node::new();
    node.timeout = Duration::from_secs(20);
    let scenarios = node.scenarios();
    for (script, said) in [
        ("fn run(p) { loop {} }", "works without an end"),
        (
            "fn run(p) { deep(1) } fn deep(n) { deep(n + 1) }",
            "too deep",
        ),
        (
            "fn run(p) { let s = \"x\"; s.pad(1000000000, \"y\"); }",
            "larger than",
        ),
        (
            "fn run(p) { let a = []; a.pad(1000000000, 0); }",
            "larger than",
        ),
        ("fn run(p) { let a = [0]; loop { a += a; } }", "larger than"),
        (
            "fn run(p) { let m = #{}; let i = 0; loop { m[`k${i}`] = i; i += 1; } }",
            "works without an end",
        ),
        ("fn run(p) { http(\"file:///etc/passwd\").get() }", "http"),
        ("fn run(p) { throw \"x\".repeat(100) }", "no function"),
    ] {
        let hash = node.put(script);
        let asked = call(hash, json!({}), Mode::Apply);
        let result = node.call(&scenarios, &asked, &mut Heard::default()).await;
        assert_eq!(result.outcome, Outcome::Failed, "{script}: {result:?}");
        assert!(why(&result).contains(said), "{script}: {result:?}");
    }
    // These are no scenarios at all.
    for script in [
        "fn run(p) { eval(\"1\") }",
        "import \"x\" as x; fn run(p) {}",
        "fn run(p) { print(1) }",
    ] {
        let hash = node.put(script);
        let asked = call(hash, json!({}), Mode::Apply);
        let result = node.call(&scenarios, &asked, &mut Heard::default()).await;
        assert_eq!(result.outcome, Outcome::Declined, "{script}: {result:?}");
        assert!(scenarios.prepare(&asked, request()).await.is_err());
    }
    // And it goes on to work.
    let hash = node.put("fn run(p) { \"lives\" }");
    let asked = call(hash, json!({}), Mode::Apply);
    let result = node.call(&scenarios, &asked, &mut Heard::default()).await;
    assert_eq!(result.value, Some("lives".into()));
}
