//! Running one program: its output read to the end, its time bounded, its
//! whole tree ended when it has to be.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use muster_protocol::run::Stream;
use muster_protocol::wire::MAX_CHUNK;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe::Sender;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::cgroup::Cgroup;
use super::proc::Process;
use super::spawn::{Child, Program, ROOT, spawn};
use super::tree::{Ended, Tree};

/// How long a background child that holds the output open is listened to
/// after the program itself has ended.
const DRAIN: Duration = Duration::from_secs(1);
/// Output is passed on at most so often while it trickles.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// What to run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The program, looked up in the environment's `PATH` when it has no
    /// slash.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its whole environment.
    pub environment: BTreeMap<String, String>,
    /// Where it runs; the root directory unless something else is said.
    pub directory: Option<PathBuf>,
    /// What it reads; nothing unless something is said.
    pub input: Option<Bytes>,
    /// Which of its environment marks its processes.
    pub marks: Vec<String>,
    /// Its control group.
    pub cgroup: Option<Cgroup>,
    /// How long it may run.
    pub timeout: Duration,
    /// How long it has between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// Bytes of output passed on, both streams together; the rest is read and
    /// thrown away.
    pub output_bytes: u64,
}

/// Who gets what a program writes, and learns which process it is.
pub trait Sink: Send {
    /// The process exists, in this control group.
    fn started<'a>(
        &'a mut self,
        process: &'a Process,
        cgroup: Option<&'a Path>,
    ) -> BoxFuture<'a, ()>;
    /// It wrote something, or the step says something about itself: at most
    /// [`MAX_CHUNK`] bytes.
    fn output(&mut self, stream: Stream, data: Bytes) -> BoxFuture<'_, ()>;
}

/// Why it ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// By itself, or by somebody else's signal.
    Exited,
    /// Its time was over.
    TimedOut(Ended),
    /// It was cancelled.
    Cancelled(Ended),
}

/// How it ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct End {
    /// Why.
    pub why: Why,
    /// Exit code and signal; `None` when the process could not be ended.
    pub status: Option<ExitStatus>,
    /// How long it ran.
    pub took: Duration,
    /// Bytes of output passed on.
    pub output_bytes: u64,
    /// Whether there was more.
    pub truncated: bool,
}

impl End {
    /// Its exit code.
    #[must_use]
    pub fn exit(&self) -> Option<i32> {
        self.status.and_then(|s| s.code())
    }

    /// The signal that ended it.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.and_then(|s| s.signal())
    }
}

/// Runs it to its end.
///
/// # Errors
/// When it cannot be started; nothing has run then.
pub async fn run(spec: &Spec, sink: &mut dyn Sink, cancel: &CancellationToken) -> io::Result<End> {
    let begun = Instant::now();
    let mut child = spawn(&Program {
        program: &spec.program,
        arguments: &spec.arguments,
        environment: &spec.environment,
        directory: spec.directory.as_deref().unwrap_or(Path::new(ROOT)),
        input: spec.input.is_some(),
    })?;
    muster_checkpoint::at("agent.spawned", || spec.marks.join(" ")).await;
    let mut tree = Tree {
        root: None,
        cgroup: None,
        marks: spec.marks.clone(),
    };
    let mut joining = None;
    if let Some(process) = child.id().and_then(Process::read) {
        tree.root = Some((process.pid, process.started));
        process.unprotect();
        if let Some(cgroup) = spec.cgroup.clone() {
            tree.cgroup = Some(cgroup.clone());
            // The kernel may take ten milliseconds for it, which neither the
            // agent nor a quick command has to wait for.
            joining = Some(spawn_blocking(move || cgroup.add(process.pid)));
        }
        sink.started(&process, tree.cgroup.as_ref().map(Cgroup::path))
            .await;
    }
    let mut feeding = std::pin::pin!(feed(child.stdin.take(), spec.input.clone()));
    let mut fed = spec.input.is_none();
    let mut pipes = Pipes::new(child.stdout.take(), child.stderr.take(), spec.output_bytes);
    let deadline = begun + spec.timeout;
    let mut why = Why::Exited;
    let mut status = None;
    let mut took = None;
    let mut ending: Option<JoinHandle<Ended>> = None;
    let mut drain_until = None;
    loop {
        let killing = ending.is_some();
        tokio::select! {
            biased;
            ended = child.wait(), if status.is_none() => {
                status = ended.ok();
                took = Some(begun.elapsed());
                if !killing {
                    drain_until = Some(Instant::now() + DRAIN);
                }
                if status.is_none() {
                    break;
                }
            }
            ended = async { ending.as_mut().expect("guarded").await }, if killing => {
                let ended: Ended = ended.unwrap_or_default();
                ending = None;
                match &mut why {
                    Why::TimedOut(e) | Why::Cancelled(e) => *e = ended,
                    Why::Exited => {}
                }
                // What is in the pipes is read; who could not be ended is not
                // waited for.
                drain_until = Some(Instant::now() + DRAIN);
            }
            () = sleep_until(deadline), if status.is_none() && why == Why::Exited => {
                why = Why::TimedOut(Ended::default());
                ending = Some(end(&tree, spec.kill_grace));
            }
            () = cancel.cancelled(), if status.is_none() && why == Why::Exited => {
                why = Why::Cancelled(Ended::default());
                ending = Some(end(&tree, spec.kill_grace));
            }
            () = sleep_until(drain_until.unwrap_or(deadline)), if drain_until.is_some() => break,
            () = &mut feeding, if !fed => fed = true,
            part = pipes.next(), if !pipes.done() => {
                if let Some((stream, data)) = part {
                    sink.output(stream, data).await;
                }
            }
        }
        if status.is_some() && ending.is_none() && pipes.done() {
            break;
        }
    }
    while let Some((stream, data)) = pipes.take() {
        sink.output(stream, data).await;
    }
    leave(child, joining, spec.cgroup.clone());
    Ok(End {
        why,
        status,
        took: took.unwrap_or_else(|| begun.elapsed()),
        output_bytes: pipes.kept,
        truncated: pipes.truncated,
    })
}

/// Writes what a program is to read, and then closes it. A program may end
/// without having read all of it.
async fn feed(pipe: Option<Sender>, input: Option<Bytes>) {
    if let (Some(mut pipe), Some(input)) = (pipe, input) {
        let _ = pipe.write_all(&input).await;
    }
}

/// Collects what has ended, and removes its control group. Not before the
/// process is in it: until it is collected, nobody else has its id.
fn leave(child: Child, joining: Option<JoinHandle<io::Result<()>>>, cgroup: Option<Cgroup>) {
    let go = move || {
        drop(child);
        if let Some(cgroup) = cgroup {
            // Stays while a daemon that the command left lives in it.
            cgroup.remove();
        }
    };
    match joining {
        Some(joining) if !joining.is_finished() => {
            tokio::spawn(async move {
                let _ = joining.await;
                go();
            });
        }
        _ => go(),
    }
}

fn end(tree: &Tree, grace: Duration) -> JoinHandle<Ended> {
    let tree = tree.clone();
    spawn_blocking(move || tree.end(grace))
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Both streams, read as they come, with one cap over both.
struct Pipes {
    out: Pipe,
    err: Pipe,
    left: u64,
    kept: u64,
    truncated: bool,
    /// When what is held back is passed on.
    flush_at: Option<Instant>,
}

struct Pipe {
    stream: Stream,
    reader: Option<Reader>,
    held: BytesMut,
}

impl Pipe {
    async fn read(&mut self) -> io::Result<usize> {
        match &mut self.reader {
            Some(reader) => {
                self.held.reserve(MAX_CHUNK / 2);
                reader.read_buf(&mut self.held).await
            }
            None => std::future::pending().await,
        }
    }
}

impl Pipes {
    fn new(
        out: Option<impl AsyncRead + Send + Unpin + 'static>,
        err: Option<impl AsyncRead + Send + Unpin + 'static>,
        cap: u64,
    ) -> Self {
        let pipe = |stream, reader| Pipe {
            stream,
            reader,
            held: BytesMut::new(),
        };
        Self {
            out: pipe(Stream::Stdout, out.map(|r| Box::new(r) as Reader)),
            err: pipe(Stream::Stderr, err.map(|r| Box::new(r) as Reader)),
            left: cap,
            kept: 0,
            truncated: false,
            flush_at: None,
        }
    }

    fn done(&self) -> bool {
        self.out.reader.is_none() && self.err.reader.is_none() && self.flush_at.is_none()
    }

    /// Reads on until there is something to pass on. Cancel safe.
    async fn next(&mut self) -> Option<(Stream, Bytes)> {
        let flush_at = self.flush_at;
        let (pipe, read) = tokio::select! {
            read = self.out.read() => (&mut self.out, read),
            read = self.err.read() => (&mut self.err, read),
            () = sleep_until(flush_at.unwrap_or_else(Instant::now)), if flush_at.is_some() => {
                let part = self.take();
                if part.is_none() {
                    self.flush_at = None;
                }
                return part;
            }
        };
        match read {
            Ok(0) | Err(_) => {
                pipe.reader = None;
                if !pipe.held.is_empty() {
                    self.flush_at = Some(Instant::now());
                }
                return None;
            }
            Ok(fresh) => {
                // The cap: what is over it is dropped as soon as it is read,
                // so that the program goes on and memory does not grow.
                let keep = self.left.min(fresh as u64);
                self.left -= keep;
                self.kept += keep;
                if keep < fresh as u64 {
                    self.truncated = true;
                    let over = fresh - usize::try_from(keep).unwrap_or(fresh);
                    pipe.held.truncate(pipe.held.len() - over);
                }
            }
        }
        if pipe.held.len() >= MAX_CHUNK {
            return Some((pipe.stream, pipe.held.split_to(MAX_CHUNK).freeze()));
        }
        if !pipe.held.is_empty() && self.flush_at.is_none() {
            self.flush_at = Some(Instant::now() + FLUSH_EVERY);
        }
        None
    }

    /// What is held back, a chunk at a time.
    fn take(&mut self) -> Option<(Stream, Bytes)> {
        for pipe in [&mut self.out, &mut self.err] {
            if !pipe.held.is_empty() {
                let size = pipe.held.len().min(MAX_CHUNK);
                return Some((pipe.stream, pipe.held.split_to(size).freeze()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
