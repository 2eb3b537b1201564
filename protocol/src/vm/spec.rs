//! What is wanted of a machine.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{Mac, Sha256, VmId};
use crate::api::Secret;
use crate::names::{AccountName, BridgeName, ImageName, LanName, PoolName, TapName, VmName};

/// Most processors of a machine.
pub const MAX_CPUS: u16 = 256;
/// Least memory of a machine.
pub const MIN_MEMORY: Size = Size(16 << 20);
/// Most memory of a machine.
pub const MAX_MEMORY: Size = Size(4 << 40);
/// Largest disk of a machine.
pub const MAX_DISK: Size = Size(64 << 40);
/// Most interfaces of a machine.
pub const MAX_NICS: usize = 8;

/// A number of bytes: a number in JSON, `2GiB` for people.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(transparent)]
pub struct Size(pub u64);

/// Why a text is not a size.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not a size; write it like 512MiB, 2GiB or 1TiB")]
pub struct SizeError(String);

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl Size {
    /// The bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    /// Exactly where that is short, else with one digit behind the point.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) = UNITS
            .iter()
            .find(|(_, bytes)| self.0 >= *bytes)
            .unwrap_or(&("B", 1));
        let text = if self.0.is_multiple_of(*bytes) {
            format!("{}{unit}", self.0 / bytes)
        } else {
            // Tenths, so that no float rounds what is exact.
            let tenths = u128::from(self.0) * 10 / u128::from(*bytes);
            format!("{}.{}{unit}", tenths / 10, tenths % 10)
        };
        f.pad(&text)
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let fail = || SizeError(crate::text::printable(text, 40));
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| fail())?;
        let unit = &text[digits..];
        let (_, bytes) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(fail)?;
        number.checked_mul(*bytes).map(Self).ok_or_else(fail)
    }
}

impl utoipa::PartialSchema for Size {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        u64::schema()
    }
}

impl ToSchema for Size {}

/// How an image is written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// qcow2, without a backing file and without an external data file.
    Qcow2,
    /// The disk's bytes as they are.
    Raw,
}

/// An image, exactly.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// What people call it.
    pub name: ImageName,
    /// Its bytes' hash: this decides.
    pub sha256: Sha256,
    /// Its bytes.
    pub size: Size,
    /// How it is written.
    pub format: ImageFormat,
    /// How large a disk of it is at least.
    pub virtual_size: Size,
}

/// The disk of a machine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its size; at least the image's.
    pub size: Size,
    /// The storage pool on the hypervisor.
    pub pool: PoolName,
}

/// An interface of a machine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// The network that it is in.
    pub network: LanName,
    /// The hypervisor's bridge for it.
    pub bridge: BridgeName,
    /// Its hardware address.
    pub mac: Mac,
    /// Its name on the hypervisor.
    pub tap: TapName,
    /// Its addresses.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
}

/// What says that a machine is up.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// Its agent has enrolled: muster's own machines.
    Agent,
    /// It was started.
    Boot,
    /// Its first address answers the hypervisor.
    Ping,
    /// The QEMU guest agent in it answers.
    GuestAgent,
}

/// A machine, as it is to be on its hypervisor: everything but its seed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Which.
    pub id: VmId,
    /// What people call it, and the name of its domain.
    pub name: VmName,
    /// Virtual processors.
    pub cpus: u16,
    /// Memory; whole MiB.
    pub memory: Size,
    /// What its disk begins with.
    pub image: ImageRef,
    /// Its disk.
    pub disk: Disk,
    /// Its interfaces, in order.
    pub nics: Vec<Nic>,
    /// Whether it starts with its hypervisor.
    pub autostart: bool,
    /// When it counts as up.
    pub ready: Readiness,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
}

/// Why no machine can be like that.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Processors.
    #[error("{0} processors: a machine has 1 to {MAX_CPUS}")]
    Cpus(u16),
    /// Memory.
    #[error("{0} of memory: a machine has {MIN_MEMORY} to {MAX_MEMORY}, in whole MiB")]
    Memory(Size),
    /// Disk.
    #[error("a disk of {0}: at most {MAX_DISK}, in whole MiB")]
    Disk(Size),
    /// The image does not fit.
    #[error("a disk of {disk} is smaller than the image `{image}`, which is one of {needed}")]
    TooSmall {
        /// What was asked for.
        disk: Size,
        /// What of.
        image: ImageName,
        /// The least.
        needed: Size,
    },
    /// Interfaces.
    #[error("{0} interfaces: a machine has at most {MAX_NICS}")]
    Nics(usize),
}

impl Machine {
    /// Whether there can be one like that, anywhere.
    ///
    /// # Errors
    /// [`MachineError`]: the first thing that cannot be.
    pub fn check(&self) -> Result<(), MachineError> {
        let mib = |size: Size| size.0.is_multiple_of(1 << 20);
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(MachineError::Cpus(self.cpus));
        }
        if self.memory < MIN_MEMORY || self.memory > MAX_MEMORY || !mib(self.memory) {
            return Err(MachineError::Memory(self.memory));
        }
        if self.disk.size > MAX_DISK || !mib(self.disk.size) {
            return Err(MachineError::Disk(self.disk.size));
        }
        if self.disk.size < self.image.virtual_size {
            return Err(MachineError::TooSmall {
                disk: self.disk.size,
                image: self.image.name.clone(),
                needed: self.image.virtual_size,
            });
        }
        if self.nics.len() > MAX_NICS {
            return Err(MachineError::Nics(self.nics.len()));
        }
        Ok(())
    }
}

/// What a machine finds at its first start, on a disk labelled `CIDATA`: the
/// texts of cloud-init's NoCloud, and for muster's own machines what enrols
/// them, as the file `muster.env` beside them. That is taken out once it has
/// been used.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SeedText {
    /// `vendor-data`: what muster wants of the machine.
    pub vendor_data: String,
    /// `user-data`: what whoever asked for the machine wants of it. There may
    /// be secrets in it.
    #[serde(with = "crate::api::exposed")]
    #[schema(value_type = String)]
    pub user_data: Secret,
    /// `meta-data`.
    pub meta_data: String,
    /// `network-config`, version 2.
    pub network_config: String,
    /// How an agent in the machine enrols itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrol: Option<Enrol>,
}

/// What an agent needs to enrol. In `muster.env` it is two lines that a shell
/// can read: `MUSTER_BROKERS='URL URL'` and `MUSTER_TOKEN='…'`; no value
/// contains a quote.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// Where brokers are, in the order to try.
    pub brokers: Vec<String>,
    /// For `muster-agent enroll --token`.
    #[serde(with = "crate::api::exposed")]
    #[schema(value_type = String)]
    pub token: Secret,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_written_as_it_was() {
        for text in ["1B", "512MiB", "2GiB", "10GiB", "3TiB", "1023KiB"] {
            assert_eq!(text.parse::<Size>().map(|s| s.to_string()), Ok(text.into()));
        }
        assert_eq!(Size(0).to_string(), "0B");
        assert_eq!(Size(1025 << 10).to_string(), "1.0MiB");
        assert_eq!(Size((1 << 30) + (1 << 29)).to_string(), "1.5GiB");
        for bad in [
            "",
            "2",
            "2GB",
            "GiB",
            "-1GiB",
            "1.5GiB",
            "99999999999TiB",
            "2 GiB",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!(
            serde_json::to_string(&Size(1 << 20)).ok(),
            Some("1048576".into())
        );
    }
}
