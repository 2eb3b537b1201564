//! The table: what muster costs on this machine, beside what has to be
//! reached.
//!
//! Everything is measured on real executables, started here: for each size of
//! the fleet a whole `muster up` of its own, with simulated nodes; and one with
//! real agents. What is compared with the floor is compared with a floor of
//! the same size and the same minutes, before and after. Nothing is measured
//! that did not end well: each command must succeed, and the simulated nodes
//! must have counted every effect exactly once.

mod chat;
pub mod figures;
mod firewall;
mod hooks;
mod http;
mod large;
mod libvirt;
pub mod machine;
mod machines;
pub mod process;
mod script;
pub mod table;
mod watchers;
pub mod work;
pub mod world;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::signal::unix::{SignalKind, signal};

pub use figures::{Row, Spread, Target, Unit, Verdict, exponent, line};
pub use machine::{Disk, Machine};
pub use table::Report;

use work::{Plan, Work};
use world::{Programs, Started};

/// How long an interrupted measurement may take to end what it has started.
const CLEAN_UP: Duration = Duration::from_secs(60);
/// Descriptors of a NATS server that are not connections of nodes.
const SPARE_FILES: u64 = 300;

/// Arguments of `bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Fewer sizes, fewer repetitions, a shorter look at idle agents
    #[arg(long)]
    pub quick: bool,
    /// One JSON object instead of the table
    #[arg(long)]
    pub json: bool,
    /// End with 1 when a target is missed
    #[arg(long)]
    pub strict: bool,
    /// Only these parts of the table; all when absent
    #[arg(long, value_name = "PART,…", value_enum, value_delimiter = ',')]
    pub only: Vec<Part>,
    /// Real agents
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub agents: u32,
    /// Sizes of the simulated fleet; 1000,5000,10000,20000 when absent, and
    /// 1000,5000 with --quick. The targets are for 5000, or the largest below
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub nodes: Vec<u32>,
    /// The disk to measure on: a directory below which all state is kept
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Where `muster` and `muster-agent` are; beside this program when absent
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// The NATS server to start
    #[arg(long, value_name = "PROGRAM", default_value = "nats-server")]
    pub nats_server: String,
}

/// A part of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Part {
    /// Real agents, busy and idle
    Agents,
    /// Simulated fleets beside their floor
    Fleets,
    /// Reading scenarios
    Scripts,
    /// Lists of nodes, and judging by policies
    Lists,
    /// Webhooks
    Webhooks,
    /// Watchers of a run, and the record of requests
    Watchers,
    /// Lines in channels, and the bot
    Chat,
    /// Making and listing virtual machines
    Machines,
    /// Security groups on a hypervisor
    Firewall,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A program is missing.
    #[error("{} is not there; `make bench` builds it first", .0.display())]
    Program(PathBuf),
    /// A program cannot be started.
    #[error("cannot start {name}: {source}")]
    Start {
        /// Which.
        name: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A place for its files.
    #[error("nothing can be kept in the directory of --dir: {0}")]
    Directory(std::io::Error),
    /// A part does not do what it should.
    #[error("{name}: {why}")]
    Part {
        /// Which.
        name: &'static str,
        /// What went wrong.
        why: String,
    },
    /// A command did not succeed.
    #[error("`{command}` ended with {why}")]
    Command {
        /// The command.
        command: String,
        /// What went wrong.
        why: String,
    },
    /// What was measured was not done.
    #[error(
        "the nodes have counted {seen} effects of {runs} steps on {nodes} nodes, {twice} of them twice; nothing that was measured counts"
    )]
    Effects {
        /// Effects that were seen.
        seen: u64,
        /// Steps that were run.
        runs: u64,
        /// Nodes.
        nodes: u32,
        /// Effects that happened more than once.
        twice: u64,
    },
    /// A signal.
    #[error("interrupted")]
    Interrupted,
    /// Something could not be measured.
    #[error("{0} of the measurements failed; the report says why")]
    Failed(usize),
    /// With --strict.
    #[error("{0} targets are missed")]
    Missed(usize),
    /// Its own thread.
    #[error("the measurement ended by itself: {0}")]
    Thread(String),
}

/// Measures, and prints the table.
///
/// # Errors
/// [`BenchError`].
pub async fn main(args: Args) -> Result<(), BenchError> {
    let started = Started::default();
    let plan = plan(&args)?;
    let json = args.json;
    let strict = args.strict;
    let own = started.clone();
    let mut work = tokio::task::spawn_blocking(move || Work::new(plan, own)?.measure());
    let stream = |kind| signal(kind).map_err(BenchError::Directory);
    let mut interrupt = stream(SignalKind::interrupt())?;
    let mut terminate = stream(SignalKind::terminate())?;
    let done = tokio::select! {
        done = &mut work => done,
        _ = interrupt.recv() => return Err(stop(&started, work).await),
        _ = terminate.recv() => return Err(stop(&started, work).await),
    };
    let report = done.map_err(|e| BenchError::Thread(e.to_string()))??;
    let text = if json {
        serde_json::to_string(&report).unwrap_or_default()
    } else {
        report.to_string()
    };
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", text.trim_end());
    if !report.failed.is_empty() {
        return Err(BenchError::Failed(report.failed.len()));
    }
    match report.missed() {
        missed if missed > 0 && strict => Err(BenchError::Missed(missed)),
        _ => Ok(()),
    }
}

/// Ends what was started; the measurement fails by that, and cleans up.
async fn stop(
    started: &Started,
    work: tokio::task::JoinHandle<Result<Report, BenchError>>,
) -> BenchError {
    started.interrupt();
    let _ = tokio::time::timeout(CLEAN_UP, work).await;
    BenchError::Interrupted
}

fn plan(args: &Args) -> Result<Plan, BenchError> {
    let own = std::env::current_exe().map_err(|source| BenchError::Start {
        name: "muster-fleet-sim",
        source,
    })?;
    let beside = own.parent().map(PathBuf::from).unwrap_or_default();
    let programs = Programs::find(
        args.bin_dir.clone().unwrap_or(beside),
        args.nats_server.clone(),
    )?;
    let mut sizes = match (args.nodes.as_slice(), args.quick) {
        ([], true) => vec![1000, 5000],
        ([], false) => vec![1000, 5000, 10_000, 20_000],
        (given, _) => given.to_vec(),
    };
    let mut notes = Vec::new();
    let most = most_nodes();
    for size in &mut sizes {
        if *size > most {
            notes.push(format!(
                "{most} nodes instead of {size}: this machine lets a process have only so many open files"
            ));
            *size = most;
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    Ok(Plan {
        quick: args.quick,
        agents: args.agents,
        sizes,
        only: args.only.clone(),
        dir: args.dir.clone(),
        programs,
        notes,
    })
}

/// Connections that one NATS server can have here.
fn most_nodes() -> u32 {
    // Who may raise the limit, does; its children inherit it.
    let _ = crate::limits::make_room(100_000);
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let nodes = files.saturating_sub(SPARE_FILES) / 100 * 100;
    u32::try_from(nodes).unwrap_or(u32::MAX).max(100)
}
