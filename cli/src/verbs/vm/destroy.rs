//! `muster vm destroy`

use clap::Args;
use muster_protocol::api::VmView;
use muster_protocol::names::VmName;
use muster_protocol::run::RunPhase;
use muster_protocol::units::{Timestamp, elapsed};

use super::wait::{Steps, failed, settled, wait};
use crate::Context;
use crate::failure::Failure;
use crate::ui::time::{coarse, moment};
use crate::verbs::{confirm, now};

/// Arguments of `muster vm destroy`.
#[derive(Args, Debug)]
pub struct DestroyArgs {
    /// Its name
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// Its disk goes, too; else it is kept for a day
    #[arg(long)]
    pub purge: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Do not wait until it is gone
    #[arg(long)]
    pub detach: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// What is asked before a machine is destroyed.
fn question(vm: &VmView, purge: bool, now: Timestamp) -> String {
    let mut parts = Vec::new();
    parts.push(match &vm.account {
        Some(account) => format!("of {account}"),
        None => "of nobody's account".to_owned(),
    });
    if let Some(since) = vm.since {
        parts.push(format!("up for {}", coarse(elapsed(since, now))));
    }
    if !vm.addresses.is_empty() {
        let addresses: Vec<String> = vm.addresses.iter().map(ToString::to_string).collect();
        parts.push(addresses.join(", "));
    }
    parts.push(format!("{} of disk on {}", vm.disk, vm.hypervisor));
    let end = if purge {
        "Destroy it, with its disk?"
    } else {
        "Destroy it? Its disk is kept for a day."
    };
    format!("{} ({}). {end}", vm.name, parts.join("; "))
}

/// Destroys a machine.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(context: &Context, args: &DestroyArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    if !args.yes {
        let vm = client.vm(&args.name).await?;
        confirm(context, false, &question(&vm, args.purge, now()))?;
    }
    let changed = client.destroy_vm(&args.name, args.purge).await?;
    let Some(run) = changed.run else {
        if args.json {
            context.term.json(&changed.vm)?;
        } else {
            context.term.line(&format!("{} is gone", args.name))?;
        }
        return Ok(0);
    };
    if args.detach {
        if args.json {
            context.term.json(&changed)?;
        } else {
            context
                .term
                .line(&format!("{}  run {}", args.name, run.prefix(8)))?;
        }
        return Ok(0);
    }
    let view = wait(context, &client, run, Steps::Quiet, |_| None).await?;
    if view.brief.state != RunPhase::Succeeded {
        return Err(failed(&view, &format!("{} may be there still", args.name)));
    }
    let vm = settled(&client, &args.name).await?;
    if args.json {
        context.term.json(&vm)?;
    } else {
        let text = match vm.kept_until {
            Some(until) => format!(
                "{} is destroyed; its disk is kept until {}: muster vm undelete {}",
                args.name,
                moment(until),
                args.name
            ),
            None => format!("{} is destroyed", args.name),
        };
        context.term.line(&text)?;
    }
    Ok(0)
}
