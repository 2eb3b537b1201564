//! `muster standby`

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use muster_broker::standby::{InstallError, Own, install};
use muster_broker::state_dir::StateDirError;
use serde_json::json;

use crate::Context;
use crate::failure::{Failure, NOT_ALL, USAGE};

/// Arguments of `muster standby`.
#[derive(Args, Debug)]
#[command(after_help = "\
Run it on the machine of the new broker, with an admin token of the cluster. It needs to reach the
active broker once; the new one then needs to reach the NATS servers. What is written holds the
keys of the cluster: keep it as you keep root passwords.")]
pub struct StandbyArgs {
    /// State directory to make for the new broker: empty, or not there
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Where the new broker listens; agents and people must reach it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7878")]
    pub listen: SocketAddr,
    /// A name or address by which it is reached, for its certificate; may be repeated
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,
    /// Its URL for people and agents [else made of --name or --listen]
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: &StandbyArgs) -> Result<u8, Failure> {
    let kit = context.client()?.standby_kit().await?;
    let own = Own {
        listen: args.listen,
        names: args.names.clone(),
        url: args.public_url.clone(),
    };
    let config = install(&kit, &args.state, own).map_err(|error| {
        let code = match &error {
            InstallError::State(StateDirError::Io { .. }) | InstallError::Strange(_) => NOT_ALL,
            _ => USAGE,
        };
        match error.to_string().split_once("; ") {
            Some((message, hint)) => Failure::new(code, message).hint(hint),
            None => Failure::new(code, error.to_string()),
        }
    })?;
    let file = config.state.join("broker.toml");
    let url = config.public_url(config.listen);
    if args.json {
        context.term.json(&json!({
            "type": "standby",
            "state": config.state,
            "config": file,
            "cluster": kit.cluster,
            "url": url,
            "nats": config.nats.urls,
        }))?;
    } else {
        context.term.line(&format!(
            "{}: a broker of cluster {}, for {url}\nstart it: muster broker --config {}",
            config.state.display(),
            kit.cluster,
            file.display()
        ))?;
    }
    let here = |url: &String| {
        ["127.", "localhost", "[::1]"].iter().any(|host| {
            url.split("://")
                .nth(1)
                .is_some_and(|rest| rest.starts_with(host))
        })
    };
    if config.nats.urls.iter().any(here) {
        context.term.note(&format!(
            "the NATS server is at {}: a broker on another machine does not reach it there.\n\
             There, let it listen beyond loopback, and name it in `nats.urls` of both brokers.",
            config.nats.urls.join(", ")
        ));
    }
    Ok(0)
}
