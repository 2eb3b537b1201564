//! What these tests need of the machine: root, namespaces, `nft`, br_netfilter.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::Command;
use std::sync::OnceLock;

/// Whether it has them. Where it has not, the test that asks is to end; it is
/// said, and counted by `make test`.
///
/// # Panics
/// When it is missing and required.
#[must_use]
pub(crate) fn nft() -> bool {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let Some(why) = WHY.get_or_init(lacks) else {
        return true;
    };
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let required = std::env::var("MUSTER_TESTS_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|each| each.trim() == "nft"),
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

fn lacks() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("this is not root, who can make namespaces".to_owned());
    }
    for (program, arguments) in [("nft", "--version"), ("ip", "-V")] {
        if Command::new(program).arg(arguments).output().is_err() {
            return Some(format!("`{program}` is not installed"));
        }
    }
    // Asking for it loads it where it is a module.
    let made = Command::new("unshare")
        .args(["--net", "sh", "-c"])
        .arg("modprobe -q br_netfilter; test -e /proc/sys/net/bridge/bridge-nf-call-iptables")
        .output();
    match made {
        Ok(made) if made.status.success() => None,
        Ok(_) => Some("no namespace with br_netfilter can be made".to_owned()),
        Err(e) => Some(format!("unshare: {e}")),
    }
}
