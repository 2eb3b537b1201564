//! Room where a machine is already.

use muster_protocol::api::VmAction;
use muster_protocol::ids::Serial;
use muster_protocol::problem::Kind;
use muster_protocol::run::RunPhase;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::Size;
use proptest::prelude::*;

use super::lab::{GIB, Lab, node, report, wish};
use crate::vm::placement::lacks;
use crate::vm::records::Takes;

fn takes(cpus: u64, memory: u64, disk: u64) -> Takes {
    Takes {
        cpus,
        memory: Size(memory * GIB),
        disk: Size(disk * GIB),
    }
}

fn resize(cpus: Option<u16>, memory: Option<u64>) -> VmAction {
    VmAction::Resize {
        cpus,
        memory: memory.map(|gib| Size(gib * GIB)),
        disk: None,
    }
}

#[test]
fn what_does_not_grow_is_never_too_much() {
    let room = takes(8, 16, 100);
    let old = takes(2, 2, 2);
    // Others have more than there is.
    let given = takes(20, 30, 200);
    assert_eq!(lacks(room, given, old, old), None);
    assert_eq!(lacks(room, given, old, takes(1, 1, 2)), None);
    let said = lacks(room, takes(4, 15, 50), old, takes(2, 4, 2)).unwrap();
    assert_eq!(
        said,
        "3GiB of 16GiB memory are free for it, 4GiB are needed"
    );
    let said = lacks(room, takes(8, 2, 2), old, takes(4, 2, 2)).unwrap();
    assert_eq!(said, "2 of 8 processors are free for it, 4 are needed");
    let said = lacks(room, takes(2, 2, 100), old, takes(2, 2, 3)).unwrap();
    assert!(said.contains("of 100GiB disk"), "{said}");
}

proptest! {
    #[test]
    fn what_is_given_never_exceeds_the_room_by_growing(
        room in 0u64..50, others in 0u64..50, old in 0u64..50, new in 0u64..50,
    ) {
        let all = |n: u64| takes(n, n, n);
        let said = lacks(all(room), all(others + old), all(old), all(new));
        prop_assert_eq!(said.is_none(), new <= old || others + new <= room);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_does_not_grow_beyond_its_hypervisor() {
    let lab = Lab::with(vec![node(1, "hv-1", &[])]).await;
    let machines = lab.open().await;
    machines.up(&lab.world, wish("web-01")).await;
    machines.up(&lab.world, wish("web-02")).await;
    // 16 GiB, of which each has two.
    let error = machines.does("web-01", resize(None, Some(15))).await;
    let problem = error.unwrap_err().problem();
    assert_eq!(problem.kind, Kind::NoMatch);
    assert_eq!(
        problem.title,
        "hv-1, where web-01 is, has no room for it: 14GiB of 16GiB memory are free for it, 15GiB are needed"
    );
    assert_eq!(machines.vm("web-01").runs, 1, "nothing was asked for");
    // While one is resized it counts as the larger, in both directions.
    let bigger = machines.does("web-01", resize(None, Some(10))).await;
    let error = machines.does("web-02", resize(None, Some(8))).await;
    assert!(error.unwrap_err().to_string().contains("6GiB of 16GiB"));
    lab.world
        .end(bigger.unwrap().run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    let smaller = machines.does("web-01", resize(None, Some(2))).await;
    let error = machines.does("web-02", resize(None, Some(8))).await;
    assert!(error.unwrap_err().to_string().contains("6GiB of 16GiB"));
    lab.world
        .end(smaller.unwrap().run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    machines
        .does("web-02", resize(None, Some(8)))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_grow_at_once_one_does() {
    let lab = Lab::with(vec![node(1, "hv-1", &[])]).await;
    let machines = lab.open().await;
    machines.up(&lab.world, wish("web-01")).await;
    machines.up(&lab.world, wish("web-02")).await;
    let (one, two) = tokio::join!(
        machines.does("web-01", resize(None, Some(12))),
        machines.does("web-02", resize(None, Some(12))),
    );
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_comes_back_only_where_there_is_room() {
    let lab = Lab::with(vec![node(1, "hv-1", &[])]).await;
    let machines = lab.open().await;
    machines.up(&lab.world, wish("web-01")).await;
    let ended = machines.end_of("web-01", false).await.unwrap();
    lab.world.end(ended.run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    let mut large = wish("web-02");
    large.memory = Size(15 * GIB);
    machines.up(&lab.world, large).await;
    let error = machines.does("web-01", VmAction::Undelete).await;
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("1GiB of 16GiB memory are free for it"),
        "{text}"
    );
    let ended = machines.end_of("web-02", true).await.unwrap();
    lab.world.end(ended.run.unwrap(), RunPhase::Succeeded, "");
    machines.look(Timestamp::now()).await;
    machines.does("web-01", VmAction::Undelete).await.unwrap();
    // One that has said nothing is not believed to have room.
    lab.world.end_all(RunPhase::Succeeded);
    machines.look(Timestamp::now()).await;
    let mut silent = report(Vec::new());
    silent.capacity = None;
    lab.observed.hear_at(Serial(1), silent, Timestamp::now());
    let error = machines.does("web-01", resize(Some(4), None)).await;
    assert!(error.unwrap_err().to_string().contains("has not said"));
}
