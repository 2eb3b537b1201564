//! As much HTTP as a bot speaks.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_protocol::api::{ChatAnswer, ChatLine, Say, Tone, Urgency};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

type Answer = Box<dyn Fn(&ChatLine) -> String + Send + Sync>;

#[derive(Default)]
struct State {
    lines: Mutex<Vec<(ChatLine, String)>>,
    /// Places and utterances, in order.
    feed: Mutex<Vec<(String, String)>>,
    /// From which places it was followed.
    followed: Mutex<Vec<Option<String>>>,
    tokens: Mutex<Vec<String>>,
    answer: Mutex<Option<Answer>>,
}

/// A broker.
pub(crate) struct Broker {
    address: SocketAddr,
    state: Arc<State>,
    news: watch::Sender<usize>,
    accepting: Mutex<AbortHandle>,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let news = watch::Sender::new(0);
        let accepting = accept(listener, state.clone(), news.subscribe());
        Self {
            address,
            state,
            news,
            accepting: Mutex::new(accepting),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no connection any more, and ends those that there are.
    pub(crate) fn away(&self) {
        self.accepting.lock().expect("not poisoned").abort();
        self.news.send_replace(usize::MAX);
    }

    /// It is there again.
    pub(crate) async fn back(&self) {
        let listener = TcpListener::bind(self.address).await.expect("the port");
        self.news.send_replace(0);
        let accepting = accept(listener, self.state.clone(), self.news.subscribe());
        *self.accepting.lock().expect("not poisoned") = accepting;
    }

    /// How lines are answered; else with what was written.
    pub(crate) fn answers(&self, answer: impl Fn(&ChatLine) -> String + Send + Sync + 'static) {
        *self.state.answer.lock().expect("not poisoned") = Some(Box::new(answer));
    }

    /// What was told, with the names of the requests.
    pub(crate) fn lines(&self) -> Vec<(ChatLine, String)> {
        self.state.lines.lock().expect("not poisoned").clone()
    }

    pub(crate) fn tokens(&self) -> Vec<String> {
        self.state.tokens.lock().expect("not poisoned").clone()
    }

    pub(crate) fn followed(&self) -> Vec<Option<String>> {
        self.state.followed.lock().expect("not poisoned").clone()
    }

    /// Something is to be said.
    pub(crate) fn tell(&self, urgency: &str, channel: &str, lines: &[&str]) {
        let mut feed = self.state.feed.lock().expect("not poisoned");
        let place = format!("p{}", feed.len() + 1);
        let utterance = json!({
            "id": place,
            "place": { "network": "ops", "channel": channel },
            "say": { "urgency": urgency, "lines": lines },
            "at": muster_protocol::units::Timestamp::now(),
        });
        feed.push((place, utterance.to_string()));
        self.news.send_modify(|n| *n = n.wrapping_add(1));
    }
}

fn accept(listener: TcpListener, state: Arc<State>, news: watch::Receiver<usize>) -> AbortHandle {
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            let _ = stream.set_nodelay(true);
            connections.spawn(serve(stream, state.clone(), news.clone()));
        }
    });
    task.abort_handle()
}

async fn serve(stream: TcpStream, state: Arc<State>, news: watch::Receiver<usize>) {
    let mut stream = BufReader::new(stream);
    loop {
        let Some(request) = read(&mut stream).await else {
            return;
        };
        let token = request.header("authorization").unwrap_or_default();
        state.tokens.lock().expect("not poisoned").push(token);
        let kept = if request.target.starts_with("/v1/chat/feed?network=ops") {
            let _ = follow(&mut stream, &request, &state, news.clone()).await;
            false
        } else if request.target == "/v1/chat/lines" {
            let answer = lines(&request, &state);
            respond(&mut stream, "200 OK", &answer).await.is_ok()
        } else {
            respond(&mut stream, "404 Not Found", "{}").await.is_ok()
        };
        if !kept {
            return;
        }
    }
}

struct Request {
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<String> {
        let header = self.headers.iter().find(|(n, _)| n == name);
        header.map(|(_, value)| value.clone())
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut first = String::new();
    stream.read_line(&mut first).await.ok()?;
    let target = first.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request {
        target,
        headers,
        body: Vec::new(),
    };
    let length = request.header("content-length");
    request.body = vec![0; length.map_or(0, |l| l.parse().expect("a number"))];
    stream.read_exact(&mut request.body).await.ok()?;
    Some(request)
}

async fn respond(
    stream: &mut BufReader<TcpStream>,
    status: &str,
    body: &str,
) -> std::io::Result<()> {
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.get_mut().write_all(text.as_bytes()).await
}

fn lines(request: &Request, state: &State) -> String {
    let line: ChatLine = serde_json::from_slice(&request.body).expect("a line");
    let answer = state.answer.lock().expect("not poisoned");
    let text = match answer.as_ref() {
        Some(answer) => answer(&line),
        None => line.line.clone(),
    };
    let key = request.header("idempotency-key").expect("a key");
    state.lines.lock().expect("not poisoned").push((line, key));
    let say = Say {
        urgency: Urgency::Reply,
        tone: Tone::Plain,
        about: None,
        lines: vec![text],
        link: None,
    };
    serde_json::to_string(&ChatAnswer { says: vec![say] }).expect("JSON")
}

/// Everything behind the place that is named; from now on without one.
async fn follow(
    stream: &mut BufReader<TcpStream>,
    request: &Request,
    state: &State,
    mut news: watch::Receiver<usize>,
) -> std::io::Result<()> {
    let after = request.header("last-event-id");
    let mut at = {
        let feed = state.feed.lock().expect("not poisoned");
        match &after {
            Some(after) => {
                let found = feed.iter().position(|(place, _)| place == after);
                found.map_or(0, |at| at + 1)
            }
            None => feed.len(),
        }
    };
    let here = after.clone().unwrap_or(format!("p{at}"));
    let stream = stream.get_mut();
    stream
        .write_all(
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n\
                 event: here\nid: {here}\ndata: {{}}\n\n"
            )
            .as_bytes(),
        )
        .await?;
    state.followed.lock().expect("not poisoned").push(after);
    loop {
        if *news.borrow_and_update() == usize::MAX {
            return Ok(());
        }
        let more: Vec<_> = state.feed.lock().expect("not poisoned")[at..].to_vec();
        for (place, data) in more {
            at += 1;
            stream
                .write_all(format!("id: {place}\ndata: {data}\n\n").as_bytes())
                .await?;
        }
        let mut byte = [0];
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return Ok(()) },
            // The bot is gone.
            _ = stream.read(&mut byte) => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(5)) => stream.write_all(b": here\n\n").await?,
        }
    }
}
