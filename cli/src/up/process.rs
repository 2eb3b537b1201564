//! The processes that `muster up` looks after: starting, recognising,
//! watching and ending them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::identity::Identity;

/// A log larger than this is set aside when its process starts.
const LARGE_LOG: u64 = 64 << 20;

/// How often to look whether a process that was adopted still lives.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// One process that `muster up` runs, whether it runs now or not.
#[derive(Clone, Debug)]
pub struct Part {
    /// For people and file names: `nats-server`, `broker`, `web-01`.
    pub name: String,
    /// The executable.
    pub program: PathBuf,
    /// Its arguments; with the executable they are unique to this part of
    /// this state directory.
    pub args: Vec<OsString>,
    /// What its environment has beside that of `muster up`.
    pub environment: &'static [(&'static str, &'static str)],
    /// Its configuration: a process that was started with another one is
    /// replaced.
    pub config: String,
    /// Where its output goes.
    pub log: PathBuf,
    /// Where it is noted that it runs.
    pub note: PathBuf,
    /// How long it may take to end in good order.
    pub patience: Duration,
}

/// What is noted of a running process.
#[derive(Debug, Deserialize, Serialize)]
struct Note {
    #[serde(flatten)]
    identity: Identity,
    program: PathBuf,
    fingerprint: String,
}

/// A process that runs.
#[derive(Debug)]
pub struct Running {
    /// Which.
    pub identity: Identity,
    handle: OwnedFd,
    /// Only of one that this process started itself: it must be reaped.
    child: Option<Child>,
}

/// Why a part cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its log or note cannot be written.
    #[error("cannot write {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system does not start it.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// The executable.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended before anything could be said of it.
    #[error("it ended at once ({how})")]
    AtOnce {
        /// How.
        how: String,
    },
}

impl Part {
    /// Changes when the process must be another one, because its
    /// configuration is.
    fn fingerprint(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.program.hash(&mut hasher);
        self.args.hash(&mut hasher);
        self.config.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Whether it executes the file that is there now. An agent that has
    /// upgraded itself does; one whose file was replaced under it does not.
    fn is_current(&self, identity: &Identity) -> bool {
        let there = std::fs::metadata(&self.program);
        let runs = std::fs::metadata(format!("/proc/{}/exe", identity.pid));
        match (there, runs) {
            (Ok(there), Ok(runs)) => (there.dev(), there.ino()) == (runs.dev(), runs.ino()),
            // Nothing can be said, or nothing could be started.
            _ => true,
        }
    }

    /// Starts it: a process group of its own, so that Ctrl-C on the terminal
    /// does not reach it; output into its log; no input.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(&self) -> Result<Running, StartError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| StartError::File { path, source }
        };
        if std::fs::metadata(&self.log).is_ok_and(|m| m.len() > LARGE_LOG) {
            let aside = self.log.with_extension("log.1");
            std::fs::rename(&self.log, &aside).map_err(at(&aside))?;
        }
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.log)
            .map_err(at(&self.log))?;
        let errors = log.try_clone().map_err(at(&self.log))?;
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .envs(self.environment.iter().copied())
            // An agent that is upgraded need not see to its own restart.
            .env("MUSTER_SUPERVISED", "1")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(false)
            .spawn()
            .map_err(|source| StartError::Spawn {
                program: self.program.clone(),
                source,
            })?;
        let held = child
            .id()
            .and_then(Identity::of)
            .and_then(|i| i.handle().map(|h| (i, h)));
        let Some((identity, handle)) = held else {
            let how = child
                .wait()
                .await
                .map_or_else(|e| e.to_string(), |s| s.to_string());
            return Err(StartError::AtOnce { how });
        };
        let running = Running {
            identity,
            handle,
            child: Some(child),
        };
        let note = Note {
            identity: running.identity.clone(),
            program: self.program.clone(),
            fingerprint: self.fingerprint(),
        };
        if let Err(error) = write_note(&self.note, &note) {
            // A process that is not noted would be started a second time.
            running.end(Duration::ZERO).await;
            return Err(at(&self.note)(error));
        }
        Ok(running)
    }

    /// Finds the process of this part that an earlier `muster up` left behind.
    /// Proven: the number, the start time and boot of the note, or failing the
    /// note the whole command line; and the executable in any case. One that
    /// must be another (see [`Part::config`]) and any second one are ended.
    pub async fn adopt(&self, say: &dyn Fn(String)) -> Option<Running> {
        let noted = read_note(&self.note).filter(|n| self.is_it(&n.identity));
        let mut adopted = None;
        if let Some(note) = noted {
            let running = hold(note.identity.clone());
            if note.fingerprint == self.fingerprint() && self.is_current(&note.identity) {
                adopted = running;
            } else if let Some(old) = running {
                say(format!(
                    "{}: replacing pid {}, which runs with an older configuration or executable",
                    self.name, old.identity.pid
                ));
                old.end(self.patience).await;
            }
        }
        // Killed between starting a process and noting it: found by its
        // command line.
        for identity in self.scan() {
            if adopted
                .as_ref()
                .is_some_and(|a: &Running| a.identity == identity)
            {
                continue;
            }
            if let Some(stray) = hold(identity) {
                say(format!(
                    "{}: ending pid {}, which was never noted",
                    self.name, stray.identity.pid
                ));
                stray.end(self.patience).await;
            }
        }
        adopted
    }

    /// Ends whatever process of this part an earlier `muster up` left behind;
    /// which one that was.
    pub async fn end_left_behind(&self) -> Option<u32> {
        let mut ended = None;
        for identity in self.scan() {
            if let Some(running) = hold(identity) {
                ended = Some(running.identity.pid);
                running.end(self.patience).await;
            }
        }
        self.forget();
        ended
    }

    /// Whether it executes what this part executes, with the same arguments.
    fn is_it(&self, identity: &Identity) -> bool {
        if !identity.is_alive() {
            return false;
        }
        let Ok(line) = std::fs::read(format!("/proc/{}/cmdline", identity.pid)) else {
            return false;
        };
        let mut words = line.strip_suffix(b"\0").unwrap_or(&line).split(|b| *b == 0);
        let first = words.next() == Some(self.program.as_os_str().as_bytes());
        let rest = words.eq(self.args.iter().map(|a| a.as_bytes()));
        // An executable that was replaced on disk shows as `… (deleted)`.
        let program = std::fs::canonicalize(&self.program).unwrap_or_else(|_| self.program.clone());
        let same = identity.executable().is_some_and(|exe| {
            exe == program
                || exe.as_os_str().as_bytes().strip_suffix(b" (deleted)")
                    == Some(program.as_os_str().as_bytes())
        });
        first && rest && same
    }

    fn scan(&self) -> Vec<Identity> {
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        let pids = entries
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let found: Vec<Identity> = pids
            .filter_map(Identity::of)
            .filter(|i| self.is_it(i))
            .collect();
        // A child of it that has not executed its own program yet looks the same.
        let children: Vec<u32> = found.iter().filter_map(|i| parent(i.pid)).collect();
        let all: Vec<u32> = found.iter().map(|i| i.pid).collect();
        found
            .iter()
            .zip(children)
            .filter(|(_, parent)| !all.contains(parent))
            .map(|(i, _)| i.clone())
            .collect()
    }

    /// Forgets that it runs.
    pub fn forget(&self) {
        let _ = std::fs::remove_file(&self.note);
    }

    /// The last lines of its log, escaped, for an error.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            let size = file.metadata()?.len();
            file.seek(SeekFrom::Start(size.saturating_sub(16 << 10)))?;
            file.take(16 << 10).read_to_end(&mut text)
        });
        if read.is_err() {
            return String::new();
        }
        let text = muster_protocol::text::lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        let last = &all[all.len().saturating_sub(lines)..];
        last.iter()
            .map(|l| muster_protocol::text::printable(l, 300))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..]
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn hold(identity: Identity) -> Option<Running> {
    let handle = identity.handle()?;
    Some(Running {
        identity,
        handle,
        child: None,
    })
}

fn read_note(path: &Path) -> Option<Note> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write_note(path: &Path, note: &Note) -> std::io::Result<()> {
    let text = serde_json::to_vec(note)?;
    super::write_private(path, &text)
}

impl Running {
    /// Waits for its end, and says how it ended.
    pub async fn ended(&mut self) -> String {
        match &mut self.child {
            Some(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(e) => e.to_string(),
            },
            // Only a parent can wait for its child; this one's is gone.
            None => {
                while self.identity.is_alive() {
                    sleep(LOOK_EVERY).await;
                }
                "how is not known: an earlier `muster up` was its parent".into()
            }
        }
    }

    /// Asks it to end, and ends it when it does not within `patience`.
    pub async fn end(mut self, patience: Duration) {
        if !patience.is_zero() {
            let _ = pidfd_send_signal(&self.handle, Signal::TERM);
            if timeout(patience, self.ended()).await.is_ok() {
                return;
            }
        }
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        // A killed process ends; one in the middle of a system call that
        // cannot be interrupted is not waited for for ever.
        let _ = timeout(Duration::from_secs(5), self.ended()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(dir: &Path, seconds: &str) -> Part {
        Part {
            name: "sleeper".into(),
            program: "/bin/sleep".into(),
            args: vec![seconds.into()],
            environment: &[],
            config: "one".into(),
            log: dir.join("log"),
            note: dir.join("note.json"),
            patience: Duration::from_secs(5),
        }
    }

    fn quiet(_: String) {}

    #[tokio::test]
    async fn what_was_left_behind_is_adopted_once() {
        let dir = tempfile::tempdir().expect("directory");
        let part = part(dir.path(), "31.001");
        let first = part.start().await.expect("starts");
        let identity = first.identity.clone();
        let adopted = part.adopt(&quiet).await.expect("adopted");
        assert_eq!(adopted.identity, identity);
        adopted.end(Duration::from_secs(5)).await;
        drop(first);
        assert!(!identity.is_alive());
        assert!(part.adopt(&quiet).await.is_none());
    }

    #[tokio::test]
    async fn another_configuration_replaces_and_strays_are_ended() {
        let dir = tempfile::tempdir().expect("directory");
        let old = part(dir.path(), "31.002");
        let mut first = old.start().await.expect("starts");
        let newer = Part {
            config: "two".into(),
            ..old.clone()
        };
        assert!(newer.adopt(&quiet).await.is_none());
        assert!(first.ended().await.contains("signal"));
        // As if killed between the start and the note.
        let mut stray = old.start().await.expect("starts");
        old.forget();
        assert!(old.adopt(&quiet).await.is_none());
        assert!(stray.ended().await.contains("signal"));
    }

    #[tokio::test]
    async fn another_process_with_the_number_is_not_taken() {
        let dir = tempfile::tempdir().expect("directory");
        let part = part(dir.path(), "31.003");
        let me = Identity::of(std::process::id()).expect("lives");
        let note = Note {
            identity: me,
            program: part.program.clone(),
            fingerprint: part.fingerprint(),
        };
        write_note(&part.note, &note).expect("written");
        assert!(part.adopt(&quiet).await.is_none());
    }

    #[tokio::test]
    async fn what_does_not_listen_is_killed() {
        let dir = tempfile::tempdir().expect("directory");
        let deaf = Part {
            program: "/bin/sh".into(),
            args: vec![
                "-c".into(),
                "trap '' TERM; echo deaf; sleep 31.004 & wait; wait".into(),
            ],
            ..part(dir.path(), "")
        };
        let running = deaf.start().await.expect("starts");
        let identity = running.identity.clone();
        // Its first line says that the trap is set.
        for _ in 0..500 {
            if deaf.last_words(1) == "deaf" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(deaf.last_words(1), "deaf");
        running.end(Duration::from_millis(200)).await;
        assert!(!identity.is_alive());
    }

    #[tokio::test]
    async fn what_cannot_start_says_why() {
        let dir = tempfile::tempdir().expect("directory");
        let none = Part {
            program: "/nonexistent/x".into(),
            ..part(dir.path(), "1")
        };
        assert!(
            none.start()
                .await
                .expect_err("no such program")
                .to_string()
                .contains("/nonexistent/x")
        );
    }
}
