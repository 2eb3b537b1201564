//! A broker, a bastion, and web servers.

use anyhow::{Result, ensure};
use muster_tests::vm::{Host, World};
use muster_tests::{Said, Up, wait_for};
use tempfile::TempDir;

const AGENT: &str = "[capabilities]\nfirewall = true\n";

/// They.
pub struct Fleet {
    pub hosts: Vec<Host>,
    pub up: Up,
    pub world: World,
    dir: TempDir,
}

impl Fleet {
    /// `bastion-1` and so many web servers, `web-01` and so on. All have the
    /// capability, and something that listens on port 22.
    pub fn start(webs: u8) -> Result<Self> {
        let world = World::enter()?;
        let dir = tempfile::Builder::new().prefix("muster-test-").tempdir()?;
        let mut up = Up::not_yet(&[])?;
        up.listen_on(world.address())?;
        up.launch()?;
        let mut fleet = Self {
            hosts: Vec::new(),
            up,
            world,
            dir,
        };
        let label = "address=10.77.0.2";
        fleet.add("bastion-1", 2, &["--role", "bastion", "--label", label])?;
        for n in 1..=webs {
            fleet.add(&format!("web-{n:02}"), 10 + n, &["--role", "web"])?;
        }
        fleet.all_up()?;
        Ok(fleet)
    }

    fn add(&mut self, name: &str, n: u8, args: &[&str]) -> Result<()> {
        let mut host = Host::start(&self.world, self.dir.path(), name, n)?;
        host.enrol(&self.up, args)?;
        host.run_agent(AGENT)?;
        host.listen(22)?;
        self.hosts.push(host);
        Ok(())
    }

    /// Starts an agent anew, with that configuration in place of the usual.
    pub fn run_agent(&mut self, name: &str, config: Option<&str>) -> Result<()> {
        self.host_mut(name).run_agent(config.unwrap_or(AGENT))
    }

    /// Everything of a machine ends at once; it is up again without its agent.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        let Self { hosts, world, .. } = self;
        let host = hosts.iter_mut().find(|host| host.name() == name);
        host.expect("a machine of that name").restart(world)
    }

    pub fn host(&self, name: &str) -> &Host {
        let mut all = self.hosts.iter();
        all.find(|host| host.name() == name).expect("a machine")
    }

    pub fn host_mut(&mut self, name: &str) -> &mut Host {
        let mut all = self.hosts.iter_mut();
        all.find(|host| host.name() == name).expect("a machine")
    }

    /// Waits until every agent answers.
    pub fn all_up(&self) -> Result<()> {
        let names: Vec<&str> = self.hosts.iter().map(Host::name).collect();
        self.are_up(&names)
    }

    pub fn are_up(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let answers = wait_for(&format!("{name} to answer"), || {
                let said = self.up.muster(&["ping", &format!("name={name}"), "--json"]);
                (said.code == 0).then_some(())
            });
            ensure!(
                answers.is_ok(),
                "{name} is not up:\n{}",
                self.host(name).log()
            );
        }
        Ok(())
    }

    /// Stores a scenario whose `run` is that, and that goes node by node.
    pub fn store(&self, name: &str, body: &str) -> Result<()> {
        let script = format!(
            "scenario(\"Change the firewall\");\ntarget(\"role=web\");\nbatch(\"1\");\n\
             max_failures(0);\nallow_check();\ntimeout(\"3m\");\n\nfn run(p) {{\n{body}\n}}\n"
        );
        let file = self.dir.path().join(format!("{name}.rhai"));
        std::fs::write(&file, script)?;
        let file = file.to_string_lossy().into_owned();
        let said = self.up.muster(&["scenario", "put", name, &file]);
        ensure!(said.code == 0, "{said:#?}");
        Ok(())
    }

    /// Runs one, to its end.
    pub fn run(&self, name: &str, args: &[&str]) -> Said {
        self.up
            .muster(&[&["scenario", "run", name, "--yes"], args].concat())
    }

    /// What all agents logged, for a failed test.
    pub fn logs(&self) -> String {
        let tail = |host: &Host| {
            let log = host.log();
            let lines: Vec<&str> = log.lines().rev().take(60).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            format!("--- {}\n{}\n", host.name(), lines.join("\n"))
        };
        self.hosts.iter().map(tail).collect()
    }
}
