//! A disk that is full.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use muster_tests::invariants::Audit;
use muster_tests::{Up, finish, wait_for};

use super::{
    Process, agent, ended, enrol, machine, one_outcome_each, outcome_of, ready, sh, skipped,
    wait_state, works,
};

/// A small file system, gone when dropped.
struct Small(PathBuf);

impl Small {
    /// `None`, said visibly, where it may not be mounted.
    fn mount(what: &str, at: &Path, kib: u32) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a directory");
        let line = format!(
            "mount -t tmpfs -o size={kib}k,mode=700 tmpfs '{}'",
            at.display()
        );
        if sh(&line) {
            return Some(Self(at.to_owned()));
        }
        skipped(what, "a file system may not be mounted here");
        None
    }

    /// Leaves not one byte.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).expect("a file");
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("there is one");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a process of the test may still be there.
        sh(&format!("umount -l '{}'", self.0.display()));
    }
}

#[test]
fn an_agent_without_room_executes_nothing_and_says_so() {
    let up = Up::start(&["roomy:role=d"]).expect("starts");
    let Some(disk) = Small::mount("an agent's full disk", &machine(&up, "full"), 1024) else {
        return;
    };
    enrol(&up, "full", "d");
    let mut process = Process::start(agent(&up, "full"), up.dir.path().join("full.log"));
    wait_state(&up, "full", "up");
    works(&up, "role=d", 2);

    disk.fill();
    let counter = up.counter("effects");
    let script = counter.around("true");
    let mut attempts = 0;
    // SQLite may still have room in its own files for a few.
    let told = wait_for("a refusal", || {
        attempts += 1;
        let said = up.muster(&["run", "role=d", "--json", "--shell", "--", &script]);
        one_outcome_each(&said, &["full", "roomy"]);
        assert_eq!(outcome_of(&said, "roomy")["outcome"], "succeeded");
        let told = outcome_of(&said, "full");
        let effects = counter.of("full").0;
        if told["outcome"] == "succeeded" {
            assert_eq!(effects, attempts, "{told}");
            return None;
        }
        assert_eq!(effects, attempts - 1, "{told}");
        Some(told)
    })
    .unwrap_or_else(|e| panic!("{e}: {}", process.says()));
    assert_eq!(told["outcome"], "declined", "{told}");
    let reason = told["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("nothing was executed") && reason.contains("no room"),
        "{reason}"
    );
    assert!(process.runs(), "{}", process.says());
    wait_state(&up, "full", "up");
    let before = counter.of("full").0;

    disk.free();
    works(&up, "role=d", 2);
    up.muster(&["run", "full", "--shell", "--", &script])
        .exits(0);
    assert_eq!(counter.of("full").0, before + 1);
    // What was declined is not done later.
    assert_eq!(counter.begun(), before + 1 + counter.of("roomy").0);

    // It fills while a command runs, whose outcome must not be lost.
    let begun = up.counter("begun");
    let go = up.dir.path().join("go");
    let script = begun.around(&format!(
        "while ! test -e {}; do sleep 0.05; done; echo said",
        go.display()
    ));
    let run = up
        .muster(&[
            "run", "full", "--detach", "--json", "--shell", "--", &script,
        ])
        .exits(0)
        .run();
    wait_for("the command", || (begun.begun() == 1).then_some(())).expect("it runs");
    disk.fill();
    std::fs::write(&go, "").expect("writes");
    process.says_soon("journal");
    disk.free();
    let said = ended(&up, &run);
    assert_eq!(
        outcome_of(&said, "full")["outcome"],
        "succeeded",
        "{said:?}"
    );
    assert_eq!(begun.of("full"), (1, 1));
    works(&up, "role=d", 2);
    Audit::of(&up).holds();
}

#[test]
fn a_broker_without_room_loses_nothing_that_was_acknowledged() {
    let mut up = Up::not_yet(&[]).expect("a directory");
    // Everything of the broker's machine; the nodes are others.
    let Some(disk) = Small::mount("a broker's full disk", &up.state(), 64 * 1024) else {
        return;
    };
    up.launch().expect("starts on a small disk");
    let agents = ["a-1", "a-2"].map(|name| {
        enrol(&up, name, "d");
        Process::start(agent(&up, name), up.dir.path().join(format!("{name}.log")))
    });
    for name in ["a-1", "a-2"] {
        wait_state(&up, name, "up");
    }
    works(&up, "role=d", 2);
    let earlier = up
        .muster(&["run", "role=d", "--json", "--", "echo", "earlier"])
        .exits(0)
        .run();

    // It fills while a run is under way.
    let effects = up.counter("effects");
    let go = up.dir.path().join("go");
    let script = effects.around(&format!(
        "while ! test -e {}; do sleep 0.05; done; echo said",
        go.display()
    ));
    let run = up
        .muster(&[
            "run", "role=d", "--detach", "--json", "--shell", "--", &script,
        ])
        .exits(0)
        .run();
    wait_for("the commands", || (effects.begun() == 2).then_some(())).expect("they run");
    disk.fill();
    std::fs::write(&go, "").expect("writes");

    // It is said, and what is asked now is refused, or it is not done.
    let reason = wait_for("/readyz to say so", || {
        let asked = up.command(&["run", "role=d", "--detach", "--json", "--", "true"]);
        let _ = finish(asked);
        ready(&up)?["reason"].as_str().map(str::to_owned)
    })
    .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    assert!(reason.contains("NATS"), "{reason}");
    let refused = up.counter("refused");
    let script = refused.around("true");
    let said = up.muster(&["run", "role=d", "--detach", "--shell", "--", &script]);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.err.contains("NATS"), "{said:?}");
    assert_eq!(refused.begun(), 0);
    let doctor = up.muster(&["doctor"]);
    assert_ne!(doctor.code, 0, "{doctor:?}");

    disk.free();
    let said = ended(&up, &run);
    let outcomes = one_outcome_each(&said, &["a-1", "a-2"]);
    assert!(
        outcomes.values().all(|o| o == "succeeded"),
        "{outcomes:?} {said:#?} {}",
        up.logs()
    );
    assert_eq!(effects.begun(), 2, "{:?}", effects.effects());
    works(&up, "role=d", 2);
    assert_eq!(refused.begun(), 0);
    let show = up.muster(&["runs", "show", &earlier]).exits(0);
    assert!(show.out.contains("earlier"), "{show:?}");
    Audit::of(&up).holds();
    drop(agents);
}
