//! Hypervisors that are emptied, and those with a new key.

use muster_protocol::api::{HypervisorChange, VmAction, VmStatus};
use muster_protocol::ids::Serial;
use muster_protocol::run::RunPhase;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::Owner;

use super::lab::{Lab, guest, may, name, node, report, wish};
use crate::inventory::Inventory;
use crate::vm::records::Life;
use crate::vm::{Adopt, Machines, StopAll};

async fn drain(machines: &Machines, stop: bool) -> muster_protocol::api::Drained {
    let stop = stop.then(|| may(StopAll { grace: None }));
    machines
        .drain(may("hv-1".parse().unwrap()), stop)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_hypervisor_takes_nothing_and_its_machines_stop() {
    let lab = Lab::with(vec![node(1, "hv-1", &[])]).await;
    let machines = lab.open().await;
    for machine in ["web-01", "web-02", "web-03"] {
        machines.up(&lab.world, wish(machine)).await;
    }
    lab.report_all(&machines);
    machines.does("web-02", VmAction::Protect).await.unwrap();
    let said = drain(&machines, false).await;
    assert!(said.hypervisor.draining && said.hypervisor.cordoned);
    assert_eq!((said.hypervisor.machines, said.hypervisor.running), (3, 3));
    let runs: Vec<_> = said.machines.iter().map(|one| one.run).collect();
    assert_eq!(runs, [None; 3], "nothing was stopped");
    assert!(said.machines[1].vm.protected);
    let none = machines.make(wish("web-04")).await.unwrap_err().problem();
    assert!(none.detail.unwrap().contains("is cordoned"));
    // Something else is done with one of them at this moment.
    let reboot = VmAction::Reboot { grace: None };
    machines.does("web-03", reboot).await.unwrap();
    let said = drain(&machines, true).await;
    let runs: Vec<_> = said.machines.iter().map(|one| one.run.is_some()).collect();
    assert_eq!(
        runs,
        [true, true, false],
        "one that is protected stops, too"
    );
    let why = said.machines[2].problem.as_deref().unwrap();
    assert!(why.contains("web-03 is being changed"), "{why}");
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    let said = drain(&machines, true).await;
    assert_eq!(said.machines[0].vm.status, VmStatus::Stopped);
    assert_eq!(said.machines[0].run, None, "there is nothing left to stop");
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    // The next broker knows it, too; a cordon does not end it.
    let machines = lab.open().await;
    let change = |cordoned| {
        let cordoned = Some(cordoned);
        may(("hv-1".parse().unwrap(), HypervisorChange { cordoned }))
    };
    let view = machines.change_hypervisor(change(true)).await.unwrap();
    assert!(view.draining && view.running == 0, "{view:?}");
    let view = machines.change_hypervisor(change(false)).await.unwrap();
    assert!(!view.draining && !view.cordoned);
    machines.make(wish("web-04")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_takes_over_what_it_has_when_somebody_says_so() {
    let lab = Lab::with(vec![node(1, "hv-1", &[])]).await;
    let machines = lab.open().await;
    let there = machines.up(&lab.world, wish("web-01")).await;
    let strange = machines.up(&lab.world, wish("web-02")).await;
    machines.up(&lab.world, wish("web-03")).await;
    let kept = machines.end_of("web-03", false).await.unwrap();
    lab.world.end(kept.run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    // The same records, in a cluster where hv-1 has another key.
    let lab = Lab {
        inventory: Inventory::in_memory([node(9, "hv-1", &[])]),
        ..lab
    };
    let machines = lab.open().await;
    for what in [VmAction::Start, VmAction::Reboot { grace: None }] {
        let error = machines.does("web-01", what).await.unwrap_err();
        assert!(error.to_string().contains("muster hypervisor adopt hv-1"));
    }
    let error = machines.end_of("web-01", true).await.unwrap_err();
    assert!(error.to_string().contains("muster hypervisor adopt hv-1"));
    // Nobody is asked for the disk that was kept, however late it is.
    let late = "2100-01-01T00:00:00Z".parse().unwrap();
    machines.look(late).await;
    assert!(matches!(machines.vm("web-03").life, Life::Kept { .. }));
    let adopt = |missing| {
        let node = "hv-1".parse().unwrap();
        may(Adopt { node, missing })
    };
    let error = machines.adopt(adopt(false)).await.unwrap_err();
    assert!(error.to_string().contains("has not said"), "{error}");
    // A domain of that UUID that is another cluster's is not the machine.
    let mut foreign = guest(&strange);
    foreign.owner = Owner::Foreign;
    lab.observed.hear_at(
        Serial(9),
        report(vec![guest(&there), foreign]),
        Timestamp::now(),
    );
    let said = machines.adopt(adopt(false)).await.unwrap();
    assert_eq!(said.adopted, [name("web-01")]);
    assert_eq!(said.left, [name("web-02"), name("web-03")]);
    assert_eq!(said.hypervisor.machines, 1);
    assert_eq!(machines.vm("web-01").place.serial, Serial(9));
    assert_eq!(
        machines.show(&name("web-01")).unwrap().status,
        VmStatus::Running
    );
    machines.end_of("web-01", true).await.unwrap();
    // The rest, because somebody says so.
    let said = machines.adopt(adopt(true)).await.unwrap();
    assert_eq!(said.adopted, [name("web-02"), name("web-03")]);
    machines.does("web-03", VmAction::Undelete).await.unwrap();
    let said = machines.adopt(adopt(true)).await.unwrap();
    assert!(said.adopted.is_empty() && said.left.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordon_waits_for_whoever_has_chosen_the_hypervisor() {
    let lab = Lab::with(vec![node(1, "hv-1", &[])]).await;
    let machines = lab.open().await;
    let cordons = &machines.parts().cordons;
    let choosing = machines.0.making.lock().await;
    let change = HypervisorChange {
        cordoned: Some(true),
    };
    let asked = may(("hv-1".parse().unwrap(), change));
    let mut cordon = Box::pin(machines.change_hypervisor(asked));
    // It has all the time that it needs.
    let others = async {
        for _ in 0..10 {
            lab.open().await;
        }
    };
    tokio::select! {
        _ = &mut cordon => panic!("whoever has chosen it does not know"),
        () = others => {}
    }
    assert!(!cordons.has(Serial(1)));
    drop(choosing);
    cordon.await.unwrap();
    assert!(cordons.has(Serial(1)));
}
