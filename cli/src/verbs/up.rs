//! `muster up`

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::Context;
use crate::failure::Failure;
use crate::up::spec::NodeSpec;
use crate::up::{Wish, up};

const AFTER: &str = "\
Prints a line that begins with `ready` when everything answers. Ctrl-C and SIGTERM end the agents,
the broker and the NATS server, in this order. Killed with -9, they go on, and the next `muster up`
on the same state adopts them.

A node that is enrolled already gets the roles and labels of its --node when that is another than
the last time; what `muster node label|role` changed since then stays otherwise. A node without
a --node is not started; its keys stay in DIR/agents.

The state is DIR: keys, admin.token (0600), broker.toml and agents/NAME.toml (what you set there
stays), nats, log/*.log. MUSTER_AGENT and MUSTER_NATS_SERVER name other executables.";

/// Arguments of `muster up`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct UpArgs {
    /// Directory that holds everything; made when it is missing
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Where the broker listens; beyond loopback with TLS
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7878")]
    pub listen: SocketAddr,
    /// Where the NATS server listens; beyond loopback with TLS [default: a free port of loopback]
    #[arg(long, value_name = "ADDR:PORT")]
    pub nats_listen: Option<SocketAddr>,
    /// Run an agent on this machine: NAME:role=web,zone=gva2; may be given again
    #[arg(long = "node", value_name = "SPEC")]
    pub nodes: Vec<NodeSpec>,
    /// Webhooks, triggers and routes are in this file
    #[arg(long, value_name = "FILE")]
    pub hooks: Option<PathBuf>,
    /// The line that says `ready` is a JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs everything until it is told to end.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: UpArgs) -> Result<u8, Failure> {
    let wish = Wish {
        state: args.state,
        listen: args.listen,
        nats_listen: args.nats_listen,
        nodes: args.nodes,
        hooks: args.hooks,
        json: args.json,
    };
    up(context, &wish).await
}
