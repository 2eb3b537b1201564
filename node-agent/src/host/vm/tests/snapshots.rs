//! Snapshots: the way back to one when it is cut, and the list of them in a
//! disk that is kept.

use futures_util::FutureExt as _;

use super::*;

fn snapshot(name: &str) -> VmCall {
    VmCall::Snapshot {
        id: id("web-01"),
        snapshot: name.parse().expect("a name"),
    }
}

fn restore(name: &str) -> VmCall {
    VmCall::Restore {
        id: id("web-01"),
        snapshot: name.parse().expect("a name"),
    }
}

fn resize() -> VmCall {
    VmCall::Resize {
        id: id("web-01"),
        cpus: None,
        memory: Some(Size(4 * GIB)),
        disk: None,
    }
}

/// One with a snapshot, which was changed since.
async fn bench() -> Bench {
    let bench = Bench::with_image().await;
    bench.does(create("web-01")).await;
    bench.does(snapshot("before")).await;
    bench.does(resize()).await;
    bench
}

/// As it was before anybody set it back, and nothing is left to do.
fn assert_whole(bench: &Bench, state: GuestState, when: &str) {
    let all = bench.memory.domains();
    let domain = all.first().expect("it is there");
    assert_eq!(domain.state, state, "{when}");
    assert_eq!(domain.memory, Size(4 * GIB), "{when}");
    let seed = format!("muster-{}-seed.img", id("web-01"));
    assert_eq!(bench.files(), [seed], "{when}");
}

#[tokio::test]
async fn a_way_back_that_nobody_hears_the_end_of_is_put_right() {
    let bench = bench().await;
    bench.memory.cut_restore(1);
    insta::assert_snapshot!(bench.refuses(restore("before")).await, @"libvirt did not answer `restore` within 5m; see whether libvirtd hangs; whether its disk is as in the snapshot cannot be said. The rest of it is as it was. Restore it again: that does no harm");
    assert_whole(&bench, GuestState::Running, "it ran");
    assert_eq!(bench.does(restore("before")).await, "changed: as in before");
    assert_whole(&bench, GuestState::Running, "again");

    // One that did not run does not run then, either.
    let stop = VmCall::Stop {
        id: id("web-01"),
        grace: muster_protocol::units::Span::from_secs(0),
    };
    bench.does(stop).await;
    bench.memory.cut_restore(1);
    bench.refuses(restore("before")).await;
    assert_whole(&bench, GuestState::Stopped, "it did not run");
}

#[tokio::test]
async fn while_libvirt_is_at_work_it_is_said_and_put_right_later() {
    let bench = bench().await;
    bench.memory.cut_restore(6);
    let said = bench.refuses(restore("before")).await;
    assert!(
        said.contains("is not as it was yet: libvirt still works on the machine"),
        "{said}"
    );
    assert_eq!(bench.state(id("web-01")), Some(GuestState::Paused));
    // Nothing else is done with it before that.
    for _ in 0..2 {
        let said = bench.refuses(resize()).await;
        assert!(said.starts_with("libvirt still works"), "{said}");
    }
    let start = VmCall::Start { id: id("web-01") };
    assert_eq!(bench.does(start).await, "unchanged");
    assert_whole(&bench, GuestState::Running, "later");
}

#[tokio::test]
async fn whoever_is_killed_in_a_way_back_leaves_it_to_the_next_one() {
    for before in 0..8 {
        for after in [false, true] {
            let when = format!("killed in call {before}, after: {after}");
            let bench = bench().await;
            bench.memory.cut_restore(0);
            let machines = bench.stuck(before, after);
            let call = restore("before");
            let ended = machines.perform(&call, Mode::Apply, &Silence);
            let mut ended = Box::pin(ended);
            // It goes on by itself until it is stuck.
            for _ in 0..20 {
                if (&mut ended).now_or_never().is_some() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(ended);
            // The agent starts again, and somebody asks for something.
            bench.does(resize()).await;
            assert_whole(&bench, GuestState::Running, &when);
        }
    }
}

#[tokio::test]
async fn what_was_cut_is_put_right_behind_what_cannot_be_read() {
    let bench = bench().await;
    bench.memory.cut_restore(3);
    bench.refuses(restore("before")).await;
    assert_eq!(bench.state(id("web-01")), Some(GuestState::Paused));
    // Notes that are none, before and behind it in any order of the directory.
    let others: Vec<_> = (0..20).map(|n| id(&format!("web-{}", n + 2))).collect();
    for (n, other) in others.iter().enumerate() {
        let path = bench.pool(&format!("muster-{other}.json"));
        match n % 3 {
            0 => std::fs::write(path, "{").expect("written"),
            1 => std::fs::create_dir(path).expect("made"),
            _ => std::os::unix::fs::symlink("/nowhere", path).expect("linked"),
        }
    }
    let mut said = std::collections::HashMap::new();
    bench.machines.mend_all(&mut said).await.expect("looked at");
    let first = said.clone();
    assert_eq!(said.len(), others.len());
    let all = bench.memory.domains();
    assert_eq!(all[0].state, GuestState::Running);
    assert_eq!(all[0].memory, Size(4 * GIB));
    assert!(
        !bench
            .pool(&format!("muster-{}.json", id("web-01")))
            .exists()
    );

    // The same is said once; of what is gone nothing is said any more.
    for other in &others[1..] {
        let path = bench.pool(&format!("muster-{other}.json"));
        let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
    }
    bench.machines.mend_all(&mut said).await.expect("looked at");
    assert_eq!(said.len(), 1);
    assert_eq!(said.get(&others[0]), first.get(&others[0]));
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_while_the_agent_runs_is_put_right_by_itself() {
    let bench = bench().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let week = Duration::from_secs(7 * 86_400);
    let tidying = tokio::spawn(bench.machines.clone().tidy(week, stop.clone()));
    // It has looked once when it waits.
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.memory.cut_restore(6);
    bench.refuses(restore("before")).await;
    assert_eq!(bench.state(id("web-01")), Some(GuestState::Paused));
    let mended = async {
        while bench.state(id("web-01")) != Some(GuestState::Running) {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    };
    let within = Duration::from_secs(600);
    tokio::time::timeout(within, mended).await.expect("mended");
    stop.cancel();
    tidying.await.expect("it ends");
}

#[tokio::test]
async fn a_disk_that_is_kept_keeps_its_snapshots() {
    let bench = bench().await;
    bench.does(snapshot("after")).await;
    bench.does(destroy("web-01", false)).await;
    // Who is killed in the middle of it does it again.
    bench.does(destroy("web-01", false)).await;
    let mut larger = machine("web-01");
    larger.memory = Size(4 * GIB);
    let back = VmCall::Create {
        machine: Box::new(larger),
    };
    bench.does(back).await;
    assert_whole(&bench, GuestState::Running, "undeleted");
    let info = bench.value(VmCall::Info { id: id("web-01") }).await;
    assert_eq!(info["snapshots"], serde_json::json!(["before", "after"]));
    assert_eq!(bench.does(restore("before")).await, "changed: as in before");
}
