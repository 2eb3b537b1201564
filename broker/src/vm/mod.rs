//! Virtual machines: what is wanted, where it is put, what is seen of it.
//!
//! A record says what a machine is to be and where in its life it is. What is
//! to happen is written down before a run is asked for, and the run's id
//! follows from the record: so whoever takes over asks for the same run, and
//! finds it. What hypervisors report is never written into it: wanted and seen
//! are held against each other whenever somebody looks.

pub mod adapters;
mod adopt;
mod again;
mod answers;
mod change;
mod choose;
mod cordons;
mod create;
mod drain;
pub mod drift;
mod error;
mod guarded;
mod hypervisors;
pub mod images;
pub mod keep;
mod machines;
mod names;
pub mod networks;
mod observed;
pub mod only;
mod part;
pub mod placement;
pub mod ports;
mod reconcile;
pub mod records;
mod refusals;
mod repair;
mod seed;
mod settle;
mod shelf;
mod tenants;
#[cfg(test)]
mod tests;
mod view;
mod wanted;

pub use self::adopt::Adopt;
pub use self::answers::Batch;
pub use self::change::{Act, Destroy};
pub use self::cordons::{Cordons, KEY as CORDONS, StoredCordons};
pub use self::drain::StopAll;
pub use self::error::VmError;
pub use self::guarded::{Guarded, MAX_PAIRS, MAX_VM_GROUPS};
pub use self::machines::{KEEP_FOR, Machines, Parts};
pub use self::names::{MAX_AT_ONCE, Names, NamesError};
pub use self::observed::{HYPERVISOR, Heard, Observed, is_hypervisor};
pub use self::records::StoredVm;
pub use self::repair::{FOUGHT_WITHIN, Repair, RepairError, Repaired};
pub use self::tenants::{StoredAccounts, StoredSshKeys, Tenants, TenantsError};
