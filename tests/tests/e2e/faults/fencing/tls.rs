//! Two brokers beyond loopback, with the cluster's own authority: everything
//! that they, their nodes and people say to each other is in TLS, also after a
//! takeover.

use std::path::PathBuf;
use std::process::Command;

use muster_tests::{Said, bin, finish, free_port, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use super::super::{Process, curl, invite_token};

/// `muster up` beyond loopback, and a standby of it.
struct Safe {
    dir: tempfile::TempDir,
    ports: [u16; 2],
    /// In the order in which they are to end.
    processes: Vec<(&'static str, Process)>,
}

impl Safe {
    fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("muster-safe-")
            .tempdir()
            .expect("a directory");
        let port = || free_port().expect("a port");
        let mut safe = Self {
            dir,
            ports: [port(), port()],
            processes: Vec::new(),
        };
        let mut up = safe.bare("muster");
        up.args(["up", "--state"]).arg(safe.state("a")).args([
            "--listen",
            &format!("0.0.0.0:{}", safe.ports[0]),
            "--nats-listen",
            &format!("0.0.0.0:{}", port()),
        ]);
        safe.run("up", up);
        wait_for("`muster up` to be ready", || safe.active(0))
            .unwrap_or_else(|e| panic!("{e}: {}", safe.says("up")));
        let state = safe.state("b").display().to_string();
        let listen = format!("0.0.0.0:{}", safe.ports[1]);
        let args = ["standby", "--state", &state, "--listen", &listen];
        safe.muster_at(&safe.url(0), &args).exits(0);
        let mut b = safe.bare("muster");
        b.args(["broker", "--config"])
            .arg(safe.state("b").join("broker.toml"));
        safe.run("b", b);
        safe.stands_by(1);
        safe
    }

    fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The authority, as people get it.
    fn ca(&self) -> String {
        self.state("a").join("keys/ca.pem").display().to_string()
    }

    fn url(&self, which: usize) -> String {
        format!("https://127.0.0.1:{}", self.ports[which])
    }

    fn urls(&self) -> String {
        format!("{},{}", self.url(0), self.url(1))
    }

    fn bare(&self, name: &str) -> Command {
        let mut command = Command::new(bin(name));
        for unset in ["MUSTER_URL", "MUSTER_TOKEN", "XDG_RUNTIME_DIR"] {
            command.env_remove(unset);
        }
        command.env_remove("XDG_CONFIG_HOME");
        command.env("HOME", self.dir.path()).env("NO_COLOR", "1");
        command.stdin(std::process::Stdio::null());
        command
    }

    fn run(&mut self, name: &'static str, command: Command) {
        let log = self.dir.path().join(format!("{name}.log"));
        self.processes
            .insert(0, (name, Process::start(command, log)));
    }

    fn says(&self, name: &str) -> String {
        let found = self.processes.iter().find(|(n, _)| *n == name);
        found.map(|(_, process)| process.says()).unwrap_or_default()
    }

    fn muster_at(&self, url: &str, args: &[&str]) -> Said {
        let token = std::fs::read_to_string(self.state("a").join("admin.token"));
        let mut command = self.bare("muster");
        command
            .env("MUSTER_URL", url)
            .env("MUSTER_CA_FILE", self.ca())
            .env("MUSTER_TOKEN", token.unwrap_or_default().trim())
            .args(args);
        finish(command)
    }

    fn muster(&self, args: &[&str]) -> Said {
        self.muster_at(&self.urls(), args)
    }

    fn readiness(&self, which: usize) -> Option<Value> {
        let url = format!("{}/readyz", self.url(which));
        let args = ["-s", "--max-time", "2", "--cacert", &self.ca(), &url];
        serde_json::from_str(&finish(curl(&args)).out).ok()
    }

    fn active(&self, which: usize) -> Option<()> {
        (self.readiness(which)?["state"] == "active").then_some(())
    }

    fn wait_active(&self, which: usize) {
        wait_for(&format!("broker {which} to be active"), || {
            self.active(which)
        })
        .unwrap_or_else(|e| panic!("{e}: {:?} {}", self.readiness(which), self.says("b")));
    }

    fn stands_by(&self, which: usize) -> Value {
        wait_for(&format!("broker {which} to stand by"), || {
            self.readiness(which)
                .filter(|said| said["state"] == "standby" && said["active"].is_string())
        })
        .unwrap_or_else(|e| panic!("{e}: {:?} {}", self.readiness(which), self.says("b")))
    }

    /// Enrols a node and starts its agent.
    fn add_node(&mut self, name: &'static str) {
        let args = ["node", "invite", "--json", "--name", name, "--role", "n"];
        let token = invite_token(&self.muster(&args).exits(0));
        let mut command = self.bare("muster-agent");
        // What it is to believe stands in the invite.
        command
            .args(["enroll", "--url", &self.urls(), "--state"])
            .arg(self.state(name))
            .env("MUSTER_ENROLL_TOKEN", token);
        finish(command).exits(0);
        let mut command = self.bare("muster-agent");
        command.args(["run", "--state"]).arg(self.state(name));
        self.run(name, command);
    }

    fn works(&self, url: &str, predicate: &str, nodes: usize) {
        let mut last = None;
        wait_for("a run to succeed", || {
            let args = ["run", predicate, "--yes", "--json", "--", "true"];
            let said = self.muster_at(url, &args);
            let well = said.code == 0 && said.outcomes().len() == nodes;
            last = Some(said);
            well.then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {last:#?} {} {}", self.says("b"), self.says("a-1")));
    }

    /// The process of the first broker, below `muster up`.
    fn first(&self) -> u32 {
        let file = self.state("a").join("run/broker.json");
        let text = std::fs::read_to_string(file).expect("it runs");
        let json: Value = serde_json::from_str(&text).expect("JSON");
        let pid = json["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.expect("a process")
    }
}

impl Drop for Safe {
    fn drop(&mut self) {
        for (name, process) in &mut self.processes {
            let _ = signal(process.child.id(), Signal::TERM);
            // It ends what it has started.
            if *name == "up" {
                let _ = wait_for("its end", || (!process.runs()).then_some(()));
            }
        }
    }
}

#[test]
fn a_standby_takes_over_beyond_loopback_with_the_clusters_own_authority() {
    let mut safe = Safe::start();
    for name in ["a-1", "a-2"] {
        safe.add_node(name);
    }
    safe.works(&safe.urls(), "role=n", 2);
    // NATS, too, and whoever does not know the authority believes nobody.
    let config = std::fs::read_to_string(safe.state("b").join("broker.toml")).expect("it is there");
    assert!(
        config.contains("tls://") && !config.contains("nats://"),
        "{config}"
    );
    for which in [0, 1] {
        let stranger = finish(curl(&["-s", &format!("{}/healthz", safe.url(which))]));
        assert_ne!(stranger.code, 0, "{stranger:?}");
    }

    let first = safe.first();
    signal(first, Signal::STOP).expect("it stops");
    safe.wait_active(1);
    safe.works(&safe.urls(), "role=n", 2);
    // Credentials come from the one that is there, in TLS.
    let label = ["node", "label", "a-1", "zone=x", "--json"];
    safe.muster(&label).exits(0);
    safe.works(&safe.url(1), "zone=x", 1);
    safe.add_node("a-3");
    safe.works(&safe.url(1), "role=n", 3);

    signal(first, Signal::CONT).expect("it goes on");
    let said = safe.stands_by(0);
    let active = said["active"].as_str().unwrap_or_default();
    assert!(
        active.starts_with("https://") && active.ends_with(&format!(":{}", safe.ports[1])),
        "{said}"
    );
    // Whoever knows the first one alone is led to the other.
    safe.works(&safe.url(0), "role=n", 3);
    let at = safe.processes.iter().position(|(name, _)| *name == "b");
    let (_, b) = safe.processes.remove(at.expect("it runs"));
    drop(b);
    safe.wait_active(0);
    safe.works(&safe.urls(), "role=n", 3);
}
