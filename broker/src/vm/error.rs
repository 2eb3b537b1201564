//! Why something about machines was not done.

use muster_protocol::ids::RunId;
use muster_protocol::names::{AccountName, ImageName, LanName, NodeName, SshKeyName, VmName};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::Timestamp;
use muster_protocol::vm::MachineError;

use super::keep::RecordError;
use super::names::NamesError;
use super::placement::NoPlace;
use crate::groups::GroupsError;
use crate::resolve::ResolveError;
use crate::store::kv::KvError;
use crate::submit::Refused;

/// Hypervisors that are named in one answer.
const NAMED: usize = 200;

/// Why something about machines was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// Names.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// Sizes.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Something that contradicts itself, or is too much.
    #[error("{0}")]
    Wrong(String),
    /// Groups.
    #[error(transparent)]
    Groups(#[from] GroupsError),
    /// Its hypervisor cannot keep groups.
    #[error(
        "{node}, where {name} is, cannot keep security groups: its agent does not say that it can; upgrade or repair it (muster hypervisor list), or leave the machine without groups"
    )]
    NoGroupsThere {
        /// The machine.
        name: VmName,
        /// Its hypervisor.
        node: NodeName,
    },
    /// No such image.
    #[error("there is no image {0}; muster image list shows them")]
    NoImage(ImageName),
    /// No such network.
    #[error("there is no network {0}; muster network list shows them")]
    NoNetwork(LanName),
    /// No such key.
    #[error("there is no ssh key `{name}`; {}", meant(.near.as_deref(), "muster ssh-key list shows them"))]
    NoSshKey {
        /// Its name.
        name: SshKeyName,
        /// One that was perhaps meant.
        near: Option<String>,
    },
    /// A secret.
    #[error(
        "this is a private key, which nobody here should have; give the public one, of the file that ends in .pub"
    )]
    PrivateKey,
    /// No such account, and there are some.
    #[error("there is no account `{name}`; {}", meant(.near.as_deref(), "muster account list shows them"))]
    NoAccount {
        /// Its name.
        name: AccountName,
        /// One that was perhaps meant.
        near: Option<String>,
    },
    /// A node has the name.
    #[error(
        "a node is called {0} already, so the agent in a machine of that name could not enrol; choose another name, or remove that node"
    )]
    NodeThere(NodeName),
    /// The predicate for hypervisors.
    #[error(transparent)]
    On(#[from] ResolveError),
    /// No hypervisor.
    #[error(transparent)]
    NoPlace(#[from] NoPlace),
    /// The same, and hypervisors may not have been heard yet.
    #[error("no hypervisor that was heard since this broker began can take it; it is tried again")]
    NoPlaceYet(NoPlace),
    /// No hypervisor is even looked at.
    #[error("no node has the role hypervisor{}; give it: muster node role NODE +hypervisor", .on.as_ref().map(|on| format!(" and matches `{on}`")).unwrap_or_default())]
    NoHypervisors {
        /// The predicate.
        on: Option<String>,
    },
    /// No such machine.
    #[error("there is no machine {0}; muster vm list shows them")]
    NoVm(VmName),
    /// No such hypervisor.
    #[error("{0} is no hypervisor; muster hypervisor list shows them")]
    NoHypervisor(NodeName),
    /// A run is under way.
    #[error("{name} is {doing} by run {run}; wait for it, or cancel it: muster runs cancel {run}")]
    Busy {
        /// The machine.
        name: VmName,
        /// What is done with it.
        doing: &'static str,
        /// Which run, in short.
        run: String,
    },
    /// The name is another one's by now.
    #[error("{0} is another machine by now; ask again")]
    Another(VmName),
    /// A request was sent under the name of another one.
    #[error("this Idempotency-Key was used for another request (run {}); use a new key for a new request", .0.short())]
    Used(RunId),
    /// It cannot be looked what became of a request.
    #[error("it cannot be said now whether this was done before; try again in a few seconds")]
    NotKnown,
    /// Some of the machines of a request are there, and the others will not be.
    #[error("the broker ended while it began this, and only {} of {of} machines are made: {}; ask for the others in a request of their own", .made.len(), join(.made))]
    Partly {
        /// Those that are made.
        made: Vec<VmName>,
        /// How many were asked for.
        of: usize,
    },
    /// It was destroyed.
    #[error(
        "{name} was destroyed; its disk is kept until {until}: muster vm undelete {name} brings it back"
    )]
    Kept {
        /// The machine.
        name: VmName,
        /// Until when.
        until: Timestamp,
    },
    /// It cannot be said whether it is there.
    #[error(
        "it cannot be said whether {name} is there: {why}; muster looks again as soon as {node} is heard"
    )]
    Doubtful {
        /// The machine.
        name: VmName,
        /// Its hypervisor.
        node: NodeName,
        /// What came of the last run.
        why: String,
    },
    /// Nobody takes orders in it.
    #[error(
        "{0} has no agent: it is a customer's, nobody here takes orders in it, and so it cannot be configured; configure it from inside, or make one with an agent"
    )]
    NoAgent(VmName),
    /// It is not said what configures it.
    #[error("nothing is recorded that configures {0}; muster vm provision {0} SCENARIO says what")]
    NoConfigure(VmName),
    /// Its hypervisor has no room.
    #[error("{node}, where {name} is, has no room for it: {why}")]
    NoRoom {
        /// The machine.
        name: VmName,
        /// Its hypervisor.
        node: NodeName,
        /// What is missing.
        why: String,
    },
    /// It was asked for, and nobody knows whether that was heard.
    #[error("it cannot be said now whether {} {} {done}: {}", join(.names), if .names.len() == 1 { "is" } else { "are" }, .why.title)]
    Unsure {
        /// The machines.
        names: Vec<VmName>,
        /// What of them.
        done: &'static str,
        /// What was heard.
        why: Refused,
    },
    /// It is there.
    #[error("{0} is not destroyed; there is nothing to bring back")]
    NotKept(VmName),
    /// Its hypervisor has another key.
    #[error(
        "nothing is done with {name}: {node} has another key than when it was made, and nobody has said that it is the same host; if it is: muster hypervisor adopt {node}"
    )]
    NewKey {
        /// The machine.
        name: VmName,
        /// Its hypervisor.
        node: NodeName,
    },
    /// It has not said what is on it.
    #[error(
        "{0} has not said which machines it has, or cannot; nothing was changed; see what it says: muster hypervisor list"
    )]
    Silent(NodeName),
    /// Protected.
    #[error("{0} is protected and is not destroyed; muster vm unprotect {0} ends that")]
    Protected(VmName),
    /// Records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The rest of the broker.
    #[error("{}", .0.title)]
    Refused(Refused),
    /// NATS.
    #[error("what is kept of hypervisors could not be read or written: {0}")]
    Store(#[from] KvError),
}

/// Machines in a sentence.
fn join(names: &[VmName]) -> String {
    let most = 10;
    let mut named: Vec<String> = names.iter().take(most).map(ToString::to_string).collect();
    if names.len() > most {
        named.push(format!("{} more", names.len() - most));
    }
    named.join(", ")
}

fn meant(near: Option<&str>, else_: &str) -> String {
    match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => else_.to_owned(),
    }
}

impl From<Refused> for VmError {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl VmError {
    /// As it is shown at the edge.
    #[must_use]
    pub fn problem(self) -> Problem {
        let kind = match &self {
            Self::Refused(_) => Kind::Internal,
            Self::On(error) => return error.problem(),
            Self::Groups(error) => return error.problem(),
            Self::Names(_)
            | Self::Machine(_)
            | Self::Wrong(_)
            | Self::NoConfigure(_)
            | Self::PrivateKey => Kind::InvalidRequest,
            Self::NoImage(_)
            | Self::NoNetwork(_)
            | Self::NoSshKey { .. }
            | Self::NoAccount { .. }
            | Self::NoVm(_)
            | Self::NoHypervisor(_) => Kind::NotFound,
            Self::NoPlace(_) | Self::NoHypervisors { .. } | Self::NoRoom { .. } => Kind::NoMatch,
            Self::Another(_) => Kind::PlanGone,
            Self::NodeThere(_)
            | Self::Used(_)
            | Self::Partly { .. }
            | Self::Busy { .. }
            | Self::Kept { .. }
            | Self::Doubtful { .. }
            | Self::NotKept(_)
            | Self::NoAgent(_)
            | Self::NewKey { .. }
            | Self::Silent(_)
            | Self::NoGroupsThere { .. }
            | Self::Protected(_)
            | Self::Record(RecordError::Taken { .. } | RecordError::Changed(_)) => Kind::Conflict,
            Self::Record(RecordError::NotActive | RecordError::Store(_))
            | Self::Store(_)
            | Self::NotKnown
            | Self::Unsure { .. }
            | Self::NoPlaceYet(_) => Kind::Unavailable,
        };
        let text = self.to_string();
        let mut problem = match text.split_once("; ") {
            Some((title, hint)) => Problem::new(kind, title).hint(hint),
            None => Problem::new(kind, text.as_str()),
        };
        match self {
            Self::Refused(refused) => return *refused,
            Self::Unsure { names, done, .. } => {
                let show = names.first().map_or("NAME", VmName::as_str);
                problem = Problem::new(kind, text).hint(format!(
                    "what was asked for is written down, so it may be {done} yet, by this broker or the next: muster vm show {show}"
                ));
            }
            Self::NoPlace(none) | Self::NoPlaceYet(none) => {
                let mut lines: Vec<String> = none
                    .looked
                    .iter()
                    .take(NAMED)
                    .map(|looked| format!("{}: {}", looked.node, looked.why))
                    .collect();
                if none.looked.len() > NAMED {
                    lines.push(format!("and {} more", none.looked.len() - NAMED));
                }
                problem = problem.detail(lines.join("\n"));
            }
            _ => {}
        }
        problem
    }
}

impl From<VmError> for crate::http::ApiError {
    fn from(error: VmError) -> Self {
        error.problem().into()
    }
}
