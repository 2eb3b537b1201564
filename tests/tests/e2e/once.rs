//! What is asked for once is done once, also when the broker dies between
//! doing and saying it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use muster_tests::invariants::Audit;
use muster_tests::{Up, finish, lines, signal};
use rustix::process::Signal;

/// When the broker dies.
#[derive(Clone, Copy, Debug)]
enum Dies {
    /// So long after the request was passed on.
    After(Duration),
    /// When its answer begins to come.
    Answering,
}

/// A way to the broker on which the first request for a run is its end: the
/// broker is killed, and whoever asked hears nothing.
fn trap(up: &Up, dies: Dies) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = listener.local_addr().expect("address").port();
    let (to, pid) = (up.port, up.pid("broker").expect("a broker"));
    let sprung = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let sprung = Arc::clone(&sprung);
            std::thread::spawn(move || pass(client, to, pid, dies, &sprung));
        }
    });
    port
}

fn pass(mut client: TcpStream, to: u16, pid: u32, dies: Dies, sprung: &AtomicBool) {
    let Ok(mut broker) = TcpStream::connect(("127.0.0.1", to)) else {
        return;
    };
    let (mut from_broker, mut to_client) = (
        broker.try_clone().expect("a handle"),
        client.try_clone().expect("a handle"),
    );
    let mut first = vec![0; 64 * 1024];
    let Ok(n) = client.read(&mut first) else {
        return;
    };
    let asks = first[..n].starts_with(b"POST /v1/runs ");
    if broker.write_all(&first[..n]).is_err() {
        return;
    }
    if asks && !sprung.swap(true, Ordering::SeqCst) {
        // The body may come in a piece of its own.
        if !first[..n].ends_with(b"}")
            && let Ok(n) = client.read(&mut first)
        {
            let _ = broker.write_all(&first[..n]);
        }
        match dies {
            Dies::After(time) => std::thread::sleep(time),
            Dies::Answering => drop(from_broker.read(&mut [0; 1])),
        }
        let _ = signal(pid, Signal::KILL);
        let _ = client.shutdown(Shutdown::Both);
        return;
    }
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_broker, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut client, &mut broker);
    let _ = broker.shutdown(Shutdown::Both);
}

#[test]
fn a_broker_killed_before_it_answers_makes_one_run_and_the_user_learns_which() {
    let up = Up::start(&["a-1:role=d"]).expect("starts");
    let token = up.state().join("admin.token");
    let ms = Duration::from_millis;
    let mut runs = std::collections::BTreeSet::new();
    for (n, dies) in [
        Dies::Answering,
        Dies::After(ms(0)),
        Dies::After(ms(4)),
        Dies::After(ms(15)),
        Dies::Answering,
    ]
    .into_iter()
    .enumerate()
    {
        let file = up.dir.path().join(format!("effects-{n}"));
        let script = format!("echo x >> {}", file.display());
        let port = trap(&up, dies);
        let mut command = up.bare("muster");
        command
            .arg("--url")
            .arg(format!("http://127.0.0.1:{port}"))
            .arg("--token-file")
            .arg(&token)
            .args([
                "run",
                "a-1",
                "--wait-down",
                "--json",
                "--shell",
                "--",
                &script,
            ]);
        let said = up.heard(finish(command));
        // Killed while it wrote the run down, it starts nothing, and says so.
        let effects = match said.outcomes().get("a-1").map(String::as_str) {
            // With its nodes already written down, or not.
            Some("skipped") | None if matches!(dies, Dies::After(_)) => 0,
            Some("succeeded") => 1,
            _ => panic!("{dies:?}: {said:?} {}", up.logs()),
        };
        assert_eq!(said.code, 1 - effects, "{dies:?}: {said:?}");
        assert_eq!(lines(&file).len(), effects as usize, "{dies:?}");
        assert!(runs.insert(said.run()), "{dies:?}: a run of its own");
        // No other was made.
        let listed = up.muster(&["runs", "list", "--limit", "100", "--json"]);
        assert_eq!(listed.exits(0).list().len(), n + 1, "{dies:?}");
    }
    Audit::of(&up).holds();
}
