//! How many webhooks a broker takes, and how fast it answers: signed pushes as
//! GitHub sends them, over connections that stay open, each stored before it
//! is answered.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::json;
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant as Moment, sleep_until, timeout};

use super::BenchError;
use super::figures::{Row, Spread, Unit, percentile};
use super::world::{Programs, Started, World};

/// Deliveries a second.
const RATE: u64 = 1_000;
/// The target for all but the slowest hundredth, in milliseconds.
const TARGET: f64 = 50.0;
/// Connections, as several products hold them.
const CONNECTIONS: usize = 64;
/// Longest time for one answer.
const ANSWER: Duration = Duration::from_secs(20);
/// What is signed with.
const SECRET: &str = "only for this measurement";

/// A push with two commits, about as large as GitHub's.
fn body(number: u64) -> String {
    let id = format!("{number:040x}");
    let commit = |id: &str| {
        json!({
            "id": id, "tree_id": id, "distinct": true, "message": "Cache the price list\n\nIt is read for every page.",
            "timestamp": "2026-11-21T10:02:40+01:00", "url": format!("https://github.com/acme/webapp/commit/{id}"),
            "author": { "name": "Bruno Roth", "email": "bruno@example.org", "username": "bruno" },
            "committer": { "name": "Bruno Roth", "email": "bruno@example.org", "username": "bruno" },
            "added": [], "removed": [], "modified": ["src/prices.rs", "tests/prices.rs"]
        })
    };
    let links: serde_json::Map<String, serde_json::Value> = (0..60)
        .map(|n| {
            let link = format!("https://api.github.com/repos/acme/webapp/link{n}{{/sha}}");
            (format!("link{n}_url"), link.into())
        })
        .collect();
    let mut repository = json!({ "id": 1, "name": "webapp", "full_name": "acme/webapp", "html_url": "https://github.com/acme/webapp" });
    if let Some(repository) = repository.as_object_mut() {
        repository.extend(links);
    }
    json!({
        "ref": "refs/heads/main", "before": "6113728f27ae82c7b1a177c8d03f9e96e0adf246", "after": id,
        "repository": repository, "pusher": { "name": "bruno" }, "sender": { "login": "bruno" },
        "forced": false, "commits": [commit("c441029cf673f84c8b7db52d0a5944ee5c52ff89"), commit(&id)],
        "head_commit": commit(&id)
    })
    .to_string()
}

fn request(number: u64) -> Option<Vec<u8>> {
    let body = body(number);
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).ok()?;
    mac.update(body.as_bytes());
    let signature = HEXLOWER.encode(&mac.finalize().into_bytes());
    let head = format!(
        "POST /hooks/bench HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n\
         X-GitHub-Delivery: {number:032x}\r\nX-Hub-Signature-256: sha256={signature}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Some([head.as_bytes(), body.as_bytes()].concat())
}

/// Sends one and reads the head of its answer, which has no body.
async fn send(stream: &mut TcpStream, request: &[u8]) -> Result<(), String> {
    stream.write_all(request).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::with_capacity(1_024);
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read_buf(&mut answer);
        let read = timeout(ANSWER, read).await.map_err(|e| e.to_string())?;
        if read.map_err(|e| e.to_string())? == 0 {
            return Err("the broker ended the connection".to_owned());
        }
    }
    if answer.starts_with(b"HTTP/1.1 204") {
        Ok(())
    } else {
        let line = answer.split(|b| *b == b'\r').next().unwrap_or_default();
        Err(String::from_utf8_lossy(line).into_owned())
    }
}

/// So many deliveries, each at its time, whatever became of those before it;
/// milliseconds from when each was due to its answer.
async fn deliver(address: String, count: u64) -> Result<Vec<f64>, String> {
    let next = Arc::new(AtomicU64::new(0));
    let begin = Moment::now() + Duration::from_millis(200);
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (next, address) = (Arc::clone(&next), address.clone());
        workers.spawn(async move {
            let stream = TcpStream::connect(&address).await;
            let mut stream = stream.map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            let mut took = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, String>(took);
                }
                let request = request(number).ok_or("it cannot be signed")?;
                let due = begin + Duration::from_micros(number * 1_000_000 / RATE);
                sleep_until(due).await;
                send(&mut stream, &request).await?;
                took.push(due.elapsed().as_secs_f64() * 1_000.0);
            }
        });
    }
    let mut all = Vec::new();
    while let Some(worker) = workers.join_next().await {
        all.extend(worker.map_err(|e| e.to_string())??);
    }
    Ok(all)
}

/// The row of the table.
///
/// # Errors
/// [`BenchError`].
pub(super) fn row(
    programs: &Programs,
    below: &Path,
    started: &Started,
    quick: bool,
) -> Result<Row, BenchError> {
    let failed = |why: String| BenchError::Part {
        name: "webhooks",
        why,
    };
    let dir = tempfile::Builder::new()
        .prefix("muster-bench-")
        .tempdir_in(below)
        .map_err(BenchError::Directory)?;
    let file = dir.path().join("hooks.toml");
    let text = format!(
        "[hooks.bench]\nkind = \"github\"\nsecret = \"{SECRET}\"\nrate = \"1000000/1m\"\n\
         [triggers.none]\nwhen = {{ kind = \"git.push\", data.branch = \"other\" }}\nscenario = \"none\"\n"
    );
    std::fs::write(&file, text).map_err(BenchError::Directory)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))
        .map_err(BenchError::Directory)?;
    let world = World::start_with(programs, below, &[], Some(&file), started)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(BenchError::Directory)?;
    let seconds = if quick { 5 } else { 15 };
    let address = world.address().to_owned();
    let begun = Instant::now();
    let took = runtime
        .block_on(deliver(address, RATE * seconds))
        .map_err(failed)?;
    tracing::info!(deliveries = took.len(), took = ?begun.elapsed(), "webhooks");
    // One figure for each tenth of the time, so that a spread can be shown.
    let tenths: Vec<f64> = took
        .chunks(took.len().div_ceil(10).max(1))
        .map(|part| percentile(part, 0.99))
        .collect();
    let mut spread = Spread::of(&tenths).ok_or_else(|| failed("nothing came".to_owned()))?;
    // Judged by all of them together.
    spread.median = percentile(&took, 0.99);
    Ok(Row::at_most(
        format!("webhooks, {RATE} a second for {seconds} s: p99"),
        Unit::Ms,
        spread,
        TARGET,
    ))
}
