//! Rubbish in files and on the wire.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use muster_tests::invariants::Audit;
use muster_tests::{Said, Up, finish, signal, wait_for};
use rustix::process::Signal;

use super::{agent, curl, enrol, machine, works};

fn agent_says(up: &Up, name: &str) -> Said {
    finish(agent(up, name))
}

/// One line that names the file, and an exit code that is no crash's.
fn clear(said: &Said, code: i32, words: &[&str]) {
    assert_eq!(said.code, code, "{said:#?}");
    for word in words {
        assert!(said.err.contains(word), "`{word}` in {said:#?}");
    }
    assert!(!said.err.contains("panicked"), "{said:#?}");
}

#[test]
fn rubbish_in_the_files_of_an_agent() {
    let up = Up::start(&[]).expect("starts");
    enrol(&up, "a-1", "x");
    let dir = machine(&up, "a-1");
    // One start, so that there is a journal.
    {
        let log = up.dir.path().join("a-1.log");
        let mut process = super::Process::start(agent(&up, "a-1"), log);
        super::wait_state(&up, "a-1", "up");
        signal(process.child.id(), Signal::TERM).expect("ends");
        wait_for("its end", || (!process.runs()).then_some(())).expect("it ends");
    }
    let with = |file: &str, bytes: &[u8], code: i32, words: &[&str]| {
        let path = dir.join(file);
        let good = std::fs::read(&path).expect(file);
        std::fs::write(&path, bytes).expect("writes");
        clear(&agent_says(&up, "a-1"), code, words);
        std::fs::write(&path, good).expect("writes");
    };
    with(
        "enrolment.json",
        b"{\"cred",
        2,
        &["enrolment.json", "damaged"],
    );
    with("enrolment.json", b"", 2, &["enrolment.json", "damaged"]);
    with(
        "enrolment.json",
        &[0xff; 4096],
        2,
        &["enrolment.json", "damaged"],
    );
    with("nats.key", b"not a seed\n", 2, &["nats.key"]);
    with("version", b"\xff\xfe", 2, &["version"]);
    with("version", b"7\n", 2, &["newer"]);
    with("journal.db", &[0x55; 8192], 1, &["journal.db"]);
    let good = std::fs::read(dir.join("journal.db")).expect("a journal");
    with(
        "journal.db",
        &good[..good.len() / 2 + 100],
        1,
        &["journal.db"],
    );
    let mut torn = good.clone();
    torn[4096..8192].fill(0x55);
    with("journal.db", &torn, 1, &["journal.db", "move it away"]);
    // A directory where a file should be.
    let path = dir.join("enrolment.json");
    let good = std::fs::read(&path).expect("there");
    std::fs::remove_file(&path).expect("there");
    std::fs::create_dir(&path).expect("makes");
    clear(&agent_says(&up, "a-1"), 2, &["enrolment.json"]);
    std::fs::remove_dir(&path).expect("empty");
    std::fs::write(&path, good).expect("writes");

    let config = up.dir.path().join("agent.toml");
    let check = |text: &[u8]| {
        std::fs::write(&config, text).expect("writes");
        let mut command = up.bare("muster-agent");
        command
            .args(["run", "--check-config", "--config"])
            .arg(&config);
        finish(command)
    };
    clear(
        &check(b"facts_evry = '1m'\n"),
        2,
        &["facts_evry", "agent.toml"],
    );
    clear(&check(b"[limits\n"), 2, &["agent.toml"]);
    clear(&check(b"\xff\xff\xff"), 2, &["agent.toml"]);
    clear(&check(b"limits.timeout = 5\n"), 2, &["timeout"]);
    assert_eq!(check(b"").code, 0);
    std::fs::remove_file(&config).expect("there");
    let mut command = up.bare("muster-agent");
    command
        .args(["run", "--check-config", "--config"])
        .arg(&config);
    clear(&finish(command), 2, &["agent.toml"]);

    // With everything as it was, it runs.
    let log = up.dir.path().join("again.log");
    let _process = super::Process::start(agent(&up, "a-1"), log);
    super::wait_state(&up, "a-1", "up");
    works(&up, "role=x", 1);
    Audit::of(&up).holds();
}

fn up_says(up: &Up) -> Said {
    finish(up.up_command())
}

#[test]
fn rubbish_in_the_files_of_a_broker() {
    let mut up = Up::start(&["a-1:role=x"]).expect("starts");
    up.stop(Signal::TERM).expect("ends");
    let state = up.state();
    let with = |file: &str, bytes: &[u8], words: &[&str]| {
        let path = state.join(file);
        let good = std::fs::read(&path).unwrap_or_else(|e| panic!("{file}: {e}"));
        std::fs::write(&path, bytes).expect("writes");
        let said = up_says(&up);
        assert!([1, 2].contains(&said.code), "{file}: {said:#?}");
        for word in words {
            assert!(said.err.contains(word), "{file}: `{word}` in {said:#?}");
        }
        assert!(!said.err.contains("panicked"), "{said:#?}");
        std::fs::write(&path, good).expect("writes");
        assert!(up.processes().is_empty(), "{file}: {:?}", up.processes());
    };
    with("version", b"\x00\xff", &["version"]);
    with("broker.toml", b"listen = [", &["broker.toml"]);
    with(
        "broker.toml",
        b"lisen = '127.0.0.1:1'\n",
        &["broker.toml", "lisen"],
    );
    for entry in std::fs::read_dir(state.join("keys"))
        .expect("keys")
        .flatten()
    {
        let name = format!("keys/{}", entry.file_name().to_string_lossy());
        if entry.path().is_file() && entry.metadata().is_ok_and(|m| m.len() > 0) {
            with(&name, b"rubbish\n", &[name.trim_start_matches("keys/")]);
        }
    }
    // Notes of processes are only notes.
    let notes = state.join("run");
    std::fs::create_dir_all(&notes).expect("makes");
    std::fs::write(notes.join("broker.json"), b"{\"pid\": \"x").expect("writes");
    std::fs::write(notes.join("agent-a-1.json"), [0xff; 100]).expect("writes");
    std::fs::write(state.join("admin.token"), b"rubbish").expect("writes");
    up.launch().expect("starts");
    works(&up, "role=x", 1);

    // Keys that others can read are refused or closed.
    up.stop(Signal::TERM).expect("ends");
    let keys = state.join("keys");
    let open = |mode| {
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(mode)).expect("mode");
    };
    open(0o755);
    let closed =
        |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o077 == 0;
    match up.launch() {
        Ok(()) => assert!(closed(&keys), "the keys stay open to all"),
        Err(e) => {
            assert!(e.to_string().contains("keys"), "{e}");
            open(0o700);
        }
    }

    let check = |text: &[u8], words: &[&str]| {
        let file = up.dir.path().join("b.toml");
        std::fs::write(&file, text).expect("writes");
        let mut command = up.bare("muster");
        command
            .args(["broker", "--check-config", "--config"])
            .arg(&file);
        let said = finish(command);
        assert!([1, 2].contains(&said.code), "{said:#?}");
        for word in words {
            assert!(said.err.contains(word), "`{word}` in {said:#?}");
        }
    };
    check(b"confirm_abvoe = 3\n", &["b.toml", "confirm_abvoe"]);
    check(b"nats.urls = ['http://x']\n", &["nats.urls"]);
    check(b"\xff\xfe", &["b.toml"]);
}

#[test]
fn rubbish_and_silence_on_the_http_port() {
    let up = Up::start(&["a-1:role=x"]).expect("starts");
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", up.port)).expect("connects");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        stream
    };
    let mut noise = vec![0u8; 200_000];
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    for byte in &mut noise {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        *byte = seed.to_le_bytes()[0];
    }
    let long = format!(
        "GET /v1/nodes HTTP/1.1\r\nX: {}\r\n\r\n",
        "y".repeat(200_000)
    );
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5_000));
    for bytes in [
        &noise[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzzz\r\n",
        b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\n",
        b"GET /v1/runs/%ff%fe%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/nodes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xff\r\nConnection: close\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let mut stream = connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        // Cut off is an answer, too; hanging is none.
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(e) => assert_ne!(e.kind(), std::io::ErrorKind::WouldBlock, "it hangs: {e}"),
        }
        let head = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        assert!(
            !head.starts_with("HTTP/1.1 2") && !head.starts_with("HTTP/1.1 5"),
            "{head}"
        );
    }

    // A body without end is not taken.
    let mut stream = connect();
    let _ = stream.write_all(
        format!(
            "POST /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: 4000000000\r\n\r\n",
            up.token().expect("a token")
        )
        .as_bytes(),
    );
    let chunk = vec![b' '; 1 << 16];
    for _ in 0..400 {
        if stream.write_all(&chunk).is_err() {
            break;
        }
    }
    let mut answer = [0u8; 12];
    let _ = stream.read(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{answer:?}");

    // A thousand that say nothing, and watchers that never read.
    let idle: Vec<TcpStream> = (0..1_000).map(|_| connect()).collect();
    let run = up
        .muster(&[
            "run",
            "a-1",
            "--json",
            "--",
            "head",
            "-c",
            "900000",
            "/dev/zero",
        ])
        .exits(0)
        .run();
    let deaf: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = connect();
            let request = format!(
                "GET /v1/runs/{run}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
                up.token().expect("a token")
            );
            stream.write_all(request.as_bytes()).expect("sends");
            stream
        })
        .collect();
    let said = up
        .muster(&["run", "a-1", "--json", "--shell", "--", "seq 20000"])
        .exits(0);
    assert!(said.output("stdout")["a-1"].ends_with("20000\n"));
    finish(curl(&[
        "-sf",
        "--max-time",
        "20",
        &format!("{}/healthz", up.url()),
    ]))
    .exits(0);
    drop((idle, deaf));
    works(&up, "role=x", 1);
    let log = up.logs();
    assert!(!log.contains("panicked"), "{log}");
    Audit::of(&up).holds();
}
