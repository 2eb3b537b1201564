//! Machines from their beginning to their end.

use std::sync::atomic::Ordering;

use muster_protocol::api::{VmAction, VmStatus};
use muster_protocol::ids::Serial;
use muster_protocol::problem::Kind;
use muster_protocol::run::RunPhase;
use muster_protocol::units::{Timestamp, after};
use muster_protocol::vm::Size;

use super::lab::{GIB, Lab, name, wish};
use crate::vm::VmError;
use crate::vm::records::{End, Life};

fn said(error: VmError) -> (Kind, String) {
    let problem = error.problem();
    let all = [Some(problem.title), problem.detail, problem.hint];
    let all: Vec<String> = all.into_iter().flatten().collect();
    (problem.kind, all.join(" | "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_made_destroyed_kept_brought_back_and_purged() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let made = machines.make(wish("web-01")).await.unwrap();
    let plan = &made.machines[0];
    assert_eq!((plan.looked_at, plan.fit, plan.image_there), (3, 3, true));
    assert_eq!(plan.vm.status, VmStatus::Creating);
    assert_eq!(plan.vm.addresses.len(), 2);
    assert_eq!(plan.vm.disk, Size(2 * GIB), "as large as the image");
    let run = plan.vm.run.unwrap();
    {
        let runs = lab.world.runs.lock().unwrap();
        let (_, request, _) = &runs[0];
        assert_eq!(request.predicate.as_deref(), Some("name=hv-1"));
        assert_eq!(request.params["machine"]["name"], "web-01");
    }
    // Nothing else is done with it meanwhile.
    let (kind, text) = said(machines.end_of("web-01", true).await.unwrap_err());
    assert_eq!(kind, Kind::Conflict);
    assert!(text.contains("muster runs cancel"), "{text}");
    lab.world.end(run, RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    lab.report_all(&machines);
    assert_eq!(machines.vm("web-01").run, Some(run));
    assert_eq!(
        machines.show(&name("web-01")).unwrap().status,
        VmStatus::Running
    );

    let ended = machines.end_of("web-01", false).await.unwrap();
    lab.world.end(ended.run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    let view = machines.show(&name("web-01")).unwrap();
    assert!(view.status == VmStatus::Deleted && view.kept_until.is_some());
    assert!(!lab.world.addresses.lock().unwrap().is_empty(), "kept");
    let (kind, text) = said(machines.make(wish("web-01")).await.unwrap_err());
    assert!(kind == Kind::Conflict && text.contains("ana"), "{text}");

    let back = machines.does("web-01", VmAction::Undelete).await.unwrap();
    lab.world.end(back.run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    let vm = machines.vm("web-01");
    assert!(matches!(vm.life, Life::Ready { .. }) && vm.should_run);

    let ended = machines.end_of("web-01", true).await.unwrap();
    lab.world.end(ended.run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    assert!(matches!(
        machines.vm("web-01").life,
        Life::Gone { failed: None, .. }
    ));
    assert!(lab.world.is_clean());
    // The next of that name is another machine.
    let next = machines.make(wish("web-01")).await.unwrap();
    assert_ne!(next.machines[0].vm.id, vm.id);
    assert_eq!(
        lab.world.asked(),
        [
            "vm-create",
            "vm-destroy",
            "vm-undelete",
            "vm-destroy",
            "vm-create"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_made_leaves_nothing() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let made = machines.make(wish("web-01")).await.unwrap();
    // Its guest enrolled before something else failed.
    let vm = machines.vm("web-01");
    machines.seed(vm.place.serial, vm.id).await.unwrap();
    for (_, used) in lab.world.invites.lock().unwrap().values_mut() {
        *used = Some(Serial(77));
    }
    let run = made.machines[0].vm.run.unwrap();
    lab.world.end(run, RunPhase::Failed, "the disk is full");
    machines.look(Timestamp::now()).await;
    let vm = machines.vm("web-01");
    let Life::Gone { failed, .. } = &vm.life else {
        panic!("{:?}", vm.life);
    };
    assert_eq!(failed.as_deref(), Some("the disk is full"));
    let shown = machines.show(&name("web-01")).unwrap();
    assert_eq!(shown.why.as_deref(), Some("the disk is full"));
    assert!(lab.world.addresses.lock().unwrap().is_empty());
    assert_eq!(*lab.world.removed.lock().unwrap(), [Serial(77)]);

    // Refused from the beginning: by whoever runs things, and by the pool.
    *lab.world.refuses.lock().unwrap() = Some(Kind::Denied);
    let (kind, _) = said(machines.make(wish("web-{01..03}")).await.unwrap_err());
    assert_eq!(kind, Kind::Denied);
    *lab.world.refuses.lock().unwrap() = None;
    lab.world.pool.store(2, Ordering::SeqCst);
    let (_, text) = said(machines.make(wish("web-{01..03}")).await.unwrap_err());
    assert!(text.contains("exhausted"), "{text}");
    assert!(lab.world.is_clean());
    assert!(machines.list(false).is_empty());
    assert_eq!(lab.world.asked().len(), 1, "nothing else was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_doubt_is_looked_at_again_when_its_hypervisor_is_heard() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let made = machines.make(wish("web-01")).await.unwrap();
    let run = made.machines[0].vm.run.unwrap();
    lab.world.end(run, RunPhase::UndoFailed, "hv-1 is away");
    let now = Timestamp::now();
    machines.look(now).await;
    assert_eq!(
        machines.show(&name("web-01")).unwrap().status,
        VmStatus::Doubtful
    );
    let later = after(now, std::time::Duration::from_secs(600));
    // Nobody has said anything since.
    machines.look(later).await;
    assert_eq!(lab.world.asked(), ["vm-create"]);
    lab.report_all(&machines);
    lab.world.down.lock().unwrap().insert(Serial(1));
    machines.look(later).await;
    assert_eq!(lab.world.asked(), ["vm-create"]);
    lab.world.down.lock().unwrap().clear();
    machines.look(later).await;
    assert_eq!(lab.world.asked(), ["vm-create", "vm-destroy"]);
    // Once more in doubt: not at once again.
    let second = machines.vm("web-01").run.unwrap();
    lab.world.end(second, RunPhase::Failed, "libvirt hangs");
    machines.look(later).await;
    let Life::Doubtful {
        tries: 1,
        end: End::Failed { .. },
        ..
    } = machines.vm("web-01").life.clone()
    else {
        panic!("{:?}", machines.vm("web-01").life);
    };
    lab.report_all(&machines);
    machines.look(Timestamp::now()).await;
    assert_eq!(lab.world.asked().len(), 2);
    machines.look(later).await;
    let third = machines.vm("web-01").run.unwrap();
    lab.world.end(third, RunPhase::Succeeded, "");
    machines.look(later).await;
    let vm = machines.vm("web-01");
    let Life::Gone {
        failed: Some(why), ..
    } = &vm.life
    else {
        panic!("{:?}", vm.life);
    };
    assert_eq!(why, "hv-1 is away");
    assert!(lab.world.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_want_a_name_one_has_it() {
    let lab = Lab::start().await;
    // Two brokers that both believe to be the active one.
    let (one, two) = (lab.open().await, lab.open().await);
    let (a, b) = tokio::join!(one.make(wish("web-01")), two.make(wish("web-01")));
    let (won, lost) = match (a, b) {
        (Ok(won), Err(lost)) | (Err(lost), Ok(won)) => (won, lost),
        other => panic!("{other:?}"),
    };
    let (kind, text) = said(lost);
    assert!(kind == Kind::Conflict && text.contains("ana"), "{text}");
    assert_eq!(lab.world.asked(), ["vm-create"]);
    let held: Vec<_> = lab
        .world
        .addresses
        .lock()
        .unwrap()
        .keys()
        .copied()
        .collect();
    assert_eq!(held, [won.machines[0].vm.id]);
    // And in one broker: many at once, each name once.
    let all = (0..20).map(|n| one.make(wish(&format!("db-{}", n / 2))));
    let done = futures_util::future::join_all(all).await;
    assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_kept_goes_when_its_time_is_over() {
    let mut lab = Lab::start().await;
    lab.keep_for = std::time::Duration::from_secs(3_600);
    let machines = lab.open().await;
    machines.up(&lab.world, wish("web-01")).await;
    let ended = machines.end_of("web-01", false).await.unwrap();
    lab.world.end(ended.run.unwrap(), RunPhase::Succeeded, "");
    let now = Timestamp::now();
    machines.look(now).await;
    machines.look(now).await;
    assert_eq!(lab.world.asked().len(), 2);
    let later = after(now, std::time::Duration::from_secs(3_700));
    // Not while it is protected.
    machines.does("web-01", VmAction::Protect).await.unwrap();
    machines.look(later).await;
    assert_eq!(lab.world.asked().len(), 2);
    machines.does("web-01", VmAction::Unprotect).await.unwrap();
    machines.look(later).await;
    assert_eq!(lab.world.asked().len(), 3);
    {
        let runs = lab.world.runs.lock().unwrap();
        assert_eq!(runs[2].1.params["purge"], true);
    }
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(later).await;
    assert!(matches!(machines.vm("web-01").life, Life::Gone { .. }));
    assert!(lab.world.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_with_a_machine_is_one_thing_at_a_time() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    machines.up(&lab.world, wish("web-01")).await;
    let stop = VmAction::Stop { grace: None };
    let changed = machines.does("web-01", stop.clone()).await.unwrap();
    assert!(!changed.vm.should_run);
    let (kind, text) = said(machines.does("web-01", VmAction::Start).await.unwrap_err());
    assert!(
        kind == Kind::Conflict && text.contains("being changed"),
        "{text}"
    );
    lab.world.end(changed.run.unwrap(), RunPhase::Succeeded, "");
    // Whoever comes next sees the end without waiting for anything.
    let resize = |cpus, memory, disk| VmAction::Resize { cpus, memory, disk };
    let bigger = resize(Some(4), None, Some(Size(4 * GIB)));
    let changed = machines.does("web-01", bigger).await.unwrap();
    assert_eq!(machines.vm("web-01").wish.cpus, 2, "not before it is so");
    lab.world.end(changed.run.unwrap(), RunPhase::Succeeded, "");
    for (bad, says) in [
        (resize(None, None, None), "nothing is to change"),
        (resize(None, None, Some(Size(3 * GIB))), "only grows"),
        (resize(Some(0), None, None), "0 processors"),
        (resize(None, Some(Size(1 << 60)), None), "of memory"),
        (
            VmAction::Exec {
                argv: vec![],
                timeout: None,
            },
            "a program",
        ),
        (VmAction::ConsoleLog { lines: Some(0) }, "0 lines"),
        (VmAction::Undelete, "nothing to bring back"),
    ] {
        let (_, text) = said(machines.does("web-01", bad).await.unwrap_err());
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(machines.vm("web-01").wish.cpus, 4);
    // Protected, and refused by whoever runs things: nothing has changed.
    machines.does("web-01", VmAction::Protect).await.unwrap();
    let (kind, text) = said(machines.end_of("web-01", true).await.unwrap_err());
    assert!(
        kind == Kind::Conflict && text.contains("unprotect"),
        "{text}"
    );
    machines.does("web-01", VmAction::Unprotect).await.unwrap();
    *lab.world.refuses.lock().unwrap() = Some(Kind::Frozen);
    let before = machines.vm("web-01");
    let (kind, _) = said(machines.end_of("web-01", true).await.unwrap_err());
    assert_eq!(kind, Kind::Frozen);
    let now = machines.vm("web-01");
    assert_eq!(
        (&now.life, now.should_run),
        (&before.life, before.should_run)
    );
    *lab.world.refuses.lock().unwrap() = None;
    let run = machines.end_of("web-01", true).await.unwrap().run;
    assert!(run.is_some() && run != before.run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_with_its_hypervisor() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    machines.up(&lab.world, wish("web-01")).await;
    // The same records, in a cluster whose hypervisor was removed.
    let bare = Lab {
        inventory: crate::inventory::Inventory::in_memory([]),
        ..lab
    };
    let machines = bare.open().await;
    assert_eq!(
        machines.show(&name("web-01")).unwrap().status,
        VmStatus::Unreachable
    );
    assert_eq!(machines.end_of("web-01", false).await.unwrap().run, None);
    assert!(matches!(machines.vm("web-01").life, Life::Gone { .. }));
    assert!(bare.world.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_for_long_is_forgotten_and_no_uuid_comes_twice() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let mut ids = std::collections::HashSet::new();
    for _ in 0..2 {
        ids.insert(machines.up(&lab.world, wish("web-01")).await.id);
        machines.end_of("web-01", true).await.unwrap();
        lab.world.end_all(RunPhase::Succeeded);
        machines.look(Timestamp::now()).await;
    }
    let stays = machines.up(&lab.world, wish("web-02")).await;
    let now = Timestamp::now();
    machines.tidy(now).await;
    assert!(machines.show(&name("web-01")).is_ok(), "not yet");
    let later = after(now, std::time::Duration::from_secs(31 * 86_400));
    machines.tidy(later).await;
    assert!(machines.show(&name("web-01")).is_err());
    assert_eq!(machines.vm("web-02").id, stays.id);
    // Neither here, nor in the next broker, nor once more.
    let machines = lab.open().await;
    assert!(machines.show(&name("web-01")).is_err());
    let third = machines.up(&lab.world, wish("web-01")).await;
    assert!(third.nth > 2 && ids.insert(third.id));
    machines.tidy(later).await;
    assert_eq!(machines.vm("web-01").id, third.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_new_key_goes_with_its_machine_too() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    machines.make(wish("web-01")).await.unwrap();
    let vm = machines.vm("web-01");
    machines.seed(vm.place.serial, vm.id).await.unwrap();
    for (_, used) in lab.world.invites.lock().unwrap().values_mut() {
        *used = Some(Serial(77));
    }
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    assert_eq!(machines.vm("web-01").node, Some(Serial(77)));
    // Once it was written down in time, once it is new.
    let follows = |old, new| lab.world.successors.lock().unwrap().insert(old, new);
    follows(Serial(77), Serial(78));
    machines.follow_nodes().await;
    assert_eq!(machines.vm("web-01").node, Some(Serial(78)));
    lab.world.successors.lock().unwrap().clear();
    follows(Serial(78), Serial(79));
    machines.end_of("web-01", true).await.unwrap();
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    assert_eq!(*lab.world.removed.lock().unwrap(), [Serial(78), Serial(79)]);
}
