//! NATS that is away, or not what it should be.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;

use muster_tests::invariants::Audit;
use muster_tests::{Up, finish, free_port, signal, wait_for};
use rustix::process::Signal;

use super::{Process, ready, wait_state, works};

fn nats_server(up: &Up, name: &str, config: &str) -> Process {
    let file = up.dir.path().join(format!("{name}.conf"));
    std::fs::write(&file, config).expect("writes");
    let mut command = Command::new("nats-server");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/usr/local/sbin"));
    // The log goes to the file that the test reads.
    command.args(["-l", "/dev/stderr", "-c"]).arg(&file);
    Process::start(command, up.dir.path().join(format!("{name}.log")))
}

/// Waits until the broker says at `/readyz` that it waits, and why.
fn waits_because(up: &Up, broker: &mut Process, words: &[&str]) {
    let mut last = None;
    wait_for(&format!("/readyz to say {words:?}"), || {
        last = ready(up);
        let reason = last.as_ref()?["reason"].as_str()?;
        words.iter().all(|w| reason.contains(w)).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {last:?} {}", broker.says()));
    assert!(broker.runs(), "{}", broker.says());
    // In the log, and not in a flood.
    let log = broker.says();
    let said = log
        .lines()
        .filter(|l| words.iter().all(|w| l.contains(w)))
        .count();
    assert!((1..5).contains(&said), "{said} times: {log}");
    // To people.
    let mut doctor = up.command(&["doctor"]);
    doctor.env("HOME", up.dir.path());
    let said = finish(doctor);
    assert_ne!(said.code, 0, "{said:?}");
    let all = format!("{}{}", said.out, said.err);
    assert!(words.iter().all(|w| all.contains(w)), "doctor: {said:#?}");
    let said = up.muster(&["status"]).exits(5);
    assert!(
        words.iter().all(|w| said.err.contains(w)),
        "status: {said:#?}"
    );
}

/// A server of another time: it greets, and says its version.
fn antique(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut out = stream.try_clone()?;
                out.write_all(
                    b"INFO {\"server_id\":\"OLD\",\"server_name\":\"old\",\"version\":\"2.7.4\",\"proto\":1,\
                      \"go\":\"go1.17\",\"host\":\"127.0.0.1\",\"port\":4222,\"headers\":true,\
                      \"max_payload\":1048576,\"client_id\":1,\"client_ip\":\"127.0.0.1\",\
                      \"auth_required\":true,\"nonce\":\"bm9uY2U\"}\r\n",
                )?;
                for line in BufReader::new(stream).lines() {
                    if line?.starts_with("PING") {
                        out.write_all(b"PONG\r\n")?;
                    }
                }
                std::io::Result::Ok(())
            });
        }
    });
}

/// The address of NATS in a broker's configuration.
fn url_in(toml: &str) -> String {
    let mut quoted = toml.split('"');
    quoted
        .find(|s| s.starts_with("nats://"))
        .expect("a url")
        .to_owned()
}

fn port_of(url: &str) -> u16 {
    let port = url.rsplit(':').next().expect("a port");
    port.parse().expect("a port")
}

#[test]
fn a_broker_waits_for_its_server_and_says_for_what() {
    let mut up = Up::start(&["a-1:role=n"]).expect("starts");
    up.stop(Signal::TERM).expect("ends");
    let toml = up.state().join("broker.toml");
    let own = std::fs::read_to_string(up.state().join("nats/nats.conf")).expect("there");
    let text = std::fs::read_to_string(&toml).expect("there");
    let url = url_in(&text);
    let port = port_of(&url);
    let start = |name: &str, port: u16| {
        let file = up.dir.path().join(format!("{name}.toml"));
        std::fs::write(
            &file,
            text.replace(&url, &format!("nats://127.0.0.1:{port}")),
        )
        .expect("writes");
        let mut command = up.bare("muster");
        command.args(["broker", "--config"]).arg(&file);
        Process::start(command, up.dir.path().join(format!("broker-{name}.log")))
    };

    {
        let mut broker = start("old", {
            let port = free_port().expect("a port");
            antique(port);
            port
        });
        waits_because(&up, &mut broker, &["2.7.4", "2.9.0"]);
    }
    {
        let port = free_port().expect("a port");
        let _open = nats_server(&up, "open", &format!("listen: 127.0.0.1:{port}\n"));
        let mut broker = start("open", port);
        waits_because(&up, &mut broker, &["operator"]);
    }
    {
        let mut other = Up::start(&[]).expect("starts");
        other.stop(Signal::TERM).expect("ends");
        let conf = std::fs::read_to_string(other.state().join("nats/nats.conf")).expect("there");
        let toml = std::fs::read_to_string(other.state().join("broker.toml")).expect("there");
        let port = port_of(&url_in(&toml));
        let _other = nats_server(&up, "other", &conf);
        let mut broker = start("other", port);
        waits_because(&up, &mut broker, &["operator"]);
    }
    {
        // Without the block, whatever is in it.
        let from = own.find("jetstream").expect("it has JetStream");
        let to = from + own[from..].find('}').expect("a block") + 1;
        let conf = format!("{}{}", &own[..from], &own[to..]);
        let _plain = nats_server(&up, "plain", &conf);
        let mut broker = start("plain", port);
        waits_because(&up, &mut broker, &["JetStream"]);
    }

    // Away; and when it comes, the broker takes it up.
    let mut broker = start("own", port);
    waits_because(&up, &mut broker, &[&format!("127.0.0.1:{port}"), "running"]);
    let _own = nats_server(&up, "own", &own);
    wait_for("the broker to be ready", || {
        ready(&up).filter(|r| r["state"] == "active")
    })
    .unwrap_or_else(|e| panic!("{e}: {:?} {}", ready(&up), broker.says()));
    up.muster(&["nodes"]).exits(0);
    Audit::of(&up).holds();
}

#[test]
fn a_server_that_goes_away_is_said_and_waited_for() {
    let up = Up::start(&["a-1:role=n", "a-2:role=n"]).expect("starts");
    let nats = up.pid("nats-server").expect("it runs");
    let (broker, agent) = (
        up.pid("broker").expect("it runs"),
        up.pid("agent-a-1").expect("it runs"),
    );
    // Stopped, not ended: connections are up and nothing answers.
    signal(nats, Signal::STOP).expect("stops");
    let reason = wait_for("/readyz to say so", || {
        let said = ready(&up)?;
        said["reason"].as_str().map(str::to_owned)
    });
    let refused = up.muster(&["run", "role=n", "--json", "--", "true"]);
    signal(nats, Signal::CONT).expect("goes on");
    let reason = reason.unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    assert!(reason.contains("NATS"), "{reason}");
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.err.contains("NATS"), "{refused:?}");
    for name in ["a-1", "a-2"] {
        wait_state(&up, name, "up");
    }
    works(&up, "role=n", 2);
    assert_eq!(up.pid("broker").expect("it runs"), broker, "{}", up.logs());
    assert_eq!(
        up.pid("agent-a-1").expect("it runs"),
        agent,
        "{}",
        up.logs()
    );
    Audit::of(&up).holds();
}
