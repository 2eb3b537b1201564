//! What is said without that somebody has just asked.

use super::*;

#[test]
fn the_cursor_follows_the_echo() {
    let mut world = World::up(true);
    world.news(
        "1",
        Urgency::News,
        None,
        "webapp: bruno pushed 2\n  one\n  two",
    );
    assert_eq!(world.said(), ["webapp: bruno pushed 2", "  one", "  two"]);
    // The disk knows before anybody hears it.
    assert_eq!(world.disk.begun, ["1".to_owned()].into());
    assert_eq!(world.disk.confirmed, None);
    let sent = world.sent.clone();
    for (_, _, token) in &sent[..2] {
        world.voice.heard(Heard::Echo { token: *token }, world.now);
        world.pump();
    }
    assert_eq!(world.disk.confirmed, None);
    world
        .voice
        .heard(Heard::Echo { token: sent[2].2 }, world.now);
    world.pump();
    assert_eq!(
        world.disk,
        Saved {
            confirmed: Some("1".into()),
            ..Saved::default()
        }
    );
    assert!(world.pings.is_empty());
}

#[test]
fn without_echoes_a_pong_is_waited_for() {
    let mut world = World::up(false);
    world.news("1", Urgency::News, None, "one");
    world.news("2", Urgency::News, None, "two");
    let ping = world.pings.pop().expect("a PING");
    assert_eq!(world.disk.confirmed, None);
    world.voice.heard(Heard::Pong { token: ping }, world.now);
    world.wait(2 * SECOND);
    let ping = world.pings.pop().expect("a PING behind the second");
    world.voice.heard(Heard::Pong { token: ping }, world.now);
    world.pump();
    assert_eq!(world.disk.confirmed.as_deref(), Some("2"));
}

#[test]
fn killed_in_the_middle_nothing_is_lost_and_a_repeat_is_marked() {
    for echo in [true, false] {
        let mut world = World::up(echo);
        world.news("1", Urgency::News, None, "one");
        world.echo_all();
        if let Some(token) = world.pings.pop() {
            world.voice.heard(Heard::Pong { token }, world.now);
            world.pump();
        }
        for n in 2..=6 {
            world.news(&n.to_string(), Urgency::News, None, &format!("number {n}"));
        }
        // Three more went out, and nobody knows whether they arrived.
        assert_eq!(world.said(), ["number 2", "number 3", "number 4"]);
        world.restart(echo);
        assert_eq!(world.voice.resume().as_deref(), Some("1"));
        for n in 2..=6 {
            world.news(&n.to_string(), Urgency::News, None, &format!("number {n}"));
        }
        world.wait(10 * SECOND);
        let said = world.said();
        assert_eq!(
            said,
            [
                "(again) number 2",
                "(again) number 3",
                "(again) number 4",
                "number 5",
                "number 6"
            ]
        );
    }
}

#[test]
fn an_alarm_goes_first_and_the_others_keep_their_place() {
    let mut world = World::up(true);
    for n in 1..=8 {
        world.news(&n.to_string(), Urgency::News, None, &format!("n{n}"));
    }
    world.news("9", Urgency::Alarm, None, "alarm");
    world.echo_all();
    world.wait(SECOND);
    assert_eq!(world.said(), ["alarm"]);
    world.echo_all();
    assert_eq!(world.disk.confirmed.as_deref(), Some("4"));
    assert_eq!(world.disk.done, ["9".to_owned()].into());
    world.restart(true);
    for n in 5..=8 {
        world.news(&n.to_string(), Urgency::News, None, &format!("n{n}"));
    }
    world.news("9", Urgency::Alarm, None, "alarm");
    world.wait(9 * SECOND);
    assert_eq!(world.said(), ["n5", "n6", "n7", "n8"]);
    world.echo_all();
    assert_eq!(
        world.disk,
        Saved {
            confirmed: Some("9".into()),
            ..Saved::default()
        }
    );
}

#[test]
fn a_connection_that_went_is_said_again_and_marked() {
    let mut world = World::up(true);
    world.news("1", Urgency::News, None, "first\n  second");
    let first = world.sent[0].2;
    world.voice.heard(Heard::Echo { token: first }, world.now);
    world.hear(line("ana", Some("#ops"), "ping"));
    world.answer(&["pong"]);
    let gone = Heard::Gone {
        why: "reset".into(),
        again_in: SECOND,
    };
    world.voice.heard(gone, world.now);
    world.sent.clear();
    world.news("2", Urgency::News, None, "third");
    world.wait(20 * SECOND);
    assert!(world.sent.is_empty());
    world.connect(true);
    world.wait(9 * SECOND);
    assert_eq!(
        world.said(),
        ["(again) ana: 8k2d pong", "(again)   second", "third"]
    );
    world.echo_all();
    assert_eq!(world.disk.confirmed.as_deref(), Some("2"));
}

#[test]
fn a_channel_that_is_not_there_does_not_stop_the_others() {
    let mut world = World::up(true);
    let closed = utterance(Urgency::Alarm, None, "closed", Some("#closed"), None);
    world
        .voice
        .utterance("1".to_owned(), &closed, world.now, Timestamp::UNIX_EPOCH);
    world.news("2", Urgency::News, None, "open");
    assert_eq!(world.said(), ["open"]);
    world.echo_all();
    assert_eq!(world.disk.confirmed, None);
    world.wait(PATIENCE + 2 * SWEEP);
    assert!(world.sent.is_empty());
    assert_eq!(world.disk.confirmed.as_deref(), Some("2"));
    // A flood for it is not kept.
    for n in 0..2 * MOST_CLOSED {
        world
            .voice
            .utterance(format!("x{n}"), &closed, world.now, Timestamp::UNIX_EPOCH);
    }
    assert!(world.voice.queue.len() <= MOST_CLOSED);
    // Joined in time, it is said.
    world
        .voice
        .heard(Heard::Joined(channel("#closed")), world.now);
    world.wait(SECOND);
    assert!(world.said().contains(&"closed"));
}

#[test]
fn too_much_news_is_counted_and_its_places_are_kept() {
    let mut world = World::up(true);
    for n in 0..500 {
        world.news(
            &format!("{n:04}"),
            Urgency::News,
            None,
            &format!("push {n}"),
        );
    }
    world.news("0500", Urgency::Alarm, None, "alarm");
    let mut said: Vec<String> = Vec::new();
    for _ in 0..100 {
        world.wait(SECOND);
        said.extend(world.said().iter().map(|s| (*s).to_owned()));
        world.echo_all();
    }
    assert!(said.contains(&"alarm".to_owned()));
    let pushes = said.iter().filter(|s| s.starts_with("push")).count();
    let counted: usize = said
        .iter()
        .filter_map(|s| s.split_once(" more line"))
        .map(|(n, _)| n.parse::<usize>().expect("a number"))
        .sum();
    assert_eq!(pushes + counted, 500, "{said:?}");
    assert!(
        said.iter().filter(|s| s.contains(" more line")).count() <= 3,
        "{said:?}"
    );
    assert_eq!(world.disk.confirmed.as_deref(), Some("0500"));
}

#[test]
fn progress_is_rare_and_its_asker_is_named_at_the_end() {
    let mut world = World::up(true);
    world
        .people
        .lock()
        .expect("not poisoned")
        .insert("ana".into(), "ana_away".into());
    let tell = |world: &mut World, place: u32, urgency, text: &str| {
        let utterance = utterance(urgency, Some("8k2d"), text, Some("#ops"), Some(ana()));
        world.voice.utterance(
            place.to_string(),
            &utterance,
            world.now,
            Timestamp::UNIX_EPOCH,
        );
    };
    for n in 1..=120 {
        tell(&mut world, n, Urgency::Progress, &format!("{n}/120"));
        world.wait(SECOND / 10);
    }
    tell(&mut world, 121, Urgency::Reply, "done");
    world.wait(20 * SECOND);
    assert_eq!(
        world.said(),
        [
            "8k2d 1/120",
            "8k2d 50/120",
            "8k2d 100/120",
            "ana_away: 8k2d done"
        ]
    );
    world.echo_all();
    assert_eq!(world.disk.confirmed.as_deref(), Some("121"));
}

#[test]
fn a_person_who_left_is_named_in_the_channel_and_not_told_alone() {
    let mut world = World::up(true);
    let tell = |world: &mut World, place: &str, at| {
        let utterance = utterance(Urgency::Reply, Some("8k2d"), place, at, Some(ana()));
        world.voice.utterance(
            place.to_owned(),
            &utterance,
            world.now,
            Timestamp::UNIX_EPOCH,
        );
        world.pump();
    };
    tell(&mut world, "1", Some("#ops"));
    tell(&mut world, "2", None);
    assert_eq!(world.said(), ["ana: 8k2d 1"]);
    world.echo_all();
    world.wait(PATIENCE + 2 * SWEEP);
    assert!(world.sent.is_empty());
    assert_eq!(world.disk.confirmed.as_deref(), Some("2"));
    tell(&mut world, "3", None);
    world
        .people
        .lock()
        .expect("not poisoned")
        .insert("ana".into(), "ana2".into());
    world.wait(SWEEP);
    assert_eq!(world.sent[0].0, "ana2");
}

#[test]
fn what_came_about_while_nobody_was_there_says_when() {
    let mut world = World::up(true);
    let two_hours = Timestamp::from_second(7_200).expect("a time");
    let old = utterance(Urgency::Alarm, Some("8k2d"), "failed", Some("#ops"), None);
    world
        .voice
        .utterance("1".to_owned(), &old, world.now, two_hours);
    world.pump();
    assert_eq!(world.said(), ["(2 h ago) 8k2d failed"]);
}

#[test]
fn places_numbered_anew_and_places_of_others_block_nothing() {
    let mut world = World::up(true);
    let mut other = utterance(Urgency::Alarm, None, "x", Some("#ops"), None);
    other.place.network = "another".parse().expect("a name");
    world
        .voice
        .utterance("1".to_owned(), &other, world.now, Timestamp::UNIX_EPOCH);
    world.voice.utterance(
        "2".to_owned(),
        &utterance(Urgency::Alarm, None, "x", None, None),
        world.now,
        Timestamp::UNIX_EPOCH,
    );
    world.pump();
    assert!(world.sent.is_empty());
    assert_eq!(world.disk.confirmed.as_deref(), Some("2"));
    world.voice.renumbered("a0".to_owned());
    world.news("a1", Urgency::News, None, "new");
    world.echo_all();
    assert_eq!(world.disk.confirmed.as_deref(), Some("a1"));
}

#[test]
fn a_server_that_takes_several_lines_at_once_gets_them() {
    let mut world = World::new();
    let Heard::Ready(mut ready) = ready(true) else {
        panic!("it is one");
    };
    ready.caps.multiline = Some(Multiline {
        max_bytes: 4_096,
        max_lines: 10,
    });
    world.voice.heard(Heard::Ready(ready), world.now);
    world.voice.heard(Heard::Joined(channel("#ops")), world.now);
    world.news("1", Urgency::News, None, "one\ntwo\nthree");
    assert_eq!(world.said(), ["[one|two|three]"]);
    // The next connection may not.
    let gone = Heard::Gone {
        why: "reset".into(),
        again_in: SECOND,
    };
    world.voice.heard(gone, world.now);
    world.sent.clear();
    world.connect(true);
    world.wait(9 * SECOND);
    assert_eq!(world.said(), ["(again) one", "two", "three"]);
    world.echo_all();
    assert_eq!(world.disk.confirmed.as_deref(), Some("1"));
}
