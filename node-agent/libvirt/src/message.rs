//! What the agent asks, a line of JSON each on the program's standard input,
//! and what the program says on its standard output.
//!
//! One call at a time: the next one is read when the last was answered.
//! Events come in between. A program that does not answer in time is killed,
//! and another one is asked by UUID what became of it.
//!
//! A call that would change a domain which is not muster's fails, whoever
//! asks: what is muster's stands in the domain's definition.

use muster_protocol::names::{PoolName, SnapshotName};
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{GuestState, Machine, Owner, Size, Traffic, Virtualisation, VmId};
use serde::{Deserialize, Serialize};

/// One call, with a number that its answer repeats.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The number.
    pub id: u64,
    /// What.
    pub call: Call,
}

/// What can be asked.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "call", deny_unknown_fields)]
pub enum Call {
    /// What the host can: [`Reply::Host`].
    Host,
    /// All domains, with their traffic and since when they run:
    /// [`Reply::Domains`].
    Domains,
    /// A domain by its UUID: [`Reply::Domain`].
    Domain {
        /// Which.
        uuid: VmId,
    },
    /// A domain by its name, whoever's it is: [`Reply::Domain`].
    Named {
        /// Which.
        name: String,
    },
    /// The domain's XML, as it is: [`Reply::Text`].
    Xml {
        /// Which.
        uuid: VmId,
    },
    /// The domain's XML as its next start will have it: [`Reply::Text`].
    Definition {
        /// Which.
        uuid: VmId,
    },
    /// Whether libvirt works on a domain still, for whoever asked it to:
    /// [`Reply::Busy`].
    Busy {
        /// Which.
        uuid: VmId,
    },
    /// Defines a domain, or changes the definition of that UUID.
    Define {
        /// All of it.
        xml: String,
    },
    /// Forgets a domain's definition, with its snapshots' metadata.
    Undefine {
        /// Which.
        uuid: VmId,
    },
    /// Starts a domain, or lets one go on that is held. Well when it runs.
    Start {
        /// Which.
        uuid: VmId,
    },
    /// Asks a domain to end by itself; [`FailureKind::State`] when it does
    /// not run.
    Shutdown {
        /// Which.
        uuid: VmId,
    },
    /// Ends a domain at once. Well when it does not run.
    Kill {
        /// Which.
        uuid: VmId,
    },
    /// Whether a domain starts with its host.
    Autostart {
        /// Which.
        uuid: VmId,
        /// Whether.
        on: bool,
    },
    /// A storage pool, looked at now; started when it is not:
    /// [`Reply::Pool`].
    Pool {
        /// Which.
        pool: PoolName,
    },
    /// Has a pool look at its directory again.
    Refresh {
        /// Which.
        pool: PoolName,
    },
    /// A volume: [`Reply::Volume`].
    Volume {
        /// Where.
        pool: PoolName,
        /// Which.
        name: String,
    },
    /// All volumes: [`Reply::Volumes`].
    Volumes {
        /// Where.
        pool: PoolName,
    },
    /// Makes a volume: [`Reply::Volume`].
    CreateVolume {
        /// Where.
        pool: PoolName,
        /// All of it.
        xml: String,
    },
    /// Makes a volume larger, also of a running domain's disk.
    GrowVolume {
        /// Where.
        pool: PoolName,
        /// Which.
        name: String,
        /// To so much.
        size: Size,
        /// The domain that has it open, if one has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        open_in: Option<VmId>,
    },
    /// Removes a volume. Well when it is not there.
    DeleteVolume {
        /// Where.
        pool: PoolName,
        /// Which.
        name: String,
    },
    /// The domain's snapshots: [`Reply::Snapshots`].
    Snapshots {
        /// Which.
        uuid: VmId,
    },
    /// What libvirt knows of the domain's snapshots, as XML, parents first:
    /// [`Reply::Snapshots`].
    SnapshotDefinitions {
        /// Which.
        uuid: VmId,
    },
    /// Has libvirt know a snapshot again that is in the domain's disk. Well
    /// when it knows it.
    DefineSnapshot {
        /// Which.
        uuid: VmId,
        /// All that it knew.
        xml: String,
    },
    /// Makes a snapshot of a domain's disk; [`FailureKind::Exists`] when
    /// there is one of that name.
    Snapshot {
        /// Which.
        uuid: VmId,
        /// The snapshot.
        name: SnapshotName,
    },
    /// Sets a domain's disk back to a snapshot. One that ran runs afterwards,
    /// one that did not does not, and its definition stays what it was.
    Restore {
        /// Which.
        uuid: VmId,
        /// The snapshot.
        name: SnapshotName,
    },
    /// A command to the QEMU guest agent: [`Reply::Text`], what it answers.
    GuestAgent {
        /// Which domain.
        uuid: VmId,
        /// JSON for the guest agent.
        command: String,
        /// How long it may take, in seconds.
        seconds: u32,
    },
}

/// What the program says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "said", deny_unknown_fields)]
pub enum Said {
    /// The connection to libvirt is there; the first thing that is said.
    Ready,
    /// There is no connection, or no more: the program ends after it.
    Lost {
        /// Why.
        why: String,
    },
    /// The answer to a call.
    Answer {
        /// The call's number.
        id: u64,
        /// What came of it.
        result: Result<Reply, Failure>,
    },
    /// Something about a domain has changed: look at it again.
    Event {
        /// Which.
        uuid: VmId,
        /// For logs: `started`, `stopped`, `crashed`, `defined`, …
        what: String,
    },
}

/// What a call came to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reply", content = "value")]
pub enum Reply {
    /// It is done.
    Done,
    /// The host.
    Host(Host),
    /// A domain; none when there is none.
    Domain(Option<Domain>),
    /// Domains.
    Domains(Vec<Domain>),
    /// A pool.
    Pool(Pool),
    /// A volume; none when there is none.
    Volume(Option<Volume>),
    /// Volumes.
    Volumes(Vec<Volume>),
    /// Snapshots.
    Snapshots(Vec<String>),
    /// Whether it is at work.
    Busy(bool),
    /// Some text.
    Text(String),
}

/// Why a call failed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What it is.
    pub kind: FailureKind,
    /// libvirt's own words.
    pub message: String,
}

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// There is no such domain, pool, volume or snapshot.
    Missing,
    /// There is one already.
    Exists,
    /// Not in the state that it is in.
    State,
    /// No guest agent answers.
    NoAgent,
    /// No room.
    Space,
    /// The connection to libvirt went away: the call may have been done.
    Lost,
    /// Anything else.
    Other,
}

/// A host.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// What libvirt says works best; no guest was started to find out.
    pub virtualisation: Option<Virtualisation>,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Size,
    /// The program that runs guests.
    pub emulator: Option<String>,
    /// The version of libvirt, `9.0.0`.
    pub version: String,
}

/// A domain.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// Its UUID.
    pub uuid: VmId,
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: GuestState,
    /// Processors.
    pub cpus: u16,
    /// Memory.
    pub memory: Size,
    /// Whose it is, by what stands in its definition.
    pub owner: Owner,
    /// What muster wanted of it when it defined it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Box<Machine>>,
    /// Whether it starts with its host.
    pub autostart: bool,
    /// When it was started, to the second; none where it does not run, or
    /// where that cannot be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What its interfaces have carried since then, as the guest sees it;
    /// only of muster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

/// A storage pool.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// All of it.
    pub capacity: Size,
    /// What is free.
    pub available: Size,
    /// Its directory; none where its kind has none.
    pub path: Option<String>,
}

/// A volume.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: String,
    /// How large it says it is.
    pub capacity: Size,
    /// What it takes.
    pub allocation: Size,
}
