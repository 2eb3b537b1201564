//! `muster hypervisor drain`, and `adopt`.

use clap::Args;
use muster_protocol::api::{
    AdoptHypervisor, DrainHypervisor, Drained, DrainedVm, VmStatus, VmView,
};
use muster_protocol::names::{NodeName, VmName};
use muster_protocol::run::RunPhase;
use muster_protocol::text::{printable, printable_line};
use muster_protocol::units::Span;

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::{Paint, count};
use crate::verbs::vm::wait::{Steps, wait};
use crate::verbs::vm::word;

/// Arguments of `muster hypervisor drain`.
#[derive(Args, Debug)]
#[command(after_help = "\
Disks are on the hypervisor itself: no machine is moved away. The exit code is 1 as long as one of
them runs.")]
pub struct DrainArgs {
    /// Its node
    #[arg(value_name = "NODE")]
    pub node: NodeName,
    /// Stop its machines: asked first, then forced
    #[arg(long)]
    pub stop: bool,
    /// How long each may take by itself before it is forced [default: 1m]
    #[arg(long, value_name = "TIME", requires = "stop")]
    pub grace: Option<Span>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster hypervisor adopt`.
#[derive(Args, Debug)]
pub struct AdoptArgs {
    /// Its node
    #[arg(value_name = "NODE")]
    pub node: NodeName,
    /// Also machines that it does not report: destroyed ones whose disk it keeps, and those that
    /// are gone
    #[arg(long)]
    pub missing: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Whether a machine runs, or may do so for all that is known.
fn may_run(vm: &VmView) -> bool {
    !matches!(
        vm.status,
        VmStatus::Stopped | VmStatus::Crashed | VmStatus::Missing | VmStatus::Deleted
    )
}

/// Drains a hypervisor, and waits until what is stopped has ended.
///
/// # Errors
/// [`Failure`].
pub(super) async fn drain(context: &Context, args: &DrainArgs) -> Result<u8, Failure> {
    let how = DrainHypervisor {
        stop: args.stop,
        grace: args.grace,
    };
    let client = context.client()?;
    let mut drained = client.drain_hypervisor(&args.node, &how).await?;
    for one in &mut drained.machines {
        let Some(run) = one.run else {
            continue;
        };
        let view = wait(context, &client, run, Steps::Quiet, |_| None).await?;
        if view.brief.state != RunPhase::Succeeded {
            let reason = view.results.iter().find_map(|node| node.reason.as_deref());
            let reason = reason.map(|why| format!(": {}", printable(why, 500)));
            one.problem = Some(format!(
                "its run {} {}{}",
                run.prefix(8),
                view.brief.state.as_str(),
                reason.unwrap_or_default()
            ));
        }
        one.vm = client.vm(&one.vm.name).await?;
    }
    let running = drained.machines.iter().filter(|one| may_run(&one.vm));
    let running = running.count();
    if args.json {
        context.term.json(&drained)?;
    } else {
        let (paint, width) = (context.term.out, context.term.width);
        context
            .term
            .say(&render(&drained, args.stop, paint, width))?;
    }
    Ok(if running > 0 { NOT_ALL } else { 0 })
}

/// What is on it, and how that is.
fn render(drained: &Drained, stop: bool, paint: Paint, width: usize) -> String {
    let node = &drained.hypervisor.node;
    let mut out = format!("nothing new is put on {node}\n");
    if drained.machines.is_empty() {
        out.push_str("no machine is on it\n");
        return out;
    }
    let mut table = Table::new(&["NAME", "STATUS", "ACCOUNT", "ADDRESSES", "DONE"]);
    for DrainedVm { vm, run, problem } in &drained.machines {
        let (status, tone) = word(vm.status);
        let addresses: Vec<String> = vm.addresses.iter().map(ToString::to_string).collect();
        let (done, how) = match (run, problem) {
            (_, Some(_)) => ("not stopped", Tone::Bad),
            (Some(_), None) => ("stopped", Tone::Good),
            (None, None) if vm.protected => ("protected", Tone::Plain),
            (None, None) => ("-", Tone::Plain),
        };
        table.row([
            vm.name.as_str().into(),
            Cell::toned(status, tone),
            vm.account.as_ref().map_or("-", |a| a.as_str()).into(),
            addresses.join(",").into(),
            Cell::toned(done, how),
        ]);
    }
    out.push_str(&table.render(paint, width));
    for DrainedVm { vm, problem, .. } in &drained.machines {
        if let Some(problem) = problem {
            let problem = printable_line(problem);
            let name = paint.odd(&format!("{}:", vm.name));
            out.push_str(&format!("{name} {problem}\n"));
        }
    }
    let running = drained.machines.iter().filter(|one| may_run(&one.vm));
    let n = running.count();
    let runs = if n == 1 { "runs" } else { "run" };
    let some = count(n, "machine");
    out.push_str(&match (n, stop) {
        (0, _) => "none of them runs; their disks stay here\n".to_owned(),
        (_, true) => format!("{some} still {runs}, or may do so\n"),
        (_, false) => format!(
            "{some} {runs}, or may do so; disks are on {node} itself, so none can be moved away: \
             muster hypervisor drain {node} --stop stops them\n"
        ),
    });
    out
}

/// Says that a hypervisor's new key is that of the same host.
///
/// # Errors
/// [`Failure`].
pub(super) async fn adopt(context: &Context, args: &AdoptArgs) -> Result<u8, Failure> {
    let how = AdoptHypervisor {
        missing: args.missing,
    };
    let adopted = context.client()?.adopt_hypervisor(&args.node, &how).await?;
    if args.json {
        context.term.json(&adopted)?;
        return Ok(0);
    }
    let list = |names: &[VmName]| {
        let names: Vec<&str> = names.iter().map(VmName::as_str).collect();
        names.join(", ")
    };
    let node = &args.node;
    if adopted.adopted.is_empty() && adopted.left.is_empty() {
        let text = format!("no machine belongs to a key that {node} had before");
        context.term.line(&text)?;
        return Ok(0);
    }
    if !adopted.adopted.is_empty() {
        let text = format!("{node} has taken over {}", list(&adopted.adopted));
        context.term.line(&text)?;
    }
    if !adopted.left.is_empty() {
        let text = format!(
            "{node} does not report {}: nothing is done with them; --missing takes them over, too, to destroy them \
             or to bring back those whose disk it keeps",
            list(&adopted.left)
        );
        context.term.line(&text)?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::ids::RunId;

    #[test]
    fn what_is_on_it_is_said_with_what_was_done() {
        let vm = |name: &str, status: &str, protected: bool| {
            serde_json::json!({
                "name": name, "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "status": status,
                "should_run": true, "hypervisor": "hv-1", "cpus": 2, "memory": 2147483648u64,
                "disk": 10737418240u64, "image": "debian-12", "account": "acme",
                "image_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "nics": [], "addresses": ["192.0.2.57"], "roles": [], "labels": {}, "groups": [],
                "agent": true, "ready": "agent", "autostart": true, "protected": protected,
                "by": "ana", "made": "2026-11-22T09:00:00Z",
            })
        };
        let drained: Drained = serde_json::from_value(serde_json::json!({
            "hypervisor": {
                "node": "hv-1", "connected": true, "cordoned": true, "draining": true, "cpus_given": 4,
                "memory_given": 0, "disk_given": 0, "machines": 3, "running": 1, "unknown": [],
            },
            "machines": [
                { "vm": vm("db-01", "running", true) },
                { "vm": vm("web-01", "stopped", false), "run": RunId::from_bytes([7; 16]) },
                { "vm": vm("web-02", "running", false), "problem": "web-02 is being changed by run x\u{1b}[2J" },
            ],
        }))
        .expect("an answer");
        insta::assert_snapshot!(render(&drained, true, Paint::plain(), 120), @r"
        nothing new is put on hv-1
        NAME    STATUS   ACCOUNT  ADDRESSES   DONE
        db-01   running  acme     192.0.2.57  protected
        web-01  stopped  acme     192.0.2.57  stopped
        web-02  running  acme     192.0.2.57  not stopped
        web-02: web-02 is being changed by run x\x1b[2J
        2 machines still run, or may do so
        ");
        let said = render(&drained, false, Paint::plain(), 120);
        assert!(said.ends_with(
            "2 machines run, or may do so; disks are on hv-1 itself, so none can be moved away: \
             muster hypervisor drain hv-1 --stop stops them\n"
        ));
        let none = Drained {
            machines: Vec::new(),
            ..drained
        };
        insta::assert_snapshot!(render(&none, false, Paint::plain(), 120), @r"
        nothing new is put on hv-1
        no machine is on it
        ");
    }
}
