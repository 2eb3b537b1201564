//! Processes that stand still for a while and then go on as if nothing were.

use std::path::Path;
use std::time::Duration;

use muster_tests::invariants::Audit;
use muster_tests::{Up, signal, wait_for};
use rustix::process::Signal;

use super::{ended, one_outcome_each, outcome_of, works};

/// Lets a process stand still until this is dropped.
struct Paused(Vec<u32>);

impl Paused {
    fn parts(up: &Up, parts: &[&str]) -> Self {
        let pids = parts.iter().map(|part| up.pid(part).expect("it runs"));
        let paused = Self(pids.collect());
        for pid in &paused.0 {
            signal(*pid, Signal::STOP).expect("stops");
        }
        paused
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = signal(*pid, Signal::CONT);
        }
    }
}

/// Starts a run of a line of shell and does not wait for it.
fn begin(up: &Up, on: &str, script: &str, more: &[&str]) -> String {
    let mut args = vec!["run", on, "--detach", "--json", "--shell"];
    args.extend(more);
    args.extend(["--", script]);
    up.muster(&args).exits(0).run()
}

fn until(file: &Path) -> String {
    format!("while ! test -e {}; do sleep 0.05; done", file.display())
}

/// The first outcome of the only node of a run, and that it stays when
/// another one comes late.
fn first_stays(up: &Up, run: &str, node: &str, late: &str) -> String {
    let before = ended(up, run).outcomes()[node].clone();
    let show = || up.muster(&["runs", "show", run, "--json"]).out;
    let told = format!("\"late\":[\"{late}\"]");
    wait_for(&format!("the late answer of {node}"), || {
        show().contains(&told).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {} {}", show(), up.logs()));
    assert_eq!(ended(up, run).outcomes()[node], before);
    before
}

#[test]
fn agents_that_stand_still_act_once_and_are_late_at_most() {
    let names = [
        "p-1:role=p",
        "p-2:role=p",
        "p-3:role=p",
        "p-4:role=p",
        "q-1:role=q",
    ];
    let up = Up::start(&names).expect("starts");
    works(&up, "*", 5);
    let counter = |node: &str| up.counter(node);
    std::thread::scope(|tests| {
        // Before the request comes, and back in good time.
        tests.spawn(|| {
            let counter = counter("p-1");
            let paused = Paused::parts(&up, &["agent-p-1"]);
            let run = begin(
                &up,
                "p-1",
                &counter.around("true"),
                &["--deliver-within", "15s"],
            );
            // Several copies wait for it by then.
            std::thread::sleep(Duration::from_secs(2));
            drop(paused);
            assert_eq!(ended(&up, &run).outcomes()["p-1"], "succeeded");
            assert_eq!(counter.of("p-1"), (1, 1));
        });
        // The same, but nobody waits any more.
        tests.spawn(|| {
            let counter = counter("p-2");
            let paused = Paused::parts(&up, &["agent-p-2"]);
            let run = begin(
                &up,
                "p-2",
                &counter.around("true"),
                &["--deliver-within", "1s"],
            );
            let said = ended(&up, &run);
            assert_eq!(said.outcomes()["p-2"], "unknown", "{said:?}");
            let told = outcome_of(&said, "p-2");
            assert!(
                told["reason"].as_str().is_some_and(|r| !r.is_empty()),
                "{told}"
            );
            drop(paused);
            assert_eq!(first_stays(&up, &run, "p-2", "succeeded"), "unknown");
            assert_eq!(counter.of("p-2"), (1, 1));
        });
        // Between the acknowledgement and the outcome: the command goes on.
        tests.spawn(|| {
            let counter = counter("p-3");
            let go = up.dir.path().join("go-3");
            let run = begin(
                &up,
                "p-3",
                &counter.around(&until(&go)),
                &["--deliver-within", "1s"],
            );
            wait_for("the command", || (counter.begun() == 1).then_some(())).expect("it runs");
            // Acknowledged is what runs for more than 200 ms.
            std::thread::sleep(Duration::from_secs(1));
            let paused = Paused::parts(&up, &["agent-p-3"]);
            std::fs::write(&go, "").expect("writes");
            wait_for("its end", || (counter.of("p-3").1 == 1).then_some(())).expect("it ends");
            // Longer than anything was to be delivered.
            std::thread::sleep(Duration::from_secs(4));
            drop(paused);
            let said = ended(&up, &run);
            assert_eq!(said.outcomes()["p-3"], "succeeded", "{said:?}");
            assert_eq!(counter.of("p-3"), (1, 1));
        });
        // Past the time that the command had, and past all patience.
        tests.spawn(|| {
            let counter = counter("p-4");
            let go = up.dir.path().join("go-4");
            let limits = ["--deliver-within", "1s", "--timeout", "2s"];
            let run = begin(&up, "p-4", &counter.around(&until(&go)), &limits);
            wait_for("the command", || (counter.begun() == 1).then_some(())).expect("it runs");
            std::thread::sleep(Duration::from_secs(1));
            let paused = Paused::parts(&up, &["agent-p-4"]);
            let said = ended(&up, &run);
            assert_eq!(said.outcomes()["p-4"], "unknown", "{said:?}");
            drop(paused);
            assert_eq!(first_stays(&up, &run, "p-4", "timed_out"), "unknown");
            // It was ended: what it waited for changes nothing now.
            std::fs::write(&go, "").expect("writes");
            assert_eq!(counter.of("p-4"), (1, 0));
        });
        // Nobody else notices.
        tests.spawn(|| {
            for _ in 0..5 {
                works(&up, "role=q", 1);
            }
        });
    });
    works(&up, "*", 5);
    Audit::of(&up).holds();
}

#[test]
fn a_run_goes_on_when_the_broker_or_its_server_stood_still() {
    let up = Up::start(&["p-1:role=p", "p-2:role=p"]).expect("starts");
    works(&up, "role=p", 2);
    let pids =
        |parts: &[&str]| -> Vec<u32> { parts.iter().map(|p| up.pid(p).expect("runs")).collect() };
    let everybody = ["broker", "nats-server", "agent-p-1", "agent-p-2"];
    let before = pids(&everybody);
    let pauses: [(&str, &[&str], u64); 4] = [
        ("nats", &["nats-server"], 3),
        // Longer than its lease.
        ("broker", &["broker"], 10),
        ("both", &["broker", "nats-server"], 3),
        ("all", &everybody, 10),
    ];
    for (name, parts, seconds) in pauses {
        let counter = up.counter(name);
        let go = up.dir.path().join(format!("go-{name}"));
        let run = begin(
            &up,
            "role=p",
            &counter.around(&until(&go)),
            &["--deliver-within", "5s"],
        );
        wait_for("both commands", || (counter.begun() == 2).then_some(())).expect("they run");
        let paused = Paused::parts(&up, parts);
        std::fs::write(&go, "").expect("writes");
        std::thread::sleep(Duration::from_secs(seconds));
        drop(paused);
        let said = ended(&up, &run);
        let outcomes = one_outcome_each(&said, &["p-1", "p-2"]);
        assert!(
            outcomes.values().all(|o| o == "succeeded"),
            "{name}: {said:?}"
        );
        assert_eq!(
            (counter.of("p-1"), counter.of("p-2")),
            ((1, 1), (1, 1)),
            "{name}"
        );
        works(&up, "role=p", 2);
    }
    // Nobody had to be started again.
    assert_eq!(pids(&everybody), before, "{}", up.logs());
    Audit::of(&up).holds();
}
