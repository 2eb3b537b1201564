//! `muster hypervisor`

mod drain;

use clap::{Args, Subcommand};
use muster_protocol::api::{HypervisorChange, HypervisorView};
use muster_protocol::names::NodeName;
use muster_protocol::vm::Virtualisation;

use crate::Context;
use crate::failure::Failure;
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::{Paint, count};

/// Arguments of `muster hypervisor`.
#[derive(Args, Debug)]
pub struct HypervisorArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: HypervisorVerb,
}

/// What can be done with hypervisors.
#[derive(Debug, Subcommand)]
pub enum HypervisorVerb {
    /// List hypervisors, with what of them is given to machines
    List(ListArgs),
    /// Put nothing new on it; what is there stays
    Cordon(CordonArgs),
    /// Put new machines on it again
    Uncordon(CordonArgs),
    /// Put nothing new on it, and say what is on it, or stop that
    Drain(drain::DrainArgs),
    /// Put new machines on it again; what was stopped stays so
    Undrain(CordonArgs),
    /// Say that its new key is that of the same host: its machines are its own again
    Adopt(drain::AdoptArgs),
}

/// Arguments of `muster hypervisor list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster hypervisor cordon`.
#[derive(Args, Debug)]
pub struct CordonArgs {
    /// Its node
    #[arg(value_name = "NODE")]
    pub node: NodeName,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: &HypervisorArgs) -> Result<u8, Failure> {
    match &args.verb {
        HypervisorVerb::List(args) => {
            let all = context.client()?.hypervisors().await?;
            if args.json {
                context.term.json(&all)?;
            } else if all.is_empty() {
                context
                    .term
                    .note("no hypervisors yet. Make a node one: muster node role NODE +hypervisor");
            } else {
                let (paint, width) = (context.term.out, context.term.width);
                context.term.say(&render(&all, paint, width))?;
            }
            Ok(0)
        }
        HypervisorVerb::Cordon(args) => cordon(context, args, true).await,
        HypervisorVerb::Uncordon(args) | HypervisorVerb::Undrain(args) => {
            cordon(context, args, false).await
        }
        HypervisorVerb::Drain(args) => drain::drain(context, args).await,
        HypervisorVerb::Adopt(args) => drain::adopt(context, args).await,
    }
}

async fn cordon(context: &Context, args: &CordonArgs, cordoned: bool) -> Result<u8, Failure> {
    let change = HypervisorChange {
        cordoned: Some(cordoned),
    };
    let view = context
        .client()?
        .change_hypervisor(&args.node, &change)
        .await?;
    if args.json {
        context.term.json(&view)?;
    } else if cordoned {
        let there = count(view.machines as usize, "machine");
        let text = format!(
            "{} is cordoned: nothing new is put on it. {there} on it stay: their disks are there, and \
             cannot be moved while they run",
            view.node
        );
        context.term.line(&text)?;
    } else {
        let text = format!("{} takes new machines again", view.node);
        context.term.line(&text)?;
    }
    Ok(0)
}

/// The table, and under it what should be looked at.
#[must_use]
pub fn render(all: &[HypervisorView], paint: Paint, width: usize) -> String {
    let heads = &[
        "NODE", "STATE", "TYPE", "MACHINES", "CPUS", "MEMORY", "DISK", "UNKNOWN",
    ];
    let mut table = Table::new(heads);
    for one in all {
        let (state, tone) = match (one.connected, one.cordoned, &one.problem) {
            (false, _, _) => ("away", Tone::Bad),
            (true, _, Some(_)) => ("problem", Tone::Bad),
            (true, _, None) if one.draining && one.running > 0 => ("draining", Tone::Odd),
            (true, _, None) if one.draining => ("drained", Tone::Odd),
            (true, true, None) => ("cordoned", Tone::Odd),
            (true, false, None) if one.capacity.is_none() => ("silent", Tone::Odd),
            (true, false, None) => ("up", Tone::Good),
        };
        let kind = match one.virtualisation {
            Some(Virtualisation::Kvm) => "kvm",
            Some(Virtualisation::Qemu) => "qemu",
            Some(Virtualisation::Memory) => "memory",
            None => "-",
        };
        let of = |given: String, all: Option<String>| match all {
            Some(all) => format!("{given} of {all}"),
            None => given,
        };
        let has = one.capacity;
        table.row([
            one.node.as_str().into(),
            Cell::toned(state, tone),
            kind.into(),
            one.machines.to_string().into(),
            of(
                one.cpus_given.to_string(),
                has.map(|has| has.cpus.to_string()),
            )
            .into(),
            of(
                one.memory_given.to_string(),
                has.map(|has| has.memory.to_string()),
            )
            .into(),
            of(
                one.disk_given.to_string(),
                has.map(|has| has.disk.to_string()),
            )
            .into(),
            one.unknown.len().to_string().into(),
        ]);
    }
    let mut out = table.render(paint, width);
    for one in all {
        if let Some(problem) = &one.problem {
            let problem = muster_protocol::text::printable_line(problem);
            out.push_str(&format!(
                "{} {problem}\n",
                paint.odd(&format!("{}:", one.node))
            ));
        }
    }
    out.push_str(&format!("{}\n", count(all.len(), "hypervisor")));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::vm::{Capacity, Size};

    #[test]
    fn the_list_says_what_is_given_and_what_is_wrong() {
        let view = |name: &str| HypervisorView {
            node: name.parse().expect("name"),
            connected: true,
            heard: None,
            cordoned: false,
            draining: false,
            virtualisation: Some(Virtualisation::Qemu),
            capacity: Some(Capacity {
                cpus: 8,
                memory: Size(16 << 30),
                disk: Size(100 << 30),
                disk_free: Size(1 << 30),
            }),
            cpus_given: 10,
            memory_given: Size(6 << 30),
            disk_given: Size(30 << 30),
            pool: None,
            machines: 3,
            running: 2,
            unknown: vec!["old".into()],
            problem: None,
        };
        let mut all: Vec<_> = (1..=5).map(|n| view(&format!("hv-{n}"))).collect();
        for one in &mut all[3..] {
            (one.cordoned, one.draining) = (true, true);
        }
        all[4].running = 0;
        all[1].cordoned = true;
        all[2].problem = Some("libvirt does not answer\u{1b}[31m".into());
        insta::assert_snapshot!(render(&all, Paint::plain(), 120), @r"
        NODE  STATE     TYPE  MACHINES  CPUS     MEMORY         DISK             UNKNOWN
        hv-1  up        qemu  3         10 of 8  6GiB of 16GiB  30GiB of 100GiB  1
        hv-2  cordoned  qemu  3         10 of 8  6GiB of 16GiB  30GiB of 100GiB  1
        hv-3  problem   qemu  3         10 of 8  6GiB of 16GiB  30GiB of 100GiB  1
        hv-4  draining  qemu  3         10 of 8  6GiB of 16GiB  30GiB of 100GiB  1
        hv-5  drained   qemu  3         10 of 8  6GiB of 16GiB  30GiB of 100GiB  1
        hv-3: libvirt does not answer\x1b[31m
        5 hypervisors
        ");
    }
}
