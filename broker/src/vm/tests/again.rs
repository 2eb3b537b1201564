//! Requests that come twice, perhaps to the next broker.

use muster_protocol::api::{CreateVms, VmAction};
use muster_protocol::ids::RunId;
use muster_protocol::problem::Kind;
use muster_protocol::run::RunPhase;
use muster_protocol::units::Timestamp;

use super::lab::{Lab, may, name, wish};
use crate::vm::records::Life;
use crate::vm::{Destroy, Machines, VmError};

/// What a line, or a key, stands for.
fn line(number: u8) -> Option<RunId> {
    Some(RunId::from_bytes([number; 16]))
}

fn exec(program: &str) -> VmAction {
    VmAction::Exec {
        argv: vec![program.to_owned()],
        timeout: None,
    }
}

fn times(lab: &Lab, scenario: &str) -> usize {
    let asked = lab.world.asked();
    asked.iter().filter(|name| *name == scenario).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_again_of_the_next_broker_is_done_once() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    machines.up(&lab.world, wish("web-1")).await;
    let vm = name("web-1");
    let first = machines
        .does_under(&vm, exec("date"), line(1))
        .await
        .unwrap();
    assert_eq!(first.run, line(1));
    // It goes on, by whoever is asked.
    let again = machines.does_under(&vm, exec("date"), line(1)).await;
    assert_eq!(again.unwrap().run, line(1));
    // It has ended, the machine did something else since, and the broker that
    // was to say so is dead.
    lab.world.end_all(RunPhase::Succeeded);
    machines.does("web-1", exec("id")).await.unwrap();
    lab.world.end_all(RunPhase::Succeeded);
    let machines = lab.open().await;
    machines.look(Timestamp::now()).await;
    let again = machines.does_under(&vm, exec("date"), line(1)).await;
    assert_eq!(again.unwrap().run, line(1));
    assert_eq!(times(&lab, "vm-exec"), 2);
    // What is said a second time by somebody is done a second time.
    machines
        .does_under(&vm, exec("date"), line(2))
        .await
        .unwrap();
    assert_eq!(times(&lab, "vm-exec"), 3);
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    // The name of a request is no other one's.
    for other in [exec("reboot"), VmAction::Reboot { grace: None }] {
        let error = machines.does_under(&vm, other, line(1)).await.unwrap_err();
        assert!(matches!(error, VmError::Used(_)), "{error}");
        assert_eq!(error.problem().kind, Kind::Conflict);
    }
    assert_eq!(lab.world.asked().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_it_is_done_once_when_it_is_asked_again() {
    let mut lab = Lab::start().await;
    let restore = || VmAction::Restore {
        snapshot: "clean".parse().unwrap(),
    };
    for at in 1.. {
        lab.world = std::sync::Arc::default();
        let bucket = format!("vms_{at}");
        let machines = lab.open_on(&bucket).await;
        machines.up(&lab.world, wish("web-1")).await;
        let vm = name("web-1");
        lab.world.trap.set(at);
        let work = async {
            machines.does_under(&vm, restore(), line(1)).await.unwrap();
            lab.world.end_all(RunPhase::Succeeded);
            machines.look(Timestamp::now()).await;
        };
        let killed = tokio::select! {
            () = work => false,
            () = lab.world.trap.reached.notified() => true,
        };
        lab.world.trap.set(0);
        drop(machines);
        let machines = lab.open_on(&bucket).await;
        let again = machines.does_under(&vm, restore(), line(1)).await.unwrap();
        assert_eq!(again.run, line(1), "killed at call {at}");
        for _ in 0..3 {
            machines.look(Timestamp::now()).await;
            lab.world.end_all(RunPhase::Succeeded);
        }
        let last = machines.does_under(&vm, restore(), line(1)).await.unwrap();
        assert_eq!(last.run, line(1), "killed at call {at}");
        assert_eq!(times(&lab, "vm-snapshot"), 1, "killed at call {at}");
        let life = &machines.vm("web-1").life;
        assert!(matches!(life, Life::Ready { .. }), "{at}: {life:?}");
        if !killed {
            assert!(at > 1, "it was killed nowhere");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroy_that_is_asked_again_spares_the_next_one_of_that_name() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let first = machines.up(&lab.world, wish("web-1")).await;
    let destroy = |under| {
        may(Destroy {
            under,
            ..Destroy::named(name("web-1"), true)
        })
    };
    let gone = machines.destroy(destroy(line(1))).await.unwrap();
    assert_eq!(gone.run, line(1));
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    let second = machines.up(&lab.world, wish("web-1")).await;
    assert_ne!(first.id, second.id);
    let machines = lab.open().await;
    let again = machines.destroy(destroy(line(1))).await.unwrap();
    assert_eq!(again.run, line(1));
    // Nor does the yes to one destroy the other, whenever it comes.
    let shown = may(Destroy {
        only: Some(first.id),
        under: line(2),
        ..Destroy::named(name("web-1"), true)
    });
    let error = machines.destroy(shown).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "web-1 is another machine by now; ask again"
    );
    assert_eq!(error.problem().kind, Kind::PlanGone);
    assert_eq!(times(&lab, "vm-destroy"), 1);
    assert_eq!(machines.list(false).len(), 1);
    machines.destroy(destroy(line(3))).await.unwrap();
    assert_eq!(times(&lab, "vm-destroy"), 2);
}

async fn create(
    machines: &Machines,
    wish: CreateVms,
    under: Option<RunId>,
) -> Result<Vec<String>, VmError> {
    let made = machines.create_once(may(wish), under).await?.machines;
    Ok(made.iter().map(|plan| plan.vm.name.to_string()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_told_that_it_is_unsure_is_answered_with_the_machine() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    *lab.world.refuses.lock().unwrap() = Some(Kind::Unavailable);
    let error = create(&machines, wish("web-1"), line(1)).await.unwrap_err();
    assert!(matches!(error, VmError::Unsure { .. }), "{error}");
    *lab.world.refuses.lock().unwrap() = None;
    // A name that follows from its place is not the next one of them.
    for text in ["web-1", "x-{n}"] {
        let under = if text == "web-1" { line(1) } else { line(2) };
        let made = create(&machines, wish(text), under).await.unwrap();
        let again = create(&machines, wish(text), under).await.unwrap();
        assert_eq!(made, again);
    }
    machines.look(Timestamp::now()).await;
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    let machines = lab.open().await;
    let again = create(&machines, wish("web-1"), line(1)).await.unwrap();
    assert_eq!((again, times(&lab, "vm-create")), (vec!["web-1".into()], 2));
    // The name of a request is no other one's.
    let other = CreateVms {
        cpus: 7,
        ..wish("web-1")
    };
    let error = create(&machines, other, line(1)).await.unwrap_err();
    assert!(matches!(error, VmError::Used(_)), "{error}");
    // Another request has its own name, and that machine is not its own.
    let error = create(&machines, wish("web-1"), line(3)).await.unwrap_err();
    assert!(error.to_string().contains("there is a machine web-1"));
    // What was refused for certain is asked for anew.
    *lab.world.refuses.lock().unwrap() = Some(Kind::RateLimited);
    let error = create(&machines, wish("web-2"), line(4)).await.unwrap_err();
    assert_eq!(error.problem().kind, Kind::RateLimited);
    *lab.world.refuses.lock().unwrap() = None;
    let made = create(&machines, wish("web-2"), line(4)).await.unwrap();
    assert_eq!((made, times(&lab, "vm-create")), (vec!["web-2".into()], 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_a_create_that_is_asked_again_makes_one() {
    let mut lab = Lab::start().await;
    for at in 1.. {
        lab.world = std::sync::Arc::default();
        let bucket = format!("vms_{at}");
        let machines = lab.open_on(&bucket).await;
        lab.world.trap.set(at);
        let killed = tokio::select! {
            _ = create(&machines, wish("web-{n}"), line(1)) => false,
            () = lab.world.trap.reached.notified() => true,
        };
        lab.world.trap.set(0);
        drop(machines);
        let machines = lab.open_on(&bucket).await;
        // Before and after the new broker has looked.
        for _ in 0..2 {
            create(&machines, wish("web-{n}"), line(1)).await.unwrap();
            for _ in 0..3 {
                machines.look(Timestamp::now()).await;
                lab.world.end_all(RunPhase::Succeeded);
            }
        }
        assert_eq!(times(&lab, "vm-create"), 1, "killed at call {at}");
        assert_eq!(machines.list(false).len(), 1, "killed at call {at}");
        if !killed {
            assert!(at > 1, "it was killed nowhere");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_while_it_was_written_down_is_made_anew() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    create(&machines, wish("web-1"), line(1)).await.unwrap();
    let first = machines.vm("web-1");
    *lab.world.cut.lock().unwrap() = first.run;
    let machines = lab.open().await;
    // Until it is ended nobody knows.
    let error = create(&machines, wish("web-1"), line(1)).await.unwrap_err();
    assert_eq!(error.problem().kind, Kind::Unavailable);
    lab.world.end_all(RunPhase::Failed);
    let made = create(&machines, wish("web-1"), line(1)).await.unwrap();
    assert_eq!(made, ["web-1"]);
    assert_ne!(machines.vm("web-1").id, first.id);
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    assert_eq!(machines.list(false).len(), 1);
}
