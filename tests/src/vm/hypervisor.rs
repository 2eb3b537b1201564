//! A hypervisor: a libvirt in namespaces of its own, with its own files, and
//! a bridge that leads to the [`World`].

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::namespace::{Left, Namespace, only_child};
use super::world::World;
use crate::{Said, signal, wait_for};

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
mkdir "$1/dev/net" "$1/dev/pts" "$1/dev/shm"
cp -a /dev/net/tun "$1/dev/net/"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$1/dev/pts"
mount -t tmpfs -o mode=1777 shm "$1/dev/shm"
ln -s pts/ptmx "$1/dev/ptmx"
ln -s /proc/self/fd "$1/dev/fd"
mount --rbind "$1/dev" /dev
hostname "$(cat "$1/name")"
ip link set lo up
ip link add br0 type bridge
ip addr add "$(cat "$1/address")/16" dev br0
ip addr add "fd77::$(hostname | tr -d hv)/64" dev br0 nodad
ip link set br0 up
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

/// A pool, a bridge, and a libvirtd that ends with this.
#[derive(Debug)]
pub struct Hypervisor {
    name: String,
    dir: PathBuf,
    address: Ipv4Addr,
    inside: Namespace,
}

impl Hypervisor {
    /// Hypervisor number `n` of that world, 2 to 200, with everything that it
    /// writes below `dir`. Its libvirt answers.
    ///
    /// # Errors
    /// When it does not come up; what libvirt logged is in the error.
    pub fn start(world: &World, dir: &Path, n: u8) -> Result<Self> {
        let name = format!("hv{n}");
        let address = Ipv4Addr::new(10, 77, 0, n);
        let dir = dir.join(&name);
        for part in ["etc", "lib/images", "log", "cache", "dev", "agent"] {
            fs::create_dir_all(dir.join(part))?;
        }
        fs::write(dir.join("name"), &name)?;
        fs::write(dir.join("address"), address.to_string())?;
        fs::write(dir.join("etc/qemu.conf"), QEMU)?;
        fs::write(dir.join("etc/libvirtd.conf"), libvirtd(n))?;
        let inside = Namespace::new(SETUP, &dir).with_context(|| name.clone())?;
        world.cable(&name, &inside)?;
        inside.done(&["ip", "link", "set", "uplink", "master", "br0", "up"])?;
        let hypervisor = Self {
            name,
            dir,
            address,
            inside,
        };
        hypervisor.start_libvirt()?;
        let pool = [
            "pool-define-as default dir --target /var/lib/libvirt/images",
            "pool-autostart default",
            "pool-start default",
        ];
        hypervisor.virsh_done(&[&pool.join("; ")])?;
        Ok(hypervisor)
    }

    /// Its name, and its cable's in the world.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its own address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its directory, as the test sees it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The pool's directory, as the test sees it; inside it is
    /// `/var/lib/libvirt/images`.
    #[must_use]
    pub fn pool(&self) -> PathBuf {
        self.dir.join("lib/images")
    }

    /// Has its kernel follow the connections of guests, as one with a firewall
    /// between them does. False where there is nothing that could.
    ///
    /// # Errors
    /// When it can, and does not.
    pub fn follow_connections(&self) -> Result<bool> {
        let by_bridges = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        let is_there = self.run(&["test", "-e", by_bridges]).code == 0;
        if super::capability::program("nft").is_none() || !is_there {
            return Ok(false);
        }
        let set = format!("echo 1 > {by_bridges}");
        self.inside.done(&["sh", "-c", &set])?;
        let rules = "table inet watched { chain forward { \
                     type filter hook forward priority 0; \
                     ct state established,related accept; }; }";
        self.inside.done(&["nft", rules])?;
        Ok(true)
    }

    /// Starts its libvirtd, unless it runs, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_libvirt(&self) -> Result<()> {
        for (daemon, pid) in [("virtlogd", "virtlogd"), ("libvirtd", "libvirtd")] {
            if self.pid_of(pid).is_none() {
                self.inside.done(&[daemon, "-d"])?;
            }
        }
        let answers = wait_for("libvirtd", || {
            (self.virsh(&["version"]).code == 0).then_some(())
        });
        answers.with_context(|| {
            let log = self.dir.join("log/libvirtd.log");
            fs::read_to_string(log).unwrap_or_default()
        })
    }

    /// Ends its libvirtd with a signal; guests go on. It is over when this
    /// comes back.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn stop_libvirt(&self, with: Signal) -> Result<()> {
        let pid = self.pid_of("libvirtd").context("libvirtd does not run")?;
        signal(pid, with)?;
        wait_for("the end of libvirtd", || {
            self.pid_of("libvirtd").is_none().then_some(())
        })
    }

    /// The first process of it, as this process sees it.
    #[must_use]
    pub fn first(&self) -> u32 {
        self.inside.pid()
    }

    /// The process of that program in it, as this process sees it.
    #[must_use]
    pub fn pid_of(&self, program: &str) -> Option<u32> {
        let is = |line: &str| {
            let argument = line.split(' ').next().unwrap_or_default();
            Path::new(argument).file_name() == Some(OsStr::new(program))
        };
        let mut all = self.inside.processes().into_iter();
        all.find(|(_, line)| is(line)).map(|(pid, _)| pid)
    }

    /// The QEMU of that domain, as this process sees it.
    #[must_use]
    pub fn qemu_of(&self, domain: &str) -> Option<u32> {
        let guest = format!("guest={domain},");
        let mut all = self.inside.processes().into_iter();
        all.find(|(_, line)| line.contains("qemu-system") && line.contains(&guest))
            .map(|(pid, _)| pid)
    }

    /// A command in it; not yet started.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, program: S) -> Command {
        let mut command = self.inside.command(program);
        command.env("HOME", self.dir.join("agent"));
        command
    }

    /// Runs a command in it to its end.
    #[must_use]
    pub fn run(&self, argv: &[&str]) -> Said {
        self.inside.run(argv)
    }

    /// Runs `virsh` in it.
    #[must_use]
    pub fn virsh(&self, args: &[&str]) -> Said {
        let mut command = self.command("virsh");
        command.args(["-q", "-c", "qemu:///system"]).args(args);
        crate::finish(command)
    }

    /// The same, for what must do well; what it printed.
    ///
    /// # Errors
    /// When it does not.
    pub fn virsh_done(&self, args: &[&str]) -> Result<String> {
        let said = self.virsh(args);
        ensure!(said.code == 0, "virsh {args:?}: {}{}", said.err, said.out);
        Ok(said.out)
    }

    /// Starts a program in it that goes on, such as an agent. What it prints
    /// is in the file `NAME.log` of the hypervisor's directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(
        &self,
        program: &Path,
        args: &[S],
        env: &[(&str, &str)],
    ) -> Result<Inside> {
        let name = program.file_name().context("a program")?;
        let log = self.dir.join(name).with_extension("log");
        let out = File::options().create(true).append(true).open(&log)?;
        let mut command = self.command(program);
        command.args(args).envs(env.iter().copied());
        let child = command.stderr(out.try_clone()?).stdout(out).spawn()?;
        Inside::new(child, log)
    }

    /// Everything in it that machines are made of, sorted: domains, volumes,
    /// files of the pool, interfaces, QEMUs, connections that are followed,
    /// leases, the firewall's rules. What is the
    /// same before and after has left nothing.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn inventory(&self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        let mut add = |kind: &str, text: &str| {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            all.extend(lines.map(|line| format!("{kind} {line}")));
        };
        add("domain", &self.virsh_done(&["list", "--all", "--name"])?);
        self.virsh_done(&["pool-refresh", "default"])?;
        add("volume", &self.virsh_done(&["vol-list", "default"])?);
        let kept = ["/var/lib/libvirt", "/etc/libvirt", "/run/libvirt"];
        for dir in kept {
            // Sockets and locks of libvirtd itself stay as they are.
            let find = ["find", dir, "-not", "-type", "d", "-not", "-name", "*.pid"];
            add("file", &self.inside.done(&find)?);
        }
        let links = self.inside.done(&["ip", "-o", "link"])?;
        for link in links.lines() {
            add("link", link.split(':').nth(1).unwrap_or_default());
        }
        for (_, line) in self.inside.processes() {
            if line.contains("qemu-system") {
                add("process", line.get(..200).unwrap_or(&line));
            }
        }
        // Connections that the kernel follows, and who has an address by DHCP.
        let tracked = "cat /proc/net/nf_conntrack 2>/dev/null || conntrack -L 2>/dev/null || true";
        for line in self.inside.done(&["sh", "-c", tracked])?.lines() {
            let ends: Vec<&str> = line
                .split_whitespace()
                .filter(|word| ["src=", "dst="].iter().any(|end| word.starts_with(end)))
                .collect();
            // Its own with the broker come and go.
            let own = ["=10.77.0.", "=127.", "=::1"];
            let is_own = |end: &&str| own.iter().any(|own| end.contains(own));
            if !ends.iter().all(is_own) {
                add("connection", &ends.join(" "));
            }
        }
        for network in self.virsh_done(&["net-list", "--name"])?.split_whitespace() {
            add("lease", &self.virsh_done(&["net-dhcp-leases", network])?);
        }
        if super::capability::program("nft").is_some() {
            add("rule", &self.inside.done(&["nft", "list", "ruleset"])?);
        }
        Ok(all)
    }

    /// Ends it with everything in it; what is to be asked afterwards.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(self) -> Result<Left> {
        self.inside.end()
    }
}

/// Each hypervisor is a machine of its own to libvirt.
fn libvirtd(n: u8) -> String {
    format!(
        r#"auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "6d757374-6572-4000-8000-0000000000{n:02x}"
log_filters = "3:util.netlink 4:util.dbus"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"#
    )
}

/// A program that runs in a hypervisor and is ended with this.
#[derive(Debug)]
pub struct Inside {
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Inside {
    pub(super) fn new(mut child: Child, log: PathBuf) -> Result<Self> {
        // The child is `nsenter`, which waits for the program.
        let pid = wait_for("a program in a hypervisor", || match child.try_wait() {
            Ok(None) => only_child(child.id()).ok().map(Some),
            _ => Some(None),
        })?;
        let shown = || fs::read_to_string(&log).unwrap_or_default();
        let pid = pid.with_context(|| format!("it ended at once: {}", shown()))?;
        Ok(Self { child, pid, log })
    }

    /// The program, as this process sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it printed until now.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal and waits for its end; its exit code.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self, with: Signal) -> Result<i32> {
        self.end(with)
    }

    fn end(&mut self, with: Signal) -> Result<i32> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Ok(status.code().unwrap_or(-1));
        }
        let _ = signal(self.pid, with);
        let status = wait_for("the end of a program in a hypervisor", || {
            self.child.try_wait().ok().flatten()
        })?;
        Ok(status.code().unwrap_or(-1))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.end(Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of `/proc/self/mountinfo` that name a path: mounts of a
/// hypervisor are in its own namespace only.
#[must_use]
pub fn mounts_below(dir: &Path) -> Vec<String> {
    let needle = dir.to_string_lossy().into_owned();
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains(&needle));
    lines.map(str::to_owned).collect()
}

/// Network interfaces that the thread that calls sees.
///
/// # Errors
/// When they cannot be listed.
pub fn links() -> Result<BTreeSet<String>> {
    let mut ip = Command::new("ip");
    ip.args(["-o", "link"]).stdin(Stdio::null());
    let said = crate::finish(ip);
    ensure!(said.code == 0, "ip link: {}", said.err);
    let names = said.out.lines().filter_map(|line| line.split(':').nth(1));
    Ok(names.map(|name| name.trim().to_owned()).collect())
}
