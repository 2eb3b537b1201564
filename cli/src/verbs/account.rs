//! `muster account`

use clap::{Args, Subcommand};
use muster_protocol::api::{AccountView, PutAccount};
use muster_protocol::names::AccountName;

use crate::Context;
use crate::failure::Failure;
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::{Paint, thousands};
use crate::verbs::listed::{ListArgs, listed};

/// Arguments of `muster account`.
#[derive(Args, Debug)]
pub struct AccountArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: AccountVerb,
}

/// What can be done with accounts.
#[derive(Debug, Subcommand)]
pub enum AccountVerb {
    /// Declare an account, or change its note
    Add(AddArgs),
    /// List accounts, and what their machines have
    List(ListArgs),
    /// Forget an account that no machine is of
    Remove(RemoveArgs),
}

/// Arguments of `muster account add`.
#[derive(Args, Debug)]
#[command(after_help = "\
As long as no account is declared, a machine can be of any. Once one is, new machines are of those
alone: `muster vm create --account` takes no other name.")]
pub struct AddArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: AccountName,
    /// What people should know of it
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster account remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: AccountName,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: AccountArgs) -> Result<u8, Failure> {
    let term = &context.term;
    match args.verb {
        AccountVerb::Add(args) => {
            let put = PutAccount { note: args.note };
            let view = context.client()?.put_account(&args.name, &put).await?;
            if args.json {
                term.json(&view)?;
            } else {
                term.line(&format!("account {} is declared", view.name))?;
            }
        }
        AccountVerb::List(args) => {
            let all = context.client()?.accounts().await?;
            let none = "no accounts yet: `muster account add` declares one";
            listed(context, &args, &all, none, |all| {
                table(all, term.out, term.width)
            })?;
        }
        AccountVerb::Remove(args) => {
            context.client()?.remove_account(&args.name).await?;
            term.line(&format!("account {} is removed", args.name))?;
        }
    }
    Ok(0)
}

fn table(all: &[AccountView], paint: Paint, width: usize) -> String {
    let heads = &["NAME", "MACHINES", "CPUS", "MEMORY", "DISK", "NOTE"];
    let mut table = Table::new(heads);
    for view in all {
        let note = match (&view.declared, &view.note) {
            (None, _) => Cell::toned("not declared", Tone::Odd),
            (Some(_), note) => note.as_deref().unwrap_or("-").into(),
        };
        table.row([
            view.name.to_string().into(),
            thousands(view.machines.into()).into(),
            thousands(view.cpus.into()).into(),
            view.memory.to_string().into(),
            view.disk.to_string().into(),
            note,
        ]);
    }
    table.render(paint, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn accounts_are_a_table() {
        let view = |value| serde_json::from_value(value).expect("an account");
        let all: [AccountView; 2] = [
            view(
                json!({ "name": "acme", "note": "since 2019", "machines": 31, "cpus": 62,
                "memory": 64u64 << 30, "disk": 310u64 << 30, "by": "ana",
                "declared": "2026-11-22T10:00:00Z" }),
            ),
            view(
                json!({ "name": "old", "machines": 1, "cpus": 1, "memory": 1u64 << 30,
                "disk": 10u64 << 30 }),
            ),
        ];
        insta::assert_snapshot!(table(&all, Paint::plain(), 100), @"
        NAME  MACHINES  CPUS  MEMORY  DISK    NOTE
        acme  31        62    64GiB   310GiB  since 2019
        old   1         1     1GiB    10GiB   not declared
        ");
    }
}
