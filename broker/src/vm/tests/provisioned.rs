//! Machines that a scenario configures.

use muster_protocol::api::{Configure, CreateVms, VmAction, VmStatus};
use muster_protocol::problem::Kind;
use muster_protocol::run::RunPhase;
use muster_protocol::units::Timestamp;

use super::lab::{Lab, guest, name, report, wish};
use crate::vm::records::Life;

fn configure(scenario: &str, version: &str) -> Configure {
    serde_json::from_value(serde_json::json!({
        "scenario": scenario, "params": { "version": version },
    }))
    .unwrap()
}

fn configured(name: &str) -> CreateVms {
    CreateVms {
        configure: Some(configure("deploy", "1.4.2")),
        ..wish(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_up_is_configured_once_and_again_when_that_is_asked_for() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let vm = machines.up(&lab.world, configured("web-01")).await;
    let run = vm.run.unwrap();
    // Whoever takes over asks for the same run.
    let machines = lab.open().await;
    machines.look(Timestamp::now()).await;
    let machines = lab.open().await;
    machines.look(Timestamp::now()).await;
    assert_eq!(lab.world.asked(), ["vm-create", "deploy"]);
    {
        let runs = lab.world.runs.lock().unwrap();
        let (id, request, _) = &runs[1];
        assert_eq!(*id, run);
        assert_eq!(request.predicate.as_deref(), Some("name=web-01"));
        assert_eq!(request.params["version"], "1.4.2");
    }
    let there = report(vec![guest(&machines.vm("web-01"))]);
    lab.observed
        .hear_at(vm.place.serial, there, Timestamp::now());
    let view = machines.show(&name("web-01")).unwrap();
    assert_eq!(view.status, VmStatus::Running);
    let open = view.configured.unwrap();
    assert_eq!((open.run, open.state), (run, None));
    // It fails: the machine stays, and says so.
    lab.world.end(run, RunPhase::Failed, "web-01: no package");
    machines.look(Timestamp::now()).await;
    let vm = machines.vm("web-01");
    assert!(matches!(vm.life, Life::Ready { .. }));
    let failed = vm.configured.clone().unwrap();
    assert_eq!(failed.state, Some(RunPhase::Failed));
    assert_eq!(failed.why.as_deref(), Some("web-01: no package"));
    machines.look(Timestamp::now()).await;
    assert_eq!(
        lab.world.asked().len(),
        2,
        "nothing tries it again by itself"
    );
    // Again, and by another one, which is recorded.
    let again = VmAction::Provision { configure: None };
    let changed = machines.does("web-01", again.clone()).await.unwrap();
    assert_ne!(changed.run, Some(run));
    lab.world.end(changed.run.unwrap(), RunPhase::Succeeded, "");
    let other = VmAction::Provision {
        configure: Some(configure("deploy", "2.0")),
    };
    let changed = machines.does("web-01", other).await.unwrap();
    lab.world.end(changed.run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    let vm = machines.vm("web-01");
    assert_eq!(vm.wish.configure, Some(configure("deploy", "2.0")));
    let last = vm.configured.clone().unwrap();
    assert_eq!(last.state, Some(RunPhase::Succeeded));
    assert!(last.why.is_none() && Some(last.run) == changed.run);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_comes_back_is_not_configured_once_more() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    machines.up(&lab.world, configured("web-01")).await;
    machines.look(Timestamp::now()).await;
    for end in [true, false] {
        lab.world.end_all(RunPhase::Succeeded);
        machines.look(Timestamp::now()).await;
        let ended = if end {
            machines.end_of("web-01", false).await
        } else {
            machines.does("web-01", VmAction::Undelete).await
        };
        ended.unwrap();
    }
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    assert!(matches!(machines.vm("web-01").life, Life::Ready { .. }));
    let asked = lab.world.asked();
    assert_eq!(asked, ["vm-create", "deploy", "vm-destroy", "vm-undelete"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_configured_is_refused_before_anything_is_made() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let mut unknown = configured("web-01");
    unknown.configure = Some(configure("nothing", "1"));
    let problem = machines.make(unknown).await.unwrap_err().problem();
    assert_eq!(problem.kind, Kind::NotFound);
    let mut theirs = configured("web-01");
    theirs.agent = false;
    let problem = machines.make(theirs).await.unwrap_err().problem();
    assert!(problem.title.starts_with("without an agent"), "{problem:?}");
    assert!(machines.list(false).is_empty() && lab.world.is_clean());
    let mut theirs = wish("acme-db");
    (theirs.agent, theirs.roles) = (false, Vec::new());
    machines.up(&lab.world, theirs).await;
    machines.up(&lab.world, wish("web-01")).await;
    let provision = |configure| VmAction::Provision { configure };
    for (machine, what, kind, says) in [
        (
            "acme-db",
            Some(configure("deploy", "1")),
            Kind::Conflict,
            "acme-db has no agent",
        ),
        (
            "web-01",
            None,
            Kind::InvalidRequest,
            "nothing is recorded that configures web-01",
        ),
        (
            "web-01",
            Some(configure("nothing", "1")),
            Kind::NotFound,
            "no scenario nothing",
        ),
    ] {
        let problem = machines.does(machine, provision(what)).await;
        let problem = problem.unwrap_err().problem();
        assert_eq!(problem.kind, kind);
        assert!(problem.title.contains(says), "{problem:?}");
    }
    // Refused by whoever runs things: what was recorded stays.
    *lab.world.refuses.lock().unwrap() = Some(Kind::Denied);
    let what = provision(Some(configure("deploy", "3")));
    assert!(machines.does("web-01", what).await.is_err());
    let vm = machines.vm("web-01");
    assert!(vm.wish.configure.is_none() && vm.configured.is_none());
    assert!(matches!(vm.life, Life::Ready { .. }));
    // Of a new one that is refused it is said, and the machine is there.
    *lab.world.refuses.lock().unwrap() = None;
    machines.up(&lab.world, configured("web-02")).await;
    *lab.world.refuses.lock().unwrap() = Some(Kind::Denied);
    machines.look(Timestamp::now()).await;
    let vm = machines.vm("web-02");
    assert!(matches!(vm.life, Life::Ready { .. }));
    let why = vm.configured.clone().unwrap().why.unwrap();
    assert_eq!(why, "nothing is run now");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_to_configure_a_machine_says_why_not() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    machines.up(&lab.world, configured("web-01")).await;
    *lab.world.refuses.lock().unwrap() = Some(Kind::Denied);
    machines.look(Timestamp::now()).await;
    let view = machines.show(&name("web-01")).unwrap();
    let last = view.configured.unwrap();
    assert_eq!(last.state, Some(RunPhase::Failed));
    let refused = last.refused.unwrap();
    assert_eq!(
        (refused.kind, refused.title.as_str()),
        (Kind::Denied, "nothing is run now")
    );
    assert_eq!(last.why.as_deref(), Some("nothing is run now"));
    // The next time nothing is left of that.
    *lab.world.refuses.lock().unwrap() = None;
    let again = VmAction::Provision { configure: None };
    machines.does("web-01", again).await.unwrap();
    let open = machines.vm("web-01").configured.clone().unwrap();
    assert_eq!((open.state, open.refused), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_was_to_be_given_is_forgotten_once_nobody_makes_it() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let secret = CreateVms {
        user_data: Some("#cloud-config\npassword: hunter2\n".into()),
        ..wish("web-01")
    };
    let made = machines.make(secret).await.unwrap();
    assert!(machines.vm("web-01").wish.user_data.is_some());
    let run = made.machines[0].vm.run.unwrap();
    lab.world
        .end(run, RunPhase::UndoFailed, "hv-1 was not heard");
    machines.look(Timestamp::now()).await;
    let vm = machines.vm("web-01");
    assert!(matches!(vm.life, Life::Doubtful { .. }), "{:?}", vm.life);
    assert_eq!(vm.wish.user_data, None);
}
