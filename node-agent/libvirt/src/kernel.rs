//! What the kernel knows of domains that run: libvirt does not say since when
//! one does, and lets nobody ask for its traffic while it works on it.
//!
//! Only what is on this machine is seen. Of a libvirt on another one nothing
//! is said.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use muster_libvirt::message::Domain;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{GuestState, Size, Traffic, VmId};

/// Where libvirt writes down which process a domain is.
const PIDS: &str = "run/libvirt/qemu";
/// Most that is read of one file.
const MAX_FILE: u64 = 1 << 20;

/// It, at one moment.
pub(crate) struct Kernel {
    root: PathBuf,
    /// When it was started, in seconds.
    begun: Option<i64>,
    /// In how many ticks it counts a second.
    ticks: u64,
}

impl Kernel {
    /// As it is now.
    pub(crate) fn now() -> Self {
        Self::below("/".into(), rustix::param::clock_ticks_per_second())
    }

    fn below(root: PathBuf, ticks: u64) -> Self {
        // Moves only when the clock is set, so that what follows from it is
        // the same each time.
        let begun = read(&root.join("proc/stat")).and_then(|text| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
        });
        Self { root, begun, ticks }
    }

    /// Adds to a domain what is known of it.
    pub(crate) fn tell(&self, domain: &mut Domain) {
        if !matches!(domain.state, GuestState::Running | GuestState::Paused) {
            return;
        }
        domain.since = self.since(&domain.name, domain.uuid);
        if let Some(machine) = &domain.machine {
            let taps = machine.nics.iter().map(|nic| nic.tap.as_str());
            domain.traffic = self.traffic(taps);
        }
    }

    /// When its QEMU was started: a guest that starts anew by itself keeps it.
    fn since(&self, name: &str, uuid: VmId) -> Option<Timestamp> {
        if name.contains('/') {
            return None;
        }
        let file = self.root.join(PIDS).join(format!("{name}.pid"));
        let pid: u32 = read(&file)?.trim().parse().ok()?;
        let process = self.root.join("proc").join(pid.to_string());
        let stat = read(&process.join("stat"))?;
        // The name of the program is in brackets, and can be anything.
        let rest = stat.rsplit_once(") ")?.1;
        let ticks: u64 = rest.split(' ').nth(19)?.parse().ok()?;
        // What was a domain's number may be another program's by now, or
        // another domain's.
        let arguments = read(&process.join("cmdline"))?;
        let mut arguments = arguments.split('\0').skip_while(|a| *a != "-uuid");
        let is = arguments.nth(1)?.parse() == Ok(uuid);
        let after = i64::try_from(ticks.checked_div(self.ticks)?).ok()?;
        let second = self.begun?.checked_add(after)?;
        is.then(|| Timestamp::from_second(second).ok())?
    }

    /// What went over its taps, which are made when it is started. A tap is
    /// the other end of the guest's cable: what it sends, the guest receives.
    fn traffic<'a>(&self, taps: impl Iterator<Item = &'a str>) -> Option<Traffic> {
        let mut sum = None;
        for tap in taps {
            let counters = Path::new("sys/class/net").join(tap).join("statistics");
            let count = |name| -> Option<u64> {
                let file = self.root.join(&counters).join(name);
                read(&file)?.trim().parse().ok()
            };
            let (sent, received) = (count("rx_bytes")?, count("tx_bytes")?);
            let sum = sum.get_or_insert_with(Traffic::default);
            sum.sent = Size(sum.sent.bytes().saturating_add(sent));
            sum.received = Size(sum.received.bytes().saturating_add(received));
        }
        sum
    }
}

fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const UUID: &str = "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102";
    const OTHER: &str = "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809103";

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().expect("a directory"));
            machine.has("proc/stat", "cpu  1 2 3\nbtime 1700000000\nprocesses 9\n");
            machine.has("run/libvirt/qemu/web-03.pid", "812\n");
            let stat = format!("812 (qemu) S)x) S 1{} 12345 99 99\n", " 7".repeat(17));
            machine.has("proc/812/stat", &stat);
            machine.has(
                "proc/812/cmdline",
                &format!("qemu\0-S\0-uuid\0{UUID}\0-m\0256\0"),
            );
            machine
        }

        fn has(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("one")).expect("made");
            fs::write(path, text).expect("written");
        }

        fn kernel(&self) -> Kernel {
            Kernel::below(self.0.path().to_owned(), 100)
        }

        fn since(&self, name: &str, uuid: &str) -> Option<i64> {
            let uuid = uuid.parse().expect("an id");
            self.kernel().since(name, uuid).map(Timestamp::as_second)
        }
    }

    #[test]
    fn since_when_a_domain_runs_is_when_its_process_was_started() {
        let machine = Machine::new();
        assert_eq!(machine.since("web-03", UUID), Some(1_700_000_123));
        assert_eq!(machine.since("web-03", OTHER), None, "another domain's");
        assert_eq!(machine.since("web-04", UUID), None);
        assert_eq!(machine.since("../qemu/web-03", UUID), None);
        for (path, bad) in [
            ("proc/812/cmdline", "sleep\0-uuid"),
            ("proc/812/cmdline", ""),
            ("proc/812/stat", "812 (qemu) S 1 2\n"),
            ("proc/812/stat", ""),
            ("proc/stat", "btime x\n"),
            ("proc/stat", "btime 9223372036854775807\n"),
            ("run/libvirt/qemu/web-03.pid", "../1\n"),
            ("run/libvirt/qemu/web-03.pid", "813\n"),
        ] {
            let machine = Machine::new();
            machine.has(path, bad);
            assert_eq!(machine.since("web-03", UUID), None, "{path}: {bad}");
        }
    }

    #[test]
    fn what_a_tap_sends_the_guest_receives() {
        let machine = Machine::new();
        for (tap, rx, tx) in [("mt1", "1000", "7"), ("mt2", "200", "30")] {
            let counters = format!("sys/class/net/{tap}/statistics");
            machine.has(&format!("{counters}/rx_bytes"), &format!("{rx}\n"));
            machine.has(&format!("{counters}/tx_bytes"), &format!("{tx}\n"));
        }
        let traffic = |taps: &[&str]| machine.kernel().traffic(taps.iter().copied());
        let both = Traffic {
            received: Size(37),
            sent: Size(1_200),
        };
        assert_eq!(traffic(&["mt1", "mt2"]), Some(both));
        // A part is not taken for all of it.
        assert_eq!(traffic(&["mt1", "mt3"]), None);
        assert_eq!(traffic(&[]), None);
    }

    #[test]
    fn this_machine_says_when_it_was_started() {
        let kernel = Kernel::now();
        assert!(kernel.begun.expect("it says so") > 0);
        assert!(kernel.ticks > 0);
    }
}
