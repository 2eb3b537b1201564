//! Networks, and who has which address.
//!
//! An address is a key of a bucket, and it is taken by making that key:
//! whoever comes second finds it there. What is in memory only proposes which
//! one to try, so that two brokers that both believe to be the active one
//! never give the same address, and neither does a broker that was killed.

mod error;
mod index;
pub mod pool;
mod runs;
mod stored;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use muster_protocol::api::{NetworkView, PutNetwork};
use muster_protocol::names::{BridgeName, LanName, VmName};
use muster_protocol::units::Timestamp;
use muster_protocol::vm::VmId;
use tokio::sync::{Mutex, RwLock};

pub use self::error::{NetworksError, ReserveError};
use self::index::{Claim, Held, Index};
use self::pool::{Family, Plan};
pub use self::stored::{StoredAddress, StoredNetwork};
use self::stored::{key, of_key};
use crate::authz::Authorized;
use crate::events::Events;
use crate::inventory::MAX_LABELS;
use crate::lease::Lease;
use crate::store::kv::{Kv, KvError};

/// Most networks.
pub const MAX_NETWORKS: usize = 1_000;
/// So often something that changes meanwhile is looked at again.
const TIMES: usize = 10;
/// Requests for different machines wait for each other as rarely as this
/// makes it.
const STRIPES: usize = 64;

/// What a machine has in a network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reserved {
    /// The bridge on the hypervisor.
    pub bridge: BridgeName,
    /// Its addresses: one of each family that the network has pools of.
    pub addresses: Vec<IpAddr>,
    /// Bits of the subnet of each address, in the same order.
    pub prefixes: Vec<u8>,
    /// The ways out.
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// The largest packet, if it is not 1500.
    pub mtu: Option<u16>,
}

/// All networks and their addresses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Networks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    networks: Kv<StoredNetwork>,
    addresses: Kv<StoredAddress>,
    lease: Lease,
    events: Events,
    index: StdMutex<Index>,
    /// Held to write by whoever changes a network, to read by whoever takes
    /// an address of one: no pool goes away under an address.
    changing: RwLock<()>,
    /// One request for a machine at a time: it never has two of a kind.
    machines: Vec<Mutex<()>>,
}

impl Networks {
    /// Reads what there is.
    ///
    /// # Errors
    /// [`NetworksError::Store`].
    pub async fn load(
        networks: Kv<StoredNetwork>,
        addresses: Kv<StoredAddress>,
        lease: Lease,
        events: Events,
    ) -> Result<Self, NetworksError> {
        let mut index = Index::default();
        for entry in networks.list().await?.entries {
            let Ok(name) = entry.key.parse::<LanName>() else {
                tracing::warn!(key = entry.key, "a network that muster never makes");
                continue;
            };
            match Plan::read(&entry.value.put) {
                Ok(plan) => index.put(name, Held::new(entry.value, entry.revision, plan)),
                Err(error) => {
                    tracing::error!(network = %name, %error, "a network that muster never makes")
                }
            }
        }
        for entry in addresses.list().await?.entries {
            match of_key(&entry.key) {
                Some((lan, address)) => index.claim(&lan, address, Claim::sure(entry.value)),
                None => tracing::warn!(key = entry.key, "an address that muster never gives"),
            }
        }
        Ok(Self(Arc::new(Inner {
            networks,
            addresses,
            lease,
            events,
            index: StdMutex::new(index),
            changing: RwLock::new(()),
            machines: (0..STRIPES).map(|_| Mutex::new(())).collect(),
        })))
    }

    /// All of them, by name, without who has which address.
    #[must_use]
    pub fn list(&self) -> Vec<NetworkView> {
        let index = self.index();
        index
            .networks()
            .map(|(name, held)| index.view(name, held))
            .collect()
    }

    /// Whether there is such a network.
    #[must_use]
    pub fn has(&self, lan: &LanName) -> bool {
        self.index().network(lan).is_some()
    }

    /// One of them, with who has which address.
    ///
    /// # Errors
    /// [`NetworksError::None`].
    pub fn get(&self, lan: &LanName) -> Result<NetworkView, NetworksError> {
        let index = self.index();
        let held = index.network(lan).ok_or_else(|| none(lan))?;
        let mut view = index.view(lan, held);
        view.addresses = index.used(lan);
        Ok(view)
    }

    /// Makes a network, or changes it.
    ///
    /// # Errors
    /// [`NetworksError`]; nothing was changed.
    pub async fn put(
        &self,
        put: Authorized<(LanName, PutNetwork)>,
    ) -> Result<NetworkView, NetworksError> {
        let by = put.principal().clone();
        let (lan, put) = put.into_inner();
        let replace = put.replace;
        if put.labels.len() > MAX_LABELS {
            return Err(NetworksError::Labels(put.labels.len()));
        }
        let (stored, plan) = StoredNetwork::new(put, by, Timestamp::now())?;
        let _one = self.0.changing.write().await;
        self.active()?;
        let old = self.index().network(&lan).cloned();
        match &old {
            Some(_) if !replace => return Err(NetworksError::Exists(lan)),
            // Whoever says again what is so changes nothing.
            Some(old) if old.stored.put == stored.put => return self.get(&lan),
            None if self.index().networks().count() >= MAX_NETWORKS => {
                return Err(NetworksError::TooMany);
            }
            _ => {}
        }
        self.fits(&lan, &stored, &plan)?;
        let bucket = &self.0.networks;
        let written = match &old {
            Some(old) => bucket.update(lan.as_str(), &stored, old.revision).await,
            None => bucket.create(lan.as_str(), &stored).await,
        };
        let revision = match written {
            Ok(revision) => revision,
            Err(error) => {
                self.look_again(&lan).await;
                return Err(error.into());
            }
        };
        let text = format!(
            "{} {} network {lan}: {} on {}",
            stored.by,
            if old.is_some() { "changed" } else { "made" },
            stored.put.pools.join(", "),
            stored.put.bridge,
        );
        self.index()
            .put(lan.clone(), Held::new(stored, revision, plan));
        let events = &self.0.events;
        events.emit("network.changed", lan.as_str(), text).await;
        self.get(&lan)
    }

    /// Whether it can be beside the others, and keeps who is in it.
    fn fits(&self, lan: &LanName, new: &StoredNetwork, plan: &Plan) -> Result<(), NetworksError> {
        let index = self.index();
        let bridge = &new.put.bridge;
        let others = index
            .networks()
            .filter(|(name, held)| *name != lan && held.stored.put.bridge == *bridge);
        for (other, held) in others {
            if let Some((pool, theirs)) = plan.overlap(&held.plan) {
                return Err(NetworksError::Overlap {
                    pool: pool.to_string(),
                    theirs: theirs.to_string(),
                    other: other.clone(),
                    bridge: bridge.clone(),
                });
            }
        }
        let mut used = index.used(lan);
        used.retain(|(address, _)| !plan.contains(*address));
        if used.is_empty() {
            return Ok(());
        }
        let lan = lan.clone();
        Err(NetworksError::Loses { lan, used })
    }

    /// Removes a network that nobody is in.
    ///
    /// # Errors
    /// [`NetworksError`].
    pub async fn remove(&self, lan: Authorized<LanName>) -> Result<(), NetworksError> {
        let by = lan.principal().clone();
        let lan = lan.into_inner();
        let _one = self.0.changing.write().await;
        self.active()?;
        let (held, used) = {
            let index = self.index();
            (index.network(&lan).cloned(), index.used(&lan))
        };
        let held = held.ok_or_else(|| none(&lan))?;
        if !used.is_empty() {
            return Err(NetworksError::Used { lan, used });
        }
        if let Err(error) = self.0.networks.delete(lan.as_str(), held.revision).await {
            self.look_again(&lan).await;
            if self.index().network(&lan).is_some() {
                return Err(error.into());
            }
        }
        self.index().remove(&lan);
        let text = format!("{by} removed network {lan}");
        let events = &self.0.events;
        events.emit("network.removed", lan.as_str(), text).await;
        Ok(())
    }

    async fn look_again(&self, lan: &LanName) {
        match self.0.networks.get(lan.as_str()).await {
            Ok(Some(entry)) => match Plan::read(&entry.value.put) {
                Ok(plan) => {
                    let held = Held::new(entry.value, entry.revision, plan);
                    self.index().put(lan.clone(), held);
                }
                Err(error) => {
                    tracing::error!(network = %lan, %error, "a network that muster never makes")
                }
            },
            Ok(None) => self.index().remove(lan),
            Err(error) => tracing::warn!(network = %lan, %error, "a network cannot be read"),
        }
    }

    /// Addresses for a machine: one of each family that the network has pools
    /// of. Asked again for the same machine, the same ones.
    ///
    /// # Errors
    /// [`ReserveError`]; then nothing is reserved that was not before. Where
    /// that cannot be had because NATS is away, [`Networks::release`] of the
    /// machine finds it.
    pub async fn reserve(
        &self,
        lan: &LanName,
        machine: VmId,
        name: &VmName,
    ) -> Result<Reserved, ReserveError> {
        let _pools = self.0.changing.read().await;
        let _one = self.machine(machine).lock().await;
        self.active_to_reserve()?;
        let held = self.index().network(lan).cloned();
        let held = held.ok_or_else(|| ReserveError::None(lan.clone()))?;
        let mut new = Vec::new();
        let mut addresses = Vec::new();
        for family in held.plan.families() {
            match self.one(lan, family, machine, name, &mut new).await {
                Ok(address) => addresses.push(address),
                Err(error) => {
                    for address in new {
                        if let Err(error) = self.give_back(lan, address, machine).await {
                            tracing::warn!(network = %lan, %address, %error, "an address is not given back yet");
                        }
                    }
                    return Err(error);
                }
            }
        }
        let put = held.stored.put;
        Ok(Reserved {
            bridge: put.bridge,
            prefixes: addresses.iter().map(|a| held.plan.prefix_len(*a)).collect(),
            addresses,
            gateways: put.gateways,
            dns: put.dns,
            mtu: put.mtu,
        })
    }

    /// One address of a family: the one that the machine has, or a new one,
    /// which is then in `new`.
    async fn one(
        &self,
        lan: &LanName,
        family: Family,
        machine: VmId,
        name: &VmName,
        new: &mut Vec<IpAddr>,
    ) -> Result<IpAddr, ReserveError> {
        let theirs = self.index().of_family(machine, lan, family);
        for (address, sure) in theirs {
            if sure || self.is_held(lan, address, machine).await? {
                return Ok(address);
            }
        }
        let mut gone = 0;
        loop {
            let value = StoredAddress {
                machine,
                name: name.clone(),
                reserved_at: Timestamp::now(),
            };
            let claim = Claim::unsure(value.clone());
            let Some(address) = self.index().propose(lan, family, claim) else {
                return Err(self.index().exhausted(lan, family));
            };
            new.push(address);
            self.active_to_reserve()?;
            match self.0.addresses.create(&key(lan, address), &value).await {
                Ok(_) => {
                    self.index().claim(lan, address, Claim::sure(value));
                    return Ok(address);
                }
                // Somebody else was first: it is known now that it is theirs.
                Err(KvError::Conflict { .. }) if gone < TIMES => {
                    if self.is_held(lan, address, machine).await? {
                        return Ok(address);
                    }
                    new.pop();
                    gone += usize::from(!self.index().is_claimed(lan, address));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the store says that the address is this machine's; whatever it
    /// says is known afterwards.
    async fn is_held(
        &self,
        lan: &LanName,
        address: IpAddr,
        machine: VmId,
    ) -> Result<bool, KvError> {
        let entry = self.0.addresses.get(&key(lan, address)).await?;
        let mut index = self.index();
        match entry {
            Some(entry) => {
                let ours = entry.value.machine == machine;
                index.claim(lan, address, Claim::sure(entry.value));
                Ok(ours)
            }
            None => {
                index.free(lan, address);
                Ok(false)
            }
        }
    }

    /// Gives back all addresses of a machine, in all networks, and says which.
    /// Once more does no harm.
    ///
    /// # Errors
    /// [`ReserveError`]; what is left is given back when it is asked again.
    pub async fn release(&self, machine: VmId) -> Result<Vec<(LanName, IpAddr)>, ReserveError> {
        let _pools = self.0.changing.read().await;
        let _one = self.machine(machine).lock().await;
        let all = self.of(machine);
        for (lan, address) in &all {
            self.active_to_reserve()?;
            self.give_back(lan, *address, machine).await?;
        }
        Ok(all)
    }

    async fn give_back(
        &self,
        lan: &LanName,
        address: IpAddr,
        machine: VmId,
    ) -> Result<(), KvError> {
        let (bucket, key) = (&self.0.addresses, key(lan, address));
        let mut times = 0;
        while let Some(entry) = bucket.get(&key).await? {
            if entry.value.machine != machine {
                let claim = Claim::sure(entry.value);
                self.index().claim(lan, address, claim);
                return Ok(());
            }
            times += 1;
            match bucket.delete(&key, entry.revision).await {
                Ok(_) => break,
                Err(KvError::Conflict { .. }) if times < TIMES => {}
                Err(error) => return Err(error),
            }
        }
        self.index().free(lan, address);
        Ok(())
    }

    /// The addresses of a machine, by network.
    #[must_use]
    pub fn of(&self, machine: VmId) -> Vec<(LanName, IpAddr)> {
        self.index().of(machine)
    }

    /// The machines that have addresses: whoever knows which machines there
    /// are finds those that have them for nothing.
    #[must_use]
    pub fn machines(&self) -> Vec<VmId> {
        self.index().machines()
    }

    fn machine(&self, machine: VmId) -> &Mutex<()> {
        let [first, ..] = *machine.as_bytes();
        &self.0.machines[usize::from(first) % STRIPES]
    }

    fn active(&self) -> Result<u64, NetworksError> {
        self.0.lease.epoch().ok_or(NetworksError::NotActive)
    }

    fn active_to_reserve(&self) -> Result<u64, ReserveError> {
        self.0.lease.epoch().ok_or(ReserveError::NotActive)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn none(lan: &LanName) -> NetworksError {
    NetworksError::None(lan.clone())
}
