//! Machines to ask for.

use muster_libvirt::xml::{self, Paths};
use muster_protocol::ids::ClusterId;
use muster_protocol::vm::{Machine, Virtualisation, VmId};

pub(crate) fn cluster() -> ClusterId {
    ClusterId::from_bytes([7; 16])
}

/// A small one, without interfaces and without an operating system.
pub(crate) fn machine(name: &str, pool: &str) -> Machine {
    let id = VmId::derive(&cluster(), &name.parse().expect("a name"), 1);
    let json = serde_json::json!({
        "id": id, "name": name, "cpus": 1, "memory": 64 << 20,
        "image": {
            "name": "none", "sha256": "00".repeat(32), "size": 1, "format": "raw",
            "virtual_size": 1 << 20,
        },
        "disk": {"size": 16 << 20, "pool": pool},
        "nics": [], "autostart": false, "ready": "boot",
    });
    serde_json::from_value(json).expect("a machine")
}

pub(crate) fn definition(machine: &Machine, disk: &str, log: &str) -> String {
    with_seed(machine, disk, log, None)
}

pub(crate) fn with_seed(machine: &Machine, disk: &str, log: &str, seed: Option<&str>) -> String {
    let paths = Paths {
        disk: disk.into(),
        seed: seed.map(str::to_owned),
        console_log: log.into(),
        emulator: None,
    };
    xml::domain(machine, &paths, cluster(), Virtualisation::Qemu)
}
