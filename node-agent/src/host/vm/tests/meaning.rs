//! What each call comes to when nothing goes wrong, and what is refused.

use muster_protocol::units::Span;

use super::*;

fn grace(ms: u64) -> Span {
    Span::from_millis(ms)
}

#[tokio::test]
async fn a_machine_is_made_once_and_goes_whole() {
    let bench = Bench::with_image().await;
    insta::assert_snapshot!(bench.would(create("web-01")).await, @"would: make it: 2 CPU, 2GiB memory, 10GiB disk of debian-12");
    assert_gone(&bench, "a dry run");
    insta::assert_snapshot!(bench.does(create("web-01")).await, @"changed: made and started: 2 CPU, 2GiB memory, 10GiB disk of debian-12");
    assert_up(&bench, "web-01", "made");
    assert_eq!(bench.does(create("web-01")).await, "unchanged");
    assert_eq!(bench.would(create("web-01")).await, "unchanged");
    assert_eq!(bench.shop.seeds.load(Ordering::Relaxed), 1);
    // Somebody stopped it by hand.
    bench
        .does(VmCall::Stop {
            id: id("web-01"),
            grace: grace(50),
        })
        .await;
    assert_eq!(bench.would(create("web-01")).await, "would: start it");
    assert_eq!(
        bench.does(create("web-01")).await,
        "changed: stopped → started"
    );
    // Its invite goes once.
    let unseed = VmCall::Unseed { id: id("web-01") };
    assert_eq!(
        bench.would(unseed.clone()).await,
        "would: take the invite out of its seed"
    );
    assert_eq!(
        bench.does(unseed.clone()).await,
        "changed: the invite is out of its seed"
    );
    assert_eq!(bench.does(unseed).await, "unchanged");
    std::fs::write(
        bench
            .dir
            .path()
            .join(format!("console/muster-{}.log", id("web-01"))),
        "x",
    )
    .expect("written");
    assert_eq!(
        bench.would(destroy("web-01", true)).await,
        "would: destroy it with its disk"
    );
    assert_eq!(
        bench.does(destroy("web-01", true)).await,
        "changed: running → gone"
    );
    assert_gone(&bench, "destroyed");
    assert_eq!(bench.does(destroy("web-01", true)).await, "unchanged");
    assert_eq!(bench.would(destroy("web-01", false)).await, "unchanged");
}

#[tokio::test]
async fn a_disk_can_be_kept_and_taken_up_again() {
    let bench = Bench::with_image().await;
    bench.does(create("web-01")).await;
    assert_eq!(
        bench.does(destroy("web-01", false)).await,
        "changed: running → gone, its disk is kept"
    );
    assert_eq!(bench.memory.domains(), []);
    let id_of = id("web-01");
    assert_eq!(
        bench.files(),
        [
            format!("muster-{id_of}-seed.img"),
            format!("muster-{id_of}.json")
        ]
    );
    assert_eq!(bench.does(destroy("web-01", false)).await, "unchanged");
    bench.memory.take_calls();
    insta::assert_snapshot!(bench.does(create("web-01")).await, @"changed: made of its old disk and started: 2 CPU, 2GiB memory, 10GiB disk of debian-12");
    assert!(!bench.memory.take_calls().contains(&"create volume"));
    assert_up(&bench, "web-01", "undeleted");
    // It is somebody already, and needs no other invite.
    assert_eq!(bench.shop.seeds.load(Ordering::Relaxed), 1);
    let unseed = VmCall::Unseed { id: id("web-01") };
    assert_eq!(bench.does(unseed).await, "unchanged");
    bench.does(destroy("web-01", false)).await;
    assert_eq!(
        bench.does(destroy("web-01", true)).await,
        "changed: what was left of it is gone"
    );
    assert_gone(&bench, "purged later");
}

#[tokio::test]
async fn what_is_somebody_elses_is_never_touched() {
    let bench = Bench::with_image().await;
    let other = foreign("web-01", id("other"));
    bench.memory.put(other.clone());
    let said = bench.refuses(create("web-01")).await;
    assert_eq!(
        said,
        format!(
            "the name `web-01` is taken by a domain that muster does not own ({}); it is not touched",
            id("other")
        )
    );
    // The UUID itself, and that of another cluster.
    let mine = foreign("db", id("db"));
    bench.memory.put(mine.clone());
    let mut theirs = foreign("lb", id("lb"));
    theirs.owner = Owner::Muster {
        cluster: ClusterId::from_bytes([8; 16]),
    };
    theirs.machine = Some(Box::new(machine("lb")));
    bench.memory.put(theirs.clone());
    for name in ["db", "lb"] {
        let id = id(name);
        for call in [
            create(name),
            destroy(name, true),
            destroy(name, false),
            VmCall::Start { id },
            VmCall::Stop {
                id,
                grace: grace(10),
            },
            VmCall::Reboot {
                id,
                grace: grace(10),
            },
            VmCall::Resize {
                id,
                cpus: Some(4),
                memory: None,
                disk: None,
            },
            VmCall::Snapshot {
                id,
                snapshot: "a".parse().expect("a name"),
            },
            VmCall::Restore {
                id,
                snapshot: "a".parse().expect("a name"),
            },
            VmCall::Unseed { id },
            VmCall::Info { id },
            VmCall::GuestPing { id },
            VmCall::GuestExec {
                id,
                argv: vec!["/bin/true".into()],
                timeout: grace(10),
            },
        ] {
            let said = bench.refuses(call).await;
            assert!(
                said.contains("is not this cluster's; it is not touched"),
                "{said}"
            );
        }
    }
    let mut all = bench.memory.domains();
    all.sort_by_key(|domain| domain.name.clone());
    assert_eq!(all, [mine, theirs, other]);
    assert_eq!(bench.memory.volumes(), Vec::<String>::new());
    assert_eq!(bench.files(), Vec::<String>::new());
    // They are seen all the same.
    let list = bench.value(VmCall::List).await;
    let owners: Vec<&str> = list
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["owner"].as_str())
        .collect();
    assert_eq!(owners.len(), 3);
    assert!(owners.iter().all(|owner| *owner != "muster"), "{owners:?}");
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_is_done() {
    let bench = Bench::with_image().await;
    bench.does(create("web-01")).await;
    let change = |change: fn(&mut Machine)| {
        let mut machine = machine("web-02");
        change(&mut machine);
        VmCall::Create {
            machine: Box::new(machine),
        }
    };
    let mut said = String::new();
    for call in [
        change(|m| m.memory = Size(0)),
        change(|m| m.memory = Size(1 << 60)),
        change(|m| m.cpus = 0),
        change(|m| m.disk.size = Size(1 << 60)),
        change(|m| m.disk.pool = "fast".parse().expect("a name")),
        change(|m| m.image.sha256 = Sha256::of(b"another")),
        change(|m| m.name = "web-01".parse().expect("a name")),
        change(|m| {
            *m = machine("web-01");
            m.cpus = 4;
        }),
    ] {
        said.push_str(&bench.refuses(call).await);
        said.push('\n');
    }
    insta::assert_snapshot!(said.replace(&id("web-01").to_string(), "ID"), @"
    0B of memory: a machine has 16MiB to 4TiB, in whole MiB
    1048576TiB of memory: a machine has 16MiB to 4TiB, in whole MiB
    0 processors: a machine has 1 to 256
    a disk of 1048576TiB: at most 64TiB, in whole MiB
    this hypervisor keeps disks in the pool `default`, and not in `fast`; see `pool` below [vm] in the agent's file
    the image `debian-12` is not on this hypervisor; vm::image fetches it
    the name `web-01` is taken by another machine of muster's (ID); it is not touched
    `web-01` is there already and is another one: processors 2 and not 4; change it with vm::resize, or destroy it first
    ");
    assert_up(&bench, "web-01", "nothing else");
    let none = VmCall::Start { id: id("none") };
    assert!(
        bench
            .refuses(none)
            .await
            .starts_with("there is no machine ")
    );
}

#[tokio::test]
async fn it_is_stopped_gently_and_then_by_force() {
    let bench = Bench::with_image().await;
    bench.does(create("web-01")).await;
    let stop = VmCall::Stop {
        id: id("web-01"),
        grace: grace(200),
    };
    assert_eq!(bench.would(stop.clone()).await, "would: running → stopped");
    assert_eq!(bench.does(stop.clone()).await, "changed: running → stopped");
    assert_eq!(bench.does(stop.clone()).await, "unchanged");
    let start = VmCall::Start { id: id("web-01") };
    assert_eq!(bench.would(start.clone()).await, "would: stopped → started");
    assert_eq!(
        bench.does(start.clone()).await,
        "changed: stopped → started"
    );
    assert_eq!(bench.does(start).await, "unchanged");
    bench.memory.obey(false);
    assert_eq!(
        bench.does(stop).await,
        "changed: running → stopped (by force, after 200ms)"
    );
    assert_eq!(bench.state(id("web-01")), Some(GuestState::Stopped));
    let reboot = VmCall::Reboot {
        id: id("web-01"),
        grace: grace(50),
    };
    assert_eq!(bench.does(reboot.clone()).await, "changed: started anew");
    assert_eq!(
        bench.does(reboot).await,
        "changed: started anew (by force, after 50ms)"
    );
    assert_eq!(bench.state(id("web-01")), Some(GuestState::Running));
}

#[tokio::test]
async fn a_size_changes_once_and_a_disk_only_grows() {
    let bench = Bench::with_image().await;
    bench.does(create("web-01")).await;
    let resize = |cpus, memory: Option<u64>, disk: Option<u64>| VmCall::Resize {
        id: id("web-01"),
        cpus,
        memory: memory.map(|gib| Size(gib * GIB)),
        disk: disk.map(|gib| Size(gib * GIB)),
    };
    let all = resize(Some(4), Some(8), Some(20));
    let words = "10GiB → 20GiB disk, 2 → 4 CPU, 2GiB → 8GiB memory, from its next start";
    assert_eq!(bench.would(all.clone()).await, format!("would: {words}"));
    let done = bench.perform(all.clone(), Mode::Apply).await.expect("done");
    assert_eq!(shown(&done), format!("changed: {words}"));
    assert_eq!(done.value["at_next_start"], true);
    assert_eq!(bench.does(all).await, "unchanged");
    insta::assert_snapshot!(bench.refuses(resize(None, None, Some(15))).await, @"its disk is one of 20GiB, and a disk only grows: 15GiB is less");
    insta::assert_snapshot!(bench.refuses(resize(Some(0), None, None)).await, @"0 processors: a machine has 1 to 256");
    let info = bench.value(VmCall::Info { id: id("web-01") }).await;
    assert_eq!(
        (info["cpus"].as_u64(), info["disk"].as_u64()),
        (Some(4), Some(20 * GIB))
    );
    // A kept disk that was smaller is as large as it is wanted.
    bench.does(destroy("web-01", false)).await;
    let mut larger = machine("web-01");
    larger.disk.size = Size(30 * GIB);
    bench
        .does(VmCall::Create {
            machine: Box::new(larger),
        })
        .await;
    let info = bench.value(VmCall::Info { id: id("web-01") }).await;
    assert_eq!(info["disk"].as_u64(), Some(30 * GIB));
}

#[tokio::test]
async fn snapshots_are_made_once_and_known_by_name() {
    let bench = Bench::with_image().await;
    bench.does(create("web-01")).await;
    let id = id("web-01");
    let name = |text: &str| text.parse().expect("a name");
    let snapshot = VmCall::Snapshot {
        id,
        snapshot: name("before"),
    };
    assert_eq!(
        bench.would(snapshot.clone()).await,
        "would: snapshot before"
    );
    assert_eq!(
        bench.does(snapshot.clone()).await,
        "changed: snapshot before"
    );
    assert_eq!(bench.does(snapshot).await, "unchanged");
    let restore = |text: &str| VmCall::Restore {
        id,
        snapshot: name(text),
    };
    assert_eq!(bench.does(restore("before")).await, "changed: as in before");
    assert_eq!(
        bench.refuses(restore("bevore")).await,
        "it has no snapshot `bevore`; there are: before"
    );
}

#[tokio::test]
async fn the_guest_agent_is_a_stranger() {
    let bench = Bench::with_image().await;
    bench.does(create("web-01")).await;
    let id = id("web-01");
    let ping = VmCall::GuestPing { id };
    let exec = || VmCall::GuestExec {
        id,
        argv: vec!["/bin/cat".into(), "/etc/hostname".into()],
        timeout: grace(300),
    };
    assert_eq!(bench.value(ping.clone()).await, false);
    assert!(
        bench
            .refuses(exec())
            .await
            .starts_with("no QEMU guest agent answers in it")
    );
    let answers = |status: &str| {
        BTreeMap::from([
            ("\"guest-ping\"".to_owned(), r#"{"return":{}}"#.to_owned()),
            (
                "\"guest-exec\"".to_owned(),
                r#"{"return":{"pid":7}}"#.to_owned(),
            ),
            ("\"guest-exec-status\"".to_owned(), status.to_owned()),
        ])
    };
    bench.memory.agents(answers(
        r#"{"return":{"exited":true,"exitcode":3,"out-data":"d2ViLTAxCg=="}}"#,
    ));
    assert_eq!(bench.value(ping.clone()).await, true);
    assert_eq!(bench.would(exec()).await, "would: a program in it");
    let value = bench.value(exec()).await;
    assert_eq!(
        (value["exit"].as_i64(), value["stdout"].as_str()),
        (Some(3), Some("web-01\n"))
    );
    let deep = format!(r#"{{"return":{}"#, "[".repeat(100_000));
    let huge = format!(r#"{{"return":"{}"}}"#, "x".repeat(9 << 20));
    for (status, words) in [
        (deep.as_str(), "answers something that it should not: "),
        (huge.as_str(), "no status of the program"),
        (
            r#"{"return":{"exited":true,"exitcode":1e300}}"#,
            "no status of the program",
        ),
        (
            r#"{"return":{"exited":false}}"#,
            "the program in it still ran after 300ms; it goes on",
        ),
        (
            r#"{"return":{"exited":true,"out-data":"%%"}}"#,
            "output that is not Base64",
        ),
        (r#"{"return":[]}"#, "no status of the program"),
        (
            "\u{1b}[2J",
            "answers something that it should not: \\x1b[2J",
        ),
        (
            r#"{"error":{"desc":"no such \u001b[2Jprogram"}}"#,
            "says: no such \\x1b[2Jprogram",
        ),
    ] {
        bench.memory.agents(answers(status));
        let said = bench.refuses(exec()).await;
        assert!(said.contains(words), "{said}");
    }
    // It only does not answer, as far as anybody waits for it.
    for strange in ["", "[]", r#"{"return":"#, r#"{"error":{"desc":7}}"#, &deep] {
        let said = BTreeMap::from([("guest-ping".to_owned(), strange.to_owned())]);
        bench.memory.agents(said);
        assert_eq!(bench.value(ping.clone()).await, false, "{strange:.20}");
    }
    bench.memory.agents(no_answers());
    bench
        .does(VmCall::Stop {
            id,
            grace: grace(10),
        })
        .await;
    assert_eq!(bench.value(ping).await, false);
    assert_eq!(bench.refuses(exec()).await, "it does not run");
}

#[tokio::test]
async fn the_end_of_the_console_can_be_read_by_people() {
    let bench = Bench::with_image().await;
    let log = |lines| VmCall::ConsoleLog {
        id: id("web-01"),
        lines,
    };
    assert_eq!(bench.value(log(5)).await, "");
    let dir = bench.dir.path().join("console");
    std::fs::create_dir(&dir).expect("a directory");
    let path = dir.join(format!("muster-{}.log", id("web-01")));
    let text = "\u{1b}[2J\u{1b}[32mbooting\u{1b}[0m\r\none\r\ntwo\u{7}\nthree\n";
    let mut bytes = vec![b'x'; 400 << 10];
    bytes.push(b'\n');
    bytes.extend_from_slice(text.as_bytes());
    std::fs::write(&path, bytes).expect("written");
    assert_eq!(bench.value(log(4)).await, "booting\none\ntwo\\x07\nthree");
    assert_eq!(bench.value(log(1)).await, "three");
    let all = bench.value(log(u32::MAX)).await;
    assert!(all.as_str().expect("a text").len() < 3_000);
}

#[tokio::test]
async fn a_note_that_nobody_can_read_costs_no_disk() {
    let bench = Bench::with_image().await;
    bench.does(create("web-01")).await;
    bench.does(destroy("web-01", false)).await;
    std::fs::write(bench.pool(&format!("muster-{}.json", id("web-01"))), "{").expect("written");
    bench.refuses(create("web-01")).await;
    assert_eq!(bench.memory.volumes().len(), 1);
    bench.does(destroy("web-01", true)).await;
    assert_gone(&bench, "purged");
}

#[tokio::test]
async fn two_calls_for_one_machine_come_one_after_the_other() {
    let bench = Bench::with_image().await;
    let calls = (0..8).map(|_| {
        let machines = bench.machines.clone();
        tokio::spawn(async move {
            machines
                .perform(&create("web-01"), Mode::Apply, &Silence)
                .await
        })
    });
    let mut made = 0;
    for call in calls.collect::<Vec<_>>() {
        let done = call.await.expect("no panic").expect("done");
        made += usize::from(shown(&done) != "unchanged");
    }
    assert_eq!(made, 1);
    assert_eq!(bench.shop.seeds.load(Ordering::Relaxed), 1);
    assert_up(&bench, "web-01", "eight at once");
}
