//! Output without measure.

use std::process::Stdio;

use muster_tests::invariants::Audit;
use muster_tests::{PATIENCE, Up, finish, wait_for};

use super::works;

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find(|l| l.starts_with("VmRSS:"))
        .expect("it has memory");
    let number = line.split_whitespace().nth(1).expect("a number");
    number.parse().expect("a number")
}

#[test]
fn a_flood_of_output_from_all_nodes_disturbs_nobody() {
    let nodes = [
        "f-1:role=f",
        "f-2:role=f",
        "f-3:role=f",
        "f-4:role=f",
        "f-5:role=f",
    ];
    let mut all = nodes.to_vec();
    all.push("calm:role=c");
    let up = Up::start(&all).expect("starts");
    works(&up, "*", 6);
    let broker = up.pid("broker").expect("it runs");
    let before = resident(broker);

    let mut flood = up.command(&[
        "run",
        "role=f",
        "--json",
        "--",
        "sh",
        "-c",
        "yes 0123456789abcdef | head -c 104857600; echo end >&2",
    ]);
    let out = std::fs::File::create(up.dir.path().join("flood.out")).expect("a file");
    let mut flood = flood
        .stdout(out)
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut most = 0;
    let mut calm = 0;
    let status = wait_for("the end of the flood", || {
        let said = up.muster(&["run", "calm", "--json", "--", "echo", "calm"]);
        assert_eq!(said.code, 0, "{said:?} {}", up.logs());
        assert_eq!(said.output("stdout")["calm"], "calm\n");
        calm += 1;
        most = most.max(resident(broker));
        flood.try_wait().ok().flatten()
    });
    if status.is_err() {
        let _ = flood.kill();
    }
    let status = status.unwrap_or_else(|e| panic!("{e} ({PATIENCE:?}): {}", up.logs()));
    let text = std::fs::read_to_string(up.dir.path().join("flood.out")).expect("there");
    assert_eq!(
        status.code(),
        Some(0),
        "{}",
        &text[text.len().saturating_sub(2_000)..]
    );
    let last = text.lines().last().expect("an end");
    assert!(
        last.contains("run_finished") && last.matches("succeeded").count() >= 6,
        "{last}"
    );
    assert!(
        text.len() < 5 * 4 * (1 << 20),
        "{} bytes were told",
        text.len()
    );
    assert_eq!(text.matches("\"truncated\":true").count(), 5, "marks");
    assert!(calm > 0);
    let after = resident(broker);
    assert!(
        most < before + 200 * 1024 && after < before + 150 * 1024,
        "the broker holds {before}, at most {most}, in the end {after} KiB"
    );
    // Agents, too.
    for name in ["f-1", "calm"] {
        let agent = resident(up.pid(&format!("agent-{name}")).expect("it runs"));
        assert!(agent < 150 * 1024, "{name} holds {agent} KiB");
    }
    let said = finish(up.command(&["runs"])).exits(0);
    assert!(said.out.contains("yes"), "{said:?}");
    works(&up, "*", 6);
    Audit::of(&up).holds();
}
