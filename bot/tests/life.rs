//! A whole bot, between a broker and an IRC server that do what a test wants.

mod common;

use std::collections::BTreeMap;

use common::{Echo, Program, World, until};

/// Fast enough that no test waits for it.
const FAST: &str = "rate = 1000\nburst = 100\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_is_told_and_its_answer_is_said() {
    let world = World::new(Echo::Yes).await;
    let bot = world.bot("").await;
    world.ircd.write("ana", "#ops", "!deploy 1.4.2");
    world.ircd.write("ana", "#ops", "nothing for the bot");
    world.ircd.write("ana", "#ops", "muster: who");
    until("both are answered", || world.ircd.said("#ops").len() == 2).await;
    assert_eq!(world.ircd.said("#ops"), ["ana: deploy 1.4.2", "ana: who"]);
    let told = world.broker.lines();
    assert_eq!(told.len(), 2);
    let (line, key) = &told[0];
    assert_eq!(line.line, "deploy 1.4.2");
    assert_eq!(line.channel.as_ref().map(|c| c.as_str()), Some("#ops"));
    assert_eq!(
        line.speaker.account.as_ref().map(|a| a.name.as_str()),
        Some("ana")
    );
    assert!(key.starts_with("chat-") && *key != told[1].1);
    assert!(world.broker.tokens().iter().all(|t| t == "Bearer mt1_x_y"));
    bot.stop().await;
    assert!(world.ircd.wrote().iter().any(|l| l.starts_with("QUIT")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_from_outside_never_is_a_line_of_its_own() {
    let world = World::new(Echo::Yes).await;
    let evil = "Fix it\r\nPRIVMSG #ops :!cmd * -- id";
    world.broker.answers(move |_| evil.to_owned());
    let bot = world.bot(FAST).await;
    world.ircd.write("ana", "#ops", "!last");
    world.broker.tell(
        "news",
        "#ops",
        &["webapp: eve pushed 1 to main", evil, "\x01DCC SEND x\x01"],
    );
    until("all is said", || world.ircd.said("#ops").len() >= 4).await;
    let mut said = world.ircd.said("#ops");
    said.sort();
    assert_eq!(
        said,
        [
            "Fix it␍␊PRIVMSG #ops :!cmd * -- id",
            "ana: Fix it␍␊PRIVMSG #ops :!cmd * -- id",
            "webapp: eve pushed 1 to main",
            "␁DCC SEND x␁",
        ]
    );
    for line in world.ircd.wrote() {
        assert!(!line.contains(['\r', '\n', '\0', '\x01']), "{line:?}");
        assert!(!line.starts_with("PRIVMSG #ops :!"), "{line:?}");
        assert!(line.len() <= 510, "{line:?}");
    }
    bot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_in_the_middle_of_announcing_nothing_is_lost() {
    for echo in [Echo::Yes, Echo::No] {
        let world = World::new(echo).await;
        let bot = world.bare(FAST).await;
        until("it follows", || !world.broker.followed().is_empty()).await;
        world.broker.tell("news", "#ops", &["push 1"]);
        until("the first is said", || world.ircd.said("#ops").len() == 1).await;
        // On disk, too.
        let file = world.state().join("state/feed-ops.json");
        let done =
            || std::fs::read_to_string(&file).is_ok_and(|t| t.contains("\"confirmed\":\"p1\""));
        until("the cursor moves", done).await;
        // Written, and the server says nothing of it; nor of what follows.
        world.ircd.echo(Echo::Mute);
        world.broker.tell("news", "#ops", &["push 2"]);
        until("the second is written", || {
            world.ircd.said("#ops").len() == 2
        })
        .await;
        bot.abort();
        let _ = bot.await;
        world.broker.tell("alarm", "#ops", &["alarm 3"]);
        world.broker.tell("news", "#ops", &["push 4"]);

        world.ircd.echo(echo);
        let bot = world.bot(FAST).await;
        until("all is said", || world.ircd.said("#ops").len() >= 5).await;
        let mut said = world.ircd.said("#ops").split_off(2);
        said.sort();
        assert_eq!(said, ["(again) push 2", "alarm 3", "push 4"]);
        assert_eq!(world.broker.followed(), [None, Some("p1".to_owned())]);
        let done =
            || std::fs::read_to_string(&file).is_ok_and(|t| t.contains("\"confirmed\":\"p4\""));
        until("the cursor moves", done).await;
        bot.stop().await;
        // And nothing is said once more.
        let bot = world.bot(FAST).await;
        world.broker.tell("news", "#ops", &["push 5"]);
        until("the last is said", || world.ircd.said("#ops").len() >= 6).await;
        assert_eq!(world.ircd.said("#ops").split_off(5), ["push 5"]);
        bot.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_lines_at_once_on_fifty_channels_are_all_answered() {
    let world = World::new(Echo::Yes).await;
    let bot = world.bot(FAST).await;
    let channels = world.ircd.names().to_vec();
    for n in 0..1_000 {
        let channel = &channels[n % channels.len()];
        world
            .ircd
            .write(&format!("n{}", n % 200), channel, &format!("!ping {n}"));
    }
    let answered = || {
        channels
            .iter()
            .map(|c| world.ircd.said(c).len())
            .sum::<usize>()
    };
    until("all are answered", || answered() >= 1_000).await;
    assert_eq!(answered(), 1_000);
    for (at, channel) in channels.iter().enumerate() {
        // Each where it was asked.
        let mut numbers: BTreeMap<usize, String> = BTreeMap::new();
        for text in world.ircd.said(channel) {
            let (nick, number) = text.split_once(": ping ").expect("an answer");
            numbers.insert(number.parse().expect("a number"), nick.to_owned());
        }
        let wanted: BTreeMap<usize, String> = (0..1_000)
            .filter(|n| n % channels.len() == at)
            .map(|n| (n, format!("n{}", n % 200)))
            .collect();
        assert_eq!(numbers, wanted);
    }
    // What one connection wrote was told in its order.
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    for (line, _) in world.broker.lines() {
        let number = line
            .line
            .trim_start_matches("ping ")
            .parse()
            .expect("a number");
        let before = last.insert(line.speaker.nick.clone(), number);
        assert!(before.is_none_or(|before| before < number));
    }
    bot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_is_said_to_be_and_nothing_comes_later() {
    let world = World::new(Echo::Yes).await;
    let bot = world.bot(FAST).await;
    until("it follows", || !world.broker.followed().is_empty()).await;
    world.broker.away();
    world.ircd.write("ana", "#ops", "!deploy 1.4.2");
    until("it is said", || !world.ircd.said("#ops").is_empty()).await;
    let said = world.ircd.said("#ops");
    assert_eq!(said.len(), 1);
    assert!(said[0].starts_with("ana: the broker"), "{said:?}");
    world.broker.tell("alarm", "#ops", &["while it was away"]);
    world.broker.back().await;
    until("the feed is there again", || {
        world.ircd.said("#ops").len() == 2
    })
    .await;
    assert_eq!(world.ircd.said("#ops")[1], "while it was away");
    world.ircd.write("ana", "#ops", "!ping");
    until("it answers", || world.ircd.said("#ops").len() == 3).await;
    let told = world.broker.lines();
    let told: Vec<&str> = told.iter().map(|(l, _)| l.line.as_str()).collect();
    assert_eq!(told, ["ping"]);
    bot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_queued_as_a_reply_is_said_before_it_quits() {
    let world = World::new(Echo::Yes).await;
    let bot = world.bot("burst = 1\nrate = 4\n").await;
    for n in 0..3 {
        world.ircd.write("ana", "#ops", &format!("!ping {n}"));
    }
    until("all are told", || world.broker.lines().len() == 3).await;
    bot.stop().await;
    assert_eq!(
        world.ircd.said("#ops"),
        ["ana: ping 0", "ana: ping 1", "ana: ping 2"]
    );
    let wrote = world.ircd.wrote();
    assert!(
        wrote.last().is_some_and(|l| l.starts_with("QUIT")),
        "{wrote:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_ends_and_what_was_in_doubt_is_marked() {
    let world = World::new(Echo::Yes).await;
    let bot = world.bot(FAST).await;
    until("it follows", || !world.broker.followed().is_empty()).await;
    world.ircd.echo(Echo::Mute);
    world.broker.tell("alarm", "#ops", &["first"]);
    until("it is written", || world.ircd.said("#ops").len() == 1).await;
    let joined = world.ircd.joined();
    world.ircd.echo(Echo::Yes);
    world.ircd.raw("ERROR :Closing link".to_owned());
    until("it is back", || world.ircd.joined() > joined).await;
    world.broker.tell("alarm", "#ops", &["second"]);
    until("all is said", || world.ircd.said("#ops").len() >= 3).await;
    assert_eq!(
        world.ircd.said("#ops"),
        ["first", "(again) first", "second"]
    );
    bot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_fails_does_not_end_the_others() {
    let world = World::new(Echo::Yes).await;
    // What is known of it cannot be read, and nobody is there anyway.
    std::fs::create_dir_all(world.state().join("state/feed-bad.json")).expect("a directory");
    let bad = "[networks.bad]\nserver = \"127.0.0.1:1\"\ntls = false\nnick = \"muster\"\n\
               token_file = \"ops.token\"\n\
               [networks.far]\nserver = \"127.0.0.1:1\"\ntls = false\nnick = \"muster\"\n\
               token_file = \"ops.token\"\n";
    let bot = world.bot(&format!("{FAST}{bad}")).await;
    world.ircd.write("ana", "#ops", "!ping");
    until("it answers", || world.ircd.said("#ops").len() == 1).await;
    bot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_is_said_when_it_is_wanted() {
    let world = World::new(Echo::Yes).await;
    let bot = world.bot(FAST).await;
    until("it follows", || !world.broker.followed().is_empty()).await;
    let lines: Vec<String> = (1..=9).map(|n| format!("web-{n} is down")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    world.broker.tell("alarm", "#ops", &lines);
    until("it is said", || world.ircd.said("#ops").len() == 6).await;
    assert_eq!(world.ircd.said("#ops")[5], "… 4 more lines: !more");
    world.ircd.write("ana", "#ops", "!more");
    until("the rest is said", || world.ircd.said("#ops").len() == 10).await;
    assert_eq!(world.ircd.said("#ops")[6], "ana: web-6 is down");
    assert_eq!(world.ircd.said("#ops")[9], "web-9 is down");
    assert!(world.broker.lines().is_empty());
    bot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_killed_in_the_middle_loses_nothing() {
    let world = World::new(Echo::Yes).await;
    let bot = world.program(FAST).await;
    let file = world.state().join("state/feed-ops.json");
    let place = |place: &str| {
        let place = format!("\"confirmed\":\"{place}\"");
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains(&place))
    };
    // From its first start on it is known where it goes on.
    until("the first place is on disk", || place("p0")).await;
    bot.kill();
    world.broker.tell("news", "#ops", &["push 1"]);
    let bot = world.program(FAST).await;
    until("the first is said", || place("p1")).await;
    world.ircd.echo(Echo::Mute);
    world
        .broker
        .tell("news", "#ops", &["push 2", "  its subject"]);
    until("the second is written", || {
        world.ircd.said("#ops").len() == 3
    })
    .await;
    bot.kill();
    world.ircd.echo(Echo::Yes);
    world.broker.tell("alarm", "#ops", &["alarm 3"]);
    let bot = world.program(FAST).await;
    until("all is said", || place("p3")).await;
    let mut said = world.ircd.said("#ops");
    assert_eq!(said[..3], ["push 1", "push 2", "  its subject"]);
    let mut again = said.split_off(3);
    again.sort();
    assert_eq!(again, ["  its subject", "(again) push 2", "alarm 3"]);
    // Another one keeps away from its state.
    let other = Program::start(&world.file(FAST));
    assert_eq!(other.ends().await.code(), Some(2));
    assert_eq!(bot.stop().await.code(), Some(0));
    assert!(world.ircd.wrote().iter().any(|l| l.starts_with("QUIT")));
    let broken = Program::start(&world.file("nonsense = 1\n"));
    assert_eq!(broken.ends().await.code(), Some(2));
}
