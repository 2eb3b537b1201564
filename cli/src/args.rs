//! The command line as types.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::verbs;

const AFTER: &str = "\
Predicates select nodes by name, role, label and fact:
  role=web and zone=gva2 and not web-0*        os.version < 12 or has gpu

Exit codes: 0 everything succeeded · 1 something did not · 2 usage · 3 no node matches
or an unknown name · 4 denied · 5 broker unreachable · 6 cancelled or not confirmed";

/// Signed work on exactly the machines that a predicate names.
#[derive(Debug, Parser)]
#[command(name = "muster", version, after_help = AFTER, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Which broker.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Reads `-db` behind `node role NAME` as `db-`: it takes a role away and is no
/// cluster of short options. Everything else stays as it is.
pub(crate) fn unambiguous(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut words = 0;
    let mut in_role = false;
    for arg in args {
        let text = arg.to_str().unwrap_or_default();
        if in_role
            && let Some(role) = text
                .strip_prefix('-')
                .filter(|r| !r.starts_with('-') && *r != "h")
        {
            out.push(format!("{role}-").into());
            continue;
        }
        in_role |= words > 0 && text == "role" && out.last().is_some_and(|last| last == "node");
        words += 1;
        out.push(arg);
    }
    out
}

/// Which broker, for every verb.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// The broker's URL; several, of one cluster, with commas or by repeating it [else MUSTER_URL,
    /// ~/.config/muster/config.toml, the running `muster up`]
    #[arg(long, global = true, value_name = "URL", help_heading = "Broker")]
    pub url: Vec<String>,
    /// File that holds the token [else MUSTER_TOKEN, and as for the URL]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Broker")]
    pub token_file: Option<PathBuf>,
    /// Certificate authority of the broker's certificate, PEM [else MUSTER_CA_FILE]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Broker")]
    pub ca_file: Option<PathBuf>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List nodes: roles, labels, state, last seen, version
    Nodes(verbs::nodes::NodesArgs),
    /// Which nodes match a predicate, and why
    Match(verbs::matching::MatchArgs),
    /// Who answers, and how fast
    Ping(verbs::ping::PingArgs),
    /// Run a command on exactly the nodes that match
    Run(verbs::run::RunArgs),
    /// List, show, watch, cancel and retry runs
    Runs(verbs::runs::RunsArgs),
    /// Store, show, check and test scenarios
    Scenario(verbs::scenario::ScenarioArgs),
    /// Run scenarios when their time comes
    Schedule(verbs::schedule::ScheduleArgs),
    /// Make, list, change and destroy virtual machines
    Vm(verbs::vm::VmArgs),
    /// What may pass: nodes' own firewalls
    Firewall(verbs::firewall::FirewallArgs),
    /// List hypervisors, and keep new machines away from one
    Hypervisor(verbs::hypervisor::HypervisorArgs),
    /// Invite, label and remove nodes
    Node(verbs::node::NodeArgs),
    /// Disk images that machines are made of
    Image(verbs::image::ImageArgs),
    /// Networks that machines are in, and their addresses
    Network(verbs::network::NetworkArgs),
    /// Public keys that open machines by ssh
    SshKey(verbs::ssh_key::SshKeyArgs),
    /// Whom machines belong to
    Account(verbs::account::AccountArgs),
    /// Upgrade the agents themselves, and say which version runs where
    Agent(verbs::agent::AgentArgs),
    /// Create, list and revoke API tokens
    Token(verbs::token::TokenArgs),
    /// Say, check, store and explain who may do what
    Policy(verbs::policy::PolicyArgs),
    /// List, rotate and revoke the broker's signing keys
    Keys(verbs::keys::KeysArgs),
    /// What happened in the cluster
    Events(verbs::events::EventsArgs),
    /// Webhooks: list them, and try what one would do
    Hook(verbs::hook::HookArgs),
    /// Triggers: which events become which runs
    Trigger(verbs::trigger::TriggerArgs),
    /// Routes: which events are sent where
    Route(verbs::route::RouteArgs),
    /// Say who you are in a chat
    Irc(verbs::irc::IrcArgs),
    /// Try how a line in a chat is understood
    Bot(verbs::bot::BotArgs),
    /// Who asked for what, and whether anybody has changed the record of it
    Audit(verbs::audit::AuditArgs),
    /// Stop everything new on all nodes
    Freeze(verbs::freeze::FreezeArgs),
    /// End a freeze
    Thaw(verbs::freeze::ThawArgs),
    /// How the installation is
    Status(verbs::status::StatusArgs),
    /// Who you are to the broker
    Whoami(verbs::status::WhoamiArgs),
    /// Write everything that the cluster is into a file, while it runs
    Backup(verbs::backup::BackupArgs),
    /// Make a state directory of a backup
    Restore(verbs::restore::RestoreArgs),
    /// Check the installation and say what is wrong
    Doctor(verbs::doctor::DoctorArgs),
    /// Run everything on this machine: NATS server, broker, agents
    Up(verbs::up::UpArgs),
    /// Run the broker alone, against a NATS server that is there
    Broker(verbs::broker::BrokerArgs),
    /// Make the state directory of another broker of the cluster
    Standby(verbs::standby::StandbyArgs),
    /// Print what an existing NATS server or cluster needs
    NatsConfig(verbs::broker::NatsConfigArgs),
    /// Print the completions for a shell
    Completions(verbs::generate::CompletionsArgs),
    /// Write the man pages into a directory
    Man(verbs::generate::ManArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(unambiguous(
            std::iter::once("muster")
                .chain(words.iter().copied())
                .map(Into::into),
        ))
    }

    #[test]
    fn commands_that_people_type() {
        for words in [
            &["run", "role=web", "--", "nginx", "-v"][..],
            &[
                "run",
                "role=web",
                "--timeout",
                "5m",
                "--deliver-within",
                "15s",
                "--batch",
                "25%",
                "--",
                "x",
            ],
            &[
                "run",
                "*",
                "--max-failures",
                "10%",
                "--limit",
                "3",
                "--yes",
                "--json",
                "--detach",
                "--",
                "x",
            ],
            &[
                "run",
                "*",
                "--dedupe",
                "none",
                "--wait-down",
                "--shell",
                "--",
                "a | b",
            ],
            &[
                "run",
                "*",
                "--output-limit",
                "4MiB",
                "--include-infrastructure",
                "--allow-unknown",
                "--",
                "x",
            ],
            &["runs"],
            &["runs", "list", "--json"],
            &["runs", "show", "7f3k"],
            &["runs", "retry", "7f3k", "--failed", "--include-unknown"],
            &["node", "label", "web-01", "zone=gva2", "rack-"],
            &["node", "role", "web-01", "+web", "-db"],
            &["node", "role", "web-01", "+web", "-haproxy", "--json"],
            &[
                "node",
                "invite",
                "--role",
                "web",
                "--label",
                "zone=gva2",
                "--name",
                "web-01",
                "--expires",
                "1h",
            ],
            &[
                "token",
                "create",
                "--for",
                "ana",
                "--role",
                "operator",
                "--expires",
                "90d",
            ],
            &["nodes", "role=web", "--url", "http://a"],
            &[
                "up",
                "--state",
                "d",
                "--listen",
                "127.0.0.1:0",
                "--node",
                "a:role=web,zone=x",
                "--node",
                "b",
            ],
            &["match", "role=web", "--explain", "web-01"],
            &["completions", "bash"],
            &["agent", "upgrade", "role=web", "--batch", "10%", "--yes"],
            &[
                "agent",
                "upgrade",
                "*",
                "--binary",
                "f",
                "--max-failures",
                "2",
                "--allow-downgrade",
            ],
            &["agent", "versions", "role=web", "--json"],
            &["agent", "releases", "--json"],
            &["agent", "forget", "0123456789ab"],
            &[
                "image",
                "add",
                "d",
                "f.qcow2",
                "--format",
                "qcow2",
                "--replace",
            ],
            &["image", "list", "--json"],
            &["image", "remove", "d"],
            &[
                "network",
                "add",
                "n",
                "--bridge",
                "br0",
                "--pool",
                "192.0.2.0/24",
                "--gateway",
                "192.0.2.1",
                "--dns",
                "9.9.9.9",
                "--reserve",
                "192.0.2.9",
                "--mtu",
                "9000",
            ],
            &["network", "show", "n", "--json"],
            &["network", "remove", "n"],
            &["ssh-key", "add", "ana", "id.pub", "--json"],
            &["ssh-key", "list"],
            &["account", "add", "acme", "--note", "since 2019"],
            &["account", "list", "--json"],
            &[
                "vm", "plan", "s.toml", "--env", "test", "--var", "a=1=2", "--check",
            ],
            &["vm", "apply", "s.toml", "--prune", "--purge", "-y"],
            &["backup", "f", "--json"],
            &["restore", "f", "--state", "d"],
        ] {
            if let Err(e) = parse(words) {
                panic!("{words:?}: {e}");
            }
        }
    }

    #[test]
    fn a_role_is_taken_with_a_dash() {
        let cli = parse(&["node", "role", "web-01", "+web", "-haproxy", "--json"]).expect("parses");
        let Command::Node(verbs::node::NodeArgs {
            verb: verbs::node::NodeVerb::Role(args),
        }) = cli.command
        else {
            panic!("another verb");
        };
        let role = |text: &str| text.parse().expect("role");
        assert!(args.json);
        assert_eq!(
            args.changes,
            [
                verbs::node::RoleChange::Give(role("web")),
                verbs::node::RoleChange::Take(role("haproxy"))
            ]
        );
        let argv = ["muster", "run", "*", "--", "role", "-x"].map(OsString::from);
        assert_eq!(unambiguous(argv.clone()), argv);
    }

    #[test]
    fn slips_are_refused() {
        for words in [
            &[][..],
            &["run", "role=web"],
            &["run", "role=web", "nginx"],
            &["run", "role=web", "--timeout", "5", "--", "x"],
            &["run", "role=web", "--batch", "0", "--", "x"],
            &["run", "role=web", "--dedupe", "hash", "--", "x"],
            &["runs", "retry"],
            &["node", "label", "web-01"],
            &["node", "role", "Web 01", "+web"],
            &["token", "create", "--for", "ana", "--role", "king"],
            &["up", "--state", "d", "--node", "a:web"],
            &["keys", "revoke", "xyz"],
            &["agent", "upgrade"],
            &["agent", "upgrade", "*", "--batch", "0"],
            &["backup"],
            &["image", "add", "d"],
            &["image", "add", "../d", "f"],
            &["image", "add", "d", "f", "--sha256", "e3b0"],
            &["network", "add", "n", "--bridge", "br0"],
            &["ssh-key", "add", "../ana", "id.pub"],
            &["account", "add", "Acme Inc"],
            &["vm", "plan", "s.toml", "--var", "a"],
            &["vm", "apply", "s.toml", "--purge"],
            &["vm", "apply"],
            &[
                "network",
                "add",
                "n",
                "--bridge",
                "br0; reboot",
                "--pool",
                "192.0.2.0/24",
            ],
            &[
                "network",
                "add",
                "n",
                "--bridge",
                "br0",
                "--pool",
                "x",
                "--gateway",
                "router",
            ],
            &["restore", "f"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
