//! Where machines are put.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::api::Strategy;
use muster_protocol::ids::Serial;
use muster_protocol::names::{LabelKey, LabelValue, NodeName};
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{Capacity, Size};
use proptest::prelude::*;

use super::lab::{GIB, Lab, image, name, report, wish};
use crate::config::VmConfig;
use crate::vm::Observed;
use crate::vm::placement::{Apart, Candidate, Need, place, room};
use crate::vm::records::Takes;

fn takes(cpus: u64, memory: u64, disk: u64) -> Takes {
    Takes {
        cpus,
        memory: Size(memory * GIB),
        disk: Size(disk * GIB),
    }
}

fn need(takes: Takes, strategy: Strategy) -> Need {
    Need {
        groups: false,
        takes,
        strategy,
        apart: None,
        labels: Vec::new(),
        image: image().sha256,
    }
}

/// What a test says of a hypervisor.
#[derive(Clone, Debug)]
struct Hv {
    name: NodeName,
    labels: BTreeMap<LabelKey, LabelValue>,
    heard: Option<std::sync::Arc<crate::vm::Heard>>,
    given: Takes,
    connected: bool,
    able: bool,
    cordoned: bool,
}

impl Hv {
    fn new(text: &str, given: Takes) -> Self {
        let observed = Observed::default();
        observed.hear_at(Serial(1), report(Vec::new()), Timestamp::now());
        Self {
            name: text.parse().unwrap(),
            labels: BTreeMap::from([("rack".parse().unwrap(), "r01".parse().unwrap())]),
            heard: observed.of(Serial(1)),
            given,
            connected: true,
            able: true,
            cordoned: false,
        }
    }

    fn at(&self, serial: u32) -> Candidate<'_> {
        Candidate {
            guards: false,
            serial: Serial(serial),
            node: &self.name,
            labels: &self.labels,
            connected: self.connected,
            able: Some(self.able),
            cordoned: self.cordoned,
            heard: self.heard.as_deref(),
            given: self.given,
        }
    }
}

fn candidates(all: &[Hv]) -> Vec<Candidate<'_>> {
    (1..).zip(all).map(|(serial, hv)| hv.at(serial)).collect()
}

#[test]
fn most_or_least_free_memory_and_of_two_alike_the_first_by_name() {
    let all = [
        Hv::new("hv-c", takes(1, 8, 0)),
        Hv::new("hv-b", takes(1, 2, 0)),
        Hv::new("hv-a", takes(1, 2, 0)),
    ];
    let settings = VmConfig::default();
    let placed = |strategy| {
        let placed = place(
            &need(takes(1, 1, 1), strategy),
            &candidates(&all),
            &settings,
        )
        .unwrap();
        (placed.place.node.to_string(), placed.looked_at, placed.fit)
    };
    assert_eq!(placed(Strategy::Spread), ("hv-a".to_owned(), 3, 3));
    assert_eq!(placed(Strategy::Pack), ("hv-c".to_owned(), 3, 3));
}

#[test]
fn each_that_is_looked_at_says_why_not() {
    let ok = Hv::new("hv-00", Takes::default());
    let heard = |edit: fn(&mut muster_protocol::vm::HypervisorReport)| {
        let observed = Observed::default();
        let mut said = report(Vec::new());
        edit(&mut said);
        observed.hear_at(Serial(1), said, Timestamp::now());
        observed.of(Serial(1))
    };
    let named = |text: &str, hv: Hv| Hv {
        name: text.parse().unwrap(),
        ..hv
    };
    let base = || ok.clone();
    let all = [
        named(
            "away",
            Hv {
                connected: false,
                ..base()
            },
        ),
        named(
            "unable",
            Hv {
                able: false,
                ..base()
            },
        ),
        named(
            "cordoned",
            Hv {
                cordoned: true,
                ..base()
            },
        ),
        named(
            "silent",
            Hv {
                heard: None,
                ..base()
            },
        ),
        named(
            "broken",
            Hv {
                heard: heard(|r| r.problem = Some("libvirt hangs".into())),
                ..base()
            },
        ),
        named(
            "unsure",
            Hv {
                heard: heard(|r| r.capacity = None),
                ..base()
            },
        ),
        named(
            "bare",
            Hv {
                labels: BTreeMap::new(),
                ..base()
            },
        ),
        named("same", base()),
        named(
            "cpu",
            Hv {
                given: takes(31, 0, 0),
                ..base()
            },
        ),
        named(
            "memory",
            Hv {
                given: takes(0, 15, 0),
                ..base()
            },
        ),
        named(
            "disk",
            Hv {
                given: takes(0, 0, 95),
                ..base()
            },
        ),
    ];
    // Those that have no room are in another rack.
    let mut all = all;
    for hv in &mut all[8..] {
        hv.labels = BTreeMap::from([("rack".parse().unwrap(), "r02".parse().unwrap())]);
    }
    let mut need = need(takes(2, 2, 10), Strategy::Spread);
    let rack: LabelKey = "rack".parse().unwrap();
    need.apart = Some((Apart::Label(rack), BTreeSet::from(["r01".to_owned()])));
    let none = place(&need, &candidates(&all), &VmConfig::default()).unwrap_err();
    let said: Vec<String> = none
        .looked
        .iter()
        .map(|looked| format!("{}: {}", looked.node, looked.why))
        .collect();
    insta::assert_snapshot!(said.join("\n"), @r"
    away: is not connected
    bare: has no label `rack`, by which machines are kept apart
    broken: has a problem: libvirt hangs
    cordoned: is cordoned
    cpu: 1 of 32 processors are free, 2 are needed
    disk: 5GiB of 100GiB disk are free, 10GiB are needed
    memory: 1GiB of 16GiB memory are free, 2GiB are needed
    same: one of its kind is at rack=r01
    silent: has not said yet what it has
    unable: its agent does not grant `vm`
    unsure: does not say what it has
    ");
}

proptest! {
    #[test]
    fn never_over_what_there_is_and_always_the_same(
        sizes in prop::collection::vec((1u64..9, 1u64..9, 1u64..40), 1..40),
        percent in (1u32..500, 1u32..200, 1u32..200),
        hypervisors in 1usize..6,
        pack in any::<bool>(),
    ) {
        let settings = VmConfig {
            overcommit_cpu_percent: percent.0,
            overcommit_memory_percent: percent.1,
            overcommit_disk_percent: percent.2,
            ..VmConfig::default()
        };
        let strategy = if pack { Strategy::Pack } else { Strategy::Spread };
        let mut all: Vec<Hv> = (0..hypervisors)
            .map(|n| Hv::new(&format!("hv-{n}"), Takes::default()))
            .collect();
        let capacity = Capacity { cpus: 8, memory: Size(16 * GIB), disk: Size(100 * GIB), disk_free: Size(GIB) };
        let room = room(&capacity, &settings);
        for (cpus, memory, disk) in sizes {
            let need = need(takes(cpus, memory, disk), strategy);
            let placed = place(&need, &candidates(&all), &settings);
            prop_assert_eq!(&placed, &place(&need, &candidates(&all), &settings));
            match placed {
                Ok(placed) => {
                    let at = placed.place.serial.0 as usize - 1;
                    all[at].given = all[at].given.and(need.takes);
                }
                Err(none) => prop_assert_eq!(none.looked.len(), hypervisors),
            }
        }
        for hv in &all {
            prop_assert!(hv.given.cpus <= room.cpus);
            prop_assert!(hv.given.memory <= room.memory);
            prop_assert!(hv.given.disk <= room.disk);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_what_is_kept_and_what_is_not_ours_takes_room() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    // Somebody's domain on the first one.
    let mut foreign = super::lab::guest(&machines_draft());
    foreign.owner = muster_protocol::vm::Owner::Foreign;
    foreign.memory = Size(10 * GIB);
    lab.observed
        .hear_at(Serial(1), report(vec![foreign]), Timestamp::now());
    let mut big = wish("big-{1..3}");
    big.memory = Size(8 * GIB);
    let made = machines.make(big.clone()).await.unwrap();
    let at: Vec<&str> = made
        .machines
        .iter()
        .map(|plan| plan.vm.hypervisor.as_str())
        .collect();
    assert_eq!(at, ["hv-2", "hv-3", "hv-2"]);
    big.name = "huge".into();
    big.memory = Size(9 * GIB);
    let none = machines.make(big).await.unwrap_err().problem();
    assert_eq!(none.kind.exit_code(), 3);
    insta::assert_snapshot!(none.detail.unwrap(), @r"
    hv-1: 6GiB of 16GiB memory are free, 9GiB are needed
    hv-2: 0B of 16GiB memory are free, 9GiB are needed
    hv-3: 8GiB of 16GiB memory are free, 9GiB are needed
    ");
    let views = machines.hypervisors();
    assert_eq!(views[0].unknown, ["web-99"]);
    assert_eq!(views[0].memory_given, Size(10 * GIB));
    assert_eq!((views[1].machines, views[1].cpus_given), (2, 4));
}

/// A machine that is in no record.
fn machines_draft() -> crate::vm::StoredVm {
    let id = muster_protocol::vm::VmId::derive(&super::lab::cluster(), &name("web-99"), 9);
    serde_json::from_value(serde_json::json!({
        "name": "web-99", "nth": 9, "id": id,
        "place": { "serial": 1, "node": "hv-1", "pool": "default" },
        "wish": {
            "cpus": 1, "memory": GIB, "disk": GIB, "image": image(), "networks": [], "agent": false,
            "ready": "boot", "ready_within": "1m", "roles": [], "labels": {}, "ssh_keys": [], "autostart": true,
        },
        "nics": [], "should_run": true, "protected": false, "invites": [],
        "made": { "by": "ana", "at": "2026-11-22T09:00:00Z" },
        "order": { "by": "ana", "role": "operator", "door": "cli" },
        "runs": 0, "life": { "life": "reserved" },
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn apart_cordoned_and_named_by_the_place() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let mut two = wish("{zone}-{rack}-h{n}");
    two.count = Some(2);
    two.apart = Some("rack".into());
    let made = machines.make(two.clone()).await.unwrap();
    let names: Vec<&str> = made.machines.iter().map(|p| p.vm.name.as_str()).collect();
    assert_eq!(names, ["gva2-r01-h1", "gva2-r02-h1"]);
    // Both racks have one of its role.
    let none = machines.make(two.clone()).await.unwrap_err().problem();
    assert!(none.detail.unwrap().contains("one of its kind"));
    // Another account is another matter; the numbers go on.
    two.account = Some("acme".parse().unwrap());
    two.dry_run = true;
    let planned = machines.make(two.clone()).await.unwrap();
    assert!(planned.dry_run && planned.machines[0].vm.nics.is_empty());
    two.dry_run = false;
    let made = machines.make(two).await.unwrap();
    let names: Vec<&str> = made.machines.iter().map(|p| p.vm.name.as_str()).collect();
    assert_eq!(names, ["gva2-r01-h2", "gva2-r02-h2"]);
    // What is cordoned takes nothing new, also for the next broker.
    for node in ["hv-1", "hv-3"] {
        let change = muster_protocol::api::HypervisorChange {
            cordoned: Some(true),
        };
        let asked = super::lab::may((node.parse().unwrap(), change));
        assert!(machines.change_hypervisor(asked).await.unwrap().cordoned);
    }
    let machines = lab.open().await;
    let made = machines.make(wish("web-01")).await.unwrap();
    assert_eq!(made.machines[0].vm.hypervisor.as_str(), "hv-2");
    let mut on = wish("web-02");
    on.on = Some("rack=r02".into());
    let none = machines.make(on.clone()).await.unwrap_err().problem();
    assert_eq!(none.detail.as_deref(), Some("hv-3: is cordoned"));
    on.on = Some("rack=r09".into());
    let none = machines.make(on.clone()).await.unwrap_err().problem();
    assert!(none.title.contains("rack=r09"), "{}", none.title);
    on.on = Some("rakc=r02".into());
    let none = machines.make(on).await.unwrap_err().problem();
    assert_eq!(none.kind, muster_protocol::problem::Kind::UnknownName);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_said_and_nothing_is_reserved() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let mut said = Vec::new();
    type Edit = fn(&mut muster_protocol::api::CreateVms);
    let edits: &[Edit] = &[
        |w| w.name = "<x/>".into(),
        |w| w.name = "../etc".into(),
        |w| w.name = "x".repeat(300),
        |w| w.name = "ä".into(),
        |w| w.count = Some(3),
        |w| w.image = "windows".parse().unwrap(),
        |w| w.networks = vec!["nowhere".parse().unwrap()],
        |w| w.networks = vec!["a".parse().unwrap(), "a".parse().unwrap()],
        |w| w.groups = vec!["web".parse().unwrap()],
        |w| w.memory = Size(0),
        |w| w.memory = Size(1 << 60),
        |w| w.memory = Size(GIB + 1),
        |w| w.cpus = 0,
        |w| w.disk = Some(Size(GIB)),
        |w| w.ready = Some(muster_protocol::vm::Readiness::Ping),
        |w| {
            w.agent = false;
            w.ready = Some(muster_protocol::vm::Readiness::Agent);
        },
        |w| w.ready_within = Some(muster_protocol::units::Span::from_secs(1)),
        |w| w.ssh_keys = vec!["rm -rf /".into()],
        |w| w.ssh_keys = vec!["ssh-ed25519 AAAA\nruncmd: x".into()],
        |w| w.user_data = Some("x".repeat(70_000)),
        |w| {
            w.roles.clear();
            w.apart = Some("rack".into());
        },
        |w| w.on = Some("role=(".into()),
    ];
    for edit in edits {
        let mut wish = wish("web-01");
        edit(&mut wish);
        let problem = machines.make(wish).await.unwrap_err().problem();
        let title = muster_protocol::text::printable(&problem.title, 100);
        said.push(format!("{} {title}", problem.status));
    }
    insta::assert_snapshot!(said.join("\n"));
    assert!(lab.world.is_clean() && lab.world.asked().is_empty());
    assert!(machines.parts().records.all().is_empty());
}
