//! A network between a node and the broker, that is cut; and TLS on it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use muster_tests::invariants::{Audit, counter_in};
use muster_tests::{Said, bin, finish, processes, signal, wait_for};
use rustix::process::Signal;

use super::{Process, invite_token, outcome_of, sh, skipped};

/// A machine for the broker and one for a node, with a cable in between.
pub(super) struct Lab {
    pub(super) dir: tempfile::TempDir,
    id: String,
    net: String,
    pub(super) up: Option<Process>,
    pub(super) agent: Option<Process>,
}

impl Lab {
    pub(super) fn build(what: &str) -> Option<Self> {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let pid = std::process::id();
        let id = format!("{pid:x}{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let net = "10.99.7".to_owned();
        let lab = Self {
            dir: tempfile::Builder::new()
                .prefix("muster-test-")
                .tempdir()
                .expect("a directory"),
            id,
            net,
            up: None,
            agent: None,
        };
        let (b, n, net) = (lab.ns('b'), lab.ns('n'), &lab.net);
        let lines = [
            format!("ip netns add {b}"),
            format!("ip netns add {n}"),
            format!("ip -n {b} link set lo up"),
            format!("ip -n {n} link set lo up"),
            format!("ip -n {b} link add cable0 type veth peer name cable1 netns {n}"),
            format!("ip -n {b} addr add {net}.1/24 dev cable0"),
            format!("ip -n {n} addr add {net}.2/24 dev cable1"),
            format!("ip -n {b} link set cable0 up"),
            format!("ip -n {n} link set cable1 up"),
        ];
        if !lines.iter().all(|l| sh(l)) {
            skipped(what, "network namespaces may not be made here");
            return None;
        }
        Some(lab)
    }

    pub(super) fn ns(&self, end: char) -> String {
        format!("muster-{}{end}", self.id)
    }

    fn cable(&self, state: &str) {
        assert!(sh(&format!(
            "ip -n {} link set cable0 {state}",
            self.ns('b')
        )));
        if state == "up" {
            // The address went with the link on some kernels.
            sh(&format!(
                "ip -n {} addr add {}.1/24 dev cable0",
                self.ns('b'),
                self.net
            ));
        }
    }

    pub(super) fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command of ours on that machine.
    fn on(&self, end: char, program: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.ns(end)])
            .arg(bin(program))
            .env_remove("MUSTER_URL")
            .env_remove("MUSTER_TOKEN")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", self.dir.path())
            .env("NO_COLOR", "1");
        command
    }

    pub(super) fn start_up(&self, state: &str, http: u16, nats: u16, home: &str) -> Process {
        let mut command = self.on('b', "muster");
        command
            .args(["up", "--listen", &format!("{}.1:{http}", self.net)])
            .args(["--nats-listen", &format!("{}.1:{nats}", self.net)])
            .arg("--state")
            .arg(self.state(state))
            .env("HOME", self.state(home));
        let process = Process::start(command, self.dir.path().join(format!("{state}.log")));
        process.says_soon("ready ");
        process
    }

    pub(super) fn muster(&self, args: &[&str]) -> Said {
        let mut command = self.on('b', "muster");
        command.args(args).env("HOME", self.state("home"));
        finish(command)
    }

    pub(super) fn enrol(&self, http: u16, token: &str, machine: &str) -> Said {
        let mut command = self.on('n', "muster-agent");
        command
            .args(["enroll", "--url", &format!("https://{}.1:{http}", self.net)])
            .arg("--state")
            .arg(self.state(machine))
            .env("MUSTER_ENROLL_TOKEN", token);
        finish(command)
    }

    pub(super) fn run_agent(&self, machine: &str) -> Process {
        let mut command = self.on('n', "muster-agent");
        command.args(["run", "--state"]).arg(self.state(machine));
        Process::start(command, self.dir.path().join(format!("{machine}.log")))
    }

    fn state_of(&self, name: &str) -> Option<String> {
        let said = self.muster(&["nodes", "--json"]);
        let node = said.list().into_iter().find(|n| n["name"] == name)?;
        node["state"].as_str().map(str::to_owned)
    }

    pub(super) fn wait_state(&self, name: &str, wanted: &[&str]) {
        wait_for(&format!("{name} to be {wanted:?}"), || {
            self.state_of(name).filter(|s| wanted.contains(&s.as_str()))
        })
        .unwrap_or_else(|e| panic!("{e}: {:?} {}", self.state_of(name), self.said()));
    }

    pub(super) fn said(&self) -> String {
        [&self.up, &self.agent]
            .into_iter()
            .flatten()
            .map(Process::says)
            .collect()
    }

    pub(super) fn ended(&self, run: &str) -> Said {
        let said = self.muster(&["runs", "watch", run, "--json"]);
        assert!(
            said.out.contains("run_finished"),
            "{said:#?} {}",
            self.said()
        );
        said
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.agent = None;
        if let Some(mut up) = self.up.take() {
            let _ = signal(up.child.id(), Signal::TERM);
            let _ = wait_for("the end of `muster up`", || (!up.runs()).then_some(()));
        }
        let needle = self.dir.path().to_string_lossy().into_owned();
        for (pid, line) in processes() {
            if line.contains(&needle) {
                let _ = signal(pid, Signal::KILL);
            }
        }
        for end in ['b', 'n'] {
            sh(&format!("ip netns del {}", self.ns(end)));
        }
    }
}

#[test]
fn over_a_network_with_tls_that_is_cut_and_comes_back() {
    let Some(mut lab) = Lab::build("a network that is cut") else {
        return;
    };
    lab.up = Some(lab.start_up("state", 7878, 4222, "home"));
    let invite = |name: &str| {
        invite_token(
            &lab.muster(&["node", "invite", "--json", "--name", name, "--role", "far"])
                .exits(0),
        )
    };

    // Somebody in the middle, with an authority of his own.
    let middle = lab.start_up("middle", 7879, 4223, "middle-home");
    let token = invite("far-1");
    let said = lab.enrol(7879, &token, "m1");
    assert_ne!(said.code, 0, "{said:?}");
    assert!(
        said.err.contains("root") || said.err.contains("fingerprint"),
        "{said:?}"
    );
    // In the clear it is not spoken at all.
    let mut plain = lab.on('n', "muster-agent");
    plain
        .args([
            "enroll",
            "--url",
            &format!("http://{}.1:7878", lab.net),
            "--state",
        ])
        .arg(lab.state("m2"))
        .env("MUSTER_ENROLL_TOKEN", &token);
    assert_ne!(finish(plain).code, 0);
    // The invite is still good: nobody got it.
    lab.enrol(7878, &token, "m1").exits(0);

    // An agent that is led to him does not speak with him either.
    let config = lab.dir.path().join("led.toml");
    std::fs::write(
        &config,
        format!(
            "brokers = [\"https://{0}.1:7879\"]\nnats = [\"tls://{0}.1:4223\"]\n",
            lab.net
        ),
    )
    .expect("writes");
    {
        let mut command = lab.on('n', "muster-agent");
        command.args(["run", "--state"]).arg(lab.state("m1"));
        command.arg("--config").arg(&config);
        let mut led = Process::start(command, lab.dir.path().join("led.log"));
        led.says_soon("ertificate");
        assert!(led.runs(), "{}", led.says());
        assert_eq!(lab.state_of("far-1").as_deref(), Some("never"));
    }
    drop(middle);

    lab.agent = Some(lab.run_agent("m1"));
    lab.wait_state("far-1", &["up"]);
    lab.muster(&["run", "role=far", "--", "true"]).exits(0);

    // Cut in mid-command; the command ends meanwhile.
    let effects = counter_in(lab.dir.path(), "effects");
    let go = lab.dir.path().join("go");
    let script = effects.around(&format!(
        "while ! test -e {}; do sleep 0.05; done; echo said",
        go.display()
    ));
    let run = lab
        .muster(&[
            "run", "role=far", "--detach", "--json", "--shell", "--", &script,
        ])
        .exits(0)
        .run();
    wait_for("the command", || {
        (effects.of("far-1") == (1, 0)).then_some(())
    })
    .expect("it runs");
    lab.cable("down");
    std::fs::write(&go, "").expect("writes");
    wait_for("its end", || (effects.of("far-1") == (1, 1)).then_some(())).expect("it ends");

    // Nothing gets there now, and that is what is said.
    let never = counter_in(lab.dir.path(), "never");
    let script = never.around("true");
    let said = lab.muster(&[
        "run",
        "role=far",
        "--deliver-within",
        "2s",
        "--json",
        "--shell",
        "--",
        &script,
    ]);
    assert_eq!(said.code, 1, "{said:?}");
    let given_up = (said.run(), outcome_of(&said, "far-1"));
    let told = &given_up.1;
    assert!(
        ["unknown", "unreachable"].contains(&told["outcome"].as_str().unwrap_or_default()),
        "{told}"
    );
    assert!(
        told["reason"].as_str().is_some_and(|r| !r.is_empty()),
        "{told}"
    );
    lab.wait_state("far-1", &["late", "down"]);

    lab.cable("up");
    let ended = lab.ended(&run);
    let (said, cut_off) = (&ended, said);
    let told = outcome_of(said, "far-1");
    assert_eq!(told["outcome"], "succeeded", "{told} {}", lab.said());
    assert_eq!(said.output("stdout")["far-1"], "said\n");
    assert_eq!(effects.of("far-1"), (1, 1));
    lab.wait_state("far-1", &["up"]);
    lab.muster(&["run", "role=far", "--", "true"]).exits(0);
    // What could not be said may have come late: then that is told, too.
    if never.begun() > 0 {
        assert_eq!(given_up.1["outcome"], "unknown", "{given_up:?}");
        assert_eq!(never.begun(), 1);
        let show = || lab.muster(&["runs", "show", &given_up.0, "--json"]);
        wait_for("the late outcome", || {
            show()
                .out
                .contains("\"late\":[\"succeeded\"]")
                .then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {:#?}", show()));
    }
    Audit::at(lab.dir.path(), &lab.state("state"))
        .from_network(&lab.ns('b'))
        .told(&cut_off)
        .told(&ended)
        .holds();
}
