//! How machines are put on hypervisors.

use muster_protocol::units::Span;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Whoever made a machine can see for so long at least why it is gone.
const SHORTEST: Span = Span::from_secs(3_600);

/// How much of a hypervisor is given to machines, in percent of what it has.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// Of its processors.
    pub overcommit_cpu_percent: u32,
    /// Of its memory.
    pub overcommit_memory_percent: u32,
    /// Of its pool for disks.
    pub overcommit_disk_percent: u32,
    /// How long it is known of a machine that is gone that there was one.
    pub keep_records: Span,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            overcommit_cpu_percent: 400,
            overcommit_memory_percent: 100,
            overcommit_disk_percent: 100,
            keep_records: Span::from_secs(30 * 86_400),
        }
    }
}

impl VmConfig {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (field, percent) in [
            ("vm.overcommit_cpu_percent", self.overcommit_cpu_percent),
            (
                "vm.overcommit_memory_percent",
                self.overcommit_memory_percent,
            ),
            ("vm.overcommit_disk_percent", self.overcommit_disk_percent),
        ] {
            if !(1..=10_000).contains(&percent) {
                let why = "must be 1 to 10000: a part of what a hypervisor has, in percent".into();
                return Err(ConfigError::Value { field, why });
            }
        }
        if self.keep_records < SHORTEST {
            let (field, why) = ("vm.keep_records", format!("must be at least {SHORTEST}"));
            return Err(ConfigError::Value { field, why });
        }
        Ok(())
    }
}
