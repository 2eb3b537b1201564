//! `muster up` as a process, with a real nats-server: ready, found by other
//! commands, never two of anything, nothing left behind.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use muster_cli::up::identity::Identity;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("directory"),
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A `muster` with a home of its own, and nothing of this machine's.
    fn muster(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command
            .env_remove("MUSTER_URL")
            .env_remove("MUSTER_TOKEN")
            .env_remove("XDG_RUNTIME_DIR");
        command
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", self.dir.path().join("home"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.muster().args(args).output().expect("starts")
    }

    fn up(&self, more: &[&str]) -> Up {
        let mut child = self
            .muster()
            .args(["up", "--listen", "127.0.0.1:0", "--state"])
            .arg(self.state())
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("starts");
        let out = child.stdout.take().expect("piped");
        let (to, from) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = to.send(line);
            }
        });
        let ready = from.recv_timeout(PATIENCE).expect("a line in time");
        Up { child, ready }
    }

    /// The noted process of a part.
    fn part(&self, name: &str) -> Option<Identity> {
        let text = std::fs::read(self.state().join("run").join(format!("{name}.json"))).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A test that failed leaves nothing running either.
        for name in ["broker", "nats-server"] {
            if let Some(identity) = self.part(name).filter(Identity::is_alive) {
                signal(identity.pid, Signal::KILL);
            }
        }
    }
}

struct Up {
    child: Child,
    ready: String,
}

impl Up {
    fn end(mut self, with: Signal) -> i32 {
        signal(self.child.id(), with);
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("waits") {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < until, "it did not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    let _ = kill_process(pid, signal);
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn it_is_ready_found_and_leaves_nothing() {
    let place = Place::new();
    let up = place.up(&[]);
    assert!(
        up.ready.starts_with("ready  http://127.0.0.1:"),
        "{}",
        up.ready
    );
    let token = place.state().join("admin.token");
    assert_eq!(
        std::fs::metadata(&token)
            .expect("token")
            .permissions()
            .mode()
            & 0o777,
        0o600
    );

    let who = place.run(&["whoami"]);
    assert!(
        who.status.success() && text(&who).contains("admin"),
        "{}",
        text(&who)
    );
    let doctor = place.run(&["doctor"]);
    assert!(doctor.status.success(), "{}", text(&doctor));
    let json = place.run(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(status["active"], true);

    let second = place.run(&["up", "--state", place.state().to_str().expect("UTF-8")]);
    assert_eq!(second.status.code(), Some(2));
    assert!(
        text(&second).contains(&format!("process {}", up.child.id())),
        "{}",
        text(&second)
    );

    let parts = ["broker", "nats-server"].map(|name| place.part(name).expect("noted"));
    assert!(parts.iter().all(Identity::is_alive));
    assert_eq!(up.end(Signal::TERM), 0);
    assert!(!parts.iter().any(Identity::is_alive));
    assert!(place.part("broker").is_none());
    let gone = place.run(&["status"]);
    assert_eq!(gone.status.code(), Some(5), "{}", text(&gone));
}

#[test]
fn killed_it_leaves_its_children_and_the_next_adopts_them() {
    let place = Place::new();
    let first = place.up(&[]);
    let ready = first.ready.clone();
    let before = ["broker", "nats-server"].map(|name| place.part(name).expect("noted"));
    first.end(Signal::KILL);
    assert!(before.iter().all(Identity::is_alive));

    let second = place.up(&[]);
    let address = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    assert_eq!(address(&second.ready), address(&ready));
    let after = ["broker", "nats-server"].map(|name| place.part(name).expect("noted"));
    assert_eq!(before, after);

    // A NATS server that dies comes back, and the broker with it.
    signal(after[1].pid, Signal::KILL);
    wait_for("another nats-server", || {
        place
            .part("nats-server")
            .filter(|i| i != &after[1] && i.is_alive())
    });
    wait_for("the broker", || {
        let output = place.run(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["active"] == true && status["nats_connected"] == true).then_some(())
    });
    assert_eq!(second.end(Signal::INT), 0);
    assert!(place.part("nats-server").is_none() && !after[0].is_alive());
}

#[test]
fn what_cannot_work_is_said_before_anything_starts() {
    let place = Place::new();
    let state = place.state();
    let state = state.to_str().expect("UTF-8");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = taken.local_addr().expect("address").to_string();
    for option in ["--listen", "--nats-listen"] {
        let mut args = vec!["up", "--state", state, option, &address];
        if option == "--nats-listen" {
            args.extend(["--listen", "127.0.0.1:0"]);
        }
        let output = place.run(&args);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let said = text(&output);
        assert!(
            said.contains("is in use") && said.contains(option),
            "{said}"
        );
    }
    assert!(place.part("broker").is_none() && place.part("nats-server").is_none());

    let none = place
        .muster()
        .args(["up", "--state", state])
        .env("MUSTER_NATS_SERVER", "/nonexistent")
        .output();
    let said = text(&none.expect("starts"));
    assert!(
        said.contains("/nonexistent") && said.contains("apt install nats-server"),
        "{said}"
    );

    let old = fake_server(place.dir.path(), "nats-server: v2.8.4");
    let output = place
        .muster()
        .args(["up", "--state", state])
        .env("MUSTER_NATS_SERVER", old)
        .output();
    let said = text(&output.expect("starts"));
    assert!(said.contains("2.8.4") && said.contains("2.9.0"), "{said}");

    std::fs::write(place.state().join("version"), "99\n").expect("write");
    let newer = place.run(&["up", "--state", state]);
    assert_eq!(newer.status.code(), Some(2));
    assert!(text(&newer).contains("newer"), "{}", text(&newer));
}

fn fake_server(dir: &Path, says: &str) -> PathBuf {
    let path = dir.join("old-nats-server");
    std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    path
}
