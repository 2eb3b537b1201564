//! Machines from the ops channel: a real IRC network with services, the bot,
//! the broker, a real libvirt and a real guest.

use anyhow::{Context as _, Result, ensure};
use muster_tests::irc::{Bot, IrcNetwork, Person, private};
use muster_tests::vm::capability;
use muster_tests::vm::guest::GUEST_PATIENCE;
use muster_tests::{wait_for, wait_within};

use crate::cloud::Cloud;

const PRINCIPALS: &str = r#"
[groups.operators]

[principals.ana]
kind = "person"
role = "operator"
groups = ["operators"]
irc = ["ops:ana"]
"#;

/// Whoever looks only hears of machines, too.
const HOOKS: &str = r##"
[routes.machines]
kinds = ["vm.*", "alarm.*"]
channels = ["ops/#ops", "ops/#dev"]

[triggers.keep-running]
when = { kind = "vm.drift", labels.keep = "yes" }
machine = "start"
role = "operator"
"##;

/// Waits as long as a guest may take.
fn hears(person: &mut Person, parts: &[&str]) -> Result<String> {
    let mut last = None;
    let heard = wait_within(GUEST_PATIENCE, &format!("{parts:?}"), || {
        person.hears(parts).map_err(|error| last = Some(error)).ok()
    });
    heard.with_context(|| format!("{last:?}"))
}

#[test]
fn a_line_in_the_channel_boots_a_machine_that_takes_orders() -> Result<()> {
    if !capability("guest") {
        return Ok(());
    }
    let (cloud, ()) = Cloud::with(&[], |up| private(&up.dir.path().join("hooks.toml"), HOOKS))?;
    cloud.furnish()?;
    let dir = tempfile::tempdir()?;
    let Some(network) = IrcNetwork::inspircd(dir.path(), "a machine from the channel")? else {
        return cloud.end();
    };
    for name in ["muster", "ana"] {
        network.account(name, &format!("{name}-pass"))?;
    }
    let bot = Bot::start(
        dir.path(),
        &network,
        &cloud.up,
        PRINCIPALS,
        "max_lines = 12",
    )?;
    let log = || bot.log();
    let mut ana = network.person_as("ana", "ana", "ana-pass")?;
    ana.join("#ops")?;
    let mut dev = network.person("watcher")?;
    dev.join("#dev")?;
    wait_for("the bot is there", || {
        ana.say("#ops", "!who").ok()?;
        ana.hears(&["you are ana"]).ok()
    })
    .with_context(log)?;
    let (there, held) = (cloud.there()?, cloud.held()?);

    // What is no machine is refused, and nobody who is not known makes one.
    let create = "!vm create web-03 --image guest --cpus 1 --memory 256MiB --network lan --role web \
                  --label keep=yes";
    ana.say(
        "#ops",
        "!vm create ../x --image guest --cpus 1 --memory 256MiB",
    )?;
    ana.hears(&["#ops", "ana: ", "../x"])?;
    ana.say("#ops", &format!("{create} --user-data seed.yaml"))?;
    ana.hears(&["#ops", "has no place in a chat", "muster vm create"])?;
    dev.say("#dev", create)?;
    dev.hears(&["#dev", "irc-nobody (member) may not"])?;
    ana.say("#ops", &format!("{create} --dry-run"))?;
    ana.hears(&["#ops", "web-03 would be made on hv2"])?;
    assert_eq!(cloud.held()?, held);

    ana.say("#ops", create)?;
    ana.hears(&["#ops", "ana: ", "web-03 is being made at 10.77.1.10 on hv2"])?;
    let up = hears(
        &mut ana,
        &["#ops", "ana: ", "web-03 is up at 10.77.1.10 on hv2 ("],
    )
    .with_context(|| format!("{}\n{}", log(), cloud.logs()))?;
    ensure!(up.contains(" s)"), "{up}");
    // Whoever asked was told there; others by their route.
    dev.hears(&["PRIVMSG #dev", "machine web-03 is up at 10.77.1.10"])?;

    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot_id = |line: &str| {
        let id = line.split_whitespace().rev().find(|word| word.len() == 36);
        id.map(str::to_owned).context("a boot id")
    };
    ana.say(
        "#ops",
        "!cmd role=web --yes -- cat /proc/sys/kernel/random/boot_id",
    )?;
    ana.hears(&["#ops", "1 succeeded"])?;
    let id = boot_id(&ana.hears(&["#ops", "web-03  "])?)?;
    assert_ne!(id, host.trim());
    // The same machine, by the guest agent, which needs no muster in it.
    ana.say(
        "#ops",
        "!vm exec web-03 -- /bin/cat /proc/sys/kernel/random/boot_id",
    )?;
    let line = hears(&mut ana, &["#ops", "web-03  "]).with_context(|| cloud.logs())?;
    assert_eq!(boot_id(&line)?, id);
    ana.say("#ops", "!vm console web-03 --lines 3")?;
    hears(&mut ana, &["#ops", "the end of the console of web-03:"])?;

    ana.say("#ops", "!vm list role=web")?;
    ana.hears(&["#ops", "1 machine, running 1: web-03"])?;
    ana.say("#ops", "!vm where web-03")?;
    ana.hears(&["#ops", "web-03 is on hv2"])?;
    ana.say("#ops", "!hypervisor list")?;
    ana.hears(&["#ops", "hv2: up, 1 machine"])?;

    // Somebody stops it by hand: it is started again, as a trigger says. Once
    // more: they are not fought, and everybody is told.
    cloud.hypervisor.virsh_done(&["destroy", "web-03"])?;
    dev.hears(&["#dev", "machine web-03", "should run"])?;
    hears(
        &mut dev,
        &[
            "#dev",
            "machine web-03 runs (asked by trigger:keep-running)",
        ],
    )
    .with_context(|| cloud.logs())?;
    cloud.becomes("web-03", "running")?;
    cloud.hypervisor.virsh_done(&["destroy", "web-03"])?;
    hears(
        &mut dev,
        &["#dev", "web-03 was started again", "somebody wants that"],
    )
    .with_context(|| cloud.logs())?;
    let vm = cloud.vm("web-03")?;
    assert_eq!(vm["should_run"], true, "{vm:#?}");
    assert_ne!(vm["status"], "running", "{vm:#?}");
    ana.say("#ops", "!vm start web-03")?;
    hears(&mut ana, &["#ops", "ana: ", "web-03 runs"])?;

    ana.say("#ops", "!vm stop web-03 --grace 1s")?;
    hears(&mut ana, &["#ops", "ana: ", "web-03 is stopped"])?;
    ana.say("#ops", "!vm show web-03")?;
    ana.hears(&["#ops", "web-03 is stopped on hv2"])?;

    // Somebody who may not is not even asked; she is, and says yes.
    dev.say("#dev", "!vm destroy web-03 --purge")?;
    dev.hears(&["#dev", "irc-nobody (member) may not"])?;
    ana.say("#ops", "!vm destroy web-03 --purge")?;
    ana.hears(&[
        "#ops",
        "web-03 (of nobody's account; stopped; 10.77.1.10",
        "!yes",
    ])?;
    assert_ne!(cloud.held()?, held);
    ana.say("#ops", "!yes")?;
    hears(&mut ana, &["#ops", "ana: ", "web-03 is gone"])?;
    assert_eq!(cloud.there()?, there);
    assert_eq!(cloud.held()?, held);
    drop(bot);
    drop(network);
    cloud.end()
}
