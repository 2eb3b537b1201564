//! A command's processes: finding all of them, and ending them.
//!
//! A process is the command's when one of these holds, and is never touched
//! otherwise:
//!
//! - it is the process that was started, by id *and* start time;
//! - it is in the command's control group;
//! - it began with the command's marks in its environment;
//! - it descends from one of these, or is in the same session as one of them.
//!
//! So a child that called `setsid`, or cleaned its environment, or lost its
//! parent, is found as long as one of the threads holds.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cgroup::Cgroup;
use super::proc::Process;

/// How often it is looked whether they are gone.
const POLL: Duration = Duration::from_millis(20);
/// How long SIGKILL is repeated before it is given up: a process may hang in
/// the kernel.
const KILL_FOR: Duration = Duration::from_secs(5);

/// What is known of a command's processes.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The process that was started, with its start time.
    pub root: Option<(u32, u64)>,
    /// Its control group.
    pub cgroup: Option<Cgroup>,
    /// `NAME=value` in the environment of each; none is no mark.
    pub marks: Vec<String>,
}

/// How the ending went.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ended {
    /// How many processes were found, the first one counted.
    pub found: usize,
    /// How many of them are still there.
    pub left: usize,
}

impl Tree {
    /// The command's processes that live now. `known` are those found
    /// before: what descends from them is the command's also when the thread
    /// that led to them is gone.
    fn members(&self, known: &HashSet<(u32, u64)>) -> Vec<Process> {
        let me = std::process::id();
        let all = Process::all();
        let in_group: HashSet<u32> = self.cgroup.iter().flat_map(Cgroup::members).collect();
        let mut ours: HashMap<u32, Process> = HashMap::new();
        for process in &all {
            let key = (process.pid, process.started);
            let proven = self.root == Some(key)
                || known.contains(&key)
                || in_group.contains(&process.pid)
                || (!self.marks.is_empty() && process.has_environment(&self.marks));
            if proven && process.pid != me {
                ours.insert(process.pid, *process);
            }
        }
        // Sessions that the command made: the agent's own, and those of init,
        // are nobody's proof.
        let mine = Process::read(me).map_or(0, |p| p.session);
        loop {
            let sessions: HashSet<u32> = ours
                .values()
                .map(|p| p.session)
                .filter(|s| *s != mine && *s > 1)
                .collect();
            let before = ours.len();
            for process in &all {
                let related =
                    ours.contains_key(&process.parent) || sessions.contains(&process.session);
                if related
                    && process.pid != me
                    && process.pid > 1
                    && !ours.contains_key(&process.pid)
                {
                    ours.insert(process.pid, *process);
                }
            }
            if ours.len() == before {
                break;
            }
        }
        ours.into_values().filter(|p| !p.zombie).collect()
    }

    /// Ends all of them: SIGTERM, a grace, SIGKILL until none is left. Blocks
    /// for at most the grace and five seconds.
    #[must_use]
    pub fn end(&self, grace: Duration) -> Ended {
        let mut known: HashSet<(u32, u64)> = HashSet::new();
        let look = |known: &mut HashSet<(u32, u64)>| {
            let members = self.members(known);
            known.extend(members.iter().map(|p| (p.pid, p.started)));
            members
        };
        let begun = Instant::now();
        let mut asked: HashSet<(u32, u64)> = HashSet::new();
        loop {
            let members = look(&mut known);
            if members.is_empty() {
                return Ended {
                    found: known.len(),
                    left: 0,
                };
            }
            if begun.elapsed() >= grace {
                break;
            }
            for process in &members {
                if asked.insert((process.pid, process.started)) {
                    process.signal(Signal::TERM);
                    // A stopped process takes no SIGTERM before it goes on.
                    process.signal(Signal::CONT);
                }
            }
            std::thread::sleep(POLL);
        }
        let begun = Instant::now();
        loop {
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
            }
            let members = look(&mut known);
            for process in &members {
                process.signal(Signal::KILL);
            }
            if members.is_empty() || begun.elapsed() >= KILL_FOR {
                return Ended {
                    found: known.len(),
                    left: members.len(),
                };
            }
            std::thread::sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn spawn(script: &str, mark: &str) -> (std::process::Child, Tree) {
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .env("MUSTER_REQUEST", mark)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("spawns");
        let root = Process::read(child.id()).map(|p| (p.pid, p.started));
        (
            child,
            Tree {
                root,
                cgroup: None,
                marks: vec![format!("MUSTER_REQUEST={mark}")],
            },
        )
    }

    fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !ready() {
            assert!(Instant::now() < end, "waited too long for {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_child_in_a_session_of_its_own_is_found_and_the_stubborn_are_killed() {
        let mark = format!("tree-{}", std::process::id());
        // One that ignores SIGTERM, one in a new session whose parent ends.
        let script =
            "trap '' TERM; (setsid sleep 1000 &) ; sleep 1001 & while :; do sleep 0.05; done";
        let (mut child, tree) = spawn(script, &mark);
        let none = HashSet::new();
        wait_for("the children", || tree.members(&none).len() >= 4);
        let ended = tree.end(Duration::from_millis(200));
        assert!(ended.found >= 4 && ended.left == 0, "{ended:?}");
        child.wait().expect("collected");
        assert!(tree.members(&none).is_empty());
    }

    #[test]
    fn a_cleaned_environment_does_not_hide_a_child() {
        let mark = format!("clean-{}", std::process::id());
        let (mut child, mut tree) = spawn("env -i sleep 1000 & wait", &mark);
        tree.marks.clear();
        let none = HashSet::new();
        wait_for("the child", || tree.members(&none).len() >= 2);
        assert_eq!(tree.end(Duration::from_secs(2)).left, 0);
        child.wait().expect("collected");
    }

    #[test]
    fn an_id_that_another_process_has_now_is_not_touched() {
        let (mut child, tree) = spawn("sleep 1000", "other");
        let (pid, started) = tree.root.expect("runs");
        let stale = Tree {
            root: Some((pid, started + 1)),
            cgroup: None,
            marks: vec!["A=none".into()],
        };
        assert_eq!(stale.end(Duration::ZERO), Ended { found: 0, left: 0 });
        assert!(child.try_wait().expect("waits").is_none(), "it was killed");
        assert_eq!(tree.end(Duration::from_secs(2)).left, 0);
        child.wait().expect("collected");
    }
}
