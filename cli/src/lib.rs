//! The `muster` command: one file a verb.
//!
//! Results go to standard output, progress and questions to standard error.
//! Exit codes: 0 everything succeeded, 1 something did not, 2 the command
//! line or a value is wrong, 3 no node matches or an unknown name in the
//! predicate, 4 denied, 5 the broker is unreachable, 6 cancelled or not
//! confirmed.

mod args;
pub mod failure;
pub mod find;
mod input;
pub mod stack;
pub mod ui;
pub mod up;
pub mod verbs;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::{Failure, NOT_ALL};
use crate::ui::Term;

/// What every verb has at hand.
#[derive(Debug)]
pub struct Context {
    /// The terminal.
    pub term: Term,
    /// Which broker.
    pub sources: find::Sources,
}

impl Context {
    /// A client of the broker that is meant.
    ///
    /// # Errors
    /// When none is known, or it cannot be built.
    pub fn client(&self) -> Result<muster_client::Client, Failure> {
        self.sources.find()?.client()
    }
}

/// The whole command.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(args::unambiguous(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results; everything else is of the usage.
            let code = if error.use_stderr() {
                failure::USAGE
            } else {
                0
            };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let term = Term::detect();
    let sources =
        find::Sources::of_process(&cli.global.url, cli.global.token_file, cli.global.ca_file);
    let context = Context { term, sources };
    let code = run(&context, cli.command).unwrap_or_else(|failure| {
        let text = failure.render(context.term.err);
        context.term.note(text.trim_end());
        failure.code
    });
    ExitCode::from(code)
}

fn run(context: &Context, command: Command) -> Result<u8, Failure> {
    // The broker is a server of its own; everything else does one thing at a
    // time, and one thread starts faster than a pool.
    if let Command::Broker(args) = command {
        return verbs::broker::run(context, &args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(NOT_ALL, format!("cannot start: {e}")))?;
    let code = runtime.block_on(Box::pin(verbs::run(context, command)));
    // A reader of the terminal may still wait for a key: nobody waits for it.
    runtime.shutdown_background();
    code
}
