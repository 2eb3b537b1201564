//! A scenario's own tests, against nodes that exist only in them.

use std::collections::BTreeMap;

use muster_scenarios::bundle::Bundle;
use muster_scenarios::check::check_bundle;
use muster_scenarios::trial::Trial;

const UPGRADE: &str = r#"
scenario("Upgrade the web front end, a quarter of it at a time");
param("version", #{ matches: "^[0-9][0-9.]*$" });
param("batch", #{ type: "percent", default: "50%" });
param("key", #{ secret: true, required: false });
target("role=web");
also("balancers", "role=lb");

fn upgrade(p) {
    let done = package("webapp").version(p.version).changed;
    if done { service("webapp").restarted(); }
    http("http://127.0.0.1/health").until(200, #{ tries: 3, every: "1s" });
    log(`${node().name} in ${node().labels.rack} has ${p.version}`);
    done
}
fn downgrade(p) { package("webapp").version("1.0"); }
fn drain(p) { for host in p.hosts { command(["lbctl", "drain", host]); } }
fn restore(p) { for host in p.hosts { command(["lbctl", "restore", host]); } }

fn main(p) {
    let changed = 0;
    for batch in targets().batches(p.batch, #{ spread: "rack" }) {
        on(nodes("balancers"), "drain", #{ hosts: batch.names }).undo("restore");
        let r = on(batch, "upgrade", p).undo("downgrade");
        changed += r.values.values().filter(|v| v).len();
        on(nodes("balancers"), "restore", #{ hosts: batch.names });
        sleep("5s");
    }
    if ask("Announce?", ["yes", "no"]) == "yes" { emit("deployed", #{ version: p.version, at: now() }); }
    changed
}

fn fleet() {
    for n in 1..=4 { fake(`web-0${n}`, #{ roles: ["web"], labels: #{ rack: if n < 3 { "r1" } else { "r2" } } }); }
    fake("lb-1", #{ roles: ["lb"] });
    fake("db-1", #{ roles: ["db"] });
    answer("Announce*", "yes");
}
"#;

fn tested(tests: &str) -> String {
    let text = format!("{UPGRADE}\n{tests}");
    let bundle = Bundle::new(text, BTreeMap::new()).expect("a bundle");
    let manifest = check_bundle("web.rhai", &bundle).unwrap_or_else(|faults| {
        let all: Vec<String> = faults.iter().map(ToString::to_string).collect();
        panic!("{}", all.join("\n"))
    });
    let trial = Trial::new("web.rhai", &bundle, manifest).expect("it can be read");
    let mut said = String::new();
    for test in trial.tests() {
        match trial.run(test) {
            Ok(()) => said.push_str(&format!("{test}: well\n")),
            Err(fault) => said.push_str(&format!("{test}: {fault}\n")),
        }
    }
    for fault in trial.unneeded() {
        said.push_str(&format!("{fault}\n"));
    }
    said
}

#[test]
fn a_rolling_upgrade_is_seen_step_by_step() {
    let said = tested(
        r#"
fn test_batches_are_spread_over_racks() {
    fleet();
    let r = play(#{ version: "1.4.2" });
    assert(r.ok, r.error);
    assert_eq(r.value, 4);
    assert_eq(r.steps[0].function, "drain");
    assert_eq(r.steps[1].nodes, ["web-01", "web-03"]);
    assert_eq(r.steps[4].nodes, ["web-02", "web-04"]);
    assert_eq(r.did("lb-1"), [
        "command lbctl drain web-01", "command lbctl drain web-03",
        "command lbctl restore web-01", "command lbctl restore web-03",
        "command lbctl drain web-02", "command lbctl drain web-04",
        "command lbctl restore web-02", "command lbctl restore web-04",
    ]);
    assert_eq(r.did("web-02"), [
        "package webapp version 1.4.2", "service webapp restarted",
        "http http://127.0.0.1/health until 200",
    ]);
    assert_eq(r.did("db-1"), []);
    assert_eq(r.events, [#{ kind: "deployed", fields: #{ version: "1.4.2", at: "2026-01-01T00:00:10Z" } }]);
    assert_eq(r.asked, ["Announce?"]);
    assert_eq(r.logs[0], "web-01: web-01 in r1 has 1.4.2");
    // What is so already is not done again.
    let again = play(#{ version: "1.4.2" });
    assert_eq(again.value, 0);
    assert(!again.did("web-*", "service * restarted"));
    // A dry run leaves everything as it is.
    let dry = play(#{ version: "1.5" }, #{ dry_run: true });
    assert(dry.ok, dry.error);
    assert_eq(dry.steps.filter(|s| s.function == "upgrade").len(), 2);
    // It asks nobody and tells nobody: it ends where it would.
    assert_eq(dry.asked, []);
    assert_eq(dry.events, []);
    assert_eq(play(#{ version: "1.4.2" }).value, 0);
}
"#,
    );
    assert_eq!(said, "test_batches_are_spread_over_racks: well\n");
}

#[test]
fn what_fails_is_taken_back_and_says_where() {
    let said = tested(
        r#"
fn test_a_node_that_does_not_come_back() {
    fleet();
    reply("web-03", "http *", #{ status: 502 });
    let r = play(#{ version: "1.4.2" });
    assert(!r.ok);
    assert_eq(r.error, "1 node failed, none may");
    assert_eq(r.steps[1].failed, ["web-03"]);
    assert_eq(r.steps[1].reasons, ["web.rhai:12 http http://127.0.0.1/health: it answered 502 and not 200, 3 times"]);
    assert_eq(r.undone.map(|s| s.function), ["downgrade", "restore"]);
    assert_eq(r.undone[0].nodes, ["web-01", "web-03"]);
    assert(!r.did("web-02", "*") && !r.did("web-04", "*"));
}
fn test_a_node_that_is_down() {
    fleet();
    fake("web-05", #{ roles: ["web"], down: true });
    let r = play(#{ version: "1.4.2" });
    assert(!r.ok);
    assert_eq(r.undone[0].nodes.contains("web-05"), false);
}
fn test_a_parameter_is_wrong() {
    fleet();
    let said = "";
    try { play(#{ version: "latest; rm -rf /" }); } catch (e) { said = e; }
    assert_eq(said, "play: parameter \"version\": `latest; rm -rf /` does not match `^[0-9][0-9.]*$`");
}
"#,
    );
    assert_eq!(
        said,
        "test_a_node_that_does_not_come_back: well\ntest_a_node_that_is_down: well\ntest_a_parameter_is_wrong: well\n"
    );
}

#[test]
fn a_test_that_does_not_hold_says_where() {
    insta::assert_snapshot!(tested(
        r#"
fn test_1() { assert_eq(1 + 1, 3); }
fn test_2() { assert(false); }
fn test_3() { fleet();
    assert(play(#{ version: "1" }).did("db-*", "*"), "nothing was done on the database"); }
fn test_4() { fleet(); assert_eq(play(#{ version: "1", vresion: "2" }).ok, true); }
fn test_5() { fake("not a name"); }
fn test_6() { fake("web-01", #{ role: "web" }); }
fn test_7() { loop {} }
fn test_8() { reply("*", "package *", #{ fails: "held by apt" }); fleet(); let r = play(#{ version: "1" }); throw r.steps[1].reasons[0]; }
fn test_9() { fleet(); fake("lb-1"); }
"#
    ), @r#"
    test_1: web.rhai:41:15: these differ: 2 and 3
       41 | fn test_1() { assert_eq(1 + 1, 3); }
          |               ^^^^^^^^^
    test_2: web.rhai:42:15: this does not hold
       42 | fn test_2() { assert(false); }
          |               ^^^^^^
    test_3: web.rhai:44:5: nothing was done on the database
       44 |     assert(play(#{ version: "1" }).did("db-*", "*"), "nothing was done on the database"); }
          |     ^^^^^^
    test_4: web.rhai:45:34: play: parameter "vresion": not declared by this scenario; did you mean "version"?
       45 | fn test_4() { fleet(); assert_eq(play(#{ version: "1", vresion: "2" }).ok, true); }
          |                                  ^^^^
    test_5: web.rhai:46:15: fake: `not a name` is not a valid node name: ` ` is not allowed; it takes small letters, digits and `.-`
       46 | fn test_5() { fake("not a name"); }
          |               ^^^^
    test_6: web.rhai:47:15: fake: unknown field `role`, expected one of `roles`, `labels`, `facts`, `down`
       47 | fn test_6() { fake("web-01", #{ role: "web" }); }
          |               ^^^^
    test_7: web.rhai: the test works without an end
    test_8: web.rhai:49:109: web.rhai:10 package webapp: held by apt
       49 | fn test_8() { reply("*", "package *", #{ fails: "held by apt" }); fleet(); let r = play(#{ version: "1" }); throw r.steps[1].reasons[0]; }
          |                                                                                                             ^^^^^
    test_9: web.rhai:50:24: there is a node `lb-1` already
       50 | fn test_9() { fleet(); fake("lb-1"); }
          |                        ^^^^
    "#);
}

#[test]
fn what_came_of_a_step_on_each_node_can_be_asked() {
    let text = r#"
scenario("x");
target("role=web");
fn version(p) { shell("app --version"); command(["app", p.ask]); 7 }
fn main(p) {
    let r = try_on(targets(), "version", #{ ask: "health" });
    #{
        ok: r.ok, failed: r.failed.names, succeeded: r.succeeded.names, values: r.values,
        out: r["web-01"].stdout, value: r["web-01"].value, outcome: r["web-02"].outcome, why: r["web-02"].reason,
        broken: r["web-02"].stdout,
    }
}
fn test_it() {
    fake("web-01", #{ roles: ["web"] });
    fake("web-02", #{ roles: ["web"] });
    reply("*", "shell app --version", #{ stdout: "1.4.2\n" });
    reply("web-02", "command app health", #{ exit: 1, stdout: "broken\n" });
    let r = play();
    assert_eq(r.value, #{
        ok: false, failed: ["web-02"], succeeded: ["web-01"], values: #{ "web-01": 7 },
        out: "1.4.2\n", value: 7, outcome: "failed", why: "x.rhai:4 command app health: exit code 1",
        broken: "1.4.2\nbroken\n",
    });
}
"#;
    let bundle = Bundle::new(text.to_owned(), BTreeMap::new()).expect("a bundle");
    let manifest = check_bundle("x.rhai", &bundle).expect("it is sound");
    let trial = Trial::new("x.rhai", &bundle, manifest).expect("it can be read");
    if let Err(fault) = trial.run("test_it") {
        panic!("{fault}");
    }
}

#[test]
fn what_never_mattered_in_a_test_fails_it() {
    insta::assert_snapshot!(tested(
        r##"
fn test_a_reply_that_fits_nothing() { fleet();
    reply("web-0*", "pakage *", #{ fails: "held by apt" });
    assert(play(#{ version: "1" }).ok); }
fn test_likely_why_something_else_does_not_hold() { fleet();
    reply("web-02", "http http://localhost/*", #{ status: 502 });
    assert(!play(#{ version: "1" }).ok, "it should have failed"); }
fn test_nobody_was_told_anything() { reply("*", "*", #{ exit: 1 }); }
fn test_a_reply_for_nodes_that_are_not_there() { fleet();
    reply("wbe-*", "http *", #{ status: 502 });
    play(#{ version: "1" }); }
fn test_a_part_that_no_answer_has() { fleet();
    reply("lb-1", "command *", #{ exitcode: 1 });
    play(#{ version: "1" }); }
fn test_a_package_answers_nothing() { fleet();
    reply("*", "package *", #{ exit: 1 });
    play(#{ version: "1" }); }
fn test_one_that_a_newer_one_hides_is_well() { fleet();
    reply("*", "http *", #{ status: 502 });
    reply("web-*", "http *", #{ status: 200 });
    assert(play(#{ version: "1" }).ok); }
fn broken() { fleet(); reply("web-02", "http *", #{ status: 502 }); reply("web-01", "htp *", #{ status: 502 }); }
fn test_common_1() { broken(); assert(!play(#{ version: "1" }).ok); }
fn test_common_2() { broken(); reply("*", "package *", #{ fails: "no" }); assert(!play(#{ version: "1" }).ok); }
fn test_did_of_a_node_that_is_not_there() { fleet(); assert(!play(#{ version: "1" }).did("wbe-02", "*")); }
fn test_did_of_several() { fleet(); play(#{ version: "1" }).did("web-*"); }
fn test_several_parameters() { fleet(); play(#{ batch: "many", vresion: "1", "x\ny": 1 }); }
"##
    ), @r#"
    test_a_package_answers_nothing: web.rhai:55:5: reply("*", "package *") gives `exit`, but all that it answers can only fail: #{ fails: "text" }
       55 |     reply("*", "package *", #{ exit: 1 });
          |     ^^^^^
    test_a_part_that_no_answer_has: web.rhai:52:5: reply("lb-1", "command *") gives `exitcode`, which the answer does not have; there are: exit, skipped, stderr, stdout, truncated
       52 |     reply("lb-1", "command *", #{ exitcode: 1 });
          |     ^^^^^
    test_a_reply_for_nodes_that_are_not_there: web.rhai:49:5: reply("wbe-*", "http *") was never needed; what was told:
        command lbctl drain web-01  (lb-1)
        command lbctl drain web-02  (lb-1)
        command lbctl drain web-03  (lb-1)
        command lbctl drain web-04  (lb-1)
        command lbctl restore web-01  (lb-1)
        command lbctl restore web-02  (lb-1)
        command lbctl restore web-03  (lb-1)
        command lbctl restore web-04  (lb-1)
        http http://127.0.0.1/health until 200  (web-01, web-02, web-03 and 1 more)
        package webapp version 1  (web-01, web-02, web-03 and 1 more)
        service webapp restarted  (web-01, web-02, web-03 and 1 more)
       49 |     reply("wbe-*", "http *", #{ status: 502 });
          |     ^^^^^
    test_a_reply_that_fits_nothing: web.rhai:42:5: reply("web-0*", "pakage *") was never needed; what was told:
        http http://127.0.0.1/health until 200  (web-01, web-02, web-03 and 1 more)
        package webapp version 1  (web-01, web-02, web-03 and 1 more)
        service webapp restarted  (web-01, web-02, web-03 and 1 more)
       42 |     reply("web-0*", "pakage *", #{ fails: "held by apt" });
          |     ^^^^^
    test_common_1: well
    test_common_2: well
    test_did_of_a_node_that_is_not_there: web.rhai:64:86: did: the test has no node `wbe-02`; did you mean `web-02`?
       64 | fn test_did_of_a_node_that_is_not_there() { fleet(); assert(!play(#{ version: "1" }).did("wbe-02", "*")); }
          |                                                                                      ^^^
    test_did_of_several: web.rhai:65:61: did: this gives what one node was told; for several, say what as well: did("web-*", "service *")
       65 | fn test_did_of_several() { fleet(); play(#{ version: "1" }).did("web-*"); }
          |                                                             ^^^
    test_likely_why_something_else_does_not_hold: web.rhai:46:5: it should have failed
      and in line 45 reply("web-02", "http http://localhost/*") was never needed; what was told:
        http http://127.0.0.1/health until 200  (web-02)
        package webapp version 1  (web-02)
        service webapp restarted  (web-02)
       46 |     assert(!play(#{ version: "1" }).ok, "it should have failed"); }
          |     ^^^^^^
    test_nobody_was_told_anything: web.rhai:47:38: reply("*", "*") was never needed: no node was told anything
       47 | fn test_nobody_was_told_anything() { reply("*", "*", #{ exit: 1 }); }
          |                                      ^^^^^
    test_one_that_a_newer_one_hides_is_well: well
    test_several_parameters: web.rhai:66:41: play: 4 parameters do not fit:
        parameter "version": required, not given (give it with -p version=TEXT)
        parameter "batch": `many` is not a percentage such as `25%`
        parameter "vresion": not declared by this scenario; did you mean "version"?
        parameter "x\x0ay": not declared by this scenario; there are: version, batch, key
       66 | fn test_several_parameters() { fleet(); play(#{ batch: "many", vresion: "1", "x\ny": 1 }); }
          |                                         ^^^^
    web.rhai:61:69: reply("web-01", "htp *") was never needed; what was told:
        http http://127.0.0.1/health until 200  (web-01)
        package webapp version 1  (web-01)
        package webapp version 1.0  (web-01)
        service webapp restarted  (web-01)
       61 | fn broken() { fleet(); reply("web-02", "http *", #{ status: 502 }); reply("web-01", "htp *", #{ status: 502 }); }
          |                                                                     ^^^^^
    "#);
}

#[test]
fn a_scenario_without_main_keeps_to_its_batches_and_its_budget() {
    let text = r#"
scenario("x");
param("token", #{ secret: true });
batch(2);
max_failures(1);
retry(1);
fn run(p) {
    command(["login", p.token]);
    log(`token ${p.token}`);
    p.token
}
fn test_it() {
    for n in 1..=6 { fake(`n-${n}`, #{ labels: #{ site: if n > 3 { "b" } else { "a" } } }); }
    reply("n-3", "command *", #{ exit: 1 });
    reply("n-4", "command *", #{ fails: "no login with hunter2" });
    let r = play(#{ token: "hunter2" });
    assert(!r.ok);
    assert_eq(r.error, "2 nodes failed, 1 may");
    assert_eq(r.steps[0].skipped, ["n-5", "n-6"]);
    // Each was tried twice.
    assert_eq(r.did("n-3").len(), 2);
    assert_eq(r.logs[0], "n-1: token [redacted]");
    assert_eq(r.steps[0].reasons[1].contains("hunter2"), false);
    let on = play(#{ token: "hunter2" }, #{ on: "site=a and not name=n-3" });
    assert(on.ok);
    assert_eq(on.steps[0].nodes, ["n-1", "n-2"]);
}
"#;
    let bundle = Bundle::new(text.to_owned(), BTreeMap::new()).expect("a bundle");
    let manifest = check_bundle("x.rhai", &bundle).expect("it is sound");
    let trial = Trial::new("x.rhai", &bundle, manifest).expect("it can be read");
    if let Err(fault) = trial.run("test_it") {
        panic!("{fault}");
    }
}

#[test]
fn a_node_that_is_waited_for_is_there_or_is_not() {
    let text = r#"
scenario("Waits");
param("name");
target("role=web");
fn main(p) { contact(p.name, "5m"); "met" }
fn test_there() { fake("web-1", #{ roles: ["web"] }); fake("new-1"); assert_eq(play(#{ name: "new-1" }).value, "met"); }
fn test_not() {
    fake("web-1", #{ roles: ["web"] });
    let r = play(#{ name: "new-1" });
    assert(r.error.contains("new-1 was not heard within 5m"), r.error);
}
"#;
    let bundle = Bundle::new(text.to_owned(), BTreeMap::new()).expect("a bundle");
    let manifest = check_bundle("x.rhai", &bundle).expect("it is sound");
    let trial = Trial::new("x.rhai", &bundle, manifest).expect("it can be read");
    for test in trial.tests() {
        trial.run(test).unwrap_or_else(|fault| panic!("{fault}"));
    }
}
