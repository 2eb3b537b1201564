//! What can be known without running anything.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use muster_protocol::text::printable;
use serde_json::{Map, Value, json};

/// Gathers them. What cannot be found out is absent.
pub(super) fn gather() -> Map<String, Value> {
    let mut facts = Map::new();
    let uname = rustix::system::uname();
    let hostname = text(&uname.nodename().to_string_lossy());
    facts.insert(
        "os".into(),
        Value::Object(os(&read_first(&["/etc/os-release", "/usr/lib/os-release"]))),
    );
    facts.insert(
        "kernel".into(),
        text(&uname.release().to_string_lossy()).into(),
    );
    facts.insert(
        "arch".into(),
        text(&uname.machine().to_string_lossy()).into(),
    );
    let fqdn = fqdn(&hostname, &read("/etc/hosts"));
    facts.insert("hostname".into(), hostname.into());
    if let Some(fqdn) = fqdn {
        facts.insert("fqdn".into(), fqdn.into());
    }
    if let Some(cpus) = cpus() {
        facts.insert("cpus".into(), cpus.into());
    }
    if let Some(bytes) = memory(&read("/proc/meminfo")) {
        facts.insert("memory_bytes".into(), bytes.into());
    }
    let boot_id = crate::host::boot_id(std::path::Path::new(crate::config::BOOT_ID));
    if !boot_id.is_empty() {
        facts.insert("boot_id".into(), boot_id.into());
    }
    facts.insert("addresses".into(), addresses().into());
    facts.insert("virtualization".into(), virtualization().into());
    facts.insert(
        "agent".into(),
        json!({ "version": crate::release::version() }),
    );
    facts
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn read_first(paths: &[&str]) -> String {
    paths
        .iter()
        .map(|path| read(path))
        .find(|text| !text.is_empty())
        .unwrap_or_default()
}

fn text(value: &str) -> String {
    printable(value.trim(), 200)
}

fn os(release: &str) -> Map<String, Value> {
    let mut os = Map::new();
    for (theirs, ours) in [
        ("ID", "id"),
        ("NAME", "name"),
        ("VERSION_ID", "version"),
        ("VERSION_CODENAME", "codename"),
    ] {
        let value = release
            .lines()
            .find_map(|line| line.strip_prefix(theirs)?.strip_prefix('='));
        if let Some(value) = value {
            let value = text(value.trim().trim_matches(['"', '\'']));
            if !value.is_empty() {
                os.insert(ours.into(), value.into());
            }
        }
    }
    os
}

/// The first name with a dot on a line of `/etc/hosts` that has the host's
/// name; no name server is asked.
fn fqdn(hostname: &str, hosts: &str) -> Option<String> {
    if hostname.contains('.') {
        return Some(hostname.to_owned());
    }
    hosts.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let names: Vec<&str> = line.split_ascii_whitespace().skip(1).collect();
        let prefix = format!("{hostname}.");
        let full = names.iter().find(|name| name.starts_with(&prefix))?;
        Some(text(full))
    })
}

/// Processors that are on, whatever this process may use of them.
fn cpus() -> Option<u64> {
    let listed = ranges(read("/sys/devices/system/cpu/online").trim());
    listed.or_else(|| {
        std::thread::available_parallelism()
            .ok()
            .map(|n| n.get() as u64)
    })
}

/// How many numbers `0-3,8` names.
fn ranges(list: &str) -> Option<u64> {
    let mut count = 0u64;
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Addresses that others may reach this machine by, IPv4 first.
fn addresses() -> Vec<String> {
    let mut all: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .filter(|interface| !interface.is_loopback() && !interface.is_link_local())
        .map(|interface| interface.ip())
        .collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(256);
    all.iter().map(ToString::to_string).collect()
}

fn virtualization() -> String {
    if Path::new("/run/systemd/container").exists() || Path::new("/.dockerenv").exists() {
        return "container".into();
    }
    let hypervisor = text(&read("/sys/hypervisor/type"));
    if !hypervisor.is_empty() {
        return hypervisor;
    }
    let dmi = format!(
        "{} {}",
        read("/sys/class/dmi/id/sys_vendor"),
        read("/sys/class/dmi/id/product_name")
    );
    guess(&dmi).unwrap_or("none").into()
}

fn guess(dmi: &str) -> Option<&'static str> {
    let dmi = dmi.to_ascii_lowercase();
    let known = [
        ("kvm", "kvm"),
        ("qemu", "qemu"),
        ("vmware", "vmware"),
        ("virtualbox", "virtualbox"),
        ("innotek", "virtualbox"),
        ("xen", "xen"),
        ("virtual machine", "hyperv"),
        ("amazon ec2", "amazon"),
        ("google", "google"),
        ("openstack", "openstack"),
        ("bhyve", "bhyve"),
        ("parallels", "parallels"),
    ];
    known
        .into_iter()
        .find(|(word, _)| dmi.contains(word))
        .map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system_are_read_as_they_are_written() {
        let release =
            "PRETTY_NAME=\"Debian\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n";
        let os = os(release);
        assert_eq!(
            (os["id"].as_str(), os["version"].as_str()),
            (Some("debian"), Some("12"))
        );
        assert_eq!(
            memory("MemTotal:       16384 kB\nMemFree: 1 kB\n"),
            Some(16_777_216)
        );
        assert_eq!(ranges("0-3,8"), Some(5));
        assert_eq!(ranges(""), None);
        assert_eq!(ranges("3-0"), None);
        assert_eq!(
            fqdn("a", "127.0.1.1 a.example.org a # x"),
            Some("a.example.org".into())
        );
        assert_eq!(fqdn("a", "127.0.1.1 ab.example.org a"), None);
        assert_eq!(guess("QEMU Standard PC"), Some("qemu"));
        assert_eq!(guess("Dell Inc. PowerEdge"), None);
    }

    #[test]
    fn this_machine_can_be_described() {
        let facts = gather();
        assert!(facts["cpus"].as_u64() > Some(0));
        assert!(facts["memory_bytes"].as_u64() > Some(0));
        assert!(facts["kernel"].as_str().is_some_and(|k| !k.is_empty()));
    }
}
