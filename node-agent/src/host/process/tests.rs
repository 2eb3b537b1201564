use std::collections::BTreeMap;
use std::path::Path;

use super::*;

#[derive(Default)]
struct Heard {
    out: Vec<u8>,
    err: Vec<u8>,
    largest: usize,
    chunks: usize,
}

impl Sink for Heard {
    fn started<'a>(&'a mut self, _: &'a Process, _: Option<&'a Path>) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn output(&mut self, stream: Stream, data: Bytes) -> BoxFuture<'_, ()> {
        self.largest = self.largest.max(data.len());
        self.chunks += 1;
        match stream {
            Stream::Stdout => self.out.extend_from_slice(&data),
            Stream::Stderr => self.err.extend_from_slice(&data),
            Stream::Note => {}
        }
        Box::pin(std::future::ready(()))
    }
}

fn shell(line: &str) -> Spec {
    Spec {
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), line.into()],
        environment: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
        directory: None,
        input: None,
        marks: Vec::new(),
        cgroup: None,
        timeout: Duration::from_secs(60),
        kill_grace: Duration::from_secs(2),
        output_bytes: 1 << 20,
    }
}

async fn run_it(spec: &Spec) -> (End, Heard) {
    let mut heard = Heard::default();
    let end = run(spec, &mut heard, &CancellationToken::new())
        .await
        .expect("starts");
    (end, heard)
}

#[tokio::test]
async fn both_streams_are_heard_apart_and_the_end_is_told() {
    let (end, heard) = run_it(&shell("echo out; echo err >&2; exit 3")).await;
    assert_eq!(
        (heard.out.as_slice(), heard.err.as_slice()),
        (b"out\n".as_slice(), b"err\n".as_slice())
    );
    assert_eq!(
        (end.why, end.exit(), end.signal()),
        (Why::Exited, Some(3), None)
    );
    let (end, _) = run_it(&shell("kill -9 $$")).await;
    assert_eq!((end.exit(), end.signal()), (None, Some(9)));
}

#[tokio::test]
async fn it_has_a_session_of_its_own_no_input_and_a_clean_environment() {
    let line = "cut -d' ' -f1,6 /proc/self/stat; echo $$; cat; pwd; env | grep -v ^PWD= | grep -v ^_= | grep -v ^SHLVL=; readlink /proc/self/fd/0";
    let (_, heard) = run_it(&shell(line)).await;
    let text = String::from_utf8(heard.out).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    let session = lines[0].split(' ').nth(1);
    assert_eq!(
        session,
        Some(lines[1]),
        "the shell is not its session's leader: {text}"
    );
    assert_eq!(lines[2], "/");
    assert_eq!(lines[3], "PATH=/usr/bin:/bin");
    assert!(lines[4].ends_with("/dev/null"), "{text}");
}

#[tokio::test]
async fn output_over_the_cap_is_read_and_thrown_away() {
    let mut spec = shell("head -c 3000000 /dev/zero; echo more >&2; exit 0");
    spec.output_bytes = 100_000;
    let (end, heard) = run_it(&spec).await;
    assert_eq!(
        (end.exit(), end.truncated, end.output_bytes),
        (Some(0), true, 100_000)
    );
    assert_eq!(heard.out.len() + heard.err.len(), 100_000);
    assert!(heard.largest <= MAX_CHUNK);
}

#[tokio::test]
async fn a_trickle_is_passed_on_while_it_runs() {
    let (end, heard) = run_it(&shell("for i in 1 2 3; do echo $i; sleep 0.3; done")).await;
    assert_eq!(end.exit(), Some(0));
    assert_eq!(heard.out, b"1\n2\n3\n");
    assert!(heard.chunks >= 3, "{} chunks", heard.chunks);
}

#[tokio::test]
async fn a_daemon_that_holds_the_output_open_neither_hangs_nor_is_hurt() {
    let (end, heard) = run_it(&shell("sleep 300 & echo $!")).await;
    assert_eq!((end.why, end.exit()), (Why::Exited, Some(0)));
    let pid: u32 = String::from_utf8_lossy(&heard.out)
        .trim()
        .parse()
        .expect("a pid");
    let daemon = Process::read(pid).expect("the daemon lives");
    assert!(daemon.is_alive());
    assert!(daemon.signal(rustix::process::Signal::KILL));
}

#[tokio::test]
async fn the_deadline_ends_the_whole_tree_and_keeps_what_was_said() {
    let mut spec =
        shell("trap 'echo bye; exit 0' TERM; echo begun; setsid sleep 300 & sleep 301 & wait");
    spec.timeout = Duration::from_millis(500);
    let (end, heard) = run_it(&spec).await;
    let Why::TimedOut(ended) = end.why else {
        panic!("{end:?}")
    };
    assert!(ended.found >= 3 && ended.left == 0, "{ended:?}");
    let text = String::from_utf8(heard.out).expect("text");
    assert!(text.starts_with("begun\n"), "{text}");
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed_after_the_grace() {
    let mut spec = shell("trap '' TERM; echo begun; while :; do sleep 0.05; done");
    spec.timeout = Duration::from_millis(300);
    spec.kill_grace = Duration::from_millis(200);
    let (end, _) = run_it(&spec).await;
    assert!(
        matches!(end.why, Why::TimedOut(Ended { left: 0, .. })),
        "{end:?}"
    );
    assert_eq!(end.signal(), Some(9));
}

#[tokio::test]
async fn cancelling_ends_it() {
    let cancel = CancellationToken::new();
    let spec = shell("sleep 300");
    let mut heard = Heard::default();
    let (end, ()) = tokio::join!(run(&spec, &mut heard, &cancel), async {
        tokio::task::yield_now().await;
        cancel.cancel();
    });
    assert!(matches!(end.expect("ran").why, Why::Cancelled(_)));
}

#[tokio::test]
async fn what_cannot_be_started_is_an_error() {
    let mut spec = shell("true");
    spec.program = "no-such-program-anywhere".into();
    let error = run(&spec, &mut Heard::default(), &CancellationToken::new())
        .await
        .expect_err("not there");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    spec.program = "/etc/passwd".into();
    let error = run(&spec, &mut Heard::default(), &CancellationToken::new())
        .await
        .expect_err("no program");
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn it_runs_where_it_is_told_and_reads_what_it_is_given() {
    let mut spec = shell("pwd; cat; echo end");
    spec.directory = Some("/usr/bin".into());
    let long = "x".repeat(300_000);
    spec.input = Some(Bytes::from(long.clone()));
    let before = std::env::current_dir().expect("somewhere");
    let (end, heard) = run_it(&spec).await;
    assert_eq!(end.exit(), Some(0));
    assert_eq!(std::env::current_dir().expect("somewhere"), before);
    let text = String::from_utf8(heard.out).expect("text");
    assert_eq!(text, format!("/usr/bin\n{long}end\n"));
    // One that does not read it, and one that only reads a part.
    for line in ["exit 4", "head -c 10; exit 4"] {
        let mut spec = shell(line);
        spec.input = Some(Bytes::from(long.clone()));
        assert_eq!(run_it(&spec).await.0.exit(), Some(4), "{line}");
    }
}
