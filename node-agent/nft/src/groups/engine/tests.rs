use std::io::Write as _;

use muster_protocol::firewall::{Change, MembersChange};

use super::super::BUSY;
use super::*;

fn mark(sequence: u64) -> GroupsMark {
    GroupsMark { epoch: 1, sequence }
}

fn update(base: Option<u64>, sequence: u64) -> GroupsUpdate {
    let change = MembersChange {
        gone: false,
        add: [format!("10.0.0.{sequence}/32").parse().expect("a prefix")].into(),
        remove: [].into(),
    };
    GroupsUpdate {
        base: base.map(mark),
        mark: mark(sequence),
        more: false,
        change: Change {
            members: BTreeMap::from([("group:lb".parse().expect("a group"), change)]),
            ..Change::default()
        },
    }
}

#[test]
fn a_log_that_cannot_be_is_put_aside_and_what_follows_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let begin = || Engine::begin(dir.path(), Nft::new("nft")).expect("begins");
    let (mut log, _) = Log::open(dir.path()).expect("opens");
    // Whole records, of which one cannot follow the other.
    for update in [update(None, 1), update(Some(7), 8)] {
        log.append(&Record::Update(update)).expect("appends");
    }
    drop(log);
    let mut engine = begin();
    assert_eq!(engine.answer().held, None);
    let aside = fs::read_to_string(dir.path().join("groups.log.damaged")).expect("kept");
    assert_eq!(aside.lines().count(), 3);
    let next = Record::Update(update(None, 9));
    engine.log.append(&next).expect("appends");
    drop(engine);
    assert_eq!(begin().answer().held, Some(mark(9)));
}

/// Does it in a network namespace of its own, with a bridge's switches; not at
/// all where that cannot be had, which is said and counted.
fn apart(test: &str, work: impl FnOnce() + Send) {
    let done = std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err()
                || able(&Nft::new("nft")).is_err()
            {
                return false;
            }
            work();
            true
        });
        thread.join()
    });
    if done.expect("no panic") {
        return;
    }
    let required = std::env::var("MUSTER_TESTS_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|what| what == "nft"),
        "nft and network namespaces are required, and are not to be had here"
    );
    let line = format!("{test}: nft: network namespaces with nftables need root\n");
    let _ = io::stderr().write_all(format!("SKIPPED: {line}").as_bytes());
    if let Some(file) = std::env::var_os("MUSTER_TESTS_SKIPPED") {
        let file = fs::OpenOptions::new().append(true).create(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

#[test]
fn connections_that_cannot_be_looked_at_are_tried_again_more_and_more_seldom() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut engine = Engine::begin(dir.path(), Nft::new("nft")).expect("begins");
    let update = update(None, 1);
    let step = engine.state.step(&update).expect("it can be");
    engine.state.take(&update, step);
    let mut concern = Concern::default();
    concern.join(Concern::all(&Holding::default()));
    engine.concern(concern);
    let start = Instant::now();
    let at = |tick: u32| start + BUSY * tick;
    let mut tries = Vec::new();
    for tick in 0..1200 {
        engine.flows_by(at(tick), |_, _| {
            tries.push((at(tick) - start).as_millis());
            Err(io::ErrorKind::OutOfMemory.into())
        });
    }
    assert_eq!(tries, [0, 500, 1500, 3500, 7500, 15500, 31500]);
    assert!(!engine.is_busy());
    // It goes on where it was: looked at twice, and that was it.
    let mut looks = 0;
    for tick in 1200..3000 {
        engine.flows_by(at(tick), |_, _| {
            looks += 1;
            Ok(Ended::default())
        });
    }
    assert_eq!((looks, engine.concern.is_none()), (2, true));
}

#[test]
fn what_is_taken_away_is_put_back_before_the_next_try() {
    apart("what_is_taken_away_is_put_back_before_the_next_try", || {
        let dir = tempfile::tempdir().expect("a directory");
        let mut engine = Engine::start(&Setting::new(dir.path())).expect("starts");
        assert_eq!(engine.update(&update(None, 1)).in_force, Some(mark(1)));
        // The next try is far away, and somebody flushes all rules.
        engine.fail(&TableError::Kernel(io::ErrorKind::TimedOut.into()).into());
        engine.again = Some((Instant::now() + Duration::from_secs(3600), AGAIN[1]));
        engine.tick();
        assert!(engine.again.is_some(), "nothing has changed");
        let nft = Nft::new("nft");
        nft.apply("flush ruleset").expect("flushes");
        let until = Instant::now() + Duration::from_secs(60);
        while engine.again.is_some() {
            assert!(Instant::now() < until, "it is not put back");
            engine.tick();
            std::thread::yield_now();
        }
        assert!(engine.tables.are_there().expect("the kernel says"));
        assert_eq!(engine.answer().problem, None);
    });
}
