//! Why a network was not made, or an address not given.

use std::net::IpAddr;

use muster_protocol::names::{BridgeName, LanName, VmName};
use muster_protocol::problem::{Kind, Problem};

use super::MAX_NETWORKS;
use super::pool::{Family, PlanError};
use crate::inventory::MAX_LABELS;
use crate::store::kv::KvError;

/// Why something about networks failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworksError {
    /// No such network.
    #[error("there is no network `{0}`; `muster network list` shows what there is")]
    None(LanName),
    /// The name is taken.
    #[error("there is a network `{0}`; take another name, or change it: --replace")]
    Exists(LanName),
    /// No network can be like that.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The same wire has the same addresses already.
    #[error(
        "the pool {pool} has addresses of {theirs} of network `{other}`, on the same bridge {bridge}; one of them must leave them out"
    )]
    Overlap {
        /// The pool that was asked for.
        pool: String,
        /// The pool that is there.
        theirs: String,
        /// Whose that is.
        other: LanName,
        /// The bridge of both.
        bridge: BridgeName,
    },
    /// Addresses are in use that would not be of it any more.
    #[error(
        "network `{lan}` would lose addresses that are in use: {}; keep their pool, or destroy these machines first",
        shown(.used)
    )]
    Loses {
        /// Which network.
        lan: LanName,
        /// What would be lost.
        used: Vec<(IpAddr, VmName)>,
    },
    /// Machines are in it.
    #[error("network `{lan}` is in use: {}; destroy these machines first", shown(.used))]
    Used {
        /// Which network.
        lan: LanName,
        /// By whom.
        used: Vec<(IpAddr, VmName)>,
    },
    /// Too many labels.
    #[error("{0} labels are too many for a network; give at most {MAX_LABELS}")]
    Labels(usize),
    /// Too many.
    #[error("there are {MAX_NETWORKS} networks; remove some first")]
    TooMany,
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("a network could not be stored or read: {0}")]
    Store(#[from] KvError),
}

/// Why a machine got no address. Nothing is reserved then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// No such network.
    #[error("there is no network `{0}`; `muster network list` shows what there is")]
    None(LanName),
    /// All addresses are in use.
    #[error(
        "network `{lan}` has no {family} address left: {used} of {pools} are in use; add a pool, or destroy machines"
    )]
    Exhausted {
        /// Which network.
        lan: LanName,
        /// Which family.
        family: Family,
        /// Its pools.
        pools: String,
        /// How many machines' addresses there are.
        used: usize,
    },
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// NATS.
    #[error("an address could not be reserved or given back: {0}")]
    Store(#[from] KvError),
}

/// The first few, and how many more.
fn shown(used: &[(IpAddr, VmName)]) -> String {
    const SHOWN: usize = 5;
    let mut shown: Vec<String> = used
        .iter()
        .take(SHOWN)
        .map(|(address, machine)| format!("{address} by {machine}"))
        .collect();
    if used.len() > SHOWN {
        shown.push(format!("and {} more", used.len() - SHOWN));
    }
    shown.join(", ")
}

fn problem(kind: Kind, text: &str) -> Problem {
    match text.rsplit_once("; ") {
        Some((title, hint)) => Problem::new(kind, title).hint(hint),
        None => Problem::new(kind, text),
    }
}

impl NetworksError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::None(_) => Kind::NotFound,
            Self::Exists(_)
            | Self::Overlap { .. }
            | Self::Loses { .. }
            | Self::Used { .. }
            | Self::TooMany => Kind::Conflict,
            Self::Plan(_) | Self::Labels(_) => Kind::InvalidRequest,
            Self::NotActive | Self::Store(_) => Kind::Unavailable,
        };
        problem(kind, &self.to_string())
    }
}

impl ReserveError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::None(_) => Kind::NotFound,
            Self::Exhausted { .. } => Kind::Conflict,
            Self::NotActive | Self::Store(_) => Kind::Unavailable,
        };
        problem(kind, &self.to_string())
    }
}

impl From<NetworksError> for crate::http::ApiError {
    fn from(error: NetworksError) -> Self {
        match error {
            NetworksError::Store(_) => Self::storage(&error),
            error => error.problem().into(),
        }
    }
}

impl From<ReserveError> for crate::http::ApiError {
    fn from(error: ReserveError) -> Self {
        match error {
            ReserveError::Store(_) => Self::storage(&error),
            error => error.problem().into(),
        }
    }
}
