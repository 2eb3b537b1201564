//! A cluster that was set back to a backup: machines have moved on since.

use anyhow::{Context as _, Result, ensure};
use muster_tests::vm::capability;
use muster_tests::{finish, wait_for};
use rustix::process::Signal;

use crate::cloud::Cloud;

const CUSTOMERS: [&str; 3] = ["--no-agent", "--ready", "boot"];

#[test]
fn machines_that_a_restored_broker_does_not_know_stay_and_are_said() -> Result<()> {
    if !capability("libvirt") {
        return Ok(());
    }
    let mut cloud = Cloud::new()?;
    cloud.furnish_empty()?;
    let make = |cloud: &Cloud, name: &str| -> Result<()> {
        let said = cloud.create(name, &CUSTOMERS);
        ensure!(said.code == 0, "{said:#?}\n{}", cloud.logs());
        Ok(())
    };
    make(&cloud, "web-01")?;
    make(&cloud, "web-02")?;
    let file = cloud.up.dir.path().join("cluster.backup");
    cloud.well(&["backup", &file.to_string_lossy()])?;

    // One goes, and one comes.
    cloud.well(&["vm", "destroy", "web-01", "--purge", "--yes"])?;
    make(&cloud, "web-03")?;
    let before = cloud.there()?;

    cloud.up.stop(Signal::TERM)?;
    std::fs::rename(cloud.up.state(), cloud.up.dir.path().join("lost"))?;
    let mut restore = cloud.up.bare("muster");
    restore
        .arg("restore")
        .arg(&file)
        .arg("--state")
        .arg(cloud.up.state());
    let said = finish(restore);
    ensure!(said.code == 0, "{said:#?}");
    cloud.up.launch()?;
    cloud.heard()?;

    // Who is not there any more is missing; who is not known is unknown.
    cloud.becomes("web-02", "running")?;
    let vm = cloud.becomes("web-01", "missing")?;
    assert_eq!(vm["drift"][0]["what"], "missing", "{vm:#?}");
    let unknown = wait_for("the machine that is not known", || {
        let said = cloud.up.muster(&["hypervisor", "list", "--json"]);
        let all = (said.code == 0).then(|| said.list())?;
        let names = all.first()?["unknown"].as_array()?.clone();
        (!names.is_empty()).then_some(names)
    });
    let unknown = unknown.with_context(|| cloud.logs())?;
    assert_eq!(unknown, ["web-03"]);
    let events = cloud.well(&["events", "--json", "--limit", "500"])?;
    assert!(events.out.contains("vm.drift"), "{events:#?}");
    // Nothing was done about either.
    assert_eq!(cloud.there()?, before);
    assert_eq!(
        cloud.hypervisor.virsh_done(&["domstate", "web-03"])?.trim(),
        "running"
    );

    // Its name stays its own on that hypervisor.
    let said = cloud.create("web-03", &CUSTOMERS);
    assert_ne!(said.code, 0, "{said:#?}");
    assert_eq!(
        cloud.hypervisor.virsh_done(&["domstate", "web-03"])?.trim(),
        "running"
    );
    cloud.end()
}
