//! `muster token`

use clap::{Args, Subcommand};
use muster_client::Reference;
use muster_protocol::api::{Role, TokenRequest};
use muster_protocol::names::PrincipalName;
use muster_protocol::units::Span;

use crate::Context;
use crate::failure::Failure;
use crate::ui::table::Table;
use crate::ui::time::{ago, moment};
use crate::verbs::now;

/// Arguments of `muster token`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: TokenVerb,
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token; it is shown once
    Create(CreateArgs),
    /// List tokens, without their secrets
    List(ListArgs),
    /// Take a token back, at once
    Revoke(RevokeArgs),
}

/// Arguments of `muster token create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Whose it is: a person or a program
    #[arg(long = "for", value_name = "NAME")]
    pub principal: PrincipalName,
    /// What it may do: admin, operator, reader, node-enroller, member (what policies permit) or witness (for a bot)
    #[arg(long, value_name = "ROLE", value_parser = role)]
    pub role: Role,
    /// How long it lives [default: 90d]
    #[arg(long, value_name = "TIME")]
    pub expires: Option<Span>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster token list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster token revoke`.
#[derive(Args, Debug)]
pub struct RevokeArgs {
    /// Id of the token, from `muster token list`
    #[arg(value_name = "ID")]
    pub id: String,
}

pub(super) fn role(text: &str) -> Result<Role, String> {
    Role::ALL
        .into_iter()
        .find(|r| r.as_str() == text)
        .ok_or_else(|| {
            "there are: admin, operator, reader, node-enroller, member, witness".to_owned()
        })
}

/// Does it.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: TokenArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    match args.verb {
        TokenVerb::Create(args) => {
            let request = TokenRequest {
                principal: args.principal,
                role: args.role,
                expires: args.expires,
            };
            let made = client.create_token(&request).await?;
            if args.json {
                context.term.json(&made)?;
            } else {
                context.term.line(&made.token)?;
                context.term.note(&format!(
                    "token {} for {} ({}), until {}; it is not shown again",
                    made.view.id,
                    made.view.principal,
                    made.view.role,
                    moment(made.view.expires)
                ));
            }
        }
        TokenVerb::List(args) => {
            let tokens = client.tokens().await?;
            if args.json {
                context.term.json(&tokens)?;
                return Ok(0);
            }
            let now = now();
            let mut table = Table::new(&["ID", "FOR", "ROLE", "CREATED", "EXPIRES"]);
            for token in &tokens {
                table.row([
                    token.id.as_str().into(),
                    token.principal.to_string().into(),
                    token.role.as_str().into(),
                    ago(token.created, now).into(),
                    ago(token.expires, now).into(),
                ]);
            }
            context
                .term
                .say(&table.render(context.term.out, context.term.width))?;
        }
        TokenVerb::Revoke(args) => {
            client.revoke_token(&args.id.parse::<Reference>()?).await?;
            context
                .term
                .line(&format!("token {} is revoked", args.id))?;
        }
    }
    Ok(0)
}
