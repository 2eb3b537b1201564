//! Everything that was ever said is said again, in another order and many
//! times, by somebody who took the NATS server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, Message};
use futures_util::StreamExt as _;
use muster_tests::invariants::{Audit, Counter};
use muster_tests::{Said, Up, signal, wait_for};
use rustix::process::Signal;

use super::draw::{Draw, seeds};
use super::{one_outcome_each, ready, wait_state, works};
use crate::hostile::wire;

/// Hears everything between broker and nodes.
struct Tape(Arc<Mutex<Vec<Message>>>);

impl Tape {
    async fn record(wire: &Client) -> Self {
        let tape = Self(Arc::default());
        for subject in ["m1.do.>", "m1.from.>"] {
            let mut all = wire.subscribe(subject).await.expect("listens");
            let heard = tape.0.clone();
            tokio::spawn(async move {
                while let Some(message) = all.next().await {
                    heard.lock().expect("nobody panicked").push(message);
                }
            });
        }
        wire.flush().await.expect("sent");
        tape
    }

    fn heard(&self) -> Vec<Message> {
        self.0.lock().expect("nobody panicked").clone()
    }

    /// The instances in whose name such a thing was said.
    fn instances(&self, kind: &str) -> BTreeSet<String> {
        let end = format!(".{kind}");
        let heard = self.heard();
        let of_kind = heard.iter().filter(|m| m.subject.ends_with(&end));
        let said =
            of_kind.filter_map(|m| serde_json::from_slice::<serde_json::Value>(&m.payload).ok());
        said.filter_map(|said| said["instance"].as_str().map(str::to_owned))
            .collect()
    }

    fn of_kind(&self, kind: &str) -> usize {
        let end = format!(".{kind}");
        self.heard()
            .iter()
            .filter(|m| m.subject.ends_with(&end))
            .count()
    }
}

/// Says it again, slowly enough that no node counts as flooding.
async fn say_again(wire: &Client, messages: &[Message], elsewhere: bool) {
    for (number, message) in messages.iter().enumerate() {
        let mut subjects = vec![message.subject.to_string()];
        if elsewhere {
            subjects.push("m1.do.all".to_owned());
        }
        for subject in subjects {
            let (headers, payload) = (
                message.headers.clone().unwrap_or_default(),
                message.payload.clone(),
            );
            match message.reply.clone() {
                Some(reply) => {
                    wire.publish_with_reply_and_headers(subject, reply, headers, payload)
                        .await
                }
                None => wire.publish_with_headers(subject, headers, payload).await,
            }
            .expect("sent");
        }
        if number % 50 == 49 {
            wire.flush().await.expect("sent");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    wire.flush().await.expect("sent");
}

/// What people are told of each run, word for word, but for what changes by
/// itself.
fn told(up: &Up, runs: &[String]) -> BTreeMap<String, (String, Vec<serde_json::Value>)> {
    let mut all = BTreeMap::new();
    for run in runs {
        let shown = up.muster(&["runs", "show", run, "--json"]).out;
        let watched = up.muster(&["runs", "watch", run, "--json"]).json_lines();
        all.insert(run.clone(), (shown, watched));
    }
    all
}

fn alarms(up: &Up) -> Vec<String> {
    let said = up.muster(&["events", "--json", "--limit", "200"]);
    let lines = said.out.lines().filter(|l| l.contains("\"alarm."));
    lines.map(str::to_owned).collect()
}

/// On a thread where waiting is allowed.
fn wait<T>(what: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(what)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_said_again_happens_once_and_is_told_once() {
    const NAMES: [&str; 3] = ["a-1", "a-2", "a-3"];
    let seed = seeds(&[7])[0];
    let mut draw = Draw(seed);
    let up = wait(|| Up::start(&["a-1:role=a", "a-2:role=a", "a-3:role=a"])).expect("starts");
    let wire = wire(&up, "a-1").await;
    let tape = Tape::record(&wire).await;

    // Something of everything: a short answer, much output, a failure, a
    // cancelled run, a ping, and a node that starts again under a new instance.
    let counter = up.counter("all");
    let mut runs = Vec::new();
    let mut run = |script: &str, code: i32| -> Said {
        let said = wait(|| {
            up.muster(&[
                "run",
                "role=a",
                "--json",
                "--deliver-within",
                "5s",
                "--shell",
                "--",
                script,
            ])
        })
        .exits(code);
        one_outcome_each(&said, &NAMES);
        runs.push(said.run());
        said
    };
    run(&counter.around("echo short"), 0);
    run(&counter.around("seq 1 40000"), 0);
    run(&counter.around("sleep 0.5; echo slow"), 0);
    run("exit 3", 1);
    // Twice, so that hellos and beats of an instance that is no more are heard.
    for time in 1..=2 {
        wait(|| {
            signal(up.pid("agent-a-1").expect("it runs"), Signal::KILL).expect("kills");
            let hello = || (tape.instances("hello").len() == time).then_some(());
            wait_for("another hello", hello).expect("it says hello");
            let last = tape.instances("hello");
            let beat = || tape.instances("beat").is_superset(&last).then_some(());
            wait_for("its beat", beat).expect("it beats");
            works(&up, "role=a", 3);
        });
    }
    let cancelled = up.counter("cancelled");
    let script = cancelled.around("sleep 600");
    let id = wait(|| {
        let id = up
            .muster(&[
                "run", "role=a", "--json", "--detach", "--shell", "--", &script,
            ])
            .exits(0)
            .run();
        wait_for("three sleepers", || (cancelled.begun() == 3).then_some(())).expect("they run");
        let _ = up.muster(&["runs", "cancel", &id]).exits(0);
        let said = super::ended(&up, &id);
        assert!(
            one_outcome_each(&said, &NAMES)
                .values()
                .all(|o| o == "cancelled"),
            "{said:?}"
        );
        let _ = up.muster(&["ping", "*"]).exits(0);
        id
    });
    runs.push(id);
    wait(|| {
        wait_for("beats", || (tape.of_kind("beat") >= 3).then_some(())).expect("they beat");
    });
    let before = wait(|| told(&up, &runs));
    let effects = (counter.begun(), cancelled.begun());
    assert_eq!(effects, (9, 3));

    let heard = tape.heard();
    let (mut orders, mut words): (Vec<Message>, Vec<Message>) = heard
        .into_iter()
        .partition(|message| message.subject.starts_with("m1.do."));
    for kind in ["hello", "beat", "accepted", "output", "outcome", "pong"] {
        assert!(tape.of_kind(kind) > 0, "no {kind} was heard");
    }
    assert!(orders.len() >= 8, "{} orders", orders.len());

    for round in 0..3 {
        draw.shuffle(&mut orders);
        draw.shuffle(&mut words);
        say_again(&wire, &orders, true).await;
        say_again(&wire, &words, false).await;
        if round == 1 {
            // Another broker process, which knows of no earlier instances.
            wait(|| {
                signal(up.pid("broker").expect("it runs"), Signal::KILL).expect("kills");
                wait_for("the next broker", || {
                    ready(&up).filter(|r| r["state"] == "active")
                })
                .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
            });
        } else {
            // Longer than what may be on its way when an agent is replaced.
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
    }
    wait(|| {
        for name in NAMES {
            wait_state(&up, name, "up");
        }
        works(&up, "role=a", 3);
    });
    assert_eq!(
        (counter.begun(), cancelled.begun()),
        effects,
        "seed {seed}: {}",
        up.logs()
    );
    let after = wait(|| told(&up, &runs));
    for (run, told) in &before {
        assert_eq!(told, &after[run], "seed {seed}");
    }
    // No honest node is kept out, and nobody is alarmed.
    let alarms = wait(|| alarms(&up));
    assert!(alarms.is_empty(), "seed {seed}: {alarms:?} {}", up.logs());
    let bad = wait(|| up.muster(&["nodes", "--json"]).list())
        .into_iter()
        .filter(|n| n["standing"].as_str().is_some_and(|s| s != "active"))
        .count();
    assert_eq!(bad, 0);
    wait(|| Audit::of(&up).holds());
}

/// Has an order signed for a node that never sees it, and nobody waits for any
/// more; what it would do is counted.
async fn unseen(up: &Up, tape: &Tape, name: &str) -> (String, Counter, Vec<Message>) {
    let counter = up.counter(name);
    let before = tape.heard().len();
    let pid = up.pid("agent-a-1").expect("it runs");
    signal(pid, Signal::STOP).expect("stops");
    let said = wait(|| {
        up.muster(&[
            "run",
            "a-1",
            "--json",
            "--deliver-within",
            "1s",
            "--shell",
            "--",
            &counter.around("true"),
        ])
    });
    assert_eq!(said.outcomes()["a-1"], "unknown", "{said:?}");
    // What waits for it in its connection goes with it.
    signal(pid, Signal::KILL).expect("kills");
    wait(|| {
        wait_for("the next agent", || {
            up.pid("agent-a-1").ok().filter(|next| *next != pid)
        })
        .expect("it starts");
        works(up, "a-1", 1);
    });
    let run = said.run();
    let orders = tape.heard().split_off(before);
    let of_run = |m: &Message| {
        let text = String::from_utf8_lossy(&m.payload);
        text.contains(&run) && text.contains("\"do\":\"call\"")
    };
    let orders: Vec<Message> = orders.into_iter().filter(of_run).collect();
    assert!(orders.len() > 1, "{} copies", orders.len());
    (run, counter, orders)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_was_held_back_is_obeyed_once_in_its_time_and_never_after_it() {
    let up = wait(|| Up::start(&["a-1:role=a"])).expect("starts");
    let wire = wire(&up, "a-1").await;
    let tape = Tape::record(&wire).await;
    let late = |run: &str| {
        let shown = up.muster(&["runs", "show", run, "--json"]).out;
        let late = shown
            .split_once("\"late\":[")
            .map(|(_, rest)| rest.to_owned());
        let late = late.and_then(|l| l.split_once(']').map(|(l, _)| l.to_owned()));
        late.filter(|l| !l.is_empty())
    };
    // It is a second to start, and clocks may be 30 s apart.
    let (early_run, early, early_orders) = unseen(&up, &tape, "early").await;
    let (late_run, too_late, late_orders) = unseen(&up, &tape, "late").await;
    let signed = tokio::time::Instant::now();
    for _ in 0..5 {
        say_again(&wire, &early_orders, true).await;
    }
    let told = wait(|| wait_for("the late answer", || late(&early_run)));
    assert_eq!(told.expect("it comes"), "\"succeeded\"", "{}", up.logs());
    tokio::time::sleep_until(signed + Duration::from_secs(33)).await;
    for _ in 0..5 {
        say_again(&wire, &late_orders, true).await;
        say_again(&wire, &early_orders, true).await;
    }
    let told = wait(|| wait_for("the late answer", || late(&late_run)));
    assert_eq!(told.expect("it comes"), "\"declined\"", "{}", up.logs());
    wait(|| works(&up, "a-1", 1));
    assert_eq!((early.of("a-1"), too_late.of("a-1")), ((1, 1), (0, 0)));
    for run in [&early_run, &late_run] {
        let said = wait(|| super::ended(&up, run));
        assert_eq!(said.outcomes()["a-1"], "unknown", "{said:?}");
    }
    assert_eq!(wait(|| alarms(&up)), Vec::<String>::new());
    wait(|| Audit::of(&up).holds());
}
