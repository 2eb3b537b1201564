//! Machines that are started again, and what whoever asked in a chat is told.

use muster_protocol::api::{ChatPlace, VmAction};
use muster_protocol::chat::Proof;
use muster_protocol::envelope::Door;
use muster_protocol::run::RunPhase;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{Guest, GuestState};
use serde_json::{Map, Value};

use super::lab::{Lab, ana, guest, may, name, report, wish};
use crate::authz::{Action, FixedRoles, Origin, authorize};
use crate::vm::records::{Life, StoredVm};
use crate::vm::repair::{Repair, RepairError, Repaired};
use crate::vm::{Batch, Machines};

/// Its hypervisor sees it like that, now.
fn seen(lab: &Lab, vm: &StoredVm, state: GuestState) {
    let one = Guest { state, ..guest(vm) };
    let serial = vm.place.serial;
    lab.observed
        .hear_at(serial, report(vec![one]), Timestamp::now());
}

async fn repair(machines: &Machines, vm: &StoredVm, event: &str) -> Result<Repaired, RepairError> {
    let asked = Repair {
        name: vm.name.clone(),
        id: vm.id,
        event: event.to_owned(),
    };
    machines.repair(may(asked)).await
}

fn starts(lab: &Lab) -> usize {
    let asked = lab.world.asked();
    asked.iter().filter(|one| *one == "vm-power").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stopped_by_hand_is_started_once_and_nobody_is_fought() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let vm = machines.up(&lab.world, wish("web-01")).await;
    seen(&lab, &vm, GuestState::Running);
    assert_eq!(
        repair(&machines, &vm, "e0").await.unwrap(),
        Repaired::Nothing
    );
    seen(&lab, &vm, GuestState::Stopped);
    machines.compare().await;
    assert!(machines.vm("web-01").drift.contains_key("state"));
    let Ok(Repaired::Run(run)) = repair(&machines, &vm, "e1").await else {
        panic!("it is stopped");
    };
    // Looked at again, by whatever broker: it is done.
    let later = lab.open().await;
    assert_eq!(repair(&later, &vm, "e1").await.unwrap(), Repaired::Run(run));
    // While it is being started there is nothing to do.
    assert_eq!(repair(&later, &vm, "e2").await.unwrap(), Repaired::Nothing);
    assert_eq!(starts(&lab), 1);
    lab.world.end(run, RunPhase::Succeeded, "");
    later.look(Timestamp::now()).await;
    assert!(matches!(later.vm("web-01").life, Life::Ready { .. }));
    // What was seen before it was started counts no more.
    assert_eq!(repair(&later, &vm, "e2").await.unwrap(), Repaired::Nothing);
    assert_eq!(repair(&later, &vm, "e1").await.unwrap(), Repaired::Run(run));
    // Stopped once more: told again, and left as it is.
    seen(&lab, &vm, GuestState::Stopped);
    later.compare().await;
    assert!(later.vm("web-01").drift.contains_key("state"));
    let error = repair(&later, &vm, "e3").await.unwrap_err();
    assert!(matches!(error, RepairError::Fought { .. }), "{error}");
    assert!(error.to_string().contains("somebody wants that"), "{error}");
    assert_eq!(starts(&lab), 1);
    // Somebody starts it; long after that it is started again.
    let changed = later.does("web-01", VmAction::Start).await.unwrap();
    lab.world.end(changed.run.unwrap(), RunPhase::Succeeded, "");
    later.look(Timestamp::now()).await;
    let held = later.held(&name("web-01")).unwrap();
    let mut old = StoredVm::clone(&held.vm);
    if let Some(last) = &mut old.repaired {
        last.at = Timestamp::now() - std::time::Duration::from_secs(601);
    }
    later.parts().records.change(&held, old).await.unwrap();
    seen(&lab, &vm, GuestState::Crashed);
    assert!(matches!(
        repair(&later, &vm, "e4").await.unwrap(),
        Repaired::Run(_)
    ));
    assert_eq!(starts(&lab), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_started_of_which_nobody_knows_how_it_is() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let vm = machines.up(&lab.world, wish("web-01")).await;
    seen(&lab, &vm, GuestState::Stopped);
    lab.world.down.lock().unwrap().insert(vm.place.serial);
    let error = repair(&machines, &vm, "e1").await.unwrap_err();
    assert!(matches!(error, RepairError::Unheard { .. }), "{error}");
    lab.world.down.lock().unwrap().clear();
    let mut broken = report(vec![]);
    broken.problem = Some("libvirt hangs".into());
    lab.observed
        .hear_at(vm.place.serial, broken, Timestamp::now());
    let error = repair(&machines, &vm, "e1").await.unwrap_err();
    assert!(matches!(error, RepairError::Unheard { .. }), "{error}");
    lab.observed
        .hear_at(vm.place.serial, report(vec![]), Timestamp::now());
    let error = repair(&machines, &vm, "e1").await.unwrap_err();
    assert!(matches!(error, RepairError::Missing { .. }), "{error}");
    seen(&lab, &vm, GuestState::Paused);
    let error = repair(&machines, &vm, "e1").await.unwrap_err();
    assert!(matches!(error, RepairError::Paused(_)), "{error}");
    // Another one of that name, and one that is to be stopped.
    seen(&lab, &vm, GuestState::Stopped);
    let other = StoredVm {
        id: muster_protocol::vm::VmId::derive(&super::lab::cluster(), &name("web-01"), 9),
        ..StoredVm::clone(&vm)
    };
    assert_eq!(
        repair(&machines, &other, "e1").await.unwrap(),
        Repaired::Nothing
    );
    let stop = VmAction::Stop { grace: None };
    let run = machines.does("web-01", stop).await.unwrap().run.unwrap();
    lab.world.end(run, RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    seen(&lab, &vm, GuestState::Stopped);
    assert_eq!(
        repair(&machines, &vm, "e1").await.unwrap(),
        Repaired::Nothing
    );
    assert_eq!(starts(&lab), 1, "only the stop");
}

/// What is told to whoever asked, beside the event's own text.
fn answer(machines: &Machines, name: &str, kind: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    machines.add_answer(&machines.vm(name), kind, &mut fields);
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asked_in_a_chat_is_told_the_end_there() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    machines.up(&lab.world, wish("web-09")).await;
    assert!(answer(&machines, "web-09", "vm.created").is_empty());

    let mut caller = ana();
    caller.door = Door::Irc;
    caller.origin = Origin::Chat {
        network: "ops".parse().unwrap(),
        account: Some("ana".into()),
        nick: "ana".into(),
        channel: Some("#ops".parse().unwrap()),
        sight: None,
        line: "m1".into(),
        proof: Proof::Tag,
    };
    let wanted = wish("web-{01..03}");
    let asked = authorize(&FixedRoles, &caller, Action::ManageMachines, wanted).unwrap();
    let made = machines.create(asked).await.unwrap();
    let run = |n: usize| made.machines[n].vm.run.unwrap();
    let batch = |name: &str, kind: &str| -> Batch {
        let fields = answer(&machines, name, kind);
        let place: ChatPlace = serde_json::from_value(fields["chat"].clone()).unwrap();
        assert_eq!(place.channel.unwrap().as_str(), "#ops");
        serde_json::from_value(fields["batch"].clone()).unwrap()
    };
    lab.world.end(run(0), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    let one = batch("web-01", "vm.created");
    assert_eq!((one.up.len(), one.failed.len(), one.open), (1, 0, 2));
    lab.world.end(run(1), RunPhase::Failed, "no room");
    lab.world.end(run(2), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    let last = batch("web-02", "vm.failed");
    assert_eq!((last.up.len(), last.failed.len(), last.open), (2, 1, 0));
    assert_eq!(last, batch("web-03", "vm.created"));
    assert_eq!(answer(&machines, "web-02", "vm.failed")["left"], "nothing");
    // What is seen is nobody's answer; an alarm is everybody's.
    assert!(answer(&machines, "web-01", "vm.drift").is_empty());
    let alarm = answer(&machines, "web-01", "alarm.vm-doubtful");
    assert!(alarm.contains_key("asker") && !alarm.contains_key("chat"));
    // Nobody waits for the end of a disk that was kept for a day.
    let changed = machines.end_of("web-01", false).await.unwrap();
    lab.world.end(changed.run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    assert!(answer(&machines, "web-01", "vm.deleted").is_empty());
}
