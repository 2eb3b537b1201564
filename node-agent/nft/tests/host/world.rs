//! A node in a network namespace of its own, joined to another one by a pair
//! of interfaces, and an `nft` that works in there.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use muster_nft::host::{ChangeId, Changed, Entry, HostError, HostFirewall, Setting};
use muster_nft::nft::Nft;
use muster_protocol::firewall::host::{HostRules, Resolved};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tempfile::TempDir;

/// How long a state may take to come.
const WITHIN: Duration = Duration::from_secs(30);
/// The node's address.
pub(crate) const NODE: &str = "10.99.0.1";

/// Whether this machine can do it; where not, the test is to end.
pub(crate) fn capable() -> bool {
    let has = |program: &str| {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$1\"", "sh", program])
            .output();
        found.is_ok_and(|found| found.status.success())
    };
    let lacks = if !rustix::process::geteuid().is_root() {
        Some("this is not root, who can make namespaces")
    } else if !has("nft") || !has("ip") {
        Some("`nft` or `ip` is not installed (scripts/setup.sh test)")
    } else {
        None
    };
    let Some(why) = lacks else {
        return true;
    };
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    let required = std::env::var("MUSTER_TESTS_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name.trim() == "nft"),
        "{test} needs `nft`, which is required here, and {why}"
    );
    let line = format!("{test}: needs `nft`, and {why}\n");
    let _ = write!(std::io::stderr(), "SKIPPED: {line}");
    if let Some(file) = std::env::var_os("MUSTER_TESTS_SKIPPED") {
        let file = OpenOptions::new().create(true).append(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
    false
}

/// Waits until it is so.
#[track_caller]
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + WITHIN;
    while !so() {
        assert!(Instant::now() < end, "it is not so in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).output();
    let done = done.expect("ip starts");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {line}: {said}");
}

/// A network namespace that goes with its value.
pub(crate) struct Space(String);

impl Space {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let space = Self(format!("mhost-{}-{next}", std::process::id()));
        ip(&format!("netns add {}", space.0));
        ip(&format!("-n {} link set lo up", space.0));
        space
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// Does something in there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(&self.0);
        thread::scope(|scope| {
            let work = scope.spawn(move || {
                let space = File::open(path).expect("the namespace is there");
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may go there");
                work()
            });
            work.join().expect("it does not panic")
        })
    }

    /// What `nft` says in there.
    #[track_caller]
    pub(crate) fn nft(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, "nft"]);
        let done = command.args(arguments).output().expect("nft starts");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "nft {arguments:?}: {said}");
        String::from_utf8(done.stdout).expect("text")
    }

    /// Muster's table, with the handles that say which one it is.
    pub(crate) fn table(&self) -> Option<String> {
        let all = self.nft(&["list", "tables"]);
        let own = ["-a", "list", "table", "inet", "muster_host"];
        all.contains("inet muster_host").then(|| self.nft(&own))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

/// A node, and somebody else on its network.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) node: Space,
    pub(crate) other: Space,
    /// Listens on these ports of the node.
    listeners: Vec<TcpListener>,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self {
            dir: tempfile::tempdir().expect("a directory"),
            node: Space::new(),
            other: Space::new(),
            listeners: Vec::new(),
        };
        world.join();
        world.file("boot", "first");
        world.scripts();
        world
    }

    fn join(&self) {
        let (node, other) = (self.node.name(), self.other.name());
        ip(&format!(
            "-n {node} link add eth0 type veth peer name eth0 netns {other}"
        ));
        for (space, address) in [(node, "10.99.0.1/24"), (other, "10.99.0.2/24")] {
            ip(&format!("-n {space} addr add {address} dev eth0"));
            ip(&format!("-n {space} link set eth0 up"));
        }
    }

    /// What is called `nft` and the agent's program. Another program writes
    /// them: a descriptor of ours would be open in whatever another test
    /// starts at this moment, and they be busy.
    fn scripts(&self) {
        let dir = self.dir.path().display();
        let node = self.node.name();
        let own = std::env::current_exe().expect("this program");
        let own = own.display();
        let nft = format!(
            "#!/bin/sh\n[ -e {dir}/hook ] && . {dir}/hook\nexec ip netns exec {node} nft \"$@\"\n"
        );
        let guard = format!(
            "#!/bin/sh\n[ -e {dir}/no-guard ] && exit 3\nMUSTER_TEST_GUARD=\"$*\" exec {own} processes::guard_process --exact --ignored --nocapture\n"
        );
        for (name, text) in [("nft", nft), ("agent", guard)] {
            let path = self.path(name);
            let done = Command::new("sh")
                .args(["-c", "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh"])
                .args([&text, &path.display().to_string()])
                .status();
            assert!(done.is_ok_and(|status| status.success()));
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, text: &str) {
        // Whole at once: others look at it.
        let part = self.path(&format!("{name}.part"));
        fs::write(&part, text).expect("written");
        fs::rename(part, self.path(name)).expect("renamed");
    }

    /// Runs in front of every call of `nft`, with its arguments.
    pub(crate) fn hook(&self, text: &str) {
        self.file("hook", text);
    }

    pub(crate) fn no_hook(&self) {
        fs::remove_file(self.path("hook")).expect("removed");
    }

    pub(crate) fn setting(&self) -> Setting {
        Setting {
            dir: self.path("state"),
            nft: Nft::new(self.path("nft")),
            program: self.path("agent"),
            boot_id: self.path("boot"),
        }
    }

    pub(crate) fn firewall(&self) -> HostFirewall {
        HostFirewall::open(self.setting()).expect("this system can do it")
    }

    /// The machine starts again: nothing is left of what the kernel had, and
    /// nobody runs.
    pub(crate) fn reboot(&mut self, boot: &str) {
        kill_all(&self.guards());
        self.listeners.clear();
        self.node = Space::new();
        self.other = Space::new();
        self.join();
        self.file("boot", boot);
        self.scripts();
    }

    /// The processes that stand guard here.
    pub(crate) fn guards(&self) -> Vec<u32> {
        let dir = self.path("state").display().to_string();
        let processes = fs::read_dir("/proc").expect("processes").flatten();
        processes
            .filter_map(|entry| {
                let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
                let environ = fs::read(entry.path().join("environ")).ok()?;
                let environ = String::from_utf8_lossy(&environ).into_owned();
                let guard = environ
                    .split('\0')
                    .find(|one| one.starts_with("MUSTER_TEST_GUARD="))?;
                (guard.contains(&format!("--dir {dir} ")) && guard.ends_with("--watch"))
                    .then_some(pid)
            })
            .collect()
    }

    /// Listens on a port of the node.
    pub(crate) fn listen(&mut self, port: u16) {
        let listener = self.node.inside(|| {
            let at: SocketAddr = format!("0.0.0.0:{port}").parse().expect("an address");
            TcpListener::bind(at).expect("it is free")
        });
        self.listeners.push(listener);
    }

    /// Whether somebody else gets through to a port of the node.
    pub(crate) fn reaches(&self, port: u16) -> bool {
        self.other.inside(|| {
            let at: SocketAddr = format!("{NODE}:{port}").parse().expect("an address");
            TcpStream::connect_timeout(&at, Duration::from_millis(400)).is_ok()
        })
    }

    /// Changes the rules, and has that confirmed.
    pub(crate) fn confirm(&self, change: &str, rules: Value) -> Result<Changed, HostError> {
        self.change(change, rules, Duration::from_secs(20), async { Ok(()) })
    }

    pub(crate) fn change(
        &self,
        change: &str,
        rules: Value,
        within: Duration,
        confirm: impl Future<Output = Result<(), String>> + Send,
    ) -> Result<Changed, HostError> {
        let firewall = self.firewall();
        let (change, rules) = (id(change), resolved(rules));
        runtime().block_on(firewall.change(&change, &rules, within, confirm))
    }

    pub(crate) fn entry(&self, change: &str) -> Entry {
        self.firewall().entry(&id(change)).expect("it is known")
    }

    /// Waits until the change is over, and says how.
    #[track_caller]
    pub(crate) fn ended(&self, change: &str) -> String {
        until("the change ends", || {
            let known = self.firewall().entry(&id(change));
            known.is_ok_and(|entry| entry.ended.is_some())
        });
        until("nobody stands guard", || self.guards().is_empty());
        let ended = self.entry(change).ended.expect("it ended");
        serde_json::to_string(&ended).expect("JSON")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        kill_all(&self.guards());
    }
}

pub(crate) fn kill_all(pids: &[u32]) {
    for pid in pids {
        let _ = Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .stderr(Stdio::null())
            .status();
        let path = PathBuf::from(format!("/proc/{pid}/stat"));
        // Gone, or dead and not yet fetched by whoever does.
        until("it is gone", || {
            fs::read_to_string(&path).map_or(true, |stat| stat.contains(") Z "))
        });
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

pub(crate) fn id(text: &str) -> ChangeId {
    text.parse().expect("a change")
}

pub(crate) fn resolved(rules: Value) -> Resolved {
    let rules = HostRules::read(&rules).expect("rules");
    let bastion = serde_json::json!({"bastion": ["10.99.0.2/32"]});
    let roles = serde_json::from_value(bastion).expect("roles");
    rules.resolve(&roles).expect("addresses")
}
