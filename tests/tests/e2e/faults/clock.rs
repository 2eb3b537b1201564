//! A clock that is an hour off.

use muster_tests::invariants::Audit;
use muster_tests::{Up, wait_for};

use super::{Process, agent, ended, enrol, node, outcome_of, sh, skipped, wait_state};

#[test]
fn an_agent_an_hour_off_is_refused_and_both_sides_say_why() {
    if !sh("command -v faketime") {
        return skipped(
            "an agent whose clock is off",
            "faketime is not installed (apt-get install faketime)",
        );
    }
    let up = Up::start(&["right:role=c"]).expect("starts");
    let counter = up.counter("effects");
    for (name, shift) in [("ahead", "+3600s"), ("behind", "-3600s")] {
        enrol(&up, name, "c");
        let inner = agent(&up, name);
        // `faketime PROGRAM` would leave the agent as a child of its own:
        // the library alone does the same.
        let mut command = std::process::Command::new("faketime");
        command.arg("-f").arg(shift).arg(inner.get_program());
        command.args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        let process = Process::start(command, up.dir.path().join(format!("{name}.log")));
        wait_state(&up, name, "up");

        let script = counter.around("true");
        let run = up
            .muster(&["run", name, "--detach", "--json", "--shell", "--", &script])
            .exits(0)
            .run();
        let said = ended(&up, &run);
        let told = outcome_of(&said, name);
        assert_eq!(told["outcome"], "declined", "{told} {}", process.says());
        let reason = told["reason"].as_str().expect("a reason");
        assert!(reason.contains("clock"), "{reason}");

        let skew = wait_for("the condition", || {
            let node = node(&up, name)?;
            let conditions = node["conditions"].as_array()?.clone();
            conditions
                .into_iter()
                .find(|c| c["condition"] == "clock_skew")
        })
        .unwrap_or_else(|e| panic!("{e}: {:?}", node(&up, name)));
        let ms = skew["ms"].as_i64().expect("milliseconds");
        let off = if name == "ahead" { ms } else { -ms };
        assert!((3_540_000..3_660_000).contains(&off), "{skew}");
        process.says_soon("clock");
        assert!(
            process
                .says()
                .lines()
                .filter(|l| l.contains("clock"))
                .count()
                < 20,
            "it fills its log: {}",
            process.says()
        );
        let doctor = up.muster(&["doctor"]);
        assert!(doctor.out.contains("clock"), "{doctor:?}");
    }
    // The others are not disturbed, and nothing was done.
    up.muster(&["run", "right", "--", "true"]).exits(0);
    assert_eq!(counter.begun(), 0, "{:?}", counter.effects());
    Audit::of(&up)
        .clock_off("ahead")
        .clock_off("behind")
        .holds();
}
