//! Which process: a number alone can be another's after a while.

use std::path::PathBuf;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// One process, for as long as this machine is up.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub started: u64,
    /// Which start of the machine.
    #[serde(default)]
    pub boot: String,
}

impl Identity {
    /// Of a process that lives now; `None` when there is none, or it has
    /// ended and only waits to be reaped.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name in parentheses and may hold anything.
        let rest = &stat[stat.rfind(')')? + 1..];
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        if matches!(state, "Z" | "X") {
            return None;
        }
        // `starttime` is field 22; the state was field 3.
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self {
            pid,
            started,
            boot: boot_id(),
        })
    }

    /// Whether this very process lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// The file that it executes; `None` when it may not be seen.
    #[must_use]
    pub fn executable(&self) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    /// A handle that stays with this process, also when its number is used
    /// again; `None` when it has ended.
    #[must_use]
    pub fn handle(&self) -> Option<rustix::fd::OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
        // Checked after the handle was made: what it holds is what was checked.
        self.is_alive().then_some(fd)
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_more_than_its_number() {
        let me = Identity::of(std::process::id()).expect("lives");
        assert!(me.is_alive() && me.handle().is_some());
        assert_eq!(me.executable(), std::env::current_exe().ok());
        let other = Identity {
            started: me.started + 1,
            ..me.clone()
        };
        assert!(!other.is_alive() && other.handle().is_none());
        let before = Identity {
            boot: "another".into(),
            ..me
        };
        assert!(!before.is_alive());
        assert!(Identity::of(u32::MAX).is_none());
    }

    #[test]
    fn a_process_that_waits_to_be_reaped_has_ended() {
        let mut child = std::process::Command::new("true").spawn().expect("starts");
        let pid = child.id();
        // Bounded: `true` ends by itself, and is a zombie until `wait`.
        for _ in 0..1_000 {
            if Identity::of(pid).is_none() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(Identity::of(pid).is_none());
        child.wait().expect("reaped");
    }
}
