//! A broker that is killed at each step: what is there afterwards is a machine
//! that runs, or nothing.

use muster_protocol::run::RunPhase;
use muster_protocol::units::Timestamp;

use super::lab::{Lab, wish};
use crate::vm::Machines;
use crate::vm::records::Life;

/// What a test does until it is killed.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Create,
    Fail,
    Destroy,
    Return,
}

async fn deed(deed: Deed, machines: &Machines, lab: &Lab) {
    match deed {
        Deed::Create => {
            machines.make(wish("web-{1..2}")).await.unwrap();
            let vm = machines.vm("web-1");
            machines.seed(vm.place.serial, vm.id).await.unwrap();
            machines.seed(vm.place.serial, vm.id).await.unwrap();
            lab.world.end_all(RunPhase::Succeeded);
            machines.look(Timestamp::now()).await;
        }
        Deed::Fail => {
            machines.make(wish("web-{1..2}")).await.unwrap();
            let vm = machines.vm("web-2");
            machines.seed(vm.place.serial, vm.id).await.unwrap();
            lab.world.end_all(RunPhase::Failed);
            machines.look(Timestamp::now()).await;
        }
        Deed::Destroy => {
            machines.end_of("web-1", true).await.unwrap();
            lab.world.end_all(RunPhase::Succeeded);
            machines.look(Timestamp::now()).await;
        }
        Deed::Return => {
            machines.end_of("web-1", false).await.unwrap();
            lab.world.end_all(RunPhase::Succeeded);
            machines.look(Timestamp::now()).await;
            let back = muster_protocol::api::VmAction::Undelete;
            machines.does("web-1", back).await.unwrap();
            lab.world.end_all(RunPhase::Succeeded);
            machines.look(Timestamp::now()).await;
        }
    }
}

/// Everything comes to rest: runs end like that.
async fn rest(machines: &Machines, lab: &Lab, phase: RunPhase) {
    for _ in 0..6 {
        machines.look(Timestamp::now()).await;
        lab.world.end_all(phase);
    }
}

fn check(machines: &Machines, lab: &Lab, what: &str) {
    let addresses = lab.world.addresses.lock().unwrap();
    let mut there = 0;
    for held in machines.parts().records.all() {
        let vm = &held.vm;
        match &vm.life {
            Life::Ready { .. } | Life::Kept { .. } => {
                there += 1;
                assert!(addresses.contains_key(&vm.id), "{what}: {}", vm.name);
                assert!(!vm.nics.is_empty(), "{what}");
            }
            Life::Gone { .. } => {
                assert!(!addresses.contains_key(&vm.id), "{what}: {}", vm.name);
            }
            other => panic!("{what}: {} is not at rest: {other:?}", vm.name),
        }
        assert!(vm.invites.is_empty(), "{what}: {:?}", vm.invites);
    }
    assert_eq!(addresses.len(), there, "{what}: addresses of nobody");
    assert!(lab.world.invites.lock().unwrap().is_empty(), "{what}");
}

async fn killed_everywhere(what: Deed, phase: RunPhase) -> usize {
    let mut lab = Lab::start().await;
    for at in 1.. {
        lab.world = std::sync::Arc::default();
        let bucket = format!("vms_{at}");
        let machines = lab.open_on(&bucket).await;
        if matches!(what, Deed::Destroy | Deed::Return) {
            machines.up(&lab.world, wish("web-1")).await;
        }
        lab.world.trap.set(at);
        let killed = tokio::select! {
            () = deed(what, &machines, &lab) => false,
            () = lab.world.trap.reached.notified() => true,
        };
        lab.world.trap.set(0);
        drop(machines);
        let machines = lab.open_on(&bucket).await;
        rest(&machines, &lab, phase).await;
        check(&machines, &lab, &format!("{what:?}, killed at call {at}"));
        // No run is there twice: of one record each has its own id.
        let mut ids: Vec<_> = lab.world.runs.lock().unwrap().iter().map(|(id, ..)| *id).collect();
        let all = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), all);
        if !killed {
            return at - 1;
        }
    }
    unreachable!("some call is the last one")
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_machines_are_made() {
    assert!(killed_everywhere(Deed::Create, RunPhase::Succeeded).await > 5);
    assert!(killed_everywhere(Deed::Create, RunPhase::Failed).await > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_they_are_taken_back() {
    assert!(killed_everywhere(Deed::Fail, RunPhase::Failed).await > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_one_is_destroyed_or_comes_back() {
    assert!(killed_everywhere(Deed::Destroy, RunPhase::Succeeded).await > 2);
    assert!(killed_everywhere(Deed::Return, RunPhase::Succeeded).await > 3);
}
