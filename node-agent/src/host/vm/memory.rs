//! A libvirt that is only in this process's memory: for fleets that are
//! simulated, and for tests of what goes wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_libvirt::message::{Call, Domain, Failure, FailureKind, Host, Pool, Reply, Volume};
use muster_libvirt::xml;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{GuestState, Size, Traffic, Virtualisation, VmId};
use tokio::sync::watch;

use super::virt::{Answered, Virt, VirtError, name};

/// Calls that are remembered.
const MAX_CALLS: usize = 1_000;

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// libvirt says no.
    Fails,
    /// No answer, and it is not done.
    HangsBefore,
    /// No answer, but it is done.
    HangsAfter,
    /// The connection goes, and it is not done.
    LostBefore,
    /// The connection goes, but it is done.
    LostAfter,
    /// No answer, and it is done a little later, when others have been asked.
    DoneLater,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Fails,
        Self::HangsBefore,
        Self::HangsAfter,
        Self::LostBefore,
        Self::LostAfter,
        Self::DoneLater,
    ];
}

/// What a simulated hypervisor has.
#[derive(Clone, Debug)]
pub struct Having {
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Size,
    /// Its pool's size.
    pub disk: Size,
    /// Its pool's directory: images and seeds are files in it.
    pub directory: PathBuf,
}

/// A libvirt in memory. Cheap to clone: clones are the same one.
#[derive(Clone, Debug)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    having: Having,
    domains: BTreeMap<VmId, Known>,
    volumes: BTreeMap<String, Volume>,
    /// Calls that nobody has taken yet, and how many there were ever.
    calls: Vec<&'static str>,
    count: usize,
    fault: Option<(usize, Fault)>,
    /// What is done later, and before which call.
    later: Option<(usize, Call)>,
    /// The next way back to a snapshot is cut, and libvirt is at work then
    /// for so many looks.
    cut: Option<usize>,
    busy: usize,
    /// Nothing is answered any more.
    hangs: bool,
    /// Whether guests end when they are asked to.
    obedient: bool,
    /// What guest agents answer, by the command; none: there is no agent.
    agent: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug)]
struct Known {
    domain: Domain,
    xml: String,
    snapshots: Vec<String>,
}

impl Known {
    fn start(&mut self) {
        if self.domain.since.is_none() {
            self.domain.since = Some(Timestamp::now());
            self.domain.traffic = Some(Traffic::default());
        }
        self.domain.state = GuestState::Running;
    }

    fn end(&mut self) {
        self.domain.state = GuestState::Stopped;
        self.domain.since = None;
        self.domain.traffic = None;
    }
}

impl Memory {
    /// An empty one.
    #[must_use]
    pub fn new(having: Having) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                having,
                domains: BTreeMap::new(),
                volumes: BTreeMap::new(),
                calls: Vec::new(),
                count: 0,
                fault: None,
                later: None,
                cut: None,
                busy: 0,
                hangs: false,
                obedient: true,
                agent: None,
            })),
            changes: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The `nth` call from now on (0 is the next one) goes wrong, once.
    pub fn fault(&self, nth: usize, fault: Fault) {
        let mut state = self.state();
        let at = state.count + nth;
        state.fault = Some((at, fault));
    }

    /// Whether the fault came to be; there is none afterwards.
    pub fn take_fault(&self) -> bool {
        let mut state = self.state();
        let now = state.count;
        state.fault.take().is_some_and(|(at, _)| at < now)
    }

    /// The next way back to a snapshot is not answered, and leaves the domain
    /// held and with another definition; libvirt is at work with it for so
    /// many looks.
    pub fn cut_restore(&self, busy: usize) {
        self.state().cut = Some(busy);
    }

    /// Whether nothing is answered.
    pub fn hang(&self, hangs: bool) {
        self.state().hangs = hangs;
    }

    /// Whether guests end when they are asked to.
    pub fn obey(&self, obedient: bool) {
        self.state().obedient = obedient;
    }

    /// There are guest agents, and they answer these commands with that.
    pub fn agents(&self, answers: BTreeMap<String, String>) {
        self.state().agent = Some(answers);
    }

    /// What was asked since this was asked last.
    #[allow(clippy::must_use_candidate, reason = "also to begin anew")]
    pub fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state().calls)
    }

    /// The domains that there are.
    #[must_use]
    pub fn domains(&self) -> Vec<Domain> {
        self.state()
            .domains
            .values()
            .map(|known| known.domain.clone())
            .collect()
    }

    /// The snapshots that a domain has.
    #[must_use]
    pub fn snapshots(&self, uuid: VmId) -> Vec<String> {
        let state = self.state();
        let known = state.domains.get(&uuid);
        known
            .map(|known| known.snapshots.clone())
            .unwrap_or_default()
    }

    /// The volumes that there are.
    #[must_use]
    pub fn volumes(&self) -> Vec<String> {
        self.state().volumes.keys().cloned().collect()
    }

    /// Puts a domain there that nobody asked for, or has one be otherwise.
    pub fn put(&self, domain: Domain) {
        self.put_as(domain, "<domain/>");
    }

    /// The same, with its definition.
    pub fn put_as(&self, domain: Domain, xml: &str) {
        let mut state = self.state();
        let known = Known {
            domain,
            xml: xml.to_owned(),
            snapshots: Vec::new(),
        };
        state.domains.insert(known.domain.uuid, known);
        drop(state);
        self.changed();
    }

    /// Has a domain's interfaces have carried that much; one that does not
    /// run carries nothing. It is no change of the domain.
    pub fn carry(&self, uuid: VmId, traffic: Traffic) {
        if let Some(known) = self.state().domains.get_mut(&uuid)
            && let Some(carried) = &mut known.domain.traffic
        {
            *carried = traffic;
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// What stands between two texts.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(open)?;
    rest.split_once(close).map(|(inner, _)| inner)
}

fn failed(kind: FailureKind, message: &str) -> VirtError {
    VirtError::Failed(Failure {
        kind,
        message: message.to_owned(),
    })
}

impl State {
    fn known(&mut self, uuid: VmId) -> Answered<&mut Known> {
        let missing = || failed(FailureKind::Missing, "no domain with that UUID");
        self.domains.get_mut(&uuid).ok_or_else(missing)
    }

    fn pool(&self) -> Pool {
        let used: u64 = self.volumes.values().map(|v| v.allocation.bytes()).sum();
        Pool {
            capacity: self.having.disk,
            available: Size(self.having.disk.bytes().saturating_sub(used)),
            path: Some(self.having.directory.display().to_string()),
        }
    }

    fn define(&mut self, xml: &str) -> Answered<Reply> {
        let read = xml::read_domain(xml);
        let Some(machine) = read.machine else {
            return Err(failed(FailureKind::Other, "no machine in the definition"));
        };
        let name = machine.name.to_string();
        if self
            .domains
            .values()
            .any(|k| k.domain.name == name && k.domain.uuid != machine.id)
        {
            let message = format!("domain '{name}' already exists with another uuid");
            return Err(failed(FailureKind::Exists, &message));
        }
        let before = self.domains.get(&machine.id);
        let known = Known {
            domain: Domain {
                uuid: machine.id,
                name,
                state: before.map_or(GuestState::Stopped, |known| known.domain.state),
                cpus: machine.cpus,
                memory: machine.memory,
                owner: read.owner,
                autostart: before.is_some_and(|known| known.domain.autostart),
                machine: Some(machine),
                since: before.and_then(|known| known.domain.since),
                traffic: before.and_then(|known| known.domain.traffic),
            },
            xml: xml.to_owned(),
            snapshots: before.map_or_else(Vec::new, |known| known.snapshots.clone()),
        };
        self.domains.insert(known.domain.uuid, known);
        Ok(Reply::Done)
    }

    fn create_volume(&mut self, xml: &str) -> Answered<Reply> {
        let name = between(xml, "<name>", "</name>")
            .unwrap_or_default()
            .to_owned();
        let capacity = between(xml, "<capacity", "</capacity>")
            .and_then(|inner| inner.split_once('>')?.1.trim().parse().ok())
            .unwrap_or_default();
        if self.volumes.contains_key(&name) {
            return Err(failed(FailureKind::Exists, "storage volume exists already"));
        }
        let volume = Volume {
            path: self.having.directory.join(&name).display().to_string(),
            capacity: Size(capacity),
            allocation: Size(200 << 10),
            name: name.clone(),
        };
        if self.pool().available < volume.allocation {
            return Err(failed(FailureKind::Space, "no space left on device"));
        }
        self.volumes.insert(name, volume.clone());
        Ok(Reply::Volume(Some(volume)))
    }

    fn done(&mut self, call: &Call) -> Answered<Reply> {
        match call {
            Call::Host => Ok(Reply::Host(Host {
                virtualisation: Some(Virtualisation::Memory),
                cpus: self.having.cpus,
                memory: self.having.memory,
                emulator: None,
                version: "9.0.0".to_owned(),
            })),
            Call::Domains => {
                let all = self.domains.values().map(|known| known.domain.clone());
                Ok(Reply::Domains(all.collect()))
            }
            Call::Domain { uuid } => Ok(Reply::Domain(
                self.domains.get(uuid).map(|known| known.domain.clone()),
            )),
            Call::Named { name } => {
                let mut all = self.domains.values();
                let found = all.find(|known| known.domain.name == *name);
                Ok(Reply::Domain(found.map(|known| known.domain.clone())))
            }
            Call::Xml { uuid } => Ok(Reply::Text(self.known(*uuid)?.xml.clone())),
            Call::Definition { uuid } => Ok(Reply::Text(self.known(*uuid)?.xml.clone())),
            Call::Busy { uuid } => {
                self.known(*uuid)?;
                let busy = self.busy > 0;
                self.busy = self.busy.saturating_sub(1);
                Ok(Reply::Busy(busy))
            }
            Call::Define { xml } => self.define(xml),
            Call::Undefine { uuid } => {
                self.known(*uuid)?;
                self.domains.remove(uuid);
                Ok(Reply::Done)
            }
            Call::Start { uuid } => {
                self.known(*uuid)?.start();
                Ok(Reply::Done)
            }
            Call::Shutdown { uuid } => {
                let obedient = self.obedient;
                let known = self.known(*uuid)?;
                if known.domain.state != GuestState::Running {
                    return Err(failed(FailureKind::State, "domain is not running"));
                }
                if obedient {
                    known.end();
                }
                Ok(Reply::Done)
            }
            Call::Kill { uuid } => {
                self.known(*uuid)?.end();
                Ok(Reply::Done)
            }
            Call::Autostart { uuid, on } => {
                self.known(*uuid)?.domain.autostart = *on;
                Ok(Reply::Done)
            }
            Call::Pool { .. } => Ok(Reply::Pool(self.pool())),
            Call::Refresh { .. } => Ok(Reply::Done),
            Call::Volume { name, .. } => Ok(Reply::Volume(self.volumes.get(name).cloned())),
            Call::Volumes { .. } => Ok(Reply::Volumes(self.volumes.values().cloned().collect())),
            Call::CreateVolume { xml, .. } => self.create_volume(xml),
            Call::GrowVolume { name, size, .. } => {
                let missing = || failed(FailureKind::Missing, "no such volume");
                self.volumes.get_mut(name).ok_or_else(missing)?.capacity = *size;
                Ok(Reply::Done)
            }
            Call::DeleteVolume { name, .. } => {
                self.volumes.remove(name);
                Ok(Reply::Done)
            }
            Call::Snapshots { uuid } => Ok(Reply::Snapshots(self.known(*uuid)?.snapshots.clone())),
            Call::SnapshotDefinitions { uuid } => {
                let all = self.known(*uuid)?.snapshots.iter();
                let xml =
                    |name: &String| format!("<domainsnapshot><name>{name}</name></domainsnapshot>");
                Ok(Reply::Snapshots(all.map(xml).collect()))
            }
            Call::DefineSnapshot { uuid, xml } => {
                let name = xml::read_snapshot_name(xml)
                    .ok_or_else(|| failed(FailureKind::Other, "no name in the snapshot"))?;
                let all = &mut self.known(*uuid)?.snapshots;
                if !all.contains(&name) {
                    all.push(name);
                }
                Ok(Reply::Done)
            }
            Call::Snapshot { uuid, name } => {
                self.known(*uuid)?.snapshots.push(name.to_string());
                Ok(Reply::Done)
            }
            Call::Restore { uuid, name } => {
                if !self
                    .known(*uuid)?
                    .snapshots
                    .iter()
                    .any(|s| s == name.as_str())
                {
                    return Err(failed(FailureKind::Missing, "no such snapshot"));
                }
                if let Some(busy) = self.cut.take() {
                    self.busy = busy;
                    let domain = &mut self.known(*uuid)?.domain;
                    domain.state = GuestState::Paused;
                    domain.memory = Size(1 << 20);
                    self.known(*uuid)?.xml = "<domain/>".to_owned();
                    return Err(VirtError::late("restore", Duration::from_secs(300)));
                }
                Ok(Reply::Done)
            }
            Call::GuestAgent { uuid, command, .. } => {
                self.known(*uuid)?;
                let none = || failed(FailureKind::NoAgent, "QEMU guest agent is not connected");
                let agent = self.agent.as_ref().ok_or_else(none)?;
                let found = agent.iter().find(|(part, _)| command.contains(*part));
                found
                    .map(|(_, answer)| Reply::Text(answer.clone()))
                    .ok_or_else(none)
            }
        }
    }
}

/// Whether something may be otherwise after a call.
fn alters(call: &Call) -> bool {
    matches!(
        call,
        Call::Define { .. }
            | Call::Undefine { .. }
            | Call::Start { .. }
            | Call::Shutdown { .. }
            | Call::Kill { .. }
            | Call::Autostart { .. }
            | Call::Restore { .. }
    )
}

impl Virt for Memory {
    fn call(&self, call: Call) -> BoxFuture<'_, Answered<Reply>> {
        let what = name(&call);
        let reply = {
            let mut state = self.state();
            let at = state.count;
            state.count += 1;
            if let Some((_, call)) = state.later.take_if(|(when, _)| *when <= at) {
                // Nobody hears how it ended.
                let _ = state.done(&call);
            }
            if state.calls.len() < MAX_CALLS {
                state.calls.push(what);
            }
            let late = || VirtError::late(what, Duration::from_secs(30));
            let lost = || VirtError::Lost {
                what,
                why: "it was restarted".to_owned(),
            };
            let fault = state
                .fault
                .filter(|(nth, _)| *nth == at)
                .map(|(_, fault)| fault);
            match fault {
                _ if state.hangs => Err(late()),
                None => state.done(&call),
                Some(Fault::Fails) => Err(failed(FailureKind::Other, "something went wrong")),
                Some(Fault::HangsBefore) => Err(late()),
                Some(Fault::LostBefore) => Err(lost()),
                Some(Fault::HangsAfter) => state.done(&call).and_then(|_| Err(late())),
                Some(Fault::LostAfter) => state.done(&call).and_then(|_| Err(lost())),
                Some(Fault::DoneLater) => {
                    state.later = Some((at + 2, call.clone()));
                    Err(late())
                }
            }
        };
        if alters(&call) {
            self.changed();
        }
        Box::pin(std::future::ready(reply))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
