//! Starting a program as the head of a session of its own.
//!
//! By `posix_spawn`, which lends the child the agent's memory until it is the
//! program: a fork copies the page tables of the whole agent and throws them
//! away a moment later, which was a sixth of what a short command cost.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::Access;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, waitid, waitpid};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::signal::unix::{SignalKind, signal};

/// Where a program runs when nothing else is said.
pub const ROOT: &str = "/";
/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// What runs a file that is executable and names no interpreter.
const SHELL: &str = "/bin/sh";
/// The flag of Linux that `nix` does not name.
const SET_SESSION: i32 = 0x80;

/// A program that was started and whose end nobody has seen yet.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    /// Some child has ended. It hears from before the start on.
    ended: tokio::signal::unix::Signal,
    status: Option<ExitStatus>,
    /// What it reads from standard input, where it was started with one.
    pub stdin: Option<Sender>,
    /// What it writes to standard output.
    pub stdout: Option<Receiver>,
    /// What it writes to standard error.
    pub stderr: Option<Receiver>,
}

impl Child {
    /// Its process id, its own while its end was not seen.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        let alive = self.status.is_none();
        alive.then(|| self.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Returns when it has ended. May be asked again. Until this is dropped
    /// it is not collected, so that its id is nobody else's.
    ///
    /// # Errors
    /// What the system says; its end cannot be seen then.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            self.status = look(self.pid)?;
            if self.status.is_none() && self.ended.recv().await.is_none() {
                return Err(io::Error::other("the runtime ends"));
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Whoever does not wait for it must not leave it uncollected.
        if let Ok(false) = reap(self.pid, WaitOptions::NOHANG) {
            let pid = self.pid;
            std::thread::spawn(move || reap(pid, WaitOptions::empty()));
        }
    }
}

/// Whether it has ended, and how; it stays uncollected.
fn look(pid: Pid) -> io::Result<Option<ExitStatus>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let ended = uninterrupted(|| waitid(WaitId::Pid(pid), options))?;
    Ok(ended.map(|ended| {
        // As `wait` would have it.
        let raw = match (ended.exit_status(), ended.terminating_signal()) {
            (Some(code), _) => (code & 0xff) << 8,
            (None, Some(signal)) if ended.dumped() => signal | 0x80,
            (None, signal) => signal.unwrap_or_default(),
        };
        ExitStatus::from_raw(raw)
    }))
}

/// Whether it was collected.
fn reap(pid: Pid, options: WaitOptions) -> io::Result<bool> {
    Ok(uninterrupted(|| waitpid(Some(pid), options))?.is_some())
}

fn uninterrupted<T>(mut ask: impl FnMut() -> Result<T, rustix::io::Errno>) -> io::Result<T> {
    loop {
        match ask() {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

/// What to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its path, or a name that is looked up in the environment's `PATH`.
    pub program: &'a str,
    /// Its arguments.
    pub arguments: &'a [String],
    /// Its whole environment.
    pub environment: &'a BTreeMap<String, String>,
    /// Where it runs.
    pub directory: &'a Path,
    /// Whether it is given something to read; else there is nothing.
    pub input: bool,
}

/// Starts it in a session of its own, with both outputs in pipes.
///
/// # Errors
/// When it cannot be started; nothing has run then.
pub fn spawn(program: &Program<'_>) -> io::Result<Child> {
    if std::env::current_dir().is_ok_and(|dir| dir == program.directory) {
        return start(program);
    }
    // The directory is inherited. The agent's own stays what it is: this
    // thread leaves alone.
    std::thread::scope(|scope| {
        let handle = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let thread = scope.spawn(move || {
            let _runtime = handle.enter();
            unshare(CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(program.directory)?;
            start(program)
        });
        let done = thread.join();
        done.unwrap_or_else(|_| Err(io::Error::other("the thread that starts it has failed")))
    })
}

fn start(program: &Program<'_>) -> io::Result<Child> {
    let ended = signal(SignalKind::child())?;
    let (stdin, null) = if program.input {
        let (read, write) = io::pipe()?;
        (Some(Sender::from_owned_fd(write.into())?), read.into())
    } else {
        (None, OwnedFd::from(File::open("/dev/null")?))
    };
    let (stdout, out) = io::pipe()?;
    let (stderr, err) = io::pipe()?;
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_dup2(null.as_raw_fd(), 0)?;
    actions.add_dup2(out.as_raw_fd(), 1)?;
    actions.add_dup2(err.as_raw_fd(), 2)?;
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
            | PosixSpawnFlags::from_bits_retain(SET_SESSION),
    )?;
    // The runtime ignores it in this process; a program expects it.
    let mut default = SigSet::empty();
    default.add(Signal::SIGPIPE);
    attributes.set_sigdefault(&default)?;
    attributes.set_sigmask(&SigSet::empty())?;
    let environment = program
        .environment
        .iter()
        .map(|(name, value)| CString::new(format!("{name}={value}")))
        .collect::<Result<Vec<_>, _>>()?;
    let arguments = program
        .arguments
        .iter()
        .map(|argument| CString::new(argument.as_str()))
        .collect::<Result<Vec<_>, _>>()?;
    let name = CString::new(program.program)?;
    let begin = |path: &Path| {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let argv = [std::slice::from_ref(&name), &arguments].concat();
        match posix_spawn(path.as_c_str(), &actions, &attributes, &argv, &environment) {
            // As a shell and `execvp` do with a script that does not say what
            // runs it.
            Err(Errno::ENOEXEC) => {
                let shell = CString::new(SHELL)?;
                let argv = [&[shell.clone(), path], arguments.as_slice()].concat();
                let child =
                    posix_spawn(shell.as_c_str(), &actions, &attributes, &argv, &environment);
                Ok(child?)
            }
            child => Ok(child?),
        }
    };
    let pid = look_up(program, begin)?;
    let pid = Pid::from_raw(pid.as_raw()).ok_or_else(|| io::Error::other("it has no id"))?;
    let child = Child {
        pid,
        ended,
        status: None,
        stdin,
        stdout: Some(Receiver::from_owned_fd(stdout.into())?),
        stderr: Some(Receiver::from_owned_fd(stderr.into())?),
    };
    Ok(child)
}

/// Tries all places that a program may be in, as `execvp` does, and with its
/// errors: one that may not be executed is more telling than none.
fn look_up<T>(program: &Program<'_>, begin: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let name = program.program;
    if name.contains('/') {
        return begin(Path::new(name));
    }
    if name.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let path = program.environment.get("PATH");
    let mut failure = io::Error::from(Errno::ENOENT);
    for dir in path.map_or(DEFAULT_PATH, String::as_str).split(':') {
        let dir = OsStr::new(if dir.is_empty() { "." } else { dir });
        let path = PathBuf::from(dir).join(name);
        // A look is cheaper than a child that cannot become the program.
        if rustix::fs::access(&path, Access::EXISTS).is_err() {
            continue;
        }
        match begin(&path) {
            Err(e) if e.raw_os_error() == Some(Errno::EACCES as i32) => failure = e,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            done => return done,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn said(
        program: &str,
        arguments: &[&str],
        path: &str,
    ) -> io::Result<(String, ExitStatus)> {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let environment = BTreeMap::from([("PATH".to_owned(), path.to_owned())]);
        let mut child = spawn(&Program {
            program,
            arguments: &arguments,
            environment: &environment,
            directory: Path::new(ROOT),
            input: false,
        })?;
        let mut text = String::new();
        let mut out = child.stdout.take().expect("a pipe");
        out.read_to_string(&mut text).await?;
        let status = child.wait().await?;
        assert_eq!(child.wait().await?, status, "it may be asked again");
        assert_eq!(child.id(), None);
        Ok((text, status))
    }

    #[tokio::test]
    async fn it_runs_in_the_root_and_heads_a_session_and_the_agent_stays_where_it_is() {
        let before = std::env::current_dir().expect("somewhere");
        let line = "pwd; echo $$; cut -d' ' -f6 /proc/$$/stat; env; exit 7";
        let (text, status) = said("sh", &["-c", line], "/usr/bin:/bin")
            .await
            .expect("starts");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "/");
        assert_eq!(lines[1], lines[2], "its session is its own");
        assert!(lines[3..].contains(&"PATH=/usr/bin:/bin"), "{text}");
        assert!(!text.contains("CARGO"), "{text}");
        assert_eq!(status.code(), Some(7));
        assert_eq!(std::env::current_dir().expect("somewhere"), before);
    }

    #[tokio::test]
    async fn a_broken_pipe_ends_it_as_it_ends_any_program() {
        // Ignored in the agent, and not in what it starts.
        let (text, _) = said(
            "sh",
            &["-c", "grep SigIgn /proc/$$/status"],
            "/usr/bin:/bin",
        )
        .await
        .expect("starts");
        let mask = text.split_whitespace().last().expect("a mask");
        let mask = u64::from_str_radix(mask, 16).expect("hexadecimal");
        assert_eq!(mask & (1 << (Signal::SIGPIPE as u64 - 1)), 0, "{text}");
    }

    #[tokio::test]
    async fn a_name_is_looked_up_as_a_shell_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let write = |dir: &Path, mode: u32, text: &str| {
            std::fs::create_dir_all(dir).expect("made");
            let path = dir.join("tool");
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
        };
        let path = format!("{}:/nowhere:{}", one.display(), two.display());
        let missing = said("tool", &[], &path).await.expect_err("not there");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        write(&one, 0o644, "echo first");
        let denied = said("tool", &[], &path).await.expect_err("not executable");
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        // Without a first line that says who runs it.
        write(&two, 0o755, "echo second $1");
        let (text, _) = said("tool", &["x"], &path).await.expect("starts");
        assert_eq!(text, "second x\n");
        write(&two, 0o755, "#!/no/such/interpreter\n");
        let full = two.join("tool").display().to_string();
        let missing = said(&full, &[], &path).await.expect_err("no interpreter");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let zero = said("a\0b", &[], &path).await.expect_err("no name");
        assert_eq!(zero.kind(), io::ErrorKind::InvalidInput);
    }

    #[tokio::test]
    async fn one_that_nobody_waits_for_is_collected() {
        let environment = BTreeMap::new();
        let child = spawn(&Program {
            program: "/bin/sleep",
            arguments: &["0.1".to_owned()],
            environment: &environment,
            directory: Path::new(ROOT),
            input: false,
        })
        .expect("starts");
        let pid = child.id().expect("it runs");
        drop(child);
        let gone = async {
            while Path::new(&format!("/proc/{pid}")).exists() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), gone)
            .await
            .expect("collected");
    }
}
