use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::host::testing::{Bench, Heard, shown};

/// Answers by what is asked for; the address, and how often it was asked.
fn server() -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let n = count.fetch_add(1, Ordering::Relaxed);
            let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
            let mut head = String::new();
            let mut length = 0;
            while reader.read_line(&mut head).is_ok_and(|n| n > 2) {
                let line = head.lines().last().unwrap_or_default().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.trim().parse().unwrap_or(0);
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("a body");
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let (status, kind, text) = match path.as_str() {
                "/health" if n < 2 => ("503 Busy", "text/plain", "\n starting\x1b[2J up \n".into()),
                "/json" => ("200 OK", "application/json", "{\"a\": [1]}".to_owned()),
                "/large" => ("200 OK", "text/plain", "x".repeat(3 << 20)),
                "/echo" => (
                    "201 Made",
                    "text/plain",
                    format!("{head}{}", String::from_utf8_lossy(&body)),
                ),
                "/slow" => {
                    std::thread::spawn(move || {
                        std::thread::sleep(Duration::from_secs(120));
                        drop(stream);
                    });
                    continue;
                }
                _ => ("200 OK", "text/plain", "fine".to_owned()),
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
        }
    });
    (address, asked)
}

fn call(url: String, wish: HttpWish) -> HttpCall {
    HttpCall {
        url,
        wish,
        headers: [].into(),
        timeout: None,
    }
}

async fn perform_it(
    bench: &Bench,
    call: &HttpCall,
    mode: Mode,
) -> (Result<Performed, HostError>, Heard) {
    crate::install_crypto();
    let call = call.clone();
    bench
        .with(move |tools| {
            let web = Web::default();
            web.perform(tools, &call, mode).map_err(HostError::from)
        })
        .await
}

fn text(done: Result<Performed, HostError>) -> String {
    match done {
        Err(HostError::Failed(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_answered_is_a_value_of_bounded_size() {
    let (address, _) = server();
    let bench = Bench::new();
    let get = |path: &str| call(format!("{address}{path}"), HttpWish::Get);
    let (done, _) = perform_it(&bench, &get("/json"), Mode::Apply).await;
    let done = done.expect("an answer");
    assert_eq!(shown(&done), "nothing to change");
    assert_eq!(done.value["json"], json!({"a": [1]}));
    assert_eq!(done.value["status"], 200);
    let (done, _) = perform_it(&bench, &get("/large"), Mode::Check).await;
    let value = done.expect("an answer").value;
    assert_eq!(value["body"].as_str().map(str::len), Some(MAX_BODY));
    assert_eq!(value["truncated"], true);
    for bad in ["ftp://x/", "x", "http://"] {
        let (done, _) = perform_it(&bench, &call(bad.into(), HttpWish::Get), Mode::Apply).await;
        assert!(text(done).contains("is not an address"), "{bad}");
    }
    let mut bad = get("/");
    bad.headers = [("A".to_owned(), "x\r\nEvil: y".to_owned())].into();
    let (done, _) = perform_it(&bench, &bad, Mode::Apply).await;
    assert_eq!(text(done), "`A` cannot be a header");
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = closed.local_addr().expect("an address");
    drop(closed);
    let (done, _) = perform_it(
        &bench,
        &call(format!("http://user:geheim@{address}/"), HttpWish::Get),
        Mode::Apply,
    )
    .await;
    let said = text(done);
    assert!(
        said.contains("onnect") && !said.contains("geheim"),
        "{said}"
    );
}

#[tokio::test]
async fn a_post_changes_something_and_a_dry_run_sends_none() {
    let (address, asked) = server();
    let bench = Bench::new();
    let body = json!({"a": 1});
    let mut post = call(format!("{address}/echo"), HttpWish::Post { body });
    post.headers = [("X-Token".to_owned(), "t".to_owned())].into();
    let (done, _) = perform_it(&bench, &post, Mode::Check).await;
    assert_eq!(shown(&done.expect("a dry run")), "would: would post []");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    let (done, _) = perform_it(&bench, &post, Mode::Apply).await;
    let done = done.expect("an answer");
    assert_eq!(shown(&done), "changed: answered 201 []");
    let said = done.value["body"].as_str().expect("a text").to_owned();
    assert!(said.starts_with("POST /echo "), "{said}");
    assert!(
        said.contains("x-token: t") && said.ends_with("{\"a\":1}"),
        "{said}"
    );
    assert!(said.contains("content-type: application/json"), "{said}");
    let body = Value::from("plain text");
    post.wish = HttpWish::Post { body };
    let (done, _) = perform_it(&bench, &post, Mode::Apply).await;
    let value = done.expect("an answer").value;
    assert!(
        value["body"]
            .as_str()
            .expect("a text")
            .ends_with("plain text")
    );
}

#[tokio::test]
async fn until_waits_for_the_answer_and_says_what_it_got_instead() {
    let (address, asked) = server();
    let bench = Bench::new();
    let until = |path: &str, tries| {
        call(
            format!("{address}{path}"),
            HttpWish::Until {
                status: 200,
                tries,
                every: Span::from_millis(20),
            },
        )
    };
    // A dry run changes nothing, so it waits for nothing.
    let (done, _) = perform_it(&bench, &until("/health", 5), Mode::Check).await;
    assert_eq!(done.expect("a dry run").value["status"], 0);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let (done, _) = perform_it(&bench, &until("/health", 1), Mode::Apply).await;
    assert_eq!(
        text(done),
        "1 tries, and the last one: it answered 503: starting\\x1b[2J up"
    );
    asked.store(0, Ordering::Relaxed);
    let (done, _) = perform_it(&bench, &until("/health", 5), Mode::Apply).await;
    assert_eq!(done.expect("an answer").value["status"], 200);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    // A plain get of what is not well fails, and can be caught.
    asked.store(0, Ordering::Relaxed);
    let (done, _) = perform_it(
        &bench,
        &call(format!("{address}/health"), HttpWish::Get),
        Mode::Apply,
    )
    .await;
    assert!(text(done).starts_with("it answered 503"));
}

#[tokio::test]
async fn a_server_that_says_nothing_holds_nobody() {
    let (address, _) = server();
    let bench = Bench::new();
    let mut get = call(format!("{address}/slow"), HttpWish::Get);
    get.timeout = Some(Span::from_millis(300));
    let (done, _) = perform_it(&bench, &get, Mode::Apply).await;
    assert!(text(done).contains("timed out"));
    get.timeout = None;
    let cancel = bench.cancel.clone();
    let (done, ()) = tokio::join!(perform_it(&bench, &get, Mode::Apply), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.cancel();
    });
    assert_eq!(done.0, Err(HostError::Stopped));
}
