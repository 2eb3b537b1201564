use super::*;
use proptest::prelude::*;

const NODE: Serial = Serial(1);

fn delivery() -> Delivery {
    Delivery::new(Duration::from_secs(15), Duration::from_secs(300))
}

fn begun(how: Sent) -> Delivery {
    let mut d = delivery();
    d.begin([NODE], Moment(0));
    d.copied(NODE, Message::Call, how, Moment(0));
    d
}

/// Runs the clock until something is due.
fn until_due(d: &Delivery, mut now: Moment) -> (Moment, Due) {
    loop {
        let due = d.schedule(now);
        if !due.call.is_empty() || !due.cancel.is_empty() || !due.given_up.is_empty() {
            return (now, due);
        }
        now = due.wake.expect("an open node is due some time");
    }
}

#[test]
fn a_lost_request_is_repeated_with_growing_pauses_and_then_given_up() {
    let mut d = begun(Sent::ToGroup);
    let mut at = Vec::new();
    let mut now = Moment(0);
    let why = loop {
        let (when, due) = until_due(&d, now);
        now = when;
        if let Some((_, why)) = due.given_up.first() {
            break *why;
        }
        at.push(now.0);
        d.copied(NODE, Message::Call, Sent::ToNode, now);
    };
    assert_eq!(at, [500, 1_500, 3_500, 7_500, 11_500]);
    assert_eq!((now, why), (Moment(17_000), GivenUp::NotAcknowledged));
}

#[test]
fn a_node_that_nobody_could_reach_has_certainly_not_run() {
    let mut d = begun(Sent::ToNode);
    d.nobody_heard(NODE, Message::Call);
    let mut now = Moment(0);
    loop {
        let (when, due) = until_due(&d, now);
        now = when;
        if let Some(given_up) = due.given_up.first() {
            assert_eq!(
                (now, *given_up),
                (
                    Moment(15_000),
                    (NODE, GivenUp::NobodyListened { copies: 6 })
                )
            );
            break;
        }
        d.copied(NODE, Message::Call, Sent::ToNode, now);
        d.nobody_heard(NODE, Message::Call);
    }
    // One copy of which it is not known is enough for doubt.
    let mut d = begun(Sent::ToNode);
    d.nobody_heard(NODE, Message::Call);
    d.copied(NODE, Message::Call, Sent::ToNode, Moment(500));
    assert_eq!(d.schedule(Moment(15_500)).given_up, []);
    assert_eq!(
        d.schedule(Moment(17_000)).given_up,
        [(NODE, GivenUp::NotAcknowledged)]
    );
}

#[test]
fn an_accepted_request_is_waited_for_and_not_repeated() {
    let mut d = begun(Sent::ToGroup);
    assert!(d.accepted(NODE, Moment(200)));
    assert!(!d.accepted(NODE, Moment(300)));
    let (now, due) = until_due(&d, Moment(200));
    assert_eq!(now, Moment(200 + 300_000 + 15_000));
    assert_eq!(due.given_up, [(NODE, GivenUp::NoOutcome)]);
}

#[test]
fn a_cancel_stops_the_calls_and_is_repeated_like_them() {
    let mut d = begun(Sent::ToGroup);
    d.accepted(NODE, Moment(100));
    d.cancel(Moment(1_000));
    let (now, due) = until_due(&d, Moment(1_000));
    assert_eq!((now, due.cancel), (Moment(1_000), vec![NODE]));
    d.copied(NODE, Message::Cancel, Sent::ToNode, now);
    let (now, due) = until_due(&d, now);
    assert_eq!(
        (now, due.cancel, due.call),
        (Moment(1_500), vec![NODE], vec![])
    );
    let late = d.schedule(Moment(31_000));
    assert_eq!(late.given_up, [(NODE, GivenUp::CancelUnanswered)]);
}

#[test]
fn a_node_that_comes_back_is_sent_to_at_once() {
    let mut d = begun(Sent::ToNode);
    d.nobody_heard(NODE, Message::Call);
    d.returned(NODE, Moment(70));
    assert_eq!(d.schedule(Moment(70)).call, [NODE]);
}

#[test]
fn after_a_restart_the_time_that_remains_counts_and_nobody_is_given_up_at_once() {
    let mut d = delivery();
    d.resume(NODE, Moment(-5_000), Moment(0));
    assert_eq!(d.schedule(Moment(0)).call, [NODE]);
    let mut d = delivery();
    d.resume(NODE, Moment(-1_000_000), Moment(0));
    let due = d.schedule(Moment(0));
    assert_eq!(
        (due.call, due.given_up, due.wake),
        (vec![], vec![], Some(Moment(20_000)))
    );
    assert_eq!(
        d.schedule(Moment(20_000)).given_up,
        [(NODE, GivenUp::NoOutcome)]
    );
}

#[test]
fn a_deaf_broker_gives_the_time_back() {
    let mut d = begun(Sent::ToGroup);
    d.was_deaf(Duration::from_secs(60));
    assert_eq!(d.schedule(Moment(60_000)).given_up, []);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(i64),
    Accepted(u32),
    Unheard(u32),
    Returned(u32),
    Settled(u32),
    Cancel,
    Deaf(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1i64..5_000).prop_map(Step::Wait),
        2 => (0u32..6).prop_map(Step::Accepted),
        2 => (0u32..6).prop_map(Step::Unheard),
        1 => (0u32..6).prop_map(Step::Returned),
        1 => (0u32..6).prop_map(Step::Settled),
        1 => Just(Step::Cancel),
        1 => (0u64..2_000).prop_map(Step::Deaf),
    ]
}

proptest! {
    /// Whatever happens: no call after an acknowledgement, a cancel or the
    /// delivery time; nobody is given up before their time; the next wake is
    /// in the future; and in the end nobody is open.
    #[test]
    fn every_delivery_ends_and_never_repeats_in_vain(
        steps in prop::collection::vec(step(), 0..60),
        resumed in 0u32..3,
        fresh in 0u32..3,
    ) {
        let within = Duration::from_secs(8);
        let mut d = Delivery::new(within, Duration::from_secs(20));
        let mut now = Moment(0);
        for serial in 0..resumed {
            d.resume(Serial(serial), Moment(-3_000), now);
        }
        d.begin((3..3 + fresh).map(Serial), now);
        for serial in 3..3 + fresh {
            d.copied(Serial(serial), Message::Call, Sent::ToNode, now);
        }
        let mut acknowledged = std::collections::BTreeSet::new();
        let mut cancelled = false;
        let mut deaf = 0;
        let drain = std::iter::repeat_n(Step::Wait(5_000), 40);
        for step in steps.into_iter().chain(drain) {
            match step {
                Step::Wait(ms) => now = now.ms(ms),
                Step::Accepted(s) => {
                    d.accepted(Serial(s), now);
                    acknowledged.insert(Serial(s));
                }
                Step::Unheard(s) => d.nobody_heard(Serial(s), Message::Call),
                Step::Returned(s) => d.returned(Serial(s), now),
                Step::Settled(s) => d.settled(Serial(s)),
                Step::Cancel => {
                    d.cancel(now);
                    cancelled = true;
                }
                Step::Deaf(ms) => {
                    d.was_deaf(Duration::from_millis(ms));
                    deaf += i64::try_from(ms).expect("small");
                }
            }
            let due = d.schedule(now);
            for serial in &due.call {
                prop_assert!(!cancelled && !acknowledged.contains(serial));
                prop_assert!(now.0 <= 8_000 + deaf);
                prop_assert!(!d.start_within(*serial, now).is_zero());
                d.copied(*serial, Message::Call, Sent::ToNode, now);
            }
            for serial in &due.cancel {
                prop_assert!(cancelled);
                d.copied(*serial, Message::Cancel, Sent::ToNode, now);
            }
            for (serial, why) in &due.given_up {
                let unheard = matches!(why, GivenUp::NobodyListened { .. });
                prop_assert!(now.0 >= 5_000 || (cancelled && unheard), "{serial} {why:?} at {now:?}");
                if acknowledged.contains(serial) {
                    prop_assert!(!unheard);
                }
                d.settled(*serial);
            }
            if let Some(wake) = d.schedule(now).wake {
                prop_assert!(wake > now);
            }
        }
        prop_assert!(d.is_empty(), "{d:?}");
    }
}
