//! Two brokers of one cluster, each with a state directory of its own, on one
//! NATS server; and agents. Made with the documented commands.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use muster_tests::hold::Hold;
use muster_tests::{Said, bin, finish, free_port, have_checkpoints, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use super::super::{Process, curl, invite_token};
use super::tap::Tap;

/// One of the two.
pub(super) struct Broker {
    pub(super) name: &'static str,
    pub(super) port: u16,
    pub(super) process: Option<Process>,
}

/// Both, with their server and their agents.
pub(super) struct Pair {
    pub(super) dir: tempfile::TempDir,
    pub(super) nats_port: u16,
    pub(super) nats: Option<Process>,
    pub(super) a: Broker,
    pub(super) b: Broker,
    agents: Vec<(String, Process)>,
    hold: Option<Hold>,
}

impl Broker {
    fn not_yet(name: &'static str) -> Self {
        Self {
            name,
            port: free_port().expect("a port"),
            process: None,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").child.id()
    }

    pub(super) fn signal(&self, with: Signal) {
        signal(self.pid(), with).expect("it is there");
    }

    /// What it says of itself, when it answers within two seconds.
    pub(super) fn readiness(&self) -> Option<Value> {
        self.get("/readyz").map(|(_, said)| said)
    }

    /// Status and JSON of an answer.
    pub(super) fn get(&self, path: &str) -> Option<(u16, Value)> {
        let said = finish(curl(&[
            "-s",
            "--max-time",
            "2",
            "-w",
            "\n%{http_code}",
            &format!("{}{path}", self.url()),
        ]));
        let (body, code) = said.out.rsplit_once('\n')?;
        let code = code.trim().parse().ok().filter(|code| *code != 0)?;
        Some((code, serde_json::from_str(body).ok()?))
    }

    pub(super) fn epoch(&self) -> Option<u64> {
        let said = self.readiness()?;
        (said["state"] == "active").then(|| said["epoch"].as_u64())?
    }

    pub(super) fn wait_active(&self) -> u64 {
        wait_for(&format!("{} to be active", self.name), || self.epoch())
            .unwrap_or_else(|e| panic!("{e}: {:?} {}", self.readiness(), self.log()))
    }

    pub(super) fn wait_standby(&self) -> Value {
        wait_for(&format!("{} to stand by", self.name), || {
            self.readiness()
                .filter(|said| said["state"] == "standby" && said["active"].is_string())
        })
        .unwrap_or_else(|e| panic!("{e}: {:?} {}", self.readiness(), self.log()))
    }

    pub(super) fn log(&self) -> String {
        self.process.as_ref().map(Process::says).unwrap_or_default()
    }
}

impl Pair {
    /// Both brokers, `a` active and `b` standing by, and these agents
    /// (`NAME:ROLE`), up.
    pub(super) fn start(nodes: &[&str]) -> Self {
        Self::with(nodes, "", |port| port)
    }

    /// The same with more settings, and with `a` going to NATS by the port
    /// that `way` gives for the server's.
    pub(super) fn with(nodes: &[&str], settings: &str, way: impl FnOnce(u16) -> u16) -> Self {
        Self::not_yet().begin(nodes, settings, way)
    }

    /// The same, and everybody can be held at checkpoints.
    pub(super) fn held(nodes: &[&str], way: impl FnOnce(u16) -> u16) -> Self {
        have_checkpoints().expect("the programs have checkpoints");
        let mut pair = Self::not_yet();
        let hold = Hold::listen(&pair.dir.path().join("checkpoints")).expect("listens");
        pair.hold = Some(hold);
        pair.begin(nodes, "", way)
    }

    /// What holds everybody.
    pub(super) fn hold(&self) -> &Hold {
        self.hold.as_ref().expect("it was made with one")
    }

    fn not_yet() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("muster-pair-")
            .tempdir()
            .expect("a directory");
        Self {
            dir,
            nats_port: free_port().expect("a port"),
            nats: None,
            a: Broker::not_yet("a"),
            b: Broker::not_yet("b"),
            agents: Vec::new(),
            hold: None,
        }
    }

    fn begin(self, nodes: &[&str], settings: &str, way: impl FnOnce(u16) -> u16) -> Self {
        let mut pair = self;
        pair.prepare_nats();
        pair.start_nats();
        let text = format!(
            "state = \"{}\"\nlisten = \"127.0.0.1:{}\"\n{settings}\n[nats]\nurls = [\"nats://127.0.0.1:{}\"]\nagent_urls = [\"nats://127.0.0.1:{}\"]\n",
            pair.state("a").display(),
            pair.a.port,
            way(pair.nats_port),
            pair.nats_port
        );
        std::fs::write(pair.state("a").join("broker.toml"), text).expect("writes");
        pair.start_broker("a");
        pair.a.wait_active();
        let state = pair.state("b").display().to_string();
        let listen = format!("127.0.0.1:{}", pair.b.port);
        pair.muster_at(
            &pair.a.url(),
            &["standby", "--state", &state, "--listen", &listen],
        )
        .exits(0);
        // `b` goes to NATS by itself.
        let file = pair.state("b").join("broker.toml");
        let text = std::fs::read_to_string(&file).expect("it was made");
        let (before, after) = text.split_once("\nurls = [").expect("where NATS is");
        let (_, after) = after.split_once(']').expect("a list");
        let own = format!(
            "{before}\nurls = [\"nats://127.0.0.1:{}\"]{after}",
            pair.nats_port
        );
        std::fs::write(&file, own).expect("writes");
        pair.start_broker("b");
        pair.b.wait_standby();
        for node in nodes {
            pair.add_node(node);
        }
        pair
    }

    pub(super) fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn prepare_nats(&self) {
        let state = self.state("a");
        let mut command = self.bare("muster");
        command.args(["nats-config", "--state"]).arg(&state);
        command
            .arg("--resolver-dir")
            .arg(self.dir.path().join("nats/accounts"));
        let said = finish(command).exits(0);
        let text = said.out.replace(
            "/var/lib/nats/jetstream",
            &self.dir.path().join("nats/store").display().to_string(),
        );
        std::fs::create_dir_all(self.dir.path().join("nats/accounts")).expect("writes");
        let own = format!("listen: \"127.0.0.1:{}\"\n{text}", self.nats_port);
        std::fs::write(self.dir.path().join("nats.conf"), own).expect("writes");
    }

    pub(super) fn start_nats(&mut self) {
        let mut command = Command::new("nats-server");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/usr/local/sbin"));
        command
            .args(["-l", "/dev/stderr", "-c"])
            .arg(self.dir.path().join("nats.conf"));
        let process = Process::start(command, self.dir.path().join("nats.log"));
        process.says_soon("Server is ready");
        self.nats = Some(process);
    }

    pub(super) fn broker(&self, name: &str) -> &Broker {
        if name == "a" { &self.a } else { &self.b }
    }

    fn broker_mut(&mut self, name: &str) -> &mut Broker {
        if name == "a" {
            &mut self.a
        } else {
            &mut self.b
        }
    }

    pub(super) fn start_broker(&mut self, name: &str) {
        let mut command = self.bare("muster");
        command
            .args(["broker", "--config"])
            .arg(self.state(name).join("broker.toml"));
        let log = self.dir.path().join(format!("{name}.log"));
        self.broker_mut(name).process = Some(Process::start(command, log));
    }

    /// Ends a broker with a signal, and waits for its end.
    pub(super) fn end_broker(&mut self, name: &str, with: Signal) {
        let mut process = self.broker_mut(name).process.take().expect("it runs");
        signal(process.child.id(), with).expect("it is there");
        wait_for("the end of a broker", || (!process.runs()).then_some(()))
            .unwrap_or_else(|e| panic!("{e}: {}", process.says()));
    }

    /// Enrols a node, starts its agent, and waits until it is up.
    pub(super) fn add_node(&mut self, node: &str) {
        self.add_node_with(node, &bin("muster-agent"));
    }

    /// The same, and its agent is an executable that nobody else runs.
    pub(super) fn add_node_of_its_own(&mut self, node: &str) {
        let name = node.split(':').next().unwrap_or(node);
        let program = self.dir.path().join(format!("{name}.bin/muster-agent"));
        std::fs::create_dir_all(program.parent().expect("a directory")).expect("made");
        std::fs::copy(bin("muster-agent"), &program).expect("copied");
        self.add_node_with(node, &program);
    }

    fn add_node_with(&mut self, node: &str, program: &Path) {
        let (name, role) = node.split_once(':').expect("NAME:ROLE");
        let said = self
            .muster(&["node", "invite", "--json", "--name", name, "--role", role])
            .exits(0);
        let mut command = self.bare("muster-agent");
        command
            .args(["enroll", "--url", &self.urls(), "--state"])
            .arg(self.state(name))
            .env("MUSTER_ENROLL_TOKEN", invite_token(&said));
        finish(command).exits(0);
        let mut command = self.bare("muster-agent");
        if program != bin("muster-agent") {
            command = self.clean(Command::new(program));
        }
        self.start_agent(name, command);
        self.wait_up(name);
    }

    fn start_agent(&mut self, name: &str, mut command: Command) {
        command.args(["run", "--state"]).arg(self.state(name));
        let log = self.dir.path().join(format!("{name}.log"));
        self.agents
            .push((name.to_owned(), Process::start(command, log)));
    }

    pub(super) fn agent_log(&self, name: &str) -> String {
        let agent = self.agents.iter().find(|(n, _)| n == name);
        agent.map(|(_, process)| process.says()).unwrap_or_default()
    }

    pub(super) fn wait_up(&self, name: &str) {
        wait_for(&format!("{name} to be up"), || {
            let said = self.muster(&["nodes", "--json"]);
            (said.code == 0
                && said
                    .list()
                    .iter()
                    .any(|n| n["name"] == name && n["state"] == "up"))
            .then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {} {}", self.a.log(), self.agent_log(name)));
    }

    /// Hears everything in the NATS account from now on.
    pub(super) fn tap(&self) -> Tap {
        Tap::open(&self.state("a"), self.nats_port)
    }

    /// Both URLs, as people give them.
    pub(super) fn urls(&self) -> String {
        format!("{},{}", self.a.url(), self.b.url())
    }

    pub(super) fn token(&self) -> String {
        let file = self.state("a").join("admin.token");
        std::fs::read_to_string(file)
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    pub(super) fn bare(&self, name: &str) -> Command {
        self.clean(Command::new(bin(name)))
    }

    fn clean(&self, mut command: Command) -> Command {
        for unset in [
            "MUSTER_URL",
            "MUSTER_TOKEN",
            "XDG_RUNTIME_DIR",
            "XDG_CONFIG_HOME",
            "MUSTER_LOG",
        ] {
            command.env_remove(unset);
        }
        command.env("HOME", self.dir.path()).env("NO_COLOR", "1");
        if let Some(hold) = &self.hold {
            let (variable, socket) = hold.env();
            command.env(variable, socket);
        }
        command
    }

    pub(super) fn command_at<S: AsRef<OsStr>>(&self, url: &str, args: &[S]) -> Command {
        let mut command = self.bare("muster");
        command
            .env("MUSTER_URL", url)
            .env("MUSTER_TOKEN", self.token())
            .args(args)
            .stdin(std::process::Stdio::null());
        command
    }

    pub(super) fn muster_at<S: AsRef<OsStr>>(&self, url: &str, args: &[S]) -> Said {
        finish(self.command_at(url, args))
    }

    /// `muster ARGS...` as the admin, with both URLs.
    pub(super) fn muster<S: AsRef<OsStr>>(&self, args: &[S]) -> Said {
        self.muster_at(&self.urls(), args)
    }

    /// Runs `muster ARGS...` beside the test.
    pub(super) fn beside(&self, url: &str, args: &[&str]) -> std::thread::JoinHandle<Said> {
        let command = self.command_at(url, args);
        std::thread::spawn(move || finish(command))
    }

    /// Runs `true` on all nodes until all of them succeed.
    pub(super) fn works(&self, nodes: usize) {
        let mut last = None;
        wait_for("a run to succeed", || {
            let said = self.muster(&["run", "*", "--yes", "--json", "--", "true"]);
            let well = said.code == 0 && said.outcomes().len() == nodes;
            last = Some(said);
            well.then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {last:#?} {} {}", self.a.log(), self.b.log()));
    }

    /// Measures until the broker serves.
    pub(super) fn takeover(&self, name: &str, since: Instant) -> Duration {
        self.broker(name).wait_active();
        since.elapsed()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // A stopped process takes no other signal.
        for broker in [&self.a, &self.b] {
            if let Some(process) = &broker.process {
                let _ = signal(process.child.id(), Signal::CONT);
            }
        }
    }
}
