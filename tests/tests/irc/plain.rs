//! ngIRCd: a server without accounts, tags and echo.

use anyhow::Result;
use muster_bot::irc::{Casemapping, Heard, Send};
use muster_protocol::api::ChatPerson;
use muster_tests::irc::IrcNetwork;

use super::{Bot, ops};

fn toml(network: &IrcNetwork) -> String {
    format!(
        r##"
            server = "127.0.0.1:{}"
            tls = false
            nick = "muster"
            channels = ["#ops", "#dev"]
        "##,
        network.port()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_an_account_where_there_are_none() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(network) = IrcNetwork::ngircd(dir.path(), "a server without accounts")? else {
        return Ok(());
    };
    let mut ana = network.person("ana")?;
    ana.join("#ops")?;
    let mut bot = Bot::start(dir.path(), &toml(&network))?;
    let ready = bot.joined().await?;
    assert_eq!((ready.caps, ready.line_bytes), (Default::default(), 512));
    assert_eq!(ready.casemapping, Casemapping::Ascii);
    ana.hears(&["JOIN", "#ops"])?;
    ana.say("#ops", "muster: nodes web-*")?;
    let first = bot.line().await?;
    assert_eq!(
        (first.text.as_str(), first.speaker.account),
        ("nodes web-*", None)
    );
    assert_eq!(first.server_time, None);
    ana.say("#ops", "!again")?;
    let second = bot.line().await?;
    assert!(first.speaker.sight.is_some() && first.speaker.sight == second.speaker.sight);
    assert_ne!(first.id, second.id);
    let person = ChatPerson {
        nick: "ana".into(),
        account: None,
        sight: first.speaker.sight,
    };
    assert_eq!(
        bot.connection.users.nick_of(&person).as_deref(),
        Some("ana")
    );

    bot.say(ops(), "hello", 1).await?;
    bot.connection.send.send(Send::Ping { token: 2 }).await?;
    let pong = |h: &Heard| (*h == Heard::Pong { token: 2 }).then_some(());
    bot.until("a PONG", pong).await?;
    let hello = ana.hears(&["PRIVMSG #ops :hello"])?;
    let mask = hello.split(' ').next().unwrap_or_default();
    assert_eq!(mask.len() + 1, ready.mask_bytes, "{mask}");

    // Another name is another sight.
    ana.rename("ana2")?;
    ana.say("#ops", "!again")?;
    let third = bot.line().await?;
    assert_ne!(third.speaker.sight, second.speaker.sight);
    assert_eq!(bot.connection.users.nick_of(&person), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gets_the_wanted_name_when_it_is_free() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(network) = IrcNetwork::ngircd(dir.path(), "a name that is taken")? else {
        return Ok(());
    };
    let squatter = network.person("muster")?;
    let mut bot = Bot::start(dir.path(), &toml(&network))?;
    assert_eq!(bot.joined().await?.nick, "muster_");
    squatter.quit()?;
    let named = |h: &Heard| (*h == Heard::Nick("muster".into())).then_some(());
    bot.until("the name", named).await
}

#[tokio::test(flavor = "multi_thread")]
async fn thrown_out_it_comes_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(network) = IrcNetwork::ngircd(dir.path(), "a kick")? else {
        return Ok(());
    };
    let mut op = network.person("op")?;
    op.join("#ops")?;
    let mut bot = Bot::start(dir.path(), &toml(&network))?;
    bot.joined().await?;
    op.hears(&["JOIN", "#ops"])?;
    op.send("KICK #ops muster :out")?;
    let left = |h: &Heard| matches!(h, Heard::Left(name) if name.as_str() == "#ops").then_some(());
    bot.until("to be thrown out", left).await?;
    let back =
        |h: &Heard| matches!(h, Heard::Joined(name) if name.as_str() == "#ops").then_some(());
    bot.until("to be back", back).await?;
    op.hears(&["JOIN", "#ops"])?;
    Ok(())
}
