//! What can be said of machines and of what they are made of: the requests
//! that the API takes, read from words.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::groups::{self, GROUP_VERBS, GroupCommand};
use super::{CommandError, Rest, Verb, verb};
use crate::api::{Configure, CreateVms, Strategy, VmAction};
use crate::chat::words::Word;
use crate::names::{LabelKey, LabelValue, NodeName, SshKeyName, VmName};
use crate::text::printable;
use crate::vm::Readiness;

/// First words that another word follows.
pub const FAMILIES: [&str; 6] = [
    "vm",
    "image",
    "network",
    "hypervisor",
    "group",
    "address-set",
];

/// What follows them, in the order in which help shows it.
pub const MACHINE_VERBS: &[Verb] = &[
    verb(
        "vm create",
        "NAME --image IMAGE --cpus N --memory SIZE [--disk SIZE] [--network NETWORK]... [--role ROLE]... \
         [--label K=V]... [--group GROUP]... [--account ACCOUNT] [--on PREDICATE] [--count N] [--ssh-key NAME]... \
         [--configure SCENARIO [--param K=V]...] [--no-agent] [--dry-run]",
        "make a machine, or several; you are told when they are up",
    ),
    verb(
        "vm list",
        "[PREDICATE] [--deleted]",
        "machines, and what of them is otherwise than it is wanted",
    ),
    verb("vm show", "VM", "everything known of a machine"),
    verb("vm where", "VM", "on which hypervisor it is"),
    verb("vm log", "VM", "what happened to it"),
    verb("vm start", "VM", "let it run"),
    verb(
        "vm stop",
        "VM [--grace TIME]",
        "do not let it run: asked first, then forced",
    ),
    verb(
        "vm reboot",
        "VM [--grace TIME]",
        "start it anew: asked first, then forced",
    ),
    verb(
        "vm resize",
        "VM [--cpus N] [--memory SIZE] [--disk SIZE]",
        "give it more or less; a disk only grows",
    ),
    verb("vm snapshot", "VM NAME", "keep its disk as it is now"),
    verb("vm restore", "VM NAME", "its disk as it was in a snapshot"),
    verb("vm protect", "VM", "it cannot be destroyed from now on"),
    verb("vm unprotect", "VM", "it can be destroyed from now on"),
    verb(
        "vm destroy",
        "VM [--purge]",
        "destroy it once you confirm; its disk is kept for a day, unless it is purged",
    ),
    verb("vm undelete", "VM", "bring it back, while its disk is kept"),
    verb("vm console", "VM [--lines N]", "the end of its console"),
    verb(
        "vm exec",
        "VM [--timeout TIME] -- COMMAND",
        "run a program in it, by its QEMU guest agent",
    ),
    verb(
        "vm provision",
        "VM [SCENARIO [k=v ...]]",
        "configure it: what is recorded, or a scenario from now on",
    ),
    verb(
        "vm group",
        "VM add|remove GROUP...",
        "put it in security groups, or take it out: at once",
    ),
    verb("image list", "", "disk images"),
    verb("network list", "", "networks, and how much of them is used"),
    verb(
        "hypervisor list",
        "",
        "hypervisors, and how much of them is given",
    ),
    verb(
        "hypervisor cordon",
        "NODE",
        "put nothing new on it; what is there stays",
    ),
    verb(
        "hypervisor drain",
        "NODE",
        "put nothing new on it, and say what of it runs",
    ),
    verb(
        "hypervisor uncordon",
        "NODE",
        "put new machines on it again",
    ),
];

/// What somebody wants of machines.
#[derive(Clone, Debug, PartialEq)]
pub enum MachineCommand {
    /// Make some.
    Create(Box<CreateVms>),
    /// List these; all when absent.
    List {
        /// Which.
        on: Option<String>,
        /// Those that were destroyed.
        deleted: bool,
    },
    /// Everything known of one.
    Show(VmName),
    /// Where it is.
    Where(VmName),
    /// What happened to it.
    Log(VmName),
    /// Do something with it.
    Act {
        /// Which.
        name: VmName,
        /// What.
        what: VmAction,
    },
    /// Destroy it.
    Destroy {
        /// Which.
        name: VmName,
        /// Its disk goes, too.
        purge: bool,
        /// Ask nothing.
        yes: bool,
    },
    /// List images.
    Images,
    /// List networks.
    Networks,
    /// List hypervisors.
    Hypervisors,
    /// Put nothing new on a hypervisor, or put it there again.
    Cordon {
        /// Which.
        node: NodeName,
        /// Whether nothing new is put there.
        cordoned: bool,
    },
    /// Put nothing new on a hypervisor that is to be empty.
    Drain(NodeName),
    /// Something of security groups.
    Groups(Box<GroupCommand>),
}

/// What `word` behind `family` is.
#[must_use]
pub fn find(family: &str, word: &str) -> Option<&'static Verb> {
    let mut all = MACHINE_VERBS.iter().chain(GROUP_VERBS);
    all.find(|verb| verb.name.split_once(' ') == Some((family, word)))
}

/// All that can follow a first word.
pub fn of_family(family: &str) -> impl Iterator<Item = &'static Verb> {
    let is_of = move |verb: &&Verb| verb.name.split_once(' ').is_some_and(|(f, _)| f == family);
    MACHINE_VERBS.iter().chain(GROUP_VERBS).filter(is_of)
}

/// Flags that take a value; `None` of a command that is none of these.
pub(super) fn valued(verb: &str) -> Option<&'static [&'static str]> {
    if let Some(flags) = groups::valued(verb) {
        return Some(flags);
    }
    Some(match verb {
        "vm create" => &[
            "image",
            "cpus",
            "memory",
            "disk",
            "account",
            "on",
            "count",
            "apart",
            "strategy",
            "ready",
            "within",
            "configure",
            "code",
        ],
        "vm stop" | "vm reboot" => &["grace", "code"],
        "vm resize" => &["cpus", "memory", "disk", "code"],
        "vm console" => &["lines", "code"],
        "vm exec" => &["timeout", "code"],
        "vm list" | "vm show" | "vm where" | "vm log" | "image list" | "network list"
        | "hypervisor list" => &[],
        verb if verb.contains(' ') => &["code"],
        _ => return None,
    })
}

/// Flags that can be given more than once.
pub(super) fn repeated(verb: &str) -> &'static [&'static str] {
    match verb {
        "vm create" => &["network", "role", "label", "group", "ssh-key", "param"],
        _ => &[],
    }
}

/// Flags without a value.
pub(super) fn switches(verb: &str) -> &'static [&'static str] {
    match verb {
        "vm create" => &["no-agent", "dry-run", "protect", "no-autostart"],
        "vm list" => &["deleted"],
        "vm destroy" => &["purge", "yes"],
        _ => &[],
    }
}

/// Flags of the command line that name files: what is in them has no place
/// where everybody reads it, and nobody here has those files.
pub(super) fn files(verb: &str) -> &'static [&'static str] {
    match verb {
        "vm create" => &["user-data"],
        _ => &[],
    }
}

impl Rest<'_> {
    fn read<T: FromStr>(&self, flag: &str, text: &str) -> Result<T, CommandError>
    where
        T::Err: Display,
    {
        text.parse()
            .map_err(|error| self.wrong(format!("`--{flag}`: {error}")))
    }

    pub(super) fn value<T: FromStr>(
        &mut self,
        flag: &'static str,
    ) -> Result<Option<T>, CommandError>
    where
        T::Err: Display,
    {
        let text = self.flags.remove(flag);
        text.map(|text| self.read(flag, &text)).transpose()
    }

    fn given<T: FromStr>(&mut self, flag: &'static str) -> Result<T, CommandError>
    where
        T::Err: Display,
    {
        self.value(flag)?
            .ok_or_else(|| self.wrong(format!("`--{flag}` is missing")))
    }

    fn all<T: FromStr>(&mut self, flag: &'static str) -> Result<Vec<T>, CommandError>
    where
        T::Err: Display,
    {
        let texts = self.lists.remove(flag).unwrap_or_default();
        texts.iter().map(|text| self.read(flag, text)).collect()
    }

    fn has(&self, switch: &str) -> bool {
        self.flags.contains_key(switch)
    }

    /// A name that is written next.
    pub(super) fn name<T: FromStr>(&mut self, what: &str) -> Result<T, CommandError>
    where
        T::Err: Display,
    {
        let text = self.need(what)?;
        text.parse().map_err(|e| self.wrong(format!("{e}")))
    }

    /// What is said of machines.
    pub(super) fn machines(&mut self) -> Result<MachineCommand, CommandError> {
        let (family, word) = self.verb.name.split_once(' ').unwrap_or_default();
        match (family, word) {
            ("vm", "create") => {
                let create = self.create()?;
                return Ok(MachineCommand::Create(Box::new(create)));
            }
            ("vm", "list") => {
                let deleted = self.has("deleted");
                let on = self.predicate(usize::MAX);
                return Ok(MachineCommand::List { on, deleted });
            }
            ("vm", "group") => return self.vm_groups(),
            ("image", _) => return Ok(MachineCommand::Images),
            ("network", _) => return Ok(MachineCommand::Networks),
            ("hypervisor", "list") => return Ok(MachineCommand::Hypervisors),
            ("hypervisor", "drain") => {
                return Ok(MachineCommand::Drain(self.name("the hypervisor")?));
            }
            ("hypervisor", _) => {
                return Ok(MachineCommand::Cordon {
                    node: self.name("the hypervisor")?,
                    cordoned: word == "cordon",
                });
            }
            _ => {}
        }
        let name: VmName = self.name("the machine")?;
        let what = match word {
            "show" => return Ok(MachineCommand::Show(name)),
            "where" => return Ok(MachineCommand::Where(name)),
            "log" => return Ok(MachineCommand::Log(name)),
            "destroy" => {
                let (purge, yes) = (self.has("purge"), self.has("yes"));
                return Ok(MachineCommand::Destroy { name, purge, yes });
            }
            word => self.action(word)?,
        };
        Ok(MachineCommand::Act { name, what })
    }

    fn action(&mut self, word: &str) -> Result<VmAction, CommandError> {
        Ok(match word {
            "start" => VmAction::Start,
            "stop" => VmAction::Stop {
                grace: self.value("grace")?,
            },
            "reboot" => VmAction::Reboot {
                grace: self.value("grace")?,
            },
            "resize" => VmAction::Resize {
                cpus: self.value("cpus")?,
                memory: self.value("memory")?,
                disk: self.value("disk")?,
            },
            "snapshot" => VmAction::Snapshot {
                snapshot: self.name("the name of the snapshot")?,
            },
            "restore" => VmAction::Restore {
                snapshot: self.name("the name of the snapshot")?,
            },
            "protect" => VmAction::Protect,
            "unprotect" => VmAction::Unprotect,
            "undelete" => VmAction::Undelete,
            "provision" => VmAction::Provision {
                configure: self.configure()?,
            },
            "console" => VmAction::ConsoleLog {
                lines: self.value("lines")?,
            },
            _ => {
                let Some(behind) = self.behind.take() else {
                    return Err(self.wrong("a ` -- ` belongs between machine and program"));
                };
                let argv: Vec<String> = behind.into_iter().map(Word::into_string).collect();
                if argv.first().is_none_or(String::is_empty) {
                    return Err(self.wrong("the program is missing"));
                }
                VmAction::Exec {
                    argv,
                    timeout: self.value("timeout")?,
                }
            }
        })
    }

    /// A scenario with its parameters, where one is written.
    fn configure(&mut self) -> Result<Option<Configure>, CommandError> {
        if self.plain.is_empty() && self.pairs.is_empty() {
            return Ok(None);
        }
        let scenario = self.name("the scenario")?;
        let params = self.params()?.into_iter();
        let params = params.map(|(name, value)| (name, Value::String(value)));
        let params = params.collect();
        Ok(Some(Configure { scenario, params }))
    }

    /// What configures a new machine, as flags: what is written behind a
    /// machine that is there is no name of another one.
    fn configured(&mut self) -> Result<Option<Configure>, CommandError> {
        let scenario = self.value("configure")?;
        let texts = self.lists.remove("param").unwrap_or_default();
        let Some(scenario) = scenario else {
            return match texts.is_empty() {
                true => Ok(None),
                false => Err(self.wrong("`--param` is one of `--configure`, which is missing")),
            };
        };
        let mut params = Map::new();
        for text in texts {
            let Some((name, value)) = text.split_once('=') else {
                let text = printable(&text, 40);
                return Err(self.wrong(format!("`--param {text}` is written like version=1.4.2")));
            };
            let value = Value::String(value.to_owned());
            if params.insert(name.to_owned(), value).is_some() {
                let name = printable(name, 40);
                return Err(self.wrong(format!("the parameter {name} is given twice")));
            }
        }
        Ok(Some(Configure { scenario, params }))
    }

    /// Keys for ssh: by name, since a key itself or a file of one has no place
    /// here. What was written is not repeated.
    fn ssh_keys(&mut self) -> Result<Vec<String>, CommandError> {
        let texts = self.lists.remove("ssh-key").unwrap_or_default();
        if texts.iter().any(|text| text.parse::<SshKeyName>().is_err()) {
            let why = "`--ssh-key` takes the name of a key here (muster ssh-key list), and no file";
            return Err(self.wrong(why));
        }
        Ok(texts)
    }

    fn create(&mut self) -> Result<CreateVms, CommandError> {
        let name = self.need("the name")?;
        let mut labels: BTreeMap<LabelKey, LabelValue> = BTreeMap::new();
        for text in self.lists.remove("label").unwrap_or_default() {
            let Some((key, value)) = text.split_once('=') else {
                let text = printable(&text, 40);
                return Err(self.wrong(format!("`--label {text}` is written like zone=gva2")));
            };
            let key: LabelKey = self.read("label", key)?;
            if labels
                .insert(key.clone(), self.read("label", value)?)
                .is_some()
            {
                return Err(self.wrong(format!("the label {key} is given twice")));
            }
        }
        let strategy = match self.flags.remove("strategy").as_deref() {
            None | Some("spread") => Strategy::Spread,
            Some("pack") => Strategy::Pack,
            Some(_) => return Err(self.wrong("`--strategy` is spread or pack")),
        };
        let ready = match self.flags.remove("ready").as_deref() {
            None => None,
            Some("agent") => Some(Readiness::Agent),
            Some("boot") => Some(Readiness::Boot),
            Some("ping") => Some(Readiness::Ping),
            Some("guest-agent" | "guest_agent") => Some(Readiness::GuestAgent),
            Some(_) => return Err(self.wrong("`--ready` is agent, boot, ping or guest-agent")),
        };
        Ok(CreateVms {
            name,
            count: self.value("count")?,
            image: self.given("image")?,
            cpus: self.given("cpus")?,
            memory: self.given("memory")?,
            disk: self.value("disk")?,
            networks: self.all("network")?,
            account: self.value("account")?,
            agent: !self.has("no-agent"),
            ready,
            ready_within: self.value("within")?,
            on: self.flags.remove("on"),
            strategy,
            apart: self.flags.remove("apart"),
            roles: self.all("role")?,
            labels,
            groups: self.all("group")?,
            ssh_keys: self.ssh_keys()?,
            user_data: None,
            autostart: !self.has("no-autostart"),
            protect: self.has("protect"),
            configure: self.configured()?,
            dry_run: self.has("dry-run"),
        })
    }
}

impl MachineCommand {
    /// Its first word.
    #[must_use]
    pub fn family(&self) -> &'static str {
        match self {
            Self::Images => "image",
            Self::Groups(command) => command.family(),
            Self::Networks => "network",
            Self::Hypervisors | Self::Cordon { .. } | Self::Drain(_) => "hypervisor",
            _ => "vm",
        }
    }

    /// What it says, one thing a line.
    pub(super) fn spelled(&self, say: &mut impl FnMut(String)) {
        match self {
            Self::Create(create) => {
                let dry = if create.dry_run { "dry run of " } else { "" };
                say(format!(
                    "{dry}make the machine {}",
                    printable(&create.name, 200)
                ));
                let list = |all: Vec<String>| (!all.is_empty()).then(|| all.join(", "));
                let roles = create.roles.iter().map(ToString::to_string);
                let labels = create.labels.iter().map(|(k, v)| format!("{k}={v}"));
                for (name, value) in [
                    ("how many", create.count.map(|n| n.to_string())),
                    ("image", Some(create.image.to_string())),
                    ("processors", Some(create.cpus.to_string())),
                    ("memory", Some(create.memory.to_string())),
                    ("disk", create.disk.map(|disk| disk.to_string())),
                    ("account", create.account.as_ref().map(ToString::to_string)),
                    ("on", create.on.as_ref().map(|on| printable(on, 300))),
                    ("roles", list(roles.collect())),
                    ("labels", list(labels.collect())),
                    ("ssh keys", list(create.ssh_keys.clone())),
                    ("agent", (!create.agent).then(|| "none".to_owned())),
                ] {
                    if let Some(value) = value {
                        say(format!("  {name} = {value}"));
                    }
                }
                for group in &create.groups {
                    say(format!("  group = {group}"));
                }
                for network in &create.networks {
                    say(format!("  network = {network}"));
                }
                if let Some(configure) = &create.configure {
                    say(format!("  configured by {}", configure.scenario));
                    for (name, value) in &configure.params {
                        let value = value.as_str().unwrap_or_default();
                        let value = crate::chat::quoted(&printable(value, 200));
                        say(format!("    {} = {value}", printable(name, 60)));
                    }
                }
            }
            Self::List { on, deleted } => {
                let which = if *deleted {
                    "destroyed machines"
                } else {
                    "machines"
                };
                let on = on.as_deref().map_or_else(String::new, |on| {
                    format!(" that match {}", printable(on, 300))
                });
                say(format!("{which}{on}"));
            }
            Self::Show(name) => say(format!("the machine {name}")),
            Self::Where(name) => say(format!("where the machine {name} is")),
            Self::Log(name) => say(format!("what happened to the machine {name}")),
            Self::Destroy { name, purge, yes } => {
                say(format!("destroy the machine {name}"));
                if *purge {
                    say("  with its disk".to_owned());
                }
                if *yes {
                    say("  without asking".to_owned());
                }
            }
            Self::Act { name, what } => {
                say(format!("{} the machine {name}", word(what)));
                if let VmAction::Exec { argv, .. } = what {
                    let argv: Vec<String> = argv
                        .iter()
                        .map(|word| crate::chat::quoted(&printable(word, 200)))
                        .collect();
                    say(format!("  {}", argv.join(" ")));
                }
            }
            Self::Groups(command) => say(command.to_string()),
            Self::Images => say("disk images".to_owned()),
            Self::Networks => say("networks".to_owned()),
            Self::Hypervisors => say("hypervisors".to_owned()),
            Self::Drain(node) => say(format!("drain {node}: put nothing new on it")),
            Self::Cordon { node, cordoned } => say(if *cordoned {
                format!("put nothing new on {node}")
            } else {
                format!("put new machines on {node} again")
            }),
        }
    }
}

/// What is done with a machine, in a word.
#[must_use]
pub fn word(what: &VmAction) -> &'static str {
    match what {
        VmAction::Start => "start",
        VmAction::Stop { .. } => "stop",
        VmAction::Reboot { .. } => "reboot",
        VmAction::Resize { .. } => "resize",
        VmAction::Snapshot { .. } => "snapshot",
        VmAction::Restore { .. } => "restore",
        VmAction::ConsoleLog { .. } => "console",
        VmAction::Exec { .. } => "exec",
        VmAction::Provision { .. } => "provision",
        VmAction::Protect => "protect",
        VmAction::Unprotect => "unprotect",
        VmAction::Undelete => "undelete",
    }
}

#[cfg(test)]
mod tests;
