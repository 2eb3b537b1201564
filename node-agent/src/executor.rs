//! The one door to an effect: a call goes in, a result comes out.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_protocol::envelope::{Call, Mode};
use muster_protocol::ids::{RequestId, Serial};
use muster_protocol::names::NodeName;
use muster_protocol::note::Note;
use muster_protocol::run::{NodeResult, Outcome};
use muster_protocol::text::printable;
use muster_protocol::units::Span;
use muster_protocol::wire::Assignment;
use muster_scenarios::command::{self, Command};
use muster_scenarios::secret::Secrets;
use muster_scenarios::upgrade;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::config::{Capabilities, Config};
use crate::host::cgroup::Cgroups;
use crate::host::environment::{Environment, marks};
use crate::host::firewall::Firewall;
use crate::host::process::{self, End, Sink, Spec, Why};
use crate::host::tree::Ended;
use crate::host::vm::Machines;
use crate::scenario::{BundleStore, Fetcher, Past, Restarts, Scenarios};
use crate::upgrade::{Job, Unfit, Upgrades};

/// Where bundles are in the state directory.
pub(crate) const BUNDLES: &str = "bundles";

/// What a call may use while it runs.
pub struct Step<'a> {
    /// Which.
    pub request: RequestId,
    /// This node.
    pub serial: Serial,
    /// Its name when the step began.
    pub name: NodeName,
    /// What the operators gave it, when the step began.
    pub assignment: &'a Assignment,
    /// What it knows about itself.
    pub facts: Arc<Value>,
    /// How long it may take.
    pub timeout: Duration,
    /// Bytes of output kept.
    pub output_bytes: u64,
    /// Where output goes.
    pub sink: &'a mut dyn Sink,
    /// Ends it.
    pub cancel: &'a CancellationToken,
    /// The secret parameters that came for it.
    pub secrets: Secrets,
    /// Who remembers that it restarts the machine, where it can go on after
    /// that.
    pub restarts: Option<Arc<dyn Restarts>>,
    /// What it did before the machine was restarted, when it goes on.
    pub resume: Option<Past>,
    /// What is said before anything else.
    pub begins_with: Option<Note>,
}

/// Something that executes calls. The native `command` is one; the engine
/// for scenarios is the other.
pub trait Executor: Send + Sync {
    /// Whether the call is one of this executor's, is well formed, and is
    /// granted on this node.
    ///
    /// # Errors
    /// [`Refused`]; nothing has happened then.
    fn check(&self, call: &Call) -> Result<(), Refused>;

    /// What has to come from elsewhere before the call can be executed, until
    /// then at most; `None` when nothing has. It is waited for after the
    /// request is written down, and before `started` is.
    ///
    /// # Errors
    /// Why it is declined, for people.
    fn fetch<'a>(
        &'a self,
        _call: &'a Call,
        _until: Instant,
    ) -> Option<BoxFuture<'a, Result<(), String>>> {
        None
    }

    /// Before `started` is written down: what a later start of the agent must
    /// know to finish the step.
    ///
    /// # Errors
    /// Why it is declined, for people.
    fn prepare<'a>(
        &'a self,
        _call: &'a Call,
        _request: RequestId,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether a call may be executed once more, from its beginning, when
    /// nobody knows how far it came.
    fn may_repeat<'a>(&'a self, _call: &'a Call) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    /// A step that was prepared did not begin after all.
    fn abandon(&self, _request: RequestId) {}

    /// Why the old rules of the firewall are in force again after a step that
    /// was cut, if they are.
    fn rolled_back(&self, _request: RequestId) -> BoxFuture<'_, Option<String>> {
        Box::pin(std::future::ready(None))
    }

    /// Executes it. The result's reason is for people; who cancelled is said
    /// by the caller. `None` when the machine is being restarted: the step
    /// goes on after it ([`Step::restarts`]).
    fn call<'a>(&'a self, call: &'a Call, step: Step<'a>) -> BoxFuture<'a, Option<NodeResult>>;

    /// What this node grants, by name.
    fn capabilities(&self) -> Vec<String>;
}

/// Why a call is declined before anything happens.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// This node does not have the scenario.
    #[error("this agent does not have the scenario `{0}` in that version")]
    Bundle(String),
    /// The scenario has no such function.
    #[error("`{scenario}` has no function `{function}`")]
    Function {
        /// The scenario.
        scenario: String,
        /// The function.
        function: String,
    },
    /// The node's own policy.
    #[error("this node does not grant the capability `{0}`")]
    Capability(&'static str),
    /// The parameters.
    #[error("{0}")]
    Parameters(#[from] command::CommandError),
    /// The release.
    #[error("{0}")]
    Upgrade(#[from] Unfit),
    /// Parameters that are no map.
    #[error("the parameters of a scenario's function are a map of names and values")]
    Shape,
    /// It cannot say what it would do.
    #[error("a command cannot be tried in check mode: nobody knows what it would do")]
    CheckMode,
}

/// Everything that this agent executes: what is built in, and the scenarios
/// that it has.
pub struct Builtins {
    commands: Arc<Commands>,
    upgrades: Upgrades,
    scenarios: Scenarios,
    fetcher: Fetcher,
    /// What this node can do beside executing anything.
    beside: Vec<&'static str>,
}

impl Builtins {
    /// From the configuration, with what the system offers now; and the
    /// upgrades that the agent as a whole is to do.
    #[must_use]
    pub fn new(config: &Config) -> (Self, mpsc::Receiver<Job>) {
        let (upgrades, jobs) = Upgrades::new(config);
        let commands = Arc::new(Commands::new(config));
        let fetcher = Fetcher::new(BundleStore::new(config.state.join(BUNDLES)));
        let cgroups = commands.cgroups().cloned();
        let builtins = Self {
            scenarios: Scenarios::new(config, Arc::new(fetcher.clone()), cgroups),
            fetcher,
            commands,
            upgrades,
            beside: Vec::new(),
        };
        (builtins, jobs)
    }

    /// From now on the broker is told that this node can do that, too.
    pub fn add(&mut self, capability: &'static str) {
        self.beside.push(capability);
    }

    /// From now on the broker is asked for scenarios that are not here.
    pub fn ask(&self, bus: Bus) {
        self.fetcher.ask(bus);
    }

    /// From now on scenarios have the machines of this hypervisor.
    pub fn keep(&self, machines: Machines) {
        self.scenarios.keep(machines);
    }

    /// From now on scenarios have this node's firewall.
    pub fn guard(&self, firewall: Firewall) {
        self.scenarios.guard(firewall);
    }

    /// Commands.
    #[must_use]
    pub fn commands(&self) -> &Commands {
        &self.commands
    }
}

impl Builtins {
    /// Whether it is the call of a scenario that is there or can be had. One
    /// that is nowhere is declined as an unknown version of something built
    /// in, and so is what has such a name: it is never stored.
    fn is_scenario(&self, call: &Call) -> bool {
        let builtin = [command::NAME, upgrade::NAME].contains(&call.scenario.as_str());
        !builtin && self.scenarios.may_have(call.bundle)
    }
}

impl Executor for Builtins {
    fn check(&self, call: &Call) -> Result<(), Refused> {
        if call.bundle == upgrade::bundle() {
            self.upgrades.check(call).map(|_| ())
        } else if self.is_scenario(call) {
            self.scenarios.check(call)
        } else {
            self.commands.check(call)
        }
    }

    fn fetch<'a>(
        &'a self,
        call: &'a Call,
        until: Instant,
    ) -> Option<BoxFuture<'a, Result<(), String>>> {
        if !self.is_scenario(call) || !self.fetcher.lacks(call.bundle) {
            return None;
        }
        Some(Box::pin(async move {
            let fetched = self.fetcher.fetch(call.bundle, until).await;
            fetched.map_err(|error| format!("{}: {error}", call.scenario))
        }))
    }

    fn prepare<'a>(
        &'a self,
        call: &'a Call,
        request: RequestId,
    ) -> BoxFuture<'a, Result<(), String>> {
        if call.bundle == upgrade::bundle() {
            self.upgrades.prepare(call, request)
        } else if self.is_scenario(call) {
            self.scenarios.prepare(call, request)
        } else {
            self.commands.prepare(call, request)
        }
    }

    fn may_repeat<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, bool> {
        if self.is_scenario(call) {
            self.scenarios.may_repeat(call)
        } else {
            Box::pin(std::future::ready(false))
        }
    }

    fn abandon(&self, request: RequestId) {
        self.upgrades.abandon(request);
    }

    fn call<'a>(&'a self, call: &'a Call, step: Step<'a>) -> BoxFuture<'a, Option<NodeResult>> {
        if call.bundle == upgrade::bundle() {
            Box::pin(async move { Some(self.upgrades.call(call, step).await) })
        } else if self.is_scenario(call) {
            self.scenarios.call(call, step)
        } else {
            self.commands.call(call, step)
        }
    }

    fn rolled_back(&self, request: RequestId) -> BoxFuture<'_, Option<String>> {
        self.scenarios.rolled_back(request)
    }

    fn capabilities(&self) -> Vec<String> {
        let mut all = self.commands.capabilities();
        if self.upgrades.granted() {
            all.push(upgrade::CAPABILITY.to_owned());
        }
        all.extend(self.scenarios.capabilities());
        all.extend(self.beside.iter().map(|&capability| capability.to_owned()));
        all
    }
}

/// The built-in scenario `command`.
pub struct Commands {
    granted: Capabilities,
    environment: Environment,
    cgroups: Option<Cgroups>,
    kill_grace: Span,
}

impl Commands {
    /// From the configuration, with what the system offers now.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            granted: config.capabilities,
            environment: Environment::new(&config.command.environment),
            cgroups: config.command.cgroup.then(Cgroups::detect).flatten(),
            kill_grace: config.command.kill_grace,
        }
    }

    /// Where control groups are made, if they are.
    #[must_use]
    pub fn cgroups(&self) -> Option<&Cgroups> {
        self.cgroups.as_ref()
    }
}

impl Executor for Commands {
    fn check(&self, call: &Call) -> Result<(), Refused> {
        if call.bundle != command::bundle() {
            return Err(Refused::Bundle(call.scenario.to_string()));
        }
        if call.function.as_str() != command::FUNCTION {
            return Err(Refused::Function {
                scenario: call.scenario.to_string(),
                function: call.function.to_string(),
            });
        }
        let command = Command::from_params(&call.params)?;
        let granted = match command {
            Command::Argv(_) => self.granted.command,
            Command::Shell(_) => self.granted.shell,
        };
        if !granted {
            return Err(Refused::Capability(command.capability()));
        }
        if call.mode == Mode::Check {
            return Err(Refused::CheckMode);
        }
        Ok(())
    }

    fn call<'a>(&'a self, call: &'a Call, step: Step<'a>) -> BoxFuture<'a, Option<NodeResult>> {
        Box::pin(async move { Some(self.run(call, step).await) })
    }

    fn capabilities(&self) -> Vec<String> {
        [
            ("command", self.granted.command),
            ("shell", self.granted.shell),
        ]
        .into_iter()
        .filter(|(_, granted)| *granted)
        .map(|(name, _)| name.to_owned())
        .collect()
    }
}

impl Commands {
    async fn run(&self, call: &Call, step: Step<'_>) -> NodeResult {
        let serial = step.serial;
        let command = match self
            .check(call)
            .and_then(|()| Ok(Command::from_params(&call.params)?))
        {
            Ok(command) => command,
            Err(e) => return NodeResult::new(serial, Outcome::Declined, e.to_string()),
        };
        let mut argv = command.argv().into_iter().map(str::to_owned);
        let program = argv.next().unwrap_or_default();
        let cgroup_name = format!(
            "{}-{}-{serial}",
            step.request.run.short(),
            step.request.step
        );
        let spec = Spec {
            program: program.clone(),
            arguments: argv.collect(),
            environment: self.environment.for_step(step.request, serial, &step.name),
            directory: None,
            input: None,
            marks: marks(step.request, serial),
            cgroup: self
                .cgroups
                .as_ref()
                .and_then(|c| c.make(&cgroup_name).ok()),
            timeout: step.timeout,
            kill_grace: self.kill_grace.get(),
            output_bytes: step.output_bytes,
        };
        match process::run(&spec, step.sink, step.cancel).await {
            Ok(end) => result(serial, &end, step.timeout),
            Err(e) => {
                if let Some(cgroup) = &spec.cgroup {
                    cgroup.remove();
                }
                not_started(serial, &program, &spec.environment, &e)
            }
        }
    }
}

fn result(serial: Serial, end: &End, timeout: Duration) -> NodeResult {
    let (exit, signal) = (end.exit(), end.signal());
    let ended = |e: Ended, what: &str| match e {
        Ended {
            left: 0,
            found: 0 | 1,
        } => what.to_owned(),
        Ended { left: 0, found } => format!("{what}, with all of its {found} processes ended"),
        Ended { left, found } => {
            format!("{what}, but {left} of its {found} processes could not be ended")
        }
    };
    let (outcome, reason) = match end.why {
        Why::TimedOut(e) => {
            let limit = Span::from_millis(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
            (
                Outcome::TimedOut,
                Some(ended(e, &format!("still running after {limit}"))),
            )
        }
        Why::Cancelled(e) => (Outcome::Cancelled, Some(ended(e, "cancelled while it ran"))),
        Why::Exited => match (exit, signal) {
            (Some(0), _) => (Outcome::Succeeded, None),
            (Some(code), _) => (Outcome::Failed, Some(format!("exit code {code}"))),
            (None, Some(signal)) => (
                Outcome::Failed,
                Some(format!("ended by signal {}", signal_name(signal))),
            ),
            (None, None) => (
                Outcome::Unknown,
                Some("its end could not be seen".to_owned()),
            ),
        },
    };
    NodeResult {
        serial,
        outcome,
        reason,
        exit,
        signal,
        ms: Some(u64::try_from(end.took.as_millis()).unwrap_or(u64::MAX)),
        output_bytes: end.output_bytes,
        truncated: end.truncated,
        value: None,
        value_bytes: None,
        tally: None,
        digest: None,
        rolled_back: false,
    }
}

/// The exit codes that a shell gives for the same mistakes.
fn not_started(
    serial: Serial,
    program: &str,
    environment: &BTreeMap<String, String>,
    error: &io::Error,
) -> NodeResult {
    let shown = printable(program, 120);
    let (exit, reason) = match error.kind() {
        io::ErrorKind::NotFound
            if program.contains('/') && std::path::Path::new(program).exists() =>
        {
            (
                Some(127),
                format!("`{shown}` cannot be run: the interpreter that it names does not exist"),
            )
        }
        io::ErrorKind::NotFound if program.contains('/') => (
            Some(127),
            format!("command not found: `{shown}` does not exist"),
        ),
        io::ErrorKind::NotFound => {
            let path = environment.get("PATH").map_or("", String::as_str);
            (
                Some(127),
                format!(
                    "command not found: `{shown}` is not in {}",
                    printable(path, 200)
                ),
            )
        }
        io::ErrorKind::PermissionDenied => {
            (Some(126), format!("`{shown}` may not be executed: {error}"))
        }
        _ => (
            Some(126),
            format!("`{shown}` could not be started: {error}"),
        ),
    };
    let mut result = NodeResult::new(serial, Outcome::Failed, reason);
    result.exit = exit;
    result.ms = Some(0);
    result
}

/// `9 (SIGKILL)`: the number, with the name of those that people know.
pub(crate) fn signal_name(signal: i32) -> String {
    const NAMES: [(i32, &str); 12] = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (14, "SIGALRM"),
        (15, "SIGTERM"),
    ];
    match NAMES.iter().find(|(number, _)| *number == signal) {
        Some((number, name)) => format!("{number} ({name})"),
        None => signal.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::envelope::{BundleHash, Limits};
    use serde_json::{Value, json};

    fn call(params: Value) -> Call {
        Call {
            scenario: "command".parse().expect("a name"),
            bundle: command::bundle(),
            function: "run".parse().expect("a name"),
            params,
            mode: Mode::Apply,
            limits: Limits {
                timeout: Span::from_secs(5),
                output_bytes: 1000,
                retry: 0,
            },
            expect: Default::default(),
            secrets: None,
        }
    }

    fn commands(shell: bool) -> Commands {
        let mut config = Config::default();
        config.capabilities.shell = shell;
        Commands::new(&config)
    }

    #[test]
    fn what_is_not_granted_is_declined_by_name() {
        let line = call(json!({"shell": "uptime"}));
        assert_eq!(commands(true).check(&line), Ok(()));
        assert_eq!(
            commands(false).check(&line),
            Err(Refused::Capability("shell"))
        );
        assert_eq!(commands(false).capabilities(), ["command"]);
        assert_eq!(
            commands(false).check(&call(json!({"argv": ["true"]}))),
            Ok(())
        );
    }

    #[test]
    fn what_this_agent_does_not_have_is_declined() {
        let mut other = call(json!({"argv": ["true"]}));
        other.bundle = BundleHash::of(b"something else");
        assert!(matches!(
            commands(true).check(&other),
            Err(Refused::Bundle(_))
        ));
        let mut other = call(json!({"argv": ["true"]}));
        other.function = "upgrade".parse().expect("a name");
        assert!(matches!(
            commands(true).check(&other),
            Err(Refused::Function { .. })
        ));
        let mut other = call(json!({"argv": ["true"]}));
        other.mode = Mode::Check;
        assert_eq!(commands(true).check(&other), Err(Refused::CheckMode));
        assert!(matches!(
            commands(true).check(&call(json!({"argv": []}))),
            Err(Refused::Parameters(_))
        ));
    }
}
