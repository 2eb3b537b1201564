//! What the language of scenarios costs the broker.

use std::collections::BTreeMap;
use std::time::Instant;

use muster_protocol::ids::Serial;
use muster_scenarios::durable::{
    HostCall, Input, Member, Program, Recorded, Records, Reply, Turn, turn,
};
use muster_scenarios::manifest;
use serde_json::Value;

use super::figures::{Row, Spread, Unit};

/// Lines of the scenario that is read.
const LINES: usize = 300;
/// Calls of the `main` that is replayed.
const CALLS: usize = 10_000;
/// How often each is measured.
const TIMES: usize = 15;

/// A scenario of so many lines, with a little of everything.
fn long() -> String {
    let mut text = String::from(
        "scenario(\"Long\");\nparam(\"version\", #{ matches: \"^[0-9.]+$\" });\ntarget(\"role=web\");\n",
    );
    let mut number = 0;
    while text.lines().count() + 12 < LINES {
        number += 1;
        text.push_str(&format!(
            "/// Step {number}.\nfn step_{number}(p) {{\n    let r = package(\"app-{number}\").version(p.version);\n    \
             if r.changed {{ service(\"app-{number}\").restarted(); }}\n    \
             file(\"/etc/app-{number}.conf\").content(`version = ${{p.version}}\\n`, #{{ mode: \"0644\" }});\n}}\n"
        ));
    }
    text.push_str("fn main(p) {\n    for batch in targets().batches(\"25%\") {\n");
    text.push_str(
        "        on(batch, \"step_1\", p).undo(\"step_2\");\n        sleep(\"30s\");\n    }\n}\n",
    );
    text
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

/// Reads the manifest and compiles the script.
fn compile() -> Option<Spread> {
    let text = long();
    let mut took = Vec::new();
    for _ in 0..TIMES {
        let began = Instant::now();
        manifest::read("long.rhai", &text).ok()?;
        Program::new("long.rhai", &text).ok()?;
        took.push(ms(began));
    }
    Spread::of(&took)
}

/// Runs a script again whose calls are all in the journal.
fn replay() -> Option<Spread> {
    let text =
        format!("fn main(p) {{ for i in 0..{CALLS} {{ on(targets(), \"f\", #{{ n: i }}); }} }}");
    let program = Program::new("many.rhai", &text).ok()?;
    let member = |n: u32| {
        let name = format!("web-{n}").parse().ok()?;
        Some(Member {
            serial: Serial(n),
            name,
        })
    };
    let targets: Vec<Member> = (1..=10).filter_map(member).collect();
    let input = Input {
        params: serde_json::Map::new(),
        sets: BTreeMap::from([("targets".to_owned(), targets)]),
    };
    let answer = |_, call: &HostCall| match call {
        HostCall::On(_) => Some(Reply::Step(Default::default())),
        _ => Some(Reply::Value(Value::Null)),
    };
    let (turned, records) = turn(&program, &input, Records::default(), answer, || false);
    let records: Vec<Recorded> = records;
    if !matches!(turned, Turn::Done(_)) || records.len() != CALLS {
        return None;
    }
    let records: Records = records.into();
    let mut took = Vec::new();
    for _ in 0..TIMES {
        let began = Instant::now();
        let (turned, fresh) = turn(&program, &input, records.clone(), |_, _| None, || false);
        took.push(ms(began));
        if !matches!(turned, Turn::Done(_)) || !fresh.is_empty() {
            return None;
        }
    }
    Spread::of(&took)
}

/// The rows of the table; one that could not be measured is not there.
pub(super) fn rows() -> Vec<Row> {
    let compile = compile().map(|spread| {
        let what = format!("scenario of {LINES} lines: compile and manifest");
        Row::at_most(what, Unit::Ms, spread, 5.0)
    });
    let replay = replay().map(|spread| {
        let what = format!("`main`: replay of {CALLS} calls");
        Row::at_most(what, Unit::Ms, spread, 1_000.0)
    });
    compile.into_iter().chain(replay).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_what_is_said() {
        let lines = long().lines().count();
        assert!((LINES - 12..=LINES).contains(&lines), "{lines}");
        let rows = rows();
        assert_eq!(rows.len(), 2, "{rows:#?}");
    }
}
