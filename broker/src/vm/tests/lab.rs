//! Hypervisors, addresses, runs and invites in memory; the records on a real
//! server.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use muster_protocol::api::{
    Configure, CreateVms, InviteToken, Presence, Role, RunRequest, VmAction, VmChanged, VmsCreated,
};
use muster_protocol::envelope::Door;
use muster_protocol::ids::{ClusterId, RunId, Serial};
use muster_protocol::keys::PrivateKey;
use muster_protocol::names::{ImageName, LanName, PrincipalName, VmName};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::run::RunPhase;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{
    Capacity, Guest, GuestState, HypervisorReport, ImageFormat, ImageRef, Owner, Sha256, Size,
    Virtualisation, VmId,
};
use muster_protocol::wire::{AgentInfo, Assignment};
use tokio::sync::{Notify, watch};

use crate::authz::{Action, Authorized, Caller, FixedRoles, Origin, authorize};
use crate::config::VmConfig;
use crate::events::Events;
use crate::groups::{Desk, Groups};
use crate::inventory::{Inventory, NodeControl, NodeRecord, PresenceView, Standing};
use crate::lease::Lease;
use crate::nats::testing::TestServer;
use crate::store::kv::{BucketConfig, ensure_bucket};
use crate::submit::{Asked, Refused};
use crate::vm::cordons::Cordons;
use crate::vm::keep::Records;
use crate::vm::observed::Observed;
use crate::vm::ports::{
    Addresses, Before, Begun, Doorman, ForMachine, Look, Pictures, Reserves, WHICH, Works,
};
use crate::vm::records::{Life, StoredVm};
use crate::vm::tenants::Tenants;
use crate::vm::{Act, Destroy, Machines, Parts, VmError};

pub(super) const GIB: u64 = 1 << 30;

pub(super) fn cluster() -> ClusterId {
    ClusterId::from_bytes([7; 16])
}

pub(super) fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

pub(super) fn ana() -> Caller {
    Caller {
        principal: "ana".parse().unwrap(),
        role: Role::Operator,
        token: "t".into(),
        door: Door::Cli,
        origin: Origin::Unknown,
    }
}

pub(super) fn may<T: 'static>(subject: T) -> Authorized<T> {
    authorize(&FixedRoles, &ana(), Action::ManageMachines, subject).unwrap()
}

/// As a call of a run asks for it.
pub(super) fn run_may<T: 'static>(run: RunId, subject: T) -> Authorized<T> {
    let caller = Caller {
        origin: Origin::Run {
            run,
            asked: Timestamp::UNIX_EPOCH,
            whence: Box::new(Origin::Unknown),
        },
        ..ana()
    };
    authorize(&FixedRoles, &caller, Action::ManageMachines, subject).unwrap()
}

pub(super) fn image() -> ImageRef {
    ImageRef {
        name: "debian-12".parse().unwrap(),
        sha256: Sha256::of(b"debian"),
        size: Size(GIB / 2),
        format: ImageFormat::Qcow2,
        virtual_size: Size(2 * GIB),
    }
}

/// A node with that role, and labels like `zone=gva2`.
pub(super) fn node(serial: u32, name: &str, labels: &[(&str, &str)]) -> NodeRecord {
    NodeRecord {
        serial: Serial(serial),
        node_key: PrivateKey::from_seed(&[u8::try_from(serial).unwrap(); 32]).public(),
        nats_key: format!("U{serial}"),
        assignment: Assignment {
            revision: 1,
            name: name.parse().unwrap(),
            roles: vec!["hypervisor".parse().unwrap()],
            labels: labels
                .iter()
                .map(|(key, value)| (key.parse().unwrap(), value.parse().unwrap()))
                .collect(),
        },
        infrastructure: false,
        enrolled: Timestamp::UNIX_EPOCH,
        jwt_iat: 0,
        standing: Standing::Active,
        facts: Arc::default(),
        notes: Vec::new(),
        last_seen: None,
    }
}

pub(super) fn report(guests: Vec<Guest>) -> HypervisorReport {
    HypervisorReport {
        sequence: 1,
        at: Timestamp::UNIX_EPOCH,
        virtualisation: Some(Virtualisation::Memory),
        capacity: Some(Capacity {
            cpus: 8,
            memory: Size(16 * GIB),
            disk: Size(100 * GIB),
            disk_free: Size(90 * GIB),
        }),
        pool: "default".parse().unwrap(),
        guests,
        images: vec![Sha256::of(b"debian")],
        problem: None,
    }
}

pub(super) fn guest(vm: &StoredVm) -> Guest {
    Guest {
        id: vm.id,
        name: vm.name.to_string(),
        state: GuestState::Running,
        cpus: vm.wish.cpus,
        memory: vm.wish.memory,
        owner: Owner::Muster { cluster: cluster() },
        since: None,
        traffic: None,
    }
}

pub(super) fn wish(name: &str) -> CreateVms {
    serde_json::from_value(serde_json::json!({
        "name": name, "image": "debian-12", "cpus": 2, "memory": 2 * GIB,
        "networks": ["public"], "roles": ["web"],
    }))
    .unwrap()
}

/// The so-many-th call of any port never returns: whoever waits for it is
/// dropped, as a broker that is killed right there.
#[derive(Debug, Default)]
pub(super) struct Trap {
    at: AtomicUsize,
    calls: AtomicUsize,
    sprung: AtomicBool,
    pub(super) reached: Notify,
}

impl Trap {
    /// Springs at the `at`-th call from now; never for 0.
    pub(super) fn set(&self, at: usize) {
        self.calls.store(0, Ordering::SeqCst);
        self.sprung.store(false, Ordering::SeqCst);
        self.at.store(at, Ordering::SeqCst);
    }

    async fn step(&self) {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if call == self.at.load(Ordering::SeqCst) {
            self.sprung.store(true, Ordering::SeqCst);
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// Everything outside: it outlives brokers.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) trap: Trap,
    /// Addresses by machine.
    pub(super) addresses: Mutex<BTreeMap<VmId, BTreeSet<String>>>,
    /// Most addresses that there are; 0 for any number.
    pub(super) pool: AtomicUsize,
    /// Runs that were asked for, in order.
    pub(super) runs: Mutex<Vec<(RunId, RunRequest, Look)>>,
    /// A run that was cut while it was written down.
    pub(super) cut: Mutex<Option<RunId>>,
    /// How often somebody asked for a run, and was refused.
    pub(super) refused: AtomicUsize,
    /// When something has ended for which nothing was run.
    pub(super) eased: watch::Sender<()>,
    /// Why nothing is run now.
    pub(super) refuses: Mutex<Option<Kind>>,
    /// Invites that work, with whom they have let in.
    pub(super) invites: Mutex<HashMap<String, (ForMachine, Option<Serial>)>>,
    /// Nodes that took the place of others.
    pub(super) successors: Mutex<HashMap<Serial, Serial>>,
    /// Nodes that were removed.
    pub(super) removed: Mutex<Vec<Serial>>,
    /// Hypervisors that are not connected.
    pub(super) down: Mutex<HashSet<Serial>>,
}

impl World {
    /// A freeze does not stop what takes back what a run did.
    fn refuses_now(&self, takes_back: bool) -> Option<Kind> {
        let kind = *self.refuses.lock().unwrap();
        kind.filter(|kind| *kind != Kind::Frozen || !takes_back)
    }

    /// Ends the newest run of that scenario.
    pub(super) fn end(&self, run: RunId, phase: RunPhase, why: &str) {
        let mut runs = self.runs.lock().unwrap();
        let found = runs.iter_mut().find(|(id, ..)| *id == run).unwrap();
        found.2 = Look::Ended {
            phase,
            why: why.to_owned(),
            at: Timestamp::now(),
        };
    }

    /// The scenarios of all runs that were asked for.
    pub(super) fn asked(&self) -> Vec<String> {
        let runs = self.runs.lock().unwrap();
        runs.iter()
            .map(|(_, request, _)| request.scenario.to_string())
            .collect()
    }

    /// Ends all that are open.
    pub(super) fn end_all(&self, phase: RunPhase) {
        for (_, _, look) in self.runs.lock().unwrap().iter_mut() {
            if *look == Look::Open {
                *look = Look::Ended {
                    phase,
                    why: String::new(),
                    at: Timestamp::now(),
                };
            }
        }
    }

    /// Whether nothing of any machine is reserved.
    pub(super) fn is_clean(&self) -> bool {
        let free = self.addresses.lock().unwrap().is_empty();
        let invites = self.invites.lock().unwrap();
        free && invites.values().all(|(_, used)| used.is_some())
    }
}

impl Reserves for World {
    fn knows(&self, lan: &LanName) -> bool {
        lan.as_str() != "nowhere"
    }

    fn reserve<'a>(
        &'a self,
        lan: &'a LanName,
        machine: VmId,
        _name: &'a VmName,
    ) -> BoxFuture<'a, Result<Addresses, Refused>> {
        Box::pin(async move {
            self.trap.step().await;
            let mut all = self.addresses.lock().unwrap();
            let used: usize = all.values().map(BTreeSet::len).sum();
            let pool = self.pool.load(Ordering::SeqCst);
            let own = all
                .get(&machine)
                .is_some_and(|lans| lans.contains(lan.as_str()));
            if !own && pool > 0 && used >= pool {
                let none = Problem::new(Kind::Conflict, format!("the pool of {lan} is exhausted"));
                return Err(Box::new(none));
            }
            all.entry(machine).or_default().insert(lan.to_string());
            // Its last byte tells machines apart; that they differ is the
            // networks' own business.
            let last = machine.as_bytes()[0];
            Ok(Addresses {
                bridge: "br0".parse().unwrap(),
                addresses: vec![
                    ([192, 0, 2, last].into(), 24),
                    (format!("2001:db8::{last:x}").parse().unwrap(), 64),
                ],
                gateways: vec![[192, 0, 2, 1].into(), "2001:db8::1".parse().unwrap()],
                dns: vec![[192, 0, 2, 53].into()],
                mtu: None,
            })
        })
    }

    fn release(&self, machine: VmId) -> BoxFuture<'_, Result<(), Refused>> {
        Box::pin(async move {
            self.trap.step().await;
            self.addresses.lock().unwrap().remove(&machine);
            Ok(())
        })
    }

    fn holders(&self) -> Vec<VmId> {
        self.addresses.lock().unwrap().keys().copied().collect()
    }
}

impl Pictures for World {
    fn get(&self, name: &ImageName) -> Option<ImageRef> {
        (name.as_str() == "debian-12").then(image)
    }
}

impl Works for World {
    fn submit<'a>(
        &'a self,
        _caller: &'a Caller,
        request: RunRequest,
        asked: Asked,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            self.trap.step().await;
            let run = asked.id;
            if let Some(kind) = self.refuses_now(asked.takes_back) {
                self.refused.fetch_add(1, Ordering::SeqCst);
                return Err(Box::new(Problem::new(kind, "nothing is run now")));
            }
            let mut runs = self.runs.lock().unwrap();
            match runs.iter().find(|(id, ..)| *id == run) {
                Some((_, old, _)) => assert_eq!(old, &request, "one id, one request"),
                None => runs.push((run, request, Look::Open)),
            }
            Ok(())
        })
    }

    fn stopped(&self, takes_back: bool) -> Option<Refused> {
        let kind = self.refuses_now(takes_back);
        let kind = kind.filter(|kind| *kind == Kind::Frozen)?;
        Some(Box::new(Problem::new(kind, "the fleet is frozen")))
    }

    fn begun(&self, run: RunId) -> BoxFuture<'_, Begun> {
        Box::pin(async move {
            let runs = self.runs.lock().unwrap();
            let cut = Some(run) == *self.cut.lock().unwrap();
            let there = runs.iter().find(|(id, ..)| *id == run);
            match there.map(|(_, _, look)| look) {
                None => Begun::Never,
                Some(Look::Open) if cut => Begun::NotNow,
                Some(_) if cut => Begun::Never,
                Some(_) => Begun::Yes,
            }
        })
    }

    fn before<'a>(&'a self, request: &'a RunRequest, run: RunId) -> BoxFuture<'a, Before> {
        Box::pin(async move {
            let runs = self.runs.lock().unwrap();
            let Some((_, old, _)) = runs.iter().find(|(id, ..)| *id == run) else {
                return Before::Nothing;
            };
            let rest = |request: &RunRequest| {
                let mut params = request.params.clone();
                if let Some(all) = params.as_object_mut() {
                    all.retain(|name, _| !WHICH.contains(&name.as_str()));
                }
                (request.scenario.clone(), params)
            };
            if rest(old) == rest(request) {
                Before::Same
            } else {
                Before::Other
            }
        })
    }

    fn check<'a>(&'a self, configure: &'a Configure) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            if configure.scenario.as_str() == "deploy" {
                return Ok(());
            }
            let title = format!("there is no scenario {}", configure.scenario);
            Err(Box::new(Problem::new(Kind::NotFound, title)))
        })
    }

    fn eased(&self) -> BoxStream<'static, ()> {
        let eased = self.eased.subscribe();
        let next = async |mut eased: watch::Receiver<()>| {
            eased.changed().await.ok()?;
            Some(((), eased))
        };
        stream::unfold(eased, next).boxed()
    }

    fn look(&self, run: RunId) -> BoxFuture<'_, Look> {
        Box::pin(async move {
            self.trap.step().await;
            let runs = self.runs.lock().unwrap();
            let found = runs.iter().find(|(id, ..)| *id == run);
            found.map_or(Look::Nothing, |(_, _, look)| look.clone())
        })
    }
}

impl Doorman for World {
    fn token(&self) -> InviteToken {
        InviteToken::generate(PrivateKey::from_seed(&[9; 32]).public().fingerprint())
    }

    fn invite<'a>(
        &'a self,
        token: &'a InviteToken,
        invite: ForMachine,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            self.trap.step().await;
            let mut invites = self.invites.lock().unwrap();
            invites.insert(token.id.clone(), (invite, None));
            Ok(())
        })
    }

    fn void<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Serial>, Refused>> {
        Box::pin(async move {
            self.trap.step().await;
            let mut invites = self.invites.lock().unwrap();
            let used = invites.get(id).and_then(|(_, used)| *used);
            if used.is_none() {
                invites.remove(id);
            }
            Ok(used)
        })
    }

    fn successor(&self, node: Serial) -> BoxFuture<'_, Result<Option<Serial>, Refused>> {
        Box::pin(async move { Ok(self.successors.lock().unwrap().get(&node).copied()) })
    }

    fn bar<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            self.trap.step().await;
            self.invites.lock().unwrap().remove(id);
            Ok(())
        })
    }

    fn remove<'a>(
        &'a self,
        node: Serial,
        _by: &'a PrincipalName,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            self.trap.step().await;
            self.removed.lock().unwrap().push(node);
            Ok(())
        })
    }

    fn brokers(&self) -> Vec<String> {
        vec!["https://muster.example.org:7878".to_owned()]
    }
}

impl NodeControl for World {
    fn refresh(&self, _node: Serial, _revision: u64) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn push_keys(&self, _list: muster_protocol::keys::SignedText) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn wait_revision(&self, _: Serial, _: u64, _: Duration) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(false))
    }

    fn forget(&self, _node: Serial) {}

    fn presence(&self, node: Serial) -> PresenceView {
        let down = self.down.lock().unwrap().contains(&node);
        PresenceView {
            state: if down { Presence::Down } else { Presence::Up },
            ..PresenceView::never()
        }
    }

    fn presences(&self) -> HashMap<Serial, PresenceView> {
        HashMap::new()
    }
}

/// A broker's machines over one bucket.
pub(super) struct Lab {
    pub(super) server: TestServer,
    pub(super) world: Arc<World>,
    pub(super) inventory: Inventory,
    pub(super) observed: Observed,
    pub(super) keep_for: Duration,
}

impl Lab {
    /// Three hypervisors in two racks.
    pub(super) async fn start() -> Self {
        Self::with(vec![
            node(1, "hv-1", &[("zone", "gva2"), ("rack", "r01")]),
            node(2, "hv-2", &[("zone", "gva2"), ("rack", "r01")]),
            node(3, "hv-3", &[("zone", "gva2"), ("rack", "r02")]),
        ])
        .await
    }

    pub(super) async fn with(nodes: Vec<NodeRecord>) -> Self {
        let serials: Vec<Serial> = nodes.iter().map(|node| node.serial).collect();
        let inventory = Inventory::in_memory(nodes);
        let observed = Observed::default();
        for serial in serials {
            let agent = AgentInfo {
                version: "0.1.0".into(),
                protocol: 1,
                capabilities: vec!["vm".into()],
                build: None,
            };
            inventory.note_agent(serial, agent);
            observed.hear_at(serial, report(Vec::new()), Timestamp::now());
        }
        Self {
            server: TestServer::start().await,
            world: Arc::default(),
            inventory,
            observed,
            keep_for: crate::vm::KEEP_FOR,
        }
    }

    /// As a broker that begins.
    pub(super) async fn open(&self) -> Machines {
        self.open_on("muster_vms").await
    }

    pub(super) async fn open_on(&self, bucket: &str) -> Machines {
        let js = crate::store::context(Box::pin(self.server.broker()).await);
        let lease = Lease::fixed(1);
        let vms = Box::pin(ensure_bucket(&js, BucketConfig::new(bucket))).await;
        let cordons = Box::pin(ensure_bucket(&js, BucketConfig::new("muster_cluster"))).await;
        let floor = Box::pin(ensure_bucket(&js, BucketConfig::new("muster_cluster"))).await;
        let (vms, floor) = (vms.unwrap(), floor.unwrap());
        let records = Records::load(vms, floor, lease.clone(), cluster()).await;
        let keys = Box::pin(ensure_bucket(&js, BucketConfig::new("muster_cluster"))).await;
        let accounts = Box::pin(ensure_bucket(&js, BucketConfig::new("muster_cluster"))).await;
        let (keys, accounts) = (keys.unwrap(), accounts.unwrap());
        let tenants = Tenants::load(keys, accounts, lease.clone()).await;
        let guarded = Box::pin(ensure_bucket(&js, BucketConfig::new("muster_groups"))).await;
        let sets = Box::pin(ensure_bucket(&js, BucketConfig::new("muster_address_sets"))).await;
        let records = records.unwrap();
        let groups = Groups::load(crate::groups::Parts {
            groups: guarded.unwrap(),
            sets: sets.unwrap(),
            records: records.clone(),
            desk: Desk::default(),
            inventory: self.inventory.clone(),
            control: self.world.clone(),
            events: Events::log_only(),
            lease: lease.clone(),
        });
        Machines::new(Parts {
            records,
            groups: Box::pin(groups).await.unwrap(),
            observed: self.observed.clone(),
            cordons: Cordons::load(cordons.unwrap(), lease).await.unwrap(),
            tenants: tenants.unwrap(),
            inventory: self.inventory.clone(),
            control: self.world.clone(),
            reserves: self.world.clone(),
            pictures: self.world.clone(),
            works: self.world.clone(),
            doorman: self.world.clone(),
            events: Events::log_only(),
            settings: VmConfig::default(),
            keep_for: self.keep_for,
        })
    }

    /// All hypervisors report what should be there.
    pub(super) fn report_all(&self, machines: &Machines) {
        let records = machines.parts().records.all();
        for node in self.inventory.snapshot().iter() {
            let here = records.iter().filter(|held| {
                held.vm.place.serial == node.serial && matches!(held.vm.life, Life::Ready { .. })
            });
            let guests = here.map(|held| guest(&held.vm)).collect();
            self.observed
                .hear_at(node.serial, report(guests), Timestamp::now());
        }
    }
}

impl Machines {
    pub(super) async fn make(&self, wish: CreateVms) -> Result<VmsCreated, VmError> {
        self.create(may(wish)).await
    }

    pub(super) async fn end_of(&self, text: &str, purge: bool) -> Result<VmChanged, VmError> {
        let name = name(text);
        self.destroy(may(Destroy::named(name, purge))).await
    }

    pub(super) async fn does(&self, text: &str, what: VmAction) -> Result<VmChanged, VmError> {
        let name = name(text);
        self.does_under(&name, what, None).await
    }

    /// The same, of a request that names itself.
    pub(super) async fn does_under(
        &self,
        name: &VmName,
        what: VmAction,
        under: Option<RunId>,
    ) -> Result<VmChanged, VmError> {
        let name = name.clone();
        self.act(may(Act { name, what, under })).await
    }

    pub(super) fn vm(&self, text: &str) -> Arc<StoredVm> {
        self.held(&name(text)).unwrap().vm
    }

    /// Makes one that is up.
    pub(super) async fn up(&self, world: &World, wish: CreateVms) -> Arc<StoredVm> {
        let made = self.make(wish).await.unwrap();
        for plan in &made.machines {
            world.end(plan.vm.run.unwrap(), RunPhase::Succeeded, "");
        }
        self.look(Timestamp::now()).await;
        self.vm(made.machines[0].vm.name.as_str())
    }
}
