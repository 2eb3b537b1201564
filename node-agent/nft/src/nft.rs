//! `nft`, as a program: told by text, killed when it takes too long, and never
//! believed further than its exit status.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use muster_protocol::text::printable;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long one call may take.
pub const WITHIN: Duration = Duration::from_secs(20);
/// How long one that was killed may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(1);
/// What it may write at most; more is a fault of it.
const MOST_OUTPUT: u64 = 256 << 20;
/// What is told of its complaints.
const TOLD: usize = 600;
/// The time between two looks at whether it has ended.
const LOOK: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(5)];

/// Why `nft` did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NftError {
    /// It is not there.
    #[error(
        "there is no program {program} to set rules with; install nftables: it is looked for along PATH, and in /usr/sbin and /sbin"
    )]
    Missing {
        /// The program.
        program: PathBuf,
    },
    /// It cannot be started.
    #[error(
        "{program} cannot be started: {cause}; see whether it may be executed by the agent's user"
    )]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It took too long, and was killed.
    #[error("{program} did not end within {} s and was killed; what it should have changed is as it was; see whether something else changes the rules all the time (`nft monitor`)", .within.as_secs())]
    Hangs {
        /// The program.
        program: PathBuf,
        /// How long it had.
        within: Duration,
    },
    /// It refused.
    #[error("{program} refused ({status}), nothing was changed: {said}")]
    Refused {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// It wrote what is no text, or far too much of it.
    #[error("what {program} wrote cannot be read: {cause}")]
    Output {
        /// The program.
        program: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// Where `nft` is: it is seldom on the path of a service, and always looked
/// for in the same places.
#[must_use]
pub fn find() -> PathBuf {
    find_in(&std::env::var_os("PATH").unwrap_or_default())
}

fn find_in(path: &OsStr) -> PathBuf {
    std::env::split_paths(path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("nft"))
        .find(|file| file.is_file())
        .unwrap_or_else(|| PathBuf::from("/usr/sbin/nft"))
}

/// Where `nft` is, and how long it may take.
#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
    within: Duration,
}

impl Nft {
    /// That program.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            within: WITHIN,
        }
    }

    /// With another limit of its time.
    #[must_use]
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// With no more of its time than this.
    #[must_use]
    pub fn at_most(self, within: Duration) -> Self {
        let within = within.min(self.within);
        Self { within, ..self }
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Has it do all that the text says, in one transaction: all of it, or
    /// nothing.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn apply(&self, text: &str) -> Result<(), NftError> {
        self.run(&["-f", "-"], text).map(drop)
    }

    /// Asks whether it could do all that the text says; does nothing of it.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn check(&self, text: &str) -> Result<(), NftError> {
        self.run(&["-c", "-f", "-"], text).map(drop)
    }

    /// What it says to that question.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn ask(&self, arguments: &[&str]) -> Result<String, NftError> {
        self.run(arguments, "")
    }

    /// What it says to questions that are told as text.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn ask_by_text(&self, flags: &[&str], text: &str) -> Result<String, NftError> {
        self.run(&[flags, &["-f", "-"]].concat(), text)
    }

    fn run(&self, arguments: &[&str], text: &str) -> Result<String, NftError> {
        let start = |cause: io::Error| match cause.kind() {
            io::ErrorKind::NotFound => NftError::Missing {
                program: self.program.clone(),
            },
            _ => NftError::Start {
                program: self.program.clone(),
                cause,
            },
        };
        // Files in memory: neither side ever waits for the other one to read.
        let mut input = memory().map_err(start)?;
        let (output, complaints) = (memory().map_err(start)?, memory().map_err(start)?);
        let written = input.write_all(text.as_bytes());
        written.and_then(|()| input.rewind()).map_err(start)?;
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(input))
            .stdout(output.try_clone().map_err(start)?)
            .stderr(complaints.try_clone().map_err(start)?);
        let child = command.spawn().map_err(start)?;
        let status = self.end(child, &output, &complaints)?;
        let read = |file: File| {
            self.read(file).map_err(|cause| NftError::Output {
                program: self.program.clone(),
                cause,
            })
        };
        if !status.success() {
            let said = read(complaints)?;
            return Err(NftError::Refused {
                program: self.program.clone(),
                status,
                said: told(&String::from_utf8_lossy(&said)),
            });
        }
        String::from_utf8(read(output)?).map_err(|e| NftError::Output {
            program: self.program.clone(),
            cause: io::Error::other(e),
        })
    }

    /// Waits for its end, or makes one.
    fn end(&self, mut child: Child, output: &File, more: &File) -> Result<ExitStatus, NftError> {
        let begun = Instant::now();
        let fail = |cause| NftError::Output {
            program: self.program.clone(),
            cause,
        };
        loop {
            if let Some(status) = child.try_wait().map_err(fail)? {
                return Ok(status);
            }
            let since = begun.elapsed();
            let large = [output, more].iter().any(|file| {
                let length = file.metadata().map(|file| file.len());
                length.is_ok_and(|length| length > MOST_OUTPUT)
            });
            if since >= self.within || large {
                kill(child);
                return Err(match large {
                    true => fail(io::ErrorKind::FileTooLarge.into()),
                    false => NftError::Hangs {
                        program: self.program.clone(),
                        within: self.within,
                    },
                });
            }
            thread::sleep((since / 8).clamp(LOOK[0], LOOK[1]));
        }
    }

    fn read(&self, mut file: File) -> io::Result<Vec<u8>> {
        file.rewind()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Kills it and what it has started.
fn kill(mut child: Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Gone already is as well.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.kill();
    let until = Instant::now() + KILLED_WITHIN;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() >= until {
            // The kernel keeps it, for whatever reason; nobody else waits.
            thread::spawn(move || child.wait());
            return;
        }
        thread::sleep(LOOK[1]);
    }
}

fn memory() -> io::Result<File> {
    Ok(File::from(memfd_create("nft", MemfdFlags::CLOEXEC)?))
}

/// What it complained of, in one line: without the rules that it quotes.
fn told(complaints: &str) -> String {
    let lines: Vec<&str> = complaints
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.chars().all(|c| matches!(c, '^' | '~' | ' ')))
        .take(4)
        .collect();
    match lines.is_empty() {
        true => "it did not say why".to_owned(),
        false => printable(&lines.join("; "), TOLD),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn program(dir: &Path, text: &str) -> Nft {
        let path = dir.join("nft");
        let mut write = Command::new("sh");
        // Another program writes it: a descriptor of ours would be open in
        // whatever another test starts at this moment, and it be busy.
        write.args([
            "-c",
            "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"",
            "sh",
        ]);
        let status = write.arg(text).arg(&path).status();
        assert!(status.is_ok_and(|status| status.success()));
        Nft::new(path)
    }

    fn said(dir: &Path, error: &NftError) -> String {
        error.to_string().replace(&dir.display().to_string(), "DIR")
    }

    #[test]
    fn what_it_says_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let nft = program(dir.path(), "cat; echo \"$@\"");
        let text = "x".repeat(1 << 20);
        let answer = nft.run(&["-f", "-"], &text).expect("an answer");
        assert_eq!(answer, format!("{text}-f -\n"));
        let nft = program(
            dir.path(),
            "printf '/dev/stdin:1:1-4: Error: no\\033[2J\\ntable\\n^^^^\\n' >&2; exit 1",
        );
        let refused = nft.apply("table").expect_err("refused");
        insta::assert_snapshot!(said(dir.path(), &refused), @r"DIR/nft refused (exit status: 1), nothing was changed: /dev/stdin:1:1-4: Error: no\x1b[2J; table");
        let silent = program(dir.path(), "kill -9 $$")
            .apply("")
            .expect_err("dies");
        insta::assert_snapshot!(said(dir.path(), &silent), @"DIR/nft refused (signal: 9 (SIGKILL)), nothing was changed: it did not say why");
        let binary = program(dir.path(), "printf '\\377'").ask(&["list"]);
        assert!(matches!(binary, Err(NftError::Output { .. })));
    }

    #[test]
    fn it_is_found_in_one_way() {
        let dir = tempfile::tempdir().expect("a directory");
        let other = tempfile::tempdir().expect("a directory");
        program(other.path(), "exit 0");
        let both = std::env::join_paths([Path::new("."), dir.path(), other.path()]);
        let found = find_in(&both.expect("a path"));
        assert_eq!(found, other.path().join("nft"));
        // Whatever the path is, where it is installed is looked, too.
        assert!(find_in(dir.path().as_os_str()).ends_with("sbin/nft"));
    }

    #[test]
    fn one_that_is_not_there_or_hangs_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = Nft::new(dir.path().join("none")).apply("");
        insta::assert_snapshot!(said(dir.path(), &missing.expect_err("missing")), @"there is no program DIR/none to set rules with; install nftables: it is looked for along PATH, and in /usr/sbin and /sbin");
        fs::write(dir.path().join("text"), "x").expect("write");
        let text = Nft::new(dir.path().join("text")).apply("");
        assert!(matches!(text, Err(NftError::Start { .. })));
        // What it has started goes with it.
        let child = dir.path().join("child");
        let nft = program(
            dir.path(),
            &format!("sleep 600 & echo $! > {}; wait", child.display()),
        );
        let hangs = nft.within(Duration::from_millis(300)).apply("");
        insta::assert_snapshot!(said(dir.path(), &hangs.expect_err("hangs")), @"DIR/nft did not end within 0 s and was killed; what it should have changed is as it was; see whether something else changes the rules all the time (`nft monitor`)");
        let pid = fs::read_to_string(&child).expect("it had started one");
        let until = Instant::now() + Duration::from_secs(10);
        let stat = format!("/proc/{}/stat", pid.trim());
        // Gone, or dead and not yet fetched by whoever does.
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < until, "it runs on");
            thread::yield_now();
        }
    }
}
