use muster_protocol::api::{ChatPerson, Secret};
use tokio::io::AsyncWriteExt as _;

use super::*;

/// After each of these the connection is given up, and made anew.
#[tokio::test]
async fn what_no_server_does_ends_the_connection_and_not_the_bot() {
    let server = Server::start().await;
    let mut bot = Bot::start(server.settings());
    for (bytes, why) in [
        (vec![b'a'; 1 << 20], "more than 16383 bytes"),
        (
            [b"@".as_slice(), &[b'a'; 1 << 15], b"\r\n"].concat(),
            "more than 16383 bytes",
        ),
        (
            b":ana!u@h PRIVMSG #ops :!depl".to_vec(),
            "closed the connection",
        ),
        (
            b"ERROR :Closing link (flood)\r\n".to_vec(),
            "Closing link (flood)",
        ),
    ] {
        let mut peer = server.welcome(&mut bot).await;
        peer.raw(&bytes).await;
        // What a server sends when it is gone is no news.
        let _ = peer.stream.get_mut().shutdown().await;
        let mut between = Vec::new();
        let gone = loop {
            match bot.next().await {
                Heard::Gone { why, .. } => break why,
                other => between.push(other),
            }
        };
        assert!(gone.contains(why), "{gone}");
        assert!(
            !between.iter().any(|h| matches!(h, Heard::Line(_))),
            "{between:?}"
        );
        let ana = ChatPerson {
            nick: "ana".into(),
            account: Some("ana".into()),
            sight: None,
        };
        assert_eq!(bot.connection.users.nick_of(&ana), None);
    }
}

#[tokio::test]
async fn rubbish_between_lines_is_passed_over() {
    let server = Server::start().await;
    let mut bot = Bot::start(server.settings());
    let mut peer = server.welcome(&mut bot).await;
    for rubbish in [
        b"\xff\xfe\x00\r\n".as_slice(),
        b"\r\n\r\n\n",
        b":\r\n: \r\n@\r\n@a\r\n@a \r\n:x\r\n",
        b"999999 x\r\n:s 999 \r\n:s 001\r\n:s 005\r\n:s 353\r\n",
        b":s MODE #ops +\r\n:s MODE\r\n:s BATCH\r\n:s BATCH +\r\n:s CAP\r\n",
        b":NickServ!s@services NOTICE muster :You are now identified\r\n",
        b":NickServ!s@services NOTICE muster :!cmd * -- id\r\n",
        b":ana!u@h PRIVMSG #ops :!say caf\xe9\r\n",
    ] {
        peer.raw(rubbish).await;
    }
    let line = bot.line().await;
    assert_eq!(line.text, "say caf\u{fffd}");
    assert_eq!(line.speaker.account, None);
    // And it still speaks.
    let target = Target::Channel("#ops".parse().unwrap());
    let text = "hello".to_owned();
    let send = Send::Privmsg {
        target,
        text,
        token: 1,
    };
    bot.connection.send.send(send).await.unwrap();
    peer.until("PRIVMSG #ops :hello", "", "").await;
}

#[tokio::test]
async fn a_list_of_capabilities_without_end_ends_the_attempt() {
    let server = Server::start().await;
    let mut bot = Bot::start(server.settings());
    let mut peer = server.accept().await;
    peer.until("CAP LS", "", "").await;
    for n in 0..2_000 {
        peer.say(&format!(":s CAP * LS * :cap-{n}\r\n")).await;
    }
    let why = bot.gone().await;
    assert!(why.contains("without end"), "{why}");
    assert!(!peer.rest().await.iter().any(|l| l.starts_with("CAP END")));
    server.welcome(&mut bot).await;
}

#[tokio::test]
async fn a_wrong_password_joins_nothing() {
    let server = Server::start().await;
    let mut settings = server.settings();
    settings.sasl = Some(Sasl::Plain {
        account: "muster".into(),
        password: Secret::new("hunter2"),
    });
    let mut bot = Bot::start(settings);
    for (answer, why) in [
        (
            ":s 904 muster :SASL authentication failed",
            "`password_file`",
        ),
        (":s 908 muster EXTERNAL :are available", "only EXTERNAL"),
    ] {
        let mut peer = server.accept().await;
        peer.until("CAP REQ :sasl", "CAP LS", ":s CAP * LS :sasl")
            .await;
        peer.say(":s CAP * ACK :sasl\r\n").await;
        peer.until(
            "AUTHENTICATE bXVzdGVyAG11c3RlcgBodW50ZXIy",
            "AUTHENTICATE PLAIN",
            "AUTHENTICATE +",
        )
        .await;
        peer.say(&format!(
            "{answer}\r\n:s 001 muster :Welcome\r\n:s 376 muster :End\r\n"
        ))
        .await;
        assert_eq!(peer.rest().await, ["QUIT :the bot ends"]);
        drop(peer);
        let gone = bot.gone().await;
        assert!(gone.contains(why) && !gone.contains("hunter2"), "{gone}");
    }
}

#[tokio::test]
async fn a_server_that_falls_silent_is_asked_and_then_left() {
    let server = Server::start().await;
    let mut settings = server.settings();
    settings.timing.silence = Duration::from_millis(80);
    settings.timing.answer = Duration::from_millis(200);
    let mut bot = Bot::start(settings);
    let mut peer = server.welcome(&mut bot).await;
    peer.until("PING watch", "", "").await;
    peer.say(":s PONG s :watch\r\n").await;
    peer.until("PING watch", "", "").await;
    let why = bot.gone().await;
    assert!(why.contains("does not answer"), "{why}");
    server.welcome(&mut bot).await;
}

#[tokio::test]
async fn a_server_that_never_greets_is_left() {
    let server = Server::start().await;
    let mut settings = server.settings();
    settings.timing.attempt = Duration::from_millis(200);
    settings.sasl = Some(Sasl::External { account: None });
    let mut bot = Bot::start(settings);
    let peer = server.accept().await;
    let why = bot.gone().await;
    assert!(why.contains("is this an IRC server?"), "{why}");
    drop(peer);
    // One whose services vanished in the middle of the login.
    let mut peer = server.accept().await;
    peer.until("CAP REQ :sasl", "CAP LS", ":s CAP * LS :sasl")
        .await;
    peer.say(":s CAP * ACK :sasl\r\n").await;
    let why = bot.gone().await;
    assert!(why.contains("services do not answer"), "{why}");
}

#[tokio::test]
async fn what_is_sent_while_there_is_no_connection_is_dropped() {
    let server = Server::start().await;
    let mut settings = server.settings();
    settings.timing.pause_least = Duration::from_millis(200);
    settings.timing.pause_most = Duration::from_millis(400);
    let mut bot = Bot::start(settings);
    let peer = server.welcome(&mut bot).await;
    drop(peer);
    bot.gone().await;
    let target = Target::Channel("#ops".parse().unwrap());
    let say = |text: &str, token| Send::Privmsg {
        target: target.clone(),
        text: text.to_owned(),
        token,
    };
    bot.connection.send.send(say("lost", 1)).await.unwrap();
    let mut peer = server.welcome(&mut bot).await;
    bot.connection.send.send(say("said", 2)).await.unwrap();
    loop {
        let line = peer.line().await;
        assert_ne!(line, "PRIVMSG #ops :lost");
        if line == "PRIVMSG #ops :said" {
            break;
        }
    }
}

#[tokio::test]
async fn it_goes_with_a_farewell() {
    let server = Server::start().await;
    let mut bot = Bot::start(server.settings());
    let mut peer = server.welcome(&mut bot).await;
    bot.stop.cancel();
    peer.until("QUIT", "", "").await;
    drop(peer);
    while let Some(heard) = timeout(PATIENCE, bot.connection.heard.recv())
        .await
        .unwrap()
    {
        assert!(!matches!(heard, Heard::Gone { .. }));
    }
}

/// Who listens too slowly makes the server wait, and nothing is lost or kept
/// without bound.
#[tokio::test]
async fn a_thousand_lines_at_once_are_all_heard_in_order() {
    let server = Server::start().await;
    let mut bot = Bot::start(server.settings());
    let peer = server.welcome(&mut bot).await;
    let (_reading, mut writing) = peer.stream.into_inner().into_split();
    let flood = tokio::spawn(async move {
        for n in 0..5_000 {
            let line = format!(":ana!u@h PRIVMSG #ops :!say {n}\r\n");
            writing.write_all(line.as_bytes()).await.unwrap();
        }
        writing
    });
    for n in 0..5_000 {
        assert_eq!(bot.line().await.text, format!("say {n}"));
    }
    flood.await.unwrap();
}

#[test]
fn pauses_grow_are_never_the_same_and_never_short() {
    let settings = settings("127.0.0.1", 1);
    for failures in 0..40 {
        let pause = crate::irc::keep::pause(&settings, failures);
        assert!(
            pause >= Duration::from_secs(2) && pause <= Duration::from_secs(300),
            "{pause:?}"
        );
    }
    let long: std::collections::BTreeSet<_> = (0..8)
        .map(|_| crate::irc::keep::pause(&settings, 30))
        .collect();
    assert!(long.len() > 1 && long.iter().all(|p| *p >= Duration::from_secs(150)));
}
