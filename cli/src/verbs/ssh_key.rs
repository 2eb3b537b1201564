//! `muster ssh-key`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use muster_protocol::api::{PutSshKey, SshKeyView};
use muster_protocol::names::SshKeyName;
use muster_protocol::vm::{SshKey, SshKeyError};

use crate::Context;
use crate::failure::Failure;
use crate::input;
use crate::ui::Paint;
use crate::ui::table::Table;
use crate::ui::time::moment;
use crate::verbs::listed::{ListArgs, listed};

/// Arguments of `muster ssh-key`.
#[derive(Args, Debug)]
pub struct SshKeyArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: SshKeyVerb,
}

/// What can be done with public keys.
#[derive(Debug, Subcommand)]
pub enum SshKeyVerb {
    /// Keep a public key under a name, for `muster vm create --ssh-key NAME`
    Add(AddArgs),
    /// List public keys, with their fingerprints
    List(ListArgs),
    /// Show a public key
    Show(ShowArgs),
    /// Forget a public key; machines that were made with it keep it
    Remove(RemoveArgs),
}

/// Arguments of `muster ssh-key add`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  muster ssh-key add ana ~/.ssh/id_ed25519.pub")]
pub struct AddArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: SshKeyName,
    /// The file of one public key
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster ssh-key show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: SshKeyName,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster ssh-key remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: SshKeyName,
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: SshKeyArgs) -> Result<u8, Failure> {
    let term = &context.term;
    match args.verb {
        SshKeyVerb::Add(args) => {
            let key = key_of(&args.file)?;
            let client = context.client()?;
            let view = client.put_ssh_key(&args.name, &PutSshKey { key }).await?;
            if args.json {
                term.json(&view)?;
            } else {
                let text = format!("ssh key {}: {}", view.name, view.fingerprint);
                term.line(&text)?;
            }
        }
        SshKeyVerb::List(args) => {
            let all = context.client()?.ssh_keys().await?;
            let none = "no ssh keys yet: `muster ssh-key add` keeps one";
            listed(context, &args, &all, none, |all| {
                table(all, term.out, term.width)
            })?;
        }
        SshKeyVerb::Show(args) => {
            let view = context.client()?.ssh_key(&args.name).await?;
            if args.json {
                term.json(&view)?;
            } else {
                term.say(&shown(&view))?;
            }
        }
        SshKeyVerb::Remove(args) => {
            context.client()?.remove_ssh_key(&args.name).await?;
            term.line(&format!("ssh key {} is removed", args.name))?;
        }
    }
    Ok(0)
}

/// The one key of a file. A private one leaves this machine in no case, and
/// is in no message.
fn key_of(file: &std::path::Path) -> Result<SshKey, Failure> {
    let shown = file.display();
    let text = input::text(file, input::MAX_KEYS).map_err(Failure::usage)?;
    let lines = text.lines().map(str::trim);
    let keys: Vec<&str> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    let key = match keys.as_slice() {
        // What it is is said better of the whole text.
        _ if muster_protocol::vm::is_private_key(&text) => Err(SshKeyError::Private),
        [one] => one.parse(),
        [] => Err(SshKeyError::Shape),
        _ => Err(SshKeyError::Lines),
    };
    key.map_err(|error| {
        let text = error.to_string();
        match text.split_once("; ") {
            Some((what, hint)) => Failure::usage(format!("{shown}: {what}")).hint(hint),
            None => Failure::usage(format!("{shown}: {text}")),
        }
    })
}

fn table(all: &[SshKeyView], paint: Paint, width: usize) -> String {
    let mut table = Table::new(&["NAME", "KIND", "FINGERPRINT", "COMMENT", "ADDED", "BY"]);
    for view in all {
        table.row([
            view.name.to_string().into(),
            view.key.kind().into(),
            view.fingerprint.as_str().into(),
            view.key.comment().into(),
            moment(view.added).into(),
            view.by.to_string().into(),
        ]);
    }
    table.render(paint, width)
}

fn shown(view: &SshKeyView) -> String {
    let mut out = String::new();
    for (what, value) in [
        ("ssh key", view.name.to_string()),
        ("fingerprint", view.fingerprint.clone()),
        ("added", format!("{} by {}", moment(view.added), view.by)),
        ("key", view.key.to_string()),
    ] {
        let line = format!("{what:<13}{value}");
        out.push_str(&muster_protocol::text::printable_line(&line));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPFaC/9yS6fY19YIhsnforpeA/kcv2cbO3fsgdOlwEne ana@example.org";

    #[test]
    fn keys_are_a_table() {
        let view: SshKeyView = serde_json::from_value(serde_json::json!({
            "name": "ana", "key": KEY, "by": "ana", "added": "2026-11-22T10:00:00Z",
            "fingerprint": "SHA256:MKGJbuMHtJXW+8GBqGcE1i6GGpHYjP98279dOO4oYNI",
        }))
        .expect("a key");
        insta::assert_snapshot!(table(std::slice::from_ref(&view), Paint::plain(), 160), @"
        NAME  KIND         FINGERPRINT                                         COMMENT          ADDED                BY
        ana   ssh-ed25519  SHA256:MKGJbuMHtJXW+8GBqGcE1i6GGpHYjP98279dOO4oYNI  ana@example.org  2026-11-22 10:00:00  ana
        ");
        insta::assert_snapshot!(shown(&view), @"
        ssh key      ana
        fingerprint  SHA256:MKGJbuMHtJXW+8GBqGcE1i6GGpHYjP98279dOO4oYNI
        added        2026-11-22 10:00:00 by ana
        key          ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPFaC/9yS6fY19YIhsnforpeA/kcv2cbO3fsgdOlwEne ana@example.org
        ");
    }

    #[test]
    fn a_file_holds_one_public_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("key");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("written");
            key_of(&file).map_err(|failure| failure.message + failure.hint.as_deref().unwrap_or(""))
        };
        assert!(read(&format!("# hers\n{KEY}\n\n")).is_ok());
        let secret = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n-----END OPENSSH PRIVATE KEY-----\n";
        let said = read(secret).expect_err("no key");
        assert!(
            said.contains("private key") && !said.contains("b3Blbn"),
            "{said}"
        );
        for bad in ["", "# nothing\n", "hello", &format!("{KEY}\n{KEY}\n")] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
