//! The guest of the tests: it boots from its own disk, takes its seed, can be
//! reached, and ends when it is asked to.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use muster_tests::Up;
use muster_tests::vm::agent::invite;
use muster_tests::vm::guest::{Guest, Plan, wait_for_guest, who_is};
use muster_tests::vm::{Hypervisor, Image, World, capability};
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn a_guest_boots_takes_its_seed_and_leaves_nothing() -> Result<()> {
    if !capability("guest") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let image = Image::made()?;
    let world = World::enter()?;
    let hypervisor = Hypervisor::start(&world, dir.path(), 2)?;
    let before = hypervisor.inventory()?;

    let address: IpAddr = "10.77.1.25".parse()?;
    let plan = Plan {
        name: "web-25".into(),
        mac: "52:54:00:77:01:19".into(),
        addresses: vec![format!("{address}/16"), "fd77::1:25/64".into()],
        files: vec![("user-data".into(), "#cloud-config\n{}\n".into())],
    };
    let guest = Guest::start(&hypervisor, &image, plan)?;
    guest.says("web-25 is up")?;
    guest.says("user-data")?;

    // From the hypervisor, and over its cable from here.
    for to in ["10.77.1.25", "fd77::1:25"] {
        let said = hypervisor.run(&["ping", "-c", "1", "-W", "5", to]);
        assert_eq!(said.code, 0, "{to}: {said:?}\n{}", guest.console());
    }
    let (name, first) = who_is(address).context("over TCP")?;
    assert_eq!(name, "web-25");
    assert_eq!(who_is("fd77::1:25".parse()?)?.1, first);
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    assert_ne!(first, host.trim());

    // The QEMU guest agent is in it.
    let ping = r#"{"execute":"guest-ping"}"#;
    let agent = ["qemu-agent-command", guest.name(), ping];
    wait_for_guest("the QEMU guest agent", || {
        (hypervisor.virsh(&agent).code == 0).then_some(())
    })?;

    let cat = r#"{"execute":"guest-exec","arguments":{"path":"/bin/cat","capture-output":true,
        "arg":["/proc/sys/kernel/random/boot_id"]}}"#;
    let said = hypervisor.virsh_done(&["qemu-agent-command", guest.name(), cat])?;
    let said: Value = serde_json::from_str(&said)?;
    let status = serde_json::json!({
        "execute": "guest-exec-status",
        "arguments": {"pid": said["return"]["pid"]},
    })
    .to_string();
    let out = wait_for_guest("the end of a program in the guest", || {
        let said = hypervisor.virsh(&["qemu-agent-command", guest.name(), &status]);
        let said: Value = serde_json::from_str(&said.out).ok()?;
        let out = said["return"]["out-data"].as_str()?;
        data_encoding::BASE64.decode(out.as_bytes()).ok()
    })?;
    assert_eq!(String::from_utf8(out)?.trim(), first);

    // It outlives the libvirtd that started it.
    let qemu = hypervisor.qemu_of("web-25").context("a QEMU")?;
    hypervisor.stop_libvirt(Signal::KILL)?;
    hypervisor.start_libvirt()?;
    assert_eq!(guest.state()?, "running");
    assert_eq!(hypervisor.qemu_of("web-25"), Some(qemu));

    // It ends when its power button is pressed, and comes back as another
    // start of the same.
    hypervisor.virsh_done(&["shutdown", "--mode", "acpi", guest.name()])?;
    guest.becomes("shut off")?;
    hypervisor.virsh_done(&["start", guest.name()])?;
    let again = wait_for_guest("the second start", || who_is(address).ok())?;
    assert_eq!(again.0, "web-25");
    assert_ne!(again.1, first);

    guest.remove()?;
    assert_eq!(hypervisor.inventory()?, before);
    assert_eq!(hypervisor.end()?.processes(), []);
    assert_eq!(world.end()?.processes(), []);
    Ok(())
}

#[test]
fn a_guest_enrols_itself_takes_orders_and_remembers_who_it_is() -> Result<()> {
    if !capability("guest") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let image = Image::made()?;
    let world = World::enter()?;
    let mut up = Up::not_yet(&[])?;
    up.listen_on(world.address())?;
    up.launch()?;
    let hypervisor = Hypervisor::start(&world, dir.path(), 2)?;

    // Its agent is a node; so will be what runs on it.
    hypervisor.enrol(&up, &["zone=gva2"])?;
    let agent = hypervisor.run_agent("", &[])?;
    let token = invite(&up, "web-03", &["--role", "web"])?;
    let address: IpAddr = "10.77.1.3".parse()?;
    let enrol = format!("MUSTER_BROKERS='{}'\nMUSTER_TOKEN='{token}'\n", up.url());
    let plan = Plan {
        name: "web-03".into(),
        mac: "52:54:00:77:01:03".into(),
        addresses: vec![format!("{address}/16")],
        files: vec![("muster.env".into(), enrol)],
    };
    let guest = Guest::start(&hypervisor, &image, plan)?;
    let there = |name: &str| {
        let nodes = up.muster(&["nodes", "--json"]).list();
        let node = nodes.into_iter().find(|node| node["name"] == name)?;
        (node["state"] == "up").then(|| node["roles"].to_string())
    };
    let roles = wait_for_guest("hv2 to be up", || there("hv2")).with_context(|| agent.log())?;
    assert_eq!(roles, r#"["hypervisor"]"#);
    let roles = wait_for_guest("web-03 to be up", || there("web-03"));
    assert_eq!(roles.with_context(|| guest.console())?, r#"["web"]"#);

    let boot_id = || {
        let cat = ["cat", "/proc/sys/kernel/random/boot_id"];
        let said = up.muster(&[&["run", "role=web", "--json", "--"][..], &cat].concat());
        // While it is down, it is unreachable, or nobody knows.
        let out = (said.code == 0).then(|| said.output("stdout"))?;
        out.get("web-03").map(|id| id.trim().to_owned())
    };
    let first = boot_id().context("an outcome of web-03")?;
    assert_eq!(who_is(address)?.1, first);

    // Another start of the guest is the same node.
    hypervisor.virsh_done(&["reboot", "--mode", "acpi", guest.name()])?;
    let second = wait_for_guest("web-03 to take orders again", || {
        boot_id().filter(|id| *id != first)
    })
    .with_context(|| guest.console())?;
    assert_eq!(who_is(address)?.1, second);
    assert_eq!(guest.console().matches("enrolled as web-03").count(), 1);

    guest.remove()?;
    assert_eq!(agent.stop(Signal::TERM)?, 0);
    up.stop(Signal::TERM)?;
    assert_eq!(hypervisor.end()?.processes(), []);
    Ok(())
}
