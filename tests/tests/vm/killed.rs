//! Whoever is killed, hangs or has no room in the middle of it: there is the
//! machine that was asked for, or nothing, and it is said which.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use muster_tests::vm::capability;
use muster_tests::{Said, signal, wait_for};
use rustix::process::Signal;

use crate::cloud::Cloud;

/// Places of a broker that makes a machine, and of one that destroys it.
const MAKING: [&str; 3] = [
    "broker.vm.reserved",
    "broker.vm.addressed",
    "broker.vm.intended",
];
const DESTROYING: [&str; 2] = ["broker.vm.ordered", "broker.vm.cleared"];
/// What the agent asks libvirt when it makes a machine.
const ASKED: [&str; 4] = ["create volume", "define", "autostart", "start"];
/// And when it destroys it.
const ASKED_LAST: [&str; 3] = ["kill", "undefine", "delete volume"];

const CUSTOMERS: [&str; 3] = ["--no-agent", "--ready", "boot"];

/// Does something while a command runs, and waits for the command's end.
pub(crate) fn meanwhile(
    cloud: &Cloud,
    args: &[&str],
    act: impl FnOnce() -> Result<()>,
) -> Result<Said> {
    std::thread::scope(|scope| {
        let command = scope.spawn(|| cloud.up.muster(args));
        let acted = act();
        let said = command
            .join()
            .map_err(|_| anyhow::anyhow!("the command panicked"))?;
        acted.with_context(|| format!("{said:#?}\n{}", cloud.logs()))?;
        Ok(said)
    })
}

const NEW: [&str; 13] = [
    "vm",
    "create",
    "web-03",
    "--image",
    "guest",
    "--cpus",
    "1",
    "--memory",
    "64MiB",
    "--network",
    "lan",
    "--disk",
    "16MiB",
];

fn new() -> Vec<&'static str> {
    [&NEW[..], &CUSTOMERS].concat()
}

/// Waits until the machine is there or is not, and says which. Both sides
/// agree then: libvirt and the records, the addresses and the files.
pub(crate) fn settled(cloud: &Cloud, empty: &(BTreeSet<String>, BTreeSet<String>)) -> Result<bool> {
    let found = wait_for("both sides to agree", || {
        let vms = cloud.up.muster(&["vm", "list", "--json"]);
        let vms = (vms.code == 0).then(|| vms.list())?;
        let domains = cloud.hypervisor.virsh_done(&["list", "--name"]).ok()?;
        let domains: Vec<&str> = domains.split_whitespace().collect();
        match vms.as_slice() {
            [] => {
                (cloud.there().ok()? == empty.0 && cloud.held().ok()? == empty.1).then_some(false)
            }
            [one] if one["status"] == "running" => (domains == ["web-03"]).then_some(true),
            _ => None,
        }
    });
    found.with_context(|| {
        let vms = cloud.up.muster(&["vm", "list", "--json"]);
        let there = cloud.there();
        format!("{vms:#?}\n{there:#?}\n{}", cloud.logs())
    })
}

/// Has no machine again.
pub(crate) fn cleared(cloud: &Cloud, empty: &(BTreeSet<String>, BTreeSet<String>)) -> Result<()> {
    if settled(cloud, empty)? {
        cloud.well(&["vm", "destroy", "web-03", "--purge", "--yes"])?;
        ensure!(!settled(cloud, empty)?, "it is still there");
    }
    cloud.heard()
}

#[test]
fn a_broker_that_is_killed_in_the_middle_makes_one_machine_or_none() -> Result<()> {
    if !capability("libvirt") {
        return Ok(());
    }
    let (cloud, hold) = Cloud::held_at_will()?;
    cloud.furnish_empty()?;
    let empty = (cloud.there()?, cloud.held()?);
    let kill = |place: &str| -> Result<()> {
        let came = hold.came(place)?;
        signal(came.pid, Signal::KILL)?;
        hold.release(place);
        Ok(())
    };
    for place in MAKING {
        hold.hold(place);
        let said = meanwhile(&cloud, &new(), || kill(place))?;
        let there = settled(&cloud, &empty)?;
        // Who was told that it is up finds it.
        ensure!(said.code != 0 || there, "{place}: {said:#?}");
        cleared(&cloud, &empty).with_context(|| place.to_owned())?;
    }
    for place in DESTROYING {
        cloud.well(&new())?;
        ensure!(settled(&cloud, &empty)?, "it is not there");
        hold.hold(place);
        let destroy = ["vm", "destroy", "web-03", "--purge", "--yes"];
        meanwhile(&cloud, &destroy, || kill(place))?;
        cleared(&cloud, &empty).with_context(|| place.to_owned())?;
    }
    cloud.end()
}

#[test]
fn an_agent_that_is_killed_at_any_call_of_libvirt_makes_one_machine_or_none() -> Result<()> {
    if !capability("libvirt") {
        return Ok(());
    }
    let (cloud, hold) = Cloud::held_at_will()?;
    cloud.furnish_empty()?;
    let empty = (cloud.there()?, cloud.held()?);
    let destroy = ["vm", "destroy", "web-03", "--purge", "--yes"];
    for (asked, making) in ASKED
        .map(|asked| (asked, true))
        .into_iter()
        .chain(ASKED_LAST.map(|asked| (asked, false)))
    {
        for when in ["before", "after"] {
            if !making {
                cloud.well(&new())?;
                ensure!(settled(&cloud, &empty)?, "it is not there");
            }
            let place = format!("agent.virt.{when} {asked}");
            hold.hold(&place);
            let args = if making { new() } else { destroy.to_vec() };
            let said = meanwhile(&cloud, &args, || {
                hold.came(&place)?;
                cloud.kill_agent()?;
                hold.release(&place);
                cloud.run_agent()
            })?;
            let there = settled(&cloud, &empty).with_context(|| format!("{place}: {said:#?}"))?;
            ensure!(!making || said.code != 0 || there, "{place}: {said:#?}");
            cleared(&cloud, &empty).with_context(|| place)?;
        }
    }
    cloud.end()
}

#[test]
fn a_libvirt_that_hangs_and_a_full_pool_leave_nothing() -> Result<()> {
    if !capability("libvirt") {
        return Ok(());
    }
    let (cloud, hold) = Cloud::held_at_will()?;
    cloud.furnish_empty()?;
    let empty = (cloud.there()?, cloud.held()?);

    // It hangs in `define`, longer than anybody waits, and goes on then.
    let place = "agent.virt.before define";
    hold.hold(place);
    let libvirtd = cloud.hypervisor.pid_of("libvirtd").context("libvirtd")?;
    let said = meanwhile(&cloud, &new(), || {
        hold.came(place)?;
        signal(libvirtd, Signal::STOP)?;
        hold.release(place);
        let ended = wait_for("the agent to give up on libvirt", || {
            cloud.logs().contains("does not answer").then_some(())
        });
        signal(libvirtd, Signal::CONT)?;
        ended
    })?;
    let there = settled(&cloud, &empty).with_context(|| format!("{said:#?}"))?;
    ensure!(said.code != 0 || there, "{said:#?}");
    cleared(&cloud, &empty)?;

    // The pool has no room for it.
    let images = "/var/lib/libvirt/images";
    let mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", images];
    let said = cloud.hypervisor.run(&mount);
    ensure!(said.code == 0, "{said:#?}");
    let said = cloud.up.muster(&new());
    ensure!(said.code != 0, "{said:#?}");
    let said = cloud.hypervisor.run(&["umount", images]);
    ensure!(said.code == 0, "{said:#?}");
    ensure!(!settled(&cloud, &empty)?, "it is there");
    cloud.end()
}
