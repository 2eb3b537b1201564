//! The command line.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, Subcommand};
use muster_agent::logging::{FILTER_VARIABLE, LogFormat};
use muster_protocol::api::{InviteToken, Secret};
use muster_protocol::names::{NodeName, RoleName};
use muster_protocol::vm::Size;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::bench;
use crate::chance::{Between, Faults, MinuteRate, Rate, Slow};
use crate::enrol::{Clients, EnrolError, Plan, Source, enrol};
use crate::fleet::{Fleet, Running, Statistics};
use crate::floor;
use crate::hypervisors::{HypervisorError, Hypervisors, Wanted};
use crate::limits::make_room;
use crate::node::Habits;
use crate::pattern::{LabelPattern, Pattern};
use crate::store::Store;
use crate::witness::Witness;

/// Many simulated nodes in one process, each with a connection, keys and a
/// journal of its own, speaking the real protocol.
///
/// It prints a line that begins with `ready` when the broker has welcomed all
/// of them, and lives until it is interrupted. A SIGUSR1 makes it write its
/// statistics.
#[derive(Debug, Parser)]
#[command(
    name = "muster-fleet-sim",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    fleet: FleetArgs,
    /// How log lines look
    #[arg(long, value_enum, default_value_t, global = true)]
    log_format: LogFormat,
    /// Threads of the simulation; as many as there are processors when absent
    #[arg(long, value_name = "N", global = true, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measure how quickly plain subscribers answer one signed request at best
    Floor(floor::Args),
    /// Measure a whole muster on this machine, as one table
    ///
    /// Starts its own broker, NATS server, agents and simulated nodes in a
    /// temporary directory, and ends them. Needs `muster` and `muster-agent`
    /// of the same build.
    Bench(bench::Args),
}

#[derive(Debug, clap::Args)]
struct FleetArgs {
    /// How many nodes; all of --name, or of --invite-file, when absent; none
    /// with --hypervisors alone
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    nodes: Option<u32>,
    /// The broker, such as http://127.0.0.1:7420
    #[arg(long, env = "MUSTER_URL", required = true)]
    url: Option<String>,
    /// Make the invites with the API token in this file; without it and
    /// without --invite-file, with the one in MUSTER_TOKEN
    #[arg(long, value_name = "FILE", conflicts_with = "invite_file")]
    token_file: Option<PathBuf>,
    /// Use the invites in this file, one a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "role", "label"])]
    invite_file: Option<PathBuf>,
    /// Trust this certificate authority (PEM) for the broker's HTTPS
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The nodes' names, such as 'sim-{00001..05000}'
    #[arg(long, value_name = "PATTERN")]
    name: Option<Pattern>,
    /// A role of all nodes
    #[arg(long, value_name = "ROLE")]
    role: Vec<RoleName>,
    /// A label of all nodes; of 'rack=r{1..40}' they get the values in turn
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<LabelPattern>,
    /// So many hypervisors as well: whole agents with libvirts in memory. Their
    /// guests never boot (`muster vm create --no-agent`), and their machines
    /// end with this process
    #[arg(long, value_name = "N", conflicts_with = "invite_file", value_parser = clap::value_parser!(u32).range(1..=1000))]
    hypervisors: Option<u32>,
    /// Their names, such as 'hv-{01..20}'
    #[arg(long, value_name = "PATTERN", requires = "hypervisors")]
    hypervisor_name: Option<Pattern>,
    /// Processors of each
    #[arg(long, value_name = "N", default_value_t = 64, requires = "hypervisors", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    hypervisor_cpus: u32,
    /// Memory of each
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "256GiB",
        requires = "hypervisors"
    )]
    hypervisor_memory: Size,
    /// The storage pool of each
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "10TiB",
        requires = "hypervisors"
    )]
    hypervisor_disk: Size,
    /// Keep identities here, and use those that are kept here. What a node has
    /// executed is not kept: start it again on the same identities only when
    /// no run is open
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Steps that fail
    #[arg(long, value_name = "RATE", default_value = "0%")]
    fail: Rate,
    /// Steps that the node declines
    #[arg(long, value_name = "RATE", default_value = "0%")]
    decline: Rate,
    /// Steps that are never answered
    #[arg(long, value_name = "RATE", default_value = "0%")]
    silent: Rate,
    /// How long a step takes
    #[arg(long, value_name = "TIME", default_value = "0ms")]
    work: Between,
    /// Steps that take another time than --work, such as 5%:200ms..2s
    #[arg(long, value_name = "RATE:TIME", default_value = "0%:0ms")]
    slow: Slow,
    /// Messages that arrive twice, in either direction
    #[arg(long, value_name = "RATE", default_value = "0%")]
    duplicate: Rate,
    /// Let messages overtake each other, by up to 20 ms
    #[arg(long)]
    reorder: bool,
    /// Connections that end, such as 0.1%/min
    #[arg(long, value_name = "RATE", default_value = "0%/min")]
    drop_connection: MinuteRate,
    /// What every step prints; {name} stands for the node's name
    #[arg(long, value_name = "TEXT", default_value = "")]
    output: String,
    /// Everything random about the faults is drawn from it: the same seed,
    /// the same faults
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write statistics as JSON here at the end and on SIGUSR1; - for
    /// standard output
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Settled steps that each node remembers
    #[arg(long, value_name = "N", default_value_t = 1000)]
    remember: usize,
}

/// What the process ends with when it fails.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(code: u8, error: &dyn std::fmt::Display) -> Self {
        let message = error.to_string();
        Self { code, message }
    }
}

impl From<HypervisorError> for Failure {
    fn from(error: HypervisorError) -> Self {
        Self::new(error.exit_code(), &error)
    }
}

impl From<EnrolError> for Failure {
    fn from(error: EnrolError) -> Self {
        Self::new(error.exit_code(), &error)
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
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "error: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    log(cli.log_format)?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = cli.threads {
        builder.worker_threads(threads.into());
    }
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|e| Failure::new(1, &e))?;
    let done = runtime.block_on(async {
        match cli.verb {
            Some(Verb::Floor(args)) => {
                let floor = floor::measure(&args)
                    .await
                    .map_err(|e| Failure::new(1, &e))?;
                print(&json!(floor).to_string());
                Ok(())
            }
            Some(Verb::Bench(args)) => bench::main(args).await.map_err(|e| Failure::new(1, &e)),
            None => Box::pin(simulate(cli.fleet)).await,
        }
    });
    // A name that is looked up in a blocking thread must not hold the end.
    runtime.shutdown_background();
    done
}

/// Begins to log, to standard error.
fn log(format: LogFormat) -> Result<(), Failure> {
    let text = std::env::var(FILTER_VARIABLE).unwrap_or_default();
    // The NATS client takes each end of a connection for an error, thousands
    // of times; they are counted here.
    let text = if text.is_empty() {
        "info,async_nats=off"
    } else {
        &text
    };
    let filter = EnvFilter::try_new(text)
        .map_err(|e| Failure::new(2, &format!("{FILTER_VARIABLE} is not a log filter: {e}")))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Human => builder.with_ansi(false).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

async fn simulate(args: FleetArgs) -> Result<(), Failure> {
    // From here on an interruption ends it in order.
    let io = |e: std::io::Error| Failure::new(1, &e);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let mut ask = signal(SignalKind::user_defined1()).map_err(io)?;
    let stats = args.stats.clone();
    let running = tokio::select! {
        running = Box::pin(begin(args)) => running?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    let mut ready = false;
    loop {
        tokio::select! {
            took = running.ready(), if !ready => {
                ready = true;
                let seconds = took.as_secs_f64();
                let statistics = running.statistics();
                let hypervisors = match statistics.hypervisors.len() {
                    0 => String::new(),
                    count => format!(", {count} hypervisors"),
                };
                print(&format!(
                    "ready: {} nodes welcomed in {seconds:.1} s, {} KiB each{hypervisors}",
                    statistics.nodes, statistics.kib_per_node
                ));
            }
            _ = ask.recv() => write_stats(stats.as_deref(), &running.statistics())?,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    info!("the fleet ends");
    let statistics = running.end().await;
    write_stats(stats.as_deref(), &statistics)?;
    match statistics.testimony.more_than_once {
        0 => Ok(()),
        twice => Err(Failure::new(
            1,
            &format!(
                "{twice} steps took effect more than once on a node; the statistics say which"
            ),
        )),
    }
}

async fn begin(args: FleetArgs) -> Result<Running, Failure> {
    let usage = |e: &dyn std::fmt::Display| Failure::new(2, e);
    let url = args.url.clone().unwrap_or_default();
    let source = source(&args)?;
    let (store, mut known, common) = match &args.state {
        Some(dir) => Store::open(dir).map_err(|e| Failure::new(1, &e))?,
        None => (Store::nowhere(), Vec::new(), None),
    };
    let names = names(&args, &source, known.len()).map_err(|e| usage(&e))?;
    if let Source::Api(_) = source {
        // A state may hold more than what is wanted now.
        let wanted: std::collections::HashSet<&NodeName> = names.iter().collect();
        known.retain(|member| wanted.contains(&member.assignment.name));
    }
    let nodes = u32::try_from(names.len()).unwrap_or(u32::MAX);
    make_room(nodes).map_err(|e| Failure::new(1, &e))?;
    let ca = match &args.ca_file {
        None => None,
        Some(path) => Some(std::fs::read_to_string(path).map_err(|source| {
            let path = path.clone();
            EnrolError::CaFile { path, source }
        })?),
    };
    let wanted = hypervisors(&args, &url, ca.as_deref(), &source, &names)?;
    let plan = Plan {
        url: url.clone(),
        ca: ca.clone(),
        source,
        names,
        roles: args.role.clone(),
        labels: args.label.clone(),
    };
    let begun = Instant::now();
    let hypervisors = match wanted {
        Some(wanted) => Some(Hypervisors::begin(wanted).await?),
        None => None,
    };
    let common = common.or_else(|| hypervisors.as_ref()?.common().cloned());
    let fresh = known.len() < plan.names.len();
    let (members, learnt) = enrol(plan, known, common, &store).await?;
    let enrolled_ms = match fresh {
        true => u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        false => 0,
    };
    let common = learnt.ok_or_else(|| usage(&"there is no node to simulate"))?;
    info!(nodes = members.len(), enrolled_ms, "enrolled");
    let ca = ca.or_else(|| common.ca.clone());
    let clients = Clients::new(&url, ca.as_deref()).map_err(EnrolError::from)?;
    let habits = Arc::new(Habits {
        faults: faults(&args),
        output: args.output,
        remember: args.remember,
        facts: facts(),
        witness: Witness::new(members.len()),
        orders: crate::orders::Orders::default(),
    });
    let fleet = Fleet::new(members.len(), &common, Some(clients), store)
        .map_err(|e| Failure::new(1, &e))?;
    let mut running = Running::begin(fleet, members, habits);
    running.enrolled_ms = enrolled_ms;
    running.hypervisors = hypervisors;
    Ok(running)
}

fn faults(args: &FleetArgs) -> Faults {
    Faults {
        seed: args.seed,
        fail: args.fail,
        decline: args.decline,
        silent: args.silent,
        slow: args.slow,
        work: args.work,
        duplicate: args.duplicate,
        reorder: args.reorder,
        drop_connection: args.drop_connection,
    }
}

fn source(args: &FleetArgs) -> Result<Source, Failure> {
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|e| Failure::new(2, &format!("cannot read {}: {e}", path.display())))
    };
    if let Some(path) = &args.invite_file {
        let text = read(path)?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
        let invites = lines.enumerate().map(|(number, line)| {
            let line_number = number + 1;
            line.parse::<InviteToken>()
                .map_err(|source| EnrolError::Token {
                    line: line_number,
                    source,
                })
        });
        return Ok(Source::Given(invites.collect::<Result<_, _>>()?));
    }
    let text = match &args.token_file {
        Some(path) => read(path)?,
        None => std::env::var("MUSTER_TOKEN").map_err(|_| {
            Failure::new(
                2,
                &"nobody to invite the nodes: name an API token's file with --token-file, or invites with --invite-file",
            )
        })?,
    };
    Ok(Source::Api(Secret::new(text.trim())))
}

/// The hypervisors that are to be beside the nodes.
fn hypervisors(
    args: &FleetArgs,
    url: &str,
    ca: Option<&str>,
    source: &Source,
    nodes: &[NodeName],
) -> Result<Option<Wanted>, Failure> {
    let (Some(count), Source::Api(token)) = (args.hypervisors, source) else {
        return Ok(None);
    };
    let usage = |e: &dyn std::fmt::Display| Failure::new(2, e);
    let pattern = args.hypervisor_name.clone();
    let pattern = pattern.unwrap_or_else(|| Pattern::numbered("hv-", count));
    let mut names = pattern
        .names()
        .map_err(|e| usage(&NamesError::Pattern(e)))?;
    if count as usize > names.len() {
        let names = names.len();
        return Err(usage(&format!(
            "--hypervisor-name stands for {names} names, and --hypervisors asks for {count}; write a longer range"
        )));
    }
    names.truncate(count as usize);
    if let Some(both) = names.iter().find(|name| nodes.contains(name)) {
        return Err(usage(&format!(
            "`{both}` is the name of a node and of a hypervisor; give --hypervisor-name"
        )));
    }
    Ok(Some(Wanted {
        url: url.to_owned(),
        ca: ca.map(str::to_owned),
        token: token.clone(),
        names,
        labels: args.label.clone(),
        cpus: args.hypervisor_cpus,
        memory: args.hypervisor_memory,
        disk: args.hypervisor_disk,
        state: args.state.clone(),
    }))
}

/// Why the nodes have no names.
#[derive(Debug, thiserror::Error)]
enum NamesError {
    #[error(transparent)]
    Pattern(#[from] crate::pattern::PatternError),
    #[error("--name stands for {names} nodes, and --nodes asks for {nodes}; write a longer range")]
    TooFew { names: usize, nodes: u32 },
}

/// The names of all nodes; where invites are given, they are only counted.
fn names(args: &FleetArgs, source: &Source, known: usize) -> Result<Vec<NodeName>, NamesError> {
    let all = match (&args.name, source, args.nodes) {
        (None, Source::Api(_), None) if args.hypervisors.is_some() => return Ok(Vec::new()),
        (Some(pattern), _, _) => pattern.clone(),
        (None, Source::Given(invites), None) => {
            let count = known + invites.len();
            Pattern::numbered("node-", u32::try_from(count).unwrap_or(u32::MAX))
        }
        (None, _, nodes) => Pattern::numbered("sim-", nodes.unwrap_or(100)),
    };
    let mut names = all.names()?;
    if let Some(nodes) = args.nodes {
        if nodes as usize > names.len() {
            let names = names.len();
            return Err(NamesError::TooFew { names, nodes });
        }
        names.truncate(nodes as usize);
    }
    Ok(names)
}

/// A few kinds of machines.
fn facts() -> Vec<serde_json::Value> {
    let kinds = (0u32..16).map(|n| {
        json!({
            "simulated": true,
            "os": {"id": "debian", "version": if n % 4 == 0 { "12.9" } else { "13.1" }},
            "kernel": {"release": if n % 4 == 0 { "6.1.0" } else { "6.12.0" }},
            "arch": if n % 8 == 7 { "aarch64" } else { "x86_64" },
            "cpus": 2 << (n % 4),
            "memory": {"total": 4_294_967_296_u64 << (n % 5)},
        })
    });
    kinds.collect()
}

fn write_stats(to: Option<&Path>, statistics: &Statistics) -> Result<(), Failure> {
    let Some(path) = to else { return Ok(()) };
    let text = json!(statistics).to_string();
    if path == Path::new("-") {
        print(&text);
        return Ok(());
    }
    std::fs::write(path, text + "\n")
        .map_err(|e| Failure::new(1, &format!("cannot write {}: {e}", path.display())))
}

/// A line on standard output; who closed it does not want it.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_fleet_in_a_line() {
        let line = "muster-fleet-sim --nodes 5000 --url http://127.0.0.1:1 --token-file t \
            --name sim-{00001..05000} --role web --label rack=r{1..40} --state d --fail 1% \
            --decline 0.5% --silent 0.1% --slow 5%:200ms..2s --duplicate 1% --reorder \
            --work 0ms..10ms --output hi --drop-connection 0.1%/min --seed 7 --stats -";
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("parses");
        let names = names(&cli.fleet, &Source::Given(Vec::new()), 0).expect("names");
        assert_eq!(names.len(), 5000);
        assert_eq!(names[4999].as_str(), "sim-05000");
        let line = "muster-fleet-sim --nodes 6 --url u --name sim-{1..5}";
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("parses");
        let few = super::names(&cli.fleet, &Source::Given(Vec::new()), 0);
        assert!(matches!(
            few,
            Err(NamesError::TooFew { names: 5, nodes: 6 })
        ));
        let line = "muster-fleet-sim --url u --hypervisors 20 --hypervisor-memory 64GiB";
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("parses");
        let api = Source::Api(Secret::new("t"));
        assert!(super::names(&cli.fleet, &api, 0).is_ok_and(|nodes| nodes.is_empty()));
        let wanted = hypervisors(&cli.fleet, "u", None, &api, &[]);
        let wanted = wanted.ok().flatten().expect("hypervisors");
        assert_eq!(wanted.names.len(), 20);
        assert_eq!(wanted.names[19].as_str(), "hv-20");
        assert_eq!(wanted.memory, Size(64 << 30));
        let same = [wanted.names[3].clone()];
        assert!(hypervisors(&cli.fleet, "u", None, &api, &same).is_err());
        let line = "muster-fleet-sim floor --nodes 10";
        assert!(Cli::try_parse_from(line.split_whitespace()).is_ok());
        for bad in [
            "muster-fleet-sim --url u --invite-file a --token-file b",
            "muster-fleet-sim --url u --fail 1",
            "muster-fleet-sim --url u --nodes 0",
            "muster-fleet-sim --url u --hypervisors 0",
            "muster-fleet-sim --url u --hypervisor-name hv",
            "muster-fleet-sim --invite-file a --url u --hypervisors 2",
        ] {
            assert!(
                Cli::try_parse_from(bad.split_whitespace()).is_err(),
                "{bad}"
            );
        }
    }
}
