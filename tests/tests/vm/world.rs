//! The hypervisors of the tests themselves: apart from the machine and from
//! each other, and gone when they end, however they end.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use muster_tests::vm::hypervisor::{links, mounts_below};
use muster_tests::vm::{Hypervisor, World, capability};
use muster_tests::{processes, signal, wait_for};
use rustix::process::Signal;

/// A test that is one only when another starts it, to be killed.
const VICTIM: &str = "world::lives_until_it_is_killed";

#[test]
fn hypervisors_are_machines_of_their_own() -> Result<()> {
    if !capability("libvirt") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let outside = links()?;
    let world = World::enter()?;
    let one = Hypervisor::start(&world, dir.path(), 2)?;
    let two = Hypervisor::start(&world, dir.path(), 3)?;

    // Each has its libvirt, which knows nothing of the other's.
    let empty = one.inventory()?;
    one.virsh_done(&["vol-create-as", "default", "disk.qcow2", "1M"])?;
    let volumes = |of: &Hypervisor| of.virsh_done(&["vol-list", "default"]);
    assert!(volumes(&one)?.contains("disk.qcow2"));
    assert!(!volumes(&two)?.contains("disk.qcow2"));
    assert!(one.pool().join("disk.qcow2").exists());
    assert_ne!(one.inventory()?, empty);
    one.virsh_done(&["vol-delete", "disk.qcow2", "default"])?;
    assert_eq!(one.inventory()?, empty);

    // What may hang is not there, and libvirt has software emulation.
    assert_ne!(one.run(&["test", "-e", "/dev/kvm"]).code, 0);
    let capable = one.virsh_done(&["capabilities"])?;
    assert!(capable.contains("<domain type='qemu'"), "{capable}");
    assert!(!capable.contains("<domain type='kvm'"), "{capable}");

    // They are on one network with the test, until a cable is cut.
    let ping = |from: &Hypervisor, to: String| {
        let said = from.run(&["ping", "-c", "1", "-W", "2", &to]);
        said.code == 0
    };
    assert!(ping(&one, two.address().to_string()));
    assert!(ping(&two, world.address().to_string()));
    world.cut(two.name(), true)?;
    assert!(!ping(&two, world.address().to_string()));
    world.cut(two.name(), false)?;
    wait_for("the mended cable", || {
        ping(&two, world.address().to_string()).then_some(())
    })?;

    // A libvirtd that is killed can be started anew.
    one.stop_libvirt(Signal::KILL)?;
    assert_ne!(one.virsh(&["list"]).code, 0);
    one.start_libvirt()?;
    assert_eq!(one.inventory()?, empty);

    for hypervisor in [one, two] {
        let left = hypervisor.end()?;
        assert_eq!(left.processes(), []);
    }
    assert_eq!(world.end()?.processes(), []);
    assert_eq!(mounts_below(dir.path()), [""; 0]);
    // The thread is back, and what it made was never there.
    let after = links()?;
    for link in ["hv2", "hv3", "lan"] {
        assert_eq!(outside.contains(link), after.contains(link));
    }
    Ok(())
}

#[test]
fn what_is_killed_leaves_nothing() -> Result<()> {
    if !capability("libvirt") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut victim = Command::new(std::env::current_exe()?)
        .args([VICTIM, "--exact", "--ignored", "--nocapture"])
        .env("MUSTER_VICTIM", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let out = BufReader::new(victim.stdout.take().context("it is piped")?);
    let started = out
        .lines()
        .map_while(Result::ok)
        .find(|line| line.contains("it runs"));
    // By what it is called with: the directory is in libvirt's own files only.
    let daemons = std::fs::read_to_string(dir.path().join("pids"));
    signal(victim.id(), Signal::KILL)?;
    victim.wait()?;
    started.context("it did not start")?;
    let pids: Vec<u32> = daemons?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    assert_eq!(pids.len(), 4, "{pids:?}");
    wait_for("the end of what a killed test had started", || {
        let alive = processes();
        (!alive.iter().any(|(pid, _)| pids.contains(pid))).then_some(())
    })?;
    assert_eq!(mounts_below(dir.path()), [""; 0]);
    Ok(())
}

#[test]
#[ignore = "it is started by another test, and killed"]
fn lives_until_it_is_killed() -> Result<()> {
    let Some(dir) = std::env::var_os("MUSTER_VICTIM") else {
        return Ok(());
    };
    let dir = std::path::PathBuf::from(dir);
    let world = World::enter()?;
    let hypervisor = Hypervisor::start(&world, &dir, 2)?;
    let cat = hypervisor.spawn("/bin/sleep".as_ref(), &["infinity"], &[])?;
    let libvirtd = hypervisor.pid_of("libvirtd").context("libvirtd")?;
    let virtlogd = hypervisor.pid_of("virtlogd").context("virtlogd")?;
    let pids = [libvirtd, virtlogd, cat.pid(), hypervisor.first()];
    std::fs::write(dir.join("pids"), pids.map(|pid| pid.to_string()).join(" "))?;
    muster_tests::vm::capability::say("it runs");
    // Until it is killed, or whoever started it ends.
    std::io::stdin().lines().for_each(drop);
    Ok(())
}
