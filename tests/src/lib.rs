//! The harness of the end-to-end tests: a whole muster on this machine, made
//! of the real executables, in a directory of its own, gone when dropped.

pub mod hold;
pub mod invariants;
pub mod irc;
pub mod proxy;
pub mod release;
pub mod stops;
pub mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest time that anything in a test may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the executables are: `MUSTER_BIN_DIR`, else the build directory that
/// this test was built into.
///
/// # Panics
/// When they are not there, naming the command that builds them.
#[must_use]
pub fn bin(name: &str) -> PathBuf {
    let dir = std::env::var_os("MUSTER_BIN_DIR").map_or_else(
        || {
            let test = std::env::current_exe().expect("the test knows its own path");
            // target/debug/deps/e2e-…
            test.ancestors()
                .nth(2)
                .expect("a build directory")
                .to_owned()
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is not there; `make test` builds it first",
        path.display()
    );
    path
}

/// A TCP port that nobody uses now.
///
/// # Errors
/// When none can be had.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Asks until the answer is `Some`, with a bound.
///
/// # Errors
/// When the bound is reached, naming what was waited for.
pub fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> Result<T> {
    wait_within(PATIENCE, what, ask)
}

/// The same with a bound of its own.
///
/// # Errors
/// When the bound is reached, naming what was waited for.
pub fn wait_within<T>(
    bound: Duration,
    what: &str,
    mut ask: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = ask() {
            return Ok(found);
        }
        ensure!(start.elapsed() < bound, "waited {bound:?} for {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// Whether the programs can be held at their checkpoints.
///
/// # Errors
/// When they have none, naming the command that builds them so.
pub fn have_checkpoints() -> Result<()> {
    for name in ["muster", "muster-agent"] {
        let program = std::fs::read(bin(name))?;
        let variable = muster_checkpoint::VARIABLE.as_bytes();
        ensure!(
            program.windows(variable.len()).any(|w| w == variable),
            "{} was built without checkpoints; `cargo build --workspace --bins` gives them",
            bin(name).display()
        );
    }
    Ok(())
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    fn new(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output as one JSON object a line.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[must_use]
    pub fn json_lines(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}\n{self:?}"))
            })
            .collect()
    }

    /// The items of a list that `--json` printed.
    ///
    /// # Panics
    /// When standard output is no JSON array.
    #[must_use]
    pub fn list(&self) -> Vec<Value> {
        serde_json::from_str(self.out.trim()).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The outcome of each node, from the last line of a run's `--json`.
    ///
    /// # Panics
    /// When the last line is not `run_finished`.
    #[must_use]
    pub fn outcomes(&self) -> BTreeMap<String, String> {
        let lines = self.json_lines();
        let last = lines
            .last()
            .unwrap_or_else(|| panic!("nothing was printed: {self:?}"));
        assert_eq!(last["type"], "run_finished", "{self:?}");
        serde_json::from_value(last["nodes"].clone()).expect("outcomes by name")
    }

    /// The text that each node wrote to one stream, from `--json`.
    ///
    /// # Panics
    /// When a chunk is not UTF-8.
    #[must_use]
    pub fn output(&self, stream: &str) -> BTreeMap<String, String> {
        let mut all = BTreeMap::<String, String>::new();
        for line in self.json_lines() {
            if line["type"] == "output" && line["stream"] == stream {
                let node = line["node"].as_str().expect("a name").to_owned();
                all.entry(node)
                    .or_default()
                    .push_str(line["data"].as_str().expect("text"));
            }
        }
        all
    }

    /// The run's id, from `--json`.
    ///
    /// # Panics
    /// When no line has one.
    #[must_use]
    pub fn run(&self) -> String {
        let lines = self.json_lines();
        let run = lines
            .iter()
            .find_map(|l| l["run"].as_str().or(l["id"].as_str()));
        run.unwrap_or_else(|| panic!("no run: {self:?}")).to_owned()
    }

    /// Fails unless the exit code is this one.
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Fails unless each of these is said, wherever.
    pub fn shows(self, parts: &[&str]) -> Self {
        for part in parts {
            let said = self.out.contains(part) || self.err.contains(part);
            assert!(said, "`{part}` is not in {self:#?}");
        }
        self
    }

    /// Fails unless standard error holds each of these.
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.err.contains(part), "`{part}` is not said in {self:#?}");
        }
        self
    }
}

/// A running `muster up`.
pub struct Up {
    /// Its state directory and everything else of the test.
    pub dir: tempfile::TempDir,
    /// The HTTP port.
    pub port: u16,
    /// Where it listens, and the port of NATS for what is beyond loopback.
    host: IpAddr,
    nats_port: Option<u16>,
    nodes: Vec<String>,
    child: Option<Child>,
    told: Mutex<BTreeSet<invariants::Told>>,
    checkpoints: Option<PathBuf>,
}

impl Up {
    /// Starts one with these nodes (`NAME:role=web,zone=gva2`) and waits until
    /// it is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(nodes: &[&str]) -> Result<Self> {
        let mut up = Self::not_yet(nodes)?;
        up.launch()?;
        Ok(up)
    }

    /// The same, not yet started: [`Up::launch`] does.
    ///
    /// # Errors
    /// When there is no room or port for it.
    pub fn not_yet(nodes: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("muster-test-").tempdir()?;
        let nodes = nodes.iter().map(|n| (*n).to_owned()).collect();
        Ok(Self {
            dir,
            port: free_port()?,
            host: Ipv4Addr::LOCALHOST.into(),
            nats_port: None,
            nodes,
            child: None,
            told: Mutex::default(),
            checkpoints: None,
        })
    }

    /// Has it listen on that address, for other machines to reach, once it is
    /// started: with TLS, by the cluster's own authority.
    ///
    /// # Errors
    /// When there is no port.
    pub fn listen_on(&mut self, host: IpAddr) -> Result<()> {
        self.host = host;
        self.nats_port = Some(free_port()?);
        Ok(())
    }

    /// Lets the test hold the programs at their checkpoints, once they are
    /// started.
    ///
    /// # Errors
    /// When the programs have none, or nobody can listen.
    pub fn stops(&mut self) -> Result<stops::Stops> {
        let socket = self.listens()?;
        stops::Stops::listen(&socket)
    }

    /// The same for any place, whatever run it is.
    ///
    /// # Errors
    /// As [`Up::stops`].
    pub fn hold(&mut self) -> Result<hold::Hold> {
        let socket = self.listens()?;
        hold::Hold::listen(&socket)
    }

    /// Where the programs will say that they are at a checkpoint.
    fn listens(&mut self) -> Result<PathBuf> {
        have_checkpoints()?;
        let socket = self.dir.path().join("checkpoints");
        self.checkpoints = Some(socket.clone());
        Ok(socket)
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The broker's address.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.host.is_loopback() {
            "http"
        } else {
            "https"
        };
        format!("{scheme}://{}", SocketAddr::new(self.host, self.port))
    }

    /// The admin token.
    ///
    /// # Errors
    /// When the file is not there.
    pub fn token(&self) -> Result<String> {
        let file = self.state().join("admin.token");
        Ok(std::fs::read_to_string(&file)
            .with_context(|| file.display().to_string())?
            .trim()
            .to_owned())
    }

    /// The command that would start it (again), not yet started.
    #[must_use]
    pub fn up_command(&self) -> Command {
        let mut command = self.bare("muster");
        command.arg("up").arg("--state").arg(self.state());
        command
            .arg("--listen")
            .arg(SocketAddr::new(self.host, self.port).to_string());
        if let Some(port) = self.nats_port {
            command
                .arg("--nats-listen")
                .arg(SocketAddr::new(self.host, port).to_string());
        }
        for node in &self.nodes {
            command.arg("--node").arg(node);
        }
        let hooks = self.dir.path().join("hooks.toml");
        if hooks.exists() {
            command.arg("--hooks").arg(hooks);
        }
        if let Some(socket) = &self.checkpoints {
            command.env(muster_checkpoint::VARIABLE, socket);
        }
        command
    }

    /// Starts `muster up` on the state directory and waits for its `ready`.
    ///
    /// # Errors
    /// When it ends or says nothing in time; with what it printed.
    pub fn launch(&mut self) -> Result<()> {
        let log = self.dir.path().join("up.err");
        let errors = std::fs::File::create(&log)?;
        let mut command = self.up_command();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        self.child = Some(child);
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            while let Some(Ok(line)) = lines.next() {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let start = Instant::now();
        loop {
            match receive.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
                Ok(line) if line.starts_with("ready") => return Ok(()),
                Ok(_) => {}
                Err(_) => bail!("`muster up` did not become ready: {}", self.logs()),
            }
        }
    }

    /// Everything that was logged, for a failed test.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut all = std::fs::read_to_string(self.dir.path().join("up.err")).unwrap_or_default();
        let logs = std::fs::read_dir(self.state().join("log"))
            .into_iter()
            .flatten()
            .flatten();
        for file in logs {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(40).collect();
            all.push_str(&format!("\n--- {}\n", file.path().display()));
            all.extend(tail.iter().rev().flat_map(|l| [*l, "\n"]));
        }
        all
    }

    /// A command of ours with a home directory of the test's own.
    #[must_use]
    pub fn bare(&self, name: &str) -> Command {
        let mut command = Command::new(bin(name));
        command
            .env_remove("MUSTER_URL")
            .env_remove("MUSTER_TOKEN")
            .env_remove("XDG_RUNTIME_DIR");
        command
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("MUSTER_LOG");
        command
            .env("HOME", self.dir.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// `muster ARGS...` as the admin; not yet started.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = self.bare("muster");
        command.env("MUSTER_URL", self.url());
        if !self.host.is_loopback() {
            command.env("MUSTER_CA_FILE", self.state().join("keys/ca.pem"));
        }
        if let Ok(token) = self.token() {
            command.env("MUSTER_TOKEN", token);
        }
        command.args(args);
        command
    }

    /// Runs `muster ARGS...` as the admin, to its end.
    ///
    /// # Panics
    /// When it cannot be started or hangs.
    #[must_use]
    pub fn muster<S: AsRef<OsStr>>(&self, args: &[S]) -> Said {
        self.heard(finish(self.command(args)))
    }

    /// Keeps in mind what somebody was told, for [`invariants::Audit`].
    pub fn heard(&self, said: Said) -> Said {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.extend(invariants::told(&said));
        said
    }

    /// Everything that [`Up::muster`] and [`Up::muster_as`] were told of runs.
    #[must_use]
    pub fn told(&self) -> BTreeSet<invariants::Told> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    }

    /// Runs `muster ARGS...` with that token.
    #[must_use]
    pub fn muster_as<S: AsRef<OsStr>>(&self, token: &str, args: &[S]) -> Said {
        let mut command = self.command(args);
        command.env("MUSTER_TOKEN", token);
        self.heard(finish(command))
    }

    /// The state directory of an agent that `muster up` started.
    #[must_use]
    pub fn agent_state(&self, name: &str) -> PathBuf {
        self.state().join("agents").join(name)
    }

    /// The process that `muster up` started under this name: `nats-server`,
    /// `broker` or `agent-NAME`.
    ///
    /// # Errors
    /// When there is none.
    pub fn pid(&self, name: &str) -> Result<u32> {
        let file = self.state().join("run").join(format!("{name}.json"));
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let json: Value = serde_json::from_str(&text)?;
        json["pid"]
            .as_u64()
            .and_then(|p| u32::try_from(p).ok())
            .context("no pid in the file")
    }

    /// The process id of `muster up` itself.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn up_pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Ends `muster up` with a signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self, with: Signal) -> Result<i32> {
        let Some(mut child) = self.child.take() else {
            return Ok(0);
        };
        signal(child.id(), with)?;
        let status = wait_for("the end of `muster up`", || child.try_wait().ok().flatten())?;
        Ok(status.code().unwrap_or(-1))
    }

    /// Processes alive whose command line names this test's directory.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        let needle = self.dir.path().to_string_lossy().into_owned();
        processes()
            .into_iter()
            .filter(|(_, line)| line.contains(&needle))
            .collect()
    }
}

#[allow(clippy::print_stderr, reason = "a failed test shows the logs")]
impl Drop for Up {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Straight to where the panic's own message goes.
            let _ = writeln!(std::io::stderr(), "{}", self.logs());
        }
        let _ = self.stop(Signal::TERM);
        for (pid, _) in self.processes() {
            let _ = signal(pid, Signal::KILL);
        }
    }
}

/// Every process with a command line: pid and the line.
#[must_use]
pub fn processes() -> Vec<(u32, String)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if let Ok(line) = std::fs::read(entry.path().join("cmdline")) {
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if !line.is_empty() && pid != std::process::id() {
                all.push((pid, line));
            }
        }
    }
    all
}

/// Sends a signal.
///
/// # Errors
/// When the process is gone.
pub fn signal(pid: u32, with: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("not a pid")?;
    Ok(kill_process(pid, with)?)
}

/// Runs a command to its end, with a bound.
///
/// # Panics
/// When it cannot be started or hangs.
#[must_use]
pub fn finish(mut command: Command) -> Said {
    let shown = format!("{command:?}");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{shown}: {e}"));
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.map(|mut p| p.read_to_end(&mut bytes));
            bytes
        })
    };
    let out = read(child.stdout.take().map(|p| Box::new(p) as _));
    let err = read(child.stderr.take().map(|p| Box::new(p) as _));
    let status = wait_for(&format!("the end of {shown}"), || {
        child.try_wait().ok().flatten()
    });
    if status.is_err() {
        let _ = child.kill();
    }
    let status = status.unwrap_or_else(|e| panic!("{e}"));
    let join = |t: std::thread::JoinHandle<Vec<u8>>| t.join().unwrap_or_default();
    Said::new(&Output {
        status,
        stdout: join(out),
        stderr: join(err),
    })
}

/// The names in a list that `muster match --json` printed.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn names(said: &Said) -> Vec<String> {
    serde_json::from_str(said.out.trim()).unwrap_or_else(|e| panic!("{e}: {said:?}"))
}

/// Lines of a file; none when it is not there. The tests' counters of effects.
#[must_use]
pub fn lines(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}
