//! A cluster on which run after run is held, hit and looked at.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use muster_tests::invariants::{Audit, Counter};
use muster_tests::stops::{Position, Stops};
use muster_tests::{Said, Up, processes, signal, wait_for};
use rustix::process::Signal;

use super::expect::{Expected, Victim, killed, never_begun, progress, untouched};
use crate::faults::{ended, outcome_of};

/// The nodes.
pub(super) const NAMES: [&str; 2] = ["a-1", "a-2"];
/// `muster up` waits longer before each new start of one that ends often;
/// begun anew, it does not.
const KILLS_A_START: u32 = 3;

/// What kind of run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Shape {
    /// One command on both nodes.
    Plain,
    /// The same, in batches of one.
    OneByOne,
    /// One that somebody cancels while it runs on both.
    Cancelled,
    /// One that waits for its turn, because the nodes do one step at a time
    /// and have one.
    Queued,
}

/// Makes the order of positions the same each time: nobody begins before the
/// request is out, and nodes report one after the other. (While a node works,
/// the other does, too.)
fn gate(position: &Position, seen: &[Position]) -> bool {
    let passed = |point: &str, what: &str, who: Option<&str>| {
        seen.iter()
            .filter(|p| p.is(point, what) && who.is_none_or(|w| p.who == w))
            .count()
    };
    let cancelling = passed("broker.journal.before", "cancelling", None) > 0;
    match position.point.as_str() {
        "agent.verified" => {
            passed("broker.send.after", "call", None) < passed("broker.send.before", "call", None)
        }
        "agent.finish.before" if cancelling => passed("broker.send.after", "cancel", None) == 0,
        "agent.report.before" if position.who == NAMES[1] => {
            passed("agent.acknowledged", "", Some(NAMES[0])) == 0
        }
        _ => false,
    }
}

/// See the module.
pub(super) struct Scene {
    up: Up,
    stops: Stops,
    shape: Shape,
    count: u32,
    kills: u32,
}

/// A run as it was asked for.
struct Asked {
    counter: Counter,
    go: PathBuf,
}

/// A run that keeps the nodes busy.
struct Busy {
    run: String,
    go: PathBuf,
}

impl Busy {
    fn end(&self) {
        std::fs::write(&self.go, "").expect("writes");
    }
}

/// `muster` at work, in a thread.
type Cli = std::thread::JoinHandle<Said>;

impl Scene {
    pub(super) fn start(shape: Shape) -> Self {
        let mut up = Up::not_yet(&["a-1:role=a", "a-2:role=a"]).expect("a directory");
        let stops = up.stops().expect("the programs have checkpoints");
        up.launch().expect("starts");
        if shape == Shape::Queued {
            up.stop(Signal::TERM).expect("ends");
            for name in NAMES {
                let file = up.state().join("agents").join(format!("{name}.toml"));
                let mut text = std::fs::read_to_string(&file).expect("there");
                text.push_str("\n[limits]\nconcurrent = 1\n");
                std::fs::write(&file, text).expect("writes");
            }
            up.launch().expect("starts again");
        }
        Self {
            up,
            stops,
            shape,
            count: 0,
            kills: 0,
        }
    }

    /// Where a run that nobody disturbs comes by, in order.
    pub(super) fn dry_run(&mut self) -> Vec<Position> {
        let before = (self.shape == Shape::Queued).then(|| self.busy());
        self.stops.watch(gate, None);
        let (asked, cli) = self.ask(&[]);
        if let Some(before) = &before {
            self.both_wait();
            before.end();
        }
        if self.shape == Shape::Cancelled {
            self.cancel(&asked);
        }
        let said = cli.join().expect("it ends").exits(0);
        let said = ended(&self.up, &said.run());
        for node in NAMES {
            self.fits(&asked.counter, &said, node, &untouched(self.shape))
                .unwrap_or_else(|e| panic!("undisturbed: {e}: {said:#?}"));
        }
        let seen = wait_for("the last position", || {
            let seen = self.stops.seen();
            let last = |n: &&str| {
                seen.iter()
                    .any(|p| p.who == **n && p.point == "agent.acknowledged")
            };
            let over = seen
                .iter()
                .any(|p| p.is("broker.journal.after", "finished"));
            (over && NAMES.iter().all(last)).then_some(seen)
        })
        .expect("the run comes to its end");
        self.stops.release();
        Audit::of(&self.up).holds();
        seen.into_iter()
            .filter(|p| p.what != "call-again" && !(p.what == "cancel" && p.nth > 1))
            .collect()
    }

    /// Waits until the step waits for its turn on both nodes.
    fn both_wait(&self) {
        wait_for("the queue on both nodes", || {
            let seen = self.stops.seen();
            let point = "agent.queue.after";
            let queued = |n: &&str| seen.iter().any(|p| p.who == **n && p.point == point);
            NAMES.iter().all(queued).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {}", self.up.logs()));
    }

    /// A run that keeps both nodes busy until it is told to end.
    fn busy(&mut self) -> Busy {
        self.count += 1;
        let counter = self.up.counter(&format!("busy-{}", self.count));
        let go = self.up.dir.path().join(format!("end-{}", self.count));
        let script = counter.around(&format!(
            "while ! test -e {}; do sleep 0.05; done",
            go.display()
        ));
        let args = [
            "run", "role=a", "--detach", "--json", "--shell", "--", &script,
        ];
        let run = self.up.muster(&args).exits(0).run();
        wait_for("both nodes to be busy", || {
            (counter.begun() == NAMES.len()).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {}", self.up.logs()));
        Busy { run, go }
    }

    /// Asks for a run; on `hang` the command does not end by itself.
    fn ask(&mut self, hang: &[&str]) -> (Asked, Cli) {
        self.count += 1;
        let counter = self.up.counter(&format!("run-{}", self.count));
        let go = self.up.dir.path().join(format!("go-{}", self.count));
        std::fs::create_dir(&go).expect("a directory");
        if self.shape != Shape::Cancelled {
            for node in NAMES.iter().filter(|n| !hang.contains(n)) {
                std::fs::write(go.join(node), "").expect("writes");
            }
        }
        let script = counter.around(&format!(
            "while ! test -e {}/$MUSTER_NODE; do sleep 0.05; done",
            go.display()
        ));
        let mut args = vec!["run", "role=a", "--detach", "--json", "--shell"];
        if self.shape == Shape::OneByOne {
            args.extend(["--batch", "1"]);
        }
        args.extend(["--", &script]);
        let command = self.up.command(&args);
        let cli = std::thread::spawn(move || muster_tests::finish(command));
        (Asked { counter, go }, cli)
    }

    /// Cancels the run that is watched, once it runs everywhere.
    fn cancel(&self, asked: &Asked) {
        let both = wait_for("the command on both nodes", || {
            (asked.counter.begun() == NAMES.len()).then_some(())
        });
        both.unwrap_or_else(|e| panic!("{e}: {}", self.up.logs()));
        let run = self.stops.run().expect("it was created").to_string();
        let command = self.up.command(&["runs", "cancel", &run]);
        // It is answered only when it is written down, which may be held.
        std::thread::spawn(move || muster_tests::finish(command));
    }

    /// One run, one kill, and what comes of it.
    pub(super) fn kill_at(&mut self, position: &Position, victim: Victim) {
        let what = format!("{victim} killed when {position} ({:?})", self.shape);
        let begun = Instant::now();
        self.quiet(&what);
        let node = if position.who == "broker" {
            NAMES[0]
        } else {
            &position.who
        };
        let before = (self.shape == Shape::Queued).then(|| self.busy());
        self.stops.watch(gate, Some(position));
        let hang: &[&str] = match (victim, position.point.as_str()) {
            (Victim::Agent, "agent.spawned" | "agent.process.before" | "agent.process.after") => {
                &[node]
            }
            _ => &[],
        };
        let (asked, cli) = self.ask(hang);
        if self.shape == Shape::Cancelled {
            self.cancel(&asked);
        }
        if let Some(before) = &before
            && position.point == "agent.start.before"
        {
            self.both_wait();
            before.end();
        }
        let run = self
            .stops
            .held()
            .unwrap_or_else(|e| panic!("{what}: {e} {}", self.up.logs()))
            .to_string();
        let at = progress(node, position, &self.stops.seen());
        self.kill(victim, node);
        self.stops.release();
        if let Some(before) = &before {
            before.end();
        }
        self.begin_again(victim);
        let said = cli.join().expect("it ends");
        let said = self.up.heard(said);
        if victim == Victim::Broker && never_begun(position) {
            self.was_never_begun(&what, &run, &said, &asked.counter);
        } else {
            if self.shape == Shape::Cancelled {
                self.is_cancelled(&what, &run);
            }
            // Told, also when the one who was to tell it was killed.
            assert_eq!(
                (said.code, said.run()),
                (0, run.clone()),
                "{what}: {said:#?}"
            );
            let end = ended(&self.up, &run);
            for name in NAMES {
                let expected = if victim == Victim::Agent && name == node {
                    killed(self.shape, at)
                } else {
                    untouched(self.shape)
                };
                self.fits(&asked.counter, &end, name, &expected)
                    .unwrap_or_else(|e| {
                        panic!("{what}: {name}: {e} ({at:?}): {end:#?} {}", self.up.logs())
                    });
            }
        }
        if let Some(before) = before {
            ended(&self.up, &before.run);
        }
        self.nothing_left(&what, &asked);
        let audit = std::panic::AssertUnwindSafe(|| Audit::of(&self.up).holds());
        if let Err(panic) = std::panic::catch_unwind(audit) {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            panic!("{what}: {text}");
        }
        // For who looks at how long it takes.
        let _ = writeln!(
            std::io::stderr(),
            "{:4.1} s  {what}",
            begun.elapsed().as_secs_f64()
        );
    }

    /// Both nodes take orders, and nothing of the last kill is under way.
    fn quiet(&mut self, what: &str) {
        if self.kills >= KILLS_A_START {
            self.kills = 0;
            self.up.stop(Signal::KILL).expect("dies");
            self.up.launch().expect("starts again");
        }
        let mut last = None;
        wait_for("both nodes to answer", || {
            let said = self.up.muster(&["ping", "role=a"]);
            let well = said.code == 0;
            last = Some(said);
            well.then_some(())
        })
        .unwrap_or_else(|e| panic!("before {what}: {e}: {last:#?} {}", self.up.logs()));
    }

    /// Kills, and sees it dead before anybody goes on.
    fn kill(&mut self, victim: Victim, node: &str) {
        self.kills += 1;
        let part = match victim {
            Victim::Up => {
                self.up.stop(Signal::KILL).expect("dies");
                return;
            }
            Victim::Broker => "broker".to_owned(),
            Victim::Nats => "nats-server".to_owned(),
            Victim::Agent => format!("agent-{node}"),
        };
        let pid = self.up.pid(&part).expect("it runs");
        signal(pid, Signal::KILL).expect("it runs");
        wait_for("its end", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit(") ").next().unwrap_or_default();
            (state.is_empty() || state.starts_with('Z')).then_some(())
        })
        .expect("SIGKILL ends it");
    }

    /// What `muster up` does not start again by itself: `muster up`.
    fn begin_again(&mut self, victim: Victim) {
        if victim == Victim::Up {
            self.kills = 0;
            self.up.launch().expect("starts again");
        }
    }

    /// Whether it is said of a node, and its counter shows, what is expected.
    fn fits(
        &self,
        counter: &Counter,
        said: &Said,
        node: &str,
        expected: &Expected,
    ) -> Result<(), String> {
        let outcomes: BTreeMap<String, String> = said.outcomes();
        if outcomes.keys().collect::<Vec<_>>() != NAMES {
            return Err(format!("not an outcome of each node: {outcomes:?}"));
        }
        let told = outcome_of(said, node);
        let outcome = outcomes[node].as_str();
        if told["outcome"] != outcome {
            return Err(format!("told two outcomes: {told}, {outcome}"));
        }
        let (begun, ended) = counter.of(node);
        let well = expected.outcomes.contains(&outcome)
            && expected.begun.contains(&begun)
            && expected.ended.contains(&ended);
        let reason = told["reason"].as_str().unwrap_or_default();
        if !well || expected.reason.is_some_and(|r| !reason.contains(r)) {
            return Err(format!(
                "{told}, begun {begun} and ended {ended} times, and not {expected:?}"
            ));
        }
        Ok(())
    }

    /// Asks for the end again, until that is written down: the first who asked
    /// may have got no answer.
    fn is_cancelled(&self, what: &str, run: &str) {
        let mut last = None;
        wait_for("the cancel", || {
            let said = self.up.muster(&["runs", "cancel", run]);
            // 0: it is, or was asked before. Else it may have ended by that.
            let well = said.code == 0 || said.err.contains("has ended (cancelled)");
            last = Some(said);
            well.then_some(())
        })
        .unwrap_or_else(|e| panic!("{what}: {e}: {last:#?}"));
    }

    /// Nothing happened, and nobody was told otherwise.
    fn was_never_begun(&self, what: &str, run: &str, said: &Said, counter: &Counter) {
        // Whoever asked has asked again, and knows which run it is.
        assert_eq!(
            (said.code, said.run().as_str()),
            (0, run),
            "{what}: {said:#?}"
        );
        let mut last = None;
        wait_for("the broker", || {
            let shown = self.up.muster(&["runs", "show", run, "--json"]);
            let over = shown.code != 5 && !shown.out.contains("\"preparing\"");
            last = Some(shown);
            over.then_some(())
        })
        .unwrap_or_else(|e| panic!("{what}: {e}: {last:#?}"));
        let shown = last.expect("it was asked");
        assert_eq!(shown.code, 0, "{what}: {shown:#?}");
        assert!(shown.out.contains("\"failed\""), "{what}: {shown:#?}");
        assert_eq!(counter.begun(), 0, "{what}");
    }

    /// No process of the command is left, whoever was killed.
    fn nothing_left(&self, what: &str, asked: &Asked) {
        let needle = asked.go.to_string_lossy().into_owned();
        let mut left = Vec::new();
        wait_for("its processes to be gone", || {
            left = processes();
            left.retain(|(_, line)| line.starts_with("/bin/sh") || line.starts_with("sh "));
            left.retain(|(_, line)| line.contains(&needle));
            left.is_empty().then_some(())
        })
        .unwrap_or_else(|e| panic!("{what}: {e}: {left:?}"));
    }
}
