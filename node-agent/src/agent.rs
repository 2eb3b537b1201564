//! The running agent: its parts, wired together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use muster_nft::host::{self, HostFirewall};
use muster_nft::nft::{self, Nft};
use muster_protocol::ids::InstanceId;
use muster_protocol::seal::OpenKey;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::bus::{Bus, Link, LinkParts};
use crate::config::Config;
use crate::executor::{Builtins, Executor};
use crate::facts::Gatherer;
use crate::freeze::Frost;
use crate::host::environment::Environment;
use crate::host::firewall::{self as host_firewall, Door, Firewall};
use crate::host::groups;
use crate::host::program::{own_id, own_path};
use crate::host::vm::{Brokers, How, Machines, Program, Setting, Virt, Watcher};
use crate::identity::Identity;
use crate::journal::{Journal, JournalError};
use crate::keeper::Keeper;
use crate::local::LocalRuns;
use crate::report::Reporter;
use crate::state::{StateDir, StateError};
use crate::steps::{Steps, StepsParts};
use crate::upgrade::{Intents, Pending, Resumed, Worker, resume};
use crate::verbs::firewall::HOST_DIR;
use crate::verify::Verifier;

/// How often the journal is looked through for what can go.
const PRUNE_EVERY: Duration = Duration::from_secs(1800);
/// How often it is looked whether it has to be done sooner.
const PRUNE_LOOK: Duration = Duration::from_secs(30);
/// How long an agent that ends tries to deliver its last outcomes.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// The journal's file in the state directory.
pub const JOURNAL_FILE: &str = "journal.db";

/// Why the agent did not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// How the agent ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ending {
    /// It was told to.
    Stopped,
    /// This process is to become that program, with the same arguments.
    Become(PathBuf),
}

/// Runs the agent until `stop`, then ends it in good order: no new steps,
/// the running ones waited for or ended, outcomes sent, goodbye said.
///
/// # Errors
/// [`AgentError`] when it cannot begin.
pub async fn run(config: Config, stop: CancellationToken) -> Result<Ending, AgentError> {
    run_on(config, None, stop).await
}

/// The same, with its machines on that libvirt in place of the one that the
/// configuration names: for hypervisors that are simulated.
///
/// # Errors
/// [`AgentError`] when it cannot begin.
pub async fn run_on(
    mut config: Config,
    libvirt: Option<Arc<dyn Virt>>,
    stop: CancellationToken,
) -> Result<Ending, AgentError> {
    let dir = StateDir::open(&config.state)?;
    let _lock = dir.lock()?;
    // Before anything is promised to anybody: what cannot be done is not
    // granted, and what waited to be confirmed is taken back.
    let firewall = open_firewall(&mut config).await;
    // The helpers end with it; the link stays until the last outcomes are out.
    let helpers = CancellationToken::new();
    let _ending = helpers.clone().drop_guard();
    let (groups, grouping) = match open_groups(&config, &helpers).await {
        Some((inlet, keeping)) => (Some(inlet), Some(keeping)),
        None => (None, None),
    };
    let (mut builtins, jobs) = Builtins::new(&config);
    if groups.is_some() {
        builtins.add(groups::CAPABILITY);
    }
    if let Some(cgroups) = builtins.commands().cgroups() {
        cgroups.sweep();
    } else {
        debug!("no control groups for commands");
    }
    let builtins = Arc::new(builtins);
    let executor: Arc<dyn Executor> = builtins.clone();
    let identity = Identity::load(&dir)?;
    let journal = Journal::open(&dir.path(JOURNAL_FILE))?;
    journal.begin().await?;
    let instance = InstanceId::random();
    let boot_id = crate::host::boot_id(&config.boot_id);
    let key = OpenKey::generate();
    let serial = identity.now().serial();
    {
        let enrolled = identity.now();
        info!(
            node = %enrolled.assignment().name,
            serial = enrolled.serial().0,
            version = crate::release::version(),
            %instance,
            "agent begins"
        );
    }
    let intents = Intents::new(dir.clone());
    let pending = match resume(&intents, &journal, serial, own_id).await? {
        Resumed::Nothing => None,
        Resumed::Pending(pending) => Some(*pending),
        Resumed::Become(program) => return Ok(Ending::Become(program)),
    };
    let (voice, bus) = Bus::new();
    builtins.ask(bus.clone());
    let watched = firewall.clone();
    if let Some(host) = firewall {
        let (brokers, nats) = (config.brokers.clone(), config.nats.clone());
        builtins.guard(Firewall::new(
            host,
            Door::new(identity.clone(), brokers, nats),
        ));
    }
    let watcher = config
        .capabilities
        .vm
        .then(|| hypervisor(&config, libvirt, &identity, &builtins));
    let reporter = Reporter::new();
    let keeper = Keeper::new();
    let (facts_now, facts) = watch::channel(Arc::new(Gatherer::first(&journal, &identity).await));
    // Before any step of an earlier start is looked at.
    let frost = Frost::load(dir.clone(), identity.clone());
    let steps = Steps::new(StepsParts {
        frost: frost.clone(),
        journal: journal.clone(),
        bus: bus.clone(),
        reporter: reporter.clone(),
        identity: identity.clone(),
        instance,
        boot_id: boot_id.clone(),
        limits: config.limits,
        executor,
        facts,
        key: key.clone(),
    });
    // Before anything is heard: who asks about an old step gets its outcome.
    let goes_on = pending.as_ref().map(Pending::request);
    steps
        .recover(config.command.kill_grace.get(), goes_on)
        .await?;
    let verifier = Arc::new(Verifier::new(identity.clone(), journal.clone()).await?);
    let gatherer = Gatherer {
        identity: identity.clone(),
        journal: journal.clone(),
        bus: bus.clone(),
        dir: config.facts_dir.clone(),
        environment: Environment::new(&config.command.environment),
        every: config.facts_every.get(),
    };
    let link = Link::new(LinkParts {
        frost,
        identity: identity.clone(),
        journal: journal.clone(),
        reporter: reporter.clone(),
        keeper: keeper.clone(),
        verifier,
        steps: steps.clone(),
        instance,
        boot_id: boot_id.clone(),
        nats: config.nats.clone(),
        key,
        voice,
        groups,
    });
    let hang_up = CancellationToken::new();
    let worker_identity = identity.clone();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(keeper.run(identity, config.brokers.clone(), helpers.clone()));
    tasks.spawn(gatherer.run(facts_now, helpers.clone()));
    tasks.spawn(
        reporter
            .clone()
            .run(journal.clone(), bus.clone(), helpers.clone()),
    );
    tasks.spawn(prune(
        journal.clone(),
        config.journal,
        steps.clone(),
        helpers.clone(),
    ));
    tasks.spawn(
        LocalRuns {
            dir,
            journal: journal.clone(),
            serial,
            boot_id: boot_id.clone(),
            kill_grace: config.command.kill_grace.get(),
        }
        .keep(bus.clone(), helpers.clone()),
    );
    if let Some(watched) = watched {
        tasks.spawn(host_firewall::look_after(
            watched,
            bus.clone(),
            helpers.clone(),
        ));
    }
    if let Some(grouping) = grouping {
        tasks.spawn(grouping.run(bus.clone(), helpers.clone()));
    }
    if let Some((watcher, machines)) = watcher {
        tasks.spawn(watcher.run(bus.clone(), helpers.clone()));
        let unused = config.vm.keep_images.get();
        tasks.spawn(machines.tidy(unused, helpers.clone()));
    }
    let (depart, mut departures) = mpsc::channel(1);
    let worker = tokio::spawn(
        Worker {
            jobs,
            intents,
            identity: worker_identity,
            brokers: config.brokers.clone(),
            steps: steps.clone(),
            depart,
        }
        .run(),
    );
    let held = pending.clone();
    let mut confirming = tokio::spawn({
        let (bus, journal, reporter) = (bus.clone(), journal.clone(), reporter.clone());
        async move {
            match pending {
                Some(pending) => pending.confirm(bus, journal, reporter, serial).await,
                None => None,
            }
        }
    });
    let mut confirmed = false;
    let mut link = tokio::spawn(link.run(hang_up.clone()));

    let mut _leaving = None;
    let ending = loop {
        tokio::select! {
        () = stop.cancelled() => break Ending::Stopped,
        // Everything is in place, and nothing runs here any more.
        Some(departure) = departures.recv() => {
            // While it lives, the worker waits, and so does the step.
            _leaving = Some(departure.failed);
            break Ending::Become(departure.program);
        }
        gone_back = &mut confirming, if !confirmed => {
            confirmed = true;
            if let Ok(Some(program)) = gone_back {
                break Ending::Become(program);
            }
        }
        // None of them ends before it is told to; one that does has failed,
        // and the service manager starts the agent anew.
        _ = &mut link => {
            error!("the connection's task has failed; the agent ends");
            break Ending::Stopped;
        }
        ended = tasks.join_next() => {
            if let Some(Err(e)) = ended {
                error!("a task of the agent has failed: {e}");
            }
            break Ending::Stopped;
        }
        }
    };
    match &ending {
        Ending::Stopped => {
            info!("agent ends");
            if let Some(pending) = held.filter(|_| !confirmed) {
                pending.hold();
            }
            steps.stop(config.limits.stop_grace.get()).await;
        }
        // The only step that is left is the upgrade, which goes on.
        Ending::Become(_) => info!("the agent becomes another one"),
    }
    if ending == Ending::Stopped {
        worker.abort();
    }
    confirming.abort();
    helpers.cancel();
    let gone = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_millis(500), gone)
        .await
        .is_err()
    {
        // One waits for an answer or a program. Nothing is lost with it.
        tasks.shutdown().await;
    }
    if let Ok(voice) = bus.voice() {
        let _ = tokio::time::timeout(LAST_WORDS, reporter.flush(&journal, &voice)).await;
    }
    journal.settle().await;
    match &ending {
        Ending::Stopped => {
            hang_up.cancel();
            if !link.is_finished() {
                let _ = tokio::time::timeout(LAST_WORDS, link).await;
            }
        }
        // Without a goodbye: it is back in a moment.
        Ending::Become(_) => link.abort(),
    }
    Ok(ending)
}

/// This node's own firewall, where scenarios may change it and this system can.
async fn open_firewall(config: &mut Config) -> Option<HostFirewall> {
    let dir = config.state.join(HOST_DIR);
    let granted = config.capabilities.firewall;
    if !granted && !dir.exists() {
        return None;
    }
    let program = match own_path() {
        Ok(program) => program,
        Err(e) => {
            error!(
                "the capability `firewall` is not granted: the agent does not know where it is itself: {e}"
            );
            config.capabilities.firewall = false;
            return None;
        }
    };
    let mut setting = host::Setting::new(dir, Nft::new(nft::find()), program);
    setting.boot_id.clone_from(&config.boot_id);
    let opened = tokio::task::spawn_blocking(move || {
        let restored = host::restore(&setting);
        let opened = HostFirewall::open(setting);
        (restored, opened)
    });
    let (restored, opened) = match opened.await {
        Ok(both) => both,
        Err(e) => {
            error!("the firewall cannot be looked at: {e}");
            config.capabilities.firewall = false;
            return None;
        }
    };
    match restored {
        Ok(restored) => {
            if let Some((change, ended)) = &restored.rolled_back {
                warn!(%change, "a change of the firewall was cut: {ended}; the old rules are in force");
            }
            if let Some(change) = &restored.loaded {
                info!(%change, "the firewall's confirmed rules are in force");
            }
            if restored.busy {
                warn!("somebody else changes the firewall at this moment");
            }
        }
        Err(e) => error!("the firewall: {e}"),
    }
    match opened {
        Ok(host) => granted.then_some(host),
        Err(e) => {
            error!("the capability `firewall` is not granted: {e}");
            config.capabilities.firewall = false;
            None
        }
    }
}

/// The security groups of this hypervisor, where it is one that may have
/// firewalls.
async fn open_groups(
    config: &Config,
    helpers: &CancellationToken,
) -> Option<(groups::Inlet, groups::Keeping)> {
    if !config.capabilities.vm || !config.capabilities.firewall {
        return None;
    }
    groups::open(&config.state, &nft::find(), helpers.clone()).await
}

/// The machines of this node, for scenarios and for the broker.
fn hypervisor(
    config: &Config,
    libvirt: Option<Arc<dyn Virt>>,
    identity: &Identity,
    builtins: &Builtins,
) -> (Watcher, Machines) {
    let program = |idle| -> Arc<dyn Virt> {
        if let Some(libvirt) = &libvirt {
            return libvirt.clone();
        }
        Arc::new(Program::new(How {
            program: config.vm.program.clone(),
            uri: config.vm.uri.clone(),
            timeout: config.vm.call_timeout.get(),
            idle,
        }))
    };
    let brokers = Brokers::new(identity.clone(), config.brokers.clone());
    let setting = Setting {
        cluster: identity.now().stored.credentials.cluster,
        pool: config.vm.pool.clone(),
        kind: config.vm.kind(),
        console: config.vm.console_dir.clone(),
    };
    // Each has one of its own: what takes long holds nobody else up.
    let machines = Machines::new(program(true), program(true), Arc::new(brokers), setting)
        .patient(config.vm.call_timeout.get());
    builtins.keep(machines.clone());
    (Watcher::new(program(false), machines.clone()), machines)
}

async fn prune(
    journal: Journal,
    keep: crate::config::Retention,
    steps: Steps,
    stop: CancellationToken,
) {
    loop {
        steps.output(true);
        match journal.prune(keep).await {
            Ok(pruned) if pruned.outcomes + pruned.outputs > 0 => {
                debug!(
                    outcomes = pruned.outcomes,
                    outputs = pruned.outputs,
                    "journal pruned"
                );
            }
            Ok(_) => {}
            Err(e) => error!("the journal cannot be pruned: {e}"),
        }
        let next = tokio::time::Instant::now() + PRUNE_EVERY;
        // Sooner when much output came.
        while tokio::time::Instant::now() < next && steps.output(false) < keep.max_output_bytes / 8
        {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PRUNE_LOOK) => {}
            }
        }
    }
}
