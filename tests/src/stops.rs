//! Holds the programs at their checkpoints, so that a test can kill one at
//! exactly that moment.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use muster_protocol::ids::RunId;

use crate::PATIENCE;

/// A place to which a process comes while a run goes on: the `nth` time that
/// this one comes to this point for this reason.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Position {
    /// `broker`, or the name of a node, whose agent it is.
    pub who: String,
    /// The point.
    pub point: String,
    /// What for: the kind of an event, of a message.
    pub what: String,
    /// From 1.
    pub nth: u32,
}

impl Position {
    /// Whether it is this point, for this reason, of anybody.
    #[must_use]
    pub fn is(&self, point: &str, what: &str) -> bool {
        self.point == point && self.what == what
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.who, self.point)?;
        if !self.what.is_empty() {
            write!(f, " {}", self.what)?;
        }
        if self.nth > 1 {
            write!(f, " #{}", self.nth)?;
        }
        Ok(())
    }
}

/// Decides, knowing where everybody has been, whether a process that comes to
/// a position has to wait. It makes the order of positions the same each time.
pub type Gate = fn(&Position, &[Position]) -> bool;

#[derive(Default)]
struct State {
    watching: bool,
    gate: Option<Gate>,
    /// Where to hold, and everybody from then on.
    stop: Option<Position>,
    run: Option<RunId>,
    seen: Vec<Position>,
    hit: bool,
}

/// Who listens to the checkpoints of all programs of a test.
pub struct Stops {
    shared: Arc<(Mutex<State>, Condvar)>,
}

fn lock(mutex: &Mutex<State>) -> MutexGuard<'_, State> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stops {
    /// Listens at this socket; lets everybody go on until it is told what to
    /// watch for.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
        let shared: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let for_all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&for_all);
                std::thread::spawn(move || {
                    // A process that was killed meanwhile reads nothing.
                    let _ = serve(&shared, stream);
                });
            }
        });
        Ok(Self { shared })
    }

    /// Watches the next run that is created, in an order that `gate` makes,
    /// and holds everybody once somebody comes to `stop`.
    pub fn watch(&self, gate: Gate, stop: Option<&Position>) {
        *lock(&self.shared.0) = State {
            watching: true,
            gate: Some(gate),
            stop: stop.cloned(),
            ..State::default()
        };
    }

    /// Waits until somebody is held at the position that is watched for; says
    /// which run it is.
    ///
    /// # Errors
    /// When nobody comes there.
    pub fn held(&self) -> Result<RunId> {
        let (mutex, told) = &*self.shared;
        let (state, _) = told
            .wait_timeout_while(lock(mutex), PATIENCE, |s| !s.hit)
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(
            state.hit,
            "nobody came to {:?} within {PATIENCE:?}; seen: {:#?}",
            state.stop.as_ref().map(Position::to_string),
            state
                .seen
                .iter()
                .map(Position::to_string)
                .collect::<Vec<_>>()
        );
        state.run.context("a position belongs to a run")
    }

    /// The run of which somebody is held now at the position that is watched
    /// for.
    #[must_use]
    pub fn is_held(&self) -> Option<RunId> {
        let state = lock(&self.shared.0);
        state.run.filter(|_| state.hit)
    }

    /// Lets everybody go on, and watches no more.
    pub fn release(&self) {
        let (mutex, told) = &*self.shared;
        let mut state = lock(mutex);
        state.watching = false;
        state.stop = None;
        told.notify_all();
    }

    /// The run that is watched, once there is one.
    #[must_use]
    pub fn run(&self) -> Option<RunId> {
        lock(&self.shared.0).run
    }

    /// Where everybody has been in the run that was watched, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Position> {
        lock(&self.shared.0).seen.clone()
    }
}

impl Drop for Stops {
    fn drop(&mut self) {
        self.release();
    }
}

fn serve(shared: &(Mutex<State>, Condvar), stream: UnixStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    if let Some((run, position)) = parse(line.trim_end_matches('\n')) {
        come(shared, run, position);
    }
    (&stream).write_all(b"go\n")?;
    Ok(())
}

/// Somebody comes to a position, and stays as long as it has to.
fn come((mutex, told): &(Mutex<State>, Condvar), run: RunId, mut position: Position) {
    let mut state = lock(mutex);
    if state.run.is_none() && state.watching && position.is("broker.journal.before", "created") {
        state.run = Some(run);
    }
    if state.run != Some(run) || !state.watching {
        return;
    }
    // Nobody comes anywhere while a test looks at what it has stopped.
    while state.watching
        && (state.hit
            || state
                .gate
                .is_some_and(|waits| waits(&position, &state.seen)))
    {
        state = told.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    if !state.watching || state.run != Some(run) {
        return;
    }
    let same = |p: &&Position| {
        (&p.who, &p.point, &p.what) == (&position.who, &position.point, &position.what)
    };
    let before = state.seen.iter().filter(same).count();
    position.nth = u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1);
    state.seen.push(position.clone());
    state.hit = state.stop.as_ref() == Some(&position);
    told.notify_all();
    while state.watching && state.hit && state.run == Some(run) {
        state = told.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// `PID <tab> POINT <tab> DETAIL`, where the detail begins with the run.
fn parse(line: &str) -> Option<(RunId, Position)> {
    let mut parts = line.split('\t');
    let (pid, point, detail) = (parts.next()?, parts.next()?, parts.next()?);
    let mut words = detail.split(' ');
    let first = words.next()?;
    // A step's marks name the request.
    let marked = first.strip_prefix("MUSTER_REQUEST=");
    let run = marked.and_then(|r| r.split('/').next()).unwrap_or(first);
    let (who, what) = if point.starts_with("broker.") {
        ("broker".to_owned(), words.next().unwrap_or_default())
    } else {
        (agent_of(pid)?, "")
    };
    Some((
        run.parse().ok()?,
        Position {
            who,
            point: point.to_owned(),
            what: what.to_owned(),
            nth: 0,
        },
    ))
}

/// The node whose agent a process is: its state directory has its name.
fn agent_of(pid: &str) -> Option<String> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split('\0');
    words.find(|w| *w == "--state")?;
    Some(Path::new(words.next()?).file_name()?.to_str()?.to_owned())
}

/// How many there are of each kind of position, for a message.
#[must_use]
pub fn kinds(positions: &[Position]) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for position in positions {
        let words = [position.point.as_str(), position.what.as_str()];
        *all.entry(words.join(" ").trim_end().to_owned())
            .or_default() += 1;
    }
    all
}
