use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::mpsc;

use crate::on::report;

#[tokio::test]
async fn it_waits_for_an_answer_and_for_nobody_who_is_gone() {
    let path = std::env::temp_dir().join(format!("muster-checkpoint-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("binds");
    let (said, hear) = mpsc::channel();
    let (go, wait) = mpsc::channel::<bool>();
    let other = std::thread::spawn(move || {
        for _ in 0..2 {
            let (stream, _) = listener.accept().expect("a connection");
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().expect("a copy"));
            reader.read_line(&mut line).expect("a line");
            said.send(line).expect("heard");
            if wait.recv().expect("told") {
                (&stream).write_all(b"go\n").expect("writes");
            }
        }
    });
    for answered in [true, false] {
        let at = path.clone();
        let held = tokio::spawn(async move { report(&at, "here", "run=1 kind=x").await });
        let line = loop {
            match hear.try_recv() {
                Ok(line) => break line,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(
            line,
            format!("{}\there\trun=1 kind=x\n", std::process::id())
        );
        assert!(!held.is_finished(), "it did not wait");
        go.send(answered).expect("told");
        held.await.expect("it goes on");
    }
    other.join().expect("ends");
    std::fs::remove_file(&path).expect("there");
    // Nobody there at all.
    report(&path, "here", "").await;
}
