//! What is measured: a whole muster from the real executables, in a directory
//! of its own, and fleets of simulated nodes; gone when dropped.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_protocol::text::printable;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::Deserialize;
use serde_json::Value;

use super::BenchError;

/// Longest time that a part may take to come up.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longest time that one command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// How long a part may take to end before it is killed.
const GOODBYE: Duration = Duration::from_secs(25);

/// Everything that was started and has not ended, so that an interruption can
/// end it too.
#[derive(Clone, Debug, Default)]
pub struct Started(Arc<Mutex<Processes>>);

#[derive(Debug, Default)]
struct Processes {
    pids: Vec<u32>,
    /// Nothing more may be started.
    interrupted: bool,
}

impl Started {
    /// Starts something that is to be ended with the rest.
    ///
    /// # Errors
    /// [`BenchError`].
    pub(super) fn start(
        &self,
        name: &'static str,
        command: &mut Command,
    ) -> Result<Child, BenchError> {
        let mut processes = self.processes();
        if processes.interrupted {
            return Err(BenchError::Interrupted);
        }
        let child = command
            .spawn()
            .map_err(|source| BenchError::Start { name, source })?;
        processes.pids.push(child.id());
        Ok(child)
    }

    /// Something that was started has ended.
    pub(super) fn ended(&self, pid: u32) {
        self.processes().pids.retain(|p| *p != pid);
    }

    fn processes(&self) -> std::sync::MutexGuard<'_, Processes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks all of them to end, and lets no more be started.
    pub fn interrupt(&self) {
        let mut processes = self.processes();
        processes.interrupted = true;
        for pid in &processes.pids {
            signal(*pid, Signal::TERM);
        }
    }

    /// Waits a while, unless it is interrupted.
    ///
    /// # Errors
    /// [`BenchError::Interrupted`].
    pub fn pause(&self, time: Duration) -> Result<(), BenchError> {
        let until = Instant::now() + time;
        loop {
            if self.processes().interrupted {
                return Err(BenchError::Interrupted);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(500)));
        }
    }

    /// Runs a command to its end and returns what it printed.
    ///
    /// # Errors
    /// [`BenchError`]; also when it did not succeed.
    pub fn output(&self, name: &'static str, mut command: Command) -> Result<String, BenchError> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.start(name, &mut command)?;
        let pid = child.id();
        let output = child.wait_with_output();
        self.ended(pid);
        let failed = |why: String| BenchError::Part { name, why };
        let output = output.map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(failed(last_line(&said)))
    }
}

fn last_line(said: &str) -> String {
    printable(said.lines().last().unwrap_or("it said nothing"), 300)
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn lives(pid: u32) -> bool {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// Where the executables are.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
    /// The NATS server to start.
    pub nats_server: String,
}

impl Programs {
    /// Where one of them is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Those in a directory; `muster`, `muster-agent`, `muster-bot` and
    /// `muster-fleet-sim` must be there.
    ///
    /// # Errors
    /// [`BenchError::Program`].
    pub fn find(dir: PathBuf, nats_server: String) -> Result<Self, BenchError> {
        for name in ["muster", "muster-agent", "muster-bot", "muster-fleet-sim"] {
            let path = dir.join(name);
            if !path.is_file() {
                return Err(BenchError::Program(path));
            }
        }
        Ok(Self { dir, nats_server })
    }

    /// A command of ours that reads nothing of the user's.
    #[must_use]
    pub fn command(&self, name: &str, home: &Path) -> Command {
        let mut command = Command::new(self.dir.join(name));
        command
            .env_remove("MUSTER_URL")
            .env_remove("MUSTER_TOKEN")
            .env_remove("MUSTER_CA_FILE")
            .env_remove("MUSTER_LOG")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

/// A process that is ended when dropped, and what it prints.
struct Part {
    name: &'static str,
    child: Child,
    log: PathBuf,
    lines: Receiver<String>,
    started: Started,
}

impl Part {
    fn start(
        name: &'static str,
        mut command: Command,
        dir: &Path,
        started: &Started,
    ) -> Result<Self, BenchError> {
        let log = dir.join(format!("{name}.log"));
        let errors = File::create(&log).map_err(BenchError::Directory)?;
        let mut child = started.start(name, command.stdout(Stdio::piped()).stderr(errors))?;
        let (send, lines) = channel();
        if let Some(out) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self {
            name,
            child,
            log,
            lines,
            started: started.clone(),
        })
    }

    /// Its next line.
    fn line(&mut self) -> Result<String, BenchError> {
        self.lines.recv_timeout(PATIENCE).map_err(|e| {
            let what = match e {
                RecvTimeoutError::Timeout => "it did not come up in time",
                RecvTimeoutError::Disconnected => "it ended",
            };
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            BenchError::Part {
                name: self.name,
                why: format!("{what}: {}", last_line(&log)),
            }
        })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits until it has or the time is over.
    fn end(&mut self) {
        let until = Instant::now() + GOODBYE;
        // The number of one that was waited for may be somebody else's.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        signal(self.child.id(), Signal::TERM);
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.end();
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.started.ended(self.child.id());
    }
}

/// A whole muster on this machine.
pub struct World {
    up: Part,
    dir: tempfile::TempDir,
    programs: Programs,
    started: Started,
    url: String,
    token_file: PathBuf,
    token: String,
}

/// A bot, ended when dropped.
pub struct Bot(Part);

impl Bot {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }
}

/// What `muster up --json` says when it is ready.
#[derive(Deserialize)]
struct Ready {
    url: String,
    token_file: PathBuf,
}

/// A process that a world consists of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The broker.
    Broker,
    /// The NATS server.
    Nats,
}

/// How a broker is started otherwise than it is by default.
#[derive(Clone, Copy, Debug, Default)]
struct Setup<'a> {
    /// A file of webhooks.
    hooks: Option<&'a Path>,
    /// What it logs.
    filter: Option<&'a str>,
    /// Its settings (TOML).
    settings: Option<&'a str>,
}

impl World {
    /// Starts one with so many real agents.
    ///
    /// # Errors
    /// [`BenchError`]; what was started is ended.
    pub fn start(
        programs: &Programs,
        below: &Path,
        agents: &[String],
        started: &Started,
    ) -> Result<Self, BenchError> {
        Self::start_with(programs, below, agents, None, started)
    }

    /// The same, whose broker logs what that filter says.
    ///
    /// # Errors
    /// [`BenchError`]; what was started is ended.
    pub fn start_logging(
        programs: &Programs,
        below: &Path,
        agents: &[String],
        filter: &str,
        started: &Started,
    ) -> Result<Self, BenchError> {
        let setup = Setup {
            filter: Some(filter),
            ..Setup::default()
        };
        Self::start_as(programs, below, agents, setup, started)
    }

    /// The same, whose broker has these settings (TOML).
    ///
    /// # Errors
    /// [`BenchError`]; what was started is ended.
    pub fn start_set(
        programs: &Programs,
        below: &Path,
        settings: &str,
        started: &Started,
    ) -> Result<Self, BenchError> {
        let setup = Setup {
            settings: Some(settings),
            ..Setup::default()
        };
        Self::start_as(programs, below, &[], setup, started)
    }

    /// The same with a file of webhooks.
    ///
    /// # Errors
    /// [`BenchError`]; what was started is ended.
    pub fn start_with(
        programs: &Programs,
        below: &Path,
        agents: &[String],
        hooks: Option<&Path>,
        started: &Started,
    ) -> Result<Self, BenchError> {
        let setup = Setup {
            hooks,
            ..Setup::default()
        };
        Self::start_as(programs, below, agents, setup, started)
    }

    fn start_as(
        programs: &Programs,
        below: &Path,
        agents: &[String],
        setup: Setup<'_>,
        started: &Started,
    ) -> Result<Self, BenchError> {
        let dir = tempfile::Builder::new()
            .prefix("muster-bench-")
            .tempdir_in(below)
            .map_err(BenchError::Directory)?;
        let state = dir.path().join("state");
        if let Some(settings) = setup.settings {
            let made = fs::create_dir(&state);
            made.and_then(|()| fs::write(state.join("broker.toml"), settings))
                .map_err(BenchError::Directory)?;
        }
        let mut command = programs.command("muster", dir.path());
        command
            .args(["up", "--json", "--listen", "127.0.0.1:0", "--state"])
            .arg(&state)
            .env("MUSTER_NATS_SERVER", &programs.nats_server);
        for agent in agents {
            command.args(["--node", agent]);
        }
        if let Some(hooks) = setup.hooks {
            command.arg("--hooks").arg(hooks);
        }
        if let Some(filter) = setup.filter {
            command.env("MUSTER_LOG", filter);
        }
        let mut up = Part::start("up", command, dir.path(), started)?;
        let line = up.line()?;
        let unreadable = |why: String| BenchError::Part {
            name: "up",
            why: format!("{why}: {}", printable(&line, 200)),
        };
        let ready: Ready = serde_json::from_str(&line).map_err(|e| unreadable(e.to_string()))?;
        let token = fs::read_to_string(&ready.token_file).map_err(|e| unreadable(e.to_string()))?;
        Ok(Self {
            up,
            dir,
            programs: programs.clone(),
            started: started.clone(),
            url: ready.url,
            token_file: ready.token_file,
            token: token.trim().to_owned(),
        })
    }

    /// The log of its broker.
    #[must_use]
    pub fn broker_log(&self) -> PathBuf {
        self.dir.path().join("state/log/broker.log")
    }

    /// Starts a bot with that configuration.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn bot(&self, config: &Path) -> Result<Bot, BenchError> {
        let mut command = self.programs.command("muster-bot", self.dir.path());
        command.arg("--config").arg(config);
        let part = Part::start("bot", command, self.dir.path(), &self.started)?;
        Ok(Bot(part))
    }

    /// Where its broker listens, without a scheme.
    #[must_use]
    pub fn address(&self) -> &str {
        self.url.rsplit("//").next().unwrap_or(&self.url)
    }

    /// The token of its administrator.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Adds simulated nodes and returns when the broker has welcomed all.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn fleet(&self, nodes: u32) -> Result<Nodes, BenchError> {
        self.fleet_with(nodes, &[])
    }

    /// The same, with more arguments: roles and labels.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn fleet_with(&self, nodes: u32, more: &[&str]) -> Result<Nodes, BenchError> {
        let nodes = nodes.to_string();
        self.fleet_of(&[&["--nodes", &nodes], more].concat())
    }

    /// Adds so many simulated hypervisors, and returns when the broker knows
    /// what each of them has.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn hypervisors(&self, count: u32) -> Result<Nodes, BenchError> {
        let count = count.to_string();
        // Room for everything that is measured: it takes none.
        self.fleet_of(&["--hypervisors", &count, "--hypervisor-cpus", "1000"])
    }

    fn fleet_of(&self, args: &[&str]) -> Result<Nodes, BenchError> {
        let stats = self.dir.path().join("fleet.json");
        let mut command = self.programs.command("muster-fleet-sim", self.dir.path());
        command
            .args(["--url", &self.url])
            .arg("--token-file")
            .arg(&self.token_file)
            .arg("--stats")
            .arg(&stats)
            .args(args);
        let mut part = Part::start("fleet", command, self.dir.path(), &self.started)?;
        part.line()?;
        Ok(Nodes { part, stats })
    }

    /// Runs one `muster` command to its end, which must be success, and
    /// returns how long the whole process took, in milliseconds.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn muster(&self, args: &[&str]) -> Result<f64, BenchError> {
        let mut command = self.programs.command("muster", self.dir.path());
        let [out, errors] = ["muster.out", "muster.err"].map(|name| self.dir.path().join(name));
        let file = |path| File::create(path).map_err(BenchError::Directory);
        command
            .args(args)
            .env("MUSTER_URL", &self.url)
            .env("MUSTER_TOKEN", &self.token)
            .stdout(file(&out)?)
            .stderr(file(&errors)?);
        let shown = || format!("muster {}", args.join(" "));
        let begun = Instant::now();
        let mut child = self.started.start("muster", &mut command)?;
        // A thread that only waits would be one more thing that is scheduled;
        // who hangs is ended by a watchdog instead.
        let pid = child.id();
        let watchdog = Watchdog::over(pid);
        let status = child.wait();
        let took = begun.elapsed();
        drop(watchdog);
        self.started.ended(pid);
        match status {
            Ok(status) if status.success() => Ok(took.as_secs_f64() * 1000.0),
            Ok(status) => {
                let read = |path| fs::read_to_string(path).unwrap_or_default();
                let said = [read(&out), read(&errors)].concat();
                Err(BenchError::Command {
                    command: shown(),
                    why: format!("{status}: {}", last_line(&said)),
                })
            }
            Err(e) => Err(BenchError::Command {
                command: shown(),
                why: e.to_string(),
            }),
        }
    }

    /// What the last command printed.
    ///
    /// # Errors
    /// [`BenchError::Directory`].
    pub fn said(&self) -> Result<String, BenchError> {
        fs::read_to_string(self.dir.path().join("muster.out")).map_err(BenchError::Directory)
    }

    /// A place for files of the measurement.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where its broker listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The execution time that the node said in a run on one node, in
    /// milliseconds.
    ///
    /// # Errors
    /// [`BenchError`]; also when the run said none.
    pub fn on_node(&self, args: &[&str]) -> Result<f64, BenchError> {
        self.muster(args)?;
        let said = self.said()?;
        let frames = said
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        frames
            .filter_map(|frame: serde_json::Value| frame.get("ms")?.as_f64())
            .next()
            .ok_or_else(|| BenchError::Command {
                command: format!("muster {}", args.join(" ")),
                why: "it did not say how long the node took".to_owned(),
            })
    }

    /// Stores a scenario.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn store(&self, name: &str, script: &str) -> Result<(), BenchError> {
        let path = self.dir.path().join(format!("{name}.rhai"));
        fs::write(&path, script).map_err(BenchError::Directory)?;
        self.muster(&["scenario", "put", &path.to_string_lossy()])
            .map(drop)
    }

    /// Puts policies in force.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn policies(&self, policies: &str, principals: &str) -> Result<(), BenchError> {
        let dir = self.dir.path().join("policy");
        fs::create_dir_all(&dir).map_err(BenchError::Directory)?;
        for (name, text) in [
            ("policies.cedar", policies),
            ("principals.toml", principals),
        ] {
            fs::write(dir.join(name), text).map_err(BenchError::Directory)?;
        }
        self.muster(&["policy", "put", &dir.to_string_lossy()])
            .map(drop)
    }

    /// The process that plays this part.
    #[must_use]
    pub fn pid(&self, role: Role) -> Option<u32> {
        self.pid_of(match role {
            Role::Broker => "broker",
            Role::Nats => "nats-server",
        })
    }

    /// The agents that run.
    #[must_use]
    pub fn agents(&self, names: &[String]) -> Vec<u32> {
        names
            .iter()
            .filter_map(|name| self.pid_of(&format!("agent-{name}")))
            .collect()
    }

    fn pid_of(&self, name: &str) -> Option<u32> {
        let file = self.state().join("run").join(format!("{name}.json"));
        let text = fs::read_to_string(file).ok()?;
        let note: Value = serde_json::from_str(&text).ok()?;
        let pid = u32::try_from(note["pid"].as_u64()?).ok()?;
        lives(pid).then_some(pid)
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // `muster up` ends its parts itself when it is asked to. Those of one
        // that was killed go on, and are ended here.
        self.up.end();
        let notes = fs::read_dir(self.state().join("run"));
        for note in notes.into_iter().flatten().flatten() {
            let text = fs::read_to_string(note.path()).unwrap_or_default();
            let note: Value = serde_json::from_str(&text).unwrap_or_default();
            let state = self.state().to_string_lossy().into_owned();
            if let Some(pid) = note["pid"].as_u64().and_then(|p| u32::try_from(p).ok())
                && fs::read_to_string(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.contains(&state))
            {
                signal(pid, Signal::KILL);
            }
        }
    }
}

/// Ends a process that takes too long.
struct Watchdog(Option<std::sync::mpsc::Sender<()>>);

impl Watchdog {
    fn over(pid: u32) -> Self {
        let (keep, dropped) = channel::<()>();
        std::thread::spawn(move || {
            if dropped.recv_timeout(COMMAND) == Err(RecvTimeoutError::Timeout) {
                signal(pid, Signal::KILL);
            }
        });
        Self(Some(keep))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.take();
    }
}

/// A fleet of simulated nodes.
pub struct Nodes {
    part: Part,
    stats: PathBuf,
}

impl Nodes {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.part.pid()
    }

    /// Ends it and returns what it has counted.
    ///
    /// # Errors
    /// [`BenchError::Part`] when it has counted nothing.
    pub fn end(self) -> Result<Value, BenchError> {
        let stats = self.stats.clone();
        drop(self.part);
        let unreadable = |why: String| BenchError::Part { name: "fleet", why };
        let text = fs::read_to_string(stats).map_err(|e| unreadable(e.to_string()))?;
        serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))
    }
}
