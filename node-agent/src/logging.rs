//! Logs to standard error, for people or as JSON lines.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

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
    let filter = EnvFilter::try_new(&text).map_err(|e| {
        format!("{FILTER_VARIABLE} is not a log filter: {e}; write it like `info` or `muster_agent=debug,info`")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Human => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(ansi).with_target(false).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
