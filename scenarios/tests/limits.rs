//! What a script may not do, each with the outcome that people see. All of it
//! in a test's thread, with its small stack: a limit that does not hold ends
//! the whole program.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use muster_protocol::envelope::Mode;
use muster_protocol::ids::Serial;
use muster_scenarios::bundle::Bundle;
use muster_scenarios::check::check;
use muster_scenarios::durable::{
    HostCall, Input, Member, Program, Records, Reply, StepReply, Turn, turn,
};
use muster_scenarios::fault::Fault;
use muster_scenarios::node::{
    self, Call, Effect, Ended, Host, HostError, NodeFacts, Performed, Source,
};
use muster_scenarios::secret::Secrets;
use serde_json::{Map, Value, json};

/// A host that panics at a program called `panic`, writes a lot at `bomb`,
/// and says stop after so many questions.
struct Fragile {
    asked: AtomicU64,
    patience: u64,
    seen: Mutex<Vec<String>>,
}

impl Host for Fragile {
    fn perform(&self, effect: &Effect, _: Mode, _: Source) -> Result<Performed, HostError> {
        let shown = json!(effect).to_string();
        let value = if shown.contains("bomb") {
            json!({"exit": 0, "stdout": "x".repeat(8 * 1024 * 1024), "stderr": ""})
        } else {
            json!({"exit": 0, "stdout": "", "stderr": ""})
        };
        assert!(!shown.contains("panic"), "the disk is on fire");
        self.seen.lock().expect("a lock").push(shown);
        Ok(Performed {
            change: None,
            value,
        })
    }

    fn stopped(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) >= self.patience
    }

    fn facts(&self) -> Arc<NodeFacts> {
        Arc::new(NodeFacts::default())
    }
}

fn fragile(patience: u64) -> Arc<Fragile> {
    Arc::new(Fragile {
        asked: AtomicU64::new(0),
        patience,
        seen: Mutex::new(Vec::new()),
    })
}

fn map(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn called(params: Value, secrets: Value) -> Call {
    Call {
        function: "run".parse().expect("a name"),
        params: map(params),
        secrets: Secrets::new(map(secrets)),
        mode: Mode::Apply,
    }
}

fn on_node(body: &str) -> String {
    let text = format!("fn f(n) {{ f(n + 1) }}\nfn run(p) {{\n{body}\n}}");
    let bundle = Bundle::new(text, BTreeMap::new()).expect("a bundle");
    let call = called(json!({}), json!({}));
    match node::run("x.rhai", &bundle, &call, fragile(u64::MAX)) {
        Ok(done) => format!("gave {}", done.value),
        Err(Ended::Failed(fault)) => fault.message,
        Err(Ended::Stopped) => "stopped".to_owned(),
    }
}

/// Where and why a function fails.
fn node_fault(text: &str) -> Option<Fault> {
    let bundle = Bundle::new(text.to_owned(), BTreeMap::new()).expect("a bundle");
    let call = called(json!({}), json!({}));
    match node::run("x.rhai", &bundle, &call, fragile(u64::MAX)) {
        Err(Ended::Failed(fault)) => Some(*fault),
        _ => None,
    }
}

fn input() -> Input {
    Input {
        params: map(json!({"key": {"$secret": "key"}})),
        sets: BTreeMap::from([(
            "targets".to_owned(),
            vec![Member {
                serial: Serial(1),
                name: "web-01".parse().expect("a name"),
            }],
        )]),
    }
}

fn answer(_: u64, call: &HostCall) -> Option<Reply> {
    Some(match call {
        HostCall::On(_) | HostCall::TryOn(_) => Reply::Step(StepReply::default()),
        _ => Reply::Value(Value::Null),
    })
}

fn in_main(body: &str) -> String {
    let text = format!("fn f(n) {{ f(n + 1) }}\nfn main(p) {{\n{body}\n}}");
    let program = match Program::new("x.rhai", &text) {
        Ok(program) => program,
        Err(fault) => return fault.message,
    };
    match turn(&program, &input(), Records::default(), answer, || false).0 {
        Turn::Failed { fault, .. } => fault.message,
        other => format!("{other:?}"),
    }
}

#[test]
fn what_never_ends_or_grows_without_end_fails_alike_on_both_sides() {
    let bodies = [
        "loop {}",
        "f(0)",
        "let s = \"x\"; loop { s += s; }",
        "\"\".pad(1000000000, \"x\")",
        "let s = \"\"; s.pad(4000000, \"x\"); s.replace(\"x\", s); s.len()",
        "let s = \"\"; s.pad(4000000, \"x\"); s.split(\"\").len()",
        "let s = \"\"; s.pad(4000000, \"x\"); s.split(\"\", 9000000).len()",
        "let a = [0]; loop { a += a; }",
        "let a = []; a.pad(1000000000, 0);",
        "blob(1000000000)",
        "let m = #{}; let i = 0; loop { m[`k${i}`] = i; i += 1; }",
        "sleep(3600)",
        "timestamp()",
        "let x = 1; call(\"f\")",
        "throw #{ a: \"\\x1b[2J\" }",
        "1 / 0",
        "9223372036854775807 + 1",
        "[1][5]",
        "let x = (); x.y.z",
    ];
    let said = bodies.map(|body| {
        let (node, main) = (on_node(body), in_main(body));
        if node == main {
            format!("{body}\n  {node}")
        } else {
            format!("{body}\n  node: {node}\n  main: {main}")
        }
    });
    insta::assert_snapshot!(said.join("\n"), @r#"
    loop {}
      node: the function works without an end
      main: the script works without an end; what takes long belongs on the nodes
    f(0)
      functions call each other too deep: a loop does the same
    let s = "x"; loop { s += s; }
      length of string grows larger than a script may have it
    "".pad(1000000000, "x")
      length of string grows larger than a script may have it
    let s = ""; s.pad(4000000, "x"); s.replace("x", s); s.len()
      length of string grows larger than a script may have it
    let s = ""; s.pad(4000000, "x"); s.split("").len()
      size of array grows larger than a script may have it
    let s = ""; s.pad(4000000, "x"); s.split("", 9000000).len()
      size of array grows larger than a script may have it
    let a = [0]; loop { a += a; }
      size of array/BLOB grows larger than a script may have it
    let a = []; a.pad(1000000000, 0);
      size of array/BLOB grows larger than a script may have it
    blob(1000000000)
      size of array/BLOB grows larger than a script may have it
    let m = #{}; let i = 0; loop { m[`k${i}`] = i; i += 1; }
      node: the function works without an end
      main: the script works without an end; what takes long belongs on the nodes
    sleep(3600)
      `sleep` takes a duration with its unit: sleep("5s")
    timestamp()
      there is no function timestamp()
    let x = 1; call("f")
      Data type incorrect: string (expecting Fn)
    throw #{ a: "\x1b[2J" }
      #{"a": "\u{1b}[2J"}
    1 / 0
      Division by zero: 1 / 0
    9223372036854775807 + 1
      Addition overflow: 9223372036854775807 + 1
    [1][5]
      Array index 5 out of bounds: only 1 element in array
    let x = (); x.y.z
      Unknown property 'y' - a getter is not registered for type '()'
    "#);
}

#[test]
fn what_nests_deep_ends_in_a_message() {
    // Deep data, which is compared, copied, measured and dropped by functions
    // that call themselves.
    for body in [
        "let a = []; let i = 0; while i < 4000 { a = [a]; i += 1; } a == a",
        "let a = []; let i = 0; while i < 3000 { a = [a]; i += 1; } a",
        "let m = #{}; let i = 0; while i < 3000 { m = #{ m: m }; i += 1; } `${m}`.len()",
        "let a = []; let i = 0; while i < 100 { a = [a]; i += 1; } emit(\"x\", #{ a: a })",
        // A value that holds itself.
        "let a = []; let f = || a.len(); a.push(a); a.push(a); a.len()",
    ] {
        on_node(body);
        in_main(body);
    }
    let deep = "let a = []; let i = 0; while i < 100 { a = [a]; i += 1; } ";
    assert_eq!(
        in_main(&format!("{deep} on(targets(), \"f\", #{{ a: a }})")),
        "the parameters of the step: it is nested deeper than 32"
    );
    assert_eq!(
        on_node(&format!("{deep} a")),
        "what `run` returns cannot be sent: it is nested deeper than 32"
    );

    // What no look at its size would end: each holds the one before.
    for grows in [
        "a = [a];",
        "a = #{ a: a };",
        "a = [0, #{ a: [a] }];",
        "let b = a; a = || b;",
        "let b = [a]; a = || b;",
        "a = wrapped(a);",
        "try { let b = a; a = [0, || b]; } catch { }",
        "[1].for_each(|| a = [a]);",
    ] {
        let body = format!("let a = || 0; loop {{ {grows} }}");
        let said = |text: String| -> Fault {
            let text = format!("fn wrapped(a) {{ [a] }}\n{text}");
            match node_fault(&text) {
                Some(fault) => fault,
                None => panic!("{grows}: it ended well"),
            }
        };
        let fault = said(format!("fn run(p) {{ {body} }}"));
        let is_deep = fault.message == "a value is nested deeper than 256 levels, or holds itself";
        assert!(is_deep, "{grows}: {fault:?}");
        // What was caught ends at the next operation, wherever that is.
        assert!(fault.at.is_some() || grows.starts_with("try"), "{grows}");
        let message = in_main(&body.replace("wrapped(a)", "[a]"));
        assert!(message.contains("nested deeper"), "{grows}: {message}");
    }
    // Deep text, which is parsed by such functions.
    let deep = |open: &str, inside: &str, close: &str, times: usize| {
        format!(
            "scenario(\"x\"); fn run(p) {{ let x = 1; {}{inside}{}; }}",
            open.repeat(times),
            close.repeat(times)
        )
    };
    for text in [
        deep("(", "1", ")", 20_000),
        deep("[", "1", "]", 20_000),
        deep("{", "1", "}", 20_000),
        deep("!", "true", "", 20_000),
        deep("-", "x", "", 20_000),
        deep("if true { 1 } else ", "{ 2 }", "", 8_000),
        deep("x + ", "1", "", 20_000),
        deep("", "x", ".f()", 20_000),
        deep("", "x", "[0]", 20_000),
        deep("", "x", " = x", 20_000),
        deep("x && ", "x", "", 20_000),
        deep("|x| ", "x", "", 20_000),
        deep("`${", "x", "}`", 5_000),
    ] {
        let head: String = text.chars().take(60).collect();
        // Whatever it says: it says it, and also on nodes and in the broker.
        assert!(check("x.rhai", &text).is_err(), "{head}");
        let _ = Program::new("x.rhai", &text);
        let bundle = Bundle::new(text, BTreeMap::new()).expect("a bundle");
        let _ = node::Program::new("x.rhai", &bundle);
    }
}

#[test]
fn there_is_no_way_out_of_the_language() {
    let said = [
        "eval(\"1\")",
        "import \"x\" as x;",
        "export x;",
        "print(\"x\")",
        "debug(\"x\")",
        "open_file(\"/etc/passwd\")",
        "undeclared",
    ]
    .map(|body| format!("{body}\n  {}\n  {}", on_node(body), in_main(body)));
    insta::assert_snapshot!(said.join("\n"), @r#"
    eval("1")
      there is no `eval` in scenarios
      there is no `eval` in scenarios
    import "x" as x;
      there is no `import` in scenarios
      there is no `import` in scenarios
    export x;
      there is no `export` in scenarios
      there is no `export` in scenarios
    print("x")
      there is no `print` in scenarios
      there is no `print` in scenarios
    debug("x")
      there is no `debug` in scenarios
      there is no `debug` in scenarios
    open_file("/etc/passwd")
      there is no function open_file(string)
      there is no function open_file(string)
    undeclared
      there is no variable `undeclared` here
      there is no variable `undeclared` here
    "#);
}

#[test]
fn a_panic_in_a_host_function_ends_that_call_and_nothing_else() {
    assert_eq!(
        on_node("command([\"panic\"])"),
        "a function of muster failed, and not of the scenario: the disk is on fire"
    );
    assert_eq!(on_node("1"), "gave 1");

    let program = Program::new("x.rhai", "fn main(p) { now() }").expect("a program");
    let broken = |_, _: &HostCall| panic!("no clock");
    let (turned, _) = turn(&program, &input(), Records::default(), broken, || false);
    assert_eq!(
        turned,
        Turn::Broken("a function of muster failed, and not of the scenario: no clock".into())
    );
}

#[test]
fn an_output_bomb_does_not_pass_through_a_script() {
    assert_eq!(
        on_node("command([\"bomb\"]).stdout"),
        "length of string grows larger than a script may have it"
    );
    assert_eq!(
        on_node("let s = \"\"; s.pad(300000, \"x\"); s"),
        "what `run` returns cannot be sent: it is larger than 262144 bytes"
    );
    assert_eq!(
        in_main("log(\"\".pad(20000, \"x\"))"),
        "there is no function log(())"
    );
    assert_eq!(
        in_main("let s = \"\"; s.pad(20000, \"x\"); log(s)"),
        "log: the text has 20000 bytes, at most 16384 are taken"
    );
}

#[test]
fn a_script_that_only_computes_is_stopped_from_outside() {
    let bundle = Bundle::new("fn run(p) { loop {} }".into(), BTreeMap::new()).expect("a bundle");
    let call = called(json!({}), json!({}));
    let ended = node::run("x.rhai", &bundle, &call, fragile(10));
    assert_eq!(ended, Err(Ended::Stopped));

    let text = "fn main(p) { log(\"kept\"); try { loop {} } catch { log(\"never\") } }";
    let program = Program::new("x.rhai", text).expect("a program");
    let asked = AtomicU64::new(0);
    let stop = move || asked.fetch_add(1, Ordering::Relaxed) > 10;
    let (turned, fresh) = turn(&program, &input(), Records::default(), answer, stop);
    assert_eq!(turned, Turn::Stopped);
    assert_eq!(fresh.len(), 1, "what was answered is not lost");
}

#[test]
fn what_a_person_gives_is_one_argument_whatever_it_holds() {
    for hostile in [
        "; rm -rf /",
        "$(id)",
        "`id`",
        "a b\nc",
        "'\"\\",
        "-rf",
        "${x}",
        "\u{202e}",
    ] {
        let text = "fn run(p) { command([\"echo\", p.text]); }";
        let bundle = Bundle::new(text.into(), BTreeMap::new()).expect("a bundle");
        let host = fragile(u64::MAX);
        let call = called(json!({ "text": hostile }), json!({}));
        node::run("x.rhai", &bundle, &call, host.clone()).expect("it runs");
        let seen = host.seen.lock().expect("a lock").join("\n");
        let seen: Value = serde_json::from_str(&seen).expect("one effect");
        assert_eq!(seen["what"]["argv"], json!(["echo", hostile]));
    }
}

#[test]
fn a_secret_is_handed_on_and_never_said() {
    // In the broker: a name in the place of the value, whatever is tried.
    for body in [
        "log(`the key is ${p.key}`)",
        "log(\"\" + p.key)",
        "emit(\"x\", #{ key: `${p.key}` })",
        "abort(`no: ${p.key}`)",
        "throw p.key",
        "ask(`${p.key}?`)",
    ] {
        let said = in_main(body);
        assert!(!said.contains("$secret"), "{body}: {said}");
    }
    assert_eq!(in_main("p.key.len()"), "there is no function len(Secret)");
    assert_eq!(
        in_main("on(targets(), \"f\", #{ \"$secret\": \"key\" })"),
        "the parameters of the step: `$secret` is no name in a map"
    );
    let text = "fn main(p) { on(targets(), \"f\", #{ deep: [p.key], all: p }) }";
    let program = Program::new("x.rhai", text).expect("a program");
    let (turned, _) = turn(
        &program,
        &input(),
        Records::default(),
        |_, _| None,
        || false,
    );
    let Turn::Wants {
        call: HostCall::On(step),
        ..
    } = turned
    else {
        panic!("{turned:?}")
    };
    assert_eq!(step.secrets(), BTreeSet::from(["key".to_owned()]));
    let journaled = json!(step).to_string();
    assert!(journaled.contains("[{\"$secret\":\"key\"}]"), "{journaled}");

    // On the node: in what the program gets, and nowhere that people look.
    let text = "fn run(p) {
        command([\"login\", p.key]);
        log(`key: ${p.key}`);
        emit(\"x\", #{ key: p.key });
        try { throw p.key } catch (e) { log(`caught ${e}`) }
        if p.fail { throw `bad key ${p.key}` }
        [p.key]
    }";
    let bundle = Bundle::new(text.into(), BTreeMap::new()).expect("a bundle");
    let host = fragile(u64::MAX);
    let call = |fail: bool| {
        let key = json!({"$secret": "key"});
        called(
            json!({ "fail": fail, "key": key }),
            json!({"key": "hunter2"}),
        )
    };
    assert!(!format!("{:?}", call(true)).contains("hunter2"));
    let done = node::run("x.rhai", &bundle, &call(false), host.clone()).expect("it runs");
    assert_eq!(done.value, json!(["[redacted]"]));
    let seen = host.seen.lock().expect("a lock").clone();
    assert!(seen[0].contains("hunter2"), "the program needs it");
    assert!(seen[1..].iter().all(|s| !s.contains("hunter2")), "{seen:?}");
    let failed = node::run("x.rhai", &bundle, &call(true), host);
    assert!(!format!("{failed:?}").contains("hunter2"), "{failed:?}");
    assert!(format!("{failed:?}").contains("bad key [redacted]"));
}
