//! `muster vm plan`

use std::path::{Path, PathBuf};

use clap::Args;
use muster_client::Client;
use muster_protocol::api::{NetworkView, VmView};
use muster_protocol::names::LanName;

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::input;
use crate::stack::{Asked, MAX_FILE, MAX_LOADED, Plan, Stack, There, read, render};
use crate::ui::count;
use crate::verbs::scenario::rendered;

const AFTER: &str = "\
Lines begin with + (to make), ~ (to change), - (in the file no more), = (as in the file) and
! (cannot be as in the file). Exit code 0, with --check 1 when something is to be done or cannot be.

Examples:
  muster vm plan shop.toml
  muster vm plan shop.toml --env test --var web_count=1 --check";

/// A file of machines, and what its variables are.
#[derive(Args, Debug)]
pub struct StackArgs {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// With the variables of [env.ENV]
    #[arg(long, value_name = "ENV")]
    pub env: Option<String>,
    /// A variable; may be repeated
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    pub vars: Vec<(String, String)>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it like web_count=3")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Arguments of `muster vm plan`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct PlanArgs {
    /// What of.
    #[command(flatten)]
    pub stack: StackArgs,
    /// As `muster vm apply --prune` would do it
    #[arg(long)]
    pub prune: bool,
    /// Exit code 1 when something is to be done, or cannot be as in the file
    #[arg(long)]
    pub check: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

impl StackArgs {
    /// The stack that the file says.
    ///
    /// # Errors
    /// What is wrong with it, each thing with its place.
    pub(super) fn read(&self, context: &Context, json: bool) -> Result<Stack, Failure> {
        let name = self.file.display().to_string();
        let text = input::text(&self.file, MAX_FILE).map_err(Failure::usage)?;
        let dir = self.file.parent().unwrap_or(Path::new(""));
        let asked = Asked {
            env: self.env.clone(),
            vars: self.vars.clone(),
        };
        let load = |path: &str| input::text(&dir.join(path), MAX_LOADED);
        read(&name, &text, &asked, &load).map_err(|faults| {
            if json {
                let value = serde_json::json!({ "file": name, "errors": faults });
                if let Err(failure) = context.term.json(&value) {
                    return failure;
                }
            } else {
                let text = rendered(&faults, context.term.err);
                context.term.note(text.trim_end());
            }
            let errors = count(faults.len(), "error");
            Failure::usage(format!("{errors} in {name}; nothing was done"))
        })
    }
}

/// What there is.
pub(super) struct Found {
    vms: Vec<VmView>,
    deleted: Vec<VmView>,
    networks: Vec<NetworkView>,
}

impl Found {
    /// Asks the broker.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn ask(client: &Client) -> Result<Self, Failure> {
        Ok(Self {
            vms: client.vms(None, false).await?,
            deleted: client.vms(None, true).await?,
            networks: client.networks().await?,
        })
    }

    /// The network of a name, as it was when this was asked.
    pub(super) fn network(&self, name: &LanName) -> Option<&NetworkView> {
        self.networks.iter().find(|view| view.name == *name)
    }

    /// What is to be done.
    pub(super) fn plan(&self, stack: &Stack) -> Plan {
        let there = There {
            vms: &self.vms,
            deleted: &self.deleted,
            networks: &self.networks,
        };
        Plan::of(stack, there)
    }
}

/// Says what is to be done.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(context: &Context, args: &PlanArgs) -> Result<u8, Failure> {
    let stack = args.stack.read(context, args.json)?;
    let client = context.client()?;
    let plan = Found::ask(&client).await?.plan(&stack);
    if args.json {
        context.term.json(&plan)?;
    } else {
        let file = args.stack.file.display().to_string();
        let text = render(&plan, &file, args.prune, context.term.out);
        context.term.say(&text)?;
    }
    let open = plan.has_work(args.prune) || plan.stays_otherwise();
    Ok(if args.check && open { NOT_ALL } else { 0 })
}
