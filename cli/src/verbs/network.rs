//! `muster network`

use std::net::IpAddr;

use clap::{Args, Subcommand};
use muster_protocol::api::{NetworkView, PutNetwork};
use muster_protocol::names::{BridgeName, LabelKey, LabelValue, LanName};

use crate::Context;
use crate::failure::Failure;
use crate::ui::Paint;
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::thousands;
use crate::ui::time::moment;
use crate::verbs::listed::{ListArgs, listed};

/// Arguments of `muster network`.
#[derive(Args, Debug)]
pub struct NetworkArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: NetworkVerb,
}

/// What can be done with networks.
#[derive(Debug, Subcommand)]
pub enum NetworkVerb {
    /// Make a network, or change one: --replace
    Add(AddArgs),
    /// List networks, and how many of their addresses are in use
    List(ListArgs),
    /// Everything known of a network, and which machine has which address
    Show(ShowArgs),
    /// Remove a network that no machine is in
    Remove(RemoveArgs),
}

const AFTER: &str = "\
A machine gets one address of each family that has a pool. The addresses of a subnet itself, of all
its hosts, and of gateways and name servers are never given.

Examples:
  muster network add public --bridge br0 --pool 192.0.2.0/24 --gateway 192.0.2.1 --dns 9.9.9.9
  muster network add both --bridge br0 --pool 192.0.2.10-192.0.2.99/24 --pool 2001:db8::/64 --gateway fe80::1";

/// Arguments of `muster network add`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct AddArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: LanName,
    /// The bridge that it is on each hypervisor
    #[arg(long, value_name = "BRIDGE")]
    pub bridge: BridgeName,
    /// Addresses for machines: 192.0.2.0/24, or 192.0.2.10-192.0.2.99/24; may be repeated
    #[arg(long = "pool", value_name = "POOL", required = true)]
    pub pools: Vec<String>,
    /// A way out, one of each family at most
    #[arg(long = "gateway", value_name = "ADDRESS")]
    pub gateways: Vec<IpAddr>,
    /// A name server; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<IpAddr>,
    /// An address that is never given; may be repeated
    #[arg(long = "reserve", value_name = "ADDRESS")]
    pub reserved: Vec<IpAddr>,
    /// The largest packet [default: 1500]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// A label of it; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = crate::verbs::label)]
    pub labels: Vec<(LabelKey, LabelValue)>,
    /// Take the place of the network of that name; addresses that are in use stay so
    #[arg(long)]
    pub replace: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster network show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: LanName,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster network remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: LanName,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: NetworkArgs) -> Result<u8, Failure> {
    match args.verb {
        NetworkVerb::Add(args) => add(context, args).await,
        NetworkVerb::List(args) => list(context, &args).await,
        NetworkVerb::Show(args) => show(context, &args).await,
        NetworkVerb::Remove(args) => {
            context.client()?.remove_network(&args.name).await?;
            let text = format!("network {} is removed", args.name);
            context.term.line(&text)?;
            Ok(0)
        }
    }
}

async fn add(context: &Context, args: AddArgs) -> Result<u8, Failure> {
    let network = PutNetwork {
        bridge: args.bridge,
        pools: args.pools,
        gateways: args.gateways,
        dns: args.dns,
        reserved: args.reserved,
        mtu: args.mtu,
        labels: args.labels.into_iter().collect(),
        replace: args.replace,
    };
    let view = context.client()?.put_network(&args.name, &network).await?;
    if args.json {
        context.term.json(&view)?;
    } else {
        context.term.line(&format!(
            "network {}: {} on {}, {}",
            view.name,
            view.pools.join(", "),
            view.bridge,
            free(&view)
        ))?;
    }
    Ok(0)
}

/// `253 addresses free`.
fn free(view: &NetworkView) -> String {
    match view.free {
        u32::MAX => "more addresses free than anybody counts".to_owned(),
        1 => "1 address free".to_owned(),
        free => format!("{} addresses free", thousands(free.into())),
    }
}

async fn list(context: &Context, args: &ListArgs) -> Result<u8, Failure> {
    let all = context.client()?.networks().await?;
    let none = "no networks yet: `muster network add` makes one";
    let term = &context.term;
    listed(context, args, &all, none, |all| {
        table(all, term.out, term.width)
    })?;
    Ok(0)
}

fn table(all: &[NetworkView], paint: Paint, width: usize) -> String {
    let mut table = Table::new(&["NAME", "BRIDGE", "USED", "FREE", "POOLS", "GATEWAYS"]);
    for view in all {
        let free = match view.free {
            0 => Cell::toned("0", Tone::Bad),
            u32::MAX => "many".into(),
            free => thousands(free.into()).into(),
        };
        table.row([
            view.name.to_string().into(),
            view.bridge.to_string().into(),
            thousands(view.used.into()).into(),
            free,
            view.pools.join(", ").into(),
            dash(&view.gateways).into(),
        ]);
    }
    table.render(paint, width)
}

fn none_or(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

fn dash(all: &[IpAddr]) -> String {
    match all {
        [] => "-".to_owned(),
        all => all
            .iter()
            .map(IpAddr::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

async fn show(context: &Context, args: &ShowArgs) -> Result<u8, Failure> {
    let view = context.client()?.network(&args.name).await?;
    if args.json {
        context.term.json(&view)?;
    } else {
        context
            .term
            .say(&shown(&view, context.term.out, context.term.width))?;
    }
    Ok(0)
}

fn shown(view: &NetworkView, paint: Paint, width: usize) -> String {
    let mut out = String::new();
    let mtu = view
        .mtu
        .map_or_else(|| "1500".to_owned(), |mtu| mtu.to_string());
    for (what, value) in [
        ("network", view.name.to_string()),
        ("bridge", view.bridge.to_string()),
        ("pools", view.pools.join(", ")),
        ("gateways", dash(&view.gateways)),
        ("dns", dash(&view.dns)),
        ("reserved", dash(&view.reserved)),
        ("mtu", mtu),
        ("labels", none_or(crate::verbs::labels(&view.labels))),
        (
            "in use",
            format!("{}; {}", thousands(view.used.into()), free(view)),
        ),
        ("made", format!("{} by {}", moment(view.made), view.by)),
    ] {
        let line = format!("{what:<10}{value}");
        out.push_str(&muster_protocol::text::printable_line(&line));
        out.push('\n');
    }
    if !view.addresses.is_empty() {
        let mut table = Table::new(&["ADDRESS", "MACHINE"]);
        for (address, machine) in &view.addresses {
            table.row([address.to_string().into(), machine.to_string().into()]);
        }
        out.push('\n');
        out.push_str(&table.render(paint, width));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn view(used: u32, free: u32) -> NetworkView {
        serde_json::from_value(json!({
            "name": "public", "bridge": "br0", "pools": ["192.0.2.0/24", "2001:db8::/64"],
            "gateways": ["192.0.2.1", "fe80::1"], "dns": [], "reserved": ["192.0.2.9"],
            "used": used, "free": free, "by": "ana", "made": "2026-11-22T10:00:00Z",
            "addresses": [["192.0.2.2", "web-01"], ["2001:db8::1", "web-01"]],
        }))
        .expect("a network")
    }

    #[test]
    fn a_network_is_shown_with_who_is_in_it() {
        insta::assert_snapshot!(shown(&view(2, 251), Paint::plain(), 100), @"
        network   public
        bridge    br0
        pools     192.0.2.0/24, 2001:db8::/64
        gateways  192.0.2.1, fe80::1
        dns       -
        reserved  192.0.2.9
        mtu       1500
        labels    -
        in use    2; 251 addresses free
        made      2026-11-22 10:00:00 by ana

        ADDRESS      MACHINE
        192.0.2.2    web-01
        2001:db8::1  web-01
        ");
    }

    #[test]
    fn networks_are_a_table() {
        let all = [view(2, 251), view(0, u32::MAX), view(253, 0)];
        insta::assert_snapshot!(table(&all, Paint::plain(), 100), @"
        NAME    BRIDGE  USED  FREE  POOLS                        GATEWAYS
        public  br0     2     251   192.0.2.0/24, 2001:db8::/64  192.0.2.1, fe80::1
        public  br0     0     many  192.0.2.0/24, 2001:db8::/64  192.0.2.1, fe80::1
        public  br0     253   0     192.0.2.0/24, 2001:db8::/64  192.0.2.1, fe80::1
        ");
    }
}
