//! The agent and the guard as processes of their own: this program again,
//! with one of the tests below, which are none.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use muster_nft::host::{HostFirewall, Setting, guard};
use muster_nft::nft::Nft;
use serde_json::Value;

use crate::world::{World, id, resolved, runtime, until};

const AGENT: &str = "MUSTER_TEST_AGENT";
const GUARD: &str = "MUSTER_TEST_GUARD";

#[test]
#[ignore = "a process that others start"]
fn guard_process() {
    let Ok(line) = std::env::var(GUARD) else {
        return;
    };
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words[0], guard::VERB);
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name);
        words[at.expect("it is given") + 1].to_owned()
    };
    guard::main(&guard::Args {
        dir: after("--dir").into(),
        nft: after("--nft").into(),
        token: after("--token"),
        program: after("--program").into(),
        watch: words.contains(&"--watch"),
    })
    .expect("it stands guard");
}

#[test]
#[ignore = "a process that others start"]
fn agent_process() {
    let Ok(text) = std::env::var(AGENT) else {
        return;
    };
    let what: Value = serde_json::from_str(&text).expect("what to do");
    let dir = PathBuf::from(what["dir"].as_str().expect("a directory"));
    let firewall = HostFirewall::open(Setting {
        dir: dir.join("state"),
        nft: Nft::new(dir.join("nft")),
        program: dir.join("agent"),
        boot_id: dir.join("boot"),
    });
    let firewall = firewall.expect("this system can do it");
    let (change, rules) = (id("agent/0"), resolved(what["rules"].clone()));
    let within = Duration::from_millis(what["within_ms"].as_u64().expect("a time"));
    let asked = async {
        fs::write(dir.join("asked"), "").expect("written");
        loop {
            match fs::read_to_string(dir.join("answer")) {
                Ok(text) if text == "yes" => return Ok(()),
                Ok(text) => return Err(text),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let done = runtime().block_on(firewall.change(&change, &rules, within, asked));
    let said = match done {
        Ok(changed) => format!("{changed:?}"),
        Err(e) => e.to_string(),
    };
    fs::write(dir.join("said.part"), said).expect("written");
    fs::rename(dir.join("said.part"), dir.join("said")).expect("renamed");
}

/// An agent in a process of its own, in a session of its own.
pub(crate) struct Agent {
    child: Child,
    dir: PathBuf,
}

impl Agent {
    /// Begins the change `agent/0`.
    pub(crate) fn start(world: &World, rules: Value, within: Duration) -> Self {
        for name in ["asked", "answer", "said"] {
            let _ = fs::remove_file(world.path(name));
        }
        let what = serde_json::json!({
            "dir": world.dir.path(), "rules": rules, "within_ms": within.as_millis() as u64,
        });
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["processes::agent_process", "--exact", "--ignored"])
            .env(AGENT, what.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        Self {
            child,
            dir: world.dir.path().to_owned(),
        }
    }

    /// Waits until the new rules are in force, and it asks whether they stay.
    #[track_caller]
    pub(crate) fn asks(&self) {
        until("the agent asks", || self.dir.join("asked").exists());
    }

    /// What it said in the end.
    #[track_caller]
    pub(crate) fn said(&self) -> String {
        until("the agent says", || self.dir.join("said").exists());
        fs::read_to_string(self.dir.join("said")).expect("read")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let done = Command::new("kill").args([name, &pid]).status();
        assert!(done.is_ok_and(|status| status.success()));
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
