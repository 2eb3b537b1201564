//! `vm::…`: what is wrong with it is found in its place, and what comes out of
//! a script is whole.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use muster_protocol::envelope::Mode;
use muster_protocol::vm::VmCall;
use muster_scenarios::bundle::Bundle;
use muster_scenarios::check::check;
use muster_scenarios::node::{
    Call, Change, Effect, Ended, Host, HostError, NodeFacts, Performed, Program, Source,
};
use muster_scenarios::secret::Secrets;
use serde_json::{Value, json};

#[derive(Default)]
struct Scribe(Mutex<Vec<Effect>>);

impl Host for Scribe {
    fn perform(&self, effect: &Effect, _: Mode, _: Source) -> Result<Performed, HostError> {
        self.0.lock().expect("a lock").push(effect.clone());
        let value = match effect {
            Effect::Vm(VmCall::Resize { .. }) => json!({ "at_next_start": true }),
            Effect::Vm(VmCall::GuestPing { .. }) => json!(true),
            _ => Value::Null,
        };
        let summary = "done".to_owned();
        let change = Some(Change::Changed {
            summary,
            diff: Vec::new(),
        });
        Ok(Performed { change, value })
    }

    fn stopped(&self) -> bool {
        false
    }

    fn facts(&self) -> Arc<NodeFacts> {
        Arc::new(NodeFacts::default())
    }
}

fn run(script: &str, params: Value) -> (Result<Value, String>, Vec<Effect>) {
    let bundle = Bundle::new(script.to_owned(), BTreeMap::new()).expect("a bundle");
    let program = Program::new("vm.rhai", &bundle).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(program.needs("run").contains("vm"));
    let host = Arc::new(Scribe::default());
    let call = Call {
        function: "run".parse().expect("a name"),
        params: params.as_object().cloned().expect("a map"),
        secrets: Secrets::default(),
        mode: Mode::Apply,
    };
    let ended = match program.call(&call, host.clone()) {
        Ok(done) => Ok(done.value),
        Err(Ended::Failed(fault)) => Err(fault.message),
        Err(Ended::Stopped) => Err("stopped".to_owned()),
    };
    let asked = host.0.lock().expect("a lock").clone();
    (ended, asked)
}

fn machine() -> Value {
    json!({
        "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "name": "web-03", "cpus": 2, "memory": 1_073_741_824,
        "image": {
            "name": "debian-12", "size": 512, "format": "raw", "virtual_size": 512,
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        },
        "disk": { "size": 1_073_741_824, "pool": "default" },
        "nics": [{
            "network": "public", "bridge": "br0", "mac": "52:54:00:12:ab:0f", "tap": "mtabc",
            "addresses": ["192.0.2.57", "2001:db8::57"],
        }],
        "autostart": true, "ready": "agent", "account": "acme <&\"'",
    })
}

#[test]
fn a_machine_goes_through_a_script_as_it_was() {
    let mut wanted = machine();
    wanted["account"] = "acme".into();
    let script = "fn run(p) { vm::image(p.m.image); vm::create(p.m) }";
    let (ended, asked) = run(script, json!({ "m": wanted }));
    assert_eq!(ended, Ok(json!({ "changed": true })));
    let [
        Effect::Vm(VmCall::Image { image }),
        Effect::Vm(VmCall::Create { machine }),
    ] = &*asked
    else {
        panic!("{asked:?}");
    };
    assert_eq!(json!(machine), wanted);
    assert_eq!(*image, machine.image);
    let id = "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102";
    let script = "fn run(p) { let r = vm::resize(p.id, #{ memory: \"2GiB\", disk: 4294967296 }); [r, vm::guest_ping(p.id)] }";
    let (ended, _) = run(script, json!({ "id": id }));
    assert_eq!(
        ended,
        Ok(json!([{ "at_next_start": true, "changed": true }, true]))
    );
}

#[test]
fn what_is_wrong_is_named_and_nothing_is_asked() {
    let mut said = String::new();
    let mut case = |script: &str, change: fn(&mut Value)| {
        let mut machine = machine();
        machine["account"] = "acme".into();
        change(&mut machine);
        let (ended, asked) = run(
            &format!("fn run(p) {{ {script} }}"),
            json!({ "m": machine }),
        );
        assert_eq!(asked, [], "{script}");
        said.push_str(&ended.expect_err(script));
        said.push('\n');
    };
    for change in [
        (|m| m["memory"] = "2GiB".into()) as fn(&mut Value),
        |m| m["memory"] = 0.into(),
        |m| m["name"] = "<b>".into(),
        |m| m["nics"][0]["mac"] = "01:00:00:00:00:00".into(),
        |m| m["nics"][0]["addresses"][1] = "::x".into(),
        |m| m["image"]["sha256"] = "../../etc/passwd".into(),
        |m| m["kernel"] = "x".into(),
        |m| m["disk"] = Value::Null,
        |m| m["account"] = "acme <&\"'".into(),
    ] {
        case("vm::create(p.m)", change);
    }
    let none: fn(&mut Value) = |_| {};
    for script in [
        "vm::start(\"web-03\")",
        "vm::stop(p.m.id, #{ graze: \"5s\" })",
        "vm::stop(p.m.id, #{ grace: \"soon\" })",
        "vm::resize(p.m.id, #{ memory: \"lots\" })",
        "vm::snapshot(p.m.id, \"../x\")",
        "vm::guest_exec(p.m.id, [])",
        "vm::image(#{})",
    ] {
        case(script, none);
    }
    insta::assert_snapshot!(said, @r#"
    vm::create: `memory`: invalid type: string "2GiB", expected u64
    vm::create: 0B of memory: a machine has 16MiB to 4TiB, in whole MiB
    vm::create: `name`: `<b>` is not a valid machine name: `<` is not allowed; it takes small letters, digits and `.-`
    vm::create: `nics[0].mac`: `01:00:00:00:00:00` is not a hardware address of one interface; it looks like 52:54:00:12:ab:0f
    vm::create: `nics[0].addresses[1]`: invalid IP address syntax
    vm::create: `image.sha256`: `../../etc/passwd` is not a SHA-256; it looks like 64 hex digits, as sha256sum prints them
    vm::create: `kernel`: unknown field `kernel`, expected one of `id`, `name`, `cpus`, `memory`, `image`, `disk`, `nics`, `autostart`, `ready`, `account`
    vm::create: `disk`: invalid type: null, expected struct Disk
    vm::create: `account`: `acme <&"'` is not a valid account name: ` ` is not allowed; it takes small letters, digits and `-_.@`
    `web-03` is not the UUID of a machine; it looks like 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102
    `vm::stop` has no option `graze`; did you mean `grace`?
    `grace` of `vm::stop`: `soon` is not a duration; write it like `30s`, `5m` or `1h30m`
    `memory` of `vm::resize`: `lots` is not a size; write it like 512MiB, 2GiB or 1TiB
    `../x` is not a valid snapshot name: `/` is not allowed; it takes small letters, digits and `-_.`
    there is no command to run; write it after `--`
    vm::image: missing field `name`
    "#);
}

#[test]
fn the_check_knows_the_words() {
    let said = |body: &str| {
        let text = format!("scenario(\"x\");\ntarget(\"role=hypervisor\");\n{body}\n");
        match check("vm.rhai", &text) {
            Ok(_) => String::new(),
            Err(faults) => faults.iter().map(|f| format!("error: {f}\n")).collect(),
        }
    };
    assert_eq!(
        said("fn run(p) { for one in vm::list() { vm::stop(one.id); } }"),
        ""
    );
    // A function of the script's own is its own.
    assert_eq!(
        said("fn create(p) { vm::create(p.m) } fn run(p) { create(p) }"),
        ""
    );
    let all = [
        "fn run(p) { vm::craete(#{}); }",
        "fn run(p) { vm::start(); }",
        "fn f(p) {} fn main(p) { vm::list(); on(targets(), \"f\"); }",
        "fn run(p) { virt::list(); }",
        "fn run(p) { create(#{}); }",
    ];
    let all: String = all.iter().map(|body| said(body)).collect();
    insta::assert_snapshot!(all, @r#"
    error: vm.rhai:3:17: unknown function `vm::craete`
        3 | fn run(p) { vm::craete(#{}); }
          |                 ^^^^^^ did you mean `vm::create`?
    error: vm.rhai:3:17: `vm::start` takes 1 argument, 0 are given
        3 | fn run(p) { vm::start(); }
          |                 ^^^^^
    error: vm.rhai:3:29: `vm::list` cannot be called in `main`, which runs in the broker
        3 | fn f(p) {} fn main(p) { vm::list(); on(targets(), "f"); }
          |                             ^^^^ call it in a function that `on` sends to nodes
    error: vm.rhai:3:13: undefined module: virt
        3 | fn run(p) { virt::list(); }
          |             ^^^^
    error: vm.rhai:3:13: unknown function `create`
        3 | fn run(p) { create(#{}); }
          |             ^^^^^^ did you mean `vm::create`?
    "#);
}
