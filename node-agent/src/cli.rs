//! The command line: verbs, and what a process ends with.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::upgrade::guard;
use crate::verbs::{enroll, firewall, local, run, status};

/// The agent of muster: it runs on every node, and does what the operators'
/// signed requests ask.
#[derive(Debug, Parser)]
#[command(name = "muster-agent", version = crate::release::version(), max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this machine a node: present an invite, keep what comes back
    Enroll(enroll::Args),
    /// Run the agent until it is told to stop
    Run(run::Args),
    /// Say what this machine is enrolled as, and what its journal holds
    Status(status::Args),
    /// Break glass: run something here without the broker, journaled and
    /// reported later
    Local(local::Args),
    /// Watch over an upgrade, and put the old executable back
    #[command(hide = true, name = guard::VERB)]
    UpgradeGuard(guard::Args),
    /// Take an upgrade back that was not confirmed, before the service starts
    #[command(hide = true)]
    UpgradeUndo(guard::UndoArgs),
    /// Watch over a change of the firewall, and take it back when nobody
    /// confirms it
    #[command(hide = true, name = muster_nft::host::guard::VERB)]
    FirewallGuard(firewall::GuardArgs),
    /// Put this machine's confirmed firewall in force, before its network is
    /// there
    FirewallRestore(firewall::RestoreArgs),
}

/// What a verb ends with when it fails: one line for people, and the exit
/// code of its kind (2 usage, 4 denied, 5 the broker cannot be reached, 1
/// anything else).
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What, where, and what to do next.
    pub message: String,
}

impl Failure {
    /// A failure of that kind.
    pub fn new(code: u8, error: &dyn std::fmt::Display) -> Self {
        Self {
            code,
            message: error.to_string(),
        }
    }
}

/// Parses the arguments and does what they say.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no errors and go to standard output.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match cli.verb {
        Verb::Enroll(args) => enroll::main(&args),
        Verb::Run(args) => run::main(&args),
        // It ends with what the command ended with.
        Verb::Local(args) => {
            return local::main(&args).unwrap_or_else(|failure| failed(&failure));
        }
        Verb::Status(args) => status::main(&args),
        Verb::UpgradeGuard(args) => guard::main(&args),
        Verb::UpgradeUndo(args) => guard::undo(&args),
        Verb::FirewallGuard(args) => firewall::guard(&args),
        Verb::FirewallRestore(args) => firewall::restore_all(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure),
    }
}

fn failed(failure: &Failure) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {}", failure.message);
    ExitCode::from(failure.code)
}

/// Writes a result to standard output; who closed it does not want it.
pub(crate) fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
