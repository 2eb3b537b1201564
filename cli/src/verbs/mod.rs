//! One file a verb.

pub mod account;
pub mod agent;
pub mod audit;
pub mod backup;
pub mod bot;
pub mod broker;
pub mod doctor;
pub mod events;
pub mod firewall;
pub mod freeze;
pub mod generate;
pub mod hook;
pub mod hypervisor;
pub mod image;
pub mod irc;
pub mod keys;
pub mod listed;
pub mod matching;
pub mod network;
pub mod node;
pub mod nodes;
pub mod output;
pub mod ping;
pub mod policy;
pub mod restore;
pub mod route;
pub mod run;
pub mod runs;
pub mod scenario;
pub mod schedule;
pub mod ssh_key;
pub mod standby;
pub mod status;
pub mod token;
pub mod trigger;
pub mod up;
pub mod vm;
pub mod watch;

use std::collections::BTreeMap;

use muster_protocol::api::Condition;
use muster_protocol::names::{LabelKey, LabelValue};
use muster_protocol::text::printable;
use muster_protocol::units::Timestamp;

use crate::Context;
use crate::args::Command;
use crate::failure::{CANCELLED, Failure};

/// Does what was asked for.
///
/// # Errors
/// [`Failure`]: the one error that the person is shown.
pub(crate) async fn run(context: &Context, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Nodes(args) => nodes::run(context, &args).await,
        Command::Match(args) => matching::run(context, &args).await,
        Command::Ping(args) => ping::run(context, &args).await,
        Command::Run(args) => run::run(context, args).await,
        Command::Runs(args) => runs::run(context, args).await,
        Command::Scenario(args) => scenario::run(context, &args).await,
        Command::Schedule(args) => schedule::run(context, args).await,
        Command::Vm(args) => Box::pin(vm::run(context, args)).await,
        Command::Firewall(args) => Box::pin(firewall::run(context, args)).await,
        Command::Hypervisor(args) => hypervisor::run(context, &args).await,
        Command::Node(args) => node::run(context, args).await,
        Command::Image(args) => Box::pin(image::run(context, args)).await,
        Command::Network(args) => network::run(context, args).await,
        Command::SshKey(args) => ssh_key::run(context, args).await,
        Command::Account(args) => account::run(context, args).await,
        Command::Agent(args) => agent::run(context, args).await,
        Command::Token(args) => token::run(context, args).await,
        Command::Policy(args) => Box::pin(policy::run(context, args)).await,
        Command::Keys(args) => keys::run(context, args).await,
        Command::Events(args) => events::run(context, &args).await,
        Command::Hook(args) => hook::run(context, &args).await,
        Command::Trigger(args) => trigger::run(context, &args).await,
        Command::Route(args) => route::run(context, &args).await,
        Command::Irc(args) => irc::run(context, args).await,
        Command::Bot(args) => bot::run(context, &args),
        Command::Audit(args) => audit::run(context, args).await,
        Command::Freeze(args) => freeze::freeze(context, &args).await,
        Command::Thaw(args) => freeze::thaw(context, &args).await,
        Command::Status(args) => status::run(context, &args).await,
        Command::Whoami(args) => status::whoami(context, &args).await,
        Command::Backup(args) => backup::run(context, &args).await,
        Command::Restore(args) => restore::run(context, &args),
        Command::Standby(args) => standby::run(context, &args).await,
        Command::Doctor(args) => doctor::run(context, &args).await,
        Command::Up(args) => up::run(context, args).await,
        Command::Broker(args) => broker::run(context, &args),
        Command::NatsConfig(args) => broker::nats_config(context, &args),
        Command::Completions(args) => generate::completions(context, &args),
        Command::Man(args) => generate::man(context, &args),
    }
}

/// The clock of this machine.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// `zone=gva2`, as an option's value.
///
/// # Errors
/// What is wrong with it.
pub fn label(text: &str) -> Result<(LabelKey, LabelValue), String> {
    let (key, value) = text.split_once('=').ok_or("write it like zone=gva2")?;
    Ok((
        key.parse().map_err(|e| format!("{e}"))?,
        value.parse().map_err(|e| format!("{e}"))?,
    ))
}

/// `zone=gva2 rack=r3`.
#[must_use]
pub fn labels(labels: &BTreeMap<LabelKey, LabelValue>) -> String {
    labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A condition, for people.
#[must_use]
pub fn condition(condition: &Condition) -> String {
    match condition {
        Condition::Cloned => {
            "two machines live with its key; both are refused: `muster node replace` gives one a new key".into()
        }
        Condition::ClockSkew { ms } => {
            let size = crate::ui::time::took(std::time::Duration::from_millis(ms.unsigned_abs()));
            format!("its clock is {size} {}", if *ms > 0 { "ahead" } else { "behind" })
        }
        Condition::Incompatible { protocol } => {
            format!("its agent speaks protocol {protocol}, this broker another: upgrade the older one")
        }
        Condition::Stale { revision } => {
            format!("it has not taken up its newest roles and labels yet (holds revision {revision})")
        }
        Condition::Refusing { counts } => {
            let list: Vec<String> =
                counts.iter().map(|(kind, n)| format!("{n} {}", printable(kind, 40))).collect();
            format!("it refused messages: {}", list.join(", "))
        }
        Condition::Flooding => "it sends more than it may; the rest is thrown away".into(),
        Condition::Note { text } => printable(text, 300),
    }
}

/// Asks before something that cannot be taken back.
///
/// # Errors
/// Not confirmed, or nobody to ask.
pub fn confirm(context: &Context, yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !context.term.in_tty {
        return Err(Failure::new(
            CANCELLED,
            format!("{question} Nothing was done: there is nobody to ask"),
        )
        .hint("--yes says it beforehand"));
    }
    if context.term.ask(question)? {
        Ok(())
    } else {
        Err(Failure::new(CANCELLED, "not confirmed; nothing was done"))
    }
}
