//! `muster bot`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use muster_broker::hooks::file;
use muster_protocol::chat::alias::Aliases;
use muster_protocol::chat::command;
use muster_protocol::names::NetworkName;
use muster_protocol::text::printable;
use serde_json::json;

use crate::Context;
use crate::failure::Failure;

/// Arguments of `muster bot`.
#[derive(Args, Debug)]
pub struct BotArgs {
    #[command(subcommand)]
    command: BotCommand,
}

#[derive(Debug, Subcommand)]
enum BotCommand {
    /// How a line in a chat would be understood; nothing is done
    #[command(after_help = "\
Needs no server. Aliases are those of --hooks; what the names of scenarios and nodes mean, and
whether the account may do it, only a broker can say.

Examples:
  muster bot say '!deploy 1.4.2 --on zone=gva2' --as ana --dry-run --hooks hooks.toml
  muster bot say '!cmd role=web -- uptime' --as ana --dry-run")]
    Say(SayArgs),
}

#[derive(Args, Debug)]
struct SayArgs {
    /// The line, as it is typed
    #[arg(value_name = "TEXT")]
    text: String,
    /// The services account that says it
    #[arg(long = "as", value_name = "ACCOUNT")]
    account: String,
    /// In which network
    #[arg(long, value_name = "NETWORK", default_value = "irc")]
    network: NetworkName,
    /// Only say how it is understood: it is the one thing that this does
    #[arg(long, required = true)]
    dry_run: bool,
    /// The file with webhooks, triggers, routes and aliases
    #[arg(long, value_name = "FILE")]
    hooks: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub fn run(context: &Context, args: &BotArgs) -> Result<u8, Failure> {
    let BotCommand::Say(args) = &args.command;
    let aliases = match &args.hooks {
        None => Aliases::default(),
        Some(path) => {
            let (declared, _) = file::load(path);
            declared
                .map_err(|error| Failure::usage(error.to_string()))?
                .aliases
        }
    };
    let line = args.text.trim();
    let line = line.strip_prefix('!').unwrap_or(line);
    let said = command::read(line, &aliases, std::iter::empty())
        .map_err(|error| Failure::usage(printable(&error.to_string(), 600)))?;
    let spelled = said.command.spelled();
    let account = printable(&args.account, 80);
    if args.json {
        context.term.json(&json!({
            "account": format!("{}:{account}", args.network),
            "verb": said.command.verb(),
            "alias": said.alias,
            "code": said.code.is_some(),
            "understood": spelled,
        }))?;
        return Ok(0);
    }
    let mut out = format!("as the account {account} of {}\n", args.network);
    if let Some(alias) = &said.alias {
        out.push_str(&format!("by the alias {alias}\n"));
    }
    if said.code.is_some() {
        out.push_str("with the code of a device\n");
    }
    for line in spelled {
        out.push_str(&line);
        out.push('\n');
    }
    context.term.say(&out)?;
    Ok(0)
}
