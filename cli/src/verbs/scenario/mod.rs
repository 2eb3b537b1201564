//! `muster scenario`

mod check;
mod load;
mod show;
mod test;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use muster_protocol::text::printable_line;
use muster_scenarios::fault::Fault;

use crate::Context;
use crate::failure::Failure;
use crate::ui::{Paint, count};

/// Arguments of `muster scenario`.
#[derive(Args, Debug)]
pub struct ScenarioArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: ScenarioVerb,
}

/// What to do with scenarios.
#[derive(Debug, Subcommand)]
pub enum ScenarioVerb {
    /// Find mistakes without running anything
    Check(CheckArgs),
    /// What a scenario is for, what it takes and where it runs
    Show(ShowArgs),
    /// Run a scenario's own tests on nodes that exist only in them
    Test(TestArgs),
}

const AFTER: &str = "\
FILE is a script, or a directory that holds `scenario.rhai` with its templates and files.
Needs no broker.";

/// Arguments of `muster scenario check`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct CheckArgs {
    /// Scripts and directories
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// One JSON array with an object for each
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster scenario show`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct ShowArgs {
    /// Script or directory
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster scenario test`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct TestArgs {
    /// Scripts and directories
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Only tests with this in their name
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// One JSON array with an object for each file
    #[arg(long)]
    pub json: bool,
}

/// Does what was asked for.
///
/// # Errors
/// [`Failure`]: a file that cannot be read, or is no scenario at all.
pub fn run(context: &Context, args: &ScenarioArgs) -> Result<u8, Failure> {
    match &args.verb {
        ScenarioVerb::Check(args) => check::run(context, args),
        ScenarioVerb::Show(args) => show::run(context, args),
        ScenarioVerb::Test(args) => test::run(context, args),
    }
}

/// Mistakes as people read them; everything that came from a file is escaped.
fn rendered(faults: &[Fault], paint: Paint) -> String {
    let mut out = String::new();
    for fault in faults {
        out.push_str(&paint.bad("error:"));
        out.push(' ');
        for line in fault.to_string().lines() {
            out.push_str(&printable_line(line));
            out.push('\n');
        }
    }
    out
}

/// `2 errors`.
fn errors(faults: usize) -> String {
    count(faults, "error")
}
