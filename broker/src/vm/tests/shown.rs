//! What is seen, held against what is wanted.

use std::collections::HashSet;

use muster_protocol::api::VmStatus;
use muster_protocol::ids::Serial;
use muster_protocol::units::{Timestamp, after};
use muster_protocol::vm::{Guest, GuestState, Size};

use super::lab::{GIB, Lab, guest, name, report, wish};
use crate::vm::Observed;
use crate::vm::drift::{Seen, drift, status};
use crate::vm::records::StoredVm;

fn seen(vm: &StoredVm, guests: Vec<Guest>, connected: bool) -> (VmStatus, Option<Vec<String>>) {
    let observed = Observed::default();
    let later = after(Timestamp::now(), std::time::Duration::from_secs(5));
    observed.hear_at(Serial(1), report(guests), later);
    let heard = observed.of(Serial(1));
    let seen = Seen::of(vm, connected, heard.as_deref());
    let drift = drift(vm, seen);
    let drift = drift.map(|all| all.into_iter().map(|one| one.text).collect());
    (status(vm, seen), drift)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_otherwise_is_said_and_what_nobody_knows_is_not() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let vm = machines.up(&lab.world, wish("web-01")).await;
    let with = |edit: fn(&mut Guest)| {
        let mut one = guest(&vm);
        edit(&mut one);
        vec![one]
    };
    assert_eq!(
        seen(&vm, with(|_| {}), true),
        (VmStatus::Running, Some(vec![]))
    );
    let (is, text) = seen(&vm, with(|g| g.state = GuestState::Stopped), true);
    assert_eq!(
        (is, text.unwrap()),
        (
            VmStatus::Stopped,
            vec!["is stopped, and should run".to_owned()]
        )
    );
    let (is, _) = seen(&vm, with(|g| g.state = GuestState::Crashed), true);
    assert_eq!(is, VmStatus::Crashed);
    let (_, text) = seen(
        &vm,
        with(|g| {
            g.memory = Size(GIB);
            g.cpus = 1;
        }),
        true,
    );
    insta::assert_snapshot!(text.unwrap().join("\n"), @r"
    has 1GiB of memory, and should have 2GiB
    has 1 processors, and should have 2
    ");
    let (is, text) = seen(&vm, vec![], true);
    assert_eq!(
        (is, text.unwrap()),
        (
            VmStatus::Missing,
            vec!["is not on hv-1, where it should be".to_owned()]
        )
    );
    // Never stopped: nobody knows.
    assert_eq!(seen(&vm, vec![], false), (VmStatus::Unreachable, None));
    let observed = Observed::default();
    let mut said = report(vec![]);
    said.problem = Some("libvirt hangs".into());
    observed.hear_at(
        Serial(1),
        said,
        after(Timestamp::now(), std::time::Duration::from_secs(5)),
    );
    let heard = observed.of(Serial(1));
    let problem = Seen::of(&vm, true, heard.as_deref());
    assert_eq!(
        (status(&vm, problem), drift(&vm, problem)),
        (VmStatus::Unreachable, None)
    );
    // A report from before it was made says nothing of it.
    observed.hear_at(Serial(1), report(vec![]), Timestamp::UNIX_EPOCH);
    let heard = observed.of(Serial(1));
    let old = Seen::of(&vm, true, heard.as_deref());
    assert_eq!(
        (status(&vm, old), drift(&vm, old)),
        (VmStatus::Running, None)
    );
    // One that should not run, and does.
    let mut stopped = StoredVm::clone(&vm);
    stopped.should_run = false;
    let (_, text) = seen(&stopped, with(|_| {}), true);
    assert_eq!(text.unwrap(), ["runs, and should be stopped"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_told_once_and_so_is_its_end() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let vm = machines.up(&lab.world, wish("web-01")).await;
    let mut stopped = guest(&vm);
    stopped.state = GuestState::Stopped;
    lab.observed
        .hear_at(Serial(1), report(vec![stopped]), Timestamp::now());
    machines.compare().await;
    let told = machines.vm("web-01");
    assert_eq!(told.drift.keys().collect::<Vec<_>>(), ["state"]);
    let revision = machines.held(&name("web-01")).unwrap().revision;
    machines.compare().await;
    // Also after a restart nothing is told, or written, again.
    let machines = lab.open().await;
    machines.compare().await;
    assert_eq!(machines.held(&name("web-01")).unwrap().revision, revision);
    // While it cannot be heard nothing has ended.
    lab.world.down.lock().unwrap().insert(Serial(1));
    machines.compare().await;
    assert_eq!(machines.held(&name("web-01")).unwrap().revision, revision);
    assert_eq!(
        machines.show(&name("web-01")).unwrap().status,
        VmStatus::Unreachable
    );
    lab.world.down.lock().unwrap().clear();
    lab.report_all(&machines);
    machines.compare().await;
    assert!(machines.vm("web-01").drift.is_empty());
    // What muster does not know is told once for each domain.
    let mut told = HashSet::new();
    let mut other = guest(&vm);
    other.id = muster_protocol::vm::VmId::derive(&super::lab::cluster(), &name("x"), 1);
    lab.observed
        .hear_at(Serial(2), report(vec![other.clone()]), Timestamp::now());
    machines.find_unknown(&mut told).await;
    assert_eq!(told, HashSet::from([(Serial(2), other.id)]));
    assert_eq!(machines.hypervisors()[1].unknown, ["web-01"]);
}

#[test]
fn what_a_hypervisor_says_is_cut_to_what_is_kept() {
    let observed = Observed::default();
    let mut hostile = report(Vec::new());
    hostile.problem = Some("\u{1b}[2J".repeat(1_000));
    hostile.guests = (0..3_000u32)
        .map(|n| Guest {
            id: format!("{n:08x}-0000-8000-8000-000000000000")
                .parse()
                .unwrap(),
            name: "\u{1b}]0;x".repeat(100),
            state: GuestState::Running,
            cpus: 1,
            memory: Size(GIB),
            owner: muster_protocol::vm::Owner::Foreign,
            since: None,
            traffic: None,
        })
        .collect();
    observed.hear_at(Serial(1), hostile, Timestamp::now());
    let heard = observed.of(Serial(1)).unwrap();
    assert_eq!(heard.report.guests.len(), muster_protocol::vm::MAX_GUESTS);
    let said = format!("{:?}", heard.report);
    assert!(!heard.report.guests[0].name.contains('\u{1b}'));
    assert!(!said.contains('\u{1b}') && heard.report.guests[0].name.len() < 1_000);
}
