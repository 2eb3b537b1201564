//! `muster group`

mod say;
mod set;

use clap::{Args, Subcommand, ValueEnum};
use muster_protocol::api::{AddRule, CreateGroup, RollbackGroup};
use muster_protocol::firewall::{Comment, Direction, Peer, RuleId, Traffic};
use muster_protocol::names::{AccountName, GroupName, LabelKey, LabelValue};

pub(super) use self::say::in_force;
use self::say::{card, changed, table, versions};
pub use self::set::SetArgs;
pub(super) use self::set::run as run_set;
use crate::Context;
use crate::failure::Failure;
use crate::verbs::listed::{ListArgs, listed};

/// Arguments of `muster group`.
#[derive(Args, Debug)]
pub struct GroupArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: GroupVerb,
}

/// What can be done with security groups.
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// Make a group without rules
    Create(CreateArgs),
    /// List groups
    List(ListArgs),
    /// Its rules, who is in it, and which groups name it
    Show(OneArgs),
    /// Remove a group that no machine is in and no rule names
    Remove(RemoveArgs),
    /// Let something pass
    Allow(AllowArgs),
    /// Take a rule away; what it had allowed ends
    Deny(DenyArgs),
    /// Its versions: who changed what
    History(OneArgs),
    /// Make its rules as they were
    Rollback(RollbackArgs),
}

/// Arguments of `muster group create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: GroupName,
    /// Whose it is
    #[arg(long, value_name = "ACCOUNT")]
    pub account: Option<AccountName>,
    /// A label of it; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = crate::verbs::label)]
    pub labels: Vec<(LabelKey, LabelValue)>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// A group.
#[derive(Args, Debug)]
pub struct OneArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: GroupName,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster group remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: GroupName,
}

/// Which way.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Way {
    /// To the machines of the group
    Ingress,
    /// From the machines of the group
    Egress,
}

const AFTER: &str = "\
What passes is what some rule of some group of a machine allows, and what answers that. Nothing else
gets in. Everything gets out, until a group of the machine has an egress rule.

Traffic is any, tcp [PORTS], udp [PORTS], icmp [TYPE[/CODE]], icmpv6 [TYPE[/CODE]] or proto NUMBER.

Examples:
  muster group allow web ingress tcp 80,443
  muster group allow web ingress tcp 8000-8999 --from group:lb
  muster group allow db ingress icmp 8 --from set:office --comment 'the office looks'
  muster group allow db egress udp 53 --to 192.0.2.53";

/// Arguments of `muster group allow`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct AllowArgs {
    /// The group
    #[arg(value_name = "NAME")]
    pub name: GroupName,
    /// Which way
    #[arg(value_name = "DIRECTION")]
    pub direction: Way,
    /// What
    #[arg(value_name = "TRAFFIC", required = true, num_args = 1..=2)]
    pub traffic: Vec<String>,
    /// From whom: any, a prefix, group:NAME or set:NAME [default: any]
    #[arg(long, value_name = "WHO", conflicts_with = "to")]
    pub from: Option<Peer>,
    /// To whom: any, a prefix, group:NAME or set:NAME [default: any]
    #[arg(long, value_name = "WHO")]
    pub to: Option<Peer>,
    /// What people should remember of it
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<Comment>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster group deny`.
#[derive(Args, Debug)]
pub struct DenyArgs {
    /// The group
    #[arg(value_name = "NAME")]
    pub name: GroupName,
    /// The number of the rule, as `muster group show` says it
    #[arg(value_name = "RULE")]
    pub rule: RuleId,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster group rollback`.
#[derive(Args, Debug)]
pub struct RollbackArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: GroupName,
    /// To this version [default: the one before the newest]
    #[arg(long, value_name = "VERSION")]
    pub to: Option<u32>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: GroupArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let term = &context.term;
    match args.verb {
        GroupVerb::Create(args) => {
            let group = CreateGroup {
                name: args.name,
                account: args.account,
                labels: args.labels.into_iter().collect(),
            };
            changed(context, &client.create_group(&group).await?, args.json)
        }
        GroupVerb::List(args) => {
            let all = client.groups().await?;
            let none = "no groups yet: `muster group create` makes one";
            listed(context, &args, &all, none, |all| {
                table(all, term.out, term.width)
            })?;
            Ok(0)
        }
        GroupVerb::Show(args) => {
            let view = client.group(&args.name).await?;
            if args.json {
                term.json(&view)?;
            } else {
                term.say(&card(&view, term.out, term.width))?;
            }
            Ok(0)
        }
        GroupVerb::Remove(args) => {
            client.remove_group(&args.name).await?;
            term.line(&format!("group {} is removed", args.name))?;
            Ok(0)
        }
        GroupVerb::Allow(args) => {
            let rule = rule(&args)?;
            let answer = client.allow(&args.name, &rule).await?;
            changed(context, &answer, args.json)
        }
        GroupVerb::Deny(args) => {
            let answer = client.deny(&args.name, args.rule).await?;
            changed(context, &answer, args.json)
        }
        GroupVerb::History(args) => {
            let all = client.group_history(&args.name).await?;
            if args.json {
                term.json(&all)?;
            } else {
                term.say(&versions(&all, term.out, term.width))?;
            }
            Ok(0)
        }
        GroupVerb::Rollback(args) => {
            let to = RollbackGroup { to: args.to };
            let answer = client.rollback_group(&args.name, &to).await?;
            changed(context, &answer, args.json)
        }
    }
}

/// What is to be allowed.
fn rule(args: &AllowArgs) -> Result<AddRule, Failure> {
    let text = args.traffic.join(" ");
    let traffic: Traffic = text
        .parse()
        .map_err(|e: muster_protocol::firewall::TrafficError| Failure::usage(e.to_string()))?;
    let (direction, peer, other) = match args.direction {
        Way::Ingress => (Direction::Ingress, &args.from, &args.to),
        Way::Egress => (Direction::Egress, &args.to, &args.from),
    };
    if other.is_some() {
        let text = match direction {
            Direction::Ingress => "ingress comes from somebody; write --from in place of --to",
            Direction::Egress => "egress goes to somebody; write --to in place of --from",
        };
        return Err(Failure::usage(text));
    }
    Ok(AddRule {
        direction,
        traffic,
        peer: peer.clone().unwrap_or(Peer::Any),
        comment: args.comment.clone(),
    })
}
