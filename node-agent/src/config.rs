//! The agent's configuration: one TOML file, every key optional.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use muster_protocol::names::PoolName;
use muster_protocol::units::Span;
use muster_protocol::vm::Virtualisation;
use serde::{Deserialize, Serialize};

/// Where the configuration is looked for when neither `--config` nor
/// `--state` is given.
pub const DEFAULT_PATH: &str = "/etc/muster/agent.toml";
/// Where the kernel tells which start of the machine this is.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where the state is kept unless something else is said.
pub const DEFAULT_STATE: &str = "/var/lib/muster-agent";

static DEFAULT_POOL: LazyLock<PoolName> =
    LazyLock::new(|| "default".parse().expect("a constant name"));

/// Everything that can be configured. `muster-agent run --check-config`
/// prints what is in effect.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The state directory: keys, credentials, journal. `--state` wins.
    pub state: PathBuf,
    /// Base URLs of the brokers' HTTP API, tried in order; without any, the
    /// one that the node enrolled with.
    pub brokers: Vec<String>,
    /// Addresses of NATS, tried in order; without any, those that the broker
    /// gives with the credentials.
    pub nats: Vec<String>,
    /// Where custom facts are: `*.json`, `*.toml`, and executables.
    pub facts_dir: PathBuf,
    /// How often facts are gathered; they are sent when they changed.
    pub facts_every: Span,
    /// The file that holds another text after each start of the machine. In
    /// a container the kernel's tells of the host, and not of the container.
    pub boot_id: PathBuf,
    /// What this node does when it is asked.
    pub capabilities: Capabilities,
    /// How much at once, and for how long.
    pub limits: Limits,
    /// How commands are run.
    pub command: Commands,
    /// How long outcomes and output are kept.
    pub journal: Retention,
    /// Virtual machines, where `capabilities.vm` is granted.
    pub vm: Vm,
}

/// What this node grants. Anything else is declined, by name.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capabilities {
    /// Programs with their arguments.
    pub command: bool,
    /// Lines of shell.
    pub shell: bool,
    /// Replacing the agent's own executable by a release that the broker
    /// has.
    pub upgrade: bool,
    /// Files and directories, by scenarios.
    pub file: bool,
    /// Packages of the distribution, by scenarios.
    pub package: bool,
    /// Services, by scenarios.
    pub service: bool,
    /// User accounts, by scenarios.
    pub user: bool,
    /// HTTP requests from this node, by scenarios.
    pub http: bool,
    /// Runs of Puppet, by scenarios.
    pub puppet: bool,
    /// Restarting the machine, by scenarios.
    pub reboot: bool,
    /// Virtual machines by libvirt, by scenarios: this node is a hypervisor.
    pub vm: bool,
    /// This node's own firewall, by scenarios.
    pub firewall: bool,
    /// Rules of it in nft's own words, of which muster knows nothing.
    pub firewall_raw: bool,
}

/// Bounds that no request can lift.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Steps that run at once.
    pub concurrent: u16,
    /// Steps that wait for their turn; more are declined.
    pub queued: u16,
    /// Most bytes of output kept for one step, whatever a request allows.
    pub output_bytes: u64,
    /// Longest execution time, whatever a request allows.
    pub timeout: Span,
    /// How long running steps are waited for when the agent is stopped,
    /// before they are ended.
    pub stop_grace: Span,
}

/// How commands are run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Commands {
    /// Added to, or put in place of, the clean environment of each command.
    pub environment: BTreeMap<String, String>,
    /// Whether each command gets a control group of its own where the system
    /// lets the agent make one.
    pub cgroup: bool,
    /// How long a program has between SIGTERM and SIGKILL at its deadline or
    /// on cancel.
    pub kill_grace: Span,
}

/// How long the journal keeps what the broker already has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// How long after the broker has acknowledged an outcome.
    pub keep: Span,
    /// How long an outcome is kept that the broker never acknowledged.
    pub keep_unsent: Span,
    /// Most bytes of output; above it the oldest output goes first,
    /// acknowledged before unacknowledged.
    pub max_output_bytes: u64,
    /// Most outcomes; above it the oldest acknowledged ones go first.
    pub max_outcomes: u32,
}

/// How machines run on a hypervisor.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VmType {
    /// As libvirt says that it works.
    Auto,
    /// By the processor.
    Kvm,
    /// In software.
    Qemu,
}

/// A hypervisor's libvirt.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vm {
    /// Which libvirt.
    pub uri: String,
    /// The storage pool for the disks of machines, of the type `dir`.
    pub pool: PoolName,
    /// How machines run.
    pub r#type: VmType,
    /// The program that asks libvirt; without, `muster-libvirt` beside the
    /// agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// How long libvirt may take for one call.
    pub call_timeout: Span,
    /// Where the consoles of machines are written down.
    pub console_dir: PathBuf,
    /// How long an image stays in the pool that no machine there is made of.
    pub keep_images: Span,
}

impl Vm {
    /// How machines run, where that is said.
    #[must_use]
    pub fn kind(&self) -> Option<Virtualisation> {
        match self.r#type {
            VmType::Auto => None,
            VmType::Kvm => Some(Virtualisation::Kvm),
            VmType::Qemu => Some(Virtualisation::Qemu),
        }
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".to_owned(),
            pool: DEFAULT_POOL.clone(),
            r#type: VmType::Auto,
            program: None,
            call_timeout: Span::from_secs(30),
            console_dir: "/var/log/muster/console".into(),
            keep_images: Span::from_secs(7 * 86_400),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state: DEFAULT_STATE.into(),
            brokers: Vec::new(),
            nats: Vec::new(),
            facts_dir: "/etc/muster/facts.d".into(),
            facts_every: Span::from_secs(60),
            boot_id: BOOT_ID.into(),
            capabilities: Capabilities::default(),
            limits: Limits::default(),
            command: Commands::default(),
            journal: Retention::default(),
            vm: Vm::default(),
        }
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            command: true,
            shell: true,
            upgrade: true,
            file: true,
            package: true,
            service: true,
            user: true,
            http: true,
            puppet: true,
            reboot: true,
            // Most nodes are no hypervisors.
            vm: false,
            // A firewall is somebody's already, mostly.
            firewall: false,
            firewall_raw: false,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent: 16,
            queued: 256,
            output_bytes: 16 << 20,
            timeout: Span::from_secs(86_400),
            stop_grace: Span::from_secs(10),
        }
    }
}

impl Default for Commands {
    fn default() -> Self {
        Self {
            environment: BTreeMap::new(),
            cgroup: true,
            kill_grace: Span::from_secs(2),
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            keep: Span::from_secs(86_400),
            keep_unsent: Span::from_secs(30 * 86_400),
            max_output_bytes: 256 << 20,
            max_outcomes: 100_000,
        }
    }
}

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a wrong type.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// Readable, but not sensible.
    #[error("`{key}` {why}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Config {
    /// Reads the configuration for `run` and `status`: the file that was
    /// named, else [`DEFAULT_PATH`] unless a state directory was named; then
    /// `state` on top.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(file: Option<&Path>, state: Option<&Path>) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_PATH);
        let file = file.or_else(|| (state.is_none() && default.exists()).then_some(default));
        let mut config = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                    path: path.to_owned(),
                    source,
                })?;
                Self::parse(&text).map_err(|message| ConfigError::Parse {
                    path: path.to_owned(),
                    message,
                })?
            }
            None => Self::default(),
        };
        if let Some(state) = state {
            config.state = state.to_owned();
        }
        config.check()?;
        Ok(config)
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())
    }

    fn check(&self) -> Result<(), ConfigError> {
        let fail = |key, why: &str| {
            Err(ConfigError::Value {
                key,
                why: why.to_owned(),
            })
        };
        if self.limits.concurrent == 0 {
            return fail(
                "limits.concurrent",
                "is 0: the node could never run anything; say at least 1",
            );
        }
        if self.facts_every.get().as_secs() < 5 {
            return fail(
                "facts_every",
                "is below 5s, which would keep the node busy with itself",
            );
        }
        if self.limits.timeout.get().is_zero() {
            return fail("limits.timeout", "is 0: no command could run");
        }
        for (name, value) in &self.command.environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return fail(
                    "command.environment",
                    &format!("has a variable that none can be: {name:?}"),
                );
            }
            if name.starts_with("MUSTER_") {
                return fail(
                    "command.environment",
                    &format!("sets {name}, but names that begin with MUSTER_ are the agent's own"),
                );
            }
        }
        if self.vm.call_timeout.get().as_secs() < 1 {
            return fail(
                "vm.call_timeout",
                "is below 1s: libvirt could not answer anything",
            );
        }
        if self.vm.keep_images.get().as_secs() < 60 {
            return fail(
                "vm.keep_images",
                "is below 1m: an image could go before a machine is made of it",
            );
        }
        if !self.vm.console_dir.is_absolute() {
            return fail("vm.console_dir", "is not an absolute path");
        }
        if self.vm.program.as_ref().is_some_and(|p| !p.is_absolute()) {
            return fail("vm.program", "is not an absolute path");
        }
        for url in &self.brokers {
            crate::http::BaseUrl::parse(url).map_err(|e| ConfigError::Value {
                key: "brokers",
                why: format!("has `{url}`: {e}"),
            })?;
        }
        Ok(())
    }

    /// What is in effect, as TOML.
    #[must_use]
    pub fn effective(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_else(|e| format!("# {e}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_says_the_defaults() {
        let text = include_str!("../../packaging/muster-agent.toml");
        assert_eq!(Config::parse(text), Ok(Config::default()));
        // Every key is there, if only as a comment.
        for line in Config::default().effective().lines() {
            let key = line.split(" = ").next().unwrap_or_default();
            assert!(text.contains(key), "the example lacks {key}");
        }
    }

    #[test]
    fn what_is_effective_can_be_read_again() {
        let config = Config::default();
        assert_eq!(Config::parse(&config.effective()), Ok(config));
    }

    #[test]
    fn mistakes_are_named() {
        let error = Config::parse("[limits]\nconcurent = 3\n").expect_err("misspelled");
        assert!(
            error.contains("concurent") && error.contains("line 2"),
            "{error}"
        );
        for (text, word) in [
            ("limits.concurrent = 0", "limits.concurrent"),
            ("facts_every = \"1s\"", "facts_every"),
            ("command.environment = { \"A=B\" = \"c\" }", "A=B"),
            ("command.environment = { MUSTER_RUN = \"c\" }", "MUSTER_"),
            ("brokers = [\"http://example.org\"]", "brokers"),
            ("vm.call_timeout = \"10ms\"", "vm.call_timeout"),
            ("vm.keep_images = \"1s\"", "vm.keep_images"),
            ("vm.console_dir = \"console\"", "vm.console_dir"),
            ("vm.program = \"muster-libvirt\"", "vm.program"),
        ] {
            let config = Config::parse(text).expect("is TOML");
            let error = config.check().expect_err(text).to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
