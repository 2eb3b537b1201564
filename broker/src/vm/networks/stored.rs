//! Networks and addresses as they are kept: pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use muster_protocol::api::{NetworkView, PutNetwork};
use muster_protocol::names::{LanName, PrincipalName, VmName};
use muster_protocol::units::Timestamp;
use muster_protocol::vm::VmId;
use serde::{Deserialize, Serialize};

use super::pool::{Plan, PlanError};

/// A value of `muster_networks`; the key is the network's name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredNetwork {
    /// What was asked for; pools in canonical form.
    pub(super) put: PutNetwork,
    /// Who made it.
    pub(super) by: PrincipalName,
    /// When.
    pub(super) made: Timestamp,
}

/// A value of `muster_addresses`: the address is this machine's. The key is
/// the network's name and the address.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredAddress {
    /// Whose it is.
    pub(super) machine: VmId,
    /// What that is called.
    pub(super) name: VmName,
    /// Since when.
    pub(super) reserved_at: Timestamp,
}

impl StoredNetwork {
    /// The same with its pools in one form, without `replace`.
    pub(super) fn new(
        mut put: PutNetwork,
        by: PrincipalName,
        made: Timestamp,
    ) -> Result<(Self, Plan), PlanError> {
        let plan = Plan::read(&put)?;
        put.pools = plan.pools().iter().map(ToString::to_string).collect();
        put.replace = false;
        Ok((Self { put, by, made }, plan))
    }

    /// As it is shown.
    pub(super) fn view(&self, name: &LanName) -> NetworkView {
        let put = self.put.clone();
        NetworkView {
            name: name.clone(),
            bridge: put.bridge,
            pools: put.pools,
            gateways: put.gateways,
            dns: put.dns,
            reserved: put.reserved,
            mtu: put.mtu,
            labels: put.labels,
            used: 0,
            free: 0,
            addresses: Vec::new(),
            by: self.by.clone(),
            made: self.made,
        }
    }
}

/// The key of an address: all of one network are together, and of the same
/// length for one family.
pub(super) fn key(lan: &LanName, address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{lan}.{:08x}", u32::from(address)),
        IpAddr::V6(address) => format!("{lan}.{:032x}", u128::from(address)),
    }
}

/// The inverse of [`key`]; `None` for what it never makes.
pub(super) fn of_key(text: &str) -> Option<(LanName, IpAddr)> {
    let (lan, digits) = text.rsplit_once('.')?;
    let lan: LanName = lan.parse().ok()?;
    let address: IpAddr = match digits.len() {
        8 => Ipv4Addr::from(u32::from_str_radix(digits, 16).ok()?).into(),
        32 => Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?).into(),
        _ => return None,
    };
    (key(&lan, address) == text).then_some((lan, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_address_comes_back_of_its_key(v4: u32, v6: u128, text in "\\PC{0,40}") {
            let lan: LanName = "web.gva2".parse().unwrap();
            for address in [IpAddr::V4(v4.into()), IpAddr::V6(v6.into())] {
                prop_assert_eq!(of_key(&key(&lan, address)), Some((lan.clone(), address)));
            }
            if let Some((lan, address)) = of_key(&text) {
                prop_assert_eq!(key(&lan, address), text);
            }
        }
    }

    #[test]
    fn what_is_no_key_is_none() {
        for text in [
            "",
            "a",
            "a.",
            "a.c000020",
            "a.+c000201",
            "A.c0000201",
            ".c0000201",
            "a.C0000201",
        ] {
            assert_eq!(of_key(text), None, "{text}");
        }
    }
}
