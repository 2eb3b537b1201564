//! `muster address-set`

use clap::{Args, Subcommand};
use muster_protocol::api::{PutSet, RollbackGroup, SetView};
use muster_protocol::names::SetName;

use super::say::{changed, lines, names, versions};
use crate::Context;
use crate::failure::Failure;
use crate::ui::table::Table;
use crate::ui::time::moment;
use crate::ui::{Paint, thousands};
use crate::verbs::listed::{ListArgs, listed};

/// Arguments of `muster address-set`.
#[derive(Args, Debug)]
pub struct SetArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: SetVerb,
}

/// What can be done with sets of addresses.
#[derive(Debug, Subcommand)]
pub enum SetVerb {
    /// Make a set, or change it: it has these prefixes, and no others
    Put(PutArgs),
    /// List sets
    List(ListArgs),
    /// Its prefixes, and which groups name it
    Show(OneArgs),
    /// Remove a set that no rule names
    Remove(RemoveArgs),
    /// Its versions: who changed what
    History(OneArgs),
    /// Make it as it was
    Rollback(RollbackArgs),
}

/// Arguments of `muster address-set put`.
#[derive(Args, Debug)]
#[command(after_help = "\
Rules name a set as set:NAME, and go by what it holds at any time.

Example:
  muster address-set put office 192.0.2.0/24 2001:db8:1::/48 198.51.100.7")]
pub struct PutArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: SetName,
    /// Prefixes and addresses, IPv4 and IPv6
    #[arg(value_name = "PREFIX", required = true)]
    pub prefixes: Vec<String>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// A set.
#[derive(Args, Debug)]
pub struct OneArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: SetName,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster address-set remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: SetName,
}

/// Arguments of `muster address-set rollback`.
#[derive(Args, Debug)]
pub struct RollbackArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: SetName,
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
pub async fn run(context: &Context, args: SetArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let term = &context.term;
    match args.verb {
        SetVerb::Put(args) => {
            let put = PutSet {
                prefixes: args.prefixes,
            };
            let answer = client.put_address_set(&args.name, &put).await?;
            changed(context, &answer, args.json)
        }
        SetVerb::List(args) => {
            let all = client.address_sets().await?;
            let none = "no address sets yet: `muster address-set put` makes one";
            listed(context, &args, &all, none, |all| {
                table(all, term.out, term.width)
            })?;
            Ok(0)
        }
        SetVerb::Show(args) => {
            let view = client.address_set(&args.name).await?;
            if args.json {
                term.json(&view)?;
            } else {
                term.say(&card(&view))?;
            }
            Ok(0)
        }
        SetVerb::Remove(args) => {
            client.remove_address_set(&args.name).await?;
            term.line(&format!("address set {} is removed", args.name))?;
            Ok(0)
        }
        SetVerb::History(args) => {
            let all = client.address_set_history(&args.name).await?;
            if args.json {
                term.json(&all)?;
            } else {
                term.say(&versions(&all, term.out, term.width))?;
            }
            Ok(0)
        }
        SetVerb::Rollback(args) => {
            let to = RollbackGroup { to: args.to };
            let answer = client.rollback_address_set(&args.name, &to).await?;
            changed(context, &answer, args.json)
        }
    }
}

fn table(all: &[SetView], paint: Paint, width: usize) -> String {
    let mut table = Table::new(&["NAME", "PREFIXES", "VERSION", "CHANGED"]);
    for view in all {
        table.row([
            view.name.to_string().into(),
            thousands(view.count.into()).into(),
            view.version.to_string().into(),
            format!("{} by {}", moment(view.at), view.by).into(),
        ]);
    }
    table.render(paint, width)
}

fn card(view: &SetView) -> String {
    let named_by = u32::try_from(view.named_by.len()).unwrap_or(u32::MAX);
    let mut out = lines(&[
        ("set", view.name.to_string()),
        ("named by", names(&view.named_by, named_by)),
        (
            "version",
            format!("{}, {} by {}", view.version, moment(view.at), view.by),
        ),
    ]);
    out.push('\n');
    if view.prefixes.is_empty() {
        out.push_str("no prefixes: nobody is in it\n");
    }
    for prefix in &view.prefixes {
        out.push_str(&format!("{prefix}\n"));
    }
    out
}
