//! From a command to a node that takes orders, and back to nothing: on a real
//! libvirt, with a real guest.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use muster_tests::vm::capability;
use muster_tests::vm::guest::wait_for_guest;
use muster_tests::wait_for;

use crate::cloud::Cloud;

#[test]
fn a_machine_is_made_takes_orders_and_goes_without_a_trace() -> Result<()> {
    if !capability("guest") {
        return Ok(());
    }
    let cloud = Cloud::new()?;
    cloud.furnish()?;
    let follows = cloud.hypervisor.follow_connections()?;
    let (there, held) = (cloud.there()?, cloud.held()?);
    let its = |all: &BTreeSet<String>| {
        let connections = all.iter().filter(|line| line.starts_with("connection "));
        connections
            .filter(|line| line.contains("=10.77.1.10"))
            .count()
    };
    assert_eq!(its(&there), 0, "{there:#?}");

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

    // The kernel follows its connections, for days if they do not end.
    let with = cloud.there()?;
    if follows {
        assert_ne!(its(&with), 0, "{with:#?}");
    } else {
        println!("SKIPPED: connections of guests are not followed here");
    }
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
    // The firmware finds no system.
    cloud.furnish_empty()?;
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
