//! What a test needs of the machine, and what happens where it is missing.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::parts::Parts;

/// Names, with commas, of what must not be missing: `libvirt,guest`.
pub const REQUIRE: &str = "MUSTER_TESTS_REQUIRE";
/// The file that skipped tests are written into, a line each.
pub const SKIPPED: &str = "MUSTER_TESTS_SKIPPED";

/// Whether this machine has what is named: `libvirt` (a libvirt and a QEMU, and
/// root, who can make namespaces for them), `guest` (that, and what the disk
/// of a guest is made of) or `nft` (nftables in namespaces). Where it has not, the test that asks is to end; it
/// is said, and counted by `make test`.
///
/// # Panics
/// When it is missing and required by [`REQUIRE`].
#[must_use]
pub fn capability(name: &str) -> bool {
    let lacks = match name {
        "libvirt" => libvirt().map(|why| ("libvirt", why)),
        "guest" => libvirt()
            .map(|why| ("libvirt", why))
            .or_else(|| guest().map(|why| ("guest", why))),
        "nft" => nft().map(|why| ("nft", why)),
        _ => Some((name, format!("nothing is called `{name}`"))),
    };
    let Some((lacking, why)) = lacks else {
        return true;
    };
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let required = std::env::var(REQUIRE).unwrap_or_default();
    assert!(
        !required
            .split(',')
            .any(|each| [name, lacking].contains(&each.trim())),
        "{test} needs `{name}`, which is required here ({REQUIRE}={required}), and {why}"
    );
    let line = format!("{test}: needs `{name}`, and {why}\n");
    // Past the capture of what tests print.
    let _ = write!(std::io::stderr(), "SKIPPED: {line}");
    if let Some(file) = std::env::var_os(SKIPPED) {
        let file = OpenOptions::new().create(true).append(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
    false
}

/// Writes a line to standard output, past the capture of what tests print.
pub fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Where a program of the system is; servers are often not on a person's PATH.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/bin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Why there can be no hypervisor.
fn libvirt() -> Option<String> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    WHY.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return Some("this is not root, who can make namespaces".to_owned());
        }
        let programs = [
            "unshare",
            "nsenter",
            "ip",
            "libvirtd",
            "virtlogd",
            "virsh",
            "qemu-system-x86_64",
            "qemu-img",
        ];
        if let Some(name) = programs.iter().find(|name| program(name).is_none()) {
            return Some(format!("`{name}` is not installed (scripts/setup.sh test)"));
        }
        if !Path::new("/dev/net/tun").exists() {
            return Some("/dev/net/tun is missing".to_owned());
        }
        // The kernel, or a container's policy, may say no.
        let made = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--uts", "--fork"])
            .args(["mount", "-t", "sysfs", "sys", "/sys"])
            .stdin(Stdio::null())
            .output();
        match made {
            Ok(made) if made.status.success() => None,
            Ok(made) => Some(format!(
                "no namespaces can be made: {}",
                String::from_utf8_lossy(&made.stderr).trim()
            )),
            Err(e) => Some(format!("unshare: {e}")),
        }
    })
    .clone()
}

/// Why no firewall can be changed in a namespace.
fn nft() -> Option<String> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    WHY.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return Some("this is not root, who can make namespaces".to_owned());
        }
        let programs = ["unshare", "nsenter", "ip", "nft"];
        if let Some(name) = programs.iter().find(|name| program(name).is_none()) {
            return Some(format!("`{name}` is not installed (scripts/setup.sh test)"));
        }
        let rule = "table inet x { chain y { type filter hook input priority 0; ct state new; }; }";
        let made = Command::new("unshare")
            .args(["--net", "nft", rule])
            .stdin(Stdio::null())
            .output();
        match made {
            Ok(made) if made.status.success() => None,
            Ok(made) => Some(format!(
                "the kernel takes no rules in a namespace: {}",
                String::from_utf8_lossy(&made.stderr).trim()
            )),
            Err(e) => Some(format!("unshare: {e}")),
        }
    })
    .clone()
}

/// Why there can be no guest where there is a hypervisor.
fn guest() -> Option<String> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    WHY.get_or_init(|| Parts::find().err().map(|e| format!("{e:#}")))
        .clone()
}
