//! Chat: how fast a line in a channel becomes a request to a node, and whether
//! a bot keeps up. The bot is the real one, on a server that only this
//! measurement knows; the broker and the agent are real, too.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use muster_protocol::units::Timestamp;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::BenchError;
use super::figures::{Row, Spread, Unit};
use super::http::Api;
use super::process::memory;
use super::world::{Programs, Started, World};

/// The target for a line to become a request, in milliseconds.
const TARGET: f64 = 10.0;
/// The target for the bot's memory, in MiB.
const RESIDENT: f64 = 20.0;
/// Channels.
const CHANNELS: usize = 50;
/// Lines a second in all of them together.
const RATE: u32 = 200;
/// Longest time for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the broker writes into its log when a request is on its way.
const SENT: &str = "a request is on its way to a run's nodes";

const PRINCIPALS: &str = r#"
[principals.ana]
kind = "person"
role = "operator"
irc = ["bench:ana"]
"#;

const POLICIES: &str = r#"
permit (principal, action == Action::"who-am-i", resource);
permit (principal in Role::"admin", action, resource);
permit (principal in Role::"operator", action, resource);
permit (principal in Role::"witness", action == Action::"witness", resource);
"#;

fn failed(why: impl std::fmt::Display) -> BenchError {
    BenchError::Part {
        name: "chat",
        why: why.to_string(),
    }
}

/// The server's side of the bot's connection.
struct Server {
    write: OwnedWriteHalf,
    heard: mpsc::UnboundedReceiver<String>,
}

impl Server {
    /// Takes the bot's connection, and lets it join its channels.
    async fn accept(listener: TcpListener) -> Result<Self, BenchError> {
        let accepted = timeout(PATIENCE, listener.accept()).await;
        let (stream, _) = accepted.map_err(failed)?.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let (read, write) = stream.into_split();
        let (tell, heard) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let mut server = Self { write, heard };
        let mut joined = 0;
        while joined < CHANNELS {
            let line = server.line().await?;
            joined += server.answer(&line).await?;
        }
        Ok(server)
    }

    async fn line(&mut self) -> Result<String, BenchError> {
        let line = timeout(PATIENCE, self.heard.recv()).await.map_err(failed)?;
        line.ok_or_else(|| failed("the bot ended the connection"))
    }

    async fn send(&mut self, line: &str) -> Result<(), BenchError> {
        let line = format!("{line}\r\n");
        self.write.write_all(line.as_bytes()).await.map_err(failed)
    }

    /// What a server says to a line of the bot; how many channels it joined.
    async fn answer(&mut self, line: &str) -> Result<usize, BenchError> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "CAP" if rest.starts_with("LS") => {
                self.send(":s CAP * LS :message-tags account-tag server-time")
                    .await?;
            }
            "CAP" if rest.starts_with("REQ") => {
                let names = rest
                    .trim_start_matches("REQ")
                    .trim()
                    .trim_start_matches(':');
                self.send(&format!(":s CAP * ACK :{names}")).await?;
            }
            "CAP" if rest.starts_with("END") => {
                self.send(":s 001 muster :hello muster!muster@bench")
                    .await?;
                self.send(":s 005 muster CASEMAPPING=ascii LINELEN=512 CHANTYPES=# :are supported")
                    .await?;
                self.send(":s 422 muster :no motd").await?;
            }
            "PING" => self.send(&format!(":s PONG s {rest}")).await?,
            "JOIN" => {
                let names = rest.split(' ').next().unwrap_or_default();
                let mut joined = 0;
                for name in names.trim_start_matches(':').split(',') {
                    self.send(&format!(":muster!muster@bench JOIN {name}"))
                        .await?;
                    self.send(&format!(":s 353 muster = {name} :muster ana"))
                        .await?;
                    self.send(&format!(":s 366 muster {name} :end")).await?;
                    joined += 1;
                }
                return Ok(joined);
            }
            "WHO" => {
                let name = rest.split(' ').next().unwrap_or_default();
                self.send(&format!(":s 315 muster {name} :end")).await?;
            }
            _ => {}
        }
        Ok(0)
    }

    /// A line of somebody in a channel.
    async fn says(
        &mut self,
        who: &str,
        id: u32,
        channel: usize,
        text: &str,
    ) -> Result<(), BenchError> {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
        self.send(&format!(
            "@account={who};msgid=m{id};time={now} :{who}!u@bench PRIVMSG #c{channel} :{text}"
        ))
        .await
    }
}

fn private(path: &Path, text: &str) -> Result<(), BenchError> {
    let mut file = std::fs::File::create(path).map_err(BenchError::Directory)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
        .map_err(BenchError::Directory)?;
    file.write_all(text.as_bytes())
        .map_err(BenchError::Directory)
}

/// When the broker has sent requests, as its log says, oldest first.
fn sent(log: &Path) -> Vec<Timestamp> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains(SENT));
    lines
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

/// Lines in a channel, one after the other: milliseconds from each to its
/// request.
async fn latency(
    server: &mut Server,
    log: &Path,
    lines: std::ops::Range<u32>,
) -> Result<Vec<f64>, BenchError> {
    let mut took = Vec::new();
    for n in lines {
        let before = sent(log).len();
        let begun = Timestamp::try_from(SystemTime::now()).map_err(failed)?;
        server
            .says("ana", n, 0, "!cmd web-01 --yes -- true")
            .await?;
        let until = Instant::now() + PATIENCE;
        let at = loop {
            if let Some(at) = sent(log).get(before) {
                break *at;
            }
            if Instant::now() > until {
                return Err(failed("a line came to no request"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        took.push(at.duration_since(begun).as_secs_f64() * 1_000.0);
        // Its end is told before the next one begins.
        loop {
            let line = server.line().await?;
            if line.contains("succeeded") {
                break;
            }
            server.answer(&line).await?;
        }
    }
    Ok(took)
}

/// Many lines in many channels; how many were answered.
async fn load(server: &mut Server, seconds: u32) -> Result<(u32, u32), BenchError> {
    let count = RATE * seconds;
    let begin = Instant::now() + Duration::from_millis(100);
    let (mut next, mut answered) = (0, 0);
    let mut quiet = Instant::now() + PATIENCE;
    while answered < count && Instant::now() < quiet {
        let due = begin + Duration::from_secs(1) * next / RATE;
        tokio::select! {
            () = sleep_until(due), if next < count => {
                let channel = next as usize % CHANNELS;
                let who = format!("p{channel}");
                server.says(&who, 100_000 + next, channel, "!who").await?;
                next += 1;
            }
            line = server.heard.recv() => {
                let line = line.ok_or_else(|| failed("the bot ended the connection"))?;
                quiet = Instant::now() + Duration::from_secs(10);
                if line.starts_with("PRIVMSG") && line.contains("you are ") {
                    answered += 1;
                } else {
                    server.answer(&line).await?;
                }
            }
            () = sleep_until(quiet) => break,
        }
    }
    Ok((count, answered))
}

/// The rows of the table.
///
/// # Errors
/// [`BenchError`].
pub(super) fn rows(
    programs: &Programs,
    below: &Path,
    started: &Started,
    quick: bool,
) -> Result<Vec<Row>, BenchError> {
    let agent = ["web-01:role=web".to_owned()];
    let filter = "info,muster_broker::bus=debug";
    let world = World::start_logging(programs, below, &agent, filter, started)?;
    world.policies(POLICIES, PRINCIPALS)?;
    let dir = tempfile::Builder::new()
        .prefix("muster-bench-")
        .tempdir_in(below)
        .map_err(BenchError::Directory)?;
    let body = json!({ "for": "irc:bench", "role": "witness" });
    let mut api = Api::connect(world.address(), world.token())?;
    let (made, _) = api.json("POST", "/v1/tokens", Some(&body))?;
    let token = made["token"].as_str().unwrap_or_default();
    private(&dir.path().join("token"), token)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(BenchError::Directory)?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
    let listener = listener.map_err(BenchError::Directory)?;
    let port = listener.local_addr().map_err(BenchError::Directory)?.port();
    let channels: Vec<String> = (0..CHANNELS).map(|n| format!("\"#c{n}\"")).collect();
    private(
        &dir.path().join("bot.toml"),
        &format!(
            "state = \"{}\"\n[broker]\nurl = \"http://{}\"\n[networks.bench]\n\
             server = \"127.0.0.1:{port}\"\ntls = false\nnick = \"muster\"\n\
             channels = [{}]\ntoken_file = \"token\"\nburst = 1000\nrate = 1000\n",
            dir.path().join("state").display(),
            world.address(),
            channels.join(", ")
        ),
    )?;
    let bot = world.bot(&dir.path().join("bot.toml"))?;
    let log = world.broker_log();
    let (count, seconds) = if quick { (20, 5) } else { (50, 15) };
    let (took, (asked, answered)) = runtime.block_on(async {
        let mut server = Server::accept(listener).await?;
        // Once for what is done the first time.
        latency(&mut server, &log, 0..3).await?;
        let took = latency(&mut server, &log, 10..10 + count).await?;
        let load = load(&mut server, seconds).await?;
        Ok::<_, BenchError>((took, load))
    })?;
    let resident = memory(bot.pid()).ok_or_else(|| failed("the bot is gone"))?;
    #[allow(clippy::cast_precision_loss, reason = "memory of a process")]
    let resident = [resident.resident as f64 / 1024.0];
    let spread = |values: &[f64]| Spread::of(values).ok_or_else(|| failed("nothing came"));
    let lost = [f64::from(asked - answered.min(asked))];
    tracing::info!(asked, answered, "lines in channels");
    Ok(vec![
        Row::at_most(
            "a line in a channel to its run's request on NATS",
            Unit::Ms,
            spread(&took)?,
            TARGET,
        ),
        Row::at_most(
            format!("lines without an answer, of {asked}: {RATE} a second on {CHANNELS} channels"),
            Unit::Count,
            spread(&lost)?,
            0.0,
        ),
        Row::at_most(
            "the bot after that, resident",
            Unit::Mib,
            spread(&resident)?,
            RESIDENT,
        ),
    ])
}
