//! `muster agent`

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use muster_client::Client;
use muster_protocol::api::{Confirm, NodeView, ReleaseView, RunRequest};
use muster_protocol::envelope::Mode;
use muster_protocol::release::{Inspected, Inspector, MAX_RELEASE, Release};
use muster_protocol::text::printable;
use muster_protocol::units::{Amount, Span};
use serde_json::json;

use crate::Context;
use crate::failure::{Failure, USAGE};
use crate::ui::table::Table;
use crate::ui::time::ago;
use crate::ui::{Paint, count};
use crate::up::agents::executable;
use crate::verbs::now;
use crate::verbs::run::{FollowArgs, not_zero, start};
use muster_protocol::fold::folded;

/// Scenario that replaces agents.
const SCENARIO: &str = "agent-upgrade";

const AFTER: &str = "\
Each agent fetches the release from the broker, holds it against the signed hash, tries it, waits
for its running steps, and becomes it. One that is not welcomed by the broker in time, or ends, is
replaced by the old one again. By default a tenth of the nodes at a time, and no more after the
first failure.

Examples:
  muster agent upgrade 'name=web-01'
  muster agent upgrade 'role=web' --batch 10%
  muster agent upgrade 'arch=aarch64' --binary ./muster-agent-aarch64 --batch 5";

/// Arguments of `muster agent`.
#[derive(Args, Debug)]
pub struct AgentArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: AgentVerb,
}

/// What can be done with agents.
#[derive(Debug, Subcommand)]
pub enum AgentVerb {
    /// Replace the agents of the nodes that match
    Upgrade(UpgradeArgs),
    /// How many nodes run which version
    Versions(VersionsArgs),
    /// Releases that the broker has
    Releases(ReleasesArgs),
    /// Remove a release from the broker
    Forget(ForgetArgs),
}

/// Arguments of `muster agent upgrade`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct UpgradeArgs {
    /// Which nodes, such as 'role=web and zone=gva2'
    #[arg(value_name = "PREDICATE")]
    pub predicate: String,
    /// The muster-agent to run there [default: the one beside this command]
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// Nodes at a time: 5 or 10% [default: 10%]
    #[arg(long, value_name = "N|P%", value_parser = not_zero)]
    pub batch: Option<Amount>,
    /// Failures after which nothing more is started: 2 or 10% [default: 0]
    #[arg(long, value_name = "N|P%")]
    pub max_failures: Option<Amount>,
    /// Time for each node, the wait for its running steps included [default: 5m]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// How long a node may take to acknowledge [default: 15s]
    #[arg(long, value_name = "TIME")]
    pub deliver_within: Option<Span>,
    /// Also nodes that run a newer version
    #[arg(long)]
    pub allow_downgrade: bool,
    /// Only so many of the matching nodes, the first by name: 3 or 10%
    #[arg(long, value_name = "N|P%", value_parser = not_zero)]
    pub limit: Option<Amount>,
    /// Keep the broker's own machines in, also when not named
    #[arg(long)]
    pub include_infrastructure: bool,
    /// Names that no node has are meant
    #[arg(long)]
    pub allow_unknown: bool,
    /// How it is followed.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Arguments of `muster agent versions`.
#[derive(Args, Debug)]
pub struct VersionsArgs {
    /// Only these nodes
    #[arg(value_name = "PREDICATE")]
    pub predicate: Option<String>,
    /// Names that no node has are meant
    #[arg(long)]
    pub allow_unknown: bool,
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster agent releases`.
#[derive(Args, Debug)]
pub struct ReleasesArgs {
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `muster agent forget`.
#[derive(Args, Debug)]
pub struct ForgetArgs {
    /// The beginning of its SHA-256, as `muster agent releases` shows it
    #[arg(value_name = "SHA256")]
    pub release: String,
}

/// Does what was asked for.
///
/// # Errors
/// [`Failure`].
pub async fn run(context: &Context, args: AgentArgs) -> Result<u8, Failure> {
    match args.verb {
        AgentVerb::Upgrade(args) => upgrade(context, args).await,
        AgentVerb::Versions(args) => versions(context, &args).await,
        AgentVerb::Releases(args) => releases(context, &args).await,
        AgentVerb::Forget(args) => forget(context, &args).await,
    }
}

/// A release in a file.
struct Binary {
    path: PathBuf,
    seen: Inspected,
    release: Release,
}

impl Binary {
    fn open(named: Option<PathBuf>) -> Result<Self, Failure> {
        let path = named.unwrap_or_else(executable);
        let fail = |why: &dyn std::fmt::Display| {
            Failure::new(USAGE, format!("{}: {why}", path.display()))
                .hint("--binary names the muster-agent that the nodes are to run")
        };
        let mut file = File::open(&path).map_err(|e| fail(&e))?;
        let size = file.metadata().map_err(|e| fail(&e))?.len();
        if size > MAX_RELEASE {
            return Err(fail(&format!(
                "it has {size} bytes, more than the {MAX_RELEASE} that a release may have"
            )));
        }
        let mut inspector = Inspector::new();
        let mut piece = vec![0; 256 * 1024];
        loop {
            match file.read(&mut piece).map_err(|e| fail(&e))? {
                0 => break,
                n => inspector.push(&piece[..n]),
            }
        }
        let seen = inspector.finish();
        match &seen.release {
            Ok(release) => Ok(Self {
                release: release.clone(),
                path,
                seen,
            }),
            Err(e) => Err(fail(e)),
        }
    }

    /// Gives the broker what it lacks of it.
    async fn upload(&self, context: &Context, client: &Client) -> Result<(), Failure> {
        let id = self.seen.id;
        let offer = client.offer_release(id, self.seen.size).await?;
        if offer.stored.is_some() {
            return Ok(());
        }
        context.term.note(&format!(
            "uploading {} ({})",
            self.path.display(),
            size(self.seen.size)
        ));
        let changed = |e: &dyn std::fmt::Display| {
            Failure::usage(format!(
                "{} has changed while it was read: {e}",
                self.path.display()
            ))
        };
        let mut file = File::open(&self.path).map_err(|e| changed(&e))?;
        for part in offer.missing {
            let begin = u64::from(part) * u64::from(offer.part_bytes);
            let length = self
                .seen
                .size
                .saturating_sub(begin)
                .min(offer.part_bytes.into());
            let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
            file.seek(SeekFrom::Start(begin))
                .and_then(|_| file.read_exact(&mut data))
                .map_err(|e| changed(&e))?;
            client.put_release_part(id, part, data).await?;
        }
        client.commit_release(id).await?;
        Ok(())
    }
}

async fn upgrade(context: &Context, args: UpgradeArgs) -> Result<u8, Failure> {
    let binary = Binary::open(args.binary)?;
    let client = context.client()?;
    // A mistake in the predicate is said before megabytes are sent.
    let nodes = client
        .nodes(Some(&args.predicate), args.allow_unknown)
        .await?;
    context.term.note(&format!(
        "release {} for {} ({}) from {}",
        binary.release.version,
        binary.release.build.platform(),
        binary.seen.id.short(),
        binary.path.display()
    ));
    if nodes.is_empty() {
        return Err(Failure::new(
            3,
            format!(
                "no node matches `{}`; nothing was run",
                printable(&args.predicate, 200)
            ),
        ));
    }
    context.term.note(&format!("now: {}", summary(&nodes)));
    binary.upload(context, &client).await?;
    let request = RunRequest {
        predicate: Some(args.predicate),
        version: None,
        scenario: SCENARIO
            .parse()
            .map_err(|e| Failure::usage(format!("{e}")))?,
        params: json!({
            "release": binary.seen.id,
            "allow_downgrade": args.allow_downgrade,
        }),
        mode: Mode::Apply,
        timeout: args.timeout,
        deliver_within: args.deliver_within,
        batch: args.batch,
        max_failures: args.max_failures,
        max_failures_by: None,
        retry: None,
        limit: args.limit,
        wait_down: false,
        include_infrastructure: args.include_infrastructure,
        allow_unknown: args.allow_unknown,
        output_bytes: None,
        confirm: if args.follow.yes {
            Confirm::Yes
        } else {
            Confirm::Ask
        },
    };
    start(context, &client, request, args.follow).await
}

/// What runs where: version, platform, state of the agent's knowledge.
type Versions = BTreeMap<(String, String), Vec<String>>;

fn by_version(nodes: &[NodeView]) -> Versions {
    let mut all = Versions::new();
    for node in nodes {
        let version = node.version.as_deref().unwrap_or("never seen");
        let platform = node
            .agent
            .as_ref()
            .and_then(|agent| agent.build.as_ref())
            .map_or_else(|| "-".to_owned(), muster_protocol::release::Build::platform);
        all.entry((printable(version, 64), printable(&platform, 70)))
            .or_default()
            .push(node.name.to_string());
    }
    all
}

fn summary(nodes: &[NodeView]) -> String {
    by_version(nodes)
        .iter()
        .map(|((version, _), names)| format!("{} {version}", count(names.len(), "node")))
        .collect::<Vec<_>>()
        .join(", ")
}

async fn versions(context: &Context, args: &VersionsArgs) -> Result<u8, Failure> {
    let nodes = context
        .client()?
        .nodes(args.predicate.as_deref(), args.allow_unknown)
        .await?;
    let all = by_version(&nodes);
    if args.json {
        let items: Vec<_> = all
            .iter()
            .map(|((version, platform), names)| {
                json!({ "version": version, "platform": platform, "nodes": names })
            })
            .collect();
        context.term.json(&items)?;
    } else if nodes.is_empty() {
        context.term.note("no node matches");
    } else {
        context
            .term
            .say(&table(&all, context.term.out, context.term.width))?;
    }
    Ok(if nodes.is_empty() && args.predicate.is_some() {
        3
    } else {
        0
    })
}

fn table(all: &Versions, paint: Paint, width: usize) -> String {
    let mut table = Table::new(&["VERSION", "PLATFORM", "NODES", "WHICH"]);
    for ((version, platform), names) in all {
        table.row([
            version.as_str().into(),
            platform.as_str().into(),
            names.len().to_string().into(),
            folded(names.iter().map(String::as_str), 60).into(),
        ]);
    }
    table.render(paint, width)
}

async fn releases(context: &Context, args: &ReleasesArgs) -> Result<u8, Failure> {
    let all = context.client()?.releases().await?;
    if args.json {
        context.term.json(&all)?;
    } else if all.is_empty() {
        context
            .term
            .note("no releases yet: `muster agent upgrade` brings one");
    } else {
        let mut table = Table::new(&["SHA256", "VERSION", "PLATFORM", "SIZE", "STORED", "BY"]);
        for release in &all {
            table.row([
                release.id.short().into(),
                release.release.version.to_string().into(),
                release.release.build.platform().into(),
                size(release.size).into(),
                ago(release.stored, now()).into(),
                release.by.to_string().into(),
            ]);
        }
        let text = table.render(context.term.out, context.term.width);
        context.term.say(&text)?;
    }
    Ok(0)
}

async fn forget(context: &Context, args: &ForgetArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let all = client.releases().await?;
    let found: Vec<&ReleaseView> = all
        .iter()
        .filter(|view| view.id.to_string().starts_with(&args.release))
        .collect();
    match found.as_slice() {
        [view] if args.release.len() >= 4 => {
            client.remove_release(view.id).await?;
            context.term.note(&format!(
                "release {} ({}) is removed",
                view.release.version,
                view.id.short()
            ));
            Ok(0)
        }
        [] => Err(Failure::usage(format!(
            "there is no release {}",
            printable(&args.release, 80)
        ))
        .hint("muster agent releases lists them")),
        _ => Err(Failure::usage("that stands for several releases").hint("give more of the hash")),
    }
}

/// `14.2 MiB`.
fn size(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
