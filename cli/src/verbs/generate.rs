//! `muster completions` and `muster man`

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use crate::Context;
use crate::args::Cli;
use crate::failure::Failure;

/// Arguments of `muster completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: clap_complete::Shell,
}

/// Arguments of `muster man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Directory to write into; made when it is missing
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Prints the completions.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(context: &Context, args: &CompletionsArgs) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "muster", &mut text);
    context.term.say(&String::from_utf8_lossy(&text))?;
    Ok(0)
}

/// Writes a page for each verb.
///
/// # Errors
/// The directory cannot be written.
pub fn man(context: &Context, args: &ManArgs) -> Result<u8, Failure> {
    let fail = |e: std::io::Error| {
        Failure::usage(format!(
            "cannot write the man pages to {}: {e}",
            args.dir.display()
        ))
    };
    std::fs::create_dir_all(&args.dir).map_err(fail)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(fail)?;
    let pages = std::fs::read_dir(&args.dir).map_err(fail)?.count();
    context
        .term
        .note(&format!("{pages} pages in {}", args.dir.display()));
    Ok(0)
}
