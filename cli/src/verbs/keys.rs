//! `muster keys`

use clap::{Args, Subcommand};
use muster_protocol::api::Keys;
use muster_protocol::keys::{BrokerKeyState, KeyId};

use crate::Context;
use crate::failure::Failure;
use crate::ui::table::{Cell, Table, Tone};
use crate::ui::time::ago;
use crate::verbs::now;

/// Arguments of `muster keys`.
#[derive(Args, Debug)]
pub struct KeysArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: KeysVerb,
}

/// What can be done with the broker's keys.
#[derive(Debug, Subcommand)]
pub enum KeysVerb {
    /// Whom the nodes obey
    List(JsonArgs),
    /// Sign with a new key from now on; the old ones stay valid until revoked
    Rotate(JsonArgs),
    /// No node obeys this key again
    Revoke(RevokeArgs),
}

/// Only `--json`.
#[derive(Args, Debug)]
pub struct JsonArgs {
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster keys revoke`.
#[derive(Args, Debug)]
pub struct RevokeArgs {
    /// Id of the key, from `muster keys list`
    #[arg(value_name = "ID")]
    pub id: KeyId,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: KeysArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let (list, json) = match args.verb {
        KeysVerb::List(args) => (client.keys().await?, args.json),
        KeysVerb::Rotate(args) => (client.rotate_keys().await?, args.json),
        KeysVerb::Revoke(args) => (client.revoke_key(args.id).await?, args.json),
    };
    if json {
        context.term.json(&list)?;
    } else {
        context.term.say(&render(context, &list))?;
    }
    Ok(0)
}

fn render(context: &Context, list: &Keys) -> String {
    let now = now();
    let mut table = Table::new(&["KEY", "STATE", "ADDED"]);
    for key in &list.keys {
        let state = match key.state {
            BrokerKeyState::Active if key.signs => Cell::toned("active, signs", Tone::Good),
            BrokerKeyState::Active => Cell::toned("active", Tone::Good),
            BrokerKeyState::Revoked => Cell::toned("revoked", Tone::Bad),
        };
        table.row([key.id.to_string().into(), state, ago(key.added, now).into()]);
    }
    let table = table.render(context.term.out, context.term.width);
    format!(
        "{table}epoch {}  root {}\n",
        list.epoch,
        list.root.fingerprint()
    )
}
