//! A file and what there is, and what people are told of it.

use muster_protocol::api::{NetworkView, VmView};
use serde_json::{Value, json};

use super::*;
use crate::ui::Paint;

const SHOP: &str = r#"
[stack]
name = "shop"

[vars]
count = 2
memory = "2GiB"
zone = "gva2"
on = "zone=${zone}"

[env.test]
count = 1
memory = "512MiB"

[network.shop]
bridge = "br0"
pools = ["192.0.2.0/24"]
gateways = ["192.0.2.1"]

[vm.db-01]
image = "debian-12"
cpus = 2
memory = "4GiB"
disk = "20GiB"
networks = ["shop"]
roles = ["db"]
protect = true

[vm.web]
count = "${count}"
image = "debian-12"
cpus = 1
memory = "${memory}"
networks = ["shop"]
on = "${on}"
roles = ["web"]
labels = { tier = "front", zone = "${zone}" }
after = ["db-01"]
"#;

fn files(path: &str) -> Result<String, String> {
    match path {
        "keys/ana.pub" => Ok("# hers\nssh-ed25519 AAAA ana\n".to_owned()),
        "user.yaml" => Ok("#cloud-config\n".to_owned()),
        other => Err(format!("cannot read {other}: it is not there")),
    }
}

fn with(text: &str, env: Option<&str>, vars: &[(&str, &str)]) -> Result<Stack, String> {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let asked = Asked {
        env: env.map(str::to_owned),
        vars: vars.iter().map(pair).collect(),
    };
    read("shop.toml", text, &asked, &files)
        .map_err(|faults| crate::verbs::scenario::rendered(&faults, Paint::plain()))
}

fn shop() -> Stack {
    with(SHOP, None, &[]).expect("a stack")
}

fn vm(name: &str, more: Value) -> VmView {
    let mut value = json!({
        "name": name, "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "status": "running",
        "should_run": true, "hypervisor": "hv-01", "cpus": 1, "memory": 2147483648u64,
        "disk": 10737418240u64, "image": "debian-12",
        "image_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "nics": [{ "network": "shop", "bridge": "br0", "mac": "52:54:00:12:ab:0f", "tap": "mtabc",
            "addresses": ["192.0.2.57"] }],
        "addresses": ["192.0.2.57"], "roles": ["web"],
        "labels": { "tier": "front", "zone": "gva2", "stack": "shop" },
        "groups": [], "agent": true, "ready": "agent", "autostart": true, "protected": false,
        "by": "ana", "made": "2026-11-22T07:00:00Z",
    });
    let (Value::Object(all), Value::Object(more)) = (&mut value, more) else {
        panic!("objects");
    };
    all.extend(more);
    serde_json::from_value(value).expect("a machine")
}

fn db(more: Value) -> VmView {
    let mut all = json!({
        "cpus": 2, "memory": 4u64 << 30, "disk": 20u64 << 30, "roles": ["db"],
        "labels": { "stack": "shop" }, "protected": true,
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    vm("db-01", all)
}

fn network(name: &str, more: Value) -> NetworkView {
    let mut value = json!({
        "name": name, "bridge": "br0", "pools": ["192.0.2.0/24"], "gateways": ["192.0.2.1"],
        "dns": [], "reserved": [], "used": 0, "free": 253, "by": "ana",
        "made": "2026-11-22T10:00:00Z", "labels": { "stack": "shop" },
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
        all.extend(more);
    }
    serde_json::from_value(value).expect("a network")
}

fn plan(vms: &[VmView], deleted: &[VmView], networks: &[NetworkView]) -> Plan {
    let there = There {
        vms,
        deleted,
        networks,
    };
    Plan::of(&shop(), there)
}

fn shown(plan: &Plan, prune: bool) -> String {
    render(plan, "shop.toml", prune, Paint::plain())
}

#[test]
fn what_is_not_there_is_made_in_its_order() {
    let plan = plan(&[], &[], &[]);
    insta::assert_snapshot!(shown(&plan, false), @"
    stack shop, of shop.toml
    + network shop  192.0.2.0/24 on br0
    + db-01         debian-12, 2 processors, 4GiB, 20GiB of disk, in shop, role db
    + web-01        debian-12, 1 processor, 2GiB, in shop, role web
    + web-02        debian-12, 1 processor, 2GiB, in shop, role web
    1 network and 3 machines to make
    ");
    assert!(plan.has_work(false) && !plan.is_refused());
    let stack = shop();
    let after: Vec<_> = stack.machines.iter().map(|m| m.after.clone()).collect();
    assert_eq!(after, [vec![], vec![0], vec![0]]);
    let web = &stack.machines[1].create;
    assert_eq!(web.on.as_deref(), Some("zone=gva2"));
    assert_eq!(web.labels.get("stack").map(|l| l.as_str()), Some("shop"));
}

#[test]
fn what_is_as_in_the_file_stays() {
    let vms = [
        db(json!({})),
        vm("web-01", json!({})),
        vm("web-02", json!({})),
    ];
    let plan = plan(&vms, &[], &[network("shop", json!({}))]);
    insta::assert_snapshot!(shown(&plan, true), @"
    stack shop, of shop.toml
    = network shop
    = db-01
    = web-01
    = web-02
    1 network and 3 machines as in the file
    ");
    assert!(!plan.has_work(true) && !plan.stays_otherwise());
}

#[test]
fn each_way_to_differ_is_said() {
    let vms = [
        db(json!({ "memory": 2u64 << 30, "cpus": 1, "disk": 10u64 << 30, "protected": false })),
        vm(
            "web-01",
            json!({ "image": "debian-11", "roles": ["web", "old"], "memory": 1u64 << 30,
                "drift": [{ "what": "state", "text": "is stopped, and should run" }] }),
        ),
        vm("old-01", json!({})),
        vm("old-02", json!({ "protected": true })),
        vm("other", json!({ "labels": {} })),
    ];
    let deleted = [vm(
        "web-02",
        json!({ "status": "deleted", "kept_until": "2026-11-23T07:00:00Z" }),
    )];
    let networks = [
        network("shop", json!({ "pools": ["192.0.2.0/25"], "mtu": 9000 })),
        network("old", json!({})),
    ];
    let plan = plan(&vms, &deleted, &networks);
    insta::assert_snapshot!(shown(&plan, false), @"
    stack shop, of shop.toml
    ~ network shop  pools 192.0.2.0/25 → 192.0.2.0/24, mtu 9000 → 1500
    ~ db-01         cpus 1 → 2, memory 2GiB → 4GiB, disk 10GiB → 20GiB, from its next start; is protected
    ~ web-01        memory 1GiB → 2GiB, from its next start
    !               image debian-11 → debian-12, which is not changed
    !               roles web, old → web, which is not changed
                    muster vm destroy web-01 --purge, and apply again makes it anew
                    is stopped, and should run
    ! web-02        it was destroyed, and its disk is kept until 2026-11-23 07:00:00
                    muster vm undelete web-02 brings it back; muster vm destroy web-02 --purge makes room for a new one
    - old-01        is in the file no more; --prune destroys it
    - old-02        is in the file no more; it is protected and stays: muster vm unprotect old-02
    - network old   is in the file no more; --prune removes it
    1 network and 2 machines to change, 1 machine that cannot be as in the file, 1 network and 2 machines kept, though not in the file
    ");
    insta::assert_snapshot!(shown(&plan, true), @"
    stack shop, of shop.toml
    ~ network shop  pools 192.0.2.0/25 → 192.0.2.0/24, mtu 9000 → 1500
    ~ db-01         cpus 1 → 2, memory 2GiB → 4GiB, disk 10GiB → 20GiB, from its next start; is protected
    ~ web-01        memory 1GiB → 2GiB, from its next start
    !               image debian-11 → debian-12, which is not changed
    !               roles web, old → web, which is not changed
                    muster vm destroy web-01 --purge, and apply again makes it anew
                    is stopped, and should run
    ! web-02        it was destroyed, and its disk is kept until 2026-11-23 07:00:00
                    muster vm undelete web-02 brings it back; muster vm destroy web-02 --purge makes room for a new one
    - old-01        is in the file no more, and is destroyed
    - old-02        is in the file no more; it is protected and stays: muster vm unprotect old-02
    - network old   is in the file no more, and is removed
    1 network and 2 machines to change, 1 network and 1 machine to destroy, 1 machine that cannot be as in the file, 1 machine kept, though not in the file
    ");
    assert!(plan.stays_otherwise());
}

#[test]
fn a_name_of_somebody_else_is_never_taken_over() {
    let vms = [
        db(json!({ "labels": { "stack": "bank" } })),
        vm("web-01", json!({ "labels": {} })),
    ];
    let plan = plan(&vms, &[], &[network("shop", json!({ "labels": {} }))]);
    assert!(plan.is_refused());
    insta::assert_snapshot!(shown(&plan, true), @"
    stack shop, of shop.toml
    ! network shop  is of no stack: machines can be in it all the same: take its table out
    ! db-01         is of the stack bank: choose another name; it is never taken over
    ! web-01        is of no stack: choose another name; it is never taken over
    + web-02        debian-12, 1 processor, 2GiB, in shop, role web
    1 machine to make, 1 network and 2 machines that cannot be as in the file
    ");
}

#[test]
fn a_machine_in_the_middle_of_something_is_waited_for_or_left() {
    let vms = [
        db(json!({ "status": "creating", "run": "7f3k000000000000000000000g" })),
        vm(
            "web-01",
            json!({ "status": "doubtful", "why": "its agent was gone" }),
        ),
        vm("web-02", json!({ "status": "destroying" })),
    ];
    let plan = plan(&vms, &[], &[network("shop", json!({}))]);
    insta::assert_snapshot!(shown(&plan, true), @"
    stack shop, of shop.toml
    = network shop
    + db-01         is being made
    ! web-01        it cannot be said whether it is there: its agent was gone
                    muster looks again as soon as hv-01 is heard
    ! web-02        it is being destroyed
                    apply again when it is gone
    1 machine to make, 2 machines that cannot be as in the file, 1 network as in the file
    ");
}

#[test]
fn whether_it_runs_is_only_asked_where_the_file_says_it() {
    let text = |running: &str| SHOP.replace("protect = true", running);
    let changes = |running: &str, status: &str, should: bool| {
        let stack = with(&text(running), None, &[]).expect("a stack");
        let view = db(json!({ "status": status, "should_run": should }));
        item_of(&stack.id, &stack.machines[0], Some(&view)).is
    };
    let running = |running| Is::Changed {
        changes: vec![Change::Running { running }],
    };
    assert_eq!(changes("", "stopped", true), Is::Same);
    assert_eq!(changes("running = true", "running", true), Is::Same);
    assert_eq!(changes("running = true", "stopped", true), running(true));
    assert_eq!(changes("running = true", "stopped", false), running(true));
    assert_eq!(changes("running = true", "unreachable", true), Is::Same);
    assert_eq!(changes("running = false", "running", true), running(false));
    assert_eq!(changes("running = false", "stopped", false), Is::Same);
}

#[test]
fn variables_come_from_the_file_its_variants_and_the_command_line() {
    let names = |env, vars: &[_]| {
        let stack = with(SHOP, env, vars).expect("a stack");
        let line = |m: &Machine| format!("{} {}", m.name, m.create.memory);
        stack.machines.iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(names(Some("test"), &[]), ["db-01 4GiB", "web-01 512MiB"]);
    let vars = [("count", "3"), ("memory", "1GiB")];
    let three = ["db-01 4GiB", "web-01 1GiB", "web-02 1GiB", "web-03 1GiB"];
    assert_eq!(names(Some("test"), &vars), three);
    assert_eq!(names(None, &[("count", "0")]), ["db-01 4GiB"]);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    insta::assert_snapshot!(with(SHOP, Some("tset"), &[("cuont", "3"), ("count", "x")]).unwrap_err(), @"
    error: shop.toml: --env tset: there is no [env.tset]
      did you mean `test`?
    error: shop.toml: --var cuont: [vars] has no such variable
      did you mean `count`?
    error: shop.toml: --var count: it takes a number
    ");
    let text = r#"
[stack]
nam = "shop"
[vars]
a = "${b}"
b = "${a}"
Size = 3
when = 2026-11-22
[env.test]
c = 1
a = 3
[stak]
[network.lan]
bridge = "br0; reboot"
pools = ["192.0.2.0/99"]
[vm.web-01]
image = "Debian 12"
cpus = 0
memory = 2048
memroy = "2GiB"
networks = ["lan", "lan"]
labels = { stack = "x" }
groups = ["web"]
ready = "boot"
ssh_keys = ["keys/ana.pub", "keys/bob.pub"]
user_data = "none.yaml"
after = ["web-02", "web-01"]
[vm."web-{01..02}"]
image = "${imgae}"
cpus = 1
memory = "1GB"
[vm."{zone}-h{n}"]
image = "debian-12"
cpus = "two"
memory = "17GiB"
within = "5"
on = "zone="
"#;
    insta::assert_snapshot!(with(text, None, &[]).unwrap_err(), @r#"
    error: shop.toml:2:2: [stack] has no `name`
        2 | [stack]
          |  ^^^^^
    error: shop.toml:3:1: [stack] has no key `nam`
        3 | nam = "shop"
          | ^^^ did you mean `name`?
    error: shop.toml:5:5: variables that need each other: a, b
        5 | a = "${b}"
          |     ^^^^^^
    error: shop.toml:6:5: variables that need each other: a, b
        6 | b = "${a}"
          |     ^^^^^^
    error: shop.toml:7:1: `Size` is no name of a variable
        7 | Size = 3
          | ^^^^ like `web_count`, in lower case
    error: shop.toml:8:8: `when` takes a text, a number, true or false; this is of the type datetime
        8 | when = 2026-11-22
          |        ^^^^^^^^^^
    error: shop.toml:10:1: [vars] has no `c`
       10 | c = 1
          | ^ there are: a, b
    error: shop.toml:11:5: `a` is a text in [vars]
       11 | a = 3
          |     ^
    error: shop.toml:12:2: a stack has no `stak`
       12 | [stak]
          |  ^^^^ did you mean `stack`?
    error: shop.toml:14:10: `br0; reboot` is not a valid bridge name: `;` is not allowed
       14 | bridge = "br0; reboot"
          |          ^^^^^^^^^^^^^ it takes letters, digits and `-_.`
    error: shop.toml:15:9: `192.0.2.0/99` is not a pool of addresses
       15 | pools = ["192.0.2.0/99"]
          |         ^^^^^^^^^^^^^^^^ write a prefix like 192.0.2.0/24, or a range like 192.0.2.10-192.0.2.99/24
    error: shop.toml:17:9: `Debian 12` is not a valid image name: `D` is not allowed
       17 | image = "Debian 12"
          |         ^^^^^^^^^^^ it takes small letters, digits and `-_.`
    error: shop.toml:18:8: 0 processors: a machine has 1 to 256
       18 | cpus = 0
          |        ^
    error: shop.toml:19:10: `memory` takes a text, in quotes; this is a number
       19 | memory = 2048
          |          ^^^^
    error: shop.toml:20:1: [vm.web-01] has no key `memroy`
       20 | memroy = "2GiB"
          | ^^^^^^ did you mean `memory`?
    error: shop.toml:21:12: a machine has one interface in a network
       21 | networks = ["lan", "lan"]
          |            ^^^^^^^^^^^^^^ name each network once
    error: shop.toml:22:12: the label `stack` says which stack a machine is of
       22 | labels = { stack = "x" }
          |            ^^^^^ choose another one
    error: shop.toml:24:9: a machine with an agent is up when that has enrolled
       24 | ready = "boot"
          |         ^^^^^^ leave `ready` out, or say agent = false
    error: shop.toml:25:29: cannot read keys/bob.pub: it is not there
       25 | ssh_keys = ["keys/ana.pub", "keys/bob.pub"]
          |                             ^^^^^^^^^^^^^^
    error: shop.toml:26:13: cannot read none.yaml: it is not there
       26 | user_data = "none.yaml"
          |             ^^^^^^^^^^^
    error: shop.toml:29:9: there is no variable `imgae`
       29 | image = "${imgae}"
          |         ^^^^^^^^^^ there are: a, b, when
    error: shop.toml:31:10: `1GB` is not a size
       31 | memory = "1GB"
          |          ^^^^^ write it like 512MiB, 2GiB or 1TiB
    error: shop.toml:32:5: a machine of a stack has a name of its own, and none of its place
       32 | [vm."{zone}-h{n}"]
          |     ^^^^^^^^^^^^^ like web-01, or web-{01..05}, or web with count = 5
    error: shop.toml:34:8: `cpus` takes a number
       34 | cpus = "two"
          |        ^^^^^
    error: shop.toml:36:10: `5` is not a duration
       36 | within = "5"
          |          ^^^ write it like `30s`, `5m` or `1h30m`
    error: shop.toml:37:6: `on`: a value is missing after `=` (at byte 4): an empty value is written ""
       37 | on = "zone="
          |      ^^^^^^^
    "#);
}

#[test]
fn machines_that_wait_for_each_other_are_named() {
    let text = SHOP.replace("protect = true", "after = [\"web\"]");
    insta::assert_snapshot!(with(&text, None, &[]).unwrap_err(), @r#"
    error: shop.toml:27:10: machines that wait for each other: db-01 after web-01 after db-01
       27 | after = ["web"]
          |          ^^^^^
    "#);
    let text = SHOP.replace("protect = true", "after = [\"db-01\"]");
    assert!(
        with(&text, None, &[])
            .unwrap_err()
            .contains("db-01 after db-01")
    );
}

#[test]
fn what_is_no_toml_is_said_where_it_is() {
    insta::assert_snapshot!(with("[stack]\nname = shop\n[vm\n", None, &[]).unwrap_err(), @"
    error: shop.toml:2:8: string values must be quoted, expected literal string
        2 | name = shop
          |        ^^^^
    error: shop.toml:3:4: unclosed table, expected `]`
        3 | [vm
          |    ^
    ");
    for text in [
        "",
        "\u{feff}",
        "a",
        "[",
        "[[vm]]\n",
        "vm = 3",
        "stack = 1",
        "[vm]\nx = 1",
    ] {
        assert!(with(text, None, &[]).is_err(), "{text:?}");
    }
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(with(&deep, None, &[]).is_err());
    let large = format!("#{}", "x".repeat(MAX_FILE));
    assert!(with(&large, None, &[]).is_err());
}

#[test]
fn a_variant_of_a_stack_is_another_one() {
    let vms = [
        db(json!({})),
        vm("web-01", json!({})),
        vm("web-09", json!({})),
    ];
    let stack = with(SHOP, Some("test"), &[]).expect("a stack");
    let labels = &stack.machines[0].create.labels;
    assert_eq!(labels.get("stack-env").map(|l| l.as_str()), Some("test"));
    assert_eq!(stack.networks[0].put.labels, *labels);
    let there = There {
        vms: &vms,
        deleted: &[],
        networks: &[network("shop", json!({})), network("shop-2", json!({}))],
    };
    // What was made without --env is not touched, nor destroyed.
    let plan = Plan::of(&stack, there);
    assert!(plan.is_refused() && !plan.has_work(true));
    insta::assert_snapshot!(shown(&plan, true), @"
    stack shop (--env test), of shop.toml
    ! network shop  is of the stack shop without --env: machines can be in it all the same: take its table out
    ! db-01         is of the stack shop without --env: choose another name; it is never taken over
    ! web-01        is of the stack shop without --env: choose another name; it is never taken over
    1 network and 2 machines that cannot be as in the file
    ");
    // And the other way round; its own are.
    let labels = json!({ "tier": "front", "zone": "gva2", "stack": "shop", "stack-env": "test" });
    let test = [
        vm(
            "web-01",
            json!({ "labels": labels, "memory": 512u64 << 20 }),
        ),
        vm("web-09", json!({ "labels": labels })),
    ];
    let plan = |stack: &Stack| {
        let there = There {
            vms: &test,
            deleted: &[],
            networks: &[],
        };
        let plan = Plan::of(stack, there);
        let is = |name: &str| plan.items.iter().find(|item| item.name == name).cloned();
        (
            is("web-01").map(|item| item.is),
            is("web-09").map(|item| item.is),
        )
    };
    assert!(matches!(
        plan(&stack),
        (Some(Is::Same), Some(Is::Vanished { .. }))
    ));
    assert!(matches!(plan(&shop()), (Some(Is::Foreign { .. }), None)));
    let text = SHOP.replace("[env.test]", "[env.'a b']");
    let said = with(&text, Some("a b"), &[]).expect_err("no label");
    assert!(
        said.contains("--env: `a b` is not a valid label value"),
        "{said}"
    );
    let said = with(&SHOP.replace("tier", "stack-env"), None, &[]).expect_err("refused");
    assert!(
        said.contains("the label `stack-env` says which stack"),
        "{said}"
    );
}

#[test]
fn what_configures_a_machine_is_planned() {
    let more = "configure = \"deploy\"\nparams = { version = \"1.4.${count}\", n = 3, on = true, x = 1.5, \
                all = [\"${zone}\", { a = 1 }] }\nafter = [\"db-01\"]";
    let text = SHOP.replace("after = [\"db-01\"]", more);
    let stack = with(&text, None, &[]).expect("a stack");
    let web = &stack.machines[1];
    let configure = web.create.configure.clone().expect("a scenario");
    let params = json!({ "version": "1.4.2", "n": 3, "on": true, "x": 1.5,
        "all": ["gva2", { "a": 1 }] });
    assert_eq!(Value::Object(configure.params), params);
    let is = |more: Value| item_of(&stack.id, web, Some(&vm("web-01", more)));
    let said = |more: Value| match is(more).is {
        Is::Changed { changes } => changes.iter().map(changed).collect::<Vec<_>>().join("; "),
        other => format!("{other:?}"),
    };
    let run = "7f3k000000000000000000000g";
    let at = "2026-11-22T07:00:00Z";
    let ended = |state: Option<&str>| {
        json!({ "configure": { "scenario": "deploy", "params": params },
            "configured": { "run": run, "scenario": "deploy", "state": state, "why": "no package", "at": at } })
    };
    insta::assert_snapshot!(said(json!({})), @r#"is configured by deploy version=1.4.2 n=3 on=true x=1.5 all=["gva2",{"a":1}]"#);
    assert_eq!(is(ended(Some("succeeded"))).is, Is::Same);
    insta::assert_snapshot!(said(ended(Some("failed"))), @r#"is configured by deploy version=1.4.2 n=3 on=true x=1.5 all=["gva2",{"a":1}] again, which did not work: no package"#);
    insta::assert_snapshot!(said(ended(None)), @r#"is being configured by deploy version=1.4.2 n=3 on=true x=1.5 all=["gva2",{"a":1}]"#);
    let mut other = ended(Some("succeeded"));
    other["configure"]["params"] = json!({ "version": "1.3" });
    insta::assert_snapshot!(said(other.clone()), @r#"is configured by deploy version=1.3 → deploy version=1.4.2 n=3 on=true x=1.5 all=["gva2",{"a":1}]"#);
    // As text or as JSON: the same.
    let mut text = ended(Some("succeeded"));
    text["configure"]["params"] = json!({ "x": 1.5, "n": "3", "on": true, "version": "1.4.2",
        "all": ["gva2", { "a": 1 }] });
    assert_eq!(is(text).is, Is::Same);
    // Nobody takes orders in one that does not run.
    other["status"] = json!("stopped");
    let item = is(other);
    assert_eq!(item.is, Is::Same);
    assert!(item.notes[0].ends_with("once it runs"), "{:?}", item.notes);
    // A file that says nothing of it changes nothing.
    let plain = item_of(
        &stack.id,
        &shop().machines[1],
        Some(&vm("web-01", ended(Some("failed")))),
    );
    assert_eq!(plain.is, Is::Same);
    let nothing = There {
        vms: &[],
        deleted: &[],
        networks: &[],
    };
    let all = shown(&Plan::of(&stack, nothing), false);
    assert!(
        all.contains("role web, configured by deploy version=1.4.2 n=3"),
        "{all}"
    );

    let wrong = |more: &str| {
        let text = SHOP.replace("after = [\"db-01\"]", more);
        with(&text, None, &[]).expect_err("refused")
    };
    insta::assert_snapshot!(wrong("params = { a = 1 }"), @r#"
    error: shop.toml:38:10: `params` are those of `configure`, which is not there
       38 | params = { a = 1 }
          |          ^^^^^^^^^ like configure = "deploy"
    "#);
    insta::assert_snapshot!(wrong("configure = \"De ploy\"\nagent = false\nparams = { a = 2026-11-22 }"), @r#"
    error: shop.toml:38:13: without an agent nobody here takes orders in it, so it cannot be configured
       38 | configure = "De ploy"
          |             ^^^^^^^^^ leave `configure` out, or agent = false
    error: shop.toml:38:13: `De ploy` is not a valid scenario name: `D` is not allowed
       38 | configure = "De ploy"
          |             ^^^^^^^^^ it takes small letters, digits and `-_`
    error: shop.toml:40:16: `a` takes no datetime
       40 | params = { a = 2026-11-22 }
          |                ^^^^^^^^^^
    "#);
}

#[test]
fn a_network_is_looked_at_again() {
    let stack = shop();
    let wanted = Some(&stack.networks[0]);
    let seen = |was: Option<Value>, now: Option<Value>| {
        let view = |more: Option<Value>| more.map(|more| network("shop", more));
        still(&stack.id, wanted, view(was).as_ref(), view(now).as_ref())
    };
    let mtu = || Some(json!({ "mtu": 9000 }));
    assert_eq!(seen(None, None), Still::AsPlanned);
    assert_eq!(seen(mtu(), mtu()), Still::AsPlanned);
    // Machines come and go.
    let used = json!({ "mtu": 9000, "used": 7, "free": 3 });
    assert_eq!(seen(mtu(), Some(used)), Still::AsPlanned);
    // Somebody did the same, or something else with it.
    assert_eq!(seen(None, Some(json!({}))), Still::Right);
    assert_eq!(seen(mtu(), Some(json!({}))), Still::Right);
    let otherwise = |why: &str| Still::Otherwise(why.to_owned());
    let changed = json!({ "mtu": 9000, "dns": ["192.0.2.2"], "by": "bruno" });
    assert_eq!(
        seen(mtu(), Some(changed)),
        otherwise("was changed by bruno meanwhile")
    );
    let theirs = json!({ "mtu": 9000, "labels": {}, "by": "bruno" });
    assert_eq!(
        seen(mtu(), Some(theirs.clone())),
        otherwise("was changed by bruno meanwhile")
    );
    assert_eq!(
        seen(None, Some(theirs)),
        otherwise("was made by ana meanwhile".replace("ana", "bruno").as_str())
    );
    assert_eq!(seen(mtu(), None), otherwise("was removed meanwhile"));
    let removed = |was: Value, now: Option<Value>| {
        let now = now.map(|now| network("old", now));
        still(&stack.id, None, Some(&network("old", was)), now.as_ref())
    };
    assert_eq!(removed(json!({}), None), Still::Right);
    assert_eq!(
        removed(json!({}), Some(json!({ "used": 2 }))),
        Still::AsPlanned
    );
    let made = json!({ "made": "2026-11-22T10:00:01Z" });
    assert!(matches!(
        removed(json!({}), Some(made)),
        Still::Otherwise(_)
    ));
}

#[test]
fn a_private_key_is_refused_and_never_repeated() {
    let secret = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ";
    let head = "-----BEGIN OPENSSH PRIVATE KEY-----";
    for line in [
        format!("ssh_keys = [\"{head}\\n{secret}\\n-----END OPENSSH PRIVATE KEY-----\"]"),
        format!("ssh_keys = [\"\"\"\n{head}\n{secret}\n\"\"\"]"),
        format!("ssh_keys = [\"{secret}\"]"),
        format!("ssh_keys = [\"{head} {secret}\"] # and more = what is wrong"),
        format!("user_data = \"{head}\\n{secret}\""),
        format!("ssh_keys = [\"{head}\\n{secret}\" oops"),
        format!("image = \"{head}{secret}\""),
    ] {
        let text = SHOP.replace("protect = true", &line);
        let said = with(&text, None, &[]).expect_err("refused");
        assert!(!said.contains(&secret[..12]), "{said}");
        assert!(said.contains("error: shop.toml:"), "{said}");
    }
    let text = SHOP.replace("protect = true", "ssh_keys = [\"rsa what is this\"]");
    insta::assert_snapshot!(with(&text, None, &[]).expect_err("refused"), @r#"
    error: shop.toml:27:13: this is no public key for ssh
       27 | ssh_keys = ["rsa what is this"]
          |             ^^^^^^^^^^^^^^^^^^ give a line of a file like id_ed25519.pub
    "#);
}

#[test]
fn variables_that_grow_are_refused_before_they_have() {
    let mut text = String::from("[stack]\nname = \"x\"\n[vars]\nv00 = \"0123456789abcdef\"\n");
    for n in 1..60 {
        let before = format!("${{v{:02}}}", n - 1);
        text.push_str(&format!("v{n:02} = \"{before}{before}\"\n"));
    }
    text.push_str("[network.a]\nbridge = \"${v59}\"\npools = [\"${v59}\"]\n");
    let said = with(&text, None, &[]).expect_err("refused");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(said.contains("has more than 8388608 bytes"), "{said}");
    // Each of them once, many times.
    let long = "x".repeat(MAX_FILE / 2);
    let many = "\"${v}\",".repeat(1_000);
    let text = format!("[stack]\nname = \"x\"\n[vars]\nv = \"{long}\"\n[vm.a]\nafter = [{many}]\n");
    let said = with(&text, None, &[]).expect_err("refused");
    assert!(said.contains("has more than 8388608 bytes"), "{said}");
}

#[test]
fn very_many_of_anything_are_refused() {
    let many = |line: &dyn Fn(usize) -> String| (0..20_000).map(line).collect::<String>();
    for text in [
        format!(
            "[vars]\n{}",
            many(&|n| format!("v{n} = \"${{v{}}}\"\n", n + 1))
        ),
        format!(
            "[vars]\na = 1\n[env.x]\n{}",
            many(&|n| format!("v{n} = 1\n"))
        ),
        many(&|n| format!("[vm.v{n}]\nimage = 1\n")),
        many(&|n| format!("x{n} = 1\n")),
    ] {
        let said = with(&text, None, &[]).expect_err("refused");
        assert!(said.lines().count() < 400, "{said}");
    }
}

#[test]
fn keys_and_user_data_come_from_files_beside_it() {
    let text = SHOP.replace(
        "protect = true",
        "ssh_keys = [\"keys/ana.pub\", \"ssh-rsa BBBB bob\"]\nuser_data = \"user.yaml\"",
    );
    let stack = with(&text, None, &[]).expect("a stack");
    let create = &stack.machines[0].create;
    assert_eq!(
        create.ssh_keys,
        ["ssh-ed25519 AAAA ana", "ssh-rsa BBBB bob"]
    );
    assert_eq!(create.user_data.as_deref(), Some("#cloud-config\n"));
}

#[test]
fn the_stack_of_the_documentation_is_what_it_says() {
    let chapter = include_str!("../../../docs/stacks.md");
    let (_, rest) = chapter.split_once("```toml\n").expect("a stack");
    let (text, rest) = rest.split_once("```\n").expect("its end");
    let stack = with(text, Some("test"), &[]).expect("a stack");
    let nothing = There {
        vms: &[],
        deleted: &[],
        networks: &[],
    };
    let shown = shown(&Plan::of(&stack, nothing), false);
    let (_, rest) = rest.split_once("--env test\n").expect("a plan");
    let (written, _) = rest.split_once("```").expect("its end");
    assert_eq!(shown, written);
}

mod any {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// A file in which something was lost or doubled is a stack or is
        /// refused with what is wrong.
        #[test]
        fn file_is_read_or_refused(at in 0usize..800, length in 0usize..60, double: bool) {
            let from = at.min(SHOP.len());
            let to = (from + length).min(SHOP.len());
            let mut text = String::from(&SHOP[..from]);
            if double {
                text.push_str(&SHOP[from..to]);
                text.push_str(&SHOP[from..]);
            } else {
                text.push_str(&SHOP[to..]);
            }
            if let Err(said) = with(&text, None, &[]) {
                prop_assert!(said.starts_with("error: shop.toml"), "{}", said);
            }
        }
    }
}
