//! Security groups in force on a hypervisor: updates come in, are written
//! down, and are what the kernel does; and it is watched that they stay so.
//!
//! [`Groups`] is a handle; what it speaks to is a thread, because everything
//! that is done waits for the disk, the kernel or `nft`. The thread works in
//! the network namespace of the thread that starts it.

mod engine;
mod flows;
mod listing;
mod log;
mod state;
mod sysctl;
mod tables;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use muster_firewall::groups::objects::Count;
use muster_protocol::firewall::{GroupsAnswer, GroupsMark, GroupsUpdate, Holding, RuleId};
use muster_protocol::names::GroupName;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::engine::Engine;
pub use self::engine::ForceError;
pub use self::log::LogError;
pub use self::state::{MAX_GROUPS, MAX_INTERFACES, MAX_MEMBERS, MAX_RULES, Refused};
pub use self::sysctl::SwitchError;
pub use self::tables::TableError;
use crate::nft::{self, Nft, NftError};

/// The time between two looks at whether somebody has changed something.
const WATCH: Duration = Duration::from_millis(250);
/// And while connections are to be looked at once more.
const BUSY: Duration = Duration::from_millis(50);

/// Where things are.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The directory of what is held. Nobody else's.
    pub dir: PathBuf,
    /// The program `nft`.
    pub nft: PathBuf,
    /// How long one call of it may take.
    pub nft_within: Duration,
}

impl Setting {
    /// With `nft` from the path, and the usual limit of its time.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            nft: PathBuf::from("nft"),
            nft_within: nft::WITHIN,
        }
    }
}

/// Why there are no groups on this machine: the capability is absent then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unable {
    /// No `nft`, or none that works.
    #[error(transparent)]
    Nft(NftError),
    /// The kernel has not all that the rules need.
    #[error(
        "the kernel cannot hold the rules of groups: {0}; it needs nf_tables with the bridge and inet families, sets, maps and connection tracking"
    )]
    Rules(NftError),
    /// The kernel has no nftables, or the agent may not use it.
    #[error(
        "the kernel does not say of its rules: {0}; is the agent root, and does the kernel have nf_tables?"
    )]
    Kernel(io::Error),
    /// Packets on bridges are shown to no rules.
    #[error(transparent)]
    Switches(#[from] SwitchError),
    /// It cannot be asked which connections there are.
    #[error(
        "the kernel does not say which connections it follows: {0}; `modprobe nf_conntrack_netlink`, and see that the agent is root"
    )]
    Connections(io::Error),
    /// What is held cannot be kept.
    #[error(transparent)]
    Log(#[from] LogError),
    /// There is no thread for it.
    #[error("no thread for the groups can be started: {0}")]
    Thread(io::Error),
}

/// The groups of this hypervisor have ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the groups of this hypervisor are not looked after any more; the agent is ending")]
pub struct Ended;

/// What is counted of the packets that each rule let pass first.
pub type Counters = BTreeMap<(GroupName, RuleId), Count>;

enum Asked {
    Update(Box<GroupsUpdate>, oneshot::Sender<GroupsAnswer>),
    Holding(oneshot::Sender<Option<(GroupsMark, Holding)>>),
    Counters(oneshot::Sender<Result<Counters, TableError>>),
}

/// The groups of this hypervisor.
#[derive(Clone, Debug)]
pub struct Groups {
    tell: mpsc::Sender<Asked>,
    answers: watch::Receiver<GroupsAnswer>,
}

impl Groups {
    /// Puts in force what is held, and looks after it until `stop`. What is in
    /// force stays so afterwards.
    ///
    /// # Errors
    /// [`Unable`]: nothing was done.
    pub async fn start(setting: Setting, stop: CancellationToken) -> Result<Self, Unable> {
        let (tell, asked) = mpsc::channel();
        let (say, answers) = watch::channel(GroupsAnswer::default());
        let (begun, begins) = oneshot::channel();
        let run = move || match Engine::start(&setting) {
            Ok(engine) => {
                say.send_replace(engine.answer());
                if begun.send(Ok(())).is_ok() {
                    run(engine, &asked, &say, &stop);
                }
            }
            Err(e) => drop(begun.send(Err(e))),
        };
        let thread = thread::Builder::new().name("muster-groups".to_owned());
        thread.spawn(run).map_err(Unable::Thread)?;
        let gone = |_| Unable::Thread(io::ErrorKind::BrokenPipe.into());
        begins.await.map_err(gone)??;
        Ok(Self { tell, answers })
    }

    /// Takes an update: it is on disk and, if the answer says so, in force
    /// when this returns.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn update(&self, update: GroupsUpdate) -> Result<GroupsAnswer, Ended> {
        self.ask(|tell| Asked::Update(Box::new(update), tell)).await
    }

    /// The newest of all that there is to say: after each update, and when
    /// something was found otherwise, or is otherwise now.
    #[must_use]
    pub fn answers(&self) -> watch::Receiver<GroupsAnswer> {
        self.answers.clone()
    }

    /// What is held, whole; nothing before the first update.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn holding(&self) -> Result<Option<(GroupsMark, Holding)>, Ended> {
        self.ask(Asked::Holding).await
    }

    /// What each rule has counted: the first packets of what it let pass.
    ///
    /// # Errors
    /// [`Ended`]; inside, that the kernel does not say.
    pub async fn counters(&self) -> Result<Result<Counters, TableError>, Ended> {
        self.ask(Asked::Counters).await
    }

    /// Waits until it has ended after its `stop`.
    pub async fn ended(mut self) {
        while self.answers.changed().await.is_ok() {}
    }

    async fn ask<T>(&self, what: impl FnOnce(oneshot::Sender<T>) -> Asked) -> Result<T, Ended> {
        let (tell, told) = oneshot::channel();
        self.tell.send(what(tell)).map_err(|_| Ended)?;
        told.await.map_err(|_| Ended)
    }
}

fn run(
    mut engine: Engine,
    asked: &mpsc::Receiver<Asked>,
    say: &watch::Sender<GroupsAnswer>,
    stop: &CancellationToken,
) {
    while !stop.is_cancelled() {
        let wait = if engine.is_busy() { BUSY } else { WATCH };
        match asked.recv_timeout(wait) {
            Ok(Asked::Update(update, tell)) => {
                let answer = engine.update(&update);
                say.send_replace(answer.clone());
                // Who asked may have gone.
                let _ = tell.send(answer);
                engine.flows();
            }
            Ok(Asked::Holding(tell)) => drop(tell.send(engine.holding())),
            Ok(Asked::Counters(tell)) => drop(tell.send(engine.counters())),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if engine.tick() {
            say.send_replace(engine.answer());
        }
    }
    engine.end();
}

/// For the boot, before there is a network, an agent or a broker: tables that
/// let nothing pass to or from a machine, and then what was last held.
///
/// # Errors
/// [`ForceError`]: nothing passes, if the first of the two could be done.
pub fn boot(dir: &Path, nft: impl Into<PathBuf>) -> Result<(), ForceError> {
    Engine::boot(dir, Nft::new(nft))
}
