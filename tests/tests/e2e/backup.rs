//! A cluster goes back to a backup, and its nodes have not.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use muster_tests::invariants::{Audit, Counter};
use muster_tests::release::version;
use muster_tests::{PATIENCE, Said, Up, finish, signal, wait_for};
use rustix::process::Signal;

/// An agent of a machine of its own: its state is not the broker's.
struct Agent(Child);

impl Agent {
    fn run(up: &Up, machine: &str) -> Self {
        Self::of(up, machine, up.bare("muster-agent"))
    }

    /// One whose executable nobody else runs, so that it can replace it.
    fn of_its_own(up: &Up, machine: &str) -> Self {
        let dir = up.dir.path().join(format!("{machine}.bin"));
        std::fs::create_dir_all(&dir).expect("made");
        let program = dir.join("muster-agent");
        std::fs::copy(muster_tests::bin("muster-agent"), &program).expect("copied");
        let mut command = std::process::Command::new(program);
        for unset in [
            "MUSTER_URL",
            "MUSTER_TOKEN",
            "XDG_RUNTIME_DIR",
            "MUSTER_LOG",
        ] {
            command.env_remove(unset);
        }
        command.env("HOME", up.dir.path()).stdin(Stdio::null());
        Self::of(up, machine, command)
    }

    fn of(up: &Up, machine: &str, mut command: std::process::Command) -> Self {
        command
            .args(["run", "--state"])
            .arg(machine_dir(up, machine));
        let log = std::fs::File::create(agent_log(up, machine)).expect("log");
        command.stdout(Stdio::null()).stderr(log);
        Self(command.spawn().expect("starts"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn machine_dir(up: &Up, name: &str) -> PathBuf {
    up.dir.path().join("machines").join(name)
}

fn agent_log(up: &Up, name: &str) -> PathBuf {
    up.dir.path().join(format!("{name}.log"))
}

fn agent_said(up: &Up, name: &str) -> String {
    std::fs::read_to_string(agent_log(up, name)).unwrap_or_default()
}

/// Makes a node of a machine; `again` when it was one.
fn enroll(up: &Up, name: &str, again: bool, args: &[&str]) -> Said {
    let mut all = vec!["node", "invite", "--json", "--name", name];
    all.extend(args);
    let said = up.muster(&all).exits(0);
    let line = said.json_lines().remove(0);
    let invite = line["invites"].as_array().map_or(&line, |all| &all[0]);
    let token = invite["token"].as_str().expect("a token").to_owned();
    let mut command = up.bare("muster-agent");
    command
        .args(["enroll", "--url", &up.url(), "--state"])
        .arg(machine_dir(up, name));
    if again {
        command.arg("--again");
    }
    command.env("MUSTER_ENROLL_TOKEN", token);
    finish(command).exits(0)
}

fn node(up: &Up, name: &str) -> Option<serde_json::Value> {
    let said = up.muster(&["nodes", "--json"]);
    if said.code != 0 {
        return None;
    }
    said.list().into_iter().find(|n| n["name"] == name)
}

fn wait_up(up: &Up, names: &[&str]) {
    for name in names {
        wait_for(&format!("{name} to be up"), || {
            node(up, name).filter(|n| n["state"] == "up")
        })
        .unwrap_or_else(|e| panic!("{e}: {}\n{}", up.logs(), agent_said(up, name)));
    }
}

fn restore(up: &Up, file: &Path, state: &Path) -> Said {
    let mut command = up.bare("muster");
    command.arg("restore").arg(file).arg("--state").arg(state);
    finish(command)
}

/// Runs a script on all nodes that leaves a line in a file each time.
fn count_run(up: &Up, tag: &str) -> String {
    let script = format!("echo {tag}; {}", counter(up, tag).around("true"));
    up.muster(&["run", "role=web", "--json", "--shell", "--", &script])
        .exits(0)
        .run()
}

fn counter(up: &Up, tag: &str) -> Counter {
    up.counter(tag)
}

#[test]
fn nodes_that_have_moved_on_come_back_to_a_restored_cluster() {
    let mut up = Up::start(&[]).expect("starts");
    for name in ["a-1", "a-2"] {
        enroll(&up, name, false, &["--role", "web", "--label", "zone=old"]);
    }
    let _agents = ["a-1", "a-2"].map(|name| Agent::run(&up, name));
    wait_up(&up, &["a-1", "a-2"]);
    let before = count_run(&up, "before");

    // A backup under load, with a run that is not finished in it.
    let go = up.dir.path().join("go");
    let script = counter(&up, "open").around(&format!(
        "until [ -e {} ]; do sleep 0.1; done",
        go.display()
    ));
    let open = up
        .muster(&[
            "run", "role=web", "--detach", "--json", "--shell", "--", &script,
        ])
        .exits(0)
        .run();
    let file = up.dir.path().join("cluster.backup");
    let stop = AtomicBool::new(false);
    let runs = std::thread::scope(|scope| {
        let load: Vec<_> = (0..2)
            .map(|who| {
                let (up, stop) = (&up, &stop);
                scope.spawn(move || {
                    let mut done = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let tag = format!("load-{who}-{}", done.len());
                        count_run(up, &tag);
                        done.push(tag);
                    }
                    done
                })
            })
            .collect();
        let path = file.to_string_lossy().into_owned();
        let said = up.muster(&["backup", &path]);
        stop.store(true, Ordering::Relaxed);
        said.exits(0).says(&["every secret"]);
        load.into_iter()
            .flat_map(|l| l.join().expect("ends"))
            .collect::<Vec<_>>()
    });
    let mode = std::fs::metadata(&file)
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let path = file.to_string_lossy().into_owned();
    up.muster(&["backup", &path]).exits(2).says(&["exists"]);
    for role in ["operator", "reader"] {
        let said = up
            .muster(&["token", "create", "--for", "ana", "--role", role, "--json"])
            .exits(0);
        let token = said.json_lines()[0]["token"]
            .as_str()
            .expect("token")
            .to_owned();
        let other = up.dir.path().join("other.backup");
        up.muster_as(&token, &["backup", &other.to_string_lossy()])
            .exits(4)
            .says(&["may not make backups"]);
        assert!(!other.exists());
    }

    // The cluster moves on.
    std::fs::write(&go, "").expect("writes");
    let after = count_run(&up, "after");
    up.muster(&["runs", "watch", &open, "--json"]).exits(0);
    up.muster(&["node", "label", "a-1", "zone=new", "rack=r1"])
        .exits(0);
    up.muster(&["node", "label", "a-1", "rack=r2"]).exits(0);
    enroll(&up, "late", false, &["--role", "web"]);
    let late = Agent::run(&up, "late");
    wait_up(&up, &["late"]);
    let late_serial = node(&up, "late").expect("there")["serial"]
        .as_u64()
        .expect("a serial");
    // The key of the backup is not obeyed any more.
    let keys = up.muster(&["keys", "list"]).exits(0).out;
    let old_key = keys
        .lines()
        .find(|line| line.contains("active"))
        .and_then(|line| line.split_whitespace().next())
        .expect("a key");
    up.muster(&["keys", "rotate"]).exits(0);
    up.muster(&["keys", "revoke", old_key]).exits(0);
    let key_epoch = up.muster(&["keys", "list", "--json"]).json_lines()[0]["epoch"]
        .as_u64()
        .expect("an epoch");
    let epoch = up.muster(&["status", "--json"]).json_lines()[0]["epoch"]
        .as_u64()
        .expect("an epoch");

    // And is lost.
    up.stop(Signal::TERM).expect("ends");
    std::fs::rename(up.state(), up.dir.path().join("lost")).expect("moves");
    let said = restore(&up, &file, &up.state()).exits(0);
    assert!(said.out.contains("as it was at"), "{said:?}");
    assert!(up.state().join("restore").exists());
    up.launch().expect("starts");
    assert!(!up.state().join("restore").exists());
    wait_up(&up, &["a-1", "a-2"]);

    // Nodes obey, with the labels of the backup.
    assert_eq!(node(&up, "a-1").expect("there")["labels"]["zone"], "old");
    assert_eq!(node(&up, "late"), None);
    let said = up
        .muster(&["run", "zone=old", "--json", "--", "echo", "back"])
        .exits(0);
    assert_eq!(
        said.outcomes(),
        [("a-1", "succeeded"), ("a-2", "succeeded")]
            .map(|(n, o)| (n.to_owned(), o.to_owned()))
            .into()
    );
    count_run(&up, "restored");
    assert_eq!(counter(&up, "restored").begun(), 2);
    let status = up.muster(&["status", "--json"]).json_lines().remove(0);
    assert!(status["epoch"].as_u64() > Some(epoch + 100_000), "{status}");
    assert!(
        status["key_epoch"].as_u64() > Some(key_epoch + 100_000),
        "{status}"
    );

    // What was before is there; what was after comes back from the nodes.
    let show = up.muster(&["runs", "show", &before]).exits(0);
    assert!(show.out.contains("before"), "{show:?}");
    wait_for("the run after the backup", || {
        let said = up.muster(&["runs", "show", &after]);
        (said.code == 0 && said.out.contains("2 succeeded")).then_some(())
    })
    .unwrap_or_else(|e| {
        panic!(
            "{e}: {:?} {}",
            up.muster(&["runs", "show", &after]),
            up.logs()
        )
    });
    // What was open is ended, and nothing has happened twice.
    // The nodes still know how it ended, and are asked.
    let watched = up.muster(&["runs", "watch", &open, "--json"]);
    assert!(
        watched.outcomes().len() == 2 && watched.outcomes().values().all(|o| o == "succeeded"),
        "{watched:?}"
    );
    assert_eq!(counter(&up, "open").begun(), 2);
    let known = up.muster(&["runs", "list", "--json"]).exits(0).list();
    for run in &known {
        let id = run["id"].as_str().expect("an id");
        wait_for(&format!("the end of {id}"), || {
            let said = up.muster(&["runs", "watch", id, "--json"]);
            (said.code != 5).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {}", up.logs()));
    }
    for tag in ["before", "after"]
        .into_iter()
        .chain(runs.iter().map(String::as_str))
    {
        assert_eq!(counter(&up, tag).begun(), 2, "{tag}");
    }

    // Who came later is told, and comes back with a serial of its own.
    wait_for("the late node to be told", || {
        agent_said(&up, "late")
            .contains("not known to this broker")
            .then_some(())?;
        agent_said(&up, "late")
            .contains("restored from a backup: enrol again")
            .then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", agent_said(&up, "late")));
    let events = up.muster(&["events", "--json", "--limit", "500"]).exits(0);
    for kind in ["node.unknown", "cluster.restored", "cluster.backup"] {
        // The backup's own event is in it: it was told before it began.
        assert!(events.out.contains(kind), "{kind}: {}", events.out);
    }
    drop(late);
    enroll(&up, "late", true, &["--role", "web"]);
    let _late = Agent::run(&up, "late");
    wait_up(&up, &["late"]);
    let serial = node(&up, "late").expect("there")["serial"].as_u64();
    assert!(serial > Some(late_serial + 100), "{serial:?}");
    count_run(&up, "three");
    assert_eq!(counter(&up, "three").begun(), 3);

    // The restored cluster can be backed up and restarted like any other.
    let second = up.dir.path().join("second.backup");
    up.muster(&["backup", &second.to_string_lossy()]).exits(0);
    up.stop(Signal::TERM).expect("ends");
    up.launch().expect("starts again");
    wait_up(&up, &["a-1", "a-2", "late"]);
    count_run(&up, "again");
    assert_eq!(counter(&up, "again").begun(), 3);
    Audit::of(&up).holds();
}

#[test]
fn what_is_damaged_or_in_the_way_is_refused_and_nothing_is_written() {
    let up = Up::start(&["a-1"]).expect("starts");
    up.muster(&["run", "a-1", "--json", "--", "echo", "x"])
        .exits(0);
    let file = up.dir.path().join("good.backup");
    up.muster(&["backup", &file.to_string_lossy()]).exits(0);
    let good = std::fs::read(&file).expect("read");
    let (bad, dir) = (up.dir.path().join("bad.backup"), up.dir.path().join("new"));
    let refused = |bytes: &[u8], parts: &[&str]| {
        std::fs::write(&bad, bytes).expect("writes");
        restore(&up, &bad, &dir).exits(2).says(parts);
        assert!(!dir.exists());
    };
    let find = |needle: &[u8]| {
        good.windows(needle.len())
            .position(|w| w == needle)
            .expect("is in it")
    };
    for (needle, part) in [
        (&b"m1.run."[..], "stream MUSTER_RUNS"),
        (b"$KV.muster_nodes.", "stream KV_muster_nodes"),
        (b"operator", "file keys/nats-keys.json"),
    ] {
        let mut bytes = good.clone();
        bytes[find(needle) + 1] ^= 0x20;
        refused(&bytes, &["damaged", part]);
        refused(&good[..find(needle) + 2], &["truncated", part]);
    }
    refused(&good[..good.len() - 1], &["truncated", "manifest"]);
    refused(b"something else", &["not a backup"]);

    // There is something already.
    std::fs::create_dir(&dir).expect("makes");
    std::fs::write(dir.join("precious"), "x").expect("writes");
    restore(&up, &file, &dir)
        .exits(2)
        .says(&["not empty", "precious"]);
    assert_eq!(std::fs::read_dir(&dir).expect("there").count(), 1);
    restore(&up, &file, &up.state())
        .exits(2)
        .says(&["not empty"]);
    std::fs::remove_file(dir.join("precious")).expect("removes");
    restore(&up, &file, &dir).exits(0);
}

#[test]
fn a_broker_killed_while_it_imports_begins_again() {
    let mut up = Up::start(&["a-1:role=web"]).expect("starts");
    let mut runs = Vec::new();
    for at in 0..12 {
        let script = format!("head -c 900000 /dev/zero | tr '\\0' x; echo end-{at}");
        runs.push(
            up.muster(&["run", "a-1", "--json", "--shell", "--", &script])
                .exits(0)
                .run(),
        );
    }
    let shown = |up: &Up| {
        runs.iter()
            .map(|run| up.muster(&["runs", "show", run, "--json"]).exits(0).out)
            .collect::<Vec<_>>()
    };
    let before = shown(&up);
    let file = up.dir.path().join("big.backup");
    up.muster(&["backup", &file.to_string_lossy()]).exits(0);
    up.stop(Signal::TERM).expect("ends");
    std::fs::rename(up.state(), up.dir.path().join("lost")).expect("moves");
    restore(&up, &file, &up.state()).exits(0);

    // `muster up` starts it again each time.
    let killer = {
        let log = up.state().join("log").join("broker.log");
        let (note, pending) = (
            up.state().join("run").join("broker.json"),
            up.state().join("restore"),
        );
        std::thread::spawn(move || {
            let (mut killed, start) = (0, Instant::now());
            while killed < 2 && start.elapsed() < PATIENCE {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let begun = text.matches("putting a backup into NATS").count();
                let pid = std::fs::read_to_string(&note)
                    .ok()
                    .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
                    .and_then(|json| u32::try_from(json["pid"].as_u64()?).ok());
                if let Some(pid) = pid.filter(|_| begun > killed && pending.exists())
                    && signal(pid, Signal::KILL).is_ok()
                {
                    killed += 1;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            killed
        })
    };
    up.launch().expect("starts");
    assert_eq!(killer.join().expect("ends"), 2, "{}", up.logs());
    let log = std::fs::read_to_string(up.state().join("log").join("broker.log")).expect("a log");
    assert!(log.contains("an import was not finished"), "{log}");
    assert_eq!(shown(&up), before);
    let known = up.muster(&["runs", "list", "--json"]).exits(0).list();
    assert_eq!(known.len(), runs.len(), "each once");
    assert!(!up.state().join("restore").exists());
    Audit::of(&up).holds();
}

#[test]
fn a_release_is_in_the_backup_and_can_be_installed_from_it() {
    let mut up = Up::start(&[]).expect("starts");
    let names = ["a-1", "a-2"];
    for name in names {
        enroll(&up, name, false, &["--role", "web"]);
    }
    let _agents = names.map(|name| Agent::of_its_own(&up, name));
    wait_up(&up, &names);
    let newer = version(up.dir.path(), "muster-agent", "0.99.1").expect("made");
    let newer = newer.to_str().expect("a plain path");
    let upgrade = |up: &Up, node: &str| {
        let args = [
            "agent", "upgrade", node, "--binary", newer, "--yes", "--json",
        ];
        up.muster(&args)
    };
    upgrade(&up, "a-1").exits(0).says(&["uploading"]);
    let before = up.muster(&["agent", "releases", "--json"]).exits(0);
    let file = up.dir.path().join("cluster.backup");
    up.muster(&["backup", &file.to_string_lossy()]).exits(0);
    up.stop(Signal::TERM).expect("ends");
    std::fs::rename(up.state(), up.dir.path().join("lost")).expect("moves");
    restore(&up, &file, &up.state()).exits(0);
    up.launch().expect("starts");
    wait_up(&up, &names);
    let after = up.muster(&["agent", "releases", "--json"]).exits(0);
    assert_eq!(after.out, before.out);
    let said = upgrade(&up, "a-2");
    assert_eq!(
        said.code,
        0,
        "{said:?} {} {}",
        up.logs(),
        agent_said(&up, "a-2")
    );
    assert!(!said.err.contains("uploading"), "{said:?}");
    for name in names {
        wait_for(&format!("{name} to run it"), || {
            node(&up, name).filter(|node| node["version"] == "0.99.1")
        })
        .unwrap_or_else(|e| panic!("{e}: {}", agent_said(&up, name)));
    }
    Audit::of(&up).holds();
}
