//! Machines that nobody here has an agent in: when they count as up, what
//! their disks hold after a way back, and what one that lies can bring about.

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64;
use muster_protocol::units::Timestamp;
use muster_tests::vm::capability;
use muster_tests::vm::guest::{wait_for_guest, who_is};
use muster_tests::{Said, wait_for};
use serde_json::Value;

use crate::cloud::Cloud;

/// A guest agent that says what it likes, by what it is to run.
const LIAR: &str = r#"
for name in /sys/class/virtio-ports/*/name; do
    [ "$(cat "$name")" = org.qemu.guest_agent.0 ] || continue
    name=${name%/name}
    port=/dev/${name##*/}
done
killall qemu-ga
while killall -0 qemu-ga; do sleep 0.1; done
exec 3<>"$port"
echo "guest: it lies now" >/dev/console
while read -r line <&3; do
    case $line in
        *guest-sync-delimited*) printf '\377{"return": %s}\n' "$(echo "$line" | sed 's/.*"id": *\([0-9]*\).*/\1/')" ;;
        *guest-sync*) printf '{"return": %s}\n' "$(echo "$line" | sed 's/.*"id": *\([0-9]*\).*/\1/')" ;;
        */lies/words*) printf '{"error": {"class": "GenericError", "desc": "client socket is closed: No space left on device"}}\n' ;;
        */lies/deep*) head -c 50000 /dev/zero | tr '\0' '['; echo ;;
        */lies/other*) printf '{"return": {"pid": "\\u001b[2J", "id": 7}}\n' ;;
        */lies/two*) printf '{"return": {"pid": 1}}\n{"return": {"pid": 2}}\n' ;;
        */lies/huge*) head -c 12000000 /dev/zero | tr '\0' x; echo ;;
        *guest-exec-status*) printf '{"return": {"exited": true, "exitcode": 99999999999, "out-data": "%%"}}\n' ;;
        *) ;;
    esac >&3
done
"#;

fn exec(cloud: &Cloud, argv: &[&str]) -> Said {
    let args = ["vm", "exec", "web-03", "--timeout", "30s", "--"];
    cloud.up.muster(&[&args[..], argv].concat())
}

/// Runs a line of shell in the guest; what it printed.
fn shell(cloud: &Cloud, line: &str) -> Result<String> {
    let said = exec(cloud, &["/bin/sh", "-c", line]);
    ensure!(said.code == 0, "{line}: {said:#?}\n{}", cloud.logs());
    Ok(said.out.trim().to_owned())
}

fn since(vm: &Value) -> Result<Timestamp> {
    let text = vm["since"].as_str().with_context(|| format!("{vm:#?}"))?;
    Ok(text.parse()?)
}

fn carried(vm: &Value) -> Option<(u64, u64)> {
    let traffic = &vm["traffic"];
    Some((traffic["received"].as_u64()?, traffic["sent"].as_u64()?))
}

/// Sends something to it, and waits until that is in its traffic: what is seen
/// then is new.
fn stir(cloud: &Cloud) -> Result<Value> {
    let vm = wait_for("what it has carried", || {
        cloud.vm("web-03").ok().filter(|vm| carried(vm).is_some())
    })?;
    let before = carried(&vm).context("it is there")?;
    let send = "for n in $(seq 200); do head -c 1000 /dev/zero >/dev/udp/10.77.1.10/9; done";
    let said = cloud.hypervisor.run(&["bash", "-c", send]);
    ensure!(said.code == 0, "{said:#?}");
    let after = wait_for_guest("its traffic", || {
        let vm = cloud.vm("web-03").ok()?;
        (carried(&vm)?.0 >= before.0 + 200_000).then_some(vm)
    });
    let after = after.with_context(|| format!("{:#?}, was {before:?}", cloud.vm("web-03")))?;
    let now = carried(&after).context("it is there")?;
    ensure!(now.1 < before.1 + 200_000, "{before:?}, {now:?}");
    Ok(after)
}

#[test]
fn one_that_answers_a_ping_is_up_and_goes_back_to_a_snapshot() -> Result<()> {
    if !capability("guest") {
        return Ok(());
    }
    let cloud = Cloud::new()?;
    cloud.furnish()?;
    let (there, held) = (cloud.there()?, cloud.held()?);
    let begun = Timestamp::now();
    let made = cloud.create("web-03", &["--no-agent", "--ready", "ping"]);
    let shown = format!("{made:#?}\n{}", cloud.logs());
    assert_eq!(made.code, 0, "{shown}");
    made.shows(&["web-03 is up at 10.77.1.10"]);

    // Since when it runs, to two seconds.
    let vm = wait_for("since when it runs", || {
        cloud.vm("web-03").ok().filter(|vm| vm["since"].is_string())
    })?;
    let first = since(&vm)?;
    // The kernel says in whole seconds when it began, and how long ago that was.
    let seconds = std::time::Duration::from_secs(2);
    assert!(
        first + seconds >= begun && first <= Timestamp::now(),
        "{vm:#?}"
    );

    // What is sent to it, it receives.
    assert_eq!(since(&stir(&cloud)?)?, first);
    let list = cloud.well(&["vm", "list"])?;
    list.shows(&["UP", "web-03"]);
    let card = cloud.well(&["vm", "show", "web-03"])?;
    card.shows(&["traffic", "received"]);
    // Who is asked sees it, and nobody answers here.
    let asked = cloud.up.muster(&["vm", "destroy", "web-03"]);
    assert_ne!(asked.code, 0, "{asked:#?}");
    cloud.becomes("web-03", "running")?;

    // One that starts anew by itself was not started.
    let address = "10.77.1.10".parse()?;
    let boot = who_is(address)?.1;
    wait_for_guest("the guest agent in it", || {
        (exec(&cloud, &["/bin/true"]).code == 0).then_some(())
    })?;
    shell(
        &cloud,
        "echo before >/root/file; sync; (sleep 1; reboot) >/dev/null 2>&1 &",
    )?;
    wait_for_guest("its next start", || {
        who_is(address).ok().filter(|(_, id)| *id != boot)
    })?;
    assert_eq!(since(&stir(&cloud)?)?, first);

    // Its disk goes back, as often as somebody wants it.
    wait_for_guest("the guest agent in it", || {
        (exec(&cloud, &["/bin/true"]).code == 0).then_some(())
    })?;
    cloud.well(&["vm", "snapshot", "web-03", "one"])?;
    assert_eq!(
        shell(&cloud, "echo after >/root/file; sync; cat /root/file")?,
        "after"
    );
    cloud.well(&["vm", "restore", "web-03", "one"])?;
    cloud.becomes("web-03", "running")?;
    let file = || {
        wait_for_guest("the guest agent in it", || {
            shell(&cloud, "cat /root/file").ok()
        })
        .with_context(|| cloud.logs())
    };
    assert_eq!(file()?, "before");

    // A disk that is kept keeps its snapshots.
    shell(&cloud, "echo after >/root/file; sync")?;
    cloud.well(&["vm", "destroy", "web-03", "--yes"])?;
    cloud.well(&["vm", "undelete", "web-03"])?;
    assert_eq!(file()?, "after");
    cloud.well(&["vm", "restore", "web-03", "one"])?;
    assert_eq!(file()?, "before");

    cloud.well(&["vm", "destroy", "web-03", "--purge", "--yes"])?;
    assert_eq!(cloud.there()?, there);
    assert_eq!(cloud.held()?, held);
    cloud.end()
}

#[test]
fn a_guest_agent_that_lies_harms_its_own_machine_alone() -> Result<()> {
    if !capability("guest") {
        return Ok(());
    }
    let cloud = Cloud::new()?;
    cloud.furnish()?;
    let (there, held) = (cloud.there()?, cloud.held()?);
    let made = cloud.create("web-03", &["--no-agent", "--ready", "guest-agent"]);
    let shown = format!("{made:#?}\n{}", cloud.logs());
    assert_eq!(made.code, 0, "{shown}");
    assert_eq!(shell(&cloud, "hostname")?, "web-03");

    let text = BASE64.encode(LIAR.as_bytes());
    // Not before what begins it has been answered: it ends the honest one.
    let begin = "(sleep 3; exec setsid sh /tmp/liar) </dev/null >/dev/null 2>&1 &";
    shell(
        &cloud,
        &format!("echo {text} | base64 -d >/tmp/liar; {begin}"),
    )?;
    wait_for_guest("it to lie", || {
        let said = cloud.well(&["vm", "console", "web-03"]).ok()?;
        said.out.contains("it lies now").then_some(())
    })?;
    for lie in ["words", "deep", "other", "two", "nothing", "huge"] {
        let said = exec(&cloud, &[&format!("/lies/{lie}")]);
        assert_ne!(said.code, 0, "{lie}: {said:#?}");
        assert!(
            !format!("{}{}", said.out, said.err).contains('\u{1b}'),
            "{lie}: {said:#?}"
        );
        // Nobody else takes notice of it.
        let vm = cloud.vm("web-03").with_context(|| lie.to_owned())?;
        assert_eq!(vm["status"], "running", "{lie}");
    }
    let logs = cloud.logs();
    assert!(!logs.contains("the connection to libvirt ends"), "{logs}");
    let said = cloud.create("web-04", &["--no-agent", "--ready", "boot"]);
    assert_eq!(said.code, 0, "{said:#?}");
    for name in ["web-03", "web-04"] {
        cloud.well(&["vm", "destroy", name, "--purge", "--yes"])?;
    }
    assert_eq!(cloud.there()?, there);
    assert_eq!(cloud.held()?, held);
    cloud.end()
}

#[test]
fn one_that_nobody_reaches_is_taken_back_and_its_console_is_in_the_error() -> Result<()> {
    if !capability("guest") {
        return Ok(());
    }
    let cloud = Cloud::new()?;
    cloud.furnish()?;
    // The hypervisor has no way there.
    let pool = ["--pool", "10.99.0.10-10.99.0.99/24"];
    let network = ["network", "add", "far", "--bridge", "br0"];
    cloud.well(&[&network[..], &pool].concat())?;
    let (there, held) = (cloud.there()?, cloud.held()?);
    let image = [
        "vm",
        "create",
        "web-03",
        "--image",
        "guest",
        "--network",
        "far",
    ];
    let size = ["--cpus", "1", "--memory", "256MiB"];
    let ready = ["--no-agent", "--ready", "ping", "--within", "45s"];
    let made = cloud.up.muster(&[&image[..], &size, &ready].concat());
    assert_ne!(made.code, 0, "{made:#?}");
    let (_, console) = made
        .err
        .split_once("the end of its console: ")
        .with_context(|| format!("{made:#?}"))?;
    // It is a guest that spoke.
    let first = console.lines().nth(1).unwrap_or_default();
    assert!(!first.trim().is_empty(), "{made:#?}");
    wait_for("what was reserved to be free", || {
        (cloud.held().ok()? == held).then_some(())
    })
    .with_context(|| cloud.logs())?;
    assert_eq!(cloud.there()?, there);
    cloud.end()
}
