//! Lines that were written, and their answers.

use super::*;

#[test]
fn a_line_is_told_and_its_answer_is_said_where_it_was_heard() {
    let mut world = World::up(true);
    world.hear(line("ana", Some("#ops"), "deploy 1.4.2"));
    let (_, told, key) = &world.asked[0];
    assert_eq!(
        (told.line.as_str(), told.id.as_str()),
        ("deploy 1.4.2", "ana deploy 1.4.2")
    );
    assert_eq!(told.speaker.nick, "ana");
    let first = key.clone();
    world.answer(&["deploy on 12 of web"]);
    assert_eq!(world.sent[0].0, "#ops");
    assert_eq!(world.said(), ["ana: 8k2d deploy on 12 of web"]);
    // The same line once more is the same request.
    world.hear(line("ana", Some("#ops"), "deploy 1.4.2"));
    world.hear(line("ana", Some("#ops"), "deploy 1.4.3"));
    assert_eq!(world.asked[0].2, first);
    world.answer(&["x"]);
    assert_ne!(world.asked[0].2, first);
}

#[test]
fn a_private_answer_goes_to_the_person_and_not_to_the_nick() {
    let mut world = World::up(true);
    let there = |world: &World, nick: Option<&str>| {
        let mut people = world.people.lock().expect("not poisoned");
        people.clear();
        people.extend(nick.map(|n| ("ana".to_owned(), n.to_owned())));
    };
    there(&world, Some("ana_"));
    world.hear(line("ana", None, "who"));
    world.answer(&["you are ana"]);
    assert_eq!(world.sent[0].0, "ana_");
    world.echo_all();
    // Whoever has the nick now is somebody else.
    there(&world, None);
    world.hear(line("ana", None, "who"));
    world.answer(&["you are ana"]);
    world.wait(9 * PATIENCE / 10);
    assert!(world.sent.is_empty());
    world.wait(PATIENCE);
    there(&world, Some("ana"));
    world.wait(SECOND);
    assert!(world.sent.is_empty(), "{:?}", world.sent);
    // Of whom nothing is seen is answered at once or not at all.
    let mut stranger = line("zoe", None, "help");
    stranger.speaker.sight = None;
    world.hear(stranger.clone());
    world.answer(&["hello"]);
    assert_eq!(world.sent[0].0, "zoe");
    world.echo_all();
    world.voice.heard(
        Heard::Gone {
            why: "x".into(),
            again_in: SECOND,
        },
        world.now,
    );
    world.hear(stranger);
    world.answer(&["hello"]);
    world.now += 60 * SECOND;
    world.connect(true);
    world.pump();
    assert!(world.sent.is_empty(), "{:?}", world.sent);
}

#[test]
fn the_rest_is_for_who_asked() {
    let mut world = World::up(true);
    world.hear(line("ana", Some("#ops"), "nodes"));
    let lines: Vec<String> = (1..=9).map(|n| format!("web-{n}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    world.answer(&lines);
    world.wait(10 * SECOND);
    assert_eq!(world.said().last(), Some(&"… 4 more lines: !more"));
    world.echo_all();
    world.hear(line("bruno", Some("#ops"), "more"));
    world.hear(line("ana", Some("#ops"), " MORE  8k2d"));
    world.wait(10 * SECOND);
    assert_eq!(
        world.said(),
        [
            "bruno: there is nothing more that you have not seen",
            "ana: 8k2d web-6",
            "  web-7",
            "  web-8",
            "  web-9"
        ]
    );
    // None of it was the broker's business.
    assert!(world.asked.is_empty());
}

#[test]
fn what_was_not_done_is_said_once_and_without_a_doubt_where_there_is_none() {
    let mut world = World::up(true);
    let lost = || ClientError::Lost {
        url: "u".into(),
        what: "POST".into(),
        why: "x".into(),
    };
    let refused = || ClientError::Refused { url: "u".into() };
    for error in [refused(), lost()] {
        world.hear(line("ana", Some("#ops"), "deploy"));
        let (asker, ..) = world.asked.remove(0);
        world.voice.answered(&asker, Err(error), world.now);
        world.pump();
    }
    let said = world.said();
    assert!(
        said[0].starts_with("ana: the broker cannot be reached; nothing was done."),
        "{said:?}"
    );
    assert!(
        said[1].contains("may or may not have been done"),
        "{said:?}"
    );
    assert_eq!(said.len(), 2);
    world.voice.several_brokers = true;
    world.echo_all();
    world.wait(9 * SECOND);
    // Twenty at once are not twenty lines.
    for n in 0..20 {
        world.hear(line(&format!("n{n}"), Some("#ops"), "deploy"));
    }
    for (asker, ..) in std::mem::take(&mut world.asked) {
        world.voice.answered(&asker, Err(refused()), world.now);
    }
    world.wait(60 * SECOND);
    let said = world.said();
    assert!(said.len() <= 2, "{said:?}");
    assert!(
        said[0].starts_with("n0, n1, n2, n3, n4 and others: 20 lines: "),
        "{said:?}"
    );
    assert!(said[0].contains("may or may not"), "{said:?}");
}

#[test]
fn a_slow_broker_is_told_of_and_what_waits_for_it_is_given_up() {
    let mut world = World::up(true);
    world.hear(line("ana", Some("#ops"), "deploy"));
    world.hear(line("ana", Some("#ops"), "yes"));
    assert_eq!(world.asked.len(), 1);
    world.wait(21 * SECOND);
    let said = world.said();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said.iter().any(|s| s.contains("still waiting for it")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|s| s.contains("nothing was done")),
        "{said:?}"
    );
    world.sent.clear();
    world.answer(&["12 nodes"]);
    assert_eq!(world.said(), ["ana: 8k2d 12 nodes"]);
    // The second one is not carried out behind everybody's back.
    world.wait(60 * SECOND);
    assert!(world.asked.is_empty());
}

#[test]
fn a_thousand_lines_at_once_are_all_answered() {
    let mut world = World::up(true);
    for n in 0..1_000 {
        world.hear(line(
            &format!("n{}", n % 250),
            Some("#ops"),
            &format!("ping {n}"),
        ));
        assert!(world.asked.len() <= crate::intake::AT_ONCE);
    }
    let mut answered = 0;
    while !world.asked.is_empty() {
        let text = world.asked[0].1.line.clone();
        world.answer(&[&text]);
        answered += 1;
    }
    assert_eq!(answered, 1_000);
    let mut said = Vec::new();
    while said.len() < 1_000 {
        world.wait(10 * SECOND);
        said.extend(world.said().iter().map(|s| (*s).to_owned()));
        world.echo_all();
    }
    for n in 0..1_000 {
        let text = format!("8k2d ping {n}");
        assert!(said.iter().any(|s| s.ends_with(&text)), "{text}");
    }
}

#[test]
fn more_than_there_is_room_for_is_refused_in_words() {
    let mut world = World::up(true);
    let many = 3 * crate::intake::MOST;
    for n in 0..many {
        world.hear(line("ana", Some("#ops"), &format!("ping {n}")));
    }
    world.wait(5 * SECOND);
    let said = world.said().join("\n");
    assert!(
        said.contains("too many lines at once; nothing was done"),
        "{said}"
    );
    assert!(world.sent.len() < 10);
}

#[test]
fn a_longer_mask_makes_shorter_lines() {
    let mut world = World::up(true);
    let text = "word ".repeat(89);
    world.hear(line("ana", Some("#ops"), "x"));
    world.hear(line("ana", Some("#ops"), "y"));
    let gone = Heard::Gone {
        why: "reset".into(),
        again_in: SECOND,
    };
    world.answer(&["one"]);
    world.voice.heard(gone, world.now);
    world.sent.clear();
    world.connect(true);
    world.answer(&[text.trim()]);
    world.voice.heard(Heard::Mask(300), world.now);
    world.wait(20 * SECOND);
    for (target, text, _) in &world.sent {
        assert!(
            text.len() <= crate::split::budget(512, 300, target) || text.len() <= 460,
            "{text}"
        );
    }
    world.hear(line("ana", Some("#ops"), "z"));
    world.answer(&[text.trim()]);
    world.sent.clear();
    world.wait(20 * SECOND);
    for (target, text, _) in &world.sent {
        assert!(
            text.len() <= crate::split::budget(512, 300, target),
            "{text}"
        );
    }
}

#[test]
fn when_it_is_stopped_it_answers_and_leaves_the_rest_for_the_next_start() {
    let mut world = World::up(true);
    world.hear(line("ana", Some("#ops"), "deploy"));
    world.hear(line("ana", Some("#ops"), "yes"));
    for n in 1..=9 {
        world.news(&n.to_string(), Urgency::News, None, &format!("n{n}"));
    }
    world.echo_all();
    world.voice.stop(world.now);
    assert!(!world.voice.wants_news());
    world.answer(&["12 nodes"]);
    assert!(!world.voice.is_quiet(world.now));
    world.wait(3 * SECOND);
    let said = world.said().join("\n");
    assert!(
        said.contains("ana: 8k2d 12 nodes") && said.contains("being stopped; nothing was done"),
        "{said}"
    );
    assert!(!said.contains("n5"), "{said}");
    world.echo_all();
    assert!(world.voice.is_quiet(world.now));
    world.restart(true);
    assert_eq!(world.voice.resume().as_deref(), Some("4"));
}
