//! What a script wants of a node, as data.

use std::collections::BTreeMap;

pub use muster_protocol::note::Change;
use muster_protocol::units::Span;
use muster_protocol::vm::VmCall;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::firewall::FirewallCall;

/// One thing that a script wants.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
pub enum Effect {
    /// A program, or a line of shell.
    Run(Run),
    /// A file is so.
    File {
        /// Absolute.
        path: String,
        /// How.
        wish: FileWish,
    },
    /// A package of the distribution is so.
    Package {
        /// Its name.
        name: String,
        /// How.
        wish: PackageWish,
        /// How long the package manager may be busy with something else; as
        /// long as the node thinks right when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wait: Option<Span>,
    },
    /// A service is so.
    Service {
        /// Its name.
        name: String,
        /// How.
        wish: ServiceWish,
    },
    /// A user account is so.
    User {
        /// Its name.
        name: String,
        /// How.
        wish: UserWish,
    },
    /// An HTTP request.
    Http(HttpCall),
    /// Puppet.
    Puppet(PuppetRun),
    /// A hypervisor's machines.
    Vm(VmCall),
    /// The node's own firewall.
    Firewall(FirewallCall),
    /// Wait.
    Sleep {
        /// So long.
        span: Span,
    },
    /// Restart the machine; the step goes on after it.
    Reboot,
    /// An event, from this node.
    Emit {
        /// Its kind, after `scenario.`.
        kind: String,
        /// Its fields.
        fields: Map<String, Value>,
    },
    /// A line in the run's log.
    Log {
        /// The line.
        text: String,
    },
}

/// What is executed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunWhat {
    /// A program and its arguments; no shell sees them.
    Argv(Vec<String>),
    /// A line for `/bin/sh -c`.
    Shell(String),
}

/// A program that is run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What.
    pub what: RunWhat,
    /// Exit codes that are well.
    pub ok: Vec<i32>,
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment on top of the node's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// As whom; the agent's own user when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What it reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Not run when this path is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creates: Option<String>,
    /// Run only when this program exits with 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_if: Option<Vec<String>>,
    /// Whether it may change something. One that only looks (`changes: false`)
    /// is run in a dry run as well, so that a script can go by what it says.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub changes: bool,
}

fn yes() -> bool {
    true
}

/// Who owns a file and who may do what with it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileAttributes {
    /// Permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// User.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

impl std::fmt::Display for FileAttributes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mode = self.mode.map(|mode| format!("mode {mode:04o}"));
        let owner = self.owner.as_ref().map(|owner| format!("owner {owner}"));
        let group = self.group.as_ref().map(|group| format!("group {group}"));
        let all: Vec<String> = [mode, owner, group].into_iter().flatten().collect();
        f.write_str(&all.join(" "))
    }
}

/// How a file is to be.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", deny_unknown_fields)]
pub enum FileWish {
    /// With this content.
    Content {
        /// All of it.
        text: String,
        /// Set before anybody can open it.
        attributes: FileAttributes,
        /// Keep what was there under another name.
        backup: bool,
        /// Show what changes in it. Not where a file holds secrets that the
        /// scenario did not get as a parameter: the old ones would be seen.
        #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
        diff: bool,
    },
    /// With this line in it.
    Line {
        /// The line, without its end.
        text: String,
        /// The line that it replaces: the last that matches.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaces: Option<String>,
        /// Keep what was there under another name.
        backup: bool,
        /// Show what changes in it. Not where a file holds secrets that the
        /// scenario did not get as a parameter: the old ones would be seen.
        #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
        diff: bool,
    },
    /// Without such a line in it.
    NoLine {
        /// The line, without its end; or what is found in it.
        text: String,
        /// Whether `text` is a regular expression.
        #[serde(default)]
        pattern: bool,
        /// Keep what was there under another name.
        backup: bool,
        /// Show what changes in it. Not where a file holds secrets that the
        /// scenario did not get as a parameter: the old ones would be seen.
        #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
        diff: bool,
    },
    /// As its newest backup is.
    Restore {
        /// Show what changes in it.
        #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
        diff: bool,
    },
    /// As it is, but owned and allowed like this.
    Attributes(FileAttributes),
    /// A directory.
    Directory(FileAttributes),
    /// Not there.
    Absent,
}

/// How a package is to be.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", deny_unknown_fields)]
pub enum PackageWish {
    /// Some version is installed.
    Installed,
    /// This one is.
    Version {
        /// As the package manager writes it.
        version: String,
    },
    /// The newest that the node's sources have.
    Latest,
    /// None is.
    Absent,
}

/// How a service is to be.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceWish {
    /// It runs.
    Running,
    /// It does not.
    Stopped,
    /// It is stopped and started.
    Restarted,
    /// It reads its configuration anew.
    Reloaded,
    /// It starts with the machine.
    Enabled,
    /// It does not.
    Disabled,
}

/// How a user account is to be.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", deny_unknown_fields)]
pub enum UserWish {
    /// It is there.
    Present {
        /// Its shell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shell: Option<String>,
        /// Its home directory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        home: Option<String>,
        /// Groups that it is in beside its own.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        groups: Vec<String>,
        /// Whether it is a system account.
        #[serde(default)]
        system: bool,
    },
    /// It is not.
    Absent,
}

/// An HTTP request.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCall {
    /// Where.
    pub url: String,
    /// What.
    pub wish: HttpWish,
    /// Further headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// How long one try may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

/// What is asked over HTTP.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "method", deny_unknown_fields)]
pub enum HttpWish {
    /// GET.
    Get,
    /// POST, which changes something.
    Post {
        /// The body: text as it is, anything else as JSON.
        body: Value,
    },
    /// GET until it answers with this status.
    Until {
        /// The status.
        status: u16,
        /// How often at most.
        tries: u32,
        /// Time between.
        every: Span,
    },
}

/// A run of Puppet.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "puppet", deny_unknown_fields)]
pub enum PuppetRun {
    /// Apply this manifest.
    Apply {
        /// Its text.
        manifest: String,
    },
    /// Ask the Puppet server.
    Agent,
}

/// `vm create web-03`, `vm stop 0c7e1a52-…`.
fn machine(call: &VmCall) -> String {
    let what = call.name();
    match call {
        VmCall::Image { image } => format!("vm {what} {}", image.name),
        VmCall::Create { machine } => format!("vm {what} {}", machine.name),
        _ => match call.id() {
            Some(id) => format!("vm {what} {id}"),
            None => format!("vm {what}"),
        },
    }
}

/// What is wanted of it beyond its name: `stop … grace 30s`.
fn machine_wish(call: &VmCall) -> String {
    match call {
        VmCall::Destroy { purge: true, .. } => "purge".to_owned(),
        VmCall::Snapshot { snapshot, .. } | VmCall::Restore { snapshot, .. } => {
            snapshot.to_string()
        }
        VmCall::GuestExec { argv, .. } => argv.join(" "),
        VmCall::Resize {
            cpus, memory, disk, ..
        } => {
            let parts = [
                cpus.map(|cpus| format!("cpus {cpus}")),
                memory.map(|memory| format!("memory {memory}")),
                disk.map(|disk| format!("disk {disk}")),
            ];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            parts.join(" ")
        }
        _ => String::new(),
    }
}

impl Effect {
    /// The capability that a node must grant.
    #[must_use]
    pub fn capability(&self) -> Option<&'static str> {
        match self {
            Self::Run(run) => Some(match run.what {
                RunWhat::Argv(_) => "command",
                RunWhat::Shell(_) => "shell",
            }),
            Self::File { .. } => Some("file"),
            Self::Package { .. } => Some("package"),
            Self::Service { .. } => Some("service"),
            Self::User { .. } => Some("user"),
            Self::Http(_) => Some("http"),
            Self::Puppet(_) => Some("puppet"),
            Self::Reboot => Some("reboot"),
            Self::Vm(_) => Some("vm"),
            Self::Firewall(_) => Some("firewall"),
            Self::Emit { .. } | Self::Log { .. } | Self::Sleep { .. } => None,
        }
    }

    /// What it is about, for people: `package webapp`.
    #[must_use]
    pub fn subject(&self) -> String {
        let text = match self {
            Self::Run(run) => match &run.what {
                RunWhat::Argv(argv) => format!("command {}", argv.join(" ")),
                RunWhat::Shell(line) => format!("shell {line}"),
            },
            Self::File { path, .. } => format!("file {path}"),
            Self::Package { name, .. } => format!("package {name}"),
            Self::Service { name, .. } => format!("service {name}"),
            Self::User { name, .. } => format!("user {name}"),
            Self::Http(call) => format!("http {}", call.url),
            Self::Puppet(PuppetRun::Apply { .. }) => "puppet apply".to_owned(),
            Self::Puppet(PuppetRun::Agent) => "puppet agent".to_owned(),
            Self::Reboot => "reboot".to_owned(),
            Self::Vm(call) => machine(call),
            Self::Firewall(call) => format!("firewall {}", call.name()),
            Self::Emit { kind, .. } => format!("emit {kind}"),
            Self::Log { .. } => "log".to_owned(),
            Self::Sleep { span } => format!("sleep {span}"),
        };
        muster_protocol::text::printable(&text, 120)
    }

    /// What is wanted of it, for people: `package webapp version 1.4.2`.
    #[must_use]
    pub fn title(&self) -> String {
        let wish = match self {
            Self::File { wish, .. } => match wish {
                FileWish::Content { .. } => "content".to_owned(),
                FileWish::Line { text, .. } => format!("line {text}"),
                FileWish::NoLine { text, .. } => format!("no_line {text}"),
                FileWish::Restore { .. } => "restore".to_owned(),
                FileWish::Attributes(attributes) => attributes.to_string(),
                FileWish::Directory(_) => "directory".to_owned(),
                FileWish::Absent => "absent".to_owned(),
            },
            Self::Package { wish, .. } => match wish {
                PackageWish::Installed => "installed".to_owned(),
                PackageWish::Version { version } => format!("version {version}"),
                PackageWish::Latest => "latest".to_owned(),
                PackageWish::Absent => "absent".to_owned(),
            },
            Self::Service { wish, .. } => match wish {
                ServiceWish::Running => "running",
                ServiceWish::Stopped => "stopped",
                ServiceWish::Restarted => "restarted",
                ServiceWish::Reloaded => "reloaded",
                ServiceWish::Enabled => "enabled",
                ServiceWish::Disabled => "disabled",
            }
            .to_owned(),
            Self::User { wish, .. } => match wish {
                UserWish::Present { .. } => "present".to_owned(),
                UserWish::Absent => "absent".to_owned(),
            },
            Self::Http(call) => match &call.wish {
                HttpWish::Get => "get".to_owned(),
                HttpWish::Post { .. } => "post".to_owned(),
                HttpWish::Until { status, .. } => format!("until {status}"),
            },
            Self::Vm(call) => match machine_wish(call) {
                wish if wish.is_empty() => return self.subject(),
                wish => wish,
            },
            Self::Run(_)
            | Self::Puppet(_)
            | Self::Reboot
            | Self::Firewall(_)
            | Self::Emit { .. }
            | Self::Log { .. }
            | Self::Sleep { .. } => return self.subject(),
        };
        let wish = muster_protocol::text::printable(&wish, 120);
        format!("{} {wish}", self.subject())
    }
}
