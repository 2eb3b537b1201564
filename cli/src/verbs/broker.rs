//! `muster broker` and `muster nats-config`

use std::path::PathBuf;

use clap::Args;

use crate::Context;
use crate::failure::Failure;

/// Arguments of `muster broker`.
#[derive(Args, Debug)]
pub struct BrokerArgs {
    /// Its configuration, TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Read the configuration, say what is wrong with it, and end
    #[arg(long)]
    pub check_config: bool,
    /// How the log is written to standard error
    #[arg(long, value_name = "human|json", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Arguments of `muster nats-config`.
#[derive(Args, Debug)]
pub struct NatsConfigArgs {
    /// The broker's configuration, TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs the broker until it is told to end.
///
/// # Errors
/// [`Failure`].
pub fn run(_context: &Context, _args: &BrokerArgs) -> Result<u8, Failure> {
    Err(Failure::new(5, "the broker is not built in yet"))
}

/// Prints what a NATS server needs.
///
/// # Errors
/// [`Failure`].
pub fn nats_config(_context: &Context, _args: &NatsConfigArgs) -> Result<u8, Failure> {
    Err(Failure::new(5, "the broker is not built in yet"))
}
