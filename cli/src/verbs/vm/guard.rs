//! `muster vm group` and `muster vm address-pair`

use clap::{Args, ValueEnum};
use muster_protocol::api::{ChangeVmGroups, ChangeVmPairs, VmGuarded};
use muster_protocol::firewall::{AddressPair, Peer};
use muster_protocol::names::{GroupName, VmName};
use muster_protocol::vm::Mac;

use crate::Context;
use crate::failure::Failure;
use crate::verbs::group::in_force;

/// What is done.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum What {
    /// It comes
    Add,
    /// It goes
    Remove,
}

/// Arguments of `muster vm group`.
#[derive(Args, Debug)]
pub struct GroupArgs {
    /// The machine
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// Put it in groups, or take it out
    #[arg(value_name = "ADD|REMOVE")]
    pub what: What,
    /// Groups
    #[arg(value_name = "GROUP", required = true)]
    pub groups: Vec<GroupName>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster vm address-pair`.
#[derive(Args, Debug)]
pub struct PairArgs {
    /// The machine
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// Let it use them, or not any more
    #[arg(value_name = "ADD|REMOVE")]
    pub what: What,
    /// A prefix, or an address
    #[arg(value_name = "PREFIX")]
    pub prefix: Peer,
    /// With this hardware address [default: its own]
    #[arg(long, value_name = "MAC")]
    pub mac: Option<Mac>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

pub(super) async fn groups(context: &Context, args: GroupArgs) -> Result<u8, Failure> {
    let change = match args.what {
        What::Add => ChangeVmGroups {
            add: args.groups,
            ..ChangeVmGroups::default()
        },
        What::Remove => ChangeVmGroups {
            remove: args.groups,
            ..ChangeVmGroups::default()
        },
    };
    let client = context.client()?;
    let view = client.change_vm_groups(&args.name, &change).await?;
    said(context, &view, args.json)
}

pub(super) async fn pairs(context: &Context, args: PairArgs) -> Result<u8, Failure> {
    let Peer::Prefix(prefix) = args.prefix else {
        return Err(Failure::usage(
            "a machine uses addresses; give a prefix, or an address",
        ));
    };
    let pair = AddressPair {
        prefix,
        mac: args.mac,
    };
    let change = match args.what {
        What::Add => ChangeVmPairs {
            add: vec![pair],
            ..ChangeVmPairs::default()
        },
        What::Remove => ChangeVmPairs {
            remove: vec![pair],
            ..ChangeVmPairs::default()
        },
    };
    let client = context.client()?;
    let view = client.change_vm_pairs(&args.name, &change).await?;
    said(context, &view, args.json)
}

fn said(context: &Context, view: &VmGuarded, json: bool) -> Result<u8, Failure> {
    if json {
        context.term.json(view)?;
    } else {
        context.term.line(&sentence(view))?;
    }
    Ok(0)
}

/// `web-03 is in web, lb; in force on 2 of 2 hypervisors`.
fn sentence(view: &VmGuarded) -> String {
    let groups: Vec<&str> = view.groups.iter().map(|group| group.as_str()).collect();
    let mut text = if groups.is_empty() {
        format!("{} is in no group", view.name)
    } else {
        format!("{} is in {}", view.name, groups.join(", "))
    };
    if !view.pairs.is_empty() {
        text.push_str(&format!(", and may use {}", pairs_of(&view.pairs)));
    }
    format!("{text}; {}", in_force(&view.force))
}

/// `192.0.2.0/28, 198.51.100.7/32 with 52:54:00:00:00:01`.
pub(super) fn pairs_of(pairs: &[AddressPair]) -> String {
    let one = |pair: &AddressPair| match pair.mac {
        Some(mac) => format!("{} with {mac}", pair.prefix),
        None => pair.prefix.to_string(),
    };
    pairs.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_machine_is_said_with_what_it_may() {
        let said =
            |view: serde_json::Value| sentence(&serde_json::from_value(view).expect("a machine"));
        insta::assert_snapshot!(
            said(json!({"name": "web-03", "groups": ["lb", "web"], "force": {"of": 2, "on": 2}})),
            @"web-03 is in lb, web; in force on 2 of 2 hypervisors"
        );
        insta::assert_snapshot!(
            said(json!({"name": "web-03", "groups": [], "force": {"of": 1, "on": 0, "waiting": ["hv-1"]},
                "pairs": [{"prefix": "192.0.2.0/28"}, {"prefix": "192.0.2.77/32", "mac": "52:54:00:00:00:01"}]})),
            @"web-03 is in no group, and may use 192.0.2.0/28, 192.0.2.77/32 with 52:54:00:00:00:01; in force on 0 of 1 hypervisor; waits for hv-1"
        );
    }
}
