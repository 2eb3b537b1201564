//! What machines need of the rest of the broker, as narrow as they need it.

use std::net::IpAddr;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use muster_protocol::api::{Configure, InviteToken, RunRequest};
use muster_protocol::ids::{RunId, Serial};
use muster_protocol::names::{
    BridgeName, ImageName, LabelKey, LabelValue, LanName, NodeName, PrincipalName, RoleName, VmName,
};
use muster_protocol::problem::Problem;
use muster_protocol::run::RunPhase;
use muster_protocol::units::Timestamp;
use muster_protocol::vm::{ImageRef, VmId};

use crate::authz::Caller;
use crate::submit::{Asked, Refused};

/// Addresses of one interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addresses {
    /// The bridge of the network.
    pub bridge: BridgeName,
    /// Each with the length of its prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Gateways.
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// The largest packet.
    pub mtu: Option<u16>,
}

/// Who gives addresses.
pub trait Reserves: Send + Sync {
    /// Whether there is such a network.
    fn knows(&self, lan: &LanName) -> bool;

    /// Addresses of a machine in a network: the same ones, however often they
    /// are asked for.
    fn reserve<'a>(
        &'a self,
        lan: &'a LanName,
        machine: VmId,
        name: &'a VmName,
    ) -> BoxFuture<'a, Result<Addresses, Refused>>;

    /// The machine has no addresses any more, in any network.
    fn release(&self, machine: VmId) -> BoxFuture<'_, Result<(), Refused>>;

    /// The machines that have addresses.
    fn holders(&self) -> Vec<VmId>;
}

/// Who knows images.
pub trait Pictures: Send + Sync {
    /// The image of that name.
    fn get(&self, name: &ImageName) -> Option<ImageRef>;
}

/// What became of a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Look {
    /// It cannot be said now.
    NotNow,
    /// There is none of that id.
    Nothing,
    /// It has not ended.
    Open,
    /// It has.
    Ended {
        /// How.
        phase: RunPhase,
        /// Why not well; empty else.
        why: String,
        /// When.
        at: Timestamp,
    },
}

/// What is known of a run that a request names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Before {
    /// It cannot be said now.
    NotNow,
    /// There is none of that id.
    Nothing,
    /// It is what is asked for.
    Same,
    /// It is something else.
    Other,
}

/// Whether anything of a run was ever begun.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Begun {
    /// It cannot be said now.
    NotNow,
    /// Nothing: there is none, or it was cut while it was written down, and
    /// nothing was sent.
    Never,
    /// It was.
    Yes,
}

/// Parameters that say which machine is meant, and how it is: what is asked
/// for of a machine that has changed since is the same all the same.
pub(super) const WHICH: [&str; 2] = ["id", "machine"];

/// Who runs things.
pub trait Works: Send + Sync {
    /// Asks for a run, once however often it is asked for under that id.
    fn submit<'a>(
        &'a self,
        caller: &'a Caller,
        request: RunRequest,
        asked: Asked,
    ) -> BoxFuture<'a, Result<(), Refused>>;

    /// Why nothing is begun now, if something stops everything; what takes
    /// back what a run did is not stopped.
    fn stopped(&self, takes_back: bool) -> Option<Refused>;

    /// Whether anything of a run was ever begun.
    fn begun(&self, run: RunId) -> BoxFuture<'_, Begun>;

    /// Whether a run of that id is what is asked for, whichever machine it is
    /// done with.
    fn before<'a>(&'a self, request: &'a RunRequest, run: RunId) -> BoxFuture<'a, Before>;

    /// What became of a run.
    fn look(&self, run: RunId) -> BoxFuture<'_, Look>;

    /// Whether a scenario could configure a machine: it is there, takes these
    /// parameters, and none of them is secret.
    fn check<'a>(&'a self, configure: &'a Configure) -> BoxFuture<'a, Result<(), Refused>>;

    /// Says whenever something may have ended for which runs were not taken.
    fn eased(&self) -> BoxStream<'static, ()>;
}

/// An invite for the agent in a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct ForMachine {
    /// The name of its node.
    pub name: NodeName,
    /// Roles.
    pub roles: Vec<RoleName>,
    /// Labels.
    pub labels: std::collections::BTreeMap<LabelKey, LabelValue>,
    /// Who had the machine made.
    pub by: PrincipalName,
    /// Until when it works.
    pub expires: Timestamp,
}

/// Who lets agents in.
pub trait Doorman: Send + Sync {
    /// A token that nobody has yet.
    fn token(&self) -> InviteToken;

    /// From now on it lets one machine in.
    fn invite<'a>(
        &'a self,
        token: &'a InviteToken,
        invite: ForMachine,
    ) -> BoxFuture<'a, Result<(), Refused>>;

    /// It lets nobody in from now on; the node that it has let in.
    fn void<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Serial>, Refused>>;

    /// Nothing is known of an invite any more: also whoever was let in by it,
    /// and has not heard so, is refused from now on.
    fn bar<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Refused>>;

    /// The node that has taken a node's place, by an invite for a new key.
    fn successor(&self, node: Serial) -> BoxFuture<'_, Result<Option<Serial>, Refused>>;

    /// The node goes for ever, if it is there still.
    fn remove<'a>(
        &'a self,
        node: Serial,
        by: &'a PrincipalName,
    ) -> BoxFuture<'a, Result<(), Refused>>;

    /// Where brokers are.
    fn brokers(&self) -> Vec<String>;
}

/// As it is shown at the edge.
pub(super) fn refused(problem: Problem) -> Refused {
    Box::new(problem)
}
