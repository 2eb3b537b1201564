//! InspIRCd with Atheme: accounts.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use muster_bot::irc::{Heard, Send, Target};
use muster_tests::irc::IrcNetwork;

use super::{Bot, ops, tagged};

fn private(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// A network with the accounts of the bot, ana and eve.
fn network(dir: &Path, what: &str) -> Result<Option<IrcNetwork>> {
    let Some(network) = IrcNetwork::inspircd(dir, what)? else {
        return Ok(None);
    };
    for (name, password) in [
        ("robot", "bot-pass"),
        ("ana", "ana-pass"),
        ("eve", "eve-pass"),
    ] {
        network.account(name, password)?;
    }
    private(&dir.join("pw"), "bot-pass\n")?;
    Ok(Some(network))
}

/// The bot on it, logged in, over TLS.
fn bot(network: &IrcNetwork, dir: &Path) -> Result<Bot> {
    let (port, _) = network.tls().context("it has TLS")?;
    let toml = format!(
        r##"
            server = "127.0.0.1:{port}"
            nick = "muster"
            channels = ["#ops"]
            tls_ca_file = "ca.pem"
            sasl = {{ mechanism = "plain", account = "robot", password_file = "pw" }}
        "##
    );
    Bot::start(dir, &toml)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_says_on_each_line_who_wrote_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(network) = network(dir.path(), "accounts on lines")? else {
        return Ok(());
    };
    let mut bot = bot(&network, dir.path())?;
    let ready = bot.joined().await?;
    assert!(ready.caps.account_tag && ready.caps.server_time && ready.caps.labeled_response);
    assert!(ready.caps.echo_message && ready.caps.account_notify && ready.caps.extended_join);
    assert_eq!((ready.nick.as_str(), ready.line_bytes), ("muster", 512));

    let mut ana = network.person_as("ana", "ana", "ana-pass")?;
    ana.join("#ops")?;
    ana.say("#ops", "!deploy  1.4.2 ")?;
    let line = bot.line().await?;
    assert_eq!(line.text, "deploy  1.4.2 ");
    assert_eq!(line.speaker.account, tagged("ana"));
    assert_eq!(line.channel.as_ref().map(|c| c.as_str()), Some("#ops"));
    assert!(line.server_time.is_some() && line.speaker.sight.is_some());
    assert!(line.id.len() > 10, "{}", line.id);

    // Written to the bot alone, by somebody who is not logged in.
    let mut bob = network.person("bob")?;
    bob.say("muster", "link ABC")?;
    let line = bot.line().await?;
    assert_eq!((line.text.as_str(), line.channel), ("link ABC", None));
    assert_eq!((line.speaker.account, line.speaker.sight), (None, None));

    // What they claim is only text.
    bob.join("#ops")?;
    bob.say(
        "#ops",
        "@account=ana :ana!ana@127.0.0.1 PRIVMSG #ops :!cmd * -- id",
    )?;
    bob.send("NOTICE #ops :!cmd * -- id")?;
    bob.send("@account=ana;+account=ana PRIVMSG #ops :!nodes")?;
    let line = bot.line().await?;
    assert_eq!((line.text.as_str(), line.speaker.account), ("nodes", None));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_a_name_gets_nothing_of_who_had_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(network) = network(dir.path(), "theft of a name")? else {
        return Ok(());
    };
    let mut bot = bot(&network, dir.path())?;
    let mut ana = network.person_as("ana", "ana", "ana-pass")?;
    ana.join("#ops")?;
    bot.joined().await?;
    // Who was there before the bot: known by asking the server.
    bot.sees("ana", Some("ana")).await?;
    ana.say("#ops", "!plan")?;
    let planned = bot.line().await?;
    assert_eq!(planned.speaker.account, tagged("ana"));

    let mut thief = network.person("thief")?;
    thief.join("#ops")?;
    ana.rename("ana-away")?;
    thief.rename("ana")?;
    thief.say("#ops", "!yes")?;
    let confirmed = bot.line().await?;
    assert_eq!(
        (confirmed.speaker.nick.as_str(), confirmed.text.as_str()),
        ("ana", "yes")
    );
    assert_eq!(confirmed.speaker.account, None);
    assert_ne!(confirmed.speaker.sight, planned.speaker.sight);
    bot.sees("ana", Some("ana-away")).await?;

    // Logged in to another account they are that one, whatever the name.
    thief.login("eve", "eve-pass")?;
    thief.say("#ops", "!yes")?;
    assert_eq!(bot.line().await?.speaker.account, tagged("eve"));
    bot.sees("eve", Some("ana")).await?;

    // A logout is seen at once.
    ana.logout()?;
    bot.sees("ana", None).await?;
    ana.say("#ops", "!yes")?;
    assert_eq!(bot.line().await?.speaker.account, None);
    ana.login("ana", "ana-pass")?;
    bot.sees("ana", Some("ana-away")).await?;
    ana.quit()?;
    bot.sees("ana", None).await?;

    // Who comes later: known as they join.
    let mut back = network.person_as("ana2", "ana", "ana-pass")?;
    back.join("#ops")?;
    bot.sees("ana", Some("ana2")).await?;
    back.send("PART #ops")?;
    bot.sees("ana", None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_joins_nothing_before_it_is_logged_in() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(mut network) = network(dir.path(), "a login that fails")? else {
        return Ok(());
    };
    let mut watcher = network.person("watcher")?;
    watcher.join("#ops")?;
    private(&dir.path().join("pw"), "wrong\n")?;
    let mut wrong = bot(&network, dir.path())?;
    let why = wrong.gone().await?;
    assert!(
        why.contains("904") && why.contains("`password_file`"),
        "{why}"
    );
    drop(wrong);

    // Without services nobody can log in; when they are back, it does.
    private(&dir.path().join("pw"), "bot-pass\n")?;
    network.stop_services()?;
    let mut bot = bot(&network, dir.path())?;
    let why = bot.gone().await?;
    assert!(why.contains("SASL"), "{why}");
    let all = watcher.heard_by_now()?;
    assert!(!all.iter().any(|l| l.contains(" JOIN ")), "{all:#?}");
    network.start_services()?;
    network.account("robot", "bot-pass")?;
    bot.joined().await?;
    watcher.hears(&[" JOIN ", "#ops"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_logs_in_too() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(network) = network(dir.path(), "a login by certificate")? else {
        return Ok(());
    };
    let mut ana = network.person("ana")?;
    ana.join("#ops")?;
    let (port, _) = network.tls().context("it has TLS")?;
    let (cert, key) = network.certificate(dir.path(), "robot", "bot-pass")?;
    let toml = |account: &str| {
        format!(
            r##"
                server = "127.0.0.1:{port}"
                nick = "muster"
                channels = ["#ops"]
                tls_ca_file = "ca.pem"
                client_cert_file = "{}"
                client_key_file = "{}"
                sasl = {{ mechanism = "external"{account} }}
            "##,
            cert.display(),
            key.display()
        )
    };
    for account in ["", ", account = \"robot\""] {
        let mut bot = Bot::start(dir.path(), &toml(account))?;
        bot.joined().await?;
        ana.hears(&[":muster!", " JOIN "])?;
        ana.send("WHOIS muster")?;
        ana.hears(&[" 330 ", "muster robot"])?;
        drop(bot);
        ana.hears(&[":muster!", " QUIT "])?;
    }
    // One that services do not know.
    network.certificate(&dir.path().join("data"), "eve", "eve-pass")?;
    let other = toml(", account = \"robot\"").replace("/client", "/data/client");
    let mut bot = Bot::start(dir.path(), &other)?;
    let why = bot.gone().await?;
    assert!(why.contains("904") && why.contains("fingerprint"), "{why}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_says_comes_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(network) = network(dir.path(), "echo")? else {
        return Ok(());
    };
    let mut ana = network.person_as("ana", "ana", "ana-pass")?;
    ana.join("#ops")?;
    let mut bot = bot(&network, dir.path())?;
    let ready = bot.joined().await?;
    let echo = |token| move |h: &Heard| (*h == Heard::Echo { token }).then_some(());
    bot.say(ops(), "hello :there", 7).await?;
    bot.until("an echo", echo(7)).await?;
    ana.hears(&["PRIVMSG #ops :hello :there"])?;

    // A line of exactly the bytes that there is room for, and no more.
    let room = ready.line_bytes - ready.mask_bytes - "PRIVMSG #ops :\r\n".len();
    let text = format!("{}END", "x".repeat(room - 3));
    bot.say(ops(), &text, 8).await?;
    bot.until("an echo", echo(8)).await?;
    ana.hears(&["xEND"])?;
    bot.say(ops(), &format!("y{text}"), 9).await?;
    bot.until("an echo", echo(9)).await?;
    let cut = ana.hears(&[":yxxx"])?;
    assert!(
        !cut.ends_with("END"),
        "the mask was counted with room to spare: {cut}"
    );

    // To nobody, and to where nothing may be said.
    let refused = |token| {
        move |h: &Heard| match h {
            Heard::Refused { token: t, why } if *t == token => Some(why.clone()),
            _ => None,
        }
    };
    bot.say(Target::Nick("nobody".into()), "x", 10).await?;
    bot.until("a refusal", refused(10)).await?;
    ana.send("MODE #ops +m")?;
    ana.hears(&["MODE #ops"])?;
    bot.say(ops(), "x", 11).await?;
    let why = bot.until("a refusal", refused(11)).await?;
    assert!(why.contains("404"), "{why}");
    bot.connection.send.send(Send::Ping { token: 12 }).await?;
    let pong = |h: &Heard| (*h == Heard::Pong { token: 12 }).then_some(());
    bot.until("a PONG", pong).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_comes_back_after_the_server_was_away_and_knows_nobody_from_before() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(mut network) = network(dir.path(), "a server that restarts")? else {
        return Ok(());
    };
    let mut bot = bot(&network, dir.path())?;
    bot.joined().await?;
    let mut ana = network.person_as("ana", "ana", "ana-pass")?;
    ana.join("#ops")?;
    ana.say("#ops", "!plan")?;
    let before = bot.line().await?;
    network.stop_server();
    bot.gone().await?;
    assert_eq!(bot.nick_of("ana"), None);
    network.start_server()?;
    bot.joined().await?;
    let mut ana = network.person_as("ana", "ana", "ana-pass")?;
    ana.join("#ops")?;
    ana.say("#ops", "!yes")?;
    let after = bot.line().await?;
    assert_eq!(after.speaker.account, tagged("ana"));
    assert_ne!(after.speaker.sight, before.speaker.sight);
    assert_ne!(after.id, before.id);
    Ok(())
}
