//! Many machines at once, on hypervisors whose libvirt is in memory: each has
//! a name, addresses and a place of its own, also when the broker is killed
//! while they are made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_tests::{PATIENCE, Said, Up, signal, wait_for, wait_within};
use rustix::process::Signal;
use serde_json::Value;

const HYPERVISORS: usize = 20;
const MACHINES: usize = 60;
/// Until everything has come to rest, on a machine that does much else.
const REST: Duration = Duration::from_secs(240);

/// A cluster with simulated hypervisors, an image and a network.
struct Many {
    up: Up,
    fleet: Child,
    stats: PathBuf,
}

impl Drop for Many {
    fn drop(&mut self) {
        // What it keeps in memory goes with its end in good order.
        let _ = signal(self.fleet.id(), Signal::TERM);
        let _ = wait_for("the end of the hypervisors", || {
            self.fleet.try_wait().ok().flatten()
        });
        let _ = self.fleet.kill();
        let _ = self.fleet.wait();
    }
}

impl Many {
    fn new() -> Result<Self> {
        let up = Up::start(&[])?;
        let stats = up.dir.path().join("fleet.json");
        let mut command = up.bare("muster-fleet-sim");
        command
            .args([
                "--hypervisors",
                &HYPERVISORS.to_string(),
                "--url",
                &up.url(),
            ])
            .arg("--token-file")
            .arg(up.state().join("admin.token"))
            .arg("--stats")
            .arg(&stats)
            .stdout(Stdio::piped())
            .stderr(File::create(up.dir.path().join("fleet.log"))?);
        let mut fleet = command.spawn()?;
        let out = fleet.stdout.take().context("it is piped")?;
        let many = Self { up, fleet, stats };
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let line = lines.recv_timeout(PATIENCE * 2);
        let line = line.with_context(|| many.logs())?;
        ensure!(line.ends_with("20 hypervisors"), "{line}");
        let disk = many.up.dir.path().join("empty.raw");
        File::create(&disk)?.set_len(1 << 20)?;
        let disk = disk.to_string_lossy().into_owned();
        many.well(&["image", "add", "empty", &disk, "--format", "raw"])?;
        let pool = ["--pool", "10.64.1.10-10.64.2.250/16"];
        many.well(&[&["network", "add", "lan", "--bridge", "br0"][..], &pool].concat())?;
        Ok(many)
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

    fn logs(&self) -> String {
        let fleet = std::fs::read_to_string(self.up.dir.path().join("fleet.log"));
        let fleet = fleet.unwrap_or_default();
        let last: Vec<&str> = fleet.lines().rev().take(40).collect();
        format!("{}\n--- hypervisors\n{last:#?}", self.up.logs())
    }

    /// What became of a machine that is not there.
    fn why(&self, name: &str) -> String {
        let vm = self.up.muster(&["vm", "show", name, "--json"]);
        let run = serde_json::from_str::<Value>(&vm.out).ok();
        let run = run.and_then(|vm| Some(vm["run"].as_str()?.to_owned()));
        let run = run.map(|run| self.up.muster(&["runs", "show", &run]).out);
        format!("{}\n{}", vm.out, run.unwrap_or_default())
    }

    /// Asks for one machine, and does not wait for it.
    fn create(&self, name: &str) -> Said {
        self.up.muster(&[
            "vm",
            "create",
            name,
            "--image",
            "empty",
            "--cpus",
            "1",
            "--memory",
            "64MiB",
            "--disk",
            "1MiB",
            "--network",
            "lan",
            "--no-agent",
            "--ready",
            "boot",
            "--detach",
        ])
    }

    /// The machines of these names, as the broker lists them.
    fn listed(&self, names: &str) -> Option<Vec<Value>> {
        let said = self
            .up
            .muster(&["vm", "list", &format!("name={names}"), "--json"]);
        matches!(said.code, 0 | 3).then(|| said.list())
    }

    /// What the hypervisors have, as they say themselves.
    fn hypervisors(&self) -> Result<Vec<Value>> {
        let _ = std::fs::remove_file(&self.stats);
        signal(self.fleet.id(), Signal::USR1)?;
        let stats: Value = wait_for("what the hypervisors have", || {
            serde_json::from_str(&std::fs::read_to_string(&self.stats).ok()?).ok()
        })?;
        let each = stats["hypervisors"].as_array().context("hypervisors")?;
        Ok(each.clone())
    }

    /// Waits until nothing is under way any more, and both sides have the same
    /// machines: each on one hypervisor, with a disk and a seed, and nothing
    /// of any other. The machines.
    fn at_rest(&self) -> Result<Vec<Value>> {
        let mut last = String::new();
        let found = wait_within(REST, "both sides to agree", || {
            let vms = self.listed("*")?;
            let resting = vms.iter().all(|vm| vm["status"] == "running");
            match self.differences(&vms) {
                Ok(None) if resting => return Some(vms),
                Ok(None) => last = format!("{vms:#?}"),
                Ok(Some(why)) => last = why,
                Err(e) => last = format!("{e:#}"),
            }
            None
        });
        found.with_context(|| format!("{last}\n{}", self.logs()))
    }

    /// How what is listed differs from what there is; none where it does not.
    fn differences(&self, vms: &[Value]) -> Result<Option<String>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut wanted = BTreeSet::new();
        for vm in vms {
            let (place, id) = (text(&vm["hypervisor"]), text(&vm["id"]));
            let mac = text(&vm["nics"][0]["mac"]);
            let address = text(&vm["addresses"][0]);
            wanted.insert(format!(
                "{place} domain {} {id} {mac} {address} running",
                text(&vm["name"])
            ));
            wanted.insert(format!("{place} volume {id}"));
            wanted.insert(format!("{place} file {id}"));
        }
        let mut there = BTreeSet::new();
        for hypervisor in self.hypervisors()? {
            let place = text(&hypervisor["name"]);
            let all = |what: &str| hypervisor[what].as_array().cloned().unwrap_or_default();
            for machine in all("machines") {
                there.insert(format!(
                    "{place} domain {} {} {} {} {}",
                    text(&machine["name"]),
                    text(&machine["id"]),
                    text(&machine["macs"][0]),
                    text(&machine["addresses"][0]),
                    text(&machine["state"]),
                ));
            }
            for (what, kind) in [("volumes", "volume"), ("files", "file")] {
                for one in all(what) {
                    // muster-ID.qcow2, muster-ID-seed.img
                    let name = text(&one);
                    let id = name.get(7..43).unwrap_or(&name);
                    there.insert(format!("{place} {kind} {id}"));
                }
            }
        }
        let lan = self.well(&["network", "show", "lan", "--json"])?;
        let lan: Value = serde_json::from_str(&lan.out)?;
        let used = lan["used"].as_u64();
        if used != Some(vms.len() as u64) {
            return Ok(Some(format!("{} machines, addresses: {lan:#}", vms.len())));
        }
        if wanted == there {
            return Ok(None);
        }
        let missing: Vec<_> = wanted.difference(&there).collect();
        let more: Vec<_> = there.difference(&wanted).collect();
        Ok(Some(format!(
            "not there: {missing:#?}\nthere all the same: {more:#?}"
        )))
    }
}

/// No two machines have anything of each other.
fn apart(vms: &[Value]) -> Result<()> {
    let mut seen = BTreeMap::new();
    for vm in vms {
        for what in ["/name", "/id", "/addresses/0", "/nics/0/mac", "/nics/0/tap"] {
            let value = vm.pointer(what).and_then(Value::as_str);
            let value = value.with_context(|| format!("{what} of {vm:#}"))?;
            let other = seen.insert(format!("{what} {value}"), vm["name"].clone());
            ensure!(
                other.is_none(),
                "{what} {value} is of {other:?} and of {vm:#}"
            );
        }
    }
    Ok(())
}

/// All these names are asked for at once, while something happens.
fn meanwhile(
    many: &Many,
    names: &[String],
    act: impl FnOnce() -> Result<()>,
) -> Result<BTreeMap<String, Said>> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = names
            .iter()
            .map(|name| (name, scope.spawn(|| many.create(name))))
            .collect();
        let acted = act();
        let mut said = BTreeMap::new();
        for (name, asked) in asked {
            let answer = asked.join();
            let answer = answer.map_err(|_| anyhow::anyhow!("a command panicked"))?;
            said.insert(name.clone(), answer);
        }
        acted.with_context(|| many.logs())?;
        Ok(said)
    })
}

fn names(prefix: &str) -> Vec<String> {
    let each = 1..=MACHINES;
    each.map(|n| format!("{prefix}-{n:02}")).collect()
}

#[test]
fn machines_that_are_made_at_once_share_nothing() -> Result<()> {
    let many = Many::new()?;
    let names = names("web");
    let said = meanwhile(&many, &names, || Ok(()))?;
    let bad: Vec<_> = said.values().filter(|said| said.code != 0).collect();
    ensure!(bad.is_empty(), "{bad:#?}\n{}", many.logs());
    let vms = many.at_rest()?;
    ensure!(vms.len() == MACHINES, "{} machines", vms.len());
    apart(&vms)?;
    // They are spread: the hypervisors are alike.
    let mut each = BTreeMap::<&str, usize>::new();
    for vm in &vms {
        let place = vm["hypervisor"].as_str().context("a hypervisor")?;
        *each.entry(place).or_default() += 1;
    }
    let counts: BTreeSet<usize> = each.values().copied().collect();
    ensure!(
        each.len() == HYPERVISORS && counts == BTreeSet::from([MACHINES / HYPERVISORS]),
        "{each:#?}"
    );
    // A name that is taken is nobody else's.
    let again = many.create("web-01");
    ensure!(
        again.code != 0 && again.err.contains("web-01"),
        "{again:#?}"
    );
    ensure!(many.at_rest()?.len() == MACHINES);
    Ok(())
}

#[test]
fn a_broker_that_is_killed_among_many_leaves_each_up_once_or_nothing_of_it() -> Result<()> {
    let many = Many::new()?;
    let mut before = 0;
    for (round, begun) in [1, MACHINES / 3, 2 * MACHINES / 3].into_iter().enumerate() {
        let prefix = ["one", "two", "three"][round];
        let names = names(prefix);
        let pattern = format!("{prefix}-*");
        let said = meanwhile(&many, &names, || {
            wait_for("some machines to be begun", || {
                let vms = many.listed(&pattern)?;
                (vms.len() >= begun).then_some(())
            })?;
            signal(many.up.pid("broker")?, Signal::KILL)
        })?;
        let vms = many.at_rest()?;
        apart(&vms)?;
        let there: BTreeSet<&str> = vms.iter().filter_map(|vm| vm["name"].as_str()).collect();
        // Who was told that it is being made finds it.
        for (name, said) in &said {
            ensure!(
                said.code != 0 || there.contains(name.as_str()),
                "{name} is not there: {said:#?}\n{}\n{}",
                many.why(name),
                many.logs()
            );
        }
        // What is not there can be made: nothing of it is in the way.
        let missing: Vec<String> = names
            .into_iter()
            .filter(|name| !there.contains(name.as_str()))
            .collect();
        let said = meanwhile(&many, &missing, || Ok(()))?;
        let bad: Vec<_> = said.values().filter(|said| said.code != 0).collect();
        ensure!(bad.is_empty(), "{bad:#?}\n{}", many.logs());
        let vms = many.at_rest()?;
        apart(&vms)?;
        before += MACHINES;
        ensure!(vms.len() == before, "{} machines, not {before}", vms.len());
    }
    Ok(())
}
