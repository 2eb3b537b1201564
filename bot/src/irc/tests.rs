//! Servers that say what a test wants them to say, on real sockets, and what
//! becomes of the connection.

mod hostile;
mod tls;

use std::time::Duration;

use muster_protocol::chat::ChannelName;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network at that address, without TLS and without login.
pub(crate) fn settings(host: &str, port: u16) -> NetworkSettings {
    NetworkSettings {
        name: "test".parse().unwrap(),
        host: host.to_owned(),
        port,
        tls: None,
        nick: "muster".into(),
        alt_nicks: Vec::new(),
        username: "muster".into(),
        realname: "muster".into(),
        channels: vec![channel("#ops")],
        sasl: None,
        server_password: None,
        prefix: "!".into(),
        timing: Timing::default(),
    }
}

pub(crate) fn channel(name: &str) -> ChannelSettings {
    ChannelSettings {
        name: name.parse::<ChannelName>().unwrap(),
        key: None,
    }
}

/// A server of which a test holds the other end.
struct Server {
    listener: TcpListener,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener }
    }

    /// Settings of a network there, with pauses that no test waits for long.
    fn settings(&self) -> NetworkSettings {
        let mut settings = settings("127.0.0.1", self.listener.local_addr().unwrap().port());
        settings.timing.pause_least = Duration::from_millis(20);
        settings.timing.pause_most = Duration::from_millis(40);
        settings
    }

    async fn accept(&self) -> Peer {
        let (stream, _) = timeout(PATIENCE, self.listener.accept())
            .await
            .unwrap()
            .unwrap();
        Peer {
            stream: BufReader::new(stream),
        }
    }

    /// The next connection, through registration without capabilities and the
    /// JOIN of #ops.
    async fn welcome(&self, bot: &mut Bot) -> Peer {
        let mut peer = self.accept().await;
        peer.until("CAP END", "CAP LS", ":s CAP * LS :").await;
        peer.say(":s 001 muster :Welcome muster!m@h.example\r\n:s 376 muster :End\r\n")
            .await;
        peer.until("JOIN #ops", "", "").await;
        peer.say(":muster!m@h.example JOIN #ops\r\n:s 353 muster = #ops :muster ana\r\n")
            .await;
        bot.until(|h| matches!(h, Heard::Joined(_))).await;
        peer
    }
}

/// One connection of the bot, as the server sees it.
struct Peer {
    stream: BufReader<TcpStream>,
}

impl Peer {
    /// The next line; empty when the bot is gone.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(PATIENCE, self.stream.read_line(&mut line))
            .await
            .expect("the bot says something")
            .unwrap_or(0);
        line.trim_end().to_owned()
    }

    /// Reads until the bot says that; answers what begins with `ask`.
    async fn until(&mut self, want: &str, ask: &str, answer: &str) {
        loop {
            let line = self.line().await;
            assert!(!line.is_empty(), "the bot is gone, and did not say {want}");
            if line.starts_with(want) {
                return;
            }
            if !ask.is_empty() && line.starts_with(ask) {
                self.say(&format!("{answer}\r\n")).await;
            }
        }
    }

    /// All that the bot says until it is gone.
    async fn rest(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            match self.line().await {
                line if line.is_empty() => return all,
                line => all.push(line),
            }
        }
    }

    async fn say(&mut self, text: &str) {
        self.raw(text.as_bytes()).await;
    }

    /// It may have gone already.
    async fn raw(&mut self, bytes: &[u8]) {
        let _ = timeout(PATIENCE, self.stream.get_mut().write_all(bytes)).await;
    }
}

/// The bot's side of a connection.
struct Bot {
    connection: Connection,
    stop: CancellationToken,
}

impl Bot {
    fn start(settings: NetworkSettings) -> Self {
        let stop = CancellationToken::new();
        let connection = connect(settings, stop.clone());
        Self { connection, stop }
    }

    async fn next(&mut self) -> Heard {
        timeout(PATIENCE, self.connection.heard.recv())
            .await
            .expect("something is heard")
            .expect("the connection is kept")
    }

    async fn until(&mut self, want: impl Fn(&Heard) -> bool) -> Heard {
        loop {
            let heard = self.next().await;
            if want(&heard) {
                return heard;
            }
        }
    }

    /// Why the connection ended.
    async fn gone(&mut self) -> String {
        match self.until(|h| matches!(h, Heard::Gone { .. })).await {
            Heard::Gone { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }

    async fn line(&mut self) -> Line {
        match self.until(|h| matches!(h, Heard::Line(_))).await {
            Heard::Line(line) => line,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
