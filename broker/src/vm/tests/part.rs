//! Machines that calls of runs ask for.

use std::time::Duration;

use muster_protocol::api::{Configure, VmAction};
use muster_protocol::ids::RunId;
use muster_protocol::problem::Kind;
use muster_protocol::run::{PartOf, RunPhase};
use muster_protocol::units::{Timestamp, after};
use muster_protocol::vm::Size;

use super::lab::{Lab, may, name, run_may, wish};
use crate::runs::MachineNow;
use crate::vm::{Destroy, Machines};

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
    let end = || Destroy::named(name("web-1"), true);
    machines
        .create_for(may(wish("web-1")), call(1))
        .await
        .unwrap();
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    machines.end_of("web-1", false).await.unwrap();
    let now = machines.of_call(call(1));
    assert!(matches!(now, MachineNow::Busy(..)), "{now:?}");
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

fn revision(machines: &Machines) -> u64 {
    machines.held(&name("web-1")).unwrap().revision
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_keeps_no_run_from_taking_its_machine_back_and_writes_nothing() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let run = call(1).run;
    let asked = run_may(run, wish("web-1"));
    machines.create_for(asked, call(1)).await.unwrap();
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    *lab.world.refuses.lock().unwrap() = Some(Kind::Frozen);
    let before = revision(&machines);
    let destroy = || Destroy::named(name("web-1"), true);
    // Nobody else's word does that, and nothing is written down of it.
    for _ in 0..3 {
        let error = machines.destroy(may(destroy())).await.unwrap_err();
        assert_eq!(error.problem().kind, Kind::Frozen);
        let error = machines.does("web-1", VmAction::Start).await.unwrap_err();
        assert_eq!(error.problem().kind, Kind::Frozen);
        let error = machines.make(wish("web-2")).await.unwrap_err();
        assert_eq!(error.problem().kind, Kind::Frozen);
    }
    assert_eq!(revision(&machines), before);
    assert!(machines.held(&name("web-2")).is_err());
    let asked = run_may(run, destroy());
    machines.destroy_for(asked, call(1)).await.unwrap();
    assert_eq!(lab.world.asked(), ["vm-create", "vm-destroy"]);
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    let now = machines.of_call(call(1));
    assert!(matches!(now, MachineNow::Gone(_)), "{now:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_a_machine_back_waits_for_room_and_writes_that_once() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let run = call(1).run;
    let asked = run_may(run, wish("web-1"));
    machines.create_for(asked, call(1)).await.unwrap();
    lab.world.end_all(RunPhase::Succeeded);
    let now = Timestamp::now();
    machines.look(now).await;
    *lab.world.refuses.lock().unwrap() = Some(Kind::RateLimited);
    let asked = run_may(run, Destroy::named(name("web-1"), true));
    machines.destroy_for(asked, call(1)).await.unwrap();
    let written = revision(&machines);
    for second in 0..600 {
        machines.look(after(now, Duration::from_secs(second))).await;
    }
    assert_eq!(revision(&machines), written);
    let is = machines.of_call(call(1));
    assert!(matches!(is, MachineNow::Going(_)), "{is:?}");
    *lab.world.refuses.lock().unwrap() = None;
    machines.look(after(now, Duration::from_secs(900))).await;
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(after(now, Duration::from_secs(901))).await;
    let is = machines.of_call(call(1));
    assert!(matches!(is, MachineNow::Gone(_)), "{is:?}");
    assert_eq!(lab.world.asked(), ["vm-create", "vm-destroy"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_a_call_asks_for_waits_while_runs_are_too_many() {
    for (kind, number) in [(Kind::RateLimited, 1), (Kind::NoRoom, 2)] {
        let lab = Lab::start().await;
        let machines = lab.open().await;
        *lab.world.refuses.lock().unwrap() = Some(kind);
        let asked = may(wish("web-1"));
        machines.create_for(asked, call(number)).await.unwrap();
        let now = Timestamp::now();
        for second in 0..100 {
            machines.look(after(now, Duration::from_secs(second))).await;
        }
        let is = machines.of_call(call(number));
        assert!(matches!(is, MachineNow::Coming(Some(_))), "{is:?}");
        *lab.world.refuses.lock().unwrap() = None;
        machines.look(after(now, Duration::from_secs(200))).await;
        lab.world.end_all(RunPhase::Succeeded);
        machines.look(after(now, Duration::from_secs(201))).await;
        let is = machines.of_call(call(number));
        assert!(matches!(is, MachineNow::Up(_)), "{is:?}");
        assert_eq!(lab.world.asked(), ["vm-create"]);
        // Nobody waits for a person, and no room at all is said as ever.
        *lab.world.refuses.lock().unwrap() = Some(kind);
        let error = machines.make(wish("web-2")).await.unwrap_err();
        assert_eq!(error.problem().kind, kind);
        *lab.world.refuses.lock().unwrap() = None;
        let huge = muster_protocol::api::CreateVms {
            memory: Size(1 << 40),
            ..wish("web-3")
        };
        let error = machines.make(huge).await.unwrap_err().problem();
        assert_eq!(error.kind, Kind::NoMatch, "{error:?}");
        assert!(error.detail.unwrap().contains("hv-3: "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_taken_is_called_off_at_once() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    *lab.world.refuses.lock().unwrap() = Some(Kind::RateLimited);
    machines
        .create_for(may(wish("web-1")), call(1))
        .await
        .unwrap();
    assert_eq!(lab.world.asked(), Vec::<String>::new());
    machines.call_off(call(2)).await.unwrap();
    machines.call_off(call(1)).await.unwrap();
    let now = machines.of_call(call(1));
    assert_eq!(
        now,
        MachineNow::Gone("it was cancelled before it was begun".into())
    );
    assert!(lab.world.is_clean());
    // A person can do so, too.
    machines
        .create_for(may(wish("web-2")), call(2))
        .await
        .unwrap();
    machines.end_of("web-2", true).await.unwrap();
    assert!(matches!(machines.of_call(call(2)), MachineNow::Gone(_)));
    // One that may have been taken is not.
    *lab.world.refuses.lock().unwrap() = Some(Kind::Unavailable);
    let asked = machines.create_for(may(wish("web-3")), call(3)).await;
    assert!(asked.is_err());
    *lab.world.refuses.lock().unwrap() = Some(Kind::Frozen);
    machines.look(Timestamp::now()).await;
    machines.call_off(call(3)).await.unwrap();
    let now = machines.of_call(call(3));
    assert!(matches!(now, MachineNow::Coming(Some(_))), "{now:?}");
    // One that was taken is cancelled as a run, and not here.
    *lab.world.refuses.lock().unwrap() = None;
    machines
        .look(after(Timestamp::now(), Duration::from_secs(99)))
        .await;
    assert_eq!(lab.world.asked(), ["vm-create"]);
    machines.call_off(call(3)).await.unwrap();
    let now = machines.of_call(call(3));
    assert!(matches!(now, MachineNow::Coming(Some(_))), "{now:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_meets_a_machine_that_is_configured_hears_by_which_run() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let configured = || muster_protocol::api::CreateVms {
        configure: Some(Configure {
            scenario: "deploy".parse().unwrap(),
            params: serde_json::Map::new(),
        }),
        ..wish("web-1")
    };
    machines
        .create_for(may(configured()), call(1))
        .await
        .unwrap();
    lab.world.end_all(RunPhase::Succeeded);
    *lab.world.refuses.lock().unwrap() = Some(Kind::RateLimited);
    machines.look(Timestamp::now()).await;
    machines.look(Timestamp::now()).await;
    let MachineNow::Busy(_, Some(run)) = machines.of_call(call(1)) else {
        panic!("{:?}", machines.of_call(call(1)));
    };
    let said = machines.end_of("web-1", true).await.unwrap_err();
    let stop = VmAction::Stop { grace: None };
    let stopped = machines.does("web-1", stop).await.unwrap_err();
    assert_eq!(said.to_string(), stopped.to_string());
    let said = said.to_string().replace(&run.prefix(8), "RUN");
    insta::assert_snapshot!(
        said,
        @"web-1 is being configured by run RUN; wait for it, or cancel it: muster runs cancel RUN"
    );
    // Nobody has taken that run: there is nothing to cancel but this.
    machines.call_off(call(1)).await.unwrap();
    assert!(matches!(machines.of_call(call(1)), MachineNow::Up(_)));
    let last = machines.vm("web-1").configured.clone().unwrap();
    assert_eq!(last.state, Some(RunPhase::Cancelled));
}
