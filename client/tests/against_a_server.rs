//! The client against a server that behaves, one that does not, and none.
//! The server is a few lines on a socket, so that it can break in the middle.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_client::{Client, ClientError, Endpoint, Happening, Secret, Watch};
use muster_protocol::api::Frame;
use muster_protocol::ids::RunId;
use muster_protocol::problem::Kind;
use muster_protocol::run::Data;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers connections in turn with these bytes, then closes each; keeps what
/// was asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

async fn server(answers: Vec<String>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let mut answers = VecDeque::from(answers);
    tokio::spawn(async move {
        while let Some(answer) = answers.pop_front() {
            let Ok((mut socket, _)) = listener.accept().await else {
                return;
            };
            let mut head = Vec::new();
            let mut byte = [0; 1];
            while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).await.is_ok_and(|n| n > 0)
            {
                head.push(byte[0]);
            }
            seen.lock()
                .expect("lock")
                .push(String::from_utf8_lossy(&head).into_owned());
            let _ = socket.write_all(answer.as_bytes()).await;
            let _ = socket.shutdown().await;
        }
    });
    Server { url, asked }
}

fn client(url: &str) -> Client {
    let endpoint = Endpoint::new(url)
        .expect("url")
        .token(Secret::new("mt1_x_y"))
        .door("cli");
    Client::new(endpoint).expect("client")
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn events(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{body}")
}

fn run() -> RunId {
    RunId::from_bytes([7; 16])
}

fn output(chunk: u32) -> String {
    format!(
        r#"{{"type":"output","run":"{}","node":"a","stream":"stdout","chunk":{chunk},"data":"line {chunk}\n"}}"#,
        run()
    )
}

fn finished() -> String {
    format!(
        r#"{{"type":"run_finished","run":"{}","state":"succeeded","summary":{{}},"nodes":{{}}}}"#,
        run()
    )
}

async fn collect(client: &Client) -> (Vec<String>, usize, Option<ClientError>) {
    let mut events = client.run_events(&run().into());
    let (mut seen, mut lost) = (Vec::new(), 0);
    loop {
        match tokio::time::timeout(Duration::from_secs(30), events.next())
            .await
            .expect("in time")
        {
            None => return (seen, lost, None),
            Some(Err(error)) => return (seen, lost, Some(error)),
            Some(Ok(Watch::Reconnecting { .. })) => lost += 1,
            Some(Ok(Watch::Frame(Frame::Output {
                data: Data::Text(text),
                ..
            }))) => seen.push(text.trim().to_owned()),
            Some(Ok(Watch::Frame(frame))) => seen.push(frame.event().to_owned()),
        }
    }
}

#[tokio::test]
async fn no_event_is_lost_or_repeated_however_the_connection_breaks() {
    // Three frames share id 2: the first connection ends between them, so
    // everything of id 2 is asked for again.
    let server = server(vec![
        events(&format!("id: 1\ndata: {}\n\nid: 2\ndata: {}\n\nid: 2\ndata: {}\n\n", output(0), output(1), output(2))),
        // The answer ends in the middle of an event.
        events(&format!(":hello\n\nid: 2\ndata: {}\n\nid: 2\ndata: {}\n\nid: 2\ndata: {}\n\nid: 5\ndata: {{\"ty", output(1), output(2), output(3))),
        answer("502 Bad Gateway", "text/html", "<h1>later</h1>"),
        events(&format!("id: 2\ndata: {}\n\nid: 5\ndata: {}\n\nid: 6\ndata: {}\n\n", output(3), output(4), finished())),
    ])
    .await;
    let (seen, lost, error) = collect(&client(&server.url)).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(
        seen,
        [
            "line 0",
            "line 1",
            "line 2",
            "line 3",
            "line 4",
            "run_finished"
        ]
    );
    assert_eq!(lost, 3);
    let asked = server.asked.lock().expect("lock").clone();
    let ids: Vec<Option<&str>> = asked
        .iter()
        .map(|head| {
            head.lines().find_map(|l| {
                l.to_ascii_lowercase()
                    .starts_with("last-event-id")
                    .then(|| l.rsplit(' ').next().unwrap_or_default())
            })
        })
        .collect();
    assert_eq!(ids, [None, Some("1"), Some("1"), Some("1")]);
    assert!(asked[0].to_ascii_lowercase().contains("muster-door: cli"));
    assert!(asked[0].contains("Bearer mt1_x_y"));
}

#[tokio::test]
async fn all_lines_of_a_call_are_seen_and_none_twice() {
    let line = |text: &str| {
        format!(
            r#"{{"type":"logged","run":"{}","call":3,"text":"{text}"}}"#,
            run()
        )
    };
    let (coming, up, back) = (line("is being made"), line("is up"), line("is taken back"));
    let server = server(vec![
        events(&format!("id: 1\ndata: {coming}\n\nid: 2\ndata: {up}\n\n")),
        events(&format!(
            "id: 2\ndata: {up}\n\nid: 3\ndata: {back}\n\nid: 4\ndata: {}\n\n",
            finished()
        )),
    ])
    .await;
    let mut events = client(&server.url).run_events(&run().into());
    let mut seen = Vec::new();
    while let Ok(Some(next)) = tokio::time::timeout(Duration::from_secs(30), events.next()).await {
        if let Watch::Frame(Frame::Logged { text, .. }) = next.expect("no error") {
            seen.push(text);
        }
    }
    assert_eq!(seen, ["is being made", "is up", "is taken back"]);
}

#[tokio::test]
async fn what_the_broker_says_of_a_run_ends_the_watch() {
    let problem = r#"{"type":"urn:muster:problem:not-found","kind":"not-found","title":"there is no run 7f3k","status":404}"#;
    let server = server(vec![answer(
        "404 Not Found",
        "application/problem+json",
        problem,
    )])
    .await;
    let (seen, _, error) = collect(&client(&server.url)).await;
    assert!(seen.is_empty());
    let error = error.expect("an error");
    assert_eq!(error.kind(), Some(Kind::NotFound));
    assert_eq!(
        (error.exit_code(), error.to_string().as_str()),
        (2, "there is no run 7f3k")
    );
}

#[tokio::test]
async fn a_broker_that_stays_away_is_given_up() {
    let server = server(vec![events(&format!("id: 1\ndata: {}\n\n", output(0)))]).await;
    let client = client(&server.url);
    let mut events = client
        .run_events(&run().into())
        .give_up_after(Duration::from_millis(700));
    let error = loop {
        match tokio::time::timeout(Duration::from_secs(30), events.next())
            .await
            .expect("in time")
        {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("it ended without an error"),
        }
    };
    assert!(matches!(error, ClientError::EventsLost { .. }), "{error}");
    assert_eq!(error.exit_code(), 5);
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn an_event_that_is_none_is_an_error_and_an_unknown_one_is_passed_over() {
    let server = server(vec![
        events("id: 1\ndata: {\"type\":\"of_the_future\",\"x\":1}\n\nid: 2\ndata: {\"type\":\"output\"}\n\n"),
    ])
    .await;
    let (seen, _, error) = collect(&client(&server.url)).await;
    assert!(seen.is_empty());
    assert!(
        matches!(error, Some(ClientError::Garbage { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn answers_that_no_broker_gives_are_said_to_be_that() {
    let server = server(vec![
        answer("200 OK", "text/html", "<html>hello</html>"),
        answer("500 Oops", "text/plain", "\u{1b}[31mstack\ntrace"),
        answer("301 Moved", "text/plain", ""),
        "nonsense\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned(),
    ])
    .await;
    let client = client(&server.url);
    for _ in 0..3 {
        let error = client.status().await.expect_err("garbage");
        assert!(matches!(error, ClientError::Garbage { .. }), "{error:?}");
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
        assert_eq!(error.exit_code(), 5);
    }
    for _ in 0..2 {
        let error = client.status().await.expect_err("broken");
        assert!(
            matches!(
                error,
                ClientError::Lost { .. } | ClientError::Scheme { tls: false, .. }
            ),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn nobody_there_slow_and_without_tls_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("address");
    // It accepts, and never answers.
    let endpoint = Endpoint::new(&format!("http://{address}"))
        .expect("url")
        .timeouts(Duration::from_secs(5), Duration::from_millis(200));
    let error = Client::new(endpoint)
        .expect("client")
        .status()
        .await
        .expect_err("slow");
    assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");

    drop(listener);
    let error = client(&format!("http://{address}"))
        .status()
        .await
        .expect_err("nobody");
    assert!(matches!(error, ClientError::Refused { .. }), "{error:?}");
    assert!(error.hint().is_some_and(|h| h.contains("muster up")));

    // It answers what came in TLS in plain text.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let url = format!("https://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket
                .write_all(answer("400 Bad Request", "text/plain", "tls?").as_bytes())
                .await;
        }
    });
    let error = client(&url).status().await.expect_err("no TLS");
    assert!(
        matches!(error, ClientError::Scheme { tls: true, .. }),
        "{error:?}"
    );
    assert!(error.hint().is_some_and(|h| h.contains("write http://127")));

    // And the other way round: what a TLS server says to plain text.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(&[0x15, 3, 3, 0, 2, 2, 22]).await;
        }
    });
    let error = client(&url).status().await.expect_err("TLS");
    assert!(
        matches!(error, ClientError::Scheme { tls: false, .. }),
        "{error:?}"
    );
    assert!(
        error
            .hint()
            .is_some_and(|h| h.contains("write https://127"))
    );
}

#[tokio::test]
async fn a_wrong_authority_file_is_named() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("ca.pem");
    let endpoint = || {
        Endpoint::new("https://127.0.0.1:1")
            .expect("url")
            .ca_file(&path)
    };
    let error = Client::new(endpoint()).expect_err("missing");
    assert!(
        matches!(&error, ClientError::CaFile { path: p, .. } if *p == path),
        "{error:?}"
    );
    std::fs::write(&path, "not a certificate").expect("write");
    let error = Client::new(endpoint()).expect_err("empty");
    assert!(matches!(error, ClientError::CaFile { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 2);
}

#[tokio::test]
async fn what_happens_is_followed_through_lost_connections() {
    let event = |id: u32| {
        format!(
            r#"{{"specversion":"1.0","id":"e{id}","source":"/x","type":"git.push","data":{{"text":"t"}},"seq":{id}}}"#
        )
    };
    let server = server(vec![
        answer("503 Service Unavailable", "text/html", "later"),
        events(&format!(
            ":\n\nid: 7\ndata: {}\n\nid: 9\ndata: {}\n\nid: 1",
            event(7),
            event(9)
        )),
        // The store went back.
        events(&format!(
            "event: renumbered\nid: x-3\ndata: {{}}\n\nid: x-4\ndata: {}\n\n",
            event(4)
        )),
        answer(
            "403 Forbidden",
            "application/problem+json",
            r#"{"type":"urn:muster:problem:denied","kind":"denied","title":"no","status":403}"#,
        ),
    ])
    .await;
    let kinds = ["git.*".to_owned(), "alarm.*".to_owned()];
    let mut following = client(&server.url).follow_events(Some(5), &kinds, Some("acme/*"));
    let mut seen = Vec::new();
    let error = loop {
        let next = tokio::time::timeout(Duration::from_secs(30), following.next());
        match next.await.expect("in time").expect("not before an error") {
            Ok(Happening::Event(event)) => seen.push(event.id),
            Ok(Happening::Renumbered) => seen.push("renumbered".into()),
            Ok(Happening::Reconnecting { .. }) => seen.push("lost".into()),
            Err(error) => break error,
        }
    };
    assert_eq!(
        seen,
        ["lost", "e7", "e9", "lost", "renumbered", "e4", "lost"]
    );
    assert_eq!(error.kind(), Some(Kind::Denied));
    assert!(following.next().await.is_none());
    let asked = server.asked.lock().expect("lock").clone();
    let id = |head: &str| {
        let line = head
            .lines()
            .find(|l| l.to_ascii_lowercase().starts_with("last-event-id"))?;
        Some(line.rsplit(' ').next()?.to_owned())
    };
    let ids: Vec<_> = asked.iter().map(|head| id(head)).collect();
    let some = |id: &str| Some(id.to_owned());
    assert_eq!(ids, [None, None, some("9"), some("x-4")]);
    let line = asked[0].lines().next().expect("a line");
    assert!(
        line.starts_with("GET /v1/events/watch?kind=git.*%2Calarm.*&subject=acme%2F*&after=5 "),
        "{line}"
    );
}

#[tokio::test]
async fn what_is_done_with_a_machine_is_asked_for_until_it_is_known_under_one_name() {
    let nobody =
        r#"{"type":"urn:muster:problem:not-found","kind":"not-found","title":"no","status":404}"#;
    let lost = || "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{".to_owned();
    let no = || answer("404 Not Found", "application/problem+json", nobody);
    let server = server(vec![lost(), no(), lost(), lost(), no()]).await;
    let client = client(&server.url);
    let name = "web-1".parse().expect("a name");
    let exec = muster_protocol::api::VmAction::Exec {
        argv: vec!["date".to_owned()],
        timeout: None,
    };
    let error = client.act_on_vm(&name, &exec).await.expect_err("no such");
    assert_eq!(error.kind(), Some(Kind::NotFound));
    let error = client.destroy_vm(&name, true).await.expect_err("no such");
    assert_eq!(error.kind(), Some(Kind::NotFound));
    let asked = server.asked.lock().expect("lock").clone();
    let keys: Vec<String> = asked
        .iter()
        .filter_map(|head| {
            let line = head
                .lines()
                .find(|l| l.to_ascii_lowercase().starts_with("idempotency-key"))?;
            Some(line.rsplit(' ').next()?.to_owned())
        })
        .collect();
    assert_eq!(keys.len(), 5, "{asked:?}");
    assert_eq!(keys[0], keys[1]);
    assert_eq!((&keys[2], &keys[3]), (&keys[3], &keys[4]));
    assert_ne!(keys[0], keys[2]);
}
