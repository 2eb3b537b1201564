//! The command line, and the life of the process.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, DEFAULT_PATH, Network};
use crate::cursor::StateDir;
use crate::{logging, network};

/// The exit code where the configuration or the state cannot be used.
const UNUSABLE: u8 = 2;
/// How long to wait before a network is begun again that ended by itself.
const AGAIN: Duration = Duration::from_secs(5);

/// muster's bot for IRC: what people write to it is for the broker to judge,
/// and what the broker wants said it says.
#[derive(Debug, Parser)]
#[command(name = "muster-bot", version, max_term_width = 100)]
struct Cli {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Read the configuration and the files that it names, say what is wrong
    /// with them, and end
    #[arg(long)]
    check_config: bool,
    /// Write the log as JSON, one object a line
    #[arg(long)]
    log_json: bool,
}

/// Runs the bot: ends with 0 when it was asked to stop, and with 2 when the
/// configuration or the state cannot be used.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors and go to standard output.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { UNUSABLE } else { 0 });
        }
    };
    match start(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "error: {why}");
            ExitCode::from(UNUSABLE)
        }
    }
}

fn start(cli: &Cli) -> Result<(), String> {
    let config = Config::load(&cli.config).map_err(|e| e.to_string())?;
    if cli.check_config {
        let mut out = std::io::stdout();
        for network in &config.networks {
            let _ = writeln!(out, "{}", describe(network));
        }
        return Ok(());
    }
    logging::init(cli.log_json)?;
    // An error means that there is one already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let state = StateDir::open(&config.state).map_err(|e| e.to_string())?;
    // A bot waits nearly all of the time: one thread is enough for it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(|e| format!("cannot start: {e}"))?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        on_signal(stop.clone()).map_err(|e| format!("cannot listen for signals: {e}"))?;
        run(config, &state, stop).await;
        Ok(())
    })
}

/// One line of what is in effect.
fn describe(network: &Network) -> String {
    let irc = &network.irc;
    let channels: Vec<&str> = irc.channels.iter().map(|c| c.name.as_str()).collect();
    format!(
        "{}: {} as {} on {}:{}{}, in {}; broker {}",
        irc.name,
        if irc.tls.is_some() { "TLS" } else { "no TLS" },
        irc.nick,
        irc.host,
        irc.port,
        match &irc.sasl {
            Some(sasl) => format!(", logged in by SASL {}", sasl.mechanism()),
            None => ", not logged in".to_owned(),
        },
        if channels.is_empty() {
            "no channel".to_owned()
        } else {
            channels.join(" ")
        },
        network.endpoint.urls().join(" "),
    )
}

/// Keeps all networks until it is asked to stop. One that fails does not end
/// the others, and is begun again.
pub async fn run(config: Config, state: &StateDir, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    for network in config.networks {
        let cursor = state.cursor(&network.irc.name);
        let stop = stop.clone();
        tasks.spawn(async move {
            let name = network.irc.name.clone();
            loop {
                let task = network::run(network.clone(), cursor.clone(), stop.clone());
                // A task of its own: a fault in it is its own.
                match tokio::spawn(task).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => {
                        tracing::error!(network = %name, %error, "begun again in 5 s")
                    }
                    Err(error) => tracing::error!(network = %name, %error, "begun again in 5 s"),
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(AGAIN) => {}
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

fn on_signal(stop: CancellationToken) -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("asked to stop");
        stop.cancel();
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
