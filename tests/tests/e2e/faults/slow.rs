//! Slow, torn and stuck connections of single nodes, by a proxy in between.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use muster_tests::invariants::Audit;
use muster_tests::proxy::Proxy;
use muster_tests::{Up, wait_for};

use super::{Process, agent, ended, enrol, machine, one_outcome_each, wait_state, works};

/// An agent that reaches NATS by a proxy only.
struct Behind {
    proxy: Proxy,
    agent: Process,
}

impl Behind {
    fn start(up: &Up, name: &str) -> Self {
        enrol(up, name, "far");
        let enrolled =
            std::fs::read_to_string(machine(up, name).join("enrolment.json")).expect("enrolled");
        let enrolled: serde_json::Value = serde_json::from_str(&enrolled).expect("json");
        let url = enrolled["credentials"]["nats_urls"][0]
            .as_str()
            .expect("a url");
        let nats: SocketAddr = url
            .trim_start_matches("nats://")
            .parse()
            .expect("an address");
        let proxy = Proxy::before(nats).expect("a port");
        let config = up.dir.path().join(format!("{name}.toml"));
        std::fs::write(&config, format!("nats = [\"nats://{}\"]\n", proxy.at())).expect("writes");
        let mut command = agent(up, name);
        command.arg("--config").arg(&config);
        let agent = Process::start(command, up.dir.path().join(format!("{name}.log")));
        wait_state(up, name, "up");
        Self { proxy, agent }
    }
}

fn until(file: &Path) -> String {
    format!("while ! test -e {}; do sleep 0.05; done", file.display())
}

#[test]
fn slow_and_torn_connections_change_nothing_but_the_time() {
    let up = Up::start(&["near:role=near"]).expect("starts");
    let names = ["far-delayed", "far-throttled", "far-torn"];
    let nodes: Vec<Behind> = names.iter().map(|name| Behind::start(&up, name)).collect();
    let late = Duration::from_millis(400);
    nodes[0].proxy.up().delay(late);
    nodes[0].proxy.down().delay(late);
    nodes[1].proxy.up().throttle(96 * 1024);
    nodes[1].proxy.down().throttle(2 * 1024);
    nodes[2].proxy.up().pieces(7);
    nodes[2].proxy.down().pieces(1);

    // Much output, by chunks, in both streams.
    let counter = up.counter("slow");
    let script = counter.around("seq 1 30000; seq 1 2000 >&2");
    let said = up
        .muster(&[
            "run",
            "role=far",
            "--json",
            "--timeout",
            "30s",
            "--shell",
            "--",
            &script,
        ])
        .exits(0);
    one_outcome_each(&said, &names);
    let numbers = |to: u32| (1..=to).map(|n| format!("{n}\n")).collect::<String>();
    let (out, err) = (said.output("stdout"), said.output("stderr"));
    for name in names {
        assert_eq!(counter.of(name), (1, 1));
        assert!(
            out[name] == numbers(30_000),
            "{name}: {} bytes",
            out[name].len()
        );
        assert!(
            err[name] == numbers(2_000),
            "{name}: {} bytes",
            err[name].len()
        );
    }
    // The near ones do not wait for the far ones.
    works(&up, "near", 1);
    let said = up.muster(&["ping", "*", "--json"]);
    assert_eq!(said.code, 0, "{said:?}");
    Audit::of(&up).holds();
}

#[test]
fn a_connection_that_is_stuck_or_cut_at_any_moment_loses_nothing() {
    let up = Up::start(&["near:role=near"]).expect("starts");
    let mut node = Behind::start(&up, "far-1");
    works(&up, "role=far", 1);
    let proxy = &node.proxy;
    // What happens while a command runs, and what after it has ended.
    type Deed = fn(&Proxy);
    let moments: [(&str, Deed, Deed); 6] = [
        ("cut-before-the-end", Proxy::cut, |_| {}),
        ("cut-at-the-end", |_| {}, Proxy::cut),
        (
            "stuck-upwards",
            |p| p.up().hold(true),
            |p| {
                std::thread::sleep(Duration::from_secs(2));
                p.up().hold(false);
            },
        ),
        (
            "stuck-downwards",
            |p| p.down().hold(true),
            |p| {
                std::thread::sleep(Duration::from_secs(2));
                p.down().hold(false);
            },
        ),
        // The outcome is with the server or not, and nobody can tell.
        (
            "stuck-then-cut",
            |p| p.down().hold(true),
            |p| {
                std::thread::sleep(Duration::from_secs(1));
                p.cut();
                p.down().hold(false);
            },
        ),
        (
            "away-for-a-while",
            |p| {
                p.close(true);
                p.cut();
            },
            |p| {
                std::thread::sleep(Duration::from_secs(4));
                p.close(false);
            },
        ),
    ];
    for (name, during, after) in moments {
        let counter = up.counter(name);
        let go = up.dir.path().join(format!("go-{name}"));
        let script = counter.around(&format!("echo begun; {}; echo done", until(&go)));
        let run = up
            .muster(&[
                "run",
                "role=far",
                "--detach",
                "--json",
                "--deliver-within",
                "5s",
                "--shell",
                "--",
                &script,
            ])
            .exits(0)
            .run();
        wait_for("the command", || (counter.begun() == 1).then_some(())).expect("it runs");
        // Acknowledged is what runs for more than 200 ms.
        std::thread::sleep(Duration::from_millis(500));
        during(proxy);
        std::fs::write(&go, "").expect("writes");
        wait_for("its end", || (counter.of("far-1").1 == 1).then_some(())).expect("it ends");
        after(proxy);
        let said = ended(&up, &run);
        let outcomes = one_outcome_each(&said, &["far-1"]);
        assert_eq!(
            outcomes["far-1"],
            "succeeded",
            "{name}: {said:?} {}",
            node.agent.says()
        );
        assert_eq!(said.output("stdout")["far-1"], "begun\ndone\n", "{name}");
        assert_eq!(counter.of("far-1"), (1, 1), "{name}");
        wait_state(&up, "far-1", "up");
    }
    // A loss is one connection more, not two: three were cut, one of them
    // while nobody was let in.
    let came = proxy.came();
    proxy.cut();
    wait_for("another connection", || (proxy.came() > came).then_some(())).expect("it comes");
    works(&up, "role=far", 1);
    assert_eq!(proxy.came(), came + 1, "{}", node.agent.says());
    let log = node.agent.says();
    assert!(!log.contains("ERROR"), "{log}");
    let count = |words: &str| log.lines().filter(|l| l.contains(words)).count();
    assert_eq!(
        (
            count("connection lost, trying again in"),
            count("connected again after")
        ),
        (5, 5),
        "{log}"
    );
    assert!(node.agent.runs());
    Audit::of(&up).holds();
}
