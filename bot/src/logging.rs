//! Logs to standard error, for people or as JSON lines.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

/// Environment variable with the filter: `info`, `muster_bot::irc=debug,info`.
pub const FILTER_VARIABLE: &str = "MUSTER_LOG";

/// Begins to log. A second call changes nothing.
///
/// # Errors
/// What is wrong with the filter in [`FILTER_VARIABLE`].
pub fn init(json: bool) -> Result<(), String> {
    let text = std::env::var(FILTER_VARIABLE).unwrap_or_default();
    let text = if text.is_empty() { "info" } else { &text };
    let filter: Targets = text.parse().map_err(|e| {
        format!("{FILTER_VARIABLE} is not a log filter: {e}; write it like `info` or `muster_bot=debug,info`")
    })?;
    // A line that cannot be written would be told of on standard error, too,
    // and that panics where the disk of both is full.
    let layer = fmt::layer()
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let layer = if json {
        layer.json().flatten_event(true).boxed()
    } else {
        let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
        layer.with_ansi(ansi).with_target(false).boxed()
    };
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init();
    Ok(())
}
