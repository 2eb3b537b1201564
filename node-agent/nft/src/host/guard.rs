//! The guard: a process outside of the agent's session and control group that
//! takes a change back when nobody confirms it in time, or when the agent is
//! gone.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use super::settle::{Undo, Undone};
use super::store::{By, Kept, Marker, Store, StoreError};
use super::table::Table;
use super::{HostError, Setting, clock};
use crate::nft::Nft;

/// The verb that makes the agent's program a guard.
pub const VERB: &str = "firewall-guard";

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// So much later than the agent, which knows better why.
const SLACK_MS: u64 = 1_000;
/// How long it looks on when a change has ended, and nothing says how.
const ENDED_FOR: Duration = Duration::from_secs(2);
/// How long somebody else who takes it back is left alone with it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Old rules that cannot be put back are tried again as long as this.
const TRY_FOR: Duration = Duration::from_secs(3_600);
/// At most this long between two tries.
const TRY_EVERY: Duration = Duration::from_secs(5);
/// Where systemd runs.
const SYSTEMD: &str = "/run/systemd/system";

/// What the verb is given.
#[derive(Clone, Debug)]
pub struct Args {
    /// Where what is known of changes is kept.
    pub dir: PathBuf,
    /// `nft`.
    pub nft: PathBuf,
    /// Which change.
    pub token: String,
    /// The program that this is.
    pub program: PathBuf,
    /// Watch, in place of starting the one that does.
    pub watch: bool,
}

impl Args {
    /// As a command line has them, the verb in front.
    fn line(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec![VERB.into()];
        for (name, value) in [
            ("--dir", self.dir.as_os_str()),
            ("--nft", self.nft.as_os_str()),
            ("--token", self.token.as_ref()),
            ("--program", self.program.as_os_str()),
        ] {
            line.push(name.into());
            line.push(value.to_owned());
        }
        if self.watch {
            line.push("--watch".into());
        }
        line
    }
}

fn ready_path(dir: &Path, token: &str) -> PathBuf {
    dir.join(format!("guard.{token}"))
}

/// Starts one for this change, and returns when it stands.
pub(super) fn start(setting: &Setting, marker: &Marker, within: Duration) -> Result<(), String> {
    let mut args = Args {
        dir: setting.dir.clone(),
        nft: setting.nft.program().to_owned(),
        token: marker.token.clone(),
        program: setting.program.clone(),
        watch: true,
    };
    let ready = ready_path(&setting.dir, &marker.token);
    let unit = has_systemd().then(|| transient(&args));
    args.watch = false;
    stand(unit, &args, &ready, within)?;
    let _ = fs::remove_file(ready);
    Ok(())
}

/// As a unit of systemd's, or else as a process that leaves this one's session.
fn stand(unit: Option<Command>, args: &Args, ready: &Path, within: Duration) -> Result<(), String> {
    let begun = Instant::now();
    let until = begun + within;
    let mut no_unit = String::new();
    if let Some(unit) = unit {
        // One that hangs leaves as much time to the other way.
        let first = begun + within / 2;
        match run(unit, first).and_then(|()| stands(args, ready, first)) {
            Ok(()) => return Ok(()),
            Err(e) => {
                warn!("no transient unit: {e}");
                no_unit = format!("; and before that, {e}");
            }
        }
    }
    let mut command = Command::new(&args.program);
    command.args(args.line());
    run(command, until)
        .and_then(|()| stands(args, ready, until))
        .map_err(|e| format!("{e}{no_unit}"))
}

/// Waits until it says that it stands.
fn stands(args: &Args, ready: &Path, until: Instant) -> Result<(), String> {
    while !ready.exists() {
        if Instant::now() >= until {
            return Err(format!(
                "{} was started and does not say that it stands",
                args.program.display()
            ));
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether a unit of systemd's would be a process in the same place: not if
/// this one lives in a network or a file system of its own.
fn has_systemd() -> bool {
    let same = |name: &str| {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{name}"));
        matches!((of("self"), of("1")), (Ok(own), Ok(first)) if own == first)
    };
    Path::new(SYSTEMD).is_dir() && same("net") && same("mnt")
}

fn transient(args: &Args) -> Command {
    let mut command = Command::new("systemd-run");
    command
        .args(["--quiet", "--collect", "--no-ask-password"])
        .arg(format!("--unit=muster-firewall-guard-{}", args.token))
        .arg("--description=muster: takes a firewall change back that is not confirmed")
        .arg("--")
        .arg(&args.program)
        .args(args.line());
    command
}

/// Runs something that ends at once.
fn run(mut command: Command, until: Instant) -> Result<(), String> {
    let program = PathBuf::from(command.get_program());
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let fail = |why: &dyn std::fmt::Display| format!("{}: {why}", program.display());
    let mut child = command.spawn().map_err(|e| fail(&e))?;
    loop {
        match child.try_wait().map_err(|e| fail(&e))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(fail(&format_args!("it ended with {status}"))),
            None if Instant::now() >= until => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(fail(&"it did not end in time"));
            }
            None => sleep(Duration::from_millis(2)),
        }
    }
}

/// Why a guard could not stand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// The one that watches cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is known of the change.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such change.
    #[error("there is no change {0} to stand guard over")]
    Nothing(String),
    /// The old rules are not in force.
    #[error(transparent)]
    Stuck(HostError),
}

/// The verb. As the agent starts it, it starts the one that watches in a
/// session of its own and ends, so that that one is nobody's child.
///
/// # Errors
/// [`GuardError`].
pub fn main(args: &Args) -> Result<(), GuardError> {
    if !args.watch {
        // It fails only where this leads a group already, of its own.
        let _ = rustix::process::setsid();
        let watch = Args {
            watch: true,
            ..args.clone()
        };
        let spawned = Command::new(&args.program)
            .args(watch.line())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        return spawned.map(drop).map_err(|source| GuardError::Start {
            program: args.program.clone(),
            source,
        });
    }
    leave_groups();
    let store = Store::existing(&args.dir);
    let nothing = || GuardError::Nothing(args.token.clone());
    let marker = store.in_flight()?.ok_or_else(nothing)?;
    if marker.token != args.token {
        return Err(nothing());
    }
    // Read now: later the disk may not let it.
    let record = store.kept(marker.number)?;
    let guard = Guard {
        table: Table::new(Nft::new(&args.nft)),
        store,
        marker,
        record,
    };
    let ready = ready_path(guard.store.dir(), &args.token);
    guard.store.write(&ready, &std::process::id())?;
    let watched = guard.watch();
    // Nobody may have waited for it any more.
    let _ = fs::remove_file(ready);
    watched
}

/// Leaves the control groups of whoever started this, where that is allowed.
fn leave_groups() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = std::process::id().to_string();
    for line in mounts.lines() {
        // … MOUNTPOINT … - TYPE …
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let is_cgroup = right.starts_with("cgroup ") || right.starts_with("cgroup2 ");
        if let Some(at) = left.split(' ').nth(4).filter(|_| is_cgroup) {
            let _ = fs::write(Path::new(at).join("cgroup.procs"), &own);
        }
    }
}

struct Guard {
    store: Store,
    table: Table,
    marker: Marker,
    record: Kept,
}

/// What the guard finds when it looks.
enum Seen {
    /// Nothing to do yet.
    Waiting,
    /// To be taken back.
    Over(&'static str),
    /// Decided by somebody, who takes it back.
    Undoing,
    /// Ended.
    Ended,
}

impl Guard {
    fn look(&self) -> Seen {
        let number = self.marker.number;
        if !self.store.change_path(number).exists() {
            // Renamed between the two looks, it is at one of both places.
            return match self.store.is_undoing(number) {
                true => Seen::Undoing,
                // With its directory, say: nobody has decided it.
                false if self.store.is_forgotten(number) => {
                    Seen::Over("all that was known of it was taken away")
                }
                false => Seen::Ended,
            };
        }
        if clock::now_ms() >= self.store.deadline(&self.marker).saturating_add(SLACK_MS) {
            return Seen::Over("it was not confirmed in time");
        }
        match self.store.lock() {
            // Let go at once: it was only asked.
            Ok(Some(_)) => Seen::Over("the agent ended before it was confirmed"),
            _ => Seen::Waiting,
        }
    }

    fn watch(&self) -> Result<(), GuardError> {
        let mut undoing: Option<Instant> = None;
        let mut ended: Option<Instant> = None;
        loop {
            let why = match self.look() {
                // How is not written down on a full disk; and a directory is
                // not gone in one moment.
                Seen::Ended => {
                    let since = *ended.get_or_insert_with(Instant::now);
                    let number = self.marker.number;
                    let told =
                        self.store.is_confirmed(number) || self.store.ended(number).is_some();
                    if told || since.elapsed() >= ENDED_FOR {
                        return Ok(());
                    }
                    None
                }
                Seen::Waiting => None,
                Seen::Over(why) => Some(why),
                Seen::Undoing => {
                    let since = *undoing.get_or_insert_with(Instant::now);
                    let gone = matches!(self.store.lock(), Ok(Some(_)));
                    let late = gone || since.elapsed() >= PATIENCE;
                    late.then_some("the agent ended while it took the change back")
                }
            };
            match why {
                Some(why) => return self.undo(why),
                None => sleep(LOOK_EVERY),
            }
        }
    }

    fn undo(&self, why: &str) -> Result<(), GuardError> {
        let undo = Undo {
            store: &self.store,
            table: &self.table,
            marker: &self.marker,
            record: &self.record,
            by: By::Guard,
            this_boot: true,
            until: None,
        };
        let begun = Instant::now();
        let mut pause = LOOK_EVERY;
        loop {
            match undo.run(why, true) {
                Ok(Undone::Done(_) | Undone::Confirmed) => return Ok(()),
                Err(e) if begun.elapsed() < TRY_FOR => {
                    error!("{e}");
                    sleep(pause);
                    pause = (pause * 2).min(TRY_EVERY);
                }
                Err(e) => return Err(GuardError::Stuck(e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_systemd_that_hangs_leaves_time_for_the_other_way() {
        let dir = tempfile::tempdir().expect("a directory");
        let ready = dir.path().join("ready");
        let program = dir.path().join("agent");
        let mut args = Args {
            dir: dir.path().to_owned(),
            nft: "nft".into(),
            token: "a".into(),
            program: program.clone(),
            watch: false,
        };
        let hangs = || {
            let mut command = Command::new("sleep");
            command.arg("600");
            Some(command)
        };
        // Another program writes it, see those of `nft`.
        let mut write = Command::new("sh");
        write.args([
            "-c",
            "printf '#!/bin/sh\\n: > %s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"",
            "sh",
        ]);
        let status = write.arg(&ready).arg(&program).status();
        assert!(status.is_ok_and(|status| status.success()));
        stand(hangs(), &args, &ready, Duration::from_secs(8)).expect("it stands");
        fs::remove_file(&ready).expect("it said so");
        // What both ways said.
        args.program = dir.path().join("none");
        let none = stand(hangs(), &args, &ready, Duration::from_millis(200));
        let none = none
            .expect_err("neither")
            .replace(&dir.path().display().to_string(), "DIR");
        insta::assert_snapshot!(none, @"DIR/none: No such file or directory (os error 2); and before that, sleep: it did not end in time");
    }
}
