//! `muster restore`

use std::path::PathBuf;

use clap::Args;
use muster_broker::backup::restore::{RestoreError, restore};
use muster_broker::state_dir::StateDirError;
use serde_json::json;

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::ui::count;

/// Arguments of `muster restore`.
#[derive(Args, Debug)]
#[command(after_help = "\
Needs no network and no broker. First end the old broker for ever. Then start the new one on the
directory with `muster up --state DIR` or `muster broker --config DIR/broker.toml`, with an empty
NATS server: it puts the rest of the backup there before it does anything else.")]
pub struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// State directory to make: empty, or not there
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Does it.
///
/// # Errors
/// [`Failure`]; nothing was written then.
pub fn run(context: &Context, args: &RestoreArgs) -> Result<u8, Failure> {
    let done = restore(&args.file, &args.state).map_err(|error| {
        let code = match &error {
            RestoreError::Open { .. } | RestoreError::State(StateDirError::Io { .. }) => NOT_ALL,
            _ => crate::failure::USAGE,
        };
        match error.to_string().split_once("; ") {
            Some((message, hint)) => Failure::new(code, message).hint(hint),
            None => Failure::new(code, error.to_string()),
        }
    })?;
    if args.json {
        context.term.json(&json!({
            "type": "restored",
            "state": args.state,
            "cluster": done.head.cluster,
            "made": done.head.made,
            "leap": done.plan.leap,
            "parts": done.manifest.parts,
        }))?;
        return Ok(0);
    }
    context.term.line(&format!(
        "{}: cluster {} as it was at {}, {}",
        args.state.display(),
        done.head.cluster,
        muster_protocol::units::Timestamp::from(done.head.made),
        count(done.manifest.parts.len(), "part"),
    ))?;
    context.term.note(&format!(
        "what comes next:\n\
         - the old broker must never run again\n\
         - start this one with an empty NATS server: muster up --state {}\n\
         - nodes that enrolled after the backup are refused; `muster events` names them: enrol them again\n\
         - nodes, tokens and invites that were removed after the backup are back: remove them again",
        args.state.display()
    ));
    Ok(0)
}
