//! A libvirtd of a test's own: with its own directories, processes and
//! network, so that nothing of the host's is touched, and everything of it
//! ends with the test, however that ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::skip;

/// Runs as the first process of its namespace. The last command ends with
/// the test, at the latest; then the kernel kills whatever is left.
const SCRIPT: &str = r#"
set -e
mount --make-rprivate /
mkdir -p /etc/libvirt /var/lib/libvirt /run/libvirt /var/cache/libvirt /var/log/libvirt
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/run" /run/libvirt
mount --bind "$1/cache" /var/cache/libvirt
mount --bind "$1/log" /var/log/libvirt
mount -t tmpfs -o size=1m small "$1/small"
# In software: without /dev/kvm, whether there is one that works or not.
mount -t tmpfs dev "$1/dev"
mkdir "$1/dev/net" "$1/dev/pts" "$1/dev/shm"
for node in null zero full random urandom tty net/tun; do
    touch "$1/dev/$node"
    mount --bind "/dev/$node" "$1/dev/$node"
done
mount --bind /dev/pts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
mount --rbind "$1/dev" /dev
ip link set lo up
ip link add br-test type bridge
virtlogd -p /run/libvirt/virtlogd.pid 2>"$1/virtlogd.err" &
libvirtd -p /run/libvirt/libvirtd.pid 2>"$1/libvirtd.err" &
cat >/dev/null
"#;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Daemon {
    child: Child,
    files: TempDir,
    /// The first process of its namespace, as it is known outside.
    inside: u32,
}

impl Daemon {
    /// None where there cannot be one, which was said.
    pub(crate) fn start() -> Option<Self> {
        if let Some(why) = missing() {
            skip(&why);
            return None;
        }
        let files = tempfile::tempdir().expect("a directory");
        for name in [
            "etc/qemu", "lib", "run", "cache", "log", "dev", "small", "pool",
        ] {
            std::fs::create_dir_all(files.path().join(name)).expect("a directory");
        }
        let write = |name: &str, text: &str| {
            std::fs::write(files.path().join("etc").join(name), text).expect("a file");
        };
        write(
            "libvirtd.conf",
            "unix_sock_dir = \"/run/libvirt\"\nauth_unix_rw = \"none\"\n",
        );
        write(
            "qemu.conf",
            "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n\
             cgroup_controllers = []\nnamespaces = []\n",
        );
        let child = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "sh", "-c", SCRIPT, "sh"])
            .arg(files.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut daemon = Self {
            child,
            files,
            inside: 0,
        };
        daemon.connectable();
        daemon.inside = daemon.first_process();
        for (name, directory) in [("default", "pool"), ("small", "small")] {
            let directory = daemon.path(directory);
            let directory = directory.to_str().expect("text");
            daemon.virsh(&["pool-define-as", name, "dir", "--target", directory]);
        }
        Some(daemon)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn uri(&self) -> String {
        let socket = self.path("run/libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// What somebody does by hand.
    #[track_caller]
    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        let mut virsh = Command::new("virsh");
        virsh.args(["--connect", &self.uri()]).args(arguments);
        run(&mut virsh)
    }

    /// A shell where the daemon is.
    #[track_caller]
    pub(crate) fn shell(&self, script: &str) -> String {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.inside.to_string()]);
        nsenter.args(["--mount", "--net", "--pid", "sh", "-ec", script]);
        run(&mut nsenter)
    }

    /// Kills libvirtd, and nothing else.
    pub(crate) fn kill_libvirtd(&self) {
        self.shell("kill -9 $(cat /run/libvirt/libvirtd.pid)");
    }

    /// Starts libvirtd again.
    pub(crate) fn start_libvirtd(&self) {
        self.shell("libvirtd -d -p /run/libvirt/libvirtd.pid 2>/dev/null");
        self.connectable();
    }

    /// Waits until somebody can connect.
    fn connectable(&self) {
        let since = Instant::now();
        loop {
            let mut virsh = Command::new("virsh");
            virsh.args(["--connect", &self.uri(), "version"]);
            let output = virsh.output().expect("virsh");
            if output.status.success() {
                return;
            }
            if since.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.path("libvirtd.err"));
                panic!("no libvirtd: {output:?}\n{log:?}");
            }
        }
    }

    fn first_process(&self) -> u32 {
        let pid = self.child.id();
        let file = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(file).expect("children");
        children.trim().parse().expect("one child")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The script ends, and with it everything inside.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().expect("a program");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Why there can be no libvirtd here.
fn missing() -> Option<String> {
    let programs = [
        "libvirtd",
        "virtlogd",
        "virsh",
        "qemu-system-x86_64",
        "qemu-img",
        "unshare",
        "nsenter",
        "ip",
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in programs {
        let mut directories = std::env::split_paths(&path);
        if !directories.any(|directory| is_program(&directory.join(program))) {
            return Some(format!("there is no {program} on the PATH"));
        }
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--net", "--pid", "--fork", "true"]);
    match unshare.stderr(Stdio::null()).status() {
        Ok(status) if status.success() => None,
        _ => Some("no namespaces can be made here; that needs root".into()),
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
