//! How fast an event of a run is with all who watch it; and what it costs a
//! request that it is recorded.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::BenchError;
use super::figures::{Row, Spread, Unit};
use super::http::{Api, request};
use super::world::{Programs, Started, World};

/// Watchers of one run.
const WATCHERS: usize = 1_000;
/// Events that are measured.
const EVENTS: usize = 40;
/// Longest time until all have one, in milliseconds.
const TARGET: f64 = 100.0;
/// Watchers that begin at a time.
const AT_ONCE: usize = 64;
/// How long is waited for all of them to begin, and for an event to be with
/// all.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two events.
const PAUSE: Duration = Duration::from_millis(100);
/// Requests that are compared.
const REQUESTS: usize = 200;
/// What being recorded may cost, in milliseconds.
const RECORDED: f64 = 1.0;

/// What a watcher tells.
enum Told {
    /// It has heard what happened before it came.
    Here,
    /// An event has come.
    Event(Instant),
    /// It cannot go on.
    Lost(String),
}

fn wrong(why: impl std::fmt::Display) -> BenchError {
    BenchError::Part {
        name: "watchers",
        why: why.to_string(),
    }
}

/// Follows a run, and tells of each of its events that are measured.
async fn watch(
    address: String,
    ask: Arc<[u8]>,
    room: Arc<Semaphore>,
    tell: mpsc::UnboundedSender<Told>,
) -> Result<(), String> {
    let begin = room.acquire().await.map_err(|e| e.to_string())?;
    let stream = TcpStream::connect(&address).await;
    let mut stream = stream.map_err(|e| e.to_string())?;
    stream.write_all(&ask).await.map_err(|e| e.to_string())?;
    let mut begin = Some(begin);
    let mut got: Vec<u8> = Vec::with_capacity(4 * 1024);
    let mut piece = vec![0; 4 * 1024];
    let mut first = true;
    loop {
        let read = stream.read(&mut piece).await.map_err(|e| e.to_string())?;
        let now = Instant::now();
        if read == 0 {
            return Err("the broker ended the stream".to_owned());
        }
        got.extend_from_slice(&piece[..read]);
        while let Some(end) = got.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = got.drain(..=end).collect();
            let line = line.trim_ascii_end();
            if std::mem::take(&mut first) && !line.starts_with(b"HTTP/1.1 200") {
                return Err(String::from_utf8_lossy(line).into_owned());
            }
            let told = match line {
                // The last that happens before anybody pauses it.
                b"event: batch_sent" => {
                    begin.take();
                    Told::Here
                }
                b"event: run_paused" | b"event: run_resumed" => Told::Event(now),
                _ => continue,
            };
            if tell.send(told).is_err() {
                return Ok(());
            }
        }
    }
}

/// Milliseconds from the wish that causes an event until the last watcher has
/// it, for each of the events.
async fn events(
    address: &str,
    token: &str,
    run: &str,
    mut wish: impl FnMut(&str) -> Result<(), BenchError> + Send + 'static,
) -> Result<Vec<f64>, BenchError> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let ask: Arc<[u8]> = request("GET", &format!("/v1/runs/{run}/events"), token, None).into();
    let lost = Arc::new(AtomicUsize::new(0));
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS {
        let (address, room) = (address.to_owned(), Arc::clone(&room));
        let (ask, tell, lost) = (Arc::clone(&ask), tell.clone(), Arc::clone(&lost));
        watchers.spawn(async move {
            if let Err(why) = watch(address, ask, room, tell.clone()).await {
                lost.fetch_add(1, Ordering::Relaxed);
                let _ = tell.send(Told::Lost(why));
            }
        });
    }
    let (wishes, mut wished) = mpsc::unbounded_channel::<&'static str>();
    // A thread of its own waits for the answers: none of the watchers does.
    let asking = tokio::task::spawn_blocking(move || {
        while let Some(word) = wished.blocking_recv() {
            wish(word)?;
        }
        Ok::<(), BenchError>(())
    });
    all(&mut told, |told| matches!(told, Told::Here)).await?;
    let mut took = Vec::with_capacity(EVENTS);
    for number in 0..EVENTS {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        let word = if number % 2 == 0 { "pause" } else { "resume" };
        let gone = |_| wrong("a run could not be paused");
        wishes.send(word).map_err(gone)?;
        let last = all(&mut told, |told| matches!(told, Told::Event(_))).await;
        let Ok(last) = last else {
            drop(wishes);
            // What the broker has answered says more.
            asking.await.map_err(wrong)??;
            return Err(last.err().unwrap_or_else(|| wrong("nothing came")));
        };
        took.push(last.saturating_duration_since(begun).as_secs_f64() * 1_000.0);
    }
    drop(wishes);
    asking.await.map_err(wrong)??;
    watchers.abort_all();
    Ok(took)
}

/// Waits until all have told that; when the last one did.
async fn all(
    told: &mut mpsc::UnboundedReceiver<Told>,
    wanted: impl Fn(&Told) -> bool,
) -> Result<Instant, BenchError> {
    let (mut count, mut last) = (0, Instant::now());
    let collect = async {
        while count < WATCHERS {
            match told.recv().await {
                Some(Told::Lost(why)) => return Err(wrong(why)),
                Some(one) if wanted(&one) => {
                    count += 1;
                    last = match one {
                        Told::Event(at) => last.max(at),
                        _ => Instant::now(),
                    };
                }
                Some(_) => return Err(wrong("an event came twice or out of its order")),
                None => return Err(wrong("all watchers are gone")),
            }
        }
        Ok(())
    };
    let done = timeout(PATIENCE, collect).await;
    done.map_err(|_| wrong(format!("an event came to {count} of {WATCHERS}")))??;
    Ok(last)
}

/// The rows of the table.
///
/// # Errors
/// [`BenchError`].
pub(super) fn rows(
    programs: &Programs,
    below: &Path,
    started: &Started,
) -> Result<Vec<Row>, BenchError> {
    tracing::info!(watchers = WATCHERS, "watchers of a run");
    let names = ["n0001".to_owned()];
    let world = World::start(programs, below, &names, started)?;
    let mut api = Api::connect(world.address(), world.token())?;
    let asked = json!({
        "predicate": names[0], "params": { "argv": ["sleep", "600"] },
        "timeout": "15m", "confirm": "yes",
    });
    let (run, _) = api.json("POST", "/v1/runs", Some(&asked))?;
    let run = run["id"].as_str().unwrap_or_default().to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(BenchError::Directory)?;
    let mut wishing = Api::connect(world.address(), world.token())?;
    let path = format!("/v1/runs/{run}");
    let of = path.clone();
    let wish = move |word: &str| {
        let path = format!("{of}/{word}");
        wishing.json("POST", &path, None).map(drop)
    };
    let took = runtime.block_on(events(world.address(), world.token(), &run, wish))?;
    runtime.shutdown_background();
    let mut spread = Spread::of(&took).ok_or_else(|| wrong("nothing came"))?;
    // Each of them has to be in time.
    spread.median = spread.max;
    let row = Row::at_most(
        format!("an event of a run is with {WATCHERS} watchers: the slowest of {EVENTS}"),
        Unit::Ms,
        spread,
        TARGET,
    );
    Ok(vec![row, recorded(&mut api, &path)?])
}

/// What it costs to be written down before being answered. Cancelling a run
/// that has ended is such a request, and does nothing else.
fn recorded(api: &mut Api, run: &str) -> Result<Row, BenchError> {
    let cancel = format!("{run}/cancel");
    api.json("POST", &cancel, None)?;
    let until = Instant::now() + PATIENCE;
    loop {
        let (view, _) = api.json("GET", run, None)?;
        if !view["finished"].is_null() {
            break;
        }
        if Instant::now() > until {
            return Err(wrong("a run that was cancelled does not end"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let (mut read, mut acted) = (Vec::new(), Vec::new());
    for _ in 0..REQUESTS {
        read.push(api.json("GET", run, None)?.1);
        let answer = api.ask("POST", &cancel, None)?;
        if answer.status != 409 {
            let status = answer.status;
            return Err(wrong(format!(
                "a run that has ended was cancelled: {status}"
            )));
        }
        acted.push(answer.ms);
    }
    let nothing = || wrong("nothing was measured");
    let read = Spread::of(&read).ok_or_else(nothing)?.median;
    let more: Vec<f64> = acted.iter().map(|ms| ms - read).collect();
    let more = Spread::of(&more).ok_or_else(nothing)?;
    let what = "a request that is recorded first, over one that only reads";
    Ok(Row::at_most(what, Unit::Ms, more, RECORDED))
}
