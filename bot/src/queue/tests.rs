use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn pace() -> Pace {
    Pace {
        burst: 4,
        every: SECOND,
        progress: 5 * SECOND,
    }
}

fn to(name: &str) -> To {
    To::Channel(name.parse().expect("a channel"))
}

fn item(place: &str, urgency: Urgency, lines: &[&str]) -> Item<u64> {
    Item {
        to: to(place),
        urgency,
        about: None,
        units: lines.iter().map(|l| Unit::Line((*l).to_owned())).collect(),
        supersedes: true,
        tag: 0,
    }
}

fn about(run: &str, urgency: Urgency, line: &str, tag: u64) -> Item<u64> {
    Item {
        about: Some(run.to_owned()),
        tag,
        ..item("#ops", urgency, &[line])
    }
}

fn text(unit: &Unit) -> String {
    match unit {
        Unit::Line(line) => line.clone(),
        Unit::Block(lines) => lines.join("|"),
    }
}

/// Everything, with the seconds since the start at which it was said.
fn drain(queue: &mut Queue<u64>, start: Instant) -> Vec<(u64, String)> {
    let mut now = start;
    let mut said = Vec::new();
    while let Some(at) = queue.due(now, |_| true) {
        now = at.max(now);
        let next = queue.next(now, |_| true).expect("it is due");
        said.push(((now - start).as_secs(), text(&next.unit)));
    }
    assert!(queue.is_empty() && queue.bytes() == 0);
    said
}

fn words(said: &[(u64, String)]) -> Vec<&str> {
    said.iter().map(|(_, text)| text.as_str()).collect()
}

#[test]
fn alarms_are_first_and_what_was_begun_is_ended() {
    let start = Instant::now();
    let mut queue = Queue::new(pace());
    queue.push(item("#ops", Urgency::News, &["n1", "n2", "n3"]), start);
    queue.push(item("#dev", Urgency::Reply, &["r"]), start);
    let first = queue.next(start, |_| true).expect("a line");
    assert_eq!(text(&first.unit), "r");
    assert_eq!(text(&queue.next(start, |_| true).expect("n1").unit), "n1");
    queue.push(item("#ops", Urgency::Alarm, &["a"]), start);
    queue.push(item("#dev", Urgency::Alarm, &["b"]), start);
    queue.push(item("#dev", Urgency::Reply, &["s"]), start);
    let said = drain(&mut queue, start);
    // #ops is hurried by its alarm, though news are before it there.
    assert_eq!(words(&said), ["b", "n2", "n3", "a", "s"]);
}

#[test]
fn targets_take_turns() {
    let start = Instant::now();
    let mut queue = Queue::new(pace());
    for n in 0..3 {
        queue.push(item("#a", Urgency::Reply, &[&format!("a{n}")]), start);
    }
    queue.push(item("#b", Urgency::Reply, &["b0", "b1"]), start);
    queue.push(item("#c", Urgency::Reply, &["c0"]), start);
    let said = drain(&mut queue, start);
    assert_eq!(words(&said), ["a0", "b0", "c0", "a1", "b1", "a2"]);
    assert_eq!(
        said.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        [0, 0, 0, 0, 1, 2]
    );
}

#[test]
fn only_the_newest_progress_of_a_run_is_told_and_not_too_often() {
    let start = Instant::now();
    let mut queue = Queue::new(pace());
    assert!(
        queue
            .push(about("8k2d", Urgency::Progress, "1/9", 1), start)
            .is_empty()
    );
    assert_eq!(
        queue.push(about("8k2d", Urgency::Progress, "2/9", 2), start),
        [1]
    );
    queue.push(about("9zzz", Urgency::Progress, "1/3", 3), start);
    assert_eq!(
        text(&queue.next(start, |_| true).expect("a line").unit),
        "2/9"
    );
    assert_eq!(
        text(&queue.next(start, |_| true).expect("a line").unit),
        "1/3"
    );
    queue.push(about("8k2d", Urgency::Progress, "3/9", 4), start + SECOND);
    assert!(queue.next(start + 4 * SECOND, |_| true).is_none());
    assert_eq!(
        queue.due(start + SECOND, |_| true),
        Some(start + 5 * SECOND)
    );
    // Its end is newer.
    let gone = queue.push(about("8k2d", Urgency::Reply, "done", 5), start + 2 * SECOND);
    assert_eq!(gone, [4]);
    assert_eq!(words(&drain(&mut queue, start + 2 * SECOND)), ["done"]);
}

#[test]
fn an_answer_about_a_run_does_not_swallow_its_progress() {
    let start = Instant::now();
    let mut queue = Queue::new(pace());
    queue.push(about("8k2d", Urgency::Progress, "1/9", 1), start);
    let answer = Item {
        supersedes: false,
        ..about("8k2d", Urgency::Reply, "you may not cancel it", 2)
    };
    assert!(queue.push(answer, start).is_empty());
    assert_eq!(
        words(&drain(&mut queue, start)),
        ["you may not cancel it", "1/9"]
    );
}

#[test]
fn closed_targets_wait_and_are_given_up() {
    let start = Instant::now();
    let mut queue = Queue::new(pace());
    queue.push(item("#a", Urgency::Alarm, &["a"]), start);
    queue.push(item("#b", Urgency::News, &["b"]), start);
    let open = |t: &To| *t == to("#b");
    assert_eq!(text(&queue.next(start, open).expect("b").unit), "b");
    assert_eq!(queue.due(start, open), None);
    // Before the connection was there no time counts.
    let since = start + 60 * SECOND;
    assert!(
        queue
            .give_up(start + 69 * SECOND, since, 10 * SECOND, open)
            .is_empty()
    );
    assert_eq!(
        queue
            .give_up(start + 71 * SECOND, since, 10 * SECOND, open)
            .len(),
        1
    );
    assert!(queue.is_empty());
}

#[test]
fn what_did_not_arrive_is_next_again() {
    let start = Instant::now();
    let mut queue = Queue::new(pace());
    queue.push(item("#a", Urgency::Reply, &["1", "2", "3"]), start);
    queue.push(item("#a", Urgency::Reply, &["4"]), start);
    let one = queue.next(start, |_| true).expect("1");
    let two = queue.next(start, |_| true).expect("2");
    assert!(!two.last);
    queue.put_back(vec![one, two], start);
    assert_eq!(words(&drain(&mut queue, start)), ["1", "2", "3", "4"]);

    // Also when nothing of it was left.
    let mut queue = Queue::new(pace());
    queue.push(item("#a", Urgency::Reply, &["1", "2"]), start);
    queue.push(item("#a", Urgency::Reply, &["3"]), start);
    let said: Vec<_> = (0..2).filter_map(|_| queue.next(start, |_| true)).collect();
    queue.put_back(said, start);
    assert_eq!(queue.len(), 2);
    assert_eq!(words(&drain(&mut queue, start)), ["1", "2", "3"]);
}

#[test]
fn a_flood_of_alarms_does_not_silence_everything_else() {
    let start = Instant::now();
    let mut queue = Queue::new(pace());
    queue.push(item("#dev", Urgency::News, &["n"]), start);
    for n in 0..100 {
        queue.push(item("#ops", Urgency::Alarm, &[&format!("a{n}")]), start);
    }
    let said = drain(&mut queue, start);
    let at = said.iter().position(|(_, text)| text == "n").expect("said");
    assert_eq!(at, OVERTAKEN as usize);
}

#[test]
fn a_block_is_sent_at_once_and_paid_for() {
    let start = Instant::now();
    let mut queue = Queue::new(pace());
    let block = Unit::Block(vec!["x".into(), "y".into(), "z".into()]);
    let units = VecDeque::from([block]);
    queue.push(
        Item {
            units,
            ..item("#a", Urgency::Reply, &[])
        },
        start,
    );
    queue.push(item("#b", Urgency::Reply, &["1", "2"]), start);
    let said = drain(&mut queue, start);
    assert_eq!(words(&said), ["x|y|z", "1", "2"]);
    assert_eq!(
        said.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        [0, 0, 1]
    );
}

fn urgency() -> impl Strategy<Value = Urgency> {
    prop_oneof![
        Just(Urgency::Alarm),
        Just(Urgency::Reply),
        Just(Urgency::Progress),
        Just(Urgency::News)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is put in comes out once, in the order of its target and
    /// urgency, with the lines of an item together, and never faster than the
    /// bucket lets it.
    #[test]
    fn nothing_is_lost_or_reordered(
        steps in proptest::collection::vec((0usize..5, urgency(), 1usize..4, 0u64..3_000), 1..80),
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut queue = Queue::new(pace());
        let mut said: Vec<(Instant, Next<u64>)> = Vec::new();
        let mut put: Vec<(To, Urgency, u64, usize)> = Vec::new();
        for (n, (place, urgency, lines, pause)) in steps.iter().enumerate() {
            let lines: Vec<String> = (0..*lines).map(|l| format!("{n}.{l}")).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let mut item = item(&format!("#c{place}"), *urgency, &lines);
            item.tag = n as u64;
            put.push((item.to.clone(), *urgency, n as u64, lines.len()));
            queue.push(item, now);
            let until = now + Duration::from_millis(*pause);
            while let Some(at) = queue.due(now, |_| true).filter(|at| *at <= until) {
                now = at.max(now);
                said.push((now, queue.next(now, |_| true).expect("it is due")));
            }
            now = until;
        }
        while let Some(at) = queue.due(now, |_| true) {
            now = at.max(now);
            said.push((now, queue.next(now, |_| true).expect("it is due")));
        }
        prop_assert!(queue.is_empty());
        prop_assert_eq!(queue.bytes(), 0);
        let lines: usize = put.iter().map(|(.., lines)| lines).sum();
        prop_assert_eq!(said.len(), lines);
        for (target, urgency, ..) in &put {
            let order: Vec<u64> = said.iter()
                .filter(|(_, n)| n.to == *target && n.urgency == *urgency && n.last)
                .map(|(_, n)| n.tag).collect();
            prop_assert!(order.is_sorted(), "{order:?}");
            // Together: a line of another item only behind the last of one.
            let there: Vec<&Next<u64>> = said.iter().map(|(_, n)| n).filter(|n| n.to == *target).collect();
            for pair in there.windows(2) {
                prop_assert!(pair[0].last || pair[0].tag == pair[1].tag);
            }
        }
        for (n, (from, _)) in said.iter().enumerate() {
            for (m, (at, _)) in said.iter().enumerate().skip(n) {
                let room = 4.0 + (*at - *from).as_secs_f64();
                prop_assert!((m - n + 1) as f64 <= room + 1e-6);
            }
        }
    }

    /// However much the others have to say, each lane is served in its turn.
    #[test]
    fn nobody_starves(lanes in 2usize..20, depth in 1usize..20) {
        let start = Instant::now();
        let mut queue = Queue::new(pace());
        for lane in 0..lanes {
            for n in 0..depth {
                queue.push(item(&format!("#c{lane}"), Urgency::Reply, &[&n.to_string()]), start);
            }
        }
        let mut now = start;
        for round in 0..depth {
            let mut served = std::collections::BTreeSet::new();
            for _ in 0..lanes {
                now = queue.due(now, |_| true).expect("something waits").max(now);
                let next = queue.next(now, |_| true).expect("it is due");
                prop_assert_eq!(text(&next.unit), round.to_string());
                served.insert(next.to);
            }
            prop_assert_eq!(served.len(), lanes);
        }
    }
}
