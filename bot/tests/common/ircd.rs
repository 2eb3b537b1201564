//! An IRC server that does what a test wants it to do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What comes of the bot's lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Echo {
    /// They come back.
    Yes,
    /// The server cannot do that.
    No,
    /// They came back until now: from now on the server says nothing at all.
    Mute,
}

struct State {
    echo: Mutex<Echo>,
    /// All that the bot wrote, line by line.
    wrote: Mutex<Vec<String>>,
    joined: AtomicUsize,
    to_bot: Mutex<Option<mpsc::UnboundedSender<String>>>,
    channels: Vec<String>,
}

/// A server.
pub(crate) struct Ircd {
    address: SocketAddr,
    state: Arc<State>,
}

impl Ircd {
    pub(crate) async fn start(echo: Echo) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let channels = (0..50).map(|n| match n {
            0 => "#ops".to_owned(),
            n => format!("#c{n}"),
        });
        let state = Arc::new(State {
            echo: Mutex::new(echo),
            wrote: Mutex::default(),
            joined: AtomicUsize::new(0),
            to_bot: Mutex::default(),
            channels: channels.collect(),
        });
        let for_all = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, for_all.clone()));
            }
        });
        Self { address, state }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// As in a configuration.
    pub(crate) fn channels(&self) -> String {
        let quoted: Vec<String> = self
            .state
            .channels
            .iter()
            .map(|c| format!("{c:?}"))
            .collect();
        quoted.join(", ")
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.state.channels
    }

    pub(crate) fn echo(&self, echo: Echo) {
        *self.state.echo.lock().expect("not poisoned") = echo;
    }

    /// How often a bot has joined all of its channels.
    pub(crate) fn joined(&self) -> usize {
        self.state.joined.load(Ordering::SeqCst)
    }

    /// Somebody writes something.
    pub(crate) fn write(&self, nick: &str, target: &str, text: &str) {
        self.raw(format!(
            "@account={nick} :{nick}!{nick}@host.example PRIVMSG {target} :{text}"
        ));
    }

    pub(crate) fn raw(&self, line: String) {
        let to_bot = self.state.to_bot.lock().expect("not poisoned");
        to_bot
            .as_ref()
            .expect("a bot is there")
            .send(line)
            .expect("it reads");
    }

    /// All that the bot wrote.
    pub(crate) fn wrote(&self) -> Vec<String> {
        self.state.wrote.lock().expect("not poisoned").clone()
    }

    /// What the bot said there.
    pub(crate) fn said(&self, target: &str) -> Vec<String> {
        let begin = format!("PRIVMSG {target} :");
        let wrote = self.wrote();
        let said = wrote.iter().filter_map(|line| line.strip_prefix(&begin));
        said.map(str::to_owned).collect()
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let (read, mut write) = stream.into_split();
    let (to_bot, mut from_all) = mpsc::unbounded_channel::<String>();
    *state.to_bot.lock().expect("not poisoned") = Some(to_bot.clone());
    let writer = tokio::spawn(async move {
        while let Some(line) = from_all.recv().await {
            if write
                .write_all(format!("{line}\r\n").as_bytes())
                .await
                .is_err()
            {
                return;
            }
        }
    });
    talk(BufReader::new(read), &state, &to_bot).await;
    writer.abort();
}

async fn talk(
    mut read: BufReader<OwnedReadHalf>,
    state: &State,
    to_bot: &mpsc::UnboundedSender<String>,
) {
    const ME: &str = "muster!muster@bot.example";
    let mut joined = 0;
    loop {
        let mut bytes = Vec::new();
        match read.read_until(b'\n', &mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // Exactly what a server sees as one line.
        assert!(bytes.ends_with(b"\r\n"), "{bytes:?}");
        let line = String::from_utf8(bytes[..bytes.len() - 2].to_vec()).expect("UTF-8");
        state.wrote.lock().expect("not poisoned").push(line.clone());
        let echo = *state.echo.lock().expect("not poisoned");
        if echo == Echo::Mute {
            continue;
        }
        let say = |line: String| {
            let _ = to_bot.send(line);
        };
        let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match verb {
            "CAP" if rest.starts_with("LS") => {
                let echo = if echo == Echo::Yes {
                    " echo-message"
                } else {
                    ""
                };
                say(format!(
                    ":s CAP * LS :account-tag message-tags account-notify extended-join server-time{echo}"
                ));
            }
            "CAP" if rest.starts_with("REQ") => {
                let caps = rest.trim_start_matches("REQ ").trim_start_matches(':');
                say(format!(":s CAP * ACK :{caps}"));
            }
            "CAP" if rest.starts_with("END") => {
                say(format!(":s 001 muster :Welcome {ME}"));
                say(":s 376 muster :End".to_owned());
            }
            "QUIT" => return,
            "PING" => say(format!(":s PONG s {rest}")),
            "JOIN" => {
                let names = rest.split(' ').next().unwrap_or_default();
                for name in names.split(',') {
                    say(format!(":{ME} JOIN {name} * :muster"));
                    say(format!(":s 353 muster = {name} :muster"));
                    say(format!(":s 366 muster {name} :End"));
                    joined += 1;
                }
                if joined == state.channels.len() {
                    state.joined.fetch_add(1, Ordering::SeqCst);
                }
            }
            "PRIVMSG" if echo == Echo::Yes => say(format!(":{ME} {line}")),
            _ => {}
        }
    }
}
