//! `/proc`, read with care: everything in it may be gone a moment later.

use std::fs;
use std::io::Read as _;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Most bytes of an environment that are looked through.
const MAX_ENVIRON: u64 = 4 << 20;

/// A process at one moment. The pair of id and start time is never used
/// again while the machine is up.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its session's.
    pub session: u32,
    /// When it started, in ticks since boot.
    pub started: u64,
    /// Whether it has ended and only waits to be collected.
    pub zombie: bool,
}

impl Process {
    /// The process with that id, if there is one.
    #[must_use]
    pub fn read(pid: u32) -> Option<Self> {
        // In one go: its name is short, and all else are numbers.
        let mut stat = [0; 1024];
        let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
        let length = file.read(&mut stat).ok()?;
        parse(&String::from_utf8_lossy(&stat[..length]))
    }

    /// All processes.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(Self::read)
            .collect()
    }

    /// Whether it is still the same process, and runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.started == self.started && !now.zombie)
    }

    /// Whether it began with all of these `NAME=value` in its environment.
    #[must_use]
    pub fn has_environment(&self, marks: &[String]) -> bool {
        let Ok(file) = fs::File::open(format!("/proc/{}/environ", self.pid)) else {
            return false;
        };
        let mut bytes = Vec::new();
        if file.take(MAX_ENVIRON).read_to_end(&mut bytes).is_err() || bytes.is_empty() {
            return false;
        }
        marks.iter().all(|mark| {
            bytes
                .split(|b| *b == 0)
                .any(|entry| entry == mark.as_bytes())
        })
    }

    /// Lets the kernel end it when memory is short, also where the agent
    /// itself is spared: what the agent starts inherits its protection.
    pub fn unprotect(&self) {
        let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        if own.trim().parse::<i32>().is_ok_and(|score| score < 0) {
            let _ = fs::write(format!("/proc/{}/oom_score_adj", self.pid), "0");
        }
    }

    /// Sends a signal to this very process: its id is turned into a handle
    /// first, and the start time looked at again, so that a process which got
    /// the id later is never hit. Whether it was sent.
    pub fn signal(&self, signal: Signal) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return false;
        };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        if Self::read(self.pid).is_none_or(|now| now.started != self.started) {
            return false;
        }
        pidfd_send_signal(handle, signal).is_ok()
    }
}

/// Reads `/proc/PID/stat`. The name in it may hold anything, also `)`.
fn parse(stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let pid = head.split(' ').next()?.parse().ok()?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    Some(Process {
        pid,
        zombie: matches!(*fields.first()?, "Z" | "X" | "x"),
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pretend_to_be_the_rest_of_the_line() {
        let line = "12 (a) Z 1 (b) S 7 12 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(
            parse(line),
            Some(Process {
                pid: 12,
                parent: 7,
                session: 9,
                started: 4242,
                zombie: false
            })
        );
        for bad in ["", "12", "12 (a)", "x (a) S 1 2 3", "12 (a) S 1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_process_is_found_and_another_start_is_not_it() {
        let me = Process::read(std::process::id()).expect("there");
        assert!(me.is_alive() && Process::all().contains(&me));
        let other = Process {
            started: me.started + 1,
            ..me
        };
        assert!(!other.is_alive());
        assert!(!other.signal(Signal::KILL));
    }
}
