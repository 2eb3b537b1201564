//! A cluster with a hypervisor on a real libvirt.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use muster_tests::hold::Hold;
use muster_tests::vm::guest::GUEST_PATIENCE;
use muster_tests::vm::hypervisor::Inside;
use muster_tests::vm::{Hypervisor, Image, World};
use muster_tests::{Said, Up, wait_for, wait_within};
use rustix::process::Signal;
use serde_json::Value;

const AGENT: &str = "[capabilities]\nvm = true\n\n[vm]\ntype = \"qemu\"\ncall_timeout = \"5s\"\n";

/// A cluster with one hypervisor, which is heard.
pub(crate) struct Cloud {
    world: World,
    pub(crate) up: Up,
    pub(crate) hypervisor: Hypervisor,
    agent: Mutex<Option<Inside>>,
    config: String,
    env: Vec<(String, String)>,
    _dir: tempfile::TempDir,
}

impl Cloud {
    pub(crate) fn new() -> Result<Self> {
        Self::with(&[], |_| Ok(())).map(|(cloud, ())| cloud)
    }

    /// The same, and its machines' interfaces are looked after.
    pub(crate) fn with_groups() -> Result<Self> {
        let mut cloud = Self::new()?;
        cloud.kill_agent()?;
        let with = "[capabilities]\nfirewall = true\n";
        cloud.config = AGENT.replacen("[capabilities]\n", with, 1);
        cloud.run_agent()?;
        Ok(cloud)
    }

    /// The same with a node beside it, on this side of the cable, with the
    /// role `lb`; and the programs are held wherever the test wants.
    pub(crate) fn behind_a_balancer() -> Result<(Self, Hold)> {
        Self::with(&["lb-1:role=lb"], Up::hold)
    }

    /// The same, with the programs held wherever the test wants.
    pub(crate) fn held_at_will() -> Result<(Self, Hold)> {
        let (mut cloud, hold) = Self::with(&[], Up::hold)?;
        let (name, socket) = hold.env();
        let socket = socket.to_string_lossy().into_owned();
        cloud.env = vec![(name.to_owned(), socket)];
        cloud.kill_agent()?;
        cloud.run_agent()?;
        Ok((cloud, hold))
    }

    pub(crate) fn with<T>(
        nodes: &[&str],
        prepare: impl FnOnce(&mut Up) -> Result<T>,
    ) -> Result<(Self, T)> {
        let dir = tempfile::tempdir()?;
        let world = World::enter()?;
        let mut up = Up::not_yet(nodes)?;
        up.listen_on(world.address())?;
        let prepared = prepare(&mut up)?;
        up.launch()?;
        let hypervisor = Hypervisor::start(&world, dir.path(), 2)?;
        hypervisor.enrol(&up, &["zone=gva2", "rack=r03"])?;
        let cloud = Self {
            world,
            up,
            hypervisor,
            agent: Mutex::default(),
            config: AGENT.to_owned(),
            env: Vec::new(),
            _dir: dir,
        };
        cloud.run_agent()?;
        Ok((cloud, prepared))
    }

    /// Kills the hypervisor's agent.
    pub(crate) fn kill_agent(&self) -> Result<()> {
        let agent = self.agent().take();
        agent.context("no agent runs")?.stop(Signal::KILL)?;
        Ok(())
    }

    fn agent(&self) -> MutexGuard<'_, Option<Inside>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the hypervisor's agent, and waits until what it has is known.
    pub(crate) fn run_agent(&self) -> Result<()> {
        let each = self.env.iter();
        let env: Vec<(&str, &str)> = each.map(|(k, v)| (k.as_str(), v.as_str())).collect();
        *self.agent() = Some(self.hypervisor.run_agent(&self.config, &env)?);
        self.heard()
    }

    /// Waits until the broker knows what the hypervisor has.
    pub(crate) fn heard(&self) -> Result<()> {
        let heard = wait_for("the hypervisor's report", || {
            let said = self.up.muster(&["hypervisor", "list", "--json"]);
            let all = (said.code == 0).then(|| said.list())?;
            let one = all.into_iter().find(|one| one["node"] == "hv2")?;
            one["capacity"].is_object().then_some(())
        });
        heard.with_context(|| self.logs())
    }

    /// The image of the tests, and a network on the hypervisor's bridge.
    pub(crate) fn furnish(&self) -> Result<()> {
        let image = Image::made()?;
        let path = image.path.to_string_lossy().into_owned();
        self.well(&["image", "add", "guest", &path])?;
        self.network()
    }

    /// An image of which nothing boots, by the same name, and the network.
    pub(crate) fn furnish_empty(&self) -> Result<()> {
        let disk = self.up.dir.path().join("empty.raw");
        std::fs::File::create(&disk)?.set_len(1 << 20)?;
        let disk = disk.to_string_lossy().into_owned();
        self.well(&["image", "add", "guest", &disk, "--format", "raw"])?;
        self.network()
    }

    fn network(&self) -> Result<()> {
        let pool = ["--pool", "10.77.1.10-10.77.1.99/16"];
        let network = ["network", "add", "lan", "--bridge", "br0"];
        self.well(&[&network[..], &pool].concat())?;
        Ok(())
    }

    pub(crate) fn well(&self, args: &[&str]) -> Result<Said> {
        let said = self.up.muster(args);
        ensure!(
            said.code == 0,
            "muster {args:?}: {said:#?}\n{}",
            self.logs()
        );
        Ok(said)
    }

    pub(crate) fn create(&self, name: &str, more: &[&str]) -> Said {
        let args = [
            "vm",
            "create",
            name,
            "--image",
            "guest",
            "--cpus",
            "1",
            "--memory",
            "256MiB",
            "--network",
            "lan",
        ];
        self.up.muster(&[&args[..], more].concat())
    }

    pub(crate) fn vm(&self, name: &str) -> Result<Value> {
        let said = self.well(&["vm", "show", name, "--json"])?;
        Ok(serde_json::from_str(&said.out)?)
    }

    /// Waits until a machine's status is that.
    pub(crate) fn becomes(&self, name: &str, status: &str) -> Result<Value> {
        let found = wait_within(GUEST_PATIENCE, &format!("{name} to be {status}"), || {
            self.vm(name).ok().filter(|vm| vm["status"] == status)
        });
        found.with_context(|| format!("{:#?}\n{}", self.vm(name), self.logs()))
    }

    /// What there is in the cluster that machines are made of.
    pub(crate) fn held(&self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for verb in [
            &["nodes", "--json"][..],
            &["node", "invites", "--json"],
            &["vm", "list", "--json"],
        ] {
            for item in self.well(verb)?.list() {
                all.insert(format!("{} {}", verb[0], item["name"]));
            }
        }
        let network = self.well(&["network", "show", "lan", "--json"])?;
        let network: Value = serde_json::from_str(&network.out)?;
        all.insert(format!("addresses in use {}", network["used"]));
        Ok(all)
    }

    /// Everything on the hypervisor that machines are made of. Libvirt keeps
    /// an empty directory and its own lists; the image stays in the cache.
    pub(crate) fn there(&self) -> Result<BTreeSet<String>> {
        let all = self.hypervisor.inventory()?;
        let kept = |line: &String| !line.contains("muster-image-");
        Ok(all.into_iter().filter(kept).collect())
    }

    pub(crate) fn logs(&self) -> String {
        let agent = self.agent().as_ref().map(Inside::log).unwrap_or_default();
        let agent: Vec<&str> = agent.lines().rev().take(60).collect();
        let agent: Vec<&str> = agent.into_iter().rev().collect();
        format!("{}\n--- hv2's agent\n{}", self.up.logs(), agent.join("\n"))
    }

    /// The boot id that each node of a role says.
    pub(crate) fn boot_ids(&self, role: &str) -> Result<BTreeMap<String, String>> {
        let role = format!("role={role}");
        let cat = ["cat", "/proc/sys/kernel/random/boot_id"];
        let said = self.well(&[&["run", &role, "--yes", "--json", "--"][..], &cat].concat())?;
        let each = said.output("stdout").into_iter();
        Ok(each
            .map(|(node, id)| (node, id.trim().to_owned()))
            .collect())
    }

    pub(crate) fn end(mut self) -> Result<()> {
        let agent = self.agent().take();
        assert_eq!(agent.context("no agent runs")?.stop(Signal::TERM)?, 0);
        self.up.stop(Signal::TERM)?;
        assert_eq!(self.hypervisor.end()?.processes(), []);
        assert_eq!(self.world.end()?.processes(), []);
        Ok(())
    }
}
