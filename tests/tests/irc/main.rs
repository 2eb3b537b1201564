//! The bot's connection on real networks: InspIRCd with Atheme, and ngIRCd.

mod accounts;
mod plain;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use muster_bot::irc::{Connection, Heard, Line, NetworkFile, Ready, Send, Target, connect};
use muster_protocol::api::{ChatAccount, ChatPerson, Vouched};
use muster_tests::PATIENCE;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The bot's side of a connection.
struct Bot {
    connection: Connection,
    stop: CancellationToken,
    /// Everything that was heard, for messages.
    heard: Vec<Heard>,
}

impl Bot {
    /// A bot with these settings, whose files are in that directory.
    fn start(dir: &Path, toml: &str) -> Result<Self> {
        let file: NetworkFile = toml::from_str(toml)?;
        let mut settings = file.read("test".parse()?, dir)?;
        // What it waits for is what the tests wait for.
        settings.timing.pause_least = Duration::from_millis(50);
        settings.timing.pause_most = Duration::from_millis(500);
        settings.timing.look = Duration::from_millis(300);
        let stop = CancellationToken::new();
        Ok(Self {
            connection: connect(settings, stop.clone()),
            stop,
            heard: Vec::new(),
        })
    }

    async fn until<T>(&mut self, what: &str, want: impl Fn(&Heard) -> Option<T>) -> Result<T> {
        let found = timeout(PATIENCE, async {
            loop {
                let heard = self.connection.heard.recv().await;
                let heard = heard.context("the connection is kept")?;
                let found = want(&heard);
                self.heard.push(heard);
                if let Some(found) = found {
                    return anyhow::Ok(found);
                }
            }
        })
        .await;
        match found {
            Ok(found) => found,
            Err(_) => bail!("waited for {what}; heard {:#?}", self.heard),
        }
    }

    async fn ready(&mut self) -> Result<Ready> {
        self.until("a connection", |h| match h {
            Heard::Ready(ready) => Some(ready.clone()),
            _ => None,
        })
        .await
    }

    /// Connected and in the channel.
    async fn joined(&mut self) -> Result<Ready> {
        let ready = self.ready().await?;
        let joined = |h: &Heard| matches!(h, Heard::Joined(_)).then_some(());
        self.until("to join", joined).await?;
        Ok(ready)
    }

    async fn line(&mut self) -> Result<Line> {
        self.until("a line", |h| match h {
            Heard::Line(line) => Some(line.clone()),
            _ => None,
        })
        .await
    }

    async fn gone(&mut self) -> Result<String> {
        self.until("the end of a connection", |h| match h {
            Heard::Gone { why, .. } => Some(why.clone()),
            _ => None,
        })
        .await
    }

    async fn say(&mut self, target: Target, text: &str, token: u64) -> Result<()> {
        let text = text.to_owned();
        let send = Send::Privmsg {
            target,
            text,
            token,
        };
        Ok(self.connection.send.send(send).await?)
    }

    /// What somebody with that account is called now.
    fn nick_of(&self, account: &str) -> Option<String> {
        self.connection.users.nick_of(&ChatPerson {
            nick: account.to_owned(),
            account: Some(account.to_owned()),
            sight: None,
        })
    }

    /// Waits until somebody with that account is called that; nobody where
    /// `None`.
    async fn sees(&self, account: &str, nick: Option<&str>) -> Result<()> {
        let seen = timeout(PATIENCE, async {
            while self.nick_of(account).as_deref() != nick {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        seen.await.with_context(|| {
            format!(
                "waited for {account} as {nick:?}, not {:?}",
                self.nick_of(account)
            )
        })
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn ops() -> Target {
    Target::Channel("#ops".parse().expect("a channel"))
}

fn tagged(name: &str) -> Option<ChatAccount> {
    Some(ChatAccount {
        name: name.to_owned(),
        vouched: Vouched::Tag,
    })
}
