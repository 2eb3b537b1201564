//! The host: the only module that touches processes.

pub mod cgroup;
pub mod environment;
pub mod proc;
pub mod process;
pub mod tree;

/// The machine's boot id; empty where the kernel does not tell.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
