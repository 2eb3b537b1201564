//! What the kernel says of a process: memory and processor time.

use std::fs;
use std::time::Duration;

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Memory {
    /// Resident, pages of files counted.
    pub resident: u64,
    /// Written by it and by nobody else: what would be free without it.
    pub own: u64,
}

/// Memory of a process; `None` when it is gone or not ours to look at.
#[must_use]
pub fn memory(pid: u32) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let of = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
    };
    Some(Memory {
        resident: of("Rss:")?,
        own: of("Private_Dirty:")?,
    })
}

/// Processor time that a process has used, without its children.
#[must_use]
pub fn cpu(pid: u32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_cpu(&text)
}

fn parse_cpu(stat: &str) -> Option<Duration> {
    // The name in brackets may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_nanos(
        (user + system).saturating_mul(1_000_000_000 / ticks),
    ))
}

/// Time that all processors were busy and idle since the machine's start, in
/// ticks.
#[must_use]
pub fn busy_and_idle() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    let at = |index: usize| fields.get(index).copied().unwrap_or_default();
    // Idle and waiting for the disk; all else is work of somebody.
    let idle = at(3) + at(4);
    let all: u64 = fields.iter().take(8).sum();
    (all - idle.min(all), idle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_move_the_fields() {
        let line = "7 (a ) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 9 9 20 0 1 0 5 0 0";
        let ticks = rustix::param::clock_ticks_per_second();
        let seconds = parse_cpu(line).expect("parses").as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "a small constant")]
        let wanted = 200.0 / ticks as f64;
        assert!((seconds - wanted).abs() < 1e-6);
        assert_eq!(parse_cpu("nonsense"), None);
    }

    #[test]
    fn this_process_has_memory_and_has_used_time() {
        let me = std::process::id();
        let memory = memory(me).expect("ours");
        assert!(memory.own > 0 && memory.own < memory.resident);
        assert!(cpu(me).is_some());
        assert!(cpu(u32::MAX).is_none());
        let (busy, _) = busy_and_idle();
        assert!(busy > 0);
    }
}
