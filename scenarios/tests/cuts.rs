//! A crash at every place of a run's journal: what comes out is what would
//! have come out without it, and nothing has happened twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use muster_protocol::ids::Serial;
use muster_protocol::run::Outcome;
use muster_scenarios::durable::{
    HostCall, Input, Member, NodeReply, Program, Recorded, Reply, Step, StepReply, Turn, Undo, turn,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A loop, `parallel`, `sleep`, `ask`, `random`, a caught error, and undo.
const SCRIPT: &str = r#"
fn main(p) {
    let seen = [];
    for batch in targets().batches(p.batch, #{ spread: "rack" }) {
        on(nodes("balancers"), "drain", #{ hosts: batch.names }).undo("restore");
        let r = try_on(batch, "upgrade", p).undo("downgrade");
        seen.push(r.failed.names);
        if random(1, 6) > 3 { sleep("5s"); }
        try {
            on(batch, "check", #{ round: random(1, 100) });
        } catch (e) {
            log(`${e}`);
            if ask("Go on?", ["yes", "no"]) == "no" { abort("ana said no"); }
        }
    }
    let both = parallel([
        step(targets(), "check"),
        step(nodes("balancers").plus(targets().where("zone=gva2")), "enable").undo("disable"),
    ]);
    emit("done", #{ at: now(), checked: both[0].succeeded.count });
    on(targets(), "last").undo("never");
    seen
}
"#;

/// What decides how the world answers.
#[derive(Clone, Debug)]
struct Fate {
    /// Nodes and functions that fail.
    fails: BTreeSet<(u32, &'static str)>,
    dice: Vec<i64>,
    goes_on: bool,
    batch: i64,
}

/// Everything outside of the broker's memory, which a crash does not touch.
/// Each call is done once, whoever asks how often: as nodes do by their own
/// journals.
struct World {
    fate: Fate,
    done: BTreeMap<u64, (HostCall, Reply)>,
    effects: Vec<String>,
}

impl World {
    fn new(fate: &Fate) -> Self {
        Self {
            fate: fate.clone(),
            done: BTreeMap::new(),
            effects: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step, tolerant: bool) -> StepReply {
        let mut reply = StepReply::default();
        let mut failed = 0;
        for serial in step.nodes.iter() {
            self.effects.push(format!(
                "{} {} on {serial}",
                step.function,
                json!(step.params)
            ));
            let fails =
                self.fate.fails.iter().any(|(node, function)| {
                    *node == serial.0 && *function == step.function.as_str()
                });
            failed += u32::from(fails);
            reply.nodes.push(NodeReply {
                serial,
                outcome: if fails {
                    Outcome::Failed
                } else {
                    Outcome::Succeeded
                },
                value: None,
                reason: fails.then(|| "exit code 3".to_owned()),
                exit: None,
                stdout: None,
            });
        }
        if failed > 0 && !tolerant {
            reply.stopped = Some(format!("{failed} failed, none may"));
        }
        reply
    }

    fn answer(&mut self, number: u64, call: &HostCall) -> Reply {
        if let Some((before, reply)) = self.done.get(&number) {
            assert_eq!(before, call, "call {number} is another than before");
            return reply.clone();
        }
        let reply = match call {
            HostCall::On(step) => Reply::Step(self.step(step, false)),
            HostCall::TryOn(step) => Reply::Step(self.step(step, true)),
            HostCall::Parallel { steps } => {
                Reply::Steps(steps.iter().map(|step| self.step(step, false)).collect())
            }
            HostCall::Where { nodes, .. } => {
                Reply::Nodes(nodes.iter().filter(|serial| serial.0 % 2 == 0).collect())
            }
            HostCall::Spread { nodes, size, .. } => {
                let size = size.of_rounded_up(nodes.len()).max(1);
                let all: Vec<Serial> = nodes.iter().collect();
                let batches = all.chunks(size).map(|c| c.iter().copied().collect());
                Reply::Batches(batches.collect())
            }
            HostCall::Random { from, to } => {
                // Another each time it is asked.
                let dice = &self.fate.dice;
                let rolled = dice[self.done.len() % dice.len()];
                Reply::Value((from + rolled % (to - from + 1)).into())
            }
            HostCall::Ask { .. } => {
                Reply::Value(if self.fate.goes_on { "yes" } else { "no" }.into())
            }
            HostCall::Now => Reply::Value(format!("time {}", self.done.len()).into()),
            other => {
                self.effects.push(json!(other).to_string());
                Reply::Value(Value::Null)
            }
        };
        self.done.insert(number, (call.clone(), reply.clone()));
        reply
    }

    fn take_back(&mut self, undo: &[Undo]) {
        for undo in undo {
            self.effects.push(format!("undo {undo:?}"));
        }
    }
}

fn input(batch: i64) -> Input {
    let member = |number: u32, name: &str| Member {
        serial: Serial(number),
        name: name.parse().expect("a name"),
    };
    let web = (1..=4).map(|n| member(n, &format!("web-0{n}"))).collect();
    Input {
        params: json!({ "batch": batch })
            .as_object()
            .cloned()
            .expect("a map"),
        sets: BTreeMap::from([
            ("targets".to_owned(), web),
            ("balancers".to_owned(), vec![member(9, "lb-1")]),
        ]),
    }
}

/// How the broker dies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Crash {
    /// The call was done, and its reply is not in the journal.
    Before(usize),
    /// The reply is in the journal, and nobody has gone on from there.
    After(usize),
}

/// A run to its end; `inline` says which calls, by number, are answered
/// within a turn. `crashes` happen at these lengths of the journal, each
/// once.
fn run(
    program: &Program,
    fate: &Fate,
    inline: &[bool],
    crashes: &[Crash],
) -> (Turn, Vec<Recorded>, Vec<String>) {
    let world = Arc::new(Mutex::new(World::new(fate)));
    let mut journal: Vec<Recorded> = Vec::new();
    let mut left: Vec<Crash> = crashes.to_vec();
    // Whether the broker dies now; what it had in memory is what is not in
    // `journal` and not in `world`.
    let dies = |left: &mut Vec<Crash>, crash: Crash| match left.iter().position(|c| *c == crash) {
        Some(at) => {
            left.remove(at);
            true
        }
        None => false,
    };
    'life: loop {
        let inside = Arc::clone(&world);
        let mask = inline.to_vec();
        let at_once = move |number: u64, call: &HostCall| {
            let number_in_mask = usize::try_from(number).expect("small") % mask.len();
            mask[number_in_mask].then(|| inside.lock().expect("a lock").answer(number, call))
        };
        let records = journal.clone().into();
        let (next, fresh) = turn(program, &input(fate.batch), records, at_once, || false);
        for record in fresh {
            if dies(&mut left, Crash::Before(journal.len())) {
                continue 'life;
            }
            journal.push(record);
            if dies(&mut left, Crash::After(journal.len())) {
                continue 'life;
            }
        }
        match next {
            Turn::Wants { number, call, .. } => {
                assert_eq!(number, journal.len() as u64);
                let reply = world.lock().expect("a lock").answer(number, &call);
                if dies(&mut left, Crash::Before(journal.len())) {
                    continue 'life;
                }
                journal.push(Recorded {
                    call: call.name().to_owned(),
                    hash: call.hash(),
                    reply,
                });
                if dies(&mut left, Crash::After(journal.len())) {
                    continue 'life;
                }
            }
            end => {
                let mut world = world.lock().expect("a lock");
                if let Turn::Failed { undo, .. } = &end {
                    world.take_back(undo);
                }
                return (end, journal, std::mem::take(&mut world.effects));
            }
        }
    }
}

fn fates() -> impl Strategy<Value = Fate> {
    let functions = ["upgrade", "check", "last", "enable", "drain"];
    let failure = (1..=4u32, proptest::sample::select(functions.to_vec()));
    (
        proptest::collection::btree_set(failure, 0..3),
        proptest::collection::vec(0..100i64, 1..5),
        any::<bool>(),
        1..=4i64,
    )
        .prop_map(|(fails, dice, goes_on, batch)| Fate {
            fails,
            dice,
            goes_on,
            batch,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// One crash at every single place, before and after.
    #[test]
    fn a_crash_anywhere_changes_nothing(fate in fates(), inline in proptest::collection::vec(any::<bool>(), 1..6)) {
        let program = Program::new("x.rhai", SCRIPT).expect("a program");
        let whole = run(&program, &fate, &[false], &[]);
        let ended = matches!(whole.0, Turn::Done(_) | Turn::Failed { .. });
        prop_assert!(ended);
        prop_assert!(whole.1.len() > 4);
        for at in 0..=whole.1.len() {
            for crash in [Crash::Before(at), Crash::After(at)] {
                let cut = run(&program, &fate, &inline, &[crash]);
                prop_assert_eq!(&cut, &whole, "{:?}", crash);
            }
        }
    }

    /// Any number of them, at any places.
    #[test]
    fn many_crashes_change_nothing(
        fate in fates(),
        inline in proptest::collection::vec(any::<bool>(), 1..6),
        crashes in proptest::collection::vec((0..30usize, any::<bool>()), 0..20),
    ) {
        let program = Program::new("x.rhai", SCRIPT).expect("a program");
        let crashes: Vec<Crash> = crashes
            .into_iter()
            .map(|(at, before)| if before { Crash::Before(at) } else { Crash::After(at) })
            .collect();
        let whole = run(&program, &fate, &[false], &[]);
        prop_assert_eq!(run(&program, &fate, &inline, &crashes), whole);
    }
}

/// The fates above reach the ends that matter: well, aborted by a person,
/// failed late with everything to take back.
#[test]
fn the_script_comes_to_each_of_its_ends() {
    let program = Program::new("x.rhai", SCRIPT).expect("a program");
    let fate = |fails: &[(u32, &'static str)], goes_on| Fate {
        fails: fails.iter().copied().collect(),
        dice: vec![5, 1],
        goes_on,
        batch: 2,
    };
    let undone = |fate: &Fate| -> String {
        let (end, _, effects) = run(&program, fate, &[false], &[]);
        let undone = effects.iter().filter(|e| e.starts_with("undo ")).count();
        match end {
            Turn::Failed { fault, .. } => format!("{}; {undone} undone", fault.message),
            Turn::Done(value) => format!("done {value}; {undone} undone"),
            other => panic!("{other:?}"),
        }
    };
    let all = [
        undone(&fate(&[(2, "upgrade")], true)),
        undone(&fate(&[(3, "check")], true)),
        undone(&fate(&[(1, "check")], false)),
        undone(&fate(&[(4, "last")], true)),
        undone(&fate(&[(2, "enable")], true)),
    ];
    insta::assert_snapshot!(all.join("\n"), @r#"
    done [["web-02"],[]]; 0 undone
    1 failed, none may; 5 undone
    ana said no; 2 undone
    1 failed, none may; 6 undone
    1 failed, none may; 5 undone
    "#);
}
