//! `muster vm destroy`

use clap::Args;
use muster_protocol::api::{VmStatus, VmView};
use muster_protocol::names::VmName;
use muster_protocol::run::RunPhase;
use muster_protocol::units::{Timestamp, elapsed};

use super::list::carried;
use super::wait::{Steps, as_wanted, failed, settled, wait};
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
    if let Some(traffic) = vm.traffic {
        parts.push(carried(traffic));
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
    let changed = if args.yes {
        client.destroy_vm(&args.name, args.purge).await?
    } else {
        let vm = client.vm(&args.name).await?;
        confirm(context, false, &question(&vm, args.purge, now()))?;
        // What was shown, and no namesake that has come meanwhile.
        let shown = (&args.name, vm.id);
        client.destroy_this_vm(shown, args.purge).await?
    };
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
    let text = said(&vm)?;
    if args.json {
        context.term.json(&vm)?;
    } else {
        context.term.line(&format!("{} {text}", args.name))?;
    }
    Ok(0)
}

/// That it is destroyed, where that is so.
///
/// # Errors
/// How it is instead.
pub(super) fn said(vm: &VmView) -> Result<String, Failure> {
    as_wanted(vm, &[VmStatus::Deleted], "was destroyed")?;
    Ok(match vm.kept_until {
        Some(until) => format!(
            "is destroyed; its disk is kept until {}: muster vm undelete {}",
            moment(until),
            vm.name
        ),
        None => "is destroyed".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_sees_what_goes() {
        let mut vm: VmView = serde_json::from_value(serde_json::json!({
            "name": "web-03", "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "status": "running",
            "should_run": true, "hypervisor": "gva2-r03-h12", "cpus": 2, "memory": 2147483648u64,
            "disk": 10737418240u64, "image": "debian-12", "since": "2026-11-22T08:00:00Z",
            "traffic": { "received": 1288490189u64, "sent": 52428800u64 },
            "image_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "nics": [], "addresses": ["192.0.2.57", "2001:db8::57"], "account": "acme",
            "roles": [], "labels": {}, "groups": [], "agent": true, "ready": "agent",
            "autostart": true, "protected": false, "by": "ana", "made": "2026-11-22T07:00:00Z",
        }))
        .expect("a machine");
        let now = "2026-11-22T11:30:00Z".parse().expect("a time");
        insta::assert_snapshot!(question(&vm, true, now), @"web-03 (of acme; up for 3 h; 192.0.2.57, 2001:db8::57; received 1.2GiB, sent 50MiB; 10GiB of disk on gva2-r03-h12). Destroy it, with its disk?");
        (vm.account, vm.since, vm.traffic) = (None, None, None);
        vm.addresses.clear();
        insta::assert_snapshot!(question(&vm, false, now), @"web-03 (of nobody's account; 10GiB of disk on gva2-r03-h12). Destroy it? Its disk is kept for a day.");
    }
}
