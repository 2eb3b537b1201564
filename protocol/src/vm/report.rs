//! What a hypervisor says of itself and of the machines on it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{Sha256, VmId};
use super::spec::Size;
use crate::ids::ClusterId;
use crate::names::PoolName;
use crate::units::Timestamp;

/// Most machines in one report.
pub const MAX_GUESTS: usize = 1_000;

/// How machines run.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Virtualisation {
    /// By the processor.
    Kvm,
    /// In software.
    Qemu,
    /// In this process's memory: a simulation.
    Memory,
}

/// What a hypervisor has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Size,
    /// The pool for disks: all of it.
    pub disk: Size,
    /// The pool for disks: what is free now.
    pub disk_free: Size,
}

/// Whose a domain is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "owner")]
pub enum Owner {
    /// A cluster of muster made it.
    Muster {
        /// Which cluster.
        cluster: ClusterId,
    },
    /// Somebody else did: it is never touched.
    Foreign,
}

/// How a machine is, as its hypervisor sees it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuestState {
    /// It runs.
    Running,
    /// It is held.
    Paused,
    /// It does not run.
    Stopped,
    /// It did not end by itself.
    Crashed,
}

/// What a machine's interfaces have carried since it was started, as the
/// machine sees it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Bytes that came to it.
    pub received: Size,
    /// Bytes that it sent.
    pub sent: Size,
}

/// A machine, as its hypervisor sees it. (What is flattened into it would be
/// unknown fields, so none are refused.)
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Guest {
    /// Its UUID.
    pub id: VmId,
    /// The name of its domain: any text, cut to what is printable.
    pub name: String,
    /// How it is.
    pub state: GuestState,
    /// Processors.
    pub cpus: u16,
    /// Memory.
    pub memory: Size,
    /// Whose it is.
    #[serde(flatten)]
    pub owner: Owner,
    /// When it was started, where that is known. One that starts anew by
    /// itself was not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// What went over its interfaces since then, where that is known. It is
    /// no reason for a report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

/// Everything at once: what is not in it is not there. Sent when something
/// changed, at the latest within a second, and every half minute.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HypervisorReport {
    /// Rises with every report of one start of the agent.
    pub sequence: u64,
    /// The node's clock.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// How machines run; none when it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtualisation: Option<Virtualisation>,
    /// What it has; none when it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// The pool that machines' disks are in.
    pub pool: PoolName,
    /// Its machines, sorted by UUID.
    pub guests: Vec<Guest>,
    /// Images that it has, sorted.
    pub images: Vec<Sha256>,
    /// Why this is not known now: then machines are neither there nor gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reported_is_read() {
        let owners = [
            Owner::Foreign,
            Owner::Muster {
                cluster: ClusterId::from_bytes([7; 16]),
            },
        ];
        for owner in owners {
            let guest = Guest {
                id: "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102"
                    .parse()
                    .expect("an id"),
                name: "web-03".to_owned(),
                state: GuestState::Running,
                cpus: 2,
                memory: Size(2 << 30),
                owner,
                since: Some(Timestamp::UNIX_EPOCH),
                traffic: Some(Traffic {
                    received: Size(1 << 40),
                    sent: Size(0),
                }),
            };
            let text = serde_json::to_string(&guest).expect("JSON");
            assert_eq!(
                serde_json::from_str::<Guest>(&text).ok(),
                Some(guest),
                "{text}"
            );
        }
    }
}
