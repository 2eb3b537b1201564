//! libvirt, by the program that links it: a line of JSON is asked, and a line
//! is answered.
//!
//! What does not answer in time is killed, because nothing else ends it: the
//! library has no way to give a call up. Another one is started for the next
//! call, and whoever asked looks what became of it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_libvirt::message::{Asked, Call, Reply, Said};
use muster_protocol::text::printable;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::virt::{Answered, Virt, VirtError, name};

/// What the program is called.
pub const NAME: &str = "muster-libvirt";
/// Where it is looked for when it is not beside the agent.
const PLACES: [&str; 4] = [
    "/usr/lib/muster",
    "/usr/local/lib/muster",
    "/usr/local/bin",
    "/usr/bin",
];
/// Longest line that it says.
const MAX_LINE: u64 = 64 << 20;
/// Calls that wait for their turn.
const QUEUE: usize = 256;
/// What it may say ahead of who listens.
const AHEAD: usize = 64;
/// One that nobody asks anything for so long is let go.
const IDLE: Duration = Duration::from_secs(300);

/// Which program, and how it is asked.
#[derive(Clone, Debug)]
pub struct How {
    /// The program; looked for, without.
    pub program: Option<PathBuf>,
    /// Which libvirt.
    pub uri: String,
    /// How long a call may take.
    pub timeout: Duration,
    /// Whether it is let go when nobody asks anything; events are heard only
    /// as long as it is there.
    pub idle: bool,
}

/// The program, and whoever looks after it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Program {
    asks: mpsc::Sender<Ask>,
    changes: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Ask {
    call: Call,
    reply: oneshot::Sender<Answered<Reply>>,
}

impl Program {
    /// Begins to look after one. It is started when it is asked something,
    /// and ends with the last handle.
    #[must_use]
    pub fn new(how: How) -> Self {
        let (asks, asked) = mpsc::channel(QUEUE);
        let (changed, changes) = watch::channel(0);
        let keeper = Keeper {
            how,
            changed,
            running: None,
            next: 0,
        };
        tokio::spawn(keeper.run(asked));
        Self { asks, changes }
    }
}

impl Virt for Program {
    fn call(&self, call: Call) -> BoxFuture<'_, Answered<Reply>> {
        Box::pin(async move {
            let what = name(&call);
            let (reply, answer) = oneshot::channel();
            let ended = || VirtError::Away("the agent is ending".to_owned());
            let ask = Ask { call, reply };
            self.asks.send(ask).await.map_err(|_| ended())?;
            let why = "the agent is ending".to_owned();
            answer.await.unwrap_or(Err(VirtError::Lost { what, why }))
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

/// Where the program is.
fn find(how: &How) -> Result<PathBuf, VirtError> {
    if let Some(program) = &how.program {
        return Ok(program.clone());
    }
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent);
    let places = beside.into_iter().chain(PLACES.iter().map(Path::new));
    let mut all = places.map(|place| place.join(NAME));
    all.find(|path| path.is_file()).ok_or_else(|| {
        VirtError::Away(format!(
            "there is no program {NAME} beside the agent or in {}; install it, or say where it is with \
             `program` below [vm] in the agent's file",
            PLACES.join(", ")
        ))
    })
}

/// How long a call may take: some work on the whole of a disk.
fn patience(call: &Call, timeout: Duration) -> Duration {
    match call {
        Call::Snapshot { .. } | Call::Restore { .. } => timeout * 10,
        Call::CreateVolume { .. } | Call::DeleteVolume { .. } | Call::GrowVolume { .. } => {
            timeout * 2
        }
        Call::GuestAgent { seconds, .. } => timeout + Duration::from_secs(u64::from(*seconds)),
        _ => timeout,
    }
}

/// One that was started and said that it is there.
struct Running {
    child: Child,
    input: ChildStdin,
    said: mpsc::Receiver<Said>,
}

/// Whoever looks after it.
struct Keeper {
    how: How,
    changed: watch::Sender<u64>,
    running: Option<Running>,
    next: u64,
}

impl Keeper {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        loop {
            let idle = self.how.idle && self.running.is_some();
            tokio::select! {
                ask = asked.recv() => {
                    let Some(Ask { call, reply }) = ask else { return };
                    let answer = self.answer(call).await;
                    // Whoever asked may have gone; it is done all the same.
                    let _ = reply.send(answer);
                }
                said = heard(&mut self.running) => match said {
                    Some(said) => self.aside(said),
                    None => self.drop_it("it ended"),
                },
                () = tokio::time::sleep(IDLE), if idle => self.running = None,
            }
        }
    }

    /// What is said without that anything was asked.
    fn aside(&mut self, said: Said) {
        match said {
            Said::Event { uuid, what } => {
                debug!(%uuid, what = %printable(&what, 60), "a domain changed");
                self.changed();
            }
            Said::Lost { why } => self.drop_it(&why),
            Said::Answer { id, .. } => debug!(id, "an answer that nobody waits for"),
            Said::Ready => {}
        }
    }

    fn changed(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// There is no connection any more: whoever listens has to look.
    fn drop_it(&mut self, why: &str) {
        if self.running.take().is_some() {
            info!("the connection to libvirt ends: {}", printable(why, 300));
            self.changed();
        }
    }

    async fn answer(&mut self, call: Call) -> Answered<Reply> {
        let what = name(&call);
        let patience = patience(&call, self.how.timeout);
        // Events that came before are no reason to wait.
        while let Some(said) = self.running.as_mut().and_then(|r| r.said.try_recv().ok()) {
            self.aside(said);
        }
        if self
            .running
            .as_ref()
            .is_none_or(|running| running.said.is_closed())
        {
            self.running = None;
            self.running = Some(self.begin().await?);
        }
        self.next += 1;
        let id = self.next;
        let Some(running) = &mut self.running else {
            return Err(VirtError::Away("it ended".to_owned()));
        };
        let mut line =
            serde_json::to_vec(&Asked { id, call }).map_err(|e| VirtError::Away(e.to_string()))?;
        line.push(b'\n');
        muster_checkpoint::at("agent.virt.before", || what.to_string()).await;
        let until = Instant::now() + patience;
        let sent = tokio::time::timeout_at(until, running.input.write_all(&line)).await;
        let mut lost = match sent {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => {
                self.drop_it("it takes nothing");
                return Err(VirtError::late(what, patience));
            }
        };
        // What it said last may say why it is gone.
        while let Some(running) = &mut self.running {
            match tokio::time::timeout_at(until, running.said.recv()).await {
                Ok(Some(Said::Answer { id: of, result })) if of == id => {
                    muster_checkpoint::at("agent.virt.after", || what.to_string()).await;
                    return result.map_err(VirtError::Failed);
                }
                Ok(Some(Said::Lost { why })) => {
                    lost = Some(printable(&why, 300));
                    self.drop_it(&why);
                }
                Ok(Some(said)) => self.aside(said),
                Ok(None) => {
                    let why = lost.get_or_insert_with(|| "the program ended".to_owned());
                    let why = why.clone();
                    self.drop_it(&why);
                }
                Err(_) => {
                    warn!("libvirt does not answer `{what}`; the program that asks it is ended");
                    self.drop_it("it does not answer");
                    return Err(VirtError::late(what, patience));
                }
            }
        }
        Err(VirtError::Lost {
            what,
            why: lost.unwrap_or_default(),
        })
    }

    /// Starts one, and waits until it is connected.
    async fn begin(&mut self) -> Answered<Running> {
        let program = find(&self.how)?;
        let away = |why: String| VirtError::Away(printable(&why, 300));
        let mut command = Command::new(&program);
        command
            .args(["--connect", &self.how.uri])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A signal for the agent's group is the agent's.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(home) = std::env::var_os("HOME") {
            command.env("HOME", home);
        }
        let started = command.spawn();
        let mut child = started.map_err(|e| away(format!("{}: {e}", program.display())))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(errors)) = pipes else {
            return Err(away("it has no pipes".to_owned()));
        };
        let (say, said) = mpsc::channel(AHEAD);
        tokio::spawn(listen(output, say));
        tokio::spawn(complaints(errors));
        let mut running = Running { child, input, said };
        match tokio::time::timeout(self.how.timeout, running.said.recv()).await {
            Ok(Some(Said::Ready)) => {
                debug!(pid = running.child.id(), "connected to libvirt");
                Ok(running)
            }
            Ok(Some(Said::Lost { why })) => Err(away(why)),
            Ok(Some(_)) => Err(away("the program does not begin as it should".to_owned())),
            Ok(None) => Err(away(format!("{} ended at once", program.display()))),
            Err(_) => Err(away(format!(
                "libvirt at {} does not answer within {:?}; see whether libvirtd runs",
                self.how.uri, self.how.timeout
            ))),
        }
    }
}

/// What it says next; for ever when there is none.
async fn heard(running: &mut Option<Running>) -> Option<Said> {
    match running {
        Some(running) => running.said.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads what it says until it ends, or says something else.
async fn listen(output: ChildStdout, say: mpsc::Sender<Said>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut output)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .await
        {
            Ok(0) | Err(_) => return,
            Ok(_) if line.last() != Some(&b'\n') => return,
            Ok(_) => {}
        }
        match serde_json::from_slice(&line) {
            Ok(said) => {
                if say.send(said).await.is_err() {
                    return;
                }
            }
            Err(e) => {
                warn!(
                    "{NAME} says something that is not known: {}",
                    printable(&e.to_string(), 200)
                );
                return;
            }
        }
    }
}

async fn complaints(errors: tokio::process::ChildStderr) {
    let mut errors = BufReader::new(errors);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut errors).take(4096).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                warn!("{NAME}: {}", printable(text.trim_end(), 300));
            }
        }
    }
}
