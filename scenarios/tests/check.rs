//! `muster scenario check`: what it finds without running anything.

use std::collections::BTreeMap;

use muster_scenarios::bundle::Bundle;
use muster_scenarios::catalogue::{self, Form, Side};
use muster_scenarios::check::{check, check_bundle};

fn said(text: &str) -> String {
    match check("web.rhai", text) {
        Ok(_) => "nothing\n".to_owned(),
        Err(faults) => faults.iter().map(|f| format!("error: {f}\n")).collect(),
    }
}

/// The example of the documentation.
const UPGRADE: &str = r#"
scenario("Upgrade the web front end, a quarter of it at a time");
param("version", #{ type: "string", matches: "^[0-9][0-9.]*$", help: "package version" });
param("batch",   #{ type: "percent", default: "25%" });
target("role=web");
also("balancers", "role=lb");
confirm();

fn upgrade(p) {
    package("webapp").version(p.version);
    service("webapp").restarted();
    http("http://127.0.0.1/health").until(200, #{ tries: 10, every: "2s" });
}
fn drain(p) { for host in p.hosts { command(["lbctl", "drain", host]); } }
fn restore(p) { for host in p.hosts { command(["lbctl", "restore", host]); } }
fn downgrade(p) { package("webapp").installed(); }

fn main(p) {
    for batch in targets().batches(p.batch, #{ spread: "rack" }) {
        on(nodes("balancers"), "drain", #{ hosts: batch.names }).undo("restore");
        let r = on(batch, "upgrade", p, #{ max_failures: 0 }).undo("downgrade");
        if !r.ok || r.failed.count > 0 { abort(`${r.failed.names.len()} failed`); }
        on(nodes("balancers"), "restore", #{ hosts: batch.names });
        sleep("5s");
    }
    let both = parallel([step(targets(), "upgrade", p)]);
    let total = [1, 2, 3].filter(|n| n > 1).map(|n| n * 2).len() + both.len();
    log("done".to_upper() + total);
}
"#;

#[test]
fn a_sound_scenario_has_no_fault() {
    assert_eq!(said(UPGRADE), "nothing\n");
}

#[test]
fn every_mistake_is_found_with_its_place() {
    let text = UPGRADE
        .replace("package(\"webapp\").version", "pakage(\"webapp\").version")
        .replace("\"drain\", #{ hosts", "\"drian\", #{ hosts")
        .replace(
            "on(nodes(\"balancers\"), \"restore\"",
            "on(nodes(\"balancer\"), \"restore\"",
        )
        .replace("p.batch", "p.bacth")
        .replace(
            "service(\"webapp\").restarted()",
            "service(\"webapp\").restart()",
        )
        .replace("sleep(\"5s\")", "sleep(5, \"s\")")
        .replace("log(\"done\"", "service(\"x\").running(); log(\"done\"")
        .replace("package(\"webapp\").installed();", "targets();")
        .replace(".undo(\"downgrade\")", ".undo(\"down\" + \"grade\")")
        .replace(
            "batch.names });\n        sleep",
            "batch.names }); targets().where(\"zone=\"); drain();\n sleep",
        );
    insta::assert_snapshot!(said(&text), @r#"
    error: web.rhai:10:5: unknown function `pakage`
       10 |     pakage("webapp").version(p.version);
          |     ^^^^^^ did you mean `package`?
    error: web.rhai:11:23: unknown method `restart`
       11 |     service("webapp").restart();
          |                       ^^^^^^^ did you mean `restarted`?
    error: web.rhai:14:37: `command` cannot be called in `drain`, which runs in the broker
       14 | fn drain(p) { for host in p.hosts { command(["lbctl", "drain", host]); } }
          |                                     ^^^^^^^ call it in a function that `on` sends to nodes
    error: web.rhai:19:38: the scenario declares no parameter `bacth`
       19 |     for batch in targets().batches(p.bacth, #{ spread: "rack" }) {
          |                                      ^^^^^ did you mean `batch`?
    error: web.rhai:20:32: `on` names a function `drian`, which this scenario does not define
       20 |         on(nodes("balancers"), "drian", #{ hosts: batch.names }).undo("restore");
          |                                ^^^^^^^ did you mean `drain`?
    error: web.rhai:21:63: `undo` takes the name of a function, written out
       21 |         let r = on(batch, "upgrade", p, #{ max_failures: 0 }).undo("down" + "grade");
          |                                                               ^^^^ it must be known before the step begins: .undo("restore")
    error: web.rhai:23:18: the scenario declares no node set `balancer`
       23 |         on(nodes("balancer"), "restore", #{ hosts: batch.names }); targets().where("zone="); drain();
          |                  ^^^^^^^^^^ did you mean `balancers`?
    error: web.rhai:23:84: in the predicate: a value is missing after `=` (at byte 4): an empty value is written ""
       23 |         on(nodes("balancer"), "restore", #{ hosts: batch.names }); targets().where("zone="); drain();
          |                                                                                    ^^^^^^^
    error: web.rhai:23:94: `drain` takes 1 argument, 0 are given
       23 |         on(nodes("balancer"), "restore", #{ hosts: batch.names }); targets().where("zone="); drain();
          |                                                                                              ^^^^^
    error: web.rhai:24:2: `sleep` takes 1 argument, 2 are given
       24 |  sleep(5, "s");
          |  ^^^^^
    error: web.rhai:28:5: `service` cannot be called in `main`, which runs in the broker
       28 |     service("x").running(); log("done".to_upper() + total);
          |     ^^^^^^^ call it in a function that `on` sends to nodes
    error: web.rhai:28:18: `running` cannot be called in `main`, which runs in the broker
       28 |     service("x").running(); log("done".to_upper() + total);
          |                  ^^^^^^^ call it in a function that `on` sends to nodes
    "#);
}

#[test]
fn a_helper_runs_where_it_is_called_from() {
    insta::assert_snapshot!(said(
        r#"scenario("x");
fn helper(n) { command(["a", n]) }
fn both(n) { log(n) }
fn deep(n) { helper(n); targets() }
fn work(p) { both("x"); deep(1); }
fn main(p) { both("y"); helper(1); on(targets(), "work"); }"#
    ), @r#"
    error: web.rhai:2:16: `command` cannot be called in `helper`, which runs in the broker
        2 | fn helper(n) { command(["a", n]) }
          |                ^^^^^^^ call it in a function that `on` sends to nodes
    error: web.rhai:4:25: `targets` cannot be called in `deep`, which runs on nodes
        4 | fn deep(n) { helper(n); targets() }
          |                         ^^^^^^^ call it in `main`
    "#);
}

#[test]
fn tests_have_functions_of_their_own() {
    insta::assert_snapshot!(said(
        r#"scenario("x");
fn run(p) { play(#{}); }
fn setup() { fake("web-01"); }
fn test_one() { setup(); let r = play(#{}); assert(r.ok); on(targets(), "run"); }
fn test_two() { package("x").latest(); asert(true); }
fn test_three(p) { }"#
    ), @r#"
    error: web.rhai: `test_three` is a test, and takes no parameters
    error: web.rhai:2:13: `play` cannot be called in `run`, which runs on nodes
        2 | fn run(p) { play(#{}); }
          |             ^^^^ call it in a test
    error: web.rhai:4:59: `on` cannot be called in `test_one`, which is a test
        4 | fn test_one() { setup(); let r = play(#{}); assert(r.ok); on(targets(), "run"); }
          |                                                           ^^ call it in `main`
    error: web.rhai:4:62: `targets` cannot be called in `test_one`, which is a test
        4 | fn test_one() { setup(); let r = play(#{}); assert(r.ok); on(targets(), "run"); }
          |                                                              ^^^^^^^ call it in `main`
    error: web.rhai:5:17: `package` cannot be called in `test_two`, which is a test
        5 | fn test_two() { package("x").latest(); asert(true); }
          |                 ^^^^^^^ call it in a function that `on` sends to nodes
    error: web.rhai:5:30: `latest` cannot be called in `test_two`, which is a test
        5 | fn test_two() { package("x").latest(); asert(true); }
          |                              ^^^^^^ call it in a function that `on` sends to nodes
    error: web.rhai:5:40: unknown function `asert`
        5 | fn test_two() { package("x").latest(); asert(true); }
          |                                        ^^^^^ did you mean `assert`?
    "#);
}

#[test]
fn a_closure_runs_where_it_is_written() {
    insta::assert_snapshot!(said(
        r#"scenario("x");
fn work(p) { p.hosts.map(|h| targets()); [1].filter(|n| fact("x") == n); }
fn main(p) {
    let n = 1;
    targets().names.map(|name| command(["x", name, n]));
    targets().names.filter(|name| name.len() > n && type_of(name) == "string");
    let f = Fn("work");
    on(targets(), "work");
}"#
    ), @r#"
    error: web.rhai:2:30: `targets` cannot be called in a closure, which runs on nodes
        2 | fn work(p) { p.hosts.map(|h| targets()); [1].filter(|n| fact("x") == n); }
          |                              ^^^^^^^ call it in `main`
    error: web.rhai:5:32: `command` cannot be called in a closure, which runs in the broker
        5 |     targets().names.map(|name| command(["x", name, n]));
          |                                ^^^^^^^ call it in a function that `on` sends to nodes
    "#);
}

#[test]
fn templates_are_looked_at() {
    let script = r#"scenario("x");
fn run(p) {
    file("/a").template("a.j2", #{});
    file("/b").template("templates/b.j2", #{});
    file("/c").template("templates/c.j2", #{});
    template("templates/good.j2", #{});
}"#;
    let files = [
        ("templates/good.j2", &b"{{ x }}"[..]),
        ("templates/a.j2", b"x"),
        ("templates/b.j2", b"one\n{% if x %}"),
        ("templates/c.j2", b"\xff"),
    ];
    let files = files.map(|(path, data)| (path.parse().expect("a path"), data.to_vec()));
    let bundle = Bundle::new(script.to_owned(), BTreeMap::from(files)).expect("a bundle");
    let faults = check_bundle("web.rhai", &bundle).expect_err("it has faults");
    let said: String = faults.iter().map(|f| format!("error: {f}\n")).collect();
    insta::assert_snapshot!(said, @r#"
    error: web.rhai:3:25: the scenario has no file `a.j2`
        3 |     file("/a").template("a.j2", #{});
          |                         ^^^^^^ files lie beside the script or below it: name the directory that holds both
    error: web.rhai:4:25: templates/b.j2:2: syntax error: unexpected end of input, expected end of block
        4 |     file("/b").template("templates/b.j2", #{});
          |                         ^^^^^^^^^^^^^^^^
    error: web.rhai:5:25: `templates/c.j2` is not UTF-8 text
        5 |     file("/c").template("templates/c.j2", #{});
          |                         ^^^^^^^^^^^^^^^^
    "#);
}

#[test]
fn the_catalogue_is_what_the_engines_have() {
    // Each of these must be known to the check in a script of its side, with
    // its fewest and most arguments, and unknown with one more.
    for entry in catalogue::all().filter(|e| e.form != Form::Property) {
        for (count, sound) in [
            (entry.args.0, true),
            (entry.args.1, true),
            (entry.args.1 + 1, false),
        ] {
            // The language has one of its own: the logarithm to a base, the
            // entry of a map.
            let languages = matches!((entry.name, count), ("log", 2) | ("get", 1));
            let sound = sound || languages;
            let function = matches!(entry.name, "on" | "try_on" | "step");
            let mut args: Vec<&str> = vec!["p.x"; count];
            if function && count > 1 {
                args[1] = "\"f\"";
            }
            if entry.name == "undo" && count > 0 {
                args[0] = "\"f\"";
            }
            let value = if entry.form == Form::Method {
                "p.y."
            } else {
                ""
            };
            let call = format!("{value}{}({})", entry.name, args.join(", "));
            let text = match entry.side {
                Side::Top => continue,
                Side::Test => {
                    format!(
                        "scenario(\"s\"); fn run(p) {{}} fn test_it() {{ let p = #{{}}; {call}; }}"
                    )
                }
                Side::Main => format!(
                    "scenario(\"s\"); param(\"x\"); param(\"y\"); fn f(p) {{}} fn main(p) {{ {call}; }}"
                ),
                Side::Node | Side::Both => {
                    format!("scenario(\"s\"); param(\"x\"); param(\"y\"); fn run(p) {{ {call}; }}")
                }
            };
            let found = said(&text);
            assert_eq!(found == "nothing\n", sound, "{call}: {found}");
        }
    }
}
