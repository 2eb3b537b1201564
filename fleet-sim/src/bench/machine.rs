//! What was measured on: figures without it say nothing.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use muster_protocol::text::printable;
use serde::Serialize;

use super::figures::percentile;

/// Times a block is written and synced.
const SYNCS: usize = 200;
/// Bytes of such a block: a page of a journal.
const BLOCK: usize = 4096;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The system, as `/etc/os-release` has it.
    pub system: String,
    /// The kernel.
    pub kernel: String,
    /// What `nats-server --version` says.
    pub nats_server: String,
    /// Load average over 1, 5 and 15 minutes before anything was started.
    pub load_before: String,
}

impl Machine {
    /// Looks.
    #[must_use]
    pub fn look(nats_server: &str) -> Self {
        let version = Command::new(nats_server).arg("--version").output();
        let version = version.map_or_else(
            |e| format!("not to be had: {e}"),
            |out| {
                let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
                text.trim_start_matches("nats-server: ").to_owned()
            },
        );
        Self {
            cpu: value_of("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_mib: value_of("/proc/meminfo", "MemTotal")
                .and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or(0)
                / 1024,
            system: os_name(),
            kernel: read("/proc/sys/kernel/osrelease"),
            nats_server: printable(&version, 60),
            load_before: load(),
        }
    }
}

/// The load average now.
#[must_use]
pub fn load() -> String {
    let text = read("/proc/loadavg");
    text.split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

fn read(path: &str) -> String {
    printable(fs::read_to_string(path).unwrap_or_default().trim(), 120)
}

/// `KEY : VALUE` in a file of /proc.
fn value_of(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })?;
    Some(printable(&value, 120))
}

fn os_name() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    printable(name.unwrap_or("unknown").trim_matches('"'), 80)
}

/// The disk below a directory.
#[derive(Clone, Debug, Serialize)]
pub struct Disk {
    /// The device, as mounted.
    pub device: String,
    /// Its file system.
    pub file_system: String,
    /// How it is mounted.
    pub options: String,
    /// Milliseconds to write a block and have it on the disk: half are quicker.
    pub sync_p50_ms: f64,
    /// Of a hundred, ninety-nine are quicker.
    pub sync_p99_ms: f64,
}

impl Disk {
    /// Looks, and measures in a file of its own.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn measure(dir: &Path) -> std::io::Result<Self> {
        let (device, file_system, options) = mount(dir).unwrap_or_default();
        let path = dir.join("sync");
        let mut file = File::create(&path)?;
        let block = [0x5a_u8; BLOCK];
        let mut times = Vec::with_capacity(SYNCS);
        for _ in 0..SYNCS {
            let begun = Instant::now();
            file.write_all(&block)?;
            file.sync_data()?;
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        fs::remove_file(&path)?;
        Ok(Self {
            device,
            file_system,
            options,
            sync_p50_ms: percentile(&times, 0.5),
            sync_p99_ms: percentile(&times, 0.99),
        })
    }
}

/// Device, file system and options of the mount that holds a directory.
fn mount(dir: &Path) -> Option<(String, String, String)> {
    let dir = dir.canonicalize().ok()?;
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    find_mount(&table, &dir)
}

fn find_mount(table: &str, dir: &Path) -> Option<(String, String, String)> {
    let mut best: Option<(usize, (String, String, String))> = None;
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let left: Vec<_> = left.split(' ').collect();
        let right: Vec<_> = right.split(' ').collect();
        let (Some(place), Some(options), [kind, device, ..]) =
            (left.get(4), left.get(5), right.as_slice())
        else {
            continue;
        };
        let place = Path::new(place);
        let depth = place.components().count();
        // Of two on one place, the later one covers the earlier.
        if dir.starts_with(place) && best.as_ref().is_none_or(|(most, _)| depth >= *most) {
            let found = [*device, *kind, *options].map(|s| printable(s, 80));
            let [device, kind, options] = found;
            best = Some((depth, (device, kind, options)));
        }
    }
    best.map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_holds_a_directory() {
        let table = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:5 / /var rw,noatime - xfs /dev/vdb rw
24 22 0:6 / /variable rw - tmpfs tmpfs rw
";
        let of = |dir: &str| find_mount(table, Path::new(dir)).expect("a mount");
        assert_eq!(of("/var/tmp/x").0, "/dev/vdb");
        assert_eq!(of("/var/tmp/x").2, "rw,noatime");
        assert_eq!(of("/variable").1, "tmpfs");
        assert_eq!(of("/home").0, "/dev/vda");
    }

    #[test]
    fn this_machine_says_what_it_is() {
        let machine = Machine::look("/does/not/exist");
        assert!(machine.cores >= 1 && machine.memory_mib > 0, "{machine:?}");
        assert!(machine.nats_server.contains("not to be had"));
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::measure(dir.path()).expect("it can be written");
        assert!(disk.sync_p50_ms <= disk.sync_p99_ms);
    }
}
