//! `muster broker`: configuration, log, signals.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};
use crate::serve::serve;

/// What `muster broker` takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BrokerArgs {
    /// Configuration file (TOML); without one, the defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only check the configuration
    #[arg(long)]
    pub check_config: bool,
    /// How log lines look, whatever the configuration says: human or json
    #[arg(long, value_name = "FORMAT", value_parser = log_format)]
    pub log_format: Option<LogFormat>,
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err("it is `human` or `json`".into()),
    }
}

/// Runs a broker until SIGINT or SIGTERM.
///
/// # Errors
/// With what and where, for people.
pub fn run_broker(args: &BrokerArgs) -> anyhow::Result<()> {
    let mut config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    if args.check_config {
        // With everything that is declared in other files.
        crate::hooks::Held::open(config.hooks_file.as_deref())?;
        let name = args
            .config
            .as_ref()
            .map_or("the default".into(), |path| path.display().to_string());
        writeln!(std::io::stdout(), "{name}: the configuration is fine")?;
        return Ok(());
    }
    if let Some(format) = args.log_format {
        config.log_format = format;
    }
    init_log(config.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the broker's threads")?;
    runtime.block_on(async {
        let cancel = CancellationToken::new();
        end_on_signals(cancel.clone())?;
        let listen = config.listen;
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("cannot listen on {listen}; does another broker run? choose another `listen`")
        })?;
        Ok(serve(config, listener, cancel).await?)
    })
}

/// Sends log lines to standard error: those that `MUSTER_LOG` picks, `info`
/// and above without it. Once; again does nothing.
pub fn init_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("MUSTER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // It would be told on standard error, too, and that panics where the
        // disk of both is full.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Human => log.with_ansi(false).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

fn end_on_signals(cancel: CancellationToken) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        tracing::info!(signal = name, "ending");
        cancel.cancel();
    });
    Ok(())
}
