//! The floor: how quickly a fleet could answer one signed request at best.
//!
//! Nothing of muster runs: plain subscribers on one subject, each with a
//! connection of its own, check one ed25519 signature and answer. What muster
//! itself needs is measured as a multiple of this.

use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use muster_protocol::PROTOCOL_VERSION;
use muster_protocol::envelope::{
    Ask, Door, KEY_HEADER, MAX_START_WINDOW, Request, SIGNATURE_HEADER,
};
use muster_protocol::ids::{ClusterId, RunId, Serial};
use muster_protocol::keys::{PrivateKey, PublicKey, Purpose, Signature};
use muster_protocol::text::printable;
use muster_protocol::units::{Timestamp, after};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::bench::process;
use crate::limits::{TooFewFiles, make_room, resident_kib};
use crate::server::{Server, ServerError};

const ASK: &str = "floor.do";
const ANSWER: &str = "floor.from";
/// Connections that are made at once.
const AT_ONCE: usize = 64;
/// Longest time for one round.
const PATIENCE: Duration = Duration::from_secs(60);

/// Arguments of `floor`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How many subscribers
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub nodes: u32,
    /// The NATS server; without it, one of its own is started and ended
    #[arg(long, value_name = "NATS-URL")]
    pub url: Option<String>,
    /// How often the request is sent; the median is what counts
    #[arg(long, value_name = "R", default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// The program to start when there is no --url
    #[arg(long, value_name = "PROGRAM", default_value = "nats-server")]
    pub nats_server: String,
}

/// Why there is no floor.
#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    /// Open files.
    #[error(transparent)]
    Files(#[from] TooFewFiles),
    /// The server of its own.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A connection.
    #[error("{url} cannot be used: {why}")]
    Nats {
        /// Where.
        url: String,
        /// Why not.
        why: String,
    },
    /// Not everybody answered.
    #[error("only {answered} of {nodes} subscribers answered within {} s", PATIENCE.as_secs())]
    Silent {
        /// How many did.
        answered: u32,
        /// How many there are.
        nodes: u32,
    },
}

/// What was measured. Times are in milliseconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Floor {
    /// How many subscribers.
    pub nodes: u32,
    /// How many times it was measured.
    pub rounds: u32,
    /// From the publication to the last answer, in the middle.
    pub median_ms: f64,
    /// The best.
    pub min_ms: f64,
    /// The worst.
    pub max_ms: f64,
    /// Each of them, in order.
    pub rounds_ms: Vec<f64>,
    /// Processor time of one round in this process, in the mean.
    pub cpu_ms: f64,
    /// Processor time of one round in the server, when it is one of its own.
    pub server_cpu_ms: Option<f64>,
    /// Bytes of the request.
    pub request_bytes: usize,
    /// Until all were connected and subscribed.
    pub connect_ms: f64,
    /// Connections in a second.
    pub connects_per_second: f64,
    /// Memory of this process for each subscriber, in KiB.
    pub kib_per_node: f64,
}

/// Measures.
///
/// # Errors
/// [`FloorError`].
pub async fn measure(args: &Args) -> Result<Floor, FloorError> {
    make_room(args.nodes)?;
    let own = match &args.url {
        Some(_) => None,
        None => Some(Server::start(&args.nats_server, None).await?),
    };
    let url = match (&args.url, &own) {
        (Some(url), _) => url.as_str(),
        (None, Some(server)) => server.url(),
        (None, None) => "",
    };
    let key = PrivateKey::generate();
    let before = resident_kib();
    let begun = Instant::now();
    let mut subscribers = JoinSet::new();
    let fleet: Vec<_> = futures_util::stream::iter(0..args.nodes)
        .map(|_| subscribe(url, key.public()))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let connected = begun.elapsed();
    for subscriber in fleet {
        subscribers.spawn(subscriber);
    }
    let publisher = connect(url).await?;
    let nats = |e: &dyn std::fmt::Display| nats(url, e);
    let mut answers = publisher.subscribe(ANSWER).await.map_err(|e| nats(&e))?;
    publisher.flush().await.map_err(|e| nats(&e))?;
    let kib = resident_kib().saturating_sub(before);

    let mut times = Vec::new();
    let mut request_bytes = 0;
    let server = own.as_ref().map(Server::pid);
    let used = || {
        (
            process::cpu(std::process::id()),
            server.and_then(process::cpu),
        )
    };
    let mut used_before = used();
    // The first round is not counted: it is when memory is touched first.
    for round in 0..=args.rounds {
        if round == 1 {
            used_before = used();
        }
        let sealed = request(args.nodes).seal(&key);
        request_bytes = sealed.bytes.len();
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(KEY_HEADER, sealed.key.to_string().as_str());
        headers.insert(SIGNATURE_HEADER, sealed.signature.to_string().as_str());
        let sent = Instant::now();
        publisher
            .publish_with_headers(ASK, headers, sealed.bytes.into())
            .await
            .map_err(|e| nats(&e))?;
        let mut answered = 0;
        let all = async {
            while answered < args.nodes && answers.next().await.is_some() {
                answered += 1;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, all).await;
        if answered < args.nodes {
            let nodes = args.nodes;
            return Err(FloorError::Silent { answered, nodes });
        }
        if round > 0 {
            times.push(sent.elapsed().as_secs_f64() * 1000.0);
        }
    }
    let used_after = used();
    let each = |before: Option<Duration>, after: Option<Duration>| {
        let spent = after?.saturating_sub(before?);
        Some(spent.as_secs_f64() * 1000.0 / f64::from(args.rounds))
    };
    subscribers.shutdown().await;
    let rounds_ms = times.iter().copied().map(round_to_micros).collect();
    times.sort_by(f64::total_cmp);
    let at = |index: usize| round_to_micros(times.get(index).copied().unwrap_or_default());
    let seconds = connected.as_secs_f64();
    Ok(Floor {
        nodes: args.nodes,
        rounds: args.rounds,
        median_ms: at(times.len() / 2),
        min_ms: at(0),
        max_ms: at(times.len().saturating_sub(1)),
        rounds_ms,
        cpu_ms: each(used_before.0, used_after.0).unwrap_or_default(),
        server_cpu_ms: each(used_before.1, used_after.1),
        request_bytes,
        connect_ms: round_to_micros(seconds * 1000.0),
        connects_per_second: (f64::from(args.nodes) / seconds).round(),
        kib_per_node: per_node(kib, args.nodes),
    })
}

/// Memory for each node, in KiB with one digit.
#[must_use]
pub fn per_node(kib: u64, nodes: u32) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "kibibytes of one process")]
    let each = kib as f64 / f64::from(nodes.max(1));
    (each * 10.0).round() / 10.0
}

fn round_to_micros(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}

fn nats(url: &str, why: &dyn std::fmt::Display) -> FloorError {
    FloorError::Nats {
        url: printable(url, 100),
        why: printable(&why.to_string(), 200),
    }
}

async fn connect(url: &str) -> Result<Client, FloorError> {
    ConnectOptions::new()
        .read_buffer_capacity(crate::connection::READ_BUFFER)
        .client_capacity(64)
        .connect(url)
        .await
        .map_err(|e| nats(url, &e))
}

/// One subscriber, connected; the future is its life.
async fn subscribe(
    url: &str,
    key: PublicKey,
) -> Result<impl Future<Output = ()> + use<>, FloorError> {
    let client = connect(url).await?;
    let mut requests = client.subscribe(ASK).await.map_err(|e| nats(url, &e))?;
    client.flush().await.map_err(|e| nats(url, &e))?;
    Ok(async move {
        while let Some(message) = requests.next().await {
            let signature = message
                .headers
                .as_ref()
                .and_then(|h| h.get(SIGNATURE_HEADER))
                .and_then(|text| text.as_str().parse::<Signature>().ok());
            let good = signature.is_some_and(|signature| {
                key.verify(Purpose::Request, &message.payload, &signature)
                    .is_ok()
            });
            if good {
                let _ = client.publish(ANSWER, Bytes::from_static(b"ok")).await;
            }
        }
    })
}

/// A request as large as a ping of the same fleet.
fn request(nodes: u32) -> Request {
    let issued = Timestamp::now();
    Request {
        v: PROTOCOL_VERSION,
        cluster: ClusterId::random(),
        epoch: 1,
        run: RunId::random(),
        step: 0,
        set: (1..=nodes).map(Serial).collect(),
        whole: muster_protocol::nodeset::NodeSet::new(),
        created: None,
        predicate: "*".to_owned(),
        issued,
        start_before: after(issued, MAX_START_WINDOW),
        principal: "floor".parse().expect("a constant name"),
        door: Door::Cli,
        promised: false,
        ask: Ask::Ping,
    }
}
