//! `muster up`: everything on one machine, each part a process of its own.
//!
//! The parts are nats-server, the broker, and an agent for each `--node`, in
//! process groups of their own: Ctrl-C on the terminal reaches `muster up`
//! alone, which ends them in order. Killed itself, they go on, and the next
//! `muster up` on the state directory adopts them.

pub mod agents;
pub mod embedded;
pub mod identity;
pub mod keeper;
pub mod layout;
pub mod ports;
pub mod process;
mod programs;
pub mod server;
pub mod spec;

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use muster_client::{Client, ClientError, Secret};
use muster_protocol::api::Readiness;
use muster_protocol::problem::Kind;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::Context;
use crate::failure::{Failure, NOT_ALL};
use crate::find::UpFile;
use crate::ui::count;
use crate::up::embedded::Prepared;
use crate::up::identity::Identity;
use crate::up::keeper::Keeper;
use crate::up::layout::Layout;
use crate::up::process::{Part, Running};
use crate::up::spec::NodeSpec;

/// What `muster up` is told.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The state directory.
    pub state: PathBuf,
    /// Where the broker listens.
    pub listen: SocketAddr,
    /// Where the NATS server listens; a port of loopback when absent.
    pub nats_listen: Option<SocketAddr>,
    /// The agents.
    pub nodes: Vec<NodeSpec>,
    /// The file with webhooks, triggers and routes, if another one is named.
    pub hooks: Option<PathBuf>,
    /// The `ready` line is a JSON object.
    pub json: bool,
}

/// How long everything may take to answer.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often it is looked whether the broker can use the NATS server.
const MEND_LOOK: Duration = Duration::from_secs(2);
/// How long it may not be able to.
const MEND_AFTER: Duration = Duration::from_secs(15);
/// Bytes that must be free on its disk for a new start to do any good.
const MEND_ROOM: u64 = 16 << 20;
/// A part that ended so often before `ready` will not come.
const HOPELESS: u32 = 3;

/// Writes to standard error, from wherever it is.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Replaces a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Everything that runs, in the order of its start.
#[derive(Debug, Default)]
struct Parts {
    nats: Option<Keeper>,
    broker: Option<Keeper>,
    agents: Vec<Keeper>,
}

impl Parts {
    fn all(&self) -> impl Iterator<Item = &Keeper> {
        self.nats.iter().chain(&self.broker).chain(&self.agents)
    }

    /// Waits until one of them cannot be started.
    async fn hopeless(&self) -> Failure {
        let mut waits = tokio::task::JoinSet::new();
        for keeper in self.all() {
            let watch = keeper.watch();
            waits.spawn(async move { watch.troubled(HOPELESS).await });
        }
        match waits.join_next().await {
            Some(Ok((part, trouble))) => {
                let mut failure = Failure::new(
                    NOT_ALL,
                    format!(
                        "{} does not stay up: it ended {} times in a row ({})",
                        part.name, trouble.times, trouble.how
                    ),
                );
                let words = part.last_words(5);
                if !words.is_empty() {
                    failure.detail = Some(words);
                }
                failure.hint(format!("its whole log: {}", part.log.display()))
            }
            _ => std::future::pending().await,
        }
    }

    /// Agents first, so that they can still say goodbye; the server last.
    async fn end(self) {
        let mut ends = tokio::task::JoinSet::new();
        for agent in self.agents {
            ends.spawn(agent.end());
        }
        while ends.join_next().await.is_some() {}
        for keeper in self.broker.into_iter().chain(self.nats) {
            keeper.end().await;
        }
    }
}

/// Runs everything until a signal says to end.
///
/// # Errors
/// [`Failure`]; everything that was started has ended then.
pub async fn up(context: &Context, wish: &Wish) -> Result<u8, Failure> {
    let mut stop = Stop::new()?;
    agents::check(&wish.nodes)?;
    let state = embedded::open(&wish.state)?;
    let layout = Layout::new(&wish.state)?;
    let _lock = layout.lock()?;
    let server = server::find()?;
    let mut parts = Parts::default();
    let started = tokio::select! {
        started = start(context, wish, &layout, &state, &server, &mut parts) => started,
        signal = stop.next() => Err(Failure::new(NOT_ALL, format!("{signal} before everything was ready"))),
    };
    let code = match started {
        Ok((told, client)) => {
            let signal = tokio::select! {
                signal = stop.next() => signal,
                () = mend(&layout, &client, &parts) => "told to end",
            };
            say(&format!("{signal}: ending {}", plural(&parts)));
            drop(told);
            Ok(0)
        }
        Err(failure) => Err(failure),
    };
    // A second signal ends without patience: every process is killed when
    // this one's keepers are dropped with the runtime, so it waits for them.
    tokio::select! {
        () = parts.end() => {}
        () = stop.third() => say("ended without waiting; what is left over is adopted by the next `muster up`"),
    }
    code
}

fn plural(parts: &Parts) -> String {
    count(parts.all().count(), "process").replace("processs", "processes")
}

async fn start(
    context: &Context,
    wish: &Wish,
    layout: &Layout,
    state: &embedded::State,
    server: &server::Server,
    parts: &mut Parts,
) -> Result<(Told, Client), Failure> {
    let begun = Instant::now();
    // What an earlier start left behind decides about ports and configuration.
    let prepared = Prepared::new(wish, layout, state, server)?;
    let nats = prepared.nats_part(layout, server);
    let broker = prepared.broker_part(layout)?;
    let nats_running = adopt(&nats).await;
    let broker_running = adopt(&broker).await;
    if broker_running.is_none() {
        ports::require_free(prepared.listen, "--listen")?;
    }
    if nats_running.is_none() {
        ports::require_free(prepared.nats_listen, "--nats-listen")?;
    }
    prepared.write()?;
    end_unwanted_agents(wish, layout).await;
    say(&format!(
        "nats-server {} on {}",
        server.version, prepared.nats_listen
    ));
    parts.nats = Some(Keeper::new(nats, nats_running, say));
    parts.broker = Some(Keeper::new(broker, broker_running, say));
    let client = tokio::select! {
        client = reachable(&prepared, begun) => client?,
        failure = parts.hopeless() => return Err(failure),
    };
    say(&format!("broker on {}", prepared.url));
    let runner = agents::Runner::new(layout, &prepared, client.clone())?;
    for part in runner.prepare(&wish.nodes).await? {
        let running = adopt(&part).await;
        parts.agents.push(Keeper::new(part, running, say));
    }
    tokio::select! {
        ready = runner.all_up(&wish.nodes, begun) => ready?,
        failure = parts.hopeless() => return Err(failure),
    }
    let told = Told::write(&prepared)?;
    if wish.json {
        context.term.json(&json!({
            "type": "ready",
            "url": prepared.url,
            "nats": prepared.nats_url(),
            "token_file": prepared.token_file,
            "ca_file": prepared.ca_file,
            "state": layout.root(),
            "nodes": wish.nodes.iter().map(|n| &n.name).collect::<Vec<_>>(),
        }))?;
    } else {
        let nodes = if wish.nodes.is_empty() {
            String::new()
        } else {
            format!("  {} up", count(wish.nodes.len(), "node"))
        };
        context.term.line(&format!(
            "ready  {}  nats {}{nodes}  in {}",
            prepared.url,
            prepared.nats_listen,
            crate::ui::time::took(begun.elapsed())
        ))?;
    }
    Ok((told, client))
}

/// Starts the NATS server anew when the broker has not been able to use it for
/// a while: one whose disk was full has switched JetStream off for good, also
/// when there is room again. Without room it would do no good, and is left.
async fn mend(layout: &Layout, client: &Client, parts: &Parts) {
    let mut since: Option<Instant> = None;
    loop {
        sleep(MEND_LOOK).await;
        // Not being reached is the broker's own affair, and a broker that
        // stands by for another one lacks nothing.
        let waits = |readiness: &Readiness| {
            matches!(
                readiness,
                Readiness::Starting { .. } | Readiness::Suspended { .. }
            )
        };
        let suspended = matches!(client.readyz().await, Err(ClientError::NotReady(r)) if waits(&r));
        if !suspended {
            since = None;
            continue;
        }
        if since.get_or_insert_with(Instant::now).elapsed() < MEND_AFTER {
            continue;
        }
        // Without room it is looked again at the next turn.
        let room = rustix::fs::statvfs(layout.root())
            .is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) >= MEND_ROOM);
        if let (true, Some(nats)) = (room, &parts.nats) {
            say("the broker cannot use the NATS server; starting it anew");
            nats.start_anew();
            since = None;
        }
    }
}

async fn adopt(part: &Part) -> Option<Running> {
    let running = part.adopt(&|text| say(&text)).await;
    if let Some(running) = &running {
        say(&format!(
            "{}: adopted pid {}, which an earlier `muster up` started",
            part.name, running.identity.pid
        ));
    }
    running
}

/// Agents of an earlier start that nobody asks for now: they are ended, their
/// state stays.
async fn end_unwanted_agents(wish: &Wish, layout: &Layout) {
    for name in layout.noted_agents() {
        if wish.nodes.iter().any(|n| n.name.as_str() == name) {
            continue;
        }
        let part = agents::part(layout, &name, String::new());
        if let Some(pid) = part.end_left_behind().await {
            say(&format!(
                "{name}: ended pid {pid}, as there is no --node for it now"
            ));
        }
    }
}

/// Waits until the broker can take runs.
async fn reachable(prepared: &Prepared, begun: Instant) -> Result<Client, Failure> {
    // The file may have been read just before the broker wrote a new one.
    let mut denied = 0;
    loop {
        let why = match client(prepared) {
            Ok(client) => match client.readyz().await {
                Ok(()) => match client.whoami().await {
                    Ok(_) => return Ok(client),
                    Err(e) => {
                        denied += u32::from(e.kind() == Some(Kind::Unauthenticated));
                        if denied >= HOPELESS {
                            let file = prepared.token_file.display();
                            return Err(Failure::new(
                                crate::failure::DENIED,
                                format!("the broker does not take the token in {file}: {e}"),
                            )
                            .hint("put the token of an admin into it; or empty it and start again: a new one is written then"));
                        }
                        e.to_string()
                    }
                },
                Err(e) => e.to_string(),
            },
            Err(why) => {
                // The broker writes it before it is ready, if it ever does.
                if !prepared.token_file.exists()
                    && is_ready(prepared).await
                    && !prepared.token_file.exists()
                {
                    let file = prepared.token_file.display();
                    return Err(Failure::new(
                        crate::failure::DENIED,
                        format!("there is no admin token in {file}, and the broker knows one already"),
                    )
                    .hint("put the token of an admin into it; or make it an empty file and start again: a new one is written then"));
                }
                why
            }
        };
        if begun.elapsed() > READY_WITHIN {
            return Err(Failure::new(
                crate::failure::UNREACHABLE,
                "the broker is not ready within a minute",
            )
            .detail(why)
            .hint(format!("its log: {}", prepared.broker_log.display())));
        }
        sleep(LOOK_EVERY).await;
    }
}

fn client(prepared: &Prepared) -> Result<Client, String> {
    let token = std::fs::read_to_string(&prepared.token_file)
        .map_err(|e| format!("{}: {e}", prepared.token_file.display()))?;
    client_with(prepared, Some(Secret::new(token.trim())))
}

/// Whether the broker serves, whoever asks.
async fn is_ready(prepared: &Prepared) -> bool {
    match client_with(prepared, None) {
        Ok(client) => client.readyz().await.is_ok(),
        Err(_) => false,
    }
}

fn client_with(prepared: &Prepared, token: Option<Secret>) -> Result<Client, String> {
    let mut endpoint = muster_client::Endpoint::new(&prepared.reach)
        .map_err(|e| e.to_string())?
        .door("cli");
    if let Some(token) = token {
        endpoint = endpoint.token(token);
    }
    if let Some(ca) = &prepared.ca_file {
        endpoint = endpoint.ca_file(ca);
    }
    Client::new(endpoint).map_err(|e| e.to_string())
}

/// The file by which other commands of this user find the broker; gone when
/// this is dropped.
#[derive(Debug)]
struct Told {
    path: Option<PathBuf>,
    me: Option<Identity>,
}

impl Told {
    fn write(prepared: &Prepared) -> Result<Self, Failure> {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let Some(path) = crate::find::up_path(var("XDG_RUNTIME_DIR"), var("HOME")) else {
            say(
                "neither XDG_RUNTIME_DIR nor HOME is set: other commands need --url and --token-file",
            );
            return Ok(Self {
                path: None,
                me: None,
            });
        };
        let Some(me) = Identity::of(std::process::id()) else {
            return Ok(Self {
                path: None,
                me: None,
            });
        };
        let file = UpFile {
            identity: me.clone(),
            url: prepared.reach.clone(),
            token_file: prepared.token_file.clone(),
            ca_file: prepared.ca_file.clone(),
        };
        let dir = path.parent().map(std::fs::create_dir_all).unwrap_or(Ok(()));
        let text = serde_json::to_vec(&file).map_err(std::io::Error::from);
        match dir.and(text).and_then(|text| write_private(&path, &text)) {
            Ok(()) => Ok(Self {
                path: Some(path),
                me: Some(me),
            }),
            Err(e) => {
                say(&format!(
                    "cannot write {}: {e}; other commands need --url and --token-file",
                    path.display()
                ));
                Ok(Self {
                    path: None,
                    me: None,
                })
            }
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        // A later `muster up` of another state may have taken its place.
        let mine = std::fs::read(path)
            .ok()
            .and_then(|text| serde_json::from_slice::<UpFile>(&text).ok())
            .is_some_and(|up| Some(&up.identity) == self.me.as_ref());
        if mine {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The signals that say to end.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }

    /// The first of two more signals is answered, the second obeyed.
    async fn third(&mut self) {
        let signal = self.next().await;
        say(&format!(
            "{signal}: still ending; once more to leave without waiting"
        ));
        self.next().await;
    }
}
