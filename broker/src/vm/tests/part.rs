//! Machines that calls of runs ask for.

use muster_protocol::ids::RunId;
use muster_protocol::run::{PartOf, RunPhase};
use muster_protocol::units::Timestamp;

use super::lab::{Lab, may, name, wish};
use crate::runs::MachineNow;
use crate::vm::Destroy;

fn call(number: u64) -> PartOf {
    PartOf {
        run: RunId::from_bytes([7; 16]),
        call: number,
        part: 0,
        undo: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_of_a_call_is_found_by_whoever_takes_over() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    assert_eq!(machines.of_call(call(1)), MachineNow::Nothing);
    machines
        .create_for(may(wish("web-1")), call(1))
        .await
        .unwrap();
    let run = machines.vm("web-1").run;
    assert_eq!(machines.of_call(call(1)), MachineNow::Coming(run));
    assert_eq!(machines.of_call(call(2)), MachineNow::Nothing);

    let machines = lab.open().await;
    assert_eq!(machines.of_call(call(1)), MachineNow::Coming(run));
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    let MachineNow::Up(up) = machines.of_call(call(1)) else {
        panic!("{:?}", machines.of_call(call(1)));
    };
    assert_eq!(up.made.name, name("web-1"));
    assert_eq!(up.addresses.len(), 2);

    // Several are not what one call makes.
    let several = machines.create_for(may(wish("db-{1..2}")), call(3)).await;
    assert!(several.unwrap_err().to_string().contains("one machine"));
    assert_eq!(machines.of_call(call(3)), MachineNow::Nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_made_says_why_and_what_was_never_begun_does_not() {
    let mut lab = Lab::start().await;
    let machines = lab.open().await;
    machines
        .create_for(may(wish("web-1")), call(1))
        .await
        .unwrap();
    lab.world.end_all(RunPhase::Failed);
    machines.look(Timestamp::now()).await;
    let now = machines.of_call(call(1));
    assert!(matches!(now, MachineNow::Gone(_)), "{now:?}");

    // Killed at every place.
    for at in 1.. {
        lab.world = std::sync::Arc::default();
        let bucket = format!("vms_{at}");
        let machines = lab.open_on(&bucket).await;
        lab.world.trap.set(at);
        let killed = tokio::select! {
            _ = machines.create_for(may(wish("web-1")), call(1)) => false,
            () = lab.world.trap.reached.notified() => true,
        };
        lab.world.trap.set(0);
        drop(machines);
        let machines = lab.open_on(&bucket).await;
        for _ in 0..4 {
            machines.look(Timestamp::now()).await;
        }
        // Nothing was begun, and it can be asked for again; or it is coming.
        match machines.of_call(call(1)) {
            MachineNow::Nothing => {
                machines
                    .create_for(may(wish("web-1")), call(1))
                    .await
                    .unwrap();
            }
            MachineNow::Coming(_) => {}
            other => panic!("killed at call {at}: {other:?}"),
        }
        for _ in 0..4 {
            machines.look(Timestamp::now()).await;
            lab.world.end_all(RunPhase::Succeeded);
        }
        let now = machines.of_call(call(1));
        assert!(
            matches!(now, MachineNow::Up(_)),
            "killed at call {at}: {now:?}"
        );
        assert_eq!(machines.list(false).len(), 1, "killed at call {at}");
        if !killed {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_takes_back_what_it_made_and_no_namesake() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let end = || Destroy {
        name: name("web-1"),
        purge: true,
    };
    machines
        .create_for(may(wish("web-1")), call(1))
        .await
        .unwrap();
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    machines.end_of("web-1", false).await.unwrap();
    let now = machines.of_call(call(1));
    assert!(matches!(now, MachineNow::Busy(_)), "{now:?}");
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    let now = machines.of_call(call(1));
    assert!(matches!(now, MachineNow::Kept(_)), "{now:?}");
    machines.destroy_for(may(end()), call(1)).await.unwrap();
    let now = machines.of_call(call(1));
    assert!(matches!(now, MachineNow::Going(_)), "{now:?}");
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    let now = machines.of_call(call(1));
    assert!(matches!(now, MachineNow::Gone(_)), "{now:?}");

    // Somebody else's of the same name.
    machines.up(&lab.world, wish("web-1")).await;
    assert_eq!(machines.of_call(call(1)), MachineNow::Nothing);
    assert!(machines.destroy_for(may(end()), call(1)).await.is_err());
    assert_eq!(machines.list(false).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_cleared_away_was_destroyed_by_nobody() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let asked = may(wish("web-1"));
    machines.create_for(asked, call(1)).await.unwrap();
    lab.world.end_all(RunPhase::Failed);
    // Its end was heard, and its addresses are not free yet.
    lab.world.trap.set(2);
    tokio::select! {
        _ = machines.look(Timestamp::now()) => panic!("it waits"),
        () = lab.world.trap.reached.notified() => {}
    }
    assert_eq!(machines.of_call(call(1)), MachineNow::Coming(None));
    lab.world.trap.set(0);
    machines.look(Timestamp::now()).await;
    let now = machines.of_call(call(1));
    assert!(matches!(now, MachineNow::Gone(_)), "{now:?}");
}
