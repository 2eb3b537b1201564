use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use muster_client::ClientError;
use muster_protocol::api::{ChatAccount, ChatAnswer, ChatPlace, Speaker, Tone, Utterance, Vouched};
use muster_protocol::units::Timestamp;

use super::*;
use crate::irc::{Caps, Casemapping, Multiline};

const SECOND: Duration = Duration::from_secs(1);

/// Who is there: by account or sight, their nick.
type People = Arc<Mutex<BTreeMap<String, String>>>;

struct World {
    voice: Voice,
    now: Instant,
    disk: Saved,
    people: People,
    sent: Vec<(String, String, u64)>,
    pings: Vec<u64>,
    asked: Vec<(Asker, ChatLine, Key)>,
}

fn settings() -> Settings {
    Settings {
        network: "ops".parse().expect("a name"),
        pace: Pace {
            burst: 4,
            every: SECOND,
            progress: 5 * SECOND,
        },
        style: Style {
            colours: false,
            symbols: false,
            max_lines: 6,
            prefix: "!".to_owned(),
        },
        several_brokers: false,
    }
}

fn voice(saved: Saved, people: &People) -> Voice {
    let people = people.clone();
    let nick_of = move |who: &ChatPerson| {
        let key = who.account.as_ref().or(who.sight.as_ref())?;
        people.lock().expect("not poisoned").get(key).cloned()
    };
    Voice::new(settings(), saved, Box::new(nick_of))
}

fn ready(echo: bool) -> Heard {
    Heard::Ready(Ready {
        nick: "muster".to_owned(),
        mask_bytes: 40,
        caps: Caps {
            echo_message: echo,
            ..Caps::default()
        },
        line_bytes: 512,
        casemapping: Casemapping::Ascii,
        network: None,
    })
}

fn channel(name: &str) -> ChannelName {
    name.parse().expect("a channel")
}

impl World {
    fn new() -> Self {
        let people = People::default();
        Self {
            voice: voice(Saved::default(), &people),
            now: Instant::now(),
            disk: Saved::default(),
            people,
            sent: Vec::new(),
            pings: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn up(echo: bool) -> Self {
        let mut world = Self::new();
        world.connect(echo);
        world
    }

    fn connect(&mut self, echo: bool) {
        self.voice.heard(ready(echo), self.now);
        self.voice.heard(Heard::Joined(channel("#ops")), self.now);
    }

    /// The process is gone, and another one is there.
    fn restart(&mut self, echo: bool) {
        self.voice = voice(self.disk.clone(), &self.people);
        self.sent.clear();
        self.connect(echo);
    }

    /// Does what is to be done now.
    fn pump(&mut self) {
        while let Some(act) = self.voice.next(self.now) {
            match act {
                Act::Send(Send::Ping { token }) => self.pings.push(token),
                Act::Send(Send::Privmsg {
                    target,
                    text,
                    token,
                }) => {
                    self.sent.push((target.as_str().to_owned(), text, token));
                }
                Act::Send(Send::Multiline {
                    target,
                    lines,
                    token,
                }) => {
                    let text = format!("[{}]", lines.join("|"));
                    self.sent.push((target.as_str().to_owned(), text, token));
                }
                Act::Save(saved) => {
                    self.disk = saved;
                    self.voice.saved(true);
                }
                Act::Ask { asker, line, key } => self.asked.push((asker, *line, key)),
            }
        }
    }

    /// So much time passes, in small steps.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        self.pump();
        while self.now < until {
            let due = self.voice.due(self.now).unwrap_or(until);
            // Never a moment for nothing.
            assert!(due > self.now, "due at once, with nothing to do");
            self.now = due.min(until);
            self.pump();
        }
    }

    fn said(&self) -> Vec<&str> {
        self.sent.iter().map(|(_, text, _)| text.as_str()).collect()
    }

    fn echo_all(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        for (_, _, token) in sent {
            self.voice.heard(Heard::Echo { token }, self.now);
        }
        self.pump();
    }

    fn news(&mut self, place: &str, urgency: Urgency, about: Option<&str>, text: &str) {
        let utterance = utterance(urgency, about, text, Some("#ops"), None);
        self.voice.utterance(
            place.to_owned(),
            &utterance,
            self.now,
            Timestamp::UNIX_EPOCH,
        );
        self.pump();
    }

    fn hear(&mut self, line: Line) {
        self.voice.heard(Heard::Line(line), self.now);
        self.pump();
    }

    fn answer(&mut self, lines: &[&str]) {
        let (asker, ..) = self.asked.remove(0);
        let say = Say {
            urgency: Urgency::Reply,
            tone: Tone::Plain,
            about: Some("8k2d".to_owned()),
            lines: lines.iter().map(|l| (*l).to_owned()).collect(),
            link: None,
        };
        let answer = ChatAnswer { says: vec![say] };
        self.voice.answered(&asker, Ok(answer), self.now);
        self.pump();
    }
}

fn utterance(
    urgency: Urgency,
    about: Option<&str>,
    text: &str,
    place: Option<&str>,
    person: Option<ChatPerson>,
) -> Utterance {
    Utterance {
        id: text.to_owned(),
        place: ChatPlace {
            network: "ops".parse().expect("a name"),
            channel: place.map(channel),
            person,
        },
        say: Say {
            urgency,
            tone: Tone::Plain,
            about: about.map(str::to_owned),
            lines: text.lines().map(str::to_owned).collect(),
            link: None,
        },
        at: Timestamp::UNIX_EPOCH,
    }
}

fn line(nick: &str, place: Option<&str>, text: &str) -> Line {
    Line {
        id: format!("{nick} {text}"),
        channel: place.map(channel),
        speaker: Speaker {
            nick: nick.to_owned(),
            mask: format!("{nick}!u@h"),
            sight: Some(format!("sight of {nick}")),
            account: Some(ChatAccount {
                name: nick.to_owned(),
                vouched: Vouched::Tag,
            }),
        },
        heard: Timestamp::UNIX_EPOCH,
        server_time: None,
        text: text.to_owned(),
    }
}

fn ana() -> ChatPerson {
    ChatPerson {
        nick: "ana".to_owned(),
        account: Some("ana".to_owned()),
        sight: None,
    }
}

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
    assert_eq!(world.voice.ledger.open(), 0);
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
