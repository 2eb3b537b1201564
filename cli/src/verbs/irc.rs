//! `muster irc`

use clap::{Args, Subcommand};
use muster_protocol::api::ChatDeviceRequest;

use crate::Context;
use crate::failure::Failure;

/// Arguments of `muster irc`.
#[derive(Args, Debug)]
pub struct IrcArgs {
    #[command(subcommand)]
    command: IrcCommand,
}

#[derive(Debug, Subcommand)]
enum IrcCommand {
    /// A one-time code that ties you to who you are in a network without accounts
    #[command(after_help = "\
Write `link CODE` to the bot, in a private message, within ten minutes. You are yourself there
until you leave, change your nick, or the bot loses sight of you: to read. What changes anything
needs the code of a device as well (`muster irc totp`).")]
    Link {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// A device of yours whose codes show that it is you
    #[command(after_help = "\
The secret is shown once: type it into an app for one-time codes, or make a picture of the URL
with a program on this machine. In a chat, add `--code 123456` to what changes anything.")]
    Totp {
        /// In place of the device before
        #[arg(long, conflicts_with = "remove")]
        replace: bool,
        /// End the device: its codes count no more
        #[arg(long)]
        remove: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: IrcArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    match args.command {
        IrcCommand::Link { json } => {
            let link = client.chat_link().await?;
            if json {
                context.term.json(&link)?;
                return Ok(0);
            }
            context.term.say(&format!(
                "link {}\n\nwrite that to the bot in a private message, once, before {}\n",
                link.code,
                link.until.strftime("%H:%M UTC")
            ))?;
        }
        IrcCommand::Totp { remove: true, .. } => {
            client.remove_chat_device().await?;
            context
                .term
                .say("the device is ended: its codes count no more\n")?;
        }
        IrcCommand::Totp { replace, json, .. } => {
            let request = ChatDeviceRequest { replace };
            let device = client.add_chat_device(&request).await?;
            if json {
                context.term.json(&device)?;
                return Ok(0);
            }
            context.term.say(&format!(
                "secret  {}\nurl     {}\n\nit is shown this once; with it, add --code and six digits to a line in a chat\n",
                device.secret, device.url
            ))?;
        }
    }
    Ok(0)
}
