//! What the broker is told of a hypervisor.

use muster_protocol::vm::{Capacity, GuestState, MAX_GUESTS, Traffic, Virtualisation};

use super::*;

#[tokio::test]
async fn everything_is_said_at_once_or_why_it_is_not_known() {
    let bench = Bench::with_image().await;
    bench.does(create("web-01")).await;
    bench.memory.put(foreign("old\u{1b}[2J", id("other")));
    let mut watcher = Watcher::new(Arc::new(bench.memory.clone()), bench.machines.clone());
    let report = watcher.report().await;
    assert_eq!((report.sequence, report.problem.as_deref()), (1, None));
    assert_eq!(report.virtualisation, Some(Virtualisation::Memory));
    assert_eq!(report.images, [raw_image().sha256]);
    let Capacity {
        cpus,
        memory,
        disk,
        disk_free,
    } = report.capacity.expect("it is known");
    assert_eq!((cpus, memory, disk), (8, Size(64 * GIB), Size(100 * GIB)));
    assert!(disk_free < disk);
    let ids: Vec<VmId> = report.guests.iter().map(|guest| guest.id).collect();
    let mut sorted = vec![id("web-01"), id("other")];
    sorted.sort_unstable();
    assert_eq!(ids, sorted);
    let guest = |name: &str| {
        report
            .guests
            .iter()
            .find(|guest| guest.name == name)
            .cloned()
    };
    let own = guest("web-01").expect("ours");
    assert_eq!(
        (own.state, own.owner),
        (GuestState::Running, Owner::Muster { cluster: cluster() })
    );
    assert_eq!(guest("old\\x1b[2J").expect("theirs").owner, Owner::Foreign);

    // Since when it runs, and what it has carried: which is no news.
    assert!(own.since.is_some_and(|since| since <= report.at));
    assert_eq!(own.traffic, Some(Traffic::default()));
    let mut news = bench.memory.changes();
    news.borrow_and_update();
    let carried = Traffic {
        received: Size(7),
        sent: Size(9),
    };
    bench.memory.carry(own.id, carried);
    assert!(!news.has_changed().expect("it lives"));
    let again = watcher.report().await;
    let again = again.guests.iter().find(|guest| guest.id == own.id);
    let again = again.expect("it is there");
    assert_eq!((again.since, again.traffic), (own.since, Some(carried)));

    bench.memory.hang(true);
    let report = watcher.report().await;
    assert_eq!(
        (report.sequence, report.guests.len(), report.capacity),
        (3, 0, None)
    );
    let problem = report.problem.expect("a problem");
    assert!(
        problem.contains("libvirt did not answer `host`"),
        "{problem}"
    );
    bench.memory.hang(false);
    assert_eq!(watcher.report().await.guests.len(), 2);

    for n in 0..MAX_GUESTS {
        bench
            .memory
            .put(foreign(&format!("d{n}"), id(&format!("d{n}"))));
    }
    let report = watcher.report().await;
    assert_eq!(report.guests, []);
    assert_eq!(
        report.problem.as_deref(),
        Some("it has 1002 domains, and at most 1000 are looked after")
    );
}

#[tokio::test]
async fn what_is_done_here_is_news_and_what_is_only_asked_is_not() {
    let bench = Bench::with_image().await;
    let mut news = bench.machines.changes();
    news.borrow_and_update();
    bench.does(create("web-01")).await;
    assert!(news.has_changed().expect("it lives"));
    news.borrow_and_update();
    bench.value(VmCall::List).await;
    bench.would(destroy("web-01", true)).await;
    assert!(!news.has_changed().expect("it lives"));
    bench.refuses(VmCall::Start { id: id("none") }).await;
    assert!(
        news.has_changed().expect("it lives"),
        "part of it may be done"
    );
}
