//! Namespaces that end with whoever made them: mounts, network, processes and
//! host name of their own.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Said, finish, signal, wait_for};

/// What of a process is its own.
const KINDS: [&str; 4] = ["mnt", "net", "pid", "uts"];

/// Namespaces. Their first process reads from a pipe of this process: when
/// that is closed, by a drop or by a kill -9, it ends, and the kernel ends
/// every other process of them, and with these all mounts and interfaces.
#[derive(Debug)]
pub struct Namespace {
    child: Child,
    open: Option<ChildStdin>,
    first: u32,
    kinds: Vec<(&'static str, File)>,
}

impl Namespace {
    /// New ones, after the lines of `setup` were run in them by a shell, with
    /// `argument` as `$1`.
    ///
    /// # Errors
    /// When they cannot be made, or a line fails.
    pub fn new(setup: &str, argument: &Path) -> Result<Self> {
        // The shell is their first process. What is orphaned in them becomes
        // its child, and is collected while it waits for `cat`.
        let script = format!("set -e\n{setup}\necho ready\nset +e\ncat >/dev/null\n");
        let mut child = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--uts", "--fork"])
            .args(["--kill-child=KILL", "--mount-proc", "--", "sh", "-c"])
            .args([OsStr::new(&script), OsStr::new("sh"), argument.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("unshare")?;
        let open = child.stdin.take();
        let mut line = String::new();
        let out = child.stdout.take().context("it is piped")?;
        BufReader::new(out).read_line(&mut line)?;
        if line.trim() != "ready" {
            drop(open);
            let said = child.wait_with_output()?;
            bail!(
                "namespaces could not be set up: {}",
                String::from_utf8_lossy(&said.stderr).trim()
            );
        }
        let first = only_child(child.id()).context("the first process of the namespaces")?;
        let mut kinds = Vec::new();
        for kind in KINDS {
            kinds.push((kind, File::open(format!("/proc/{first}/ns/{kind}"))?));
        }
        Ok(Self {
            child,
            open,
            first,
            kinds,
        })
    }

    /// The first process, as this process sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.first
    }

    /// A command in them; not yet started.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, program: S) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string()])
            .args(["--mount", "--net", "--pid", "--uts", "--"])
            .arg(program)
            .stdin(Stdio::null())
            .env("LC_ALL", "C");
        command
    }

    /// Runs a command in them to its end.
    ///
    /// # Panics
    /// When it hangs or is nothing.
    #[must_use]
    pub fn run(&self, argv: &[&str]) -> Said {
        let (program, args) = argv.split_first().expect("a program");
        let mut command = self.command(program);
        command.args(args);
        finish(command)
    }

    /// The same for one that must do well; what it printed.
    ///
    /// # Errors
    /// When it does not.
    pub fn done(&self, argv: &[&str]) -> Result<String> {
        let said = self.run(argv);
        if said.code != 0 {
            bail!(
                "{argv:?} ended with {}: {}{}",
                said.code,
                said.err,
                said.out
            );
        }
        Ok(said.out)
    }

    /// Brings the thread that calls into their network. What it starts from
    /// now on, threads and processes, is there, too.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter_network(&self) -> Result<()> {
        let (_, file) = self
            .kinds
            .iter()
            .find(|(kind, _)| *kind == "net")
            .context("the network")?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering a network namespace")
    }

    /// Processes that are in one of them: number and command line.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        within(&self.kinds)
    }

    /// Ends them, and gives what is to be asked afterwards.
    ///
    /// # Errors
    /// When their first process does not end.
    pub fn end(mut self) -> Result<Left> {
        let kinds = std::mem::take(&mut self.kinds);
        self.close()?;
        Ok(Left { kinds })
    }

    fn close(&mut self) -> Result<()> {
        self.open = None;
        let ended = wait_for("the end of namespaces", || {
            self.child.try_wait().ok().flatten()
        });
        if ended.is_err() {
            let _ = signal(self.first, Signal::KILL);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        ended.map(|_| ())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.open.is_some() {
            let _ = self.close();
        }
    }
}

/// Namespaces that are held to see whether somebody is still in them. Their
/// numbers are not given to others as long as this is there.
#[derive(Debug)]
pub struct Left {
    kinds: Vec<(&'static str, File)>,
}

impl Left {
    /// Processes that are in one of them.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        within(&self.kinds)
    }
}

/// The one child of a process.
pub(super) fn only_child(pid: u32) -> Result<u32> {
    let file = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
    let first = text.split_whitespace().next().context("no child")?;
    Ok(first.parse()?)
}

fn within(kinds: &[(&'static str, File)]) -> Vec<(u32, String)> {
    use std::os::unix::fs::MetadataExt as _;
    let wanted: Vec<(&str, u64)> = kinds
        .iter()
        .filter_map(|(kind, file)| Some((*kind, file.metadata().ok()?.ino())))
        .collect();
    let is_in = |pid: u32| {
        wanted.iter().any(|(kind, inode)| {
            let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
            std::fs::metadata(path).is_ok_and(|meta| meta.ino() == *inode)
        })
    };
    crate::processes()
        .into_iter()
        .filter(|(pid, _)| is_in(*pid))
        .collect()
}
