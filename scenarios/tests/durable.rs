//! `main` against a world in memory: crashed after every call, replayed,
//! changed under way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use muster_protocol::ids::Serial;
use muster_protocol::run::Outcome;
use muster_scenarios::durable::{
    HostCall, Input, Member, NodeReply, Program, Recorded, Records, Reply, Step, StepReply, Turn,
    Undo, turn,
};
use serde_json::{Value, json};

/// A loop, `parallel`, `sleep`, `ask`, `random`, a caught error, and undo.
const SCRIPT: &str = r#"
fn main(p) {
    let seen = [];
    for batch in targets().batches(p.batch) {
        on(nodes("balancers"), "drain", #{ hosts: batch.names }).undo("restore");
        let r = on(batch, "upgrade", p).undo("downgrade");
        seen += r.values;
        sleep("5s");
    }
    let both = parallel([step(targets(), "check"), step(nodes("balancers"), "check", #{})]);
    let caught = "";
    try {
        on(nodes("balancers"), "break");
    } catch (e) {
        caught = `${e}`;
    }
    let answer = ask("Go on?", ["yes", "no"]);
    if answer != "yes" { abort("ana said no"); }
    let dice = random(1, 6);
    log(`rolled ${dice} at ${now()}`);
    let rest = targets().where("zone=gva2").limit(1);
    let survivors = try_on(rest, "flaky", #{}, #{ max_failures: 0 });
    #{ seen: seen, checked: both.len(), caught: caught, dice: dice, failed: survivors.failed.names, code: survivors[rest.names[0]].exit }
}
"#;

/// A turn that nobody stops.
fn nobody() -> bool {
    false
}

fn member(number: u32, name: &str) -> Member {
    Member {
        serial: Serial(number),
        name: name.parse().expect("a name"),
    }
}

fn input() -> Input {
    let web = (1..=4).map(|n| member(n, &format!("web-0{n}"))).collect();
    let params = json!({"version": "1.4.2", "batch": 2});
    Input {
        params: params.as_object().cloned().expect("a map"),
        sets: BTreeMap::from([
            ("targets".to_owned(), web),
            ("balancers".to_owned(), vec![member(9, "lb-1")]),
        ]),
    }
}

/// What is outside of the script, with a counter of effects.
#[derive(Default)]
struct World {
    effects: Vec<String>,
    dice: i64,
}

impl World {
    fn step(&mut self, step: &Step) -> StepReply {
        let mut reply = StepReply::default();
        for serial in step.nodes.iter() {
            self.effects.push(format!("{} on {serial}", step.function));
            let fails = matches!(step.function.as_str(), "break" | "flaky");
            reply.nodes.push(NodeReply {
                serial,
                outcome: if fails {
                    Outcome::Failed
                } else {
                    Outcome::Succeeded
                },
                value: (step.function.as_str() == "upgrade").then(|| json!("1.4.2")),
                reason: fails.then(|| "exit code 3".to_owned()),
                exit: fails.then_some(3),
                stdout: None,
            });
        }
        if step.function.as_str() == "break" {
            reply.stopped = Some("1 node failed, none may".to_owned());
        }
        reply
    }

    fn answer(&mut self, call: &HostCall) -> Reply {
        match call {
            HostCall::On(step) | HostCall::TryOn(step) => Reply::Step(self.step(step)),
            HostCall::Parallel { steps } => {
                Reply::Steps(steps.iter().map(|step| self.step(step)).collect())
            }
            HostCall::Where { nodes, .. } => Reply::Nodes(nodes.clone()),
            HostCall::Spread { nodes, .. } => Reply::Batches(vec![nodes.clone()]),
            HostCall::Random { .. } => {
                // Another each time it is asked: a replay must not ask again.
                self.dice += 1;
                Reply::Value(self.dice.into())
            }
            HostCall::Ask { .. } => Reply::Value("yes".into()),
            HostCall::Now => Reply::Value("2026-11-21T00:00:00Z".into()),
            other => {
                self.effects.push(other.name().to_owned());
                Reply::Value(Value::Null)
            }
        }
    }
}

fn program(text: &str) -> Program {
    Program::new("web.rhai", text).unwrap_or_else(|fault| panic!("{fault}"))
}

/// Runs to the end, with everything in memory thrown away after each turn.
/// `inline` answers this kind of calls within the turn.
fn run(program: &Program, inline: fn(&HostCall) -> bool) -> (Turn, Vec<Recorded>, World) {
    let world = Arc::new(Mutex::new(World::default()));
    let mut journal: Vec<Recorded> = Vec::new();
    loop {
        let inside = Arc::clone(&world);
        let inline = move |_, call: &HostCall| {
            inline(call).then(|| inside.lock().expect("a lock").answer(call))
        };
        let (next, fresh) = turn(program, &input(), journal.clone().into(), inline, nobody);
        journal.extend(fresh);
        let Turn::Wants { number, call, .. } = next else {
            let world = std::mem::take(&mut *world.lock().expect("a lock"));
            return (next, journal, world);
        };
        assert_eq!(number, journal.len() as u64);
        let reply = world.lock().expect("a lock").answer(&call);
        journal.push(Recorded {
            call: call.name().to_owned(),
            hash: call.hash(),
            reply,
        });
    }
}

#[test]
fn it_ends_the_same_wherever_it_was_interrupted() {
    let program = program(SCRIPT);
    let (never, _, effects) = run(&program, |_| true);
    let (always, journal, again) = run(&program, |_| false);
    let (some, ..) = run(&program, |call| !matches!(call, HostCall::On(_)));
    assert_eq!(never, always);
    assert_eq!(never, some);
    assert_eq!(effects.effects, again.effects);
    let Turn::Done(value) = never else {
        panic!("{never:?}")
    };
    insta::assert_snapshot!(value, @r#"{"caught":"1 node failed, none may","checked":2,"code":3,"dice":1,"failed":["web-01"],"seen":[{"web-01":"1.4.2","web-02":"1.4.2"},{"web-03":"1.4.2","web-04":"1.4.2"}]}"#);
    let calls: Vec<&str> = journal.iter().map(|r| r.call.as_str()).collect();
    insta::assert_snapshot!(calls.join(" "), @r"on on sleep on on sleep parallel on ask random now log where try_on");

    // A whole journal: nothing is asked any more.
    let again = |_, call: &HostCall| panic!("{call:?} is asked again");
    let (replayed, fresh) = turn(&program, &input(), journal.into(), again, nobody);
    assert_eq!(replayed, always);
    assert!(fresh.is_empty());
}

#[test]
fn a_journal_survives_its_own_form() {
    let (_, journal, _) = run(&program(SCRIPT), |_| false);
    let text = serde_json::to_string(&journal).expect("it has a form");
    let read: Vec<Recorded> = serde_json::from_str(&text).expect("it can be read");
    assert_eq!(read, journal);
}

#[test]
fn a_script_that_does_something_else_is_stopped() {
    let (_, journal, _) = run(&program(SCRIPT), |_| false);
    let journal: Records = journal.into();
    let others = [
        // Other arguments.
        SCRIPT.replace("\"drain\"", "\"disable\""),
        // Another call.
        SCRIPT.replace("sleep(\"5s\")", "log(\"x\")"),
        // Other nodes.
        SCRIPT.replace("on(batch, \"upgrade\"", "on(targets(), \"upgrade\""),
    ];
    let said = others.map(|text| {
        let more = |_, _: &HostCall| panic!("nothing more may happen");
        let journal = journal.clone();
        let (turn, _) = turn(&program(&text), &input(), journal, more, nobody);
        let Turn::Diverged { fault, .. } = turn else {
            panic!("{turn:?}")
        };
        fault.to_string()
    });
    insta::assert_snapshot!(said.join("\n"), @r#"
    web.rhai:5:9: call 0, `on`, has other arguments than the first time
        5 |         on(nodes("balancers"), "disable", #{ hosts: batch.names }).undo("restore");
          |         ^^ the run is stopped: nobody knows what it would do
    web.rhai:8:9: call 2 is `log`, the first time it was `sleep`
        8 |         log("x");
          |         ^^^ the run is stopped: nobody knows what it would do
    web.rhai:6:17: call 1, `on`, has other arguments than the first time
        6 |         let r = on(targets(), "upgrade", p).undo("downgrade");
          |                 ^^ the run is stopped: nobody knows what it would do
    "#);
}

#[test]
fn what_failed_is_taken_back_newest_first_also_in_part() {
    let failing = SCRIPT.replace(
        "seen += r.values;",
        "on(targets(), \"break\").undo(\"mend\");",
    );
    let (turn, ..) = run(&program(&failing), |_| false);
    let Turn::Failed { fault, undo } = turn else {
        panic!("{turn:?}")
    };
    let undo: Vec<String> = undo
        .iter()
        .map(|undo| match undo {
            Undo::Step(step) => format!("{} of call {}", step.function, step.of),
            Undo::Machine { of } => format!("machine of call {of}"),
        })
        .collect();
    insta::assert_snapshot!(format!("{fault}\n{}", undo.join("\n")), @r#"
    web.rhai:7:9: 1 node failed, none may
        7 |         on(targets(), "break").undo("mend");
          |         ^^
    mend of call 2
    downgrade of call 1
    restore of call 0
    "#);
}

#[test]
fn mistakes_in_main_say_where() {
    let all = [
        "on(nodes(\"lbs\"), \"f\")",
        "on(targets(), \"not a name\")",
        "on(targets(), \"f\", #{}, #{ max_failure: 1 })",
        "targets().where(\"zone=\")",
        "targets().batches(\"half\")",
        "sleep(\"soon\")",
        "random(6, 1)",
        "parallel([1])",
        "on(targets(), \"f\")[\"nobody\"]",
        "p.verson",
        "abort(\"no \\x1b[2J\")",
        "loop {}",
        "fn_that_is_not()",
        "throw \"by hand\"",
        "targets().limit(-1)",
        // Nothing can catch the way out.
        "try { abort(\"caught\") } catch { log(\"x\") }",
    ]
    .map(|line| {
        let text = format!("fn main(p) {{\n    {line};\n}}");
        let (turn, ..) = run(&program(&text), |_| true);
        let Turn::Failed { fault, .. } = turn else {
            panic!("{line}: {turn:?}")
        };
        fault.to_string()
    });
    insta::assert_snapshot!(all.join("\n"), @r#"
    web.rhai:2:8: the scenario declares no node set `lbs`; there are: balancers, targets
        2 |     on(nodes("lbs"), "f");
          |        ^^^^^
    web.rhai:2:5: the function: `not a name` is not a valid function name: ` ` is not allowed; it takes letters, digits and `_`
        2 |     on(targets(), "not a name");
          |     ^^
    web.rhai:2:5: a step has no option `max_failure`; there are: batch, max_failures, retry, timeout
        2 |     on(targets(), "f", #{}, #{ max_failure: 1 });
          |     ^^
    web.rhai:2:15: where: a value is missing after `=` (at byte 4): an empty value is written ""
        2 |     targets().where("zone=");
          |               ^^^^^
    web.rhai:2:15: batches takes a number of nodes or a percentage such as "25%"
        2 |     targets().batches("half");
          |               ^^^^^^^
    web.rhai:2:5: sleep: `soon` is not a duration; write it like `30s`, `5m` or `1h30m`
        2 |     sleep("soon");
          |     ^^^^^
    web.rhai:2:5: random takes the least first, then the most
        2 |     random(6, 1);
          |     ^^^^^^
    web.rhai:2:5: parallel takes a list of steps: parallel([step(nodes("a"), "f"), …])
        2 |     parallel([1]);
          |     ^^^^^^^^
    web.rhai:2:23: the step had no node `nobody`
        2 |     on(targets(), "f")["nobody"];
          |                       ^
    web.rhai:2:7: there is no property `verson` here
        2 |     p.verson;
          |       ^^^^^^
    web.rhai:2:5: no \x1b[2J
        2 |     abort("no \x1b[2J");
          |     ^^^^^
    web.rhai: the script works without an end; what takes long belongs on the nodes
    web.rhai:2:5: there is no function fn_that_is_not()
        2 |     fn_that_is_not();
          |     ^^^^^^^^^^^^^^
    web.rhai:2:5: by hand
        2 |     throw "by hand";
          |     ^^^^^
    web.rhai:2:15: `limit` takes a number of nodes that is not negative
        2 |     targets().limit(-1);
          |               ^^^^^
    web.rhai:2:11: caught
        2 |     try { abort("caught") } catch { log("x") };
          |           ^^^^^
    "#);
}

#[test]
fn ten_thousand_calls_are_replayed() {
    let text = "fn main(p) { for i in 0..10000 { log(`${i}`); } }";
    let (turned, journal, world) = run(&program(text), |_| true);
    assert_eq!(turned, Turn::Done(Value::Null));
    assert_eq!((journal.len(), world.effects.len()), (10_000, 10_000));
    let (turned, _) = turn(
        &program(text),
        &input(),
        journal.into(),
        |_, _| None,
        nobody,
    );
    assert_eq!(turned, Turn::Done(Value::Null));
}

#[test]
fn a_call_in_an_older_journal_has_the_hash_that_it_had() {
    let call = |on: Option<&str>| HostCall::RunScenario {
        scenario: "inner".parse().expect("a name"),
        params: json!({ "n": 3 }).as_object().cloned().expect("a map"),
        on: on.map(str::to_owned),
    };
    let before = "c27d183356738699200f72c5be2e9c5f36b7c846d73130e0b160f15f47e2bd52";
    assert_eq!(call(None).hash().to_string(), before);
    assert_ne!(call(Some("role=web")).hash().to_string(), before);
}

#[test]
fn a_machine_goes_at_its_place_also_one_that_is_said_not_to_be_there() {
    let script = r#"
fn main(p) {
    on(targets(), "f").undo("g");
    try { machine(#{ name: "a", image: "i", cpus: 1, memory: "1GiB" }); } catch { }
    machine(#{ name: "b", image: "i", cpus: 1, memory: "1GiB", keep: true });
    on(targets(), "f").undo("h");
    abort("no");
}
fn f(p) { } fn g(p) { } fn h(p) { }
"#;
    let program = Program::new("x.rhai", script).expect("it can be read");
    let member = Member {
        serial: Serial(1),
        name: "web-01".parse().expect("a name"),
    };
    let input = Input {
        sets: BTreeMap::from([("targets".to_owned(), vec![member])]),
        ..Input::default()
    };
    let answer = |_: u64, call: &HostCall| {
        Some(match call {
            HostCall::Machine { keep: false, .. } => Reply::Error("no room".to_owned()),
            HostCall::Machine { .. } => Reply::Value(json!({ "name": "b" })),
            _ => Reply::Step(StepReply::default()),
        })
    };
    let (turn, _) = turn(&program, &input, Records::default(), answer, || false);
    let Turn::Failed { undo, .. } = turn else {
        panic!("{turn:?}");
    };
    let undo: Vec<String> = undo
        .iter()
        .map(|undo| match undo {
            Undo::Step(step) => step.function.to_string(),
            Undo::Machine { of } => format!("machine of call {of}"),
        })
        .collect();
    // Whether anything of it is there only its record says.
    assert_eq!(undo, ["h", "machine of call 1", "g"]);
}
