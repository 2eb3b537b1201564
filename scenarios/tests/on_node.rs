//! Functions on a node, against a host that only writes down what it is
//! asked for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use muster_protocol::envelope::Mode;
use muster_scenarios::bundle::Bundle;
use muster_scenarios::node::{
    Call, Change, Effect, Ended, Host, HostError, NodeFacts, Performed, Program, Source,
};
use muster_scenarios::secret::Secrets;
use serde_json::{Map, Value, json};

#[derive(Default)]
struct Scribe {
    asked: Mutex<Vec<Effect>>,
    stop: AtomicBool,
}

impl Host for Scribe {
    fn perform(&self, effect: &Effect, _mode: Mode, _at: Source) -> Result<Performed, HostError> {
        if self.stopped() {
            return Err(HostError::Stopped);
        }
        let fails = effect.subject().contains("broken");
        self.asked.lock().expect("a lock").push(effect.clone());
        if fails {
            return Err(HostError::Failed("exit code 3".into()));
        }
        let change = match effect {
            Effect::Run(_) | Effect::Log { .. } | Effect::Emit { .. } | Effect::Http(_) => None,
            Effect::Package { .. } => Some(Change::Unchanged),
            _ => Some(Change::Changed {
                summary: "it is so now".into(),
                diff: Vec::new(),
            }),
        };
        let value = match effect {
            Effect::Run(_) => json!({"exit": 0, "stdout": "hello\n", "stderr": ""}),
            _ => Value::Null,
        };
        Ok(Performed { change, value })
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn facts(&self) -> Arc<NodeFacts> {
        let node = json!({"name": "web-01", "roles": ["web"], "labels": {"zone": "gva2"}});
        Arc::new(NodeFacts {
            node: node.as_object().cloned().expect("a map"),
            facts: json!({"os": {"name": "debian"}}),
        })
    }
}

fn call(params: Map<String, Value>) -> Call {
    Call {
        function: "run".parse().expect("a name"),
        params,
        secrets: Secrets::default(),
        mode: Mode::Apply,
    }
}

fn run(script: &str, params: &Value) -> (Result<Value, Ended>, Vec<String>) {
    let files = BTreeMap::from([(
        "templates/app.toml".parse().expect("a path"),
        b"listen = {{ port }}\n{% for h in hosts %}host = \"{{ h }}\"\n{% endfor %}".to_vec(),
    )]);
    let bundle = Bundle::new(script.to_owned(), files).expect("a bundle");
    let program = Program::new("web.rhai", &bundle).unwrap_or_else(|fault| panic!("{fault}"));
    let host = Arc::new(Scribe::default());
    let params: Map<String, Value> = params.as_object().cloned().expect("a map");
    let ended = program.call(&call(params), host.clone());
    let asked = host.asked.lock().expect("a lock");
    let sorted = |effect: &Effect| {
        let mut json = json!(effect);
        json.sort_all_objects();
        json.to_string()
    };
    let asked = asked.iter().map(sorted).collect();
    (ended.map(|done| done.value), asked)
}

#[test]
fn what_a_script_wants_is_data() {
    let script = r#"
fn run(p) {
    let conf = file("/etc/webapp.toml").template("templates/app.toml", #{ port: p.port, hosts: ["a", "b"] }, #{ mode: "0640", owner: "root", group: "web", backup: true });
    package("webapp", #{ wait: "5m" }).version(p.version);
    if conf.changed || package("webapp").installed().changed {
        service("webapp").enabled().restarted();
    }
    file("/etc/hosts").line("192.0.2.1 db", #{ replaces: "^192.0.2.1 ", diff: false }).mode("0644").owner("root:root");
    file("/srv/app").directory();
    file("/tmp/old").absent();
    user("deploy").present(#{ shell: "/bin/sh", groups: ["web"] });
    let said = command(["echo", p.text, 5], #{ ok: [0, 2], env: #{ A: "b" }, timeout: "5s", creates: "/x" });
    shell("uptime | wc", #{ cwd: "/", user: "nobody", stdin: "x", only_if: ["test", "-f", "/y"] });
    http("http://127.0.0.1/health", #{ headers: #{ Host: "web" } }).until(200, #{ tries: 3, every: "1s" });
    http("http://127.0.0.1/x").post(#{ a: 1 });
    puppet_apply("notice('x')");
    log(`on ${node().name} in ${node().labels.zone}`);
    emit("deployed", #{ version: p.version });
    said.stdout + fact("os.name")
}"#;
    let params = json!({"port": 8080, "version": "1.4.2", "text": "; rm -rf /"});
    let (ended, asked) = run(script, &params);
    assert_eq!(ended, Ok(json!("hello\ndebian")));
    insta::assert_snapshot!(asked.join("\n"), @r#"
    {"do":"file","path":"/etc/webapp.toml","wish":{"attributes":{"group":"web","mode":416,"owner":"root"},"backup":true,"is":"content","text":"listen = 8080\nhost = \"a\"\nhost = \"b\"\n"}}
    {"do":"package","name":"webapp","wait":"5m","wish":{"is":"version","version":"1.4.2"}}
    {"do":"service","name":"webapp","wish":"enabled"}
    {"do":"service","name":"webapp","wish":"restarted"}
    {"do":"file","path":"/etc/hosts","wish":{"backup":false,"diff":false,"is":"line","replaces":"^192.0.2.1 ","text":"192.0.2.1 db"}}
    {"do":"file","path":"/etc/hosts","wish":{"is":"attributes","mode":420}}
    {"do":"file","path":"/etc/hosts","wish":{"group":"root","is":"attributes","owner":"root"}}
    {"do":"file","path":"/srv/app","wish":{"is":"directory"}}
    {"do":"file","path":"/tmp/old","wish":{"is":"absent"}}
    {"do":"user","name":"deploy","wish":{"groups":["web"],"is":"present","shell":"/bin/sh","system":false}}
    {"creates":"/x","do":"run","env":{"A":"b"},"ok":[0,2],"timeout":"5s","what":{"argv":["echo","; rm -rf /","5"]}}
    {"cwd":"/","do":"run","ok":[0],"only_if":["test","-f","/y"],"stdin":"x","user":"nobody","what":{"shell":"uptime | wc"}}
    {"do":"http","headers":{"Host":"web"},"url":"http://127.0.0.1/health","wish":{"every":"1s","method":"until","status":200,"tries":3}}
    {"do":"http","url":"http://127.0.0.1/x","wish":{"body":{"a":1},"method":"post"}}
    {"do":"puppet","manifest":"notice('x')","puppet":"apply"}
    {"do":"log","text":"on web-01 in gva2"}
    {"do":"emit","fields":{"version":"1.4.2"},"kind":"deployed"}
    "#);
}

#[test]
fn mistakes_say_where_and_what_to_do() {
    let said = [
        "file(\"etc/x\").absent()",
        "file(\"/x\").content(\"a\", #{ moed: \"0644\" })",
        "file(\"/x\").mode(\"rw\")",
        "file(\"/x\").line(\"a\\nb\")",
        "file(\"/x\").template(\"app.toml\", #{})",
        "file(\"/x\").template(\"templates/app.toml\", #{ hosts: [] })",
        "package(\"broken\").latest()",
        "pakage(\"x\").latest()",
        "package(\"x\").lates()",
        "command([])",
        "command(\"ls -l\")",
        "command([\"a\", #{}])",
        "shell(\"x\", #{ timeout: \"soon\" })",
        "shell(\"x\", #{ ok: \"0\" })",
        "service(\"x\").until(5)",
        "fact(\"os.nme\")",
        "http(\"http://x\", #{ haeders: #{} }).get()",
        "loop {}",
        "fn_that_is_not()",
    ]
    .map(|line| {
        let script = format!("fn run(p) {{\n    {line};\n}}");
        match run(&script, &json!({})).0 {
            Err(Ended::Failed(fault)) => fault.to_string(),
            other => panic!("{line}: {other:?}"),
        }
    });
    insta::assert_snapshot!(said.join("\n"), @r#"
    web.rhai:2:5: `etc/x` is not an absolute path
        2 |     file("etc/x").absent();
          |     ^^^^
    web.rhai:2:16: `content` has no option `moed`; did you mean `mode`?
        2 |     file("/x").content("a", #{ moed: "0644" });
          |                ^^^^^^^
    web.rhai:2:16: `rw` is not a mode; write it like "0644"
        2 |     file("/x").mode("rw");
          |                ^^^^
    web.rhai:2:16: `line` takes one line
        2 |     file("/x").line("a\nb");
          |                ^^^^
    web.rhai:2:16: template: the scenario has no file `app.toml`
        2 |     file("/x").template("app.toml", #{});
          |                ^^^^^^^^
    web.rhai:2:16: template: templates/app.toml:1: undefined value
        2 |     file("/x").template("templates/app.toml", #{ hosts: [] });
          |                ^^^^^^^^
    web.rhai:2:23: package broken: exit code 3
        2 |     package("broken").latest();
          |                       ^^^^^^
    web.rhai:2:5: there is no function pakage(string)
        2 |     pakage("x").latest();
          |     ^^^^^^
    web.rhai:2:18: there is no function lates(Package)
        2 |     package("x").lates();
          |                  ^^^^^
    web.rhai:2:5: there is no command to run; write it after `--`
        2 |     command([]);
          |     ^^^^^^^
    web.rhai:2:5: there is no function command(string)
        2 |     command("ls -l");
          |     ^^^^^^^
    web.rhai:2:5: an argument is a text, not a map
        2 |     command(["a", #{}]);
          |     ^^^^^^^
    web.rhai:2:5: `timeout` of `shell`: `soon` is not a duration; write it like `30s`, `5m` or `1h30m`
        2 |     shell("x", #{ timeout: "soon" });
          |     ^^^^^
    web.rhai:2:5: `ok` of `shell`: invalid type: string "0", expected a sequence
        2 |     shell("x", #{ ok: "0" });
          |     ^^^^^
    web.rhai:2:18: there is no function until(Service, int)
        2 |     service("x").until(5);
          |                  ^^^^^
    web.rhai:2:5: this node has no fact `os.nme`
        2 |     fact("os.nme");
          |     ^^^^
    web.rhai:2:41: `http` has no option `haeders`; did you mean `headers`?
        2 |     http("http://x", #{ haeders: #{} }).get();
          |                                         ^^^
    web.rhai: the function works without an end
    web.rhai:2:5: there is no function fn_that_is_not()
        2 |     fn_that_is_not();
          |     ^^^^^^^^^^^^^^
    "#);
}

#[test]
fn a_failure_can_be_caught_and_a_stop_cannot() {
    let (ended, asked) = run(
        "fn run(p) { try { package(\"broken\").latest() } catch (e) { log(e) } 1 }",
        &json!({}),
    );
    assert_eq!(ended, Ok(json!(1)));
    assert_eq!(asked.len(), 2);

    let bundle = |text: &str| Bundle::new(text.to_owned(), BTreeMap::new()).expect("a bundle");
    for text in [
        "fn run(p) { try { log(\"x\") } catch { log(\"y\") } }",
        "fn run(p) { try { loop {} } catch { log(\"y\") } }",
    ] {
        let program = Program::new("x.rhai", &bundle(text)).expect("a program");
        let host = Arc::new(Scribe::default());
        host.stop.store(true, Ordering::Relaxed);
        let ended = program.call(&call(Map::new()), host.clone());
        assert_eq!(ended, Err(Ended::Stopped), "{text}");
        assert!(host.asked.lock().expect("a lock").is_empty());
    }
}
