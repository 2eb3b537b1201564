//! Virtual machines, and the hypervisors that they are on.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::firewall::AddressPair;
use crate::ids::RunId;
use crate::names::{
    AccountName, GroupName, ImageName, LabelKey, LabelValue, LanName, NodeName, PoolName,
    PrincipalName, RoleName, ScenarioName, SnapshotName, VmName,
};
use crate::problem::Problem;
use crate::run::RunPhase;
use crate::units::{Span, Timestamp};
use crate::vm::{
    Capacity, GuestState, Nic, Readiness, Sha256, Size, Traffic, Virtualisation, VmId,
};

/// Most bytes of user-data for cloud-init.
pub const MAX_USER_DATA: usize = 64 * 1024;

/// Which hypervisor is taken of those that fit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// That with the most free memory.
    #[default]
    Spread,
    /// That with the least free memory.
    Pack,
}

/// A scenario that configures a machine: it runs on the machine's own node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// The scenario; a stored one.
    pub scenario: ScenarioName,
    /// Its parameters by name, each as JSON or as a text that a person would
    /// write. None of them may be secret: they are kept with the machine.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object, example = json!({ "version": "1.4.2" }))]
    pub params: Map<String, Value>,
}

/// What came of configuring a machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Configured {
    /// The run; there is none of that id where it was refused.
    pub run: RunId,
    /// Of which scenario.
    pub scenario: ScenarioName,
    /// How it ended; none while it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<RunPhase>,
    /// Why not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Why there was no run at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Box<Problem>>,
    /// When it was asked for, or when it has ended.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// Makes machines.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVms {
    /// Their names; `{01..40}` in one stands for a range, as in invites. A
    /// label of the hypervisor in braces, and `{n}`, make names of the place:
    /// `{zone}-{rack}-h{n}`.
    pub name: String,
    /// How many; must agree with a range. One when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// What their disks begin with.
    pub image: ImageName,
    /// Virtual processors.
    pub cpus: u16,
    /// Memory.
    pub memory: Size,
    /// Disk; as large as the image when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Size>,
    /// Networks, an interface in each.
    #[serde(default)]
    pub networks: Vec<LanName>,
    /// Whose they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// Whether an agent in them enrols itself: not in machines of customers.
    #[serde(default = "yes")]
    pub agent: bool,
    /// When they count as up; `agent` with an agent, else `boot`, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Readiness>,
    /// How long they may take to be up; 10 minutes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_within: Option<Span>,
    /// A predicate on hypervisors; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// Which of those that fit.
    #[serde(default)]
    pub strategy: Strategy,
    /// No two machines of the same account (or role, without an account)
    /// where hypervisors have the same value of this label; `name` for no two
    /// on one hypervisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apart: Option<String>,
    /// Roles of their nodes.
    #[serde(default)]
    pub roles: Vec<RoleName>,
    /// Labels of the machines and of their nodes.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Groups of rules for their interfaces.
    #[serde(default)]
    pub groups: Vec<GroupName>,
    /// Public keys for `ssh`: a line each, or the name of one that was added.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// cloud-init's user-data, on top of what muster writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Whether they start with their hypervisor.
    #[serde(default = "yes")]
    pub autostart: bool,
    /// Whether they cannot be destroyed before somebody unprotects them.
    #[serde(default)]
    pub protect: bool,
    /// What configures them once they are up. Not without an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configure: Option<Configure>,
    /// Says what would be made, and makes nothing.
    #[serde(default)]
    pub dry_run: bool,
}

fn yes() -> bool {
    true
}

/// What was made, or would be.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmsCreated {
    /// Each machine with its place.
    pub machines: Vec<VmPlan>,
    /// Whether this was a dry run: nothing is reserved.
    pub dry_run: bool,
}

/// A machine that is made, or would be.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmPlan {
    /// The machine.
    pub vm: VmView,
    /// Hypervisors that were looked at; 0 where the same request came before:
    /// what was looked at then is not kept.
    pub looked_at: u32,
    /// Those that fit.
    pub fit: u32,
    /// Whether its image is on the hypervisor already.
    pub image_there: bool,
}

/// A hypervisor that was looked at and not taken.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Looked {
    /// Which.
    pub node: NodeName,
    /// Why not.
    pub why: String,
}

/// How a machine is, of what is wanted and of what is seen.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmStatus {
    /// It is being made.
    Creating,
    /// It runs.
    Running,
    /// It is held.
    Paused,
    /// It does not run.
    Stopped,
    /// It did not end by itself.
    Crashed,
    /// Its hypervisor cannot be heard: nobody knows.
    Unreachable,
    /// Its hypervisor does not have it.
    Missing,
    /// It is being destroyed.
    Destroying,
    /// It was destroyed; its disk may be kept still.
    Deleted,
    /// It could not be said whether it was made or destroyed; muster looks
    /// again as soon as its hypervisor is heard.
    Doubtful,
}

/// Something that is seen otherwise than it is wanted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriftView {
    /// `state`, `memory`, `cpus`, `missing`, `unknown`.
    pub what: String,
    /// A sentence: `is stopped, and should run`.
    pub text: String,
}

/// A machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct VmView {
    /// Its name.
    pub name: VmName,
    /// Its UUID.
    pub id: VmId,
    /// How it is.
    pub status: VmStatus,
    /// Whether it should run.
    pub should_run: bool,
    /// Its hypervisor.
    pub hypervisor: NodeName,
    /// How it is seen there; none when it cannot be or is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<GuestState>,
    /// When it was started, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// What went over its interfaces since then, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// What is seen otherwise than it is wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<DriftView>,
    /// Virtual processors.
    pub cpus: u16,
    /// Memory.
    pub memory: Size,
    /// Disk.
    pub disk: Size,
    /// Its image.
    pub image: ImageName,
    /// Exactly which.
    pub image_sha256: Sha256,
    /// Its interfaces.
    pub nics: Vec<Nic>,
    /// Its addresses, all of them.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// Roles of its node.
    pub roles: Vec<RoleName>,
    /// Its labels.
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Its groups of rules.
    pub groups: Vec<GroupName>,
    /// Addresses that its interfaces may use beside their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<AddressPair>,
    /// Whether an agent is in it.
    pub agent: bool,
    /// When it counts as up.
    pub ready: Readiness,
    /// Whether it starts with its hypervisor.
    pub autostart: bool,
    /// Whether it cannot be destroyed.
    pub protected: bool,
    /// Who had it made.
    pub by: PrincipalName,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub made: Timestamp,
    /// What configures it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configure: Option<Configure>,
    /// What came of that last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<Configured>,
    /// The run that makes, changes or destroys it, or did so last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// When it was destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deleted: Option<Timestamp>,
    /// Until when its disk is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub kept_until: Option<Timestamp>,
    /// Why it never was, or why it cannot be said whether it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A machine in a line of a list: what people look for in many.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct VmBrief {
    /// Its name.
    pub name: VmName,
    /// How it is.
    pub status: VmStatus,
    /// When it was started, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// Its hypervisor.
    pub hypervisor: NodeName,
    /// Virtual processors.
    pub cpus: u16,
    /// Memory.
    pub memory: Size,
    /// Its addresses, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// Roles of its node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<RoleName>,
    /// What is seen otherwise than it is wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<DriftView>,
    /// What came of configuring it last, if that did not end well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<Configured>,
    /// Until when its disk is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub kept_until: Option<Timestamp>,
    /// Why it never was, or why it cannot be said whether it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What is to be done with a machine that is there.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
pub enum VmAction {
    /// It is to run.
    Start,
    /// It is not to run: asked first, then forced.
    Stop {
        /// How long it may take by itself; a minute when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grace: Option<Span>,
    },
    /// It is started anew.
    Reboot {
        /// How long it may take by itself; a minute when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grace: Option<Span>,
    },
    /// It is to have so much.
    Resize {
        /// Processors.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cpus: Option<u16>,
        /// Memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory: Option<Size>,
        /// Disk; it only grows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<Size>,
    },
    /// A snapshot of its disk.
    Snapshot {
        /// Its name.
        snapshot: SnapshotName,
    },
    /// Its disk as in a snapshot.
    Restore {
        /// Its name.
        snapshot: SnapshotName,
    },
    /// The end of its console.
    ConsoleLog {
        /// Lines at most; 200 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lines: Option<u32>,
    },
    /// A program in it, by the QEMU guest agent.
    Exec {
        /// The program and its arguments.
        argv: Vec<String>,
        /// How long it may take; a minute when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout: Option<Span>,
    },
    /// A scenario configures it, on its own node.
    Provision {
        /// Which, from now on; that which is recorded when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        configure: Option<Configure>,
    },
    /// It cannot be destroyed from now on.
    Protect,
    /// It can be destroyed from now on.
    Unprotect,
    /// It comes back, where its disk is kept still.
    Undelete,
}

/// What became of a request to change a machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmChanged {
    /// The machine.
    pub vm: VmView,
    /// The run that does it; none where nothing is left to do on a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
}

/// A hypervisor.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct HypervisorView {
    /// Its node.
    pub node: NodeName,
    /// Whether it is heard.
    pub connected: bool,
    /// When it was last heard of its machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub heard: Option<Timestamp>,
    /// Whether nothing new is put on it.
    pub cordoned: bool,
    /// Whether it is drained: nothing new is put on it, and what is there is
    /// to stop.
    #[serde(default)]
    pub draining: bool,
    /// How machines run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtualisation: Option<Virtualisation>,
    /// What it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Processors that its machines have, also those that are being made.
    pub cpus_given: u32,
    /// Memory that its machines have.
    pub memory_given: Size,
    /// Disk that its machines have.
    pub disk_given: Size,
    /// The pool that disks are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Machines of this cluster.
    pub machines: u32,
    /// Those of them that run, or of which nobody knows that they do not.
    #[serde(default)]
    pub running: u32,
    /// Domains that muster does not know: never touched.
    pub unknown: Vec<String>,
    /// Why it says nothing of its machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Changes a hypervisor.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HypervisorChange {
    /// Whether nothing new is put on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned: Option<bool>,
}

/// Drains a hypervisor.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainHypervisor {
    /// Whether its machines are stopped: asked first, then forced.
    #[serde(default)]
    pub stop: bool,
    /// How long each may take by itself; a minute when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Span>,
}

/// What came of draining a hypervisor.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Drained {
    /// The hypervisor.
    pub hypervisor: HypervisorView,
    /// The machines that are on it, by name.
    pub machines: Vec<DrainedVm>,
}

/// A machine on a hypervisor that is drained.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainedVm {
    /// The machine.
    pub vm: VmView,
    /// The run that stops it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Why it is not stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Says that a hypervisor's new key is that of the same host.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptHypervisor {
    /// Also machines that it does not report are its own from now on: those
    /// that were destroyed and whose disk it keeps, and those that are gone.
    #[serde(default)]
    pub missing: bool,
}

/// What a hypervisor with a new key has taken over.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    /// The hypervisor.
    pub hypervisor: HypervisorView,
    /// Machines that are its own from now on.
    pub adopted: Vec<VmName>,
    /// Machines of the key before that it does not report: nothing is done
    /// with them.
    pub left: Vec<VmName>,
}
