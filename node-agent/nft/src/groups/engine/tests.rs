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
