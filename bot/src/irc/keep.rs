//! The task that owns a connection: it opens one, registers, keeps it, and
//! opens another one when it is gone.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use irc::proto::Message;
use muster_protocol::api::Secret;
use muster_protocol::ids::random_bytes;
use muster_protocol::units::Timestamp;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, ReadHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::lines::Lines;
use super::live::{Live, Now, Out, doubled};
use super::register::{Register, Registered, Step};
use super::stream::{Stream, open};
use super::{Heard, NetworkSettings, Send, Users};

/// How many lines may wait to be written. Nobody sends more than a server
/// reads, so a server that lets them pile up does not read.
const UNWRITTEN: usize = 1_024;
/// What is sent for others waits while fewer places than these are free.
const SPARE: usize = 256;
/// How much may wait to be told before nothing more is read.
const UNTOLD: usize = 256;
/// How long the server may take to read a line.
const WRITE: Duration = Duration::from_secs(30);
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// A connection that lasted this long was a good one: the next pause is short.
const GOOD: Duration = Duration::from_secs(60);

/// Why a connection ended.
enum End {
    /// It was asked to.
    Stopped,
    /// It broke: why.
    Gone(String),
}

/// Connects, and connects again, until it is asked to stop or nobody listens.
pub(super) async fn keep(
    settings: NetworkSettings,
    users: Users,
    to_send: mpsc::Receiver<Send>,
    hear: mpsc::Sender<Heard>,
    stop: CancellationToken,
) {
    let settings = Arc::new(settings);
    let mut keeper = Keeper {
        settings: Arc::clone(&settings),
        users,
        to_send,
        hear,
        stop,
    };
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        let end = Box::pin(keeper.once()).await;
        keeper.users.lock().reset(super::Casemapping::default());
        let why = match end {
            End::Stopped => return,
            End::Gone(why) => why,
        };
        if begun.elapsed() >= GOOD {
            failures = 0;
        }
        let again_in = pause(&settings, failures);
        failures += 1;
        tracing::warn!(
            network = %settings.name,
            "not connected: {why}; again in {:.1} s",
            again_in.as_secs_f64()
        );
        if !keeper.rest(Heard::Gone { why, again_in }, again_in).await {
            return;
        }
    }
}

/// The pause after so many failures: it doubles, and no two bots come back at
/// the same moment. Never shorter than the least.
pub(super) fn pause(settings: &NetworkSettings, failures: u32) -> Duration {
    let timing = &settings.timing;
    let full = doubled(
        timing.pause_least.saturating_mul(2),
        failures,
        timing.pause_most,
    );
    let share = f64::from(u16::from_be_bytes(random_bytes())) / f64::from(u16::MAX);
    full.div_f64(2.0)
        .saturating_add(full.div_f64(2.0).mul_f64(share))
        .max(timing.pause_least.min(timing.pause_most))
}

struct Keeper {
    settings: Arc<NetworkSettings>,
    users: Users,
    to_send: mpsc::Receiver<Send>,
    hear: mpsc::Sender<Heard>,
    stop: CancellationToken,
}

impl Keeper {
    /// Tells that there is no connection, and waits; what is to be sent
    /// meanwhile is dropped. Whether it goes on then.
    async fn rest(&mut self, gone: Heard, length: Duration) -> bool {
        let mut gone = Some(gone);
        let end = tokio::time::Instant::now() + length;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = sleep_until(end), if gone.is_none() => return true,
                sent = self.to_send.recv() => if sent.is_none() { return false },
                permit = self.hear.reserve(), if gone.is_some() => match (permit, gone.take()) {
                    (Ok(permit), Some(gone)) => permit.send(gone),
                    _ => return false,
                },
            }
        }
    }

    /// One connection, from its beginning to its end.
    async fn once(&mut self) -> End {
        let attempt = self.settings.timing.attempt;
        let deadline = tokio::time::Instant::now() + attempt;
        let stop = self.stop.clone();
        let settings = Arc::clone(&self.settings);
        let opening = async {
            let stream = timeout(attempt, open(&settings)).await;
            let stream = match stream {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("the server does not answer".to_owned()),
            };
            let wire = Wire::new(stream);
            register(wire, Arc::clone(&settings), deadline).await
        };
        tokio::pin!(opening);
        let (wire, registered) = loop {
            tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                sent = self.to_send.recv() => if sent.is_none() { return End::Stopped },
                opened = &mut opening => match opened {
                    Ok(opened) => break opened,
                    Err(why) => return End::Gone(why),
                },
            }
        };
        Box::pin(self.live(wire, *registered)).await
    }

    /// A registered connection until it ends.
    async fn live(&mut self, mut wire: Wire, registered: Registered) -> End {
        let timing = self.settings.timing;
        let (mut live, out) = Live::begin(
            Arc::clone(&self.settings),
            self.users.clone(),
            registered,
            now(),
        );
        let mut untold = VecDeque::new();
        let mut failed = wire.take(out, &mut untold);
        let mut last_heard = Instant::now();
        let mut asked = None::<Instant>;
        let shortest = timing.look.min(timing.silence).min(timing.answer);
        let beat = (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(1));
        let mut ticks = tokio::time::interval(beat);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if let Some(why) = failed {
                return self.tell_rest(untold, why).await;
            }
            let out = tokio::select! {
                () = self.stop.cancelled() => {
                    wire.farewell().await;
                    return End::Stopped;
                }
                permit = self.hear.reserve(), if !untold.is_empty() => {
                    let Ok(permit) = permit else {
                        wire.farewell().await;
                        return End::Stopped;
                    };
                    if let Some(heard) = untold.pop_front() {
                        permit.send(heard);
                    }
                    Vec::new()
                }
                line = wire.lines.next(), if untold.len() < UNTOLD => {
                    last_heard = Instant::now();
                    asked = None;
                    match line {
                        // What is no message is nothing that is waited for.
                        Ok(line) => match line.parse::<Message>() {
                            Ok(message) => live.step(&message, now()),
                            Err(_) => Vec::new(),
                        },
                        Err(error) => vec![Out::Fail(error.to_string())],
                    }
                }
                sent = self.to_send.recv(), if wire.has_room() => match sent {
                    Some(sent) => live.send(&sent),
                    None => {
                        wire.farewell().await;
                        return End::Stopped;
                    }
                },
                why = broken(&mut wire.writing) => vec![Out::Fail(why)],
                _ = ticks.tick() => {
                    let mut out = live.tick(now());
                    if untold.len() >= UNTOLD {
                        // Nothing is read now: that is not the server's silence.
                        last_heard = Instant::now();
                        asked = None;
                    }
                    match asked {
                        Some(since) if since.elapsed() >= timing.answer => {
                            out.push(Out::Fail("the server does not answer any more".into()));
                        }
                        None if last_heard.elapsed() >= timing.silence => {
                            asked = Some(Instant::now());
                            out.push(Out::Send(live.watch()));
                        }
                        _ => {}
                    }
                    out
                }
            };
            failed = wire.take(out, &mut untold);
        }
    }

    /// Tells what was heard before the end.
    async fn tell_rest(&mut self, untold: VecDeque<Heard>, why: String) -> End {
        for heard in untold {
            let told = async {
                // Whoever is to be told may itself wait for room here.
                loop {
                    tokio::select! {
                        permit = self.hear.reserve() => break permit.map(|p| p.send(heard)).is_ok(),
                        sent = self.to_send.recv() => if sent.is_none() { break false },
                        () = self.stop.cancelled() => break false,
                    }
                }
            };
            if !told.await {
                return End::Stopped;
            }
        }
        End::Gone(why)
    }
}

fn now() -> Now {
    Now {
        instant: Instant::now(),
        time: Timestamp::now(),
    }
}

/// Registers on a new connection.
async fn register(
    mut wire: Wire,
    settings: Arc<NetworkSettings>,
    deadline: tokio::time::Instant,
) -> Result<(Wire, Box<Registered>), String> {
    let (mut register, mut steps) = Register::begin(settings);
    loop {
        for step in steps {
            match step {
                Step::Send(line) => wire.send(line)?,
                Step::Done(registered) => return Ok((wire, registered)),
                Step::Fail(error) => {
                    wire.farewell().await;
                    return Err(error.to_string());
                }
            }
        }
        let line = tokio::select! {
            line = wire.lines.next() => line.map_err(|e| e.to_string())?,
            why = broken(&mut wire.writing) => return Err(why),
            () = sleep_until(deadline) => return Err(register.too_slow().to_owned()),
        };
        steps = match line.parse::<Message>() {
            Ok(message) => register.step(&message),
            Err(_) => Vec::new(),
        };
    }
}

/// A connection: lines come out, lines go in.
struct Wire {
    lines: Lines<ReadHalf<Box<dyn Stream>>>,
    to_write: mpsc::Sender<Secret>,
    writing: JoinHandle<io::Error>,
}

impl Wire {
    fn new(stream: Box<dyn Stream>) -> Self {
        let (from, to) = tokio::io::split(stream);
        let (to_write, lines) = mpsc::channel(UNWRITTEN);
        Self {
            lines: Lines::new(from),
            to_write,
            writing: tokio::spawn(write(to, lines)),
        }
    }

    fn has_room(&self) -> bool {
        self.to_write.capacity() > SPARE
    }

    fn send(&self, line: Secret) -> Result<(), String> {
        self.to_write
            .try_send(line)
            .map_err(|_| "the server does not read what is sent to it".to_owned())
    }

    /// Does what comes of a message; why the connection is of no use any more.
    fn take(&self, out: Vec<Out>, untold: &mut VecDeque<Heard>) -> Option<String> {
        for one in out {
            match one {
                Out::Send(line) => {
                    if let Err(why) = self.send(Secret::new(line)) {
                        return Some(why);
                    }
                }
                Out::Tell(heard) => untold.push_back(heard),
                Out::Fail(why) => return Some(why),
            }
        }
        None
    }

    /// Says that it goes, and waits a little for that to be read.
    async fn farewell(mut self) {
        let _ = self.send(Secret::new("QUIT :the bot ends"));
        let ended = async { while self.lines.next().await.is_ok() {} };
        let _ = timeout(FAREWELL, ended).await;
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.writing.abort();
    }
}

/// Waits until nothing can be written any more: why.
async fn broken(writing: &mut JoinHandle<io::Error>) -> String {
    match writing.await {
        Ok(error) => format!("the connection broke: {error}"),
        Err(_) => "the connection broke".to_owned(),
    }
}

/// Writes lines until that fails.
async fn write(mut to: impl AsyncWrite + Unpin, mut lines: mpsc::Receiver<Secret>) -> io::Error {
    let mut many = Vec::new();
    loop {
        if lines.recv_many(&mut many, 64).await == 0 {
            return io::ErrorKind::BrokenPipe.into();
        }
        let mut bytes = Vec::new();
        for line in many.drain(..) {
            bytes.extend_from_slice(line.expose().as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        let written = timeout(WRITE, async {
            to.write_all(&bytes).await?;
            to.flush().await
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_) => return io::Error::new(io::ErrorKind::TimedOut, "the server does not read"),
        }
    }
}
