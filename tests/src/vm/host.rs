//! A machine of the tests without virtual machines: namespaces with a cable to
//! the [`World`], an agent in them, and a machine that can be restarted.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::agent::invite;
use super::hypervisor::Inside;
use super::namespace::Namespace;
use super::world::World;
use crate::{Said, Up, bin, finish, signal};

/// `$1` is the directory of the machine.
const SETUP: &str = r#"
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t sysfs sys /sys
mount -t tmpfs -o mode=755 run /run
hostname "$(cat "$1/name")"
ip link set lo up
"#;

/// It.
#[derive(Debug)]
pub struct Host {
    name: String,
    dir: PathBuf,
    address: Ipv4Addr,
    inside: Option<Namespace>,
    agent: Option<Inside>,
    boots: u32,
}

impl Host {
    /// Machine number `n` of that world, 2 to 200, with everything that it
    /// writes below `dir`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(world: &World, dir: &Path, name: &str, n: u8) -> Result<Self> {
        let dir = dir.join(name);
        fs::create_dir_all(dir.join("agent"))?;
        fs::write(dir.join("name"), name)?;
        let mut host = Self {
            name: name.to_owned(),
            dir,
            address: Ipv4Addr::new(10, 77, 0, n),
            inside: None,
            agent: None,
            boots: 0,
        };
        host.boot(world)?;
        Ok(host)
    }

    fn boot(&mut self, world: &World) -> Result<()> {
        self.boots += 1;
        fs::write(self.dir.join("boot_id"), format!("boot-{}", self.boots))?;
        let inside = Namespace::new(SETUP, &self.dir).with_context(|| self.name.clone())?;
        world.cable(&self.name, &inside)?;
        let address = format!("{}/16", self.address);
        inside.done(&["ip", "addr", "add", &address, "dev", "uplink"])?;
        inside.done(&["ip", "link", "set", "uplink", "up"])?;
        self.inside = Some(inside);
        Ok(())
    }

    /// Everything in it ends at once, and it begins anew, without its agent
    /// and without rules.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn restart(&mut self, world: &World) -> Result<()> {
        self.agent = None;
        if let Some(inside) = self.inside.take() {
            inside.end()?;
        }
        self.boot(world)
    }

    fn inside(&self) -> &Namespace {
        self.inside.as_ref().expect("it is there until it restarts")
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// Makes it a node, with these arguments of `muster node invite`.
    ///
    /// # Errors
    /// When it does not get in.
    pub fn enrol(&self, up: &Up, args: &[&str]) -> Result<()> {
        let token = invite(up, &self.name, args)?;
        let mut command = self.inside().command(bin("muster-agent"));
        command
            .args(["enroll", "--url", &up.url(), "--state"])
            .arg(self.dir.join("agent/state"))
            .env("MUSTER_ENROLL_TOKEN", token);
        let said = finish(command);
        ensure!(said.code == 0, "{} does not enrol: {}", self.name, said.err);
        Ok(())
    }

    /// Starts its agent with that configuration (TOML).
    ///
    /// # Errors
    /// When it does not start.
    pub fn run_agent(&mut self, config: &str) -> Result<()> {
        let file = self.dir.join("agent/agent.toml");
        let boot_id = self.dir.join("boot_id");
        fs::write(&file, format!("boot_id = {boot_id:?}\n{config}"))?;
        let log = self.dir.join("agent.log");
        let out = File::options().create(true).append(true).open(&log)?;
        let mut command = self.inside().command(bin("muster-agent"));
        command
            .args(["run", "--state"])
            .arg(self.dir.join("agent/state"))
            .arg("--config")
            .arg(&file)
            .env("HOME", self.dir.join("agent"))
            .env("MUSTER_LOG", "debug");
        let child = command.stderr(out.try_clone()?).stdout(out).spawn()?;
        self.agent = Some(Inside::new(child, log)?);
        Ok(())
    }

    /// Kills its agent, and everything of its process group.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_agent(&mut self) -> Result<()> {
        let agent = self.agent.take().context("no agent runs")?;
        signal(agent.pid(), Signal::KILL)?;
        agent.stop(Signal::KILL).map(drop)
    }

    /// What its agent printed until now.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// Runs a command in it to its end.
    #[must_use]
    pub fn run(&self, argv: &[&str]) -> Said {
        self.inside().run(argv)
    }

    /// The table that muster makes for a node's own firewall, as text; empty
    /// where there is none.
    #[must_use]
    pub fn table(&self) -> String {
        self.run(&["nft", "list", "table", "inet", "muster_host"])
            .out
    }

    /// Somebody who listens on a port in it, as long as the machine is there,
    /// and this process.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn listen(&self, port: u16) -> Result<()> {
        let at = (self.address(), port);
        // A socket stays in the network in which it was made.
        std::thread::scope(|scope| {
            let made = scope.spawn(|| -> Result<TcpListener> {
                self.inside().enter_network()?;
                Ok(TcpListener::bind(at)?)
            });
            let listener = made.join().map_err(|_| anyhow::anyhow!("a thread"))??;
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if stream.is_err() {
                        return;
                    }
                }
            });
            Ok(())
        })
    }
}
