//! Why the library does not do what is asked.

use muster_protocol::envelope::BundleHash;
use muster_protocol::names::{PrincipalName, ScenarioName};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::text::printable_line;
use muster_protocol::units::Timestamp;
use muster_scenarios::bundle::UnpackError;
use muster_scenarios::fault::Fault;

use super::history::KEPT;
use super::{MAX_NAMES, MAX_NOTE, MAX_STORED};
use crate::store::kv::KvError;

/// Why a scenario was not stored or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// No such name.
    #[error("there is no scenario `{name}`")]
    NoScenario {
        /// As it was asked for.
        name: ScenarioName,
        /// One that is like it.
        near: Option<ScenarioName>,
    },
    /// It was there once.
    #[error("there is no scenario `{name}` any more: {by} removed it at {at}")]
    Removed {
        /// Which.
        name: ScenarioName,
        /// Who removed it.
        by: PrincipalName,
        /// When.
        at: Timestamp,
    },
    /// The name is there, the version is not.
    #[error("there is no version {version} of `{name}`, whose newest is {newest}")]
    NoVersion {
        /// Which scenario.
        name: ScenarioName,
        /// As it was asked for.
        version: u32,
        /// Its newest.
        newest: u32,
    },
    /// That version is a removal.
    #[error("version {version} of `{name}` is its removal: it holds nothing")]
    NothingThere {
        /// Which scenario.
        name: ScenarioName,
        /// Which version.
        version: u32,
    },
    /// Too old.
    #[error(
        "the files of version {version} of `{name}` are not kept any more, only those of its newest {KEPT} versions are"
    )]
    Forgotten {
        /// Which scenario.
        name: ScenarioName,
        /// Which version.
        version: u32,
    },
    /// No scenario has a bundle of that hash.
    #[error("no scenario here has the bundle {0}")]
    NoBundle(BundleHash),
    /// Somebody else was first.
    #[error(
        "`{name}` has changed meanwhile: {newest}; look at what changed, then store yours on top of it"
    )]
    Changed {
        /// Which.
        name: ScenarioName,
        /// What is there now, for people.
        newest: String,
    },
    /// Mistakes in it.
    #[error("`{name}` is not stored: it has {} {}", .faults.len(), if .faults.len() == 1 { "mistake" } else { "mistakes" })]
    Refused {
        /// Which.
        name: ScenarioName,
        /// All of them.
        faults: Vec<Fault>,
    },
    /// The name stands for something that is built in.
    #[error("`{0}` is built into muster; choose another name")]
    BuiltIn(ScenarioName),
    /// It came with muster.
    #[error("`{0}` came with muster and stays; store another one under its name to replace it")]
    Stock(ScenarioName),
    /// A file that cannot be one.
    #[error("this is no scenario: {0}")]
    Bundle(#[from] UnpackError),
    /// Too many names.
    #[error("there are {MAX_NAMES} scenarios; remove some first")]
    TooManyNames,
    /// Too much of everything.
    #[error("all scenarios together would hold more than {} MiB; remove some first", MAX_STORED >> 20)]
    Full,
    /// A note that is too long.
    #[error("a note has at most {MAX_NOTE} bytes, this one has {0}")]
    NoteTooLong(usize),
    /// It is in the store, and is not what it was.
    #[error("the bundle {hash} cannot be read: {why}; store the scenario again")]
    Damaged {
        /// Which.
        hash: BundleHash,
        /// Why not.
        why: String,
    },
    /// This broker may not write now.
    #[error("this broker is not the active one now; try again in a few seconds")]
    NotActive,
    /// A task panicked.
    #[error("a scenario could not be looked at: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// NATS.
    #[error("a scenario could not be stored or read: {0}")]
    Store(#[from] KvError),
}

impl LibraryError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::NotActive | Self::Store(_) => Kind::Unavailable,
            Self::NoScenario { .. }
            | Self::Removed { .. }
            | Self::NoVersion { .. }
            | Self::Forgotten { .. }
            | Self::NoBundle(_) => Kind::NotFound,
            Self::Changed { .. } | Self::TooManyNames => Kind::Conflict,
            Self::Refused { .. }
            | Self::BuiltIn(_)
            | Self::Stock(_)
            | Self::Bundle(_)
            | Self::NothingThere { .. }
            | Self::NoteTooLong(_) => Kind::InvalidRequest,
            Self::Full => Kind::TooLarge,
            Self::Damaged { .. } | Self::Task(_) => Kind::Internal,
        };
        let text = self.to_string();
        let problem = match text.split_once("; ") {
            Some((title, hint)) => Problem::new(kind, title).hint(hint),
            None => Problem::new(kind, text),
        };
        match self {
            Self::Refused { faults, .. } => {
                let lines: Vec<String> = faults
                    .iter()
                    .flat_map(|fault| {
                        let text = fault.to_string();
                        text.lines().map(printable_line).collect::<Vec<_>>()
                    })
                    .collect();
                problem
                    .detail(lines.join("\n"))
                    .hint("`muster scenario check FILE` finds them without storing it")
            }
            Self::NoScenario { near, .. } => problem.hint(match near {
                Some(near) => format!("did you mean `{near}`? `muster scenario list` shows all"),
                None => "`muster scenario list` shows what there is".to_owned(),
            }),
            Self::Removed { name, .. } => problem.hint(format!(
                "`muster scenario history {name}` shows its versions, `muster scenario rollback` brings one back"
            )),
            Self::NoVersion { name, .. } | Self::Forgotten { name, .. } => {
                problem.hint(format!("`muster scenario history {name}` shows what there is"))
            }
            _ => problem,
        }
    }
}
