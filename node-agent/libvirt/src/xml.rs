//! The XML of domains and volumes, written from typed values and read as
//! something that anybody may have written.

mod read;
mod write;

pub use read::{
    Capabilities, Definition, DiskRead, DiskSource, MAX_XML, read_capabilities, read_disks,
    read_domain, read_pool_path, read_snapshot_is_of_disk, read_snapshot_name,
};
pub use write::{Paths, domain, snapshot, volume};

/// The namespace of what muster writes into the metadata of its domains.
pub const NAMESPACE: &str = "https://muster.example/machine/1";

#[cfg(test)]
mod tests;
