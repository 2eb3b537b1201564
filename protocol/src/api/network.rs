//! Networks and their addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::names::{BridgeName, LabelKey, LabelValue, LanName, PrincipalName, VmName};
use crate::units::Timestamp;

/// Makes a network, or changes it. Addresses that are in use stay in use: a
/// pool without them is refused.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutNetwork {
    /// The bridge that it is on each hypervisor.
    pub bridge: BridgeName,
    /// Pools of addresses, IPv4 and IPv6: a prefix (`192.0.2.0/24`: all of it
    /// but network, broadcast and gateway) or a range
    /// (`192.0.2.10-192.0.2.99`, with its prefix: `192.0.2.10-192.0.2.99/24`).
    /// An interface gets one address of each family that has a pool.
    pub pools: Vec<String>,
    /// Gateways, at most one of each family.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub gateways: Vec<IpAddr>,
    /// Name servers for its machines.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<IpAddr>,
    /// Addresses that are never given.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub reserved: Vec<IpAddr>,
    /// The largest packet, if it is not 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Its labels; `stack` says which stack it is of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Take the place of the network of that name, if there is one.
    #[serde(default)]
    pub replace: bool,
}

/// A network.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct NetworkView {
    /// Its name.
    pub name: LanName,
    /// The bridge that it is on each hypervisor.
    pub bridge: BridgeName,
    /// Pools of addresses.
    pub pools: Vec<String>,
    /// Gateways.
    #[schema(value_type = Vec<String>)]
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<IpAddr>,
    /// Addresses that are never given.
    #[schema(value_type = Vec<String>)]
    pub reserved: Vec<IpAddr>,
    /// The largest packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Addresses that are in use.
    pub used: u32,
    /// Addresses that are free, of the family that has fewer; 2^32 - 1 when
    /// there are more.
    pub free: u32,
    /// Which machine has which address, sorted; only where one network is
    /// asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<(String, VmName)>)]
    pub addresses: Vec<(IpAddr, VmName)>,
    /// Who made it.
    pub by: PrincipalName,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub made: Timestamp,
}
