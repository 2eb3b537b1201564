//! The host: the only module that touches processes, and everything else that
//! a scenario changes on a node.

pub mod account;
pub mod cgroup;
pub mod command;
pub mod environment;
pub mod file;
pub mod firewall;
pub mod groups;
pub mod package;
pub mod proc;
pub mod process;
pub mod program;
pub mod puppet;
pub mod service;
pub mod spawn;
pub mod tools;
pub mod tree;
pub mod user;
pub mod vm;
pub mod web;

/// The machine's boot id, from this file; empty where it is not told.
#[must_use]
pub fn boot_id(path: &std::path::Path) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Closes everything that this process was started with beyond its three
/// streams, so that no command inherits it. To be called before anything is
/// opened.
pub fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    // Collected first: the directory is itself open while it is read.
    let open: Vec<i32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open {
        if descriptor > 2 {
            let _ = nix::unistd::close(descriptor);
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
