//! One network: the task that owns it. It hands to [`Voice`] what it hears, in
//! order, and does what that says.

use std::future::pending;
use std::time::{Duration, Instant};

use muster_client::{ChatNews, Client, ClientError};
use muster_protocol::api::ChatAnswer;
use muster_protocol::names::NetworkName;
use muster_protocol::units::Timestamp;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Network;
use crate::cursor::{Cursor, StateError};
use crate::intake::Asker;
use crate::irc::{self, Connection, Send};
use crate::voice::{Act, Settings, Voice};

/// How long answers are still said when the bot is to end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the connection has for its farewell.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long to wait before a feed is asked for again that the broker refused.
const REFUSED: Duration = Duration::from_secs(15);
/// How long to wait when the connection takes nothing.
const FULL: Duration = Duration::from_millis(200);

/// Why a network cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The broker cannot be spoken to.
    #[error("network {network}: {why}")]
    Client {
        /// Which network.
        network: NetworkName,
        /// The cause.
        why: ClientError,
    },
    /// The part that keeps the connection ended by itself.
    #[error("network {0}: its connection ended by itself")]
    Ended(NetworkName),
}

/// Keeps a network until it is asked to stop.
///
/// # Errors
/// [`NetworkError`]; what passes by itself is none.
pub async fn run(
    network: Network,
    cursor: Cursor,
    stop: CancellationToken,
) -> Result<(), NetworkError> {
    let name = network.irc.name.clone();
    let client = Client::new(network.endpoint.clone()).map_err(|why| NetworkError::Client {
        network: name.clone(),
        why,
    })?;
    let saved = cursor.load()?.unwrap_or_default();
    let hang_up = CancellationToken::new();
    // Also when this ends by itself, or is dropped.
    let _hang_up = hang_up.clone().drop_guard();
    let connection = irc::connect(network.irc, hang_up.clone());
    let users = connection.users.clone();
    let settings = Settings {
        network: name.clone(),
        pace: network.pace,
        style: network.style,
        several_brokers: network.endpoint.urls().len() > 1,
    };
    let voice = Voice::new(settings, saved, Box::new(move |who| users.nick_of(who)));
    let feed = Feed::follow(&client, &name, &voice);
    let owner = Owner {
        name,
        client,
        cursor,
        connection,
        voice,
        feed,
        saving: None,
        asking: JoinSet::new(),
        full_until: None,
    };
    owner.run(stop, hang_up).await
}

type News = Result<ChatNews, ClientError>;

/// What is to be said, as a task of its own hears it: to be interrupted by
/// every line of the network would keep it from ever being connected.
enum Feed {
    /// It is followed. One piece of news waits at most: the broker keeps the
    /// others.
    Open {
        news: mpsc::Receiver<News>,
        _task: AbortOnDropHandle<()>,
    },
    /// The broker refused it; it is asked for again then.
    Refused(Instant),
}

impl Feed {
    fn follow(client: &Client, network: &NetworkName, voice: &Voice) -> Self {
        let mut feed = client.chat_feed(network, voice.resume(), None);
        let (tell, news) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            while let Some(next) = feed.next().await {
                if tell.send(next).await.is_err() {
                    return;
                }
            }
        });
        Self::Open {
            news,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// What comes next; `None` when it is to be followed anew.
    async fn next(&mut self) -> Option<News> {
        match self {
            Self::Open { news, .. } => news.recv().await,
            Self::Refused(at) => {
                sleep_until((*at).into()).await;
                None
            }
        }
    }
}

type Answered = (Asker, Result<ChatAnswer, ClientError>);

struct Owner {
    name: NetworkName,
    client: Client,
    cursor: Cursor,
    connection: Connection,
    voice: Voice,
    feed: Feed,
    saving: Option<JoinHandle<bool>>,
    asking: JoinSet<Answered>,
    /// The connection took nothing.
    full_until: Option<Instant>,
}

impl Owner {
    async fn run(
        mut self,
        stop: CancellationToken,
        hang_up: CancellationToken,
    ) -> Result<(), NetworkError> {
        let mut until: Option<Instant> = None;
        loop {
            self.act();
            if let Some(until) = until {
                let now = now();
                if now >= until || self.voice.is_quiet(now) {
                    break;
                }
            }
            let due = [self.voice.due(now()), until, self.full_until];
            let due = due.into_iter().flatten().min();
            tokio::select! {
                () = stop.cancelled(), if until.is_none() => {
                    self.voice.stop(now());
                    until = Some(now() + LAST_WORDS);
                }
                heard = self.connection.heard.recv() => match heard {
                    Some(heard) => self.voice.heard(heard, now()),
                    None => {
                        self.save_last().await;
                        return Err(NetworkError::Ended(self.name));
                    }
                },
                Some(done) = self.asking.join_next(), if !self.asking.is_empty() => {
                    match done {
                        Ok((asker, answer)) => self.voice.answered(&asker, answer, now()),
                        Err(error) => tracing::error!(network = %self.name, %error, "a line was lost"),
                    }
                }
                saved = wait(&mut self.saving) => {
                    self.saving = None;
                    self.voice.saved(saved);
                }
                news = self.feed.next(), if self.voice.wants_news() => self.news(news),
                () = until_due(due) => {
                    if self.full_until.is_some_and(|at| at <= now()) {
                        self.full_until = None;
                    }
                }
            }
        }
        hang_up.cancel();
        let _ = timeout(FAREWELL, async {
            while let Some(heard) = self.connection.heard.recv().await {
                self.voice.heard(heard, now());
            }
        })
        .await;
        self.save_last().await;
        tracing::info!(network = %self.name, "left");
        Ok(())
    }

    /// Does what is to be done now.
    fn act(&mut self) {
        while self.full_until.is_none() {
            let Some(act) = self.voice.next(now()) else {
                return;
            };
            match act {
                Act::Send(send) => self.send(send),
                Act::Save(saved) => {
                    let (cursor, name) = (self.cursor.clone(), self.name.clone());
                    self.saving = Some(tokio::task::spawn_blocking(move || {
                        let done = cursor.save(&saved);
                        if let Err(error) = &done {
                            tracing::error!(network = %name, %error, "cannot write down what was said");
                        }
                        done.is_ok()
                    }));
                }
                Act::Ask { asker, line, key } => {
                    let client = self.client.clone();
                    let network = self.name.clone();
                    self.asking.spawn(async move {
                        tracing::debug!(%network, id = line.id, "asking the broker");
                        let answer = client.chat_line(&line, &key).await;
                        (asker, answer)
                    });
                }
            }
        }
    }

    fn send(&mut self, send: Send) {
        let token = match &send {
            Send::Privmsg { token, .. } | Send::Multiline { token, .. } => Some(*token),
            Send::Ping { .. } => None,
        };
        match self.connection.send.try_send(send) {
            // That the connection ended is seen where it is heard.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                if let Some(token) = token {
                    self.voice.unsent(token, now());
                }
                self.full_until = Some(now() + FULL);
            }
        }
    }

    fn news(&mut self, news: Option<News>) {
        match news {
            Some(Ok(ChatNews::Utterance { place, utterance })) => {
                self.voice
                    .utterance(place, &utterance, now(), Timestamp::now());
            }
            Some(Ok(ChatNews::Here { place })) => self.voice.here(place),
            Some(Ok(ChatNews::Renumbered { place })) => self.voice.renumbered(place),
            Some(Ok(ChatNews::Reconnecting { why, attempt })) => {
                // One of many says it.
                if attempt == 1 || attempt % 100 == 0 {
                    tracing::warn!(network = %self.name, why, attempt, "the broker's feed is lost; trying again");
                }
            }
            Some(Err(error)) => {
                tracing::error!(network = %self.name, %error, "the broker does not tell what is to be said");
                self.feed = Feed::Refused(now() + REFUSED);
            }
            None => self.feed = Feed::follow(&self.client, &self.name, &self.voice),
        }
    }

    async fn save_last(&mut self) {
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
        let Some(saved) = self.voice.unsaved() else {
            return;
        };
        if let Err(error) = self.cursor.save(&saved) {
            tracing::error!(network = %self.name, %error, "cannot write down what was said");
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn until_due(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => pending().await,
    }
}

async fn wait(saving: &mut Option<JoinHandle<bool>>) -> bool {
    match saving {
        Some(saving) => saving.await.unwrap_or(false),
        None => pending().await,
    }
}
