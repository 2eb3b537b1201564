//! `muster firewall`

mod explain;
mod node;
mod test;

use clap::{Args, Subcommand};

use crate::Context;
use crate::failure::Failure;

/// Arguments of `muster firewall`.
#[derive(Args, Debug)]
pub struct FirewallArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: FirewallVerb,
}

/// What can be done with firewalls.
#[derive(Debug, Subcommand)]
pub enum FirewallVerb {
    /// The rules of a node's own firewall that are in force
    Show(node::NodeArgs),
    /// The changes of it, and how each ended
    History(node::NodeArgs),
    /// What a change was to do: the newest, or that of a run
    Diff(node::DiffArgs),
    /// Back to the rules before the present ones
    Rollback(node::RollbackArgs),
    /// Which rule of the security groups decides of a packet, without sending one
    Explain(explain::ExplainArgs),
    /// What becomes of the packets of a file, offline
    Test(test::TestArgs),
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: FirewallArgs) -> Result<u8, Failure> {
    match args.verb {
        FirewallVerb::Show(args) => node::show(context, &args).await,
        FirewallVerb::History(args) => node::history(context, &args).await,
        FirewallVerb::Diff(args) => node::diff(context, &args).await,
        FirewallVerb::Test(args) => test::run(context, &args),
        FirewallVerb::Explain(args) => explain::run(context, &args).await,
        FirewallVerb::Rollback(args) => node::rollback(context, &args).await,
    }
}
