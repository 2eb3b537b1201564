//! `muster-agent enroll`.

use std::path::PathBuf;

use muster_protocol::api::Secret;

use crate::cli::{Failure, print};
use crate::config::DEFAULT_STATE;
use crate::enroll::{Invitation, enroll};
use crate::state::StateDir;

/// Arguments of `enroll`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The broker's address, such as `https://broker.example.org:7878`; those of several brokers of
    /// one cluster with commas, or by repeating it
    #[arg(
        long,
        env = "MUSTER_ENROLL_URL",
        value_delimiter = ',',
        required = true
    )]
    url: Vec<String>,
    /// The invite, from `muster node invite`. In the environment it cannot be
    /// seen by other users of this machine
    #[arg(long, env = "MUSTER_ENROLL_TOKEN", hide_env_values = true, value_parser = secret)]
    token: Secret,
    /// Where the node's keys and journal are kept
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
    state: PathBuf,
    /// Trust this certificate authority (PEM) for the broker's HTTPS in place of the cluster's own
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Enrol again although this state belongs to a node: the old identity is set aside
    #[arg(long)]
    again: bool,
}

// `clap` wants any error type; none can happen.
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// Enrols this machine.
///
/// # Errors
/// [`Failure`].
pub fn main(args: &Args) -> Result<(), Failure> {
    let ca = match &args.ca {
        None => None,
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|e| Failure::new(2, &format!("--ca {}: {e}", path.display())))?,
        ),
    };
    let invitation = Invitation {
        urls: args.url.clone(),
        token: args.token.clone(),
        ca,
        again: args.again,
    };
    let dir = StateDir::create(&args.state).map_err(|e| Failure::new(1, &e))?;
    // Not under an agent that runs with the old identity.
    let _lock = dir.lock().map_err(|e| Failure::new(2, &e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(1, &e))?;
    let enrolled = runtime
        .block_on(enroll(&dir, &invitation))
        .map_err(|e| Failure::new(e.exit_code(), &e))?;
    let assignment = enrolled.assignment();
    print(&format!(
        "enrolled as {} (serial {}) in cluster {}\n",
        assignment.name,
        enrolled.serial(),
        enrolled.keys.cluster
    ));
    Ok(())
}
