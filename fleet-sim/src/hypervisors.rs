//! Simulated hypervisors: whole agents in this process, each on a libvirt that
//! is only in memory.
//!
//! They are the real agent, with its own journal, scenarios and `vm::` calls;
//! only [`Memory`] stands where libvirt is. Nothing but `vm` is granted, so
//! that no run executes anything on this machine. Guests never boot: a
//! machine is up as soon as its domain is started (`--no-agent`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_agent::agent::{self, AgentError, JOURNAL_FILE};
use muster_agent::config::{Capabilities, Commands, Config, Vm};
use muster_agent::enroll::{EnrollError, Invitation, enroll};
use muster_agent::host::vm::{Having, Memory};
use muster_agent::identity::Enrolled;
use muster_agent::state::{StateDir, StateError};
use muster_client::{Client, ClientError, Endpoint};
use muster_protocol::api::{InviteToken, Secret};
use muster_protocol::names::{NodeName, RoleName};
use muster_protocol::units::Span;
use muster_protocol::vm::{GuestState, Size, VmId};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::enrol::{EnrolError, Plan, Source, invite};
use crate::pattern::LabelPattern;
use crate::store::Common;

/// The role that makes a node one that machines are put on.
const ROLE: &str = "hypervisor";
/// Where what they write is kept, where nobody says: it is as quick as memory.
const QUICK: &str = "/dev/shm";
/// How often the broker is asked whether it has heard all of them.
const LOOK: Duration = Duration::from_millis(100);
/// How long they may take to end.
const GOODBYE: Duration = Duration::from_secs(20);
/// No facts of this machine are gathered more often.
const FACTS_EVERY: Span = Span::from_secs(3600);

/// Why there are no simulated hypervisors.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// A place for what they write.
    #[error("cannot make or empty {}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The role.
    #[error("no role `{ROLE}` can be given: {0}")]
    Role(String),
    /// Invites.
    #[error(transparent)]
    Invite(#[from] EnrolError),
    /// An enrolment.
    #[error("{name} is not enrolled: {source}")]
    Enroll {
        /// Which hypervisor.
        name: NodeName,
        /// Why not.
        source: EnrollError,
    },
    /// What an earlier start has kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The broker.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl HypervisorError {
    /// Exit code of the command line.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Invite(e) => e.exit_code(),
            Self::Enroll { source, .. } => source.exit_code(),
            Self::Client(e) => e.exit_code(),
            Self::Directory { .. } | Self::Role(_) | Self::State(_) => 1,
        }
    }
}

/// Which hypervisors are wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The broker.
    pub url: String,
    /// A certificate authority for its HTTPS, PEM, in place of the cluster's.
    pub ca: Option<String>,
    /// A token that may invite and read machines.
    pub token: Secret,
    /// Their names.
    pub names: Vec<NodeName>,
    /// Their labels.
    pub labels: Vec<LabelPattern>,
    /// Processors of each.
    pub cpus: u32,
    /// Memory of each.
    pub memory: Size,
    /// The pool of each.
    pub disk: Size,
    /// Where they keep identities; nowhere, when absent.
    pub state: Option<PathBuf>,
}

/// A machine that a simulated hypervisor has.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Machine {
    /// Its UUID.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: GuestState,
    /// The hardware addresses of its interfaces.
    pub macs: Vec<String>,
    /// The addresses that it was given.
    pub addresses: Vec<String>,
}

/// What a simulated hypervisor has.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Has {
    /// Its name.
    pub name: NodeName,
    /// Its domains.
    pub machines: Vec<Machine>,
    /// Disks in its pool.
    pub volumes: Vec<String>,
    /// Files in its pool that are no images.
    pub files: Vec<String>,
}

struct One {
    name: NodeName,
    pool: PathBuf,
    memory: Memory,
}

/// Hypervisors that live.
pub struct Hypervisors {
    each: Vec<One>,
    common: Option<Common>,
    client: Client,
    stop: CancellationToken,
    agents: JoinSet<()>,
    /// Gone with the last of them.
    _dir: Option<tempfile::TempDir>,
}

impl Hypervisors {
    /// Enrols those that have no identity yet, and lets all of them live.
    ///
    /// # Errors
    /// [`HypervisorError`].
    pub async fn begin(wanted: Wanted) -> Result<Self, HypervisorError> {
        let (root, dir) = match &wanted.state {
            Some(state) => (state.join("hypervisors"), None),
            None => {
                let dir = scratch()?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        let homes: Vec<PathBuf> = wanted
            .names
            .iter()
            .map(|name| root.join(name.as_str()))
            .collect();
        let mut fresh = Vec::new();
        for (name, home) in wanted.names.iter().zip(&homes) {
            let state = make(home)?;
            if Enrolled::load(&state)?.is_none() {
                fresh.push((name.clone(), state));
            }
        }
        enrol(&wanted, fresh).await?;
        let mut endpoint = Endpoint::new(&wanted.url)?.token(wanted.token.clone());
        let (stop, mut agents, mut common) = (CancellationToken::new(), JoinSet::new(), None);
        let mut each = Vec::new();
        for (name, home) in wanted.names.iter().zip(&homes) {
            let pool = home.join("pool");
            let memory = Memory::new(Having {
                cpus: wanted.cpus,
                memory: wanted.memory,
                disk: wanted.disk,
                directory: pool.clone(),
            });
            if common.is_none()
                && let Some(enrolled) = Enrolled::load(&StateDir::open(&home.join("agent"))?)?
            {
                let stored = enrolled.stored;
                common = Some(Common {
                    root: stored.root,
                    ca: wanted.ca.clone().or(stored.ca),
                    nats_urls: stored.credentials.nats_urls,
                    nats_ca: stored.credentials.nats_ca,
                });
            }
            agents.spawn(live(
                name.clone(),
                config(home),
                memory.clone(),
                stop.clone(),
            ));
            let name = name.clone();
            each.push(One { name, pool, memory });
        }
        let ca = wanted.ca.or_else(|| common.as_ref()?.ca.clone());
        if let Some(ca) = ca {
            endpoint = endpoint.ca_pem(ca);
        }
        Ok(Self {
            each,
            common,
            client: Client::new(endpoint)?,
            stop,
            agents,
            _dir: dir,
        })
    }

    /// What they learnt of the cluster.
    #[must_use]
    pub fn common(&self) -> Option<&Common> {
        self.common.as_ref()
    }

    /// Returns when the broker knows what each of them has.
    pub async fn ready(&self) {
        loop {
            match self.client.hypervisors().await {
                Ok(all) => {
                    let is_known = |name: &NodeName| {
                        let found = all.iter().find(|one| one.node == *name);
                        found.is_some_and(|one| one.connected && one.capacity.is_some())
                    };
                    if self.each.iter().all(|one| is_known(&one.name)) {
                        return;
                    }
                }
                Err(e) => warn!("the broker does not say which hypervisors it has heard: {e}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What each of them has now.
    #[must_use]
    pub fn have(&self) -> Vec<Has> {
        self.each.iter().map(One::has).collect()
    }

    /// Ends them in good order.
    pub async fn end(&mut self) {
        self.stop.cancel();
        let all = async { while self.agents.join_next().await.is_some() {} };
        if tokio::time::timeout(GOODBYE, all).await.is_err() {
            warn!("some hypervisors did not end in time and are cut off");
        }
    }
}

impl One {
    fn has(&self) -> Has {
        let machines = self.memory.domains().into_iter().map(|domain| {
            let nics = domain.machine.map(|machine| machine.nics);
            let nics = nics.unwrap_or_default();
            Machine {
                id: domain.uuid,
                name: domain.name,
                state: domain.state,
                macs: nics.iter().map(|nic| nic.mac.to_string()).collect(),
                addresses: nics
                    .iter()
                    .flat_map(|nic| &nic.addresses)
                    .map(ToString::to_string)
                    .collect(),
            }
        });
        let mut files: Vec<String> = fs::read_dir(&self.pool)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.contains("-image-"))
            .collect();
        files.sort();
        Has {
            name: self.name.clone(),
            machines: machines.collect(),
            volumes: self.memory.volumes(),
            files,
        }
    }
}

/// A directory in memory where there is one.
fn scratch() -> Result<tempfile::TempDir, HypervisorError> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("muster-hypervisors-");
    let made = builder.tempdir_in(QUICK).or_else(|_| builder.tempdir());
    made.map_err(|source| HypervisorError::Directory {
        path: std::env::temp_dir(),
        source,
    })
}

/// The directories of a hypervisor. What an earlier one had in its pool went
/// with its memory.
fn make(home: &Path) -> Result<StateDir, HypervisorError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| HypervisorError::Directory { path, source }
    };
    let pool = home.join("pool");
    match fs::remove_dir_all(&pool) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&pool)(e)),
        _ => {}
    }
    for dir in ["pool", "console", "facts.d"].map(|name| home.join(name)) {
        fs::create_dir_all(&dir).map_err(failed(&dir))?;
    }
    let fact = home.join("facts.d/simulated.json");
    fs::write(&fact, "{\"simulated\": true}\n").map_err(failed(&fact))?;
    Ok(StateDir::create(&home.join("agent"))?)
}

async fn enrol(wanted: &Wanted, fresh: Vec<(NodeName, StateDir)>) -> Result<(), HypervisorError> {
    if fresh.is_empty() {
        return Ok(());
    }
    let role: RoleName = ROLE
        .parse()
        .map_err(|e: muster_protocol::names::NameError| HypervisorError::Role(e.to_string()))?;
    let plan = Plan {
        url: wanted.url.clone(),
        ca: wanted.ca.clone(),
        source: Source::Api(wanted.token.clone()),
        names: fresh.iter().map(|(name, _)| name.clone()).collect(),
        roles: vec![role],
        labels: wanted.labels.clone(),
    };
    let invites: Vec<InviteToken> = invite(&plan).await?;
    info!(hypervisors = invites.len(), "enrolling");
    for ((name, state), token) in fresh.into_iter().zip(invites) {
        let invitation = Invitation {
            urls: vec![wanted.url.clone()],
            token: token.text(),
            ca: wanted.ca.clone(),
            again: false,
        };
        enroll(&state, &invitation)
            .await
            .map_err(|source| HypervisorError::Enroll { name, source })?;
    }
    Ok(())
}

/// Nothing but machines, and those in memory.
fn config(home: &Path) -> Config {
    Config {
        state: home.join("agent"),
        facts_dir: home.join("facts.d"),
        facts_every: FACTS_EVERY,
        capabilities: Capabilities {
            command: false,
            shell: false,
            upgrade: false,
            file: false,
            package: false,
            service: false,
            user: false,
            http: false,
            puppet: false,
            reboot: false,
            vm: true,
            firewall: false,
            firewall_raw: false,
        },
        command: Commands {
            cgroup: false,
            ..Commands::default()
        },
        vm: Vm {
            console_dir: home.join("console"),
            ..Vm::default()
        },
        ..Config::default()
    }
}

/// An agent, begun anew when it ends by itself, as a service manager does.
async fn live(name: NodeName, config: Config, memory: Memory, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let libvirt = Arc::new(memory.clone());
        let ran = Box::pin(agent::run_on(config.clone(), Some(libvirt), stop.clone())).await;
        match ran {
            Ok(_) if stop.is_cancelled() => return,
            Ok(_) => warn!(hypervisor = %name, "an agent has ended by itself"),
            Err(e @ (AgentError::State(_) | AgentError::Journal(_))) => {
                let journal = config.state.join(JOURNAL_FILE);
                warn!(hypervisor = %name, journal = %journal.display(), "an agent cannot begin: {e}");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}
