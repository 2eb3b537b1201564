//! What is kept of a machine, and where in its life it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use muster_protocol::api::{
    ChatPlace, Configure, Configured, Confirm, Role, RunRequest, Secret, VmAction,
};
use muster_protocol::envelope::Door;
use muster_protocol::firewall::AddressPair;
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::names::{
    AccountName, GroupName, LabelKey, LabelValue, LanName, NodeName, PoolName, PrincipalName,
    RoleName, VmName,
};
use muster_protocol::run::PartOf;
use muster_protocol::units::{Span, Timestamp};
use muster_protocol::vm::{Disk, ImageRef, Machine, MachineError, Nic, Readiness, Size, VmId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::choose::node_of;
use super::repair::StoredRepair;
use crate::authz::{Caller, Origin};

/// A value of `muster_vms`; the key is the machine's name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredVm {
    /// Its name, as in the key.
    pub name: VmName,
    /// How many machines had that name up to this one.
    pub nth: u64,
    /// Its UUID; follows from the two.
    pub id: VmId,
    /// Its hypervisor.
    pub place: Place,
    /// What is wanted of it.
    pub wish: Wish,
    /// Its interfaces; none before its addresses are reserved.
    pub nics: Vec<HeldNic>,
    /// Whether it should run.
    pub should_run: bool,
    /// Whether it cannot be destroyed.
    pub protected: bool,
    /// Invites that were made for it, or are about to be: all that may work.
    pub invites: Vec<String>,
    /// The node that enrolled from one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Serial>,
    /// Who had it made, and when.
    pub made: Made,
    /// Who asked for the last thing: as whom its run is asked for again.
    pub order: Order,
    /// How many runs were asked for: the id of each follows from that.
    pub runs: u64,
    /// The newest run of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// What came of configuring it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<Configured>,
    /// What was told to be otherwise than it is wanted: what, and a sentence.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drift: BTreeMap<String, String>,
    /// When a trigger has last started it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired: Option<StoredRepair>,
    /// Where in its life it is.
    pub life: Life,
}

/// Where a machine is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The hypervisor: its key decides.
    pub serial: Serial,
    /// What it was called then.
    pub node: NodeName,
    /// The pool that its disk is in.
    pub pool: PoolName,
}

/// What is wanted of a machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Processors.
    pub cpus: u16,
    /// Memory.
    pub memory: Size,
    /// Disk.
    pub disk: Size,
    /// What its disk begins with.
    pub image: ImageRef,
    /// Its networks, in order.
    pub networks: Vec<LanName>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// Whether an agent in it enrols itself.
    pub agent: bool,
    /// When it counts as up.
    pub ready: Readiness,
    /// How long that may take.
    pub ready_within: Span,
    /// Roles of its node, sorted.
    pub roles: Vec<RoleName>,
    /// Its labels.
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Public keys.
    pub ssh_keys: Vec<String>,
    /// cloud-init's user-data, as long as it is needed: until it is up.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hidden")]
    pub user_data: Option<Secret>,
    /// Groups of its interfaces, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupName>,
    /// Addresses that its interfaces may use beside their own, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<AddressPair>,
    /// Whether it starts with its hypervisor.
    pub autostart: bool,
    /// What configures it once it is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configure: Option<Configure>,
}

impl Wish {
    /// What it takes of a hypervisor while it is there.
    #[must_use]
    pub fn takes(&self) -> Takes {
        Takes {
            cpus: u64::from(self.cpus),
            memory: self.memory,
            disk: self.disk,
        }
    }

    /// Whether there can be a machine like that, anywhere.
    ///
    /// # Errors
    /// [`MachineError`]: the first thing that cannot be.
    pub fn check(&self) -> Result<(), MachineError> {
        // Its name, its place and its addresses are not asked for.
        let (Ok(name), Ok(id), Ok(pool)) = ("x".parse(), NO_ID.parse(), "x".parse()) else {
            return Ok(());
        };
        Machine {
            id,
            name,
            cpus: self.cpus,
            memory: self.memory,
            image: self.image.clone(),
            disk: Disk {
                size: self.disk,
                pool,
            },
            nics: Vec::new(),
            autostart: self.autostart,
            ready: self.ready,
            account: self.account.clone(),
        }
        .check()
    }
}

/// Of no machine.
const NO_ID: &str = "00000000-0000-0000-0000-000000000000";

/// A text that may hold secrets, where it is kept.
mod hidden {
    use muster_protocol::api::Secret;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(
        text: &Option<Secret>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        text.as_ref().map(Secret::expose).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Secret>, D::Error> {
        Ok(Option::<String>::deserialize(from)?.map(Secret::new))
    }
}

/// An interface, with what the machine has to know of its network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HeldNic {
    /// The interface.
    pub nic: Nic,
    /// Prefix lengths, one of each of its addresses.
    pub prefixes: Vec<u8>,
    /// Gateways.
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// The largest packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// Who had a machine made, and when.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// Who.
    pub by: PrincipalName,
    /// When.
    pub at: Timestamp,
    /// The call of a run that asked for it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<PartOf>,
    /// What the request for it is called, if it names itself: who sends it
    /// again is answered with this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<RunId>,
}

/// Who asked for something.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Who.
    pub by: PrincipalName,
    /// What they might do then.
    pub role: Role,
    /// Through which door.
    pub door: Door,
    /// Where exactly that came from: policies judge it again when what
    /// configures the machine is asked for.
    #[serde(default, skip_serializing_if = "Origin::is_unknown")]
    pub origin: Origin,
    /// Where they are told of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<Box<ChatPlace>>,
    /// All machines that were asked for with this one, where they are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<VmName>,
    /// The run that it is to be, where the request names itself: who sends it
    /// again is answered with that run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<RunId>,
}

impl Order {
    /// Of whoever asks now.
    #[must_use]
    pub fn of(caller: &Caller) -> Self {
        Self {
            by: caller.principal.clone(),
            role: caller.role,
            door: caller.door,
            origin: caller.origin.clone(),
            chat: caller.origin.chat_place().map(Box::new),
            with: Vec::new(),
            under: None,
        }
    }

    /// The same, to be that run where one is named.
    #[must_use]
    pub fn under(self, under: Option<RunId>) -> Self {
        Self { under, ..self }
    }

    /// As whom it is asked for again.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller {
            principal: self.by.clone(),
            role: self.role,
            token: "none: a machine".to_owned(),
            door: self.door,
            origin: self.origin.clone(),
        }
    }
}

/// Where in its life a machine is. What a run does is written down before the
/// run is asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "life", deny_unknown_fields)]
pub enum Life {
    /// Name and place are taken, and nothing else was done.
    Reserved,
    /// A run makes it.
    Creating {
        /// Which.
        run: RunId,
    },
    /// It is there.
    Ready {
        /// Since when: what was seen before does not count.
        since: Timestamp,
    },
    /// A run does something with it.
    Changing {
        /// Which.
        run: RunId,
        /// What.
        what: VmAction,
        /// Since when it is there.
        since: Timestamp,
    },
    /// A run destroys it.
    Destroying {
        /// Which.
        run: RunId,
        /// How.
        end: End,
        /// How often that could not be said to have worked.
        tries: u32,
    },
    /// It was destroyed, and its disk is kept.
    Kept {
        /// Since when.
        since: Timestamp,
        /// Until when.
        until: Timestamp,
    },
    /// A run brings it back.
    Returning {
        /// Which.
        run: RunId,
        /// Since when its disk is kept.
        since: Timestamp,
        /// Until when.
        until: Timestamp,
    },
    /// It could not be said whether it was destroyed: that is tried again once
    /// its hypervisor says something.
    Doubtful {
        /// How it is to end.
        end: End,
        /// What came of the last run.
        why: String,
        /// When that ended: what was seen before says nothing.
        since: Timestamp,
        /// How often it was tried.
        tries: u32,
    },
    /// It is not there, and nobody asks for it any more: what was reserved for
    /// it is being freed.
    Ending {
        /// Why it ends.
        why: String,
        /// Whether it never was.
        never: bool,
    },
    /// It is not there, and nothing of it is.
    Gone {
        /// Since when.
        at: Timestamp,
        /// Why it never was.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failed: Option<String>,
    },
}

/// How a machine ends.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "how", deny_unknown_fields)]
pub enum End {
    /// Its disk is kept for a while.
    Keep,
    /// Nothing of it stays.
    Purge,
    /// It could not be made, and nothing of it is to stay.
    Failed {
        /// Why not.
        why: String,
    },
}

impl End {
    /// Whether its disk goes, too.
    #[must_use]
    pub fn purges(&self) -> bool {
        !matches!(self, Self::Keep)
    }
}

/// How long a stopped or restarted machine may take by itself, when nobody
/// says.
const GRACE: Span = Span::from_secs(60);
/// How long a program in a machine may take, when nobody says.
const EXEC_WITHIN: Span = Span::from_secs(60);
/// Lines of a console, when nobody says.
const LINES: u32 = 200;

impl StoredVm {
    /// The machine, as its hypervisor is to have it.
    #[must_use]
    pub fn machine(&self) -> Machine {
        let Wish {
            cpus,
            memory,
            disk,
            image,
            account,
            ready,
            autostart,
            ..
        } = &self.wish;
        Machine {
            id: self.id,
            name: self.name.clone(),
            cpus: *cpus,
            memory: *memory,
            image: image.clone(),
            disk: Disk {
                size: *disk,
                pool: self.place.pool.clone(),
            },
            nics: self.nics.iter().map(|held| held.nic.clone()).collect(),
            autostart: *autostart,
            ready: *ready,
            account: account.clone(),
        }
    }

    /// The id of the next run of it, which is the same whoever asks for it.
    #[must_use]
    pub fn next_run(&self) -> RunId {
        let mut hash = Sha256::new();
        hash.update(b"muster machine run v1\0");
        hash.update(self.id.as_bytes());
        hash.update((self.runs + 1).to_be_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        RunId::from_bytes(bytes)
    }

    /// The same, for which the run that the order names is asked for, or else
    /// [`StoredVm::next_run`].
    #[must_use]
    pub(super) fn running(&self, order: Option<Order>, life: impl FnOnce(RunId) -> Life) -> Self {
        let named = order.as_ref().and_then(|order| order.under);
        let run = named.unwrap_or_else(|| self.next_run());
        Self {
            runs: self.runs + 1,
            run: Some(run),
            order: order.unwrap_or_else(|| self.order.clone()),
            life: life(run),
            ..self.clone()
        }
    }

    /// The same, elsewhere in its life.
    #[must_use]
    pub(super) fn living(&self, life: Life) -> Self {
        Self {
            life,
            ..self.clone()
        }
    }

    /// What of its hypervisor it takes.
    #[must_use]
    pub fn takes(&self) -> Option<Takes> {
        let all = self.wish.takes();
        match &self.life {
            Life::Ending { .. } | Life::Gone { .. } => None,
            Life::Kept { .. } => Some(Takes {
                disk: all.disk,
                ..Takes::default()
            }),
            // Until it is known which of the two it has.
            Life::Changing {
                what: VmAction::Resize { cpus, memory, disk },
                ..
            } => Some(all.or(self.resized(*cpus, *memory, *disk).wish.takes())),
            _ => Some(all),
        }
    }

    /// Whether there is something to do, or to wait for.
    #[must_use]
    pub fn is_restless(&self) -> bool {
        !matches!(self.life, Life::Ready { .. } | Life::Gone { .. })
    }

    /// Whether nothing of it is there, or is to stay.
    #[must_use]
    pub(super) fn is_over(&self) -> bool {
        matches!(self.life, Life::Ending { .. } | Life::Gone { .. })
    }

    /// The run that is, or is to be, under way, with what is asked for.
    #[must_use]
    pub fn wanted(&self) -> Option<(RunId, RunRequest)> {
        let (run, request) = match &self.life {
            Life::Creating { run } => {
                let params = serde_json::json!({
                    "machine": self.machine(),
                    "within": self.wish.ready_within,
                    "agent": self.wish.agent,
                });
                (run, self.on_its_host("vm-create", params)?)
            }
            Life::Returning { run, .. } => (run, self.asked_by(&VmAction::Undelete)?),
            Life::Destroying { run, end, .. } => (run, self.destroyed_by(end.purges())?),
            Life::Changing { run, what, .. } => (run, self.asked_by(what)?),
            Life::Reserved
            | Life::Ready { .. }
            | Life::Kept { .. }
            | Life::Doubtful { .. }
            | Life::Ending { .. }
            | Life::Gone { .. } => return None,
        };
        Some((*run, request))
    }

    /// What is asked for to have that done with it; nothing where no run does
    /// it.
    #[must_use]
    pub(super) fn asked_by(&self, what: &VmAction) -> Option<RunRequest> {
        if let VmAction::Provision { configure } = what {
            let node = node_of(&self.name)?;
            let configure = configure.as_ref().or(self.wish.configure.as_ref())?;
            return Some(configuring(configure, &node));
        }
        let (scenario, params) = self.change(what)?;
        self.on_its_host(scenario, params)
    }

    /// What is asked for to have it destroyed.
    #[must_use]
    pub(super) fn destroyed_by(&self, purge: bool) -> Option<RunRequest> {
        let params = serde_json::json!({ "id": self.id, "purge": purge });
        self.on_its_host("vm-destroy", params)
    }

    fn on_its_host(&self, scenario: &str, params: serde_json::Value) -> Option<RunRequest> {
        let mut request = RunRequest::of(scenario.parse().ok()?);
        request.predicate = Some(format!("name={}", self.place.node));
        request.params = params;
        // Whoever asked for the machine has said yes to what it takes.
        request.confirm = Confirm::Yes;
        Some(request)
    }

    /// Whether a run configures it.
    #[must_use]
    pub(super) fn is_being_configured(&self) -> bool {
        let Life::Changing { what, .. } = &self.life else {
            return false;
        };
        matches!(what, VmAction::Provision { .. })
    }

    /// Whether what is done with it takes back what a run did, on the word of
    /// that run.
    #[must_use]
    pub(super) fn is_taken_back(&self) -> bool {
        let Origin::Run { run, .. } = &self.order.origin else {
            return false;
        };
        matches!(self.life, Life::Destroying { .. })
            && self.made.part.is_some_and(|part| part.run == *run)
    }

    /// The same, to be configured next.
    #[must_use]
    pub(super) fn configuring(
        &self,
        order: Option<Order>,
        configure: Configure,
        since: Timestamp,
    ) -> Self {
        let scenario = configure.scenario.clone();
        let what = VmAction::Provision {
            configure: Some(configure.clone()),
        };
        let mut next = self.running(order, |run| Life::Changing { run, what, since });
        next.wish.configure = Some(configure);
        next.configured = next.run.map(|run| Configured {
            run,
            scenario,
            state: None,
            why: None,
            refused: None,
            at: Timestamp::now(),
        });
        next
    }

    /// The scenario that does it, with its parameters.
    fn change(&self, what: &VmAction) -> Option<(&'static str, serde_json::Value)> {
        use serde_json::json;
        let id = self.id;
        let power = |what: &str, grace: Option<Span>| {
            let grace = grace.unwrap_or(GRACE);
            (
                "vm-power",
                json!({ "id": id, "what": what, "grace": grace }),
            )
        };
        Some(match what {
            VmAction::Start => power("start", None),
            VmAction::Stop { grace } => power("stop", *grace),
            VmAction::Reboot { grace } => power("reboot", *grace),
            VmAction::Resize { cpus, memory, disk } => {
                let mut params = json!({ "id": id });
                for (name, value) in [
                    ("cpus", cpus.map(u64::from)),
                    ("memory", memory.map(Size::bytes)),
                    ("disk", disk.map(Size::bytes)),
                ] {
                    if let Some(value) = value {
                        params[name] = json!(value);
                    }
                }
                ("vm-resize", params)
            }
            VmAction::Snapshot { snapshot } => {
                let params = json!({ "id": id, "snapshot": snapshot, "restore": false });
                ("vm-snapshot", params)
            }
            VmAction::Restore { snapshot } => {
                let params = json!({ "id": id, "snapshot": snapshot, "restore": true });
                ("vm-snapshot", params)
            }
            VmAction::ConsoleLog { lines } => {
                let lines = lines.unwrap_or(LINES);
                ("vm-console", json!({ "id": id, "lines": lines }))
            }
            VmAction::Exec { argv, timeout } => {
                let timeout = timeout.unwrap_or(EXEC_WITHIN);
                let params = json!({ "id": id, "argv": argv, "timeout": timeout });
                ("vm-exec", params)
            }
            VmAction::Undelete => ("vm-undelete", json!({ "machine": self.machine() })),
            VmAction::Provision { .. } | VmAction::Protect | VmAction::Unprotect => return None,
        })
    }
}

/// What is asked for to configure the machine that is that node.
#[must_use]
pub(super) fn configuring(configure: &Configure, node: &NodeName) -> RunRequest {
    let mut request = RunRequest::of(configure.scenario.clone());
    request.predicate = Some(format!("name={node}"));
    request.params = serde_json::Value::Object(configure.params.clone());
    // Whoever asked for it has said yes to it.
    request.confirm = Confirm::Yes;
    request
}

/// What of a hypervisor machines take.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Takes {
    /// Processors.
    pub cpus: u64,
    /// Memory.
    pub memory: Size,
    /// Disk.
    pub disk: Size,
}

impl Takes {
    /// The larger of each.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.max(other.cpus),
            memory: self.memory.max(other.memory),
            disk: self.disk.max(other.disk),
        }
    }

    /// What of these is not the other's.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        let rest = |a: Size, b: Size| Size(a.0.saturating_sub(b.0));
        Self {
            cpus: self.cpus.saturating_sub(other.cpus),
            memory: rest(self.memory, other.memory),
            disk: rest(self.disk, other.disk),
        }
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let sum = |a: Size, b: Size| Size(a.0.saturating_add(b.0));
        Self {
            cpus: self.cpus.saturating_add(other.cpus),
            memory: sum(self.memory, other.memory),
            disk: sum(self.disk, other.disk),
        }
    }
}
