//! `muster scenario`

mod check;
mod difference;
mod load;
mod run;
mod show;
mod stored;
mod sync;
mod test;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use muster_protocol::names::ScenarioName;
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
    /// List stored scenarios
    List(ListArgs),
    /// What a scenario is for, what it takes and where it runs
    Show(ShowArgs),
    /// Find mistakes without running anything
    Check(CheckArgs),
    /// Run a scenario's own tests on nodes that exist only in them
    Test(TestArgs),
    /// Run a stored scenario
    Run(Box<run::RunArgs>),
    /// Store a scenario, or a new version of it
    Put(PutArgs),
    /// Who changed a scenario when, and why
    History(HistoryArgs),
    /// Make an old version of a scenario the newest again
    Rollback(RollbackArgs),
    /// Remove a scenario; its history stays
    Remove(RemoveArgs),
    /// Make the stored scenarios equal to those in a folder
    Sync(SyncArgs),
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

/// Arguments of `muster scenario list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

const AFTER_SHOW: &str = "\
What is a file or directory on this machine is read from there, and needs no broker.
Anything else is the name of a stored scenario.";

/// Arguments of `muster scenario show`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_SHOW, disable_version_flag = true)]
pub struct ShowArgs {
    /// Name of a stored scenario; or a script or directory
    #[arg(value_name = "NAME|FILE")]
    pub what: String,
    /// Which version of a stored one [default: the newest]
    #[arg(long, value_name = "VERSION")]
    pub version: Option<u32>,
    /// The text of the script and of its files
    #[arg(long, conflicts_with = "json")]
    pub files: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster scenario put`.
#[derive(Args, Debug)]
pub struct PutArgs {
    /// Script, or a directory that holds `scenario.rhai`
    #[arg(value_name = "FILE|DIR")]
    pub file: PathBuf,
    /// Its name [default: the file's without its end, or the directory's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<ScenarioName>,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Store it only on top of this version; 0 where there is none yet
    #[arg(long, value_name = "VERSION")]
    pub expect: Option<u32>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster scenario history`.
#[derive(Args, Debug)]
pub struct HistoryArgs {
    /// Name of the scenario
    #[arg(value_name = "NAME")]
    pub name: ScenarioName,
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster scenario rollback`.
#[derive(Args, Debug)]
#[command(disable_version_flag = true)]
pub struct RollbackArgs {
    /// Name of the scenario
    #[arg(value_name = "NAME")]
    pub name: ScenarioName,
    /// Whose content is to be the newest, from `muster scenario history`
    #[arg(value_name = "VERSION")]
    pub version: u32,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster scenario remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Name of the scenario
    #[arg(value_name = "NAME")]
    pub name: ScenarioName,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

const AFTER_SYNC: &str = "\
In DIR, every `NAME.rhai` and every directory NAME with a `scenario.rhai` in it is a scenario.
What is stored and not in DIR is removed; its history stays, and a rollback brings it back.
All of them are checked before anything is stored.";

/// Arguments of `muster scenario sync`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_SYNC)]
pub struct SyncArgs {
    /// The folder, a checkout for example
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Say what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// One JSON array with an object for each change
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
/// [`Failure`]: a file that cannot be read, or is no scenario at all; a
/// broker that does not do it.
pub async fn run(context: &Context, args: &ScenarioArgs) -> Result<u8, Failure> {
    match &args.verb {
        ScenarioVerb::List(args) => stored::list(context, args).await,
        ScenarioVerb::Show(args) => show::run(context, args).await,
        ScenarioVerb::Check(args) => check::run(context, args),
        ScenarioVerb::Test(args) => test::run(context, args),
        ScenarioVerb::Run(args) => Box::pin(run::run(context, args)).await,
        ScenarioVerb::Put(args) => stored::put(context, args).await,
        ScenarioVerb::History(args) => stored::history(context, args).await,
        ScenarioVerb::Rollback(args) => stored::rollback(context, args).await,
        ScenarioVerb::Remove(args) => stored::remove(context, args).await,
        ScenarioVerb::Sync(args) => Box::pin(sync::run(context, args)).await,
    }
}

/// Mistakes as people read them; everything that came from a file is escaped.
pub(crate) fn rendered(faults: &[Fault], paint: Paint) -> String {
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
