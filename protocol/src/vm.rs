//! Virtual machines: what one is, what a hypervisor says of those it has, and
//! what is wanted of it.
//!
//! What is wanted of a machine ([`Machine`]) and what a hypervisor sees of it
//! ([`Guest`]) are two types on purpose: nobody can mistake a wish for what is
//! so.

mod call;
mod ids;
mod qcow2;
mod report;
mod spec;
mod ssh;

pub use self::call::VmCall;
pub use self::ids::{Mac, Sha256, VmId, VmIdError};
pub use self::qcow2::{IMAGE_HEAD, ImageFault, looks_like, virtual_size};
pub use self::report::{
    Capacity, Guest, GuestState, HypervisorReport, MAX_GUESTS, Owner, Traffic, Virtualisation,
};
pub use self::spec::{
    Disk, Enrol, ImageFormat, ImageRef, MAX_CPUS, MAX_DISK, MAX_MEMORY, MAX_NICS, MIN_MEMORY,
    Machine, MachineError, Nic, Readiness, SeedText, Size, SizeError,
};
pub use self::ssh::{MAX_SSH_KEY, SshKey, SshKeyError, check_key_line, is_private_key};
