//! `muster-agent run`.

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::{self, AgentError};
use crate::cli::{Failure, print};
use crate::config::{Config, DEFAULT_PATH};
use crate::logging::{self, LogFormat};

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
    done
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
