//! What is known of networks and addresses, in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use muster_protocol::api::NetworkView;
use muster_protocol::names::{LanName, VmName};
use muster_protocol::vm::VmId;

use super::error::ReserveError;
use super::pool::{Family, Plan, number};
use super::runs::Taken;
use super::stored::{StoredAddress, StoredNetwork};

/// A network with the revision to name when it is replaced.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) stored: StoredNetwork,
    pub(super) revision: u64,
    pub(super) plan: Plan,
}

impl Held {
    pub(super) fn new(stored: StoredNetwork, revision: u64, plan: Plan) -> Self {
        Self {
            stored,
            revision,
            plan,
        }
    }
}

/// Who has an address.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    value: StoredAddress,
    /// Whether the store is known to say so.
    sure: bool,
}

impl Claim {
    pub(super) fn sure(value: StoredAddress) -> Self {
        Self { value, sure: true }
    }

    pub(super) fn unsure(value: StoredAddress) -> Self {
        Self { value, sure: false }
    }
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Index {
    networks: BTreeMap<LanName, Held>,
    /// Of each network, what cannot be given now.
    taken: BTreeMap<LanName, [Taken; 2]>,
    /// Also of networks that are not there: nothing that is in use is
    /// forgotten.
    used: BTreeMap<LanName, BTreeMap<IpAddr, Claim>>,
    of: HashMap<VmId, BTreeSet<(LanName, IpAddr)>>,
}

impl Index {
    pub(super) fn networks(&self) -> impl Iterator<Item = (&LanName, &Held)> {
        self.networks.iter()
    }

    pub(super) fn network(&self, lan: &LanName) -> Option<&Held> {
        self.networks.get(lan)
    }

    pub(super) fn put(&mut self, lan: LanName, held: Held) {
        let used = self.used.get(&lan).into_iter().flatten();
        let taken = held.plan.taken(used.map(|(address, _)| *address));
        self.taken.insert(lan.clone(), taken);
        self.networks.insert(lan, held);
    }

    pub(super) fn remove(&mut self, lan: &LanName) {
        self.networks.remove(lan);
        self.taken.remove(lan);
    }

    /// An address is somebody's.
    pub(super) fn claim(&mut self, lan: &LanName, address: IpAddr, claim: Claim) {
        self.free(lan, address);
        let owner = claim.value.machine;
        let theirs = self.of.entry(owner).or_default();
        theirs.insert((lan.clone(), address));
        let used = self.used.entry(lan.clone()).or_default();
        used.insert(address, claim);
        if let Some(taken) = self.taken.get_mut(lan) {
            taken[Family::of(address) as usize].insert(number(address));
        }
    }

    /// An address is nobody's.
    pub(super) fn free(&mut self, lan: &LanName, address: IpAddr) {
        let Some(used) = self.used.get_mut(lan) else {
            return;
        };
        let Some(claim) = used.remove(&address) else {
            return;
        };
        if used.is_empty() {
            self.used.remove(lan);
        }
        let owner = claim.value.machine;
        if let Some(theirs) = self.of.get_mut(&owner) {
            theirs.remove(&(lan.clone(), address));
            if theirs.is_empty() {
                self.of.remove(&owner);
            }
        }
        if let (Some(taken), Some(held)) = (self.taken.get_mut(lan), self.networks.get(lan))
            && !held.plan.is_never(address)
        {
            taken[Family::of(address) as usize].remove(number(address));
        }
    }

    pub(super) fn is_claimed(&self, lan: &LanName, address: IpAddr) -> bool {
        self.used
            .get(lan)
            .is_some_and(|used| used.contains_key(&address))
    }

    /// The lowest address that is free, which is claimed then.
    pub(super) fn propose(
        &mut self,
        lan: &LanName,
        family: Family,
        claim: Claim,
    ) -> Option<IpAddr> {
        let held = self.networks.get(lan)?;
        let address = held.plan.propose(family, self.taken.get(lan)?)?;
        self.claim(lan, address, claim);
        Some(address)
    }

    /// The addresses of a family that a machine has in a network, and whether
    /// the store is known to say so; those first.
    pub(super) fn of_family(
        &self,
        machine: VmId,
        lan: &LanName,
        family: Family,
    ) -> Vec<(IpAddr, bool)> {
        let theirs = self.of.get(&machine).into_iter().flatten();
        let mut all: Vec<(IpAddr, bool)> = theirs
            .filter(|(theirs, address)| theirs == lan && Family::of(*address) == family)
            .filter_map(|(_, address)| {
                let claim = self.used.get(lan)?.get(address)?;
                Some((*address, claim.sure))
            })
            .collect();
        all.sort_by_key(|(address, sure)| (!sure, *address));
        all
    }

    pub(super) fn of(&self, machine: VmId) -> Vec<(LanName, IpAddr)> {
        self.of
            .get(&machine)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    pub(super) fn machines(&self) -> Vec<VmId> {
        let mut all: Vec<VmId> = self.of.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// Who has which address, sorted.
    pub(super) fn used(&self, lan: &LanName) -> Vec<(IpAddr, VmName)> {
        let used = self.used.get(lan).into_iter().flatten();
        used.map(|(address, claim)| (*address, claim.value.name.clone()))
            .collect()
    }

    pub(super) fn exhausted(&self, lan: &LanName, family: Family) -> ReserveError {
        let Some(held) = self.networks.get(lan) else {
            return ReserveError::None(lan.clone());
        };
        let used = self.used.get(lan).into_iter().flatten();
        ReserveError::Exhausted {
            lan: lan.clone(),
            family,
            pools: held.plan.shown(family),
            used: used
                .filter(|(address, _)| Family::of(**address) == family)
                .count(),
        }
    }

    pub(super) fn view(&self, lan: &LanName, held: &Held) -> NetworkView {
        let mut view = held.stored.view(lan);
        let many = |n: u128| u32::try_from(n).unwrap_or(u32::MAX);
        let free = self.taken.get(lan).and_then(|taken| {
            let families = held.plan.families();
            families.map(|family| held.plan.free(family, taken)).min()
        });
        view.free = many(free.unwrap_or_default());
        let used = self.used.get(lan).map_or(0, BTreeMap::len);
        view.used = u32::try_from(used).unwrap_or(u32::MAX);
        view
    }
}
