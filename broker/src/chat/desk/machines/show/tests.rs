//! Machines in the lines of a chat.

use insta::assert_snapshot;
use serde_json::{Value, json};

use super::*;

fn vm(name: &str, more: &Value) -> VmView {
    let mut vm = json!({
        "name": name, "id": "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102", "status": "running",
        "should_run": true, "hypervisor": "hv-2", "cpus": 2, "memory": 2_147_483_648_u64,
        "disk": 10_737_418_240_u64, "image": "debian-12", "since": "2026-11-22T07:00:00Z",
        "image_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "nics": [], "addresses": ["192.0.2.57", "2001:db8::57"], "account": "acme",
        "roles": ["web"], "labels": { "tier": "front" }, "groups": [], "agent": true,
        "ready": "agent", "autostart": true, "protected": false, "by": "ana",
        "made": "2026-11-22T06:59:00Z",
    });
    for (name, value) in more.as_object().unwrap() {
        vm[name] = value.clone();
    }
    serde_json::from_value(vm).unwrap()
}

fn now() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

fn lines(say: &Say) -> String {
    say.lines.join("\n")
}

fn plan_of(vm: VmView) -> VmPlan {
    VmPlan {
        vm,
        looked_at: 40,
        fit: 31,
        image_there: true,
    }
}

#[test]
fn what_is_made_is_said_in_a_line() {
    let run = "0123456789abcdefghjkmnpqrs";
    let one = |dry_run: bool| VmsCreated {
        machines: vec![plan_of(vm("web-03", &json!({ "run": run })))],
        dry_run,
    };
    let said = made(&one(false));
    assert_eq!(said.about.as_deref(), Some("0123"));
    assert_snapshot!(lines(&said), @"web-03 is being made at 192.0.2.57, 2001:db8::57 on hv-2 (of 40, 31 fit); image debian-12 is there");
    let said = made(&one(true));
    assert_eq!(said.about, None);
    assert_snapshot!(lines(&said), @"web-03 would be made on hv-2 (of 40, 31 fit); image debian-12 is there, addresses are given when it is made");
    let many = (1..=40).map(|n| {
        let node = if n % 4 == 0 { "hv-1" } else { "hv-2" };
        plan_of(vm(&format!("web-{n:02}"), &json!({ "hypervisor": node })))
    });
    let many = VmsCreated {
        machines: many.collect(),
        dry_run: false,
    };
    assert_snapshot!(lines(&made(&many)), @"40 machines are being made: web-01 … web-40 on hv-1 (10), hv-2 (30)");
}

#[test]
fn a_list_says_what_is_otherwise() {
    assert_snapshot!(lines(&list(&[], None, false)), @"no machines yet");
    assert_snapshot!(lines(&list(&[], Some("role=x\u{7}"), false)), @r"no machine matches role=x\x07");
    assert_snapshot!(lines(&list(&[vm("web-03", &json!({}))], None, false)), @"1 machine, running 1: web-03");
    let drift = json!({
        "status": "stopped",
        "drift": [{ "what": "state", "text": "is stopped, and should run\u{1b}[31m" }]
    });
    let gone = json!({ "status": "deleted", "kept_until": "2026-11-23T07:00:00Z" });
    let vms = [
        vm("web-01", &json!({})),
        vm("web-02", &drift),
        vm("web-03", &gone),
    ];
    let said = list(&vms, None, false);
    assert_eq!(said.tone, Tone::Warn);
    assert_snapshot!(lines(&said), @r"
    3 machines
    deleted 1: web-03
    running 1: web-01
    stopped 1: web-02
    web-02 is stopped, and should run\x1b[31m
    web-03: its disk is kept until 2026-11-23 07:00 UTC
    ");
}

#[test]
fn what_goes_is_shown_before_it_goes() {
    assert_snapshot!(question(&vm("web-03", &json!({})), false, now()), @"web-03 (of acme; running for 3 h; 192.0.2.57, 2001:db8::57; 10GiB of disk on hv-2): destroy it? Its disk and its addresses stay for 24 hours.  !yes · !no  (5 min)");
    let more = json!({ "account": null, "since": null, "status": "stopped", "addresses": [] });
    assert_snapshot!(question(&vm("web-03", &more), true, now()), @"web-03 (of nobody's account; stopped; 10GiB of disk on hv-2): destroy it with its disk? Nothing of it stays.  !yes · !no  (5 min)");
    let is = |status: &str, purge: bool| can_go(&vm("x", &json!({ "status": status })), purge);
    assert!(is("running", false) && is("unreachable", false) && is("doubtful", true));
    assert!(!is("creating", true) && !is("destroying", true));
    assert!(!is("doubtful", false) && !is("deleted", true));
}

#[test]
fn a_machine_on_a_card() {
    assert_snapshot!(lines(&card(&vm("web-03", &json!({ "protected": true })), now())), @r"
    web-03 is running on hv-2, up 3 h, 192.0.2.57, 2001:db8::57, protected
    2 cpus, 2GiB of memory, 10GiB of disk, image debian-12, account acme, role web, tier=front
    made 2026-11-22 06:59 UTC by ana
    ");
    let gone = json!({
        "status": "deleted", "since": null, "kept_until": "2026-11-23T07:00:00Z",
        "why": "it was not heard\n  panic",
    });
    assert_snapshot!(lines(&card(&vm("web-03", &gone), now())), @r"
    web-03 is deleted, 192.0.2.57, 2001:db8::57
    2 cpus, 2GiB of memory, 10GiB of disk, image debian-12, account acme, role web, tier=front
    made 2026-11-22 06:59 UTC by ana
    it was not heard
    its disk is kept until 2026-11-23 07:00 UTC: !vm undelete web-03
    ");
}

#[test]
fn what_machines_are_made_of() {
    let one = |more: Value| {
        let mut view = json!({
            "node": "hv-1", "connected": true, "cordoned": false, "virtualisation": "qemu",
            "capacity": { "cpus": 8, "memory": 17_179_869_184_u64, "disk": 107_374_182_400_u64, "disk_free": 1_u64 << 30 },
            "cpus_given": 10, "memory_given": 6_u64 << 30, "disk_given": 30_u64 << 30,
            "machines": 3, "unknown": ["old"],
        });
        for (name, value) in more.as_object().unwrap() {
            view[name] = value.clone();
        }
        serde_json::from_value::<HypervisorView>(view).unwrap()
    };
    let all = [
        one(json!({})),
        one(json!({ "node": "hv-2", "cordoned": true, "unknown": [] })),
        one(
            json!({ "node": "hv-3", "problem": "libvirt does not answer\u{1b}[31m\nat all", "unknown": [] }),
        ),
        one(json!({ "node": "hv-4", "connected": false, "capacity": null, "unknown": [] })),
    ];
    let said = hypervisors(&all);
    assert_eq!(said.tone, Tone::Warn);
    assert_snapshot!(lines(&said), @r"
    hv-1: up, 3 machines, cpus 10 of 8, memory 6GiB of 16GiB, disk 30GiB of 100GiB, 1 domain that muster does not know
    hv-2: cordoned, 3 machines, cpus 10 of 8, memory 6GiB of 16GiB, disk 30GiB of 100GiB
    hv-3: has a problem, 3 machines, cpus 10 of 8, memory 6GiB of 16GiB, disk 30GiB of 100GiB: libvirt does not answer\x1b[31m
    hv-4: away, 3 machines, cpus 10, memory 6GiB, disk 30GiB
    ");
    let image = json!({
        "name": "debian-12", "size": 1_u64 << 29, "virtual_size": 2_u64 << 30, "format": "qcow2",
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "on": 2, "machines": 1, "by": "ana", "added": "2026-11-22T06:59:00Z",
    });
    let image = serde_json::from_value(image).unwrap();
    assert_snapshot!(lines(&images(&[image])), @"debian-12: 512MiB, a disk of 2GiB; on 2 hypervisors, 1 machine made of it");
    let network = json!({
        "name": "public", "bridge": "br0", "pools": ["192.0.2.0/24"], "gateways": [], "dns": [],
        "reserved": [], "used": 3, "free": 250, "by": "ana", "made": "2026-11-22T06:59:00Z",
    });
    let network = serde_json::from_value(network).unwrap();
    assert_snapshot!(lines(&networks(&[network])), @"public: 192.0.2.0/24 on br0; 3 used, 250 free");
}
