//! The way back: a process of the old executable, outside of the agent's
//! session, that outlives the agent and puts the old executable back unless
//! the new one is confirmed.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use muster_protocol::ids::{RequestId, RunId};
use rustix::process::Signal;
use tracing::{error, info, warn};

use super::{Intent, IntentError, Intents, Phase};
use crate::cli::Failure;
use crate::host::proc::Process;
use crate::host::program;
use crate::logging::{self, LogFormat};
use crate::state::StateDir;

/// The verb.
pub const VERB: &str = "upgrade-guard";
/// Set by whoever starts the agent again when it ends.
const SUPERVISED: [&str; 2] = ["MUSTER_SUPERVISED", "INVOCATION_ID"];

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The new agent goes back by itself when it was not welcomed in time; after
/// so much more it is taken to hang.
const SLACK: Duration = Duration::from_secs(5);
/// How long the old agent has to be there again before somebody starts it.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// How long the state must be nobody's until the guard becomes the agent.
const NOBODY_FOR: Duration = Duration::from_secs(2);
/// How long starting it may take.
const START_WITHIN: Duration = Duration::from_secs(10);

/// Arguments of `upgrade-guard`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's state directory
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The run
    #[arg(long)]
    run: RunId,
    /// The step
    #[arg(long)]
    step: u32,
    /// The agent's process
    #[arg(long)]
    pid: u32,
    /// When it started
    #[arg(long)]
    started: u64,
    /// Watch, in place of starting the one that does
    #[arg(long)]
    watch: bool,
    /// How the agent was started
    #[arg(last = true)]
    agent: Vec<OsString>,
}

/// Starts one for this agent, and returns when it is there.
///
/// # Errors
/// When it cannot be started.
pub async fn start(intents: &Intents, intent: &Intent) -> io::Result<()> {
    let me = Process::read(std::process::id())
        .ok_or_else(|| io::Error::other("/proc does not show this process"))?;
    let mut args: Vec<OsString> = vec![VERB.into(), "--state".into()];
    args.push(intents.dir().dir().into());
    for (name, value) in [
        ("--run", intent.request.run.to_string()),
        ("--step", intent.request.step.to_string()),
        ("--pid", me.pid.to_string()),
        ("--started", me.started.to_string()),
    ] {
        args.push(name.into());
        args.push(value.into());
    }
    args.push("--".into());
    args.extend(std::env::args_os());
    program::run(&intent.executable, &args, START_WITHIN).await
}

/// The verb: as the agent starts it, it starts the one that watches, so that
/// nobody has to wait for that one.
///
/// # Errors
/// [`Failure`].
pub fn main(args: &Args) -> Result<(), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::new(1, e);
    if !args.watch {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| fail(&e))?;
        let mut own: Vec<OsString> = std::env::args_os().skip(1).collect();
        own.insert(1, "--watch".into());
        let program = program::own_path().map_err(|e| fail(&e))?;
        return runtime
            .block_on(async { program::detach(&program, &own) })
            .map(|_| ())
            .map_err(|e| fail(&e));
    }
    crate::host::close_inherited();
    logging::init(LogFormat::default()).map_err(|e| fail(&e))?;
    let guard = Guard {
        intents: Intents::new(StateDir::open(&args.state).map_err(|e| fail(&e))?),
        request: RequestId {
            run: args.run,
            step: args.step,
        },
        pid: args.pid,
        started: args.started,
    };
    match guard.watch() {
        Over::Quiet => Ok(()),
        Over::RolledBack(intent) => guard.bring_back(&intent, &args.agent),
    }
}

/// Arguments of `upgrade-undo`.
#[derive(Debug, clap::Args)]
pub struct UndoArgs {
    /// The agent's state directory
    #[arg(long, value_name = "DIR", default_value = crate::config::DEFAULT_STATE)]
    state: PathBuf,
}

/// `upgrade-undo`: before a service is started. An upgrade that was not
/// confirmed when the service ended, or the machine, is taken back; the guard
/// may have gone with them.
///
/// # Errors
/// [`Failure`].
pub fn undo(args: &UndoArgs) -> Result<(), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::new(1, e);
    let Ok(dir) = StateDir::open(&args.state) else {
        return Ok(());
    };
    let intents = Intents::new(dir);
    let Some(intent) = intents.read().map_err(|e| fail(&e))? else {
        return Ok(());
    };
    if matches!(intent.phase, Phase::Fetching | Phase::Confirmed) {
        return Ok(());
    }
    if intent.held {
        // It was stopped in good order, and may try once more.
        return intents.hold(intent.request, false).map_err(|e| fail(&e));
    }
    let why = format!(
        "rolled back: the service was started again before {} was welcomed",
        intent.to.version
    );
    intents
        .roll_back(intent.request, &why)
        .map(|_| ())
        .map_err(|e| fail(&e))
}

enum Over {
    /// Nothing to do, or nobody wants it.
    Quiet,
    /// The old executable is in its place.
    RolledBack(Box<Intent>),
}

struct Guard {
    intents: Intents,
    request: RequestId,
    pid: u32,
    started: u64,
}

impl Guard {
    fn lives(&self) -> bool {
        Process::read(self.pid).is_some_and(|p| p.started == self.started && !p.zombie)
    }

    /// The upgrade, while it is still this one and not confirmed.
    fn intent(&self) -> Result<Option<Intent>, IntentError> {
        Ok(self
            .intents
            .read()?
            .filter(|now| now.request == self.request && now.phase != Phase::Confirmed))
    }

    fn watch(&self) -> Over {
        let begun = Instant::now();
        let mut said = false;
        loop {
            let intent = match self.intent() {
                Ok(Some(intent)) if !intent.held => intent,
                Ok(_) => return Over::Quiet,
                Err(e) => {
                    // It is being written, or the disk fails; it is all that
                    // says which one is to run.
                    if !std::mem::replace(&mut said, true) {
                        error!("{e}");
                    }
                    if begun.elapsed() > Duration::from_secs(600) {
                        return Over::Quiet;
                    }
                    sleep(LOOK_EVERY);
                    continue;
                }
            };
            if matches!(intent.phase, Phase::RolledBack { .. }) {
                return Over::RolledBack(Box::new(intent));
            }
            let within = Duration::from_millis(intent.confirm_ms) + SLACK;
            let why = if !self.lives() {
                // Whoever was told to stop says so first.
                if self.intent().is_ok_and(|now| now.is_none_or(|n| n.held)) {
                    return Over::Quiet;
                }
                format!(
                    "rolled back: the agent ended before the broker had welcomed {}",
                    intent.to.version
                )
            } else if begun.elapsed() > within {
                format!(
                    "rolled back: {} neither was welcomed nor ended within {} s",
                    intent.to.version,
                    within.as_secs()
                )
            } else {
                sleep(LOOK_EVERY);
                continue;
            };
            warn!(run = %self.request.run, "{why}");
            match self.intents.roll_back(self.request, &why) {
                Ok(true) => return Over::RolledBack(Box::new(intent)),
                Ok(false) => return Over::Quiet,
                Err(e) => {
                    error!("{e}");
                    return Over::RolledBack(Box::new(intent));
                }
            }
        }
    }

    /// Sees to it that the old agent runs.
    fn bring_back(&self, intent: &Intent, agent: &[OsString]) -> Result<(), Failure> {
        // One that went back by itself is the old agent in a moment.
        let until = Instant::now() + BACK_WITHIN;
        while self.lives() && Instant::now() < until {
            if !matches!(self.intent(), Ok(Some(_))) {
                return Ok(());
            }
            sleep(LOOK_EVERY);
        }
        if let Some(process) = Process::read(self.pid).filter(|_| self.lives()) {
            error!(pid = self.pid, "the new agent hangs; it is killed");
            process.signal(Signal::KILL);
        }
        if supervised() {
            info!("whoever looks after the agent starts the old one");
            return Ok(());
        }
        let mut free = Instant::now();
        loop {
            match self.intents.dir().lock() {
                // Let go at once: it was only asked.
                Ok(_) if free.elapsed() < NOBODY_FOR => {}
                Ok(_) => break,
                Err(_) => {
                    free = Instant::now();
                    if !matches!(self.intent(), Ok(Some(_))) {
                        return Ok(());
                    }
                }
            }
            sleep(LOOK_EVERY);
        }
        let [first, rest @ ..] = agent else {
            return Err(Failure::new(1, &"how the agent was started is not known"));
        };
        info!("nobody starts the old agent; this process becomes it");
        let error = program::become_program(&intent.executable, first, rest);
        Err(Failure::new(
            1,
            &format!("cannot start {}: {error}", intent.executable.display()),
        ))
    }
}

fn supervised() -> bool {
    SUPERVISED
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}
