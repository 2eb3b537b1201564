//! `muster vm`

mod act;
mod apply;
mod create;
mod destroy;
mod guard;
mod list;
mod plan;
mod provision;
pub(super) mod wait;

use clap::{Args, Subcommand};

pub(crate) use self::create::key_lines;
pub(super) use self::list::word;

use crate::Context;
use crate::failure::Failure;

/// Arguments of `muster vm`.
#[derive(Args, Debug)]
pub struct VmArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: VmVerb,
}

/// What can be done with virtual machines.
#[derive(Debug, Subcommand)]
pub enum VmVerb {
    /// Make machines, and wait until they are up
    Create(Box<create::CreateArgs>),
    /// List machines, as they are wanted and as they are seen
    List(list::ListArgs),
    /// Everything known of a machine
    Show(list::ShowArgs),
    /// On which hypervisor a machine is
    Where(list::ShowArgs),
    /// What happened to a machine
    Log(list::LogArgs),
    /// Let it run
    Start(act::OneArgs),
    /// Do not let it run: asked first, then forced
    Stop(act::GraceArgs),
    /// Start it anew: asked first, then forced
    Reboot(act::GraceArgs),
    /// Give it more or less, from its next start at the latest; a disk only grows
    Resize(act::ResizeArgs),
    /// Configure it by a scenario, on its own node: once more, or by another one
    Provision(provision::ProvisionArgs),
    /// Keep its disk as it is now, under a name
    Snapshot(act::SnapshotArgs),
    /// Make its disk as it was in a snapshot
    Restore(act::SnapshotArgs),
    /// The end of what it wrote to its console
    Console(act::ConsoleArgs),
    /// Run a program in it, by the QEMU guest agent
    Exec(act::ExecArgs),
    /// Put it in security groups, or take it out: at once, also while it runs
    Group(guard::GroupArgs),
    /// Let it use addresses beside its own, or not any more
    AddressPair(guard::PairArgs),
    /// It cannot be destroyed from now on
    Protect(act::OneArgs),
    /// It can be destroyed from now on
    Unprotect(act::OneArgs),
    /// Destroy it; its disk is kept for a day, unless it is purged
    Destroy(destroy::DestroyArgs),
    /// Bring it back, while its disk is kept
    Undelete(act::OneArgs),
    /// Say what is to be done so that there is what a file of machines says
    Plan(plan::PlanArgs),
    /// Make it so that there is what a file of machines says
    Apply(apply::ApplyArgs),
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: VmArgs) -> Result<u8, Failure> {
    match args.verb {
        VmVerb::Create(args) => create::run(context, *args).await,
        VmVerb::List(args) => list::list(context, &args).await,
        VmVerb::Show(args) => list::show(context, &args).await,
        VmVerb::Where(args) => list::place(context, &args).await,
        VmVerb::Log(args) => list::log(context, &args).await,
        VmVerb::Destroy(args) => destroy::run(context, &args).await,
        VmVerb::Plan(args) => plan::run(context, &args).await,
        VmVerb::Apply(args) => Box::pin(apply::run(context, &args)).await,
        VmVerb::Group(args) => guard::groups(context, args).await,
        VmVerb::AddressPair(args) => guard::pairs(context, args).await,
        VmVerb::Provision(args) => provision::run(context, &args).await,
        verb => act::run(context, verb).await,
    }
}
