//! Runs that are not taken now, or of which nobody knows whether they were.

use std::sync::atomic::Ordering;
use std::time::Duration;

use muster_protocol::api::VmStatus;
use muster_protocol::problem::Kind;
use muster_protocol::run::RunPhase;
use muster_protocol::units::{Timestamp, after};

use super::lab::{Lab, cluster, name, wish};
use crate::refusal::Refusal;
use crate::vm::only::Wanted as _;
use crate::vm::reconcile::nobodys;
use crate::vm::records::Life;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_now_is_asked_for_ever_more_rarely() {
    let mut lab = Lab::start().await;
    lab.keep_for = Duration::from_secs(1);
    let machines = lab.open().await;
    machines.up(&lab.world, wish("web-01")).await;
    let ended = machines.end_of("web-01", false).await.unwrap();
    lab.world.end(ended.run.unwrap(), RunPhase::Succeeded, "");
    let now = Timestamp::now();
    machines.look(now).await;
    // Its time is over, in a freeze.
    *lab.world.refuses.lock().unwrap() = Some(Kind::Frozen);
    let begin = after(now, Duration::from_secs(10));
    let mut at = begin;
    while at < after(begin, Duration::from_secs(600)) {
        machines.look(at).await;
        at = after(at, Duration::from_millis(200));
    }
    // After 1, 2, 4, ... 32 seconds, then once a minute: not three thousand
    // times.
    let times = lab.world.refused.load(Ordering::SeqCst);
    assert!((10..=18).contains(&times), "{times}");
    assert!(
        !machines.look(at).await,
        "there is nothing to look at often"
    );
    // The next look after its end asks at once.
    *lab.world.refuses.lock().unwrap() = None;
    machines.look(at).await;
    assert_eq!(lab.world.asked().len(), 2);
    machines.0.refusals.forget();
    machines.look(at).await;
    assert_eq!(lab.world.asked().len(), 3);
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(at).await;
    assert!(matches!(machines.vm("web-01").life, Life::Gone { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_freeze_wakes_whoever_looks() {
    let mut lab = Lab::start().await;
    lab.keep_for = Duration::ZERO;
    let machines = lab.open().await;
    machines.up(&lab.world, wish("web-01")).await;
    let ended = machines.end_of("web-01", false).await.unwrap();
    lab.world.end(ended.run.unwrap(), RunPhase::Succeeded, "");
    *lab.world.refuses.lock().unwrap() = Some(Kind::Frozen);
    let now = after(Timestamp::now(), Duration::from_secs(1));
    machines.look(now).await;
    machines.look(now).await;
    // Far in the future it would be asked for again.
    let (run, late) = (machines.vm("web-01").run.unwrap(), 9_999);
    machines
        .0
        .refusals
        .refused(run, after(now, Duration::from_secs(late)), Refusal::Later);
    let cancel = tokio_util::sync::CancellationToken::new();
    let keeper = tokio::spawn(machines.clone().keep(cancel.clone()));
    *lab.world.refuses.lock().unwrap() = None;
    crate::testing::wait_for("it is asked for", async || {
        lab.world.eased.send_replace(());
        (lab.world.asked().len() == 3).then_some(())
    })
    .await;
    cancel.cancel();
    keeper.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_heard_is_said_to_be_unsure_and_goes_on() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    *lab.world.refuses.lock().unwrap() = Some(Kind::Unavailable);
    let problem = machines
        .make(wish("web-{1..2}"))
        .await
        .unwrap_err()
        .problem();
    assert_eq!(problem.kind, Kind::Unavailable);
    assert_eq!(
        problem.title,
        "it cannot be said now whether web-1, web-2 are made: nothing is run now"
    );
    assert!(problem.hint.unwrap().contains("muster vm show web-1"));
    let view = machines.show(&name("web-1")).unwrap();
    assert_eq!(view.status, VmStatus::Creating);
    // And so they are made, once.
    *lab.world.refuses.lock().unwrap() = None;
    machines.look(Timestamp::now()).await;
    assert_eq!(lab.world.asked(), ["vm-create", "vm-create"]);
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    assert!(matches!(machines.vm("web-2").life, Life::Ready { .. }));
    // The same of one that is to be destroyed.
    *lab.world.refuses.lock().unwrap() = Some(Kind::Unavailable);
    let problem = machines.end_of("web-2", true).await.unwrap_err().problem();
    assert!(problem.title.contains("web-2 is destroyed"), "{problem:?}");
    let view = machines.show(&name("web-2")).unwrap();
    assert_eq!(view.status, VmStatus::Destroying);
    *lab.world.refuses.lock().unwrap() = None;
    machines.look(Timestamp::now()).await;
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    assert!(matches!(machines.vm("web-2").life, Life::Gone { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_record_wants_is_wanted() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let run = machines.make(wish("web-01")).await.unwrap().machines[0]
        .vm
        .run
        .unwrap();
    let records = &machines.parts().records;
    let scenario = |text: &str| text.parse().unwrap();
    assert!(records.wants(run, &scenario("vm-create")));
    assert!(!records.wants(run, &scenario("vm-destroy")));
    assert!(!records.wants(
        muster_protocol::ids::RunId::random(),
        &scenario("vm-create")
    ));
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    assert!(!records.wants(run, &scenario("vm-create")), "it was made");
    let ends = machines.end_of("web-01", true).await.unwrap().run.unwrap();
    assert!(records.wants(ends, &scenario("vm-destroy")));
    assert!(!records.wants(run, &scenario("vm-destroy")));
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_nobody_are_swept_and_no_others() {
    let lab = Lab::start().await;
    let machines = lab.open().await;
    let up = machines.up(&lab.world, wish("web-01")).await;
    let making = machines.make(wish("web-02")).await.unwrap();
    let gone = machines.up(&lab.world, wish("web-03")).await;
    machines.end_of("web-03", true).await.unwrap();
    lab.world
        .end(machines.vm("web-03").run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    let nobody = muster_protocol::vm::VmId::derive(&cluster(), &name("never"), 1);
    let records = &machines.parts().records;
    let all = [up.id, making.machines[0].vm.id, gone.id, nobody];
    assert_eq!(nobodys(&all, records), [gone.id, nobody]);
    // One that was written after everybody had given up.
    for late in [gone.id, nobody] {
        let mut addresses = lab.world.addresses.lock().unwrap();
        addresses.insert(late, ["public".to_owned()].into());
    }
    machines.sweep().await;
    let left: Vec<_> = lab
        .world
        .addresses
        .lock()
        .unwrap()
        .keys()
        .copied()
        .collect();
    let mut live = vec![up.id, making.machines[0].vm.id];
    live.sort();
    assert_eq!(left, live);
}
