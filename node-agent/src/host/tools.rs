//! Programs that a step runs, one after the other: apt, systemctl, and what a
//! script asks for. For the thread of the step, which may block.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use muster_protocol::note::Note;
use muster_protocol::run::Stream;
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::account::{Account, AccountError};
use super::cgroup::Cgroups;
use super::proc::Process;
use super::process::{self, End, Sink, Spec, Why};

/// Most bytes of one stream of a program that the step looks at itself.
const MAX_HELD: usize = 1 << 20;
/// Lines of a complaint that are passed on.
const COMPLAINT_LINES: usize = 3;

/// What a step says while it runs, in order.
#[derive(Debug)]
pub enum Said {
    /// A program was started; it is held back until that is noted.
    Started {
        /// Which.
        process: Process,
        /// Where.
        cgroup: Option<PathBuf>,
        /// Noted.
        noted: oneshot::Sender<()>,
    },
    /// A program wrote something that the run shows.
    Output(Stream, Bytes),
    /// The step itself.
    Note(Note),
}

/// What all programs of one step have in common.
#[derive(Debug)]
pub struct Shared {
    /// Where they are looked after.
    pub runtime: Handle,
    /// Their environment.
    pub environment: BTreeMap<String, String>,
    /// What of it marks them as the step's.
    pub marks: Vec<String>,
    /// Where control groups are made.
    pub cgroups: Option<Cgroups>,
    /// What theirs are called.
    pub cgroup_name: String,
    /// How long each has between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// When the step's time is over.
    pub deadline: Instant,
    /// The step is cancelled.
    pub cancel: CancellationToken,
    /// Bytes of output that the run shows, of all of them together.
    pub output_bytes: u64,
    /// Who hears of it.
    pub said: mpsc::Sender<Said>,
}

/// Runs programs for one step.
#[derive(Debug)]
pub struct Tools {
    shared: Shared,
    count: AtomicU32,
    left: AtomicU64,
}

/// A program that is wanted.
#[derive(Clone, Debug)]
pub struct Tool {
    program: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    directory: Option<PathBuf>,
    input: Option<Bytes>,
    timeout: Option<Duration>,
    account: Option<Account>,
    shown: bool,
}

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its exit code, unless a signal ended it.
    pub exit: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote, up to 1 MiB.
    pub stdout: Vec<u8>,
    /// What it complained of, up to 1 MiB.
    pub stderr: Vec<u8>,
    /// Whether it wrote more than that.
    pub truncated: bool,
}

/// Why a program did not come to its own end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// It is not there.
    #[error("this node has no program `{program}` (looked in {path})")]
    Missing {
        /// Which.
        program: String,
        /// Where it was looked for.
        path: String,
    },
    /// It cannot be started.
    #[error("`{program}` cannot be started: {source}")]
    Start {
        /// Which.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// Its own time was over, the step's was not.
    #[error("`{program}` still ran after {after} and was ended")]
    TimedOut {
        /// Which.
        program: String,
        /// Its time.
        after: Span,
    },
    /// As whom it was to run.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The step is cancelled, or its time is over.
    #[error("the step was ended")]
    Stopped,
}

impl Tool {
    /// A program, with nothing to read, whose output only the step sees.
    #[must_use]
    pub fn new(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            directory: None,
            input: None,
            timeout: None,
            account: None,
            shown: false,
        }
    }

    /// With these arguments at the end.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With this in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With all of these.
    #[must_use]
    pub fn envs(mut self, all: &BTreeMap<String, String>) -> Self {
        let all = all
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()));
        self.environment.extend(all);
        self
    }

    /// In this directory.
    #[must_use]
    pub fn directory(mut self, directory: Option<&str>) -> Self {
        self.directory = directory.map(PathBuf::from);
        self
    }

    /// Reading this.
    #[must_use]
    pub fn input(mut self, input: Option<&str>) -> Self {
        self.input = input.map(|text| Bytes::copy_from_slice(text.as_bytes()));
        self
    }

    /// For at most so long.
    #[must_use]
    pub fn timeout(mut self, timeout: Option<Span>) -> Self {
        self.timeout = timeout.map(Span::get);
        self
    }

    /// As somebody else.
    #[must_use]
    pub fn account(mut self, account: Option<Account>) -> Self {
        self.account = account;
        self
    }

    /// With its output in the run, too.
    #[must_use]
    pub fn shown(mut self) -> Self {
        self.shown = true;
        self
    }
}

impl Answer {
    /// Whether it ended with 0.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.exit == Some(0)
    }

    /// What it wrote, as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// How it ended and what it complained of, for people: `exit code 3: no
    /// such unit`.
    #[must_use]
    pub fn complaint(&self) -> String {
        let how = match (self.exit, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => {
                format!("ended by signal {}", crate::executor::signal_name(signal))
            }
            (None, None) => "its end could not be seen".to_owned(),
        };
        let said = [&self.stderr, &self.stdout]
            .into_iter()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .find(|text| !text.trim().is_empty())
            .unwrap_or_default();
        let lines: Vec<&str> = said
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        let last = &lines[lines.len().saturating_sub(COMPLAINT_LINES)..];
        if last.is_empty() {
            return how;
        }
        format!("{how}: {}", printable(&last.join("; "), 400))
    }
}

impl Tools {
    /// For one step.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self {
            count: AtomicU32::new(0),
            left: AtomicU64::new(shared.output_bytes),
            shared,
        }
    }

    /// Where programs are looked after.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    /// The environment that each program has.
    #[must_use]
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.shared.environment
    }

    /// Whether the step is to end now.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.shared.cancel.is_cancelled() || Instant::now() >= self.shared.deadline
    }

    /// Says something, in order with what programs write. Waits while nobody
    /// takes it.
    pub fn say(&self, said: Said) {
        // Nobody hears any more: the step's end is known already.
        let _ = self.shared.said.blocking_send(said);
    }

    /// The same, for whoever must not block.
    pub async fn tell(&self, said: Said) {
        let _ = self.shared.said.send(said).await;
    }

    /// Returns when the step is to end.
    pub async fn ends(&self) {
        tokio::select! {
            () = self.shared.cancel.cancelled() => {}
            () = tokio::time::sleep_until(self.shared.deadline) => {}
        }
    }

    /// Waits for something else than a program, unless the step is to end.
    ///
    /// # Errors
    /// [`ToolError::Stopped`].
    pub fn wait<T>(&self, something: impl Future<Output = T>) -> Result<T, ToolError> {
        self.shared.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.shared.cancel.cancelled() => Err(ToolError::Stopped),
                () = tokio::time::sleep_until(self.shared.deadline) => Err(ToolError::Stopped),
                done = something => Ok(done),
            }
        })
    }

    /// Whether there is a program of that name.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        let path = self.shared.environment.get("PATH");
        path.map_or("", String::as_str).split(':').any(|dir| {
            let path = Path::new(dir).join(program);
            !dir.is_empty() && rustix::fs::access(&path, rustix::fs::Access::EXEC_OK).is_ok()
        })
    }

    /// Runs a program to its end. Blocks.
    ///
    /// # Errors
    /// [`ToolError`]; an exit code other than 0 is none.
    pub fn run(&self, tool: Tool) -> Result<Answer, ToolError> {
        if self.stopped() {
            return Err(ToolError::Stopped);
        }
        let shared = &self.shared;
        let name = printable(&tool.program, 80);
        // A mark and a group for each program: the end of a later one must
        // not take what an earlier one left behind on purpose.
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mark = format!("MUSTER_PROGRAM={count}");
        let mut environment = shared.environment.clone();
        if let Some(account) = &tool.account {
            account.set(&mut environment);
        }
        environment.extend(tool.environment);
        // Last, so that nothing a script says can hide a process.
        for mark in shared.marks.iter().chain([&mark]) {
            if let Some((name, value)) = mark.split_once('=') {
                environment.insert(name.to_owned(), value.to_owned());
            }
        }
        let mut argv = vec![tool.program];
        argv.extend(tool.arguments);
        if let Some(account) = &tool.account {
            argv = account.dress(argv, &mut environment)?;
        }
        let left = shared.deadline.saturating_duration_since(Instant::now());
        let timeout = tool.timeout.map_or(left, |own| own.min(left));
        let output_bytes = if tool.shown {
            self.left.load(Ordering::Relaxed)
        } else {
            2 * MAX_HELD as u64
        };
        let spec = Spec {
            program: argv.remove(0),
            arguments: argv,
            environment,
            directory: tool.directory,
            input: tool.input,
            marks: shared.marks.iter().cloned().chain([mark]).collect(),
            cgroup: shared
                .cgroups
                .as_ref()
                .and_then(|all| all.make(&format!("{}-{count}", shared.cgroup_name)).ok()),
            timeout,
            kill_grace: shared.kill_grace,
            output_bytes,
        };
        let mut held = Held {
            said: tool.shown.then_some(&shared.said),
            notes: &shared.said,
            out: Vec::new(),
            err: Vec::new(),
            truncated: false,
        };
        let run = Box::pin(process::run(&spec, &mut held, &shared.cancel));
        let end = match shared.runtime.block_on(run) {
            Ok(end) => end,
            Err(source) => {
                if let Some(cgroup) = &spec.cgroup {
                    cgroup.remove();
                }
                return Err(not_started(name, &spec, source));
            }
        };
        if tool.shown {
            self.left
                .fetch_sub(end.output_bytes.min(output_bytes), Ordering::Relaxed);
        }
        self.ended(&name, &end, timeout)?;
        Ok(Answer {
            exit: end.exit(),
            signal: end.signal(),
            truncated: held.truncated || end.truncated,
            stdout: held.out,
            stderr: held.err,
        })
    }

    fn ended(&self, name: &str, end: &End, timeout: Duration) -> Result<(), ToolError> {
        match end.why {
            Why::Exited => Ok(()),
            Why::Cancelled(_) => Err(ToolError::Stopped),
            Why::TimedOut(_) if self.stopped() => Err(ToolError::Stopped),
            Why::TimedOut(_) => Err(ToolError::TimedOut {
                program: name.to_owned(),
                after: Span::from_millis(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            }),
        }
    }
}

fn not_started(program: String, spec: &Spec, source: io::Error) -> ToolError {
    let here = spec.program.contains('/');
    if source.kind() == io::ErrorKind::NotFound && !here {
        let path = spec.environment.get("PATH").map_or("", String::as_str);
        let path = printable(path, 200);
        return ToolError::Missing { program, path };
    }
    ToolError::Start { program, source }
}

/// What a program writes: kept for the step, and passed on to the run.
struct Held<'a> {
    said: Option<&'a mpsc::Sender<Said>>,
    notes: &'a mpsc::Sender<Said>,
    out: Vec<u8>,
    err: Vec<u8>,
    truncated: bool,
}

impl Sink for Held<'_> {
    fn started<'a>(
        &'a mut self,
        process: &'a Process,
        cgroup: Option<&'a Path>,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let (noted, done) = oneshot::channel();
            let started = Said::Started {
                process: *process,
                cgroup: cgroup.map(Path::to_owned),
                noted,
            };
            if self.notes.send(started).await.is_ok() {
                let _ = done.await;
            }
        })
    }

    fn output(&mut self, stream: Stream, data: Bytes) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let held = match stream {
                Stream::Stdout => &mut self.out,
                Stream::Stderr => &mut self.err,
                // No program writes one.
                Stream::Note => return,
            };
            let room = MAX_HELD.saturating_sub(held.len()).min(data.len());
            held.extend_from_slice(&data[..room]);
            self.truncated |= room < data.len();
            if let Some(said) = self.said {
                let _ = said.send(Said::Output(stream, data)).await;
            }
        })
    }
}
