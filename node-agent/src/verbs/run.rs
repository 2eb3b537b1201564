//! `muster-agent run`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::agent::{self, AgentError, Ending, JOURNAL_FILE};
use crate::cli::{Failure, print};
use crate::config::{Config, DEFAULT_PATH};
use crate::host::program;
use crate::identity::Enrolled;
use crate::journal::Db;
use crate::logging::{self, LogFormat};
use crate::state::{StateDir, StateError};
use crate::upgrade::{IntentError, Intents};

const SELF_TEST_NAME: &str = "self-test";
/// What a release must understand, behind the arguments of the agent that it
/// is to replace.
pub const SELF_TEST: &str = "--self-test";

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The state directory; wins over the configuration
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The configuration; without this and without --state, the system's
    #[arg(long, value_name = "FILE", long_help = format!("The configuration. Without it, {DEFAULT_PATH} is read if it exists and no --state is given"))]
    config: Option<PathBuf>,
    /// Say what is in effect, as TOML, and end
    #[arg(long)]
    check_config: bool,
    /// Say whether this executable could take over here, and what it is, as
    /// JSON, and end
    #[arg(long = SELF_TEST_NAME, hide = true)]
    self_test: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Runs the agent.
///
/// # Errors
/// [`Failure`].
pub fn main(args: &Args) -> Result<(), Failure> {
    crate::host::close_inherited();
    let config = Config::load(args.config.as_deref(), args.state.as_deref())
        .map_err(|e| Failure::new(2, &e))?;
    if args.check_config {
        print(&config.effective());
        return Ok(());
    }
    if args.self_test {
        return self_test(&config);
    }
    // Commands begin in the root; an agent that is there itself starts them
    // more cheaply, and keeps no file system busy.
    if config.state.is_absolute() && config.facts_dir.is_absolute() {
        std::env::set_current_dir("/").map_err(|e| Failure::new(1, &e))?;
    }
    logging::init(args.log_format).map_err(|e| Failure::new(2, &e))?;
    // One thread does all; files and `/proc` are read on a few that come and
    // go, so that an idle agent is small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(32)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_stack_size(512 * 1024)
        .build()
        .map_err(|e| Failure::new(1, &e))?;
    let state = config.state.clone();
    let done = runtime.block_on(async {
        let stop = CancellationToken::new();
        stop_on_signals(stop.clone()).map_err(|e| Failure::new(1, &e))?;
        Box::pin(agent::run(config, stop))
            .await
            .map_err(|e| match &e {
                AgentError::State(_) => Failure::new(2, &e),
                AgentError::Journal(_) => Failure::new(1, &e),
            })
    });
    // A fact's program or a lookup may still hang somewhere.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match done? {
        Ending::Stopped => Ok(()),
        Ending::Become(program) => Err(become_other(&program, &state)),
    }
}

/// This process becomes that program, or failing that the one that was there
/// before. Returns only when neither can be.
fn become_other(executable: &Path, state: &Path) -> Failure {
    let mut args = std::env::args_os();
    let first = args.next().unwrap_or_else(|| executable.into());
    let rest: Vec<_> = args.collect();
    let error = program::become_program(executable, &first, &rest);
    error!("cannot become {}: {error}", executable.display());
    let why = format!("the new executable could not be started: {error}");
    let back = StateDir::open(state)
        .map_err(IntentError::from)
        .and_then(|dir| {
            let intents = Intents::new(dir);
            match intents.read()? {
                Some(intent) => intents.roll_back(intent.request, &why),
                None => Ok(false),
            }
        });
    match back {
        Ok(true) => {
            let again = program::become_program(executable, &first, &rest);
            Failure::new(
                1,
                &format!("cannot start {}: {again}", executable.display()),
            )
        }
        Ok(false) => Failure::new(1, &why),
        Err(e) => Failure::new(1, &format!("{why}; {e}")),
    }
}

/// Whether this executable could run with this configuration and state.
fn self_test(config: &Config) -> Result<(), Failure> {
    let dir = StateDir::open(&config.state).map_err(|e| Failure::new(2, &e))?;
    Enrolled::load(&dir)
        .map_err(|e| Failure::new(2, &e))?
        .ok_or_else(|| Failure::new(2, &StateError::Absent(config.state.clone())))?;
    Db::counts_of(&dir.path(JOURNAL_FILE)).map_err(|e| Failure::new(1, &e))?;
    let about = serde_json::to_string(crate::release::about()).map_err(|e| Failure::new(1, &e))?;
    print(&format!("{about}\n"));
    Ok(())
}

fn stop_on_signals(stop: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Whoever closes the terminal does not mean a service.
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hangup.recv() => {
                    info!("SIGHUP is ignored: restart the agent to read its configuration anew");
                    continue;
                }
            };
            if stop.is_cancelled() {
                warn!("{name} again; the agent is already ending");
            } else {
                info!("{name}");
            }
            stop.cancel();
        }
    });
    Ok(())
}
