//! Security groups between real guests: who reaches whom, who can take whose
//! address, and what becomes of a connection when its rule goes.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_tests::vm::capability;
use muster_tests::vm::guest::GUEST_PATIENCE;
use muster_tests::{Said, wait_for, wait_within};

use crate::cloud::Cloud;

const WEB: &str = "10.77.1.10";
const LB: &str = "10.77.1.11";

/// Runs a line of shell in a guest, by its agent.
fn shell(cloud: &Cloud, node: &str, line: &str) -> Said {
    let on = format!("name={node}");
    cloud
        .up
        .muster(&["run", &on, "--yes", "--json", "--", "sh", "-c", line])
}

/// The same for what must do well; what it printed.
fn done(cloud: &Cloud, node: &str, line: &str) -> Result<String> {
    let said = shell(cloud, node, line);
    ensure!(
        said.code == 0,
        "{node}: {line}: {said:#?}\n{}",
        cloud.logs()
    );
    Ok(said.output("stdout").remove(node).unwrap_or_default())
}

/// Whether a guest is answered by another one's port.
fn reaches(cloud: &Cloud, from: &str, to: &str, port: u16) -> bool {
    let line = format!("nc -w 3 {to} {port} </dev/null");
    shell(cloud, from, &line).code == 0
}

/// How many lines have come through the connection.
fn carried(cloud: &Cloud) -> Result<u32> {
    Ok(done(cloud, "web-1", "wc -l </tmp/got")?.trim().parse()?)
}

/// Whether it goes on: more lines come.
fn goes_on(cloud: &Cloud) -> Result<()> {
    let before = carried(cloud)?;
    wait_for("more through the connection", || {
        (carried(cloud).ok()? > before).then_some(())
    })
}

/// Whether it has ended: none come any more, over some of their intervals.
fn stands_still(cloud: &Cloud) -> Result<()> {
    let mut last = carried(cloud)?;
    wait_for("an end of what comes through the connection", || {
        std::thread::sleep(Duration::from_secs(1));
        let now = carried(cloud).ok()?;
        let same = now == last;
        last = now;
        same.then_some(())
    })
}

#[test]
fn guests_talk_as_their_groups_allow_and_cannot_take_each_others_addresses() -> Result<()> {
    if !capability("guest") || !capability("nft") {
        return Ok(());
    }
    let cloud = Cloud::with_groups()?;
    cloud.furnish()?;
    for group in ["web", "lb"] {
        cloud.well(&["group", "create", group])?;
    }
    let allow = ["group", "allow", "web", "ingress", "tcp"];
    cloud.well(&[&allow[..], &["80,8080", "--from", "group:lb"]].concat())?;
    for (name, group, address) in [("web-1", "web", WEB), ("lb-1", "lb", LB)] {
        let made = cloud.create(name, &["--group", group]);
        assert_eq!(made.code, 0, "{made:#?}\n{}", cloud.logs());
        made.shows(&[&format!("{name} is up at {address}")]);
    }
    done(
        &cloud,
        "web-1",
        "for p in 80 81; do nc -lk -p $p -e true & done",
    )?;

    // What is allowed, the next port, and somebody who is in no group.
    ensure!(reaches(&cloud, "lb-1", WEB, 80), "{}", cloud.logs());
    ensure!(!reaches(&cloud, "lb-1", WEB, 81));
    ensure!(!reaches(&cloud, "lb-1", WEB, 22));
    let outside: SocketAddr = format!("{WEB}:80").parse()?;
    let wait = Duration::from_secs(3);
    ensure!(TcpStream::connect_timeout(&outside, wait).is_err());
    // Egress is free where no group says anything of it: its agent is heard.
    ensure!(shell(&cloud, "web-1", "ping -c 1 -W 3 10.77.0.1").code == 0);
    ensure!(shell(&cloud, "lb-1", &format!("ping -c 1 -W 3 {WEB}")).code != 0);

    // An address of somebody else, and one that nobody has.
    for address in ["10.77.1.50", "10.77.0.77"] {
        let steal =
            format!("ip addr add {address}/32 dev eth0 && ping -c 1 -W 3 -I {address} 10.77.0.1");
        let said = shell(&cloud, "lb-1", &steal);
        ensure!(said.code != 0, "{said:#?}");
    }
    let ping = cloud
        .hypervisor
        .run(&["ping", "-c", "1", "-W", "3", "10.77.1.50"]);
    ensure!(ping.code != 0, "{ping:#?}");

    // A connection ends with its rule, and goes on with it.
    let hear = "setsid sh -c 'sleep 100000 | nc -l -p 8080 >/tmp/got' >/dev/null 2>&1 & true";
    done(&cloud, "web-1", hear)?;
    let talk = format!(
        "setsid sh -c '(while sleep 0.2; do echo x; done) | nc {WEB} 8080' >/dev/null 2>&1 & true"
    );
    done(&cloud, "lb-1", &talk)?;
    goes_on(&cloud).with_context(|| {
        let seen = ["web-1", "lb-1"].map(|node| shell(&cloud, node, "ps; netstat -tn").out);
        let rules = cloud.hypervisor.run(&["nft", "list", "ruleset"]);
        format!("{seen:#?}\n{}\n{}", rules.out, cloud.logs())
    })?;
    cloud.well(&["vm", "group", "lb-1", "remove", "lb"])?;
    stands_still(&cloud)?;
    ensure!(!reaches(&cloud, "lb-1", WEB, 80));
    cloud.well(&["vm", "group", "lb-1", "add", "lb"])?;
    wait_within(GUEST_PATIENCE, "the connection to go on", || {
        goes_on(&cloud).ok()
    })?;
    ensure!(reaches(&cloud, "lb-1", WEB, 80));

    // Which rule decides is said without a packet.
    let explain = [
        "firewall", "explain", "--from", LB, "--proto", "tcp", "--to",
    ];
    cloud
        .well(&[&explain[..], &["10.77.1.10:80"]].concat())?
        .shows(&["web", "rule 1"]);
    let said = cloud
        .up
        .muster(&[&explain[..], &["10.77.1.10:81"]].concat());
    assert_eq!(said.code, 1, "{said:#?}");
    said.shows(&["does not pass", "no rule"]);

    // Without an agent and without a broker it is all the same.
    cloud.kill_agent()?;
    let outside = TcpStream::connect_timeout(&outside, wait);
    ensure!(outside.is_err(), "it answers");
    cloud.run_agent()?;
    ensure!(reaches(&cloud, "lb-1", WEB, 80), "{}", cloud.logs());

    // Somebody empties the tables: they are back, and it is said.
    let flush = cloud.hypervisor.run(&["nft", "flush", "ruleset"]);
    ensure!(flush.code == 0, "{flush:#?}");
    wait_for("the tables", || {
        let said = cloud.hypervisor.run(&["nft", "list", "tables"]);
        said.out.contains("muster").then_some(())
    })?;
    wait_for("the event", || {
        let said = cloud.up.muster(&["events", "--limit", "50", "--json"]);
        said.out.contains("firewall-repaired").then_some(())
    })?;
    ensure!(reaches(&cloud, "lb-1", WEB, 80), "{}", cloud.logs());
    ensure!(!reaches(&cloud, "lb-1", WEB, 81));

    for name in ["web-1", "lb-1"] {
        cloud.well(&["vm", "destroy", name, "--purge", "--yes"])?;
    }
    let gone = wait_for("no interface to be left in the rules", || {
        let said = cloud.hypervisor.run(&["nft", "list", "ruleset"]);
        (!said.out.contains("10.77.1.1")).then_some(())
    });
    gone.context("its rules")?;
    cloud.end()
}
