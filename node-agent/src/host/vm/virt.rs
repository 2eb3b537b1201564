//! What is asked of libvirt, whoever it is that answers.

use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_libvirt::message::{Call, Domain, Failure, FailureKind, Host, Pool, Reply, Volume};
use muster_protocol::names::{PoolName, SnapshotName};
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::vm::{Size, VmId};
use tokio::sync::watch;

/// Why something was not answered as it was wanted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VirtError {
    /// libvirt said no: nothing was done.
    #[error("libvirt: {}", printable(&.0.message, 300))]
    Failed(Failure),
    /// No answer in time: nobody knows whether it was done.
    #[error("libvirt did not answer `{what}` within {after}; see whether libvirtd hangs")]
    Late {
        /// What was asked.
        what: &'static str,
        /// How long was waited.
        after: Span,
    },
    /// The connection went away: nobody knows whether it was done.
    #[error("the connection to libvirt was lost during `{what}`: {why}")]
    Lost {
        /// What was asked.
        what: &'static str,
        /// Why, as far as it is known.
        why: String,
    },
    /// There was no connection to begin with: nothing was done.
    #[error("there is no connection to libvirt: {0}")]
    Away(String),
    /// The answer is to something else.
    #[error("the program that asks libvirt gave a strange answer to `{0}`; is it of this version?")]
    Strange(&'static str),
}

impl VirtError {
    /// Whether it may have been done all the same, or be done still.
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        match self {
            Self::Failed(failure) => failure.kind == FailureKind::Lost,
            Self::Late { .. } | Self::Lost { .. } | Self::Strange(_) => true,
            Self::Away(_) => false,
        }
    }

    /// Whether libvirt said that, and of this kind.
    #[must_use]
    pub fn is(&self, kind: FailureKind) -> bool {
        matches!(self, Self::Failed(failure) if failure.kind == kind)
    }

    pub(super) fn late(what: &'static str, after: Duration) -> Self {
        let after = Span::from_millis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        Self::Late { what, after }
    }
}

/// What a call is called, for people.
#[must_use]
pub(super) fn name(call: &Call) -> &'static str {
    match call {
        Call::Host => "host",
        Call::Domains => "domains",
        Call::Domain { .. } => "domain",
        Call::Named { .. } => "named",
        Call::Xml { .. } => "xml",
        Call::Definition { .. } => "definition",
        Call::Busy { .. } => "busy",
        Call::Define { .. } => "define",
        Call::Undefine { .. } => "undefine",
        Call::Start { .. } => "start",
        Call::Shutdown { .. } => "shutdown",
        Call::Kill { .. } => "kill",
        Call::Autostart { .. } => "autostart",
        Call::Pool { .. } => "pool",
        Call::Refresh { .. } => "refresh",
        Call::Volume { .. } => "volume",
        Call::Volumes { .. } => "volumes",
        Call::CreateVolume { .. } => "create volume",
        Call::GrowVolume { .. } => "grow volume",
        Call::DeleteVolume { .. } => "delete volume",
        Call::Snapshots { .. } => "snapshots",
        Call::SnapshotDefinitions { .. } => "snapshot definitions",
        Call::DefineSnapshot { .. } => "define snapshot",
        Call::Snapshot { .. } => "snapshot",
        Call::Restore { .. } => "restore",
        Call::GuestAgent { .. } => "guest agent",
    }
}

/// What comes of a call, and why not.
pub type Answered<T> = Result<T, VirtError>;

/// A libvirt, or what stands for one.
pub trait Virt: Send + Sync + 'static {
    /// Asks, and waits for the answer; calls are done in the order in which
    /// they were asked. Whoever stops waiting does not stop what was asked.
    fn call(&self, call: Call) -> BoxFuture<'_, Answered<Reply>>;

    /// A number that rises whenever something about a domain changed.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// The calls by their names, with answers of their types.
#[derive(Debug)]
pub struct Asking<'a, V: ?Sized>(pub &'a V);

impl<V: ?Sized> Clone for Asking<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V: ?Sized> Copy for Asking<'_, V> {}

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $kind:ty),*) -> $out:ty = $call:expr, $reply:pat => $value:expr;)+) => {
        impl<V: Virt + ?Sized> Asking<'_, V> {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// [`VirtError`].
                pub async fn $name(self, $($arg: $kind),*) -> Answered<$out> {
                    let call = $call;
                    let what = name(&call);
                    match self.0.call(call).await? {
                        $reply => Ok($value),
                        _ => Err(VirtError::Strange(what)),
                    }
                }
            )+
        }
    };
}

answers! {
    /// The host.
    host() -> Host = Call::Host, Reply::Host(host) => host;
    /// All domains.
    domains() -> Vec<Domain> = Call::Domains, Reply::Domains(all) => all;
    /// A domain by its UUID.
    domain(uuid: VmId) -> Option<Domain> = Call::Domain { uuid }, Reply::Domain(domain) => domain;
    /// A domain by its name, whosever it is.
    named(name: &str) -> Option<Domain> = Call::Named { name: name.to_owned() }, Reply::Domain(domain) => domain;
    /// A domain's definition, as it is written down.
    definition(uuid: VmId) -> String = Call::Definition { uuid }, Reply::Text(text) => text;
    /// What a domain is now: where it runs, with the layers of its disks.
    xml(uuid: VmId) -> String = Call::Xml { uuid }, Reply::Text(text) => text;
    /// Whether libvirt works on a domain still.
    busy(uuid: VmId) -> bool = Call::Busy { uuid }, Reply::Busy(is) => is;
    /// What libvirt knows of the domain's snapshots, parents first.
    snapshot_definitions(uuid: VmId) -> Vec<String> = Call::SnapshotDefinitions { uuid }, Reply::Snapshots(all) => all;
    /// Has libvirt know a snapshot again.
    define_snapshot(uuid: VmId, xml: String) -> () = Call::DefineSnapshot { uuid, xml }, Reply::Done => ();
    /// Defines a domain, or changes its definition.
    define(xml: String) -> () = Call::Define { xml }, Reply::Done => ();
    /// Forgets a domain's definition.
    undefine(uuid: VmId) -> () = Call::Undefine { uuid }, Reply::Done => ();
    /// Starts a domain.
    start(uuid: VmId) -> () = Call::Start { uuid }, Reply::Done => ();
    /// Asks a domain to end by itself.
    shutdown(uuid: VmId) -> () = Call::Shutdown { uuid }, Reply::Done => ();
    /// Ends a domain at once.
    kill(uuid: VmId) -> () = Call::Kill { uuid }, Reply::Done => ();
    /// Whether a domain starts with its host.
    autostart(uuid: VmId, on: bool) -> () = Call::Autostart { uuid, on }, Reply::Done => ();
    /// A storage pool.
    pool(pool: &PoolName) -> Pool = Call::Pool { pool: pool.clone() }, Reply::Pool(pool) => pool;
    /// Has a pool look at its directory again.
    refresh(pool: &PoolName) -> () = Call::Refresh { pool: pool.clone() }, Reply::Done => ();
    /// A volume.
    volume(pool: &PoolName, name: &str) -> Option<Volume> =
        Call::Volume { pool: pool.clone(), name: name.to_owned() }, Reply::Volume(volume) => volume;
    /// Makes a volume.
    create_volume(pool: &PoolName, xml: String) -> () =
        Call::CreateVolume { pool: pool.clone(), xml }, Reply::Volume(_) | Reply::Done => ();
    /// Makes a volume larger.
    grow_volume(pool: &PoolName, name: &str, size: Size, open_in: Option<VmId>) -> () =
        Call::GrowVolume { pool: pool.clone(), name: name.to_owned(), size, open_in },
        Reply::Done | Reply::Volume(_) => ();
    /// Removes a volume.
    delete_volume(pool: &PoolName, name: &str) -> () =
        Call::DeleteVolume { pool: pool.clone(), name: name.to_owned() }, Reply::Done => ();
    /// The domain's snapshots.
    snapshots(uuid: VmId) -> Vec<String> = Call::Snapshots { uuid }, Reply::Snapshots(all) => all;
    /// Makes a snapshot.
    snapshot(uuid: VmId, name: SnapshotName) -> () = Call::Snapshot { uuid, name }, Reply::Done => ();
    /// Sets a domain's disk back to a snapshot.
    restore(uuid: VmId, name: SnapshotName) -> () = Call::Restore { uuid, name }, Reply::Done => ();
    /// A command to the QEMU guest agent.
    guest_agent(uuid: VmId, command: String, seconds: u32) -> String =
        Call::GuestAgent { uuid, command, seconds }, Reply::Text(text) => text;
}
