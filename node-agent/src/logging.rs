//! Logs to standard error, for people or as JSON lines.

use clap::ValueEnum;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Environment variable with the filter, in the syntax of `tracing`:
/// `info`, `debug`, `muster_agent::steps=debug,info`.
pub const FILTER_VARIABLE: &str = "MUSTER_LOG";

/// Begins to log. A second call changes nothing.
///
/// # Errors
/// What is wrong with the filter in [`FILTER_VARIABLE`].
pub fn init(format: LogFormat) -> Result<(), String> {
    let text = std::env::var(FILTER_VARIABLE).unwrap_or_default();
    // Whatever the NATS client says of a connection, the agent says better.
    let text = if text.is_empty() {
        "info,async_nats=off".to_owned()
    } else {
        text
    };
    // Levels by module. The filter that also looks into spans and fields
    // brings an engine for regular expressions, which nobody needs here and
    // everybody would have in memory.
    let filter: Targets = text.parse().map_err(|e| {
        format!("{FILTER_VARIABLE} is not a log filter: {e}; write it like `info` or `muster_agent=debug,info`")
    })?;
    // A line that cannot be written would be told of on standard error, too,
    // and that panics where the disk of both is full.
    let layer = fmt::layer()
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let layer = match format {
        LogFormat::Human => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            layer.with_ansi(ansi).with_target(false).boxed()
        }
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init();
    Ok(())
}
