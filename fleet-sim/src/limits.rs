//! What the operating system allows and says of this process.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not connections of nodes: files, the runtime, HTTP.
const SPARE: u64 = 200;

/// Too few connections are allowed.
#[derive(Debug, thiserror::Error)]
#[error(
    "{nodes} nodes need {wanted} open files, and this process may have {hard}; raise the limit (`ulimit -Hn {wanted}` as root, or LimitNOFILE= in a unit), or simulate fewer nodes"
)]
pub struct TooFewFiles {
    nodes: u32,
    wanted: u64,
    hard: u64,
}

/// Makes room for one connection a node.
///
/// # Errors
/// [`TooFewFiles`].
pub fn make_room(nodes: u32) -> Result<(), TooFewFiles> {
    let wanted = u64::from(nodes) + SPARE;
    let now = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= wanted);
    if enough(now.current) {
        return Ok(());
    }
    let hard = if enough(now.maximum) {
        now.maximum
    } else {
        // Root may raise its own hard limit.
        Some(wanted)
    };
    let raised = Rlimit {
        current: hard,
        maximum: hard,
    };
    setrlimit(Resource::Nofile, raised).map_err(|_| TooFewFiles {
        nodes,
        wanted,
        hard: now.maximum.unwrap_or(0),
    })
}

/// The memory of this process that is in use, in KiB; 0 where the system
/// does not say.
#[must_use]
pub fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_files_than_any_system_has_are_refused_with_a_way_out() {
        // The kernel's own limit (fs.nr_open) is below, for root too.
        let error = make_room(u32::MAX).expect_err("too many");
        assert!(error.to_string().contains("ulimit"), "{error}");
        assert!(make_room(1).is_ok());
    }

    #[test]
    fn the_process_uses_memory() {
        assert!(resident_kib() > 100);
    }
}
