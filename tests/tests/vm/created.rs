//! From a command to a node that takes orders, and back to nothing: on a real
//! libvirt, with a real guest.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use muster_tests::vm::guest::{GUEST_PATIENCE, wait_for_guest};
use muster_tests::vm::hypervisor::Inside;
use muster_tests::vm::{Hypervisor, Image, World, capability};
use muster_tests::{Said, Up, wait_for, wait_within};
use rustix::process::Signal;
use serde_json::Value;

const AGENT: &str = "[capabilities]\nvm = true\n\n[vm]\ntype = \"qemu\"\n";

/// A cluster with one hypervisor, which is heard.
struct Cloud {
    world: World,
    up: Up,
    hypervisor: Hypervisor,
    agent: Option<Inside>,
    _dir: tempfile::TempDir,
}

impl Cloud {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let world = World::enter()?;
        let mut up = Up::not_yet(&[])?;
        up.listen_on(world.address())?;
        up.launch()?;
        let hypervisor = Hypervisor::start(&world, dir.path(), 2)?;
        hypervisor.enrol(&up, &["zone=gva2", "rack=r03"])?;
        let mut cloud = Self {
            world,
            up,
            hypervisor,
            agent: None,
            _dir: dir,
        };
        cloud.run_agent()?;
        Ok(cloud)
    }

    /// Starts the hypervisor's agent, and waits until what it has is known.
    fn run_agent(&mut self) -> Result<()> {
        self.agent = Some(self.hypervisor.run_agent(AGENT, &[])?);
        let heard = wait_for("the hypervisor's report", || {
            let all = self.up.muster(&["hypervisor", "list", "--json"]).list();
            let one = all.into_iter().find(|one| one["node"] == "hv2")?;
            one["capacity"].is_object().then_some(())
        });
        heard.with_context(|| self.logs())
    }

    /// The image of the tests, and a network on the hypervisor's bridge.
    fn furnish(&self) -> Result<()> {
        let image = Image::made()?;
        let path = image.path.to_string_lossy().into_owned();
        self.well(&["image", "add", "guest", &path])?;
        let pool = ["--pool", "10.77.1.10-10.77.1.99/16"];
        let network = ["network", "add", "lan", "--bridge", "br0"];
        self.well(&[&network[..], &pool].concat())?;
        Ok(())
    }

    fn well(&self, args: &[&str]) -> Result<Said> {
        let said = self.up.muster(args);
        ensure!(
            said.code == 0,
            "muster {args:?}: {said:#?}\n{}",
            self.logs()
        );
        Ok(said)
    }

    fn create(&self, name: &str, more: &[&str]) -> Said {
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

    fn vm(&self, name: &str) -> Result<Value> {
        let said = self.well(&["vm", "show", name, "--json"])?;
        Ok(serde_json::from_str(&said.out)?)
    }

    /// Waits until a machine's status is that.
    fn becomes(&self, name: &str, status: &str) -> Result<Value> {
        let found = wait_within(GUEST_PATIENCE, &format!("{name} to be {status}"), || {
            self.vm(name).ok().filter(|vm| vm["status"] == status)
        });
        found.with_context(|| format!("{:#?}\n{}", self.vm(name), self.logs()))
    }

    /// What there is in the cluster that machines are made of.
    fn held(&self) -> Result<BTreeSet<String>> {
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
    fn there(&self) -> Result<BTreeSet<String>> {
        let all = self.hypervisor.inventory()?;
        let kept = |line: &String| !line.contains("muster-image-");
        Ok(all.into_iter().filter(kept).collect())
    }

    fn logs(&self) -> String {
        let agent = self.agent.as_ref().map(Inside::log).unwrap_or_default();
        let agent: Vec<&str> = agent.lines().rev().take(60).collect();
        let agent: Vec<&str> = agent.into_iter().rev().collect();
        format!("{}\n--- hv2's agent\n{}", self.up.logs(), agent.join("\n"))
    }

    /// The boot id that each node of a role says.
    fn boot_ids(&self, role: &str) -> Result<std::collections::BTreeMap<String, String>> {
        let role = format!("role={role}");
        let cat = ["cat", "/proc/sys/kernel/random/boot_id"];
        let said = self.well(&[&["run", &role, "--yes", "--json", "--"][..], &cat].concat())?;
        let each = said.output("stdout").into_iter();
        Ok(each
            .map(|(node, id)| (node, id.trim().to_owned()))
            .collect())
    }

    fn end(mut self) -> Result<()> {
        if let Some(agent) = self.agent.take() {
            assert_eq!(agent.stop(Signal::TERM)?, 0);
        }
        self.up.stop(Signal::TERM)?;
        assert_eq!(self.hypervisor.end()?.processes(), []);
        assert_eq!(self.world.end()?.processes(), []);
        Ok(())
    }
}

#[test]
fn a_machine_is_made_takes_orders_and_goes_without_a_trace() -> Result<()> {
    if !capability("guest") {
        return Ok(());
    }
    let cloud = Cloud::new()?;
    cloud.furnish()?;
    let (there, held) = (cloud.there()?, cloud.held()?);

    // What would be done is said, and not done.
    let plan = cloud
        .create("web-03", &["--role", "web", "--dry-run"])
        .exits(0);
    plan.shows(&["hv2"]);
    assert_eq!(cloud.held()?, held);

    let made = cloud.create("web-03", &["--role", "web"]);
    let shown = format!("{made:#?}\n{}", cloud.logs());
    assert_eq!(made.code, 0, "{shown}");
    made.shows(&["web-03 is up at 10.77.1.10"]);

    // It is a node, with its role, and takes orders.
    let nodes = cloud.well(&["nodes", "role=web", "--json"])?.list();
    assert_eq!(nodes.len(), 1, "{nodes:#?}");
    assert_eq!(nodes[0]["name"], "web-03");
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let ids = cloud.boot_ids("web")?;
    assert_eq!(ids.keys().collect::<Vec<_>>(), ["web-03"]);
    assert_ne!(ids["web-03"], host.trim());
    let vm = cloud.becomes("web-03", "running")?;
    assert_eq!(vm["addresses"], serde_json::json!(["10.77.1.10"]));

    // Its seed holds no invite any more; what it was is nowhere on the disk.
    let id = vm["id"].as_str().context("an id")?.to_owned();
    let pool = cloud.hypervisor.pool();
    let seed = std::fs::read(pool.join(format!("muster-{id}-seed.img")))?;
    assert!(
        !seed.windows(4).any(|four| four == b"mi1_"),
        "an invite is left"
    );

    // The name is taken; nothing was touched.
    let again = cloud.create("web-03", &[]);
    assert_ne!(again.code, 0, "{again:#?}");
    assert!(again.err.contains("web-03"), "{again:#?}");

    // Somebody stops it by hand: it is seen, and nothing is repaired.
    cloud.hypervisor.virsh_done(&["destroy", "web-03"])?;
    let vm = wait_for("the drift", || {
        let vm = cloud.vm("web-03").ok()?;
        (vm["drift"].as_array()?.len() == 1).then_some(vm)
    })?;
    assert_eq!(vm["should_run"], true, "{vm:#?}");
    assert_ne!(vm["status"], "running", "{vm:#?}");
    cloud.well(&["vm", "start", "web-03"])?;
    cloud.becomes("web-03", "running")?;
    let second = wait_for_guest("web-03 to take orders again", || {
        let ids = cloud.boot_ids("web").ok()?;
        ids.get("web-03").cloned()
    })?;
    assert_ne!(second, ids["web-03"]);

    // A protected one stays.
    cloud.well(&["vm", "protect", "web-03"])?;
    let kept = cloud
        .up
        .muster(&["vm", "destroy", "web-03", "--purge", "--yes"]);
    assert_ne!(kept.code, 0, "{kept:#?}");
    kept.shows(&["protected"]);
    cloud.becomes("web-03", "running")?;
    cloud.well(&["vm", "unprotect", "web-03"])?;

    cloud.well(&["vm", "destroy", "web-03", "--purge", "--yes"])?;
    assert_eq!(cloud.there()?, there);
    assert_eq!(cloud.held()?, held);
    cloud.end()
}

#[test]
fn a_machine_that_never_boots_is_taken_back_and_its_console_is_shown() -> Result<()> {
    if !capability("libvirt") {
        return Ok(());
    }
    let cloud = Cloud::new()?;
    // A disk with nothing on it: the firmware finds no system.
    let disk = cloud.up.dir.path().join("empty.raw");
    std::fs::File::create(&disk)?.set_len(1 << 20)?;
    let disk = disk.to_string_lossy().into_owned();
    cloud.well(&["image", "add", "guest", &disk, "--format", "raw"])?;
    let pool = ["--pool", "10.77.1.10-10.77.1.99/16"];
    let network = ["network", "add", "lan", "--bridge", "br0"];
    cloud.well(&[&network[..], &pool].concat())?;
    let (there, held) = (cloud.there()?, cloud.held()?);

    let made = cloud.create("web-03", &["--role", "web", "--within", "12s"]);
    assert_ne!(made.code, 0, "{made:#?}");
    made.shows(&["web-03 was not heard within 12s"]);
    wait_for("what was reserved to be free", || {
        (cloud.held().ok()? == held).then_some(())
    })
    .with_context(|| cloud.logs())?;
    assert_eq!(cloud.there()?, there);
    cloud.end()
}
