//! `muster broker` and `muster nats-config`

use std::path::PathBuf;

use clap::Args;
use muster_broker::config::ConfigError;
use muster_broker::nats::version::ServerVersion;
use muster_broker::{Config, nats_config as server_config, run_broker};

use crate::Context;
use crate::failure::{Failure, NOT_ALL, USAGE};

pub use muster_broker::BrokerArgs;

/// Arguments of `muster nats-config`.
#[derive(Args, Debug)]
pub struct NatsConfigArgs {
    /// The broker's state directory, where the keys are; made when it is missing
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "config",
        required_unless_present = "config"
    )]
    pub state: Option<PathBuf>,
    /// The broker's configuration, which names the state directory
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the servers keep accounts, on their machines
    #[arg(long, value_name = "DIR", default_value = "/var/lib/nats/accounts")]
    pub resolver_dir: PathBuf,
    /// Version of the servers, such as 2.10.27; without it, the text fits all
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub nats_version: Option<ServerVersion>,
}

fn version(text: &str) -> Result<ServerVersion, String> {
    let version: ServerVersion = text.parse().map_err(|e| format!("{e}"))?;
    version.require_minimum().map_err(|e| e.to_string())
}

/// Runs the broker until it is told to end.
///
/// # Errors
/// [`Failure`].
pub fn run(_context: &Context, args: &BrokerArgs) -> Result<u8, Failure> {
    run_broker(args).map(|()| 0).map_err(|error| {
        let mut causes = error.chain().skip(1).map(ToString::to_string).peekable();
        let code = if error.is::<ConfigError>() {
            USAGE
        } else {
            NOT_ALL
        };
        let failure = Failure::new(code, error.to_string());
        if causes.peek().is_some() {
            failure.detail(causes.collect::<Vec<_>>().join("\n"))
        } else {
            failure
        }
    })
}

/// Prints what a NATS server needs.
///
/// # Errors
/// [`Failure`].
pub fn nats_config(context: &Context, args: &NatsConfigArgs) -> Result<u8, Failure> {
    let state = match (&args.state, &args.config) {
        (Some(state), _) => state.clone(),
        (None, Some(config)) => {
            Config::load(config)
                .map_err(|e| Failure::usage(e.to_string()))?
                .state
        }
        // clap asks for one of them.
        (None, None) => {
            return Err(Failure::usage(
                "which cluster? --state DIR or --config FILE says it",
            ));
        }
    };
    let text = server_config(&state, &args.resolver_dir, args.nats_version)
        .map_err(|e| Failure::new(NOT_ALL, e.to_string()))?;
    context.term.say(&text)?;
    Ok(0)
}
