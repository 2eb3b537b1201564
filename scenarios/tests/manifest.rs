//! Manifests as operators write them, and the mistakes they make.

use std::collections::BTreeMap;

use muster_scenarios::manifest::{Manifest, Shape, read};
use muster_scenarios::param::{Given, bind};
use serde_json::{Value, json};

const UPGRADE: &str = r#"
scenario("Upgrade the web front end, a quarter of it at a time");
param("version", #{ type: "string", matches: "^[0-9][0-9.]*$", help: "package version" });
param("batch",   #{ type: "percent", default: "25%" });
target("role=web");
also("balancers", "role=lb");
max_failures("10%");
max_failures(1, #{ by: "rack" });
timeout("5m");
lock("web");
window("* 22-23 * * *");
window("0 3 * * sat");
idempotent("drain");
confirm();

/// Takes hosts out of the balancer.
fn drain(p) { p.hosts }
fn upgrade(p) { package("webapp").version(p.version); }

fn main(p) {
    for batch in targets().batches(p.batch, #{ spread: "rack" }) {
        on(nodes("balancers"), "drain", #{ hosts: batch.names });
        on(batch, "upgrade", p, #{ max_failures: 0 });
    }
}
"#;

fn good(text: &str) -> Manifest {
    read("web.rhai", text).unwrap_or_else(|faults| panic!("{}", shown(&faults)))
}

fn shown(faults: &[muster_scenarios::fault::Fault]) -> String {
    faults
        .iter()
        .map(|f| format!("error: {f}\n"))
        .collect::<String>()
}

fn bad(text: &str) -> String {
    shown(&read("web.rhai", text).expect_err("it has faults"))
}

#[test]
fn a_manifest_is_read_without_running_a_function() {
    let manifest = good(UPGRADE);
    assert_eq!(
        manifest.about,
        "Upgrade the web front end, a quarter of it at a time"
    );
    assert_eq!(manifest.shape, Shape::Main);
    assert!(manifest.confirm);
    assert_eq!(manifest.target.as_ref().map(|p| p.text()), Some("role=web"));
    assert_eq!(manifest.also["balancers"].text(), "role=lb");
    assert_eq!(manifest.budgets.len(), 2);
    let at = |text: &str| text.parse().expect("a time");
    assert!(manifest.is_open(at("2026-11-20T22:15:00Z")));
    assert!(!manifest.is_open(at("2026-11-21T00:00:00Z")));
    assert_eq!(
        manifest.opens(at("2026-11-21T00:00:00Z")),
        Some(at("2026-11-21T03:00:00Z"))
    );
    let drain = manifest.function("drain").expect("it is there");
    assert_eq!(
        drain.doc.as_deref(),
        Some("Takes hosts out of the balancer.")
    );
    let rules: Vec<String> = manifest
        .params
        .iter()
        .map(|p| format!("{}: {}", p.name, p.rule()))
        .collect();
    insta::assert_snapshot!(rules.join("\n"), @r#"
    version: string, matches ^[0-9][0-9.]*$
    batch: percent
    "#);
}

#[test]
fn parameters_are_held_against_it_all_mistakes_at_once() {
    let manifest = good(
        r#"scenario("x"); fn run(p) {}
param("version", #{ matches: "^[0-9.]+$", help: "package version" });
param("tries", #{ type: "int", min: 1, max: 10, default: 3 });
param("wait", #{ type: "duration", max: "1h", default: "30s" });
param("how", #{ one_of: ["fast", "safe"], default: "safe" });
param("hosts", #{ type: "list", max: 2, required: false });
param("share", #{ type: "percent", default: "5%" });
param("on", #{ type: "node" });
param("key", #{ secret: true, min: 8 });"#,
    );
    let given = |all: &[(&str, Given)]| -> BTreeMap<String, Given> {
        all.iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect()
    };
    let text = |text: &str| Given::Text(text.to_owned());
    let mistakes = bind(
        &manifest.params,
        &given(&[
            ("version", text("1; rm -rf /")),
            ("tries", text("11")),
            ("wait", text("2h")),
            ("how", Given::Json(json!("quick"))),
            ("hosts", Given::Json(json!([1, 2, 3]))),
            ("share", text("many")),
            ("key", text("hunter2")),
            ("tires", text("1")),
        ]),
    )
    .expect_err("all of it is wrong");
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    parameter "version": `1; rm -rf /` does not match `^[0-9.]+$` (help: package version)
    parameter "tries": `11` is too large, at most 10
    parameter "wait": `2h` is too long, at most 1h
    parameter "how": `quick` is not one of fast, safe
    parameter "hosts": `[1,2,3]` has 3 elements, at most 2 allowed
    parameter "share": `many` is not a percentage such as `25%`
    parameter "on": required, not given (give it with -p on=NODE)
    parameter "key": the value does not fit: string, at least 8 characters; it is secret and not shown
    parameter "tires": not declared by this scenario; did you mean "tries"?
    "#);
    assert!(!lines.join("\n").contains("hunter2"));
    let one = |name: &str, value: Value| {
        let given = given(&[(name, Given::Json(value))]);
        let mistakes = bind(&manifest.params, &given).expect_err("it is wrong");
        let mine = format!("parameter \"{name}\": ");
        let all: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        // One mistake is one line.
        assert!(!all.concat().contains('\n'));
        let said = all.iter().rev().find_map(|said| said.strip_prefix(&mine));
        said.unwrap_or_else(|| panic!("{all:?}")).to_owned()
    };
    insta::assert_snapshot!([
        one("version", json!(14)),
        one("version", json!("1\n\u{1b}[2J")),
        one("tries", json!(0)),
        one("tries", json!("three")),
        one("tries", json!(1.5)),
        one("wait", json!(30)),
        one("hosts", json!("web-01")),
        one("on", json!("WEB 01")),
        one("on", json!("")),
        one("key", json!(["correct horse"])),
        one("tryes", json!(1)),
        one("xyz", json!(1)),
        one("version", json!("1".repeat(70_000))),
    ].join("\n"), @r#"
    `14` is not text (help: package version)
    `1\x0a\x1b[2J` does not match `^[0-9.]+$` (help: package version)
    `0` is too small, at least 1
    `three` is not a whole number
    `1.5` is not a whole number
    `30` is not a duration such as `30s` or `5m`
    `web-01` is not a list such as `["a", "b"]`
    `WEB 01` is not a valid node name: `W` is not allowed; it takes small letters, digits and `.-`
    `` is not a valid node name: it is empty
    the value does not fit: string, at least 8 characters; it is secret and not shown
    not declared by this scenario; did you mean "tries"?
    not declared by this scenario; there are: version, tries, wait, how, hosts, share, on, key
    it is longer than 65536 bytes (help: package version)
    "#);

    let bound = bind(
        &manifest.params,
        &given(&[
            ("version", text("1.4.2")),
            ("wait", text("90s")),
            ("on", text("web-01")),
            ("key", text("correct horse")),
        ]),
    )
    .expect("it fits");
    let mut plain = json!(bound.plain());
    plain.sort_all_objects();
    insta::assert_snapshot!(plain, @r#"{"hosts":null,"how":"safe","on":"web-01","share":"5%","tries":3,"version":"1.4.2","wait":"1m30s"}"#);
    assert_eq!(bound.secret()["key"], "correct horse");
    assert_eq!(bound.sealed()["key"], json!({"$secret": "key"}));
    let hosts = json!([{"$secret": "key"}]);
    let mistakes = bind(&manifest.params, &given(&[("hosts", Given::Json(hosts))]));
    let mistakes = format!("{mistakes:?}");
    assert!(
        mistakes.contains("`$secret` is no name in a map"),
        "{mistakes}"
    );
    assert!(!format!("{bound:?}").contains("horse"));
}

#[test]
fn all_mistakes_of_a_manifest_are_shown_where_they_are() {
    insta::assert_snapshot!(bad(
        r#"scenario("x");
param("Version");
param("n", #{ type: "itn" });
param("m", #{ typ: "int" });
param("o", #{ type: "int", min: 5, max: 1 });
param("q", #{ default: 5 });
param("r", #{ matches: "(" });
target("role=web and (zone=gva2");
also("targets", "role=lb");
batch(0);
timeout("soon");
window("at night");
idempotent("drian");
confirm(); confirm();
fn drain(p) {}
fn main(p) {}"#
    ), @r#"
    error: web.rhai:2:1: `Version` cannot name a parameter
        2 | param("Version");
          | ^^^^^ small letters, digits and `_`, at most 40, beginning with a letter
    error: web.rhai:3:1: there is no type `itn`
        3 | param("n", #{ type: "itn" });
          | ^^^^^ did you mean `int`?
    error: web.rhai:4:1: `param` has no option `typ`
        4 | param("m", #{ typ: "int" });
          | ^^^^^ did you mean `type`?
    error: web.rhai:5:1: `max` of `o`: it is below `min`
        5 | param("o", #{ type: "int", min: 5, max: 1 });
          | ^^^^^
    error: web.rhai:6:1: `default` of `q`: `5` is not text
        6 | param("q", #{ default: 5 });
          | ^^^^^
    error: web.rhai:7:1: `matches` of `r`: unclosed group
        7 | param("r", #{ matches: "(" });
          | ^^^^^
    error: web.rhai:8:1: in the predicate: this parenthesis is never closed
        8 | target("role=web and (zone=gva2");
          | ^^^^^^
          |   role=web and (zone=gva2
          |                ^
    error: web.rhai:9:1: `targets` cannot name a node set: it takes small letters, digits and `_`, and `targets` is the target
        9 | also("targets", "role=lb");
          | ^^^^
    error: web.rhai:10:1: a batch of no nodes would never end
       10 | batch(0);
          | ^^^^^
    error: web.rhai:11:1: `timeout`: `soon` is not a duration; write it like `30s`, `5m` or `1h30m`
       11 | timeout("soon");
          | ^^^^^^^
    error: web.rhai:12:1: `window`: `at night` is not a time as in cron: it has 2 fields and not 5; write minute, hour, day of the month, month and day of the week, like `0 3 * * mon-fri`
       12 | window("at night");
          | ^^^^^^
    error: web.rhai:13:1: `idempotent` names a function `drian`, which this scenario does not define
       13 | idempotent("drian");
          | ^^^^^^^^^^ there are: drain, main
    error: web.rhai:14:12: `confirm` is declared twice
       14 | confirm(); confirm();
          |            ^^^^^^^
    "#);
}

#[test]
fn what_cannot_be_read_is_said() {
    let all = [
        "",
        "scenario(\"x\")",
        "scenario(\"x\"); fn main() {}",
        "scenario(\"x\"); fn run(p) { let y = z; }",
        "scenario(\"x\"); pram(\"y\"); fn run(p) {}",
        "scenario(\"x\"); param(5); fn run(p) {}",
        "scenario(\"x\"); helper(); fn helper() {} fn run(p) {}",
        "scenario(\"x\"); command([\"ls\"]); fn run(p) {}",
        "scenario(\"x\"); loop {} fn run(p) {}",
        "scenario(\"x\"); fn run(p) { eval(\"1\") }",
        "scenario(\"x\"); import \"y\" as y; fn run(p) {}",
        "scenario(\"x\"); fn run(p) {} fn run(q) {}",
        "scenario(\"x\"); fn run(p { }",
        "scenario(\"\u{1b}[2J\u{1b}[31mx\"; fn run(p) {}",
    ]
    .map(|text| format!("{}\n{}", text.replace('\u{1b}', "ESC"), bad(text)));
    insta::assert_snapshot!(all.join("\n"), @r#"

    error: web.rhai: the scenario does not say what it is for
      begin it with scenario("Upgrade the web front end");
    error: web.rhai: the scenario defines neither `fn main(p)` nor `fn run(p)`: nothing would happen

    scenario("x")
    error: web.rhai: the scenario defines neither `fn main(p)` nor `fn run(p)`: nothing would happen

    scenario("x"); fn main() {}
    error: web.rhai: `fn main` takes one parameter, the map of the scenario's parameters: `fn main(p)`

    scenario("x"); fn run(p) { let y = z; }
    error: web.rhai:1:36: there is no variable `z` here
        1 | scenario("x"); fn run(p) { let y = z; }
          |                                    ^

    scenario("x"); pram("y"); fn run(p) {}
    error: web.rhai:1:16: there is no `pram` at the top of a scenario
        1 | scenario("x"); pram("y"); fn run(p) {}
          |                ^^^^ did you mean `param`?

    scenario("x"); param(5); fn run(p) {}
    error: web.rhai:1:16: `param` does not take these arguments: param (i64)
        1 | scenario("x"); param(5); fn run(p) {}
          |                ^^^^^

    scenario("x"); helper(); fn helper() {} fn run(p) {}
    error: web.rhai:1:16: `helper` cannot be called at the top of a scenario
        1 | scenario("x"); helper(); fn helper() {} fn run(p) {}
          |                ^^^^^^ only the manifest stands there; functions run later

    scenario("x"); command(["ls"]); fn run(p) {}
    error: web.rhai:1:16: there is no `command` at the top of a scenario
        1 | scenario("x"); command(["ls"]); fn run(p) {}
          |                ^^^^^^^ only the manifest stands there; what it does belongs into a function

    scenario("x"); loop {} fn run(p) {}
    error: web.rhai:1:21: the top of the scenario does too much: only the manifest stands there
        1 | scenario("x"); loop {} fn run(p) {}
          |                     ^

    scenario("x"); fn run(p) { eval("1") }
    error: web.rhai:1:28: there is no `eval` in scenarios
        1 | scenario("x"); fn run(p) { eval("1") }
          |                            ^^^^ what a scenario does stands in its text

    scenario("x"); import "y" as y; fn run(p) {}
    error: web.rhai:1:16: there is no `import` in scenarios
        1 | scenario("x"); import "y" as y; fn run(p) {}
          |                ^^^^^^ a scenario is one script, with templates and files beside it

    scenario("x"); fn run(p) {} fn run(q) {}
    error: web.rhai:1:29: function run with 1 parameter already exists
        1 | scenario("x"); fn run(p) {} fn run(q) {}
          |                             ^^

    scenario("x"); fn run(p { }
    error: web.rhai:1:25: expecting ',' to separate the parameters of function 'run'
        1 | scenario("x"); fn run(p { }
          |                         ^

    scenario("ESC[2JESC[31mx"; fn run(p) {}
    error: web.rhai:1:22: expecting ',' to separate the arguments to function call 'scenario'
        1 | scenario("\x1b[2J\x1b[31mx"; fn run(p) {}
          |                      ^
    "#);
}
