//! What `muster vm create` takes beside `virsh define` and `virsh start` of
//! the same definition: on a real libvirt and a real QEMU, in namespaces of
//! their own, which end with this process.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use muster_protocol::text::printable;
use serde_json::Value;

use super::BenchError;
use super::figures::{Row, Spread, Target, Unit};
use super::http::Api;
use super::work::settle;
use super::world::{Programs, Started, World};

/// The target, in milliseconds.
const OVER: f64 = 300.0;
/// How often each is done, in turn, after some that do not count.
const ROUNDS: u32 = 15;
const WARM: u32 = 2;
/// Longest wait for a part.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks, and between two measurements.
const LOOK: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_millis(600);
/// The hypervisor's node.
const NODE: &str = "hv";
/// What it takes.
const NEEDED: [&str; 6] = [
    "unshare",
    "nsenter",
    "libvirtd",
    "virtlogd",
    "virsh",
    "qemu-system-x86_64",
];

/// `$1` is the directory of the hypervisor. There is no `/dev/kvm` in it: what
/// the machine has of that may hang.
const SETUP: &str = r#"
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t sysfs sys /sys
mkdir -p /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/log" /var/log/libvirt
mount --bind "$1/cache" /var/cache/libvirt
mount -t tmpfs -o mode=755 run /run
mkdir /run/lock
mount -t tmpfs -o mode=755 dev "$1/dev"
for name in null zero full random urandom tty; do
    cp -a "/dev/$name" "$1/dev/"
done
mkdir "$1/dev/pts" "$1/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$1/dev/pts"
mount -t tmpfs -o mode=1777 shm "$1/dev/shm"
ln -s pts/ptmx "$1/dev/ptmx"
ln -s /proc/self/fd "$1/dev/fd"
mount --rbind "$1/dev" /dev
hostname hv
ip link set lo up
"#;

const QEMU: &str = r#"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
"#;

const LIBVIRTD: &str = r#"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "6d757374-6572-4000-8000-0000000000be"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"#;

const AGENT: &str = "[capabilities]\nvm = true\n\n[vm]\ntype = \"qemu\"\n";

fn wrong(why: impl std::fmt::Display) -> BenchError {
    BenchError::Part {
        name: "libvirt",
        why: printable(&why.to_string(), 400),
    }
}

/// Why there can be no hypervisor here.
fn lacks(programs: &Programs) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("this is not root, who can make namespaces".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/usr/bin".into(), "/sbin".into()])
            .any(|dir| dir.join(name).is_file())
    };
    if let Some(name) = NEEDED.into_iter().find(|name| !there(name)) {
        return Some(format!("`{name}` is not installed"));
    }
    if !programs.path("muster-libvirt").is_file() {
        return Some("`muster-libvirt` was not built (libvirt's headers)".to_owned());
    }
    None
}

/// A libvirtd in namespaces. Their first process reads from a pipe of this
/// process, and ends with it, and everything in them.
struct Hypervisor {
    child: Child,
    open: Option<ChildStdin>,
    first: u32,
    dir: PathBuf,
    started: Started,
}

impl Hypervisor {
    fn start(below: &Path, started: &Started) -> Result<Self, BenchError> {
        let dir = below.join("hypervisor");
        for part in ["etc", "lib/images", "log", "cache", "dev", "agent"] {
            fs::create_dir_all(dir.join(part)).map_err(BenchError::Directory)?;
        }
        for (name, text) in [("etc/qemu.conf", QEMU), ("etc/libvirtd.conf", LIBVIRTD)] {
            fs::write(dir.join(name), text).map_err(BenchError::Directory)?;
        }
        let script = format!("set -e\n{SETUP}\necho ready\nset +e\ncat >/dev/null\n");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "--pid", "--uts", "--fork"])
            .args(["--kill-child=KILL", "--mount-proc", "--", "sh", "-c"])
            .args([OsStr::new(&script), OsStr::new("sh"), dir.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = started.start("libvirt", &mut command)?;
        let open = child.stdin.take();
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            let _ = BufReader::new(out).read_line(&mut line);
        }
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let children = fs::read_to_string(children).unwrap_or_default();
        let first = children.split_whitespace().next();
        let first = first.and_then(|pid| pid.parse().ok());
        let hypervisor = Self {
            child,
            open,
            first: first.unwrap_or_default(),
            dir,
            started: started.clone(),
        };
        if line.trim() != "ready" || first.is_none() {
            return Err(wrong("its namespaces could not be made"));
        }
        for daemon in ["virtlogd", "libvirtd"] {
            hypervisor.inside(&["--net"], &[daemon, "-d"])?;
        }
        let until = Instant::now() + PATIENCE;
        while hypervisor.virsh("version").is_err() {
            if Instant::now() > until {
                return Err(wrong("libvirtd does not answer"));
            }
            thread::sleep(LOOK);
        }
        hypervisor.virsh(
            "pool-define-as default dir --target /var/lib/libvirt/images; pool-autostart default; pool-start default",
        )?;
        Ok(hypervisor)
    }

    /// A command in it; in the network of this process, unless `--net` is
    /// said.
    fn command(&self, spaces: &[&str], program: &OsStr) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string()])
            .args(["--mount", "--pid", "--uts"])
            .args(spaces)
            .arg("--")
            .arg(program)
            .stdin(Stdio::null())
            .env("LC_ALL", "C")
            .env("HOME", self.dir.join("agent"));
        command
    }

    fn inside(&self, spaces: &[&str], argv: &[&str]) -> Result<String, BenchError> {
        let (program, args) = argv.split_first().ok_or_else(|| wrong("no program"))?;
        let mut command = self.command(spaces, OsStr::new(program));
        command.args(args);
        self.started.output("libvirt", command)
    }

    /// Lines of virsh, in one process.
    fn virsh(&self, lines: &str) -> Result<String, BenchError> {
        self.inside(&[], &["virsh", "-q", "-c", "qemu:///system", lines])
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        self.open = None;
        let until = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            thread::sleep(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.started.ended(self.child.id());
    }
}

/// Its agent, ended with this.
struct Agent {
    child: Child,
    started: Started,
}

impl Agent {
    fn start(
        world: &World,
        programs: &Programs,
        hypervisor: &Hypervisor,
        started: &Started,
    ) -> Result<Self, BenchError> {
        let args = [
            "node",
            "invite",
            "--json",
            "--name",
            NODE,
            "--role",
            "hypervisor",
        ];
        world.muster(&args)?;
        let invite: Value = serde_json::from_str(&world.said()?).map_err(wrong)?;
        let token = invite.pointer("/invites/0/token").and_then(Value::as_str);
        let token = token.ok_or_else(|| wrong("there is no invite"))?;
        let program = programs.path("muster-agent");
        let state = hypervisor.dir.join("agent/state");
        let mut enrol = hypervisor.command(&[], program.as_os_str());
        enrol
            .args(["enroll", "--url", world.url(), "--state"])
            .arg(&state)
            .env("MUSTER_ENROLL_TOKEN", token);
        started.output("muster-agent", enrol)?;
        let config = hypervisor.dir.join("agent/agent.toml");
        fs::write(&config, AGENT).map_err(BenchError::Directory)?;
        let log = File::create(hypervisor.dir.join("agent.log")).map_err(BenchError::Directory)?;
        let mut run = hypervisor.command(&[], program.as_os_str());
        run.args(["run".as_ref(), "--state".as_ref(), state.as_os_str()])
            .args(["--config".as_ref(), config.as_os_str()])
            .stdout(Stdio::null())
            .stderr(log);
        let child = started.start("muster-agent", &mut run)?;
        Ok(Self {
            child,
            started: started.clone(),
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // What it waits for ends with the namespaces.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.started.ended(self.child.id());
    }
}

/// Waits until the broker says so.
fn until(
    api: &mut Api,
    what: &str,
    path: &str,
    so: impl Fn(&Value) -> bool,
) -> Result<(), BenchError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = api.ask("GET", path, None)?;
        let said = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
        if answer.status == 200 && so(&said) {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(wrong(format!("{what} does not come")));
        }
        thread::sleep(LOOK);
    }
}

/// One machine by muster, then by virsh: milliseconds of each.
fn both(
    world: &World,
    hypervisor: &Hypervisor,
    api: &mut Api,
    round: u32,
) -> Result<(f64, f64), BenchError> {
    let name = format!("m-{round}");
    let create = [
        "vm",
        "create",
        &name,
        "--image",
        "empty",
        "--cpus",
        "1",
        "--memory",
        "64MiB",
        "--disk",
        "16MiB",
        "--no-agent",
        "--ready",
        "boot",
    ];
    let muster = world.muster(&create)?;
    let path = format!("/v1/vms/{name}");
    until(api, "the machine", &path, |vm| vm["status"] == "running")?;
    // The same definition, disk and seed; nothing of the machine is up.
    let xml = hypervisor.virsh(&format!("dumpxml --inactive {name}"))?;
    let file = hypervisor.dir.join("agent/machine.xml");
    fs::write(&file, xml).map_err(BenchError::Directory)?;
    hypervisor.virsh(&format!("destroy {name}; undefine {name}"))?;
    thread::sleep(PAUSE);
    let begun = Instant::now();
    hypervisor.virsh(&format!("define {}; start {name}", file.display()))?;
    let virsh = begun.elapsed().as_secs_f64() * 1_000.0;
    until(api, "the machine", &path, |vm| vm["status"] == "running")?;
    world.muster(&["vm", "destroy", &name, "--purge", "--yes"])?;
    thread::sleep(PAUSE);
    Ok((muster, virsh))
}

/// The rows of the table; where there can be no hypervisor, `notes` says why.
///
/// # Errors
/// [`BenchError`].
pub(super) fn rows(
    programs: &Programs,
    below: &Path,
    started: &Started,
    notes: &mut Vec<String>,
) -> Result<Vec<Row>, BenchError> {
    let over = "muster vm create, over virsh define and start of the same";
    if let Some(why) = lacks(programs) {
        notes.push(format!("{over}: skipped: {why}"));
        let target = Target::AtMost(OVER);
        return Ok(vec![Row::skipped(over, Unit::Ms, target)]);
    }
    tracing::info!("machines on a real libvirt");
    let world = World::start(programs, below, &[], started)?;
    let hypervisor = Hypervisor::start(world.dir(), started)?;
    let _agent = Agent::start(&world, programs, &hypervisor, started)?;
    let mut api = Api::connect(world.address(), world.token())?;
    until(&mut api, "the hypervisor", "/v1/hypervisors", |page| {
        page.pointer("/items/0/capacity")
            .is_some_and(Value::is_object)
    })?;
    let image = world.dir().join("empty.raw");
    let made = File::create(&image).and_then(|file| file.set_len(1 << 20));
    made.map_err(BenchError::Directory)?;
    world.muster(&[
        "image",
        "add",
        "empty",
        &image.to_string_lossy(),
        "--format",
        "raw",
    ])?;
    let (mut muster, mut virsh, mut more) = (Vec::new(), Vec::new(), Vec::new());
    settle();
    for round in 0..WARM + ROUNDS {
        let (by_muster, by_virsh) = both(&world, &hypervisor, &mut api, round)?;
        if round >= WARM {
            muster.push(by_muster);
            virsh.push(by_virsh);
            more.push(by_muster - by_virsh);
        }
    }
    let spread = |values: &[f64]| Spread::of(values).ok_or_else(|| wrong("nothing was measured"));
    Ok(vec![
        Row::at_most(over, Unit::Ms, spread(&more)?, OVER),
        Row::told(
            "muster vm create, image already there",
            Unit::Ms,
            spread(&muster)?,
        ),
        Row::told(
            "virsh define and start of the same",
            Unit::Ms,
            spread(&virsh)?,
        ),
    ])
}
