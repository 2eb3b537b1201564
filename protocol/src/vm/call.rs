//! What a scenario asks of a hypervisor.

use serde::{Deserialize, Serialize};

use super::ids::VmId;
use super::spec::{ImageRef, Machine, Size};
use crate::names::SnapshotName;
use crate::units::Span;

/// One thing that is asked of a hypervisor. A machine is named by its UUID
/// alone: a name can be anybody's.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "vm", deny_unknown_fields)]
pub enum VmCall {
    /// The image is there, checked.
    Image {
        /// Which.
        image: ImageRef,
    },
    /// The machine is there, and runs.
    Create {
        /// Which, exactly.
        machine: Box<Machine>,
    },
    /// It runs.
    Start {
        /// Which.
        id: VmId,
    },
    /// It does not run: asked first, then forced.
    Stop {
        /// Which.
        id: VmId,
        /// How long it may take by itself.
        grace: Span,
    },
    /// It is started anew: asked first, then forced.
    Reboot {
        /// Which.
        id: VmId,
        /// How long it may take by itself.
        grace: Span,
    },
    /// It is not there.
    Destroy {
        /// Which.
        id: VmId,
        /// Whether its disk goes, too; else it is kept under its UUID, and
        /// what it was.
        purge: bool,
    },
    /// It has so much, from its next start at the latest. A disk only grows.
    Resize {
        /// Which.
        id: VmId,
        /// Processors.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cpus: Option<u16>,
        /// Memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory: Option<Size>,
        /// Disk.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<Size>,
    },
    /// There is a snapshot of its disk of that name.
    Snapshot {
        /// Which.
        id: VmId,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// Its disk is as in the snapshot.
    Restore {
        /// Which.
        id: VmId,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// Its seed holds nothing secret any more.
    Unseed {
        /// Which.
        id: VmId,
    },
    /// All machines of the hypervisor.
    List,
    /// What is known of one.
    Info {
        /// Which.
        id: VmId,
    },
    /// The end of what it wrote to its console.
    ConsoleLog {
        /// Which.
        id: VmId,
        /// Lines at most.
        lines: u32,
    },
    /// A program in it, by the QEMU guest agent.
    GuestExec {
        /// Which.
        id: VmId,
        /// The program and its arguments.
        argv: Vec<String>,
        /// How long it may take.
        timeout: Span,
    },
    /// Whether the QEMU guest agent in it answers.
    GuestPing {
        /// Which.
        id: VmId,
    },
}

impl VmCall {
    /// What scenarios call it: `create` for `vm::create`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Image { .. } => "image",
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Reboot { .. } => "reboot",
            Self::Destroy { .. } => "destroy",
            Self::Resize { .. } => "resize",
            Self::Snapshot { .. } => "snapshot",
            Self::Restore { .. } => "restore",
            Self::Unseed { .. } => "unseed",
            Self::List => "list",
            Self::Info { .. } => "info",
            Self::ConsoleLog { .. } => "console_log",
            Self::GuestExec { .. } => "guest_exec",
            Self::GuestPing { .. } => "guest_ping",
        }
    }

    /// The machine that it is about.
    #[must_use]
    pub fn id(&self) -> Option<VmId> {
        match self {
            Self::Image { .. } | Self::List => None,
            Self::Create { machine } => Some(machine.id),
            Self::Start { id }
            | Self::Stop { id, .. }
            | Self::Reboot { id, .. }
            | Self::Destroy { id, .. }
            | Self::Resize { id, .. }
            | Self::Snapshot { id, .. }
            | Self::Restore { id, .. }
            | Self::Unseed { id }
            | Self::Info { id }
            | Self::ConsoleLog { id, .. }
            | Self::GuestExec { id, .. }
            | Self::GuestPing { id } => Some(*id),
        }
    }
}
